//! Bodies: whole ones, and ones that come piece by piece.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type TestBody = UnsyncBoxBody<Bytes, BoxError>;

pub(crate) fn full(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> TestBody {
    full(Bytes::new())
}

/// A body whose frames come from the other end of a channel; it ends when that is dropped.
pub(crate) struct Piped(tokio::sync::mpsc::Receiver<Frame<Bytes>>);

pub(crate) fn piped() -> (tokio::sync::mpsc::Sender<Frame<Bytes>>, TestBody) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    (sender, Piped(receiver).boxed_unsync())
}

pub(crate) fn chunk(text: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(text.into())
}

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// The next piece of a body, as text; None at its end.
pub(crate) async fn next(body: &mut Incoming) -> Option<String> {
    loop {
        let wait = tokio::time::timeout(Duration::from_secs(5), body.frame());
        let frame = wait.await.expect("a frame within 5 s")?;
        let data = frame.expect("no error").into_data().expect("data");
        // HTTP/2 may end with an empty frame.
        if !data.is_empty() {
            return Some(String::from_utf8_lossy(&data).into_owned());
        }
    }
}
