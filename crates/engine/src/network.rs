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
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect as start_connect, recv, send, socket_with,
    },
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

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

    /// Gives `lo` of `namespace` the instance's address. The runtime has brought `lo` up.
    pub(crate) fn add_address(&self, namespace: impl AsFd) -> io::Result<()> {
        let netlink = self.inside(namespace, || {
            socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                // NETLINK_ROUTE, which is 0.
                None,
            )
        })??;
        send(&netlink, &address_request(), SendFlags::empty())?;
        let mut answer = [0; 128];
        let (length, _) = recv(&netlink, &mut answer[..], RecvFlags::empty())?;
        match answer_error(&answer[..length]) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel gave no answer to a new address",
            )),
        }
    }
}

pub(crate) fn open_namespace(path: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// `RTM_NEWADDR` for [`ADDRESS`]/32 on the first link, which is `lo` in every namespace. See rtnetlink(7).
fn address_request() -> Vec<u8> {
    const NEW_ADDRESS: u16 = 20;
    const REQUEST_ACK_CREATE_EXCL: u16 = 0x1 | 0x4 | 0x400 | 0x200;
    const LO: u32 = 1;
    let mut body = vec![2, 32, 0, 0]; // AF_INET, prefix length, flags, scope
    body.extend(LO.to_ne_bytes());
    for kind in [1_u16, 2] {
        // IFA_ADDRESS, IFA_LOCAL
        body.extend(8_u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(ADDRESS.octets());
    }
    let length = u32::try_from(16 + body.len()).expect("40 bytes");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(NEW_ADDRESS.to_ne_bytes());
    message.extend(REQUEST_ACK_CREATE_EXCL.to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend(body);
    message
}

/// The error number of an `NLMSG_ERROR` answer; 0 is success.
fn answer_error(answer: &[u8]) -> Option<i32> {
    let kind = answer.get(4..6)?;
    let code = answer.get(16..20)?;
    (u16::from_ne_bytes([kind[0], kind[1]]) == 2)
        .then(|| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_request_has_the_length_it_says() {
        let request = address_request();
        assert_eq!(request.len(), 40);
        assert_eq!(request[..4], 40_u32.to_ne_bytes());
        assert_eq!(request[28..32], [169, 254, 8, 1]);
    }

    #[test]
    fn an_answer_is_read() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(answer_error(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(answer_error(&answer), Some(17));
        assert_eq!(answer_error(&answer[..10]), None);
    }
}
