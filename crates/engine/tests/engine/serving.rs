//! From start to answer, and to the end.

use model::{ExitCause, InstanceState};

use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_serves_and_stops() {
    let mut lab = Lab::open().await;
    let spec = lab.spec(&[]);
    let id = lab.ready(spec.clone()).await;
    assert_eq!(lab.text(&id, "/").await, "ok");
    // The same id once more is the same instance.
    lab.engine.start(spec).await.expect("accepted");
    assert_eq!(lab.observed.borrow().instances.len(), 1);

    lab.engine.stop(&id, std::time::Duration::ZERO).await.expect("known");
    let exit = lab.exit(&id).await;
    assert_eq!(exit.cause, ExitCause::Stopped);
    assert!(exit.was_ready);
    assert!(lab.get(&id, "/").await.is_err());
    lab.engine.forget(&id);
    assert!(lab.observed.borrow().instances.is_empty());
    assert!(lab.engine.stop(&id, std::time::Duration::ZERO).await.is_err());
    lab.close().await;
    let _ = InstanceState::Starting;
}
