//! A server that is killed, a launcher that is killed, and what must not be left.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use model::{ExitCause, InstanceState};
use tokio::sync::mpsc;

use crate::lab::{Lab, PATIENCE, Recipe, fresh_id8, leftovers, open, spec};

const PLACE: &str = "ENGINE_TEST_PLACE";
const ID8: &str = "ENGINE_TEST_ID8";

/// Not a test by itself: what the tests below run in a process of its own and kill.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests that kill it"]
async fn a_server_to_be_killed() {
    let (Ok(place), Ok(id8)) = (std::env::var(PLACE), std::env::var(ID8)) else {
        return;
    };
    let (log, _lines) = mpsc::channel(1000);
    let (engine, images) = open(Path::new(&place), &id8, log).await;
    let image = Recipe::default().store(&images).await;
    for arguments in [&["stubborn"][..], &[]] {
        let mut spec = spec(&image, arguments);
        // Frozen ones, too.
        spec.cpu_allocation = model::CpuAllocation::Request;
        engine.start(spec).await.expect("accepted");
    }
    let mut observed = engine.observe();
    let ready = observed.wait_for(|observed| {
        let mut all = observed.instances.values();
        all.all(|instance| instance.state == InstanceState::Ready)
    });
    drop(ready.await.expect("the engine lives"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // And one whose creation is under way.
    engine.start(spec(&image, &["sleep"])).await.expect("accepted");
    std::io::Write::write_all(&mut std::io::stdout(), b"\nREADY\n").expect("told");
    std::future::pending::<()>().await;
}

fn server(place: &Path, id8: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "--nocapture", "death::a_server_to_be_killed"])
        .env(PLACE, place)
        .env(ID8, id8)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test runs");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let ready = output.lines().map_while(Result::ok).any(|line| line == "READY");
    assert!(ready, "the server did not come up");
    child
}

fn until_nothing_is_left(id8: &str) {
    let begin = Instant::now();
    loop {
        let left = leftovers(id8);
        if left.is_empty() {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_is_left_of_a_killed_server() {
    let place = tempfile::tempdir().expect("a directory");
    let id8 = fresh_id8();
    let mut child = server(place.path(), &id8);
    assert!(leftovers(&id8).len() > 5);
    child.kill().expect("SIGKILL");
    child.wait().expect("gone");
    until_nothing_is_left(&id8);
}

/// The launcher of an id, by its control group.
fn launcher(id8: &str) -> Option<i32> {
    let home = Path::new("/sys/fs/cgroup/unified").join(format!("homerun-{id8}/launcher/cgroup.procs"));
    let procs = std::fs::read_to_string(home).ok()?;
    procs.lines().next()?.parse().ok()
}

/// False for one that nobody has waited for.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn kill(pid: i32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_start_sweeps_what_nobody_else_could() {
    let place = tempfile::tempdir().expect("a directory");
    let id8 = fresh_id8();
    let mut child = server(place.path(), &id8);
    // Launcher first, then the server before it can do anything about it.
    let pid = launcher(&id8).expect("a launcher");
    let server = i32::try_from(child.id()).expect("a pid");
    let status = Command::new("kill")
        .args(["-9", &server.to_string(), &pid.to_string()])
        .status();
    assert!(status.expect("kill runs").success());
    child.wait().expect("gone");
    std::thread::sleep(Duration::from_millis(300));

    let (log, _lines) = mpsc::channel(10);
    let (engine, _) = open(place.path(), &id8, log).await;
    // Only the new launcher.
    let processes = leftovers(&id8)
        .into_iter()
        .filter(|left| left.starts_with("/proc/"))
        .count();
    assert_eq!(processes, 1, "{:?}", leftovers(&id8));
    engine.shutdown(Duration::ZERO).await;
    assert_eq!(leftovers(&id8), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_swept_and_the_living_are_not() {
    let place = tempfile::tempdir().expect("a directory");
    let dead = fresh_id8();
    let mut child = server(place.path(), &dead);
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;
    let pid = launcher(&dead).expect("a launcher");
    let server = i32::try_from(child.id()).expect("a pid");
    let status = Command::new("kill")
        .args(["-9", &server.to_string(), &pid.to_string()])
        .status();
    assert!(status.expect("kill runs").success());
    child.wait().expect("gone");
    // A launcher that lives may be waiting for another server, and is left alone.
    let begin = Instant::now();
    while lives(pid) {
        assert!(begin.elapsed() < PATIENCE, "the launcher lives");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    let swept = homerun_engine::sweep_dead().expect("swept");
    assert!(swept.contains(&dead) && !swept.contains(&lab.id8), "{swept:?}");
    assert_eq!(leftovers(&dead), [""; 0]);
    assert_eq!(lab.text(&id, "/").await, "ok");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_launcher_takes_its_instances_along_and_is_replaced() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;
    kill(launcher(&lab.id8).expect("a launcher"));
    assert_eq!(lab.exit(&id).await.cause, ExitCause::Signal(9));
    let id = lab.ready(lab.spec(&[])).await;
    assert_eq!(lab.text(&id, "/").await, "ok");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_has_one_owner() {
    let lab = Lab::open().await;
    let place = tempfile::tempdir().expect("a directory");
    let (log, _lines) = mpsc::channel(10);
    let images = image::Images::open(place.path()).expect("a store");
    let second = homerun_engine::Engine::open(homerun_engine::Settings {
        data_dir: place.path().to_owned(),
        id8: lab.id8.clone(),
        images,
        log,
        starts: mpsc::channel(1).0,
        launcher: env!("CARGO_BIN_EXE_engine-launcher").into(),
        runtime: "crun".into(),
        adoption: Duration::ZERO,
        egress: homerun_engine::Egress::Off,
        inside: None,
        maker: homerun_engine::Maker::Own,
        gvisor_path: std::ffi::OsString::new(),
        first_id: homerun_engine::FIRST_ID,
    });
    let refused = second.await.expect_err("claimed");
    assert!(
        matches!(refused, homerun_engine::OpenError::Claimed { .. }),
        "{refused}"
    );
    lab.close().await;
}

#[test]
fn this_machine_is_fit() {
    assert_eq!(homerun_engine::doctor(), []);
}
