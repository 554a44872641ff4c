//! The package index that build steps may read: pip's, and only where the owner named one. Steps reach it at
//! `http://127.0.0.1:PORT/pip/`, by the same listener as the relay of base images and without its secret.
//!
//! What enters is a GET or HEAD below that path; what leaves is what the index answers at the same place below its URL.
//! Pages name files elsewhere (those of `PyPI` lie at files.pythonhosted.org): such a link is rewritten to
//! `/pip-link/SEAL/https/HOST/PATH`, where the seal is made with a key of this build. So a step reads what the index
//! named, and nothing else of those hosts. Nothing of a step's own headers goes on but what it accepts.

use std::{fmt, io, net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Incoming, ext::ReasonPhrase};
use reqwest::{Client, Url, redirect::Policy};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::relay::{Body, full, told};

/// Where steps find the index, on the relay's port.
const OWN: &str = "/pip/";
/// Where steps find what the index named elsewhere.
const LINK: &str = "/pip-link/";
/// Largest page that is read for its links.
const MAX_PAGE: usize = 32 << 20;
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
/// Other kinds that somebody may look for.
const NOT_SERVED: [&str; 7] = ["npm", "apt", "cargo", "go", "maven", "gem", "uv"];

/// The index that builds use, as the owner named it: what pip calls `index-url`.
#[derive(Clone, PartialEq, Eq)]
pub struct PipIndex {
    /// Ends with a slash; may hold credentials.
    url: Url,
}

impl PipIndex {
    /// Reads `pip=https://pypi.org/simple`.
    ///
    /// # Errors
    /// What is wrong, in words for the owner.
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "such as pip=https://pypi.org/simple";
        let (kind, url) = text
            .split_once('=')
            .ok_or_else(|| format!("\"{text}\" is no KIND=URL, {example}"))?;
        if NOT_SERVED.contains(&kind) {
            return Err(format!(
                "an index of {kind} is not served to builds: only pip is, {example}"
            ));
        }
        if kind != "pip" {
            return Err(format!(
                "\"{kind}\" is no kind of package index: only pip is, {example}"
            ));
        }
        let mut url =
            Url::parse(url).map_err(|error| format!("the URL of the pip index is wrong ({error}), {example}"))?;
        let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_here(&url));
        if !is_safe {
            return Err("the URL of the pip index must be https, or http on this machine's loopback".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the URL of the pip index must have no query and no fragment".to_owned());
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self { url })
    }
}

/// Without its credentials.
impl fmt::Display for PipIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(plain(self.url.clone()).as_str())
    }
}

impl fmt::Debug for PipIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What pip in a build step reads as `/etc/pip.conf`.
pub(crate) fn configuration(port: u16) -> String {
    format!("[global]\nindex-url = http://127.0.0.1:{port}{OWN}\ndisable-pip-version-check = true\n")
}

/// What is said after a step in which pip found nothing, and was to find nothing.
pub(crate) fn hint(why: &str) -> Option<&'static str> {
    let is_pips = ["No matching distribution found for ", "': /simple/"]
        .iter()
        .any(|words| why.contains(words));
    is_pips.then_some(
        "a build reaches no package index unless Homerun is told of one: \
         homerun up --build-index pip=https://pypi.org/simple",
    )
}

/// Whether a path of the relay is the index's.
pub(crate) fn is_asked_for(path: &str) -> bool {
    path == OWN.trim_end_matches('/') || path.starts_with(OWN) || path.starts_with(LINK)
}

/// Reads the index for one build.
#[derive(Clone)]
pub(crate) struct Reader {
    client: Client,
    base: Url,
    key: [u8; 32],
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// Why a step gets no answer of the index.
#[derive(Debug, PartialEq, Eq)]
struct Refused(StatusCode, String);

impl Refused {
    fn forbidden(why: &str) -> Self {
        Self(StatusCode::FORBIDDEN, why.to_owned())
    }

