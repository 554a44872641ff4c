//! The life of a connection to the door: accepted, read as HTTP/1.1, perhaps turned into a tunnel with TLS and read
//! again as HTTP/1.1 or HTTP/2, and closed when it is idle, half-open or drained.
//!
//! One task per connection from accept to close; the tunnel runs in the task that took the `CONNECT`. HTTP/2 streams
//! are tasks that belong to their connection and end with it.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authority::{Authority, Clock};
use crate::pulse::{Beat, Exchange, Held, Pulse};
use crate::target::{self, Refusal, ServicePorts, Side, SideOf, Tunnel, Way};

/// Any error of a body in flight.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer; streamed, never collected.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// An answer in the making.
pub type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
/// Who answers requests: the API or the ingress. The request's URI is in origin form (`/path?query`) and it has exactly
/// one `Host` line, whatever the HTTP version; its body is the connection's and is read as it is awaited.
pub type Answer = Arc<dyn Fn(Arrival, Request<Incoming>) -> Answering + Send + Sync>;

/// What goes on on an HTTP/1 connection after an answer that switched protocols: an answer carries it in its extensions,
/// and the door runs it, to its end or its own, when the head is on the wire.
#[derive(Clone)]
pub struct Onward(Arc<Mutex<Option<Going>>>);

type Going = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Onward {
    pub fn new(going: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(going)))))
    }

    async fn run(self) {
        let going = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(going) = going {
            going.await;
        }
    }
}

impl fmt::Debug for Onward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Onward").finish_non_exhaustive()
    }
}

/// How a request arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The client's own address; of a tunnel, that of the one who opened it.
    pub peer: SocketAddr,
    /// Whether it came through TLS.
    pub secure: bool,
    /// The host it is for, in lower case, without port and final dot. Empty if an HTTP/1.0 client named none.
    pub host: String,
}

/// How long and how much a client may ask of the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the acceptance of a tunnel to the end of its TLS handshake.
    pub handshake: Duration,
    /// From the start of a connection or tunnel to its first complete request head.
    pub header: Duration,
    /// Between two requests of a connection: from the end of one answer to the next complete head.
    pub idle: Duration,
    /// From the shutdown signal to the moment when what still runs is cut.
    pub drain: Duration,
    /// Connections at once; further ones wait in the listener's backlog.
    pub connections: usize,
    /// HTTP/2 streams at once on one connection.
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(30),
            idle: Duration::from_secs(90),
            drain: Duration::from_secs(10),
            connections: 4096,
            streams: 256,
        }
    }
}

/// Everything the door decides by.
pub struct Door {
    pub authority: Arc<Authority>,
    pub clock: Clock,
    /// Whose a host is. Also decides for which hosts there is a certificate.
    pub side: SideOf,
    pub api: Answer,
    pub ingress: Answer,
    pub service_ports: ServicePorts,
    pub limits: Limits,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("authority", &self.authority)
            .field("service_ports", &self.service_ports)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still at work at the deadline and were cut.
    pub cut: usize,
}

/// After the farewell on an idle connection the client has this long to take it.
const FAREWELL: Duration = Duration::from_secs(1);
/// When the machine is out of file descriptors, the next attempt to accept comes after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Request heads beyond this are refused by the HTTP layer (431, or a stream error in HTTP/2).
const HEAD_BYTES: u32 = 64 * 1024;
/// Windows that let an image layer of gigabytes flow without a round trip per 64 KiB.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Serves `listener` until `shutdown` completes, then drains: no new connection, no new request, and what is in flight
/// has [`Limits::drain`] to end.
pub async fn serve(listener: TcpListener, door: Arc<Door>, shutdown: impl Future<Output = ()>) -> Drained {
    let port = listener.local_addr().map_or(0, |address| address.port());
    let tls = door
        .authority
        .server_config(Arc::clone(&door.side), door.clock, &[b"h2".as_slice(), b"http/1.1"]);
    let seats = Arc::new(Semaphore::new(door.limits.connections));
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = shutdown.as_mut() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => note_end(ended),
            (socket, peer, seat) = accept(&listener, &seats) => {
                let client = Client {
                    door: Arc::clone(&door),
                    tls: Arc::clone(&tls),
                    peer,
                    port,
                    stopping: stopping.clone(),
                };
                connections.spawn(async move {
                    client.attend(socket).await;
                    drop(seat);
                });
            }
        }
    }
    drop(listener);
    drop(stop);
    let drained = timeout(door.limits.drain, async {
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    });
    let cut = match drained.await {
        Ok(()) => 0,
        Err(_) => connections.len(),
    };
    connections.shutdown().await;
    Drained { cut }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "connection ended in a panic");
    }
}

