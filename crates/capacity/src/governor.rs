//! Which starts are admitted now, so that the machine is never run into the ground.
//!
//! Limits of instances say nothing of what they use: a thousand small servers of 512 MiB each fit into 4 GiB. So starts
//! are admitted by what is seen:
//! - *memory*: what the kernel could give now, less the reserve, less what the instances under way will still take, must
//!   hold what one more is expected to take (what its revision's instances take, as measured);
//! - *CPU*: so many starts may be under way at a time as the machine finishes: a few for each CPU, more while the CPUs
//!   are not waited for, and twice as many as have finished within the last second. Many that start quickly raise their
//!   own limit; many that take long do not, and are not started all at once;
//! - under *memory pressure* only what requests wait for is started, and when memory is scarce nothing.
//!
//! What is not admitted waits, and is asked for again at the next turn. Fair: whoever has the fewest starts under way is
//! next, among equals who has waited longest, so that no burst of one revision keeps another from its first instance.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fmt,
    time::Duration,
};

use model::{RevisionKey, Room};

use crate::{
    autoscaler::Tick,
    machine::{Pressure, reserve},
};

/// Starts under way for each CPU, whatever else is seen.
const BASE_PER_CPU: u32 = 8;
/// While starts are held back and the CPUs are not waited for, the limit grows by as many as it is again, each:
const RAMP: Duration = Duration::from_millis(250);
/// Most for each CPU that the ramp adds.
const RAMP_PER_CPU: u32 = 128;
/// Somebody waited for a CPU for so much of the time: below, the ramp grows; above, it is gone. Percent.
const CPU_FREE: u8 = 50;
const CPU_BUSY: u8 = 80;
/// Finished starts of so long count twice.
const RECENT: Duration = Duration::from_secs(1);

/// More instances that a revision wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    pub revision: RevisionKey,
    pub count: u32,
    /// Of this revision, under way.
    pub starting: u32,
    /// Requests wait for them.
    pub waiting: bool,
    /// Since when it wants more than it gets.
    pub since: Tick,
    /// Memory that one of them is expected to take, bytes.
    pub need: u64,
}

/// What the governor remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// When starts finished, and how many.
    finished: VecDeque<(Tick, u32)>,
    ramp: u32,
    ramped: Tick,
}

/// What is under way on the whole machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnderWay {
    pub starting: u32,
    /// Memory that those which start are expected to take, bytes, all together.
    pub promised: u64,
    /// Starts that finished since the last time this was asked.
    pub finished: u32,
}

/// Why a start has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Less than nothing would be left beside the reserve.
    Memory {
        available: u64,
        reserve: u64,
        promised: u64,
        need: u64,
    },
    /// Memory is pressed, and no request waits for this one, or it is scarce.
    Pressure(Pressure),
    /// So many starts are under way, and no more may be.
    Starts { under_way: u32, limit: u32 },
}

impl Held {
    pub fn word(self) -> &'static str {
        match self {
            Self::Memory { .. } => "memory",
            Self::Pressure(_) => "pressure",
            Self::Starts { .. } => "starts",
        }
    }

    /// It lasts until memory is free, not only until other starts are done.
    pub fn is_for_memory(self) -> bool {
        match self {
            Self::Memory { .. } | Self::Pressure(_) => true,
            Self::Starts { .. } => false,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory {
                available,
                reserve,
                promised,
                need,
            } => write!(
                f,
                "another instance needs {} MiB, but of {} MiB of memory {} MiB are kept back and {} MiB are for instances that start",
                need >> 20,
                available >> 20,
                reserve >> 20,
                promised >> 20,
            ),
            Self::Pressure(pressure) => write!(f, "memory is {}", pressure.word()),
            Self::Starts { under_way, limit } => {
                write!(f, "{under_way} instances are being started, at most {limit} at a time")
            }
        }
    }
}

/// What came of the wants, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub revision: RevisionKey,
    pub admitted: u32,
    /// Why the rest waits, if there is a rest.
    pub held: Option<Held>,
}

