//! What the instances of one running Homerun occupy on the machine, to ask later whether it is still there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Taken at one moment. All of it is gone after the Homerun has ended, however it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Ids, as in the names of control groups.
    pub instances: BTreeSet<String>,
    /// With their start, since ids of processes come again.
    pub processes: BTreeSet<(u32, String)>,
    /// As `/proc/PID/ns/net` links.
    networks: BTreeSet<PathBuf>,
    /// When it was taken, in ticks since the machine's start. Numbers of namespaces come again as well: what began later
    /// is in another one.
    taken: u64,
}

impl Footprint {
    /// Of the Homerun whose control groups are `homerun-ID8`.
    pub(crate) fn of(id8: &str) -> Result<Self> {
        let mut seen = Self::default();
        let own = fs::read_link("/proc/self/ns/net").context("no network namespace of one's own")?;
        for root in hierarchies(id8) {
            for group in below(&root) {
                let name = name_of(&group);
                if name.starts_with('i') {
                    seen.instances.insert(name);
                }
                let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                for pid in processes.lines().filter_map(|line| line.parse().ok()) {
                    // One that ended in the meantime is no longer of interest.
                    let Some(start) = start_of(pid) else { continue };
                    seen.processes.insert((pid, start));
                    if let Ok(network) = fs::read_link(format!("/proc/{pid}/ns/net"))
                        && network != own
                    {
                        seen.networks.insert(network);
                    }
                }
            }
        }
        seen.taken = ticks_now().context("/proc/uptime tells no time")?;
        Ok(seen)
    }

    /// A line for each part of it that is still there.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    pub fn remains(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let is_instance = |text: &str| self.instances.iter().any(|id| text.contains(id.as_str()));
        for process in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let read = |name: &str| fs::read_to_string(process.path().join(name)).unwrap_or_default();
            // Dead, and waiting for whoever adopted it to take note.
            if read("stat")
                .rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
            {
                continue;
            }
            let same = start_of(pid).is_some_and(|start| self.processes.contains(&(pid, start)));
            if same || is_instance(&read("cgroup")) {
                found.push(format!("process {pid}: {}", read("cmdline").replace('\0', " ")));
            }
            let network = fs::read_link(process.path().join("ns/net")).unwrap_or_default();
            let began_before = start_of(pid)
                .and_then(|start| start.parse().ok())
                .is_some_and(|start: u64| start <= self.taken);
            if began_before && self.networks.contains(&network) {
                found.push(format!("network namespace {} of process {pid}", network.display()));
            }
            let mounts = read("mountinfo");
            if let Some(mount) = mounts.lines().find(|line| is_instance(line)) {
                found.push(format!("mount of process {pid}: {mount}"));
            }
        }
        for hierarchy in fs::read_dir(CONTROL_GROUPS)?.flatten() {
            for group in below(&hierarchy.path())
                .into_iter()
                .filter(|g| is_instance(&name_of(g)))
            {
                found.push(format!("control group {}", group.display()));
            }
        }
        for bundle in below(Path::new("/run/homerun"))
            .into_iter()
            .filter(|b| is_instance(&name_of(b)))
        {
            found.push(format!("directory {}", bundle.display()));
        }
        Ok(found)
    }
}

/// Of both versions of control groups: below each mounted hierarchy, or below the one tree.
fn hierarchies(id8: &str) -> Vec<PathBuf> {
    let name = format!("homerun-{id8}");
    let mut roots: Vec<PathBuf> = fs::read_dir(CONTROL_GROUPS)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join(&name))
        .collect();
    roots.push(Path::new(CONTROL_GROUPS).join(&name));
    roots.retain(|root| root.is_dir());
    roots
}

/// All directories below, three levels down.
fn below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut level = vec![root.to_owned()];
    for _ in 0..3 {
        let mut next = Vec::new();
        for dir in level {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            next.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        found.extend(next.iter().cloned());
        level = next;
    }
    found
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// In ticks since the machine's start (field 22, the name being in brackets).
fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
}

/// Since the machine's start, of which there are 100 in a second.
fn ticks_now() -> Option<u64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, rest) = uptime.split_once('.')?;
    let hundredths: u64 = rest.get(..2)?.parse().ok()?;
    Some(seconds.parse::<u64>().ok()? * 100 + hundredths)
}
