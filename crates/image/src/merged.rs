//! A stack of unpacked layers read as overlayfs would show it, without mounting it: upper layers win, whiteouts hide,
//! opaque directories end the view downwards. Links are followed with the stack's root as `/`, so nothing outside the
//! layers can be reached whatever they contain.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fgetxattr, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

/// Most links that one path may lead through.
const MAX_LINKS: usize = 40;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// One layer's part of a directory.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Index into the stack, 0 is the lowest layer.
    pub(crate) layer: usize,
    dir: Rc<OwnedFd>,
}

impl Part {
    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        fstat(&*self.dir)
    }
}

/// A directory as merged from its parts, uppermost first; never empty.
pub(crate) type Merged = Vec<Part>;

/// What a name leads to.
enum Found {
    Nothing,
    Directory(Merged),
    Link(Vec<u8>),
    /// A file of the given part's directory.
    Other(Part),
}

/// The stack's root, `layers` lowest first.
pub(crate) fn root(layers: &[PathBuf]) -> Result<Merged, Errno> {
    let mut merged = Merged::new();
    for (layer, path) in layers.iter().enumerate().rev() {
        let dir = openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty())?;
        let opaque = is_opaque(&dir);
        merged.push(Part {
            layer,
            dir: Rc::new(dir),
        });
        if opaque {
            break;
        }
    }
    Ok(merged)
}

fn is_opaque(dir: impl AsFd) -> bool {
    let mut value = [0; 1];
    fgetxattr(dir, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|length| length == 1 && value == *b"y")
}

fn look_up(merged: &Merged, name: &[u8]) -> Result<Found, Errno> {
    let name = OsStr::from_bytes(name);
    let mut below = Merged::new();
    for part in merged {
        let stat = match statat(&*part.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let dir = openat(&*part.dir, name, DIRECTORY, Mode::empty())?;
            let opaque = is_opaque(&dir);
            below.push(Part {
                layer: part.layer,
                dir: Rc::new(dir),
            });
            if opaque {
                break;
            }
            continue;
        }
        // Whatever is not a directory ends the merge; the uppermost decides what is seen.
        if below.is_empty() {
            return Ok(if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                Found::Nothing
            } else if kind == FileType::Symlink {
                Found::Link(readlinkat(&*part.dir, name, Vec::new())?.into_bytes())
            } else {
                Found::Other(part.clone())
            });
        }
        break;
    }
    Ok(if below.is_empty() {
        Found::Nothing
    } else {
        Found::Directory(below)
    })
}

/// The merged directory at a plain path (no links are followed); `None` if there is none.
pub(crate) fn directory(root: &Merged, path: &Path) -> Result<Option<Merged>, Errno> {
    let mut at = root.clone();
    for name in path {
        match look_up(&at, name.as_bytes())? {
            Found::Directory(next) => at = next,
            Found::Nothing | Found::Link(_) | Found::Other(_) => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// Opens the regular file at an absolute path; `None` if there is none.
pub(crate) fn open_file(root: &Merged, path: &str) -> Result<Option<File>, Errno> {
    let mut ahead: Vec<Vec<u8>> = names(path.as_bytes());
    let mut trail = vec![root.clone()];
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == b".." {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let at = trail.last().expect("the root stays");
        match look_up(at, &name)? {
            Found::Nothing => return Ok(None),
            Found::Directory(next) => trail.push(next),
            Found::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                if target.starts_with(b"/") {
                    trail.truncate(1);
                }
                ahead.extend(names(&target));
            }
            Found::Other(part) => {
                if !ahead.is_empty() {
                    return Ok(None);
                }
                // Without waiting for a writer, should it be a pipe.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(&*part.dir, OsStr::from_bytes(&name), flags, Mode::empty())?;
                let regular = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile;
                return Ok(regular.then(|| File::from(file)));
            }
        }
    }
    Ok(None)
}

/// Opens the regular file at an absolute path of the stack of `layers`, lowest first; `None` if there is none. Links are
/// followed as the stack's own.
///
/// # Errors
/// When a layer cannot be read.
pub fn file(layers: &[PathBuf], path: &str) -> std::io::Result<Option<File>> {
    Ok(open_file(&root(layers)?, path)?)
}

/// The parts of a path, last first, so that the next one is popped.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}
