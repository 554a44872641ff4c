//! The router: a network namespace between the instances and the relay. Every address of the world is its own there,
//! so that whatever an instance calls arrives at the relay and nothing is ever forwarded; `ip_forward` is off in it,
//! and nobody asks for it on the machine.
//!
//! ```text
//!   instance                          router                                     machine
//!   eth0  198.18.x.y, fd68:…:x  ────  hr<slot>  ── rules ── relay's sockets ──── relay ── the internet
//!   default via 169.254.169.254       lo: 169.254.169.254 (resolver, metadata), 169.254.169.253 (the ingress),
//!                                         local 0.0.0.0/0
//! ```
//!
//! An instance that is to reach nothing but Homerun has routes to those two addresses alone, and a port of its 127.0.0.1
//! leads to the router as well (`loopback`).
//!
//! One link for each instance and a route to its one address: no bridge, and neighbours that are written down, since
//! the kernel's table of learned ones is small and shared by all namespaces.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use super::loopback;
use crate::{
    netlink::{Attributes, Batch, CREATE, REPLACE, Refusal, route_socket},
    network::Home,
};

/// Whom instances ask for names, and by whom they leave: the address that Cloud Run has for it.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where instances find the ingress.
pub(crate) const INGRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// 198.18.0.0/15 is for benchmarks of closed networks (RFC 2544). Link-local addresses would do, but programs that
/// have the choice then prefer IPv6 (RFC 6724, rule 2), and private ones may be somebody's network.
const FIRST_V4: u32 = Ipv4Addr::new(198, 18, 0, 0).to_bits();
/// "homerun" in ASCII behind the `fd` of unique local addresses.
const FIRST_V6: u128 = Ipv6Addr::new(0xfd68, 0x6f6d, 0x6572, 0x756e, 0, 0, 0, 0).to_bits();

/// The number of an instance's link in the router. Its addresses and names follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Slot(u16);

impl Slot {
    /// 0 is the router itself.
    pub(crate) const FIRST: Self = Self(1);

    pub(crate) fn next(self) -> Self {
        match self.0 {
            u16::MAX => Self::FIRST,
            number => Self(number + 1),
        }
    }

    pub(crate) fn v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(FIRST_V4 + u32::from(self.0))
    }

    pub(crate) fn v6(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(FIRST_V6 + u128::from(self.0))
    }

    /// Whose address it is, if it is one that an instance can have.
    pub(crate) fn of(address: IpAddr) -> Option<Self> {
        let number = match address {
            IpAddr::V4(address) => u128::from(address.to_bits().checked_sub(FIRST_V4)?),
            IpAddr::V6(address) => address.to_bits().checked_sub(FIRST_V6)?,
        };
        u16::try_from(number).ok().filter(|number| *number > 0).map(Self)
    }

    /// The number of its link in the router.
    pub(crate) fn link(self) -> u32 {
        LINKS + u32::from(self.0)
    }

    /// The slot of a link of the router.
    pub(crate) fn of_link(link: u32) -> Option<Self> {
        let number = link.checked_sub(LINKS)?;
        u16::try_from(number).ok().filter(|number| *number > 0).map(Self)
    }

    fn name(self) -> String {
        format!("hr{}", self.0)
    }
}

/// How an instance is joined to the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Way {
    pub(crate) slot: Slot,
    /// Whether it leads on to the internet, and not to Homerun alone.
    pub(crate) internet: bool,
}

/// Numbers of links below it belong to `lo` and to what the kernel makes in every namespace.
const LINKS: u32 = 64;
const LO: u32 = 1;
/// The number of `eth0` in an instance.
pub(super) const ETH0: u32 = 64;

/// Locally administered.
pub(crate) const ROUTER_MAC: [u8; 6] = [0x02, 0x68, 0x6f, 0x6d, 0x65, 0x01];
pub(crate) const INSTANCE_MAC: [u8; 6] = [0x02, 0x68, 0x6f, 0x6d, 0x65, 0x02];

pub(super) const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
pub(super) const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
pub(super) const IFF_UP: u32 = 1;

/// What every part of the way out has to do with both families.
fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

