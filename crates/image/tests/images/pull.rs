use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use image::{Digest, Images, Reference, ResolveError, machine_architecture};

use crate::fixture::{Image, archive, chain, file};

/// A registry on loopback. It keeps count of what it was asked.
struct Registry {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    /// Path to media type and content.
    content: BTreeMap<String, (String, Vec<u8>)>,
    /// `user:password` in base64, once it is asked for.
    credential: Option<String>,
    /// It hangs up on whoever asks.
    down: bool,
    asked: BTreeMap<String, u32>,
}

impl Registry {
    fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let shelf = Arc::<Mutex<Shelf>>::default();
        let shared = Arc::clone(&shelf);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shelf = Arc::clone(&shared);
                std::thread::spawn(move || serve(&connection, &shelf));
            }
        });
        Registry { address, shelf }
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().expect("a reference")
    }

    fn hold(&self, tag: &str, image: &Image) {
        let mut shelf = self.shelf.lock().expect("no panic");
        let manifest = (image.media_type.to_owned(), image.manifest.clone());
        shelf
            .content
            .insert(format!("/v2/team/app/manifests/{tag}"), manifest.clone());
        shelf
            .content
            .insert(format!("/v2/team/app/manifests/{}", image.digest()), manifest);
        for (digest, content) in &image.blobs {
            let text = String::from_utf8_lossy(content);
            let is_manifest = text.contains("\"schemaVersion\"");
            let kind = if is_manifest { "manifests" } else { "blobs" };
            let media_type = if is_manifest {
                image::media_type::OCI_MANIFEST
            } else {
                "application/octet-stream"
            };
            shelf.content.insert(
                format!("/v2/team/app/{kind}/{digest}"),
                (media_type.to_owned(), content.clone()),
            );
        }
    }

    /// How often blobs were asked for, and the most that one of them was.
    fn blobs_asked(&self) -> (u32, u32) {
        let shelf = self.shelf.lock().expect("no panic");
        let blobs = shelf
            .asked
            .iter()
            .filter(|(path, _)| path.contains("/blobs/"))
            .map(|(_, count)| *count);
        (blobs.clone().sum(), blobs.max().unwrap_or(0))
    }
}

fn serve(mut connection: &TcpStream, shelf: &Mutex<Shelf>) -> Option<()> {
    let mut lines = BufReader::new(connection).lines();
    loop {
        let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
        let mut authorization = None;
        loop {
            let line = lines.next()?.ok()?;
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("authorization: basic ") {
                authorization = Some(line[line.len() - value.len()..].to_owned());
            }
        }
        let mut shelf = shelf.lock().ok()?;
        if shelf.down {
            return None;
        }
        *shelf.asked.entry(path.clone()).or_default() += 1;
        let (status, media_type, content) = if shelf.credential.is_some() && shelf.credential != authorization {
            let refusal = br#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#.to_vec();
            (
                "401 Unauthorized\r\nwww-authenticate: Basic realm=\"r\"",
                "application/json".to_owned(),
                refusal,
            )
        } else if path == "/v2/" {
            ("200 OK", "application/json".to_owned(), b"{}".to_vec())
        } else if let Some((media_type, content)) = shelf.content.get(&path) {
            ("200 OK", media_type.clone(), content.clone())
        } else {
            let refusal = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"none"}]}"#.to_vec();
            ("404 Not Found", "application/json".to_owned(), refusal)
        };
        drop(shelf);
        let length = content.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n");
        connection.write_all(head.as_bytes()).ok()?;
        connection.write_all(&content).ok()?;
    }
}

fn store() -> (tempfile::TempDir, Images) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let images = Images::open_with_docker_config(&dir.path().join("store"), None).expect("opened");
    (dir, images)
}

fn layers(name: &str) -> Vec<Vec<u8>> {
    vec![archive(&[file("base", "base")]), archive(&[file(name, name)])]
}

