//! WebSocket, gRPC, events, large bodies: real clients, a real container, the whole of Homerun between them.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, Stream, StreamExt as _, stream};
use homerun_e2e::User;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

/// The program of the image for protocols.
pub(crate) const SPEAKER: &str = env!("CARGO_BIN_EXE_speaker");

pub(crate) fn run<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async {
            tokio::time::timeout(Duration::from_mins(1), task)
                .await
                .expect("it ends within a minute")
        })
}

pub(crate) async fn websocket(stream: TcpStream, url: &str) -> WebSocketStream<TcpStream> {
    let request = format!("ws://{url}/ws").into_client_request().expect("a request");
    let (socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .expect("a handshake");
    socket
}

pub(crate) async fn echoes(socket: &mut WebSocketStream<TcpStream>, message: Message) {
    socket.send(message.clone()).await.expect("it is sent");
    let back = socket.next().await.expect("an answer").expect("a message");
    assert_eq!(back, message);
}

/// A stream through the API port, as through a proxy.
async fn tunnel(api: SocketAddr, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(api).await.expect("connects");
    let ask = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.expect("it is sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[test]
fn websocket_lives_as_long_as_it_may() {
    let mut user = User::of_homerun();
    let image = user.import_speaker(SPEAKER);
    // One request at a time in one instance: who comes second waits for the first.
    let url = user.deploy(
        "spoken",
        &format!("--image={image} --concurrency=1 --max-instances=1 --timeout=5"),
    );
    let host = url.trim_start_matches("http://").to_owned();
    let (http, api) = (user.homerun.http(), user.homerun.api());
    run(async {
        for way in ["direct", "proxy"] {
            let stream = if way == "direct" {
                TcpStream::connect(http).await.expect("connects")
            } else {
                tunnel(api, &host).await
            };
            let mut socket = websocket(stream, &host).await;
            echoes(&mut socket, Message::text("one")).await;
            echoes(&mut socket, Message::binary(vec![1; 1 << 20])).await;
            socket.close(None).await.expect("it closes");
            while socket.next().await.is_some() {}
        }
        // While it is open the instance has its CPU, and the request its slot; at the timeout both end.
        let before = Instant::now();
        let mut socket = websocket(TcpStream::connect(http).await.expect("connects"), &host).await;
        socket.send(Message::text("tick")).await.expect("it is sent");
        let mut ticks = 0;
        while let Some(Ok(Message::Text(_))) = socket.next().await {
            ticks += 1;
        }
        let took = before.elapsed();
        assert!(
            took >= Duration::from_secs(4) && took < Duration::from_secs(20),
            "{took:?}"
        );
        assert!(ticks > 40, "{ticks} in {took:?}");
        // One that vanishes frees its place for the next.
        let mut socket = websocket(TcpStream::connect(http).await.expect("connects"), &host).await;
        echoes(&mut socket, Message::text("one")).await;
        drop(socket);
        let mut socket = websocket(TcpStream::connect(http).await.expect("connects"), &host).await;
        echoes(&mut socket, Message::text("two")).await;
        socket.send(Message::text("end")).await.expect("it is sent");
        while socket.next().await.is_some() {}
    });
    assert_eq!(user.get(&url), "spoken");
    user.leaves();
}

struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    async fn connect(http: SocketAddr, host: &str) -> Self {
        let endpoint = Channel::from_shared(format!("http://{http}")).expect("a URI");
        let endpoint = endpoint.origin(format!("http://{host}").parse().expect("a URI"));
        Self {
            grpc: Grpc::new(endpoint.connect().await.expect("connects")),
        }
    }

    async fn ready(&mut self, way: &str) -> PathAndQuery {
        self.grpc.ready().await.expect("it is ready");
        format!("/say.Say/{way}").parse().expect("a path")
    }

    async fn unary(&mut self, way: &str, request: Request<String>) -> Result<String, Status> {
        let path = self.ready(way).await;
        let codec = ProstCodec::default();
        self.grpc
            .unary(request, path, codec)
            .await
            .map(tonic::Response::into_inner)
    }

    async fn many_to_one(&mut self, messages: &[&str]) -> Result<String, Status> {
        let path = self.ready("Last").await;
        let messages: Vec<String> = messages.iter().map(|m| (*m).to_owned()).collect();
        let answered = self
            .grpc
            .client_streaming(Request::new(stream::iter(messages)), path, ProstCodec::default());
        answered.await.map(tonic::Response::into_inner)
    }

    async fn one_to_many(&mut self, message: &str) -> Result<Vec<String>, Status> {
        let path = self.ready("Thrice").await;
        let request = Request::new(message.to_owned());
        let answered = self.grpc.server_streaming(request, path, ProstCodec::default()).await?;
        let mut answers = answered.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(all)
    }

    async fn both(
        &mut self,
        messages: impl Stream<Item = String> + Send + 'static,
    ) -> Result<tonic::Streaming<String>, Status> {
        let path = self.ready("Both").await;
        let answered = self
            .grpc
            .streaming(Request::new(messages), path, ProstCodec::default())
            .await?;
        Ok(answered.into_inner())
    }
}

#[test]
fn grpc_is_served_in_all_its_ways() {
    let mut user = User::of_homerun();
    let image = user.import_speaker(SPEAKER);
    let asked = user.deploy("asked", &format!("--image={image} --use-http2 --timeout=3"));
    // Without the flag gRPC gets HTTP/2 all the same, and everybody else HTTP/1.1.
    let plain = user.deploy("plain", &format!("--image={image} --concurrency=2 --max-instances=1"));
    let http = user.homerun.http();
    let host = |url: &str| url.trim_start_matches("http://").to_owned();
    run(async {
        for url in [&asked, &plain] {
            let mut client = Client::connect(http, &host(url)).await;
            let said = client.unary("First", Request::new("one".to_owned())).await;
            assert_eq!(said.expect("an answer"), "one");
            let large = "x".repeat(3 << 20);
            let said = client.unary("First", Request::new(large.clone())).await;
            assert_eq!(said.expect("an answer").len(), large.len());
            assert_eq!(client.many_to_one(&["a", "b", "c"]).await.expect("an answer"), "c");
            assert_eq!(client.one_to_many("a").await.expect("answers"), ["a", "a", "a"]);
            let (send, receive) = tokio::sync::mpsc::channel(1);
            let messages = stream::unfold(receive, |mut receive: tokio::sync::mpsc::Receiver<String>| async {
                receive.recv().await.map(|message| (message, receive))
            });
            let mut answers = client.both(messages).await.expect("it begins");
            for message in ["one", "two", "three"] {
                // Each is answered before the next is sent.
                send.send(message.to_owned()).await.expect("it is sent");
                assert_eq!(answers.message().await.expect("an answer").as_deref(), Some(message));
            }
            drop(send);
            assert_eq!(answers.message().await.expect("its end"), None);
            let failed = client.unary("Fail", Request::new(String::new())).await;
            let failed = failed.expect_err("it fails");
            assert_eq!((failed.code(), failed.message()), (Code::FailedPrecondition, "not now"));
        }
        // The client's own deadline, and then its slots are free again: more of them than there are slots.
        let mut client = Client::connect(http, &host(&plain)).await;
        for _ in 0..4 {
            let mut request = Request::new("x".to_owned());
            request.set_timeout(Duration::from_millis(200));
            let failed = client.unary("Never", request).await.expect_err("no answer");
            assert!(
                matches!(failed.code(), Code::Cancelled | Code::DeadlineExceeded),
                "{failed}"
            );
        }
        let said = client.unary("First", Request::new("after".to_owned())).await;
        assert_eq!(said.expect("an answer"), "after");
        // The platform's own answers are statuses of HTTP with a line of text, as on Cloud Run.
        let mut client = Client::connect(http, &host(&asked)).await;
        let failed = client.unary("Never", Request::new(String::new())).await;
        let failed = failed.expect_err("no answer in time");
        assert!(failed.message().contains("504 Gateway Timeout"), "{failed}");
        let mut client = Client::connect(http, "nobody.a.run.localhost").await;
        let failed = client.unary("First", Request::new(String::new())).await;
        let failed = failed.expect_err("no such service");
        assert!(failed.message().contains("404 Not Found"), "{failed}");
    });
    assert_eq!(user.get(&plain), "spoken");
    user.leaves();
}

/// The most memory that Homerun ever had, in KiB.
fn most_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .expect("a number")
}

#[test]
fn large_bodies_pass_without_being_gathered() {
    let mut user = User::of_homerun();
    let image = user.import_speaker(SPEAKER);
    let http1 = user.deploy("one", &format!("--image={image} --concurrency=1 --max-instances=1"));
    let http2 = user.deploy("two", &format!("--image={image} --use-http2"));
    let pid = user.homerun.pid();
    assert_eq!(user.get(&http2), "spoken");
    let before = most_memory(pid);
    let upload = |mebibytes: u32, flags: &str, url: &str| {
        format!("head -c {mebibytes}M /dev/zero | curl -sS -X POST -T - {flags} {url}/count")
    };
    let size = (200_u64 << 20).to_string();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(user.ok(&upload(200, version, &http2)), size, "{version}");
        let down = format!("curl -sS --fail {version} '{http1}/zeros?mb=200' | wc -c");
        assert_eq!(user.ok(&down), size, "{version}");
        // One that reads slowly, and leaves.
        user.ends(
            &format!("curl -sS {version} --limit-rate 10M --max-time 1 '{http1}/zeros?mb=200' -o /dev/null"),
            28,
        );
    }
    let grown = most_memory(pid) - before;
    assert!(grown < 96 << 10, "Homerun grew by {grown} KiB");
    // Over HTTP/1 to the container, 32 MiB are the limit, told or counted.
    let code = "-o /dev/null -w '%{http_code}'";
    assert_eq!(user.ok(&upload(32, "", &http1)), (32 << 20).to_string());
    assert_eq!(user.ok(&upload(33, code, &http1)), "413");
    let told = format!("head -c 33M /dev/zero > big; curl -sS -X POST -T big {code} {http1}/count");
    assert_eq!(user.ok(&told), "413");
    // Whoever asks first is spared the way.
    let sent = user.ok(&format!(
        "curl -sS -X POST -T big -H 'Expect: 100-continue' -o /dev/null -w '%{{http_code}} %{{size_upload}}' {http1}/refuse"
    ));
    assert_eq!(sent, "413 0");
    let sent = user.ok(&format!(
        "head -c 8M /dev/zero > some; curl -sS --expect100-timeout 20 -X POST -T some -H 'Expect: 100-continue' -o /dev/null -w '%{{http_code}} %{{size_upload}}' {http1}/refuse"
    ));
    assert_eq!(sent, "403 0");
    user.leaves();
}

#[test]
fn events_come_as_they_happen() {
    let mut user = User::of_homerun();
    let image = user.import_speaker(SPEAKER);
    let url = user.deploy("events", &format!("--image={image} --concurrency=1 --max-instances=1"));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        // It ends by leaving: the next finds the only slot free.
        let said = user.ends(&format!("curl -sS -N {version} --max-time 2 {url}/events"), 28);
        let events = said.lines().filter(|line| line.starts_with("data: ")).count();
        assert!((5..=20).contains(&events), "{said}");
    }
    assert_eq!(user.get(&url), "spoken");
    user.leaves();
}
