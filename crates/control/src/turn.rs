//! One turn: read everything, plan, act. Then sleep until woken.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use capacity::{Demand, Endpoints, autoscaler::Tick};
use engine::Engine;
use image::Images;
use model::{
    InstanceId, InstanceSpec, Observed, Revision, RevisionKey, RevisionState, RouteTable, Routed, ServiceKey, Site,
    Timestamp,
};
use store::{Snapshot, Store, TransactError};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    pull::{self, Outcome},
    revision::{self, Step},
    route,
    scale::{Act, Scaling, Seen},
    service,
};

/// How long an instance may take to end after SIGTERM (container contract).
const GRACE: Duration = Duration::from_secs(10);
/// How often to look while instances live: idle times and means move with the clock alone.
const BEAT: Duration = Duration::from_secs(1);
/// How often to look while a drain or a backoff is under way.
const QUICK_BEAT: Duration = Duration::from_millis(100);

/// What control is joined to. Made by the wiring.
pub struct Links {
    pub store: Store,
    pub engine: Arc<Engine>,
    pub images: Images,
    pub site: Site,
    /// How long an instance without a request is kept.
    pub idle_retention: Duration,
    /// What the ingress counts now.
    pub demand: Box<dyn Fn() -> Demand + Send + Sync>,
    /// Rung by the ingress when a request had to wait.
    pub wake: Arc<Notify>,
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
    started: Instant,
    table_of: Option<u64>,
}

impl Control {
    pub fn new(links: Links) -> Self {
        Self {
            links,
            scaling: Scaling::default(),
            work: JoinSet::new(),
            begun: BTreeSet::new(),
            started: Instant::now(),
            table_of: None,
        }
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
                () = sleep(beat) => {}
            }
        }
        self.work.shutdown().await;
    }

    fn beat(&self, observed: &Observed) -> Option<Duration> {
        if self.scaling.is_waiting() {
            Some(QUICK_BEAT)
        } else if observed.instances.is_empty() {
            None
        } else {
            Some(BEAT)
        }
    }

    async fn turn(&mut self) {
        let snapshot = self.links.store.snapshot();
        let observed = self.links.engine.observe().borrow().clone();
        self.create_revisions(&snapshot).await;
        for step in revision::plan(&snapshot, &observed, &self.begun) {
            self.take(step, &snapshot).await;
        }
        let due = route::plan(&snapshot, (self.links.now)());
        self.scale(&snapshot, &observed, &due).await;
        self.publish_routes(&snapshot, &due).await;
    }

    async fn create_revisions(&self, snapshot: &Snapshot) {
        for service in service::plan(snapshot) {
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
                    tracing::error!(service = %service.key, error = told(&error), "cannot store a new revision");
                }
            }
        }
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
                    self.start(revision, &digest).await;
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
                tracing::error!(revision = %key, error = told(&error), "cannot store a revision's state");
            }
        }
    }

    async fn start(&self, revision: &Revision, digest: &str) {
        let chance = (self.links.chance)().to_le_bytes();
        let id = InstanceId::new(chance[..12].try_into().expect("12 of 16 bytes"));
        let image = model::bare_digest(digest).to_owned();
        let spec = InstanceSpec::derive(id, revision, image, &self.links.site);
        if let Err(error) = self.links.engine.start(spec).await {
            tracing::error!(revision = %revision.key, error = told(&error), "cannot start an instance");
        }
    }

    async fn scale(&mut self, snapshot: &Snapshot, observed: &Observed, due: &BTreeMap<ServiceKey, Routed>) {
        let demand = (self.links.demand)();
        let now = Tick(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let seen = Seen {
            snapshot,
            observed,
            demand: &demand,
            due,
            idle_retention: self.links.idle_retention,
        };
        let (acts, endpoints) = self.scaling.plan(&seen, now);
        self.links.endpoints.send_if_modified(|published| {
            let newer = published.version != endpoints.version;
            if newer {
                *published = endpoints;
            }
            newer
        });
        for act in acts {
            match act {
                Act::Start(key, because) => {
                    tracing::debug!(revision = %key, ?because, "one more instance");
                    if let Some(revision) = snapshot.revision(&key)
                        && let RevisionState::Ready { digest } = &revision.state
                    {
                        self.start(revision, digest).await;
                    }
                }
                Act::Stop(id) => {
                    if let Err(error) = self.links.engine.stop(&id, GRACE).await {
                        tracing::error!(instance = %id, error = told(&error), "cannot stop an instance");
                    }
                }
                Act::Forget(id) => self.links.engine.forget(&id),
            }
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
                tracing::error!(error = told(&error), "cannot store where traffic goes");
            }
        }
    }
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

