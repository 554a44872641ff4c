//! The one container of a template.

use std::num::NonZeroU16;

use model::{Check, Container, Cpu, EnvVar, Memory, Port, Probe, Protocol, Resources, ServiceName};
use serde_json::{Map, Value, json};

use crate::{
    document::{Object, short},
    error::told,
};

/// Fields of a container that exist and are not served.
const UNSERVED: &[&str] = &[
    "livenessProbe",
    "readinessProbe",
    "volumeMounts",
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

/// The name shown of a container that was given none.
pub(crate) fn shown_name(container: &Container, service: &ServiceName) -> String {
    if container.name.is_empty() {
        implicit_name(service)
    } else {
        container.name.clone()
    }
}

fn implicit_name(service: &ServiceName) -> String {
    format!("{service}-1")
}

/// A DNS label (RFC 1123), as a container's name must be.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 63
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
        && text.bytes().all(|b| plain(b) || b == b'-')
}

pub(crate) fn decode(mut given: Object<'_>, service: Option<&ServiceName>) -> (Container, Port) {
    let mut name = given.text("name").unwrap_or_default();
    if !name.is_empty() && !is_name(&name) {
        given.say(
            "name",
            format!(
                "\"{}\" is no name of a container: lowercase letters, digits and hyphens, no hyphen first or last, and at most 63 characters",
                short(&name)
            ),
        );
    }
    if service.is_some_and(|service| implicit_name(service) == name) {
        name.clear();
    }
    let image = given.text("image").unwrap_or_default();
    if !image.is_empty()
        && let Err(error) = image.parse::<image::Reference>()
    {
        given.say("image", told(&error));
    }
    let port = port(&mut given);
    let startup_probe = startup_probe(&mut given, port.number);
    let container = Container {
        name,
        image,
        command: given.texts("command"),
        args: given.texts("args"),
        working_dir: given.text("workingDir"),
        env: env(&mut given),
        resources: resources(&mut given),
        startup_probe,
        liveness_probe: None,
        readiness_probe: None,
        mounts: Vec::new(),
        depends_on: Vec::new(),
    };
    given.unserved(UNSERVED);
    given.finish();
    (container, port)
}

fn env(given: &mut Object<'_>) -> Vec<EnvVar> {
    given
        .objects("env")
        .into_iter()
        .map(|mut variable| {
            let name = variable.text("name").unwrap_or_default();
            let value = variable.exact_text("value").unwrap_or_default();
            variable.unserved(&["valueFrom"]);
            variable.finish();
            EnvVar { name, value }
        })
        .collect()
}

fn port(given: &mut Object<'_>) -> Port {
    let mut ports = given.objects("ports");
    if ports.len() > 1 {
        given.say(
            "ports",
            format!("{} ports are too many: a container listens on one", ports.len()),
        );
    }
    let Some(mut first) = (!ports.is_empty()).then(|| ports.swap_remove(0)) else {
        return Port::default();
    };
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
    port
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

/// A startup probe; one that says what goes without saying is none.
fn startup_probe(given: &mut Object<'_>, port: NonZeroU16) -> Option<Probe> {
    let mut probe = given.object("startupProbe");
    if probe.is_empty() {
        return None;
    }
    let mut seconds = |field: &str, default: u32| match probe.integer(field) {
        None => default,
        Some(number) => u32::try_from(number).unwrap_or_else(|_| {
            probe.say(field, format!("{number} is out of range: 0 to {}", u32::MAX));
            default
        }),
    };
    let mut read = Probe {
        initial_delay: seconds("initialDelaySeconds", 0),
        period: seconds("periodSeconds", 10),
        timeout: seconds("timeoutSeconds", 1),
        failures: seconds("failureThreshold", 3),
        successes: std::num::NonZeroU32::MIN,
        check: Check::Tcp { port },
    };
    let successes = seconds("successThreshold", 1);
    if successes > 1 {
        probe.say(
            "successThreshold",
            format!("{successes} is out of range: a startup probe succeeds once"),
        );
    }
    let unserved = ["httpGet", "grpc", "exec"];
    let mut tcp = probe.object("tcpSocket");
    if let Some(number) = tcp.integer("port") {
        match u16::try_from(number).ok().and_then(NonZeroU16::new) {
            Some(number) => read.check = Check::Tcp { port: number },
            None => tcp.say("port", format!("{number} is out of range: 1 to 65535")),
        }
    }
    tcp.unserved(&["host"]);
    tcp.finish();
    probe.unserved(&unserved);
    probe.unserved(&["terminationGracePeriodSeconds"]);
    probe.finish();
    (read != Probe::implicit(port)).then_some(read)
}

pub(crate) fn encode(container: &Container, port: Port, service: &ServiceName) -> Value {
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| {
        shown.insert(key.to_owned(), value);
    };
    put("name", shown_name(container, service).into());
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
    let protocol = match port.protocol {
        Protocol::Http1 => "http1",
        Protocol::H2c => "h2c",
    };
    put("ports", json!([{ "name": protocol, "containerPort": port.number }]));
    if !container.env.is_empty() {
        let env: Vec<Value> = container
            .env
            .iter()
            .map(|v| json!({ "name": v.name, "value": v.value }))
            .collect();
        put("env", env.into());
    }
    let Resources { cpu, memory } = &container.resources;
    put(
        "resources",
        json!({ "limits": { "cpu": cpu.to_string(), "memory": memory.to_string() } }),
    );
    let probe = container
        .startup_probe
        .clone()
        .unwrap_or_else(|| Probe::implicit(port.number));
    let mut startup = json!({
        "timeoutSeconds": probe.timeout,
        "periodSeconds": probe.period,
        "failureThreshold": probe.failures,
        "tcpSocket": { "port": probe.check.port() },
    });
    if probe.initial_delay > 0 {
        startup["initialDelaySeconds"] = probe.initial_delay.into();
    }
    put("startupProbe", startup);
    shown.into()
}
