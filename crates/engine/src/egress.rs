//! The way out: instances reach the public internet, Homerun's own metadata server and ingress (`own`), and nothing else.
//! No private range, nothing link-local, no address of the machine, no other instance; by IPv4 and IPv6. A relay may be
//! told to leave out the internet, and does so by itself where the machine lacks what the rules need.
//!
//! A process of its own does it, with the same binary, started by the launcher and ended with it, so that connections of
//! instances outlive a server that is replaced. It lives in a network namespace that it makes, the router, from which
//! no route leads out; only sockets that it opens in the machine's namespace on purpose do (`outside`).
//!
//! ```text
//! launcher ── an instance's network ──▶ attach: a link to the router (router)
//! instance ──▶ rules (ruleset, watch) ──▶ tcp, udp, dns ──▶ outside ──▶ the internet
//!                                     └─▶ own, dns (names) ──▶ the server (calls)
//! ```
//!
//! What enters: one message for each instance, with its network. What leaves: lines on standard error, and connections
//! to Homerun with whose they are. Two
//! walls say what may be called: the kernel's rules by address, and the relay itself before each connection, which also
//! knows the machine's own addresses. The forwarding of the machine is neither needed nor changed.

mod dns;
mod guest;
mod link;
mod loopback;
mod names;
mod outside;
mod own;
mod packet;
mod reach;
mod router;
mod ruleset;
mod segment;
mod tcp;
mod udp;
mod watch;

use std::{
    ffi::OsStr,
    fmt::Arguments,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvFlags, recv},
};
use tokio::sync::oneshot;

use self::{guest::Guests, outside::Outside, own::Own, packet::Family, ruleset::Reached, watch::Rules};
pub(crate) use self::{
    link::Link,
    names::METADATA,
    router::{RESOLVER, Slot, Way, address, link_up, reserve},
};
use crate::{
    Doors, doctor,
    netlink::{body_of, kind_of, listening_socket, messages, route_socket},
    network::{Home, open_namespace},
    process, wire,
};

/// The first argument with which a binary becomes the relay of instances.
pub const EGRESS: &str = "engine-egress";

/// The exit status that says: not on this machine, no need to try again.
pub(crate) const CANNOT: u8 = 2;

/// Files that are no connection: the runtime's, netlink's, doors.
const OWN_FILES: u64 = 200;

/// What it is told once, as its second argument.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Duty {
    pub(crate) id8: String,
    /// Whether it leads on to the internet.
    pub(crate) internet: bool,
    /// What of Homerun itself is reached. None: nothing.
    pub(crate) doors: Option<Doors>,
    /// The server's socket.
    pub(crate) desk: PathBuf,
}

/// With an instance's network namespace beside it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Attach {
    pub(crate) id: String,
    pub(crate) way: Way,
    /// Ports of 127.0.0.1 that the instance uses itself.
    pub(crate) ports: Vec<u16>,
}

/// Runs as relay until the launcher is gone. `duty` is the argument after [`EGRESS`]; standard input is the socket.
/// Must be called with no other thread in the process. Returns the exit status.
pub fn egress_main(duty: &OsStr) -> u8 {
    match set_up(duty) {
        Ok(relay) => match relay.run() {
            Ok(()) => 0,
            Err(error) => {
                say(format_args!("the relay of instances ended: {error}"));
                1
            }
        },
        Err(error) => {
            say(format_args!("instances have no way out: {error}"));
            CANNOT
        }
    }
}

fn say(words: Arguments<'_>) {
    // Nobody to tell is no reason to end.
    let _ = io::stderr().write_fmt(format_args!("homerun: egress: {words}\n"));
}

struct Relay {
    launcher: OwnedFd,
    router: Home,
    machine: OwnedFd,
    /// None: no rules are written, and nothing leads to the internet.
    nft: Option<PathBuf>,
    duty: Duty,
    with_v6: bool,
}

/// Leaves the present network for a new one and makes a router of it. Returns the one that was left, and whether there
/// is IPv6.
fn leave_network() -> io::Result<(OwnedFd, bool)> {
    let machine = open_namespace("/proc/thread-self/ns/net")?;
    process::new_network()?;
    Ok((machine, router::furnish()?))
}

fn set_up(duty: &OsStr) -> io::Result<Relay> {
    let duty: Duty = serde_json::from_slice(duty.as_bytes())?;
    let launcher = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::thread::set_name(c"homerun-egress")?;
    let nft = doctor::program(Path::new("nft"));
    if duty.internet && nft.is_none() {
        return Err(io::Error::other("there is no nft"));
    }
    let (machine, with_v6) = leave_network()?;
    Ok(Relay {
        launcher,
        router: Home::open()?,
        machine,
        nft,
        duty,
        with_v6,
    })
}

/// Tries on this machine what the relay needs, in a network that is gone afterwards.
pub(crate) fn trial(nft: &Path) -> io::Result<()> {
    let nft = nft.to_owned();
    let tried = thread::spawn(move || {
        process::new_network()?;
        let (instance, with_v6) = leave_network()?;
        let reached = Reached {
            own: Vec::new(),
            internet: true,
        };
        ruleset::write(&nft, "00000000", &reached, true)?;
        let way = Way {
            slot: Slot::FIRST,
            internet: true,
        };
        router::attach(&Home::open()?, &route_socket()?, way, None, &instance, with_v6)
    });
    tried
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the trial broke off")))
}

