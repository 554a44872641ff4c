//! The gates: in front of each revision one lock around its [`Pool`] and the wakers of those who wait.
//!
//! A request that finds a free slot takes it in the same call. Else it waits in the pool's queue until a slot passes
//! to it, its patience or its timeout ends, the start it hoped for fails, or its client leaves. Whatever happens, the
//! slot comes back: [`Held`] and [`Waiting`] are guards.
//!
//! Whether an instance is busy or idle is told under the revision's lock, so that no "idle" overtakes the "busy" of a
//! request that came after it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use capacity::{
    Demand, Endpoints, Full, RevisionDemand, RevisionEndpoints,
    autoscaler::Tick,
    pool::{Admitted, Arrival, Left, Pool, Slot, Ticket},
};
use model::{Activity, InstanceId, RevisionKey, RouteTarget};
use tokio::{sync::oneshot, time::Instant};

use crate::{Instances, Refusal};

/// How long a request waits at a revision of which nothing is known yet (Cloud Run's least).
const LEAST_PATIENCE: Duration = Duration::from_secs(10);

/// Gates are found by reading one of so many maps; making one copies only its own.
const SHARDS: usize = 64;

type Shard = ArcSwap<HashMap<RevisionKey, Arc<Gate>>>;

pub(crate) struct Gates {
    shards: [Shard; SHARDS],
    /// What the gates obey. Held while a gate is made and while endpoints are applied, never by a request that finds
    /// its gate.
    current: Mutex<Arc<Endpoints>>,
    applied: AtomicU64,
    instances: Arc<Instances>,
    wake: Box<dyn Fn() + Send + Sync>,
    /// The revisions for which the bell was rung. Locked by requests that have to wait, never by others.
    rung: Mutex<BTreeSet<RevisionKey>>,
    epoch: Instant,
}

struct Gate {
    instances: Arc<Instances>,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    waiters: HashMap<Ticket, oneshot::Sender<Verdict>>,
    last_ticket: u64,
    patience: Duration,
    /// Why no further instance is started.
    full: Option<Full>,
    /// It was taken out of the map: whoever still finds it looks again.
    retired: bool,
}

/// The end of a wait: a slot, or why no instance could be started.
type Verdict = Result<Slot, Option<Arc<str>>>;

enum Step {
    Held(Held),
    Waiting(Waiting),
    Full,
    Retired,
}

