//! How many parked sandboxes each revision keeps: made, but without a running program, so that the next start need only
//! let it go.
//!
//! A revision that may be called (traffic or a tag leads there, it is ready, and it has room below its maximum) keeps
//! one for the next call, and as many more as its greatest burst of the last ten minutes started at once. They are made
//! behind a burst, never during one, and never while anything else starts. They are given up one rung before running
//! instances: all of them under memory pressure, those of a revision that nobody has called for a day, and beyond the
//! bound of all together those of the revisions called longest ago.

use std::{cmp::Reverse, time::Duration};

use model::Room;

use crate::machine::{Pressure, reserve};

/// What a parked sandbox takes, with what the kernel keeps for it; measured 0.2 to 0.4 MiB.
const COST: u64 = 1 << 20;
/// Most of all revisions together, when nothing else is said; and never more than a sixty-fourth of the machine's memory
/// holds.
pub const MOST: u32 = 256;
/// Most of one revision for each CPU.
const BURST_PER_CPU: u32 = 8;
/// Nobody called for so long: none.
const UNCALLED: Duration = Duration::from_hours(24);
/// The last start must be so long ago before any is made.
const QUIET: Duration = Duration::from_secs(2);

/// What is known of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// It is ready, and traffic or a tag leads to it.
    pub callable: bool,
    /// Instances it may still have.
    pub below_max: u32,
    /// How long ago the last request came, or it became ready.
    pub called: Duration,
    /// How long ago one of its instances was started last.
    pub started: Option<Duration>,
    /// Most starts within ten seconds, in the last ten minutes.
    pub burst: u32,
    /// Requests wait, or instances start.
    pub bursting: bool,
    pub parked: u32,
    /// Starts of it failed last: a sandbox in reserve would not help.
    pub failing: bool,
}

/// How many parked ones a revision is to have, and how many of them to make now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parking {
    pub keep: u32,
    pub make: u32,
}

