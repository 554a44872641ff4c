//! Layouts as skopeo writes them, and as attackers would.

use std::path::Path;
use std::process::Command;

use image::{Images, LayoutError, Reference, hello};

use crate::fixture::{archive, chain, dir, file, listing};

/// Stores the hello image of a made-up program and returns the store.
async fn store_with_hello(dir: &Path) -> Images {
    let images = Images::open_with_docker_config(dir, None).expect("opened");
    hello::install(&images, b"#!program").await.expect("installed");
    images
}

/// The layout of the hello image, as a directory, without a name.
async fn write_layout(images: &Images, to: &Path, annotations: serde_json::Value) {
    use std::io::Read;
    let resolved = images
        .resolve(&hello::REFERENCE.parse().expect("a reference"))
        .await
        .expect("stored");
    let blobs = to.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("made");
    let copy = |digest: &image::Digest| {
        let mut content = Vec::new();
        images
            .blob(digest)
            .expect("stored")
            .file
            .read_to_end(&mut content)
            .expect("read");
        std::fs::write(blobs.join(digest.hex()), &content).expect("written");
        content
    };
    let manifest = copy(&resolved.digest);
    let parsed: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    for descriptor in std::iter::once(&parsed["config"]).chain(parsed["layers"].as_array().expect("layers")) {
        copy(&descriptor["digest"].as_str().expect("text").parse().expect("a digest"));
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": parsed["mediaType"], "digest": resolved.digest, "size": manifest.len(), "annotations": annotations,
    }]});
    std::fs::write(to.join("index.json"), index.to_string()).expect("written");
    std::fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
}

fn skopeo(arguments: &[&str]) {
    let output = Command::new("skopeo")
        .args(arguments)
        .output()
        .expect("skopeo is installed (make installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_hello_image_is_there_without_a_network() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let images = store_with_hello(dir.path()).await;
    let reference: Reference = "us-docker.pkg.dev/cloudrun/container/hello"
        .parse()
        .expect("a reference");
    let resolved = images.resolve(&reference).await.expect("stored");
    assert_eq!(resolved.config.entrypoint, ["/hello"]);
    let unpacked = images.ensure(&resolved.digest).await.expect("unpacked");
    assert_eq!(
        listing(&unpacked.layers[0])
            .into_iter()
            .filter(|line| !line.starts_with("etc/"))
            .collect::<Vec<_>>(),
        ["hello = #!program", "tmp/"]
    );
    let user = image::user(&unpacked.layers, &resolved.config.user).expect("numbers");
    assert_eq!((user.uid, user.gid), (65532, 65532));
    // The same program is the same image; another one moves the tag.
    assert_eq!(
        hello::install(&images, b"#!program").await.expect("again"),
        resolved.digest
    );
    assert_ne!(
        hello::install(&images, b"#!other").await.expect("another"),
        resolved.digest
    );
}

#[tokio::test]
async fn layouts_that_skopeo_writes_are_imported() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let images = store_with_hello(&dir.path().join("first")).await;
    write_layout(
        &images,
        &dir.path().join("made"),
        serde_json::json!({"org.opencontainers.image.ref.name": "v1"}),
    )
    .await;
    skopeo(&[
        "copy",
        "--quiet",
        &format!("oci:{}:v1", path("made")),
        &format!("oci:{}:v1", path("copied")),
    ]);
    let named = format!("oci-archive:{}:localhost/team/app:v2", path("copied.tar"));
    skopeo(&["copy", "--quiet", &format!("oci:{}:v1", path("made")), &named]);

    let other = Images::open_with_docker_config(&dir.path().join("second"), None).expect("opened");
    // A tag alone is no name.
    let refused = other
        .import_layout(Path::new(&path("copied")), None)
        .await
        .expect_err("no name");
    assert!(
        matches!(&refused, LayoutError::NoName { found, .. } if found == "v1"),
        "{refused:?}"
    );
    assert!(other.repositories().expect("listed").is_empty());
    let name: Reference = "us-central1-docker.pkg.dev/p/r/app:v1".parse().expect("a reference");
    let imported = other
        .import_layout(Path::new(&path("copied")), Some(&name))
        .await
        .expect("imported");
    assert_eq!(imported[0].reference, name);
    let resolved = other.resolve(&name).await.expect("stored");
    assert_eq!(resolved.digest, imported[0].digest);
    assert_eq!(other.ensure(&resolved.digest).await.expect("unpacked").layers.len(), 1);

    // An archive, under its own name.
    let third = Images::open_with_docker_config(&dir.path().join("third"), None).expect("opened");
    let imported = third
        .import_layout(Path::new(&path("copied.tar")), None)
        .await
        .expect("imported");
    assert_eq!(imported[0].reference.to_string(), "localhost/team/app:v2");
    third.ensure(&imported[0].digest).await.expect("unpacked");
}

#[tokio::test]
async fn layouts_that_are_none_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let images = store_with_hello(&dir.path().join("store")).await;
    let name: Reference = "localhost/x".parse().expect("a reference");
    let made = dir.path().join("made");
    std::fs::create_dir(&made).expect("made");
    let target = Images::open_with_docker_config(&dir.path().join("target"), None).expect("opened");
    let import = async || chain(&target.import_layout(&made, Some(&name)).await.expect_err("refused"));
    assert!(import().await.ends_with("it has no oci-layout"));
    write_layout(&images, &made, serde_json::json!({})).await;
    std::fs::write(made.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).expect("written");
    assert!(import().await.contains("version \"2.0.0\""));
    std::fs::write(made.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");

    // A blob with another content than its name.
    let resolved = images
        .resolve(&hello::REFERENCE.parse().expect("a reference"))
        .await
        .expect("stored");
    let manifest = made.join("blobs/sha256").join(resolved.digest.hex());
    let content = std::fs::read(&manifest).expect("read");
    std::fs::write(&manifest, [content.as_slice(), b" "].concat()).expect("written");
    assert!(
        import()
            .await
            .contains(&format!("content was to be {}", resolved.digest))
    );
    std::fs::remove_file(&manifest).expect("removed");
    assert!(
        import()
            .await
            .ends_with(&format!("blob {} is not stored", resolved.digest))
    );
    std::fs::write(&manifest, content).expect("written");
    target.import_layout(&made, Some(&name)).await.expect("whole at last");

    assert!(
        chain(
            &target
                .import_layout(&dir.path().join("none"), None)
                .await
                .expect_err("absent")
        )
        .contains("none")
    );
}

#[tokio::test]
async fn an_archive_names_no_file_of_ours() {
    let dir_ = tempfile::tempdir().expect("a temporary directory");
    let target = Images::open_with_docker_config(&dir_.path().join("store"), None).expect("opened");
    let hostile = archive(&[
        file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", r#"{"schemaVersion":2,"manifests":[]}"#),
        file("../escaped", "x"),
        file("/tmp/escaped-by-import", "x"),
        file("blobs/sha256/../../../escaped", "x"),
        dir("blobs"),
    ]);
    let path = dir_.path().join("hostile.tar");
    std::fs::write(&path, hostile).expect("written");
    let before = listing(&dir_.path().join("store"));
    let refused = target.import_layout(&path, None).await.expect_err("empty");
    assert!(matches!(refused, LayoutError::Empty { .. }), "{refused:?}");
    assert_eq!(listing(&dir_.path().join("store")), before);
    assert!(!Path::new("/tmp/escaped-by-import").exists() && !dir_.path().join("escaped").exists());
}
