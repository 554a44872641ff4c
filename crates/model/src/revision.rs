//! Revisions: the template a caller writes, its rules, and the immutable revision made of it.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::{Container, Port, RevisionName, ServiceKey, Timestamp, Violation, Volume, container::container_violations};

/// What the next revision will be. A changed template makes a new revision; everything in it is immutable there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionTemplate {
    /// The name the caller chose, else Cloud Run makes one.
    pub name: Option<RevisionName>,
    /// Kept word for word and copied to the revision.
    pub labels: BTreeMap<String, String>,
    /// Those without meaning to us, kept word for word. Those with meaning are fields below.
    pub annotations: BTreeMap<String, String>,
    /// The one that takes requests.
    pub container: Container,
    /// Where the ingress container listens.
    pub port: Port,
    /// The other containers, in the document's order.
    pub sidecars: Vec<Container>,
    /// How many of the sidecars stand before the ingress container in the document.
    pub ingress_position: usize,
    pub volumes: Vec<Volume>,
    pub concurrency: Concurrency,
    pub timeout: RequestTimeout,
    /// E-mail of the account the instances run as; None is the project's default account.
    pub service_account: Option<String>,
    pub scaling: Scaling,
    /// None: not said by the caller, CPU only during requests.
    pub cpu_allocation: Option<CpuAllocation>,
    /// None: not said by the caller, the Homerun's default.
    pub sandbox: Option<Sandbox>,
    /// None: not said by the caller, no boost.
    pub startup_cpu_boost: Option<bool>,
    /// None: not said by the caller, no affinity.
    pub session_affinity: Option<bool>,
    /// Scaling by Knative's own rules. None: by Cloud Run's.
    pub kpa: Option<Kpa>,
}

/// What annotations of `autoscaling.knative.dev/` other than the bounds ask for; None is Knative's default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kpa {
    pub metric: KpaMetric,
    /// Per instance, in hundredths of a request (concurrency) or of a request a second (rps).
    pub target_centi: Option<u32>,
    /// `target-utilization-percentage`, 1 to 100.
    pub target_utilization: Option<u8>,
    /// Seconds, 6 to 3600.
    pub window: Option<u32>,
    /// `panic-window-percentage`, hundredths of a percent.
    pub panic_window_centi: Option<u32>,
    /// `panic-threshold-percentage`, hundredths of a percent.
    pub panic_threshold_centi: Option<u32>,
    /// `target-burst-capacity`; -1 keeps the queue of the ingress in the path.
    pub target_burst_capacity: Option<i64>,
    pub initial_scale: Option<u32>,
    pub activation_scale: Option<u32>,
    /// Seconds, 0 to 3600.
    pub scale_down_delay: Option<u32>,
    /// `scale-to-zero-pod-retention-period`, seconds.
    pub retention: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KpaMetric {
    #[default]
    Concurrency,
    Rps,
}

/// Requests one instance takes at a time: 1 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Concurrency(u32);

impl Concurrency {
    pub const ONE: Self = Self(1);

    pub fn new(requests: u32) -> Option<Self> {
        (1..=1000).contains(&requests).then_some(Self(requests))
    }

    /// 80 with at least one CPU, else 1 (Admin API, `containerConcurrency`).
    pub fn default_for(cpu_millis: u32) -> Self {
        Self(if cpu_millis >= 1000 { 80 } else { 1 })
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Concurrency {
    type Error = String;
    fn try_from(requests: u32) -> Result<Self, String> {
        Self::new(requests).ok_or_else(|| format!("concurrency {requests} is out of range: 1 to 1000"))
    }
}

impl From<Concurrency> for u32 {
    fn from(concurrency: Concurrency) -> Self {
        concurrency.0
    }
}

/// How long a request may take, queueing and cold start included: 1 to 3600 seconds, default 300.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct RequestTimeout(u32);

impl RequestTimeout {
    pub fn new(seconds: u32) -> Option<Self> {
        (1..=3600).contains(&seconds).then_some(Self(seconds))
    }

    pub fn seconds(self) -> u32 {
        self.0
    }

    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::from_secs(u64::from(self.0))
    }
}

impl Default for RequestTimeout {
    fn default() -> Self {
        Self(300)
    }
}

impl TryFrom<u32> for RequestTimeout {
    type Error = String;
    fn try_from(seconds: u32) -> Result<Self, String> {
        Self::new(seconds).ok_or_else(|| format!("timeout {seconds} is out of range: 1 to 3600 seconds"))
    }
}

impl From<RequestTimeout> for u32 {
    fn from(timeout: RequestTimeout) -> Self {
        timeout.0
    }
}

/// Bounds on the number of instances of one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// Instances kept while the revision can be reached (traffic or tag). Default 0.
    pub min: u32,
    /// Never exceeded. Default 100, at most 1000.
    pub max: NonZeroU32,
}

