//! Traffic: which revisions take which share of requests, and which tags name them.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{Revision, RevisionName, RoutedTarget, ServiceName, Tag, Violation, latest_ready};

/// A share of traffic, 0 to 100.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Percent(u8);

impl Percent {
    pub const ALL: Self = Self(100);
    pub const ZERO: Self = Self(0);

    pub fn new(percent: u8) -> Option<Self> {
        (percent <= 100).then_some(Self(percent))
    }

    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Percent {
    type Error = String;
    fn try_from(percent: u8) -> Result<Self, String> {
        Self::new(percent).ok_or_else(|| format!("percent {percent} is out of range: 0 to 100"))
    }
}

impl From<Percent> for u8 {
    fn from(percent: Percent) -> Self {
        percent.0
    }
}

/// Whom an entry means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The newest revision that became ready, whichever that is at the time.
    Latest,
    Revision(RevisionName),
}

/// One entry. `percent` is None when the caller gave none, which counts as 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficTarget {
    pub to: Target,
    pub percent: Option<Percent>,
    pub tag: Option<Tag>,
}

/// Entries whose percents sum to 100 and whose tags differ; in the caller's order, which is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<TrafficTarget>", into = "Vec<TrafficTarget>")]
pub struct Traffic(Vec<TrafficTarget>);

/// Why entries do not make a traffic block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrafficError {
    Sum(u32),
    DuplicateTag { index: usize, tag: Tag },
}

impl fmt::Display for TrafficError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum(sum) => write!(f, "traffic percents must sum to 100, not {sum}"),
            Self::DuplicateTag { tag, .. } => {
                write!(f, "tag {tag} is given twice, a tag names one revision")
            }
        }
    }
}

impl std::error::Error for TrafficError {}

impl TrafficError {
    /// The same as a violation of the field below `path` (such as `spec.traffic`).
    pub fn violation(&self, path: &str) -> Violation {
        let field = match self {
            Self::Sum(_) => path.to_owned(),
            Self::DuplicateTag { index, .. } => format!("{path}[{index}].tag"),
        };
        Violation::new(field, self.to_string())
    }
}

impl Traffic {
    /// Everything to the latest ready revision: the default.
    pub fn latest() -> Self {
        Self(vec![TrafficTarget {
            to: Target::Latest,
            percent: Some(Percent::ALL),
            tag: None,
        }])
    }

    /// # Errors
    /// When the percents do not sum to 100 or a tag stands twice. No entries at all: everything to latest.
    pub fn new(targets: Vec<TrafficTarget>) -> Result<Self, TrafficError> {
        if targets.is_empty() {
            return Ok(Self::latest());
        }
        let sum = targets.iter().filter_map(|t| t.percent).map(|p| u32::from(p.0)).sum();
        if sum != 100 {
            return Err(TrafficError::Sum(sum));
        }
        let mut tags = BTreeSet::new();
        for (index, target) in targets.iter().enumerate() {
            if let Some(tag) = &target.tag
                && !tags.insert(tag)
            {
                return Err(TrafficError::DuplicateTag {
                    index,
                    tag: tag.clone(),
                });
            }
        }
        Ok(Self(targets))
    }

    pub fn targets(&self) -> &[TrafficTarget] {
        &self.0
    }

    pub fn follows_latest(&self) -> bool {
        self.0.iter().any(|t| t.to == Target::Latest)
    }

    /// Revisions named by an entry, with traffic or by tag only.
    pub fn names(&self, revision: &RevisionName) -> bool {
        self.0
            .iter()
            .any(|t| matches!(&t.to, Target::Revision(name) if name == revision))
    }

    /// Writes the full name where an entry says `SERVICE-NNNNN`, the short form of the one revision named
    /// `SERVICE-NNNNN-xyz`. `existing` are the revisions there are; `coming` is the one that the same request makes.
    ///
    /// # Errors
    /// A violation for each entry whose revision does not exist or whose short form fits several.
    pub fn resolve(
        self,
        service: &ServiceName,
        existing: &[RevisionName],
        coming: Option<&RevisionName>,
        path: &str,
    ) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut targets = self.0;
        for (index, target) in targets.iter_mut().enumerate() {
            let Target::Revision(name) = &mut target.to else {
                continue;
            };
            if existing.contains(name) || coming == Some(name) {
                continue;
            }
            let field = format!("{path}[{index}].revisionName");
            let prefix = is_short(name, service).then(|| format!("{name}-"));
            let fits: Vec<&RevisionName> = prefix
                .iter()
                .flat_map(|prefix| existing.iter().filter(move |r| r.as_str().starts_with(prefix)))
                .collect();
            match fits.as_slice() {
                [] => violations.push(Violation::new(
                    field,
                    format!("revision \"{name}\" of service \"{service}\" does not exist"),
                )),
                [one] => *name = (*one).clone(),
                several => {
                    let names: Vec<&str> = several.iter().map(|r| r.as_str()).collect();
                    violations.push(Violation::new(
                        field,
                        format!("\"{name}\" fits several revisions: {}", names.join(", ")),
                    ));
                }
            }
        }
        if violations.is_empty() {
            Ok(Self(targets))
        } else {
            Err(violations)
        }
    }
}

