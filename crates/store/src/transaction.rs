//! One piece of work: it sees everything with its own writes, and either all of them are kept or none.

use std::sync::Arc;

use model::{
    ArtifactRepository, Bucket, BucketName, Build, BuildId, RepositoryKey, Revision, RevisionKey, Service, ServiceKey,
};

use crate::{Snapshot, snapshot::revisions_under};

/// A write, to be repeated in `SQLite` once the work said yes.
#[derive(Debug)]
pub(crate) enum Change {
    PutService(Arc<Service>),
    DeleteService(ServiceKey),
    PutRevision(Arc<Revision>),
    DeleteRevision(RevisionKey),
    PutRepository(Arc<ArtifactRepository>),
    DeleteRepository(RepositoryKey),
    PutBucket(Arc<Bucket>),
    DeleteBucket(BucketName),
    PutBuild(Arc<Build>),
    DeleteBuild(BuildId),
}

/// Handed to the work by [`crate::Store::transact`]. Nothing else is written meanwhile, so what the work reads here
/// still holds when it is committed.
#[derive(Debug)]
pub struct Transaction {
    /// Shared with `before` until the first write.
    now: Arc<Snapshot>,
    before: Arc<Snapshot>,
    changes: Vec<Change>,
}

impl Transaction {
    pub(crate) fn new(now: Arc<Snapshot>) -> Self {
        Self {
            before: now.clone(),
            now,
            changes: Vec::new(),
        }
    }

    /// What is there, with the writes of this transaction. Its `version` is still the one before.
    pub fn snapshot(&self) -> &Snapshot {
        &self.now
    }

    /// The version that this commit will have.
    pub fn version(&self) -> u64 {
        self.before.version + 1
    }

    /// Writes the service whole, with this commit's version as its `resource_version`.
    pub fn put_service(&mut self, mut service: Service) {
        service.resource_version = self.version();
        let service = Arc::new(service);
        self.writable().services.insert(service.key.clone(), service.clone());
        self.changes.push(Change::PutService(service));
    }

    /// Removes the service and all revisions under its key. One that is not there: no change.
    pub fn delete_service(&mut self, key: &ServiceKey) {
        let gone: Vec<RevisionKey> = revisions_under(&self.now.revisions, key)
            .map(|(key, _)| key.clone())
            .collect();
        for revision in &gone {
            self.delete_revision(revision);
        }
        if self.now.services.contains_key(key) {
            self.writable().services.remove(key);
            self.changes.push(Change::DeleteService(key.clone()));
        }
    }

    /// Writes the revision whole. That its service is (still) there, with the same uid, is for the caller to look up
    /// in [`Self::snapshot`] first.
    pub fn put_revision(&mut self, revision: Revision) {
        let revision = Arc::new(revision);
        self.writable().revisions.insert(revision.key.clone(), revision.clone());
        self.changes.push(Change::PutRevision(revision));
    }

    /// Removes the revision. One that is not there: no change.
    pub fn delete_revision(&mut self, key: &RevisionKey) {
        if self.now.revisions.contains_key(key) {
            self.writable().revisions.remove(key);
            self.changes.push(Change::DeleteRevision(key.clone()));
        }
    }

    /// Writes the repository whole.
    pub fn put_repository(&mut self, repository: ArtifactRepository) {
        let repository = Arc::new(repository);
        self.writable()
            .repositories
            .insert(repository.key.clone(), repository.clone());
        self.changes.push(Change::PutRepository(repository));
    }

    /// Removes the repository. One that is not there: no change.
    pub fn delete_repository(&mut self, key: &RepositoryKey) {
        if self.now.repositories.contains_key(key) {
            self.writable().repositories.remove(key);
            self.changes.push(Change::DeleteRepository(key.clone()));
        }
    }

    /// Writes the bucket whole.
    pub fn put_bucket(&mut self, bucket: Bucket) {
        let bucket = Arc::new(bucket);
        self.writable().buckets.insert(bucket.name.clone(), bucket.clone());
        self.changes.push(Change::PutBucket(bucket));
    }

    /// Removes the bucket. One that is not there: no change.
    pub fn delete_bucket(&mut self, name: &BucketName) {
        if self.now.buckets.contains_key(name) {
            self.writable().buckets.remove(name);
            self.changes.push(Change::DeleteBucket(name.clone()));
        }
    }

    /// Writes the build whole.
    pub fn put_build(&mut self, build: Build) {
        let build = Arc::new(build);
        self.writable().builds.insert(build.id.clone(), build.clone());
        self.changes.push(Change::PutBuild(build));
    }

    /// Removes the build. One that is not there: no change.
    pub fn delete_build(&mut self, id: &BuildId) {
        if self.now.builds.contains_key(id) {
            self.writable().builds.remove(id);
            self.changes.push(Change::DeleteBuild(id.clone()));
        }
    }

    /// What the commit leads to, and how.
    pub(crate) fn finish(mut self) -> (Arc<Snapshot>, Vec<Change>) {
        if !self.changes.is_empty() {
            let version = self.version();
            self.writable().version = version;
        }
        (self.now, self.changes)
    }

    fn writable(&mut self) -> &mut Snapshot {
        Arc::make_mut(&mut self.now)
    }
}
