//! What breaks while all else goes on: instances that are killed or run wild, bodies that are too large, a disk that is
//! full, a clock that jumps. Each time the neighbour serves on, the next request is answered, and nothing stays behind.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Layout, User};

/// A service that breaks on request, and a neighbour.
struct Pair {
    user: User,
    url: String,
    neighbour: String,
}

impl Pair {
    fn new(flags: &str) -> Self {
        Self::of(User::of_homerun(), flags)
    }

    fn of(mut user: User, flags: &str) -> Self {
        let neighbour = user.deploy("neighbour", "--image=$HELLO");
        let dir = user.homerun.root().join("layouts/broken");
        Layout::image(&dir, "broken").expect("a layout");
        let image = "us-central1-docker.pkg.dev/my-project/e2e/broken:latest";
        user.ok(&format!("homerun images import {} {image}", dir.display()));
        let url = user.deploy(
            "broken",
            &format!("--image={image} --command=/broken --args=serve {flags}"),
        );
        Self { user, url, neighbour }
    }

    #[track_caller]
    fn status(&mut self, path: &str) -> String {
        let url = &self.url;
        self.user.ok(&format!(
            "curl -o /dev/null -w '%{http_code}' '{url}{path}'",
            http_code = "{http_code}"
        ))
    }

    /// The neighbour answers, and the service answers again, from this instance.
    #[track_caller]
    fn both_serve(&mut self) -> String {
        let neighbour = self.neighbour.clone();
        self.user.get(&neighbour);
        let url = self.url.clone();
        self.user.get(&url)
    }
}

#[test]
fn instances_run_wild_and_the_next_request_is_served() {
    let mut pair = Pair::new("--memory=128Mi --concurrency=10");
    let mut before = pair.both_serve();
    let status = pair.status("/forks");
    assert!(["500", "503"].contains(&status.as_str()), "{status}");
    let after = pair.both_serve();
    assert_ne!(after, before, "another instance");
    before = after;

    // Files are memory: there is no more of them than that, and the program is told.
    let status = pair.status("/disk?mib=300");
    assert!(["500", "503"].contains(&status.as_str()), "{status}");
    before = if status == "503" { before } else { pair.both_serve() };
    assert_eq!(pair.both_serve(), before);

    // No HTTP is an error for this request only: the instance lives.
    assert_eq!(pair.status("/garbage"), "503");
    assert_eq!(pair.both_serve(), before, "the same instance");

    // One that takes no connections any more is still there, and nobody said that it should be watched.
    let shut = pair.status("/shut");
    assert!(["200", "503"].contains(&shut.as_str()), "{shut}");
    let url = pair.url.clone();
    let answer = pair
        .user
        .ok(&format!("curl -w ' %{{http_code}}' -H 'connection: close' '{url}'"));
    assert!(answer.ends_with(" 503") || answer.ends_with(" 200"), "{answer}");
    let neighbour = pair.neighbour.clone();
    pair.user.get(&neighbour);
    pair.user.leaves();
}

#[test]
fn a_killed_instance_costs_the_requests_it_had() {
    let mut pair = Pair::new("");
    let first = pair.both_serve();
    let url = pair.url.clone();
    let process = pair.user.ok("pgrep -f '^/broken serve$'");
    pair.user.ok(&format!(
        "curl -o /dev/null -w '%{{http_code}}' '{url}/sleep?ms=20000' > held & sleep 2"
    ));
    // Of this Homerun, by its own root: others may run the same program.
    let own: Vec<&str> = process.lines().filter(|pid| is_of(pid, &pair.user)).collect();
    let [own] = own[..] else {
        panic!("one process of ours in {process}")
    };
    pair.user.ok(&format!("kill -9 {own}"));
    assert_eq!(pair.user.ok("wait; cat held"), "503");
    assert_ne!(pair.both_serve(), first, "another instance");
    pair.user.leaves();
}

/// Whether a process is in the control groups of an instance of this Homerun.
fn is_of(pid: &str, user: &User) -> bool {
    let footprint = user.homerun.footprint().expect("looks");
    footprint.processes.iter().any(|(of, _)| of.to_string() == pid)
}

