//! Datagrams of instances to the internet, and what comes back. Each pair of addresses is a session of two sockets: one
//! outside, connected to the peer; one in the router that has the peer's address, connected to the instance. So only
//! the peer answers, and only the instance is answered.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use socket2::Type;
use tokio::{
    io::Interest,
    net::UdpSocket,
    time::{Instant, sleep_until},
};

use super::{
    guest::{Guest, Guests, Place},
    outside::{Outside, Refused},
    packet::{self, Family},
    router::{INSTANCE_MAC, Slot},
    ruleset::RELAY_PORT,
    segment::{self, Unreachable},
};

/// How long a session lasts after its last datagram (RFC 4787, requirement 5).
const IDLE: Duration = Duration::from_mins(2);
/// The same of questions to a resolver, which have one answer.
const IDLE_NAMES: Duration = Duration::from_secs(10);
const DOMAIN: u16 = 53;

type Ends = (SocketAddr, SocketAddr);

thread_local! {
    /// The longest datagram there is. Held for as long as one is passed on.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 65_536]);
}

#[derive(Debug)]
pub(crate) struct Udp {
    guests: Arc<Guests>,
    outside: Arc<Outside>,
    /// The sockets outside.
    sessions: Mutex<HashMap<Ends, Arc<UdpSocket>>>,
}

/// What one version of the internet protocol needs. Made in the router.
#[derive(Debug)]
pub(crate) struct Door {
    family: Family,
    socket: UdpSocket,
    /// Sends refusals.
    packets: std::os::fd::OwnedFd,
}

impl Door {
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        let at = SocketAddr::new(family.any(), RELAY_PORT);
        let socket = packet::transparent(family, Type::DGRAM, at)?;
        packet::tell_destinations(&socket, family)?;
        Ok(Self {
            family,
            socket: UdpSocket::from_std(socket.into())?,
            packets: packet::sender()?,
        })
    }

    fn refuse(&self, (from, to): Ends, why: Unreachable) {
        let Some(slot) = Slot::of(from.ip()) else {
            return;
        };
        let packet = segment::datagram_unreachable(from, to, why);
        // Gone with its link, which is as good.
        let _ = packet::send_packet(&self.packets, self.family, slot.link(), INSTANCE_MAC, &packet);
    }

    /// Tells an instance what became of its datagram, as far as there are words for it.
    fn explain(&self, ends: Ends, error: &io::Error) {
        if let Some(why) = Unreachable::of(error) {
            self.refuse(ends, why);
        }
    }
}

/// Passes on what one socket has received until it has no more.
fn pass(from: &UdpSocket, to: &UdpSocket) -> io::Result<()> {
    BUFFER.with_borrow_mut(|buffer| {
        loop {
            let length = match from.try_recv(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            give(to, &buffer[..length])?;
        }
    })
}

/// Sends one datagram, or drops it where there is no room for it, as networks do. Asks the kernel itself: the runtime
/// takes a new socket for a full one.
fn give(to: &UdpSocket, datagram: &[u8]) -> io::Result<()> {
    match send(to, datagram, SendFlags::NOSIGNAL) {
        Ok(_) | Err(Errno::WOULDBLOCK | Errno::MSGSIZE | Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Udp {
    pub(crate) fn new(guests: Arc<Guests>, outside: Arc<Outside>) -> Self {
        Self {
            guests,
            outside,
            sessions: Mutex::default(),
        }
    }

    /// Serves one door for ever. A session's later datagrams do not come by here: its own socket gets them.
    pub(crate) async fn serve(self: Arc<Self>, door: Door) -> io::Error {
        let door = Arc::new(door);
        loop {
            if let Err(error) = door.socket.readable().await {
                return error;
            }
            let received = door.socket.try_io(Interest::READABLE, || {
                BUFFER.with_borrow_mut(|buffer| {
                    let (length, from, to) = packet::receive_datagram(&door.socket.as_fd(), buffer)?;
                    self.arrived(&door, (from, to), &buffer[..length]);
                    Ok(())
                })
            });
            match received {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                // What a peer said of something that we sent.
                Err(error) => tracing::debug!(%error, "a datagram was not received"),
            }
        }
    }

    fn arrived(self: &Arc<Self>, door: &Arc<Door>, ends: Ends, datagram: &[u8]) {
        let held = self.sessions.lock().expect("no panic while held").get(&ends).cloned();
        if let Some(outside) = held {
            // Its error is the session's to find.
            let _ = give(&outside, datagram);
            return;
        }
        let (from, to) = ends;
        let Some(guest) = self.guests.of(from.ip()) else {
            return;
        };
        // As in a full network: lost.
        let Some(place) = self.guests.session(&guest) else {
            return;
        };
        let opened = self.outside.check(to.ip()).and_then(|()| {
            let inside = packet::transparent(door.family, Type::DGRAM, to)
                .and_then(|socket| {
                    socket.connect(&from.into())?;
                    UdpSocket::from_std(socket.into())
                })
                .map_err(Refused::Failed)?;
            let outside = self.outside.udp(to).map_err(Refused::Failed)?;
            Ok((inside, outside))
        });
        let (inside, outside) = match opened {
            Ok(opened) => opened,
            // The rules have said so.
            Err(Refused::NotPublic) => return,
            Err(Refused::Own) => return door.refuse(ends, Unreachable::Prohibited),
            Err(Refused::Failed(error)) => return door.explain(ends, &error),
        };
        let outside = Arc::new(outside);
        let _ = give(&outside, datagram);
        let mut sessions = self.sessions.lock().expect("no panic while held");
        sessions.insert(ends, Arc::clone(&outside));
        drop(sessions);
        let (udp, door) = (Arc::clone(self), Arc::clone(door));
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = session(&inside, &outside, to) => ended,
                () = guest.gone() => Ok(()),
            };
            udp.sessions.lock().expect("no panic while held").remove(&ends);
            if let Err(error) = ended {
                door.explain(ends, &error);
            }
            drop::<(Place, Arc<Guest>)>((place, guest));
        });
    }
}

/// Until nothing has come for a while. Errors are what the network said of a datagram: that the peer is not there, or
/// that the instance has closed its socket.
async fn session(inside: &UdpSocket, outside: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    let patience = if to.port() == DOMAIN { IDLE_NAMES } else { IDLE };
    let mut end = std::pin::pin!(sleep_until(Instant::now() + patience));
    let arrived = Interest::READABLE | Interest::ERROR;
    loop {
        let (from, to, ready) = tokio::select! {
            ready = inside.ready(arrived) => (inside, outside, ready?),
            ready = outside.ready(arrived) => (outside, inside, ready?),
            () = &mut end => return Ok(()),
        };
        if ready.is_error() {
            let told = from.try_io(Interest::ERROR, || match from.take_error()? {
                Some(error) => Err(error),
                None => Err(io::ErrorKind::WouldBlock.into()),
            });
            match told {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(()) | Err(_) => return told,
            }
        }
        pass(from, to)?;
        end.as_mut().reset(Instant::now() + patience);
    }
}
