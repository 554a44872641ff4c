//! Joins the crates: makes the channels, hands each its ends, and takes them down in order.

mod leaving;

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use anyhow::Context as _;
use capacity::Endpoints;
use engine::Engine;
use image::Images;
use ingress::{Ingress, listen};
use model::{Entry, InstanceId, LogLine, RouteTable, Site, StartRecord};
use socket2::{Domain, Socket, Type};
use store::{Journal, Store};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    config::Config,
    handover::{Busy, Inheritance, Sockets},
    inside, invoker, passphrase,
};

/// Lines of output that may wait for the journal.
const LOG_LINES: usize = 4096;
/// How long an instance may take to end at shutdown (container contract).
const GRACE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 1024;
/// Connections of instances to Homerun itself that may wait to be served.
const CALLS: usize = 256;

/// The hello image's program, built by `build.rs`.
static HELLO: &[u8] = include_bytes!(env!("HOMERUN_HELLO"));

/// Everything that runs, to be taken down by [`Homerun::stop`].
pub(crate) struct Homerun {
    pub(crate) api: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) data_dir: PathBuf,
    engine: Arc<Engine>,
    journal: Journal,
    listening: listen::Listening,
    stop_door: oneshot::Sender<()>,
    door: JoinHandle<door::Drained>,
    stop_control: oneshot::Sender<()>,
    control: JoinHandle<()>,
    stop_cleaning: oneshot::Sender<()>,
    cleaning: JoinHandle<()>,
    stop_builds: oneshot::Sender<()>,
    builds: JoinHandle<()>,
    /// Following routes and endpoints, and writing down lines: end by themselves when their senders are gone.
    followers: Vec<JoinHandle<()>>,
    rotating: JoinHandle<()>,
    inside: inside::Serving,
    /// The ports once more, for the next one.
    sockets: Sockets,
    kept: Kept,
    lending: JoinHandle<()>,
}

/// What is asked while another one takes over.
struct Kept {
    store: Store,
    ingress: Arc<Ingress>,
}

