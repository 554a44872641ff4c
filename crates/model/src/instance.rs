//! One running copy of a revision: what it needs to run, and what is seen of it.

use std::{collections::BTreeMap, fmt, num::NonZeroU16, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Container, CpuAllocation, EnvValue, Probe, ProbeKind, Probed, Reason, Revealed, Revision, RevisionKey, Sandbox,
    Site, Timestamp, Volume, VolumeMount,
};

/// An instance's id: `i` and 24 hex digits, so that it is a legal container, cgroup and DNS name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    pub fn new(chance: [u8; 12]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(25);
        text.push('i');
        for byte in chance {
            write!(text, "{byte:02x}").expect("a string takes any write");
        }
        Self(text.into())
    }

    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix('i')?;
        let valid = hex.len() == 24 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        valid.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InstanceId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("\"{text}\" is not an instance id"))
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        (*id.0).to_owned()
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All that an engine needs to run one instance. Plain data, no host paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub id: InstanceId,
    /// Whose instance it is; the engine only hands it back.
    pub of: RevisionKey,
    /// The one that takes requests.
    pub container: ContainerSpec,
    /// Containers beside it, which share its network, in the document's order.
    pub sidecars: Vec<ContainerSpec>,
    /// Where the ingress container listens.
    pub port: NonZeroU16,
    pub volumes: Vec<Volume>,
    /// Values of secrets. Not part of what is written down.
    #[serde(skip)]
    pub secrets: Revealed,
    /// No CPU limit until ready and 10 s more.
    pub startup_cpu_boost: bool,
    pub cpu_allocation: CpuAllocation,
    pub sandbox: Sandbox,
}

/// What one container of an instance needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique in the instance.
    pub name: String,
    /// `sha256:...` of the image's manifest or index.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    /// Added to the image's environment; a later entry wins over an earlier one of the same name. Those of secrets are
    /// in [`InstanceSpec::secrets`].
    pub env: Vec<ResolvedVar>,
    /// Hard limit, thousandths of a CPU.
    pub cpu_millis: u32,
    /// Hard limit, bytes; files written to the root file system count.
    pub memory_bytes: u64,
    /// None: the container counts as started when its process runs. Always there for the ingress container.
    pub startup_probe: Option<Probe>,
    pub liveness_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    pub mounts: Vec<VolumeMount>,
    /// Names of containers that must have started before.
    pub depends_on: Vec<String>,
}

/// A variable of a container's environment with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedVar {
    pub name: String,
    pub value: String,
}

impl InstanceSpec {
    /// What an instance of `revision` needs. `image` is the digest of the ingress container's image, `secrets` are the
    /// values for what the template uses.
    pub fn derive(id: InstanceId, revision: &Revision, image: String, secrets: Revealed, site: &Site) -> Self {
        let template = &revision.template;
        let port = template.port.number;
        let service = &revision.key.service;
        let platform = [
            ("K_SERVICE", service.name.to_string()),
            ("K_REVISION", revision.key.name.to_string()),
            ("K_CONFIGURATION", service.name.to_string()),
            ("HOMERUN_REGION", service.region.to_string()),
            ("HOMERUN_PROJECT", site.project.to_string()),
        ];
        let variable = |(name, value): (&str, String)| ResolvedVar {
            name: name.to_owned(),
            value,
        };
        let platform = platform.map(variable);
        let mut names = template.container_names(&service.name);
        let own_name = names.remove(template.ingress_position());
        let mut container = ContainerSpec::derive(&template.container, own_name, image, &platform);
        container.env.push(variable(("PORT", port.to_string())));
        container.startup_probe.get_or_insert_with(|| Probe::implicit(port));
        let images = revision.sidecar_digests.iter().map(|pinned| bare_digest(pinned));
        let sidecars = template.sidecars.iter().zip(names).zip(images);
        Self {
            id,
            of: revision.key.clone(),
            container,
            sidecars: sidecars
                .map(|((sidecar, name), image)| ContainerSpec::derive(sidecar, name, image.to_owned(), &platform))
                .collect(),
            port,
            volumes: template.volumes.clone(),
            secrets,
            startup_cpu_boost: template.startup_cpu_boost(),
            cpu_allocation: template.cpu_allocation(),
            sandbox: template.sandbox(site.default_sandbox),
        }
    }

