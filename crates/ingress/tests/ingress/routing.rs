//! Which revision answers, and who may ask.

use std::collections::HashMap;

use model::{Member, Protocol};

use crate::{
    body::empty,
    client::{Client, VIAS},
    server::Server,
    stage::{OWNER, Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";
const R2: &str = "hello-00002-bbb";

#[tokio::test]
async fn a_request_reaches_its_instance_and_is_recorded_once() {
    let stage = Stage::set();
    let server = Server::mirror(Protocol::Http1).await;
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    for via in VIAS {
        let answer = stage.get(via, "/path?a=b").await;
        assert_eq!(answer.status, 200, "{via:?}: {answer:?}");
        let text = answer.text;
        assert!(text.starts_with("GET /path?a=b HTTP/1.1\n"), "{via:?}: {text}");
        for line in [
            format!("host: {}\n", stage.host()),
            "x-forwarded-for: 127.0.0.1\n".to_owned(),
            format!("x-forwarded-proto: {}\n", via.scheme()),
            format!("forwarded: for=\"127.0.0.1\";proto={}\n", via.scheme()),
            "traceparent: 00-".to_owned(),
            "x-cloud-trace-context: ".to_owned(),
        ] {
            assert!(text.contains(&line), "{via:?}: {line} in {text}");
        }
        assert!(!text.contains("via:"), "{text}");
    }
    for (record, via) in stage.records(VIAS.len()).await.iter().zip(VIAS) {
        assert_eq!(record.status, 200);
        assert_eq!(record.method, "GET");
        let url = format!("{}://{}/path?a=b", via.scheme(), stage.host());
        assert_eq!(record.url, url);
        assert_eq!(record.remote_ip, "127.0.0.1");
        assert_eq!(record.instance, Some(id(1)));
        assert_eq!(record.protocol == "HTTP/2", via.is_http2());
        assert_eq!((record.trace.len(), record.refusal.as_ref()), (32, None));
        assert!(record.response_bytes > 100, "{record:?}");
    }
    stage.in_flight(0).await;
}

#[tokio::test]
async fn half_and_half() {
    let stage = Stage::set();
    let blue = Server::saying("blue").await;
    let green = Server::saying("green").await;
    stage.place(id(1), &blue);
    stage.place(id(2), &green);
    let targets = [(R1, 50, None), (R2, 50, Some("canary"))];
    stage.route(&targets, &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1])), (R2, ready(&[2]))]).await;
    for via in VIAS {
        let mut counts: HashMap<String, u32> = HashMap::new();
        let mut client = Client::open(&stage, via).await;
        for _ in 0..400 {
            let answer = client.get("/").await;
            *counts.entry(answer.text).or_default() += 1;
        }
        // Binomial: mean 200, deviation 10; five deviations.
        let green = counts["green"];
        assert!((150..=250).contains(&green), "{via:?}: {counts:?}");
        assert_eq!(counts["blue"] + green, 400);

        client.host = format!("canary---{}", stage.host());
        for _ in 0..20 {
            assert_eq!(client.get("/").await.text, "green", "{via:?}");
        }
    }
    // One thread serves a client's requests one after another by one connection to each instance.
    for server in [&blue, &green] {
        let connections = server.connections.load(std::sync::atomic::Ordering::SeqCst);
        assert!(connections <= 4, "{connections} connections for 1,000 requests");
    }
}

#[tokio::test]
async fn unknown_hosts_and_services_without_a_revision() {
    let stage = Stage::set();
    for via in VIAS {
        let answer = stage.get(via, "/").await;
        assert_eq!(answer.status, 404, "{via:?}");
        assert!(answer.text.contains("Page not found"), "{}", answer.text);
    }
    stage.route(&[], &Settings::default()).await;
    for via in VIAS {
        let answer = stage.get(via, "/").await;
        assert_eq!(answer.status, 503, "{via:?}");
        assert!(answer.text.contains("No revision of this service is ready yet"));
    }
    let records = stage.records(8).await;
    assert!(records[0].service.is_none() && records[7].service.is_some());
    assert!(records.iter().all(|record| record.revision.is_none()));
}

