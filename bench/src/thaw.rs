//! What the first request after a throttled pause costs: the same program with its CPU taken away between requests, and
//! with its CPU always, in turns, each asked after the same pause.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    figure::{Measured, median, percentile},
    server::Homerun,
};

const ROUNDS: usize = 60;
/// Longer than the time after which an idle instance loses its CPU.
const PAUSE: Duration = Duration::from_millis(300);

/// Throttled, and not.
static MILLIS: OnceLock<[Vec<f64>; 2]> = OnceLock::new();

fn rounds() -> Result<&'static [Vec<f64>; 2]> {
    if MILLIS.get().is_none() {
        let homerun = Homerun::up("15m")?;
        let mut asked = Vec::new();
        for (name, flag) in [("throttled", "--cpu-throttling"), ("always", "--no-cpu-throttling")] {
            let host = homerun.deploy(name, &[flag, "--max-instances=1"])?;
            homerun.wait_until_served(&host)?;
            asked.push(Kept::open(homerun.http, &host)?);
        }
        let mut millis = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (kept, millis) in asked.iter_mut().zip(&mut millis) {
                thread::sleep(PAUSE);
                let took = kept.ask()?;
                if round > 0 {
                    millis.push(took.as_secs_f64() * 1000.0);
                }
            }
        }
        let _ = MILLIS.set(millis);
    }
    MILLIS.get().context("just set")
}

pub(crate) fn p50() -> Result<Measured> {
    let [throttled, always] = rounds()?;
    Ok(Measured {
        value: median(throttled) - median(always),
        notes: vec![format!(
            "p50 throttled {:.3} ms, with its CPU {:.3} ms, {ROUNDS} requests each, {} ms apart",
            median(throttled),
            median(always),
            PAUSE.as_millis()
        )],
        samples: vec![
            ("throttled ms".to_owned(), throttled.clone()),
            ("always ms".to_owned(), always.clone()),
        ],
    })
}

pub(crate) fn most() -> Result<Measured> {
    let [throttled, always] = rounds()?;
    Ok(Measured {
        value: percentile(throttled, 100),
        notes: vec![format!("with its CPU {:.3} ms", percentile(always, 100))],
        samples: Vec::new(),
    })
}

/// One connection to the ingress, kept.
struct Kept {
    stream: TcpStream,
    request: String,
}

impl Kept {
    fn open(at: SocketAddr, host: &str) -> Result<Self> {
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let request = format!("GET /bytes?n=13 HTTP/1.1\r\nHost: {host}\r\n\r\n");
        Ok(Self { stream, request })
    }

    fn ask(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.stream.write_all(self.request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"xxxxxxxxxxxxx") {
            let mut piece = [0; 4096];
            let read = self.stream.read(&mut piece)?;
            ensure!(read > 0, "the ingress closed");
            answer.extend_from_slice(&piece[..read]);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "not a good answer");
        Ok(began.elapsed())
    }
}
