//! What the launcher keeps of each container until its server lets it go: enough for another server to go on with it.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
};

use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
    process::Pid,
};

use crate::{
    claim::RunDir,
    wire::{End, Report},
};

/// By the runtime's name of the container.
#[derive(Debug, Default)]
pub(crate) struct Keeping(BTreeMap<String, Kept>);

#[derive(Debug)]
struct Kept {
    /// The ends from which its output is read, so that a program that writes while nobody reads is not killed for it.
    output: Vec<OwnedFd>,
    /// None while it is being made.
    made: Option<Made>,
}

/// A container with a process.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) pid: Pid,
    pub(crate) process: OwnedFd,
    pub(crate) network: OwnedFd,
    /// Of our own sandboxes: while it is held here, a parked one outlives its server.
    pub(crate) gate: Option<OwnedFd>,
    pub(crate) end: Option<End>,
}

impl Keeping {
    pub(crate) fn begin(&mut self, id: &str, output: Vec<OwnedFd>) {
        self.0.insert(id.to_owned(), Kept { output, made: None });
    }

    /// Its process is there. False: nobody wants it any more.
    pub(crate) fn made(&mut self, id: &str, made: Made) -> bool {
        let kept = self.0.get_mut(id);
        kept.map(|kept| kept.made = Some(made)).is_some()
    }

    pub(crate) fn ended(&mut self, id: &str, end: End) {
        if let Some(made) = self.0.get_mut(id).and_then(|kept| kept.made.as_mut()) {
            made.end = Some(end);
            made.gate = None;
        }
    }

    pub(crate) fn forget(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// Of every container with a process, what a new server is told and the files beside it: process, network, standard
    /// output, standard error and, where there is one, the gate.
    pub(crate) fn held(&self) -> impl Iterator<Item = (Report, Vec<&OwnedFd>)> {
        self.0.iter().filter_map(|(id, kept)| {
            let made = kept.made.as_ref()?;
            let files = [&made.process, &made.network].into_iter().chain(&kept.output);
            let held = Report::Held {
                id: id.clone(),
                pid: made.pid.as_raw_nonzero().get(),
                end: made.end,
            };
            Some((held, files.chain(&made.gate).collect()))
        })
    }
}

/// Where a new server knocks. Only whoever may enter the directory, and is the same user, comes that far.
pub(crate) fn door(run: &RunDir) -> io::Result<OwnedFd> {
    let path = run.launcher();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let door = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&door, &SocketAddrUnix::new(&path)?)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listen(&door, 4)?;
    Ok(door)
}
