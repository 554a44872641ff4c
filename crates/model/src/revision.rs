//! Revisions: the template a caller writes, its rules, and the immutable revision made of it.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::{
    Check, Container, Cpu, Place, Port, Probe, Protocol, RevisionName, ServiceKey, ServiceName, Timestamp, Violation,
    Volume,
    container::container_violations,
    dependency::dependency_violations,
    resource::resource_violations,
    volume::{mount_violations, volume_violations},
};

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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// E-mail of the account that instances run as.
    pub fn account(&self, site: &crate::Site) -> String {
        self.service_account.clone().unwrap_or_else(|| site.default_account())
    }

    pub fn cpu_allocation(&self) -> CpuAllocation {
        self.cpu_allocation.unwrap_or_default()
    }

    /// What its instances run in: what was named, else `default`, unless only the second generation has what it asks
    /// for.
    pub fn sandbox(&self, default: Sandbox) -> Sandbox {
        match self.sandbox {
            Some(named) => named,
            None if self.sidecars.is_empty() && !self.has_secret_volumes() => default,
            None => Sandbox::Gen2,
        }
    }

    pub(crate) fn has_secret_volumes(&self) -> bool {
        let secret = |volume: &crate::Volume| matches!(volume.source, crate::VolumeSource::Secret { .. });
        self.volumes.iter().any(secret)
    }

    pub fn startup_cpu_boost(&self) -> bool {
        self.startup_cpu_boost.unwrap_or(false)
    }

    /// Every container in the document's order.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        let (before, after) = self.sidecars.split_at(self.ingress_position());
        before.iter().chain([&self.container]).chain(after)
    }

    /// Where the ingress container stands among [`Self::containers`].
    pub fn ingress_position(&self) -> usize {
        self.ingress_position.min(self.sidecars.len())
    }

    /// The names of [`Self::containers`]: one that was given none is called after the service and its place.
    pub fn container_names(&self, service: &ServiceName) -> Vec<String> {
        self.containers()
            .enumerate()
            .map(|(index, container)| match container.name.as_str() {
                "" => implicit_name(service, index),
                name => name.to_owned(),
            })
            .collect()
    }

    /// Of all containers together, thousandths of a CPU.
    pub fn cpu_millis(&self) -> u32 {
        let millis = self.containers().map(|container| container.resources.cpu.millis());
        millis.fold(0, u32::saturating_add)
    }

    /// Of all containers together.
    pub fn memory_bytes(&self) -> u64 {
        let bytes = self.containers().map(|container| container.resources.memory.bytes());
        bytes.fold(0, u64::saturating_add)
    }
}

/// Most containers of one instance (gcloud, `--container`).
const MOST_CONTAINERS: usize = 10;

/// The name of a container that was given none, by its place in the document from 0.
pub fn implicit_name(service: &ServiceName, index: usize) -> String {
    format!("{service}-{}", index + 1)
}

/// A container that speaks HTTP/2 alone cannot answer a probe, which comes over HTTP/1.1 (Cloud Run, "Use HTTP/2").
fn h2c_violations(template: &RevisionTemplate, path: &str) -> Vec<Violation> {
    let container = &template.container;
    let probes = [
        (&container.startup_probe, "startupProbe"),
        (&container.liveness_probe, "livenessProbe"),
        (&container.readiness_probe, "readinessProbe"),
    ];
    let to_port = |probe: &Probe| matches!(&probe.check, Check::Http { port, .. } if *port == template.port.number);
    probes
        .into_iter()
        .filter(|(probe, _)| template.port.protocol == Protocol::H2c && probe.as_ref().is_some_and(to_port))
        .map(|(_, field)| {
            Violation::new(
                format!(
                    "{path}.spec.containers[{}].{field}.httpGet",
                    template.ingress_position()
                ),
                "HTTP probes speak HTTP/1.1 and the port speaks HTTP/2 (h2c): use tcpSocket, grpc, or another port",
            )
        })
        .collect()
}

