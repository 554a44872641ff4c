//! From what an instance is to be, to the configuration that runsc reads. A pure function, as its sibling for crun.
//!
//! Paths of the machine in it are those of the keeper's room.

use image::{ImageConfig, User};
use model::{InstanceSpec, VolumeSource};
use serde_json::{Value, json};

use super::keeper::{GROUPS, ROOT};
use crate::{
    bundle::{self, BundleError, Lodging},
    rootfs::HOST_NAME,
};

/// Why an instance cannot be one of the first generation.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ConfigurationError {
    #[error(
        "several containers run in the second generation only: leave the execution environment unset or set it to gen2"
    )]
    SeveralContainers,
    #[error(
        "files of secrets are served in the second generation only: leave the execution environment unset or use gen2"
    )]
    SecretFiles,
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// The OCI configuration of `spec` with the image's `config`, run by `user`. Limits stand in it as for crun, for
/// whoever makes the groups: runsc is told to ignore them.
pub(crate) fn configuration(
    spec: &InstanceSpec,
    config: &ImageConfig,
    user: &User,
    lodging: &Lodging<'_>,
) -> Result<Value, ConfigurationError> {
    if !spec.sidecars.is_empty() {
        return Err(ConfigurationError::SeveralContainers);
    }
    let secret = |volume: &model::Volume| matches!(volume.source, VolumeSource::Secret { .. });
    if spec.volumes.iter().any(secret) {
        return Err(ConfigurationError::SecretFiles);
    }
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": HOST_NAME,
        "root": {"path": ROOT, "readonly": false},
        "process": bundle::process(&spec.container, config, user, lodging)?,
        "mounts": mounts(spec, lodging.one_tree),
        "linux": {
            "namespaces": namespaces,
            "resources": bundle::resources(spec, &spec.container, lodging),
        },
    }))
}

fn mounts(spec: &InstanceSpec, one_tree: bool) -> Vec<Value> {
    let mount = |destination: &str, kind: &str| json!({"destination": destination, "type": kind, "source": kind});
    let mut all = vec![mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/sys", "sysfs")];
    let groups: &[&str] = if one_tree { &[""] } else { &["/cpu", "/memory"] };
    all.extend(groups.iter().map(|group| {
        json!({
            "destination": format!("/sys/fs/cgroup{group}"),
            "type": "bind",
            "source": format!("{GROUPS}{group}"),
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        })
    }));
    all.extend(spec.container.mounts.iter().filter_map(|place| {
        let volume = spec.volumes.iter().find(|volume| volume.name == place.volume)?;
        let VolumeSource::Memory { size_limit } = &volume.source else {
            return None;
        };
        let most = size_limit
            .as_ref()
            .map_or(spec.memory_bytes(), |limit| limit.bytes().min(spec.memory_bytes()));
        Some(json!({
            "destination": place.path,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=1777", format!("size={most}")],
        }))
    }));
    all
}