#[tokio::test]
async fn a_tag_becomes_a_digest_and_is_asked_again() {
    let (_dir, images) = store();
    let registry = Registry::start();
    let first = Image::of(&layers("one"));
    registry.hold("v1", &first);
    let tagged = registry.reference("team/app:v1");
    let resolved = images.resolve(&tagged).await.expect("pulled");
    assert_eq!((resolved.digest, resolved.manifest), (first.digest(), first.digest()));
    assert_eq!(
        resolved.pinned().to_string(),
        format!("{}/team/app@{}", registry.address, first.digest())
    );
    assert_eq!(resolved.config.cmd, ["/app"]);
    assert_eq!(resolved.config.env, ["A=b"]);
    assert_eq!(
        (resolved.config.user.as_str(), resolved.config.working_dir.as_str()),
        ("app", "/srv")
    );
    assert_eq!(images.ensure(&resolved.digest).await.expect("unpacked").layers.len(), 2);

    // The tag moves; only what is new comes.
    let second = Image::of(&layers("two"));
    registry.hold("v1", &second);
    let before = registry.blobs_asked().0;
    assert_eq!(images.resolve(&tagged).await.expect("pulled").digest, second.digest());
    assert_eq!(registry.blobs_asked().0 - before, 2, "configuration and one layer");

    // A digest that is here needs no registry.
    let pinned = registry.reference(&format!("team/app@{}", first.digest()));
    registry.shelf.lock().expect("no panic").content.clear();
    assert_eq!(images.resolve(&pinned).await.expect("stored").digest, first.digest());
    let refused = images.resolve(&tagged).await.expect_err("gone");
    assert!(matches!(refused, ResolveError::NotFound { .. }), "{refused:?}");
    assert_eq!(refused.to_string(), format!("image {tagged} not found"));
}

#[tokio::test]
async fn of_an_index_only_this_machines_image_comes() {
    let (_dir, images) = store();
    let registry = Registry::start();
    let here = Image::of(&layers("here"));
    let there = Image::built_for("s390x", &layers("there"), &|layer| layer.to_vec());
    let index = Image::index(&[("s390x", &there), (machine_architecture(), &here)]);
    registry.hold("v1", &index);
    let resolved = images
        .resolve(&registry.reference("team/app:v1"))
        .await
        .expect("pulled");
    assert_eq!((resolved.digest, resolved.manifest), (index.digest(), here.digest()));
    assert!(images.blob_length(&there.digest()).expect("asked").is_none());
    assert_eq!(registry.blobs_asked().0, 3);
    let unpacked = images.ensure(&index.digest()).await.expect("unpacked");
    assert_eq!(unpacked.manifest, here.digest());
}

