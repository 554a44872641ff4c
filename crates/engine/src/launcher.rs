//! The launcher: a child of the server, and the parent of every instance.
//!
//! It exists for three reasons. It runs the container runtime in a mount namespace in which the empty version 2 tree of
//! control groups is not mounted, without which crun refuses to work beside version 1. It adopts what the runtime
//! starts (as a subreaper) and so learns how each instance ended. And it outlives its server: for a while it keeps what
//! the server had running, for another server that takes over, and then it ends all of it.
//!
//! One thread, one loop over few files: the server's socket, or the one where the next server knocks, the signal that a
//! child ended, and the words of sandboxes that are being made.
#![expect(unsafe_code, reason = "clone, _exit and signalfd have no safe form")]

mod alone;

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    process::{Pid, PidfdFlags, Signal, WaitOptions},
};

use crate::{
    Doors,
    cgroup::{Groups, Layout},
    claim::{RunDir, Wait},
    company, egress,
    gvisor::{self, Gvisor, Making},
    keeping::{self, Keeping, Made},
    network, process, rootfs,
    sandbox::{Heard, Infant, Nursery, Plan, Request, Spent},
    secret_files,
    wire::{self, End, Order, Report, Start},
};

/// How a child ends that wrote itself why nothing was made.
const OURS: i32 = 125;

/// Whether the runtime speaks of the program that the image names.
fn is_about_program(why: &str) -> bool {
    ["executable file ", "cannot execute "]
        .iter()
        .any(|words| why.starts_with(words))
}

/// The first argument with which a binary becomes the launcher.
pub const LAUNCHER: &str = "engine-launcher";

/// What the launcher is told once, as its second argument.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Duty {
    pub(crate) id8: String,
    pub(crate) run: RunDir,
    pub(crate) runtime: PathBuf,
    pub(crate) layout: Layout,
    /// Whether instances have a way to the internet.
    pub(crate) egress: bool,
    /// What of Homerun itself they reach. None: nothing.
    pub(crate) doors: Option<Doors>,
    /// How long instances are kept for the next server when theirs is gone. Zero: they end at once.
    pub(crate) adoption: Duration,
}

/// Runs as launcher until the server is gone. `duty` is the argument after [`LAUNCHER`]; standard input is the socket.
/// Must be called with no other thread in the process. Returns the exit status.
pub fn launcher_main(duty: &OsStr) -> u8 {
    let done = serde_json::from_slice(duty.as_bytes())
        .map_err(io::Error::from)
        .and_then(Launcher::set_up)
        .and_then(Launcher::serve);
    match done {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "the launcher ended");
            let _ = io::Write::write_fmt(
                &mut io::stderr(),
                format_args!("homerun: the launcher of instances ended: {error}\n"),
            );
            1
        }
    }
}

struct Launcher {
    duty: Duty,
    /// `duty.layout`, with the unified tree at an open file of ours instead of the mount that we left.
    layout: Layout,
    /// None while there is no server.
    socket: Option<OwnedFd>,
    /// Where a new server knocks.
    door: OwnedFd,
    /// Until when instances are kept without a server.
    kept_until: Option<Instant>,
    keeping: Keeping,
    children: OwnedFd,
    home: network::Home,
    egress: Option<egress::Link>,
    /// By the first id of the range. Making one costs a fork, and ranges are used again.
    user_namespaces: HashMap<u32, OwnedFd>,
    /// The runtime's `create` of which instance.
    creating: HashMap<Pid, String>,
    running: HashMap<Pid, String>,
    nursery: Nursery,
    /// Ended before we knew whose it was.
    strays: HashMap<Pid, End>,
    _unified: Option<OwnedFd>,
}

impl Launcher {
    fn set_up(duty: Duty) -> io::Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        process::become_standard(&null, 0)?;
        rustix::process::setsid()?;
        // The process itself, not any given one: the argument is only a truth value to the kernel.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        rustix::thread::set_name(c"homerun-launch")?;
        let children = child_signals()?;

