//! Image content that nobody needs any more: what cleanup policies delete, who holds what, and when the rest goes.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::{Duration, SystemTime};

use engine::Engine;
use image::{Digest, Images, Repository, Version};
use model::{ImageVersion, ProjectId, Timestamp, bare_digest, cleaned_up, with_causes};
use store::{Snapshot, Store};

/// How long content stays that nobody names: a push of many layers, and a deploy of an image whose tag moved on, are
/// done within.
pub const KEPT: Duration = Duration::from_hours(24);
/// From one collection to the next.
const ROUND: Duration = Duration::from_hours(1);

/// The digests that revisions and instances hold, whatever the registry's tags say.
pub fn held(store: &Store, engine: &Engine) -> BTreeSet<Digest> {
    // Instances first: one that starts after this look belongs to a revision that the snapshot still has.
    let mut held: BTreeSet<Digest> = engine.images().iter().filter_map(|text| text.parse().ok()).collect();
    held.extend(of_revisions(&store.snapshot()));
    held
}

fn of_revisions(snapshot: &Snapshot) -> impl Iterator<Item = Digest> + '_ {
    snapshot.revisions.values().flat_map(|revision| {
        let sidecars = revision.sidecar_digests.iter().map(String::as_str);
        revision
            .state
            .digest()
            .into_iter()
            .chain(sidecars)
            .filter_map(|pinned| bare_digest(pinned).parse().ok())
            .collect::<Vec<_>>()
    })
}

