//! A repository as a list of what it holds: each manifest with its tags, its size and when it came.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::SystemTime;

use crate::digest::Digest;
use crate::disk::{Disk, is_absent};
use crate::manifest::{Manifest, Remarks};
use crate::reference::{Repository, Tag, Version};
use crate::{Error, Images, blocking};

/// One manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVersion {
    pub digest: Digest,
    pub media_type: String,
    /// What the manifest names, without what an index's manifests name, in bytes.
    pub size: u64,
    /// Those that point at it, sorted.
    pub tags: Vec<Tag>,
    /// When it came into this repository.
    pub uploaded: SystemTime,
    pub artifact_type: Option<String>,
}

impl Images {
    /// All manifests of a repository, by digest. Blocks on the disk.
    ///
    /// # Errors
    /// [`Error::RepositoryUnknown`] where it holds none.
    pub fn versions(&self, repository: &Repository) -> Result<Vec<StoredVersion>, Error> {
        let disk = &self.shared.disk;
        let links = Disk::names(&disk.manifests(repository))?;
        if links.is_empty() {
            return Err(Error::RepositoryUnknown {
                repository: repository.clone(),
            });
        }
        let mut tagged = Vec::new();
        for tag in self.tags(repository)? {
            if let Some(digest) = self.tag(repository, &tag)? {
                tagged.push((digest, tag));
            }
        }
        let mut versions = Vec::with_capacity(links.len());
        for digest in links.iter().filter_map(|name| Digest::from_hex(name)) {
            let path = disk.manifest(repository, &digest);
            let stored = match self.manifest(repository, &Version::Digest(digest)) {
                Ok(stored) => stored,
                Err(Error::ManifestUnknown { .. }) => continue,
                Err(error) => return Err(error),
            };
            let uploaded = match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
                Ok(uploaded) => uploaded,
                // Deleted in this moment.
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(Error::io("stat", &path)(error)),
            };
            let named = match Manifest::read(&stored.content, None)?.0 {
                Manifest::Image(image) => image.layers.iter().map(|layer| layer.size).sum::<u64>() + image.config.size,
                Manifest::Index(index) => index.manifests.iter().map(|entry| entry.size).sum(),
            };
            let remarks: Option<Remarks> = serde_json::from_slice(&stored.content).ok();
            versions.push(StoredVersion {
                digest,
                media_type: stored.media_type,
                size: named + stored.content.len() as u64,
                tags: tagged
                    .iter()
                    .filter(|(of, _)| *of == digest)
                    .map(|(_, tag)| tag.clone())
                    .collect(),
                uploaded,
                artifact_type: remarks.and_then(|remarks| remarks.artifact_type),
            });
        }
        Ok(versions)
    }

    /// Points a tag at a manifest of the repository.
    ///
    /// # Errors
    /// [`Error::ManifestUnknown`] where the repository does not hold it.
    pub async fn add_tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<(), Error> {
        let (images, repository, tag, digest) = (self.clone(), repository.clone(), tag.clone(), *digest);
        blocking(move || {
            let _kept = images.shared.kept();
            images.manifest(&repository, &Version::Digest(digest))?;
            images.set_tag(&repository, &tag, &digest)
        })
        .await
    }

    /// Removes all manifests and tags of one repository; those below its path stay.
    pub async fn delete_repository(&self, repository: &Repository) -> Result<(), Error> {
        let (images, repository) = (self.clone(), repository.clone());
        blocking(move || {
            match images.tags(&repository) {
                Ok(tags) => images.check_removal(&repository, &tags)?,
                Err(Error::RepositoryUnknown { .. }) => {}
                Err(error) => return Err(error),
            }
            let dir = images.shared.disk.repository(&repository);
            for part in ["_tags", "_referrers", "_manifests"] {
                images.remove_directory(&dir.join(part))?;
            }
            Ok(())
        })
        .await
    }

    /// Removes all repositories whose path is `under` or begins with it and `/`.
    pub async fn delete_repositories(&self, under: &Repository) -> Result<(), Error> {
        let (images, under) = (self.clone(), under.clone());
        blocking(move || images.remove_directory(&images.shared.disk.repository(&under))).await
    }

    /// Out of sight at once, and then gone. One that is not there is no error.
    fn remove_directory(&self, dir: &Path) -> Result<(), Error> {
        let gone = self.shared.disk.temp_dir()?;
        {
            // A manifest being linked right now is linked in full before or after.
            let _removing = self.shared.kept.write().unwrap_or_else(PoisonError::into_inner);
            match fs::rename(dir, gone.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other.map_err(Error::io("remove", dir))?,
            }
        }
        gone.close().map_err(Error::io("remove", dir))
    }
}
