//! A service: what its owner asked for, and where its traffic was last routed.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::{Percent, Policy, Region, Revision, RevisionName, RevisionTemplate, ServiceName, Tag, Timestamp, Traffic};

/// Which service: one name per region. A Homerun has one project, so it is not part of the key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    pub region: Region,
    pub name: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.region, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub key: ServiceKey,
    pub uid: String,
    /// Counts every change of the spec (template or traffic): 1 for the first.
    pub generation: u64,
    /// Counts changes of the template only; the NNNNN of revision names.
    pub template_generation: u64,
    /// Changes with every write of any part, also those of control. A stale one in a write is a conflict.
    pub resource_version: u64,
    pub created: Timestamp,
    /// When the spec last changed.
    pub updated: Timestamp,
    pub creator: String,
    pub modifier: String,
    pub labels: BTreeMap<String, String>,
    /// Those without meaning to us, kept word for word.
    pub annotations: BTreeMap<String, String>,
    pub template: RevisionTemplate,
    pub scaling: ServiceScaling,
    /// `run.googleapis.com/custom-audiences`: whom an identity token may be for, besides the service's URLs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub custom_audiences: Vec<String>,
    pub traffic: Traffic,
    pub policy: Policy,
    /// Where requests really go. Written by control once every target is ready, so that traffic stays where it was
    /// while a new target is not.
    pub routed: Routed,
}

/// Bounds on the instances of all revisions of a service that traffic reaches, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceScaling {
    /// `run.googleapis.com/minScale`: shared out by percent of traffic.
    pub min: u32,
    /// `run.googleapis.com/maxScale`.
    pub max: Option<NonZeroU32>,
    /// `run.googleapis.com/scalingMode: manual` with `manualInstanceCount`: exactly so many, whatever is asked.
    pub manual: Option<u32>,
}

/// The routing that the ingress was last given for a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// The service's generation that this routing fulfils; 0 before the first.
    pub generation: u64,
    pub since: Timestamp,
    /// In the order of the traffic block, every entry bound to a revision.
    pub targets: Vec<RoutedTarget>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedTarget {
    pub revision: RevisionName,
    /// The entry said `latestRevision: true`.
    pub latest: bool,
    pub percent: Option<Percent>,
    pub tag: Option<Tag>,
}

impl Service {
    /// Whether a request or a tag can reach the revision: then its minimum counts and it may not be deleted.
    pub fn reaches(&self, revision: &RevisionName) -> bool {
        self.routed.reaches(revision)
    }
}

impl Routed {
    /// Whether traffic or a tag goes to the revision.
    pub fn reaches(&self, revision: &RevisionName) -> bool {
        self.targets.iter().any(|target| {
            target.revision == *revision && (target.tag.is_some() || target.percent.is_some_and(|p| p != Percent::ZERO))
        })
    }
}

/// The newest revision made, whatever became of it.
pub fn latest_created<'a>(revisions: impl Iterator<Item = &'a Revision>) -> Option<&'a Revision> {
    revisions.max_by_key(|r| r.template_generation)
}

/// The newest revision that became ready.
pub fn latest_ready<'a>(revisions: impl Iterator<Item = &'a Revision>) -> Option<&'a Revision> {
    revisions
        .filter(|r| r.state.is_ready())
        .max_by_key(|r| r.template_generation)
}
