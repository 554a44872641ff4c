//! Annotations of Cloud Run's own namespaces: which of them mean something, which are kept, which are refused.
//!
//! | place | becomes a field | kept word for word | known, not served: refused |
//! |---|---|---|---|
//! | service | `ingress` (only `all`), scale bounds and mode, `custom-audiences` | [`KEPT`] | [`UNSERVED_SERVICE`] |
//! | template | scale bounds, Knative's scaling, `cpu-throttling`, `startup-cpu-boost`, `execution-environment`, `sessionAffinity`, `container-dependencies`, `secrets` | [`KEPT`] | [`UNSERVED_TEMPLATE`] |
//!
//! Every other key under `run.googleapis.com/` and `autoscaling.knative.dev/` is refused; keys of anybody else are kept.

use std::{collections::BTreeMap, num::NonZeroU32};

use model::{
    CpuAllocation, Kpa, MAX_CUSTOM_AUDIENCES, RevisionTemplate, Sandbox, Scaling, ServiceName, ServiceScaling,
};

use crate::{
    document::{Object, short},
    run::v1::{kpa, metadata::check_annotations},
};

const RUN: &str = "run.googleapis.com/";
const SCALE: &str = "autoscaling.knative.dev/";

/// What clients note about themselves, without effect: kept. A name that ends in `-` stands for all that begin so.
const KEPT: &[&str] = &["client-name", "client-version", "build-", "launch-stage", "description"];

/// Known under `run.googleapis.com/` at the service, not served.
const UNSERVED_SERVICE: &[&str] = &[
    "default-url-disabled",
    "invoker-iam-disabled",
    "binary-authorization",
    "binary-authorization-breakglass",
    "gc-traffic-tags",
    "base-images",
    "iap-enabled",
];

