//! Containers that do not start, and instances that break while they serve.

use homerun_e2e::Client;
use serde_json::json;

use super::{NO_PORT, NOT_READY, Stand};

#[test]
fn containers_that_do_not_start() {
    let mut stand = Stand::new(Client::Homerun);
    let layout = stand.layout("broken", "amd64");
    let image = stand.import("broken", &layout);
    let run = format!("--image={image} --command=/broken --args");

    let lines: Vec<String> = (1..=30).map(|number| format!("line-{number}")).collect();
    stand.deploy_fails(
        &format!("{run}=exit,7,{}", lines.join(",")),
        &[
            NOT_READY,
            NO_PORT,
            "The container exited with exit code 7. Last log lines:",
            "\nline-29\nline-30",
        ],
    );
    stand.deploy_fails(
        &format!("{run}=exit,0"),
        &[NOT_READY, NO_PORT, "The container exited with exit code 0."],
    );
    stand.deploy_fails(
        &format!("--image={image} --command=/nonexistent"),
        &[
            NOT_READY,
            "could not be started: executable file `/nonexistent` not found",
        ],
    );
    stand.deploy_fails(
        &format!("--image={image} --command=/etc/name"),
        &[
            NOT_READY,
            "could not be started: cannot execute /etc/name: Permission denied",
        ],
    );
    stand.deploy_fails(
        &format!("{run}=hog,200 --memory=128Mi"),
        &[NOT_READY, "failed to start: Memory limit of 128 MiB exceeded."],
    );

    // A short probe, since the default waits 240 s.
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 2});
    let within = format!("{NO_PORT} within 2 seconds.");
    for (way, why) in [
        ("mute", &[NOT_READY, &within] as &[&str]),
        (
            "loopback",
            &[
                NOT_READY,
                &within,
                "It listens on 127.0.0.1 only; it must listen on 0.0.0.0.",
            ],
        ),
    ] {
        let service = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "kept"},
            "spec": {"template": {"spec": {"containers": [
                {"image": image, "command": ["/broken"], "args": [way], "startupProbe": probe},
            ]}}},
        });
        let file = stand.user.homerun.root().join("service.yaml");
        std::fs::write(&file, service.to_string()).expect("written");
        stand.fails(&format!("gcloud run services replace {} $REGION", file.display()), why);
    }

    // What was wrong is mended by the next deploy, and only now the traffic moves.
    stand.user.deploy("kept", &format!("{run}=serve --memory=512Mi"));
    let moved = stand.user.describe("kept", "value(status.traffic[0].revisionName)");
    assert_ne!(moved.trim(), stand.revision);
    let answer = stand.user.get(&stand.url);
    assert!(answer.trim().bytes().all(|b| b.is_ascii_digit()), "{answer}");
    stand.user.leaves();
}

#[test]
fn instances_that_break_while_they_serve() {
    let mut stand = Stand::new(Client::Homerun);
    let layout = stand.layout("broken", "amd64");
    let image = stand.import("broken", &layout);
    let url = stand.user.deploy(
        "broken",
        &format!("--image={image} --command=/broken --args=serve --memory=128Mi"),
    );
    let first = stand.user.get(&url);
    assert_eq!(stand.user.get(&url), first, "one instance");

    let status = "curl -o /dev/null -w '%{http_code}'";
    assert_eq!(stand.user.ok(&format!("{status} '{url}/hog?mib=200'")), "500");
    let second = stand.user.get(&url);
    assert_ne!(second, first, "a new instance");
    stand.kept();

    assert_eq!(stand.user.ok(&format!("{status} '{url}/crash?code=9'")), "503");
    let third = stand.user.get(&url);
    assert_ne!(third, second, "a new instance");
    stand.kept();

    // The journal is written by the time that all has ended.
    let data = stand.user.ok("echo $DATA_DIR").trim().to_owned();
    let kept = stand.user.homerun.root().join("journal");
    stand.user.ok(&format!("sleep 1; cat {data}/log/* >{}", kept.display()));
    let journal = std::fs::read_to_string(kept).expect("copied");
    let line = |wanted: &str| {
        journal
            .lines()
            .any(|line| line.contains(wanted) && line.contains("broken-00001"))
    };
    assert!(line("\"Memory limit of 128 MiB exceeded with 12"), "{journal}");
    assert!(line("went over its memory limit of 128 MiB"), "{journal}");
    stand.user.leaves();
}
