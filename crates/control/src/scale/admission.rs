//! From wants to starts: what the governor admits is started, of parked instances first.

use capacity::{
    Because, Full,
    autoscaler::Tick,
    governor::{self, Held, UnderWay, Want},
};
use model::{InstanceId, RevisionKey};

use super::{Act, Scaling, Seen};
use crate::decisions::Made;

/// More instances that a revision is to have.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) revision: RevisionKey,
    pub(super) count: u32,
    /// Requests wait for them.
    pub(super) waiting: bool,
    pub(super) because: Because,
    /// Where its decision stands among the notes.
    pub(super) note: usize,
    /// Those that are parked, the oldest first.
    pub(super) parked: Vec<InstanceId>,
    /// Of one instance, bytes.
    pub(super) memory_limit: u64,
}

impl Scaling {
    /// Starts what the machine has room for. Says of which wants (by their index) the rest has to wait, and why.
    pub(super) fn admit(
        &mut self,
        wanted: &[(usize, Wanted)],
        seen: &Seen<'_>,
        now: Tick,
        acts: &mut Vec<Act>,
        notes: &mut Vec<(RevisionKey, Made, bool)>,
    ) -> Vec<(usize, Full)> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let need = |revision: &RevisionKey, limit: u64| self.usages.need(revision, limit);
        let wants: Vec<Want> = wanted
            .iter()
            .map(|(_, wanted)| Want {
                revision: wanted.revision.clone(),
                count: wanted.count,
                starting: self.fleet.starting_of(&wanted.revision),
                waiting: wanted.waiting,
                since: self.held.get(&wanted.revision).copied().unwrap_or(now),
                need: need(&wanted.revision, wanted.memory_limit),
            })
            .collect();
        let limit = |key: &RevisionKey| {
            let revision = seen.snapshot.revision(key)?;
            let containers = revision.template.containers();
            Some(containers.map(|of| of.resources.memory.bytes()).sum())
        };
        let starting = self.fleet.starting().iter();
        let under_way = UnderWay {
            starting: starting.clone().map(|(_, count)| *count).sum(),
            promised: starting
                .map(|(key, count)| u64::from(*count) * need(key, limit(key).unwrap_or(0)))
                .sum(),
            finished: std::mem::take(&mut self.finished),
        };
        let memory = std::mem::take(&mut self.governor);
        let (memory, verdicts) = governor::admit(memory, seen.room, self.pressure, under_way, &wants, now);
        self.governor = memory;
        let mut full = Vec::new();
        for (verdict, (index, wanted)) in verdicts.into_iter().zip(wanted) {
            let Some(revised) = self.revisions.get_mut(&wanted.revision) else {
                continue;
            };
            if verdict.admitted > 0 {
                notes[wanted.note].2 = true;
            }
            let mut parked = wanted.parked.iter();
            for _ in 0..verdict.admitted {
                if let Some(id) = parked.next() {
                    revised.startups.begin(Some((id.clone(), seen.at)), now);
                    acts.push(Act::Release(id.clone(), wanted.because));
                } else {
                    revised.startups.begin(None, now);
                    acts.push(Act::Start(wanted.revision.clone(), wanted.because));
                }
            }
            let Some(held) = verdict.held else {
                self.held.remove(&wanted.revision);
                revised.held = None;
                continue;
            };
            if revised.held != Some(held.word()) {
                revised.held = Some(held.word());
                let count = wanted.count - verdict.admitted;
                notes.push((wanted.revision.clone(), Made::Held { count, why: held }, true));
                if held.is_for_memory() {
                    tracing::warn!(revision = %wanted.revision, count, %held, "no room for more instances");
                }
            }
            // Who got some is no longer the one that waited longest.
            if verdict.admitted > 0 {
                self.held.insert(wanted.revision.clone(), now);
            } else {
                self.held.entry(wanted.revision.clone()).or_insert(now);
            }
            full.push((*index, Full::NoRoom(brief(held).into())));
        }
        full
    }
}

/// Without numbers that differ at every look: it is published to the ingress.
fn brief(held: Held) -> String {
    match held {
        Held::Memory { need, .. } => format!(
            "not enough memory is left for the {} MiB it needs",
            need.div_ceil(1 << 20)
        ),
        Held::Pressure(pressure) => format!("memory is {}", pressure.word()),
        Held::Starts { .. } => "too many others are being started".to_owned(),
    }
}
