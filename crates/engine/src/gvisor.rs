//! The first generation: an instance whose kernel is gVisor's, a program, and not the machine's.
//!
//! ```text
//! launcher ── create (short-lived) ── keeper ─┬─ runsc-gofer    opens the image's files
//!                                             └─ runsc-sandbox  the instance's kernel; its programs are traced by it
//! ```
//!
//! What holds the wall, from the inside out. System calls of the instance's programs are answered by runsc-sandbox, a Go
//! program that lets none through to the machine. It is confined itself: by seccomp filters of its own, in an empty
//! root, without any privilege on the machine, since it and everything else of runsc runs as the instance's range of user
//! ids in a user namespace of that range. What it could break out to is the keeper's small room (`keeper`): process
//! ids, mounts and a network of its own, and no file of the machine but runsc's program and three devices. Groups and
//! their limits are made by us, and every process of it is born inside them; runsc is told to leave them alone. Its
//! network is that of the machine's kernel, but in a namespace that holds only the instance, because releases from before
//! 2023 have no other that works here; the namespace belongs to the machine, so nothing inside may change it.
//!
//! runsc is found when it is needed first: of all in `PATH` the newest, with the best platform that works on this
//! machine (systrap, else ptrace; KVM is not tried). No call of it goes without a deadline.

mod bundle;
mod keeper;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    bundle::configuration,
    keeper::{Making, NOT_STARTED, create},
};
use crate::{Finding, Inner, wire::End};

/// What mends a machine without it.
pub(crate) const REMEDY: &str = "apt-get install --yes runsc";

/// How long a question to runsc may take that starts nothing.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a sandbox that does nothing may take, to be taken for one that works.
const TRIAL_PATIENCE: Duration = Duration::from_secs(20);

/// How system calls of an instance reach gVisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Platform {
    /// By signals of a seccomp filter: releases from 2023 on.
    Systrap,
    /// By ptrace(2): every release, slower.
    Ptrace,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Systrap => "systrap",
            Self::Ptrace => "ptrace",
        })
    }
}

/// A runsc that works on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gvisor {
    pub(crate) program: PathBuf,
    /// As it tells it: `0.0~20221219.0` or `release-20240807.0`.
    pub(crate) version: String,
    pub(crate) platform: Platform,
    /// Options of this release that older or newer ones may not have.
    pub(crate) options: Vec<String>,
}

/// Why no instance of the first generation can run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    #[error("the first generation (gen1) needs gVisor, and there is no runsc in PATH: {REMEDY}")]
    Missing,
    #[error("{} does not answer", program.display())]
    Silent {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("runsc {version} ({}) starts no sandbox on this machine: {}", program.display(), said.join("; "))]
    NothingWorks {
        program: PathBuf,
        version: String,
        /// What it said on each platform.
        said: Vec<String>,
    },
}

/// Looks for runsc in the directories of `path`, and tries it. Starts some processes, and leaves nothing.
pub(crate) fn find(path: &OsStr) -> Result<Gvisor, FindError> {
    let mut newest: Option<(u32, PathBuf, String)> = None;
    let mut silent = None;
    for program in programs(path) {
        match answer(Command::new(&program).arg("--version"), ANSWER_PATIENCE) {
            Ok(text) => {
                let version = version(&text).unwrap_or_else(|| "of an unknown version".to_owned());
                let day = day(&version);
                if newest.as_ref().is_none_or(|(newest, ..)| day > *newest) {
                    newest = Some((day, program, version));
                }
            }
            Err(source) => silent = Some(FindError::Silent { program, source }),
        }
    }
    let Some((_, program, version)) = newest else {
        return Err(silent.unwrap_or(FindError::Missing));
    };
    let ask = |words: &[&str]| {
        answer(Command::new(&program).args(words), ANSWER_PATIENCE).map_err(|source| FindError::Silent {
            program: program.clone(),
            source,
        })
    };
    let known = ask(&["help", "platforms"])?;
    let known: BTreeSet<&str> = known.split_whitespace().collect();
    let options = options(&ask(&["flags"])?);
    let mut said = Vec::new();
    for platform in [Platform::Systrap, Platform::Ptrace] {
        if !known.contains(platform.to_string().as_str()) {
            continue;
        }
        match trial(&program, platform) {
            Ok(()) => {
                return Ok(Gvisor {
                    program,
                    version,
                    platform,
                    options,
                });
            }
            Err(error) => said.push(format!("{platform}: {error}")),
        }
    }
    if said.is_empty() {
        said.push("it knows neither systrap nor ptrace".to_owned());
    }
    Err(FindError::NothingWorks { program, version, said })
}

