//! What a policy is on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ProjectId, RepositoryKey, SecretName, ServiceKey};

/// A resource with a policy of its own. What lies below (revisions of a service, images of a repository) goes by its.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Resource {
    /// The one project. Its policy holds for everything.
    Project,
    Service(ServiceKey),
    Repository(RepositoryKey),
    /// By e-mail.
    ServiceAccount(String),
    /// With its versions.
    Secret(SecretName),
}

impl Resource {
    /// As conditions see it (`resource.name`): `projects/PROJECT/...`.
    pub fn name(&self, project: &ProjectId) -> String {
        match self {
            Self::Project => format!("projects/{project}"),
            Self::Service(key) => format!("projects/{project}/locations/{}/services/{}", key.region, key.name),
            Self::Repository(key) => format!(
                "projects/{project}/locations/{}/repositories/{}",
                key.location, key.name
            ),
            Self::ServiceAccount(email) => format!("projects/{project}/serviceAccounts/{email}"),
            Self::Secret(name) => format!("projects/{project}/secrets/{name}"),
        }
    }

    /// `resource.type` of conditions.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Project => "cloudresourcemanager.googleapis.com/Project",
            Self::Service(_) => "run.googleapis.com/Service",
            Self::Repository(_) => "artifactregistry.googleapis.com/Repository",
            Self::ServiceAccount(_) => "iam.googleapis.com/ServiceAccount",
            Self::Secret(_) => "secretmanager.googleapis.com/Secret",
        }
    }

    /// `resource.service` of conditions.
    pub fn service(&self) -> &'static str {
        self.kind().split('/').next().unwrap_or_default()
    }
}

/// For people and for the store: unique, and without the project.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project => f.write_str("project"),
            Self::Service(key) => write!(f, "locations/{}/services/{}", key.region, key.name),
            Self::Repository(key) => write!(f, "locations/{}/repositories/{}", key.location, key.name),
            Self::ServiceAccount(email) => write!(f, "serviceAccounts/{email}"),
            Self::Secret(name) => write!(f, "secrets/{name}"),
        }
    }
}
