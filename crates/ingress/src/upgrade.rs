//! Upgrades: a request after which its connection speaks something else, WebSocket mostly.
//!
//! What enters is a request that asks for it, over HTTP/1.1 (`Upgrade`) or, for WebSocket, over HTTP/2 (the extended
//! CONNECT of RFC 8441). The instance is always asked over HTTP/1.1. When it switches, bytes pass both ways in a
//! [`Tunnel`], which holds the request's slot and record until either side ends, or the request's timeout.
//!
//! `h2c` is never passed on: an instance that takes it up would speak HTTP/2 with a client of whose requests we would
//! see nothing more.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, request};
use hyper::{
    body::{Body as _, Incoming},
    ext::Protocol as ExtendedProtocol,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use model::Protocol;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    time::Instant,
};

use crate::{Refusal, body, chance::Chance, gate::Held, record::Tally};

const WEBSOCKET: &str = "websocket";
const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// After one side has ended, the other has this long to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes on their way in one direction.
const BUFFER: usize = 8 << 10;

/// What a request asks for besides an answer.
pub(crate) struct Wanted {
    client: OnUpgrade,
    by: By,
}

enum By {
    /// `Upgrade` in HTTP/1.1: the protocols, as they go on to the instance.
    Field(HeaderValue),
    /// CONNECT with `:protocol = websocket` in HTTP/2.
    Connect,
}

/// The upgrade that the request asks for, if one is to be passed on. A request with a body is answered in HTTP/1.1 as
/// if it had not asked, which RFC 9110 (7.8) allows; so are `h2c` and every upgrade of HTTP/1.0.
///
/// # Errors
/// `Connect` and `Upgrade`: CONNECT that is not an extended one for WebSocket.
pub(crate) fn wanted(request: &mut Request<Incoming>) -> Result<Option<Wanted>, Refusal> {
    if request.method() == Method::CONNECT {
        return match request.extensions().get::<ExtendedProtocol>() {
            None => Err(Refusal::Connect),
            Some(protocol) if protocol.as_str() != WEBSOCKET => {
                Err(Refusal::Upgrade(protocol.as_str().chars().take(40).collect()))
            }
            Some(_) => Ok(Some(Wanted {
                client: hyper::upgrade::on(request),
                by: By::Connect,
            })),
        };
    }
    if !request.headers().contains_key(header::UPGRADE) {
        return Ok(None);
    }
    let asked = request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && lists(request.headers(), &header::CONNECTION, "upgrade");
    let protocols = asked.then(|| without_h2c(request.headers())).flatten();
    Ok(protocols.map(|protocols| Wanted {
        client: hyper::upgrade::on(request),
        by: By::Field(protocols),
    }))
}

impl Wanted {
    /// Whether an instance that speaks `protocol` can be asked. None: the request goes on without.
    ///
    /// # Errors
    /// `UpgradeOverHttp2` for WebSocket, which such an instance cannot have.
    pub(crate) fn of(wanted: Option<Self>, protocol: Protocol) -> Result<Option<Self>, Refusal> {
        match (&wanted, protocol) {
            (None, _) | (Some(_), Protocol::Http1) => Ok(wanted),
            (Some(asked), Protocol::H2c) if asked.is_websocket() => Err(Refusal::UpgradeOverHttp2),
            (Some(_), Protocol::H2c) => Ok(None),
        }
    }

    fn is_websocket(&self) -> bool {
        match &self.by {
            By::Field(protocols) => protocols
                .to_str()
                .is_ok_and(|text| text.split(',').any(|one| one.trim().eq_ignore_ascii_case(WEBSOCKET))),
            By::Connect => true,
        }
    }

    /// Makes the request for the instance ask for the same, after it was stripped of its connection's fields.
    pub(crate) fn ask(&self, parts: &mut request::Parts, chance: &Chance) {
        let protocols = match &self.by {
            By::Field(protocols) => protocols.clone(),
            By::Connect => {
                parts.method = Method::GET;
                // RFC 8441 has no key; the answer to it is not passed on.
                let mut key = [0; 16];
                key[..8].copy_from_slice(&chance.next().to_ne_bytes());
                key[8..].copy_from_slice(&chance.next().to_ne_bytes());
                let text = base64::engine::general_purpose::STANDARD.encode(key);
                let key = HeaderValue::from_str(&text).expect("base64 is visible ASCII");
                parts.headers.insert(SEC_WEBSOCKET_KEY, key);
                HeaderValue::from_static(WEBSOCKET)
            }
        };
        parts.headers.insert(header::UPGRADE, protocols);
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }

    /// Whether an answer without an upgrade can be passed on: to an extended CONNECT success would mean a tunnel.
    pub(crate) fn may_be_declined_by(&self, status: StatusCode) -> bool {
        match self.by {
            By::Field(_) => true,
            By::Connect => !status.is_success(),
        }
    }

