//! Bodies flow both ways as they come, and are never collected.

use bytes::Bytes;
use door::{Body, BoxError};
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use tokio::time::timeout;

use crate::setting::{PATIENCE, RUN, SERVICE, Setting, Version};

fn body() -> (http_body_util::channel::Sender<Bytes, BoxError>, Body) {
    let (sender, channel) = Channel::<Bytes, BoxError>::new(1);
    (sender, channel.boxed_unsync())
}

#[tokio::test]
async fn each_piece_comes_back_before_the_next_is_sent() {
    let setting = Setting::new().await;
    for version in Version::ALL {
        for host in [RUN, SERVICE] {
            let mut client = setting.client(host, version).await;
            let (mut pieces, body) = body();
            pieces.send_data("first".into()).await.expect("sends");
            let request = client.request(host, "/echo", body);
            let response = timeout(PATIENCE, client.send(request)).await;
            let response = response.expect("a head comes").expect("an answer");
            let mut back = response.into_body();
            for piece in ["first", "second", "third"] {
                if piece != "first" {
                    pieces.send_data(piece.into()).await.expect("sends");
                }
                let frame = timeout(PATIENCE, back.frame()).await;
                let frame = frame.expect("it comes back").expect("not the end");
                let data = frame.expect("whole").into_data().expect("data");
                assert_eq!(data, piece);
            }
            drop(pieces);
            let rest = back.collect().await.expect("whole").to_bytes();
            assert!(rest.is_empty());
        }
    }
}

#[tokio::test]
async fn a_large_upload_arrives_whole() {
    const PIECE: usize = 1 << 16;
    const PIECES: usize = 2048;
    let setting = Setting::new().await;
    for version in Version::ALL {
        let mut client = setting.client(RUN, version).await;
        let (mut pieces, body) = body();
        let request = client.request(RUN, "/count", body);
        let feed = async move {
            let piece = Bytes::from(vec![7; PIECE]);
            for _ in 0..PIECES {
                pieces.send_data(piece.clone()).await.expect("sends");
            }
        };
        let (response, ()) = tokio::join!(client.send(request), feed);
        let counted = response.expect("an answer").into_body().collect().await;
        let counted = counted.expect("whole").to_bytes();
        assert_eq!(counted, (PIECE * PIECES).to_string(), "{version:?}");
    }
}
