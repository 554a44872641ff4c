//! What became of an instance, for a request whose connection to it broke.

use std::{collections::VecDeque, sync::Mutex};

use model::{Exit, ExitCause, Fate, InstanceId, InstanceState, RevisionKey};

use crate::Engine;

/// How many ends for want of memory are remembered longer than their instances.
const REMEMBERED: usize = 64;

/// Instances that ran out of memory and were forgotten, the last of them, with their limits in bytes: who asks what became of
/// one may be later than who forgets it.
#[derive(Debug, Default)]
pub(crate) struct OutOfMemory(Mutex<VecDeque<(InstanceId, u64)>>);

impl OutOfMemory {
    pub(crate) fn remember(&self, id: &InstanceId, limit_bytes: u64) {
        let mut last = self.0.lock().expect("no panic while held");
        last.push_back((id.clone(), limit_bytes));
        if last.len() > REMEMBERED {
            last.pop_front();
        }
    }

    /// Of one that is not there any more.
    fn fate(&self, id: &InstanceId) -> Fate {
        let last = self.0.lock().expect("no panic while held");
        let of = last.iter().find(|(of, _)| of == id);
        of.map_or(Fate::Ended, |(_, limit_bytes)| Fate::OutOfMemory {
            limit_bytes: *limit_bytes,
        })
    }
}

impl Engine {
    /// Shows an instance that cannot be made, for a reason that is known before anything was begun.
    pub fn refuse(&self, id: &InstanceId, of: &RevisionKey, why: String) {
        let exit = Exit {
            cause: ExitCause::NotStarted(why),
            container: None,
            was_ready: false,
            last_lines: Vec::new(),
        };
        self.inner.board.add(id, of, InstanceState::Stopped(exit));
    }

    /// What became of an instance, read from the kernel and not from what was observed: right at once when a
    /// connection breaks.
    pub fn fate(&self, id: &InstanceId) -> Fate {
        let Some(entry) = self.inner.entry(id) else {
            return self.inner.out_of_memory.fate(id);
        };
        if let Some(cause) = entry.over.get() {
            return match cause {
                ExitCause::OutOfMemory { limit_bytes } => Fate::OutOfMemory {
                    limit_bytes: *limit_bytes,
                },
                ExitCause::Code(_)
                | ExitCause::Signal(_)
                | ExitCause::NotListening { .. }
                | ExitCause::StartupProbeFailed { .. }
                | ExitCause::Unhealthy { .. }
                | ExitCause::NotStarted(_)
                | ExitCause::Stopped => Fate::Ended,
            };
        }
        let Some(running) = entry.running.get() else {
            return Fate::Alive;
        };
        let gone = running.is_gone();
        if let Some(index) = running.over_memory() {
            let container = entry.spec.containers().nth(index);
            return Fate::OutOfMemory {
                limit_bytes: container.map_or(0, |container| container.memory_bytes),
            };
        }
        if gone { Fate::Ended } else { Fate::Alive }
    }
}
