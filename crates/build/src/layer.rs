//! A layer as it goes into an image: the same steps on the same source give the same bytes, whenever they ran.
//!
//! What the builder hands over says when each file was made, which is never twice the same. [`Times`] says what stays
//! of that. A file of Python's bytecode repeats the time of its source inside, and is changed with it: otherwise Python
//! would take it for old, and compile at every start.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

/// Most bytes of one header with a long name or attributes: 1 MiB.
const MAX_HEADER: u64 = 1 << 20;
/// What a `.pyc` begins with: a magic number, flags, and the time and the size of its source where the flags are 0.
const PYC: usize = 16;
/// Of the sizes and speeds tried, where more effort saves little.
const EFFORT: u32 = 4;

/// The times that files of an image have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times {
    /// Seconds since 1970: that of the newest base image. What is later was made by the build, and gets this time.
    pub(crate) epoch: u64,
    /// Those that the source itself tells of its files; they stay.
    pub(crate) of_source: BTreeSet<u64>,
}

impl Times {
    fn kept(&self, seconds: u64) -> u64 {
        if seconds <= self.epoch || self.of_source.contains(&seconds) {
            seconds
        } else {
            self.epoch
        }
    }
}

/// What a layer turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Of the archive that was read.
    pub(crate) read: String,
    /// Of the archive that was written, before and after compression.
    pub(crate) diff_id: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// Bytes that pass are counted into a sum.
struct Summed<T> {
    inner: T,
    sum: Sha256,
    bytes: u64,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            sum: Sha256::new(),
            bytes: 0,
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn finish(self) -> (T, String) {
        (self.inner, name(self.sum))
    }
}

impl<T: Read> Read for Summed<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.pass(&buffer[..read]);
        Ok(read)
    }
}

impl<T: Write> Write for Summed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.pass(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// `sha256:...`
pub(crate) fn name(sum: Sha256) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in sum.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Writes a layer's archive anew, compressed.
pub(crate) fn rewrite(from: impl Read, to: impl Write, times: &Times) -> io::Result<Sums> {
    let mut archive = tar::Archive::new(Summed::new(from));
    let compressed = GzEncoder::new(Summed::new(to), Compression::new(EFFORT));
    let mut written = tar::Builder::new(Summed::new(compressed));
    // The name of the next entry, where it is too long for its own header.
    let mut long: Option<Vec<u8>> = None;
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let mut header = entry.header().clone();
        let kind = header.entry_type();
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let mut content = Vec::new();
            if header.size()? > MAX_HEADER {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a header of a layer is too long",
                ));
            }
            entry.read_to_end(&mut content)?;
            if kind.is_gnu_longname() {
                long = Some(content.clone());
            } else if kind.is_pax_local_extensions() {
                let (rest, path) = without_times(&content);
                long = path.or(long);
                if rest.is_empty() {
                    continue;
                }
                content = rest;
                header.set_size(content.len() as u64);
            }
            header.set_mtime(0);
            header.set_cksum();
            written.append(&header, content.as_slice())?;
            continue;
        }
        let name = long.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let kept = if kind.is_file() {
            times.kept(header.mtime()?)
        } else {
            times.epoch
        };
        header.set_mtime(kept);
        header.set_cksum();
        if kind.is_file() && is_bytecode(&name) {
            let mut begin = Vec::with_capacity(PYC);
            entry.by_ref().take(PYC as u64).read_to_end(&mut begin)?;
            date_bytecode(&mut begin, times);
            written.append(&header, begin.as_slice().chain(entry))?;
        } else {
            written.append(&header, entry)?;
        }
    }
    let mut from = archive.into_inner();
    io::copy(&mut from, &mut io::sink())?;
    let (_, read) = from.finish();
    let (compressed, diff_id) = written.into_inner()?.finish();
    let mut to = compressed.finish()?;
    to.flush()?;
    let size = to.bytes;
    let (_, digest) = to.finish();
    Ok(Sums {
        read,
        diff_id,
        digest,
        size,
    })
}

fn is_bytecode(name: &[u8]) -> bool {
    name.strip_suffix(b"\0").unwrap_or(name).ends_with(b".pyc")
}

fn date_bytecode(begin: &mut [u8], times: &Times) {
    let Ok(begin): Result<&mut [u8; PYC], _> = begin.try_into() else {
        return;
    };
    let by_time = begin[2..4] == *b"\r\n" && begin[4..8] == [0; 4];
    let [a, b, c, d] = [begin[8], begin[9], begin[10], begin[11]];
    let kept = times.kept(u32::from_le_bytes([a, b, c, d]).into());
    if by_time && let Ok(kept) = u32::try_from(kept) {
        begin[8..12].copy_from_slice(&kept.to_le_bytes());
    }
}

