//! From stored layers to directories that overlayfs can stack. Each layer is unpacked once, next to nothing else, into
//! a temporary directory; its uncompressed digest (diff id) is checked, and one rename makes it visible. What a hostile
//! archive may try is answered in [`tree`] (paths), [`entry`] (kinds, owners, attributes) and here (sizes).

mod attributes;
mod entry;
mod tree;

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;

pub use self::entry::EntryError;
pub use crate::manifest::MAX_LAYERS;

pub(crate) use self::attributes::correction;
use self::entry::Layer;
use crate::digest::{Digest, Digester};
use crate::disk::sync_dir;
use crate::flight::Work;
use crate::manifest::{Descriptor, ImageConfig};
use crate::{Error, Images, blocking};

/// Most entries of one layer, directories that are only implied by a path included.
pub const MAX_LAYER_ENTRIES: u64 = 1_000_000;
/// Most bytes of one uncompressed layer: 32 GiB. Holes of sparse files count.
pub const MAX_LAYER_BYTES: u64 = 32 << 30;
/// Highest user or group id in a layer: instances have a range of 65,536 ids.
pub const MAX_OWNER: u64 = 65_535;
/// Most bytes of headers before one entry (long names, extended attributes).
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// An image on disk, ready to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The manifest for this machine.
    pub manifest: Digest,
    /// Directories for overlayfs, lowest first, none twice; empty if the image has no layers. Owners are those of the archives (ids 0 to
    /// [`MAX_OWNER`]); the directories must not be changed.
    pub layers: Vec<PathBuf>,
    pub config: ImageConfig,
}

/// Why an image is not ready to run.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("image {digest} cannot be read")]
    Store {
        digest: Digest,
        #[source]
        source: Error,
    },
    #[error("layer {layer} of image {digest} cannot be unpacked")]
    Layer {
        digest: Digest,
        layer: Digest,
        #[source]
        source: UnpackError,
    },
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("media type {media_type:?} is not a layer")]
    MediaType { media_type: String },
    #[error("archive cannot be read")]
    Read(#[source] io::Error),
    #[error("uncompressed content was to be {expected} but is {actual}")]
    DiffId { expected: Digest, actual: Digest },
    #[error("archive entry {path:?} is refused")]
    Entry {
        path: String,
        #[source]
        source: EntryError,
    },
    #[error("layer has more than {limit} entries")]
    Entries { limit: u64 },
    #[error("layer has more than {limit} bytes uncompressed")]
    Bytes { limit: u64 },
    #[error("layer cannot be stored")]
    Store(#[from] Error),
}

/// The limits of one layer; tests use small ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entries: MAX_LAYER_ENTRIES,
            bytes: MAX_LAYER_BYTES,
        }
    }
}

impl Images {
    /// Makes the image of a stored manifest (or of the entry for this machine of a stored index) ready to be mounted.
    /// Costs a few small reads when its layers are unpacked already.
    pub async fn ensure(&self, digest: &Digest) -> Result<Unpacked, EnsureError> {
        let digest = *digest;
        let store = |source| EnsureError::Store { digest, source };
        let images = self.clone();
        let chosen = blocking(move || images.choose(&digest)).await.map_err(store)?;

        let mut unpacking = JoinSet::new();
        for (layer, diff_id) in chosen.manifest.layers.iter().zip(&chosen.config.diff_ids) {
            let (images, layer, diff_id) = (self.clone(), layer.clone(), *diff_id);
            unpacking.spawn(async move {
                let name = layer.digest;
                let done = images.ensure_layer(layer, diff_id).await;
                done.map_err(|source| EnsureError::Layer {
                    digest,
                    layer: name,
                    source,
                })
            });
        }
        while let Some(done) = unpacking.join_next().await {
            match done {
                Ok(done) => done?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => unreachable!("nobody cancels single layers"),
            }
        }

        let images = self.clone();
        let diff_ids = without_repetition(&chosen.config.diff_ids);
        let layers = blocking(move || images.stack(&diff_ids)).await.map_err(store)?;
        Ok(Unpacked {
            manifest: chosen.digest,
            layers,
            config: chosen.config.config,
        })
    }

