//! Service accounts: the key file that a client holds, and what a client signs with it.
//!
//! The file is Google's service-account key format, so that gcloud and every Google library read it unchanged.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::grant::TOKEN_URI;
use crate::jwt::{NotAKey, SigningKey};
use crate::key_file::{self, KeyFileError};

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

    pub(crate) fn generate(project: &str, name: &str, client_id: String) -> Result<Self, NotAKey> {
        let (signing, private_key) = SigningKey::generate()?;
        Ok(Self {
            kind: "service_account".to_owned(),
            project_id: project.to_owned(),
            private_key_id: signing.id().to_owned(),
            private_key,
            client_email: format!("{name}@{project}.iam.gserviceaccount.com"),
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
