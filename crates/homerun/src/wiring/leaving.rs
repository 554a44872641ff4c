//! How a Homerun leaves for another one that takes its place: it gives up what only one may have, and ends its requests.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use engine::Engine;
use ingress::{Ingress, listen};
use model::InstanceId;
use store::Journal;
use tokio::task::JoinHandle;

use super::Homerun;
use crate::handover::{Busy, Sockets};

/// How long requests without an instance may keep a new binary waiting.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last lines may take to the journal.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);
/// How late the next one hears that an instance has a request of ours, or none any more.
const TELL_EVERY: Duration = Duration::from_millis(20);

/// A Homerun that has handed over and ends its requests.
pub(crate) struct Leaving {
    listening: listen::Listening,
    door: JoinHandle<door::Drained>,
    ingress: Arc<Ingress>,
    engine: Arc<Engine>,
    journal: Journal,
    followers: Vec<JoinHandle<()>>,
    pub(crate) sockets: Sockets,
}

impl Homerun {
    /// Takes no connection any more, and gives up everything that only one process may have: the store, the claim, the
    /// instances. Requests under way go on, and so do clients that have a connection, with the next one's instances.
    pub(crate) async fn leave(self) -> Leaving {
        self.lending.abort();
        self.rotating.abort();
        // Those that wait for an instance get theirs while there is somebody who starts it: first all, then those that
        // came in before the doors closed.
        nobody_waits(&self.kept.ingress).await;
        self.listening.pause();
        drop(self.stop_door);
        nobody_waits(&self.kept.ingress).await;
        // Those that run begin again with the next one.
        drop(self.stop_builds);
        if let Err(error) = self.builds.await {
            tracing::error!(%error, "builds broke off");
        }
        drop(self.stop_control);
        if let Err(error) = self.control.await {
            tracing::error!(%error, "control broke off");
        }
        let store = self.kept.store;
        if let Err(error) = tokio::task::spawn_blocking(move || store.close()).await {
            tracing::error!(%error, "closing the store broke off");
        }
        self.engine.leave().await;
        self.inside.end().await;
        Leaving {
            listening: self.listening,
            door: self.door,
            ingress: self.kept.ingress,
            engine: self.engine,
            journal: self.journal,
            followers: self.followers,
            sockets: self.sockets,
        }
    }
}

impl Leaving {
    /// Its requests, and in which instances they are.
    pub(crate) fn busy(&self) -> Busy {
        busy_of(&self.ingress)
    }

    /// Until every request has ended, or for at most so long; tells meanwhile which are left.
    pub(crate) async fn end(self, limit: Duration, mut tell: impl FnMut(Busy)) {
        let mut told = None;
        let ingress = self.ingress.clone();
        let mut draining = std::pin::pin!(async { tokio::join!(self.listening.outlast(limit), self.door) });
        loop {
            let now = busy_of(&ingress);
            if told.as_ref() != Some(&now) {
                tell(now.clone());
                told = Some(now);
            }
            tokio::select! {
                (cut, door) = &mut draining => {
                    let cut = cut + door.map_or(0, |drained| drained.cut);
                    if cut > 0 {
                        tracing::warn!(connections = cut, "cut off at the deadline");
                    }
                    break;
                }
                () = tokio::time::sleep(TELL_EVERY) => {}
            }
        }
        tell(Busy::new());
        drop(ingress);
        let [following, lines, starts] = <[_; 3]>::try_from(self.followers).expect("three are made");
        following.abort();
        // What it held goes with it.
        drop(following.await);
        drop((self.ingress, self.engine));
        if tokio::time::timeout(WRITE_PATIENCE, async { tokio::join!(lines, starts) })
            .await
            .is_err()
        {
            tracing::warn!("the last lines of instances may be missing in the log");
        }
        drop(self.journal);
    }
}

/// Until no request waits for an instance, or for [`QUEUE_PATIENCE`].
async fn nobody_waits(ingress: &Ingress) {
    let patience = tokio::time::Instant::now() + QUEUE_PATIENCE;
    while ingress.demand().revisions.values().any(|of| of.queued > 0) && tokio::time::Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn busy_of(ingress: &Ingress) -> Busy {
    let of = ingress.demand().revisions.into_iter().flat_map(|(revision, of)| {
        let busy = of.instances.into_iter().filter(|instance| instance.in_flight > 0);
        busy.map(move |instance| (revision.clone(), instance.instance, instance.in_flight))
    });
    of.collect()
}

pub(super) fn instances_of(busy: &Busy) -> BTreeSet<InstanceId> {
    busy.iter().map(|(_, instance, _)| instance.clone()).collect()
}
