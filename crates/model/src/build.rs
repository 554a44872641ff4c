//! Builds of images from source (Cloud Build's words): what was asked, how far it is, and what a docker step means.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{BucketName, Pack, Region, SecretRef, Timestamp};

/// The time limit of a build that names none, in seconds (Cloud Build: 60 minutes).
pub const DEFAULT_BUILD_TIMEOUT: u32 = 3600;
/// The longest time limit of a build, in seconds (Cloud Build: 24 hours).
pub const MAX_BUILD_TIMEOUT: u32 = 86_400;
/// Most steps of one build (Cloud Build's limit).
pub const MAX_BUILD_STEPS: usize = 300;
/// Most secrets of one build.
pub const MAX_BUILD_SECRETS: usize = 100;
/// Longest id of a secret in a build.
pub const MAX_BUILD_SECRET_ID: usize = 128;

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

/// One `--secret` of a `docker build`: what instructions of the Dockerfile ask for by `id` is what the step has as `env`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeSecret {
    pub id: String,
    pub env: String,
}

/// A `docker build`, as far as it is served, or a build by buildpacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// What the image is called; at least one.
    pub tags: Vec<String>,
    /// The directory of the source that is sent to the builder, without `/` or `..`; empty is all of it.
    pub directory: String,
    /// The Dockerfile below the source's root, empty where the builder looks for one.
    pub dockerfile: String,
    pub build_args: Vec<(String, String)>,
    pub labels: Vec<(String, String)>,
    pub target: Option<String>,
    pub no_cache: bool,
    /// A source without a Dockerfile gets one, by what its files say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detect: bool,
    /// What is asked of buildpacks, which make the image then. Together with `detect` they do where a builder is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack: Option<Pack>,
    /// What instructions may mount, each id once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<RecipeSecret>,
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

/// Why a step is not served, in words that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipeError {
    Command { command: String },
    Flag { flag: String },
    NoValue { flag: String },
    Pair { flag: String, value: String },
    NoTag,
    NoDirectory,
    TwoDirectories { first: String, second: String },
    Outside { path: String },
    Secret { value: String, why: String },
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { command } => write!(
                f,
                "docker {command} is not served by this Homerun: only docker build and docker push"
            ),
            Self::Flag { flag } => write!(f, "docker build {flag} is not served by this Homerun"),
            Self::NoValue { flag } => write!(f, "docker build {flag} has no value"),
            Self::Pair { flag, value } => write!(f, "docker build {flag} is no NAME=VALUE: \"{value}\""),
            Self::NoTag => f.write_str("docker build has no -t TAG"),
            Self::NoDirectory => f.write_str("docker build has no directory: expected \".\" or one below it"),
            Self::TwoDirectories { first, second } => {
                write!(f, "docker build has two directories, \"{first}\" and \"{second}\"")
            }
            Self::Outside { path } => write!(f, "\"{path}\" leads out of the source"),
            Self::Secret { value, why } => write!(f, "docker build --secret {value}: {why}"),
        }
    }
}

impl std::error::Error for RecipeError {}

impl Recipe {
    /// Reads the arguments of a `docker` step, `build` first.
    ///
    /// # Errors
    /// What of it is not served.
    pub fn of_docker(args: &[String]) -> Result<Self, RecipeError> {
        let mut words = args.iter().map(String::as_str);
        match words.next() {
            Some("build") => {}
            other => {
                return Err(RecipeError::Command {
                    command: other.unwrap_or_default().to_owned(),
                });
            }
        }
        let mut recipe = Self::default();
        let mut directory: Option<String> = None;
        let mut dockerfile: Option<String> = None;
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                if let Some(first) = directory.replace(word.to_owned()) {
                    return Err(RecipeError::TwoDirectories {
                        first,
                        second: word.to_owned(),
                    });
                }
                continue;
            };
            let (name, joined) = match flag.strip_prefix('-') {
                Some(long) => match long.split_once('=') {
                    Some((name, value)) => (format!("--{name}"), Some(value)),
                    None => (format!("--{long}"), None),
                },
                None => match flag.split_at_checked(1) {
                    Some((name, value)) if !value.is_empty() => {
                        (format!("-{name}"), Some(value.trim_start_matches('=')))
                    }
                    _ => (word.to_owned(), None),
                },
            };
            let mut value = || {
                joined
                    .or_else(|| words.next())
                    .map(str::to_owned)
                    .ok_or_else(|| RecipeError::NoValue { flag: name.clone() })
            };
            match name.as_str() {
                "-t" | "--tag" => recipe.tags.push(value()?),
                "-f" | "--file" => dockerfile = Some(value()?),
                "--build-arg" => recipe.build_args.push(pair(&name, &value()?)?),
                "--label" => recipe.labels.push(pair(&name, &value()?)?),
                "--target" => recipe.target = Some(value()?),
                "--secret" => {
                    let value = value()?;
                    let refused = |why: String| RecipeError::Secret {
                        value: value.clone(),
                        why,
                    };
                    let secret = RecipeSecret::of_docker(&value).map_err(refused)?;
                    if recipe.secrets.iter().any(|other| other.id == secret.id) {
                        return Err(refused("its id is there twice".to_owned()));
                    }
                    recipe.secrets.push(secret);
                }
                // The network of a build is its own loopback, whatever it is called.
                "--network" => {
                    let network = value()?;
                    if !["cloudbuild", "none", "default"].contains(&network.as_str()) {
                        return Err(RecipeError::Flag {
                            flag: format!("--network={network}"),
                        });
                    }
                }
                // Old images are not asked anyway: the cache is the image's own.
                "--cache-from" => drop(value()?),
                "--progress" => drop(value()?),
                "--no-cache" => recipe.no_cache = joined.is_none_or(|value| value == "true"),
                "--pull" | "--rm" | "--force-rm" => {}
                _ => return Err(RecipeError::Flag { flag: name }),
            }
        }
        if recipe.tags.is_empty() {
            return Err(RecipeError::NoTag);
        }
        recipe.directory = inside(&directory.ok_or(RecipeError::NoDirectory)?)?;
        if let Some(file) = dockerfile {
            recipe.dockerfile = inside(&file)?;
        }
        Ok(recipe)
    }
}

