//! Tests that change what a machine has only once, each in a part of it that is theirs alone.

use std::process::Command;

/// Set for the tests that run apart.
const APART: &str = "HOMERUN_TEST_APART";

/// Runs an ignored test of this program below `unshare`, with a mount namespace of its own and what `more` says.
#[track_caller]
pub(crate) fn run(test: &str, more: &[&str]) {
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(more)
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(APART, "1")
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// False for an ignored test that somebody runs by itself.
pub(crate) fn is_here() -> bool {
    std::env::var_os(APART).is_some()
}

/// Runs a command that must succeed.
#[track_caller]
pub(crate) fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().expect("a shell");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
