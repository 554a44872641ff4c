//! What the starts of a revision teach: how long they take, when to hold off after failures, and how many came at once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use capacity::autoscaler::Tick;
use model::{ExitCause, Instance, InstanceId, InstanceState, Timestamp};

/// The newest start-up weighs so much in the (exponential) mean.
const NEWEST_WEIGHT: f64 = 0.3;
/// The queue's least patience, and its multiple of the average start-up (Cloud Run, "About instance autoscaling").
const LEAST_PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_FACTOR: f64 = 3.5;
/// After a failed start the next one waits, twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);
/// The same after instances that did start and ended soon: below the queue's least patience, so that a request that finds
/// none waits and is not turned away for what others did.
const LONGEST_CRASH_BACKOFF: Duration = Duration::from_secs(4);
/// An instance that ends by itself after less than this counts as one that failed, from the second in a row on.
const LIVED: Duration = Duration::from_mins(1);
/// Starts within so long are one burst, remembered for so long.
const BURST: Duration = Duration::from_secs(10);
const BURST_MEMORY: Duration = Duration::from_mins(10);

/// The outcomes of one revision's starts.
#[derive(Debug, Default)]
pub(super) struct Startups {
    mean_seconds: Option<f64>,
    /// How long starts were wanted before the machine's governor let them begin, in the (exponential) mean.
    mean_wait_seconds: f64,
    /// Since when starts are wanted that have not begun, and how many, oldest first.
    wanted: VecDeque<(Tick, u32)>,
    /// Instances whose start has been counted, and since when they were ready.
    counted: BTreeMap<InstanceId, Timestamp>,
    /// Instances whose end has been counted.
    ended: BTreeSet<InstanceId>,
    /// When parked instances were let go: their start began then.
    released: BTreeMap<InstanceId, Timestamp>,
    /// Failures that those who wait are told.
    told: u64,
    failed_in_a_row: u32,
    /// Instances that ended soon after they were ready, one after the other.
    crashed_in_a_row: u32,
    retry_at: Tick,
    last_failure: Option<Arc<str>>,
    /// When starts were begun, and how many, oldest first.
    begun: VecDeque<(Tick, u32)>,
}

impl Startups {
    /// Counts each start's outcome once. `own` are the revision's instances, `port` is where they are to listen.
    pub(super) fn learn(&mut self, own: &BTreeMap<InstanceId, Instance>, port: u16, at: Timestamp, now: Tick) {
        self.counted.retain(|id, _| own.contains_key(id));
        self.ended.retain(|id| own.contains_key(id));
        self.released.retain(|id, _| own.contains_key(id));
        for (id, instance) in own {
            match &instance.state {
                InstanceState::Parked | InstanceState::Starting | InstanceState::Stopping => {}
                InstanceState::Ready | InstanceState::Unready => {
                    if !self.counted.contains_key(id) {
                        self.counted.insert(id.clone(), instance.since);
                        let began = self.released.get(id).copied().unwrap_or(instance.created);
                        self.succeeded(instance.since.since(began));
                    }
                    if self.crashed_in_a_row > 0 && at.since(self.counted[id]) >= LIVED {
                        self.crashed_in_a_row = 0;
                    }
                }
                InstanceState::Stopped(exit) => {
                    if exit.cause == ExitCause::Stopped || !self.ended.insert(id.clone()) {
                        continue;
                    }
                    let why = || -> Arc<str> { exit.failure(port).1.into() };
                    if exit.was_ready {
                        let ready = self.counted.get(id).or_else(|| self.released.get(id));
                        let lived = instance.since.since(ready.copied().unwrap_or(instance.created));
                        self.crashed(lived, why, now);
                    } else {
                        let by_container = !matches!(exit.cause, ExitCause::NotStarted(_));
                        self.failed(why(), by_container, now);
                    }
                }
            }
        }
    }

