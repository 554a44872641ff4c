//! The JSON document of a request, taken apart field by field.
//!
//! Whoever decodes takes each field it knows out of an [`Object`]; what is wrong with one is noted under its path and
//! decoding goes on, so that one answer names everything. What is left at the end with a value in it is a field that
//! does not exist. Clients send many empty fields (`"status": {"address": {}}`): those count as absent everywhere.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON's six kinds are closed, and all but one are wrong at a time"
)]

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use model::Violation;
use serde_json::{Map, Value};

use crate::{error::Error, reply::Body};

/// Largest document in bytes.
pub(crate) const MAX_DOCUMENT: usize = 1 << 20;

/// Within which a document must have arrived: a client that sends its head and then nothing holds no call for ever.
const PATIENCE: Duration = Duration::from_mins(1);

/// Reads a whole body of at most [`MAX_DOCUMENT`] bytes.
pub(crate) async fn read(body: Body) -> Result<Bytes, Error> {
    tokio::time::timeout(PATIENCE, gather(body)).await.unwrap_or_else(|_| {
        Err(Error::invalid(format!(
            "the request body did not arrive within {} seconds",
            PATIENCE.as_secs()
        )))
    })
}

async fn gather(mut body: Body) -> Result<Bytes, Error> {
    let mut content = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::invalid(format!("the request body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if content.len() + data.len() > MAX_DOCUMENT {
            return Err(Error::invalid(format!(
                "the request body is larger than {MAX_DOCUMENT} bytes, the limit"
            )));
        }
        content.extend_from_slice(&data);
    }
    Ok(content.freeze())
}

/// Reads a JSON document; an empty body is an empty object.
pub(crate) async fn read_json(body: Body) -> Result<Value, Error> {
    let content = read(body).await?;
    if content.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(Map::new()));
    }
    let mut text = serde_json::Deserializer::from_slice(&content);
    let value = serde::Deserialize::deserialize(&mut text).and_then(|value: Value| text.end().map(|()| value));
    value.map_err(|error| Error::invalid(format!("the request body is not valid JSON: {error}")))
}

/// What was found wrong so far.
#[derive(Debug, Default)]
pub(crate) struct Findings(RefCell<Vec<Violation>>);

impl Findings {
    pub(crate) fn say(&self, field: impl Into<String>, description: impl Into<String>) {
        self.0.borrow_mut().push(Violation::new(field, description));
    }

    /// Whether something below the path was found wrong.
    pub(crate) fn any_under(&self, path: &str) -> bool {
        self.0.borrow().iter().any(|found| found.field.starts_with(path))
    }

    /// An error when anything was found wrong.
    pub(crate) fn done(self) -> Result<(), Error> {
        let violations = self.into_violations();
        if violations.is_empty() {
            Ok(())
        } else {
            Err(Error::violations(violations))
        }
    }

    pub(crate) fn into_violations(self) -> Vec<Violation> {
        self.0.into_inner()
    }
}

/// Whether a value says nothing: null, an empty text, and lists and objects of such.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(is_empty),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

/// One object of the document, from which known fields are taken.
#[derive(Debug)]
pub(crate) struct Object<'f> {
    path: String,
    fields: Map<String, Value>,
    findings: &'f Findings,
}

impl<'f> Object<'f> {
    /// The whole document.
    pub(crate) fn root(value: Value, findings: &'f Findings) -> Self {
        Self::of(value, String::new(), findings)
    }

    fn of(value: Value, path: String, findings: &'f Findings) -> Self {
        let fields = match value {
            Value::Object(fields) => fields,
            other => {
                if !is_empty(&other) {
                    let whole = if path.is_empty() { "the document" } else { path.as_str() };
                    findings.say(whole, format!("expected an object, not {}", kind(&other)));
                }
                Map::new()
            }
        };
        Self { path, fields, findings }
    }

    /// The path of a field of this object.
    pub(crate) fn path(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    pub(crate) fn say(&self, field: &str, description: impl Into<String>) {
        self.findings.say(self.path(field), description);
    }

    pub(crate) fn findings(&self) -> &'f Findings {
        self.findings
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// The names of the fields that are left.
    pub(crate) fn names(&self) -> Vec<String> {
        self.fields.keys().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fields.values().all(is_empty)
    }

    fn wrong(&self, field: &str, expected: &str, found: &Value) {
        self.say(field, format!("expected {expected}, not {}", kind(found)));
    }

    /// An object below this one; an absent one is empty.
    pub(crate) fn object(&mut self, field: &str) -> Object<'f> {
        let value = self.fields.shift_remove(field).unwrap_or(Value::Null);
        Object::of(value, self.path(field), self.findings)
    }

