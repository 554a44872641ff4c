//! `images mirror`, `images mirrors` and `images unmirror`: names of other registries that mean an image of this one, or
//! are had from elsewhere. Only Homerun has them.

use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, Server};
use crate::format::Column;
use crate::words::Listing;
use crate::{Error, Order, Outside, print_text};

pub(crate) fn set(outside: &mut Outside<'_>, order: &Order<'_>, name: &str, image: &str) -> Result<(), Error> {
    let answer = call(outside, order, "mirror", &json!({ "name": name, "image": image }))?;
    if let Some(format) = order.format {
        return print_text(outside, &format.one(&answer));
    }
    let told = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    match answer["from"].as_str() {
        Some(from) => outside.say(&format!("{} is had from {from}.", told("name"))),
        None => outside.say(&format!("{} is {} here.", told("name"), told("digest"))),
    }
    Ok(())
}

pub(crate) fn list(outside: &mut Outside<'_>, order: &Order<'_>, listing: &Listing) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let mut answer = server.own(outside, "/homerun/v1/images:mirrors")?;
    let items = answer["mirrors"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let columns = [
        Column {
            heading: "NAME",
            cell: |mirror| mirror["name"].as_str().unwrap_or_default().to_owned(),
        },
        Column {
            heading: "MEANS",
            cell: |mirror| {
                let means = mirror["digest"].as_str().or(mirror["from"].as_str());
                means.unwrap_or_default().to_owned()
            },
        },
    ];
    order.print_list(outside, items, listing.limit, &columns)
}

pub(crate) fn remove(outside: &mut Outside<'_>, order: &Order<'_>, name: &str) -> Result<(), Error> {
    call(outside, order, "unmirror", &json!({ "name": name }))?;
    outside.say(&format!("{name} is asked of its registry again."));
    Ok(())
}

fn call(outside: &mut Outside<'_>, order: &Order<'_>, verb: &str, body: &Value) -> Result<Value, Error> {
    let server = Server::find(outside, order.global)?;
    let path = format!("/homerun/v1/images:{verb}");
    server.json(outside, &Method::POST, server.api(), &path, Content::Json(body))
}
