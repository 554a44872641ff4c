//! The rules of the pool: by example, and under random events against an oracle.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::Endpoint;

fn id(number: u8) -> InstanceId {
    InstanceId::new([number; 12])
}

fn endpoints(ready: &[u8]) -> RevisionEndpoints {
    RevisionEndpoints {
        instances: ready
            .iter()
            .map(|number| Endpoint {
                instance: id(*number),
                draining: false,
            })
            .collect(),
        patience: Duration::from_secs(10),
        ..RevisionEndpoints::default()
    }
}

fn pool(concurrency: u32, ready: &[u8]) -> Pool {
    Pool::new(Concurrency::new(concurrency).expect("in range"), &endpoints(ready))
}

const LATER: Tick = Tick(1_000);

fn admitted(arrival: Arrival) -> Admitted {
    match arrival {
        Arrival::Admitted(admitted) => admitted,
        Arrival::Queued | Arrival::Refused => panic!("no slot"),
    }
}

#[test]
fn eighty_one_requests_at_concurrency_80_leave_one_queued() {
    let mut pool = pool(80, &[1]);
    let slots: Vec<_> = (0..80)
        .map(|ticket| admitted(pool.arrive(Ticket(ticket), LATER, None)))
        .collect();
    assert_eq!(slots.iter().filter(|slot| slot.woke).count(), 1);
    assert_eq!(pool.arrive(Ticket(80), LATER, None), Arrival::Queued);
    assert_eq!((pool.demand().in_flight, pool.demand().queued), (80, 1));
    let changes = pool.sync(&endpoints(&[1, 2]));
    let [(Ticket(80), on)] = changes.admitted.as_slice() else {
        panic!("{changes:?}");
    };
    assert_eq!((on.slot.instance(), on.woke), (&id(2), true));
}

#[test]
fn packs_up_to_60_percent_then_levels() {
    let mut pool = pool(10, &[1, 2]);
    let taken: Vec<_> = (0..20)
        .map(|ticket| admitted(pool.arrive(Ticket(ticket), LATER, None)).slot)
        .map(|slot| slot.instance().clone())
        .collect();
    assert!(taken[..6].iter().all(|on| *on == id(1)), "{taken:?}");
    assert!(taken[6..12].iter().all(|on| *on == id(2)), "{taken:?}");
    let ones = taken[12..].iter().filter(|on| **on == id(1)).count();
    assert_eq!(ones, 4, "{taken:?}");
}

#[test]
fn fills_the_first_at_low_concurrency() {
    let mut pool = pool(3, &[1, 2]);
    let taken: Vec<_> = (0..6)
        .map(|ticket| admitted(pool.arrive(Ticket(ticket), LATER, None)).slot)
        .map(|slot| slot.instance().clone())
        .collect();
    assert_eq!(taken, [id(1), id(1), id(1), id(2), id(2), id(2)]);
}

#[test]
fn the_preferred_instance_is_taken_while_it_has_room() {
    let mut pool = pool(2, &[1, 2]);
    let mut draining = endpoints(&[1, 2, 3]);
    let on = |pool: &mut Pool, ticket, preferred: u8| {
        let admitted = admitted(pool.arrive(Ticket(ticket), LATER, Some(&id(preferred))));
        admitted.slot.instance().clone()
    };
    assert_eq!(on(&mut pool, 1, 2), id(2));
    assert_eq!(on(&mut pool, 2, 2), id(2));
    assert_eq!(on(&mut pool, 3, 2), id(1), "it is full");
    assert_eq!(on(&mut pool, 4, 9), id(1), "it is gone");
    draining.instances[2].draining = true;
    assert_eq!(pool.sync(&draining), Changes::default());
    assert_eq!(
        pool.arrive(Ticket(5), LATER, Some(&id(3))),
        Arrival::Queued,
        "it is ending"
    );
}

#[test]
fn the_queue_is_bounded() {
    let mut pool = pool(1, &[]);
    for ticket in 0..QUEUE_LIMIT as u64 {
        assert_eq!(pool.arrive(Ticket(ticket), LATER, None), Arrival::Queued);
    }
    assert_eq!(pool.arrive(Ticket(QUEUE_LIMIT as u64), LATER, None), Arrival::Refused);
    assert!(pool.cancel(Ticket(7)) && !pool.cancel(Ticket(7)));
    assert_eq!(
        pool.arrive(Ticket(QUEUE_LIMIT as u64 + 1), LATER, None),
        Arrival::Queued
    );
}

