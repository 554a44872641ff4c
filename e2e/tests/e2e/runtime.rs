//! A runtime that fails, once and always: what is told, what becomes of requests, and that nothing of it stays.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Footprint, User};

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A `crun` that does not make as many sandboxes as the file `failures` beside it says, and says so in its log.
const WRAPPER: &str = r#"#!/bin/sh
here=$(dirname "$0")
real=$(PATH=${PATH#"$here":} command -v crun)
case " $* " in
*" create "*)
    left=$(cat "$here/failures")
    if [ "$left" -gt 0 ]; then
        echo $((left - 1)) > "$here/failures"
        log=$(echo "$*" | sed 's/.*--log \([^ ]*\).*/\1/')
        echo "a first line" > "$log"
        echo "no sandboxes today" >> "$log"
        exit 1
    fi ;;
esac
exec "$real" "$@"
"#;

struct Broken<'a> {
    place: &'a Path,
}

impl Broken<'_> {
    /// The next so many sandboxes are not made.
    fn fail(&self, times: u32) {
        fs::write(self.place.join("failures"), times.to_string()).expect("written");
    }

    fn left(&self) -> u32 {
        let text = fs::read_to_string(self.place.join("failures")).expect("read");
        text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
    }
}

/// Until nothing of an instance is on the machine, which `before` any has Homerun's own processes.
#[track_caller]
fn all_gone(user: &User, before: &Footprint) {
    let begin = Instant::now();
    loop {
        let seen = user.homerun.footprint().expect("looks");
        if seen.instances.is_empty() && seen.processes.is_subset(&before.processes) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "still there: {seen:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_runtime_that_fails_once_or_always() {
    let place = tempfile::tempdir().expect("a directory");
    let runtime = Broken { place: place.path() };
    let wrapper = place.path().join("crun");
    fs::write(&wrapper, WRAPPER).expect("written");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("made executable");
    runtime.fail(0);
    let inherited = std::env::var("PATH").expect("a path");
    let path = format!("{}:{inherited}", place.path().display());
    let flags = ["--runtime=crun", "--parked=0"];
    let mut user = User::in_surroundings(&flags, &[("PATH", &path)], Client::Homerun);
    let before = user.homerun.footprint().expect("looks");
    let url = user.deploy("kept", "--image=$HELLO");
    user.get(&url);
    all_gone(&user, &before);

    // Once: the request that waits gets the next instance.
    runtime.fail(1);
    user.get(&url);
    assert_eq!(runtime.left(), 0, "the wrapper was asked");
    all_gone(&user, &before);

    // Always: a deploy says who did not do what, in its last words.
    runtime.fail(1_000_000);
    let said = user.refused("gcloud run deploy other --image=$HELLO $REGION --quiet");
    assert!(
        said.contains("/crun: no sandboxes today.") && !said.contains("a first line"),
        "{said}"
    );
    let status = user.ok(&format!("curl -o answer -w '%{{http_code}}' '{url}'"));
    assert!(["429", "500", "503"].contains(&status.as_str()), "{status}");
    all_gone(&user, &before);

    // Mended, it serves again by itself.
    runtime.fail(0);
    let begin = Instant::now();
    while user.ok(&format!("curl -o answer -w '%{{http_code}}' '{url}'")) != "200" {
        assert!(begin.elapsed() < PATIENCE, "the runtime works, the service does not");
    }
    user.leaves();
}
