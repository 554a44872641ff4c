//! Connections to instances: opened through the engine's function, kept by each thread for itself.
//!
//! HTTP/1 connections lie on a stack per instance, the last used on top; one that was cut off in the middle is never
//! put back. HTTP/2 (`h2c`) has one connection per instance and thread, shared by its requests. A kept connection is
//! given up after [`IDLE_LIMIT`], looked at when another one is put down and by [`prune`].

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::{InstanceId, Protocol};
use tokio::net::TcpStream;

use crate::{Instances, body::Outgoing};

/// Idle HTTP/1 connections that one thread keeps per instance: as many as an instance may have requests at a time, so
/// that a busy one is not connected to anew for requests beyond a smaller number (measured at 512 clients: with 64 kept,
/// ten times the CPU per request).
const KEPT_PER_INSTANCE: usize = 1000;

/// How long a connection is kept without a request.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the connection failed")]
    Exchange(#[source] hyper::Error),
    #[error("the answer switches protocols, which was not asked for")]
    Switching,
}

/// A way to send one request to an instance.
#[derive(Debug)]
pub(crate) enum Connection {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

struct Parked {
    sender: http1::SendRequest<Outgoing>,
    since: Instant,
}

#[derive(Default)]
struct Kept {
    http1: HashMap<InstanceId, Vec<Parked>>,
    http2: HashMap<InstanceId, (http2::SendRequest<Outgoing>, Instant)>,
    pruned: Option<Instant>,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

impl Connection {
    /// One that was used before and is ready, if this thread has one.
    pub(crate) fn kept(instance: &InstanceId, protocol: Protocol) -> Option<Self> {
        KEPT.with_borrow_mut(|kept| match protocol {
            Protocol::Http1 => {
                let stack = kept.http1.get_mut(instance)?;
                while let Some(parked) = stack.pop() {
                    if parked.sender.is_ready() {
                        return Some(Self::Http1(parked.sender));
                    }
                }
                None
            }
            Protocol::H2c => {
                let (sender, used) = kept.http2.get_mut(instance)?;
                if sender.is_closed() {
                    kept.http2.remove(instance);
                    return None;
                }
                *used = Instant::now();
                Some(Self::Http2(sender.clone()))
            }
        })
    }

    pub(crate) async fn open(instances: &Instances, instance: &InstanceId, protocol: Protocol) -> Result<Self, Error> {
        let stream = (instances.connect)(instance)
            .map_err(Error::Connect)
            .map(connected)?
            .await
            .map_err(Error::Connect)?;
        let io = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::Builder::new().handshake(io).await.map_err(Error::Exchange)?;
                // Its owner is the sender: the task ends when that is dropped. What it ends with, the sender tells.
                tokio::spawn(async move { connection.await.ok() });
                Ok(Self::Http1(sender))
            }
            Protocol::H2c => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .handshake(io)
                    .await
                    .map_err(Error::Exchange)?;
                tokio::spawn(async move { connection.await.ok() });
                KEPT.with_borrow_mut(|kept| {
                    let entry = (sender.clone(), Instant::now());
                    kept.http2.insert(instance.clone(), entry);
                });
                Ok(Self::Http2(sender))
            }
        }
    }

    /// Keeps it for the next request, when it is fit for one. HTTP/2 is kept as long as it is open.
    pub(crate) fn park(self, instance: &InstanceId) {
        let Self::Http1(sender) = self else { return };
        if !sender.is_ready() {
            return;
        }
        let now = Instant::now();
        KEPT.with_borrow_mut(|kept| {
            if kept.pruned.is_none_or(|at| now - at > IDLE_LIMIT) {
                kept.prune(now);
            }
            let parked = Parked { sender, since: now };
            match kept.http1.get_mut(instance) {
                Some(stack) if stack.len() < KEPT_PER_INSTANCE => stack.push(parked),
                Some(_) => {}
                None => {
                    kept.http1.insert(instance.clone(), vec![parked]);
                }
            }
        });
    }
}

/// Gives up this thread's connections that are closed or idle for too long.
pub(crate) fn prune() {
    KEPT.with_borrow_mut(|kept| kept.prune(Instant::now()));
}

impl Kept {
    fn prune(&mut self, now: Instant) {
        self.pruned = Some(now);
        self.http1.retain(|_, stack| {
            stack.retain(|parked| parked.sender.is_ready() && now - parked.since < IDLE_LIMIT);
            !stack.is_empty()
        });
        // A request in flight has its own clone of the sender.
        self.http2
            .retain(|_, (sender, used)| !sender.is_closed() && now - *used < IDLE_LIMIT);
    }
}

/// Waits for the connect that was started on `socket`.
async fn connected(socket: OwnedFd) -> io::Result<TcpStream> {
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream)?;
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}
