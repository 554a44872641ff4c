//! Probes: whether a container has started, still lives, and may get requests. When they are asked and what follows
//! from the answers is here; how they are asked is in `ask`.
//!
//! A probe connects to the instance's own address, like every request, and so finds no server that listens on
//! 127.0.0.1 only. It is asked with the CPU on: an instance that stands still is set going for as long as the answer
//! takes, at every period, idle or not.

mod ask;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use model::{Check, ContainerSpec, ExitCause, InstanceSpec, InstanceState, Probe, ProbeKind, Probed, Severity};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Inner,
    life::Entry,
    listening::Pace,
    network::{ADDRESS, Home},
};
use ask::{No, ask};

/// What a failed probe is called in the log when nobody took its connection.
const NO_CONNECTION: &str = "Nothing accepted its connection.";

/// A startup probe that failed for good.
#[derive(Debug, PartialEq, Eq)]
struct Missed {
    failures: u32,
    why: No,
}

/// Until the container has started: its startup probe has passed. Both ends are said in the log of the service.
///
/// # Errors
/// Why the instance ends. `network` is the instance's.
pub(crate) async fn until_started(
    engine: &Inner,
    spec: &InstanceSpec,
    container: &ContainerSpec,
    probe: &Probe,
    network: &OwnedFd,
) -> Result<(), ExitCause> {
    let default = *probe == Probe::implicit(spec.port);
    let probed = probed(spec, container, ProbeKind::Startup, default, probe);
    let missed = match started(&engine.home, network, probe).await {
        Ok(attempts) => {
            engine.log.system(spec, Severity::Info, probed.succeeded(attempts));
            return Ok(());
        }
        Err(missed) => missed,
    };
    let mut loopback_only = false;
    if let (Check::Tcp { port }, No::Connection) = (&probe.check, &missed.why) {
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let at = SocketAddr::new(address, port.get());
            let limit = Duration::from_millis(200);
            loopback_only |= ask(&engine.home, network, at, &probe.check, limit).await.is_ok();
        }
    }
    let why = match missed.why {
        No::Connection if loopback_only => "It listens on 127.0.0.1 only; it must listen on 0.0.0.0.".to_owned(),
        No::Connection => NO_CONNECTION.to_owned(),
        No::Answer(why) => why,
    };
    let failures = missed.failures;
    let line = format!("{} The instance was not started. {why}", probed.failed(failures));
    engine.log.system(spec, Severity::Error, line);
    // Cloud Run's words for its default probe, which say more than those for others.
    if probe.check == (Check::Tcp { port: spec.port }) {
        return Err(ExitCause::NotListening {
            port: spec.port.get(),
            seconds: probe.patience().as_secs(),
            loopback_only,
        });
    }
    let probe = Box::new(probed);
    Err(ExitCause::StartupProbeFailed { probe, failures, why })
}

/// In how many periods the probe passed. A period counts as one failure. While nobody takes its connection a probe is
/// tried far more often than its period says: the container hears nothing of it, and is found as soon as it listens. An
/// answer is asked for once in a period.
async fn started(home: &Home, network: &OwnedFd, probe: &Probe) -> Result<u32, Missed> {
    let to = own_address(probe);
    let limit = Duration::from_secs(u64::from(probe.timeout));
    let period = Duration::from_secs(u64::from(probe.period));
    if probe.initial_delay > 0 {
        sleep(Duration::from_secs(u64::from(probe.initial_delay))).await;
    }
    let begin = Instant::now();
    let pace = Pace::begin();
    let mut failures = 0;
    loop {
        let end = begin + period * (failures + 1);
        let last = failures + 1 >= probe.failures;
        let why = loop {
            match ask(home, network, to, &probe.check, limit).await {
                Ok(()) => return Ok(failures + 1),
                Err(No::Connection) if Instant::now() < end => {
                    let left = end.saturating_duration_since(Instant::now());
                    pace.rest(begin.elapsed(), left).await;
                }
                Err(why) => break why,
            }
        };
        failures += 1;
        if last {
            return Err(Missed { failures, why });
        }
        sleep_until(end).await;
    }
}

fn own_address(probe: &Probe) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(ADDRESS), probe.check.port().get())
}

fn probed(spec: &InstanceSpec, container: &ContainerSpec, kind: ProbeKind, default: bool, probe: &Probe) -> Probed {
    let name = if container.name.is_empty() {
        // As the API shows it.
        format!("{}-1", spec.of.service.name)
    } else {
        container.name.clone()
    };
    Probed {
        kind,
        default,
        container: name,
        check: probe.check.clone(),
    }
}

/// Answers in a row.
#[derive(Debug, PartialEq, Eq)]
struct Streak {
    /// It has failed, and not passed since.
    failed: bool,
    /// How many answers in a row said otherwise.
    against: u32,
    failures: NonZeroU32,
    successes: NonZeroU32,
}

impl Streak {
    fn new(probe: &Probe) -> Self {
        Self {
            failed: false,
            against: 0,
            failures: NonZeroU32::new(probe.failures).unwrap_or(NonZeroU32::MIN),
            successes: probe.successes,
        }
    }

