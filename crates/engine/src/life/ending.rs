//! The last steps of a life: asked to end, killed, and cleared away.

use std::{io, sync::Arc, time::Duration};

use model::{Exit, ExitCause};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Entry, Life,
    running::{Running, gone},
    verdict::never_executed,
};
use crate::{Inner, company, wire::Order};

/// How long a killed process may take to be gone.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How many instances are asked to end at a time, for each CPU, and how long each of them keeps others waiting at most.
/// A thousand programs that end at once, each in a group of its own with the same claim to the CPU, keep every other
/// instance waiting until nearly all of them have had theirs: half a second was measured. Taken in turns they are gone
/// as soon, and of those that take their time a thousand are asked within two seconds on two CPUs.
pub(crate) const ENDINGS_PER_CPU: usize = 8;
const ENDING_TURN: Duration = Duration::from_millis(25);

impl Life {
    /// SIGTERM to every container, the grace, SIGKILL.
    pub(super) async fn stop(&mut self, running: &Running, grace: Duration) -> ExitCause {
        let engine = Arc::clone(&self.engine);
        let turn = engine.endings.acquire().await.expect("never closed");
        self.entry.cpu.release(&self.entry.spec.id);
        for container in &running.containers {
            // One whose program was not started yet has nothing to end. Gone already is as good.
            let signal = if container.gate.is_open() {
                Signal::TERM
            } else {
                Signal::KILL
            };
            let _ = pidfd_send_signal(&container.process, signal);
        }
        let asked = Instant::now();
        let mut ended = timeout(grace.min(ENDING_TURN), gone(&mut self.events, running)).await;
        drop(turn);
        if ended.is_err() {
            ended = timeout_at(asked + grace, gone(&mut self.events, running)).await;
        }
        if ended.is_err() {
            self.kill().await;
        }
        ExitCause::Stopped
    }

    /// Ends it at once and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        self.entry.cpu.release(&self.entry.spec.id);
        let entry = Arc::clone(&self.entry);
        let running = entry.running.get().expect("only called with a process");
        for container in &running.containers {
            let _ = pidfd_send_signal(&container.process, Signal::KILL);
        }
        if timeout(KILL_PATIENCE, gone(&mut self.events, running)).await.is_err() {
            tracing::error!(id = %entry.spec.id, "a killed instance is still there");
        }
    }

    pub(super) async fn end(self, cause: ExitCause) {
        let (engine, entry) = (self.engine, self.entry);
        let id = &entry.spec.id;
        let link = engine.link.borrow().clone();
        if let Some(link) = link.filter(|link| link.number == self.link) {
            for index in 0..=entry.spec.sidecars.len() {
                let id = company::runtime_name(id, index);
                // A launcher that is gone has forgotten it.
                let _ = link.order(&Order::Forget { id }, &[]).await;
            }
        }
        entry.over.set(cause.clone()).expect("an instance ends once");
        entry.cpu.release(id);
        let clearing = async {
            let (first, then) = (Clearing::new(&engine, &entry), Clearing::new(&engine, &entry));
            let empty = {
                let _turn = engine.clearings.acquire().await.expect("never closed");
                tokio::task::spawn_blocking(move || first.of_empty()).await
            };
            match empty {
                Ok(true) => Ok(Ok(())),
                // Something of it is alive, which may last: nobody waits for this.
                Ok(false) | Err(_) => tokio::task::spawn_blocking(move || then.of_all()).await,
            }
        };
        let (last_lines, cleared) = tokio::join!(self.output.finish(), clearing);
        match cleared {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%id, %error, "cannot remove an instance's groups"),
            Err(error) => tracing::error!(%id, %error, "clearing an instance failed"),
        }
        drop(entry.range.lock().expect("no panic while held").take());
        let cause = if self.ready {
            cause
        } else {
            never_executed(cause, &last_lines)
        };
        let last_lines = match cause {
            // The runtime's own words, which are in the cause.
            ExitCause::NotStarted(_) => Vec::new(),
            ExitCause::Code(_)
            | ExitCause::Signal(_)
            | ExitCause::OutOfMemory { .. }
            | ExitCause::NotListening { .. }
            | ExitCause::StartupProbeFailed { .. }
            | ExitCause::Unhealthy { .. }
            | ExitCause::Stopped => last_lines,
        };
        engine.stopped(
            &entry,
            Exit {
                container: match cause {
                    ExitCause::Stopped => None,
                    ExitCause::Code(_)
                    | ExitCause::Signal(_)
                    | ExitCause::OutOfMemory { .. }
                    | ExitCause::NotListening { .. }
                    | ExitCause::StartupProbeFailed { .. }
                    | ExitCause::Unhealthy { .. }
                    | ExitCause::NotStarted(_) => company::log_name(&entry.spec, self.culprit).map(str::to_owned),
                },
                cause,
                was_ready: self.ready,
                last_lines,
            },
        );
    }
}

/// What takes an instance's groups and files off the machine.
struct Clearing {
    engine: Arc<Inner>,
    entry: Arc<Entry>,
}

impl Clearing {
    fn new(engine: &Arc<Inner>, entry: &Arc<Entry>) -> Self {
        Self {
            engine: Arc::clone(engine),
            entry: Arc::clone(entry),
        }
    }

    /// As a rule nothing of it is alive. False: something is, and nothing was removed but empty groups.
    fn of_empty(&self) -> bool {
        let empty = self.entry.groups.remove_empty();
        if empty {
            self.remove_files();
        }
        empty
    }

    fn of_all(&self) -> io::Result<()> {
        let cleared = self.entry.groups.clear();
        self.remove_files();
        cleared
    }

    fn remove_files(&self) {
        for index in 0..=self.entry.spec.sidecars.len() {
            let id = company::runtime_name(&self.entry.spec.id, index);
            self.engine.run.remove_instance(&id);
        }
    }
}
