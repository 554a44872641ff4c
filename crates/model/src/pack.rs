//! Builds by Cloud Native Buildpacks: what can be asked of one, and what a `pack` step of Cloud Build means.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Recipe, RecipeError, inside};

/// Longest value of a variable for buildpacks, in bytes: 32 KiB.
pub const MAX_BUILD_VARIABLE: usize = 32 << 10;
/// Most variables for the buildpacks of one build.
pub const MAX_BUILD_VARIABLES: usize = 100;

/// A build by buildpacks, as far as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pack {
    /// The builder's image. None: the one that the source names, else Homerun's own.
    pub builder: Option<String>,
    /// The builder's image where nobody names one.
    pub default_builder: Option<String>,
    /// What the app runs on. None: what the builder says.
    pub run_image: Option<String>,
    /// The image that keeps layers for the next build. None: a directory keeps them.
    pub cache_image: Option<String>,
    /// What buildpacks find in their environment.
    pub environment: Vec<(String, String)>,
    /// The project descriptor below the source's root. None: `project.toml`, where it is there.
    pub descriptor: Option<String>,
    /// Which of the processes the image begins with. None: what the buildpacks say.
    pub process: Option<String>,
}

/// Why a step is not served, in words that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackError {
    Command { command: String },
    Flag { flag: String },
    NoValue { flag: String },
    NoImage,
    TwoImages { first: String, second: String },
    Variable(VariableError),
    Outside(RecipeError),
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { command } => write!(
                f,
                "pack {command} is not served by this Homerun: only pack build and pack config default-builder"
            ),
            Self::Flag { flag } => write!(f, "pack build {flag} is not served by this Homerun"),
            Self::NoValue { flag } => write!(f, "pack build {flag} has no value"),
            Self::NoImage => f.write_str("pack build names no image"),
            Self::TwoImages { first, second } => {
                write!(f, "pack build names two images, \"{first}\" and \"{second}\"")
            }
            Self::Variable(error) => write!(f, "pack build --env: {error}"),
            Self::Outside(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PackError {}

/// Why buildpacks cannot be given a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariableError {
    NoValue { text: String },
    Name { name: String },
    Long { name: String, bytes: usize },
    Many { count: usize },
}

impl fmt::Display for VariableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue { text } => write!(f, "\"{text}\" is no NAME=VALUE"),
            Self::Name { name } => write!(
                f,
                "\"{name}\" is not the name of a variable: letters, digits and _ are expected, and no digit first"
            ),
            Self::Long { name, bytes } => write!(
                f,
                "the value of {name} has {bytes} bytes, the limit is {MAX_BUILD_VARIABLE}"
            ),
            Self::Many { count } => write!(f, "{count} variables, the limit is {MAX_BUILD_VARIABLES}"),
        }
    }
}

impl std::error::Error for VariableError {}

/// Whether steps of a build can have a variable of that name: letters, digits and `_`, no digit first.
pub fn is_build_variable(name: &str) -> bool {
    let mut letters = name.bytes();
    let begins = letters.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    begins && letters.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl Pack {
    /// Adds a variable for the buildpacks; a later value of one name wins.
    ///
    /// # Errors
    /// When it is none.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), VariableError> {
        if name.len() > 255 || !is_build_variable(name) {
            return Err(VariableError::Name { name: name.to_owned() });
        }
        if value.len() > MAX_BUILD_VARIABLE {
            return Err(VariableError::Long {
                name: name.to_owned(),
                bytes: value.len(),
            });
        }
        self.environment.retain(|(other, _)| other != name);
        if self.environment.len() >= MAX_BUILD_VARIABLES {
            return Err(VariableError::Many {
                count: self.environment.len() + 1,
            });
        }
        self.environment.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// The same of `NAME=VALUE`.
    ///
    /// # Errors
    /// When it is none.
    pub fn set_pair(&mut self, text: &str) -> Result<(), VariableError> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| VariableError::NoValue { text: text.to_owned() })?;
        self.set(name, value)
    }

    /// What of it a Dockerfile could not do, in Cloud Run's words; None is nothing.
    pub fn needs_buildpacks(&self) -> Option<&'static str> {
        if !self.environment.is_empty() {
            Some("environmentVariables")
        } else if self.run_image.is_some() {
            Some("baseImage")
        } else if self.cache_image.is_some() {
            Some("cacheImageUri")
        } else {
            None
        }
    }
}

/// What a `pack` step asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackStep {
    Build(Box<Recipe>),
    /// The builder of later steps that name none.
    DefaultBuilder(String),
}

