//! What people wait for at the terminal: a describe by our client, and a traffic change until requests follow it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    figure::{Measured, median, percentile},
    http,
    server::Homerun,
};

const ROUNDS: usize = 15;
const NAME: &str = "asked";
const PATIENCE: Duration = Duration::from_secs(10);

/// The client's whole life: start, token, request, print, end.
pub(crate) fn describe() -> Result<Measured> {
    let homerun = Homerun::up("1s")?;
    homerun.deploy(NAME, &[])?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        homerun.describe(NAME)?;
        rounds.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(measured("describe ms", rounds))
}

/// From sending a changed traffic block until a request is answered by the other revision. Both have an instance.
pub(crate) fn traffic_change() -> Result<Measured> {
    let homerun = Homerun::up("15m")?;
    let host = homerun.deploy(NAME, &["--min-instances", "1"])?;
    homerun.deploy(NAME, &["--min-instances", "1", "--set-env-vars", "COLOR=green"])?;
    let revisions: Vec<String> = {
        let words = ["run", "revisions", "list", "--service", NAME, "--region", "us-central1"];
        let output = homerun.client(&[&words[..], &["--format", "value(REVISION)"]].concat())?;
        String::from_utf8(output.stdout)?
            .lines()
            .map(|line| line.trim().to_owned())
            .collect()
    };
    let [green, blue] = &revisions[..] else {
        anyhow::bail!("two revisions were made, not {revisions:?}")
    };
    // A tag keeps the instance of the one that gets no traffic.
    let tags = json!([{"revisionName": blue, "tag": "blue"}, {"revisionName": green, "tag": "green"}]);
    Change::read(&homerun, green, &tags)?.send(&homerun)?;
    thread::sleep(Duration::from_secs(1));
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let to = if round % 2 == 0 { blue } else { green };
        thread::sleep(Duration::from_millis(100));
        let change = Change::read(&homerun, to, &tags)?;
        let began = Instant::now();
        change.send(&homerun)?;
        loop {
            let answer = http::get(homerun.http, &host, "/")?;
            if String::from_utf8_lossy(&answer.body).contains(to.as_str()) {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "traffic does not reach {to}");
        }
        rounds.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(measured("change ms", rounds))
}

/// A write of the service with other traffic, ready to be sent.
struct Change {
    path: String,
    token: String,
    body: String,
}

impl Change {
    fn read(homerun: &Homerun, to: &str, tags: &serde_json::Value) -> Result<Self> {
        let mut service = homerun.describe(NAME)?;
        let mut traffic = vec![json!({"revisionName": to, "percent": 100})];
        traffic.extend(tags.as_array().into_iter().flatten().cloned());
        service["spec"]["traffic"] = json!(traffic);
        let project = service["metadata"]["namespace"].as_str().context("no project")?;
        Ok(Self {
            path: format!("/apis/serving.knative.dev/v1/namespaces/{project}/services/{NAME}"),
            token: homerun.token()?,
            body: service.to_string(),
        })
    }

    fn send(&self, homerun: &Homerun) -> Result<()> {
        let answer = http::call(homerun.api, "PUT", &self.path, &self.token, self.body.as_bytes())?;
        ensure!(
            answer.status == 200,
            "the API answers {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(())
    }
}

fn measured(name: &str, rounds: Vec<f64>) -> Measured {
    Measured {
        value: median(&rounds),
        notes: vec![format!(
            "p50 {:.1} ms, most {:.1} ms, of {ROUNDS}",
            median(&rounds),
            percentile(&rounds, 100)
        )],
        samples: vec![(name.to_owned(), rounds)],
    }
}
