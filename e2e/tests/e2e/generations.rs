//! The execution environments: which one a revision runs in, who says so, and what is told on a machine without gVisor.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use homerun_e2e::{Client, User, binary};

const ANNOTATION: &str = "run.googleapis.com/execution-environment";

/// `/proc/version` as the revision's instance reads it, and what describe says.
fn kernel(user: &mut User, service: &str, image: &str, flags: &str) -> (String, String) {
    let url = user.deploy(service, &format!("--image={image} {flags}"));
    let kernel = user.get(&format!("{url}/read/proc/version"));
    let revision = user.describe(service, "value(status.latestReadyRevisionName)");
    let shown = user.ok(&format!(
        "gcloud run revisions describe {revision} $REGION --format=yaml"
    ));
    let shown = shown
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{ANNOTATION}: ")));
    (kernel, shown.unwrap_or_default().to_owned())
}

#[test]
fn unset_is_what_the_configuration_says_and_named_is_what_was_named() {
    let mut user = User::with(&["--default-execution-environment", "gen1"], Client::Homerun);
    let image = user.import_probe("probe");
    let (unset, shown) = kernel(&mut user, "unset", &image, "");
    assert!(unset.contains("Linux version 4.4.0 "), "{unset}");
    assert_eq!(shown, "gen1");
    let (second, shown) = kernel(&mut user, "second", &image, "--execution-environment=gen2");
    let machine = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert!(second.contains(machine.trim()), "{second}");
    assert_eq!(shown, "gen2");
    user.leaves();
}

#[test]
fn googles_gcloud_names_the_first_generation() {
    let mut user = User::with(&[], Client::Google);
    let image = user.import_probe("probe");
    let (first, shown) = kernel(
        &mut user,
        "first",
        &image,
        "--execution-environment=gen1 --cpu=0.5 --memory=128Mi --concurrency=1",
    );
    assert!(first.contains("Linux version 4.4.0 "), "{first}");
    assert_eq!(shown, "gen1");
    let told = user.ok("gcloud run services describe first $REGION");
    assert!(told.contains("First Generation"), "{told}");
    user.leaves();
}

/// A directory with every program of this machine but runsc.
fn without_runsc(place: &Path) -> String {
    let programs = place.join("programs");
    fs::create_dir(&programs).expect("made");
    let path = std::env::var_os("PATH").expect("a path");
    let sbin = [Path::new("/usr/sbin").to_owned(), Path::new("/sbin").to_owned()];
    for directory in std::env::split_paths(&path).chain(sbin) {
        for program in fs::read_dir(directory).into_iter().flatten().flatten() {
            if program.file_name() != "runsc" {
                // The first of a name is the one that counts.
                let _ = symlink(program.path(), programs.join(program.file_name()));
            }
        }
    }
    programs.to_str().expect("text").to_owned()
}

#[test]
fn without_runsc_the_first_generation_says_how_to_get_it() {
    let remedy = "apt-get install --yes runsc";
    let place = tempfile::tempdir().expect("a directory");
    let path = without_runsc(place.path());
    let mut user = User::in_surroundings(&[], &[("PATH", &path)], Client::Homerun);
    let said = user.refused("gcloud run deploy first --image=$HELLO $REGION --execution-environment=gen1 --quiet");
    assert!(said.contains("gen1") && said.contains(remedy), "{said}");
    let url = user.deploy("second", "--image=$HELLO --execution-environment=gen2");
    assert!(user.get(&url).contains("\"service\""));
    user.leaves();

    let run = |words: &[&str], path: Option<&str>| {
        let mut command = Command::new(binary().expect("built"));
        command.args(words).env_remove("HOMERUN_CONFIG");
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let output = command.output().expect("runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    // Nothing that a machine must have.
    let (status, text) = run(&["doctor"], Some(&path));
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("no runsc in PATH") && text.contains(remedy), "{text}");
    let (status, text) = run(&["doctor"], None);
    assert_eq!(status, Some(0), "{text}");
    let line = text.lines().find(|line| line.starts_with("gen1 "));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("gVisor") && line.contains("/runsc") && line.contains("platform "),
        "{line}"
    );
    // But by default for all, it must.
    let data = place.path().join("data");
    let flags = ["up", "--default-execution-environment=gen1", "--data-dir"];
    let (status, text) = run(&[&flags[..], &[data.to_str().expect("text")]].concat(), Some(&path));
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains(remedy) && !data.exists(), "{text}");
}
