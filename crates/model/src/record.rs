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
    /// From `at` until the head of the answer went out; 0 when none did.
    #[serde(default)]
    pub first_byte_micros: u64,
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
    /// Which of the instance's containers wrote it; empty for one that is alone, and for what Homerun says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
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

/// One start of an instance, written once it takes requests. Durations in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// When the engine was told to start it, or to release it if it was parked.
    pub at: Timestamp,
    pub of: RevisionKey,
    pub instance: InstanceId,
    /// It was made before `at`: all up to and with `sandbox_micros` was spent then.
    pub parked: bool,
    /// Until its turn came: image at hand, configuration written, others made before it.
    pub turn_micros: u64,
    /// The root file system. None where crun made the sandbox: it is in `sandbox_micros`, as are the next two.
    pub rootfs_micros: Option<u64>,
    /// The network namespace.
    pub network_micros: Option<u64>,
    /// Control groups.
    pub cgroup_micros: Option<u64>,
    /// The rest until the sandbox was made: namespaces, mounts, privileges.
    pub sandbox_micros: u64,
    /// From its release until its process ran the program. None where crun made the sandbox.
    pub process_micros: Option<u64>,
    /// From there until its startup probe passed.
    pub listening_micros: u64,
    /// From `at` until then.
    pub ready_micros: u64,
}

impl StartRecord {
    /// The phases of a cold start by their names, in their order. `first` is the record of the first request that the
    /// instance served; with it the first and the last phase are known: how long it took to decide on the start, and
    /// from the probe to the first byte of the answer.
    pub fn phases(&self, first: Option<&RequestRecord>) -> [(&'static str, Option<u64>); 8] {
        let since = |from: Timestamp, micros: u64, to: Timestamp, more: u64| {
            let from = i128::from(from.as_micros()) + i128::from(micros);
            let to = i128::from(to.as_micros()) + i128::from(more);
            u64::try_from(to - from).ok()
        };
        let first = first.filter(|request| request.instance.as_ref() == Some(&self.instance));
        let answered = first.filter(|request| request.first_byte_micros > 0);
        [
            ("decide", first.and_then(|request| since(request.at, 0, self.at, 0))),
            ("rootfs", self.rootfs_micros),
            ("network", self.network_micros),
            ("cgroup", self.cgroup_micros),
            ("sandbox", Some(self.sandbox_micros)),
            ("process", self.process_micros),
            ("listening", Some(self.listening_micros)),
            (
                "first byte",
                answered.and_then(|request| since(self.at, self.ready_micros, request.at, request.first_byte_micros)),
            ),
        ]
    }
}

/// A call of the API that changes something, carried out or refused. Earlier versions wrote down changes of services
/// alone, without what has a default here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub at: Timestamp,
    /// The service, where it is about one.
    #[serde(default)]
    pub service: Option<ServiceKey>,
    /// E-mail; empty where nobody knows who called.
    pub caller: String,
    /// Google's name of it.
    pub method: String,
    /// The full name of what it was about.
    #[serde(default)]
    pub resource: String,
    /// The address that the call came from.
    #[serde(default)]
    pub from: String,
    /// Whether the caller had the permission.
    #[serde(default = "allowed")]
    pub allowed: bool,
    /// Of the answer; 0 where it was not written down.
    #[serde(default)]
    pub status: u16,
}

fn allowed() -> bool {
    true
}

/// What the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    Request(Box<RequestRecord>),
    Line(LogLine),
    Start(StartRecord),
    /// A write was asked for: who, what, from where, and whether it was let through.
    Audit(AuditRecord),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Region, ServiceName};

    #[test]
    fn audit_entries_of_earlier_versions_are_read() {
        let text = r#"{"Audit":{"at":1,"service":{"region":"us-central1","name":"hello"},"caller":"me@p","method":"CreateService"}}"#;
        let Entry::Audit(record) = serde_json::from_str(text).expect("reads") else {
            panic!("another entry");
        };
        assert!(record.service.is_some() && record.allowed);
        assert_eq!((record.status, record.from.as_str()), (0, ""));
    }

    #[test]
    fn a_first_request_tells_of_decision_and_first_byte() {
        let service = ServiceKey {
            region: Region::parse("us-central1").expect("a region"),
            name: ServiceName::parse("hello").expect("a name"),
        };
        let of = RevisionKey {
            service,
            name: "hello-00001-abc".parse().expect("a name"),
        };
        let instance = InstanceId::new([1; 12]);
        let start = StartRecord {
            at: Timestamp::from_micros(1000),
            of,
            instance: instance.clone(),
            parked: true,
            turn_micros: 1,
            rootfs_micros: Some(2),
            network_micros: Some(3),
            cgroup_micros: Some(4),
            sandbox_micros: 5,
            process_micros: Some(6),
            listening_micros: 7,
            ready_micros: 500,
        };
        let mut request = RequestRecord {
            at: Timestamp::from_micros(900),
            latency_micros: 900,
            queued_micros: 650,
            first_byte_micros: 800,
            method: "GET".to_owned(),
            url: "http://hello.a.run.localhost/".to_owned(),
            status: 200,
            request_bytes: 0,
            response_bytes: 2,
            remote_ip: "127.0.0.1".to_owned(),
            user_agent: String::new(),
            protocol: "HTTP/1.1".to_owned(),
            trace: String::new(),
            service: None,
            revision: None,
            instance: Some(instance),
            refusal: None,
        };
        let of = |request: Option<&RequestRecord>| start.phases(request).map(|(_, micros)| micros);
        let middle = [Some(2), Some(3), Some(4), Some(5), Some(6), Some(7)];
        let with = |first, last| [&[first][..], &middle, &[last]].concat();
        assert_eq!(of(None).to_vec(), with(None, None));
        // Asked at 900, ordered at 1000, ready at 1500, answered at 1700.
        assert_eq!(of(Some(&request)).to_vec(), with(Some(100), Some(200)));
        // One that came when the instance was ready already decided nothing.
        request.at = Timestamp::from_micros(2000);
        assert_eq!(of(Some(&request)).to_vec(), with(None, Some(1300)));
        request.instance = None;
        assert_eq!(of(Some(&request)).to_vec(), with(None, None));
    }
}
