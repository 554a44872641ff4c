//! The source of a build: a ZIP (`gcloud run deploy --source`) or a gzipped tar (`gcloud builds submit`), unpacked into
//! a fresh directory. Nothing of an archive is written outside of it: names that lead out are refused, links are made
//! after all files, so that no file is written through one, and links that lead out are refused. What is neither file,
//! directory nor symbolic link is refused too. Owners are dropped, of the modes only what everybody may run is kept. Files
//! keep the time that the archive says, as docker's clients send it.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Component, Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

/// Largest archive in bytes: 2 GiB.
pub const MAX_ARCHIVE: u64 = 2 << 30;
/// Most bytes of all its files together: 4 GiB.
pub const MAX_UNPACKED: u64 = 4 << 30;
/// Most files, directories and links.
pub const MAX_ENTRIES: u64 = 200_000;
/// Longest target of a link in bytes.
const MAX_TARGET: u64 = 4096;

/// The limits, so that tests need no gibibytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) archive: u64,
    pub(crate) unpacked: u64,
    pub(crate) entries: u64,
}

pub(crate) const LIMITS: Limits = Limits {
    archive: MAX_ARCHIVE,
    unpacked: MAX_UNPACKED,
    entries: MAX_ENTRIES,
};

/// Why a source cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("the source archive has {size} bytes; the limit is {limit}")]
    TooLarge { size: u64, limit: u64 },
    #[error("the source unpacks to more than {limit} bytes, the limit")]
    Unpacked { limit: u64 },
    #[error("the source has more than {limit} files, the limit")]
    Entries { limit: u64 },
    #[error("the source is empty")]
    Empty,
    #[error("the source is neither a ZIP nor a gzipped tar archive")]
    Kind,
    #[error("the source names \"{name}\", which leads out of it")]
    Outside { name: String },
    #[error("the source links \"{name}\" to \"{target}\", which leads out of it")]
    Link { name: String, target: String },
    #[error("the source holds \"{name}\" twice")]
    Twice { name: String },
    #[error("the source holds \"{name}\", which is neither a file, a directory nor a symbolic link")]
    Special { name: String },
    #[error("the source archive is damaged: {why}")]
    Damaged { why: String },
    #[error("cannot write the source to the disk")]
    Disk(#[source] io::Error),
}

/// What was unpacked.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) files: u64,
    /// When its files were changed last, in seconds since 1970.
    pub(crate) times: BTreeSet<u64>,
}

/// Unpacks `archive` into the empty directory `to`. No file is of a later time than `latest`, in seconds since 1970. Blocks
/// on the disk.
pub(crate) fn unpack(mut archive: File, to: &Path, limits: Limits, latest: u64) -> Result<Contents, ArchiveError> {
    let size = archive.metadata().map_err(ArchiveError::Disk)?.len();
    if size > limits.archive {
        return Err(ArchiveError::TooLarge {
            size,
            limit: limits.archive,
        });
    }
    let mut magic = [0; 4];
    let read = read_start(&mut archive, &mut magic).map_err(ArchiveError::Disk)?;
    archive.seek(SeekFrom::Start(0)).map_err(ArchiveError::Disk)?;
    let mut tree = Tree::new(to, limits, latest);
    match &magic[..read] {
        // The second is a ZIP without an entry.
        [b'P', b'K', 3, 4] | [b'P', b'K', 5, 6] => unzip(archive, &mut tree)?,
        [0x1f, 0x8b, ..] => untar(flate2::read::MultiGzDecoder::new(BufReader::new(archive)), &mut tree)?,
        _ => return Err(ArchiveError::Kind),
    }
    tree.finish()
}

fn read_start(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

fn damaged(why: impl std::fmt::Display) -> ArchiveError {
    ArchiveError::Damaged { why: why.to_string() }
}

fn unzip(archive: File, tree: &mut Tree<'_>) -> Result<(), ArchiveError> {
    const KIND: u32 = 0o170_000;
    let mut zip = zip::ZipArchive::new(BufReader::new(archive)).map_err(damaged)?;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        let mode = entry.unix_mode();
        let kind = mode.map_or(0, |mode| mode & KIND);
        if entry.is_dir() || kind == 0o040_000 {
            tree.directory(&name)?;
        } else if kind == 0o120_000 {
            let target = link_target(&mut entry)?;
            tree.link(&name, &target)?;
        } else if kind == 0o100_000 || kind == 0 {
            let time = entry.last_modified().map_or(0, zip_seconds);
            tree.file(&name, mode.is_some_and(|mode| mode & 0o111 != 0), time, &mut entry)?;
        } else {
            return Err(ArchiveError::Special { name });
        }
    }
    Ok(())
}