impl Scaling {
    pub const DEFAULT_MAX: u32 = 100;
    pub const HIGHEST_MAX: u32 = 1000;
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min: 0,
            max: NonZeroU32::new(Self::DEFAULT_MAX).expect("100 is not zero"),
        }
    }
}

/// When an instance has its CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuAllocation {
    /// Only while it starts, serves a request, or shuts down (`--cpu-throttling`, the default).
    #[default]
    Request,
    /// Always (`--no-cpu-throttling`).
    Instance,
}

/// The execution environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sandbox {
    /// gVisor.
    Gen1,
    /// A full Linux kernel.
    Gen2,
}

impl RevisionTemplate {
    pub fn cpu_allocation(&self) -> CpuAllocation {
        self.cpu_allocation.unwrap_or_default()
    }

    pub fn startup_cpu_boost(&self) -> bool {
        self.startup_cpu_boost.unwrap_or(false)
    }

    /// Every container in the document's order.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        let (before, after) = self.sidecars.split_at(self.ingress_position.min(self.sidecars.len()));
        before.iter().chain([&self.container]).chain(after)
    }
}

/// Every rule that a template breaks, with `path` (such as `spec.template`) in front of the fields.
///
/// Limits that depend on the execution environment apply only when the caller named one; unset takes the wider of both.
pub fn template_violations(template: &RevisionTemplate, service: &crate::ServiceName, path: &str) -> Vec<Violation> {
    let container_path = format!("{path}.spec.containers[0]");
    let mut found = container_violations(&template.container, &container_path);
    let mut say = |field: &str, description: String| {
        found.push(Violation::new(format!("{path}.{field}"), description));
    };
    if let Some(probe) = &template.container.startup_probe
        && probe.check.port() != template.port.number
    {
        say(
            "spec.containers[0].startupProbe.tcpSocket.port",
            format!(
                "{} is not the container's port {}",
                probe.check.port(),
                template.port.number
            ),
        );
    }
    if let Some(name) = &template.name
        && !name.belongs_to(service)
    {
        say(
            "metadata.name",
            format!(
                "\"{name}\": the revision name must be prefixed by the name of the enclosing Service with a trailing -, here {service}-"
            ),
        );
    }
    let Scaling { min, max } = template.scaling;
    if max.get() > Scaling::HIGHEST_MAX {
        say(
            "metadata.annotations[autoscaling.knative.dev/maxScale]",
            format!("{max} is out of range: 1 to {}", Scaling::HIGHEST_MAX),
        );
    }
    if min > max.get() {
        say(
            "metadata.annotations[autoscaling.knative.dev/minScale]",
            format!("{min} is more than the maximum of {max} instances"),
        );
    }
    if let Some(account) = &template.service_account
        && !is_service_account(account)
    {
        say(
            "spec.serviceAccountName",
            format!(
                "\"{account}\" is not the e-mail of a service account, such as NAME@PROJECT.iam.gserviceaccount.com"
            ),
        );
    }
    for (broken, limit) in resource_rules(template) {
        say(&format!("spec.containers[0].resources.limits.{broken}"), limit);
    }
    let cpu = template.container.resources.cpu.millis();
    if cpu < 1000 {
        if template.concurrency != Concurrency::ONE {
            say(
                "spec.containerConcurrency",
                format!(
                    "{} requires at least 1 CPU: with {} the concurrency must be 1",
                    template.concurrency.get(),
                    template.container.resources.cpu
                ),
            );
        }
        if template.cpu_allocation() == CpuAllocation::Instance {
            say(
                "metadata.annotations[run.googleapis.com/cpu-throttling]",
                format!(
                    "CPU can be always allocated only with at least 1 CPU, not {}",
                    template.container.resources.cpu
                ),
            );
        }
    }
    found
}

