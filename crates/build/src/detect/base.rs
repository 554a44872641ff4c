//! The base images of generated Dockerfiles: a name for each, what it is by default, and what it may be set to.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// What a base image is for, by the name that it is set by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Base {
    Python,
    Node,
    /// Builds Go; what it makes runs on [`Base::Run`].
    Go,
    /// Builds Rust; what it makes runs on [`Base::Run`].
    Rust,
    /// Runs Java.
    Java,
    /// Builds Java with the source's own `mvnw` or `gradlew`.
    Jdk,
    /// Builds Java where the source has no `mvnw`.
    Maven,
    /// Builds Java where the source has no `gradlew`.
    Gradle,
    Ruby,
    /// Runs PHP by Apache.
    Php,
    /// Gets what PHP requires.
    Composer,
    /// Runs .NET.
    DotNet,
    /// Builds .NET.
    DotNetSdk,
    /// Serves files; has busybox's `httpd`.
    Static,
    /// Runs programs that need nothing but the C library.
    Run,
}

impl Base {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Python,
        Self::Node,
        Self::Go,
        Self::Rust,
        Self::Java,
        Self::Jdk,
        Self::Maven,
        Self::Gradle,
        Self::Ruby,
        Self::Php,
        Self::Composer,
        Self::DotNet,
        Self::DotNetSdk,
        Self::Static,
        Self::Run,
    ];

    /// The name that it is set by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Go => "go",
            Self::Rust => "rust",
            Self::Java => "java",
            Self::Jdk => "jdk",
            Self::Maven => "maven",
            Self::Gradle => "gradle",
            Self::Ruby => "ruby",
            Self::Php => "php",
            Self::Composer => "composer",
            Self::DotNet => "dotnet",
            Self::DotNetSdk => "dotnet-sdk",
            Self::Static => "static",
            Self::Run => "run",
        }
    }

    /// What it is where nothing else is set.
    pub fn default_image(self) -> &'static str {
        match self {
            Self::Python => "docker.io/library/python:3.13-slim",
            Self::Node => "docker.io/library/node:24-slim",
            Self::Go => "docker.io/library/golang:1-trixie",
            Self::Rust => "docker.io/library/rust:1-trixie",
            Self::Java => "docker.io/library/eclipse-temurin:21-jre",
            Self::Jdk => "docker.io/library/eclipse-temurin:21-jdk",
            Self::Maven => "docker.io/library/maven:3-eclipse-temurin-21",
            Self::Gradle => "docker.io/library/gradle:8-jdk21",
            Self::Ruby => "docker.io/library/ruby:3.4",
            Self::Php => "docker.io/library/php:8.4-apache",
            Self::Composer => "docker.io/library/composer:2",
            Self::DotNet => "mcr.microsoft.com/dotnet/aspnet:10.0",
            Self::DotNetSdk => "mcr.microsoft.com/dotnet/sdk:10.0",
            Self::Static => "docker.io/library/busybox:1",
            Self::Run => "docker.io/library/buildpack-deps:trixie-curl",
        }
    }
}

impl FromStr for Base {
    type Err = BaseError;

    fn from_str(name: &str) -> Result<Self, BaseError> {
        let found = Self::ALL.into_iter().find(|base| base.name() == name);
        found.ok_or_else(|| BaseError::Name(name.to_owned()))
    }
}

/// Why a base image cannot be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseError {
    /// There is no such base.
    Name(String),
    /// It is no name of an image.
    Image(String),
    /// It is no NAME=IMAGE.
    Pair(String),
}

impl fmt::Display for BaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => {
                let all = Base::ALL.map(Base::name).join(", ");
                write!(f, "\"{name}\" is none of {all}")
            }
            Self::Image(image) => write!(f, "\"{image}\" is not the name of an image"),
            Self::Pair(text) => write!(
                f,
                "\"{text}\" is not NAME=IMAGE, such as python=docker.io/library/python:3.13"
            ),
        }
    }
}

impl std::error::Error for BaseError {}

/// The base images in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bases(BTreeMap<Base, String>);

impl Bases {
    /// Sets one.
    ///
    /// # Errors
    /// When it is no name of an image.
    pub fn set(&mut self, base: Base, image: &str) -> Result<(), BaseError> {
        self.0.insert(base, checked(image)?);
        Ok(())
    }

    /// The image of a base.
    pub fn of(&self, base: Base) -> &str {
        self.0.get(&base).map_or_else(|| base.default_image(), String::as_str)
    }
}

/// Reads NAME=IMAGE.
///
/// # Errors
/// What of it is wrong.
pub fn base_pair(text: &str) -> Result<(Base, String), BaseError> {
    let (name, image) = text.split_once('=').ok_or_else(|| BaseError::Pair(text.to_owned()))?;
    Ok((name.parse()?, checked(image)?))
}

fn checked(image: &str) -> Result<String, BaseError> {
    match image.parse::<image::Reference>() {
        Ok(_)
            if image
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b)) =>
        {
            Ok(image.to_owned())
        }
        Ok(_) | Err(_) => Err(BaseError::Image(image.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_set() {
        for base in Base::ALL {
            assert_eq!(base.name().parse(), Ok(base));
            assert_eq!(checked(base.default_image()).as_deref(), Ok(base.default_image()));
        }
        assert_eq!(
            base_pair("python=localhost:5000/p:3"),
            Ok((Base::Python, "localhost:5000/p:3".to_owned()))
        );
        for (text, told) in [
            ("python", "NAME=IMAGE"),
            ("perl=x", "\"perl\" is none of python, node, go"),
            ("python=", "not the name of an image"),
            ("python=x\nRUN y", "not the name of an image"),
            ("python=x AS y", "not the name of an image"),
        ] {
            let said = base_pair(text).expect_err("refused").to_string();
            assert!(said.contains(told), "{text}: {said}");
        }
    }
}
