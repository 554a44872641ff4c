//! The keys of one Homerun, kept in one directory and made at the first start.
//!
//! | file | mode | holds |
//! |---|---|---|
//! | `seal.key` | 0600 | the key under which everything secret is sealed |
//! | `signing-keys` | 0600 | the private keys that sign ID tokens, sealed; exchanged every two weeks |
//! | `owner-key.json` | 0600 | the owner's service-account key, for gcloud and our own CLI |
//!
//! `issuer.pem`, the one signing key of earlier versions, is taken into `signing-keys` and removed.
//!
//! The server keeps only the public half of the owner's key in memory. Removing `owner-key.json` and starting again
//! makes a new one: the old file's holder can then get no more tokens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::account::{AccountError, ServiceAccountKey};
use crate::jwt::{self, CheckingKey, NotAKey};
use crate::key_file::{self, KeyFileError};
use crate::ring::{Ring, RingFile};
use crate::seal::Seal;
use crate::token::{Caller, Issuer};

/// The one signing key of earlier versions.
const FORMER_FILE: &str = "issuer.pem";
const RING_FILE: &str = "signing-keys";
const OWNER_FILE: &str = "owner-key.json";

/// Why the keys could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("{} holds no PKCS#8 RSA private key of at least 2048 bits in PEM", path.display())]
    NotAKey { path: PathBuf },
    #[error("{} holds no key of 64 hexadecimal digits", path.display())]
    NotASeal { path: PathBuf },
    #[error(
        "{} is not there, and without it {} cannot be opened: put it back, or remove the latter to begin with new keys",
        path.display(),
        sealed.display()
    )]
    SealMissing { path: PathBuf, sealed: PathBuf },
    #[error("{} cannot be opened with seal.key: one of the two is damaged, or of another Homerun", path.display())]
    Sealed { path: PathBuf },
    #[error("cannot remove {}, whose key is kept sealed now", path.display())]
    Former { path: PathBuf, source: io::Error },
    #[error("{} is no usable service-account key", path.display())]
    Owner { path: PathBuf, source: AccountError },
    #[error("the cryptographic library made no key for {}", path.display())]
    Generate { path: PathBuf },
}

/// All keys of this Homerun.
#[derive(Debug)]
pub struct Keys {
    issuer: Issuer,
    ring_file: RingFile,
    seal: Arc<Seal>,
    owner: Owner,
    owner_key_file: PathBuf,
}

/// The service account of the one who owns this Homerun, as the server knows it: without its private key.
#[derive(Debug)]
pub struct Owner {
    caller: Caller,
    key: CheckingKey,
}

impl Keys {
    /// Opens the keys in `dir` (made with mode 0700 if absent), and makes those that are not there yet. `project` is
    /// the project id that a new owner account is made in; an account that exists keeps the one it was made in. `now` in
    /// Unix seconds.
    ///
    /// # Errors
    /// A file that cannot be read, written or understood, and one that others than its owner may read.
    pub fn open(dir: &Path, project: &str, now: u64) -> Result<Self, KeyError> {
        key_file::directory(dir, 0o700)?;
        let ring_file = RingFile {
            path: dir.join(RING_FILE),
        };
        let seal = Arc::new(Seal::open(dir, &ring_file.path)?);
        let ring = open_ring(dir, &ring_file, &seal, now)?;
        let issuer = Issuer::new(ring, seal.clone());

        let owner_key_file = dir.join(OWNER_FILE);
        let text = read_or_make(&owner_key_file, || {
            let key = ServiceAccountKey::generate(
                project,
                format!("owner@{project}.iam.gserviceaccount.com"),
                new_unique_id(),
            )?;
            let mut text = serde_json::to_string_pretty(&key).map_err(|_| NotAKey)?;
            text.push('\n');
            Ok(text)
        })?;
        let owner = Owner::from_key_text(&text).map_err(|source| KeyError::Owner {
            path: owner_key_file.clone(),
            source,
        })?;
        let keys = Self {
            issuer,
            ring_file,
            seal,
            owner,
            owner_key_file,
        };
        keys.rotate(now)?;
        Ok(keys)
    }

    /// Makes the signing keys what they have to be at `now`; says whether that changed them. To be called now and then:
    /// once an hour is plenty.
    ///
    /// # Errors
    /// A file that cannot be written; then the keys are as they were.
    pub fn rotate(&self, now: u64) -> Result<bool, KeyError> {
        let path = || self.ring_file.path.clone();
        let turned = self.issuer.ring().turned(now);
        let Some(ring) = turned.map_err(|NotAKey| KeyError::Generate { path: path() })? else {
            return Ok(false);
        };
        // first on the disk: a token must not be signed by a key that the next start does not know
        self.ring_file.write(&ring, &self.seal)?;
        self.issuer.put_ring(ring);
        Ok(true)
    }

