//! `run revisions ...`.

use std::cmp::Reverse;

use serde_json::Value;

use crate::call::Server;
use crate::format::Column;
use crate::words::{DeleteRevision, ListRevisions};
use crate::{Error, Order, Outside, human, release};

const COLUMNS: &[Column] = &[
    Column {
        heading: "",
        cell: |revision| human::symbol(revision).to_owned(),
    },
    Column {
        heading: "REVISION",
        cell: |revision| text(&revision["metadata"]["name"]),
    },
    Column {
        heading: "ACTIVE",
        cell: |revision| {
            let active = human::condition(revision, "Active");
            match active.and_then(|active| active["status"].as_str()) {
                Some("True") => "yes".to_owned(),
                Some(_) | None => String::new(),
            }
        },
    },
    Column {
        heading: "SERVICE",
        cell: |revision| text(&revision["metadata"]["labels"]["serving.knative.dev/service"]),
    },
    Column {
        heading: "DEPLOYED",
        cell: |revision| {
            let time = text(&revision["metadata"]["creationTimestamp"]);
            match time.parse::<jiff::Timestamp>() {
                Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
                Err(_) => time,
            }
        },
    },
    Column {
        heading: "DEPLOYED BY",
        cell: |revision| text(&revision["metadata"]["annotations"]["serving.knative.dev/creator"]),
    },
];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn list(outside: &mut Outside<'_>, order: &Order<'_>, list: &ListRevisions) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let selector = list
        .service
        .as_ref()
        .map(|service| format!("serving.knative.dev/service = {service}"));
    let path = server.knative("revisions");
    let mut items = server.list(outside, &server.regional(), &path, selector.as_deref())?;
    items.sort_by_cached_key(|revision| {
        let metadata = &revision["metadata"];
        let service = text(&metadata["labels"]["serving.knative.dev/service"]);
        let made = text(&metadata["creationTimestamp"]).parse::<jiff::Timestamp>();
        (service, Reverse(made.ok()), Reverse(text(&metadata["name"])))
    });
    order.print_list(outside, items, list.listing.limit, COLUMNS)
}

pub(crate) fn describe(outside: &mut Outside<'_>, order: &Order<'_>, revision: &str) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let found = server
        .find_one(outside, "revisions", revision)?
        .ok_or_else(|| Error::Failed(format!("Cannot find revision [{revision}]")))?;
    order.print_one(outside, &found, |outside| human::revision(&found, outside.out_ink()))
}

pub(crate) fn delete(outside: &mut Outside<'_>, order: &Order<'_>, delete: &DeleteRevision) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let revision = &delete.revision;
    order.confirm(outside, &format!("Revision [{revision}] will be deleted."))?;
    let asynchronous = delete.wait.asynchronous;
    release::remove(outside, &server, "revisions", revision, asynchronous).map_err(|error| {
        if error.is_not_found() {
            Error::Failed(format!("Cannot find revision [{revision}]"))
        } else {
            error
        }
    })?;
    outside.say(&if asynchronous {
        format!("Revision [{revision}] is being deleted.")
    } else {
        format!("Deleted revision [{revision}].")
    });
    Ok(())
}
