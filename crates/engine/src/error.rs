//! Why the engine says no.

use std::{io, path::PathBuf};

use model::InstanceId;

use crate::launch::LaunchError;

/// Why an engine cannot run on this machine.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("\"{0}\" is no id of a data directory: 8 lower-case hex digits")]
    Id8(String),
    #[error("a Homerun of this data directory runs: {} is locked", path.display())]
    Claimed { path: PathBuf },
    #[error("no control groups are mounted")]
    NoGroups,
    #[error("no container runtime {}", runtime.display())]
    NoRuntime { runtime: PathBuf },
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("no launcher")]
    Launch(#[from] LaunchError),
}

/// Why an instance is not started. Everything else shows as [`InstanceState::Stopped`](model::InstanceState::Stopped).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StartError {
    #[error("instance {id}: all {limit} ranges of user ids are in use")]
    NoIds { id: InstanceId, limit: u32 },
    #[error("instance {id}: the engine is shutting down")]
    Closing { id: InstanceId },
}

/// Why an instance is not stopped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StopError {
    #[error("no instance {id}")]
    Unknown { id: InstanceId },
}
