//! Removal of content that nothing names any more: blobs and unpacked layers.
//!
//! What is kept: all that the manifests of repositories name, all that the caller holds (the digests of revisions and of
//! instances), and whatever was wanted lately. That last mark, the time of the file's change, is set by everybody who
//! tells a client or a deploy that something is here: a blob that was pushed, asked for or mounted, an image that was
//! resolved, a layer that was used. It is looked at once more under the lock that these hold while they look and mark,
//! so that nothing is removed between somebody's look and the name that he gives it. Uploads under way are files of
//! `tmp`, where nothing is collected.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::SystemTime;

use crate::digest::Digest;
use crate::disk::{Disk, is_absent};
use crate::manifest::{ConfigBlob, Manifest};
use crate::repository::{MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::unpack::{correction, without_repetition};
use crate::{Error, Images, blocking};

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub blobs: u64,
    /// Of the blobs.
    pub bytes: u64,
    /// Unpacked ones.
    pub layers: u64,
}

/// What is named by somebody.
#[derive(Debug, Default)]
struct Named {
    blobs: HashSet<Digest>,
    /// Diff ids, and the corrections of whole stacks.
    layers: HashSet<Digest>,
}

impl Images {
    /// Removes what nothing names and nobody wanted since `before`. `held` are digests of manifests that somebody runs.
    ///
    /// # Errors
    /// Where a manifest cannot be read nothing is removed at all: what it names cannot be told.
    pub async fn collect(&self, held: BTreeSet<Digest>, before: SystemTime) -> Result<Collected, Error> {
        let images = self.clone();
        blocking(move || images.collect_now(&held, before)).await
    }

    fn collect_now(&self, held: &BTreeSet<Digest>, before: SystemTime) -> Result<Collected, Error> {
        let _alone = self.shared.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let named = self.named(held)?;
        let disk = &self.shared.disk;
        let mut collected = Collected::default();
        for digest in unnamed(&disk.blobs(), &named.blobs)? {
            if let Some(bytes) = self.remove_old(&disk.blob(&digest), before)? {
                collected.blobs += 1;
                collected.bytes += bytes;
                self.shared.quota.release(bytes);
            }
        }
        for diff_id in unnamed(&disk.layers(), &named.layers)? {
            if self.remove_old(&disk.layer(&diff_id), before)?.is_some() {
                collected.layers += 1;
            }
        }
        Ok(collected)
    }

    /// Removes one blob at once.
    ///
    /// # Errors
    /// [`Error::BlobHeld`] where a manifest or one of `held` names it, or somebody wanted it in this moment.
    pub async fn delete_blob(&self, digest: &Digest, held: BTreeSet<Digest>) -> Result<(), Error> {
        let (images, digest) = (self.clone(), *digest);
        blocking(move || {
            let _alone = images.shared.collecting.lock().unwrap_or_else(PoisonError::into_inner);
            let began = SystemTime::now();
            if images.blob_length(&digest)?.is_none() {
                return Err(Error::BlobUnknown { digest });
            }
            if images.named(&held)?.blobs.contains(&digest) {
                return Err(Error::BlobHeld { digest });
            }
            let bytes = images.remove_old(&images.shared.disk.blob(&digest), began)?;
            images.shared.quota.release(bytes.ok_or(Error::BlobHeld { digest })?);
            Ok(())
        })
        .await
    }

    /// From all names down to blobs and layers.
    fn named(&self, held: &BTreeSet<Digest>) -> Result<Named, Error> {
        let mut named = Named::default();
        let mut open: Vec<Digest> = held.iter().copied().collect();
        for repository in self.repositories()? {
            let links = Disk::names(&self.shared.disk.manifests(&repository))?;
            open.extend(links.iter().filter_map(|name| Digest::from_hex(name)));
        }
        let mut seen = HashSet::new();
        while let Some(digest) = open.pop() {
            if !seen.insert(digest) {
                continue;
            }
            named.blobs.insert(digest);
            let content = match self.small_blob(&digest, "manifest", MAX_MANIFEST_BYTES) {
                // Of an index that was pulled for this machine alone.
                Err(Error::BlobUnknown { .. }) => continue,
                other => other?,
            };
            match Manifest::read(&content, None)?.0 {
                Manifest::Image(image) => {
                    named.blobs.insert(image.config.digest);
                    named.blobs.extend(image.layers.iter().map(|layer| layer.digest));
                    let config = image.config.digest;
                    match self.small_blob(&config, "image configuration", MAX_CONFIG_BYTES) {
                        Ok(content) => {
                            // What is no image's configuration has no layers to run.
                            if let Ok(config) = ConfigBlob::read(&content, config) {
                                named.layers.insert(correction(&without_repetition(&config.diff_ids)));
                                named.layers.extend(config.diff_ids);
                            }
                        }
                        Err(Error::BlobUnknown { .. } | Error::TooLarge { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Manifest::Index(index) => {
                    for entry in index.manifests {
                        if entry.is_manifest() || entry.media_type.is_empty() {
                            open.push(entry.digest);
                        } else {
                            named.blobs.insert(entry.digest);
                        }
                    }
                }
            }
        }
        Ok(named)
    }

    /// Removes a file or a directory unless it was wanted since `before`; answers the length that a file had.
    fn remove_old(&self, path: &Path, before: SystemTime) -> Result<Option<u64>, Error> {
        let name = path.file_name().expect("content has a name");
        let gone = self.shared.disk.tmp().join(name);
        let length = {
            let _removing = self.shared.kept.write().unwrap_or_else(PoisonError::into_inner);
            let metadata = match fs::symlink_metadata(path) {
                Ok(metadata) => metadata,
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(Error::io("stat", path)(error)),
            };
            if metadata.modified().map_err(Error::io("stat", path))? >= before {
                return Ok(None);
            }
            fs::rename(path, &gone).map_err(Error::io("remove", path))?;
            metadata.len()
        };
        // Out of the lock: a large file takes its time. What a crash leaves here is swept at the next start.
        let removed = if gone.is_dir() {
            fs::remove_dir_all(&gone)
        } else {
            fs::remove_file(&gone)
        };
        removed.map_err(Error::io("remove", &gone))?;
        Ok(Some(length))
    }
}

/// What lies in a directory of content and is not among `named`.
fn unnamed(dir: &Path, named: &HashSet<Digest>) -> Result<Vec<Digest>, Error> {
    let found = Disk::names(dir)?.into_iter().filter_map(|name| Digest::from_hex(&name));
    Ok(found.filter(|digest| !named.contains(digest)).collect())
}
