//! A builder: one process tree that makes an image, confined like an instance of the second generation.
//!
//! ```text
//! server ── Engine::build ── socket ── builder's parent (same binary) ── builder, first process of its namespaces
//!                                        └ ends it when the server is gone or hangs up
//! ```
//!
//! Its user, network, pid, mount, ipc, uts and cgroup namespaces are its own, and so are its ids and control groups. Its
//! network is a loopback; what listens there for the server is made before the builder begins and handed out. Its root is
//! made of directories of the server's choice below a layer in memory; what of the machine's disk it may read and write
//! is mounted in it with ids shifted, so that files of its root are the machine's root's on the disk. Secrets lie in memory
//! of its own, for its root alone. It may have what a maker of images needs and an instance has not: to mount within its own namespaces.
#![expect(unsafe_code, reason = "clone has no safe form")]

mod configuration;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use model::{RevealedFile, SecretValue};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Gid, Uid},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{PidfdFlags, Signal, WaitOptions},
};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use self::configuration::configuration;
use crate::{
    Engine, Inner,
    cgroup::{self, Groups, Layout},
    claim::RunDir,
    ids::Range,
    network, process,
    rootfs::{self, describe},
    sandbox::{self, Plan},
    secret_files::{self, SecretFile},
    wire::{self, VolumeSize},
};

/// The first argument with which a binary becomes a builder's parent.
pub const BUILDER: &str = "engine-builder";

/// Where in a builder [`BuilderSpec::secrets`] are.
pub const BUILDER_SECRETS: &str = "/run/homerun/secrets";

/// What a builder's control groups begin with.
pub(crate) const GROUP: &str = "build-";

/// How long making the sandbox of a builder may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Exit status of a parent whose builder could not be made.
const UNMADE: u8 = 125;

/// A directory of the machine that a builder sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderMount {
    pub from: PathBuf,
    /// Absolute, in the builder.
    pub to: String,
    pub read_only: bool,
}

/// What a builder's root may do within its own namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Privileges {
    /// All that a maker of images by steps needs: mounts, roots and namespaces of their own.
    Mounts,
    /// To change owners and to become somebody else.
    Users,
}

/// What a builder is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderSpec {
    /// Legal as a name of a directory; at most one builder has it at a time.
    pub id: String,
    /// What its root is made of, lowest first; it writes above them, in memory.
    pub layers: Vec<PathBuf>,
    pub privileges: Privileges,
    pub mounts: Vec<BuilderMount>,
    /// Directories within the mounts, by their paths in the builder, that are empty and in memory in their place.
    pub in_memory: Vec<String>,
    /// Files below [`BUILDER_SECRETS`], by their names: in memory, and readable by the builder's root only.
    #[serde(skip)]
    pub secrets: Vec<(String, SecretValue)>,
    /// The program, by its path in the builder, and its arguments.
    pub arguments: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// The port of its loopback at which [`Building::listener`] listens.
    pub port: u16,
}

/// A builder that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Building {
    /// On the builder's loopback, at the port that was asked for. Non-blocking.
    pub listener: TcpListener,
    /// What it writes to standard output and error.
    pub output: OwnedFd,
    child: Child,
    /// Closed, the parent ends the builder.
    _socket: OwnedFd,
    groups: Groups,
    _range: Range,
}

/// Why there is no builder.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    #[error("no more builders: all ranges of user ids are in use")]
    NoIds,
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the builder cannot be made: {why}")]
    Unmade { why: String },
    #[error("the builder was not made within {} s", PATIENCE.as_secs())]
    Late,
}

/// How a builder ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuilderEnd {
    /// 0: well.
    pub code: i32,
    /// It met its memory limit, and something of it was killed.
    pub out_of_memory: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Duty {
    id8: String,
    run: RunDir,
    layout: Layout,
    spec: BuilderSpec,
    /// With the memory that holds their values.
    secrets: Vec<SecretFile>,
    first_id: u32,
    limits_swap: bool,
    open_files: u64,
}

