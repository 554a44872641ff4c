//! What a step of a build means: the words of a `docker build`, read as far as they are served.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Pack;

/// Longest id of a secret in a build.
pub const MAX_BUILD_SECRET_ID: usize = 128;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn docker(args: &[&str]) -> Result<Recipe, RecipeError> {
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        Recipe::of_docker(&args)
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
}