    /// Seals what is to be kept secret at rest.
    pub fn seal(&self) -> &Arc<Seal> {
        &self.seal
    }

    /// Mints and checks this Homerun's tokens.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The service-account key file for clients of the owner.
    pub fn owner_key_file(&self) -> &Path {
        &self.owner_key_file
    }
}

impl Owner {
    fn from_key_text(text: &str) -> Result<Self, AccountError> {
        let file = ServiceAccountKey::from_json(text)?;
        let no_key = |NotAKey| AccountError::PrivateKey {
            email: file.client_email.clone(),
        };
        let key = file
            .signing_key()?
            .checking_key()
            .map_err(no_key)?
            .known_as(file.private_key_id.clone());
        Ok(Self {
            caller: Caller {
                email: file.client_email,
                subject: file.client_id,
            },
            key,
        })
    }

    /// The owner as a caller: the email that IAM members and `gcloud auth list` show.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn key(&self) -> &CheckingKey {
        &self.key
    }
}

fn read_or_make(path: &Path, make: impl FnOnce() -> Result<String, NotAKey>) -> Result<String, KeyError> {
    if let Some(text) = key_file::read(path)? {
        return Ok(text);
    }
    let text = make().map_err(|NotAKey| KeyError::Generate { path: path.to_owned() })?;
    key_file::create(path, &text, 0o600)?;
    // another first start may have been quicker, and then its key is the one
    Ok(key_file::read(path)?.unwrap_or(text))
}