/// A ZIP tells the time of the clock on its maker's wall, without the zone.
fn zip_seconds(time: zip::DateTime) -> u64 {
    let day = i8::try_from(time.month()).ok().zip(i8::try_from(time.day()).ok());
    let clock = [time.hour(), time.minute(), time.second()].map(|part| i8::try_from(part).unwrap_or(0));
    day.zip(i16::try_from(time.year()).ok())
        .and_then(|((month, day), year)| {
            jiff::civil::DateTime::new(year, month, day, clock[0], clock[1], clock[2], 0).ok()
        })
        .and_then(|time| jiff::tz::TimeZone::UTC.to_timestamp(time).ok())
        .map_or(0, |time| u64::try_from(time.as_second()).unwrap_or(0))
}

fn link_target(entry: impl Read) -> Result<String, ArchiveError> {
    let mut target = String::new();
    entry
        .take(MAX_TARGET + 1)
        .read_to_string(&mut target)
        .map_err(damaged)?;
    Ok(target)
}

fn untar(archive: impl Read, tree: &mut Tree<'_>) -> Result<(), ArchiveError> {
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| damaged("a name is not UTF-8"));
        let name = text(&entry.path_bytes())?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            tree.directory(&name)?;
        } else if kind.is_file() || kind.is_contiguous() {
            let runs = entry.header().mode().map_err(damaged)? & 0o111 != 0;
            let time = entry.header().mtime().map_err(damaged)?;
            tree.file(&name, runs, time, &mut entry)?;
        } else if kind.is_symlink() {
            let target = entry.link_name_bytes().ok_or_else(|| damaged("a link has no target"))?;
            let target = text(&target)?;
            tree.link(&name, &target)?;
        } else if !kind.is_pax_global_extensions() && !kind.is_pax_local_extensions() {
            return Err(ArchiveError::Special { name });
        }
    }
    Ok(())
}

/// Why a name could not be made: something else has it, or the disk would not.
fn taken(name: &str, error: io::Error) -> ArchiveError {
    let taken = [io::ErrorKind::AlreadyExists, io::ErrorKind::NotADirectory];
    if taken.contains(&error.kind()) {
        ArchiveError::Twice { name: name.to_owned() }
    } else {
        ArchiveError::Disk(error)
    }
}

struct Tree<'t> {
    root: &'t Path,
    limits: Limits,
    latest: u64,
    entries: u64,
    contents: Contents,
    left: u64,
    made: BTreeSet<PathBuf>,
    /// Made last.
    links: Vec<(PathBuf, String)>,
}

impl<'t> Tree<'t> {
    fn new(root: &'t Path, limits: Limits, latest: u64) -> Self {
        Self {
            root,
            limits,
            latest,
            entries: 0,
            contents: Contents::default(),
            left: limits.unpacked,
            made: BTreeSet::new(),
            links: Vec::new(),
        }
    }