/// CPU and memory limits and how they bind each other (Cloud Run, "Configure CPU limits", "Configure memory limits").
fn resource_rules(template: &RevisionTemplate) -> Vec<(&'static str, String)> {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let cpu = &template.container.resources.cpu;
    let memory = &template.container.resources.memory;
    let mut broken = Vec::new();
    let millis = cpu.millis();
    let gen2 = template.sandbox == Some(Sandbox::Gen2);
    let smallest = if gen2 { 1000 } else { 80 };
    if millis < smallest {
        let whose = if gen2 {
            " in the second generation execution environment"
        } else {
            ""
        };
        broken.push((
            "cpu",
            format!(
                "{cpu} is too little: at least {}{whose}",
                if gen2 { "1" } else { "0.08" }
            ),
        ));
        return broken;
    }
    if millis > 1000 && ![2000, 4000, 6000, 8000].contains(&millis) {
        broken.push(("cpu", format!("{cpu} is not allowed: 0.08 to 1, 2, 4, 6 or 8")));
        return broken;
    }
    let floor = if gen2 { 512 * MIB } else { 128 * MIB };
    let bytes = memory.bytes();
    if bytes < floor {
        let whose = if gen2 {
            " in the second generation execution environment"
        } else {
            ""
        };
        broken.push((
            "memory",
            format!("{memory} is too little: at least {}Mi{whose}", floor / MIB),
        ));
    } else if bytes > 32 * GIB {
        broken.push(("memory", format!("{memory} is too much: at most 32Gi")));
    } else {
        let most = match millis {
            0..500 => 512 * MIB,
            500..1000 => GIB,
            1000 => 4 * GIB,
            2000 => 8 * GIB,
            4000 => 16 * GIB,
            6000 => 24 * GIB,
            _ => 32 * GIB,
        };
        let least = match millis {
            4000 => 2 * GIB,
            6000 | 8000 => 4 * GIB,
            _ => 0,
        };
        if bytes > most {
            broken.push((
                "memory",
                format!("{memory} is too much for {cpu} CPU: at most {}Mi", most / MIB),
            ));
        } else if bytes < least {
            broken.push((
                "memory",
                format!("{memory} is too little for {cpu} CPU: at least {}Gi", least / GIB),
            ));
        }
    }
    broken
}

fn is_service_account(text: &str) -> bool {
    let Some((name, domain)) = text.split_once('@') else {
        return false;
    };
    let plain = |part: &str, extra: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c))
    };
    plain(name, "-") && plain(domain, "-.") && domain.ends_with(".gserviceaccount.com") && text.len() <= 150
}

/// Which revision: service and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RevisionKey {
    pub service: ServiceKey,
    pub name: RevisionName,
}

impl fmt::Display for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service.region, self.name)
    }
}

impl fmt::Debug for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An immutable revision. Only `state` moves, and only forwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub key: RevisionKey,
    pub uid: String,
    /// Uid of the service it belongs to: a service deleted and made again does not inherit revisions.
    pub service_uid: String,
    /// Which change of the template it was made of: 1 for the first.
    pub template_generation: u64,
    pub created: Timestamp,
    /// E-mail of who deployed it.
    pub creator: String,
    pub template: RevisionTemplate,
    pub state: RevisionState,
    /// When `state` was entered.
    pub since: Timestamp,
}

/// Where a revision is on its way to serving. Stored, since it cannot be seen again: a revision was ready once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevisionState {
    /// The image's name is being turned into a digest.
    Resolving,
    /// The image is being pulled and unpacked.
    Pulling { digest: String },
    /// The first instance is being started.
    Probing { digest: String },
    /// It may serve. `digest` is `repository@sha256:...` as describe shows it.
    Ready { digest: String },
    /// It never will serve.
    Failed {
        reason: crate::Reason,
        message: String,
        digest: Option<String>,
    },
}

