//! The image registry's HTTP face: the OCI distribution specification over the blob store of `image`.
//!
//! It answers at `REGION-docker.pkg.dev` (and every other `*.pkg.dev`), and at the API port itself. On the API port,
//! repositories are those of the default region's host: `127.0.0.1:8787/my-project/repo/app` is
//! `us-central1-docker.pkg.dev/my-project/repo/app`. Callers show who they are ([`admission`]); they may read and
//! write what their roles allow, and write below the project alone.
//!
//! Uploads are written through to the disk as they arrive, and downloads read from it piece by piece.

mod admission;
mod blob;
mod referrers;
mod refusal;
mod upload;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use identity::Caller;
use image::{Digest, MAX_MANIFEST_BYTES, Repository, Version};
use model::{Permission, Region, RepositoryKey, RepositoryName, Resource};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::{
    artifact_registry,
    error::Error,
    iam::permit::{self, Asked, Of},
    registry::refusal::Refusal,
    reply::{self, Body},
    surface::{Peer, Surface},
};

/// One call, as path and method spell it.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// `GET /v2/`: is this a registry, and am I known to it?
    Ping,
    /// `/v2/token`: where clients exchange what they log in with.
    Token,
    Tags(String),
    Referrers(String, String),
    Manifest(String, String),
    Blob(String, String),
    BeginUpload(String),
    Upload(String, String),
}

/// Reads `/v2/NAME/...`. NAME has slashes itself, so the path is read from its end.
fn parse(path: &str) -> Option<Call> {
    let rest = path.strip_prefix("/v2")?;
    if rest.is_empty() || rest == "/" {
        return Some(Call::Ping);
    }
    if rest == "/token" {
        return Some(Call::Token);
    }
    let parts: Vec<&str> = rest.strip_prefix('/')?.split('/').collect();
    let name = |parts: &[&str]| parts.join("/");
    Some(match parts.as_slice() {
        [of @ .., "blobs", "uploads", ""] | [of @ .., "blobs", "uploads"] if !of.is_empty() => {
            Call::BeginUpload(name(of))
        }
        [of @ .., "blobs", "uploads", id] if !of.is_empty() => Call::Upload(name(of), (*id).to_owned()),
        [of @ .., "tags", "list"] if !of.is_empty() => Call::Tags(name(of)),
        [of @ .., "referrers", digest] if !of.is_empty() => Call::Referrers(name(of), (*digest).to_owned()),
        [of @ .., "manifests", version] if !of.is_empty() => Call::Manifest(name(of), (*version).to_owned()),
        [of @ .., "blobs", digest] if !of.is_empty() => Call::Blob(name(of), (*digest).to_owned()),
        _ => return None,
    })
}

/// Answers a request to the registry that is known as `host`.
pub(crate) async fn answer(surface: &Surface, host: &str, request: Request<Body>) -> Response<Body> {
    let challenge = admission::challenge(host, &request);
    let is_head = request.method() == Method::HEAD;
    let from = request.extensions().get::<Peer>().copied();
    let mut told = None;
    let mut response = match serve(surface, host, request, &mut told).await {
        Ok(response) => response,
        Err(refused) => refused.response(),
    };
    if let Some((asked, caller)) = told {
        surface.audit(&asked, Some(&caller), from, response.status());
    }
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    if is_head {
        *response.body_mut() = reply::empty();
    }
    let version = HeaderValue::from_static("registry/2.0");
    response
        .headers_mut()
        .insert("docker-distribution-api-version", version);
    response
}

