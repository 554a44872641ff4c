//! Answers: JSON, empty ones, and streamed files.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::{Frame, SizeHint};
use serde_json::Value;
use tokio::io::AsyncRead as _;

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
const PIECE: usize = 128 << 10;

/// `left` bytes of a file, from where it stands.
pub(crate) struct FileBody {
    pub(crate) file: tokio::fs::File,
    pub(crate) left: u64,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let want = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = BytesMut::zeroed(want);
        let mut buffer = tokio::io::ReadBuf::new(&mut piece);
        let outcome = ready!(Pin::new(&mut self.file).poll_read(cx, &mut buffer));
        let read = buffer.filled().len();
        Poll::Ready(Some(match outcome {
            Err(error) => Err(error.into()),
            Ok(()) if read == 0 => Err("the file is shorter than its length said".into()),
            Ok(()) => {
                self.left -= read as u64;
                piece.truncate(read);
                Ok(Frame::data(piece.freeze()))
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
