//! Calls of instances to Homerun itself: the server's end, where the relay hands them over.
//!
//! ```text
//! instance ── its own link ── relay: whose link it is ── calls (this socket) ── server: metadata, ingress
//! ```
//!
//! What enters: a connection, already made, with the instance whose link it came by and the door that it knocked at.
//! The kernel says whose link that is, and nothing that the instance sends. What leaves: the same, as a [`Call`]. The
//! relay keeps a connection until the server has said that it took it, so that none is lost between two servers.

use std::{
    collections::HashMap,
    fs, io,
    net::TcpStream,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use model::InstanceId;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use crate::{Engine, Inner, claim::RunDir, watched::watched, wire};

/// Connections that one instance may have to Homerun at a time.
const MOST_OPEN: usize = 256;
/// Connections that may wait to be taken from the relay.
const BACKLOG: i32 = 1024;
/// How long the relay may take to say what it brings.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(50);

/// What of Homerun an instance knocks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Door {
    /// The metadata server.
    Metadata,
    /// The ingress, in plain HTTP.
    Http,
    /// The ingress, by TLS.
    Https,
}

/// A connection of an instance to Homerun itself.
#[derive(Debug)]
pub struct Call {
    pub instance: InstanceId,
    pub door: Door,
    /// Non-blocking.
    pub stream: TcpStream,
    /// To be held until the connection has ended: it counts against what the instance may have open.
    pub place: OwnedSemaphorePermit,
}

/// What the relay says of a connection, which comes beside it. The answer is `true`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Brought {
    pub(crate) id: String,
    pub(crate) door: Door,
}

/// Where the relay hands connections over. Takes the place of a former server's socket.
#[derive(Debug)]
pub(crate) struct Desk(AsyncFd<OwnedFd>);

impl Desk {
    /// Only whoever may enter the directory, and is the same user, comes that far.
    pub(crate) fn open(run: &RunDir) -> io::Result<Self> {
        let path = run.calls();
        let fresh = PathBuf::from(format!("{}.new", path.display()));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        // From now on the relay comes here.
        fs::rename(&fresh, &path)?;
        Ok(Self(watched(socket)?))
    }

    /// Takes calls for ever.
    pub(crate) async fn serve(self, engine: Weak<Inner>, calls: mpsc::Sender<Call>) {
        let mut open = Open::default();
        loop {
            let accepted = self
                .0
                .async_io(Interest::READABLE, |desk| {
                    Ok(accept_with(desk, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
                })
                .await;
            let taken = match accepted {
                Ok(relay) => timeout(PATIENCE, take(relay, &engine, &calls, &mut open)).await,
                Err(error) => {
                    // Out of files, mostly: waiting lets some be given back.
                    tracing::warn!(%error, "cannot take a call of an instance");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match taken {
                Ok(Ok(true)) => {}
                // The engine is gone, or nobody takes calls any more.
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "a call of an instance was not handed over"),
                Err(_) => tracing::warn!("a call of an instance was not handed over in time"),
            }
        }
    }
}

impl Engine {
    /// Takes no call of an instance any more.
    pub(crate) fn hang_up(&self) {
        if let Some(calling) = &self.calling {
            calling.abort();
        }
    }
}

/// How many connections each instance has open.
#[derive(Debug, Default)]
struct Open(HashMap<InstanceId, Arc<Semaphore>>);

impl Open {
    /// None: the instance has as many as it may.
    fn place(&mut self, id: &InstanceId) -> Option<OwnedSemaphorePermit> {
        if !self.0.contains_key(id) {
            self.0.retain(|_, places| places.available_permits() < MOST_OPEN);
            self.0.insert(id.clone(), Arc::new(Semaphore::new(MOST_OPEN)));
        }
        Arc::clone(&self.0[id]).try_acquire_owned().ok()
    }
}

/// Takes one call. False: nobody takes any more. One that is not answered is brought again.
async fn take(relay: OwnedFd, engine: &Weak<Inner>, calls: &mpsc::Sender<Call>, open: &mut Open) -> io::Result<bool> {
    if sockopt::socket_peercred(&relay)?.uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let relay = watched(relay)?;
    let brought = relay.async_io(Interest::READABLE, |relay| wire::receive::<Brought>(relay));
    let (Brought { id, door }, files) = brought.await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let connection = files.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
    let Some(engine) = engine.upgrade() else {
        return Ok(false);
    };
    let known = InstanceId::parse(&id).filter(|id| engine.entry(id).is_some());
    drop(engine);
    // One that ended just now, or that has too many, finds its connection closed.
    if let Some(instance) = known
        && let Some(place) = open.place(&instance)
    {
        let stream = TcpStream::from(connection);
        stream.set_nonblocking(true)?;
        let Ok(free) = calls.reserve().await else {
            return Ok(false);
        };
        free.send(Call {
            instance,
            door,
            stream,
            place,
        });
    }
    wire::send(relay.get_ref(), &true, &[])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_so_many_places_and_others_have_theirs() {
        let (one, two) = (InstanceId::new([1; 12]), InstanceId::new([2; 12]));
        let mut open = Open::default();
        let mut held: Vec<_> = (0..MOST_OPEN).map(|_| open.place(&one).expect("a place")).collect();
        assert!(open.place(&one).is_none());
        assert!(open.place(&two).is_some());
        held.pop();
        assert!(open.place(&one).is_some());
        // Who has none open is not remembered.
        drop(held);
        assert!(open.place(&InstanceId::new([3; 12])).is_some());
        assert_eq!(open.0.len(), 1);
    }
}
