//! What becomes of instances that nobody asks: which are stopped before their time, reclaimed, or kept in reserve.

use std::collections::HashMap;

use capacity::{
    autoscaler::Tick,
    ladder::{self, Idle, Rung},
    machine,
    parking::{self, Candidate},
};
use model::{InstanceId, InstanceState, RevisionKey, Sandbox, Usage};

use super::{Act, Revised, Scaling, Seen, count};
use crate::decisions::Made;

/// Instances reclaimed in one turn.
const RECLAIMS: usize = 8;
/// Parked ones made in one turn, for each CPU.
const PARKS_PER_CPU: u32 = 4;

impl Scaling {
    /// What waits for nothing but the clock's slow hands: no instance runs or starts, at most some are parked.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.fleet.all().all(|(_, own)| {
            own.values().all(|instance| match instance.state {
                InstanceState::Parked => true,
                InstanceState::Starting
                | InstanceState::Ready
                | InstanceState::Unready
                | InstanceState::Stopping
                | InstanceState::Stopped(_) => false,
            })
        })
    }

    /// Instances whose use is worth reading: those of revisions that are asked, and those never read.
    pub(crate) fn to_read(&self) -> Vec<InstanceId> {
        let mut found = Vec::new();
        for (revision, own) in self.fleet.all() {
            let asked = self.revisions.get(revision).is_some_and(|revised| revised.asked);
            let ready = own
                .iter()
                .filter(|(_, instance)| instance.state == InstanceState::Ready);
            found.extend(
                ready
                    .map(|(id, _)| id)
                    .filter(|id| asked || !self.usages.is_known(id))
                    .cloned(),
            );
        }
        found
    }

    pub(crate) fn take_in_usage(&mut self, read: HashMap<InstanceId, Usage>, now: Tick) {
        let fleet = &self.fleet;
        let known = read.into_iter().filter_map(|(id, usage)| {
            let of = &fleet.instance(&id)?.of;
            Some((id, of, usage))
        });
        self.usages.take_in(known, now);
    }

    /// Under memory pressure: which idle instances are given up although their retention is not over.
    pub(super) fn choose_early(&mut self, seen: &Seen<'_>, now: Tick, notes: &mut Vec<(RevisionKey, Made, bool)>) {
        self.early.clear();
        let shortage = machine::shortage(seen.room, self.pressure);
        if shortage == 0 {
            return;
        }
        let mut ids: Vec<&InstanceId> = Vec::new();
        let mut idle = Vec::new();
        let mut spare = Vec::new();
        let mut keys = Vec::new();
        for (key, own) in self.fleet.all() {
            let Some(revision) = seen.snapshot.revision(key) else {
                continue;
            };
            let here = own.iter().filter(|(id, instance)| {
                matches!(instance.state, InstanceState::Ready | InstanceState::Unready)
                    && !self.draining.contains_key(*id)
                    && !self.stopping.contains(*id)
            });
            let asked = seen.asked(revision);
            let floor = asked.map_or(0, |asked| asked.manual.unwrap_or(asked.min));
            let mut there = 0;
            for (id, _) in here {
                there += 1;
                let Some(quiet) = self.quiet.get(id) else {
                    continue;
                };
                ids.push(id);
                idle.push(Idle {
                    idle: now.since(quiet.since),
                    memory: self.usages.memory(id).unwrap_or(0),
                    revision: spare.len(),
                });
            }
            // Knative's numbers are exact: nothing is stopped that it wants.
            let exact = revision.template.kpa.is_some();
            spare.push(if exact { 0 } else { count(there).saturating_sub(floor) });
            keys.push(key.clone());
        }
        let mut counts = vec![0; keys.len()];
        for index in ladder::early(&idle, &spare, shortage) {
            counts[idle[index].revision] += 1;
            self.early.insert(ids[index].clone());
        }
        for (key, count) in keys.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            notes.push((key, Made::Early { count, shortage }, true));
        }
    }

    /// Pushes out the memory of instances that have been idle for long.
    pub(super) fn reclaim(&mut self, seen: &Seen<'_>, now: Tick, acts: &mut Vec<Act>) {
        let (fleet, pressure) = (&self.fleet, self.pressure);
        let due = self.quiet.iter_mut().filter(|(id, quiet)| {
            if quiet.reclaimed || self.draining.contains_key(*id) || self.stopping.contains(*id) {
                return false;
            }
            let revision = fleet
                .instance(id)
                .and_then(|instance| seen.snapshot.revision(&instance.of));
            revision.is_some_and(|revision| {
                let allocation = revision.template.cpu_allocation();
                let idle = now.since(quiet.since);
                ladder::rung(Some(idle), allocation, pressure, seen.idle_retention) == Rung::Reclaimed
            })
        });
        for (id, quiet) in due.take(RECLAIMS) {
            quiet.reclaimed = true;
            acts.push(Act::Reclaim(id.clone()));
        }
    }

    /// Makes parked instances behind bursts, and gives up those that are too many.
    pub(super) fn park(
        &mut self,
        seen: &Seen<'_>,
        nothing_wanted: bool,
        now: Tick,
        acts: &mut Vec<Act>,
        notes: &mut Vec<(RevisionKey, Made, bool)>,
    ) {
        let quiet = nothing_wanted && self.fleet.starting().is_empty();
        let mut keys: Vec<RevisionKey> = self.callable.iter().cloned().collect();
        let uncalled = self.fleet.revisions().filter(|key| !self.callable.contains(*key));
        keys.extend(uncalled.cloned());
        let mut candidates = Vec::with_capacity(keys.len());
        let mut parked: Vec<Vec<&InstanceId>> = Vec::with_capacity(keys.len());
        for key in &keys {
            let own = self.fleet.of(key);
            let revision = seen.snapshot.revision(key);
            let revised = self.revisions.entry(key.clone()).or_insert_with(|| Revised::new(now));
            let alive = own.values().filter(|instance| match instance.state {
                InstanceState::Parked | InstanceState::Stopped(_) => false,
                InstanceState::Starting | InstanceState::Ready | InstanceState::Unready | InstanceState::Stopping => {
                    true
                }
            });
            let alive = count(alive.count());
            let waiting = seen.demand.revisions.get(key).is_some_and(|demand| demand.queued > 0);
            let most = revision
                .and_then(|revision| seen.asked(revision))
                .map_or(0, |asked| asked.manual.unwrap_or(asked.max));
            // Of gVisor nothing is parked: its sandbox is no smaller than the running instance.
            let gen1 = revision.is_some_and(|revision| revision.template.sandbox == Some(Sandbox::Gen1));
            let mut reserve: Vec<_> = own
                .iter()
                .filter(|(id, instance)| instance.state == InstanceState::Parked && !self.stopping.contains(*id))
                .collect();
            reserve.sort_unstable_by_key(|(_, instance)| instance.created);
            candidates.push(Candidate {
                callable: self.callable.contains(key) && !gen1,
                below_max: most.saturating_sub(alive),
                called: now.since(revised.called),
                started: revised.startups.last_begun(now),
                burst: revised.startups.burst(now),
                bursting: waiting || self.fleet.starting_of(key) > 0,
                parked: count(reserve.len()),
                failing: revised.startups.is_failing(),
            });
            parked.push(reserve.into_iter().map(|(id, _)| id).collect());
        }
        let mut left = seen.room.cpus.max(1) * PARKS_PER_CPU;
        let decided = parking::decide(&candidates, seen.parked, seen.room, self.pressure, quiet);
        let mut given_up = Vec::new();
        for (((key, candidate), parking), parked) in keys.iter().zip(&candidates).zip(&decided).zip(&parked) {
            let make = parking.make.min(left);
            left -= make;
            acts.extend((0..make).map(|_| Act::Park(key.clone())));
            let surplus = candidate.parked.saturating_sub(parking.keep);
            // The newest: the oldest are surely made by now.
            let surplus = parked.iter().rev().take(usize::try_from(surplus).unwrap_or(0));
            given_up.extend(surplus.map(|id| (*id).clone()));
            if let Some(revised) = self.revisions.get_mut(key)
                && revised.parking != parking.keep
            {
                revised.parking = parking.keep;
                let made = Made::Park {
                    keep: parking.keep,
                    parked: candidate.parked,
                    burst: candidate.burst,
                    available: seen.room.memory_bytes,
                };
                notes.push((key.clone(), made, true));
            }
        }
        for id in given_up {
            self.stopping.insert(id.clone());
            acts.push(Act::Stop(id));
        }
    }
}
