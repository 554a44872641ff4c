//! What the engine shows of its instances: the whole of it, in a `watch` channel.

use std::sync::Arc;

use model::{Instance, InstanceId, InstanceState, Observed, RevisionKey, Timestamp};
use tokio::sync::watch;

use crate::now;

/// Shown to everybody who looks.
#[derive(Debug, Default)]
pub(crate) struct Board(watch::Sender<Arc<Observed>>);

/// Whether an instance in the first state may enter the second.
fn leads(from: &InstanceState, to: &InstanceState) -> bool {
    match (from, to) {
        (InstanceState::Stopped(_), _)
        | (_, InstanceState::Parked)
        | (InstanceState::Stopping | InstanceState::Parked, InstanceState::Ready | InstanceState::Unready)
        | (InstanceState::Starting, InstanceState::Unready) => false,
        (_, InstanceState::Starting) => *from == InstanceState::Parked,
        (
            InstanceState::Parked
            | InstanceState::Starting
            | InstanceState::Ready
            | InstanceState::Unready
            | InstanceState::Stopping,
            InstanceState::Ready | InstanceState::Unready | InstanceState::Stopping | InstanceState::Stopped(_),
        ) => from != to,
    }
}

impl Board {
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Observed>> {
        self.0.subscribe()
    }

    /// Shows a new instance.
    pub(crate) fn add(&self, id: &InstanceId, of: &RevisionKey, state: InstanceState) {
        self.add_since(id, of, state, now());
    }

    /// Shows an instance that was asked for at another time.
    pub(crate) fn add_since(&self, id: &InstanceId, of: &RevisionKey, state: InstanceState, created: Timestamp) {
        let now = now();
        self.0.send_modify(|observed| {
            let instance = Instance {
                of: of.clone(),
                state,
                since: now,
                created,
            };
            let instances = &mut Arc::make_mut(observed).instances;
            instances.insert(id.clone(), instance);
        });
    }

    /// Enters a state, if the present one leads to it.
    pub(crate) fn enter(&self, id: &InstanceId, state: InstanceState) {
        self.0.send_if_modified(|observed| {
            let held = observed.instances.get(id);
            if !held.is_some_and(|instance| leads(&instance.state, &state)) {
                return false;
            }
            if let Some(instance) = Arc::make_mut(observed).instances.get_mut(id) {
                instance.state = state;
                instance.since = now();
            }
            true
        });
    }

    /// Removes an instance that has stopped; tells whether it did.
    pub(crate) fn forget(&self, id: &InstanceId) -> bool {
        self.0.send_if_modified(|observed| {
            let stopped = observed
                .instances
                .get(id)
                .is_some_and(|instance| !instance.state.is_alive());
            if stopped {
                Arc::make_mut(observed).instances.remove(id);
            }
            stopped
        })
    }
}

#[cfg(test)]
mod tests {
    use model::{Exit, ExitCause};

    use super::*;

    #[test]
    fn a_parked_one_starts_before_it_is_ready_and_nothing_parks_again() {
        let stopped = InstanceState::Stopped(Exit {
            cause: ExitCause::Stopped,
            container: None,
            was_ready: false,
            last_lines: Vec::new(),
        });
        let yes = [
            (InstanceState::Parked, InstanceState::Starting),
            (InstanceState::Parked, InstanceState::Stopping),
            (InstanceState::Parked, stopped.clone()),
            (InstanceState::Starting, InstanceState::Ready),
            (InstanceState::Ready, InstanceState::Unready),
            (InstanceState::Unready, InstanceState::Ready),
            (InstanceState::Stopping, stopped.clone()),
        ];
        for (from, to) in yes {
            assert!(leads(&from, &to), "{from:?} to {to:?}");
        }
        let no = [
            (InstanceState::Parked, InstanceState::Ready),
            (InstanceState::Starting, InstanceState::Parked),
            (InstanceState::Ready, InstanceState::Parked),
            (InstanceState::Ready, InstanceState::Starting),
            (InstanceState::Ready, InstanceState::Ready),
            (InstanceState::Stopping, InstanceState::Ready),
            (stopped.clone(), InstanceState::Starting),
            (stopped, InstanceState::Stopping),
        ];
        for (from, to) in no {
            assert!(!leads(&from, &to), "{from:?} to {to:?}");
        }
    }
}
