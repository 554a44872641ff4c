//! The image that is there without any network: one static program that answers requests. The program's bytes come
//! from whoever builds the binary; here they become a one-layer image whose digest depends on them alone.

use flate2::{Compression, GzBuilder};
use serde_json::json;
use std::io::Write;

use crate::digest::Digest;
use crate::manifest::media_type;
use crate::reference::{Reference, Version};
use crate::repository::Completeness;
use crate::{Error, Images, blocking, machine_architecture};

/// The name under which the image is stored: that of Google's own sample.
pub const REFERENCE: &str = "us-docker.pkg.dev/cloudrun/container/hello:latest";

/// Stores the hello image made of `program`, a static executable, and points its tag at it. Does nothing if the very
/// same image is there already.
pub async fn install(images: &Images, program: &'static [u8]) -> Result<Digest, Error> {
    let images = images.clone();
    blocking(move || {
        let reference: Reference = REFERENCE.parse().expect("the constant is a reference");
        let layer = layer(program);
        let diff_id = Digest::of(&layer);
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
        gzip.write_all(&layer).expect("writing to memory does not fail");
        let layer = gzip.finish().expect("writing to memory does not fail");
        let config = json!({
            "architecture": machine_architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": ["/hello"],
                "Env": ["PATH=/"],
                "ExposedPorts": {"8080/tcp": {}},
                "User": "65532:65532",
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": {
                "mediaType": media_type::OCI_CONFIG,
                "digest": Digest::of(config.as_bytes()),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": media_type::OCI_LAYER_GZIP,
                "digest": Digest::of(&layer),
                "size": layer.len(),
            }],
        })
        .to_string();
        images.put_small_blob(&layer)?;
        images.put_small_blob(config.as_bytes())?;
        let version = reference.version();
        let digest = Digest::of(manifest.as_bytes());
        if let Version::Tag(tag) = &version
            && images.tag(reference.repository(), tag)? == Some(digest)
        {
            return Ok(digest);
        }
        images.link_manifest(
            reference.repository(),
            &version,
            None,
            manifest.as_bytes(),
            Completeness::All,
        )
    })
    .await
}

/// A tar archive of the program and the directories a program expects. Nothing in it depends on when or where.
fn layer(program: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive
            .append_data(&mut header, path, content)
            .expect("short names and memory do not fail");
    };
    add("./", tar::EntryType::Directory, 0o755, b"");
    add("etc/", tar::EntryType::Directory, 0o755, b"");
    add(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0::/:/hello\nhello:x:65532:65532::/:/hello\n",
    );
    add(
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:\nhello:x:65532:\n",
    );
    add("tmp/", tar::EntryType::Directory, 0o1777, b"");
    add("hello", tar::EntryType::Regular, 0o755, program);
    archive.into_inner().expect("writing to memory does not fail")
}
