//! What of one Homerun is on the machine: its id8 in the names of what the machine shares, its directory in what runs
//! and what is mounted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

const RUN: &str = "/run/homerun";

/// The id8 whose owner file names the data directory.
pub(crate) fn id8_of(data: &Path) -> Result<String> {
    let data = data
        .canonicalize()
        .with_context(|| format!("no data directory {}", data.display()))?;
    let entries = fs::read_dir(RUN).with_context(|| format!("cannot read {RUN}"))?;
    entries
        .flatten()
        .find(|entry| {
            let owner = fs::read_to_string(entry.path().join("owner")).unwrap_or_default();
            owner.contains(&data.display().to_string())
        })
        .and_then(|entry| entry.file_name().into_string().ok())
        .with_context(|| format!("no {RUN}/*/owner names {}", data.display()))
}

/// A line for each thing found. `root` is the directory that holds its data.
pub(crate) fn find(id8: &str, root: &Path) -> Result<Vec<String>> {
    let root = root.display().to_string();
    let ours = |text: &str| text.contains(id8) || text.contains(&root);
    let mut found = Vec::new();

    let run = Path::new(RUN).join(id8);
    if run.exists() {
        found.push(format!("directory {}", run.display()));
    }
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        // One that ended in the meantime reads as empty.
        let read = |name: &str| {
            let bytes = fs::read(process.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let command = read("cmdline");
        let is_this_test = pid == std::process::id();
        if !is_this_test && (ours(&command) || ours(&read("cgroup"))) {
            found.push(format!("process {pid}: {}", command.trim_end()));
        }
    }
    for mount in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        if ours(mount) {
            found.push(format!("mount {mount}"));
        }
    }
    let mut cgroups = Vec::new();
    named(Path::new("/sys/fs/cgroup"), id8, 4, &mut cgroups);
    found.extend(cgroups.iter().map(|c| format!("cgroup {}", c.display())));
    for dir in ["/run/netns", "/sys/class/net"] {
        let mut names = Vec::new();
        named(Path::new(dir), id8, 0, &mut names);
        found.extend(names.iter().map(|n| format!("network {}", n.display())));
    }
    // A machine without nft has no tables.
    if let Ok(tables) = Command::new("nft").args(["list", "tables"]).output() {
        let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
        found.extend(tables.lines().filter(|t| ours(t)).map(str::to_owned));
    }
    Ok(found)
}

/// Entries whose name contains `id8`, down to `depth` directories below.
fn named(dir: &Path, id8: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(id8) {
            found.push(entry.path());
        } else if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            named(&entry.path(), id8, depth - 1, found);
        }
    }
}
