//! The idle ladder: busy, throttled, reclaimed, stopped.
//!
//! What an instance without a request goes through the longer it is idle. Throttling (its CPU is taken) follows its last
//! request by itself, a moment later, in the engine; here is decided when its cold memory is pushed out, and which are
//! stopped before their retention is over because memory is short. A WebSocket or a stream is a request until it ends,
//! so an instance that has one is busy.

use std::time::Duration;

use model::CpuAllocation;

use crate::machine::Pressure;

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// It has a request, or its CPU always.
    Busy,
    /// Its CPU is taken.
    Throttled,
    /// Its cold memory is pushed out where the kernel can.
    Reclaimed,
    /// Idle for the retention: given up, unless the minimum keeps it.
    Stopped,
}

/// Idle for so long, memory is pushed out.
const RECLAIM_CALM: Duration = Duration::from_mins(5);
const RECLAIM_TIGHT: Duration = Duration::from_secs(30);
const RECLAIM_SCARCE: Duration = Duration::from_secs(5);
/// Under pressure instances may be stopped once they have been idle for so long, whatever the retention is.
const EARLIEST_STOP: Duration = Duration::from_secs(10);

/// Where an instance that has had no request for `idle` belongs; None: it has one.
pub fn rung(idle: Option<Duration>, allocation: CpuAllocation, pressure: Pressure, retention: Duration) -> Rung {
    let Some(idle) = idle else {
        return Rung::Busy;
    };
    let reclaim = match pressure {
        Pressure::Calm => RECLAIM_CALM,
        Pressure::Tight => RECLAIM_TIGHT,
        Pressure::Scarce => RECLAIM_SCARCE,
    };
    match allocation {
        _ if idle >= retention => Rung::Stopped,
        // Its program runs on: nothing of its memory is known to be cold.
        CpuAllocation::Instance => Rung::Busy,
        CpuAllocation::Request if idle >= reclaim => Rung::Reclaimed,
        CpuAllocation::Request => Rung::Throttled,
    }
}

/// An idle instance that could be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    pub idle: Duration,
    /// What its end frees, bytes.
    pub memory: u64,
    /// Which revision it is of: an index into the spare ones.
    pub revision: usize,
}

/// Which of `idle` are stopped before their retention is over, to free `shortage` bytes: the longest idle first, of each
/// revision no more than it can spare beside its minimum. Indices into `idle`.
pub fn early(idle: &[Idle], spare: &[u32], shortage: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..idle.len())
        .filter(|index| idle[*index].idle >= EARLIEST_STOP)
        .collect();
    order.sort_by_key(|index| std::cmp::Reverse(idle[*index].idle));
    let mut spare = spare.to_vec();
    let mut freed = 0_u64;
    let mut chosen = Vec::new();
    for index in order {
        if freed >= shortage {
            break;
        }
        let left = &mut spare[idle[index].revision];
        if *left == 0 {
            continue;
        }
        *left -= 1;
        freed = freed.saturating_add(idle[index].memory.max(1));
        chosen.push(index);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RETENTION: Duration = Duration::from_mins(15);

    #[test]
    fn rungs() {
        let seconds = Duration::from_secs;
        for (idle, allocation, pressure, expected) in [
            (None, CpuAllocation::Request, Pressure::Scarce, Rung::Busy),
            (Some(0), CpuAllocation::Request, Pressure::Calm, Rung::Throttled),
            (Some(299), CpuAllocation::Request, Pressure::Calm, Rung::Throttled),
            (Some(300), CpuAllocation::Request, Pressure::Calm, Rung::Reclaimed),
            (Some(30), CpuAllocation::Request, Pressure::Tight, Rung::Reclaimed),
            (Some(5), CpuAllocation::Request, Pressure::Scarce, Rung::Reclaimed),
            (Some(899), CpuAllocation::Instance, Pressure::Scarce, Rung::Busy),
            (Some(900), CpuAllocation::Instance, Pressure::Calm, Rung::Stopped),
            (Some(900), CpuAllocation::Request, Pressure::Calm, Rung::Stopped),
        ] {
            assert_eq!(
                rung(idle.map(seconds), allocation, pressure, RETENTION),
                expected,
                "{idle:?} {allocation:?} {pressure:?}"
            );
        }
    }

    fn idle(seconds: u64, mib: u64, revision: usize) -> Idle {
        Idle {
            idle: Duration::from_secs(seconds),
            memory: mib << 20,
            revision,
        }
    }

    #[test]
    fn the_longest_idle_first_and_no_more_than_needed() {
        let there = [idle(20, 50, 0), idle(100, 50, 1), idle(5, 500, 0), idle(60, 50, 1)];
        assert_eq!(early(&there, &[9, 9], 60 << 20), [1, 3]);
        assert_eq!(early(&there, &[9, 9], 1), [1]);
        assert_eq!(early(&there, &[9, 0], 60 << 20), [0], "the minimum of the other stays");
        assert_eq!(early(&there, &[9, 1], u64::MAX), [1, 0], "5 s are too short");
        assert_eq!(early(&there, &[9, 9], 0), [0_usize; 0]);
    }

    proptest! {
        #[test]
        fn never_below_what_must_stay(
            there in prop::collection::vec((0_u64..1000, 0_u64..100, 0_usize..5), 0..60),
            spare in prop::collection::vec(0_u32..10, 5), shortage in 0_u64..10_000,
        ) {
            let there: Vec<Idle> = there.into_iter().map(|(s, m, r)| idle(s, m, r)).collect();
            let chosen = early(&there, &spare, shortage << 20);
            for (revision, spare) in spare.iter().enumerate() {
                let of = chosen.iter().filter(|index| there[**index].revision == revision).count();
                prop_assert!(of <= *spare as usize);
            }
            let freed: u64 = chosen.iter().map(|index| there[*index].memory).sum();
            if let Some(last) = chosen.last() {
                prop_assert!(freed - there[*last].memory < shortage << 20);
            }
        }
    }
}
