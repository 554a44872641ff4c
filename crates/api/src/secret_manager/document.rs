//! The document of a secret: from JSON to what it asks for, and back.

use std::{collections::BTreeMap, time::Duration};

use model::{
    MAX_SECRET_ALIASES, MAX_SECRET_ANNOTATION_BYTES, MAX_SECRET_LABELS, Replication, Secret, Timestamp, VersionRef,
};
use serde_json::{Value, json};

use super::name_of;
use crate::{
    document::{Findings, Object, short},
    error::Error,
    run::v1::rfc3339,
    surface::Surface,
};

/// Fields of Secret Manager's secrets that are not served.
const UNSERVED: [&str; 5] = [
    "topics",
    "rotation",
    "customerManagedEncryption",
    "versionDestroyTtl",
    "tags",
];

/// What a document asks for; of a change only some of it counts.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) replication: Option<Replication>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) aliases: BTreeMap<String, u64>,
    pub(super) expires: Option<Timestamp>,
    pub(super) etag: Option<String>,
}

/// The etag of something that was made then and changed so often.
pub(super) fn etag(created: Timestamp, changes: u64) -> String {
    format!("\"{:x}{changes:02x}\"", created.as_micros())
}

pub(super) fn encode(surface: &Surface, secret: &Secret) -> Value {
    let mut shown = json!({
        "name": name_of(surface, &secret.name),
        "replication": encode_replication(&secret.replication),
        "createTime": rfc3339(secret.created),
        "etag": etag(secret.created, secret.changes),
    });
    if !secret.labels.is_empty() {
        shown["labels"] = json!(secret.labels);
    }
    if !secret.annotations.is_empty() {
        shown["annotations"] = json!(secret.annotations);
    }
    if !secret.aliases.is_empty() {
        // Numbers of 64 bits are texts in Google's JSON.
        let aliases = secret.aliases.iter().map(|(alias, number)| (alias, number.to_string()));
        shown["versionAliases"] = json!(aliases.collect::<BTreeMap<_, _>>());
    }
    if let Some(at) = secret.expires {
        shown["expireTime"] = rfc3339(at).into();
    }
    shown
}

fn encode_replication(replication: &Replication) -> Value {
    match replication {
        Replication::Automatic => json!({ "automatic": {} }),
        Replication::UserManaged { locations } => {
            let replicas: Vec<Value> = locations
                .iter()
                .map(|location| json!({ "location": location }))
                .collect();
            json!({ "userManaged": { "replicas": replicas } })
        }
    }
}

/// Where each version of the secret is, as a version shows it.
pub(super) fn replication_status(replication: &Replication) -> Value {
    encode_replication(replication)
}

pub(super) fn decode(document: Value, now: Timestamp) -> Result<Asked, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let replication = replication(&mut root);
    let labels = labels(&mut root);
    let annotations = annotations(&mut root);
    let aliases = aliases(&mut root);
    let expires = expires(&mut root, now);
    let etag = root.text("etag");
    root.unserved(&UNSERVED);
    root.drop_owned(&["name", "createTime"]);
    root.finish();
    let violations = findings.into_violations();
    if !violations.is_empty() {
        return Err(Error::violations(violations));
    }
    Ok(Asked {
        replication,
        labels,
        annotations,
        aliases,
        expires,
        etag,
    })
}

fn replication(root: &mut Object<'_>) -> Option<Replication> {
    let mut given = root.object("replication");
    let (automatic, managed) = (given.has("automatic"), given.has("userManaged"));
    let mut found = None;
    if automatic && managed {
        given.say(
            "userManaged",
            "the secret is replicated automatically too: it is one or the other",
        );
    }
    if automatic {
        let mut automatic = given.object("automatic");
        automatic.unserved(&["customerManagedEncryption"]);
        automatic.finish();
        found = Some(Replication::Automatic);
    }
    if managed {
        let mut managed = given.object("userManaged");
        let mut locations = Vec::new();
        for mut replica in managed.objects("replicas") {
            match replica.text("location") {
                Some(location) => locations.push(location),
                None => replica.say("location", "is required"),
            }
            replica.unserved(&["customerManagedEncryption"]);
            replica.finish();
        }
        if locations.is_empty() {
            managed.say("replicas", "at least one is required");
        }
        managed.finish();
        found = Some(Replication::UserManaged { locations });
    }
    given.finish();
    found
}