impl RevisionState {
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Failed { .. })
    }

    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Resolving => None,
            Self::Pulling { digest } | Self::Probing { digest } | Self::Ready { digest } => Some(digest),
            Self::Failed { digest, .. } => digest.as_deref(),
        }
    }
}

#[cfg(test)]
pub(crate) fn example() -> RevisionTemplate {
    RevisionTemplate {
        name: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        container: crate::container::example(),
        port: crate::Port::default(),
        sidecars: Vec::new(),
        ingress_position: 0,
        volumes: Vec::new(),
        concurrency: Concurrency::default_for(1000),
        timeout: RequestTimeout::default(),
        service_account: None,
        scaling: Scaling::default(),
        cpu_allocation: None,
        sandbox: None,
        startup_cpu_boost: None,
        session_affinity: None,
        kpa: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Memory, ServiceName};

    fn broken(change: impl FnOnce(&mut RevisionTemplate)) -> Vec<String> {
        let mut template = example();
        change(&mut template);
        let service = ServiceName::parse("my-api").expect("a name");
        template_violations(&template, &service, "t")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn sized(cpu: &str, memory: &str, sandbox: Option<Sandbox>) -> Vec<String> {
        broken(|t| {
            t.container.resources.cpu = Cpu::parse(cpu).expect(cpu);
            t.container.resources.memory = Memory::parse(memory).expect(memory);
            t.concurrency = Concurrency::default_for(t.container.resources.cpu.millis());
            t.sandbox = sandbox;
        })
    }

    #[test]
    fn cpu_and_memory_bind_each_other() {
        let gen2 = Some(Sandbox::Gen2);
        for (cpu, memory, sandbox, wrong) in [
            ("1", "256Mi", None, None),
            ("1", "128Mi", None, None),
            ("0.08", "512Mi", None, None),
            ("1", "512Mi", gen2, None),
            ("2", "8Gi", None, None),
            ("8", "32Gi", None, None),
            ("1", "64Mi", None, Some("at least 128Mi")),
            ("1", "256Mi", gen2, Some("at least 512Mi in the second generation")),
            ("0.5", "512Mi", gen2, Some("at least 1 in the second generation")),
            ("0.07", "128Mi", None, Some("at least 0.08")),
            ("3", "1Gi", None, Some("2, 4, 6 or 8")),
            ("100", "1Gi", None, Some("2, 4, 6 or 8")),
            ("1", "5Gi", None, Some("at most 4096Mi")),
            ("0.1", "1Gi", None, Some("at most 512Mi")),
            ("4", "1Gi", None, Some("at least 2Gi")),
            ("8", "64Gi", None, Some("at most 32Gi")),
        ] {
            let found = sized(cpu, memory, sandbox);
            match wrong {
                None => assert!(found.is_empty(), "{cpu} {memory}: {found:?}"),
                Some(text) => {
                    assert_eq!(found.len(), 1, "{cpu} {memory}: {found:?}");
                    assert!(found[0].contains(text), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn less_than_one_cpu_serves_one_request_and_is_throttled() {
        let found = broken(|t| {
            t.container.resources.cpu = Cpu::parse("0.5").expect("cpu");
            t.concurrency = Concurrency::new(80).expect("in range");
            t.cpu_allocation = Some(CpuAllocation::Instance);
        });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("concurrency must be 1"));
    }

    #[test]
    fn names_scaling_and_accounts() {
        let found = broken(|t| {
            t.name = Some(RevisionName::parse("other-1").expect("a name"));
            t.scaling = Scaling {
                min: 1002,
                max: NonZeroU32::new(1001).expect("not zero"),
            };
            t.service_account = Some("me".to_owned());
        });
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(broken(|t| t.service_account = Some("a-b@my-project.iam.gserviceaccount.com".to_owned())).is_empty());
    }

    #[test]
    fn ranges() {
        assert!(Concurrency::new(0).is_none() && Concurrency::new(1001).is_none());
        assert!(RequestTimeout::new(0).is_none() && RequestTimeout::new(3601).is_none());
        assert_eq!(RequestTimeout::default().seconds(), 300);
    }
}