impl PackStep {
    /// Reads the arguments of a `pack` step.
    ///
    /// # Errors
    /// What of it is not served.
    pub fn of_words(args: &[String]) -> Result<Self, PackError> {
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["config", "default-builder", image] => Ok(Self::DefaultBuilder((*image).to_owned())),
            ["build", rest @ ..] => build(rest).map(|recipe| Self::Build(Box::new(recipe))),
            _ => Err(PackError::Command {
                command: words.into_iter().take(2).collect::<Vec<_>>().join(" "),
            }),
        }
    }
}

fn build(args: &[&str]) -> Result<Recipe, PackError> {
    let mut words = args.iter().copied();
    let mut recipe = Recipe::default();
    let mut pack = Pack::default();
    while let Some(word) = words.next() {
        if !word.starts_with('-') {
            if let Some(first) = recipe.tags.first() {
                return Err(PackError::TwoImages {
                    first: first.clone(),
                    second: word.to_owned(),
                });
            }
            recipe.tags.push(word.to_owned());
            continue;
        }
        let (flag, joined) = match word.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (word, None),
        };
        let mut value = || {
            let value = joined.or_else(|| words.next()).map(str::to_owned);
            value.ok_or_else(|| PackError::NoValue { flag: flag.to_owned() })
        };
        match flag {
            "--builder" | "-B" => pack.builder = Some(value()?),
            "--env" | "-e" => pack.set_pair(&value()?).map_err(PackError::Variable)?,
            "--run-image" => pack.run_image = Some(value()?),
            "--cache-image" => pack.cache_image = Some(value()?),
            "--descriptor" | "-d" => pack.descriptor = Some(inside(&value()?).map_err(PackError::Outside)?),
            "--default-process" | "-D" => pack.process = Some(value()?),
            "--path" | "-p" => recipe.directory = inside(&value()?).map_err(PackError::Outside)?,
            "--clear-cache" => recipe.no_cache = joined.is_none_or(|value| value == "true"),
            // The network of a build is its own loopback, whatever it is called.
            "--network" => {
                let network = value()?;
                if !["cloudbuild", "none", "default"].contains(&network.as_str()) {
                    return Err(PackError::Flag {
                        flag: format!("--network={network}"),
                    });
                }
            }
            // Who asks what is there is told anyway; the image goes into the registry in any case.
            "--no-color" | "--publish" | "--trust-builder" | "--quiet" | "-q" | "--verbose" | "-v" => {}
            _ => return Err(PackError::Flag { flag: flag.to_owned() }),
        }
    }
    if recipe.tags.is_empty() {
        return Err(PackError::NoImage);
    }
    recipe.pack = Some(pack);
    Ok(recipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Result<PackStep, PackError> {
        let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        PackStep::of_words(&args)
    }

    #[test]
    fn what_gcloud_asks_of_pack() {
        let Ok(PackStep::Build(recipe)) =
            step("build gcr.io/p/app --network cloudbuild --env A=b=c --env=D= --builder gcr.io/b:v1 --path=./app")
        else {
            panic!("a build")
        };
        assert_eq!(recipe.tags, ["gcr.io/p/app"]);
        assert_eq!(recipe.directory, "app");
        let pack = recipe.pack.expect("by buildpacks");
        assert_eq!(pack.builder.as_deref(), Some("gcr.io/b:v1"));
        let expected = [("A", "b=c"), ("D", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(pack.environment, expected);
        assert_eq!(
            step("config default-builder gcr.io/b"),
            Ok(PackStep::DefaultBuilder("gcr.io/b".to_owned()))
        );
    }

    #[test]
    fn what_is_not_served_is_named() {
        for (text, told) in [
            ("build", "names no image"),
            ("build a b", "two images, \"a\" and \"b\""),
            ("build a --buildpack x", "--buildpack is not served"),
            ("build a --network host", "--network=host is not served"),
            ("build a --env X", "\"X\" is no NAME=VALUE"),
            ("build a --env 1=x", "\"1\" is not the name of a variable"),
            ("build a --env ../x=y", "\"../x\" is not the name of a variable"),
            ("build a --path ../x", "leads out of the source"),
            ("build a --builder", "--builder has no value"),
            ("rebase a", "pack rebase a is not served"),
            (
                "config trusted-builders add x",
                "pack config trusted-builders is not served",
            ),
        ] {
            let said = step(text).expect_err(text).to_string();
            assert!(said.contains(told), "{text}: {said}");
        }
        let mut pack = Pack::default();
        for index in 0..MAX_BUILD_VARIABLES {
            pack.set(&format!("A{index}"), "x").expect("one more");
        }
        pack.set("A0", "y").expect("another value");
        let said = pack.set("B", "x").expect_err("too many").to_string();
        assert_eq!(said, "101 variables, the limit is 100");
        let said = pack.set("A0", &"x".repeat(MAX_BUILD_VARIABLE + 1));
        assert!(said.is_err());
    }
}
