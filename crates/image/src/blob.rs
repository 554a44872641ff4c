//! Bytes named by their digest. A blob comes in as an upload (begin, append, finish), as a whole, or by a pull; its
//! digest is computed while the bytes pass, and only what matches gets its name.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::digest::{Digest, Digester};
use crate::disk::{Disk, is_absent};
use crate::quota::Reserved;
use crate::{Error, Images, blocking};

/// Largest single blob in bytes: 16 GiB.
pub const MAX_BLOB_BYTES: u64 = 16 << 30;
/// Most uploads open at a time. One more, and the one touched longest ago is given up.
pub const MAX_UPLOADS: usize = 256;

/// The name of an upload under way: 32 hexadecimal digits drawn at random.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl UploadId {
    fn draw() -> Result<UploadId, Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(Error::Random)?;
        Ok(UploadId(format!("{:032x}", u128::from_be_bytes(bytes))))
    }
}

impl FromStr for UploadId {
    type Err = Error;

    /// A text that no upload could have is answered like an upload that is not open.
    fn from_str(text: &str) -> Result<UploadId, Error> {
        let upload = UploadId(text.chars().take(64).collect());
        if text.len() == 32
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        {
            Ok(upload)
        } else {
            Err(Error::UploadUnknown { upload })
        }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place in the table of uploads.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    /// Grows with every touch, so that the lowest is the one to give up.
    touched: u64,
    /// Empty once someone finishes it.
    writer: Arc<Mutex<Option<BlobWriter>>>,
}

/// An open blob.
#[derive(Debug)]
pub struct BlobRead {
    pub file: File,
    /// Length in bytes.
    pub length: u64,
}

/// A blob in the making: bytes go to a temporary file and into the digest.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    file: NamedTempFile,
    digester: Digester,
    length: u64,
    /// What it takes of the quota.
    reserved: Reserved,
}

impl BlobWriter {
    pub(crate) fn new(images: &Images) -> Result<BlobWriter, Error> {
        Ok(BlobWriter {
            file: images.shared.disk.temp_file()?,
            digester: Digester::default(),
            length: 0,
            reserved: images.shared.quota.reserve(),
        })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = self.length + bytes.len() as u64;
        if length > MAX_BLOB_BYTES {
            return Err(Error::TooLarge {
                what: "blob",
                limit: MAX_BLOB_BYTES,
            });
        }
        self.reserved.grow_to(length)?;
        // At a position, so that bytes of a write that failed half way are overwritten by the next attempt.
        let file = self.file.as_file();
        file.write_all_at(bytes, self.length)
            .map_err(Error::io("write", self.file.path()))?;
        self.digester.update(bytes);
        self.length = length;
        Ok(())
    }

    pub(crate) fn finish(self, images: &Images, expected: Digest) -> Result<(), Error> {
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
            writer.append(content)?;
            writer.finish(self, digest)?;
        }
        Ok(digest)
    }

    /// Stores a blob given as a whole, whose digest must be `expected`.
    pub async fn put_blob(&self, expected: Digest, content: Bytes) -> Result<(), Error> {
        let images = self.clone();
        blocking(move || {
            let mut writer = BlobWriter::new(&images)?;
            writer.append(&content)?;
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
            writer.append(&buffer[..length])?;
        }
    }

    /// Opens an upload. It lasts until it is finished or cancelled, Homerun ends, or [`MAX_UPLOADS`] newer ones came.
    pub async fn begin_upload(&self) -> Result<UploadId, Error> {
        let images = self.clone();
        blocking(move || {
            let upload = UploadId::draw()?;
            let writer = Arc::new(Mutex::new(Some(BlobWriter::new(&images)?)));
            let mut uploads = images.uploads();
            if uploads.len() >= MAX_UPLOADS
                && let Some(oldest) = uploads
                    .iter()
                    .min_by_key(|(_, upload)| upload.touched)
                    .map(|(id, _)| id.clone())
            {
                tracing::warn!(upload = %oldest, limit = MAX_UPLOADS, "gave up the oldest of too many open uploads");
                uploads.remove(&oldest);
            }
            let touched = next_touch(&uploads);
            uploads.insert(upload.clone(), Upload { touched, writer });
            Ok(upload)
        })
        .await
    }

    /// How many bytes an upload has: where its next chunk must begin.
    pub fn upload_length(&self, upload: &UploadId) -> Result<u64, Error> {
        let writer = self.upload(upload)?;
        let writer = lock(&writer);
        let writer = writer
            .as_ref()
            .ok_or_else(|| Error::UploadUnknown { upload: upload.clone() })?;
        Ok(writer.length)
    }

    /// Adds a chunk and answers the new length. `at` is where the client says it begins; `None` takes its word that it
    /// continues. After an error the bytes before this chunk are still there.
    pub async fn append(&self, upload: &UploadId, at: Option<u64>, chunk: Bytes) -> Result<u64, Error> {
        let writer = self.upload(upload)?;
        let upload = upload.clone();
        blocking(move || {
            let mut writer = lock(&writer);
            let Some(writer) = writer.as_mut() else {
                return Err(Error::UploadUnknown { upload });
            };
            if let Some(got) = at
                && got != writer.length
            {
                return Err(Error::UploadOffset {
                    upload,
                    expected: writer.length,
                    got,
                });
            }
            writer.append(&chunk)?;
            Ok(writer.length)
        })
        .await
    }

    /// Ends an upload. It must have the digest `expected`, else it is thrown away.
    pub async fn finish_upload(&self, upload: &UploadId, expected: Digest) -> Result<(), Error> {
        let unknown = || Error::UploadUnknown { upload: upload.clone() };
        let taken = self.uploads().remove(upload).ok_or_else(unknown)?;
        let images = self.clone();
        let upload = upload.clone();
        blocking(move || {
            // A chunk still being written is waited for; one that comes later finds nothing.
            let writer = lock(&taken.writer).take().ok_or(Error::UploadUnknown { upload })?;
            writer.finish(&images, expected)
        })
        .await
    }

    /// Gives an upload up.
    pub fn cancel_upload(&self, upload: &UploadId) -> Result<(), Error> {
        match self.uploads().remove(upload) {
            Some(_) => Ok(()),
            None => Err(Error::UploadUnknown { upload: upload.clone() }),
        }
    }

    fn upload(&self, upload: &UploadId) -> Result<Arc<Mutex<Option<BlobWriter>>>, Error> {
        let mut uploads = self.uploads();
        let touched = next_touch(&uploads);
        match uploads.get_mut(upload) {
            Some(found) => {
                found.touched = touched;
                Ok(Arc::clone(&found.writer))
            }
            None => Err(Error::UploadUnknown { upload: upload.clone() }),
        }
    }

    fn uploads(&self) -> MutexGuard<'_, std::collections::HashMap<UploadId, Upload>> {
        self.shared.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes when content was last wanted, in the time of its file's change.
pub(crate) fn mark(file: &File, path: &Path) -> Result<(), Error> {
    file.set_modified(SystemTime::now()).map_err(Error::io("mark", path))
}

fn next_touch(uploads: &std::collections::HashMap<UploadId, Upload>) -> u64 {
    uploads
        .values()
        .map(|upload| upload.touched)
        .max()
        .map_or(0, |last| last + 1)
}

fn lock(writer: &Mutex<Option<BlobWriter>>) -> MutexGuard<'_, Option<BlobWriter>> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}
