//! Repositories of images, and what is deleted from them by itself (Artifact Registry's words).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Region, RepositoryName, Timestamp};

/// Most cleanup policies of one repository (Artifact Registry's limit).
pub const MAX_CLEANUP_POLICIES: usize = 10;

/// `LOCATION-docker.pkg.dev/PROJECT/NAME`. The location is a region, or one of `us`, `europe`, `asia`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RepositoryKey {
    pub location: Region,
    pub name: RepositoryName,
}

impl fmt::Display for RepositoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.location, self.name)
    }
}

/// A repository of images in docker's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRepository {
    pub key: RepositoryKey,
    pub description: String,
    pub labels: BTreeMap<String, String>,
    pub created: Timestamp,
    /// When its own fields changed last.
    pub updated: Timestamp,
    /// By their ids.
    pub cleanup_policies: BTreeMap<String, CleanupPolicy>,
    /// Policies are kept, and delete nothing.
    pub cleanup_dry_run: bool,
}

impl ArtifactRepository {
    pub fn new(key: RepositoryKey, now: Timestamp) -> Self {
        Self {
            key,
            description: String::new(),
            labels: BTreeMap::new(),
            created: now,
            updated: now,
            cleanup_policies: BTreeMap::new(),
            cleanup_dry_run: false,
        }
    }
}

/// Which versions are deleted, or kept whatever other policies say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CleanupPolicy {
    Delete(CleanupCondition),
    Keep(CleanupCondition),
    KeepMostRecent {
        /// Begin names of packages; empty is every package.
        packages: Vec<String>,
        /// Of each package.
        count: u32,
    },
}

/// All of it must hold; what is empty always does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanupCondition {
    pub tags: TagState,
    /// One of a version's tags begins with one of these.
    pub tag_prefixes: Vec<String>,
    /// The digest, `sha256:...`, begins with one of these.
    pub version_prefixes: Vec<String>,
    pub package_prefixes: Vec<String>,
    /// Uploaded at least so long ago.
    pub older_than: Option<Duration>,
    /// Uploaded less long ago.
    pub newer_than: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagState {
    #[default]
    Any,
    Tagged,
    Untagged,
}

/// What policies look at in one version of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVersion {
    /// The image's path below its repository.
    pub package: String,
    pub digest: String,
    pub tags: Vec<String>,
    pub uploaded: Timestamp,
}

impl CleanupCondition {
    fn holds(&self, version: &ImageVersion, now: Timestamp) -> bool {
        let age = now.as_micros().saturating_sub(version.uploaded.as_micros());
        let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
        let tags = match self.tags {
            TagState::Any => true,
            TagState::Tagged => !version.tags.is_empty(),
            TagState::Untagged => version.tags.is_empty(),
        };
        tags && (self.tag_prefixes.is_empty() || version.tags.iter().any(|tag| begins(tag, &self.tag_prefixes)))
            && (self.version_prefixes.is_empty() || begins(&version.digest, &self.version_prefixes))
            && (self.package_prefixes.is_empty() || begins(&version.package, &self.package_prefixes))
            && self.older_than.is_none_or(|least| age >= least)
            && self.newer_than.is_none_or(|most| age < most)
    }
}

fn begins(text: &str, prefixes: &[String]) -> bool {
    prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()))
}