impl Homerun {
    /// From nothing, or with what another one hands over.
    pub(crate) async fn start(config: Config, inheritance: Option<Inheritance>) -> anyhow::Result<Self> {
        let data_dir = open_data_dir(&config.data_dir)?;
        // The store's lock is the data directory's: nothing else is touched by a second start.
        let store = Store::open(&data_dir)?;
        let journal = Journal::open(&data_dir.join("log"))?;
        let keys = Arc::new(identity::Keys::open(
            &data_dir.join("identity"),
            config.project.as_str(),
            crate::seconds(),
        )?);
        let passphrase = passphrase::read(config.secrets_passphrase_file.as_deref())?;
        let vault = {
            let dir = data_dir.join("secrets");
            // A passphrase takes a while.
            let opened = tokio::task::spawn_blocking(move || secret::Vault::open(&dir, passphrase.as_ref()));
            let vault = opened.await.context("opening the keys of secrets broke off")?;
            Arc::new(vault.context("cannot use the keys of secrets (--secrets-passphrase-file)")?)
        };
        let authority = Arc::new(door::Authority::open(&data_dir.join("ca"), crate::seconds())?);
        let images = Images::open(&data_dir.join("images"))?;
        let objects = bucket::Objects::open(&data_dir.join("storage"))?;
        let builds_dir = data_dir.join("builds");
        build::open(&builds_dir).with_context(|| format!("cannot use {}", builds_dir.display()))?;
        image::hello::install(&images, HELLO)
            .await
            .context("cannot store the hello image")?;
        // The built-in image is stored in any case.
        images.set_quota(config.registry_quota);

        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let (sockets, busy) = if let Some(Inheritance { sockets, busy }) = inheritance {
            (sockets, busy)
        } else {
            let api = bind_alone(config.api)?;
            let ingress = listen::Open::bind(Some(config.http), Some(config.https), cores)
                .map_err(|error| name_flag(error, config.http, config.https))?;
            (Sockets { api, ingress }, watch::channel(Arc::default()).1)
        };
        let Sockets {
            api: api_listener,
            ingress: open,
        } = sockets.share().context("cannot share sockets")?;
        let api = api_listener.local_addr()?;

        let conditions = Arc::new(identity::Conditions::default());
        let (lines, log) = mpsc::channel(LOG_LINES);
        let (starts, started) = mpsc::channel(LOG_LINES);
        let (calls, called) = mpsc::channel(CALLS);
        let http = open.http().expect("asked for");
        let https = open.https().expect("asked for");
        let public = match config.url_scheme {
            model::Scheme::Http => http.port(),
            model::Scheme::Https => https.port(),
        };
        let engine = Engine::open(engine::Settings {
            data_dir: data_dir.clone(),
            id8: model::data_dir_id(data_dir.as_os_str().as_encoded_bytes()),
            images: images.clone(),
            log: lines,
            starts,
            launcher: std::env::current_exe().context("cannot find this program's own file")?,
            runtime: PathBuf::from("crun"),
            adoption: config.adoption_window,
            egress: config.egress,
            inside: Some(engine::Inside {
                doors: engine::Doors {
                    domain: config.domain.clone(),
                    http: http.port(),
                    https: https.port(),
                    public,
                },
                calls,
                authority: std::fs::read_to_string(authority.certificate_file())
                    .context("cannot read the certificate that services are to trust")?,
            }),
            maker: config.runtime,
            gvisor_path: std::env::var_os("PATH").unwrap_or_default(),
            first_id: engine::FIRST_ID,
        })
        .await?;
        let engine = Arc::new(engine);
        engine.lend(&leaving::instances_of(&busy.borrow()));

        let (routes, routes_seen) = watch::channel(Arc::new(RouteTable::default()));
        let (endpoints, endpoints_seen) = watch::channel(Arc::new(Endpoints::default()));
        let mut first_routes = routes_seen.clone();
        let wake = Arc::new(Notify::new());
        let ingress = Ingress::new(ingress::Inputs {
            routes: routes_seen,
            endpoints: endpoints_seen,
            instances: instances(&engine),
            invokers: invoker::invokers(&keys, &store, &conditions, &config.project),
            record: {
                let journal = journal.clone();
                Box::new(move |record| journal.write(&Entry::Request(record)))
            },
            wake: {
                let wake = wake.clone();
                Box::new(move || wake.notify_one())
            },
            now: crate::now,
            affinity_key: affinity_key(&data_dir.join("identity"))?,
            seed: u64::try_from(crate::chance() & u128::from(u64::MAX)).expect("masked to 64 bits"),
        });

        let domain = config.domain.clone();
        let side: door::SideOf = Arc::new(move |host: &str| {
            let below = host
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
            below.then_some(door::Side::Ingress)
        });
        let tls = authority.server_config(side.clone(), crate::seconds, &[b"h2", b"http/1.1"]);

        let site = Site {
            project: config.project,
            region: config.region,
            domain: config.domain,
            scheme: config.url_scheme,
            port: public,
            default_sandbox: config.default_execution_environment,
        };
        let control = control::Control::new(control::Links {
            store: store.clone(),
            engine: engine.clone(),
            images: images.clone(),
            vault: vault.clone(),
            site: site.clone(),
            holds: invoker::holds(&conditions, &site.project),
            idle_retention: config.idle_retention,
            parked: config.parked,
            demand: {
                let (ingress, busy) = (ingress.clone(), busy.clone());
                Box::new(move |of| {
                    let mut demand = match of {
                        None => ingress.demand(),
                        Some(revisions) => ingress.demand_of(revisions),
                    };
                    for (revision, instance, in_flight) in busy.borrow().iter() {
                        if of.is_none_or(|of| of.contains(revision)) {
                            demand.add(revision, instance, *in_flight);
                        }
                    }
                    demand
                })
            },
            wake,
            rung: {
                let ingress = ingress.clone();
                Box::new(move || ingress.take_rung())
            },
            routes,
            endpoints,
            now: crate::now,
            chance: crate::chance,
        });
        let store_of_control = store.clone();
        let decisions = control.decisions();
        let held = {
            let (store, engine) = (store.clone(), Arc::downgrade(&engine));
            // Weak, so that the end of the process finds nobody holding the engine.
            move || {
                let engine = engine.upgrade()?;
                Some(control::garbage::held(&store, &engine))
            }
        };
        let (stop_cleaning, cleaning_stopped) = oneshot::channel::<()>();
        let cleaning = tokio::spawn(control::garbage::keep_clean(
            images.clone(),
            store.clone(),
            site.project.clone(),
            crate::now,
            held.clone(),
            async move { drop(cleaning_stopped.await) },
        ));
        let (stop_builds, builds_stopped) = oneshot::channel::<()>();
        let builds = tokio::spawn(build::run(
            build::Links {
                store: store.clone(),
                images: images.clone(),
                objects: objects.clone(),
                engine: engine.clone(),
                dir: builds_dir.clone(),
                cache_bytes: config.build_cache,
                memory_bytes: config.build_memory,
                disk_bytes: config.build_disk,
                indexes: config.build_indexes,
                bases: config.build_bases.clone(),
                builder: config.build_builder,
                secrets: {
                    let (store, vault, site) = (store.clone(), vault.clone(), site.clone());
                    let holds = invoker::holds(&conditions, &site.project);
                    build::Secrets(Box::new(move |of| {
                        let reader = control::SecretReader {
                            vault: &vault,
                            site: &site,
                            holds: &holds,
                            snapshot: &store.snapshot(),
                            now: crate::now(),
                        };
                        reader.for_build(of)
                    }))
                },
                cpu_millis: u32::try_from(cores.get() * 1000).unwrap_or(u32::MAX),
                now: crate::now,
                chance: crate::chance,
            },
            async move { drop(builds_stopped.await) },
        ));
        let surface = Arc::new(api::Surface {
            store,
            images,
            objects,
            vault,
            keys,
            site,
            now: crate::now,
            journal: {
                let journal = journal.clone();
                Box::new(move |entry| journal.write(&entry))
            },
            conditions,
            decisions: Box::new(move |service| decisions.of_service(service)),
            held: Box::new(held),
            operations: api::Operations::default(),
            build_logs: build::logs(&builds_dir),
            about: api::About {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                data_dir: data_dir.clone(),
                api,
                http,
                https,
            },
        });
        let rotating = tokio::spawn(invoker::rotate(surface.keys.clone()));
        surface
            .establish()
            .await
            .context("cannot write down who owns this Homerun")?;
        let (stop_control, control_stopped) = oneshot::channel();
        let control = tokio::spawn(control.run(async move { drop(control_stopped.await) }));
        // Control's first turn. Until then clients wait in the kernel's queue: nobody hears that a service is not there.
        drop(first_routes.changed().await);
        ingress.catch_up();
        let listening = listen::serve(&ingress, open, Some(&tls), listen::Limits::default())
            .map_err(|error| name_flag(error, config.http, config.https))?;
        let metadata = Arc::new(api::Metadata::new(surface.clone()));
        let inside = inside::Serving::start(called, engine.observe(), metadata, listening.bringing());
        let (stop_door, door_stopped) = oneshot::channel();
        let door = tokio::spawn(door::serve(
            tokio::net::TcpListener::from_std(api_listener)?,
            Arc::new(door::Door {
                authority,
                clock: crate::seconds,
                side,
                api: answered_by_api(surface),
                ingress: answered_by_ingress(ingress.clone()),
                service_ports: door::ServicePorts {
                    https: vec![443, https.port()],
                    http: vec![80, http.port()],
                },
                limits: door::Limits::default(),
            }),
            async move { drop(door_stopped.await) },
        ));
        let lending = tokio::spawn(lend(engine.clone(), busy));
        let kept = Kept {
            store: store_of_control,
            ingress: ingress.clone(),
        };
        let followers = vec![
            tokio::spawn(async move { ingress.follow().await }),
            tokio::spawn(write_lines(log, journal.clone())),
            tokio::spawn(write_starts(started, journal.clone())),
        ];
        Ok(Self {
            api,
            http,
            https,
            data_dir,
            engine,
            journal,
            listening,
            stop_door,
            door,
            stop_control,
            control,
            stop_cleaning,
            cleaning,
            stop_builds,
            builds,
            followers,
            rotating,
            inside,
            sockets,
            kept,
            lending,
        })
    }

