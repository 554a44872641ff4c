//! `services enable` and `services list`: which Google APIs are on.

use std::thread;
use std::time::Instant;

use serde_json::json;
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::format::Column;
use crate::release::{PATIENCE, pause};
use crate::words::Listing;
use crate::{Error, Order, Outside};

const SERVICE_USAGE: &str = "serviceusage.googleapis.com";

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, services: &[String]) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let project = escape(&server.project);
    let (path, body) = match services {
        [one] => (
            format!("/v1/projects/{project}/services/{}:enable", escape(one)),
            json!({}),
        ),
        several => (
            format!("/v1/projects/{project}/services:batchEnable"),
            json!({"serviceIds": several}),
        ),
    };
    let started = Instant::now();
    let mut operation = server.json(outside, &Method::POST, SERVICE_USAGE, &path, Content::Json(&body))?;
    while operation["done"].as_bool() != Some(true) {
        let name = operation["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() || started.elapsed() > PATIENCE {
            return Err(Error::Failed(format!("operation \"{name}\" did not finish")));
        }
        thread::sleep(pause(started.elapsed()));
        operation = server.get(outside, SERVICE_USAGE, &format!("/v1/{name}"))?;
    }
    match operation["error"]["message"].as_str() {
        Some(message) => Err(Error::Failed(message.to_owned())),
        None => Ok(()),
    }
}

pub(crate) fn list(outside: &mut Outside<'_>, order: &Order<'_>, listing: &Listing) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let path = format!(
        "/v1/projects/{}/services?filter=state:ENABLED&pageSize=200",
        escape(&server.project)
    );
    let mut answer = server.get(outside, SERVICE_USAGE, &path)?;
    let items = answer["services"]
        .as_array_mut()
        .map(std::mem::take)
        .unwrap_or_default();
    let columns = [
        Column {
            heading: "NAME",
            cell: |api| api["config"]["name"].as_str().unwrap_or_default().to_owned(),
        },
        Column {
            heading: "TITLE",
            cell: |api| api["config"]["title"].as_str().unwrap_or_default().to_owned(),
        },
    ];
    order.print_list(outside, items, listing.limit, &columns)
}
