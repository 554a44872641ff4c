//! What is written down of a request and of a container's output.

use serde::{Deserialize, Serialize};

use crate::{InstanceId, RevisionKey, ServiceKey, Timestamp};

/// One request, refused or served. Durations in microseconds, sizes in bytes of body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// When its head was read.
    pub at: Timestamp,
    /// From `at` until the body ended or the client left.
    pub latency_micros: u64,
    /// Of `latency_micros`, the part spent waiting for a slot.
    pub queued_micros: u64,
    pub method: String,
    /// Scheme, host, path and query as the client asked.
    pub url: String,
    pub status: u16,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub remote_ip: String,
    pub user_agent: String,
    pub protocol: String,
    pub trace: String,
    /// None: no service has the host.
    pub service: Option<ServiceKey>,
    /// None: refused before a revision was drawn.
    pub revision: Option<RevisionKey>,
    /// None: refused before an instance was assigned.
    pub instance: Option<InstanceId>,
    /// Why it was refused or broke off, when it was.
    pub refusal: Option<String>,
}

/// One line of an instance's output, without its line end; at most 256 KiB, longer ones are split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub at: Timestamp,
    pub of: RevisionKey,
    pub instance: InstanceId,
    pub stream: Stream,
    #[serde(default, skip_serializing_if = "Severity::is_default")]
    pub severity: Severity,
    pub text: String,
}

/// How grave a line is, by Cloud Logging's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    /// Nothing was said of it.
    #[default]
    Default,
    Info,
    Warning,
    Error,
}

impl Severity {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout,
    Stderr,
    /// Said by Homerun about the instance, such as a broken memory limit.
    System,
}

/// What the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    Request(Box<RequestRecord>),
    Line(LogLine),
    /// The service was changed: who, what.
    Audit {
        at: Timestamp,
        service: ServiceKey,
        caller: String,
        method: String,
    },
}