/// `told` is set to what was asked for and by whom, once that is known.
async fn serve(
    surface: &Surface,
    host: &str,
    request: Request<Body>,
    told: &mut Option<(Asked, Caller)>,
) -> Result<Response<Body>, Refusal> {
    let (head, body) = request.into_parts();
    let path = percent_decode_str(head.uri.path())
        .decode_utf8()
        .map_err(|_| Refusal::unsupported(&head))?;
    let call = parse(&path);
    if call == Some(Call::Token) {
        return admission::token(surface, &head, body).await;
    }
    let caller = admission::admit(surface, &head)?;
    let call = call.ok_or_else(|| Refusal::unsupported(&head))?;
    let (asked, caller) = told.insert((asked(surface, host, &head, &path, &call)?, caller));
    if let Some(permission) = asked.permission {
        let denied = |refused: Error| Refusal::denied(refused.message);
        surface.require(caller, permission, &asked.resource).map_err(denied)?;
        // A push into a repository that is not there makes it, which takes more than to write into one.
        if permission == Permission::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS
            && is_missing(surface, &asked.resource)
        {
            let create = Permission::ARTIFACTREGISTRY_REPOSITORIES_CREATE;
            surface.require(caller, create, &Resource::Project).map_err(denied)?;
        }
    }
    let images = &surface.images;
    let named = |name: &str| Repository::new(host, name).map_err(|error| Refusal::name(&error));
    let reads = matches!(head.method, Method::GET | Method::HEAD);
    match call {
        Call::Ping if reads => Ok(reply::json(StatusCode::OK, &json!({}))),
        Call::Tags(name) if reads => tags(surface, named(&name)?, &head).await,
        Call::Manifest(name, version) => {
            let repository = named(&name)?;
            let version: Version = version.parse().map_err(|error| Refusal::reference(&error))?;
            match head.method {
                Method::GET | Method::HEAD => manifest(surface, repository, version).await,
                Method::PUT => {
                    writable(surface, &repository)?;
                    put_manifest(surface, &repository, &version, &head, body).await
                }
                Method::DELETE => {
                    writable(surface, &repository)?;
                    images.delete_manifest(&repository, &version).await?;
                    Ok(accepted())
                }
                _ => Err(Refusal::unsupported(&head)),
            }
        }
        Call::Referrers(name, subject) if head.method == Method::GET => {
            let subject = subject.parse().map_err(|error| Refusal::digest(&error))?;
            referrers::list(images, named(&name)?, subject, &head).await
        }
        Call::Blob(name, digest) => {
            let repository = named(&name)?;
            let digest = digest.parse().map_err(|error| Refusal::digest(&error))?;
            match head.method {
                Method::GET | Method::HEAD => blob::read(images, digest, &head).await,
                Method::DELETE => {
                    writable(surface, &repository)?;
                    let held = (surface.held)().ok_or_else(Refusal::unavailable)?;
                    images.delete_blob(&digest, held).await?;
                    Ok(accepted())
                }
                _ => Err(Refusal::unsupported(&head)),
            }
        }
        Call::BeginUpload(name) if head.method == Method::POST => {
            let repository = named(&name)?;
            writable(surface, &repository)?;
            upload::begin(images, &repository, &head, body).await
        }
        Call::Upload(name, id) => {
            let repository = named(&name)?;
            writable(surface, &repository)?;
            upload::answer(images, &repository, id.parse()?, &head, body).await
        }
        Call::Ping | Call::Token | Call::Tags(_) | Call::Referrers(..) | Call::BeginUpload(_) => {
            Err(Refusal::unsupported(&head))
        }
    }
}

/// What the call asks for. Its repository is the one that its image's name has; names of other places go by the project.
fn asked(surface: &Surface, host: &str, head: &Parts, path: &str, call: &Call) -> Result<Asked, Refusal> {
    let state = surface.store.snapshot();
    let asked = permit::find(Of::Registry, &head.method, path, &surface.site.region, &state);
    let mut asked = asked.ok_or_else(|| Refusal::unsupported(head))?;
    let (Call::Tags(name)
    | Call::Referrers(name, _)
    | Call::Manifest(name, _)
    | Call::Blob(name, _)
    | Call::BeginUpload(name)
    | Call::Upload(name, _)) = call
    else {
        return Ok(asked);
    };
    let location = host.strip_suffix("-docker.pkg.dev");
    if let (Some(location), Some((project, rest))) = (location, name.split_once('/'))
        && project == surface.site.project.as_str()
        && let Ok(location) = Region::parse(location)
        && let Ok(name) = RepositoryName::parse(rest.split('/').next().unwrap_or_default())
    {
        asked.resource = Resource::Repository(RepositoryKey { location, name });
    }
    Ok(asked)
}

fn is_missing(surface: &Surface, resource: &Resource) -> bool {
    matches!(resource, Resource::Repository(key) if !surface.store.snapshot().repositories.contains_key(key))
}

/// Writes go below this Homerun's project, as at Google.
fn writable(surface: &Surface, repository: &Repository) -> Result<(), Refusal> {
    let project = &surface.site.project;
    match repository.path().split_once('/') {
        Some((first, _)) if first == project.as_str() => Ok(()),
        _ => Err(Refusal::denied(format!(
            "repository {repository} cannot be written: this Homerun's are {}/{project}/... (an image there is given \
             another registry's name by `homerun images mirror`)",
            repository.host()
        ))),
    }
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(reply::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// Runs work that blocks on the disk off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "reading the image store broke off"
        );
        Refusal::unavailable()
    })
}

async fn manifest(surface: &Surface, repository: Repository, version: Version) -> Result<Response<Body>, Refusal> {
    let images = surface.images.clone();
    let stored = blocking(move || images.manifest(&repository, &version)).await??;
    let length = stored.content.len();
    let mut response = Response::new(reply::full(stored.content));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_str(&stored.media_type).map_err(|_| Refusal::unavailable())?;
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CONTENT_LENGTH, length.into());
    put_digest(headers, &stored.digest);
    Ok(response)
}

