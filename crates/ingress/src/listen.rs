//! The listeners: ports, threads, connections.
//!
//! One thread per core, each with its own single-threaded runtime and its own socket on each port (`SO_REUSEPORT`),
//! so that the kernel spreads connections and no request crosses threads. Before that the port is bound exclusively: a
//! port that another process holds is refused, never shared.
//!
//! Connections of instances come by no port: they are brought ([`Bringing`]), are as good as any other, and count apart, so
//! that instances cannot keep those away who come from outside.

use std::{
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use model::Scheme;

use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Ingress,
    connection::{self, Orders},
    upstream,
};

/// How often each thread gives up upstream connections that nobody used.
const PRUNE_EVERY: Duration = Duration::from_secs(30);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BACKLOG: i32 = 4096;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Brought connections that may wait for one thread.
const BROUGHT: usize = 64;
/// Which part of all connections brought ones may be.
const BROUGHT_PART: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {addr}")]
    Bind {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot start a thread for requests")]
    Thread(#[source] io::Error),
}

/// What to listen on. TLS offers HTTP/2 and HTTP/1.1, whatever the configuration's ALPN says.
#[derive(Debug)]
pub struct Ports {
    pub http: Option<SocketAddr>,
    pub https: Option<(SocketAddr, Arc<ServerConfig>)>,
}

/// What one client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a connection may be without a request in progress, from its start or from the end of the last one.
    /// A silent client is cut off after this at the earliest, after twice this at the latest.
    pub quiet: Duration,
    pub handshake: Duration,
    /// Open connections of all threads; more wait in the kernel's queue until one closes.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            connections: 8192,
        }
    }
}

/// Open ports and the threads that serve them. Dropped without [`Listening::drain`], it breaks off what is under way.
#[derive(Debug)]
pub struct Listening {
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    workers: Vec<Worker>,
    stop: watch::Sender<Option<Instant>>,
    pause: watch::Sender<bool>,
    bringing: Bringing,
}

/// A connection that came by none of the ports.
#[derive(Debug)]
struct Brought {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    scheme: Scheme,
    /// Held until it ends.
    place: OwnedSemaphorePermit,
}

/// Where connections are brought that came by none of the ports.
#[derive(Debug, Clone)]
pub struct Bringing {
    threads: Arc<[mpsc::Sender<Brought>]>,
    next: Arc<AtomicUsize>,
}

impl Bringing {
    /// Serves a non-blocking connection like one that was accepted on the port of this scheme, and holds `place` until it
    /// ends. Closes it when there are too many such, or the ingress takes none any more. Does not block.
    pub fn bring(&self, stream: std::net::TcpStream, scheme: Scheme, place: OwnedSemaphorePermit) {
        let Ok(peer) = stream.peer_addr() else {
            return;
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let brought = Brought {
            stream,
            peer,
            scheme,
            place,
        };
        if self.threads[number].try_send(brought).is_err() {
            tracing::debug!(%peer, "a connection that was brought is not taken");
        }
    }
}

#[derive(Debug)]
struct Worker {
    thread: JoinHandle<()>,
    /// Connections that were cut off at the deadline.
    cut_off: oneshot::Receiver<usize>,
}

/// Ports that are open, with a socket of each for every thread. Clients connect, and wait until they are served.
#[derive(Debug, Default)]
pub struct Open {
    pub http: Vec<std::net::TcpListener>,
    pub https: Vec<std::net::TcpListener>,
}

impl Open {
    /// Opens the ports for `threads` threads.
    ///
    /// # Errors
    /// When an address cannot be bound, which includes that another process holds the port.
    pub fn bind(http: Option<SocketAddr>, https: Option<SocketAddr>, threads: NonZeroUsize) -> Result<Self, Error> {
        let of = |addr: Option<SocketAddr>| addr.map_or_else(|| Ok(Vec::new()), |addr| bind(addr, threads));
        Ok(Self {
            http: of(http)?,
            https: of(https)?,
        })
    }

    /// The same sockets once more: whoever has them takes connections, and no client is refused while one has them.
    ///
    /// # Errors
    /// When there are no more open files to be had.
    pub fn share(&self) -> io::Result<Self> {
        let share = |of: &[std::net::TcpListener]| {
            of.iter()
                .map(std::net::TcpListener::try_clone)
                .collect::<io::Result<_>>()
        };
        Ok(Self {
            http: share(&self.http)?,
            https: share(&self.https)?,
        })
    }

    /// The real address, also when port 0 was asked for.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http.first()?.local_addr().ok()
    }

