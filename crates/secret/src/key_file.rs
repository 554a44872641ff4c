//! The file of keys: 0600 in a directory of 0700, written whole or not at all.
//!
//! ```json
//! {"version": 1, "passphrase": null, "keys": [{"id": "1f0c...", "key": "base64"}]}
//! ```
//!
//! The last key is the newest. With a passphrase each key is sealed under a key that Argon2id makes of it, and
//! `passphrase` says how.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use model::SecretValue;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{KEY, open, random_key, seal};

pub(crate) type Key = Zeroizing<[u8; KEY]>;

/// Why keys could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} has mode {mode:04o}: keys must not be open to group or others (0600)", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} is no key file: {why}", path.display())]
    Content { path: PathBuf, why: String },
    #[error("the keys in {} are under a passphrase, and none was given", path.display())]
    Locked { path: PathBuf },
    #[error("the keys in {} are under another passphrase than the one that was given", path.display())]
    Passphrase { path: PathBuf },
}

/// What the file says.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    passphrase: Option<Stretch>,
    keys: Vec<KeptKey>,
}

#[derive(Serialize, Deserialize)]
struct KeptKey {
    id: String,
    key: Zeroizing<String>,
}

/// How a passphrase becomes a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stretch {
    salt: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Stretch {
    fn new() -> Self {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).expect("the system has random numbers");
        Self {
            salt: STANDARD.encode(salt),
            memory_kib: 64 << 10,
            passes: 3,
            lanes: 1,
        }
    }

    fn key(&self, passphrase: &SecretValue) -> Result<Key, String> {
        // A file that somebody changed must not take the machine's memory.
        if self.memory_kib > 1 << 20 || self.passes > 100 || self.lanes > 16 {
            return Err("its passphrase asks for more than 1 GiB, 100 passes or 16 lanes".to_owned());
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY)).map_err(|e| e.to_string())?;
        let salt = STANDARD
            .decode(&self.salt)
            .map_err(|_| "its salt is no base64".to_owned())?;
        let mut key = Key::default();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), &salt, &mut *key)
            .map_err(|error| error.to_string())?;
        Ok(key)
    }
}

pub(crate) struct NamedKey {
    pub(crate) id: String,
    pub(crate) key: Key,
}

/// The keys, and how they are written.
pub(crate) struct KeyFile {
    path: PathBuf,
    /// Oldest first; never empty.
    keys: Vec<NamedKey>,
    lock: Option<(Stretch, Key)>,
}

const BOUND: &[u8] = b"homerun\0key file";

impl KeyFile {
    pub(crate) fn open(path: PathBuf, passphrase: Option<&SecretValue>) -> Result<Self, KeyFileError> {
        let bad = |why: String| KeyFileError::Content {
            path: path.clone(),
            why,
        };
        let lock = |stretch: Stretch, passphrase: &SecretValue| {
            let key = stretch.key(passphrase).map_err(bad)?;
            Ok::<_, KeyFileError>((stretch, key))
        };
        let Some(content) = read(&path)? else {
            let lock = passphrase
                .map(|passphrase| lock(Stretch::new(), passphrase))
                .transpose()?;
            let file = Self {
                keys: vec![named(random_key())],
                path,
                lock,
            };
            file.write(&file.keys)?;
            return Ok(file);
        };
        if content.version != 1 {
            return Err(bad(format!("its version is {}, this Homerun knows 1", content.version)));
        }
        let was_locked = content.passphrase.is_some();
        let lock = match (content.passphrase, passphrase) {
            (Some(_), None) => return Err(KeyFileError::Locked { path }),
            (Some(stretch), Some(passphrase)) => Some(lock(stretch, passphrase)?),
            (None, Some(passphrase)) => Some(lock(Stretch::new(), passphrase)?),
            (None, None) => None,
        };
        let mut keys = Vec::new();
        for kept in content.keys {
            let bytes = match &lock {
                Some((_, under)) if was_locked => {
                    let opened = open(under, BOUND, &kept.key);
                    opened.ok_or_else(|| KeyFileError::Passphrase { path: path.clone() })?
                }
                Some(_) | None => {
                    let decoded = STANDARD.decode(kept.key.as_bytes());
                    decoded.map_err(|_| bad(format!("the key {} is no base64", kept.id)))?
                }
            };
            let bytes = Zeroizing::new(bytes);
            let mut key = Key::default();
            if bytes.len() != KEY {
                return Err(bad(format!("the key {} has {} bytes, not {KEY}", kept.id, bytes.len())));
            }
            key.copy_from_slice(&bytes);
            keys.push(NamedKey { id: kept.id, key });
        }
        if keys.is_empty() {
            return Err(bad("it holds no key".to_owned()));
        }
        let file = Self { path, keys, lock };
        if file.lock.is_some() && !was_locked {
            file.write(&file.keys)?;
        }
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn newest(&self) -> &NamedKey {
        self.keys.last().expect("a key file holds a key")
    }

    pub(crate) fn find(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id).map(|named| &named.key)
    }

