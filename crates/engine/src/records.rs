//! What a server writes down of each of its instances, for the one that comes after it: beside the bundle of the first
//! container, in a directory that goes with the instance, and with the machine's memory.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use model::{InstanceSpec, Stream, Timestamp};
use serde::{Deserialize, Serialize};

use crate::phases::Making;

/// Written once, before the launcher is asked for the instance.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) spec: InstanceSpec,
    pub(crate) first_id: u32,
    /// When it was asked for.
    pub(crate) created: Timestamp,
}

const RECORD: &str = "record.json";
/// How long it took to make one that was parked.
const MADE: &str = "made";
/// It has been ready: its startup probes are not asked again.
const READY: &str = "ready";
/// It was told to stop; holds the grace, milliseconds.
const STOPPING: &str = "stopping";

impl Record {
    pub(crate) fn write(&self, bundle: &Path) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(bundle.join(RECORD))?;
        io::Write::write_all(&mut file, &serde_json::to_vec(self)?)
    }

    /// None: there is none, or one of another Homerun that says what we do not know.
    pub(crate) fn read(bundle: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(bundle.join(RECORD)).ok()?).ok()
    }
}

pub(crate) fn write_making(bundle: &Path, making: &Making) {
    // Without it nobody is told how long its start took: no harm.
    let _ = serde_json::to_vec(making).map(|text| fs::write(bundle.join(MADE), text));
}

pub(crate) fn making(bundle: &Path) -> Option<Making> {
    serde_json::from_slice(&fs::read(bundle.join(MADE)).ok()?).ok()
}

pub(crate) fn mark_ready(bundle: &Path) {
    // An instance without the mark is asked by its startup probe again: no harm.
    let _ = fs::write(bundle.join(READY), "");
}

pub(crate) fn is_ready(bundle: &Path) -> bool {
    bundle.join(READY).exists()
}

pub(crate) fn mark_stopping(bundle: &Path, grace: Duration) {
    // There is no bundle yet when it is stopped before it was begun.
    let _ = fs::write(bundle.join(STOPPING), grace.as_millis().to_string());
}

/// With which grace it was told to stop.
pub(crate) fn stopping(bundle: &Path) -> Option<Duration> {
    let text = fs::read_to_string(bundle.join(STOPPING)).ok()?;
    Some(Duration::from_millis(text.parse().unwrap_or_default()))
}

/// Where the beginning of a line waits that had no end when its reader went.
pub(crate) fn tail(bundle: &Path, stream: Stream) -> PathBuf {
    bundle.join(match stream {
        Stream::Stdout => "stdout.tail",
        Stream::Stderr => "stderr.tail",
        Stream::System => "system.tail",
    })
}
