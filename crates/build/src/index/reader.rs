//! Asks indexes for what build steps ask for. Nothing of a step's own headers goes on but what it accepts.

use std::{fmt, io, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Incoming, ext::ReasonPhrase};
use model::with_causes;
use reqwest::{Client, Url, redirect::Policy};

use super::{Index, Kind, apt, cargo, is_asked_for, is_here, named::Named, npm, pip, plain};
use crate::relay::{Body, full};

/// Largest file.
const MAX_FILE: usize = 4 << 30;
/// Longest wait for a connection, and for the next bytes of an answer.
const CONNECT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_mins(1);
/// How often an index may send on to another place of the same host.
const MOST_REDIRECTS: usize = 5;
/// What of a step's request is passed on.
const ASKED: [HeaderName; 2] = [header::ACCEPT, header::RANGE];
/// What of the index's answer is passed on.
const ANSWERED: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
];

/// Reads the indexes for one build.
#[derive(Clone)]
pub(crate) struct Reader(Arc<[Source]>);

struct Source {
    named: Named,
    client: Client,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// Why a step gets no answer of an index.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) StatusCode, String);

impl Refused {
    pub(super) fn forbidden(why: &str) -> Self {
        Self(StatusCode::FORBIDDEN, why.to_owned())
    }

    pub(super) fn index(why: &dyn std::error::Error) -> Self {
        Self(
            StatusCode::BAD_GATEWAY,
            format!("the package index does not answer: {}", with_causes(why)),
        )
    }

    /// Pip shows the reason of a status line, and not the body.
    fn response(self) -> Response<Body> {
        let Self(status, why) = self;
        let reason: String = why
            .chars()
            .map(|c| if c.is_ascii_graphic() { c } else { ' ' })
            .collect();
        let mut response = full(status, "text/plain", why);
        if let Ok(reason) = ReasonPhrase::try_from(reason.into_bytes()) {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

/// What a document of an index is where it names files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Document {
    Page(pip::Page),
    Packument,
    /// Cargo's.
    Configuration,
}

impl Document {
    fn of(named: &Named, at: &Url, content_type: &str) -> Option<Self> {
        let place = named.place(at)?;
        match named.kind() {
            Kind::Pip => pip::Page::of(content_type).map(Self::Page),
            Kind::Npm => npm::is_packument(content_type).then_some(Self::Packument),
            Kind::Cargo => (place == cargo::CONFIGURATION).then_some(Self::Configuration),
            Kind::Go | Kind::Apt => None,
        }
    }
}

impl Reader {
    /// # Errors
    /// When no client can be made, as without any authority to trust.
    pub(crate) fn open(indexes: &[Index], secret: &str, port: u16) -> io::Result<Self> {
        let source = |index: &Index| {
            Ok(Source {
                named: Named::new(index, secret, port),
                client: client(&index.url)?,
            })
        };
        indexes.iter().map(source).collect::<io::Result<_>>().map(Self)
    }

    /// Whether a request is for an index: by the path, or to apt's as a proxy where there is one.
    pub(crate) fn is_asked(&self, request: &Request<Incoming>) -> bool {
        if request.uri().authority().is_none() {
            return is_asked_for(request.uri().path());
        }
        let has_apt = self.0.iter().any(|source| source.named.kind() == Kind::Apt);
        has_apt && apt::is_to_proxy(request.method(), request.uri(), request.headers())
    }

    /// Answers a build step that asks for what an index has.
    pub(crate) async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let kind = if request.uri().authority().is_some() {
            Some(Kind::Apt)
        } else {
            Kind::of_path(path)
        };
        let source = self.0.iter().find(|source| Some(source.named.kind()) == kind);
        let answered = if let Some(source) = source {
            source.read(request).await
        } else {
            let of = kind.map(|kind| format!(" of {kind}")).unwrap_or_default();
            let why = format!("no package index{of}: homerun up --build-index names one");
            Err(Refused(StatusCode::NOT_FOUND, why))
        };
        answered.unwrap_or_else(|refused| {
            tracing::info!(why = refused.1, path, "a build step gets nothing of the package index");
            refused.response()
        })
    }
}

fn client(index: &Url) -> io::Result<Client> {
    let policy = Policy::custom(|attempt| {
        let is_same = attempt
            .previous()
            .first()
            .is_some_and(|first| first.origin() == attempt.url().origin());
        let is_much = attempt.previous().len() > MOST_REDIRECTS;
        if is_same && !is_much {
            attempt.follow()
        } else {
            attempt.stop()
        }
    });
    let mut client = Client::builder()
        .redirect(policy)
        .connect_timeout(CONNECT)
        .read_timeout(PAUSE)
        .user_agent(concat!("homerun/", env!("CARGO_PKG_VERSION")));
    if is_here(index) {
        // The machine's proxy is for other machines.
        client = client.no_proxy();
    }
    client.build().map_err(io::Error::other)
}

impl Source {
    async fn read(&self, request: &Request<Incoming>) -> Result<Response<Body>, Refused> {
        let named = &self.named;
        let is_head = match *request.method() {
            Method::GET => false,
            Method::HEAD => true,
            _ => {
                let why = "a package index is only read here: GET and HEAD";
                return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, why.to_owned()));
            }
        };
        let asked = if request.uri().authority().is_some() {
            apt::asked(named.base(), request.uri())?
        } else {
            let asked = request.uri().path_and_query();
            asked.map_or("/", |asked| asked.as_str()).to_owned()
        };
        let url = named.meant(&asked)?;
        let is_below = named.is_below(&url);
        let mut headers = HeaderMap::new();
        for name in ASKED {
            if let Some(value) = request.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let sent = self
            .client
            .request(request.method().clone(), named.with_credentials(url));
        let answer = sent.headers(headers).send().await;
        let answer = answer.map_err(|error| Refused::index(&error.without_url()))?;
        let status = answer.status();
        if status.is_redirection() {
            return Err(Refused::forbidden("the package index sends on to another host"));
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(Refused::forbidden(
                "the package index wants a user and a password, which are part of the URL of --build-index",
            ));
        }
        let content_type = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        let content_type = content_type.trim().to_ascii_lowercase();
        let at = plain(answer.url().clone());
        let document = Document::of(named, &at, &content_type).filter(|_| is_below && status.is_success());
        let mut headers = HeaderMap::new();
        for name in ANSWERED {
            if let Some(value) = answer.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        if document.is_some() {
            headers.remove(header::CONTENT_LENGTH);
            headers.remove(header::ETAG);
            // Its links are this build's.
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        let content = http::Response::<reqwest::Body>::from(answer).into_body();
        let body = match document {
            Some(_) if is_head => full(status, "text/plain", "").into_body(),
            Some(Document::Page(page)) => {
                let content = whole(content, pip::MAX_PAGE).await?;
                let made = page.with_links(&content, |link| named.link(&at, link))?;
                full(status, "text/html", made).into_body()
            }
            Some(Document::Configuration) => {
                let content = whole(content, cargo::MAX_CONFIGURATION).await?;
                full(status, "text/plain", cargo::with_links(&content, named)?).into_body()
            }
            Some(Document::Packument) => npm::with_links(content, at, named.clone()),
            None => Limited::new(content, MAX_FILE).map_err(io::Error::other).boxed_unsync(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// A document that is read before it is passed on.
async fn whole(content: reqwest::Body, most: usize) -> Result<bytes::Bytes, Refused> {
    let content = Limited::new(content, most).collect().await;
    Ok(content.map_err(|error| Refused::index(&*error))?.to_bytes())
}
