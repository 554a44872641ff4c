//! One Homerun, started for one test and stopped by it.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::{footprint::Footprint, leftover};

/// Until it says that it is ready.
const START: Duration = Duration::from_mins(1);

/// From SIGTERM to its end: the drain's own deadline and some.
const END: Duration = Duration::from_secs(30);

/// What else may take a moment after its end.
const SETTLE: Duration = Duration::from_secs(2);

/// A running Homerun. Dropped without [`Homerun::stop`] it is terminated all the same, without questions.
#[derive(Debug)]
pub struct Homerun {
    child: Child,
    /// The process that has taken over from `child`, which is not ours to wait for.
    heir: Option<u32>,
    root: TempDir,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    addresses: StartUp,
    /// The 8 hex digits in the names it gives to what the machine shares.
    id8: String,
}

/// What `homerun up` says when it is up, the one place that knows how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartUp {
    pub(crate) api: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) data: PathBuf,
}

impl StartUp {
    /// None until all lines are there, `ready` last:
    ///
    /// ```text
    /// api      http://127.0.0.1:PORT
    /// ingress  http://127.0.0.1:PORT
    /// ingress  https://127.0.0.1:PORT
    /// data     DIR
    /// ready
    /// ```
    fn parse(text: &str) -> Option<Self> {
        let words = |name: &str, prefix: &str| {
            text.lines().find_map(|line| {
                let rest = line.strip_prefix(name)?.strip_prefix(' ')?.trim();
                rest.strip_prefix(prefix).map(str::to_owned)
            })
        };
        let address = |name: &str, prefix: &str| words(name, prefix)?.parse().ok();
        if !text.lines().any(|line| line == "ready" || line.starts_with("ready ")) {
            return None;
        }
        Some(Self {
            api: address("api", "http://")?,
            http: address("ingress", "http://")?,
            https: address("ingress", "https://")?,
            data: words("data", "")?.into(),
        })
    }
}

/// `HOMERUN_BIN`, else `homerun` of the debug profile in cargo's target directory.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    let path = if let Some(path) = std::env::var_os("HOMERUN_BIN") {
        PathBuf::from(path)
    } else {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
            PathBuf::from,
        );
        target.join("debug/homerun")
    };
    path.canonicalize()
        .with_context(|| format!("no binary {}: build it, or set HOMERUN_BIN", path.display()))
}

