//! The life of one instance, as one function that begins with its image and ends with nothing left of it.
//!
//! ```text
//! prepare: image, user, bundle -> launcher -> created -> probe -> ready -> exit, memory, or stop -> cleared
//! ```

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use image::Digest;
use model::{Exit, ExitCause, InstanceId, InstanceSpec, Sandbox, Severity, Stream};
use rustix::{
    fs::{Gid, Uid},
    process::{Signal, pidfd_send_signal},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Inner, Maker,
    bundle::{self, Lodging},
    cgroup::{Alarm, Groups, Layout, MemoryKills},
    cpu::Cpu,
    gate::{self, Gate, Way},
    gvisor::{self, Gvisor},
    ids::Range,
    output::Output,
    phases::{Moments, Ordered},
    probe, process,
    sandbox::{Plan, Spent},
    watched::watched,
    wire::{End, Order, Start},
};

/// How long the runtime may take to create an instance whose image is on disk.
const CREATE_PATIENCE: Duration = Duration::from_secs(30);
/// How long `startup_cpu_boost` lasts after the instance is ready.
const BOOST: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What the engine knows of one instance beside what it shows.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) spec: InstanceSpec,
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

/// What is there once the instance has a process.
#[derive(Debug)]
pub(crate) struct Running {
    process: OwnedFd,
    gate: Gate,
    pub(crate) network: OwnedFd,
    pub(crate) kills: MemoryKills,
}

/// What the launcher reports of one instance.
#[derive(Debug)]
pub(crate) enum Event {
    Created(Created),
    NotStarted(String),
    Exited(End),
    /// The launcher of this number is gone.
    Lost(u64),
}

/// A sandbox that waits to be released.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) process: OwnedFd,
    pub(crate) network: OwnedFd,
    /// Of our own sandboxes.
    pub(crate) gate: Option<OwnedFd>,
    pub(crate) spent: Option<Spent>,
}

/// From the first step to the last. What it observes goes to the engine's board.
pub(crate) async fn live(engine: Arc<Inner>, entry: Arc<Entry>, events: mpsc::Receiver<Event>) {
    let mut life = Life {
        stop: entry.stop.subscribe(),
        output: Output::default(),
        link: 0,
        moments: None,
        ready: false,
        engine,
        entry,
        events,
    };
    let cause = match life.begin().await {
        Ok(()) => life.supervise().await,
        Err(cause) => cause,
    };
    life.end(cause).await;
}

struct Life {
    engine: Arc<Inner>,
    entry: Arc<Entry>,
    events: mpsc::Receiver<Event>,
    stop: watch::Receiver<Option<Duration>>,
    output: Output,
    /// The number of the launcher that has it.
    link: u64,
    moments: Option<Moments>,
    ready: bool,
}

fn not_started(why: impl Into<String>) -> ExitCause {
    ExitCause::NotStarted(why.into())
}

