//! Probes of a container: from the document to `model::Probe` and back.

use std::num::{NonZeroU16, NonZeroU32};

use model::{Check, Header, Probe, ProbeKind};
use serde_json::{Map, Value, json};

use crate::document::Object;

/// The fields that say what is asked, of which a probe has one.
const CHECKS: [&str; 3] = ["tcpSocket", "httpGet", "grpc"];

/// Takes the probe in `field`. `port` is the container's own, which a check without a port asks; a sidecar has none.
pub(crate) fn decode(given: &mut Object<'_>, field: &str, kind: ProbeKind, port: Option<NonZeroU16>) -> Option<Probe> {
    let mut probe = given.object(field);
    let named: Vec<&str> = CHECKS.into_iter().filter(|check| probe.has(check)).collect();
    if probe.is_empty() && named.is_empty() {
        return None;
    }
    let mut seconds = |field: &str, default: u32| match probe.integer(field) {
        None => default,
        Some(number) => u32::try_from(number).unwrap_or_else(|_| {
            probe.say(field, format!("{number} is out of range: 0 to {}", u32::MAX));
            default
        }),
    };
    let initial_delay = seconds("initialDelaySeconds", 0);
    let period = seconds("periodSeconds", 10);
    let timeout = seconds("timeoutSeconds", 1);
    let failures = seconds("failureThreshold", 3);
    let successes = seconds("successThreshold", 1);
    if successes == 0 {
        probe.say("successThreshold", "0 is out of range: at least 1");
    }
    let check = match named.as_slice() {
        ["httpGet"] => http(probe.object("httpGet"), port),
        ["grpc"] => grpc(probe.object("grpc"), port),
        ["tcpSocket"] => tcp(probe.object("tcpSocket"), port),
        [] if kind == ProbeKind::Startup => port.map(|port| Check::Tcp { port }).or_else(|| {
            given.say(field, "one of tcpSocket, httpGet and grpc is required");
            None
        }),
        [] => {
            given.say(field, "one of httpGet and grpc is required");
            None
        }
        several => {
            given.say(field, format!("has {}: a probe has one of them", several.join(" and ")));
            probe.drop_owned(&CHECKS);
            None
        }
    };
    probe.unserved(&["exec", "terminationGracePeriodSeconds"]);
    probe.finish();
    Some(Probe {
        initial_delay,
        period,
        timeout,
        failures,
        successes: NonZeroU32::new(successes).unwrap_or(NonZeroU32::MIN),
        check: check?,
    })
}

/// The port of a check: its own, else that of the container.
fn port_of(check: &mut Object<'_>, port: Option<NonZeroU16>) -> Option<NonZeroU16> {
    match check.integer("port") {
        None => {
            if port.is_none() {
                check.say(
                    "port",
                    "a port is required: only the container that takes requests has one of its own",
                );
            }
            port
        }
        Some(number) => {
            let read = u16::try_from(number).ok().and_then(NonZeroU16::new);
            if read.is_none() {
                check.say("port", format!("{number} is out of range: 1 to 65535"));
            }
            read
        }
    }
}

fn tcp(mut check: Object<'_>, port: Option<NonZeroU16>) -> Option<Check> {
    let port = port_of(&mut check, port);
    check.unserved(&["host"]);
    check.finish();
    Some(Check::Tcp { port: port? })
}

fn http(mut check: Object<'_>, port: Option<NonZeroU16>) -> Option<Check> {
    let port = port_of(&mut check, port);
    let path = check.text("path").unwrap_or_else(|| "/".to_owned());
    let headers = check
        .objects("httpHeaders")
        .into_iter()
        .map(|mut header| {
            let name = header.text("name").unwrap_or_default();
            let value = header.exact_text("value").unwrap_or_default();
            header.finish();
            Header { name, value }
        })
        .collect();
    check.unserved(&["host", "scheme"]);
    check.finish();
    Some(Check::Http {
        port: port?,
        path,
        headers,
    })
}

fn grpc(mut check: Object<'_>, port: Option<NonZeroU16>) -> Option<Check> {
    let port = port_of(&mut check, port);
    let service = check.text("service").unwrap_or_default();
    check.finish();
    Some(Check::Grpc { port: port?, service })
}

pub(crate) fn encode(probe: &Probe) -> Value {
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| {
        shown.insert(key.to_owned(), value);
    };
    if probe.initial_delay > 0 {
        put("initialDelaySeconds", probe.initial_delay.into());
    }
    put("timeoutSeconds", probe.timeout.into());
    put("periodSeconds", probe.period.into());
    put("failureThreshold", probe.failures.into());
    if probe.successes != NonZeroU32::MIN {
        put("successThreshold", probe.successes.get().into());
    }
    match &probe.check {
        Check::Tcp { port } => put("tcpSocket", json!({ "port": port })),
        Check::Http { port, path, headers } => {
            let mut check = json!({ "path": path, "port": port });
            if !headers.is_empty() {
                let headers = headers.iter().map(|h| json!({ "name": h.name, "value": h.value }));
                check["httpHeaders"] = headers.collect();
            }
            put("httpGet", check);
        }
        Check::Grpc { port, service } => {
            let mut check = json!({ "port": port });
            if !service.is_empty() {
                check["service"] = service.as_str().into();
            }
            put("grpc", check);
        }
    }
    shown.into()
}
