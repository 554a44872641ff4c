//! A step from 20 to 500 requests a second, sent on the clock whatever comes back, to a handler that takes 20 ms in
//! instances that take ten at a time.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    figure::{Measured, percentile},
    http,
    server::Homerun,
};

const STEADY: (f64, Duration) = (20.0, Duration::from_secs(10));
const SPIKE: (f64, Duration) = (500.0, Duration::from_secs(8));
/// Who send: more than are under way at a time, so that nobody is late for a request of theirs.
const SENDERS: usize = 200;
const STACK: usize = 128 << 10;

pub(crate) fn measure() -> Result<Measured> {
    let homerun = Homerun::up("15m")?;
    let host = homerun.deploy("spike", &["--concurrency=10"])?;
    homerun.wait_until_served(&host)?;
    let steady = load(homerun.http, &host, STEADY)?;
    let spike = load(homerun.http, &host, SPIKE)?;
    let [before, after] = [percentile(&steady, 99), percentile(&spike, 99)];
    Ok(Measured {
        value: after / before,
        notes: vec![format!(
            "p99 steady {before:.1} ms of {}, in the spike {after:.1} ms of {}, no error, {} instances at the end",
            steady.len(),
            spike.len(),
            homerun.instance_processes().len()
        )],
        samples: vec![
            ("steady p99 ms".to_owned(), vec![before]),
            ("spike p99 ms".to_owned(), vec![after]),
        ],
    })
}

/// Milliseconds of each answer from the moment at which its request was due. An answer other than 200 is an error.
fn load(at: SocketAddr, host: &str, (rate, length): (f64, Duration)) -> Result<Vec<f64>> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
    let total = (rate * length.as_secs_f64()) as usize;
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let host: Arc<str> = host.into();
    let mut threads = Vec::new();
    for _ in 0..SENDERS {
        let (next, host) = (Arc::clone(&next), Arc::clone(&host));
        let send = move || -> Result<Vec<f64>> {
            let mut millis = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return Ok(millis);
                }
                #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
                let due = began + Duration::from_secs_f64(number as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let answer = http::get(at, &host, "/sleep?ms=20")?;
                ensure!(answer.status == 200, "a request is answered with {}", answer.status);
                millis.push(due.elapsed().as_secs_f64() * 1000.0);
            }
        };
        threads.push(thread::Builder::new().stack_size(STACK).spawn(send)?);
    }
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().ok().context("a thread broke off")??);
    }
    Ok(all)
}
