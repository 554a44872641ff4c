//! A Homerun that dies while instances run: the next one goes on with them, or nothing of them stays.

use std::{
    fs,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Footprint, Layout, User};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// A person with an image that breaks on request.
fn user(flags: &[&str]) -> (User, String) {
    let mut user = User::with(flags, Client::Homerun);
    let dir = user.homerun.root().join("layouts/broken");
    Layout::image(&dir, "broken").expect("a layout");
    let image = "us-central1-docker.pkg.dev/my-project/e2e/broken:latest";
    user.ok(&format!("homerun images import {} {image}", dir.display()));
    (user, format!("--image={image} --command=/broken --args=serve"))
}

#[track_caller]
fn restart(user: &mut User) {
    if let Err(error) = user.homerun.start_again() {
        panic!("{error:#}");
    }
}

/// Whether the journal holds a text, soon.
fn is_logged(user: &User, wanted: &str) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let segments = fs::read_dir(user.homerun.root().join("data/log")).expect("a journal");
        let holds = |path| fs::read_to_string(path).is_ok_and(|text| text.contains(wanted));
        if segments.flatten().any(|segment| holds(segment.path())) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// What the journal holds of the starts of one instance.
fn starts(user: &User, instance: &str) -> Vec<Value> {
    let segments = fs::read_dir(user.homerun.root().join("data/log")).expect("a journal");
    let text: String = segments
        .flatten()
        .filter_map(|segment| fs::read_to_string(segment.path()).ok())
        .collect();
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let starts = entries.filter_map(|mut entry| Some(entry.get_mut("entry")?.get_mut("Start")?.take()));
    starts.filter(|start| start["instance"] == instance).collect()
}

