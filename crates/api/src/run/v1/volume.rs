//! Volumes of a template and their mounts in a container: from the document to the model and back.

use model::{Memory, Volume, VolumeMount, VolumeSource};
use serde_json::{Value, json};

use crate::document::{Object, short};

/// Kinds of volumes that exist and are not served.
const UNSERVED: &[&str] = &["secret", "configMap", "csi", "nfs", "filestore"];

pub(crate) fn decode(spec: &mut Object<'_>) -> Vec<Volume> {
    spec.objects("volumes").into_iter().filter_map(volume).collect()
}

/// None where the source cannot be read, which was noted.
fn volume(mut given: Object<'_>) -> Option<Volume> {
    let name = given.text("name").unwrap_or_default();
    let other = UNSERVED.iter().any(|kind| given.has(kind));
    given.unserved(UNSERVED);
    if !given.has("emptyDir") {
        if !other {
            given.say("emptyDir", "is required: a volume has no other kind here");
        }
        given.finish();
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
    given.finish();
    Some(Volume {
        name,
        source: VolumeSource::Memory { size_limit },
    })
}

pub(crate) fn encode(volumes: &[Volume]) -> Value {
    volumes
        .iter()
        .map(|volume| {
            let VolumeSource::Memory { size_limit } = &volume.source;
            let mut source = json!({ "medium": "Memory" });
            if let Some(limit) = size_limit {
                source["sizeLimit"] = limit.to_string().into();
            }
            json!({ "name": volume.name, "emptyDir": source })
        })
        .collect()
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