impl RecipeSecret {
    /// Reads `id=ID,env=NAME`. Without a name it is the id.
    fn of_docker(value: &str) -> Result<Self, String> {
        let (mut id, mut env) = (None, None);
        for part in value.split(',') {
            match part.split_once('=') {
                Some(("id", text)) => id = Some(text.to_owned()),
                Some(("env", text)) => env = Some(text.to_owned()),
                Some(("type", "env")) => {}
                Some(("src" | "source", _) | ("type", "file")) => {
                    return Err(
                        "files are not served by this Homerun: expected id=ID,env=NAME of secretEnv".to_owned(),
                    );
                }
                _ => {
                    return Err(format!(
                        "\"{part}\" is not served by this Homerun: expected id=ID,env=NAME"
                    ));
                }
            }
        }
        let id = id.ok_or("it has no id")?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !(1..=MAX_BUILD_SECRET_ID).contains(&id.len()) || id.starts_with('.') || !id.bytes().all(plain) {
            return Err(format!(
                "an id is 1 to {MAX_BUILD_SECRET_ID} letters, digits, dots, underscores and hyphens, and begins with no dot"
            ));
        }
        let env = env.unwrap_or_else(|| id.clone());
        Ok(Self { id, env })
    }
}

fn pair(flag: &str, value: &str) -> Result<(String, String), RecipeError> {
    match value.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(RecipeError::Pair {
            flag: flag.to_owned(),
            value: value.to_owned(),
        }),
    }
}

/// A path below the source, cleaned of `.`; empty is the source itself. `/workspace` is the source's place.
pub fn inside(path: &str) -> Result<String, RecipeError> {
    let outside = || RecipeError::Outside { path: path.to_owned() };
    let relative = match path.strip_prefix("/workspace") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => path,
    };
    if relative.starts_with('/') || relative.contains('\0') || relative.contains("://") {
        return Err(outside());
    }
    let mut parts = Vec::new();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(outside)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
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

    fn docker(args: &[&str]) -> Result<Recipe, RecipeError> {
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        Recipe::of_docker(&args)
    }

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
    fn what_gcloud_sends_for_a_tag() {
        let recipe = docker(&[
            "build",
            "--network",
            "cloudbuild",
            "--no-cache",
            "-t",
            "gcr.io/p/x",
            ".",
        ]);
        let expected = Recipe {
            tags: vec!["gcr.io/p/x".to_owned()],
            no_cache: true,
            ..Recipe::default()
        };
        assert_eq!(recipe, Ok(expected));
    }

    #[test]
    fn flags_of_docker_build() {
        let recipe = docker(&[
            "build",
            "--tag=a",
            "-tb",
            "-f",
            "/workspace/docker/Dockerfile",
            "--build-arg",
            "A=1=2",
            "--label=l=",
            "--target",
            "final",
            "--secret=id=npm,env=NPM_TOKEN",
            "--secret",
            "type=env,id=PLAIN",
            "./app/../web",
        ]);
        let expected = Recipe {
            tags: vec!["a".to_owned(), "b".to_owned()],
            directory: "web".to_owned(),
            dockerfile: "docker/Dockerfile".to_owned(),
            build_args: vec![("A".to_owned(), "1=2".to_owned())],
            labels: vec![("l".to_owned(), String::new())],
            target: Some("final".to_owned()),
            no_cache: false,
            detect: false,
            pack: None,
            secrets: [("npm", "NPM_TOKEN"), ("PLAIN", "PLAIN")]
                .map(|(id, env)| RecipeSecret {
                    id: id.to_owned(),
                    env: env.to_owned(),
                })
                .to_vec(),
        };
        assert_eq!(recipe, Ok(expected));
    }

    #[test]
    fn what_is_not_served_is_named() {
        for (args, named) in [
            (&["run", "x"][..], "docker run"),
            (&[], "only docker build"),
            (&["build", "--privileged", "-t", "x", "."], "--privileged"),
            (&["build", "--network=host", "-t", "x", "."], "--network=host"),
            (&["build", "-t"], "-t has no value"),
            (&["build", "."], "no -t"),
            (&["build", "-t", "x"], "no directory"),
            (&["build", "-t", "x", "a", "b"], "two directories"),
            (&["build", "-t", "x", "../.."], "../.."),
            (&["build", "-t", "x", "-f", "/etc/passwd", "."], "/etc/passwd"),
            (&["build", "-t", "x", "https://github.com/a/b"], "https://"),
            (&["build", "-t", "x", "--build-arg", "A", "."], "NAME=VALUE"),
            (&["build", "-t", "x", "--secret", "env=A", "."], "it has no id"),
            (&["build", "-t", "x", "--secret", "id=../a", "."], "an id is 1 to 128"),
            (
                &["build", "-t", "x", "--secret", "id=a,src=b", "."],
                "files are not served",
            ),
            (
                &["build", "-t", "x", "--secret", "id=a,mode=7", "."],
                "\"mode=7\" is not served",
            ),
            (
                &["build", "-t", "x", "--secret", "id=a", "--secret", "id=a,env=B", "."],
                "its id is there twice",
            ),
        ] {
            let said = docker(args).expect_err("refused").to_string();
            assert!(said.contains(named), "{args:?}: {said}");
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
