//! From what a client asks for to a [`Build`]; everything that is not served is named.

use std::collections::BTreeMap;

use model::{
    AvailableSecret, BucketName, Build, BuildId, BuildState, BuildStep, DEFAULT_BUILD_TIMEOUT, MAX_BUILD_STEPS,
    MAX_BUILD_TIMEOUT, Recipe, Region, StorageSource, substitute,
};
use serde_json::Value;

use super::{
    log_bucket,
    pack::{self, DefaultBuilder},
    secrets, substitutions,
};
use crate::{
    document::{Findings, Object, short},
    error::Error,
    surface::Surface,
};

/// The images of docker steps.
const DOCKER: [&str; 4] = [
    "gcr.io/cloud-builders/docker",
    "docker",
    "docker.io/library/docker",
    "docker.io/docker",
];

/// The image of steps that gcloud makes of `--pack`.
const PACK: &str = "gcr.io/k8s-skaffold/pack";

/// What a docker of before needs for `--secret`, and ours does anyway.
const BUILDKIT: &str = "DOCKER_BUILDKIT=1";

/// Fields of a build that the server owns.
const OWNED: [&str; 16] = [
    "approval",
    "buildTriggerId",
    "createTime",
    "failureInfo",
    "finishTime",
    "id",
    "logUrl",
    "name",
    "projectId",
    "results",
    "sourceProvenance",
    "startTime",
    "status",
    "statusDetail",
    "timing",
    "warnings",
];

fn fresh_id() -> BuildId {
    BuildId::parse(&uuid::Uuid::new_v4().to_string()).expect("a UUID in lower case")
}

/// `POST builds`: the Build of Cloud Build.
pub(super) fn build(surface: &Surface, location: Region, creator: &str, document: Value) -> Result<Build, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let id = fresh_id();
    let own = root.map("substitutions");
    for name in own.keys().filter(|name| !is_users_own(name)) {
        root.say(
            "substitutions",
            format!("{} does not begin with _ and a capital letter", short(name)),
        );
    }
    let values = substitutions(surface, &id, &location, &own);
    let source = {
        let mut source = root.object("source");
        source.unserved(&[
            "connectedRepository",
            "developerConnectConfig",
            "gitSource",
            "repoSource",
            "storageSourceManifest",
        ]);
        let storage = source.object("storageSource");
        let found = storage_source(storage);
        source.finish();
        found
    };
    let available = secrets::available(&mut root, surface, &values);
    let steps = root.objects("steps");
    let count = steps.len();
    if !(1..=MAX_BUILD_STEPS).contains(&count) {
        root.say("steps", format!("{count} steps: 1 to {MAX_BUILD_STEPS} are expected"));
    }
    let mut asked = Vec::new();
    let mut recipe: Option<Recipe> = None;
    let mut pushed = Vec::new();
    let mut default_builder = DefaultBuilder::default();
    for (index, mut step) in steps.into_iter().enumerate() {
        let Some((kept, tool, words)) = self::step(&mut step, &values) else {
            step.finish();
            continue;
        };
        let read = match tool {
            Tool::Docker if words.len() == 2 && words[0] == "push" => {
                pushed.push(words[1].clone());
                Ok(None)
            }
            Tool::Docker => Recipe::of_docker(&words).map(Some).map_err(|error| error.to_string()),
            Tool::Pack => pack::step(&words, &mut default_builder),
        };
        let made = read.as_ref().ok().and_then(Option::as_ref);
        secrets::check_step(&step, &kept, made, &available);
        match read {
            Ok(Some(_)) if recipe.is_some() => step.say("args", "a second build is not served by this Homerun"),
            Ok(Some(read)) => {
                if words.iter().any(|word| word == "--publish") {
                    pushed.extend(read.tags.clone());
                }
                recipe = Some(read);
            }
            Ok(None) => {}
            Err(why) => step.say("args", why),
        }
        step.finish();
        asked.push(kept);
        if index + 1 == count && recipe.is_none() && !findings.any_under("steps") {
            root.say("steps", "none of them is a docker build or a pack build");
        }
    }
    if !findings.any_under("steps") && !findings.any_under("availableSecrets") {
        secrets::check_use(&root, &available, &asked);
    }
    let mut images = root.texts("images");
    let mut artifacts = root.object("artifacts");
    images.extend(artifacts.texts("images"));
    artifacts.unserved(&[
        "goModules",
        "mavenArtifacts",
        "npmPackages",
        "objects",
        "pythonPackages",
        "genericArtifacts",
    ]);
    artifacts.finish();
    let images: Vec<String> = images
        .iter()
        .filter_map(|name| match substitute(name, &values) {
            Ok(name) => Some(name),
            Err(unknown) => {
                root.say("images", format!("${} has no value", short(&unknown)));
                None
            }
        })
        .chain(pushed)
        .collect();
    let timeout = timeout(&mut root);
    let tags = root.texts("tags");
    if let Some(bucket) = root.text("logsBucket")
        && bucket.trim_start_matches("gs://") != log_bucket(surface)
    {
        root.say(
            "logsBucket",
            format!("only gs://{} is served by this Homerun", log_bucket(surface)),
        );
    }
    options(root.object("options"));
    root.unserved(&["secrets", "serviceAccount", "gitConfig", "dependencies"]);
    // How long it may wait: until it is its turn.
    root.drop_owned(&["queueTtl"]);
    root.drop_owned(&OWNED);
    root.finish();
    if let Some(recipe) = &recipe {
        check_images(&images, recipe, &findings);
    }
    finish(
        findings,
        id,
        location,
        creator,
        surface,
        Asked {
            source,
            steps: asked,
            recipe,
            images,
            timeout,
            tags,
            substitutions: own,
            secrets: available,
        },
    )
}