    async fn ensure_layer(&self, layer: Descriptor, diff_id: Digest) -> Result<(), UnpackError> {
        let place = self.shared.disk.layer(&diff_id);
        let (images, wanted) = (self.clone(), place.clone());
        if blocking(move || images.claim_layer(&wanted)).await? {
            return Ok(());
        }
        let turn = self.shared.flights.turn(Work::Unpack(diff_id)).await;
        let permit = Arc::clone(&self.shared.unpacking)
            .acquire_owned()
            .await
            .expect("the semaphore lives as long as the store and is never closed");
        let images = self.clone();
        blocking(move || {
            let done = images
                .claim_layer(&place)
                .map_err(UnpackError::Store)
                .and_then(|there| {
                    if there {
                        return Ok(());
                    }
                    images.unpack(&layer, diff_id, &place, Limits::default())
                });
            // Held until here even if the caller is gone: the same layer is never unpacked twice at a time.
            drop((turn, permit));
            done
        })
        .await
    }

    /// Whether a layer is unpacked, and a mark on it that it is wanted now. Blocks on the disk.
    fn claim_layer(&self, place: &Path) -> Result<bool, Error> {
        let _kept = self.shared.kept();
        match fs::File::open(place) {
            Ok(dir) => crate::blob::mark(&dir, place).map(|()| true),
            Err(error) if crate::disk::is_absent(&error) => Ok(false),
            Err(error) => Err(Error::io("open", place)(error)),
        }
    }

    /// Unpacks one stored layer to its place.
    pub(crate) fn unpack(
        &self,
        layer: &Descriptor,
        diff_id: Digest,
        place: &Path,
        limits: Limits,
    ) -> Result<(), UnpackError> {
        let known = layer.media_type.contains(".tar") && !layer.media_type.contains("encrypted");
        if !known {
            return Err(UnpackError::MediaType {
                media_type: layer.media_type.clone(),
            });
        }
        let blob = self.blob(&layer.digest)?;
        let began = std::time::Instant::now();
        let temp = self.shared.disk.temp_dir()?;
        let root = temp.path().join("root");
        fs::create_dir(&root).map_err(Error::io("create", &root))?;

        let mut stream = Stream::open(blob.file, limits.bytes).map_err(UnpackError::Read)?;
        let limit_hit = Rc::clone(&stream.limit_hit);
        let read_error = |error| {
            if limit_hit.get() {
                UnpackError::Bytes { limit: limits.bytes }
            } else {
                UnpackError::Read(error)
            }
        };
        let allowance = Rc::clone(&stream.allowance);
        let mut tree = Layer::new(&root, limits.entries)?;
        let mut archive = tar::Archive::new(&mut stream);
        let mut entries = archive.entries().map_err(UnpackError::Read)?;
        loop {
            allowance.set(Some(MAX_HEADER_BYTES));
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(&read_error)?;
            allowance.set(None);
            if let Err(error) = tree.add(&mut entry) {
                return Err(if limit_hit.get() {
                    UnpackError::Bytes { limit: limits.bytes }
                } else {
                    error
                });
            }
            // What an entry's kind does not need is data all the same.
            io::copy(&mut entry, &mut io::sink()).map_err(&read_error)?;
        }
        allowance.set(None);
        io::copy(&mut stream, &mut io::sink()).map_err(&read_error)?;
        let bytes = stream.total;
        let actual = stream.digester.finish();
        if actual != diff_id {
            return Err(UnpackError::DiffId {
                expected: diff_id,
                actual,
            });
        }
        let (entries, skipped) = (tree.entries(), tree.skipped());
        let implied = tree.finish()?;
        let note = temp.path().join("implied.json");
        let text = serde_json::to_vec(&implied).expect("a list of strings is always JSON");
        fs::write(&note, text).map_err(Error::io("write", &note))?;
        // All files of the layer must be on disk before its name is.
        let synced = fs::File::open(&root).and_then(|root| Ok(rustix::fs::syncfs(root)?));
        synced.map_err(Error::io("sync", &root))?;
        fs::rename(temp.path(), place).map_err(Error::io("publish", place))?;
        let _ = temp.keep();
        self.shared.layers_unpacked.fetch_add(1, Ordering::Relaxed);
        sync_dir(&self.shared.disk.layers())?;
        tracing::info!(layer = %layer.digest, entries, skipped, bytes, took = ?began.elapsed(), "unpacked");
        Ok(())
    }
}

/// Overlayfs takes no directory twice. Of a layer that occurs again the uppermost place decides: all it adds and removes
/// it adds and removes there.
pub(crate) fn without_repetition(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut kept = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids.iter().rev() {
        if !kept.contains(diff_id) {
            kept.push(*diff_id);
        }
    }
    kept.reverse();
    kept
}

