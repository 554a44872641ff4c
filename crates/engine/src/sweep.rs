//! Removing what a Homerun left that did not end in order: processes, control groups, the runtime's state. Mounts and
//! namespaces need no sweep, they end with the processes that hold them.

use std::{collections::BTreeSet, fs, io, path::Path};

use crate::{
    cgroup::{self, Layout},
    claim::{Claim, RUN, Wait, is_id8},
};

/// Clears everything of the claimed Homerun but the claim itself.
pub(crate) fn sweep(id8: &str, claim: &Claim, layout: &Layout) -> io::Result<()> {
    cgroup::clear(layout, Path::new(&cgroup::parent_name(id8)))?;
    for leftover in [claim.dir.runtime(), claim.dir.bundles(), claim.dir.place()] {
        match fs::remove_dir_all(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Removes what is left of every Homerun of this machine whose owner is dead, and tells their ids. Never touches one
/// whose owner lives.
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
        if let Some(layout) = &layout {
            sweep(&id8, &claim, layout)?;
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