/// From the parent to the server.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// With the listener.
    Made,
    Failed {
        why: String,
    },
}

impl Engine {
    /// Starts a builder. Returns when its program is about to begin.
    ///
    /// # Errors
    /// When the sandbox cannot be made.
    pub async fn build(&self, spec: BuilderSpec) -> Result<Building, BuilderError> {
        let inner = Arc::clone(&self.inner);
        inner.build(spec).await
    }
}

impl Inner {
    async fn build(&self, spec: BuilderSpec) -> Result<Building, BuilderError> {
        let failed = |action| move |source: io::Error| BuilderError::Io { action, source };
        let range = self.ranges.take().ok_or(BuilderError::NoIds)?;
        let groups = Groups::new(&self.layout, &self.id8, &format!("{GROUP}{}", spec.id));
        let (secrets, values) = pack(&spec.secrets).map_err(failed("hold the secrets of a build"))?;
        let duty = Duty {
            secrets,
            id8: self.id8.clone(),
            run: self.run.clone(),
            layout: self.layout.clone(),
            spec,
            first_id: range.first(),
            limits_swap: self.limits_swap,
            open_files: self.open_files,
        };
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| failed("make a socket")(error.into()))?;
        let (output, written) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| failed("make a pipe")(error.into()))?;
        let written_too = written.try_clone().map_err(failed("make a pipe"))?;
        let mut child = Command::new(&self.launcher)
            .arg(BUILDER)
            .stdin(Stdio::from(its))
            .stdout(Stdio::from(written))
            .stderr(Stdio::from(written_too))
            .env_clear()
            .kill_on_drop(true)
            .spawn()
            .map_err(failed("start a builder"))?;
        let listener = match introduce(&ours, &duty, values).await {
            Ok(listener) => listener,
            Err(why) => {
                // It may have been made in part, and nobody else knows of it.
                let _ = child.kill().await;
                let left = tokio::task::spawn_blocking(move || groups.clear()).await;
                if let Err(error) = left.map_err(io::Error::other).and_then(|left| left) {
                    tracing::warn!(%error, "something of a builder that was not made is left");
                }
                return Err(why);
            }
        };
        Ok(Building {
            listener: TcpListener::from(listener),
            output,
            child,
            _socket: ours,
            groups,
            _range: range,
        })
    }
}

/// The list of a builder's secrets, and the memory file with their values.
fn pack(secrets: &[(String, SecretValue)]) -> io::Result<(Vec<SecretFile>, OwnedFd)> {
    let file = |(name, value): &(String, SecretValue)| RevealedFile {
        volume: 0,
        path: name.clone(),
        mode: 0o400,
        value: Some(value.clone()),
    };
    secret_files::pack(&secrets.iter().map(file).collect::<Vec<_>>())
}

/// Tells a builder's parent what the builder is to be, and waits until it is made. Returns its listener.
async fn introduce(socket: &OwnedFd, duty: &Duty, secrets: OwnedFd) -> Result<OwnedFd, BuilderError> {
    let failed = |action| move |source: io::Error| BuilderError::Io { action, source };
    // Not as an argument, which everybody on the machine could read.
    wire::send(socket, duty, &[secrets.as_fd()]).map_err(failed("tell a builder what it is to be"))?;
    drop(secrets);
    let socket = socket.try_clone().map_err(failed("make a socket"))?;
    let heard = tokio::task::spawn_blocking(move || wire::receive::<Word>(&socket));
    let heard = match tokio::time::timeout(PATIENCE, heard).await {
        Err(_) => return Err(BuilderError::Late),
        Ok(Err(error)) => return Err(failed("hear of the builder")(io::Error::other(error))),
        Ok(Ok(heard)) => heard.map_err(failed("hear of the builder"))?,
    };
    let unmade = |why: &str| BuilderError::Unmade { why: why.to_owned() };
    match heard {
        None => Err(unmade("it ended without a word")),
        Some((Word::Failed { why }, _)) => Err(BuilderError::Unmade { why }),
        Some((Word::Made, mut files)) => files.pop().ok_or_else(|| unmade("it has no listener")),
    }
}

