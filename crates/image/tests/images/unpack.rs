use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image::{Digest, EnsureError, Images, MAX_OWNER, UnpackError, machine_architecture};
use tar::EntryType;

use crate::fixture::{Entry, Image, archive, chain, dir, file, gzip, hard, link, listing, node, repository};

pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) images: Images,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let images = Images::open_with_docker_config(&dir.path().join("store"), None).expect("opened");
        Bench { dir, images }
    }

    /// A path in the store, which lies in a directory of its own: what leaves it shows beside it.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("store").join(name)
    }

    pub(crate) async fn ensure(&self, image: &Image) -> Result<Vec<PathBuf>, EnsureError> {
        let digest = image.push(&self.images, &repository(), "v1").await;
        self.images.ensure(&digest).await.map(|unpacked| unpacked.layers)
    }

    /// One layer of these entries, unpacked.
    async fn layer(&self, entries: &[Entry]) -> Result<PathBuf, EnsureError> {
        self.ensure(&Image::of(&[archive(entries)]))
            .await
            .map(|layers| layers[0].clone())
    }

    fn nothing_left(&self) {
        assert_eq!(std::fs::read_dir(self.path("tmp")).expect("tmp").count(), 0);
        assert_eq!(std::fs::read_dir(self.path("layers")).expect("layers").count(), 0);
    }
}

fn stat(path: &Path) -> std::fs::Metadata {
    path.symlink_metadata()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test]
