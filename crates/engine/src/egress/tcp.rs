//! Connections of instances to the internet: two connections, one on each side of the relay, and their bytes carried
//! over.
//!
//! An instance shall see what its peer does, not what the relay does. So the first packet of a connection is held back:
//! the rules drop it, and the relay, which sees every one, calls the peer. When that has answered, the packet is let in
//! again by `lo`, the rules hand it to the relay's listener, and the instance is connected. When the peer refuses, so is
//! the instance; when there is no way, it is told so; when nobody answers, nobody answers.
//!
//! ```text
//! first packet ── held ── connect outside ── connected ── let in by lo ── accepted ── bytes both ways
//!                            └ refused, no way: a packet that says so
//! ```

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive, Type};
use tokio::{
    io::{copy_bidirectional, unix::AsyncFd},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    guest::{Guest, Guests, Place},
    outside::{Outside, Refused},
    packet::{self, Family, LO},
    router::{INSTANCE_MAC, Slot},
    ruleset::RELAY_PORT,
    segment::{self, First, Unreachable},
};
use crate::watched::watched;

/// As long as Linux itself tries to connect.
const CONNECT: Duration = Duration::from_secs(130);
/// How long a connection outside waits for the instance to take it. The instance repeats its first packet after 1, 3
/// and 7 seconds.
const TAKE: Duration = Duration::from_secs(15);
/// An idle connection is asked whether its peer is still there.
const KEEPALIVE: Duration = Duration::from_mins(5);
const BACKLOG: i32 = 4096;

type Ends = (SocketAddr, SocketAddr);

/// A connection outside that the instance has not taken yet.
#[derive(Debug)]
enum Waiting {
    Connecting,
    /// Dropped as a whole when it is taken, which the last of them tells.
    Connected(TcpStream, Place, oneshot::Sender<()>),
}

#[derive(Debug)]
pub(crate) struct Tcp {
    guests: Arc<Guests>,
    outside: Arc<Outside>,
    /// Where Homerun itself is: these connections are made with the relay, and nobody is called for them.
    own: Vec<SocketAddr>,
    waiting: Mutex<HashMap<Ends, Waiting>>,
}

/// What one version of the internet protocol needs. Made in the router.
#[derive(Debug)]
pub(crate) struct Door {
    family: Family,
    packets: AsyncFd<OwnedFd>,
    listener: TcpListener,
}

impl Door {
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        let at = SocketAddr::new(family.any(), RELAY_PORT);
        let listener = packet::transparent(family, Type::STREAM, at)?;
        listener.listen(BACKLOG)?;
        Ok(Self {
            family,
            packets: watched(packet::first_packets(family)?)?,
            listener: TcpListener::from_std(listener.into())?,
        })
    }

    fn send(&self, link: u32, packet: &[u8]) -> io::Result<()> {
        let mac = if link == LO { [0; 6] } else { INSTANCE_MAC };
        packet::send_packet(self.packets.get_ref(), self.family, link, mac, packet)
    }
}

impl Tcp {
    pub(crate) fn new(guests: Arc<Guests>, outside: Arc<Outside>, own: Vec<SocketAddr>) -> Self {
        Self {
            guests,
            outside,
            own,
            waiting: Mutex::default(),
        }
    }

    /// Serves one door for ever.
    pub(crate) async fn serve(self: Arc<Self>, door: Door) -> io::Error {
        let door = Arc::new(door);
        tokio::select! {
            error = self.hold(&door) => error,
            error = self.accept(&door) => error,
        }
    }

    /// Looks at first packets.
    async fn hold(self: &Arc<Self>, door: &Arc<Door>) -> io::Error {
        let mut buffer = [0; 2048];
        loop {
            let received = door
                .packets
                .async_io(tokio::io::Interest::READABLE, |socket| {
                    packet::receive_packet(socket, &mut buffer)
                })
                .await;
            let (length, link) = match received {
                Ok(received) => received,
                // The kernel had no memory for some: they come again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return error,
            };
            let Some(first) = segment::first(&buffer[..length]) else {
                continue;
            };
            // Nobody speaks in another's name, rules or not.
            if Slot::of(first.from.ip()) != Slot::of_link(link) || self.own.contains(&first.to) {
                continue;
            }
            if let Some(guest) = self.guests.of(first.from.ip()) {
                self.call(door, guest, first, link);
            }
        }
    }

