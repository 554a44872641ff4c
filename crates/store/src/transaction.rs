//! One piece of work: it sees everything with its own writes, and either all of them are kept or none.

use std::sync::Arc;

use model::{
    ArtifactRepository, Bucket, BucketName, Build, BuildId, Group, Policy, RepositoryKey, Resource, ResourcePolicy,
    Revision, RevisionKey, RevokedToken, Secret, SecretName, SecretVersion, SecretVersionKey, Service, ServiceAccount,
    ServiceKey, Timestamp,
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
    PutPolicy(Arc<ResourcePolicy>),
    DeletePolicy(Resource),
    PutAccount(Arc<ServiceAccount>),
    DeleteAccount(String),
    PutGroup(Arc<Group>),
    DeleteGroup(String),
    PutRevoked(Arc<RevokedToken>),
    DeleteRevoked(String),
    PutSecret(Arc<Secret>),
    DeleteSecret(SecretName),
    PutSecretVersion(Arc<SecretVersion>),
    DeleteSecretVersion(SecretVersionKey),
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
            self.delete_policy(&Resource::Repository(key.clone()));
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

    /// Writes the resource's policy whole. That the resource is there is for the caller to look up first.
    pub fn put_policy(&mut self, resource: Resource, policy: Policy) {
        if let Resource::Service(key) = &resource {
            if let Some(service) = self.now.service(key) {
                let mut service = service.clone();
                service.policy = policy;
                self.put_service(service);
            }
            return;
        }
        let held = ResourcePolicy { resource, policy };
        let policy = Arc::new(held.policy.clone());
        self.writable().policies.insert(held.resource.clone(), policy);
        self.changes.push(Change::PutPolicy(Arc::new(held)));
    }

    fn delete_policy(&mut self, of: &Resource) {
        if self.now.policies.contains_key(of) {
            self.writable().policies.remove(of);
            self.changes.push(Change::DeletePolicy(of.clone()));
        }
    }

    /// Writes the account whole, with this commit's version as its own.
    pub fn put_account(&mut self, mut account: ServiceAccount) {
        account.version = self.version();
        let account = Arc::new(account);
        self.writable().accounts.insert(account.email.clone(), account.clone());
        self.changes.push(Change::PutAccount(account));
    }

    /// Removes the account with its keys and its policy. Every policy that names it names the deleted one from now on,
    /// so that another account of the same e-mail gets nothing of it. One that is not there: no change.
    pub fn delete_account(&mut self, email: &str) {
        let Some(account) = self.now.accounts.get(email).cloned() else {
            return;
        };
        self.writable().accounts.remove(email);
        self.changes.push(Change::DeleteAccount(email.to_owned()));
        self.delete_policy(&Resource::ServiceAccount(email.to_owned()));
        let services = self
            .now
            .services
            .values()
            .map(|service| (Resource::Service(service.key.clone()), &service.policy));
        let others = self
            .now
            .policies
            .iter()
            .map(|(resource, policy)| (resource.clone(), policy.as_ref()));
        let changed: Vec<(Resource, Policy)> = services
            .chain(others)
            .filter_map(|(resource, policy)| Some((resource, policy.without_account(&account)?)))
            .collect();
        for (resource, policy) in changed {
            self.put_policy(resource, policy);
        }
    }

    /// Writes the group whole.
    pub fn put_group(&mut self, group: Group) {
        let group = Arc::new(group);
        let groups = &mut self.writable().groups;
        Arc::make_mut(groups).insert(group.email.clone(), group.clone());
        self.changes.push(Change::PutGroup(group));
    }

    /// Removes the group. One that is not there: no change.
    pub fn delete_group(&mut self, email: &str) {
        if self.now.groups.contains_key(email) {
            Arc::make_mut(&mut self.writable().groups).remove(email);
            self.changes.push(Change::DeleteGroup(email.to_owned()));
        }
    }

    /// Takes an access token back, and forgets those that have ended by themselves.
    pub fn revoke(&mut self, token: RevokedToken, now: Timestamp) {
        let ended: Vec<String> = self
            .now
            .revoked
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            self.writable().revoked.remove(&id);
            self.changes.push(Change::DeleteRevoked(id));
        }
        self.writable().revoked.insert(token.id.clone(), token.until);
        self.changes.push(Change::PutRevoked(Arc::new(token)));
    }

    /// Writes the secret whole.
    pub fn put_secret(&mut self, secret: Secret) {
        let secret = Arc::new(secret);
        self.writable().secrets.insert(secret.name.clone(), secret.clone());
        self.changes.push(Change::PutSecret(secret));
    }

    /// Removes the secret and all its versions. One that is not there: no change.
    pub fn delete_secret(&mut self, name: &SecretName) {
        let gone: Vec<SecretVersionKey> = self.now.versions_of(name).map(|version| version.key.clone()).collect();
        for key in gone {
            self.writable().secret_versions.remove(&key);
            self.changes.push(Change::DeleteSecretVersion(key));
        }
        if self.now.secrets.contains_key(name) {
            self.writable().secrets.remove(name);
            self.changes.push(Change::DeleteSecret(name.clone()));
            self.delete_policy(&Resource::Secret(name.clone()));
        }
    }

    /// Writes the version whole. That its secret is there is for the caller to look up in [`Self::snapshot`] first.
    pub fn put_secret_version(&mut self, version: SecretVersion) {
        let version = Arc::new(version);
        self.writable()
            .secret_versions
            .insert(version.key.clone(), version.clone());
        self.changes.push(Change::PutSecretVersion(version));
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
