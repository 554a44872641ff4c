//! Objects of buckets as content: bytes under a bucket and a name, with their sums and generations.
//!
//! This crate owns one directory. What enters: bytes as they arrive, gathered in a file and summed on their way; what
//! leaves: an object's description, or its open file. Nothing is held in memory but one piece. An object becomes visible
//! by one rename of its description, after its bytes are on the disk; a name of an object never becomes a file's name,
//! only its digest does. Which buckets there are is the store's; HTTP is the API's. All calls block on the disk.
//!
//! ```text
//! objects/<bucket>/<sha256 of the name>.json        the description
//! objects/<bucket>/<sha256 of the name>.<generation> its bytes
//! tmp/                                               uploads under way, swept at the start
//! ```

mod upload;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{BucketName, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

pub use crate::upload::{MAX_UPLOADS, UploadId};

/// Largest object in bytes: 16 GiB.
pub const MAX_OBJECT_BYTES: u64 = 16 << 30;
/// Longest name of an object in bytes (Cloud Storage's limit).
pub const MAX_NAME_BYTES: usize = 1024;

/// What is known of an object beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub name: String,
    pub generation: u64,
    pub size: u64,
    pub content_type: Option<String>,
    /// Base64, as Cloud Storage shows it.
    pub md5: String,
    /// Base64 of the four bytes, highest first.
    pub crc32c: String,
    pub created: Timestamp,
    /// The user's own.
    pub metadata: std::collections::BTreeMap<String, String>,
}

/// What a client says of an object before its bytes come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    pub name: String,
    pub content_type: Option<String>,
    pub metadata: std::collections::BTreeMap<String, String>,
    /// What the bytes must sum up to, where the client says so (base64).
    pub md5: Option<String>,
    pub crc32c: Option<String>,
    /// 0: there must be no such object yet.
    pub if_generation: Option<u64>,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("object name must have 1 to {MAX_NAME_BYTES} bytes and no line break")]
    Name,
    #[error("no such object: {bucket}/{name}")]
    Absent { bucket: BucketName, name: String },
    #[error("object is larger than {MAX_OBJECT_BYTES} bytes")]
    TooLarge,
    #[error("{sum} was to be {expected} but is {actual}")]
    Sum {
        sum: &'static str,
        expected: String,
        actual: String,
    },
    #[error("the object's generation is {actual}, not {expected}")]
    Generation { expected: u64, actual: u64 },
    #[error("upload {id} is not open")]
    UploadUnknown { id: String },
    /// Bytes that do not continue where the last ones ended.
    #[error("the upload continues at byte {expected}, not at {got}")]
    Offset { expected: u64, got: u64 },
    #[error("cannot draw a random upload id")]
    Random(#[source] getrandom::Error),
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

/// All objects of one data directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    uploads: Mutex<HashMap<UploadId, upload::Upload>>,
    /// Whoever changes which object a name is.
    changing: Mutex<()>,
}

