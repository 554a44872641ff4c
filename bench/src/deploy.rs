//! From a changed service to Ready, with its image on the machine: what a deploy costs besides the pull.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    figure::{Measured, median, percentile},
    http,
    server::Homerun,
};

const ROUNDS: usize = 9;
const NAME: &str = "deployed";
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn measure() -> Result<Measured> {
    let homerun = Homerun::up("1s")?;
    homerun.deploy(NAME, &[])?;
    let mut api = Vec::new();
    let mut client = Vec::new();
    for round in 0..ROUNDS {
        thread::sleep(Duration::from_millis(200));
        api.push(by_api(&homerun, &format!("api-{round}"))?);
        thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        homerun.deploy(NAME, &["--set-env-vars", &format!("ROUND=cli-{round}")])?;
        client.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Measured {
        value: median(&api),
        notes: vec![
            format!(
                "by the API p50 {:.0} ms, most {:.0} ms, of {ROUNDS}",
                median(&api),
                percentile(&api, 100)
            ),
            format!("by our client with a describe p50 {:.0} ms", median(&client)),
        ],
        samples: vec![("api ms".to_owned(), api), ("client ms".to_owned(), client)],
    })
}

/// From sending the changed service until the API says that its generation is Ready.
fn by_api(homerun: &Homerun, mark: &str) -> Result<f64> {
    let token = homerun.token()?;
    let mut service = homerun.describe(NAME)?;
    let project = service["metadata"]["namespace"]
        .as_str()
        .context("the service names no project")?;
    let path = format!("/apis/serving.knative.dev/v1/namespaces/{project}/services/{NAME}");
    let template = &mut service["spec"]["template"];
    template["spec"]["containers"][0]["env"] = json!([{"name": "ROUND", "value": mark}]);
    // The name of the last revision, when it is there, is not the name of the next.
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.remove("name");
    }
    let began = Instant::now();
    let replaced = ok(http::call(
        homerun.api,
        "PUT",
        &path,
        &token,
        service.to_string().as_bytes(),
    )?)?;
    let generation = &replaced["metadata"]["generation"];
    loop {
        let now = ok(http::call(homerun.api, "GET", &path, &token, b"")?)?;
        let conditions = now["status"]["conditions"].as_array();
        let is_ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        if is_ready && now["status"]["observedGeneration"] == *generation {
            return Ok(began.elapsed().as_secs_f64() * 1000.0);
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "not Ready after {PATIENCE:?}: {}",
            now["status"]
        );
        thread::sleep(Duration::from_millis(2));
    }
}

fn ok(answer: http::Answer) -> Result<Value> {
    ensure!(
        answer.status == 200,
        "the API answers {}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    Ok(serde_json::from_slice(&answer.body)?)
}
