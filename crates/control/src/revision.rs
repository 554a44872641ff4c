//! From a new revision to one that is ready, or failed with the reason.
//!
//! Each state has one thing to wait for: `Resolving` the digest, `Pulling` the unpacked layers, `Probing` the first
//! instance. [`plan`] says which of them must be begun; what has been begun is passed in, so that nothing is begun twice.

use std::collections::BTreeSet;

use model::{Exit, Instance, InstanceState, Observed, Reason, Revision, RevisionKey, RevisionState};
use store::Snapshot;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask the image's registry for the digest.
    Resolve(RevisionKey),
    /// Pull and unpack.
    Pull { revision: RevisionKey, digest: String },
    /// Start the first instance.
    Start { revision: RevisionKey, digest: String },
    /// The first instance is ready.
    Ready(RevisionKey),
    /// The first instance ended before it was ready.
    Fail {
        revision: RevisionKey,
        reason: Reason,
        message: String,
    },
}

/// What is due for every revision that is not settled. `begun` are those whose resolve or pull is under way.
pub(crate) fn plan(snapshot: &Snapshot, observed: &Observed, begun: &BTreeSet<RevisionKey>) -> Vec<Step> {
    snapshot
        .revisions
        .values()
        .filter(|revision| !revision.state.is_settled() && !begun.contains(&revision.key))
        .filter_map(|revision| next(revision, observed))
        .collect()
}

fn next(revision: &Revision, observed: &Observed) -> Option<Step> {
    let key = revision.key.clone();
    match &revision.state {
        RevisionState::Resolving => Some(Step::Resolve(key)),
        RevisionState::Pulling { digest } => Some(Step::Pull {
            revision: key,
            digest: digest.clone(),
        }),
        RevisionState::Probing { digest } => {
            let own = || {
                observed
                    .instances
                    .values()
                    .filter(|i| i.of == key && i.created >= revision.created)
            };
            if own().any(|instance| instance.state == InstanceState::Ready) {
                return Some(Step::Ready(key));
            }
            if own().any(|instance| instance.state.is_alive()) {
                return None;
            }
            match own().max_by_key(|instance| instance.since).and_then(exit) {
                None => Some(Step::Start {
                    revision: key,
                    digest: digest.clone(),
                }),
                Some(exit) if exit.was_ready => Some(Step::Ready(key)),
                Some(exit) => {
                    let port = revision.template.port.number.get();
                    let (reason, message) = exit.failure(port);
                    Some(Step::Fail {
                        revision: key,
                        reason,
                        message: format!(
                            "Revision '{}' is not ready and cannot serve traffic. {message}",
                            revision.key.name
                        ),
                    })
                }
            }
        }
        RevisionState::Ready { .. } | RevisionState::Failed { .. } => None,
    }
}

fn exit(instance: &Instance) -> Option<&Exit> {
    match &instance.state {
        InstanceState::Stopped(exit) => Some(exit),
        InstanceState::Parked
        | InstanceState::Starting
        | InstanceState::Ready
        | InstanceState::Unready
        | InstanceState::Stopping => None,
    }
}

#[cfg(test)]
mod tests {
    use model::{ExitCause, InstanceId, Timestamp};

    use super::*;
    use crate::turn::cases::{revision, service, snapshot};

    fn seen(revision: &Revision, state: InstanceState) -> Observed {
        let instance = Instance {
            of: revision.key.clone(),
            state,
            since: Timestamp::from_micros(100),
            created: Timestamp::from_micros(99),
        };
        Observed {
            instances: [(InstanceId::new([1; 12]), instance)].into(),
        }
    }

    fn probing() -> Revision {
        let mut revision = revision(&service("my-api", 1), 1);
        revision.state = RevisionState::Probing { digest: "d".to_owned() };
        revision
    }

    fn step(revision: &Revision, observed: &Observed) -> Option<Step> {
        let service = service("my-api", 1);
        let mut steps = plan(
            &snapshot(&[service], std::slice::from_ref(revision)),
            observed,
            &BTreeSet::new(),
        );
        assert!(steps.len() <= 1);
        steps.pop()
    }

    #[test]
    fn each_state_waits_for_one_thing() {
        let none = Observed::default();
        let mut revision = revision(&service("my-api", 1), 1);
        assert!(matches!(step(&revision, &none), Some(Step::Resolve(_))));
        revision.state = RevisionState::Pulling { digest: "d".to_owned() };
        assert!(matches!(step(&revision, &none), Some(Step::Pull { .. })));
        assert!(matches!(step(&probing(), &none), Some(Step::Start { .. })));
        assert_eq!(step(&probing(), &seen(&probing(), InstanceState::Starting)), None);
        assert!(matches!(
            step(&probing(), &seen(&probing(), InstanceState::Ready)),
            Some(Step::Ready(_))
        ));
    }

    #[test]
    fn what_has_begun_is_not_begun_again() {
        let revision = revision(&service("my-api", 1), 1);
        let begun = [revision.key.clone()].into();
        let state = snapshot(&[service("my-api", 1)], &[revision]);
        assert!(plan(&state, &Observed::default(), &begun).is_empty());
    }

    #[test]
    fn an_exit_fails_the_revision_with_its_code_and_lines() {
        let exit = Exit {
            cause: ExitCause::Code(7),
            container: None,
            was_ready: false,
            last_lines: vec!["no such module".to_owned()],
        };
        let Some(Step::Fail { reason, message, .. }) =
            step(&probing(), &seen(&probing(), InstanceState::Stopped(exit)))
        else {
            panic!("must fail");
        };
        assert_eq!(reason, Reason::HealthCheckContainerError);
        assert!(
            message.contains("exit code 7") && message.contains("no such module"),
            "{message}"
        );
    }
}
