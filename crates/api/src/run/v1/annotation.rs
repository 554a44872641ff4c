//! Annotations of Cloud Run's own namespaces: which of them mean something, which are kept, which are refused.
//!
//! | place | becomes a field | kept word for word | known, not served: refused |
//! |---|---|---|---|
//! | service | `ingress` (only `all`) | [`KEPT`] | [`UNSERVED_SERVICE`] |
//! | template | scale bounds, `cpu-throttling`, `startup-cpu-boost`, `execution-environment` (only gen2) | [`KEPT`] | [`UNSERVED_TEMPLATE`] |
//!
//! Every other key under `run.googleapis.com/` and `autoscaling.knative.dev/` is refused; keys of anybody else are kept.

use std::{collections::BTreeMap, num::NonZeroU32};

use model::{CpuAllocation, RevisionTemplate, Sandbox, Scaling};

use crate::{
    document::{Object, short},
    run::v1::metadata::check_annotations,
};

const RUN: &str = "run.googleapis.com/";
const SCALE: &str = "autoscaling.knative.dev/";

/// What clients note about themselves, without effect: kept. A name that ends in `-` stands for all that begin so.
const KEPT: &[&str] = &["client-name", "client-version", "build-", "launch-stage", "description"];

/// Known under `run.googleapis.com/` at the service, not served.
const UNSERVED_SERVICE: &[&str] = &[
    "minScale",
    "maxScale",
    "scalingMode",
    "manualInstanceCount",
    "default-url-disabled",
    "invoker-iam-disabled",
    "custom-audiences",
    "binary-authorization",
    "binary-authorization-breakglass",
    "gc-traffic-tags",
    "base-images",
    "iap-enabled",
];

/// Known under `run.googleapis.com/` at the template, not served.
const UNSERVED_TEMPLATE: &[&str] = &[
    "sessionAffinity",
    "cloudsql-instances",
    "container-dependencies",
    "encryption-key",
    "encryption-key-shutdown-hours",
    "post-key-revocation-action-type",
    "health-check-disabled",
    "network-interfaces",
    "vpc-access-connector",
    "vpc-access-egress",
    "secrets",
    "secure-session-agent",
    "gpu-zonal-redundancy-disabled",
    "base-images",
];

/// Server-owned annotations of a service: dropped when sent back. With an operation id gcloud would wait for an
/// operation that does not exist.
const OWNED_SERVICE: &[&str] = &[
    "serving.knative.dev/creator",
    "serving.knative.dev/lastModifier",
    "run.googleapis.com/ingress-status",
    "run.googleapis.com/urls",
    "run.googleapis.com/operation-id",
];

/// Longest description in characters.
const MAX_DESCRIPTION: usize = 512;

/// Google's booleans in annotations; gcloud writes them as Python does.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn is_kept(name: &str) -> bool {
    KEPT.iter().any(|kept| {
        if kept.ends_with('-') {
            name.starts_with(kept)
        } else {
            name == *kept
        }
    })
}

/// Walks the annotations of our namespaces: `meaning` says whether it took the one of this name (without its
/// namespace); of the rest the known are judged by `unserved`. Returns what is kept.
fn sift(
    metadata: &mut Object<'_>,
    unserved: &[&str],
    mut meaning: impl FnMut(&Object<'_>, &str, &str, &str) -> bool,
) -> BTreeMap<String, String> {
    let annotations = metadata.map("annotations");
    check_annotations(&annotations, &metadata.path("annotations"), metadata.findings());
    let mut kept = BTreeMap::new();
    for (key, value) in annotations {
        let field = format!("annotations[{}]", short(&key));
        let Some((space, name)) = [RUN, SCALE]
            .iter()
            .find_map(|space| Some((*space, key.strip_prefix(space)?)))
        else {
            kept.insert(key, value);
            continue;
        };
        if meaning(metadata, space, name, &value) {
            continue;
        }
        if space == RUN && is_kept(name) {
            if name == "description" && value.chars().count() > MAX_DESCRIPTION {
                metadata.say(&field, format!("is longer than {MAX_DESCRIPTION} characters"));
            }
            kept.insert(key, value);
        } else if space == RUN && unserved.contains(&name) {
            // What is switched off is served by not being there.
            if boolean(&value) == Some(false) {
                kept.insert(key, value);
            } else if !value.is_empty() {
                metadata.say(&field, "is not served by this Homerun");
            }
        } else {
            metadata.say(&field, format!("is no annotation of this object under {space}"));
        }
    }
    kept
}

/// Takes a service's annotations: returns those that are kept.
pub(crate) fn of_service(metadata: &mut Object<'_>) -> BTreeMap<String, String> {
    let mut kept = sift(metadata, UNSERVED_SERVICE, |metadata, space, name, value| {
        if OWNED_SERVICE.contains(&format!("{space}{name}").as_str()) {
            return true;
        }
        if space != RUN || name != "ingress" {
            return false;
        }
        let field = "annotations[run.googleapis.com/ingress]";
        match value {
            "" | "all" => {}
            "internal" | "internal-and-cloud-load-balancing" | "none" => {
                metadata.say(
                    field,
                    format!("\"{value}\" is not served by this Homerun, only \"all\" is"),
                );
            }
            other => metadata.say(
                field,
                format!(
                    "\"{}\" is none of all, internal and internal-and-cloud-load-balancing",
                    short(other)
                ),
            ),
        }
        true
    });
    kept.retain(|key, _| !OWNED_SERVICE.contains(&key.as_str()));
    kept
}

/// What a template's annotations mean.
#[derive(Debug, Default)]
pub(crate) struct Meaning {
    pub(crate) kept: BTreeMap<String, String>,
    pub(crate) scaling: Scaling,
    pub(crate) cpu_allocation: Option<CpuAllocation>,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) startup_cpu_boost: Option<bool>,
}

