//! How many instances a revision should have now: one function of what is asked, what is seen, and the last minute.
//!
//! Rules, as Cloud Run documents them ("About instance autoscaling", "Set minimum instances", "Manual scaling"):
//! - *on demand*: requests in flight and queued need so many instances at once, starting ones counted in;
//! - *by concurrency*: the mean over a minute of requests in flight and queued, aimed at 60 % of the concurrency (at
//!   concurrency 1 at 100 %, where 60 % would only waste);
//! - *by CPU*: the mean over a minute of the CPU that all instances use, aimed at 60 % of their limit, while there is
//!   an instance and was a request within the minute;
//! - never below the minimum, never above the maximum, never fewer than are busy;
//! - an instance without a request is kept for the idle retention, then given up, the longest idle first;
//! - *manual*: exactly so many, whatever is asked.
//!
//! An instance whose readiness probe fails counts as there, but gives no slot: it is replaced only when requests need it.

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use crate::decision::{Because, Decision};

/// Milliseconds on a monotonic clock that the caller chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl Tick {
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// What the owner asked for of one revision; see [`crate::bounds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Instances to keep even without requests; 0 for a revision that nothing reaches.
    pub min: u32,
    pub max: u32,
    /// Exactly so many, whatever is asked; `min` and `max` are not looked at then.
    pub manual: Option<u32>,
    /// Requests one instance takes at a time.
    pub concurrency: u32,
    /// CPU limit of one instance, thousandths.
    pub cpu_millis: u32,
}

/// What is seen at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observation {
    /// Requests on instances that take more.
    pub in_flight: u32,
    pub queued: u32,
    /// Requests that ended since the look before.
    pub served: u32,
    /// Instances being started.
    pub starting: u32,
    /// Instances that take requests.
    pub ready: u32,
    /// Instances that were ready and get no new request while their readiness probe fails.
    pub unready: u32,
    /// Of the ready ones, those with a request.
    pub busy: u32,
    /// Of the ready ones without a request, those idle for longer than the idle retention.
    pub expired: u32,
    /// What the ready ones use now, thousandths of a CPU, all together.
    pub cpu_millis: u32,
}

impl Observation {
    /// Instances that are there or on their way.
    pub fn alive(&self) -> u32 {
        self.ready + self.unready + self.starting
    }
}

/// The last minute in two numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Means {
    /// Requests in flight and queued, thousandths.
    pub requests_milli: u64,
    /// CPU that all ready instances used, thousandths.
    pub cpu_millis: u64,
    /// Whether there was a request at all.
    pub asked: bool,
}

/// What is remembered between decisions: the looks of each second of the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    seconds: VecDeque<Second>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Second {
    number: u64,
    /// Requests in flight and queued, summed over the observations of this second.
    requests: u64,
    cpu_millis: u64,
    observations: u32,
    asked: bool,
}

const WINDOW_SECONDS: u64 = 60;
/// What concurrency and CPU are aimed at ("About instance autoscaling").
const UTILIZATION_PERCENT: u64 = 60;

/// Decides. `means` are of the minute that ends with `seen`.
pub fn decide(bounds: &Bounds, means: Means, seen: &Observation) -> Decision {
    if let Some(instances) = bounds.manual {
        return Decision {
            instances,
            because: Because::Manual,
        };
    }
    let here = u64::from(seen.in_flight) + u64::from(seen.queued);
    let concurrency = u64::from(bounds.concurrency.max(1));
    let at_once = match narrow(here.div_ceil(concurrency)).max(seen.busy) {
        0 => 0,
        needed => needed + seen.unready,
    };
    let held = seen.alive().saturating_sub(seen.expired);
    // The mean alone neither starts the first instance nor keeps the last: only requests do.
    let by_means = held > 0 || here > 0;
    let instances = |wanted: u32, applies: bool| if applies { wanted } else { 0 };
    let by_cpu = by_means && seen.ready > 0 && means.asked;
    let (instances, because) = [
        (bounds.min, Because::Floor),
        (at_once, Because::Demand),
        (
            instances(by_concurrency(means, concurrency), by_means),
            Because::Average,
        ),
        (instances(by_cpu_use(means, bounds.cpu_millis), by_cpu), Because::Cpu),
        (held, Because::Holding),
    ]
    .into_iter()
    .fold(
        (0, Because::Idle),
        |best, next| {
            if next.0 > best.0 { next } else { best }
        },
    );
    if instances > bounds.max {
        Decision {
            instances: bounds.max,
            because: Because::Ceiling,
        }
    } else {
        Decision { instances, because }
    }
}

fn by_concurrency(means: Means, concurrency: u64) -> u32 {
    let utilization = if concurrency == 1 { 100 } else { UTILIZATION_PERCENT };
    narrow((means.requests_milli * 100).div_ceil(concurrency * utilization * 1000))
}

fn by_cpu_use(means: Means, limit_millis: u32) -> u32 {
    narrow((means.cpu_millis * 100).div_ceil(u64::from(limit_millis.max(1)) * UTILIZATION_PERCENT))
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Memory {
    /// Takes in a look, and says what the minute up to now was like.
    ///
    /// A second without a look counts as nothing: whoever decides looks at least once a second while there is anything
    /// to see. A second with many looks weighs as one.
    pub fn remember(&mut self, now: Tick, seen: &Observation) -> Means {
        let number = now.0 / 1000;
        while self
            .seconds
            .front()
            .is_some_and(|second| second.number + WINDOW_SECONDS <= number)
        {
            self.seconds.pop_front();
        }
        if self.seconds.back().is_none_or(|last| last.number < number) {
            self.seconds.push_back(Second {
                number,
                requests: 0,
                cpu_millis: 0,
                observations: 0,
                asked: false,
            });
        }
        let here = u64::from(seen.in_flight) + u64::from(seen.queued);
        if let Some(last) = self.seconds.back_mut() {
            last.requests += here;
            last.cpu_millis += u64::from(seen.cpu_millis);
            last.observations += 1;
            last.asked |= here > 0 || seen.served > 0;
        }
        let mean = |of: fn(&Second) -> u64, unit: u64| {
            let sum: u64 = self
                .seconds
                .iter()
                .map(|second| of(second) * unit / u64::from(second.observations.max(1)))
                .sum();
            sum / WINDOW_SECONDS
        };
        Means {
            requests_milli: mean(|second| second.requests, 1000),
            cpu_millis: mean(|second| second.cpu_millis, 1),
            asked: self.seconds.iter().any(|second| second.asked),
        }
    }
}
