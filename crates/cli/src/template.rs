//! The flags that change the template of a service: its container, its annotations, its limits, its labels.
//!
//! Each function carries its flags into the document and says whether any of them was given.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::Error;
use crate::change::{CPU_BOOST, CPU_THROTTLING, EXECUTION_ENVIRONMENT, MAX_SCALE, MIN_SCALE, NONCE, Occasion};
use crate::change::{is_reserved, object};
use crate::flag::{self, List, OrDefault};
use crate::settings::{ExecutionEnvironment, OfContainer, Settings};

const DEPENDENCIES: &str = "run.googleapis.com/container-dependencies";

pub(crate) fn template_annotations(service: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    object(service, &["spec", "template", "metadata", "annotations"])
}

/// The container of this name, made where there is none.
pub(crate) fn container_named<'a>(service: &'a mut Value, name: &str) -> Result<&'a mut Value, Error> {
    let spec = object(service, &["spec", "template", "spec"])?;
    let containers = spec.entry("containers").or_insert_with(|| json!([])).as_array_mut();
    let containers = containers.ok_or_else(|| Error::Answer {
        call: "the server".to_owned(),
        what: "no list of containers".to_owned(),
    })?;
    let at = containers.iter().position(|container| container["name"] == name);
    let at = at.unwrap_or_else(|| {
        containers.push(json!({ "name": name }));
        containers.len() - 1
    });
    Ok(&mut containers[at])
}

/// Removes containers, and gives the others the dependencies that are asked for. What depended on a container that is not
/// there any more does no longer.
pub(crate) fn company(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let removed = flag::listed(&settings.remove_containers);
    let spec = object(service, &["spec", "template", "spec"])?;
    let mut names = BTreeSet::new();
    if let Some(containers) = spec.get_mut("containers").and_then(Value::as_array_mut) {
        let name = |container: &Value| container["name"].as_str().unwrap_or_default().to_owned();
        containers.retain(|container| !removed.contains(&name(container)));
        names.extend(containers.iter().map(name));
    }
    let ingress = name(service).to_owned();
    let mut asked = Vec::new();
    for (name, flags) in settings.each_container() {
        let Some(List(on)) = flags.depends_on.last() else {
            continue;
        };
        let name = name.unwrap_or(&ingress);
        if let Some(ghost) = on.iter().find(|on| !names.contains(*on)) {
            return Err(Error::Failed(format!(
                "--depends-on of container {name} names {ghost}, which is no container"
            )));
        }
        asked.push((name.to_owned(), on.clone()));
    }
    if removed.is_empty() && asked.is_empty() {
        return Ok(false);
    }
    let annotations = template_annotations(service)?;
    let before = annotations.remove(DEPENDENCIES);
    let before = before.as_ref().and_then(Value::as_str).unwrap_or("{}");
    let mut dependencies: BTreeMap<String, Vec<String>> = serde_json::from_str(before)
        .map_err(|error| Error::Failed(format!("the service's {DEPENDENCIES} is no object of lists: {error}")))?;
    dependencies.extend(asked);
    dependencies.retain(|name, on| {
        on.retain(|on| names.contains(on));
        names.contains(name) && !on.is_empty()
    });
    if !dependencies.is_empty() {
        annotations.insert(DEPENDENCIES.to_owned(), json!(json!(dependencies).to_string()));
    }
    Ok(true)
}

/// The container that takes requests: the one with a port, or the only one.
pub(crate) fn container(service: &mut Value) -> Result<&mut Value, Error> {
    let spec = object(service, &["spec", "template", "spec"])?;
    let containers = spec
        .entry("containers")
        .or_insert_with(|| json!([{}]))
        .as_array_mut()
        .filter(|containers| !containers.is_empty())
        .ok_or_else(|| Error::Answer {
            call: "the server".to_owned(),
            what: "a service without containers".to_owned(),
        })?;
    let with_port = containers.iter().position(|c| c["ports"].is_array());
    Ok(&mut containers[with_port.unwrap_or(0)])
}

