//! CPU, memory and processes.

use std::time::Duration;

use model::{ExitCause, Fate, Severity, Stream};

use crate::lab::Lab;

async fn spun(lab: &Lab, id: &model::InstanceId, millis: u64) -> u64 {
    lab.text(id, &format!("/spin/{millis}"))
        .await
        .parse()
        .expect("milliseconds")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_cpu_is_all_it_gets() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.cpu_millis = 250;
    let id = lab.ready(spec).await;
    let quota = lab.text(&id, "/read/sys/fs/cgroup/cpu/cpu.cfs_quota_us").await;
    assert_eq!(quota, "25000\n");
    assert_eq!(
        lab.text(&id, "/read/sys/fs/cgroup/cpu/cpu.cfs_period_us").await,
        "100000\n"
    );
    assert_eq!(lab.text(&id, "/read/sys/fs/cgroup/cpu/cpu.shares").await, "256\n");
    let cpu = spun(&lab, &id, 1000).await;
    assert!((100..=400).contains(&cpu), "{cpu} ms of CPU in a second");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_startup_boost_ends() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.cpu_millis = 250;
    spec.startup_cpu_boost = true;
    let id = lab.ready(spec).await;
    let begin = tokio::time::Instant::now();
    let quota = "/read/sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    assert_eq!(lab.text(&id, quota).await, "-1\n");
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(lab.text(&id, quota).await, "-1\n");
    while lab.text(&id, quota).await != "25000\n" {
        assert!(begin.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begin.elapsed() > Duration::from_millis(9500));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_kill_for_memory_ends_the_whole_instance() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.memory_bytes = 128 << 20;
    let id = lab.ready(spec).await;
    let limit = lab.text(&id, "/read/sys/fs/cgroup/memory/memory.limit_in_bytes").await;
    assert_eq!(limit, "134217728\n");
    // A second process is the greedy one; the first would live on if nobody ended it.
    let answer = lab.get(&id, "/child/eat/200").await;
    // The kernel closes the dead one's connection with or without a reset.
    assert!(answer.as_ref().map_or("", String::as_str).is_empty(), "{answer:?}");
    let limit_bytes = 128 << 20;
    assert_eq!(lab.engine.fate(&id), Fate::OutOfMemory { limit_bytes });
    let exit = lab.exit(&id).await;
    assert_eq!(exit.cause, ExitCause::OutOfMemory { limit_bytes });
    assert!(exit.was_ready);
    assert_eq!(lab.engine.fate(&id), Fate::OutOfMemory { limit_bytes });
    let line = lab
        .line(|line| line.stream == Stream::System && line.severity == Severity::Error)
        .await;
    assert_eq!(line.text, "Memory limit of 128 MiB exceeded with 128 MiB used.");
    assert_eq!(line.instance, id);
    // Who asks after it was forgotten is told the same.
    lab.engine.forget(&id);
    assert!(!lab.engine.observe().borrow().instances.contains_key(&id));
    assert_eq!(lab.engine.fate(&id), Fate::OutOfMemory { limit_bytes });
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_below_the_limit_is_nobodys_end() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.memory_bytes = 128 << 20;
    let id = lab.ready(spec).await;
    assert_eq!(lab.text(&id, "/child/eat/60").await, "exit status: 0");
    assert_eq!(lab.engine.fate(&id), Fate::Alive);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_count_as_memory_and_go_with_the_instance() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.memory_bytes = 128 << 20;
    let id = lab.ready(spec).await;
    assert_eq!(lab.text(&id, "/fill/40/var-file").await, "ok");
    let used: u64 = lab
        .text(&id, "/read/sys/fs/cgroup/memory/memory.usage_in_bytes")
        .await
        .trim()
        .parse()
        .expect("bytes");
    assert!(used > 40 << 20, "{used}");
    let answer = lab.get(&id, "/fill/120/tmp/second").await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(matches!(lab.exit(&id).await.cause, ExitCause::OutOfMemory { .. }));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_have_an_end() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.container.memory_bytes = 1 << 30;
    let id = lab.ready(spec).await;
    let made: u32 = lab.text(&id, "/threads/5000").await.parse().expect("a number");
    assert!((4000..4096).contains(&made), "{made}");
    assert_eq!(lab.text(&id, "/").await, "ok");
    lab.close().await;
}
