//! Cloud Build, as far as Dockerfiles and buildpacks go: builds submitted, listed, watched and cancelled, with their logs.
//!
//! A build is written down as queued, and carried out elsewhere (`build`); it is done when the store says so. What of a
//! build is not served is refused by its field before anything is stored. Logs are files that grow; gcloud reads them as
//! objects of the default bucket of logs.

mod decode;
mod log;
mod pack;
mod secrets;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{Method, Response, StatusCode, request::Parts};
use identity::Caller;
use model::{Build, BuildId, BuildState, Region};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use self::log::bucket as log_bucket;
pub(crate) use self::log::read as read_log;
use crate::{
    artifact_registry,
    document::{self, Findings, Object, short},
    error::{Code, Error},
    page::page,
    query::Query,
    reply::{self, Body},
    run::{
        call::{check_project, unimplemented},
        v1::rfc3339,
    },
    surface::Surface,
};

/// How long a question for an operation waits for its end (gcloud's own patience is 300 seconds).
const HOLD: Duration = Duration::from_secs(50);
/// Most builds that wait or run.
const MAX_OPEN: usize = 100;

const BUILD: &str = "type.googleapis.com/google.devtools.cloudbuild.v1.Build";
const METADATA: &str = "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata";

/// `cloudbuild.googleapis.com`.
pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let answer = serve(surface, host, caller, &head, body).await?;
    Ok(reply::json(StatusCode::OK, &answer))
}

async fn serve(surface: &Surface, host: &str, caller: &Caller, head: &Parts, body: Body) -> Result<Value, Error> {
    let path = head.uri.path();
    let unknown = || unimplemented(host, &head.method, path);
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| unknown())?;
    let parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    let query = Query::parse(head.uri.query());
    let (project, location, rest) = match parts.as_slice() {
        ["v1", "projects", project, "locations", location, rest @ ..] => (*project, *location, rest),
        ["v1", "projects", project, rest @ ..] => (*project, "global", rest),
        _ => return Err(unknown()),
    };
    check_project(project, &surface.site)?;
    let place = if location == "-" {
        None
    } else {
        Some(Region::parse(location).map_err(|error| Error::field("location", error.to_string()))?)
    };
    match (&head.method, rest) {
        (&Method::GET, ["defaultServiceAccount"]) => {
            query.finish()?;
            Ok(json!({
                "name": format!("projects/{}/locations/{location}/defaultServiceAccount", surface.site.project),
                "serviceAccountEmail": format!("projects/{}/serviceAccounts/{}", surface.site.project, surface.site.default_account()),
            }))
        }
        (&Method::GET, ["operations", id]) => {
            query.finish()?;
            let build = wait(surface, id).await?;
            Ok(operation(surface, build.as_ref()))
        }
        (&Method::GET, ["builds"]) => list(surface, place.as_ref(), query),
        (&Method::POST, ["builds"]) => {
            let mut query = query;
            // The path says it already.
            for name in ["parent", "projectId"] {
                query.take(name)?;
            }
            query.finish()?;
            let location =
                place.ok_or_else(|| Error::field("location", "a region is required, - is for lists only"))?;
            let asked = decode::build(surface, location, &caller.email, document::read_json(body).await?)?;
            let build = submit(surface, asked).await?;
            Ok(operation(surface, &build))
        }
        (method, ["builds", of]) => {
            let (id, verb) = match of.split_once(':') {
                Some((id, verb)) => (id, Some(verb)),
                None => (*of, None),
            };
            match (method, verb) {
                (&Method::GET, None) => {
                    let mut query = query;
                    for name in ["name", "projectId", "id"] {
                        query.take(name)?;
                    }
                    query.finish()?;
                    Ok(encode(surface, find(surface, id)?.as_ref()))
                }
                (&Method::POST, Some("cancel")) => {
                    query.finish()?;
                    asks_nothing(document::read_json(body).await?)?;
                    cancel(surface, id).await
                }
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}

/// The Run API's own way to ask for a build: `POST /v2/projects/P/locations/L/builds:submit`.
pub(crate) async fn submit_run(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let unknown = || unimplemented(host, &head.method, path);
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| unknown())?;
    let parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    let ["v2", "projects", project, "locations", location, "builds:submit"] = parts.as_slice() else {
        return Err(unknown());
    };
    if head.method != Method::POST {
        return Err(unknown());
    }
    check_project(project, &surface.site)?;
    let location = Region::parse(location).map_err(|error| Error::field("location", error.to_string()))?;
    Query::parse(head.uri.query()).finish()?;
    let asked = decode::source(surface, location, &caller.email, document::read_json(body).await?)?;
    let build = submit(surface, asked).await?;
    let answer = json!({ "buildOperation": operation(surface, &build), "baseImageUri": "" });
    Ok(reply::json(StatusCode::OK, &answer))
}

async fn submit(surface: &Surface, build: Build) -> Result<Build, Error> {
    let cache = build.recipe.pack.as_ref().and_then(|pack| pack.cache_image.as_ref());
    for name in build.images.iter().chain(cache) {
        let reference = name.parse::<image::Reference>();
        let reference = reference.map_err(|error| Error::field("images", model::with_causes(&error)))?;
        artifact_registry::ensure(surface, reference.repository()).await?;
    }
    let written = build.clone();
    let done = surface.store.transact(move |transaction| {
        let open = transaction
            .snapshot()
            .builds
            .values()
            .filter(|build| !build.state.is_done())
            .count();
        if open >= MAX_OPEN {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!("{open} builds wait or run, the limit is {MAX_OPEN}: cancel some, or wait for their end"),
            ));
        }
        transaction.put_build(written);
        Ok(())
    });
    done.await?;
    Ok(build)
}

