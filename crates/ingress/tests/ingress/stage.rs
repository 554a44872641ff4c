//! What the cases play on: one ingress on real ports, with routes and endpoints as a case wants them.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use capacity::{Endpoint, Endpoints, RevisionEndpoints};
use homerun_ingress::{
    Ingress, Inputs, Instances, Invokers,
    listen::{self, Limits, Listening, Ports},
};
use model::{
    Access, Activity, Binding, Concurrency, Container, Fate, INVOKER_ROLE, InstanceId, Member, OWNER_ROLE, Percent,
    Policy, Port, Principal, ProjectId, Protocol, Region, RequestRecord, RequestTimeout, Resource, Resources, Revision,
    RevisionKey, RevisionName, RevisionState, RevisionTemplate, Role, RouteTable, Routed, RoutedTarget, Scaling,
    Scheme, Service, ServiceKey, ServiceName, Site, Tag, Timestamp, Traffic,
};
use rustls::{RootCertStore, ServerConfig};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

use crate::{
    client::{Answer, Client, Via},
    server::Server,
};

pub(crate) const OWNER: &str = "owner@example.com";

pub(crate) fn id(number: u8) -> InstanceId {
    InstanceId::new([number; 12])
}

/// Of every revision of the stage's one service.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) concurrency: u32,
    pub(crate) timeout: u32,
    pub(crate) protocol: Protocol,
    pub(crate) session_affinity: bool,
    pub(crate) invokers: Vec<Member>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 80,
            timeout: 30,
            protocol: Protocol::Http1,
            session_affinity: false,
            invokers: vec![Member::AllUsers],
        }
    }
}

#[derive(Default)]
struct Seen {
    records: Mutex<Vec<RequestRecord>>,
    activity: Mutex<Vec<(InstanceId, Activity)>>,
    servers: Mutex<HashMap<InstanceId, SocketAddr>>,
    fates: Mutex<HashMap<InstanceId, Fate>>,
    wakes: AtomicUsize,
}

pub(crate) struct Stage {
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) site: Site,
    listening: Option<Listening>,
    routes: watch::Sender<Arc<RouteTable>>,
    endpoints: watch::Sender<Arc<Endpoints>>,
    seen: Arc<Seen>,
    /// Of a client that trusts the https port.
    pub(crate) roots: RootCertStore,
    _follower: tokio::task::JoinHandle<()>,
}

fn certificate() -> (RootCertStore, ServerConfig) {
    let names = vec!["*.a.run.localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a key that fits");
    (roots, config)
}

fn key() -> ServiceKey {
    ServiceKey {
        region: Region::parse("us-central1").expect("a region"),
        name: ServiceName::parse("hello").expect("a name"),
    }
}

pub(crate) fn revision_key(name: &str) -> RevisionKey {
    RevisionKey {
        service: key(),
        name: RevisionName::parse(name).expect("a name"),
    }
}

impl Stage {
    pub(crate) fn set() -> Self {
        Self::set_with(Limits::default())
    }

