//! `homerun up`: start-up, the lines it prints, signals, and the way down.

use std::{
    ffi::OsString,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args as _, Command, FromArgMatches as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::{Config, Flags},
    handover::{self, Heir},
    upgrade,
    wiring::Homerun,
};

/// How long requests under way may take to end after SIGTERM; instances then have their own 10 s.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// What comes this soon after the first signal says the same once more: `timeout` signals its child and then the whole
/// process group, and so do a terminal and `npm run` together.
const ONE_WISH: Duration = Duration::from_millis(500);

pub(crate) fn grammar() -> Command {
    // `about` after the flags, whose own documentation would take its place.
    Flags::augment_args(Command::new("up").bin_name("homerun up"))
        .about("Run Homerun in the foreground: API, ingress and instances")
}

pub(crate) fn main(words: &[OsString]) -> ExitCode {
    let matches = match grammar().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => error.exit(),
    };
    let flags = match Flags::from_arg_matches(&matches) {
        Ok(flags) => flags,
        Err(error) => error.exit(),
    };
    let is_root = rustix::process::geteuid().is_root();
    let config = match Config::of(flags, is_root) {
        Ok(config) => config,
        Err(error) => {
            crate::complain("up", &format!("{error:#}"));
            return ExitCode::from(2);
        }
    };
    if !is_root {
        crate::complain(
            "up",
            "running containers needs root (namespaces, mounts, cgroups): use sudo homerun up",
        );
        return ExitCode::FAILURE;
    }
    if let Some(variable) = proxied_to_ourselves(&config) {
        crate::complain(
            "up",
            &format!(
                "{variable} names this Homerun's own API port, so that every pull would come back to it: unset it for `homerun up`"
            ),
        );
        return ExitCode::from(2);
    }
    log_to_stderr();
    crate::exit("up", run(config))
}

/// The exports of `homerun env --all` are for clients.
fn proxied_to_ourselves(config: &Config) -> Option<&'static str> {
    let own = config.api.to_string();
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .into_iter()
        .find(|name| {
            std::env::var(name).is_ok_and(|value| {
                let authority = value.rsplit_once("://").map_or(value.as_str(), |(_, rest)| rest);
                authority.trim_end_matches('/') == own
            })
        })
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOMERUN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn run(config: Config) -> anyhow::Result<()> {
    let mut lacking = engine::doctor();
    if config.default_execution_environment == model::Sandbox::Gen1 {
        lacking.extend(engine::first_generation().err());
    }
    if !lacking.is_empty() {
        let lines: Vec<String> = lacking
            .iter()
            .map(|finding| format!("{}; mend it with: {}", finding.problem, finding.remedy))
            .collect();
        bail!("this machine cannot run containers yet:\n  {}", lines.join("\n  "));
    }
    raise_open_files();
    stay_out_of_core_dumps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("homerun")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        // Before anything is opened, so that a signal during start-up is not lost.
        let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut succeed = signal(SignalKind::user_defined2()).context("cannot listen for SIGUSR2")?;
        let heir = Heir::of_environment().context("cannot take over")?.map(Arc::new);
        let inheritance = match &heir {
            None => None,
            Some(heir) => {
                let heir = heir.clone();
                let inherited = tokio::task::spawn_blocking(move || heir.inherit()).await?;
                Some(inherited.context("nothing was handed over")?)
            }
        };
        let mut homerun = Homerun::start(config.clone(), inheritance).await?;
        announce(&homerun)?;
        if let Some(heir) = heir {
            heir.ready().context("the one before is gone")?;
        }
        handover::notify(&format!("READY=1\nMAINPID={}", std::process::id()));
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = interrupt.recv() => break,
                _ = succeed.recv() => match upgrade::hand_over(homerun, &config, async {
                    tokio::select! {
                        _ = term.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                })
                .await?
                {
                    Some(stays) => homerun = stays,
                    None => return Ok(()),
                }
            }
        }
        handover::notify("STOPPING=1");
        tracing::info!("draining");
        let engine = homerun.engine();
        let asked = tokio::time::Instant::now();
        let again = async {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if asked.elapsed() >= ONE_WISH {
                    break;
                }
            }
        };
        tokio::select! {
            () = homerun.stop(DRAIN) => {}
            () = again => {
                if let Some(engine) = engine.upgrade() {
                    engine.end_at_once();
                }
                bail!("stopped at the second signal, before the drain was done")
            }
        }
        tracing::info!("stopped");
        Ok(())
    })
}

/// As many open files as the machine allows: connections, and seven for each instance.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays where it is");
    }
}

/// Values of secrets pass through this process: the kernel writes no core file of it, whoever collects them, and nobody
/// but root reads its memory. What it starts is not bound by that.
fn stay_out_of_core_dumps() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a core dump of this process would hold values of secrets");
    }
}

/// The lines that tell where everything is. Scripts read them; `ready` is the last.
fn announce(homerun: &Homerun) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "api      http://{}", homerun.api)?;
    writeln!(out, "ingress  http://{}", homerun.http)?;
    writeln!(out, "ingress  https://{}", homerun.https)?;
    writeln!(out, "data     {}", homerun.data_dir.display())?;
    writeln!(out, "ready")?;
    out.flush()?;
    Ok(())
}
