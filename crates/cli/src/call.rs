//! Calls to a Homerun: plain HTTP to its API port, with the Google host that is meant in the `Host` header.
//!
//! The first call asks the server about itself, without a token. Whoever can read the owner's key in the data directory
//! that the answer names is the owner: an assertion signed with it, or with the key of another account that was chosen
//! (`credential`), is exchanged for the access token of all other calls, which is kept for the next command (`kept`).

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use model::{ProjectId, Region};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use ureq::http::{Method, Request, Response, StatusCode};

use crate::credential::Chosen;
use crate::error::Refusal;
use crate::kept::Held;
use crate::words::Global;
use crate::{Error, Name, Outside, property};

/// Where a Homerun listens unless it was told otherwise.
pub const DEFAULT_API: &str = "127.0.0.1:8787";
/// What access tokens are asked for.
pub(crate) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// An answer longer than this is not one of ours.
const LONGEST_ANSWER: u64 = 256 << 20;
const NOT_ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Text as one part of a path or a query value.
pub(crate) fn escape(text: &str) -> String {
    utf8_percent_encode(text, NOT_ESCAPED).to_string()
}

/// What a Homerun says about itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct About {
    pub(crate) project: String,
    pub(crate) region: String,
    pub(crate) data_dir: PathBuf,
    /// What the URLs of services end with.
    #[serde(default)]
    pub(crate) domain: String,
    /// Where the ingress listens for plain HTTP and for TLS.
    #[serde(default)]
    pub(crate) http: String,
    #[serde(default)]
    pub(crate) https: String,
}

impl About {
    pub(crate) fn authority(&self) -> PathBuf {
        self.data_dir.join("ca/ca.pem")
    }

    pub(crate) fn owner_key(&self) -> PathBuf {
        self.data_dir.join("identity/owner-key.json")
    }
}

/// The address of the API port: flag, then environment, then the default.
pub(crate) fn api(outside: &Outside<'_>, global: &Global) -> String {
    let api = global
        .api
        .as_deref()
        .or_else(|| outside.var("HOMERUN_API"))
        .unwrap_or(DEFAULT_API);
    api.strip_prefix("http://")
        .unwrap_or(api)
        .trim_end_matches('/')
        .to_owned()
}

/// A Homerun that answered.
#[derive(Debug)]
pub(crate) struct Server {
    agent: ureq::Agent,
    api: String,
    pub(crate) about: About,
    pub(crate) project: String,
    region: Option<String>,
    pub(crate) chosen: Chosen,
    pub(crate) token: RefCell<Option<Held>>,
}

/// A body with its media type.
pub(crate) enum Content<'a> {
    None,
    Json(&'a Value),
    Form(String),
    /// None, and of the answer only what begins at this byte.
    From(u64),
    /// A stream of a known length.
    Stream {
        media_type: &'a str,
        length: u64,
        from: &'a mut dyn std::io::Read,
    },
}

impl<'a> Content<'a> {
    /// The same once more. What is read from a stream is gone.
    fn again(&self) -> Option<Content<'a>> {
        match self {
            Self::None => Some(Content::None),
            Self::Json(value) => Some(Content::Json(value)),
            Self::Form(form) => Some(Content::Form(form.clone())),
            Self::From(first) => Some(Content::From(*first)),
            Self::Stream { .. } => None,
        }
    }
}

