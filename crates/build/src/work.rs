//! One build from its source to its image: fetch, unpack, build, take over. Every way to fail ends in words for the
//! client, in the log and in the build.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs::{self, File},
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use bucket::{Object, Objects};
use engine::{BuilderEnd, BuilderMount, BuilderSpec, Building, Privileges};
use image::{Digest, Reference, Tag};
use model::{Build, BuildState, BuiltImage, Recipe, StorageSource, Timestamp, with_causes};
use tokio::{io::AsyncReadExt as _, sync::watch, time::Instant};

use crate::{
    Links, archive,
    buildah::{self, History},
    cache::Caches,
    disk::Growth,
    generate::{self, Generated},
    index::{self, Reader},
    layer::Times,
    log::{self, Log},
    relay,
    reuse::{self, Memory},
    root,
    served::Served,
    take::{self, Bases},
};

/// Carries builds out.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) links: Links,
    pub(crate) caches: Caches,
}

/// Why a build did not end well.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Cancelled, or Homerun ends: whoever asked for it knows.
    Cancelled,
    Late,
    /// The user's own doing, in words for them.
    Failed(String),
    /// The same, and the builder has written too much to keep it.
    Full(String),
    /// Ours.
    Broken(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Until when a build may go on.
pub(crate) struct Until {
    cancelled: watch::Receiver<bool>,
    deadline: Instant,
}

impl Until {
    /// Resolves with the reason to stop.
    pub(crate) async fn reached(&mut self) -> Stop {
        tokio::select! {
            // Without a sender nobody waits for the build any more.
            _ = self.cancelled.wait_for(|cancelled| *cancelled) => Stop::Cancelled,
            () = tokio::time::sleep_until(self.deadline) => Stop::Late,
        }
    }

    /// Does what cannot be interrupted, and is short.
    pub(crate) async fn for_short<T>(&mut self, work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
        let done = work.await?;
        if *self.cancelled.borrow() {
            return Err(Stop::Cancelled);
        }
        if Instant::now() >= self.deadline {
            return Err(Stop::Late);
        }
        Ok(done)
    }
}

/// One build's directories.
pub(crate) struct Place(PathBuf);

impl Place {
    fn make(dir: &Path, id: &str) -> io::Result<Self> {
        let place = Self(dir.join("work").join(id));
        for name in ["context", "recipe", "out", "tmp"] {
            fs::create_dir_all(place.0.join(name))?;
        }
        Ok(place)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn of(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, place = %self.0.display(), "what a build left stays until the next start");
        }
    }
}

/// A source in its place.
struct Fetched {
    generated: Option<Generated>,
    /// When its files were changed last.
    times: BTreeSet<u64>,
    /// Of what is in it.
    sum: String,
}

/// What there is beside the builders of one build.
struct Beside {
    secret: String,
    served: Served,
    disk: Growth,
}

impl Work {
    /// Carries a build out and writes down how it ended, unless somebody else has.
    pub(crate) async fn carry_out(&self, build: Build, cancelled: watch::Receiver<bool>) {
        let started = build.state.started().unwrap_or_else(self.links.now);
        let id = build.id.clone();
        let written = self.set(&build, BuildState::Working { started }).await;
        if !written {
            return;
        }
        let timeout = Duration::from_secs(build.timeout_seconds.into());
        let mut until = Until {
            cancelled,
            deadline: Instant::now() + timeout,
        };
        let mut log = match Log::begin(&log::path(&crate::logs(&self.links.dir), &id)).await {
            Ok(log) => log,
            Err(error) => {
                tracing::error!(%error, build = %id, "the log of a build cannot be written");
                let why = format!("the log cannot be written: {error}");
                let finished = (self.links.now)();
                self.set(&build, BuildState::Failure { started, finished, why }).await;
                return;
            }
        };
        let done = self.attempt(&build, &mut until, &mut log).await;
        let finished = (self.links.now)();
        let state = match done {
            Ok(images) => {
                let _ = log.say("DONE").await;
                BuildState::Success {
                    started,
                    finished,
                    images,
                }
            }
            Err(stop) => {
                let Some(state) = ending(stop, started, finished, build.timeout_seconds) else {
                    let _ = log.say("CANCELLED").await;
                    return;
                };
                if let Some(why) = state.why() {
                    let _ = log.say(&format!("ERROR\nERROR: {why}")).await;
                }
                state
            }
        };
        drop(log);
        self.set(&build, state).await;
        if let Err(error) = tokio::task::block_in_place(|| self.caches.trim()) {
            tracing::warn!(%error, "layers of old builds cannot be removed");
        }
    }