#[tokio::test]
async fn only_invokers_pass_and_tokens_lose_their_signature() {
    let stage = Stage::set();
    let server = Server::mirror(Protocol::Http1).await;
    stage.place(id(1), &server);
    let settings = Settings {
        invokers: vec![Member::User("friend@example.com".to_owned())],
        ..Settings::default()
    };
    stage.route(&[(R1, 100, None)], &settings).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    let (friend, stranger) = (
        "Bearer head.friend@example~com.signature",
        "bearer head.stranger@example~com.signature",
    );
    let owner = format!("Bearer head.{}.signature", OWNER.replace('.', "~"));
    let none = "";
    // authorization, x-serverless-authorization, status
    let cases = [
        (none, none, 403),
        ("Basic eDp5", none, 403),
        ("Bearer ", none, 403),
        ("Bearer head.friend@example~com.forged", none, 401),
        ("Bearer nonsense", none, 401),
        (stranger, none, 403),
        (friend, none, 200),
        (&owner, none, 200),
        (stranger, friend, 200),
        ("Basic eDp5", friend, 200),
        (friend, stranger, 403),
    ];
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        for (authorization, serverless, status) in cases {
            let mut request = client.request("GET", "/a&b?q=1");
            if !authorization.is_empty() {
                request = request.header("authorization", authorization);
            }
            if !serverless.is_empty() {
                request = request.header("x-serverless-authorization", serverless);
            }
            let request = request.body(empty()).expect("a request");
            let answer = client.send(request).await;
            let case = format!("{via:?} {authorization} / {serverless}: {answer:?}");
            assert_eq!(answer.status, status, "{case}");
            assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401, "{case}");
            if status == 200 {
                let unsigned = |sent: &str| sent.replace("signature", "SIGNATURE_REMOVED_BY_GOOGLE");
                let own = if serverless.is_empty() {
                    unsigned(authorization)
                } else {
                    authorization.to_owned()
                };
                for (name, seen) in [
                    ("authorization", own),
                    ("x-serverless-authorization", unsigned(serverless)),
                ] {
                    let line = format!("\n{name}: {seen}");
                    assert_eq!(answer.text.contains(&line), !seen.is_empty(), "{name} of {case}");
                }
            } else {
                let page = if status == 401 {
                    "<h2>Your client does not have permission to the requested URL <code>/a&amp;b</code>.</h2>"
                } else {
                    "<h2>Your client does not have permission to get URL <code>/a&amp;b</code> from this server.</h2>"
                };
                assert!(answer.text.contains(page), "{case}");
                assert_eq!(answer.headers["content-type"], "text/html; charset=UTF-8", "{case}");
            }
        }
    }
    let records = stage.records(44).await;
    let forged = records[3].refusal.as_deref().expect("a reason");
    assert!(forged.contains("the signature does not fit"), "{forged}");
}

/// Two tokens in one field have no one who sent them; in two fields the second is the application's own.
#[tokio::test]
async fn more_than_one_token_is_refused() {
    let stage = Stage::set();
    let server = Server::mirror(Protocol::Http1).await;
    stage.place(id(1), &server);
    let settings = Settings {
        invokers: vec![Member::User("friend@example.com".to_owned())],
        ..Settings::default()
    };
    stage.route(&[(R1, 100, None)], &settings).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    let friend = "Bearer head.friend@example~com.signature";
    let stranger = "Bearer head.stranger@example~com.signature";
    let both = format!("{friend}, {stranger}");
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        for (fields, status) in [
            (&[("authorization", friend), ("authorization", stranger)][..], 401),
            (&[("authorization", friend), ("authorization", friend)], 401),
            (&[("authorization", &both)], 401),
            (
                &[
                    ("x-serverless-authorization", friend),
                    ("x-serverless-authorization", stranger),
                ],
                401,
            ),
            (
                &[
                    ("x-serverless-authorization", friend),
                    ("authorization", "Basic eDp5"),
                    ("authorization", stranger),
                ],
                200,
            ),
        ] {
            let mut request = client.request("GET", "/");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let answer = client.send(request.body(empty()).expect("a request")).await;
            assert_eq!(answer.status, status, "{via:?} {fields:?}: {answer:?}");
            if status == 200 {
                for own in ["Basic eDp5", stranger] {
                    assert!(answer.text.contains(&format!("\nauthorization: {own}\n")), "{answer:?}");
                }
            }
        }
    }
    let records = stage.records(20).await;
    let why = records[0].refusal.as_deref().expect("a reason");
    assert!(why.contains("more than one authorization field"), "{why}");
    assert!(
        records
            .iter()
            .all(|record| !format!("{record:?}").contains("friend@example~com")),
        "no token is written down"
    );
}

/// What an application does with `Authorization` is its own matter where nobody has to be known.
#[tokio::test]
async fn an_open_service_gets_what_was_sent() {
    let stage = Stage::set();
    let server = Server::mirror(Protocol::Http1).await;
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    let token = "Bearer head.friend@example~com.signature";
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        for sent in [token, "Basic eDp5", "Bearer opaque"] {
            let request = client.request("GET", "/").header("authorization", sent);
            let answer = client.send(request.body(empty()).expect("a request")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(
                answer.text.contains(&format!("\nauthorization: {sent}\n")),
                "{answer:?}"
            );
        }
        let request = client.request("GET", "/").header("x-serverless-authorization", token);
        let answer = client.send(request.body(empty()).expect("a request")).await;
        let seen = token.replace("signature", "SIGNATURE_REMOVED_BY_GOOGLE");
        assert!(
            answer.text.contains(&format!("\nx-serverless-authorization: {seen}\n")),
            "{answer:?}"
        );
    }
}