    fn index(why: &dyn std::error::Error) -> Self {
        Self(
            StatusCode::BAD_GATEWAY,
            format!("the package index does not answer: {}", told(why)),
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

/// Answers a step where no index is.
pub(crate) fn nobody() -> Response<Body> {
    let why = "no package index: homerun up --build-index names one";
    Refused(StatusCode::NOT_FOUND, why.to_owned()).response()
}

impl Reader {
    /// # Errors
    /// When no client can be made, as without any authority to trust.
    pub(crate) fn open(index: &PipIndex, secret: &str) -> io::Result<Self> {
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
        if is_here(&index.url) {
            // The machine's proxy is for other machines.
            client = client.no_proxy();
        }
        Ok(Self {
            client: client.build().map_err(io::Error::other)?,
            base: index.url.clone(),
            key: Sha256::digest(format!("pip links of {secret}").as_bytes()).into(),
        })
    }

    /// Answers a build step.
    pub(crate) async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let answered = self.read(request).await;
        answered.unwrap_or_else(|refused| {
            tracing::info!(
                why = refused.1,
                path = request.uri().path(),
                "a build step gets nothing of the package index"
            );
            refused.response()
        })
    }

    async fn read(&self, request: &Request<Incoming>) -> Result<Response<Body>, Refused> {
        let is_head = match *request.method() {
            Method::GET => false,
            Method::HEAD => true,
            _ => {
                let why = "a package index is only read here: GET and HEAD";
                return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, why.to_owned()));
            }
        };
        let asked = request.uri().path_and_query().map_or("/", |asked| asked.as_str());
        let url = self.meant(asked)?;
        let is_below = self.is_below(&url);
        let mut headers = HeaderMap::new();
        for name in ASKED {
            if let Some(value) = request.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let sent = self
            .client
            .request(request.method().clone(), self.with_credentials(url));
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
        let kind = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default().to_ascii_lowercase();
        let page = if is_below { Page::of(&kind) } else { None };
        let mut headers = HeaderMap::new();
        for name in ANSWERED {
            if let Some(value) = answer.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let mut response = match page {
            Some(page) if status.is_success() => {
                headers.remove(header::CONTENT_LENGTH);
                headers.remove(header::ETAG);
                // Its links are this build's.
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                let at = plain(answer.url().clone());
                let content = if is_head {
                    Vec::new()
                } else {
                    let answer = http::Response::<reqwest::Body>::from(answer);
                    let content = Limited::new(answer.into_body(), MAX_PAGE).collect().await;
                    let content = content.map_err(|error| Refused::index(&*error))?.to_bytes();
                    page.with_links(&content, |link| self.link(&at, link))?
                };
                full(status, "text/html", content)
            }
            Some(_) | None => {
                let answer = http::Response::<reqwest::Body>::from(answer);
                let body = Limited::new(answer.into_body(), MAX_FILE).map_err(io::Error::other);
                let mut response = Response::new(body.boxed_unsync());
                *response.status_mut() = status;
                response
            }
        };
        for (name, value) in headers {
            if let Some(name) = name {
                response.headers_mut().insert(name, value);
            }
        }
        Ok(response)
    }

    /// From what a step asks for to what is read.
    fn meant(&self, asked: &str) -> Result<Url, Refused> {
        let outside = || Refused::forbidden("that is not below the package index");
        let Some(sealed) = asked.strip_prefix(LINK) else {
            let rest = asked.strip_prefix(OWN).unwrap_or_default();
            // As a path, whatever it looks like.
            let url = self.base.join(&format!("./{rest}")).map_err(|_| outside())?;
            return if self.is_below(&url) { Ok(url) } else { Err(outside()) };
        };
        let unnamed = || Refused::forbidden("the package index of this build has not named that");
        let (seal, rest) = sealed.split_once('/').ok_or_else(unnamed)?;
        let (scheme, rest) = rest.split_once('/').ok_or_else(unnamed)?;
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|_| unnamed())?;
        let mut named = url.clone();
        // A file's own metadata lies beside it (PEP 658), and is not named apart.
        if let Some(file) = url.path().strip_suffix(".metadata") {
            named.set_path(file);
        }
        if [&url, &named].iter().any(|url| self.seal(url) == seal) {
            Ok(url)
        } else {
            Err(unnamed())
        }
    }

    /// What stands for a link of a page: None where it stays as it is.
    fn link(&self, page: &Url, link: &str) -> Option<String> {
        let mut url = page.join(link).ok().map(plain)?;
        if !matches!(url.scheme(), "http" | "https") || link.starts_with('#') {
            return None;
        }
        let fragment = url.fragment().map(|text| format!("#{text}")).unwrap_or_default();
        url.set_fragment(None);
        if self.is_below(&url) {
            let query = url.query().map(|text| format!("?{text}")).unwrap_or_default();
            let rest = &url.path()[self.base.path().len()..];
            return Some(format!("{OWN}{rest}{query}{fragment}"));
        }
        if !self.may_name(&url) {
            return None;
        }
        let seal = self.seal(&url);
        let (scheme, rest) = url.as_str().split_once("://")?;
        Some(format!("{LINK}{seal}/{scheme}/{rest}{fragment}"))
    }

    /// Whether files may lie there: at hosts of the internet by their names, beside the index, and on this machine only
    /// where the index is there too.
    fn may_name(&self, url: &Url) -> bool {
        let is_name = url.domain().is_some_and(|name| name.contains('.')) && !is_here(url);
        url.origin() == self.base.origin()
            || (url.scheme() == "https" && is_name)
            || (is_here(&self.base) && is_here(url))
    }

    fn is_below(&self, url: &Url) -> bool {
        url.origin() == self.base.origin() && url.path().starts_with(self.base.path())
    }

    fn with_credentials(&self, mut url: Url) -> Url {
        if url.origin() == self.base.origin() {
            // They come from a URL of the same form.
            let _ = url.set_username(self.base.username());
            let _ = url.set_password(self.base.password());
        }
        url
    }

    /// Shows that a page of this build's index named the URL.
    fn seal(&self, url: &Url) -> String {
        use std::fmt::Write as _;
        let inner = Sha256::new()
            .chain_update(self.key)
            .chain_update(url.as_str())
            .finalize();
        let outer = Sha256::new().chain_update(self.key).chain_update(inner).finalize();
        let mut seal = String::with_capacity(32);
        for byte in &outer[..16] {
            let _ = write!(seal, "{byte:02x}");
        }
        seal
    }
}

/// A document that has links to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    /// PEP 503.
    Html,
    /// PEP 691.
    Json,
}

impl Page {
    fn of(kind: &str) -> Option<Self> {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        match kind {
            "text/html" | "application/vnd.pypi.simple.v1+html" => Some(Self::Html),
            "application/vnd.pypi.simple.v1+json" => Some(Self::Json),
            _ => None,
        }
    }