        Groups::new(&duty.layout, &duty.id8, "launcher").enter_home()?;
        let mut layout = duty.layout.clone();
        let mut kept = None;
        rootfs::leave_mounts()?;
        if let Layout::V1 {
            unified: Some(unified), ..
        } = &mut layout
        {
            let tree = rustix::fs::open(
                unified.as_path(),
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            rustix::mount::unmount(unified.as_path(), rustix::mount::UnmountFlags::DETACH)?;
            *unified = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
            kept = Some(tree);
        }
        Ok(Self {
            egress: (duty.egress || duty.doors.is_some())
                .then(|| egress::Link::start(&duty.id8, duty.egress, duty.doors.clone(), duty.run.calls())),
            door: keeping::door(&duty.run)?,
            duty,
            layout,
            socket: Some(socket),
            kept_until: None,
            keeping: Keeping::default(),
            children,
            home: network::Home::open()?,
            user_namespaces: HashMap::new(),
            creating: HashMap::new(),
            running: HashMap::new(),
            nursery: Nursery::open()?,
            strays: HashMap::new(),
            _unified: kept,
        })
    }

    fn serve(mut self) -> io::Result<()> {
        self.report(&Report::Up, &[]);
        loop {
            let rest = self.egress.as_mut().and_then(egress::Link::turn);
            let left = self
                .kept_until
                .map(|until| until.saturating_duration_since(Instant::now()));
            let rest = rest.into_iter().chain(left).min();
            let mut files = vec![
                PollFd::new(&self.children, PollFlags::IN),
                PollFd::from_borrowed_fd(self.nursery.words(), PollFlags::IN),
            ];
            let served = self.socket.is_some();
            match &self.socket {
                Some(socket) => files.push(PollFd::new(socket, PollFlags::IN)),
                // Half-made ones are given up first: a new server finds an instance whole, or not at all.
                None if self.creating.is_empty() && self.nursery.is_empty() => {
                    files.push(PollFd::new(&self.door, PollFlags::IN));
                }
                None => {}
            }
            let rest = rest.and_then(|rest| rest.try_into().ok());
            match poll(&mut files, rest.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let due = |number: usize| files.get(number).is_some_and(|file| !file.revents().is_empty());
            let [ended, heard, asked] = [0, 1, 2].map(due);
            drop(files);
            if ended {
                self.reap()?;
            } else if heard {
                self.hear()?;
            }
            match &self.socket {
                Some(socket) if asked => match wire::receive(socket) {
                    Ok(Some((Order::Leave, _))) => return Ok(()),
                    Ok(Some((Order::End, _))) => {
                        return self.end_all(Wait::ForAnyone(Duration::from_secs(2))).map(drop);
                    }
                    Ok(Some((order, files))) => self.obey(order, files),
                    Ok(None) | Err(_) => self.lose(),
                },
                // Not when the server was lost just now: then it was its socket that had something, and not the door.
                None if asked && !served => self.take_over(),
                Some(_) | None => {}
            }
            if let Some(until) = self.kept_until.filter(|until| *until <= Instant::now()) {
                let wait = if self.duty.adoption.is_zero() {
                    Wait::ForAnyone(Duration::from_secs(2))
                } else {
                    Wait::Not
                };
                if self.end_all(wait)? || self.duty.adoption.is_zero() {
                    return Ok(());
                }
                // A new server has just come: it takes over, or sweeps by itself, and us with it.
                self.kept_until = Some(until + Duration::from_millis(200));
            }
        }
    }

    fn tell(&self, report: &Report, files: &[&OwnedFd]) -> io::Result<()> {
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        match &self.socket {
            Some(socket) => wire::send(socket, report, &files),
            None => Ok(()),
        }
    }

    /// Without a server nobody is told; the next one hears of what is kept.
    fn report(&mut self, report: &Report, files: &[&OwnedFd]) {
        if self.tell(report, files).is_err() {
            self.lose();
        }
    }

    fn obey(&mut self, order: Order, mut files: Vec<OwnedFd>) {
        match order {
            Order::Leave | Order::End | Order::TakeOver { .. } => {}
            Order::Start(start) => {
                let mut output = files.split_off(files.len().min(3));
                let memory = output.split_off(output.len().min(2)).pop();
                self.keeping
                    .begin(&start.id, output.into_iter().map(process::aside).collect());
                if let Some(egress) = self.egress.as_mut().filter(|_| company::whose(&start.id).1 == 0) {
                    egress.expect(&start.id, start.ports.clone());
                }
                let begun = match &start.plan {
                    Some(plan) => self.make(&start, plan, files),
                    None => self.create(&start, &files, memory).map(|pid| {
                        self.creating.insert(pid, start.id.clone());
                    }),
                };
                if let Err(why) = begun {
                    self.not_started(start.id, why);
                }
            }
            Order::Abort { id } => {
                self.nursery.abort(&id);
                let pid = self.creating.iter().find(|(_, of)| **of == id);
                if let Some((pid, _)) = pid {
                    // Not reaped yet, so the number is still its own.
                    let _ = rustix::process::kill_process(*pid, Signal::KILL);
                }
            }
            Order::Renew { id, first_id, secrets } => {
                let placed = files.pop().ok_or_else(|| io::Error::other("no values came with them"));
                let placed = placed
                    .and_then(|memory| secret_files::place(&self.duty.run.volumes(&id), first_id, &secrets, memory));
                if let Err(error) = placed {
                    tracing::error!(id, %error, "the files of secrets stay as they were");
                }
            }
            Order::Forget { id } => self.keeping.forget(&id),
        }
    }

    fn not_started(&mut self, id: String, why: String) {
        if let Some(egress) = &mut self.egress {
            egress.release(&id);
        }
        self.keeping.forget(&id);
        self.report(&Report::NotStarted { id, why }, &[]);
    }

    /// The user namespace of a range.
    fn ids(&mut self, first_id: u32) -> Result<(), String> {
        if let Entry::Vacant(place) = self.user_namespaces.entry(first_id) {
            let made = process::user_namespace(first_id).map_err(rootfs::describe("make a user namespace"))?;
            place.insert(process::aside(made));
        }
        Ok(())
    }

    /// Starts the making of our own sandbox.
    fn make(&mut self, start: &Start, plan: &Plan, files: Vec<OwnedFd>) -> Result<(), String> {
        self.ids(start.first_id)?;
        let ids = self.user_namespaces[&start.first_id]
            .try_clone()
            .map_err(rootfs::describe("open a user namespace"))?;
        let way_out = self.egress.as_mut().and_then(|egress| egress.way(&start.id));
        self.nursery.make(Request {
            start,
            plan,
            layout: &self.layout,
            place: &self.duty.run.place(),
            ids,
            files,
            way_out,
        })
    }

    /// Reports the sandboxes of our own that are made.
    fn hear(&mut self) -> io::Result<()> {
        for heard in self.nursery.hear()? {
            let Infant {
                id,
                pid,
                network,
                gate,
                spent,
            } = match heard {
                Heard::Made(infant) => infant,
                Heard::Stillborn { id, why } => {
                    self.not_started(id, why);
                    continue;
                }
            };
            let made = Made {
                pid,
                process: rustix::process::pidfd_open(pid, PidfdFlags::empty())?,
                network,
                gate: Some(gate),
                end: None,
            };
            self.made(id, made, Some(spent))?;
        }
        Ok(())
    }

    /// A process waits to be released.
    fn made(&mut self, id: String, made: Made, spent: Option<Spent>) -> io::Result<()> {
        let made = Made {
            process: process::aside(made.process),
            network: process::aside(made.network),
            gate: made.gate.map(process::aside),
            ..made
        };
        let pid = made.pid;
        self.running.insert(pid, id.clone());
        let report = Report::Created {
            id: id.clone(),
            pid: pid.as_raw_nonzero().get(),
            spent,
        };
        let files: Vec<&OwnedFd> = [&made.process, &made.network].into_iter().chain(&made.gate).collect();
        let told = self.tell(&report, &files);
        let network = process::aside(made.network.try_clone()?);
        if !self.keeping.made(&id, made) {
            // Nobody waits for it any more.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        // The others of a company share the first one's network.
        if let Some(egress) = self.egress.as_mut().filter(|_| company::whose(&id).1 == 0) {
            egress.attach(&id, network);
        }
        if told.is_err() {
            self.lose();
        }
        Ok(())
    }

    /// Starts the runtime's `create` in a child and returns the child.
    /// `memory` holds the values of its files of secrets.
    fn create(&mut self, start: &Start, files: &[OwnedFd], memory: Option<OwnedFd>) -> Result<Pid, String> {
        self.ids(start.first_id)?;
        let (instance, container) = company::whose(&start.id);
        if container == 0 {
            let volumes = self.duty.run.volumes(instance);
            rootfs::make_volumes(&volumes, &start.volumes, start.first_id)
                .map_err(rootfs::describe("make the instance's volumes"))?;
            if let Some(memory) = memory {
                secret_files::place(&volumes, start.first_id, &start.secrets, memory)
                    .map_err(rootfs::describe("write the instance's files of secrets"))?;
            }
        }
        let group = Groups::new(&self.layout, &self.duty.id8, instance)
            .make_unified()
            .map_err(rootfs::describe("make the instance's control group"))?;
        // SAFETY: the process has one thread.
        let child = unsafe { process::clone(0, group.as_ref().map(OwnedFd::as_fd)) };
        if let Some(child) = child.map_err(rootfs::describe("start a process"))? {
            return Ok(child);
        }
        self.nursery.disown();
        let made = match &start.gvisor {
            Some(gvisor) => self.make_gvisor(start, gvisor, files),
            None => Err(self.become_runtime(start, files)),
        };
        let code = match made {
            Ok(()) => 0,
            Err(why) => {
                let _ = fs::write(self.duty.run.log(&start.id), why);
                OURS
            }
        };
        // SAFETY: ends the child without running what the parent has to run at its exit.
        unsafe { libc::_exit(code) }
    }

    /// Returns when an instance of the first generation waits to be released.
    fn make_gvisor(&self, start: &Start, gvisor: &Gvisor, files: &[OwnedFd]) -> Result<(), String> {
        for (number, file) in (0..=2).zip(files) {
            process::become_standard(file, number).map_err(rootfs::describe("connect the output"))?;
        }
        gvisor::create(&Making {
            gvisor,
            run: &self.duty.run,
            id: &start.id,
            layers: &start.layers,
            ids: &self.user_namespaces[&start.first_id],
            first_id: start.first_id,
            groups: &Groups::new(&self.layout, &self.duty.id8, &start.id),
            resolver: self.resolver(),
        })
    }

    /// Whom instances ask for names.
    fn resolver(&self) -> Option<std::net::Ipv4Addr> {
        let link = self.egress.as_ref();
        link.is_some_and(egress::Link::is_possible).then_some(egress::RESOLVER)
    }

    /// Never returns but with what went wrong.
    fn become_runtime(&self, start: &Start, files: &[OwnedFd]) -> String {
        let run = &self.duty.run;
        let bundle = run.bundle(&start.id);
        let ids = &self.user_namespaces[&start.first_id];
        let prepare = || -> Result<(), String> {
            for (number, file) in (0..=2).zip(files) {
                process::become_standard(file, number).map_err(rootfs::describe("connect the output"))?;
            }
            rootfs::leave_mounts().map_err(rootfs::describe("leave the mounts"))?;
            let names = rootfs::Names {
                resolver: self.resolver(),
                containers: &start.names,
            };
            rootfs::assemble(&run.place(), &start.layers, ids, start.first_id, &names)?;
            process::close_on_exec().map_err(rootfs::describe("close files"))
        };
        if let Err(why) = prepare() {
            return why;
        }
        // crun runs from a copy of itself: a file in /tmp by default, where it stays when crun is killed at once.
        let error = std::process::Command::new(&self.duty.runtime)
            .env("_LIBCONTAINER_STATEDIR", &bundle)
            .arg("--root")
            .arg(run.runtime())
            .arg("--log")
            .arg(run.log(&start.id))
            .args(["--cgroup-manager=cgroupfs", "create", "--bundle"])
            .arg(&bundle)
            .arg("--pid-file")
            .arg(bundle.join("pid"))
            .arg(&start.id)
            .exec();
        format!("cannot run {}: {error}", self.duty.runtime.display())
    }

    fn reap(&mut self) -> io::Result<()> {
        let mut drain = [0; 8 * size_of::<libc::signalfd_siginfo>()];
        let _ = rustix::io::read(&self.children, &mut drain);
        // All of them first: then whatever they said is there to be heard.
        let mut created = Vec::new();
        let mut exited = Vec::new();
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(rustix::io::Errno::CHILD) => break,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let end = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Code(code),
                (None, Some(signal)) => End::Signal(signal),
                (None, None) => continue,
            };
            if self.egress.as_mut().is_some_and(|egress| egress.ended(pid, end)) {
                continue;
            }
            if let Some(id) = self.creating.remove(&pid) {
                created.push((id, end));
            } else if let Some(id) = self.running.remove(&pid) {
                exited.push((id, end));
            } else {
                self.nursery.ended(pid, end);
                if !(self.creating.is_empty() && created.is_empty()) {
                    self.strays.insert(pid, end);
                }
            }
        }
        self.hear()?;
        for (id, end) in created {
            self.created(id, end)?;
        }
        if self.creating.is_empty() {
            self.strays.clear();
        }
        for (id, end) in exited {
            if let Some(egress) = &mut self.egress {
                egress.release(&id);
            }
            self.keeping.ended(&id, end);
            self.report(&Report::Exited { id, end }, &[]);
        }
        Ok(())
    }