/// Decides for all revisions at once. `quiet`: nothing starts anywhere. `most`: of all revisions together.
pub fn decide(candidates: &[Candidate], most: u32, room: &Room, pressure: Pressure, quiet: bool) -> Vec<Parking> {
    let mut decided = vec![Parking::default(); candidates.len()];
    if pressure != Pressure::Calm {
        return decided;
    }
    let parked: u64 = candidates.iter().map(|candidate| u64::from(candidate.parked)).sum();
    // What they take already is not available any more: it counts with what is.
    let spare = (room.memory_bytes + parked * COST).saturating_sub(2 * reserve(room.memory_total_bytes));
    let mut left = u64::from(most)
        .min(room.memory_total_bytes / 64 / COST)
        .min(spare / 8 / COST);
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|index| (candidates[*index].called, Reverse(candidates[*index].parked)));
    let wish = |candidate: &Candidate| {
        if !candidate.callable || candidate.failing || candidate.called >= UNCALLED {
            return 0;
        }
        let burst = candidate.burst.min(room.cpus.max(1) * BURST_PER_CPU);
        burst.max(1).min(candidate.below_max)
    };
    // One for each first, then what bursts ask for.
    for round in [1, u32::MAX] {
        for index in &order {
            let wished = wish(&candidates[*index]).min(round) - decided[*index].keep.min(round);
            let given = u32::try_from(left).unwrap_or(u32::MAX).min(wished);
            decided[*index].keep += given;
            left -= u64::from(given);
        }
    }
    for (candidate, parking) in candidates.iter().zip(&mut decided) {
        let calm = quiet && !candidate.bursting && candidate.started.is_none_or(|ago| ago >= QUIET);
        if calm {
            parking.make = parking.keep.saturating_sub(candidate.parked);
        } else {
            // During a burst nothing is taken back either: what is parked is about to be used.
            parking.keep = parking.keep.max(if candidate.callable { candidate.parked } else { 0 });
        }
    }
    decided
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::tests::room;

    fn candidate() -> Candidate {
        Candidate {
            callable: true,
            below_max: 100,
            called: Duration::from_mins(1),
            started: Some(Duration::from_mins(1)),
            burst: 0,
            bursting: false,
            parked: 0,
            failing: false,
        }
    }

    fn one(candidate: Candidate, pressure: Pressure, quiet: bool) -> (u32, u32) {
        let decided = decide(&[candidate], MOST, &room(3000), pressure, quiet);
        (decided[0].keep, decided[0].make)
    }

    #[test]
    fn table() {
        let with = |change: fn(&mut Candidate)| {
            let mut made = candidate();
            change(&mut made);
            one(made, Pressure::Calm, true)
        };
        assert_eq!(with(|_| {}), (1, 1));
        assert_eq!(with(|c| c.callable = false), (0, 0), "no traffic and no tag");
        assert_eq!(with(|c| c.burst = 5), (5, 5));
        assert_eq!(with(|c| c.burst = 500), (16, 16), "8 for each of two CPUs");
        assert_eq!(with(|c| (c.burst, c.below_max) = (5, 2)), (2, 2));
        assert_eq!(with(|c| c.below_max = 0), (0, 0), "at its maximum");
        assert_eq!(with(|c| (c.burst, c.parked) = (5, 3)), (5, 2));
        assert_eq!(with(|c| c.failing = true), (0, 0));
        assert_eq!(with(|c| c.called = Duration::from_hours(25)), (0, 0));
        assert_eq!(with(|c| c.started = Some(Duration::from_secs(1))), (1, 0), "not yet");
        assert_eq!(
            with(|c| (c.bursting, c.burst, c.parked) = (true, 2, 4)),
            (4, 0),
            "nothing is made or given up during a burst"
        );
        assert_eq!(one(candidate(), Pressure::Calm, false), (1, 0), "something else starts");
        for pressed in [Pressure::Tight, Pressure::Scarce] {
            let mut parked = candidate();
            parked.parked = 3;
            assert_eq!(one(parked, pressed, true), (0, 0), "given up");
        }
    }

    #[test]
    fn the_bound_goes_to_those_called_last() {
        let many: Vec<Candidate> = (0..400)
            .map(|index| Candidate {
                called: Duration::from_secs(400 - index),
                burst: 3,
                ..candidate()
            })
            .collect();
        let large = Room {
            memory_total_bytes: 24 << 30,
            memory_bytes: 20 << 30,
            ..room(0)
        };
        let decided = decide(&many, MOST, &large, Pressure::Calm, true);
        let kept: Vec<u32> = decided.iter().map(|parking| parking.keep).collect();
        assert_eq!(kept.iter().sum::<u32>(), 256);
        assert!(kept[..144].iter().all(|keep| *keep == 0), "called longest ago");
        assert!(
            kept[144..].iter().all(|keep| *keep == 1),
            "one for each before more for some"
        );
    }

    proptest! {
        #[test]
        fn never_memory_that_is_not_there(
            available in 0_u64..4000, bursts in prop::collection::vec((0_u32..30, 0_u32..5), 1..300),
        ) {
            let candidates: Vec<Candidate> = bursts.into_iter()
                .map(|(burst, parked)| Candidate { burst, parked, ..candidate() }).collect();
            let decided = decide(&candidates, MOST, &room(available), Pressure::Calm, true);
            let made: u64 = decided.iter().map(|parking| u64::from(parking.make)).sum();
            let kept: u64 = decided.iter().map(|parking| u64::from(parking.keep)).sum();
            let parked: u64 = candidates.iter().map(|candidate| u64::from(candidate.parked)).sum();
            prop_assert!(kept <= 62, "a sixty-fourth of 4000 MiB");
            let growth = kept.saturating_sub(parked) * COST;
            prop_assert!(growth <= room(available).memory_bytes.saturating_sub(2 * reserve(4000 << 20)) || growth == 0);
            prop_assert!(made <= kept);
        }
    }
}
