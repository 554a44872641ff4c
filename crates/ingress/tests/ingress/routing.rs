//! Which revision answers, and who may ask.

use std::collections::HashMap;

use model::Protocol;

use crate::stage::{Client, Server, Settings, Stage, VIAS, id, ready};

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
