//! `--format`: what of a result is printed, and how. gcloud's expressions, as far as they are served.
//!
//! `NAME[attributes](key, key:label=X, ...)` enters once, resources as JSON enter, text leaves. A key is a path through
//! the document (`status.traffic[1].url`, `metadata.labels."a/b"`) or, in lists, the heading of a default column
//! (`REVISION`). Pure but for nothing: no I/O here.

use serde_json::{Map, Value};

use crate::key::{Key, get, heading, key_of, last_field, merge, part, same_heading, split};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Json,
    Yaml,
    Value,
    Csv,
    Table,
    None,
}

/// A parsed `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format {
    shape: Shape,
    heading: bool,
    separator: Option<String>,
    keys: Vec<Key>,
}

/// A column of a default table: heading, and the cell of a resource.
pub(crate) struct Column {
    pub(crate) heading: &'static str,
    pub(crate) cell: fn(&Value) -> String,
}

impl Format {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
            .unwrap_or(text.len());
        let (name, mut rest) = text.split_at(end);
        let shape = match name {
            "json" => Shape::Json,
            "yaml" | "default" => Shape::Yaml,
            "value" | "get" => Shape::Value,
            "csv" => Shape::Csv,
            "table" => Shape::Table,
            "none" | "disable" => Shape::None,
            other => {
                return Err(format!(
                    "format [{other}] is not served: json, yaml, value(), csv(), table() and none are"
                ));
            }
        };
        let mut format = Self {
            shape,
            heading: true,
            separator: None,
            keys: Vec::new(),
        };
        if let Some(inside) = rest.strip_prefix('[') {
            let (attributes, after) = inside
                .split_once(']')
                .ok_or_else(|| format!("format [{text}] has no ] after ["))?;
            for attribute in split(attributes)? {
                match attribute.split_once('=') {
                    None if attribute.as_str() == "no-heading" => format.heading = false,
                    Some(("separator", separator)) => {
                        let separator = separator.trim_matches(['"', '\'']);
                        format.separator = Some(separator.replace("\\t", "\t"));
                    }
                    Some(_) | None => {
                        return Err(format!(
                            "attribute [{attribute}] of a format is not served: no-heading and separator are"
                        ));
                    }
                }
            }
            rest = after;
        }
        let rest = rest.trim();
        if let Some(inside) = rest.strip_prefix('(') {
            let inside = inside
                .strip_suffix(')')
                .ok_or_else(|| format!("format [{text}] has no ) at its end"))?;
            format.keys = split(inside)?.iter().map(|key| key_of(key)).collect::<Result<_, _>>()?;
        } else if !rest.is_empty() {
            return Err(format!("format [{text}] goes on after its name: [{rest}]"));
        }
        if format.keys.is_empty() && matches!(shape, Shape::Value | Shape::Csv | Shape::Table) {
            return Err(format!("format [{name}] requires keys, such as {name}(metadata.name)"));
        }
        Ok(format)
    }

    /// Prints a list of resources; `columns` are the headings that may be used as keys.
    pub(crate) fn list(&self, items: &[Value], columns: &[Column]) -> String {
        match self.shape {
            Shape::None => String::new(),
            Shape::Json => {
                let items: Vec<Value> = items.iter().map(|item| self.project(item)).collect();
                json_text(&Value::Array(items))
            }
            Shape::Yaml => {
                let documents: Vec<String> = items.iter().map(|item| yaml_text(&self.project(item))).collect();
                match documents.as_slice() {
                    [] => String::new(),
                    [one] => one.clone(),
                    several => format!("---\n{}", several.join("---\n")),
                }
            }
            Shape::Value => {
                let separator = self.separator.as_deref().unwrap_or("\t");
                let rows = self.rows(items, columns);
                lines(rows.iter().map(|row| row.join(separator)))
            }
            Shape::Csv => {
                let separator = self.separator.as_deref().unwrap_or(",");
                let mut rows = self.rows(items, columns);
                if self.heading {
                    let names = self.keys.iter().map(|key| {
                        key.label
                            .clone()
                            .unwrap_or_else(|| last_field(key).unwrap_or(key.text.clone()))
                    });
                    rows.insert(0, names.collect());
                }
                lines(rows.iter().map(|row| {
                    let cells: Vec<String> = row.iter().map(|cell| csv_cell(cell, separator)).collect();
                    cells.join(separator)
                }))
            }
            Shape::Table => {
                let mut rows = self.rows(items, columns);
                if self.heading {
                    rows.insert(0, self.keys.iter().map(heading).collect());
                }
                table(&rows)
            }
        }
    }

    /// Prints one resource.
    pub(crate) fn one(&self, item: &Value) -> String {
        match self.shape {
            Shape::Json => json_text(&self.project(item)),
            Shape::None | Shape::Yaml | Shape::Value | Shape::Csv | Shape::Table => {
                self.list(std::slice::from_ref(item), &[])
            }
        }
    }

    fn rows(&self, items: &[Value], columns: &[Column]) -> Vec<Vec<String>> {
        items
            .iter()
            .map(|item| self.keys.iter().map(|key| cell(key, item, columns)).collect())
            .collect()
    }

    /// What of the resource the keys name, at its place; all of it without keys.
    fn project(&self, item: &Value) -> Value {
        if self.keys.is_empty() {
            return item.clone();
        }
        let mut whole = Value::Null;
        for key in &self.keys {
            if let Some(part) = part(item, &key.path) {
                merge(&mut whole, part);
            }
        }
        if whole.is_null() {
            whole = Value::Object(Map::new());
        }
        whole
    }
}

