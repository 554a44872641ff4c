//! From a host to the API that answers there, and who is asking.

use std::{collections::BTreeSet, fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use bucket::Objects;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use identity::{Caller, Keys, TokenError};
use image::{Digest, Images};
use model::{Entry, Region, ScalingDecision, ServiceKey, Site, Timestamp};
use serde_json::{Value, json};
use store::Store;

use crate::{
    artifact_registry, cloud_build, collect, decisions, document,
    error::{Code, Error},
    mirror,
    operations::Operations,
    projects, registry,
    reply::{self, Body, BoxError},
    run, service_accounts, service_usage, storage,
};

/// What was decided on the instances of a service lately, newest first. Must not block.
pub type Decisions = Box<dyn Fn(&ServiceKey) -> Vec<ScalingDecision> + Send + Sync>;

/// The digests of images that somebody runs.
pub type Held = Box<dyn Fn() -> Option<BTreeSet<Digest>> + Send + Sync>;

/// All that the APIs stand on. Made once, shared by every request.
pub struct Surface {
    pub store: Store,
    pub images: Images,
    pub objects: Objects,
    pub keys: Arc<Keys>,
    pub site: Site,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Takes the audit entry of each write. Must not block.
    pub journal: Box<dyn Fn(Entry) + Send + Sync>,
    /// What was decided on the instances of a service lately, newest first.
    pub decisions: Decisions,
    /// The digests that revisions and instances hold; None when that cannot be told. Must not block.
    pub held: Held,
    /// Those that clients may still ask for.
    pub operations: Operations,
    /// Where the logs of builds grow: `log-ID.txt`.
    pub build_logs: PathBuf,
    pub about: About,
}

/// What `/homerun/about` tells our own CLI about this server.
#[derive(Debug, Clone)]
pub struct About {
    /// The product's version.
    pub version: String,
    pub data_dir: PathBuf,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where the ingress listens for plain HTTP and for TLS.
    pub http: SocketAddr,
    pub https: SocketAddr,
}

impl fmt::Debug for Surface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surface")
            .field("site", &self.site)
            .field("about", &self.about)
            .finish_non_exhaustive()
    }
}

impl Surface {
    pub(crate) fn audit(&self, service: &ServiceKey, caller: &Caller, method: &str) {
        (self.journal)(Entry::Audit {
            at: (self.now)(),
            service: service.clone(),
            caller: caller.email.clone(),
            method: method.to_owned(),
        });
    }

    /// Unix seconds, as tokens count them.
    pub(crate) fn seconds(&self) -> u64 {
        u64::try_from((self.now)().as_seconds()).unwrap_or(0)
    }
}

/// Which API a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Api {
    /// With the region of calls whose path names none.
    Run(Region),
    ServiceUsage,
    ArtifactRegistry,
    CloudBuild,
    Storage,
    /// `iam.googleapis.com`.
    ServiceAccounts,
    /// `cloudresourcemanager.googleapis.com`.
    Projects,
    /// `oauth2.googleapis.com` and the other hosts of Google's sign-in.
    Oauth,
    /// With the host under which repositories are named.
    Registry(String),
    /// The API port itself.
    Plain,
    /// A host of Google's at which nothing is served.
    Other,
}

fn api_of(host: &str, site: &Site) -> Api {
    if image::is_own_host(host) {
        return Api::Registry(host.to_owned());
    }
    match host {
        "run.googleapis.com" => Api::Run(site.region.clone()),
        "serviceusage.googleapis.com" => Api::ServiceUsage,
        "artifactregistry.googleapis.com" => Api::ArtifactRegistry,
        "cloudbuild.googleapis.com" => Api::CloudBuild,
        "iam.googleapis.com" => Api::ServiceAccounts,
        "storage.googleapis.com" => Api::Storage,
        "cloudresourcemanager.googleapis.com" => Api::Projects,
        "oauth2.googleapis.com" | "accounts.google.com" | "www.googleapis.com" => Api::Oauth,
        _ => {
            if let Some(region) = host.strip_suffix("-run.googleapis.com") {
                return Region::parse(region).map_or(Api::Other, Api::Run);
            }
            let google = ["googleapis.com", "google.com", "run.app"];
            let under = |parent: &str| {
                host.strip_suffix(parent)
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            if google.into_iter().any(under) {
                Api::Other
            } else {
                Api::Plain
            }
        }
    }
}

/// Answers one request. `host` is the host it is meant for, without a port: of the CONNECT line, else of `Host`.
pub async fn answer<B>(surface: &Arc<Surface>, host: &str, request: Request<B>) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    dispatch(surface, &host, request).await
}