impl Gates {
    pub(crate) fn new(endpoints: Arc<Endpoints>, instances: Arc<Instances>, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            shards: std::array::from_fn(|_| Shard::default()),
            applied: AtomicU64::new(endpoints.version),
            current: Mutex::new(endpoints),
            instances,
            wake,
            rung: Mutex::default(),
            epoch: Instant::now(),
        }
    }

    /// A slot of the revision, of `preferred` if that has one; waited for when none is free.
    ///
    /// # Errors
    /// `QueueFull`, `NoInstance` when the revision's patience ended, `Deadline` when the request's own time ended,
    /// `StartFailed`.
    pub(crate) async fn enter(
        &self,
        target: &RouteTarget,
        deadline: Instant,
        preferred: Option<&InstanceId>,
    ) -> Result<Held, Refusal> {
        loop {
            let gate = self.find_or_make(target);
            match gate.arrive(deadline, self.epoch, preferred) {
                Step::Held(held) => return Ok(held),
                Step::Full => return Err(Refusal::QueueFull(target.revision.clone())),
                // Being taken out of its map: once that is done a new one is made.
                Step::Retired => drop(self.current.lock().expect("nobody panics in here")),
                Step::Waiting(waiting) => {
                    self.ring(&target.revision);
                    return waiting.settle(target).await;
                }
            }
        }
    }

    /// Makes every gate obey `endpoints`.
    pub(crate) fn apply(&self, endpoints: Arc<Endpoints>) {
        let mut current = self.current.lock().expect("nobody panics in here");
        let before = std::mem::replace(&mut *current, endpoints.clone());
        for shard in &self.shards {
            let mut retired = Vec::new();
            for (revision, gate) in shard.load().iter() {
                let now = endpoints.revisions.get(revision);
                if let (Some(now), Some(before)) = (now, before.revisions.get(revision))
                    && (Arc::ptr_eq(now, before) || now == before)
                {
                    continue;
                }
                if gate.sync(now.map(AsRef::as_ref)) {
                    retired.push(revision.clone());
                }
            }
            if !retired.is_empty() {
                let mut gates = HashMap::clone(&shard.load());
                gates.retain(|revision, _| !retired.contains(revision));
                shard.store(Arc::new(gates));
            }
        }
        self.applied.store(endpoints.version, Ordering::Release);
    }

    pub(crate) fn demand(&self) -> Demand {
        // Read first: the pools below obey it or a later one.
        let applied = self.applied.load(Ordering::Acquire);
        let mut revisions = HashMap::new();
        for shard in &self.shards {
            for (revision, gate) in shard.load().iter() {
                if let Some(demand) = gate.demand() {
                    revisions.insert(revision.clone(), demand);
                }
            }
        }
        Demand { applied, revisions }
    }

    /// The same of some revisions only.
    pub(crate) fn demand_of(&self, wanted: &[RevisionKey]) -> Demand {
        let applied = self.applied.load(Ordering::Acquire);
        let demand = |revision: &RevisionKey| {
            let gate = self.shard(revision).load().get(revision).cloned()?;
            Some((revision.clone(), gate.demand()?))
        };
        Demand {
            applied,
            revisions: wanted.iter().filter_map(demand).collect(),
        }
    }

    fn ring(&self, revision: &RevisionKey) {
        let new = {
            let mut rung = self.rung.lock().expect("nobody panics in here");
            !rung.contains(revision) && rung.insert(revision.clone())
        };
        // Who is in the set already is looked at after this request was queued.
        if new {
            (self.wake)();
        }
    }

    /// The revisions for which the bell was rung since this was last asked.
    pub(crate) fn take_rung(&self) -> BTreeSet<RevisionKey> {
        std::mem::take(&mut self.rung.lock().expect("nobody panics in here"))
    }

    fn find_or_make(&self, target: &RouteTarget) -> Arc<Gate> {
        let shard = self.shard(&target.revision);
        if let Some(gate) = shard.load().get(&target.revision) {
            return gate.clone();
        }
        let current = self.current.lock().expect("nobody panics in here");
        let gates = shard.load();
        if let Some(gate) = gates.get(&target.revision) {
            return gate.clone();
        }
        let unknown = RevisionEndpoints::default();
        let known = current.revisions.get(&target.revision);
        let gate = Arc::new(Gate {
            instances: self.instances.clone(),
            state: Mutex::new(State {
                pool: Pool::new(target.concurrency, known.map_or(&unknown, AsRef::as_ref)),
                waiters: HashMap::new(),
                last_ticket: 0,
                patience: known.map_or(LEAST_PATIENCE, |endpoints| endpoints.patience),
                full: known.and_then(|endpoints| endpoints.full.clone()),
                retired: false,
            }),
        });
        let mut gates = HashMap::clone(&gates);
        gates.insert(target.revision.clone(), gate.clone());
        shard.store(Arc::new(gates));
        gate
    }

    fn shard(&self, revision: &RevisionKey) -> &Shard {
        let sum = revision.name.as_str().bytes().fold(0_usize, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(usize::from(byte))
        });
        &self.shards[sum % SHARDS]
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics in here")
    }

    /// None: it has neither requests nor instances.
    fn demand(&self) -> Option<RevisionDemand> {
        let demand = self.lock().pool.demand();
        (demand.queued > 0 || !demand.instances.is_empty()).then_some(demand)
    }

    fn arrive(self: &Arc<Self>, deadline: Instant, epoch: Instant, preferred: Option<&InstanceId>) -> Step {
        let mut state = self.lock();
        if state.retired {
            return Step::Retired;
        }
        state.last_ticket += 1;
        let ticket = Ticket(state.last_ticket);
        match state.pool.arrive(ticket, tick(deadline, epoch), preferred) {
            Arrival::Admitted(admitted) => Step::Held(Held::new(self.clone(), self.told(admitted))),
            Arrival::Queued => {
                let (sender, verdict) = oneshot::channel();
                state.waiters.insert(ticket, sender);
                Step::Waiting(Waiting {
                    gate: self.clone(),
                    ticket,
                    verdict,
                    deadline,
                })
            }
            Arrival::Refused => Step::Full,
        }
    }

    /// Takes in the revision's endpoints, none when they name it no more. True: nothing is left of it here, and it was
    /// retired.
    fn sync(&self, endpoints: Option<&RevisionEndpoints>) -> bool {
        let unknown = RevisionEndpoints::default();
        let mut state = self.lock();
        state.patience = endpoints.map_or(LEAST_PATIENCE, |endpoints| endpoints.patience);
        state.full = endpoints.and_then(|endpoints| endpoints.full.clone());
        let changes = state.pool.sync(endpoints.unwrap_or(&unknown));
        for (ticket, admitted) in changes.admitted {
            let slot = self.told(admitted);
            self.hand(&mut state, ticket, slot);
        }
        for ticket in changes.start_failed {
            if let Some(waiter) = state.waiters.remove(&ticket) {
                let why = endpoints.and_then(|endpoints| endpoints.last_failure.clone());
                // It may have left just now.
                let _ = waiter.send(Err(why));
            }
        }
        state.retired = endpoints.is_none() && state.pool.is_empty();
        state.retired
    }

    /// The slot of `admitted`, after its instance was told that it is busy.
    fn told(&self, admitted: Admitted) -> Slot {
        if admitted.woke {
            (self.instances.activity)(admitted.slot.instance(), Activity::Busy);
        }
        admitted.slot
    }

    /// Gives `slot` to `ticket`, or on to the next when that one has just left.
    fn hand(&self, state: &mut State, ticket: Ticket, slot: Slot) {
        let waiter = state.waiters.remove(&ticket);
        let returned = match waiter {
            Some(waiter) => waiter.send(Ok(slot)).err().and_then(Result::ok),
            None => Some(slot),
        };
        if let Some(slot) = returned {
            self.give_back(state, slot);
        }
    }

    fn give_back(&self, state: &mut State, slot: Slot) {
        match state.pool.leave(slot) {
            Left::Passed(ticket, slot) => self.hand(state, ticket, slot),
            Left::Idle(instance) => (self.instances.activity)(&instance, Activity::Idle),
            Left::Free => {}
        }
    }
}

