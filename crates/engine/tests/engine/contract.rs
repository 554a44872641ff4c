//! The container runtime contract, asked from the inside. Both generations have to keep it.

use std::time::Duration;

use model::{ExitCause, InstanceSpec, InstanceState, ResolvedVar, Sandbox, Stream};
use serde_json::json;
use tokio::time::Instant;

use crate::lab::{Lab, PORT, Recipe};

/// One check as two tests, by the names of the generations.
macro_rules! in_both {
    ($($check:ident),* $(,)?) => {
        $(mod $check {
            use model::Sandbox;

            #[tokio::test(flavor = "multi_thread")]
            async fn gen1() {
                super::check::$check(Sandbox::Gen1).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn gen2() {
                super::check::$check(Sandbox::Gen2).await;
            }
        })*
    };
}

in_both!(
    surroundings,
    the_images_user_and_directory,
    exit_codes_and_signals,
    memory_that_is_too_much,
    sigterm_and_its_grace,
    throttled_and_parked,
    what_cannot_start,
);

fn of(lab: &Lab, sandbox: Sandbox, arguments: &[&str]) -> InstanceSpec {
    let mut spec = lab.spec(arguments);
    spec.sandbox = sandbox;
    spec
}

mod check {
    use super::*;

    /// Environment, files and devices, limits, what may be written and what may not.
    pub(super) async fn surroundings(sandbox: Sandbox) {
        let mut lab = Lab::open().await;
        let mut spec = of(&lab, sandbox, &[]);
        let more = ["FROM=spec", "TWICE=1", "TWICE=2"].map(|pair| {
            let (name, value) = pair.split_once('=').expect("a pair");
            ResolvedVar {
                name: name.to_owned(),
                value: value.to_owned(),
            }
        });
        spec.container.env.extend(more);
        spec.container.cpu_millis = 500;
        // Ready means that who listens on 0.0.0.0 is reached.
        let id = lab.ready(spec).await;

        let environment = lab.text(&id, "/env").await;
        let port = format!("PORT={PORT}");
        for pair in ["FROM=spec", "TWICE=2", port.as_str(), "PATH=/bin"] {
            assert!(environment.lines().any(|line| line == pair), "{pair} in {environment}");
        }
        assert!(!environment.contains("TWICE=1"));

        // Files and devices.
        let devices = lab.text(&id, "/list/dev").await;
        for name in [
            "fd", "full", "null", "ptmx", "random", "stderr", "stdin", "stdout", "tty", "urandom", "zero",
        ] {
            assert!(devices.split(' ').any(|device| device == name), "{name} in {devices}");
        }
        assert!(
            lab.text(&id, "/read/dev/console")
                .await
                .starts_with("error: No such file")
        );
        assert!(
            lab.text(&id, "/read/dev/tty").await.starts_with("error: "),
            "there is a tty"
        );
        assert_eq!(lab.text(&id, "/read/dev/stdin").await, "");
        assert_eq!(lab.text(&id, "/write/dev/null").await, "ok");
        assert_eq!(lab.text(&id, "/write/dev/stdout").await, "ok");
        for number in 0..=2 {
            let there = lab.text(&id, &format!("/link/proc/self/fd/{number}")).await;
            assert!(!there.starts_with("error: "), "{number}: {there}");
        }
        assert!(lab.text(&id, "/stat/tmp").await.starts_with("41777 "));
        assert!(lab.text(&id, "/stat/etc/resolv.conf").await.starts_with("100644 "));
        assert!(lab.text(&id, "/read/etc/hosts").await.contains("127.0.0.1 localhost"));
        assert_eq!(lab.text(&id, "/read/proc/sys/kernel/hostname").await, "localhost\n");
        assert_eq!(lab.text(&id, "/list/sys/class/net").await, "lo");
        assert_eq!(lab.text(&id, "/link/proc/self/cwd").await, "/");

        // Who it is, and what the image's files are.
        let status = lab.text(&id, "/read/proc/self/status").await;
        assert!(
            status.contains("Uid:\t0\t0\t0\t0\n") && status.contains("\nPid:\t1\n"),
            "{status}"
        );
        assert_eq!(lab.text(&id, "/stat/guest").await, "100755 0 0 0");
        assert_eq!(lab.text(&id, "/stat/home/own").await, "100600 1000 1000 0");

        // What may be written, and what may not.
        for path in ["/write/anywhere", "/write/tmp/file", "/write/dev/shm/file"] {
            assert_eq!(lab.text(&id, path).await, "ok", "{path}");
        }
        for path in [
            "/write/proc/sys/kernel/hostname",
            "/write/proc/sysrq-trigger",
            "/write/sys/kernel/mm/ksm/run",
            "/write/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ] {
            let text = lab.text(&id, path).await;
            assert!(text.starts_with("error: "), "{path}: {text}");
        }
        for (name, call) in [
            ("mount", "165"),
            ("umount2", "166"),
            ("setns", "308"),
            ("reboot", "169"),
        ] {
            let got = lab.text(&id, &format!("/call/{call}/0")).await;
            assert_ne!(got, "0", "{name}");
        }

        // Limits, as the instance finds them.
        let machine = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let most = machine.maximum.unwrap_or(u64::MAX).min(25_000);
        assert_eq!(lab.text(&id, "/files").await, format!("{most} {most}"));
        let opened: u64 = lab.text(&id, "/opened").await.parse().expect("a number");
        assert!(opened > most - 100 && opened < most, "{opened} of {most}");
        for (file, value) in [
            ("memory/memory.limit_in_bytes", 256_u64 << 20),
            ("cpu/cpu.cfs_quota_us", 50_000),
            ("cpu/cpu.cfs_period_us", 100_000),
            ("cpu/cpu.shares", 512),
        ] {
            let text = lab.text(&id, &format!("/read/sys/fs/cgroup/{file}")).await;
            assert_eq!(text.trim(), value.to_string(), "{file}");
        }
        lab.close().await;
    }

    pub(super) async fn the_images_user_and_directory(sandbox: Sandbox) {
        let mut recipe = Recipe::default();
        recipe.config["User"] = json!("app");
        recipe.config["WorkingDir"] = json!("/home");
        let mut lab = Lab::with(recipe).await;
        let mut spec = of(&lab, sandbox, &[]);
        // Ready means that a user other than root listens on port 80.
        let port = std::num::NonZeroU16::new(80).expect("not zero");
        spec.port = port;
        spec.container.startup_probe = None;
        "80".clone_into(&mut spec.container.env[0].value);
        let id = lab.ready(spec).await;
        let status = lab.text(&id, "/read/proc/self/status").await;
        for line in [
            "Uid:\t1000\t1000\t1000\t1000\n",
            "Gid:\t1001\t1001\t1001\t1001\n",
            "CapEff:\t0000000000000000\n",
        ] {
            assert!(status.contains(line), "{line} in {status}");
        }
        assert_eq!(lab.text(&id, "/link/proc/self/cwd").await, "/home");
        assert_eq!(lab.text(&id, "/read/home/own").await, "mine");
        assert_eq!(lab.text(&id, "/write/dev/stderr").await, "ok");
        assert_eq!(lab.text(&id, "/write/tmp/file").await, "ok");
        let refused = lab.text(&id, "/write/etc/hosts").await;
        assert_eq!(refused, "error: Permission denied (os error 13)");
        lab.close().await;
    }

    pub(super) async fn exit_codes_and_signals(sandbox: Sandbox) {
        let mut lab = Lab::open().await;
        let id = lab.start(of(&lab, sandbox, &["exit", "3"])).await;
        let exit = lab.exit(&id).await;
        assert_eq!((exit.cause, exit.was_ready), (ExitCause::Code(3), false));
        let mut lines = exit.last_lines;
        lines.sort();
        assert_eq!(lines, ["to stderr", "to stdout"]);
        let id = lab.start(of(&lab, sandbox, &["fault"])).await;
        assert_eq!(lab.exit(&id).await.cause, ExitCause::Signal(11));
        // After it was ready, and a zero too.
        let id = lab.ready(of(&lab, sandbox, &[])).await;
        assert!(lab.get(&id, "/die/0").await.is_err());
        let exit = lab.exit(&id).await;
        assert_eq!((exit.cause, exit.was_ready), (ExitCause::Code(0), true));
        lab.close().await;
    }

    /// Of a process, of the root file system, of `/dev/shm`: all of it counts.
    pub(super) async fn memory_that_is_too_much(sandbox: Sandbox) {
        let mut lab = Lab::open().await;
        for filling in ["/child/eat/300", "/fill/300/anywhere", "/fill/300/dev/shm/file"] {
            let mut spec = of(&lab, sandbox, &[]);
            spec.container.memory_bytes = 128 << 20;
            let id = lab.ready(spec).await;
            assert!(lab.get(&id, filling).await.is_err(), "{filling}");
            let exit = lab.exit(&id).await;
            let limit_bytes = 128 << 20;
            assert_eq!(exit.cause, ExitCause::OutOfMemory { limit_bytes }, "{filling}");
            let words = "Memory limit of 128 MiB exceeded with ";
            let of_memory = |line: &model::LogLine| {
                line.instance == id && line.stream == Stream::System && line.text.starts_with(words)
            };
            lab.line(of_memory).await;
        }
        lab.close().await;
    }

    pub(super) async fn sigterm_and_its_grace(sandbox: Sandbox) {
        let mut lab = Lab::open().await;
        let begin = Instant::now();
        let polite = lab.ready(of(&lab, sandbox, &["polite"])).await;
        lab.engine.stop(&polite, Duration::from_mins(1)).await.expect("known");
        let exit = lab.exit(&polite).await;
        assert_eq!(
            (exit.cause, exit.last_lines),
            (ExitCause::Stopped, vec!["bye".to_owned()])
        );
        assert!(begin.elapsed() < Duration::from_mins(1));

        let stubborn = lab.ready(of(&lab, sandbox, &["stubborn"])).await;
        let begin = Instant::now();
        lab.engine.stop(&stubborn, Duration::from_secs(2)).await.expect("known");
        lab.until(&stubborn, |state| *state == InstanceState::Stopping).await;
        // It is heard until the end.
        assert_eq!(lab.text(&stubborn, "/").await, "ok");
        assert_eq!(lab.exit(&stubborn).await.cause, ExitCause::Stopped);
        assert!(begin.elapsed() >= Duration::from_secs(2));
        lab.close().await;
    }

    pub(super) async fn throttled_and_parked(sandbox: Sandbox) {
        let mut lab = Lab::open().await;
        let mut spec = of(&lab, sandbox, &[]);
        spec.cpu_allocation = model::CpuAllocation::Request;
        let id = spec.id.clone();
        lab.engine.park(spec).await.expect("accepted");
        lab.until(&id, |state| *state == InstanceState::Parked).await;
        lab.engine.release(&id).expect("known");
        lab.until(&id, |state| *state == InstanceState::Ready).await;

        let count = async |lab: &Lab| -> u64 {
            let text = lab.text_busy(&id, "/count").await;
            text.parse().expect("a number")
        };
        let busy = count(&lab).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let later = count(&lab).await;
        assert!(later > busy, "it stood still while it was busy");
        lab.engine.activity(&id, model::Activity::Idle);
        // The linger and much more, in which it would count hundreds.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let frozen = count(&lab).await;
        assert!(
            frozen - later < 1500,
            "it ran on while it was idle: {later} to {frozen}"
        );
        lab.close().await;
    }

    /// The reason names what is missing.
    pub(super) async fn what_cannot_start(sandbox: Sandbox) {
        let mut lab = Lab::open().await;
        for program in ["/no/such/program", "/etc/passwd"] {
            let mut spec = of(&lab, sandbox, &[]);
            spec.container.command = vec![program.to_owned()];
            let id = lab.start(spec).await;
            let exit = lab.exit(&id).await;
            let ExitCause::NotStarted(why) = exit.cause else {
                panic!("{program}: {:?}", exit.cause);
            };
            assert!(why.contains(program), "{program}: {why}");
        }
        lab.close().await;
    }
}
