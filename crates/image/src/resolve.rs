//! From what a user wrote to what is meant: at deploy a tag becomes a digest, once. Our own hosts and whatever is
//! stored under the very name answer from the store, then mirrors ([`crate::mirror`]); every other registry is asked each
//! time, since its tags move.

use crate::digest::Digest;
use crate::manifest::ImageConfig;
use crate::reference::Reference;
use crate::{Error, Images, ManifestError, blocking};

/// An image that is stored in full and runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// What was asked.
    pub reference: Reference,
    /// What the reference points at: an index where the image is for several platforms. This is the digest that Cloud
    /// Run reports.
    pub digest: Digest,
    /// The manifest for this machine; equal to `digest` where there is no index.
    pub manifest: Digest,
    pub config: ImageConfig,
}

impl ResolvedImage {
    /// The fixed form of the reference: `host/repository@sha256:...`.
    pub fn pinned(&self) -> Reference {
        Reference::pinned(self.reference.repository().clone(), self.digest)
    }
}

/// Why a reference did not become an image.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("image {reference} not found")]
    NotFound { reference: Reference },
    #[error(
        "not allowed to pull image {reference}: it does not exist, or the registry refused the credentials of this machine"
    )]
    Unauthorized { reference: Reference },
    /// Only what can be told without showing the credential.
    #[error("docker's credential for {registry} is not usable: {reason}")]
    Credential { registry: String, reason: &'static str },
    #[error("image {reference} cannot run here")]
    Manifest {
        reference: Reference,
        #[source]
        source: ManifestError,
    },
    #[error("image {reference}: content was to be {expected} but is {actual}")]
    DigestMismatch {
        reference: Reference,
        expected: String,
        actual: String,
    },
    #[error("image {reference}: blob {digest} has more than the {size} bytes that its manifest says")]
    Size {
        reference: Reference,
        digest: Digest,
        size: u64,
    },
    #[error("image {reference} cannot be pulled")]
    Network {
        reference: Reference,
        #[source]
        source: Box<oci_client::errors::OciDistributionError>,
    },
    #[error("image {reference} cannot be stored")]
    Store {
        reference: Reference,
        #[source]
        source: Error,
    },
    /// It is had from elsewhere, and that failed.
    #[error("image {reference} is mirrored")]
    Mirror {
        reference: Reference,
        #[source]
        source: Box<ResolveError>,
    },
}

impl ResolveError {
    /// Whether the image is not there, as far as this machine may know.
    pub fn is_absence(&self) -> bool {
        match self {
            ResolveError::NotFound { .. } | ResolveError::Unauthorized { .. } => true,
            ResolveError::Mirror { source, .. } => source.is_absence(),
            ResolveError::Credential { .. }
            | ResolveError::Manifest { .. }
            | ResolveError::DigestMismatch { .. }
            | ResolveError::Size { .. }
            | ResolveError::Network { .. }
            | ResolveError::Store { .. } => false,
        }
    }

    pub(crate) fn store(reference: &Reference, error: Error) -> ResolveError {
        let reference = reference.clone();
        match error {
            Error::Manifest(source) => ResolveError::Manifest { reference, source },
            Error::ManifestUnknown { .. } => ResolveError::NotFound { reference },
            Error::DigestMismatch { expected, actual } => ResolveError::DigestMismatch {
                reference,
                expected: expected.to_string(),
                actual: actual.to_string(),
            },
            source @ (Error::Io { .. }
            | Error::BlobUnknown { .. }
            | Error::RepositoryUnknown { .. }
            | Error::ReferenceMissing { .. }
            | Error::UploadUnknown { .. }
            | Error::UploadOffset { .. }
            | Error::TooLarge { .. }
            | Error::Quota { .. }
            | Error::BlobHeld { .. }
            | Error::TagImmutable { .. }
            | Error::Random(_)) => ResolveError::Store { reference, source },
        }
    }
}

/// Whether this Homerun is the registry for a host: Google's, which are never asked in earnest.
pub fn is_own_host(host: &str) -> bool {
    ["pkg.dev", "gcr.io"].iter().any(|own| {
        host.strip_suffix(own)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

impl Images {
    /// Turns a reference into an image that is stored in full. Callers that ask for one image at a time share one pull.
    pub async fn resolve(&self, reference: &Reference) -> Result<ResolvedImage, ResolveError> {
        let (images, asked) = (self.clone(), reference.clone());
        let stored = blocking(move || images.resolve_stored(&asked)).await;
        let absent = match stored {
            Ok(resolved) => return Ok(resolved),
            Err(error @ Error::ManifestUnknown { .. }) => error,
            Err(error) => return Err(ResolveError::store(reference, error)),
        };
        if let Some(mirrored) = self.resolve_mirrored(reference).await {
            return mirrored;
        }
        if is_own_host(reference.repository().host()) {
            return Err(ResolveError::store(reference, absent));
        }
        self.pull(reference, reference).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_hosts() {
        for (host, own) in [
            ("us-central1-docker.pkg.dev", true),
            ("us-docker.pkg.dev", true),
            ("pkg.dev", true),
            ("gcr.io", true),
            ("eu.gcr.io", true),
            ("notpkg.dev", false),
            ("docker.io", false),
            ("localhost:5000", false),
            ("pkg.dev.example.com", false),
        ] {
            assert_eq!(is_own_host(host), own, "{host}");
        }
    }
}