    /// The ingress container's startup probe.
    pub fn startup_probe(&self) -> Probe {
        let own = self.container.startup_probe.clone();
        own.unwrap_or_else(|| Probe::implicit(self.port))
    }

    pub fn containers(&self) -> impl Iterator<Item = &ContainerSpec> {
        std::iter::once(&self.container).chain(&self.sidecars)
    }

    /// Of all containers together, thousandths of a CPU.
    pub fn cpu_millis(&self) -> u32 {
        self.containers().map(|container| container.cpu_millis).sum()
    }

    /// Of all containers together.
    pub fn memory_bytes(&self) -> u64 {
        self.containers().map(|container| container.memory_bytes).sum()
    }
}

impl ContainerSpec {
    /// `platform` are the variables that every container of the instance gets.
    fn derive(container: &Container, name: String, image: String, platform: &[ResolvedVar]) -> Self {
        let literal = container.env.iter().filter_map(|variable| match &variable.value {
            EnvValue::Literal(value) => Some(ResolvedVar {
                name: variable.name.clone(),
                value: value.clone(),
            }),
            EnvValue::Secret(_) => None,
        });
        Self {
            name,
            image,
            command: container.command.clone(),
            args: container.args.clone(),
            working_dir: container.working_dir.clone(),
            env: literal.chain(platform.iter().cloned()).collect(),
            cpu_millis: container.resources.cpu.millis(),
            memory_bytes: container.resources.memory.bytes(),
            startup_probe: container.startup_probe.clone(),
            liveness_probe: container.liveness_probe.clone(),
            readiness_probe: container.readiness_probe.clone(),
            mounts: container.mounts.clone(),
            depends_on: container.depends_on.clone(),
        }
    }
}

/// The digest of `repository@sha256:...`, or of a text that is one already.
pub fn bare_digest(pinned: &str) -> &str {
    pinned.rsplit_once('@').map_or(pinned, |(_, digest)| digest)
}

/// Every instance the engine knows: the whole, not deltas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub instances: BTreeMap<InstanceId, Instance>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub of: RevisionKey,
    pub state: InstanceState,
    /// When it entered `state`.
    pub since: Timestamp,
    /// When its start was asked for.
    pub created: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    /// Made, but its program has not been started: it waits to be released.
    Parked,
    /// Its process is being started or its startup probe has not passed.
    Starting,
    /// It takes requests.
    Ready,
    /// It was ready, and its readiness probe fails: it gets no new request until the probe passes again.
    Unready,
    /// It was asked to stop and has not ended.
    Stopping,
    /// It ended. Kept until it is forgotten.
    Stopped(Exit),
}

impl InstanceState {
    /// Whether it takes room on the machine.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Parked | Self::Starting | Self::Ready | Self::Unready | Self::Stopping => true,
            Self::Stopped(_) => false,
        }
    }
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub cause: ExitCause,
    /// The container whose end it was, by name, where there are several.
    pub container: Option<String>,
    /// Whether it was ready before.
    pub was_ready: bool,
    /// The last lines of its output, oldest first; at most 20 lines of at most 500 characters.
    pub last_lines: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitCause {
    /// The container's process ended by itself.
    Code(i32),
    /// A signal that we did not send ended it.
    Signal(i32),
    /// It went over its memory limit; the whole instance was ended.
    OutOfMemory { limit_bytes: u64 },
    /// Nothing listened on the port of the instance's address within the probe's patience. `loopback_only`: something
    /// listened there on 127.0.0.1, where no request can come from.
    NotListening {
        port: u16,
        seconds: u64,
        loopback_only: bool,
    },
    /// A startup probe that was asked for failed for good. `why` is a sentence about its last failure.
    StartupProbeFailed {
        probe: Box<Probed>,
        failures: u32,
        why: String,
    },
    /// A liveness probe failed as often in a row as its threshold says. `why` is a sentence about its last failure.
    Unhealthy {
        probe: Box<Probed>,
        failures: u32,
        why: String,
    },
    /// The process could not be started at all: what the runtime said.
    NotStarted(String),
    /// We stopped it.
    Stopped,
}

