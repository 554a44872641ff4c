//! Slots and the queue: who waits, who is told what, and that nobody is over the concurrency.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use capacity::{Full, RevisionEndpoints};
use model::{Activity, Protocol};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use crate::{
    body::{empty, full},
    client::{Client, VIAS, Via, whole},
    server::Server,
    stage::{Settings, Stage, id, ready, revision_key},
};

const R1: &str = "hello-00001-aaa";
const NO_INSTANCE: &str = "The request was aborted because there was no available instance.";

/// A server that answers one request for each permit.
async fn gated() -> (Server, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let taken = permits.clone();
    let server = Server::start(Protocol::Http1, move |_| {
        let taken = taken.clone();
        async move {
            taken.acquire().await.expect("open").forget();
            http::Response::new(full("done"))
        }
    })
    .await;
    (server, permits)
}

fn none(patience: Duration) -> RevisionEndpoints {
    RevisionEndpoints {
        patience,
        ..RevisionEndpoints::default()
    }
}

#[tokio::test]
async fn a_cold_start_is_waited_for() {
    for via in VIAS {
        let stage = Arc::new(Stage::set());
        let server = Server::saying("up").await;
        stage.place(id(1), &server);
        stage.route(&[(R1, 100, None)], &Settings::default()).await;
        let asking = stage.clone();
        let asked = tokio::spawn(async move { asking.get(via, "/").await });
        stage.queued(1).await;
        assert_eq!(stage.wakes(), 1, "control is woken at once");
        let demand = stage.ingress.demand();
        assert_eq!(demand.revisions[&revision_key(R1)].in_flight, 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.publish(&[(R1, ready(&[1]))]).await;
        let answer = asked.await.expect("it asks");
        assert_eq!((answer.status, answer.text.as_str()), (200, "up"), "{via:?}");
        let record = &stage.records(1).await[0];
        assert!(record.queued_micros >= 50_000, "{record:?}");
        assert!(record.first_byte_micros >= record.queued_micros);
        assert!(record.latency_micros >= record.first_byte_micros);
        stage.in_flight(0).await;
        let told = [(id(1), Activity::Busy), (id(1), Activity::Idle)];
        assert_eq!(stage.activity(), told);
    }
}

#[tokio::test]
async fn busy_is_told_before_the_request_is_forwarded() {
    let stage = Arc::new(Stage::set());
    let (seen_by, told) = (Arc::new(std::sync::Mutex::new(Vec::new())), stage.clone());
    let noted = seen_by.clone();
    let server = Server::start(Protocol::Http1, move |_| {
        noted.lock().expect("lock").push(told.activity());
        async { http::Response::new(full("ok")) }
    })
    .await;
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    assert_eq!(stage.get(Via::Http1, "/").await.status, 200);
    assert_eq!(*seen_by.lock().expect("lock"), [[(id(1), Activity::Busy)]]);
}

#[tokio::test]
async fn never_over_concurrency_and_none_is_lost() {
    for via in VIAS {
        let stage = Arc::new(Stage::set());
        let pause = Duration::from_millis(5);
        let servers = [Server::slow(pause).await, Server::slow(pause).await];
        stage.place(id(1), &servers[0]);
        stage.place(id(2), &servers[1]);
        let settings = Settings {
            concurrency: 3,
            ..Settings::default()
        };
        stage.route(&[(R1, 100, None)], &settings).await;
        stage.publish(&[(R1, ready(&[1]))]).await;
        let mut clients = JoinSet::new();
        for _ in 0..40 {
            let stage = stage.clone();
            clients.spawn(async move {
                let mut client = Client::open(&stage, via).await;
                for _ in 0..5 {
                    assert_eq!(client.get("/").await.status, 200);
                }
            });
        }
        stage.publish(&[(R1, ready(&[1, 2]))]).await;
        while let Some(ended) = clients.join_next().await {
            ended.expect("all were served");
        }
        for server in &servers {
            let most = server.most.load(Ordering::SeqCst);
            assert!((1..=3).contains(&most), "{most} at once, via {via:?}");
        }
        stage.records(200).await;
        stage.in_flight(0).await;
        stage.queued(0).await;
    }
}

#[tokio::test]
async fn eighty_one_at_concurrency_eighty_leave_one_queued() {
    let stage = Arc::new(Stage::set());
    let (server, permits) = gated().await;
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    let mut client = Client::open(&stage, Via::Tls2).await;
    let asked: Vec<_> = (0..81)
        .map(|_| {
            let request = client.request("GET", "/").body(empty()).expect("a request");
            tokio::spawn(client.begin(request))
        })
        .collect();
    stage.queued(1).await;
    stage.in_flight(80).await;
    assert_eq!(stage.wakes(), 1);
    stage
        .until("80 at the server", || server.now.load(Ordering::SeqCst) == 80)
        .await;
    permits.add_permits(81);
    for answer in asked {
        let answer = answer.await.expect("it asks").expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(server.most.load(Ordering::SeqCst), 80);
}

#[tokio::test]
async fn patience_ends_in_429() {
    let stage = Stage::set();
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, none(Duration::from_millis(80)))]).await;
    for via in VIAS {
        let before = Instant::now();
        let answer = stage.get(via, "/").await;
        assert!(before.elapsed() >= Duration::from_millis(80));
        assert_eq!((answer.status, answer.text.as_str()), (429, NO_INSTANCE), "{via:?}");
    }
    stage.queued(0).await;
    for record in stage.records(4).await {
        assert_eq!((record.status, record.instance.as_ref()), (429, None));
        assert!(record.queued_micros >= 80_000, "{record:?}");
        assert!(record.refusal.expect("a reason").contains("free slot"));
    }
}

