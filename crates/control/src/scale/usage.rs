//! What instances use, from two readings of the engine.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use capacity::autoscaler::Tick;
use model::{InstanceId, RevisionKey, Usage};

/// Of what one instance of a revision was seen to take, the newest reading weighs one part in so many.
const NEWEST_PART: u64 = 4;
/// Nothing is known: an eighth of its limit, 16 MiB at least.
const UNKNOWN_PART: u64 = 8;
const UNKNOWN_LEAST: u64 = 16 << 20;
/// A reading is good for so long.
const GOOD_FOR: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(super) struct Usages {
    readings: BTreeMap<InstanceId, Reading>,
    /// Mean memory of one instance of a revision, bytes.
    memory: HashMap<RevisionKey, u64>,
}

#[derive(Debug)]
struct Reading {
    at: Tick,
    usage: Usage,
    /// CPU between the last two readings, thousandths.
    cpu_millis: u32,
}

impl Usages {
    /// Takes in readings of instances that are ready; each with its revision.
    pub(super) fn take_in<'a>(
        &mut self,
        readings: impl Iterator<Item = (InstanceId, &'a RevisionKey, Usage)>,
        now: Tick,
    ) {
        for (id, of, usage) in readings {
            let memory = self.memory.entry(of.clone()).or_insert(usage.memory_bytes);
            *memory = (*memory * (NEWEST_PART - 1) + usage.memory_bytes) / NEWEST_PART;
            let cpu_millis = self
                .readings
                .get(&id)
                .map_or(0, |before| cpu_millis(before, &usage, now));
            let reading = Reading {
                at: now,
                usage,
                cpu_millis,
            };
            self.readings.insert(id, reading);
        }
    }

    /// What the instance uses, thousandths of a CPU; 0 when it was not read lately.
    pub(super) fn cpu_millis(&self, id: &InstanceId, now: Tick) -> u32 {
        self.readings
            .get(id)
            .filter(|reading| now.since(reading.at) < GOOD_FOR)
            .map_or(0, |reading| reading.cpu_millis)
    }

    pub(super) fn is_known(&self, id: &InstanceId) -> bool {
        self.readings.contains_key(id)
    }

    /// What the instance took when it was last read.
    pub(super) fn memory(&self, id: &InstanceId) -> Option<u64> {
        self.readings.get(id).map(|reading| reading.usage.memory_bytes)
    }

    /// What one more instance of the revision is expected to take, bytes; `limit` is what it may.
    pub(super) fn need(&self, revision: &RevisionKey, limit: u64) -> u64 {
        self.memory
            .get(revision)
            .copied()
            .unwrap_or_else(|| (limit / UNKNOWN_PART).max(UNKNOWN_LEAST).min(limit))
    }

    pub(super) fn forget(&mut self, id: &InstanceId) {
        self.readings.remove(id);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&RevisionKey) -> bool) {
        self.memory.retain(|revision, _| keep(revision));
    }
}

fn cpu_millis(before: &Reading, usage: &Usage, now: Tick) -> u32 {
    let elapsed = now.since(before.at).as_micros();
    if elapsed == 0 {
        return before.cpu_millis;
    }
    let used = usage.cpu.saturating_sub(before.usage.cpu).as_micros();
    u32::try_from(used * 1000 / elapsed).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::cases::{revision, service};

    #[test]
    fn two_readings_make_a_rate() {
        let key = revision(&service("s", 1), 1).key;
        let id = InstanceId::new([1; 12]);
        let mut usages = Usages::default();
        let mut read = |cpu_ms: u64, mib: u64, now: u64| {
            let usage = Usage {
                cpu: Duration::from_millis(cpu_ms),
                memory_bytes: mib << 20,
            };
            usages.take_in([(id.clone(), &key, usage)].into_iter(), Tick(now));
            (usages.cpu_millis(&id, Tick(now)), usages.need(&key, 512 << 20) >> 20)
        };
        assert_eq!(read(100, 8, 1_000), (0, 8));
        assert_eq!(read(850, 8, 2_000), (750, 8));
        assert_eq!(read(850, 16, 3_000), (0, 10));
        assert_eq!(usages.cpu_millis(&id, Tick(9_000)), 0, "too old");
        assert_eq!(usages.need(&revision(&service("t", 1), 1).key, 512 << 20), 64 << 20);
    }
}