/// Which of a repository's versions its policies delete: those that a deleting policy means and no keeping one does.
pub fn cleaned_up<'v>(
    policies: &BTreeMap<String, CleanupPolicy>,
    versions: &'v [ImageVersion],
    now: Timestamp,
) -> Vec<&'v ImageVersion> {
    let kept = |version: &ImageVersion| {
        policies.values().any(|policy| match policy {
            CleanupPolicy::Delete(_) => false,
            CleanupPolicy::Keep(condition) => condition.holds(version, now),
            CleanupPolicy::KeepMostRecent { packages, count } => {
                let newer = versions
                    .iter()
                    .filter(|other| other.package == version.package)
                    .filter(|other| (other.uploaded, &other.digest) > (version.uploaded, &version.digest))
                    .count();
                (packages.is_empty() || begins(&version.package, packages))
                    && newer < usize::try_from(*count).unwrap_or(usize::MAX)
            }
        })
    };
    let deleted = |version: &ImageVersion| {
        policies
            .values()
            .any(|policy| matches!(policy, CleanupPolicy::Delete(condition) if condition.holds(version, now)))
    };
    versions
        .iter()
        .filter(|version| deleted(version) && !kept(version))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000;

    fn version(package: &str, digest: &str, tags: &[&str], days: i64) -> ImageVersion {
        ImageVersion {
            package: package.to_owned(),
            digest: digest.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            uploaded: Timestamp::from_micros(1_800_000_000_000_000 - days * DAY),
        }
    }

    fn of(policies: Vec<CleanupPolicy>) -> Vec<&'static str> {
        let versions = [
            version("app", "a1", &["v1", "prod-1"], 40),
            version("app", "a2", &["v2"], 20),
            version("app", "a3", &[], 10),
            version("app", "a4", &[], 1),
            version("tool/x", "b1", &[], 40),
        ];
        let policies = policies
            .into_iter()
            .enumerate()
            .map(|(number, policy)| (number.to_string(), policy))
            .collect();
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let names = ["a1", "a2", "a3", "a4", "b1"];
        cleaned_up(&policies, &versions, now)
            .into_iter()
            .map(|version| {
                *names
                    .iter()
                    .find(|name| **name == version.digest)
                    .expect("one of these")
            })
            .collect()
    }

    fn days(number: u64) -> Duration {
        Duration::from_secs(number * 86_400)
    }

    #[test]
    fn what_is_meant_is_deleted_unless_it_is_kept() {
        let untagged = || CleanupCondition {
            tags: TagState::Untagged,
            ..CleanupCondition::default()
        };
        let recent = |count, packages: &[&str]| CleanupPolicy::KeepMostRecent {
            packages: packages.iter().map(|text| (*text).to_owned()).collect(),
            count,
        };
        let all = || CleanupPolicy::Delete(CleanupCondition::default());
        for (policies, gone) in [
            (vec![], vec![]),
            (vec![recent(1, &[])], vec![]),
            (vec![all()], vec!["a1", "a2", "a3", "a4", "b1"]),
            (vec![CleanupPolicy::Delete(untagged())], vec!["a3", "a4", "b1"]),
            (
                vec![CleanupPolicy::Delete(CleanupCondition {
                    older_than: Some(days(10)),
                    ..untagged()
                })],
                vec!["a3", "b1"],
            ),
            (
                vec![CleanupPolicy::Delete(CleanupCondition {
                    newer_than: Some(days(20)),
                    ..CleanupCondition::default()
                })],
                vec!["a3", "a4"],
            ),
            (
                vec![CleanupPolicy::Delete(CleanupCondition {
                    tags: TagState::Tagged,
                    tag_prefixes: vec!["prod".to_owned()],
                    ..CleanupCondition::default()
                })],
                vec!["a1"],
            ),
            (
                vec![CleanupPolicy::Delete(CleanupCondition {
                    package_prefixes: vec!["tool/".to_owned()],
                    version_prefixes: vec!["b".to_owned(), "a".to_owned()],
                    ..CleanupCondition::default()
                })],
                vec!["b1"],
            ),
            (vec![all(), recent(2, &[])], vec!["a1", "a2"]),
            (vec![all(), recent(1, &["app"])], vec!["a1", "a2", "a3", "b1"]),
            (vec![all(), recent(0, &[])], vec!["a1", "a2", "a3", "a4", "b1"]),
            (
                vec![
                    all(),
                    CleanupPolicy::Keep(CleanupCondition {
                        tag_prefixes: vec!["v".to_owned()],
                        ..CleanupCondition::default()
                    }),
                ],
                vec!["a3", "a4", "b1"],
            ),
        ] {
            assert_eq!(of(policies.clone()), gone, "{policies:?}");
        }
    }
}
