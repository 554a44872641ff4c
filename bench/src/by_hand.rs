//! Starts of the same program by other hands: the OCI runtimes by their command lines, podman and docker.
//!
//! All of them run in a child of ours, once started for a figure, in a mount namespace in which the empty version 2 tree
//! of control groups is not mounted: crun refuses to work beside it. The child reads one name a line, starts a container,
//! waits for the first byte of its answer, takes the container away, and writes the milliseconds.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _, stdin, stdout},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// With this word the binary is that child.
pub(crate) const WORD: &str = "--starts-by-hand";
const PLACE: &str = "HOMERUN_BENCH_PLACE";
/// Of their control groups.
const PARENT: &str = "/homerun-bench-by-hand";
const PATIENCE: Duration = Duration::from_secs(20);

/// What starts containers by hand, for as long as a figure takes.
#[derive(Debug)]
pub(crate) struct Hands {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Hands {
    /// `program` is started as the only file of its root file system; `place` is an empty directory.
    pub(crate) fn new(program: &Path, place: &Path) -> Result<Self> {
        let root = place.join("root");
        for directory in ["proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(program, root.join("program"))?;
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("umount -l /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$1\"")
            .arg(std::env::current_exe()?)
            .arg(WORD)
            .env(PLACE, place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        Ok(Self { child, to, from })
    }

    /// Milliseconds from the command to the first byte.
    pub(crate) fn start(&mut self, hand: &str) -> Result<f64> {
        writeln!(self.to.as_mut().context("open until dropped")?, "{hand}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        match line.trim().parse() {
            Ok(millis) => Ok(millis),
            Err(_) => bail!("{hand}: {}", line.trim()),
        }
    }

    /// The median of some starts, or why there is none.
    pub(crate) fn note(&mut self, hand: &str, rounds: usize) -> String {
        let starts: Result<Vec<f64>> = (0..rounds).map(|_| self.start(hand)).collect();
        match starts {
            Ok(starts) => format!("{hand} run p50 {:.0} ms, of {rounds}", crate::figure::median(&starts)),
            Err(error) => format!("not measured: {error:#}"),
        }
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        drop(self.to.take());
        let _ = self.child.wait();
    }
}

/// The child's whole life.
pub(crate) fn starts() -> Result<()> {
    let place = PathBuf::from(std::env::var_os(PLACE).context("not for people")?);
    let mut docker = None;
    for (number, hand) in stdin().lock().lines().enumerate() {
        let line = match start(&place, &hand?, number, &mut docker) {
            Ok(took) => format!("{:.3}", took.as_secs_f64() * 1000.0),
            Err(error) => format!("{error:#}").replace('\n', " "),
        };
        writeln!(stdout(), "{line}")?;
        stdout().flush()?;
    }
    if let Some(mut docker) = docker {
        let Docker { daemon, .. } = &mut docker;
        let _ = run("kill", &["-TERM", &daemon.id().to_string()]);
        let _ = daemon.wait();
    }
    for tree in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let parent = tree.path().join(&PARENT[1..]);
        for left in fs::read_dir(&parent).into_iter().flatten().flatten() {
            // Files of a control group go with it.
            let _ = fs::remove_dir(left.path());
        }
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn start(place: &Path, hand: &str, number: usize, docker: &mut Option<Docker>) -> Result<Duration> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let id = format!("homerun-bench-{}-{number}", std::process::id());
    let environment = format!("PORT={port}");
    let root = place.join("root").display().to_string();
    let state = place.join(hand).display().to_string();
    fs::create_dir_all(&state)?;
    match hand {
        "crun" => {
            let bundle = bundle(place, hand, &id, &environment, true)?;
            let pid_file = format!("{bundle}/pid");
            let global = ["--root", &state, "--cgroup-manager=cgroupfs"];
            let began = Instant::now();
            run_with(
                "crun",
                &global,
                &["run", "--detach", "--bundle", &bundle, "--pid-file", &pid_file, &id],
            )?;
            let pid: u32 = fs::read_to_string(&pid_file)?.trim().parse()?;
            // In a network of its own, as ours are.
            let answered = in_network_of(pid, || first_byte(port, began));
            run_with("crun", &global, &["delete", "--force", &id])?;
            answered
        }
        CRUN_BURST => burst(place, &id),
        "runsc" => {
            let bundle = bundle(place, hand, &id, &environment, false)?;
            let global = [
                "--root",
                &state,
                "--platform=ptrace",
                "--network=host",
                "--ignore-cgroups",
            ];
            let began = Instant::now();
            run_with("runsc", &global, &["run", "-detach", "-bundle", &bundle, &id])?;
            let answered = first_byte(port, began);
            run_with("runsc", &global, &["delete", "-force", &id])?;
            answered
        }
        "podman" => {
            let run_root = format!("{state}/run");
            let global = ["--root", &state, "--runroot", &run_root, "--cgroup-manager=cgroupfs"];
            let began = Instant::now();
            let arguments = [
                "run",
                "--detach",
                "--name",
                &id,
                "--network=host",
                "--cgroup-parent",
                PARENT,
                "--ulimit=nofile=1024:1024",
                "--ulimit=nproc=1024:1024",
                "--env",
                &environment,
                "--rootfs",
                &root,
                "/program",
            ];
            run_with("podman", &global, &arguments)?;
            let answered = first_byte(port, began);
            run_with("podman", &global, &["rm", "--force", "--time=0", &id])?;
            answered
        }
        "docker" => {
            if docker.is_none() {
                *docker = Some(Docker::up(place, &state)?);
            }
            let socket = &docker.as_ref().context("just set")?.socket;
            let global = ["--host", socket];
            let began = Instant::now();
            let arguments = [
                "run",
                "--detach",
                "--name",
                &id,
                "--network=host",
                "--cgroup-parent",
                PARENT,
                "--env",
                &environment,
                IMAGE,
                "/program",
            ];
            run_with("docker", &global, &arguments)?;
            let answered = first_byte(port, began);
            run_with("docker", &global, &["rm", "--force", &id])?;
            answered
        }
        other => bail!("nobody is called {other}"),
    }
}

/// The hand that starts [`BURST`] containers, as many at a time as there are [`WORKERS`].
pub(crate) const CRUN_BURST: &str = "crun-burst";
const BURST: usize = 1000;
const WORKERS: usize = 6;

/// Until each of many containers by crun has answered once; then all are taken away. Their files are in memory.
fn burst(place: &Path, id: &str) -> Result<Duration> {
    let memory = tempfile::Builder::new()
        .prefix("homerun-bench-")
        .tempdir_in("/dev/shm")?;
    let state = memory.path().join("state").display().to_string();
    let first = bundle(place, "crun", id, "PORT=8080", true)?;
    let config: Value = serde_json::from_slice(&fs::read(Path::new(&first).join("config.json"))?)?;
    let mut bundles = Vec::new();
    for number in 0..BURST {
        let name = format!("{id}-{number}");
        let directory = memory.path().join(&name);
        let mut config = config.clone();
        config["linux"]["cgroupsPath"] = format!("{PARENT}/{name}").into();
        fs::create_dir(&directory)?;
        fs::write(directory.join("config.json"), config.to_string())?;
        bundles.push((name, directory.display().to_string()));
    }
    let global = ["--root", &state, "--cgroup-manager=cgroupfs"];
    let began = Instant::now();
    let started = by_workers(&bundles, |(name, bundle)| {
        let pid_file = format!("{bundle}/pid");
        let words = ["run", "--detach", "--bundle", bundle, "--pid-file", &pid_file, name];
        run_with("crun", &global, &words)?;
        // Each in a network of its own, in which nobody has the port.
        let pid = fs::read_to_string(&pid_file)?.trim().parse()?;
        in_network_of(pid, || first_byte(8080, began)).map(drop)
    });
    let took = began.elapsed();
    by_workers(&bundles, |(name, _)| {
        // One that was never started is not there to be taken away.
        let _ = run_with("crun", &global, &["delete", "--force", name]);
        Ok(())
    })?;
    started.map(|()| took)
}

/// Does the same with all of them, [`WORKERS`] at a time. A worker ends at its first error.
fn by_workers<T: Sync>(all: &[T], what: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || all.get(next.fetch_add(1, Ordering::Relaxed));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| scope.spawn(|| std::iter::from_fn(work).try_for_each(&what)))
            .collect();
        let mut ended = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.try_for_each(|ended| ended.ok().context("a thread broke off")?)
    })
}

