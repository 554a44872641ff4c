//! Uploads: bytes gathered in a file and summed on their way, in one go or resumed after a break.

use std::fmt;
use std::os::unix::fs::FileExt as _;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use md5::{Digest as _, Md5};
use model::{BucketName, Timestamp};
use tempfile::NamedTempFile;

use crate::{Draft, Error, MAX_NAME_BYTES, MAX_OBJECT_BYTES, Object, Objects};

/// Most uploads open at a time. One more, and the one touched longest ago is given up.
pub const MAX_UPLOADS: usize = 256;

/// The name of an upload under way: 32 hexadecimal digits drawn at random.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl FromStr for UploadId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let id: String = text.chars().take(64).collect();
        if text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(id))
        } else {
            Err(Error::UploadUnknown { id })
        }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place in the table of uploads.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Grows with every touch.
    touched: u64,
    /// Empty once someone finishes it.
    open: Arc<Mutex<Option<Open>>>,
}

#[derive(Debug)]
pub(crate) struct Open {
    bucket: BucketName,
    draft: Draft,
    file: NamedTempFile,
    length: u64,
    md5: Md5,
    crc32c: u32,
}

/// What was counted and summed.
#[derive(Debug)]
pub(crate) struct Sums {
    pub(crate) length: u64,
    pub(crate) md5: String,
    pub(crate) crc32c: String,
}

impl Objects {
    /// Opens an upload. It lasts until it is finished, given up, or Homerun ends.
    pub fn begin(&self, bucket: &BucketName, draft: Draft) -> Result<UploadId, Error> {
        if !(1..=MAX_NAME_BYTES).contains(&draft.name.len()) || draft.name.contains(['\n', '\r']) {
            return Err(Error::Name);
        }
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(Error::Random)?;
        let id = UploadId(format!("{:032x}", u128::from_be_bytes(bytes)));
        let open = Open {
            bucket: bucket.clone(),
            draft,
            file: self.temp()?,
            length: 0,
            md5: Md5::new(),
            crc32c: 0,
        };
        let mut uploads = self.shared.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if uploads.len() >= MAX_UPLOADS {
            let oldest = uploads.iter().min_by_key(|(_, upload)| upload.touched);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                uploads.remove(&oldest);
            }
        }
        let touched = uploads
            .values()
            .map(|upload| upload.touched)
            .max()
            .map_or(0, |last| last + 1);
        let open = Arc::new(Mutex::new(Some(open)));
        uploads.insert(id.clone(), Upload { touched, open });
        Ok(id)
    }

    fn with<T>(&self, id: &UploadId, work: impl FnOnce(&mut Open) -> Result<T, Error>) -> Result<T, Error> {
        let unknown = || Error::UploadUnknown { id: id.to_string() };
        let open = {
            let mut uploads = self.shared.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            let touched = uploads
                .values()
                .map(|upload| upload.touched)
                .max()
                .map_or(0, |last| last + 1);
            let upload = uploads.get_mut(id).ok_or_else(unknown)?;
            upload.touched = touched;
            Arc::clone(&upload.open)
        };
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        work(open.as_mut().ok_or_else(unknown)?)
    }

    /// How many bytes an upload has: where the next ones must begin.
    pub fn length(&self, id: &UploadId) -> Result<u64, Error> {
        self.with(id, |open| Ok(open.length))
    }

    /// Adds bytes that begin at `at`; answers the new length.
    pub fn append(&self, id: &UploadId, at: u64, bytes: &[u8]) -> Result<u64, Error> {
        self.with(id, |open| {
            if at != open.length {
                return Err(Error::Offset {
                    expected: open.length,
                    got: at,
                });
            }
            let length = open.length + bytes.len() as u64;
            if length > MAX_OBJECT_BYTES {
                return Err(Error::TooLarge);
            }
            // At a position, so that a write that failed half way is overwritten by the next attempt.
            let written = open.file.as_file().write_all_at(bytes, open.length);
            written.map_err(Error::io("write", open.file.path()))?;
            open.md5.update(bytes);
            open.crc32c = crc32c::crc32c_append(open.crc32c, bytes);
            open.length = length;
            Ok(length)
        })
    }

    /// Ends an upload: its bytes become the object. One that does not hold is thrown away.
    pub fn finish(&self, id: &UploadId, now: Timestamp) -> Result<Object, Error> {
        let unknown = || Error::UploadUnknown { id: id.to_string() };
        let taken = {
            let mut uploads = self.shared.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            uploads.remove(id).ok_or_else(unknown)?
        };
        // Bytes still being written are waited for; those that come later find nothing.
        let open = taken.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let open = open.ok_or_else(unknown)?;
        let cut = open.file.as_file().set_len(open.length);
        cut.map_err(Error::io("cut", open.file.path()))?;
        let sums = Sums {
            length: open.length,
            md5: STANDARD.encode(open.md5.finalize()),
            crc32c: STANDARD.encode(open.crc32c.to_be_bytes()),
        };
        self.publish(&open.bucket, open.draft, sums, open.file, now)
    }

    /// Gives an upload up; one that is not open is no error.
    pub fn cancel(&self, id: &UploadId) {
        let mut uploads = self.shared.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.remove(id);
    }
}
