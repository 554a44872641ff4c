//! What people write for an image, read once: `python:3.12`, `localhost:5000/a/b@sha256:...`. The grammar is that of
//! the OCI distribution specification with docker's defaults (registry `docker.io`, its `library/`, tag `latest`). The
//! parts are types that cannot hold a path separator or `..`, so they may become file names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// The registry whose name people leave out.
pub(crate) const DOCKER: &str = "docker.io";
/// Longest host or path of a repository in bytes, and longest single component (a file name's limit).
const NAME_LIMIT: usize = 255;
/// Longest tag in characters (distribution specification).
const TAG_LIMIT: usize = 128;

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("image reference {text:?} has no repository")]
    NoRepository { text: String },
    #[error("registry {host:?} is not a host name with an optional port")]
    Host { host: String },
    #[error(
        "repository {path:?} is not valid: expected components of a-z and 0-9, inside them also single . or _, __ or any number of -, separated by /, at most 255 characters"
    )]
    Path { path: String },
    #[error("tag {tag:?} is not valid: expected at most 128 of A-Z a-z 0-9 _ . -, not beginning with . or -")]
    Tag { tag: String },
    #[error("image reference {text:?} has no valid digest")]
    Digest {
        text: String,
        #[source]
        source: DigestError,
    },
}

/// A registry and a path in it: `docker.io/library/python`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository {
    host: String,
    path: String,
}

impl Repository {
    /// Builds from a host (`localhost:5000`; letters become lower case) and a path (`a/b`).
    pub fn new(host: &str, path: &str) -> Result<Repository, ReferenceError> {
        let lower = host.to_ascii_lowercase();
        if !is_host(&lower) {
            return Err(ReferenceError::Host { host: host.to_owned() });
        }
        let host = if lower == "index.docker.io" {
            DOCKER.to_owned()
        } else {
            lower
        };
        if path.len() > NAME_LIMIT || !path.split('/').all(is_component) {
            return Err(ReferenceError::Path { path: path.to_owned() });
        }
        Ok(Repository {
            host,
            path: path.to_owned(),
        })
    }

    /// The registry: `docker.io`, `us-central1-docker.pkg.dev`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path inside the registry: `library/python`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Repository, ReferenceError> {
        let none = || ReferenceError::NoRepository { text: text.to_owned() };
        if text.is_empty() {
            return Err(none());
        }
        let (host, path) = match text.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) || has_upper(first) => {
                (first, rest)
            }
            Some(_) | None => (DOCKER, text),
        };
        if path.is_empty() {
            return Err(none());
        }
        let lower = host.to_ascii_lowercase();
        if (lower == DOCKER || lower == "index.docker.io") && !path.contains('/') {
            return Repository::new(host, &format!("library/{path}"));
        }
        Repository::new(host, path)
    }
}

