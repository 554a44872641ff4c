//! Runs instances and tells what runs.
//!
//! What enters: an [`InstanceSpec`], the order to stop, and the edges between idle and busy. What leaves: [`Observed`],
//! the whole of what is there, in a `watch` channel; lines of output; and sockets that are connected inside an
//! instance's own network. This crate knows nothing of services, routes or traffic. It is the only one that touches
//! namespaces, control groups, mounts and child processes, and the only one with `unsafe` code, in single modules.
//!
//! ```text
//! server ── Engine ── socket ── launcher (same binary) ── crun create ── instance
//!              │                    └ parent of every instance: learns its exit, ends all when the server dies
//!              └ one task per instance (life), one that freezes idle ones (cpu) and says what that cut off (cutoff)
//! ```
//!
//! The container runtime is `crun`, by its command line, with a configuration that is a pure function of the spec
//! (`bundle`); an instance of the first generation has gVisor's `runsc` in a room of its own (`gvisor`). Version 1 of
//! control groups, alone or beside an empty version 2 tree, is tested with real instances; for machines with version 2
//! only, configuration and parsing are tested as text, and nothing more was tried.

mod adoption;
mod board;
mod builder;
mod bundle;
mod calls;
mod cgroup;
mod claim;
mod company;
mod cpu;
mod cutoff;
mod doctor;
mod egress;
mod error;
mod fate;
mod gate;
mod gvisor;
mod ids;
mod keeping;
mod launch;
mod launcher;
mod life;
mod listening;
mod netlink;
mod network;
mod output;
mod phases;
mod probe;
mod process;
mod records;
mod reports;
mod room;
mod rootfs;
mod sandbox;
mod seccomp;
mod secret_files;
mod settings;
mod sweep;
mod trust;
mod usage;
mod watched;
mod wire;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use image::Images;
use model::{Activity, Exit, ExitCause, InstanceId, InstanceSpec, InstanceState, Observed, StartRecord, Timestamp};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    board::Board,
    cgroup::{Freezer, Layout},
    claim::{Claim, RunDir, Wait},
    cpu::Linger,
    ids::Ranges,
    launch::Link,
    launcher::Duty,
    life::Entry,
    network::{ADDRESS, Home},
    output::Log,
    phases::Ordered,
    wire::Order,
};
pub use crate::{
    builder::{
        BUILDER, BUILDER_SECRETS, BuilderEnd, BuilderError, BuilderMount, BuilderSpec, Building, Privileges,
        builder_main, libraries_of,
    },
    calls::{Call, Door},
    doctor::{Finding, builder_program, doctor},
    egress::{EGRESS, egress_main},
    error::{OpenError, StartError, StopError},
    gvisor::first_generation,
    ids::FIRST_ID,
    launch::LaunchError,
    launcher::{LAUNCHER, launcher_main},
    settings::{Doors, Egress, Inside, Maker, Settings},
    sweep::sweep_dead,
    wire::VERSION as LAUNCHER_VERSION,
};

/// How long a dying Homerun of the same data directory may take to be gone.
const CLAIM_PATIENCE: Duration = Duration::from_secs(15);

