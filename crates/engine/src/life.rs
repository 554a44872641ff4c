//! The life of one instance, as one function that begins with its image and ends with nothing left of it.
//!
//! ```text
//! prepare: image, user, bundle -> launcher -> created -> probe -> ready -> exit, memory, or stop -> cleared
//! ```
//!
//! An instance of several containers goes through it as one: each is prepared and created, the first of them with the
//! namespaces that the others join; they are started in the order of their dependencies; the end of one is the end of
//! all.

mod ending;
mod going_on;
mod order;
mod prepare;
mod running;
mod verdict;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use model::{ContainerSpec, ExitCause, InstanceSpec, Revealed, Sandbox, Severity, Stream};
use rustix::fs::{Gid, Uid};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

pub(crate) use ending::ENDINGS_PER_CPU;
use ending::KILL_PATIENCE;
pub(crate) use going_on::go_on;
use order::started;
use prepare::{Prepared, furnish, ports, prepare, size_of_volume};
pub(crate) use running::{Container, Running};
use running::{exited, killed_for_memory};
use verdict::not_started;

use crate::{
    Inner,
    cgroup::Groups,
    company,
    cpu::Cpu,
    gate::{Gate, Way},
    gvisor,
    ids::Range,
    launch::Link,
    output::{Output, Source},
    phases::{Made, Ordered},
    probe, process, records,
    sandbox::Spent,
    secret_files,
    watched::watched,
    wire::{End, Order, Start},
};

/// How long the runtime may take to create an instance whose image is on disk.
pub(crate) const CREATE_PATIENCE: Duration = Duration::from_secs(30);
/// How long `startup_cpu_boost` lasts after the instance is ready.
const BOOST: Duration = Duration::from_secs(10);

/// What the engine knows of one instance beside what it shows.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Without its values of secrets.
    pub(crate) spec: InstanceSpec,
    pub(crate) secrets: tokio::sync::Mutex<Secrets>,
    /// Given back at the end, though the entry is kept until it is forgotten.
    pub(crate) range: Mutex<Option<Range>>,
    pub(crate) first_id: u32,
    pub(crate) groups: Groups,
    pub(crate) events: mpsc::Sender<Event>,
    /// The grace, once a stop was asked for.
    pub(crate) stop: watch::Sender<Option<Duration>>,
    /// Whether its program may run. False: it is parked.
    pub(crate) released: watch::Sender<bool>,
    pub(crate) taken: std::time::Instant,
    /// When its program was wanted.
    pub(crate) ordered: OnceLock<Ordered>,
    pub(crate) cpu: Arc<Cpu>,
    pub(crate) running: OnceLock<Running>,
    pub(crate) over: OnceLock<ExitCause>,
}

/// The values that an instance waits for. They are dropped once it has them.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    pub(crate) revealed: Revealed,
    /// The launcher has its files: they change with an order of their own.
    pub(crate) asked: bool,
}

/// What the launcher reports of one instance.
#[derive(Debug)]
pub(crate) enum Event {
    Created(Created),
    NotStarted(String),
    /// The first process of the container of this number.
    Exited(usize, End),
    /// The launcher of this number is gone.
    Lost(u64),
}

/// A sandbox that waits to be released.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) pid: i32,
    pub(crate) process: OwnedFd,
    pub(crate) network: OwnedFd,
    /// Of our own sandboxes.
    pub(crate) gate: Option<OwnedFd>,
    pub(crate) spent: Option<Spent>,
}

/// From the first step to the last. What it observes goes to the engine's board.
pub(crate) async fn live(engine: Arc<Inner>, entry: Arc<Entry>, events: mpsc::Receiver<Event>) {
    let mut life = Life::new(engine, entry, events);
    let cause = match life.begin().await {
        Ok(()) => life.supervise().await,
        Err(cause) => cause,
    };
    life.end(cause).await;
}

