//! What an OCI configuration asks for, in the form in which it is done. Reading is a pure function, and strict: a word
//! that is not known here is refused by its name.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::filter::{self, Instruction, Profile};
use crate::cgroup::Layout;

/// How one sandbox is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The mounted root file system.
    pub(crate) root: PathBuf,
    /// Without a slash in front, below each hierarchy.
    pub(crate) groups: PathBuf,
    /// Controller, file and text, in the order in which they are written.
    pub(crate) limits: Vec<(String, String, String)>,
    /// Kinds of namespaces that are made.
    pub(crate) made: Vec<Kind>,
    /// Namespaces that another container made, by their files.
    pub(crate) joined: Vec<(Kind, PathBuf)>,
    pub(crate) host_name: String,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) masked: Vec<String>,
    pub(crate) read_only: Vec<String>,
    pub(crate) process: Process,
    pub(crate) filter: Vec<Instruction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    User,
    Network,
    Pid,
    Mount,
    Ipc,
    Uts,
    Cgroup,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) at: String,
    pub(crate) what: What,
    /// `MOUNT_ATTR_*` of linux/mount.h.
    pub(crate) attributes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// Type, source, and options with or without a value.
    New(String, String, Vec<(String, Option<String>)>),
    /// What is at a path of the machine, with what is mounted below it.
    Bound(PathBuf),
    /// The control groups of the container, wherever this machine has them.
    Groups,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Environment,
    pub(crate) directory: String,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
    /// One bit for each capability.
    pub(crate) bounding: u64,
    pub(crate) permitted: u64,
    pub(crate) effective: u64,
    pub(crate) inheritable: u64,
    /// Soft and hard, of `RLIMIT_NOFILE`.
    pub(crate) open_files: Option<(u64, u64)>,
}

/// `NAME=VALUE` each. Values may be secrets: only names are printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Environment(Vec<String>);