/// Takes a template's annotations.
pub(crate) fn of_template(metadata: &mut Object<'_>) -> Meaning {
    let mut meant = Meaning::default();
    let kept = sift(metadata, UNSERVED_TEMPLATE, |metadata, space, name, value| {
        let field = format!("annotations[{space}{name}]");
        let count = |least: u32| match value.parse::<u32>() {
            Ok(count) if count >= least && count <= Scaling::HIGHEST_MAX => Some(count),
            _ => {
                metadata.say(
                    &field,
                    format!(
                        "\"{}\" is out of range: {least} to {}",
                        short(value),
                        Scaling::HIGHEST_MAX
                    ),
                );
                None
            }
        };
        let flag = || {
            let read = boolean(value);
            if read.is_none() {
                metadata.say(&field, format!("expected true or false, not \"{}\"", short(value)));
            }
            read
        };
        match (space, name) {
            (SCALE, "minScale" | "min-scale") => {
                if let Some(min) = count(0) {
                    meant.scaling.min = min;
                }
            }
            (SCALE, "maxScale" | "max-scale") => {
                if let Some(max) = count(1).and_then(NonZeroU32::new) {
                    meant.scaling.max = max;
                }
            }
            (RUN, "cpu-throttling") => {
                meant.cpu_allocation = flag().map(|throttled| {
                    if throttled {
                        CpuAllocation::Request
                    } else {
                        CpuAllocation::Instance
                    }
                });
            }
            (RUN, "startup-cpu-boost") => meant.startup_cpu_boost = flag(),
            (RUN, "execution-environment") => match value {
                "" => {}
                "gen2" => meant.sandbox = Some(Sandbox::Gen2),
                "gen1" => metadata.say(&field, "gen1 is not served by this Homerun, only gen2 is"),
                other => metadata.say(&field, format!("\"{}\" is neither gen1 nor gen2", short(other))),
            },
            _ => return false,
        }
        true
    });
    Meaning { kept, ..meant }
}

/// A template's annotations as they are shown.
pub(crate) fn shown(template: &RevisionTemplate) -> BTreeMap<String, String> {
    let mut shown = template.annotations.clone();
    let mut put = |key: &str, value: String| {
        shown.insert(key.to_owned(), value);
    };
    let Scaling { min, max } = template.scaling;
    put("autoscaling.knative.dev/maxScale", max.to_string());
    if min > 0 {
        put("autoscaling.knative.dev/minScale", min.to_string());
    }
    if let Some(allocation) = template.cpu_allocation {
        put(
            "run.googleapis.com/cpu-throttling",
            (allocation == CpuAllocation::Request).to_string(),
        );
    }
    if let Some(sandbox) = template.sandbox {
        put(
            "run.googleapis.com/execution-environment",
            execution_environment(sandbox).to_owned(),
        );
    }
    if let Some(boost) = template.startup_cpu_boost {
        put("run.googleapis.com/startup-cpu-boost", boost.to_string());
    }
    shown
}

pub(crate) fn execution_environment(sandbox: Sandbox) -> &'static str {
    match sandbox {
        Sandbox::Gen1 => "gen1",
        Sandbox::Gen2 => "gen2",
    }
}