/// `struct ifinfomsg`
pub(super) fn link_body(link: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(link.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

pub(crate) fn link_up(batch: &mut Batch, link: u32) {
    batch.add("bring a link up", NEW_LINK, 0, &link_body(link, IFF_UP), |_| {});
}

/// A host's own address on a link.
pub(crate) fn address(batch: &mut Batch, link: u32, own: impl Into<IpAddr>) {
    change_address(
        batch,
        ("give a link its address", NEW_ADDRESS, CREATE),
        link,
        own.into(),
    );
}

/// What a message says it does, its kind, and its flags.
pub(super) type Change = (&'static str, u16, u16);

fn change_address(batch: &mut Batch, (words, kind, flags): Change, link: u32, own: IpAddr) {
    // Nobody else can have it, so IPv6 need not ask around.
    const NO_DETECTION: u8 = 0x02;
    const UNIVERSE: u8 = 0;
    let (family, octets) = octets(own);
    let whole = u8::try_from(octets.len() * 8).expect("32 or 128");
    let mut body = vec![family, whole, NO_DETECTION, UNIVERSE];
    body.extend(link.to_ne_bytes());
    batch.add(words, kind, flags, &body, |with| {
        // IFA_ADDRESS, IFA_LOCAL
        with.add(1, &octets).add(2, &octets);
    });
}

/// To one address, or everywhere with a prefix length of 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) to: IpAddr,
    pub(super) length: u8,
    pub(super) link: u32,
    pub(super) by: Option<IpAddr>,
    pub(super) from: Option<IpAddr>,
    pub(super) local: bool,
    pub(super) table: u8,
    /// Of two the smaller number wins. None: 0, or what the kernel takes for IPv6.
    pub(super) metric: Option<u32>,
}

impl Route {
    fn everywhere(to: IpAddr, link: u32) -> Self {
        Self {
            to,
            length: 0,
            link,
            by: None,
            from: None,
            local: false,
            table: MAIN,
            metric: None,
        }
    }

    pub(super) fn to_one(to: IpAddr, link: u32) -> Self {
        Self {
            length: if to.is_ipv4() { 32 } else { 128 },
            ..Self::everywhere(to, link)
        }
    }
}

/// The table of routes that the kernel asks where no rule says otherwise.
pub(super) const MAIN: u8 = 254;

pub(super) fn route(batch: &mut Batch, route: Route) {
    change_route(batch, ("make a route", NEW_ROUTE, REPLACE), route);
}

fn change_route(batch: &mut Batch, (words, kind, flags): Change, route: Route) {
    const BY_BOOT: u8 = 3;
    const SCOPE_UNIVERSE: u8 = 0;
    const SCOPE_LINK: u8 = 253;
    const SCOPE_HOST: u8 = 254;
    const UNICAST: u8 = 1;
    const OWN: u8 = 2;
    const ON_LINK: u32 = 4;
    let (family, octets_of_to) = octets(route.to);
    let (type_of_route, scope) = match (route.local, route.by) {
        (true, _) => (OWN, SCOPE_HOST),
        (false, Some(_)) => (UNICAST, SCOPE_UNIVERSE),
        (false, None) => (UNICAST, SCOPE_LINK),
    };
    let mut body = vec![family, route.length, 0, 0, route.table, BY_BOOT, scope, type_of_route];
    let on_link = if route.by.is_some() { ON_LINK } else { 0 };
    body.extend(on_link.to_ne_bytes());
    batch.add(words, kind, flags, &body, |with| {
        if route.length > 0 {
            with.add(1, &octets_of_to); // RTA_DST
        }
        with.add(4, &route.link.to_ne_bytes()); // RTA_OIF
        if let Some(by) = route.by {
            with.add(5, &octets(by).1); // RTA_GATEWAY
        }
        if let Some(metric) = route.metric {
            with.add(6, &metric.to_ne_bytes()); // RTA_PRIORITY
        }
        if let Some(from) = route.from {
            with.add(7, &octets(from).1); // RTA_PREFSRC
        }
    });
}

/// Who has an address behind a link, for ever.
fn neighbour(batch: &mut Batch, link: u32, address: IpAddr, mac: [u8; 6]) {
    const PERMANENT: u16 = 0x80;
    let (family, octets) = octets(address);
    let mut body = vec![family, 0, 0, 0];
    body.extend(link.to_ne_bytes());
    body.extend(PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    batch.add("write down a neighbour", NEW_NEIGHBOUR, REPLACE, &body, |with| {
        // NDA_DST, NDA_LLADDR
        with.add(1, &octets).add(2, &mac);
    });
}

const NOWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const NOWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Makes a router of the new network namespace that the calling thread is in. False: without IPv6, which this machine
/// does not have.
pub(crate) fn furnish() -> io::Result<bool> {
    // A new namespace has the machine's settings of IPv4, forwarding among them.
    for (name, value) in [
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        // `lo` lets in what the relay sends to itself in an instance's name.
        ("ipv4/conf/lo/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/route_localnet", "0"),
        // Links let in what instances send to the one port of 127.0.0.1 that leads here.
        ("ipv4/conf/default/route_localnet", "1"),
        ("ipv4/conf/all/accept_source_route", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/log_martians", "0"),
        ("ipv4/conf/default/log_martians", "0"),
        // Each refusal is told, not the first of a second only.
        ("ipv4/icmp_ratemask", "0"),
    ] {
        set(name, value)?;
    }
    let route_netlink = route_socket()?;
    let mut batch = Batch::default();
    link_up(&mut batch, LO);
    address(&mut batch, LO, RESOLVER);
    route(&mut batch, everywhere(NOWHERE_V4));
    batch.send(&route_netlink)?;

    match furnish_v6(&route_netlink) {
        Ok(()) => Ok(true),
        Err(error) => {
            super::say(format_args!("instances have no IPv6: {error}"));
            Ok(false)
        }
    }
}

fn furnish_v6(route_netlink: &OwnedFd) -> io::Result<()> {
    for (name, value) in [
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/forwarding", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        // No address of its own on a link.
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        set(name, value)?;
    }
    let mut batch = Batch::default();
    // So that a refusal has a sender.
    address(&mut batch, LO, Ipv6Addr::from_bits(FIRST_V6));
    route(&mut batch, everywhere(NOWHERE_V6));
    Ok(batch.send(route_netlink)?)
}

/// All the world is here.
fn everywhere(to: IpAddr) -> Route {
    Route {
        local: true,
        ..Route::everywhere(to, LO)
    }
}

fn set(name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/{name}"), value)
        .map_err(|error| io::Error::other(format!("cannot set net/{name}: {error}")))
}

/// Until an instance has its link: what it sends is dropped. So a program that calls somebody in its first millisecond
/// tries again a second later, as over any network that loses a packet; with no route at all it would fail.
fn until_attached(way: Way) -> Vec<Route> {
    const LAST: u32 = u32::MAX;
    let waits = |to: Route| Route {
        from: Some(IpAddr::V4(way.slot.v4())),
        metric: Some(LAST),
        ..to
    };
    if way.internet {
        vec![waits(Route::everywhere(NOWHERE_V4, LO))]
    } else {
        homeruns().map(|to| waits(Route::to_one(to, LO))).into()
    }
}

/// The addresses of Homerun itself.
fn homeruns() -> [IpAddr; 2] {
    [RESOLVER.into(), INGRESS.into()]
}

/// Adds to an instance's network what it needs before it runs. Its `lo` is up.
pub(crate) fn reserve(batch: &mut Batch, way: Way) {
    address(batch, LO, way.slot.v4());
    for waiting in until_attached(way) {
        route(batch, waiting);
    }
}

/// Takes back what [`reserve`] has added.
fn relieve(netlink: &OwnedFd, way: Way) {
    let own = IpAddr::V4(way.slot.v4());
    let mut batch = Batch::default();
    for waiting in until_attached(way) {
        change_route(&mut batch, ("remove a route", DEL_ROUTE, 0), waiting);
    }
    change_address(&mut batch, ("remove an address", DEL_ADDRESS, 0), LO, own);
    // Taken back already when the relay was started again.
    let _ = batch.send(netlink);
}

/// Joins an instance's network to the router by a link of its own. The calling thread is in the router, which is
/// `home`, and `router_netlink` was opened there. `port`: the one of the instance's 127.0.0.1 that leads here too.
pub(crate) fn attach(
    home: &Home,
    router_netlink: &OwnedFd,
    way: Way,
    port: Option<u16>,
    network: impl AsFd,
    with_v6: bool,
) -> io::Result<()> {
    let slot = way.slot;
    let with_v6 = with_v6 && way.internet;
    let netlink = home.inside(&network, route_socket)??;
    let made = make_link(router_netlink, slot, &network);
    match made.as_ref().map_err(Refusal::errno) {
        // One is there still: of an instance of long ago whose network somebody holds, or to a router that has ended.
        Err(Some(libc::EEXIST | libc::EBUSY)) => {
            detach(router_netlink, slot.link());
            detach(&netlink, ETH0);
            make_link(router_netlink, slot, &network)?;
        }
        Ok(()) | Err(_) => made?,
    }
    let (own_v4, own_v6) = (IpAddr::V4(slot.v4()), IpAddr::V6(slot.v6()));

    let link = slot.link();
    let mut batch = Batch::default();
    arrive(&mut batch, link, own_v4);
    if with_v6 {
        arrive(&mut batch, link, own_v6);
    }
    batch.send(router_netlink)?;

    let mut batch = Batch::default();
    match port {
        Some(_) => loopback::link_up(&mut batch, ETH0),
        None => link_up(&mut batch, ETH0),
    }
    let by = IpAddr::V4(RESOLVER);
    if way.internet {
        leave(&mut batch, own_v4, Route::everywhere(NOWHERE_V4, ETH0), by);
    } else {
        for to in homeruns() {
            leave(&mut batch, own_v4, Route::to_one(to, ETH0), by);
        }
    }
    batch.send(&netlink)?;
    relieve(&netlink, way);
    loopback::lead(&netlink, own_v4, port);
    if with_v6 {
        let mut batch = Batch::default();
        leave(
            &mut batch,
            own_v6,
            Route::everywhere(NOWHERE_V6, ETH0),
            IpAddr::V6(GATEWAY_V6),
        );
        // The machine may have IPv6 and keep it from new namespaces.
        if let Err(error) = batch.send(&netlink) {
            tracing::debug!(%error, "an instance without IPv6");
        }
    }
    Ok(())
}

fn make_link(router_netlink: &OwnedFd, slot: Slot, network: &impl AsFd) -> Result<(), Refusal> {
    const NAME: u16 = 3;
    const ADDRESS: u16 = 1;
    const NETWORK: u16 = 28;
    const INFORMATION: u16 = 18;
    const KIND: u16 = 1;
    const DATA: u16 = 2;
    const PEER: u16 = 1;
    let name = |with: &mut Attributes<'_>, name: &str, mac: &[u8; 6]| {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        with.add(NAME, &name).add(ADDRESS, mac);
    };
    let mut batch = Batch::default();
    let body = link_body(slot.link(), 0);
    batch.add("make a link", NEW_LINK, CREATE, &body, |with| {
        name(with, &slot.name(), &ROUTER_MAC);
        with.nest(INFORMATION, &[], |with| {
            with.add(KIND, b"veth");
            with.nest(DATA, &[], |with| {
                with.nest(PEER, &link_body(ETH0, 0), |with| {
                    name(with, "eth0", &INSTANCE_MAC);
                    with.add(NETWORK, &network.as_fd().as_raw_fd().to_ne_bytes());
                });
            });
        });
    });
    batch.send(router_netlink)?;
    let mut batch = Batch::default();
    link_up(&mut batch, slot.link());
    batch.send(router_netlink)
}

/// Removes a link with its other end, if it is there.
fn detach(netlink: &OwnedFd, link: u32) {
    let mut batch = Batch::default();
    batch.add("remove a link", DEL_LINK, 0, &link_body(link, 0), |_| {});
    let _ = batch.send(netlink);
}

/// Whether an instance's link is not there any more.
pub(crate) fn is_gone(router_netlink: &OwnedFd, slot: Slot) -> bool {
    let mut batch = Batch::default();
    // Changes nothing.
    batch.add("look at a link", NEW_LINK, 0, &link_body(slot.link(), 0), |_| {});
    batch.send(router_netlink).is_err()
}

/// The router's part: where an instance's address is.
fn arrive(batch: &mut Batch, link: u32, own: IpAddr) {
    route(batch, Route::to_one(own, link));
    neighbour(batch, link, own, INSTANCE_MAC);
}

/// The instance's part: its address, and elsewhere by the router.
fn leave(batch: &mut Batch, own: IpAddr, away: Route, by: IpAddr) {
    change_address(batch, ("give a link its address", NEW_ADDRESS, REPLACE), ETH0, own);
    neighbour(batch, ETH0, by, ROUTER_MAC);
    route(
        batch,
        Route {
            by: Some(by),
            from: Some(own),
            ..away
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_their_addresses() {
        let slot = Slot(258);
        assert_eq!(slot.v4().to_string(), "198.18.1.2");
        assert_eq!(slot.v6().to_string(), "fd68:6f6d:6572:756e::102");
        for address in [IpAddr::V4(slot.v4()), IpAddr::V6(slot.v6())] {
            assert_eq!(Slot::of(address), Some(slot));
        }
        assert_eq!(Slot::of_link(slot.link()), Some(slot));
        assert_eq!(Slot::of_link(LO), None);
        assert_eq!(Slot(u16::MAX).next(), Slot::FIRST);
        for strange in [
            "198.18.0.0",
            "198.17.255.255",
            "198.19.0.0",
            "fd68:6f6d:6572:756e::",
            "::1",
        ] {
            assert_eq!(Slot::of(strange.parse().expect("an address")), None, "{strange}");
        }
    }
}
