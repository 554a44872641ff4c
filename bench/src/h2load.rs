//! `h2load` as the load over TLS: one thread, so many connections, so many streams on each, so many seconds.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// HTTP/1.1 instead of HTTP/2.
    pub(crate) http1: bool,
    pub(crate) connections: u32,
    pub(crate) streams: u32,
    pub(crate) seconds: u32,
}

/// Requests a second. `host` is asked for by name, at `at`.
pub(crate) fn load(at: SocketAddr, host: &str, shape: Shape, inside: Option<u32>) -> Result<f64> {
    let mut command = match inside {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid.to_string(), "-n", "h2load"]);
            command
        }
        None => Command::new("h2load"),
    };
    if shape.http1 {
        command.arg("--h1");
    }
    let host = host.split(':').next().unwrap_or(host);
    command
        .args([
            "-t1",
            &format!("-c{}", shape.connections),
            &format!("-m{}", shape.streams),
        ])
        .args([&format!("-D{}", shape.seconds), "--warm-up-time=1"])
        .arg(format!("--connect-to={at}"))
        .arg(format!("https://{host}:{}/", at.port()));
    let output = command.output().context("cannot run h2load")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "h2load ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    read(&text)
}

/// Errors among the answers make a number worth nothing: they are an error here.
fn read(text: &str) -> Result<f64> {
    let line = |word: &str| {
        text.lines()
            .find(|line| line.starts_with(word))
            .with_context(|| format!("h2load does not say {word}:\n{text}"))
    };
    let requests = line("requests:")?;
    let codes = line("status codes:")?;
    ensure!(
        requests.contains(" 0 failed") && codes.contains(" 0 3xx, 0 4xx, 0 5xx"),
        "h2load saw errors: {requests}; {codes}"
    );
    let finished = line("finished in ")?;
    let rate = finished
        .split(", ")
        .find_map(|part| part.strip_suffix(" req/s"))
        .context("h2load gives no rate")?;
    Ok(rate.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "starting benchmark...
finished in 3.00s, 28411.50 req/s, 3.63MB/s
requests: 56823 total, 56951 started, 56823 done, 56823 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 56823 2xx, 0 3xx, 0 4xx, 0 5xx
";

    #[test]
    fn what_h2load_says() {
        assert!((read(SAID).expect("complete") - 28411.5).abs() < 0.01);
        assert!(read(&SAID.replace("0 5xx", "3 5xx")).is_err());
        assert!(read(&SAID.replace(" 0 failed", " 3 failed")).is_err());
    }
}
