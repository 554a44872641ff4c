//! Builds by Cloud Native Buildpacks: the lifecycle of a builder's image makes the app's image, as its specification
//! (the platform interface) says.
//!
//! The builder's image is the root of a builder of the engine; `creator`, the lifecycle's one program for all of a
//! build, begins as root of it, reads its credentials, and becomes the image's own user before it runs buildpacks. What
//! it pulls and pushes goes to the build's [`registry`]; the image gets its name when the build has ended well.

mod builder;
mod descriptor;
mod registry;

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{BuilderMount, BuilderSpec, Privileges};
use image::{Digest, Reference, ResolveError, Tag, Version};
use model::{Build, BuiltImage, Pack, with_causes};

pub(crate) use self::descriptor::Member;
use self::{
    builder::{Builder, CREATOR},
    descriptor::Descriptor,
    registry::{Pushed, Registry},
};
use crate::{
    archive,
    disk::Growth,
    index::Reader,
    log::Log,
    relay,
    reuse::{self, Memory},
    root,
    work::{Place, Stop, Until, Work, latest, open_source, references},
};

/// Where things are in a builder, as the lifecycle has them by itself.
const APP: &str = "/workspace";
const LAYERS: &str = "/layers";
const PLATFORM: &str = "/platform";
/// Where others are.
const CACHE: &str = "/homerun/cache";
const ORDER: &str = "/homerun/order";
const TEMPORARY: &str = "/tmp";

/// Largest report of a lifecycle that is read, in bytes.
const MAX_REPORT: u64 = 1 << 20;

/// Exit status of a builder whose program did not begin.
const NOT_BEGUN: i32 = 125;

/// A source that is built by buildpacks.
#[derive(Debug)]
struct Source {
    builder: String,
    /// Who has named that.
    by: &'static str,
    pack: Pack,
    group: Vec<Member>,
    /// Files, and bytes of the archive.
    size: (u64, u64),
    /// Of what is built.
    sum: String,
}

/// A builder's image, unpacked.
#[derive(Debug)]
struct Found {
    digest: Digest,
    layers: Vec<PathBuf>,
    builder: Builder,
}