    pub(crate) fn add(&mut self, key: Key) -> Result<(), KeyFileError> {
        self.keys.push(named(key));
        let written = self.write(&self.keys);
        if written.is_err() {
            self.keys.pop();
        }
        written
    }

    pub(crate) fn keep_newest(&mut self) -> Result<(), KeyFileError> {
        let last = self.keys.len() - 1;
        self.write(&self.keys[last..])?;
        self.keys.drain(..last);
        Ok(())
    }

    /// Replaces the file, durably.
    fn write(&self, keys: &[NamedKey]) -> Result<(), KeyFileError> {
        let content = Content {
            version: 1,
            passphrase: self.lock.as_ref().map(|(stretch, _)| stretch.clone()),
            keys: keys
                .iter()
                .map(|named| KeptKey {
                    id: named.id.clone(),
                    key: Zeroizing::new(match &self.lock {
                        Some((_, under)) => seal(under, BOUND, named.key.as_slice()),
                        None => STANDARD.encode(named.key.as_slice()),
                    }),
                })
                .collect(),
        };
        let text = Zeroizing::new(serde_json::to_string(&content).expect("plain data"));
        replace(&self.path, &text).map_err(|source| KeyFileError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

fn named(key: Key) -> NamedKey {
    let mut id = [0; 8];
    aws_lc_rs::rand::fill(&mut id).expect("the system has random numbers");
    NamedKey {
        id: format!("{:016x}", u64::from_be_bytes(id)),
        key,
    }
}

/// None: there is no such file.
fn read(path: &Path) -> Result<Option<Content>, KeyFileError> {
    let failed = |source| KeyFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let text = Zeroizing::new(io::read_to_string(file).map_err(failed)?);
    let content = serde_json::from_str(&text).map_err(|error| KeyFileError::Content {
        path: path.to_owned(),
        // Its own text would quote what it found.
        why: format!("not the JSON of one (line {}, column {})", error.line(), error.column()),
    });
    content.map(Some)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> SecretValue {
        SecretValue::new(text.as_bytes().to_vec())
    }

    #[test]
    fn keys_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secrets/keys.json");
        let mut made = KeyFile::open(path.clone(), None).expect("made");
        made.add(random_key()).expect("written");
        let read = KeyFile::open(path.clone(), None).expect("read");
        let all = |file: &KeyFile| -> Vec<(String, [u8; KEY])> {
            file.keys.iter().map(|named| (named.id.clone(), *named.key)).collect()
        };
        assert_eq!(all(&read), all(&made));
        assert_eq!(read.keys.len(), 2);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().expect("one"))), (0o600, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        let refused = KeyFile::open(path, None).err().expect("open to the group");
        assert!(refused.to_string().contains("0640"), "{refused}");
    }

    #[test]
    fn a_passphrase_locks_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.json");
        let open = KeyFile::open(path.clone(), None).expect("made");
        let plain = STANDARD.encode(*open.newest().key);
        assert!(fs::read_to_string(&path).expect("text").contains(&plain));
        let locked = KeyFile::open(path.clone(), Some(&passphrase("correct horse"))).expect("locked now");
        assert_eq!(*locked.newest().key, *open.newest().key);
        assert!(!fs::read_to_string(&path).expect("text").contains(&plain));
        let again = KeyFile::open(path.clone(), Some(&passphrase("correct horse"))).expect("the same");
        assert_eq!(*again.newest().key, *open.newest().key);
        for (given, expected) in [
            (None, "none was given"),
            (Some(passphrase("wrong")), "another passphrase"),
        ] {
            let refused = KeyFile::open(path.clone(), given.as_ref()).err().expect(expected);
            assert!(refused.to_string().contains(expected), "{refused}");
        }
    }

    #[test]
    fn what_is_no_key_file_is_named_without_its_text() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.json");
        for text in [
            "hunter2",
            r#"{"version": 2, "passphrase": null, "keys": []}"#,
            r#"{"version": 1, "passphrase": null, "keys": []}"#,
            r#"{"version": 1, "passphrase": null, "keys": [{"id": "a", "key": "aHVudGVyMg=="}]}"#,
        ] {
            replace(&path, text).expect("written");
            let refused = KeyFile::open(path.clone(), None).err().expect(text).to_string();
            assert!(refused.contains("is no key file"), "{refused}");
            assert!(
                !refused.contains("hunter2") && !refused.contains("aHVudGVyMg"),
                "{refused}"
            );
        }
    }
}
