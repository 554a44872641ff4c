//! HTTP/2 all the way: gRPC as it is on the wire, many streams on few connections, ends of streams and of connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use model::{Activity, Protocol};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::{
    body::empty,
    client::{Client, Via},
    server::Server,
    stage::{Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";

fn settings() -> Settings {
    Settings {
        protocol: Protocol::H2c,
        concurrency: 1000,
        ..Settings::default()
    }
}

async fn ready_stage(settings: &Settings) -> Stage {
    let stage = Stage::set();
    stage.route(&[(R1, 100, None)], settings).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    stage
}

type Stream = (Request<RecvStream>, server::SendResponse<Bytes>);

/// An instance whose streams `answer` deals with one by one. Counts its connections; tells each to go away after its
/// `last` stream.
struct Instance {
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Instance {
    async fn start<R>(
        stage: &Stage,
        builder: server::Builder,
        last: usize,
        answer: impl Fn(Stream) -> R + Clone + Send + 'static,
    ) -> Self
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        stage.place_at(id(1), listener.local_addr().expect("an address"));
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                count.fetch_add(1, Ordering::SeqCst);
                let (builder, answer) = (builder.clone(), answer.clone());
                tasks.spawn(async move {
                    let mut connection = builder.handshake(stream).await.expect("a handshake");
                    let mut streams = JoinSet::new();
                    let mut seen = 0;
                    while let Some(Ok(stream)) = connection.accept().await {
                        streams.spawn(answer(stream));
                        seen += 1;
                        if seen == last {
                            connection.graceful_shutdown();
                        }
                    }
                });
            }
        });
        Self { connections, task }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A client's connection over HTTP/2.
async fn open(stage: &Stage) -> client::SendRequest<Bytes> {
    let stream = TcpStream::connect(stage.http).await.expect("connects");
    let (sender, connection) = client::Builder::new()
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await
        .expect("a handshake");
    tokio::spawn(async move { drop(connection.await) });
    sender.ready().await.expect("it is ready")
}