async fn accept(listener: &TcpListener, seats: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let seat = Arc::clone(seats)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => return (socket, peer, seat),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, and what its requests need.
#[derive(Clone)]
struct Client {
    door: Arc<Door>,
    tls: Arc<ServerConfig>,
    peer: SocketAddr,
    /// The door's own port.
    port: u16,
    /// Closes when the door does.
    stopping: watch::Receiver<()>,
}

/// A tunnel that was let in and becomes one when the answer to its `CONNECT` is on the wire.
type Opened = Arc<Mutex<Option<(Tunnel, OnUpgrade)>>>;

/// What a tunnel holds once it is open.
enum Inner {
    Plain(TokioIo<Upgraded>),
    Tls(Box<TlsStream<TokioIo<Upgraded>>>),
}

impl Client {
    async fn attend(self, socket: TcpStream) {
        // the answers are small and awaited: do not hold them back to fill a segment
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(peer = %self.peer, %error, "cannot set TCP_NODELAY");
        }
        let opened = Opened::default();
        let pulse = Pulse::new(Instant::now());
        let service = service_fn(|request| self.open(request, &pulse, &opened));
        let connection = http1_builder()
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        let stopping = self.stopping.clone();
        let limits = &self.door.limits;
        watch_over(
            connection,
            http1::UpgradeableConnection::graceful_shutdown,
            &pulse,
            limits,
            stopping,
        )
        .await;
        let tunnel = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((tunnel, upgrade)) = tunnel {
            Box::pin(self.tunnel(tunnel, upgrade)).await;
        }
    }

    /// A request on the open port.
    async fn open(
        &self,
        mut request: Request<Incoming>,
        pulse: &Arc<Pulse>,
        opened: &Opened,
    ) -> Result<Response<Held>, Infallible> {
        let exchange = pulse.begin();
        if request.method() != Method::CONNECT {
            let way = Way::Open { port: self.port };
            return Ok(self.answer(request, way, false, exchange).await);
        }
        let side = |host: &str| (self.door.side)(host);
        let verdict = target::tunnel(request.uri().authority(), side, &self.door.service_ports);
        Ok(match verdict {
            Ok(tunnel) => {
                let upgrade = hyper::upgrade::on(&mut request);
                *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some((tunnel, upgrade));
                held(Response::new(empty()), exchange)
            }
            Err(refusal) => {
                tracing::debug!(peer = %self.peer, %refusal, "tunnel refused");
                held(refused(&refusal), exchange)
            }
        })
    }

    async fn tunnel(self, tunnel: Tunnel, upgrade: OnUpgrade) {
        let client = self.clone();
        let opening = timeout(self.door.limits.handshake, async move {
            let socket = TokioIo::new(upgrade.await?);
            Ok::<_, BoxError>(match tunnel {
                Tunnel::Plain => Inner::Plain(socket),
                Tunnel::Tls => {
                    let acceptor = TlsAcceptor::from(client.tls);
                    Inner::Tls(Box::new(acceptor.accept(socket).await?))
                }
            })
        });
        let mut stopping = self.stopping.clone();
        let opened = tokio::select! {
            biased;
            opened = opening => opened,
            _ = stopping.changed() => return,
        };
        match opened {
            Err(_) => tracing::debug!(peer = %self.peer, "tunnel without a handshake dropped"),
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "handshake failed"),
            Ok(Ok(Inner::Plain(socket))) => self.http1(socket, false).await,
            Ok(Ok(Inner::Tls(socket))) if socket.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.http2(socket).await;
            }
            Ok(Ok(Inner::Tls(socket))) => self.http1(socket, true).await,
        }
    }

    async fn http1(self, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, secure: bool) {
        let pulse = Pulse::new(Instant::now());
        let onward = Mutex::new(None);
        let service = service_fn(|request| {
            let answered = self.inside(request, secure, pulse.begin());
            async {
                let mut answer = answered.await;
                if let Ok(response) = &mut answer
                    && let Some(further) = response.extensions_mut().remove::<Onward>()
                {
                    *onward.lock().unwrap_or_else(PoisonError::into_inner) = Some(further);
                }
                answer
            }
        });
        let connection = http1_builder()
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        let stopping = self.stopping.clone();
        let limits = &self.door.limits;
        watch_over(
            connection,
            http1::UpgradeableConnection::graceful_shutdown,
            &pulse,
            limits,
            stopping,
        )
        .await;
        let further = onward.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(further) = further {
            further.run().await;
        }
    }

    async fn http2(self, socket: impl AsyncRead + AsyncWrite + Unpin + Send) {
        let pulse = Pulse::new(Instant::now());
        let streams = Streams::default();
        let service = service_fn(|request| {
            let (client, exchange) = (self.clone(), pulse.begin());
            async move { client.inside(request, true, exchange).await }
        });
        let connection = http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.door.limits.streams)
            .max_header_list_size(HEAD_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(TokioIo::new(socket), service);
        let stopping = self.stopping.clone();
        let limits = &self.door.limits;
        watch_over(
            connection,
            http2::Connection::graceful_shutdown,
            &pulse,
            limits,
            stopping,
        )
        .await;
    }

    /// A request inside a tunnel.
    async fn inside(
        &self,
        request: Request<Incoming>,
        secure: bool,
        exchange: Exchange,
    ) -> Result<Response<Held>, Infallible> {
        if request.method() == Method::CONNECT {
            let target = request.uri().to_string();
            return Ok(held(refused(&Refusal::Nested { target }), exchange));
        }
        Ok(self.answer(request, Way::Tunnel, secure, exchange).await)
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        way: Way,
        secure: bool,
        exchange: Exchange,
    ) -> Response<Held> {
        let door = &self.door;
        let side = |host: &str| (door.side)(host);
        let (side, host) = match target::dispatch(&request, way, side, &door.service_ports) {
            Ok(verdict) => verdict,
            Err(refusal) => {
                tracing::debug!(peer = %self.peer, %refusal, "request refused");
                return held(refused(&refusal), exchange);
            }
        };
        into_origin_form(&mut request);
        let arrival = Arrival {
            peer: self.peer,
            secure,
            host,
        };
        let answer = match side {
            Side::Api => &door.api,
            Side::Ingress => &door.ingress,
        };
        held(answer(arrival, request).await, exchange)
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // the limits on heads and idleness are kept by `watch_over`, for both versions alike
    builder.header_read_timeout(None).max_header_size(HEAD_BYTES as usize);
    builder
}

