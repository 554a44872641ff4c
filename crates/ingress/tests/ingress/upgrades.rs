//! Connections that become something else: WebSocket by real clients and servers, and upgrades that nobody knows.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, header};
use hyper::ext::Protocol as ExtendedProtocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::{Activity, Protocol};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest as _, protocol::Role},
};

use crate::{
    body::{empty, full},
    client::{Client, Via, whole},
    server::Server,
    stage::{Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";

/// An instance that speaks WebSocket: says back what it hears, ends at "end", vanishes at "vanish".
async fn echo(stage: &Stage) -> JoinHandle<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    stage.place_at(id(1), listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let mut clients = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            clients.spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
                while let Some(Ok(message)) = socket.next().await {
                    match &message {
                        Message::Text(text) if text.as_str() == "vanish" => return,
                        Message::Text(text) if text.as_str() == "end" => {
                            let _ = socket.close(None).await;
                        }
                        Message::Text(_) | Message::Binary(_) => {
                            let _ = socket.send(message).await;
                        }
                        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
                    }
                }
            });
        }
    })
}

async fn ready_stage(settings: &Settings) -> Stage {
    let stage = Stage::set();
    stage.route(&[(R1, 100, None)], settings).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    stage
}

async fn over_http1(stage: &Stage) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(stage.http).await.expect("connects");
    let request = format!("ws://{}/chat?x", stage.host())
        .into_client_request()
        .expect("a request");
    let (socket, response) = tokio_tungstenite::client_async(request, stream)
        .await
        .expect("a handshake");
    assert_eq!(response.status(), 101);
    socket
}

/// WebSocket over a stream of HTTP/2 (RFC 8441). The client lives as long as its connection is needed.
struct OverHttp2 {
    sender: hyper::client::conn::http2::SendRequest<crate::body::TestBody>,
    /// The connection's own socket, to end it under everything.
    socket: std::net::TcpStream,
    host: String,
}

impl OverHttp2 {
    async fn open(stage: &Stage) -> Self {
        let stream = TcpStream::connect(stage.http).await.expect("connects");
        let stream = stream.into_std().expect("a socket");
        let socket = stream.try_clone().expect("a descriptor");
        let stream = TcpStream::from_std(stream).expect("a socket");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("a handshake");
        tokio::spawn(async move { drop(connection.await) });
        // An answer shows that the server's settings, which allow the extended CONNECT, have come.
        let request = Request::get("http://nobody.a.run.localhost/")
            .body(empty())
            .expect("a request");
        assert_eq!(sender.send_request(request).await.expect("an answer").status(), 404);
        Self {
            sender,
            socket,
            host: stage.host(),
        }
    }

    async fn connect(&mut self, protocol: &'static str) -> Response<hyper::body::Incoming> {
        let request = Request::connect(format!("http://{}/chat", self.host))
            .extension(ExtendedProtocol::from_static(protocol))
            .header("sec-websocket-version", "13")
            .body(empty())
            .expect("a request");
        self.sender.send_request(request).await.expect("an answer")
    }

    async fn websocket(&mut self) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
        let response = self.connect("websocket").await;
        assert_eq!(response.status(), 200);
        for gone in ["upgrade", "connection", "sec-websocket-accept"] {
            assert!(!response.headers().contains_key(gone), "{gone}");
        }
        let upgraded = hyper::upgrade::on(response).await.expect("it is upgraded");
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    for message in [
        Message::text("one"),
        Message::binary(vec![7; 1 << 20]),
        Message::text("two"),
    ] {
        socket.send(message.clone()).await.expect("it is sent");
        let back = socket.next().await.expect("an answer").expect("a message");
        assert_eq!(back, message);
    }
}

