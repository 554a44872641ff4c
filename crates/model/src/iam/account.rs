//! Service accounts, their keys, and local groups.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Member;
use crate::{ProjectId, Timestamp};

/// Most keys that one account may have, as at Google.
pub const MAX_ACCOUNT_KEYS: usize = 10;

/// What an instance, a build or a program outside can be. Deleted and made again under the same name it is another:
/// its unique id tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccount {
    pub email: String,
    /// 21 digits, never given twice.
    pub unique_id: String,
    pub display_name: String,
    pub description: String,
    pub disabled: bool,
    pub created: Timestamp,
    /// The number of the write that made it what it is (the etag).
    pub version: u64,
    /// Those whose private half its users hold.
    pub keys: Vec<AccountKey>,
    /// The one whose private half stays here, for signing in the account's name. Made when first asked for.
    pub managed: Option<ManagedKey>,
}

/// A key as it is kept: its public half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountKey {
    /// 40 hexadecimal digits.
    pub id: String,
    /// The public half: base64 of X.509's `SubjectPublicKeyInfo`.
    pub public: String,
    /// The certificate of the public half, in PEM.
    pub certificate: String,
    pub created: Timestamp,
    /// None: it holds until it is deleted.
    pub expires: Option<Timestamp>,
    pub disabled: bool,
}

/// A key that signs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedKey {
    pub id: String,
    /// The certificate of the public half, in PEM.
    pub certificate: String,
    /// The private half, sealed by `identity`.
    pub sealed: String,
    pub created: Timestamp,
}

impl ServiceAccount {
    /// The e-mail of the account of this name.
    pub fn email_of(id: &str, project: &ProjectId) -> String {
        format!("{id}@{project}.iam.gserviceaccount.com")
    }

    /// Checks the name of a new account: the part before the `@`.
    ///
    /// # Errors
    /// 6 to 30 small letters, digits and hyphens; a letter first, no hyphen last.
    pub fn check_id(id: &str) -> Result<(), AccountIdError> {
        let bytes = id.as_bytes();
        let valid = (6..=30).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && bytes[bytes.len() - 1] != b'-';
        if valid {
            Ok(())
        } else {
            Err(AccountIdError(id.chars().take(80).collect()))
        }
    }

    /// The key of this id if it can be used now.
    pub fn usable_key(&self, id: &str, now: Timestamp) -> Option<&AccountKey> {
        self.keys
            .iter()
            .find(|key| key.id == id && !key.disabled && key.expires.is_none_or(|end| now < end))
    }

    /// How a policy names it once it is gone.
    pub fn as_deleted(&self) -> Member {
        Member::DeletedServiceAccount {
            email: self.email.clone(),
            unique_id: self.unique_id.clone(),
        }
    }
}

/// Not the name of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountIdError(String);

impl std::fmt::Display for AccountIdError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "\"{}\" is no id of a service account: 6 to 30 small letters, digits and hyphens, a letter first and no hyphen last",
            self.0
        )
    }
}

impl std::error::Error for AccountIdError {}

/// Members under one name, for policies of this Homerun alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// In small letters.
    pub email: String,
    /// Users, service accounts, and other groups.
    pub members: Vec<Member>,
}

/// An access token that was taken back: refused until it would have ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedToken {
    pub id: String,
    pub until: Timestamp,
}

/// Every local group by its e-mail.
pub type Groups = BTreeMap<String, Arc<Group>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_ids() {
        for id in ["abcdef", "my-runner-1", "a23456789012345678901234567890"] {
            assert_eq!(ServiceAccount::check_id(id), Ok(()), "{id}");
        }
        for id in [
            "",
            "abcde",
            "a234567890123456789012345678901",
            "1abcdef",
            "-abcdef",
            "abcdef-",
            "Abcdef",
            "abc_def",
        ] {
            assert!(ServiceAccount::check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn keys_that_are_over_or_off_are_not_usable() {
        let at = Timestamp::from_micros;
        let key = |id: &str, expires: Option<i64>, disabled| AccountKey {
            id: id.to_owned(),
            public: String::new(),
            certificate: String::new(),
            created: at(0),
            expires: expires.map(at),
            disabled,
        };
        let account = ServiceAccount {
            email: "runner@p.iam.gserviceaccount.com".to_owned(),
            unique_id: "1".to_owned(),
            display_name: String::new(),
            description: String::new(),
            disabled: false,
            created: at(0),
            version: 1,
            keys: vec![key("a", None, false), key("b", Some(10), false), key("c", None, true)],
            managed: None,
        };
        let usable = |id: &str, now| account.usable_key(id, at(now)).is_some();
        assert!(usable("a", 100) && usable("b", 9));
        assert!(!usable("b", 10) && !usable("c", 0) && !usable("d", 0));
    }
}
