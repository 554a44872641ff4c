//! Groups that we make, limit and enter ourselves, for a runtime that is told to leave them alone.

use std::{fs, io, path::PathBuf};

use serde_json::Value;

use super::{Groups, Layout};

/// A controller, one of its files, and what is written there.
type Setting = (&'static str, &'static str, String);

/// What is accounted or limited by version 1; others stay where they are.
const ENTERED: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];

impl Groups {
    /// Makes the groups, and limits them by the `linux.resources` of an OCI configuration, all but the share of a CPU,
    /// which is [`Groups::limit_cpu`]'s.
    pub(crate) fn make(&self, resources: &Value) -> io::Result<()> {
        match &self.layout {
            Layout::V1 { .. } => {
                for group in self.entered() {
                    fs::create_dir_all(group)?;
                }
            }
            Layout::V2 { root } => {
                let group = root.join(&self.path);
                fs::create_dir_all(&group)?;
                let parents = group.ancestors().skip(1).take_while(|above| above.starts_with(root));
                let mut parents: Vec<_> = parents.collect();
                parents.reverse();
                for parent in parents {
                    fs::write(parent.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
                }
            }
        }
        for (controller, name, value) in settings(&self.layout, resources) {
            self.set(controller, name, &value)?;
        }
        Ok(())
    }

    /// Moves the calling process into the groups.
    pub(crate) fn join(&self) -> io::Result<()> {
        let groups = match &self.layout {
            Layout::V1 { .. } => self.entered(),
            Layout::V2 { root } => vec![root.join(&self.path)],
        };
        for group in groups {
            fs::write(group.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Limits the CPU by the `linux.resources` of an OCI configuration, if they say so.
    pub(crate) fn limit_cpu(&self, resources: &Value) -> io::Result<()> {
        let Some(quota) = resources["cpu"]["quota"].as_u64() else {
            return Ok(());
        };
        match &self.layout {
            Layout::V1 { .. } => self.set("cpu", "cpu.cfs_quota_us", &quota.to_string()),
            Layout::V2 { .. } => self.set("cpu", "cpu.max", &format!("{quota} {}", super::PERIOD_MICROS)),
        }
    }

    /// The directories that show an instance its limits, and where below `/sys/fs/cgroup` it looks for them.
    pub(crate) fn shown(&self) -> Vec<(&'static str, PathBuf)> {
        match &self.layout {
            Layout::V1 { hierarchies, .. } => ["cpu", "memory"]
                .into_iter()
                .filter_map(|name| Some((name, hierarchies.get(name)?.join(&self.path))))
                .collect(),
            Layout::V2 { root } => vec![("", root.join(&self.path))],
        }
    }

    fn set(&self, controller: &str, name: &str, value: &str) -> io::Result<()> {
        let file = self.file(controller, name)?;
        fs::write(&file, value).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
    }

    fn entered(&self) -> Vec<PathBuf> {
        let Layout::V1 { hierarchies, .. } = &self.layout else {
            return Vec::new();
        };
        let mut groups: Vec<PathBuf> = ENTERED
            .iter()
            .filter_map(|name| Some(hierarchies.get(*name)?.join(&self.path)))
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

fn settings(layout: &Layout, resources: &Value) -> Vec<Setting> {
    let number = |above: &str, name: &str| resources[above][name].as_u64();
    let mut all = Vec::new();
    let mut add = |controller, name, value: Option<String>| all.extend(value.map(|value| (controller, name, value)));
    let text = |number: Option<u64>| number.map(|number| number.to_string());
    match layout {
        Layout::V1 { .. } => {
            add("memory", "memory.limit_in_bytes", text(number("memory", "limit")));
            add("memory", "memory.memsw.limit_in_bytes", text(number("memory", "swap")));
            add("cpu", "cpu.shares", text(number("cpu", "shares")));
            add("cpu", "cpu.cfs_period_us", text(number("cpu", "period")));
        }
        Layout::V2 { .. } => {
            add("memory", "memory.max", text(number("memory", "limit")));
            // Version 1 counts memory and swap together, version 2 swap alone.
            let swap = number("memory", "swap").zip(number("memory", "limit"));
            add(
                "memory",
                "memory.swap.max",
                text(swap.map(|(both, memory)| both.saturating_sub(memory))),
            );
            add("cpu", "cpu.weight", text(number("cpu", "shares").map(weight)));
            let group = resources["unified"]["memory.oom.group"].as_str();
            add("memory", "memory.oom.group", group.map(str::to_owned));
        }
    }
    add("pids", "pids.max", text(number("pids", "limit")));
    all
}

/// Version 2's 1 to 10,000 for version 1's 2 to 262,144, as every OCI runtime counts it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn resources() -> Value {
        json!({
            "memory": {"limit": 1024, "swap": 1024},
            "cpu": {"shares": 512, "period": 100_000, "quota": 50_000},
            "pids": {"limit": 7},
            "unified": {"memory.oom.group": "1"},
        })
    }

    #[test]
    fn what_is_written() {
        let place = PathBuf::from("/x");
        let first = Layout::V1 {
            hierarchies: BTreeMap::from([("memory".to_owned(), place.clone())]),
            unified: None,
        };
        let shown = |layout: &Layout| -> Vec<String> {
            let all = settings(layout, &resources());
            all.iter().map(|(_, name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(
            shown(&first),
            [
                "memory.limit_in_bytes=1024",
                "memory.memsw.limit_in_bytes=1024",
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "pids.max=7"
            ]
        );
        assert_eq!(
            shown(&Layout::V2 { root: place }),
            [
                "memory.max=1024",
                "memory.swap.max=0",
                "cpu.weight=20",
                "memory.oom.group=1",
                "pids.max=7"
            ]
        );
        assert_eq!(
            [weight(2), weight(1024), weight(262_144), weight(0)],
            [1, 39, 10_000, 1]
        );
    }

    #[test]
    fn a_group_is_made_where_it_is_counted() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        let layout = Layout::V1 {
            hierarchies: ["cpu", "memory", "pids", "devices"]
                .map(|name| (name.to_owned(), at(name)))
                .into(),
            unified: None,
        };
        let groups = Groups::new(&layout, "0123abcd", "iab");
        groups.make(&resources()).expect("made");
        groups.limit_cpu(&resources()).expect("limited");
        let read = |name: &str| fs::read_to_string(at(name)).expect(name);
        assert_eq!(read("memory/homerun-0123abcd/iab/memory.limit_in_bytes"), "1024");
        assert_eq!(read("cpu/homerun-0123abcd/iab/cpu.cfs_quota_us"), "50000");
        assert!(!at("devices").exists());
        let shown: Vec<&str> = groups.shown().iter().map(|(name, _)| *name).collect();
        assert_eq!(shown, ["cpu", "memory"]);
    }
}