fn is_users_own(name: &str) -> bool {
    let mut letters = name.bytes();
    letters.next() == Some(b'_')
        && letters.next().is_some_and(|b| b.is_ascii_uppercase())
        && letters.all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// What a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Docker,
    Pack,
}

impl Tool {
    /// None: the image is of neither.
    fn of(image: &str, entrypoint: Option<&str>) -> Option<Self> {
        let bare = image.split([':', '@']).next().unwrap_or_default();
        let is = |program: &str| entrypoint.is_none_or(|entrypoint| entrypoint == program);
        if DOCKER.contains(&bare) && is("docker") {
            Some(Self::Docker)
        // The first one's own entrypoint is another program.
        } else if (bare == PACK && entrypoint == Some("pack")) || (pack::IMAGES.contains(&bare) && is("pack")) {
            Some(Self::Pack)
        } else {
            None
        }
    }
}

/// A step as it was asked, and its words with values put in. None: it is not served, which has been said.
fn step(step: &mut Object<'_>, values: &BTreeMap<String, String>) -> Option<(BuildStep, Tool, Vec<String>)> {
    let name = step.text("name").unwrap_or_default();
    let args = step.texts("args");
    let id = step.text("id").unwrap_or_default();
    let entrypoint = step.text("entrypoint");
    let env = step.texts("env");
    let secret_env = step.texts("secretEnv");
    // Steps follow one another anyway.
    step.texts("waitFor");
    step.unserved(&[
        "allowExitCodes",
        "allowFailure",
        "automapSubstitutions",
        "dir",
        "script",
        "timeout",
        "volumes",
    ]);
    step.drop_owned(&["pullTiming", "status", "timing", "exitCode"]);
    let Some(tool) = Tool::of(&name, entrypoint.as_deref()) else {
        match entrypoint {
            Some(other) if Tool::of(&name, None).is_some() => step.say(
                "entrypoint",
                format!("\"{}\" is not served by this Homerun", short(&other)),
            ),
            _ => step.say(
                "name",
                format!(
                    "\"{}\" is not served by this Homerun: only {} is, and {PACK} with the entrypoint pack",
                    short(&name),
                    DOCKER[0]
                ),
            ),
        }
        return None;
    };
    for pair in env.iter().filter(|pair| tool != Tool::Docker || *pair != BUILDKIT) {
        step.say(
            "env",
            format!(
                "\"{}\" is not served by this Homerun: only {BUILDKIT} of docker is",
                short(pair)
            ),
        );
    }
    let mut words = Vec::with_capacity(args.len());
    for (index, word) in args.iter().enumerate() {
        match substitute(word, values) {
            Ok(word) => words.push(word),
            Err(unknown) => {
                step.say(&format!("args[{index}]"), format!("${} has no value", short(&unknown)));
                return None;
            }
        }
    }
    Some((
        BuildStep {
            name,
            args,
            id,
            entrypoint: entrypoint.unwrap_or_default(),
            env,
            secret_env,
        },
        tool,
        words,
    ))
}

