//! The launcher's side of our own sandboxes: starting their makers, hearing from them, and knowing whose end it was.
#![expect(unsafe_code, reason = "clone has no safe form")]

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, Signal},
};
use serde::{Deserialize, Serialize};

use super::{
    maker::{self, Given, Spent},
    plan::Plan,
};
use crate::{
    cgroup::{Groups, Layout},
    egress, process,
    rootfs::describe,
    wire::{self, End, Start},
};

/// What a maker, or the first process of a sandbox, has to say.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// The first process of the sandbox has this id outside.
    Born {
        id: String,
        pid: i32,
    },
    /// It waits to be released. With its network namespace.
    Made {
        id: String,
        spent: Spent,
    },
    Failed {
        id: String,
        why: String,
    },
}

/// What a sandbox is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) start: &'a Start,
    pub(crate) plan: &'a Plan,
    pub(crate) layout: &'a Layout,
    /// Where the root file system is put together.
    pub(crate) place: &'a Path,
    /// The user namespace of the instance's range.
    pub(crate) ids: &'a OwnedFd,
    /// What becomes standard input, output and error.
    pub(crate) files: &'a [OwnedFd],
    /// The place that is kept for it in the router.
    pub(crate) way_out: Option<egress::Slot>,
}

/// A sandbox that is made.
#[derive(Debug)]
pub(crate) struct Infant {
    pub(crate) id: String,
    pub(crate) pid: Pid,
    pub(crate) network: OwnedFd,
    /// One byte into it lets the program run.
    pub(crate) gate: OwnedFd,
    pub(crate) spent: Spent,
}

/// One sandbox that is being made.
#[derive(Debug)]
struct Making {
    maker: Pid,
    /// Cleared when it has ended.
    maker_lives: bool,
    first: Option<Pid>,
    network: Option<(OwnedFd, Spent)>,
    gate: OwnedFd,
    /// What was said of its failure.
    why: Option<String>,
}

/// What became of a process that ended.
#[derive(Debug)]
pub(crate) enum Reaped {
    /// It was none of the nursery's.
    Stranger,
    /// The end of a sandbox that was not made; this is why.
    Stillborn { id: String, why: String },
    /// A maker that has done its work, or one of two ends.
    Nothing,
}

/// All sandboxes that are being made.
#[derive(Debug)]
pub(crate) struct Nursery {
    ours: OwnedFd,
    theirs: OwnedFd,
    making: HashMap<String, Making>,
}

impl Nursery {
    pub(crate) fn open() -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok(Self {
            ours,
            theirs,
            making: HashMap::new(),
        })
    }

    /// Readable when there is something to [`Nursery::hear`].
    pub(crate) fn words(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }

    /// Whether nothing is being made.
    pub(crate) fn is_empty(&self) -> bool {
        self.making.is_empty()
    }

    /// Starts the maker of one sandbox.
    pub(crate) fn make(&mut self, request: Request<'_>) -> Result<(), String> {
        let Request {
            start, plan, layout, ..
        } = request;
        let group = Groups::at(layout, &plan.groups)
            .make_first(&plan.limits)
            .map_err(describe("make the instance's control group"))?;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (gate, waiting) = pair.map_err(|error| describe("make a socket")(error.into()))?;
        // SAFETY: the launcher has one thread.
        let born = unsafe { process::clone(0, group.as_ref().map(OwnedFd::as_fd)) };
        let Some(maker) = born.map_err(describe("start a process"))? else {
            maker::run(&Given {
                request,
                words: &self.theirs,
                gate: &waiting,
            })
        };
        let making = Making {
            maker,
            maker_lives: true,
            first: None,
            network: None,
            gate,
            why: None,
        };
        self.making.insert(start.id.clone(), making);
        Ok(())
    }

    /// Takes in everything that was said, and returns what is made.
    pub(crate) fn hear(&mut self) -> io::Result<Vec<Infant>> {
        let mut made = Vec::new();
        loop {
            let (word, files) = match wire::receive::<Word>(&self.ours) {
                Ok(Some(heard)) => heard,
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(made),
                Err(error) => return Err(error),
            };
            let (Word::Born { id, .. } | Word::Made { id, .. } | Word::Failed { id, .. }) = &word;
            let id = id.clone();
            let Some(making) = self.making.get_mut(&id) else {
                continue;
            };
            match word {
                Word::Born { pid, .. } => making.first = Pid::from_raw(pid),
                Word::Made { spent, .. } => making.network = files.into_iter().next().map(|file| (file, spent)),
                Word::Failed { why, .. } => making.why = Some(why),
            }
            if making.first.is_some() && making.network.is_some() {
                made.extend(self.made(id));
            }
        }
    }

    fn made(&mut self, id: String) -> Option<Infant> {
        let making = self.making.remove(&id)?;
        let (network, spent) = making.network?;
        Some(Infant {
            pid: making.first?,
            id,
            network,
            gate: making.gate,
            spent,
        })
    }

    /// Takes note of the end of a process. Everything that was said before must have been heard.
    pub(crate) fn reap(&mut self, pid: Pid, end: End) -> Reaped {
        let whose = self
            .making
            .iter_mut()
            .find(|(_, making)| (making.maker_lives && making.maker == pid) || making.first == Some(pid));
        let Some((id, making)) = whose else {
            return Reaped::Stranger;
        };
        if making.first != Some(pid) {
            making.maker_lives = false;
            if end == End::Code(0) {
                return Reaped::Nothing;
            }
        }
        let id = id.clone();
        let why = making.why.take();
        let why = why.unwrap_or_else(|| format!("what makes its sandbox ended with {end:?}"));
        if let Some(making) = self.making.remove(&id) {
            making.end(pid);
        }
        Reaped::Stillborn { id, why }
    }

    /// Gives up one that is being made. Its end is then reaped.
    pub(crate) fn abort(&mut self, id: &str) {
        if let Some(making) = self.making.get(id) {
            making.kill();
        }
    }

    /// Ends all.
    pub(crate) fn end_all(&self) {
        for making in self.making.values() {
            making.kill();
        }
    }
}

impl Making {
    /// None of them was reaped yet, so the numbers are still theirs.
    fn kill(&self) {
        let maker = Some(self.maker).filter(|_| self.maker_lives);
        for pid in maker.into_iter().chain(self.first) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Ends the other one of the two when one has.
    fn end(&self, ended: Pid) {
        let maker = Some(self.maker).filter(|_| self.maker_lives);
        for pid in maker.into_iter().chain(self.first).filter(|pid| *pid != ended) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}
