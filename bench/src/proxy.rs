//! What a request costs on its way through the ingress: against nginx, round by round, before the same container.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    figure::{Measured, median},
    nginx::Nginx,
    server::Homerun,
    wrk::{self, Load},
};

const ROUNDS: usize = 7;
const SECONDS: u32 = 2;
/// `sysconf(_SC_CLK_TCK)` of Linux, whatever the kernel's own rate.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) fn requests_per_second() -> Result<Measured> {
    let rounds = against_nginx(64)?;
    let ours = column(&rounds.homerun, |round| round.load.requests_per_second);
    let peer = column(&rounds.nginx, |round| round.load.requests_per_second);
    let mut measured = rounds.measured(median(&ours) / median(&peer));
    measured.notes.insert(
        0,
        format!(
            "homerun {:.0}/s, nginx {:.0}/s, medians of {ROUNDS}",
            median(&ours),
            median(&peer)
        ),
    );
    Ok(measured)
}

pub(crate) fn p99_with_512() -> Result<Measured> {
    let rounds = against_nginx(512)?;
    let ours = column(&rounds.homerun, |round| round.load.p99_millis);
    let peer = column(&rounds.nginx, |round| round.load.p99_millis);
    let mut measured = rounds.measured(median(&ours) / median(&peer));
    measured.notes.insert(
        0,
        format!(
            "p99 of homerun {:.1} ms, of nginx {:.1} ms, medians of {ROUNDS}",
            median(&ours),
            median(&peer)
        ),
    );
    Ok(measured)
}

#[derive(Debug)]
struct Round {
    load: Load,
    /// Of the proxy alone.
    cpu_micros_per_request: f64,
}

#[derive(Debug)]
struct Rounds {
    homerun: Vec<Round>,
    nginx: Vec<Round>,
}

impl Rounds {
    fn measured(&self, value: f64) -> Measured {
        let cpu = |rounds: &[Round]| column(rounds, |round| round.cpu_micros_per_request);
        let (ours, peer) = (cpu(&self.homerun), cpu(&self.nginx));
        let note = format!(
            "CPU per request: homerun {:.1} us, nginx {:.1} us, ratio {:.2}",
            median(&ours),
            median(&peer),
            median(&ours) / median(&peer)
        );
        let mut samples = Vec::new();
        for (name, rounds) in [("homerun", &self.homerun), ("nginx", &self.nginx)] {
            samples.push((
                format!("{name} requests/s"),
                column(rounds, |r| r.load.requests_per_second),
            ));
            samples.push((format!("{name} p99 ms"), column(rounds, |r| r.load.p99_millis)));
            samples.push((format!("{name} CPU us/request"), cpu(rounds)));
        }
        Measured {
            value,
            notes: vec![note],
            samples,
        }
    }
}

fn column(rounds: &[Round], of: impl Fn(&Round) -> f64) -> Vec<f64> {
    rounds.iter().map(of).collect()
}

fn against_nginx(connections: u32) -> Result<Rounds> {
    let homerun = Homerun::up("15m")?;
    // One instance that takes all connections and is never throttled: the proxies are compared, not the container.
    let flags = [
        "--min-instances=1",
        "--max-instances=1",
        "--concurrency=1000",
        "--no-cpu-throttling",
        "--cpu=2",
    ];
    let host = homerun.deploy("bench", &flags)?;
    homerun.wait_until_served(&host)?;
    let inside = *homerun
        .instance_processes()
        .first()
        .context("no process of the instance is seen")?;
    let nginx = Nginx::before(inside, 8080, homerun.dir())?;
    let url = format!("http://{}/", homerun.http);
    let mut rounds = Rounds {
        homerun: Vec::new(),
        nginx: Vec::new(),
    };
    for round in 0..=ROUNDS {
        let ours = measured(homerun.pid(), || wrk::load(&url, &host, connections, SECONDS, None))
            .context("through homerun")?;
        thread::sleep(Duration::from_millis(200));
        let peer = measured(nginx.pid(), || {
            wrk::load(&Nginx::url(), &host, connections, SECONDS, Some(nginx.inside))
        })
        .context("through nginx")?;
        thread::sleep(Duration::from_millis(200));
        // The first opens connections and warms caches on both sides.
        if round > 0 {
            rounds.homerun.push(ours);
            rounds.nginx.push(peer);
        }
    }
    Ok(rounds)
}

fn measured(pid: u32, load: impl FnOnce() -> Result<Load>) -> Result<Round> {
    let before = cpu_seconds(pid)?;
    let load = load()?;
    let used = cpu_seconds(pid)? - before;
    Ok(Round {
        load,
        cpu_micros_per_request: used * 1e6 / load.requests.max(1.0),
    })
}

/// CPU time of a process and its children that live, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in tree(pid) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
        let (_, after_name) = stat.rsplit_once(')').context("a stat line has a name")?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        for field in &fields[11..13] {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / TICKS_PER_SECOND)
}

/// The process and its direct children: nginx's worker; of Homerun's, the instances are the launcher's children and
/// so not among them.
fn tree(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all = vec![pid];
    all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    all
}
