//! Makes images from source: takes queued builds from the store, has buildah or a lifecycle of buildpacks make each in a
//! builder of the engine, and puts what comes out into the image store.
//!
//! What enters: builds as the API wrote them down ([`model::Build`]), their sources out of buckets, base images out of
//! the image store, values of secrets by whoever opens them ([`Secrets`]). What leaves: images under their tags, each only when it is whole; the log of each build as a file
//! that grows; and in the store how it ended. Nobody calls a build: whoever writes one down or cancels it rings the
//! store's bell. A build that a restart broke off begins again.
//!
//! ```text
//! builds/root-<hash>/              the builder's root: buildah and its libraries
//! builds/work/<id>/                one build: context, recipe, out, tmp, image; gone at its end
//! builds/cache/<hash>/storage      layers of earlier builds of one image
//! builds/cache/<hash>/memory.json  what these were built from
//! builds/cache/<hash>/buildpacks   the same, of a lifecycle
//! builds/log/log-<id>.txt          logs
//! ```

mod archive;
mod buildah;
mod buildpacks;
mod cache;
mod detect;
mod disk;
mod generate;
mod index;
mod layer;
mod log;
mod relay;
mod reuse;
mod root;
mod secrets;
mod served;
mod take;
mod work;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bucket::Objects;
use engine::Engine;
use image::Images;
use model::{Build, BuildId, BuildState, Timestamp};
use store::{Snapshot, Store};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
};

pub use crate::{
    archive::{MAX_ARCHIVE, MAX_ENTRIES, MAX_UNPACKED},
    detect::{Base, BaseError, Bases, Language, Plan, Refusal, Tree, base_pair, plan},
    generate::MAX_MARKER,
    index::{Index, Kind},
    log::{MAX_LOG, path as log_path},
    secrets::{OpenSecret, Secrets},
};
use crate::{cache::Caches, work::Work};

/// How many builds run at a time; others are queued.
pub const AT_A_TIME: usize = 2;
/// How many builds that have ended are kept, with their logs.
pub const KEPT: usize = 500;

/// What builds stand on.
#[derive(Debug)]
pub struct Links {
    pub store: Store,
    pub images: Images,
    pub objects: Objects,
    pub engine: Arc<Engine>,
    /// The directory of builds; this crate's alone.
    pub dir: PathBuf,
    /// The most bytes that layers of earlier builds may have together.
    pub cache_bytes: u64,
    /// Of each build.
    pub memory_bytes: u64,
    /// The most bytes that each build may write to the disk.
    pub disk_bytes: u64,
    /// Of each build, in thousandths of a CPU.
    pub cpu_millis: u32,
    /// What the package managers of build steps read: at most one of a kind.
    pub indexes: Vec<Index>,
    /// What Dockerfiles begin with that are written for sources without one.
    pub bases: Bases,
    /// The builder's image whose buildpacks build sources without a Dockerfile; None: Dockerfiles are written for them.
    pub builder: Option<String>,
    pub secrets: Secrets,
    pub now: fn() -> Timestamp,
    pub chance: fn() -> u128,
}

/// Where the logs of builds are, in the directory of builds.
pub fn logs(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Makes the directory, and removes what an earlier process left unfinished. Blocks on the disk.
///
/// # Errors
/// When that cannot be done.
pub fn open(dir: &Path) -> io::Result<()> {
    let made = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made(dir)?;
    match fs::remove_dir_all(dir.join("work")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    made(&dir.join("work"))?;
    made(&dir.join("cache"))?;
    made(&logs(dir))
}

/// Carries builds out until `stop` resolves; then ends those that run, which begin again at the next start.
pub async fn run(links: Links, stop: impl Future<Output = ()>) {
    let store = links.store.clone();
    let logs = logs(&links.dir);
    let work = Arc::new(Work {
        caches: Caches::new(links.dir.join("cache"), links.cache_bytes),
        links,
    });
    let mut bell = store.changed();
    let mut stop = std::pin::pin!(stop);
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut running: HashMap<BuildId, (Id, watch::Sender<bool>)> = HashMap::new();
    loop {
        let snapshot = store.snapshot();
        for (id, (_, cancel)) in &running {
            if snapshot.builds.get(id).is_none_or(|build| build.state.is_done()) {
                cancel.send_replace(true);
            }
        }
        for build in due(&snapshot, AT_A_TIME, |id| running.contains_key(id)) {
            let (cancel, cancelled) = watch::channel(false);
            let (work, id) = (Arc::clone(&work), build.id.clone());
            let task = tasks.spawn(async move { work.carry_out(build, cancelled).await });
            running.insert(id, (task.id(), cancel));
        }
        tokio::select! {
            () = &mut stop => break,
            changed = bell.changed() => if changed.is_err() { break },
            Some(ended) = tasks.join_next_with_id() => {
                let task = match ended {
                    Ok((task, ())) => task,
                    Err(error) => {
                        tracing::error!(%error, "a build broke off");
                        error.id()
                    }
                };
                running.retain(|_, (of, _)| *of != task);
                forget_old(&store, &logs).await;
            }
        }
    }
    for (_, cancel) in running.values() {
        cancel.send_replace(true);
    }
    while tasks.join_next().await.is_some() {}
}

/// The builds that begin now: oldest first, as many as there is room for.
fn due(snapshot: &Snapshot, at_a_time: usize, is_running: impl Fn(&BuildId) -> bool) -> Vec<Build> {
    let (running, mut waiting): (Vec<_>, Vec<_>) = snapshot
        .builds
        .values()
        .filter(|build| !build.state.is_done() || is_running(&build.id))
        .partition(|build| is_running(&build.id));
    // One that a restart broke off was first once, and is so again.
    waiting.sort_by_key(|build| (matches!(build.state, BuildState::Queued), build.created));
    let room = at_a_time.saturating_sub(running.len());
    waiting
        .into_iter()
        .take(room)
        .map(|build| build.as_ref().clone())
        .collect()
}

/// Of the builds that have ended the newest stay.
async fn forget_old(store: &Store, logs: &Path) {
    let snapshot = store.snapshot();
    let mut ended: Vec<(Timestamp, BuildId)> = snapshot
        .builds
        .values()
        .filter_map(|build| Some((build.state.finished()?, build.id.clone())))
        .collect();
    if ended.len() <= KEPT {
        return;
    }
    ended.sort_unstable();
    let old: Vec<BuildId> = ended.drain(..ended.len() - KEPT).map(|(_, id)| id).collect();
    for id in &old {
        // One without a log is gone as well.
        let _ = tokio::fs::remove_file(log_path(logs, id)).await;
    }
    let forgotten = store.transact(move |transaction| {
        for id in &old {
            transaction.delete_build(id);
        }
        Ok::<_, std::convert::Infallible>(())
    });
    if let Err(error) = forgotten.await {
        tracing::warn!(error = &error as &dyn std::error::Error, "old builds are kept for now");
    }
}
