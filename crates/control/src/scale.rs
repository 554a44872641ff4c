//! How many instances each revision has: starts, drains and stops.
//!
//! [`Scaling`] is what is remembered between turns. [`Scaling::plan`] is a function of it, of what is asked, of what is
//! seen and of the time: it returns what to do and the endpoints to publish, and does nothing itself.

mod startup;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use capacity::{
    Demand, Endpoint, Endpoints, RevisionDemand, RevisionEndpoints,
    autoscaler::{self, Because, Bounds, Observation, Tick},
};
use model::{Instance, InstanceId, InstanceState, Observed, Revision, RevisionKey, Routed, ServiceKey};
use store::Snapshot;

use startup::{Startups, least_patience};

/// An instance of a revision that is gone is stopped after this time even with requests in flight.
const ORPHAN_DEADLINE: Duration = Duration::from_hours(1);

/// What control remembers of instances. Lost with the process, and made again from what is seen.
#[derive(Debug, Default)]
pub(crate) struct Scaling {
    revisions: HashMap<RevisionKey, Revised>,
    /// Since when an instance has had no request, and how many had ended there by then.
    idle: BTreeMap<InstanceId, (Tick, u64)>,
    /// Instances that get no new request, the endpoints' version that first said so, and when.
    draining: BTreeMap<InstanceId, (u64, Tick)>,
    stopping: BTreeSet<InstanceId>,
    published: Arc<Endpoints>,
}

#[derive(Debug, Default)]
struct Revised {
    memory: autoscaler::Memory,
    startups: Startups,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// One more instance, for this reason.
    Start(RevisionKey, Because),
    Stop(InstanceId),
    Forget(InstanceId),
}

/// What one look at everything gives.
pub(crate) struct Seen<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) observed: &'a Observed,
    pub(crate) demand: &'a Demand,
    /// Routings that are about to be written: a revision that they reach is reached.
    pub(crate) due: &'a BTreeMap<ServiceKey, Routed>,
    pub(crate) idle_retention: Duration,
}

impl Seen<'_> {
    fn reaches(&self, revision: &Revision) -> bool {
        revision.state.is_ready()
            && self.snapshot.service(&revision.key.service).is_some_and(|service| {
                let routed = self.due.get(&service.key).unwrap_or(&service.routed);
                service.uid == revision.service_uid && routed.reaches(&revision.key.name)
            })
    }
}

impl Scaling {
    /// Decides for every revision that has instances, requests or a minimum.
    pub(crate) fn plan(&mut self, seen: &Seen<'_>, now: Tick) -> (Vec<Act>, Arc<Endpoints>) {
        let mut acts = Vec::new();
        let mut instances: BTreeMap<&RevisionKey, Vec<(&InstanceId, &Instance)>> = BTreeMap::new();
        for (id, instance) in &seen.observed.instances {
            instances.entry(&instance.of).or_default().push((id, instance));
        }
        self.forget_gone(seen.observed);
        let mut concerned: BTreeSet<&RevisionKey> = instances.keys().copied().collect();
        concerned.extend(
            seen.demand
                .revisions
                .iter()
                .filter(|(_, d)| d.queued + d.in_flight > 0)
                .map(|(key, _)| key),
        );
        concerned.extend(
            seen.snapshot
                .revisions
                .values()
                .filter(|revision| revision.template.scaling.min > 0 && revision.state.is_ready())
                .map(|revision| &revision.key),
        );
        self.revisions
            .retain(|key, _| seen.snapshot.revisions.contains_key(key));
        let version = self.published.version + 1;
        let mut revisions = HashMap::new();
        for key in concerned {
            let own = instances.remove(key).unwrap_or_default();
            let asked = seen.demand.revisions.get(key);
            if let Some(revision) = seen.snapshot.revision(key) {
                let endpoints = self.plan_revision(revision, &own, asked, seen, version, now, &mut acts);
                revisions.insert(key.clone(), endpoints);
            } else {
                let endpoints = self.plan_orphans(&own, version, now, &mut acts);
                if !endpoints.instances.is_empty() {
                    revisions.insert(key.clone(), endpoints);
                }
            }
        }
        self.stop_drained(seen, now, &mut acts);
        if revisions != self.published.revisions {
            self.published = Arc::new(Endpoints { version, revisions });
        }
        (acts, self.published.clone())
    }