async fn dispatch(surface: &Surface, host: &str, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path();
    let answered = match api_of(host, &surface.site) {
        Api::Registry(of) => return registry::answer(surface, &of, request).await,
        Api::Plain if path == "/v2" || path.starts_with("/v2/") => {
            let of = format!("{}-docker.pkg.dev", surface.site.region);
            return registry::answer(surface, &of, request).await;
        }
        Api::Plain if path == "/homerun/v1/images:collect" && request.method() == Method::POST => {
            match caller(surface, &request) {
                Ok(_) => collect::answer(surface, request).await,
                Err(refused) => Err(refused),
            }
        }
        Api::Plain if path.starts_with("/homerun/v1/images:") => match caller(surface, &request) {
            Ok(_) => mirror::answer(surface, host, request).await,
            Err(refused) => Err(refused),
        },
        Api::Plain => plain(surface, host, &request),
        Api::Oauth => oauth(surface, host, request).await,
        Api::Run(region) => match caller(surface, &request) {
            Ok(caller) if path.starts_with("/v2/") => cloud_build::submit_run(surface, host, &caller, request).await,
            Ok(caller) => run::answer(surface, host, &region, &caller, request).await,
            Err(refused) => Err(refused),
        },
        Api::ServiceUsage => match caller(surface, &request) {
            Ok(_) => service_usage::answer(surface, host, request).await,
            Err(refused) => Err(refused),
        },
        Api::ArtifactRegistry => match caller(surface, &request) {
            Ok(_) => artifact_registry::answer(surface, host, request).await,
            Err(refused) => Err(refused),
        },
        Api::CloudBuild => match caller(surface, &request) {
            Ok(caller) => cloud_build::answer(surface, host, &caller, request).await,
            Err(refused) => Err(refused),
        },
        Api::ServiceAccounts => match caller(surface, &request) {
            Ok(_) => service_accounts::answer(surface, host, &request),
            Err(refused) => Err(refused),
        },
        Api::Storage => match caller(surface, &request) {
            Ok(_) => storage::answer(surface, host, request).await,
            Err(refused) => Err(refused),
        },
        Api::Projects => match caller(surface, &request) {
            Ok(_) => projects::answer(surface, host, &request),
            Err(refused) => Err(refused),
        },
        Api::Other => Err(run::call::unimplemented(host, request.method(), path)),
    };
    answered.unwrap_or_else(|error| refusal(&error))
}

