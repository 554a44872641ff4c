//! The words of Cloud Run's log for a probe of one container.

use std::fmt;

use crate::Check;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Whether the container has started.
    Startup,
    /// Whether it must be restarted.
    Liveness,
    /// Whether it gets new requests.
    Readiness,
}

/// One probe of one container, as its log lines name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    pub kind: ProbeKind,
    /// The startup probe that was not asked for.
    pub default: bool,
    pub container: String,
    pub check: Check,
}

impl Probed {
    /// `STARTUP TCP probe succeeded after 1 attempt for container "app" on port 8080.`
    pub fn succeeded(&self, attempts: u32) -> String {
        let plural = if attempts == 1 { "" } else { "s" };
        format!(
            "{} probe succeeded after {attempts} attempt{plural} {}.",
            self.name(),
            self
        )
    }

    /// `LIVENESS HTTP probe failed 3 times consecutively for container "app" on port 8080 path "/".`
    pub fn failed(&self, times: u32) -> String {
        let plural = if times == 1 { "" } else { "s" };
        format!(
            "{} probe failed {times} time{plural} consecutively {}.",
            self.name(),
            self
        )
    }

    fn name(&self) -> String {
        let default = if self.default { "Default " } else { "" };
        let kind = match self.kind {
            ProbeKind::Startup => "STARTUP",
            ProbeKind::Liveness => "LIVENESS",
            ProbeKind::Readiness => "READINESS",
        };
        let check = match self.check {
            Check::Tcp { .. } => "TCP",
            Check::Http { .. } => "HTTP",
            Check::Grpc { .. } => "GRPC",
        };
        format!("{default}{kind} {check}")
    }
}

/// Of what: `for container "app" on port 8080 path "/"`.
impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for container \"{}\" on port {}", self.container, self.check.port())?;
        match &self.check {
            Check::Http { path, .. } => write!(f, " path \"{path}\""),
            Check::Grpc { service, .. } if !service.is_empty() => write!(f, " service \"{service}\""),
            Check::Tcp { .. } | Check::Grpc { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn the_words_are_cloud_runs() {
        let port = NonZeroU16::new(8080).expect("not zero");
        let probed = |kind, default, check| Probed {
            kind,
            default,
            container: "api-1".to_owned(),
            check,
        };
        let http = Check::Http {
            port,
            path: "/healthz".to_owned(),
            headers: Vec::new(),
        };
        assert_eq!(
            probed(ProbeKind::Startup, true, Check::Tcp { port }).failed(1),
            "Default STARTUP TCP probe failed 1 time consecutively for container \"api-1\" on port 8080."
        );
        assert_eq!(
            probed(ProbeKind::Startup, false, http.clone()).succeeded(7),
            "STARTUP HTTP probe succeeded after 7 attempts for container \"api-1\" on port 8080 path \"/healthz\"."
        );
        assert_eq!(
            probed(ProbeKind::Liveness, false, http).failed(3),
            "LIVENESS HTTP probe failed 3 times consecutively for container \"api-1\" on port 8080 path \"/healthz\"."
        );
        let service = "db".to_owned();
        assert_eq!(
            probed(ProbeKind::Readiness, false, Check::Grpc { port, service }).failed(2),
            "READINESS GRPC probe failed 2 times consecutively for container \"api-1\" on port 8080 service \"db\"."
        );
    }
}
