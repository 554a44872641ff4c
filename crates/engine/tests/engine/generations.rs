//! Where the two generations differ, and that they do.

use std::time::Duration;

use model::{ExitCause, InstanceState, Sandbox};
use tokio::time::Instant;

use crate::lab::{Lab, Recipe, guest};

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_from_inside() {
    let mut lab = Lab::open().await;
    let mut ids = Vec::new();
    for sandbox in [Sandbox::Gen1, Sandbox::Gen2] {
        let mut spec = lab.spec(&[]);
        spec.sandbox = sandbox;
        ids.push(lab.ready(spec).await);
    }
    let machine = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let machine = machine.trim();
    // The question; what the first generation's answer must have, and what the second's; the other never has it.
    for (question, first, second) in [
        // Whose kernel it is.
        ("/read/proc/version", "Linux version 4.4.0 ", machine),
        ("/syslog", "Starting gVisor", "error: Operation not permitted"),
        // /proc: gVisor's own part; the ids of the machine are nowhere in it.
        ("/list/proc", "sentry-meminfo", "kallsyms"),
        ("/read/proc/self/uid_map", "4294967295", " 65536"),
        ("/read/proc/self/status", "Seccomp:\t0\n", "Seccomp:\t2\n"),
        // /dev/shm: a directory of /dev, or a file system of its own, as large as the memory.
        ("/read/proc/self/mounts", " / 9p ", " /dev/shm tmpfs rw,"),
        // mmap: to gVisor every page of a mapping is there.
        ("/untouched", "0 1", "0 0"),
    ] {
        let (of_first, of_second) = (lab.text(&ids[0], question).await, lab.text(&ids[1], question).await);
        assert!(
            of_first.contains(first) && !of_first.contains(second),
            "{question}: {of_first}"
        );
        assert!(
            of_second.contains(second) && !of_second.contains(first),
            "{question}: {of_second}"
        );
    }
    lab.close().await;
}

/// The first process of a Linux cannot be ended by a signal that it does not wait for; gVisor knows no such rule.
#[tokio::test(flavor = "multi_thread")]
async fn untrapped_sigterm_ends_the_first_generation_at_once() {
    let mut lab = Lab::open().await;
    let grace = Duration::from_secs(5);
    for (sandbox, at_once) in [(Sandbox::Gen1, true), (Sandbox::Gen2, false)] {
        let mut spec = lab.spec(&[]);
        spec.sandbox = sandbox;
        let id = lab.ready(spec).await;
        let begin = Instant::now();
        lab.engine.stop(&id, grace).await.expect("known");
        assert_eq!(lab.exit(&id).await.cause, ExitCause::Stopped);
        assert_eq!(begin.elapsed() < grace, at_once, "{sandbox:?}: {:?}", begin.elapsed());
    }
    lab.close().await;
}

