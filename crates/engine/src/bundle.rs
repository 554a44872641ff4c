//! From what an instance is to be, to the runtime's configuration. A pure function, so that the text can be compared.

use std::path::Path;

use image::{ImageConfig, User};
use model::{ContainerSpec, InstanceSpec, Revealed, VolumeSource};
use serde_json::{Value, json};

use crate::{
    cgroup::{PERIOD_MICROS, quota_micros},
    rootfs::{HOST_NAME, IDS},
    seccomp, secret_files,
};

/// Most processes and threads of one instance.
pub(crate) const MOST_PROCESSES: u32 = 4096;

/// Most open files of one process, unless the machine allows fewer: Cloud Run's limit.
pub(crate) const MOST_OPEN_FILES: u64 = 25_000;

/// Where programs are looked for when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What root inside may do, within its own namespaces. No raw sockets, no device nodes.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

pub(crate) const MASKED: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/kernel/debug",
];

pub(crate) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BundleError {
    #[error("the image names no entrypoint and no command, and the container gives none")]
    NoCommand,
}

/// Where an instance lives on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Lodging<'a> {
    /// The root file system, mounted.
    pub(crate) root: &'a Path,
    /// The id on the machine that is root inside.
    pub(crate) first_id: u32,
    /// Below every hierarchy, with a slash in front.
    pub(crate) groups: String,
    /// The layout is version 2's.
    pub(crate) one_tree: bool,
    pub(crate) limits_swap: bool,
    /// The most that the machine lets a process have.
    pub(crate) open_files: u64,
    /// Where the instance's volumes are, by their place in the spec.
    pub(crate) volumes: &'a Path,
    /// Values of secrets.
    pub(crate) secrets: &'a Revealed,
    /// Variables that every program has, unless its image or its container sets them.
    pub(crate) trust: &'a [(&'static str, String)],
    /// The process whose user, network, ipc and uts namespaces it shares. None: it makes its own.
    pub(crate) joins: Option<i32>,
}

/// What the containers of one instance share.
const SHARED: [&str; 4] = ["user", "network", "ipc", "uts"];

/// The OCI configuration of `container` of `spec` with the image's `config`, run by `user`.
pub(crate) fn configuration(
    spec: &InstanceSpec,
    container: &ContainerSpec,
    config: &ImageConfig,
    user: &User,
    lodging: &Lodging<'_>,
) -> Result<Value, BundleError> {
    let process = process(container, config, user, lodging)?;
    let mapping = json!([{"containerID": 0, "hostID": lodging.first_id, "size": IDS}]);
    let namespaces = ["user", "network", "pid", "mount", "ipc", "uts", "cgroup"];
    let namespaces = namespaces.map(|kind| match lodging.joins {
        Some(process) if SHARED.contains(&kind) => {
            let file = if kind == "network" { "net" } else { kind };
            json!({"type": kind, "path": format!("/proc/{process}/ns/{file}")})
        }
        Some(_) | None => json!({"type": kind}),
    });
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": lodging.groups,
        "resources": resources(spec, container, lodging),
        "seccomp": seccomp::profile(),
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
        "rootfsPropagation": "private",
    });
    // Whoever makes the shared namespaces sets them up.
    if lodging.joins.is_none() {
        linux["uidMappings"] = mapping.clone();
        linux["gidMappings"] = mapping;
        linux["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "0"});
    }
    let mut made = json!({
        "ociVersion": "1.0.2",
        "root": {"path": lodging.root, "readonly": false},
        "process": process,
        "mounts": mounts(spec, container, lodging),
        "linux": linux,
    });
    if lodging.joins.is_none() {
        made["hostname"] = json!(HOST_NAME);
    }
    Ok(made)
}

