//! Roles: names for sets of permissions. Those of Google that speak of what Homerun serves, as data.
//!
//! A role holds exactly the permissions of Google's role of the same name, as far as they are known here
//! ([`Permission::ALL`]). Custom roles are not served.

mod predefined;

use serde::{Deserialize, Serialize};

use self::predefined::PREDEFINED;
use super::Permission;

/// The role whose members may call a service.
pub const INVOKER_ROLE: &str = "roles/run.invoker";
/// The role that may do everything but act under another's name.
pub const OWNER_ROLE: &str = "roles/owner";

/// A role's name, `roles/...` or a custom one's full path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Role(String);

impl Role {
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("roles/").or_else(|| {
            text.strip_prefix("projects/")
                .and_then(|rest| rest.split_once("/roles/"))
                .map(|(_, name)| name)
        })?;
        let valid = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        valid.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the role holds; None for one that is not known here, which holds nothing.
    pub fn predefined(&self) -> Option<&'static Predefined> {
        Predefined::find(&self.0)
    }

    /// Whether who has the role has the permission.
    pub fn holds(&self, permission: Permission) -> bool {
        self.predefined().is_some_and(|role| role.holds(permission))
    }
}

/// A role that every project has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predefined {
    /// `roles/...`.
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    grants: Grants,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grants {
    /// Names of permissions; `SERVICE.*` and `SERVICE.RESOURCE.*` stand for all below.
    Names(&'static [&'static str]),
    Basic(Basic),
}

/// The three roles that were there before all others, cut from every service's permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Basic {
    Viewer,
    Editor,
    Owner,
}

impl Predefined {
    pub fn find(name: &str) -> Option<&'static Self> {
        PREDEFINED.iter().find(|role| role.name == name)
    }

    /// Every role, by name.
    pub fn all() -> &'static [Self] {
        PREDEFINED
    }

    pub fn holds(&self, permission: Permission) -> bool {
        match self.grants {
            Grants::Names(names) => names.iter().any(|name| match name.strip_suffix('*') {
                Some(prefix) => permission.as_str().starts_with(prefix),
                None => *name == permission.as_str(),
            }),
            Grants::Basic(basic) => basic.holds(permission),
        }
    }

    pub fn permissions(&self) -> impl Iterator<Item = Permission> + '_ {
        Permission::ALL
            .iter()
            .copied()
            .filter(|permission| self.holds(*permission))
    }
}

