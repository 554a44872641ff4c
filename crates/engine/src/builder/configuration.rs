//! What a builder may do and see, as an OCI configuration.

use serde_json::{Value, json};

use super::{BUILDER_SECRETS, Duty, GROUP, Privileges, VOLUMES, point};
use crate::{
    bundle,
    cgroup::{self, Layout, PERIOD_MICROS, quota_micros},
    rootfs, seccomp, secret_files,
};

/// What a builder that changes owners and users may do.
const OF_USERS: [&str; 7] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// What one may do that mounts, beyond what root in an instance may.
const OF_MOUNTS: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
];

/// The whole of it.
pub(super) fn configuration(duty: &Duty) -> Value {
    let Duty {
        id8,
        run,
        layout,
        spec,
        first_id,
        limits_swap,
        open_files,
        secrets,
    } = duty;
    let mount = |to: &str, kind: &str, options: &str| {
        let options: Vec<&str> = options.split(',').collect();
        json!({"destination": to, "type": kind, "source": kind, "options": options})
    };
    let mut mounts = vec![
        mount("/proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount(
            "/dev/pts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        mount("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
        mount("/sys/fs/cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ];
    for (index, bound) in spec.mounts.iter().enumerate() {
        let mut options = vec!["rbind", "nodev"];
        if bound.read_only {
            options.push("ro");
        }
        let source = run.place().join(point(index));
        mounts.push(json!({"destination": bound.to, "type": "bind", "source": source, "options": options}));
    }
    for directory in &spec.in_memory {
        mounts.push(mount(directory, "tmpfs", "nosuid,nodev,mode=700"));
    }
    if !secrets.is_empty() {
        let source = run.place().join(VOLUMES).join("0").join(secret_files::SEEN);
        let options = ["rbind", "nosuid", "nodev", "noexec", "ro"];
        mounts.push(json!({"destination": BUILDER_SECRETS, "type": "bind", "source": source, "options": options}));
    }
    let mut memory = json!({"limit": spec.memory_bytes});
    if *limits_swap {
        memory["swap"] = json!(spec.memory_bytes);
    }
    let mut resources = json!({
        "memory": memory,
        "cpu": {
            // Half of what an instance with one CPU has: services come first.
            "shares": 512,
            "period": PERIOD_MICROS,
            "quota": quota_micros(spec.cpu_millis),
        },
        "pids": {"limit": bundle::MOST_PROCESSES},
    });
    if let Layout::V2 { .. } = layout {
        resources["unified"] = json!({"memory.oom.group": "0"});
    }
    let (capabilities, calls) = match spec.privileges {
        Privileges::Mounts => (&OF_MOUNTS[..], seccomp::builders()),
        Privileges::Users => (&OF_USERS[..], seccomp::profile()),
    };
    let mapping = json!([{"containerID": 0, "hostID": first_id, "size": rootfs::IDS}]);
    let namespaces = ["user", "network", "pid", "mount", "ipc", "uts", "cgroup"].map(|kind| json!({"type": kind}));
    let open_files = (*open_files).min(bundle::MOST_OPEN_FILES);
    json!({
        "ociVersion": "1.0.2",
        "hostname": rootfs::HOST_NAME,
        "root": {"path": run.merged(), "readonly": false},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0, "additionalGids": []},
            "args": spec.arguments,
            "env": spec.environment,
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files}],
            "noNewPrivileges": true,
        },
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "uidMappings": mapping.clone(),
            "gidMappings": mapping,
            "cgroupsPath": format!("/{}/{GROUP}{}", cgroup::parent_name(id8), spec.id),
            "resources": resources,
            "seccomp": calls,
            "maskedPaths": bundle::MASKED,
            "readonlyPaths": bundle::READ_ONLY,
            "rootfsPropagation": "private",
        },
    })
}
