//! A machine without room for another instance: what the caller reads, and what the owner is told.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, User};

use crate::apart;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_machine_without_memory_says_so() {
    apart::run("room::without_memory", &[]);
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

    /// Says that so much is available, or what was true when it was taken. In place, so that there is never less to read.
    fn has(&self, available_kib: Option<u64>) {
        let line = self.text.lines().find(|line| line.starts_with("MemAvailable:"));
        let line = line.expect("every Linux has it");
        let said = available_kib.map_or(line.to_owned(), |kib| {
            let width = line.len() - "MemAvailable: kB".len();
            format!("MemAvailable:{kib:>width$} kB")
        });
        let mut file = File::options().write(true).open(self.file).expect("opened");
        file.write_all(self.text.replace(line, &said).as_bytes())
            .expect("written");
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
