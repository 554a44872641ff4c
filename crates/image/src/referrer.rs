//! Manifests that speak about another one by its digest: signatures, bills of materials (OCI distribution specification
//! 1.1, "Listing Referrers"). A repository notes them by their subject when they are stored, whether the subject is
//! there or not.

use crate::digest::Digest;
use crate::disk::Disk;
use crate::manifest::Remarks;
use crate::reference::{Repository, Version};
use crate::{Error, Images};

/// A manifest that refers to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    pub digest: Digest,
    pub media_type: String,
    /// Length of the manifest in bytes.
    pub size: u64,
    /// The manifest's own, else the media type of its configuration; empty where it has neither.
    pub artifact_type: String,
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// What a manifest speaks about, if it says so.
pub fn subject_of(manifest: &[u8]) -> Option<Digest> {
    let remarks: Remarks = serde_json::from_slice(manifest).ok()?;
    Some(remarks.subject?.digest)
}

impl Images {
    /// The manifests of a repository that refer to `subject`, by digest. Blocks on the disk.
    pub fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Referrer>, Error> {
        let mut found = Vec::new();
        for name in Disk::names(&self.shared.disk.referrers(repository, subject))? {
            let Some(digest) = Digest::from_hex(&name) else {
                continue;
            };
            let stored = match self.manifest(repository, &Version::Digest(digest)) {
                Ok(stored) => stored,
                // Deleted in this moment, or its note is what a crash left.
                Err(Error::ManifestUnknown { .. }) => continue,
                Err(error) => return Err(error),
            };
            let Ok(remarks) = serde_json::from_slice::<Remarks>(&stored.content) else {
                continue;
            };
            let of_config = || remarks.config.as_ref().map(|config| config.media_type.clone());
            found.push(Referrer {
                digest,
                media_type: stored.media_type,
                size: stored.content.len() as u64,
                artifact_type: remarks
                    .artifact_type
                    .clone()
                    .filter(|kind| !kind.is_empty())
                    .or_else(of_config)
                    .unwrap_or_default(),
                annotations: remarks.annotations,
            });
        }
        Ok(found)
    }

    /// Drops the note on a manifest that goes away.
    pub(crate) fn forget_referrer(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let Ok(stored) = self.manifest(repository, &Version::Digest(*digest)) else {
            return Ok(());
        };
        if let Some(subject) = subject_of(&stored.content) {
            Disk::remove(&self.shared.disk.referrers(repository, &subject).join(digest.hex()))?;
        }
        Ok(())
    }
}
