//! How long the phases of a start took.

use std::time::Instant;

use model::{InstanceSpec, StartRecord, Timestamp};

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

/// The moments of one start, as they come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    pub(crate) taken: Instant,
    /// The launcher was asked for the sandbox.
    pub(crate) asked: Instant,
    pub(crate) made: Instant,
    pub(crate) spent: Option<Spent>,
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

impl Moments {
    /// `running` is when the program ran, where that is known.
    pub(crate) fn record(
        &self,
        spec: &InstanceSpec,
        ordered: Ordered,
        running: Option<Instant>,
        ready: Instant,
    ) -> StartRecord {
        let released = ordered.instant.max(self.made);
        // It may be seen a moment before the order is noted.
        let running = running.map(|running| running.max(released));
        let spent = self.spent;
        let sandbox = micros(self.asked, self.made);
        let told = spent.map_or(0, |spent| spent.rootfs + spent.network + spent.cgroup);
        StartRecord {
            at: ordered.at,
            of: spec.of.clone(),
            instance: spec.id.clone(),
            parked: ordered.instant > self.made,
            turn_micros: micros(self.taken, self.asked),
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