/// The uncompressed archive: counted, hashed, and held to its limits as it is read.
struct Stream {
    from: Box<dyn Read>,
    digester: Digester,
    total: u64,
    limit: u64,
    /// Whether the limit of the whole was what ended the reading.
    limit_hit: Rc<Cell<bool>>,
    /// How many bytes may be read before the next entry begins; no limit inside an entry.
    allowance: Rc<Cell<Option<u64>>>,
}

impl Stream {
    /// The compression is told by the first bytes: tools do write media types that are wrong about it.
    fn open(mut file: fs::File, limit: u64) -> io::Result<Stream> {
        use std::io::Seek;
        let mut magic = Vec::with_capacity(4);
        file.by_ref().take(4).read_to_end(&mut magic)?;
        file.rewind()?;
        let file = io::BufReader::with_capacity(256 << 10, file);
        let from: Box<dyn Read> = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
            _ => Box::new(file),
        };
        Ok(Stream {
            from,
            digester: Digester::default(),
            total: 0,
            limit,
            limit_hit: Rc::default(),
            allowance: Rc::default(),
        })
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.digester.update(&buffer[..length]);
        self.total += length as u64;
        if self.total > self.limit {
            self.limit_hit.set(true);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let Some(left) = self.allowance.get() {
            let Some(left) = left.checked_sub(length as u64) else {
                let text = format!("more than {MAX_HEADER_BYTES} bytes of headers before one entry");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            };
            self.allowance.set(Some(left));
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(archive: &[u8], limits: Limits) -> Result<(), UnpackError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let images = Images::open_with_docker_config(dir.path(), None).expect("opened");
        let digest = images.put_small_blob(archive).expect("stored");
        let layer = Descriptor {
            media_type: crate::media_type::OCI_LAYER.to_owned(),
            digest,
            size: archive.len() as u64,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let place = images.shared.disk.layer(&digest);
        let done = images.unpack(&layer, digest, &place, limits);
        assert_eq!(place.exists(), done.is_ok());
        assert_eq!(fs::read_dir(images.shared.disk.tmp()).expect("tmp").count(), 0);
        done
    }

    fn archive(paths: &[&str], size: usize) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for path in paths {
            let mut header = tar::Header::new_ustar();
            header.set_size(size as u64);
            header.set_mode(0o644);
            archive
                .append_data(&mut header, path, vec![b'x'; size].as_slice())
                .expect("memory");
        }
        archive.into_inner().expect("memory")
    }

    /// A header and a block of data each, and the end.
    #[test]
    fn a_layer_has_so_many_bytes() {
        let content = archive(&["a", "b"], 400);
        let bytes = content.len() as u64;
        unpack(&content, Limits { entries: 10, bytes }).expect("just fits");
        for bytes in [bytes - 1, 1024, 700, 1] {
            let refused = unpack(&content, Limits { entries: 10, bytes }).expect_err("too many");
            assert!(
                matches!(refused, UnpackError::Bytes { limit } if limit == bytes),
                "{refused:?}"
            );
        }
    }

    /// The root and directories that are implied count too.
    #[test]
    fn a_layer_has_so_many_entries() {
        let content = archive(&["a", "b/c/d", "e"], 1);
        unpack(
            &content,
            Limits {
                entries: 6,
                bytes: 1 << 20,
            },
        )
        .expect("just fits");
        let refused = unpack(
            &content,
            Limits {
                entries: 5,
                bytes: 1 << 20,
            },
        )
        .expect_err("too many");
        assert!(matches!(refused, UnpackError::Entries { limit: 5 }), "{refused:?}");
    }

    #[test]
    fn what_is_no_layer_is_refused_by_its_type() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let images = Images::open_with_docker_config(dir.path(), None).expect("opened");
        let digest = images.put_small_blob(b"x").expect("stored");
        for media_type in [
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        ] {
            let layer = Descriptor {
                media_type: media_type.to_owned(),
                digest,
                size: 1,
                platform: None,
                annotations: std::collections::BTreeMap::new(),
            };
            let place = images.shared.disk.layer(&digest);
            let refused = images
                .unpack(&layer, digest, &place, Limits::default())
                .expect_err("no layer");
            assert!(refused.to_string().contains(media_type), "{refused}");
        }
    }
}