/// Runs instances on this machine. Dropped without [`Engine::shutdown`], its instances are killed.
#[derive(Debug)]
pub struct Engine {
    inner: Arc<Inner>,
    lives: Mutex<JoinSet<()>>,
    freezing: JoinHandle<()>,
    /// What listens to the launcher. None after a shutdown.
    listening: Mutex<Option<JoinHandle<()>>>,
    /// What takes calls of instances to Homerun itself.
    calling: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    id8: String,
    images: Images,
    layout: Layout,
    maker: Maker,
    /// This very program, which builders' parents are too.
    launcher: PathBuf,
    starts: mpsc::Sender<StartRecord>,
    limits_swap: bool,
    open_files: u64,
    run: RunDir,
    home: Home,
    log: Arc<Log>,
    ranges: Ranges,
    entries: RwLock<HashMap<InstanceId, Arc<Entry>>>,
    out_of_memory: fate::OutOfMemory,
    board: Board,
    linger: Linger,
    /// None while there is no launcher.
    link: watch::Sender<Option<Arc<Link>>>,
    /// As many as [`creations`] says.
    creations: Semaphore,
    /// Turns to be asked to end; see `life/ending`.
    endings: Semaphore,
    /// Turns to be cleared away, one for every two CPUs: the kernel removes one control group at a time, and more
    /// threads would only wait for each other and take the CPU from who serves requests.
    clearings: Semaphore,
    /// One instance's memory is pushed out at a time: it is work for the disk, and nobody waits for it.
    reclaiming: Semaphore,
    closing: AtomicBool,
    claim: Mutex<Option<Claim>>,
    gvisor_path: std::ffi::OsString,
    gvisor: tokio::sync::OnceCell<gvisor::Gvisor>,
    /// The certificates that programs of instances are told to trust.
    trust: Option<trust::Trust>,
    /// Whether instances may outlive us.
    adoptable: bool,
}