    /// False: it had ended before, or is gone.
    async fn set(&self, build: &Build, state: BuildState) -> bool {
        let id = build.id.clone();
        let written = self.links.store.transact(move |transaction| {
            let Some(stored) = transaction.snapshot().builds.get(&id) else {
                return Ok(false);
            };
            if stored.state.is_done() {
                return Ok(false);
            }
            let mut stored = stored.as_ref().clone();
            stored.state = state;
            transaction.put_build(stored);
            Ok::<_, std::convert::Infallible>(true)
        });
        match written.await {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    build = %build.id,
                    "how far a build is was not stored"
                );
                // Whoever tries again does not do so at once.
                tokio::time::sleep(Duration::from_secs(1)).await;
                false
            }
        }
    }

    async fn attempt(&self, build: &Build, until: &mut Until, log: &mut Log) -> Result<Vec<BuiltImage>, Stop> {
        log.say(&format!("starting build \"{}\"\n\nFETCHSOURCE", build.id))
            .await?;
        let place = Place::make(&self.links.dir, build.id.as_str())?;
        if let Some(images) = self.by_buildpacks(build, &place, until, log).await? {
            return Ok(images);
        }
        let Ok(program) = engine::builder_program() else {
            return Err(Stop::Failed(
                "buildah is not there, and builds images here: apt-get install --yes buildah".to_owned(),
            ));
        };
        let dir = self.links.dir.clone();
        let root = tokio::task::block_in_place(|| root::prepare(&dir, &program))
            .map_err(|error| Stop::Broken(format!("the builder's root cannot be made: {error}")))?;
        let fetched = until.for_short(self.fetch(build, &place, log)).await?;
        let generated = fetched.generated.as_ref();

        let references = references(build)?;
        let Some(first) = references.first() else {
            return Err(Stop::Failed("the build names no image that is pushed".to_owned()));
        };
        let image = first.repository().to_string();
        let cache = tokio::select! {
            turn = self.caches.take(&image, async || {
                let _ = log.say("waiting for another build of this image").await;
            }) => turn?,
            stop = until.reached() => return Err(stop),
        };
        let secrets = self.links.secrets.of(build).map_err(Stop::Failed)?;
        let key = reuse::key(
            &fetched.sum,
            &build.recipe,
            &secrets.versions,
            generated.map(|generated| [&generated.plan.dockerfile, &generated.plan.ignore]),
            &root.display().to_string(),
            &self.links.indexes,
        );
        let mut memory = tokio::task::block_in_place(|| Memory::read(&cache.storage));
        if let Some(images) = self.unchanged(build, &memory, &key, &references, log).await? {
            return Ok(images);
        }
        log.say("BUILD").await?;
        let indexes = &self.links.indexes;
        for index in indexes {
            log.say(&format!("package index of {}: {index}", index.kind())).await?;
        }
        for (id, of) in &secrets.versions {
            log.say(&format!("secret {id}: version {} of {}", of.version, of.secret))
                .await?;
        }
        let mounts = mounts(&place, &cache.storage);
        fs::create_dir_all(cache.storage.join(root::CONTAINERS_OF_STEPS))?;
        let beside = Beside {
            secret: format!("{:032x}", (self.links.chance)()),
            served: Served::default(),
            disk: Growth::new(cache.storage.clone(), place.0.clone(), self.links.disk_bytes),
        };
        let spec = |arguments| BuilderSpec {
            id: build.id.as_str().to_owned(),
            layers: vec![root.clone()],
            privileges: Privileges::Mounts,
            mounts: mounts.clone(),
            in_memory: vec![format!("{}/{}", root::STORAGE, root::CONTAINERS_OF_STEPS)],
            secrets: secrets.values.clone(),
            arguments,
            environment: buildah::environment(&beside.secret),
            cpu_millis: self.links.cpu_millis,
            memory_bytes: self.links.memory_bytes,
            port: root::PORT,
        };
        let words = |history| buildah::build_arguments(&build.recipe, generated, indexes, history);
        let mut made = self.run(spec(words(History::Kept)), &beside, until, log).await?;
        if made.code != 0 && log.why().contains(buildah::NO_HISTORY) {
            log.say("a base image has no history, so that layers cannot be kept: building again without")
                .await?;
            made = self.run(spec(words(History::LeftOut)), &beside, until, log).await?;
        }
        if made.code != 0 {
            let why = log.why();
            let memory = if made.out_of_memory {
                format!(" (it met its memory limit of {} bytes)", self.links.memory_bytes)
            } else {
                String::new()
            };
            let hint = index::hint(&why, indexes).map(|hint| format!("\n{hint}"));
            let hint = hint.unwrap_or_default();
            return Err(Stop::Failed(format!("the build failed{memory} {why}{hint}")));
        }
        log.say("PUSH").await?;
        let (out, to) = (place.of("out"), place.of("image"));
        let bases = Bases::of(&self.links.images, &beside.served);
        let times = Times {
            epoch: bases.epoch,
            of_source: fetched.times,
        };
        let mut layers = bases.layers.clone();
        layers.extend(memory.layers(bases.epoch));
        tokio::task::block_in_place(|| take::offer(&self.links.images, &mut layers, &out))?;
        let push = BuilderSpec {
            secrets: Vec::new(),
            ..spec(buildah::push_arguments())
        };
        let pushed = self.run(push, &beside, until, log).await?;
        if pushed.code != 0 {
            return Err(Stop::Broken(format!(
                "the image cannot be taken out of the builder: {}",
                log.why()
            )));
        }
        let taken = tokio::task::block_in_place(|| take::take(&out, &to, &bases, &layers, &times));
        let layers = taken.map_err(|error| Stop::Broken(with_causes(&error)))?;
        // From here on it is not interrupted: a name is given or is not.
        until.for_short(async { Ok(()) }).await?;
        let imported = self.links.images.import_layout(&to, Some(first)).await;
        let imported = imported.map_err(|error| Stop::Failed(with_causes(&error)))?;
        let digest = imported.first().map(|image| image.digest);
        let digest = digest.ok_or_else(|| Stop::Broken("the builder left no image".to_owned()))?;
        for other in references
            .iter()
            .filter(|other| other.repository() != first.repository())
        {
            let imported = self.links.images.import_layout(&to, Some(other)).await;
            imported.map_err(|error| Stop::Failed(with_causes(&error)))?;
        }
        let images = self.name(&references, digest, log).await?;
        memory.keep_layers(bases.epoch, layers, &bases.layers);
        if let Some(tags) = beside.served.tags() {
            memory.remember(key, &build.id, &digest.to_string(), &tags);
        }
        memory.write(&cache.storage);
        Ok(images)
    }

    /// Gives the names to the image that an earlier build made in the same way. None: there is none, or it is not asked for.
    pub(crate) async fn unchanged(
        &self,
        build: &Build,
        memory: &Memory,
        key: &str,
        references: &[Reference],
        log: &mut Log,
    ) -> Result<Option<Vec<BuiltImage>>, Stop> {
        let (false, Some(first)) = (build.recipe.no_cache, references.first()) else {
            return Ok(None);
        };
        let Some((earlier, digest)) = memory.unchanged(key, &self.links.images, references).await else {
            return Ok(None);
        };
        let image = first.repository();
        log.say(&format!("unchanged since build {}: {image}@{digest}", earlier.id))
            .await?;
        self.name(references, digest, log).await.map(Some)
    }

    /// Points all names of a build at its image, which their repositories hold.
    async fn name(&self, references: &[Reference], digest: Digest, log: &mut Log) -> Result<Vec<BuiltImage>, Stop> {
        let mut images = Vec::new();
        for reference in references {
            let tag = reference.tag().cloned().unwrap_or_else(Tag::latest);
            let tagged = self.links.images.add_tag(reference.repository(), &tag, &digest);
            tagged.await.map_err(|error| Stop::Failed(with_causes(&error)))?;
            let name = format!("{}:{}", reference.repository(), tag.as_str());
            log.say(&format!("{name}: {digest}")).await?;
            images.push(BuiltImage {
                name,
                digest: digest.to_string(),
            });
        }
        Ok(images)
    }

    /// Brings the source into the context, and writes its Dockerfile where one is to be written.
    async fn fetch(&self, build: &Build, place: &Place, log: &mut Log) -> Result<Fetched, Stop> {
        let source = &build.source;
        log.say(&format!("fetching gs://{}/{}", source.bucket, source.object))
            .await?;
        let (objects, source, to) = (self.links.objects.clone(), source.clone(), place.of("context"));
        let (recipe, beside, bases) = (build.recipe.clone(), place.of("recipe"), self.links.bases.clone());
        let fetched = tokio::task::spawn_blocking(move || {
            let (object, file) = open_source(&objects, &source)?;
            let unpacked = archive::unpack(file, &to, archive::LIMITS, latest(&object));
            let contents = unpacked.map_err(|error| Stop::Failed(with_causes(&error)))?;
            let has_dockerfile = looks_right(&to, &recipe)?;
            let directory = to.join(&recipe.directory);
            let generated = (!has_dockerfile).then(|| generate::generate(&directory, &bases, &beside));
            Ok::<_, Stop>((contents, object.size, reuse::sum(&to)?, generated))
        });
        let (contents, size, sum, generated) = fetched.await.map_err(io::Error::other)??;
        log.say(&format!("{} files out of {size} bytes", contents.files))
            .await?;
        let mut fetched = Fetched {
            generated: None,
            times: contents.times,
            sum,
        };
        if let Some(generated) = generated {
            log.say("DETECT").await?;
            let generated = generated.map_err(|error| Stop::Failed(with_causes(&error)))?;
            log.say(generated.plan.to_string().trim_end()).await?;
            fetched.generated = Some(generated);
        }
        Ok(fetched)
    }

    /// Runs a builder to its end, with the relay beside it.
    async fn run(
        &self,
        spec: BuilderSpec,
        beside: &Beside,
        until: &mut Until,
        log: &mut Log,
    ) -> Result<BuilderEnd, Stop> {
        let indexes = Reader::open(&self.links.indexes, &beside.secret, root::PORT)?;
        let (images, served) = (self.links.images.clone(), beside.served.clone());
        self.run_beside(
            spec,
            |listener| relay::serve(listener, images, &beside.secret, indexes, served),
            &beside.disk,
            until,
            log,
        )
        .await
    }

    /// The same with what is served on the builder's loopback.
    pub(crate) async fn run_beside<S>(
        &self,
        spec: BuilderSpec,
        serve: impl FnOnce(TcpListener) -> S,
        disk: &Growth,
        until: &mut Until,
        log: &mut Log,
    ) -> Result<BuilderEnd, Stop>
    where
        S: Future<Output = io::Result<Infallible>>,
    {
        let mut building = self
            .links
            .engine
            .build(spec)
            .await
            .map_err(|error| Stop::Broken(with_causes(&error)))?;
        let followed = {
            let listener = building.listener.try_clone()?;
            let served = serve(listener);
            tokio::select! {
                ended = follow(&mut building, log) => ended,
                broken = served => Err(broken.map_or_else(Stop::from, |never| match never {})),
                stop = until.reached() => Err(stop),
                passed = disk.passed() => Err(passed.map_or_else(Stop::from, |why| {
                    Stop::Full(format!("{why} {}", log.why()).trim_end().to_owned())
                })),
            }
        };
        match followed {
            Ok(()) => Ok(building.wait().await?),
            Err(stop) => {
                building.kill().await?;
                if let Stop::Full(_) = stop {
                    disk.clear().await?;
                }
                Err(stop)
            }
        }
    }
}

