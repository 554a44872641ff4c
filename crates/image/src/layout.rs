//! Bringing in an OCI image layout, as a directory or as a tar archive of one: what `skopeo copy ... oci:DIR:TAG` and
//! `oci-archive:FILE` write. Names come from the layout's own annotations unless the caller gives one. Every blob is
//! verified on its way in, and nothing of an archive is ever written under a name that the archive chose.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::manifest::{Descriptor, Index, Manifest, ManifestError};
use crate::reference::{Reference, ReferenceError, Tag, Version};
use crate::repository::{Completeness, MAX_MANIFEST_BYTES};
use crate::{Error, Images, blocking};

/// The annotation that containerd and docker write: a whole reference.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The annotation of the OCI specification: a whole reference, or (skopeo) a tag alone.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How deep indexes may name indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// One image that an import brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub reference: Reference,
    pub digest: Digest,
}

/// Why a layout was not imported.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not an OCI image layout: it has no {missing}", path.display())]
    NotALayout { path: PathBuf, missing: &'static str },
    #[error("{} has layout version {version:?}, only 1.0.0 is supported", path.display())]
    Version { path: PathBuf, version: String },
    #[error("{file} of {} is not valid", path.display())]
    Json {
        path: PathBuf,
        file: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} holds no image", path.display())]
    Empty { path: PathBuf },
    #[error("{} holds {count} images, a single name does not fit them", path.display())]
    OneName { path: PathBuf, count: usize },
    #[error("image {digest} of {} has no name of its own ({found:?}): give it one", path.display())]
    NoName {
        path: PathBuf,
        digest: Digest,
        found: String,
    },
    #[error("name {text:?} in {} is not valid", path.display())]
    Name {
        path: PathBuf,
        text: String,
        #[source]
        source: ReferenceError,
    },
    #[error("image {digest} of {} cannot be stored", path.display())]
    Store {
        path: PathBuf,
        digest: Digest,
        #[source]
        source: Box<Error>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

impl Images {
    /// Imports all images of the layout at `path`, a directory or a tar archive (gzip allowed), and answers what they
    /// are called here. `name` is for a layout of one image and beats the layout's own name. Blobs that a manifest
    /// needs for this machine must be in the layout or stored already.
    pub async fn import_layout(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<Imported>, LayoutError> {
        let (images, path, name) = (self.clone(), path.to_owned(), name.cloned());
        blocking(move || {
            let layout = Layout { images, path };
            layout.import(name.as_ref())
        })
        .await
    }
}

struct Layout {
    images: Images,
    path: PathBuf,
}

/// The two files that make a directory a layout.
#[derive(Default)]
struct Heads {
    marker: Option<Vec<u8>>,
    index: Option<Vec<u8>>,
}

impl Layout {
    fn import(&self, name: Option<&Reference>) -> Result<Vec<Imported>, LayoutError> {
        let is_directory = self.path.metadata().map_err(self.read_error())?.is_dir();
        let heads = if is_directory {
            self.heads()?
        } else {
            self.unpack_archive()?
        };
        let missing = |missing| LayoutError::NotALayout {
            path: self.path.clone(),
            missing,
        };
        let invalid = |file| {
            move |source| LayoutError::Json {
                path: self.path.clone(),
                file,
                source,
            }
        };
        let marker = heads.marker.ok_or_else(|| missing("oci-layout"))?;
        let marker: Marker = serde_json::from_slice(&marker).map_err(invalid("oci-layout"))?;
        if marker.image_layout_version != "1.0.0" {
            return Err(LayoutError::Version {
                path: self.path.clone(),
                version: marker.image_layout_version,
            });
        }
        let index = heads.index.ok_or_else(|| missing("index.json"))?;
        let index: Index = serde_json::from_slice(&index).map_err(invalid("index.json"))?;
        if index.manifests.is_empty() {
            return Err(LayoutError::Empty {
                path: self.path.clone(),
            });
        }
        if name.is_some() && index.manifests.len() > 1 {
            return Err(LayoutError::OneName {
                path: self.path.clone(),
                count: index.manifests.len(),
            });
        }
        // All names first: an import that fails for one leaves no other behind.
        let named = index
            .manifests
            .iter()
            .map(|descriptor| Ok((descriptor, name.cloned().map_or_else(|| self.name(descriptor), Ok)?)))
            .collect::<Result<Vec<_>, LayoutError>>()?;
        let mut imported = Vec::with_capacity(named.len());
        for (descriptor, reference) in named {
            let digest = descriptor.digest;
            let store = |source: Error| LayoutError::Store {
                path: self.path.clone(),
                digest,
                source: Box::new(source),
            };
            let source = is_directory.then_some(self.path.as_path());
            let named = reference.tag().cloned().unwrap_or_else(Tag::latest);
            self.images
                .check_tag(reference.repository(), &named, &digest)
                .map_err(&store)?;
            let content = self
                .bring(descriptor, &reference, source, MAX_INDEX_DEPTH)
                .map_err(store)?;
            let tag = named;
            if reference.digest().is_some_and(|expected| expected != digest) {
                let expected = reference.digest().unwrap_or(digest);
                return Err(store(Error::DigestMismatch {
                    expected,
                    actual: digest,
                }));
            }
            debug_assert_eq!(Digest::of(&content), digest);
            self.images
                .set_tag(reference.repository(), &tag, &digest)
                .map_err(store)?;
            imported.push(Imported {
                reference: Reference::tagged(reference.repository().clone(), tag),
                digest,
            });
        }
        Ok(imported)
    }

    fn read_error(&self) -> impl Fn(io::Error) -> LayoutError {
        |source| LayoutError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn name(&self, descriptor: &Descriptor) -> Result<Reference, LayoutError> {
        let found = descriptor.annotations.get(CONTAINERD_NAME).or_else(|| {
            let name = descriptor.annotations.get(REF_NAME);
            // A tag alone names no repository.
            name.filter(|name| name.contains(['/', ':']))
        });
        let Some(text) = found else {
            let found = descriptor.annotations.get(REF_NAME).cloned().unwrap_or_default();
            return Err(LayoutError::NoName {
                path: self.path.clone(),
                digest: descriptor.digest,
                found,
            });
        };
        text.parse().map_err(|source| LayoutError::Name {
            path: self.path.clone(),
            text: text.clone(),
            source,
        })
    }

    fn heads(&self) -> Result<Heads, LayoutError> {
        let read = |name: &str| match File::open(self.path.join(name)) {
            Ok(file) => read_head(file).map(Some).map_err(self.read_error()),
            Err(error) if crate::disk::is_absent(&error) => Ok(None),
            Err(error) => Err(self.read_error()(error)),
        };
        Ok(Heads {
            marker: read("oci-layout")?,
            index: read("index.json")?,
        })
    }

    /// Takes all blobs of an archive into the store and keeps its two heads.
    fn unpack_archive(&self) -> Result<Heads, LayoutError> {
        let file = File::open(&self.path).map_err(self.read_error())?;
        let mut reader = io::BufReader::with_capacity(256 << 10, file);
        let gzip = io::BufRead::fill_buf(&mut reader)
            .map_err(self.read_error())?
            .starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read> = if gzip {
            Box::new(flate2::bufread::MultiGzDecoder::new(reader))
        } else {
            Box::new(reader)
        };
        let mut heads = Heads::default();
        let mut archive = tar::Archive::new(reader);
        for entry in archive.entries().map_err(self.read_error())? {
            let mut entry = entry.map_err(self.read_error())?;
            if entry.header().entry_type() != tar::EntryType::Regular {
                continue;
            }
            let path = entry.path_bytes().into_owned();
            let path = path.strip_prefix(b"./").unwrap_or(&path);
            match path {
                b"oci-layout" => {
                    heads.marker = Some(read_head(&mut entry).map_err(self.read_error())?);
                }
                b"index.json" => {
                    heads.index = Some(read_head(&mut entry).map_err(self.read_error())?);
                }
                path => {
                    let hex = path
                        .strip_prefix(b"blobs/sha256/")
                        .and_then(|hex| std::str::from_utf8(hex).ok());
                    let Some(digest) = hex.and_then(Digest::from_hex) else {
                        continue;
                    };
                    let store = |source: Error| LayoutError::Store {
                        path: self.path.clone(),
                        digest,
                        source: Box::new(source),
                    };
                    if self.images.claim_blob(&digest).map_err(store)?.is_none() {
                        self.images.copy_blob(digest, &mut entry, &self.path).map_err(store)?;
                    }
                }
            }
        }
        Ok(heads)
    }

    /// Brings a manifest and what it names; of an index whatever is there, but at least what this machine runs.
    fn bring(
        &self,
        descriptor: &Descriptor,
        reference: &Reference,
        source: Option<&Path>,
        depth: usize,
    ) -> Result<Vec<u8>, Error> {
        self.blob(&descriptor.digest, source)?;
        let content = self
            .images
            .small_blob(&descriptor.digest, "manifest", MAX_MANIFEST_BYTES)?;
        let (manifest, _) = Manifest::read(&content, None)?;
        match manifest {
            Manifest::Image(image) => {
                for blob in std::iter::once(&image.config).chain(&image.layers) {
                    self.blob(&blob.digest, source)?;
                }
            }
            Manifest::Index(index) => {
                let Some(depth) = depth.checked_sub(1) else {
                    return Err(ManifestError::IndexDepth {
                        digest: descriptor.digest,
                    }
                    .into());
                };
                let chosen = index.choose()?.digest;
                for child in &index.manifests {
                    match self.bring(child, reference, source, depth) {
                        Err(Error::BlobUnknown { .. } | Error::Manifest(_)) if child.digest != chosen => {}
                        other => drop(other?),
                    }
                }
            }
        }
        let version = Version::Digest(descriptor.digest);
        self.images.link_manifest(
            reference.repository(),
            &version,
            None,
            &content,
            Completeness::OneOfIndex,
        )?;
        Ok(content)
    }

    /// Makes sure that a blob is stored. An archive's blobs are already.
    fn blob(&self, digest: &Digest, source: Option<&Path>) -> Result<(), Error> {
        if self.images.claim_blob(digest)?.is_some() {
            return Ok(());
        }
        let unknown = Error::BlobUnknown { digest: *digest };
        let Some(source) = source else {
            return Err(unknown);
        };
        let path = source.join("blobs/sha256").join(digest.hex());
        match File::open(&path) {
            Ok(mut file) => self.images.copy_blob(*digest, &mut file, &path),
            Err(error) if crate::disk::is_absent(&error) => Err(unknown),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }
}

/// Reads a whole file that must be small.
fn read_head(file: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(content)
}
