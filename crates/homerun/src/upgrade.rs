//! `homerun upgrade`: a new binary in the place of one that serves; and how the one that serves hands over (`SIGUSR2`).

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Arg, Command};
use tokio::sync::watch;

use crate::{
    config::Config,
    handover::{self, Busy, Inheritance, Successor},
    up::DRAIN,
    wiring::Homerun,
};

/// How long the requests of the old process may take: as long as any request may (Cloud Run's longest timeout).
const LONGEST_REQUEST: Duration = Duration::from_hours(1);
/// How long an upgrade may take until the new one serves.
const PATIENCE: Duration = Duration::from_mins(3);

/// In the data directory, while an upgrade is asked for: the path of the binary, or below `failed: ` why not.
const REQUEST: &str = "upgrade";
const FAILED: &str = "failed: ";

pub(crate) fn grammar() -> Command {
    Command::new("upgrade")
        .about("Put a new binary in the place of the Homerun that runs here, without losing a request or an instance")
        .arg(
            Arg::new("api")
                .long("api")
                .env("HOMERUN_API")
                .value_name("ADDRESS")
                .value_parser(clap::value_parser!(SocketAddr))
                .default_value("127.0.0.1:8787")
                .help("Which Homerun to upgrade"),
        )
        .arg(
            Arg::new("binary")
                .long("binary")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("The new binary [default: the file that the running one was started from]"),
        )
}

pub(crate) fn main(words: &[OsString]) -> ExitCode {
    let matches = match grammar().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => error.exit(),
    };
    let api: SocketAddr = *matches.get_one("api").expect("has a default");
    let binary: Option<&PathBuf> = matches.get_one("binary");
    crate::exit("upgrade", ask(api, binary.map(PathBuf::as_path)))
}

fn holder(data: &Path) -> anyhow::Result<i32> {
    let text = fs::read_to_string(data.join("lock")).context("cannot read who serves")?;
    text.trim().parse().context("nobody knows who serves")
}

fn ask(api: SocketAddr, binary: Option<&Path>) -> anyhow::Result<()> {
    let about = crate::status::ask(api)?;
    let data = PathBuf::from(
        about
            .get("dataDir")
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default(),
    );
    let old = holder(&data)?;
    let binary = binary.map(std::path::absolute).transpose()?.unwrap_or_default();
    let request = data.join(REQUEST);
    fs::write(&request, binary.as_os_str().as_encoded_bytes()).context("cannot ask for an upgrade")?;
    let process = rustix::process::Pid::from_raw(old).context("nobody serves")?;
    rustix::process::kill_process(process, rustix::process::Signal::USR2).context("cannot tell the one that serves")?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match fs::read_to_string(&request) {
            Ok(text) => {
                if let Some(why) = text.strip_prefix(FAILED) {
                    let why = why.to_owned();
                    fs::remove_file(&request)?;
                    bail!("the old one serves on: {why}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                use std::io::Write as _;
                writeln!(io::stdout(), "process {} serves", holder(&data)?)?;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("no new one after {} s", PATIENCE.as_secs())
}

/// Hands over to a new process. Some: that did not succeed, and we serve on. None: it did, and all our requests have
/// ended.
/// `stop` resolves when those requests are to end within [`DRAIN`].
pub(crate) async fn hand_over(
    homerun: Homerun,
    config: &Config,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Option<Homerun>> {
    let request = homerun.data_dir.join(REQUEST);
    let answer = |why: &anyhow::Error| {
        tracing::error!(error = format!("{why:#}"), "no upgrade");
        // Who only sent the signal reads the log.
        if request.exists() {
            let _ = fs::write(&request, format!("{FAILED}{why:#}"));
        }
        handover::notify("READY=1");
    };
    handover::notify("RELOADING=1");
    let named = fs::read_to_string(&request).unwrap_or_default();
    let binary = match named.trim() {
        // The answer to somebody who has not waited for it names none.
        named if named.is_empty() || named.starts_with(FAILED) => own_file(),
        named => Ok(PathBuf::from(named)),
    };
    let started = tokio::task::spawn_blocking(move || {
        let binary = binary?;
        Successor::start(&binary)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", binary.display())))
    });
    let mut successor = match started.await? {
        Ok(successor) => successor,
        Err(error) => {
            answer(&anyhow::Error::new(error).context("the new binary does not come up"));
            return Ok(Some(homerun));
        }
    };
    tracing::info!(process = successor.pid(), "handing over");
    let leaving = homerun.leave().await;
    let busy = leaving.busy();
    let sockets = leaving.sockets.share().context("cannot share sockets")?;
    let (went, successor) = tokio::task::spawn_blocking(move || {
        let went = successor.go(&sockets, busy);
        (went, successor)
    })
    .await?;
    if let Err(error) = went {
        drop(successor);
        let (sender, receiver) = watch::channel(Arc::new(leaving.busy()));
        let inheritance = Inheritance {
            sockets: leaving.sockets.share().context("cannot share sockets")?,
            busy: receiver,
        };
        // Its requests end beside us.
        tokio::spawn(leaving.end(LONGEST_REQUEST, move |busy: Busy| {
            sender.send_replace(Arc::new(busy));
        }));
        let again = Homerun::start(config.clone(), Some(inheritance)).await?;
        answer(&anyhow::Error::new(error).context("the new binary does not serve"));
        return Ok(Some(again));
    }
    if let Err(error) = fs::remove_file(&request)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot say that the upgrade is done");
    }
    // Of who is not the main process systemd hears nothing, by default.
    handover::notify(&format!("READY=1\nMAINPID={}", successor.pid()));
    tracing::info!("handed over, ending what is under way");
    let end = leaving.end(LONGEST_REQUEST, move |busy| {
        // Without it nobody needs to know.
        let _ = successor.tell(busy);
    });
    let stopped = async {
        stop.await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = end => {}
        () = stopped => tracing::warn!("requests were cut off at the deadline"),
    }
    tracing::info!("ended");
    Ok(None)
}

/// The file that we were started from, or the one that has its name now.
fn own_file() -> io::Result<PathBuf> {
    let file = std::env::current_exe()?;
    let text = file.to_string_lossy();
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or_else(|| file.clone(), PathBuf::from))
}
