//! Instances that leave: drained first, then stopped.

use std::{collections::BTreeSet, time::Duration};

use capacity::{Endpoint, RevisionEndpoints, autoscaler::Tick};
use model::{InstanceId, InstanceState, RevisionKey};

use super::{Act, Scaling, Seen, startup::least_patience};

/// An instance of a revision that is gone is stopped after this time even with requests in flight.
const ORPHAN_DEADLINE: Duration = Duration::from_hours(1);

impl Scaling {
    /// Instances of a revision that was deleted: they finish what they have.
    pub(super) fn look_at_orphans(
        &mut self,
        key: &RevisionKey,
        version: u64,
        now: Tick,
        acts: &mut Vec<Act>,
    ) -> RevisionEndpoints {
        let mut endpoints = RevisionEndpoints {
            patience: least_patience(),
            ..RevisionEndpoints::default()
        };
        for (id, instance) in self.fleet.of(key) {
            match &instance.state {
                InstanceState::Ready | InstanceState::Unready => {
                    self.draining.entry(id.clone()).or_insert((version, now));
                    endpoints.instances.push(Endpoint {
                        instance: id.clone(),
                        draining: true,
                    });
                }
                InstanceState::Parked | InstanceState::Starting => {
                    if self.stopping.insert(id.clone()) {
                        acts.push(Act::Stop(id.clone()));
                    }
                }
                InstanceState::Stopping => {}
                InstanceState::Stopped(_) => acts.push(Act::Forget(id.clone())),
            }
        }
        endpoints
    }

    /// Stops those drained instances that the ingress, knowing that they are draining, has no request on.
    pub(super) fn stop_drained(
        &mut self,
        seen: &Seen<'_>,
        looked: &[(RevisionKey, Option<RevisionEndpoints>)],
        all: bool,
        now: Tick,
        acts: &mut Vec<Act>,
    ) {
        if self.draining.is_empty() {
            return;
        }
        let busy: BTreeSet<&InstanceId> = seen
            .demand
            .revisions
            .values()
            .flat_map(|asked| &asked.instances)
            .filter(|of| of.in_flight > 0)
            .map(|of| &of.instance)
            .collect();
        // The demand of others is not known in this turn.
        let is_known = |id: &InstanceId| {
            all || self
                .fleet
                .instance(id)
                .is_some_and(|instance| looked.binary_search_by(|(key, _)| key.cmp(&instance.of)).is_ok())
        };
        let done: Vec<InstanceId> = self
            .draining
            .iter()
            .filter(|(id, (version, since))| {
                let told = seen.demand.applied >= *version;
                is_known(id) && ((told && !busy.contains(id)) || now.since(*since) >= ORPHAN_DEADLINE)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in done {
            self.draining.remove(&id);
            if self.stopping.insert(id.clone()) {
                acts.push(Act::Stop(id));
            }
        }
    }
}
