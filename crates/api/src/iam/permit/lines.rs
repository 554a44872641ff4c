//! The table itself: each method with what it asks for.

use model::Permission as P;

use super::{
    Asks::{self, Named, Nothing, Project},
    Effect, Line, Of,
};

const fn reads(of: Of, verb: &'static str, path: &'static str, name: &'static str, asks: Asks) -> Line {
    Line {
        of,
        verb,
        path,
        name,
        asks,
        effect: Effect::Reads,
    }
}

const fn writes(of: Of, verb: &'static str, path: &'static str, name: &'static str, asks: Asks) -> Line {
    Line {
        of,
        verb,
        path,
        name,
        asks,
        effect: Effect::Writes,
    }
}

/// The first line that fits counts.
#[rustfmt::skip]
pub(super) const LINES: &[Line] = &[
    // Cloud Run
    reads(Of::Run, "GET", "/v1/projects/*/locations", "google.cloud.location.Locations.ListLocations", Project(P::RUN_LOCATIONS_LIST)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/services", "google.cloud.run.v1.Services.ListServices", Project(P::RUN_SERVICES_LIST)),
    writes(Of::Run, "POST", "/apis/serving.knative.dev/v1/namespaces/*/services", "google.cloud.run.v1.Services.CreateService", Project(P::RUN_SERVICES_CREATE)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/services/{service}", "google.cloud.run.v1.Services.GetService", Named(P::RUN_SERVICES_GET)),
    writes(Of::Run, "PUT", "/apis/serving.knative.dev/v1/namespaces/*/services/{service}", "google.cloud.run.v1.Services.ReplaceService", Named(P::RUN_SERVICES_UPDATE)),
    writes(Of::Run, "DELETE", "/apis/serving.knative.dev/v1/namespaces/*/services/{service}", "google.cloud.run.v1.Services.DeleteService", Named(P::RUN_SERVICES_DELETE)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/revisions", "google.cloud.run.v1.Revisions.ListRevisions", Project(P::RUN_REVISIONS_LIST)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/revisions/{revision}", "google.cloud.run.v1.Revisions.GetRevision", Named(P::RUN_REVISIONS_GET)),
    writes(Of::Run, "DELETE", "/apis/serving.knative.dev/v1/namespaces/*/revisions/{revision}", "google.cloud.run.v1.Revisions.DeleteRevision", Named(P::RUN_REVISIONS_DELETE)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/configurations", "google.cloud.run.v1.Configurations.ListConfigurations", Project(P::RUN_CONFIGURATIONS_LIST)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/configurations/{service}", "google.cloud.run.v1.Configurations.GetConfiguration", Named(P::RUN_CONFIGURATIONS_GET)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/routes", "google.cloud.run.v1.Routes.ListRoutes", Project(P::RUN_ROUTES_LIST)),
    reads(Of::Run, "GET", "/apis/serving.knative.dev/v1/namespaces/*/routes/{service}", "google.cloud.run.v1.Routes.GetRoute", Named(P::RUN_ROUTES_GET)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/services", "google.cloud.run.v1.Services.ListServices", Project(P::RUN_SERVICES_LIST)),
    writes(Of::Run, "POST", "/v1/projects/*/locations/{location}/services", "google.cloud.run.v1.Services.CreateService", Project(P::RUN_SERVICES_CREATE)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/services/{service}:getIamPolicy", "google.cloud.run.v1.Services.GetIamPolicy", Named(P::RUN_SERVICES_GET_IAM_POLICY)),
    writes(Of::Run, "POST", "/v1/projects/*/locations/{location}/services/{service}:setIamPolicy", "google.cloud.run.v1.Services.SetIamPolicy", Named(P::RUN_SERVICES_SET_IAM_POLICY)),
    reads(Of::Run, "POST", "/v1/projects/*/locations/{location}/services/{service}:testIamPermissions", "google.cloud.run.v1.Services.TestIamPermissions", Nothing),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/services/{service}", "google.cloud.run.v1.Services.GetService", Named(P::RUN_SERVICES_GET)),
    writes(Of::Run, "PUT", "/v1/projects/*/locations/{location}/services/{service}", "google.cloud.run.v1.Services.ReplaceService", Named(P::RUN_SERVICES_UPDATE)),
    writes(Of::Run, "DELETE", "/v1/projects/*/locations/{location}/services/{service}", "google.cloud.run.v1.Services.DeleteService", Named(P::RUN_SERVICES_DELETE)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/revisions", "google.cloud.run.v1.Revisions.ListRevisions", Project(P::RUN_REVISIONS_LIST)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/revisions/{revision}", "google.cloud.run.v1.Revisions.GetRevision", Named(P::RUN_REVISIONS_GET)),
    writes(Of::Run, "DELETE", "/v1/projects/*/locations/{location}/revisions/{revision}", "google.cloud.run.v1.Revisions.DeleteRevision", Named(P::RUN_REVISIONS_DELETE)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/configurations", "google.cloud.run.v1.Configurations.ListConfigurations", Project(P::RUN_CONFIGURATIONS_LIST)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/configurations/{service}", "google.cloud.run.v1.Configurations.GetConfiguration", Named(P::RUN_CONFIGURATIONS_GET)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/routes", "google.cloud.run.v1.Routes.ListRoutes", Project(P::RUN_ROUTES_LIST)),
    reads(Of::Run, "GET", "/v1/projects/*/locations/{location}/routes/{service}", "google.cloud.run.v1.Routes.GetRoute", Named(P::RUN_ROUTES_GET)),
    writes(Of::Run, "POST", "/v2/projects/*/locations/*/builds:submit", "google.cloud.run.v2.Builds.SubmitBuild", Project(P::CLOUDBUILD_BUILDS_CREATE)),

    // Which services are enabled
    reads(Of::ServiceUsage, "GET", "/v1/projects/*/services", "google.api.serviceusage.v1.ServiceUsage.ListServices", Project(P::SERVICEUSAGE_SERVICES_LIST)),
    reads(Of::ServiceUsage, "GET", "/v1/projects/*/services/*", "google.api.serviceusage.v1.ServiceUsage.GetService", Project(P::SERVICEUSAGE_SERVICES_GET)),
    writes(Of::ServiceUsage, "POST", "/v1/projects/*/services:batchEnable", "google.api.serviceusage.v1.ServiceUsage.BatchEnableServices", Project(P::SERVICEUSAGE_SERVICES_ENABLE)),
    writes(Of::ServiceUsage, "POST", "/v1/projects/*/services/*", "google.api.serviceusage.v1.ServiceUsage.EnableService", Project(P::SERVICEUSAGE_SERVICES_ENABLE)),

    // Artifact Registry
    reads(Of::ArtifactRegistry, "GET", "/*/projects/*/locations", "google.cloud.location.Locations.ListLocations", Project(P::ARTIFACTREGISTRY_LOCATIONS_LIST)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/operations/*", "google.longrunning.Operations.GetOperation", Nothing),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories", "google.devtools.artifactregistry.v1.ArtifactRegistry.ListRepositories", Project(P::ARTIFACTREGISTRY_REPOSITORIES_LIST)),
    writes(Of::ArtifactRegistry, "POST", "/v1/projects/*/locations/{location}/repositories", "google.devtools.artifactregistry.v1.ArtifactRegistry.CreateRepository", Project(P::ARTIFACTREGISTRY_REPOSITORIES_CREATE)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}:getIamPolicy", "google.devtools.artifactregistry.v1.ArtifactRegistry.GetIamPolicy", Named(P::ARTIFACTREGISTRY_REPOSITORIES_GET_IAM_POLICY)),
    writes(Of::ArtifactRegistry, "POST", "/v1/projects/*/locations/{location}/repositories/{repository}:setIamPolicy", "google.devtools.artifactregistry.v1.ArtifactRegistry.SetIamPolicy", Named(P::ARTIFACTREGISTRY_REPOSITORIES_SET_IAM_POLICY)),
    reads(Of::ArtifactRegistry, "POST", "/v1/projects/*/locations/{location}/repositories/{repository}:testIamPermissions", "google.devtools.artifactregistry.v1.ArtifactRegistry.TestIamPermissions", Nothing),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}", "google.devtools.artifactregistry.v1.ArtifactRegistry.GetRepository", Named(P::ARTIFACTREGISTRY_REPOSITORIES_GET)),
    writes(Of::ArtifactRegistry, "PATCH", "/v1/projects/*/locations/{location}/repositories/{repository}", "google.devtools.artifactregistry.v1.ArtifactRegistry.UpdateRepository", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPDATE)),
    writes(Of::ArtifactRegistry, "DELETE", "/v1/projects/*/locations/{location}/repositories/{repository}", "google.devtools.artifactregistry.v1.ArtifactRegistry.DeleteRepository", Named(P::ARTIFACTREGISTRY_REPOSITORIES_DELETE)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/dockerImages", "google.devtools.artifactregistry.v1.ArtifactRegistry.ListDockerImages", Named(P::ARTIFACTREGISTRY_DOCKERIMAGES_LIST)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/dockerImages/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.GetDockerImage", Named(P::ARTIFACTREGISTRY_DOCKERIMAGES_GET)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/packages", "google.devtools.artifactregistry.v1.ArtifactRegistry.ListPackages", Named(P::ARTIFACTREGISTRY_PACKAGES_LIST)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.GetPackage", Named(P::ARTIFACTREGISTRY_PACKAGES_GET)),
    writes(Of::ArtifactRegistry, "DELETE", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.DeletePackage", Named(P::ARTIFACTREGISTRY_PACKAGES_DELETE)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/versions", "google.devtools.artifactregistry.v1.ArtifactRegistry.ListVersions", Named(P::ARTIFACTREGISTRY_VERSIONS_LIST)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/versions/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.GetVersion", Named(P::ARTIFACTREGISTRY_VERSIONS_GET)),
    writes(Of::ArtifactRegistry, "DELETE", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/versions/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.DeleteVersion", Named(P::ARTIFACTREGISTRY_VERSIONS_DELETE)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/tags", "google.devtools.artifactregistry.v1.ArtifactRegistry.ListTags", Named(P::ARTIFACTREGISTRY_TAGS_LIST)),
    writes(Of::ArtifactRegistry, "POST", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/tags", "google.devtools.artifactregistry.v1.ArtifactRegistry.CreateTag", Named(P::ARTIFACTREGISTRY_TAGS_CREATE)),
    reads(Of::ArtifactRegistry, "GET", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/tags/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.GetTag", Named(P::ARTIFACTREGISTRY_TAGS_GET)),
    writes(Of::ArtifactRegistry, "PATCH", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/tags/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.UpdateTag", Named(P::ARTIFACTREGISTRY_TAGS_UPDATE)),
    writes(Of::ArtifactRegistry, "DELETE", "/v1/projects/*/locations/{location}/repositories/{repository}/packages/*/tags/*", "google.devtools.artifactregistry.v1.ArtifactRegistry.DeleteTag", Named(P::ARTIFACTREGISTRY_TAGS_DELETE)),

    // Cloud Build
    reads(Of::CloudBuild, "GET", "/v1/projects/*/locations/*/defaultServiceAccount", "google.devtools.cloudbuild.v1.CloudBuild.GetDefaultServiceAccount", Project(P::CLOUDBUILD_BUILDS_GET)),
    reads(Of::CloudBuild, "GET", "/v1/projects/*/locations/*/operations/*", "google.longrunning.Operations.GetOperation", Project(P::CLOUDBUILD_OPERATIONS_GET)),
    reads(Of::CloudBuild, "GET", "/v1/projects/*/locations/*/builds", "google.devtools.cloudbuild.v1.CloudBuild.ListBuilds", Project(P::CLOUDBUILD_BUILDS_LIST)),
    writes(Of::CloudBuild, "POST", "/v1/projects/*/locations/*/builds", "google.devtools.cloudbuild.v1.CloudBuild.CreateBuild", Project(P::CLOUDBUILD_BUILDS_CREATE)),
    writes(Of::CloudBuild, "POST", "/v1/projects/*/locations/*/builds/*", "google.devtools.cloudbuild.v1.CloudBuild.CancelBuild", Project(P::CLOUDBUILD_BUILDS_UPDATE)),
    reads(Of::CloudBuild, "GET", "/v1/projects/*/locations/*/builds/*", "google.devtools.cloudbuild.v1.CloudBuild.GetBuild", Project(P::CLOUDBUILD_BUILDS_GET)),
    reads(Of::CloudBuild, "GET", "/v1/projects/*/defaultServiceAccount", "google.devtools.cloudbuild.v1.CloudBuild.GetDefaultServiceAccount", Project(P::CLOUDBUILD_BUILDS_GET)),
    reads(Of::CloudBuild, "GET", "/v1/projects/*/operations/*", "google.longrunning.Operations.GetOperation", Project(P::CLOUDBUILD_OPERATIONS_GET)),
    reads(Of::CloudBuild, "GET", "/v1/projects/*/builds", "google.devtools.cloudbuild.v1.CloudBuild.ListBuilds", Project(P::CLOUDBUILD_BUILDS_LIST)),
    writes(Of::CloudBuild, "POST", "/v1/projects/*/builds", "google.devtools.cloudbuild.v1.CloudBuild.CreateBuild", Project(P::CLOUDBUILD_BUILDS_CREATE)),
    writes(Of::CloudBuild, "POST", "/v1/projects/*/builds/*", "google.devtools.cloudbuild.v1.CloudBuild.CancelBuild", Project(P::CLOUDBUILD_BUILDS_UPDATE)),
    reads(Of::CloudBuild, "GET", "/v1/projects/*/builds/*", "google.devtools.cloudbuild.v1.CloudBuild.GetBuild", Project(P::CLOUDBUILD_BUILDS_GET)),

    // Secret Manager
    reads(Of::SecretManager, "GET", "/v1/projects/*/secrets", "google.cloud.secretmanager.v1.SecretManagerService.ListSecrets", Project(P::SECRETMANAGER_SECRETS_LIST)),
    writes(Of::SecretManager, "POST", "/v1/projects/*/secrets", "google.cloud.secretmanager.v1.SecretManagerService.CreateSecret", Project(P::SECRETMANAGER_SECRETS_CREATE)),
    reads(Of::SecretManager, "GET", "/v1/projects/*/secrets/{secret}:getIamPolicy", "google.cloud.secretmanager.v1.SecretManagerService.GetIamPolicy", Named(P::SECRETMANAGER_SECRETS_GET_IAM_POLICY)),
    writes(Of::SecretManager, "POST", "/v1/projects/*/secrets/{secret}:setIamPolicy", "google.cloud.secretmanager.v1.SecretManagerService.SetIamPolicy", Named(P::SECRETMANAGER_SECRETS_SET_IAM_POLICY)),
    reads(Of::SecretManager, "POST", "/v1/projects/*/secrets/{secret}:testIamPermissions", "google.cloud.secretmanager.v1.SecretManagerService.TestIamPermissions", Nothing),
    writes(Of::SecretManager, "POST", "/v1/projects/*/secrets/{secret}:addVersion", "google.cloud.secretmanager.v1.SecretManagerService.AddSecretVersion", Named(P::SECRETMANAGER_VERSIONS_ADD)),
    reads(Of::SecretManager, "GET", "/v1/projects/*/secrets/{secret}", "google.cloud.secretmanager.v1.SecretManagerService.GetSecret", Named(P::SECRETMANAGER_SECRETS_GET)),
    writes(Of::SecretManager, "PATCH", "/v1/projects/*/secrets/{secret}", "google.cloud.secretmanager.v1.SecretManagerService.UpdateSecret", Named(P::SECRETMANAGER_SECRETS_UPDATE)),
    writes(Of::SecretManager, "DELETE", "/v1/projects/*/secrets/{secret}", "google.cloud.secretmanager.v1.SecretManagerService.DeleteSecret", Named(P::SECRETMANAGER_SECRETS_DELETE)),
    reads(Of::SecretManager, "GET", "/v1/projects/*/secrets/{secret}/versions", "google.cloud.secretmanager.v1.SecretManagerService.ListSecretVersions", Named(P::SECRETMANAGER_VERSIONS_LIST)),
    reads(Of::SecretManager, "GET", "/v1/projects/*/secrets/{secret}/versions/*:access", "google.cloud.secretmanager.v1.SecretManagerService.AccessSecretVersion", Named(P::SECRETMANAGER_VERSIONS_ACCESS)),
    reads(Of::SecretManager, "GET", "/v1/projects/*/secrets/{secret}/versions/*", "google.cloud.secretmanager.v1.SecretManagerService.GetSecretVersion", Named(P::SECRETMANAGER_VERSIONS_GET)),
    writes(Of::SecretManager, "POST", "/v1/projects/*/secrets/{secret}/versions/*:enable", "google.cloud.secretmanager.v1.SecretManagerService.EnableSecretVersion", Named(P::SECRETMANAGER_VERSIONS_ENABLE)),
    writes(Of::SecretManager, "POST", "/v1/projects/*/secrets/{secret}/versions/*:disable", "google.cloud.secretmanager.v1.SecretManagerService.DisableSecretVersion", Named(P::SECRETMANAGER_VERSIONS_DISABLE)),
    writes(Of::SecretManager, "POST", "/v1/projects/*/secrets/{secret}/versions/*:destroy", "google.cloud.secretmanager.v1.SecretManagerService.DestroySecretVersion", Named(P::SECRETMANAGER_VERSIONS_DESTROY)),

    // Cloud Storage; logs of builds are objects too
    reads(Of::Storage, "GET", "/storage/v1/b", "storage.buckets.list", Project(P::STORAGE_BUCKETS_LIST)),
    writes(Of::Storage, "POST", "/storage/v1/b", "storage.buckets.create", Project(P::STORAGE_BUCKETS_CREATE)),
    reads(Of::Storage, "GET", "/storage/v1/b/*", "storage.buckets.get", Project(P::STORAGE_BUCKETS_GET)),
    writes(Of::Storage, "DELETE", "/storage/v1/b/*", "storage.buckets.delete", Project(P::STORAGE_BUCKETS_DELETE)),
    reads(Of::Storage, "GET", "/storage/v1/b/*/storageLayout", "storage.buckets.getStorageLayout", Project(P::STORAGE_OBJECTS_LIST)),
    reads(Of::Storage, "GET", "/storage/v1/b/*/o", "storage.objects.list", Project(P::STORAGE_OBJECTS_LIST)),
    writes(Of::Storage, "DELETE", "/**/b/*/o/*", "storage.objects.delete", Project(P::STORAGE_OBJECTS_DELETE)),
    writes(Of::Storage, "POST", "/upload/storage/v1/b/*/o", "storage.objects.create", Project(P::STORAGE_OBJECTS_CREATE)),
    writes(Of::Storage, "PUT", "/upload/storage/v1/b/*/o", "storage.objects.create", Project(P::STORAGE_OBJECTS_CREATE)),
    writes(Of::Storage, "DELETE", "/upload/storage/v1/b/*/o", "storage.objects.create", Project(P::STORAGE_OBJECTS_CREATE)),
    writes(Of::Storage, "POST", "/resumable/upload/storage/v1/b/*/o", "storage.objects.create", Project(P::STORAGE_OBJECTS_CREATE)),
    writes(Of::Storage, "PUT", "/resumable/upload/storage/v1/b/*/o", "storage.objects.create", Project(P::STORAGE_OBJECTS_CREATE)),
    writes(Of::Storage, "DELETE", "/resumable/upload/storage/v1/b/*/o", "storage.objects.create", Project(P::STORAGE_OBJECTS_CREATE)),
    reads(Of::Storage, "GET", "/**", "storage.objects.get", Project(P::STORAGE_OBJECTS_GET)),
    reads(Of::Storage, "HEAD", "/**", "storage.objects.get", Project(P::STORAGE_OBJECTS_GET)),

    // IAM
    reads(Of::Iam, "GET", "/v1/projects/*/serviceAccounts", "google.iam.admin.v1.ListServiceAccounts", Project(P::IAM_SERVICE_ACCOUNTS_LIST)),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts", "google.iam.admin.v1.CreateServiceAccount", Project(P::IAM_SERVICE_ACCOUNTS_CREATE)),
    reads(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}:getIamPolicy", "google.iam.admin.v1.GetIAMPolicy", Named(P::IAM_SERVICE_ACCOUNTS_GET_IAM_POLICY)),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}:setIamPolicy", "google.iam.admin.v1.SetIAMPolicy", Named(P::IAM_SERVICE_ACCOUNTS_SET_IAM_POLICY)),
    reads(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}:testIamPermissions", "google.iam.admin.v1.TestIAMPermissions", Nothing),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}:disable", "google.iam.admin.v1.DisableServiceAccount", Named(P::IAM_SERVICE_ACCOUNTS_DISABLE)),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}:enable", "google.iam.admin.v1.EnableServiceAccount", Named(P::IAM_SERVICE_ACCOUNTS_ENABLE)),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}:undelete", "google.iam.admin.v1.UndeleteServiceAccount", Named(P::IAM_SERVICE_ACCOUNTS_UNDELETE)),
    reads(Of::Iam, "GET", "/v1/projects/*/serviceAccounts/{account}", "google.iam.admin.v1.GetServiceAccount", Named(P::IAM_SERVICE_ACCOUNTS_GET)),
    writes(Of::Iam, "PATCH", "/v1/projects/*/serviceAccounts/{account}", "google.iam.admin.v1.PatchServiceAccount", Named(P::IAM_SERVICE_ACCOUNTS_UPDATE)),
    writes(Of::Iam, "DELETE", "/v1/projects/*/serviceAccounts/{account}", "google.iam.admin.v1.DeleteServiceAccount", Named(P::IAM_SERVICE_ACCOUNTS_DELETE)),
    reads(Of::Iam, "GET", "/v1/projects/*/serviceAccounts/{account}/keys", "google.iam.admin.v1.ListServiceAccountKeys", Named(P::IAM_SERVICE_ACCOUNT_KEYS_LIST)),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}/keys", "google.iam.admin.v1.CreateServiceAccountKey", Named(P::IAM_SERVICE_ACCOUNT_KEYS_CREATE)),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}/keys/*:disable", "google.iam.admin.v1.DisableServiceAccountKey", Named(P::IAM_SERVICE_ACCOUNT_KEYS_DISABLE)),
    writes(Of::Iam, "POST", "/v1/projects/*/serviceAccounts/{account}/keys/*:enable", "google.iam.admin.v1.EnableServiceAccountKey", Named(P::IAM_SERVICE_ACCOUNT_KEYS_ENABLE)),
    reads(Of::Iam, "GET", "/v1/projects/*/serviceAccounts/{account}/keys/*", "google.iam.admin.v1.GetServiceAccountKey", Named(P::IAM_SERVICE_ACCOUNT_KEYS_GET)),
    writes(Of::Iam, "DELETE", "/v1/projects/*/serviceAccounts/{account}/keys/*", "google.iam.admin.v1.DeleteServiceAccountKey", Named(P::IAM_SERVICE_ACCOUNT_KEYS_DELETE)),
    reads(Of::Iam, "GET", "/v1/roles", "google.iam.admin.v1.ListRoles", Nothing),
    reads(Of::Iam, "GET", "/v1/roles/*", "google.iam.admin.v1.GetRole", Nothing),
    reads(Of::Iam, "GET", "/v1/projects/*/roles", "google.iam.admin.v1.ListRoles", Project(P::IAM_ROLES_LIST)),

    // Tokens and signatures in an account's name
    writes(Of::Credentials, "POST", "/v1/projects/*/serviceAccounts/{account}:generateAccessToken", "google.iam.credentials.v1.IAMCredentials.GenerateAccessToken", Named(P::IAM_SERVICE_ACCOUNTS_GET_ACCESS_TOKEN)),
    writes(Of::Credentials, "POST", "/v1/projects/*/serviceAccounts/{account}:generateIdToken", "google.iam.credentials.v1.IAMCredentials.GenerateIdToken", Named(P::IAM_SERVICE_ACCOUNTS_GET_OPEN_ID_TOKEN)),
    writes(Of::Credentials, "POST", "/v1/projects/*/serviceAccounts/{account}:signJwt", "google.iam.credentials.v1.IAMCredentials.SignJwt", Named(P::IAM_SERVICE_ACCOUNTS_SIGN_JWT)),
    writes(Of::Credentials, "POST", "/v1/projects/*/serviceAccounts/{account}:signBlob", "google.iam.credentials.v1.IAMCredentials.SignBlob", Named(P::IAM_SERVICE_ACCOUNTS_SIGN_BLOB)),

    // The project
    reads(Of::Projects, "POST", "/v1/projects/*:getIamPolicy", "google.cloud.resourcemanager.v1.Projects.GetIamPolicy", Project(P::RESOURCEMANAGER_PROJECTS_GET_IAM_POLICY)),
    writes(Of::Projects, "POST", "/v1/projects/*:setIamPolicy", "google.cloud.resourcemanager.v1.Projects.SetIamPolicy", Project(P::RESOURCEMANAGER_PROJECTS_SET_IAM_POLICY)),
    reads(Of::Projects, "POST", "/v1/projects/*:testIamPermissions", "google.cloud.resourcemanager.v1.Projects.TestIamPermissions", Nothing),
    reads(Of::Projects, "POST", "/v3/projects/*:getIamPolicy", "google.cloud.resourcemanager.v3.Projects.GetIamPolicy", Project(P::RESOURCEMANAGER_PROJECTS_GET_IAM_POLICY)),
    writes(Of::Projects, "POST", "/v3/projects/*:setIamPolicy", "google.cloud.resourcemanager.v3.Projects.SetIamPolicy", Project(P::RESOURCEMANAGER_PROJECTS_SET_IAM_POLICY)),
    reads(Of::Projects, "POST", "/v3/projects/*:testIamPermissions", "google.cloud.resourcemanager.v3.Projects.TestIamPermissions", Nothing),
    reads(Of::Projects, "GET", "/v1/projects/*", "google.cloud.resourcemanager.v1.Projects.GetProject", Project(P::RESOURCEMANAGER_PROJECTS_GET)),
    reads(Of::Projects, "GET", "/v3/projects/*", "google.cloud.resourcemanager.v3.Projects.GetProject", Project(P::RESOURCEMANAGER_PROJECTS_GET)),

    // Images by docker and its like; the repository is that of the image's name
    reads(Of::Registry, "GET", "/v2/", "Docker-Ping", Nothing),
    reads(Of::Registry, "GET", "/v2", "Docker-Ping", Nothing),
    reads(Of::Registry, "HEAD", "/v2/", "Docker-Ping", Nothing),
    reads(Of::Registry, "HEAD", "/v2", "Docker-Ping", Nothing),
    writes(Of::Registry, "POST", "/v2/**/blobs/uploads/", "Docker-StartUpload", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS)),
    writes(Of::Registry, "POST", "/v2/**/blobs/uploads", "Docker-StartUpload", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS)),
    reads(Of::Registry, "GET", "/v2/**/blobs/uploads/*", "Docker-UploadStatus", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS)),
    writes(Of::Registry, "PATCH", "/v2/**/blobs/uploads/*", "Docker-UploadChunk", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS)),
    writes(Of::Registry, "PUT", "/v2/**/blobs/uploads/*", "Docker-FinishUpload", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS)),
    writes(Of::Registry, "DELETE", "/v2/**/blobs/uploads/*", "Docker-CancelUpload", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS)),
    writes(Of::Registry, "PUT", "/v2/**/manifests/*", "Docker-PutManifest", Named(P::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS)),
    writes(Of::Registry, "DELETE", "/v2/**/manifests/*", "Docker-DeleteManifest", Named(P::ARTIFACTREGISTRY_REPOSITORIES_DELETE_ARTIFACTS)),
    writes(Of::Registry, "DELETE", "/v2/**/blobs/*", "Docker-DeleteBlob", Named(P::ARTIFACTREGISTRY_REPOSITORIES_DELETE_ARTIFACTS)),
    reads(Of::Registry, "GET", "/v2/**", "Docker-Pull", Named(P::ARTIFACTREGISTRY_REPOSITORIES_DOWNLOAD_ARTIFACTS)),
    reads(Of::Registry, "HEAD", "/v2/**", "Docker-Pull", Named(P::ARTIFACTREGISTRY_REPOSITORIES_DOWNLOAD_ARTIFACTS)),

    // What only a Homerun has
    writes(Of::Homerun, "POST", "/homerun/v1/images:collect", "homerun.Images.Collect", Project(P::ARTIFACTREGISTRY_VERSIONS_DELETE)),
    reads(Of::Homerun, "GET", "/homerun/v1/images:*", "homerun.Images.ListMirrors", Project(P::ARTIFACTREGISTRY_REPOSITORIES_GET)),
    writes(Of::Homerun, "POST", "/homerun/v1/images:*", "homerun.Images.Mirror", Project(P::ARTIFACTREGISTRY_REPOSITORIES_UPDATE)),
    writes(Of::Homerun, "POST", "/homerun/v1/secrets:rotateKey", "homerun.Secrets.RotateKey", Project(P::RESOURCEMANAGER_PROJECTS_SET_IAM_POLICY)),
    reads(Of::Homerun, "GET", "/homerun/v1/groups", "homerun.Groups.List", Project(P::RESOURCEMANAGER_PROJECTS_GET_IAM_POLICY)),
    writes(Of::Homerun, "PUT", "/homerun/v1/groups/*", "homerun.Groups.Put", Project(P::RESOURCEMANAGER_PROJECTS_SET_IAM_POLICY)),
    writes(Of::Homerun, "DELETE", "/homerun/v1/groups/*", "homerun.Groups.Delete", Project(P::RESOURCEMANAGER_PROJECTS_SET_IAM_POLICY)),
    reads(Of::Homerun, "GET", "/homerun/v1/**", "homerun.Decisions.List", Project(P::RUN_SERVICES_GET)),
];
