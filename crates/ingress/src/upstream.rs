//! Connections to instances: opened through the engine's function, kept by each thread for itself.
//!
//! HTTP/1 connections lie on a stack per instance, the last used on top; one that was cut off in the middle is never
//! put back. An HTTP/2 connection (`h2c`) is shared by as many requests as the instance allows on one, at most
//! [`STREAMS`]; the next is opened when all are full, one at a time, so that a burst does not open one for each request.
//! A kept connection is given up after [`IDLE_LIMIT`], looked at when another one is put down and by [`prune`].

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use model::{InstanceId, Protocol};
use tokio::{net::TcpStream, sync::Semaphore};

use crate::{Instances, body::Outgoing};

/// Idle HTTP/1 connections that one thread keeps per instance: as many as an instance may have requests at a time, so
/// that a busy one is not connected to anew for requests beyond a smaller number (measured at 512 clients: with 64 kept,
/// ten times the CPU per request).
const KEPT_PER_INSTANCE: usize = 1000;

/// Most requests at a time on one HTTP/2 connection to an instance, when the instance allows so many (Cloud Run's own
/// limit for a client's connection).
const STREAMS: usize = 100;

/// What a stream may have on its way without being read, in bytes, and what all streams of a connection may: who does
/// not read holds up nobody else.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
pub(crate) const CONNECTION_WINDOW: u32 = 100 * STREAM_WINDOW;

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
    #[error("it answered {} in place of switching to WebSocket", .0.as_u16())]
    Declined(http::StatusCode),
}

/// A way to send one request to an instance.
#[derive(Debug)]
pub(crate) enum Connection {
    Http1(http1::SendRequest<Outgoing>),
    Http2(Stream),
}

/// The place of one request on a shared connection; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) sender: http2::SendRequest<Outgoing>,
    _place: Arc<AtomicUsize>,
}

struct Parked {
    sender: http1::SendRequest<Outgoing>,
    since: Instant,
}

/// An HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<Outgoing>,
    /// How many requests at a time the instance allows; each request on it holds one more reference.
    allowed: Arc<AtomicUsize>,
    used: Instant,
}

#[derive(Default)]
struct OfInstance {
    shared: Vec<Shared>,
    /// Alive while a connection is being opened.
    opening: Weak<Semaphore>,
}

#[derive(Default)]
struct Kept {
    http1: HashMap<InstanceId, Vec<Parked>>,
    http2: HashMap<InstanceId, OfInstance>,
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
            Protocol::H2c => kept.http2.get_mut(instance)?.place().map(Self::Http2),
        })
    }

    pub(crate) async fn open(instances: &Instances, instance: &InstanceId, protocol: Protocol) -> Result<Self, Error> {
        match protocol {
            Protocol::Http1 => {
                let io = connect(instances, instance).await?;
                let (sender, connection) = http1::Builder::new().handshake(io).await.map_err(Error::Exchange)?;
                // Its owner is the sender: the task ends when that is dropped. What it ends with, the sender tells.
                tokio::spawn(async move { connection.with_upgrades().await.ok() });
                Ok(Self::Http1(sender))
            }
            Protocol::H2c => Stream::open(instances, instance).await.map(Self::Http2),
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

impl Stream {
    /// A place on a connection that others opened meanwhile, or on a new one.
    async fn open(instances: &Instances, instance: &InstanceId) -> Result<Self, Error> {
        let opening = loop {
            let found = KEPT.with_borrow_mut(|kept| {
                let of = kept.http2.entry(instance.clone()).or_default();
                if let Some(stream) = of.place() {
                    return Ok(stream);
                }
                // A closed one is done, and only still held by others who waited for it.
                if let Some(other) = of.opening.upgrade().filter(|other| !other.is_closed()) {
                    return Err(Turn::Wait(other));
                }
                let ours = Opening(Arc::new(Semaphore::new(0)));
                of.opening = Arc::downgrade(&ours.0);
                Err(Turn::Open(ours))
            });
            match found {
                Ok(stream) => return Ok(stream),
                Err(Turn::Open(ours)) => break ours,
                Err(Turn::Wait(other)) => {
                    // Nothing is ever given out: it ends by being closed.
                    let _ = other.acquire().await;
                }
            }
        };
        let io = connect(instances, instance).await?;
        let (sender, mut connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(io)
            .await
            .map_err(Error::Exchange)?;
        let allowed = Arc::new(AtomicUsize::new(STREAMS));
        let told = Arc::downgrade(&allowed);
        // Its owners are the senders, as above.
        tokio::spawn(std::future::poll_fn(move |cx| {
            let polled = std::pin::Pin::new(&mut connection).poll(cx);
            if let (Poll::Pending, Some(allowed)) = (&polled, told.upgrade()) {
                allowed.store(
                    connection.current_max_send_streams().clamp(1, STREAMS),
                    Ordering::Relaxed,
                );
            }
            polled.map(drop)
        }));
        let stream = Self {
            sender: sender.clone(),
            _place: allowed.clone(),
        };
        KEPT.with_borrow_mut(|kept| {
            kept.http2.entry(instance.clone()).or_default().shared.push(Shared {
                sender,
                allowed,
                used: Instant::now(),
            });
        });
        drop(opening);
        Ok(stream)
    }
}

/// Whose turn it is to open a connection.
enum Turn {
    Open(Opening),
    Wait(Arc<Semaphore>),
}

/// A connection is being opened; those who wait are told when it is there, or when it failed.
struct Opening(Arc<Semaphore>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl OfInstance {
    /// A place on the first connection that has one.
    fn place(&mut self) -> Option<Stream> {
        self.shared.retain(|shared| !shared.sender.is_closed());
        let free = self.shared.iter_mut().find(|shared| shared.has_room())?;
        free.used = Instant::now();
        Some(Stream {
            sender: free.sender.clone(),
            _place: free.allowed.clone(),
        })
    }
}

impl Shared {
    fn in_flight(&self) -> usize {
        Arc::strong_count(&self.allowed) - 1
    }

    fn has_room(&self) -> bool {
        self.in_flight() < self.allowed.load(Ordering::Relaxed)
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
        self.http2.retain(|_, of| {
            of.shared.retain(|shared| {
                !shared.sender.is_closed() && (shared.in_flight() > 0 || now - shared.used < IDLE_LIMIT)
            });
            !of.shared.is_empty() || of.opening.strong_count() > 0
        });
    }
}

async fn connect(instances: &Instances, instance: &InstanceId) -> Result<TokioIo<TcpStream>, Error> {
    let stream = (instances.connect)(instance)
        .map_err(Error::Connect)
        .map(connected)?
        .await
        .map_err(Error::Connect)?;
    Ok(TokioIo::new(stream))
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
