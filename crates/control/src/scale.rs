//! How many instances each revision has: starts, drains and stops.
//!
//! [`Scaling`] is what is remembered between turns. [`Scaling::plan`] is a function of it, of what is asked, of what is
//! seen and of the time: it returns what to do and the endpoints to publish, and does nothing itself. A turn that a
//! waiting request or a changed instance caused looks only at the revisions concerned ([`Scaling::concerned`]); once a
//! second, and when anything else was asked for, it looks at all.
//!
//! Numbers come from `capacity`: how many ([`autoscaler`], [`kpa`]), which starts are admitted
//! ([`capacity::governor`], in `admission`), who is parked, reclaimed, or stopped early (in `idle`).

mod admission;
mod drain;
mod fleet;
mod idle;
mod startup;
mod usage;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use capacity::{
    Because, Demand, Endpoint, Endpoints, Full, InstanceDemand, RevisionDemand, RevisionEndpoints,
    autoscaler::{self, Bounds, Observation, Tick},
    bounds::{self, Asked},
    governor,
    kpa::{self, Kpa},
    machine::{self, Pressure},
};
use model::{
    Instance, InstanceId, InstanceState, Observed, Revision, RevisionKey, Room, Routed, ServiceKey, Timestamp,
};
use store::Snapshot;

use crate::decisions::{Decisions, Inputs, Made};
use admission::Wanted;
use fleet::Fleet;
use startup::Startups;
use usage::Usages;

/// What control remembers of instances. Lost with the process, and made again from what is seen.
#[derive(Debug, Default)]
pub(crate) struct Scaling {
    fleet: Fleet,
    revisions: HashMap<RevisionKey, Revised>,
    /// Instances that had no request at the last look.
    quiet: HashMap<InstanceId, Quiet>,
    /// How many requests had ended on each instance at the last look.
    served: HashMap<InstanceId, u64>,
    /// Instances that get no new request, the endpoints' version that first said so, and when.
    draining: BTreeMap<InstanceId, (u64, Tick)>,
    stopping: BTreeSet<InstanceId>,
    /// Idle ones that are given up before their retention is over.
    early: BTreeSet<InstanceId>,
    /// Revisions that want more than they got, and since when.
    held: BTreeMap<RevisionKey, Tick>,
    /// Revisions that something is asked of even without requests, and those that may be called; of this version.
    floors: BTreeSet<RevisionKey>,
    callable: BTreeSet<RevisionKey>,
    of_version: Option<u64>,
    usages: Usages,
    governor: governor::Memory,
    /// Starts that finished since the governor was last asked.
    finished: u32,
    pressure: Pressure,
    published: Arc<Endpoints>,
    decisions: Decisions,
    /// Revisions that were ready before are not new to us.
    began: Timestamp,
}

#[derive(Debug)]
struct Revised {
    memory: autoscaler::Memory,
    kpa: Option<Kpa>,
    startups: Startups,
    /// The last request, or when the revision was first seen.
    called: Tick,
    /// There was a request within the last minute.
    asked: bool,
    /// Why starts are held back, so that it is noted once.
    held: Option<&'static str>,
    /// How many parked ones it was said to keep.
    parking: u32,
}

#[derive(Debug, Clone, Copy)]
struct Quiet {
    since: Tick,
    served: u64,
    reclaimed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// One more instance, for this reason.
    Start(RevisionKey, Because),
    /// The same, of one that is parked.
    Release(InstanceId, Because),
    /// One more in reserve.
    Park(RevisionKey),
    /// Push out what an idle instance has not used lately.
    Reclaim(InstanceId),
    Stop(InstanceId),
    Forget(InstanceId),
}

/// What one look gives.
pub(crate) struct Seen<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// Of the revisions concerned.
    pub(crate) demand: &'a Demand,
    /// Routings that are about to be written: a revision that they reach is reached.
    pub(crate) due: &'a BTreeMap<ServiceKey, Routed>,
    pub(crate) idle_retention: Duration,
    /// Most parked sandboxes of all revisions together.
    pub(crate) parked: u32,
    pub(crate) room: &'a Room,
    pub(crate) at: Timestamp,
}

