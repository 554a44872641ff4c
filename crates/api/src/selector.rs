//! Label selectors as Kubernetes writes them: `a = b, c in (d,e), !f`.

use std::collections::BTreeMap;

use crate::{document::short, error::Error};

#[derive(Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also true of what has no such label.
    NotIn(String, Vec<String>),
}

/// Which labels an item must have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

impl Selector {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |part: &str| {
            Error::field(
                "labelSelector",
                format!(
                    "\"{}\" is no requirement: expected KEY, !KEY, KEY=VALUE, KEY!=VALUE, KEY in (A,B) or KEY notin (A,B)",
                    short(part)
                ),
            )
        };
        let mut requirements = Vec::new();
        for part in parts(text) {
            let part = part.trim();
            requirements.push(requirement(part).ok_or_else(|| wrong(part))?);
        }
        Ok(Self(requirements))
    }

    pub(crate) fn admits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
        })
    }
}

/// Cuts at commas outside parentheses.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_u32);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Option<Requirement> {
    if let Some(key) = part.strip_prefix('!') {
        return Some(Requirement::Absent(name(key)?));
    }
    if let Some((key, values)) = part.split_once('(') {
        let values = values.strip_suffix(')')?;
        if values.contains(['(', ')']) {
            return None;
        }
        let values = values.split(',').map(value).collect::<Option<Vec<_>>>()?;
        let (key, word) = key.trim_end().rsplit_once(char::is_whitespace)?;
        return match word {
            "in" => Some(Requirement::In(name(key)?, values)),
            "notin" => Some(Requirement::NotIn(name(key)?, values)),
            _ => None,
        };
    }
    if let Some((key, text)) = part.split_once("!=") {
        return Some(Requirement::NotIn(name(key)?, vec![value(text)?]));
    }
    if let Some((key, text)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(Requirement::In(name(key)?, vec![value(text)?]));
    }
    Some(Requirement::Exists(name(part)?))
}

fn plain(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
}

fn name(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && plain(text)).then(|| text.to_owned())
}

fn value(text: &str) -> Option<String> {
    let text = text.trim();
    plain(text).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let labels: BTreeMap<String, String> = [("app", "web"), ("serving.knative.dev/service", "my-api")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        for (text, admits) in [
            ("app", true),
            ("!app", false),
            ("other", false),
            ("! other", true),
            ("app=web", true),
            ("app == web", true),
            ("serving.knative.dev/service = my-api", true),
            ("app=db", false),
            ("app!=db", true),
            ("other != db", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db),serving.knative.dev/service=my-api", true),
            ("app notin (web)", false),
            ("app=web,other", false),
            ("other in ()", false),
        ] {
            let selector = Selector::parse(text).expect(text);
            assert_eq!(selector.admits(&labels), admits, "{text}");
        }
        for text in [
            "",
            "a,",
            "a in b",
            "a within (b)",
            "a in (b",
            "=b",
            "a b",
            "a=b=c",
            "a in ((b))",
            "ä",
        ] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
