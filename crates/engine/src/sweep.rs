//! Removing what a Homerun left that did not end in order: processes, control groups, the runtime's state. Mounts of
//! instances and namespaces need no sweep, they end with the processes that hold them.

use std::{collections::BTreeSet, fs, io, path::Path};

use model::InstanceId;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::{
    cgroup::{self, Layout},
    claim::{Claim, RUN, RunDir, Wait, is_id8},
    company,
};

/// Clears everything of a Homerun but its claim, which the caller has.
pub(crate) fn sweep(id8: &str, run: &RunDir, layout: &Layout) -> io::Result<()> {
    cgroup::clear(layout, Path::new(&cgroup::parent_name(id8)))?;
    run.unmount();
    for leftover in [run.runtime(), run.bundles(), run.place()] {
        match fs::remove_dir_all(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Clears what is left of instances that were not taken over, all but the launcher and the `kept` ones.
pub(crate) fn sweep_others(id8: &str, run: &RunDir, layout: &Layout, kept: &BTreeSet<InstanceId>) -> io::Result<()> {
    let parent = Path::new(&cgroup::parent_name(id8)).to_owned();
    let of = |name: &str| InstanceId::parse(company::whose(name).0);
    let goes = |name: &String| of(name).is_some_and(|id| !kept.contains(&id));
    for root in layout.roots() {
        for name in names_in(&root.join(&parent)).into_iter().filter(goes) {
            cgroup::clear(layout, &parent.join(name))?;
        }
    }
    for directory in [run.bundles(), run.runtime(), run.all_volumes()] {
        for name in names_in(&directory).into_iter().filter(goes) {
            run.remove_instance(&name);
        }
    }
    Ok(())
}

/// Whether a launcher without a server keeps instances for the next one.
fn is_kept(run: &RunDir) -> bool {
    let knock = || -> io::Result<()> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok(connect(&socket, &SocketAddrUnix::new(run.launcher())?)?)
    };
    knock().is_ok()
}

/// Removes what is left of every Homerun of this machine whose owner is dead, and tells their ids. Never touches one
/// whose owner lives, or whose instances wait for another one.
pub fn sweep_dead() -> io::Result<Vec<String>> {
    let layout = Layout::here()?;
    let mut known = BTreeSet::new();
    known.extend(names_in(Path::new(RUN)));
    if let Some(layout) = &layout {
        for root in layout.roots() {
            let parents = names_in(root);
            known.extend(
                parents
                    .iter()
                    .filter_map(|name| name.strip_prefix("homerun-"))
                    .map(str::to_owned),
            );
        }
    }
    let mut swept = Vec::new();
    for id8 in known.into_iter().filter(|name| is_id8(name)) {
        let Some(claim) = Claim::take(&id8, Wait::Not)? else {
            continue;
        };
        if is_kept(&claim.dir) {
            continue;
        }
        if let Some(layout) = &layout {
            sweep(&id8, &claim.dir, layout)?;
        }
        claim.remove()?;
        swept.push(id8);
    }
    Ok(swept)
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
