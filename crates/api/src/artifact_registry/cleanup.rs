//! Cleanup policies, as Artifact Registry writes them.

use std::{collections::BTreeMap, time::Duration};

use model::{CleanupCondition, CleanupPolicy, MAX_CLEANUP_POLICIES, TagState};
use serde_json::{Map, Value, json};

use crate::document::{Object, short};

/// Takes `cleanupPolicies` out of a repository's document.
pub(super) fn decode(root: &mut Object<'_>) -> BTreeMap<String, CleanupPolicy> {
    let mut policies = BTreeMap::new();
    let mut all = root.object("cleanupPolicies");
    let ids = all.names();
    if ids.len() > MAX_CLEANUP_POLICIES {
        root.say(
            "cleanupPolicies",
            format!("has {} policies, at most {MAX_CLEANUP_POLICIES} are allowed", ids.len()),
        );
    }
    for id in ids {
        let mut policy = all.object(&id);
        if let Some(written) = policy.text("id")
            && written != id
        {
            policy.say("id", format!("is \"{}\" and not the policy's key", short(&written)));
        }
        // gcloud hands on what stands in the user's file, in any case.
        let action = policy.text("action").map(|action| action.to_ascii_uppercase());
        let given = policy.object("condition");
        let has_condition = !given.is_empty();
        let condition = condition(given);
        let mut most_recent = policy.object("mostRecentVersions");
        let recent = !most_recent.is_empty();
        let packages = most_recent.texts("packageNamePrefixes");
        let count = most_recent.integer("keepCount");
        if recent && !count.is_some_and(|count| (1..=100_000).contains(&count)) {
            most_recent.say("keepCount", "expected a whole number of at least 1");
        }
        most_recent.finish();
        let read = match (action.as_deref(), recent, has_condition) {
            (Some("DELETE"), false, _) => Some(CleanupPolicy::Delete(condition)),
            (Some("KEEP"), false, true) => Some(CleanupPolicy::Keep(condition)),
            (Some("KEEP"), true, false) => Some(CleanupPolicy::KeepMostRecent {
                packages,
                count: u32::try_from(count.unwrap_or(0)).unwrap_or(0),
            }),
            (Some("DELETE"), true, _) => {
                policy.say("mostRecentVersions", "is for the action KEEP only");
                None
            }
            (Some("KEEP"), _, _) => {
                policy.say("condition", "expected either condition or mostRecentVersions");
                None
            }
            (_, _, _) => {
                policy.say("action", "expected DELETE or KEEP");
                None
            }
        };
        policy.finish();
        if let Some(read) = read {
            policies.insert(id, read);
        }
    }
    all.finish();
    policies
}

fn condition(mut document: Object<'_>) -> CleanupCondition {
    let state = document.text("tagState").map(|state| state.to_ascii_uppercase());
    let tags = match state.as_deref() {
        None | Some("TAG_STATE_UNSPECIFIED" | "ANY") => TagState::Any,
        Some("TAGGED") => TagState::Tagged,
        Some("UNTAGGED") => TagState::Untagged,
        Some(other) => {
            document.say(
                "tagState",
                format!("expected TAGGED, UNTAGGED or ANY, not \"{}\"", short(other)),
            );
            TagState::Any
        }
    };
    let condition = CleanupCondition {
        tags,
        tag_prefixes: document.texts("tagPrefixes"),
        version_prefixes: document.texts("versionNamePrefixes"),
        package_prefixes: document.texts("packageNamePrefixes"),
        older_than: duration(&mut document, "olderThan"),
        newer_than: duration(&mut document, "newerThan"),
    };
    document.finish();
    condition
}

/// `86400s`, as protocol buffers write a duration in JSON.
fn duration(document: &mut Object<'_>, field: &str) -> Option<Duration> {
    let text = document.text(field)?;
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    let read = seconds
        .filter(|seconds| (0.0..1e10).contains(seconds))
        .map(Duration::from_secs_f64);
    if read.is_none() {
        document.say(
            field,
            format!("expected seconds such as 86400s, not \"{}\"", short(&text)),
        );
    }
    read
}

pub(super) fn encode(policies: &BTreeMap<String, CleanupPolicy>) -> Value {
    let all: Map<String, Value> = policies
        .iter()
        .map(|(id, policy)| {
            let shown = match policy {
                CleanupPolicy::Delete(condition) => {
                    json!({ "id": id, "action": "DELETE", "condition": shown(condition) })
                }
                CleanupPolicy::Keep(condition) => {
                    json!({ "id": id, "action": "KEEP", "condition": shown(condition) })
                }
                CleanupPolicy::KeepMostRecent { packages, count } => {
                    let mut recent = json!({ "keepCount": count });
                    if !packages.is_empty() {
                        recent["packageNamePrefixes"] = json!(packages);
                    }
                    json!({ "id": id, "action": "KEEP", "mostRecentVersions": recent })
                }
            };
            (id.clone(), shown)
        })
        .collect();
    Value::Object(all)
}

fn shown(condition: &CleanupCondition) -> Value {
    let mut shown = Map::new();
    let state = match condition.tags {
        TagState::Any => "ANY",
        TagState::Tagged => "TAGGED",
        TagState::Untagged => "UNTAGGED",
    };
    shown.insert("tagState".to_owned(), state.into());
    for (field, prefixes) in [
        ("tagPrefixes", &condition.tag_prefixes),
        ("versionNamePrefixes", &condition.version_prefixes),
        ("packageNamePrefixes", &condition.package_prefixes),
    ] {
        if !prefixes.is_empty() {
            shown.insert(field.to_owned(), json!(prefixes));
        }
    }
    for (field, age) in [("olderThan", condition.older_than), ("newerThan", condition.newer_than)] {
        if let Some(age) = age {
            shown.insert(field.to_owned(), format!("{}s", age.as_secs_f64()).into());
        }
    }
    Value::Object(shown)
}
