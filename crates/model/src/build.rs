//! Builds of images from source (Cloud Build's words): what was asked, and how far it is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{BucketName, Recipe, Region, SecretRef, Timestamp};

/// The time limit of a build that names none, in seconds (Cloud Build: 60 minutes).
pub const DEFAULT_BUILD_TIMEOUT: u32 = 3600;
/// The longest time limit of a build, in seconds (Cloud Build: 24 hours).
pub const MAX_BUILD_TIMEOUT: u32 = 86_400;
/// Most steps of one build (Cloud Build's limit).
pub const MAX_BUILD_STEPS: usize = 300;
/// Most secrets of one build.
pub const MAX_BUILD_SECRETS: usize = 100;

/// A build's id: a UUID in lower case with hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId(String);

impl BuildId {
    /// None: the text is no UUID in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (lengths == [8, 4, 4, 4, 12] && groups.iter().all(|group| group.bytes().all(hex)))
            .then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BuildId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("\"{text}\" is not the id of a build"))
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.0
    }
}

/// How far a build is. Each state has only what is known in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildState {
    Queued,
    Working {
        started: Timestamp,
    },
    Success {
        started: Timestamp,
        finished: Timestamp,
        images: Vec<BuiltImage>,
    },
    /// `why` is what the client is told: the failing step and what it said last.
    Failure {
        started: Timestamp,
        finished: Timestamp,
        why: String,
    },
    Timeout {
        started: Timestamp,
        finished: Timestamp,
        why: String,
    },
    Cancelled {
        /// None: it had not begun.
        started: Option<Timestamp>,
        finished: Timestamp,
    },
}

impl BuildState {
    /// Nothing will change any more.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Queued | Self::Working { .. } => false,
            Self::Success { .. } | Self::Failure { .. } | Self::Timeout { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// Cloud Build's word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Working { .. } => "WORKING",
            Self::Success { .. } => "SUCCESS",
            Self::Failure { .. } => "FAILURE",
            Self::Timeout { .. } => "TIMEOUT",
            Self::Cancelled { .. } => "CANCELLED",
        }
    }

    pub fn started(&self) -> Option<Timestamp> {
        match self {
            Self::Queued => None,
            Self::Working { started }
            | Self::Success { started, .. }
            | Self::Failure { started, .. }
            | Self::Timeout { started, .. } => Some(*started),
            Self::Cancelled { started, .. } => *started,
        }
    }

    pub fn finished(&self) -> Option<Timestamp> {
        match self {
            Self::Queued | Self::Working { .. } => None,
            Self::Success { finished, .. }
            | Self::Failure { finished, .. }
            | Self::Timeout { finished, .. }
            | Self::Cancelled { finished, .. } => Some(*finished),
        }
    }

    /// Why it did not end well, for the client.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Queued | Self::Working { .. } | Self::Success { .. } | Self::Cancelled { .. } => None,
            Self::Failure { why, .. } | Self::Timeout { why, .. } => Some(why),
        }
    }
}

/// An image that a build put into the image store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltImage {
    /// As the build named it, with its tag.
    pub name: String,
    /// `sha256:...`
    pub digest: String,
}

/// An archive in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageSource {
    pub bucket: BucketName,
    pub object: String,
    /// None: whatever it is when the build begins.
    pub generation: Option<u64>,
}

/// One step as it was asked, for those who look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildStep {
    /// The builder's image.
    pub name: String,
    pub args: Vec<String>,
    /// Empty where it has none.
    pub id: String,
    /// The same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub entrypoint: String,
    /// `NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Which of the build's secrets the step has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_env: Vec<String>,
}

/// A version of a secret that steps of a build may have under a name (Cloud Build's `availableSecrets`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailableSecret {
    pub env: String,
    pub of: SecretRef,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub id: BuildId,
    /// A region, or `global`.
    pub location: Region,
    pub created: Timestamp,
    /// Who asked for it, by e-mail.
    pub creator: String,
    pub state: BuildState,
    pub source: StorageSource,
    /// What it was asked to do, as it was asked; empty for a source deploy.
    pub steps: Vec<BuildStep>,
    pub recipe: Recipe,
    /// Those of its images that are pushed.
    pub images: Vec<String>,
    pub timeout_seconds: u32,
    pub tags: Vec<String>,
    pub substitutions: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<AvailableSecret>,
}

/// Puts values for `$NAME` and `${NAME}`; `$$` is a dollar sign.
///
/// # Errors
/// The name that has no value.
pub fn substitute(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (braced, body) = match rest.strip_prefix('{') {
            Some(body) => (true, body),
            None => (false, rest),
        };
        let end = body
            .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
            .unwrap_or(body.len());
        let name = &body[..end];
        let after = &body[end..];
        let after = match (braced, after.strip_prefix('}')) {
            (true, Some(after)) => after,
            (true, None) => return Err(format!("${{{name}")),
            (false, _) => after,
        };
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(values.get(name).ok_or_else(|| name.to_owned())?);
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert!(BuildId::parse("0b1f2e3d-0000-4000-8000-000000000001").is_some());
        for wrong in [
            "",
            "../../x",
            "0B1F2E3D-0000-4000-8000-000000000001",
            "0b1f2e3d-0000-4000-8000-00000000000g",
        ] {
            assert!(BuildId::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn substitutions() {
        let values = BTreeMap::from([
            ("PROJECT_ID".to_owned(), "p".to_owned()),
            ("_X".to_owned(), "$_X".to_owned()),
        ]);
        for (text, expected) in [
            ("gcr.io/$PROJECT_ID/x", Ok("gcr.io/p/x")),
            ("${PROJECT_ID}-y$$PROJECT_ID$", Ok("p-y$PROJECT_ID$")),
            ("${_X}", Ok("$_X")),
            ("$COMMIT_SHA", Err("COMMIT_SHA")),
            ("${_X", Err("${_X")),
        ] {
            let made = substitute(text, &values);
            assert_eq!(made.as_deref().map_err(String::as_str), expected, "{text}");
        }
    }
}