    pub(crate) fn set_with(limits: Limits) -> Self {
        let (routes, routes_receiver) = watch::channel(Arc::new(RouteTable::default()));
        let (endpoints, endpoints_receiver) = watch::channel(Arc::new(Endpoints::default()));
        let seen = Arc::new(Seen::default());
        let (connecting, told, asked) = (seen.clone(), seen.clone(), seen.clone());
        let (recorded, woken) = (seen.clone(), seen.clone());
        let ingress = Ingress::new(Inputs {
            routes: routes_receiver,
            endpoints: endpoints_receiver,
            instances: Instances {
                connect: Box::new(move |id| {
                    let addr = connecting.servers.lock().expect("lock")[id];
                    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
                    match socket.connect(&addr.into()) {
                        Err(error) if error.raw_os_error() != Some(115) => Err(error),
                        _ => Ok(socket.into()),
                    }
                }),
                activity: Box::new(move |id, activity| {
                    let mut list = told.activity.lock().expect("lock");
                    list.push((id.clone(), activity));
                }),
                fate: Box::new(move |id| {
                    let fates = asked.fates.lock().expect("lock");
                    fates.get(id).copied().unwrap_or(Fate::Alive)
                }),
            },
            invokers: Invokers {
                check: Box::new(|token, audiences| {
                    // `head.EMAIL.signature`, for the one audience that the route must name.
                    assert!(audiences.take("audience-of-its-own"), "{audiences:?}");
                    match token.split('.').collect::<Vec<_>>().as_slice() {
                        ["head", email, "signature"] => Ok(Arc::new(Principal::of(&email.replace('~', ".")))),
                        _ => Err("the signature does not fit".to_owned()),
                    }
                }),
                holds: Box::new(|_, _| true),
            },
            record: Box::new(move |record| recorded.records.lock().expect("lock").push(*record)),
            wake: Box::new(move || {
                woken.wakes.fetch_add(1, Ordering::SeqCst);
            }),
            now: || Timestamp::from_micros(1_700_000_000_000_000),
            seed: 7,
            affinity_key: [7; 32],
        });
        let (roots, config) = certificate();
        let local: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let ports = Ports {
            http: Some(local),
            https: Some((local, Arc::new(config))),
        };
        let threads = NonZeroUsize::new(2).expect("two");
        let listening = listen::open(&ingress, ports, limits, threads).expect("free ports");
        let following = ingress.clone();
        Self {
            http: listening.http().expect("it listens"),
            https: listening.https().expect("it listens"),
            site: Site {
                project: ProjectId::parse("my-project").expect("an id"),
                region: key().region,
                domain: "a.run.localhost".to_owned(),
                scheme: Scheme::Https,
                port: 443,
                default_sandbox: model::Sandbox::Gen2,
            },
            listening: Some(listening),
            routes,
            endpoints,
            seen,
            roots,
            _follower: tokio::spawn(async move { following.follow().await }),
            ingress,
        }
    }

    /// Routes the service: revision, percent, tag.
    pub(crate) async fn route(&self, targets: &[(&str, u8, Option<&str>)], settings: &Settings) {
        let template = RevisionTemplate {
            name: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            container: Container {
                name: String::new(),
                image: "hello".to_owned(),
                command: Vec::new(),
                args: Vec::new(),
                working_dir: None,
                env: Vec::new(),
                resources: Resources::default(),
                startup_probe: None,
                liveness_probe: None,
                readiness_probe: None,
                mounts: Vec::new(),
                depends_on: Vec::new(),
            },
            port: Port {
                protocol: settings.protocol,
                ..Port::default()
            },
            sidecars: Vec::new(),
            ingress_position: 0,
            volumes: Vec::new(),
            concurrency: Concurrency::new(settings.concurrency).expect("in range"),
            timeout: RequestTimeout::new(settings.timeout).expect("in range"),
            service_account: None,
            scaling: Scaling::default(),
            cpu_allocation: None,
            sandbox: None,
            startup_cpu_boost: None,
            session_affinity: Some(settings.session_affinity),
            kpa: None,
        };
        let zero = Timestamp::default();
        let revisions: Vec<Revision> = targets
            .iter()
            .map(|(name, _, _)| Revision {
                key: revision_key(name),
                uid: String::new(),
                service_uid: String::new(),
                template_generation: 1,
                created: zero,
                creator: String::new(),
                template: template.clone(),
                sidecar_digests: Vec::new(),
                state: RevisionState::Ready { digest: "d".to_owned() },
                since: zero,
            })
            .collect();
        let service = Service {
            key: key(),
            uid: String::new(),
            generation: 1,
            template_generation: 1,
            resource_version: 1,
            created: zero,
            updated: zero,
            creator: String::new(),
            modifier: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            template,
            scaling: model::ServiceScaling::default(),
            custom_audiences: vec!["audience-of-its-own".to_owned()],
            traffic: Traffic::latest(),
            policy: Policy {
                bindings: vec![Binding {
                    role: Role::parse(INVOKER_ROLE).expect("a role"),
                    members: settings.invokers.clone(),
                    condition: None,
                }],
                version: 1,
            },
            routed: Routed {
                generation: 1,
                since: zero,
                targets: targets
                    .iter()
                    .map(|(name, percent, tag)| RoutedTarget {
                        revision: RevisionName::parse(name).expect("a name"),
                        latest: false,
                        percent: Percent::new(*percent),
                        tag: tag.map(|tag| Tag::parse(tag).expect("a tag")),
                    })
                    .collect(),
            },
        };
        let project = Policy {
            bindings: vec![Binding {
                role: Role::parse(OWNER_ROLE).expect("a role"),
                members: vec![Member::User(OWNER.to_owned())],
                condition: None,
            }],
            version: 1,
        };
        let table = RouteTable::build(
            1,
            &self.site,
            std::iter::once(&service),
            |_, name| revisions.iter().find(|revision| revision.key.name == *name),
            |service| Access {
                resource: Resource::Service(service.key.clone()),
                policies: vec![Arc::new(service.policy.clone()), Arc::new(project.clone())],
                groups: Arc::default(),
            },
        );
        self.routes.send_replace(Arc::new(table));
        self.settled().await;
    }

