//! A container of a template.

use std::num::NonZeroU16;

use model::{
    Container, Cpu, EnvValue, EnvVar, Memory, Port, Probe, ProbeKind, Protocol, Resources, SecretRef, ServiceName,
    VersionRef, implicit_name, is_dns_label, with_causes,
};
use serde_json::{Map, Value, json};

use crate::{
    document::{Object, short},
    run::v1::{
        probe,
        secrets::{self, Aliases},
        volume,
    },
};

/// Fields of a container that exist and are not served.
const UNSERVED: &[&str] = &[
    "volumeDevices",
    "envFrom",
    "imagePullPolicy",
    "securityContext",
    "lifecycle",
    "resizePolicy",
    "restartPolicy",
    "stdin",
    "stdinOnce",
    "tty",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "dependsOn",
    "baseImageUri",
    "sourceCode",
];

/// A template without a readable container still gets its other rules checked with this one.
pub(crate) fn unread() -> Container {
    Container {
        name: String::new(),
        image: String::new(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: None,
        env: Vec::new(),
        resources: Resources::default(),
        startup_probe: None,
        liveness_probe: None,
        readiness_probe: None,
        mounts: Vec::new(),
        depends_on: Vec::new(),
    }
}

/// A container, with the port when the document gives it one.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) container: Container,
    pub(crate) port: Option<Port>,
}

/// Reads the container at `index`. `alone`: it is the only one, and takes requests without saying so. `service` is None
/// when the document names none that can be read.
pub(crate) fn decode(
    mut given: Object<'_>,
    service: Option<&ServiceName>,
    index: usize,
    alone: bool,
    aliases: &Aliases,
) -> Read {
    let mut name = given.text("name").unwrap_or_default();
    if !name.is_empty() && !is_dns_label(&name) {
        given.say(
            "name",
            format!(
                "\"{}\" is no name of a container: lowercase letters, digits and hyphens, no hyphen first or last, and at most 63 characters",
                short(&name)
            ),
        );
    }
    if service.is_some_and(|service| implicit_name(service, index) == name) {
        name.clear();
    }
    let image = given.text("image").unwrap_or_default();
    if !image.is_empty()
        && let Err(error) = image.parse::<image::Reference>()
    {
        given.say("image", with_causes(&error));
    }
    let mut port = port(&mut given);
    if alone {
        port.get_or_insert_default();
    }
    let own = port.map(|port| port.number);
    let mut probe = |field, kind| probe::decode(&mut given, field, kind, own);
    let startup_probe = probe("startupProbe", ProbeKind::Startup);
    let liveness_probe = probe("livenessProbe", ProbeKind::Liveness);
    let readiness_probe = probe("readinessProbe", ProbeKind::Readiness);
    // A startup probe that says what goes without saying is none.
    let startup_probe = startup_probe.filter(|probe| own.is_none_or(|own| *probe != Probe::implicit(own)));
    let container = Container {
        name,
        image,
        command: given.texts("command"),
        args: given.texts("args"),
        working_dir: given.text("workingDir"),
        env: env(&mut given, aliases),
        resources: resources(&mut given),
        startup_probe,
        liveness_probe,
        readiness_probe,
        mounts: volume::decode_mounts(&mut given),
        depends_on: Vec::new(),
    };
    given.unserved(UNSERVED);
    given.finish();
    Read { container, port }
}

fn env(given: &mut Object<'_>, aliases: &Aliases) -> Vec<EnvVar> {
    let variables = given.objects("env").into_iter();
    variables
        .filter_map(|variable| env_variable(variable, aliases))
        .collect()
}

/// None where a secret cannot be read, which was noted.
fn env_variable(mut variable: Object<'_>, aliases: &Aliases) -> Option<EnvVar> {
    let name = variable.text("name").unwrap_or_default();
    let literal = variable.exact_text("value");
    let mut source = variable.object("valueFrom");
    source.unserved(&["configMapKeyRef", "fieldRef", "resourceFieldRef", "fileKeyRef"]);
    let value = if source.has("secretKeyRef") {
        if literal.as_ref().is_some_and(|value| !value.is_empty()) {
            variable.say(
                "valueFrom",
                format!("{} has a value too: it is one or the other", short(&name)),
            );
        }
        let mut of = source.object("secretKeyRef");
        let secret = secrets::name(&mut of, "name", aliases);
        let version = match of.text("key").as_deref().map(VersionRef::parse) {
            Some(Ok(version)) => Some(version),
            Some(Err(why)) => {
                of.say("key", why);
                None
            }
            None => {
                of.say("key", "is required: the version of the secret, a number or latest");
                None
            }
        };
        of.unserved(&["optional", "localObjectReference"]);
        of.finish();
        match (secret, version) {
            (Some(secret), Some(version)) => Some(EnvValue::Secret(SecretRef { secret, version })),
            _ => None,
        }
    } else {
        Some(EnvValue::Literal(literal.unwrap_or_default()))
    };
    source.finish();
    variable.finish();
    value.map(|value| EnvVar { name, value })
}

