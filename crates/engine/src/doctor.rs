//! What a machine needs to run instances, and what mends it where it is missing.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{cgroup::Layout, egress};

/// File systems of the kernel's that every sandbox mounts anew: the kind, where the machine has it, and below it the
/// directories that are empty for ever, over which anything may be mounted.
const ANEW: [(&str, &str, &[&str]); 2] = [
    ("proc", "/proc", &["sys/fs/binfmt_misc", "fs/nfsd"]),
    ("sysfs", "/sys", &["fs", "kernel", "firmware/efi/efivars", "hypervisor"]),
];

/// One thing that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is missing, in one sentence.
    pub problem: String,
    /// The command or step that mends it.
    pub remedy: String,
}

fn finding(problem: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        problem: problem.into(),
        remedy: remedy.into(),
    }
}

/// Everything that this machine lacks, nothing when it can run instances. Starts a few processes, changes nothing.
pub fn doctor() -> Vec<Finding> {
    let mut found = Vec::new();
    if !rustix::process::geteuid().is_root() {
        found.push(finding(
            "Homerun does not run as root, which namespaces, mounts and control groups need",
            "run it with sudo",
        ));
    }
    found.extend(runtime());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(groups(Layout::parse(&mounts).as_ref()));
    found.extend(ANEW.iter().filter_map(|(kind, at, empty)| {
        let over = covered(&mounts, kind, empty);
        // The kernel knows best, and is asked only where it may refuse.
        (!over.is_empty() && refused(kind, at)).then(|| hidden(kind, at, &over))
    }));
    found.extend(way_out());
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !file_systems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"))
    {
        found.push(finding(
            "the kernel has no overlayfs",
            "modprobe overlay && echo overlay > /etc/modules-load.d/overlay.conf",
        ));
    }
    let user_namespaces = fs::read_to_string("/proc/sys/user/max_user_namespaces");
    let most: u64 = user_namespaces
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    if most == 0 {
        found.push(finding(
            "user namespaces are switched off",
            "sysctl -w user.max_user_namespaces=65536",
        ));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if kernel(release).is_some_and(|version| version < (5, 19)) {
        found.push(finding(
            format!("kernel {release} cannot stack layers through shifted ids; 5.19 is the first that can"),
            "apt-get install --yes linux-image-amd64 && reboot",
        ));
    }
    found
}

/// What is mounted over parts of a file system, as a user namespace finds it: the kernel lets it mount one of a kind
/// only where one of that kind is to be seen of which nothing but `empty` directories is covered (`mount_too_revealing`
/// in its `fs/namespace.c`). Nothing: there is one, or none at all.
fn covered(mounts: &str, kind: &str, empty: &[&str]) -> Vec<String> {
    let lines: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    let whole = lines.iter().filter(|words| {
        let kind_at = words.iter().position(|word| *word == "-").map_or(0, |dash| dash + 1);
        words.get(3) == Some(&"/") && words.get(kind_at) == Some(&kind)
    });
    let mut all = Vec::new();
    for mount in whole {
        let over = lines.iter().filter(|words| words.get(1) == Some(&mount[0]));
        let before = all.len();
        all.extend(over.filter_map(|words| {
            let path = words.get(4)?;
            let inside = Path::new(path).strip_prefix(mount[4]).ok()?;
            (!empty.iter().any(|empty| inside.starts_with(empty))).then(|| (*path).to_owned())
        }));
        if all.len() == before {
            return Vec::new();
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether a user namespace may not mount a file system anew. False where that cannot be tried.
fn refused(kind: &str, at: &str) -> bool {
    // Only root may try.
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let words = ["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"];
    let tried = Command::new("unshare")
        .args(words)
        .args(["mount", "-t", kind, kind, at])
        .output();
    tried.is_ok_and(|tried| !tried.status.success())
}

fn hidden(kind: &str, at: &str, over: &[String]) -> Finding {
    finding(
        format!(
            "no sandbox can mount {at}, because something is mounted over {}",
            over.join(", ")
        ),
        format!(
            "umount {}, or leave that and run: mkdir -p /run{at} && mount -t {kind} {kind} /run{at}",
            over.join(" ")
        ),
    )
}

fn runtime() -> Option<Finding> {
    let remedy = "apt-get install --yes crun";
    match Command::new("crun").arg("--version").output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            (!text.contains("+SECCOMP")).then(|| finding("crun was built without seccomp", remedy))
        }
        Ok(output) => Some(finding(format!("crun does not run: {}", output.status), remedy)),
        Err(error) => Some(finding(format!("crun is not there: {error}"), remedy)),
    }
}

/// The program that builds images. Without it everything works but builds from source.
///
/// # Errors
/// What is missing.
pub fn builder_program() -> Result<PathBuf, Finding> {
    program(Path::new("buildah")).ok_or_else(|| {
        finding(
            "buildah is not there: images cannot be built from source",
            "apt-get install --yes buildah",
        )
    })
}

/// Without it instances run, and reach nobody.
fn way_out() -> Option<Finding> {
    let Some(nft) = program(Path::new("nft")) else {
        return Some(finding(
            "nft is not there: instances have no way out",
            "apt-get install --yes nftables",
        ));
    };
    // Only root may try.
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let error = egress::trial(&nft).err()?;
    Some(finding(
        format!("instances have no way out: {error}"),
        "modprobe --all veth nft_tproxy nft_fib_inet nft_reject_inet",
    ))
}

fn groups(layout: Option<&Layout>) -> Vec<Finding> {
    match layout {
        None => vec![finding(
            "no control groups are mounted",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )],
        Some(Layout::V1 { hierarchies, unified }) => {
            let mut needed = vec!["cpu", "memory", "pids"];
            if unified.is_none() {
                needed.push("freezer");
            }
            let missing = needed.into_iter().filter(|name| !hierarchies.contains_key(*name));
            missing
                .map(|name| {
                    finding(
                        format!("the control group hierarchy {name} is not mounted"),
                        format!(
                            "mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} {name} /sys/fs/cgroup/{name}"
                        ),
                    )
                })
                .collect()
        }
        Some(Layout::V2 { root }) => {
            let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            let missing = ["cpu", "memory", "pids"]
                .into_iter()
                .filter(|name| !there.split_whitespace().any(|word| word == *name));
            missing
                .map(|name| {
                    finding(
                        format!("the control group controller {name} is not available"),
                        format!("boot with cgroup_enable={name}"),
                    )
                })
                .collect()
        }
    }
}

/// Where a program is, by `PATH` unless its name is a path.
pub(crate) fn program(name: &Path) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.components().count() > 1 {
        return Some(name.to_owned()).filter(executable);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(executable)
}

/// Major and minor number of a kernel release such as `6.1.0-18-amd64`.
fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        assert_eq!(kernel("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(kernel("5.19"), Some((5, 19)));
        assert_eq!(kernel("what"), None);
    }

    #[test]
    fn what_covers_proc_is_named() {
        let (proc, _, empty) = ANEW[0];
        let whole = "22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw\n";
        let cases = [
            ("", &[][..]),
            ("30 22 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n", &[]),
            (
                "30 22 0:30 /proc/uptime /proc/uptime rw - fuse.lxcfs lxcfs rw\n31 22 0:30 /m /proc/meminfo rw - fuse l rw\n",
                &["/proc/meminfo", "/proc/uptime"],
            ),
            // Another one that nothing covers is enough, and what is over part of it alone is none.
            (
                "30 22 0:30 / /proc/uptime rw - ext4 /dev/vda rw\n31 27 0:31 / /mnt rw - proc proc rw\n",
                &[],
            ),
            (
                "30 22 0:30 / /proc/uptime rw - ext4 /dev/vda rw\n31 27 0:21 /sys /mnt rw - proc proc rw\n",
                &["/proc/uptime"],
            ),
            ("30 27 0:30 / /processes rw - tmpfs tmpfs rw\n", &[]),
        ];
        for (more, expected) in cases {
            assert_eq!(covered(&format!("{whole}{more}"), proc, empty), expected, "{more}");
        }
        assert!(
            covered("", proc, empty).is_empty(),
            "no machine without /proc comes here"
        );
        let found = hidden("proc", "/proc", &["/proc/uptime".to_owned()]);
        assert!(found.problem.ends_with("over /proc/uptime"), "{found:?}");
    }

    #[test]
    fn a_missing_hierarchy_is_named_with_its_remedy() {
        let layout = Layout::parse("1 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        let found = groups(layout.as_ref());
        let all: Vec<_> = found.iter().map(|f| f.problem.as_str()).collect();
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(all.iter().any(|problem| problem.contains("freezer")));
        assert!(found[0].remedy.contains("mount -t cgroup -o"));
        assert!(!groups(None).is_empty());
    }
}
