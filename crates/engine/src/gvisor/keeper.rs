//! The process that an instance of the first generation hangs on: the first of its process ids, the parent of all that
//! runsc starts, and the one whose end is the instance's end.
//!
//! It has the shape that the launcher knows from crun. A short-lived child makes everything ([`create`]) and ends when
//! the instance is created; what is left waits for a byte in the fifo `exec.fifo`. The keeper then lets runsc start the
//! container, passes signals on to it, and ends with its exit code. When the keeper is killed, the kernel kills all
//! else, since it was their first process.
//!
//! Its room is a tmpfs with nothing of the machine in it but runsc's program (read-only), three devices, the instance's
//! groups and its root file system. Inside it the keeper is root of the instance's user namespace and nothing else:
//! runsc never has a privilege on the machine.
#![expect(
    unsafe_code,
    reason = "clone, unshare, close_range, _exit and signalfd have no safe form"
)]

use std::{
    convert::Infallible,
    fs, io,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{OpenOptionsExt as _, chown},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Gid, Mode, OFlags, Uid},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount},
    process::{Pid, Signal, WaitOptions},
    thread::{LinkNameSpaceType, UnshareFlags},
};
use serde_json::Value;

use super::Gvisor;
use crate::{
    cgroup::Groups,
    claim::RunDir,
    network, process,
    rootfs::{self, describe},
    wire::End,
};

/// The instance's root file system, in the keeper's room.
pub(super) const ROOT: &str = "/merged";
/// The directories of its groups.
pub(super) const GROUPS: &str = "/groups";

/// How long runsc may take to create a sandbox; less than the server waits for it.
const CREATE_PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to start the container in it.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How long a sandbox whose container was not started is waited for, whether it has ended after all.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Begins the one line that the keeper itself writes as the instance, when its container cannot be started.
pub(crate) const NOT_STARTED: &str = "homerun: the container was not started: ";

/// The exit code that goes with [`NOT_STARTED`].
const NOT_STARTED_CODE: i32 = 1;

/// What an instance is made of.
#[derive(Debug)]
pub(crate) struct Making<'a> {
    pub(crate) gvisor: &'a Gvisor,
    pub(crate) run: &'a RunDir,
    pub(crate) id: &'a str,
    /// Lowest first.
    pub(crate) layers: &'a [PathBuf],
    /// The user namespace that shifts ids, and the id of the machine that is its 0.
    pub(crate) ids: &'a OwnedFd,
    pub(crate) first_id: u32,
    pub(crate) groups: &'a Groups,
    /// Whom the instance asks for names.
    pub(crate) resolver: Option<Ipv4Addr>,
}

/// Makes the instance and writes its keeper's process id into the bundle. The calling process must have one thread, the
/// instance's standard files, and the version 2 group that the instance is born in; it must end right after.
pub(crate) fn create(making: &Making<'_>) -> Result<(), String> {
    let bundle = making.run.bundle(making.id);
    let text = fs::read(bundle.join("config.json")).map_err(describe("read the instance's bundle"))?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| describe("read the instance's bundle")(e.into()))?;
    let resources = &config["linux"]["resources"];
    let limit = "limit the instance's control groups";
    making.groups.make(resources).map_err(describe(limit))?;
    making
        .groups
        .join()
        .map_err(describe("enter the instance's control groups"))?;

    rootfs::leave_mounts().map_err(describe("leave the mounts"))?;
    let names = rootfs::Names {
        resolver: making.resolver,
        containers: &[],
    };
    rootfs::assemble(&making.run.place(), making.layers, making.ids, making.first_id, &names)?;
    furnish(making, &text).map_err(describe("furnish the room of the instance"))?;
    // SAFETY: a new network namespace gives no access to memory or files of others.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(io::Error::from)
        .and_then(|()| network::raise())
        .map_err(describe("make the instance's network"))?;
    let gate = gate(&making.run.runtime().join(making.id)).map_err(describe("make the instance's gate"))?;
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (told, telling) = pipe.map_err(|e| describe("make a pipe")(e.into()))?;

    // SAFETY: the process has one thread.
    let keeper = unsafe { process::clone(libc::CLONE_NEWPID, None) }.map_err(describe("start a process"))?;
    let Some(keeper) = keeper else {
        let begun = enter(making, &telling, &gate).and_then(|()| Keeper::new(making, gate));
        match begun {
            Ok(keeper) => keeper.keep(telling),
            Err(why) => tell(&telling, &why),
        }
        exit(NOT_STARTED_CODE)
    };
    drop(telling);
    let mut words = String::new();
    let read = io::Read::read_to_string(&mut fs::File::from(told), &mut words);
    read.map_err(describe("hear of the sandbox"))?;
    match words.as_str() {
        CREATED => {
            // Not before: to start runsc is no work of the instance.
            making.groups.limit_cpu(resources).map_err(describe(limit))?;
            fs::write(bundle.join("pid"), keeper.as_raw_nonzero().to_string()).map_err(describe("write the pid file"))
        }
        "" => Err("the keeper of the sandbox ended".to_owned()),
        why => Err(why.to_owned()),
    }
}

