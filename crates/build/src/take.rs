//! From what the builder made to an image of the store.
//!
//! ```text
//! out/image   written by buildah: layers that nobody has yet, and empty files in place of those that are here
//! image       written by this module: the same image with its times settled, so that it has one digest
//! ```
//!
//! Layers of base images are not taken out of the builder and compressed again: the store has them. Nor are those that an
//! earlier build of the image has left, which [`crate::reuse`] remembers. What the builder wrote is a stranger's: it is
//! read only after the builder has ended, no link in it is followed, and its sums are not believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read as _},
    path::{Path, PathBuf},
    str::FromStr as _,
};

use image::{Digest, Images, media_type};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    layer::{self, Times},
    served::Served,
};

/// The layout that buildah writes, in its directory for what it makes.
pub(crate) const IMAGE: &str = "image";
/// Images whose base tells no time, or one before it, are of 1980-01-02: no ZIP can hold a time before 1980, wherever the
/// clock stands.
const FIRST: i64 = 315_619_200;
/// Largest manifest or configuration of an image.
const MAX_DOCUMENT: u64 = 8 << 20;
const BLOBS: &str = "blobs/sha256";
const BASE_NAME: &str = "org.opencontainers.image.base.name";
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

/// Why an image was not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    #[error("the builder left no image: {0}")]
    None(&'static str),
    #[error("a layer of the builder is not the one that its configuration names: {expected} was to be {found}")]
    Layer { expected: String, found: String },
    #[error("a document of the builder is not valid")]
    Json(#[from] serde_json::Error),
    #[error("the image cannot be read out of the builder")]
    Disk(#[from] io::Error),
}

/// A layer of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) diff_id: String,
}

/// Layers that the store has, by the diff ids that the builder has them under.
pub(crate) type Layers = BTreeMap<String, Layer>;

/// What the store knows of the base images of a build.
#[derive(Debug, Default)]
pub(crate) struct Bases {
    pub(crate) layers: Layers,
    /// Seconds since 1970: no base image is younger.
    pub(crate) epoch: u64,
    digests: BTreeSet<String>,
}

impl Bases {
    /// Blocks on the disk.
    pub(crate) fn of(images: &Images, served: &Served) -> Self {
        let mut bases = Self::default();
        let mut epoch = FIRST;
        for digest in served.manifests() {
            bases.digests.insert(digest.to_string());
            let Some(manifest) = document(images, &digest) else {
                continue;
            };
            let config = manifest["config"]["digest"].as_str();
            let config = config.and_then(|digest| Digest::from_str(digest).ok());
            let Some(config) = config.and_then(|digest| document(images, &digest)) else {
                continue;
            };
            epoch = epoch.max(config["created"].as_str().and_then(second).unwrap_or(FIRST));
            for (layer, diff_id) in elements(&manifest["layers"])
                .iter()
                .zip(elements(&config["rootfs"]["diff_ids"]))
            {
                let (Some(name), Some(diff_id)) = (layer["digest"].as_str(), diff_id.as_str()) else {
                    continue;
                };
                let layer = Layer {
                    media_type: ours(layer["mediaType"].as_str().unwrap_or_default()),
                    digest: name.to_owned(),
                    size: layer["size"].as_u64().unwrap_or_default(),
                    diff_id: diff_id.to_owned(),
                };
                bases.layers.insert(diff_id.to_owned(), layer);
            }
        }
        bases.epoch = u64::try_from(epoch).unwrap_or_default();
        bases
    }
}

fn elements(of: &Value) -> &[Value] {
    of.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The first whole second that is not before a time.
fn second(text: &str) -> Option<i64> {
    let time: Timestamp = text.parse().ok()?;
    Some(time.as_second() + i64::from(time.subsec_nanosecond() > 0))
}

/// Of a docker image's layer OCI's type.
fn ours(kind: &str) -> String {
    if kind.ends_with("gzip") {
        media_type::OCI_LAYER_GZIP.to_owned()
    } else if kind.ends_with("zstd") {
        format!("{}+zstd", media_type::OCI_LAYER)
    } else {
        media_type::OCI_LAYER.to_owned()
    }
}

fn document(images: &Images, digest: &Digest) -> Option<Value> {
    let blob = images.blob(digest).ok()?;
    let mut content = Vec::new();
    blob.file.take(MAX_DOCUMENT).read_to_end(&mut content).ok()?;
    serde_json::from_slice(&content).ok()
}

/// Tells buildah which layers it need not hand over: those that are still here when this returns. Blocks on the disk.
///
/// # Errors
/// What cannot be written, or read of the store.
pub(crate) fn offer(images: &Images, layers: &mut Layers, out: &Path) -> io::Result<()> {
    let blobs = out.join(IMAGE).join(BLOBS);
    fs::create_dir_all(&blobs)?;
    fs::write(out.join(IMAGE).join("oci-layout"), LAYOUT)?;
    let mut here = Layers::new();
    for (diff_id, layer) in std::mem::take(layers) {
        let (Ok(name), Ok(blob)) = (Digest::from_str(&diff_id), Digest::from_str(&layer.digest)) else {
            continue;
        };
        if images.claim_blob(&blob).map_err(io::Error::other)?.is_none() {
            continue;
        }
        fs::write(blobs.join(name.hex()), b"")?;
        here.insert(diff_id, layer);
    }
    *layers = here;
    Ok(())
}

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes the image that buildah left in `out` as a layout into the new directory `to`. `offered` are the layers that
/// buildah was told of. Answers those of the image. Blocks on the disk.
///
/// # Errors
/// When what is there is no image.
pub(crate) fn take(out: &Path, to: &Path, bases: &Bases, offered: &Layers, times: &Times) -> Result<Layers, TakeError> {
    let left = Left::open(&out.join(IMAGE))?;
    fs::create_dir_all(to.join(BLOBS))?;
    let index: Value = serde_json::from_slice(&left.document("index.json")?)?;
    let manifest = left.blob(&index["manifests"][0])?;
    let mut config = left.blob(&manifest["config"])?;
    let diff_ids = elements(&config["rootfs"]["diff_ids"]);
    let found = elements(&manifest["layers"]);
    if diff_ids.len() != found.len() {
        return Err(TakeError::None("its layers are not those of its configuration"));
    }
    let (mut of_image, mut layers) = (Vec::with_capacity(found.len()), Layers::new());
    for (layer, diff_id) in found.iter().zip(diff_ids) {
        let diff_id = diff_id.as_str().ok_or(TakeError::None("a layer has no sum"))?;
        let taken = match offered.get(diff_id) {
            Some(known) => known.clone(),
            None => left.layer(layer, diff_id, to, times)?,
        };
        layers.insert(diff_id.to_owned(), taken.clone());
        of_image.push(taken);
    }
    settle(&mut config, &of_image, times.epoch);
    let config = keep(to, media_type::OCI_CONFIG, &config)?;
    let mut annotations = manifest["annotations"].as_object().cloned().unwrap_or_default();
    annotations.retain(|name, value| match name.as_str() {
        BASE_DIGEST => value.as_str().is_some_and(|digest| bases.digests.contains(digest)),
        name => name == BASE_NAME,
    });
    let described = of_image
        .iter()
        .map(|layer| json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size }));
    let mut made = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": config,
        "layers": described.collect::<Vec<_>>(),
    });
    if !annotations.is_empty() {
        made["annotations"] = annotations.into();
    }
    let made = keep(to, media_type::OCI_MANIFEST, &made)?;
    fs::write(to.join("oci-layout"), LAYOUT)?;
    let index = json!({ "schemaVersion": 2, "manifests": [made] });
    fs::write(to.join("index.json"), index.to_string())?;
    Ok(layers)
}

