//! The metadata server of instances: `http://metadata.google.internal/computeMetadata/v1/`.
//!
//! What enters: a request, and which instance it came from, known by the way it came and by nothing that it says. What
//! leaves: what Cloud Run tells an instance about itself, and tokens of its own revision's service account and of nobody
//! else. What is asked for and what answers it are decided apart from any connection: `question` reads a request, `tree`
//! holds the values, `tokens` keeps what was signed until it is nearly over.
//!
//! Nothing that an instance can ask for here changes while it lives; so whoever waits for a change, knowing what is
//! there, waits until the time is over.

mod question;
mod tokens;
mod tree;

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use identity::Caller;
use model::{InstanceId, RevisionKey, ServiceAccount};

use self::{
    question::{Alt, Mistake, Question, What},
    tokens::Tokens,
    tree::{Found, Made, Tree, Written},
};
use crate::{
    reply::{self, Body},
    surface::Surface,
};

const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The address under which a redirect leads on.
const SELF: &str = "http://metadata.google.internal";

/// Who asks, as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub instance: InstanceId,
    pub of: RevisionKey,
}

/// Answers instances.
#[derive(Debug)]
pub struct Metadata {
    surface: Arc<Surface>,
    tokens: Tokens,
}

impl Metadata {
    pub fn new(surface: Arc<Surface>) -> Self {
        Self {
            surface,
            tokens: Tokens::default(),
        }
    }

    /// Answers one request, whose content is not looked at. Waits only where the question says so.
    pub async fn answer<B>(&self, asker: &Asker, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        let answer = match self.decide(asker, request) {
            Ok(Reached::At(written)) => text(&written),
            Ok(Reached::Waiting(written, patience)) => {
                match patience {
                    Some(patience) => tokio::time::sleep(patience).await,
                    None => std::future::pending().await,
                }
                text(&written)
            }
            Ok(Reached::Below) => moved(request),
            Err(refusal) => refusal.response(path),
        };
        flavored(answer)
    }

    fn decide<B>(&self, asker: &Asker, request: &Request<B>) -> Result<Reached, Refusal> {
        let headers = request.headers();
        if headers.get(FLAVOR).is_none_or(|flavor| flavor != "Google") {
            return Err(Refusal::NoFlavor);
        }
        // Somebody else's request that a program of the instance was made to pass on.
        if headers.contains_key(X_FORWARDED_FOR) {
            return Err(Refusal::Forwarded);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::Method);
        }
        let question = Question::read(request.uri().path(), request.uri().query())?;
        let snapshot = self.surface.store.snapshot();
        let revision = snapshot.revision(&asker.of).ok_or(Refusal::NoRevision)?;
        let email = revision.template.account(&self.surface.site);
        let tree = Tree::of(&self.surface.site, asker, &email);
        let written = match tree.find(&question.path) {
            Found::Nothing => return Err(Refusal::NotFound),
            Found::Below if question.recursive != Some(true) => return Ok(Reached::Below),
            Found::Below => tree::write(&tree.find_directory(&question.path), question.recursive, question.alt),
            Found::Value(node) => {
                question.only_general()?;
                tree::write(&node, question.recursive, question.alt)
            }
            Found::Made(made) => {
                let account = snapshot.account(&email);
                let account = usable(account.map(AsRef::as_ref), &email, made)?;
                return self.made(made, account, &question).map(Reached::At);
            }
        };
        Ok(match &question.wait {
            Some(wait) if wait.last_etag.as_ref().is_none_or(|etag| *etag == written.etag()) => {
                Reached::Waiting(written, wait.patience)
            }
            Some(_) | None => Reached::At(written),
        })
    }

    fn made(&self, made: Made, account: &ServiceAccount, question: &Question) -> Result<Written, Refusal> {
        let now = self.surface.seconds();
        let issuer = self.surface.keys.issuer();
        let caller = Caller {
            email: account.email.clone(),
            subject: account.unique_id.clone(),
        };
        if question.wait.is_some() {
            return Err(Mistake::Parameter("wait_for_change").into());
        }
        match (made, &question.what) {
            (Made::Token, What::Token { scopes }) => {
                let snapshot = self.surface.store.snapshot();
                let is_good = |token: &str| {
                    let read = issuer.read_access(token, now);
                    read.is_ok_and(|read| !snapshot.revoked.contains_key(&read.id))
                };
                let (token, left) = self.tokens.access(issuer, &caller, scopes.as_deref(), now, is_good);
                Ok(Written::json(&serde_json::json!({
                    "access_token": token,
                    "expires_in": left,
                    "token_type": "Bearer",
                })))
            }
            (Made::Identity, What::Identity { audience }) => {
                let token = self.tokens.identity(issuer, &caller, audience, now);
                Ok(match question.alt {
                    Some(Alt::Json) => Written::json(&token.into()),
                    Some(Alt::Text) | None => Written::html(token),
                })
            }
            (Made::Token | Made::Identity, _) => Err(Refusal::NotFound),
        }
    }
}

