//! Why a request got no answer from an instance, and how the client is told.
//!
//! `Display` is for the record and names the thing; what the client reads is [`Refusal::body`], in Cloud Run's
//! words where they are known.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use capacity::Full;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full as Whole};
use model::{InstanceId, RevisionKey, ServiceKey};

use crate::{Body, upstream};

/// HTTP/1 requests and responses of known length may be this large (Cloud Run quotas): 32 MiB.
pub(crate) const LARGEST_HTTP1_BODY: u64 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    #[error("CONNECT for protocol {0} is not served")]
    Upgrade(String),
    #[error("WebSocket was asked of a revision that gets HTTP/2")]
    UpgradeOverHttp2,
    #[error("method CONNECT is not served")]
    Connect,
    #[error("no service answers at host \"{0}\"")]
    NoRoute(Box<str>),
    #[error("no revision of service {} is ready", .0.name)]
    NoRevision(ServiceKey),
    #[error("no identity token was sent")]
    NoToken,
    #[error("identity token refused: {0}")]
    BadToken(String),
    #[error("{0} does not hold roles/run.invoker")]
    NotInvoker(String),
    #[error("request body is over the limit of 32 MiB for HTTP/1")]
    RequestTooLarge,
    #[error("response of {0} bytes is over the limit of 32 MiB for HTTP/1 responses of known length")]
    ResponseTooLarge(u64),
    #[error("the queue of revision {} is full", .0.name)]
    QueueFull(RevisionKey),
    #[error("no instance had a free slot within {} ms{}", .patience.as_millis(), because(.full.as_ref()))]
    NoInstance { patience: Duration, full: Option<Full> },
    #[error("no instance could be started: {}", .0.as_deref().unwrap_or("no reason was given"))]
    StartFailed(Option<Arc<str>>),
    #[error("the request timeout of {} s was reached", .0.as_secs())]
    Deadline(Duration),
    #[error("instance {instance} went over its memory limit of {} MiB", .limit_bytes >> 20)]
    OutOfMemory { instance: InstanceId, limit_bytes: u64 },
    #[error("instance {instance} did not answer")]
    Upstream {
        instance: InstanceId,
        #[source]
        source: upstream::Error,
    },
    /// Nobody is there to read it; it is only recorded.
    #[error("the client left before the response")]
    ClientGone,
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Upgrade(_) | Self::UpgradeOverHttp2 => StatusCode::NOT_IMPLEMENTED,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::NoRevision(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadToken(_) => StatusCode::UNAUTHORIZED,
            Self::NoToken | Self::NotInvoker(_) => StatusCode::FORBIDDEN,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::QueueFull(_) | Self::NoInstance { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::StartFailed(_) | Self::OutOfMemory { .. } | Self::ResponseTooLarge(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream { .. } => StatusCode::SERVICE_UNAVAILABLE,
            // Written down as nginx and Google's balancers do.
            Self::ClientGone => StatusCode::from_u16(499).expect("a status has three digits"),
        }
    }

    /// Of Google's page, where that is what the client reads.
    fn title(&self) -> Option<&'static str> {
        match self.status() {
            StatusCode::UNAUTHORIZED => Some("Unauthorized"),
            StatusCode::FORBIDDEN => Some("Forbidden"),
            _ => None,
        }
    }

    /// What the client reads of a request for `path`. Who may not call gets Google's page; why, the record says.
    pub(crate) fn body(&self, path: &str) -> Bytes {
        let Some(title) = self.title() else {
            return Bytes::from_static(self.wording().as_bytes());
        };
        let status = self.status().as_u16();
        let sentence = self.wording().replace("{}", &format!("<code>{}</code>", escaped(path)));
        Bytes::from(format!(
            "\n<html><head>\n<meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">\n\
             <title>{status} {title}</title>\n</head>\n<body text=#000000 bgcolor=#ffffff>\n<h1>Error: {title}</h1>\n\
             <h2>{sentence}</h2>\n<h2></h2>\n</body></html>\n"
        ))
    }

    /// The same as an answer.
    pub(crate) fn response(&self, body: Bytes) -> Response<Body> {
        let mut response = Response::new(Whole::new(body).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(if self.title().is_some() {
                "text/html; charset=UTF-8"
            } else {
                "text/plain; charset=utf-8"
            }),
        );
        if let Self::BadToken(_) = self {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(
                    "Bearer error=\"invalid_token\" error_description=\"The access token could not be verified\"",
                ),
            );
        }
        response
    }

    /// The sentence for the client; `{}` stands for the path.
    fn wording(&self) -> &'static str {
        const NO_INSTANCE: &str = "The request was aborted because there was no available instance.";
        // Google's machines are never full.
        const NO_ROOM: &str = "The request was aborted because there was no available instance. This machine has no room for another one.";
        const NO_ANSWER: &str = "The request failed because either the HTTP response was malformed or connection to the instance had an error.";
        match self {
            Self::Malformed(why) => why,
            Self::Upgrade(_) => "CONNECT for this protocol is not served: websocket is.",
            Self::UpgradeOverHttp2 => {
                "WebSocket needs HTTP/1.1 to the container, and this service gets HTTP/2 (--use-http2)."
            }
            Self::Connect => "Method CONNECT is not allowed.",
            Self::NoRoute(_) => "Page not found: no service answers at this host.",
            Self::NoRevision(_) => "No revision of this service is ready yet.",
            Self::NoToken | Self::NotInvoker(_) => {
                "Your client does not have permission to get URL {} from this server."
            }
            Self::BadToken(_) => "Your client does not have permission to the requested URL {}.",
            Self::RequestTooLarge => "The request is too large: the limit is 32 MiB for HTTP/1 requests.",
            Self::ResponseTooLarge(_) => {
                "Response size was too large. Please consider reducing response size: the limit is 32 MiB for HTTP/1 responses that are not chunked."
            }
            Self::NoInstance {
                full: Some(Full::NoRoom(_)),
                ..
            } => NO_ROOM,
            Self::QueueFull(_) | Self::NoInstance { .. } | Self::StartFailed(_) => NO_INSTANCE,
            Self::Deadline(_) => "upstream request timeout",
            Self::OutOfMemory { .. } | Self::Upstream { .. } => NO_ANSWER,
            Self::ClientGone => "",
        }
    }
}

fn because(full: Option<&Full>) -> String {
    full.map(|full| format!(": {full}")).unwrap_or_default()
}

/// For a page: the path is the client's own text.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            _ => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn googles_page_for_who_may_not() {
        let page = Refusal::NoToken.body("/a");
        assert_eq!(
            page,
            "\n<html><head>\n<meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">\n\
             <title>403 Forbidden</title>\n</head>\n<body text=#000000 bgcolor=#ffffff>\n<h1>Error: Forbidden</h1>\n\
             <h2>Your client does not have permission to get URL <code>/a</code> from this server.</h2>\n<h2></h2>\n\
             </body></html>\n"
        );
        assert_eq!(
            Refusal::NotInvoker("x@y.z".to_owned()).body("/a"),
            page,
            "whoever it is"
        );
        let page = Refusal::BadToken("expired".to_owned()).body("/<script>\"'&");
        let page = String::from_utf8(page.to_vec()).expect("text");
        assert!(page.contains("<title>401 Unauthorized</title>"), "{page}");
        assert!(
            page.contains("to the requested URL <code>/&lt;script&gt;&quot;&#39;&amp;</code>.</h2>"),
            "{page}"
        );
        assert!(!page.contains("expired"), "why is for the record: {page}");
        let line = Refusal::Connect.body("/a");
        assert_eq!(line, "Method CONNECT is not allowed.");
    }
}
