//! Pulling from other registries: manifest first, then configuration, and only when both say that this machine can run
//! the image its layers. Every blob is verified while it arrives. The manifest is linked last, so an image that is
//! found in the store is whole. Plain HTTP is spoken with loopback addresses only.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::Client;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use tokio::io::AsyncWrite;
use tokio::task::JoinSet;

use crate::digest::Digest;
use crate::disk::is_absent;
use crate::flight::Work;
use crate::manifest::{ConfigBlob, Descriptor, ImageManifest, Manifest, ManifestError, media_type};
use crate::reference::{Reference, Repository, Version};
use crate::repository::{Completeness, MAX_CONFIG_BYTES};
use crate::resolve::{ResolveError, ResolvedImage};
use crate::{Error, Images, blocking};

/// Longest wait for a connection, and for the next bytes of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_mins(1);
/// How deep indexes may name indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// One registry's repository, as long as one pull takes.
#[derive(Clone)]
struct Source {
    images: Images,
    client: Client,
    auth: RegistryAuth,
    /// What is pulled.
    from: Arc<Reference>,
    /// The repository that holds it here: another one where `from` is its mirror.
    holder: Arc<Repository>,
}

impl Images {
    /// Asks the registry of `from` what that points at, and brings what is not here yet, for the name `reference`.
    pub(crate) async fn pull(&self, reference: &Reference, from: &Reference) -> Result<ResolvedImage, ResolveError> {
        let source = Source::open(self, reference.repository(), from).await?;
        let content = source.manifest(&from.version()).await?;
        let digest = Digest::of(&content);

        let turn = self.shared.flights.turn(Work::Pull(digest)).await;
        let pinned = Reference::pinned(reference.repository().clone(), digest);
        let (images, again) = (self.clone(), pinned.clone());
        if let Ok(stored) = blocking(move || images.resolve_stored(&again)).await {
            return Ok(ResolvedImage {
                reference: reference.clone(),
                ..stored
            });
        }
        tracing::info!(image = %from, %digest, "pulling");
        source.bring(content).await?;
        let images = self.clone();
        let stored = blocking(move || images.resolve_stored(&pinned)).await;
        drop(turn);
        let stored = stored.map_err(|error| ResolveError::store(from, error))?;
        Ok(ResolvedImage {
            reference: reference.clone(),
            ..stored
        })
    }
}