/// Whose a stream is.
pub(crate) fn source(spec: &InstanceSpec, index: usize, stream: Stream) -> Source {
    Source {
        of: spec.of.clone(),
        instance: spec.id.clone(),
        container: company::log_name(spec, index).unwrap_or_default().to_owned(),
        stream,
    }
}

struct Life {
    engine: Arc<Inner>,
    entry: Arc<Entry>,
    events: mpsc::Receiver<Event>,
    stop: watch::Receiver<Option<Duration>>,
    output: Output,
    /// The number of the launcher that has it.
    link: u64,
    made: Option<Made>,
    ready: bool,
    /// The container whose end it was, or will be.
    culprit: usize,
}

impl Life {
    fn new(engine: Arc<Inner>, entry: Arc<Entry>, events: mpsc::Receiver<Event>) -> Self {
        Self {
            stop: entry.stop.subscribe(),
            output: Output::default(),
            link: 0,
            made: None,
            ready: false,
            culprit: 0,
            engine,
            entry,
            events,
        }
    }

    /// Until every container of the instance has a process.
    async fn begin(&mut self) -> Result<(), ExitCause> {
        let mut stop = self.stop.clone();
        let prepared = tokio::select! {
            prepared = prepare(&self.engine, &self.entry) => prepared,
            _ = asked_to_stop(&mut stop) => Err((0, ExitCause::Stopped)),
        };
        let prepared = prepared.map_err(|(index, cause)| {
            self.culprit = index;
            cause
        })?;
        let engine = Arc::clone(&self.engine);
        let turn = tokio::select! {
            turn = engine.creations.acquire() => turn.expect("never closed"),
            _ = asked_to_stop(&mut stop) => return Err(ExitCause::Stopped),
        };
        let link = timeout(CREATE_PATIENCE, self.engine.link())
            .await
            .map_err(|_| not_started("the launcher of instances is gone"))?;
        self.link = link.number;

        let mut containers = Vec::with_capacity(prepared.len());
        let mut shared = None;
        for (index, prepared) in prepared.into_iter().enumerate() {
            self.culprit = index;
            let first = shared.as_ref().map(|(pid, _)| *pid);
            let (created, asked) = self.create(&link, index, prepared, first).await?;
            let Created {
                pid,
                process,
                network,
                gate,
                spent,
            } = created;
            if index == 0 {
                self.made = Some(Made::now(self.entry.taken, asked, spent));
            }
            shared.get_or_insert((pid, network));
            let groups = self.entry.groups_of(index);
            let kills = groups
                .memory_kills()
                .map_err(|error| not_started(format!("cannot read the instance's memory events: {error}")))?;
            let name = company::runtime_name(&self.entry.spec.id, index);
            let way = match gate {
                Some(socket) => {
                    Way::Socket(watched(socket).map_err(|error| not_started(format!("cannot wait: {error}")))?)
                }
                None => Way::Fifo(engine.run.runtime().join(&name).join("exec.fifo")),
            };
            containers.push(Container {
                process,
                gate: Gate::new(way, &engine.run.bundle(&name)),
                kills,
            });
        }
        self.culprit = 0;
        drop(turn);
        self.entry.secrets.lock().await.revealed = Revealed::default();
        let (_, network) = shared.expect("an instance has a container");
        let running = Running { network, containers };
        self.entry.running.set(running).expect("an instance begins once");
        if let Some(made) = self.made
            && !*self.entry.released.borrow()
        {
            records::write_making(&engine.run.bundle(self.entry.spec.id.as_str()), &made.making);
        }
        Ok(())
    }