impl Server {
    /// Finds the Homerun that the words mean, and which project and region.
    pub(crate) fn find(outside: &Outside<'_>, global: &Global) -> Result<Self, Error> {
        let api = api(outside, global);
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(3)))
            .user_agent(concat!("homerun/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let about = about(&agent, &api)?;
        let mut server = Self {
            agent,
            api,
            project: about.project.clone(),
            about,
            region: None,
            chosen: Chosen::default(),
            token: RefCell::new(None),
        };
        let settings = property::Settings::open(outside)?;
        server.chosen = Chosen::read(outside, global, &settings)?;
        let gcloud = |name: &str| match outside.name {
            Name::Gcloud => outside.var(name),
            Name::Homerun => None,
        };
        let project = global
            .project
            .as_deref()
            .or_else(|| outside.var("HOMERUN_PROJECT"))
            .or_else(|| gcloud("CLOUDSDK_CORE_PROJECT"))
            .or_else(|| settings.get("core", "project"));
        if let Some(project) = project {
            ProjectId::parse(project).map_err(|why| Error::Usage(format!("--project: {why}")))?;
            project.clone_into(&mut server.project);
        }
        server.region = global
            .region
            .as_deref()
            .or_else(|| outside.var("HOMERUN_REGION"))
            .or_else(|| gcloud("CLOUDSDK_RUN_REGION"))
            .or_else(|| settings.get("run", "region"))
            .map(str::to_owned);
        if let Some(region) = &server.region {
            Region::parse(region).map_err(|why| Error::Usage(format!("--region: {why}")))?;
        }
        Ok(server)
    }

    /// The region that was asked for, else the server's own.
    pub(crate) fn region(&self) -> &str {
        self.region.as_deref().unwrap_or(&self.about.region)
    }

    pub(crate) fn api(&self) -> &str {
        &self.api
    }

    /// Host of the calls that belong to the region.
    pub(crate) fn regional(&self) -> String {
        format!("{}-run.googleapis.com", self.region())
    }

    /// Path of Knative resources of this project, with a kind such as `services`.
    pub(crate) fn knative(&self, kind: &str) -> String {
        format!(
            "/apis/serving.knative.dev/v1/namespaces/{}/{kind}",
            escape(&self.project)
        )
    }

    /// Path of one Knative resource.
    pub(crate) fn knative_named(&self, kind: &str, name: &str) -> String {
        format!("{}/{}", self.knative(kind), escape(name))
    }

    /// All items of a list under `field`, over all its pages.
    pub(crate) fn all(&self, outside: &Outside<'_>, host: &str, path: &str, field: &str) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        let mut page = String::new();
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let token = if page.is_empty() {
                String::new()
            } else {
                format!("{mark}pageToken={}", escape(&page))
            };
            let mut answer = self.get(outside, host, &format!("{path}{token}"))?;
            if let Some(more) = answer[field].as_array_mut() {
                items.append(more);
            }
            match answer["nextPageToken"].as_str() {
                Some(next) if !next.is_empty() && next != page => next.clone_into(&mut page),
                Some(_) | None => return Ok(items),
            }
        }
    }

    pub(crate) fn get(&self, outside: &Outside<'_>, host: &str, path: &str) -> Result<Value, Error> {
        self.json(outside, &Method::GET, host, path, Content::None)
    }

    /// What no API of Google's has: asked of the API port under its own name.
    pub(crate) fn own(&self, outside: &Outside<'_>, path: &str) -> Result<Value, Error> {
        self.get(outside, &self.api, path)
    }

    /// The resource, or nothing where there is none of that name.
    pub(crate) fn find_one(&self, outside: &Outside<'_>, kind: &str, name: &str) -> Result<Option<Value>, Error> {
        match self.get(outside, &self.regional(), &self.knative_named(kind, name)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All items of a list, over all its pages, at most `limit`.
    pub(crate) fn list(
        &self,
        outside: &Outside<'_>,
        host: &str,
        path: &str,
        selector: Option<&str>,
    ) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        let mut page = String::new();
        loop {
            let mut query = String::new();
            for (key, value) in [("labelSelector", selector), ("continue", Some(page.as_str()))] {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    let mark = if query.is_empty() { '?' } else { '&' };
                    write!(query, "{mark}{key}={}", escape(value)).expect("a string takes text");
                }
            }
            let mut answer = self.get(outside, host, &format!("{path}{query}"))?;
            if let Some(more) = answer["items"].as_array_mut() {
                items.append(more);
            }
            match answer["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() && next != page => next.clone_into(&mut page),
                Some(_) | None => return Ok(items),
            }
        }
    }

    pub(crate) fn json(
        &self,
        outside: &Outside<'_>,
        method: &Method,
        host: &str,
        path: &str,
        content: Content<'_>,
    ) -> Result<Value, Error> {
        let mut response = self.send(outside, method, host, path, content)?;
        let text = self.text(&mut response)?;
        let code = response.status().as_u16();
        if !response.status().is_success() {
            return Err(Refusal::read(code, &text).into());
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => Ok(Value::Object(fields)),
            Ok(_) | Err(_) => Err(Error::Answer {
                call: format!("{method} {path}"),
                what: "no JSON object".to_owned(),
            }),
        }
    }

    /// What there is from a byte on of something that grows. None: nothing, or it has not begun.
    pub(crate) fn bytes_from(
        &self,
        outside: &Outside<'_>,
        host: &str,
        path: &str,
        first: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut response = self.send(outside, &Method::GET, host, path, Content::From(first))?;
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => Ok(None),
            code if code.is_success() => {
                let body = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec();
                body.map(Some).map_err(|source| broken(&self.api, source))
            }
            code => Err(Refusal::read(code.as_u16(), &self.text(&mut response)?).into()),
        }
    }

    /// Sends one request with the access token.
    pub(crate) fn send(
        &self,
        outside: &Outside<'_>,
        method: &Method,
        host: &str,
        path: &str,
        content: Content<'_>,
    ) -> Result<Response<ureq::Body>, Error> {
        let token = self.access_token(outside)?;
        let again = content.again();
        let response = exchange(&self.agent, &self.api, method, host, path, Some(&token), content)?;
        let is_kept = self.token.borrow().as_ref().is_some_and(|held| held.kept);
        match again {
            // a token of an earlier command, of before this server was made anew
            Some(content) if is_kept && response.status() == StatusCode::UNAUTHORIZED => {
                let token = self.fresh_token(outside)?;
                exchange(&self.agent, &self.api, method, host, path, Some(&token), content)
            }
            Some(_) | None => Ok(response),
        }
    }

    pub(crate) fn text(&self, response: &mut Response<ureq::Body>) -> Result<String, Error> {
        read_text(response, &self.api)
    }

    /// One call with this token, or with none.
    fn json_with(
        &self,
        token: Option<&str>,
        method: &Method,
        host: &str,
        path: &str,
        content: Content<'_>,
    ) -> Result<Value, Error> {
        let mut response = exchange(&self.agent, &self.api, method, host, path, token, content)?;
        let text = read_text(&mut response, &self.api)?;
        if !response.status().is_success() {
            return Err(Refusal::read(response.status().as_u16(), &text).into());
        }
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// One call with a token that is not the one of all others.
    pub(crate) fn json_as(
        &self,
        token: &str,
        method: &Method,
        host: &str,
        path: &str,
        content: Content<'_>,
    ) -> Result<Value, Error> {
        self.json_with(Some(token), method, host, path, content)
    }

    /// One call without a token.
    pub(crate) fn json_open(
        &self,
        method: &Method,
        host: &str,
        path: &str,
        content: Content<'_>,
    ) -> Result<Value, Error> {
        self.json_with(None, method, host, path, content)
    }
}

