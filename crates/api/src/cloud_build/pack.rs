//! What is asked of buildpacks: by the Run API's `buildpackBuild`, and by steps that run `pack`.

use model::{Pack, PackStep, Recipe, inside};

use crate::document::{Object, short};

/// Images whose program is pack.
pub(super) const IMAGES: [&str; 2] = ["buildpacksio/pack", "docker.io/buildpacksio/pack"];

/// What gcloud names as the base image of a build without a Dockerfile, when its user names none.
const NO_BASE: &str = "gcr.io/buildpacks/google-22/run";

/// What Google's builders know a function by.
const FUNCTION: &str = "GOOGLE_FUNCTION_TARGET";

/// The builder of steps that name none, as an earlier step has set it.
#[derive(Debug, Default)]
pub(super) struct DefaultBuilder(Option<String>);

/// Reads the words of a step. `None` is a step that makes nothing.
pub(super) fn step(words: &[String], default_builder: &mut DefaultBuilder) -> Result<Option<Recipe>, String> {
    match PackStep::of_words(words).map_err(|error| error.to_string())? {
        PackStep::DefaultBuilder(image) => {
            named(&image).map_err(|why| format!("default-builder: {why}"))?;
            default_builder.0 = Some(image);
            Ok(None)
        }
        PackStep::Build(mut recipe) => {
            if let Some(pack) = &mut recipe.pack {
                pack.default_builder.clone_from(&default_builder.0);
                for (flag, image) in [("--builder", &pack.builder), ("--run-image", &pack.run_image)] {
                    if let Some(image) = image {
                        named(image).map_err(|why| format!("{flag}: {why}"))?;
                    }
                }
                if let Some(image) = &pack.cache_image {
                    written(image).map_err(|why| format!("--cache-image: {why}"))?;
                }
            }
            Ok(Some(*recipe))
        }
    }
}

fn named(image: &str) -> Result<image::Reference, String> {
    let reference = image.parse::<image::Reference>();
    reference.map_err(|error| model::with_causes(&error))
}

/// The name of an image that a build writes.
fn written(image: &str) -> Result<(), String> {
    let reference = named(image)?;
    if reference.digest().is_some() {
        return Err(format!("\"{}\" is pushed by a tag, not by a digest", short(image)));
    }
    if !image::is_own_host(reference.repository().host()) {
        return Err(format!(
            "images are pushed to this Homerun only (LOCATION-docker.pkg.dev, gcr.io), not to {}",
            reference.repository().host()
        ));
    }
    Ok(())
}

/// `buildpackBuild`. None: nothing that only buildpacks could do.
pub(super) fn of_source(mut build: Object<'_>) -> Option<Pack> {
    let mut pack = Pack::default();
    match build.text("baseImage") {
        None => {}
        Some(base) if base == NO_BASE => {}
        Some(base) if !base.contains('/') => build.say(
            "baseImage",
            format!(
                "\"{}\" is not served by this Homerun: the whole name of an image is expected, such as {NO_BASE}",
                short(&base)
            ),
        ),
        Some(base) => match named(&base) {
            Ok(_) => pack.run_image = Some(base),
            Err(why) => build.say("baseImage", why),
        },
    }
    if let Some(cache) = build.text("cacheImageUri") {
        match written(&cache) {
            Ok(()) => pack.cache_image = Some(cache),
            Err(why) => build.say("cacheImageUri", why),
        }
    }
    for (name, value) in build.map("environmentVariables") {
        if let Err(error) = pack.set(&name, &value) {
            build.say("environmentVariables", error.to_string());
        }
    }
    if let Some(function) = build.text("functionTarget")
        && let Err(error) = pack.set(FUNCTION, &function)
    {
        build.say("functionTarget", error.to_string());
    }
    if let Some(path) = build.text("projectDescriptor") {
        match inside(&path) {
            Ok(path) => pack.descriptor = Some(path),
            Err(error) => build.say("projectDescriptor", error.to_string()),
        }
    }
    build.unserved(&["enableAutomaticUpdates", "runtime"]);
    build.finish();
    (pack != Pack::default()).then_some(pack)
}
