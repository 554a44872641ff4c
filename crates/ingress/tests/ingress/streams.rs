//! Streams that last, bodies that nobody wants, answers that come early.

use std::{sync::atomic::Ordering, time::Duration};

use http::{Response, header};
use http_body_util::BodyExt as _;
use model::{Activity, Protocol};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    body::{chunk, empty, full, next, piped},
    client::{Client, VIAS, Via, whole},
    server::Server,
    stage::{Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";

async fn stage_with(server: &Server, settings: &Settings) -> Stage {
    let stage = Stage::set();
    stage.place(id(1), server);
    stage.route(&[(R1, 100, None)], settings).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    stage
}

#[tokio::test]
async fn events_pass_at_once_and_a_silent_stream_is_a_request() {
    let (hand, mut handed) = mpsc::channel(1);
    let server = Server::start(Protocol::Http1, move |_| {
        let hand = hand.clone();
        async move {
            let (sender, body) = piped();
            hand.send(sender).await.expect("the test takes it");
            Response::builder()
                .header(header::CONTENT_TYPE, "text/event-stream")
                .body(body)
                .expect("a response")
        }
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let request = client.request("GET", "/").body(empty()).expect("a request");
        let answer = client.begin(request).await.expect("a head before any event");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut body = answer.into_body();
        let events = handed.recv().await.expect("the server's end");
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            events.send(chunk(event)).await.expect("it is read");
            assert_eq!(next(&mut body).await.as_deref(), Some(event), "{via:?}");
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
        stage.in_flight(1).await;
        assert_eq!(stage.activity().last(), Some(&(id(1), Activity::Busy)), "{via:?}");
        // The client leaves: the slot is free and the instance is told, though it says nothing more.
        drop((body, client));
        stage.in_flight(0).await;
        tokio::time::timeout(Duration::from_secs(5), events.closed())
            .await
            .unwrap_or_else(|_| panic!("{via:?}: the instance was not told"));
    }
    for record in stage.records(4).await {
        assert!(record.refusal.expect("a reason").contains("client left"));
    }
}

#[tokio::test]
async fn a_stream_ends_at_the_timeout_without_an_error() {
    let server = Server::start(Protocol::Http1, |_| async {
        let (sender, body) = piped();
        tokio::spawn(async move {
            while sender.send(chunk("tick")).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Response::new(body)
    })
    .await;
    let settings = Settings {
        timeout: 1,
        ..Settings::default()
    };
    let stage = stage_with(&server, &settings).await;
    for via in VIAS {
        let answer = stage.get(via, "/").await;
        assert_eq!(answer.status, 200, "{via:?}");
        assert!(answer.text.len() >= 5 * 4, "{via:?}: {}", answer.text);
        stage.in_flight(0).await;
    }
}

#[tokio::test]
async fn a_body_that_the_instance_does_not_want_is_not_asked_for() {
    let server = Server::start(Protocol::Http1, |request| async move {
        if request.uri().path() == "/refuse" {
            return Response::builder().status(403).body(full("no")).expect("a response");
        }
        let whole = request.into_body().collect().await.expect("a body");
        Response::new(full(whole.to_bytes()))
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(stage.http).await.expect("connects");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
            stage.host()
        );
        stream.write_all(head.as_bytes()).await.expect("it is sent");
        let mut first = vec![0; 12];
        stream.read_exact(&mut first).await.expect("an answer");
        (stream, String::from_utf8(first).expect("text"))
    };
    let (mut stream, first) = ask("/refuse").await;
    assert_eq!(first, "HTTP/1.1 403", "nothing before it");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("an answer");
    assert!(rest.ends_with("no"), "{rest}");
    let (mut stream, first) = ask("/take").await;
    assert_eq!(first, "HTTP/1.1 100");
    stream.write_all(b"abc").await.expect("it is sent");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("an answer");
    assert!(rest.contains("HTTP/1.1 200") && rest.ends_with("abc"), "{rest}");
    stage.in_flight(0).await;
}

#[tokio::test]
async fn an_instance_that_knows_no_100_gets_the_body_all_the_same() {
    let stage = Stage::set();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    stage.place_at(id(1), listener.local_addr().expect("an address"));
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut heard = Vec::new();
        while !heard.ends_with(b"abc") {
            let mut piece = [0; 1024];
            let length = stream.read(&mut piece).await.expect("bytes");
            heard.extend_from_slice(&piece[..length]);
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).await.expect("it is sent");
        String::from_utf8(heard).expect("text")
    });
    let mut client = Client::open(&stage, Via::Http1).await;
    let request = client
        .request("POST", "/")
        .header("expect", "100-continue")
        .body(full("abc"))
        .expect("a request");
    assert_eq!(client.send(request).await.text, "ok");
    assert!(server.await.expect("it serves").contains("expect: 100-continue\r\n"));
}

#[tokio::test]
async fn an_upload_ends_with_its_answer() {
    let server = Server::start(Protocol::Http1, |request| async move {
        if request.uri().path() == "/early" {
            // Answered before the body has come; nobody reads it.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_mins(1)).await;
                drop(request);
            });
            return Response::new(full("enough"));
        }
        Response::new(full("ok"))
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let (sender, body) = piped();
        let request = client.request("POST", "/early").body(body).expect("a request");
        let asked = client.begin(request);
        sender.send(chunk("begun")).await.expect("it is sent");
        let answer = whole(asked.await.expect("a head")).await;
        assert_eq!(answer.text, "enough", "{via:?}");
        stage.in_flight(0).await;
        // What comes after the answer is taken from nobody for long.
        let piece = vec![0; 1 << 16];
        let ended = async {
            while sender.send(chunk(piece.clone())).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), ended)
            .await
            .unwrap_or_else(|_| panic!("{via:?}: the upload goes on"));
        // The service is as it was.
        assert_eq!(stage.get(via, "/").await.text, "ok");
    }
    assert_eq!(server.now.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_slow_client_holds_its_slot_to_the_end_of_the_body() {
    let size = 8 << 20;
    let server = Server::start(Protocol::Http1, move |_| async move {
        Response::new(full(vec![b'x'; size]))
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let request = client.request("GET", "/").body(empty()).expect("a request");
        let mut body = client.begin(request).await.expect("a head").into_body();
        let mut got = next(&mut body).await.expect("a piece").len();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stage.in_flight(1).await;
        while let Some(piece) = next(&mut body).await {
            got += piece.len();
        }
        assert_eq!(got, size, "{via:?}");
        stage.in_flight(0).await;
    }
}