/// PAX records (`LENGTH KEY=VALUE\n`) but those of times, and the path among them. What is no record stays as it is.
fn without_times(records: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let (mut rest, mut path) = (Vec::with_capacity(records.len()), None);
    let mut at = records;
    while !at.is_empty() {
        let record = at
            .iter()
            .position(|byte| *byte == b' ')
            .and_then(|space| Some((space, std::str::from_utf8(&at[..space]).ok()?.parse::<usize>().ok()?)))
            .filter(|(space, length)| (*space + 1..=at.len()).contains(length));
        let Some((space, length)) = record else {
            rest.extend_from_slice(at);
            break;
        };
        let (whole, next) = at.split_at(length);
        let pair = &whole[space + 1..];
        if let Some(value) = pair.strip_prefix(b"path=") {
            path = Some(value.strip_suffix(b"\n").unwrap_or(value).to_vec());
        }
        if ![&b"mtime="[..], b"atime=", b"ctime="]
            .iter()
            .any(|key| pair.starts_with(key))
        {
            rest.extend_from_slice(whole);
        }
        at = next;
    }
    (rest, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u64 = 1_000_000;

    fn bytecode(flags: u32, time: u32) -> Vec<u8> {
        let mut content = b"\xa7\x0d\r\n".to_vec();
        content.extend([flags.to_le_bytes(), time.to_le_bytes(), 7_u32.to_le_bytes()].concat());
        content.extend(b"the code");
        content
    }

    /// A layer as a build step leaves it at a second.
    fn layer(now: u32) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let long = format!("{}/x.pyc", "a".repeat(120));
        for (name, content, time) in [
            ("old", b"of the base".to_vec(), 5),
            ("source", b"a page".to_vec(), 2_000_000),
            ("made", b"by a step".to_vec(), now),
            ("__pycache__/x.pyc", bytecode(0, now), now),
            (&long, bytecode(0, now), now),
            ("__pycache__/base.pyc", bytecode(0, 5), now),
            ("__pycache__/hashed.pyc", bytecode(1, 1_500_000), now),
            ("short.pyc", b"x".to_vec(), now),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(time.into());
            let modified = format!("{time}.25");
            tar.append_pax_extensions([("mtime", modified.as_bytes()), ("SCHILY.xattr.user.a", b"b")])
                .expect("written");
            tar.append_data(&mut header, name, content.as_slice()).expect("written");
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mtime(now.into());
        header.set_size(0);
        tar.append_data(&mut header, "d/", &b""[..]).expect("written");
        tar.into_inner().expect("written")
    }

    fn rewritten(archive: &[u8]) -> (Sums, Vec<u8>) {
        let times = Times {
            epoch: EPOCH,
            of_source: BTreeSet::from([2_000_000]),
        };
        let mut to = Vec::new();
        let sums = rewrite(archive, &mut to, &times).expect("rewritten");
        (sums, to)
    }

    #[test]
    fn the_hour_of_a_build_is_not_seen() {
        let (one, bytes) = rewritten(&layer(3_000_000));
        let (other, same) = rewritten(&layer(3_333_333));
        assert_ne!(one.read, other.read);
        assert_eq!(
            (&one.digest, &one.diff_id, one.size),
            (&other.digest, &other.diff_id, other.size)
        );
        assert_eq!(bytes, same);
        assert_eq!(bytes.len() as u64, one.size);
    }

    #[test]
    fn what_stays_of_times_and_all_else() {
        let (_, bytes) = rewritten(&layer(3_000_000));
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let mut found = Vec::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a path").display().to_string();
            let extended = entry.pax_extensions().expect("records").into_iter().flatten();
            let keys: Vec<String> = extended
                .map(|record| record.expect("a record").key().expect("a key").to_owned())
                .collect();
            let mut content = Vec::new();
            let time = entry.header().mtime().expect("a time");
            entry.read_to_end(&mut content).expect("read");
            found.push((name, time, keys.contains(&"SCHILY.xattr.user.a".to_owned()), content));
            assert!(!keys.contains(&"mtime".to_owned()), "{keys:?}");
        }
        let epoch = u32::try_from(EPOCH).expect("small");
        let expected = [
            ("old".to_owned(), 5, true, b"of the base".to_vec()),
            ("source".to_owned(), 2_000_000, true, b"a page".to_vec()),
            ("made".to_owned(), EPOCH, true, b"by a step".to_vec()),
            ("__pycache__/x.pyc".to_owned(), EPOCH, true, bytecode(0, epoch)),
            (format!("{}/x.pyc", "a".repeat(120)), EPOCH, true, bytecode(0, epoch)),
            ("__pycache__/base.pyc".to_owned(), EPOCH, true, bytecode(0, 5)),
            ("__pycache__/hashed.pyc".to_owned(), EPOCH, true, bytecode(1, 1_500_000)),
            ("short.pyc".to_owned(), EPOCH, true, b"x".to_vec()),
            ("d/".to_owned(), EPOCH, false, Vec::new()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_layer_is_an_error() {
        let whole = layer(3_000_000);
        let times = Times::default();
        for damaged in [&whole[..700], &[7; 1024][..]] {
            assert!(rewrite(damaged, io::sink(), &times).is_err());
        }
        assert_eq!(without_times(b"no record"), (b"no record".to_vec(), None));
        assert_eq!(without_times(b"99 mtime=1\n"), (b"99 mtime=1\n".to_vec(), None));
    }
}