#[tokio::test]
async fn an_image_for_another_cpu_is_refused_before_its_layers_come() {
    let (_dir, images) = store();
    let registry = Registry::start();
    let image = Image::built_for("s390x", &layers("there"), &|layer| layer.to_vec());
    registry.hold("single", &image);
    registry.hold("index", &Image::index(&[("s390x", &image)]));
    for tag in ["single", "index"] {
        let reference = registry.reference(&format!("team/app:{tag}"));
        let refused = images.resolve(&reference).await.expect_err("another cpu");
        assert!(matches!(refused, ResolveError::Manifest { .. }), "{refused:?}");
        let says = format!(
            "image {reference} cannot run here: image is for linux/s390x, this machine runs linux/{}",
            machine_architecture()
        );
        assert_eq!(chain(&refused), says);
    }
    assert_eq!(registry.blobs_asked().0, 1, "the configuration alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_deploys_of_one_image_pull_once() {
    let (_dir, images) = store();
    let registry = Registry::start();
    registry.hold("v1", &Image::of(&layers("one")));
    registry.hold("v2", &Image::of(&layers("two")));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..24 {
        let images = images.clone();
        let reference = registry.reference(&format!("team/app:v{}", number % 2 + 1));
        tasks.spawn(async move { images.resolve(&reference).await.expect("pulled") });
    }
    tasks.join_all().await;
    // Two configurations, two layers, and the base that both share.
    assert_eq!(registry.blobs_asked(), (5, 1));
}

#[tokio::test]
async fn what_a_registry_gets_wrong_is_named() {
    let (dir, images) = store();
    let registry = Registry::start();
    let image = Image::of(&layers("one"));
    registry.hold("v1", &image);
    let layer = image
        .blobs
        .keys()
        .find(|digest| image.blobs[*digest].starts_with(&[0x1f, 0x8b]))
        .expect("a layer");
    let path = format!("/v2/team/app/blobs/{layer}");
    let right = registry.shelf.lock().expect("no panic").content[&path].clone();
    let replace = |content: Vec<u8>| {
        registry
            .shelf
            .lock()
            .expect("no panic")
            .content
            .insert(path.clone(), ("x/y".to_owned(), content));
    };
    let reference = registry.reference("team/app:v1");

    let mut flipped = right.1.clone();
    flipped[20] ^= 1;
    replace(flipped.clone());
    let refused = images.resolve(&reference).await.expect_err("flipped");
    let ResolveError::DigestMismatch { expected, actual, .. } = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(
        (expected, actual),
        (&layer.to_string(), &Digest::of(&flipped).to_string())
    );

    replace([right.1.clone(), vec![0; 100]].concat());
    let refused = images.resolve(&reference).await.expect_err("too long");
    assert!(
        matches!(&refused, ResolveError::Size { digest, .. } if digest == layer),
        "{refused:?}"
    );

    replace(right.1[..30].to_vec());
    assert!(matches!(
        images.resolve(&reference).await,
        Err(ResolveError::DigestMismatch { .. })
    ));

    // The manifest asked by digest is another one.
    let other = Image::of(&layers("two"));
    let wrong = format!("/v2/team/app/manifests/{}", other.digest());
    let content = (image.media_type.to_owned(), image.manifest.clone());
    registry.shelf.lock().expect("no panic").content.insert(wrong, content);
    let pinned = registry.reference(&format!("team/app@{}", other.digest()));
    assert!(matches!(
        images.resolve(&pinned).await,
        Err(ResolveError::DigestMismatch { .. })
    ));

    // Nothing of all that was kept, and the right content still comes.
    assert_eq!(std::fs::read_dir(dir.path().join("store/tmp")).expect("tmp").count(), 0);
    assert!(images.blob_length(layer).expect("asked").is_none());
    replace(right.1);
    images.resolve(&reference).await.expect("pulled at last");
}

#[tokio::test]
async fn credentials_are_docker_s() {
    let registry = Registry::start();
    registry.hold("v1", &Image::of(&layers("one")));
    // user:secret
    registry.shelf.lock().expect("no panic").credential = Some("dXNlcjpzZWNyZXQ=".to_owned());
    let reference = registry.reference("team/app:v1");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = dir.path().join("config.json");
    let images = Images::open_with_docker_config(&dir.path().join("store"), Some(config.clone())).expect("opened");
    let write = |auth: &str| {
        let text = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.address);
        std::fs::write(&config, text).expect("written");
    };
    let refused = images.resolve(&reference).await.expect_err("anonymous");
    assert!(matches!(refused, ResolveError::Unauthorized { .. }), "{refused:?}");
    write("dXNlcjp3cm9uZw==");
    let refused = images.resolve(&reference).await.expect_err("wrong");
    assert!(matches!(refused, ResolveError::Unauthorized { .. }), "{refused:?}");
    assert!(!chain(&refused).contains("wrong") && chain(&refused).contains(&reference.to_string()));
    // Read anew at each pull, as after `docker login`.
    write("dXNlcjpzZWNyZXQ=");
    images.resolve(&reference).await.expect("pulled");
}