fn cell(key: &Key, item: &Value, columns: &[Column]) -> String {
    let column = |word: &str| columns.iter().find(|column| same_heading(column.heading, word));
    if let Some(column) = column(&key.text) {
        return (column.cell)(item);
    }
    let found = get(item, &key.path);
    if found.is_null()
        && let Some(column) = column(&key.text.to_uppercase())
    {
        return (column.cell)(item);
    }
    scalar(&found)
}

/// A value as text on one line: lists by semicolon, maps as `key=value`.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let parts: Vec<String> = list
                .iter()
                .map(|item| match item {
                    Value::Array(_) | Value::Object(_) => literal(item),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => scalar(item),
                })
                .collect();
            parts.join(";")
        }
        Value::Object(fields) => {
            let mut parts: Vec<String> = fields
                .iter()
                .map(|(key, value)| match value {
                    Value::Array(_) | Value::Object(_) => format!("{key}={}", literal(value)),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                        format!("{key}={}", scalar(value))
                    }
                })
                .collect();
            parts.sort();
            parts.join(";")
        }
    }
}

/// A nested value in gcloud's notation, which is that of a Python literal.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(_) | Value::Number(_) => scalar(value),
        Value::String(text) => {
            let escaped = text.replace('\\', "\\\\").replace('\n', "\\n");
            if escaped.contains('\'') && !escaped.contains('"') {
                format!("\"{escaped}\"")
            } else {
                format!("'{}'", escaped.replace('\'', "\\'"))
            }
        }
        Value::Array(list) => {
            let parts: Vec<String> = list.iter().map(literal).collect();
            format!("[{}]", parts.join(", "))
        }
        Value::Object(fields) => {
            let mut parts: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("'{key}': {}", literal(value)))
                .collect();
            parts.sort();
            format!("{{{}}}", parts.join(", "))
        }
    }
}

fn csv_cell(cell: &str, separator: &str) -> String {
    if cell.contains(separator) || cell.contains(['"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

/// The width of text on a terminal, escape sequences taken out.
fn width(text: &str) -> usize {
    let mut width = 0;
    let mut escape = false;
    for c in text.chars() {
        match (escape, c) {
            (false, '\x1b') => escape = true,
            (true, 'm') => escape = false,
            (true, _) => {}
            (false, _) => width += 1,
        }
    }
    width
}

/// Each with a line end.
fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.flat_map(|line| [line, "\n".to_owned()]).collect()
}

/// Rows in columns, two blanks between them.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    lines(rows.iter().map(|row| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                line.push_str("  ");
            }
            line.push_str(cell);
            let pad = widths[column].saturating_sub(width(cell));
            line.extend(std::iter::repeat_n(' ', pad));
        }
        line.truncate(line.trim_end().len());
        line
    }))
}

/// The same with the keys of every map in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut pairs: Vec<(&String, &Value)> = fields.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            Value::Object(
                pairs
                    .into_iter()
                    .map(|(key, value)| (key.clone(), sorted(value)))
                    .collect(),
            )
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn json_text(value: &Value) -> String {
    let text = serde_json::to_string_pretty(&sorted(value)).expect("a value is JSON");
    format!("{text}\n")
}

