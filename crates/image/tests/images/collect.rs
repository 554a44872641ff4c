//! What the collector removes, what it leaves, and that pushes and deploys at the same time notice nothing of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use image::{Collected, Digest, Error, Images, Reference, Repository, Tag, Version};
use proptest::prelude::*;

use crate::fixture::{Image, archive, file, repository};

fn store() -> (tempfile::TempDir, Images) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let images = Images::open_with_docker_config(dir.path(), None).expect("opened");
    (dir, images)
}

/// Everything is old by then.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_hours(1)
}

fn files(dir: &Path, of: &str) -> usize {
    std::fs::read_dir(dir.join(of)).expect("a directory").count()
}

fn tagged(tag: &str) -> Version {
    Version::Tag(tag.parse().expect("a tag"))
}

#[tokio::test]
async fn what_nothing_names_goes_and_everything_else_stays() {
    let (dir, images) = store();
    let common = archive(&[file("common", "x")]);
    let kept = Image::of(&[common.clone(), archive(&[file("a", "1")])]);
    let gone = Image::of(&[common, archive(&[file("b", "2")])]);
    let run = Image::of(&[archive(&[file("c", "3")])]);
    for (image, tag) in [(&kept, "kept"), (&gone, "gone"), (&run, "run")] {
        image.push(&images, &repository(), tag).await;
        images.ensure(&image.digest()).await.expect("unpacked");
    }
    for image in [&gone, &run] {
        let version = Version::Digest(image.digest());
        images.delete_manifest(&repository(), &version).await.expect("deleted");
    }
    let upload = images.begin_upload().await.expect("begun");
    let half = images.append(&upload, None, vec![Bytes::from_static(b"half")]).await;
    assert_eq!(half.expect("appended"), 4);
    let before = images.stored_bytes();

    // All of it was wanted a moment ago.
    let hour = SystemTime::now() - Duration::from_hours(1);
    let held = BTreeSet::from([run.digest()]);
    let nothing = images.collect(held.clone(), hour).await.expect("collected");
    assert_eq!(nothing, Collected::default());

    let collected = images.collect(held.clone(), later()).await.expect("collected");
    // The manifest, the configuration and the upper layer; the lower one is the other image's too. Unpacked also what
    // corrects the attributes of the stack's directories.
    assert_eq!((collected.blobs, collected.layers), (3, 2));
    assert_eq!(images.stored_bytes(), before - collected.bytes);
    assert_eq!((files(dir.path(), "blobs/sha256"), files(dir.path(), "layers")), (7, 4));
    let unpacked = images.layers_unpacked();
    for image in [&kept, &run] {
        images.ensure(&image.digest()).await.expect("still whole");
    }
    assert_eq!(images.layers_unpacked(), unpacked, "nothing had to be unpacked again");
    assert!(images.ensure(&gone.digest()).await.is_err());

    // The upload goes on as if nothing had been.
    images
        .append(&upload, Some(4), vec![Bytes::from_static(b"whole")])
        .await
        .expect("appended");
    images
        .finish_upload(&upload, Digest::of(b"halfwhole"))
        .await
        .expect("finished");

    let version = Version::Digest(kept.digest());
    images.delete_manifest(&repository(), &version).await.expect("deleted");
    images.collect(BTreeSet::new(), later()).await.expect("collected");
    assert_eq!((files(dir.path(), "blobs/sha256"), files(dir.path(), "layers")), (0, 0));
    assert_eq!((files(dir.path(), "tmp"), images.stored_bytes()), (0, 0));
}

#[tokio::test]
async fn an_index_holds_what_is_under_it() {
    let (_dir, images) = store();
    let inner = Image::of(&[archive(&[file("a", "1")])]);
    inner.push(&images, &repository(), "inner").await;
    let index = Image::index(&[("amd64", &inner)]);
    index.push(&images, &repository(), "index").await;
    let version = Version::Digest(inner.digest());
    images.delete_manifest(&repository(), &version).await.expect("deleted");
    images.collect(BTreeSet::new(), later()).await.expect("collected");
    images.ensure(&index.digest()).await.expect("whole");
}

#[tokio::test]
async fn nothing_goes_while_a_manifest_cannot_be_read() {
    let (dir, images) = store();
    let image = Image::of(&[archive(&[file("a", "1")])]);
    image.push(&images, &repository(), "v1").await;
    images
        .put_blob(Digest::of(b"x"), Bytes::from_static(b"x"))
        .await
        .expect("put");
    let path = dir.path().join("blobs/sha256").join(image.digest().hex());
    std::fs::write(path, "{}").expect("written");
    let refused = images.collect(BTreeSet::new(), later()).await.expect_err("rotten");
    assert!(matches!(refused, Error::DigestMismatch { .. }), "{refused}");
    assert!(images.blob_length(&Digest::of(b"x")).expect("asked").is_some());
}