/// The runtime only finds out that a file is no program once the instance is released, and then says so as the
/// instance itself: on its standard error, with an exit code of 1.
fn never_executed(cause: ExitCause, last_lines: &[String]) -> ExitCause {
    match (&cause, last_lines) {
        (ExitCause::Code(1), [only]) if only.starts_with("exec container process ") => {
            ExitCause::NotStarted(only.clone())
        }
        (ExitCause::Code(1), [.., last]) if last.starts_with(gvisor::NOT_STARTED) => {
            ExitCause::NotStarted(last[gvisor::NOT_STARTED.len()..].to_owned())
        }
        _ => cause,
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Life {
    /// Until the instance has a process.
    async fn begin(&mut self) -> Result<(), ExitCause> {
        let mut stop = self.stop.clone();
        let prepared = tokio::select! {
            prepared = prepare(&self.engine, &self.entry) => prepared.map_err(ExitCause::NotStarted),
            _ = asked_to_stop(&mut stop) => Err(ExitCause::Stopped),
        };
        let Prepared {
            layers,
            owner,
            plan,
            gvisor,
        } = prepared?;
        let engine = Arc::clone(&self.engine);
        let turn = tokio::select! {
            turn = engine.creations.acquire() => turn.expect("never closed"),
            _ = asked_to_stop(&mut stop) => return Err(ExitCause::Stopped),
        };
        let link = timeout(CREATE_PATIENCE, self.engine.link())
            .await
            .map_err(|_| not_started("the launcher of instances is gone"))?;
        self.link = link.number;

        let (of, id) = (self.entry.spec.of.clone(), self.entry.spec.id.clone());
        let mut open = |stream| self.output.open(&self.engine.log, &of, &id, stream);
        let files = (|| {
            let files = [process::empty_input()?, open(Stream::Stdout)?, open(Stream::Stderr)?];
            for file in &files {
                // So that the instance's user may open /dev/stdin, /dev/stdout and /dev/stderr again.
                let (user, group) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
                rustix::fs::fchown(file, Some(user), Some(group))?;
            }
            io::Result::Ok(files)
        })();
        let files = files.map_err(|error| not_started(format!("cannot make a pipe: {error}")))?;
        let order = Order::Start(Start {
            id: id.to_string(),
            layers,
            first_id: self.entry.first_id,
            plan,
            gvisor,
        });
        let asked = std::time::Instant::now();
        link.order(&order, &files.each_ref())
            .await
            .map_err(|error| not_started(format!("cannot reach the launcher: {error}")))?;
        drop(files);

        let created = timeout(CREATE_PATIENCE, self.created()).await;
        let Ok(created) = created else {
            let id = id.to_string();
            if link.order(&Order::Abort { id }, &[]).await.is_ok() {
                let _ = timeout(KILL_PATIENCE, self.created()).await;
            }
            let seconds = CREATE_PATIENCE.as_secs();
            return Err(not_started(format!("the runtime was not ready within {seconds} s")));
        };
        drop(turn);
        let Created {
            process,
            network,
            gate,
            spent,
        } = created?;
        self.moments = Some(Moments {
            taken: self.entry.taken,
            asked,
            made: std::time::Instant::now(),
            spent,
        });
        let kills = self
            .entry
            .groups
            .memory_kills()
            .map_err(|error| not_started(format!("cannot read the instance's memory events: {error}")))?;
        let run = &self.engine.run;
        let way = match gate {
            Some(socket) => Way::Socket(watched(socket).map_err(|error| not_started(format!("cannot wait: {error}")))?),
            None => Way::Fifo(run.runtime().join(id.as_str()).join("exec.fifo")),
        };
        let running = Running {
            process,
            gate: Gate::new(way, &run.bundle(id.as_str())),
            network,
            kills,
        };
        self.entry.running.set(running).expect("an instance begins once");
        Ok(())
    }

    async fn created(&mut self) -> Result<Created, ExitCause> {
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Created(created) => return Ok(created),
                Event::NotStarted(why) => return Err(ExitCause::NotStarted(why)),
                Event::Lost(number) if number == self.link => break,
                Event::Lost(_) | Event::Exited(_) => {}
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
        let alarm = entry.groups.memory_alarm(&running.kills).and_then(|alarm| {
            let Alarm(file) = alarm;
            watched(file)
        });
        let alarm = match alarm {
            Ok(alarm) => alarm,
            Err(error) => {
                self.kill().await;
                return not_started(format!("cannot watch the instance's memory: {error}"));
            }
        };
        let startup_probe = spec.startup_probe();
        if let Some(cause) = self.parked(running, &alarm).await {
            return cause;
        }
        let released = Instant::now();
        let started = async {
            let told = running.gate.passed().await;
            let program_runs = told.then(std::time::Instant::now);
            let started = probe::until_started(&engine, spec, &spec.container, &startup_probe, &running.network);
            started.await.map(|()| program_runs)
        };
        let mut started = std::pin::pin!(started);
        let unhealthy = probe::watch(Arc::clone(&engine), Arc::clone(&entry), released);
        let mut unhealthy = std::pin::pin!(unhealthy);
        let mut boosted = spec.startup_cpu_boost;
        let boost_end = sleep_until(Instant::now() + Duration::from_secs(1 << 30));
        let mut boost_end = std::pin::pin!(boost_end);
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                end = exited(&mut self.events, self.link, running) => {
                    return self.judge(running, end);
                }
                () = killed_for_memory(&alarm, &running.kills) => {
                    self.kill().await;
                    return self.out_of_memory();
                }
                grace = asked_to_stop(&mut stop) => {
                    return self.stop(running, grace).await;
                }
                started = &mut started, if !self.ready => match started {
                    Ok(program_runs) => {
                        self.ready = true;
                        self.record_start(program_runs);
                        boost_end.as_mut().reset(Instant::now() + BOOST);
                        match entry.groups.freezer() {
                            Ok(freezer) => engine.ready(&entry, freezer),
                            Err(error) => {
                                self.kill().await;
                                return not_started(format!("cannot open its freezer: {error}"));
                            }
                        }
                    }
                    Err(cause) => {
                        self.kill().await;
                        if running.kills.count() > 0 {
                            return self.out_of_memory();
                        }
                        return cause;
                    }
                },
                cause = &mut unhealthy, if self.ready => {
                    self.kill().await;
                    return cause;
                }
                () = &mut boost_end, if boosted && self.ready => {
                    boosted = false;
                    if let Err(error) = entry.groups.set_cpu(Some(spec.cpu_millis())) {
                        tracing::error!(id = %spec.id, %error, "cannot end the startup CPU boost");
                    }
                }
            }
        }
    }

    fn record_start(&self, program_runs: Option<std::time::Instant>) {
        let (Some(moments), Some(ordered)) = (&self.moments, self.entry.ordered.get()) else {
            return;
        };
        let record = moments.record(&self.entry.spec, *ordered, program_runs, std::time::Instant::now());
        tracing::debug!(id = %record.instance, parked = record.parked, micros = record.ready_micros, "ready");
        if self.engine.starts.try_send(record).is_err() {
            tracing::warn!(id = %self.entry.spec.id, "the record of its start found no room");
        }
    }

    /// Until it is released; or how it ended before.
    async fn parked(&mut self, running: &Running, alarm: &AsyncFd<OwnedFd>) -> Option<ExitCause> {
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
                running.release(&entry.spec.id);
                None
            }
            end = exited(&mut self.events, self.link, running) => {
                Some(not_started(format!("its sandbox ended before it was released: {:?}", self.judge(running, end))))
            }
            () = killed_for_memory(alarm, &running.kills) => {
                self.kill().await;
                Some(self.out_of_memory())
            }
        }
    }

    fn judge(&self, running: &Running, end: End) -> ExitCause {
        if running.kills.count() > 0 {
            return self.out_of_memory();
        }
        let end = match self.entry.spec.sandbox {
            Sandbox::Gen1 => gvisor::end(end),
            Sandbox::Gen2 => end,
        };
        match end {
            End::Code(code) => ExitCause::Code(code),
            End::Signal(signal) => ExitCause::Signal(signal),
        }
    }

    /// Says so in the instance's log, in Cloud Run's words.
    fn out_of_memory(&self) -> ExitCause {
        let spec = &self.entry.spec;
        let limit_bytes = spec.memory_bytes();
        let used = self.entry.groups.memory_peak().unwrap_or(limit_bytes);
        let (limit, used) = (limit_bytes >> 20, used.max(limit_bytes) >> 20);
        let text = format!("Memory limit of {limit} MiB exceeded with {used} MiB used.");
        self.engine.log.system(spec, Severity::Error, text);
        ExitCause::OutOfMemory { limit_bytes }
    }

    /// SIGTERM, the grace, SIGKILL.
    async fn stop(&mut self, running: &Running, grace: Duration) -> ExitCause {
        self.entry.cpu.release(&self.entry.spec.id);
        // Gone already is as good.
        let _ = pidfd_send_signal(&running.process, Signal::TERM);
        let ended = timeout(grace, exited(&mut self.events, self.link, running)).await;
        if ended.is_err() {
            self.kill().await;
        }
        ExitCause::Stopped
    }

    /// Ends it at once and waits until it is gone.
    async fn kill(&mut self) {
        self.entry.cpu.release(&self.entry.spec.id);
        let entry = Arc::clone(&self.entry);
        let running = entry.running.get().expect("only called with a process");
        let _ = pidfd_send_signal(&running.process, Signal::KILL);
        let gone = exited(&mut self.events, self.link, running);
        if timeout(KILL_PATIENCE, gone).await.is_err() {
            tracing::error!(id = %entry.spec.id, "a killed instance is still there");
        }
    }

    async fn end(self, cause: ExitCause) {
        let (engine, entry) = (self.engine, self.entry);
        let id = &entry.spec.id;
        entry.over.set(cause.clone()).expect("an instance ends once");
        entry.cpu.release(id);
        let clearing = {
            let (engine, entry) = (Arc::clone(&engine), Arc::clone(&entry));
            tokio::task::spawn_blocking(move || {
                let cleared = entry.groups.clear();
                engine.run.remove_instance(entry.spec.id.as_str());
                cleared
            })
        };
        let (last_lines, cleared) = tokio::join!(self.output.finish(), clearing);
        match cleared {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%id, %error, "cannot remove an instance's groups"),
            Err(error) => tracing::error!(%id, %error, "clearing an instance failed"),
        }
        drop(entry.range.lock().expect("no panic while held").take());
        let cause = if self.ready {
            cause
        } else {
            never_executed(cause, &last_lines)
        };
        let last_lines = match cause {
            // The runtime's own words, which are in the cause.
            ExitCause::NotStarted(_) => Vec::new(),
            ExitCause::Code(_)
            | ExitCause::Signal(_)
            | ExitCause::OutOfMemory { .. }
            | ExitCause::NotListening { .. }
            | ExitCause::StartupProbeFailed { .. }
            | ExitCause::Unhealthy { .. }
            | ExitCause::Stopped => last_lines,
        };
        engine.stopped(
            &entry,
            Exit {
                cause,
                was_ready: self.ready,
                last_lines,
            },
        );
    }
}

