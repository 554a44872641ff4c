//! The kernel's table of rules in the router: written as one JSON document for `nft`, so that it is there wholly or not
//! at all, and read back the same way to see whether somebody changed it.
//!
//! No rule names an instance, so none is written when one comes or goes. What comes in from an instance passes
//! `inward`, which refuses by address; then `relay`, which hands it to the relay's sockets whatever its destination.
//! Nothing is ever forwarded.
//!
//! | from an instance | what becomes of it |
//! | --- | --- |
//! | with a sender's address that is not reached through the same link | dropped |
//! | a question to the resolver | to the resolver |
//! | TCP to the metadata server or the ingress (`own`) | to the relay, which hands it to the server |
//! | the beginning of a TCP connection | dropped; the relay has seen it and answers for its peer (`tcp`). Refused where nothing leads to the internet |
//! | to an address that is not public | refused: "administratively prohibited" |
//! | other TCP, UDP | to the relay |
//! | "destination unreachable" for what the relay sent | accepted |
//! | anything else (ping, multicast) | dropped |

use std::{
    fmt::Display,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    own::Place,
    reach::{self, Prefix},
    router::RESOLVER,
};

/// What packets carry that go to a socket of the relay.
const MARK: u32 = 1;

/// What the rules let instances reach.
#[derive(Debug, Clone)]
pub(crate) struct Reached {
    /// Homerun itself.
    pub(crate) own: Vec<Place>,
    pub(crate) internet: bool,
}

/// Where the relay listens; any other port of any address leads to it.
pub(crate) const RELAY_PORT: u16 = 1;
/// Before anything else that could decide, but after fragments were joined.
const INWARD: i32 = -160;
const RELAY: i32 = -150;

pub(crate) fn table_name(id8: &str) -> String {
    format!("homerun_{id8}")
}

/// The whole of it, instead of whatever has the table's name.
pub(crate) fn document(id8: &str, reached: &Reached) -> Value {
    let table = table_name(id8);
    let of_table = json!({"family": "inet", "name": table});
    let mut orders = vec![
        json!({"add": {"table": of_table}}),
        json!({"delete": {"table": of_table}}),
        json!({"add": {"table": of_table}}),
    ];
    let mut set = |name: &str, kind: &str, elements: Vec<Value>| {
        orders.push(json!({"add": {"set": {
            "family": "inet", "table": table, "name": name, "type": kind, "flags": ["interval"], "elem": elements,
        }}}));
    };
    set("forbidden4", "ipv4_addr", reach::forbidden_v4().map(prefix).collect());
    set("forbidden6", "ipv6_addr", reach::forbidden_v6().map(prefix).collect());
    for (name, hook, priority, rules) in chains(reached) {
        orders.push(json!({"add": {"chain": {
            "family": "inet", "table": table, "name": name,
            "type": "filter", "hook": hook, "prio": priority, "policy": "drop",
        }}}));
        for expressions in rules {
            orders.push(json!({"add": {"rule": {
                "family": "inet", "table": table, "chain": name, "expr": expressions,
            }}}));
        }
    }
    json!({"nftables": orders})
}