fn absent(id: &str) -> Error {
    Error::new(Code::NotFound, format!("build \"{}\" does not exist", short(id)))
}

fn find(surface: &Surface, id: &str) -> Result<Arc<Build>, Error> {
    let id = BuildId::parse(id).ok_or_else(|| absent(id))?;
    let snapshot = surface.store.snapshot();
    snapshot.builds.get(&id).cloned().ok_or_else(|| absent(id.as_str()))
}

/// Held until the build has ended, or for a while: gcloud asks less and less often.
async fn wait(surface: &Surface, id: &str) -> Result<Arc<Build>, Error> {
    let mut bell = surface.store.changed();
    let ended = async {
        loop {
            let build = find(surface, id)?;
            if build.state.is_done() || bell.changed().await.is_err() {
                return Ok::<_, Error>(build);
            }
        }
    };
    match tokio::time::timeout(HOLD, ended).await {
        Ok(ended) => ended,
        Err(_) => find(surface, id),
    }
}

/// A body that repeats the path at most.
fn asks_nothing(document: Value) -> Result<(), Error> {
    let findings = Findings::default();
    let mut asked = Object::root(document, &findings);
    asked.drop_owned(&["name", "projectId", "id"]);
    asked.finish();
    let violations = findings.into_violations();
    if violations.is_empty() {
        Ok(())
    } else {
        Err(Error::violations(violations))
    }
}

async fn cancel(surface: &Surface, id: &str) -> Result<Value, Error> {
    let id = find(surface, id)?.id.clone();
    let now = (surface.now)();
    let cancelled = surface.store.transact(move |transaction| {
        let build = transaction
            .snapshot()
            .builds
            .get(&id)
            .ok_or_else(|| absent(id.as_str()))?;
        if build.state.is_done() {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!("build {id} has ended already: {}", build.state.word()),
            ));
        }
        let mut build = build.as_ref().clone();
        build.state = BuildState::Cancelled {
            started: build.state.started(),
            finished: now,
        };
        transaction.put_build(build.clone());
        Ok(build)
    });
    Ok(encode(surface, &cancelled.await?))
}

/// Newest first.
fn list(surface: &Surface, place: Option<&Region>, mut query: Query) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?;
    let token = query.take("pageToken")?;
    let filter = query.take("filter")?;
    for name in ["parent", "projectId"] {
        query.take(name)?;
    }
    query.finish()?;
    let filter = filter.map(|text| Filter::parse(&text)).transpose()?;
    let snapshot = surface.store.snapshot();
    let items = snapshot
        .builds
        .values()
        .filter(|build| place.is_none_or(|place| build.location == *place))
        .filter(|build| filter.as_ref().is_none_or(|filter| filter.holds(build)))
        .map(|build| {
            let age = u64::MAX - u64::try_from(build.created.as_micros()).unwrap_or(0);
            (format!("{age:020} {}", build.id), encode(surface, build))
        })
        .collect();
    let page = page(items, limit, token.as_deref(), "pageToken")?;
    let mut answer = json!({ "builds": page.items });
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

/// `KEY="VALUE" OR KEY="VALUE"`: one of them.
#[derive(Debug)]
struct Filter(Vec<(String, String)>);

impl Filter {
    const KEYS: [&str; 4] = ["status", "tags", "images", "build_id"];

    fn parse(text: &str) -> Result<Self, Error> {
        let refused = || {
            Error::field(
                "filter",
                format!(
                    "expected {} = \"VALUE\", joined by OR, not \"{}\"",
                    Self::KEYS.join(" or "),
                    short(text)
                ),
            )
        };
        let term = |term: &str| {
            let (key, value) = term.split_once('=')?;
            let key = key.trim();
            let value = value.trim();
            let value = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .unwrap_or(value);
            let plain = !value.contains(['"', ' ', '(', ')']);
            (Self::KEYS.contains(&key) && plain).then(|| (key.to_owned(), value.to_owned()))
        };
        let terms = text.split(" OR ").map(|part| term(part).ok_or_else(refused));
        Ok(Self(terms.collect::<Result<_, _>>()?))
    }

    fn holds(&self, build: &Build) -> bool {
        self.0.iter().any(|(key, value)| match key.as_str() {
            "status" => build.state.word() == value,
            "tags" => build.tags.contains(value),
            "images" => build.images.contains(value),
            _ => build.id.as_str() == value,
        })
    }
}

fn name_of(surface: &Surface, build: &Build) -> String {
    format!(
        "projects/{}/locations/{}/builds/{}",
        surface.site.project, build.location, build.id
    )
}

