//! The launcher without a server: what it keeps, for whom, and how it ends all of it.

use std::{
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    net::{SocketFlags, accept_with, sockopt},
    process::{Signal, WaitOptions},
};

use super::Launcher;
use crate::{
    claim::{Claim, Wait},
    sweep,
    wire::{self, Order, Report},
};

impl Launcher {
    /// The server is gone. What is being made is given up, what is made is kept for the next one.
    pub(super) fn lose(&mut self) {
        self.socket = None;
        self.kept_until = Some(Instant::now() + self.duty.adoption);
        self.nursery.end_all();
        for pid in self.creating.keys() {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
    }

    /// A new server is at the door. One that we do not suit is left to end us.
    pub(super) fn take_over(&mut self) {
        let come = || -> io::Result<(OwnedFd, Order)> {
            let socket = accept_with(&self.door, SocketFlags::CLOEXEC)?;
            if sockopt::socket_peercred(&socket)?.uid != rustix::process::geteuid() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))?;
            let (order, _) = wire::receive(&socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, None)?;
            Ok((socket, order))
        };
        let Ok((socket, Order::TakeOver { version, duty })) = come() else {
            return;
        };
        self.duty.adoption = duty.adoption;
        // Its own ports may be others than the last one's.
        let alike = super::Duty {
            doors: self.duty.doors.clone(),
            ..duty.clone()
        };
        if version != wire::VERSION || alike != self.duty || duty.doors.is_some() != self.duty.doors.is_some() {
            return;
        }
        if duty.doors != self.duty.doors {
            self.duty.doors.clone_from(&duty.doors);
            if let Some(egress) = &mut self.egress {
                egress.move_to(duty.doors);
            }
        }
        self.socket = Some(socket);
        self.kept_until = None;
        let held: Vec<_> = self.keeping.held().collect();
        let told = held.iter().all(|(report, files)| self.tell(report, files).is_ok());
        drop(held);
        if told {
            self.report(&Report::Up, &[]);
        } else {
            self.lose();
        }
    }

    /// Ends everything, and tells whether it was ours to end: a new server that is here sweeps by itself.
    pub(super) fn end_all(&self, wait: Wait) -> io::Result<bool> {
        let Some(mut claim) = Claim::take(&self.duty.id8, wait)? else {
            return Ok(false);
        };
        claim.unsign()?;
        self.nursery.end_all();
        for pid in self.running.keys().chain(self.creating.keys()) {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        // Out of our own group, so that it can be removed.
        if let Some(home) = self.layout.home() {
            fs::write(home.join("cgroup.procs"), "0")?;
        }
        // Zombies stay in their groups until reaped.
        std::thread::spawn(|| while rustix::process::wait(WaitOptions::empty()).is_ok() {});
        sweep::sweep(&self.duty.id8, &self.duty.run, &self.layout)?;
        claim.remove()?;
        Ok(true)
    }
}