    /// So many more starts are wanted, and may begin as far as this revision goes.
    pub(super) fn want(&mut self, count: u32, now: Tick) {
        let known: u32 = self.wanted.iter().map(|(_, count)| count).sum();
        if count > known {
            self.wanted.push_back((now, count - known));
        }
        // Those that were wanted last are given up first.
        let mut surplus = known.saturating_sub(count);
        while let Some((_, last)) = self.wanted.back_mut().filter(|_| surplus > 0) {
            let fewer = surplus.min(*last);
            *last -= fewer;
            surplus -= fewer;
            if *last == 0 {
                self.wanted.pop_back();
            }
        }
    }

    /// A start is begun. Of one that was parked, which and when.
    pub(super) fn begin(&mut self, released: Option<(InstanceId, Timestamp)>, now: Tick) {
        self.released.extend(released);
        if let Some((since, count)) = self.wanted.front_mut() {
            let waited = now.since(*since).as_secs_f64();
            self.mean_wait_seconds += NEWEST_WEIGHT * (waited - self.mean_wait_seconds);
            *count -= 1;
            if *count == 0 {
                self.wanted.pop_front();
            }
        }
        match self.begun.back_mut() {
            Some((at, count)) if *at == now => *count += 1,
            Some(_) | None => self.begun.push_back((now, 1)),
        }
        self.drop_old(now);
    }

    fn drop_old(&mut self, now: Tick) {
        while let Some((at, _)) = self.begun.front()
            && now.since(*at) >= BURST_MEMORY
        {
            self.begun.pop_front();
        }
    }

