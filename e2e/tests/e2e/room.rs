//! A machine without room for another instance: what the caller reads, and what the owner is told.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Layout, User};

use crate::apart;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_machine_without_memory_says_so() {
    apart::run("room::without_memory", &[]);
}

#[test]
fn an_instance_that_needs_more_than_is_left_waits() {
    apart::run("room::without_enough", &[]);
}

/// What Homerun reads as `/proc/meminfo`.
struct Machine<'a> {
    file: &'a Path,
    text: String,
}

impl<'a> Machine<'a> {
    /// The real one, in `file` from now on.
    fn take(file: &'a Path) -> Self {
        let text = fs::read_to_string("/proc/meminfo").expect("read");
        fs::write(file, &text).expect("written");
        // Sandboxes get a /proc of their own only where one is to be seen that nothing covers.
        apart::sh(&format!(
            "mount -t proc proc /mnt; mount --bind {} /proc/meminfo",
            file.display()
        ));
        Self { file, text }
    }

    /// Says that it has so much memory from now on.
    fn is_of(&mut self, total_kib: u64) {
        self.text = self.with("MemTotal:", total_kib);
    }

    /// Says that so much is available, or what was true when it was taken. In place, so that there is never less to read.
    fn has(&self, available_kib: Option<u64>) {
        let said = available_kib.map_or(self.text.clone(), |kib| self.with("MemAvailable:", kib));
        let mut file = File::options().write(true).open(self.file).expect("opened");
        file.write_all(said.as_bytes()).expect("written");
    }

    /// All of it, with another number behind a name.
    fn with(&self, name: &str, kib: u64) -> String {
        let line = self.text.lines().find(|line| line.starts_with(name));
        let line = line.expect("every Linux has it");
        let width = line.len() - name.len() - " kB".len();
        self.text.replace(line, &format!("{name}{kib:>width$} kB"))
    }
}

#[test]
#[ignore = "run by a_machine_without_memory_says_so with mounts of its own"]
fn without_memory() {
    if !apart::is_here() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("meminfo");
    let machine = Machine::take(&file);
    let mut user = User::with(&["--parked=0"], Client::Homerun);
    let url = user.deploy("full", "--image=$HELLO");
    user.get(&url);

    // Less than the reserve of any machine.
    machine.has(Some(64 << 10));
    let begin = Instant::now();
    while !user.homerun.footprint().expect("looks").instances.is_empty() {
        assert!(begin.elapsed() < PATIENCE, "the idle instance stays");
        thread::sleep(Duration::from_millis(100));
    }
    let said = user.ok(&format!("curl -w '\\n%{{http_code}}' '{url}'"));
    assert!(
        said.contains("This machine has no room for another one.") && said.ends_with("\n429"),
        "{said}"
    );
    let why = user.ok("gcloud run services why-scaled full $REGION");
    let held = why.lines().find(|line| line.contains("1 start held"));
    assert!(
        held.is_some_and(|line| line.contains("pressure") && line.contains("memory is scarce")),
        "{why}"
    );

    machine.has(None);
    user.get(&url);
    user.leaves();
}

#[test]
#[ignore = "run by an_instance_that_needs_more_than_is_left_waits with mounts of its own"]
fn without_enough() {
    if !apart::is_here() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("meminfo");
    let mut machine = Machine::take(&file);
    // Of 2 GiB 128 MiB are the reserve, and less than twice that is pressure.
    machine.is_of(2 << 20);
    machine.has(Some(1500 << 10));
    let mut user = User::with(&["--parked=0", "--idle-retention", "1m"], Client::Homerun);
    let dir = user.homerun.root().join("layouts/broken");
    Layout::image(&dir, "broken").expect("a layout");
    let image = "us-central1-docker.pkg.dev/my-project/e2e/broken:latest";
    user.ok(&format!("homerun images import {} {image}", dir.display()));
    let url = user.deploy(
        "large",
        &format!("--image={image} --command=/broken --args=hog,200 --concurrency=1 --max-instances=2"),
    );
    let first = user.get(&url);
    // Control reads what an instance takes once a second.
    thread::sleep(Duration::from_millis(2500));

    machine.has(Some(300 << 10));
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(user.get(&url), first, "it stays: memory is not pressed");
    user.ok(&format!("curl '{url}/sleep?ms=30000' > held & HELD=$!; sleep 0.5"));
    let said = user.ok(&format!("curl -w '\\n%{{http_code}} %{{time_total}}' '{url}'"));
    let (status, took) = said
        .lines()
        .last()
        .and_then(|line| line.split_once(' '))
        .expect("two words");
    assert!(
        said.contains("This machine has no room for another one.") && status == "429",
        "{said}"
    );
    let took: f64 = took.parse().expect("seconds");
    assert!((9.0..20.0).contains(&took), "it waited first: {said}");
    let why = user.ok("gcloud run services why-scaled large $REGION");
    let held = why.lines().find(|line| line.contains("1 start held"));
    let held = held.unwrap_or_else(|| panic!("{why}"));
    for words in [
        "another instance needs 2",
        "of 300 MiB",
        "128 MiB are kept back",
        "availableMib=300",
    ] {
        assert!(held.contains(words), "{why}");
    }
    // The record of the request names what is missing.
    user.ok(
        "until cat $DATA_DIR/log/*.jsonl | grep -F 'not enough memory is left for the 2' | grep -q '\"status\":429'; \
         do sleep 0.1; done",
    );

    // With room while it waits it is answered.
    user.ok(&format!("curl '{url}' > waited & WAITED=$!; sleep 1; kill -0 $WAITED"));
    machine.has(Some(1500 << 10));
    let second = user.ok("wait $WAITED; cat waited");
    assert_ne!(second, first);
    assert_eq!(user.ok("wait $HELD; cat held"), first);
    user.leaves();
}