/// The one instance that is there, once it is parked and no longer being made.
#[track_caller]
fn parked(user: &User) -> String {
    let begin = Instant::now();
    let mut before = Footprint::default();
    loop {
        assert!(begin.elapsed() < PATIENCE, "none is parked\n{}", user.homerun.log());
        let now = user.homerun.footprint().expect("looks");
        if let Some(id) = now.instances.first()
            && now.instances.len() == 1
            && (&now.instances, &now.processes) == (&before.instances, &before.processes)
            && fs::read_dir("/run/homerun")
                .expect("of those that run")
                .flatten()
                .any(|run| run.path().join("bundles").join(id).join("parked").exists())
        {
            return id.clone();
        }
        before = now;
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The instance that answers is the same before and after, and said what it said in between.
fn goes_on(flags: &[&str], deploy: &str) {
    let (mut user, image) = user(flags);
    let url = user.deploy("lasting", &format!("{image} {deploy}"));
    let own = user.get(&url);
    user.get(&format!("{url}/later?code=none"));
    user.homerun.kill().expect("killed");
    // Nobody is there when it speaks.
    std::thread::sleep(Duration::from_secs(1));
    restart(&mut user);
    assert_eq!(user.get(&url), own, "the same instance\n{}", user.homerun.log());
    assert!(is_logged(&user, "said later"), "{}", user.homerun.log());
    // And once more, of one that is idle by now.
    user.homerun.kill().expect("killed");
    restart(&mut user);
    assert_eq!(user.get(&url), own, "still the same instance");
    user.leaves();
}

#[test]
fn an_instance_outlives_its_server() {
    goes_on(&["--idle-retention", "1m"], "--no-cpu-throttling");
}

#[test]
fn so_does_one_that_is_throttled() {
    let (mut user, image) = user(&["--idle-retention", "1m"]);
    let url = user.deploy("lasting", &image);
    let own = user.get(&url);
    std::thread::sleep(Duration::from_millis(300));
    user.homerun.kill().expect("killed");
    restart(&mut user);
    for _ in 0..3 {
        assert_eq!(user.get(&url), own, "the same instance");
        std::thread::sleep(Duration::from_millis(300));
    }
    user.leaves();
}

#[test]
fn so_does_one_that_crun_has_made() {
    goes_on(&["--idle-retention", "1m", "--runtime", "crun"], "--no-cpu-throttling");
}

#[test]
fn so_does_one_of_the_first_generation() {
    goes_on(
        &["--idle-retention", "1m"],
        "--no-cpu-throttling --execution-environment=gen1 --cpu=1 --memory=256Mi",
    );
}

fn starts_next(flags: &[&str]) {
    let (mut user, image) = user(flags);
    let url = user.deploy("waiting", &image);
    let first = user.get(&url);
    let id = parked(&user);
    assert_eq!(starts(&user, &id), Vec::<Value>::new(), "it was not called yet");
    user.homerun.kill().expect("killed");
    restart(&mut user);
    assert_eq!(parked(&user), id, "still the same");
    assert_ne!(user.get(&url), first, "another instance");
    let begin = Instant::now();
    while starts(&user, &id).is_empty() {
        assert!(
            begin.elapsed() < PATIENCE,
            "no record of its start\n{}",
            user.homerun.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let starts = starts(&user, &id);
    assert!(starts.len() == 1 && starts[0]["parked"] == true, "{starts:?}");
    assert!(starts[0]["sandbox_micros"].as_u64() > Some(0), "{starts:?}");
    user.leaves();
}

#[test]
fn one_that_is_parked_is_the_next_to_start() {
    starts_next(&["--idle-retention", "1s"]);
}

#[test]
fn so_is_one_that_crun_has_parked() {
    starts_next(&["--idle-retention", "1s", "--runtime", "crun"]);
}

#[test]
fn an_instance_of_two_containers_goes_on_with_both() {
    let (mut user, image) = user(&["--idle-retention", "1m"]);
    let app = user.import_probe("app");
    let side = image.replace(
        "--command",
        "--set-env-vars=PORT=9000 --startup-probe=tcpSocket.port=9000 --command",
    );
    let flags = format!(
        "--no-cpu-throttling --container=app --image={app} --port=8080 --depends-on=side --container=side {side}"
    );
    let url = user.deploy("pair", &flags);
    let both = |user: &mut User| (user.get(&url), user.get(&format!("{url}/call/9000/")));
    let own = both(&mut user);
    user.homerun.kill().expect("killed");
    restart(&mut user);
    assert_eq!(both(&mut user), own, "the same instance\n{}", user.homerun.log());
    // The end of the other one is the end of both.
    user.get(&format!("{url}/call/9000/later?code=41"));
    assert!(
        is_logged(&user, "ended with exit code 41, and the instance with it"),
        "{}",
        user.homerun.log()
    );
    let next = both(&mut user);
    assert!(next.0 != own.0 && next.1 != own.1, "another instance");
    // Also when nobody sees it.
    user.get(&format!("{url}/call/9000/later?code=37"));
    user.homerun.kill().expect("killed");
    std::thread::sleep(Duration::from_secs(1));
    restart(&mut user);
    assert!(
        is_logged(&user, "ended with exit code 37, and the instance with it"),
        "{}",
        user.homerun.log()
    );
    let last = both(&mut user);
    assert!(last.0 != next.0 && last.1 != next.1, "another instance");
    user.leaves();
}

#[test]
fn an_end_that_nobody_saw_is_told() {
    let (mut user, image) = user(&["--idle-retention", "1m"]);
    let url = user.deploy("ending", &format!("{image} --no-cpu-throttling"));
    let own = user.get(&url);
    user.get(&format!("{url}/later?code=37"));
    user.homerun.kill().expect("killed");
    std::thread::sleep(Duration::from_secs(1));
    restart(&mut user);
    assert!(is_logged(&user, "said later"), "{}", user.homerun.log());
    assert_ne!(user.get(&url), own, "another instance");
    let said = user.homerun.log();
    assert!(said.contains("cause=Code(37)"), "{said}");
    user.leaves();
}

#[test]
fn without_a_next_one_nothing_stays() {
    let (mut user, image) = user(&["--adoption-window", "2s"]);
    let url = user.deploy("gone", &format!("{image} --min-instances=1"));
    user.get(&url);
    user.homerun.kill().expect("killed");
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        !user.homerun.footprint().expect("looks").processes.is_empty(),
        "it is kept first"
    );
    user.homerun.leaves_within(PATIENCE).expect("nothing stays");
}

/// Killed at moments that walk through a start and a stop.
#[test]
fn killed_in_each_phase_of_a_start_and_a_stop() {
    let (mut user, image) = user(&["--idle-retention", "200ms", "--parked", "0"]);
    let url = user.deploy("walked", &image);
    for round in 0..12 {
        // The last instance is over, or about to be.
        user.ok(&format!("curl --max-time 5 -o /dev/null '{url}' 2>/dev/null & true"));
        std::thread::sleep(Duration::from_millis(round * 9));
        if round % 3 == 2 {
            // Into its end.
            std::thread::sleep(Duration::from_millis(1100 + 30 * round));
        }
        user.homerun.kill().expect("killed");
        user.ok("wait; true");
        restart(&mut user);
        user.get(&url);
    }
    let began = Instant::now();
    while !user.homerun.footprint().expect("looks").instances.is_empty() {
        assert!(began.elapsed() < PATIENCE, "not at zero\n{}", user.homerun.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    user.leaves();
}
