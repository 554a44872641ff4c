//! Sockets of the machine's own network, for what instances are allowed to reach there. The relay itself lives in the
//! router, from which no route leads out: what is not asked for here stays inside.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Mutex,
};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, UdpSocket};

use super::reach;
use crate::{
    netlink::{body_of, error_of, route_socket},
    network::Home,
};

/// Why a destination is not reached. The table of rules knows the first case as well.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Its address is none of the public internet.
    NotPublic,
    /// It is one of the machine's own.
    Own,
    /// The machine has no way there, or the connection was not made.
    Failed(io::Error),
}

#[derive(Debug)]
pub(crate) struct Outside {
    /// Where this process lives.
    router: Home,
    machine: OwnedFd,
    /// Asks the machine's routes.
    routes: Mutex<OwnedFd>,
}

impl Outside {
    pub(crate) fn new(router: Home, machine: OwnedFd) -> io::Result<Self> {
        let routes = router.inside(&machine, route_socket)??;
        Ok(Self {
            router,
            machine,
            routes: Mutex::new(routes),
        })
    }

    /// Whether an instance may call `to` at this moment. The machine's own addresses are whatever its routes say is
    /// local, broadcast or multicast, so one that came a moment ago counts.
    pub(crate) fn check(&self, to: IpAddr) -> Result<(), Refused> {
        const UNICAST: u8 = 1;
        const BLACKHOLE: u8 = 6;
        const UNREACHABLE: u8 = 7;
        const PROHIBITED: u8 = 8;
        let failed = |errno| Err(Refused::Failed(io::Error::from_raw_os_error(errno)));
        if !reach::allowed(to) {
            return Err(Refused::NotPublic);
        }
        match self.kind_of_route(to) {
            Ok(UNICAST) => Ok(()),
            Ok(BLACKHOLE | UNREACHABLE) => failed(libc::ENETUNREACH),
            Ok(PROHIBITED) => failed(libc::EACCES),
            Ok(_) => Err(Refused::Own),
            Err(error) => Err(Refused::Failed(error)),
        }
    }

    /// `rtm_type` of the route to an address.
    fn kind_of_route(&self, to: IpAddr) -> io::Result<u8> {
        let routes = self.routes.lock().expect("no panic while held");
        send(&*routes, &route_question(to), SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (length, _) = recv(&*routes, &mut answer[..], RecvFlags::empty())?;
        let answer = &answer[..length];
        match error_of(answer) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => body_of(answer)
                .get(7)
                .copied()
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel gave half a route")),
        }
    }

    fn socket(&self, to: SocketAddr, kind: Type) -> io::Result<Socket> {
        let made = self.router.inside(&self.machine, || {
            Socket::new(Domain::for_address(to), kind.nonblocking().cloexec(), None)
        });
        made?
    }

    /// A connection to where an instance wants to go.
    pub(crate) async fn connect(&self, to: SocketAddr) -> Result<tokio::net::TcpStream, Refused> {
        self.check(to.ip())?;
        self.tcp(to).await.map_err(Refused::Failed)
    }

    /// A connection to wherever we want to go.
    pub(crate) async fn tcp(&self, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let socket = self.socket(to, Type::STREAM)?;
        socket.set_keepalive(true)?;
        socket.set_tcp_nodelay(true)?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    }

    /// A connected UDP socket; the address is not checked.
    pub(crate) fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(to, Type::DGRAM)?;
        socket.connect(&to.into())?;
        UdpSocket::from_std(socket.into())
    }
}

/// `RTM_GETROUTE` for one address.
fn route_question(to: IpAddr) -> Vec<u8> {
    const GET_ROUTE: u16 = 26;
    const REQUEST: u16 = 1;
    let (family, octets) = match to {
        IpAddr::V4(to) => (2, to.octets().to_vec()),
        IpAddr::V6(to) => (10, to.octets().to_vec()),
    };
    let bits = u8::try_from(octets.len() * 8).expect("32 or 128");
    let mut body = vec![family, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attribute = u16::try_from(4 + octets.len()).expect("8 or 20");
    body.extend(attribute.to_ne_bytes());
    body.extend(1_u16.to_ne_bytes()); // RTA_DST
    body.extend(octets);
    let length = u32::try_from(16 + body.len()).expect("36 or 48");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(GET_ROUTE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}
