//! Where a builder gets base images from: an HTTP proxy on its loopback that is served by this process, out of the image
//! store. Whatever registry a `FROM` names, the builder asks here; what is not stored is pulled as a deploy would.
//!
//! The builder's own requests carry a secret of this build, which its build steps do not know: they share its loopback,
//! and would otherwise have the machine ask strangers for them. It is read only, and reaches nothing but images.
//! What the steps themselves may ask, and nobody else does, is the package indexes ([`crate::index`]).

use std::{
    convert::Infallible,
    net::TcpListener,
    pin::Pin,
    str::FromStr as _,
    sync::Arc,
    task::{Context, Poll, ready},
};

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming, SizeHint};
use image::{Digest, Images, Reference, Repository, Version};
use model::with_causes;
use serde_json::json;
use tokio::{io::AsyncRead as _, task::JoinSet};

use crate::{index::Reader, served::Served};

/// How much of a blob is read at a time.
const PIECE: usize = 128 << 10;
/// Largest manifest that is looked for among blobs (distribution specification).
const MAX_MANIFEST: u64 = image::MAX_MANIFEST_BYTES;
/// Most connections at a time; the next one waits until one of them ends.
const MOST_CONNECTIONS: usize = 64;
/// What the builder is called as a user of the proxy.
const USER: &str = "build";

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What a builder is given as `HTTP_PROXY` and `HTTPS_PROXY`.
pub(crate) fn address(port: u16, secret: &str) -> String {
    format!("http://{USER}:{secret}@127.0.0.1:{port}")
}

/// Serves until it is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    images: Images,
    secret: &str,
    indexes: Reader,
    served: Served,
) -> std::io::Result<Infallible> {
    let expected = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{secret}"));
    let expected: Arc<str> = format!("Basic {expected}").into();
    answer_all(listener, move |request: Request<Incoming>| {
        let (images, expected, indexes, served) = (images.clone(), expected.clone(), indexes.clone(), served.clone());
        async move {
            if indexes.is_asked(&request) {
                indexes.answer(&request).await
            } else {
                answer(&images, &expected, &served, &request).await
            }
        }
    })
    .await
}

/// Answers every request until it is dropped.
pub(crate) async fn answer_all<F>(
    listener: TcpListener,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> std::io::Result<Infallible>
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        if connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        let answer = answer.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            // A builder that hangs up has what it wants.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await;
        });
    }
}

pub(crate) fn full(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(content.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(crate) fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({ "errors": [{ "code": code, "message": message }] });
    full(status, "application/json", body.to_string())
}

async fn answer(images: &Images, expected: &str, served: &Served, request: &Request<Incoming>) -> Response<Body> {
    let given = request.headers().get(header::PROXY_AUTHORIZATION);
    if given.is_none_or(|given| given.as_bytes() != expected.as_bytes()) {
        let mut response = refusal(
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            "UNAUTHORIZED",
            "this is for base images only, and for the builder alone",
        );
        let challenge = HeaderValue::from_static("Basic realm=\"base images\"");
        response.headers_mut().insert(header::PROXY_AUTHENTICATE, challenge);
        return response;
    }
    let is_head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        // TLS is tried first; then it comes without.
        _ => return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "only GET is served"),
    };
    let (Some(host), path) = (request.uri().authority(), request.uri().path()) else {
        return refusal(StatusCode::BAD_REQUEST, "UNSUPPORTED", "no registry is named");
    };
    let host = match host.as_str() {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        host => host,
    };
    let asked = match ask(host, path) {
        Ok(asked) => asked,
        Err(why) => return refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &why),
    };
    let answered = match asked {
        Asked::Whether => Ok(full(StatusCode::OK, "application/json", "{}")),
        Asked::Manifest(repository, version) => {
            let answered = manifest(images, served, repository, version, is_head).await;
            if answered.is_err() {
                served.note_refusal();
            }
            answered
        }
        Asked::Blob(digest) => blob(images, digest, is_head).await,
    };
    answered.unwrap_or_else(|refused| refused)
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Whether this is a registry.
    Whether,
    Manifest(Repository, Version),
    Blob(Digest),
}

fn ask(host: &str, path: &str) -> Result<Asked, String> {
    let unknown = || format!("{path} of {host} is nothing that a base image needs");
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
    if rest.is_empty() || rest == "/" {
        return Ok(Asked::Whether);
    }
    let rest = rest.trim_start_matches('/');
    for kind in ["/manifests/", "/blobs/"] {
        let Some((name, of)) = rest.rsplit_once(kind) else {
            continue;
        };
        let repository = Repository::new(host, name).map_err(|error| error.to_string())?;
        return match kind {
            "/manifests/" => Version::from_str(of)
                .map(|version| Asked::Manifest(repository, version))
                .map_err(|_| unknown()),
            _ => Digest::from_str(of).map(Asked::Blob).map_err(|error| error.to_string()),
        };
    }
    Err(unknown())
}

