//! Probes: how a container is asked whether it has started, lives, and takes requests.

use std::{
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{ProbeKind, Violation};

/// A probe of a container. Seconds, with the ranges of the Admin API: 240 at most for a startup probe, 3600 for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub initial_delay: u32,
    /// At least 1, not below `timeout`.
    pub period: u32,
    /// At least 1.
    pub timeout: u32,
    /// Failures in a row that make the probe failed. At least 1; of a startup probe `period * failures` at most 240.
    pub failures: u32,
    /// Successes in a row that make a failed readiness probe passed again; 1 for all others.
    pub successes: NonZeroU32,
    pub check: Check,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// Something accepts a connection. Startup only.
    Tcp { port: NonZeroU16 },
    /// GET over HTTP/1.1 is answered with 200 to 399.
    Http {
        port: NonZeroU16,
        path: String,
        headers: Vec<Header>,
    },
    /// `grpc.health.v1.Health/Check` answers SERVING.
    Grpc { port: NonZeroU16, service: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub name: String,
    pub value: String,
}

impl Check {
    pub fn port(&self) -> NonZeroU16 {
        match self {
            Self::Tcp { port } | Self::Http { port, .. } | Self::Grpc { port, .. } => *port,
        }
    }
}

impl Probe {
    /// What Cloud Run stores when no startup probe was given.
    pub fn implicit(port: NonZeroU16) -> Self {
        Self {
            initial_delay: 0,
            period: 240,
            timeout: 240,
            failures: 1,
            successes: NonZeroU32::MIN,
            check: Check::Tcp { port },
        }
    }

    /// How long a start may take before the probe has failed for good.
    pub fn patience(&self) -> Duration {
        let seconds = self
            .initial_delay
            .saturating_add(self.period.saturating_mul(self.failures));
        Duration::from_secs(u64::from(seconds))
    }

    /// Every rule that the probe breaks, with `path` in front of the fields (Admin API v1, `Probe`).
    pub(crate) fn violations(&self, kind: ProbeKind, path: &str, found: &mut Vec<Violation>) {
        let mut say = |field: &str, description: String| {
            found.push(Violation::new(format!("{path}.{field}"), description));
        };
        let longest = match kind {
            ProbeKind::Startup => 240,
            ProbeKind::Liveness | ProbeKind::Readiness => 3600,
        };
        if kind == ProbeKind::Readiness && self.initial_delay > 0 {
            say(
                "initialDelaySeconds",
                format!(
                    "{}: a readiness probe begins when the startup probe has passed and has no delay of its own",
                    self.initial_delay
                ),
            );
        } else if self.initial_delay > longest {
            say(
                "initialDelaySeconds",
                format!("{} is out of range: 0 to {longest}", self.initial_delay),
            );
        }
        if !(1..=longest).contains(&self.timeout) {
            say(
                "timeoutSeconds",
                format!("{} is out of range: 1 to {longest}", self.timeout),
            );
        }
        if !(1..=longest).contains(&self.period) {
            say(
                "periodSeconds",
                format!("{} is out of range: 1 to {longest}", self.period),
            );
        } else if self.period < self.timeout {
            say(
                "periodSeconds",
                format!("{} is below timeoutSeconds {}", self.period, self.timeout),
            );
        }
        if self.failures == 0 {
            say("failureThreshold", "0 is out of range: at least 1".to_owned());
        } else if kind == ProbeKind::Startup && self.period.saturating_mul(self.failures) > 240 {
            say(
                "failureThreshold",
                format!(
                    "{} times periodSeconds {} is more than 240 seconds",
                    self.failures, self.period
                ),
            );
        }
        if kind != ProbeKind::Readiness && self.successes != NonZeroU32::MIN {
            say(
                "successThreshold",
                format!("{} is out of range: 1, but for a readiness probe", self.successes),
            );
        }
        match &self.check {
            Check::Tcp { .. } if kind != ProbeKind::Startup => say(
                "tcpSocket",
                "a connection shows only that the container has started: use httpGet or grpc".to_owned(),
            ),
            Check::Tcp { .. } | Check::Grpc { .. } => {}
            Check::Http { path, headers, .. } => {
                let plain = |text: &str| text.bytes().all(|b| (0x21..=0x7e).contains(&b));
                if !path.starts_with('/') || !plain(path) {
                    let shown: String = path.chars().take(80).collect();
                    say(
                        "httpGet.path",
                        format!("\"{shown}\" is no path: '/' first, printable characters of ASCII without spaces"),
                    );
                }
                for (index, header) in headers.iter().enumerate() {
                    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
                    if header.name.is_empty() || !header.name.bytes().all(token) {
                        say(
                            &format!("httpGet.httpHeaders[{index}].name"),
                            "is no name of an HTTP header".to_owned(),
                        );
                    }
                    let visible = |b: u8| b == b'\t' || (0x20..=0x7e).contains(&b);
                    if !header.value.bytes().all(visible) {
                        say(
                            &format!("httpGet.httpHeaders[{index}].value"),
                            "is no value of an HTTP header: visible characters of ASCII, spaces and tabs".to_owned(),
                        );
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(check: Check) -> Probe {
        Probe {
            initial_delay: 0,
            period: 10,
            timeout: 1,
            failures: 3,
            successes: NonZeroU32::MIN,
            check,
        }
    }

    fn http(path: &str) -> Check {
        Check::Http {
            port: NonZeroU16::MIN,
            path: path.to_owned(),
            headers: Vec::new(),
        }
    }

    fn broken(kind: ProbeKind, probe: &Probe) -> Vec<String> {
        let mut found = Vec::new();
        probe.violations(kind, "p", &mut found);
        found.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn the_implicit_probe_waits_four_minutes() {
        let probe = Probe::implicit(NonZeroU16::MIN);
        assert_eq!(probe.patience().as_secs(), 240);
        assert!(broken(ProbeKind::Startup, &probe).is_empty());
    }

    #[test]
    fn each_kind_has_its_limits() {
        let long = Probe {
            initial_delay: 3600,
            period: 3600,
            timeout: 3600,
            ..probe(http("/health?x=1"))
        };
        let fields = |names: &[&str]| names.iter().map(|name| format!("p.{name}")).collect::<Vec<_>>();
        let all = fields(&[
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "failureThreshold",
        ]);
        assert_eq!(broken(ProbeKind::Startup, &long), all);
        assert!(broken(ProbeKind::Liveness, &long).is_empty());
        assert_eq!(broken(ProbeKind::Readiness, &long), fields(&["initialDelaySeconds"]));
        let thrice = Probe {
            successes: NonZeroU32::new(3).expect("not zero"),
            ..probe(http("/"))
        };
        assert!(broken(ProbeKind::Readiness, &thrice).is_empty());
        assert_eq!(broken(ProbeKind::Liveness, &thrice), fields(&["successThreshold"]));
        let tcp = probe(Check::Tcp { port: NonZeroU16::MIN });
        assert!(broken(ProbeKind::Startup, &tcp).is_empty());
        assert_eq!(broken(ProbeKind::Liveness, &tcp), fields(&["tcpSocket"]));
        assert_eq!(broken(ProbeKind::Readiness, &tcp), fields(&["tcpSocket"]));
    }

    #[test]
    fn what_goes_into_a_request_is_checked() {
        for path in ["", "health", "/a b", "/a\r\nx: y", "/ü"] {
            assert_eq!(
                broken(ProbeKind::Liveness, &probe(http(path))),
                ["p.httpGet.path"],
                "{path}"
            );
        }
        let header = |name: &str, value: &str| Header {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let check = Check::Http {
            port: NonZeroU16::MIN,
            path: "/".to_owned(),
            headers: vec![header("x-ok", "a b"), header("a b", "x"), header("x", "a\nb")],
        };
        assert_eq!(
            broken(ProbeKind::Startup, &probe(check)),
            ["p.httpGet.httpHeaders[1].name", "p.httpGet.httpHeaders[2].value"]
        );
    }
}
