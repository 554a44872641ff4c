//! What gcloud knows and Homerun does not serve, and how words that are not understood are answered.
//!
//! The grammar's error enters, a text that names the word or the flag leaves: what it would need where gcloud has it,
//! what was probably meant where nobody has it.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::words::{Early, path};

/// Flags of gcloud that are not served, with what they would need. Without dashes.
const NOT_SERVED_FLAGS: &[(&str, &str)] = &[
    ("function", "functions"),
    ("automatic-updates", "updates of base images"),
    ("build-env-vars-file", "variables from a file; use --set-build-env-vars"),
    (
        "update-build-env-vars",
        "variables of the last build; use --set-build-env-vars",
    ),
    (
        "remove-build-env-vars",
        "variables of the last build; use --set-build-env-vars",
    ),
    (
        "clear-build-env-vars",
        "variables of the last build; use --set-build-env-vars",
    ),
    ("machine-type", "machines to build on"),
    ("gcs-source-staging-dir", "other buckets for sources"),
    ("gcs-log-dir", "other buckets for logs"),
    ("no-source", "builds without a source"),
    ("ignore-file", "other files of what stays behind; use .gcloudignore"),
    ("build-service-account", "builds as a service account"),
    ("build-worker-pool", "machines to build on"),
    ("build-machine-type", "machines to build on"),
    ("worker-pool", "machines to build on"),
    ("disk-size", "machines to build on"),
    (
        "no-cache",
        "builds by Kaniko; --tag never uses layers of earlier builds",
    ),
    ("kaniko-cache-ttl", "builds by Kaniko"),
    ("suppress-logs", "builds without their log; use --async"),
    ("replication-policy-file", "encryption keys and replication of secrets"),
    ("kms-key-name", "encryption keys"),
    ("regional-kms-key-name", "encryption keys"),
    ("topics", "topics of secrets"),
    ("add-topics", "topics of secrets"),
    ("remove-topics", "topics of secrets"),
    ("clear-topics", "topics of secrets"),
    ("next-rotation-time", "reminders to rotate a secret"),
    ("rotation-period", "reminders to rotate a secret"),
    ("remove-next-rotation-time", "reminders to rotate a secret"),
    ("remove-rotation-period", "reminders to rotate a secret"),
    ("remove-rotation-schedule", "reminders to rotate a secret"),
    ("version-destroy-ttl", "destroying versions later"),
    ("remove-version-destroy-ttl", "destroying versions later"),
    ("vpc-connector", "private networks"),
    ("clear-vpc-connector", "private networks"),
    ("vpc-egress", "private networks"),
    ("network", "private networks"),
    ("subnet", "private networks"),
    ("network-tags", "private networks"),
    ("clear-network", "private networks"),
    ("ingress", "reach settings; a service is open on the ingress"),
    ("add-cloudsql-instances", "Cloud SQL"),
    ("set-cloudsql-instances", "Cloud SQL"),
    ("remove-cloudsql-instances", "Cloud SQL"),
    ("clear-cloudsql-instances", "Cloud SQL"),
    ("gpu", "GPUs"),
    ("gpu-type", "GPUs"),
    ("gpu-zonal-redundancy", "GPUs"),
    ("no-gpu-zonal-redundancy", "GPUs"),
    ("env-vars-file", "variables from a file; use --set-env-vars"),
    ("binary-authorization", "Binary Authorization"),
    ("clear-binary-authorization", "Binary Authorization"),
    ("breakglass", "Binary Authorization"),
    ("key", "encryption keys"),
    ("clear-key", "encryption keys"),
    ("iap", "IAP"),
    ("no-iap", "IAP"),
    (
        "invoker-iam-check",
        "turning the invoker check off; use --allow-unauthenticated",
    ),
    (
        "no-invoker-iam-check",
        "turning the invoker check off; use --allow-unauthenticated",
    ),
    ("default-url", "turning the URL off"),
    ("no-default-url", "turning the URL off"),
    ("deploy-health-check", "skipping the start of a new revision"),
    ("no-deploy-health-check", "skipping the start of a new revision"),
    ("update-annotations", "annotations by flag; use `run services replace`"),
    ("all", "bindings regardless of their condition"),
    ("regions", "services in several regions"),
    ("cluster", "clusters"),
    ("cluster-location", "clusters"),
    ("namespace", "clusters"),
    ("filter", "filters; use --format=json and a tool such as jq"),
    ("sort-by", "sorting; use --format=value(...) and sort"),
    ("page-size", "pages of output"),
    ("uri", "URIs as output; use --format=value(metadata.selfLink)"),
    ("flatten", "flattened output"),
    ("available", "lists of APIs that are not enabled"),
    ("configuration", "named configurations"),
    ("billing-project", "billing projects"),
    ("verbosity", "levels of logging in this client"),
    ("log-http", "levels of logging in this client"),
    ("token-format", "tokens of machines"),
];