    pub fn https(&self) -> Option<SocketAddr> {
        self.https.first()?.local_addr().ok()
    }

    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.http.len().max(self.https.len())).unwrap_or(NonZeroUsize::MIN)
    }
}

/// Opens the ports and serves them with `threads` threads.
///
/// # Errors
/// As [`Open::bind`] and [`serve`].
pub fn open(ingress: &Arc<Ingress>, ports: Ports, limits: Limits, threads: NonZeroUsize) -> Result<Listening, Error> {
    let (https, tls) = ports.https.unzip();
    serve(ingress, Open::bind(ports.http, https, threads)?, tls.as_ref(), limits)
}

/// Serves open ports, with a thread for each socket. `tls` must be there for https.
///
/// # Errors
/// When a thread cannot be started.
pub fn serve(
    ingress: &Arc<Ingress>,
    open: Open,
    tls: Option<&Arc<ServerConfig>>,
    limits: Limits,
) -> Result<Listening, Error> {
    let threads = open.threads();
    let (http, https) = (open.http(), open.https());
    let (stop, stopping) = watch::channel(None);
    let (pause, paused) = watch::channel(false);
    let mut sockets: Vec<Sockets> = (0..threads.get()).map(|_| Sockets::default()).collect();
    for (of, socket) in sockets.iter_mut().zip(open.http) {
        of.http = Some(socket);
    }
    if let Some(tls) = tls {
        let mut config = ServerConfig::clone(tls);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        for (of, socket) in sockets.iter_mut().zip(open.https) {
            of.https = Some((socket, acceptor.clone()));
        }
    }
    let mut workers = Vec::new();
    let mut bringing = Vec::new();
    for (number, sockets) in sockets.into_iter().enumerate() {
        let (report, cut_off) = oneshot::channel();
        let most = (limits.connections / threads).max(1);
        let (bring, brought) = mpsc::channel(BROUGHT);
        bringing.push(bring);
        let worker = Work {
            ingress: ingress.clone(),
            orders: Orders {
                stop: stopping.clone(),
                pause: paused.clone(),
            },
            limits,
            room: Arc::new(Semaphore::new(most)),
            room_of_brought: Arc::new(Semaphore::new((most / BROUGHT_PART).max(1))),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let thread = std::thread::Builder::new()
            .name(format!("ingress-{number}"))
            .spawn(move || {
                let cut_off = runtime.block_on(worker.run(sockets, brought));
                // Nobody asks when the whole was dropped.
                let _ = report.send(cut_off);
            })
            .map_err(Error::Thread)?;
        workers.push(Worker { thread, cut_off });
    }
    Ok(Listening {
        http,
        https,
        workers,
        stop,
        pause,
        bringing: Bringing {
            threads: bringing.into(),
            next: Arc::default(),
        },
    })
}

impl Listening {
    /// The real address, also when port 0 was asked for.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    pub fn https(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Where connections of instances are brought.
    pub fn bringing(&self) -> Bringing {
        self.bringing.clone()
    }

    /// Takes no new connection; clients wait in the kernel's queue for whoever has the same sockets. Connections go on.
    pub fn pause(&self) {
        self.pause.send_replace(true);
    }

    /// Takes no new connection and waits until those there are have ended, which they do after their next answer or when
    /// they are quiet for too long; cuts off what is left after `limit`. No client loses a request. Answers how many
    /// connections were cut off.
    pub async fn outlast(self, limit: Duration) -> usize {
        self.pause();
        let deadline = Instant::now() + limit;
        while self.workers.iter().any(|worker| !worker.thread.is_finished()) && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.drain(Duration::ZERO).await
    }

    /// Takes no new connection, lets requests under way end, and cuts off what is left after `limit`. Answers how many
    /// connections were cut off.
    pub async fn drain(mut self, limit: Duration) -> usize {
        self.stop.send_replace(Some(Instant::now() + limit));
        let mut cut_off = 0;
        for worker in self.workers.drain(..) {
            // A worker that panicked has nothing left to cut off.
            cut_off += worker.cut_off.await.unwrap_or(0);
            // It is past its last statement.
            let _ = worker.thread.join();
        }
        cut_off
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.send_replace(Some(Instant::now()));
        for worker in self.workers.drain(..) {
            let _ = worker.thread.join();
        }
    }
}

/// So many sockets on one address. The first is bound alone, which fails when anyone else has the port.
fn bind(addr: SocketAddr, threads: NonZeroUsize) -> Result<Vec<std::net::TcpListener>, Error> {
    let failed = |source| Error::Bind { addr, source };
    let socket = || {
        let socket = Socket::new(
            Domain::for_address(addr),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        Ok(socket)
    };
    let first = socket().map_err(failed)?;
    first.bind(&addr.into()).map_err(failed)?;
    let real = first
        .local_addr()
        .map_err(failed)?
        .as_socket()
        .expect("bound to an address");
    // Two that are bound and do not listen yet could both get here; the one that listens second fails.
    first.listen(BACKLOG).map_err(failed)?;
    first.set_reuse_port(true).map_err(failed)?;
    let mut bound = vec![first.into()];
    for _ in 1..threads.get() {
        let next = socket().map_err(failed)?;
        next.set_reuse_port(true).map_err(failed)?;
        next.bind(&real.into()).map_err(failed)?;
        next.listen(BACKLOG).map_err(failed)?;
        bound.push(next.into());
    }
    Ok(bound)
}

#[derive(Default)]
struct Sockets {
    http: Option<std::net::TcpListener>,
    https: Option<(std::net::TcpListener, TlsAcceptor)>,
}

/// What one thread works with.
struct Work {
    ingress: Arc<Ingress>,
    orders: Orders,
    limits: Limits,
    room: Arc<Semaphore>,
    room_of_brought: Arc<Semaphore>,
}

impl Work {
    /// Serves until told to stop. Answers how many connections were cut off.
    async fn run(self, sockets: Sockets, mut brought: mpsc::Receiver<Brought>) -> usize {
        let adopt = |socket| TcpListener::from_std(socket).expect("a non-blocking listener");
        let http = sockets.http.map(adopt);
        let (https, acceptor) = match sockets.https {
            Some((socket, acceptor)) => (Some(adopt(socket)), Some(acceptor)),
            None => (None, None),
        };
        let mut connections = JoinSet::new();
        let mut pruning = tokio::time::interval(PRUNE_EVERY);
        let Orders { mut stop, mut pause } = self.orders.clone();
        let mut paused = false;
        let mut room = None;
        let deadline = loop {
            if paused && connections.is_empty() {
                break Instant::now();
            }
            let (accepted, acceptor) = tokio::select! {
                _ = stop.changed() => {
                    // The sender says when before it goes.
                    break (*stop.borrow()).unwrap_or_else(Instant::now);
                }
                Some(_) = connections.join_next() => continue,
                _ = pruning.tick() => {
                    upstream::prune();
                    continue;
                }
                permit = self.room.clone().acquire_owned(), if room.is_none() => {
                    room = Some(permit.expect("it is never closed"));
                    continue;
                }
                _ = pause.changed(), if !paused => {
                    paused = true;
                    continue;
                }
                Some(brought) = brought.recv() => {
                    self.take(brought, acceptor.as_ref(), &mut connections);
                    continue;
                }
                accepted = accept(http.as_ref()), if room.is_some() && !paused => (accepted, None),
                accepted = accept(https.as_ref()), if room.is_some() && !paused => {
                    (accepted, acceptor.clone())
                }
            };
            let permit = room.take();
            let ingress = self.ingress.clone();
            let (orders, limits) = (self.orders.clone(), self.limits);
            connections.spawn(async move {
                let (stream, peer) = accepted;
                connection::serve(ingress, stream, peer.ip(), acceptor, limits, orders).await;
                drop(permit);
            });
        };
        drop((http, https, brought));
        let ended = async { while connections.join_next().await.is_some() {} };
        // Either way `connections` holds what is left.
        let _ = tokio::time::timeout_at(deadline, ended).await;
        let cut_off = connections.len();
        connections.shutdown().await;
        cut_off
    }
}

impl Work {
    /// Serves a connection that was brought, unless there are too many of them.
    fn take(&self, brought: Brought, acceptor: Option<&TlsAcceptor>, connections: &mut JoinSet<()>) {
        let Brought {
            stream,
            peer,
            scheme,
            place,
        } = brought;
        let acceptor = match (scheme, acceptor) {
            (Scheme::Http, _) => None,
            (Scheme::Https, Some(acceptor)) => Some(acceptor.clone()),
            (Scheme::Https, None) => return,
        };
        let (Ok(room), Ok(stream)) = (
            self.room_of_brought.clone().try_acquire_owned(),
            TcpStream::from_std(stream),
        ) else {
            return;
        };
        let ingress = self.ingress.clone();
        let (orders, limits) = (self.orders.clone(), self.limits);
        connections.spawn(async move {
            connection::serve(ingress, stream, peer.ip(), acceptor, limits, orders).await;
            drop((room, place));
        });
    }
}

/// The next connection. Pends for ever without a listener.
async fn accept(listener: Option<&TcpListener>) -> (TcpStream, SocketAddr) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Out of file descriptors, mostly: waiting lets some be given back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
