//! The Knative-shaped documents of the Run Admin API v1: one file per resource, each with its decoding and encoding.
//!
//! Annotations with a meaning become fields of `model` here and annotations again on the way out; nobody else reads
//! one. Server-owned fields are dropped when a client sends them back, as read-modify-write clients do.

pub(crate) mod annotation;
pub(crate) mod configuration;
pub(crate) mod container;
mod kpa;
pub(crate) mod list;
pub(crate) mod metadata;
mod probe;
pub(crate) mod revision;
pub(crate) mod route;
mod secrets;
pub(crate) mod service;
pub(crate) mod template;
pub(crate) mod traffic;
mod volume;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use model::{Condition, ConditionState, Revision, Timestamp, latest_created, latest_ready};
use serde_json::{Value, json};

/// `apiVersion` of everything here.
pub(crate) const SERVING: &str = "serving.knative.dev/v1";

/// Writes the names of the newest revision and of the newest ready one, where there are any, into a status.
fn name_latest<'a>(status: &mut Value, revisions: impl Iterator<Item = &'a Revision> + Clone) {
    if let Some(created) = latest_created(revisions.clone()) {
        status["latestCreatedRevisionName"] = created.key.name.as_str().into();
    }
    if let Some(ready) = latest_ready(revisions) {
        status["latestReadyRevisionName"] = ready.key.name.as_str().into();
    }
}

/// RFC 3339 in UTC with microseconds.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_microsecond(at.as_micros()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{at:.6}")
}

/// An opaque text of a number that clients hand back: `resourceVersion`, `etag`.
pub(crate) fn opaque(version: u64) -> String {
    STANDARD.encode(version.to_be_bytes())
}

fn condition(condition: &Condition) -> Value {
    let (status, why) = match &condition.state {
        ConditionState::True => ("True", None),
        ConditionState::False { reason, message } => ("False", Some((reason, message))),
        ConditionState::Unknown { reason, message } => ("Unknown", Some((reason, message))),
    };
    let mut shown = json!({ "type": condition.kind, "status": status });
    if let Some((reason, message)) = why {
        shown["reason"] = reason.as_str().into();
        if !message.is_empty() {
            shown["message"] = message.as_str().into();
        }
    }
    if condition.info {
        shown["severity"] = "Info".into();
    }
    shown["lastTransitionTime"] = rfc3339(condition.since).into();
    shown
}

pub(crate) fn conditions(all: &[Condition]) -> Value {
    all.iter().map(condition).collect()
}

/// One of `all` under the name `Ready`, as the views of a service show it.
fn as_ready(all: &[Condition], kind: &str) -> Value {
    let only = all.iter().find(|c| c.kind == kind).map(|c| Condition {
        kind: "Ready",
        ..c.clone()
    });
    conditions(only.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_microseconds() {
        assert_eq!(
            rfc3339(Timestamp::from_micros(1_800_000_000_000_000)),
            "2027-01-15T08:00:00.000000Z"
        );
        assert_eq!(
            rfc3339(Timestamp::from_micros(1_800_000_000_043_143)),
            "2027-01-15T08:00:00.043143Z"
        );
    }
}
