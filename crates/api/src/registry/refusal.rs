//! Refusals in the form of the distribution specification.

use std::time::Duration;

use http::{Response, StatusCode, request::Parts};
use image::{DigestError, ReferenceError};
use model::with_causes;
use serde_json::json;

use crate::{
    document::short,
    error::{Code, Error},
    reply::{self, Body},
};

#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    pub(crate) fn unauthorized(message: String) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
    }

    pub(crate) fn denied(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", message)
    }

    pub(crate) fn unsupported(head: &Parts) -> Self {
        let message = format!(
            "{} {} is not served by this registry",
            head.method,
            short(head.uri.path())
        );
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    pub(crate) fn name(error: &ReferenceError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string())
    }

    /// The repository that an image is pushed into cannot be made.
    pub(crate) fn repository(error: &Error) -> Self {
        if error.code == Code::Unavailable {
            return Self::unavailable();
        }
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.message.clone())
    }

    pub(crate) fn reference(error: &ReferenceError) -> Self {
        let code = match error {
            ReferenceError::Digest { .. } => "DIGEST_INVALID",
            ReferenceError::Tag { .. }
            | ReferenceError::NoRepository { .. }
            | ReferenceError::Host { .. }
            | ReferenceError::Path { .. } => "MANIFEST_INVALID",
        };
        Self::new(StatusCode::BAD_REQUEST, code, with_causes(error))
    }

    pub(crate) fn digest(error: &DigestError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string())
    }

    pub(crate) fn no_digest() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "the digest parameter is missing",
        )
    }

    pub(crate) fn manifest(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    pub(crate) fn page(number: &str) -> Self {
        let message = format!("n must be a whole number of at least 0, not \"{}\"", short(number));
        Self::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message)
    }

    pub(crate) fn range(message: String) -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
    }

    pub(crate) fn chunk(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    /// The client left, or its connection did.
    pub(crate) fn broken(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "BLOB_UPLOAD_INVALID",
            format!("the request body broke off: {error}"),
        )
    }

    pub(crate) fn paused(patience: Duration) -> Self {
        let message = format!("the request body paused for more than {} seconds", patience.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", message)
    }

    pub(crate) fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "UNKNOWN",
            "the image store cannot be read or written",
        )
    }

    pub(crate) fn response(&self) -> Response<Body> {
        let errors = json!({ "errors": [{ "code": self.code, "message": self.message }] });
        reply::json(self.status, &errors)
    }
}

impl From<image::Error> for Refusal {
    fn from(error: image::Error) -> Self {
        use image::Error;
        let (status, code) = match &error {
            Error::BlobUnknown { .. } => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Error::ManifestUnknown { .. } => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Error::RepositoryUnknown { .. } => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Error::Manifest(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::ReferenceMissing { .. } => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Error::DigestMismatch { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Error::UploadUnknown { .. } => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Error::UploadOffset { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            // Clients repeat what a 5xx answers; nothing is gained by that here.
            Error::Quota { .. } | Error::BlobHeld { .. } | Error::TagImmutable { .. } => {
                (StatusCode::FORBIDDEN, "DENIED")
            }
            Error::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Error::Io { .. } | Error::Random(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the image store failed");
                return Self::unavailable();
            }
        };
        Self::new(status, code, with_causes(&error))
    }
}
