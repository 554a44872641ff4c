//! Names of other registries that mean something else than what their registry has.
//!
//! A single name can mean one image of this store. It is then a tag in the repository of the other registry; what is pulled
//! is linked by digest only, so a tag there is always one that somebody gave here, and whoever resolves it asks nobody.
//!
//! A name, or all names below a path, can also be had from elsewhere: from another registry, or from repositories of this
//! store. Those rules are in `mirrors.json`. Each time such a name is resolved that place is asked, so that a moved tag is
//! noticed; what it answered last is kept, and is what the name means while the place cannot be reached. Of several rules
//! the one that fixes most of the name holds. No rule is looked up for the place that a rule gives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::disk::Disk;
use crate::names::Prefix;
use crate::reference::{Reference, ReferenceError, Repository, Tag, Version};
use crate::repository::Completeness;
use crate::resolve::{ResolveError, ResolvedImage, is_own_host};
use crate::{Error, Images, blocking};

/// A name of another registry, and what it means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub name: String,
    pub meaning: Meaning,
}

/// What such a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// This image of the store, also when its own name moves or goes.
    Image(Digest),
    /// What is at this place at the time.
    From(String),
}

/// Which names are had from where.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Rules {
    images: BTreeMap<Reference, Reference>,
    below: BTreeMap<Prefix, Prefix>,
}

impl Rules {
    /// Where a reference is had from; None: from its own registry.
    fn place(&self, asked: &Reference) -> Option<Result<Reference, ReferenceError>> {
        let repository = asked.repository();
        if let Version::Tag(tag) = asked.version()
            && let Some(place) = self.images.get(&Reference::tagged(repository.clone(), tag))
        {
            return Some(Ok(place.clone()));
        }
        let covering = self
            .below
            .iter()
            .filter_map(|(names, place)| Some((names.length(), place, names.below(repository)?)));
        let (_, place, path) = covering.max_by_key(|(length, ..)| *length)?;
        Some(place.join(path).map(|repository| match asked.version() {
            Version::Tag(tag) => Reference::tagged(repository, tag),
            Version::Digest(digest) => Reference::pinned(repository, digest),
        }))
    }
}

/// What a place had when it was asked last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    digest: Digest,
    place: Reference,
}

/// The rules, and the file that they are kept in.
#[derive(Debug)]
pub(crate) struct Places {
    path: PathBuf,
    rules: RwLock<Rules>,
}

impl Places {
    pub(crate) fn open(path: PathBuf) -> Result<Places, Error> {
        let rules = match Disk::read(&path)? {
            Some(content) => {
                serde_json::from_slice(&content).map_err(|error| Error::io("read", &path)(error.into()))?
            }
            None => Rules::default(),
        };
        let rules = RwLock::new(rules);
        Ok(Places { path, rules })
    }

    fn read(&self) -> Rules {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn place(&self, asked: &Reference) -> Option<Result<Reference, ReferenceError>> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).place(asked)
    }

    /// Changes the rules, on the disk first.
    fn change<T>(&self, disk: &Disk, change: impl FnOnce(&mut Rules) -> T) -> Result<T, Error> {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = rules.clone();
        let answer = change(&mut changed);
        let content = serde_json::to_vec(&changed).expect("names are plain text");
        disk.write(&self.path, &content)?;
        *rules = changed;
        Ok(answer)
    }
}

/// The file of the rules in the store's directory.
pub(crate) fn file(root: &Path) -> PathBuf {
    root.join("mirrors.json")
}

impl Images {
    /// Lets a name of another registry mean an image that is stored. It goes on to mean that one when the image's own
    /// name moves or goes.
    ///
    /// # Errors
    /// [`Error::ManifestUnknown`] where the image is not stored.
    pub async fn mirror(&self, repository: &Repository, tag: &Tag, image: &Reference) -> Result<Digest, Error> {
        let (images, repository, tag, image) = (self.clone(), repository.clone(), tag.clone(), image.clone());
        blocking(move || {
            let stored = images.manifest(image.repository(), &image.version())?;
            let name = Reference::tagged(repository.clone(), tag.clone());
            let digest = images.link_manifest(
                &repository,
                &Version::Tag(tag),
                Some(&stored.media_type),
                &stored.content,
                Completeness::OneOfIndex,
            )?;
            let shared = &images.shared;
            shared.places.change(&shared.disk, |rules| rules.images.remove(&name))?;
            Ok(digest)
        })
        .await
    }

