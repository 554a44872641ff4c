//! Service accounts: the key file that a client holds, and what a client signs with it.
//!
//! The file is Google's service-account key format, so that gcloud and every Google library read it unchanged.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::{AccountKey, ManagedKey, ServiceAccount, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::certificate::certificate;
use crate::grant::TOKEN_URI;
use crate::jwt::{CheckingKey, NotAKey, SigningKey};
use crate::key_file::{self, KeyFileError};
use crate::seal::{NotSealed, Seal};

/// Life of an assertion in seconds: the most that the token endpoint takes.
const ASSERTION_SECONDS: u64 = 3600;

/// Why a service-account key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("service-account key is not JSON of the expected form")]
    Json(#[source] serde_json::Error),
    #[error("service-account key has type {found:?}, expected \"service_account\"")]
    Type { found: String },
    #[error("private_key of {email} is not a PKCS#8 RSA private key of at least 2048 bits in PEM")]
    PrivateKey { email: String },
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("no service-account key at {}", path.display())]
    Missing { path: PathBuf },
    #[error("the cryptographic library made no key for {email}")]
    Generate { email: String },
    #[error("the key of {email} that is kept here cannot be opened")]
    Sealed { email: String, source: NotSealed },
}

/// A service-account key file, field for field as Google writes it.
#[derive(Clone, Serialize, Deserialize)]
pub struct ServiceAccountKey {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub project_id: String,
    pub private_key_id: String,
    pub(crate) private_key: String,
    pub client_email: String,
    pub client_id: String,
    pub token_uri: String,
    #[serde(default = "default_universe")]
    pub universe_domain: String,
}

fn default_universe() -> String {
    "googleapis.com".to_owned()
}

impl ServiceAccountKey {
    /// Parses the text of a key file; the private key is parsed too.
    pub fn from_json(text: &str) -> Result<Self, AccountError> {
        let key: Self = serde_json::from_str(text).map_err(AccountError::Json)?;
        if key.kind != "service_account" {
            return Err(AccountError::Type { found: key.kind });
        }
        key.signing_key()?;
        Ok(key)
    }

    /// Reads the key file at `path`, which must be open to its owner only.
    pub fn read(path: &Path) -> Result<Self, AccountError> {
        let text = key_file::read(path)?.ok_or_else(|| AccountError::Missing { path: path.to_owned() })?;
        Self::from_json(&text)
    }

    pub(crate) fn generate(project: &str, email: String, client_id: String) -> Result<Self, NotAKey> {
        let (signing, private_key) = SigningKey::generate()?;
        Ok(Self {
            kind: "service_account".to_owned(),
            project_id: project.to_owned(),
            private_key_id: signing.id().to_owned(),
            private_key,
            client_email: email,
            client_id,
            token_uri: TOKEN_URI.to_owned(),
            universe_domain: default_universe(),
        })
    }

    pub(crate) fn signing_key(&self) -> Result<SigningKey, AccountError> {
        SigningKey::from_pem(&self.private_key).map_err(|NotAKey| AccountError::PrivateKey {
            email: self.client_email.clone(),
        })
    }
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountKey")
            .field("client_email", &self.client_email)
            .field("private_key_id", &self.private_key_id)
            .finish_non_exhaustive()
    }
}

