//! The program in the tests' image for protocols: it speaks HTTP/1.1, HTTP/2, WebSocket and gRPC, by libraries of others,
//! so that both ends of what Homerun passes on are real. What enters: `PORT`.
//!
//! | path | answers |
//! |---|---|
//! | `/ws` | WebSocket: says back what it hears; after "tick" a number every 50 ms; after "end" it ends |
//! | `/events` | server-sent events, one every 100 ms, for as long as somebody listens |
//! | `/count` | how many bytes came; in trailers, the `x-sum` that came in trailers |
//! | `/zeros?mb=N` | so many MiB, without a length |
//! | `/refuse` | 403, without reading the body |
//! | `/say.Say/Both` | gRPC: each message back as it comes |
//! | `/say.Say/First`, `/say.Say/Last`, `/say.Say/Thrice` | gRPC: one message for one, one for many, many for one |
//! | `/say.Say/Never` | gRPC: no answer, ever |
//! | `/say.Say/Fail` | gRPC: status 9 and words, without a message |
//! | `/grpc.health.v1.Health/Check` | gRPC: that the server and `say.Say` serve; status 5 for other services |

use std::{convert::Infallible, env, error::Error, net::Ipv4Addr, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Pieces = mpsc::Sender<Frame<Bytes>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = env::var("PORT")?.parse()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    // The first process of a container has no default action for signals.
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = end.recv() => return Ok(()),
        };
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
            let builder = auto::Builder::new(TokioExecutor::new());
            // Whoever is on the other side has its own word about how it ended.
            let _ = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    match request.uri().path() {
        "/ws" => websocket(request),
        "/events" => {
            let (pieces, body) = piped();
            tokio::spawn(async move {
                let mut number = 0;
                while say(&pieces, format!("data: {number}\n\n")).await {
                    number += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
            with_type("text/event-stream", body)
        }
        "/count" => count(request).await,
        "/zeros" => {
            let mebibytes: u32 = query.strip_prefix("mb=").and_then(|n| n.parse().ok()).unwrap_or(1);
            let (pieces, body) = piped();
            tokio::spawn(async move {
                let piece = Bytes::from(vec![0; 1 << 16]);
                for _ in 0..mebibytes * 16 {
                    if !say(&pieces, piece.clone()).await {
                        return;
                    }
                }
            });
            Response::new(body)
        }
        "/refuse" => status(StatusCode::FORBIDDEN, "not that"),
        "/say.Say/Never" => std::future::pending().await,
        "/say.Say/Fail" => failed("9", "not now"),
        "/grpc.health.v1.Health/Check" => health(request.into_body()).await,
        path => match path.strip_prefix("/say.Say/") {
            Some(way) => grpc(way.to_owned(), request.into_body()),
            None => status(StatusCode::OK, "spoken"),
        },
    }
}

fn piped() -> (Pieces, Body) {
    let (sender, receiver) = mpsc::channel(4);
    let stream = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Frame<Bytes>>| async {
        receiver.recv().await.map(|frame| (Ok(frame), receiver))
    });
    (sender, StreamBody::new(stream).boxed_unsync())
}

/// False: nobody listens any more.
async fn say(pieces: &Pieces, piece: impl Into<Bytes>) -> bool {
    pieces.send(Frame::data(piece.into())).await.is_ok()
}

fn status(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::from(text).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

async fn count(request: Request<Incoming>) -> Response<Body> {
    let mut body = request.into_body();
    let (mut bytes, mut sum) = (0, None);
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => bytes += data.len(),
            Err(frame) => sum = frame.into_trailers().ok().and_then(|t| t.get("x-sum").cloned()),
        }
    }
    let (pieces, body) = piped();
    tokio::spawn(async move {
        let mut trailers = HeaderMap::new();
        trailers.extend(sum.map(|sum| (header::HeaderName::from_static("x-sum"), sum)));
        if say(&pieces, bytes.to_string()).await {
            let _ = pieces.send(Frame::trailers(trailers)).await;
        }
    });
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    response
}

fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get("sec-websocket-key") else {
        return status(StatusCode::UPGRADE_REQUIRED, "only WebSocket here");
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            converse(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await).await;
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header("sec-websocket-accept", accept)
        .body(Empty::new().boxed_unsync())
        .expect("its parts are valid")
}

async fn converse(mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) {
    while let Some(Ok(message)) = socket.next().await {
        let text = message.to_text().unwrap_or_default().to_owned();
        let said = match (&message, text.as_str()) {
            (Message::Text(_), "end") => socket.close(None).await,
            (Message::Text(_), "tick") => {
                let mut number = 0;
                loop {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if socket.send(Message::text(number.to_string())).await.is_err() {
                        return;
                    }
                    number += 1;
                }
            }
            (Message::Text(_) | Message::Binary(_), _) => socket.send(message).await,
            _ => Ok(()),
        };
        if said.is_err() {
            return;
        }
    }
}

/// gRPC's end without a message.
fn failed(code: &'static str, words: &'static str) -> Response<Body> {
    let mut response = with_type("application/grpc", Empty::new().boxed_unsync());
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from_static(code));
    headers.insert("grpc-message", HeaderValue::from_static(words));
    response
}

async fn health(body: Incoming) -> Response<Body> {
    let mut messages = Messages {
        body,
        buffer: BytesMut::new(),
    };
    let asked = messages.next().await.unwrap_or_default();
    // The service's name is the message's only field: behind the prefix, the field's number, and a length.
    if !matches!(asked.get(7..), None | Some(b"" | b"say.Say")) {
        return failed("5", "unknown service");
    }
    let (pieces, answer) = piped();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // SERVING. Both fit into the pipe.
    if say(&pieces, &[0, 0, 0, 0, 2, 8, 1][..]).await {
        let _ = pieces.send(Frame::trailers(trailers)).await;
    }
    with_type("application/grpc", answer)
}

/// The messages are passed back as they came, whatever is in them.
fn grpc(way: String, body: Incoming) -> Response<Body> {
    let (pieces, answer) = piped();
    tokio::spawn(async move {
        let mut messages = Messages {
            body,
            buffer: BytesMut::new(),
        };
        let mut last = None;
        while let Some(message) = messages.next().await {
            let times = match way.as_str() {
                "Both" => 1,
                "Thrice" => 3,
                _ => 0,
            };
            for _ in 0..times {
                if !say(&pieces, message.clone()).await {
                    return;
                }
            }
            if way != "First" || last.is_none() {
                last = Some(message);
            }
        }
        if let (Some(message), "First" | "Last") = (last, way.as_str()) {
            say(&pieces, message).await;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        // It may have left.
        let _ = pieces.send(Frame::trailers(trailers)).await;
    });
    with_type("application/grpc", answer)
}

/// Messages with their prefix: a flag and a length of four bytes.
struct Messages {
    body: Incoming,
    buffer: BytesMut,
}

impl Messages {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(mut length) = self.buffer.get(1..5) {
                let whole = 5 + usize::try_from(length.get_u32()).ok()?;
                if self.buffer.len() >= whole {
                    return Some(self.buffer.split_to(whole).freeze());
                }
            }
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(&frame.into_data().ok()?);
        }
    }
}
