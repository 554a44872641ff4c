//! The network of an instance as seen from outside: a namespace of its own with nothing but `lo`, and on it one more
//! address, to which every request is connected. A server that listens on 127.0.0.1 only is thereby as unreachable as
//! on Cloud Run. The namespace is private, so every instance has the same address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect as start_connect, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    egress,
    netlink::{Batch, route_socket},
};

/// The number of `lo` in every namespace.
const LO: u32 = 1;

/// The instance's own address on its `lo`. Link-local like the one of Cloud Run's instances.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 8, 1);

/// The namespace that this process lives in.
#[derive(Debug)]
pub(crate) struct Home(OwnedFd);

impl Home {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(open_namespace("/proc/thread-self/ns/net")?))
    }

    /// Runs `work` with the calling thread in `namespace`. A thread that cannot come back would serve strangers from an
    /// instance's network: the process ends instead.
    pub(crate) fn inside<T>(&self, namespace: impl AsFd, work: impl FnOnce() -> T) -> io::Result<T> {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network)?;
        let done = work();
        if move_into_link_name_space(self.0.as_fd(), network).is_err() {
            std::process::abort();
        }
        Ok(done)
    }

    /// A non-blocking TCP socket of `namespace` whose connection to `to` was started.
    pub(crate) fn connect(&self, namespace: impl AsFd, to: SocketAddr) -> io::Result<OwnedFd> {
        let family = match to.ip() {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = self.inside(namespace, || {
            socket_with(
                family,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )
        })??;
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        match start_connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives `lo` of `namespace` the instance's address, and what it needs until its way out is there. The runtime has
    /// brought `lo` up.
    pub(crate) fn furnish(&self, namespace: impl AsFd, way_out: Option<egress::Way>) -> io::Result<()> {
        let netlink = self.inside(namespace, route_socket)??;
        Ok(addresses(way_out).send(&netlink)?)
    }
}

/// The same for the calling process's own namespace, whose `lo` nobody has brought up.
pub(crate) fn furnish_own(way_out: Option<egress::Way>) -> io::Result<()> {
    const NEW_LINK: u16 = 16;
    const UP: u32 = 1;
    // Family and type, link, flags, which of them change.
    let up = [0, LO, UP, UP].map(u32::to_ne_bytes).concat();
    let netlink = route_socket()?;
    let mut batch = Batch::default();
    batch.add("bring a link up", NEW_LINK, 0, &up, |_| ());
    batch.send(&netlink)?;
    Ok(addresses(way_out).send(&netlink)?)
}

fn addresses(way_out: Option<egress::Way>) -> Batch {
    let mut batch = Batch::default();
    egress::address(&mut batch, LO, ADDRESS);
    if let Some(way) = way_out {
        egress::reserve(&mut batch, way);
    }
    batch
}

pub(crate) fn open_namespace(path: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Brings up `lo` of the calling thread's namespace, and lets everybody in it listen on any port.
pub(crate) fn raise() -> io::Result<()> {
    let mut batch = Batch::default();
    egress::link_up(&mut batch, LO);
    batch.send(route_socket()?)?;
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
}
