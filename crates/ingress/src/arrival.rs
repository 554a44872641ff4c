//! Where a request came from: the facts of its connection, the same for all its requests.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use http::HeaderValue;
use model::Scheme;

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
    /// Its next answer is its last.
    leaving: AtomicBool,
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
            leaving: AtomicBool::new(false),
        }))
    }

    pub(crate) fn scheme(&self) -> &'static str {
        word(self.0.scheme)
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.0.scheme == Scheme::Https
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
        self.0.seen.fetch_add(1, Ordering::Relaxed);
        Open(self.0.clone())
    }

    /// From now on answers ask the client for another connection.
    pub(crate) fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Relaxed)
    }

    /// Requests that are open, and how many there were so far.
    pub(crate) fn requests(&self) -> (u32, u32) {
        (self.0.open.load(Ordering::Relaxed), self.0.seen.load(Ordering::Relaxed))
    }
}

fn word(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    }
}

/// A request that is open.
#[derive(Debug)]
pub(crate) struct Open(Arc<Connection>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
