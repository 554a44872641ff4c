//! How many instances a revision should have now: one function of what is asked, what is seen, and the time.
//!
//! Rules, as Cloud Run documents them ("About instance autoscaling"):
//! - *on demand*: requests in flight and queued need so many instances at once, starting ones counted in;
//! - *by concurrency*: the mean over a minute of requests in flight and queued, aimed at 60 % of the concurrency (at
//!   concurrency 1 at 100 %, where 60 % would only waste);
//! - never below the minimum, never above the maximum, never fewer than are busy;
//! - an instance without a request is kept for the idle retention, then given up, the longest idle first.

use std::time::Duration;

/// Milliseconds on a monotonic clock that the caller chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl Tick {
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// What the owner asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Instances to keep even without requests; 0 for a revision that nothing reaches.
    pub min: u32,
    pub max: u32,
    /// Requests one instance takes at a time.
    pub concurrency: u32,
}

/// What is seen at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observation {
    pub in_flight: u32,
    pub queued: u32,
    /// Instances being started.
    pub starting: u32,
    /// Instances that take requests.
    pub ready: u32,
    /// Of the ready ones, those with a request.
    pub busy: u32,
    /// Of the ready ones without a request, those idle for longer than the idle retention.
    pub expired: u32,
}

/// What is remembered between decisions: one sum per second of the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    seconds: Vec<Second>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Second {
    number: u64,
    /// Requests in flight and queued, summed over the observations of this second.
    sum: u64,
    observations: u32,
}

/// How many instances there should be, and the rule that said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub instances: u32,
    pub because: Because,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The minimum asked for.
    Floor,
    /// The requests that are here now.
    Demand,
    /// The mean of the last minute.
    Average,
    /// More are wanted than the maximum allows.
    Ceiling,
    /// Instances that have been idle for less than the retention stay.
    Holding,
    /// Nothing is asked and nothing is held.
    Idle,
}

const WINDOW_SECONDS: u64 = 60;
const UTILIZATION_PERCENT: u64 = 60;

/// Decides. The memory that comes back is the one to pass next time.
pub fn decide(bounds: &Bounds, mut memory: Memory, seen: Observation, now: Tick) -> (Memory, Decision) {
    let wanted_by = u64::from(seen.in_flight) + u64::from(seen.queued);
    memory.remember(now, wanted_by);
    let concurrency = u64::from(bounds.concurrency.max(1));
    let at_once = u32::try_from(wanted_by.div_ceil(concurrency))
        .unwrap_or(u32::MAX)
        .max(seen.busy);
    let average = memory.wanted(concurrency);
    let held = (seen.ready + seen.starting).saturating_sub(seen.expired);
    let (instances, because) = [
        (bounds.min, Because::Floor),
        (at_once, Because::Demand),
        // The mean alone neither starts the first instance nor keeps the last: only requests do.
        (if held > 0 || wanted_by > 0 { average } else { 0 }, Because::Average),
        (held, Because::Holding),
    ]
    .into_iter()
    .fold(
        (0, Because::Idle),
        |best, next| {
            if next.0 > best.0 { next } else { best }
        },
    );
    let decision = if instances > bounds.max {
        Decision {
            instances: bounds.max,
            because: Because::Ceiling,
        }
    } else {
        Decision { instances, because }
    };
    (memory, decision)
}

impl Memory {
    fn remember(&mut self, now: Tick, wanted: u64) {
        let number = now.0 / 1000;
        self.seconds.retain(|second| second.number + WINDOW_SECONDS > number);
        match self.seconds.last_mut() {
            Some(last) if last.number >= number => {
                last.sum += wanted;
                last.observations += 1;
            }
            _ => self.seconds.push(Second {
                number,
                sum: wanted,
                observations: 1,
            }),
        }
    }

