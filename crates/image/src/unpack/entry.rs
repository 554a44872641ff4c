//! One entry of a layer's archive becomes one file, directory, link or pipe, with the owner, mode, time and attributes
//! that the archive gives it; or a whiteout in the form that overlayfs reads; or is skipped; or is refused.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, mknodat, openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::tree::{Before, Parts, Tree, is_whiteout, make_opaque, make_whiteout, parts};
use super::{MAX_OWNER, UnpackError};
use crate::Error;

/// Why one entry is refused.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("its path leads upwards (..)")]
    Upwards,
    #[error("its path contains a nul byte")]
    Nul,
    #[error("it names the root of the layer but is not a directory")]
    Root,
    #[error("it lies below more than {limit} directories")]
    Depth { limit: usize },
    #[error("it hides {name:?}, which cannot be the name of a file")]
    WhiteoutName { name: String },
    #[error("it is a hard link to {target:?}, which this layer does not hold")]
    LinkTarget { target: String },
    #[error("its {kind} id {id} is above {MAX_OWNER}")]
    Owner { kind: &'static str, id: u64 },
    #[error("archive entries of kind {kind:?} are not supported")]
    Kind { kind: char },
    #[error("its holes are in a format that is not supported")]
    Sparse,
    #[error("its header is not valid")]
    Header(#[source] io::Error),
    #[error("cannot {action} it")]
    Os {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl EntryError {
    /// For `map_err`: names the step.
    pub(super) fn os(action: &'static str) -> impl Fn(Errno) -> EntryError {
        move |errno| EntryError::Os {
            action,
            source: errno.into(),
        }
    }
}

/// Owner, mode, time and extended attributes of an entry.
struct Look {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
    attributes: BTreeMap<String, Vec<u8>>,
}

/// A layer as it grows.
pub(super) struct Layer {
    tree: Tree,
    limit: u64,
    added: u64,
    skipped: u64,
    /// Set last, since each new child would change them.
    directory_times: BTreeMap<Parts, Timestamps>,
}

impl Layer {
    pub(super) fn new(root: &Path, limit: u64) -> Result<Layer, UnpackError> {
        let tree = Tree::new(root).map_err(|errno| Error::io("open", root)(errno.into()))?;
        fchmod(tree.root(), Mode::from_raw_mode(0o755)).map_err(|errno| Error::io("open", root)(errno.into()))?;
        Ok(Layer {
            tree,
            limit,
            added: 0,
            skipped: 0,
            directory_times: BTreeMap::new(),
        })
    }

    pub(super) fn entries(&self) -> u64 {
        self.added
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Adds what the entry describes.
    pub(super) fn add(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let path = entry.path_bytes().into_owned();
        let added = self.added + self.tree.implied.len() as u64;
        if added >= self.limit {
            return Err(UnpackError::Entries { limit: self.limit });
        }
        self.added += 1;
        self.place(entry, &path).map_err(|source| UnpackError::Entry {
            path: String::from_utf8_lossy(&path).into_owned(),
            source,
        })
    }

    fn place(&mut self, entry: &mut tar::Entry<'_, impl Read>, path: &[u8]) -> Result<(), EntryError> {
        let mut kind = entry.header().entry_type();
        if matches!(kind, EntryType::Continuous | EntryType::GNUSparse) {
            kind = EntryType::Regular;
        }
        // Archives of before 1988 know a directory by its slash.
        if kind == EntryType::Regular && path.ends_with(b"/") {
            kind = EntryType::Directory;
        }
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let parts = parts(path)?;
        let Some((name, above)) = parts.split_last() else {
            if kind != EntryType::Directory {
                return Err(EntryError::Root);
            }
            let look = look(entry)?;
            self.tree.implied.remove(&parts);
            look.put_on(self.tree.root())?;
            self.directory_times.insert(parts, look.times);
            return Ok(());
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.hide(above, name, hidden);
        }
        let os_name = OsStr::from_bytes(name);
        #[expect(clippy::wildcard_enum_match_arm, reason = "the archive's kinds are an open set")]
        match kind {
            EntryType::Directory => {
                let look = look(entry)?;
                let parent = self.tree.directory(above)?;
                let before = Tree::clear(&parent, name, true)?;
                if before != Before::Directory {
                    mkdirat(&parent, os_name, Mode::RWXU).map_err(EntryError::os("make"))?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = openat(&parent, os_name, flags, Mode::empty()).map_err(EntryError::os("open"))?;
                if before == Before::Whiteout {
                    make_opaque(&dir)?;
                }
                look.put_on(&dir)?;
                self.tree.implied.remove(&parts);
                self.directory_times.insert(parts, look.times);
            }
            EntryType::Regular => {
                let look = look(entry)?;
                let parent = self.tree.directory(above)?;
                Tree::clear(&parent, name, false)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let file = openat(&parent, os_name, flags, mode).map_err(EntryError::os("create"))?;
                let mut file = File::from(file);
                copy_data(entry, &mut file)?;
                let file = OwnedFd::from(file);
                look.put_on(&file)?;
                futimens(&file, &look.times).map_err(EntryError::os("set the time of"))?;
            }
            EntryType::Symlink => {
                let look = look(entry)?;
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let parent = self.tree.directory(above)?;
                Tree::clear(&parent, name, false)?;
                symlinkat(OsStr::from_bytes(&target), &parent, os_name).map_err(EntryError::os("link"))?;
                look.put_on_name(&parent, os_name)?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.link(&parts, &target)?;
            }
            EntryType::Fifo => {
                let look = look(entry)?;
                let parent = self.tree.directory(above)?;
                Tree::clear(&parent, name, false)?;
                mknodat(&parent, os_name, FileType::Fifo, Mode::RUSR, 0).map_err(EntryError::os("make"))?;
                look.put_on_name(&parent, os_name)?;
                chmodat(&parent, os_name, look.mode, AtFlags::empty()).map_err(EntryError::os("set the mode of"))?;
            }
            // Instances get a /dev of their own, and may not make nodes either.
            EntryType::Char | EntryType::Block => {
                self.skipped += 1;
                tracing::debug!(path = %String::from_utf8_lossy(path), "skipped a device node of a layer");
            }
            other => {
                return Err(EntryError::Kind {
                    kind: char::from(other.as_byte()),
                });
            }
        }
        Ok(())
    }

    /// A whiteout: it hides what lower layers have, never what this layer has.
    fn hide(&mut self, above: &[Vec<u8>], name: &[u8], hidden: &[u8]) -> Result<(), EntryError> {
        if name == b".wh..wh..opq" {
            let parent = self.tree.directory(above)?;
            return make_opaque(&parent);
        }
        // Bookkeeping of a file system that nobody mounts any more.
        if hidden.starts_with(b".wh.") {
            self.skipped += 1;
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryError::WhiteoutName {
                name: String::from_utf8_lossy(hidden).into_owned(),
            });
        }
        let parent = self.tree.directory(above)?;
        let os_name = OsStr::from_bytes(hidden);
        match statat(&parent, os_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => make_whiteout(&parent, hidden),
            Err(error) => Err(EntryError::os("look at")(error)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = openat(&parent, os_name, flags, Mode::empty()).map_err(EntryError::os("open"))?;
                make_opaque(&dir)
            }
            // A file of this layer hides lower ones by being there.
            Ok(_) => Ok(()),
        }
    }

    fn link(&mut self, parts: &Parts, target: &[u8]) -> Result<(), EntryError> {
        let absent = || EntryError::LinkTarget {
            target: String::from_utf8_lossy(target).into_owned(),
        };
        let target_parts = super::tree::parts(target)?;
        let (Some((name, above)), Some((target_name, target_above))) = (parts.split_last(), target_parts.split_last())
        else {
            return Err(absent());
        };
        let from = self.tree.open(target_above).map_err(|_| absent())?;
        let target_name = OsStr::from_bytes(target_name);
        let stat = statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| absent())?;
        if is_whiteout(&stat) || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(absent());
        }
        let parent = self.tree.directory(above)?;
        let os_name = OsStr::from_bytes(name);
        if let Ok(there) = statat(&parent, os_name, AtFlags::SYMLINK_NOFOLLOW)
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        Tree::clear(&parent, name, false)?;
        // Replacing a directory may have removed the target with it, hence the error has the target's name.
        linkat(&from, target_name, &parent, os_name, AtFlags::empty()).map_err(|errno| match errno {
            Errno::NOENT => absent(),
            other => EntryError::os("link")(other),
        })
    }

    /// Sets what had to wait, and tells which directories no entry described.
    pub(super) fn finish(self) -> Result<Vec<String>, UnpackError> {
        for (parts, times) in self.directory_times.iter().rev() {
            match self.tree.open_plain(parts) {
                Ok(dir) => futimens(&dir, times).map_err(EntryError::os("set the time of")),
                // A later entry took its place, or it was reached through a link.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(error) => Err(EntryError::os("set the time of")(error)),
            }
            .map_err(|source| UnpackError::Entry {
                path: String::from_utf8_lossy(&parts.join(&b'/')).into_owned(),
                source,
            })?;
        }
        // A name that is not text cannot be noted; such a directory keeps the mode it got here.
        Ok(self
            .tree
            .implied
            .iter()
            .filter_map(|parts| String::from_utf8(parts.join(&b'/')).ok())
            .collect())
    }
}

fn look(entry: &mut tar::Entry<'_, impl Read>) -> Result<Look, EntryError> {
    let header = entry.header();
    let fields = header.as_old();
    let id = |kind: &'static str, field: &[u8], id: io::Result<u64>| {
        let id = unless_blank(field, id)?;
        match u32::try_from(id) {
            Ok(small) if id <= MAX_OWNER => Ok(small),
            Ok(_) | Err(_) => Err(EntryError::Owner { kind, id }),
        }
    };
    let uid = Uid::from_raw(id("user", &fields.uid, header.uid())?);
    let gid = Gid::from_raw(id("group", &fields.gid, header.gid())?);
    let mode = Mode::from_raw_mode(unless_blank(&fields.mode, header.mode())? & 0o7777);
    let seconds = unless_blank(&fields.mtime, header.mtime())?;
    let mut modified = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let mut attributes = BTreeMap::new();
    if let Some(extensions) = entry.pax_extensions().map_err(EntryError::Header)? {
        for extension in extensions {
            let extension = extension.map_err(EntryError::Header)?;
            let Ok(key) = extension.key() else { continue };
            if key == "mtime" {
                modified = extension.value().ok().and_then(read_time).unwrap_or(modified);
            } else if key.starts_with("GNU.sparse.") {
                return Err(EntryError::Sparse);
            } else if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                && (name == "security.capability" || name.starts_with("user."))
                // Marks of overlayfs are ours alone to make.
                && !name.starts_with("user.overlay.")
            {
                attributes.insert(name.to_owned(), extension.value_bytes().to_owned());
            }
        }
    }
    Ok(Look {
        uid,
        gid,
        mode,
        times: Timestamps {
            last_access: modified,
            last_modification: modified,
        },
        attributes,
    })
}

/// A number of a header; some tools leave those blank that are 0.
fn unless_blank<T: Default>(field: &[u8], number: io::Result<T>) -> Result<T, EntryError> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(T::default());
    }
    number.map_err(EntryError::Header)
}