impl Basic {
    fn holds(self, permission: Permission) -> bool {
        // To speak in an account's name is in none of the three, not even the owner's: it is given by name.
        let impersonates = matches!(
            permission,
            Permission::IAM_SERVICE_ACCOUNTS_GET_ACCESS_TOKEN
                | Permission::IAM_SERVICE_ACCOUNTS_GET_OPEN_ID_TOKEN
                | Permission::IAM_SERVICE_ACCOUNTS_IMPLICIT_DELEGATION
                | Permission::IAM_SERVICE_ACCOUNTS_SIGN_BLOB
                | Permission::IAM_SERVICE_ACCOUNTS_SIGN_JWT
        );
        let guarded = permission.verb() == "setIamPolicy" || permission == Permission::SECRETMANAGER_VERSIONS_ACCESS;
        // Content of buckets is given by roles of Cloud Storage, and to owners and editors of the project.
        let content = permission.as_str().starts_with("storage.objects.");
        let reads = matches!(permission.verb(), "get" | "list" | "getIamPolicy")
            || permission == Permission::ARTIFACTREGISTRY_REPOSITORIES_DOWNLOAD_ARTIFACTS;
        match self {
            Self::Viewer => reads && !content,
            Self::Editor => !impersonates && !guarded,
            Self::Owner => !impersonates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str) -> &'static Predefined {
        Predefined::find(name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn roles_name_known_permissions_only() {
        assert!(PREDEFINED.is_sorted_by_key(|role| role.name), "by name");
        for role in PREDEFINED {
            assert!(Role::parse(role.name).is_some(), "{}", role.name);
            let Grants::Names(names) = role.grants else { continue };
            assert!(names.is_sorted(), "{}", role.name);
            for name in names {
                let known = match name.strip_suffix('*') {
                    Some(prefix) => Permission::ALL.iter().any(|p| p.as_str().starts_with(prefix)),
                    None => Permission::known(name).is_some(),
                };
                assert!(known, "{}: {name}", role.name);
            }
        }
    }

    #[test]
    fn who_holds_what() {
        for (name, permission, held) in [
            (INVOKER_ROLE, Permission::RUN_ROUTES_INVOKE, true),
            (INVOKER_ROLE, Permission::RUN_SERVICES_GET, false),
            ("roles/run.viewer", Permission::RUN_SERVICES_GET_IAM_POLICY, true),
            ("roles/run.viewer", Permission::RUN_ROUTES_INVOKE, false),
            ("roles/run.developer", Permission::RUN_SERVICES_UPDATE, true),
            ("roles/run.developer", Permission::RUN_SERVICES_SET_IAM_POLICY, false),
            ("roles/run.admin", Permission::RUN_SERVICES_SET_IAM_POLICY, true),
            ("roles/run.admin", Permission::IAM_SERVICE_ACCOUNTS_ACT_AS, false),
            (
                "roles/iam.serviceAccountUser",
                Permission::IAM_SERVICE_ACCOUNTS_ACT_AS,
                true,
            ),
            (
                "roles/iam.serviceAccountUser",
                Permission::IAM_SERVICE_ACCOUNTS_GET_ACCESS_TOKEN,
                false,
            ),
            (
                "roles/iam.serviceAccountTokenCreator",
                Permission::IAM_SERVICE_ACCOUNTS_GET_ACCESS_TOKEN,
                true,
            ),
            (
                "roles/iam.serviceAccountTokenCreator",
                Permission::IAM_SERVICE_ACCOUNTS_ACT_AS,
                false,
            ),
            (
                "roles/secretmanager.secretAccessor",
                Permission::SECRETMANAGER_VERSIONS_ACCESS,
                true,
            ),
            (
                "roles/artifactregistry.reader",
                Permission::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS,
                false,
            ),
            (
                "roles/artifactregistry.writer",
                Permission::ARTIFACTREGISTRY_REPOSITORIES_UPLOAD_ARTIFACTS,
                true,
            ),
            (
                "roles/artifactregistry.writer",
                Permission::ARTIFACTREGISTRY_VERSIONS_DELETE,
                false,
            ),
            ("roles/viewer", Permission::RUN_SERVICES_LIST, true),
            ("roles/viewer", Permission::SECRETMANAGER_VERSIONS_ACCESS, false),
            ("roles/editor", Permission::RUN_SERVICES_UPDATE, true),
            ("roles/editor", Permission::RUN_SERVICES_SET_IAM_POLICY, false),
            ("roles/editor", Permission::SECRETMANAGER_VERSIONS_ACCESS, false),
            ("roles/owner", Permission::SECRETMANAGER_VERSIONS_ACCESS, true),
            ("roles/owner", Permission::RESOURCEMANAGER_PROJECTS_SET_IAM_POLICY, true),
            ("roles/owner", Permission::IAM_SERVICE_ACCOUNTS_GET_ACCESS_TOKEN, false),
        ] {
            assert_eq!(role(name).holds(permission), held, "{name} {permission}");
        }
    }

    /// What one may as a viewer one may as an editor, and so on up.
    #[test]
    fn wider_roles_hold_what_narrower_ones_do() {
        for (narrow, wide) in [
            ("roles/viewer", "roles/editor"),
            ("roles/editor", "roles/owner"),
            ("roles/run.viewer", "roles/run.developer"),
            ("roles/run.developer", "roles/run.admin"),
            ("roles/artifactregistry.reader", "roles/artifactregistry.writer"),
            ("roles/artifactregistry.writer", "roles/artifactregistry.repoAdmin"),
            ("roles/artifactregistry.repoAdmin", "roles/artifactregistry.admin"),
            ("roles/secretmanager.viewer", "roles/secretmanager.admin"),
        ] {
            for permission in role(narrow).permissions() {
                assert!(
                    role(wide).holds(permission),
                    "{narrow} has {permission}, {wide} has not"
                );
            }
        }
    }

    #[test]
    fn an_unknown_role_holds_nothing() {
        let custom = Role::parse("projects/p/roles/mine").expect("well-formed");
        assert!(!Permission::ALL.iter().any(|permission| custom.holds(*permission)));
    }
}
