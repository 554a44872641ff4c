//! Bodies on their way: up to the instance, counted and bounded, and down to the client, which carries the slot.
//! Nothing is gathered: a frame goes on as it comes.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::{
    task::AbortHandle,
    time::{Instant, Sleep},
};

use crate::{Body, BoxError, Refusal, gate::Held, record::Tally, upstream::Connection};

/// How long an instance may leave a client waiting for `100 Continue` that it never sends; curl waits as long.
const UNWANTED: Duration = Duration::from_secs(1);

/// How far a request body has come.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    bytes: AtomicU64,
    too_large: AtomicBool,
    /// The client broke it off.
    broken: AtomicBool,
    /// The exchange is over: what is left of it goes nowhere.
    stopped: AtomicBool,
    /// The instance said that it reads (`100 Continue`).
    wanted: AtomicBool,
    /// Who waits for the next frame.
    reader: Mutex<Option<Waker>>,
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

    /// Ends it where it is. Without effect when it has come to its end.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    /// The instance reads.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let reader = self.reader.lock().expect("nobody panics in here").take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn await_by(&self, reader: &Waker) {
        *self.reader.lock().expect("nobody panics in here") = Some(reader.clone());
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
    /// Some: the client waits to be asked for its body, until the instance wants it or this time is over.
    held_back: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("request body is over {0} bytes")]
    TooLarge(u64),
    #[error("request body broke off")]
    Broken(#[source] hyper::Error),
    #[error("the exchange is over")]
    Stopped,
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
            held_back: None,
        };
        (Self(Some(flow)), Some(upload))
    }

    /// Asks the client for nothing before the instance wants the body or [`UNWANTED`] is over.
    pub(crate) fn hold_back(&mut self) {
        if let Some(flow) = &mut self.0 {
            flow.held_back = Some(Box::pin(tokio::time::sleep(UNWANTED)));
        }
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
        if flow.upload.stopped.load(Ordering::Acquire) {
            return Poll::Ready(Some(Err(UploadError::Stopped.into())));
        }
        if let Some(sleep) = &mut flow.held_back {
            flow.upload.await_by(cx.waker());
            if !flow.upload.wanted.load(Ordering::Acquire) {
                ready!(sleep.as_mut().poll(cx));
            }
            flow.held_back = None;
        }
        let frame = match Pin::new(&mut flow.inner).poll_frame(cx) {
            Poll::Ready(Some(frame)) => frame,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                flow.upload.await_by(cx.waker());
                if flow.upload.stopped.load(Ordering::Acquire) {
                    return Poll::Ready(Some(Err(UploadError::Stopped.into())));
                }
                return Poll::Pending;
            }
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

/// A response body as the client gets it. It holds the slot and the record until it ended, was dropped, or had to end.
///
/// A body that ends with its first frame never leaves `Own`. Any other is also watched: at the request's deadline it
/// ends, whether or not its client reads.
pub(crate) enum Served {
    Own(Option<Box<Exchange>>),
    Watched(Watched),
    Over,
}

type Piece = Result<Frame<Bytes>, BoxError>;

/// What an exchange holds while it lasts.
pub(crate) struct Delivery {
    pub(crate) held: Held,
    pub(crate) tally: Tally,
    pub(crate) connection: Connection,
}

pub(crate) struct Exchange {
    inner: Incoming,
    deadline: Instant,
    delivery: Delivery,
    /// Who waits for the next frame.
    reader: Option<Waker>,
}

pub(crate) struct Watched {
    exchange: Arc<Mutex<Option<Box<Exchange>>>>,
    watch: AbortHandle,
}

impl Served {
    pub(crate) fn body(inner: Incoming, deadline: Instant, delivery: Delivery) -> Body {
        let exchange = Exchange {
            inner,
            deadline,
            delivery,
            reader: None,
        };
        if exchange.inner.is_end_stream() {
            exchange.complete();
            return Self::Over.boxed_unsync();
        }
        Self::Own(Some(Box::new(exchange))).boxed_unsync()
    }
}

impl Exchange {
    /// The next frame, and whether it was the last.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Option<Piece>, bool)> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.delivery.tally.sent(length as u64);
                Poll::Ready((Some(Ok(frame)), self.inner.is_end_stream()))
            }
            Poll::Ready(Some(Err(error))) => {
                self.delivery.tally.broke_off("the instance broke off its response");
                Poll::Ready((Some(Err(error.into())), true))
            }
            Poll::Ready(None) => Poll::Ready((None, true)),
            Poll::Pending => {
                self.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Everything came: the connection may serve the next request.
    fn complete(self) {
        let Delivery { held, connection, .. } = self.delivery;
        connection.park(held.instance());
    }

    /// Nobody takes more of it.
    fn left(mut self) {
        if self.inner.is_end_stream() {
            self.complete();
        } else {
            self.delivery
                .tally
                .broke_off("the client left before the response ended");
        }
    }

    /// The status is sent: the body ends without an error, as on Cloud Run.
    fn overdue(mut self) {
        let timeout = self.delivery.tally.timeout();
        self.delivery.tally.broke_off(&Refusal::Deadline(timeout).to_string());
        let reader = self.reader.take();
        drop(self);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Watched {
    fn new(exchange: Box<Exchange>) -> Self {
        let deadline = exchange.deadline;
        let exchange = Arc::new(Mutex::new(Some(exchange)));
        let watched = exchange.clone();
        // Its owner is the body, which ends it.
        let watch = tokio::spawn(async move {
            tokio::time::sleep_until(deadline).await;
            let taken = lock(&watched).take();
            if let Some(exchange) = taken {
                exchange.overdue();
            }
        });
        Self {
            exchange,
            watch: watch.abort_handle(),
        }
    }
}

/// The body of an answer that has none.
pub(crate) fn nothing() -> Body {
    Served::Over.boxed_unsync()
}

fn left_of(exchange: Option<&Exchange>) -> SizeHint {
    exchange.map_or_else(|| SizeHint::with_exact(0), |going| going.inner.size_hint())
}

fn lock(exchange: &Mutex<Option<Box<Exchange>>>) -> MutexGuard<'_, Option<Box<Exchange>>> {
    exchange.lock().expect("nobody panics in here")
}

impl hyper::body::Body for Served {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Over => Poll::Ready(None),
            Self::Own(own) => {
                let Some(mut exchange) = own.take() else {
                    return Poll::Ready(None);
                };
                match exchange.poll(cx) {
                    Poll::Ready((frame, true)) => {
                        if frame.as_ref().is_none_or(Result::is_ok) {
                            exchange.complete();
                        }
                        Poll::Ready(frame)
                    }
                    Poll::Ready((frame, false)) => {
                        *self = Self::Watched(Watched::new(exchange));
                        Poll::Ready(frame)
                    }
                    Poll::Pending => {
                        *self = Self::Watched(Watched::new(exchange));
                        Poll::Pending
                    }
                }
            }
            Self::Watched(watched) => {
                let mut exchange = lock(&watched.exchange);
                let Some(going) = &mut *exchange else {
                    return Poll::Ready(None);
                };
                let (frame, is_last) = ready!(going.poll(cx));
                if is_last {
                    let done = exchange.take();
                    drop(exchange);
                    *self = Self::Over;
                    if let Some(done) = done
                        && frame.as_ref().is_none_or(Result::is_ok)
                    {
                        done.complete();
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Over => true,
            Self::Own(own) => own.is_none(),
            Self::Watched(watched) => lock(&watched.exchange).is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Over => SizeHint::with_exact(0),
            Self::Own(own) => left_of(own.as_deref()),
            Self::Watched(watched) => left_of(lock(&watched.exchange).as_deref()),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.abort();
        let left = lock(&self.exchange).take();
        if let Some(exchange) = left {
            exchange.left();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Self::Own(own) = self
            && let Some(exchange) = own.take()
        {
            exchange.left();
        }
    }
}
