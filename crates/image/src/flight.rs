//! One piece of work per key at a time: whoever comes second waits, then finds the work done on disk. Different keys do
//! not wait for each other. A turn may be carried into a blocking task, so that the work stays alone even if the one
//! who asked for it went away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::digest::Digest;

/// What may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// Bringing a blob, or all of a manifest, from another registry.
    Pull(Digest),
    /// Unpacking a layer, by its diff id.
    Unpack(Digest),
}

#[derive(Debug, Default)]
pub(crate) struct Flights {
    turns: Mutex<HashMap<Work, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to do the work; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Flights {
    /// Waits until nobody else does this work.
    pub(crate) async fn turn(&self, work: Work) -> Turn {
        let queue = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Queues that only this table still knows are over.
            turns.retain(|_, queue| Arc::strong_count(queue) > 1);
            Arc::clone(turns.entry(work).or_default())
        };
        Turn {
            _guard: queue.lock_owned().await,
        }
    }
}