    /// Instances by the mean concurrency. A second without an observation counts as the last one before it would: it is
    /// left out, since whoever decides looks at least once a second while there is anything to see.
    fn wanted(&self, concurrency: u64) -> u32 {
        // In thousandths of a request, each second's mean first, so that a second with many looks weighs no more.
        let mean: u64 = self
            .seconds
            .iter()
            .map(|second| second.sum * 1000 / u64::from(second.observations.max(1)))
            .sum::<u64>()
            / WINDOW_SECONDS;
        let utilization = if concurrency == 1 { 100 } else { UTILIZATION_PERCENT };
        u32::try_from((mean * 100).div_ceil(concurrency * utilization * 1000)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(concurrency: u32) -> Bounds {
        Bounds {
            min: 0,
            max: 100,
            concurrency,
        }
    }

    fn once(bounds: &Bounds, seen: Observation) -> Decision {
        decide(bounds, Memory::default(), seen, Tick(0)).1
    }

    #[test]
    fn eighty_one_requests_at_eighty_need_two() {
        for (requests, instances) in [(0, 0), (1, 1), (80, 1), (81, 2), (160, 2), (161, 3)] {
            let seen = Observation {
                queued: requests,
                ..Default::default()
            };
            assert_eq!(once(&bounds(80), seen).instances, instances, "{requests}");
        }
    }

    #[test]
    fn bounds_hold() {
        let busy = Observation {
            in_flight: 500,
            ready: 10,
            busy: 10,
            ..Default::default()
        };
        let narrow = Bounds { max: 10, ..bounds(1) };
        assert_eq!(
            once(&narrow, busy),
            Decision {
                instances: 10,
                because: Because::Ceiling
            }
        );
        let warm = Bounds { min: 2, ..bounds(80) };
        assert_eq!(
            once(&warm, Observation::default()),
            Decision {
                instances: 2,
                because: Because::Floor
            }
        );
    }

    #[test]
    fn idle_ones_are_held_until_expired() {
        let idle = Observation {
            ready: 3,
            ..Default::default()
        };
        assert_eq!(
            once(&bounds(80), idle),
            Decision {
                instances: 3,
                because: Because::Holding
            }
        );
        let one_gone = Observation { expired: 1, ..idle };
        assert_eq!(once(&bounds(80), one_gone).instances, 2);
        let all_gone = Observation { expired: 3, ..idle };
        assert_eq!(
            once(&bounds(80), all_gone),
            Decision {
                instances: 0,
                because: Because::Idle
            }
        );
    }

    #[test]
    fn a_busy_minute_aims_at_sixty_percent() {
        let mut memory = Memory::default();
        let seen = Observation {
            in_flight: 72,
            ready: 1,
            busy: 1,
            ..Default::default()
        };
        let mut decision = None;
        for second in 0..120 {
            let (next, made) = decide(&bounds(80), memory, seen, Tick(second * 1000));
            memory = next;
            decision = Some(made);
        }
        // 72 in flight on average fit one instance of 80, but are more than 60 % of it.
        assert_eq!(
            decision,
            Some(Decision {
                instances: 2,
                because: Because::Average
            })
        );
    }

    #[test]
    fn many_looks_in_one_second_weigh_as_one() {
        let seen = Observation {
            in_flight: 80,
            ready: 1,
            busy: 1,
            ..Default::default()
        };
        let mut memory = Memory::default();
        for look in 0..500 {
            memory = decide(&bounds(80), memory, seen, Tick(look)).0;
        }
        assert_eq!(memory.wanted(80), 1, "one second of 80 in a minute is little");
    }

    proptest! {
        #[test]
        fn never_outside_the_bounds(
            min in 0_u32..5, extra in 0_u32..20, concurrency in 1_u32..100,
            looks in prop::collection::vec((0_u32..200, 0_u32..200, 0_u32..10, 0_u32..10, 0_u64..5000), 1..50),
        ) {
            let max = (min + extra).max(1);
            let bounds = Bounds { min, max, concurrency };
            let mut memory = Memory::default();
            let mut now = 0;
            for (in_flight, queued, starting, ready, step) in looks {
                now += step;
                let seen = Observation { in_flight, queued, starting, ready, busy: ready.min(in_flight), expired: 0 };
                let (next, decision) = decide(&bounds, memory, seen, Tick(now));
                memory = next;
                prop_assert!(decision.instances >= min && decision.instances <= max);
                if in_flight + queued > 0 {
                    prop_assert!(decision.instances >= 1);
                }
                prop_assert!(memory.seconds.len() <= 60);
            }
        }
    }
}
