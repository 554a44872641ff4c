//! One load, one policy, the real pool and the real autoscaler, and a clock that is a number.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use capacity::{
    Endpoint, RevisionEndpoints,
    autoscaler::{Bounds, Memory, Observation, Tick, decide},
    kpa::{Kpa, Settings},
    pool::{Arrival, Left, Pool, Slot, Ticket},
};
use model::{Concurrency, InstanceId};

use crate::{Load, chance::Chance};

/// How a revision scales, and what its instances are like.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub name: &'static str,
    pub concurrency: Concurrency,
    pub min: u32,
    pub max: u32,
    pub idle_retention: Duration,
    /// Mean time from the decision to start until the instance takes requests; half to one and a half of it by chance.
    pub cold_start: Duration,
    /// Mean time to serve a request, spread likewise.
    pub service: Duration,
    /// Knative's autoscaler with these settings; None: Cloud Run's.
    pub kpa: Option<Settings>,
}

/// What came of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub requests: u64,
    /// From the decision to start an instance to its end, added up over all.
    pub instance_milliseconds: u64,
    /// Most instances at one time, starting ones included.
    pub most: u32,
    /// Instances started.
    pub starts: u64,
    /// Requests that waited for a slot at all.
    pub waited: u64,
    /// Requests that got none in time, or found the queue full.
    pub refused: u64,
    /// How long each request waited, in milliseconds, in ascending order.
    waits: Vec<u32>,
}

impl Outcome {
    /// The wait that `percent` of a hundred requests did not exceed; zero when there was none.
    pub fn wait(&self, percent: usize) -> Duration {
        let rank = (self.waits.len() * percent).div_ceil(100).max(1);
        Duration::from_millis(self.waits.get(rank - 1).copied().unwrap_or(0).into())
    }
}

/// How long a request may wait for a slot, while the average start-up is under three seconds (Cloud Run, "About
/// instance autoscaling").
const PATIENCE: u64 = 10_000;

/// Control looks once a second, and at once when a request has to wait or an instance has become ready.
const LOOK: u64 = 1000;

#[derive(Debug)]
struct Running {
    since: u64,
    /// None: still starting.
    idle_since: Option<u64>,
    ready: bool,
}

struct Replay {
    policy: Policy,
    chance: Chance,
    pool: Pool,
    memory: Memory,
    kpa: Kpa,
    served: u32,
    instances: BTreeMap<InstanceId, Running>,
    /// When those that start are ready.
    ready_at: BinaryHeap<Reverse<(u64, InstanceId)>>,
    /// When those in flight are done; the ticket finds the slot.
    done_at: BinaryHeap<Reverse<(u64, Ticket)>>,
    slots: BTreeMap<Ticket, Slot>,
    arrived: BTreeMap<Ticket, u64>,
    outcome: Outcome,
}

/// Plays `load` under `policy`, with chance from `seed`.
pub fn replay(load: Load, policy: Policy, seed: u64) -> Outcome {
    let mut replay = Replay {
        policy,
        chance: Chance::new(seed),
        pool: Pool::new(policy.concurrency, &RevisionEndpoints::default()),
        memory: Memory::default(),
        kpa: Kpa::default(),
        served: 0,
        instances: BTreeMap::new(),
        ready_at: BinaryHeap::new(),
        done_at: BinaryHeap::new(),
        slots: BTreeMap::new(),
        arrived: BTreeMap::new(),
        outcome: Outcome::default(),
    };
    let end = millis(load.length());
    let mut tickets = 0;
    for now in 0..end {
        let mut look = now % LOOK == 0;
        look |= replay.become_ready(now);
        replay.finish(now);
        for _ in 0..load.arrivals(now, &mut replay.chance) {
            tickets += 1;
            look |= replay.arrive(Ticket(tickets), now);
        }
        if look {
            replay.look(now);
        }
    }
    replay.close(end)
}