/// Starts the binary; what it says goes to `up.log` in `root`.
fn spawn(root: &Path, flags: &[String], variables: &[(String, String)]) -> Result<Child> {
    let out = File::create(root.join("up.log"))?;
    let binary = binary()?;
    let defaults = [
        ("--url-scheme", "http"),
        ("--api", "127.0.0.1:0"),
        ("--http", "127.0.0.1:0"),
        ("--https", "127.0.0.1:0"),
        ("--idle-retention", "3s"),
    ];
    let defaults = defaults
        .iter()
        .filter(|(name, _)| !flags.iter().any(|flag| flag == name));
    Command::new(&binary)
        .arg("up")
        .args(defaults.flat_map(|(name, value)| [name, value]))
        .arg("--data-dir")
        .arg(root.join("data"))
        .args(flags)
        .env_remove("HOMERUN_API")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env("HOME", root.join("home"))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

impl Homerun {
    /// Starts one with its own data directory and ports, plain http URLs and short idle retention.
    ///
    /// # Errors
    /// When it ends or is not ready in time, with what it said.
    pub fn up() -> Result<Self> {
        Self::up_with(&[])
    }

    /// The same with more flags.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_with(flags: &[&str]) -> Result<Self> {
        Self::up_in(flags, &[])
    }

    /// The same with more flags and variables.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn up_in(flags: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let root = TempDir::with_prefix("homerun-e2e-").context("cannot make a directory")?;
        for dir in ["home", "bin", "tmp", "gcloud"] {
            fs::create_dir(root.path().join(dir))?;
        }
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let child = spawn(root.path(), &flags, &variables)?;
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut homerun = Self {
            child,
            heir: None,
            root,
            flags,
            variables,
            addresses: StartUp {
                api: nowhere,
                http: nowhere,
                https: nowhere,
                data: PathBuf::new(),
            },
            id8: String::new(),
        };
        homerun.meet()?;
        Ok(homerun)
    }

    /// Kills it with SIGKILL and starts another on the same data, at other ports.
    ///
    /// # Errors
    /// When it cannot be killed; as [`Self::up`].
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.kill()?;
        self.child = spawn(self.root.path(), &self.flags, &self.variables)?;
        self.heir = None;
        self.meet()
    }

    /// After an upgrade: goes on with the process that serves now. The one before ends by itself.
    ///
    /// # Errors
    /// When the same one serves.
    pub fn follow(&mut self) -> Result<()> {
        let text = fs::read_to_string(self.root.path().join("data/lock")).context("nobody serves")?;
        let serves: u32 = text.trim().parse().context("nobody knows who serves")?;
        ensure!(serves != self.pid(), "process {serves} serves as before");
        self.heir = Some(serves);
        Ok(())
    }

    /// Waits for the end of the process that was started first.
    ///
    /// # Errors
    /// When it does not end well within `limit`.
    pub fn first_ends(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "it ended with {status}:\n{}", self.log());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it has not ended:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// After [`Self::kill`]: starts another on the same data and the same ports.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn start_again(&mut self) -> Result<()> {
        let StartUp { api, http, https, .. } = &self.addresses;
        let mut flags = self.flags.clone();
        for (flag, address) in [("--api", api), ("--http", http), ("--https", https)] {
            flags.extend([flag.to_owned(), address.to_string()]);
        }
        self.child = spawn(self.root.path(), &flags, &self.variables)?;
        self.heir = None;
        self.meet()
    }

    /// Waits until nothing of it is on the machine.
    ///
    /// # Errors
    /// When something is left after `limit`.
    pub fn leaves_within(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "Homerun {} left behind:\n{}",
                self.id8,
                left.join("\n")
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Reads what it says, and finds it on the machine.
    fn meet(&mut self) -> Result<()> {
        self.addresses = self.wait_until_ready()?;
        self.id8 = leftover::id8_of(&self.addresses.data)?;
        ensure!(
            !self.left()?.is_empty(),
            "a running Homerun {} is seen nowhere on the machine, so its leftovers would not be either",
            self.id8
        );
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<StartUp> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(said) = StartUp::parse(&self.log()) {
                return Ok(said);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("homerun up ended with {status}:\n{}", self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "homerun up is not ready after {START:?}:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// All it said so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.root.path().join("up.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.heir.unwrap_or_else(|| self.child.id())
    }

    /// Where its API listens.
    pub fn api(&self) -> SocketAddr {
        self.addresses.api
    }

    /// Where services answer plain HTTP.
    pub fn http(&self) -> SocketAddr {
        self.addresses.http
    }

    /// Where services answer HTTPS.
    pub fn https(&self) -> SocketAddr {
        self.addresses.https
    }

    /// What its instances occupy at this moment.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    pub fn footprint(&self) -> Result<Footprint> {
        Footprint::of(&self.id8)
    }

    /// A directory for whatever the test needs, gone with it.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn addresses(&self) -> &StartUp {
        &self.addresses
    }

    fn left(&self) -> Result<Vec<String>> {
        leftover::find(&self.id8, self.root.path())
    }

    /// Ends it by SIGTERM. It must end well, in time, and leave nothing of its id on the machine.
    ///
    /// # Errors
    /// Which of it was not so.
    pub fn stop(mut self) -> Result<()> {
        self.order_to_stop()?;
        self.ended()
    }

    /// Sends SIGTERM and does not wait.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn order_to_stop(&mut self) -> Result<()> {
        if let Some(status) = self.status()? {
            return Err(anyhow!("homerun up had ended by itself with {status}:\n{}", self.log()));
        }
        let sent = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        ensure!(sent.success(), "kill -TERM {}: {sent}", self.pid());
        Ok(())
    }

    /// Waits for the end that was ordered. It must be well, in time, and leave nothing of its id on the machine.
    ///
    /// # Errors
    /// Which of it was not so.
    pub fn ended(mut self) -> Result<()> {
        let status = self.wait()?;
        ensure!(
            status.success(),
            "homerun up ended with {status} on SIGTERM:\n{}",
            self.log()
        );
        let deadline = Instant::now() + SETTLE;
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "Homerun {} left behind:\n{}",
                self.id8,
                left.join("\n")
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills it with SIGKILL, and starts nothing.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if self.heir.is_some() {
            Command::new("kill").args(["-KILL", &self.pid().to_string()]).status()?;
            let deadline = Instant::now() + END;
            while self.status()?.is_none() {
                ensure!(Instant::now() < deadline, "process {} is not gone", self.pid());
                thread::sleep(Duration::from_millis(10));
            }
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// How the process that serves has ended. None: it has not. Of one that is not our child this is what it said last.
    fn status(&mut self) -> Result<Option<ExitStatus>> {
        let Some(heir) = self.heir else {
            return Ok(self.child.try_wait()?);
        };
        let stat = fs::read_to_string(format!("/proc/{heir}/stat")).unwrap_or_default();
        // One that nobody has waited for is a Z.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if !matches!(state, None | Some('Z' | 'X')) {
            return Ok(None);
        }
        let stopped = self.log().trim_end().ends_with("stopped");
        Ok(Some(ExitStatus::from_raw(if stopped { 0 } else { 1 << 8 })))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "homerun up did not end within {END:?} of SIGTERM:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Homerun {
    fn drop(&mut self) {
        let ended = matches!(self.status(), Ok(Some(_)));
        if !ended && (self.order_to_stop().is_err() || self.wait().is_err()) {
            // A test has failed already; what matters is that the next begins on a clean machine.
            let _ = self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
api      http://127.0.0.1:4001
ingress  http://127.0.0.1:4002
ingress  https://127.0.0.1:4003
data     /tmp/x y
";

    #[test]
    fn start_up_lines() {
        assert_eq!(StartUp::parse(SAID), None, "not ready");
        let said = StartUp::parse(&format!("{SAID}ready\nlater\n")).expect("complete");
        assert_eq!(said.api.port(), 4001);
        assert_eq!(said.http.port(), 4002);
        assert_eq!(said.https.port(), 4003);
        assert_eq!(said.data, Path::new("/tmp/x y"));
    }
}
