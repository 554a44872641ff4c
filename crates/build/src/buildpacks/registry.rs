//! The registry that a lifecycle finds on its loopback: the images of one build, and nothing else.
//!
//! What it reads are the run image, the image that is there already and the cache's; what it writes are the last two.
//! Blobs go into the image store, where nothing names them; manifests are kept here until the build has ended well.
//! All of it wants the secret of the build, which buildpacks have not.

#![expect(
    clippy::result_large_err,
    reason = "what went wrong is the answer itself, once a request"
)]

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use image::{Digest, Images, MAX_MANIFEST_BYTES, Reference, UploadId, media_type};
use model::with_causes;
use serde_json::Value;

use crate::relay::{self, Body, full, refusal};

/// How much is gathered before it goes to the disk.
const PIECE: usize = 512 << 10;
/// What the lifecycle is called as a user.
const USER: &str = "build";

/// What one image of the build is to the lifecycle.
#[derive(Debug)]
struct Entry {
    /// What is there before the build.
    stored: Option<Digest>,
    written: Written,
}

#[derive(Debug)]
enum Written {
    /// It may not.
    Never,
    NotYet,
    Manifest(Pushed),
}

/// A manifest whose name is not given yet.
#[derive(Debug, Clone)]
pub(crate) struct Pushed {
    pub(crate) media_type: String,
    pub(crate) content: Bytes,
}

/// The images of one build.
#[derive(Debug)]
pub(crate) struct Registry {
    images: Images,
    expected: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By their paths in this registry.
    entries: HashMap<String, Entry>,
    /// What may be read: what the manifests name that were read, and what was pushed.
    readable: HashSet<Digest>,
    uploads: HashSet<UploadId>,
}

/// A name that the lifecycle knows an image by, without the registry's.
pub(crate) fn path_of(reference: &Reference) -> String {
    let repository = reference.repository();
    // A port would end the registry's name.
    format!("{}/{}", repository.host().replace(':', "-"), repository.path())
}

/// The lifecycle's credentials, as the platform interface wants them.
pub(crate) fn credentials(host: &str, secret: &str) -> String {
    serde_json::json!({ host: authorization(secret) }).to_string()
}

fn authorization(secret: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{secret}"));
    format!("Basic {encoded}")
}

impl Registry {
    pub(crate) fn new(images: Images, secret: &str) -> Self {
        Self {
            images,
            expected: authorization(secret),
            state: Mutex::default(),
        }
    }

    /// An image that is only read, by its digest.
    pub(crate) fn show(&self, path: String, stored: Digest) {
        let mut state = self.state();
        state.readable.insert(stored);
        // One that is written may lie beside it.
        state.entries.entry(path).or_insert(Entry {
            stored: None,
            written: Written::Never,
        });
    }

    /// An image that the build writes, with what its name means now.
    pub(crate) fn offer(&self, path: String, stored: Option<Digest>) {
        let mut state = self.state();
        state.readable.extend(stored);
        let written = Written::NotYet;
        state.entries.insert(path, Entry { stored, written });
    }

    /// What was written.
    pub(crate) fn pushed(&self, path: &str) -> Option<Pushed> {
        match &self.state().entries.get(path)?.written {
            Written::Manifest(pushed) => Some(pushed.clone()),
            Written::Never | Written::NotYet => None,
        }
    }