/// Takes out of a configuration what another run of the same build has otherwise.
fn settle(config: &mut Value, layers: &[Layer], epoch: u64) {
    let epoch = i64::try_from(epoch).unwrap_or(FIRST);
    let text = Timestamp::from_second(epoch).map_or_else(|_| String::new(), |time| time.to_string());
    config["created"] = text.as_str().into();
    config["rootfs"]["diff_ids"] = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    for step in config["history"].as_array_mut().into_iter().flatten() {
        let Some(step) = step.as_object_mut() else { continue };
        let later = step.get("created").and_then(Value::as_str).and_then(second) > Some(epoch);
        if later {
            step.insert("created".to_owned(), text.as_str().into());
        }
        // Ids of images between the steps.
        let comment = step.get("comment").and_then(Value::as_str);
        let id = comment.and_then(|comment| comment.strip_prefix("FROM "));
        if id.is_some_and(|id| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            step.remove("comment");
        }
    }
}

/// Writes a document under its sum; answers its descriptor.
fn keep(to: &Path, kind: &str, document: &Value) -> io::Result<Value> {
    let content = document.to_string();
    let digest = Digest::of(content.as_bytes());
    fs::write(to.join(BLOBS).join(digest.hex()), &content)?;
    Ok(json!({ "mediaType": kind, "digest": digest.to_string(), "size": content.len() }))
}

/// A layout that a builder left.
struct Left(PathBuf);

impl Left {
    /// No part of the way is a link. Nobody else writes here any more.
    fn open(dir: &Path) -> Result<Self, TakeError> {
        for way in [dir.to_owned(), dir.join("blobs"), dir.join(BLOBS)] {
            if !fs::symlink_metadata(way)?.is_dir() {
                return Err(TakeError::None("something else is in its place"));
            }
        }
        Ok(Self(dir.to_owned()))
    }

