//! Why a command ends without having done what was asked, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use crate::traffic::TrafficError;

/// Why a command failed. Words that cannot be understood exit with 2, everything else with 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("no Homerun answers at {api}; start one with `homerun up`")]
    Nobody { api: String },
    #[error("what answers at {api} is no Homerun: {found}")]
    Stranger { api: String, found: String },
    #[error("the connection to {api} broke")]
    Broken {
        api: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error(
        "cannot read the owner's key {}; run this as the user who runs Homerun, or with sudo",
        path.display()
    )]
    Key {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot sign with the key {}: {reason}", path.display())]
    Sign { path: PathBuf, reason: String },
    #[error(transparent)]
    Refusal(#[from] Refusal),
    #[error("{call} answered {what}, which this client does not understand")]
    Answer { call: String, what: String },
    /// Cloud Run's words for what went wrong, or ours in the same form.
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    #[error("{}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {program}")]
    Program {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "this question could not be answered because you are not in an interactive session; \
         run the command again with --quiet to accept the default answer"
    )]
    Unattended,
    #[error("aborted by user")]
    Declined,
    #[error("cannot write the result")]
    Output(#[source] io::Error),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Nobody { .. }
            | Self::Stranger { .. }
            | Self::Broken { .. }
            | Self::Key { .. }
            | Self::Sign { .. }
            | Self::Refusal(_)
            | Self::Answer { .. }
            | Self::Failed(_)
            | Self::Traffic(_)
            | Self::File { .. }
            | Self::Program { .. }
            | Self::Unattended
            | Self::Declined
            | Self::Output(_) => 1,
        }
    }

    /// The text with its causes.
    pub(crate) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }

    /// Whether the reader of the result went away, which is no failure.
    pub(crate) fn reader_left(&self) -> bool {
        matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether the server did not take the token.
    pub(crate) fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Refusal(refusal) if refusal.code == 401)
    }

    /// Whether the server said that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refusal(refusal) if refusal.code == 404)
    }
}

/// An answer of the server that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    /// HTTP status code.
    pub(crate) code: u16,
    pub(crate) text: String,
}

impl Refusal {
    /// Reads Google's error document: the broken fields where it names some, else `STATUS: message`.
    pub(crate) fn read(code: u16, body: &str) -> Self {
        let document: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let error = &document["error"];
        let violations: Vec<String> = error["details"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|detail| detail["fieldViolations"].as_array().into_iter().flatten())
            .map(|violation| {
                let text = |key: &str| violation[key].as_str().unwrap_or_default();
                format!("{}: {}", text("field"), text("description"))
            })
            .collect();
        let text = if !violations.is_empty() {
            violations.join("\n")
        } else if let Some(message) = error["message"].as_str() {
            match error["status"].as_str() {
                Some(status) => format!("{status}: {message}"),
                None => message.to_owned(),
            }
        } else if let Some(oauth) = document["error"].as_str() {
            let description = document["error_description"].as_str().unwrap_or_default();
            format!("{oauth}: {description}")
        } else if let Some(first) = document["errors"][0]["code"].as_str() {
            // the registry's form
            let message = document["errors"][0]["message"].as_str().unwrap_or_default();
            format!("{first}: {message}")
        } else {
            let start: String = body.chars().take(200).collect();
            format!("HTTP {code}: {}", start.trim())
        };
        Self { code, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_fields_come_before_the_message() {
        let body = r#"{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT","details":[
            {"fieldViolations":[{"field":"spec.x","description":"too big"},{"field":"y","description":"z"}]}]}}"#;
        assert_eq!(Refusal::read(400, body).text, "spec.x: too big\ny: z");
        let body = r#"{"error":{"code":409,"message":"stale","status":"ABORTED"}}"#;
        assert_eq!(Refusal::read(409, body).text, "ABORTED: stale");
        let body = r#"{"error":"invalid_grant","error_description":"expired"}"#;
        assert_eq!(Refusal::read(400, body).text, "invalid_grant: expired");
        assert_eq!(Refusal::read(502, "oops\n").text, "HTTP 502: oops");
    }
}