impl Work {
    /// Makes the images of a build by buildpacks. `None`: they are not what makes them, and the context is empty.
    pub(crate) async fn by_buildpacks(
        &self,
        build: &Build,
        place: &Place,
        until: &mut Until,
        log: &mut Log,
    ) -> Result<Option<Vec<BuiltImage>>, Stop> {
        let Some(source) = until.for_short(self.packed(build, place)).await? else {
            return Ok(None);
        };
        let references = references(build)?;
        let Some(first) = references.first() else {
            return Err(Stop::Failed("the build names no image that is pushed".to_owned()));
        };
        let (files, bytes) = source.size;
        log.say(&format!(
            "fetching gs://{}/{}\n{files} files out of {bytes} bytes\nDETECT",
            build.source.bucket, build.source.object
        ))
        .await?;
        log.say(&format!("buildpacks of {} ({})", source.builder, source.by))
            .await?;
        let found = tokio::select! {
            found = self.builder(&source) => found?,
            stop = until.reached() => return Err(stop),
        };
        let builder = &found.builder;
        let (run, run_digest) = tokio::select! {
            run = self.run_image(&source, builder) => run?,
            stop = until.reached() => return Err(stop),
        };
        log.say(&format!(
            "builder {}\nrun image {run} {run_digest}\nversion {} of the platform interface",
            found.digest, builder.api
        ))
        .await?;
        let order = match source.group.as_slice() {
            [] => None,
            group => Some(builder.order(group).map_err(|error| of_builder(&source, &error))?),
        };

        let image = first.repository().to_string();
        let cache = tokio::select! {
            turn = self.caches.take(&image, async || {
                let _ = log.say("waiting for another build of this image").await;
            }) => turn?,
            stop = until.reached() => return Err(stop),
        };
        let indexes = &self.links.indexes;
        let made_of = reuse::Packed {
            source: &source.sum,
            pack: &source.pack,
            group: &source.group,
            builder: found.digest,
            run: (&run, run_digest),
        };
        let key = made_of.key(indexes);
        let mut memory = tokio::task::block_in_place(|| Memory::read(&cache.storage));
        if let Some(images) = self.unchanged(build, &memory, &key, &references, log).await? {
            return Ok(Some(images));
        }
        log.say("BUILD").await?;
        let mut variables = source.pack.environment.clone();
        for index in indexes {
            log.say(&format!("package index of {}: {index}", index.kind())).await?;
            // A builder's image is not written to, so that its configuration files stay what they are.
            if let Some((name, value)) = index.kind().variable(root::PORT)
                && variables.iter().all(|(known, _)| known != name)
            {
                variables.push((name.to_owned(), value));
            }
        }
        let cache_dir = cache.storage.with_file_name("buildpacks");
        let directory = &build.recipe.directory;
        tokio::task::block_in_place(|| {
            furnish(place, directory, builder, &variables, order.as_deref())?;
            make_cache(&cache_dir, builder, build.recipe.no_cache)
        })?;

        let secret = format!("{:032x}", (self.links.chance)());
        let cache_image = source.pack.cache_image.as_deref().map(str::parse::<Reference>);
        let cache_image = cache_image
            .transpose()
            .map_err(|error| Stop::Failed(with_causes(&error)))?;
        let registry = Arc::new(Registry::new(self.links.images.clone(), &secret));
        registry.show(registry::path_of(&run), run_digest);
        for written in [Some(first), cache_image.as_ref()].into_iter().flatten() {
            let tag = written.tag().cloned().unwrap_or_else(Tag::latest);
            let stored = self.links.images.tag(written.repository(), &tag);
            let stored = stored.map_err(|error| Stop::Broken(with_causes(&error)))?;
            registry.offer(registry::path_of(written), stored);
        }
        let run = Reference::pinned(run.repository().clone(), run_digest);
        let words = Words {
            builder,
            run: &run,
            image: first,
            cache_image: cache_image.as_ref(),
            has_order: order.is_some(),
            no_cache: build.recipe.no_cache,
            process: source.pack.process.as_deref(),
        };
        let spec = BuilderSpec {
            id: build.id.as_str().to_owned(),
            layers: found.layers.clone(),
            privileges: Privileges::Users,
            mounts: mounts(place, directory, &cache_dir, order.is_some()),
            in_memory: Vec::new(),
            secrets: Vec::new(),
            arguments: words.arguments(),
            environment: environment(builder, &secret),
            cpu_millis: self.links.cpu_millis,
            memory_bytes: self.links.memory_bytes,
            port: root::PORT,
        };
        let indexes = Reader::open(indexes, &secret, root::PORT)?;
        let disk = Growth::new(cache_dir.clone(), place.root().to_owned(), self.links.disk_bytes);
        let shown = Arc::clone(&registry);
        let serve = move |listener| {
            relay::answer_all(listener, move |request: http::Request<hyper::body::Incoming>| {
                let (registry, indexes) = (Arc::clone(&shown), indexes.clone());
                async move {
                    if indexes.is_asked(&request) {
                        indexes.answer(&request).await
                    } else {
                        registry.answer(request).await
                    }
                }
            })
        };
        let ended = self.run_beside(spec, serve, &disk, until, log).await?;
        if ended.code != 0 {
            let memory = if ended.out_of_memory {
                format!(" (it met its memory limit of {} bytes)", self.links.memory_bytes)
            } else {
                String::new()
            };
            let what = meaning(ended.code, &source.builder, builder);
            return Err(Stop::Failed(format!("{what}{memory} {}", log.why())));
        }
        // From here on it is not interrupted: a name is given or is not.
        until.for_short(async { Ok(()) }).await?;
        log.say("PUSH").await?;
        let pushed = match registry.pushed(&registry::path_of(first)) {
            Some(pushed) => pushed,
            None => self.made_once_more(&registry, first, place)?,
        };
        let images = self.give_names(&pushed, &references, log).await?;
        if let Some(cache) = &cache_image
            && let Some(pushed) = registry.pushed(&registry::path_of(cache))
        {
            self.give_names(&pushed, std::slice::from_ref(cache), log).await?;
        }
        if let Some(image) = images.first() {
            memory.remember(key, &build.id, &image.digest, &[]);
        }
        memory.write(&cache.storage);
        Ok(Some(images))
    }

