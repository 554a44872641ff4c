//! Clients that come back: the cookie, the instance that it names, and what goes before it.

use http::header;
use model::Protocol;

use crate::{
    body::{empty, full, piped},
    client::{Answer, Client, VIAS, Via},
    server::Server,
    stage::{Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";
const R2: &str = "hello-00002-bbb";

fn settings(session_affinity: bool) -> Settings {
    Settings {
        concurrency: 1,
        session_affinity,
        ..Settings::default()
    }
}

async fn ask(stage: &Stage, via: Via, cookie: Option<&str>) -> Answer {
    let mut client = Client::open(stage, via).await;
    let mut request = client.request("GET", "/");
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, format!("theme=dark; {cookie}"));
    }
    client.send(request.body(empty()).expect("a request")).await
}

/// The cookie of an answer, without its attributes.
fn cookie(answer: &Answer) -> Option<String> {
    let set = answer.headers.get(header::SET_COOKIE)?.to_str().expect("text");
    assert!(set.contains("; Max-Age=2592000; Path=/; HttpOnly"), "{set}");
    assert_eq!(answer.headers[header::CACHE_CONTROL], "private");
    let value = set.split(';').next().expect("a value");
    assert!(value.starts_with("GAESA="), "{set}");
    Some(value.to_owned())
}

#[tokio::test]
async fn a_client_comes_back_to_its_instance() {
    let two = Server::saying("two").await;
    // An answer to `/hold` never ends, so that the instance is full.
    let one = Server::start(Protocol::Http1, |request| async move {
        if request.uri().path() == "/hold" {
            let (sender, body) = piped();
            std::mem::forget(sender);
            return http::Response::new(body);
        }
        http::Response::new(full("one"))
    })
    .await;
    let stage = Stage::set();
    stage.place(id(1), &one);
    stage.place(id(2), &two);
    stage.route(&[(R1, 100, None)], &settings(true)).await;
    stage.publish(&[(R1, ready(&[1, 2]))]).await;
    for via in VIAS {
        let mut other = Client::open(&stage, Via::H2c).await;
        let request = other.request("GET", "/hold").body(empty()).expect("a request");
        let holding = other.begin(request).await.expect("a head");
        let answer = ask(&stage, via, None).await;
        assert_eq!(answer.text, "two", "{via:?}");
        let mine = cookie(&answer).expect("a cookie");
        drop((holding, other));
        stage.in_flight(0).await;
        // Both are free: without the cookie it would be the first.
        assert_eq!(ask(&stage, via, None).await.text, "one");
        for _ in 0..3 {
            let answer = ask(&stage, via, Some(&mine)).await;
            assert_eq!((answer.text.as_str(), cookie(&answer)), ("two", None), "{via:?}");
        }
    }
    // Its instance is gone: another, and another cookie.
    let answer = ask(&stage, Via::Http1, None).await;
    let mine = cookie(&answer).expect("a cookie");
    assert_eq!(answer.text, "one");
    stage.publish(&[(R1, ready(&[2]))]).await;
    let answer = ask(&stage, Via::Http1, Some(&mine)).await;
    assert_eq!(answer.text, "two");
    let next = cookie(&answer).expect("a new one");
    assert_ne!(next, mine);
    let answer = ask(&stage, Via::Http1, Some(&next)).await;
    assert_eq!((answer.text.as_str(), cookie(&answer)), ("two", None));

    stage.route(&[(R1, 100, None)], &settings(false)).await;
    assert_eq!(cookie(&ask(&stage, Via::Http1, Some("GAESA=x")).await), None);
}

#[tokio::test]
async fn affinity_goes_before_the_split() {
    let (one, two) = (Server::saying("one").await, Server::saying("two").await);
    let stage = Stage::set();
    stage.place(id(1), &one);
    stage.place(id(2), &two);
    stage.route(&[(R1, 50, None), (R2, 50, None)], &settings(true)).await;
    stage.publish(&[(R1, ready(&[1])), (R2, ready(&[2]))]).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let first = ask(&stage, Via::Http1, None).await;
        let mine = cookie(&first).expect("a cookie");
        for _ in 0..3 {
            let again = ask(&stage, Via::Http1, Some(&mine)).await;
            assert_eq!((&again.text, cookie(&again)), (&first.text, None));
        }
        seen.insert(first.text);
    }
    assert_eq!(seen.len(), 2, "those without a cookie are split");
}
