//! What each method asks for: one table for every API and the registry.
//!
//! A request that has no line here is not served: nothing is reached without a permission by being forgotten. The table
//! sees a path as it is split at its slashes, each part decoded by itself, so that an encoded slash cannot make it see
//! another method than the one that answers.

mod lines;

use std::borrow::Cow;

use http::Method;
use model::{Permission, Region, RepositoryKey, RepositoryName, Resource, SecretName, ServiceKey, ServiceName};
use percent_encoding::percent_decode_str;
use store::Snapshot;

use self::lines::LINES;

/// Whose methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Run,
    ServiceUsage,
    ArtifactRegistry,
    CloudBuild,
    SecretManager,
    Storage,
    Iam,
    Credentials,
    Projects,
    Registry,
    /// What only a Homerun has, on the API port.
    Homerun,
}

/// What has to be held, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Whoever is known may.
    Nothing,
    Project(Permission),
    /// On the resource that the path names, or on the project where it names one that cannot be.
    Named(Permission),
}

/// Whether it changes something, and is therefore written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    Writes,
}

struct Line {
    of: Of,
    verb: &'static str,
    /// `*` is one part of the path, `**` any number of them; `{location}`, `{service}`, `{revision}`,
    /// `{repository}`, `{secret}` and `{account}` name the resource. A verb after a colon belongs to the part.
    path: &'static str,
    /// By Google's name of it, as audit logs have it.
    name: &'static str,
    asks: Asks,
    effect: Effect,
}

/// A method that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// By Google's name of it.
    pub(crate) method: &'static str,
    /// None: whoever is known may.
    pub(crate) permission: Option<Permission>,
    pub(crate) resource: Resource,
    pub(crate) writes: bool,
}

/// What the request asks for; None: no method here. `region` is that of the host, for paths that name none.
pub(crate) fn find(of: Of, method: &Method, path: &str, region: &Region, state: &Snapshot) -> Option<Asked> {
    let parts: Vec<Cow<'_, str>> = path
        .strip_prefix('/')?
        .split('/')
        .map(|part| percent_decode_str(part).decode_utf8().ok())
        .collect::<Option<_>>()?;
    // Some of those who answer pass over them, and would see another method.
    if parts.iter().rev().skip(1).any(|part| part.is_empty()) {
        return None;
    }
    // Packages and objects have slashes in their names; nothing else has, and what answers there may split anew.
    let slashes = matches!(of, Of::ArtifactRegistry | Of::Storage);
    if !slashes && parts.iter().any(|part| part.contains('/')) {
        return None;
    }
    let (line, names) = LINES
        .iter()
        .filter(|line| line.of == of && line.verb == method.as_str())
        .find_map(|line| {
            let pattern: Vec<&str> = line.path.strip_prefix('/')?.split('/').collect();
            let mut names = Names::default();
            fits(&pattern, &parts, &mut names).then_some((line, names))
        })?;
    let (permission, resource) = match line.asks {
        Asks::Nothing => (None, names.resource(region, state).unwrap_or(Resource::Project)),
        Asks::Project(permission) => (Some(permission), Resource::Project),
        Asks::Named(permission) => (
            Some(permission),
            names.resource(region, state).unwrap_or(Resource::Project),
        ),
    };
    Some(Asked {
        method: line.name,
        permission,
        resource,
        writes: line.effect == Effect::Writes,
    })
}

/// What a path names.
#[derive(Debug, Default)]
struct Names<'p> {
    location: Option<&'p str>,
    service: Option<&'p str>,
    revision: Option<&'p str>,
    repository: Option<&'p str>,
    account: Option<&'p str>,
    secret: Option<&'p str>,
}

impl Names<'_> {
    fn resource(&self, region: &Region, state: &Snapshot) -> Option<Resource> {
        let location = || match self.location {
            None => Some(region.clone()),
            Some(text) => Region::parse(text).ok(),
        };
        if let Some(name) = self.service {
            return Some(Resource::Service(ServiceKey {
                region: location()?,
                name: ServiceName::parse(name).ok()?,
            }));
        }
        if let Some(name) = self.revision {
            // Its service's policy is its own.
            let region = location()?;
            let of = state
                .revisions
                .keys()
                .find(|key| key.name.as_str() == name && key.service.region == region)?;
            return Some(Resource::Service(of.service.clone()));
        }
        if let Some(name) = self.repository {
            return Some(Resource::Repository(RepositoryKey {
                location: location()?,
                name: RepositoryName::parse(name).ok()?,
            }));
        }
        if let Some(name) = self.secret {
            return Some(Resource::Secret(SecretName::parse(name).ok()?));
        }
        let name = self.account?;
        Some(Resource::ServiceAccount(email_of(name, state).to_owned()))
    }
}