/// Drives `connection` to its end, and ends it when its client is too slow, when it has been idle too long, or when the
/// door closes. Dropping it ends all it was doing.
async fn watch_over<C>(
    connection: C,
    say_farewell: impl Fn(Pin<&mut C>),
    pulse: &Pulse,
    limits: &Limits,
    mut stopping: watch::Receiver<()>,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    let mut farewell: Option<Instant> = None;
    loop {
        let deadline = match (pulse.beat(), farewell) {
            // looked at again by then: an idle time that began meanwhile ends later
            (Beat::Busy, None) => Instant::now() + limits.idle,
            (Beat::Busy, Some(_)) => Instant::now() + FAREWELL,
            (Beat::Fresh { since }, None) => since + limits.header,
            (Beat::Idle { since }, None) => since + limits.idle,
            (Beat::Fresh { .. }, Some(said)) => said + FAREWELL,
            (Beat::Idle { since }, Some(said)) => since.max(said) + FAREWELL,
        };
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection failed");
                }
                return;
            }
            _ = stopping.changed(), if farewell.is_none() => {
                say_farewell(connection.as_mut());
                farewell = Some(Instant::now());
            }
            () = sleep_until(deadline) => match (pulse.beat(), farewell) {
                (Beat::Busy, _) => {}
                (Beat::Idle { since }, None) => {
                    if since + limits.idle <= deadline {
                        say_farewell(connection.as_mut());
                        farewell = Some(Instant::now());
                    }
                }
                (Beat::Idle { since }, Some(_)) => {
                    if since + FAREWELL <= deadline {
                        return;
                    }
                }
                (Beat::Fresh { .. }, _) => {
                    tracing::debug!("connection without a request dropped");
                    return;
                }
            }
        }
    }
}

/// The tasks of one HTTP/2 connection's streams; they end when the connection does.
#[derive(Clone, Default)]
struct Streams(Arc<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = streams.try_join_next() {
            note_end(ended);
        }
        streams.spawn(stream);
    }
}

/// Hop-by-hop lines that a client speaks to its proxy, which here is the end.
const PROXY_LINES: [HeaderName; 2] = [
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
];

/// Whatever the version and form of the request: the URI becomes path and query, and the authority it had becomes the
/// `Host` line (RFC 9112 3.2.2).
fn into_origin_form<B>(request: &mut Request<B>) {
    for line in PROXY_LINES {
        request.headers_mut().remove(line);
    }
    let Some(authority) = request.uri().authority() else {
        return;
    };
    let host = HeaderValue::from_str(authority.as_str()).expect("an authority is visible ASCII");
    let path = request.uri().path_and_query().cloned();
    request.headers_mut().insert(HOST, host);
    *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
}

fn held(response: Response<Body>, exchange: Exchange) -> Response<Held> {
    response.map(|body| Held::new(body, exchange))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let body = Full::from(refusal.body().to_string());
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = refusal.status();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