#[tokio::test]
async fn websocket_is_one_request_for_its_whole_life() {
    let stage = ready_stage(&Settings {
        concurrency: 1,
        ..Settings::default()
    })
    .await;
    let server = echo(&stage).await;
    let mut socket = over_http1(&stage).await;
    talk(&mut socket).await;
    stage.in_flight(1).await;
    assert_eq!(stage.activity(), [(id(1), Activity::Busy)]);
    // Its only slot is taken, so another waits.
    let (waiting, ()) = tokio::join!(
        async {
            let socket = over_http1(&stage).await;
            stage.in_flight(1).await;
            socket
        },
        async {
            stage.queued(1).await;
            socket.close(None).await.expect("it closes");
            while socket.next().await.is_some() {}
            drop(socket);
        }
    );
    let mut waiting = waiting;
    talk(&mut waiting).await;
    waiting.send(Message::text("end")).await.expect("it is sent");
    let Some(Ok(Message::Close(_))) = waiting.next().await else {
        panic!("the instance ends it")
    };
    drop(waiting);
    stage.in_flight(0).await;

    let mut client = OverHttp2::open(&stage).await;
    let mut socket = client.websocket().await;
    talk(&mut socket).await;
    stage.in_flight(1).await;
    socket.close(None).await.expect("it closes");
    while socket.next().await.is_some() {}
    stage.in_flight(0).await;
    drop(socket);
    server.abort();

    let records = stage.records(4).await;
    for (record, protocol) in records.iter().filter(|r| r.status != 404).zip(["1.1", "1.1", "2"]) {
        assert_eq!((record.status, &record.refusal), (101, &None), "{record:#?}");
        assert!(record.protocol.ends_with(protocol), "{record:#?}");
        assert!(record.request_bytes > 1 << 20 && record.response_bytes > 1 << 20);
    }
}

#[tokio::test]
async fn either_side_may_leave_without_a_word() {
    let stage = ready_stage(&Settings::default()).await;
    let server = echo(&stage).await;
    let mut socket = over_http1(&stage).await;
    talk(&mut socket).await;
    drop(socket);
    stage.in_flight(0).await;
    let mut socket = over_http1(&stage).await;
    socket.send(Message::text("vanish")).await.expect("it is sent");
    assert!(socket.next().await.is_none_or(|last| last.is_err()));
    drop(socket);
    stage.in_flight(0).await;

    let mut client = OverHttp2::open(&stage).await;
    let mut socket = client.websocket().await;
    talk(&mut socket).await;
    drop(socket);
    stage.in_flight(0).await;
    let socket = client.websocket().await;
    stage.in_flight(1).await;
    client.socket.shutdown(std::net::Shutdown::Both).expect("it ends");
    stage.in_flight(0).await;
    drop((socket, client));
    let mut client = OverHttp2::open(&stage).await;
    let mut socket = client.websocket().await;
    socket.send(Message::text("vanish")).await.expect("it is sent");
    assert!(socket.next().await.is_none_or(|last| last.is_err()));
    stage.in_flight(0).await;
    server.abort();
}

#[tokio::test]
async fn a_websocket_ends_at_the_timeout() {
    let stage = ready_stage(&Settings {
        timeout: 1,
        ..Settings::default()
    })
    .await;
    let server = echo(&stage).await;
    let before = Instant::now();
    let mut socket = over_http1(&stage).await;
    let mut client = OverHttp2::open(&stage).await;
    let mut other = client.websocket().await;
    talk(&mut socket).await;
    talk(&mut other).await;
    for last in [socket.next().await, other.next().await] {
        assert!(
            !matches!(last, Some(Ok(Message::Text(_) | Message::Binary(_)))),
            "{last:?}"
        );
    }
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(4),
        "{took:?}"
    );
    stage.in_flight(0).await;
    for record in stage.records(3).await.iter().filter(|record| record.status == 101) {
        assert!(
            record
                .refusal
                .as_deref()
                .is_some_and(|why| why.contains("timeout of 1 s"))
        );
    }
    server.abort();
}

#[tokio::test]
async fn an_instance_may_decline() {
    let stage = ready_stage(&Settings::default()).await;
    let server = Server::start(Protocol::Http1, |request| async move {
        let status: u16 = request.headers()["x-status"]
            .to_str()
            .expect("text")
            .parse()
            .expect("a number");
        Response::builder()
            .status(status)
            .body(full("no, thanks"))
            .expect("a response")
    })
    .await;
    stage.place(id(1), &server);
    for status in ["200", "403", "426"] {
        let stream = TcpStream::connect(stage.http).await.expect("connects");
        let mut request = format!("ws://{}/", stage.host())
            .into_client_request()
            .expect("a request");
        request.headers_mut().insert("x-status", status.parse().expect("text"));
        match tokio_tungstenite::client_async(request, stream).await {
            Err(Error::Http(response)) => assert_eq!(response.status().as_str(), status),
            other => panic!("{other:?}"),
        }
        let mut client = OverHttp2::open(&stage).await;
        let request = Request::connect(format!("http://{}/", stage.host()))
            .extension(ExtendedProtocol::from_static("websocket"))
            .header("x-status", status)
            .body(empty())
            .expect("a request");
        let response = client.sender.send_request(request).await.expect("an answer");
        // Success would be a tunnel to nowhere.
        let told = if status == "200" { "503" } else { status };
        assert_eq!(response.status().as_str(), told);
        if told == status {
            assert_eq!(whole(response).await.text, "no, thanks");
        }
    }
    let mut client = OverHttp2::open(&stage).await;
    assert_eq!(
        client.connect("tcp").await.status(),
        501,
        "only WebSocket has this form"
    );
    stage.in_flight(0).await;
}