fn options(mut options: Object<'_>) {
    match options.text("logging").as_deref() {
        None | Some("LEGACY" | "GCS_ONLY" | "LOGGING_UNSPECIFIED") => {}
        Some(other) => options.say(
            "logging",
            format!(
                "only LEGACY and GCS_ONLY are served by this Homerun, not \"{}\"",
                short(other)
            ),
        ),
    }
    match options.text("substitutionOption").as_deref() {
        None | Some("MUST_MATCH") => {}
        Some(other) => options.say(
            "substitutionOption",
            format!("\"{}\" is not served by this Homerun", short(other)),
        ),
    }
    match options.text("logStreamingOption").as_deref() {
        None | Some("STREAM_DEFAULT" | "STREAM_ON") => {}
        Some(other) => options.say(
            "logStreamingOption",
            format!("\"{}\" is not served by this Homerun", short(other)),
        ),
    }
    options.unserved(&[
        "automapSubstitutions",
        "defaultLogsBucketBehavior",
        "diskSizeGb",
        "dynamicSubstitutions",
        "enableStructuredLogging",
        "env",
        "machineType",
        "pool",
        "pubsubTopic",
        "requestedVerifyOption",
        "secretEnv",
        "sourceProvenanceHash",
        "volumes",
        "workerPool",
    ]);
    options.finish();
}

/// What is pushed must be what is made, and ours.
fn check_images(images: &[String], recipe: &Recipe, findings: &Findings) {
    if images.is_empty() {
        findings.say(
            "images",
            "the build pushes no image, so that nothing of it would be left",
        );
    }
    let same = |one: &str, other: &str| {
        let whole = |name: &str| name.parse::<image::Reference>().ok().map(|name| name.to_string());
        one == other || whole(one).is_some_and(|one| whole(other) == Some(one))
    };
    for (index, name) in images.iter().enumerate() {
        if !recipe.tags.iter().any(|tag| same(tag, name)) {
            findings.say(format!("images[{index}]"), format!("no step makes \"{}\"", short(name)));
        }
    }
}

/// `POST builds:submit`: what a source deploy asks for.
pub(super) fn source(surface: &Surface, location: Region, creator: &str, document: Value) -> Result<Build, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let has_docker = root.has("dockerBuild");
    root.object("dockerBuild").finish();
    let detect = root.has("buildpackBuild");
    let pack = pack::of_source(root.object("buildpackBuild"));
    if detect && has_docker {
        root.say("buildpackBuild", "is not together with dockerBuild");
    } else if !detect && !has_docker {
        root.say("dockerBuild", "is required, or buildpackBuild");
    }
    let image = root.text("imageUri");
    if image.is_none() {
        root.say("imageUri", "is required");
    }
    let storage = root.object("storageSource");
    let source = storage_source(storage);
    let tags = root.texts("tags");
    // Their account is the default one, which builds here anyway.
    let account = root.text("serviceAccount");
    let default = surface.site.default_account();
    if account.is_some_and(|account| !account.ends_with(&default)) {
        root.say("serviceAccount", format!("only {default} is served by this Homerun"));
    }
    root.unserved(&["machineType", "releaseTrack", "client", "workerPool"]);
    root.finish();
    let image = image.unwrap_or_default();
    let asked = Asked {
        source,
        steps: Vec::new(),
        recipe: Some(Recipe {
            tags: vec![image.clone()],
            detect,
            pack,
            ..Recipe::default()
        }),
        images: vec![image],
        timeout: DEFAULT_BUILD_TIMEOUT,
        tags,
        substitutions: BTreeMap::new(),
        secrets: Vec::new(),
    };
    finish(findings, fresh_id(), location, creator, surface, asked)
}