    /// What runs the instances, for who ends them while [`Self::stop`] is on its way.
    pub(crate) fn engine(&self) -> Weak<Engine> {
        Arc::downgrade(&self.engine)
    }

    /// No new connections; requests under way end within `limit`; then control, the instances, and what is left.
    pub(crate) async fn stop(self, limit: Duration) {
        self.lending.abort();
        self.rotating.abort();
        drop(self.sockets);
        drop(self.kept);
        drop(self.stop_door);
        let (cut, drained) = tokio::join!(self.listening.drain(limit), self.door);
        let cut = cut + drained.map_or(0, |drained| drained.cut);
        if cut > 0 {
            tracing::warn!(connections = cut, "cut off at the deadline");
        }
        drop((self.stop_control, self.stop_cleaning, self.stop_builds));
        if let Err(error) = self.builds.await {
            tracing::error!(%error, "builds broke off");
        }
        if let Err(error) = self.cleaning.await {
            tracing::error!(%error, "the collection of image content broke off");
        }
        if let Err(error) = self.control.await {
            tracing::error!(%error, "control broke off");
        }
        let [following, lines, starts] = <[_; 3]>::try_from(self.followers).expect("three are made");
        drop(following.await);
        // The ingress is gone with its threads and its follower, and with it every other hold on the engine.
        if let Some(engine) = Arc::into_inner(self.engine) {
            engine.shutdown(GRACE).await;
        } else {
            tracing::error!("something still holds the engine; its launcher ends the instances");
        }
        self.inside.end().await;
        drop((lines.await, starts.await));
        let dropped = self.journal.dropped();
        if dropped > 0 {
            tracing::warn!(entries = dropped, "the journal could not keep up and left out entries");
        }
    }
}

