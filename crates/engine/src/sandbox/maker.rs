//! The short-lived process between the launcher and a sandbox: what only the machine's root can do, the control groups
//! and the root file system, and then the step into the user namespace, from which there is no way back.
#![expect(unsafe_code, reason = "clone has no safe form")]

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::Instant,
};

use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::{
    confined, inside,
    inside::micros,
    nursery::{Request, Word},
    plan::Kind,
};
use crate::{
    cgroup::Groups,
    egress, process,
    rootfs::{self, describe},
    wire,
};

/// How long parts of making a sandbox took, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// Control groups: made, limited, entered.
    pub(crate) cgroup: u64,
    /// The root file system.
    pub(crate) rootfs: u64,
    /// The network namespace's own part.
    pub(crate) network: u64,
}

/// What a maker is given by the launcher whose copy it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) words: &'a OwnedFd,
    pub(super) gate: &'a OwnedFd,
}

/// Never returns. What goes wrong is told to the launcher.
pub(super) fn run(given: &Given<'_>) -> ! {
    let id = &given.request.start.id;
    let why = match make(given) {
        Ok(()) => confined::leave(0),
        Err(why) => why,
    };
    let _ = wire::send(given.words, &Word::Failed { id: id.clone(), why }, &[]);
    confined::leave(125)
}

/// Returns in the maker, with the sandbox's first process born.
fn make(given: &Given<'_>) -> Result<(), String> {
    let Given { request, words, gate } = given;
    let Request {
        start,
        plan,
        layout,
        place,
        ids,
        files,
        way_out,
    } = request;
    let kept = [ids.as_fd(), words.as_fd(), gate.as_fd()];
    let needs: Vec<_> = files.iter().map(|file| file.as_fd()).chain(kept).collect();
    process::own_files(&needs).map_err(describe("take files of its own"))?;
    let mut spent = Spent::default();
    for (number, file) in (0..=2).zip(files) {
        process::become_standard(file, number).map_err(describe("connect the output"))?;
    }
    confined::close_others(&kept).map_err(describe("close files"))?;

    let begin = Instant::now();
    Groups::at(layout, &plan.groups)
        .enter(&plan.limits)
        .map_err(describe("make the control groups"))?;
    spent.cgroup = micros(begin);

    let begin = Instant::now();
    rootfs::leave_mounts().map_err(describe("leave the mounts"))?;
    let names = rootfs::Names {
        resolver: way_out.map(|_| egress::RESOLVER),
        containers: &start.names,
    };
    rootfs::assemble(place, &start.layers, ids, start.first_id, &names)?;
    spent.rootfs = micros(begin);

    // Before the step into the user namespace, as the machine's root, whose quota of keys is no instance's.
    let name = std::ffi::CString::new(start.id.as_str()).map_err(|_| "an id with a zero byte")?;
    confined::own_keyring(&name).map_err(describe("begin a keyring"))?;
    let mut user = None;
    let mut joined = Vec::new();
    for (kind, path) in &plan.joined {
        let opened = inside::open_path(path)
            .map_err(|error| format!("cannot open the namespace {}: {}", path.display(), error))?;
        match kind {
            Kind::User => user = Some(opened),
            Kind::Network | Kind::Pid | Kind::Mount | Kind::Ipc | Kind::Uts | Kind::Cgroup => joined.push(opened),
        }
    }
    confined::enter(user.as_ref().unwrap_or(ids)).map_err(describe("enter the user namespace"))?;
    let told = |error: rustix::io::Errno| describe("become root of the user namespace")(error.into());
    rustix::thread::set_thread_groups(&[]).map_err(told)?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(told)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(told)?;
    for namespace in joined {
        confined::enter(namespace).map_err(describe("enter a namespace"))?;
    }
    let flags = plan.made.iter().map(|kind| match kind {
        // Entered above.
        Kind::User => 0,
        Kind::Network => libc::CLONE_NEWNET,
        Kind::Pid => libc::CLONE_NEWPID,
        Kind::Mount => libc::CLONE_NEWNS,
        Kind::Ipc => libc::CLONE_NEWIPC,
        Kind::Uts => libc::CLONE_NEWUTS,
        Kind::Cgroup => libc::CLONE_NEWCGROUP,
    });
    let flags = flags.fold(libc::CLONE_PARENT, |all, flag| all | flag);
    // SAFETY: this process has one thread.
    let born = unsafe { process::clone(flags, None) }.map_err(describe("start a process in new namespaces"))?;
    let Some(pid) = born else {
        inside::live(given, spent);
    };
    let born = Word::Born {
        id: start.id.clone(),
        pid: pid.as_raw_nonzero().get(),
    };
    wire::send(words, &born, &[]).map_err(describe("say that it is born"))
}