    /// Whether anything is under way that only the clock moves on: then look again soon.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.draining.is_empty() || self.revisions.values().any(|r| r.startups.is_failing())
    }

    fn forget_gone(&mut self, observed: &Observed) {
        let alive = |id: &InstanceId| observed.instances.get(id).is_some_and(|i| i.state.is_alive());
        self.idle.retain(|id, _| alive(id));
        self.draining.retain(|id, _| alive(id));
        self.stopping.retain(|id| alive(id));
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call, each argument another part of what is seen or made"
    )]
    fn plan_revision(
        &mut self,
        revision: &Revision,
        own: &[(&InstanceId, &Instance)],
        asked: Option<&RevisionDemand>,
        seen: &Seen<'_>,
        version: u64,
        now: Tick,
        acts: &mut Vec<Act>,
    ) -> RevisionEndpoints {
        let revised = self.revisions.entry(revision.key.clone()).or_default();
        let settled = revision.state.is_settled();
        let port = revision.template.port.number.get();
        for (id, instance) in own {
            // The first instance's end is news for the revision, which has read it once it is settled.
            if settled && matches!(instance.state, InstanceState::Stopped(_)) {
                acts.push(Act::Forget((*id).clone()));
            }
        }
        revised.startups.learn(own, port, now);
        let of = |id: &InstanceId| asked?.instances.iter().find(|of| of.instance == *id);
        let in_flight_on = |id: &InstanceId| of(id).map_or(0, |of| of.in_flight);
        let is_ready = |instance: &Instance| instance.state == InstanceState::Ready;
        let mut ready: Vec<&InstanceId> = Vec::new();
        let mut starting = 0;
        let mut busy = 0;
        for (id, instance) in own {
            if instance.state == InstanceState::Starting {
                starting += 1;
            }
            if !is_ready(instance) || self.stopping.contains(*id) {
                continue;
            }
            if in_flight_on(id) > 0 {
                self.idle.remove(*id);
            } else {
                let served = of(id).map_or(0, |of| of.served);
                let idle = self.idle.entry((*id).clone()).or_insert((now, served));
                if idle.1 != served {
                    *idle = (now, served);
                }
            }
            if !self.draining.contains_key(*id) {
                ready.push(id);
                busy += u32::from(in_flight_on(id) > 0);
            }
        }
        let reachable = seen.reaches(revision);
        let retention = if reachable { seen.idle_retention } else { Duration::ZERO };
        let mut expired: Vec<(Tick, &InstanceId)> = ready
            .iter()
            .filter_map(|id| Some((self.idle.get(*id)?.0, *id)))
            .filter(|(since, _)| now.since(*since) >= retention)
            .collect();
        expired.sort();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let bounds = Bounds {
            min: if reachable { revision.template.scaling.min } else { 0 },
            max: revision.template.scaling.max.get(),
            concurrency: revision.template.concurrency.get(),
        };
        let observation = Observation {
            // What a draining instance still serves asks for no other.
            in_flight: ready.iter().map(|id| in_flight_on(id)).sum(),
            queued: asked.map_or(0, |asked| asked.queued),
            starting,
            ready: count(ready.len()),
            busy,
            expired: count(expired.len()),
        };
        let (memory, decision) = autoscaler::decide(&bounds, std::mem::take(&mut revised.memory), observation, now);
        revised.memory = memory;
        // Before it is settled, the revision itself starts its first instance and no other is wanted.
        let draining = count(
            own.iter()
                .filter(|(id, instance)| {
                    instance.state.is_alive()
                        && (self.draining.contains_key(*id)
                            || self.stopping.contains(*id)
                            || instance.state == InstanceState::Stopping)
                })
                .count(),
        );
        let alive = count(ready.len()) + starting;
        if revision.state.is_ready() && alive < decision.instances {
            let allowed = bounds.max.saturating_sub(alive + draining);
            let wanted = (decision.instances - alive).min(allowed);
            let tries = revised.startups.allow(wanted, starting, now);
            acts.extend((0..tries).map(|_| Act::Start(revision.key.clone(), decision.because)));
        }
        if settled && alive > decision.instances {
            let surplus = usize::try_from(alive - decision.instances).unwrap_or(usize::MAX);
            for (_, id) in expired.iter().take(surplus) {
                self.draining.insert((*id).clone(), (version, now));
            }
        }
        RevisionEndpoints {
            instances: own
                .iter()
                .filter(|(_, instance)| is_ready(instance))
                .map(|(id, _)| Endpoint {
                    instance: (*id).clone(),
                    draining: self.draining.contains_key(*id) || self.stopping.contains(*id),
                })
                .collect(),
            starting,
            failed_starts: revised.startups.failures(),
            last_failure: revised.startups.last_failure(),
            patience: revised.startups.patience(),
        }
    }

    /// Instances of a revision that was deleted: they finish what they have.
    fn plan_orphans(
        &mut self,
        own: &[(&InstanceId, &Instance)],
        version: u64,
        now: Tick,
        acts: &mut Vec<Act>,
    ) -> RevisionEndpoints {
        let mut endpoints = RevisionEndpoints {
            patience: least_patience(),
            ..RevisionEndpoints::default()
        };
        for (id, instance) in own {
            match &instance.state {
                InstanceState::Ready | InstanceState::Unready => {
                    self.draining.entry((*id).clone()).or_insert((version, now));
                    endpoints.instances.push(Endpoint {
                        instance: (*id).clone(),
                        draining: true,
                    });
                }
                InstanceState::Parked | InstanceState::Starting => {
                    if self.stopping.insert((*id).clone()) {
                        acts.push(Act::Stop((*id).clone()));
                    }
                }
                InstanceState::Stopping => {}
                InstanceState::Stopped(_) => acts.push(Act::Forget((*id).clone())),
            }
        }
        endpoints
    }

    /// Stops those drained instances that the ingress, knowing that they are draining, has no request on.
    fn stop_drained(&mut self, seen: &Seen<'_>, now: Tick, acts: &mut Vec<Act>) {
        let in_flight = |id: &InstanceId| {
            seen.demand
                .revisions
                .values()
                .flat_map(|asked| &asked.instances)
                .any(|of| of.instance == *id && of.in_flight > 0)
        };
        let done: Vec<InstanceId> = self
            .draining
            .iter()
            .filter(|(id, (version, since))| {
                let known = seen.demand.applied >= *version;
                (known && !in_flight(id)) || now.since(*since) >= ORPHAN_DEADLINE
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

#[cfg(test)]
mod tests {
    use capacity::InstanceDemand;
    use model::{Exit, ExitCause, Timestamp};

    use super::*;
    use crate::turn::cases::{ready, revision, routed, service, snapshot};

    /// A small world: one service with one ready revision, instances and requests as the test puts them.
    struct World {
        scaling: Scaling,
        snapshot: Snapshot,
        observed: Observed,
        demand: Demand,
        key: RevisionKey,
        now: Tick,
        next: u8,
        /// What each instance that is asked about has served.
        served: u64,
    }

    impl World {
        fn new(change: impl FnOnce(&mut Revision)) -> Self {
            let service = service("my-api", 1);
            let mut revision = ready(revision(&service, 1));
            change(&mut revision);
            let key = revision.key.clone();
            Self {
                scaling: Scaling::default(),
                snapshot: snapshot(&[routed(service, &revision)], &[revision]),
                observed: Observed::default(),
                demand: Demand::default(),
                key,
                now: Tick(1_000),
                next: 0,
                served: 0,
            }
        }

        fn look(&mut self) -> (Vec<Act>, Arc<Endpoints>) {
            let seen = Seen {
                snapshot: &self.snapshot,
                observed: &self.observed,
                demand: &self.demand,
                due: &BTreeMap::new(),
                idle_retention: Duration::from_secs(3),
            };
            self.scaling.plan(&seen, self.now)
        }

        fn requests(&mut self, queued: u32, in_flight: &[(&InstanceId, u32)]) {
            let demand = RevisionDemand {
                queued,
                in_flight: in_flight.iter().map(|(_, count)| count).sum(),
                instances: in_flight
                    .iter()
                    .map(|(id, count)| InstanceDemand {
                        instance: (*id).clone(),
                        in_flight: *count,
                        served: self.served,
                    })
                    .collect(),
            };
            self.demand.revisions.insert(self.key.clone(), demand);
        }

        fn instance(&mut self, state: InstanceState) -> InstanceId {
            self.next += 1;
            let id = InstanceId::new([self.next; 12]);
            let instance = Instance {
                of: self.key.clone(),
                state,
                since: Timestamp::from_micros(1_500_000),
                created: Timestamp::from_micros(1_000_000),
            };
            self.observed.instances.insert(id.clone(), instance);
            id
        }

        fn after(&mut self, millis: u64) {
            self.now.0 += millis;
        }
    }

    fn starts(acts: &[Act]) -> usize {
        acts.iter().filter(|act| matches!(act, Act::Start(..))).count()
    }

    #[test]
    fn eighty_one_waiting_requests_start_two_and_no_more() {
        let mut world = World::new(|_| {});
        world.requests(81, &[]);
        assert_eq!(starts(&world.look().0), 2);
        world.instance(InstanceState::Starting);
        world.instance(InstanceState::Starting);
        assert_eq!(starts(&world.look().0), 0, "two are on their way");
    }

    #[test]
    fn the_maximum_counts_those_that_still_stop() {
        let mut world = World::new(|revision| {
            revision.template.scaling.max = 2.try_into().expect("not zero");
            revision.template.concurrency = model::Concurrency::ONE;
        });
        world.instance(InstanceState::Ready);
        world.instance(InstanceState::Stopping);
        world.requests(5, &[]);
        assert_eq!(
            starts(&world.look().0),
            0,
            "one ready and one stopping are the maximum of two"
        );
    }

    #[test]
    fn an_idle_instance_is_drained_then_stopped_once_the_ingress_knows() {
        let mut world = World::new(|_| {});
        let id = world.instance(InstanceState::Ready);
        let (acts, endpoints) = world.look();
        assert!(acts.is_empty() && !endpoints.revisions[&world.key].instances[0].draining);
        world.after(2_900);
        assert!(world.look().0.is_empty(), "retention is 3 s");
        world.after(200);
        let (acts, endpoints) = world.look();
        assert!(acts.is_empty(), "the ingress does not know yet: {acts:?}");
        assert!(endpoints.revisions[&world.key].instances[0].draining);
        world.demand.applied = endpoints.version;
        world.requests(0, &[(&id, 1)]);
        assert!(world.look().0.is_empty(), "a request slipped in before: it finishes");
        world.requests(0, &[]);
        assert_eq!(world.look().0, [Act::Stop(id)]);
        assert!(world.look().0.is_empty(), "stopped once");
    }

    #[test]
    fn requests_that_no_look_saw_keep_an_instance() {
        let mut world = World::new(|_| {});
        let id = world.instance(InstanceState::Ready);
        world.requests(0, &[(&id, 0)]);
        world.look();
        for _ in 0..10 {
            world.after(2_000);
            world.served += 1;
            world.requests(0, &[(&id, 0)]);
            assert!(
                !world.look().1.revisions[&world.key].instances[0].draining,
                "it served within the retention"
            );
        }
        world.after(3_100);
        assert!(
            world.look().1.revisions[&world.key].instances[0].draining,
            "and then no more"
        );
    }

    #[test]
    fn a_busy_instance_is_never_drained_and_a_minimum_stays() {
        let mut world = World::new(|revision| revision.template.scaling.min = 1);
        assert_eq!(starts(&world.look().0), 1, "the minimum is started without a request");
        let id = world.instance(InstanceState::Ready);
        world.requests(0, &[(&id, 1)]);
        world.look();
        world.after(3_600_000);
        assert!(!world.look().1.revisions[&world.key].instances[0].draining);
        world.requests(0, &[]);
        world.look();
        world.after(3_600_000);
        assert!(
            !world.look().1.revisions[&world.key].instances[0].draining,
            "the minimum stays"
        );
    }

    #[test]
    fn a_retired_revision_drains_at_once_and_its_minimum_does_not_count() {
        let mut world = World::new(|revision| revision.template.scaling.min = 1);
        world.instance(InstanceState::Ready);
        let service = world.snapshot.services.values().next().expect("one").clone();
        let away = model::Service {
            routed: Routed::default(),
            ..(*service).clone()
        };
        world.snapshot.services.insert(away.key.clone(), Arc::new(away));
        assert!(world.look().1.revisions[&world.key].instances[0].draining);
    }

    #[test]
    fn instances_of_a_deleted_service_go() {
        let mut world = World::new(|_| {});
        let ready = world.instance(InstanceState::Ready);
        let starting = world.instance(InstanceState::Starting);
        world.snapshot = Snapshot::default();
        let (acts, endpoints) = world.look();
        assert_eq!(acts, [Act::Stop(starting)]);
        world.demand.applied = endpoints.version;
        assert_eq!(world.look().0, [Act::Stop(ready)]);
    }

    #[test]
    fn failed_starts_back_off_and_are_counted() {
        let mut world = World::new(|_| {});
        world.requests(1, &[]);
        assert_eq!(starts(&world.look().0), 1);
        let exit = Exit {
            cause: ExitCause::Code(1),
            was_ready: false,
            last_lines: vec![],
        };
        let id = world.instance(InstanceState::Stopped(exit));
        let (acts, endpoints) = world.look();
        assert_eq!(
            acts,
            [Act::Forget(id.clone())],
            "forgotten, and no new start before the backoff"
        );
        assert_eq!(endpoints.revisions[&world.key].failed_starts, 1);
        world.observed.instances.remove(&id);
        world.after(1_100);
        assert_eq!(starts(&world.look().0), 1, "tried again");
    }
}
