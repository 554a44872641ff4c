//! The flags for what belongs to an instance or a container beside its program (probes, volumes, mounts, affinity) and for
//! the scaling of a whole service.
//!
//! As in `template`, each function carries its flags into the document, in gcloud's fields, and says whether any of them
//! was given.

use clap::Args;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::change::object;
use crate::flag::{self, List, OrDefault, Pairs};
use crate::settings::OfContainer;
use crate::template::{object_of, pair, template_annotations};

const SESSION_AFFINITY: &str = "run.googleapis.com/sessionAffinity";
const MIN: &str = "run.googleapis.com/minScale";
const MAX: &str = "run.googleapis.com/maxScale";
const MODE: &str = "run.googleapis.com/scalingMode";
const COUNT: &str = "run.googleapis.com/manualInstanceCount";

#[derive(Debug, Args)]
pub(crate) struct Parts {
    /// Storage in memory that the containers of an instance share: name=NAME,type=in-memory[,size-limit=SIZE]
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    add_volume: Vec<Pairs>,
    /// Volumes to remove
    #[arg(long, value_name = "VOLUME,...")]
    remove_volume: Vec<List>,
    /// Remove all volumes
    #[arg(long)]
    clear_volumes: bool,
    /// Bring a client back to the instance that served it
    #[arg(long, overrides_with = "no_session_affinity")]
    session_affinity: bool,
    #[arg(long, overrides_with = "session_affinity")]
    no_session_affinity: bool,
    /// Instances of the whole service that always run; makes no revision
    #[arg(long, value_parser = flag::count, value_name = "N|default")]
    min: Option<OrDefault>,
    /// Instances of the whole service at most; makes no revision
    #[arg(long, value_parser = flag::count, value_name = "N|default")]
    max: Option<OrDefault>,
    /// auto, or exactly so many instances of the whole service; makes no revision
    #[arg(long, value_parser = scaling_value, value_name = "auto|N")]
    scaling: Option<Scaling>,
}

/// How the number of instances of a service is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaling {
    Auto,
    Manual(u32),
}

fn scaling_value(value: &str) -> Result<Scaling, String> {
    if value == "auto" {
        return Ok(Scaling::Auto);
    }
    let count = value.parse().map(Scaling::Manual);
    count.map_err(|_| format!("[{value}] is neither auto nor a whole number of at least 0"))
}

/// What belongs to the next revision.
pub(crate) fn of_template(service: &mut Value, parts: &Parts) -> Result<bool, Error> {
    let mut changed = volumes(service, parts)?;
    if let Some(affinity) = pair(parts.session_affinity, parts.no_session_affinity) {
        let annotations = template_annotations(service)?;
        if affinity {
            annotations.insert(SESSION_AFFINITY.to_owned(), json!("true"));
        } else {
            annotations.remove(SESSION_AFFINITY);
        }
        changed = true;
    }
    Ok(changed)
}

/// The keys of a probe that are numbers of its own.
const TIMES: [&str; 5] = [
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "failureThreshold",
    "successThreshold",
];
/// The keys that say what is asked.
const CHECKS: [&str; 5] = [
    "httpGet.port",
    "httpGet.path",
    "grpc.port",
    "grpc.service",
    "tcpSocket.port",
];

pub(crate) fn probes(container: &mut Value, flags: &OfContainer) -> Result<bool, Error> {
    let mut changed = false;
    for (kind, field, given, without) in [
        ("startup", "startupProbe", &flags.startup_probe, "successThreshold"),
        ("liveness", "livenessProbe", &flags.liveness_probe, "successThreshold"),
        (
            "readiness",
            "readinessProbe",
            &flags.readiness_probe,
            "initialDelaySeconds",
        ),
    ] {
        let Some(Pairs(keys)) = given.last() else { continue };
        let fields = object_of(container)?;
        if keys.is_empty() {
            fields.remove(field);
        } else {
            let tcp = kind == "startup";
            let known = |key: &str| {
                key != without
                    && (TIMES.contains(&key) || CHECKS.contains(&key))
                    && (tcp || !key.starts_with("tcpSocket"))
            };
            if let Some((key, _)) = keys.iter().find(|(key, _)| !known(key)) {
                return Err(Error::Failed(format!("Key [{key}] not recognized for {kind} probe")));
            }
            fields.insert(field.to_owned(), probe(keys)?);
        }
        changed = true;
    }
    Ok(changed)
}

fn probe(keys: &[(String, String)]) -> Result<Value, Error> {
    let mut probe = Map::new();
    for (key, value) in keys {
        let (check, name) = key.split_once('.').unwrap_or(("", key));
        let value = match name {
            "path" | "service" => json!(value),
            _ => json!(
                value
                    .parse::<u32>()
                    .map_err(|_| { Error::Failed(format!("Value for key [{key}] must be an integer")) })?
            ),
        };
        if check.is_empty() {
            probe.insert(name.to_owned(), value);
        } else {
            probe.entry(check).or_insert_with(|| json!({}))[name] = value;
        }
    }
    Ok(Value::Object(probe))
}