impl TryFrom<String> for Repository {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Repository, ReferenceError> {
        text.parse()
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> String {
        repository.to_string()
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A movable name inside a repository: `latest`, `v1.0.0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag meant when none is written.
    pub fn latest() -> Tag {
        Tag("latest".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Tag, ReferenceError> {
        let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let rest = |byte: u8| first(byte) || byte == b'.' || byte == b'-';
        let bytes = text.as_bytes();
        if bytes.len() <= TAG_LIMIT && bytes.first().is_some_and(|byte| first(*byte)) && bytes.iter().all(|b| rest(*b))
        {
            Ok(Tag(text.to_owned()))
        } else {
            Err(ReferenceError::Tag { tag: text.to_owned() })
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which manifest of a repository: what stands after `/manifests/` in the registry's paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    Tag(Tag),
    Digest(Digest),
}

impl FromStr for Version {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Version, ReferenceError> {
        if text.contains(':') {
            let digest = text.parse().map_err(|source| ReferenceError::Digest {
                text: text.to_owned(),
                source,
            })?;
            return Ok(Version::Digest(digest));
        }
        Ok(Version::Tag(text.parse()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Tag(tag) => fmt::Display::fmt(tag, f),
            Version::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// An image as a user names it. At least one of tag and digest is there; the digest decides where both are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    repository: Repository,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

impl Reference {
    /// The reference to a tag of a repository.
    pub fn tagged(repository: Repository, tag: Tag) -> Reference {
        Reference {
            repository,
            tag: Some(tag),
            digest: None,
        }
    }

    /// The reference to one fixed manifest of a repository.
    pub fn pinned(repository: Repository, digest: Digest) -> Reference {
        Reference {
            repository,
            tag: None,
            digest: Some(digest),
        }
    }

    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What decides which manifest is meant: the digest if there is one, else the tag.
    pub fn version(&self) -> Version {
        match (self.digest, &self.tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, Some(tag)) => Version::Tag(tag.clone()),
            (None, None) => Version::Tag(Tag::latest()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| ReferenceError::Digest {
                    text: text.to_owned(),
                    source,
                })?;
                (rest, Some(digest))
            }
        };
        // A colon after the last slash begins a tag; one before it belongs to the port.
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_start..].split_once(':') {
            None => (rest, None),
            Some((last, tag)) => (&rest[..name_start + last.len()], Some(tag.parse::<Tag>()?)),
        };
        let repository = match name.parse() {
            Err(ReferenceError::NoRepository { .. }) => {
                return Err(ReferenceError::NoRepository { text: text.to_owned() });
            }
            other => other?,
        };
        let tag = tag.or_else(|| digest.is_none().then(Tag::latest));
        Ok(Reference {
            repository,
            tag,
            digest,
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Reference, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.repository, f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An upper-case letter can stand only in a host.
fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// `name`, `name:port` or `[v6]:port`, lower case.
fn is_host(text: &str) -> bool {
    if text.len() > NAME_LIMIT {
        return false;
    }
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            None if port.is_empty() => return true,
            None => return false,
            Some(port) => ("", Some(port)),
        }
    } else {
        match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => (name, Some(port)),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (text.starts_with('[') || name.split('.').all(label))
        && port.is_none_or(|port| {
            !port.is_empty()
                && port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
}

/// One part of a repository's path: `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut word = 0;
    while at < bytes.len() {
        if alphanumeric(bytes[at]) {
            word += 1;
            at += 1;
            continue;
        }
        let end = bytes[at..]
            .iter()
            .position(|byte| alphanumeric(*byte))
            .map_or(bytes.len(), |next| at + next);
        let separator = &text[at..end];
        let joins = matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
        if word == 0 || !joins || end == bytes.len() {
            return false;
        }
        word = 0;
        at = end;
    }
    word > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalises_as_docker_does() {
        let pinned = format!("sha256:{HEX}");
        for (text, host, path, tag, digest) in [
            ("python", "docker.io", "library/python", Some("latest"), None),
            ("python:3.12", "docker.io", "library/python", Some("3.12"), None),
            ("bitnami/redis", "docker.io", "bitnami/redis", Some("latest"), None),
            ("docker.io/python", "docker.io", "library/python", Some("latest"), None),
            (
                "index.docker.io/python",
                "docker.io",
                "library/python",
                Some("latest"),
                None,
            ),
            ("localhost/a", "localhost", "a", Some("latest"), None),
            ("localhost:5000/a/b:v1", "localhost:5000", "a/b", Some("v1"), None),
            ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", Some("latest"), None),
            ("[::1]:5000/a", "[::1]:5000", "a", Some("latest"), None),
            ("Registry.Example/a", "registry.example", "a", Some("latest"), None),
            (
                "us-central1-docker.pkg.dev/my-project/docker-repo/my-api:v1.0.0",
                "us-central1-docker.pkg.dev",
                "my-project/docker-repo/my-api",
                Some("v1.0.0"),
                None,
            ),
            (
                &format!("a/b@{pinned}"),
                "docker.io",
                "a/b",
                None,
                Some(pinned.as_str()),
            ),
            (
                &format!("a/b:c@{pinned}"),
                "docker.io",
                "a/b",
                Some("c"),
                Some(pinned.as_str()),
            ),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.repository().host(), host, "{text}");
            assert_eq!(reference.repository().path(), path, "{text}");
            assert_eq!(reference.tag().map(Tag::as_str), tag, "{text}");
            assert_eq!(
                reference.digest().map(|digest| digest.to_string()).as_deref(),
                digest,
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_and_names_the_text() {
        for (text, named) in [
            ("", "\"\""),
            (":v1", "\":v1\""),
            ("localhost:5000/", "\"localhost:5000/\""),
            ("a//b", "\"a//b\""),
            ("../a", "\"..\""),
            ("a/../b", "\"a/../b\""),
            ("a/b/..", "\"a/b/..\""),
            ("/etc/passwd", "\"/etc/passwd\""),
            ("Python", "\"library/Python\""),
            ("a/B", "\"a/B\""),
            ("a/_tags", "\"a/_tags\""),
            ("a/b___c", "\"a/b___c\""),
            ("a/b..c", "\"a/b..c\""),
            ("a/-b", "\"a/-b\""),
            ("a b", "\"library/a b\""),
            ("a:", "\"\""),
            ("a:.b", "\".b\""),
            ("a:b/c", "\"a:b\""),
            ("a:b:c", "\"b:c\""),
            ("ex ample.com/a", "\"ex ample.com\""),
            ("example.com:0/a", "\"example.com:0\""),
            ("example.com:70000/a", "\"example.com:70000\""),
            ("-x.com/a", "\"-x.com\""),
            ("a@sha256:12", "\"a@sha256:12\""),
            ("a@b@c", "\"a@b@c\""),
        ] {
            let refused = text.parse::<Reference>().expect_err(text).to_string();
            assert!(refused.contains(named), "{text}: {refused}");
        }
        let long = "a".repeat(256);
        assert!(long.parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(128)).parse::<Reference>().is_ok());
    }

    #[test]
    fn a_version_is_a_tag_or_a_digest() {
        assert_eq!("v1".parse::<Version>().expect("tag").to_string(), "v1");
        let digest = format!("sha256:{HEX}");
        assert_eq!(digest.parse::<Version>().expect("digest").to_string(), digest);
        assert!("../v1".parse::<Version>().is_err());
        assert!("sha256:zz".parse::<Version>().is_err());
    }

    proptest! {
        /// What is printed reads back as the same, and no part can leave a directory.
        #[test]
        fn prints_what_it_reads(
            host in "([a-z][a-z0-9]{0,8}\\.[a-z]{2,5}(:[1-9][0-9]{0,3})?|localhost)",
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            pinned in any::<bool>(),
        ) {
            let mut text = format!("{host}/{path}");
            if let Some(tag) = &tag {
                text = format!("{text}:{tag}");
            }
            if pinned {
                text = format!("{text}@sha256:{HEX}");
            }
            let read: Reference = text.parse().expect("generated by the grammar");
            prop_assert_eq!(&read.to_string().parse::<Reference>().expect("printed"), &read);
        }

        #[test]
        fn never_escapes(text in "\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let as_path = std::path::PathBuf::from(reference.repository().to_string());
                let only_names = as_path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(only_names, "{:?}", reference);
            }
        }
    }
}
