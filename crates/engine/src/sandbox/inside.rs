//! The first process of a sandbox, from its birth in its namespaces until it becomes the program.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Instant,
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    io::Errno,
    process::{Resource, Rlimit},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{
    confined,
    maker::Given,
    maker::Spent,
    mounts,
    nursery::{Request, Word},
    plan::{Kind, Plan, Process},
};
use crate::{egress, network, rootfs::describe, wire};

fn told(what: &str) -> impl FnOnce(Errno) -> String + '_ {
    move |error| describe(what)(error.into())
}

fn text(bytes: &str) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("cannot pass on a text with a zero byte: {bytes:?}"))
}

/// Furnishes the sandbox, says that it is made, waits for its release and becomes the program. What goes wrong before
/// is told to the launcher; after it, there is only the container's own output to tell it.
pub(super) fn live(given: &Given<'_>, spent: Spent) -> ! {
    let Given { request, words, gate } = *given;
    let Request {
        start, plan, way_out, ..
    } = request;
    let id = start.id.as_str();
    let made = furnish(plan, *way_out, spent).and_then(|ready| {
        let Ready {
            program,
            spent,
            network,
        } = ready;
        let arguments = plan.process.arguments.iter().map(|word| text(word));
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        let environment = plan.process.environment.iter().map(|pair| text(pair));
        let environment = environment.collect::<Result<Vec<_>, _>>()?;
        let made = Word::Made {
            id: id.to_owned(),
            spent,
        };
        wire::send(words, &made, &[network.as_fd()]).map_err(describe("say that it is made"))?;
        Ok((program, arguments, environment))
    });
    let (program, arguments, environment) = match made {
        Ok(made) => made,
        Err(why) => {
            let failed = Word::Failed { id: id.to_owned(), why };
            let _ = wire::send(words, &failed, &[]);
            confined::leave(125)
        }
    };
    let mut byte = [0];
    loop {
        match rustix::io::read(gate, &mut byte) {
            Ok(1) => break,
            Err(Errno::INTR) => {}
            // Nobody is left who could release it.
            Ok(_) | Err(_) => confined::leave(0),
        }
    }
    let error = confined::become_program(&program, &arguments, &environment);
    // The same words as crun's: `life` knows them.
    let why = format!(
        "exec container process `{}`: {}\n",
        program.to_string_lossy(),
        reason(&error)
    );
    let _ = rustix::io::write(io::stderr(), why.as_bytes());
    confined::leave(1)
}

/// The words of an error without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// A process that is about to become a builder.
#[derive(Debug)]
pub(crate) struct Furnished {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Furnished {
    /// Returns only with why not.
    pub(crate) fn become_program(&self) -> io::Error {
        confined::become_program(&self.program, &self.arguments, &self.environment)
    }
}

/// Furnishes the calling process's sandbox, all but its network, for a program that nobody has to release.
pub(crate) fn furnish_builder(plan: &Plan) -> Result<Furnished, String> {
    let arguments = plan.process.arguments.iter().map(|word| text(word));
    let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
    let environment = plan.process.environment.iter().map(|pair| text(pair));
    let environment = environment.collect::<Result<Vec<_>, _>>()?;
    rustix::system::sethostname(plan.host_name.as_bytes()).map_err(told("set the host name"))?;
    mounts::enter(plan)?;
    let program = confine(&plan.process)?;
    confined::filter_calls(&plan.filter).map_err(describe("filter system calls"))?;
    Ok(Furnished {
        program,
        arguments,
        environment,
    })
}

struct Ready {
    program: CString,
    spent: Spent,
    network: OwnedFd,
}

fn furnish(plan: &Plan, way_out: Option<egress::Way>, mut spent: Spent) -> Result<Ready, String> {
    let begin = Instant::now();
    let network = network::open_namespace("/proc/thread-self/ns/net").map_err(describe("open the network"))?;
    if plan.made.contains(&Kind::Network) {
        network::furnish_own(way_out).map_err(describe("set up the network"))?;
    }
    spent.network = micros(begin);

    if plan.made.contains(&Kind::Uts) {
        rustix::system::sethostname(plan.host_name.as_bytes()).map_err(told("set the host name"))?;
    }
    mounts::enter(plan)?;
    let program = confine(&plan.process)?;
    confined::filter_calls(&plan.filter).map_err(describe("filter system calls"))?;
    Ok(Ready {
        program,
        spent,
        network,
    })
}

pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Gives up everything that the program shall not have. Returns the program's path.
fn confine(process: &Process) -> Result<CString, String> {
    rustix::process::setsid().map_err(told("begin a session"))?;
    confined::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some((soft, hard)) = process.open_files {
        let limit = Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        };
        rustix::process::setrlimit(Resource::Nofile, limit).map_err(told("limit open files"))?;
    }
    let known = (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for capability in known.take_while(|one| rustix::thread::capability_is_in_bounding_set(*one).is_ok()) {
        if process.bounding & capability.bits() == 0 {
            rustix::thread::remove_capability_from_bounding_set(capability).map_err(told("drop a capability"))?;
        }
    }
    let (user, group) = (Uid::from_raw(process.user), Gid::from_raw(process.group));
    let groups: Vec<Gid> = process.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    rustix::thread::set_keep_capabilities(true).map_err(told("keep capabilities"))?;
    rustix::thread::set_thread_groups(&groups).map_err(told("set groups"))?;
    rustix::thread::set_thread_res_gid(group, group, group).map_err(told("set the group"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(told("set the user"))?;
    // As the user, with the privileges to get anywhere still there: the directory is the image's own.
    rustix::process::chdir(process.directory.as_str()).map_err(|error| {
        let error = reason(&error.into());
        format!("cannot change to the directory {}: {error}", process.directory)
    })?;
    rustix::thread::set_keep_capabilities(false).map_err(told("give up capabilities"))?;
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(process.effective),
        permitted: CapabilitySet::from_bits_retain(process.permitted),
        inheritable: CapabilitySet::from_bits_retain(process.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).map_err(told("set capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(told("forgo new privileges"))?;
    program(process)
}

/// Finds what is to be run, by `PATH` unless its name is a path.
fn program(process: &Process) -> Result<CString, String> {
    let name = process.arguments.first().ok_or("no program")?.as_str();
    let missing = || format!("executable file `{name}` not found in $PATH: No such file or directory");
    if name.contains('/') {
        return match mounts::runs(name) {
            Ok(()) => text(name),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(missing()),
            Err(error) => Err(format!("cannot execute {name}: {}", reason(&error.into()))),
        };
    }
    let path = process
        .environment
        .iter()
        .rev()
        .find_map(|pair| pair.strip_prefix("PATH="));
    for directory in path.unwrap_or_default().split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{name}");
        if mounts::runs(&candidate).is_ok() {
            return text(&candidate);
        }
    }
    Err(missing())
}

/// Files that must be there before the sandbox's own root is.
pub(super) fn open_path(path: &std::path::Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
