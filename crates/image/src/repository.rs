//! Which manifests a repository holds and which of them its tags point at: the part of the store that has names. A
//! manifest is linked only when all it names is stored, so that what is found here can be run.

use crate::digest::Digest;
use crate::disk::Disk;
use crate::manifest::{ConfigBlob, ImageManifest, Manifest, ManifestError};
use crate::reference::{Reference, Repository, Tag, Version};
use crate::referrer::subject_of;
use crate::resolve::ResolvedImage;
use crate::{Error, Images, blocking};

/// Largest manifest or index in bytes (the least that the distribution specification asks registries to take).
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest image configuration in bytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// How deep indexes may name indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// A manifest as it was pushed, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    pub digest: Digest,
    pub media_type: String,
    pub content: Vec<u8>,
}

/// What must be stored before a manifest may be linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completeness {
    /// All of it: what a client pushes.
    All,
    /// An index may name manifests that are not here: what is pulled or imported for this machine alone.
    OneOfIndex,
}

impl Images {
    /// The digest that a tag points at. Reads one small file.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, Error> {
        let path = self.shared.disk.tag(repository, tag);
        let Some(content) = Disk::read(&path)? else {
            return Ok(None);
        };
        let broken = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not a digest");
        let text = String::from_utf8(content).map_err(|_| Error::io("read", &path)(broken()))?;
        text.trim_end()
            .parse()
            .map(Some)
            .map_err(|_| Error::io("read", &path)(broken()))
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, repository: &Repository) -> Result<Vec<Tag>, Error> {
        if !self.shared.disk.manifests(repository).is_dir() {
            return Err(Error::RepositoryUnknown {
                repository: repository.clone(),
            });
        }
        let names = Disk::names(&self.shared.disk.tags(repository))?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// All repositories that hold a manifest, sorted.
    pub fn repositories(&self) -> Result<Vec<Repository>, Error> {
        let mut found = Vec::new();
        for host in Disk::names(&self.shared.disk.repositories())? {
            let mut open = vec![String::new()];
            while let Some(path) = open.pop() {
                let dir = self.shared.disk.repositories().join(&host).join(&path);
                for name in Disk::names(&dir)? {
                    if name == "_manifests" {
                        if !Disk::names(&dir.join(name))?.is_empty() {
                            found.extend(Repository::new(&host, &path));
                        }
                    } else if !name.starts_with('_') {
                        open.push(if path.is_empty() {
                            name
                        } else {
                            format!("{path}/{name}")
                        });
                    }
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// A manifest of a repository with the media type it was pushed with.
    pub fn manifest(&self, repository: &Repository, version: &Version) -> Result<StoredManifest, Error> {
        let unknown = || Error::ManifestUnknown {
            repository: repository.clone(),
            version: version.clone(),
        };
        let digest = match version {
            Version::Digest(digest) => *digest,
            Version::Tag(tag) => self.tag(repository, tag)?.ok_or_else(unknown)?,
        };
        let link = Disk::read(&self.shared.disk.manifest(repository, &digest))?.ok_or_else(unknown)?;
        let media_type = String::from_utf8_lossy(&link).trim_end().to_owned();
        let content = self.small_blob(&digest, "manifest", MAX_MANIFEST_BYTES)?;
        Ok(StoredManifest {
            digest,
            media_type,
            content,
        })
    }

    /// Stores a manifest under a tag or its digest. All it names must be stored: blobs by anyone, manifests of an index
    /// likewise. `media_type` is what the client sent.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        version: &Version,
        media_type: &str,
        content: &[u8],
    ) -> Result<Digest, Error> {
        let (images, repository, version) = (self.clone(), repository.clone(), version.clone());
        let (media_type, content) = (media_type.to_owned(), content.to_owned());
        blocking(move || images.link_manifest(&repository, &version, Some(&media_type), &content, Completeness::All))
            .await
    }

    /// The same for whoever may block on the disk, and with a choice of what must be there.
    pub(crate) fn link_manifest(
        &self,
        repository: &Repository,
        version: &Version,
        media_type: Option<&str>,
        content: &[u8],
        completeness: Completeness,
    ) -> Result<Digest, Error> {
        if content.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(Error::TooLarge {
                what: "manifest",
                limit: MAX_MANIFEST_BYTES,
            });
        }
        let (manifest, media_type) = Manifest::read(content, media_type)?;
        let digest = Digest::of(content);
        if let Version::Digest(expected) = version
            && *expected != digest
        {
            return Err(Error::DigestMismatch {
                expected: *expected,
                actual: digest,
            });
        }
        if let Version::Tag(tag) = version {
            self.check_tag(repository, tag, &digest)?;
        }
        self.put_small_blob(content)?;
        let disk = &self.shared.disk;
        // From the look at what must be there to the name that holds it nothing is removed.
        let _kept = self.shared.kept();
        self.claim(&digest)?.ok_or(Error::ReferenceMissing { digest })?;
        let completeness = match manifest {
            Manifest::Image(_) => Completeness::All,
            Manifest::Index(_) => completeness,
        };
        self.claim_named(&manifest, completeness, MAX_INDEX_DEPTH)?;
        if let Some(subject) = subject_of(content) {
            let place = disk.referrers(repository, &subject);
            disk.write(&place.join(digest.hex()), b"")?;
        }
        let link = disk.manifest(repository, &digest);
        // The time of this file is when the manifest came: pushed once more it is as old as before.
        if Disk::read(&link)?.as_deref() != Some(media_type.as_bytes()) {
            disk.write(&link, media_type.as_bytes())?;
        }
        if let Version::Tag(tag) = version {
            self.write_tag(repository, tag, &digest)?;
        }
        Ok(digest)
    }

    /// Marks all that a manifest names as wanted, through its inner manifests too. Whoever calls holds the lock.
    ///
    /// # Errors
    /// [`Error::ReferenceMissing`] where something is not stored that must be.
    fn claim_named(&self, manifest: &Manifest, completeness: Completeness, deeper: usize) -> Result<(), Error> {
        let index = match manifest {
            Manifest::Image(image) => {
                for part in std::iter::once(&image.config).chain(&image.layers) {
                    let digest = part.digest;
                    if self.claim(&digest)?.is_none() && !part.is_foreign() && completeness == Completeness::All {
                        return Err(Error::ReferenceMissing { digest });
                    }
                }
                return Ok(());
            }
            Manifest::Index(index) => index,
        };
        for entry in &index.manifests {
            let digest = entry.digest;
            if self.claim(&digest)?.is_none() {
                if completeness == Completeness::All {
                    return Err(Error::ReferenceMissing { digest });
                }
                continue;
            }
            if entry.is_manifest() {
                let Some(deeper) = deeper.checked_sub(1) else {
                    return Err(ManifestError::IndexDepth { digest }.into());
                };
                let content = self.small_blob(&digest, "manifest", MAX_MANIFEST_BYTES)?;
                self.claim_named(&Manifest::read(&content, None)?.0, completeness, deeper)?;
            }
        }
        Ok(())
    }

    /// Points a tag at a manifest that the repository already holds. Blocks on the disk.
    pub(crate) fn set_tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<(), Error> {
        self.check_tag(repository, tag, digest)?;
        self.write_tag(repository, tag, digest)
    }

    /// Removes a tag, or a manifest with all tags that point at it. Blobs stay: other images may share them.
    ///
    /// # Errors
    /// [`Error::TagImmutable`] where a tag that would go stays.
    pub async fn delete_manifest(&self, repository: &Repository, version: &Version) -> Result<(), Error> {
        let (images, repository, version) = (self.clone(), repository.clone(), version.clone());
        blocking(move || {
            let disk = &images.shared.disk;
            let removed = match &version {
                Version::Tag(tag) => {
                    images.check_removal(&repository, std::slice::from_ref(tag))?;
                    Disk::remove(&disk.tag(&repository, tag))?
                }
                Version::Digest(digest) => {
                    let mut tags = Vec::new();
                    for name in Disk::names(&disk.tags(&repository))? {
                        let Ok(tag) = name.parse::<Tag>() else {
                            continue;
                        };
                        if images.tag(&repository, &tag)? == Some(*digest) {
                            tags.push(tag);
                        }
                    }
                    images.check_removal(&repository, &tags)?;
                    for tag in &tags {
                        Disk::remove(&disk.tag(&repository, tag))?;
                    }
                    images.forget_referrer(&repository, digest)?;
                    Disk::remove(&disk.manifest(&repository, digest))?
                }
            };
            if removed {
                Ok(())
            } else {
                Err(Error::ManifestUnknown { repository, version })
            }
        })
        .await
    }

    /// From any manifest to the one for this machine, with its configuration, all of it stored. Blocks on the disk.
    pub(crate) fn choose(&self, digest: &Digest) -> Result<Chosen, Error> {
        let mut at = *digest;
        for _ in 0..MAX_INDEX_DEPTH {
            let content = self.small_blob(&at, "manifest", MAX_MANIFEST_BYTES)?;
            match Manifest::read(&content, None)?.0 {
                Manifest::Index(index) => at = index.choose()?.digest,
                Manifest::Image(manifest) => {
                    let content = self.small_blob(&manifest.config.digest, "image configuration", MAX_CONFIG_BYTES)?;
                    let config = ConfigBlob::read(&content, manifest.config.digest)?;
                    config.check(&manifest)?;
                    return Ok(Chosen {
                        digest: at,
                        manifest,
                        config,
                    });
                }
            }
        }
        Err(ManifestError::IndexDepth { digest: *digest }.into())
    }

    /// What a stored reference resolves to. Blocks on the disk.
    pub(crate) fn resolve_stored(&self, reference: &Reference) -> Result<ResolvedImage, Error> {
        // Held until all of it is marked: what is resolved can be unpacked, even if its tag goes away meanwhile.
        let _kept = self.shared.kept();
        let stored = self.manifest(reference.repository(), &reference.version())?;
        let chosen = self.choose(&stored.digest)?;
        self.claim(&stored.digest)?;
        self.claim(&chosen.digest)?;
        for part in std::iter::once(&chosen.manifest.config).chain(&chosen.manifest.layers) {
            self.claim(&part.digest)?;
        }
        Ok(ResolvedImage {
            reference: reference.clone(),
            digest: stored.digest,
            manifest: chosen.digest,
            config: chosen.config.config,
        })
    }
}

/// The manifest of an image for this machine.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) digest: Digest,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: ConfigBlob,
}
