//! Which instance takes the next request: the slots of one revision's instances, and the queue above them.
//!
//! A slot is one of the places for requests that an instance has, as many as the revision's concurrency. What enters
//! is arrivals, departures and the instances there are; what leaves is who may go on where, and on which of these
//! events an instance went from idle to busy or back. One count, one queue: there is no second limit that could
//! disagree with the first.
//!
//! Held at all times: no instance has more requests than its concurrency; nobody waits while a slot is free; who
//! came first goes first; a draining instance gets nothing new. Which instance: the most loaded one below 60 % of its
//! concurrency, so that the others fall idle and can be given up, else the least loaded one (Cloud Run aims at 60 %);
//! at a concurrency of at most 3 the first with a free slot (Knative's rule).

use std::collections::{HashMap, VecDeque};

use model::{Concurrency, InstanceId};

use crate::{RevisionDemand, RevisionEndpoints, autoscaler::Tick};

/// Most requests of one revision that wait at a time.
pub const QUEUE_LIMIT: usize = 10_000;

/// Up to this concurrency the first instance with a free slot is taken.
const FIRST_FREE_UP_TO: u32 = 3;

/// One waiting request. Later arrivals have greater tickets; whoever runs the pool gives them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One place on one instance. It cannot be copied: it comes back through [`Pool::leave`], once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is not given back is lost"]
pub struct Slot {
    instance: InstanceId,
    place: usize,
}

impl Slot {
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }
}

/// A slot was assigned.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the slot inside must come back"]
pub struct Admitted {
    pub slot: Slot,
    /// It is the only request of its instance: idle before, busy now.
    pub woke: bool,
}

#[derive(Debug, PartialEq, Eq)]
#[must_use = "the slot inside must come back"]
pub enum Arrival {
    Admitted(Admitted),
    /// No slot is free: the ticket waits.
    Queued,
    /// [`QUEUE_LIMIT`] tickets wait already.
    Refused,
}

/// What came of a slot that was given back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the slot inside must come back"]
pub enum Left {
    /// It passed to the ticket that waited longest.
    Passed(Ticket, Slot),
    /// It is free, and its instance has other requests.
    Free,
    /// It is free, and its instance has no request any more: busy before, idle now.
    Idle(InstanceId),
}

/// What came of new endpoints.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "the slots inside must come back"]
pub struct Changes {
    /// In the order in which they came.
    pub admitted: Vec<(Ticket, Admitted)>,
    /// Those who waited for a start that failed, with nothing else to hope for.
    pub start_failed: Vec<Ticket>,
}

#[derive(Debug)]
struct Place {
    instance: InstanceId,
    in_flight: u32,
    draining: bool,
    /// The endpoints do not name it any more; it stays for the requests it has.
    gone: bool,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    deadline: Tick,
}

/// The slots and the queue of one revision.
#[derive(Debug)]
pub struct Pool {
    concurrency: u32,
    /// A place keeps its number while it has a request; the numbers of those given up are used again.
    places: Vec<Option<Place>>,
    queue: VecDeque<Waiting>,
    failed_starts: u64,
}

impl Pool {
    /// An empty pool. `endpoints` are what there is now: a start that failed before is nobody's bad news.
    pub fn new(concurrency: Concurrency, endpoints: &RevisionEndpoints) -> Self {
        let mut pool = Self {
            concurrency: concurrency.get(),
            places: Vec::new(),
            queue: VecDeque::new(),
            failed_starts: endpoints.failed_starts,
        };
        let changes = pool.sync(endpoints);
        debug_assert_eq!(changes, Changes::default(), "nobody waits yet");
        pool
    }

    /// A request comes: it gets a slot, or waits until `deadline`, or is turned away. Its ticket must be greater than
    /// all before it.
    pub fn arrive(&mut self, ticket: Ticket, deadline: Tick) -> Arrival {
        debug_assert!(self.queue.back().is_none_or(|last| last.ticket < ticket));
        if let Some(place) = self.choose() {
            debug_assert!(self.queue.is_empty(), "nobody waits while a slot is free");
            return Arrival::Admitted(self.take(place));
        }
        if self.queue.len() >= QUEUE_LIMIT {
            return Arrival::Refused;
        }
        self.queue.push_back(Waiting { ticket, deadline });
        Arrival::Queued
    }

