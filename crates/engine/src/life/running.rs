//! The processes of an instance: whether they are there, let go, or were killed for their memory.

use std::{io, os::fd::OwnedFd, task::Poll, time::Duration};

use model::InstanceSpec;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{Entry, Event};
use crate::{
    cgroup::{Alarm, MemoryKills},
    gate::Gate,
    watched::watched,
    wire::End,
};

/// What is there once every container of the instance has a process.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) network: OwnedFd,
    /// In the spec's order, the ingress container first.
    pub(crate) containers: Vec<Container>,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) process: OwnedFd,
    pub(crate) gate: Gate,
    pub(crate) kills: MemoryKills,
}

/// A pidfd is readable once its process has ended.
fn is_gone(process: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&none)).is_ok_and(|ready| ready > 0)
}

impl Running {
    /// The ingress container's.
    pub(super) fn gate(&self) -> &Gate {
        &self.containers[0].gate
    }

    /// Whether a container has ended, and so the instance.
    pub(crate) fn is_gone(&self) -> bool {
        self.containers.iter().any(|container| is_gone(&container.process))
    }

    pub(super) fn are_all_gone(&self) -> bool {
        self.containers.iter().all(|container| is_gone(&container.process))
    }

    /// The container that the kernel killed for its memory.
    pub(crate) fn over_memory(&self) -> Option<usize> {
        self.containers.iter().position(|container| container.kills.count() > 0)
    }

    pub(super) fn watch_memory(&self, entry: &Entry) -> io::Result<Vec<AsyncFd<OwnedFd>>> {
        let alarms = self.containers.iter().enumerate().map(|(index, container)| {
            let Alarm(file) = entry.groups_of(index).memory_alarm(&container.kills)?;
            watched(file)
        });
        alarms.collect()
    }

    /// Lets the programs run that wait for no other.
    pub(crate) fn release(&self, spec: &InstanceSpec) {
        for (index, container) in spec.containers().enumerate() {
            if container.depends_on.is_empty() {
                self.open(index, spec);
            }
        }
    }

    /// Lets the program of one container run. Does nothing when it does already.
    pub(super) fn open(&self, index: usize, spec: &InstanceSpec) {
        let container = &self.containers[index];
        if let Err(error) = container.gate.open() {
            // Its end is then reported like any other.
            tracing::error!(id = %spec.id, index, %error, "cannot release an instance");
            let _ = pidfd_send_signal(&container.process, Signal::KILL);
        }
    }
}

/// Until the kernel has killed a process of a container for its memory; returns which container's.
pub(super) async fn killed_for_memory(alarms: &[AsyncFd<OwnedFd>], running: &Running) -> usize {
    loop {
        if let Some(index) = running.over_memory() {
            return index;
        }
        any_alarm(alarms).await;
        // The alarm comes before the kill, or without one when memory was found after all.
        for _ in 0..200 {
            if let Some(index) = running.over_memory() {
                return index;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Until one of the alarms is raised; takes it back.
async fn any_alarm(alarms: &[AsyncFd<OwnedFd>]) {
    std::future::poll_fn(|context| {
        let mut raised = Poll::Pending;
        for alarm in alarms {
            if let Poll::Ready(Ok(mut ready)) = alarm.poll_read_ready(context) {
                let mut drain = [0; 4096];
                let _ = rustix::io::read(alarm.get_ref(), &mut drain);
                ready.clear_ready();
                raised = Poll::Ready(());
            }
        }
        raised
    })
    .await;
}

/// Until the first process of a container is gone. With its launcher gone too, nobody can say how it ended.
pub(super) async fn exited(events: &mut mpsc::Receiver<Event>, link: u64, running: &Running) -> (usize, End) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Exited(index, end) => return (index, end),
            Event::Lost(number) if number == link => break,
            Event::Lost(_) | Event::Created(_) | Event::NotStarted(_) => {}
        }
    }
    for container in &running.containers {
        let _ = pidfd_send_signal(&container.process, Signal::KILL);
    }
    while !running.is_gone() {
        sleep(Duration::from_millis(5)).await;
    }
    (0, End::Signal(Signal::KILL.as_raw()))
}

/// Until the first process of every container is gone.
pub(super) async fn gone(events: &mut mpsc::Receiver<Event>, running: &Running) {
    while !running.are_all_gone() {
        // Any news is a reason to look again, and so is a moment without.
        let _ = timeout(Duration::from_millis(5), events.recv()).await;
    }
}