    fn with_links(self, content: &[u8], link: impl Fn(&str) -> Option<String>) -> Result<Vec<u8>, Refused> {
        match self {
            Self::Html => html(&String::from_utf8_lossy(content), link).map(String::into_bytes),
            Self::Json => {
                let wrong = |error: serde_json::Error| Refused::index(&error);
                let mut document: Value = serde_json::from_slice(content).map_err(wrong)?;
                for file in document
                    .get_mut("files")
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                {
                    if let Some(other) = file["url"].as_str().and_then(&link) {
                        file["url"] = other.into();
                    }
                }
                serde_json::to_vec(&document).map_err(wrong)
            }
        }
    }
}

/// A page with each `href="..."` as `link` says.
fn html(page: &str, link: impl Fn(&str) -> Option<String>) -> Result<String, Refused> {
    // Of the same length in bytes: only ASCII letters differ.
    let lower = page.to_ascii_lowercase();
    if lower.contains("<base") {
        return Err(Refused::forbidden(
            "a page of the package index has a <base>, which is not served",
        ));
    }
    let mut made = String::with_capacity(page.len() * 2);
    let mut at = 0;
    while let Some(found) = lower[at..].find("href") {
        let after = at + found + "href".len();
        let rest = page[after..].trim_start();
        let value = rest.strip_prefix('=').map(str::trim_start);
        let quoted = value.and_then(|value| {
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (inside, _) = value[1..].split_once(quote)?;
            // It is the end of the page, and so tells where it begins.
            Some((page.len() - value.len() + 1, inside))
        });
        let Some((begins, inside)) = quoted else {
            made.push_str(&page[at..after]);
            at = after;
            continue;
        };
        made.push_str(&page[at..begins]);
        match link(&inside.replace("&amp;", "&")) {
            Some(other) => made.push_str(&other.replace('&', "&amp;").replace('"', "%22").replace('\'', "%27")),
            None => made.push_str(inside),
        }
        at = begins + inside.len();
    }
    made.push_str(&page[at..]);
    Ok(made)
}

/// Whether a host is this machine's loopback.
fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Without user and password.
fn plain(mut url: Url) -> Url {
    // One that cannot have them has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(url: &str) -> Reader {
        let index = PipIndex::parse(&format!("pip={url}")).expect("an index");
        Reader::open(&index, "secret").expect("a client")
    }