/// What a field of the container that takes requests says.
fn of_ingress<'a>(service: &'a Value, field: &str) -> Option<&'a str> {
    let containers = service["spec"]["template"]["spec"]["containers"].as_array()?;
    let with_port = containers.iter().position(|c| c["ports"].is_array());
    containers.get(with_port.unwrap_or(0))?[field].as_str()
}

/// The image that the service runs now.
pub(crate) fn image(service: &Value) -> Option<&str> {
    of_ingress(service, "image")
}

/// The container that takes requests, empty where it has no name.
pub(crate) fn name(service: &Value) -> &str {
    of_ingress(service, "name").unwrap_or_default()
}

/// Runs the same bytes as before: the digest in place of a tag.
pub(crate) fn pin(service: &mut Value, image: &str) -> Result<(), Error> {
    object_of(container(service)?)?.insert("image".to_owned(), json!(image));
    Ok(())
}

pub(crate) fn object_of(container: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    object(container, &[])
}

/// `true` or `false` of a pair of flags, nothing where neither stands.
pub(crate) fn pair(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

/// gcloud's spelling of a truth.
fn truth(yes: bool) -> Value {
    json!(if yes { "True" } else { "False" })
}

pub(crate) fn resources(container: &mut Value, flags: &OfContainer) -> Result<bool, Error> {
    if let Some(image) = &flags.image {
        object_of(container)?.insert("image".to_owned(), json!(image));
    }
    for (key, value) in [("memory", &flags.memory), ("cpu", &flags.cpu)] {
        if let Some(value) = value {
            object(container, &["resources", "limits"])?.insert(key.to_owned(), json!(value));
        }
    }
    Ok(flags.image.is_some() || flags.memory.is_some() || flags.cpu.is_some())
}

pub(crate) fn port(container: &mut Value, flags: &OfContainer) -> Result<bool, Error> {
    let http2 = pair(flags.use_http2, flags.no_use_http2);
    if flags.port.is_none() && http2.is_none() {
        return Ok(false);
    }
    let before = container["ports"][0]["containerPort"].as_u64().unwrap_or(8080);
    let mut port = container["ports"][0].as_object().cloned().unwrap_or_default();
    match flags.port {
        Some(OrDefault::Number(number)) => {
            port.insert("containerPort".to_owned(), json!(number));
        }
        Some(OrDefault::Default) => {
            port.remove("containerPort");
        }
        None => {}
    }
    match http2 {
        Some(true) => {
            port.insert("name".to_owned(), json!("h2c"));
            port.entry("containerPort").or_insert(json!(8080));
        }
        Some(false) => {
            port.remove("name");
        }
        None => {}
    }
    let now = port.get("containerPort").cloned();
    let fields = object_of(container)?;
    if now.is_some() {
        fields.insert("ports".to_owned(), json!([port]));
    } else {
        fields.remove("ports");
    }
    // the default probe asks the port of before
    if let Some(Value::Object(probe)) = container.pointer_mut("/startupProbe/tcpSocket")
        && probe.get("port").and_then(Value::as_u64) == Some(before)
    {
        probe.insert("port".to_owned(), now.unwrap_or(json!(8080)));
    }
    Ok(true)
}

pub(crate) fn environment(container: &mut Value, flags: &OfContainer) -> Result<bool, Error> {
    let clear = flags.clear_env_vars || !flags.set_env_vars.is_empty();
    let mut updates = flag::joined(&flags.set_env_vars);
    updates.extend(flag::joined(&flags.update_env_vars));
    let removes = flag::listed(&flags.remove_env_vars);
    if !clear && updates.is_empty() && removes.is_empty() {
        return Ok(false);
    }
    let fields = object_of(container)?;
    let mut variables = match fields.remove("env") {
        Some(Value::Array(variables)) => variables,
        Some(_) | None => Vec::new(),
    };
    let literal = |variable: &Value| variable.get("valueFrom").is_none_or(Value::is_null);
    variables.retain(|variable| {
        let named = |name: &String| variable["name"].as_str() == Some(name);
        !literal(variable) || !(clear || removes.iter().any(named))
    });
    for (name, value) in updates {
        match variables.iter_mut().find(|v| v["name"] == name.as_str()) {
            Some(variable) if literal(variable) => variable["value"] = json!(value),
            Some(_) => {
                return Err(Error::Failed(format!(
                    "cannot update environment variable [{name}] to string literal because it has \
                     already been set with a different type"
                )));
            }
            None => variables.push(json!({"name": name, "value": value})),
        }
    }
    if !variables.is_empty() {
        fields.insert("env".to_owned(), Value::Array(variables));
    }
    Ok(true)
}

pub(crate) fn entry_point(container: &mut Value, flags: &OfContainer) -> Result<bool, Error> {
    let fields = object_of(container)?;
    for (key, given) in [("command", &flags.command), ("args", &flags.args)] {
        // the last occurrence counts, an empty one takes the image's own
        if let Some(list) = given.last() {
            if list.0.is_empty() {
                fields.remove(key);
            } else {
                fields.insert(key.to_owned(), json!(list.0));
            }
        }
    }
    Ok(!flags.command.is_empty() || !flags.args.is_empty())
}

pub(crate) fn annotations(service: &mut Value, settings: &Settings, occasion: Occasion) -> Result<bool, Error> {
    let annotations = template_annotations(service)?;
    let mut changed = false;
    let mut put = |key: &str, value: Option<Value>| {
        changed = true;
        match value {
            Some(value) => annotations.insert(key.to_owned(), value),
            None => annotations.remove(key),
        };
    };
    match settings.min_instances {
        Some(OrDefault::Number(0) | OrDefault::Default) => put(MIN_SCALE, None),
        Some(OrDefault::Number(count)) => put(MIN_SCALE, Some(json!(count.to_string()))),
        None => {}
    }
    match settings.max_instances {
        Some(OrDefault::Default) => put(MAX_SCALE, None),
        Some(OrDefault::Number(count)) => put(MAX_SCALE, Some(json!(count.to_string()))),
        None => {}
    }
    if let Some(throttling) = pair(settings.cpu_throttling, settings.no_cpu_throttling) {
        put(CPU_THROTTLING, Some(truth(throttling)));
    }
    match pair(settings.cpu_boost, settings.no_cpu_boost) {
        Some(boost) => put(CPU_BOOST, Some(truth(boost))),
        None if occasion.new => put(CPU_BOOST, Some(truth(true))),
        None => {}
    }
    match settings.execution_environment {
        Some(ExecutionEnvironment::Gen1) => put(EXECUTION_ENVIRONMENT, Some(json!("gen1"))),
        Some(ExecutionEnvironment::Gen2) => put(EXECUTION_ENVIRONMENT, Some(json!("gen2"))),
        None => {}
    }
    Ok(changed)
}

pub(crate) fn requests(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let spec = object(service, &["spec", "template", "spec"])?;
    match settings.concurrency {
        Some(OrDefault::Number(requests)) => {
            spec.insert("containerConcurrency".to_owned(), json!(requests));
        }
        Some(OrDefault::Default) => {
            spec.remove("containerConcurrency");
        }
        None => {}
    }
    if let Some(seconds) = settings.timeout {
        spec.insert("timeoutSeconds".to_owned(), json!(seconds));
    }
    if let Some(account) = &settings.service_account {
        spec.insert("serviceAccountName".to_owned(), json!(account));
    }
    Ok(settings.concurrency.is_some() || settings.timeout.is_some() || settings.service_account.is_some())
}

pub(crate) fn labels(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let updates = flag::joined(&settings.update_labels);
    let removes = flag::listed(&settings.remove_labels);
    if !settings.clear_labels && updates.is_empty() && removes.is_empty() {
        return Ok(false);
    }
    let labels = object(service, &["metadata", "labels"])?;
    if settings.clear_labels {
        labels.retain(|key, _| is_reserved(key));
    }
    labels.retain(|key, _| !removes.contains(key));
    for (key, value) in updates {
        labels.insert(key, json!(value));
    }
    // the service's labels are those of its next revision
    let mut of_revision = labels.clone();
    of_revision.retain(|key, _| !is_reserved(key));
    let template = object(service, &["spec", "template", "metadata", "labels"])?;
    if let Some(nonce) = template.remove(NONCE) {
        of_revision.insert(NONCE.to_owned(), nonce);
    }
    *template = of_revision;
    Ok(true)
}