    /// What its name meant before the build.
    pub(crate) fn stored(&self, path: &str) -> Option<Digest> {
        self.state().entries.get(path)?.stored
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let given = request.headers().get(header::AUTHORIZATION);
        if given.is_none_or(|given| given.as_bytes() != self.expected.as_bytes()) {
            let mut response = refusal(
                StatusCode::UNAUTHORIZED,
                "UNAUTHORIZED",
                "this is for the lifecycle alone",
            );
            let challenge = HeaderValue::from_static("Basic realm=\"build\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            return response;
        }
        self.serve(request).await.unwrap_or_else(|refused| refused)
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, Response<Body>> {
        let (head, body) = request.into_parts();
        let asked = Asked::of(head.uri.path(), head.uri.query().unwrap_or_default());
        let unsupported = || {
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                &format!("{} {} is not served to builds", head.method, head.uri.path()),
            )
        };
        let is_head = head.method == Method::HEAD;
        let reads = is_head || head.method == Method::GET;
        let Some(asked) = asked else {
            return Err(refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", head.uri.path()));
        };
        match asked {
            Asked::Whether if reads => Ok(full(StatusCode::OK, "application/json", "{}")),
            Asked::Manifest { path, version } if reads => self.manifest(&path, &version, is_head).await,
            Asked::Manifest { path, version } if head.method == Method::PUT => {
                let kind = head.headers.get(header::CONTENT_TYPE);
                let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                self.push(&path, &version, kind, body).await
            }
            Asked::Blob { path, digest } if reads => {
                self.entry(&path)?;
                if !self.state().readable.contains(&digest) {
                    return Err(refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", &digest.to_string()));
                }
                relay::blob(&self.images, digest, is_head).await
            }
            Asked::Uploads { path, mount, digest } if head.method == Method::POST => {
                self.may_write(&path)?;
                if let Some(digest) = mount
                    && self.state().readable.contains(&digest)
                {
                    return Ok(created(&format!("/v2/{path}/blobs/{digest}"), &digest));
                }
                let upload = self.images.begin_upload().await.map_err(|error| failed(&error))?;
                self.state().uploads.insert(upload.clone());
                match digest {
                    None => Ok(going_on(&path, &upload)),
                    Some(digest) => self.finish(&path, upload, digest, body).await,
                }
            }
            Asked::Upload { path, upload, digest } => {
                self.may_write(&path)?;
                let upload = self.upload(&upload)?;
                match (head.method.as_str(), digest) {
                    ("PATCH", _) => {
                        self.append(&upload, body).await?;
                        Ok(going_on(&path, &upload))
                    }
                    ("PUT", Some(digest)) => self.finish(&path, upload, digest, body).await,
                    ("DELETE", _) => {
                        self.state().uploads.remove(&upload);
                        // Gone already is as good.
                        drop(self.images.cancel_upload(&upload));
                        Ok(full(StatusCode::NO_CONTENT, "application/json", ""))
                    }
                    _ => Err(unsupported()),
                }
            }
            Asked::Whether | Asked::Manifest { .. } | Asked::Blob { .. } | Asked::Uploads { .. } => Err(unsupported()),
        }
    }

    fn unknown(path: &str) -> Response<Body> {
        let why = format!("{path} is no image of this build");
        refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &why)
    }

    fn entry(&self, path: &str) -> Result<(), Response<Body>> {
        let is_known = self.state().entries.contains_key(path);
        is_known.then_some(()).ok_or_else(|| Self::unknown(path))
    }

    fn may_write(&self, path: &str) -> Result<(), Response<Body>> {
        match self.state().entries.get(path).map(|entry| &entry.written) {
            None => Err(Self::unknown(path)),
            Some(Written::Never) => Err(refusal(
                StatusCode::FORBIDDEN,
                "DENIED",
                &format!("{path} is only read by builds"),
            )),
            Some(Written::NotYet | Written::Manifest(_)) => Ok(()),
        }
    }

    fn upload(&self, text: &str) -> Result<UploadId, Response<Body>> {
        let state = self.state();
        let found = state.uploads.iter().find(|upload| upload.to_string() == text);
        found
            .cloned()
            .ok_or_else(|| refusal(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", text))
    }

    /// `version` is a tag, of which there is one, or a digest.
    async fn manifest(&self, path: &str, version: &str, is_head: bool) -> Result<Response<Body>, Response<Body>> {
        let absent = || refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", version);
        let by_digest = version.parse::<Digest>().ok();
        let digest = {
            let state = self.state();
            let entry = state.entries.get(path).ok_or_else(|| Self::unknown(path))?;
            if let Written::Manifest(pushed) = &entry.written {
                let digest = Digest::of(&pushed.content);
                if by_digest.is_none_or(|wanted| wanted == digest) {
                    let content = pushed.content.to_vec();
                    return Ok(relay::shown(digest, &pushed.media_type, content, is_head));
                }
            }
            match by_digest {
                None => entry.stored,
                Some(digest) => state.readable.contains(&digest).then_some(digest),
            }
        };
        let digest = digest.ok_or_else(absent)?;
        let (kind, content) = relay::among_blobs(&self.images, digest).await.ok_or_else(absent)?;
        self.state().readable.extend(named_by(&content));
        Ok(relay::shown(digest, &kind, content, is_head))
    }

    async fn push(
        &self,
        path: &str,
        version: &str,
        kind: &str,
        body: Incoming,
    ) -> Result<Response<Body>, Response<Body>> {
        self.may_write(path)?;
        let most = usize::try_from(MAX_MANIFEST_BYTES).unwrap_or(usize::MAX);
        let refused = |why: &str| refusal(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why);
        let content = Limited::new(body, most).collect().await;
        let content = content.map_err(|error| refused(&error.to_string()))?.to_bytes();
        let digest = Digest::of(&content);
        if version.parse::<Digest>().is_ok_and(|wanted| wanted != digest) {
            return Err(refused("it has another digest"));
        }
        if !media_type::MANIFESTS.contains(&kind) {
            return Err(refused(&format!("{kind} is no manifest")));
        }
        // Not known to this build: another's content gets no name by a guess of its digest.
        let mut state = self.state();
        if let Some(strange) = named_by(&content)
            .into_iter()
            .find(|part| !state.readable.contains(part))
        {
            return Err(refused(&format!("{strange} was neither pushed nor read by this build")));
        }
        state.readable.insert(digest);
        if let Some(entry) = state.entries.get_mut(path) {
            entry.written = Written::Manifest(Pushed {
                media_type: kind.to_owned(),
                content,
            });
        }
        Ok(created(&format!("/v2/{path}/manifests/{digest}"), &digest))
    }

    async fn append(&self, upload: &UploadId, mut body: Incoming) -> Result<(), Response<Body>> {
        let mut gathered = bytes::BytesMut::new();
        loop {
            let frame = body.frame().await.transpose();
            let frame =
                frame.map_err(|error| refusal(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", &error.to_string()))?;
            let ended = frame.is_none();
            if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
                gathered.extend_from_slice(&data);
            }
            if gathered.len() >= PIECE || (ended && !gathered.is_empty()) {
                let piece = gathered.split().freeze();
                let appended = self.images.append(upload, None, vec![piece]).await;
                appended.map_err(|error| failed(&error))?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn finish(
        &self,
        path: &str,
        upload: UploadId,
        digest: Digest,
        body: Incoming,
    ) -> Result<Response<Body>, Response<Body>> {
        self.append(&upload, body).await?;
        self.state().uploads.remove(&upload);
        let finished = self.images.finish_upload(&upload, digest).await;
        finished.map_err(|error| failed(&error))?;
        self.state().readable.insert(digest);
        Ok(created(&format!("/v2/{path}/blobs/{digest}"), &digest))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for upload in &self.state().uploads {
            // The store may have given it up itself.
            drop(self.images.cancel_upload(upload));
        }
    }
}

/// What the store says, for the lifecycle to repeat.
fn failed(error: &image::Error) -> Response<Body> {
    let (status, code) = if matches!(error, image::Error::Quota { .. }) {
        (StatusCode::FORBIDDEN, "DENIED")
    } else {
        (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID")
    };
    refusal(status, code, &with_causes(error))
}

/// The digests that a manifest or an index names.
fn named_by(content: &[u8]) -> Vec<Digest> {
    let document: Value = serde_json::from_slice(content).unwrap_or_default();
    let lists = ["layers", "manifests"].into_iter();
    lists
        .filter_map(|list| document[list].as_array())
        .flatten()
        .chain([&document["config"]])
        .filter_map(|part| part["digest"].as_str()?.parse().ok())
        .collect()
}

fn with_location(status: StatusCode, location: &str) -> Response<Body> {
    let mut response = full(status, "application/json", "");
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn created(location: &str, digest: &Digest) -> Response<Body> {
    let mut response = with_location(StatusCode::CREATED, location);
    if let Ok(digest) = HeaderValue::from_str(&digest.to_string()) {
        response.headers_mut().insert("docker-content-digest", digest);
    }
    response
}

fn going_on(path: &str, upload: &UploadId) -> Response<Body> {
    with_location(StatusCode::ACCEPTED, &format!("/v2/{path}/blobs/uploads/{upload}"))
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Whether this is a registry.
    Whether,
    Manifest {
        path: String,
        version: String,
    },
    Blob {
        path: String,
        digest: Digest,
    },
    Uploads {
        path: String,
        /// One that is here already.
        mount: Option<Digest>,
        /// All of the blob comes at once.
        digest: Option<Digest>,
    },
    Upload {
        path: String,
        upload: String,
        digest: Option<Digest>,
    },
}

impl Asked {
    /// None: nothing that a registry has.
    fn of(path: &str, query: &str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?.trim_start_matches('/');
        if rest.is_empty() {
            return Some(Self::Whether);
        }
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let value = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
            let value = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
            value.parse::<Digest>().ok()
        };
        if let Some((path, upload)) = rest.rsplit_once("/blobs/uploads") {
            let (path, upload) = (path.to_owned(), upload.trim_start_matches('/').to_owned());
            let digest = parameter("digest");
            return Some(if upload.is_empty() {
                Self::Uploads {
                    path,
                    mount: parameter("mount"),
                    digest,
                }
            } else {
                Self::Upload { path, upload, digest }
            });
        }
        if let Some((path, version)) = rest.rsplit_once("/manifests/") {
            return Some(Self::Manifest {
                path: path.to_owned(),
                version: version.to_owned(),
            });
        }
        let (path, digest) = rest.rsplit_once("/blobs/")?;
        Some(Self::Blob {
            path: path.to_owned(),
            digest: digest.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lifecycle_asks_for() {
        let digest = Digest::of(b"x");
        let path = || "gcr.io/a/b".to_owned();
        for (asked, query, expected) in [
            ("/v2/", String::new(), Some(Asked::Whether)),
            ("/v2", String::new(), Some(Asked::Whether)),
            (
                "/v2/gcr.io/a/b/manifests/latest",
                String::new(),
                Some(Asked::Manifest {
                    path: path(),
                    version: "latest".to_owned(),
                }),
            ),
            (
                "/v2/gcr.io/a/b/blobs/uploads/",
                format!("from=gcr.io%2Fr&mount={}", digest.to_string().replace(':', "%3A")),
                Some(Asked::Uploads {
                    path: path(),
                    mount: Some(digest),
                    digest: None,
                }),
            ),
            (
                "/v2/gcr.io/a/b/blobs/uploads/17",
                format!("digest={digest}"),
                Some(Asked::Upload {
                    path: path(),
                    upload: "17".to_owned(),
                    digest: Some(digest),
                }),
            ),
            ("/v2/gcr.io/a/b/tags/list", String::new(), None),
            ("/v2/gcr.io/a/b/blobs/x", String::new(), None),
            ("/pip/simple", String::new(), None),
        ] {
            assert_eq!(Asked::of(asked, &query), expected, "{asked}?{query}");
        }
        let blob = Asked::of(&format!("/v2/a/blobs/{digest}"), "");
        assert_eq!(
            blob,
            Some(Asked::Blob {
                path: "a".to_owned(),
                digest
            })
        );
    }

    #[test]
    fn names_and_credentials() {
        let name = |text: &str| path_of(&text.parse().expect("a reference"));
        assert_eq!(
            name("gcr.io/buildpacks/google-22/run"),
            "gcr.io/buildpacks/google-22/run"
        );
        assert_eq!(name("localhost:5000/a:v1"), "localhost-5000/a");
        assert_eq!(
            credentials("127.0.0.1:3128", "s"),
            r#"{"127.0.0.1:3128":"Basic YnVpbGQ6cw=="}"#
        );
    }
}
