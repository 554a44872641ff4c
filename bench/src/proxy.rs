//! What a request costs on its way through the ingress: against nginx and HAProxy, round by round, before the same
//! container.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    figure::{Measured, median},
    h2load,
    peer::{Kind, Peer},
    server::Homerun,
    wrk::{self, Load},
};

pub(crate) const ROUNDS: usize = 7;
pub(crate) const SECONDS: u32 = 2;
/// `sysconf(_SC_CLK_TCK)` of Linux, whatever the kernel's own rate.
const TICKS_PER_SECOND: f64 = 100.0;
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

/// Two figures are made of these rounds.
static WITH_64: OnceLock<Rounds> = OnceLock::new();

fn with_64() -> Result<&'static Rounds> {
    if WITH_64.get().is_none() {
        let _ = WITH_64.set(Stand::new()?.rounds(64)?);
    }
    WITH_64.get().context("just set")
}

pub(crate) fn requests_per_second() -> Result<Measured> {
    let rounds = with_64()?;
    let rate = |rounds: &[Round]| median(&column(rounds, |round| round.load.requests_per_second));
    let [ours, nginx, haproxy] = rounds.all().map(|(_, rounds)| rate(rounds));
    Ok(rounds.measured(
        ours / nginx,
        format!("homerun {ours:.0}/s, nginx {nginx:.0}/s, HAProxy {haproxy:.0}/s, medians of {ROUNDS}"),
    ))
}

pub(crate) fn cpu_per_request() -> Result<Measured> {
    let rounds = with_64()?;
    let cpu = |rounds: &[Round]| median(&column(rounds, |round| round.cpu_micros_per_request));
    let [ours, nginx, haproxy] = rounds.all().map(|(_, rounds)| cpu(rounds));
    Ok(Measured {
        value: ours / nginx,
        notes: vec![format!(
            "homerun {ours:.1} us, nginx {nginx:.1} us, HAProxy {haproxy:.1} us"
        )],
        samples: Vec::new(),
    })
}

pub(crate) fn p99_with_512() -> Result<Measured> {
    let rounds = Stand::new()?.rounds(512)?;
    let p99 = |rounds: &[Round]| median(&column(rounds, |round| round.load.p99_millis));
    let [ours, nginx, haproxy] = rounds.all().map(|(_, rounds)| p99(rounds));
    Ok(rounds.measured(
        ours / nginx,
        format!("p99 of homerun {ours:.1} ms, of nginx {nginx:.1} ms, of HAProxy {haproxy:.1} ms, medians of {ROUNDS}"),
    ))
}

/// On one connection, against the container itself.
pub(crate) fn added_latency() -> Result<Measured> {
    let stand = Stand::new()?;
    let direct = format!("http://127.0.0.1:{CONTAINER_PORT}/");
    let mut columns = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let loads = [
            stand.plain(1)?,
            wrk::load(&stand.nginx_url(), &stand.host, 1, SECONDS, Some(stand.inside))?,
            wrk::load(&direct, &stand.host, 1, SECONDS, Some(stand.inside))?,
        ];
        if round > 0 {
            for (column, load) in columns.iter_mut().zip(loads) {
                column.push(load.p50_millis * 1000.0);
            }
        }
        thread::sleep(PAUSE);
    }
    let [ours, nginx, direct] = columns.each_ref().map(|column| median(column));
    let names = ["homerun p50 us", "nginx p50 us", "direct p50 us"];
    Ok(Measured {
        value: ours - direct,
        notes: vec![format!(
            "p50 of homerun {ours:.0} us, of nginx {nginx:.0} us, of the container itself {direct:.0} us"
        )],
        samples: names.map(str::to_owned).into_iter().zip(columns).collect(),
    })
}

pub(crate) fn tls() -> Result<Measured> {
    over_tls(h2load::Shape {
        http1: true,
        connections: 64,
        streams: 1,
        seconds: SECONDS,
    })
}

pub(crate) fn http2() -> Result<Measured> {
    over_tls(h2load::Shape {
        http1: false,
        connections: 16,
        streams: 8,
        seconds: SECONDS,
    })
}