/// Does something in the network namespace of a process.
fn in_network_of<T: Send>(pid: u32, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let there = || -> Result<T> {
        let network = fs::File::open(format!("/proc/{pid}/ns/net"))?;
        let only = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), Some(only))?;
        what()
    };
    thread::scope(|scope| scope.spawn(there).join().ok().context("a thread broke off")?)
}

const IMAGE: &str = "homerun-bench:1";

struct Docker {
    daemon: Child,
    socket: String,
}

impl Docker {
    /// A daemon of our own, without networks, in this mount namespace.
    fn up(place: &Path, state: &str) -> Result<Self> {
        let socket = format!("unix://{state}/socket");
        let daemon = Command::new("dockerd")
            .args([
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--storage-driver=overlay2",
            ])
            .args([
                "--data-root",
                &format!("{state}/data"),
                "--exec-root",
                &format!("{state}/exec"),
            ])
            .args(["--pidfile", &format!("{state}/pid"), "--host", &socket])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(format!("{state}/log"))?)
            .spawn()
            .context("cannot start dockerd")?;
        let docker = Self { daemon, socket };
        let deadline = Instant::now() + PATIENCE;
        while run_with("docker", &["--host", &docker.socket], &["info"]).is_err() {
            ensure!(Instant::now() < deadline, "dockerd does not answer");
            thread::sleep(Duration::from_millis(100));
        }
        let tar = place.join("root.tar").display().to_string();
        run(
            "tar",
            &["-C", &place.join("root").display().to_string(), "-cf", &tar, "."],
        )?;
        run_with("docker", &["--host", &docker.socket], &["import", &tar, IMAGE])?;
        Ok(docker)
    }
}