pub(crate) fn yaml_text(value: &Value) -> String {
    serde_norway::to_string(&sorted(value)).expect("JSON is YAML")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Value {
        json!({
            "metadata": {"name": "my-api", "labels": {"team": "x", "cloud.googleapis.com/location": "us-central1"}},
            "spec": {"on": true, "n": 3},
            "status": {"url": "https://u", "traffic": [
                {"latestRevision": true, "percent": 100, "revisionName": "r2"},
                {"revisionName": "r2", "tag": "canary", "url": "https://canary---u"},
            ]},
        })
    }

    const COLUMNS: &[Column] = &[
        Column {
            heading: "",
            cell: |_| "✔".to_owned(),
        },
        Column {
            heading: "REVISION",
            cell: |item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        },
        Column {
            heading: "DEPLOYED BY",
            cell: |_| "me".to_owned(),
        },
    ];

    fn one(format: &str) -> String {
        Format::parse(format).expect(format).one(&service())
    }

    #[test]
    fn values() {
        let table = [
            ("value(status.url)", "https://u\n"),
            ("value(status.traffic[1].url)", "https://canary---u\n"),
            ("value(status.traffic[-1].tag)", "canary\n"),
            ("value(status.traffic[5].url)", "\n"),
            ("value(status.traffic[].revisionName)", "r2;r2\n"),
            ("value(status.traffic.revisionName)", "r2;r2\n"),
            ("value(metadata.name,status.url)", "my-api\thttps://u\n"),
            ("value[separator=\",\"](metadata.name, spec.n)", "my-api,3\n"),
            ("value(spec.on)", "True\n"),
            (
                "value(metadata.labels)",
                "cloud.googleapis.com/location=us-central1;team=x\n",
            ),
            (
                "value(metadata.labels.\"cloud.googleapis.com/location\")",
                "us-central1\n",
            ),
            ("value(metadata.labels.'team')", "x\n"),
            (
                "value(status.traffic[1])",
                "revisionName=r2;tag=canary;url=https://canary---u\n",
            ),
            ("get(metadata.name)", "my-api\n"),
            ("csv(metadata.name,status.url)", "name,url\nmy-api,https://u\n"),
            ("csv[no-heading](metadata.name)", "my-api\n"),
            ("none", ""),
        ];
        for (format, want) in table {
            assert_eq!(one(format), want, "{format}");
        }
        let nested = "{'latestRevision': True, 'percent': 100, 'revisionName': 'r2'};\
                      {'revisionName': 'r2', 'tag': 'canary', 'url': 'https://canary---u'}\n";
        assert_eq!(one("value(status.traffic)"), nested);
    }

    #[test]
    fn documents() {
        let yaml = "status:\n  traffic:\n  - latestRevision: true\n    percent: 100\n    revisionName: r2\n  \
                    - revisionName: r2\n    tag: canary\n    url: https://canary---u\n";
        assert_eq!(one("yaml(status.traffic)"), yaml);
        assert_eq!(
            one("json(status.url)"),
            "{\n  \"status\": {\n    \"url\": \"https://u\"\n  }\n}\n"
        );
        assert_eq!(
            one("json(status.url,metadata.name)"),
            "{\n  \"metadata\": {\n    \"name\": \"my-api\"\n  },\n  \"status\": {\n    \"url\": \"https://u\"\n  }\n}\n"
        );
        assert_eq!(one("json(nothing.there)"), "{}\n");
        let list = Format::parse("json(metadata.name)").expect("json");
        assert!(list.list(&[service()], &[]).starts_with("[\n  {"));
        let list = Format::parse("yaml(metadata.name)").expect("yaml");
        assert_eq!(
            list.list(&[service(), service()], &[]),
            "---\nmetadata:\n  name: my-api\n---\nmetadata:\n  name: my-api\n"
        );
    }

    #[test]
    fn tables_and_headings() {
        assert_eq!(
            one("table(status.url,metadata.name:label=NAME,spec.n:label=\"A B\")"),
            "URL        NAME    A B\nhttps://u  my-api  3\n"
        );
        assert_eq!(one("table[no-heading](metadata.name)"), "my-api\n");
        let key = key_of("status.latestReadyRevisionName").expect("a key");
        assert_eq!(heading(&key), "LATEST_READY_REVISION_NAME");
    }

    #[test]
    fn headings_of_columns_are_keys() {
        let list = |format: &str| Format::parse(format).expect(format).list(&[service()], COLUMNS);
        assert_eq!(list("value(REVISION)"), "my-api\n");
        assert_eq!(list("value(revision)"), "my-api\n");
        assert_eq!(list("value(REVISION,DEPLOYED_BY)"), "my-api\tme\n");
        assert_eq!(list("value(NOTHING)"), "\n");
    }

    #[test]
    fn what_is_not_served_is_refused() {
        for format in [
            "xml",
            "value",
            "table",
            "value()",
            "value(a",
            "json(a))b",
            "value(a.basename())",
            "value(a:sort=1)",
            "table[box](a)",
            "value(a[x])",
            "json x",
        ] {
            assert!(Format::parse(format).is_err(), "{format}");
        }
    }

    #[test]
    fn colours_have_no_width() {
        let rows = [
            vec!["\x1b[32m✔\x1b[0m".to_owned(), "a".to_owned()],
            vec!["-".to_owned(), "b".to_owned()],
        ];
        assert_eq!(table(&rows), "\x1b[32m✔\x1b[0m  a\n-  b\n");
    }
}
