//! Probes and the CPU between requests, as their owner sees them: what is routed, what is restarted, what is told.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Layout, User};
use serde_json::{Value, json};

use crate::protocols::SPEAKER;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn with_image() -> (User, String) {
    let mut user = User::of_homerun();
    let dir = user.homerun.root().join("layouts/broken");
    Layout::image(&dir, "broken").expect("a layout");
    let image = "us-central1-docker.pkg.dev/my-project/e2e/broken:latest";
    user.ok(&format!("homerun images import {} {image}", dir.display()));
    (user, image.to_owned())
}

/// A file with a service of the broken image, whose container has `probes` besides.
fn file(user: &User, name: &str, image: &str, way: &str, probes: &Value) -> String {
    let mut container = json!({"image": image, "command": ["/broken"], "args": [way]});
    for (field, probe) in probes.as_object().expect("probes by name") {
        container[field] = probe.clone();
    }
    let service = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [container]}}},
    });
    let file = user.homerun.root().join(format!("{name}.yaml"));
    fs::write(&file, service.to_string()).expect("written");
    file.display().to_string()
}

fn healthz(failures: u32) -> Value {
    json!({"httpGet": {"path": "/healthz"}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": failures})
}

/// Deploys the service for everyone, and gives its URL.
fn deploy(user: &mut User, name: &str, file: &str) -> String {
    user.ok(&format!("gcloud run services replace {file} $REGION"));
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding {name} $REGION --member=allUsers --role=roles/run.invoker"
    ));
    user.describe(name, "value(status.url)").trim().to_owned()
}

/// Until the log of the services holds all of `said` in one line.
#[track_caller]
fn told(user: &mut User, said: &str) {
    let begin = Instant::now();
    let found = format!("cat $DATA_DIR/log/*.jsonl | grep -F '{said}' || true");
    while user.ok(&found).is_empty() {
        assert!(begin.elapsed() < PATIENCE, "nobody said {said}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn probes_decide_what_starts_what_is_restarted_and_what_is_routed_to() {
    let (mut user, image) = with_image();

    let sick = file(&user, "sick", &image, "sick", &json!({"startupProbe": healthz(2)}));
    let said = user.refused(&format!("gcloud run services replace {sick} $REGION"));
    let failed = "The user-provided container failed the configured startup probe checks. STARTUP HTTP probe failed 2 \
                  times consecutively for container";
    assert!(said.contains(failed) && said.contains("The answer was 500."), "{said}");

    let probes = json!({"startupProbe": healthz(20), "livenessProbe": healthz(2)});
    let alive = file(&user, "alive", &image, "serve", &probes);
    let url = deploy(&mut user, "alive", &alive);
    let shown: Value = serde_json::from_str(&user.describe("alive", "json")).expect("JSON");
    let container = &shown["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz", "{container}");
    let first = user.get(&url);
    user.get(&format!("{url}/health?status=500"));
    // Under way when the instance is ended under it.
    let held = user.ok(&format!("curl -o /dev/null -w '%{{http_code}}' '{url}/sleep?ms=30000'"));
    assert_eq!(held, "503");
    assert_ne!(user.get(&url), first, "another instance");
    told(
        &mut user,
        "LIVENESS HTTP probe failed 2 times consecutively for container",
    );

    let ready = file(&user, "ready", &image, "serve", &json!({"readinessProbe": healthz(1)}));
    let url = deploy(&mut user, "ready", &ready);
    let first = user.get(&url);
    user.get(&format!("{url}/health?status=500"));
    let begin = Instant::now();
    while user.get(&url) == first {
        assert!(begin.elapsed() < PATIENCE, "an unready instance still gets requests");
        thread::sleep(Duration::from_millis(100));
    }
    told(
        &mut user,
        "READINESS HTTP probe failed 1 time consecutively for container",
    );
    user.leaves();
}

#[test]
fn work_that_was_cut_off_is_told_with_the_flag_that_helps() {
    let (mut user, image) = with_image();
    let url = user.deploy("cut", &format!("--image={image} --command=/broken --args=serve"));
    let told = "cat $DATA_DIR/log/*.jsonl | grep -F 'thread was still running' || true";
    user.get(&format!("{url}/background?ms=600000"));
    let begin = Instant::now();
    let mut line = user.ok(told);
    while line.is_empty() {
        assert!(begin.elapsed() < PATIENCE, "nothing was said");
        // On an overloaded machine a look may find nothing out, and is taken again.
        thread::sleep(Duration::from_millis(500));
        user.get(&url);
        line = user.ok(told);
    }
    assert!(
        line.contains("--no-cpu-throttling") && line.contains("Warning"),
        "{line}"
    );
    user.leaves();
}

#[test]
fn a_startup_probe_by_grpc_from_googles_gcloud() {
    let mut user = User::with(&[], Client::Google);
    let image = user.import_speaker(SPEAKER);
    let flags = |service: &str, failures: u32| {
        format!(
            "--image={image} --use-http2 \
             --startup-probe=grpc.service={service},grpc.port=8080,periodSeconds=1,failureThreshold={failures}"
        )
    };
    let url = user.deploy("well", &flags("say.Say", 20));
    assert_eq!(user.get(&url), "spoken");
    let shown: Value = serde_json::from_str(&user.describe("well", "json")).expect("JSON");
    let probe = &shown["spec"]["template"]["spec"]["containers"][0]["startupProbe"];
    assert_eq!(probe["grpc"], json!({"port": 8080, "service": "say.Say"}), "{probe}");

    // The server is there and well, but it knows no such service.
    let said = user.refused(&format!(
        "gcloud run deploy ill $REGION --allow-unauthenticated --quiet {}",
        flags("nobody", 2)
    ));
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        said.contains("STARTUP GRPC probe failed 2 times consecutively for container"),
        "{said}"
    );
    user.leaves();
}
