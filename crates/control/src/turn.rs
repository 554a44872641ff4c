//! One turn: read everything, plan, act. Then sleep until woken.

#[cfg(test)]
pub(crate) mod cases;
mod following;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use capacity::{Demand, Endpoints, autoscaler::Tick};
use engine::Engine;
use image::Images;
use model::{
    InstanceId, InstanceSpec, Observed, Reason, Revision, RevisionKey, RevisionState, Room, RouteTable, Routed,
    ServiceKey, Site, Timestamp, Usage, with_causes,
};
use store::{Snapshot, Store, TransactError};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    decisions::Decisions,
    pull::{self, Outcome},
    revision::{self, Step},
    route,
    scale::{Act, Concern, Scaling, Seen},
    secrets::{self, Given},
    service,
};

/// How long an instance may take to end after SIGTERM (container contract).
const GRACE: Duration = Duration::from_secs(10);
/// How often to look while instances live: idle times and means move with the clock alone.
const BEAT: Duration = Duration::from_secs(1);
/// How often to look while a drain, a backoff or a wait for room is under way.
const QUICK_BEAT: Duration = Duration::from_millis(100);
/// How often to look while nothing but parked instances is there.
const SLOW_BEAT: Duration = Duration::from_secs(10);
/// How often to look while nothing but a secret's end is waited for.
const LONG_BEAT: Duration = Duration::from_hours(1);
/// What the machine has left is read again after this.
const ROOM_GOOD_FOR: Duration = Duration::from_millis(100);

/// See [`Links::demand`].
pub type DemandOf = Box<dyn Fn(Option<&[RevisionKey]>) -> Demand + Send + Sync>;

/// Whether the condition of a binding holds, for a resource, now. Must not block.
pub type Holds = Box<dyn Fn(&model::BindingCondition, &model::Resource) -> bool + Send + Sync>;

/// What control is joined to. Made by the wiring.
pub struct Links {
    pub store: Store,
    pub engine: Arc<Engine>,
    pub images: Images,
    pub vault: Arc<secret::Vault>,
    pub site: Site,
    pub holds: Holds,
    /// How long an instance without a request is kept.
    pub idle_retention: Duration,
    /// Most parked sandboxes of all revisions together.
    pub parked: u32,
    /// What the ingress counts now: of all revisions, or of these.
    pub demand: DemandOf,
    /// Rung by the ingress when a request had to wait.
    pub wake: Arc<Notify>,
    /// The revisions it was rung for since this was last asked.
    pub rung: Box<dyn Fn() -> BTreeSet<RevisionKey> + Send + Sync>,
    pub routes: watch::Sender<Arc<RouteTable>>,
    pub endpoints: watch::Sender<Arc<Endpoints>>,
    pub now: fn() -> Timestamp,
    pub chance: fn() -> u128,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("site", &self.site)
            .finish_non_exhaustive()
    }
}

/// The control plane of one Homerun.
#[derive(Debug)]
pub struct Control {
    links: Links,
    scaling: Scaling,
    /// Resolves and pulls under way, and whose they are.
    work: JoinSet<(RevisionKey, Outcome)>,
    begun: BTreeSet<RevisionKey>,
    /// Memory being pushed out of idle instances.
    reclaims: JoinSet<()>,
    /// What instances use, being read; at most one at a time.
    reading: JoinSet<HashMap<InstanceId, Usage>>,
    started: Instant,
    table_of: Option<u64>,
    /// The version of which everything but instances is as it was asked for.
    done_with: Option<u64>,
    /// When all revisions were last looked at.
    looked: Option<Tick>,
    room: Option<(Tick, Room)>,
    given: Given,
    decisions: Decisions,
}

