//! Files that hold keys: written once, whole or not at all, readable by their owner alone.
//!
//! A key file is made at the first start and never overwritten ([`create`]): a second process that starts at the same
//! moment finds the first one's file and takes that. Keys that are exchanged from time to time are written over whole
//! ([`replace`]). The door keeps its authority's key by the same rules.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Keeps apart the drafts of two threads.
static DRAFTS: AtomicU32 = AtomicU32::new(0);

/// Why a key file could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot make the key directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// Others than the owner of the file can read or write it, so that the key in it may be known to them.
    #[error("{} has mode {mode:04o}: a private key must not be open to group or others (0600)", path.display())]
    Exposed { path: PathBuf, mode: u32 },
}

/// Makes `dir` with its parents, and gives it `mode` (0700 where everything in it is secret).
pub fn directory(dir: &Path, mode: u32) -> Result<(), KeyFileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode)))
        .map_err(|source| KeyFileError::Directory {
            path: dir.to_owned(),
            source,
        })
}

/// Reads the private file at `path`; `None` if there is no such file.
///
/// # Errors
/// [`KeyFileError::Exposed`] if group or others have any right to it.
pub fn read(path: &Path) -> Result<Option<String>, KeyFileError> {
    let failed = |source| KeyFileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let text = io::read_to_string(&mut file).map_err(failed)?;
    Ok(Some(text))
}

/// Writes `text` to a new file at `path` with `mode`, durable when this returns. If the file came into being
/// meanwhile it is left as it is; read it afterwards, what was written here may have lost.
pub fn create(path: &Path, text: &str, mode: u32) -> Result<(), KeyFileError> {
    let failed = |source| KeyFileError::Write {
        path: path.to_owned(),
        source,
    };
    let parent = path
        .parent()
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let draft = draft_of(path);
    let written = write_draft(&draft, text, mode).and_then(|()| link_new(&draft, path));
    let removed = fs::remove_file(&draft);
    written.and(removed).map_err(failed)?;
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// Writes `text` over whatever is at `path`, whole or not at all, durable when this returns. One at a time: the draft has
/// one name, so that the rest of one that died goes with the next.
pub fn replace(path: &Path, text: &str, mode: u32) -> Result<(), KeyFileError> {
    let failed = |source| KeyFileError::Write {
        path: path.to_owned(),
        source,
    };
    let parent = path
        .parent()
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let draft = path.with_added_extension("new");
    write_draft(&draft, text, mode)
        .and_then(|()| fs::rename(&draft, path))
        .map_err(failed)?;
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// A name beside the file that no other thread or process uses.
fn draft_of(path: &Path) -> PathBuf {
    let serial = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}-{serial}.new", std::process::id()));
    PathBuf::from(draft)
}

fn write_draft(draft: &Path, text: &str, mode: u32) -> io::Result<()> {
    // a draft of the same name is the rest of a start that died
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// A hard link, unlike a rename, never replaces: of two first starts exactly one wins.
fn link_new(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(draft, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_writer_wins_and_no_draft_stays() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k.pem");
        assert!(read(&path).expect("absent is no error").is_none());
        create(&path, "one", 0o600).expect("writes");
        create(&path, "two", 0o600).expect("keeps the first");
        assert_eq!(read(&path).expect("reads").as_deref(), Some("one"));
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_replaced_file_holds_the_last_text() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k");
        replace(&path, "one", 0o600).expect("writes");
        fs::write(dir.path().join("k.new"), "of one that died").expect("writes");
        replace(&path, "two", 0o600).expect("writes over");
        assert_eq!(read(&path).expect("reads").as_deref(), Some("two"));
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn a_file_open_to_others_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k.pem");
        create(&path, "one", 0o640).expect("writes");
        let refusal = read(&path).expect_err("0640 is open to the group");
        assert!(matches!(refusal, KeyFileError::Exposed { mode: 0o640, .. }));
        assert!(refusal.to_string().contains("0640"), "{refusal}");
    }
}
