//! One client connection: which protocol it speaks, its requests, its end.
//!
//! A connection that a request upgraded goes on as that request's tunnel. A connection without a request in progress for
//! [`Limits::quiet`] is closed: a client that opens it and says nothing, or half a head, or falls silent between
//! requests, holds nothing for long.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderValue, Request, StatusCode, header::CONNECTION};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use model::Scheme;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    Arrival, Ingress, Tunnel,
    listen::Limits,
    parting::{Parting, Sending},
    upstream::{CONNECTION_WINDOW, STREAM_WINDOW},
};

/// Requests at a time on one HTTP/2 connection (Cloud Run quotas).
const HTTP2_STREAMS: u32 = 100;
/// For a quiet client to take note that its connection ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// How quiet a connection may be that is to end with its next answer.
const LEAVING: Duration = Duration::from_secs(3);
/// With which an HTTP/2 client that knows the server begins (RFC 9113, 3.4); no HTTP/1 request does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// What an HTTP/1 connection becomes when it is upgraded.
type Onward = Arc<Mutex<Option<Tunnel>>>;

/// What all connections are told.
#[derive(Debug, Clone)]
pub(crate) struct Orders {
    /// When what is under way is cut off.
    pub(crate) stop: watch::Receiver<Option<Instant>>,
    /// True: somebody else takes new connections, and this one ends as [`Goodbye`] says.
    pub(crate) pause: watch::Receiver<bool>,
}

/// How a connection is brought to its end so that no request is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    /// HTTP/2 says which requests it still takes (RFC 9113, 6.8).
    AtOnce,
    /// HTTP/1 says it in an answer (RFC 9112, 9.6). Where none comes the connection is closed like a quiet one.
    WithTheNextAnswer,
}

/// Serves `stream` until it ends, encrypted when there is an acceptor. After a stop it takes no further request.
pub(crate) async fn serve(
    ingress: Arc<Ingress>,
    stream: TcpStream,
    ip: IpAddr,
    acceptor: Option<TlsAcceptor>,
    limits: Limits,
    orders: Orders,
) {
    // A peer that is gone already is seen at the first read.
    let _ = stream.set_nodelay(true);
    let mut stopping = orders.stop.clone();
    let sending = Sending::default();
    let begun = tokio::select! {
        begun = begin(stream, &sending, acceptor, limits) => begun,
        // Nothing was asked yet.
        _ = stopping.changed() => None,
    };
    match begun {
        None => {}
        Some(Begun::Plain(stream, is_http2)) => {
            let arrival = Arrival::new(ip, Scheme::Http);
            converse(ingress, stream, sending, is_http2, arrival, limits, orders).await;
        }
        Some(Begun::Encrypted(stream)) => {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let arrival = Arrival::new(ip, Scheme::Https);
            converse(ingress, *stream, sending, is_http2, arrival, limits, orders).await;
        }
    }
}

enum Begun {
    Plain(Parting, bool),
    Encrypted(Box<TlsStream<Parting>>),
}

/// The protocol's first words. None: they did not come in time, or made no sense.
async fn begin(stream: TcpStream, sending: &Sending, acceptor: Option<TlsAcceptor>, limits: Limits) -> Option<Begun> {
    match acceptor {
        None => {
            let looked = tokio::time::timeout(limits.quiet, begins_as_http2(&stream));
            let is_http2 = looked.await.ok()?.ok()?;
            Some(Begun::Plain(Parting::new(stream, sending.clone()), is_http2))
        }
        Some(acceptor) => {
            let accepted =
                tokio::time::timeout(limits.handshake, acceptor.accept(Parting::new(stream, sending.clone())));
            Some(Begun::Encrypted(Box::new(accepted.await.ok()?.ok()?)))
        }
    }
}

async fn converse(
    ingress: Arc<Ingress>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    sending: Sending,
    is_http2: bool,
    arrival: Arrival,
    limits: Limits,
    orders: Orders,
) {
    let io = TokioIo::new(stream);
    let answering = arrival.clone();
    let onward = Onward::default();
    let taken = onward.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (ingress, arrival, taken) = (ingress.clone(), answering.clone(), taken.clone());
        sending.set(!request.body().is_end_stream());
        async move {
            let mut response = ingress.serve(&arrival, request).await;
            if let Some(tunnel) = response.extensions_mut().remove::<Tunnel>() {
                if is_http2 {
                    // It ends when its stream does, and the stream with the connection.
                    tokio::spawn(tunnel.run());
                } else {
                    *taken.lock().expect("nobody panics in here") = Some(tunnel);
                }
            }
            if arrival.is_leaving() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .keep_alive_interval(limits.quiet)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_connect_protocol()
            .serve_connection(io, service);
        let finish = http2::Connection::graceful_shutdown;
        attend(connection, finish, arrival, limits, orders, Goodbye::AtOnce).await;
    } else {
        // No timer of hyper's own: it would be set anew for each request, `attend` looks once per limit.
        let connection = http1::Builder::new().serve_connection(io, service).with_upgrades();
        let finish = http1::UpgradeableConnection::graceful_shutdown;
        attend(connection, finish, arrival, limits, orders, Goodbye::WithTheNextAnswer).await;
        let tunnel = onward.lock().expect("nobody panics in here").take();
        if let Some(tunnel) = tunnel {
            tunnel.run().await;
        }
    }
}

/// Drives a connection. Ends it gracefully when told to stop and when it is quiet for too long; drops it when that does
/// not help, as with a client that does not read what it asked for.
/// At a pause it says goodbye.
async fn attend<C>(
    connection: C,
    finish: fn(Pin<&mut C>),
    arrival: Arrival,
    limits: Limits,
    orders: Orders,
    goodbye: Goodbye,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let Orders { mut stop, mut pause } = orders;
    let mut connection = std::pin::pin!(connection);
    let mut look = std::pin::pin!(tokio::time::sleep(limits.quiet));
    let mut seen_before = 0;
    let mut stopping = false;
    let mut pausing = false;
    let mut quiet = false;
    loop {
        tokio::select! {
            // How it failed concerns its client alone, and each request has its record.
            _ = connection.as_mut() => return,
            _ = stop.changed(), if !stopping => {
                stopping = true;
                finish(connection.as_mut());
            }
            paused = pause.changed(), if !pausing => {
                pausing = true;
                match goodbye {
                    // Whoever serves is gone, and `stop` with it.
                    _ if paused.is_err() => {}
                    Goodbye::AtOnce => finish(connection.as_mut()),
                    Goodbye::WithTheNextAnswer => {
                        arrival.leave();
                        look.as_mut().reset(Instant::now() + limits.quiet.min(LEAVING));
                    }
                }
            }
            () = look.as_mut() => {
                let (open, seen) = arrival.requests();
                let silent = open == 0 && seen == seen_before;
                if silent && quiet {
                    return;
                }
                if silent {
                    finish(connection.as_mut());
                }
                quiet = silent;
                seen_before = seen;
                let quiet_for = if arrival.is_leaving() { limits.quiet.min(LEAVING) } else { limits.quiet };
                let until = if silent { limits.quiet.min(GOODBYE) } else { quiet_for };
                look.as_mut().reset(Instant::now() + until);
            }
        }
    }
}

/// Looks at the first bytes without taking them.
async fn begins_as_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        stream.readable().await?;
        let length = stream.peek(&mut first).await?;
        if length == first.len() || length == 0 || !PREFACE.starts_with(&first[..length]) {
            return Ok(first == *PREFACE);
        }
        // The rest is on its way; the socket counts as readable until then.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