impl Seen<'_> {
    fn routed(&self, revision: &Revision) -> Option<(&model::ServiceScaling, &Routed)> {
        let service = self.snapshot.service(&revision.key.service)?;
        let routed = self.due.get(&service.key).unwrap_or(&service.routed);
        let reached =
            service.uid == revision.service_uid && revision.state.is_ready() && routed.reaches(&revision.key.name);
        reached.then_some((&service.scaling, routed))
    }

    /// What is asked of a revision; None: nothing reaches it.
    fn asked(&self, revision: &Revision) -> Option<Asked> {
        let (scaling, routed) = self.routed(revision)?;
        let own = revision.template.scaling;
        Some(bounds::asked(scaling, routed, &revision.key.name, own))
    }
}

/// Which revisions a turn looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Concern {
    All,
    Of(Vec<RevisionKey>),
}

/// What one look at a revision gives.
struct Looked {
    endpoints: RevisionEndpoints,
    wanted: Option<Wanted>,
    /// More are wanted, but after failures the next start waits.
    waits: bool,
}

impl Scaling {
    pub(crate) fn new(decisions: Decisions, began: Timestamp) -> Self {
        Self {
            decisions,
            began,
            ..Self::default()
        }
    }

    /// Takes in what the engine shows, and says which revisions are to be looked at: those of `rung`, those with
    /// changed instances, and those that wait for room; all of them when `all` says so or something else is asked for.
    pub(crate) fn concerned(
        &mut self,
        snapshot: &Snapshot,
        observed: &Arc<Observed>,
        rung: BTreeSet<RevisionKey>,
        all: bool,
    ) -> Concern {
        let difference = self.fleet.take_in(observed);
        for id in &difference.over {
            self.quiet.remove(id);
            self.served.remove(id);
            self.draining.remove(id);
            self.stopping.remove(id);
            self.early.remove(id);
            self.usages.forget(id);
        }
        self.finished += difference.finished;
        if all || self.of_version != Some(snapshot.version) {
            return Concern::All;
        }
        let mut concerned = rung;
        concerned.extend(difference.revisions);
        concerned.extend(self.held.keys().cloned());
        Concern::Of(concerned.into_iter().collect())
    }

    /// Decides for the revisions concerned.
    pub(crate) fn plan(&mut self, seen: &Seen<'_>, concern: Concern, now: Tick) -> (Vec<Act>, Arc<Endpoints>) {
        let mut acts = Vec::new();
        let mut notes = Vec::new();
        self.pressure = machine::pressure(seen.room, self.pressure);
        if concern == Concern::All {
            self.learn_what_is_asked(seen);
            self.choose_early(seen, now, &mut notes);
        }
        let all = concern == Concern::All;
        let keys = match concern {
            Concern::Of(keys) => keys,
            Concern::All => {
                let mut keys: BTreeSet<RevisionKey> = self.fleet.revisions().cloned().collect();
                let asking = seen.demand.revisions.iter().filter(|(_, d)| d.queued + d.in_flight > 0);
                keys.extend(asking.map(|(key, _)| key.clone()));
                keys.extend(self.floors.iter().cloned());
                keys.extend(self.held.keys().cloned());
                keys.into_iter().collect()
            }
        };
        let version = self.published.version + 1;
        let mut changed: Vec<(RevisionKey, Option<RevisionEndpoints>)> = Vec::with_capacity(keys.len());
        let mut wanted = Vec::new();
        for key in keys {
            let asked = seen.demand.revisions.get(&key);
            if let Some(revision) = seen.snapshot.revision(&key) {
                let looked = self.look(revision, asked, seen, version, now, &mut acts, &mut notes);
                let kept = !self.fleet.of(&key).is_empty()
                    || asked.is_some_and(|asked| asked.queued + asked.in_flight > 0)
                    || self.floors.contains(&key);
                match looked.wanted {
                    Some(more) => wanted.push((changed.len(), more)),
                    None if looked.waits => {
                        self.held.entry(key.clone()).or_insert(now);
                    }
                    None => {
                        self.held.remove(&key);
                    }
                }
                changed.push((key, kept.then_some(looked.endpoints)));
            } else {
                self.held.remove(&key);
                let endpoints = self.look_at_orphans(&key, version, now, &mut acts);
                changed.push((key, (!endpoints.instances.is_empty()).then_some(endpoints)));
            }
        }
        if wanted.is_empty() {
            self.finished = 0;
        }
        for (index, full) in self.admit(&wanted, seen, now, &mut acts, &mut notes) {
            if let (_, Some(endpoints)) = &mut changed[index] {
                endpoints.full = Some(full);
            }
        }
        if all {
            self.park(seen, wanted.is_empty(), now, &mut acts, &mut notes);
            self.reclaim(seen, now, &mut acts);
        }
        self.stop_drained(seen, &changed, all, now, &mut acts);
        self.publish(changed, all, version);
        self.decisions.note(notes, seen.at);
        (acts, self.published.clone())
    }