#[tokio::test]
async fn patience_that_grows_holds_for_who_waits_already() {
    let stage = Arc::new(Stage::set());
    let server = Server::saying("up").await;
    stage.place(id(1), &server);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, none(Duration::from_millis(500)))]).await;
    let asking = stage.clone();
    let asked = tokio::spawn(async move { asking.get(Via::Http1, "/").await });
    stage.queued(1).await;
    stage.publish(&[(R1, none(Duration::from_mins(1)))]).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!asked.is_finished(), "it was turned away by what held when it came");
    stage.publish(&[(R1, ready(&[1]))]).await;
    let answer = asked.await.expect("it asks");
    assert_eq!((answer.status, answer.text.as_str()), (200, "up"));
}

#[tokio::test]
async fn a_full_queue_is_429_at_once() {
    let stage = Stage::set();
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, none(Duration::from_mins(1)))]).await;
    let mut clients = Vec::new();
    let mut waiting = JoinSet::new();
    for _ in 0..100 {
        let mut client = Client::open(&stage, Via::H2c).await;
        for _ in 0..100 {
            let request = client.request("GET", "/").body(empty()).expect("a request");
            waiting.spawn(client.begin(request));
        }
        clients.push(client);
    }
    stage.queued(10_000).await;
    let answer = stage.get(Via::Http1, "/").await;
    assert_eq!((answer.status, answer.text.as_str()), (429, NO_INSTANCE));
    drop((waiting, clients));
    stage.queued(0).await;
}

#[tokio::test]
async fn a_machine_without_room_says_so_and_the_maximum_does_not() {
    let no_room = format!("{NO_INSTANCE} This machine has no room for another one.");
    for (full, said, recorded) in [
        (
            Full::NoRoom("memory is scarce".into()),
            no_room.as_str(),
            "memory is scarce",
        ),
        (Full::Maximum(3), NO_INSTANCE, "the maximum of 3 instances"),
        (Full::Failing("exit code 3".into()), NO_INSTANCE, "exit code 3"),
    ] {
        let stage = Stage::set();
        stage.route(&[(R1, 100, None)], &Settings::default()).await;
        let endpoints = RevisionEndpoints {
            full: Some(full),
            ..none(Duration::from_millis(50))
        };
        stage.publish(&[(R1, endpoints)]).await;
        let answer = stage.get(Via::Http1, "/").await;
        assert_eq!((answer.status, answer.text.as_str()), (429, said));
        let record = &stage.records(1).await[0];
        assert!(format!("{record:?}").contains(recorded), "{record:?}");
    }
}

