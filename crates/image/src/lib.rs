//! OCI images as content: references, digests, blobs, manifests, and layers that are unpacked once and shared.
//!
//! This crate owns one directory and everything in it. What enters: bytes pushed by a client (through the registry's
//! HTTP face, which lives elsewhere), bytes pulled from other registries, layouts imported from disk. What leaves: a
//! reference turned into a digest ([`Images::resolve`]), and directories ready to be stacked by overlayfs together
//! with the image's configuration ([`Images::ensure`]). It does not know what an instance is, and it never changes
//! an unpacked layer: owners on disk are the owners of the layer's archive, whoever runs on top of it later.
//!
//! Everything is named by the SHA-256 of its content and becomes visible by one rename, after it was verified. Hence
//! a crash leaves nothing but files in `tmp`, which the next [`Images::open`] removes, and uploads, with which their
//! clients may go on.
//!
//! ```text
//! blobs/sha256/<hex>                          manifests, configurations, compressed layers
//! layers/<diff id>/root, implied.json         unpacked layers (mode 0700 above them: they hold setuid files)
//! repositories/<host>/<path>/_manifests/<hex> which manifests a repository holds, with their media type
//! repositories/<host>/<path>/_tags/<tag>      the digest a tag points at
//! repositories/<host>/<path>/_immutable        tags of all repositories from here on stay what they are
//! repositories/<host>/<path>/_referrers/<subject hex>/<hex>  which manifests speak about which
//! repositories/<host>/<path>/_seen/<tag>      what a mirror had for a tag when it was asked last
//! mirrors.json                                which names are had from where
//! uploads/<id>                                what clients have sent so far
//! tmp/                                        pulls and unpacking under way
//! ```

mod blob;
mod collect;
mod digest;
mod disk;
mod flight;
pub mod hello;
mod immutable;
mod layout;
mod manifest;
mod merged;
mod mirror;
mod names;
mod pull;
mod quota;
mod reference;
mod referrer;
mod repository;
mod resolve;
mod unpack;
mod upload;
mod user;
mod version;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Semaphore;

pub use crate::blob::{BlobRead, MAX_BLOB_BYTES};
pub use crate::collect::Collected;
pub use crate::digest::{Digest, DigestError};
pub use crate::layout::{Imported, LayoutError};
pub use crate::manifest::{ImageConfig, ManifestError, Platform, machine_architecture, media_type};
pub use crate::merged::file;
pub use crate::mirror::{Meaning, Mirror};
pub use crate::names::{Names, Prefix};
pub use crate::reference::{Reference, ReferenceError, Repository, Tag, Version};
pub use crate::referrer::{Referrer, subject_of};
pub use crate::repository::{MAX_MANIFEST_BYTES, StoredManifest};
pub use crate::resolve::{ResolveError, ResolvedImage, is_own_host};
pub use crate::unpack::{
    EnsureError, EntryError, MAX_LAYER_BYTES, MAX_LAYER_ENTRIES, MAX_LAYERS, MAX_OWNER, UnpackError, Unpacked,
};
pub use crate::upload::{MAX_UPLOADS, UploadId};
pub use crate::user::{User, UserError, user};
pub use crate::version::StoredVersion;

/// The image store of one data directory. Cheap to clone; all clones share the same uploads and the same flights.
#[derive(Clone, Debug)]
pub struct Images {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: disk::Disk,
    docker_config: Option<PathBuf>,
    uploads: upload::Uploads,
    places: mirror::Places,
    flights: flight::Flights,
    /// How many layers are unpacked at a time, over all images.
    unpacking: Arc<Semaphore>,
    /// How many blobs are pulled at a time, over all images.
    pulling: Arc<Semaphore>,
    layers_unpacked: AtomicU64,
    quota: Arc<quota::Quota>,
    /// Read by whoever says that content is here or gives it a name, and marks it as wanted meanwhile; written by
    /// whoever removes one piece after a last look at that mark.
    kept: RwLock<()>,
    /// One collection at a time.
    collecting: Mutex<()>,
}