    fn file(&self, name: &str) -> Result<File, TakeError> {
        let path = self.0.join(name);
        if !fs::symlink_metadata(&path)?.is_file() {
            return Err(TakeError::None("something else is in a file's place"));
        }
        Ok(File::open(path)?)
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, TakeError> {
        let mut content = Vec::new();
        self.file(name)?.take(MAX_DOCUMENT).read_to_end(&mut content)?;
        Ok(content)
    }

    fn name(descriptor: &Value) -> Result<String, TakeError> {
        let digest = descriptor["digest"].as_str();
        let digest = digest.and_then(|digest| Digest::from_str(digest).ok());
        let digest = digest.ok_or(TakeError::None("a part of it has no name"))?;
        Ok(format!("{BLOBS}/{}", digest.hex()))
    }

    fn blob(&self, descriptor: &Value) -> Result<Value, TakeError> {
        Ok(serde_json::from_slice(&self.document(&Self::name(descriptor)?)?)?)
    }

    fn layer(&self, descriptor: &Value, diff_id: &str, to: &Path, times: &Times) -> Result<Layer, TakeError> {
        let file = BufReader::new(self.file(&Self::name(descriptor)?)?);
        let archive = zstd::stream::read::Decoder::with_buffer(file)?.take(image::MAX_LAYER_BYTES);
        let part = to.join("layer");
        let sums = layer::rewrite(archive, BufWriter::new(File::create(&part)?), times)?;
        if sums.read != diff_id {
            return Err(TakeError::Layer {
                expected: diff_id.to_owned(),
                found: sums.read,
            });
        }
        let digest = Digest::from_str(&sums.digest).map_err(io::Error::other)?;
        fs::rename(part, to.join(BLOBS).join(digest.hex()))?;
        Ok(Layer {
            media_type: media_type::OCI_LAYER_GZIP.to_owned(),
            digest: sums.digest,
            size: sums.size,
            diff_id: sums.diff_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_tells_nothing_of_its_hour() {
        let layer = Layer {
            media_type: String::new(),
            digest: String::new(),
            size: 1,
            diff_id: "sha256:1".to_owned(),
        };
        let mut config = json!({
            "created": "2026-11-28T18:06:23.391903476Z",
            "config": {"Cmd": ["x"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]},
            "history": [
                {"created": "1970-01-01T00:00:00Z", "created_by": "base", "comment": "by hand"},
                {"created": "2026-11-28T18:06:23.391903476Z", "created_by": "WORKDIR /app", "comment": "FROM python:3"},
                {"created": "2026-11-28T18:06:23.7Z", "created_by": "RUN x", "comment": "FROM 631f2b4aec05"},
            ],
        });
        settle(&mut config, &[layer], 315_619_200);
        let at = "1980-01-02T00:00:00Z";
        let expected = json!({
            "created": at,
            "config": {"Cmd": ["x"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
            "history": [
                {"created": "1970-01-01T00:00:00Z", "created_by": "base", "comment": "by hand"},
                {"created": at, "created_by": "WORKDIR /app", "comment": "FROM python:3"},
                {"created": at, "created_by": "RUN x"},
            ],
        });
        assert_eq!(config, expected);
        assert_eq!(second("2026-01-01T00:00:00Z"), Some(1_767_225_600));
        assert_eq!(second("2026-01-01T00:00:00.5Z"), Some(1_767_225_601));
        assert_eq!(second("yesterday"), None);
    }

    #[test]
    fn nothing_is_read_through_a_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("out");
        let elsewhere = dir.path().join("elsewhere/sha256");
        fs::create_dir_all(&elsewhere).expect("made");
        fs::create_dir_all(out.join(IMAGE)).expect("made");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), out.join(IMAGE).join("blobs")).expect("made");
        let taken = || {
            let (bases, times) = (Bases::default(), Times::default());
            take(&out, &dir.path().join("to"), &bases, &Layers::new(), &times)
        };
        let said = taken().expect_err("a link").to_string();
        assert!(said.contains("something else"), "{said}");
        fs::remove_file(out.join(IMAGE).join("blobs")).expect("removed");
        fs::create_dir_all(out.join(IMAGE).join(BLOBS)).expect("made");
        fs::write(dir.path().join("secret"), "{}").expect("written");
        std::os::unix::fs::symlink(dir.path().join("secret"), out.join(IMAGE).join("index.json")).expect("made");
        let said = taken().expect_err("a link").to_string();
        assert!(said.contains("in a file's place"), "{said}");
    }
}