    /// True: it changes sides with this answer.
    fn turns(&mut self, passed: bool) -> bool {
        if passed != self.failed {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if self.failed { self.successes } else { self.failures };
        let turns = self.against >= needed.get();
        if turns {
            self.failed = !self.failed;
            self.against = 0;
        }
        turns
    }
}

/// Asks the liveness and readiness probes of all containers, for as long as it is polled. Readiness shows on the board.
/// Returns when a liveness probe has failed: the instance has to be ended. `released` is when its programs began to run.
pub(crate) async fn watch(engine: Arc<Inner>, entry: Arc<Entry>, released: Instant) -> ExitCause {
    let unready = Arc::new(Mutex::new(0));
    let mut asking = JoinSet::new();
    for container in entry.spec.containers() {
        let kinds = [
            (ProbeKind::Liveness, &container.liveness_probe),
            (ProbeKind::Readiness, &container.readiness_probe),
        ];
        for (kind, probe) in kinds {
            let Some(probe) = probe else { continue };
            let asked = Asked {
                engine: Arc::clone(&engine),
                entry: Arc::clone(&entry),
                probed: probed(&entry.spec, container, kind, false, probe),
                probe: probe.clone(),
                unready: Arc::clone(&unready),
            };
            asking.spawn(asked.ask_on(released));
        }
    }
    while let Some(ended) = asking.join_next().await {
        match ended {
            Ok(cause) => return cause,
            Err(error) => tracing::error!(id = %entry.spec.id, %error, "a probe broke off"),
        }
    }
    std::future::pending().await
}

/// One liveness or readiness probe of one container.
struct Asked {
    engine: Arc<Inner>,
    entry: Arc<Entry>,
    probed: Probed,
    probe: Probe,
    /// How many readiness probes of the instance have failed.
    unready: Arc<Mutex<usize>>,
}

impl Asked {
    async fn ask_on(self, released: Instant) -> ExitCause {
        let period = Duration::from_secs(u64::from(self.probe.period));
        let mut streak = Streak::new(&self.probe);
        let first = released + Duration::from_secs(u64::from(self.probe.initial_delay));
        let mut next = first.max(Instant::now());
        loop {
            sleep_until(next).await;
            let answer = self.ask_once().await;
            if streak.turns(answer.is_ok()) {
                let why = match answer {
                    Ok(()) => String::new(),
                    Err(No::Connection) => NO_CONNECTION.to_owned(),
                    Err(No::Answer(why)) => why,
                };
                if let Some(cause) = self.turned(streak.failed, why) {
                    return cause;
                }
            }
            // Late ones are left out, not made up for.
            next = (next + period).max(Instant::now());
        }
    }

    async fn ask_once(&self) -> Result<(), No> {
        let running = self.entry.running.get().expect("only a running instance is probed");
        let limit = Duration::from_secs(u64::from(self.probe.timeout));
        let _awake = self.entry.cpu.hold(&self.entry.spec.id);
        let to = own_address(&self.probe);
        ask(&self.engine.home, &running.network, to, &self.probe.check, limit).await
    }

    /// Acts on a probe that has failed or passes again. Returns why the instance ends, if it does.
    fn turned(&self, failed: bool, why: String) -> Option<ExitCause> {
        let spec = &self.entry.spec;
        let (log, board) = (&self.engine.log, &self.engine.board);
        let failures = self.probe.failures;
        match self.probed.kind {
            ProbeKind::Liveness | ProbeKind::Startup => {
                let line = format!(
                    "{} The instance has been shut down. {why}",
                    self.probed.failed(failures)
                );
                log.system(spec, Severity::Error, line);
                let probe = Box::new(self.probed.clone());
                return Some(ExitCause::Unhealthy { probe, failures, why });
            }
            ProbeKind::Readiness if failed => {
                let line = format!(
                    "{} The instance gets no new requests until it passes. {why}",
                    self.probed.failed(failures)
                );
                log.system(spec, Severity::Warning, line);
                let mut unready = self.unready.lock().expect("no panic while held");
                *unready += 1;
                board.enter(&spec.id, InstanceState::Unready);
            }
            ProbeKind::Readiness => {
                let line = format!(
                    "{} The instance gets requests again.",
                    self.probed.succeeded(self.probe.successes.get())
                );
                log.system(spec, Severity::Info, line);
                let mut unready = self.unready.lock().expect("no panic while held");
                *unready -= 1;
                if *unready == 0 {
                    board.enter(&spec.id, InstanceState::Ready);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::prelude::*;

    use super::*;

    fn streak(failures: u32, successes: u32) -> Streak {
        Streak::new(&Probe {
            failures,
            successes: NonZeroU32::new(successes).expect("not zero"),
            ..Probe::implicit(NonZeroU16::MIN)
        })
    }

    #[test]
    fn it_takes_as_many_in_a_row_as_the_thresholds_say() {
        let mut streak = streak(3, 2);
        let answers = [
            true, false, false, true, false, false, false, false, true, false, true, true, false,
        ];
        let turns: Vec<usize> = (0..answers.len()).filter(|at| streak.turns(answers[*at])).collect();
        assert_eq!(turns, [6, 11]);
        assert!(!streak.failed);
    }

    proptest! {
        /// It has failed exactly if the last run of failures was long enough and no run of successes after it was.
        #[test]
        fn a_side_is_what_the_runs_say(
            failures in 1_u32..5,
            successes in 1_u32..5,
            answers in proptest::collection::vec(any::<bool>(), 0..60),
        ) {
            let mut streak = streak(failures, successes);
            let (mut failed, mut run, mut last) = (false, 0, true);
            for passed in answers {
                run = if passed == last { run + 1 } else { 1 };
                last = passed;
                let before = failed;
                if !passed && run >= failures {
                    failed = true;
                } else if passed && run >= successes {
                    failed = false;
                }
                prop_assert_eq!(streak.turns(passed), failed != before);
                prop_assert_eq!(streak.failed, failed);
            }
        }
    }
}