fn tick(at: Instant, epoch: Instant) -> Tick {
    let millis = at.saturating_duration_since(epoch).as_millis();
    Tick(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// A slot, given back on drop.
pub(crate) struct Held {
    gate: Arc<Gate>,
    slot: Option<Slot>,
}

impl Held {
    fn new(gate: Arc<Gate>, slot: Slot) -> Self {
        Self { gate, slot: Some(slot) }
    }

    pub(crate) fn instance(&self) -> &InstanceId {
        let slot = self.slot.as_ref().expect("it is there until drop");
        slot.instance()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.gate.give_back(&mut self.gate.lock(), slot);
        }
    }
}

/// A place in the queue, given up on drop.
struct Waiting {
    gate: Arc<Gate>,
    ticket: Ticket,
    verdict: oneshot::Receiver<Verdict>,
    deadline: Instant,
}

impl Waiting {
    async fn settle(mut self, target: &RouteTarget) -> Result<Held, Refusal> {
        let began = Instant::now();
        let verdict = loop {
            let patience = self.gate.lock().patience;
            let bored = began + patience;
            let until = self.deadline.min(bored);
            match tokio::time::timeout_at(until, &mut self.verdict).await {
                Ok(verdict) => break verdict.expect("a waiter is answered or withdrawn"),
                // What was learnt of starts meanwhile counts for who waits already.
                Err(_) if bored < self.deadline && self.gate.lock().patience > patience => {}
                Err(_) => match self.withdraw() {
                    Some(verdict) => break verdict,
                    None if bored < self.deadline => {
                        return Err(Refusal::NoInstance {
                            patience,
                            full: self.gate.lock().full.clone(),
                        });
                    }
                    None => return Err(Refusal::Deadline(target.timeout.duration())),
                },
            }
        };
        match verdict {
            Ok(slot) => Ok(Held::new(self.gate.clone(), slot)),
            Err(why) => Err(Refusal::StartFailed(why)),
        }
    }

    /// Leaves the queue. Some: the answer was there already.
    fn withdraw(&mut self) -> Option<Verdict> {
        let mut state = self.gate.lock();
        if state.waiters.remove(&self.ticket).is_some() {
            let waited = state.pool.cancel(self.ticket);
            debug_assert!(waited, "who has a waker waits");
        }
        drop(state);
        self.verdict.try_recv().ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(Ok(slot)) = self.withdraw() {
            drop(Held::new(self.gate.clone(), slot));
        }
    }
}

impl std::fmt::Debug for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gates")
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}
