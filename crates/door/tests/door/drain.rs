//! Shutdown: what is in flight ends, what is idle is closed, what does not end is cut.

use std::sync::atomic::Ordering;
use std::time::Duration;

use door::{Drained, Limits};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::setting::{PATIENCE, RUN, Setting, Version};

async fn drained(served: tokio::task::JoinHandle<Drained>) -> Drained {
    let served = timeout(PATIENCE, served).await;
    served.expect("the door closes").expect("no panic")
}

#[tokio::test]
async fn a_request_in_flight_is_answered() {
    for version in Version::ALL {
        let setting = Setting::new().await;
        let hooks = std::sync::Arc::clone(&setting.hooks);
        let address = setting.address;
        let mut client = setting.client(RUN, version).await;
        let asking = tokio::spawn(async move {
            let answer = client.ask(RUN, "/wait").await;
            (client, answer)
        });
        hooks.arrived.notified().await;
        let served = setting.stop();
        sleep(Duration::from_millis(200)).await;
        let refused = TcpStream::connect(address).await;
        assert!(refused.is_err(), "no new connection is taken");
        assert!(!served.is_finished(), "the door waits for the request");
        hooks.release.notify_one();
        let (client, answer) = asking.await.expect("no panic");
        assert_eq!(answer.expect("an answer").0, 200, "{version:?}");
        client.ended().await;
        assert_eq!(drained(served).await, Drained { cut: 0 });
    }
}

#[tokio::test]
async fn idle_and_unfinished_connections_do_not_delay_it() {
    let setting = Setting::new().await;
    let mut clients = Vec::new();
    for version in Version::ALL {
        let mut client = setting.client(RUN, version).await;
        client.ask(RUN, "/").await.expect("an answer");
        clients.push(client);
    }
    let silent = setting.dial().await;
    let (_, tunnel) = setting.connect(&format!("{RUN}:443")).await;
    let start = Instant::now();
    assert_eq!(drained(setting.stop()).await, Drained { cut: 0 });
    let taken = start.elapsed();
    assert!(taken < Duration::from_secs(5), "closed after {taken:?}");
    for client in clients {
        client.ended().await;
    }
    drop((silent, tunnel));
}

#[tokio::test]
async fn what_does_not_end_is_cut_at_the_deadline() {
    for version in Version::ALL {
        let setting = Setting::with(Limits {
            drain: Duration::from_millis(500),
            ..Limits::default()
        })
        .await;
        let hooks = std::sync::Arc::clone(&setting.hooks);
        let mut client = setting.client(RUN, version).await;
        let asking = tokio::spawn(async move { client.ask(RUN, "/wait").await });
        hooks.arrived.notified().await;
        let start = Instant::now();
        assert_eq!(drained(setting.stop()).await, Drained { cut: 1 });
        let taken = start.elapsed();
        assert!(taken >= Duration::from_millis(450), "cut after {taken:?}");
        assert!(taken < Duration::from_secs(5), "cut after {taken:?}");
        assert!(asking.await.expect("no panic").is_err());
        // the answer in the making is gone with its connection
        let patience = Instant::now() + PATIENCE;
        while hooks.abandoned.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < patience, "{version:?}: still running");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let setting = Setting::new().await;
    for version in Version::ALL {
        let before = setting.hooks.abandoned.load(Ordering::SeqCst);
        let mut client = setting.client(RUN, version).await;
        let leaving = async {
            setting.hooks.arrived.notified().await;
        };
        tokio::select! {
            _ = client.ask(RUN, "/wait") => panic!("nobody released it"),
            () = leaving => {}
        }
        client.leave();
        let patience = Instant::now() + PATIENCE;
        while setting.hooks.abandoned.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < patience, "{version:?}: still running");
            sleep(Duration::from_millis(10)).await;
        }
    }
}