    /// A request is over. The slot passes to the head of the queue, unless its instance is draining.
    pub fn leave(&mut self, slot: Slot) -> Left {
        let place = self.places[slot.place]
            .as_mut()
            .expect("a place stays while it has a request");
        debug_assert_eq!(place.instance, slot.instance);
        if !place.draining
            && let Some(waiting) = self.queue.pop_front()
        {
            return Left::Passed(waiting.ticket, slot);
        }
        place.in_flight -= 1;
        if place.in_flight > 0 {
            return Left::Free;
        }
        if place.gone {
            self.places[slot.place] = None;
        }
        Left::Idle(slot.instance)
    }

    /// Takes in the instances there are now. One that is no longer named, or is draining, keeps the requests it has
    /// and gets no other.
    pub fn sync(&mut self, endpoints: &RevisionEndpoints) -> Changes {
        let mut coming: HashMap<&InstanceId, bool> = endpoints
            .instances
            .iter()
            .map(|endpoint| (&endpoint.instance, endpoint.draining))
            .collect();
        for kept in &mut self.places {
            let Some(place) = kept else { continue };
            let named = coming.remove(&place.instance);
            place.draining = named.unwrap_or(true);
            place.gone = named.is_none();
            if place.gone && place.in_flight == 0 {
                *kept = None;
            }
        }
        let mut free = 0;
        for endpoint in &endpoints.instances {
            // Also keeps one that is named twice from having two places.
            let Some(draining) = coming.remove(&endpoint.instance) else {
                continue;
            };
            let place = Some(Place {
                instance: endpoint.instance.clone(),
                in_flight: 0,
                draining,
                gone: false,
            });
            while self.places.get(free).is_some_and(Option::is_some) {
                free += 1;
            }
            match self.places.get_mut(free) {
                Some(empty) => *empty = place,
                None => self.places.push(place),
            }
        }
        while let Some(None) = self.places.last() {
            self.places.pop();
        }
        let mut changes = Changes::default();
        while !self.queue.is_empty()
            && let Some(place) = self.choose()
        {
            let waiting = self.queue.pop_front().expect("it is not empty");
            let admitted = self.take(place);
            changes.admitted.push((waiting.ticket, admitted));
        }
        let failed = endpoints.failed_starts > self.failed_starts;
        self.failed_starts = endpoints.failed_starts;
        let hopeless =
            endpoints.starting == 0 && endpoints.instances.iter().all(|endpoint| endpoint.draining);
        if failed && hopeless {
            changes
                .start_failed
                .extend(self.queue.drain(..).map(|waiting| waiting.ticket));
        }
        changes
    }

    /// Takes out those whose deadline is not after `now`. For a caller that keeps no timer of its own per ticket;
    /// one that does uses [`Pool::cancel`].
    pub fn expire(&mut self, now: Tick) -> Vec<Ticket> {
        let mut expired = Vec::new();
        self.queue.retain(|waiting| {
            let over = waiting.deadline <= now;
            if over {
                expired.push(waiting.ticket);
            }
            !over
        });
        expired
    }

    /// The ticket no longer waits. False: it does not wait any more (it was admitted, expired or told).
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        match self
            .queue
            .binary_search_by_key(&ticket, |waiting| waiting.ticket)
        {
            Ok(index) => self.queue.remove(index).is_some(),
            Err(_) => false,
        }
    }

    /// In flight, queued, and in flight per instance, those included that only finish what they have.
    pub fn demand(&self) -> RevisionDemand {
        let instances: Vec<_> = self
            .places
            .iter()
            .flatten()
            .map(|place| (place.instance.clone(), place.in_flight))
            .collect();
        RevisionDemand {
            in_flight: instances.iter().map(|(_, in_flight)| in_flight).sum(),
            queued: u32::try_from(self.queue.len()).expect("the queue is bounded"),
            instances,
        }
    }

    /// Neither an instance nor a request: nothing is lost with it.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.places.iter().all(Option::is_none)
    }

    /// The place that takes the next request, if one has a free slot.
    fn choose(&self) -> Option<usize> {
        let free = self.places.iter().enumerate().filter_map(|(index, place)| {
            let place = place.as_ref()?;
            let open = !place.draining && place.in_flight < self.concurrency;
            open.then_some((index, place.in_flight))
        });
        if self.concurrency <= FIRST_FREE_UP_TO {
            return free.map(|(index, _)| index).next();
        }
        let mut packed: Option<(usize, u32)> = None;
        let mut least: Option<(usize, u32)> = None;
        for (index, in_flight) in free {
            // Below 60 %, in whole numbers.
            if in_flight * 5 < self.concurrency * 3 {
                if packed.is_none_or(|(_, most)| in_flight > most) {
                    packed = Some((index, in_flight));
                }
            } else if least.is_none_or(|(_, fewest)| in_flight < fewest) {
                least = Some((index, in_flight));
            }
        }
        packed.or(least).map(|(index, _)| index)
    }

    fn take(&mut self, index: usize) -> Admitted {
        let place = self.places[index].as_mut().expect("it was just chosen");
        place.in_flight += 1;
        Admitted {
            slot: Slot {
                instance: place.instance.clone(),
                place: index,
            },
            woke: place.in_flight == 1,
        }
    }
}

