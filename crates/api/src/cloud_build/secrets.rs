//! Secrets of a build: the versions that it may read (`availableSecrets`), and which of its steps has which (`secretEnv`).
//!
//! Steps here are no shells that look at variables: the only thing that reads one is `docker build --secret`. A name that
//! nothing reads is refused, since whoever wrote it expects something of it.

use std::collections::BTreeMap;

use model::{
    AvailableSecret, BuildStep, MAX_BUILD_SECRETS, Recipe, SecretName, SecretRef, VersionRef, is_build_variable,
    substitute,
};

use crate::{
    document::{Object, short},
    run::call::check_project,
    surface::Surface,
};

/// Reads `availableSecrets`.
pub(super) fn available(
    root: &mut Object<'_>,
    surface: &Surface,
    values: &BTreeMap<String, String>,
) -> Vec<AvailableSecret> {
    let mut secrets = root.object("availableSecrets");
    secrets.unserved(&["inline"]);
    let asked = secrets.objects("secretManager");
    if asked.len() > MAX_BUILD_SECRETS {
        let count = asked.len();
        secrets.say(
            "secretManager",
            format!("{count} secrets, the limit is {MAX_BUILD_SECRETS}"),
        );
    }
    secrets.finish();
    let mut found: Vec<AvailableSecret> = Vec::new();
    for mut secret in asked {
        let env = secret.text("env").unwrap_or_default();
        let name = secret.text("versionName").unwrap_or_default();
        if !is_build_variable(&env) {
            let shown = short(&env);
            secret.say(
                "env",
                format!("\"{shown}\" is no name of a variable: expected letters, digits and _"),
            );
        } else if found.iter().any(|other| other.env == env) {
            secret.say("env", format!("\"{env}\" is there twice"));
        }
        match substitute(&name, values) {
            Err(unknown) => secret.say("versionName", format!("${} has no value", short(&unknown))),
            Ok(name) => match version(surface, &name) {
                Ok(of) => found.push(AvailableSecret { env, of }),
                Err(why) => secret.say("versionName", why),
            },
        }
        secret.finish();
    }
    found
}

/// `projects/PROJECT/secrets/SECRET/versions/VERSION`.
fn version(surface: &Surface, name: &str) -> Result<SecretRef, String> {
    let parts: Vec<&str> = name.split('/').collect();
    let ["projects", project, "secrets", secret, "versions", version] = parts.as_slice() else {
        return Err(format!(
            "expected projects/PROJECT/secrets/SECRET/versions/VERSION, not \"{}\"",
            short(name)
        ));
    };
    check_project(project, &surface.site).map_err(|error| error.to_string())?;
    Ok(SecretRef {
        secret: secret.parse::<SecretName>().map_err(|error| error.to_string())?,
        version: VersionRef::parse(version)?,
    })
}

/// Says what is wrong between a step's secrets, those of the build, and what the step reads.
pub(super) fn check_step(step: &Object<'_>, asked: &BuildStep, recipe: Option<&Recipe>, available: &[AvailableSecret]) {
    let read = recipe.map_or(&[][..], |recipe| &recipe.secrets);
    for name in &asked.secret_env {
        let shown = short(name);
        if !available.iter().any(|secret| secret.env == *name) {
            step.say("secretEnv", format!("\"{shown}\" is not among availableSecrets"));
        } else if !read.iter().any(|secret| secret.env == *name) {
            step.say(
                "secretEnv",
                format!("nothing in args reads \"{shown}\": docker build --secret id=ID,env={shown} does"),
            );
        }
    }
    for secret in read.iter().filter(|secret| !asked.secret_env.contains(&secret.env)) {
        let (id, env) = (&secret.id, short(&secret.env));
        step.say(
            "args",
            format!("docker build --secret id={id}: \"{env}\" is not in the step's secretEnv"),
        );
    }
}

/// Says which secrets of a build no step has.
pub(super) fn check_use(root: &Object<'_>, available: &[AvailableSecret], steps: &[BuildStep]) {
    for (index, secret) in available.iter().enumerate() {
        if !steps.iter().any(|step| step.secret_env.contains(&secret.env)) {
            root.say(
                &format!("availableSecrets.secretManager[{index}].env"),
                format!("\"{}\" is in no step's secretEnv", short(&secret.env)),
            );
        }
    }
}
