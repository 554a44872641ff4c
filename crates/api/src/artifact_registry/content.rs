//! What a repository holds: packages, their versions and tags, and the same once more as docker images.

use std::time::UNIX_EPOCH;

use http::Method;
use image::{Digest, StoredVersion, Tag, Version};
use model::{RepositoryKey, Timestamp};
use serde_json::{Value, json};

use super::{blocking, from_images, name_of, parent, place, repository::packages};
use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    page::page,
    query::Query,
    reply::Body,
    run::v1::rfc3339,
    surface::Surface,
};

const EMPTY: &str = "type.googleapis.com/google.protobuf.Empty";

/// One call below a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    ListImages,
    GetImage(String),
    ListPackages,
    GetPackage(String),
    DeletePackage(String),
    ListVersions(String),
    GetVersion(String, String),
    DeleteVersion(String, String),
    ListTags(String),
    CreateTag(String),
    GetTag(String, String),
    UpdateTag(String, String),
    DeleteTag(String, String),
}

pub(super) fn parse(method: &Method, rest: &[&str]) -> Option<Call> {
    let s = |text: &str| text.to_owned();
    Some(match (method.as_str(), rest) {
        ("GET", ["dockerImages"]) => Call::ListImages,
        ("GET", ["dockerImages", name]) => Call::GetImage(s(name)),
        ("GET", ["packages"]) => Call::ListPackages,
        ("GET", ["packages", package]) => Call::GetPackage(s(package)),
        ("DELETE", ["packages", package]) => Call::DeletePackage(s(package)),
        ("GET", ["packages", package, "versions"]) => Call::ListVersions(s(package)),
        ("GET", ["packages", package, "versions", version]) => Call::GetVersion(s(package), s(version)),
        ("DELETE", ["packages", package, "versions", version]) => Call::DeleteVersion(s(package), s(version)),
        ("GET", ["packages", package, "tags"]) => Call::ListTags(s(package)),
        ("POST", ["packages", package, "tags"]) => Call::CreateTag(s(package)),
        ("GET", ["packages", package, "tags", tag]) => Call::GetTag(s(package), s(tag)),
        ("PATCH", ["packages", package, "tags", tag]) => Call::UpdateTag(s(package), s(tag)),
        ("DELETE", ["packages", package, "tags", tag]) => Call::DeleteTag(s(package), s(tag)),
        _ => return None,
    })
}

/// One package of one repository, and how things in it are named.
struct Package<'a> {
    surface: &'a Surface,
    key: &'a RepositoryKey,
    /// Its path below the repository.
    path: String,
    place: image::Repository,
}

impl<'a> Package<'a> {
    fn new(surface: &'a Surface, key: &'a RepositoryKey, package: &str) -> Result<Self, Error> {
        Ok(Self {
            surface,
            key,
            path: package.to_owned(),
            place: place(surface, key, Some(package))?,
        })
    }

    fn name(&self) -> String {
        let package = self.path.replace('/', "%2F");
        format!("{}/packages/{package}", name_of(self.surface, self.key))
    }

    fn absent(&self, what: &str) -> Error {
        Error::new(
            Code::NotFound,
            format!("Requested entity was not found: {}{what}", self.name()),
        )
    }

    async fn versions(&self) -> Result<Vec<StoredVersion>, Error> {
        let (images, place) = (self.surface.images.clone(), self.place.clone());
        blocking(move || images.versions(&place)).await
    }

    async fn version(&self, digest: &str) -> Result<StoredVersion, Error> {
        let found = self.versions().await?;
        let found = found.into_iter().find(|version| version.digest.to_string() == digest);
        found.ok_or_else(|| self.absent(&format!("/versions/{}", short(digest))))
    }

    fn tag(&self, tag: &str, digest: &Digest) -> Value {
        let name = self.name();
        json!({ "name": format!("{name}/tags/{tag}"), "version": format!("{name}/versions/{digest}") })
    }

    async fn read_tag(&self, text: &str) -> Result<(Tag, Digest), Error> {
        let absent = || self.absent(&format!("/tags/{}", short(text)));
        let tag: Tag = text.parse().map_err(|_| absent())?;
        let (images, place, wanted) = (self.surface.images.clone(), self.place.clone(), tag.clone());
        let digest = blocking(move || images.tag(&place, &wanted)).await?;
        Ok((tag, digest.ok_or_else(absent)?))
    }