#[tokio::test]
async fn a_blob_is_deleted_only_when_nobody_holds_it() {
    let (_dir, images) = store();
    let image = Image::of(&[archive(&[file("a", "1")])]);
    image.push(&images, &repository(), "v1").await;
    let held = BTreeSet::from([image.digest()]);
    for digest in image.blobs.keys() {
        let refused = images.delete_blob(digest, BTreeSet::new()).await.expect_err("named");
        assert!(matches!(refused, Error::BlobHeld { .. }), "{refused}");
    }
    let version = Version::Digest(image.digest());
    images.delete_manifest(&repository(), &version).await.expect("deleted");
    let (digest, _) = image.blobs.iter().next().expect("blobs");
    let refused = images.delete_blob(digest, held).await.expect_err("a revision's");
    assert!(matches!(refused, Error::BlobHeld { .. }), "{refused}");
    images.delete_blob(digest, BTreeSet::new()).await.expect("deleted");
    let unknown = images.delete_blob(digest, BTreeSet::new()).await.expect_err("gone");
    assert!(matches!(unknown, Error::BlobUnknown { .. }), "{unknown}");
}

#[tokio::test]
async fn a_quota_bounds_what_is_stored_and_what_is_on_its_way() {
    let (dir, images) = store();
    images.set_quota(Some(100));
    let one = Bytes::from(vec![1; 60]);
    images.put_blob(Digest::of(&one), one.clone()).await.expect("room");
    // The same once more takes no more room.
    let again = images.put_blob(Digest::of(&one), one.clone()).await;
    let refused = again.expect_err("twice for a moment");
    let told = refused.to_string();
    assert!(
        told.contains("holds 60 bytes") && told.contains("quota of 100 bytes"),
        "{told}"
    );

    let upload = images.begin_upload().await.expect("begun");
    images
        .append(&upload, None, vec![Bytes::from(vec![2; 40])])
        .await
        .expect("room");
    let refused = images.append(&upload, None, vec![Bytes::from_static(b"x")]).await;
    assert!(matches!(
        refused,
        Err(Error::Quota {
            quota: 100,
            used: 100,
            more: 1
        })
    ));
    let small = images.put_blob(Digest::of(b"x"), Bytes::from_static(b"x")).await;
    assert!(matches!(small, Err(Error::Quota { .. })));
    images.cancel_upload(&upload).await.expect("cancelled");
    assert_eq!(images.stored_bytes(), 60);
    images
        .put_blob(Digest::of(b"x"), Bytes::from_static(b"x"))
        .await
        .expect("room again");
    drop(images);
    // Counted anew at a start; what is there stays.
    let images = Images::open_with_docker_config(dir.path(), None).expect("opened");
    images.set_quota(Some(10));
    assert_eq!(images.stored_bytes(), 61);
    assert!(images.blob(&Digest::of(b"x")).is_ok());
}

/// What one client does in one round.
#[derive(Clone, Debug)]
enum Act {
    /// Pushes an image of the layers in the mask under a tag.
    Push {
        layers: u8,
        tag: u8,
    },
    /// Resolves a tag, holds what it is, and unpacks it.
    Deploy {
        tag: u8,
    },
    Untag {
        tag: u8,
    },
    /// With all its tags.
    Delete {
        tag: u8,
    },
    Collect,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1_u8..16, 0_u8..3).prop_map(|(layers, tag)| Act::Push { layers, tag }),
        2 => (0_u8..3).prop_map(|tag| Act::Deploy { tag }),
        1 => (0_u8..3).prop_map(|tag| Act::Untag { tag }),
        2 => (0_u8..3).prop_map(|tag| Act::Delete { tag }),
        3 => Just(Act::Collect),
    ]
}

struct World {
    images: Images,
    repository: Repository,
    held: Mutex<BTreeSet<Digest>>,
}

impl World {
    fn held(&self) -> BTreeSet<Digest> {
        self.held.lock().expect("no panic before").clone()
    }