impl Relay {
    fn run(self) -> io::Result<()> {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let files = files.current.unwrap_or(1 << 20).saturating_sub(OWN_FILES);
        let guests = Arc::new(Guests::new(usize::try_from(files / 2).unwrap_or(usize::MAX)));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("homerun-egress")
            .enable_all()
            .build()?;
        let (sender, ended) = oneshot::channel();
        let Self {
            launcher,
            router,
            machine,
            nft,
            duty,
            with_v6,
        } = self;
        let places = duty.doors.as_ref().map(own::places).unwrap_or_default();
        let loopback = duty.doors.as_ref().map(|doors| doors.public);
        let attached = Arc::clone(&guests);
        let serving = runtime.block_on(async move {
            let mut serving = tokio::task::JoinSet::new();
            // Before anybody is attached.
            let reached = Reached {
                own: places.clone(),
                internet: duty.internet,
            };
            match nft.map(|nft| Rules::write(nft, duty.id8, reached)) {
                Some(Ok(rules)) => {
                    serving.spawn(rules.keep());
                }
                Some(Err(error)) if duty.internet => return Err(error),
                // Nothing that an instance sends elsewhere has a way: there is no route to it, and none out of here.
                Some(Err(_)) | None => {}
            }
            let dns_door = dns::Door::open().await?;
            let own = Arc::new(Own::new(Arc::clone(&guests), duty.desk));
            for place in &places {
                serving.spawn(Arc::clone(&own).serve(own::listen(*place)?, place.door));
            }
            let mut outside = None;
            if duty.internet {
                let families = [Some(Family::V4), with_v6.then_some(Family::V6)];
                let families = || families.into_iter().flatten();
                let tcp_doors = families().map(tcp::Door::open).collect::<io::Result<Vec<_>>>()?;
                let udp_doors = families().map(udp::Door::open).collect::<io::Result<Vec<_>>>()?;
                let reached = Arc::new(Outside::new(Home::open()?, machine)?);
                let own = places.iter().map(|place| place.at).collect();
                let tcp = Arc::new(tcp::Tcp::new(Arc::clone(&guests), Arc::clone(&reached), own));
                let udp = Arc::new(udp::Udp::new(Arc::clone(&guests), Arc::clone(&reached)));
                for door in tcp_doors {
                    serving.spawn(Arc::clone(&tcp).serve(door));
                }
                for door in udp_doors {
                    serving.spawn(Arc::clone(&udp).serve(door));
                }
                outside = Some(reached);
            }
            let domain = duty.doors.map(|doors| doors.domain);
            let dns = Arc::new(dns::Dns::new(guests, outside, domain));
            serving.spawn(dns.serve(dns_door));
            io::Result::Ok(serving)
        });
        let mut serving = serving?;
        let attaching = Attaching {
            launcher,
            router,
            netlink: route_socket()?,
            links: listening_socket(None, LINKS)?,
            guests: attached,
            loopback,
            with_v6,
        };
        thread::Builder::new().name("attach".to_owned()).spawn(move || {
            // Nobody waits for it when something else ended the relay.
            let _ = sender.send(attaching.serve());
        })?;
        runtime.block_on(async move {
            tokio::select! {
                // The launcher is gone.
                done = ended => done.unwrap_or_else(|_| Err(io::Error::other("attaching broke off"))),
                Some(broken) = serving.join_next() => Err(broken.unwrap_or_else(io::Error::other)),
            }
        })
    }
}

/// `RTMGRP_LINK`
const LINKS: u32 = 1;

/// Takes instances in as the launcher brings them, and out as their links go. One thread: it is all questions to the
/// kernel, one after the other.
struct Attaching {
    launcher: OwnedFd,
    router: Home,
    netlink: OwnedFd,
    links: OwnedFd,
    guests: Arc<Guests>,
    /// The port of 127.0.0.1 that leads to the ingress in every instance that does not use it itself.
    loopback: Option<u16>,
    with_v6: bool,
}

impl Attaching {
    /// Until the launcher is gone.
    fn serve(&self) -> io::Result<()> {
        loop {
            let mut files = [
                PollFd::new(&self.launcher, PollFlags::IN),
                PollFd::new(&self.links, PollFlags::IN),
            ];
            match poll(&mut files, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [brought, links] = files.map(|file| !file.revents().is_empty());
            if links {
                self.follow_links();
            }
            if brought {
                match wire::receive::<Attach>(&self.launcher)? {
                    None => return Ok(()),
                    Some((attach, networks)) => self.attach(&attach, &networks),
                }
            }
        }
    }

    fn attach(&self, attach: &Attach, networks: &[OwnedFd]) {
        let [network] = networks else {
            return say(format_args!("instance {} came without its network", attach.id));
        };
        let loopback = self.loopback.filter(|port| !attach.ports.contains(port));
        // Before the link is there: what comes by it is known at once.
        self.guests.add(attach.way.slot, &attach.id);
        let attached = router::attach(&self.router, &self.netlink, attach.way, loopback, network, self.with_v6);
        match attached {
            Ok(()) => {}
            // It may have ended already.
            Err(error) => {
                self.guests.remove(attach.way.slot);
                say(format_args!("instance {} has no way out: {error}", attach.id));
            }
        }
    }

    fn follow_links(&self) {
        const DEL_LINK: u16 = 17;
        let mut buffer = [0; 16 << 10];
        loop {
            match recv(&self.links, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    for message in messages(&buffer[..length]).filter(|m| kind_of(m) == Some(DEL_LINK)) {
                        let link = body_of(message).get(4..8).and_then(|number| number.try_into().ok());
                        if let Some(slot) = link.map(u32::from_ne_bytes).and_then(Slot::of_link) {
                            self.guests.remove(slot);
                        }
                    }
                }
                // Some were lost: look at each.
                Err(rustix::io::Errno::NOBUFS) => {
                    for slot in self.guests.slots() {
                        if router::is_gone(&self.netlink, slot) {
                            self.guests.remove(slot);
                        }
                    }
                }
                Err(_) => return,
            }
        }
    }
}
