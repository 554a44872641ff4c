//! The launcher's end of the relay: starting it, and bringing it instances without ever waiting for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, Signal, kill_process},
};

use super::{Attach, CANNOT, Duty, EGRESS, Slot, Way};
use crate::{
    Doors,
    wire::{self, End},
};

/// A relay that ended is not started again at once.
const PAUSE: Duration = Duration::from_secs(1);

/// What the launcher knows of the relay.
#[derive(Debug)]
pub(crate) struct Link {
    id8: String,
    /// Whether the relay leads on to the internet: as was asked for, unless it said that it cannot.
    internet: bool,
    doors: Option<Doors>,
    desk: PathBuf,
    relay: Option<Relay>,
    /// When the next one may be started. None: there is one, or none is possible.
    restart: Option<Instant>,
    /// The relay was ended for another one.
    moved: bool,
    /// A relay said that it cannot work on this machine.
    impossible: bool,
    instances: BTreeMap<String, Instance>,
    /// Of those that are being made and those that are there, the ports of 127.0.0.1 that they use themselves.
    ports: BTreeMap<String, Vec<u16>>,
    used: BTreeSet<Slot>,
    last: Slot,
    /// Those that the relay was not told of yet.
    waiting: VecDeque<String>,
}

#[derive(Debug)]
struct Instance {
    way: Way,
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
    pub(crate) fn start(id8: &str, internet: bool, doors: Option<Doors>, desk: PathBuf) -> Self {
        let mut link = Self {
            id8: id8.to_owned(),
            internet,
            doors,
            desk,
            relay: None,
            restart: None,
            moved: false,
            impossible: false,
            instances: BTreeMap::new(),
            ports: BTreeMap::new(),
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
            let duty = Duty {
                id8: self.id8.clone(),
                internet: self.internet,
                doors: self.doors.clone(),
                desk: self.desk.clone(),
            };
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

    /// The server is reached by other doors than before. Connections that instances have break off.
    pub(crate) fn move_to(&mut self, doors: Option<Doors>) {
        self.doors = doors;
        if let Some(relay) = &self.relay {
            // Not reaped yet, so the number is still its own. The next one is started when it is.
            self.moved = kill_process(relay.process, Signal::KILL).is_ok();
        }
    }

    /// Ports of 127.0.0.1 that an instance will use itself.
    pub(crate) fn expect(&mut self, id: &str, ports: Vec<u16>) {
        if !ports.is_empty() {
            self.ports.insert(id.to_owned(), ports);
        }
    }

    /// Whether instances have a way out, as far as is known.
    pub(crate) fn is_possible(&self) -> bool {
        !self.impossible
    }

    /// A place for an instance. None: it has no way out, and shall see that at once.
    pub(crate) fn way(&mut self, id: &str) -> Option<Way> {
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
        let way = Way {
            slot,
            internet: self.internet,
        };
        let network = None;
        let former = self.instances.insert(id.to_owned(), Instance { way, network });
        if let Some(former) = former {
            self.used.remove(&former.way.slot);
        }
        Some(way)
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
        self.ports.remove(id);
        if let Some(instance) = self.instances.remove(id) {
            self.used.remove(&instance.way.slot);
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
                    way: instance.way,
                    ports: self.ports.get(id).cloned().unwrap_or_default(),
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
        if end == End::Code(i32::from(CANNOT)) && self.internet && self.doors.is_some() {
            self.internet = false;
            for instance in self.instances.values_mut() {
                instance.way.internet = false;
            }
            self.restart = Some(Instant::now());
        } else if end == End::Code(i32::from(CANNOT)) {
            self.waiting.clear();
            self.impossible = true;
        } else if end == End::Signal(Signal::KILL.as_raw()) && std::mem::take(&mut self.moved) {
            self.restart = Some(Instant::now());
        } else {
            super::say(format_args!(
                "the relay of instances ended with {end:?}, starting another one"
            ));
            self.restart = Some(Instant::now() + PAUSE);
        }
        true
    }
}