    /// Each of these must succeed, or find that there is no such tag.
    async fn act(&self, act: &Act, before: SystemTime) {
        let images = &self.images;
        match act {
            Act::Push { layers, tag } => {
                let layers: Vec<Vec<u8>> = (0..4)
                    .filter(|bit| layers & (1 << bit) != 0)
                    .map(|bit| archive(&[file(&format!("layer{bit}"), "content")]))
                    .collect();
                let image = Image::of(&layers);
                for (digest, content) in &image.blobs {
                    // As clients do: what is there already is not sent.
                    if images.claim_blob(digest).expect("asked").is_none() {
                        let put = images.put_blob(*digest, Bytes::from(content.clone())).await;
                        put.expect("pushed");
                    }
                    tokio::task::yield_now().await;
                }
                let version = tagged(&format!("t{tag}"));
                let put = images.put_manifest(&self.repository, &version, image.media_type, &image.manifest);
                put.await.expect("a push in which nothing went away");
            }
            Act::Deploy { tag } => {
                let tag: Tag = format!("t{tag}").parse().expect("a tag");
                let reference = Reference::tagged(self.repository.clone(), tag);
                // Its tag or its manifest may be deleted; then it is not there.
                let Ok(resolved) = images.resolve(&reference).await else {
                    return;
                };
                tokio::task::yield_now().await;
                self.held.lock().expect("no panic before").insert(resolved.digest);
                let unpacked = images
                    .ensure(&resolved.digest)
                    .await
                    .expect("a deploy of what was resolved");
                for layer in unpacked.layers {
                    assert!(layer.is_dir(), "{}", layer.display());
                }
            }
            Act::Untag { tag } => {
                drop(
                    images
                        .delete_manifest(&self.repository, &tagged(&format!("t{tag}")))
                        .await,
                );
            }
            Act::Delete { tag } => {
                let tag: Tag = format!("t{tag}").parse().expect("a tag");
                if let Some(digest) = images.tag(&self.repository, &tag).expect("read") {
                    let version = Version::Digest(digest);
                    drop(images.delete_manifest(&self.repository, &version).await);
                }
            }
            Act::Collect => {
                images.collect(self.held(), before).await.expect("collected");
            }
        }
    }

    /// All that is named or held is there in full.
    async fn check(&self) {
        for tag in self.images.tags(&self.repository).unwrap_or_default() {
            let reference = Reference::tagged(self.repository.clone(), tag.clone());
            let digest = self.images.tag(&self.repository, &tag).expect("read").expect("listed");
            let version = Version::Digest(digest);
            if self.images.manifest(&self.repository, &version).is_ok() {
                self.images.resolve(&reference).await.expect("a tag is whole");
                self.images.ensure(&digest).await.expect("a tag can run");
            }
        }
        for digest in self.held() {
            self.images.ensure(&digest).await.expect("a revision can start again");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, ..ProptestConfig::default() })]

    /// In each round all that the rounds before left is old, and several clients and the collector meet over it.
    #[test]
    fn pushes_and_deploys_notice_nothing_of_the_collector(
        rounds in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(act(), 1..6), 4),
            1..5,
        ),
        forget in any::<u8>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("threads");
        runtime.block_on(async {
            let (dir, images) = store();
            let world = Arc::new(World { images, repository: repository(), held: Mutex::default() });
            let upload = world.images.begin_upload().await.expect("begun");
            for (number, clients) in rounds.iter().enumerate() {
                let before = SystemTime::now();
                let mut running = tokio::task::JoinSet::new();
                for acts in clients.clone() {
                    let world = world.clone();
                    running.spawn(async move {
                        for act in &acts {
                            world.act(act, before).await;
                        }
                    });
                }
                while let Some(done) = running.join_next().await {
                    done.expect("no client failed");
                }
                world.check().await;
                if number % 2 == usize::from(forget % 2) {
                    world.held.lock().expect("no panic before").clear();
                }
            }
            let end = world.images.append(&upload, Some(0), vec![Bytes::from_static(b"end")]).await;
            assert_eq!(end.expect("still open"), 3);
            world.images.cancel_upload(&upload).await.expect("open");
            for act in [0, 1, 2].map(|tag| Act::Delete { tag }) {
                world.act(&act, SystemTime::now()).await;
            }
            // What lost its tag is named by its digest still.
            for link in std::fs::read_dir(dir.path().join("repositories")).expect("hosts") {
                std::fs::remove_dir_all(link.expect("a host").path()).expect("removed");
            }
            world.images.collect(BTreeSet::new(), later()).await.expect("collected");
            assert_eq!((files(dir.path(), "blobs/sha256"), files(dir.path(), "layers")), (0, 0));
            assert_eq!(world.images.stored_bytes(), 0, "what is counted is what is there");
        });
    }
}