/// The first process of a container, in either generation.
pub(crate) fn process(
    container: &ContainerSpec,
    config: &ImageConfig,
    user: &User,
    lodging: &Lodging<'_>,
) -> Result<Value, BundleError> {
    let arguments = arguments(container, config)?;
    let open_files = lodging.open_files.min(MOST_OPEN_FILES);
    let (held, bounding): (&[&str], &[&str]) = match user.uid {
        0 => (&CAPABILITIES, &CAPABILITIES),
        _ => (&[], &CAPABILITIES),
    };
    let directory = match (&container.working_dir, config.working_dir.as_str()) {
        (Some(own), _) => own,
        (None, "") => "/",
        (None, of_image) => of_image,
    };
    Ok(json!({
        "terminal": false,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": arguments,
        "env": environment(container, config, user, lodging),
        "cwd": directory,
        "capabilities": {
            "bounding": bounding,
            "effective": held,
            "permitted": held,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files}],
        "noNewPrivileges": true,
    }))
}

/// Cloud Run's rule: a command replaces the entrypoint and drops the image's own arguments.
fn arguments<'a>(container: &'a ContainerSpec, config: &'a ImageConfig) -> Result<Vec<&'a String>, BundleError> {
    let (program, arguments) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (&container.command, &container.args),
        (true, false) => (&config.entrypoint, &container.args),
        (true, true) => (&config.entrypoint, &config.cmd),
    };
    let all: Vec<_> = program.iter().chain(arguments).collect();
    if all.is_empty() {
        return Err(BundleError::NoCommand);
    }
    Ok(all)
}

/// The image's, then the spec's; of two with one name the last wins and takes the first one's place. Every program is
/// told a path, its user's own directory, and whom to trust.
fn environment(container: &ContainerSpec, config: &ImageConfig, user: &User, lodging: &Lodging<'_>) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let mut all: Vec<String> = Vec::new();
    let own = container.env.iter().map(|v| format!("{}={}", v.name, v.value));
    let secret = lodging.secrets.variables_of(&container.name);
    let secret = secret.map(|(name, value)| format!("{name}={value}"));
    for entry in config.env.iter().cloned().chain(own).chain(secret) {
        match all.iter_mut().find(|held| name(held) == name(&entry)) {
            Some(held) => *held = entry,
            None => all.push(entry),
        }
    }
    let home = if user.home.is_empty() { "/" } else { &user.home };
    let trust = lodging
        .trust
        .iter()
        .map(|(variable, value)| (*variable, value.as_str()));
    for (variable, value) in [("PATH", DEFAULT_PATH), ("HOME", home)].into_iter().chain(trust) {
        if !all.iter().any(|entry| name(entry) == variable) {
            all.push(format!("{variable}={value}"));
        }
    }
    all
}

pub(crate) fn resources(spec: &InstanceSpec, container: &ContainerSpec, lodging: &Lodging<'_>) -> Value {
    let mut memory = json!({"limit": container.memory_bytes});
    if lodging.limits_swap {
        // Memory and swap together: no swap.
        memory["swap"] = json!(container.memory_bytes);
    }
    let mut cpu = json!({
        "shares": (u64::from(container.cpu_millis) * 1024 / 1000).max(2),
        "period": PERIOD_MICROS,
    });
    if !spec.startup_cpu_boost {
        cpu["quota"] = json!(quota_micros(container.cpu_millis));
    }
    let mut all = json!({
        "memory": memory,
        "cpu": cpu,
        "pids": {"limit": MOST_PROCESSES},
    });
    if lodging.one_tree {
        // The first kill ends all.
        all["unified"] = json!({"memory.oom.group": "1"});
    }
    all
}

