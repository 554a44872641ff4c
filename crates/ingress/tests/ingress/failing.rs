//! Instances that answer badly, late or not at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use model::{Fate, Protocol};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::Instant,
};

use crate::{
    body::{chunk, empty, full, next, piped},
    client::{Client, VIAS, Via, whole},
    server::Server,
    stage::{Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";
const NO_ANSWER: &str =
    "The request failed because either the HTTP response was malformed or connection to the instance had an error.";

/// A server that reads a head and then says these bytes and closes.
async fn rude(stage: &Stage, says: &'static [u8]) -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    stage.place_at(id(1), listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(says).await;
        }
    })
}

async fn ready_stage(settings: &Settings) -> Stage {
    let stage = Stage::set();
    stage.route(&[(R1, 100, None)], settings).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    stage
}

#[tokio::test]
async fn no_answer_is_503() {
    let cases: [&[u8]; 4] = [
        b"",
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ];
    for says in cases {
        let stage = ready_stage(&Settings::default()).await;
        let server = rude(&stage, says).await;
        for via in VIAS {
            let answer = stage.get(via, "/").await;
            let said = String::from_utf8_lossy(says);
            assert_eq!(
                (answer.status, answer.text.as_str()),
                (503, NO_ANSWER),
                "{via:?} {said}"
            );
        }
        let record = &stage.records(4).await[0];
        let refusal = record.refusal.as_deref().expect("a reason");
        assert!(refusal.contains(id(1).as_str()), "{refusal}");
        server.abort();
        stage.in_flight(0).await;
    }
}