async fn keeps_what_an_archive_says() {
    let bench = Bench::new();
    let root = bench
        .layer(&[
            dir("./").mode(0o711).owner(1, 2),
            dir("usr/bin/").mode(0o750).owner(3, 4),
            file("usr/bin/su", "su").mode(0o4755).owner(0, 5),
            file("usr/bin/own", "own").mode(0o600).owner(MAX_OWNER, MAX_OWNER),
            hard("usr/bin/own2", "usr/bin/own"),
            link("bin", "usr/bin").owner(6, 7),
            link("outside", "/etc/passwd"),
            node("run/pipe", EntryType::Fifo).mode(0o620).owner(8, 9),
            dir("tmp").mode(0o1777),
            file("tagged", "x")
                .extension("SCHILY.xattr.user.note", b"n\0te")
                .extension("mtime", b"1600000000.25"),
            file("forged", "x").extension("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            dir("forged2").extension("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .await
        .expect("unpacked");
    assert_eq!(
        listing(&root),
        [
            "bin -> usr/bin",
            "forged = x",
            "forged2/",
            "outside -> /etc/passwd",
            "run/",
            "run/pipe (pipe)",
            "tagged = x",
            "tmp/",
            "usr/",
            "usr/bin/",
            "usr/bin/own = own",
            "usr/bin/own2 = own",
            "usr/bin/su = su",
        ]
    );
    for (path, mode, user, group) in [
        ("", 0o711, 1, 2),
        ("usr", 0o755, 0, 0),
        ("usr/bin", 0o750, 3, 4),
        ("usr/bin/su", 0o4755, 0, 5),
        ("usr/bin/own", 0o600, 65535, 65535),
        ("bin", 0o777, 6, 7),
        ("run/pipe", 0o620, 8, 9),
        ("tmp", 0o1777, 0, 0),
    ] {
        let stat = stat(&root.join(path));
        assert_eq!(
            (stat.mode() & 0o7777, stat.uid(), stat.gid()),
            (mode, user, group),
            "{path}"
        );
    }
    for path in ["", "usr/bin", "usr/bin/su", "bin", "run/pipe"] {
        assert_eq!(stat(&root.join(path)).mtime(), 1_700_000_000, "{path}");
    }
    assert_eq!(
        (
            stat(&root.join("tagged")).mtime(),
            stat(&root.join("tagged")).mtime_nsec()
        ),
        (1_600_000_000, 250_000_000)
    );
    assert_eq!(
        stat(&root.join("usr/bin/own")).ino(),
        stat(&root.join("usr/bin/own2")).ino()
    );
    let attribute = |path: &str, name: &str| {
        let mut value = [0; 16];
        rustix::fs::lgetxattr(root.join(path), name, &mut value[..]).map(|length| value[..length].to_vec())
    };
    assert_eq!(attribute("tagged", "user.note").expect("kept"), b"n\0te");
    assert!(attribute("forged", "trusted.overlay.opaque").is_err());
    assert!(attribute("forged2", "user.overlay.opaque").is_err());
    // Nobody but root gets to the setuid files.
    assert_eq!(stat(&bench.path("layers")).mode() & 0o777, 0o700);
}

#[tokio::test]
async fn nothing_leaves_the_layer() {
    for (entries, says) in [
        (vec![file("../escaped", "x")], "(..)"),
        (vec![file("a/../../escaped", "x")], "(..)"),
        (vec![link("a", "/"), hard("stolen", "../../../etc/passwd")], "(..)"),
        (
            vec![hard("stolen", "/etc/passwd")],
            "\"/etc/passwd\", which this layer does not hold",
        ),
        (
            vec![link("etc", "/etc"), hard("stolen", "etc/passwd")],
            "which this layer does not hold",
        ),
        (vec![dir("d"), hard("e", "d")], "which this layer does not hold"),
        (
            vec![file("a", "x"), file("a/b", "x")],
            "cannot open the directory of it",
        ),
        (vec![file(".wh.", "")], "cannot be the name"),
        (vec![file("a/.wh...", "")], "cannot be the name"),
        (vec![file(".", "x")], "names the root"),
        (
            vec![link("l1", "l2"), link("l2", "l1"), file("l1/x", "x")],
            "cannot open the directory of it",
        ),
        (
            vec![file("big", "x").owner(MAX_OWNER + 1, 0)],
            "user id 65536 is above 65535",
        ),
        (
            vec![file("big", "x").owner(0, 4_000_000_000)],
            "group id 4000000000 is above 65535",
        ),
        (vec![file("holes", "x").extension("GNU.sparse.major", b"1")], "holes"),
        (vec![node("odd", EntryType::new(b'Q'))], "'Q'"),
        (vec![file(&"d/".repeat(45), "x")], ""),
    ] {
        let bench = Bench::new();
        let result = bench.layer(&entries).await;
        if says.is_empty() {
            result.expect("harmless");
            continue;
        }
        let refused = result.map(|path| listing(&path)).expect_err(says);
        assert!(chain(&refused).contains(says), "{}", chain(&refused));
        bench.nothing_left();
        let beside: Vec<_> = std::fs::read_dir(bench.dir.path()).expect("a directory").collect();
        assert_eq!(beside.len(), 1, "{beside:?}");
        assert!(!Path::new("/escaped").exists());
    }
}

#[tokio::test]
async fn links_are_followed_inside_the_layer_only() {
    let bench = Bench::new();
    let marker = tempfile::tempdir().expect("a temporary directory");
    let target = marker.path().to_str().expect("text");
    let root = bench
        .layer(&[
            // Through an absolute link, and through one that climbs.
            link("abs", target),
            file("abs/one", "1"),
            link("up", "../../../../../../../../../../tmp/climbed"),
            file("up/two", "2"),
            // A directory becomes a link after files went into it.
            dir("d"),
            file("d/old", "old"),
            link("d", target),
            file("d/three", "3"),
            // A link becomes a directory.
            link("e", target),
            dir("e"),
            file("e/four", "4"),
            // A file over a link replaces the link, not what it leads to.
            link("f", "/etc/hostname"),
            file("f", "5"),
            // A path from the root of the layer.
            file("/rooted", "6"),
            // Links that lead somewhere in the layer.
            dir("usr/lib"),
            link("lib", "usr/lib"),
            file("lib/seven", "7"),
        ])
        .await
        .expect("unpacked");
    assert_eq!(listing(marker.path()), Vec::<String>::new());
    assert!(!Path::new("/tmp/climbed").exists());
    let inside =
        |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let below = target.trim_start_matches('/');
    assert_eq!(inside(&format!("{below}/one")), "1");
    assert_eq!(inside("tmp/climbed/two"), "2");
    assert_eq!(inside(&format!("{below}/three")), "3");
    assert_eq!(inside("e/four"), "4");
    assert_eq!(inside("f"), "5");
    assert_eq!(inside("rooted"), "6");
    assert_eq!(inside("usr/lib/seven"), "7");
    assert!(!root.join("d/old").exists() && stat(&root.join("d")).is_symlink());
}

#[tokio::test]
async fn links_cannot_grow_a_tree_that_nobody_can_remove() {
    let bench = Bench::new();
    // Names are at most 100 bytes in these archives, so the depth comes from links: each leads 45 deeper.
    let step = "d/".repeat(45);
    let mut entries = Vec::new();
    for number in 0..8 {
        let below = if number == 0 {
            String::new()
        } else {
            format!("l{}/", number - 1)
        };
        entries.push(file(&format!("{below}{step}f"), "x"));
        entries.push(link(&format!("l{number}"), &format!("{below}{step}")));
    }
    let refused = bench.layer(&entries).await.expect_err("too deep");
    assert!(
        chain(&refused).contains("more than 255 directories"),
        "{}",
        chain(&refused)
    );
    bench.nothing_left();
}

#[tokio::test]
async fn device_nodes_are_left_out() {
    let bench = Bench::new();
    let root = bench
        .layer(&[
            node("dev/null", EntryType::Char),
            node("dev/sda", EntryType::Block),
            file("dev/note", "x"),
        ])
        .await
        .expect("unpacked");
    assert_eq!(listing(&root), ["dev/", "dev/note = x"]);
}

#[tokio::test]
async fn every_compression_gives_the_same_layer() {
    let layer = archive(&[file("a", "1"), file("b", "2")]);
    let zstd = |layer: &[u8]| zstd::encode_all(layer, 3).expect("memory");
    let twice = |layer: &[u8]| [gzip(&layer[..700]), gzip(&layer[700..])].concat();
    for pack in [&gzip as &dyn Fn(&[u8]) -> Vec<u8>, &zstd, &twice, &|layer| {
        layer.to_vec()
    }] {
        let bench = Bench::new();
        let image = Image::built_for(machine_architecture(), std::slice::from_ref(&layer), pack);
        let layers = bench.ensure(&image).await.expect("unpacked");
        assert_eq!(listing(&layers[0]), ["a = 1", "b = 2"]);
        assert_eq!(
            layers[0],
            bench.path("layers").join(Digest::of(&layer).hex()).join("root")
        );
    }
}

#[tokio::test]
async fn a_layer_of_another_content_than_promised_is_refused() {
    let bench = Bench::new();
    let other = archive(&[file("evil", "x")]);
    let image = Image::built_for(machine_architecture(), &[archive(&[file("a", "1")])], &|_| gzip(&other));
    let refused = bench.ensure(&image).await.expect_err("another content");
    let EnsureError::Layer {
        source: UnpackError::DiffId { expected, actual },
        ..
    } = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!((expected, actual), (image.diff_ids[0], Digest::of(&other)));
    bench.nothing_left();

    for broken in [&|layer: &[u8]| gzip(layer)[..40].to_vec(), &|layer: &[u8]| {
        layer[..700].to_vec()
    }] as [&dyn Fn(&[u8]) -> Vec<u8>; 2]
    {
        let image = Image::built_for(
            machine_architecture(),
            &[archive(&[file("a", &"1".repeat(400))])],
            broken,
        );
        assert!(bench.ensure(&image).await.is_err());
        bench.nothing_left();
    }
}

#[tokio::test]
async fn a_header_that_never_ends_is_refused() {
    let bench = Bench::new();
    let long = vec![b'x'; 2 << 20];
    let refused = bench
        .layer(&[file("a", "1").extension("comment", &long)])
        .await
        .expect_err("too long");
    assert!(
        chain(&refused).contains("1048576 bytes of headers"),
        "{}",
        chain(&refused)
    );
    bench.nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_a_time_unpack_each_layer_once() {
    let bench = Bench::new();
    let base = archive(
        &(0..200)
            .map(|number| file(&format!("f{number}"), "x"))
            .collect::<Vec<_>>(),
    );
    let first = Image::of(&[base.clone(), archive(&[file("one", "1")])]);
    let second = Image::of(&[base, archive(&[file("two", "2")])]);
    let digests = [
        first.push(&bench.images, &repository(), "v1").await,
        second.push(&bench.images, &repository(), "v2").await,
    ];
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..32 {
        let (images, digest) = (bench.images.clone(), digests[number % 2]);
        tasks.spawn(async move { images.ensure(&digest).await.expect("unpacked") });
    }
    let unpacked = tasks.join_all().await;
    assert_eq!(bench.images.layers_unpacked(), 3);
    assert!(
        unpacked
            .iter()
            .all(|unpacked| unpacked.layers.len() == 2 && unpacked.config.cmd == ["/app"])
    );

    // Nor does the next process unpack them again.
    let again = Images::open_with_docker_config(&bench.path(""), None).expect("opened");
    again.ensure(&digests[0]).await.expect("there");
    assert_eq!(again.layers_unpacked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_goes_away_does_not_let_it_happen_twice() {
    let bench = Bench::new();
    let image = Image::of(&[archive(
        &(0..800)
            .map(|number| file(&format!("f{number}"), "x"))
            .collect::<Vec<_>>(),
    )]);
    let digest = image.push(&bench.images, &repository(), "v1").await;
    let images = bench.images.clone();
    let gone = tokio::spawn(async move { images.ensure(&digest).await.map(drop) });
    while std::fs::read_dir(bench.path("tmp")).expect("tmp").count() == 0 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    bench.images.ensure(&digest).await.expect("unpacked");
    assert_eq!(bench.images.layers_unpacked(), 1);
}