/// What a question leads to.
enum Reached {
    At(Written),
    /// There once the time is over; None: not as long as nothing changes.
    Waiting(Written, Option<Duration>),
    /// At a directory that was asked for without the slash at its end.
    Below,
}

/// The account, if it can get tokens.
fn usable<'a>(account: Option<&'a ServiceAccount>, email: &str, made: Made) -> Result<&'a ServiceAccount, Refusal> {
    match account {
        None => Err(Refusal::Gone(made, email.to_owned())),
        Some(account) if account.disabled => Err(Refusal::Disabled(made, email.to_owned())),
        Some(account) => Ok(account),
    }
}

/// Why nothing is told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    NoFlavor,
    Forwarded,
    Method,
    NotFound,
    /// The service was deleted, and its instances are about to end.
    NoRevision,
    Mistake(Mistake),
    Gone(Made, String),
    Disabled(Made, String),
}

impl From<Mistake> for Refusal {
    fn from(mistake: Mistake) -> Self {
        if mistake == Mistake::Path {
            Self::NotFound
        } else {
            Self::Mistake(mistake)
        }
    }
}

impl Refusal {
    fn response(&self, path: &str) -> Response<Body> {
        let path = escaped(path);
        let (status, said, is_page) = match self {
            Self::NoFlavor => (
                StatusCode::FORBIDDEN,
                format!(
                    "Your client does not have permission to get URL <code>{path}</code> from this server. Missing \
                     Metadata-Flavor:Google header."
                ),
                true,
            ),
            Self::Forwarded => (
                StatusCode::FORBIDDEN,
                format!(
                    "Your client does not have permission to get URL <code>{path}</code> from this server. Requests \
                     with an X-Forwarded-For header are refused."
                ),
                true,
            ),
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                format!("The request method is inappropriate for the URL <code>{path}</code>."),
                true,
            ),
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                format!("The requested URL <code>{path}</code> was not found on this server."),
                true,
            ),
            Self::NoRevision => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the revision of this instance was deleted".to_owned(),
                false,
            ),
            Self::Mistake(mistake) => (StatusCode::BAD_REQUEST, mistake.to_string(), false),
            Self::Gone(made, email) => (
                StatusCode::NOT_FOUND,
                format!(
                    "Unable to generate {}; IAM returned 404 Not Found: Not found; Gaia id not found for email {email}",
                    made.words()
                ),
                false,
            ),
            Self::Disabled(made, email) => (
                StatusCode::FORBIDDEN,
                format!(
                    "Unable to generate {}; IAM returned 403 Forbidden: Service account {email} is disabled",
                    made.words()
                ),
                false,
            ),
        };
        let (kind, content) = if is_page {
            ("text/html; charset=UTF-8", page(status, &said))
        } else {
            ("text/plain; charset=utf-8", said + "\n")
        };
        let mut response = Response::new(reply::full(content));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if *self == Self::Method {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// An error in the shape of Google's servers.
fn page(status: StatusCode, said: &str) -> String {
    let (code, reason) = (status.as_str(), status.canonical_reason().unwrap_or_default());
    format!(
        "<!DOCTYPE html>\n<html lang=en>\n  <meta charset=utf-8>\n  <title>Error {code} ({reason})!!1</title>\n  \
         <p><b>{code}.</b> <ins>That’s an error.</ins>\n  <p>{said}  <ins>That’s all we know.</ins>\n"
    )
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars().take(1024) {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

fn text(written: &Written) -> Response<Body> {
    let mut response = Response::new(reply::full(written.content.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(written.kind));
    let etag = HeaderValue::from_str(&written.etag()).expect("hexadecimal digits");
    headers.insert(header::ETAG, etag);
    response
}

/// To the same with a slash at the end.
fn moved<B>(request: &Request<B>) -> Response<Body> {
    let query = request.uri().query().map(|query| format!("?{query}"));
    let to = format!("{SELF}{}/{}", request.uri().path(), query.unwrap_or_default());
    let mut response = Response::new(reply::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    // A path and a query of a request have no other characters.
    if let Ok(to) = HeaderValue::from_str(&to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

fn flavored(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(FLAVOR, HeaderValue::from_static("Google"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_says_is_not_markup() {
        assert_eq!(escaped("/<b>&\"x"), "/&lt;b&gt;&amp;&quot;x");
    }
}
