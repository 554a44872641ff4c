//! One request to the service and back: checked, given the token, passed on, and its answer made fit for this side.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;

use crate::reach::{AuthorityError, Reach};
use crate::target::{Target, is_for_loopback};
use crate::token::InUse;

pub(crate) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Where the tunnel is left that a connection becomes.
pub(crate) type Opened = Arc<Mutex<Option<Tunnel>>>;

/// Fields that speak of one connection only (RFC 9110, 7.6.1), and `Expect`, which was met already.
const HOP_BY_HOP: [HeaderName; 8] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// What every request is passed on by.
pub(crate) struct Forward {
    client: Client<Reach, Incoming>,
    target: Target,
    /// Of the listener.
    own: SocketAddr,
    header: HeaderName,
    user_agent: Option<HeaderValue>,
    http2: bool,
    token: watch::Receiver<InUse>,
}

impl Forward {
    pub(crate) fn new(
        target: Target,
        own: SocketAddr,
        authority: &Path,
        header: HeaderName,
        user_agent: Option<HeaderValue>,
        http2: bool,
        token: watch::Receiver<InUse>,
    ) -> Result<Self, AuthorityError> {
        let reach = Reach::new(&target, authority, http2)?;
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).http2_only(http2).build(reach),
            target,
            own,
            header,
            user_agent,
            http2,
            token,
        })
    }

    /// Answers one request. What its connection becomes after an upgrade is left in `opened`.
    pub(crate) async fn answer(&self, mut request: Request<Incoming>, opened: &Opened) -> Response<Body> {
        if request.method() == Method::CONNECT {
            return said(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not passed on".to_owned());
        }
        if !is_for_loopback(request.uri(), request.headers()) {
            let text = format!(
                "the request is for another host than this one: call http://{}",
                self.own
            );
            return said(StatusCode::MISDIRECTED_REQUEST, text);
        }
        let token = self.token.borrow().clone();
        let token = match token {
            Ok(token) => token,
            Err(why) => {
                return said(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("[PROXY ERROR] failed to get token: {why}"),
                );
            }
        };
        let upgrade = upgrade_of(&request);
        let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        strip(&mut parts.headers);
        parts.headers.remove(header::HOST);
        if let Some(protocol) = upgrade {
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, protocol);
        }
        self.introduce(&mut parts.headers, token);
        parts.uri = self.target.uri(&parts.uri);
        parts.version = if self.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        parts.extensions.clear();
        let answered = self.client.request(Request::from_parts(parts, body)).await;
        match answered {
            Ok(response) => self.back(response, client, opened),
            Err(error) => said(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("[PROXY ERROR] {}", with_causes(&error)),
            ),
        }
    }

    /// Puts on whose request it is.
    fn introduce(&self, headers: &mut HeaderMap, token: HeaderValue) {
        headers.insert(self.header.clone(), token);
        let Some(ours) = &self.user_agent else { return };
        let whole = match headers.get(header::USER_AGENT) {
            None => ours.clone(),
            Some(theirs) => {
                let joined = [ours.as_bytes(), b" ", theirs.as_bytes()].concat();
                HeaderValue::from_bytes(&joined).expect("values joined by a blank are a value")
            }
        };
        headers.insert(header::USER_AGENT, whole);
    }

    fn back(&self, mut response: Response<Incoming>, client: Option<OnUpgrade>, opened: &Opened) -> Response<Body> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = response.headers().get(header::UPGRADE).cloned();
        strip(response.headers_mut());
        if let Some(location) = response.headers().get(header::LOCATION)
            && let Some(led) = self.target.redirected(location, self.own)
        {
            response.headers_mut().insert(header::LOCATION, led);
        }
        if switched {
            let Some((client, protocol)) = client.zip(protocol) else {
                let text = "[PROXY ERROR] the service switched to what was not asked for".to_owned();
                return said(StatusCode::INTERNAL_SERVER_ERROR, text);
            };
            let service = hyper::upgrade::on(&mut response);
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol);
            *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tunnel { client, service });
        }
        let (mut parts, body) = response.into_parts();
        parts.extensions.clear();
        Response::from_parts(parts, body.boxed_unsync())
    }
}

/// What goes on on a connection whose request was answered by a switch of protocols.
pub(crate) struct Tunnel {
    client: OnUpgrade,
    service: OnUpgrade,
}

impl Tunnel {
    /// Passes bytes both ways until both sides have ended, or one breaks.
    pub(crate) async fn run(self) {
        let Ok((client, service)) = tokio::try_join!(self.client, self.service) else {
            return;
        };
        let (mut client, mut service) = (TokioIo::new(client), TokioIo::new(service));
        // how it ended is seen by both already
        let _ = tokio::io::copy_bidirectional(&mut client, &mut service).await;
    }
}

/// The protocols that an HTTP/1.1 request asks to switch to. `h2c` is never passed on: requests that follow would have no
/// token.
fn upgrade_of<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let asked = request.version() == Version::HTTP_11 && lists(headers, &header::CONNECTION, b"upgrade");
    let protocol = headers.get(header::UPGRADE).filter(|_| asked)?;
    let only = headers.get_all(header::UPGRADE).iter().count() == 1;
    (only && !lists(headers, &header::UPGRADE, b"h2c")).then(|| protocol.clone())
}

/// Whether a field that is a list has `word` in it.
fn lists(headers: &HeaderMap, name: &HeaderName, word: &[u8]) -> bool {
    headers.get_all(name).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(word))
    })
}

/// Takes off what belongs to the connection that it came by.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| *name != header::CONTENT_LENGTH)
        .collect();
    headers.remove(header::CONNECTION);
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    // the one value of it that HTTP/2 knows, and gRPC asks for
    let trailers = lists(headers, &header::TE, b"trailers");
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// An answer of the proxy's own, as plain text.
fn said(status: StatusCode, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text + "\n")).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_is_of_one_connection_goes() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Mine, content-length"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("te", "gzip, trailers"),
            ("content-length", "3"),
            ("authorization", "Bearer mine"),
        ]);
        strip(&mut headers);
        assert_eq!(
            headers,
            map(&[
                ("content-length", "3"),
                ("authorization", "Bearer mine"),
                ("te", "trailers")
            ])
        );
    }

    #[test]
    fn only_upgrades_of_http_1_1_that_are_no_http() {
        fn asked(fields: &[(&'static str, &'static str)], version: Version) -> Option<String> {
            let mut request = Request::new(());
            *request.headers_mut() = map(fields);
            *request.version_mut() = version;
            upgrade_of(&request).map(|value| value.to_str().expect("text").to_owned())
        }
        let (both, eleven) = (("connection", "keep-alive, Upgrade"), Version::HTTP_11);
        assert_eq!(
            asked(&[both, ("upgrade", "WebSocket")], eleven).as_deref(),
            Some("WebSocket")
        );
        assert_eq!(asked(&[both, ("upgrade", "websocket")], Version::HTTP_10), None);
        assert_eq!(asked(&[("upgrade", "websocket")], eleven), None);
        assert_eq!(asked(&[both, ("upgrade", "h2c")], eleven), None);
        assert_eq!(asked(&[both, ("upgrade", "websocket, H2C")], eleven), None);
        assert_eq!(
            asked(&[both, ("upgrade", "websocket"), ("upgrade", "h2c")], eleven),
            None
        );
    }
}
