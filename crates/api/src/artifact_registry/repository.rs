//! Repositories: made, listed, described, changed, deleted.

use model::{ArtifactRepository, Region, RepositoryKey, RepositoryName};
use serde_json::{Value, json};

use super::{absent, blocking, cleanup, from_images, name_of, parent, place, stored};
use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    page::page,
    query::Query,
    reply::Body,
    run::v1::rfc3339,
    surface::Surface,
};

const REPOSITORY: &str = "type.googleapis.com/google.devtools.artifactregistry.v1.Repository";
const EMPTY: &str = "type.googleapis.com/google.protobuf.Empty";
/// Fields of Artifact Registry's repositories that are not served.
const UNSERVED: [&str; 8] = [
    "kmsKeyName",
    "mavenConfig",
    "virtualRepositoryConfig",
    "remoteRepositoryConfig",
    "networkConfig",
    "vulnerabilityScanningConfig",
    "sbomConfig",
    "disallowUnspecifiedMode",
];
const OWNED: [&str; 7] = [
    "name",
    "createTime",
    "updateTime",
    "sizeBytes",
    "registryUri",
    "satisfiesPzs",
    "satisfiesPzi",
];
/// Longest description in bytes (Artifact Registry's limit).
const DESCRIPTION: usize = 1024;

fn encode(surface: &Surface, repository: &ArtifactRepository, bytes: Option<u64>) -> Value {
    let key = &repository.key;
    let mut shown = json!({
        "name": name_of(surface, key),
        "format": "DOCKER",
        "mode": "STANDARD_REPOSITORY",
        "createTime": rfc3339(repository.created),
        "updateTime": rfc3339(repository.updated),
        "registryUri": format!("{}-docker.pkg.dev/{}/{}", key.location, surface.site.project, key.name),
    });
    if let Some(bytes) = bytes {
        shown["sizeBytes"] = bytes.to_string().into();
    }
    if !repository.description.is_empty() {
        shown["description"] = repository.description.as_str().into();
    }
    if !repository.labels.is_empty() {
        shown["labels"] = json!(repository.labels);
    }
    if !repository.cleanup_policies.is_empty() {
        shown["cleanupPolicies"] = cleanup::encode(&repository.cleanup_policies);
    }
    if repository.cleanup_dry_run {
        shown["cleanupPolicyDryRun"] = true.into();
    }
    if place(surface, key, None).is_ok_and(|place| surface.images.has_immutable_tags(&place)) {
        shown["dockerConfig"] = json!({ "immutableTags": true });
    }
    shown
}

pub(super) fn get(surface: &Surface, key: &RepositoryKey) -> Result<Value, Error> {
    Ok(encode(surface, &stored(surface, key)?, None))
}

pub(super) fn list(surface: &Surface, location: &Region, mut query: Query) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?;
    let token = query.take("pageToken")?;
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let items = snapshot
        .repositories
        .values()
        .filter(|repository| repository.key.location == *location)
        .map(|repository| {
            let name = repository.key.name.as_str().to_owned();
            (name, encode(surface, repository, None))
        })
        .collect();
    let page = page(items, limit, token.as_deref(), "pageToken")?;
    let mut answer = json!({ "repositories": page.items });
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

/// The repository with the fields of a document, and whether its tags are immutable, which the registry keeps; a new one must
/// say its format.
fn decode(
    document: Value,
    mut repository: ArtifactRepository,
    is_new: bool,
) -> Result<(ArtifactRepository, bool), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    repository.description = root.exact_text("description").unwrap_or_default();
    if repository.description.len() > DESCRIPTION {
        root.say("description", format!("has more than {DESCRIPTION} bytes"));
    }
    repository.labels = root.map("labels");
    repository.cleanup_policies = cleanup::decode(&mut root);
    repository.cleanup_dry_run = root.boolean("cleanupPolicyDryRun").unwrap_or(false);
    let mut docker = root.object("dockerConfig");
    let immutable = docker.boolean("immutableTags").unwrap_or(false);
    docker.finish();
    match root.text("format").as_deref() {
        None if is_new => root.say("format", "is required; only DOCKER is served by this Homerun"),
        None | Some("DOCKER") => {}
        Some(other) => root.say(
            "format",
            format!("only DOCKER is served by this Homerun, not \"{}\"", short(other)),
        ),
    }
    match root.text("mode").as_deref() {
        None | Some("MODE_UNSPECIFIED" | "STANDARD_REPOSITORY") => {}
        Some(other) => root.say(
            "mode",
            format!(
                "only STANDARD_REPOSITORY is served by this Homerun, not \"{}\"",
                short(other)
            ),
        ),
    }
    root.unserved(&UNSERVED);
    root.drop_owned(&OWNED);
    root.finish();
    let violations = findings.into_violations();
    if violations.is_empty() {
        Ok((repository, immutable))
    } else {
        Err(Error::violations(violations))
    }
}