#[cfg(test)]
mod tests {
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
        Pool::new(
            Concurrency::new(concurrency).expect("in range"),
            &endpoints(ready),
        )
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
            .map(|ticket| admitted(pool.arrive(Ticket(ticket), LATER)))
            .collect();
        assert_eq!(slots.iter().filter(|slot| slot.woke).count(), 1);
        assert_eq!(pool.arrive(Ticket(80), LATER), Arrival::Queued);
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
            .map(|ticket| admitted(pool.arrive(Ticket(ticket), LATER)).slot)
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
            .map(|ticket| admitted(pool.arrive(Ticket(ticket), LATER)).slot)
            .map(|slot| slot.instance().clone())
            .collect();
        assert_eq!(taken, [id(1), id(1), id(1), id(2), id(2), id(2)]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut pool = pool(1, &[]);
        for ticket in 0..QUEUE_LIMIT as u64 {
            assert_eq!(pool.arrive(Ticket(ticket), LATER), Arrival::Queued);
        }
        assert_eq!(
            pool.arrive(Ticket(QUEUE_LIMIT as u64), LATER),
            Arrival::Refused
        );
        assert!(pool.cancel(Ticket(7)) && !pool.cancel(Ticket(7)));
        assert_eq!(
            pool.arrive(Ticket(QUEUE_LIMIT as u64 + 1), LATER),
            Arrival::Queued
        );
    }

    #[test]
    fn a_failed_start_is_told_only_without_hope() {
        let mut pool = pool(1, &[]);
        assert_eq!(pool.arrive(Ticket(1), LATER), Arrival::Queued);
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
        assert_eq!(pool.arrive(Ticket(2), LATER), Arrival::Queued);
        assert_eq!(
            pool.sync(&failed(2, 0, &[])),
            Changes::default(),
            "an old failure is not news"
        );
        let changes = pool.sync(&failed(3, 0, &[1]));
        assert_eq!(changes.admitted.len(), 1);
        assert_eq!(pool.arrive(Ticket(3), LATER), Arrival::Queued);
        assert_eq!(
            pool.sync(&failed(4, 0, &[1])),
            Changes::default(),
            "it waits for the one that is ready"
        );
    }

    #[test]
    fn one_that_drains_finishes_and_goes() {
        let mut pool = pool(2, &[1]);
        let first = admitted(pool.arrive(Ticket(1), LATER)).slot;
        let second = admitted(pool.arrive(Ticket(2), LATER)).slot;
        let mut draining = endpoints(&[1]);
        draining.instances[0].draining = true;
        assert_eq!(pool.sync(&draining), Changes::default());
        assert_eq!(pool.arrive(Ticket(3), LATER), Arrival::Queued);
        assert_eq!(pool.leave(first), Left::Free);
        assert_eq!(pool.sync(&endpoints(&[])), Changes::default());
        assert_eq!(pool.demand().instances, [(id(1), 1)]);
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
            8 => any::<u8>().prop_map(|patience| Event::Arrive { patience }),
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
            self.held
                .iter()
                .filter(|(_, slot)| slot.instance() == instance)
                .count()
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
                    Event::Arrive { patience } => {
                        let ticket = Ticket(number as u64);
                        let deadline = Tick(now.0 + u64::from(patience));
                        let free = oracle.has_free_slot(bound);
                        match pool.arrive(ticket, deadline) {
                            Arrival::Admitted(admitted) => {
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
                for (instance, in_flight) in &demand.instances {
                    prop_assert_eq!(*in_flight as usize, oracle.load(instance));
                }
                let mut places: Vec<_> = demand.instances.iter().map(|(instance, _)| instance).collect();
                places.sort();
                places.dedup();
                prop_assert_eq!(places.len(), demand.instances.len(), "no instance has two places");
                prop_assert!(oracle.open.keys().all(|instance| places.contains(&instance)));
            }
        }
    }
}