    /// The path of an entry below the root. None: the root itself.
    fn enter(&mut self, name: &str) -> Result<Option<PathBuf>, ArchiveError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ArchiveError::Entries {
                limit: self.limits.entries,
            });
        }
        let outside = || ArchiveError::Outside {
            name: name.chars().take(200).collect(),
        };
        if name.contains('\0') || name.contains('\\') {
            return Err(outside());
        }
        let mut path = PathBuf::new();
        for part in Path::new(name).components() {
            match part {
                Component::CurDir => {}
                Component::Normal(part) => path.push(part),
                Component::RootDir | Component::ParentDir | Component::Prefix(_) => return Err(outside()),
            }
        }
        Ok((!path.as_os_str().is_empty()).then_some(path))
    }

    fn directory(&mut self, name: &str) -> Result<(), ArchiveError> {
        let Some(path) = self.enter(name)? else { return Ok(()) };
        self.ways(&path)
    }

    /// Makes a directory and those above it.
    fn ways(&self, path: &Path) -> Result<(), ArchiveError> {
        fs::create_dir_all(self.root.join(path)).map_err(|error| taken(&path.display().to_string(), error))
    }

    fn place(&mut self, name: &str) -> Result<PathBuf, ArchiveError> {
        let path = self
            .enter(name)?
            .ok_or_else(|| ArchiveError::Outside { name: name.to_owned() })?;
        if !self.made.insert(path.clone()) {
            return Err(ArchiveError::Twice { name: name.to_owned() });
        }
        if let Some(parent) = path.parent() {
            self.ways(parent)?;
        }
        Ok(path)
    }

    fn file(&mut self, name: &str, runs: bool, time: u64, content: &mut impl Read) -> Result<(), ArchiveError> {
        let path = self.place(name)?;
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if runs { 0o755 } else { 0o644 })
            .open(self.root.join(&path));
        let mut file = opened.map_err(|error| taken(name, error))?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = content.read(&mut buffer).map_err(damaged)?;
            if read == 0 {
                break;
            }
            // By what comes, and not by what the archive says.
            self.left = self.left.checked_sub(read as u64).ok_or(ArchiveError::Unpacked {
                limit: self.limits.unpacked,
            })?;
            file.write_all(&buffer[..read]).map_err(ArchiveError::Disk)?;
        }
        let time = time.min(self.latest);
        file.set_modified(UNIX_EPOCH + Duration::from_secs(time))
            .map_err(ArchiveError::Disk)?;
        self.contents.times.insert(time);
        self.contents.files += 1;
        Ok(())
    }

    fn link(&mut self, name: &str, target: &str) -> Result<(), ArchiveError> {
        let path = self.place(name)?;
        let outside = || ArchiveError::Link {
            name: name.chars().take(200).collect(),
            target: target.chars().take(200).collect(),
        };
        if target.is_empty() || target.len() as u64 > MAX_TARGET || target.contains('\0') {
            return Err(outside());
        }
        let mut depth = path.components().count() - 1;
        for part in Path::new(target).components() {
            match part {
                Component::CurDir => {}
                Component::Normal(_) => depth += 1,
                Component::ParentDir => depth = depth.checked_sub(1).ok_or_else(outside)?,
                Component::RootDir | Component::Prefix(_) => return Err(outside()),
            }
        }
        self.links.push((path, target.to_owned()));
        Ok(())
    }

    fn finish(mut self) -> Result<Contents, ArchiveError> {
        for (path, target) in &self.links {
            symlink(target, self.root.join(path)).map_err(|error| taken(&path.display().to_string(), error))?;
        }
        self.contents.files += self.links.len() as u64;
        if self.contents.files == 0 {
            Err(ArchiveError::Empty)
        } else {
            Ok(self.contents)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    enum Entry<'e> {
        File(&'e str, &'e [u8], u32),
        Link(&'e str, &'e str),
        Directory(&'e str),
        Pipe(&'e str),
    }

    /// When the entries were changed last: 2020-09-13T12:26:40Z.
    const CHANGED: u64 = 1_600_000_000;

    fn tgz(entries: &[Entry<'_>]) -> File {
        let file = tempfile::tempfile().expect("a file");
        let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for entry in entries {
            let mut header = tar::Header::new_gnu();
            let (name, content): (&str, &[u8]) = match entry {
                Entry::File(name, content, mode) => {
                    header.set_mode(*mode);
                    (name, content)
                }
                Entry::Link(name, target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_link_name_literal(target).expect("short");
                    (name, b"")
                }
                Entry::Directory(name) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    (name, b"")
                }
                Entry::Pipe(name) => {
                    header.set_entry_type(tar::EntryType::Fifo);
                    (name, b"")
                }
            };
            header.set_mtime(CHANGED);
            header.set_size(content.len() as u64);
            // As it is, whatever it is.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, content).expect("appended");
        }
        tar.into_inner().expect("a tar").finish().expect("a gzip")
    }

    fn zipped(entries: &[Entry<'_>]) -> File {
        let mut zip = zip::ZipWriter::new(tempfile::tempfile().expect("a file"));
        for entry in entries {
            let changed = zip::DateTime::from_date_and_time(2020, 9, 13, 12, 26, 40).expect("a time");
            let options = zip::write::SimpleFileOptions::default().last_modified_time(changed);
            match entry {
                Entry::File(name, content, mode) => {
                    zip.start_file(*name, options.unix_permissions(*mode)).expect("begun");
                    zip.write_all(content).expect("written");
                }
                Entry::Link(name, target) => zip.add_symlink(*name, *target, options).expect("added"),
                Entry::Directory(name) => zip.add_directory(*name, options).expect("added"),
                Entry::Pipe(_) => {}
            }
        }
        zip.finish().expect("finished")
    }

    fn unpacked(archive: File, limits: Limits) -> (tempfile::TempDir, Result<Contents, ArchiveError>) {
        unpacked_by(archive, limits, CHANGED + 1)
    }

    fn unpacked_by(
        mut archive: File,
        limits: Limits,
        latest: u64,
    ) -> (tempfile::TempDir, Result<Contents, ArchiveError>) {
        let dir = tempfile::tempdir().expect("a directory");
        archive.seek(SeekFrom::Start(0)).expect("from the start");
        fs::create_dir(dir.path().join("in")).expect("made");
        let done = unpack(archive, &dir.path().join("in"), limits, latest);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "beside it");
        (dir, done)
    }

    #[test]
    fn both_kinds_give_the_same_tree() {
        let entries = [
            Entry::File("Dockerfile", b"FROM x\n", 0o644),
            Entry::Directory("bin/"),
            Entry::File("bin/run", b"#!", 0o4755),
            Entry::Link("bin/again", "../bin/run"),
        ];
        for archive in [tgz(&entries), zipped(&entries)] {
            let (dir, done) = unpacked(archive, LIMITS);
            let contents = done.expect("unpacked");
            assert_eq!((contents.files, contents.times), (3, BTreeSet::from([CHANGED])));
            let at = |name: &str| dir.path().join("in").join(name);
            assert_eq!(fs::read_to_string(at("Dockerfile")).expect("there"), "FROM x\n");
            let mode = fs::metadata(at("bin/again")).expect("there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o755, "through the link, and without the user's id");
            let changed = fs::metadata(at("Dockerfile")).and_then(|found| found.modified());
            assert_eq!(changed.expect("a time"), UNIX_EPOCH + Duration::from_secs(CHANGED));
        }
        let (_dir, done) = unpacked_by(tgz(&entries), LIMITS, 7);
        assert_eq!(done.expect("unpacked").times, BTreeSet::from([7]), "none of the future");
    }

    #[test]
    fn nothing_leads_out() {
        for (entries, named) in [
            (&[Entry::File("../x", b"", 0o644)][..], "\"../x\""),
            (&[Entry::File("a/../../x", b"", 0o644)], "a/../../x"),
            (&[Entry::File("/etc/x", b"", 0o644)], "/etc/x"),
            (&[Entry::Link("l", "/etc/passwd")], "/etc/passwd"),
            (&[Entry::Link("a/l", "../../x")], "../../x"),
            (&[Entry::Link("l", "a"), Entry::File("l/x", b"", 0o644)], "twice"),
            (&[Entry::Link("l", "a"), Entry::File("l", b"", 0o644)], "twice"),
            (&[Entry::File("f", b"", 0o644), Entry::File("f/x", b"", 0o644)], "twice"),
            (&[Entry::Pipe("p")], "neither a file"),
            (&[Entry::Directory("d/")], "empty"),
            (&[], "empty"),
        ] {
            let (_dir, done) = unpacked(tgz(entries), LIMITS);
            let said = done.expect_err(named).to_string();
            assert!(said.contains(named), "{said}");
        }
        let (_dir, done) = unpacked(zipped(&[Entry::File("../x", b"", 0o644)]), LIMITS);
        assert!(matches!(done, Err(ArchiveError::Outside { .. })));
        let (_dir, done) = unpacked(zipped(&[Entry::Link("l", "..")]), LIMITS);
        assert!(matches!(done, Err(ArchiveError::Link { .. })));
    }

    #[test]
    fn bombs_and_strangers() {
        let zeros = vec![0; 1 << 20];
        let small = Limits {
            archive: 100_000,
            unpacked: 1 << 19,
            entries: 3,
        };
        let bomb = [Entry::File("zeros", &zeros, 0o644)];
        for archive in [tgz(&bomb), zipped(&bomb)] {
            let (_dir, done) = unpacked(archive, small);
            assert!(
                matches!(done, Err(ArchiveError::Unpacked { limit: 524_288 })),
                "{done:?}"
            );
        }
        let many = ["a", "b", "c", "d"].map(|name| Entry::File(name, b"", 0o644));
        let (_dir, done) = unpacked(tgz(&many), small);
        assert!(matches!(done, Err(ArchiveError::Entries { limit: 3 })));
        let mut large = tempfile::tempfile().expect("a file");
        large.write_all(&zeros).expect("written");
        let (_dir, done) = unpacked(large, small);
        assert!(matches!(done, Err(ArchiveError::TooLarge { size: 1_048_576, .. })));
        for (content, damaged) in [
            (&b"hello"[..], false),
            (b"\x1f\x8bhello", true),
            (b"PK\x03\x04hello", true),
        ] {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(content).expect("written");
            let (_dir, done) = unpacked(file, LIMITS);
            match done {
                Err(ArchiveError::Kind) => assert!(!damaged),
                Err(ArchiveError::Damaged { .. }) => assert!(damaged),
                other => panic!("{other:?}"),
            }
        }
    }
}