/// Admits starts. The memory that comes back is the one to pass next time.
pub fn admit(
    mut memory: Memory,
    room: &Room,
    pressure: Pressure,
    under_way: UnderWay,
    wants: &[Want],
    now: Tick,
) -> (Memory, Vec<Verdict>) {
    let limit = memory.limit(room, under_way.finished, now);
    let reserve = reserve(room.memory_total_bytes);
    let mut starting = under_way.starting;
    let mut promised = under_way.promised;
    let mut admitted = vec![0; wants.len()];
    let mut held: Vec<Option<Held>> = vec![None; wants.len()];
    let mut line: BinaryHeap<Reverse<(u32, Tick, usize)>> = BinaryHeap::with_capacity(wants.len());
    for (index, want) in wants.iter().enumerate() {
        if want.count > 0 {
            line.push(Reverse((want.starting, want.since, index)));
        }
    }
    let mut short = false;
    while let Some(Reverse((own, since, index))) = line.pop() {
        let want = &wants[index];
        let pressed = match pressure {
            Pressure::Calm => false,
            Pressure::Tight => !want.waiting,
            Pressure::Scarce => true,
        };
        let taken = reserve.saturating_add(promised).saturating_add(want.need);
        if pressed {
            held[index] = Some(Held::Pressure(pressure));
        } else if room.memory_bytes < taken {
            held[index] = Some(Held::Memory {
                available: room.memory_bytes,
                reserve,
                promised,
                need: want.need,
            });
        } else if starting >= limit {
            held[index] = Some(Held::Starts {
                under_way: starting,
                limit,
            });
            short = true;
        } else {
            admitted[index] += 1;
            starting += 1;
            promised += want.need;
            if admitted[index] < want.count {
                line.push(Reverse((own + 1, since, index)));
            }
        }
    }
    memory.ramp(room, short, now);
    let verdicts = wants.iter().enumerate().map(|(index, want)| Verdict {
        revision: want.revision.clone(),
        admitted: admitted[index],
        held: held[index],
    });
    (memory, verdicts.collect())
}

impl Memory {
    /// How many starts may be under way.
    fn limit(&mut self, room: &Room, finished: u32, now: Tick) -> u32 {
        if finished > 0 {
            self.finished.push_back((now, finished));
        }
        while let Some((at, _)) = self.finished.front()
            && now.since(*at) >= RECENT
        {
            self.finished.pop_front();
        }
        let recent: u32 = self.finished.iter().map(|(_, count)| *count).sum();
        base(room) + 2 * recent + self.ramp
    }

    fn ramp(&mut self, room: &Room, short: bool, now: Tick) {
        if room.cpu_stalled >= CPU_BUSY {
            self.ramp = 0;
        } else if short && room.cpu_stalled < CPU_FREE && now.since(self.ramped) >= RAMP {
            let most = room.cpus.max(1) * RAMP_PER_CPU;
            self.ramp = (self.ramp * 2 + base(room)).min(most);
            self.ramped = now;
        }
    }
}

fn base(room: &Room) -> u32 {
    room.cpus.max(1) * BASE_PER_CPU
}

#[cfg(test)]
mod tests {
    use model::{Region, RevisionName, ServiceKey, ServiceName};
    use proptest::prelude::*;

    use super::*;
    use crate::machine::tests::room;

    fn key(name: &str) -> RevisionKey {
        RevisionKey {
            service: ServiceKey {
                region: Region::parse("us-central1").expect("a region"),
                name: ServiceName::parse(name).expect("a name"),
            },
            name: RevisionName::parse(&format!("{name}-1")).expect("a name"),
        }
    }

    fn want(name: &str, count: u32) -> Want {
        Want {
            revision: key(name),
            count,
            starting: 0,
            waiting: true,
            since: Tick(0),
            need: 4 << 20,
        }
    }

    fn once(room: &Room, pressure: Pressure, starting: u32, wants: &[Want]) -> Vec<(u32, Option<&'static str>)> {
        let under_way = UnderWay {
            starting,
            promised: u64::from(starting) * (4 << 20),
            finished: 0,
        };
        let (_, verdicts) = admit(Memory::default(), room, pressure, under_way, wants, Tick(0));
        verdicts
            .iter()
            .map(|verdict| (verdict.admitted, verdict.held.map(Held::word)))
            .collect()
    }

    #[test]
    fn a_burst_does_not_keep_another_from_its_first_instance() {
        let wants = [want("a", 1000), want("b", 1), want("c", 2)];
        let free = once(&room(3000), Pressure::Calm, 0, &wants);
        assert_eq!(free, [(13, Some("starts")), (1, None), (2, None)]);
        let mut running = want("a", 1000);
        running.starting = 15;
        let last = once(&room(3000), Pressure::Calm, 15, &[running, want("b", 1)]);
        assert_eq!(last, [(0, Some("starts")), (1, None)]);
    }