    /// The client's head of an answer by which the instance switched, and what goes on behind it.
    pub(crate) fn switched(self, mut response: Response<Incoming>, ends: Ends) -> Response<crate::Body> {
        let instance = hyper::upgrade::on(&mut response);
        let (mut parts, _) = response.into_parts();
        let protocol = parts.headers.remove(header::UPGRADE);
        crate::header::finish(&mut parts.headers);
        match self.by {
            By::Field(_) => {
                parts
                    .headers
                    .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                parts
                    .headers
                    .extend(protocol.map(|protocol| (header::UPGRADE, protocol)));
                parts.version = Version::HTTP_11;
            }
            By::Connect => {
                parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
                parts.status = StatusCode::OK;
                parts.version = Version::HTTP_2;
            }
        }
        parts.extensions.clear();
        parts.extensions.insert(Tunnel::new(self.client, instance, ends));
        Response::from_parts(parts, body::nothing())
    }
}

/// What an upgraded exchange holds, and when it must end.
pub(crate) struct Ends {
    pub(crate) held: Held,
    pub(crate) tally: Tally,
    pub(crate) deadline: Instant,
}

type Going = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What goes on behind an answer that switched protocols. It is in the answer's extensions; whoever drives the client's
/// connection takes it out and runs it until it ends by itself, or drops it.
#[derive(Clone)]
pub struct Tunnel(Arc<Mutex<Option<Going>>>);

impl Tunnel {
    fn new(client: OnUpgrade, instance: OnUpgrade, ends: Ends) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(go_on(client, instance, ends))))))
    }

    /// Passes bytes both ways until either side has ended, or the request's timeout. Once: a clone that was run leaves
    /// nothing to run.
    pub async fn run(self) {
        let going = self.0.lock().expect("nobody panics in here").take();
        if let Some(going) = going {
            going.await;
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

async fn go_on(client: OnUpgrade, instance: OnUpgrade, ends: Ends) {
    let Ends { held, tally, deadline } = ends;
    let mut counted = Counted {
        tally,
        up: AtomicU64::new(0),
        down: AtomicU64::new(0),
    };
    let (up, down) = (&counted.up, &counted.down);
    let passing = async {
        let (client, instance) = tokio::try_join!(client, instance)?;
        let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
        let (from_instance, to_instance) = tokio::io::split(TokioIo::new(instance));
        let mut up = std::pin::pin!(pump(from_client, to_instance, up));
        let mut down = std::pin::pin!(pump(from_instance, to_client, down));
        tokio::select! {
            () = up.as_mut() => drop(tokio::time::timeout(LAST_WORDS, down).await),
            () = down.as_mut() => drop(tokio::time::timeout(LAST_WORDS, up).await),
        }
        Ok::<_, hyper::Error>(())
    };
    match tokio::time::timeout_at(deadline, passing).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => counted.tally.broke_off("the connection ended before it was switched"),
        Err(_) => {
            let timeout = counted.tally.timeout();
            counted.tally.broke_off(&Refusal::Deadline(timeout).to_string());
        }
    }
    drop(held);
}

/// The record with the bytes that passed, however it ends.
struct Counted {
    tally: Tally,
    up: AtomicU64,
    down: AtomicU64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tally.passed(*self.up.get_mut(), *self.down.get_mut());
    }
}

/// Passes on what comes until its end, and tells the end. A side that fails has ended.
async fn pump(mut from: ReadHalf<TokioIo<Upgraded>>, mut to: WriteHalf<TokioIo<Upgraded>>, count: &AtomicU64) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length) = from.read(&mut buffer).await
        && length > 0
    {
        if to.write_all(&buffer[..length]).await.is_err() || to.flush().await.is_err() {
            return;
        }
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
    // It may be gone already.
    let _ = to.shutdown().await;
}

/// Whether a field that is a list has `word` in it.
fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    })
}

/// The protocols that `Upgrade` names, joined, without `h2c`.
fn without_h2c(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut protocols = Vec::new();
    for value in headers.get_all(header::UPGRADE) {
        for one in value.as_bytes().split(|b| *b == b',') {
            let one = one.trim_ascii();
            let name = one.split(|b| *b == b'/').next().unwrap_or_default();
            if one.is_empty() || name.eq_ignore_ascii_case(b"h2c") {
                continue;
            }
            if !protocols.is_empty() {
                protocols.extend_from_slice(b", ");
            }
            protocols.extend_from_slice(one);
        }
    }
    let joined = HeaderValue::from_maybe_shared(Bytes::from(protocols)).expect("parts of a value are a value");
    (!joined.is_empty()).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2c_is_taken_out_of_what_is_asked_for() {
        for (sent, passed) in [
            (&["websocket"][..], Some("websocket")),
            (&["h2c"], None),
            (&["H2C", " h2c ,"], None),
            (&["h2c, WebSocket"], Some("WebSocket")),
            (&["h2c/1, foo/2", "bar"], Some("foo/2, bar")),
            (&[""], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in sent {
                headers.append(header::UPGRADE, HeaderValue::from_static(value));
            }
            let left = without_h2c(&headers);
            assert_eq!(left.as_ref().and_then(|value| value.to_str().ok()), passed, "{sent:?}");
        }
    }

    #[test]
    fn words_are_found_in_lists() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert!(lists(&headers, &header::CONNECTION, "upgrade"));
        assert!(!lists(&headers, &header::CONNECTION, "keep"));
    }
}
