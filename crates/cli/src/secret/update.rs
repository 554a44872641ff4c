//! `secrets update`.

use clap::Args;
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::{Expiry, HOST, expire, path};
use crate::call::{Content, Server};
use crate::flag::{self, List, Pairs};
use crate::{Error, Order, Outside};

#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "gcloud's flags"
)]
pub(crate) struct Update {
    secret: String,
    /// Labels to add or change
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    update_labels: Vec<Pairs>,
    /// Labels to remove
    #[arg(long, value_name = "KEY,...", conflicts_with = "clear_labels")]
    remove_labels: Vec<List>,
    /// Remove all labels
    #[arg(long)]
    clear_labels: bool,
    /// Annotations to add or change
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...",
        conflicts_with_all = ["remove_annotations", "clear_annotations"])]
    update_annotations: Vec<Pairs>,
    /// Annotations to remove
    #[arg(long, value_name = "KEY,...", conflicts_with = "clear_annotations")]
    remove_annotations: Vec<List>,
    /// Remove all annotations
    #[arg(long)]
    clear_annotations: bool,
    /// Names of versions to add or move
    #[arg(long, value_parser = flag::pairs, value_name = "ALIAS=NUMBER,...",
        conflicts_with_all = ["remove_version_aliases", "clear_version_aliases"])]
    update_version_aliases: Vec<Pairs>,
    /// Names of versions to remove
    #[arg(long, value_name = "ALIAS,...", conflicts_with = "clear_version_aliases")]
    remove_version_aliases: Vec<List>,
    /// Remove all names of versions
    #[arg(long)]
    clear_version_aliases: bool,
    #[command(flatten)]
    expiry: Expiry,
    /// The secret stays until it is deleted
    #[arg(long, conflicts_with_all = ["expire_time", "ttl"])]
    remove_expiration: bool,
    /// Only while it is as it was read
    #[arg(long)]
    etag: Option<String>,
}

/// A map of the secret after the flags that change it. None: no flag does.
fn changed(before: &Value, update: &[Pairs], remove: &[List], clear: bool) -> Option<Value> {
    let (updates, removes) = (flag::joined(update), flag::listed(remove));
    if updates.is_empty() && removes.is_empty() && !clear {
        return None;
    }
    let mut map = before.as_object().filter(|_| !clear).cloned().unwrap_or_default();
    for key in removes {
        map.remove(&key);
    }
    map.extend(updates.into_iter().map(|(key, value)| (key, json!(value))));
    Some(Value::Object(map))
}

pub(super) fn run(outside: &mut Outside<'_>, order: &Order<'_>, server: &Server, update: &Update) -> Result<(), Error> {
    let of = path(server, &update.secret);
    let before = server.get(outside, HOST, &of).map_err(|error| {
        if error.is_not_found() {
            Error::Failed(format!(
                "Invalid value for [secret]: The secret [{}] cannot be updated because it does not exist. Please use \
                 the create command to create a new secret.",
                update.secret
            ))
        } else {
            error
        }
    })?;
    let mut body = Map::new();
    let mut mask = Vec::new();
    let mut put = |field: &str, masked: &'static str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(field.to_owned(), value);
            mask.push(masked);
        }
    };
    let Update {
        update_labels,
        remove_labels,
        ..
    } = update;
    let labels = changed(&before["labels"], update_labels, remove_labels, update.clear_labels);
    put("labels", "labels", labels);
    let annotations = changed(
        &before["annotations"],
        &update.update_annotations,
        &update.remove_annotations,
        update.clear_annotations,
    );
    put("annotations", "annotations", annotations);
    let aliases = changed(
        &before["versionAliases"],
        &update.update_version_aliases,
        &update.remove_version_aliases,
        update.clear_version_aliases,
    );
    put("versionAliases", "version_aliases", aliases);
    if update.expiry.ttl.is_some() {
        mask.push("ttl");
    }
    if update.expiry.expire_time.is_some() || update.remove_expiration {
        mask.push("expire_time");
    }
    if mask.is_empty() {
        return Err(Error::Failed(format!(
            "There are no changes to the secret [{}] for update.",
            update.secret
        )));
    }
    expire(outside, order, &update.expiry, &mut body)?;
    if let Some(etag) = &update.etag {
        body.insert("etag".to_owned(), json!(etag));
    }
    let called = format!("{of}?updateMask={}", mask.join(","));
    let after = server.json(
        outside,
        &Method::PATCH,
        HOST,
        &called,
        Content::Json(&Value::Object(body)),
    )?;
    outside.say(&format!("Updated secret [{}].", update.secret));
    match order.format {
        Some(_) => order.print_one(outside, &after, |_| String::new()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_after_their_flags() {
        let before = json!({"a": "1", "b": "2"});
        let update = [flag::pairs("b=3,c=4").expect("a map")];
        let remove = [List::from("a".to_owned())];
        assert_eq!(changed(&before, &[], &[], false), None);
        assert_eq!(
            changed(&before, &update, &[], false),
            Some(json!({"a": "1", "b": "3", "c": "4"}))
        );
        assert_eq!(
            changed(&before, &update, &remove, false),
            Some(json!({"b": "3", "c": "4"}))
        );
        assert_eq!(changed(&before, &[], &[], true), Some(json!({})));
        assert_eq!(
            changed(&Value::Null, &update, &remove, false),
            Some(json!({"b": "3", "c": "4"}))
        );
    }
}
