//! One question to one container: by TCP, by HTTP/1.1, or by the health protocol of gRPC.

use std::{convert::Infallible, io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::{
    HeaderMap, Method, Request,
    client::conn::{http1, http2},
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::{Check, Header};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{net::TcpStream, time::timeout};

use crate::{network::Home, watched::watched};

/// Overridden by a header that the probe was given.
const USER_AGENT: &str = concat!("Homerun-Probe/", env!("CARGO_PKG_VERSION"));
/// How much of an answer is read. More of it changes nothing.
const ANSWER_LIMIT: usize = 64 << 10;

/// Why a question found no good answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum No {
    /// Nobody took the connection: the container has heard nothing.
    Connection,
    /// What came back instead, as a sentence.
    Answer(String),
}

/// Asks at an address in an instance's network and waits at most `limit` for a good answer.
pub(crate) async fn ask(
    home: &Home,
    network: &OwnedFd,
    to: SocketAddr,
    check: &Check,
    limit: Duration,
) -> Result<(), No> {
    let begin = tokio::time::Instant::now();
    let Ok(Ok(socket)) = timeout(limit, connect(home, network, to)).await else {
        return Err(No::Connection);
    };
    let exchange = async {
        match check {
            Check::Tcp { .. } => Ok(()),
            Check::Http { port, path, headers } => http(stream(socket)?, port.get(), path, headers).await,
            Check::Grpc { port, service } => grpc(stream(socket)?, port.get(), service).await,
        }
    };
    match timeout(limit.saturating_sub(begin.elapsed()), exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(No::Answer(format!("There was no answer within {} s.", limit.as_secs()))),
    }
}

async fn connect(home: &Home, network: &OwnedFd, to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = home.connect(network, to)?;
    // On a loopback it is decided before connect returns, nearly always.
    if !writable_now(&socket)? {
        let waiting = watched(socket.try_clone()?)?;
        waiting.writable().await?.retain_ready();
    }
    rustix::net::sockopt::socket_error(&socket)??;
    Ok(socket)
}

fn writable_now(socket: &OwnedFd) -> io::Result<bool> {
    let mut files = [PollFd::new(socket, PollFlags::OUT)];
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut files, Some(&none))? > 0)
}

fn stream(socket: OwnedFd) -> Result<TokioIo<TcpStream>, No> {
    let stream = TcpStream::from_std(std::net::TcpStream::from(socket));
    stream.map(TokioIo::new).map_err(|error| broken(&error))
}

/// An error and its causes as a sentence.
fn broken(error: &dyn std::error::Error) -> No {
    No::Answer(format!("The connection broke: {}.", model::with_causes(error)))
}

/// Drives a connection for as long as something is asked on it. Its own end shows in the answer.
async fn driven<E>(connection: impl Future<Output = Result<(), E>>) -> Infallible {
    let _ = connection.await;
    std::future::pending().await
}

async fn http(stream: TokioIo<TcpStream>, port: u16, path: &str, headers: &[Header]) -> Result<(), No> {
    let request = http_request(port, path, headers)?;
    let shaken = http1::Builder::new().max_buf_size(ANSWER_LIMIT).handshake(stream).await;
    let (mut sender, connection) = shaken.map_err(|error| broken(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        // To its end, so that no server sees its answer break off.
        let _ = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        if (200..400).contains(&status.as_u16()) {
            Ok(())
        } else {
            Err(No::Answer(format!("The answer was {}.", status.as_u16())))
        }
    };
    tokio::select! {
        biased;
        answer = exchange => answer,
        never = driven(connection) => match never {},
    }
}

fn http_request(port: u16, path: &str, headers: &[Header]) -> Result<Request<Empty<Bytes>>, No> {
    let mut request = Request::builder().method(Method::GET).uri(path);
    let all = request.headers_mut();
    let mut given = HeaderMap::new();
    for Header { name, value } in headers {
        let name = HeaderName::try_from(name.as_str());
        let value = HeaderValue::try_from(value.as_str());
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(No::Answer("A header of the probe is no header of HTTP.".to_owned()));
        };
        given.append(name, value);
    }
    if let Some(all) = all {
        let host = HeaderValue::try_from(format!("localhost:{port}")).expect("visible characters");
        let own = [
            (header::HOST, host),
            (header::USER_AGENT, HeaderValue::from_static(USER_AGENT)),
            (header::ACCEPT, HeaderValue::from_static("*/*")),
            (header::CONNECTION, HeaderValue::from_static("close")),
        ];
        for (name, value) in own {
            if !given.contains_key(&name) {
                all.insert(name, value);
            }
        }
        all.extend(given);
    }
    let request = request.body(Empty::new());
    request.map_err(|error| No::Answer(format!("\"{path}\" cannot be asked for: {error}.")))
}