/// The names of what a build pushes.
pub(crate) fn references(build: &Build) -> Result<Vec<Reference>, Stop> {
    let references = build.images.iter().map(|name| name.parse::<Reference>());
    let references: Result<Vec<_>, _> = references.collect();
    references.map_err(|error| Stop::Failed(with_causes(&error)))
}

/// Opens a source, which must be the one that was meant. Blocks on the disk.
pub(crate) fn open_source(objects: &Objects, source: &StorageSource) -> Result<(Object, File), Stop> {
    let opened = objects.read(&source.bucket, &source.object);
    let (object, file) = opened.map_err(|error| Stop::Failed(with_causes(&error)))?;
    if let Some(wanted) = source.generation.filter(|wanted| *wanted != object.generation) {
        let (bucket, name, now) = (&source.bucket, &source.object, object.generation);
        return Err(Stop::Failed(format!(
            "the source gs://{bucket}/{name} of generation {wanted} is not there any more: it is {now} now"
        )));
    }
    Ok((object, file))
}

/// No file of a source is younger than the source, in Unix seconds.
pub(crate) fn latest(object: &Object) -> u64 {
    u64::try_from(object.created.as_seconds()).unwrap_or_default()
}

/// Writes down what a builder says until it says nothing more.
async fn follow(building: &mut Building, log: &mut Log) -> Result<(), Stop> {
    let output = building.output.try_clone()?;
    let mut output = tokio::net::unix::pipe::Receiver::from_owned_fd(output)?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        match output.read(&mut buffer).await? {
            0 => return Ok(()),
            read => log.heard(&buffer[..read]).await?,
        }
    }
}

