//! How long the phases of a start took.

use std::time::Instant;

use model::{InstanceSpec, StartRecord, Timestamp};
use serde::{Deserialize, Serialize};

use crate::sandbox::Spent;

/// When the engine was told to start an instance, or to release a parked one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ordered {
    at: Timestamp,
    instant: Instant,
}

impl Ordered {
    pub(crate) fn now() -> Self {
        Self {
            at: crate::now(),
            instant: Instant::now(),
        }
    }
}

/// What it took to make a sandbox, microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Making {
    /// Until the launcher was asked for it.
    turn: u64,
    /// From then until it was made; the part of it that is told in `spent` included.
    sandbox: u64,
    spent: Option<Spent>,
}

/// A sandbox that was made, or taken over as it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) making: Making,
    pub(crate) at: Instant,
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

impl Made {
    /// Of one that was wanted at `taken`, asked for at `asked`, and is made now.
    pub(crate) fn now(taken: Instant, asked: Instant, spent: Option<Spent>) -> Self {
        let at = Instant::now();
        let making = Making {
            turn: micros(taken, asked),
            sandbox: micros(asked, at),
            spent,
        };
        Self { making, at }
    }

    /// Of one that another server has made.
    pub(crate) fn before(making: Making) -> Self {
        let at = Instant::now();
        Self { making, at }
    }

    /// `running` is when the program ran, where that is known.
    pub(crate) fn record(
        &self,
        spec: &InstanceSpec,
        ordered: Ordered,
        running: Option<Instant>,
        ready: Instant,
    ) -> StartRecord {
        let Making { turn, sandbox, spent } = self.making;
        let released = ordered.instant.max(self.at);
        // It may be seen a moment before the order is noted.
        let running = running.map(|running| running.max(released));
        let told = spent.map_or(0, |spent| spent.rootfs + spent.network + spent.cgroup);
        StartRecord {
            at: ordered.at,
            of: spec.of.clone(),
            instance: spec.id.clone(),
            parked: ordered.instant > self.at,
            turn_micros: turn,
            rootfs_micros: spent.map(|spent| spent.rootfs),
            network_micros: spent.map(|spent| spent.network),
            cgroup_micros: spent.map(|spent| spent.cgroup),
            sandbox_micros: sandbox.saturating_sub(told),
            process_micros: running.map(|running| micros(released, running)),
            listening_micros: micros(running.unwrap_or(released), ready),
            ready_micros: micros(ordered.instant, ready),
        }
    }
}
