//! The directory itself: where each thing lies, and the one way a file becomes visible (temporary file, fsync, rename,
//! fsync of the directory), so that a reader sees the old or the new content and a crash loses neither.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::Error;
use crate::digest::Digest;
use crate::reference::{Repository, Tag};
use crate::upload::UploadId;

#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Makes what is missing and sweeps `tmp`.
    pub(crate) fn open(root: &Path) -> Result<Disk, Error> {
        let disk = Disk { root: root.to_owned() };
        let tmp = disk.tmp();
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(Error::io("sweep", &tmp))?;
        }
        for dir in [disk.blobs(), disk.layers(), disk.repositories(), disk.uploads(), tmp] {
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        // Unpacked layers hold setuid programs of whoever pushed them: no local user may walk in and run one.
        for dir in [disk.layers(), disk.tmp()] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(Error::io("close", &dir))?;
        }
        Ok(disk)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(crate) fn upload(&self, upload: &UploadId) -> PathBuf {
        self.uploads().join(upload.as_str())
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// The directory of one unpacked layer, named by the digest of its uncompressed archive.
    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    pub(crate) fn repository(&self, repository: &Repository) -> PathBuf {
        self.repositories().join(repository.host()).join(repository.path())
    }

    pub(crate) fn manifests(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_manifests")
    }

    pub(crate) fn manifest(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.manifests(repository).join(digest.hex())
    }

    pub(crate) fn tags(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_tags")
    }

    pub(crate) fn tag(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.tags(repository).join(tag.as_str())
    }

    /// The mark of tags that stay what they are.
    pub(crate) fn immutable(&self, under: &Repository) -> PathBuf {
        self.repository(under).join("_immutable")
    }

    /// What tags of a mirrored repository were when their mirror was asked last.
    pub(crate) fn seen(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_seen")
    }

    /// Who refers to `subject` in a repository.
    pub(crate) fn referrers(&self, repository: &Repository, subject: &Digest) -> PathBuf {
        self.repository(repository).join("_referrers").join(subject.hex())
    }

    /// The bytes of all blobs together.
    pub(crate) fn stored(&self) -> Result<u64, Error> {
        let blobs = self.blobs();
        let entries = fs::read_dir(&blobs).map_err(Error::io("list", &blobs))?;
        let lengths = entries.map(|entry| entry?.metadata().map(|metadata| metadata.len()));
        lengths.sum::<io::Result<u64>>().map_err(Error::io("list", &blobs))
    }

    /// A file in `tmp` that is gone when dropped.
    pub(crate) fn temp_file(&self) -> Result<NamedTempFile, Error> {
        NamedTempFile::new_in(self.tmp()).map_err(Error::io("create a file in", &self.tmp()))
    }

    /// A directory in `tmp` that is gone when dropped.
    pub(crate) fn temp_dir(&self) -> Result<TempDir, Error> {
        TempDir::new_in(self.tmp()).map_err(Error::io("create a directory in", &self.tmp()))
    }

    /// Gives a finished temporary file its name, durably. An older file of that name is replaced.
    pub(crate) fn publish(file: NamedTempFile, path: &Path) -> Result<(), Error> {
        file.as_file().sync_all().map_err(Error::io("write", path))?;
        let parent = path.parent().expect("every path of the store has a parent");
        create_dir_durably(parent).map_err(Error::io("create", parent))?;
        file.persist(path)
            .map_err(|error| error.error)
            .map_err(Error::io("write", path))?;
        sync_dir(parent)
    }

    /// The same, and answers whether the name is new. Of two at a time exactly one is told so.
    pub(crate) fn publish_new(file: NamedTempFile, path: &Path) -> Result<bool, Error> {
        file.as_file().sync_all().map_err(Error::io("write", path))?;
        match file.persist_noclobber(path) {
            Ok(_) => {
                sync_dir(path.parent().expect("every path of the store has a parent"))?;
                Ok(true)
            }
            // Replaced all the same: should the old one have rotted, this mends it.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Disk::publish(error.file, path)?;
                Ok(false)
            }
            Err(error) => Err(Error::io("write", path)(error.error)),
        }
    }

    /// Writes a small file as a whole.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let mut file = self.temp_file()?;
        file.write_all(content).map_err(Error::io("write", path))?;
        Disk::publish(file, path)
    }

    /// The same where nothing is there yet; false where something is, which is left as it is.
    pub(crate) fn write_new(&self, path: &Path, content: &[u8]) -> Result<bool, Error> {
        let mut file = self.temp_file()?;
        file.write_all(content).map_err(Error::io("write", path))?;
        file.as_file().sync_all().map_err(Error::io("write", path))?;
        let parent = path.parent().expect("every path of the store has a parent");
        create_dir_durably(parent).map_err(Error::io("create", parent))?;
        match file.persist_noclobber(path) {
            Ok(_) => sync_dir(parent).map(|()| true),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::io("write", path)(error.error)),
        }
    }

    /// Removes a file durably; `false` if it was not there.
    pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
        match fs::remove_file(path) {
            Ok(()) => {
                sync_dir(path.parent().expect("every path of the store has a parent"))?;
                Ok(true)
            }
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(Error::io("remove", path)(error)),
        }
    }

    /// Reads a small file; `None` if it is not there.
    pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// The names in a directory, sorted; none if it is not there.
    pub(crate) fn names(path: &Path) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", path)(error)),
        };
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(Error::io("list", path))?
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect::<Vec<_>>();
        names.sort_unstable();
        Ok(names)
    }
}

/// Makes a new name in `dir`, or its absence, survive a loss of power.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync", dir))
}

/// `mkdir -p`, each new directory's name synced in its parent.
fn create_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dir_durably(parent)?;
        match DirBuilder::new().mode(0o755).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// A path below a file (`NotADirectory`) is as absent as one that was never made.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