impl Exit {
    /// Reason and message of the revision that this failed first instance belongs to, in Cloud Run's words where they
    /// are known, followed by what the container itself said.
    pub fn failure(&self, port: u16) -> (Reason, String) {
        let mut message = match &self.cause {
            ExitCause::Code(code) => format!(
                "The user-provided container failed to start and listen on the port defined provided by the PORT={port} environment variable. The container exited with exit code {code}."
            ),
            ExitCause::Signal(signal) => format!(
                "The user-provided container failed to start and listen on the port defined provided by the PORT={port} environment variable. The container was ended by signal {signal}."
            ),
            ExitCause::OutOfMemory { limit_bytes } => format!(
                "The user-provided container failed to start: Memory limit of {} MiB exceeded.",
                limit_bytes >> 20
            ),
            ExitCause::NotListening {
                seconds, loopback_only, ..
            } => {
                let why = if *loopback_only {
                    " It listens on 127.0.0.1 only; it must listen on 0.0.0.0."
                } else {
                    ""
                };
                format!(
                    "The user-provided container failed to start and listen on the port defined provided by the PORT={port} environment variable within {seconds} seconds.{why}"
                )
            }
            ExitCause::StartupProbeFailed { probe, failures, why } | ExitCause::Unhealthy { probe, failures, why } => {
                let check = match probe.kind {
                    ProbeKind::Startup => "startup",
                    ProbeKind::Liveness => "liveness",
                    ProbeKind::Readiness => "readiness",
                };
                format!(
                    "The user-provided container failed the configured {check} probe checks. {} {why}",
                    probe.failed(*failures)
                )
            }
            ExitCause::NotStarted(why) => {
                format!("The user-provided container could not be started: {why}.")
            }
            ExitCause::Stopped => "The container was stopped before it was ready.".to_owned(),
        };
        if let Some(container) = &self.container {
            message.insert_str(0, &format!("Container \"{container}\": "));
        }
        if !self.last_lines.is_empty() {
            message.push_str(" Last log lines:\n");
            message.push_str(&self.last_lines.join("\n"));
        }
        (Reason::HealthCheckContainerError, message)
    }
}

/// What became of an instance, asked right after a connection to it broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Alive,
    /// It went over its memory limit of so many bytes.
    OutOfMemory {
        limit_bytes: u64,
    },
    Ended,
}

/// Whether an instance has a request. The engine gives or takes the CPU on this edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Busy,
    Idle,
}

/// What an instance takes, as the kernel counts it, all its containers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Memory and files in memory.
    pub memory_bytes: u64,
}

/// What the machine has left for further instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Memory that the kernel could give now.
    pub memory_bytes: u64,
    /// All the memory there is.
    pub memory_total_bytes: u64,
    /// CPU that no instance was promised, thousandths.
    pub cpu_millis: u32,
    pub cpus: u32,
    /// For how much of the last ten seconds something waited for a CPU, percent. 0 where the kernel does not say.
    pub cpu_stalled: u8,
    /// For how much of the last ten seconds everything stood still for memory, percent. 0 where the kernel does not say.
    pub memory_stalled: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = InstanceId::new([0xab; 12]);
        assert_eq!(id.as_str().len(), 25);
        assert_eq!(InstanceId::parse(id.as_str()), Some(id));
        for bad in ["", "i", "../../etc/passwd", "iABABABABABABABABABABABAB"] {
            assert!(InstanceId::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_failure_names_code_and_last_lines() {
        let exit = Exit {
            cause: ExitCause::Code(3),
            container: Some("agent".to_owned()),
            was_ready: false,
            last_lines: vec!["boom".to_owned()],
        };
        let (reason, message) = exit.failure(8080);
        assert_eq!(reason, Reason::HealthCheckContainerError);
        assert!(
            message.starts_with("Container \"agent\": ")
                && message.contains("exit code 3")
                && message.contains("PORT=8080")
                && message.ends_with("boom"),
            "{message}"
        );
    }
}
