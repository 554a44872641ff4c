//! The permissions that a method can ask for, by Google's names: `SERVICE.RESOURCE.VERB`.

use std::fmt;

/// A permission that this Homerun knows. Made from text by [`Permission::known`] alone, so that a name with a slip in
/// it cannot be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permission(&'static str);

macro_rules! permissions {
    ($($name:ident = $text:literal,)*) => {
        impl Permission {
            $(pub const $name: Self = Self($text);)*

            /// Every permission, by name.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

permissions! {
    ARTIFACTREGISTRY_DOCKERIMAGES_GET = "artifactregistry.dockerimages.get",
    ARTIFACTREGISTRY_DOCKERIMAGES_LIST = "artifactregistry.dockerimages.list",
    ARTIFACTREGISTRY_FILES_GET = "artifactregistry.files.get",
    ARTIFACTREGISTRY_FILES_LIST = "artifactregistry.files.list",
    ARTIFACTREGISTRY_LOCATIONS_GET = "artifactregistry.locations.get",
    ARTIFACTREGISTRY_LOCATIONS_LIST = "artifactregistry.locations.list",
    ARTIFACTREGISTRY_PACKAGES_DELETE = "artifactregistry.packages.delete",
    ARTIFACTREGISTRY_PACKAGES_GET = "artifactregistry.packages.get",
    ARTIFACTREGISTRY_PACKAGES_LIST = "artifactregistry.packages.list",
    ARTIFACTREGISTRY_REPOSITORIES_CREATE = "artifactregistry.repositories.create",
    ARTIFACTREGISTRY_REPOSITORIES_DELETE = "artifactregistry.repositories.delete",
    ARTIFACTREGISTRY_REPOSITORIES_DELETE_ARTIFACTS = "artifactregistry.repositories.deleteArtifacts",
    ARTIFACTREGISTRY_REPOSITORIES_DOWNLOAD_ARTIFACTS = "artifactregistry.repositories.downloadArtifacts",
    ARTIFACTREGISTRY_REPOSITORIES_GET = "artifactregistry.repositories.get",
    ARTIFACTREGISTRY_REPOSITORIES_GET_IAM_POLICY = "artifactregistry.repositories.getIamPolicy",
    ARTIFACTREGISTRY_REPOSITORIES_LIST = "artifactregistry.repositories.list",
    ARTIFACTREGISTRY_REPOSITORIES_SET_IAM_POLICY = "artifactregistry.repositories.setIamPolicy",
    ARTIFACTREGISTRY_REPOSITORIES_UPDATE = "artifactregistry.repositories.update",
    ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS = "artifactregistry.repositories.uploadArtifacts",
    ARTIFACTREGISTRY_TAGS_CREATE = "artifactregistry.tags.create",
    ARTIFACTREGISTRY_TAGS_DELETE = "artifactregistry.tags.delete",
    ARTIFACTREGISTRY_TAGS_GET = "artifactregistry.tags.get",
    ARTIFACTREGISTRY_TAGS_LIST = "artifactregistry.tags.list",
    ARTIFACTREGISTRY_TAGS_UPDATE = "artifactregistry.tags.update",
    ARTIFACTREGISTRY_VERSIONS_DELETE = "artifactregistry.versions.delete",
    ARTIFACTREGISTRY_VERSIONS_GET = "artifactregistry.versions.get",
    ARTIFACTREGISTRY_VERSIONS_LIST = "artifactregistry.versions.list",
    CLOUDBUILD_BUILDS_CREATE = "cloudbuild.builds.create",
    CLOUDBUILD_BUILDS_GET = "cloudbuild.builds.get",
    CLOUDBUILD_BUILDS_LIST = "cloudbuild.builds.list",
    CLOUDBUILD_BUILDS_UPDATE = "cloudbuild.builds.update",
    CLOUDBUILD_OPERATIONS_GET = "cloudbuild.operations.get",
    CLOUDBUILD_OPERATIONS_LIST = "cloudbuild.operations.list",
    CLOUDSCHEDULER_JOBS_CREATE = "cloudscheduler.jobs.create",
    CLOUDSCHEDULER_JOBS_DELETE = "cloudscheduler.jobs.delete",
    CLOUDSCHEDULER_JOBS_ENABLE = "cloudscheduler.jobs.enable",
    CLOUDSCHEDULER_JOBS_FULL_VIEW = "cloudscheduler.jobs.fullView",
    CLOUDSCHEDULER_JOBS_GET = "cloudscheduler.jobs.get",
    CLOUDSCHEDULER_JOBS_LIST = "cloudscheduler.jobs.list",
    CLOUDSCHEDULER_JOBS_PAUSE = "cloudscheduler.jobs.pause",
    CLOUDSCHEDULER_JOBS_RUN = "cloudscheduler.jobs.run",
    CLOUDSCHEDULER_JOBS_UPDATE = "cloudscheduler.jobs.update",
    CLOUDSCHEDULER_LOCATIONS_GET = "cloudscheduler.locations.get",
    CLOUDSCHEDULER_LOCATIONS_LIST = "cloudscheduler.locations.list",
    IAM_ROLES_GET = "iam.roles.get",
    IAM_ROLES_LIST = "iam.roles.list",
    IAM_SERVICE_ACCOUNT_KEYS_CREATE = "iam.serviceAccountKeys.create",
    IAM_SERVICE_ACCOUNT_KEYS_DELETE = "iam.serviceAccountKeys.delete",
    IAM_SERVICE_ACCOUNT_KEYS_DISABLE = "iam.serviceAccountKeys.disable",
    IAM_SERVICE_ACCOUNT_KEYS_ENABLE = "iam.serviceAccountKeys.enable",
    IAM_SERVICE_ACCOUNT_KEYS_GET = "iam.serviceAccountKeys.get",
    IAM_SERVICE_ACCOUNT_KEYS_LIST = "iam.serviceAccountKeys.list",
    IAM_SERVICE_ACCOUNTS_ACT_AS = "iam.serviceAccounts.actAs",
    IAM_SERVICE_ACCOUNTS_CREATE = "iam.serviceAccounts.create",
    IAM_SERVICE_ACCOUNTS_DELETE = "iam.serviceAccounts.delete",
    IAM_SERVICE_ACCOUNTS_DISABLE = "iam.serviceAccounts.disable",
    IAM_SERVICE_ACCOUNTS_ENABLE = "iam.serviceAccounts.enable",
    IAM_SERVICE_ACCOUNTS_GET = "iam.serviceAccounts.get",
    IAM_SERVICE_ACCOUNTS_GET_ACCESS_TOKEN = "iam.serviceAccounts.getAccessToken",
    IAM_SERVICE_ACCOUNTS_GET_IAM_POLICY = "iam.serviceAccounts.getIamPolicy",
    IAM_SERVICE_ACCOUNTS_GET_OPEN_ID_TOKEN = "iam.serviceAccounts.getOpenIdToken",
    IAM_SERVICE_ACCOUNTS_IMPLICIT_DELEGATION = "iam.serviceAccounts.implicitDelegation",
    IAM_SERVICE_ACCOUNTS_LIST = "iam.serviceAccounts.list",
    IAM_SERVICE_ACCOUNTS_SET_IAM_POLICY = "iam.serviceAccounts.setIamPolicy",
    IAM_SERVICE_ACCOUNTS_SIGN_BLOB = "iam.serviceAccounts.signBlob",
    IAM_SERVICE_ACCOUNTS_SIGN_JWT = "iam.serviceAccounts.signJwt",
    IAM_SERVICE_ACCOUNTS_UNDELETE = "iam.serviceAccounts.undelete",
    IAM_SERVICE_ACCOUNTS_UPDATE = "iam.serviceAccounts.update",
    LOGGING_LOG_ENTRIES_CREATE = "logging.logEntries.create",
    LOGGING_LOG_ENTRIES_LIST = "logging.logEntries.list",
    LOGGING_LOGS_LIST = "logging.logs.list",
    RESOURCEMANAGER_PROJECTS_GET = "resourcemanager.projects.get",
    RESOURCEMANAGER_PROJECTS_GET_IAM_POLICY = "resourcemanager.projects.getIamPolicy",
    RESOURCEMANAGER_PROJECTS_LIST = "resourcemanager.projects.list",
    RESOURCEMANAGER_PROJECTS_SET_IAM_POLICY = "resourcemanager.projects.setIamPolicy",
    RUN_CONFIGURATIONS_GET = "run.configurations.get",
    RUN_CONFIGURATIONS_LIST = "run.configurations.list",
    RUN_EXECUTIONS_CANCEL = "run.executions.cancel",
    RUN_EXECUTIONS_DELETE = "run.executions.delete",
    RUN_EXECUTIONS_GET = "run.executions.get",
    RUN_EXECUTIONS_LIST = "run.executions.list",
    RUN_JOBS_CREATE = "run.jobs.create",
    RUN_JOBS_DELETE = "run.jobs.delete",
    RUN_JOBS_GET = "run.jobs.get",
    RUN_JOBS_GET_IAM_POLICY = "run.jobs.getIamPolicy",
    RUN_JOBS_LIST = "run.jobs.list",
    RUN_JOBS_RUN = "run.jobs.run",
    RUN_JOBS_RUN_WITH_OVERRIDES = "run.jobs.runWithOverrides",
    RUN_JOBS_SET_IAM_POLICY = "run.jobs.setIamPolicy",
    RUN_JOBS_UPDATE = "run.jobs.update",
    RUN_LOCATIONS_LIST = "run.locations.list",
    RUN_OPERATIONS_DELETE = "run.operations.delete",
    RUN_OPERATIONS_GET = "run.operations.get",
    RUN_OPERATIONS_LIST = "run.operations.list",
    RUN_REVISIONS_DELETE = "run.revisions.delete",
    RUN_REVISIONS_GET = "run.revisions.get",
    RUN_REVISIONS_LIST = "run.revisions.list",
    RUN_ROUTES_GET = "run.routes.get",
    RUN_ROUTES_INVOKE = "run.routes.invoke",
    RUN_ROUTES_LIST = "run.routes.list",
    RUN_SERVICES_CREATE = "run.services.create",
    RUN_SERVICES_DELETE = "run.services.delete",
    RUN_SERVICES_GET = "run.services.get",
    RUN_SERVICES_GET_IAM_POLICY = "run.services.getIamPolicy",
    RUN_SERVICES_LIST = "run.services.list",
    RUN_SERVICES_SET_IAM_POLICY = "run.services.setIamPolicy",
    RUN_SERVICES_UPDATE = "run.services.update",
    RUN_TASKS_GET = "run.tasks.get",
    RUN_TASKS_LIST = "run.tasks.list",
    SECRETMANAGER_LOCATIONS_GET = "secretmanager.locations.get",
    SECRETMANAGER_LOCATIONS_LIST = "secretmanager.locations.list",
    SECRETMANAGER_SECRETS_CREATE = "secretmanager.secrets.create",
    SECRETMANAGER_SECRETS_DELETE = "secretmanager.secrets.delete",
    SECRETMANAGER_SECRETS_GET = "secretmanager.secrets.get",
    SECRETMANAGER_SECRETS_GET_IAM_POLICY = "secretmanager.secrets.getIamPolicy",
    SECRETMANAGER_SECRETS_LIST = "secretmanager.secrets.list",
    SECRETMANAGER_SECRETS_SET_IAM_POLICY = "secretmanager.secrets.setIamPolicy",
    SECRETMANAGER_SECRETS_UPDATE = "secretmanager.secrets.update",
    SECRETMANAGER_VERSIONS_ACCESS = "secretmanager.versions.access",
    SECRETMANAGER_VERSIONS_ADD = "secretmanager.versions.add",
    SECRETMANAGER_VERSIONS_DESTROY = "secretmanager.versions.destroy",
    SECRETMANAGER_VERSIONS_DISABLE = "secretmanager.versions.disable",
    SECRETMANAGER_VERSIONS_ENABLE = "secretmanager.versions.enable",
    SECRETMANAGER_VERSIONS_GET = "secretmanager.versions.get",
    SECRETMANAGER_VERSIONS_LIST = "secretmanager.versions.list",
    SERVICEUSAGE_SERVICES_DISABLE = "serviceusage.services.disable",
    SERVICEUSAGE_SERVICES_ENABLE = "serviceusage.services.enable",
    SERVICEUSAGE_SERVICES_GET = "serviceusage.services.get",
    SERVICEUSAGE_SERVICES_LIST = "serviceusage.services.list",
    SERVICEUSAGE_SERVICES_USE = "serviceusage.services.use",
    STORAGE_BUCKETS_CREATE = "storage.buckets.create",
    STORAGE_BUCKETS_DELETE = "storage.buckets.delete",
    STORAGE_BUCKETS_GET = "storage.buckets.get",
    STORAGE_BUCKETS_GET_IAM_POLICY = "storage.buckets.getIamPolicy",
    STORAGE_BUCKETS_LIST = "storage.buckets.list",
    STORAGE_BUCKETS_SET_IAM_POLICY = "storage.buckets.setIamPolicy",
    STORAGE_BUCKETS_UPDATE = "storage.buckets.update",
    STORAGE_OBJECTS_CREATE = "storage.objects.create",
    STORAGE_OBJECTS_DELETE = "storage.objects.delete",
    STORAGE_OBJECTS_GET = "storage.objects.get",
    STORAGE_OBJECTS_LIST = "storage.objects.list",
    STORAGE_OBJECTS_UPDATE = "storage.objects.update",
    VPCACCESS_CONNECTORS_CREATE = "vpcaccess.connectors.create",
    VPCACCESS_CONNECTORS_DELETE = "vpcaccess.connectors.delete",
    VPCACCESS_CONNECTORS_GET = "vpcaccess.connectors.get",
    VPCACCESS_CONNECTORS_LIST = "vpcaccess.connectors.list",
    VPCACCESS_CONNECTORS_UPDATE = "vpcaccess.connectors.update",
    VPCACCESS_CONNECTORS_USE = "vpcaccess.connectors.use",
    VPCACCESS_LOCATIONS_LIST = "vpcaccess.locations.list",
    VPCACCESS_OPERATIONS_GET = "vpcaccess.operations.get",
    VPCACCESS_OPERATIONS_LIST = "vpcaccess.operations.list",
}

impl Permission {
    /// The permission of this name; None where there is none here.
    pub fn known(text: &str) -> Option<Self> {
        let place = Self::ALL.binary_search_by(|known| known.0.cmp(text)).ok()?;
        Some(Self::ALL[place])
    }

    /// Whether the text has the form of a permission, known or not.
    pub fn is_well_formed(text: &str) -> bool {
        let parts: Vec<&str> = text.split('.').collect();
        let plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        parts.len() == 3 && parts.iter().all(plain)
    }

    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// `run` of `run.services.get`.
    pub fn service(self) -> &'static str {
        self.0.split('.').next().unwrap_or_default()
    }

    /// `get` of `run.services.get`.
    pub fn verb(self) -> &'static str {
        self.0.rsplit('.').next().unwrap_or_default()
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permission_is_found_by_its_name() {
        for permission in Permission::ALL {
            assert_eq!(
                Permission::known(permission.as_str()),
                Some(*permission),
                "sorted by name"
            );
            assert!(Permission::is_well_formed(permission.as_str()), "{permission}");
        }
        for text in ["", "run.services", "run.services.gett", "Run.services.get", "zz.z.z"] {
            assert_eq!(Permission::known(text), None, "{text}");
        }
        for text in [
            "",
            "run",
            "run.services",
            "run..get",
            "run.services.get.more",
            "run.serv ices.get",
        ] {
            assert!(!Permission::is_well_formed(text), "{text}");
        }
        assert_eq!(Permission::RUN_ROUTES_INVOKE.service(), "run");
        assert_eq!(Permission::RUN_ROUTES_INVOKE.verb(), "invoke");
    }
}