    /// Brings the source into the context, if a builder is known that buildpacks come from.
    async fn packed(&self, build: &Build, place: &Place) -> Result<Option<Source>, Stop> {
        let recipe = build.recipe.clone();
        let own = self.links.builder.clone();
        let mut pack = match &recipe.pack {
            Some(pack) => pack.clone(),
            None if recipe.detect && own.is_some() => Pack::default(),
            None => return Ok(None),
        };
        let (objects, source, context) = (self.links.objects.clone(), build.source.clone(), place.of("context"));
        let looked = tokio::task::spawn_blocking(move || {
            let failed = |error: &dyn std::error::Error| Stop::Failed(with_causes(error));
            let (object, file) = open_source(&objects, &source)?;
            let unpacked = archive::unpack(file, &context, archive::LIMITS, latest(&object));
            let files = unpacked.map_err(|error| failed(&error))?.files;
            let directory = context.join(&recipe.directory);
            if !directory.is_dir() {
                let name = &recipe.directory;
                return Err(Stop::Failed(format!("the source has no directory \"{name}\"")));
            }
            let descriptor = Descriptor::of_source(&context, &recipe.directory, pack.descriptor.as_deref());
            let descriptor = descriptor.map_err(|error| failed(&error))?;
            let has_dockerfile = fs::symlink_metadata(directory.join("Dockerfile")).is_ok();
            let candidates = [
                (pack.builder.clone(), "named by the build"),
                (descriptor.builder.clone(), "named by the project descriptor"),
                // A Dockerfile is closer to the source than what all sources are built by.
                (
                    own.filter(|_| !(recipe.detect && has_dockerfile)),
                    "Homerun's own, by --build-builder",
                ),
                (pack.default_builder.clone(), "the default of the build"),
            ];
            let chosen = candidates.into_iter().find_map(|(builder, by)| Some((builder?, by)));
            let Some((builder, by)) = chosen else {
                let needed = pack.needs_buildpacks().or_else(|| descriptor.needs_buildpacks());
                if let Some(needed) = needed {
                    return Err(Stop::Failed(format!("the build has {needed}, which {NO_BUILDER}")));
                }
                if !recipe.detect {
                    return Err(Stop::Failed(format!("the build is one by pack, which {NO_BUILDER}")));
                }
                fs::remove_dir_all(&context)?;
                fs::create_dir(&context)?;
                return Ok(None);
            };
            descriptor.files.keep_in(&directory).map_err(|error| failed(&error))?;
            let asked = std::mem::take(&mut pack.environment);
            for (name, value) in descriptor.environment.iter().chain(&asked) {
                pack.set(name, value).map_err(|error| failed(&error))?;
            }
            Ok(Some(Source {
                builder,
                by,
                pack,
                group: descriptor.group,
                size: (files, object.size),
                sum: reuse::sum(&directory)?,
            }))
        });
        looked.await.map_err(io::Error::other)?
    }

    async fn builder(&self, source: &Source) -> Result<Found, Stop> {
        let reference = source.builder.parse::<Reference>();
        let reference = reference.map_err(|error| of_builder(source, &error))?;
        let resolved = self.links.images.resolve(&reference).await;
        let resolved = resolved.map_err(|error| Stop::Failed(absent("builder", &error)))?;
        let unpacked = self.links.images.ensure(&resolved.digest).await;
        let unpacked = unpacked.map_err(|error| of_builder(source, &error))?;
        let builder = tokio::task::block_in_place(|| Builder::read(&unpacked.config, &unpacked.layers));
        Ok(Found {
            digest: resolved.digest,
            builder: builder.map_err(|error| of_builder(source, &error))?,
            layers: unpacked.layers,
        })
    }

    /// The first of the images to run on that is here or can be pulled.
    async fn run_image(&self, source: &Source, builder: &Builder) -> Result<(Reference, Digest), Stop> {
        let named = match &source.pack.run_image {
            Some(named) => std::slice::from_ref(named),
            None => &builder.run_images,
        };
        let mut why = Vec::new();
        for name in named {
            let reference = name.parse::<Reference>();
            let reference =
                reference.map_err(|error| Stop::Failed(format!("run image {name}: {}", with_causes(&error))))?;
            match self.links.images.resolve(&reference).await {
                Ok(resolved) => return Ok((reference, resolved.digest)),
                Err(error) => why.push(absent("run image", &error)),
            }
        }
        if why.is_empty() {
            let builder = &source.builder;
            why.push(format!(
                "builder {builder} does not say what its apps run on (run image)"
            ));
        }
        Err(Stop::Failed(why.join("; ")))
    }

