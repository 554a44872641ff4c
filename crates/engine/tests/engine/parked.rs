//! Instances that are made ahead and wait.

use std::time::Duration;

use model::{ExitCause, Fate, InstanceState};

use crate::lab::Lab;

/// Until the sandbox is made. What the engine shows is the same before.
async fn made(lab: &Lab, id: &model::InstanceId) -> i32 {
    let procs = format!("/sys/fs/cgroup/memory/homerun-{}/{id}/cgroup.procs", lab.id8);
    for _ in 0..600 {
        let text = std::fs::read_to_string(&procs).unwrap_or_default();
        // crun's own process leaves the group before it is done.
        if lab.engine.connect(id).is_ok() {
            return text.trim().parse().expect("one process");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{id} was not made in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_one_runs_nothing_until_it_is_released() {
    let mut lab = Lab::open().await;
    let spec = lab.spec(&[]);
    let id = spec.id.clone();
    let before = lab.engine.room().cpu_millis;
    lab.engine.park(spec.clone()).await.expect("accepted");
    assert_eq!(lab.observed.borrow().instances[&id].state, InstanceState::Parked);
    let pid = made(&lab, &id).await;
    let mark = format!("/run/homerun/{}/bundles/{id}/parked", lab.id8);
    assert!(std::path::Path::new(&mark).exists());
    // It is not the guest, and it promises no CPU.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("it lives");
    assert_ne!(name, "guest\n");
    assert_eq!(lab.engine.room().cpu_millis, before);
    assert_eq!(lab.engine.fate(&id), Fate::Alive);
    assert!(lab.get(&id, "/").await.is_err());
    // The same id once more is the same instance.
    lab.engine.start(spec).await.expect("accepted");
    assert_eq!(lab.observed.borrow().instances[&id].state, InstanceState::Parked);

    lab.engine.release(&id).expect("known");
    assert!(!std::path::Path::new(&mark).exists());
    assert!(!matches!(
        lab.observed.borrow().instances[&id].state,
        InstanceState::Parked
    ));
    lab.until(&id, |state| *state == InstanceState::Ready).await;
    assert_eq!(lab.text(&id, "/").await, "ok");
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("the same process");
    assert_eq!(name, "guest\n");
    let record = lab.starts.recv().await.expect("a start");
    assert!(record.parked && record.instance == id, "{record:?}");
    // What was done before the release is no part of the start.
    let within = record.listening_micros + record.process_micros.expect("our own sandbox");
    assert!(within <= record.ready_micros, "{record:?}");
    assert!(record.rootfs_micros.is_some_and(|micros| micros > 0), "{record:?}");
    lab.engine.release(&id).expect("nothing more");
    assert_eq!(lab.observed.borrow().instances[&id].state, InstanceState::Ready);
    assert!(lab.engine.room().cpu_millis < before);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_before_it_is_made_is_not_lost() {
    let mut lab = Lab::open().await;
    let spec = lab.spec(&[]);
    let id = spec.id.clone();
    lab.engine.park(spec).await.expect("accepted");
    lab.engine.release(&id).expect("known");
    lab.until(&id, |state| *state == InstanceState::Ready).await;
    assert_eq!(lab.text(&id, "/").await, "ok");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_one_is_stopped_at_once_and_one_that_ends_says_so() {
    let mut lab = Lab::open().await;
    let [first, second] = [lab.spec(&[]), lab.spec(&[])];
    let [one, two] = [first.id.clone(), second.id.clone()];
    lab.engine.park(first).await.expect("accepted");
    lab.engine.park(second).await.expect("accepted");
    made(&lab, &one).await;
    let pid = made(&lab, &two).await;
    let begin = std::time::Instant::now();
    lab.engine.stop(&one, Duration::from_secs(25)).await.expect("known");
    let exit = lab.exit(&one).await;
    assert_eq!((exit.cause, exit.was_ready), (ExitCause::Stopped, false));
    assert!(begin.elapsed() < Duration::from_secs(20));

    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let exit = lab.exit(&two).await;
    let ExitCause::NotStarted(why) = exit.cause else {
        panic!("{exit:?}");
    };
    assert!(why.contains("before it was released"), "{why}");
    lab.close().await;
}