fn over_tls(shape: h2load::Shape) -> Result<Measured> {
    let stand = Stand::new()?;
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut columns = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let inside = Some(stand.inside);
        let rates = [
            h2load::load(stand.homerun.https, &stand.host, shape, None).context("through homerun")?,
            h2load::load(at(stand.nginx.tls_port()), &stand.host, shape, inside).context("through nginx")?,
            h2load::load(at(stand.haproxy.tls_port()), &stand.host, shape, inside).context("through HAProxy")?,
        ];
        if round > 0 {
            for (column, rate) in columns.iter_mut().zip(rates) {
                column.push(rate);
            }
        }
        thread::sleep(PAUSE);
    }
    let [ours, nginx, haproxy] = columns.each_ref().map(|column| median(column));
    let names = ["homerun requests/s", "nginx requests/s", "HAProxy requests/s"];
    Ok(Measured {
        value: ours / nginx,
        notes: vec![
            format!("homerun {ours:.0}/s, nginx {nginx:.0}/s, HAProxy {haproxy:.0}/s, medians of {ROUNDS}"),
            format!("of HAProxy {:.2}", ours / haproxy),
        ],
        samples: names.map(str::to_owned).into_iter().zip(columns).collect(),
    })
}

#[derive(Debug)]
pub(crate) struct Round {
    load: Load,
    /// Of the proxy alone.
    pub(crate) cpu_micros_per_request: f64,
}

#[derive(Debug, Default)]
struct Rounds {
    homerun: Vec<Round>,
    nginx: Vec<Round>,
    haproxy: Vec<Round>,
}

impl Rounds {
    fn all(&self) -> [(&'static str, &[Round]); 3] {
        [
            ("homerun", &self.homerun),
            ("nginx", &self.nginx),
            ("HAProxy", &self.haproxy),
        ]
    }

    fn measured(&self, value: f64, note: String) -> Measured {
        let mut samples = Vec::new();
        for (name, rounds) in self.all() {
            let mut put = |what: &str, values| samples.push((format!("{name} {what}"), values));
            put("requests/s", column(rounds, |r| r.load.requests_per_second));
            put("p99 ms", column(rounds, |r| r.load.p99_millis));
            put("CPU us/request", column(rounds, |r| r.cpu_micros_per_request));
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

const CONTAINER_PORT: u16 = 8080;

/// Homerun and both peers before one container.
struct Stand {
    nginx: Peer,
    haproxy: Peer,
    host: String,
    inside: u32,
    // Last, so that it outlives those that run in its instance's network.
    homerun: Homerun,
}

impl Stand {
    fn new() -> Result<Self> {
        let homerun = Homerun::up("15m")?;
        let host = homerun.deploy("bench", &ONE_THAT_TAKES_ALL)?;
        homerun.wait_until_served(&host)?;
        let inside = *homerun
            .instance_processes()
            .first()
            .context("no process of the instance is seen")?;
        let peer = |kind| Peer::before(kind, inside, CONTAINER_PORT, homerun.dir());
        Ok(Self {
            nginx: peer(Kind::Nginx)?,
            haproxy: peer(Kind::HaProxy)?,
            host,
            inside,
            homerun,
        })
    }

    fn plain(&self, connections: u32) -> Result<Load> {
        let url = format!("http://{}/", self.homerun.http);
        wrk::load(&url, &self.host, connections, SECONDS, None).context("through homerun")
    }

    fn nginx_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.nginx.port())
    }

    fn rounds(&self, connections: u32) -> Result<Rounds> {
        let through = |peer: &Peer| {
            let url = format!("http://127.0.0.1:{}/", peer.port());
            measured(peer.pid(), || {
                wrk::load(&url, &self.host, connections, SECONDS, Some(self.inside))
            })
        };
        let mut rounds = Rounds::default();
        for round in 0..=ROUNDS {
            let ours = measured(self.homerun.pid(), || self.plain(connections))?;
            thread::sleep(PAUSE);
            let nginx = through(&self.nginx).context("through nginx")?;
            thread::sleep(PAUSE);
            let haproxy = through(&self.haproxy).context("through HAProxy")?;
            thread::sleep(PAUSE);
            // The first opens connections and warms caches on all sides.
            if round > 0 {
                rounds.homerun.push(ours);
                rounds.nginx.push(nginx);
                rounds.haproxy.push(haproxy);
            }
        }
        Ok(rounds)
    }
}

/// One instance that takes all connections and is never throttled: the proxies are compared, not the container.
pub(crate) const ONE_THAT_TAKES_ALL: [&str; 5] = [
    "--min-instances=1",
    "--max-instances=1",
    "--concurrency=1000",
    "--no-cpu-throttling",
    "--cpu=2",
];

pub(crate) fn measured(pid: u32, load: impl FnOnce() -> Result<Load>) -> Result<Round> {
    let before = cpu_seconds(pid)?;
    let load = load()?;
    let used = cpu_seconds(pid)? - before;
    Ok(Round {
        load,
        cpu_micros_per_request: used * 1e6 / load.requests.max(1.0),
    })
}

/// CPU time of a process and its children that live, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
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
