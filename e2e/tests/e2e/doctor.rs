//! What `homerun doctor` says of a machine, and that its remedies mend it.

use std::process::Command;

use homerun_e2e::binary;

use crate::apart;

/// What the doctor says, and whether it finds the machine fit.
fn doctor() -> (bool, String) {
    let output = Command::new(binary().expect("built"))
        .arg("doctor")
        .output()
        .expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout).expect("text");
    (output.status.success(), text)
}

/// The remedy of the one line that begins so, and the whole line.
#[track_caller]
fn told<'a>(text: &'a str, kind: &str) -> (&'a str, &'a str) {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(kind));
    let line = lines.next().unwrap_or_else(|| panic!("no {kind} in {text}"));
    let mend = lines.next().and_then(|next| next.strip_prefix("  mend   "));
    assert!(!lines.any(|more| more.starts_with(kind)), "{text}");
    (line, mend.unwrap_or_else(|| panic!("no remedy in {text}")))
}

#[test]
fn a_machine_without_tools_lacks_them() {
    let output = Command::new(binary().expect("built"))
        .arg("doctor")
        .env_clear()
        .env("PATH", "/nonexistent")
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("crun") && text.contains("mend"), "{text}");
}

#[test]
fn what_covers_proc_and_sys_is_named() {
    apart::run("doctor::covered", &[]);
}

#[test]
#[ignore = "run by what_covers_proc_and_sys_is_named with mounts of its own"]
fn covered() {
    if !apart::is_here() {
        return;
    }
    for (file, at) in [("/proc/uptime", "/proc"), ("/sys/devices/system/cpu/online", "/sys")] {
        assert!(doctor().0, "{}", doctor().1);
        let place = tempfile::NamedTempFile::new().expect("a file");
        apart::sh(&format!("mount --bind {} {file}", place.path().display()));
        let (is_fit, text) = doctor();
        let (line, mend) = told(&text, "lacking");
        assert!(
            !is_fit && line.contains(at) && line.ends_with(&format!("over {file}")),
            "{text}"
        );
        // The server does not begin what would fail.
        let data = tempfile::tempdir().expect("a directory");
        let up = Command::new("timeout")
            .args(["--signal=TERM", "20"])
            .arg(binary().expect("built"))
            .args(["up", "--api=127.0.0.1:0", "--http=127.0.0.1:0", "--https=127.0.0.1:0"])
            .arg(format!("--data-dir={}", data.path().join("data").display()))
            .output()
            .expect("timeout is a command");
        let said = String::from_utf8_lossy(&up.stderr);
        assert!(up.status.code() == Some(1) && said.contains(mend), "{said}");
        // Each of the two ways.
        let (first, second) = mend.split_once(", or leave that and run: ").expect("two ways");
        apart::sh("mount -t tmpfs tmpfs /run");
        apart::sh(second);
        assert!(doctor().0, "{}", doctor().1);
        apart::sh("umount --recursive /run");
        assert!(!doctor().0, "{}", doctor().1);
        apart::sh(first);
    }
}

#[test]
fn a_run_directory_on_a_disk_is_as_good_as_any() {
    apart::run("doctor::on_a_disk", &[]);
}

#[test]
#[ignore = "run by a_run_directory_on_a_disk_is_as_good_as_any with mounts of its own"]
fn on_a_disk() {
    if !apart::is_here() {
        return;
    }
    // In memory, it is fine, and nothing else is said.
    apart::sh("mount -t tmpfs tmpfs /run");
    let (is_fit, fine) = doctor();
    let mut lines = fine.lines();
    assert!(is_fit, "{fine}");
    assert!(
        lines.next().is_some_and(|line| line.starts_with("gen1     gVisor ")),
        "{fine}"
    );
    assert!(
        lines.next().is_some_and(|line| line.starts_with("builds   /")),
        "{fine}"
    );
    assert_eq!(lines.next(), Some("fine     this machine has all that Homerun needs"));
    assert_eq!(lines.next(), None);
    // Not what is in memory by its kind: what must not lie on a disk is mounted there as memory.
    apart::sh(
        "mkdir /run/lower /run/upper /run/work /run/homerun; \
         mount -t overlay overlay -o lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work /run/homerun",
    );
    assert_eq!(doctor(), (true, fine));
}