#[tokio::test]
async fn the_bell_knows_for_whom_it_rang() {
    let stage = Arc::new(Stage::set());
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    let mut asked = JoinSet::new();
    for _ in 0..3 {
        let stage = stage.clone();
        asked.spawn(async move { stage.get(Via::Http1, "/").await });
    }
    stage.queued(3).await;
    let key = revision_key(R1);
    assert_eq!(
        stage.ingress.take_rung().into_iter().collect::<Vec<_>>(),
        std::slice::from_ref(&key)
    );
    assert!(stage.ingress.take_rung().is_empty(), "told once");
    let demand = stage.ingress.demand_of(&[key.clone(), revision_key("hello-00002-bbb")]);
    assert_eq!(demand.revisions.len(), 1);
    assert_eq!(demand.revisions[&key].queued, 3);
    asked.shutdown().await;
}

#[tokio::test]
async fn a_failed_start_is_500_for_all_who_wait() {
    for via in VIAS {
        let stage = Arc::new(Stage::set());
        stage.route(&[(R1, 100, None)], &Settings::default()).await;
        let starting = RevisionEndpoints {
            starting: 1,
            ..none(Duration::from_secs(10))
        };
        stage.publish(&[(R1, starting)]).await;
        let mut asked = JoinSet::new();
        for _ in 0..3 {
            let stage = stage.clone();
            asked.spawn(async move { stage.get(via, "/").await });
        }
        stage.queued(3).await;
        let failed = RevisionEndpoints {
            failed_starts: 1,
            last_failure: Some("exit code 3".into()),
            ..none(Duration::from_secs(10))
        };
        stage.publish(&[(R1, failed)]).await;
        while let Some(answer) = asked.join_next().await {
            let answer = answer.expect("it asks");
            assert_eq!((answer.status, answer.text.as_str()), (500, NO_INSTANCE), "{via:?}");
        }
        for record in stage.records(3).await {
            assert!(record.refusal.expect("a reason").contains("exit code 3"));
        }
    }
}

#[tokio::test]
async fn the_timeout_includes_the_queue() {
    let stage = Stage::set();
    let settings = Settings {
        timeout: 1,
        ..Settings::default()
    };
    stage.route(&[(R1, 100, None)], &settings).await;
    stage.publish(&[(R1, none(Duration::from_mins(1)))]).await;
    let before = Instant::now();
    let answer = stage.get(Via::Tls2, "/").await;
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!(answer.status, 504);
    assert_eq!(answer.text, "upstream request timeout");
    stage.queued(0).await;
}

#[tokio::test]
async fn clients_that_leave_give_back_their_places() {
    for via in [Via::Http1, Via::H2c] {
        let stage = Stage::set();
        let (server, permits) = gated().await;
        stage.place(id(1), &server);
        let settings = Settings {
            concurrency: 1,
            ..Settings::default()
        };
        stage.route(&[(R1, 100, None)], &settings).await;
        stage.publish(&[(R1, ready(&[1]))]).await;
        let mut clients: Vec<_> = Vec::new();
        for number in 0..3 {
            let mut client = Client::open(&stage, via).await;
            let request = client.request("GET", "/").body(empty()).expect("a request");
            let asked = tokio::spawn(client.begin(request));
            stage.in_flight(1).await;
            stage.queued(number).await;
            clients.push((client, asked));
        }
        // The second leaves while it waits, then the first while it is served: the third has the slot.
        let leave = |(client, asked): (Client, tokio::task::JoinHandle<_>)| {
            asked.abort();
            drop(client);
        };
        leave(clients.remove(1));
        stage.queued(1).await;
        leave(clients.remove(0));
        stage.queued(0).await;
        stage.in_flight(1).await;
        stage
            .until("the third at the server", || {
                server.connections.load(Ordering::SeqCst) == 2
            })
            .await;
        // One permit may go to the request that was left alone at the server.
        permits.add_permits(2);
        let (_client, asked) = clients.remove(0);
        let answer = asked.await.expect("it asks").expect("an answer");
        assert_eq!(answer.status(), 200);
        let mut records = stage.records(3).await;
        records.sort_by_key(|record| (record.status, record.instance.is_none()));
        let told: Vec<_> = records
            .iter()
            .map(|record| (record.status, record.instance.is_some()))
            .collect();
        assert_eq!(told, [(200, true), (499, true), (499, false)], "{via:?}");
        stage.in_flight(0).await;
    }
}