    /// Has the launcher create one container; also when it was asked. `joins` is the process of the first one.
    async fn create(
        &mut self,
        link: &Link,
        index: usize,
        unpacked: image::Unpacked,
        joins: Option<i32>,
    ) -> Result<(Created, std::time::Instant), ExitCause> {
        let entry = Arc::clone(&self.entry);
        let spec = &entry.spec;
        let id = company::runtime_name(&spec.id, index);
        let gvisor = match spec.sandbox {
            Sandbox::Gen1 => Some(self.engine.gvisor().await.map_err(ExitCause::NotStarted)?),
            Sandbox::Gen2 => None,
        };
        // Held until the launcher was asked: values that change meanwhile come after it.
        let mut secrets = entry.secrets.lock().await;
        let revealed = secrets.revealed.clone();
        let values = if index == 0 { revealed.files.clone() } else { Vec::new() };
        let Prepared {
            layers,
            owner,
            plan,
            gvisor,
        } = {
            let (engine, entry) = (Arc::clone(&self.engine), Arc::clone(&entry));
            let written = tokio::task::spawn_blocking(move || {
                furnish(&engine, &entry, index, unpacked, gvisor, joins, &revealed)
            });
            let written = written
                .await
                .map_err(|error| not_started(format!("preparing failed: {error}")))?;
            written.map_err(ExitCause::NotStarted)?
        };
        let bundle = self.engine.run.bundle(&id);
        let mut open = |stream| {
            let source = source(spec, index, stream);
            self.output.open(&self.engine.log, source, &bundle)
        };
        let files = (|| {
            let (stdout, stderr) = (open(Stream::Stdout)?, open(Stream::Stderr)?);
            let mut files = vec![process::empty_input()?, stdout.0, stderr.0, stdout.1, stderr.1];
            for file in &files[..3] {
                // So that the instance's user may open /dev/stdin, /dev/stdout and /dev/stderr again.
                let (user, group) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
                rustix::fs::fchown(file, Some(user), Some(group))?;
            }
            let mut listed = Vec::new();
            if !values.is_empty() {
                let (list, memory) = secret_files::pack(&values)?;
                listed = list;
                files.push(memory);
            }
            io::Result::Ok((files, listed))
        })();
        let (files, listed) = files.map_err(|error| not_started(format!("cannot make a pipe: {error}")))?;
        let names = (0..=spec.sidecars.len()).filter_map(|index| company::log_name(spec, index));
        let order = Order::Start(Start {
            id: id.clone(),
            layers,
            first_id: entry.first_id,
            plan,
            gvisor,
            names: names.map(str::to_owned).collect(),
            ports: ports(spec),
            volumes: spec.volumes.iter().map(|volume| size_of_volume(volume, spec)).collect(),
            secrets: listed,
        });
        let asked = std::time::Instant::now();
        link.order(&order, &files.iter().collect::<Vec<_>>())
            .await
            .map_err(|error| not_started(format!("cannot reach the launcher: {error}")))?;
        secrets.asked = true;
        drop((files, values, secrets));

        if let Ok(created) = timeout(CREATE_PATIENCE, self.created()).await {
            return created.map(|created| (created, asked));
        }
        if link.order(&Order::Abort { id }, &[]).await.is_ok() {
            let _ = timeout(KILL_PATIENCE, self.created()).await;
        }
        let seconds = CREATE_PATIENCE.as_secs();
        Err(not_started(format!("the runtime was not ready within {seconds} s")))
    }