/// What runs instances of the first generation on this machine, in one line; or what is missing, which is no fault of a
/// machine that needs only the second. Starts some processes, and leaves nothing.
pub fn first_generation() -> Result<String, Finding> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match find(&path) {
        Ok(Gvisor {
            program,
            version,
            platform,
            ..
        }) => Ok(format!("gVisor {version} ({}), platform {platform}", program.display())),
        Err(error) => Err(Finding {
            problem: model::with_causes(&error),
            remedy: REMEDY.to_owned(),
        }),
    }
}

impl Inner {
    /// The runsc of this machine, looked for when it is needed first, and again while there is none.
    pub(crate) async fn gvisor(&self) -> Result<Gvisor, String> {
        let found = self.gvisor.get_or_try_init(|| async {
            let path = self.gvisor_path.clone();
            let found = tokio::task::spawn_blocking(move || find(&path)).await;
            let found = found.map_err(|error| format!("looking for runsc failed: {error}"))?;
            let found = found.map_err(|error| model::with_causes(&error))?;
            let (program, version, platform) = (found.program.display(), &found.version, found.platform);
            tracing::info!(%program, version, %platform, "found what runs the first generation");
            Ok::<_, String>(found)
        });
        found.await.cloned()
    }
}

/// Every runsc, in the order of `path`, each file once.
fn programs(path: &OsStr) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in std::env::split_paths(path) {
        let program = crate::doctor::program(&directory.join("runsc"));
        if let Some(program) = program.and_then(|program| program.canonicalize().ok())
            && !found.contains(&program)
        {
            found.push(program);
        }
    }
    found
}

/// From `runsc version release-20240807.0` and a line about the specification.
fn version(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("runsc version "))?;
    Some(line.trim().to_owned())
}

/// The day of a release as a number, 20240807; 0 when none is in it.
fn day(version: &str) -> u32 {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    numbers
        .find(|digits| digits.len() == 8)
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// What of its flags is wanted where it exists: an own overlay would hide what the instance writes from its limits, and
/// its own view of control groups is what language runtimes look for.
fn options(flags: &str) -> Vec<String> {
    let known = |name: &str| {
        flags.lines().any(|line| {
            let flag = line.trim_start().strip_prefix('-').unwrap_or_default();
            flag.split_whitespace().next() == Some(name)
        })
    };
    let wanted = [("overlay2", "--overlay2=none"), ("cgroupfs", "--cgroupfs")];
    let wanted = wanted.into_iter().filter(|(name, _)| known(name));
    wanted.map(|(_, option)| option.to_owned()).collect()
}

/// Starts a sandbox that does nothing. All of it is in a namespace of process ids that ends with its first process.
fn trial(program: &Path, platform: Platform) -> io::Result<()> {
    let state = Scratch::new()?;
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program)
        .arg("--root")
        .arg(&state.0)
        .arg(format!("--platform={platform}"))
        .args(["--network=none", "--ignore-cgroups", "do", "true"]);
    answer(&mut command, TRIAL_PATIENCE).map(drop)
}

/// An empty directory for one trial.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let name = format!("homerun-runsc-{}-{:?}", std::process::id(), std::thread::current().id());
        let name: String = name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a program that ends by itself; returns what it wrote. One that is late is killed, which is an error, as is one
/// that fails.
fn answer(command: &mut Command, patience: Duration) -> io::Result<String> {
    let name = command.get_program().to_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let until = Instant::now() + patience;
    // What is asked for is shorter than what a pipe holds.
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} took longer than {} s", name.display(), patience.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    for pipe in [child.stdout.take().map(drain), child.stderr.take().map(drain)] {
        text.push_str(&pipe.transpose()?.unwrap_or_default());
    }
    if status.success() {
        return Ok(text);
    }
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    Err(io::Error::other(match last {
        Some(last) => format!("{status}: {}", last.trim()),
        None => status.to_string(),
    }))
}

