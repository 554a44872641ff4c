//! The Homerun under test: started for one figure with a data directory of its own, stopped when the figure is done.

use std::{
    collections::BTreeSet,
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
    root: TempDir,
    binary: PathBuf,
    pub(crate) api: SocketAddr,
    pub(crate) http: SocketAddr,
    id8: String,
}

impl Homerun {
    pub(crate) fn up(idle_retention: &str) -> Result<Self> {
        let binary = std::env::var_os("HOMERUN_BIN").context("HOMERUN_BIN is not set: run bench/run")?;
        let binary = PathBuf::from(binary)
            .canonicalize()
            .context("HOMERUN_BIN names no file")?;
        let root = TempDir::with_prefix("homerun-bench-")?;
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
            .args(["--url-scheme", "http", "--idle-retention", idle_retention, "--data-dir"])
            .arg(root.path().join("data"))
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
        let address = |name: &str| -> Result<SocketAddr> {
            let rest = said
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix("http://"));
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
            api: address("api")?,
            http: address("ingress")?,
            child,
            root,
            binary,
            id8,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.root.path()
    }

    /// Our own client, with these words.
    pub(crate) fn client(&self, words: &[&str]) -> Result<Output> {
        let output = Command::new(&self.binary)
            .args(words)
            .env("HOMERUN_API", self.api.to_string())
            .env("CLOUDSDK_CONFIG", self.root.path().join("gcloud"))
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
        let mut words = vec!["run", "deploy", name, "--image", HELLO, "--region", REGION];
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

    /// The processes of its instances, as the kernel has them.
    pub(crate) fn instance_processes(&self) -> Vec<u32> {
        let mut found = BTreeSet::new();
        let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
        let parent = format!("homerun-{}", self.id8);
        while let Some((dir, depth)) = open.pop() {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_instance = dir.parent().is_some_and(|above| name(above) == parent) && is_instance_id(&name(&dir));
            if is_instance && let Ok(processes) = fs::read_to_string(dir.join("cgroup.procs")) {
                found.extend(processes.lines().filter_map(|line| line.parse::<u32>().ok()));
            }
            if depth < 3 {
                let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
                let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                open.extend(dirs.map(|entry| (entry.path(), depth + 1)));
            }
        }
        found.into_iter().collect()
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
