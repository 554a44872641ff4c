//! Clients that mean no good, or say only half of it: raw bytes in, what came out and what the instance saw.

use std::{sync::Arc, time::Duration};

use homerun_ingress::listen::Limits;
use http::Response;
use http_body_util::BodyExt as _;
use model::Protocol;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{
    body::{chunk, empty, full, piped},
    client::{Client, Via},
    server::Server,
    stage::{Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";

type Heard = Arc<std::sync::Mutex<Vec<String>>>;

/// A stage whose one instance notes every request that it sees: method, target, body.
async fn noting(limits: Limits) -> (Stage, Server, Heard) {
    let heard = Heard::default();
    let noted = heard.clone();
    let server = Server::start(Protocol::Http1, move |request| {
        let noted = noted.clone();
        async move {
            let (parts, body) = request.into_parts();
            let host = parts.headers["host"].to_str().expect("text").to_owned();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes);
            let body = body.map_or("broken".to_owned(), |b| String::from_utf8_lossy(&b).into_owned());
            let line = format!("{} {} {host} [{body}]", parts.method, parts.uri);
            noted.lock().expect("lock").push(line);
            Response::new(full("ok"))
        }
    })
    .await;
    let stage = Stage::set_with(limits);
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    (stage, server, heard)
}

/// Sends the bytes and reads until the server closes or is silent for a while. `HOST` stands for the service's host.
async fn say(stage: &Stage, text: &str) -> String {
    let mut stream = TcpStream::connect(stage.http).await.expect("connects");
    let text = text.replace("HOST", &stage.host());
    stream.write_all(text.as_bytes()).await.expect("it is sent");
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    let silence = Duration::from_millis(300);
    while let Ok(Ok(length)) = tokio::time::timeout(silence, stream.read(&mut buffer)).await {
        if length == 0 {
            break;
        }
        said.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn ambiguous_framing_is_refused_or_has_one_meaning() {
    let (stage, _server, heard) = noting(Limits::default()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n";
    let refused = [
        // Two lengths that differ.
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0, 44\r\n\r\n",
        // No number.
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0x10\r\n\r\n",
        // Codings that do not end in chunked.
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        // A field name with a space or a control before the colon, a folded line.
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding\x0b: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // HTTP/1.0 has no chunks.
        "POST / HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // Which host?
        "GET / HTTP/1.1\r\nHost: HOST\r\nHost: other\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://user@HOST/ HTTP/1.1\r\nHost: HOST\r\n\r\n",
        // No request at all.
        "GET / HTTP/9.9\r\nHost: HOST\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: HOST\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01",
        "GET / HTTP/1.1\r\nHost: HOST\r\nX: a\x00b\r\n\r\n",
    ];
    for head in refused {
        let said = say(&stage, &format!("{head}{smuggled}")).await;
        assert!(
            said.starts_with("HTTP/1.1 400") || said.starts_with("HTTP/1.0 400"),
            "{head:?} was answered {said:?}"
        );
        let answers = said.matches("HTTP/1.").count();
        let smuggled = heard.lock().expect("lock").iter().any(|line| line.contains("smuggled"));
        // A head that is understood and refused by us leaves the connection as it was: what follows is the client's
        // own next request.
        let ours = said.contains("Bad request:");
        assert!(ours || (answers == 1 && !smuggled), "{head:?}: {said:?}");
        heard.lock().expect("lock").clear();
    }
    // Both a length and chunks: the chunks count, the length does not reach the instance, and the connection ends, so
    // that nothing after it can be taken for something else.
    for head in [
        "POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        let said = say(&stage, &format!("{head}{smuggled}")).await;
        let heard = std::mem::take(&mut *heard.lock().expect("lock"));
        assert_eq!(heard, [format!("POST / {} [abc]", stage.host())], "{said:?}");
        assert_eq!(said.matches("HTTP/1.1 200").count(), 1, "{said:?}");
    }
    // Chunks with extensions or in capitals mean the same on both sides.
    let head = "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0\r\n\r\n";
    say(&stage, head).await;
    let lines = std::mem::take(&mut *heard.lock().expect("lock"));
    assert_eq!(lines, [format!("POST / {} [abc]", stage.host())]);
    // A chunk's size that is none breaks the body off.
    for size in ["zz", "-1", "ffffffffffffffffff", "3 abc"] {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nabc\r\n0\r\n\r\n{smuggled}"
        );
        let said = say(&stage, &head).await;
        assert!(!said.contains(" 200 "), "{size}: {said}");
        let lines = std::mem::take(&mut *heard.lock().expect("lock"));
        assert!(lines.iter().all(|line| line.ends_with("[broken]")), "{lines:?}");
    }
    stage.in_flight(0).await;
}

#[tokio::test]
async fn the_absolute_form_names_the_host() {
    let (stage, _server, heard) = noting(Limits::default()).await;
    let said = say(&stage, "GET http://HOST/a?b HTTP/1.1\r\nHost: elsewhere\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let lines = heard.lock().expect("lock").clone();
    assert_eq!(lines, [format!("GET /a?b {} []", stage.host())]);
    let said = say(&stage, "GET http://elsewhere/ HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 404"), "{said}");

    let mut client = Client::open(&stage, Via::Tls2).await;
    let differing = client
        .request("GET", "/")
        .header("host", "elsewhere")
        .body(empty())
        .expect("a request");
    assert_eq!(client.send(differing).await.status, 400);
    let same = client
        .request("GET", "/")
        .header("host", stage.host())
        .body(empty())
        .expect("a request");
    assert_eq!(client.send(same).await.status, 200);
}

#[tokio::test]
async fn connect_is_refused_and_h2c_is_not_taken_up() {
    let (stage, _server, heard) = noting(Limits::default()).await;
    let said = say(&stage, "CONNECT HOST:443 HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 405"), "{said}");
    assert!(heard.lock().expect("lock").is_empty());
    let h2c = "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert!(say(&stage, h2c).await.starts_with("HTTP/1.1 200"));
    stage.records(2).await;
}

#[tokio::test]
async fn what_follows_a_declined_upgrade_is_a_request_of_its_own() {
    let (stage, _server, heard) = noting(Limits::default()).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    // The instance answers 200: had the bytes behind the head gone to it unread, it would have taken them for a request
    // that nobody counted. Both must be seen and recorded.
    let two = format!("GET /one HTTP/1.1\r\nHost: HOST\r\n{upgrade}\r\nGET /two HTTP/1.1\r\nHost: HOST\r\n\r\n");
    let said = say(&stage, &two).await;
    assert_eq!(said.matches("HTTP/1.1 200").count(), 2, "{said}");
    let host = stage.host();
    let lines = std::mem::take(&mut *heard.lock().expect("lock"));
    assert_eq!(lines, [format!("GET /one {host} []"), format!("GET /two {host} []")]);
    // With a body it is no upgrade at all: where the body ends would be each side's own guess.
    for body in [
        "Content-Length: 3\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        let said = say(&stage, &format!("POST / HTTP/1.1\r\nHost: HOST\r\n{upgrade}{body}")).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        let lines = std::mem::take(&mut *heard.lock().expect("lock"));
        assert_eq!(lines, [format!("POST / {host} [abc]")]);
    }
    assert!(stage.records(4).await.iter().all(|record| record.status == 200));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (stage, _server, heard) = noting(Limits::default()).await;
    let three: String = ["a", "b", "c"]
        .map(|path| format!("POST /{path} HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\n{path}"))
        .concat();
    let said = say(&stage, &three).await;
    assert_eq!(said.matches("HTTP/1.1 200").count(), 3, "{said}");
    let host = stage.host();
    let lines = std::mem::take(&mut *heard.lock().expect("lock"));
    assert_eq!(
        lines,
        ["a", "b", "c"].map(|path| format!("POST /{path} {host} [{path}]"))
    );
    // After `Connection: close` nothing more is read.
    let closing = "GET /last HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n";
    let said = say(&stage, &format!("{closing}{closing}")).await;
    assert_eq!(said.matches("HTTP/1.1 200").count(), 1, "{said}");
    assert!(said.to_lowercase().contains("connection: close"), "{said}");
}

#[tokio::test]
async fn a_client_that_ends_its_side_is_taken_to_have_left() {
    let stage = Stage::set();
    let server = Server::slow(Duration::from_mins(1)).await;
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    let mut stream = TcpStream::connect(stage.http).await.expect("connects");
    let ask = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", stage.host());
    stream.write_all(ask.as_bytes()).await.expect("it is sent");
    stage.in_flight(1).await;
    stream.shutdown().await.expect("its side ends");
    stage.in_flight(0).await;
    assert_eq!(stage.records(1).await[0].status, 499);
}

#[tokio::test]
async fn a_body_is_asked_for_when_the_instance_reads_it() {
    let (stage, _server, heard) = noting(Limits::default()).await;
    let mut stream = TcpStream::connect(stage.http).await.expect("connects");
    let host = stage.host();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("it is sent");
    let mut buffer = [0; 1024];
    let length = stream.read(&mut buffer).await.expect("an answer");
    assert_eq!(&buffer[..length], b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.expect("it is sent");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("an answer");
    assert!(rest.starts_with("HTTP/1.1 200"), "{rest}");
    let lines = heard.lock().expect("lock").clone();
    assert_eq!(lines, [format!("POST / {host} [abc]")]);

    // What will be refused is not asked for.
    let said = say(
        &stage,
        "POST / HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    )
    .await;
    assert!(said.starts_with("HTTP/1.1 404"), "{said}");
}

#[tokio::test]
async fn silent_and_half_open_clients_are_cut_off() {
    let quiet = Duration::from_millis(300);
    let limits = Limits {
        quiet,
        handshake: quiet,
        ..Limits::default()
    };
    let (stage, _server, _heard) = noting(limits).await;
    let host = stage.host();
    let halves = [
        (stage.http, String::new()),
        (stage.http, "P".to_owned()),
        (stage.http, "PRI * HT".to_owned()),
        (stage.http, format!("GET / HTTP/1.1\r\nHost: {host}\r\n")),
        (stage.http, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\nGET / HT")),
        (stage.http, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        (stage.https, String::new()),
        (stage.https, "\x16\x03\x01".to_owned()),
    ];
    let mut waits = tokio::task::JoinSet::new();
    for (addr, half) in halves {
        waits.spawn(async move {
            let mut stream = TcpStream::connect(addr).await.expect("connects");
            stream.write_all(half.as_bytes()).await.expect("it is sent");
            let before = Instant::now();
            let mut rest = Vec::new();
            let read = tokio::time::timeout(quiet * 10, stream.read_to_end(&mut rest));
            // A reset is an end too.
            drop(read.await.unwrap_or_else(|_| panic!("{half:?} is still open")));
            let took = before.elapsed();
            assert!(took >= quiet / 2 && took < quiet * 4, "{half:?}: {took:?}");
        });
    }
    while let Some(ended) = waits.join_next().await {
        ended.expect("it was cut off");
    }

    // A request that lasts longer is not silence.
    let (stage, _, _) = noting(limits).await;
    let slow = Server::slow(quiet * 5).await;
    stage.place(id(1), &slow);
    for via in [Via::Http1, Via::H2c, Via::Tls1, Via::Tls2] {
        assert_eq!(stage.get(via, "/").await.text, "slow", "{via:?}");
    }
}

#[tokio::test]
async fn connections_are_bounded() {
    let limits = Limits {
        connections: 4,
        ..Limits::default()
    };
    let (stage, _server, _heard) = noting(limits).await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(
            TcpStream::connect(stage.http)
                .await
                .expect("the kernel's queue takes it"),
        );
    }
    let answered = async {
        let mut stream = TcpStream::connect(stage.http).await.expect("connects");
        let ask = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", stage.host());
        stream.write_all(ask.as_bytes()).await.expect("it is sent");
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.expect("an answer");
        first
    };
    let mut answered = std::pin::pin!(answered);
    let early = tokio::time::timeout(Duration::from_millis(200), answered.as_mut()).await;
    assert!(early.is_err(), "there is no room");
    drop(open);
    let late = tokio::time::timeout(Duration::from_secs(5), answered).await;
    assert_eq!(&late.expect("there is room again"), b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_slot() {
    let stage = Stage::set();
    let server = Server::start(Protocol::Http1, |_| async {
        let (sender, body) = piped();
        tokio::spawn(async move {
            let piece = bytes::Bytes::from(vec![b'x'; 1 << 16]);
            while sender.send(chunk(piece.clone())).await.is_ok() {}
        });
        Response::new(body)
    })
    .await;
    stage.place(id(1), &server);
    let settings = Settings {
        timeout: 1,
        ..Settings::default()
    };
    stage.route(&[(R1, 100, None)], &settings).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    for via in [Via::Http1, Via::H2c] {
        let mut client = Client::open(&stage, via).await;
        let request = client.request("GET", "/").body(empty()).expect("a request");
        let unread = client.begin(request).await.expect("a head");
        stage.in_flight(1).await;
        let before = Instant::now();
        stage.in_flight(0).await;
        let took = before.elapsed();
        // At the request's timeout, whatever the connection's own limits are.
        assert!(
            took >= Duration::from_millis(900) && took < Duration::from_secs(3),
            "{via:?}: {took:?}"
        );
        assert_eq!(server.now.load(std::sync::atomic::Ordering::SeqCst), 0, "{via:?}");
        drop((client, unread));
    }
    for record in stage.records(2).await {
        assert!(record.refusal.expect("a reason").contains("timeout of 1 s"));
    }
}
