//! Refusals in the form of Google's JSON APIs.

use http::StatusCode;
use model::{Permission, Violation};
use serde_json::{Value, json};

/// The canonical codes that are answered here. Never one of HTTP's 5xx for what the caller did: gcloud repeats those for
/// half a minute before it shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument,
    FailedPrecondition,
    /// A condition on a generation that does not hold (Cloud Storage, HTTP 412).
    Precondition,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    AlreadyExists,
    Aborted,
    /// What is not served. HTTP 400, since gcloud repeats a 501.
    Unimplemented,
    /// The disk failed under us.
    Unavailable,
}

impl Code {
    pub(crate) fn http(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition | Self::Unimplemented => StatusCode::BAD_REQUEST,
            Self::Precondition => StatusCode::PRECONDITION_FAILED,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::Aborted => StatusCode::CONFLICT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::FailedPrecondition | Self::Precondition => "FAILED_PRECONDITION",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Aborted => "ABORTED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// Each broken field; gcloud prints these instead of the message.
    pub(crate) violations: Vec<Violation>,
    /// Whose resource was not found: with it gcloud keeps the message of a 404 to a write.
    domain: Option<&'static str>,
    /// The permission that was lacking, and on what.
    denied: Option<(Permission, String)>,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            violations: Vec::new(),
            domain: None,
            denied: None,
        }
    }

    /// The caller lacks the permission on the resource (`//SERVICE/NAME`), in Google's words.
    pub(crate) fn denied(permission: Permission, resource: &str) -> Self {
        Self {
            denied: Some((permission, resource.to_owned())),
            ..Self::new(
                Code::PermissionDenied,
                format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist)."),
            )
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn violations(violations: Vec<Violation>) -> Self {
        let message = violations
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        Self {
            violations,
            ..Self::new(Code::InvalidArgument, message)
        }
    }

    pub(crate) fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::violations(vec![Violation::new(field, description)])
    }

    /// A resource of the Run API that is not there.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self {
            domain: Some("run.googleapis.com"),
            ..Self::new(Code::NotFound, message)
        }
    }

    pub(crate) fn unimplemented(what: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, what)
    }

    pub(crate) fn body(&self) -> Value {
        let mut error = json!({
            "code": self.code.http().as_u16(),
            "message": self.message,
            "status": self.code.as_str(),
        });
        let mut details = Vec::new();
        if !self.violations.is_empty() {
            let violations: Vec<Value> = self
                .violations
                .iter()
                .map(|v| json!({ "field": v.field, "description": v.description }))
                .collect();
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": violations,
            }));
        }
        if let Some(domain) = self.domain {
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": self.code.as_str(),
                "domain": domain,
            }));
        }
        if let Some((permission, resource)) = &self.denied {
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "IAM_PERMISSION_DENIED",
                "domain": "iam.googleapis.com",
                "metadata": { "permission": permission.as_str(), "resource": resource },
            }));
        }
        if !details.is_empty() {
            error["details"] = details.into();
        }
        json!({ "error": error })
    }
}

impl From<store::TransactError<Error>> for Error {
    fn from(error: store::TransactError<Error>) -> Self {
        match error {
            store::TransactError::Refused(refused) => refused,
            store::TransactError::Storage(source) => {
                tracing::error!(error = &source as &dyn std::error::Error, "a write was not stored");
                Self::new(Code::Unavailable, model::with_causes(&source))
            }
        }
    }
}