/// Nothing of runsc has a privilege on the machine, or a file of it but its own program and three devices.
#[tokio::test(flavor = "multi_thread")]
async fn runsc_is_nobody_in_an_empty_room() {
    let mut lab = Lab::open().await;
    let mut spec = lab.spec(&[]);
    spec.sandbox = Sandbox::Gen1;
    let id = lab.ready(spec).await;
    let own = std::fs::read_link("/proc/self/ns/user").expect("a namespace");
    let procs = format!("/sys/fs/cgroup/memory/homerun-{}/{id}/cgroup.procs", lab.id8);
    let procs = std::fs::read_to_string(procs).expect("a group");
    let mut names = Vec::new();
    for pid in procs.lines() {
        let of = |name: &str| format!("/proc/{pid}/{name}");
        let status = std::fs::read_to_string(of("status")).expect("a status");
        let uid = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:\t"))
            .expect("an id");
        let uid: u32 = uid.split('\t').next().expect("a number").parse().expect("a number");
        assert!(uid >= homerun_engine::FIRST_ID, "{status}");
        assert_ne!(std::fs::read_link(of("ns/user")).expect("a namespace"), own);
        for mount in std::fs::read_to_string(of("mountinfo")).expect("mounts").lines() {
            let point = mount.split(' ').nth(4).expect("a mount point");
            let known = [
                "/merged",
                "/sys/fs/cgroup",
                "/proc",
                "/tmp",
                "/groups",
                "/runsc",
                "/dev/null",
                "/dev/zero",
                "/dev/urandom",
            ];
            let layer = point.strip_prefix("/l").is_some_and(|rest| rest.parse::<u32>().is_ok());
            let fine = point == "/" || layer || known.iter().any(|known| point.starts_with(known));
            assert!(fine, "{mount}");
        }
        let words = std::fs::read(of("cmdline")).expect("a command line");
        let name = String::from_utf8_lossy(words.split(|b| *b == 0).next().expect("a word")).into_owned();
        names.push(name);
    }
    for name in ["runsc-sandbox", "runsc-gofer"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
    lab.close().await;
}

/// Each of them, killed, ends the instance and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_part_of_runsc_ends_the_instance() {
    let mut lab = Lab::open().await;
    for part in ["runsc-sandbox", "homerun-keeper"] {
        let mut spec = lab.spec(&[]);
        spec.sandbox = Sandbox::Gen1;
        let id = lab.ready(spec).await;
        let group = format!("/sys/fs/cgroup/memory/homerun-{}/{id}/cgroup.procs", lab.id8);
        let procs = std::fs::read_to_string(group).expect("a group");
        let victim = procs.lines().find(|pid| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            read("cmdline").starts_with(part) || read("comm").trim() == &part[..part.len().min(15)]
        });
        let victim = victim.expect("there");
        let status = std::process::Command::new("kill").args(["-9", victim]).status();
        assert!(status.expect("kill runs").success());
        let exit = lab.exit(&id).await;
        assert_eq!((exit.cause, exit.was_ready), (ExitCause::Signal(9), true), "{part}");
    }
    // And the next one runs.
    let mut spec = lab.spec(&[]);
    spec.sandbox = Sandbox::Gen1;
    let id = lab.start(spec).await;
    lab.until(&id, |state| *state == InstanceState::Ready).await;
    lab.close().await;
}

/// However it hangs, the instance fails in time, others do not wait for it, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_hung_runsc_is_given_up() {
    let place = tempfile::tempdir().expect("a directory");
    std::fs::copy(guest(), place.path().join("runsc")).expect("copied");
    let mut lab = Lab::with_gvisor(Recipe::default(), place.path().as_os_str()).await;
    let mut hung = Vec::new();
    let mut plain = Vec::new();
    // All at once: what is made beside one that hangs must not leave a file with it.
    for words in ["hang at create", "hang at start", "hang at create", "hang at start"] {
        let mut spec = lab.spec(&[words]);
        spec.sandbox = Sandbox::Gen1;
        // More patient than anybody is with runsc.
        spec.container.startup_probe = None;
        for _ in 0..3 {
            plain.push(lab.start(lab.spec(&[])).await);
        }
        hung.push(lab.start(spec).await);
    }
    for id in &plain {
        lab.until(id, |state| *state == InstanceState::Ready).await;
        assert_eq!(lab.text(id, "/").await, "ok");
    }
    let both = |lab: &Lab| {
        let observed = lab.observed.borrow();
        hung.iter()
            .all(|id| observed.instances[id].state == InstanceState::Starting)
    };
    assert!(
        both(&lab),
        "one of them has ended before all of the other kind were served"
    );
    for id in &hung {
        let exit = lab.exit(id).await;
        let ExitCause::NotStarted(why) = exit.cause else {
            panic!("{:?}", exit.cause);
        };
        assert!(why.contains("in time"), "{why}");
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_runsc_is_named_with_what_brings_it() {
    let mut lab = Lab::with_gvisor(Recipe::default(), "/nowhere".as_ref()).await;
    let mut spec = lab.spec(&[]);
    spec.sandbox = Sandbox::Gen1;
    let id = lab.start(spec).await;
    let ExitCause::NotStarted(why) = lab.exit(&id).await.cause else {
        panic!("it started");
    };
    assert!(why.contains("apt-get install --yes runsc"), "{why}");
    lab.close().await;
}