fn grpc(stage: &Stage, path: &str) -> Request<()> {
    Request::post(format!("http://{}{path}", stage.host()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request")
}

async fn read(body: &mut RecvStream) -> Option<Bytes> {
    loop {
        let data = body.data().await?.expect("data");
        body.flow_control().release_capacity(data.len()).expect("it was used");
        if !data.is_empty() {
            return Some(data);
        }
    }
}

/// Says back each piece as it comes, then a status in the trailers.
async fn echo((request, mut respond): Stream) {
    let mut body = request.into_body();
    let mut out = respond
        .send_response(
            Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .expect("a response"),
            false,
        )
        .expect("it is sent");
    while let Some(data) = read(&mut body).await {
        if out.send_data(data, false).is_err() {
            return;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("7"));
    // The client may be gone.
    let _ = out.send_trailers(trailers);
}

#[tokio::test]
async fn grpc_gets_http2_from_every_revision() {
    let stage = ready_stage(&Settings::default()).await;
    let grpc_server = Server::mirror(Protocol::H2c).await;
    let http1_server = Server::mirror(Protocol::Http1).await;
    for (via, content_type, version) in [
        (Via::H2c, "application/grpc", "HTTP/2.0"),
        (Via::Tls2, "application/grpc+proto", "HTTP/2.0"),
        (Via::H2c, "application/grpc;x=y", "HTTP/2.0"),
        (Via::Tls2, "application/grpc-web", "HTTP/1.1"),
        (Via::Http1, "application/grpc", "HTTP/1.1"),
        (Via::H2c, "text/plain", "HTTP/1.1"),
    ] {
        let is_http2 = version == "HTTP/2.0";
        stage.place(id(1), if is_http2 { &grpc_server } else { &http1_server });
        let mut client = Client::open(&stage, via).await;
        let request = client
            .request("POST", "/pkg.Service/Method")
            .header("content-type", content_type)
            .header("te", "trailers")
            .header("grpc-timeout", "5S")
            .body(empty())
            .expect("a request");
        let text = client.send(request).await.text;
        assert!(
            text.lines().next().is_some_and(|line| line.ends_with(version)),
            "{content_type}: {text}"
        );
        assert!(
            text.contains("te: trailers\n") && text.contains("grpc-timeout: 5S\n"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_stream_both_ways_ends_with_its_status() {
    let stage = ready_stage(&settings()).await;
    let _instance = Instance::start(&stage, server::Builder::new(), usize::MAX, echo).await;
    let mut client = open(&stage).await;
    let (response, mut up) = client.send_request(grpc(&stage, "/s/M"), false).expect("it is sent");
    let response = response.await.expect("a head before the first piece");
    let mut down = response.into_body();
    for piece in ["one", "two", "three"] {
        up.send_data(Bytes::from(piece), false).expect("it is sent");
        assert_eq!(read(&mut down).await.as_deref(), Some(piece.as_bytes()));
    }
    // Nothing is said for a while: the stream is a request all the same.
    tokio::time::sleep(Duration::from_millis(200)).await;
    stage.in_flight(1).await;
    assert_eq!(stage.activity(), [(id(1), Activity::Busy)]);
    up.send_data(Bytes::new(), true).expect("it ends");
    assert_eq!(read(&mut down).await, None);
    let trailers = down.trailers().await.expect("trailers").expect("some");
    assert_eq!(trailers["grpc-status"], "7");
    stage.in_flight(0).await;
    assert_eq!(stage.records(1).await[0].refusal, None);
}

#[tokio::test]
async fn a_status_without_a_body_passes() {
    let stage = ready_stage(&settings()).await;
    let _instance = Instance::start(
        &stage,
        server::Builder::new(),
        usize::MAX,
        |(_, mut respond)| async move {
            let only = Response::builder()
                .header("grpc-status", "5")
                .header("grpc-message", "no");
            respond
                .send_response(only.body(()).expect("a response"), true)
                .expect("it is sent");
        },
    )
    .await;
    let mut client = open(&stage).await;
    let (response, _) = client.send_request(grpc(&stage, "/s/M"), true).expect("it is sent");
    let response = response.await.expect("a head");
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.body().is_end_stream());
    stage.in_flight(0).await;
}

#[tokio::test]
async fn many_streams_share_few_connections() {
    let stage = ready_stage(&settings()).await;
    let instance = Instance::start(&stage, server::Builder::new(), usize::MAX, echo).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut client = open(&stage).await;
        for _ in 0..90 {
            let (response, up) = client.send_request(grpc(&stage, "/s/M"), false).expect("it is sent");
            kept.push((response, up));
            client = client.ready().await.expect("it is ready");
        }
    }
    stage.in_flight(270).await;
    let mut bodies = Vec::new();
    for (response, mut up) in kept {
        let mut down = response.await.expect("a head").into_body();
        up.send_data(Bytes::from_static(b"x"), false).expect("it is sent");
        assert_eq!(read(&mut down).await.as_deref(), Some(&b"x"[..]));
        bodies.push((up, down));
    }
    // Two threads, each with as many as it needs of 100 streams.
    let connections = instance.connections();
    assert!((3..=4).contains(&connections), "{connections}");
    drop(bodies);
    stage.in_flight(0).await;
}

#[tokio::test]
async fn an_instance_that_allows_few_streams_gets_more_connections() {
    let stage = ready_stage(&settings()).await;
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(10);
    let instance = Instance::start(&stage, builder, usize::MAX, echo).await;
    let mut client = open(&stage).await;
    let mut kept = Vec::new();
    for number in 0..40 {
        let (response, up) = client.send_request(grpc(&stage, "/s/M"), false).expect("it is sent");
        // All are open at a time: each has its head before the next is asked for.
        let head = tokio::time::timeout(Duration::from_secs(5), response).await;
        let down = head
            .unwrap_or_else(|_| panic!("stream {number} waits"))
            .expect("a head");
        kept.push((up, down));
        client = client.ready().await.expect("it is ready");
    }
    let connections = instance.connections();
    assert!((4..=5).contains(&connections), "{connections}");
}

#[tokio::test]
async fn an_end_passes_both_ways() {
    let stage = ready_stage(&settings()).await;
    let (seen, mut ends) = tokio::sync::mpsc::channel(4);
    let _instance = Instance::start(
        &stage,
        server::Builder::new(),
        usize::MAX,
        move |(request, mut respond)| {
            let seen = seen.clone();
            async move {
                let path = request.uri().path().to_owned();
                let mut body = request.into_body();
                if path == "/late" {
                    // Never an answer.
                    let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    seen.send(reason.expect("a reset")).await.expect("it is seen");
                    return;
                }
                let mut out = respond.send_response(Response::new(()), false).expect("it is sent");
                let first = read(&mut body).await.expect("a piece");
                out.send_data(first, false).expect("it is sent");
                if path == "/instance" {
                    // The piece is not to be overtaken by the end.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    out.send_reset(Reason::ENHANCE_YOUR_CALM);
                } else {
                    let reason = std::future::poll_fn(|cx| out.poll_reset(cx)).await;
                    seen.send(reason.expect("a reset")).await.expect("it is seen");
                }
            }
        },
    )
    .await;
    let mut client = open(&stage).await;
    // The instance ends it: the client sees an error, not an end.
    let (response, mut up) = client
        .send_request(grpc(&stage, "/instance"), false)
        .expect("it is sent");
    up.send_data(Bytes::from_static(b"x"), false).expect("it is sent");
    let mut down = response.await.expect("a head").into_body();
    assert_eq!(read(&mut down).await.as_deref(), Some(&b"x"[..]));
    let error = down.data().await.expect("not an end").expect_err("an error");
    assert!(error.is_reset(), "{error}");
    stage.in_flight(0).await;
    // The client ends it, with a body and before any answer.
    client = client.ready().await.expect("it is ready");
    let (response, mut up) = client.send_request(grpc(&stage, "/client"), false).expect("it is sent");
    up.send_data(Bytes::from_static(b"x"), false).expect("it is sent");
    let mut down = response.await.expect("a head").into_body();
    assert_eq!(read(&mut down).await.as_deref(), Some(&b"x"[..]));
    up.send_reset(Reason::CANCEL);
    assert!(tokio::time::timeout(Duration::from_secs(5), ends.recv()).await.is_ok());
    stage.in_flight(0).await;
    client = client.ready().await.expect("it is ready");
    let (response, mut up) = client.send_request(grpc(&stage, "/late"), false).expect("it is sent");
    stage.in_flight(1).await;
    up.send_reset(Reason::CANCEL);
    assert!(tokio::time::timeout(Duration::from_secs(5), ends.recv()).await.is_ok());
    drop(response);
    stage.in_flight(0).await;
    let records = stage.records(3).await;
    assert_eq!(records[2].status, 499);
}

#[tokio::test]
async fn an_instance_that_goes_away_finishes_and_is_connected_to_anew() {
    let stage = ready_stage(&settings()).await;
    let instance = Instance::start(&stage, server::Builder::new(), 2, echo).await;
    let mut client = open(&stage).await;
    let (response, mut long) = client.send_request(grpc(&stage, "/long"), false).expect("it is sent");
    let mut down = response.await.expect("a head").into_body();
    for _ in 0..5 {
        client = client.ready().await.expect("it is ready");
        let (response, mut up) = client.send_request(grpc(&stage, "/short"), false).expect("it is sent");
        up.send_data(Bytes::from_static(b"x"), true).expect("it is sent");
        let response = response.await.expect("a head");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(read(&mut response.into_body()).await.as_deref(), Some(&b"x"[..]));
        // The goodbye is on its way.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    long.send_data(Bytes::from_static(b"still"), true).expect("it is sent");
    assert_eq!(read(&mut down).await.as_deref(), Some(&b"still"[..]));
    assert!(instance.connections() >= 3, "{}", instance.connections());
    stage.in_flight(0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let stage = ready_stage(&settings()).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let _instance = Instance::start(
        &stage,
        server::Builder::new(),
        usize::MAX,
        move |(request, mut respond)| {
            let count = count.clone();
            async move {
                let endless = request.uri().path() == "/endless";
                let mut out = respond.send_response(Response::new(()), false).expect("it is sent");
                loop {
                    out.reserve_capacity(1 << 14);
                    match std::future::poll_fn(|cx| out.poll_capacity(cx)).await {
                        Some(Ok(length)) => {
                            if out.send_data(Bytes::from(vec![0; length]), !endless).is_err() || !endless {
                                return;
                            }
                            count.fetch_add(length, Ordering::SeqCst);
                        }
                        _ => return,
                    }
                }
            }
        },
    )
    .await;
    let mut client = open(&stage).await;
    let mut unread = Vec::new();
    for _ in 0..30 {
        let (response, _) = client.send_request(grpc(&stage, "/endless"), true).expect("it is sent");
        unread.push(response.await.expect("a head").into_body());
        client = client.ready().await.expect("it is ready");
    }
    // What is on its way is bounded by windows, and ends there.
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(before < 64 << 20, "{before} bytes were taken");
    for _ in 0..10 {
        client = client.ready().await.expect("it is ready");
        let (response, _) = client.send_request(grpc(&stage, "/short"), true).expect("it is sent");
        let mut body = response.await.expect("a head").into_body();
        assert!(read(&mut body).await.is_some());
        while read(&mut body).await.is_some() {}
    }
    stage.in_flight(30).await;
    drop(unread);
    stage.in_flight(0).await;
}

#[tokio::test]
async fn the_ingress_itself_answers_grpc_with_a_status_of_http() {
    let stage = ready_stage(&settings()).await;
    let mut client = open(&stage).await;
    stage.publish(&[(R1, ready(&[]))]).await;
    let unknown = Request::post("http://nobody.a.run.localhost/s/M")
        .header("content-type", "application/grpc")
        .body(())
        .expect("a request");
    let (response, _) = client.send_request(unknown, true).expect("it is sent");
    let response = response.await.expect("a head");
    // A client of gRPC makes UNIMPLEMENTED of it.
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(!response.headers().contains_key("grpc-status"));
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
}