/// None: it was cancelled, and whoever did that has written it down.
fn ending(stop: Stop, started: Timestamp, finished: Timestamp, limit: u32) -> Option<BuildState> {
    match stop {
        Stop::Cancelled => None,
        Stop::Late => Some(BuildState::Timeout {
            started,
            finished,
            why: format!("the build took longer than its limit of {limit} seconds, and was ended"),
        }),
        Stop::Failed(why) | Stop::Full(why) => Some(BuildState::Failure { started, finished, why }),
        Stop::Broken(why) => {
            tracing::error!(why, "a build broke off");
            let why = format!("the build broke off: {why}");
            Some(BuildState::Failure { started, finished, why })
        }
    }
}

/// What would otherwise be said in the builder's words. Answers whether the source has a Dockerfile; one that is asked
/// for without need for it may have none.
fn looks_right(context: &Path, recipe: &Recipe) -> Result<bool, Stop> {
    let directory = context.join(&recipe.directory);
    if !directory.is_dir() {
        return Err(Stop::Failed(format!(
            "the source has no directory \"{}\"",
            recipe.directory
        )));
    }
    let (file, name) = buildah::dockerfile(recipe);
    let is_there = fs::symlink_metadata(context.join(&file)).is_ok();
    if !is_there && !recipe.detect {
        return Err(Stop::Failed(format!("the source has no {name}")));
    }
    Ok(is_there)
}

fn mounts(place: &Place, storage: &Path) -> Vec<BuilderMount> {
    let mount = |from: PathBuf, to: &str, read_only| BuilderMount {
        from,
        to: to.to_owned(),
        read_only,
    };
    vec![
        mount(place.of("context"), root::CONTEXT, true),
        mount(place.of("recipe"), root::RECIPE, true),
        mount(place.of("out"), root::OUT, false),
        mount(place.of("tmp"), root::TEMPORARY, false),
        mount(storage.to_owned(), root::STORAGE, false),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_build_is_left_as_it_was_written() {
        let at = Timestamp::from_micros(1);
        assert_eq!(ending(Stop::Cancelled, at, at, 1), None);
        let late = ending(Stop::Late, at, at, 7).expect("an end");
        assert!(late.why().is_some_and(|why| why.contains("7 seconds")), "{late:?}");
        assert_eq!(late.word(), "TIMEOUT");
    }
}
