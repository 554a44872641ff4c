//! Tags that stay what they are: neither moved nor deleted, nor is what they name, below a path that says so. New ones can be
//! given.

use crate::digest::Digest;
use crate::disk::Disk;
use crate::reference::{Repository, Tag};
use crate::{Error, Images, blocking};

impl Images {
    /// Lets all tags at and below a path stay what they are, or no longer so.
    pub async fn set_immutable_tags(&self, under: &Repository, immutable: bool) -> Result<(), Error> {
        let (images, under) = (self.clone(), under.clone());
        blocking(move || {
            let disk = &images.shared.disk;
            let mark = disk.immutable(&under);
            if immutable {
                disk.write(&mark, b"")
            } else {
                Disk::remove(&mark).map(drop)
            }
        })
        .await
    }

    /// Whether tags of a repository stay what they are. Looks at a few names on the disk.
    pub fn has_immutable_tags(&self, repository: &Repository) -> bool {
        let paths = repository.path().match_indices('/').map(|(end, _)| end);
        let paths = paths.chain([repository.path().len()]);
        let mut above = paths.filter_map(|end| Repository::new(repository.host(), &repository.path()[..end]).ok());
        above.any(|repository| self.shared.disk.immutable(&repository).exists())
    }

    /// Whether a tag may be given to `digest`.
    ///
    /// # Errors
    /// [`Error::TagImmutable`] where it is another's, and stays so.
    pub(crate) fn check_tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<(), Error> {
        let before = self.tag(repository, tag)?;
        if before.is_none_or(|before| before == *digest) || !self.has_immutable_tags(repository) {
            return Ok(());
        }
        Err(immutable(repository, tag))
    }

    /// Points a tag at a manifest, for good where tags stay.
    pub(crate) fn write_tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<(), Error> {
        let disk = &self.shared.disk;
        let (path, content) = (disk.tag(repository, tag), digest.to_string());
        if !self.has_immutable_tags(repository) {
            return disk.write(&path, content.as_bytes());
        }
        // Of two at a time one gives it.
        if disk.write_new(&path, content.as_bytes())? || self.tag(repository, tag)? == Some(*digest) {
            return Ok(());
        }
        Err(immutable(repository, tag))
    }

    /// Whether the tags in question may go.
    ///
    /// # Errors
    /// [`Error::TagImmutable`] for the first that is there, where tags stay.
    pub(crate) fn check_removal(&self, repository: &Repository, tags: &[Tag]) -> Result<(), Error> {
        if tags.is_empty() || !self.has_immutable_tags(repository) {
            return Ok(());
        }
        for tag in tags {
            if self.tag(repository, tag)?.is_some() {
                return Err(immutable(repository, tag));
            }
        }
        Ok(())
    }
}

fn immutable(repository: &Repository, tag: &Tag) -> Error {
    Error::TagImmutable {
        repository: repository.clone(),
        tag: tag.clone(),
    }
}