#[tokio::test]
async fn any_protocol_but_h2c_is_passed_on() {
    let stage = ready_stage(&Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    stage.place_at(id(1), listener.local_addr().expect("an address"));
    // Switches to what it was asked for, and says the head and then what it hears, backwards.
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.expect("a head");
            let head = String::from_utf8_lossy(&head[..length]).to_lowercase();
            let asked = head
                .lines()
                .find_map(|line| line.strip_prefix("upgrade: "))
                .expect("it asks");
            assert!(head.contains("connection: upgrade\r\n"), "{head}");
            let answer = format!("HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: {asked}\r\nX-It: 1\r\n\r\nfirst");
            stream.write_all(answer.as_bytes()).await.expect("it is sent");
            let mut words = Vec::new();
            stream.read_to_end(&mut words).await.expect("its end");
            words.reverse();
            stream.write_all(&words).await.expect("it is sent");
        }
    });
    for (asked, passed) in [("echo/1", "echo/1"), ("h2c, echo", "echo"), ("H2C/3,a,b", "a, b")] {
        let mut stream = TcpStream::connect(stage.http).await.expect("connects");
        // The first words come with the head, before anybody has agreed.
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {asked}\r\n\r\n12",
            stage.host()
        );
        stream.write_all(head.as_bytes()).await.expect("it is sent");
        stream.write_all(b"345").await.expect("it is sent");
        stream.shutdown().await.expect("its side ends");
        let mut said = String::new();
        stream.read_to_string(&mut said).await.expect("an answer");
        let lower = said.to_lowercase();
        assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
        assert!(
            lower.contains("connection: upgrade\r\n") && lower.contains("x-it: 1\r\n"),
            "{said}"
        );
        assert!(lower.contains(&format!("upgrade: {passed}\r\n")), "{said}");
        assert!(said.ends_with("\r\n\r\nfirst54321"), "{said}");
    }
    stage.in_flight(0).await;
    server.abort();
}

#[tokio::test]
async fn an_instance_that_gets_http2_has_no_websocket() {
    let stage = ready_stage(&Settings {
        protocol: Protocol::H2c,
        ..Settings::default()
    })
    .await;
    let server = Server::mirror(Protocol::H2c).await;
    stage.place(id(1), &server);
    let stream = TcpStream::connect(stage.http).await.expect("connects");
    let request = format!("ws://{}/", stage.host())
        .into_client_request()
        .expect("a request");
    match tokio_tungstenite::client_async(request, stream).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 501),
        other => panic!("{other:?}"),
    }
    let mut client = OverHttp2::open(&stage).await;
    assert_eq!(client.connect("websocket").await.status(), 501);
    // Another upgrade is an offer, which may be passed over: the request itself is served.
    let mut client = Client::open(&stage, Via::Http1).await;
    let request = client
        .request("GET", "/")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "TLS/1.2")
        .body(empty())
        .expect("a request");
    let answer = client.send(request).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.text.contains("upgrade"), "{}", answer.text);
}

#[tokio::test]
async fn a_drain_cuts_websockets_off_at_its_limit() {
    let mut stage = ready_stage(&Settings::default()).await;
    let server = echo(&stage).await;
    let mut socket = over_http1(&stage).await;
    let drained = tokio::spawn(stage.drain(Duration::from_millis(500)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    talk(&mut socket).await;
    assert_eq!(drained.await.expect("it drains"), 1);
    assert!(socket.next().await.is_none_or(|last| last.is_err()));
    stage.in_flight(0).await;
    stage.records(1).await;
    server.abort();
}