/// Deletes what the cleanup policies of repositories mean: versions from their packages. What somebody runs of them
/// stays as content. Answers how many.
///
/// # Errors
/// Where the image store cannot be read or written; what was deleted before stays deleted.
pub async fn clean_up(
    images: &Images,
    snapshot: &Snapshot,
    project: &ProjectId,
    now: Timestamp,
) -> Result<usize, image::Error> {
    let mut deleted = 0;
    for repository in snapshot.repositories.values() {
        if repository.cleanup_policies.is_empty() || repository.cleanup_dry_run {
            continue;
        }
        let key = &repository.key;
        let (host, under) = (
            format!("{}-docker.pkg.dev", key.location),
            format!("{project}/{}/", key.name),
        );
        let reader = images.clone();
        let read = tokio::task::spawn_blocking(move || versions(&reader, &host, &under));
        let Ok(read) = read.await else { return Ok(deleted) };
        let (places, versions) = read?;
        for version in cleaned_up(&repository.cleanup_policies, &versions, now) {
            let (Some(place), Ok(digest)) = (places.get(&version.package), version.digest.parse()) else {
                continue;
            };
            match images.delete_manifest(place, &Version::Digest(digest)).await {
                Ok(()) => {
                    tracing::info!(image = %place, %digest, "deleted by a cleanup policy");
                    deleted += 1;
                }
                // Somebody else was faster, or its tag stays.
                Err(image::Error::ManifestUnknown { .. } | image::Error::TagImmutable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(deleted)
}

/// Packages of one repository with where they are, and all their versions.
type Found = (BTreeMap<String, Repository>, Vec<ImageVersion>);

fn versions(images: &Images, host: &str, under: &str) -> Result<Found, image::Error> {
    let (mut places, mut versions) = (BTreeMap::new(), Vec::new());
    for place in images.repositories()? {
        let Some(package) = place.path().strip_prefix(under).filter(|_| place.host() == host) else {
            continue;
        };
        let package = package.to_owned();
        let stored = match images.versions(&place) {
            Ok(stored) => stored,
            Err(image::Error::RepositoryUnknown { .. }) => continue,
            Err(error) => return Err(error),
        };
        versions.extend(stored.into_iter().map(|version| {
            let since = version
                .uploaded
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            ImageVersion {
                package: package.clone(),
                digest: version.digest.to_string(),
                tags: version.tags.iter().map(|tag| tag.as_str().to_owned()).collect(),
                uploaded: Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
            }
        }));
        places.insert(package, place);
    }
    Ok((places, versions))
}

/// Cleans up and collects every hour until `stop` resolves. Nothing is removed where `held` cannot tell.
pub async fn keep_clean(
    images: Images,
    store: Store,
    project: ProjectId,
    now: fn() -> Timestamp,
    held: impl Fn() -> Option<BTreeSet<Digest>> + Send + Sync,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        if let Err(error) = clean_up(&images, &store.snapshot(), &project, now()).await {
            tracing::error!(
                why = with_causes(&error as &dyn Error),
                "cleanup policies were not applied"
            );
        }
        let before = SystemTime::now().checked_sub(KEPT).unwrap_or(SystemTime::UNIX_EPOCH);
        match images.forget_uploads(before).await {
            Ok(0) => {}
            Ok(uploads) => tracing::info!(uploads, "gave up uploads that nobody went on with"),
            Err(error) => tracing::error!(why = with_causes(&error as &dyn Error), "uploads were not given up"),
        }
        let Some(held) = held() else { continue };
        match images.collect(held, before).await {
            Ok(collected) if collected == image::Collected::default() => {}
            Ok(collected) => tracing::info!(
                blobs = collected.blobs,
                bytes = collected.bytes,
                layers = collected.layers,
                "removed image content that nothing needs"
            ),
            Err(error) => tracing::error!(
                why = with_causes(&error as &dyn Error),
                "image content was not collected"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::{ArtifactRepository, CleanupCondition, CleanupPolicy, Region, RepositoryKey, RepositoryName, TagState};

    use super::*;

    #[tokio::test]
    async fn cleanup_policies_delete_from_their_own_repository_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let images = Images::open_with_docker_config(dir.path(), None).expect("images");
        let config = "{}";
        images
            .put_blob(Digest::of(config.as_bytes()), config.into())
            .await
            .expect("put");
        let push = async |place: &str, layer: &str, tag: Option<&str>| {
            images
                .put_blob(Digest::of(layer.as_bytes()), layer.to_owned().into())
                .await
                .expect("put");
            let manifest = format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":2}},"layers":[{{"digest":"{}","size":1}}]}}"#,
                Digest::of(config.as_bytes()),
                Digest::of(layer.as_bytes())
            );
            let digest = Digest::of(manifest.as_bytes());
            let version = tag.map_or(Version::Digest(digest), |tag| tag.parse().expect("a tag"));
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let place: Repository = place.parse().expect("a repository");
            images
                .put_manifest(&place, &version, kind, manifest.as_bytes())
                .await
                .expect("pushed")
        };
        let ours = "us-central1-docker.pkg.dev/my-project/shop/app";
        let tagged = push(ours, "1", Some("v1")).await;
        push(ours, "2", None).await;
        push("us-central1-docker.pkg.dev/my-project/shop/tool/x", "3", None).await;
        for other in [
            "us-central1-docker.pkg.dev/my-project/shop-two/app",
            "us-docker.pkg.dev/my-project/shop/app",
        ] {
            push(other, "2", None).await;
        }
        let key = RepositoryKey {
            location: Region::parse("us-central1").expect("a region"),
            name: RepositoryName::parse("shop").expect("a name"),
        };
        let mut repository = ArtifactRepository::new(key.clone(), Timestamp::from_micros(0));
        let untagged = CleanupCondition {
            tags: TagState::Untagged,
            ..CleanupCondition::default()
        };
        repository
            .cleanup_policies
            .insert("untagged".to_owned(), CleanupPolicy::Delete(untagged));
        let project = ProjectId::parse("my-project").expect("an id");
        let now = Timestamp::from_micros(2_000_000_000_000_000);
        let mut snapshot = Snapshot::default();
        repository.cleanup_dry_run = true;
        snapshot.repositories.insert(key.clone(), Arc::new(repository.clone()));
        assert_eq!(clean_up(&images, &snapshot, &project, now).await.expect("read"), 0);
        repository.cleanup_dry_run = false;
        snapshot.repositories.insert(key, Arc::new(repository));
        assert_eq!(clean_up(&images, &snapshot, &project, now).await.expect("read"), 2);
        assert_eq!(clean_up(&images, &snapshot, &project, now).await.expect("read"), 0);
        let left: Vec<String> = images
            .repositories()
            .expect("read")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            left,
            [
                "us-central1-docker.pkg.dev/my-project/shop-two/app",
                "us-central1-docker.pkg.dev/my-project/shop/app",
                "us-docker.pkg.dev/my-project/shop/app",
            ]
        );
        let versions = images.versions(&ours.parse().expect("a repository")).expect("read");
        assert_eq!(
            versions.iter().map(|version| version.digest).collect::<Vec<_>>(),
            [tagged]
        );
    }
}
