//! A thousand requests at once to a service that is at zero and takes one request an instance; then all of it down
//! again, while another service is asked.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    by_hand::{CRUN_BURST, Hands},
    cold,
    figure::{Measured, median, percentile},
    http, memory,
    server::{HELLO, Homerun, REGION},
};

const INSTANCES: usize = 1000;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_mins(2);
/// Of a thread that waits for one answer.
const STACK: usize = 64 << 10;

static ROUNDS_RUN: OnceLock<Vec<Round>> = OnceLock::new();

#[derive(Debug)]
struct Round {
    up: f64,
    down: f64,
    /// MiB of the machine for each instance, and of that the program's own.
    taken: f64,
    own: f64,
    /// p99 of the neighbour's answers in ms: before, and while the instances are taken down.
    quiet_p99: f64,
    down_p99: f64,
}

fn rounds() -> Result<&'static [Round]> {
    if ROUNDS_RUN.get().is_none() {
        let rounds: Result<Vec<Round>> = (0..ROUNDS).map(|_| round()).collect();
        let _ = ROUNDS_RUN.set(rounds?);
    }
    ROUNDS_RUN.get().map(Vec::as_slice).context("just set")
}

fn column(rounds: &[Round], of: impl Fn(&Round) -> f64) -> Vec<f64> {
    rounds.iter().map(of).collect()
}

pub(crate) fn up() -> Result<Measured> {
    let rounds = rounds()?;
    let seconds = column(rounds, |round| round.up);
    Ok(Measured {
        value: median(&seconds),
        notes: vec![format!("{seconds:.1?} s, every request answered")],
        samples: vec![("seconds".to_owned(), seconds)],
    })
}

/// Against crun by hand, six at a time, of the same program.
pub(crate) fn to_crun() -> Result<Measured> {
    let ours = column(rounds()?, |round| round.up);
    let homerun = Homerun::up("15m")?;
    let host = homerun.deploy_image("one", HELLO, &["--min-instances=1"])?;
    let program = cold::program_of(&homerun, &host)?;
    let mut hands = Hands::new(&program, &homerun.make_dir("by-hand")?)?;
    let crun: Result<Vec<f64>> = (0..ROUNDS).map(|_| Ok(hands.start(CRUN_BURST)? / 1000.0)).collect();
    let crun = crun?;
    Ok(Measured {
        value: median(&ours) / median(&crun),
        notes: vec![
            format!("through the ingress {ours:.1?} s"),
            format!("crun by hand, six at a time, without an ingress or a way out {crun:.1?} s"),
        ],
        samples: vec![("crun seconds".to_owned(), crun)],
    })
}

pub(crate) fn down() -> Result<Measured> {
    let rounds = rounds()?;
    let seconds = column(rounds, |round| round.down);
    let [quiet, down] = [column(rounds, |r| r.quiet_p99), column(rounds, |r| r.down_p99)];
    Ok(Measured {
        value: median(&seconds),
        notes: vec![
            format!("{seconds:.1?} s"),
            format!(
                "p99 of another service meanwhile {:.1} ms, before {:.1} ms",
                median(&down),
                median(&quiet)
            ),
        ],
        samples: vec![
            ("seconds".to_owned(), seconds),
            ("neighbour p99 ms before".to_owned(), quiet),
            ("neighbour p99 ms meanwhile".to_owned(), down),
        ],
    })
}

pub(crate) fn overhead() -> Result<Measured> {
    let rounds = rounds()?;
    let over = column(rounds, |round| round.taken - round.own);
    Ok(Measured {
        value: median(&over),
        notes: vec![format!(
            "taken {:.2} MiB each, of that the program's own {:.2}",
            median(&column(rounds, |round| round.taken)),
            median(&column(rounds, |round| round.own))
        )],
        samples: vec![("MiB".to_owned(), over)],
    })
}