#[test]
fn a_failed_start_is_told_only_without_hope() {
    let mut pool = pool(1, &[]);
    assert_eq!(pool.arrive(Ticket(1), LATER, None), Arrival::Queued);
    let failed = |failed_starts, starting, ready: &[u8]| RevisionEndpoints {
        starting,
        failed_starts,
        ..endpoints(ready)
    };
    assert_eq!(pool.sync(&failed(0, 1, &[])), Changes::default());
    assert_eq!(
        pool.sync(&failed(1, 1, &[])),
        Changes::default(),
        "another one is starting"
    );
    assert_eq!(pool.sync(&failed(2, 0, &[])).start_failed, [Ticket(1)]);
    assert_eq!(pool.arrive(Ticket(2), LATER, None), Arrival::Queued);
    assert_eq!(
        pool.sync(&failed(2, 0, &[])),
        Changes::default(),
        "an old failure is not news"
    );
    let changes = pool.sync(&failed(3, 0, &[1]));
    assert_eq!(changes.admitted.len(), 1);
    assert_eq!(pool.arrive(Ticket(3), LATER, None), Arrival::Queued);
    assert_eq!(
        pool.sync(&failed(4, 0, &[1])),
        Changes::default(),
        "it waits for the one that is ready"
    );
}

#[test]
fn one_that_drains_finishes_and_goes() {
    let mut pool = pool(2, &[1]);
    let first = admitted(pool.arrive(Ticket(1), LATER, None)).slot;
    let second = admitted(pool.arrive(Ticket(2), LATER, None)).slot;
    let mut draining = endpoints(&[1]);
    draining.instances[0].draining = true;
    assert_eq!(pool.sync(&draining), Changes::default());
    assert_eq!(pool.arrive(Ticket(3), LATER, None), Arrival::Queued);
    assert_eq!(pool.leave(first), Left::Free);
    assert_eq!(pool.sync(&endpoints(&[])), Changes::default());
    let left = InstanceDemand {
        instance: id(1),
        in_flight: 1,
        served: 1,
    };
    assert_eq!(pool.demand().instances, [left]);
    assert_eq!(pool.leave(second), Left::Idle(id(1)));
    assert_eq!(pool.demand().instances, []);
    assert_eq!(pool.expire(Tick(999)), []);
    assert_eq!(pool.expire(LATER), [Ticket(3)]);
    assert!(pool.is_empty());
}

#[derive(Debug, Clone)]
enum Event {
    Arrive {
        patience: u8,
        /// One of the eight instances, or none.
        prefers: u8,
    },
    /// The slot at this share of those held.
    Leave(u8),
    Cancel(u8),
    /// Which of eight instances there are, which of them drain, how many start, whether one failed.
    Sync {
        there: u8,
        draining: u8,
        starting: bool,
        failed: bool,
    },
    Pass(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (any::<u8>(), 0_u8..16).prop_map(|(patience, prefers)| Event::Arrive { patience, prefers }),
        6 => any::<u8>().prop_map(Event::Leave),
        1 => any::<u8>().prop_map(Event::Cancel),
        2 => (any::<u8>(), any::<u8>(), any::<bool>(), any::<bool>()).prop_map(
            |(there, draining, starting, failed)| Event::Sync { there, draining, starting, failed }
        ),
        1 => (0_u8..64).prop_map(Event::Pass),
    ]
}

/// What the rules say, kept apart from how the pool keeps it: who waits, who holds what.
#[derive(Default)]
struct Oracle {
    waiting: Vec<(Ticket, Tick)>,
    held: Vec<(Ticket, Slot)>,
    open: BTreeMap<InstanceId, bool>,
}

impl Oracle {
    fn load(&self, instance: &InstanceId) -> usize {
        self.held.iter().filter(|(_, slot)| slot.instance() == instance).count()
    }

    fn has_free_slot(&self, concurrency: usize) -> bool {
        self.open
            .iter()
            .any(|(instance, draining)| !draining && self.load(instance) < concurrency)
    }

    fn admit(&mut self, ticket: Ticket, admitted: Admitted) {
        let instance = admitted.slot.instance();
        assert_eq!(self.open.get(instance), Some(&false), "it takes requests");
        assert_eq!(admitted.woke, self.load(instance) == 0, "the edge is told");
        self.held.push((ticket, admitted.slot));
    }
}