/// Asks who listens at `api`.
fn about(agent: &ureq::Agent, api: &str) -> Result<About, Error> {
    let mut response =
        exchange(agent, api, &Method::GET, api, "/homerun/about", None, Content::None).map_err(|error| {
            if matches!(&error, Error::Broken { source, .. } if nobody_listens(source)) {
                Error::Nobody { api: api.to_owned() }
            } else {
                error
            }
        })?;
    let stranger = |found: String| Error::Stranger {
        api: api.to_owned(),
        found,
    };
    let code = response.status();
    if !code.is_success() {
        return Err(stranger(format!("it answered {code} to GET /homerun/about")));
    }
    let text = read_text(&mut response, api)?;
    serde_json::from_str(&text).map_err(|why| stranger(format!("it answered GET /homerun/about otherwise ({why})")))
}

fn nobody_listens(error: &ureq::Error) -> bool {
    if let ureq::Error::Io(io) = error {
        matches!(
            io.kind(),
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::TimedOut
        )
    } else {
        matches!(error, ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed)
    }
}

fn read_text(response: &mut Response<ureq::Body>, api: &str) -> Result<String, Error> {
    response
        .body_mut()
        .with_config()
        .limit(LONGEST_ANSWER)
        .read_to_string()
        .map_err(|source| broken(api, source))
}

fn broken(api: &str, source: ureq::Error) -> Error {
    Error::Broken {
        api: api.to_owned(),
        source: Box::new(source),
    }
}

fn exchange(
    agent: &ureq::Agent,
    api: &str,
    method: &Method,
    host: &str,
    path: &str,
    token: Option<&str>,
    content: Content<'_>,
) -> Result<Response<ureq::Body>, Error> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{api}{path}"))
        .header("host", host);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let failed = |source: ureq::http::Error| broken(api, ureq::Error::Http(source));
    let sent = match content {
        // without a length a POST would be sent in chunks, and a GET takes no body at all
        Content::None if *method == Method::POST => agent.run(request.body("").map_err(failed)?),
        Content::None => agent.run(request.body(()).map_err(failed)?),
        Content::From(first) => {
            request = request.header("range", format!("bytes={first}-"));
            agent.run(request.body(()).map_err(failed)?)
        }
        Content::Json(value) => {
            request = request.header("content-type", "application/json");
            agent.run(request.body(value.to_string()).map_err(failed)?)
        }
        Content::Form(form) => {
            request = request.header("content-type", "application/x-www-form-urlencoded");
            agent.run(request.body(form).map_err(failed)?)
        }
        Content::Stream {
            media_type,
            length,
            from,
        } => {
            request = request
                .header("content-type", media_type)
                .header("content-length", length.to_string());
            let body = ureq::SendBody::from_reader(from);
            agent.run(request.body(body).map_err(failed)?)
        }
    };
    sent.map_err(|source| broken(api, source))
}