fn labels(root: &mut Object<'_>) -> BTreeMap<String, String> {
    let labels = root.map("labels");
    if labels.len() > MAX_SECRET_LABELS {
        root.say(
            "labels",
            format!("{} labels are too many: at most {MAX_SECRET_LABELS}", labels.len()),
        );
    }
    let part = |c: char| (c.is_alphabetic() && !c.is_uppercase()) || c.is_numeric() || matches!(c, '_' | '-');
    let fits = |text: &str| text.chars().count() <= 63 && text.len() <= 128 && text.chars().all(part);
    for (key, value) in &labels {
        let field = format!("labels[{}]", short(key));
        let begins = key
            .chars()
            .next()
            .is_some_and(|c| c.is_alphabetic() && !c.is_uppercase());
        if !begins || !fits(key) {
            let rule = "a lowercase letter, then lowercase letters, digits, hyphens and underscores, at most 63";
            root.say(&field, format!("is no key of a label: {rule}"));
        }
        if !fits(value) {
            let rule = "lowercase letters, digits, hyphens and underscores, at most 63";
            root.say(&field, format!("\"{}\" is no value of a label: {rule}", short(value)));
        }
    }
    labels
}

fn annotations(root: &mut Object<'_>) -> BTreeMap<String, String> {
    let annotations = root.map("annotations");
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size >= MAX_SECRET_ANNOTATION_BYTES {
        root.say(
            "annotations",
            format!("have {size} bytes, the limit is less than {MAX_SECRET_ANNOTATION_BYTES}"),
        );
    }
    for key in annotations.keys() {
        let bytes = key.as_bytes();
        let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if key.len() > 63 || !ends(bytes.first()) || !ends(bytes.last()) || !bytes.iter().all(plain) {
            let rule = "letters, digits, '-', '_' and '.', a letter or digit first and last, at most 63";
            root.say(
                &format!("annotations[{}]", short(key)),
                format!("is no key of an annotation: {rule}"),
            );
        }
    }
    annotations
}

/// That there is a version of each number is checked where it is known.
fn aliases(root: &mut Object<'_>) -> BTreeMap<String, u64> {
    let mut given = root.object("versionAliases");
    let names = given.names();
    if names.len() > MAX_SECRET_ALIASES {
        root.say(
            "versionAliases",
            format!("{} aliases are too many: at most {MAX_SECRET_ALIASES}", names.len()),
        );
    }
    let mut aliases = BTreeMap::new();
    for name in names {
        let number = given.integer(&name).and_then(|number| u64::try_from(number).ok());
        if !VersionRef::is_alias(&name) {
            let rule = "a letter, then letters, digits, hyphens and underscores, at most 63, not latest and not NEW";
            given.say(&short(&name), format!("is no alias: {rule}"));
        } else if let Some(number) = number.filter(|number| *number > 0) {
            aliases.insert(name, number);
        } else {
            given.say(&short(&name), "expected the number of a version, from 1");
        }
    }
    aliases
}

fn expires(root: &mut Object<'_>, now: Timestamp) -> Option<Timestamp> {
    let (at, ttl) = (root.text("expireTime"), root.text("ttl"));
    if at.is_some() && ttl.is_some() {
        root.say("ttl", "expireTime is given too: it is one or the other");
        return None;
    }
    if let Some(text) = at {
        let Ok(at) = text.parse::<jiff::Timestamp>() else {
            let what = format!("\"{}\" is no time, such as 2030-01-01T08:15:30Z", short(&text));
            root.say("expireTime", what);
            return None;
        };
        let at = Timestamp::from_micros(at.as_microsecond());
        if at <= now {
            root.say("expireTime", format!("\"{}\" is not in the future", short(&text)));
        }
        return Some(at);
    }
    let text = ttl?;
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    // A hundred years.
    let seconds = seconds.filter(|seconds| *seconds > 0.0 && *seconds <= 3_153_600_000.0);
    let Some(seconds) = seconds else {
        root.say(
            "ttl",
            format!("\"{}\" is no duration from now on, such as 3600s", short(&text)),
        );
        return None;
    };
    Some(now.plus(Duration::from_secs_f64(seconds)))
}