    /// Most starts within ten seconds, in the last ten minutes.
    pub(super) fn burst(&mut self, now: Tick) -> u32 {
        self.drop_old(now);
        let (mut most, mut sum, mut first) = (0, 0, 0);
        for (at, count) in &self.begun {
            sum += count;
            while at.since(self.begun[first].0) >= BURST {
                sum -= self.begun[first].1;
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    /// How long ago the last start was begun.
    pub(super) fn last_begun(&self, now: Tick) -> Option<Duration> {
        self.begun.back().map(|(at, _)| now.since(*at))
    }

    fn succeeded(&mut self, took: Duration) {
        self.failed_in_a_row = 0;
        let took = took.as_secs_f64();
        let mean = self
            .mean_seconds
            .map_or(took, |mean| mean + NEWEST_WEIGHT * (took - mean));
        self.mean_seconds = Some(mean);
    }

    /// The first in a row that the container had no part in is not told: who waits gets the next one.
    fn failed(&mut self, why: Arc<str>, by_container: bool, now: Tick) {
        if by_container || self.failed_in_a_row > 0 {
            self.told += 1;
        }
        self.hold_off(self.failed_in_a_row, LONGEST_BACKOFF, now);
        self.failed_in_a_row += 1;
        self.last_failure = Some(why);
    }

    /// One that was ready ended by itself, `lived` after it was made. The first is replaced at once.
    fn crashed(&mut self, lived: Duration, why: impl Fn() -> Arc<str>, now: Tick) {
        if lived >= LIVED {
            self.crashed_in_a_row = 0;
            return;
        }
        self.crashed_in_a_row += 1;
        if self.crashed_in_a_row > 1 {
            self.hold_off(self.crashed_in_a_row - 2, LONGEST_CRASH_BACKOFF, now);
            self.last_failure = Some(why());
        }
    }

    fn hold_off(&mut self, times_before: u32, longest: Duration, now: Tick) {
        let backoff = FIRST_BACKOFF.saturating_mul(1 << times_before.min(6)).min(longest);
        let until = Tick(now.0 + u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX));
        self.retry_at = self.retry_at.max(until);
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

    /// The last starts failed, or the last instances ended soon after they were ready.
    pub(super) fn is_failing(&self) -> bool {
        self.failed_in_a_row > 0 || self.crashed_in_a_row > 1
    }

    /// How many failed starts those who wait are told of so far.
    pub(super) fn failures(&self) -> u64 {
        self.told
    }

    pub(super) fn last_failure(&self) -> Option<Arc<str>> {
        self.last_failure.clone()
    }

    /// How long a request may wait for a slot. To whoever waits a start takes from when it is wanted on, also while this
    /// machine is busy with others. One that never begins lengthens nothing.
    pub(super) fn patience(&self) -> Duration {
        let seconds = self.mean_seconds.unwrap_or(0.0) + self.mean_wait_seconds;
        LEAST_PATIENCE.max(Duration::from_secs_f64(seconds * PATIENCE_FACTOR))
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
    fn patience_grows_while_a_machine_starts_one_after_the_other() {
        let second = |second: u64| Tick(second * 1000);
        let mut startups = Startups::default();
        startups.want(3, second(0));
        // Nothing begins: there is no room, and who waits is told so in time.
        startups.want(3, second(9));
        assert_eq!(startups.patience().as_secs(), 10);
        startups.begin(None, second(9));
        startups.want(2, second(9));
        startups.begin(None, second(20));
        startups.want(1, second(20));
        // 0.3 of 9 s, and then 0.3 of what 20 s are more.
        assert_eq!(startups.patience(), Duration::from_secs_f64((2.7 + 0.3 * 17.3) * 3.5));
        // One is given up, and one is wanted anew.
        startups.want(0, second(21));
        startups.want(1, second(100));
        let before = startups.patience();
        startups.begin(None, second(100));
        assert!(startups.patience() < before, "it did not wait");
        assert!(startups.wanted.is_empty());
    }

    #[test]
    fn the_backoff_doubles_up_to_a_minute_and_ends_with_a_success() {
        let mut startups = Startups::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            startups.retry_at = Tick(0);
            startups.failed("boom".into(), true, Tick(0));
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

    #[test]
    fn one_failure_of_the_runtime_is_not_told() {
        let mut startups = Startups::default();
        startups.failed("no sandbox".into(), false, Tick(0));
        assert_eq!(startups.failures(), 0);
        assert_eq!(startups.allow(5, 0, Tick(1_000)), 1, "the next try");
        startups.failed("no sandbox".into(), false, Tick(1_000));
        assert_eq!(startups.failures(), 1);
        startups.succeeded(Duration::from_secs(1));
        startups.failed("no sandbox".into(), false, Tick(9_000));
        assert_eq!(startups.failures(), 1, "the first in a row again");
        startups.succeeded(Duration::from_secs(1));
        startups.failed("exit code 1".into(), true, Tick(9_000));
        assert_eq!(startups.failures(), 2);
    }

    #[test]
    fn one_crash_is_replaced_at_once_and_a_storm_is_damped() {
        let mut startups = Startups::default();
        let seconds = Duration::from_secs;
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..5 {
            startups.succeeded(seconds(1));
            startups.crashed(seconds(5), || "exit code 1".into(), Tick(now));
            waits.push(startups.retry_at.0.saturating_sub(now));
            now = now.max(startups.retry_at.0) + 1;
        }
        assert_eq!(waits, [0, 1_000, 2_000, 4_000, 4_000]);
        assert!(startups.is_failing());
        assert_eq!(startups.failures(), 0, "its starts did not fail");
        startups.crashed(seconds(61), || "exit code 1".into(), Tick(now));
        assert!(!startups.is_failing(), "that one lived for a minute");
    }

    #[test]
    fn a_burst_is_what_began_within_ten_seconds() {
        let mut startups = Startups::default();
        for (at, count) in [(0, 3), (5_000, 2), (14_000, 4), (300_000, 1)] {
            for _ in 0..count {
                startups.begin(None, Tick(at));
            }
        }
        assert_eq!(startups.burst(Tick(300_000)), 6);
        assert_eq!(startups.last_begun(Tick(301_000)), Some(Duration::from_secs(1)));
        assert_eq!(startups.burst(Tick(600_000)), 6);
        assert_eq!(startups.burst(Tick(614_001)), 1, "older than ten minutes");
    }
}
