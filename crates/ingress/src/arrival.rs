//! Where a request came from: the facts of its connection, the same for all its requests.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use http::HeaderValue;
use model::Scheme;
use tokio::time::Instant;

/// A connection's client. Made once per connection and cloned for each request.
#[derive(Debug, Clone)]
pub struct Arrival(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    scheme: Scheme,
    ip: Box<str>,
    forwarded_for: HeaderValue,
    forwarded: HeaderValue,
    /// Requests whose answer has not ended.
    open: AtomicU32,
    /// Requests so far, wrapping.
    seen: AtomicU32,
    /// When the open ones must have ended, by their number. Touched by the connection's own thread only.
    due: Mutex<Vec<(u32, Instant)>>,
}

impl Arrival {
    /// `scheme` is what the client speaks to us, and becomes `X-Forwarded-Proto`.
    pub fn new(ip: IpAddr, scheme: Scheme) -> Self {
        let ip = ip.to_canonical();
        let text = ip.to_string();
        let quoted = match ip {
            IpAddr::V4(_) => text.clone(),
            IpAddr::V6(_) => format!("[{text}]"),
        };
        let forwarded = format!("for=\"{quoted}\";proto={}", word(scheme));
        let value = |text: &str| HeaderValue::from_str(text).expect("an address is visible ASCII");
        Self(Arc::new(Connection {
            scheme,
            forwarded_for: value(&text),
            forwarded: value(&forwarded),
            ip: text.into(),
            open: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            due: Mutex::default(),
        }))
    }

    pub(crate) fn scheme(&self) -> &'static str {
        word(self.0.scheme)
    }

    pub(crate) fn ip(&self) -> &str {
        &self.0.ip
    }

    pub(crate) fn forwarded_for(&self) -> &HeaderValue {
        &self.0.forwarded_for
    }

    pub(crate) fn forwarded(&self) -> &HeaderValue {
        &self.0.forwarded
    }

    /// Counts a request as open until the guard is dropped.
    pub(crate) fn open(&self) -> Open {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Open {
            number: self.0.seen.fetch_add(1, Ordering::Relaxed),
            connection: self.0.clone(),
        }
    }

    /// Requests that are open, and how many there were so far.
    pub(crate) fn requests(&self) -> (u32, u32) {
        (self.0.open.load(Ordering::Relaxed), self.0.seen.load(Ordering::Relaxed))
    }

    /// Whether a request is open that had to end before `limit`. Its client does not read: else its body would have
    /// ended in time.
    pub(crate) fn is_overdue(&self, limit: Instant) -> bool {
        self.0.lock_due().iter().any(|(_, due)| *due < limit)
    }
}

fn word(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    }
}

impl Connection {
    fn lock_due(&self) -> MutexGuard<'_, Vec<(u32, Instant)>> {
        self.due.lock().expect("nobody panics in here")
    }
}

/// A request that is open.
#[derive(Debug)]
pub(crate) struct Open {
    connection: Arc<Connection>,
    number: u32,
}

impl Open {
    pub(crate) fn ends_by(&self, due: Instant) {
        self.connection.lock_due().push((self.number, due));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let number = self.number;
        self.connection.lock_due().retain(|(open, _)| *open != number);
        self.connection.open.fetch_sub(1, Ordering::Relaxed);
    }
}
