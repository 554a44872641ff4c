//! Conditions: whether a service or revision is ready, composed by rule from what was asked and what became of it.
//!
//! They are never stored. `Active` is left out of `Ready`: a revision scaled to zero is healthy.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Revision, RevisionState, Service, Timestamp, assign, latest_created};

/// One condition as `status.conditions` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `Ready`, `ConfigurationsReady`, ...
    pub kind: &'static str,
    pub state: ConditionState,
    pub since: Timestamp,
    /// `Info` conditions do not count for `Ready`.
    pub info: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConditionState {
    True,
    False { reason: Reason, message: String },
    Unknown { reason: Reason, message: String },
}

/// A machine-readable cause, as Cloud Run names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The image is not there.
    ContainerMissing,
    /// The image cannot be pulled or run: no permission, another CPU, broken content.
    ContainerImageUnusable,
    /// A secret that the template uses cannot be read.
    SecretsAccessCheckFailed,
    /// The first instance did not come up.
    HealthCheckContainerError,
    /// On its way.
    Deploying,
    /// Neither traffic nor tag reaches the revision.
    Retired,
    /// The machine or Homerun itself could not do it.
    Internal,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContainerMissing => "ContainerMissing",
            Self::ContainerImageUnusable => "ContainerImageUnusable",
            Self::SecretsAccessCheckFailed => "SecretsAccessCheckFailed",
            Self::HealthCheckContainerError => "HealthCheckContainerError",
            Self::Deploying => "Deploying",
            Self::Retired => "Retired",
            Self::Internal => "Internal",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn deploying(message: impl Into<String>) -> ConditionState {
    ConditionState::Unknown {
        reason: Reason::Deploying,
        message: message.into(),
    }
}

/// `Ready`, `ConfigurationsReady` and `RoutesReady` of a service, in the order that Cloud Run gives them.
/// `revisions` are those of this service (same uid).
pub fn service_conditions<'a>(
    service: &Service,
    revisions: impl Iterator<Item = &'a Revision> + Clone,
) -> [Condition; 3] {
    let latest = latest_created(revisions.clone())
        .filter(|revision| revision.template_generation == service.template_generation);
    let (configuration, configuration_since) = match latest {
        None => (deploying("Creating Revision."), service.updated),
        Some(revision) => (revision_ready(revision), revision.since.max(service.created)),
    };
    let routed = &service.routed;
    let is_routed = routed.generation == service.generation
        && assign(&service.traffic, revisions.clone()).as_ref() == Some(&routed.targets);
    let waits = service.traffic.follows_latest() && !latest.is_some_and(|r| r.state.is_settled());
    let (route, route_since) = if is_routed && !waits {
        (ConditionState::True, routed.since)
    } else if !waits
        && latest.is_some_and(|r| r.state.is_settled())
        && assign(&service.traffic, revisions).is_none()
        && let ConditionState::False { .. } = &configuration
    {
        (configuration.clone(), configuration_since)
    } else {
        (deploying("Routing traffic."), service.updated)
    };
    let (ready, ready_since) = match (&configuration, &route) {
        (ConditionState::False { .. }, _) => (configuration.clone(), configuration_since),
        (_, ConditionState::False { .. }) => (route.clone(), route_since),
        (ConditionState::Unknown { .. }, _) => (configuration.clone(), configuration_since),
        (_, ConditionState::Unknown { .. }) => (route.clone(), route_since),
        (ConditionState::True, ConditionState::True) => (ConditionState::True, configuration_since.max(route_since)),
    };
    let condition = |kind, state, since| Condition {
        kind,
        state,
        since,
        info: false,
    };
    [
        condition("Ready", ready, ready_since),
        condition("ConfigurationsReady", configuration, configuration_since),
        condition("RoutesReady", route, route_since),
    ]
}

/// `Ready` of a revision (also of the configuration whose latest it is).
fn revision_ready(revision: &Revision) -> ConditionState {
    match &revision.state {
        RevisionState::Ready { .. } => ConditionState::True,
        RevisionState::Resolving => deploying("Resolving the image."),
        RevisionState::Pulling { .. } => deploying("Importing the image."),
        RevisionState::Probing { .. } => deploying("Deploying Revision."),
        RevisionState::Failed { reason, message, .. } => ConditionState::False {
            reason: *reason,
            message: message.clone(),
        },
    }
}

