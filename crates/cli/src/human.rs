//! How a service and a revision look to a person: the view of `describe`, of `update-traffic` and the ready symbols.
//!
//! Documents of the server enter, lines leave. The rows and their names are gcloud's.

mod template;

use serde_json::{Value, json};

use self::template::settings;
use crate::change;
use crate::outside::Ink;
use crate::traffic::{self, To};

/// A row: `label: value` with its indent. Rows without a value are not printed, headings are rows with `None`.
struct Row {
    indent: usize,
    label: String,
    value: Option<String>,
}

#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn heading(&mut self, indent: usize, label: &str) {
        self.0.push(Row {
            indent,
            label: label.to_owned(),
            value: None,
        });
    }

    fn put(&mut self, indent: usize, label: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.push(Row {
                indent,
                label: label.to_owned(),
                value: Some(value),
            });
        }
    }

    /// Lines with the values in one column.
    fn lines(&self, indent: usize) -> Vec<String> {
        let head = |row: &Row| " ".repeat(row.indent + indent) + &row.label;
        let widest = self
            .0
            .iter()
            .filter(|row| row.value.is_some())
            .map(|row| head(row).chars().count())
            .max()
            .unwrap_or(0);
        self.0
            .iter()
            .map(|row| match &row.value {
                Some(value) => format!("{:<widest$} {value}", head(row)),
                None => head(row),
            })
            .collect()
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn annotation<'a>(metadata: &'a Value, key: &str) -> &'a str {
    metadata["annotations"][key].as_str().unwrap_or_default()
}

/// A number or text field as text.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// The condition of a type.
pub(crate) fn condition<'a>(resource: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = resource["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// Whether the status belongs to the newest generation.
pub(crate) fn is_current(resource: &Value) -> bool {
    let observed = &resource["status"]["observedGeneration"];
    observed.is_null() || *observed == resource["metadata"]["generation"]
}

