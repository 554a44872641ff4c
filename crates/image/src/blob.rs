//! Bytes named by their digest. A blob comes in as an upload ([`crate::upload`]), as a whole, or by a pull; its digest is
//! computed while the bytes pass, and only what matches gets its name.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::digest::{Digest, Digester};
use crate::disk::{Disk, is_absent};
use crate::quota::Reserved;
use crate::{Error, Images, blocking};

/// Largest single blob in bytes: 16 GiB.
pub const MAX_BLOB_BYTES: u64 = 16 << 30;

/// An open blob.
#[derive(Debug)]
pub struct BlobRead {
    pub file: File,
    /// Length in bytes.
    pub length: u64,
}

/// A blob in the making: bytes go to a file without a name of its own and into the digest.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    file: NamedTempFile,
    digester: Digester,
    length: u64,
    /// How much of it is in the digest.
    summed: u64,
    /// How much of it is on its way to the disk.
    sent: u64,
    /// What it takes of the quota.
    reserved: Reserved,
}

/// How much is read at a time of what was written by an earlier server.
const SUMMED_AT_ONCE: usize = 256 << 10;
/// After how many bytes the disk is told to begin with them, so that little is left to wait for at the end.
const SENT_AT_ONCE: u64 = 8 << 20;

impl BlobWriter {
    pub(crate) fn new(images: &Images) -> Result<BlobWriter, Error> {
        let file = images.shared.disk.temp_file()?;
        Ok(BlobWriter::go_on(file, 0, images.shared.quota.reserve()))
    }