/// The keeper's word for a sandbox that waits; everything else is why there is none.
const CREATED: &str = "created";

fn tell(telling: &OwnedFd, word: &str) {
    // Whoever does not listen has given the instance up.
    let _ = rustix::io::write(telling, word.as_bytes());
}

/// To whoever reads what the instance prints.
fn complain(why: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("{NOT_STARTED}{why}\n").as_bytes());
}

/// Puts into the working directory, a tmpfs with the instance's root in it, what runsc needs besides.
fn furnish(making: &Making<'_>, config: &[u8]) -> io::Result<()> {
    for directory in ["proc", "dev", "tmp", "state", "bundle", &GROUPS[1..]] {
        fs::create_dir(directory)?;
    }
    let owner = Some(making.first_id);
    chown("state", owner, owner)?;
    bind(&making.gvisor.program, Path::new("runsc"), MountFlags::NODEV)?;
    for device in ["null", "zero", "urandom"] {
        bind(
            &Path::new("/dev").join(device),
            &Path::new("dev").join(device),
            MountFlags::NOEXEC,
        )?;
    }
    for (name, group) in making.groups.shown() {
        let place = Path::new(&GROUPS[1..]).join(name);
        fs::create_dir_all(&place)?;
        mount_bind(&group, &place)?;
        mount_remount(
            &place,
            MountFlags::BIND | READ_ONLY | MountFlags::NODEV | MountFlags::NOEXEC,
            "",
        )?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open("bundle/config.json")?;
    io::Write::write_all(&mut file, config)?;
    chown("bundle/config.json", owner, owner)
}

const READ_ONLY: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID);

/// One file of the machine, not to be changed.
fn bind(file: &Path, place: &Path, besides: MountFlags) -> io::Result<()> {
    fs::File::create(place)?;
    mount_bind(file, place)?;
    mount_remount(place, MountFlags::BIND | READ_ONLY | besides, "")?;
    Ok(())
}