    async fn created(&mut self) -> Result<Created, ExitCause> {
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Created(created) => return Ok(created),
                Event::NotStarted(why) => return Err(ExitCause::NotStarted(why)),
                Event::Lost(number) if number == self.link => break,
                Event::Exited(index, end) => {
                    self.culprit = index;
                    return Err(not_started(format!(
                        "its sandbox ended before it was released: {end:?}"
                    )));
                }
                Event::Lost(_) => {}
            }
        }
        Err(not_started("the launcher of instances ended"))
    }

    /// From its first process to its last.
    async fn supervise(&mut self) -> ExitCause {
        let entry = Arc::clone(&self.entry);
        let engine = Arc::clone(&self.engine);
        let spec = &entry.spec;
        let running = entry.running.get().expect("set by begin");
        let memory = match running.watch_memory(&entry) {
            Ok(memory) => memory,
            Err(error) => {
                self.kill().await;
                return not_started(format!("cannot watch the instance's memory: {error}"));
            }
        };
        if let Some(cause) = self.parked(running, &memory).await {
            return cause;
        }
        let released = Instant::now();
        let started = async {
            let told = running.gate().passed().await;
            let program_runs = told.then(std::time::Instant::now);
            let started = started(Arc::clone(&engine), Arc::clone(&entry));
            started.await.map(|()| program_runs)
        };
        let mut started = std::pin::pin!(started);
        let unhealthy = probe::watch(Arc::clone(&engine), Arc::clone(&entry), released);
        let mut unhealthy = std::pin::pin!(unhealthy);
        let mut boosted = spec.startup_cpu_boost;
        let rest = if self.ready {
            BOOST
        } else {
            Duration::from_secs(1 << 30)
        };
        let boost_end = sleep_until(Instant::now() + rest);
        let mut boost_end = std::pin::pin!(boost_end);
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                (index, end) = exited(&mut self.events, self.link, running) => {
                    self.culprit = index;
                    let cause = self.judge(running, end);
                    self.kill().await;
                    return cause;
                }
                index = killed_for_memory(&memory, running) => {
                    self.culprit = index;
                    self.kill().await;
                    return self.out_of_memory();
                }
                grace = asked_to_stop(&mut stop) => {
                    return self.stop(running, grace).await;
                }
                started = &mut started, if !self.ready => match started {
                    Ok(program_runs) => {
                        self.record_start(program_runs);
                        boost_end.as_mut().reset(Instant::now() + BOOST);
                        if let Err(cause) = self.be_ready() {
                            self.kill().await;
                            return cause;
                        }
                    }
                    Err((index, cause)) => {
                        self.culprit = index;
                        self.kill().await;
                        if let Some(index) = running.over_memory() {
                            self.culprit = index;
                            return self.out_of_memory();
                        }
                        return cause;
                    }
                },
                cause = &mut unhealthy, if self.ready => {
                    if let ExitCause::Unhealthy { probe, .. } = &cause {
                        let named = |container: &ContainerSpec| container.name == probe.container;
                        self.culprit = spec.containers().position(named).unwrap_or(0);
                    }
                    self.kill().await;
                    return cause;
                }
                () = &mut boost_end, if boosted && self.ready => {
                    boosted = false;
                    for (index, container) in spec.containers().enumerate() {
                        if let Err(error) = entry.groups_of(index).set_cpu(Some(container.cpu_millis)) {
                            tracing::error!(id = %spec.id, %error, "cannot end the startup CPU boost");
                        }
                    }
                }
            }
        }
    }

    /// It takes requests from now on.
    fn be_ready(&mut self) -> Result<(), ExitCause> {
        let freezer = self.entry.groups.freezer();
        let freezer = freezer.map_err(|error| not_started(format!("cannot open its freezer: {error}")))?;
        self.ready = true;
        self.engine.ready(&self.entry, freezer);
        Ok(())
    }

    fn record_start(&self, program_runs: Option<std::time::Instant>) {
        let (Some(made), Some(ordered)) = (&self.made, self.entry.ordered.get()) else {
            return;
        };
        let record = made.record(&self.entry.spec, *ordered, program_runs, std::time::Instant::now());
        tracing::debug!(id = %record.instance, parked = record.parked, micros = record.ready_micros, "ready");
        if self.engine.starts.try_send(record).is_err() {
            tracing::warn!(id = %self.entry.spec.id, "the record of its start found no room");
        }
    }

    /// Until it is released; or how it ended before.
    async fn parked(&mut self, running: &Running, memory: &[AsyncFd<OwnedFd>]) -> Option<ExitCause> {
        let (entry, mut stop) = (Arc::clone(&self.entry), self.stop.clone());
        let mut released = entry.released.subscribe();
        tokio::select! {
            biased;
            // Being stopped is not being started and then stopped.
            _ = asked_to_stop(&mut stop) => {
                self.kill().await;
                Some(ExitCause::Stopped)
            }
            () = until_released(&mut released) => {
                running.release(&entry.spec);
                None
            }
            (index, end) = exited(&mut self.events, self.link, running) => {
                self.culprit = index;
                let cause = self.judge(running, end);
                self.kill().await;
                Some(not_started(format!("its sandbox ended before it was released: {cause:?}")))
            }
            index = killed_for_memory(memory, running) => {
                self.culprit = index;
                self.kill().await;
                Some(self.out_of_memory())
            }
        }
    }

    fn judge(&mut self, running: &Running, end: End) -> ExitCause {
        if let Some(index) = running.over_memory() {
            self.culprit = index;
            return self.out_of_memory();
        }
        let end = match self.entry.spec.sandbox {
            Sandbox::Gen1 => gvisor::end(end),
            Sandbox::Gen2 => end,
        };
        if let Some(name) = company::log_name(&self.entry.spec, self.culprit) {
            let how = match end {
                End::Code(code) => format!("with exit code {code}"),
                End::Signal(signal) => format!("by signal {signal}"),
            };
            let text = format!("Container \"{name}\" ended {how}, and the instance with it.");
            self.engine.log.system(&self.entry.spec, Severity::Error, text);
        }
        match end {
            End::Code(code) => ExitCause::Code(code),
            End::Signal(signal) => ExitCause::Signal(signal),
        }
    }

    /// Says so in the instance's log, in Cloud Run's words.
    fn out_of_memory(&self) -> ExitCause {
        let spec = &self.entry.spec;
        let limit_bytes = spec.containers().nth(self.culprit).map_or(0, |c| c.memory_bytes);
        let peak = self.entry.groups_of(self.culprit).memory_peak();
        let used = peak.unwrap_or(limit_bytes);
        let (limit, used) = (limit_bytes >> 20, used.max(limit_bytes) >> 20);
        let whose =
            company::log_name(spec, self.culprit).map_or_else(String::new, |name| format!(" Container \"{name}\"."));
        let text = format!("Memory limit of {limit} MiB exceeded with {used} MiB used.{whose}");
        self.engine.log.system(spec, Severity::Error, text);
        ExitCause::OutOfMemory { limit_bytes }
    }
}

