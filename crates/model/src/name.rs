//! Names, each with its own grammar, so that a tag cannot be passed for a revision.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a text is not a name of its kind. Holds the text, for the caller to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameError {
    pub kind: &'static str,
    pub text: String,
    pub rule: &'static str,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.text.chars().take(80).collect();
        write!(f, "{} \"{text}\" is invalid: {}", self.kind, self.rule)
    }
}

impl std::error::Error for NameError {}

/// Lower-case letters, digits and hyphens, a letter first, no hyphen last (a DNS-1035 label).
fn is_label(text: &str, longest: usize) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= longest
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// # Errors
            /// When the text breaks the grammar; the error says which rule.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError { kind: $kind, text: text.to_owned(), rule: $rule })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                (*name.0).to_owned()
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A service's name: at most 49 characters, so that `TAG---SERVICE-HASH-RR` still fits a DNS label, and no `---`,
    /// or a service `a---b` would have the host of the tag `a` of a service `b`.
    ServiceName,
    "service name",
    "only lowercase letters, digits and hyphens; must begin with a letter, may not end with a hyphen, must not contain three hyphens in a row, and must be less than 50 characters",
    |text| is_label(text, 49) && !text.contains("---")
);

name!(
    /// A revision's name: at most 63 characters. That it starts with its service's name is checked by [`RevisionName::belongs_to`].
    RevisionName,
    "revision name",
    "only lowercase, digits, and hyphens; must begin with letter, and may not end with hyphen; must be less than 64 characters",
    |text| is_label(text, 63)
);

name!(
    /// A traffic tag. Cloud Run: a DNS label; with the service it must fit 63 characters of host (checked where both are known).
    Tag,
    "tag",
    "only lowercase letters, digits and hyphens; must begin with a letter, may not end with a hyphen, and at most 46 characters",
    |text| is_label(text, 46)
);

name!(
    /// A secret's name, as Secret Manager has them.
    SecretName,
    "secret name",
    "1 to 255 letters, digits, hyphens and underscores",
    |text| (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
);

name!(
    /// A project's id, 6 to 30 characters, as Google Cloud has them.
    ProjectId,
    "project id",
    "6 to 30 lowercase letters, digits and hyphens; must begin with a letter and may not end with a hyphen",
    |text| text.len() >= 6 && is_label(text, 30)
);

name!(
    /// A region such as `us-central1`. Any label is a region of this Homerun.
    Region,
    "region",
    "only lowercase letters, digits and hyphens; must begin with a letter, and at most 40 characters",
    |text| is_label(text, 40)
);

name!(
    /// A repository of images (Artifact Registry).
    RepositoryName,
    "repository name",
    "1 to 63 lowercase letters, digits and hyphens; must begin with a letter and may not end with a hyphen",
    |text| is_label(text, 63)
);

name!(
    /// A bucket of Cloud Storage: 3 to 63 characters, or up to 222 with dots and at most 63 between two of them. It may
    /// be a directory's name: no `..`, no separator.
    BucketName,
    "bucket name",
    "3 to 63 lowercase letters, digits, hyphens, underscores and dots; must begin and end with a letter or digit, with no two dots in a row, not like an IP address, and without \"goog\" at its start or \"google\" in it",
    is_bucket
);

fn is_bucket(text: &str) -> bool {
    let is_end = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let longest = if text.contains('.') { 222 } else { 63 };
    (3..=longest).contains(&bytes.len())
        && bytes.iter().all(|b| is_end(b) || b"-_.".contains(b))
        && text.split('.').all(|part| (1..=63).contains(&part.len()))
        && bytes.first().is_some_and(is_end)
        && bytes.last().is_some_and(is_end)
        && text.parse::<std::net::Ipv4Addr>().is_err()
        && !text.starts_with("goog")
        && !text.contains("google")
}

impl RevisionName {
    /// `SERVICE-NNNNN-xyz`: the name Cloud Run makes. `suffix` is chance, chosen by the caller.
    pub fn numbered(service: &ServiceName, template_generation: u64, suffix: [char; 3]) -> Self {
        let suffix: String = suffix.iter().collect();
        Self(format!("{service}-{template_generation:05}-{suffix}").into())
    }

    /// Whether the name begins with `SERVICE-`, as every revision's must.
    pub fn belongs_to(&self, service: &ServiceName) -> bool {
        self.0
            .strip_prefix(service.as_str())
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with('-'))
    }
}

/// Letters of which made suffixes consist: no vowels, so that no word appears.
pub(crate) const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