/// Reads `seconds[.fraction]`, possibly negative.
fn read_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (seconds.starts_with('-'), nanos) {
        (false, _) | (true, 0) => Timespec {
            tv_sec: whole,
            tv_nsec: nanos,
        },
        (true, nanos) => Timespec {
            tv_sec: whole.checked_sub(1)?,
            tv_nsec: 1_000_000_000 - nanos,
        },
    })
}

impl Look {
    /// Owner first: changing it takes setuid bits and capabilities away.
    fn put_on(&self, file: &OwnedFd) -> Result<(), EntryError> {
        fchown(file, Some(self.uid), Some(self.gid)).map_err(EntryError::os("set the owner of"))?;
        fchmod(file, self.mode).map_err(EntryError::os("set the mode of"))?;
        for (name, value) in &self.attributes {
            match fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
                // A malformed capability, or a file system without attributes: the file works without.
                Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(EntryError::os("set an attribute of")(error)),
            }
        }
        Ok(())
    }

    /// The same for what cannot be opened.
    fn put_on_name(&self, parent: &OwnedFd, name: &OsStr) -> Result<(), EntryError> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        chownat(parent, name, Some(self.uid), Some(self.gid), nofollow).map_err(EntryError::os("set the owner of"))?;
        utimensat(parent, name, &self.times, nofollow).map_err(EntryError::os("set the time of"))
    }
}

fn copy_data(entry: &mut impl Read, file: &mut File) -> Result<(), EntryError> {
    let mut buffer = vec![0; 64 << 10];
    let failed = |source| EntryError::Os {
        action: "write",
        source,
    };
    loop {
        let length = entry.read(&mut buffer).map_err(EntryError::Header)?;
        if length == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..length]).map_err(failed)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_with_fractions() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("1700000000", 1_700_000_000, 0),
            ("1.5", 1, 500_000_000),
            ("1.0000000019", 1, 1),
            ("-1", -1, 0),
            ("-1.25", -2, 750_000_000),
        ] {
            let time = read_time(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((time.tv_sec, time.tv_nsec), (seconds, nanos), "{text}");
        }
        for text in ["", "x", "1.x", "99999999999999999999"] {
            assert!(read_time(text).is_none(), "{text}");
        }
    }
}