#[tokio::test]
async fn a_draining_instance_gets_nothing_new() {
    let stage = Arc::new(Stage::set());
    let (old, permits) = gated().await;
    let new = Server::saying("new").await;
    stage.place(id(1), &old);
    stage.place(id(2), &new);
    stage.route(&[(R1, 100, None)], &Settings::default()).await;
    stage.publish(&[(R1, ready(&[1]))]).await;
    let asking = stage.clone();
    let asked = tokio::spawn(async move { asking.get(Via::Http1, "/").await });
    stage.in_flight(1).await;
    let mut endpoints = ready(&[1, 2]);
    endpoints.instances[0].draining = true;
    stage.publish(&[(R1, endpoints)]).await;
    for via in VIAS {
        assert_eq!(stage.get(via, "/").await.text, "new");
    }
    let demand = stage.ingress.demand();
    let instances = &demand.revisions[&revision_key(R1)].instances;
    let mut loads: Vec<_> = instances.iter().map(|of| (of.instance.clone(), of.in_flight)).collect();
    loads.sort();
    assert_eq!(loads, [(id(1), 1), (id(2), 0)]);
    permits.add_permits(1);
    assert_eq!(asked.await.expect("it asks").text, "done", "it finishes what it has");
    stage.publish(&[]).await;
    assert!(stage.ingress.demand().revisions.is_empty());
}

/// Clients that come, wait, are served or leave at any moment, over instances that come and go: in the end every
/// request has its record, no slot is held, nobody waits, and no instance is left busy.
#[tokio::test]
async fn nothing_is_lost_in_a_storm() {
    let stage = Arc::new(Stage::set());
    let mut servers = Vec::new();
    for number in 1..=3 {
        let server = Server::slow(Duration::from_millis(2)).await;
        stage.place(id(number), &server);
        servers.push(server);
    }
    let settings = Settings {
        concurrency: 2,
        ..Settings::default()
    };
    stage.route(&[(R1, 100, None)], &settings).await;
    let mut clients = JoinSet::new();
    for number in 0..48_u64 {
        let stage = stage.clone();
        clients.spawn(async move {
            let via = VIAS[usize::try_from(number % 4).expect("small")];
            let mut client = Client::open(&stage, via).await;
            let mut sent = 0;
            for turn in 0..20 {
                let request = client.request("GET", "/").body(empty()).expect("a request");
                let asked = client.begin(request);
                sent += 1;
                // Spread without chance: between at once and 16 ms.
                let patience = Duration::from_micros((number * 7919 + turn * 104_729) % 16_000);
                match tokio::time::timeout(patience, asked).await {
                    Ok(response) => {
                        assert_eq!(whole(response.expect("an answer")).await.status, 200);
                    }
                    // Leaving takes an HTTP/1 connection with it.
                    Err(_) => client = Client::open(&stage, via).await,
                }
            }
            sent
        });
    }
    let mut sent = 0;
    for turn in 0.. {
        let there: &[u8] = [&[1][..], &[1, 2], &[2, 3], &[], &[3]][turn % 5];
        stage.publish(&[(R1, ready(there))]).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        while let Some(ended) = clients.try_join_next() {
            sent += ended.expect("every answer was right");
        }
        if clients.is_empty() {
            break;
        }
    }
    stage.publish(&[(R1, ready(&[1, 2, 3]))]).await;
    stage.queued(0).await;
    stage.in_flight(0).await;
    for server in &servers {
        assert!(server.connections.load(Ordering::SeqCst) > 0, "all took part");
    }
    // One that left before its head was read is no request.
    let records = stage.all_records().await;
    assert!(
        records.len() <= sent && records.len() > sent / 2,
        "{} of {sent}",
        records.len()
    );
    let served = records.iter().filter(|record| record.status == 200).count();
    let left = records.iter().filter(|record| record.status == 499).count();
    assert!(served > 0 && left > 0, "{served} were served, {left} left");
    assert_eq!(served + left, records.len());
    let mut busy = std::collections::HashSet::new();
    for (instance, activity) in stage.activity() {
        let changed = match activity {
            Activity::Busy => busy.insert(instance),
            Activity::Idle => busy.remove(&instance),
        };
        assert!(changed, "edges alternate");
    }
    assert!(busy.is_empty(), "{busy:?}");
}