/// As it was when this was first asked: the answer costs the reading of three files.
fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// How many instances the runtime may create at a time: more only slow each other down.
fn creations() -> usize {
    3 * cpus()
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

impl Engine {
    /// Claims the data directory's id on this machine, sweeps what an earlier owner left, and starts the launcher.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        if !claim::is_id8(&settings.id8) {
            return Err(OpenError::Id8(settings.id8));
        }
        let failed = |action| move |source| OpenError::Io { action, source };
        let layout = Layout::here()
            .map_err(failed("read the mounts of this machine"))?
            .ok_or(OpenError::NoGroups)?;
        let claim = {
            let id8 = settings.id8.clone();
            let data_dir = settings.data_dir.clone();
            let claimed = tokio::task::spawn_blocking(move || -> io::Result<Option<Claim>> {
                let claim = Claim::take(&id8, Wait::ForCleaner(CLAIM_PATIENCE))?;
                claim.map(|mut claim| claim.sign(&data_dir).map(|()| claim)).transpose()
            });
            claimed
                .await
                .map_err(io::Error::other)
                .and_then(|claimed| claimed)
                .map_err(failed("claim the data directory's id"))?
        };
        let runtime = doctor::program(&settings.runtime);
        let runtime = runtime.ok_or(OpenError::NoRuntime {
            runtime: settings.runtime,
        })?;
        let run = RunDir::of(&settings.id8);
        let Some(claim) = claim else {
            return Err(OpenError::Claimed { path: run.owner() });
        };
        let trust = match &settings.inside {
            Some(inside) => Some(
                trust::Trust::write(&settings.data_dir.join("trust"), &inside.authority)
                    .map_err(failed("write the certificates that instances trust"))?,
            ),
            None => None,
        };
        let duty = Duty {
            id8: settings.id8.clone(),
            run: run.clone(),
            runtime,
            layout: layout.clone(),
            egress: settings.egress == Egress::Internet,
            doors: settings.inside.as_ref().map(|inside| inside.doors.clone()),
            adoption: settings.adoption,
        };
        let taken = Link::take_over(&run.launcher(), &duty, 1).await;
        let (first_link, child, held) = if let Some((link, held)) = taken {
            let (id8, layout) = (settings.id8.clone(), layout.clone());
            let swept = tokio::task::spawn_blocking(move || builder::sweep(&layout, &id8)).await;
            let swept = swept.map_err(io::Error::other).and_then(|swept| swept);
            swept.map_err(failed("end the builders of an earlier Homerun"))?;
            (link, None, Some(held))
        } else {
            let (id8, layout, run) = (settings.id8.clone(), layout.clone(), run.clone());
            let swept = tokio::task::spawn_blocking(move || {
                sweep::sweep(&id8, &run, &layout)?;
                run.furnish()
            });
            let swept = swept.await.map_err(io::Error::other).and_then(|swept| swept);
            swept.map_err(failed("sweep what an earlier Homerun left"))?;
            let (link, child) = Link::open(&settings.launcher, &duty, 1).await?;
            (link, Some(child), None)
        };
        let first_link = Arc::new(first_link);
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let (linger, looks) = Linger::new();
        let inner = Arc::new(Inner {
            id8: settings.id8,
            images: settings.images,
            maker: settings.maker,
            launcher: settings.launcher.clone(),
            starts: settings.starts,
            limits_swap: layout.limits_swap(),
            layout,
            open_files: open_files.maximum.unwrap_or(u64::MAX),
            run,
            home: Home::open().map_err(failed("open the network namespace"))?,
            log: Arc::new(Log::new(settings.log)),
            ranges: Ranges::new(settings.first_id),
            entries: RwLock::default(),
            out_of_memory: fate::OutOfMemory::default(),
            board: Board::default(),
            linger,
            link: watch::Sender::new(Some(Arc::clone(&first_link))),
            creations: Semaphore::new(creations()),
            endings: Semaphore::new(life::ENDINGS_PER_CPU * cpus()),
            clearings: Semaphore::new(cpus().div_ceil(2)),
            reclaiming: Semaphore::new(1),
            closing: AtomicBool::new(false),
            claim: Mutex::new(Some(claim)),
            gvisor_path: settings.gvisor_path,
            gvisor: tokio::sync::OnceCell::new(),
            trust,
            adoptable: !settings.adoption.is_zero(),
        });
        let freezing = {
            let inner = Arc::clone(&inner);
            tokio::spawn(async move {
                let watching = cutoff::watch(Arc::clone(&inner), looks);
                tokio::join!(inner.linger.run(), watching);
            })
        };
        let mut engine = Self {
            inner: Arc::clone(&inner),
            lives: Mutex::default(),
            freezing,
            listening: Mutex::default(),
            calling: None,
        };
        if let Some(held) = held {
            let adopted = engine.adopt(held, &first_link).await;
            adopted.map_err(failed("go on with the last server's instances"))?;
        }
        // Once all that may call are known.
        if let Some(inside) = settings.inside {
            let desk = calls::Desk::open(&engine.inner.run);
            let desk = desk.map_err(failed("open the door for calls of instances"))?;
            let serving = desk.serve(Arc::downgrade(&engine.inner), inside.calls);
            engine.calling = Some(tokio::spawn(serving));
        }
        let listening = tokio::spawn(async move {
            inner.keep_launcher(settings.launcher, duty, first_link, child).await;
        });
        *engine.listening.lock().expect("no panic while held") = Some(listening);
        Ok(engine)
    }

    /// Starts an instance, once per id. Returns when it is accepted; what becomes of it is observed.
    #[expect(clippy::unused_async, reason = "an engine of several machines waits here")]
    pub async fn start(&self, spec: InstanceSpec) -> Result<(), StartError> {
        self.take(spec, false)
    }

    /// Makes an instance up to, but not including, the start of its program, once per id. It is observed as
    /// [`InstanceState::Parked`], also while it is being made, until it is released or stopped.
    #[expect(clippy::unused_async, reason = "an engine of several machines waits here")]
    pub async fn park(&self, spec: InstanceSpec) -> Result<(), StartError> {
        self.take(spec, true)
    }

    /// Lets a parked instance start its program; from then on it is like one that was started. One that is still being
    /// made starts as soon as it is made. Does nothing to one that is not parked. Does not block.
    pub fn release(&self, id: &InstanceId) -> Result<(), StopError> {
        let entry = self.inner.entry(id);
        let entry = entry.ok_or_else(|| StopError::Unknown { id: id.clone() })?;
        let first = entry
            .released
            .send_if_modified(|released| !std::mem::replace(released, true));
        if first {
            entry
                .ordered
                .set(Ordered::now())
                .expect("the first release alone comes here");
            if let Some(running) = entry.running.get() {
                running.release(&entry.spec);
            }
            self.inner.board.enter(id, InstanceState::Starting);
        }
        Ok(())
    }

    fn take(&self, spec: InstanceSpec, parked: bool) -> Result<(), StartError> {
        let id = spec.id.clone();
        let mut entries = self.inner.entries.write().expect("no panic while held");
        if entries.contains_key(&id) {
            return Ok(());
        }
        if self.inner.closing.load(Ordering::SeqCst) {
            return Err(StartError::Closing { id });
        }
        let limit = ids::MOST_RANGES;
        let Some(range) = self.inner.ranges.take() else {
            return Err(StartError::NoIds { id, limit });
        };
        let (entry, events) = Entry::new(&self.inner, spec, range, parked);
        let entry = Arc::new(entry);
        let state = if parked {
            InstanceState::Parked
        } else {
            InstanceState::Starting
        };
        // Under the lock, so that a shutdown sees either nothing of it or all.
        self.inner.board.add(&id, &entry.spec.of, state);
        entries.insert(id, Arc::clone(&entry));
        let mut lives = self.lives.lock().expect("no panic while held");
        while lives.try_join_next().is_some() {}
        lives.spawn(life::live(Arc::clone(&self.inner), entry, events));
        Ok(())
    }

    /// Asks an instance to end: thawed, SIGTERM, after `grace` SIGKILL. Returns at once; the end is observed. A second
    /// stop changes nothing.
    #[expect(clippy::unused_async, reason = "an engine of several machines waits here")]
    pub async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), StopError> {
        let entry = self.inner.entry(id);
        let entry = entry.ok_or_else(|| StopError::Unknown { id: id.clone() })?;
        self.inner.stop(&entry, grace);
        Ok(())
    }

    /// Drops what is remembered of an instance that has stopped. Does nothing to others.
    pub fn forget(&self, id: &InstanceId) {
        let mut entries = self.inner.entries.write().expect("no panic while held");
        if self.inner.board.forget(id)
            && let Some(entry) = entries.remove(id)
            && let Some(ExitCause::OutOfMemory { limit_bytes }) = entry.over.get()
        {
            self.inner.out_of_memory.remember(id, *limit_bytes);
        }
    }

    /// Every instance that was started and not forgotten.
    pub fn observe(&self) -> watch::Receiver<Arc<Observed>> {
        self.inner.board.subscribe()
    }

    /// The images of every instance that was started and not forgotten, as their digests: their layers are mounted.
    pub fn images(&self) -> BTreeSet<String> {
        let entries = self.inner.entries.read().expect("no panic while held");
        let containers = entries.values().flat_map(|entry| entry.spec.containers());
        containers.map(|container| container.image.clone()).collect()
    }

    /// A non-blocking socket inside the instance's network whose connection to the instance's port has been started.
    /// Does not block, and holds no lock over a system call. The calling thread is in the instance's network for as
    /// long as it takes to make a socket.
    pub fn connect(&self, id: &InstanceId) -> io::Result<OwnedFd> {
        let no = |why| io::Error::new(io::ErrorKind::NotConnected, format!("instance {id} {why}"));
        let entry = self.inner.entry(id).ok_or_else(|| no("is unknown"))?;
        let running = entry.running.get().ok_or_else(|| no("has no process"))?;
        let to = std::net::SocketAddr::from((ADDRESS, entry.spec.port.get()));
        self.inner.home.connect(running.network.as_fd(), to)
    }

    /// Follows the edge between idle and busy. `Busy` returns when the instance has its CPU; `Idle` takes it a moment
    /// later, unless it is busy again. Without effect on instances that always have their CPU or are not ready.
    pub fn activity(&self, id: &InstanceId, activity: Activity) {
        if let Some(entry) = self.inner.entry(id) {
            self.inner.linger.follow(id, &entry.cpu, activity);
        }
    }

    /// How many lines of output were dropped because the channel was full.
    pub fn dropped_lines(&self) -> u64 {
        self.inner.log.dropped()
    }

    /// Has everything end without grace, and does not wait for it: the caller is about to leave.
    pub fn end_at_once(&self) {
        self.inner.closing.store(true, Ordering::SeqCst);
        let link = self.inner.link.borrow().clone();
        if let Some(link) = link {
            link.end();
        }
    }

    /// Stops everything, waits until it is gone, and leaves nothing on the machine.
    /// Nothing starts afterwards.
    pub async fn shutdown(&self, grace: Duration) {
        self.inner.closing.store(true, Ordering::SeqCst);
        let entries: Vec<Arc<Entry>> = {
            let entries = self.inner.entries.read().expect("no panic while held");
            entries.values().cloned().collect()
        };
        for entry in entries {
            self.inner.stop(&entry, grace);
        }
        let mut lives = std::mem::take(&mut *self.lives.lock().expect("no panic while held"));
        while lives.join_next().await.is_some() {}
        // Not before: what a program does at its end may need a token.
        self.hang_up();
        let link = self.inner.link.borrow().clone();
        if let Some(link) = link
            && link.order(&Order::Leave, &[]).await.is_err()
        {
            // It is gone already, or does not listen: without a socket it ends.
            link.close();
        }
        let listening = self.listening.lock().expect("no panic while held").take();
        if let Some(listening) = listening {
            // It ends with the launcher.
            let _ = listening.await;
        }
        let inner = Arc::clone(&self.inner);
        let cleared = tokio::task::spawn_blocking(move || {
            let claim = inner.claim.lock().expect("no panic while held").take();
            match claim {
                Some(claim) => {
                    sweep::sweep(&inner.id8, &inner.run, &inner.layout)?;
                    claim.remove()
                }
                None => Ok(()),
            }
        });
        match cleared.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "something is left on the machine"),
            Err(error) => tracing::error!(%error, "clearing the machine failed"),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.hang_up();
        self.freezing.abort();
        if let Some(listening) = self.listening.get_mut().ok().and_then(Option::take) {
            listening.abort();
        }
        if let Some(link) = self.inner.link.send_replace(None) {
            link.end();
        }
    }
}

