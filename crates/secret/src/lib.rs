//! Values of secrets: sealed before they are kept, opened for who may have them.
//!
//! Each version of a secret has a data key of its own, made by chance, under which its value is sealed (AES-256-GCM).
//! The data key is sealed in turn under a key of the key file, and lies beside the value. Both seals are bound to the
//! project, the secret and the version: a sealed value that is moved to another place does not open there. A new key of
//! the file seals the data keys anew ([`Vault::rewrap`]); the values stay as they are.
//!
//! What enters is a [`SecretValue`] or a [`SealedValue`] with its [`Owner`]; what leaves is the other one. Keys are read
//! from one file in the data directory, which may itself be under a passphrase. Who may have a value is asked elsewhere.

mod key_file;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use model::{ProjectId, SealedValue, SecretValue, SecretVersionKey};
use zeroize::Zeroizing;

pub use key_file::KeyFileError;
use key_file::{Key, KeyFile};

/// Bytes of a key.
const KEY: usize = 32;

/// Whose value it is. It does not open as anybody else's.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub project: &'a ProjectId,
    pub version: &'a SecretVersionKey,
}

impl Owner<'_> {
    /// What both seals are bound to. No part of it can hold a zero byte.
    fn bound(&self, what: &str) -> Vec<u8> {
        let SecretVersionKey { secret, number } = self.version;
        format!("homerun\0{what}\0{}\0{secret}\0{number}", self.project).into_bytes()
    }
}

/// Why a value does not open.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    #[error("the value of secret version {version} is under the key {key}, which the key file does not have")]
    NoKey { version: String, key: String },
    #[error("the value of secret version {version} does not open: it was changed, or is another version's")]
    Broken { version: String },
}

/// Seals and opens values. One for each data directory.
pub struct Vault {
    file: RwLock<KeyFile>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

impl Vault {
    /// Reads `dir/keys.json`, made if need be. With a passphrase the keys in it are under it; those of a file that was
    /// open before are put under it now. Takes its time with a passphrase; call it before serving.
    ///
    /// # Errors
    /// A file that cannot be read or written, that others may read, or whose passphrase is missing or another one.
    pub fn open(dir: &Path, passphrase: Option<&SecretValue>) -> Result<Self, KeyFileError> {
        let file = KeyFile::open(dir.join("keys.json"), passphrase)?;
        Ok(Self {
            file: RwLock::new(file),
        })
    }

    /// # Panics
    /// When the system has no random numbers.
    pub fn seal(&self, owner: Owner<'_>, value: &SecretValue) -> SealedValue {
        let data_key = random_key();
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let key = file.newest();
        SealedValue {
            key: key.id.clone(),
            data_key: seal(&key.key, &owner.bound("data key"), &*data_key),
            value: seal(&data_key, &owner.bound("value"), value.as_bytes()),
        }
    }

    /// # Errors
    /// What was not sealed here, for this owner, or was changed since.
    pub fn open_value(&self, owner: Owner<'_>, sealed: &SealedValue) -> Result<SecretValue, OpenError> {
        let data_key = self.data_key(owner, sealed)?;
        let value = open(&data_key, &owner.bound("value"), &sealed.value);
        value.map(SecretValue::new).ok_or_else(|| broken(owner))
    }

    /// The same value with its data key under the newest key. None: it is already.
    ///
    /// # Errors
    /// As [`Self::open_value`].
    pub fn rewrap(&self, owner: Owner<'_>, sealed: &SealedValue) -> Result<Option<SealedValue>, OpenError> {
        let data_key = self.data_key(owner, sealed)?;
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let key = file.newest();
        Ok((key.id != sealed.key).then(|| SealedValue {
            key: key.id.clone(),
            data_key: seal(&key.key, &owner.bound("data key"), &*data_key),
            value: sealed.value.clone(),
        }))
    }

    /// Adds a key, under which everything is sealed from now on. The others stay until [`Self::retire`].
    ///
    /// # Errors
    /// When the key file cannot be written; then nothing has changed.
    pub fn rotate(&self) -> Result<(), KeyFileError> {
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        file.add(random_key())
    }

    /// Forgets every key but the newest. What is still under another one is lost: rewrap it first.
    ///
    /// # Errors
    /// When the key file cannot be written; then nothing has changed.
    pub fn retire(&self) -> Result<(), KeyFileError> {
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        file.keep_newest()
    }

    /// Where the keys are.
    pub fn key_file(&self) -> PathBuf {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        file.path().to_owned()
    }

    fn data_key(&self, owner: Owner<'_>, sealed: &SealedValue) -> Result<Key, OpenError> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let key = file.find(&sealed.key).ok_or_else(|| OpenError::NoKey {
            version: owner.version.to_string(),
            key: sealed.key.chars().take(40).collect(),
        })?;
        let bytes = open(key, &owner.bound("data key"), &sealed.data_key).map(Zeroizing::new);
        let bytes = bytes.ok_or_else(|| broken(owner))?;
        let mut data_key = Key::default();
        if bytes.len() != KEY {
            return Err(broken(owner));
        }
        data_key.copy_from_slice(&bytes);
        Ok(data_key)
    }
}

fn broken(owner: Owner<'_>) -> OpenError {
    OpenError::Broken {
        version: owner.version.to_string(),
    }
}

