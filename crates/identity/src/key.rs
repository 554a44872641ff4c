//! The keys of one Homerun, kept in one directory: made at the first start, the same ever after.
//!
//! | file | mode | holds |
//! |---|---|---|
//! | `issuer.pem` | 0600 | the private key that signs tokens |
//! | `owner-key.json` | 0600 | the owner's service-account key, for gcloud and our own CLI |
//!
//! The server keeps only the public half of the owner's key in memory. Removing `owner-key.json` and starting again
//! makes a new one: the old file's holder can then get no more tokens.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand;

use crate::account::{AccountError, ServiceAccountKey};
use crate::jwt::{CheckingKey, NotAKey, SigningKey};
use crate::key_file::{self, KeyFileError};
use crate::token::{Caller, Issuer};

const ISSUER_FILE: &str = "issuer.pem";
const OWNER_FILE: &str = "owner-key.json";

/// Why the keys could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("{} holds no PKCS#8 RSA private key of at least 2048 bits in PEM", path.display())]
    NotAKey { path: PathBuf },
    #[error("{} is no usable service-account key", path.display())]
    Owner { path: PathBuf, source: AccountError },
    #[error("the cryptographic library made no key for {}", path.display())]
    Generate { path: PathBuf },
}

/// All keys of this Homerun.
#[derive(Debug)]
pub struct Keys {
    issuer: Issuer,
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
    /// the project id that a new owner account is made in; an account that exists keeps the one it was made in.
    ///
    /// # Errors
    /// A file that cannot be read, written or understood, and one that others than its owner may read.
    pub fn open(dir: &Path, project: &str) -> Result<Self, KeyError> {
        key_file::directory(dir, 0o700)?;
        let issuer_file = dir.join(ISSUER_FILE);
        let text = read_or_make(&issuer_file, || Ok(SigningKey::generate()?.1))?;
        let issuer = SigningKey::from_pem(&text)
            .and_then(Issuer::new)
            .map_err(|NotAKey| KeyError::NotAKey { path: issuer_file })?;

        let owner_key_file = dir.join(OWNER_FILE);
        let text = read_or_make(&owner_key_file, || {
            let key = ServiceAccountKey::generate(project, "owner", new_client_id()?)?;
            let mut text = serde_json::to_string_pretty(&key).map_err(|_| NotAKey)?;
            text.push('\n');
            Ok(text)
        })?;
        let owner = Owner::from_key_text(&text).map_err(|source| KeyError::Owner {
            path: owner_key_file.clone(),
            source,
        })?;
        Ok(Self {
            issuer,
            owner,
            owner_key_file,
        })
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

/// 21 digits, as the unique id of a Google account has.
fn new_client_id() -> Result<String, NotAKey> {
    let mut bytes = [0; 20];
    rand::fill(&mut bytes).map_err(|_| NotAKey)?;
    let digits = bytes.iter().map(|byte| char::from(b'0' + byte % 10));
    Ok(std::iter::once('1').chain(digits).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        let metadata = fs::metadata(path).expect("the file is there");
        metadata.permissions().mode() & 0o7777
    }

    #[test]
    fn keys_are_made_once_and_found_again() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = base.path().join("deep/identity");
        let first = Keys::open(&dir, "my-project").expect("opens");
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("issuer.pem")), 0o600);
        assert_eq!(mode(first.owner_key_file()), 0o600);
        let again = Keys::open(&dir, "another-project").expect("opens again");
        assert_eq!(first.issuer().jwks(), again.issuer().jwks());
        assert_eq!(first.owner().caller(), again.owner().caller());
        assert_eq!(again.owner().caller().email, "owner@my-project.iam.gserviceaccount.com");
    }

    #[test]
    fn two_first_starts_agree() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys: Vec<Keys> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| Keys::open(base.path(), "p").expect("opens")))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().expect("no panic"))
                .collect()
        });
        assert_eq!(keys[0].issuer().jwks(), keys[1].issuer().jwks());
        assert_eq!(keys[0].owner().caller(), keys[1].owner().caller());
    }

    #[test]
    fn a_key_open_to_others_is_refused() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(base.path(), "p").expect("opens");
        fs::set_permissions(keys.owner_key_file(), fs::Permissions::from_mode(0o644)).expect("chmod");
        let refusal = Keys::open(base.path(), "p").expect_err("0644 is refused");
        assert!(matches!(
            refusal,
            KeyError::File(KeyFileError::Exposed { mode: 0o644, .. })
        ));
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let base = tempfile::tempdir().expect("a temporary directory");
        Keys::open(base.path(), "p").expect("opens");
        let path = base.path().join("issuer.pem");
        let text = fs::read_to_string(&path).expect("reads");
        fs::write(&path, &text[..text.len() / 2]).expect("cuts");
        let refusal = Keys::open(base.path(), "p").expect_err("half a key");
        assert!(refusal.to_string().contains("issuer.pem"), "{refusal}");
        assert_eq!(fs::read_to_string(&path).expect("reads").len(), text.len() / 2);
    }

    #[test]
    fn the_owner_key_file_has_the_fields_gcloud_reads() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(base.path(), "my-project").expect("opens");
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
        let keys = Keys::open(base.path(), "p").expect("opens");
        let account = ServiceAccountKey::read(keys.owner_key_file()).expect("reads");
        let issuer_pem = fs::read_to_string(base.path().join("issuer.pem")).expect("reads");
        let shown = format!("{keys:?} {keys:#?} {account:?} {account:#?}");
        for pem in [issuer_pem.as_str(), account.private_key.as_str()] {
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
