//! What must survive a restart, and nothing else: services, revisions, repositories, buckets, builds and sealed secrets in `SQLite`, log lines in a journal.
//!
//! The only crate that knows `SQLite`. It keeps model types as they are (JSON by serde, one golden file per schema
//! version) and has no row types of its own. What enters is a piece of work on a [`Transaction`], run alone on one
//! writer thread and acknowledged once it is on the disk; what leaves is an immutable [`Snapshot`] of everything at
//! one version, and a bell ([`Store::changed`]) that rings with the newest. Rules of Cloud Run (generations, conflicts,
//! what may be deleted) are asked by whoever writes the work, inside the transaction, where nothing moves under them.
//!
//! One process at a time: an open store holds a lock on its directory.

pub mod journal;
mod lock;
mod schema;
mod snapshot;
mod transaction;
mod writer;

use std::{io, path::PathBuf, sync::Arc};

pub use journal::Journal;
pub use snapshot::Snapshot;
pub use transaction::Transaction;
pub use writer::Store;

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot use the data directory {}", dir.display())]
    Directory {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the data directory {} is held by {}", dir.display(), holder(*.pid))]
    Held {
        dir: PathBuf,
        /// The process that holds it, as it wrote itself down; None when the lock file does not say.
        pid: Option<u32>,
    },
    #[error("{} is a database, but not one of Homerun", file.display())]
    Foreign { file: PathBuf },
    #[error(
        "{} has schema version {found}, this Homerun knows versions up to {known}: use a newer Homerun",
        file.display()
    )]
    Newer { file: PathBuf, found: i64, known: i64 },
    #[error("{} is damaged: {finding}", file.display())]
    Damaged { file: PathBuf, finding: String },
    #[error("cannot read {}", file.display())]
    Database {
        file: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{} holds a {kind} \"{name}\" that cannot be read", file.display())]
    Content {
        file: PathBuf,
        kind: &'static str,
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot start the writer of {}", file.display())]
    Thread {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

/// Why a write is not known to have reached the disk. Nothing of the transaction is kept, except when it was the disk's
/// answer to the commit itself that failed: then the snapshots that follow show whether it is there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Shared, since several transactions may have waited for the one commit that failed.
    #[error("cannot write {}", file.display())]
    Write {
        file: PathBuf,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// An earlier write failed and what it left cannot be read, so that nothing may be built on it.
    #[error("cannot write {}: it cannot be read after a failed write", file.display())]
    Doubt {
        file: PathBuf,
        #[source]
        source: Arc<OpenError>,
    },
    #[error("cannot write {}: its writer has ended", file.display())]
    Ended { file: PathBuf },
}

/// Why a transaction was not committed.
#[derive(Debug, thiserror::Error)]
pub enum TransactError<E> {
    /// The work itself said no.
    #[error(transparent)]
    Refused(E),
    #[error(transparent)]
    Storage(Error),
}
