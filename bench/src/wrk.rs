//! `wrk` as the load: one thread, so many connections, so many seconds.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_millis: f64,
    pub(crate) p99_millis: f64,
    pub(crate) requests: f64,
}

/// Runs `wrk`, in the network namespace of `inside` when one is given.
pub(crate) fn load(url: &str, host: &str, connections: u32, seconds: u32, inside: Option<u32>) -> Result<Load> {
    load_with(url, &[format!("Host: {host}")], connections, seconds, inside)
}

/// The same with these header lines.
pub(crate) fn load_with(
    url: &str,
    headers: &[String],
    connections: u32,
    seconds: u32,
    inside: Option<u32>,
) -> Result<Load> {
    let mut command = match inside {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid.to_string(), "-n", "wrk"]);
            command
        }
        None => Command::new("wrk"),
    };
    command.args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        "--latency",
    ]);
    // A slow answer is a latency, not an error; the load itself still ends after `seconds`.
    command.args(["--timeout", "10s"]);
    command.args(headers.iter().flat_map(|header| ["-H", header])).arg(url);
    let output = command.output().context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "wrk ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    read(&text)
}

/// Errors among the answers make a number worth nothing: they are an error here.
fn read(text: &str) -> Result<Load> {
    let wrong = text
        .lines()
        .find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    ensure!(wrong.is_none(), "wrk saw errors: {}", wrong.unwrap_or_default().trim());
    let after = |word: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(word))
            .map(str::trim)
            .with_context(|| format!("wrk does not say {word}:\n{text}"))
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("wrk does not say how many requests")?;
    Ok(Load {
        requests_per_second: after("Requests/sec:")?.parse()?,
        p50_millis: millis(after("50%")?)?,
        p99_millis: millis(after("99%")?)?,
        requests: requests.0.parse()?,
    })
}

fn millis(text: &str) -> Result<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (
            text.strip_suffix('s').context("wrk gives a time without a unit")?,
            1000.0,
        )
    };
    Ok(number.parse::<f64>()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 2s test @ http://127.0.0.1:1/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms    0.36ms  13.18ms   92.14%
    Req/Sec    62.84k     2.08k   67.62k    75.00%
  Latency Distribution
     50%    0.97ms
     75%    1.14ms
     90%    1.33ms
     99%    2.11ms
  131296 requests in 2.10s, 18.41MB read
Requests/sec:  62521.30
Transfer/sec:      8.77MB
";

    #[test]
    fn what_wrk_says() {
        let load = read(SAID).expect("it is complete");
        assert!((load.requests_per_second - 62521.3).abs() < 0.01);
        assert!((load.p99_millis - 2.11).abs() < 1e-9);
        assert!((load.requests - 131_296.0).abs() < 0.5);
        assert!((millis("953.00us").expect("a time") - 0.953).abs() < 1e-9);
        assert!((millis("1.25s").expect("a time") - 1250.0).abs() < 1e-9);
    }

    #[test]
    fn errors_are_errors() {
        let text = format!("{SAID}  Non-2xx or 3xx responses: 12\n");
        assert!(
            read(&text)
                .expect_err("not a number to keep")
                .to_string()
                .contains("12")
        );
    }
}