fn chains(reached: &Reached) -> [(&'static str, &'static str, i32, Vec<Value>); 4] {
    let equal = |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
    let meta = |key: &str| json!({"meta": {"key": key}});
    let field = |of: &str, name: &str| json!({"payload": {"protocol": of, "field": name}});
    let accept = || json!({"accept": null});
    let drop = || json!({"drop": null});
    let refuse = || json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}});
    let relayed = || equal(meta("l4proto"), json!({"set": ["tcp", "udp"]}));
    let to_resolver = |protocol: &str| {
        json!([
            equal(field("ip", "daddr"), json!(RESOLVER)),
            equal(field(protocol, "dport"), json!(53)),
            accept()
        ])
    };
    let unreachable = |protocol: &str| {
        json!([
            equal(field(protocol, "type"), json!("destination-unreachable")),
            accept()
        ])
    };
    let to_own = || {
        reached.own.iter().map(|place| {
            json!([
                equal(field("ip", "daddr"), json!(place.at.ip())),
                equal(field("tcp", "dport"), json!(place.at.port())),
                accept()
            ])
        })
    };
    let outside = json!({"set": [prefix(reach::GLOBAL_V6), prefix(reach::NAT64)]});
    let mut inward = vec![
        // What the relay lets in itself.
        json!([equal(meta("iifname"), json!("lo")), accept()]),
        json!([
            equal(
                json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}),
                json!(false)
            ),
            drop()
        ]),
        to_resolver("udp"),
        to_resolver("tcp"),
    ];
    inward.extend(to_own());
    inward.push(if reached.internet {
        // An answer by the kernel would come while the sender is still sending, and be taken for a passing one.
        json!([
            equal(json!({"&": [field("tcp", "flags"), ["syn", "ack"]]}), json!("syn")),
            drop()
        ])
    } else {
        json!([equal(meta("l4proto"), json!("tcp")), {"reject": {"type": "tcp reset"}}])
    });
    inward.extend([
        json!([equal(field("ip", "daddr"), json!("@forbidden4")), refuse()]),
        json!([equal(field("ip6", "daddr"), json!("@forbidden6")), refuse()]),
        json!([
            {"match": {"op": "!=", "left": field("ip6", "daddr"), "right": outside}},
            refuse()
        ]),
        json!([relayed(), accept()]),
        unreachable("icmp"),
        unreachable("icmpv6"),
    ]);
    let hand_over = |protocol: &str, family: &str| {
        json!([
            equal(meta("nfproto"), json!(protocol)),
            relayed(),
            {"tproxy": {"family": family, "port": RELAY_PORT}},
            {"mangle": {"key": meta("mark"), "value": MARK}},
            accept()
        ])
    };
    let mut relay = vec![to_resolver("udp"), to_resolver("tcp")];
    relay.extend(to_own());
    relay.extend([
        unreachable("icmp"),
        unreachable("icmpv6"),
        hand_over("ipv4", "ip"),
        hand_over("ipv6", "ip6"),
    ]);
    let mut input = vec![
        json!([equal(meta("mark"), json!(MARK)), accept()]),
        to_resolver("udp"),
        to_resolver("tcp"),
    ];
    input.extend(to_own());
    input.extend([unreachable("icmp"), unreachable("icmpv6")]);
    [
        ("inward", "prerouting", INWARD, inward),
        ("relay", "prerouting", RELAY, relay),
        ("input", "input", 0, input),
        ("forward", "forward", 0, Vec::new()),
    ]
}

fn prefix<A: Display>(prefix: Prefix<A>) -> Value {
    json!({"prefix": {"addr": prefix.address.to_string(), "len": prefix.length}})
}

/// Writes the table into the network namespace of the calling thread. `check`: only tries whether the kernel would take
/// it.
pub(crate) fn write(nft: &Path, id8: &str, reached: &Reached, check: bool) -> io::Result<()> {
    let mut command = Command::new(nft);
    if check {
        command.arg("--check");
    }
    let mut child = command
        .args(["--json", "--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().expect("piped");
    input.write_all(document(id8, reached).to_string().as_bytes())?;
    drop(input);
    succeeded(child.wait_with_output()?).map(|_| ())
}

/// What the kernel has of it, in a form that is the same for the same rules.
pub(crate) fn read(nft: &Path, id8: &str) -> io::Result<Value> {
    let output = Command::new(nft)
        .args(["--json", "list", "table", "inet", &table_name(id8)])
        .stdin(Stdio::null())
        .output()?;
    let mut seen: Value = serde_json::from_slice(&succeeded(output)?)?;
    forget_handles(&mut seen);
    Ok(seen)
}

fn succeeded(output: std::process::Output) -> io::Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default().trim();
    Err(io::Error::other(format!("nft ended with {}: {said}", output.status)))
}

/// Handles count on whenever a rule is written again.
fn forget_handles(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.shift_remove("handle");
            fields.values_mut().for_each(forget_handles);
        }
        Value::Array(all) => all.iter_mut().for_each(forget_handles),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document() {
        let doors = crate::Doors {
            domain: "a.run.localhost".to_owned(),
            http: 8081,
            https: 8443,
            public: 8443,
        };
        let reached = Reached {
            own: super::super::own::places(&doors),
            internet: true,
        };
        insta::assert_json_snapshot!(document("0123abcd", &reached));
        let sealed = Reached {
            internet: false,
            ..reached
        };
        insta::assert_json_snapshot!("sealed", document("0123abcd", &sealed));
    }

    #[test]
    fn the_same_rules_read_the_same() {
        let rule = |handle: u32| json!({"nftables": [{"rule": {"handle": handle, "expr": [{"accept": null}]}}]});
        let (mut one, mut two) = (rule(1), rule(2));
        forget_handles(&mut one);
        forget_handles(&mut two);
        assert_eq!(one, two);
        let mut other = json!({"nftables": [{"rule": {"handle": 1, "expr": [{"drop": null}]}}]});
        forget_handles(&mut other);
        assert_ne!(one, other);
    }
}
