//! From zero to the first byte: through the ingress, and of the bare program started by hand, in turns.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    figure::{Measured, median, percentile},
    http,
    server::Homerun,
};

const ROUNDS: usize = 25;
/// Nothing happens before each start: a loop without a pause would hide what a start after idle costs.
const IDLE: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn measure() -> Result<Measured> {
    let homerun = Homerun::up("100ms")?;
    let host = homerun.deploy("cold", &[])?;
    homerun.wait_until_served(&host)?;
    // The container's own program, so that both start the same bytes.
    let process = *homerun
        .instance_processes()
        .first()
        .context("no process of the instance is seen")?;
    let program = homerun.dir().join("program");
    fs::copy(format!("/proc/{process}/exe"), &program).context("cannot copy the container's program")?;
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    for _ in 0..ROUNDS {
        let deadline = Instant::now() + PATIENCE;
        while !homerun.instance_processes().is_empty() {
            ensure!(
                Instant::now() < deadline,
                "the service is not at zero after {PATIENCE:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(IDLE);
        let answer = http::get(homerun.http, &host, "/")?;
        ensure!(answer.status == 200, "a cold start is answered with {}", answer.status);
        ours.push(millis(answer.first_byte));
        thread::sleep(IDLE);
        bare.push(millis(bare_start(&program)?));
    }
    let (our_p50, bare_p50) = (median(&ours), median(&bare));
    Ok(Measured {
        value: our_p50 - bare_p50,
        notes: vec![
            format!(
                "through the ingress p50 {our_p50:.1} ms, p99 {:.1} ms, of {ROUNDS}",
                percentile(&ours, 99)
            ),
            format!(
                "bare exec p50 {bare_p50:.2} ms, p99 {:.2} ms, of {ROUNDS}",
                percentile(&bare, 99)
            ),
            format!(
                "p99 beyond bare: {:.1} ms, goal <=5",
                percentile(&ours, 99) - percentile(&bare, 99)
            ),
        ],
        samples: vec![("homerun ms".to_owned(), ours), ("bare ms".to_owned(), bare)],
    })
}

fn bare_start(program: &Path) -> Result<Duration> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let began = Instant::now();
    let mut child = Command::new(program)
        .env_clear()
        .env("PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let first_byte = first_byte(address, began);
    child.kill()?;
    child.wait()?;
    first_byte
}

fn first_byte(address: SocketAddr, began: Instant) -> Result<Duration> {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            write!(stream, "GET / HTTP/1.1\r\nHost: bare\r\nConnection: close\r\n\r\n")?;
            let read = stream.read(&mut [0; 1024])?;
            ensure!(read > 0, "the bare program closes without an answer");
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < PATIENCE, "the bare program does not listen");
        thread::sleep(Duration::from_micros(100));
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
