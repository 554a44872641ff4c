//! Whether a connection is busy, and since when it is not: what its time limits are counted from.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::serve::{Body, BoxError};

#[derive(Debug)]
pub(crate) struct Pulse(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    in_flight: usize,
    /// When the connection began, or the last request ended.
    quiet_since: Instant,
    used: bool,
}

/// What a connection is doing at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// No request has come yet since the connection began.
    Fresh {
        since: Instant,
    },
    Busy,
    /// Kept open after a request.
    Idle {
        since: Instant,
    },
}

impl Pulse {
    pub(crate) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            in_flight: 0,
            quiet_since: now,
            used: false,
        })))
    }

    pub(crate) fn beat(&self) -> Beat {
        let state = *self.state();
        if state.in_flight > 0 {
            Beat::Busy
        } else if state.used {
            Beat::Idle {
                since: state.quiet_since,
            }
        } else {
            Beat::Fresh {
                since: state.quiet_since,
            }
        }
    }

    /// A request begins; it lasts until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Exchange {
        let mut state = self.state();
        state.in_flight += 1;
        state.used = true;
        drop(state);
        Exchange(Arc::clone(self))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // two numbers that are whole at every moment, also after a panic
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request with its answer, until the answer's last byte.
#[derive(Debug)]
pub(crate) struct Exchange(Arc<Pulse>);

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.in_flight -= 1;
        state.quiet_since = Instant::now();
    }
}

/// A response body that holds its exchange open to its end.
pub(crate) struct Held {
    body: Body,
    #[expect(dead_code, reason = "held for its drop")]
    exchange: Exchange,
}

impl Held {
    pub(crate) fn new(body: Body, exchange: Exchange) -> Self {
        Self { body, exchange }
    }
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
