//! Ports and the end.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use homerun_ingress::listen::{self, Limits, Ports};
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    body::empty,
    client::{Client, VIAS, Via, whole},
    server::Server,
    stage::{Settings, Stage, id, ready},
};

const R1: &str = "hello-00001-aaa";

async fn slow_stage(pause: Duration) -> (Stage, Server) {
    let stage = Stage::set();
    let server = Server::slow(pause).await;
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    (stage, server)
}

#[tokio::test]
async fn a_drain_lets_requests_end_and_takes_no_more() {
    let (mut stage, _server) = slow_stage(Duration::from_millis(300)).await;
    let mut clients = Vec::new();
    for via in VIAS {
        let mut client = Client::open(&stage, via).await;
        let request = client.request("GET", "/").body(empty()).expect("a request");
        let asked = tokio::spawn(client.begin(request));
        clients.push((client, asked));
    }
    let idle = Client::open(&stage, Via::Http1).await;
    stage.in_flight(4).await;
    let drained = tokio::spawn(stage.drain(Duration::from_secs(10)));
    let before = Instant::now();
    for (_client, asked) in clients {
        let response = asked.await.expect("it asks").expect("an answer");
        assert_eq!(whole(response).await.text, "slow");
    }
    assert_eq!(drained.await.expect("it drains"), 0);
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "idle ones are not waited for"
    );
    assert!(TcpStream::connect(stage.http).await.is_err());
    drop(idle);
    stage.records(4).await;
}

#[tokio::test]
async fn a_drain_cuts_off_at_its_limit() {
    let (mut stage, _server) = slow_stage(Duration::from_mins(1)).await;
    let mut client = Client::open(&stage, Via::Tls2).await;
    let request = client.request("GET", "/").body(empty()).expect("a request");
    let asked = tokio::spawn(client.begin(request));
    stage.in_flight(1).await;
    let before = Instant::now();
    assert_eq!(stage.drain(Duration::from_millis(200)).await, 1);
    let took = before.elapsed();
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert!(asked.await.expect("it asks").is_err());
    assert_eq!(stage.records(1).await[0].status, 499);
    stage.in_flight(0).await;
}

#[tokio::test]
async fn a_port_that_is_held_is_refused() {
    let stage = Stage::set();
    let threads = NonZeroUsize::new(2).expect("two");
    let open = |addr| {
        let ports = Ports {
            http: Some(addr),
            https: None,
        };
        listen::open(&stage.ingress, ports, Limits::default(), threads)
    };
    let error = open(stage.http).expect_err("it is our own");
    assert!(error.to_string().contains(&stage.http.to_string()), "{error}");

    // One that would share it is refused as well.
    let holder = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    holder.set_reuse_address(true).expect("an option");
    holder.set_reuse_port(true).expect("an option");
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
    holder.bind(&any.into()).expect("a port");
    holder.listen(1).expect("it listens");
    let addr = holder.local_addr().expect("an address").as_socket().expect("IP");
    open(addr).expect_err("another holds it");
    drop(holder);
    let listening = Arc::new(open(addr).expect("it is free"));
    assert_eq!(listening.http(), Some(addr));
}
