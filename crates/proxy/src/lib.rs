//! A door on loopback to one private service: what comes in is passed on with an ID token, so that a browser or a `curl`
//! that knows nothing of tokens reaches it (`run services proxy`, and the `cloud-run-proxy` that Google's gcloud starts).
//!
//! What enters is a listener, the service's URL with the address where it is reached, and a first token with a function
//! that gets the next one; what leaves is why it ended. Bodies stream both ways and are never collected, upgrades
//! (WebSocket) become tunnels. It talks to one server on this machine and to no other, decides nothing about who may call,
//! and knows neither the API nor where tokens come from.
//!
//! Whoever reaches the listener calls the service in the token's name. So it must be on loopback, and a request that names
//! a host which is not loopback's is refused: a page of the web that has its own name resolve to 127.0.0.1 would send such
//! ones.

mod forward;
mod reach;
mod target;
mod token;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::forward::{Forward, Opened};
pub use crate::reach::AuthorityError;
pub use crate::target::{Target, TargetError};
pub use crate::token::Renew;
use crate::token::Renewal;

/// From the end that was asked for to the moment when what still runs is cut.
const DRAIN: Duration = Duration::from_secs(15);
/// A client has this long for the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// When the process is out of file descriptors, the next attempt to accept comes after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Everything that a proxy goes by.
#[derive(Debug)]
pub struct Proxy {
    /// On loopback.
    pub listener: TcpListener,
    pub target: Target,
    /// File with the certificates, in PEM, that may vouch for an https target.
    pub authority: PathBuf,
    /// The field that the token goes into; what a client sends in it is replaced.
    pub header: HeaderName,
    /// Put before what the client says of itself.
    pub user_agent: Option<HeaderValue>,
    /// Whether requests are passed on by HTTP/2, and also taken by it (without TLS, by prior knowledge).
    pub http2: bool,
    /// The ID token of the first requests.
    pub token: String,
    /// Ends by itself after so long.
    pub up_time: Option<Duration>,
}

/// Why a proxy ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was interrupted or terminated.
    Told,
    /// Its time was over.
    InTime,
}

/// Why a proxy did not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is no loopback address: whoever reaches it would call the service in your name")]
    NotLoopback(SocketAddr),
    #[error("cannot listen")]
    Listen(#[source] std::io::Error),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the token is no value of a header")]
    Token,
    #[error("cannot take signals")]
    Signals(#[source] std::io::Error),
}

/// Passes requests on until the process is interrupted or terminated, or its time is over; then what is in flight has 15 s
/// to end, or until it is told again. Tunnels end at once. `told` is called when the end begins.
///
/// `renew` gets the next token, minutes before the one in use ends; it may block, and is called on this future's own
/// thread, which is therefore to be driven by `block_on` and not spawned. `clock` gives Unix seconds.
///
/// # Errors
/// As [`Error`] says, before the first request.
pub async fn run(
    proxy: Proxy,
    mut renew: Option<&mut Renew<'_>>,
    clock: fn() -> u64,
    told: impl FnOnce(Ended),
) -> Result<Ended, Error> {
    let address = proxy.listener.local_addr().map_err(Error::Listen)?;
    if !address.ip().is_loopback() {
        return Err(Error::NotLoopback(address));
    }
    let listener = proxy
        .listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(proxy.listener))
        .map_err(Error::Listen)?;
    let mut told_by = Told::new()?;
    let first = token::bearer(&proxy.token).ok_or(Error::Token)?;
    let (tell, token) = watch::channel(Ok(first));
    let forward = Arc::new(Forward::new(
        proxy.target,
        address,
        &proxy.authority,
        proxy.header,
        proxy.user_agent,
        proxy.http2,
        token,
    )?);
    let (stop, stopping) = watch::channel(());
    let http2 = proxy.http2;
    let mut serving = tokio::spawn(accept(listener, forward, http2, stopping));
    let mut over = pin!(async {
        match proxy.up_time {
            Some(time) => sleep(time).await,
            None => std::future::pending().await,
        }
    });
    let mut renewal = Renewal::of(&proxy.token, renew.is_some());
    let ended = loop {
        tokio::select! {
            biased;
            () = told_by.again() => break Ended::Told,
            () = over.as_mut() => break Ended::InTime,
            () = sleep(token::TICK) => {
                if let Some(renew) = renew.as_deref_mut() {
                    renewal.turn(renew, clock(), &tell);
                }
            }
        }
    };
    told(ended);
    drop(stop);
    tokio::select! {
        _ = timeout(DRAIN, &mut serving) => {}
        () = told_by.again() => {}
    }
    serving.abort();
    Ok(ended)
}

/// SIGINT and SIGTERM.
struct Told {
    interrupt: Signal,
    terminate: Signal,
}

impl Told {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(Error::Signals)?,
            terminate: signal(SignalKind::terminate()).map_err(Error::Signals)?,
        })
    }

    async fn again(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Takes connections until `stopping` closes, then lets what is in flight end. Dropped, it cuts them all.
async fn accept(
    listener: tokio::net::TcpListener,
    forward: Arc<Forward>,
    http2: bool,
    mut stopping: watch::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stopping.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(attend(socket, forward.clone(), http2, stopping.clone()));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection from its first byte to the end of what it became.
async fn attend(socket: TcpStream, forward: Arc<Forward>, http2: bool, mut stopping: watch::Receiver<()>) {
    // answers may be small and awaited; where it cannot be set they are slower
    let _ = socket.set_nodelay(true);
    let opened: Opened = Arc::default();
    let keep = opened.clone();
    let service = service_fn(move |request| {
        let (forward, keep) = (forward.clone(), keep.clone());
        async move { Ok::<_, Infallible>(forward.answer(request, &keep).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    if !http2 {
        builder = builder.http1_only();
    }
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(socket), service));
    // how a connection ended is its client's matter
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    let tunnel = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(tunnel) = tunnel {
        tokio::select! {
            () = tunnel.run() => {}
            _ = stopping.changed() => {}
        }
    }
}
