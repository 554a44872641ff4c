//! From start to answer, and to the end.

use std::time::Duration;

use model::{ExitCause, Fate};

use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_serves_and_stops() {
    let mut lab = Lab::open().await;
    let spec = lab.spec(&[]);
    let id = lab.ready(spec.clone()).await;
    assert_eq!(lab.text(&id, "/").await, "ok");
    assert_eq!(lab.engine.fate(&id), Fate::Alive);
    let record = lab.starts.recv().await.expect("a start");
    assert!(!record.parked && record.instance == id, "{record:?}");
    let phases = record.phases(None).into_iter().filter_map(|(_, micros)| micros);
    let all = record.turn_micros + phases.sum::<u64>();
    // They do not overlap, and leave out next to nothing.
    assert!(all <= record.ready_micros + 10, "{record:?}");
    // The same id once more is the same instance.
    lab.engine.start(spec).await.expect("accepted");
    assert_eq!(lab.observed.borrow().instances.len(), 1);
    // An instance that lives is not forgotten.
    lab.engine.forget(&id);
    assert_eq!(lab.observed.borrow().instances.len(), 1);

    lab.engine.stop(&id, Duration::ZERO).await.expect("known");
    let exit = lab.exit(&id).await;
    assert_eq!(exit.cause, ExitCause::Stopped);
    assert!(exit.was_ready);
    assert_eq!(lab.engine.fate(&id), Fate::Ended);
    assert!(lab.get(&id, "/").await.is_err());
    lab.engine.forget(&id);
    assert!(lab.observed.borrow().instances.is_empty());
    assert!(lab.engine.stop(&id, Duration::ZERO).await.is_err());
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_instances_start_at_once_and_each_has_its_own_network() {
    let mut lab = Lab::open().await;
    let before = lab.engine.room();
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(lab.start(lab.spec(&[])).await);
    }
    for id in &ids {
        lab.until(id, |state| *state == model::InstanceState::Ready).await;
        assert_eq!(lab.text(id, "/write/only-here").await, "ok");
    }
    assert!(lab.engine.room().cpu_millis < before.cpu_millis);
    let mut maps = std::collections::BTreeSet::new();
    for id in &ids {
        assert_eq!(lab.text(id, "/read/only-here").await, "written");
        maps.insert(lab.text(id, "/read/proc/self/uid_map").await);
    }
    assert_eq!(maps.len(), ids.len());
    // What they share was not changed for any of them.
    for layer in std::fs::read_dir(lab.data().join("images/layers"))
        .expect("layers")
        .flatten()
    {
        let root = layer.path().join("root");
        assert_eq!(
            std::os::unix::fs::MetadataExt::uid(&root.metadata().expect("a root")),
            0
        );
        assert!(!root.join("only-here").exists());
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_before_the_start_is_through_ends_it() {
    let mut lab = Lab::open().await;
    let id = lab.start(lab.spec(&["late", "60000"])).await;
    lab.engine.stop(&id, Duration::ZERO).await.expect("known");
    assert_eq!(lab.exit(&id).await.cause, ExitCause::Stopped);

    let id = lab.start(lab.spec(&["late", "60000"])).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    lab.engine.stop(&id, Duration::ZERO).await.expect("known");
    assert_eq!(lab.exit(&id).await.cause, ExitCause::Stopped);
    lab.close().await;
}