/// The e-mail of an account that is named by it or by its unique id.
pub(crate) fn email_of<'n>(name: &'n str, state: &'n Snapshot) -> &'n str {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_digit()) {
        return name;
    }
    let found = state.accounts.values().find(|account| account.unique_id == name);
    found.map_or(name, |account| account.email.as_str())
}

fn fits<'p>(pattern: &[&'static str], parts: &'p [Cow<'_, str>], names: &mut Names<'p>) -> bool {
    let Some((first, pattern)) = pattern.split_first() else {
        return parts.is_empty();
    };
    if *first == "**" {
        return (0..=parts.len()).any(|many| fits(pattern, &parts[many..], names));
    }
    let Some((part, parts)) = parts.split_first() else {
        return false;
    };
    part_fits(first, part, names) && fits(pattern, parts, names)
}

fn part_fits<'p>(pattern: &'static str, part: &'p str, names: &mut Names<'p>) -> bool {
    // `{service}:verb` and `*:verb`: the verb is what follows the last colon
    let (of, part) = match pattern.split_once(':') {
        Some((of, verb)) if of == "*" || of.starts_with('{') => match part.rsplit_once(':') {
            Some((part, given)) if given == verb => (of, part),
            _ => return false,
        },
        // `images:*`
        Some((of, "*")) => {
            return part
                .split_once(':')
                .is_some_and(|(part, rest)| part == of && !rest.is_empty());
        }
        Some(_) | None => (pattern, part),
    };
    if of == "*" {
        return !part.is_empty();
    }
    let place = match of {
        "{location}" => &mut names.location,
        "{service}" => &mut names.service,
        "{revision}" => &mut names.revision,
        "{repository}" => &mut names.repository,
        "{account}" => &mut names.account,
        "{secret}" => &mut names.secret,
        literal => return literal == part,
    };
    *place = Some(part);
    !part.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(of: Of, verb: &str, path: &str) -> Option<(Option<&'static str>, String)> {
        let region = Region::parse("us-central1").expect("a region");
        let verb = Method::from_bytes(verb.as_bytes()).expect("a method");
        let asked = find(of, &verb, path, &region, &Snapshot::default())?;
        Some((asked.permission.map(Permission::as_str), asked.resource.to_string()))
    }

    #[test]
    fn what_methods_ask_for() {
        const KNATIVE: &str = "/apis/serving.knative.dev/v1/namespaces/p/services";
        const RUN: &str = "/v1/projects/p/locations/europe-west1/services";
        const IMAGES: &str = "/v1/projects/p/locations/us/repositories";
        const ACCOUNTS: &str = "/v1/projects/-/serviceAccounts";
        for (of, verb, path, permission, resource) in [
            (Of::Run, "POST", KNATIVE.to_owned(), "run.services.create", "project"),
            (
                Of::Run,
                "GET",
                format!("{KNATIVE}/a"),
                "run.services.get",
                "locations/us-central1/services/a",
            ),
            (
                Of::Run,
                "PUT",
                format!("{KNATIVE}/a"),
                "run.services.update",
                "locations/us-central1/services/a",
            ),
            (
                Of::Run,
                "PUT",
                format!("{KNATIVE}/A_"),
                "run.services.update",
                "project",
            ),
            (
                Of::Run,
                "POST",
                format!("{RUN}/a:setIamPolicy"),
                "run.services.setIamPolicy",
                "locations/europe-west1/services/a",
            ),
            (
                Of::Run,
                "POST",
                format!("{RUN}/a%3AsetIamPolicy"),
                "run.services.setIamPolicy",
                "locations/europe-west1/services/a",
            ),
            (
                Of::Run,
                "GET",
                format!("{RUN}/a"),
                "run.services.get",
                "locations/europe-west1/services/a",
            ),
            (
                Of::ArtifactRegistry,
                "DELETE",
                format!("{IMAGES}/r/packages/a%2Fb/versions/sha256:0"),
                "artifactregistry.versions.delete",
                "locations/us/repositories/r",
            ),
            (
                Of::ArtifactRegistry,
                "GET",
                format!("{IMAGES}/r"),
                "artifactregistry.repositories.get",
                "locations/us/repositories/r",
            ),
            (
                Of::Iam,
                "DELETE",
                format!("{ACCOUNTS}/x@p.iam.gserviceaccount.com"),
                "iam.serviceAccounts.delete",
                "serviceAccounts/x@p.iam.gserviceaccount.com",
            ),
            (
                Of::Iam,
                "POST",
                format!("{ACCOUNTS}/x@p/keys"),
                "iam.serviceAccountKeys.create",
                "serviceAccounts/x@p",
            ),
            (
                Of::Iam,
                "POST",
                format!("{ACCOUNTS}/x@p/keys/0:disable"),
                "iam.serviceAccountKeys.disable",
                "serviceAccounts/x@p",
            ),
            (
                Of::Credentials,
                "POST",
                format!("{ACCOUNTS}/x@p:signJwt"),
                "iam.serviceAccounts.signJwt",
                "serviceAccounts/x@p",
            ),
            (
                Of::Projects,
                "POST",
                "/v1/projects/p:setIamPolicy".to_owned(),
                "resourcemanager.projects.setIamPolicy",
                "project",
            ),
            (
                Of::Storage,
                "GET",
                "/storage/v1/b/x/o".to_owned(),
                "storage.objects.list",
                "project",
            ),
            (
                Of::Storage,
                "GET",
                "/storage/v1/b/x/o/a%2Fb".to_owned(),
                "storage.objects.get",
                "project",
            ),
            (
                Of::Homerun,
                "POST",
                "/homerun/v1/images:collect".to_owned(),
                "artifactregistry.versions.delete",
                "project",
            ),
            (
                Of::Registry,
                "PUT",
                "/v2/p/r/a/manifests/latest".to_owned(),
                "artifactregistry.repositories.uploadArtifacts",
                "project",
            ),
            (
                Of::Registry,
                "GET",
                "/v2/p/r/a/b/c/manifests/latest".to_owned(),
                "artifactregistry.repositories.downloadArtifacts",
                "project",
            ),
            (
                Of::Registry,
                "GET",
                "/v2/p/r/a/blobs/uploads/1".to_owned(),
                "artifactregistry.repositories.uploadArtifacts",
                "project",
            ),
            (
                Of::Registry,
                "DELETE",
                "/v2/p/r/a/blobs/sha256:0".to_owned(),
                "artifactregistry.repositories.deleteArtifacts",
                "project",
            ),
        ] {
            let found = asked(of, verb, &path).unwrap_or_else(|| panic!("{verb} {path} has no line"));
            assert_eq!(found, (Some(permission), resource.to_owned()), "{verb} {path}");
        }
        assert_eq!(
            asked(Of::Run, "POST", &format!("{RUN}/a:testIamPermissions")),
            Some((None, "locations/europe-west1/services/a".to_owned()))
        );
    }

    /// What has no line is not reached, and no trick of encoding makes it look like what has.
    #[test]
    fn what_has_no_line() {
        const RUN: &str = "/v1/projects/p/locations/us-central1";
        for (of, verb, path) in [
            (Of::Run, "PATCH", format!("{RUN}/services/a")),
            (Of::Run, "POST", format!("{RUN}/services/a:delete")),
            (Of::Run, "GET", format!("{RUN}/jobs")),
            (Of::Run, "GET", format!("{RUN}/services%2Fa")),
            (Of::Run, "GET", format!("{RUN}%2Fservices/a")),
            (Of::Run, "GET", format!("{RUN}/services/a%2Fb")),
            (Of::Run, "GET", format!("/{RUN}/services/a")),
            (Of::Run, "GET", format!("{RUN}/services/")),
            (Of::Run, "GET", format!("{RUN}/services/a/")),
            (Of::Iam, "GET", "/v1/projects/p/serviceAccounts/x%2Fkeys".to_owned()),
            (
                Of::Iam,
                "POST",
                "/v1/projects/p/serviceAccounts/x@p:signBlob".to_owned(),
            ),
            (
                Of::Credentials,
                "GET",
                "/v1/projects/-/serviceAccounts/x@p:signJwt".to_owned(),
            ),
            (Of::Registry, "PUT", "/v2/p/r/a/tags/list".to_owned()),
            (Of::Homerun, "POST", "/homerun/v1/anything".to_owned()),
            (Of::Run, "GET", String::new()),
            (Of::Storage, "GET", "//storage/v1/b".to_owned()),
            (Of::Storage, "GET", "/storage//v1/b".to_owned()),
        ] {
            assert_eq!(asked(of, verb, &path), None, "{verb} {path}");
        }
    }

    /// Only what asks for nothing may be had by everybody, and that list is short.
    #[test]
    fn what_asks_for_nothing() {
        let mut open: Vec<&str> = LINES
            .iter()
            .filter(|line| line.asks == Asks::Nothing)
            .map(|line| line.name)
            .collect();
        open.sort_unstable();
        open.dedup();
        assert_eq!(
            open,
            [
                "Docker-Ping",
                "google.cloud.resourcemanager.v1.Projects.TestIamPermissions",
                "google.cloud.resourcemanager.v3.Projects.TestIamPermissions",
                "google.cloud.run.v1.Services.TestIamPermissions",
                "google.cloud.secretmanager.v1.SecretManagerService.TestIamPermissions",
                "google.devtools.artifactregistry.v1.ArtifactRegistry.TestIamPermissions",
                "google.iam.admin.v1.GetRole",
                "google.iam.admin.v1.ListRoles",
                "google.iam.admin.v1.TestIAMPermissions",
                "google.longrunning.Operations.GetOperation",
            ]
        );
        for line in LINES {
            let changes = line.verb != "GET" && line.verb != "HEAD";
            assert!(line.effect == Effect::Reads || changes, "{} {}", line.verb, line.path);
        }
    }
}