    #[test]
    fn what_an_owner_may_name() {
        let shown = |text: &str| PipIndex::parse(text).map(|index| format!("{index} {index:?}"));
        let twice = |url: &str| Ok(format!("{url} {url}"));
        assert_eq!(shown("pip=https://pypi.org/simple"), twice("https://pypi.org/simple/"));
        assert_eq!(shown("pip=https://u:p@a.example/x/"), twice("https://a.example/x/"));
        assert_eq!(shown("pip=http://127.0.0.1:81/"), twice("http://127.0.0.1:81/"));
        assert_eq!(shown("pip=http://[::1]/s"), twice("http://[::1]/s/"));
        for (text, told) in [
            ("conda=https://conda.example/simple", "no kind of package index"),
            ("https://pypi.org/simple", "no KIND=URL"),
            ("pypi", "no KIND=URL"),
            ("npm=https://registry.npmjs.org", "an index of npm is not served"),
            ("pip=http://pypi.org/simple", "must be https"),
            ("pip=ftp://127.0.0.1/", "must be https"),
            ("pip=pypi.org", "is wrong"),
            ("pip=https://a.example/?x=1", "no query"),
        ] {
            let error = shown(text).expect_err(text);
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn what_a_step_may_read() {
        let reader = reader("https://u:p@pypi.example/root/simple");
        let meant = |asked: &str| reader.meant(asked).map(|url| plain(url).to_string());
        assert_eq!(
            meant("/pip/flask/?a=1"),
            Ok("https://pypi.example/root/simple/flask/?a=1".to_owned())
        );
        assert_eq!(meant("/pip/"), Ok("https://pypi.example/root/simple/".to_owned()));
        assert_eq!(
            meant("/pip///evil.example/x"),
            Ok("https://pypi.example/root/simple///evil.example/x".to_owned())
        );
        for asked in [
            "/pip/../admin",
            "/pip/%2e%2e/admin",
            "/pip/a/../../admin",
            "/pip-link/00000000000000000000000000000000/https/files.example/a.whl",
            "/pip-link/x",
        ] {
            assert_eq!(meant(asked).expect_err(asked).0, StatusCode::FORBIDDEN, "{asked}");
        }
        let page = Url::parse("https://pypi.example/root/simple/flask/").expect("a page");
        let link = |to: &str| reader.link(&page, to);
        assert_eq!(
            link("f-1.whl#sha256=ab"),
            Some("/pip/flask/f-1.whl#sha256=ab".to_owned())
        );
        let other = link("https://files.example/p/f-1.whl#sha256=ab").expect("rewritten");
        assert!(other.starts_with("/pip-link/") && other.ends_with("/https/files.example/p/f-1.whl#sha256=ab"));
        let asked = other.split('#').next().expect("a path");
        assert_eq!(meant(asked), Ok("https://files.example/p/f-1.whl".to_owned()));
        assert_eq!(
            meant(&format!("{asked}.metadata")),
            Ok("https://files.example/p/f-1.whl.metadata".to_owned())
        );
        for changed in [
            format!("{asked}x"),
            asked.replace("/p/", "/q/"),
            asked.replace("https", "http"),
        ] {
            assert!(meant(&changed).is_err(), "{changed}");
        }
        // Beside the index, above its prefix.
        let beside = link("../../files/f-1.whl").expect("rewritten");
        assert!(beside.ends_with("/https/pypi.example/root/files/f-1.whl"), "{beside}");
        for stays in [
            "http://files.example/f.whl",
            "https://127.0.0.1/f.whl",
            "https://10.0.0.1/f.whl",
            "https://localhost/f.whl",
            "https://metadata/f.whl",
            "mailto:a@b.example",
            "#top",
        ] {
            assert_eq!(link(stays), None, "{stays}");
        }
    }

    #[test]
    fn pages_with_other_links() {
        let link = |to: &str| to.strip_prefix("x").map(|rest| format!("y{rest}"));
        let page = "<A HREF = 'x?a=1&amp;b'>é</a><a href=x>1</a><a data-x href=\"z\">href</a>";
        let made = html(page, link).expect("a page");
        assert_eq!(
            made,
            "<A HREF = 'y?a=1&amp;b'>é</a><a href=x>1</a><a data-x href=\"z\">href</a>"
        );
        assert!(html("<base href='x'>", link).is_err());
        let document = br#"{"files":[{"url":"x1","hashes":{}},{"url":"z"}],"name":"x"}"#;
        let made = Page::Json.with_links(document, link).expect("a document");
        assert_eq!(
            String::from_utf8(made).expect("text"),
            r#"{"files":[{"url":"y1","hashes":{}},{"url":"z"}],"name":"x"}"#
        );
    }

    #[test]
    fn a_hint_where_pip_found_nothing() {
        assert!(
            hint("at STEP 4/7: RUN pip install x\nERROR: No matching distribution found for flask>=3.0.0").is_some()
        );
        assert!(hint("at STEP 4/7: RUN make\nmake: not found").is_none());
    }
}
