//! Clients that do not go on are dropped, each at its limit.

use std::time::Duration;

use door::Limits;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use crate::setting::{PATIENCE, RUN, Setting, Version};

const HANDSHAKE: Duration = Duration::from_millis(300);
const HEADER: Duration = Duration::from_millis(600);
const IDLE: Duration = Duration::from_millis(900);

async fn setting() -> Setting {
    Setting::with(Limits {
        handshake: HANDSHAKE,
        header: HEADER,
        idle: IDLE,
        ..Limits::default()
    })
    .await
}

/// Waits until the door closes, and tells how long that took.
async fn until_closed(mut socket: impl AsyncRead + Unpin) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    let closing = timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
    // a reset is a close too
    let _ = closing.expect("the door closes");
    start.elapsed()
}

/// `limit`, give or take what a busy machine adds.
fn about(taken: Duration, limit: Duration) {
    let earliest = limit.saturating_sub(Duration::from_millis(50));
    assert!(taken >= earliest, "closed after {taken:?}, limit {limit:?}");
    let latest = limit + Duration::from_secs(3);
    assert!(taken <= latest, "closed after {taken:?}, limit {limit:?}");
}

#[tokio::test]
async fn a_client_that_says_nothing_is_dropped() {
    let setting = setting().await;
    about(until_closed(setting.dial().await).await, HEADER);
}

#[tokio::test]
async fn half_a_head_does_not_extend_the_limit() {
    let setting = setting().await;
    let (mut reader, mut writer) = setting.dial().await.into_split();
    let trickle = async {
        for byte in b"GET / HTTP/1.1\r\nHost: a.b.c.d.e.f.g.h\r\n".iter().cycle() {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = trickle => panic!("writing goes on until the door closes"),
        taken = until_closed(&mut reader) => about(taken, HEADER),
    }
}

#[tokio::test]
async fn a_tunnel_without_a_handshake_is_dropped() {
    let setting = setting().await;
    let (status, mut socket) = setting.connect(&format!("{RUN}:443")).await;
    assert_eq!(status, 200);
    // the start of a ClientHello
    socket.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("writes");
    about(until_closed(socket).await, HANDSHAKE);
}

#[tokio::test]
async fn a_tunnel_without_a_request_is_dropped() {
    let setting = setting().await;
    for alpn in ["http/1.1", "h2"] {
        let tls = setting.tls(RUN, RUN, &[alpn]).await.expect("handshake");
        about(until_closed(tls).await, HEADER);
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_idle_limit_and_not_before() {
    let setting = setting().await;
    for version in Version::ALL {
        let mut client = setting.client(RUN, version).await;
        client.ask(RUN, "/").await.expect("an answer");
        // longer than the limit of the first head, shorter than the idle one
        sleep(Duration::from_millis(750)).await;
        client.ask(RUN, "/").await.expect("still open");
        let start = Instant::now();
        client.ended().await;
        about(start.elapsed(), IDLE);
    }
}

#[tokio::test]
async fn a_long_request_is_not_idle() {
    let setting = setting().await;
    for version in Version::ALL {
        let mut client = setting.client(RUN, version).await;
        let release = async {
            sleep(IDLE * 2).await;
            setting.hooks.release.notify_one();
        };
        let (answer, ()) = tokio::join!(client.ask(RUN, "/wait"), release);
        assert_eq!(answer.expect("an answer").0, 200);
    }
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_a_seat() {
    let setting = Setting::with(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let first = setting.dial().await;
    // accepted, for it is the only one
    sleep(Duration::from_millis(100)).await;
    let mut second = setting.dial().await;
    let ask = format!("GET / HTTP/1.1\r\nHost: {RUN}\r\n\r\n");
    second.write_all(ask.as_bytes()).await.expect("writes");
    let early = timeout(Duration::from_millis(300), second.read_u8()).await;
    assert!(early.is_err(), "the second was served beside the first");
    drop(first);
    let served = timeout(PATIENCE, second.read_u8()).await;
    assert_eq!(served.expect("a seat is free").expect("reads"), b'H');
}