/// What holds the container back: crun's fifo, with both ends open, so that who opens it never waits.
fn gate(state: &Path) -> io::Result<OwnedFd> {
    fs::create_dir(state)?;
    let fifo = state.join("exec.fifo");
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)?;
    Ok(rustix::fs::open(&fifo, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Leaves the machine for the room, and the machine's root for the instance's.
fn enter(making: &Making<'_>, telling: &OwnedFd, gate: &OwnedFd) -> Result<(), String> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| describe(what)(error.into());
    rustix::thread::set_name(c"homerun-keeper").map_err(failed("name the keeper"))?;
    rootfs::leave_mounts().map_err(describe("leave the mounts"))?;
    let hidden = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "proc", "proc", hidden, None).map_err(failed("mount /proc"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("change the root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("leave the machine's files"))?;
    std::env::set_current_dir("/").map_err(describe("enter the room"))?;

    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(making.ids), Some(LinkNameSpaceType::User))
        .map_err(failed("enter the user namespace"))?;
    let become_root = "become the instance's root";
    let (user, group) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_groups(&[]).map_err(failed(become_root))?;
    rustix::thread::set_thread_res_gid(group, group, group).map_err(failed(become_root))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(failed(become_root))?;
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    // SAFETY: none of the flags gives access to memory or files of others.
    unsafe { rustix::thread::unshare_unsafe(own) }.map_err(failed("make namespaces"))?;

    let mut kept = [telling.as_raw_fd(), gate.as_raw_fd()].map(|number| u32::try_from(number).unwrap_or(0));
    kept.sort_unstable();
    let [low, high] = kept;
    for (first, last) in [
        (3, low.saturating_sub(1)),
        (low + 1, high.saturating_sub(1)),
        (high + 1, u32::MAX),
    ] {
        if first <= last {
            // SAFETY: nothing uses these files any more in this process, which never drops their owners.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    Ok(())
}

/// How far the instance is.
#[derive(Debug)]
enum Stage {
    Creating {
        runsc: Pid,
        until: Instant,
    },
    Parked,
    Starting {
        runsc: Pid,
        until: Instant,
    },
    /// runsc says that the container was not started. It says so as well of one that ran and ended too soon, which then
    /// shows.
    Failing {
        why: String,
        until: Instant,
    },
    Running,
}

struct Keeper<'a> {
    gvisor: &'a Gvisor,
    id: &'a str,
    telling: Option<OwnedFd>,
    gate: OwnedFd,
    signals: OwnedFd,
    stage: Stage,
    /// runsc-sandbox, once it is known.
    sandbox: Option<Pid>,
    /// Ended before it was known what they were.
    strays: Vec<(Pid, End)>,
    /// Came before there was a container for it.
    pending: Option<Signal>,
}

impl<'a> Keeper<'a> {
    /// Begins to create the sandbox.
    fn new(making: &'a Making<'_>, gate: OwnedFd) -> Result<Self, String> {
        let signals = all_signals().map_err(describe("hear signals"))?;
        let runsc = runsc(making.gvisor, |command| {
            command
                .args(["create", "--bundle", "/bundle", "--pid-file", PID_FILE])
                .arg(making.id);
        })?;
        Ok(Self {
            gvisor: making.gvisor,
            id: making.id,
            telling: None,
            gate,
            signals,
            stage: Stage::Creating {
                runsc,
                until: Instant::now() + CREATE_PATIENCE,
            },
            sandbox: None,
            strays: Vec::new(),
            pending: None,
        })
    }

    /// Until the instance ends, or cannot begin.
    fn keep(mut self, telling: OwnedFd) {
        self.telling = Some(telling);
        let Err(why) = self.serve();
        match &self.telling {
            Some(telling) => tell(telling, &why),
            None => complain(&why),
        }
    }

    /// The error is why its container was never started.
    fn serve(&mut self) -> Result<Infallible, String> {
        loop {
            let (until, gated) = match &self.stage {
                Stage::Creating { until, .. } | Stage::Starting { until, .. } | Stage::Failing { until, .. } => {
                    (Some(*until), false)
                }
                Stage::Parked => (None, true),
                Stage::Running => (None, false),
            };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(match &self.stage {
                    Stage::Failing { why, .. } => why.clone(),
                    Stage::Creating { .. } | Stage::Starting { .. } | Stage::Parked | Stage::Running => {
                        "runsc was not ready in time".to_owned()
                    }
                });
            }
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut files = vec![PollFd::new(&self.signals, PollFlags::IN)];
            if gated {
                files.push(PollFd::new(&self.gate, PollFlags::IN));
            }
            match poll(&mut files, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(format!("cannot wait: {error}")),
            }
            let open = files.get(1).is_some_and(|gate| !gate.revents().is_empty());
            if open {
                self.start()?;
            }
            self.hear();
            self.reap()?;
        }
    }

    fn start(&mut self) -> Result<(), String> {
        let id = self.id;
        let runsc = runsc(self.gvisor, |command| {
            // What it has to say is in its log; the container has its standard files already.
            command.arg("start").arg(id).stdout(Stdio::null()).stderr(Stdio::null());
        })?;
        self.stage = Stage::Starting {
            runsc,
            until: Instant::now() + START_PATIENCE,
        };
        Ok(())
    }

    /// Passes signals on.
    fn hear(&mut self) {
        let mut one = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.signals, &mut one).is_ok_and(|length| length == one.len()) {
            // The number is the structure's first field.
            let number = i32::from_ne_bytes([one[0], one[1], one[2], one[3]]);
            match Signal::from_named_raw(number) {
                None | Some(Signal::CHILD) => {}
                Some(signal) => match (&self.stage, self.sandbox) {
                    (Stage::Running, Some(sandbox)) => {
                        // Gone already is as good.
                        let _ = rustix::process::kill_process(sandbox, signal);
                    }
                    _ => self.pending = Some(signal),
                },
            }
        }
    }

    fn reap(&mut self) -> Result<(), String> {
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(format!("cannot wait for runsc: {error}")),
            };
            let end = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Code(code),
                (None, Some(signal)) => End::Signal(signal),
                (None, None) => continue,
            };
            match &self.stage {
                Stage::Creating { runsc, .. } if *runsc == pid => self.created(end)?,
                Stage::Starting { runsc, .. } if *runsc == pid => self.started(end)?,
                Stage::Parked | Stage::Failing { .. } | Stage::Running if self.sandbox == Some(pid) => finish(end),
                // Whether the container ran is known once runsc has said so.
                Stage::Creating { .. } | Stage::Starting { .. } => self.strays.push((pid, end)),
                Stage::Parked | Stage::Failing { .. } | Stage::Running => {}
            }
        }
    }

    fn created(&mut self, end: End) -> Result<(), String> {
        if end != End::Code(0) {
            let why = complaint().unwrap_or_else(|| format!("runsc ended with {end:?}"));
            return Err(why);
        }
        let text = fs::read_to_string(PID_FILE).unwrap_or_default();
        let Some(sandbox) = text.trim().parse().ok().and_then(Pid::from_raw) else {
            return Err(format!("runsc wrote no process id: {text:?}"));
        };
        if let Some(end) = self.stray(sandbox) {
            return Err(format!("the sandbox ended before it was released: {end:?}"));
        }
        self.sandbox = Some(sandbox);
        self.stage = Stage::Parked;
        if let Some(telling) = self.telling.take() {
            tell(&telling, CREATED);
        }
        Ok(())
    }

    fn started(&mut self, end: End) -> Result<(), String> {
        let gone = self.sandbox.and_then(|sandbox| self.stray(sandbox));
        match (end, gone) {
            (End::Code(0), None) => {
                self.stage = Stage::Running;
                if let (Some(signal), Some(sandbox)) = (self.pending.take(), self.sandbox) {
                    let _ = rustix::process::kill_process(sandbox, signal);
                }
                Ok(())
            }
            (End::Code(0), Some(end)) => finish(end),
            // It ran, and ended before runsc had heard so.
            (_, Some(end)) => finish(end),
            (_, None) => {
                let why = complaint().unwrap_or_else(|| format!("runsc ended with {end:?}"));
                self.stage = Stage::Failing {
                    why,
                    until: Instant::now() + END_PATIENCE,
                };
                Ok(())
            }
        }
    }

    fn stray(&mut self, wanted: Pid) -> Option<End> {
        let at = self.strays.iter().position(|(pid, _)| *pid == wanted)?;
        Some(self.strays.swap_remove(at).1)
    }
}

