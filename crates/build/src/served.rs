//! What base images a build has been given: asked for by the builder, told by the relay.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use image::{Digest, Reference};

/// Shared with the relay of one build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    tags: Vec<(Reference, Digest)>,
    manifests: BTreeSet<Digest>,
    refused: bool,
}

impl Served {
    /// A manifest was answered. What was asked for by its digest cannot become another one.
    pub(crate) fn note(&self, asked: &Reference, digest: Digest) {
        let mut inner = self.lock();
        inner.manifests.insert(digest);
        let tag = (asked.clone(), digest);
        if asked.digest().is_none() && !inner.tags.contains(&tag) {
            inner.tags.push(tag);
        }
    }

    /// One was not: the builder may have gone on with what it has of an earlier build.
    pub(crate) fn note_refusal(&self) {
        self.lock().refused = true;
    }

    /// Manifests and indexes.
    pub(crate) fn manifests(&self) -> BTreeSet<Digest> {
        self.lock().manifests.clone()
    }

    /// What tags have meant in this build. None: it cannot be told of all.
    pub(crate) fn tags(&self) -> Option<Vec<(Reference, Digest)>> {
        let inner = self.lock();
        (!inner.refused).then(|| inner.tags.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