async fn lend(engine: Arc<Engine>, mut busy: watch::Receiver<Arc<Busy>>) {
    while busy.changed().await.is_ok() {
        let instances = leaving::instances_of(&busy.borrow_and_update());
        engine.lend(&instances);
    }
}

/// Made if missing, and its real path: everything shared on the machine is named after it.
fn open_data_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .and_then(|()| dir.canonicalize())
        .with_context(|| format!("cannot use the data directory {}", dir.display()))
}

/// Made at the first start and kept, so that the cookies of session affinity outlive a restart.
fn affinity_key(dir: &Path) -> anyhow::Result<[u8; 32]> {
    let file = dir.join("affinity.key");
    if identity::key_file::read(&file)?.is_none() {
        let text = format!("{:032x}{:032x}", crate::chance(), crate::chance());
        identity::key_file::create(&file, &text, 0o600)?;
    }
    let kept = identity::key_file::read(&file)?.unwrap_or_default();
    let half = |at: std::ops::Range<usize>| kept.trim().get(at).and_then(|hex| u128::from_str_radix(hex, 16).ok());
    let (Some(first), Some(second)) = (half(0..32), half(32..64)) else {
        anyhow::bail!("{} does not hold 64 hex digits", file.display());
    };
    let mut key = [0; 32];
    key[..16].copy_from_slice(&first.to_be_bytes());
    key[16..].copy_from_slice(&second.to_be_bytes());
    Ok(key)
}

/// A listener on a port that nobody else has.
fn bind_alone(addr: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = || -> std::io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listener().with_context(|| format!("cannot listen on {addr} (--api)"))
}

/// The ingress knows addresses; who reads the error knows flags.
fn name_flag(error: listen::Error, http: SocketAddr, https: SocketAddr) -> anyhow::Error {
    match error {
        listen::Error::Bind { addr, source } => {
            let flag = match (addr == http, addr == https) {
                (true, true) => "--http and --https",
                (false, true) => "--https",
                (_, false) => "--http",
            };
            anyhow::Error::new(source).context(format!("cannot listen on {addr} ({flag})"))
        }
        error @ listen::Error::Thread(_) => error.into(),
    }
}

fn instances(engine: &Arc<Engine>) -> ingress::Instances {
    let (connect, activity, fate) = (engine.clone(), engine.clone(), engine.clone());
    ingress::Instances {
        connect: Box::new(move |id: &InstanceId| connect.connect(id)),
        activity: Box::new(move |id, edge| activity.activity(id, edge)),
        fate: Box::new(move |id| fate.fate(id)),
    }
}

fn answered_by_api(surface: Arc<api::Surface>) -> door::Answer {
    Arc::new(move |arrival, mut request| {
        let surface = surface.clone();
        request.extensions_mut().insert(api::Peer(arrival.peer));
        Box::pin(async move { api::answer(&surface, &arrival.host, request).await })
    })
}

fn answered_by_ingress(ingress: Arc<Ingress>) -> door::Answer {
    Arc::new(move |arrival, request| {
        let ingress = ingress.clone();
        let scheme = if arrival.secure {
            model::Scheme::Https
        } else {
            model::Scheme::Http
        };
        let arrival = ingress::Arrival::new(arrival.peer.ip(), scheme);
        Box::pin(async move {
            let mut response = ingress.serve(&arrival, request).await;
            if let Some(tunnel) = response.extensions_mut().remove::<ingress::Tunnel>() {
                response.extensions_mut().insert(door::Onward::new(tunnel.run()));
            }
            response
        })
    })
}

async fn write_starts(mut starts: mpsc::Receiver<StartRecord>, journal: Journal) {
    while let Some(start) = starts.recv().await {
        journal.write(&Entry::Start(start));
    }
}

async fn write_lines(mut lines: mpsc::Receiver<LogLine>, journal: Journal) {
    while let Some(line) = lines.recv().await {
        journal.write(&Entry::Line(line));
    }
}