fn round() -> Result<Round> {
    let homerun = Homerun::up("15m")?;
    let neighbour = homerun.deploy("neighbour", &["--min-instances=1", "--no-cpu-throttling"])?;
    homerun.wait_until_served(&neighbour)?;
    let flags = ["--concurrency=1", "--max-instances=1000", "--memory=128Mi"];
    let host = homerun.deploy_image("burst", HELLO, &flags)?;
    homerun.wait_for_instances(2)?;
    thread::sleep(Duration::from_secs(1));
    let quiet = ask_until(&homerun, &neighbour, &AtomicBool::new(true), 100)?;
    let before = memory::available()?;
    let (open, up) = burst(&homerun, &host)?;
    homerun.wait_for_instances(INSTANCES + 1)?;
    let taken = (before - memory::available()?) / f64::from(u32::try_from(INSTANCES)?);
    let own = own_memory(&homerun)?;
    drop(open);

    let over = Arc::new(AtomicBool::new(false));
    let asking = {
        let over = Arc::clone(&over);
        let (at, host) = (homerun.http, neighbour.clone());
        thread::spawn(move || ask(at, &host, &over, usize::MAX))
    };
    let began = Instant::now();
    homerun.client(&["run", "services", "delete", "burst", "--region", REGION, "--quiet"])?;
    homerun.wait_for_instances(1)?;
    let down = began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    let meanwhile = asking.join().ok().context("a thread broke off")??;
    Ok(Round {
        up,
        down,
        taken,
        own,
        quiet_p99: percentile(&quiet, 99),
        down_p99: percentile(&meanwhile, 99),
    })
}

/// Sends all requests and waits for the first byte of each answer, which then stays open. Seconds until the last.
fn burst(homerun: &Homerun, host: &str) -> Result<(Vec<TcpStream>, f64)> {
    let at = homerun.http;
    // The answer begins at once and ends later, so that no instance can take a second request.
    let request = format!("GET /stream?chunks=2&ms=60000 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let request: Arc<str> = request.into();
    let began = Instant::now();
    let mut threads = Vec::new();
    for _ in 0..INSTANCES {
        let request = Arc::clone(&request);
        let ask = move || -> Result<(TcpStream, Duration)> {
            let mut stream = TcpStream::connect(at)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut head = [0; 15];
            stream.read_exact(&mut head)?;
            let head = String::from_utf8_lossy(&head);
            ensure!(head.starts_with("HTTP/1.1 200"), "answered with {head}");
            Ok((stream, began.elapsed()))
        };
        threads.push(thread::Builder::new().stack_size(STACK).spawn(ask)?);
    }
    let mut open = Vec::new();
    let mut last = Duration::ZERO;
    for thread in threads {
        let (stream, at) = thread.join().ok().context("a thread broke off")??;
        open.push(stream);
        last = last.max(at);
    }
    Ok((open, last.as_secs_f64()))
}

fn ask_until(homerun: &Homerun, host: &str, over: &AtomicBool, least: usize) -> Result<Vec<f64>> {
    ask(homerun.http, host, over, least)
}

/// Milliseconds of one answer after another, 5 ms apart, until it is over and there are enough of them.
fn ask(at: std::net::SocketAddr, host: &str, over: &AtomicBool, least: usize) -> Result<Vec<f64>> {
    let mut millis = Vec::new();
    while !over.load(Ordering::Relaxed) || (least != usize::MAX && millis.len() < least) {
        let answer = http::get(at, host, "/")?;
        ensure!(answer.status == 200, "the neighbour is answered with {}", answer.status);
        millis.push(answer.first_byte.as_secs_f64() * 1000.0);
        thread::sleep(Duration::from_millis(5));
    }
    ensure!(!millis.is_empty(), "it was over before the neighbour was asked");
    Ok(millis)
}

/// What one of the instances' programs holds by itself (median of some), in MiB.
fn own_memory(homerun: &Homerun) -> Result<f64> {
    let some = homerun.instance_processes();
    let own: Vec<f64> = some
        .iter()
        .take(50)
        .filter_map(|pid| memory::private(*pid).ok())
        .collect();
    ensure!(!own.is_empty(), "no process of an instance is seen");
    Ok(median(&own))
}