/// Every rule that a template breaks, with `path` (such as `spec.template`) in front of the fields.
///
/// Limits that depend on the execution environment apply only when the caller named one; unset takes the wider of both.
pub fn template_violations(template: &RevisionTemplate, service: &ServiceName, path: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    if template.sidecars.len() >= MOST_CONTAINERS {
        found.push(Violation::new(
            format!("{path}.spec.containers"),
            format!(
                "{} containers are too many: at most {MOST_CONTAINERS}",
                template.sidecars.len() + 1
            ),
        ));
    }
    for (index, container) in template.containers().enumerate() {
        let path = format!("{path}.spec.containers[{index}]");
        let place = if index == template.ingress_position() {
            Place::Ingress
        } else {
            Place::Sidecar
        };
        found.extend(container_violations(container, place, &path));
        found.extend(mount_violations(
            &container.mounts,
            &template.volumes,
            &format!("{path}.volumeMounts"),
        ));
    }
    found.extend(h2c_violations(template, path));
    found.extend(volume_violations(&template.volumes, &format!("{path}.spec.volumes")));
    found.extend(dependency_violations(template, service, path));
    found.extend(resource_violations(template, path));
    let mut say = |field: &str, description: String| {
        found.push(Violation::new(format!("{path}.{field}"), description));
    };
    if template.sandbox == Some(Sandbox::Gen1) && !template.sidecars.is_empty() {
        say(
            "spec.containers",
            format!(
                "{} containers in the first generation execution environment: at most 1, several run in gen2",
                1 + template.sidecars.len()
            ),
        );
    }
    if template.sandbox == Some(Sandbox::Gen1) && template.has_secret_volumes() {
        say(
            "spec.volumes",
            "files of secrets are not served in the first generation execution environment: use gen2, or variables"
                .to_owned(),
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
    let cpu = template.cpu_millis();
    if cpu < 1000 {
        if template.concurrency != Concurrency::ONE {
            say(
                "spec.containerConcurrency",
                format!(
                    "{} requires at least 1 CPU: with {} the concurrency must be 1",
                    template.concurrency.get(),
                    Cpu::from_millis(cpu)
                ),
            );
        }
        if template.cpu_allocation() == CpuAllocation::Instance {
            say(
                "metadata.annotations[run.googleapis.com/cpu-throttling]",
                format!(
                    "CPU can be always allocated only with at least 1 CPU, not {}",
                    Cpu::from_millis(cpu)
                ),
            );
        }
    }
    found
}

/// Whether the text has the form of a service account's e-mail.
pub fn is_service_account(text: &str) -> bool {
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
    /// `repository@sha256:...` of each sidecar's image, in the template's order; empty until they are resolved. The
    /// ingress container's is part of `state`.
    pub sidecar_digests: Vec<String>,
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
    use crate::{Cpu, ServiceName};

    fn broken(change: impl FnOnce(&mut RevisionTemplate)) -> Vec<String> {
        let mut template = example();
        change(&mut template);
        let service = ServiceName::parse("my-api").expect("a name");
        template_violations(&template, &service, "t")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_first_generation_has_one_container() {
        let mut template = example();
        assert_eq!(template.sandbox(Sandbox::Gen1), Sandbox::Gen1);
        assert_eq!(template.sandbox(Sandbox::Gen2), Sandbox::Gen2);
        template.sandbox = Some(Sandbox::Gen1);
        assert_eq!(template.sandbox(Sandbox::Gen2), Sandbox::Gen1);
        template.sandbox = None;
        template.sidecars = vec![crate::container::example()];
        assert_eq!(template.sandbox(Sandbox::Gen1), Sandbox::Gen2);

        let found = broken(|t| {
            t.sandbox = Some(Sandbox::Gen1);
            t.sidecars = vec![crate::container::example()];
        });
        assert!(
            found
                .iter()
                .any(|text| text.contains("spec.containers") && text.contains("at most 1")),
            "{found:?}"
        );
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
