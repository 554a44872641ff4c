//! What the starts of a revision teach: how long they take, and when to hold off after failures.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use capacity::autoscaler::Tick;
use model::{ExitCause, Instance, InstanceId, InstanceState};

/// The newest start-up weighs so much in the (exponential) mean.
const NEWEST_WEIGHT: f64 = 0.3;
/// The queue's least patience, and its multiple of the average start-up (Cloud Run, "About instance autoscaling").
const LEAST_PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_FACTOR: f64 = 3.5;
/// After a failed start the next one waits, twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);

/// The outcomes of one revision's starts.
#[derive(Debug, Default)]
pub(super) struct Startups {
    mean_seconds: Option<f64>,
    /// Instances whose start has been counted.
    counted: BTreeSet<InstanceId>,
    failed: u64,
    failed_in_a_row: u32,
    retry_at: Tick,
    last_failure: Option<Arc<str>>,
}

impl Startups {
    /// Counts each start's outcome once. `own` are the revision's instances, `port` is where they are to listen.
    pub(super) fn learn(&mut self, own: &[(&InstanceId, &Instance)], port: u16, now: Tick) {
        self.counted.retain(|id| own.iter().any(|(own, _)| *own == id));
        for (id, instance) in own {
            match &instance.state {
                InstanceState::Parked | InstanceState::Starting | InstanceState::Unready | InstanceState::Stopping => {}
                InstanceState::Ready => {
                    if self.counted.insert((*id).clone()) {
                        self.succeeded(instance.since.since(instance.created));
                    }
                }
                InstanceState::Stopped(exit) => {
                    let failed = !exit.was_ready && exit.cause != ExitCause::Stopped;
                    if failed && self.counted.insert((*id).clone()) {
                        self.failed(exit.failure(port).1.into(), now);
                    }
                }
            }
        }
    }

    fn succeeded(&mut self, took: Duration) {
        self.failed_in_a_row = 0;
        let took = took.as_secs_f64();
        let mean = self
            .mean_seconds
            .map_or(took, |mean| mean + NEWEST_WEIGHT * (took - mean));
        self.mean_seconds = Some(mean);
    }

    fn failed(&mut self, why: Arc<str>, now: Tick) {
        let backoff = FIRST_BACKOFF
            .saturating_mul(1 << self.failed_in_a_row.min(6))
            .min(LONGEST_BACKOFF);
        self.failed += 1;
        self.failed_in_a_row += 1;
        self.retry_at = Tick(now.0 + u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX));
        self.last_failure = Some(why);
    }

    /// How many of `wanted` may be started now, `starting` being under way: after failures one at a time, and none
    /// before the backoff is over.
    pub(super) fn allow(&self, wanted: u32, starting: u32, now: Tick) -> u32 {
        if now < self.retry_at {
            0
        } else if self.is_failing() {
            wanted.min(u32::from(starting == 0))
        } else {
            wanted
        }
    }

    /// The last start failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failed_in_a_row > 0
    }

    /// How many starts have failed so far.
    pub(super) fn failures(&self) -> u64 {
        self.failed
    }

    pub(super) fn last_failure(&self) -> Option<Arc<str>> {
        self.last_failure.clone()
    }

    /// How long a request may wait for a slot.
    pub(super) fn patience(&self) -> Duration {
        self.mean_seconds.map_or(LEAST_PATIENCE, |seconds| {
            LEAST_PATIENCE.max(Duration::from_secs_f64(seconds * PATIENCE_FACTOR))
        })
    }
}

/// The patience with those of whom nothing is known.
pub(super) fn least_patience() -> Duration {
    LEAST_PATIENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_slow_starts() {
        let mut startups = Startups::default();
        assert_eq!(startups.patience().as_secs(), 10);
        startups.succeeded(Duration::from_secs(1));
        assert_eq!(startups.patience().as_secs(), 10);
        startups.succeeded(Duration::from_secs(41));
        assert_eq!(startups.patience(), Duration::from_secs_f64(13.0 * 3.5));
    }

    #[test]
    fn the_backoff_doubles_up_to_a_minute_and_ends_with_a_success() {
        let mut startups = Startups::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            startups.failed("boom".into(), Tick(0));
            waits.push(startups.retry_at.0);
        }
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(startups.allow(5, 0, Tick(59_999)), 0);
        assert_eq!(startups.allow(5, 0, Tick(60_000)), 1, "one try");
        assert_eq!(startups.allow(5, 1, Tick(60_000)), 0, "it is under way");
        startups.succeeded(Duration::from_secs(1));
        assert_eq!(startups.allow(5, 0, Tick(60_000)), 5);
        assert_eq!(startups.failures(), 8);
    }
}