impl TryFrom<Vec<TrafficTarget>> for Traffic {
    type Error = TrafficError;
    fn try_from(targets: Vec<TrafficTarget>) -> Result<Self, TrafficError> {
        Self::new(targets)
    }
}

impl From<Traffic> for Vec<TrafficTarget> {
    fn from(traffic: Traffic) -> Self {
        traffic.0
    }
}

/// `SERVICE-NNNNN` with exactly five digits.
fn is_short(name: &RevisionName, service: &ServiceName) -> bool {
    name.as_str()
        .strip_prefix(service.as_str())
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|digits| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The entries with every `Latest` bound to the latest ready revision of `revisions`. None while an entry's revision
/// is missing or not ready: traffic then stays where it was.
pub fn assign<'a>(
    traffic: &Traffic,
    revisions: impl Iterator<Item = &'a Revision> + Clone,
) -> Option<Vec<RoutedTarget>> {
    let latest = latest_ready(revisions.clone());
    traffic
        .0
        .iter()
        .map(|target| {
            let (revision, is_latest) = match &target.to {
                Target::Latest => (latest?, true),
                Target::Revision(name) => (revisions.clone().find(|r| r.key.name == *name)?, false),
            };
            revision.state.is_ready().then(|| RoutedTarget {
                revision: revision.key.name.clone(),
                latest: is_latest,
                percent: target.percent,
                tag: target.tag.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> RevisionName {
        RevisionName::parse(text).expect(text)
    }

    fn to(revision: &str, percent: u8, tag: Option<&str>) -> TrafficTarget {
        TrafficTarget {
            to: Target::Revision(name(revision)),
            percent: Percent::new(percent),
            tag: tag.map(|t| Tag::parse(t).expect(t)),
        }
    }

    #[test]
    fn sums_and_tags() {
        assert_eq!(Traffic::new(vec![]).expect("latest"), Traffic::latest());
        assert_eq!(Traffic::new(vec![to("a-1", 99, None)]), Err(TrafficError::Sum(99)));
        assert!(Traffic::new(vec![to("a-1", 90, None), to("a-2", 10, Some("x"))]).is_ok());
        let twice = Traffic::new(vec![to("a-1", 100, Some("x")), to("a-2", 0, Some("x"))]);
        assert!(matches!(twice, Err(TrafficError::DuplicateTag { index: 1, .. })));
    }

    #[test]
    fn short_names_resolve_to_the_one_revision() {
        let service = ServiceName::parse("my-api").expect("a name");
        let existing = [
            name("my-api-00001-abc"),
            name("my-api-00002-def"),
            name("my-api-00002-ghj"),
        ];
        let resolve = |wanted: &str| {
            Traffic::new(vec![to(wanted, 100, None)])
                .expect("sums")
                .resolve(&service, &existing, None, "spec.traffic")
        };
        let resolved = resolve("my-api-00001").expect("one");
        assert_eq!(resolved.targets()[0].to, Target::Revision(name("my-api-00001-abc")));
        let several = resolve("my-api-00002").expect_err("several");
        assert!(several[0].description.contains("several"), "{several:?}");
        for unknown in ["my-api-00003", "my-api-0000", "my-api-00001-ab"] {
            let none = resolve(unknown).expect_err(unknown);
            assert_eq!(none[0].field, "spec.traffic[0].revisionName");
        }
    }

    #[test]
    fn the_revision_of_the_same_request_may_be_named() {
        let service = ServiceName::parse("my-api").expect("a name");
        let coming = name("my-api-00002-new");
        let traffic = Traffic::new(vec![to("my-api-00002-new", 100, Some("canary"))]).expect("sums");
        assert!(traffic.clone().resolve(&service, &[], Some(&coming), "t").is_ok());
        assert!(traffic.resolve(&service, &[], None, "t").is_err());
    }

    proptest! {
        #[test]
        fn only_sums_of_100_are_built(percents in prop::collection::vec(0_u8..=100, 1..6)) {
            let sum: u32 = percents.iter().map(|p| u32::from(*p)).sum();
            let targets = percents.iter().map(|p| to("a-1", *p, None)).collect();
            prop_assert_eq!(Traffic::new(targets).is_ok(), sum == 100);
        }
    }
}
