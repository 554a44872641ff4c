//! How the template of a service looks to a person, and a revision, which is one that was taken: each container, then what
//! they have in common. The rows and their names are gcloud's.

use serde_json::Value;

use super::{Row, Rows, annotation, plain, text};
use crate::change;

/// What a template or a revision says: its containers, then the rest.
pub(super) fn settings(template: &Value) -> Rows {
    let mut rows = Rows::default();
    let spec = &template["spec"];
    for container in spec["containers"].as_array().into_iter().flatten() {
        let name = text(container, "/name");
        rows.heading(0, format!("Container {name}").trim_end());
        container_rows(&mut rows, container, spec);
        let dependencies = annotation(&template["metadata"], "run.googleapis.com/container-dependencies");
        if let Ok(dependencies) = serde_json::from_str::<Value>(dependencies) {
            let on = list_of(&dependencies[name]).join(", ");
            rows.put(2, "Container Dependencies:", on);
        }
    }
    rows.put(0, "Service account:", text(spec, "/serviceAccountName"));
    rows.put(0, "Concurrency:", plain(&spec["containerConcurrency"]));
    let metadata = &template["metadata"];
    rows.put(0, "Min instances:", annotation(metadata, change::MIN_SCALE));
    rows.put(0, "Max instances:", annotation(metadata, change::MAX_SCALE));
    let timeout = plain(&spec["timeoutSeconds"]);
    if !timeout.is_empty() {
        rows.put(0, "Timeout:", format!("{timeout}s"));
    }
    if text(spec, "/containers/0/ports/0/name") == "h2c" {
        rows.put(0, "HTTP/2 Enabled:", "Enabled");
    }
    let throttling = annotation(metadata, change::CPU_THROTTLING);
    if !throttling.is_empty() {
        let allocation = if throttling.eq_ignore_ascii_case("false") {
            "CPU is always allocated"
        } else {
            "CPU is only allocated during request processing"
        };
        rows.put(0, "CPU Allocation:", allocation);
    }
    let environment = match annotation(metadata, change::EXECUTION_ENVIRONMENT) {
        "gen1" => "First Generation",
        "gen2" => "Second Generation",
        other => other,
    };
    rows.put(0, "Execution Environment:", environment);
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let volumes: Vec<&Value> = volumes.filter(|volume| volume["emptyDir"].is_object()).collect();
    if !volumes.is_empty() {
        rows.heading(0, "Volumes:");
    }
    for volume in volumes {
        rows.heading(2, text(volume, "/name"));
        rows.put(4, "type:", "in-memory");
        rows.put(4, "size-limit:", plain(&volume["emptyDir"]["sizeLimit"]));
    }
    rows
}

fn list_of(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(plain).collect()
}

fn container_rows(rows: &mut Rows, container: &Value, spec: &Value) {
    rows.put(2, "Image:", text(container, "/image"));
    rows.put(2, "Command:", list_of(&container["command"]).join(" "));
    rows.put(2, "Args:", list_of(&container["args"]).join(" "));
    rows.put(2, "Port:", plain(&container["ports"][0]["containerPort"]));
    let limits = &container["resources"]["limits"];
    rows.put(2, "Memory:", plain(&limits["memory"]));
    rows.put(2, "CPU:", plain(&limits["cpu"]));
    let mut variables: Vec<(String, String)> = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|variable| variable["valueFrom"].is_null())
        .map(|variable| (plain(&variable["name"]), plain(&variable["value"])))
        .collect();
    if !variables.is_empty() {
        variables.sort();
        rows.heading(2, "Env vars:");
        for (name, value) in variables {
            // an empty value is shown too
            rows.0.push(Row {
                indent: 4,
                label: name,
                value: Some(value),
            });
        }
    }
    let volume_of = |mount: &Value| -> Value {
        let mut volumes = spec["volumes"].as_array().into_iter().flatten();
        let found = volumes.find(|volume| volume["name"] == mount["name"]);
        found.cloned().unwrap_or_default()
    };
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    let (secrets, mounts): (Vec<&Value>, Vec<&Value>) =
        mounts.partition(|mount| volume_of(mount)["secret"].is_object());
    if !mounts.is_empty() {
        rows.heading(2, "Volume Mounts:");
    }
    for mount in mounts {
        rows.heading(4, text(mount, "/mountPath"));
        rows.put(6, "name:", text(mount, "/name"));
        let volumes = spec["volumes"].as_array().into_iter().flatten();
        let in_memory = |volume: &Value| volume["name"] == mount["name"] && volume["emptyDir"].is_object();
        if volumes.into_iter().any(in_memory) {
            rows.put(6, "type:", "in-memory");
        }
    }
    let mut of_secrets: Vec<(String, String)> = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|variable| variable["valueFrom"]["secretKeyRef"].is_object())
        .map(|variable| {
            let of = &variable["valueFrom"]["secretKeyRef"];
            let version = format!("{}:{}", plain(&of["name"]), plain(&of["key"]));
            (plain(&variable["name"]), version)
        })
        .collect();
    of_secrets.extend(secrets.into_iter().map(|mount| {
        let source = volume_of(mount)["secret"].clone();
        let secret = plain(&source["secretName"]);
        let version = match source["items"][0]["key"].as_str() {
            Some(key) => format!("{secret}:{key}"),
            None => secret,
        };
        (plain(&mount["mountPath"]), version)
    }));
    if !of_secrets.is_empty() {
        of_secrets.sort();
        rows.heading(2, "Secrets:");
        for (name, version) in of_secrets {
            rows.put(4, &name, version);
        }
    }
    for (key, label) in [
        ("startupProbe", "Startup Probe:"),
        ("livenessProbe", "Liveness Probe:"),
        ("readinessProbe", "Readiness Probe:"),
    ] {
        let probe = &container[key];
        let (kind, target) = if probe["httpGet"].is_object() {
            ("HTTP", &probe["httpGet"])
        } else if probe["grpc"].is_object() {
            ("GRPC", &probe["grpc"])
        } else if probe["tcpSocket"].is_object() {
            ("TCP", &probe["tcpSocket"])
        } else {
            continue;
        };
        rows.heading(2, label);
        rows.heading(4, &format!("{kind} every {}s", plain(&probe["periodSeconds"])));
        rows.put(4, "Path:", text(target, "/path"));
        rows.put(4, "Port:", plain(&target["port"]));
        let delay = probe["initialDelaySeconds"].as_u64().unwrap_or(0);
        rows.put(4, "Initial delay:", format!("{delay}s"));
        rows.put(4, "Timeout:", format!("{}s", plain(&probe["timeoutSeconds"])));
        rows.put(4, "Success threshold:", plain(&probe["successThreshold"]));
        rows.put(4, "Failure threshold:", plain(&probe["failureThreshold"]));
    }
}
