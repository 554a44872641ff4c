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
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) start: &'a Start,
    pub(crate) plan: &'a Plan,
    pub(crate) layout: &'a Layout,
    /// Where the root file system is put together.
    pub(crate) place: &'a Path,
    /// The user namespace of the instance's range, under a number of its own.
    pub(crate) ids: OwnedFd,
    /// What becomes standard input, output and error.
    pub(crate) files: Vec<OwnedFd>,
    /// The place that is kept for it in the router.
    pub(crate) way_out: Option<egress::Way>,
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
    /// Open under these numbers until the maker has files of its own.
    lent: Vec<OwnedFd>,
    /// What was said of its failure.
    why: Option<String>,
}

/// What became of a sandbox.
#[derive(Debug)]
pub(crate) enum Heard {
    Made(Infant),
    /// It was not made; this is why.
    Stillborn {
        id: String,
        why: String,
    },
}

/// All sandboxes that are being made.
#[derive(Debug)]
pub(crate) struct Nursery {
    ours: OwnedFd,
    theirs: OwnedFd,
    making: HashMap<String, Making>,
    /// Processes that have ended, until it is said whose they were: the first one of a sandbox may be quicker than its
    /// maker, who tells of it.
    ended: HashMap<Pid, End>,
}

impl Nursery {
    pub(crate) fn open() -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok(Self {
            ours,
            theirs,
            making: HashMap::new(),
            ended: HashMap::new(),
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
        // SAFETY: the launcher has one thread. The files that the child shares with it are open until it has its own.
        let born = unsafe { process::clone(libc::CLONE_FILES, group.as_ref().map(OwnedFd::as_fd)) };
        let Some(maker) = born.map_err(describe("start a process"))? else {
            maker::run(&Given {
                request: &request,
                words: &self.theirs,
                gate: &waiting,
            })
        };
        let mut lent = request.files;
        lent.extend([request.ids, waiting]);
        let making = Making {
            maker,
            maker_lives: true,
            first: None,
            network: None,
            gate,
            lent,
            why: None,
        };
        self.making.insert(start.id.clone(), making);
        Ok(())
    }

    /// In a copy of the launcher that goes on to be something else: closes what was lent to makers. Somebody waits for
    /// the end of these files.
    pub(crate) fn disown(&mut self) {
        for making in self.making.values_mut() {
            making.lent.clear();
        }
    }

    /// Takes note of the end of a process that may be one of ours. What it means comes with the next [`Nursery::hear`],
    /// which must follow before anything else: by then all is there that the process said.
    pub(crate) fn ended(&mut self, pid: Pid, end: End) {
        self.ended.insert(pid, end);
    }

    /// Takes in everything that was said, and what the ends mean.
    pub(crate) fn hear(&mut self) -> io::Result<Vec<Heard>> {
        let mut told = Vec::new();
        loop {
            let (word, files) = match wire::receive::<Word>(&self.ours) {
                Ok(Some(heard)) => heard,
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
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
                told.push(id);
            }
        }
        let mut all: Vec<Heard> = std::mem::take(&mut self.ended)
            .into_iter()
            .filter_map(|(pid, end)| self.stillborn(pid, end))
            .collect();
        all.extend(told.into_iter().filter_map(|id| self.made(id)).map(Heard::Made));
        if self.making.is_empty() {
            self.ended.clear();
        }
        Ok(all)
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

    /// The sandbox that is not made because this process has ended, if that is so.
    fn stillborn(&mut self, pid: Pid, end: End) -> Option<Heard> {
        let whose = self
            .making
            .iter_mut()
            .find(|(_, making)| (making.maker_lives && making.maker == pid) || making.first == Some(pid));
        let Some((id, making)) = whose else {
            self.ended.insert(pid, end);
            return None;
        };
        if making.first != Some(pid) {
            making.maker_lives = false;
            if end == End::Code(0) {
                return None;
            }
        }
        let id = id.clone();
        let making = self.making.remove(&id)?;
        making.end(pid);
        let why = making.why;
        let why = why.unwrap_or_else(|| format!("what makes its sandbox ended with {end:?}"));
        Some(Heard::Stillborn { id, why })
    }

    /// Gives up one that is being made. Its end is then heard of.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A nursery with one sandbox, whose maker has this number.
    fn with_one(maker: i32) -> Nursery {
        let mut nursery = Nursery::open().expect("sockets");
        let making = Making {
            maker: pid(maker),
            maker_lives: true,
            first: None,
            network: None,
            gate: rustix::io::dup(&nursery.ours).expect("a file"),
            lent: Vec::new(),
            why: None,
        };
        nursery.making.insert("a".to_owned(), making);
        nursery
    }

    // Above what the kernel gives away, so that nobody is killed by mistake.
    fn pid(number: i32) -> Pid {
        Pid::from_raw((1 << 23) + number).expect("positive")
    }

    fn say(nursery: &Nursery, word: &Word) {
        wire::send(&nursery.theirs, word, &[]).expect("said");
    }

    fn born(number: i32) -> Word {
        Word::Born {
            id: "a".to_owned(),
            pid: pid(number).as_raw_nonzero().get(),
        }
    }

    fn why(nursery: &mut Nursery) -> Option<String> {
        match nursery.hear().expect("heard").pop()? {
            Heard::Stillborn { why, .. } => Some(why),
            Heard::Made(infant) => panic!("{infant:?}"),
        }
    }

    fn failed() -> Word {
        Word::Failed {
            id: "a".to_owned(),
            why: "no program".to_owned(),
        }
    }

    #[test]
    fn a_first_process_may_end_before_its_maker_tells_of_it() {
        let mut nursery = with_one(1);
        say(&nursery, &failed());
        nursery.ended(pid(2), End::Code(125));
        assert_eq!(why(&mut nursery), None, "nobody knows whose it was");
        nursery.ended(pid(1), End::Code(0));
        say(&nursery, &born(2));
        assert_eq!(why(&mut nursery).as_deref(), Some("no program"));
        assert!(nursery.is_empty() && nursery.ended.is_empty());
    }

    #[test]
    fn what_a_process_said_is_heard_though_it_is_known_to_have_ended() {
        let mut nursery = with_one(1);
        say(&nursery, &born(2));
        say(&nursery, &failed());
        nursery.ended(pid(2), End::Code(125));
        assert_eq!(why(&mut nursery).as_deref(), Some("no program"));
    }

    #[test]
    fn a_maker_that_fails_is_told_and_one_that_has_done_its_work_is_not() {
        let mut nursery = with_one(1);
        nursery.ended(pid(1), End::Code(0));
        assert_eq!(why(&mut nursery), None);
        assert!(!nursery.is_empty());
        let mut nursery = with_one(1);
        nursery.ended(pid(1), End::Code(125));
        assert_eq!(
            why(&mut nursery).as_deref(),
            Some("what makes its sandbox ended with Code(125)")
        );
    }
}
