//! Takes one request to one instance and back.
//!
//! Here live the listeners, the draw of a revision, the gate in front of each revision with its queue, the forwarding
//! and the record of every request. They are one crate because they are one path: [`Ingress::serve`] reads top to
//! bottom as the life of a request. What enters is requests, the route table, the endpoints, and functions that reach
//! instances; what leaves is answers, demand, records, and who is busy. It never reads the store, never starts an
//! instance, and keeps serving when control is dead.
//!
//! Everything that touches a request runs on the thread that accepted its connection, upstream connections included.
//! The one lock a request takes is its revision's.

mod admission;
mod affinity;
mod arrival;
mod body;
mod chance;
mod connection;
mod forward;
mod gate;
mod header;
pub mod listen;
mod parting;
mod record;
mod refusal;
mod request;
mod trace;
mod upgrade;
mod upstream;

use std::{collections::BTreeSet, fmt, io, os::fd::OwnedFd, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use capacity::{Demand, Endpoints};
use http::HeaderValue;
use http_body_util::combinators::UnsyncBoxBody;
use model::{
    Activity, Audiences, BindingCondition, Fate, InstanceId, Principal, RequestRecord, Resource, RevisionKey, Route,
    RouteTable, Timestamp,
};
use tokio::sync::watch;

pub use arrival::Arrival;
pub(crate) use refusal::Refusal;
pub use upgrade::Tunnel;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer. Dropping it before its end tells that the client left.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub type Connect = Box<dyn Fn(&InstanceId) -> io::Result<OwnedFd> + Send + Sync>;
pub type Tell = Box<dyn Fn(&InstanceId, Activity) + Send + Sync>;
pub type Record = Box<dyn Fn(Box<RequestRecord>) + Send + Sync>;
/// Whether a condition holds, for a resource, now.
pub type Holds = Box<dyn Fn(&BindingCondition, &Resource) -> bool + Send + Sync>;
/// Who sent a token to whoever is meant by one of the audiences, else why it is not good.
pub type CheckIdentity = Box<dyn Fn(&str, &Audiences) -> Result<Arc<Principal>, String> + Send + Sync>;

/// How instances are reached. All of these are called on request threads: they must not block.
pub struct Instances {
    /// A non-blocking stream socket on which a connect to the instance's port was started.
    pub connect: Connect,
    /// The instance got its first request, or its last one ended. In order per instance; `Busy` comes before the
    /// request is forwarded. Called under a lock: it must not call back.
    pub activity: Tell,
    /// Asked after a connection broke.
    pub fate: Box<dyn Fn(&InstanceId) -> Fate + Send + Sync>,
}

/// Who may call services that are not open to everyone.
pub struct Invokers {
    /// Asked for each request to a service that is not open.
    pub check: CheckIdentity,
    /// Whether a binding's condition holds now, for the service.
    pub holds: Holds,
}

/// What the ingress is built from.
pub struct Inputs {
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub endpoints: watch::Receiver<Arc<Endpoints>>,
    pub instances: Instances,
    pub invokers: Invokers,
    /// Takes each request's record. Must not block.
    pub record: Record,
    /// Rung each time a request has to wait for a slot.
    pub wake: Box<dyn Fn() + Send + Sync>,
    /// The clock of the records.
    pub now: fn() -> Timestamp,
    /// Of the draws and of trace ids.
    pub seed: u64,
    /// Seals the cookies of session affinity: those of an earlier process are good while it is the same.
    pub affinity_key: [u8; 32],
}

pub struct Ingress {
    routes: ArcSwap<RouteTable>,
    gates: gate::Gates,
    instances: Arc<Instances>,
    invokers: Invokers,
    record: Record,
    now: fn() -> Timestamp,
    chance: chance::Chance,
    affinity: affinity::Affinity,
    inputs: (watch::Receiver<Arc<RouteTable>>, watch::Receiver<Arc<Endpoints>>),
}

impl Ingress {
    /// Obeys the routes and endpoints of this moment; [`Ingress::follow`] makes it obey the later ones.
    pub fn new(mut inputs: Inputs) -> Arc<Self> {
        let routes = inputs.routes.borrow_and_update().clone();
        let endpoints = inputs.endpoints.borrow_and_update().clone();
        let instances = Arc::new(inputs.instances);
        Arc::new(Self {
            routes: ArcSwap::new(routes),
            gates: gate::Gates::new(endpoints, instances.clone(), inputs.wake),
            instances,
            invokers: inputs.invokers,
            record: inputs.record,
            now: inputs.now,
            chance: chance::Chance::new(inputs.seed),
            affinity: affinity::Affinity::new(&inputs.affinity_key),
            inputs: (inputs.routes, inputs.endpoints),
        })
    }

    /// Takes in every newer route table and endpoints, until both senders are gone. To be run as one task, owned by the
    /// caller; without it the ingress serves on with what it knows.
    pub async fn follow(&self) {
        let (mut routes, mut endpoints) = self.inputs.clone();
        let (mut more_routes, mut more_endpoints) = (true, true);
        while more_routes || more_endpoints {
            tokio::select! {
                // A table may name a revision whose endpoints came just before it.
                biased;
                changed = endpoints.changed(), if more_endpoints => match changed {
                    Ok(()) => self.gates.apply(endpoints.borrow_and_update().clone()),
                    Err(_) => more_endpoints = false,
                },
                changed = routes.changed(), if more_routes => match changed {
                    Ok(()) => self.routes.store(routes.borrow_and_update().clone()),
                    Err(_) => more_routes = false,
                },
            }
        }
    }

    /// Takes in what [`Ingress::follow`] would, at once: what was published before is obeyed when it returns.
    pub fn catch_up(&self) {
        let (routes, endpoints) = &self.inputs;
        self.gates.apply(endpoints.borrow().clone());
        self.routes.store(routes.borrow().clone());
    }

    /// Who is in flight and who waits, at this moment, of every revision that has requests or instances.
    pub fn demand(&self) -> Demand {
        self.gates.demand()
    }

    /// The same of some revisions only.
    pub fn demand_of(&self, revisions: &[RevisionKey]) -> Demand {
        self.gates.demand_of(revisions)
    }

    /// The revisions at which a request had to wait since this was last asked.
    pub fn take_rung(&self) -> BTreeSet<RevisionKey> {
        self.gates.take_rung()
    }

    fn find(&self, host: &HeaderValue) -> Result<Arc<Route>, Refusal> {
        let name = host
            .to_str()
            .map_err(|_| Refusal::Malformed("Bad request: malformed host."))?;
        self.routes
            .load()
            .find(name)
            .cloned()
            .ok_or_else(|| Refusal::NoRoute(name.into()))
    }
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress")
            .field("gates", &self.gates)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs").finish_non_exhaustive()
    }
}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instances").finish_non_exhaustive()
    }
}

impl fmt::Debug for Invokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invokers").finish_non_exhaustive()
    }
}
