//! What is asked of each revision: its own bounds and its share of the service's.
//!
//! Rules, as Cloud Run documents them ("Set minimum instances", "Set maximum instances", "Manual scaling"):
//! - the bounds of a service are shared out over its revisions by percent of traffic; a revision that only a tag
//!   reaches has no share in them and keeps its own;
//! - of two minimums the greater counts, of two maximums the smaller;
//! - under manual scaling the bounds of revisions with traffic are ignored; more such revisions than instances leave
//!   some without any. One that only a tag reaches has exactly its own minimum, or one instance when it is asked;
//! - a revision that neither traffic nor a tag reaches has no minimum.
//!
//! Whole numbers come of shares by the largest remainder, the earlier entry of the traffic block first among equals, so
//! that they add up. A maximum leaves each revision with traffic one instance at least: a share of none would refuse
//! requests that the traffic block sends there.

use model::{Percent, RevisionName, Routed, Scaling, ServiceScaling};

/// Instances asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub min: u32,
    pub max: u32,
    pub manual: Option<u32>,
}

/// What is asked of `revision`, whose own bounds are `own`, in a service routed as `routed`.
pub fn asked(service: &ServiceScaling, routed: &Routed, revision: &RevisionName, own: Scaling) -> Asked {
    let max = own.max.get();
    if !routed.reaches(revision) {
        return Asked {
            min: 0,
            max,
            manual: None,
        };
    }
    let percents = percents(routed);
    let Some(position) = percents.iter().position(|(name, _)| *name == revision) else {
        return match (service.manual, own.min) {
            (None, min) => Asked { min, max, manual: None },
            (Some(_), 0) => Asked {
                min: 0,
                max: 1,
                manual: None,
            },
            (Some(_), min) => Asked {
                min,
                max,
                manual: Some(min),
            },
        };
    };
    let weights: Vec<u32> = percents.iter().map(|(_, percent)| *percent).collect();
    let share = |total: u32| share_out(total, &weights)[position];
    let max = match service.max {
        Some(total) => max.min(share(total.get()).max(1)),
        None => max,
    };
    Asked {
        min: own.min.max(share(service.min)).min(max),
        max,
        manual: service.manual.map(share),
    }
}

/// The revisions with traffic, in the order of the block, and their percents.
fn percents(routed: &Routed) -> Vec<(&RevisionName, u32)> {
    let mut found: Vec<(&RevisionName, u32)> = Vec::new();
    for target in &routed.targets {
        let percent = u32::from(target.percent.map_or(0, Percent::get));
        if percent == 0 {
            continue;
        }
        match found.iter_mut().find(|(name, _)| *name == &target.revision) {
            Some((_, sum)) => *sum += percent,
            None => found.push((&target.revision, percent)),
        }
    }
    found
}

