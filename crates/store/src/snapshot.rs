//! Everything that was asked for, at one version. Immutable once published; cheap to keep and to pass on.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    Access, ArtifactRepository, BindingCondition, Bucket, BucketName, Build, BuildId, Groups, Permission, Policy,
    Principal, RepositoryKey, Resource, Revision, RevisionKey, RevisionName, Secret, SecretName, SecretRef,
    SecretVersion, SecretVersionKey, SecretVersionState, Service, ServiceAccount, ServiceKey, Timestamp, Unavailable,
    VersionRef,
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
    /// Of everything but services, which hold their own: see [`Self::policy`].
    pub policies: BTreeMap<Resource, Arc<Policy>>,
    /// By e-mail.
    pub accounts: BTreeMap<String, Arc<ServiceAccount>>,
    pub groups: Arc<Groups>,
    /// Access tokens that were taken back, by id, with the time at which they end by themselves.
    pub revoked: BTreeMap<String, Timestamp>,
    pub secrets: BTreeMap<SecretName, Arc<Secret>>,
    pub secret_versions: BTreeMap<SecretVersionKey, Arc<SecretVersion>>,
}

impl Snapshot {
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key).map(Arc::as_ref)
    }

    pub fn revision(&self, key: &RevisionKey) -> Option<&Revision> {
        self.revisions.get(key).map(Arc::as_ref)
    }

    pub fn account(&self, email: &str) -> Option<&Arc<ServiceAccount>> {
        self.accounts.get(email)
    }

    /// The resource's own policy; an empty one where none was set, or the resource is not there.
    pub fn policy(&self, of: &Resource) -> Arc<Policy> {
        match of {
            Resource::Service(key) => self
                .service(key)
                .map(|service| Arc::new(service.policy.clone()))
                .unwrap_or_default(),
            Resource::Project | Resource::Repository(_) | Resource::ServiceAccount(_) | Resource::Secret(_) => {
                self.policies.get(of).cloned().unwrap_or_default()
            }
        }
    }

    /// All that decides on who may do what with the resource.
    pub fn access(&self, resource: &Resource) -> Access {
        let mut policies = vec![self.policy(resource)];
        if *resource != Resource::Project {
            policies.push(self.policy(&Resource::Project));
        }
        Access {
            resource: resource.clone(),
            policies,
            groups: self.groups.clone(),
        }
    }

    /// Whether the service account is there, is not off, and has the permission. `holds` says whether a condition does.
    pub fn account_may(
        &self,
        email: &str,
        permission: Permission,
        resource: &Resource,
        holds: &dyn Fn(&BindingCondition, &Resource) -> bool,
    ) -> bool {
        let on = self.account(email).is_some_and(|account| !account.disabled);
        on && self
            .access(resource)
            .allows(Some(&Principal::of(email)), permission, holds)
    }

    /// The secret, unless its time is over at `now`.
    pub fn secret(&self, name: &SecretName, now: Timestamp) -> Option<&Secret> {
        let secret = self.secrets.get(name).map(Arc::as_ref);
        secret.filter(|secret| !secret.is_expired(now))
    }

    /// The version of that name, whatever its state.
    ///
    /// # Errors
    /// There is no such secret, or no such version of it.
    pub fn secret_version(
        &self,
        secret: &SecretName,
        version: &VersionRef,
        now: Timestamp,
    ) -> Result<&SecretVersion, Unavailable> {
        let found = self.secret(secret, now).ok_or(Unavailable::NoSecret)?;
        let number = found.number(version).ok_or(Unavailable::NoVersion)?;
        let key = SecretVersionKey {
            secret: secret.clone(),
            number,
        };
        let found = self.secret_versions.get(&key).map(Arc::as_ref);
        found.ok_or(Unavailable::NoVersion)
    }

    /// The version of that name, if its value is given out to instances that run as the account.
    ///
    /// # Errors
    /// Why it is not.
    pub fn readable_version(
        &self,
        of: &SecretRef,
        account: &str,
        now: Timestamp,
        holds: &dyn Fn(&BindingCondition, &Resource) -> bool,
    ) -> Result<&SecretVersion, Unavailable> {
        self.secret(&of.secret, now).ok_or(Unavailable::NoSecret)?;
        let resource = Resource::Secret(of.secret.clone());
        if !self.account_may(account, Permission::SECRETMANAGER_VERSIONS_ACCESS, &resource, holds) {
            return Err(Unavailable::Denied);
        }
        self.enabled_version(of, now)
    }

    /// The version of that name, if its value is given out.
    ///
    /// # Errors
    /// Why it is not.
    pub fn enabled_version(&self, of: &SecretRef, now: Timestamp) -> Result<&SecretVersion, Unavailable> {
        let found = self.secret_version(&of.secret, &of.version, now)?;
        let number = found.key.number;
        match found.state {
            SecretVersionState::Enabled(_) => Ok(found),
            SecretVersionState::Disabled(_) => Err(Unavailable::Disabled { number }),
            SecretVersionState::Destroyed { .. } => Err(Unavailable::Destroyed { number }),
        }
    }

    /// All versions of a secret, oldest first.
    pub fn versions_of<'a>(
        &'a self,
        secret: &SecretName,
    ) -> impl DoubleEndedIterator<Item = &'a SecretVersion> + use<'a> {
        let key = |number| SecretVersionKey {
            secret: secret.clone(),
            number,
        };
        let range = self.secret_versions.range(key(0)..=key(u64::MAX));
        range.map(|(_, version)| version.as_ref())
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