impl Replay {
    /// True: somebody waits.
    fn arrive(&mut self, ticket: Ticket, now: u64) -> bool {
        self.outcome.requests += 1;
        match self.pool.arrive(ticket, Tick(now + PATIENCE), None) {
            Arrival::Admitted(admitted) => {
                self.outcome.waits.push(0);
                self.serve(ticket, admitted.slot, now);
                false
            }
            Arrival::Queued => {
                self.arrived.insert(ticket, now);
                true
            }
            Arrival::Refused => {
                self.outcome.refused += 1;
                true
            }
        }
    }

    fn serve(&mut self, ticket: Ticket, slot: Slot, now: u64) {
        if let Some(running) = self.instances.get_mut(slot.instance()) {
            running.idle_since = None;
        }
        let takes = self.chance.around(millis(self.policy.service));
        self.done_at.push(Reverse((now + takes, ticket)));
        self.slots.insert(ticket, slot);
    }

    fn serve_after_wait(&mut self, ticket: Ticket, slot: Slot, now: u64) {
        let since = self.arrived.remove(&ticket).expect("who waits has arrived");
        self.outcome.waited += 1;
        self.outcome
            .waits
            .push(u32::try_from(now - since).expect("patience is short"));
        self.serve(ticket, slot, now);
    }

    fn finish(&mut self, now: u64) {
        while let Some(Reverse((at, ticket))) = self.done_at.peek()
            && *at <= now
        {
            let ticket = *ticket;
            self.done_at.pop();
            let slot = self.slots.remove(&ticket).expect("who is in flight has a slot");
            self.served += 1;
            match self.pool.leave(slot) {
                Left::Passed(next, slot) => self.serve_after_wait(next, slot, now),
                Left::Free => {}
                Left::Idle(instance) => {
                    if let Some(running) = self.instances.get_mut(&instance) {
                        running.idle_since = Some(now);
                    }
                }
            }
        }
    }

    /// True: one became ready.
    fn become_ready(&mut self, now: u64) -> bool {
        let mut any = false;
        while let Some(Reverse((at, _))) = self.ready_at.peek()
            && *at <= now
        {
            let Some(Reverse((_, instance))) = self.ready_at.pop() else {
                break;
            };
            if let Some(running) = self.instances.get_mut(&instance) {
                running.ready = true;
                running.idle_since = Some(now);
                any = true;
            }
        }
        if any {
            self.publish(now);
        }
        any
    }

    /// Tells the pool which instances there are.
    fn publish(&mut self, now: u64) {
        let ready = self.instances.iter().filter(|(_, running)| running.ready);
        let endpoints = RevisionEndpoints {
            instances: ready
                .map(|(instance, _)| Endpoint {
                    instance: instance.clone(),
                    draining: false,
                })
                .collect(),
            starting: count(self.instances.values().filter(|running| !running.ready).count()),
            ..RevisionEndpoints::default()
        };
        let changes = self.pool.sync(&endpoints);
        for (ticket, admitted) in changes.admitted {
            self.serve_after_wait(ticket, admitted.slot, now);
        }
    }

    /// What control does on a turn: look, decide, start or give up.
    fn look(&mut self, now: u64) {
        for ticket in self.pool.expire(Tick(now)) {
            self.arrived.remove(&ticket);
            self.outcome.refused += 1;
        }
        let retention = millis(self.policy.idle_retention);
        let mut expired: Vec<(u64, InstanceId)> = self
            .instances
            .iter()
            .filter_map(|(instance, running)| Some((running.idle_since?, instance.clone())))
            .filter(|(since, _)| now - since >= retention)
            .collect();
        expired.sort();
        let demand = self.pool.demand();
        let ready = self.instances.values().filter(|running| running.ready).count();
        let seen = Observation {
            in_flight: demand.in_flight,
            queued: demand.queued,
            served: std::mem::take(&mut self.served),
            starting: count(self.instances.len() - ready),
            ready: count(ready),
            busy: count(demand.instances.iter().filter(|of| of.in_flight > 0).count()),
            expired: count(expired.len()),
            ..Observation::default()
        };
        let decision = if let Some(settings) = &self.policy.kpa {
            self.kpa.look(settings, &seen, true, Tick(now)).2
        } else {
            let bounds = Bounds {
                min: self.policy.min,
                max: self.policy.max,
                manual: None,
                concurrency: self.policy.concurrency.get(),
                cpu_millis: 1000,
            };
            decide(&bounds, self.memory.remember(Tick(now), &seen), &seen)
        };
        if decision.because.is_exact() {
            // Whoever has no request goes; who has one finishes first.
            let idle = self
                .instances
                .iter()
                .filter_map(|(id, running)| Some((running.idle_since?, id.clone())));
            expired = idle.collect();
            expired.sort();
        }
        let there = count(self.instances.len());
        for _ in there..decision.instances {
            self.start(now);
        }
        let surplus = there.saturating_sub(decision.instances) as usize;
        let given_up: Vec<InstanceId> = expired.into_iter().take(surplus).map(|(_, id)| id).collect();
        if !given_up.is_empty() {
            for instance in &given_up {
                self.end(instance, now);
            }
            self.publish(now);
        }
        self.outcome.most = self.outcome.most.max(count(self.instances.len()));
    }