/// None when the document gives no port.
fn port(given: &mut Object<'_>) -> Option<Port> {
    let mut ports = given.objects("ports");
    if ports.len() > 1 {
        given.say(
            "ports",
            format!("{} ports are too many: a container listens on one", ports.len()),
        );
    }
    let mut first = (!ports.is_empty()).then(|| ports.swap_remove(0))?;
    let mut port = Port::default();
    if let Some(number) = first.integer("containerPort") {
        match u16::try_from(number).ok().and_then(NonZeroU16::new) {
            Some(number) => port.number = number,
            None => first.say("containerPort", format!("{number} is out of range: 1 to 65535")),
        }
    }
    match first.text("name").as_deref() {
        None | Some("http1") => {}
        Some("h2c") => port.protocol = Protocol::H2c,
        Some(other) => first.say("name", format!("\"{}\" is neither http1 nor h2c", short(other))),
    }
    if let Some(other) = first.text("protocol").filter(|protocol| protocol != "TCP") {
        first.say("protocol", format!("\"{}\" is not TCP", short(&other)));
    }
    first.unserved(&["hostPort", "hostIP"]);
    first.finish();
    Some(port)
}

fn resources(given: &mut Object<'_>) -> Resources {
    let mut resources = given.object("resources");
    let mut limits = resources.object("limits");
    let mut read = Resources::default();
    if let Some(text) = limits.amount("cpu") {
        match Cpu::parse(&text) {
            Ok(cpu) => read.cpu = cpu,
            Err(error) => limits.say("cpu", error.to_string()),
        }
    }
    if let Some(text) = limits.amount("memory") {
        match Memory::parse(&text) {
            Ok(memory) => read.memory = memory,
            Err(error) => limits.say("memory", error.to_string()),
        }
    }
    limits.unserved(&["nvidia.com/gpu"]);
    limits.finish();
    resources.unserved(&["requests", "claims"]);
    resources.finish();
    read
}

/// `port` is None for a sidecar.
pub(crate) fn encode(container: &Container, name: &str, port: Option<Port>) -> Value {
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| {
        shown.insert(key.to_owned(), value);
    };
    put("name", name.into());
    put("image", container.image.as_str().into());
    if !container.command.is_empty() {
        put("command", container.command.clone().into());
    }
    if !container.args.is_empty() {
        put("args", container.args.clone().into());
    }
    if let Some(dir) = &container.working_dir {
        put("workingDir", dir.as_str().into());
    }
    if let Some(port) = port {
        let protocol = match port.protocol {
            Protocol::Http1 => "http1",
            Protocol::H2c => "h2c",
        };
        put("ports", json!([{ "name": protocol, "containerPort": port.number }]));
    }
    if !container.env.is_empty() {
        let env: Vec<Value> = container
            .env
            .iter()
            .map(|variable| match &variable.value {
                EnvValue::Literal(value) => json!({ "name": variable.name, "value": value }),
                EnvValue::Secret(SecretRef { secret, version }) => json!({
                    "name": variable.name,
                    "valueFrom": { "secretKeyRef": { "name": secret.as_str(), "key": version.to_string() } },
                }),
            })
            .collect();
        put("env", env.into());
    }
    let Resources { cpu, memory } = &container.resources;
    put(
        "resources",
        json!({ "limits": { "cpu": cpu.to_string(), "memory": memory.to_string() } }),
    );
    if !container.mounts.is_empty() {
        put("volumeMounts", volume::encode_mounts(&container.mounts));
    }
    let implicit = || port.map(|port| Probe::implicit(port.number));
    for (field, probe) in [
        ("startupProbe", container.startup_probe.clone().or_else(implicit)),
        ("livenessProbe", container.liveness_probe.clone()),
        ("readinessProbe", container.readiness_probe.clone()),
    ] {
        if let Some(probe) = probe {
            put(field, probe::encode(&probe));
        }
    }
    shown.into()
}