/// `total` in whole parts as the weights are, by the largest remainder. They add up to `total`, unless no weight is
/// above zero.
pub fn share_out(total: u32, weights: &[u32]) -> Vec<u32> {
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: u32| u64::from(total) * u64::from(weight);
    let mut parts: Vec<u32> = weights
        .iter()
        .map(|weight| u32::try_from(exact(*weight) / sum).expect("no part is more than the total"))
        .collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|index| std::cmp::Reverse(exact(weights[*index]) % sum));
    let left = total - parts.iter().sum::<u32>();
    for index in by_remainder.into_iter().take(usize::try_from(left).unwrap_or(0)) {
        parts[index] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use model::{RoutedTarget, Tag};
    use proptest::prelude::*;

    use super::*;

    fn name(letter: &str) -> RevisionName {
        RevisionName::parse(&format!("s-{letter}")).expect("a name")
    }

    /// `a:60 b:40 c:tag`
    fn routed(text: &str) -> Routed {
        let targets = text.split(' ').filter(|entry| !entry.is_empty()).map(|entry| {
            let (revision, share) = entry.split_once(':').expect("two parts");
            let percent: Option<u8> = share.parse().ok();
            RoutedTarget {
                revision: name(revision),
                latest: false,
                percent: percent.and_then(Percent::new),
                tag: percent.is_none().then(|| Tag::parse(share).expect("a tag")),
            }
        });
        Routed {
            targets: targets.collect(),
            ..Routed::default()
        }
    }

    fn own(min: u32, max: u32) -> Scaling {
        Scaling {
            min,
            max: NonZeroU32::new(max).expect("not zero"),
        }
    }

    fn service(min: u32, max: u32, manual: Option<u32>) -> ServiceScaling {
        ServiceScaling {
            min,
            max: NonZeroU32::new(max),
            manual,
        }
    }

    #[test]
    fn table() {
        let of = |service: &ServiceScaling, traffic: &str, revision: &str, own: Scaling| {
            let asked = asked(service, &routed(traffic), &name(revision), own);
            (asked.min, asked.max, asked.manual)
        };
        let none = service(0, 0, None);
        for (service, traffic, revision, own, expected) in [
            (none, "a:100", "a", own(1, 5), (1, 5, None)),
            (none, "a:100", "b", own(1, 5), (0, 5, None)),
            (none, "a:100 b:tag", "b", own(1, 5), (1, 5, None)),
            (none, "a:100 b:0", "b", own(1, 5), (0, 5, None)),
            // shared by percent; a tag alone has no share
            (service(10, 0, None), "a:60 b:40", "a", own(0, 100), (6, 100, None)),
            (service(10, 0, None), "a:60 b:40", "b", own(0, 100), (4, 100, None)),
            (service(10, 0, None), "a:100 b:tag", "b", own(0, 100), (0, 100, None)),
            (service(10, 0, None), "a:100 b:tag", "b", own(2, 100), (2, 100, None)),
            (service(10, 0, None), "a:60 b:30 a:10", "a", own(0, 100), (7, 100, None)),
            // the greater minimum, the smaller maximum
            (service(4, 0, None), "a:100", "a", own(2, 100), (4, 100, None)),
            (service(2, 0, None), "a:100", "a", own(4, 100), (4, 100, None)),
            (service(0, 4, None), "a:100", "a", own(0, 100), (0, 4, None)),
            (service(0, 40, None), "a:100", "a", own(0, 3), (0, 3, None)),
            (service(0, 4, None), "a:75 b:25", "b", own(3, 100), (1, 1, None)),
            (service(0, 1, None), "a:99 b:1", "b", own(0, 100), (0, 1, None)),
            (service(0, 4, None), "a:100 b:tag", "b", own(0, 9), (0, 9, None)),
            // manual
            (service(0, 0, Some(3)), "a:50 b:50", "a", own(9, 9), (9, 9, Some(2))),
            (service(0, 0, Some(3)), "a:50 b:50", "b", own(9, 9), (9, 9, Some(1))),
            (service(0, 0, Some(1)), "a:50 b:50", "b", own(0, 9), (0, 9, Some(0))),
            (service(0, 0, Some(3)), "a:100 b:tag", "b", own(2, 9), (2, 9, Some(2))),
            (service(0, 0, Some(3)), "a:100 b:tag", "b", own(0, 9), (0, 1, None)),
            (service(0, 0, Some(3)), "a:100", "b", own(2, 9), (0, 9, None)),
        ] {
            assert_eq!(of(&service, traffic, revision, own), expected, "{traffic} {revision}");
        }
    }

    #[test]
    fn remainders() {
        assert_eq!(share_out(10, &[33, 33, 34]), [3, 3, 4]);
        assert_eq!(share_out(1, &[50, 50]), [1, 0], "the earlier one first");
        assert_eq!(share_out(5, &[1, 99]), [0, 5]);
        assert_eq!(share_out(7, &[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn shares_add_up_and_are_near_the_exact_ones(
            total in 0_u32..1000, weights in prop::collection::vec(0_u32..100, 1..10),
        ) {
            let parts = share_out(total, &weights);
            let sum: u32 = weights.iter().sum();
            if sum > 0 {
                prop_assert_eq!(parts.iter().sum::<u32>(), total);
                for (part, weight) in parts.iter().zip(&weights) {
                    // The exact share lies between, both sides times the sum.
                    let exact = total * weight;
                    prop_assert!(part * sum < exact + sum && (part + 1) * sum > exact);
                }
            }
        }
    }
}
