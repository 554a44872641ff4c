//! Startup, liveness and readiness, by TCP, HTTP and gRPC.

use std::{num::NonZeroU32, time::Duration};

use model::{
    Activity, Check, CpuAllocation, ExitCause, Fate, InstanceId, InstanceSpec, InstanceState, LogLine, Probe, Severity,
    Stream,
};

use crate::lab::Lab;

/// Asked every second, with a second for the answer.
fn probe(spec: &InstanceSpec, failures: u32, check: Check) -> Probe {
    Probe {
        period: 1,
        timeout: 1,
        failures,
        check,
        ..Probe::implicit(spec.port)
    }
}

fn http(spec: &InstanceSpec, failures: u32) -> Probe {
    let check = Check::Http {
        port: spec.port,
        path: "/healthz".to_owned(),
        headers: Vec::new(),
    };
    probe(spec, failures, check)
}

async fn said(lab: &mut Lab, id: &InstanceId, severity: Severity) -> LogLine {
    lab.line(|line| line.instance == *id && line.stream == Stream::System && line.severity == severity)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_probe_by_http_waits_for_a_good_answer() {
    let mut lab = Lab::open().await;
    // It listens long before.
    let mut spec = lab.spec(&["sick", "2500"]);
    spec.container.startup_probe = Some(http(&spec, 20));
    let id = lab.ready(spec).await;
    let text = said(&mut lab, &id, Severity::Info).await.text;
    let attempts = text
        .strip_prefix("STARTUP HTTP probe succeeded after ")
        .and_then(|rest| rest.strip_suffix(" attempts for container \"guest-1\" on port 8080 path \"/healthz\"."))
        .and_then(|attempts| attempts.parse::<u32>().ok());
    assert!(attempts.is_some_and(|attempts| attempts >= 2), "{text}");
    // Once in each period, however often it could have been connected to.
    let asked: u32 = lab.text(&id, "/asked").await.parse().expect("a number");
    assert_eq!(Some(asked), attempts, "{text}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_probes_that_fail_say_what_they_asked() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&["sick", "600000"]);
    spec.container.startup_probe = Some(http(&spec, 2));
    let sick = lab.start(spec).await;
    let mut spec = lab.spec(&[]);
    let port = std::num::NonZeroU16::new(9).expect("not zero");
    spec.container.startup_probe = Some(probe(&spec, 1, Check::Tcp { port }));
    let elsewhere = lab.start(spec).await;
    let mut spec = lab.spec(&["sleep"]);
    let port = spec.port;
    spec.container.name = "app".to_owned();
    let service = String::new();
    spec.container.startup_probe = Some(probe(&spec, 1, Check::Grpc { port, service }));
    let silent = lab.start(spec).await;

    for (id, what, why) in [
        (
            sick,
            "STARTUP HTTP probe failed 2 times consecutively for container \"guest-1\" on port 8080 path \"/healthz\".",
            "The answer was 503.",
        ),
        (
            elsewhere,
            "STARTUP TCP probe failed 1 time consecutively for container \"guest-1\" on port 9.",
            "Nothing accepted its connection.",
        ),
        (
            silent,
            "STARTUP GRPC probe failed 1 time consecutively for container \"app\" on port 8080.",
            "Nothing accepted its connection.",
        ),
    ] {
        let exit = lab.exit(&id).await;
        assert!(matches!(exit.cause, ExitCause::StartupProbeFailed { .. }), "{exit:?}");
        let failed = "The user-provided container failed the configured startup probe checks.";
        assert_eq!(exit.failure(8080).1, format!("{failed} {what} {why}"));
        assert!(!exit.was_ready);
        // They ended at about the same time, so in any order.
        let line = format!("{what} The instance was not started. {why}");
        lab.kept_line(|kept| kept.instance == id && kept.severity == Severity::Error && kept.text == line)
            .await;
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_liveness_probe_ends_the_instance_and_its_requests() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.liveness_probe = Some(http(&spec, 2));
    let id = lab.ready(spec).await;
    assert_eq!(lab.text(&id, "/health/500").await, "set");
    // Under way until the instance is ended under it.
    let answer = lab.get(&id, "/wait/30000").await;
    assert!(answer.as_ref().map_or("", String::as_str).is_empty(), "{answer:?}");
    let exit = lab.exit(&id).await;
    assert_eq!(lab.engine.fate(&id), Fate::Ended);
    assert!(exit.was_ready);
    let ExitCause::Unhealthy { failures, why, .. } = exit.cause else {
        panic!("{exit:?}");
    };
    assert_eq!((failures, why.as_str()), (2, "The answer was 500."));
    assert_eq!(
        said(&mut lab, &id, Severity::Error).await.text,
        "LIVENESS HTTP probe failed 2 times consecutively for container \"guest-1\" on port 8080 path \"/healthz\". \
         The instance has been shut down. The answer was 500."
    );
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_takes_an_instance_out_and_back() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.readiness_probe = Some(Probe {
        successes: NonZeroU32::new(2).expect("not zero"),
        ..http(&spec, 2)
    });
    let id = lab.ready(spec).await;
    // No answer within a second is a failure too.
    assert_eq!(lab.text(&id, "/health/0").await, "set");
    lab.until(&id, |state| *state == InstanceState::Unready).await;
    let line = said(&mut lab, &id, Severity::Warning).await;
    assert!(line.text.ends_with("There was no answer within 1 s."), "{}", line.text);
    // It still serves what it has.
    assert_eq!(lab.text(&id, "/health/200").await, "set");
    lab.until(&id, |state| *state == InstanceState::Ready).await;
    lab.line(|line| line.text.ends_with("The instance gets requests again."))
        .await;
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stands_still_is_probed_all_the_same() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.cpu_allocation = CpuAllocation::Request;
    spec.container.liveness_probe = Some(http(&spec, 2));
    let id = lab.ready(spec).await;
    let number = async |lab: &Lab, path: &str| -> u64 { lab.text_busy(&id, path).await.parse().expect("a number") };
    // Two numbers while it is busy, then four seconds without a request.
    let (count, asked) = (number(&lab, "/count").await, number(&lab, "/asked").await);
    lab.engine.activity(&id, Activity::Idle);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (later, asked_later) = (number(&lab, "/count").await, number(&lab, "/asked").await);
    assert!(asked_later >= asked + 2, "{asked} to {asked_later}");
    // About one count per millisecond while it runs.
    assert!(later - count < 1500, "{count} to {later}: not frozen between probes");

    // And ended when it fails, though it has no request.
    assert_eq!(lab.text_busy(&id, "/health/0").await, "set");
    lab.engine.activity(&id, Activity::Idle);
    let exit = lab.exit(&id).await;
    assert!(matches!(exit.cause, ExitCause::Unhealthy { .. }), "{exit:?}");
    lab.close().await;
}

/// The guest has no library for gRPC: a real server is put into its network instead.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_probes_ask_the_health_service_of_the_instance() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&["sleep"]);
    let check = Check::Grpc {
        port: spec.port,
        service: "app".to_owned(),
    };
    spec.container.startup_probe = Some(probe(&spec, 20, check.clone()));
    spec.container.liveness_probe = Some(probe(&spec, 2, check));
    let port = spec.port.get();
    let id = lab.start(spec).await;
    let listener = crate::lab::inside_network(&id, move || {
        let listener = std::net::TcpListener::bind(("0.0.0.0", port)).expect("a port");
        listener.set_nonblocking(true).expect("set");
        listener
    })
    .await;
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("app", tonic_health::ServingStatus::NotServing)
        .await;
    let listener = tokio::net::TcpListener::from_std(listener).expect("registered");
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    let serving = tokio::spawn(server.serve_with_incoming(incoming));

    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(lab.observed.borrow().instances[&id].state, InstanceState::Starting);
    reporter
        .set_service_status("app", tonic_health::ServingStatus::Serving)
        .await;
    lab.until(&id, |state| *state == InstanceState::Ready).await;
    reporter
        .set_service_status("app", tonic_health::ServingStatus::NotServing)
        .await;
    let exit = lab.exit(&id).await;
    let ExitCause::Unhealthy { why, .. } = exit.cause else {
        panic!("{exit:?}");
    };
    assert_eq!(why, "The answer was NOT_SERVING.");
    serving.abort();
    lab.close().await;
}
