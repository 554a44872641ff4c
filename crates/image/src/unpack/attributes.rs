//! Directories that a layer holds only because a file lies in them. Archives may leave them out; overlayfs then shows
//! the uppermost layer's directory, with a mode and owner that nobody meant (a `/tmp` that is not writable). Since
//! layers are shared between images, they are not changed: one more layer on top holds just these directories, as the
//! layer that described them has them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::digest::{Digest, Digester};
use crate::disk::{Disk, sync_dir};
use crate::merged::{self, Merged};
use crate::{Error, Images};

/// Mode bits, user and group.
type Attributes = (u32, u32, u32);

impl Images {
    /// The directories for overlayfs of layers that are all unpacked. Blocks on the disk.
    pub(super) fn stack(&self, diff_ids: &[Digest]) -> Result<Vec<PathBuf>, Error> {
        let disk = &self.shared.disk;
        let mut layers: Vec<PathBuf> = diff_ids
            .iter()
            .map(|diff_id| disk.layer(diff_id).join("root"))
            .collect();
        let mut implied: Vec<BTreeSet<String>> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let note = disk.layer(diff_id).join("implied.json");
            let content = Disk::read(&note)?.unwrap_or_default();
            let invalid = |error: serde_json::Error| Error::io("read", &note)(error.into());
            implied.push(serde_json::from_slice(&content).map_err(invalid)?);
        }
        // The common case, decided without a look at the layers: only the lowest leaves anything out.
        if implied.iter().skip(1).all(BTreeSet::is_empty) {
            return Ok(layers);
        }
        let place = disk.layer(&correction(diff_ids));
        if !self.claim_layer(&place)? {
            let wrong = wrong(&layers, &implied)
                .map_err(|errno| Error::io("read the directories of", &disk.layers())(errno.into()))?;
            let temp = disk.temp_dir()?;
            let root = temp.path().join("root");
            fs::create_dir(&root).map_err(Error::io("create", &root))?;
            if !wrong.is_empty() {
                for (path, attributes) in &wrong {
                    make(&root.join(path), *attributes).map_err(Error::io("create", &root.join(path)))?;
                }
            }
            fs::write(temp.path().join("empty"), wrong.is_empty().to_string())
                .map_err(Error::io("write", temp.path()))?;
            sync_dir(temp.path())?;
            match fs::rename(temp.path(), &place) {
                Ok(()) => {
                    let _ = temp.keep();
                    sync_dir(&disk.layers())?;
                }
                // Another image of the same layers was faster; its correction is the same.
                Err(_) if place.is_dir() => {}
                Err(error) => return Err(Error::io("publish", &place)(error)),
            }
        }
        if Disk::read(&place.join("empty"))?.as_deref() != Some(b"true") {
            layers.push(place.join("root"));
        }
        Ok(layers)
    }
}

/// The name of what a stack of layers needs on top of it: the same stack always needs the same correction.
pub(crate) fn correction(diff_ids: &[Digest]) -> Digest {
    let mut digester = Digester::default();
    digester.update(b"attributes of directories");
    for diff_id in diff_ids {
        digester.update(diff_id.hex().as_bytes());
    }
    digester.finish()
}

/// Every directory that would show attributes nobody meant, with those that are meant, parents first.
fn wrong(layers: &[PathBuf], implied: &[BTreeSet<String>]) -> Result<Vec<(PathBuf, Attributes)>, Errno> {
    let root = merged::root(layers)?;
    let paths: BTreeSet<&Path> = implied.iter().flatten().map(Path::new).collect();
    let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
    for path in paths {
        let Some(parts) = merged::directory(&root, path)? else {
            continue;
        };
        if meant(&parts, path, implied)? != attributes(&parts[0].stat()?) {
            // Those above it will be in the new layer too, so they must be right there.
            needed.extend(path.ancestors().map(Path::to_path_buf));
        }
    }
    let mut wrong = Vec::with_capacity(needed.len());
    for path in needed {
        if let Some(parts) = merged::directory(&root, &path)? {
            let attributes = meant(&parts, &path, implied)?;
            wrong.push((path, attributes));
        }
    }
    Ok(wrong)
}

/// What the uppermost layer that describes the directory says; where none does, what unpacking gave it.
fn meant(parts: &Merged, path: &Path, implied: &[BTreeSet<String>]) -> Result<Attributes, Errno> {
    let text = path.to_str().expect("made of the text of a note");
    let describes = parts.iter().find(|part| !implied[part.layer].contains(text));
    Ok(attributes(&describes.unwrap_or(&parts[0]).stat()?))
}

fn attributes(stat: &Stat) -> Attributes {
    (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
}

fn make(dir: &Path, (mode, uid, gid): Attributes) -> std::io::Result<()> {
    if !dir.is_dir() {
        fs::create_dir(dir)?;
    }
    chown(dir, Some(uid), Some(gid))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}