proptest! {
    #[test]
    fn the_rules_hold(concurrency in 1_u32..=7, events in prop::collection::vec(event(), 1..200)) {
        let mut pool = pool(concurrency, &[]);
        let mut oracle = Oracle::default();
        let mut now = Tick(0);
        let mut failed_starts = 0;
        let bound = concurrency as usize;
        for (number, event) in events.into_iter().enumerate() {
            match event {
                Event::Arrive { patience, prefers } => {
                    let ticket = Ticket(number as u64);
                    let deadline = Tick(now.0 + u64::from(patience));
                    let free = oracle.has_free_slot(bound);
                    let prefers = id(prefers);
                    let has_room = oracle.open.get(&prefers) == Some(&false) && oracle.load(&prefers) < bound;
                    match pool.arrive(ticket, deadline, Some(&prefers)) {
                        Arrival::Admitted(admitted) => {
                            prop_assert!(!has_room || *admitted.slot.instance() == prefers, "it gets what it prefers");
                            prop_assert!(oracle.waiting.is_empty(), "nobody is overtaken");
                            oracle.admit(ticket, admitted);
                        }
                        Arrival::Queued => {
                            prop_assert!(!free, "nobody waits while a slot is free");
                            oracle.waiting.push((ticket, deadline));
                        }
                        Arrival::Refused => prop_assert!(false, "the queue is not full"),
                    }
                }
                Event::Leave(which) if !oracle.held.is_empty() => {
                    let at = usize::from(which) % oracle.held.len();
                    let (_, slot) = oracle.held.swap_remove(at);
                    let instance = slot.instance().clone();
                    let others = oracle.load(&instance);
                    let takes = oracle.open.get(&instance) == Some(&false);
                    match pool.leave(slot) {
                        Left::Passed(ticket, slot) => {
                            prop_assert!(takes, "a draining instance gets nothing new");
                            prop_assert_eq!(slot.instance(), &instance);
                            prop_assert_eq!(oracle.waiting.remove(0).0, ticket, "first come, first served");
                            oracle.held.push((ticket, slot));
                        }
                        Left::Free => prop_assert!(others > 0),
                        Left::Idle(idle) => {
                            prop_assert_eq!(others, 0);
                            prop_assert_eq!(idle, instance);
                        }
                    }
                }
                Event::Cancel(which) if !oracle.waiting.is_empty() => {
                    let at = usize::from(which) % oracle.waiting.len();
                    let (ticket, _) = oracle.waiting.remove(at);
                    prop_assert!(pool.cancel(ticket));
                    prop_assert!(!pool.cancel(ticket));
                }
                Event::Leave(_) | Event::Cancel(_) => {}
                Event::Sync { there, draining, starting, failed } => {
                    failed_starts += u64::from(failed);
                    let named: Vec<_> = (0..8_u8)
                        .filter(|bit| there & (1 << bit) != 0)
                        .map(|bit| Endpoint { instance: id(bit), draining: draining & (1 << bit) != 0 })
                        .collect();
                    oracle.open = named.iter().map(|e| (e.instance.clone(), e.draining)).collect();
                    let changes = pool.sync(&RevisionEndpoints {
                        instances: named,
                        starting: u32::from(starting),
                        failed_starts,
                        ..RevisionEndpoints::default()
                    });
                    for (ticket, admitted) in changes.admitted {
                        prop_assert_eq!(oracle.waiting.remove(0).0, ticket, "first come, first served");
                        oracle.admit(ticket, admitted);
                    }
                    let hopeless = failed && !starting && oracle.open.values().all(|draining| *draining);
                    let told: Vec<_> = if hopeless {
                        oracle.waiting.drain(..).map(|(ticket, _)| ticket).collect()
                    } else {
                        Vec::new()
                    };
                    prop_assert_eq!(changes.start_failed, told);
                }
                Event::Pass(millis) => {
                    now = Tick(now.0 + u64::from(millis));
                    let over: Vec<_> = oracle
                        .waiting
                        .iter()
                        .filter(|(_, deadline)| *deadline <= now)
                        .map(|(ticket, _)| *ticket)
                        .collect();
                    oracle.waiting.retain(|(_, deadline)| *deadline > now);
                    prop_assert_eq!(pool.expire(now), over);
                }
            }
            for number in 0..8 {
                prop_assert!(oracle.load(&id(number)) <= bound, "never over concurrency");
            }
            prop_assert!(oracle.waiting.is_empty() || !oracle.has_free_slot(bound));
            let demand = pool.demand();
            prop_assert_eq!(demand.queued as usize, oracle.waiting.len());
            prop_assert_eq!(demand.in_flight as usize, oracle.held.len());
            for of in &demand.instances {
                prop_assert_eq!(of.in_flight as usize, oracle.load(&of.instance));
            }
            let mut places: Vec<_> = demand.instances.iter().map(|of| &of.instance).collect();
            places.sort();
            places.dedup();
            prop_assert_eq!(places.len(), demand.instances.len(), "no instance has two places");
            prop_assert!(oracle.open.keys().all(|instance| places.contains(&instance)));
        }
    }
}