    fn start(&mut self, now: u64) {
        self.outcome.starts += 1;
        let mut name = [0; 12];
        name[4..].copy_from_slice(&self.outcome.starts.to_be_bytes());
        let instance = InstanceId::new(name);
        let ready = now + self.chance.around(millis(self.policy.cold_start));
        self.ready_at.push(Reverse((ready, instance.clone())));
        let starting = Running {
            since: now,
            idle_since: None,
            ready: false,
        };
        self.instances.insert(instance, starting);
    }

    fn end(&mut self, instance: &InstanceId, now: u64) {
        if let Some(running) = self.instances.remove(instance) {
            self.outcome.instance_milliseconds += now - running.since;
        }
    }

    /// The end of the load is the end of all instances, for the sum.
    fn close(mut self, now: u64) -> Outcome {
        let left: Vec<InstanceId> = self.instances.keys().cloned().collect();
        for instance in left {
            self.end(&instance, now);
        }
        self.outcome.waits.sort_unstable();
        self.outcome
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a load is not that long")
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("instances are few")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(concurrency: u32, max: u32) -> Policy {
        Policy {
            name: "",
            concurrency: Concurrency::new(concurrency).expect("in range"),
            min: 0,
            max,
            idle_retention: Duration::from_secs(10),
            cold_start: Duration::from_millis(200),
            service: Duration::from_millis(20),
            kpa: None,
        }
    }

    #[test]
    fn one_more_than_the_concurrency_makes_two() {
        let outcome = replay(Load::Burst { requests: 81 }, policy(80, 100), 1);
        assert_eq!((outcome.most, outcome.starts, outcome.waited), (2, 2, 81));
        let outcome = replay(Load::Burst { requests: 80 }, policy(80, 100), 1);
        assert_eq!((outcome.most, outcome.starts), (1, 1));
    }

    #[test]
    fn never_more_than_the_maximum() {
        let outcome = replay(Load::Burst { requests: 500 }, policy(1, 7), 2);
        assert_eq!((outcome.most, outcome.starts), (7, 7));
        assert_eq!(outcome.refused, 0, "seven serve 500 in about 1.5 s");
    }

    #[test]
    fn who_waits_too_long_is_refused() {
        let outcome = replay(Load::Burst { requests: 1000 }, policy(1, 1), 3);
        assert!(
            outcome.refused > 400,
            "one instance serves about 500 in 10 s: {}",
            outcome.refused
        );
        assert_eq!(outcome.waited + outcome.refused, 1000);
    }

    #[test]
    fn idle_instances_go_after_the_retention() {
        let outcome = replay(Load::Burst { requests: 1 }, policy(1, 1), 4);
        let seconds = outcome.instance_milliseconds / 1000;
        assert!((10..=11).contains(&seconds), "{seconds} s");
    }

    #[test]
    fn a_seed_gives_one_outcome() {
        let load = Load::Spike { low: 20, high: 500 };
        let outcome = replay(load, policy(10, 100), 5);
        assert_eq!(outcome, replay(load, policy(10, 100), 5));
        assert_ne!(outcome, replay(load, policy(10, 100), 6));
    }
}
