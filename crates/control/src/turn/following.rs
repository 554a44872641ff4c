//! The part of a turn that is about secrets: what follows a change of theirs, and whose time is over.

use model::{Observed, with_causes};
use store::{Snapshot, TransactError};

use super::{Control, Links, Superseded};
use crate::{
    scale::Act,
    secrets::{self, Follow, Reader},
};

impl Links {
    pub(super) fn reader<'a>(&'a self, snapshot: &'a Snapshot) -> Reader<'a> {
        Reader {
            vault: &self.vault,
            site: &self.site,
            holds: &self.holds,
            snapshot,
            now: (self.now)(),
        }
    }
}

impl Control {
    /// Secrets whose time is over go with their versions.
    pub(super) async fn drop_expired(&self, snapshot: &Snapshot) {
        let now = (self.links.now)();
        let over = secrets::expired(snapshot, now);
        if over.is_empty() {
            return;
        }
        tracing::info!(secrets = ?over, "their time is over");
        let written = self.links.store.transact(move |tx| -> Result<(), Superseded> {
            for name in over {
                // One that was made anew, or given more time, is looked at again.
                if tx
                    .snapshot()
                    .secrets
                    .get(&name)
                    .is_some_and(|secret| secret.is_expired(now))
                {
                    tx.delete_secret(&name);
                }
            }
            Ok(())
        });
        if let Err(TransactError::Storage(error)) = written.await {
            tracing::error!(error = with_causes(&error), "cannot delete secrets whose time is over");
        }
    }

    pub(super) async fn follow_secrets(&mut self, snapshot: &Snapshot, observed: &Observed) {
        let due = self.given.plan(&self.links.reader(snapshot), observed);
        for follow in due {
            match follow {
                Follow::Renew(id, key) => {
                    let Some(revision) = snapshot.revision(&key) else {
                        continue;
                    };
                    let files = self.links.reader(snapshot).files(revision);
                    match self.links.engine.renew(&id, files).await {
                        Ok(()) => tracing::debug!(instance = %id, "its files of secrets are new"),
                        Err(error) => tracing::error!(instance = %id, %error, "cannot renew files of secrets"),
                    }
                }
                Follow::Stop(id) => self.act(Act::Stop(id), snapshot).await,
            }
        }
    }
}