impl Control {
    pub fn new(links: Links) -> Self {
        let decisions = Decisions::default();
        let scaling = Scaling::new(decisions.clone(), (links.now)());
        Self {
            links,
            scaling,
            work: JoinSet::new(),
            begun: BTreeSet::new(),
            reclaims: JoinSet::new(),
            reading: JoinSet::new(),
            started: Instant::now(),
            table_of: None,
            done_with: None,
            looked: None,
            room: None,
            given: Given::default(),
            decisions,
        }
    }

    /// What is decided on instances, for whoever asks why.
    pub fn decisions(&self) -> Decisions {
        self.decisions.clone()
    }

    /// Takes turns until `stop` resolves. Instances are left as they are; the engine ends them.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut changed = self.links.store.changed();
        let mut observed = self.links.engine.observe();
        let mut stop = std::pin::pin!(stop);
        loop {
            // Both marks are taken before the turn reads, so that what comes during it is seen by the next.
            changed.mark_unchanged();
            observed.mark_unchanged();
            self.turn().await;
            let beat = self.beat(&observed.borrow());
            tokio::select! {
                () = &mut stop => break,
                result = changed.changed() => if result.is_err() { break },
                result = observed.changed() => if result.is_err() { break },
                () = self.links.wake.notified() => {}
                Some(done) = self.work.join_next() => self.take_in(done).await,
                Some(read) = self.reading.join_next() => match read {
                    Ok(read) => self.scaling.take_in_usage(read, self.tick()),
                    Err(error) => tracing::error!(%error, "what instances use could not be read"),
                },
                () = sleep(beat) => {}
            }
        }
        self.work.shutdown().await;
        self.reclaims.shutdown().await;
        self.reading.shutdown().await;
    }

    fn beat(&self, observed: &Observed) -> Option<Duration> {
        let expiry = secrets::next_expiry(&self.links.store.snapshot());
        let expiry = expiry.map(|at| at.since((self.links.now)()).clamp(QUICK_BEAT, LONG_BEAT));
        self.instances_beat(observed).into_iter().chain(expiry).min()
    }

    fn instances_beat(&self, observed: &Observed) -> Option<Duration> {
        if self.scaling.is_waiting() {
            Some(QUICK_BEAT)
        } else if observed.instances.is_empty() {
            None
        } else if self.scaling.is_at_rest() {
            Some(SLOW_BEAT)
        } else {
            Some(BEAT)
        }
    }

    fn tick(&self) -> Tick {
        Tick(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Everything but instances only needs a look when something else was asked for, or was not done yet: the many turns
    /// that requests and instances cause do not go through all services.
    async fn turn(&mut self) {
        let snapshot = self.links.store.snapshot();
        let observed = self.links.engine.observe().borrow().clone();
        self.drop_expired(&snapshot).await;
        if self.done_with == Some(snapshot.version) {
            self.scale(&snapshot, &observed, &BTreeMap::new()).await;
            return;
        }
        self.follow_secrets(&snapshot, &observed).await;
        let to_create = self.create_revisions(&snapshot).await;
        for step in revision::plan(&snapshot, &observed, &self.begun) {
            self.take(step, &snapshot).await;
        }
        let due = route::plan(&snapshot, (self.links.now)());
        self.scale(&snapshot, &observed, &due).await;
        self.publish_routes(&snapshot, &due).await;
        let settled = snapshot.revisions.values().all(|revision| revision.state.is_settled());
        if settled && due.is_empty() && to_create == 0 {
            self.done_with = Some(snapshot.version);
        }
    }

    /// Says how many there were to create.
    async fn create_revisions(&self, snapshot: &Snapshot) -> usize {
        let due = service::plan(snapshot);
        let number = due.len();
        for service in due {
            let made = service::revision_of(service, (self.links.chance)(), (self.links.now)());
            let name = made.key.name.clone();
            let written = self.links.store.transact(move |tx| -> Result<(), Superseded> {
                let current = tx.snapshot().service(&made.key.service).ok_or(Superseded)?;
                let is_current =
                    current.uid == made.service_uid && current.template_generation == made.template_generation;
                let exists = tx.snapshot().revision(&made.key).is_some();
                if !is_current || exists {
                    return Err(Superseded);
                }
                tx.put_revision(made);
                Ok(())
            });
            match written.await {
                Ok(()) => tracing::info!(service = %service.key, revision = %name, "revision created"),
                Err(TransactError::Refused(Superseded)) => {}
                Err(TransactError::Storage(error)) => {
                    tracing::error!(service = %service.key, error = with_causes(&error), "cannot store a new revision");
                }
            }
        }
        number
    }

    async fn take(&mut self, step: Step, snapshot: &Snapshot) {
        match step {
            Step::Resolve(key) => {
                let Some(revision) = snapshot.revision(&key) else {
                    return;
                };
                let images = self.links.images.clone();
                let template = revision.template.clone();
                self.begun.insert(key.clone());
                self.work
                    .spawn(async move { (key, pull::resolve(&images, &template).await) });
            }
            Step::Pull { revision, digest } => {
                let images = self.links.images.clone();
                let sidecars = snapshot
                    .revision(&revision)
                    .map_or_else(Vec::new, |revision| revision.sidecar_digests.clone());
                self.begun.insert(revision.clone());
                self.work
                    .spawn(async move { (revision, pull::unpack(&images, digest, &sidecars).await) });
            }
            Step::Start { revision, digest } => {
                if let Some(revision) = snapshot.revision(&revision) {
                    self.start_first(snapshot, revision, digest).await;
                }
            }
            Step::Ready(key) => {
                let digest = snapshot
                    .revision(&key)
                    .and_then(|r| r.state.digest())
                    .unwrap_or_default()
                    .to_owned();
                self.enter(key, RevisionState::Ready { digest }.into()).await;
            }
            Step::Fail {
                revision,
                reason,
                message,
            } => {
                let digest = snapshot
                    .revision(&revision)
                    .and_then(|r| r.state.digest())
                    .map(str::to_owned);
                let state = RevisionState::Failed {
                    reason,
                    message,
                    digest,
                };
                self.enter(revision, state.into()).await;
            }
        }
    }

    async fn take_in(&mut self, done: Result<(RevisionKey, Outcome), tokio::task::JoinError>) {
        match done {
            Ok((key, outcome)) => {
                self.begun.remove(&key);
                self.enter(key, outcome).await;
            }
            // A panic in a pull: whose it was is unknown, so all are begun anew; what is done already is cheap.
            Err(error) => {
                tracing::error!(%error, "a pull broke off");
                self.begun.clear();
            }
        }
    }

    /// Writes that a revision has come to a state.
    async fn enter(&self, key: RevisionKey, outcome: Outcome) {
        let now = (self.links.now)();
        let Outcome { state, sidecar_digests } = outcome;
        let (written_key, written) = (key.clone(), state.clone());
        let result = self
            .links
            .store
            .transact(move |tx| -> Result<(), Superseded> {
                let revision = tx.snapshot().revision(&written_key).ok_or(Superseded)?;
                if revision.state.is_settled() {
                    return Err(Superseded);
                }
                let mut revision = revision.clone();
                revision.state = written;
                if let Some(digests) = sidecar_digests {
                    revision.sidecar_digests = digests;
                }
                revision.since = now;
                tx.put_revision(revision);
                Ok(())
            })
            .await;
        match (result, &state) {
            (Ok(()), RevisionState::Failed { reason, message, .. }) => {
                tracing::warn!(revision = %key, %reason, message, "revision failed");
            }
            (Ok(()), RevisionState::Ready { digest }) => tracing::info!(revision = %key, digest, "revision ready"),
            (Ok(()) | Err(TransactError::Refused(Superseded)), _) => {}
            (Err(TransactError::Storage(error)), _) => {
                tracing::error!(revision = %key, error = with_causes(&error), "cannot store a revision's state");
            }
        }
    }

    /// A new instance, or why it could not have its secrets.
    fn spec(&mut self, snapshot: &Snapshot, revision: &Revision, digest: &str) -> Result<InstanceSpec, Unreadable> {
        let chance = (self.links.chance)().to_le_bytes();
        let id = InstanceId::new(chance[..12].try_into().expect("12 of 16 bytes"));
        let image = model::bare_digest(digest).to_owned();
        match self.links.reader(snapshot).reveal(revision) {
            Ok(revealed) => {
                self.given.start(&id, revision, &self.links.reader(snapshot));
                Ok(InstanceSpec::derive(id, revision, image, revealed, &self.links.site))
            }
            Err(why) => Err(Unreadable { id, why }),
        }
    }

    /// The first instance of a revision, which fails with it.
    async fn start_first(&mut self, snapshot: &Snapshot, revision: &Revision, digest: String) {
        match self.spec(snapshot, revision, &digest) {
            Ok(spec) => self.start(revision, spec).await,
            Err(Unreadable { why, .. }) => {
                let state = RevisionState::Failed {
                    reason: Reason::SecretsAccessCheckFailed,
                    message: format!(
                        "Revision '{}' is not ready and cannot serve traffic. {why}",
                        revision.key.name
                    ),
                    digest: Some(digest),
                };
                self.enter(revision.key.clone(), state.into()).await;
            }
        }
    }

    async fn start(&self, revision: &Revision, spec: InstanceSpec) {
        if let Err(error) = self.links.engine.start(spec).await {
            tracing::error!(revision = %revision.key, error = with_causes(&error), "cannot start an instance");
        }
    }

    /// What the machine has left; read again when it is older than a tenth of a second.
    fn room(&mut self, now: Tick) -> Room {
        match self.room {
            Some((read, room)) if now.since(read) < ROOM_GOOD_FOR => room,
            Some(_) | None => {
                let room = self.links.engine.room();
                self.room = Some((now, room));
                room
            }
        }
    }

    /// Beside the turns: a thousand instances take longer to read than a waiting request should.
    fn read_usage(&mut self) {
        let to_read = self.scaling.to_read();
        if !to_read.is_empty() && self.reading.is_empty() {
            let engine = self.links.engine.clone();
            self.reading.spawn(async move { engine.usage(to_read).await });
        }
    }

    async fn scale(&mut self, snapshot: &Snapshot, observed: &Arc<Observed>, due: &BTreeMap<ServiceKey, Routed>) {
        let now = self.tick();
        // Times move on with the clock alone, also while wakes come one after the other.
        let beat = if self.scaling.is_waiting() { QUICK_BEAT } else { BEAT };
        let all = !due.is_empty() || self.looked.is_none_or(|looked| now.since(looked) >= beat);
        // Taken before the demand is read: who rings after this is looked at in the next turn.
        let rung = (self.links.rung)();
        let concern = self.scaling.concerned(snapshot, observed, rung, all);
        let demand = match &concern {
            Concern::All => (self.links.demand)(None),
            Concern::Of(revisions) => (self.links.demand)(Some(revisions)),
        };
        if concern == Concern::All {
            self.looked = Some(now);
            self.read_usage();
        }
        let room = self.room(now);
        let seen = Seen {
            snapshot,
            demand: &demand,
            due,
            idle_retention: self.links.idle_retention,
            parked: self.links.parked,
            room: &room,
            at: (self.links.now)(),
        };
        let (acts, endpoints) = self.scaling.plan(&seen, concern, now);
        self.links.endpoints.send_if_modified(|published| {
            let newer = published.version != endpoints.version;
            if newer {
                *published = endpoints;
            }
            newer
        });
        for act in acts {
            self.act(act, snapshot).await;
        }
    }

    async fn act(&mut self, act: Act, snapshot: &Snapshot) {
        match act {
            Act::Start(key, because) => {
                tracing::debug!(revision = %key, ?because, "one more instance");
                if let Some((revision, digest)) = ready(snapshot, &key) {
                    match self.spec(snapshot, revision, digest) {
                        Ok(spec) => self.start(revision, spec).await,
                        Err(Unreadable { id, why }) => {
                            tracing::warn!(revision = %key, why, "an instance cannot have its secrets");
                            self.links.engine.refuse(&id, &key, why);
                        }
                    }
                }
            }
            Act::Release(id, because) => {
                tracing::debug!(instance = %id, ?because, "a parked instance is let go");
                if let Err(error) = self.links.engine.release(&id) {
                    tracing::error!(instance = %id, error = with_causes(&error), "cannot let an instance go");
                }
            }
            Act::Park(key) => {
                if let Some((revision, digest)) = ready(snapshot, &key) {
                    match self.spec(snapshot, revision, digest) {
                        Ok(spec) => {
                            if let Err(error) = self.links.engine.park(spec).await {
                                tracing::error!(revision = %key, error = with_causes(&error), "cannot park an instance");
                            }
                        }
                        // Whoever needs one is told when it starts.
                        Err(Unreadable { why, .. }) => tracing::debug!(revision = %key, why, "none is parked"),
                    }
                }
            }
            Act::Reclaim(id) => {
                while self.reclaims.try_join_next().is_some() {}
                let engine = self.links.engine.clone();
                self.reclaims.spawn(async move {
                    match engine.reclaim(&id).await {
                        Ok(bytes) => tracing::debug!(instance = %id, bytes, "reclaimed"),
                        Err(error) => tracing::warn!(instance = %id, %error, "cannot reclaim memory"),
                    }
                });
            }
            Act::Stop(id) => {
                if let Err(error) = self.links.engine.stop(&id, GRACE).await {
                    tracing::error!(instance = %id, error = with_causes(&error), "cannot stop an instance");
                }
            }
            Act::Forget(id) => self.links.engine.forget(&id),
        }
    }

    /// Publishes the table first, then writes that it is so: a routing that is said to be in effect is.
    async fn publish_routes(&mut self, snapshot: &Snapshot, due: &BTreeMap<ServiceKey, Routed>) {
        if self.table_of != Some(snapshot.version) || !due.is_empty() {
            self.links
                .routes
                .send_replace(Arc::new(route::table(snapshot, due, &self.links.site)));
            self.table_of = Some(snapshot.version);
        }
        if due.is_empty() {
            return;
        }
        let written = due.clone();
        let result = self
            .links
            .store
            .transact(move |tx| -> Result<(), Superseded> {
                for (key, routed) in written {
                    if let Some(service) = tx.snapshot().service(&key)
                        && service.generation == routed.generation
                    {
                        let service = service.clone();
                        tx.put_service(model::Service { routed, ..service });
                    }
                }
                Ok(())
            })
            .await;
        match result {
            Ok(()) | Err(TransactError::Refused(Superseded)) => {}
            Err(TransactError::Storage(error)) => {
                tracing::error!(error = with_causes(&error), "cannot store where traffic goes");
            }
        }
    }
}

fn ready<'a>(snapshot: &'a Snapshot, key: &RevisionKey) -> Option<(&'a Revision, &'a str)> {
    let revision = snapshot.revision(key)?;
    match &revision.state {
        RevisionState::Ready { digest } => Some((revision, digest)),
        RevisionState::Resolving
        | RevisionState::Pulling { .. }
        | RevisionState::Probing { .. }
        | RevisionState::Failed { .. } => None,
    }
}

/// An instance that cannot have its secrets.
struct Unreadable {
    id: InstanceId,
    why: String,
}

/// The world moved on between the look and the write; the next turn looks again.
#[derive(Debug)]
struct Superseded;

async fn sleep(beat: Option<Duration>) {
    match beat {
        Some(beat) => tokio::time::sleep(beat).await,
        None => std::future::pending().await,
    }
}
