//! The CPU between requests.

use std::time::Duration;

use model::{Activity, CpuAllocation, ExitCause, InstanceId};

use crate::lab::Lab;

async fn count(lab: &Lab, id: &InstanceId) -> u64 {
    lab.engine.activity(id, Activity::Busy);
    let count = lab.text(id, "/count").await.parse().expect("a number");
    lab.engine.activity(id, Activity::Idle);
    count
}

async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_instance_stands_still_and_a_busy_one_does_not() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.cpu_allocation = CpuAllocation::Request;
    let id = lab.ready(spec).await;

    // About one count per millisecond while it runs.
    let first = count(&lab, &id).await;
    pause(1500).await;
    let second = count(&lab, &id).await;
    assert!(second - first < 400, "{first} to {second}: not frozen while idle");

    lab.engine.activity(&id, Activity::Busy);
    pause(1000).await;
    let third = count(&lab, &id).await;
    assert!(third - second > 300, "{second} to {third}: frozen while busy");

    // Busy again within the linger: never frozen.
    lab.engine.activity(&id, Activity::Idle);
    pause(10).await;
    lab.engine.activity(&id, Activity::Busy);
    pause(1000).await;
    let fourth = count(&lab, &id).await;
    assert!(fourth - third > 300, "{third} to {fourth}: frozen though busy again");

    // A request that nobody announced waits until it is.
    pause(300).await;
    let waiting = tokio::time::timeout(Duration::from_millis(300), lab.get(&id, "/"));
    assert!(waiting.await.is_err());
    assert_eq!(lab.text_busy(&id, "/").await, "ok");

    // Frozen, and ended all the same.
    lab.engine.activity(&id, Activity::Idle);
    pause(300).await;
    lab.engine.stop(&id, Duration::ZERO).await.expect("known");
    assert_eq!(lab.exit(&id).await.cause, ExitCause::Stopped);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_one_hears_sigterm() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&["polite"]);
    spec.cpu_allocation = CpuAllocation::Request;
    let id = lab.ready(spec).await;
    pause(300).await;
    lab.engine.stop(&id, Duration::from_secs(20)).await.expect("known");
    assert_eq!(lab.exit(&id).await.last_lines, ["bye"]);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn always_means_always() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;
    let first = count(&lab, &id).await;
    pause(1000).await;
    let second = count(&lab, &id).await;
    assert!(second - first > 300, "{first} to {second}");
    lab.close().await;
}

/// The same, and more, on a machine that has version 1 of control groups alone: this one without its version 2 tree,
/// which is unmounted for a process of its own.
#[test]
fn without_a_version_2_tree() {
    let script = "umount -l /sys/fs/cgroup/unified && exec \"$@\"";
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "--test-threads=1"])
        .args([
            "cpu::an_idle_instance_stands_still_and_a_busy_one_does_not",
            "cpu::a_frozen_one_hears_sigterm",
            "limits::the_first_kill_for_memory_ends_the_whole_instance",
            "death::nothing_is_left_of_a_killed_server",
            "serving::an_instance_serves_and_stops",
        ])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.expect("unshare runs").success());
}

/// Prints what giving the CPU back costs the first request: requests on new connections, each after a pause in which
/// the one instance was frozen and the other was not, in turns.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a figure, not a test: run it by its name with --no-capture"]
async fn thaw_figure() {
    let mut lab = Lab::open().await;
    let awake = lab.ready(lab.spec(&[])).await;
    let mut spec = lab.spec(&[]);
    spec.cpu_allocation = CpuAllocation::Request;
    let frozen = lab.ready(spec).await;
    let engine = std::sync::Arc::clone(&lab.engine);
    let mut measured = tokio::task::spawn_blocking(move || {
        let mut all = [Vec::new(), Vec::new()];
        for _ in 0..100 {
            for (id, times) in [&awake, &frozen].into_iter().zip(&mut all) {
                std::thread::sleep(Duration::from_millis(130));
                let begin = std::time::Instant::now();
                engine.activity(id, Activity::Busy);
                let socket = engine.connect(id).expect("a process");
                assert_eq!(crate::lab::request(socket, "/").expect("answered"), "ok");
                times.push(begin.elapsed());
                engine.activity(id, Activity::Idle);
            }
        }
        all
    })
    .await
    .expect("no panic");
    for (what, times) in ["awake", "frozen"].into_iter().zip(&mut measured) {
        times.sort();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
        eprintln!(
            "{what}: min {:?} p50 {:?} p90 {:?} p99 {:?}",
            at(0),
            at(50),
            at(90),
            at(99)
        );
    }
    lab.close().await;
}