    /// Whether anything is under way that only the clock moves on: then look again soon.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.draining.is_empty() || !self.held.is_empty()
    }

    /// What does not change without the store: who is kept without requests, and who may be called.
    fn learn_what_is_asked(&mut self, seen: &Seen<'_>) {
        if self.of_version == Some(seen.snapshot.version) && seen.due.is_empty() {
            return;
        }
        // A routing that is due is not written yet: what was learned with it is learned again.
        self.of_version = seen.due.is_empty().then_some(seen.snapshot.version);
        self.floors.clear();
        self.callable.clear();
        for revision in seen.snapshot.revisions.values() {
            let Some(asked) = seen.asked(revision) else {
                continue;
            };
            let initial = revision.template.kpa.as_ref().and_then(|kpa| kpa.initial_scale);
            let is_new = revision.since >= self.began;
            let floor = asked.min > 0 || asked.manual.is_some_and(|manual| manual > 0);
            if floor || (is_new && initial.is_some_and(|initial| initial > 1)) {
                self.floors.insert(revision.key.clone());
            }
            self.callable.insert(revision.key.clone());
        }
        let there = |key: &RevisionKey| seen.snapshot.revisions.contains_key(key);
        self.revisions.retain(|key, _| there(key));
        self.usages.retain(there);
        self.decisions.retain(there);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call, each argument another part of what is seen or made"
    )]
    fn look(
        &mut self,
        revision: &Revision,
        demand: Option<&RevisionDemand>,
        seen: &Seen<'_>,
        version: u64,
        now: Tick,
        acts: &mut Vec<Act>,
        notes: &mut Vec<(RevisionKey, Made, bool)>,
    ) -> Looked {
        let key = &revision.key;
        let template = &revision.template;
        let own = self.fleet.of(key);
        let settled = revision.state.is_settled();
        // The first instance's end is news for the revision, which has read it once it is settled.
        let ended = own.iter().filter(|(_, i)| matches!(i.state, InstanceState::Stopped(_)));
        acts.extend(ended.filter(|_| settled).map(|(id, _)| Act::Forget(id.clone())));
        let revised = self.revisions.entry(key.clone()).or_insert_with(|| Revised::new(now));
        revised.startups.learn(own, template.port.number.get(), seen.at, now);
        let demands: HashMap<&InstanceId, &InstanceDemand> = demand
            .iter()
            .flat_map(|demand| &demand.instances)
            .map(|of| (&of.instance, of))
            .collect();
        let mut fleet = Sorted::default();
        let mut observation = Observation {
            queued: demand.map_or(0, |demand| demand.queued),
            ..Observation::default()
        };
        for (id, instance) in own {
            let of = demands.get(id);
            let in_flight = of.map_or(0, |of| of.in_flight);
            match instance.state {
                InstanceState::Parked if self.stopping.contains(id) => {}
                InstanceState::Parked => fleet.parked.push((instance.created, id)),
                InstanceState::Starting => observation.starting += 1,
                InstanceState::Ready | InstanceState::Unready => {
                    let served = of.map_or(0, |of| of.served);
                    if served > 0 {
                        let before = self.served.insert(id.clone(), served).unwrap_or(0);
                        observation.served += u32::try_from(served.saturating_sub(before)).unwrap_or(u32::MAX);
                    }
                    if in_flight > 0 {
                        self.quiet.remove(id);
                    } else {
                        let fresh = Quiet {
                            since: now,
                            served,
                            reclaimed: false,
                        };
                        let quiet = self.quiet.entry(id.clone()).or_insert(fresh);
                        if quiet.served != served {
                            *quiet = fresh;
                        }
                    }
                    if self.stopping.contains(id) || self.draining.contains_key(id) {
                        fleet.leaving += 1;
                        continue;
                    }
                    fleet.there.push((id, in_flight));
                    if instance.state == InstanceState::Unready {
                        observation.unready += 1;
                        continue;
                    }
                    observation.ready += 1;
                    observation.in_flight += in_flight;
                    observation.busy += u32::from(in_flight > 0);
                    observation.cpu_millis += self.usages.cpu_millis(id, now);
                }
                InstanceState::Stopping => fleet.leaving += 1,
                InstanceState::Stopped(_) => {}
            }
        }
        let asked = seen.asked(revision);
        let retention = if asked.is_some() {
            seen.idle_retention
        } else {
            Duration::ZERO
        };
        let quiet = &self.quiet;
        let mut idle: Vec<(Tick, &InstanceId)> = fleet
            .there
            .iter()
            .filter_map(|(id, _)| Some((quiet.get(*id)?.since, *id)))
            .collect();
        idle.sort_unstable();
        let is_over = |(since, id): &(Tick, &InstanceId)| now.since(*since) >= retention || self.early.contains(*id);
        observation.expired = count(idle.iter().filter(|of| is_over(of)).count());
        if observation.queued + observation.in_flight + observation.served > 0 {
            revised.called = now;
        }
        let own_scaling = template.scaling;
        let reachable = asked.is_some();
        let asked = asked.unwrap_or(Asked {
            min: 0,
            max: own_scaling.max.get(),
            manual: None,
        });
        let is_new = revision.since >= self.began;
        let (inputs, decision) = match (&template.kpa, asked.manual) {
            (Some(of), None) => {
                let settings = kpa::Settings::of(of, template.concurrency.get(), asked.min, asked.max);
                let kpa = revised.kpa.get_or_insert_with(|| {
                    if is_new {
                        Kpa::default()
                    } else {
                        Kpa::resumed(observation.ready, now)
                    }
                });
                let (at, inputs, decision) = kpa.look(&settings, &observation, reachable, now);
                revised.asked = inputs.stable_milli > 0;
                (Inputs::Knative { settings, inputs, at }, decision)
            }
            (_, manual) => {
                let bounds = Bounds {
                    min: asked.min,
                    max: asked.max,
                    manual,
                    concurrency: template.concurrency.get(),
                    cpu_millis: template.containers().map(|of| of.resources.cpu.millis()).sum(),
                };
                let means = revised.memory.remember(now, &observation);
                revised.asked = means.asked;
                let inputs = Inputs::CloudRun {
                    bounds,
                    means,
                    seen: observation,
                };
                let decision = inputs.decide();
                (inputs, decision)
            }
        };
        let alive = observation.alive();
        let most = asked.manual.unwrap_or(asked.max);
        // Before it is settled, the revision itself starts its first instance and no other is wanted.
        let missing = if revision.state.is_ready() {
            decision.instances.saturating_sub(alive)
        } else {
            0
        };
        let missing = missing.min(most.saturating_sub(alive + fleet.leaving));
        let tries = revised.startups.allow(missing, observation.starting, now);
        revised.startups.want(tries, now);
        let mut drained = 0;
        if settled && alive > decision.instances {
            let surplus = usize::try_from(alive - decision.instances).unwrap_or(usize::MAX);
            let over = idle.iter().filter(|of| is_over(of)).map(|(_, id)| *id);
            let leaving: Vec<&InstanceId> = if decision.because.is_exact() {
                let mut busy: Vec<_> = fleet.there.iter().filter(|(id, _)| !quiet.contains_key(*id)).collect();
                busy.sort_unstable_by_key(|(_, in_flight)| *in_flight);
                let idle = idle.iter().map(|(_, id)| *id);
                idle.chain(busy.into_iter().map(|(id, _)| *id)).take(surplus).collect()
            } else {
                over.take(surplus).collect()
            };
            drained = leaving.len();
            for id in leaving {
                self.draining.insert(id.clone(), (version, now));
            }
        }
        let full = if missing > 0 && tries == 0 && observation.starting == 0 {
            let why = revised.startups.last_failure().unwrap_or_default();
            if revised.held != Some("failing") {
                let why = why.clone();
                notes.push((key.clone(), Made::Failing { count: missing, why }, true));
                revised.held = Some("failing");
            }
            Some(Full::Failing(why))
        } else if alive + fleet.leaving >= most {
            Some(Full::Maximum(most))
        } else {
            None
        };
        let made = Made::Scale {
            inputs,
            decision,
            alive,
        };
        notes.push((key.clone(), made, drained > 0));
        fleet.parked.sort_unstable();
        let wanted = (tries > 0).then(|| Wanted {
            revision: key.clone(),
            count: tries,
            waiting: observation.queued > 0,
            because: decision.because,
            note: notes.len() - 1,
            parked: fleet.parked.iter().map(|(_, id)| (*id).clone()).collect(),
            memory_limit: template.containers().map(|of| of.resources.memory.bytes()).sum(),
        });
        if missing == 0 {
            revised.held = None;
        }
        let shown = |instance: &Instance| matches!(instance.state, InstanceState::Ready | InstanceState::Unready);
        let endpoints = RevisionEndpoints {
            instances: own
                .iter()
                .filter(|(_, instance)| shown(instance))
                .map(|(id, instance)| Endpoint {
                    instance: id.clone(),
                    draining: instance.state == InstanceState::Unready
                        || self.draining.contains_key(id)
                        || self.stopping.contains(id),
                })
                .collect(),
            starting: observation.starting,
            failed_starts: revised.startups.failures(),
            last_failure: revised.startups.last_failure(),
            patience: revised.startups.patience(),
            full,
        };
        Looked {
            endpoints,
            wanted,
            waits: missing > tries,
        }
    }

    /// A new version when anything differs. What was not looked at stays as it was, unless all was looked at.
    fn publish(&mut self, looked: Vec<(RevisionKey, Option<RevisionEndpoints>)>, all: bool, version: u64) {
        let before = &self.published.revisions;
        let differs = looked
            .iter()
            .any(|(key, now)| before.get(key).map(AsRef::as_ref) != now.as_ref());
        let shown = looked.iter().filter(|(_, now)| now.is_some()).count();
        if !(differs || all && shown != before.len()) {
            return;
        }
        let mut revisions = if all {
            HashMap::with_capacity(shown)
        } else {
            before.clone()
        };
        for (key, now) in looked {
            match (now, before.get(&key)) {
                (None, _) => {
                    revisions.remove(&key);
                }
                // The same pointer says that nothing changed.
                (Some(now), Some(before)) if **before == now => {
                    revisions.insert(key, before.clone());
                }
                (Some(now), _) => {
                    revisions.insert(key, Arc::new(now));
                }
            }
        }
        self.published = Arc::new(Endpoints { version, revisions });
    }
}

/// The instances of one revision, by what they are good for.
#[derive(Default)]
struct Sorted<'a> {
    /// Ready or unready, with the requests they have.
    there: Vec<(&'a InstanceId, u32)>,
    parked: Vec<(Timestamp, &'a InstanceId)>,
    /// Draining or stopping.
    leaving: u32,
}

impl Revised {
    fn new(now: Tick) -> Self {
        Self {
            memory: autoscaler::Memory::default(),
            kpa: None,
            startups: Startups::default(),
            called: now,
            asked: false,
            held: None,
            parking: 0,
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