#[tokio::test]
async fn what_cannot_be_reached_is_said() {
    let (_dir, images) = store();
    let free = TcpListener::bind("127.0.0.1:0")
        .expect("loopback")
        .local_addr()
        .expect("bound");
    let reference: Reference = format!("{free}/a:b").parse().expect("a reference");
    let refused = images.resolve(&reference).await.expect_err("nobody listens");
    assert!(matches!(refused, ResolveError::Network { .. }), "{refused:?}");
    assert!(chain(&refused).contains("efused"), "{}", chain(&refused));

    // Our own hosts are never asked for.
    for text in ["us-central1-docker.pkg.dev/p/r/i:v1", "gcr.io/p/i"] {
        let refused = images
            .resolve(&text.parse().expect("a reference"))
            .await
            .expect_err("not pushed");
        assert!(matches!(refused, ResolveError::NotFound { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn a_reference_that_is_stored_under_its_name_is_not_pulled() {
    let (_dir, images) = store();
    let image = Image::of(&layers("one"));
    let reference: Reference = "docker.io/library/python:3.12".parse().expect("a reference");
    image.push(&images, reference.repository(), "3.12").await;
    assert_eq!(images.resolve(&reference).await.expect("stored").digest, image.digest());
}

#[tokio::test]
async fn a_mirror_is_asked_each_time_and_remembered() {
    let (dir, images) = store();
    let registry = Registry::start();
    let (first, second) = (Image::of(&layers("one")), Image::of(&layers("two")));
    registry.hold("v1", &first);
    let mirror = async |images: &Images, place: &str| {
        let place = place.parse().expect("a place");
        let names = "docker.io".parse().expect("names");
        images.mirror_below(&names, &place).await.expect("kept");
    };
    mirror(&images, &registry.address.to_string()).await;
    let asked: Reference = "team/app:v1".parse().expect("a reference");
    let resolved = images.resolve(&asked).await.expect("pulled");
    assert_eq!(
        resolved.pinned().to_string(),
        format!("docker.io/team/app@{}", first.digest())
    );

    // The tag moves; what it was goes with the next collection, unless a revision has it.
    registry.hold("v1", &second);
    assert_eq!(images.resolve(&asked).await.expect("pulled").digest, second.digest());
    let held = [first.digest()].into();
    let later = std::time::SystemTime::now() + std::time::Duration::from_hours(1);
    let collected = images.collect(held, later).await.expect("collected");
    assert_eq!(collected.blobs, 0, "held");
    let collected = images.collect([].into(), later).await.expect("collected");
    assert_eq!(collected.blobs, 3, "manifest, configuration and a layer of the first");

    // It does not answer any more, and the store was opened again: what it was last.
    registry.shelf.lock().expect("no panic").down = true;
    drop(images);
    let images = Images::open_with_docker_config(&dir.path().join("store"), None).expect("opened");
    let kept = images.resolve(&asked).await.expect("kept");
    assert_eq!((kept.digest, &kept.reference), (second.digest(), &asked));
    images.ensure(&kept.digest).await.expect("whole");
    let other = "team/app:v2".parse().expect("a reference");
    let refused = images.resolve(&other).await.expect_err("never asked for");
    assert!(
        chain(&refused).contains("image docker.io/team/app:v2 is mirrored"),
        "{refused:?}"
    );

    // Another mirror that does not answer had nothing yet.
    mirror(&images, &format!("{}/other/*", registry.address)).await;
    let refused = images.resolve(&asked).await.expect_err("never asked there");
    assert!(!refused.is_absence(), "{refused:?}");

    // It says that there is no such tag any more: then there is none.
    mirror(&images, &registry.address.to_string()).await;
    {
        let mut shelf = registry.shelf.lock().expect("no panic");
        shelf.down = false;
        shelf.content.clear();
    }
    let refused = images.resolve(&asked).await.expect_err("gone");
    assert!(refused.is_absence(), "{refused:?}");
    let names = "docker.io".parse().expect("names");
    assert!(images.unmirror_below(&names).await.expect("removed"));
    assert!(!images.unmirror_below(&names).await.expect("asked"), "once");
}
