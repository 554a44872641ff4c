//! From a host to the API that answers there, and who is asking.

use std::{collections::BTreeSet, fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use bucket::Objects;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use identity::{Caller, Conditions, Keys};
use image::{Digest, Images};
use model::{AuditRecord, Entry, Region, Resource, ScalingDecision, ServiceKey, Site, Timestamp};
use serde_json::{Value, json};
use store::Store;

use crate::{
    artifact_registry, cloud_build, collect, decisions,
    error::{Code, Error},
    iam::{
        accounts, credentials, groups,
        permit::{self, Asked, Of},
    },
    mirror, oauth,
    operations::Operations,
    projects,
    query::Query,
    registry,
    reply::{self, Body, BoxError},
    run, secret_manager, service_usage, storage,
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
    /// Seals and opens values of secrets.
    pub vault: Arc<secret::Vault>,
    pub keys: Arc<Keys>,
    /// Reads conditions of policies.
    pub conditions: Arc<Conditions>,
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

/// Who sent a request: put into its extensions by whoever took the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

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
    /// Writes down that a write was asked for, and what came of it.
    pub(crate) fn audit(&self, asked: &Asked, caller: Option<&Caller>, from: Option<Peer>, status: StatusCode) {
        if !asked.writes {
            return;
        }
        let service = match &asked.resource {
            Resource::Service(key) => Some(key.clone()),
            Resource::Project | Resource::Repository(_) | Resource::ServiceAccount(_) | Resource::Secret(_) => None,
        };
        (self.journal)(Entry::Audit(AuditRecord {
            at: (self.now)(),
            service,
            caller: caller.map(|caller| caller.email.clone()).unwrap_or_default(),
            method: asked.method.to_owned(),
            resource: format!(
                "//{}/{}",
                asked.resource.service(),
                asked.resource.name(&self.site.project)
            ),
            from: from.map(|Peer(address)| address.to_string()).unwrap_or_default(),
            allowed: !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN),
            status: status.as_u16(),
        }));
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
    SecretManager,
    Storage,
    /// `iam.googleapis.com`.
    Iam,
    /// `iamcredentials.googleapis.com`.
    Credentials,
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
        "iam.googleapis.com" => Api::Iam,
        "iamcredentials.googleapis.com" => Api::Credentials,
        "secretmanager.googleapis.com" => Api::SecretManager,
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
    let api = api_of(host, &surface.site);
    let of = match &api {
        Api::Registry(of) => return registry::answer(surface, of, request).await,
        Api::Plain if path == "/v2" || path.starts_with("/v2/") => {
            let of = format!("{}-docker.pkg.dev", surface.site.region);
            return registry::answer(surface, &of, request).await;
        }
        Api::Plain if path.starts_with("/homerun/v1/") => Of::Homerun,
        Api::Plain if oauth::is_public(request.method(), path) => {
            return told(oauth::answer(surface, host, request).await);
        }
        Api::Plain => return told(plain(surface, host, &request)),
        Api::Oauth => return told(oauth::answer(surface, host, request).await),
        Api::Run(_) => Of::Run,
        Api::ServiceUsage => Of::ServiceUsage,
        Api::ArtifactRegistry => Of::ArtifactRegistry,
        Api::CloudBuild => Of::CloudBuild,
        Api::SecretManager => Of::SecretManager,
        Api::Iam => Of::Iam,
        Api::Credentials => Of::Credentials,
        Api::Storage => Of::Storage,
        Api::Projects => Of::Projects,
        Api::Other => return told(Err(run::call::unimplemented(host, request.method(), path))),
    };
    let region = if let Api::Run(region) = api {
        region
    } else {
        surface.site.region.clone()
    };
    permitted(surface, host, of, &region, request).await
}

/// Asks for the permission of the method, passes the request on, and writes down what was to be changed. A request that
/// has no line in the table of permissions ends here.
async fn permitted(surface: &Surface, host: &str, of: Of, region: &Region, request: Request<Body>) -> Response<Body> {
    let from = request.extensions().get::<Peer>().copied();
    let state = surface.store.snapshot();
    let mut asked = permit::find(of, request.method(), request.uri().path(), region, &state);
    drop(state);
    // What is only tried changes nothing. No other API knows the word.
    if let Some(asked) = &mut asked
        && of == Of::Run
        && Query::parse(request.uri().query()).dry_run() == Ok(true)
    {
        asked.writes = false;
    }
    let caller = match caller(surface, host, of, &request) {
        Ok(caller) => caller,
        Err(refused) => {
            if let Some(asked) = asked {
                surface.audit(&asked, None, from, refused.code.http());
            }
            return refusal(&refused);
        }
    };
    let Some(asked) = asked else {
        return refusal(&run::call::unimplemented(host, request.method(), request.uri().path()));
    };
    // Who asks by delegates is found in the document: the last of them, not the caller, needs the permission.
    let allowed = match asked.permission.filter(|_| of != Of::Credentials) {
        Some(permission) => surface.require(&caller, permission, &asked.resource),
        None => Ok(()),
    };
    let answered = match allowed {
        Ok(()) => serve(surface, host, of, region, &caller, &asked, request).await,
        Err(refused) => Err(refused),
    };
    let response = told(answered);
    surface.audit(&asked, Some(&caller), from, response.status());
    response
}

async fn serve(
    surface: &Surface,
    host: &str,
    of: Of,
    region: &Region,
    caller: &Caller,
    asked: &Asked,
    request: Request<Body>,
) -> Result<Response<Body>, Error> {
    let path = request.uri().path();
    match of {
        Of::Run if path.starts_with("/v2/") => cloud_build::submit_run(surface, host, caller, request).await,
        Of::Run => run::answer(surface, host, region, caller, request).await,
        Of::ServiceUsage => service_usage::answer(surface, host, request).await,
        Of::ArtifactRegistry => artifact_registry::answer(surface, host, caller, asked, request).await,
        Of::CloudBuild => cloud_build::answer(surface, host, caller, request).await,
        Of::SecretManager => secret_manager::answer(surface, host, caller, asked, request).await,
        Of::Storage => storage::answer(surface, host, request).await,
        Of::Iam => accounts::answer(surface, host, caller, asked, request).await,
        Of::Credentials => credentials::answer(surface, host, caller, asked, request).await,
        Of::Projects => projects::answer(surface, host, caller, request).await,
        Of::Homerun if path == "/homerun/v1/images:collect" => collect::answer(surface, request).await,
        Of::Homerun if path == "/homerun/v1/secrets:rotateKey" => secret_manager::rotate_key(surface).await,
        Of::Homerun if path.starts_with("/homerun/v1/images:") => mirror::answer(surface, host, request).await,
        Of::Homerun if path == "/homerun/v1/groups" || path.starts_with("/homerun/v1/groups/") => {
            groups::answer(surface, host, request).await
        }
        Of::Homerun => decisions::answer(surface, host, &request),
        Of::Registry => Err(run::call::unimplemented(host, request.method(), path)),
    }
}

fn told(answered: Result<Response<Body>, Error>) -> Response<Body> {
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

/// Who sent the request, by its token.
fn caller(surface: &Surface, host: &str, of: Of, request: &Request<Body>) -> Result<Caller, Error> {
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
    let accepts = |audience: &str| is_for(host, of, request.uri(), audience);
    oauth::authenticate_at(surface, accepts, scopes(of), token)
}

/// The scopes of which one is enough at an API.
fn scopes(of: Of) -> &'static [&'static str] {
    if matches!(of, Of::Iam | Of::Credentials) {
        &[identity::CLOUD_PLATFORM_SCOPE, identity::IAM_SCOPE]
    } else {
        &[identity::CLOUD_PLATFORM_SCOPE]
    }
}

/// Whether a token that was signed for this audience is for this call to the API at `host`: for the API's root, as AIP-4111
/// has it, or for the very URL, as Google's library for Node has it. At a regional host of Cloud Run the root may also be
/// that of the API, which is what the libraries sign for. What is not Google's has no root.
fn is_for(host: &str, of: Of, call: &http::Uri, audience: &str) -> bool {
    let Some(named) = audience.strip_prefix("https://") else {
        return false;
    };
    if !host.ends_with(".googleapis.com") {
        return false;
    }
    if of == Of::Run && named == "run.googleapis.com/" {
        return true;
    }
    let path = named.strip_prefix(host);
    path.is_some_and(|path| {
        path == "/" || path == call.path() || Some(path) == call.path_and_query().map(http::uri::PathAndQuery::as_str)
    })
}

#[cfg(test)]
mod tests {
    use model::{ProjectId, Scheme};

    use super::*;

    #[test]
    fn a_token_is_for_one_api_or_one_call() {
        let (run, regional) = ("run.googleapis.com", "us-central1-run.googleapis.com");
        for (host, of, audience, is) in [
            (run, Of::Run, "https://run.googleapis.com/", true),
            (regional, Of::Run, "https://us-central1-run.googleapis.com/", true),
            (regional, Of::Run, "https://run.googleapis.com/", true),
            (run, Of::Run, "https://run.googleapis.com/v1/x", true),
            (run, Of::Run, "https://run.googleapis.com/v1/x?limit=1", true),
            (run, Of::Run, "https://us-central1-run.googleapis.com/", false),
            (regional, Of::Run, "https://run.googleapis.com/v1/x", false),
            (run, Of::Run, "https://run.googleapis.com", false),
            (run, Of::Run, "https://run.googleapis.com//", false),
            (run, Of::Run, "https://run.googleapis.com:443/", false),
            (run, Of::Run, "https://run.googleapis.com/v1", false),
            (run, Of::Run, "https://run.googleapis.com/v1/x?limit=2", false),
            (run, Of::Run, "http://run.googleapis.com/", false),
            ("iam.googleapis.com", Of::Iam, "https://run.googleapis.com/", false),
            ("127.0.0.1", Of::Homerun, "https://127.0.0.1/", false),
            ("", Of::Homerun, "https:///", false),
        ] {
            let call = http::Uri::from_static("/v1/x?limit=1");
            assert_eq!(is_for(host, of, &call, audience), is, "{host} {audience}");
        }
    }

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
            ("iam.googleapis.com", Api::Iam),
            ("iamcredentials.googleapis.com", Api::Credentials),
            ("secretmanager.googleapis.com", Api::SecretManager),
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