    /// Lets a tagged name be had from another place, in place of whatever it meant here.
    pub async fn mirror_from(&self, repository: &Repository, tag: &Tag, place: &Reference) -> Result<(), Error> {
        match self.forget_tag(repository, tag).await {
            Ok(()) | Err(Error::ManifestUnknown { .. } | Error::RepositoryUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
        let (images, place) = (self.clone(), place.clone());
        let name = Reference::tagged(repository.clone(), tag.clone());
        let shared = images.shared;
        blocking(move || {
            shared
                .places
                .change(&shared.disk, |rules| drop(rules.images.insert(name, place)))
        })
        .await
    }

    /// Lets all names below a path be had from another place.
    pub async fn mirror_below(&self, names: &Prefix, place: &Prefix) -> Result<(), Error> {
        let (shared, names, place) = (self.shared.clone(), names.clone(), place.clone());
        blocking(move || {
            shared
                .places
                .change(&shared.disk, |rules| drop(rules.below.insert(names, place)))
        })
        .await
    }

    /// All such names, sorted. Blocks on the disk.
    pub fn mirrors(&self) -> Result<Vec<Mirror>, Error> {
        let mut found = Vec::new();
        for repository in self.repositories()? {
            if is_own_host(repository.host()) {
                continue;
            }
            for tag in self.tags(&repository)? {
                if let Some(digest) = self.tag(&repository, &tag)? {
                    found.push(Mirror {
                        name: Reference::tagged(repository.clone(), tag).to_string(),
                        meaning: Meaning::Image(digest),
                    });
                }
            }
        }
        let rules = self.shared.places.read();
        let images = rules.images.iter();
        let images = images.map(|(name, place)| (name.to_string(), place.to_string()));
        let below = rules.below.iter();
        let below = below.map(|(name, place)| (name.to_string(), place.to_string()));
        found.extend(images.chain(below).map(|(name, place)| Mirror {
            name,
            meaning: Meaning::From(place),
        }));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Takes such a name away. The image stays under its other names.
    ///
    /// # Errors
    /// [`Error::ManifestUnknown`] where the name means nothing here.
    pub async fn unmirror(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let name = Reference::tagged(repository.clone(), tag.clone());
        let shared = self.shared.clone();
        let removed = blocking(move || {
            shared
                .places
                .change(&shared.disk, |rules| rules.images.remove(&name).is_some())
        })
        .await?;
        if removed {
            return Ok(());
        }
        self.forget_tag(repository, tag).await
    }

    /// Takes away what [`mirror_below`](Self::mirror_below) gave; false where there was nothing.
    pub async fn unmirror_below(&self, names: &Prefix) -> Result<bool, Error> {
        let (shared, names) = (self.shared.clone(), names.clone());
        blocking(move || {
            shared
                .places
                .change(&shared.disk, |rules| rules.below.remove(&names).is_some())
        })
        .await
    }

    /// Takes away a tag of another registry's repository, with the manifest if that was its last name.
    async fn forget_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let version = Version::Tag(tag.clone());
        let (images, from, name) = (self.clone(), repository.clone(), tag.clone());
        let digest = blocking(move || images.tag(&from, &name)).await?;
        self.delete_manifest(repository, &version).await?;
        let Some(digest) = digest else { return Ok(()) };
        let (images, from) = (self.clone(), repository.clone());
        // Without its last name it would hold its content for ever.
        if blocking(move || images.is_named(&from, digest)).await? {
            return Ok(());
        }
        self.delete_manifest(repository, &Version::Digest(digest)).await
    }

    /// Whether a tag of the repository is at this digest, or was when a mirror was asked for it last.
    fn is_named(&self, repository: &Repository, digest: Digest) -> Result<bool, Error> {
        let disk = &self.shared.disk;
        for tag in self.tags(repository)? {
            if self.tag(repository, &tag)? == Some(digest) {
                return Ok(true);
            }
        }
        for name in Disk::names(&disk.seen(repository))? {
            if self.seen(repository, &name)?.is_some_and(|seen| seen.digest == digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a tag was when its mirror was asked last.
    fn seen(&self, repository: &Repository, tag: &str) -> Result<Option<Seen>, Error> {
        let content = Disk::read(&self.shared.disk.seen(repository).join(tag))?;
        Ok(content.and_then(|content| serde_json::from_slice(&content).ok()))
    }

    /// Keeps what a mirror answered. The image that the tag was before goes, unless something else names it.
    fn see(&self, repository: &Repository, tag: &Tag, seen: &Seen) -> Result<(), Error> {
        let before = self.seen(repository, tag.as_str())?;
        if before.as_ref() == Some(seen) {
            return Ok(());
        }
        let disk = &self.shared.disk;
        let content = serde_json::to_vec(seen).expect("names are plain text");
        disk.write(&disk.seen(repository).join(tag.as_str()), &content)?;
        if let Some(before) = before
            && !self.is_named(repository, before.digest)?
        {
            Disk::remove(&disk.manifest(repository, &before.digest))?;
        }
        Ok(())
    }

    /// Resolves a name that is had from elsewhere; None where it is not.
    pub(crate) async fn resolve_mirrored(&self, asked: &Reference) -> Option<Result<ResolvedImage, ResolveError>> {
        // Else it is too long for any registry.
        let Ok(place) = self.shared.places.place(asked)? else {
            let reference = asked.clone();
            return Some(Err(ResolveError::NotFound { reference }));
        };
        let resolved = if is_own_host(place.repository().host()) {
            self.resolve_here(asked, &place).await
        } else {
            self.resolve_there(asked, &place).await
        };
        Some(resolved.map_err(|source| ResolveError::Mirror {
            reference: asked.clone(),
            source: Box::new(source),
        }))
    }

    /// From a repository of this store.
    async fn resolve_here(&self, asked: &Reference, place: &Reference) -> Result<ResolvedImage, ResolveError> {
        let (images, asked, from) = (self.clone(), asked.clone(), place.clone());
        let resolved = blocking(move || {
            let resolved = images.resolve_stored(&from)?;
            let stored = images.manifest(from.repository(), &Version::Digest(resolved.digest))?;
            images.link_manifest(
                asked.repository(),
                &Version::Digest(resolved.digest),
                Some(&stored.media_type),
                &stored.content,
                Completeness::OneOfIndex,
            )?;
            if let Version::Tag(tag) = asked.version() {
                let (digest, place) = (resolved.digest, from.clone());
                images.see(asked.repository(), &tag, &Seen { digest, place })?;
            }
            Ok(ResolvedImage {
                reference: asked,
                ..resolved
            })
        });
        resolved.await.map_err(|error| ResolveError::store(place, error))
    }

    /// From another registry, or as it was there when that was reached last.
    async fn resolve_there(&self, asked: &Reference, place: &Reference) -> Result<ResolvedImage, ResolveError> {
        let tag = match asked.version() {
            Version::Tag(tag) => tag,
            Version::Digest(_) => return self.pull(asked, place).await,
        };
        let (images, repository, name) = (self.clone(), asked.repository().clone(), tag.clone());
        let from = place.clone();
        let pulled = match self.pull(asked, place).await {
            Ok(resolved) => {
                let digest = resolved.digest;
                let seen = Seen { digest, place: from };
                let seen = blocking(move || images.see(&repository, &name, &seen)).await;
                return seen
                    .map(|()| resolved)
                    .map_err(|error| ResolveError::store(place, error));
            }
            Err(error @ ResolveError::Network { .. }) => error,
            Err(error) => return Err(error),
        };
        let kept = blocking(move || {
            let seen = images.seen(&repository, name.as_str())?;
            let Some(seen) = seen.filter(|seen| seen.place == from) else {
                return Ok(None);
            };
            let resolved = images.resolve_stored(&Reference::pinned(repository, seen.digest))?;
            Ok::<_, Error>(Some(resolved))
        });
        let Ok(Some(kept)) = kept.await else { return Err(pulled) };
        tracing::warn!(
            image = %asked, mirror = %place, digest = %kept.digest, why = &pulled as &dyn std::error::Error,
            "the mirror cannot be reached: the image is what it was there last"
        );
        Ok(ResolvedImage {
            reference: asked.clone(),
            ..kept
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_holds() {
        let mut rules = Rules::default();
        for (name, place) in [
            ("docker.io", "mirror.example:5000/hub/*"),
            ("docker.io/library/*", "us-central1-docker.pkg.dev/p/base/*"),
            ("gcr.io/distroless/*", "mirror.example:5000"),
        ] {
            let (name, place) = (name.parse().expect("names"), place.parse().expect("a place"));
            rules.below.insert(name, place);
        }
        let reference = |text: &str| text.parse::<Reference>().expect("a reference");
        rules
            .images
            .insert(reference("python:3"), reference("other.example/python:3.13"));
        let pinned = format!("python@sha256:{}", "0".repeat(64));
        for (asked, place) in [
            ("python:3", Some("other.example/python:3.13".to_owned())),
            (
                "python:3.12",
                Some("us-central1-docker.pkg.dev/p/base/python:3.12".to_owned()),
            ),
            (&pinned, Some(format!("us-central1-docker.pkg.dev/p/base/{pinned}"))),
            ("team/app", Some("mirror.example:5000/hub/team/app:latest".to_owned())),
            (
                "libraryx/app",
                Some("mirror.example:5000/hub/libraryx/app:latest".to_owned()),
            ),
            (
                "gcr.io/distroless/static",
                Some("mirror.example:5000/static:latest".to_owned()),
            ),
            ("gcr.io/other/static", None),
            ("quay.io/a/b", None),
        ] {
            let found = rules.place(&reference(asked)).map(|place| place.expect("short"));
            assert_eq!(found.map(|place| place.to_string()), place, "{asked}");
        }
        let text = serde_json::to_string(&rules).expect("plain");
        let again: Rules = serde_json::from_str(&text).expect("as written");
        assert_eq!((again.images, again.below), (rules.images, rules.below), "{text}");
    }
}
