//! Images made on the spot.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use image::{Digest, Images, Repository, Version, machine_architecture, media_type};
use serde_json::json;
use tar::EntryType;

/// One entry of an archive, written as it is: no path is tidied.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) content: Vec<u8>,
    pub(crate) target: String,
    pub(crate) extensions: Vec<(&'static str, Vec<u8>)>,
}

fn entry(path: &str, kind: EntryType, mode: u32) -> Entry {
    Entry {
        path: path.to_owned(),
        kind,
        mode,
        owner: (0, 0),
        mtime: 1_700_000_000,
        content: Vec::new(),
        target: String::new(),
        extensions: Vec::new(),
    }
}

pub(crate) fn dir(path: &str) -> Entry {
    entry(path, EntryType::Directory, 0o755)
}

pub(crate) fn file(path: &str, content: &str) -> Entry {
    Entry {
        content: content.as_bytes().to_vec(),
        ..entry(path, EntryType::Regular, 0o644)
    }
}

pub(crate) fn link(path: &str, target: &str) -> Entry {
    Entry {
        target: target.to_owned(),
        ..entry(path, EntryType::Symlink, 0o777)
    }
}

pub(crate) fn hard(path: &str, target: &str) -> Entry {
    Entry {
        target: target.to_owned(),
        ..entry(path, EntryType::Link, 0o644)
    }
}

pub(crate) fn node(path: &str, kind: EntryType) -> Entry {
    entry(path, kind, 0o644)
}

impl Entry {
    pub(crate) fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    pub(crate) fn owner(self, user: u64, group: u64) -> Entry {
        Entry {
            owner: (user, group),
            ..self
        }
    }

    pub(crate) fn extension(mut self, key: &'static str, value: &[u8]) -> Entry {
        self.extensions.push((key, value.to_vec()));
        self
    }
}

/// A tar archive of the entries.
pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        if !entry.extensions.is_empty() {
            let pairs = entry.extensions.iter().map(|(key, value)| (*key, value.as_slice()));
            archive.append_pax_extensions(pairs).expect("memory");
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        header.set_size(entry.content.len() as u64);
        header.as_gnu_mut().expect("gnu").name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_gnu_mut().expect("gnu").linkname[..entry.target.len()].copy_from_slice(entry.target.as_bytes());
        header.set_cksum();
        archive.append(&header, entry.content.as_slice()).expect("memory");
    }
    archive.into_inner().expect("memory")
}

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).expect("memory");
    gzip.finish().expect("memory")
}

/// All content of an image, by digest, and its manifest.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) media_type: &'static str,
    /// Diff ids, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Image {
    pub(crate) fn of(layers: &[Vec<u8>]) -> Image {
        Image::built_for(machine_architecture(), layers, &|layer| gzip(layer))
    }

    pub(crate) fn built_for(architecture: &str, layers: &[Vec<u8>], pack: &dyn Fn(&[u8]) -> Vec<u8>) -> Image {
        let mut blobs = BTreeMap::new();
        let mut add = |content: Vec<u8>, media_type: &str| {
            let digest = Digest::of(&content);
            let descriptor = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
            blobs.insert(digest, content);
            descriptor
        };
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/app"], "Env": ["A=b"], "User": "app", "WorkingDir": "/srv", "Entrypoint": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = add(config.to_string().into_bytes(), media_type::OCI_CONFIG);
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| add(pack(layer), media_type::OCI_LAYER_GZIP))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
        });
        Image {
            blobs,
            manifest: manifest.to_string().into_bytes(),
            media_type: media_type::OCI_MANIFEST,
            diff_ids,
        }
    }

    /// An index of images with their architectures, as docker writes it.
    pub(crate) fn index(images: &[(&str, &Image)]) -> Image {
        let mut blobs = BTreeMap::new();
        let mut manifests = Vec::new();
        for (architecture, image) in images {
            blobs.extend(image.blobs.clone());
            blobs.insert(image.digest(), image.manifest.clone());
            manifests.push(json!({
                "mediaType": image.media_type,
                "digest": image.digest(),
                "size": image.manifest.len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_LIST, "manifests": manifests});
        Image {
            blobs,
            manifest: index.to_string().into_bytes(),
            media_type: media_type::DOCKER_LIST,
            diff_ids: Vec::new(),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Pushes everything, as a client would.
    pub(crate) async fn push(&self, images: &Images, repository: &Repository, version: &str) -> Digest {
        for (digest, content) in &self.blobs {
            images
                .put_blob(*digest, Bytes::from(content.clone()))
                .await
                .expect("pushed");
        }
        let version: Version = version.parse().expect("a version");
        images
            .put_manifest(repository, &version, self.media_type, &self.manifest)
            .await
            .expect("pushed")
    }
}

pub(crate) fn repository() -> Repository {
    "us-central1-docker.pkg.dev/my-project/repo/app"
        .parse()
        .expect("a repository")
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Everything below a directory: path and kind, sorted.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::FileTypeExt;
    fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let entry = entry.expect("an entry");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                found.push(format!("{name}/"));
                walk(&entry.path(), &format!("{name}/"), found);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(entry.path()).expect("a link");
                found.push(format!("{name} -> {}", target.display()));
            } else if kind.is_char_device() {
                found.push(format!("{name} (whiteout)"));
            } else if kind.is_fifo() {
                found.push(format!("{name} (pipe)"));
            } else {
                let content = std::fs::read(entry.path()).expect("a file");
                found.push(format!("{name} = {}", String::from_utf8_lossy(&content)));
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found);
    found.sort();
    found
}
