//! One port of an instance's 127.0.0.1 that leads to the router, where the ingress is: many programs take every name below
//! `localhost` for 127.0.0.1, and ask nobody. It leads there by a rule of the instance's routing and not by a listener, so
//! that a program inside may still listen on that port.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
};

use super::router::{AF_INET, Change, ETH0, IFF_UP, NEW_LINK, RESOLVER, Route, link_body, route};
use crate::netlink::{Batch, CREATE, Refusal};

const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;

/// The table of routes that has a host's own addresses.
const LOCAL: u8 = 255;
/// That of the port.
const LOOPBACK: u8 = 100;

/// Brings a link up by which 127.0.0.1 may be reached.
pub(super) fn link_up(batch: &mut Batch, link: u32) {
    const OF_FAMILIES: u16 = 26;
    const CONFIGURATION: u16 = 1;
    const ROUTE_LOCALNET: u16 = 26;
    batch.add("bring a link up", NEW_LINK, 0, &link_body(link, IFF_UP), |with| {
        with.nest(OF_FAMILIES, &[], |with| {
            with.nest(u16::from(AF_INET), &[], |with| {
                with.nest(CONFIGURATION, &[], |with| {
                    with.add(ROUTE_LOCALNET, &1_u32.to_ne_bytes());
                });
            });
        });
    });
}

/// Has one port of the instance's 127.0.0.1 lead to the router, and no other one.
///
/// The kernel asks its rules in order, and the first says that a host's own addresses are its own; so that one has to
/// stand behind ours. A kernel without such rules leaves 127.0.0.1 as it is.
pub(super) fn lead(netlink: &OwnedFd, own: IpAddr, port: Option<u16>) {
    const FIRST: u32 = 0;
    const SECOND: u32 = 1;
    let change = |words, kind, flags, table, priority, port| {
        let mut batch = Batch::default();
        rule(&mut batch, (words, kind, flags), table, priority, port);
        batch.send(netlink)
    };
    // Those of a relay that has ended.
    while change("remove a rule", DEL_RULE, 0, LOOPBACK, FIRST, None).is_ok() {}
    let Some(port) = port else {
        return;
    };
    let led = || -> Result<(), Refusal> {
        match change("move a rule", NEW_RULE, CREATE, LOCAL, SECOND, None) {
            Err(refusal) if refusal.errno() != Some(libc::EEXIST) => return Err(refusal),
            Ok(()) | Err(_) => {}
        }
        change("make a rule", NEW_RULE, CREATE, LOOPBACK, FIRST, Some(port))?;
        match change("remove a rule", DEL_RULE, 0, LOCAL, FIRST, None) {
            // It was moved before.
            Err(refusal) if refusal.errno() != Some(libc::ENOENT) => return Err(refusal),
            Ok(()) | Err(_) => {}
        }
        let mut batch = Batch::default();
        route(
            &mut batch,
            Route {
                by: Some(RESOLVER.into()),
                from: Some(own),
                table: LOOPBACK,
                ..Route::to_one(Ipv4Addr::LOCALHOST.into(), ETH0)
            },
        );
        batch.send(netlink)
    };
    if let Err(refusal) = led() {
        super::say(format_args!(
            "127.0.0.1:{port} does not lead to the ingress inside an instance: {}",
            io::Error::from(refusal)
        ));
    }
}

/// `struct fib_rule_hdr` and what goes with it. With a port: for TCP to that port of 127.0.0.1 alone.
fn rule(batch: &mut Batch, (words, kind, flags): Change, table: u8, priority: u32, port: Option<u16>) {
    const TO_TABLE: u8 = 1;
    const TCP: u8 = 6;
    let length = if port.is_some() { 32 } else { 0 };
    let mut body = vec![AF_INET, length, 0, 0, table, 0, 0, TO_TABLE];
    body.extend([0; 4]);
    batch.add(words, kind, flags, &body, |with| {
        with.add(6, &priority.to_ne_bytes()); // FRA_PRIORITY
        with.add(15, &u32::from(table).to_ne_bytes()); // FRA_TABLE
        if let Some(port) = port {
            with.add(1, &Ipv4Addr::LOCALHOST.octets()); // FRA_DST
            with.add(22, &[TCP]); // FRA_IP_PROTO
            with.add(24, &[port, port].map(u16::to_ne_bytes).concat()); // FRA_DPORT_RANGE
        }
    });
}