fn open_ring(dir: &Path, file: &RingFile, seal: &Seal, now: u64) -> Result<Ring, KeyError> {
    let former = dir.join(FORMER_FILE);
    let forget = |path: &Path| match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(KeyError::Former {
            path: path.to_owned(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    };
    if let Some(ring) = Ring::read(&file.path, seal)? {
        forget(&former)?;
        return Ok(ring);
    }
    let ring = match key_file::read(&former)? {
        Some(text) => Ring::import(text, now).map_err(|NotAKey| KeyError::NotAKey { path: former.clone() })?,
        None => Ring::new(now).map_err(|NotAKey| KeyError::Generate {
            path: file.path.clone(),
        })?,
    };
    key_file::create(&file.path, &ring.sealed(seal), 0o600)?;
    forget(&former)?;
    // another first start may have been quicker, and then its keys are the ones
    Ok(Ring::read(&file.path, seal)?.unwrap_or(ring))
}

/// 21 digits, as the unique id of a Google account has.
pub fn new_unique_id() -> String {
    let digits = jwt::random::<20>();
    let digits = digits.iter().map(|byte| char::from(b'0' + byte % 10));
    std::iter::once('1').chain(digits).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn mode(path: &Path) -> u32 {
        let metadata = fs::metadata(path).expect("the file is there");
        metadata.permissions().mode() & 0o7777
    }

    #[test]
    fn keys_are_made_once_and_found_again() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = base.path().join("deep/identity");
        let first = Keys::open(&dir, "my-project", NOW).expect("opens");
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("signing-keys")), 0o600);
        assert_eq!(mode(&dir.join("seal.key")), 0o600);
        assert_eq!(mode(first.owner_key_file()), 0o600);
        let again = Keys::open(&dir, "another-project", NOW).expect("opens again");
        assert_eq!(first.issuer().jwks(NOW), again.issuer().jwks(NOW));
        assert_eq!(first.owner().caller(), again.owner().caller());
        assert_eq!(again.owner().caller().email, "owner@my-project.iam.gserviceaccount.com");
    }

    #[test]
    fn two_first_starts_agree() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys: Vec<Keys> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| Keys::open(base.path(), "p", NOW).expect("opens")))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().expect("no panic"))
                .collect()
        });
        assert_eq!(keys[0].issuer().jwks(NOW), keys[1].issuer().jwks(NOW));
        assert_eq!(keys[0].owner().caller(), keys[1].owner().caller());
    }

    #[test]
    fn a_key_open_to_others_is_refused() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(base.path(), "p", NOW).expect("opens");
        fs::set_permissions(keys.owner_key_file(), fs::Permissions::from_mode(0o644)).expect("chmod");
        let refusal = Keys::open(base.path(), "p", NOW).expect_err("0644 is refused");
        assert!(matches!(
            refusal,
            KeyError::File(KeyFileError::Exposed { mode: 0o644, .. })
        ));
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let base = tempfile::tempdir().expect("a temporary directory");
        Keys::open(base.path(), "p", NOW).expect("opens");
        for name in ["signing-keys", "seal.key"] {
            let path = base.path().join(name);
            let text = fs::read_to_string(&path).expect("reads");
            fs::write(&path, &text[..text.len() / 2]).expect("cuts");
            let refusal = Keys::open(base.path(), "p", NOW).expect_err("half a key");
            assert!(refusal.to_string().contains(name), "{refusal}");
            assert_eq!(fs::read_to_string(&path).expect("reads").len(), text.len() / 2);
            fs::write(&path, &text).expect("mends");
        }
        fs::remove_file(base.path().join("seal.key")).expect("removes");
        let refusal = Keys::open(base.path(), "p", NOW).expect_err("sealed for ever");
        assert!(matches!(refusal, KeyError::SealMissing { .. }), "{refusal}");
    }

    #[test]
    fn the_key_of_an_earlier_version_is_taken_over() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let (key, text) = crate::jwt::SigningKey::generate().expect("a key");
        let path = base.path().join("issuer.pem");
        key_file::create(&path, &text, 0o600).expect("writes");
        let keys = Keys::open(base.path(), "p", NOW).expect("opens");
        assert_eq!(keys.issuer().jwks(NOW)["keys"][0]["kid"], key.id());
        assert!(!path.exists(), "it is kept sealed now");
        fs::write(&path, "no key").expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        Keys::open(base.path(), "p", NOW).expect("the rest of an interrupted start is no harm");
        assert!(!path.exists());
    }

    #[test]
    fn signing_keys_are_exchanged_in_time_and_kept() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(base.path(), "p", NOW).expect("opens");
        let count = |keys: &Keys, now| keys.issuer().jwks(now)["keys"].as_array().map_or(0, Vec::len);
        assert!(!keys.rotate(NOW + 3600).expect("nothing to do"));
        let ahead = NOW + crate::ring::ROTATE - crate::ring::AHEAD;
        let caller = keys.owner().caller().clone();
        let token = keys.issuer().mint_identity(&caller, "https://a", ahead);
        assert!(keys.rotate(ahead).expect("the next"));
        assert_eq!(count(&keys, ahead), 2);
        let again = Keys::open(base.path(), "p", ahead).expect("opens again");
        assert_eq!(again.issuer().jwks(ahead), keys.issuer().jwks(ahead));
        assert_eq!(again.issuer().sender(&token, |_| true, ahead + 3599), Ok(caller));
        let later = NOW + crate::ring::ROTATE + crate::ring::OVERLAP;
        let later_keys = Keys::open(base.path(), "p", later).expect("a start turns them too");
        assert_eq!(count(&later_keys, later), 1);
    }

    #[test]
    fn the_owner_key_file_has_the_fields_gcloud_reads() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(base.path(), "my-project", NOW).expect("opens");
        let text = fs::read_to_string(keys.owner_key_file()).expect("reads");
        let file: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!(file["type"], "service_account");
        assert_eq!(file["project_id"], "my-project");
        assert_eq!(file["token_uri"], "https://oauth2.googleapis.com/token");
        assert_eq!(file["universe_domain"], "googleapis.com");
        assert_eq!(file["private_key_id"].as_str().map(str::len), Some(40));
        assert_eq!(file["client_id"].as_str().map(str::len), Some(21));
        let pem = file["private_key"].as_str().expect("text");
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "PKCS#8");
        assert!(pem.ends_with("-----END PRIVATE KEY-----\n"));
    }

    #[test]
    fn no_debug_text_holds_a_private_key() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(base.path(), "p", NOW).expect("opens");
        let account = ServiceAccountKey::read(keys.owner_key_file()).expect("reads");
        let seal = fs::read_to_string(base.path().join("seal.key")).expect("reads");
        let shown = format!("{keys:?} {keys:#?} {account:?} {account:#?}");
        assert!(!shown.contains(seal.trim()));
        {
            let pem = account.private_key.as_str();
            for line in pem.lines().filter(|line| line.len() > 20) {
                let body = line.trim_matches('-');
                assert!(!shown.contains(body), "a line of a key is in {shown}");
            }
            let der = pem::parse(pem).expect("pem").into_contents();
            let bytes = format!("{:?}", &der[40..60]);
            assert!(!shown.contains(bytes.trim_matches(['[', ']'])));
        }
        assert!(!shown.contains("PRIVATE KEY"));
    }
}