/// `Ready`, `ContainerHealthy`, `ContainerReady`, `ResourcesAvailable` and `Active` of a revision. `reachable`: traffic
/// or a tag of its service names it.
pub fn revision_conditions(revision: &Revision, reachable: bool) -> [Condition; 5] {
    let ready = revision_ready(revision);
    // The image is there once the revision got past pulling; a failure before that is the image's.
    let image_failed = matches!(
        revision.state,
        RevisionState::Failed {
            reason: Reason::ContainerMissing | Reason::ContainerImageUnusable,
            ..
        }
    );
    let container_ready = match &revision.state {
        RevisionState::Resolving | RevisionState::Pulling { .. } => ready.clone(),
        RevisionState::Failed { .. } if image_failed => ready.clone(),
        RevisionState::Probing { .. } | RevisionState::Ready { .. } | RevisionState::Failed { .. } => {
            ConditionState::True
        }
    };
    let healthy = if image_failed {
        deploying("The image is not there.")
    } else {
        ready.clone()
    };
    let resources = match &revision.state {
        RevisionState::Failed { reason, .. } if *reason != Reason::Internal && !image_failed => ConditionState::True,
        RevisionState::Failed { .. } if image_failed => deploying("The image is not there."),
        RevisionState::Failed { .. }
        | RevisionState::Resolving
        | RevisionState::Pulling { .. }
        | RevisionState::Probing { .. } => ready.clone(),
        RevisionState::Ready { .. } => ConditionState::True,
    };
    let active = if !revision.state.is_settled() {
        deploying("")
    } else if reachable && revision.state.is_ready() {
        ConditionState::True
    } else {
        ConditionState::False {
            reason: Reason::Retired,
            message: "Revision retired.".to_owned(),
        }
    };
    let condition = |kind, state| Condition {
        kind,
        state,
        since: revision.since,
        info: false,
    };
    [
        condition("Ready", ready),
        condition("ContainerHealthy", healthy),
        condition("ContainerReady", container_ready),
        condition("ResourcesAvailable", resources),
        Condition {
            info: true,
            ..condition("Active", active)
        },
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        Policy, Region, RevisionKey, RevisionName, Routed, ServiceKey, ServiceName, Traffic, revision::example,
    };

    fn key() -> ServiceKey {
        ServiceKey {
            region: Region::parse("us-central1").expect("a region"),
            name: ServiceName::parse("s").expect("a name"),
        }
    }

    fn service(template_generation: u64, generation: u64) -> Service {
        Service {
            key: key(),
            uid: "u".to_owned(),
            generation,
            template_generation,
            resource_version: 1,
            created: Timestamp::from_micros(1),
            updated: Timestamp::from_micros(1),
            creator: String::new(),
            modifier: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            template: example(),
            scaling: crate::ServiceScaling::default(),
            custom_audiences: Vec::new(),
            traffic: Traffic::latest(),
            policy: Policy::default(),
            routed: Routed::default(),
        }
    }

    fn revision(template_generation: u64, state: RevisionState) -> Revision {
        Revision {
            key: RevisionKey {
                service: key(),
                name: RevisionName::parse(&format!("s-{template_generation:05}-abc")).expect("a name"),
            },
            uid: String::new(),
            service_uid: "u".to_owned(),
            template_generation,
            created: Timestamp::from_micros(2),
            creator: String::new(),
            template: example(),
            sidecar_digests: Vec::new(),
            state,
            since: Timestamp::from_micros(3),
        }
    }

    fn ready() -> RevisionState {
        RevisionState::Ready { digest: "d".to_owned() }
    }

    fn failed() -> RevisionState {
        RevisionState::Failed {
            reason: Reason::HealthCheckContainerError,
            message: "boom".to_owned(),
            digest: None,
        }
    }

    fn route(service: &mut Service, revisions: &[Revision]) {
        if let Some(targets) = assign(&service.traffic, revisions.iter()) {
            service.routed = Routed {
                generation: service.generation,
                since: Timestamp::from_micros(4),
                targets,
            };
        }
    }

    fn states(service: &Service, revisions: &[Revision]) -> String {
        service_conditions(service, revisions.iter())
            .iter()
            .map(|c| match c.state {
                ConditionState::True => 'T',
                ConditionState::False { .. } => 'F',
                ConditionState::Unknown { .. } => 'U',
            })
            .collect()
    }

    #[test]
    fn first_deploy() {
        let mut s = service(1, 1);
        assert_eq!(states(&s, &[]), "UUU");
        let pending = [revision(1, RevisionState::Resolving)];
        assert_eq!(states(&s, &pending), "UUU");
        let up = [revision(1, ready())];
        assert_eq!(states(&s, &up), "UTU", "ready, but not routed yet");
        route(&mut s, &up);
        assert_eq!(states(&s, &up), "TTT");
    }

    #[test]
    fn first_deploy_failed() {
        let s = service(1, 1);
        assert_eq!(states(&s, &[revision(1, failed())]), "FFF");
    }

    #[test]
    fn second_deploy() {
        let mut s = service(2, 2);
        let before = [revision(1, ready()), revision(2, RevisionState::Resolving)];
        route(&mut s, &before);
        assert_eq!(
            states(&s, &before),
            "UUU",
            "the old revision serves, but this deploy is not done"
        );
        let after = [revision(1, ready()), revision(2, ready())];
        assert_eq!(states(&s, &after), "UTU", "routed to the old one still");
        route(&mut s, &after);
        assert_eq!(states(&s, &after), "TTT");
    }

    #[test]
    fn second_deploy_failed_keeps_the_route() {
        let mut s = service(2, 2);
        let revisions = [revision(1, ready()), revision(2, failed())];
        route(&mut s, &revisions);
        assert_eq!(s.routed.targets[0].revision.as_str(), "s-00001-abc");
        assert_eq!(states(&s, &revisions), "FFT");
    }

    #[test]
    fn a_revision_that_is_retired_is_still_ready() {
        let conditions = revision_conditions(&revision(1, ready()), false);
        assert_eq!(conditions[0].state, ConditionState::True);
        assert!(matches!(
            conditions[4].state,
            ConditionState::False {
                reason: Reason::Retired,
                ..
            }
        ));
        assert!(conditions[4].info);
    }
}