impl Building {
    /// Waits for its end. What it left is gone when this returns.
    ///
    /// # Errors
    /// When it cannot be waited for, or something of it cannot be ended.
    pub async fn wait(&mut self) -> io::Result<BuilderEnd> {
        let status = self.child.wait().await?;
        let groups = self.groups.clone();
        let out_of_memory = tokio::task::spawn_blocking(move || {
            let killed = groups.memory_kills().map_or(0, |kills| kills.count());
            groups.clear().map(|()| killed > 0)
        });
        let out_of_memory = out_of_memory.await.map_err(io::Error::other)??;
        Ok(BuilderEnd {
            code: code(status),
            out_of_memory,
        })
    }

    /// Ends it at once. Then [`Self::wait`] returns.
    ///
    /// # Errors
    /// When the control groups do not let it be.
    pub async fn kill(&mut self) -> io::Result<()> {
        // What has ended already is as good.
        let _ = self.child.start_kill();
        self.wait().await.map(drop)
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).unwrap_or(1)
}

/// Ends the builders of a server that is gone, whose instances were taken over.
pub(crate) fn sweep(layout: &Layout, id8: &str) -> io::Result<()> {
    let parent = Path::new(&cgroup::parent_name(id8)).to_owned();
    for root in layout.roots() {
        let entries = std::fs::read_dir(root.join(&parent)).into_iter().flatten().flatten();
        for entry in entries {
            if entry.file_name().as_bytes().starts_with(GROUP.as_bytes()) {
                cgroup::clear(layout, &parent.join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}

/// Runs as a builder's parent until the builder has ended or the server is gone; standard input is the socket. Must be
/// called with no other thread in the process. Returns the exit status.
pub fn builder_main() -> u8 {
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3) else {
        return UNMADE;
    };
    let made = match wire::receive::<Duty>(&socket) {
        Ok(Some((duty, files))) => parent(&duty, files, &socket),
        Ok(None) => return UNMADE,
        Err(error) => Err(format!("cannot read what is to be built: {error}")),
    };
    match made {
        Ok(code) => code,
        Err(why) => {
            let _ = wire::send(&socket, &Word::Failed { why }, &[]);
            UNMADE
        }
    }
}

/// Makes the volume of a builder's secrets, with `values` in it.
fn place_secrets(duty: &Duty, place: &Path, values: OwnedFd) -> io::Result<()> {
    let volumes = place.join(VOLUMES);
    rootfs::make_volumes(&volumes, &[VolumeSize::of_secrets(duty.secrets.len())], duty.first_id)?;
    secret_files::place(&volumes, duty.first_id, &duty.secrets, values)
}

fn parent(duty: &Duty, mut files: Vec<OwnedFd>, socket: &OwnedFd) -> Result<u8, String> {
    let told = |what: &'static str| move |error: Errno| describe(what)(error.into());
    let plan = Plan::read(&configuration(duty), &duty.layout)?;
    let input = process::empty_input().map_err(describe("make an empty input"))?;
    process::become_standard(&input, 0).map_err(describe("take an empty input"))?;
    rustix::process::setsid().map_err(told("begin a session"))?;
    let ids = process::user_namespace(duty.first_id).map_err(describe("make a user namespace"))?;

    let groups = Groups::at(&duty.layout, &plan.groups);
    groups
        .make_first(&plan.limits)
        .and_then(|_| groups.enter_home())
        .and_then(|()| groups.enter(&plan.limits))
        .map_err(describe("make the control groups"))?;
    rootfs::leave_mounts().map_err(describe("leave the mounts"))?;
    let names = rootfs::Names {
        resolver: None,
        containers: &[],
    };
    let place = duty.run.place();
    rootfs::assemble(&place, &duty.spec.layers, &ids, duty.first_id, &names)?;
    for (index, mount) in duty.spec.mounts.iter().enumerate() {
        rootfs::shifted_writable(&mount.from, &ids, &point(index))
            .map_err(|error| format!("cannot mount {}: {error}", mount.from.display()))?;
    }
    if !duty.secrets.is_empty() {
        let values = files.pop().ok_or("the values of the secrets are missing")?;
        place_secrets(duty, &place, values).map_err(describe("place the secrets"))?;
    }
    sandbox::own_keyring(c"homerun-build").map_err(describe("begin a keyring"))?;
    sandbox::enter(&ids).map_err(describe("enter the user namespace"))?;
    rustix::thread::set_thread_groups(&[]).map_err(told("become root of the user namespace"))?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(told("become root of the user namespace"))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(told("become root of the user namespace"))?;
    let flags = libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // SAFETY: this process has one thread.
    let born = unsafe { process::clone(flags, None) }.map_err(describe("start a process in new namespaces"))?;
    let Some(pid) = born else {
        let why = live(duty, &plan, socket);
        let _ = wire::send(socket, &Word::Failed { why }, &[]);
        sandbox::leave(UNMADE.into());
    };
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(told("watch the builder"))?;
    loop {
        let mut files = [PollFd::new(&process, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        match poll(&mut files, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(told("wait for the builder")(error)),
        }
        let [ended, hung_up] = files.map(|file| !file.revents().is_empty());
        if hung_up && !ended {
            // With the first process all others of its namespace end.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if ended || hung_up {
            break;
        }
    }
    let status = rustix::process::waitpid(Some(pid), WaitOptions::empty()).map_err(told("wait for the builder"))?;
    let Some((_, status)) = status else {
        return Ok(UNMADE);
    };
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or(signal).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

/// The first process of the builder's namespaces. Returns why the program did not begin.
fn live(duty: &Duty, plan: &Plan, socket: &OwnedFd) -> String {
    let made = || -> Result<TcpListener, String> {
        network::furnish_own(None).map_err(describe("set up the network"))?;
        let listener = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, duty.spec.port))
            .map_err(describe("listen on the builder's loopback"))?;
        listener
            .set_nonblocking(true)
            .map_err(describe("listen on the builder's loopback"))?;
        Ok(listener)
    };
    let listener = match made() {
        Ok(listener) => listener,
        Err(why) => return why,
    };
    let ready = match sandbox::furnish_builder(plan) {
        Ok(ready) => ready,
        Err(why) => return why,
    };
    // After the last change of its privileges, which would undo it.
    let watch = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if let Err(error) = watch {
        return describe("end with the parent")(error.into());
    }
    if let Err(error) = wire::send(socket, &Word::Made, &[listener.as_fd()]) {
        return describe("say that it is made")(error);
    }
    drop(listener);
    let error = ready.become_program();
    let why = format!("cannot run {}: {error}\n", duty.spec.arguments.join(" "));
    let _ = rustix::io::write(io::stderr(), why.as_bytes());
    sandbox::leave(UNMADE.into())
}

/// Where the volumes of a builder are, below the place of its root.
const VOLUMES: &str = "volumes";

/// Where a mount of the machine waits for the builder's own mounts, below the place of its root.
fn point(index: usize) -> String {
    format!("m{index}")
}

/// A program's shared libraries and its loader, by their paths, as the loader itself tells. Starts a process.
///
/// # Errors
/// When the loader does not know the program.
pub fn libraries_of(program: &Path) -> io::Result<Vec<PathBuf>> {
    let told = std::process::Command::new("ldd")
        .arg(program)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&told.stdout);
    if !told.status.success() && !text.contains("not a dynamic executable") {
        let why = String::from_utf8_lossy(&told.stderr).trim().to_owned();
        return Err(io::Error::other(format!("ldd {}: {why}", program.display())));
    }
    if let Some(missing) = text.lines().find(|line| line.contains("=> not found")) {
        return Err(io::Error::other(format!("{}: {}", program.display(), missing.trim())));
    }
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}