fn refusal(error: &Error) -> Response<Body> {
    let mut response = reply::json(error.code.http(), &error.body());
    if error.code == Code::Unauthenticated {
        let challenge = http::HeaderValue::from_static("Bearer realm=\"https://accounts.google.com/\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// What the API port answers under its own name.
fn plain(surface: &Surface, host: &str, request: &Request<Body>) -> Result<Response<Body>, Error> {
    match (request.method(), request.uri().path()) {
        (&(Method::GET | Method::HEAD), "/healthz") => Ok(Response::new(reply::full("ok\n"))),
        (&(Method::GET | Method::HEAD), "/homerun/about") => Ok(reply::json(StatusCode::OK, &about(surface))),
        (_, path) if path.starts_with("/homerun/v1/") => {
            caller(surface, request)?;
            decisions::answer(surface, host, request)
        }
        (method, path) => Err(run::call::unimplemented(host, method, path)),
    }
}

fn about(surface: &Surface) -> Value {
    let About {
        version,
        data_dir,
        api,
        http,
        https,
    } = &surface.about;
    let site = &surface.site;
    json!({
        "product": "homerun",
        "version": version,
        "project": site.project.as_str(),
        "projectNumber": site.number().to_string(),
        "region": site.region.as_str(),
        "domain": site.domain,
        "dataDir": data_dir.to_string_lossy(),
        "api": api.to_string(),
        "http": http.to_string(),
        "https": https.to_string(),
    })
}

/// The token endpoint under each of the names that clients know, and the keys by which ID tokens are checked.
async fn oauth(surface: &Surface, host: &str, request: Request<Body>) -> Result<Response<Body>, Error> {
    let is_endpoint = matches!(
        (host, request.uri().path()),
        ("oauth2.googleapis.com", "/token")
            | ("accounts.google.com", "/o/oauth2/token")
            | ("www.googleapis.com", "/oauth2/v4/token")
    );
    let is_keys = host == "www.googleapis.com" && request.uri().path() == "/oauth2/v3/certs";
    match request.method() {
        &Method::POST if is_endpoint => {
            let content = document::read(request.into_body()).await?;
            let form: Vec<(String, String)> = form_urlencoded::parse(&content).into_owned().collect();
            Ok(match surface.keys.token_endpoint(&form, surface.seconds()) {
                Ok(token) => reply::json(StatusCode::OK, &token),
                Err(refused) => reply::json(StatusCode::BAD_REQUEST, &refused.body()),
            })
        }
        &Method::GET if is_keys => Ok(reply::json(StatusCode::OK, &surface.keys.issuer().jwks())),
        method => Err(run::call::unimplemented(host, method, request.uri().path())),
    }
}

/// Who sent the request, by its access token.
fn caller(surface: &Surface, request: &Request<Body>) -> Result<Caller, Error> {
    let refused = |why: String| Error::new(Code::Unauthenticated, why);
    let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
    let Some(value) = given.next() else {
        return Err(refused(
            "the request has no access token: expected Authorization: Bearer TOKEN".to_owned(),
        ));
    };
    if given.next().is_some() {
        return Err(refused("the request has more than one Authorization header".to_owned()));
    }
    let token = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| refused("the Authorization header is not of the form Bearer TOKEN".to_owned()))?;
    check(surface, token).map_err(|error| {
        if matches!(error, TokenError::Scope { .. }) {
            Error::new(Code::PermissionDenied, error.to_string())
        } else {
            refused(format!("the access token is not accepted: {error}"))
        }
    })
}

pub(crate) fn check(surface: &Surface, token: &str) -> Result<Caller, TokenError> {
    surface.keys.issuer().check_access(token, surface.seconds())
}

#[cfg(test)]
mod tests {
    use model::{ProjectId, Scheme};

    use super::*;

    #[test]
    fn hosts() {
        let region = |text: &str| Region::parse(text).expect(text);
        let site = Site {
            project: ProjectId::parse("my-project").expect("an id"),
            region: region("us-central1"),
            domain: "a.run.localhost".to_owned(),
            scheme: Scheme::Https,
            port: 8443,
            default_sandbox: model::Sandbox::Gen2,
        };
        for (host, api) in [
            ("run.googleapis.com", Api::Run(region("us-central1"))),
            ("europe-west1-run.googleapis.com", Api::Run(region("europe-west1"))),
            ("-run.googleapis.com", Api::Other),
            ("serviceusage.googleapis.com", Api::ServiceUsage),
            ("cloudbuild.googleapis.com", Api::CloudBuild),
            ("iam.googleapis.com", Api::ServiceAccounts),
            ("oauth2.googleapis.com", Api::Oauth),
            (
                "us-central1-docker.pkg.dev",
                Api::Registry("us-central1-docker.pkg.dev".to_owned()),
            ),
            ("127.0.0.1", Api::Plain),
            ("localhost", Api::Plain),
            ("logging.googleapis.com", Api::Other),
            ("console.cloud.google.com", Api::Other),
            ("x.a.run.app", Api::Other),
            ("notgoogleapis.com", Api::Plain),
        ] {
            assert_eq!(api_of(host, &site), api, "{host}");
        }
    }
}
