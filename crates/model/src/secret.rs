//! Secrets and their versions (Secret Manager's words): what is known of them, and how a value is held.
//!
//! A value is open in a [`SecretValue`] only, which prints as dots, cannot be written down, and is wiped when it is
//! dropped. What is kept of it is a [`SealedValue`], which only the crate `secret` makes and opens.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{ProjectNumber, SecretName, Timestamp};

/// Longest value of one version (Secret Manager's limit).
pub const MAX_SECRET_BYTES: usize = 64 << 10;
/// Most versions of one secret that are not destroyed.
pub const MAX_SECRET_VERSIONS: usize = 1000;
/// Most aliases of one secret (Secret Manager's limit, as the two below).
pub const MAX_SECRET_ALIASES: usize = 50;
pub const MAX_SECRET_LABELS: usize = 64;
/// Of all keys and values together.
pub const MAX_SECRET_ANNOTATION_BYTES: usize = 16 << 10;

/// What must not be seen. Wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As a variable of an environment may hold it: UTF-8 without a zero byte.
    pub fn as_variable(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok().filter(|text| !text.contains('\0'))
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("....")
    }
}

/// A value under a data key of its own, which lies beside it under a key of the key file. Texts in base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedValue {
    /// The id of the key that the data key is under.
    pub key: String,
    /// The data key: nonce, sealed key.
    pub data_key: String,
    /// The value: nonce, sealed bytes.
    pub value: String,
}

impl fmt::Debug for SealedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedValue")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Where a client said the value is to be kept. There is one place here; it is kept and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replication {
    Automatic,
    UserManaged { locations: Vec<String> },
}

/// A secret: everything but its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub name: SecretName,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Names of versions.
    pub aliases: BTreeMap<String, u64>,
    pub replication: Replication,
    /// From then on it is gone, with all its versions.
    pub expires: Option<Timestamp>,
    /// How many versions were ever made; the number of the newest. No number is used twice.
    pub made: u64,
    /// Counts changes: the etag.
    pub changes: u64,
}

impl Secret {
    pub fn new(name: SecretName, replication: Replication, now: Timestamp) -> Self {
        Self {
            name,
            created: now,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            aliases: BTreeMap::new(),
            replication,
            expires: None,
            made: 0,
            changes: 1,
        }
    }

    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// The number that a version's name means. None: there is no such version.
    pub fn number(&self, version: &VersionRef) -> Option<u64> {
        match version {
            VersionRef::Latest => Some(self.made).filter(|made| *made > 0),
            VersionRef::Number(number) => Some(*number),
            VersionRef::Alias(alias) => self.aliases.get(alias).copied(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SecretVersionKey {
    pub secret: SecretName,
    /// From 1.
    pub number: u64,
}

impl fmt::Display for SecretVersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.secret, self.number)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVersion {
    pub key: SecretVersionKey,
    pub created: Timestamp,
    pub state: SecretVersionState,
    /// The client sent a checksum of the value, and it was right.
    pub checked: bool,
    /// Counts changes: the etag.
    pub changes: u64,
}

/// What a version still has of its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretVersionState {
    Enabled(SealedValue),
    /// Not given out, until it is enabled again.
    Disabled(SealedValue),
    /// For good.
    Destroyed {
        at: Timestamp,
    },
}

impl SecretVersionState {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Enabled(_) => "ENABLED",
            Self::Disabled(_) => "DISABLED",
            Self::Destroyed { .. } => "DESTROYED",
        }
    }

    /// What is kept of the value.
    pub fn sealed(&self) -> Option<&SealedValue> {
        match self {
            Self::Enabled(sealed) | Self::Disabled(sealed) => Some(sealed),
            Self::Destroyed { .. } => None,
        }
    }
}

/// A version as callers name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VersionRef {
    /// The newest that was made, whatever its state.
    Latest,
    Number(u64),
    Alias(String),
}