/// What is made before the launcher is asked.
struct Prepared {
    /// Lowest first.
    layers: Vec<PathBuf>,
    /// Of the output's pipes.
    owner: (u32, u32),
    /// None: crun or runsc makes the sandbox.
    plan: Option<Box<Plan>>,
    /// What runs the first generation.
    gvisor: Option<Gvisor>,
}

/// Image, user, bundle, and what runs the first generation.
async fn prepare(engine: &Arc<Inner>, entry: &Arc<Entry>) -> Result<Prepared, String> {
    let gvisor = match entry.spec.sandbox {
        Sandbox::Gen1 => Some(engine.gvisor().await?),
        Sandbox::Gen2 => None,
    };
    let digest: Digest = entry
        .spec
        .container
        .image
        .parse()
        .map_err(|error: image::DigestError| chain(&error))?;
    let unpacked = engine.images.ensure(&digest).await.map_err(|error| chain(&error))?;
    let (engine, entry) = (Arc::clone(engine), Arc::clone(entry));
    let written = tokio::task::spawn_blocking(move || {
        let user = image::user(&unpacked.layers, &unpacked.config.user).map_err(|error| chain(&error))?;
        let spec = &entry.spec;
        let id = spec.id.as_str();
        let first_id = entry.first_id;
        let merged = engine.run.merged();
        let lodging = Lodging {
            root: &merged,
            first_id,
            groups: format!("/{}/{id}", crate::cgroup::parent_name(&engine.id8)),
            one_tree: matches!(engine.layout, Layout::V2 { .. }),
            limits_swap: engine.limits_swap,
            open_files: engine.open_files,
        };
        let config = &unpacked.config;
        let configuration = match spec.sandbox {
            Sandbox::Gen1 => gvisor::configuration(spec, config, &user, &lodging).map_err(|error| chain(&error)),
            Sandbox::Gen2 => bundle::configuration(spec, config, &user, &lodging).map_err(|error| chain(&error)),
        }?;
        let bundle = engine.run.bundle(id);
        let written = write_bundle(&bundle, &configuration).and_then(|()| {
            let parked = !*entry.released.borrow();
            if parked { gate::mark(&bundle) } else { Ok(()) }
        });
        written.map_err(|error| format!("cannot write the instance's bundle: {error}"))?;
        let owner = (first_id + user.uid, first_id + user.gid);
        let plan = match engine.maker {
            _ if gvisor.is_some() => None,
            Maker::Crun => None,
            Maker::Own => match Plan::read(&configuration, &engine.layout) {
                Ok(plan) => Some(Box::new(plan)),
                Err(why) => {
                    tracing::warn!(id, "crun makes this instance: our own launcher does not know {why}");
                    None
                }
            },
        };
        Ok(Prepared {
            layers: unpacked.layers,
            owner,
            plan,
            gvisor,
        })
    });
    written.await.map_err(|error| format!("preparing failed: {error}"))?
}