pub(super) async fn create(surface: &Surface, location: Region, mut query: Query, body: Body) -> Result<Value, Error> {
    let id = query
        .take("repositoryId")?
        .ok_or_else(|| Error::field("repositoryId", "is required"))?;
    query.finish()?;
    let name = RepositoryName::parse(&id).map_err(|error| Error::field("repositoryId", error.to_string()))?;
    let document = document::read_json(body).await?;
    let repository = ArtifactRepository::new(RepositoryKey { location, name }, (surface.now)());
    let (repository, immutable) = decode(document, repository, true)?;
    let made = repository.clone();
    let written = surface.store.transact(move |transaction| {
        if transaction.snapshot().repositories.contains_key(&made.key) {
            return Err(Error::new(Code::AlreadyExists, "the repository already exists"));
        }
        transaction.put_repository(made);
        Ok(())
    });
    written.await?;
    if immutable {
        set_immutable(surface, &repository.key, true).await?;
    }
    let mut shown = encode(surface, &repository, None);
    shown["@type"] = REPOSITORY.into();
    Ok(surface
        .operations
        .done(&parent(surface, &repository.key.location), shown))
}

pub(super) async fn patch(surface: &Surface, key: RepositoryKey, mut query: Query, body: Body) -> Result<Value, Error> {
    let mask = query.take("updateMask")?;
    query.finish()?;
    let fields: Vec<&str> = mask.as_deref().unwrap_or_default().split(',').map(str::trim).collect();
    let all = fields.iter().all(|field| field.is_empty() || *field == "*");
    // gcloud names what it has in hand to the last field.
    let wanted = |name: &str| {
        all || fields
            .iter()
            .any(|field| field.split('.').next().is_some_and(|first| first == name))
    };
    for field in fields.iter().filter(|field| !field.is_empty() && **field != "*") {
        let first = field.split('.').next().unwrap_or_default();
        let changeable = [
            "description",
            "labels",
            "cleanupPolicies",
            "cleanupPolicyDryRun",
            "dockerConfig",
        ];
        if !changeable.contains(&first) {
            return Err(Error::field(
                "updateMask",
                format!("{} cannot be changed", short(field)),
            ));
        }
    }
    let document = document::read_json(body).await?;
    let (given, immutable) = decode(document, ArtifactRepository::new(key.clone(), (surface.now)()), false)?;
    let (description, labels) = (wanted("description"), wanted("labels"));
    let (policies, dry_run) = (wanted("cleanupPolicies"), wanted("cleanupPolicyDryRun"));
    let (missing, docker) = (absent(surface, &key), wanted("dockerConfig").then(|| key.clone()));
    let now = (surface.now)();
    let written = surface.store.transact(move |transaction| {
        let found = transaction.snapshot().repositories.get(&key);
        let mut repository = found.ok_or(missing)?.as_ref().clone();
        if description {
            repository.description = given.description;
        }
        if labels {
            repository.labels = given.labels;
        }
        if policies {
            repository.cleanup_policies = given.cleanup_policies;
        }
        if dry_run {
            repository.cleanup_dry_run = given.cleanup_dry_run;
        }
        repository.updated = now;
        transaction.put_repository(repository.clone());
        Ok::<_, Error>(repository)
    });
    let written = written.await?;
    if let Some(key) = docker {
        set_immutable(surface, &key, immutable).await?;
    }
    Ok(encode(surface, &written, None))
}

async fn set_immutable(surface: &Surface, key: &RepositoryKey, immutable: bool) -> Result<(), Error> {
    let under = place(surface, key, None)?;
    let set = surface.images.set_immutable_tags(&under, immutable).await;
    set.map_err(from_images)
}

/// With all it holds. What revisions run of it stays as content; it can no longer be deployed by name.
pub(super) async fn delete(surface: &Surface, key: RepositoryKey) -> Result<Value, Error> {
    stored(surface, &key)?;
    let under = place(surface, &key, None)?;
    surface.images.delete_repositories(&under).await.map_err(from_images)?;
    let location = key.location.clone();
    let written = surface.store.transact(move |transaction| {
        transaction.delete_repository(&key);
        Ok::<_, Error>(())
    });
    written.await?;
    Ok(surface
        .operations
        .done(&parent(surface, &location), json!({ "@type": EMPTY })))
}

/// The packages of a repository: images with at least one version, by their path below it.
pub(super) async fn packages(surface: &Surface, key: &RepositoryKey) -> Result<Vec<String>, Error> {
    let under = place(surface, key, None)?;
    let images = surface.images.clone();
    let all = blocking(move || images.repositories()).await?;
    let prefix = format!("{}/", under.path());
    Ok(all
        .into_iter()
        .filter(|found| found.host() == under.host())
        .filter_map(|found| found.path().strip_prefix(&prefix).map(str::to_owned))
        .collect())
}