fn mounts(spec: &InstanceSpec, container: &ContainerSpec, lodging: &Lodging<'_>) -> Value {
    let mount = |destination: &str, kind: &str, options: Vec<String>| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let size = format!("nosuid,noexec,nodev,mode=1777,size={}", container.memory_bytes);
    let mut all = vec![
        mount("/proc", "proc", words("nosuid,noexec,nodev")),
        mount("/dev", "tmpfs", words("nosuid,strictatime,mode=755,size=65536k")),
        mount(
            "/dev/pts",
            "devpts",
            words("nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ),
        mount("/dev/shm", "tmpfs", words(&size)),
        mount("/dev/mqueue", "mqueue", words("nosuid,noexec,nodev")),
        mount("/sys", "sysfs", words("nosuid,noexec,nodev,ro")),
        mount("/sys/fs/cgroup", "cgroup", words("nosuid,noexec,nodev,relatime,ro")),
    ];
    for mounted in &container.mounts {
        let volume = spec.volumes.iter().position(|volume| volume.name == mounted.volume);
        if let Some(volume) = volume {
            let place = lodging.volumes.join(volume.to_string());
            let (source, options) = match &spec.volumes[volume].source {
                VolumeSource::Memory { .. } => (place, "bind,rw,nosuid,nodev"),
                VolumeSource::Secret { .. } => (place.join(secret_files::SEEN), "bind,ro,nosuid,nodev,noexec"),
            };
            all.push(json!({
                "destination": mounted.path,
                "type": "bind",
                "source": source,
                "options": words(options),
            }));
        }
    }
    all.into()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::num::NonZeroU16;

    use model::{
        ContainerSpec, CpuAllocation, InstanceId, Probe, Region, ResolvedVar, RevealedVariable, RevisionKey, Sandbox,
        SecretItem, SecretValue, ServiceKey, VersionRef, Volume, VolumeMount,
    };

    use super::*;

    fn spec() -> InstanceSpec {
        InstanceSpec {
            id: InstanceId::new([0xab; 12]),
            of: RevisionKey {
                service: ServiceKey {
                    region: Region::parse("us-central1").expect("a region"),
                    name: "hello".parse().expect("a name"),
                },
                name: "hello-00001-abc".parse().expect("a name"),
            },
            container: ContainerSpec {
                name: String::new(),
                image: String::new(),
                command: Vec::new(),
                args: Vec::new(),
                working_dir: None,
                env: vec![ResolvedVar {
                    name: "PORT".to_owned(),
                    value: "8080".to_owned(),
                }],
                cpu_millis: 500,
                memory_bytes: 512 << 20,
                startup_probe: Some(Probe::implicit(NonZeroU16::new(8080).expect("not zero"))),
                liveness_probe: None,
                readiness_probe: None,
                mounts: Vec::new(),
                depends_on: Vec::new(),
            },
            sidecars: Vec::new(),
            port: NonZeroU16::new(8080).expect("not zero"),
            volumes: Vec::new(),
            secrets: Revealed::default(),
            startup_cpu_boost: false,
            cpu_allocation: CpuAllocation::Request,
            sandbox: Sandbox::Gen2,
        }
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/server".to_owned()],
            cmd: vec!["--fast".to_owned()],
            env: vec!["LANG=C".to_owned(), "PORT=1".to_owned()],
            working_dir: "/app".to_owned(),
            user: "1000".to_owned(),
            ..ImageConfig::default()
        }
    }

    static NO_SECRETS: Revealed = Revealed {
        variables: Vec::new(),
        files: Vec::new(),
    };

    fn lodging(one_tree: bool) -> Lodging<'static> {
        Lodging {
            root: Path::new("/run/homerun/0123abcd/box/merged"),
            first_id: 0x7001_0000,
            groups: "/homerun-0123abcd/iabababababababababababab".to_owned(),
            one_tree,
            limits_swap: true,
            open_files: 20_000,
            volumes: Path::new("/run/homerun/0123abcd/volumes/iab"),
            secrets: &NO_SECRETS,
            trust: &[],
            joins: None,
        }
    }

    #[test]
    fn whom_to_trust_is_told_unless_the_image_or_the_container_says() {
        let trust = ["OF_IMAGE", "OF_CONTAINER", "OF_NOBODY"].map(|name| (name, "/ours".to_owned()));
        let lodging = Lodging {
            trust: &trust,
            ..lodging(false)
        };
        let mut spec = spec();
        spec.container.env.push(ResolvedVar {
            name: "OF_CONTAINER".to_owned(),
            value: String::new(),
        });
        let mut image = image();
        image.env.push("OF_IMAGE=/its".to_owned());
        let made = configuration(&spec, &spec.container, &image, &User::default(), &lodging).expect("a command");
        let env: Vec<_> = made["process"]["env"].as_array().expect("a list").iter().collect();
        for right in ["OF_IMAGE=/its", "OF_CONTAINER=", "OF_NOBODY=/ours"] {
            assert!(env.contains(&&json!(right)), "{right}: {env:?}");
        }
    }

    #[test]
    fn secrets_are_variables_and_files_to_read() {
        let mut spec = spec();
        spec.volumes = vec![Volume {
            name: "keys".to_owned(),
            source: VolumeSource::Secret {
                secret: "s".parse().expect("a name"),
                items: vec![SecretItem {
                    version: VersionRef::Latest,
                    path: "key".to_owned(),
                    mode: None,
                }],
                mode: None,
            },
        }];
        spec.container.mounts = vec![VolumeMount {
            volume: "keys".to_owned(),
            path: "/keys".to_owned(),
        }];
        let variable = |container: &str, name: &str| RevealedVariable {
            container: container.to_owned(),
            name: name.to_owned(),
            value: SecretValue::new(b"hunter2".to_vec()),
        };
        let secrets = Revealed {
            variables: vec![variable("", "LANG"), variable("another", "OTHER")],
            files: Vec::new(),
        };
        let lodging = Lodging {
            secrets: &secrets,
            ..lodging(false)
        };
        let made = configuration(&spec, &spec.container, &image(), &User::default(), &lodging).expect("a command");
        let env = made["process"]["env"].as_array().expect("a list");
        assert_eq!(env[0], "LANG=hunter2", "in place of the image's");
        assert!(
            !env.iter()
                .any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("OTHER")))
        );
        let mount = made["mounts"].as_array().expect("a list").last().expect("one").clone();
        assert_eq!(
            mount,
            json!({
                "destination": "/keys",
                "type": "bind",
                "source": "/run/homerun/0123abcd/volumes/iab/0/files",
                "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
            })
        );
    }

    fn of(spec: &InstanceSpec, one_tree: bool) -> Value {
        let user = User {
            uid: 1000,
            gid: 1001,
            groups: vec![7],
            home: "/home/app".to_owned(),
        };
        let made = configuration(spec, &spec.container, &image(), &user, &lodging(one_tree));
        let mut made = made.expect("a command is there");
        // Long; what it does is tested from the inside of an instance.
        made["linux"]["seccomp"]["syscalls"] = json!("...");
        made
    }

    /// The whole of it, for those who read it.
    pub(crate) fn of_one(one_tree: bool) -> Value {
        let user = User {
            uid: 1000,
            gid: 1001,
            ..User::default()
        };
        let spec = spec();
        configuration(&spec, &spec.container, &image(), &user, &lodging(one_tree)).expect("a command is there")
    }

    #[test]
    fn version_1() {
        insta::assert_json_snapshot!(of(&spec(), false));
    }

    #[test]
    fn version_2() {
        insta::assert_json_snapshot!(of(&spec(), true));
    }

    #[test]
    fn a_boosted_start_has_no_quota() {
        let mut spec = spec();
        spec.startup_cpu_boost = true;
        let cpu = &of(&spec, false)["linux"]["resources"]["cpu"];
        assert_eq!(*cpu, json!({"shares": 512, "period": 100_000}));
    }

    #[test]
    fn commands_and_arguments_replace_the_images_own() {
        let arguments = |command: &[&str], own: &[&str]| {
            let mut spec = spec();
            spec.container.command = command.iter().map(|word| (*word).to_owned()).collect();
            spec.container.args = own.iter().map(|word| (*word).to_owned()).collect();
            of(&spec, false)["process"]["args"].clone()
        };
        assert_eq!(arguments(&[], &[]), json!(["/server", "--fast"]));
        assert_eq!(arguments(&[], &["-a"]), json!(["/server", "-a"]));
        assert_eq!(arguments(&["/b"], &[]), json!(["/b"]));
        assert_eq!(arguments(&["/b"], &["-c"]), json!(["/b", "-c"]));
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        let empty = ImageConfig::default();
        let made = configuration(&spec(), &spec().container, &empty, &User::default(), &lodging(false));
        assert_eq!(made, Err(BundleError::NoCommand));
    }
}
