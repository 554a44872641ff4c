//! A Homerun that dies while instances run: the next one goes on with them, or nothing of them stays.

use std::{
    fs,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Layout, User};

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