    /// Goes on with what somebody has begun: `length` bytes are there.
    pub(crate) fn go_on(file: NamedTempFile, length: u64, reserved: Reserved) -> BlobWriter {
        BlobWriter {
            file,
            digester: Digester::default(),
            length,
            summed: 0,
            sent: 0,
            reserved,
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Brings the digest to where the bytes end.
    fn catch_up(&mut self) -> Result<(), Error> {
        let mut buffer = Vec::new();
        while self.summed < self.length {
            buffer.resize(SUMMED_AT_ONCE, 0);
            let left = usize::try_from(self.length - self.summed).unwrap_or(usize::MAX);
            let piece = &mut buffer[..left.min(SUMMED_AT_ONCE)];
            let read = self.file.as_file().read_exact_at(piece, self.summed);
            read.map_err(Error::io("read", self.file.path()))?;
            self.digester.update(piece);
            self.summed += piece.len() as u64;
        }
        Ok(())
    }

    /// Adds the pieces, one after the other.
    pub(crate) fn append(&mut self, pieces: &mut [IoSlice<'_>]) -> Result<(), Error> {
        let more: usize = pieces.iter().map(|piece| piece.len()).sum();
        let length = self.length + more as u64;
        if length > MAX_BLOB_BYTES {
            return Err(Error::TooLarge {
                what: "blob",
                limit: MAX_BLOB_BYTES,
            });
        }
        self.catch_up()?;
        self.reserved.grow_to(length)?;
        let mut digester = self.digester.clone();
        for piece in pieces.iter() {
            digester.update(piece);
        }
        // At a position, so that bytes of a write that failed half way are overwritten by the next attempt.
        let (mut left, mut at) = (pieces, self.length);
        while at < length {
            let written = match rustix::io::pwritev(self.file.as_file(), left, at) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => Ok(written),
                Err(rustix::io::Errno::INTR) => Ok(0),
                Err(error) => Err(error.into()),
            };
            let written = written.map_err(Error::io("write", self.file.path()))?;
            IoSlice::advance_slices(&mut left, written);
            at += written as u64;
        }
        (self.digester, self.length, self.summed) = (digester, length, length);
        self.send();
        Ok(())
    }

    /// Has the kernel begin to write what is not on its way yet. It does so of what it is told is not needed, and keeps
    /// what is not written yet.
    fn send(&mut self) {
        let waiting = self.length - self.sent;
        if waiting < SENT_AT_ONCE {
            return;
        }
        let more = std::num::NonZeroU64::new(waiting);
        // A hint: where it is not taken, the end takes longer.
        if let Err(error) = rustix::fs::fadvise(self.file.as_file(), self.sent, more, rustix::fs::Advice::DontNeed) {
            tracing::debug!(%error, "the disk was not told to begin");
        }
        self.sent = self.length;
    }

    pub(crate) fn finish(mut self, images: &Images, expected: Digest) -> Result<(), Error> {
        // From here on it is named as a blob, or it goes.
        self.file.disable_cleanup(false);
        self.catch_up()?;
        let actual = self.digester.finish();
        if actual != expected {
            return Err(Error::DigestMismatch { expected, actual });
        }
        self.file
            .as_file()
            .set_len(self.length)
            .map_err(Error::io("cut", self.file.path()))?;
        images.publish_blob(self.file, &expected, self.reserved)
    }
}

impl Images {
    /// Opens a stored blob for reading.
    pub fn blob(&self, digest: &Digest) -> Result<BlobRead, Error> {
        let path = self.shared.disk.blob(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Err(Error::BlobUnknown { digest: *digest }),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let length = file.metadata().map_err(Error::io("stat", &path))?.len();
        Ok(BlobRead { file, length })
    }

    /// The length in bytes of a stored blob, and a mark on it that it is wanted now: whoever is told that it is here
    /// has as long as the collector's age to name it by a manifest. `None` if it is not stored. Blocks on the disk.
    pub fn claim_blob(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let _kept = self.shared.kept();
        self.claim(digest)
    }

    /// The same for whoever holds the lock already.
    pub(crate) fn claim(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let path = self.shared.disk.blob(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        mark(&file, &path)?;
        Ok(Some(file.metadata().map_err(Error::io("stat", &path))?.len()))
    }

    /// Gives a verified temporary file its name, as wanted now. One that is there already is replaced by its equal.
    pub(crate) fn publish_blob(&self, file: NamedTempFile, digest: &Digest, reserved: Reserved) -> Result<(), Error> {
        let path = self.shared.disk.blob(digest);
        mark(file.as_file(), &path)?;
        let _kept = self.shared.kept();
        if Disk::publish_new(file, &path)? {
            reserved.keep();
        }
        Ok(())
    }

    /// The length in bytes of a stored blob; `None` if it is not stored.
    pub fn blob_length(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let path = self.shared.disk.blob(digest);
        match path.metadata() {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::io("stat", &path)(error)),
        }
    }

    /// Reads a whole blob that must be small (a manifest, a configuration).
    pub(crate) fn small_blob(&self, digest: &Digest, what: &'static str, limit: u64) -> Result<Vec<u8>, Error> {
        let blob = self.blob(digest)?;
        if blob.length > limit {
            return Err(Error::TooLarge { what, limit });
        }
        let mut content = Vec::new();
        let path = self.shared.disk.blob(digest);
        blob.file
            .take(limit)
            .read_to_end(&mut content)
            .map_err(Error::io("read", &path))?;
        let actual = Digest::of(&content);
        if actual != *digest {
            return Err(Error::DigestMismatch {
                expected: *digest,
                actual,
            });
        }
        Ok(content)
    }

    /// Stores a blob given as a whole. Blocks on the disk.
    pub(crate) fn put_small_blob(&self, content: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(content);
        if self.claim_blob(&digest)?.is_none() {
            let mut writer = BlobWriter::new(self)?;
            writer.append(&mut [IoSlice::new(content)])?;
            writer.finish(self, digest)?;
        }
        Ok(digest)
    }

    /// Stores a blob given as a whole, whose digest must be `expected`.
    pub async fn put_blob(&self, expected: Digest, content: Bytes) -> Result<(), Error> {
        let images = self.clone();
        blocking(move || {
            let mut writer = BlobWriter::new(&images)?;
            writer.append(&mut [IoSlice::new(&content)])?;
            writer.finish(&images, expected)
        })
        .await
    }

    /// Stores what a reader yields, whose digest must be `expected`. Blocks on the disk.
    pub(crate) fn copy_blob(&self, expected: Digest, from: &mut dyn Read, name: &std::path::Path) -> Result<(), Error> {
        let mut writer = BlobWriter::new(self)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = from.read(&mut buffer).map_err(Error::io("read", name))?;
            if length == 0 {
                return writer.finish(self, expected);
            }
            writer.append(&mut [IoSlice::new(&buffer[..length])])?;
        }
    }
}

/// Notes when content was last wanted, in the time of its file's change.
pub(crate) fn mark(file: &File, path: &Path) -> Result<(), Error> {
    file.set_modified(SystemTime::now()).map_err(Error::io("mark", path))
}
