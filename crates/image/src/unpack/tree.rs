//! Paths inside one layer, always below its root. A path is walked by the kernel (`openat2`): first without following
//! any link, and where the archive really leads through a link of its own, with the layer's root as `/` (as if
//! chrooted). There is no point between looking and acting: everything is done relative to an open directory.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fsetxattr, mkdirat, mknodat, openat, openat2,
    readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::entry::EntryError;

/// Most directories above an entry.
pub(super) const MAX_DEPTH: usize = 255;
/// Most links that one path may lead through.
const MAX_LINKS: usize = 40;
/// How often a walk is begun again because something else on the machine was renamed meanwhile.
const RETRIES: usize = 1000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);

/// The parts of a path, free of `.`, `..` and empty ones.
pub(super) type Parts = Vec<Vec<u8>>;

/// What stood where an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    Directory,
    /// The mark that hides what lower layers have there.
    Whiteout,
    Other,
}

#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// Directories that a path implied and no entry described; the root is the first of them.
    pub(super) implied: BTreeSet<Parts>,
}

/// Splits a path of an archive. A leading `/` is dropped, `..` is refused.
pub(super) fn parts(path: &[u8]) -> Result<Parts, EntryError> {
    let mut parts = Parts::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(EntryError::Upwards),
            part if part.contains(&0) => return Err(EntryError::Nul),
            part => parts.push(part.to_vec()),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(EntryError::Depth { limit: MAX_DEPTH });
    }
    Ok(parts)
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    if parts.is_empty() {
        b".".to_vec()
    } else {
        parts.join(&b'/')
    }
}

pub(super) fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes overlayfs ignore what lower layers have in this directory.
pub(super) fn make_opaque(dir: &OwnedFd) -> Result<(), EntryError> {
    fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(EntryError::os("mark opaque"))
}

/// Makes overlayfs hide what lower layers have under this name.
pub(super) fn make_whiteout(dir: &OwnedFd, name: &[u8]) -> Result<(), EntryError> {
    mknodat(
        dir,
        OsStr::from_bytes(name),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .map_err(EntryError::os("make the whiteout of"))
}

impl Tree {
    pub(super) fn new(root: &Path) -> Result<Tree, Errno> {
        let root = openat(rustix::fs::CWD, root, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Tree {
            root,
            implied: BTreeSet::from([Parts::new()]),
        })
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens a directory that is there under this very path, no link on the way.
    pub(super) fn open_plain(&self, parts: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        openat2(
            &self.root,
            OsStr::from_bytes(&joined(parts)),
            DIRECTORY,
            Mode::empty(),
            BENEATH,
        )
    }

    /// Opens a directory that is there, following links inside the layer.
    pub(super) fn open(&self, parts: &[Vec<u8>]) -> Result<OwnedFd, EntryError> {
        let refused = EntryError::os("open the directory of");
        match self.open_plain(parts) {
            Ok(dir) => Ok(dir),
            Err(Errno::LOOP) => self.bounded(self.open_linked(parts).map_err(refused)?),
            Err(error) => Err(refused(error)),
        }
    }

    fn open_linked(&self, parts: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let path = joined(parts);
        for _ in 0..RETRIES {
            match openat2(&self.root, OsStr::from_bytes(&path), DIRECTORY, Mode::empty(), IN_ROOT) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a directory, making what is missing.
    pub(super) fn directory(&mut self, parts: &[Vec<u8>]) -> Result<OwnedFd, EntryError> {
        self.directory_within(parts, MAX_LINKS)
    }

    fn directory_within(&mut self, parts: &[Vec<u8>], links: usize) -> Result<OwnedFd, EntryError> {
        match self.open_plain(parts) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::LOOP) => match self.open_linked(parts) {
                Ok(dir) => return self.bounded(dir),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(EntryError::os("open the directory of")(error)),
            },
            Err(error) => return Err(EntryError::os("open the directory of")(error)),
        }
        let Some((name, above)) = parts.split_last() else {
            return Err(EntryError::os("open the directory of")(Errno::NOENT));
        };
        let parent = self.directory_within(above, links)?;
        let os_name = OsStr::from_bytes(name);
        let hidden = match statat(&parent, os_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => false,
            Err(error) => return Err(EntryError::os("look at")(error)),
            Ok(stat) if is_whiteout(&stat) => {
                unlinkat(&parent, os_name, AtFlags::empty()).map_err(EntryError::os("replace"))?;
                true
            }
            // A link to where this layer has nothing: the directory it leads to is in a lower layer, or nowhere.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                let Some(links) = links.checked_sub(1) else {
                    return Err(EntryError::os("open the directory of")(Errno::LOOP));
                };
                let target = readlinkat(&parent, os_name, Vec::new()).map_err(EntryError::os("read"))?;
                return self.directory_within(&led_to(above, target.as_bytes())?, links);
            }
            Ok(_) => return Err(EntryError::os("open the directory of")(Errno::NOTDIR)),
        };
        mkdirat(&parent, os_name, Mode::from_raw_mode(0o755)).map_err(EntryError::os("make the directory of"))?;
        let dir = openat(&parent, os_name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .map_err(EntryError::os("open the directory of"))?;
        // The process's umask must not show.
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)).map_err(EntryError::os("make the directory of"))?;
        if hidden {
            make_opaque(&dir)?;
        }
        self.implied.insert(parts.to_vec());
        Ok(dir)
    }

    /// Refuses directories that links have let grow deeper than a path could say: nobody could remove them again.
    fn bounded(&self, dir: OwnedFd) -> Result<OwnedFd, EntryError> {
        use std::os::fd::AsRawFd;
        let too_deep = EntryError::Depth { limit: MAX_DEPTH };
        let real = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (Ok(real_dir), Ok(real_root)) = (real(&dir), real(&self.root)) else {
            return Err(too_deep);
        };
        match real_dir.strip_prefix(real_root) {
            Ok(below) if below.components().count() <= MAX_DEPTH => Ok(dir),
            Ok(_) | Err(_) => Err(too_deep),
        }
    }

    /// Clears the place of an entry: a directory stays if the entry is one too, all else goes.
    pub(super) fn clear(parent: &OwnedFd, name: &[u8], for_directory: bool) -> Result<Before, EntryError> {
        let name = OsStr::from_bytes(name);
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Before::Nothing),
            other => other.map_err(EntryError::os("look at"))?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if !for_directory {
                remove_directory(parent, name).map_err(EntryError::os("replace"))?;
            }
            return Ok(Before::Directory);
        }
        unlinkat(parent, name, AtFlags::empty()).map_err(EntryError::os("replace"))?;
        Ok(if is_whiteout(&stat) {
            Before::Whiteout
        } else {
            Before::Other
        })
    }
}

/// Removes a directory with all in it. Its depth is bounded by [`Tree::bounded`].
fn remove_directory(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let dir = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    for child in Dir::read_from(&dir)? {
        let child = child?;
        let child = child.file_name();
        if matches!(child.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(&dir, child, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            remove_directory(&dir, OsStr::from_bytes(child.to_bytes()))?;
        } else {
            unlinkat(&dir, child, AtFlags::empty())?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Where a link in the directory `above` leads, `..` taken by the letter and never above the root.
fn led_to(above: &[Vec<u8>], target: &[u8]) -> Result<Parts, EntryError> {
    let mut parts = if target.starts_with(b"/") {
        Parts::new()
    } else {
        above.to_vec()
    };
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part.to_vec()),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(EntryError::Depth { limit: MAX_DEPTH });
    }
    Ok(parts)
}
