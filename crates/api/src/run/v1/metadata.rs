//! `metadata`: names, labels and annotations, by Kubernetes' grammar and Google's rules for labels.

use std::collections::BTreeMap;

use crate::document::{Findings, Object, short};

/// Fields of `metadata` that belong to the server.
pub(crate) const OWNED: &[&str] = &[
    "uid",
    "selfLink",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "clusterName",
];

/// Most labels of one resource.
const MAX_LABELS: usize = 64;
/// Bytes of all annotations of one resource, keys and values.
const MAX_ANNOTATIONS: usize = 256 << 10;
/// The label that tells the region. Clients send it back.
pub(crate) const LOCATION: &str = "cloud.googleapis.com/location";
/// Label prefixes that only the server writes.
const RESERVED: &[&str] = &[
    "cloud.googleapis.com/",
    "run.googleapis.com/",
    "serving.knative.dev/",
    "autoscaling.knative.dev/",
];

/// Takes `labels`, without those the server owns, and notes each that breaks a rule.
pub(crate) fn labels(metadata: &mut Object<'_>, owned: &[&str]) -> BTreeMap<String, String> {
    let mut labels = metadata.map("labels");
    labels.retain(|key, _| !owned.contains(&key.as_str()));
    if labels.len() > MAX_LABELS {
        metadata.say(
            "labels",
            format!("{} labels are too many: at most {MAX_LABELS}", labels.len()),
        );
    }
    for (key, value) in &labels {
        let field = format!("labels[{}]", short(key));
        if let Some(prefix) = RESERVED.iter().find(|prefix| key.starts_with(**prefix)) {
            metadata.say(&field, format!("labels under {prefix} are set by the server"));
        } else if let Some(rule) = broken_label_key(key) {
            metadata.say(&field, format!("is no key of a label: {rule}"));
        } else if let Some(rule) = broken_label_value(key, value) {
            metadata.say(&field, format!("\"{}\" is no value of a label: {rule}", short(value)));
        }
    }
    labels
}

const PLAIN_KEY: &str = "lowercase letters, digits, '_' and '-'; must begin with a letter, and at most 63 characters";
const PLAIN_VALUE: &str = "lowercase letters, digits, '_' and '-', and at most 63 characters";
const QUALIFIED: &str = "an optional DNS name and '/', then letters, digits, '-', '_' and '.', beginning and ending with a letter or digit, and at most 63 characters";
const QUALIFIED_VALUE: &str =
    "letters, digits, '-', '_' and '.', beginning and ending with a letter or digit, and at most 63 characters";

/// Google's label alphabet.
fn is_plain(c: char) -> bool {
    (c.is_alphabetic() && !c.is_uppercase()) || c.is_numeric() || matches!(c, '_' | '-')
}

fn broken_label_key(key: &str) -> Option<&'static str> {
    if key.contains('/') {
        return (!is_qualified(key)).then_some(QUALIFIED);
    }
    let valid =
        key.chars().count() <= 63 && key.chars().next().is_some_and(char::is_alphabetic) && key.chars().all(is_plain);
    (!valid).then_some(PLAIN_KEY)
}

/// A key with a prefix follows Kubernetes, one without follows Google's labels.
fn broken_label_value(key: &str, value: &str) -> Option<&'static str> {
    if key.contains('/') {
        return (!value.is_empty() && !is_name(value)).then_some(QUALIFIED_VALUE);
    }
    let valid = value.chars().count() <= 63 && value.chars().all(is_plain);
    (!valid).then_some(PLAIN_VALUE)
}

/// Kubernetes' grammar of a name behind an optional prefix.
fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        None => is_name(key),
        Some((prefix, name)) => is_dns_name(prefix) && is_name(name),
    }
}

fn is_name(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.bytes().next())
        && ends(text.bytes().last())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_dns_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            let ends = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            label.len() <= 63
                && ends(label.bytes().next())
                && ends(label.bytes().last())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// Notes annotations whose key breaks Kubernetes' grammar, and too many of them. `path` is that of the annotations.
pub(crate) fn check_annotations(annotations: &BTreeMap<String, String>, path: &str, findings: &Findings) {
    for key in annotations.keys().filter(|key| !is_qualified(key)) {
        findings.say(
            format!("{path}[{}]", short(key)),
            format!("is no key of an annotation: {QUALIFIED}"),
        );
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ANNOTATIONS {
        findings.say(
            path,
            format!("{size} bytes of annotations are too many: at most {MAX_ANNOTATIONS}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_grammar() {
        for (key, value) in [
            ("env", "prod"),
            ("label-x", ""),
            ("client.knative.dev/nonce", "dor_sid_bep"),
            ("example.com/App", "V1.0"),
            ("größe", "zwölf"),
        ] {
            assert_eq!(broken_label_key(key), None, "{key}");
            assert_eq!(broken_label_value(key, value), None, "{value}");
        }
        let long = "a".repeat(64);
        for key in [
            "",
            "A",
            "1a",
            "-a",
            "a.b",
            "a b",
            "/a",
            "a/",
            "a/b/c",
            "A.b/c",
            "a/-b",
            long.as_str(),
        ] {
            assert!(broken_label_key(key).is_some(), "{key}");
        }
        for (key, value) in [
            ("a", "B"),
            ("a", "1.0"),
            ("a", long.as_str()),
            ("x/a", "-b"),
            ("x/a", "b b"),
        ] {
            assert!(broken_label_value(key, value).is_some(), "{value}");
        }
    }
}
