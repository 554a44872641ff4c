//! `artifacts repositories ...`.

use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::{
    Create, DeleteCleanup, HOST, One, Repositories, SetCleanup, Update, all, date, last, locations, repositories, text,
};
use crate::call::{Content, Server, escape};
use crate::format::{Column, yaml_text};
use crate::{Error, Order, Outside, flag, print_text};

const COLUMNS: &[Column] = &[
    Column {
        heading: "REPOSITORY",
        cell: |repository| last(&repository["name"]),
    },
    Column {
        heading: "FORMAT",
        cell: |repository| text(&repository["format"]),
    },
    Column {
        heading: "MODE",
        cell: |repository| text(&repository["mode"]),
    },
    Column {
        heading: "DESCRIPTION",
        cell: |repository| text(&repository["description"]),
    },
    Column {
        heading: "LOCATION",
        cell: |repository| {
            text(&repository["name"])
                .split('/')
                .nth(3)
                .unwrap_or_default()
                .to_owned()
        },
    },
    Column {
        heading: "LABELS",
        cell: |repository| {
            let labels = repository["labels"].as_object();
            let pairs = labels.into_iter().flatten();
            let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}={}", text(value))).collect();
            pairs.join(",")
        },
    },
    Column {
        heading: "CREATE_TIME",
        cell: |repository| date(&repository["createTime"]),
    },
    Column {
        heading: "UPDATE_TIME",
        cell: |repository| date(&repository["updateTime"]),
    },
];

pub(super) fn run(outside: &mut Outside<'_>, order: &Order<'_>, words: &Repositories) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    match words {
        Repositories::Create(create) => made(outside, &server, create),
        Repositories::Update(update) => {
            let answer = updated(outside, &server, update)?;
            outside.say(&format!("Updated repository [{}].", update.one.repository));
            order.print_one(outside, &answer, |_| yaml_text(&answer))
        }
        Repositories::Describe(one) => {
            let found = read(outside, &server, one)?;
            order.print_one(outside, &found, |_| yaml_text(&found))
        }
        Repositories::List { location, listing } => {
            let told = location.as_ref().map_or("across all locations".to_owned(), |location| {
                format!("location {location}")
            });
            let wanted = match location {
                Some(location) => vec![location.clone()],
                None => locations(outside, &server)?,
            };
            outside.say(&format!("Listing items under project {}, {told}.\n", server.project));
            let mut items = Vec::new();
            for location in wanted {
                items.extend(all(
                    outside,
                    &server,
                    &repositories(&server, &location),
                    "repositories",
                )?);
            }
            order.print_list(outside, items, listing.limit, COLUMNS)
        }
        Repositories::Delete(one) => {
            order.confirm(
                outside,
                &format!("You are about to delete repository [{}]", one.repository),
            )?;
            let operation = server.json(outside, &Method::DELETE, HOST, &path(&server, one), Content::None)?;
            outside.say(&format!("Delete request issued for: [{}]", one.repository));
            waited(outside, &server, operation)?;
            outside.say(&format!("Deleted repository [{}].", one.repository));
            Ok(())
        }
        Repositories::SetCleanupPolicies(set) => set_cleanup(outside, order, &server, set),
        Repositories::ListCleanupPolicies(one) => {
            let found = read(outside, &server, one)?;
            print_policies(outside, order, &found)
        }
        Repositories::DeleteCleanupPolicies(delete) => delete_cleanup(outside, order, &server, delete),
    }
}

fn path(server: &Server, one: &One) -> String {
    let location = one.location.as_deref().unwrap_or(server.region());
    format!("{}/{}", repositories(server, location), escape(&one.repository))
}

fn read(outside: &Outside<'_>, server: &Server, one: &One) -> Result<Value, Error> {
    server.get(outside, HOST, &path(server, one))
}

fn made(outside: &mut Outside<'_>, server: &Server, create: &Create) -> Result<(), Error> {
    let one = &create.one;
    let location = one.location.as_deref().unwrap_or(server.region());
    let labels: Map<String, Value> = flag::joined(&create.labels)
        .into_iter()
        .map(|(key, value)| (key, value.into()))
        .collect();
    let mut body = json!({
        "format": create.repository_format.to_uppercase(),
        "description": create.description.as_deref().unwrap_or_default(),
        "labels": labels,
    });
    if let Some(immutable) = create.tags.said() {
        body["dockerConfig"] = json!({ "immutableTags": immutable });
    }
    let path = format!(
        "{}?repositoryId={}",
        repositories(server, location),
        escape(&one.repository)
    );
    let operation = server.json(outside, &Method::POST, HOST, &path, Content::Json(&body))?;
    outside.say(&format!("Create request issued for: [{}]", one.repository));
    waited(outside, server, operation)?;
    outside.say(&format!("Created repository [{}].", one.repository));
    Ok(())
}

/// An operation of this API is done when it is answered.
fn waited(outside: &Outside<'_>, server: &Server, mut operation: Value) -> Result<(), Error> {
    if operation["done"].as_bool() != Some(true) {
        let name = text(&operation["name"]);
        operation = server.get(outside, HOST, &format!("/v1/{name}"))?;
    }
    match operation["error"]["message"].as_str() {
        Some(message) => Err(Error::Failed(message.to_owned())),
        None => Ok(()),
    }
}

