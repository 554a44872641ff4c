//! Names of secrets in a template: those of this project, and aliases for full paths.
//!
//! gcloud writes a secret that is named with its project as an alias, and what the alias stands for into the annotation
//! `run.googleapis.com/secrets`. Here a template holds the secret itself, and is shown without an alias.

use std::collections::BTreeMap;

use model::{SecretName, Site};

use crate::document::{Object, short};

/// What the aliases of a template stand for.
pub(crate) type Aliases = BTreeMap<String, SecretName>;

/// Reads `ALIAS:projects/PROJECT/secrets/SECRET,...`. What is wrong with it is noted at `field`.
pub(crate) fn aliases(text: &str, site: &Site, metadata: &Object<'_>, field: &str) -> Aliases {
    let mut aliases = Aliases::new();
    for entry in text.split(',').filter(|entry| !entry.trim().is_empty()) {
        match alias(entry.trim(), site) {
            Ok((alias, secret)) => {
                aliases.insert(alias, secret);
            }
            Err(why) => metadata.say(field, why),
        }
    }
    aliases
}

fn alias(entry: &str, site: &Site) -> Result<(String, SecretName), String> {
    let wrong = || {
        format!(
            "\"{}\" is not of the form ALIAS:projects/PROJECT/secrets/SECRET",
            short(entry)
        )
    };
    let (alias, path) = entry.split_once(':').ok_or_else(wrong)?;
    let ["projects", project, "secrets", secret] = path.split('/').collect::<Vec<_>>()[..] else {
        return Err(wrong());
    };
    if project != site.project.as_str() && project != site.number().to_string() {
        return Err(format!(
            "secrets of other projects are not served by this Homerun, only of {} ({})",
            site.project,
            site.number()
        ));
    }
    let secret = SecretName::parse(secret).map_err(|error| error.to_string())?;
    Ok((alias.to_owned(), secret))
}

/// The secret that a required field names. None where it cannot be read, which was noted.
pub(crate) fn name(of: &mut Object<'_>, field: &str, aliases: &Aliases) -> Option<SecretName> {
    let Some(text) = of.text(field) else {
        of.say(field, "is required: the name of a secret");
        return None;
    };
    if let Some(secret) = aliases.get(&text) {
        return Some(secret.clone());
    }
    match SecretName::parse(&text) {
        Ok(secret) => Some(secret),
        Err(error) => {
            of.say(field, error.to_string());
            None
        }
    }
}