impl Shared {
    /// Nothing is removed while this lives. Not to be held over an await, nor twice by one thread.
    fn kept(&self) -> RwLockReadGuard<'_, ()> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many blobs are pulled from other registries at a time.
const PULLS: usize = 4;

impl Images {
    /// Opens the store below `dir`, making it where it does not exist, and sweeps what an earlier process left
    /// unfinished. The caller guards `dir` against a second process.
    ///
    /// Pulls use the credentials of docker's own configuration file (`$DOCKER_CONFIG/config.json`, else
    /// `~/.docker/config.json`), read anew at each pull.
    pub fn open(dir: &Path) -> Result<Images, Error> {
        Images::open_with_docker_config(dir, pull::default_docker_config())
    }

    /// The same with the path of docker's configuration file; `None` pulls anonymously.
    pub fn open_with_docker_config(dir: &Path, docker_config: Option<PathBuf>) -> Result<Images, Error> {
        let unpackers = std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(4);
        let disk = disk::Disk::open(dir)?;
        let quota = Arc::new(quota::Quota::new(disk.stored()?));
        let uploads = upload::Uploads::find(&disk, &quota)?;
        let places = mirror::Places::open(mirror::file(dir))?;
        Ok(Images {
            shared: Arc::new(Shared {
                disk,
                docker_config,
                uploads,
                places,
                flights: flight::Flights::default(),
                unpacking: Arc::new(Semaphore::new(unpackers)),
                pulling: Arc::new(Semaphore::new(PULLS)),
                layers_unpacked: AtomicU64::new(0),
                quota,
                kept: RwLock::new(()),
                collecting: Mutex::new(()),
            }),
        })
    }

    /// Bounds the bytes of all blobs, uploads under way included; `None` is no bound. Unpacked layers do not count.
    /// What is stored already stays, whatever the bound.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.shared.quota.set(bytes);
    }

    /// The bytes of all blobs, uploads under way included.
    pub fn stored_bytes(&self) -> u64 {
        self.shared.quota.used()
    }

    /// How many layers were unpacked since the store was opened.
    pub fn layers_unpacked(&self) -> u64 {
        self.shared.layers_unpacked.load(Ordering::Relaxed)
    }
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("blob {digest} is not stored")]
    BlobUnknown { digest: Digest },
    #[error("repository {repository} holds no manifest {version}")]
    ManifestUnknown { repository: Repository, version: Version },
    #[error("repository {repository} is not stored")]
    RepositoryUnknown { repository: Repository },
    #[error("manifest is not acceptable")]
    Manifest(#[from] ManifestError),
    /// A pushed manifest names content that was not pushed before.
    #[error("manifest names {digest}, which is not stored")]
    ReferenceMissing { digest: Digest },
    #[error("content was to be {expected} but is {actual}")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("upload {upload} is not open")]
    UploadUnknown { upload: UploadId },
    /// A chunk that does not continue where the last one ended. Both are byte offsets.
    #[error("upload {upload} continues at byte {expected}, not at {got}")]
    UploadOffset { upload: UploadId, expected: u64, got: u64 },
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    #[error(
        "the image store holds {used} bytes, and its quota of {quota} bytes has no room for {more} more: delete images \
         and run `homerun images collect`, or raise --registry-quota"
    )]
    Quota { quota: u64, used: u64, more: u64 },
    #[error("blob {digest} is in use: an image or a revision holds it")]
    BlobHeld { digest: Digest },
    #[error("tag {tag} of {repository} cannot be changed or deleted: its repository has immutable tags")]
    TagImmutable { repository: Repository, tag: Tag },
    #[error("cannot draw a random upload id")]
    Random(#[source] getrandom::Error),
}

impl Error {
    /// For `map_err`: names what was being done to which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

/// Runs work that blocks on the disk off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only at the end of the runtime, when nobody is left to read an answer.
            Err(_) => std::future::pending().await,
        },
    }
}
