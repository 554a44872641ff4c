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
        let mut open = vec![homerun.pid()];
        let mut total = 0.0;
        while let Some(pid) = open.pop() {
            total += resident(pid)?;
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            open.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        server.push(resident(homerun.pid())?);
        totals.push(total);
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

/// MiB that a process holds; pages that two share count for both.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    // A process that has ended and was not waited for has none.
    let Some(line) = line else { return Ok(0.0) };
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