fn encode(surface: &Surface, build: &Build) -> Value {
    let mut storage = json!({ "bucket": build.source.bucket.as_str(), "object": build.source.object });
    if let Some(generation) = build.source.generation {
        storage["generation"] = generation.to_string().into();
    }
    let bucket = log_bucket(surface);
    let mut shown = json!({
        "name": name_of(surface, build),
        "id": build.id.as_str(),
        "projectId": surface.site.project.as_str(),
        "status": build.state.word(),
        "source": { "storageSource": storage },
        "createTime": rfc3339(build.created),
        "timeout": format!("{}s", build.timeout_seconds),
        "images": build.images,
        "artifacts": { "images": build.images },
        "logsBucket": format!("gs://{bucket}"),
        "logUrl": format!("https://storage.googleapis.com/{bucket}/log-{}.txt", build.id),
        "options": { "logging": "LEGACY" },
    });
    if !build.steps.is_empty() {
        let steps = build.steps.iter().map(|step| {
            let mut shown = json!({ "name": step.name, "args": step.args });
            for (field, text) in [("id", &step.id), ("entrypoint", &step.entrypoint)] {
                if !text.is_empty() {
                    shown[field] = text.as_str().into();
                }
            }
            for (field, list) in [("env", &step.env), ("secretEnv", &step.secret_env)] {
                if !list.is_empty() {
                    shown[field] = json!(list);
                }
            }
            shown
        });
        shown["steps"] = steps.collect::<Vec<_>>().into();
    }
    if !build.secrets.is_empty() {
        let secrets = build.secrets.iter().map(|secret| {
            let name = secret.of.path(&surface.site.project);
            json!({ "versionName": name, "env": secret.env })
        });
        shown["availableSecrets"] = json!({ "secretManager": secrets.collect::<Vec<_>>() });
    }
    if !build.tags.is_empty() {
        shown["tags"] = json!(build.tags);
    }
    if !build.substitutions.is_empty() {
        shown["substitutions"] = json!(build.substitutions);
    }
    if let Some(started) = build.state.started() {
        shown["startTime"] = rfc3339(started).into();
    }
    if let Some(finished) = build.state.finished() {
        shown["finishTime"] = rfc3339(finished).into();
        let started = build.state.started().unwrap_or(finished);
        shown["timing"] = json!({ "BUILD": { "startTime": rfc3339(started), "endTime": rfc3339(finished) } });
    }
    if let Some(why) = build.state.why() {
        shown["statusDetail"] = why.into();
        shown["failureInfo"] = json!({ "type": "USER_BUILD_STEP", "detail": why });
    }
    if let BuildState::Success { images, .. } = &build.state {
        let images = images
            .iter()
            .map(|image| json!({ "name": image.name, "digest": image.digest }));
        shown["results"] = json!({ "images": images.collect::<Vec<_>>() });
    }
    shown
}

fn operation(surface: &Surface, build: &Build) -> Value {
    let shown = encode(surface, build);
    let mut operation = json!({
        "name": format!("projects/{}/locations/{}/operations/{}", surface.site.project, build.location, build.id),
        "metadata": { "@type": METADATA, "build": shown.clone() },
        "done": build.state.is_done(),
    });
    // As google.rpc.Code counts; a response that has failed would make gcloud crash.
    let failed = match &build.state {
        BuildState::Queued | BuildState::Working { .. } => None,
        BuildState::Success { .. } => {
            let mut response = shown;
            response["@type"] = BUILD.into();
            operation["response"] = response;
            None
        }
        BuildState::Failure { why, .. } => Some((9, why.clone())),
        BuildState::Timeout { why, .. } => Some((4, why.clone())),
        BuildState::Cancelled { .. } => Some((1, "the build was cancelled".to_owned())),
    };
    if let Some((code, why)) = failed {
        let message = format!(
            "{why}\n(the whole log: gcloud builds log {} --region={})",
            build.id, build.location
        );
        operation["error"] = json!({ "code": code, "message": message });
    }
    operation
}

/// What `$NAME` stands for in the steps and images of a build.
fn substitutions(
    surface: &Surface,
    id: &BuildId,
    location: &Region,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut all = own.clone();
    for (name, value) in [
        ("PROJECT_ID", surface.site.project.as_str().to_owned()),
        ("PROJECT_NUMBER", surface.site.number().to_string()),
        ("BUILD_ID", id.as_str().to_owned()),
        ("LOCATION", location.as_str().to_owned()),
    ] {
        all.insert(name.to_owned(), value);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let ongoing = Filter::parse("status=\"WORKING\" OR status=\"QUEUED\"").expect("a filter");
        assert_eq!(ongoing.0.len(), 2);
        assert!(Filter::parse("tags=service_x").is_ok());
        for wrong in [
            "",
            "status",
            "create_time>\"x\"",
            "(status=\"A\") AND tags=\"b\"",
            "status=\"A\" AND tags=\"b\"",
        ] {
            assert!(Filter::parse(wrong).is_err(), "{wrong}");
        }
    }
}
