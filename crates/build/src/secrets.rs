//! Secrets of builds: what of them a build's recipe has, as it is when the build begins.

use std::fmt;

use model::{Build, RecipeSecret, SecretRef, SecretValue, VersionRef};

/// Gives the number and the value of a version of a secret to a build, or says in words why not.
pub type OpenSecret = dyn Fn(&SecretRef) -> Result<(u64, SecretValue), String> + Send + Sync;

/// What builds read secrets by.
pub struct Secrets(pub Box<OpenSecret>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// Those of one build, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// By their numbers.
    pub(crate) versions: Vec<(String, SecretRef)>,
    pub(crate) values: Vec<(String, SecretValue)>,
}

impl Secrets {
    /// # Errors
    /// Which of them has no value to give, and why, in words for the client.
    pub(crate) fn of(&self, build: &Build) -> Result<Opened, String> {
        let mut opened = Opened::default();
        for RecipeSecret { id, env } in &build.recipe.secrets {
            let available = build.secrets.iter().find(|available| available.env == *env);
            let of = available.map(|available| &available.of);
            let of = of.ok_or_else(|| format!("no secret of the build is called {env}"))?;
            let read = (self.0)(of);
            let (number, value) = read.map_err(|why| format!("failed to access secret version for {env}: {why}"))?;
            let version = VersionRef::Number(number);
            let secret = of.secret.clone();
            opened.versions.push((id.clone(), SecretRef { secret, version }));
            opened.values.push((id.clone(), value));
        }
        Ok(opened)
    }
}
