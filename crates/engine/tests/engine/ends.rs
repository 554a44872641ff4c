//! The ways in which an instance ends.

use std::time::{Duration, Instant};

use model::{ExitCause, InstanceState};
use serde_json::json;

use crate::lab::{Lab, PORT, Recipe, layer};

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_and_the_last_lines_are_kept() {
    let mut lab = Lab::open().await;
    let id = lab.start(lab.spec(&["exit", "3"])).await;
    let exit = lab.exit(&id).await;
    assert_eq!(exit.cause, ExitCause::Code(3));
    assert!(!exit.was_ready);
    let mut lines = exit.last_lines;
    lines.sort();
    assert_eq!(lines, ["to stderr", "to stdout"]);
    let id = lab.start(lab.spec(&["fault"])).await;
    assert_eq!(lab.exit(&id).await.cause, ExitCause::Signal(11));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_while_serving_is_seen() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;
    assert!(lab.get(&id, "/die/7").await.is_err());
    let exit = lab.exit(&id).await;
    assert_eq!((exit.cause, exit.was_ready), (ExitCause::Code(7), true));
    lab.close().await;
}

async fn why_not_started(lab: &mut Lab, change: impl FnOnce(&mut model::InstanceSpec)) -> String {
    let mut spec = lab.spec(&[]);
    change(&mut spec);
    let id = lab.start(spec).await;
    let exit = lab.exit(&id).await;
    assert!(exit.last_lines.is_empty(), "{exit:?}");
    let ExitCause::NotStarted(why) = exit.cause else {
        panic!("{:?}", exit.cause);
    };
    why
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let mut lab = Lab::open().await;
    let why = why_not_started(&mut lab, |spec| spec.container.command = vec!["/no/such".to_owned()]).await;
    assert_eq!(
        why,
        "executable file `/no/such` not found in $PATH: No such file or directory"
    );
    let why = why_not_started(&mut lab, |spec| spec.container.command = vec!["nosuch".to_owned()]).await;
    assert_eq!(
        why,
        "executable file `nosuch` not found in $PATH: No such file or directory"
    );
    let why = why_not_started(&mut lab, |spec| {
        spec.container.working_dir = Some("/etc/passwd".to_owned());
    })
    .await;
    assert!(why.contains("/etc/passwd"), "{why}");
    let missing = format!("sha256:{}", "0".repeat(64));
    let why = why_not_started(&mut lab, |spec| spec.container.image = missing.clone()).await;
    assert!(why.contains(&missing) && why.contains("not stored"), "{why}");
    let why = why_not_started(&mut lab, |spec| spec.container.image = "latest".to_owned()).await;
    assert!(why.contains("latest"), "{why}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_program_says_so() {
    let mut recipe = Recipe::default();
    recipe.layers.push(layer(&[
        ("text", b"no program", 0o755, 0),
        ("script", b"#!/no/such/shell\n", 0o755, 0),
        ("plain", b"#!/guest\n", 0o644, 0),
    ]));
    let mut lab = Lab::with(recipe).await;
    for (program, said) in [
        ("/text", "Exec format error"),
        ("/script", "No such file or directory"),
        ("/plain", "Permission denied"),
    ] {
        let why = why_not_started(&mut lab, |spec| spec.container.command = vec![program.to_owned()]).await;
        assert!(why.contains(said), "{program}: {why}");
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_command_does_not_start() {
    let recipe = Recipe {
        config: json!({}),
        ..Recipe::default()
    };
    let mut lab = Lab::with(recipe).await;
    let why = why_not_started(&mut lab, |_| ()).await;
    assert!(why.contains("no entrypoint"), "{why}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_listen_fails_its_probe() {
    let mut lab = Lab::open().await;
    for (arguments, only) in [(["sleep"], false), (["loopback"], true)] {
        let mut spec = lab.spec(&arguments);
        spec.container.startup_probe.as_mut().expect("set").period = 2;
        let begin = Instant::now();
        let id = lab.start(spec).await;
        let exit = lab.exit(&id).await;
        let expected = ExitCause::NotListening {
            port: PORT,
            seconds: 2,
            loopback_only: only,
        };
        assert_eq!((exit.cause, exit.was_ready), (expected, false));
        assert!(begin.elapsed() >= Duration::from_secs(2));
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_start_is_waited_for() {
    let mut lab = Lab::open().await;
    let begin = Instant::now();
    let id = lab.start(lab.spec(&["late", "700"])).await;
    lab.until(&id, |state| *state == InstanceState::Ready).await;
    assert!(begin.elapsed() >= Duration::from_millis(700));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polite_one_ends_at_sigterm_and_its_last_word_is_heard() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&["polite"])).await;
    let begin = Instant::now();
    lab.engine.stop(&id, Duration::from_secs(20)).await.expect("known");
    let exit = lab.exit(&id).await;
    assert_eq!(exit.cause, ExitCause::Stopped);
    assert_eq!(exit.last_lines, ["bye"]);
    assert!(begin.elapsed() < Duration::from_secs(10));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_one_is_killed_after_its_grace() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&["stubborn"])).await;
    let begin = Instant::now();
    lab.engine.stop(&id, Duration::from_millis(1500)).await.expect("known");
    lab.until(&id, |state| *state == InstanceState::Stopping).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lab.text(&id, "/").await, "ok");
    assert_eq!(lab.exit(&id).await.cause, ExitCause::Stopped);
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_millis(1500) && took < Duration::from_secs(8),
        "{took:?}"
    );
    lab.close().await;
}