/// `grpc.health.v1.Health/Check`, see the health checking protocol of gRPC. The two messages have one field each, so
/// they are written and read here by hand.
async fn grpc(stream: TokioIo<TcpStream>, port: u16, service: &str) -> Result<(), No> {
    let request = Request::post(format!("http://localhost:{port}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(Bytes::from(health_request(service))))
        .expect("all parts are legal");
    let builder = http2::Builder::new(TokioExecutor::new());
    let shaken = builder.handshake(stream).await;
    let (mut sender, connection) = shaken.map_err(|error| broken(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let (head, body) = answer.into_parts();
        if head.status != 200 {
            return Err(No::Answer(format!("The answer was {}.", head.status.as_u16())));
        }
        let body = Limited::new(body, ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| broken(error.as_ref()))?;
        // An answer of headers alone has its status there.
        let trailers = body.trailers().unwrap_or(&head.headers);
        let grpc_status = trailers.get("grpc-status").and_then(|code| code.to_str().ok());
        match grpc_status {
            Some("0") => health_answer(body.to_bytes()),
            Some(code) => Err(No::Answer(format!("The answer was gRPC status {code}."))),
            None => Err(No::Answer("The answer had no gRPC status.".to_owned())),
        }
    };
    tokio::select! {
        biased;
        answer = exchange => answer,
        never = driven(connection) => match never {},
    }
}

/// `HealthCheckRequest { string service = 1; }` in gRPC's frame.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push(u8::try_from(length & 0x7f).expect("7 bits") | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).expect("7 bits"));
        message.extend(service.as_bytes());
    }
    let length = u32::try_from(message.len()).expect("a name is short");
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    frame
}

/// `HealthCheckResponse { ServingStatus status = 1; }` in gRPC's frame.
fn health_answer(mut frame: Bytes) -> Result<(), No> {
    let garbled = || No::Answer("The answer was no health message.".to_owned());
    if frame.len() < 5 || frame.get_u8() != 0 {
        return Err(garbled());
    }
    let length = usize::try_from(frame.get_u32()).map_err(|_| garbled())?;
    if length != frame.len() {
        return Err(garbled());
    }
    let mut status = 0;
    while frame.has_remaining() {
        let tag = varint(&mut frame).ok_or_else(garbled)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut frame).ok_or_else(garbled)?,
            // Fields that later versions may have.
            (_, 0) => drop(varint(&mut frame).ok_or_else(garbled)?),
            (_, kind @ (1 | 2 | 5)) => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut frame).ok_or_else(garbled)?,
                };
                let length = usize::try_from(length).map_err(|_| garbled())?;
                if length > frame.len() {
                    return Err(garbled());
                }
                frame.advance(length);
            }
            _ => return Err(garbled()),
        }
    }
    match status {
        1 => Ok(()),
        0 => Err(No::Answer("The answer was UNKNOWN.".to_owned())),
        2 => Err(No::Answer("The answer was NOT_SERVING.".to_owned())),
        3 => Err(No::Answer("The answer was SERVICE_UNKNOWN.".to_owned())),
        other => Err(No::Answer(format!("The answer was the unknown status {other}."))),
    }
}

fn varint(bytes: &mut Bytes) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        if !bytes.has_remaining() {
            return None;
        }
        let byte = bytes.get_u8();
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
