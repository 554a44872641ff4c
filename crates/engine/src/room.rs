//! What the machine has left, as the kernel says it.

use std::fs;

use model::Room;

use crate::{Engine, cpus};

impl Engine {
    /// What the machine has left: memory that the kernel could give now, and CPUs that no instance was promised; a
    /// parked one was not yet.
    pub fn room(&self) -> Room {
        let promised: u64 = {
            let entries = self.inner.entries.read().expect("no panic while held");
            let alive = entries
                .values()
                .filter(|entry| entry.over.get().is_none() && *entry.released.borrow());
            alive.map(|entry| u64::from(entry.spec.cpu_millis())).sum()
        };
        let all = u64::try_from(cpus()).unwrap_or(u64::MAX).saturating_mul(1000);
        let (memory_total_bytes, memory_bytes) = memory().unwrap_or_default();
        Room {
            memory_bytes,
            memory_total_bytes,
            cpu_millis: u32::try_from(all.saturating_sub(promised)).unwrap_or(u32::MAX),
            cpus: u32::try_from(cpus()).unwrap_or(u32::MAX),
            cpu_stalled: cpu_stalled(),
            memory_stalled: memory_stalled(),
        }
    }
}

/// `MemTotal` and `MemAvailable` of `/proc/meminfo`, bytes.
pub(crate) fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some((kibibytes(&text, "MemTotal:")?, kibibytes(&text, "MemAvailable:")?))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// For how much of the last ten seconds something waited for a CPU, percent.
pub(crate) fn cpu_stalled() -> u8 {
    stalled("cpu", "some")
}

/// For how much of the last ten seconds everything stood still for memory, percent.
pub(crate) fn memory_stalled() -> u8 {
    stalled("memory", "full")
}

/// 0 on kernels without pressure stall information.
fn stalled(resource: &str, who: &str) -> u8 {
    let text = fs::read_to_string(format!("/proc/pressure/{resource}")).unwrap_or_default();
    average(&text, who).unwrap_or(0)
}

/// `avg10` of a line such as `some avg10=72.75 avg60=45.89 avg300=16.70 total=4443805505`, rounded down.
fn average(text: &str, who: &str) -> Option<u8> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(who)?.strip_prefix(' '))?;
    let value = line.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    value.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let pressure =
            "some avg10=72.75 avg60=45.89 avg300=16.70 total=1\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(average(pressure, "some"), Some(72));
        assert_eq!(average(pressure, "full"), Some(3));
        assert_eq!(average("", "some"), None);
        let meminfo = "MemTotal:       24684084 kB\nMemFree:         3398736 kB\nMemAvailable:   23106932 kB\n";
        assert_eq!(kibibytes(meminfo, "MemAvailable:"), Some(23_106_932 * 1024));
        assert_eq!(kibibytes(meminfo, "SwapTotal:"), None);
        let (total, available) = memory().expect("every Linux has it");
        assert!(total > 0 && available <= total);
    }
}