    /// Below `dockerImages`: the package with the digest.
    fn image_name(&self, version: &StoredVersion) -> String {
        let image = format!("{}@{}", self.path.replace('/', "%2F"), version.digest);
        format!("{}/dockerImages/{image}", name_of(self.surface, self.key))
    }

    fn encode_version(&self, version: &StoredVersion, full: bool) -> Value {
        let at = time(version);
        let name = self.name();
        let mut metadata = json!({
            "imageSizeBytes": version.size.to_string(),
            "mediaType": version.media_type,
            "name": self.image_name(version),
        });
        if let Some(kind) = &version.artifact_type {
            metadata["artifactType"] = kind.as_str().into();
        }
        let mut shown = json!({
            "name": format!("{name}/versions/{}", version.digest),
            "createTime": at,
            "updateTime": at,
            "metadata": metadata,
        });
        if full && !version.tags.is_empty() {
            let tags = version.tags.iter().map(|tag| self.tag(tag.as_str(), &version.digest));
            shown["relatedTags"] = tags.collect();
        }
        shown
    }

    fn encode_image(&self, version: &StoredVersion) -> Value {
        let at = time(version);
        let tags: Vec<&str> = version.tags.iter().map(Tag::as_str).collect();
        let mut shown = json!({
            "name": self.image_name(version),
            "uri": format!("{}@{}", self.place, version.digest),
            "imageSizeBytes": version.size.to_string(),
            "mediaType": version.media_type,
            "uploadTime": at,
            "updateTime": at,
        });
        if !tags.is_empty() {
            shown["tags"] = json!(tags);
        }
        if let Some(kind) = &version.artifact_type {
            shown["artifactType"] = kind.as_str().into();
        }
        shown
    }
}

fn time(version: &StoredVersion) -> String {
    let since = version.uploaded.duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(0)))
}

