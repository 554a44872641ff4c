//! Artifact Registry: repositories of images, and what they hold as packages, versions, tags and images.
//!
//! A package is an image's path below its repository, a version is a manifest by its digest. Repositories are kept by
//! the store, all they hold by the registry: the two meet by name alone. A push into a repository that was never made
//! makes it ([`ensure`]).

mod cleanup;
mod content;
mod repository;

use http::{Method, Response, StatusCode, request::Parts};
use identity::Caller;
use model::{ArtifactRepository, Region, RepositoryKey, RepositoryName};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::{
    document::short,
    error::{Code, Error},
    iam::{permit::Asked, policy},
    query::Query,
    reply::{self, Body},
    run::call::{check_project, unimplemented},
    surface::Surface,
};

pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    asked: &Asked,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let answer = serve(surface, host, caller, asked, &head, body).await?;
    Ok(reply::json(StatusCode::OK, &answer))
}

/// The parts of a path, each decoded by itself: the name of a package has its `/` as `%2F`, once more encoded by gcloud.
fn parts(path: &str) -> Option<Vec<String>> {
    let decode = |part: &str| {
        let once = percent_decode_str(part).decode_utf8().ok()?;
        Some(once.replace("%2F", "/").replace("%2f", "/"))
    };
    path.strip_prefix('/')?.split('/').map(decode).collect()
}

async fn serve(
    surface: &Surface,
    host: &str,
    caller: &Caller,
    asked: &Asked,
    head: &Parts,
    body: Body,
) -> Result<Value, Error> {
    let path = head.uri.path();
    let unknown = || unimplemented(host, &head.method, path);
    let parts = parts(path).ok_or_else(unknown)?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let query = Query::parse(head.uri.query());
    let (project, rest) = match parts.as_slice() {
        ["v1" | "v1beta2", "projects", project, "locations"] if head.method == Method::GET => {
            check_project(project, &surface.site)?;
            return locations(surface, query);
        }
        ["v1", "projects", project, "locations", rest @ ..] => (*project, rest),
        _ => return Err(unknown()),
    };
    check_project(project, &surface.site)?;
    let [location, rest @ ..] = rest else {
        return Err(unknown());
    };
    let location = Region::parse(location).map_err(|error| Error::field("location", error.to_string()))?;
    match (&head.method, rest) {
        (&Method::GET, ["operations", id]) => {
            query.finish()?;
            let name = format!("{}/operations/{id}", parent(surface, &location));
            let absent = || Error::new(Code::NotFound, format!("operation \"{}\" does not exist", short(&name)));
            surface.operations.find(&name).ok_or_else(absent)
        }
        (&Method::GET, ["repositories"]) => repository::list(surface, &location, query),
        (&Method::POST, ["repositories"]) => repository::create(surface, location, query, body).await,
        (method, ["repositories", name]) => {
            let verb = name.rsplit_once(':').map(|(_, verb)| verb);
            if let Some(verb) = policy::Verb::of(method, verb) {
                return policy::answer(surface, caller, &asked.resource, verb, query, body).await;
            }
            let key = key(location, name)?;
            match *method {
                Method::GET => {
                    query.finish()?;
                    repository::get(surface, &key)
                }
                Method::PATCH => repository::patch(surface, key, query, body).await,
                Method::DELETE => {
                    query.finish()?;
                    repository::delete(surface, key).await
                }
                _ => Err(unknown()),
            }
        }
        (method, ["repositories", name, rest @ ..]) => {
            let key = key(location, name)?;
            let call = content::parse(method, rest).ok_or_else(unknown)?;
            stored(surface, &key)?;
            content::answer(surface, &key, call, query, body).await
        }
        _ => Err(unknown()),
    }
}

/// `projects/P/locations/L`.
fn parent(surface: &Surface, location: &Region) -> String {
    format!("projects/{}/locations/{location}", surface.site.project)
}

/// `projects/P/locations/L/repositories/R`.
fn name_of(surface: &Surface, key: &RepositoryKey) -> String {
    format!("{}/repositories/{}", parent(surface, &key.location), key.name)
}

