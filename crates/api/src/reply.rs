//! Answers: JSON, empty ones, and streamed files.

use std::{
    fs::File,
    io::{self, Read as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::{Frame, SizeHint};
use serde_json::Value;
use tokio::task::JoinHandle;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request or an answer, streamed.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub(crate) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json; charset=UTF-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// How much of a file is read at a time.
const PIECE: usize = 256 << 10;

/// `left` bytes of a file, from where it stands. While a piece is sent the next one is read.
#[derive(Debug)]
pub(crate) struct FileBody {
    file: Arc<File>,
    left: u64,
    ahead: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl FileBody {
    pub(crate) fn new(file: File, left: u64) -> Self {
        Self {
            file: Arc::new(file),
            left,
            ahead: None,
        }
    }

    /// How long the next piece is.
    fn want(&self) -> usize {
        usize::try_from(self.left).unwrap_or(PIECE).min(PIECE)
    }

    fn read(&self) -> JoinHandle<io::Result<Vec<u8>>> {
        let (file, want) = (Arc::clone(&self.file), self.want());
        tokio::task::spawn_blocking(move || {
            // Read into memory as it is: nothing is cleared before.
            let mut piece = Vec::with_capacity(want);
            file.as_ref().take(want as u64).read_to_end(&mut piece)?;
            Ok(piece)
        })
    }
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let want = self.want();
        let mut reading = self.ahead.take().unwrap_or_else(|| self.read());
        let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
            self.ahead = Some(reading);
            return Poll::Pending;
        };
        Poll::Ready(Some(match read {
            Err(error) => Err(error.into()),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(piece)) if piece.len() < want => Err("the file is shorter than its length said".into()),
            Ok(Ok(piece)) => {
                self.left -= piece.len() as u64;
                if self.left > 0 {
                    self.ahead = Some(self.read());
                }
                Ok(Frame::data(piece.into()))
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