/// What a program left in its pipe; a grandchild that still holds the other end is not waited for.
fn drain(pipe: impl Into<std::os::fd::OwnedFd>) -> io::Result<String> {
    let pipe = pipe.into();
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(&pipe, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::WOULDBLOCK) => break,
            Ok(length) => bytes.extend(&buffer[..length]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How the instance's first process ended, from how its keeper did: gVisor tells a signal as a shell does.
pub(crate) fn end(keeper: End) -> End {
    match keeper {
        End::Code(code @ 129..=159) => End::Signal(code - 128),
        End::Code(_) | End::Signal(_) => keeper,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn versions_and_their_days() {
        for (text, told, number) in [
            (
                "runsc version 0.0~20221219.0\nspec: 1.0.2-dev\n",
                "0.0~20221219.0",
                20_221_219,
            ),
            (
                "runsc version release-20240807.0\nspec: 1.1.0\n",
                "release-20240807.0",
                20_240_807,
            ),
            ("runsc version VERSION_MISSING\n", "VERSION_MISSING", 0),
        ] {
            assert_eq!(version(text).as_deref(), Some(told));
            assert_eq!(day(told), number);
        }
        assert_eq!(version("bash: runsc: not found"), None);
    }

    #[test]
    fn only_options_that_a_release_has_are_given() {
        let of_2022 = "  -cgroupfs\n    \tAutomatically mount cgroupfs.\n  -overlay2 value\n    \twrap mounts\n";
        assert_eq!(options(of_2022), ["--overlay2=none", "--cgroupfs"]);
        assert_eq!(options("  -overlay\n    \tcgroupfs is not a flag here\n"), [""; 0]);
    }

    #[test]
    fn codes_above_128_are_signals() {
        assert_eq!(end(End::Code(3)), End::Code(3));
        assert_eq!(end(End::Code(128)), End::Code(128));
        assert_eq!(end(End::Code(143)), End::Signal(15));
        assert_eq!(end(End::Code(255)), End::Code(255));
        assert_eq!(end(End::Signal(9)), End::Signal(9));
    }

    /// A program that answers as a runsc of a version would, with platforms of which some work.
    fn fake(directory: &Path, version: &str, platforms: &[&str], working: &str) {
        fs::create_dir_all(directory).expect("made");
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in\n--version) echo runsc version {version};;\n\"help platforms\") echo {};;\n\
             flags) echo '  -overlay2 value';;\n*--platform={working}*do*) exit 0;;\n\
             *) echo this platform does not work >&2; exit 1;;\nesac\n",
            platforms.join("; echo ")
        );
        let program = directory.join("runsc");
        fs::write(&program, text).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    #[test]
    fn the_newest_with_the_best_platform_that_works_is_chosen() {
        let place = tempfile::tempdir().expect("a directory");
        let (old, new, empty) = (
            place.path().join("old"),
            place.path().join("new"),
            place.path().join("none"),
        );
        let path = std::env::join_paths([&empty, &old, &new]).expect("a path");
        assert!(matches!(find(&path), Err(FindError::Missing)));
        assert!(FindError::Missing.to_string().contains("apt-get install --yes runsc"));

        fake(&old, "0.0~20221219.0", &["kvm", "ptrace"], "ptrace");
        let found = find(&path).expect("works");
        assert_eq!(
            (found.version.as_str(), found.platform),
            ("0.0~20221219.0", Platform::Ptrace)
        );
        assert_eq!(found.options, ["--overlay2=none"]);

        fake(&new, "release-20240807.0", &["kvm", "ptrace", "systrap"], "systrap");
        let found = find(&path).expect("works");
        assert_eq!(
            (found.version.as_str(), found.platform),
            ("release-20240807.0", Platform::Systrap)
        );
        assert_eq!(found.program, new.join("runsc"));

        // The better platform does not work on this machine.
        fake(&new, "release-20240807.0", &["systrap", "ptrace"], "ptrace");
        assert_eq!(find(&path).expect("works").platform, Platform::Ptrace);

        fake(&new, "release-20240807.0", &["systrap", "ptrace"], "kvm");
        let error = find(&path).expect_err("nothing works").to_string();
        assert!(
            error.contains("release-20240807.0") && error.contains("systrap: ") && error.contains("does not work"),
            "{error}"
        );
    }

    #[test]
    fn a_late_answer_is_an_error_and_nothing_stays() {
        let begin = Instant::now();
        let late = answer(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert_eq!(late.expect_err("late").kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