/// Words of gcloud that are not served, with what they stand for.
const NOT_SERVED_WORDS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "alpha",
            "components",
            "compute",
            "container",
            "init",
            "logging",
            "scheduler",
            "sql",
            "storage",
        ],
    ),
    (
        "run",
        &[
            "compose",
            "configurations",
            "domain-mappings",
            "integrations",
            "jobs",
            "multi-region-services",
            "routes",
            "worker-pools",
        ],
    ),
    (
        "builds",
        &[
            "triggers",
            "worker-pools",
            "connections",
            "repositories",
            "approve",
            "reject",
            "enterprise-config",
        ],
    ),
    ("run.services", &["logs"]),
    ("run.revisions", &["logs"]),
    ("services", &["disable", "operations"]),
    (
        "artifacts",
        &[
            "apt",
            "attachments",
            "files",
            "generic",
            "go",
            "googet",
            "locations",
            "operations",
            "packages",
            "print-settings",
            "rules",
            "sbom",
            "settings",
            "tags",
            "versions",
            "vpcsc-config",
            "vulnerabilities",
            "yum",
        ],
    ),
    (
        "artifacts.repositories",
        &[
            "add-iam-policy-binding",
            "get-iam-policy",
            "remove-iam-policy-binding",
            "set-iam-policy",
            "update",
        ],
    ),
    ("artifacts.docker", &["upgrade"]),
    (
        "artifacts.docker.images",
        &["get-operation", "list-vulnerabilities", "scan"],
    ),
    ("config", &["configurations"]),
    (
        "auth",
        &[
            "application-default",
            "configure-docker",
            "enterprise-certificate-config",
            "login",
        ],
    ),
];

/// What to print in place of the command.
pub(crate) fn early(error: &clap::Error, words: &[String]) -> Early {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Early::Help(error.to_string()),
        ErrorKind::UnknownArgument => {
            let argument = context(ContextKind::InvalidArg).unwrap_or_default();
            let name = argument.trim_start_matches('-');
            let name = name.split_once('=').map_or(name, |(name, _)| name);
            let not_served = NOT_SERVED_FLAGS.iter().find(|(flag, _)| *flag == name);
            Early::Usage(match not_served {
                Some((_, needs)) => {
                    format!("--{name} is not served by Homerun: it has no {needs}")
                }
                None => match context(ContextKind::SuggestedArg) {
                    Some(near) => {
                        format!("unrecognized arguments: {argument} (did you mean '{near}'?)")
                    }
                    None => format!("unrecognized arguments: {argument}"),
                },
            })
        }
        ErrorKind::InvalidSubcommand => {
            let word = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            let before = path(words);
            let not_served = NOT_SERVED_WORDS
                .iter()
                .any(|(under, list)| *under == before && list.contains(&word.as_str()));
            let whole = format!("{} {word}", before.replace('.', " "));
            let whole = whole.trim();
            Early::Usage(if not_served {
                format!("`{whole}` is not served by Homerun")
            } else {
                match context(ContextKind::SuggestedSubcommand) {
                    Some(near) => format!("invalid choice: '{word}' (did you mean '{near}'?)"),
                    None => format!("invalid choice: '{word}'"),
                }
            })
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Early::Usage(error.to_string()),
        ErrorKind::InvalidValue
        | ErrorKind::NoEquals
        | ErrorKind::ValueValidation
        | ErrorKind::TooManyValues
        | ErrorKind::TooFewValues
        | ErrorKind::WrongNumberOfValues
        | ErrorKind::ArgumentConflict
        | ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::InvalidUtf8
        | ErrorKind::Io
        | ErrorKind::Format
        | _ => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let first = text.split("\n\n").next().unwrap_or(text);
            let lines: Vec<&str> = first.lines().map(str::trim).collect();
            Early::Usage(lines.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::grammar;

    #[test]
    fn none_of_the_refused_flags_is_served() {
        fn longs(command: &clap::Command, into: &mut Vec<String>) {
            into.extend(command.get_arguments().flat_map(|argument| {
                let names = argument.get_long_and_visible_aliases().unwrap_or_default();
                names.into_iter().map(str::to_owned).collect::<Vec<_>>()
            }));
            command.get_subcommands().for_each(|sub| longs(sub, into));
        }
        let mut served = Vec::new();
        longs(&grammar(), &mut served);
        for (flag, _) in NOT_SERVED_FLAGS {
            // `env --all` is ours and another word; the annotations are those of secrets
            assert!(
                ["all", "update-annotations"].contains(flag) || !served.iter().any(|s| s == flag),
                "{flag}"
            );
        }
    }
}