fn random_key() -> Key {
    let mut key = Key::default();
    aws_lc_rs::rand::fill(&mut *key).expect("the system has random numbers");
    key
}

/// In base64: nonce, sealed bytes, tag.
fn seal(key: &Key, bound: &[u8], bytes: &[u8]) -> String {
    let key = RandomizedNonceKey::new(&AES_256_GCM, &**key).expect("a key of 32 bytes");
    // Room for the tag, so that nothing open stays behind in memory that was too small.
    let mut sealed = Vec::with_capacity(bytes.len() + AES_256_GCM.tag_len());
    sealed.extend_from_slice(bytes);
    let nonce = key
        .seal_in_place_append_tag(Aad::from(bound), &mut sealed)
        .expect("far fewer bytes than one key may seal");
    let mut all = nonce.as_ref().to_vec();
    all.extend_from_slice(&sealed);
    STANDARD.encode(all)
}

/// None: it was not sealed with this key and for this, or was changed.
fn open(key: &Key, bound: &[u8], sealed: &str) -> Option<Vec<u8>> {
    let mut all = STANDARD.decode(sealed).ok()?;
    let (nonce, sealed) = all.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let key = RandomizedNonceKey::new(&AES_256_GCM, &**key).expect("a key of 32 bytes");
    let opened = key.open_in_place(nonce, Aad::from(bound), sealed).ok()?.to_vec();
    // The open bytes were made in place.
    zeroize::Zeroize::zeroize(&mut all);
    Some(opened)
}

#[cfg(test)]
mod tests {
    use model::SecretName;

    use super::*;

    fn project(text: &str) -> ProjectId {
        ProjectId::parse(text).expect("an id")
    }

    fn version(secret: &str, number: u64) -> SecretVersionKey {
        SecretVersionKey {
            secret: SecretName::parse(secret).expect("a name"),
            number,
        }
    }

    fn vault() -> (tempfile::TempDir, Vault) {
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Vault::open(&dir.path().join("secrets"), None).expect("opens");
        (dir, vault)
    }

    #[test]
    fn what_is_sealed_opens_for_its_owner_alone() {
        let (_dir, vault) = vault();
        let (ours, other) = (project("my-project"), project("other-project"));
        let key = version("db-password", 3);
        let owner = Owner {
            project: &ours,
            version: &key,
        };
        for value in [Vec::new(), b"hunter2".to_vec(), vec![0; 64 << 10]] {
            let value = SecretValue::new(value);
            let sealed = vault.seal(owner, &value);
            assert_eq!(vault.open_value(owner, &sealed), Ok(value.clone()));
            assert_ne!(vault.seal(owner, &value), sealed, "another data key each time");
            for stranger in [
                Owner {
                    project: &other,
                    version: &key,
                },
                Owner {
                    project: &ours,
                    version: &version("db-password", 4),
                },
                Owner {
                    project: &ours,
                    version: &version("db-passwor", 3),
                },
            ] {
                let refused = vault.open_value(stranger, &sealed);
                assert!(matches!(refused, Err(OpenError::Broken { .. })), "{stranger:?}");
            }
        }
    }

    #[test]
    fn what_was_changed_does_not_open() {
        let (_dir, vault) = vault();
        let (project, version) = (project("my-project"), version("s", 1));
        let owner = Owner {
            project: &project,
            version: &version,
        };
        let (one, two) = (
            vault.seal(owner, &SecretValue::new(b"one".to_vec())),
            vault.seal(owner, &SecretValue::new(b"two".to_vec())),
        );
        let mut mixed = one.clone();
        mixed.value = two.value;
        let mut short = one.clone();
        short.value.truncate(8);
        let mut garbage = one.clone();
        garbage.data_key = "!".to_owned();
        for changed in [mixed, short, garbage] {
            let refused = vault.open_value(owner, &changed);
            assert_eq!(
                refused,
                Err(OpenError::Broken {
                    version: "s/1".to_owned()
                })
            );
        }
        let mut foreign = one;
        foreign.key = "another".to_owned();
        let refused = vault.open_value(owner, &foreign).expect_err("no such key");
        assert!(refused.to_string().contains("key another"), "{refused}");
    }

    #[test]
    fn a_new_key_seals_the_data_key_anew() {
        let (dir, vault) = vault();
        let (project, version) = (project("my-project"), version("s", 1));
        let owner = Owner {
            project: &project,
            version: &version,
        };
        let value = SecretValue::new(b"hunter2".to_vec());
        let before = vault.seal(owner, &value);
        assert_eq!(vault.rewrap(owner, &before), Ok(None));
        vault.rotate().expect("written");
        let after = vault.rewrap(owner, &before).expect("opens").expect("another key");
        assert_eq!(after.value, before.value, "the value is not sealed again");
        assert_ne!((&after.key, &after.data_key), (&before.key, &before.data_key));
        assert_eq!(vault.open_value(owner, &before), Ok(value.clone()), "both open");
        vault.retire().expect("written");
        assert!(matches!(vault.open_value(owner, &before), Err(OpenError::NoKey { .. })));
        drop(vault);
        let again = Vault::open(&dir.path().join("secrets"), None).expect("opens");
        assert_eq!(again.open_value(owner, &after), Ok(value));
    }
}
