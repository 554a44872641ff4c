//! Files of secrets: in memory, in the instance's volumes, replaced whole while the instance runs. A builder has such a
//! volume as well, which its parent makes in the launcher's place and which stays as it is.
//!
//! ```text
//! server: one memory file with all values, and a list of what is where -> launcher
//! launcher: <volumes>/<number>/staging -> rename -> <volumes>/<number>/files, which the containers see read-only
//! ```
//!
//! A program that opens a file gets the newest value; one that has it open keeps what it opened. Values never lie on a
//! disk, nor in a message of the launcher's socket.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    },
    path::Path,
};

use model::{InstanceId, RevealedFile};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::{Engine, wire::Order};

/// The part of a secret's volume that containers see.
pub(crate) const SEEN: &str = "files";
/// Where a file is written before it is seen.
const STAGING: &str = "staging";

/// What the launcher is told of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SecretFile {
    /// The number of its volume.
    volume: usize,
    path: String,
    mode: u32,
    /// How many bytes of the memory file are its own, in the order of the files. None: there is no file.
    length: Option<u64>,
}

impl Engine {
    /// Changes files of secrets of an instance. Who opens one from now on reads its new value. Does nothing to an
    /// instance that has ended.
    pub async fn renew(&self, id: &InstanceId, files: Vec<RevealedFile>) -> io::Result<()> {
        let Some(entry) = self.inner.entry(id) else {
            return Ok(());
        };
        let mut secrets = entry.secrets.lock().await;
        if !secrets.asked {
            secrets.revealed.files = files;
            return Ok(());
        }
        let (listed, memory) = pack(&files)?;
        let order = Order::Renew {
            id: id.to_string(),
            first_id: entry.first_id,
            secrets: listed,
        };
        let link = self.inner.link.borrow().clone();
        match link {
            Some(link) => link.order(&order, &[&memory]).await,
            // Instances end with their launcher.
            None => Ok(()),
        }
    }
}

/// The list for the launcher, and the memory file with the values.
pub(crate) fn pack(files: &[RevealedFile]) -> io::Result<(Vec<SecretFile>, OwnedFd)> {
    let memory = rustix::fs::memfd_create("secrets", MemfdFlags::CLOEXEC)?;
    let mut memory = fs::File::from(memory);
    let mut listed = Vec::with_capacity(files.len());
    for file in files {
        if let Some(value) = &file.value {
            memory.write_all(value.as_bytes())?;
        }
        listed.push(SecretFile {
            volume: file.volume,
            path: file.path.clone(),
            mode: file.mode,
            length: file.value.as_ref().map(|value| value.len() as u64),
        });
    }
    memory.rewind()?;
    Ok((listed, memory.into()))
}

/// Makes the two parts of a secret's volume, for an instance whose root is `first_id` on the machine.
pub(crate) fn furnish(volume: &Path, first_id: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(volume.join(STAGING))?;
    let seen = volume.join(SEEN);
    fs::DirBuilder::new().mode(0o755).create(&seen)?;
    own(&seen, first_id)
}

/// Puts every file into its volume below `volumes`, or removes it; nobody sees a part of one.
pub(crate) fn place(volumes: &Path, first_id: u32, files: &[SecretFile], memory: OwnedFd) -> io::Result<()> {
    let mut memory = fs::File::from(memory);
    for file in files {
        let volume = volumes.join(file.volume.to_string());
        let seen = volume.join(SEEN).join(&file.path);
        let Some(length) = file.length else {
            match fs::remove_file(&seen) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => continue,
            }
        };
        let draft = volume.join(STAGING).join("new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        let copied = io::copy(&mut (&mut memory).take(length), &mut written)?;
        if copied != length {
            return Err(io::Error::other(
                "the values of secrets are shorter than their list says",
            ));
        }
        own(&draft, first_id)?;
        written.set_permissions(fs::Permissions::from_mode(file.mode))?;
        directories(&volume.join(SEEN), &file.path, first_id)?;
        fs::rename(&draft, &seen)?;
    }
    Ok(())
}

/// The directories that a path below `seen` needs.
fn directories(seen: &Path, path: &str, first_id: u32) -> io::Result<()> {
    let Some((parents, _)) = path.rsplit_once('/') else {
        return Ok(());
    };
    let mut at = seen.to_owned();
    for part in parents.split('/') {
        at.push(part);
        match fs::DirBuilder::new().mode(0o755).create(&at) {
            Ok(()) => own(&at, first_id)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn own(path: &Path, first_id: u32) -> io::Result<()> {
    chown(path, Some(first_id), Some(first_id))
}

#[cfg(test)]
mod tests {
    use model::SecretValue;

    use super::*;

    fn file(path: &str, mode: u32, value: Option<&str>) -> RevealedFile {
        RevealedFile {
            volume: 1,
            path: path.to_owned(),
            mode,
            value: value.map(|value| SecretValue::new(value.as_bytes().to_vec())),
        }
    }

    /// As the launcher would, with our own user for the instance's.
    #[test]
    fn files_are_placed_replaced_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let own_id = rustix::process::getuid().as_raw();
        let volume = dir.path().join("1");
        fs::create_dir(&volume).expect("made");
        furnish(&volume, own_id).expect("furnished");
        let put = |files: &[RevealedFile]| {
            let (listed, memory) = pack(files).expect("packed");
            let told = serde_json::to_string(&listed).expect("written");
            assert!(!told.contains("hunter2"), "{told}");
            place(dir.path(), own_id, &listed, memory).expect("placed");
        };
        put(&[
            file("a", 0o444, Some("hunter2")),
            file("d/e/b", 0o400, Some("")),
            file("c", 0o444, None),
        ]);
        let read = |path: &str| fs::read_to_string(volume.join(SEEN).join(path)).ok();
        assert_eq!(read("a").as_deref(), Some("hunter2"));
        assert_eq!(read("d/e/b").as_deref(), Some(""));
        assert_eq!(read("c"), None);
        let mode = |path: &str| {
            fs::metadata(volume.join(SEEN).join(path))
                .expect("there")
                .permissions()
                .mode()
        };
        assert_eq!((mode("a") & 0o7777, mode("d/e/b") & 0o7777), (0o444, 0o400));

        let open = fs::File::open(volume.join(SEEN).join("a")).expect("opens");
        put(&[file("a", 0o444, Some("hunter3")), file("d/e/b", 0o400, None)]);
        assert_eq!(io::read_to_string(open).expect("read"), "hunter2", "what is open stays");
        assert_eq!(read("a").as_deref(), Some("hunter3"));
        assert_eq!(read("d/e/b"), None);
        assert_eq!(fs::read_dir(volume.join(STAGING)).expect("listed").count(), 0);
    }
}
