//! How many instances a revision should have, and which of them takes the next request.
//!
//! Pure machines live here: the [`pool`] of slots with its queue; the [`autoscaler`] with the [`bounds`] it obeys, and
//! Knative's ([`kpa`]); the [`governor`] that admits starts; which instances are kept in which state of readiness
//! ([`parking`], [`ladder`]) by what the [`machine`] has left. They are apart from
//! whoever runs them so that the same code serves three places: ingress runs the pool, control the autoscaler, the
//! simulator both. What enters is arrivals, departures, instances and the time; what leaves is who may go on, who is
//! told to wait or turned away, and a number of instances with its reason. Time and chance are arguments.

pub mod autoscaler;
pub mod bounds;
mod decision;
pub mod governor;
pub mod kpa;
pub mod ladder;
pub mod machine;
pub mod parking;
pub mod pool;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use model::{InstanceId, RevisionKey};

pub use crate::decision::{Because, Decision};

/// What control tells the ingress of every revision's instances. Whole, never a difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Grows with each publication; [`Demand::applied`] says which one the ingress has taken in.
    pub version: u64,
    /// Behind pointers, so that a new version shares all that did not change.
    pub revisions: HashMap<RevisionKey, Arc<RevisionEndpoints>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevisionEndpoints {
    /// Those that take requests, and those that only finish the ones they have.
    pub instances: Vec<Endpoint>,
    /// Being started now.
    pub starting: u32,
    /// How many failed starts there are so far that requests are told of. When it grows while nothing is ready or
    /// starting, those who wait get the last failure.
    pub failed_starts: u64,
    pub last_failure: Option<Arc<str>>,
    /// How long a request may wait for a slot: max(3.5 times the average start-up, 10 s).
    pub patience: Duration,
    /// Why no further instance is started now. Told to who waits in vain.
    pub full: Option<Full>,
}

/// Why there is no further instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Full {
    /// So many are the most.
    Maximum(u32),
    /// The machine cannot hold another one, for this reason.
    NoRoom(Arc<str>),
    /// They end again and again, so that the next start waits.
    Failing(Arc<str>),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maximum(most) => write!(f, "the maximum of {most} instances is reached"),
            Self::NoRoom(why) => write!(f, "the machine has no room for another instance: {why}"),
            Self::Failing(why) => write!(f, "instances of the revision fail: {why}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub instance: InstanceId,
    /// Gets no new request.
    pub draining: bool,
}

/// What the ingress tells control of every revision that has requests or instances. Whole, never a difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// The version of [`Endpoints`] that these numbers already obey: an instance that it marks as draining and that has
    /// no request in flight here will get none any more.
    pub applied: u64,
    pub revisions: HashMap<RevisionKey, RevisionDemand>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevisionDemand {
    pub in_flight: u32,
    pub queued: u32,
    pub instances: Vec<InstanceDemand>,
}

impl Demand {
    /// Requests in an instance that somebody else counts.
    pub fn add(&mut self, revision: &RevisionKey, instance: &InstanceId, in_flight: u32) {
        let of = self.revisions.entry(revision.clone()).or_default();
        of.in_flight += in_flight;
        match of.instances.iter_mut().find(|one| one.instance == *instance) {
            Some(one) => one.in_flight += in_flight,
            None => of.instances.push(InstanceDemand {
                instance: instance.clone(),
                in_flight,
                served: 0,
            }),
        }
    }
}

/// What one instance has to do, and has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceDemand {
    pub instance: InstanceId,
    pub in_flight: u32,
    /// Requests that ended there so far. When it moves between two looks the instance was not idle in between, even if
    /// it is at both.
    pub served: u64,
}