/// What could never have been made is not there.
fn key(location: Region, name: &str) -> Result<RepositoryKey, Error> {
    let name = RepositoryName::parse(name)
        .map_err(|_| Error::new(Code::NotFound, format!("repository \"{}\" does not exist", short(name))))?;
    Ok(RepositoryKey { location, name })
}

fn stored(surface: &Surface, key: &RepositoryKey) -> Result<ArtifactRepository, Error> {
    let snapshot = surface.store.snapshot();
    let found = snapshot.repositories.get(key).map(|found| found.as_ref().clone());
    found.ok_or_else(|| absent(surface, key))
}

fn absent(surface: &Surface, key: &RepositoryKey) -> Error {
    let name = name_of(surface, key);
    Error::new(Code::NotFound, format!("Requested entity was not found: {name}"))
}

/// Where its images are: `LOCATION-docker.pkg.dev/PROJECT/REPOSITORY`, with a package below it.
fn place(surface: &Surface, key: &RepositoryKey, package: Option<&str>) -> Result<image::Repository, Error> {
    let host = format!("{}-docker.pkg.dev", key.location);
    let path = format!("{}/{}", surface.site.project, key.name);
    let path = package.map_or(path.clone(), |package| format!("{path}/{package}"));
    image::Repository::new(&host, &path).map_err(|error| Error::new(Code::NotFound, error.to_string()))
}

/// Locations with repositories, and the site's own.
fn locations(surface: &Surface, mut query: Query) -> Result<Value, Error> {
    query.limit("pageSize")?;
    query.take("pageToken")?;
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let mut locations: Vec<&Region> = snapshot.repositories.keys().map(|key| &key.location).collect();
    locations.push(&surface.site.region);
    locations.sort_unstable();
    locations.dedup();
    let locations: Vec<Value> = locations
        .into_iter()
        .map(|location| json!({ "name": parent(surface, location), "locationId": location.as_str() }))
        .collect();
    Ok(json!({ "locations": locations }))
}

/// Makes the repository that an image is pushed into, unless it is there: `HOST/PROJECT/REPOSITORY/IMAGE`.
///
/// # Errors
/// A path with a repository of a name that cannot be made, or without an image below it.
pub(crate) async fn ensure(surface: &Surface, image: &image::Repository) -> Result<(), Error> {
    let Some(location) = image.host().strip_suffix("-docker.pkg.dev") else {
        return Ok(());
    };
    let parts: Vec<&str> = image.path().split('/').collect();
    let [_, name, _, ..] = parts.as_slice() else {
        return Err(Error::invalid(format!(
            "{image} has no repository: expected {}/PROJECT/REPOSITORY/IMAGE",
            image.host()
        )));
    };
    let key = RepositoryKey {
        location: Region::parse(location).map_err(|error| Error::invalid(error.to_string()))?,
        name: RepositoryName::parse(name).map_err(|error| Error::invalid(error.to_string()))?,
    };
    if surface.store.snapshot().repositories.contains_key(&key) {
        return Ok(());
    }
    let now = (surface.now)();
    let made = surface.store.transact(move |transaction| {
        if !transaction.snapshot().repositories.contains_key(&key) {
            transaction.put_repository(ArtifactRepository::new(key, now));
        }
        Ok::<_, Error>(())
    });
    Ok(made.await?)
}

/// An image store that failed, in the words of this API.
fn from_images(error: image::Error) -> Error {
    use image::Error as Images;
    let code = match &error {
        Images::ManifestUnknown { .. } | Images::RepositoryUnknown { .. } | Images::BlobUnknown { .. } => {
            Code::NotFound
        }
        Images::Manifest(_)
        | Images::ReferenceMissing { .. }
        | Images::DigestMismatch { .. }
        | Images::UploadUnknown { .. }
        | Images::UploadOffset { .. }
        | Images::TooLarge { .. }
        | Images::Quota { .. }
        | Images::BlobHeld { .. }
        | Images::TagImmutable { .. } => Code::FailedPrecondition,
        Images::Io { .. } | Images::Random(_) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the image store failed");
            Code::Unavailable
        }
    };
    Error::new(code, model::with_causes(&error))
}

/// Runs work that blocks on the disk off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, image::Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(from_images),
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "reading the image store broke off"
            );
            Err(Error::new(Code::Unavailable, "the image store cannot be read"))
        }
    }
}
