//! `run services why-scaled`: the last decisions on a service's instances, with what they looked at. Only Homerun has it.

use serde_json::Value;

use crate::call::{Server, escape};
use crate::format::Column;
use crate::words::Why;
use crate::{Error, Order, Outside};

const COLUMNS: &[Column] = &[
    Column {
        heading: "TIME",
        cell: |decision| text(decision, "time"),
    },
    Column {
        heading: "REVISION",
        cell: |decision| text(decision, "revision"),
    },
    Column {
        heading: "WHAT",
        cell: what,
    },
    Column {
        heading: "RULE",
        cell: |decision| text(decision, "rule"),
    },
    Column {
        heading: "WHY",
        cell: |decision| text(decision, "text"),
    },
    Column {
        heading: "INPUTS",
        cell: inputs,
    },
];

pub(crate) fn scaled(outside: &mut Outside<'_>, order: &Order<'_>, why: &Why) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let path = format!(
        "/homerun/v1/projects/{}/locations/{}/services/{}/decisions",
        escape(&server.project),
        escape(server.region()),
        escape(&why.service)
    );
    let mut answer = server.own(outside, &path).map_err(|error| {
        if error.is_not_found() {
            Error::Failed(format!("Cannot find service [{}]", why.service))
        } else {
            error
        }
    })?;
    let decisions = answer["decisions"].as_array_mut().map(std::mem::take);
    order.print_list(outside, decisions.unwrap_or_default(), why.limit, COLUMNS)
}

fn text(decision: &Value, field: &str) -> String {
    decision[field].as_str().unwrap_or_default().to_owned()
}

/// `2 instances (now)`, `1 held`.
fn what(decision: &Value) -> String {
    let number = decision["instances"].as_u64().unwrap_or_default();
    let plural = if number == 1 { "" } else { "s" };
    match decision["kind"].as_str().unwrap_or_default() {
        "held" => format!("{number} start{plural} held"),
        "park" => format!("{number} parked"),
        "early" => format!("{number} stopped early"),
        _ if decision["stands"] == Value::Bool(true) => format!("{number} instance{plural}, now"),
        _ => format!("{number} instance{plural}, of {}", decision["alive"]),
    }
}

/// What is zero says nothing that its absence does not.
fn inputs(decision: &Value) -> String {
    let named = decision["inputs"].as_object().into_iter().flatten();
    let said = named.filter(|(_, value)| value.as_u64() != Some(0));
    let words: Vec<String> = said.map(|(name, value)| format!("{name}={value}")).collect();
    words.join(" ")
}