impl Source {
    async fn open(images: &Images, holder: &Repository, from: &Reference) -> Result<Source, ResolveError> {
        let host = from.repository().host().to_owned();
        let protocol = if is_loopback(&host) {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let config = images.shared.docker_config.clone();
        let auth = blocking(move || credential(config.as_deref(), &host))
            .await
            .map_err(|reason| ResolveError::Credential {
                registry: from.repository().host().to_owned(),
                reason,
            })?;
        // The environment's proxy is for other machines. Naming one here keeps the client from looking for that; the
        // one named is never used, since all of loopback is excepted from it.
        let direct = (protocol == ClientProtocol::Http)
            .then(|| ("http://127.0.0.1:9".to_owned(), "localhost,127.0.0.0/8,::1".to_owned()));
        let (http_proxy, no_proxy) = direct.unzip();
        let client = Client::try_from(ClientConfig {
            protocol,
            http_proxy,
            no_proxy,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("homerun/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(|error| refusal(from, error))?;
        Ok(Source {
            images: images.clone(),
            client,
            auth,
            from: Arc::new(from.clone()),
            holder: Arc::new(holder.clone()),
        })
    }

    fn name(&self, version: &Version) -> oci_client::Reference {
        let repository = self.from.repository();
        let (host, path) = (repository.host().to_owned(), repository.path().to_owned());
        match version {
            Version::Tag(tag) => oci_client::Reference::with_tag(host, path, tag.to_string()),
            Version::Digest(digest) => oci_client::Reference::with_digest(host, path, digest.to_string()),
        }
    }

    /// Fetches a manifest; one asked by digest has that digest.
    async fn manifest(&self, version: &Version) -> Result<Vec<u8>, ResolveError> {
        let (content, _) = self
            .client
            .pull_manifest_raw(&self.name(version), &self.auth, &media_type::MANIFESTS)
            .await
            .map_err(|error| refusal(&self.from, error))?;
        Ok(content.into())
    }

    /// Brings all that the manifest `content` names for this machine, then links it.
    async fn bring(&self, content: Vec<u8>) -> Result<(), ResolveError> {
        let mut path = vec![content];
        loop {
            let last = path.last().expect("begins with one manifest and only grows");
            let (manifest, _) = Manifest::read(last, None).map_err(|error| self.cannot_run(error))?;
            match manifest {
                Manifest::Index(index) => {
                    let next = index.choose().map_err(|error| self.cannot_run(error))?.digest;
                    if path.len() == MAX_INDEX_DEPTH {
                        return Err(self.cannot_run(ManifestError::IndexDepth {
                            digest: Digest::of(&path[0]),
                        }));
                    }
                    path.push(self.manifest(&Version::Digest(next)).await?);
                }
                Manifest::Image(image) => {
                    self.content(&image).await?;
                    break;
                }
            }
        }
        let (images, repository) = (self.images.clone(), self.holder.clone());
        blocking(move || {
            // Innermost first: whoever finds the index finds its manifest.
            for content in path.iter().rev() {
                let version = Version::Digest(Digest::of(content));
                images.link_manifest(&repository, &version, None, content, Completeness::OneOfIndex)?;
            }
            Ok(())
        })
        .await
        .map_err(|error| ResolveError::store(&self.from, error))
    }

    async fn content(&self, manifest: &ImageManifest) -> Result<(), ResolveError> {
        if manifest.config.size > MAX_CONFIG_BYTES {
            let error = Error::TooLarge {
                what: "image configuration",
                limit: MAX_CONFIG_BYTES,
            };
            return Err(ResolveError::store(&self.from, error));
        }
        self.blob(&manifest.config).await?;
        let (images, digest) = (self.images.clone(), manifest.config.digest);
        let config = blocking(move || images.small_blob(&digest, "image configuration", MAX_CONFIG_BYTES))
            .await
            .map_err(|error| ResolveError::store(&self.from, error))?;
        ConfigBlob::read(&config, digest)
            .and_then(|config| config.check(manifest))
            .map_err(|error| self.cannot_run(error))?;

        // Dropping the set, on the first error or because the caller went away, ends all of them.
        let mut layers = JoinSet::new();
        for layer in &manifest.layers {
            let (source, layer) = (self.clone(), layer.clone());
            layers.spawn(async move { source.blob(&layer).await });
        }
        while let Some(done) = layers.join_next().await {
            match done {
                Ok(done) => done?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => unreachable!("nobody cancels single layers"),
            }
        }
        Ok(())
    }

    /// Brings one blob unless it is here.
    async fn blob(&self, descriptor: &Descriptor) -> Result<(), ResolveError> {
        let digest = descriptor.digest;
        let store = |error| ResolveError::store(&self.from, error);
        let _turn = self.images.shared.flights.turn(Work::Pull(digest)).await;
        let _permit = self
            .images
            .shared
            .pulling
            .acquire()
            .await
            .expect("the semaphore lives as long as the store and is never closed");
        let images = self.images.clone();
        if blocking(move || images.claim_blob(&digest))
            .await
            .map_err(store)?
            .is_some()
        {
            return Ok(());
        }
        let (images, size) = (self.images.clone(), descriptor.size);
        let (temp, file, reserved) = blocking(move || {
            let mut reserved = images.shared.quota.reserve();
            reserved.grow_to(size)?;
            let temp = images.shared.disk.temp_file()?;
            let file = temp.as_file().try_clone().map_err(Error::io("open", temp.path()))?;
            Ok((temp, file, reserved))
        })
        .await
        .map_err(store)?;
        let mut sink = Sink {
            file: tokio::fs::File::from_std(file),
            left: descriptor.size,
            overflowed: false,
        };
        let text = digest.to_string();
        let name = self.name(&Version::Digest(digest));
        let pulled = self.client.pull_blob(&name, text.as_str(), &mut sink).await;
        if sink.overflowed {
            return Err(ResolveError::Size {
                reference: (*self.from).clone(),
                digest,
                size: descriptor.size,
            });
        }
        pulled.map_err(|error| refusal(&self.from, error))?;
        let images = self.images.clone();
        blocking(move || images.publish_blob(temp, &digest, reserved))
            .await
            .map_err(store)
    }

    fn cannot_run(&self, source: ManifestError) -> ResolveError {
        ResolveError::Manifest {
            reference: (*self.from).clone(),
            source,
        }
    }
}

/// Takes no more bytes than the manifest promised: a registry cannot fill the disk with one blob.
struct Sink {
    file: tokio::fs::File,
    left: u64,
    overflowed: bool,
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() as u64 > self.left {
            self.overflowed = true;
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        let written = std::task::ready!(Pin::new(&mut self.file).poll_write(cx, bytes))?;
        self.left -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
    }
}

/// Translates the client's errors. Texts of registries are dropped where they may carry more than a user should see.
fn refusal(reference: &Reference, error: OciDistributionError) -> ResolveError {
    let reference = reference.clone();
    let mut status = None;
    let mut answered = &[][..];
    if let OciDistributionError::ServerError { code, .. } = &error {
        status = Some(*code);
    } else if let OciDistributionError::RegistryError { envelope, .. } = &error {
        answered = &envelope.errors[..];
    }
    let codes = |wanted: &[OciErrorCode]| answered.iter().any(|entry| wanted.contains(&entry.code));
    let refused = matches!(
        error,
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_)
    );
    if refused || matches!(status, Some(401 | 403)) || codes(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
        return ResolveError::Unauthorized { reference };
    }
    let absent = [
        OciErrorCode::ManifestUnknown,
        OciErrorCode::NameUnknown,
        OciErrorCode::NotFound,
        OciErrorCode::BlobUnknown,
        OciErrorCode::ManifestBlobUnknown,
    ];
    if matches!(error, OciDistributionError::ImageManifestNotFoundError(_)) || status == Some(404) || codes(&absent) {
        return ResolveError::NotFound { reference };
    }
    if let OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) = error {
        return ResolveError::DigestMismatch {
            reference,
            expected,
            actual,
        };
    }
    ResolveError::Network {
        reference,
        source: Box::new(error),
    }
}

/// Whether a registry is on this machine, where plain HTTP shows nothing to anybody.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    name == "localhost"
        || name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Where docker keeps credentials, by its own rule: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
pub(crate) fn default_docker_config() -> Option<PathBuf> {
    std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")))
        .map(|dir| dir.join("config.json"))
}

/// The user's credential for a registry; anonymous where none is configured. May run a credential program. The error
/// is a fixed text, since what such programs print can hold secrets.
fn credential(config: Option<&Path>, host: &str) -> Result<RegistryAuth, &'static str> {
    let Some(config) = config else {
        return Ok(RegistryAuth::Anonymous);
    };
    let keys = match host {
        "docker.io" => vec!["https://index.docker.io/v1/".to_owned()],
        host => vec![host.to_owned(), format!("https://{host}")],
    };
    for key in keys {
        let file = match File::open(config) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(RegistryAuth::Anonymous),
            Err(_) => return Err("docker's config.json cannot be opened"),
        };
        match docker_credential::get_credential_from_reader(io::BufReader::new(file), &key) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Ok(RegistryAuth::Basic(user, password));
            }
            Ok(DockerCredential::IdentityToken(_)) => {
                return Err("it is an identity token, only user name and password are supported");
            }
            // Helpers answer so for a registry they have nothing for.
            Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::HelperFailure { .. }) => {}
            Err(CredentialRetrievalError::ConfigNotFound | CredentialRetrievalError::ConfigReadError) => {
                return Err("docker's config.json is not valid");
            }
            Err(CredentialRetrievalError::HelperCommunicationError) => {
                return Err("the credential program that docker's config.json names cannot be run");
            }
            Err(CredentialRetrievalError::MalformedHelperResponse) => {
                return Err("the credential program that docker's config.json names did not answer in its protocol");
            }
            Err(CredentialRetrievalError::CredentialDecodingError) => {
                return Err("it is not base64 of user:password");
            }
            Err(CredentialRetrievalError::CredentialMismatchError) => {
                return Err("its parts in docker's config.json contradict each other");
            }
        }
    }
    Ok(RegistryAuth::Anonymous)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_on_this_machine() {
        for (host, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.0.1", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com:5000", false),
            ("10.0.0.1:5000", false),
            ("docker.io", false),
        ] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }

    #[test]
    fn reads_credentials_as_docker_writes_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = dir.path().join("config.json");
        assert_eq!(credential(Some(&config), "r.example"), Ok(RegistryAuth::Anonymous));
        std::fs::write(
            &config,
            r#"{"auths":{"r.example":{"auth":"dTpw"},"https://index.docker.io/v1/":{"auth":"aDpk"},
                "t.example":{"identitytoken":"x"},"bad.example":{"auth":"!"}}}"#,
        )
        .expect("written");
        let basic = |user: &str, password: &str| Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
        assert_eq!(credential(Some(&config), "r.example"), basic("u", "p"));
        assert_eq!(credential(Some(&config), "docker.io"), basic("h", "d"));
        assert_eq!(credential(Some(&config), "other.example"), Ok(RegistryAuth::Anonymous));
        assert!(
            credential(Some(&config), "t.example")
                .expect_err("refused")
                .contains("identity token")
        );
        assert!(
            credential(Some(&config), "bad.example")
                .expect_err("refused")
                .contains("base64")
        );
        std::fs::write(&config, "{").expect("written");
        assert!(
            credential(Some(&config), "r.example")
                .expect_err("refused")
                .contains("not valid")
        );
    }
}
