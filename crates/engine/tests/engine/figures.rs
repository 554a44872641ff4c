//! Figures, not tests: run one by its name with `--run-ignored only --no-capture`, on a machine that does nothing else.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use homerun_engine::Maker;
use model::InstanceState;

use crate::lab::{Lab, Recipe, guest};

/// Parked ones are made when their network can be reached.
async fn until_made(lab: &Lab, id: &model::InstanceId) {
    while lab.engine.connect(id).is_err() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn show(what: &str, mut all: Vec<Duration>) {
    all.sort();
    let at = |part: usize| all[all.len() * part / 100];
    eprintln!(
        "{what}: min {:?} p50 {:?} p90 {:?} max {:?}",
        at(0),
        at(50),
        at(90),
        all[all.len() - 1]
    );
}

fn memory_available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable"))
        .expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse().expect("KiB")
}

/// How long a start takes until the first answer is read, each after a pause in which the machine is idle: of a plain
/// process, of a parked instance, on demand, and by crun. In turn, so that they share what else the machine does.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a figure, not a test"]
async fn cold_start_figure() {
    let mut ours = Lab::open().await;
    let mut crun = Lab::made_by(Maker::Crun, Recipe::default()).await;
    let (mut bare, mut parked, mut demand, mut by_crun) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let pause = || tokio::time::sleep(Duration::from_millis(60));
    for round in 0..30_u16 {
        pause().await;
        let port = 20_000 + round;
        let begin = Instant::now();
        let mut child = Command::new(guest())
            .arg("serve")
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("the guest runs");
        while std::net::TcpStream::connect(("127.0.0.1", port))
            .and_then(|stream| crate::lab::request(stream.into(), "/"))
            .is_err()
        {
            std::thread::sleep(Duration::from_micros(100));
        }
        bare.push(begin.elapsed());
        child.kill().expect("killed");
        child.wait().expect("gone");

        let spec = ours.spec(&[]);
        let id = spec.id.clone();
        ours.engine.park(spec).await.expect("accepted");
        until_made(&ours, &id).await;
        pause().await;
        let begin = Instant::now();
        ours.engine.release(&id).expect("known");
        ours.until(&id, |state| *state == InstanceState::Ready).await;
        assert_eq!(ours.text(&id, "/").await, "ok");
        parked.push(begin.elapsed());
        ours.engine.stop(&id, Duration::ZERO).await.expect("known");
        ours.exit(&id).await;

        for (lab, all) in [(&mut ours, &mut demand), (&mut crun, &mut by_crun)] {
            pause().await;
            let spec = lab.spec(&[]);
            let begin = Instant::now();
            let id = lab.ready(spec).await;
            assert_eq!(lab.text(&id, "/").await, "ok");
            all.push(begin.elapsed());
            lab.engine.stop(&id, Duration::ZERO).await.expect("known");
            lab.exit(&id).await;
        }
    }
    let mut sums = std::collections::BTreeMap::<_, Vec<Duration>>::new();
    while let Ok(record) = ours.starts.try_recv() {
        for (name, micros) in record.phases(None) {
            let each = sums.entry((record.parked, name)).or_default();
            each.extend(micros.map(Duration::from_micros));
        }
    }
    show("a plain process", bare);
    show("parked", parked);
    show("on demand", demand);
    show("by crun", by_crun);
    for ((parked, name), all) in sums.into_iter().filter(|(_, all)| !all.is_empty()) {
        show(&format!("parked {parked}, {name}"), all);
    }
    ours.close().await;
    crun.close().await;
}

/// How long it takes until each of a thousand instances that were started at once has answered, what memory each takes,
/// and how long until all are gone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a figure, not a test"]
async fn burst_figure() {
    let mut lab = Lab::open().await;
    let before = memory_available();
    let begin = Instant::now();
    let mut ids = Vec::new();
    for _ in 0..1000 {
        ids.push(lab.start(lab.spec(&[])).await);
    }
    for id in &ids {
        lab.until(id, |state| *state == InstanceState::Ready).await;
        assert_eq!(lab.text(id, "/").await, "ok");
    }
    let up = begin.elapsed();
    let each = before.saturating_sub(memory_available()) / 1000;
    let begin = Instant::now();
    lab.engine.shutdown(Duration::ZERO).await;
    eprintln!(
        "1000 answered after {up:?}, {each} KiB each, gone after {:?}",
        begin.elapsed()
    );
    lab.close().await;
}

/// What memory a parked instance takes, and how long it takes to make one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a figure, not a test"]
async fn parked_figure() {
    let lab = Lab::open().await;
    let before = memory_available();
    let begin = Instant::now();
    let mut ids = Vec::new();
    for _ in 0..200 {
        let spec = lab.spec(&[]);
        ids.push(spec.id.clone());
        lab.engine.park(spec).await.expect("accepted");
    }
    for id in &ids {
        until_made(&lab, id).await;
    }
    let made = begin.elapsed() / 200;
    tokio::time::sleep(Duration::from_secs(1)).await;
    eprintln!(
        "parked: {} KiB each, made in {made:?} each",
        before.saturating_sub(memory_available()) / 200
    );
    lab.close().await;
}