#[test]
fn bodies_over_the_limit_are_refused_and_hurt_nobody() {
    let mut pair = Pair::new("");
    pair.both_serve();
    let url = pair.url.clone();
    let neighbour = pair.neighbour.clone();
    let send = |mib: u32, how: &str| {
        format!(
            "head -c {mib}M /dev/zero | curl -o answer -w '%{{http_code}}' {how} --data-binary @- '{neighbour}/bytes?n=3'"
        )
    };
    assert_eq!(pair.user.ok(&send(40, "")), "413");
    assert_eq!(pair.user.ok(&send(31, "")), "200");
    // Of a length that nobody knows before its end, the limit comes in the middle.
    let status = pair.user.ok(&send(40, "-H 'transfer-encoding: chunked'"));
    assert_eq!(status, "413");
    pair.user.get(&url);
    pair.user.leaves();
}

const SMALL_DISK: &str = "HOMERUN_E2E_SMALL_DISK";

/// Runs this test again, alone, in a mount namespace of its own with a small disk for all its temporary files. Returns
/// that disk in the inner run.
#[track_caller]
fn on_a_small_disk(test: &str) -> Option<PathBuf> {
    if let Some(disk) = env::var_os(SMALL_DISK) {
        return Some(disk.into());
    }
    let disk = tempfile::TempDir::new().expect("a directory");
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!(
            "mount -t tmpfs -o size=64m homerun-e2e \"${SMALL_DISK}\" && TMPDIR=\"${SMALL_DISK}\" exec \"$@\""
        ))
        .arg("sh")
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(SMALL_DISK, disk.path())
        .stdin(Stdio::null())
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{test} ended with {status}");
    None
}

#[test]
fn a_full_disk_refuses_writes_and_serves_on() {
    let Some(disk) = on_a_small_disk("faults::a_full_disk_refuses_writes_and_serves_on") else {
        return;
    };
    let mut pair = Pair::new("");
    pair.both_serve();
    let full = disk.join("full");
    pair.user
        .refused(&format!("dd if=/dev/zero of={} bs=4k 2>&1", full.display()));

    let said = pair
        .user
        .refused("gcloud run services update broken $REGION --update-env-vars=A=1");
    assert!(said.contains("disk"), "{said}");
    for _ in 0..20 {
        pair.both_serve();
    }
    fs::remove_file(&full).expect("removed");
    pair.user
        .ok("gcloud run services update broken $REGION --update-env-vars=A=2");
    let shown = pair.user.describe("broken", "yaml");
    assert!(shown.contains("value: '2'"), "{shown}");
    pair.both_serve();
    pair.user.leaves();
}

#[test]
fn a_clock_that_jumps_moves_nothing_but_dates() {
    let library = faketime();
    let clock = tempfile::NamedTempFile::new().expect("a file");
    let set = |offset: &str| {
        let next = clock.path().with_extension("next");
        fs::write(&next, format!("{offset}\n")).expect("written");
        fs::rename(&next, clock.path()).expect("set");
        // It is read again once a second.
        thread::sleep(Duration::from_millis(1500));
    };
    fs::write(clock.path(), "+0\n").expect("written");
    let mut user = User::in_surroundings(&[], &variables_of(&library, clock.path()), Client::Homerun);
    let url = user.deploy("timely", "--image=$HELLO");
    for offset in ["+3d", "-3d", "+0"] {
        // With a request under way, from one time to the other.
        user.ok(&format!("curl --fail '{url}/sleep?ms=2500' >held & sleep 0.2"));
        set(offset);
        user.ok("wait; test -s held");
        user.get(&url);
        let began = Instant::now();
        while runs_something(&user) {
            assert!(began.elapsed() < Duration::from_secs(30), "not at zero at {offset}");
            thread::sleep(Duration::from_millis(100));
        }
        user.get(&url);
    }
    user.leaves();
}

/// Whether a container's own program runs. A parked sandbox is still the program that made it.
fn runs_something(user: &User) -> bool {
    let makers = [
        homerun_e2e::binary().expect("the binary"),
        PathBuf::from("/usr/bin/crun"),
    ];
    let footprint = user.homerun.footprint().expect("looks");
    footprint.processes.iter().any(|(pid, _)| {
        let program = fs::read_link(format!("/proc/{pid}/exe"));
        program.is_ok_and(|program| !makers.contains(&program))
    })
}

/// For a Homerun whose clock is what the file says.
pub(crate) fn variables_of<'a>(library: &'a Path, clock: &'a Path) -> [(&'a str, &'a str); 4] {
    [
        ("LD_PRELOAD", library.to_str().expect("a plain path")),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().expect("a plain path")),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
}

/// The library that moves the clock of the programs that it is loaded into.
pub(crate) fn faketime() -> PathBuf {
    let found = fs::read_dir("/usr/lib").expect("there").flatten().find_map(|entry| {
        let library = entry.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    found.expect("Debian's libfaketime: scripts/setup installs it")
}