impl RevisionName {
    /// Turns chance into the three suffix characters of a made revision name.
    pub fn suffix(mut chance: u64) -> [char; 3] {
        let base = SUFFIX_ALPHABET.len() as u64;
        std::array::from_fn(|_| {
            let index = usize::try_from(chance % base).expect("smaller than the alphabet");
            chance /= base;
            char::from(SUFFIX_ALPHABET[index])
        })
    }
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The 8 hex digits that stand for a data directory in every name that the machine shares (cgroups, links, files of the
/// system's store): FNV-1a of its path's bytes, so that server and client make the same of it.
pub fn data_dir_id(path: &[u8]) -> String {
    let hash = path.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

/// The twelve-digit project number that goes with a project id. Google assigns them; here it is a stable function of
/// the id, so that every start gives the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectNumber(u64);

impl ProjectNumber {
    pub fn of(project: &ProjectId) -> Self {
        Self(100_000_000_000 + fnv1a(project.as_str()) % 900_000_000_000)
    }
}

impl fmt::Display for ProjectNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The ten characters between service and region code in `SERVICE-HASH-RR`: stable for a project.
pub fn url_hash(project: &ProjectId) -> String {
    const DIGITS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rest = fnv1a(project.as_str());
    (0..10)
        .map(|_| {
            let digit = usize::try_from(rest % 36).expect("below 36");
            rest /= 36;
            char::from(DIGITS[digit])
        })
        .collect()
}

impl Region {
    /// The short code in a service's host name. Google's own for regions where it is known; for every other region
    /// its name without hyphens, which no known code equals, so that two regions never share a host.
    pub fn code(&self) -> String {
        const KNOWN: &[(&str, &str)] = &[
            ("asia-east1", "de"),
            ("asia-northeast1", "an"),
            ("asia-southeast1", "as"),
            ("australia-southeast1", "ts"),
            ("europe-north1", "lz"),
            ("europe-west1", "ew"),
            ("europe-west2", "nw"),
            ("europe-west3", "ey"),
            ("europe-west4", "ez"),
            ("northamerica-northeast1", "nn"),
            ("us-central1", "uc"),
            ("us-east1", "ue"),
            ("us-east4", "uk"),
            ("us-west1", "uw"),
            ("us-west2", "wl"),
        ];
        KNOWN.iter().find(|(name, _)| *name == self.as_str()).map_or_else(
            || format!("{}0", self.as_str().replace('-', "")),
            |(_, code)| (*code).to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        for good in [
            "abc",
            "run-sources-my-project-us-central1",
            "a.b.c",
            "0_1-2",
            &"a".repeat(63),
        ] {
            BucketName::parse(good).expect(good);
        }
        for bad in [
            "ab",
            "Abc",
            "-abc",
            "abc-",
            "a..b",
            "..",
            "a/b",
            "127.0.0.1",
            "googly",
            "mygoogle",
            &"a".repeat(64),
            ".ab",
        ] {
            assert!(BucketName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn service_names() {
        let longest = "a".repeat(49);
        for good in ["a", "my-api", "a1", "x-9", "a--b", longest.as_str()] {
            assert!(ServiceName::parse(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(50);
        for bad in [
            "",
            "-a",
            "a-",
            "1a",
            "My-api",
            "a_b",
            "a.b",
            "ä",
            "a/b",
            "a---b",
            too_long.as_str(),
        ] {
            let error = ServiceName::parse(bad).expect_err(bad);
            assert!(error.to_string().contains("less than 50"), "{error}");
        }
    }

    #[test]
    fn revision_names_carry_their_service() {
        let service = ServiceName::parse("my-api").expect("a name");
        let made = RevisionName::numbered(&service, 3, ['v', 'h', 'h']);
        assert_eq!(made.as_str(), "my-api-00003-vhh");
        assert!(made.belongs_to(&service));
        for other in ["my-api", "my-apix-1", "other-1"] {
            assert!(
                !RevisionName::parse(other).expect("a name").belongs_to(&service),
                "{other}"
            );
        }
        assert!(RevisionName::parse("my-api-UP").is_err());
    }

    #[test]
    fn suffix_uses_the_alphabet_and_differs() {
        let one = RevisionName::suffix(0);
        assert_eq!(one, ['b', 'b', 'b']);
        assert_ne!(RevisionName::suffix(27), one);
        assert!(
            RevisionName::suffix(u64::MAX)
                .iter()
                .all(|c| SUFFIX_ALPHABET.contains(&(*c as u8)))
        );
    }

    #[test]
    fn hash_and_number_are_stable() {
        let project = ProjectId::parse("my-project").expect("an id");
        assert_eq!(url_hash(&project).len(), 10);
        assert_eq!(url_hash(&project), url_hash(&project));
        assert_eq!(ProjectNumber::of(&project).to_string().len(), 12);
        let other = ProjectId::parse("my-project2").expect("an id");
        assert_ne!(url_hash(&project), url_hash(&other));
    }

    #[test]
    fn data_directories_have_fixed_ids() {
        // FNV-1a's own test vectors.
        assert_eq!(data_dir_id(b""), "811c9dc5");
        assert_eq!(data_dir_id(b"foobar"), "bf9cf968");
    }

    #[test]
    fn region_codes_do_not_collide() {
        let code = |r: &str| Region::parse(r).expect("a region").code();
        assert_eq!(code("us-central1"), "uc");
        assert_eq!(code("us-south1"), "ussouth10");
        assert_ne!(code("uc"), code("us-central1"));
    }
}