impl Entry {
    /// Of an instance that nothing has happened to yet, and where its events arrive: at most one of each kind, and one
    /// loss per launcher that it outlives while it is being prepared.
    pub(crate) fn new(
        engine: &Inner,
        mut spec: InstanceSpec,
        range: Range,
        parked: bool,
    ) -> (Self, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel(64);
        let secrets = std::mem::take(&mut spec.secrets);
        let entry = Self {
            secrets: tokio::sync::Mutex::new(Secrets {
                revealed: secrets,
                asked: false,
            }),
            groups: Groups::new(&engine.layout, &engine.id8, spec.id.as_str()),
            first_id: range.first(),
            range: Mutex::new(Some(range)),
            events: sender,
            stop: watch::Sender::new(None),
            released: watch::Sender::new(!parked),
            taken: std::time::Instant::now(),
            ordered: if parked { OnceLock::new() } else { Ordered::now().into() },
            cpu: Arc::new(Cpu::new(Instant::now())),
            running: OnceLock::new(),
            over: OnceLock::new(),
            spec,
        };
        (entry, events)
    }

    /// The groups of one container: the instance's own when it is alone.
    pub(crate) fn groups_of(&self, index: usize) -> Groups {
        if self.spec.sidecars.is_empty() {
            self.groups.clone()
        } else {
            self.groups.container(index)
        }
    }
}

/// Until a stop is asked for; returns its grace.
async fn asked_to_stop(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    loop {
        if let Some(grace) = *stop.borrow_and_update() {
            return grace;
        }
        if stop.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn until_released(released: &mut watch::Receiver<bool>) {
    if released.wait_for(|released| *released).await.is_err() {
        std::future::pending::<()>().await;
    }
}
