//! Names of many images at once: a registry, or what is below a path of one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::reference::{DOCKER, Reference, ReferenceError, Repository};

/// All of a registry, or all below a path of it: `docker.io/*`, `docker.io/library/*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    host: String,
    /// Empty for all of the registry.
    path: String,
}

impl Prefix {
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How many letters of a name it fixes: of several that cover one the longest is meant.
    pub(crate) fn length(&self) -> usize {
        self.path.len()
    }

    /// What of a repository's path is below this one.
    pub(crate) fn below<'a>(&self, repository: &'a Repository) -> Option<&'a str> {
        let path = repository.path();
        if repository.host() != self.host {
            return None;
        }
        if self.path.is_empty() {
            return Some(path);
        }
        path.strip_prefix(&self.path)?.strip_prefix('/')
    }

    /// The repository at `path` below this one.
    pub(crate) fn join(&self, path: &str) -> Result<Repository, ReferenceError> {
        if self.path.is_empty() {
            return Repository::new(&self.host, path);
        }
        Repository::new(&self.host, &format!("{}/{path}", self.path))
    }
}

/// `HOST`, `HOST/*`, `HOST/PATH/*`; without a host it is docker's.
impl FromStr for Prefix {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Prefix, ReferenceError> {
        let names = text.strip_suffix("/*").unwrap_or(text);
        let is_registry = |name: &str| is_registry(name) || name.contains([':', '.']);
        let (host, path) = match names.split_once('/') {
            None if is_registry(names) => (names, ""),
            Some((first, path)) if is_registry(first) => (first, path),
            None | Some(_) => (DOCKER, names),
        };
        // Its parts hold to what those of the names below it hold to.
        let is_all = path.is_empty() && !(names.is_empty() || names.contains('/'));
        let below = Repository::new(host, if is_all { "any" } else { path })?;
        Ok(Prefix {
            host: below.host().to_owned(),
            path: path.to_owned(),
        })
    }
}

impl TryFrom<String> for Prefix {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Prefix, ReferenceError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}/*", self.host)
        } else {
            write!(f, "{}/{}/*", self.host, self.path)
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What people write where one image or many can be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    One(Reference),
    Below(Prefix),
}

impl FromStr for Names {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Names, ReferenceError> {
        if text.ends_with("/*") || (!text.contains('/') && is_registry(text)) {
            return Ok(Names::Below(text.parse()?));
        }
        Ok(Names::One(text.parse()?))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Names::One(reference) => fmt::Display::fmt(reference, f),
            Names::Below(prefix) => fmt::Display::fmt(prefix, f),
        }
    }
}

/// Whether a word alone is a registry: `docker.io`, `localhost:5000`. `python:3.12` is an image with its tag.
fn is_registry(word: &str) -> bool {
    let name = word.split([':', '@']).next().unwrap_or_default();
    name == "localhost" || name.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_many() {
        for (text, many) in [
            ("docker.io", Some("docker.io/*")),
            ("Docker.IO", Some("docker.io/*")),
            ("docker.io/*", Some("docker.io/*")),
            ("index.docker.io/library/*", Some("docker.io/library/*")),
            ("library/*", Some("docker.io/library/*")),
            ("mirror.example:5000", Some("mirror.example:5000/*")),
            ("localhost:5000/a/b/*", Some("localhost:5000/a/b/*")),
            ("registry:5000/*", Some("registry:5000/*")),
            ("gcr.io", Some("gcr.io/*")),
            ("python", None),
            ("python:3.12-slim", None),
            ("gcr.io/distroless/static", None),
            ("localhost/app:v1.0", None),
            (
                "python@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                None,
            ),
        ] {
            let names: Names = text.parse().expect(text);
            match (names, many) {
                (Names::Below(prefix), Some(shown)) => {
                    assert_eq!(prefix.to_string(), shown);
                    assert_eq!(shown.parse::<Prefix>().expect(shown), prefix);
                }
                (Names::One(_), None) => {}
                (other, _) => panic!("{text} is {other:?}"),
            }
        }
        for text in [
            "*",
            "/*",
            "docker.io/*/*",
            "docker.io/A/*",
            "docker.io//*",
            "bad_host.example/*",
            "a..b/*",
        ] {
            assert!(text.parse::<Names>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_below() {
        let repository = |text: &str| text.parse::<Repository>().expect(text);
        let prefix = |text: &str| text.parse::<Prefix>().expect(text);
        let python = repository("docker.io/library/python");
        assert_eq!(prefix("docker.io").below(&python), Some("library/python"));
        assert_eq!(prefix("docker.io/library/*").below(&python), Some("python"));
        assert_eq!(prefix("docker.io/lib/*").below(&python), None);
        assert_eq!(prefix("docker.io/library/python/*").below(&python), None);
        assert_eq!(prefix("gcr.io").below(&python), None);
        let joined = prefix("mirror.example:5000/hub/*").join("library/python");
        assert_eq!(
            joined.expect("a name").to_string(),
            "mirror.example:5000/hub/library/python"
        );
        assert_eq!(
            prefix("localhost").join("a").expect("a name").to_string(),
            "localhost/a"
        );
    }
}
