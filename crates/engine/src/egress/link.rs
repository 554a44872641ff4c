//! The launcher's end of the relay: starting it, and bringing it instances without ever waiting for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::Pid,
};

use super::{Attach, CANNOT, Duty, EGRESS, Slot};
use crate::wire::{self, End};

/// A relay that ended is not started again at once.
const PAUSE: Duration = Duration::from_secs(1);

/// What the launcher knows of the relay.
#[derive(Debug)]
pub(crate) struct Link {
    id8: String,
    relay: Option<Relay>,
    /// When the next one may be started. None: there is one, or none is possible.
    restart: Option<Instant>,
    /// A relay said that it cannot work on this machine.
    impossible: bool,
    instances: BTreeMap<String, Instance>,
    used: BTreeSet<Slot>,
    last: Slot,
    /// Those that the relay was not told of yet.
    waiting: VecDeque<String>,
}

#[derive(Debug)]
struct Instance {
    slot: Slot,
    /// Once it is known.
    network: Option<OwnedFd>,
}

#[derive(Debug)]
struct Relay {
    socket: OwnedFd,
    process: Pid,
}

impl Link {
    /// Starts a relay. The calling process has one thread and reaps its children.
    pub(crate) fn start(id8: &str) -> Self {
        let mut link = Self {
            id8: id8.to_owned(),
            relay: None,
            restart: None,
            impossible: false,
            instances: BTreeMap::new(),
            used: BTreeSet::new(),
            last: Slot::FIRST,
            waiting: VecDeque::new(),
        };
        link.spawn();
        link
    }

    fn spawn(&mut self) {
        let relay = || -> io::Result<Relay> {
            let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            let duty = Duty { id8: self.id8.clone() };
            let child = Command::new("/proc/self/exe")
                .arg(EGRESS)
                .arg(serde_json::to_string(&duty)?)
                .stdin(Stdio::from(its))
                .stdout(Stdio::null())
                .spawn()?;
            let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            Ok(Relay {
                socket: ours,
                process: process.ok_or_else(|| io::Error::other("a process without a number"))?,
            })
        };
        match relay() {
            Ok(relay) => {
                self.relay = Some(relay);
                self.restart = None;
                let all = self.instances.iter().filter(|(_, instance)| instance.network.is_some());
                self.waiting = all.map(|(id, _)| id.clone()).collect();
            }
            Err(error) => {
                super::say(format_args!("cannot start the relay of instances: {error}"));
                self.restart = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// Whether instances have a way out, as far as is known.
    pub(crate) fn is_possible(&self) -> bool {
        !self.impossible
    }

    /// A place for an instance. None: it has no way out, and shall see that at once.
    pub(crate) fn slot(&mut self, id: &str) -> Option<Slot> {
        if self.impossible {
            return None;
        }
        let mut slot = self.last.next();
        // Far fewer instances than slots.
        while self.used.contains(&slot) {
            slot = slot.next();
        }
        self.last = slot;
        self.used.insert(slot);
        let network = None;
        let former = self.instances.insert(id.to_owned(), Instance { slot, network });
        if let Some(former) = former {
            self.used.remove(&former.slot);
        }
        Some(slot)
    }

    /// Brings an instance to the relay if it has a slot. Returns at once.
    pub(crate) fn attach(&mut self, id: &str, network: OwnedFd) {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.network = Some(network);
            self.waiting.push_back(id.to_owned());
            self.turn();
        }
    }

    /// An instance ended. Its link goes with its network.
    pub(crate) fn release(&mut self, id: &str) {
        if let Some(instance) = self.instances.remove(id) {
            self.used.remove(&instance.slot);
        }
    }

    /// Goes on with what could not be done before. Returns how long the caller may sleep until it has to be called again.
    pub(crate) fn turn(&mut self) -> Option<Duration> {
        const FULL: Duration = Duration::from_millis(5);
        if let Some(at) = self.restart {
            let left = at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Some(left);
            }
            self.spawn();
        }
        let Some(relay) = &self.relay else {
            return self.restart.map(|_| PAUSE);
        };
        while let Some(id) = self.waiting.front() {
            // Unless it has ended in the meantime.
            if let Some(instance) = self.instances.get(id)
                && let Some(network) = &instance.network
            {
                let attach = Attach {
                    id: id.clone(),
                    slot: instance.slot,
                };
                match wire::send(&relay.socket, &attach, &[network.as_fd()]) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(FULL),
                    // It has ended, which its parent hears as well.
                    Err(_) => return None,
                }
            }
            self.waiting.pop_front();
        }
        None
    }

    /// Whether an ended child was the relay. If so it is started again after a pause and gets all instances again, unless
    /// it said that it cannot work here.
    pub(crate) fn ended(&mut self, child: Pid, end: End) -> bool {
        if self.relay.as_ref().is_none_or(|relay| relay.process != child) {
            return false;
        }
        self.relay = None;
        if end == End::Code(i32::from(CANNOT)) {
            self.waiting.clear();
            self.impossible = true;
        } else {
            super::say(format_args!(
                "the relay of instances ended with {end:?}, starting another one"
            ));
            self.restart = Some(Instant::now() + PAUSE);
        }
        true
    }
}