impl Inner {
    fn entry(&self, id: &InstanceId) -> Option<Arc<Entry>> {
        let entries = self.entries.read().expect("no panic while held");
        entries.get(id).cloned()
    }

    /// The launcher, as soon as there is one.
    pub(crate) async fn link(&self) -> Arc<Link> {
        let mut links = self.link.subscribe();
        let link = links.wait_for(Option::is_some).await;
        link.ok()
            .and_then(|link| link.clone())
            .expect("the sender is in self, and the link was checked")
    }

    fn stop(&self, entry: &Entry, grace: Duration) {
        if self.adoptable {
            records::mark_stopping(&self.run.bundle(entry.spec.id.as_str()), grace);
        }
        self.board.enter(&entry.spec.id, InstanceState::Stopping);
        entry.stop.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert(grace);
            first
        });
    }

    pub(crate) fn ready(&self, entry: &Entry, freezer: Freezer) {
        let spec = &entry.spec;
        self.board.enter(&spec.id, InstanceState::Ready);
        self.linger.allow(&spec.id, &entry.cpu, spec.cpu_allocation, freezer);
        // After it is told: requests wait for that, and for the mark nobody does.
        if self.adoptable {
            records::mark_ready(&self.run.bundle(spec.id.as_str()));
        }
    }

    pub(crate) fn stopped(&self, entry: &Entry, exit: Exit) {
        self.board.enter(&entry.spec.id, InstanceState::Stopped(exit));
    }
}
