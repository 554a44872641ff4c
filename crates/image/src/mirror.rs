//! Names of other registries that mean an image of this store: `python:3.12-slim` for one that was pushed. Such a name is
//! a tag in the repository of the other registry. What is pulled is linked by digest only, so a tag there is always one
//! that somebody gave here, and whoever resolves it asks nobody.

use crate::digest::Digest;
use crate::reference::{Reference, Repository, Tag, Version};
use crate::repository::Completeness;
use crate::resolve::is_own_host;
use crate::{Error, Images, blocking};

/// A name of another registry, and the image that it means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub repository: Repository,
    pub tag: Tag,
    pub digest: Digest,
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
            images.link_manifest(
                &repository,
                &Version::Tag(tag),
                Some(&stored.media_type),
                &stored.content,
                Completeness::OneOfIndex,
            )
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
                        repository: repository.clone(),
                        tag,
                        digest,
                    });
                }
            }
        }
        Ok(found)
    }

    /// Takes such a name away. The image stays under its other names.
    ///
    /// # Errors
    /// [`Error::ManifestUnknown`] where the name means nothing here.
    pub async fn unmirror(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let version = Version::Tag(tag.clone());
        let (images, from, name) = (self.clone(), repository.clone(), tag.clone());
        let digest = blocking(move || images.tag(&from, &name)).await?;
        self.delete_manifest(repository, &version).await?;
        let (images, from) = (self.clone(), repository.clone());
        let others = blocking(move || {
            images
                .tags(&from)?
                .iter()
                .map(|tag| images.tag(&from, tag))
                .collect::<Result<Vec<_>, Error>>()
        })
        .await?;
        match digest {
            // Without its last name it would hold its content for ever.
            Some(digest) if !others.contains(&Some(digest)) => {
                self.delete_manifest(repository, &Version::Digest(digest)).await
            }
            Some(_) | None => Ok(()),
        }
    }
}