impl Objects {
    /// Opens the directory, making what is missing, and sweeps what an earlier process left unfinished.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let tmp = dir.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(Error::io("sweep", &tmp))?;
        }
        for made in [dir.join("objects"), tmp] {
            fs::create_dir_all(&made).map_err(Error::io("create", &made))?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                dir: dir.to_owned(),
                uploads: Mutex::default(),
                changing: Mutex::new(()),
            }),
        })
    }

    fn bucket(&self, bucket: &BucketName) -> PathBuf {
        self.shared.dir.join("objects").join(bucket.as_str())
    }

    fn description(&self, bucket: &BucketName, name: &str) -> PathBuf {
        self.bucket(bucket).join(format!("{}.json", key(name)))
    }

    fn content(&self, bucket: &BucketName, name: &str, generation: u64) -> PathBuf {
        self.bucket(bucket).join(format!("{}.{generation}", key(name)))
    }

    fn temp(&self) -> Result<NamedTempFile, Error> {
        let tmp = self.shared.dir.join("tmp");
        NamedTempFile::new_in(&tmp).map_err(Error::io("create a file in", &tmp))
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of an object.
    pub fn get(&self, bucket: &BucketName, name: &str) -> Result<Object, Error> {
        let path = self.description(bucket, name);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| Error::io("read", &path)(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Absent {
                bucket: bucket.clone(),
                name: name.chars().take(80).collect(),
            }),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// The bytes of an object, with what is known of it.
    pub fn read(&self, bucket: &BucketName, name: &str) -> Result<(Object, File), Error> {
        // Not replaced between the look and the opening.
        let _changing = self.changing();
        let object = self.get(bucket, name)?;
        let path = self.content(bucket, name, object.generation);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        Ok((object, file))
    }

    /// All objects of a bucket whose names begin with `prefix`, by name.
    pub fn list(&self, bucket: &BucketName, prefix: &str) -> Result<Vec<Object>, Error> {
        let dir = self.bucket(bucket);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &dir)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let text = match fs::read(&path) {
                Ok(text) => text,
                // Deleted in this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", &path)(error)),
            };
            let object: Object =
                serde_json::from_slice(&text).map_err(|error| Error::io("read", &path)(error.into()))?;
            if object.name.starts_with(prefix) {
                found.push(object);
            }
        }
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes an object.
    pub fn delete(&self, bucket: &BucketName, name: &str) -> Result<(), Error> {
        let _changing = self.changing();
        let object = self.get(bucket, name)?;
        let path = self.description(bucket, name);
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        sync(&self.bucket(bucket))?;
        let path = self.content(bucket, name, object.generation);
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    /// Gives finished bytes the name of their object; an older object of that name is gone.
    fn publish(
        &self,
        bucket: &BucketName,
        draft: Draft,
        bytes: upload::Sums,
        file: NamedTempFile,
        now: Timestamp,
    ) -> Result<Object, Error> {
        for (sum, expected, actual) in [
            ("md5Hash", &draft.md5, &bytes.md5),
            ("crc32c", &draft.crc32c, &bytes.crc32c),
        ] {
            if let Some(expected) = expected.as_ref().filter(|expected| *expected != actual) {
                return Err(Error::Sum {
                    sum,
                    expected: expected.clone(),
                    actual: actual.clone(),
                });
            }
        }
        let dir = self.bucket(bucket);
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        file.as_file().sync_all().map_err(Error::io("write", file.path()))?;
        let _changing = self.changing();
        let before = match self.get(bucket, &draft.name) {
            Ok(before) => Some(before.generation),
            Err(Error::Absent { .. }) => None,
            Err(error) => return Err(error),
        };
        let actual = before.unwrap_or(0);
        if let Some(expected) = draft.if_generation.filter(|expected| *expected != actual) {
            return Err(Error::Generation { expected, actual });
        }
        // Microseconds, as Cloud Storage's are; never one that was used.
        let generation = u64::try_from(now.as_micros()).unwrap_or(0).max(actual + 1);
        let object = Object {
            name: draft.name,
            generation,
            size: bytes.length,
            content_type: draft.content_type,
            md5: bytes.md5,
            crc32c: bytes.crc32c,
            created: now,
            metadata: draft.metadata,
        };
        let content = self.content(bucket, &object.name, generation);
        file.persist(&content)
            .map_err(|error| Error::io("write", &content)(error.error))?;
        let place = self.description(bucket, &object.name);
        let mut text = self.temp()?;
        let written = serde_json::to_vec(&object).expect("plain data");
        text.write_all(&written)
            .and_then(|()| text.as_file().sync_all())
            .map_err(Error::io("write", &place))?;
        text.persist(&place)
            .map_err(|error| Error::io("write", &place)(error.error))?;
        sync(&dir)?;
        if let Some(before) = before {
            let path = self.content(bucket, &object.name, before);
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(object)
    }
}

/// The digest of a name, which is a file's name whatever the name holds.
fn key(name: &str) -> String {
    let mut key = String::with_capacity(64);
    for byte in Sha256::digest(name.as_bytes()) {
        for nibble in [byte >> 4, byte & 15] {
            key.push(char::from_digit(u32::from(nibble), 16).expect("a nibble"));
        }
    }
    key
}

fn sync(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Objects, BucketName) {
        let dir = tempfile::tempdir().expect("a folder");
        let objects = Objects::open(dir.path()).expect("opens");
        (dir, objects, BucketName::parse("my-bucket").expect("a name"))
    }

    fn draft(name: &str) -> Draft {
        Draft {
            name: name.to_owned(),
            ..Draft::default()
        }
    }

    fn put(objects: &Objects, bucket: &BucketName, draft: Draft, content: &[u8]) -> Result<Object, Error> {
        let id = objects.begin(bucket, draft)?;
        objects.append(&id, 0, content)?;
        objects.finish(&id, Timestamp::from_micros(1_800_000_000_000_000))
    }

    fn content(objects: &Objects, bucket: &BucketName, name: &str) -> Vec<u8> {
        let (object, file) = objects.read(bucket, name).expect("there");
        let content = io::read_to_string(file).expect("text").into_bytes();
        assert_eq!(content.len() as u64, object.size);
        content
    }

    #[test]
    fn an_object_has_its_sums_and_a_new_generation_each_time() {
        let (dir, objects, bucket) = open();
        let name = "services/../../etc/passwd";
        let one = put(&objects, &bucket, draft(name), b"hello").expect("put");
        assert_eq!(
            (one.size, one.md5.as_str(), one.crc32c.as_str()),
            (5, "XUFAKrxLKna5cZ2REBfFkg==", "mnG7TA==")
        );
        let two = put(&objects, &bucket, draft(name), b"again").expect("put");
        assert!(two.generation > one.generation, "also when the clock stands");
        assert_eq!(content(&objects, &bucket, name), b"again");
        assert_eq!(objects.list(&bucket, "services/").expect("listed"), [two]);
        assert!(objects.list(&bucket, "x").expect("listed").is_empty());
        let files = fs::read_dir(dir.path().join("objects/my-bucket"))
            .expect("there")
            .count();
        assert_eq!(files, 2, "the older bytes are gone, and nothing is elsewhere");
        drop(objects);
        let objects = Objects::open(dir.path()).expect("opens again");
        assert_eq!(content(&objects, &bucket, name), b"again");
        objects.delete(&bucket, name).expect("deleted");
        assert!(matches!(objects.get(&bucket, name), Err(Error::Absent { .. })));
        assert!(matches!(objects.delete(&bucket, name), Err(Error::Absent { .. })));
        assert_eq!(
            fs::read_dir(dir.path().join("objects/my-bucket"))
                .expect("there")
                .count(),
            0
        );
    }

    #[test]
    fn an_upload_goes_on_where_it_broke_off() {
        let (dir, objects, bucket) = open();
        let id = objects.begin(&bucket, draft("a")).expect("begun");
        assert_eq!(objects.append(&id, 0, b"one ").expect("appended"), 4);
        let refused = objects.append(&id, 0, b"one ").expect_err("twice");
        assert!(matches!(refused, Error::Offset { expected: 4, got: 0 }), "{refused}");
        let again: UploadId = id.to_string().parse().expect("an id");
        assert_eq!(objects.length(&again).expect("open"), 4);
        objects.append(&again, 4, b"two").expect("appended");
        assert!(objects.get(&bucket, "a").is_err(), "visible before its end");
        objects.finish(&id, Timestamp::from_micros(1)).expect("finished");
        assert_eq!(content(&objects, &bucket, "a"), b"one two");
        assert!(objects.length(&id).is_err());
        assert!("../../x".parse::<UploadId>().is_err());
        assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("there").count(), 0);
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        let (_dir, objects, bucket) = open();
        let wrong = Draft {
            md5: Some("AAAA".to_owned()),
            ..draft("a")
        };
        assert!(matches!(
            put(&objects, &bucket, wrong, b"x"),
            Err(Error::Sum { sum: "md5Hash", .. })
        ));
        let new = Draft {
            if_generation: Some(0),
            ..draft("a")
        };
        let made = put(&objects, &bucket, new.clone(), b"x").expect("new");
        let refused = put(&objects, &bucket, new, b"y").expect_err("there already");
        assert!(matches!(refused, Error::Generation { expected: 0, actual } if actual == made.generation));
        for name in ["", "a\nb", &"x".repeat(1025)] {
            assert!(
                matches!(objects.begin(&bucket, draft(name)), Err(Error::Name)),
                "{name}"
            );
        }
    }
}