fn print_policies(outside: &mut Outside<'_>, order: &Order<'_>, repository: &Value) -> Result<(), Error> {
    let dry_run = repository["cleanupPolicyDryRun"].as_bool() == Some(true);
    outside.say(&format!("Dry run is {}.", if dry_run { "enabled" } else { "disabled" }));
    let policies = repository["cleanupPolicies"].as_object();
    let policies: Vec<Value> = policies.into_iter().flat_map(Map::values).map(shown).collect();
    if let Some(format) = order.format {
        return print_text(outside, &format.list(&policies, &[]));
    }
    let text = serde_json::to_string_pretty(&policies).expect("JSON is always text");
    outside.print(&text)
}

/// A policy as it stands in the file that sets it.
fn shown(policy: &Value) -> Value {
    let mut shown = json!({ "action": { "type": policy["action"] } });
    for part in ["condition", "mostRecentVersions"] {
        if !policy[part].is_null() {
            shown[part] = policy[part].clone();
        }
    }
    shown["name"] = policy["id"].clone();
    shown
}

fn patch(outside: &Outside<'_>, server: &Server, one: &One, mask: &[&str], body: &Value) -> Result<Value, Error> {
    let path = format!("{}?updateMask={}", path(server, one), mask.join(","));
    server.json(outside, &Method::PATCH, HOST, &path, Content::Json(body))
}

fn updated(outside: &Outside<'_>, server: &Server, update: &Update) -> Result<Value, Error> {
    let mut body = json!({});
    let mut mask = Vec::new();
    if let Some(description) = &update.description {
        body["description"] = description.as_str().into();
        mask.push("description");
    }
    if let Some(immutable) = update.tags.said() {
        body["dockerConfig"] = json!({ "immutableTags": immutable });
        mask.push("dockerConfig.immutableTags");
    }
    if mask.is_empty() {
        return Err(Error::Usage(
            "one of --description, --immutable-tags and --no-immutable-tags is required".to_owned(),
        ));
    }
    patch(outside, server, &update.one, &mask, &body)
}

/// A file as gcloud takes it: a list of policies with `name`, `action: {"type"}` and `condition` or
/// `mostRecentVersions`.
fn set_cleanup(outside: &mut Outside<'_>, order: &Order<'_>, server: &Server, set: &SetCleanup) -> Result<(), Error> {
    let mut body = json!({});
    let mut mask = Vec::new();
    if let Some(file) = &set.policy {
        let failed = |source| Error::File {
            path: file.clone(),
            source,
        };
        let read = std::fs::read_to_string(file).map_err(failed)?;
        let wrong = |why: String| Error::Failed(format!("{}: {why}", file.display()));
        let given: Vec<Value> =
            serde_json::from_str(&read).map_err(|why| wrong(format!("no list of policies: {why}")))?;
        let mut policies = Map::new();
        for mut policy in given {
            let name = text(&policy["name"]);
            let action = policy["action"]["type"].as_str().unwrap_or_default().to_uppercase();
            if name.is_empty() || action.is_empty() {
                return Err(wrong("a policy needs name and action.type".to_owned()));
            }
            if let Some(fields) = policy.as_object_mut() {
                fields.remove("name");
            }
            policy["id"] = name.as_str().into();
            policy["action"] = action.into();
            if let Some(condition) = policy.get_mut("condition") {
                seconds(condition).map_err(wrong)?;
            }
            policies.insert(name, policy);
        }
        body["cleanupPolicies"] = Value::Object(policies);
        mask.push("cleanupPolicies");
    }
    if set.dry_run || set.no_dry_run {
        body["cleanupPolicyDryRun"] = set.dry_run.into();
        mask.push("cleanupPolicyDryRun");
    }
    if mask.is_empty() {
        return Err(Error::Usage(
            "one of --policy, --dry-run and --no-dry-run is required".to_owned(),
        ));
    }
    let answer = patch(outside, server, &set.one, &mask, &body)?;
    outside.say(&format!("Updated repository [{}].", set.one.repository));
    print_policies(outside, order, &answer)
}

/// `30d` becomes `2592000s`; what tells of tags is upper case.
fn seconds(condition: &mut Value) -> Result<(), String> {
    let Some(fields) = condition.as_object_mut() else {
        return Ok(());
    };
    for field in ["olderThan", "newerThan"] {
        if let Some(given) = fields.get(field) {
            let seconds = flag::duration(given.as_str().unwrap_or_default())?;
            fields.insert(field.to_owned(), format!("{seconds}s").into());
        }
    }
    if let Some(state) = fields.get("tagState").and_then(Value::as_str) {
        let state = state.to_uppercase();
        fields.insert("tagState".to_owned(), state.into());
    }
    Ok(())
}

fn delete_cleanup(
    outside: &mut Outside<'_>,
    order: &Order<'_>,
    server: &Server,
    delete: &DeleteCleanup,
) -> Result<(), Error> {
    let mut found = read(outside, server, &delete.one)?;
    let names = flag::listed(&delete.policynames);
    let mut policies = found["cleanupPolicies"].take();
    if let Some(policies) = policies.as_object_mut() {
        policies.retain(|name, _| !names.contains(name));
    }
    if policies.is_null() {
        policies = json!({});
    }
    let body = json!({ "cleanupPolicies": policies });
    let answer = patch(outside, server, &delete.one, &["cleanupPolicies"], &body)?;
    outside.say(&format!("Updated repository [{}].", delete.one.repository));
    print_policies(outside, order, &answer)
}