/// An error with its causes, in one line.
pub(crate) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
pub(crate) mod cases {
    //! Small worlds for the tables of the plans.

    use std::collections::BTreeMap;

    use model::{
        Concurrency, Container, Policy, Port, ProjectId, Region, RequestTimeout, Resources, RevisionName,
        RevisionTemplate, RoutedTarget, Scheme, Service, ServiceName, Traffic,
    };

    use super::*;

    pub(crate) fn site() -> Site {
        Site {
            project: ProjectId::parse("my-project").expect("an id"),
            region: Region::parse("us-central1").expect("a region"),
            domain: "a.run.localhost".to_owned(),
            scheme: Scheme::Http,
            port: 8081,
            default_sandbox: model::Sandbox::Gen2,
        }
    }

    /// A service whose template was changed `template_generation` times.
    pub(crate) fn service(name: &str, template_generation: u64) -> Service {
        Service {
            key: ServiceKey {
                region: site().region,
                name: ServiceName::parse(name).expect("a name"),
            },
            uid: format!("uid-of-{name}"),
            generation: template_generation,
            template_generation,
            resource_version: 1,
            created: Timestamp::from_micros(1),
            updated: Timestamp::from_micros(1),
            creator: "owner@example.com".to_owned(),
            modifier: "owner@example.com".to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            template: RevisionTemplate {
                name: None,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                container: Container {
                    name: String::new(),
                    image: "us-docker.pkg.dev/cloudrun/container/hello".to_owned(),
                    command: vec![],
                    args: vec![],
                    working_dir: None,
                    env: vec![],
                    resources: Resources::default(),
                    startup_probe: None,
                    liveness_probe: None,
                    readiness_probe: None,
                    mounts: Vec::new(),
                    depends_on: Vec::new(),
                },
                port: Port::default(),
                sidecars: Vec::new(),
                ingress_position: 0,
                volumes: Vec::new(),
                concurrency: Concurrency::default_for(1000),
                timeout: RequestTimeout::default(),
                service_account: None,
                scaling: model::Scaling::default(),
                cpu_allocation: None,
                sandbox: None,
                startup_cpu_boost: None,
                session_affinity: None,
                kpa: None,
            },
            scaling: model::ServiceScaling::default(),
            traffic: Traffic::latest(),
            policy: Policy::default(),
            routed: Routed::default(),
        }
    }

    pub(crate) fn revision(service: &Service, template_generation: u64) -> Revision {
        Revision {
            key: RevisionKey {
                service: service.key.clone(),
                name: RevisionName::numbered(&service.key.name, template_generation, ['a', 'b', 'c']),
            },
            uid: String::new(),
            service_uid: service.uid.clone(),
            template_generation,
            created: Timestamp::from_micros(2),
            creator: service.creator.clone(),
            template: service.template.clone(),
            sidecar_digests: Vec::new(),
            state: RevisionState::Resolving,
            since: Timestamp::from_micros(2),
        }
    }

    pub(crate) fn ready(revision: Revision) -> Revision {
        Revision {
            state: RevisionState::Ready { digest: "d".to_owned() },
            ..revision
        }
    }

    pub(crate) fn routed(service: Service, revision: &Revision) -> Service {
        let target = RoutedTarget {
            revision: revision.key.name.clone(),
            latest: true,
            percent: Some(model::Percent::ALL),
            tag: None,
        };
        let routed = Routed {
            generation: service.generation,
            since: Timestamp::from_micros(3),
            targets: vec![target],
        };
        Service { routed, ..service }
    }

    pub(crate) fn snapshot(services: &[Service], revisions: &[Revision]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for service in services {
            snapshot.services.insert(service.key.clone(), Arc::new(service.clone()));
        }
        for revision in revisions {
            snapshot
                .revisions
                .insert(revision.key.clone(), Arc::new(revision.clone()));
        }
        snapshot
    }
}