    fn call(self: &Arc<Self>, door: &Arc<Door>, guest: Arc<Guest>, first: First, link: u32) {
        let ends = (first.from, first.to);
        {
            let mut waiting = self.waiting.lock().expect("no panic while held");
            match waiting.get(&ends) {
                Some(Waiting::Connecting) => return,
                Some(Waiting::Connected(..)) => {
                    // What was let in got lost.
                    let _ = door.send(LO, &first.packet);
                    return;
                }
                None => {}
            }
            waiting.insert(ends, Waiting::Connecting);
        }
        let (tcp, door) = (Arc::clone(self), Arc::clone(door));
        tokio::spawn(async move {
            let taken = tokio::select! {
                taken = tcp.meet(&door, &guest, &first, link) => taken,
                () = guest.gone() => false,
            };
            if !taken {
                tcp.waiting.lock().expect("no panic while held").remove(&ends);
            }
        });
    }

    /// Until the connection was taken, and whether it was.
    async fn meet(&self, door: &Door, guest: &Guest, first: &First, link: u32) -> bool {
        let refusal = match self.guests.connection(guest) {
            None => Some(segment::reset(first)),
            Some(place) => match timeout(CONNECT, self.outside.connect(first.to)).await {
                Ok(Ok(stream)) => {
                    let (sender, taken) = oneshot::channel();
                    let connected = Waiting::Connected(stream, place, sender);
                    let ends = (first.from, first.to);
                    self.waiting
                        .lock()
                        .expect("no panic while held")
                        .insert(ends, connected);
                    let _ = door.send(LO, &first.packet);
                    return timeout(TAKE, taken).await.is_ok();
                }
                Ok(Err(refused)) => refusal(first, &refused),
                Err(_) => None,
            },
        };
        if let Some(packet) = refusal {
            // Gone with its link, which is as good.
            let _ = door.send(link, &packet);
        }
        false
    }

    async fn accept(self: &Arc<Self>, door: &Door) -> io::Error {
        loop {
            let (mut inside, from) = match door.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_one(&error) => continue,
                // No file left: the ones that are open end some time.
                Err(_) => {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let tcp = Arc::clone(self);
            tokio::spawn(async move {
                let Some(guest) = tcp.guests.of(from.ip()) else {
                    return reset(inside);
                };
                let carried = tokio::select! {
                    carried = tcp.carry(&guest, &mut inside, from) => carried,
                    () = guest.gone() => Err(Broken),
                };
                if carried.is_err() {
                    reset(inside);
                }
            });
        }
    }

    /// Until both directions have ended. Broken: what is left of it must not look like an end.
    async fn carry(&self, guest: &Guest, inside: &mut TcpStream, from: SocketAddr) -> Result<(), Broken> {
        let to = inside.local_addr().map_err(|_| Broken)?;
        let held = self.waiting.lock().expect("no panic while held").remove(&(from, to));
        let (mut outside, _place) = match held {
            Some(Waiting::Connected(stream, place, _taken)) => (stream, place),
            // It came without being held, which the rules do not let happen: they are not there.
            Some(Waiting::Connecting) | None => {
                let place = self.guests.connection(guest).ok_or(Broken)?;
                match timeout(CONNECT, self.outside.connect(to)).await {
                    Ok(Ok(stream)) => (stream, place),
                    Ok(Err(_)) | Err(_) => return Err(Broken),
                }
            }
        };
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
        for side in [&*inside, &outside] {
            // A connection that has just ended takes no options, and needs none.
            let _ = side.set_nodelay(true);
            let _ = SockRef::from(side).set_tcp_keepalive(&keepalive);
        }
        if copy_bidirectional(inside, &mut outside).await.is_err() {
            reset(outside);
            return Err(Broken);
        }
        Ok(())
    }
}

/// A connection that did not end in order.
struct Broken;

/// Ends a connection so that its peer knows that something is missing.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

/// What tells an instance why its connection is not made. None: nothing does, as if nobody was there.
fn refusal(first: &First, refused: &Refused) -> Option<Vec<u8>> {
    let unreachable = |why| Some(segment::unreachable(first, why));
    match refused {
        Refused::NotPublic | Refused::Own => unreachable(Unreachable::Prohibited),
        Refused::Failed(error) => match (error.raw_os_error(), Unreachable::of(error)) {
            (Some(libc::ETIMEDOUT), _) => None,
            (_, Some(why @ (Unreachable::Network | Unreachable::Host | Unreachable::Prohibited))) => unreachable(why),
            (_, Some(Unreachable::Port) | None) => Some(segment::reset(first)),
        },
    }
}

/// Errors of accept(2) that belong to a connection which is gone again.
fn is_of_one(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