/// What an assertion asks the token endpoint for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    /// An access token with these scopes, separated by blanks.
    Scope(&'a str),
    /// An ID token for this audience.
    Audience(&'a str),
}

/// The signed assertion that a client posts to the token endpoint (RFC 7523) in exchange for a token. Good for one hour
/// from `now` (Unix seconds).
///
/// # Errors
/// [`AccountError::PrivateKey`] if the key in the file cannot sign.
pub fn sign_assertion(key: &ServiceAccountKey, ask: Ask<'_>, now: u64) -> Result<String, AccountError> {
    let mut claims = json!({
        "iss": key.client_email,
        "sub": key.client_email,
        "aud": key.token_uri,
        "iat": now,
        "exp": now + ASSERTION_SECONDS,
    });
    match ask {
        Ask::Scope(scope) => claims["scope"] = scope.into(),
        Ask::Audience(audience) => claims["target_audience"] = audience.into(),
    }
    Ok(key.signing_key()?.sign_as(&key.private_key_id, "JWT", &claims))
}

/// Makes a key for a client of the account: the file's text, which is shown once and kept nowhere, and what is kept.
/// Takes a tenth of a second of CPU.
///
/// # Errors
/// [`AccountError::Generate`].
pub fn new_account_key(
    project: &str,
    account: &ServiceAccount,
    now: Timestamp,
) -> Result<(String, AccountKey), AccountError> {
    let email = &account.email;
    let failed = |NotAKey| AccountError::Generate { email: email.clone() };
    let file = ServiceAccountKey::generate(project, email.clone(), account.unique_id.clone()).map_err(failed)?;
    let signing = file.signing_key()?;
    let kept = AccountKey {
        id: file.private_key_id.clone(),
        public: STANDARD.encode(signing.public().map_err(failed)?),
        certificate: certificate(&file.private_key, &account.unique_id, seconds(now), None).map_err(failed)?,
        created: now,
        expires: None,
        disabled: false,
    };
    let mut text = serde_json::to_string_pretty(&file).map_err(AccountError::Json)?;
    text.push('\n');
    Ok((text, kept))
}

/// Makes the key by which this Homerun signs in the account's name ([`sign_jwt`], [`sign_blob`]). It is the account's
/// alone: what it signs is never mistaken for a token of the issuer.
///
/// # Errors
/// [`AccountError::Generate`].
pub fn new_managed_key(seal: &Seal, account: &ServiceAccount, now: Timestamp) -> Result<ManagedKey, AccountError> {
    let failed = |NotAKey| AccountError::Generate {
        email: account.email.clone(),
    };
    let (signing, private) = SigningKey::generate().map_err(failed)?;
    Ok(ManagedKey {
        id: signing.id().to_owned(),
        certificate: certificate(&private, &account.unique_id, seconds(now), None).map_err(failed)?,
        sealed: seal.seal(&purpose(&account.unique_id), private.as_bytes()),
        created: now,
    })
}

/// Signs claims as the account, whatever they say.
///
/// # Errors
/// [`AccountError::Sealed`] when the key cannot be opened.
pub fn sign_jwt(
    seal: &Seal,
    account: &ServiceAccount,
    key: &ManagedKey,
    claims: &Value,
) -> Result<String, AccountError> {
    Ok(managed(seal, account, key)?.sign("JWT", claims))
}

/// Signs bytes as the account.
///
/// # Errors
/// [`AccountError::Sealed`] when the key cannot be opened.
pub fn sign_blob(
    seal: &Seal,
    account: &ServiceAccount,
    key: &ManagedKey,
    content: &[u8],
) -> Result<Vec<u8>, AccountError> {
    Ok(managed(seal, account, key)?.sign_bytes(content))
}

fn managed(seal: &Seal, account: &ServiceAccount, key: &ManagedKey) -> Result<SigningKey, AccountError> {
    let sealed = |source| AccountError::Sealed {
        email: account.email.clone(),
        source,
    };
    let text = seal.unseal(&purpose(&account.unique_id), &key.sealed).map_err(sealed)?;
    let text = String::from_utf8(text).map_err(|_| sealed(NotSealed))?;
    SigningKey::from_pem(&text).map_err(|NotAKey| sealed(NotSealed))
}

/// A sealed key does not open for another account, nor for another of the same name.
fn purpose(unique_id: &str) -> String {
    format!("managed key of {unique_id}")
}

/// The key of a client, for checking what it signed.
pub(crate) fn checking_key(key: &AccountKey) -> Option<CheckingKey> {
    let der = STANDARD.decode(&key.public).ok()?;
    CheckingKey::from_public(&der, key.id.clone()).ok()
}

fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_seconds()).unwrap_or(0)
}