impl std::ops::Deref for Environment {
    type Target = [String];
    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.0.iter().map(|pair| pair.split('=').next().unwrap_or_default());
        f.debug_list().entries(names).finish()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Text {
    #[serde(rename = "ociVersion")]
    _version: String,
    hostname: String,
    root: TextRoot,
    process: TextProcess,
    mounts: Vec<TextMount>,
    linux: TextLinux,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextRoot {
    path: PathBuf,
    readonly: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TextProcess {
    terminal: bool,
    user: TextUser,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    capabilities: TextCapabilities,
    rlimits: Vec<TextLimit>,
    no_new_privileges: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TextUser {
    uid: u32,
    gid: u32,
    #[serde(default)]
    additional_gids: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextCapabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    permitted: Vec<String>,
    inheritable: Vec<String>,
    ambient: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextLimit {
    r#type: String,
    soft: u64,
    hard: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextMount {
    destination: String,
    r#type: String,
    source: String,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TextLinux {
    // Those of the user namespace are the range's, which the launcher has made.
    #[serde(default, rename = "uidMappings")]
    _uid_mappings: Vec<Value>,
    #[serde(default, rename = "gidMappings")]
    _gid_mappings: Vec<Value>,
    namespaces: Vec<TextNamespace>,
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    cgroups_path: PathBuf,
    resources: TextResources,
    seccomp: Profile,
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
    rootfs_propagation: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextNamespace {
    r#type: Kind,
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextResources {
    memory: TextMemory,
    cpu: TextCpu,
    pids: TextPids,
    #[serde(default)]
    unified: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextMemory {
    limit: u64,
    swap: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextCpu {
    shares: u64,
    period: u64,
    quota: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextPids {
    limit: u64,
}

// Of linux/mount.h.
const READ_ONLY: u64 = 0x1;
const NO_SETUID: u64 = 0x2;
const NO_DEVICES: u64 = 0x4;
const NO_PROGRAMS: u64 = 0x8;
const STRICT_TIMES: u64 = 0x20;

/// By number, from `CAP_CHOWN` on.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn capabilities(names: &[String]) -> Result<u64, String> {
    names.iter().try_fold(0, |set, name| {
        let number = name
            .strip_prefix("CAP_")
            .and_then(|name| CAPABILITIES.iter().position(|known| *known == name))
            .ok_or_else(|| format!("the capability {name}"))?;
        Ok(set | 1 << number)
    })
}

fn mount(text: TextMount) -> Result<Mount, String> {
    let mut attributes = 0;
    let mut options = Vec::new();
    let mut bound = text.r#type == "bind";
    for option in text.options {
        match option.as_str() {
            "ro" => attributes |= READ_ONLY,
            "nosuid" => attributes |= NO_SETUID,
            "nodev" => attributes |= NO_DEVICES,
            "noexec" => attributes |= NO_PROGRAMS,
            "strictatime" => attributes |= STRICT_TIMES,
            "rbind" => bound = true,
            // What is the case anyway.
            "rw" | "relatime" | "private" | "rprivate" => {}
            _ if bound => return Err(format!("a bound mount with the option {option}")),
            _ => options.push(match option.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (option, None),
            }),
        }
    }
    let what = match text.r#type.as_str() {
        _ if bound => What::Bound(text.source.into()),
        "cgroup" if options.is_empty() => What::Groups,
        "proc" | "tmpfs" | "devpts" | "mqueue" | "sysfs" => What::New(text.r#type, text.source, options),
        kind => return Err(format!("a mount of type {kind}")),
    };
    Ok(Mount {
        at: text.destination,
        what,
        attributes,
    })
}

/// The files that limit a container: crun's, with crun's reading of shares as weight.
fn limits(resources: TextResources, layout: &Layout) -> Result<Vec<(String, String, String)>, String> {
    let TextResources {
        memory,
        cpu,
        pids,
        unified,
    } = resources;
    let mut all = Vec::new();
    let mut write = |controller: &str, file: &str, text: String| {
        all.push((controller.to_owned(), file.to_owned(), text));
    };
    match layout {
        Layout::V1 { .. } => {
            write("memory", "memory.limit_in_bytes", memory.limit.to_string());
            if let Some(both) = memory.swap {
                write("memory", "memory.memsw.limit_in_bytes", both.to_string());
            }
            write("cpu", "cpu.shares", cpu.shares.to_string());
            write("cpu", "cpu.cfs_period_us", cpu.period.to_string());
            if let Some(quota) = cpu.quota {
                write("cpu", "cpu.cfs_quota_us", quota.to_string());
            }
            write("pids", "pids.max", pids.limit.to_string());
            if let Some(name) = unified.keys().next() {
                return Err(format!("{name} where control groups are of version 1"));
            }
        }
        Layout::V2 { .. } => {
            write("memory", "memory.max", memory.limit.to_string());
            if let Some(both) = memory.swap {
                write(
                    "memory",
                    "memory.swap.max",
                    both.saturating_sub(memory.limit).to_string(),
                );
            }
            let weight = 1 + (cpu.shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            write("cpu", "cpu.weight", weight.to_string());
            let quota = cpu.quota.map_or("max".to_owned(), |quota| quota.to_string());
            write("cpu", "cpu.max", format!("{quota} {}", cpu.period));
            write("pids", "pids.max", pids.limit.to_string());
            for (file, text) in unified {
                let controller = file.split('.').next().unwrap_or_default().to_owned();
                write(&controller, &file, text);
            }
        }
    }
    Ok(all)
}

impl Plan {
    /// Reads a configuration. The error is what in it is not understood.
    pub(crate) fn read(configuration: &Value, layout: &Layout) -> Result<Self, String> {
        let text = Text::deserialize(configuration).map_err(|error| format!("its configuration: {error}"))?;
        let Text {
            hostname,
            root,
            process,
            mounts,
            linux,
            ..
        } = text;
        let refused = [
            (root.readonly, "a root that is read-only"),
            (process.terminal, "a terminal"),
            (!process.no_new_privileges, "new privileges"),
            (!process.capabilities.ambient.is_empty(), "ambient capabilities"),
            (process.args.is_empty(), "no program"),
            (linux.rootfs_propagation != "private", "mounts that propagate"),
        ];
        if let Some((_, what)) = refused.into_iter().find(|(is, _)| *is) {
            return Err(what.to_owned());
        }
        let mut made = Vec::new();
        let mut joined = Vec::new();
        for namespace in linux.namespaces {
            match (namespace.r#type, namespace.path) {
                // A first process that is nobody's first.
                (Kind::Pid | Kind::Mount | Kind::Cgroup, Some(path)) => {
                    return Err(format!("the namespace {}", path.display()));
                }
                (kind, Some(path)) => joined.push((kind, path)),
                (kind, None) => made.push(kind),
            }
        }
        for kind in [Kind::Pid, Kind::Mount, Kind::Cgroup] {
            if !made.contains(&kind) {
                return Err(format!("no {kind:?} namespace"));
            }
        }
        for kind in [Kind::User, Kind::Network, Kind::Ipc, Kind::Uts] {
            if !made.contains(&kind) && !joined.iter().any(|(joined, _)| *joined == kind) {
                return Err(format!("no {kind:?} namespace"));
            }
        }
        let mut open_files = None;
        for limit in process.rlimits {
            if limit.r#type != "RLIMIT_NOFILE" {
                return Err(limit.r#type);
            }
            open_files = Some((limit.soft, limit.hard));
        }
        let sets = process.capabilities;
        Ok(Self {
            root: root.path,
            groups: linux
                .cgroups_path
                .strip_prefix("/")
                .map_err(|_| "a control group without a slash in front")?
                .to_owned(),
            limits: limits(linux.resources, layout)?,
            made,
            joined,
            host_name: hostname,
            sysctls: linux.sysctl,
            mounts: mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
            masked: linux.masked_paths,
            read_only: linux.readonly_paths,
            process: Process {
                arguments: process.args,
                environment: Environment(process.env),
                directory: process.cwd,
                user: process.user.uid,
                group: process.user.gid,
                groups: process.user.additional_gids,
                bounding: capabilities(&sets.bounding)?,
                permitted: capabilities(&sets.permitted)?,
                effective: capabilities(&sets.effective)?,
                inheritable: capabilities(&sets.inheritable)?,
                open_files,
            },
            filter: filter::compile(&linux.seccomp)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const V1: Layout = Layout::V1 {
        hierarchies: BTreeMap::new(),
        unified: None,
    };

    fn v2() -> Layout {
        Layout::V2 { root: "/".into() }
    }

    fn read(change: impl Fn(&mut Value), layout: &Layout) -> Result<Plan, String> {
        let mut configuration = crate::bundle::tests::of_one(matches!(layout, Layout::V2 { .. }));
        change(&mut configuration);
        Plan::read(&configuration, layout)
    }

    #[test]
    fn what_bundle_makes_is_understood() {
        let plan = read(|_| (), &V1).expect("read");
        assert_eq!(plan.groups.to_str(), Some("homerun-0123abcd/iabababababababababababab"));
        assert_eq!(plan.process.bounding, 0x8004_05fb);
        assert_eq!((plan.process.permitted, plan.process.effective), (0, 0));
        assert_eq!(plan.process.open_files, Some((20_000, 20_000)));
        let printed = format!("{:?}", plan.process.environment);
        assert!(printed.contains("PORT") && !printed.contains("8080"), "{printed}");
        assert_eq!(plan.mounts.len(), 7);
        assert_eq!(plan.mounts[1].attributes, NO_SETUID | STRICT_TIMES);
        assert_eq!(plan.mounts[6].what, What::Groups);
        let text = serde_json::to_string(&plan).expect("written");
        assert_eq!(serde_json::from_str::<Plan>(&text).expect("read again"), plan);
        // Well below what one message may hold.
        assert!(text.len() < 16 << 10, "{}", text.len());
    }

    #[test]
    fn limits_of_both_versions() {
        let files = |layout: &Layout| {
            let plan = read(|_| (), layout).expect("read");
            let lines = plan.limits.into_iter();
            lines
                .map(|(_, file, text)| format!("{file}={text}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            files(&V1),
            [
                "memory.limit_in_bytes=536870912",
                "memory.memsw.limit_in_bytes=536870912",
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "pids.max=4096",
            ]
        );
        assert_eq!(
            files(&v2()),
            [
                "memory.max=536870912",
                "memory.swap.max=0",
                "cpu.weight=20",
                "cpu.max=50000 100000",
                "pids.max=4096",
                "memory.oom.group=1",
            ]
        );
    }

    #[test]
    fn another_containers_namespaces_are_joined() {
        let plan = read(
            |text| {
                for kind in text["linux"]["namespaces"].as_array_mut().expect("a list") {
                    if ["user", "network", "ipc", "uts"]
                        .iter()
                        .any(|name| kind["type"] == *name)
                    {
                        kind["path"] = json!("/proc/7/ns/x");
                    }
                }
            },
            &V1,
        );
        let plan = plan.expect("read");
        assert_eq!(plan.made, [Kind::Pid, Kind::Mount, Kind::Cgroup]);
        let joined: Vec<_> = plan.joined.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(joined, [Kind::User, Kind::Network, Kind::Ipc, Kind::Uts]);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_name() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 10] = [
            (|text| text["hooks"] = json!({}), "hooks"),
            (|text| text["process"]["terminal"] = json!(true), "terminal"),
            (
                |text| text["process"]["noNewPrivileges"] = json!(false),
                "new privileges",
            ),
            (
                |text| text["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]),
                "ambient",
            ),
            (
                |text| text["process"]["capabilities"]["bounding"] = json!(["CAP_X"]),
                "CAP_X",
            ),
            (
                |text| text["process"]["rlimits"][0]["type"] = json!("RLIMIT_CORE"),
                "RLIMIT_CORE",
            ),
            (|text| text["mounts"][0]["type"] = json!("nfs"), "nfs"),
            (|text| text["linux"]["devices"] = json!([]), "devices"),
            (|text| text["linux"]["namespaces"] = json!([{"type": "pid"}]), "Mount"),
            (|text| text["linux"]["resources"]["blockIO"] = json!({}), "blockIO"),
        ];
        for (change, named) in cases {
            let why = read(change, &V1).expect_err(named);
            assert!(why.contains(named), "{why}");
        }
    }
}