struct Asked {
    source: Option<StorageSource>,
    steps: Vec<BuildStep>,
    recipe: Option<Recipe>,
    images: Vec<String>,
    timeout: u32,
    tags: Vec<String>,
    substitutions: BTreeMap<String, String>,
    secrets: Vec<AvailableSecret>,
}

fn finish(
    findings: Findings,
    id: BuildId,
    location: Region,
    creator: &str,
    surface: &Surface,
    asked: Asked,
) -> Result<Build, Error> {
    for (index, name) in asked.images.iter().enumerate() {
        let field = || format!("images[{index}]");
        match name.parse::<image::Reference>() {
            Ok(reference) if reference.digest().is_some() => {
                findings.say(
                    field(),
                    format!("\"{}\" is pushed by a tag, not by a digest", short(name)),
                );
            }
            Ok(reference) if image::is_own_host(reference.repository().host()) => {}
            Ok(reference) => findings.say(
                field(),
                format!(
                    "images are pushed to this Homerun only (LOCATION-docker.pkg.dev, gcr.io), not to {}",
                    reference.repository().host()
                ),
            ),
            Err(error) => findings.say(field(), model::with_causes(&error)),
        }
    }
    let violations = findings.into_violations();
    match (asked.source, asked.recipe) {
        (Some(source), Some(recipe)) if violations.is_empty() => Ok(Build {
            id,
            location,
            created: (surface.now)(),
            creator: creator.to_owned(),
            state: BuildState::Queued,
            source,
            steps: asked.steps,
            recipe,
            images: asked.images,
            timeout_seconds: asked.timeout,
            tags: asked.tags,
            substitutions: asked.substitutions,
            secrets: asked.secrets,
        }),
        _ => Err(Error::violations(violations)),
    }
}

fn storage_source(mut storage: Object<'_>) -> Option<StorageSource> {
    let bucket = storage.text("bucket");
    let object = storage.text("object");
    let generation = storage.integer("generation");
    // How it comes here is not the client's affair.
    storage.drop_owned(&["sourceFetcher"]);
    let bucket = match bucket {
        None => {
            storage.say(
                "bucket",
                "is required: only sources in a bucket are built by this Homerun",
            );
            None
        }
        Some(bucket) => BucketName::parse(&bucket)
            .map_err(|error| storage.say("bucket", error.to_string()))
            .ok(),
    };
    if object.is_none() {
        storage.say("object", "is required");
    }
    let generation = match generation.map(u64::try_from) {
        None | Some(Ok(0)) => None,
        Some(Ok(generation)) => Some(generation),
        Some(Err(_)) => {
            storage.say("generation", "is negative");
            None
        }
    };
    storage.finish();
    Some(StorageSource {
        bucket: bucket?,
        object: object?,
        generation,
    })
}

/// Seconds, as `600s`.
fn timeout(root: &mut Object<'_>) -> u32 {
    let Some(text) = root.text("timeout") else {
        return DEFAULT_BUILD_TIMEOUT;
    };
    let seconds = text.strip_suffix('s').unwrap_or_default();
    // Fractions count as a whole second.
    let whole = seconds.split_once('.').map_or(seconds, |(whole, _)| whole);
    match whole.parse::<u32>() {
        Ok(seconds) if (1..=MAX_BUILD_TIMEOUT).contains(&seconds) => seconds,
        _ => {
            root.say(
                "timeout",
                format!("expected 1s to {MAX_BUILD_TIMEOUT}s, not \"{}\"", short(&text)),
            );
            DEFAULT_BUILD_TIMEOUT
        }
    }
}
