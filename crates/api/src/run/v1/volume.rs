//! Volumes of a template and their mounts in a container: from the document to the model and back.

use model::{Memory, SecretItem, VersionRef, Volume, VolumeMount, VolumeSource};
use serde_json::{Value, json};

use crate::{
    document::{Object, short},
    run::v1::secrets::{self, Aliases},
};

/// Kinds of volumes that exist and are not served.
const UNSERVED: &[&str] = &["configMap", "csi", "nfs", "filestore"];

pub(crate) fn decode(spec: &mut Object<'_>, aliases: &Aliases) -> Vec<Volume> {
    let volumes = spec.objects("volumes").into_iter();
    volumes.filter_map(|given| volume(given, aliases)).collect()
}

/// None where the source cannot be read, which was noted.
fn volume(mut given: Object<'_>, aliases: &Aliases) -> Option<Volume> {
    let name = given.text("name").unwrap_or_default();
    let other = UNSERVED.iter().any(|kind| given.has(kind));
    given.unserved(UNSERVED);
    let mut secret = given.object("secret");
    let source = if secret.is_empty() {
        memory(&mut given, other)
    } else {
        if given.has("emptyDir") {
            given.say("emptyDir", "the volume is a secret too: it has one kind");
            given.drop_owned(&["emptyDir"]);
        }
        let source = secret_source(&mut secret, aliases);
        secret.finish();
        source
    };
    given.finish();
    source.map(|source| Volume { name, source })
}

fn secret_source(secret: &mut Object<'_>, aliases: &Aliases) -> Option<VolumeSource> {
    let name = secrets::name(secret, "secretName", aliases);
    let mode = file_mode(secret, "defaultMode");
    let items = secret.objects("items").into_iter().filter_map(|mut item| {
        let version = match item.text("key").as_deref().map(VersionRef::parse) {
            Some(Ok(version)) => Some(version),
            Some(Err(why)) => {
                item.say("key", why);
                None
            }
            None => {
                item.say("key", "is required: the version of the secret, a number or latest");
                None
            }
        };
        let path = item.text("path").unwrap_or_default();
        let mode = file_mode(&mut item, "mode");
        item.finish();
        version.map(|version| SecretItem { version, path, mode })
    });
    let items = items.collect();
    secret.unserved(&["optional"]);
    name.map(|secret| VolumeSource::Secret { secret, items, mode })
}

fn file_mode(given: &mut Object<'_>, field: &str) -> Option<u32> {
    let mode = given.integer(field)?;
    // What is out of range is refused by the model.
    Some(u32::try_from(mode).unwrap_or(u32::MAX))
}

fn memory(given: &mut Object<'_>, other: bool) -> Option<VolumeSource> {
    if !given.has("emptyDir") {
        if !other {
            given.say("emptyDir", "is required, or secret: a volume has no other kind here");
        }
        return None;
    }
    let mut source = given.object("emptyDir");
    match source.text("medium").as_deref() {
        None | Some("Memory") => {}
        Some("Disk") => source.say("medium", "Disk is not served by this Homerun, only Memory is"),
        Some(other) => source.say("medium", format!("\"{}\" is neither Memory nor Disk", short(other))),
    }
    let size_limit = source.amount("sizeLimit").and_then(|text| match Memory::parse(&text) {
        Ok(limit) => Some(limit),
        Err(error) => {
            source.say("sizeLimit", error.to_string());
            None
        }
    });
    source.finish();
    Some(VolumeSource::Memory { size_limit })
}

pub(crate) fn encode(volumes: &[Volume]) -> Value {
    volumes
        .iter()
        .map(|volume| match &volume.source {
            VolumeSource::Memory { size_limit } => {
                let mut source = json!({ "medium": "Memory" });
                if let Some(limit) = size_limit {
                    source["sizeLimit"] = limit.to_string().into();
                }
                json!({ "name": volume.name, "emptyDir": source })
            }
            VolumeSource::Secret { secret, items, mode } => {
                let mut source = json!({ "secretName": secret.as_str() });
                let items: Vec<Value> = items.iter().map(encode_item).collect();
                if !items.is_empty() {
                    source["items"] = items.into();
                }
                if let Some(mode) = mode {
                    source["defaultMode"] = (*mode).into();
                }
                json!({ "name": volume.name, "secret": source })
            }
        })
        .collect()
}

fn encode_item(item: &SecretItem) -> Value {
    let mut shown = json!({ "key": item.version.to_string(), "path": item.path });
    if let Some(mode) = item.mode {
        shown["mode"] = mode.into();
    }
    shown
}

pub(crate) fn decode_mounts(container: &mut Object<'_>) -> Vec<VolumeMount> {
    container
        .objects("volumeMounts")
        .into_iter()
        .map(|mut mount| {
            let volume = mount.text("name").unwrap_or_default();
            let path = mount.text("mountPath").unwrap_or_default();
            mount.unserved(&[
                "readOnly",
                "subPath",
                "subPathExpr",
                "mountPropagation",
                "recursiveReadOnly",
            ]);
            mount.finish();
            VolumeMount { volume, path }
        })
        .collect()
}

pub(crate) fn encode_mounts(mounts: &[VolumeMount]) -> Value {
    mounts
        .iter()
        .map(|mount| json!({ "name": mount.volume, "mountPath": mount.path }))
        .collect()
}