    /// The runtime's `create` ended: either a process waits to be released, or the runtime said why not.
    fn created(&mut self, id: String, end: End) -> io::Result<()> {
        let why = if end == End::Code(0) {
            match self.complete(&id) {
                Ok(made) => return self.made(id, made, None),
                Err(why) => why,
            }
        } else {
            let runtime = self.duty.runtime.display();
            match self.duty.run.complaint(&id) {
                // Words about the image's program are the same whoever says them, and so are our own.
                Some(why) if end == End::Code(OURS) || is_about_program(&why) => why,
                Some(why) => format!("{runtime}: {why}"),
                None => format!("{runtime} ended with {end:?}"),
            }
        };
        self.not_started(id, why);
        Ok(())
    }

    /// Completes a created instance; the server releases it.
    fn complete(&mut self, id: &str) -> Result<Made, String> {
        let text = fs::read_to_string(self.duty.run.bundle(id).join("pid"))
            .map_err(rootfs::describe("read the runtime's pid file"))?;
        let number = text.trim().parse().unwrap_or(0);
        let pid = Pid::from_raw(number).ok_or_else(|| format!("no process id: {text:?}"))?;
        if let Some(end) = self.strays.remove(&pid) {
            return Err(format!("the process ended before it was released: {end:?}"));
        }
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| rootfs::describe("open the instance's process")(e.into()))?;
        let network = network::open_namespace(&format!("/proc/{number}/ns/net"))
            .map_err(rootfs::describe("open the instance's network"))?;
        // The others share the first one's network.
        if company::whose(id).1 == 0 {
            let way_out = self.egress.as_mut().and_then(|egress| egress.way(id));
            self.home
                .furnish(&network, way_out)
                .map_err(rootfs::describe("give the instance its address"))?;
        }
        Ok(Made {
            pid,
            process,
            network,
            gate: None,
            end: None,
        })
    }
}

/// Blocks every signal that would end the launcher before its server, and makes the end of a child readable.
fn child_signals() -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; the calls read it and touch nothing else.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        let watched = set.assume_init();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let file = libc::signalfd(-1, &raw const watched, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(file))
    }
}

/// The command that starts the launcher of a binary: its own path and what comes before the duty.
pub(crate) fn arguments(duty: &Duty) -> io::Result<[OsString; 2]> {
    Ok([LAUNCHER.into(), serde_json::to_string(duty)?.into()])
}
