//! Everything that was asked for, at one version. Immutable once published; cheap to keep and to pass on.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    ArtifactRepository, Bucket, BucketName, Build, BuildId, RepositoryKey, Revision, RevisionKey, RevisionName,
    Service, ServiceKey,
};

/// `version` grows with every transaction that wrote something, across restarts too; 0 is a store never written to.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub version: u64,
    pub services: BTreeMap<ServiceKey, Arc<Service>>,
    pub revisions: BTreeMap<RevisionKey, Arc<Revision>>,
    pub repositories: BTreeMap<RepositoryKey, Arc<ArtifactRepository>>,
    pub buckets: BTreeMap<BucketName, Arc<Bucket>>,
    pub builds: BTreeMap<BuildId, Arc<Build>>,
}

impl Snapshot {
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key).map(Arc::as_ref)
    }

    pub fn revision(&self, key: &RevisionKey) -> Option<&Revision> {
        self.revisions.get(key).map(Arc::as_ref)
    }

    /// The revisions of this very service (same key and uid: one deleted and made again inherits none), by name.
    pub fn revisions_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Revision> + Clone + 'a {
        revisions_under(&self.revisions, &service.key)
            .map(|(_, revision)| revision.as_ref())
            .filter(move |revision| revision.service_uid == service.uid)
    }
}

/// All revisions under the key, whatever their uid.
pub(crate) fn revisions_under<'a>(
    revisions: &'a BTreeMap<RevisionKey, Arc<Revision>>,
    service: &'a ServiceKey,
) -> impl Iterator<Item = (&'a RevisionKey, &'a Arc<Revision>)> + Clone + 'a {
    let first = RevisionKey {
        service: service.clone(),
        name: RevisionName::parse("a").expect("the least of all names"),
    };
    revisions
        .range(first..)
        .take_while(move |(key, _)| key.service == *service)
}
