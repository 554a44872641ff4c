//! Keys of `--format`: paths through a document, and the headings of columns.
//!
//! Text enters once, a [`Key`] leaves; documents enter, what the key names in them leaves.

use serde_json::{Map, Value};

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Field(String),
    Index(i64),
    Each,
}

/// A key of a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// As typed.
    pub(crate) text: String,
    pub(crate) path: Vec<Step>,
    pub(crate) label: Option<String>,
}

/// Parts between commas that stand in no bracket and no quotes.
pub(crate) fn split(text: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_i32;
    let mut quote = None;
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ']') => depth -= 1,
            (None, ',') if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            (Some(_) | None, _) => {}
        }
        parts.last_mut().expect("begins with one").push(c);
    }
    if quote.is_some() {
        return Err(format!("quotes are not closed in [{text}]"));
    }
    Ok(parts
        .into_iter()
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect())
}

pub(crate) fn key_of(text: &str) -> Result<Key, String> {
    let mut path = Vec::new();
    let mut chars = text.chars().peekable();
    let mut label = None;
    let mut name = String::new();
    let mut quoted = false;
    macro_rules! field {
        () => {
            if !name.is_empty() || quoted {
                path.push(Step::Field(std::mem::take(&mut name)));
                quoted = false;
            }
        };
    }
    while let Some(c) = chars.next() {
        match c {
            '.' => field!(),
            '"' | '\'' => {
                quoted = true;
                name.extend(chars.by_ref().take_while(|next| *next != c));
            }
            '[' => {
                field!();
                let index: String = chars.by_ref().take_while(|next| *next != ']').collect();
                path.push(match index.trim() {
                    "" => Step::Each,
                    number => Step::Index(
                        number
                            .parse()
                            .map_err(|_| format!("[{index}] in [{text}] is no index"))?,
                    ),
                });
            }
            '(' => {
                return Err(format!(
                    "transform {name}() in [{text}] is not served, print the whole value"
                ));
            }
            ':' => {
                let attributes: String = chars.by_ref().collect();
                for attribute in attributes.split(':') {
                    match attribute.split_once('=') {
                        Some(("label", value)) => {
                            label = Some(value.trim_matches(['"', '\'']).to_owned());
                        }
                        Some(_) | None => {
                            return Err(format!(
                                "attribute [{attribute}] of key [{text}] is not served: label is"
                            ));
                        }
                    }
                }
            }
            other => name.push(other),
        }
    }
    if !name.is_empty() || quoted {
        path.push(Step::Field(name));
    }
    if path.is_empty() {
        return Err(format!("[{text}] is no key"));
    }
    let text = text.split(':').next().unwrap_or(text).to_owned();
    Ok(Key { text, path, label })
}

pub(crate) fn last_field(key: &Key) -> Option<String> {
    key.path.iter().rev().find_map(|step| match step {
        Step::Field(name) => Some(name.clone()),
        Step::Index(_) | Step::Each => None,
    })
}

/// The heading of a key: its label, or its last field in capitals with its words apart.
pub(crate) fn heading(key: &Key) -> String {
    if let Some(label) = &key.label {
        return label.clone();
    }
    let mut heading = String::new();
    let mut small = false;
    for c in last_field(key).unwrap_or_default().chars() {
        if c.is_ascii_uppercase() && small {
            heading.push('_');
        }
        small = c.is_ascii_lowercase() || c.is_ascii_digit();
        heading.push(c.to_ascii_uppercase());
    }
    heading
}

pub(crate) fn same_heading(heading: &str, word: &str) -> bool {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    !heading.is_empty() && heading.chars().map(plain).eq(word.chars())
}

fn at(list: &[Value], index: i64) -> Option<&Value> {
    let from_end = || usize::try_from(-index).ok().and_then(|n| list.len().checked_sub(n));
    let index = usize::try_from(index).ok().or_else(from_end)?;
    list.get(index)
}

/// The value at a path, null where there is none. Over a list without an index: the values of all elements.
pub(crate) fn get(value: &Value, path: &[Step]) -> Value {
    let Some((step, rest)) = path.split_first() else {
        return value.clone();
    };
    match (step, value) {
        (Step::Field(name), Value::Object(fields)) => fields.get(name).map_or(Value::Null, |inner| get(inner, rest)),
        (Step::Index(index), Value::Array(list)) => at(list, *index).map_or(Value::Null, |inner| get(inner, rest)),
        (Step::Each, Value::Array(list)) => list
            .iter()
            .map(|inner| get(inner, rest))
            .filter(|found| !found.is_null())
            .collect(),
        (Step::Field(_), Value::Array(list)) => list
            .iter()
            .map(|inner| get(inner, path))
            .filter(|found| !found.is_null())
            .collect(),
        _ => Value::Null,
    }
}

/// The value at a path with everything around it.
pub(crate) fn part(value: &Value, path: &[Step]) -> Option<Value> {
    let Some((step, rest)) = path.split_first() else {
        return Some(value.clone());
    };
    match (step, value) {
        (Step::Field(name), Value::Object(fields)) => {
            let inner = part(fields.get(name)?, rest)?;
            Some(Value::Object(Map::from_iter([(name.clone(), inner)])))
        }
        (Step::Index(index), Value::Array(list)) => Some(Value::Array(vec![part(at(list, *index)?, rest)?])),
        (Step::Each, Value::Array(list)) => Some(list.iter().filter_map(|inner| part(inner, rest)).collect()),
        (Step::Field(_), Value::Array(list)) => Some(list.iter().filter_map(|inner| part(inner, path)).collect()),
        _ => None,
    }
}

pub(crate) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) if into.len() == from.len() => {
            into.iter_mut().zip(from).for_each(|(i, f)| merge(i, f));
        }
        (into, from) => *into = from,
    }
}