/// Ends as the sandbox did, and everything that is left with it.
fn finish(end: End) -> ! {
    match end {
        End::Code(code) => exit(code),
        End::Signal(signal) => exit(128 + signal),
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running what its parents have to run at their exits.
    unsafe { libc::_exit(code) }
}

/// In the room.
const PID_FILE: &str = "/state/pid";
const LOG: &str = "/state/log";

/// Starts one command of runsc.
fn runsc(gvisor: &Gvisor, told: impl FnOnce(&mut Command)) -> Result<Pid, String> {
    let mut command = Command::new("/runsc");
    command
        .env_clear()
        .args(["--root", "/state", "--log", LOG, "--log-format", "json"])
        .arg(format!("--platform={}", gvisor.platform))
        .args(["--network=host", "--ignore-cgroups"])
        .args(&gvisor.options);
    told(&mut command);
    // Waited for by number, with everything else that the first process is handed.
    let child = command.spawn();
    let child = child.map_err(|error| format!("cannot run {}: {error}", gvisor.program.display()))?;
    let number = i32::try_from(child.id()).unwrap_or(0);
    Pid::from_raw(number).ok_or_else(|| "runsc has no process id".to_owned())
}

/// The last error that runsc wrote down.
fn complaint() -> Option<String> {
    let text = fs::read_to_string(LOG).ok()?;
    let entries = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let errors = entries.map_while(Result::ok).filter(|entry| entry["level"] == "error");
    let text = errors.last()?["msg"].as_str()?.to_owned();
    // What runsc was doing is of no use to whoever reads about a program that cannot be started.
    let program = text.rsplit_once("creating process: ");
    Some(program.map_or(text.as_str(), |(_, program)| program).to_owned())
}

/// Blocks every signal, and makes them readable.
fn all_signals() -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set; the calls read it and touch nothing else.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        if libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let file = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(file))
    }
}