impl VersionRef {
    /// # Errors
    /// A text that names no version.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(number) = text.parse::<u64>()
            && number > 0
            && !text.starts_with(['+', '0'])
        {
            return Ok(Self::Number(number));
        }
        if Self::is_alias(text) {
            return Ok(Self::Alias(text.to_owned()));
        }
        Err(format!(
            "\"{}\" is no version of a secret: a number from 1, latest, or an alias",
            text.chars().take(80).collect::<String>()
        ))
    }

    /// A letter, then letters, digits, hyphens and underscores, at most 63; not `latest` and not `NEW`.
    pub fn is_alias(text: &str) -> bool {
        text.len() <= 63
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !matches!(text, "latest" | "NEW")
    }
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Alias(alias) => f.write_str(alias),
        }
    }
}

impl TryFrom<String> for VersionRef {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<VersionRef> for String {
    fn from(version: VersionRef) -> Self {
        version.to_string()
    }
}

/// Which version of which secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SecretRef {
    pub secret: SecretName,
    pub version: VersionRef,
}

impl SecretRef {
    /// `projects/PROJECT/secrets/SECRET/versions/VERSION`, of a project by its number or its id.
    pub fn path(&self, project: impl fmt::Display) -> String {
        format!("projects/{project}/secrets/{}/versions/{}", self.secret, self.version)
    }
}

/// Why a version has no value to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    NoSecret,
    /// Whoever asks may not read it.
    Denied,
    NoVersion,
    Disabled {
        number: u64,
    },
    Destroyed {
        number: u64,
    },
}

impl Unavailable {
    /// In the words of Cloud Run, for whoever names the version.
    /// `reader` is who was to read it, such as `Revision service account A`.
    pub fn told(self, of: &SecretRef, project: ProjectNumber, reader: &str) -> String {
        let numbered = |number: u64| SecretRef {
            secret: of.secret.clone(),
            version: VersionRef::Number(number),
        };
        match self {
            Self::NoSecret | Self::NoVersion => format!("Secret {} was not found", of.path(project)),
            Self::Denied => format!(
                "Permission denied on secret: {} for {reader}. The service account used must be \
                 granted the 'Secret Manager Secret Accessor' role (roles/secretmanager.secretAccessor) at the secret, \
                 project or higher level.",
                of.path(project)
            ),
            Self::Disabled { number } => {
                format!("Secret {} is in DISABLED state", numbered(number).path(project))
            }
            Self::Destroyed { number } => {
                format!("Secret {} is in DESTROYED state", numbered(number).path(project))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_prints_as_dots() {
        let value = SecretValue::new(b"hunter2".to_vec());
        assert_eq!(format!("{value:?} {:?}", Some(&value)), ".... Some(....)");
        assert_eq!(value.as_variable(), Some("hunter2"));
        assert_eq!(SecretValue::new(vec![b'a', 0]).as_variable(), None);
        assert_eq!(SecretValue::new(vec![0xff]).as_variable(), None);
    }

    #[test]
    fn versions() {
        for (text, version) in [
            ("latest", VersionRef::Latest),
            ("7", VersionRef::Number(7)),
            ("prod-1_b", VersionRef::Alias("prod-1_b".to_owned())),
        ] {
            assert_eq!(VersionRef::parse(text), Ok(version.clone()), "{text}");
            assert_eq!(version.to_string(), text);
        }
        let long = "a".repeat(64);
        for text in ["", "0", "07", "+7", "-1", "NEW", "1a", "a b", "a/b", long.as_str()] {
            assert!(VersionRef::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_versions() {
        let name = SecretName::parse("s").expect("a name");
        let mut secret = Secret::new(name, Replication::Automatic, Timestamp::from_micros(5));
        assert_eq!(secret.number(&VersionRef::Latest), None);
        secret.made = 3;
        secret.aliases.insert("good".to_owned(), 2);
        assert_eq!(secret.number(&VersionRef::Latest), Some(3));
        assert_eq!(secret.number(&VersionRef::Alias("good".to_owned())), Some(2));
        assert_eq!(secret.number(&VersionRef::Alias("bad".to_owned())), None);
        secret.expires = Some(Timestamp::from_micros(9));
        assert!(!secret.is_expired(Timestamp::from_micros(8)));
        assert!(secret.is_expired(Timestamp::from_micros(9)));
    }
}