/// True, False or not known.
pub(crate) fn ready(resource: &Value) -> Option<bool> {
    let ready = condition(resource, "Ready").filter(|_| is_current(resource))?;
    match ready["status"].as_str()? {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// ✔ ready, X not, ! an older revision serves, … not known yet.
pub(crate) fn symbol(resource: &Value) -> &'static str {
    match ready(resource) {
        Some(true) => "✔",
        Some(false) => {
            let latest_ready = text(resource, "/status/latestReadyRevisionName");
            if !latest_ready.is_empty() && latest_ready != text(resource, "/status/latestCreatedRevisionName") {
                "!"
            } else {
                "X"
            }
        }
        None => "…",
    }
}

/// The URL that is shown for a service.
pub(crate) fn url(service: &Value) -> &str {
    text(service, "/status/url")
}

pub(crate) fn region(resource: &Value) -> &str {
    resource["metadata"]["labels"]["cloud.googleapis.com/location"]
        .as_str()
        .unwrap_or_default()
}

fn header(resource: &Value, kind: &str, ink: Ink) -> String {
    let name = text(resource, "/metadata/name");
    let place = match region(resource) {
        "" => format!("namespace {}", text(resource, "/metadata/namespace")),
        region => format!("region {region}"),
    };
    format!(
        "{} {}",
        ink.symbol(symbol(resource)),
        ink.bold(&format!("{kind} {name} in {place}"))
    )
}

fn labels(resource: &Value) -> String {
    let mut labels: Vec<String> = resource["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !change::is_reserved(key))
        .map(|(key, value)| format!("{key}:{}", plain(value)))
        .collect();
    labels.sort();
    labels.join(" ")
}

fn ready_message(resource: &Value, ink: Ink) -> Option<String> {
    let message = condition(resource, "Ready")?["message"].as_str()?;
    (!message.is_empty()).then(|| format!("{} {message}", ink.symbol(symbol(resource))))
}

/// The view of one service.
pub(crate) fn service(service: &Value, ink: Ink) -> String {
    let mut lines = vec![header(service, "Service", ink)];
    lines.push(labels(service));
    lines.push(" ".to_owned());
    let ingress = annotation(&service["metadata"], "run.googleapis.com/ingress");
    let mut route = Rows::default();
    route.put(0, "URL:", url(service));
    route.put(0, "Ingress:", ingress);
    lines.extend(route.lines(0));
    lines.push("Traffic:".to_owned());
    lines.extend(traffic_lines(&pairs(service), ink));
    lines.push(" ".to_owned());
    let modifier = match annotation(&service["metadata"], "serving.knative.dev/lastModifier") {
        "" => "?",
        who => who,
    };
    let time = condition(service, "Ready")
        .and_then(|ready| ready["lastTransitionTime"].as_str())
        .unwrap_or("?");
    lines.push(format!("Last updated on {time} by {modifier}:"));
    let name = match text(service, "/spec/template/metadata/name") {
        "" => text(service, "/status/latestCreatedRevisionName"),
        name => name,
    };
    lines.push(format!("  {}", ink.bold(&format!("Revision {name}"))));
    let template = &service["spec"]["template"];
    let of_template = labels(template);
    if !of_template.is_empty() {
        lines.push(format!("  {of_template}"));
    }
    lines.extend(settings(template).lines(2));
    lines.extend(ready_message(service, ink));
    joined(lines)
}

/// The view of one revision.
pub(crate) fn revision(revision: &Value, ink: Ink) -> String {
    let mut lines = vec![header(revision, "Revision", ink), labels(revision), " ".to_owned()];
    let mut rows = settings(revision);
    rows.put(0, "Image digest:", text(revision, "/status/imageDigest"));
    lines.extend(rows.lines(0));
    lines.extend(ready_message(revision, ink));
    joined(lines)
}

fn joined(lines: Vec<String>) -> String {
    lines
        .into_iter()
        .filter(|line| !line.is_empty())
        .map(|line| line + "\n")
        .collect()
}

/// A target with what was asked for it and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    to: To,
    revision: String,
    asked: Option<u32>,
    has: Option<u32>,
    tags: Vec<PairTag>,
    service_url: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PairTag {
    tag: String,
    url: String,
    asked: bool,
    has: bool,
}

/// Spec and status of the traffic side by side, by name, LATEST last.
pub(crate) fn pairs(service: &Value) -> Vec<Pair> {
    let latest = text(service, "/status/latestReadyRevisionName");
    let asked = traffic::read(&service["spec"]["traffic"]);
    let entries: Vec<Value> = service["status"]["traffic"].as_array().cloned().unwrap_or_default();
    let mut pairs: Vec<Pair> = Vec::new();
    let at = |pairs: &mut Vec<Pair>, to: &To| {
        if let Some(index) = pairs.iter().position(|pair| pair.to == *to) {
            return index;
        }
        let revision = match to {
            To::Latest => latest.to_owned(),
            To::Revision(name) => name.clone(),
        };
        pairs.push(Pair {
            to: to.clone(),
            revision,
            asked: None,
            has: None,
            tags: Vec::new(),
            service_url: url(service).to_owned(),
        });
        pairs.len() - 1
    };
    let add = |sum: &mut Option<u32>, percent: u32| {
        *sum = Some(sum.unwrap_or(0).saturating_add(percent));
    };
    for entry in asked {
        let index = at(&mut pairs, &entry.to);
        add(&mut pairs[index].asked, entry.percent);
        if let Some(tag) = entry.tag {
            pairs[index].tags.push(PairTag {
                tag,
                url: String::new(),
                asked: true,
                has: false,
            });
        }
    }
    for document in &entries {
        let entry = traffic::read_entry(document);
        let index = at(&mut pairs, &entry.to);
        add(&mut pairs[index].has, entry.percent);
        if let Some(tag) = entry.tag {
            let url = text(document, "/url").to_owned();
            let tags = &mut pairs[index].tags;
            match tags.iter_mut().find(|known| known.tag == tag) {
                Some(known) => {
                    known.url = url;
                    known.has = true;
                }
                None => tags.push(PairTag {
                    tag,
                    url,
                    asked: false,
                    has: true,
                }),
            }
        }
    }
    pairs.sort_by(|one, other| one.to.cmp(&other.to));
    for pair in &mut pairs {
        pair.tags.sort_by(|one, other| one.tag.cmp(&other.tag));
    }
    pairs
}

fn percent(percent: Option<u32>) -> String {
    percent.map_or("-".to_owned(), |percent| format!("{percent}%"))
}

impl Pair {
    fn shown_percent(&self) -> String {
        if self.asked == self.has {
            percent(self.has)
        } else {
            format!("{:<4} (currently {})", percent(self.asked), percent(self.has))
        }
    }

    fn shown_revision(&self) -> String {
        match &self.to {
            To::Latest => format!("LATEST (currently {})", self.revision),
            To::Revision(name) => name.clone(),
        }
    }

    /// The fields that gcloud prints for `update-traffic --format json`.
    fn document(&self) -> Value {
        let names = |of: fn(&PairTag) -> bool| {
            let names: Vec<&str> = self
                .tags
                .iter()
                .filter(|tag| of(tag))
                .map(|tag| tag.tag.as_str())
                .collect();
            if names.is_empty() {
                "-".to_owned()
            } else {
                names.join(", ")
            }
        };
        let (spec_tags, status_tags) = (names(|tag| tag.asked), names(|tag| tag.has));
        let number = |percent: Option<u32>| percent.map_or("-".to_owned(), |p| p.to_string());
        let tags: Vec<Value> = self
            .tags
            .iter()
            .map(|tag| json!({"tag": tag.tag, "url": tag.url, "inSpec": tag.asked, "inStatus": tag.has}))
            .collect();
        let urls: Vec<&str> = self
            .tags
            .iter()
            .map(|tag| tag.url.as_str())
            .filter(|url| !url.is_empty())
            .collect();
        json!({
            "displayPercent": self.shown_percent(),
            "displayRevisionId": self.shown_revision(),
            "displayTags": match (spec_tags == status_tags, status_tags.as_str()) {
                (true, "-") => String::new(),
                (true, tags) => tags.to_owned(),
                (false, _) => format!("{spec_tags} (currently {status_tags})"),
            },
            "key": self.to.word(),
            "latestRevision": self.to == To::Latest,
            "revisionName": self.revision,
            "serviceUrl": self.service_url,
            "specPercent": number(self.asked),
            "specTags": spec_tags,
            "statusPercent": number(self.has),
            "statusTags": status_tags,
            "tags": tags,
            "urls": urls,
        })
    }
}

/// The pairs as documents.
pub(crate) fn pair_documents(pairs: &[Pair]) -> Vec<Value> {
    pairs.iter().map(Pair::document).collect()
}

fn traffic_lines(pairs: &[Pair], ink: Ink) -> Vec<String> {
    let widest = pairs
        .iter()
        .map(|pair| pair.shown_percent().chars().count())
        .max()
        .unwrap_or(0);
    let state = |tag: &PairTag| match (tag.asked, tag.has) {
        (true, false) => " (Adding)",
        (false, true) => " (Deleting)",
        (true, true) | (false, false) => "",
    };
    let label = |tag: &PairTag| format!("{}{}:", tag.tag, state(tag));
    let all = pairs.iter().flat_map(|pair| &pair.tags);
    let widest_tag = all.map(|tag| label(tag).chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for pair in pairs {
        lines.push(format!(
            "  {:<widest$} {}",
            pair.shown_percent(),
            ink.bold(&pair.shown_revision())
        ));
        for tag in &pair.tags {
            let line = format!(
                "{:width$}{:<widest_tag$} {}",
                "",
                label(tag),
                tag.url,
                width = widest + 5
            );
            lines.push(line.trim_end().to_owned());
        }
    }
    lines
}

/// What `update-traffic` prints.
pub(crate) fn traffic(service: &Value, ink: Ink) -> String {
    let mut lines = vec![format!("URL: {}", url(service)), "Traffic:".to_owned()];
    lines.extend(traffic_lines(&pairs(service), ink));
    joined(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Value {
        json!({
            "metadata": {"name": "my-api", "generation": 2, "labels": {"team": "x", "cloud.googleapis.com/location": "us-central1"},
                "annotations": {"run.googleapis.com/ingress": "all", "serving.knative.dev/lastModifier": "dev@example.com"}},
            "spec": {
                "template": {"metadata": {"labels": {"team": "x"}, "annotations": {"autoscaling.knative.dev/maxScale": "100"}},
                    "spec": {"serviceAccountName": "sa@p", "containerConcurrency": 80, "timeoutSeconds": 300, "containers": [{
                        "image": "i:v2", "ports": [{"containerPort": 8080}], "resources": {"limits": {"cpu": "1", "memory": "512Mi"}},
                        "env": [{"name": "BB", "value": "2"}, {"name": "A", "value": "1"}]}]}},
                "traffic": [{"revisionName": "my-api-00001-aaa", "percent": 90}, {"latestRevision": true, "percent": 10}, {"revisionName": "my-api-00002-bbb", "tag": "green"}]},
            "status": {"observedGeneration": 2, "url": "https://u", "latestCreatedRevisionName": "my-api-00002-bbb", "latestReadyRevisionName": "my-api-00002-bbb",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-25T00:04:13Z"}],
                "traffic": [{"revisionName": "my-api-00001-aaa", "percent": 100}, {"latestRevision": true, "revisionName": "my-api-00002-bbb", "percent": 0}, {"revisionName": "my-api-00002-bbb", "tag": "green", "url": "https://green---u"}]}
        })
    }

    #[test]
    fn a_service_for_people() {
        insta::assert_snapshot!(service(&sample(), Ink(false)), @r"
        ✔ Service my-api in region us-central1
        team:x
         
        URL:     https://u
        Ingress: all
        Traffic:
          90%  (currently 100%) my-api-00001-aaa
          0%                    my-api-00002-bbb
                                  green: https://green---u
          10%  (currently 0%)   LATEST (currently my-api-00002-bbb)
         
        Last updated on 2026-11-25T00:04:13Z by dev@example.com:
          Revision my-api-00002-bbb
          team:x
          Container
            Image:         i:v2
            Port:          8080
            Memory:        512Mi
            CPU:           1
            Env vars:
              A            1
              BB           2
          Service account: sa@p
          Concurrency:     80
          Max instances:   100
          Timeout:         300s
        ");
    }

    #[test]
    fn symbols() {
        let mut service = sample();
        assert_eq!(symbol(&service), "✔");
        service["status"]["conditions"][0]["status"] = json!("False");
        assert_eq!(symbol(&service), "X");
        service["status"]["latestCreatedRevisionName"] = json!("my-api-00003-ccc");
        assert_eq!(symbol(&service), "!");
        service["metadata"]["generation"] = json!(3);
        assert_eq!(symbol(&service), "…", "the status is of an older generation");
    }

    #[test]
    fn pairs_as_documents() {
        let documents = pair_documents(&pairs(&sample()));
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[2]["key"], "LATEST");
        assert_eq!(documents[1]["tags"][0]["url"], "https://green---u");
        assert_eq!(documents[0]["displayPercent"], "90%  (currently 100%)");
    }
}
