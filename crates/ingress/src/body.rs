//! Bodies on their way: up to the instance, counted and bounded, and down to the client, which carries the slot.
//! Nothing is gathered: a frame goes on as it comes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::{Body, BoxError, Refusal, gate::Held, record::Tally, upstream::Connection};

/// How far a request body has come.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    bytes: AtomicU64,
    too_large: AtomicBool,
    /// The client broke it off.
    broken: AtomicBool,
}

impl Upload {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_too_large(&self) -> bool {
        self.too_large.load(Ordering::Relaxed)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }
}

/// A request body as the instance gets it.
#[derive(Debug)]
pub(crate) struct Outgoing(Option<Flow>);

#[derive(Debug)]
struct Flow {
    inner: Incoming,
    upload: Arc<Upload>,
    limit: u64,
}

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("request body is over {0} bytes")]
    TooLarge(u64),
    #[error("request body broke off")]
    Broken(#[source] hyper::Error),
}

impl Outgoing {
    pub(crate) const EMPTY: Self = Self(None);

    /// `limit` in bytes. The count is shared with the record; there is none of an empty body.
    pub(crate) fn new(inner: Incoming, limit: u64) -> (Self, Option<Arc<Upload>>) {
        if inner.is_end_stream() {
            return (Self::EMPTY, None);
        }
        let upload = Arc::new(Upload::default());
        let flow = Flow {
            inner,
            upload: upload.clone(),
            limit,
        };
        (Self(Some(flow)), Some(upload))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(flow) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let Some(frame) = ready!(Pin::new(&mut flow.inner).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                flow.upload.broken.store(true, Ordering::Relaxed);
                return Poll::Ready(Some(Err(UploadError::Broken(error).into())));
            }
        };
        if let Some(data) = frame.data_ref() {
            let length = data.len() as u64;
            let before = flow.upload.bytes.fetch_add(length, Ordering::Relaxed);
            if before + length > flow.limit {
                flow.upload.too_large.store(true, Ordering::Relaxed);
                return Poll::Ready(Some(Err(UploadError::TooLarge(flow.limit).into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|flow| flow.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |flow| flow.inner.size_hint())
    }
}

/// A response body as the client gets it. It holds the slot and the record until it ended or was dropped.
pub(crate) struct Served {
    inner: Incoming,
    deadline: Instant,
    /// Set at the first wait for the instance: most bodies never wait.
    timer: Option<Pin<Box<Sleep>>>,
    delivery: Option<Delivery>,
}

/// What an exchange holds while it lasts.
pub(crate) struct Delivery {
    pub(crate) held: Held,
    pub(crate) tally: Tally,
    pub(crate) connection: Connection,
}

impl Served {
    pub(crate) fn body(inner: Incoming, deadline: Instant, delivery: Delivery) -> Body {
        let mut served = Self {
            inner,
            deadline,
            timer: None,
            delivery: Some(delivery),
        };
        if served.inner.is_end_stream() {
            served.complete();
        }
        served.boxed_unsync()
    }

    /// Everything came: the connection may serve the next request.
    fn complete(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            delivery.connection.park(delivery.held.instance());
        }
    }

    /// It ends here, before its end.
    fn break_off(&mut self, why: &str) {
        if let Some(mut delivery) = self.delivery.take() {
            delivery.tally.broke_off(why);
        }
    }

    fn is_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.deadline)))
            .as_mut()
            .poll(cx)
            .is_ready()
    }
}

impl hyper::body::Body for Served {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(delivery) = &mut self.delivery else {
            return Poll::Ready(None);
        };
        let timeout = delivery.tally.timeout();
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                if let Some(delivery) = &mut self.delivery {
                    delivery.tally.sent(length as u64);
                }
                if self.inner.is_end_stream() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.break_off("the instance broke off its response");
                Poll::Ready(Some(Err(error.into())))
            }
            // The status is sent: the body ends without an error, as on Cloud Run.
            Poll::Pending if self.is_overdue(cx) => {
                self.break_off(&Refusal::Deadline(timeout).to_string());
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.delivery.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.inner.is_end_stream() {
            self.complete();
        }
        self.break_off("the client left before the response ended");
    }
}