/// Answers a manifest; of what is not stored, after the pull.
async fn manifest(
    images: &Images,
    served: &Served,
    repository: Repository,
    version: Version,
    is_head: bool,
) -> Result<Response<Body>, Response<Body>> {
    let reference = match version.clone() {
        Version::Tag(tag) => Reference::tagged(repository.clone(), tag),
        Version::Digest(digest) => Reference::pinned(repository.clone(), digest),
    };
    // One of an index: its blob is all there is of it.
    if let Version::Digest(digest) = version
        && let Some(found) = among_blobs(images, digest).await
    {
        served.note(&reference, digest);
        return Ok(shown(digest, &found.0, found.1, is_head));
    }
    let resolved = images.resolve(&reference).await.map_err(|error| {
        let status = if error.is_absence() {
            StatusCode::NOT_FOUND
        } else {
            StatusCode::BAD_REQUEST
        };
        refusal(status, "MANIFEST_UNKNOWN", &with_causes(&error))
    })?;
    let (images, digest) = (images.clone(), resolved.digest);
    let stored = tokio::task::spawn_blocking(move || images.manifest(&repository, &Version::Digest(digest))).await;
    let gone = |why: String| refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", &why);
    let stored = stored
        .map_err(|error| gone(error.to_string()))?
        .map_err(|error| gone(with_causes(&error)))?;
    served.note(&reference, digest);
    Ok(shown(digest, &stored.media_type, stored.content, is_head))
}

/// A manifest that is stored, in whatever repository.
pub(crate) async fn among_blobs(images: &Images, digest: Digest) -> Option<(String, Vec<u8>)> {
    use std::io::Read as _;
    let images = images.clone();
    let read = tokio::task::spawn_blocking(move || {
        images.claim_blob(&digest).ok()??;
        let blob = images.blob(&digest).ok().filter(|blob| blob.length <= MAX_MANIFEST)?;
        let mut content = Vec::new();
        blob.file.take(MAX_MANIFEST).read_to_end(&mut content).ok()?;
        let document: serde_json::Value = serde_json::from_slice(&content).ok()?;
        let kind = match document["mediaType"].as_str() {
            Some(kind) => kind.to_owned(),
            None if document["manifests"].is_array() => "application/vnd.oci.image.index.v1+json".to_owned(),
            None if document["layers"].is_array() => "application/vnd.oci.image.manifest.v1+json".to_owned(),
            None => return None,
        };
        Some((kind, content))
    });
    read.await.ok()?
}

pub(crate) fn shown(digest: Digest, media_type: &str, content: Vec<u8>, is_head: bool) -> Response<Body> {
    let length = content.len();
    let content = if is_head { Vec::new() } else { content };
    let mut response = full(StatusCode::OK, "application/json", content);
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(media_type) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    headers.insert(header::CONTENT_LENGTH, length.into());
    if let Ok(digest) = HeaderValue::from_str(&digest.to_string()) {
        headers.insert("docker-content-digest", digest);
    }
    response
}

pub(crate) async fn blob(images: &Images, digest: Digest, is_head: bool) -> Result<Response<Body>, Response<Body>> {
    let images = images.clone();
    let opened = tokio::task::spawn_blocking(move || {
        images.claim_blob(&digest)?;
        images.blob(&digest)
    });
    let unknown = |why: String| refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", &why);
    let blob = opened.await.map_err(|error| unknown(error.to_string()))?;
    let blob = blob.map_err(|error| unknown(with_causes(&error)))?;
    let length = blob.length;
    let body = FileBody {
        file: tokio::fs::File::from_std(blob.file),
        left: if is_head { 0 } else { length },
    };
    let mut response = Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    Ok(response)
}

/// What of a file is left, piece by piece.
struct FileBody {
    file: tokio::fs::File,
    left: u64,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let want = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = BytesMut::zeroed(want);
        let mut buffer = tokio::io::ReadBuf::new(&mut piece);
        let outcome = ready!(Pin::new(&mut self.file).poll_read(cx, &mut buffer));
        let read = buffer.filled().len();
        Poll::Ready(Some(match outcome {
            Err(error) => Err(error),
            Ok(()) if read == 0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(()) => {
                self.left -= read as u64;
                piece.truncate(read);
                Ok(Frame::data(piece.freeze()))
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_builder_asks_for() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let repository = |host: &str, path: &str| Repository::new(host, path).expect("a repository");
        let manifest = |host, path, version: &str| {
            Ok(Asked::Manifest(
                repository(host, path),
                version.parse().expect("a version"),
            ))
        };
        for (host, path, asked) in [
            ("docker.io", "/v2/".to_owned(), Ok(Asked::Whether)),
            (
                "docker.io",
                "/v2/library/python/manifests/3.12-slim".to_owned(),
                manifest("docker.io", "library/python", "3.12-slim"),
            ),
            (
                "gcr.io",
                format!("/v2/a/manifests/b/manifests/{digest}"),
                manifest("gcr.io", "a/manifests/b", &digest),
            ),
            (
                "gcr.io",
                format!("/v2/a/b/blobs/{digest}"),
                Ok(Asked::Blob(digest.parse().expect("a digest"))),
            ),
        ] {
            assert_eq!(ask(host, &path), asked, "{path}");
        }
        for path in [
            "/",
            "/v1/_ping",
            "/v2/a/tags/list",
            "/v2/../x/manifests/y",
            "/v2/a/blobs/x",
            "/v2/A/manifests/y",
        ] {
            assert!(ask("gcr.io", path).is_err(), "{path}");
        }
    }
}
