//! Uploads: blobs on their way in, in as many pieces as the client likes. Each is a file named by its id, and whoever knows
//! the id goes on with it, also after the server has ended, however it ended: the next one finds the file, tells how long
//! it is, and sums what is there before it takes more.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::IoSlice;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::{NamedTempFile, TempPath};

use crate::blob::BlobWriter;
use crate::digest::Digest;
use crate::disk::{Disk, is_absent};
use crate::quota::{Quota, Reserved};
use crate::{Error, Images, blocking};

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

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn unknown(&self) -> Error {
        Error::UploadUnknown { upload: self.clone() }
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
            Err(upload.unknown())
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
struct Upload {
    /// Grows with every touch, so that the lowest is the one to give up.
    touched: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
enum State {
    /// An earlier server's, with the length that it had at the start.
    Left(Reserved),
    Open(BlobWriter),
    /// Finished or given up, whoever still asks.
    Over,
}

/// All uploads of a store.
#[derive(Debug)]
pub(crate) struct Uploads(Mutex<HashMap<UploadId, Upload>>);

impl Uploads {
    /// What an earlier server left. Beyond the limit the oldest go.
    pub(crate) fn find(disk: &Disk, quota: &Arc<Quota>) -> Result<Uploads, Error> {
        let mut found = Vec::new();
        for name in Disk::names(&disk.uploads())? {
            let Ok(upload) = name.parse::<UploadId>() else { continue };
            let path = disk.upload(&upload);
            let metadata = fs::metadata(&path).map_err(Error::io("stat", &path))?;
            let modified = metadata.modified().map_err(Error::io("stat", &path))?;
            found.push((modified, upload, metadata.len()));
        }
        found.sort_by_key(|(modified, ..)| *modified);
        let beyond = found.len().saturating_sub(MAX_UPLOADS);
        for (_, upload, _) in found.drain(..beyond) {
            Disk::remove(&disk.upload(&upload))?;
        }
        let mut uploads = HashMap::new();
        for ((_, upload, length), touched) in found.into_iter().zip(0..) {
            let mut reserved = quota.reserve();
            reserved.grow_to(length)?;
            let state = Arc::new(Mutex::new(State::Left(reserved)));
            uploads.insert(upload, Upload { touched, state });
        }
        Ok(Uploads(Mutex::new(uploads)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UploadId, Upload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of an upload, as touched now.
    fn touch(&self, upload: &UploadId) -> Result<Arc<Mutex<State>>, Error> {
        let mut uploads = self.lock();
        let touched = next_touch(&uploads);
        let found = uploads.get_mut(upload).ok_or_else(|| upload.unknown())?;
        found.touched = touched;
        Ok(Arc::clone(&found.state))
    }

    fn take(&self, upload: &UploadId) -> Result<Upload, Error> {
        self.lock().remove(upload).ok_or_else(|| upload.unknown())
    }

    /// Takes a new one in. Answers the one that has to go for it.
    fn put(&self, upload: UploadId, state: State) -> Option<(UploadId, Upload)> {
        let mut uploads = self.lock();
        let oldest = (uploads.len() >= MAX_UPLOADS)
            .then(|| uploads.iter().min_by_key(|(_, upload)| upload.touched))
            .flatten()
            .map(|(oldest, _)| oldest.clone());
        let given_up = oldest.and_then(|oldest| uploads.remove_entry(&oldest));
        let touched = next_touch(&uploads);
        let state = Arc::new(Mutex::new(state));
        uploads.insert(upload, Upload { touched, state });
        given_up
    }
}

fn next_touch(uploads: &HashMap<UploadId, Upload>) -> u64 {
    let last = uploads.values().map(|upload| upload.touched).max();
    last.map_or(0, |last| last + 1)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The blob in the making. One that was left is opened where it lies: an upgrade's predecessor may have written to it,
    /// or finished it, since this server began.
    fn open(&mut self, disk: &Disk, upload: &UploadId) -> Result<&mut BlobWriter, Error> {
        if let State::Left(_) = self {
            let path = disk.upload(upload);
            let file = match File::options().read(true).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if is_absent(&error) => {
                    *self = State::Over;
                    return Err(upload.unknown());
                }
                Err(error) => return Err(Error::io("open", &path)(error)),
            };
            let length = file.metadata().map_err(Error::io("stat", &path))?.len();
            let kept = TempPath::try_from_path(&path).map_err(Error::io("open", &path))?;
            let mut file = NamedTempFile::from_parts(file, kept);
            file.disable_cleanup(true);
            let State::Left(mut reserved) = std::mem::replace(self, State::Over) else {
                unreachable!("looked at above, under the same lock");
            };
            let room = reserved.grow_to(length);
            *self = match room {
                Ok(()) => State::Open(BlobWriter::go_on(file, length, reserved)),
                Err(_) => State::Left(reserved),
            };
            room?;
        }
        match self {
            State::Open(writer) => Ok(writer),
            State::Left(_) | State::Over => Err(upload.unknown()),
        }
    }

    /// Throws away what there is, whatever it is.
    fn give_up(&mut self, disk: &Disk, upload: &UploadId) -> Result<(), Error> {
        match std::mem::replace(self, State::Over) {
            State::Left(_) | State::Open(_) => Disk::remove(&disk.upload(upload)).map(drop),
            State::Over => Ok(()),
        }
    }
}

impl Images {
    /// Opens an upload. It lasts until it is finished or cancelled, [`MAX_UPLOADS`] newer ones came, or it is
    /// [forgotten](Self::forget_uploads).
    pub async fn begin_upload(&self) -> Result<UploadId, Error> {
        let images = self.clone();
        blocking(move || {
            let upload = UploadId::draw()?;
            let shared = &images.shared;
            let path = shared.disk.upload(&upload);
            let mut file = tempfile::Builder::new();
            file.prefix(upload.as_str()).rand_bytes(0).disable_cleanup(true);
            let file = file.tempfile_in(shared.disk.uploads());
            let file = file.map_err(Error::io("create", &path))?;
            let writer = BlobWriter::go_on(file, 0, shared.quota.reserve());
            if let Some((oldest, given_up)) = shared.uploads.put(upload.clone(), State::Open(writer)) {
                tracing::warn!(upload = %oldest, limit = MAX_UPLOADS, "gave up the oldest of too many open uploads");
                lock(&given_up.state).give_up(&shared.disk, &oldest)?;
            }
            Ok(upload)
        })
        .await
    }

    /// How many bytes an upload has: where its next chunk must begin.
    pub async fn upload_length(&self, upload: &UploadId) -> Result<u64, Error> {
        self.with_upload(upload, |writer| Ok(writer.length())).await
    }

    /// Adds a chunk, in at most 1,024 pieces, and answers the new length. `at` is where the client says it begins; `None`
    /// takes its word that it continues. After an error the bytes before this chunk are still there.
    pub async fn append(&self, upload: &UploadId, at: Option<u64>, chunk: Vec<Bytes>) -> Result<u64, Error> {
        let of = upload.clone();
        self.with_upload(upload, move |writer| {
            let expected = writer.length();
            if let Some(got) = at.filter(|at| *at != expected) {
                return Err(Error::UploadOffset {
                    upload: of,
                    expected,
                    got,
                });
            }
            let mut pieces: Vec<IoSlice<'_>> = chunk.iter().map(|piece| IoSlice::new(piece)).collect();
            writer.append(&mut pieces)?;
            Ok(writer.length())
        })
        .await
    }

    async fn with_upload<T: Send + 'static>(
        &self,
        upload: &UploadId,
        work: impl FnOnce(&mut BlobWriter) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let state = self.shared.uploads.touch(upload)?;
        let (images, upload) = (self.clone(), upload.clone());
        blocking(move || work(lock(&state).open(&images.shared.disk, &upload)?)).await
    }

    /// Ends an upload. It must have the digest `expected`, else it is thrown away.
    pub async fn finish_upload(&self, upload: &UploadId, expected: Digest) -> Result<(), Error> {
        let taken = self.shared.uploads.take(upload)?;
        let (images, upload) = (self.clone(), upload.clone());
        blocking(move || {
            // A chunk still being written is waited for; one that comes later finds nothing.
            let mut state = lock(&taken.state);
            if let Err(error) = state.open(&images.shared.disk, &upload) {
                state.give_up(&images.shared.disk, &upload)?;
                return Err(error);
            }
            match std::mem::replace(&mut *state, State::Over) {
                State::Open(writer) => writer.finish(&images, expected),
                State::Left(_) | State::Over => Err(upload.unknown()),
            }
        })
        .await
    }

    /// Gives an upload up.
    pub async fn cancel_upload(&self, upload: &UploadId) -> Result<(), Error> {
        let taken = self.shared.uploads.take(upload)?;
        let (images, upload) = (self.clone(), upload.clone());
        blocking(move || lock(&taken.state).give_up(&images.shared.disk, &upload)).await
    }

    /// Gives up the uploads to which nothing was added since `before`. Answers how many those were.
    pub async fn forget_uploads(&self, before: SystemTime) -> Result<usize, Error> {
        let images = self.clone();
        blocking(move || {
            let disk = &images.shared.disk;
            let all: Vec<UploadId> = images.shared.uploads.lock().keys().cloned().collect();
            let mut forgotten = 0;
            for upload in all {
                let path = disk.upload(&upload);
                let added = fs::metadata(&path).and_then(|metadata| metadata.modified());
                let is_stale = match added {
                    Ok(added) => added < before,
                    // Finished by an upgrade's predecessor, or in this moment.
                    Err(error) if is_absent(&error) => true,
                    Err(error) => return Err(Error::io("stat", &path)(error)),
                };
                if is_stale && let Ok(taken) = images.shared.uploads.take(&upload) {
                    lock(&taken.state).give_up(disk, &upload)?;
                    forgotten += 1;
                }
            }
            Ok(forgotten)
        })
        .await
    }
}
