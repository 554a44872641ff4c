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
//! at a concurrency of at most 3 the first with a free slot (Knative's rule). An arrival may prefer an instance (session
//! affinity): that one is taken if it has a free slot.

use std::collections::{HashMap, VecDeque};

use model::{Concurrency, InstanceId};

use crate::{InstanceDemand, RevisionDemand, RevisionEndpoints, autoscaler::Tick};

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
    served: u64,
    draining: bool,
    /// The endpoints do not name it any more; it stays for the requests it has.
    gone: bool,
}

impl Place {
    /// It takes another request.
    fn is_open(&self, concurrency: u32) -> bool {
        !self.draining && self.in_flight < concurrency
    }
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
    /// all before it. `preferred` is taken if it has a free slot, and not waited for.
    pub fn arrive(&mut self, ticket: Ticket, deadline: Tick, preferred: Option<&InstanceId>) -> Arrival {
        debug_assert!(self.queue.back().is_none_or(|last| last.ticket < ticket));
        let preferred = preferred.and_then(|instance| self.open_place(instance));
        if let Some(place) = preferred.or_else(|| self.choose()) {
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
        place.served += 1;
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
                served: 0,
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
        let hopeless = endpoints.starting == 0 && endpoints.instances.iter().all(|endpoint| endpoint.draining);
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
        match self.queue.binary_search_by_key(&ticket, |waiting| waiting.ticket) {
            Ok(index) => self.queue.remove(index).is_some(),
            Err(_) => false,
        }
    }

    /// In flight, queued, and what each instance has to do, those included that only finish what they have.
    pub fn demand(&self) -> RevisionDemand {
        let instances: Vec<_> = self
            .places
            .iter()
            .flatten()
            .map(|place| InstanceDemand {
                instance: place.instance.clone(),
                in_flight: place.in_flight,
                served: place.served,
            })
            .collect();
        RevisionDemand {
            in_flight: instances.iter().map(|of| of.in_flight).sum(),
            queued: u32::try_from(self.queue.len()).expect("the queue is bounded"),
            instances,
        }
    }

    /// Neither an instance nor a request: nothing is lost with it.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.places.iter().all(Option::is_none)
    }

    /// The place of `instance`, if it has a free slot.
    fn open_place(&self, instance: &InstanceId) -> Option<usize> {
        let at = |place: &Option<Place>| place.as_ref().is_some_and(|place| place.instance == *instance);
        let index = self.places.iter().position(at)?;
        self.places[index]
            .as_ref()
            .is_some_and(|place| place.is_open(self.concurrency))
            .then_some(index)
    }

    /// The place that takes the next request, if one has a free slot.
    fn choose(&self) -> Option<usize> {
        let free = self.places.iter().enumerate().filter_map(|(index, place)| {
            let place = place.as_ref()?;
            place.is_open(self.concurrency).then_some((index, place.in_flight))
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
mod rules;
