//! What an idle Homerun holds in memory.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    figure::{Measured, median},
    server::Homerun,
};

/// Until what start-up used has been given back.
const SETTLE: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;

pub(crate) fn measure() -> Result<Measured> {
    let mut totals = Vec::new();
    let mut server = Vec::new();
    for _ in 0..ROUNDS {
        let homerun = Homerun::up("15m")?;
        thread::sleep(SETTLE);
        totals.push(of_tree(homerun.pid())?);
        server.push(resident(homerun.pid())?);
    }
    Ok(Measured {
        value: median(&totals),
        notes: vec![format!(
            "the server alone {:.1} MiB, medians of {ROUNDS} starts",
            median(&server)
        )],
        samples: vec![("all MiB".to_owned(), totals), ("server MiB".to_owned(), server)],
    })
}

/// MiB that a process and all below it hold, without those that live in other process namespaces.
pub(crate) fn of_tree(pid: u32) -> Result<f64> {
    let mut open = vec![pid];
    let mut total = 0.0;
    let own = fs::read_link(format!("/proc/{pid}/ns/pid"))?;
    while let Some(pid) = open.pop() {
        // Instances are the launcher's children.
        if fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|namespace| namespace == own) {
            total += resident(pid)?;
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            open.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(total)
}

/// MiB that a process holds; pages that two share count for both.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    // A process that has ended and was not waited for has none.
    let Some(line) = line else { return Ok(0.0) };
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// MiB that belong to a process alone.
pub(crate) fn private(pid: u32) -> Result<f64> {
    let sums = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let mut kib = 0.0;
    for line in sums.lines().filter(|line| line.starts_with("Private_")) {
        let number = line.split_whitespace().nth(1).context("a sum without a number")?;
        kib += number.parse::<f64>()?;
    }
    Ok(kib / 1024.0)
}

/// MiB that the kernel could give.
pub(crate) fn available() -> Result<f64> {
    let all = fs::read_to_string("/proc/meminfo")?;
    let line = all.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: f64 = line
        .context("no MemAvailable")?
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()?;
    Ok(kib / 1024.0)
}