async fn put_manifest(
    surface: &Surface,
    repository: &Repository,
    version: &Version,
    head: &Parts,
    mut body: Body,
) -> Result<Response<Body>, Refusal> {
    let kind = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind
        .map(|kind| kind.split(';').next().unwrap_or_default().trim())
        .filter(|kind| !kind.is_empty());
    let Some(kind) = kind else {
        return Err(Refusal::manifest(
            "the Content-Type header with the manifest's media type is missing".to_owned(),
        ));
    };
    let limit = usize::try_from(MAX_MANIFEST_BYTES).expect("a few mebibytes");
    let mut content = Vec::new();
    while let Some(data) = next(&mut body).await? {
        if content.len() + data.len() > limit {
            return Err(image::Error::TooLarge {
                what: "manifest",
                limit: MAX_MANIFEST_BYTES,
            }
            .into());
        }
        content.extend_from_slice(&data);
    }
    artifact_registry::ensure(surface, repository)
        .await
        .map_err(|error| Refusal::repository(&error))?;
    let digest = surface.images.put_manifest(repository, version, kind, &content).await?;
    let mut response = created(&format!("/v2/{}/manifests/{digest}", repository.path()), &digest);
    // Tells the client that the registry keeps the list of referrers, so that it need not.
    if let Some(subject) = image::subject_of(&content) {
        let value = HeaderValue::from_str(&subject.to_string()).expect("a digest is plain ASCII");
        response.headers_mut().insert("oci-subject", value);
    }
    Ok(response)
}

async fn tags(surface: &Surface, repository: Repository, head: &Parts) -> Result<Response<Body>, Refusal> {
    let mut limit = None;
    let mut last = None;
    for (key, value) in form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()) {
        match key.as_ref() {
            "n" => {
                let number: usize = value.parse().map_err(|_| Refusal::page(&value))?;
                limit = Some(number);
            }
            "last" => last = Some(value.into_owned()),
            _ => {}
        }
    }
    let path = repository.path().to_owned();
    let images = surface.images.clone();
    let tags = blocking(move || images.tags(&repository)).await??;
    let mut names: Vec<String> = tags.iter().map(|tag| tag.as_str().to_owned()).collect();
    names.sort_unstable();
    if let Some(last) = last {
        names.retain(|name| *name > last);
    }
    let mut link = None;
    if let Some(limit) = limit
        && names.len() > limit
    {
        names.truncate(limit);
        link = names
            .last()
            .map(|last| format!("</v2/{path}/tags/list?n={limit}&last={last}>; rel=\"next\""));
    }
    let mut response = reply::json(StatusCode::OK, &json!({ "name": path, "tags": names }));
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// How long a body may pause.
const PATIENCE: Duration = Duration::from_mins(1);

/// The next bytes of a body; None at its end.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame())
            .await
            .map_err(|_| Refusal::paused(PATIENCE))?;
        let Some(frame) = frame else { return Ok(None) };
        // Trailers say nothing here.
        if let Ok(data) = frame.map_err(|error| Refusal::broken(&*error))?.into_data() {
            return Ok(Some(data));
        }
    }
}

/// 201 with where it is and what it is.
fn created(location: &str, digest: &Digest) -> Response<Body> {
    let mut response = Response::new(reply::empty());
    *response.status_mut() = StatusCode::CREATED;
    put_location(response.headers_mut(), location);
    put_digest(response.headers_mut(), digest);
    response
}

fn put_digest(headers: &mut http::HeaderMap, digest: &Digest) {
    let value = HeaderValue::from_str(&digest.to_string()).expect("a digest is plain ASCII");
    headers.insert("docker-content-digest", value);
}

fn put_location(headers: &mut http::HeaderMap, location: &str) {
    let value = HeaderValue::from_str(location).expect("names and ids of the registry are plain ASCII");
    headers.insert(header::LOCATION, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let s = str::to_owned;
        for (path, call) in [
            ("/v2/", Some(Call::Ping)),
            ("/v2", Some(Call::Ping)),
            ("/v2/a/b/tags/list", Some(Call::Tags(s("a/b")))),
            ("/v2/a/manifests/latest", Some(Call::Manifest(s("a"), s("latest")))),
            (
                "/v2/a/manifests/manifests/v1",
                Some(Call::Manifest(s("a/manifests"), s("v1"))),
            ),
            ("/v2/a/b/blobs/sha256:00", Some(Call::Blob(s("a/b"), s("sha256:00")))),
            ("/v2/a/b/blobs/uploads/", Some(Call::BeginUpload(s("a/b")))),
            ("/v2/a/b/blobs/uploads/12", Some(Call::Upload(s("a/b"), s("12")))),
            ("/v2/token", Some(Call::Token)),
            (
                "/v2/a/b/referrers/sha256:00",
                Some(Call::Referrers(s("a/b"), s("sha256:00"))),
            ),
            ("/v2/referrers/sha256:00", None),
            ("/v2/blobs/uploads/", None),
            ("/v2/_catalog", None),
            ("/v2/a", None),
        ] {
            assert_eq!(parse(path), call, "{path}");
        }
    }
}
