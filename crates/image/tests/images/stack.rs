//! What a stack of layers shows, asked of overlayfs itself in a mount namespace that ends with the question.

use std::path::PathBuf;
use std::process::Command;

use image::{User, user};

use crate::fixture::{Image, archive, dir, file, link};
use crate::unpack::Bench;

/// The merged view: `mode uid gid path` of every directory, `path = content` of every file.
fn merged(layers: &[PathBuf]) -> Vec<String> {
    let lower: Vec<String> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
    let target = tempfile::tempdir().expect("a temporary directory");
    let script = r#"mount -t overlay overlay -o "ro,lowerdir=$1" "$2" && cd "$2" &&
        find . -type d -printf '%m %U %G %p\n' && find . ! -type d -printf '%p = ' -exec cat {} \; -exec echo \;"#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", &lower.join(":")])
        .arg(target.path())
        .output()
        .expect("unshare runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut lines: Vec<String> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn whiteouts_hide_what_is_below() {
    let bench = Bench::new();
    let base = archive(&[
        dir("./"),
        file("gone", "1"),
        file("stays", "2"),
        dir("d"),
        file("d/a", "3"),
        dir("opaque"),
        file("opaque/old", "4"),
        dir("again"),
        file("again/old", "5"),
        dir("again2"),
        file("again2/old", "6"),
        file("over", "7"),
    ]);
    let upper = archive(&[
        dir("./"),
        file(".wh.gone", ""),
        file(".wh.d", ""),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/new", "8"),
        // Removed and made anew, the mark before or after.
        file(".wh.again", ""),
        dir("again"),
        file("again/new", "9"),
        dir("again2"),
        file("again2/new", "10"),
        file(".wh.again2", ""),
        file("over", "11"),
        file(".wh.over", ""),
        file(".wh..wh.plnk/123", ""),
        file(".wh..wh.aufs", ""),
    ]);
    let layers = bench.ensure(&Image::of(&[base, upper])).await.expect("unpacked");
    let files: Vec<String> = merged(&layers)
        .into_iter()
        .filter(|line| line.starts_with("./"))
        .collect();
    assert_eq!(
        files,
        [
            "./.wh..wh.plnk/123 = ",
            "./again/new = 9",
            "./again2/new = 10",
            "./opaque/new = 8",
            "./over = 11",
            "./stays = 2"
        ]
    );
}

#[tokio::test]
async fn directories_that_are_only_implied_keep_what_a_lower_layer_says() {
    let bench = Bench::new();
    let base = archive(&[
        dir("./").mode(0o711),
        dir("tmp").mode(0o1777),
        dir("home").mode(0o750).owner(5, 6),
        dir("home/a").mode(0o700).owner(7, 8),
    ]);
    let upper = archive(&[file("tmp/x", "1"), file("home/a/y", "2"), file("fresh/z", "3")]);
    let layers = bench
        .ensure(&Image::of(&[base.clone(), upper.clone()]))
        .await
        .expect("unpacked");
    assert_eq!(layers.len(), 3, "two and a correction");
    assert_eq!(
        merged(&layers),
        [
            "./fresh/z = 3",
            "./home/a/y = 2",
            "./tmp/x = 1",
            "1777 0 0 ./tmp",
            "700 7 8 ./home/a",
            "711 0 0 .",
            "750 5 6 ./home",
            "755 0 0 ./fresh",
        ]
    );
    // The same answer the second time, and for the next process.
    let again = bench.ensure(&Image::of(&[base, upper])).await.expect("there");
    assert_eq!(again, layers);

    // Where nothing is wrong, nothing is added.
    let base = archive(&[dir("./"), dir("a"), file("a/x", "1")]);
    let upper = archive(&[file("a/y", "2")]);
    let layers = bench.ensure(&Image::of(&[base, upper])).await.expect("unpacked");
    assert_eq!(layers.len(), 2);
}

#[tokio::test]
async fn a_layer_that_occurs_twice_is_mounted_once() {
    let bench = Bench::new();
    let one = archive(&[dir("./"), file("x", "1")]);
    let two = archive(&[dir("./"), file(".wh.x", ""), file("y", "2")]);
    let layers = bench
        .ensure(&Image::of(&[one.clone(), two, one]))
        .await
        .expect("unpacked");
    assert_eq!(layers.len(), 2);
    let files: Vec<String> = merged(&layers)
        .into_iter()
        .filter(|line| line.starts_with("./"))
        .collect();
    assert_eq!(files, ["./x = 1", "./y = 2"]);
}

#[tokio::test]
async fn users_are_read_from_the_layers() {
    let bench = Bench::new();
    let passwd = |id: u32| format!("root:x:0:0::/:/bin/sh\napp:x:{id}:{id}::/:/bin/sh\n");
    let base = archive(&[
        dir("etc"),
        file("etc/passwd", &passwd(1000)),
        file("etc/group", "more:x:50:app\n"),
    ]);
    let newer = archive(&[file("etc/passwd", &passwd(2000))]);
    let gone = archive(&[file("etc/.wh.passwd", "")]);
    let opaque = archive(&[file("etc/.wh..wh..opq", ""), file("etc/other", "")]);
    // Links: to the machine's own file (none in the layers), inside the layers, and in a circle.
    let away = archive(&[file("etc/.wh.passwd", ""), link("etc/passwd", "/proc/self/environ")]);
    let inside = archive(&[link("etc/passwd", "../../nix/users"), file("nix/users", &passwd(3000))]);
    let circle = archive(&[link("etc/passwd", "/etc/passwd")]);
    let of = |uid: u32, gid: u32, groups: &[u32]| User {
        uid,
        gid,
        groups: groups.to_vec(),
        home: if uid == 0 { "" } else { "/" }.to_owned(),
    };
    for (layers, expected) in [
        (vec![&base], of(1000, 1000, &[50])),
        (vec![&base, &newer], of(2000, 2000, &[50])),
        (vec![&newer, &base], of(1000, 1000, &[50])),
        (vec![&base, &gone], of(0, 0, &[])),
        (vec![&base, &opaque], of(0, 0, &[])),
        (vec![&base, &away], of(0, 0, &[])),
        (vec![&base, &inside], of(3000, 3000, &[50])),
    ] {
        let layers: Vec<Vec<u8>> = layers.into_iter().cloned().collect();
        let layers = bench.ensure(&Image::of(&layers)).await.expect("unpacked");
        assert_eq!(user(&layers, "app").expect("found"), expected);
    }
    let layers = bench.ensure(&Image::of(&[base, circle])).await.expect("unpacked");
    assert!(user(&layers, "app").is_err());
}
