//! What instances take of the machine, and the part of it that can be taken back from one that stands still.

use std::{collections::HashMap, fs, io, sync::Arc, time::Duration};

use model::{InstanceId, Usage};

use crate::{
    Engine,
    cgroup::{Groups, Layout},
    life::Entry,
};

/// How much one call asks the kernel for at a time, so that what has become busy in between is left alone.
const STEP: u64 = 32 << 20;

impl Engine {
    /// What each of these instances takes, as far as it has a process. Some microseconds for each.
    pub async fn usage(&self, of: Vec<InstanceId>) -> HashMap<InstanceId, Usage> {
        let inner = Arc::clone(&self.inner);
        let read = tokio::task::spawn_blocking(move || {
            let entries: Vec<Arc<Entry>> = {
                let entries = inner.entries.read().expect("no panic while held");
                let there = |entry: &&Arc<Entry>| entry.running.get().is_some() && entry.over.get().is_none();
                of.iter()
                    .filter_map(|id| entries.get(id))
                    .filter(there)
                    .cloned()
                    .collect()
            };
            // One that ends meanwhile is left out.
            let usage = |entry: Arc<Entry>| Some((entry.spec.id.clone(), entry.groups.usage().ok()?));
            entries.into_iter().filter_map(usage).collect()
        });
        read.await.unwrap_or_default()
    }

    /// Pushes out memory that an idle instance has not used lately: to swap where the machine has some, else only pages
    /// of files, which are read again when needed. Its limit stays as it is, so nothing is killed for it. Returns by how
    /// many bytes the instance became smaller: 0 when it has a request, is gone, or had nothing to give.
    pub async fn reclaim(&self, id: &InstanceId) -> io::Result<u64> {
        let Some(entry) = self.inner.entry(id) else {
            return Ok(0);
        };
        let _turn = self.inner.reclaiming.acquire().await.expect("never closed");
        if entry.running.get().is_none() || entry.over.get().is_some() || !entry.cpu.is_idle() {
            return Ok(0);
        }
        say_without_swap();
        let pushed = tokio::task::spawn_blocking(move || entry.groups.reclaim(|| entry.cpu.is_idle()));
        pushed.await.map_err(io::Error::other)?
    }
}

impl Groups {
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let memory = match self.layout() {
            Layout::V1 { .. } => "memory.usage_in_bytes",
            Layout::V2 { .. } => "memory.current",
        };
        Ok(Usage {
            cpu: self.cpu_used()?,
            memory_bytes: number(&fs::read_to_string(self.file("memory", memory)?)?)?,
        })
    }

    /// CPU time since the instance's start.
    pub(crate) fn cpu_used(&self) -> io::Result<Duration> {
        match self.layout() {
            Layout::V1 { .. } => {
                let nanos = fs::read_to_string(self.file("cpuacct", "cpuacct.usage")?)?;
                Ok(Duration::from_nanos(number(&nanos)?))
            }
            Layout::V2 { .. } => {
                let stat = fs::read_to_string(self.file("cpu", "cpu.stat")?)?;
                Ok(Duration::from_micros(named(&stat, "usage_usec")?))
            }
        }
    }

    /// Asks the kernel to push out what the instance has not used lately: to swap where there is some, else only file
    /// pages that can be read again. Never takes what is needed: the limit stays as it is. Returns the bytes that the
    /// instance holds less than before. Blocks for as long as the kernel works.
    pub(crate) fn reclaim(&self, idle: impl Fn() -> bool) -> io::Result<u64> {
        let before = self.usage()?.memory_bytes;
        match self.layout() {
            Layout::V1 { .. } => fs::write(self.file("memory", "memory.force_empty")?, "0")?,
            Layout::V2 { .. } => {
                let file = self.file("memory", "memory.reclaim")?;
                let mut left = before;
                // EAGAIN: less than asked for could be found. All there is has been pushed out then.
                while left > 0 && idle() && found(fs::write(&file, STEP.min(left).to_string()))? {
                    left = left.saturating_sub(STEP);
                }
            }
        }
        Ok(before.saturating_sub(self.usage()?.memory_bytes))
    }
}

/// False: the kernel found no more.
fn found(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn number(text: &str) -> io::Result<u64> {
    let no_number = |_| io::Error::new(io::ErrorKind::InvalidData, format!("not a number: {text:?}"));
    text.trim().parse().map_err(no_number)
}

/// The number behind `name` in lines of a name and a number.
pub(crate) fn named(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    number(line.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {name}")))?)
}

/// Says once that there is no swap, which is why reclaiming finds little.
fn say_without_swap() {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        if swaps.lines().count() < 2 {
            tracing::info!("this machine has no swap: of idle instances only pages of files can be pushed out");
        }
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_files_of_version_2() {
        let root = tempfile::tempdir().expect("a directory");
        let layout = Layout::V2 {
            root: root.path().to_owned(),
        };
        let groups = Groups::new(&layout, "0123abcd", "iab");
        let group = root.path().join("homerun-0123abcd/iab");
        let write = |name: &str, text: &str| fs::write(Path::new(&group).join(name), text).expect("written");
        fs::create_dir_all(&group).expect("made");
        write("memory.current", "67108865\n");
        write("cpu.stat", "usage_usec 1500\nuser_usec 1000\n");
        let usage = groups.usage().expect("read");
        assert_eq!(
            (usage.cpu, usage.memory_bytes),
            (Duration::from_micros(1500), (64 << 20) + 1)
        );
        write("memory.reclaim", "");
        assert_eq!(groups.reclaim(|| true).expect("written"), 0);
        // Three steps, of which this is the last.
        assert_eq!(fs::read_to_string(group.join("memory.reclaim")).expect("read"), "1");
        write("memory.reclaim", "");
        assert_eq!(groups.reclaim(|| false).expect("nothing to do"), 0);
        assert_eq!(fs::read_to_string(group.join("memory.reclaim")).expect("read"), "");
        write("cpu.stat", "user_usec 1000\n");
        assert!(groups.usage().is_err());
    }
}
