//! Builds by buildpacks, as they are asked of Cloud Build: a step that runs `pack`.

use clap::Args;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::flag::{self, Pairs};

/// The image of steps that run pack.
const PACK: &str = "gcr.io/k8s-skaffold/pack";
/// What gcloud names as the builder where nobody does.
const DEFAULT_BUILDER: &str = "gcr.io/buildpacks/builder:latest";

/// What a source deploy says to buildpacks.
#[derive(Debug, Args)]
pub(crate) struct Make {
    /// Builder's image, whose buildpacks build the source
    #[arg(long, requires = "source", conflicts_with = "dockerfile", value_name = "IMAGE")]
    pub(crate) builder: Option<String>,
    /// Image that what buildpacks build runs on
    #[arg(long, requires = "source", value_name = "IMAGE")]
    base_image: Option<String>,
    /// Variables for buildpacks
    #[arg(long, requires = "source", value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    set_build_env_vars: Vec<Pairs>,
}

impl Make {
    /// Whether there is something that a Dockerfile has no use for.
    pub(crate) fn needs_buildpacks(&self) -> bool {
        self.builder.is_some() || self.base_image.is_some() || !self.set_build_env_vars.is_empty()
    }

    /// The build of Cloud Build for a builder that is named.
    pub(crate) fn build(&self, image: &str, builder: &str) -> Value {
        let variables = flag::joined(&self.set_build_env_vars).into_iter();
        let pairs: Vec<String> = variables.map(|(name, value)| format!("{name}={value}")).collect();
        let words = words(image, Some(builder), self.base_image.as_deref(), &pairs);
        json!({ "steps": [step(words)], "images": [image] })
    }

    /// The same in the words of a source deploy, which knows no builder.
    pub(crate) fn buildpack_build(&self, has_descriptor: bool) -> Value {
        let variables = flag::joined(&self.set_build_env_vars).into_iter();
        let variables: Map<String, Value> = variables.map(|(name, value)| (name, value.into())).collect();
        json!({
            "baseImage": self.base_image,
            "environmentVariables": variables,
            "projectDescriptor": has_descriptor.then_some("project.toml"),
        })
    }
}

/// A build as gcloud's `--pack` makes it.
pub(crate) fn build(pack: &Pairs) -> Result<Value, Error> {
    let (mut image, mut builder, mut environment) = (None, None, Vec::new());
    for (name, value) in flag::joined(std::slice::from_ref(pack)) {
        match name.as_str() {
            "image" => image = Some(value),
            "builder" => builder = Some(value),
            "env" => environment.push(value),
            _ => {
                return Err(Error::Usage(format!(
                    "--pack: {name} is none of image, builder and env"
                )));
            }
        }
    }
    let image = image.ok_or_else(|| Error::Usage("--pack: image=NAME is missing".to_owned()))?;
    let mut steps = Vec::new();
    if builder.is_none() {
        let words = ["config", "default-builder", DEFAULT_BUILDER];
        steps.push(step(words.map(str::to_owned).to_vec()));
    }
    steps.push(step(words(&image, builder.as_deref(), None, &environment)));
    Ok(json!({ "steps": steps, "images": [image] }))
}

fn step(words: Vec<String>) -> Value {
    json!({ "name": PACK, "entrypoint": "pack", "args": words })
}

fn words(image: &str, builder: Option<&str>, run_image: Option<&str>, environment: &[String]) -> Vec<String> {
    let mut words: Vec<String> = ["build", image].map(str::to_owned).to_vec();
    let flags = [("--builder", builder), ("--run-image", run_image)];
    let variables = environment.iter().map(|pair| ("--env", Some(pair.as_str())));
    for (flag, value) in flags.into_iter().chain(variables) {
        words.extend(
            value
                .map(|value| [flag.to_owned(), value.to_owned()])
                .into_iter()
                .flatten(),
        );
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pack_is_asked_for() {
        let pairs = |text: &str| flag::pairs(text).expect("pairs");
        let made = build(&pairs("image=gcr.io/p/a,builder=gcr.io/b,env=A=b")).expect("a build");
        assert_eq!(made["images"], json!(["gcr.io/p/a"]));
        assert_eq!(
            made["steps"],
            json!([{
                "name": PACK,
                "entrypoint": "pack",
                "args": ["build", "gcr.io/p/a", "--builder", "gcr.io/b", "--env", "A=b"],
            }])
        );
        let made = build(&pairs("image=gcr.io/p/a")).expect("a build");
        assert_eq!(made["steps"][0]["args"][2], DEFAULT_BUILDER);
        assert_eq!(made["steps"][1]["args"], json!(["build", "gcr.io/p/a"]));
        for (text, told) in [("builder=b", "image=NAME is missing"), ("image=a,x=y", "x is none of")] {
            let said = build(&pairs(text)).expect_err(text).text();
            assert!(said.contains(told), "{said}");
        }
    }

    #[test]
    fn what_a_source_deploy_asks_for() {
        let make = Make {
            builder: Some("gcr.io/b".to_owned()),
            base_image: Some("gcr.io/run".to_owned()),
            set_build_env_vars: vec![flag::pairs("A=b").expect("pairs")],
        };
        let words = [
            "build",
            "i",
            "--builder",
            "gcr.io/b",
            "--run-image",
            "gcr.io/run",
            "--env",
            "A=b",
        ];
        assert_eq!(make.build("i", "gcr.io/b")["steps"][0]["args"], json!(words));
        let asked = make.buildpack_build(true);
        assert_eq!(asked["environmentVariables"], json!({"A": "b"}));
        assert_eq!(asked["projectDescriptor"], "project.toml");
    }
}