/// Known under `run.googleapis.com/` at the template, not served.
const UNSERVED_TEMPLATE: &[&str] = &[
    "cloudsql-instances",
    "encryption-key",
    "encryption-key-shutdown-hours",
    "post-key-revocation-action-type",
    "health-check-disabled",
    "network-interfaces",
    "vpc-access-connector",
    "vpc-access-egress",
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

/// A number of instances, noted when it is out of range.
fn count(metadata: &Object<'_>, field: &str, value: &str, least: u32) -> Option<u32> {
    match value.parse::<u32>() {
        Ok(count) if count >= least && count <= Scaling::HIGHEST_MAX => Some(count),
        _ => {
            metadata.say(
                field,
                format!(
                    "\"{}\" is out of range: {least} to {}",
                    short(value),
                    Scaling::HIGHEST_MAX
                ),
            );
            None
        }
    }
}

/// What a service's annotations mean.
#[derive(Debug, Default)]
pub(crate) struct ServiceMeaning {
    pub(crate) kept: BTreeMap<String, String>,
    pub(crate) scaling: ServiceScaling,
    pub(crate) custom_audiences: Vec<String>,
}

/// Reads a list of audiences, noting what is wrong with it.
fn audiences(metadata: &Object<'_>, field: &str, value: &str) -> Vec<String> {
    let Ok(listed) = serde_json::from_str::<Vec<String>>(value) else {
        metadata.say(field, "is no JSON list of texts, such as [\"https://api.example.com\"]");
        return Vec::new();
    };
    if value.chars().count() > MAX_CUSTOM_AUDIENCES {
        metadata.say(field, format!("is longer than {MAX_CUSTOM_AUDIENCES} characters"));
    } else if listed.iter().any(String::is_empty) {
        metadata.say(field, "has an empty audience");
    }
    listed
}

/// Takes a service's annotations.
pub(crate) fn of_service(metadata: &mut Object<'_>) -> ServiceMeaning {
    let mut scaling = ServiceScaling::default();
    let mut custom_audiences = Vec::new();
    let mut manual = false;
    let mut kept = sift(metadata, UNSERVED_SERVICE, |metadata, space, name, value| {
        if OWNED_SERVICE.contains(&format!("{space}{name}").as_str()) {
            return true;
        }
        let field = format!("annotations[{space}{name}]");
        match (space, name) {
            (RUN, "ingress") => {}
            (RUN, "custom-audiences") => {
                if !value.is_empty() {
                    custom_audiences = audiences(metadata, &field, value);
                }
                return true;
            }
            // An empty one says nothing.
            (RUN, "minScale" | "maxScale" | "scalingMode" | "manualInstanceCount") if value.is_empty() => return true,
            (RUN, "minScale") => {
                scaling.min = count(metadata, &field, value, 0).unwrap_or_default();
                return true;
            }
            (RUN, "maxScale") => {
                scaling.max = count(metadata, &field, value, 1).and_then(NonZeroU32::new);
                return true;
            }
            (RUN, "manualInstanceCount") => {
                scaling.manual = count(metadata, &field, value, 0);
                return true;
            }
            (RUN, "scalingMode") => {
                manual = value == "manual";
                if !manual && value != "automatic" {
                    metadata.say(&field, format!("\"{}\" is neither automatic nor manual", short(value)));
                }
                return true;
            }
            _ => return false,
        }
        let field = field.as_str();
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
    let counted = scaling.manual.is_some();
    if manual != counted && !metadata.findings().any_under(&metadata.path("annotations")) {
        let (field, why) = if manual {
            ("manualInstanceCount", "is required when scalingMode is manual")
        } else {
            ("manualInstanceCount", "counts only when scalingMode is manual")
        };
        metadata.say(&format!("annotations[{RUN}{field}]"), why);
    }
    if let Some(max) = scaling.max
        && scaling.min > max.get()
    {
        metadata.say(
            &format!("annotations[{RUN}minScale]"),
            format!("{} is more than the maximum of {max} instances", scaling.min),
        );
    }
    ServiceMeaning {
        kept,
        scaling,
        custom_audiences,
    }
}

/// The audiences of a service as an annotation.
pub(crate) fn put_audiences(audiences: &[String], shown: &mut BTreeMap<String, String>) {
    if !audiences.is_empty() {
        let listed = serde_json::to_string(audiences).expect("texts are JSON");
        shown.insert(format!("{RUN}custom-audiences"), listed);
    }
}

/// The bounds of a service as annotations.
pub(crate) fn put_scaling(scaling: &ServiceScaling, shown: &mut BTreeMap<String, String>) {
    let ServiceScaling { min, max, manual } = scaling;
    let mut put = |key: &str, value: String| {
        shown.insert(format!("{RUN}{key}"), value);
    };
    if *min > 0 {
        put("minScale", min.to_string());
    }
    if let Some(max) = max {
        put("maxScale", max.to_string());
    }
    if let Some(count) = manual {
        put("scalingMode", "manual".to_owned());
        put("manualInstanceCount", count.to_string());
    }
}

/// What a template's annotations mean.
#[derive(Debug, Default)]
pub(crate) struct Meaning {
    pub(crate) kept: BTreeMap<String, String>,
    pub(crate) scaling: Scaling,
    pub(crate) cpu_allocation: Option<CpuAllocation>,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) startup_cpu_boost: Option<bool>,
    pub(crate) session_affinity: Option<bool>,
    pub(crate) kpa: Option<Kpa>,
    /// Which container is started after which others.
    pub(crate) dependencies: BTreeMap<String, Vec<String>>,
    /// Which aliases stand for which secrets, as it was written.
    pub(crate) secrets: String,
}

/// Takes a template's annotations.
pub(crate) fn of_template(metadata: &mut Object<'_>) -> Meaning {
    let mut meant = Meaning::default();
    let mut knative = kpa::Given::default();
    let kept = sift(metadata, UNSERVED_TEMPLATE, |metadata, space, name, value| {
        let field = format!("annotations[{space}{name}]");
        let count = |least: u32| count(metadata, &field, value, least);
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
            (RUN, "secrets") => value.clone_into(&mut meant.secrets),
            (RUN, "startup-cpu-boost") => meant.startup_cpu_boost = flag(),
            (RUN, "sessionAffinity") => meant.session_affinity = flag(),
            (RUN, "container-dependencies") if value.is_empty() => {}
            (RUN, "container-dependencies") => match serde_json::from_str(value) {
                Ok(dependencies) => meant.dependencies = dependencies,
                Err(_) => metadata.say(
                    &field,
                    "is no JSON object of lists of names, such as {\"app\":[\"proxy\"]}",
                ),
            },
            (SCALE, _) => return knative.take(metadata, name, value),
            (RUN, "execution-environment") => match value {
                "" => {}
                "gen2" => meant.sandbox = Some(Sandbox::Gen2),
                "gen1" => meant.sandbox = Some(Sandbox::Gen1),
                other => metadata.say(&field, format!("\"{}\" is neither gen1 nor gen2", short(other))),
            },
            _ => return false,
        }
        true
    });
    meant.kpa = knative.read(metadata);
    Meaning { kept, ..meant }
}

/// A template's annotations as they are shown.
pub(crate) fn shown(template: &RevisionTemplate, service: &ServiceName) -> BTreeMap<String, String> {
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
    if let Some(affinity) = template.session_affinity {
        put("run.googleapis.com/sessionAffinity", affinity.to_string());
    }
    let dependencies: serde_json::Map<String, serde_json::Value> = template
        .containers()
        .zip(template.container_names(service))
        .filter(|(container, _)| !container.depends_on.is_empty())
        .map(|(container, name)| (name, container.depends_on.clone().into()))
        .collect();
    if !dependencies.is_empty() {
        put(
            "run.googleapis.com/container-dependencies",
            serde_json::Value::Object(dependencies).to_string(),
        );
    }
    for (key, value) in template.kpa.iter().flat_map(kpa::annotations) {
        put(&format!("{SCALE}{key}"), value);
    }
    shown
}

pub(crate) fn execution_environment(sandbox: Sandbox) -> &'static str {
    match sandbox {
        Sandbox::Gen1 => "gen1",
        Sandbox::Gen2 => "gen2",
    }
}
