//! `spec.traffic` and `status.traffic`.

use model::{Percent, RevisionName, Routed, ServiceKey, Site, Tag, Target, Traffic, TrafficTarget};
use serde_json::{Map, Value};

use crate::document::Object;

/// Reads the entries. None when one of them cannot be read; what is wrong was noted.
pub(crate) fn decode(spec: &mut Object<'_>, longest_tag: usize) -> Option<Traffic> {
    let path = spec.path("traffic");
    let entries = spec.objects("traffic");
    let count = entries.len();
    let targets: Vec<TrafficTarget> = entries
        .into_iter()
        .filter_map(|entry| decode_entry(entry, longest_tag))
        .collect();
    if targets.len() < count {
        return None;
    }
    match Traffic::new(targets) {
        Ok(traffic) => Some(traffic),
        Err(error) => {
            let violation = error.violation(&path);
            spec.findings().say(violation.field, violation.description);
            None
        }
    }
}

fn decode_entry(mut entry: Object<'_>, longest_tag: usize) -> Option<TrafficTarget> {
    let mut good = true;
    let mut wrong = |entry: &Object<'_>, field: &str, description: String| {
        entry.say(field, description);
        good = false;
    };
    let latest = entry.boolean("latestRevision").unwrap_or(false);
    let name = entry.text("revisionName").map(|text| RevisionName::parse(&text));
    let to = match (latest, name) {
        (true, None) => Some(Target::Latest),
        (false, Some(Ok(name))) => Some(Target::Revision(name)),
        (_, Some(Err(error))) => {
            wrong(&entry, "revisionName", error.to_string());
            None
        }
        (true, Some(Ok(name))) => {
            wrong(
                &entry,
                "revisionName",
                format!("{name} and latestRevision exclude each other"),
            );
            None
        }
        (false, None) => {
            wrong(
                &entry,
                "revisionName",
                "a revisionName or latestRevision: true is required".to_owned(),
            );
            None
        }
    };
    let percent = entry.integer("percent").and_then(|number| {
        let percent = u8::try_from(number).ok().and_then(Percent::new);
        if percent.is_none() {
            wrong(&entry, "percent", format!("{number} is out of range: 0 to 100"));
        }
        percent
    });
    let tag = entry.text("tag").and_then(|text| match Tag::parse(&text) {
        Ok(tag) if tag.as_str().len() <= longest_tag => Some(tag),
        Ok(tag) => {
            wrong(
                &entry,
                "tag",
                format!("\"{tag}\" is too long: at most {longest_tag} characters with the name of this service"),
            );
            None
        }
        Err(error) => {
            wrong(&entry, "tag", error.to_string());
            None
        }
    });
    entry.drop_owned(&["url"]);
    if entry.text("configurationName").is_some() {
        wrong(
            &entry,
            "configurationName",
            "is not served, name a revision or latestRevision: true".to_owned(),
        );
    }
    entry.finish();
    Some(TrafficTarget { to: to?, percent, tag }).filter(|_| good)
}

pub(crate) fn encode_spec(traffic: &Traffic) -> Value {
    traffic
        .targets()
        .iter()
        .map(|target| {
            let mut shown = Map::new();
            match &target.to {
                Target::Latest => shown.insert("latestRevision".to_owned(), true.into()),
                Target::Revision(name) => shown.insert("revisionName".to_owned(), name.as_str().into()),
            };
            if let Some(percent) = target.percent {
                shown.insert("percent".to_owned(), percent.get().into());
            }
            if let Some(tag) = &target.tag {
                shown.insert("tag".to_owned(), tag.as_str().into());
            }
            Value::Object(shown)
        })
        .collect()
}

/// Where requests go, with the URL of each tag.
pub(crate) fn encode_status(routed: &Routed, service: &ServiceKey, site: &Site) -> Value {
    routed
        .targets
        .iter()
        .map(|target| {
            let mut shown = Map::new();
            shown.insert("revisionName".to_owned(), target.revision.as_str().into());
            if target.latest {
                shown.insert("latestRevision".to_owned(), true.into());
            }
            if let Some(percent) = target.percent {
                shown.insert("percent".to_owned(), percent.get().into());
            }
            if let Some(tag) = &target.tag {
                shown.insert("tag".to_owned(), tag.as_str().into());
                shown.insert("url".to_owned(), site.tag_url(service, tag).into());
            }
            Value::Object(shown)
        })
        .collect()
}