/// A bundle as the runtime itself proposes it, for our program.
fn bundle(place: &Path, hand: &str, id: &str, environment: &str, own_network: bool) -> Result<String> {
    let bundle = place.join(format!("{hand}-{id}"));
    fs::create_dir_all(&bundle)?;
    let mut spec = Command::new(hand);
    if hand == "runsc" {
        spec.args(["spec", "--", "/program"]);
    } else {
        spec.arg("spec");
    }
    ensure!(
        spec.current_dir(&bundle).status()?.success(),
        "{hand} proposes no configuration"
    );
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["root"] = json!({"path": place.join("root"), "readonly": false});
    let process = &mut config["process"];
    process["terminal"] = false.into();
    process["args"] = json!(["/program"]);
    process["env"] = json!([environment]);
    process["rlimits"] = json!([]);
    config["linux"]["cgroupsPath"] = format!("{PARENT}/{id}").into();
    if !own_network && let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
    fs::write(&file, config.to_string())?;
    Ok(bundle.display().to_string())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    run_with(program, &[], arguments)
}

/// With a time limit: a runtime that hangs does not hang us.
fn run_with(program: &str, global: &[&str], arguments: &[&str]) -> Result<()> {
    // Its output may be kept open by the container it starts, so it is not read to its end.
    let log = tempfile::NamedTempFile::new()?;
    let status = Command::new("timeout")
        .args(["20", program])
        .args(global)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.reopen()?)
        .stderr(log.reopen()?)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    let said = fs::read_to_string(log.path()).unwrap_or_default();
    ensure!(status.success(), "{program} ended with {status}: {}", said.trim());
    Ok(())
}

fn first_byte(port: u16, began: Instant) -> Result<Duration> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            write!(stream, "GET / HTTP/1.1\r\nHost: bare\r\nConnection: close\r\n\r\n")?;
            ensure!(stream.read(&mut [0; 1024])? > 0, "closed without an answer");
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < PATIENCE, "the program does not listen");
        thread::sleep(Duration::from_micros(100));
    }
}