fn write_bundle(directory: &PathBuf, configuration: &serde_json::Value) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(directory)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(directory.join("config.json"))?;
    io::Write::write_all(&mut file, &serde_json::to_vec(configuration)?)
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

/// Until the first process of the instance is gone. With its launcher gone too, nobody can say how it ended.
async fn exited(events: &mut mpsc::Receiver<Event>, link: u64, running: &Running) -> End {
    while let Some(event) = events.recv().await {
        match event {
            Event::Exited(end) => return end,
            Event::Lost(number) if number == link => break,
            Event::Lost(_) | Event::Created(_) | Event::NotStarted(_) => {}
        }
    }
    let _ = pidfd_send_signal(&running.process, Signal::KILL);
    while !is_gone(&running.process) {
        sleep(Duration::from_millis(5)).await;
    }
    End::Signal(Signal::KILL.as_raw())
}

/// A pidfd is readable once its process has ended.
fn is_gone(process: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&none)).is_ok_and(|ready| ready > 0)
}

impl Running {
    pub(crate) fn is_gone(&self) -> bool {
        is_gone(&self.process)
    }

    /// Lets its program run.
    pub(crate) fn release(&self, id: &InstanceId) {
        if let Err(error) = self.gate.open() {
            // Its end is then reported like any other.
            tracing::error!(%id, %error, "cannot release an instance");
            let _ = pidfd_send_signal(&self.process, Signal::KILL);
        }
    }
}

/// Until the kernel has killed a process of the instance for its memory.
async fn killed_for_memory(alarm: &AsyncFd<OwnedFd>, kills: &MemoryKills) {
    loop {
        if kills.count() > 0 {
            return;
        }
        match alarm.readable().await {
            Ok(mut ready) => {
                let mut drain = [0; 4096];
                let _ = rustix::io::read(alarm.get_ref(), &mut drain);
                ready.clear_ready();
            }
            Err(_) => return std::future::pending().await,
        }
        // The alarm comes before the kill, or without one when memory was found after all.
        for _ in 0..200 {
            if kills.count() > 0 {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}