    pub(crate) fn objects(&mut self, field: &str) -> Vec<Object<'f>> {
        match self.fields.shift_remove(field).unwrap_or(Value::Null) {
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| Object::of(item, format!("{}[{index}]", self.path(field)), self.findings))
                .collect(),
            other => {
                if !is_empty(&other) {
                    self.wrong(field, "a list", &other);
                }
                Vec::new()
            }
        }
    }

    /// A text; an empty one counts as absent.
    pub(crate) fn text(&mut self, field: &str) -> Option<String> {
        self.exact_text(field).filter(|text| !text.is_empty())
    }

    /// A text that may be empty.
    pub(crate) fn exact_text(&mut self, field: &str) -> Option<String> {
        match self.fields.shift_remove(field)? {
            Value::Null => None,
            Value::String(text) => Some(text),
            other => {
                self.wrong(field, "a text", &other);
                None
            }
        }
    }

    /// A text or a number, as an amount may be written.
    pub(crate) fn amount(&mut self, field: &str) -> Option<String> {
        if let Some(Value::Number(number)) = self.fields.get(field) {
            let text = number.to_string();
            self.fields.shift_remove(field);
            return Some(text);
        }
        self.text(field)
    }

    pub(crate) fn texts(&mut self, field: &str) -> Vec<String> {
        match self.fields.shift_remove(field).unwrap_or(Value::Null) {
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .filter_map(|(index, item)| match item {
                    Value::String(text) => Some(text),
                    other => {
                        self.wrong(&format!("{field}[{index}]"), "a text", &other);
                        None
                    }
                })
                .collect(),
            other => {
                if !is_empty(&other) {
                    self.wrong(field, "a list of texts", &other);
                }
                Vec::new()
            }
        }
    }

    pub(crate) fn map(&mut self, field: &str) -> BTreeMap<String, String> {
        match self.fields.shift_remove(field).unwrap_or(Value::Null) {
            Value::Object(entries) => entries
                .into_iter()
                .filter_map(|(key, value)| match value {
                    Value::String(text) => Some((key, text)),
                    Value::Null => None,
                    other => {
                        self.wrong(&format!("{field}[{key}]"), "a text", &other);
                        None
                    }
                })
                .collect(),
            other => {
                if !is_empty(&other) {
                    self.wrong(field, "an object of texts", &other);
                }
                BTreeMap::new()
            }
        }
    }

    /// A whole number, also written as a text (as JSON of 64-bit fields is).
    pub(crate) fn integer(&mut self, field: &str) -> Option<i64> {
        let value = self.fields.shift_remove(field)?;
        let number = match &value {
            Value::Null => return None,
            Value::String(text) if text.is_empty() => return None,
            Value::String(text) => text.parse().ok(),
            #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53, as checked")]
            Value::Number(number) => number.as_i64().or_else(|| {
                number
                    .as_f64()
                    .filter(|f| f.fract() == 0.0 && f.abs() < 9e15)
                    .map(|f| f as i64)
            }),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if number.is_none() {
            match &value {
                Value::String(text) => {
                    self.say(field, format!("expected a whole number, not \"{}\"", short(text)));
                }
                Value::Number(number) => self.say(field, format!("expected a whole number, not {number}")),
                other => self.wrong(field, "a whole number", other),
            }
        }
        number
    }

    pub(crate) fn boolean(&mut self, field: &str) -> Option<bool> {
        match self.fields.shift_remove(field)? {
            Value::Null => None,
            Value::Bool(value) => Some(value),
            other => {
                self.wrong(field, "true or false", &other);
                None
            }
        }
    }

    /// Fields that belong to the server: taken and dropped, whatever they hold.
    pub(crate) fn drop_owned(&mut self, fields: &[&str]) {
        for field in fields {
            self.fields.shift_remove(*field);
        }
    }

    /// A field that exists and is not served: refused when it says something. `false` says nothing.
    pub(crate) fn unserved(&mut self, fields: &[&str]) {
        for field in fields {
            if let Some(value) = self.fields.shift_remove(*field)
                && !is_empty(&value)
                && value != Value::Bool(false)
            {
                self.say(field, "is not served by this Homerun");
            }
        }
    }

    /// Ends the reading: every field still here with a value does not exist.
    pub(crate) fn finish(self) {
        for (field, value) in &self.fields {
            if !is_empty(value) {
                self.say(&short(field), "is not a field of this object");
            }
        }
    }
}

/// The start of a text, for a message.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_wrong_is_named_once() {
        let findings = Findings::default();
        let document = json!({
            "a": "x", "b": 3, "c": {"d": true, "e": [], "f": {"g": null}}, "list": [{"n": "1"}, {"n": "1.5"}, 7],
            "gone": {"x": [""]}, "new": 1, "off": false, "on": {"x": 1}
        });
        let mut root = Object::root(document, &findings);
        assert_eq!(root.text("a").as_deref(), Some("x"));
        assert_eq!(root.text("b"), None);
        let mut c = root.object("c");
        assert_eq!(c.boolean("d"), Some(true));
        c.finish();
        let numbers: Vec<_> = root
            .objects("list")
            .into_iter()
            .map(|mut item| item.integer("n"))
            .collect();
        assert_eq!(numbers, [Some(1), None, None]);
        root.unserved(&["off", "on"]);
        root.finish();
        let found: Vec<String> = findings.into_violations().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "b: expected a text, not a number",
                "list[2]: expected an object, not a number",
                "list[1].n: expected a whole number, not \"1.5\"",
                "on: is not served by this Homerun",
                "new: is not a field of this object",
            ]
        );
    }
}