    /// The image that is there already: a lifecycle that has made the same once more does not push it.
    fn made_once_more(&self, registry: &Registry, image: &Reference, place: &Place) -> Result<Pushed, Stop> {
        let stored = registry.stored(&registry::path_of(image));
        let stored = stored.filter(|stored| reported(&place.of("layers")) == Some(*stored));
        let Some(stored) = stored else {
            return Err(Stop::Failed(format!("the lifecycle has pushed nothing to {image}")));
        };
        let version = Version::Digest(stored);
        let manifest = tokio::task::block_in_place(|| self.links.images.manifest(image.repository(), &version));
        let manifest = manifest.map_err(|error| Stop::Failed(with_causes(&error)))?;
        Ok(Pushed {
            media_type: manifest.media_type,
            content: manifest.content.into(),
        })
    }

    /// Gives the names to an image.
    async fn give_names(&self, pushed: &Pushed, names: &[Reference], log: &mut Log) -> Result<Vec<BuiltImage>, Stop> {
        let mut images = Vec::new();
        for reference in names {
            let tag = reference.tag().cloned().unwrap_or_else(Tag::latest);
            let name = format!("{}:{}", reference.repository(), tag.as_str());
            let version = Version::Tag(tag);
            let put =
                self.links
                    .images
                    .put_manifest(reference.repository(), &version, &pushed.media_type, &pushed.content);
            let digest = put
                .await
                .map_err(|error| Stop::Failed(with_causes(&error)))?
                .to_string();
            log.say(&format!("{name}: {digest}")).await?;
            images.push(BuiltImage { name, digest });
        }
        Ok(images)
    }
}

/// The digest of the image in the lifecycle's report, which its user could have written too. Blocks on the disk.
fn reported(layers: &Path) -> Option<Digest> {
    let path = layers.join("report.toml");
    let found = fs::symlink_metadata(&path).ok()?;
    if !found.is_file() || found.len() > MAX_REPORT {
        return None;
    }
    let report: toml::Table = toml::from_str(&fs::read_to_string(path).ok()?).ok()?;
    report.get("image")?.get("digest")?.as_str()?.parse().ok()
}

const NO_BUILDER: &str = "needs a builder of buildpacks: name one by project.toml, or for all sources by homerun up \
                          --build-builder IMAGE";

/// The registry's name in a builder.
fn host() -> String {
    format!("127.0.0.1:{}", root::PORT)
}

fn of_builder(source: &Source, error: &dyn std::error::Error) -> Stop {
    Stop::Failed(format!("builder {}: {}", source.builder, with_causes(error)))
}

fn absent(what: &str, error: &ResolveError) -> String {
    let hint = if let ResolveError::NotFound { reference } = error
        && image::is_own_host(reference.repository().host())
    {
        ": bring it here by homerun images import, or by a push"
    } else {
        ""
    };
    format!("{what}: {}{hint}", with_causes(error))
}