fn of<'a>(pairs: &'a [(String, String)], key: &str) -> Option<&'a str> {
    pairs
        .iter()
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.as_str())
}

/// A list of the template or of the container, as it is now.
fn list(fields: &mut Map<String, Value>, key: &str) -> Vec<Value> {
    match fields.remove(key) {
        Some(Value::Array(items)) => items,
        Some(_) | None => Vec::new(),
    }
}

fn volumes(service: &mut Value, parts: &Parts) -> Result<bool, Error> {
    if !parts.clear_volumes && parts.remove_volume.is_empty() && parts.add_volume.is_empty() {
        return Ok(false);
    }
    let spec = object(service, &["spec", "template", "spec"])?;
    let mut volumes = list(spec, "volumes");
    let removed = flag::listed(&parts.remove_volume);
    let named = |volume: &Value, name: &str| volume["name"] == name;
    volumes.retain(|volume| !parts.clear_volumes && !removed.iter().any(|name| named(volume, name)));
    for Pairs(given) in &parts.add_volume {
        let (Some(name), Some(kind)) = (of(given, "name"), of(given, "type")) else {
            return Err(Error::Failed("All added volumes must have a name and type".to_owned()));
        };
        if kind != "in-memory" {
            return Err(Error::Failed(format!(
                "--add-volume: volumes of type {kind} are not served by Homerun, only in-memory is"
            )));
        }
        if let Some((key, _)) = given
            .iter()
            .find(|(key, _)| !["name", "type", "size-limit"].contains(&key.as_str()))
        {
            return Err(Error::Failed(format!(
                "Volume {name} of type {kind} had unexpected parameter {key}"
            )));
        }
        let mut source = json!({"medium": "Memory"});
        if let Some(limit) = of(given, "size-limit") {
            source["sizeLimit"] = json!(limit);
        }
        volumes.retain(|volume| !named(volume, name));
        volumes.push(json!({"name": name, "emptyDir": source}));
    }
    if !volumes.is_empty() {
        spec.insert("volumes".to_owned(), Value::Array(volumes));
    }
    Ok(true)
}

pub(crate) fn mounts(container: &mut Value, flags: &OfContainer) -> Result<bool, Error> {
    if !flags.clear_volume_mounts && flags.remove_volume_mount.is_empty() && flags.add_volume_mount.is_empty() {
        return Ok(false);
    }
    let fields = object_of(container)?;
    let mut mounts = list(fields, "volumeMounts");
    let removed = flag::listed(&flags.remove_volume_mount);
    mounts
        .retain(|mount| !flags.clear_volume_mounts && !removed.iter().any(|path| mount["mountPath"] == path.as_str()));
    for Pairs(given) in &flags.add_volume_mount {
        if let Some((key, _)) = given
            .iter()
            .find(|(key, _)| !["volume", "mount-path"].contains(&key.as_str()))
        {
            return Err(Error::Failed(format!(
                "Key [{key}] not recognized for volume mount. Only keys \"volume\" and \"mount-path\" are supported"
            )));
        }
        let (Some(volume), Some(path)) = (of(given, "volume"), of(given, "mount-path")) else {
            return Err(Error::Failed(
                "Added Volume mounts must have a `volume` and a `mount-path`".to_owned(),
            ));
        };
        mounts.retain(|mount| mount["mountPath"] != path);
        mounts.push(json!({"name": volume, "mountPath": path}));
    }
    if !mounts.is_empty() {
        fields.insert("volumeMounts".to_owned(), Value::Array(mounts));
    }
    Ok(true)
}

/// What belongs to the service and makes no revision.
pub(crate) fn of_service(service: &mut Value, parts: &Parts) -> Result<bool, Error> {
    if parts.min.is_none() && parts.max.is_none() && parts.scaling.is_none() {
        return Ok(false);
    }
    if let (Some(_), Some(Scaling::Manual(_))) = (parts.max, parts.scaling) {
        return Err(Error::Failed(
            "Cannot set service max instances when scaling mode is manual".to_owned(),
        ));
    }
    let annotations = object(service, &["metadata", "annotations"])?;
    let mut put = |key: &str, value: Option<String>| match value {
        Some(value) => annotations.insert(key.to_owned(), json!(value)),
        None => annotations.remove(key),
    };
    match parts.min {
        Some(OrDefault::Number(0) | OrDefault::Default) => put(MIN, None),
        Some(OrDefault::Number(count)) => put(MIN, Some(count.to_string())),
        None => None,
    };
    match parts.max {
        Some(OrDefault::Default) => put(MAX, None),
        Some(OrDefault::Number(count)) => put(MAX, Some(count.to_string())),
        None => None,
    };
    match parts.scaling {
        Some(Scaling::Auto) => {
            put(COUNT, None);
            put(MODE, Some("automatic".to_owned()));
        }
        Some(Scaling::Manual(count)) => {
            put(MODE, Some("manual".to_owned()));
            put(COUNT, Some(count.to_string()));
        }
        None => {}
    }
    Ok(true)
}
