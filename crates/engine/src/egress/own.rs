//! What instances reach of Homerun itself: the metadata server at 169.254.169.254, and the ingress at 169.254.169.253 and
//! at one port of 127.0.0.1. The relay takes these connections, knows by the sender's address whose they are, and hands
//! them to the server.
//!
//! The sender's address is not what a packet says it is: the kernel drops what comes by a link that does not lead back to
//! it, and a connection is made only when its packets go both ways.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::{
    guest::Guests,
    router::{INGRESS, RESOLVER},
};
use crate::{
    Doors,
    calls::{Brought, Door},
    watched::watched,
    wire,
};

/// How long a connection waits for a server: one that is replaced is away for a moment, one that died may be back soon.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a server may take to say that it took a connection.
const ANSWER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
const KEEPALIVE: Duration = Duration::from_mins(5);
const BACKLOG: i32 = 1024;

/// One address and port, and what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: SocketAddr,
    pub(crate) door: Door,
}

/// Every place of Homerun. The schemes' own ports lead to the ingress too, so that a URL without a port does.
pub(crate) fn places(doors: &Doors) -> Vec<Place> {
    let mut ports = BTreeMap::from([(80, Door::Http), (443, Door::Https)]);
    ports.insert(doors.http, Door::Http);
    ports.insert(doors.https, Door::Https);
    let public = ports
        .get(&doors.public)
        .map(|door| (Ipv4Addr::LOCALHOST, doors.public, *door));
    let ingress = ports.into_iter().map(|(port, door)| (INGRESS, port, door));
    std::iter::once((RESOLVER, 80, Door::Metadata))
        .chain(ingress)
        .chain(public)
        .map(|(address, port, door)| Place {
            at: (address, port).into(),
            door,
        })
        .collect()
}

/// Made in the router.
#[derive(Debug)]
pub(crate) struct Own {
    guests: Arc<Guests>,
    /// The server's socket.
    desk: PathBuf,
}

pub(crate) fn listen(place: Place) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(place.at),
        Type::STREAM.nonblocking().cloexec(),
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&place.at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl Own {
    pub(crate) fn new(guests: Arc<Guests>, desk: PathBuf) -> Self {
        Self { guests, desk }
    }

    /// Serves one place for ever.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, door: Door) -> io::Error {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                // No file left, or it is gone again.
                sleep(PAUSE).await;
                continue;
            };
            let Some(guest) = self.guests.of(from.ip()) else {
                continue;
            };
            let Some(place) = self.guests.connection(&guest) else {
                continue;
            };
            let own = Arc::clone(&self);
            tokio::spawn(async move {
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
                let brought = Brought {
                    id: guest.id.clone(),
                    door,
                };
                tokio::select! {
                    // Nobody took it: it is closed, as by a server that is not there.
                    _ = timeout(PATIENCE, hand_over(&own.desk, &brought, &stream)) => {}
                    () = guest.gone() => {}
                }
                drop(place);
            });
        }
    }
}

/// Until a server has taken it.
async fn hand_over(desk: &Path, brought: &Brought, stream: &TcpStream) {
    loop {
        match timeout(ANSWER, bring(desk, brought, stream)).await {
            Ok(Ok(())) => return,
            Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn bring(desk: &Path, brought: &Brought, stream: &TcpStream) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(desk)?)?;
    let socket = watched(socket)?;
    let files = [stream.as_fd()];
    socket
        .async_io(Interest::WRITABLE, |socket| wire::send(socket, brought, &files))
        .await?;
    let answer = socket
        .async_io(Interest::READABLE, |socket| wire::receive::<bool>(socket))
        .await?;
    match answer {
        Some((true, _)) => Ok(()),
        Some((false, _)) | None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(http: u16, https: u16, public: u16) -> Vec<String> {
        let doors = Doors {
            domain: "a.run.localhost".to_owned(),
            http,
            https,
            public,
        };
        let all = places(&doors).into_iter();
        all.map(|place| format!("{} {:?}", place.at, place.door)).collect()
    }

    #[test]
    fn where_homerun_is() {
        assert_eq!(
            table(8081, 8443, 8443),
            [
                "169.254.169.254:80 Metadata",
                "169.254.169.253:80 Http",
                "169.254.169.253:443 Https",
                "169.254.169.253:8081 Http",
                "169.254.169.253:8443 Https",
                "127.0.0.1:8443 Https",
            ]
        );
        assert_eq!(
            table(80, 443, 80),
            [
                "169.254.169.254:80 Metadata",
                "169.254.169.253:80 Http",
                "169.254.169.253:443 Https",
                "127.0.0.1:80 Http",
            ]
        );
        // What was asked for goes before what is usual.
        assert!(table(443, 80, 443).contains(&"169.254.169.253:443 Http".to_owned()));
    }
}