/// Makes the directories of a builder, each its user's. Blocks on the disk.
fn furnish(
    place: &Place,
    directory: &str,
    builder: &Builder,
    variables: &[(String, String)],
    order: Option<&str>,
) -> io::Result<()> {
    let own = |path: &Path| lchown(path, Some(builder.user), Some(builder.group));
    let layers = place.of("layers");
    fs::create_dir(&layers)?;
    own(&layers)?;
    let variables_dir = place.of("platform").join("env");
    fs::create_dir_all(&variables_dir)?;
    for (name, value) in variables {
        fs::write(variables_dir.join(name), value)?;
    }
    if let Some(order) = order {
        fs::create_dir(place.of("order"))?;
        fs::write(place.of("order").join("order.toml"), order)?;
    }
    fs::set_permissions(place.of("tmp"), fs::Permissions::from_mode(0o1777))?;
    let mut open = vec![place.of("context").join(directory)];
    while let Some(at) = open.pop() {
        own(&at)?;
        for entry in fs::read_dir(&at)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                own(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Makes the directory of layers for the next build, unless it is there. Blocks on the disk.
fn make_cache(dir: &Path, builder: &Builder, anew: bool) -> io::Result<()> {
    let owner = match fs::symlink_metadata(dir) {
        Ok(found) => Some(found.uid()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // What another builder's user has left would not even be writable.
    if owner.is_some_and(|owner| anew || owner != builder.user) {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    lchown(dir, Some(builder.user), Some(builder.group))
}

fn mounts(place: &Place, directory: &str, cache: &Path, has_order: bool) -> Vec<BuilderMount> {
    let mount = |from: PathBuf, to: &str, read_only| BuilderMount {
        from,
        to: to.to_owned(),
        read_only,
    };
    let mut all = vec![
        mount(place.of("context").join(directory), APP, false),
        mount(place.of("layers"), LAYERS, false),
        mount(place.of("platform"), PLATFORM, true),
        mount(place.of("tmp"), TEMPORARY, false),
        mount(cache.to_owned(), CACHE, false),
    ];
    if has_order {
        all.push(mount(place.of("order"), ORDER, true));
    }
    all
}

/// The image's own, with what the lifecycle is told by the platform.
fn environment(builder: &Builder, secret: &str) -> Vec<String> {
    let told = [
        ("CNB_PLATFORM_API", builder.api.to_owned()),
        ("CNB_REGISTRY_AUTH", registry::credentials(&host(), secret)),
        ("CNB_NO_COLOR", "true".to_owned()),
        // Clouds' own keepers of credentials are not asked.
        ("CNB_REGISTRY_AUTH_KEYCHAIN_SKIP_AMAZON", "true".to_owned()),
        ("CNB_REGISTRY_AUTH_KEYCHAIN_SKIP_AZURE", "true".to_owned()),
    ];
    let of_image = builder.environment.iter().filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        told.iter().all(|(told, _)| *told != name)
    });
    let mut all: Vec<String> = of_image.cloned().collect();
    all.extend(told.iter().map(|(name, value)| format!("{name}={value}")));
    all
}

/// What the lifecycle is told to do.
struct Words<'b> {
    builder: &'b Builder,
    run: &'b Reference,
    image: &'b Reference,
    cache_image: Option<&'b Reference>,
    has_order: bool,
    no_cache: bool,
    process: Option<&'b str>,
}

impl Words<'_> {
    fn arguments(&self) -> Vec<String> {
        let mut words: Vec<String> = [CREATOR, "-app", APP, "-layers", LAYERS, "-platform", PLATFORM]
            .map(str::to_owned)
            .to_vec();
        let mut say = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        match self.cache_image {
            Some(image) => say("-cache-image", here(image)),
            None => say("-cache-dir", CACHE.to_owned()),
        }
        say("-run-image", here(self.run));
        say("-uid", self.builder.user.to_string());
        say("-gid", self.builder.group.to_string());
        if self.has_order {
            say("-order", format!("{ORDER}/order.toml"));
        }
        if let Some(process) = self.process {
            say("-process-type", process.to_owned());
        }
        if self.no_cache {
            words.push("-skip-restore".to_owned());
        }
        words.push(here(self.image));
        words
    }
}

/// A reference as the lifecycle reads it.
fn here(reference: &Reference) -> String {
    let path = registry::path_of(reference);
    match reference.version() {
        Version::Tag(tag) => format!("{}/{path}:{}", host(), tag.as_str()),
        Version::Digest(digest) => format!("{}/{path}@{digest}", host()),
    }
}

/// A lifecycle's exit status in words.
fn meaning(code: i32, name: &str, builder: &Builder) -> String {
    let tried = if builder.tried.is_empty() {
        String::new()
    } else {
        format!(" ({})", builder.tried.join(", "))
    };
    match code {
        11 => format!(
            "the lifecycle of {name} does not speak version {} of the platform interface",
            builder.api
        ),
        12 => format!(
            "a buildpack of {name} wants a version of the buildpack interface that its lifecycle does not speak"
        ),
        20 => format!("no buildpack of {name} takes this source{tried}"),
        21 => format!("no buildpack of {name} takes this source{tried}, and one of them failed"),
        22..=29 => format!("the buildpacks of {name} cannot be asked whether they take this source"),
        30..=39 => "the run image, or the image of the last build, cannot be read".to_owned(),
        40..=49 => "layers of the last build cannot be brought back".to_owned(),
        51 => "a buildpack failed".to_owned(),
        50 | 52..=59 => "the buildpacks cannot be run".to_owned(),
        60..=69 => "the image cannot be put together".to_owned(),
        NOT_BEGUN => format!("the lifecycle of {name} cannot be started"),
        _ => format!("the lifecycle of {name} ended with exit status {code}"),
    }
}