    #[test]
    fn memory_counts_what_is_under_way_and_the_reserve() {
        // 200 MiB are kept back: 100 MiB hold three of 32 MiB, whatever else is free.
        let mut big = want("a", 9);
        big.need = 32 << 20;
        assert_eq!(
            once(&room(300), Pressure::Calm, 0, std::slice::from_ref(&big)),
            [(3, Some("memory"))]
        );
        assert_eq!(
            once(&room(300), Pressure::Calm, 10, &[big.clone()]),
            [(1, Some("memory"))],
            "ten under way take 40 of them"
        );
        let small = want("b", 2);
        assert_eq!(
            once(&room(235), Pressure::Calm, 0, &[big, small]),
            [(1, Some("memory")), (0, Some("memory"))],
            "what is left is nobody's"
        );
    }

    #[test]
    fn pressure_lets_only_those_start_that_are_waited_for() {
        let mut minimum = want("a", 1);
        minimum.waiting = false;
        let wants = [minimum, want("b", 1)];
        let tight = once(&room(3000), Pressure::Tight, 0, &wants);
        assert_eq!(tight, [(0, Some("pressure")), (1, None)]);
        let scarce = once(&room(3000), Pressure::Scarce, 0, &wants);
        assert_eq!(scarce, [(0, Some("pressure")), (0, Some("pressure"))]);
    }

    /// Starts that take so many milliseconds on two CPUs that are busy or not: when the last of 1,000 is ready.
    fn burst(takes: u64, cpu_stalled: u8) -> (u64, u32) {
        let room = Room {
            cpu_stalled,
            ..room(3900)
        };
        let mut memory = Memory::default();
        let mut running: Vec<u64> = Vec::new();
        let (mut left, mut now, mut most) = (1000, 0, 0);
        while left > 0 || !running.is_empty() {
            let before = running.len();
            running.retain(|ready| *ready > now);
            let starting = u32::try_from(running.len()).expect("few");
            let mut want = want("a", left);
            want.starting = starting;
            want.need = 2 << 20;
            let under_way = UnderWay {
                starting,
                promised: u64::from(starting) * want.need,
                finished: u32::try_from(before - running.len()).expect("few"),
            };
            let (next, verdicts) = admit(memory, &room, Pressure::Calm, under_way, &[want], Tick(now));
            memory = next;
            left -= verdicts[0].admitted;
            running.extend((0..verdicts[0].admitted).map(|_| now + takes));
            most = most.max(u32::try_from(running.len()).expect("few"));
            now += 10;
        }
        (now, most)
    }

    #[test]
    fn quick_starts_raise_their_own_limit_and_slow_ones_do_not() {
        let (took, _) = burst(20, 90);
        assert!(took <= 1000, "small servers on busy CPUs: {took} ms");
        let (took, _) = burst(20, 0);
        assert!(took <= 700, "on free CPUs: {took} ms");
        let (took, most) = burst(5000, 0);
        assert!(took <= 40_000, "starts that only wait, on free CPUs: {took} ms");
        assert!(most > 200, "{most}");
        let mut slow = want("a", 1000);
        slow.starting = 16;
        let under_way = UnderWay {
            starting: 16,
            ..UnderWay::default()
        };
        let busy = Room {
            cpu_stalled: 95,
            ..room(3900)
        };
        let (mut memory, mut admitted) = (Memory::default(), 0);
        for second in 0..60 {
            let wants = std::slice::from_ref(&slow);
            let (next, verdicts) = admit(memory, &busy, Pressure::Calm, under_way, wants, Tick(second * 1000));
            memory = next;
            admitted += verdicts[0].admitted;
        }
        assert_eq!(admitted, 0, "none of the sixteen is ready, and the CPUs are waited for");
    }

    proptest! {
        #[test]
        fn never_more_than_fits(
            available in 0_u64..4000, starting in 0_u32..40,
            wants in prop::collection::vec((0_u32..50, 1_u64..600, any::<bool>()), 1..20),
        ) {
            let room = room(available);
            let wants: Vec<Want> = wants.into_iter().enumerate().map(|(index, (count, need, waiting))| Want {
                count, need: need << 20, waiting, ..want(&format!("s{index}"), 0)
            }).collect();
            let under_way = UnderWay { starting, promised: u64::from(starting) << 20, finished: 0 };
            let (_, verdicts) = admit(Memory::default(), &room, Pressure::Calm, under_way, &wants, Tick(0));
            let taken: u64 = verdicts.iter().zip(&wants).map(|(v, w)| u64::from(v.admitted) * w.need).sum();
            if taken > 0 {
                prop_assert!(taken + under_way.promised + reserve(room.memory_total_bytes) <= room.memory_bytes);
            }
            for (verdict, want) in verdicts.iter().zip(&wants) {
                prop_assert!(verdict.admitted <= want.count);
                prop_assert_eq!(verdict.held.is_some(), verdict.admitted < want.count);
            }
        }
    }
}