/// A page of a list under `field`.
fn listed(mut query: Query, field: &str, items: Vec<(String, Value)>) -> Result<Value, Error> {
    let limit = query.limit("pageSize")?;
    let token = query.take("pageToken")?;
    query.finish()?;
    let page = page(items, limit, token.as_deref(), "pageToken")?;
    let mut answer = json!({ field: page.items });
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

pub(super) async fn answer(
    surface: &Surface,
    key: &RepositoryKey,
    call: Call,
    mut query: Query,
    body: Body,
) -> Result<Value, Error> {
    let of = |package: &str| Package::new(surface, key, package);
    match call {
        Call::ListImages => {
            let mut items = Vec::new();
            for name in packages(surface, key).await? {
                let package = of(&name)?;
                for version in package.versions().await? {
                    items.push((format!("{name}@{}", version.digest), package.encode_image(&version)));
                }
            }
            listed(query, "dockerImages", items)
        }
        Call::GetImage(name) => {
            query.finish()?;
            let (package, digest) = name.rsplit_once('@').unwrap_or((&name, ""));
            let package = of(package)?;
            let version = package.version(digest).await?;
            Ok(package.encode_image(&version))
        }
        Call::ListPackages => {
            let mut items = Vec::new();
            for name in packages(surface, key).await? {
                let shown = shown_package(&of(&name)?).await?;
                items.push((name, shown));
            }
            listed(query, "packages", items)
        }
        Call::GetPackage(package) => {
            query.finish()?;
            shown_package(&of(&package)?).await
        }
        Call::DeletePackage(package) => {
            query.finish()?;
            let package = of(&package)?;
            package.versions().await?;
            let deleted = surface.images.delete_repository(&package.place).await;
            deleted.map_err(from_images)?;
            Ok(gone(surface, key))
        }
        Call::ListVersions(package) => {
            let full = matches!(query.take("view")?.as_deref(), Some("FULL"));
            let package = of(&package)?;
            let versions = package.versions().await?;
            let items = versions
                .iter()
                .map(|version| (version.digest.to_string(), package.encode_version(version, full)))
                .collect();
            listed(query, "versions", items)
        }
        Call::GetVersion(package, digest) => {
            let full = matches!(query.take("view")?.as_deref(), Some("FULL"));
            query.finish()?;
            let package = of(&package)?;
            let version = package.version(&digest).await?;
            Ok(package.encode_version(&version, full))
        }
        Call::DeleteVersion(package, digest) => {
            let force = query.flag("force")?;
            query.finish()?;
            let package = of(&package)?;
            let version = package.version(&digest).await?;
            if !force && !version.tags.is_empty() {
                return Err(Error::new(
                    Code::FailedPrecondition,
                    format!("version {} has tags: delete them first, or use force", version.digest),
                ));
            }
            let version = Version::Digest(version.digest);
            let deleted = surface.images.delete_manifest(&package.place, &version).await;
            deleted.map_err(from_images)?;
            Ok(gone(surface, key))
        }
        Call::ListTags(package) => list_tags(&of(&package)?, query).await,
        Call::CreateTag(package) => {
            let id = query
                .take("tagId")?
                .ok_or_else(|| Error::field("tagId", "is required"))?;
            query.finish()?;
            let package = of(&package)?;
            if package.read_tag(&id).await.is_ok() {
                return Err(Error::new(Code::AlreadyExists, "the tag already exists"));
            }
            point(&package, &id, body).await
        }
        Call::UpdateTag(package, id) => {
            query.take("updateMask")?;
            query.finish()?;
            let package = of(&package)?;
            package.read_tag(&id).await?;
            point(&package, &id, body).await
        }
        Call::GetTag(package, id) => {
            query.finish()?;
            let package = of(&package)?;
            let (tag, digest) = package.read_tag(&id).await?;
            Ok(package.tag(tag.as_str(), &digest))
        }
        Call::DeleteTag(package, id) => {
            query.finish()?;
            let package = of(&package)?;
            let (tag, _) = package.read_tag(&id).await?;
            let deleted = surface.images.delete_manifest(&package.place, &Version::Tag(tag)).await;
            deleted.map_err(from_images)?;
            Ok(json!({}))
        }
    }
}

fn gone(surface: &Surface, key: &RepositoryKey) -> Value {
    surface
        .operations
        .done(&parent(surface, &key.location), json!({ "@type": EMPTY }))
}

/// As old as its oldest version, and changed with its newest.
async fn shown_package(package: &Package<'_>) -> Result<Value, Error> {
    let mut times: Vec<String> = package.versions().await?.iter().map(time).collect();
    times.sort_unstable();
    let mut shown = json!({ "name": package.name() });
    if let (Some(first), Some(last)) = (times.first(), times.last()) {
        shown["createTime"] = first.as_str().into();
        shown["updateTime"] = last.as_str().into();
    }
    Ok(shown)
}

async fn list_tags(package: &Package<'_>, mut query: Query) -> Result<Value, Error> {
    let wanted = match query.take("filter")? {
        None => None,
        Some(filter) => {
            let value = filter
                .strip_prefix("version=")
                .map(|value| value.trim_matches('"').to_owned());
            let value = value.ok_or_else(|| {
                Error::field(
                    "filter",
                    format!("only version=\"NAME\" is served, not \"{}\"", short(&filter)),
                )
            })?;
            Some(value)
        }
    };
    let mut items = Vec::new();
    for version in package.versions().await? {
        let digest = version.digest.to_string();
        if wanted.as_ref().is_some_and(|wanted| !wanted.ends_with(&digest)) {
            continue;
        }
        for tag in &version.tags {
            items.push((tag.as_str().to_owned(), package.tag(tag.as_str(), &version.digest)));
        }
    }
    listed(query, "tags", items)
}

/// Points a tag at the version that the document names.
async fn point(package: &Package<'_>, id: &str, body: Body) -> Result<Value, Error> {
    let tag: Tag = id
        .parse()
        .map_err(|error: image::ReferenceError| Error::field("tagId", error.to_string()))?;
    let digest = version_of(document::read_json(body).await?)?;
    let added = package.surface.images.add_tag(&package.place, &tag, &digest);
    added.await.map_err(from_images)?;
    Ok(package.tag(tag.as_str(), &digest))
}

/// The version that a tag's document names.
fn version_of(document: Value) -> Result<Digest, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    root.drop_owned(&["name"]);
    let version = root.text("version").unwrap_or_default();
    let digest: Option<Digest> = version.rsplit('/').next().and_then(|digest| digest.parse().ok());
    if digest.is_none() {
        root.say("version", "expected the name of a version of this package");
    }
    root.finish();
    let violations = findings.into_violations();
    digest
        .filter(|_| violations.is_empty())
        .ok_or_else(|| Error::violations(violations))
}
