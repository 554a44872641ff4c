//! The Homerun under test: started for one figure with a data directory of its own, stopped when the figure is done.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::http;

const PATIENCE: Duration = Duration::from_mins(1);
pub(crate) const HELLO: &str = "us-docker.pkg.dev/cloudrun/container/hello";
pub(crate) const REGION: &str = "us-central1";

#[derive(Debug)]
pub(crate) struct Homerun {
    child: Child,
    /// None once it was stopped for another start.
    root: Option<TempDir>,
    flags: Vec<String>,
    binary: PathBuf,
    pub(crate) api: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    id8: String,
}

impl Homerun {
    pub(crate) fn up(idle_retention: &str) -> Result<Self> {
        Self::up_with(&["--idle-retention", idle_retention])
    }

    pub(crate) fn up_with(flags: &[&str]) -> Result<Self> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self::start(TempDir::with_prefix("homerun-bench-")?, flags)
    }

    fn start(root: TempDir, flags: Vec<String>) -> Result<Self> {
        let binary = std::env::var_os("HOMERUN_BIN").context("HOMERUN_BIN is not set: run bench/run")?;
        let binary = PathBuf::from(binary)
            .canonicalize()
            .context("HOMERUN_BIN names no file")?;
        let said = root.path().join("up.out");
        let mut child = Command::new(&binary)
            .args([
                "up",
                "--api",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--https",
                "127.0.0.1:0",
            ])
            .args(["--url-scheme", "http", "--data-dir"])
            .arg(root.path().join("data"))
            .args(&flags)
            .stdin(Stdio::null())
            .stdout(File::create(&said)?)
            .stderr(File::create(root.path().join("up.log"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let deadline = Instant::now() + PATIENCE;
        let said = loop {
            let text = fs::read_to_string(&said)?;
            if text.lines().any(|line| line == "ready") {
                break text;
            }
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(root.path().join("up.log")).unwrap_or_default();
                bail!("homerun up ended with {status}:\n{log}");
            }
            ensure!(Instant::now() < deadline, "homerun up is not ready after {PATIENCE:?}");
            thread::sleep(Duration::from_millis(5));
        };
        let address = |name: &str, scheme: &str| -> Result<SocketAddr> {
            let rest = said
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(scheme));
            rest.with_context(|| format!("homerun up does not say where its {name} is"))?
                .parse()
                .with_context(|| format!("where its {name} is, is no address"))
        };
        let data = root.path().join("data").canonicalize()?;
        let id8 = fs::read_dir("/run/homerun")?
            .flatten()
            .find(|entry| {
                fs::read_to_string(entry.path().join("owner"))
                    .is_ok_and(|owner| owner.contains(&data.display().to_string()))
            })
            .and_then(|entry| entry.file_name().into_string().ok())
            .context("no /run/homerun/*/owner names the data directory")?;
        Ok(Self {
            api: address("api", "http://")?,
            http: address("ingress", "http://")?,
            https: address("ingress", "https://")?,
            child,
            root: Some(root),
            flags,
            binary,
            id8,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.root.as_ref().expect("kept until it is stopped").path()
    }

    /// A directory of its own below [`Homerun::dir`].
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir().join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Ends it and keeps its data.
    pub(crate) fn stop(mut self) -> Result<Stopped> {
        let root = self.root.take().context("stopped once")?;
        let flags = std::mem::take(&mut self.flags);
        drop(self);
        Ok(Stopped { root, flags })
    }

    /// Our own client, with these words.
    pub(crate) fn client(&self, words: &[&str]) -> Result<Output> {
        let output = Command::new(&self.binary)
            .args(words)
            .env("HOMERUN_API", self.api.to_string())
            .env("CLOUDSDK_CONFIG", self.dir().join("gcloud"))
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "homerun {} ended with {}: {}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    /// Deploys the hello image, and returns the host of its URL.
    pub(crate) fn deploy(&self, name: &str, flags: &[&str]) -> Result<String> {
        self.deploy_image(name, HELLO, flags)
    }

    pub(crate) fn deploy_image(&self, name: &str, image: &str, flags: &[&str]) -> Result<String> {
        let mut words = vec!["run", "deploy", name, "--image", image, "--region", REGION];
        words.extend(["--allow-unauthenticated", "--quiet"]);
        words.extend(flags);
        self.client(&words)?;
        let service = self.describe(name)?;
        let url = service["status"]["url"].as_str().context("the service has no URL")?;
        Ok(url.trim_start_matches("http://").to_owned())
    }

    pub(crate) fn describe(&self, name: &str) -> Result<Value> {
        let words = [
            "run", "services", "describe", name, "--region", REGION, "--format", "json",
        ];
        Ok(serde_json::from_slice(&self.client(&words)?.stdout)?)
    }

    pub(crate) fn token(&self) -> Result<String> {
        let output = self.client(&["auth", "print-access-token"])?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Of the owner, for every private service.
    pub(crate) fn identity_token(&self) -> Result<String> {
        let output = self.client(&["auth", "print-identity-token"])?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The processes of its instances that run their program, as the kernel has them.
    pub(crate) fn instance_processes(&self) -> Vec<u32> {
        self.running().into_values().flatten().collect()
    }

    /// How many sandboxes wait for their start, by their marks.
    pub(crate) fn parked(&self) -> usize {
        let bundles = Path::new("/run/homerun").join(&self.id8).join("bundles");
        let bundles = fs::read_dir(bundles).into_iter().flatten().flatten();
        bundles.filter(|bundle| bundle.path().join("parked").exists()).count()
    }

    fn running(&self) -> BTreeMap<String, Vec<u32>> {
        let parent = format!("homerun-{}", self.id8);
        let trees = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(|tree| Path::new(tree).join(&parent));
        let Some(tree) = trees.iter().find(|tree| tree.exists()) else {
            return BTreeMap::new();
        };
        // A parked sandbox is still the program that made it.
        let is_program = |pid: &u32| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            program != self.binary && program.file_name().is_some_and(|name| name != "crun")
        };
        let mut running = BTreeMap::new();
        for entry in fs::read_dir(tree).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_instance_id(&name) {
                continue;
            }
            let mut open = vec![entry.path()];
            let mut processes = Vec::new();
            while let Some(group) = open.pop() {
                let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                processes.extend(
                    listed
                        .lines()
                        .filter_map(|line| line.parse::<u32>().ok())
                        .filter(is_program),
                );
                let below = fs::read_dir(&group).into_iter().flatten().flatten();
                open.extend(
                    below
                        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                        .map(|e| e.path()),
                );
            }
            if !processes.is_empty() {
                running.insert(name, processes);
            }
        }
        running
    }

    /// Until exactly so many instances run.
    pub(crate) fn wait_for_instances(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.running().len();
            if seen == count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{seen} instances run, not {count}");
            // A look at a thousand of them costs something itself.
            thread::sleep(Duration::from_millis(if seen > 50 { 50 } else { 5 }));
        }
    }

    /// Until a request to `host` is answered well.
    pub(crate) fn wait_until_served(&self, host: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = http::get(self.http, host, "/");
            match answer {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(_) | Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Ok(answer) => bail!("{host} answers {}", answer.status),
                Err(error) => return Err(error.context(format!("{host} does not answer"))),
            }
        }
    }
}

/// `i` and 24 hex digits; what else lies beside the instances is the engine's own.
fn is_instance_id(name: &str) -> bool {
    name.strip_prefix('i')
        .is_some_and(|digits| digits.len() == 24 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A Homerun that does not run, with its data.
#[derive(Debug)]
pub(crate) struct Stopped {
    root: TempDir,
    flags: Vec<String>,
}

impl Stopped {
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub(crate) fn up(self) -> Result<Homerun> {
        Homerun::start(self.root, self.flags)
    }
}

impl Drop for Homerun {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        let deadline = Instant::now() + Duration::from_secs(30);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
