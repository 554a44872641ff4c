//! What passes through: header fields, bodies as they come, trailers.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use model::Protocol;
use tokio::sync::mpsc;

use crate::{
    body::{chunk, empty, full, next, piped},
    client::{Client, VIAS, Via},
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
async fn fields_of_one_connection_do_not_pass() {
    let server = Server::mirror(Protocol::Http1).await;
    let stage = stage_with(&server, &Settings::default()).await;
    let mut client = Client::open(&stage, Via::Http1).await;
    let request = client
        .request("GET", "/")
        .header("connection", "keep-alive, X-Mine, X-Forwarded-For")
        .header("x-mine", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic eDp5")
        .header("te", "gzip, trailers")
        .header("upgrade", "h2c")
        .header("expect", "100-continue")
        .header("http2-settings", "AAAA")
        .header("x-forwarded-proto", "gopher")
        .header("x-forwarded-for", "9.9.9.9")
        .header("authorization", "Bearer mine")
        .header("cookie", "a=b")
        .body(empty())
        .expect("a request");
    let text = client.send(request).await.text;
    for gone in [
        "connection:",
        "expect",
        "x-mine",
        "keep-alive",
        "proxy-",
        "upgrade",
        "http2-",
        "gopher",
        "gzip",
    ] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    for kept in ["te: trailers\n", "authorization: Bearer mine\n", "cookie: a=b\n"] {
        assert!(text.contains(kept), "{kept} not in {text}");
    }
    assert!(text.contains("x-forwarded-for: 127.0.0.1\n"), "{text}");
    assert!(text.contains("x-forwarded-proto: http\n"), "{text}");

    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let request = client
            .request("GET", "/")
            .header("x-forwarded-for", "9.9.9.9, 8.8.8.8")
            .header("forwarded", "for=9.9.9.9")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .body(empty())
            .expect("a request");
        let text = client.send(request).await.text;
        for line in [
            "x-forwarded-for: 9.9.9.9, 8.8.8.8, 127.0.0.1\n",
            "forwarded: for=9.9.9.9, for=\"127.0.0.1\";proto=",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
            "x-cloud-trace-context: 4bf92f3577b34da6a3ce929d0e0e4736/67667974448284343;o=1\n",
        ] {
            assert!(text.contains(line), "{via:?}: {line} not in {text}");
        }
    }
}

#[tokio::test]
async fn answers_lose_their_connection_fields_and_keep_cookies_private() {
    let server = Server::start(Protocol::Http1, |_| async {
        Response::builder()
            .status(418)
            .header("connection", "x-inner")
            .header("x-inner", "1")
            .header("keep-alive", "timeout=5")
            .header("set-cookie", "a=b")
            .header("set-cookie", "c=d")
            .header("x-outer", "1")
            .body(full("tea"))
            .expect("a response")
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let answer = stage.get(via, "/").await;
        assert_eq!((answer.status, answer.text.as_str()), (418, "tea"), "{via:?}");
        for gone in ["connection", "x-inner", "keep-alive", "via"] {
            assert!(!answer.headers.contains_key(gone), "{gone}, via {via:?}");
        }
        assert_eq!(answer.headers["cache-control"], "private");
        assert_eq!(answer.headers["x-outer"], "1");
        assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
    }
}

#[tokio::test]
async fn an_answer_streams() {
    let (hand, mut handed) = mpsc::channel(1);
    let server = Server::start(Protocol::Http1, move |_| {
        let hand = hand.clone();
        async move {
            let (sender, body) = piped();
            hand.send(sender).await.expect("the test takes it");
            Response::new(body)
        }
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let request = client.request("GET", "/").body(empty()).expect("a request");
        let mut body = client.begin(request).await.expect("a head").into_body();
        let sender = handed.recv().await.expect("the server's end");
        for piece in ["one", "two", "three"] {
            // The next is not sent before this one came.
            sender.send(chunk(piece)).await.expect("it is read");
            assert_eq!(next(&mut body).await.as_deref(), Some(piece), "{via:?}");
        }
        stage.in_flight(1).await;
        drop(sender);
        assert_eq!(next(&mut body).await, None);
        stage.in_flight(0).await;
    }
    let records = stage.records(4).await;
    assert!(records.iter().all(|r| r.response_bytes == 11 && r.refusal.is_none()));
}

#[tokio::test]
async fn an_upload_streams_while_the_answer_does() {
    // Says each piece back as it comes.
    let server = Server::start(Protocol::Http1, |request| async move {
        let (sender, body) = piped();
        tokio::spawn(async move {
            let mut incoming = request.into_body();
            while let Some(Ok(frame)) = incoming.frame().await {
                if let Ok(data) = frame.into_data() {
                    sender.send(chunk(data)).await.expect("it is read");
                }
            }
        });
        Response::new(body)
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let (sender, body) = piped();
        let request = client.request("POST", "/").body(body).expect("a request");
        let asked = client.begin(request);
        sender.send(chunk("one")).await.expect("it is sent");
        let mut answer = asked.await.expect("a head").into_body();
        assert_eq!(next(&mut answer).await.as_deref(), Some("one"), "{via:?}");
        for piece in ["two", "three"] {
            sender.send(chunk(piece)).await.expect("it is sent");
            assert_eq!(next(&mut answer).await.as_deref(), Some(piece), "{via:?}");
        }
        drop(sender);
        assert_eq!(next(&mut answer).await, None);
    }
    for record in stage.records(4).await {
        assert_eq!((record.request_bytes, record.response_bytes), (11, 11));
    }
}

#[tokio::test]
async fn a_request_over_32_mib_is_413() {
    let server = Server::start(Protocol::Http1, |request| async move {
        let size = match request.into_body().collect().await {
            Ok(whole) => whole.to_bytes().len().to_string(),
            Err(error) => error.to_string(),
        };
        Response::new(full(size))
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    let limit = 32 << 20;
    for via in [Via::Http1, Via::Tls2] {
        let mut client = Client::open(&stage, via).await;
        let most = client
            .request("POST", "/")
            .body(full(vec![0; limit]))
            .expect("a request");
        assert_eq!(client.send(most).await.text, limit.to_string(), "{via:?}");

        // Told by its length, before a byte of it is read.
        let (_never, body) = piped();
        let known = client
            .request("POST", "/")
            .header("content-length", (limit + 1).to_string())
            .body(body)
            .expect("a request");
        let answer = client.begin(known).await.expect("an answer");
        assert_eq!(answer.status(), 413, "{via:?}");

        let mut client = Client::open(&stage, via).await;
        let (sender, body) = piped();
        let unknown = client.request("POST", "/").body(body).expect("a request");
        let asked = tokio::spawn(client.begin(unknown));
        let piece = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..33 {
            if sender.send(chunk(piece.clone())).await.is_err() {
                break;
            }
        }
        let answer = asked.await.expect("it asks").expect("an answer");
        assert_eq!(answer.status(), 413, "{via:?}");
        drop(sender);
    }
    stage.in_flight(0).await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let server = Server::start(Protocol::Http1, |request| async move {
        let whole = request.into_body().collect().await.expect("a whole body");
        let sum = whole.trailers().and_then(|t| t.get("x-sum")).cloned();
        let (sender, body) = piped();
        sender.send(chunk("body")).await.expect("it is read");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", sum.unwrap_or(HeaderValue::from_static("none")));
        sender.send(Frame::trailers(trailers)).await.expect("it is read");
        Response::builder()
            .header("trailer", "x-sum")
            .body(body)
            .expect("a response")
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let (sender, body) = piped();
        sender.send(chunk("x")).await.expect("it is sent");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("42"));
        sender.send(Frame::trailers(trailers)).await.expect("it is sent");
        drop(sender);
        let request = client
            .request("POST", "/")
            .header("te", "trailers")
            .header("trailer", "x-sum")
            .body(body)
            .expect("a request");
        let response = client.begin(request).await.expect("a head");
        let whole = response.into_body().collect().await.expect("a whole body");
        let sum = whole.trailers().and_then(|t| t.get("x-sum"));
        assert_eq!(sum, Some(&HeaderValue::from_static("42")), "{via:?}");
    }
}

#[tokio::test]
async fn an_instance_that_speaks_http2_gets_http2() {
    let settings = Settings {
        protocol: Protocol::H2c,
        ..Settings::default()
    };
    let server = Server::mirror(Protocol::H2c).await;
    let stage = stage_with(&server, &settings).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        for _ in 0..10 {
            let answer = client.get("/path?q").await;
            assert_eq!(answer.status, 200, "{via:?}: {answer:?}");
            let first = format!("GET http://{}/path?q HTTP/2.0\n", stage.host());
            assert!(answer.text.starts_with(&first), "{via:?}: {}", answer.text);
            assert!(answer.text.contains("x-forwarded-for: 127.0.0.1\n"));
        }
    }
    let connections = server.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!(connections <= 2, "{connections}: one for each thread");
}

#[tokio::test]
async fn head_and_empty_answers_end_at_once() {
    let server = Server::start(Protocol::Http1, |request| async move {
        let status = if request.method() == "HEAD" { 200 } else { 204 };
        let body = if status == 200 { full("never sent") } else { empty() };
        Response::builder().status(status).body(body).expect("a response")
    })
    .await;
    let stage = stage_with(&server, &Settings::default()).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        for (method, status) in [("HEAD", 200), ("DELETE", 204), ("HEAD", 200)] {
            let request = client.request(method, "/").body(empty()).expect("a request");
            let answer = client.send(request).await;
            assert_eq!((answer.status, answer.text.as_str()), (status, ""), "{via:?}");
        }
        stage.in_flight(0).await;
    }
    for record in stage.records(12).await {
        assert_eq!(record.refusal, None);
        assert!(record.latency_micros < 2_000_000);
    }
}
