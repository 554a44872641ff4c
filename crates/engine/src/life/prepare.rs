//! What an instance needs before the launcher is asked: images, users, bundles.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::Arc,
};

use image::Digest;
use model::{ExitCause, InstanceSpec, Revealed, Sandbox, Volume, VolumeSource};

use super::{Entry, not_started};
use crate::{
    Inner, Maker,
    bundle::{self, Lodging},
    cgroup::Layout,
    company, gate,
    gvisor::{self, Gvisor},
    records::Record,
    sandbox::Plan,
    wire::VolumeSize,
};

/// What is made before the launcher is asked for one container.
pub(super) struct Prepared {
    /// Lowest first.
    pub(super) layers: Vec<PathBuf>,
    /// Of the output's pipes.
    pub(super) owner: (u32, u32),
    /// None: crun or runsc makes the sandbox.
    pub(super) plan: Option<Box<Plan>>,
    /// What runs the first generation.
    pub(super) gvisor: Option<Gvisor>,
}

/// The images of all containers, in the spec's order; or whose is not to be had, and why.
pub(super) async fn prepare(
    engine: &Arc<Inner>,
    entry: &Arc<Entry>,
) -> Result<Vec<image::Unpacked>, (usize, ExitCause)> {
    if entry.spec.sandbox == Sandbox::Gen1 && !entry.spec.sidecars.is_empty() {
        let why = "several containers are not served in the first generation execution environment, only in gen2";
        return Err((0, not_started(why)));
    }
    let mut prepared = Vec::new();
    for (index, container) in entry.spec.containers().enumerate() {
        let unpacked = async {
            let digest: Digest = container
                .image
                .parse()
                .map_err(|error: image::DigestError| model::with_causes(&error))?;
            engine
                .images
                .ensure(&digest)
                .await
                .map_err(|error| model::with_causes(&error))
        };
        prepared.push(unpacked.await.map_err(|why| (index, ExitCause::NotStarted(why)))?);
    }
    Ok(prepared)
}

/// User and bundle of one container.
pub(super) fn furnish(
    engine: &Inner,
    entry: &Entry,
    index: usize,
    unpacked: image::Unpacked,
    gvisor: Option<Gvisor>,
    joins: Option<i32>,
    secrets: &Revealed,
) -> Result<Prepared, String> {
    let user = image::user(&unpacked.layers, &unpacked.config.user).map_err(|error| model::with_causes(&error))?;
    let spec = &entry.spec;
    let id = spec.id.as_str();
    let first_id = entry.first_id;
    let merged = engine.run.merged();
    let below = if spec.sidecars.is_empty() {
        String::new()
    } else {
        format!("/c{index}")
    };
    let groups = format!("/{}/{id}{below}", crate::cgroup::parent_name(&engine.id8));
    let lodging = Lodging {
        root: &merged,
        first_id,
        groups,
        one_tree: matches!(engine.layout, Layout::V2 { .. }),
        limits_swap: engine.limits_swap,
        open_files: engine.open_files,
        volumes: &engine.run.volumes(id),
        secrets,
        trust: engine.trust.as_ref().map_or(&[], |trust| &trust.variables),
        joins,
    };
    let container = spec.containers().nth(index).expect("one of the spec's");
    let config = &unpacked.config;
    let configuration = match spec.sandbox {
        Sandbox::Gen1 => {
            gvisor::configuration(spec, config, &user, &lodging).map_err(|error| model::with_causes(&error))
        }
        Sandbox::Gen2 => {
            bundle::configuration(spec, container, config, &user, &lodging).map_err(|error| model::with_causes(&error))
        }
    }?;
    let bundle = engine.run.bundle(&company::runtime_name(&spec.id, index));
    let written = write_bundle(&bundle, &configuration).and_then(|()| {
        if index == 0 && engine.adoptable {
            let (spec, created) = (spec.clone(), crate::now());
            let record = Record {
                spec,
                first_id,
                created,
            };
            record.write(&bundle)?;
        }
        let parked = !*entry.released.borrow();
        if parked { gate::mark(&bundle) } else { Ok(()) }
    });
    written.map_err(|error| format!("cannot write the instance's bundle: {error}"))?;
    // Our own sandboxes have one container, know no volumes, and come to the launcher in one message.
    let environment = configuration["process"]["env"].to_string();
    let own = spec.sidecars.is_empty()
        && container.mounts.is_empty()
        && gvisor.is_none()
        && environment.len() <= LONGEST_ENVIRONMENT;
    let plan = match engine.maker {
        Maker::Own if own => match Plan::read(&configuration, &engine.layout) {
            Ok(plan) => Some(Box::new(plan)),
            Err(why) => {
                tracing::warn!(id, "crun makes this instance: our own launcher does not know {why}");
                None
            }
        },
        Maker::Own | Maker::Crun => None,
    };
    let trusted = engine.trust.as_ref().map(|trust| trust.layer.clone());
    Ok(Prepared {
        layers: trusted.into_iter().chain(unpacked.layers).collect(),
        owner: (first_id + user.uid, first_id + user.gid),
        plan,
        gvisor,
    })
}

/// The ports that containers are known to listen on.
pub(super) fn ports(spec: &InstanceSpec) -> Vec<u16> {
    let probes = spec.containers().flat_map(|container| {
        let all = [
            &container.startup_probe,
            &container.liveness_probe,
            &container.readiness_probe,
        ];
        all.into_iter().flatten().map(|probe| probe.check.port().get())
    });
    let ports: std::collections::BTreeSet<u16> = probes.chain([spec.port.get()]).collect();
    ports.into_iter().collect()
}

/// Of our own sandboxes, in JSON, bytes.
const LONGEST_ENVIRONMENT: usize = 64 << 10;

/// What a volume may hold: never more than the memory of all containers (Admin API, `sizeLimit`); of a secret, each of its
/// files once more than it has now.
pub(super) fn size_of_volume(volume: &Volume, spec: &InstanceSpec) -> VolumeSize {
    match &volume.source {
        VolumeSource::Memory { size_limit } => {
            let most = spec.memory_bytes();
            VolumeSize::Memory(size_limit.as_ref().map_or(most, |limit| limit.bytes().min(most)))
        }
        VolumeSource::Secret { items, .. } => {
            let files = items.len().max(1) + 1;
            VolumeSize::of_secrets(files)
        }
    }
}

fn write_bundle(directory: &PathBuf, configuration: &serde_json::Value) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(directory)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(directory.join("config.json"))?;
    io::Write::write_all(&mut file, &serde_json::to_vec(configuration)?)
}
