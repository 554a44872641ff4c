//! The last steps of a life: asked to end, killed, and cleared away.

use std::{sync::Arc, time::Duration};

use model::{Exit, ExitCause};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::time::timeout;

use super::{
    Life,
    running::{Running, gone},
    verdict::never_executed,
};
use crate::{company, wire::Order};

/// How long a killed process may take to be gone.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Life {
    /// SIGTERM to every container, the grace, SIGKILL.
    pub(super) async fn stop(&mut self, running: &Running, grace: Duration) -> ExitCause {
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
        let ended = timeout(grace, gone(&mut self.events, running)).await;
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
        let clearing = {
            let (engine, entry) = (Arc::clone(&engine), Arc::clone(&entry));
            tokio::task::spawn_blocking(move || {
                let cleared = entry.groups.clear();
                for index in 0..=entry.spec.sidecars.len() {
                    engine
                        .run
                        .remove_instance(&company::runtime_name(&entry.spec.id, index));
                }
                cleared
            })
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