    /// Publishes these endpoints and no others.
    pub(crate) async fn publish(&self, revisions: &[(&str, RevisionEndpoints)]) {
        let version = self.endpoints.borrow().version + 1;
        let revisions = revisions
            .iter()
            .map(|(name, endpoints)| (revision_key(name), Arc::new(endpoints.clone())))
            .collect();
        self.endpoints.send_replace(Arc::new(Endpoints { version, revisions }));
        self.until("endpoints to be applied", || self.ingress.demand().applied == version)
            .await;
    }

    async fn settled(&self) {
        // The follower is a task of this thread: it has run when others got their turn.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..500 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited 5 s for {what}");
    }

    /// One instance is this server from now on.
    pub(crate) fn place(&self, id: InstanceId, server: &Server) {
        self.place_at(id, server.addr);
    }

    pub(crate) fn place_at(&self, id: InstanceId, addr: SocketAddr) {
        self.seen.servers.lock().expect("lock").insert(id, addr);
    }

    pub(crate) fn fate(&self, id: InstanceId, fate: Fate) {
        self.seen.fates.lock().expect("lock").insert(id, fate);
    }

    pub(crate) fn wakes(&self) -> usize {
        self.seen.wakes.load(Ordering::SeqCst)
    }

    pub(crate) fn activity(&self) -> Vec<(InstanceId, Activity)> {
        self.seen.activity.lock().expect("lock").clone()
    }

    /// The records, once there are so many; then a little later, to see that there are not more.
    pub(crate) async fn records(&self, count: usize) -> Vec<RequestRecord> {
        self.until("records", || self.seen.records.lock().expect("lock").len() >= count)
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let records = self.seen.records.lock().expect("lock").clone();
        assert_eq!(records.len(), count, "{records:#?}");
        records
    }

    /// All records, once no more come.
    pub(crate) async fn all_records(&self) -> Vec<RequestRecord> {
        loop {
            let before = self.seen.records.lock().expect("lock").len();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let records = self.seen.records.lock().expect("lock");
            if records.len() == before {
                return records.clone();
            }
        }
    }

    pub(crate) async fn queued(&self, count: u32) {
        self.until("the queue", || {
            let demand = self.ingress.demand();
            demand.revisions.values().map(|r| r.queued).sum::<u32>() == count
        })
        .await;
    }

    pub(crate) async fn in_flight(&self, count: u32) {
        self.until("requests in flight", || {
            let demand = self.ingress.demand();
            demand.revisions.values().map(|r| r.in_flight).sum::<u32>() == count
        })
        .await;
    }

    pub(crate) fn host(&self) -> String {
        self.site.host(&key())
    }

    pub(crate) fn drain(&mut self, limit: Duration) -> impl Future<Output = usize> + use<> {
        self.listening.take().expect("it listens").drain(limit)
    }

    /// One GET by a new connection.
    pub(crate) async fn get(&self, via: Via, path: &str) -> Answer {
        let mut client = Client::open(self, via).await;
        client.get(path).await
    }
}

pub(crate) fn ready(instances: &[u8]) -> RevisionEndpoints {
    RevisionEndpoints {
        instances: instances
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