#[tokio::test]
async fn a_closed_port_is_503_and_out_of_memory_500() {
    let stage = ready_stage(&Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    stage.place_at(id(1), listener.local_addr().expect("an address"));
    drop(listener);
    let answer = stage.get(Via::Http1, "/").await;
    assert_eq!((answer.status, answer.text.as_str()), (503, NO_ANSWER));
    let limit_bytes = 256 << 20;
    stage.fate(id(1), Fate::OutOfMemory { limit_bytes });
    for via in VIAS {
        assert_eq!(stage.get(via, "/").await.status, 500, "{via:?}");
    }
    let record = &stage.records(5).await[4];
    let refusal = record.refusal.as_deref().expect("a reason");
    assert!(refusal.contains("256 MiB"), "{refusal}");
}

#[tokio::test]
async fn an_ended_instance_loses_only_what_it_had_begun() {
    let limit_bytes = 256 << 20;
    for fate in [Fate::Ended, Fate::OutOfMemory { limit_bytes }] {
        let stage = Arc::new(ready_stage(&Settings::default()).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        stage.place_at(id(1), listener.local_addr().expect("an address"));
        drop(listener);
        stage.fate(id(1), fate);
        let asking = stage.clone();
        let asked = tokio::spawn(async move { asking.get(Via::Http1, "/").await });
        tokio::time::sleep(Duration::from_millis(40)).await;
        let server = Server::slow(Duration::ZERO).await;
        stage.place(id(2), &server);
        stage.publish(&[(R1, ready(&[2]))]).await;
        assert_eq!(asked.await.expect("it asks").status, 200, "{fate:?}");
        let record = &stage.records(1).await[0];
        assert_eq!((record.status, record.instance.clone()), (200, Some(id(2))));
        stage.in_flight(0).await;
    }
}

#[tokio::test]
async fn out_of_memory_that_is_seen_a_little_later_is_still_500() {
    let stage = Arc::new(ready_stage(&Settings::default()).await);
    let server = rude(&stage, b"").await;
    let asking = stage.clone();
    let asked = tokio::spawn(async move { asking.get(Via::Http1, "/").await });
    tokio::time::sleep(Duration::from_millis(40)).await;
    stage.fate(id(1), Fate::OutOfMemory { limit_bytes: 1 << 20 });
    assert_eq!(asked.await.expect("it asks").status, 500);
    server.abort();
}

#[tokio::test]
async fn a_slow_server_is_504() {
    let settings = Settings {
        timeout: 1,
        ..Settings::default()
    };
    let stage = ready_stage(&settings).await;
    let server = Server::slow(Duration::from_mins(1)).await;
    stage.place(id(1), &server);
    for via in [Via::Http1, Via::Tls2] {
        let before = Instant::now();
        let answer = stage.get(via, "/").await;
        let took = before.elapsed();
        assert!(
            took >= Duration::from_secs(1) && took < Duration::from_secs(3),
            "{took:?}"
        );
        assert_eq!(answer.status, 504, "{via:?}");
        assert_eq!(answer.text, "upstream request timeout");
    }
    stage.in_flight(0).await;
    let record = &stage.records(2).await[0];
    assert_eq!((record.status, record.instance.clone()), (504, Some(id(1))));
}

#[tokio::test]
async fn a_body_that_has_begun_ends_cleanly_at_the_timeout() {
    let settings = Settings {
        timeout: 1,
        ..Settings::default()
    };
    let stage = ready_stage(&settings).await;
    let server = Server::start(Protocol::Http1, |_| async {
        let (sender, body) = piped();
        tokio::spawn(async move {
            for _ in 0..100 {
                if sender.send(chunk("tick ")).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        http::Response::new(body)
    })
    .await;
    stage.place(id(1), &server);
    for via in VIAS {
        let answer = stage.get(via, "/").await;
        assert_eq!(answer.status, 200);
        let ticks = answer.text.matches("tick").count();
        assert!((5..=12).contains(&ticks), "{ticks} ticks in 1 s, via {via:?}");
    }
    stage.in_flight(0).await;
    for record in stage.records(4).await {
        assert_eq!(record.status, 200);
        assert!(record.refusal.expect("a reason").contains("timeout of 1 s"));
    }
}

#[tokio::test]
async fn a_broken_body_is_an_error_for_the_client() {
    let stage = ready_stage(&Settings::default()).await;
    let says = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
    let server = rude(&stage, says).await;
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let request = client.request("GET", "/").body(empty()).expect("a request");
        let response = client.begin(request).await.expect("a head");
        let whole = http_body_util::BodyExt::collect(response.into_body()).await;
        assert!(whole.is_err(), "{via:?}");
    }
    for record in stage.records(4).await {
        assert_eq!(record.response_bytes, 9);
        assert!(record.refusal.expect("a reason").contains("broke off"));
    }
    stage.in_flight(0).await;
    server.abort();
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_frees_the_slot() {
    for via in VIAS {
        let stage = ready_stage(&Settings::default()).await;
        let (hold, held) = tokio::sync::mpsc::channel(1);
        let server = Server::start(Protocol::Http1, move |_| {
            let hold = hold.clone();
            async move {
                let (sender, body) = piped();
                sender.send(chunk("first")).await.expect("it is read");
                hold.send(sender).await.expect("the test holds it");
                http::Response::new(body)
            }
        })
        .await;
        stage.place(id(1), &server);
        let mut client = Client::open(&stage, via).await;
        let request = client.request("GET", "/").body(empty()).expect("a request");
        let mut body = client.begin(request).await.expect("a head").into_body();
        assert_eq!(next(&mut body).await.as_deref(), Some("first"));
        stage.in_flight(1).await;
        drop((client, body));
        stage.in_flight(0).await;
        let record = &stage.records(1).await[0];
        assert_eq!((record.status, record.response_bytes), (200, 5), "{via:?}");
        assert!(record.refusal.as_deref().expect("a reason").contains("client left"));
        drop(held);
    }
}

/// Answers each connection's first request and closes on the second one, or on the first where `at_once`.
async fn forgetful(stage: &Stage) -> (tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    stage.place_at(id(1), listener.local_addr().expect("an address"));
    let heads = Arc::new(AtomicUsize::new(0));
    let seen = heads.clone();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                seen.fetch_add(1, Ordering::SeqCst);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
                if stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (task, heads)
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_tried_once_more() {
    let stage = ready_stage(&Settings::default()).await;
    let (server, heads) = forgetful(&stage).await;
    let mut client = Client::open(&stage, Via::Http1).await;
    for _ in 0..5 {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "ok"));
    }
    assert_eq!(heads.load(Ordering::SeqCst), 9, "all but the first came twice");

    // What may have been begun is not repeated.
    let post = client.request("POST", "/").body(full("x")).expect("a request");
    let answer = client.send(post).await;
    assert_eq!((answer.status, answer.text.as_str()), (503, NO_ANSWER));
    let post = client.request("POST", "/").body(full("x")).expect("a request");
    assert_eq!(client.send(post).await.status, 200, "on a new connection");
    server.abort();
}

#[tokio::test]
async fn a_length_over_32_mib_is_refused_and_a_stream_is_not() {
    let stage = ready_stage(&Settings::default()).await;
    let size = (32 << 20) + 1;
    let server = Server::start(Protocol::Http1, move |request| async move {
        let bytes = vec![b'x'; size];
        if request.uri().path() == "/known" {
            return http::Response::new(full(bytes));
        }
        let (sender, body) = piped();
        sender.send(chunk(bytes)).await.expect("it is read");
        http::Response::new(body)
    })
    .await;
    stage.place(id(1), &server);
    let known = stage.get(Via::Http1, "/known").await;
    assert_eq!(known.status, 500);
    assert!(known.text.contains("32 MiB"), "{}", known.text);
    let mut client = Client::open(&stage, Via::Http1).await;
    let request = client.request("GET", "/").body(empty()).expect("a request");
    let streamed = whole(client.begin(request).await.expect("a head")).await;
    assert_eq!((streamed.status, streamed.text.len()), (200, size));
}

/// The client sends on after it was refused, as curl may, and reads only then.
#[tokio::test]
async fn a_client_that_is_refused_in_its_upload_reads_why() {
    let stage = ready_stage(&Settings::default()).await;
    let server = Server::start(Protocol::Http1, |request| async move {
        let _ = http_body_util::BodyExt::collect(request.into_body()).await;
        http::Response::new(empty())
    })
    .await;
    stage.place(id(1), &server);
    let piece = [b"100000\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
    for round in 0..5 {
        let mut client = tokio::net::TcpStream::connect(stage.http).await.expect("connects");
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\n\r\n",
            stage.host()
        );
        client.write_all(head.as_bytes()).await.expect("written");
        for sent in 0..40 {
            // In some rounds it pauses after the refusal, as one does that had not its turn on the processor.
            if sent == 35 && round % 2 == 1 {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            client
                .write_all(&piece)
                .await
                .expect("what comes too late is taken, and dropped");
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("read");
        assert!(
            answer.starts_with(b"HTTP/1.1 413 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}
