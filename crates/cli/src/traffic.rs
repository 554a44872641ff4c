//! What `--to-revisions`, `--to-tags`, `--to-latest`, the tag flags and `--no-traffic` make of a service's traffic.
//!
//! Pure: entries of `spec.traffic` and the wishes of a command enter, new entries or the reason why not leave. The
//! arithmetic is gcloud's, so that both clients write the same: a tag is always an entry of its own without a percent;
//! what is left below 100 is spread over the targets that were not named, in proportion to what they had, and what
//! whole percents lose goes to the ones that lost most. Nothing here knows which revisions exist; the server does.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// The word for "whichever revision became ready last". No revision can have it as its name.
pub(crate) const LATEST: &str = "LATEST";

/// Whom an entry means. Ordered as gcloud orders entries: by name, LATEST last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum To {
    Revision(String),
    Latest,
}

impl To {
    pub(crate) fn parse(word: &str) -> Self {
        if word == LATEST {
            Self::Latest
        } else {
            Self::Revision(word.to_owned())
        }
    }

    pub(crate) fn word(&self) -> &str {
        match self {
            Self::Revision(name) => name,
            Self::Latest => LATEST,
        }
    }
}

/// One entry of `spec.traffic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) to: To,
    /// 0 where the document has none.
    pub(crate) percent: u32,
    pub(crate) tag: Option<String>,
}

impl Entry {
    fn share(to: To, percent: u32) -> Self {
        Self { to, percent, tag: None }
    }

    fn tagged(to: To, tag: &str) -> Self {
        Self {
            to,
            percent: 0,
            tag: Some(tag.to_owned()),
        }
    }
}

/// Why a wish cannot be written down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TrafficError {
    #[error("over 100% of traffic is specified: {0}%")]
    Over(u32),
    #[error("every target with traffic is updated but only {0}% of 100% of traffic has been specified")]
    Under(u32),
    #[error("current traffic allocation of {0}% is not 100 percent, name all of it in --to-revisions")]
    Current(u32),
    #[error("there is no revision tagged with [{0}] in the traffic allocation")]
    Tag(String),
    #[error("--no-traffic needs a revision that is ready to keep the traffic, the service has none")]
    NothingReady,
}

/// The entries of `spec.traffic`; an absent or empty block means everything to LATEST.
pub(crate) fn read(traffic: &Value) -> Vec<Entry> {
    let entries: Vec<Entry> = traffic.as_array().into_iter().flatten().map(read_entry).collect();
    if entries.is_empty() {
        vec![Entry::share(To::Latest, 100)]
    } else {
        entries
    }
}

/// One entry as the document has it.
pub(crate) fn read_entry(entry: &Value) -> Entry {
    let to = if entry["latestRevision"].as_bool() == Some(true) {
        To::Latest
    } else {
        To::Revision(entry["revisionName"].as_str().unwrap_or_default().to_owned())
    };
    let percent = entry["percent"].as_u64().unwrap_or(0);
    Entry {
        to,
        percent: u32::try_from(percent).unwrap_or(u32::MAX),
        tag: entry["tag"].as_str().filter(|tag| !tag.is_empty()).map(str::to_owned),
    }
}

/// The block as gcloud writes it: no percent on tag entries.
pub(crate) fn write(entries: &[Entry]) -> Value {
    let entry = |entry: &Entry| {
        let mut fields = Map::new();
        match &entry.to {
            To::Latest => fields.insert("latestRevision".to_owned(), json!(true)),
            To::Revision(name) => fields.insert("revisionName".to_owned(), json!(name)),
        };
        if entry.percent > 0 || entry.tag.is_none() {
            fields.insert("percent".to_owned(), json!(entry.percent));
        }
        if let Some(tag) = &entry.tag {
            fields.insert("tag".to_owned(), json!(tag));
        }
        Value::Object(fields)
    };
    entries.iter().map(entry).collect()
}

/// Whether any traffic goes to LATEST, so that a new revision will be routed to.
pub(crate) fn follows_latest(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| entry.to == To::Latest)
}

/// Shares summed per target, and the tags as entries of their own, in order.
fn normal(entries: &[Entry]) -> (BTreeMap<To, u32>, Vec<Entry>) {
    let mut shares = BTreeMap::new();
    let mut tags = Vec::new();
    for entry in entries {
        if let Some(tag) = &entry.tag {
            tags.push(Entry::tagged(entry.to.clone(), tag));
        }
        if entry.percent > 0 {
            let share = shares.entry(entry.to.clone()).or_insert(0_u32);
            *share = share.saturating_add(entry.percent);
        }
    }
    (shares, tags)
}

/// Gives `wanted` its percents and spreads the rest over the targets that have traffic and are not named.
pub(crate) fn set_percents(entries: &[Entry], wanted: &BTreeMap<To, u32>) -> Result<Vec<Entry>, TrafficError> {
    let (current, tags) = normal(entries);
    let total = current.values().fold(0, |sum: u32, share| sum.saturating_add(*share));
    if total != 100 {
        return Err(TrafficError::Current(total));
    }
    let specified = wanted.values().fold(0, |sum: u32, share| sum.saturating_add(*share));
    if specified > 100 {
        return Err(TrafficError::Over(specified));
    }
    let untouched: BTreeMap<&To, u32> = current
        .iter()
        .filter(|(to, _)| !wanted.contains_key(to))
        .map(|(to, share)| (to, *share))
        .collect();
    if untouched.is_empty() && specified < 100 {
        return Err(TrafficError::Under(specified));
    }
    let mut shares: Vec<(To, f64)> = wanted
        .iter()
        .map(|(to, share)| (to.clone(), f64::from(*share)))
        .collect();
    let rest = 100 - specified;
    if rest > 0 {
        let from = f64::from(untouched.values().sum::<u32>());
        for (to, share) in untouched {
            shares.push((to.clone(), f64::from(share) * f64::from(rest) / from));
        }
    }
    let mut whole = whole_percents(shares);
    whole.retain(|(to, _)| wanted.get(to) != Some(&0));
    whole.sort();
    Ok(whole
        .into_iter()
        .map(|(to, percent)| Entry::share(to, percent))
        .chain(tags)
        .collect())
}

/// Cuts the fractions off and gives the lost percents back: to the largest loss first, then to the smaller share,
/// then by name.
fn whole_percents(shares: Vec<(To, f64)>) -> Vec<(To, u32)> {
    let total: f64 = shares.iter().map(|(_, share)| share).sum();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let mut whole: Vec<(To, u32)> = shares
        .iter()
        .map(|(to, share)| (to.clone(), whole_part(share.trunc())))
        .collect();
    let kept: u32 = whole.iter().map(|(_, share)| share).sum();
    let lost = whole_part(total.round()).saturating_sub(kept);
    let precedence = |one: &usize, other: &usize| -> Ordering {
        let ((to, share), (other_to, other_share)) = (&shares[*one], &shares[*other]);
        (1.0 - share.fract())
            .total_cmp(&(1.0 - other_share.fract()))
            .then(share.total_cmp(other_share))
            .then(to.cmp(other_to))
    };
    order.sort_by(precedence);
    for index in order.into_iter().take(lost as usize) {
        whole[index].1 += 1;
    }
    whole
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares lie between 0 and 100"
)]
fn whole_part(share: f64) -> u32 {
    share as u32
}

/// Percents by tag instead of by revision.
pub(crate) fn by_tag(entries: &[Entry], wanted: &BTreeMap<String, u32>) -> Result<BTreeMap<To, u32>, TrafficError> {
    wanted
        .iter()
        .map(|(tag, percent)| {
            entries
                .iter()
                .find(|entry| entry.tag.as_ref() == Some(tag))
                .map(|entry| (entry.to.clone(), *percent))
                .ok_or_else(|| TrafficError::Tag(tag.clone()))
        })
        .collect()
}

/// Removes and sets tags. With `clear`, every tag that is not set goes.
pub(crate) fn set_tags(
    entries: &[Entry],
    set: &BTreeMap<String, To>,
    remove: &BTreeSet<String>,
    clear: bool,
) -> Vec<Entry> {
    let mut kept: Vec<Entry> = Vec::new();
    for entry in entries {
        let mut entry = entry.clone();
        let goes = |tag: &String| clear || remove.contains(tag) || set.contains_key(tag);
        if entry.tag.as_ref().is_some_and(goes) {
            entry.tag = None;
        }
        if entry.percent > 0 || entry.tag.is_some() {
            kept.push(entry);
        }
    }
    kept.extend(set.iter().map(|(tag, to)| Entry::tagged(to.clone(), tag)));
    kept
}

/// Binds what goes to LATEST to the revision that is the latest ready one now (`--no-traffic`).
pub(crate) fn hold(entries: &[Entry], ready: Option<&str>) -> Result<Vec<Entry>, TrafficError> {
    let (mut shares, tags) = normal(entries);
    let Some(latest) = shares.remove(&To::Latest) else {
        return Ok(entries.to_vec());
    };
    let ready = ready.ok_or(TrafficError::NothingReady)?;
    *shares.entry(To::Revision(ready.to_owned())).or_insert(0) += latest;
    Ok(shares
        .into_iter()
        .map(|(to, percent)| Entry::share(to, percent))
        .chain(tags)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a=90 LATEST=10 b#tag`: the entries in a form that reads.
    fn entries(text: &str) -> Vec<Entry> {
        text.split_whitespace()
            .map(|word| {
                let (share, tag) = word.split_once('#').map_or((word, None), |(s, t)| (s, Some(t)));
                let (to, percent) = share.split_once('=').unwrap_or((share, "0"));
                Entry {
                    to: To::parse(to),
                    percent: percent.parse().expect("a number"),
                    tag: tag.map(str::to_owned),
                }
            })
            .collect()
    }

    fn text(entries: &[Entry]) -> String {
        let words: Vec<String> = entries
            .iter()
            .map(|e| match (&e.tag, e.percent) {
                (Some(tag), 0) => format!("{}#{tag}", e.to.word()),
                (Some(tag), percent) => format!("{}={percent}#{tag}", e.to.word()),
                (None, percent) => format!("{}={percent}", e.to.word()),
            })
            .collect();
        words.join(" ")
    }

    fn wanted(text: &str) -> BTreeMap<To, u32> {
        entries(text).into_iter().map(|e| (e.to, e.percent)).collect()
    }

    #[test]
    fn percents_are_set_and_the_rest_is_spread() {
        // now, wanted, after
        let table = [
            ("LATEST=100", "a=90 b=10", "a=90 b=10"),
            ("LATEST=100 b#canary", "a=90 b=10", "a=90 b=10 b#canary"),
            ("a=90 b=10", "LATEST=100", "LATEST=100"),
            ("a=90 b=10 b#t", "LATEST=100", "LATEST=100 b#t"),
            ("LATEST=100", "LATEST=10 a=90", "a=90 LATEST=10"),
            // the rest goes to who was not named, in proportion
            ("a=40 b=60", "a=45", "a=45 b=55"),
            ("LATEST=100", "a=20", "a=20 LATEST=80"),
            ("a=50 b=25 c=25", "d=50", "a=25 b=13 c=12 d=50"),
            ("a=33 b=33 c=34", "d=1", "a=33 b=33 c=33 d=1"),
            ("a=10 b=20 c=70", "d=33", "a=7 b=13 c=47 d=33"),
            // zero drops the target
            ("a=90 b=10", "b=0", "a=100"),
            ("a=90 b=10", "b=0 a=100", "a=100"),
            // shares of one target are summed, tags move to entries of their own
            ("a=50#x a=50", "b=100", "b=100 a#x"),
            ("a=60#x a=20 b=20", "b=50", "a=50 b=50 a#x"),
        ];
        for (now, wish, after) in table {
            let got = set_percents(&entries(now), &wanted(wish)).expect(wish);
            assert_eq!(text(&got), after, "{now} with {wish}");
            let sum: u32 = got.iter().map(|e| e.percent).sum();
            assert_eq!(sum, 100, "{now} with {wish}");
        }
    }

    #[test]
    fn impossible_percents_are_refused() {
        let refuse = |now: &str, wish: &str| set_percents(&entries(now), &wanted(wish)).expect_err("is impossible");
        assert_eq!(refuse("a=100", "a=60 b=60"), TrafficError::Over(120));
        assert_eq!(refuse("a=100", "a=60"), TrafficError::Under(60));
        assert_eq!(refuse("a=90", "a=100"), TrafficError::Current(90));
    }

    #[test]
    fn every_spread_sums_to_100() {
        for a in 0..=100_u32 {
            for b in 0..=(100 - a) {
                let now: Vec<Entry> = [("a", a), ("b", b), ("c", 100 - a - b)]
                    .into_iter()
                    .map(|(to, percent)| Entry::share(To::parse(to), percent))
                    .collect();
                for d in [0, 1, 7, 33, 50, 99, 100] {
                    let wish = BTreeMap::from([(To::parse("d"), d)]);
                    let after = set_percents(&now, &wish).expect("possible");
                    let sum: u32 = after.iter().map(|e| e.percent).sum();
                    assert_eq!(sum, 100, "a={a} b={b} with d={d}: {}", text(&after));
                }
            }
        }
    }

    #[test]
    fn tags_are_entries_of_their_own() {
        let set = |now: &str, set: &str, remove: &str, clear: bool| {
            let set = set
                .split_whitespace()
                .map(|w| w.split_once('=').expect("tag=revision"))
                .map(|(tag, to)| (tag.to_owned(), To::parse(to)))
                .collect();
            let remove = remove.split_whitespace().map(str::to_owned).collect();
            text(&set_tags(&entries(now), &set, &remove, clear))
        };
        assert_eq!(set("a=100", "blue=a green=b", "", true), "a=100 a#blue b#green");
        assert_eq!(set("a=100 a#old", "new=b", "", true), "a=100 b#new");
        assert_eq!(set("a=100 a#old", "new=b", "", false), "a=100 a#old b#new");
        assert_eq!(set("a=100 a#t", "t=LATEST", "", false), "a=100 LATEST#t");
        assert_eq!(set("a=100 a#t b#u", "", "t none", false), "a=100 b#u");
        assert_eq!(set("a=100#t b#u", "", "", true), "a=100");
        assert_eq!(set("a=100#t", "", "t", false), "a=100");
    }

    #[test]
    fn percents_by_tag() {
        let now = entries("a=100 b#canary LATEST#next");
        let by = |tag: &str| by_tag(&now, &BTreeMap::from([(tag.to_owned(), 10)]));
        assert_eq!(by("canary"), Ok(wanted("b=10")));
        assert_eq!(by("next"), Ok(wanted("LATEST=10")));
        assert_eq!(by("none"), Err(TrafficError::Tag("none".to_owned())));
    }

    #[test]
    fn no_traffic_binds_latest_to_what_is_ready() {
        let hold = |now: &str| text(&super::hold(&entries(now), Some("r")).expect("ready"));
        assert_eq!(hold("LATEST=100"), "r=100");
        assert_eq!(hold("a=30 LATEST=70 LATEST#t"), "a=30 r=70 LATEST#t");
        assert_eq!(hold("r=30 LATEST=70"), "r=100");
        assert_eq!(hold("a=100 b#t"), "a=100 b#t");
        let none = super::hold(&entries("LATEST=100"), None);
        assert_eq!(none, Err(TrafficError::NothingReady));
    }

    #[test]
    fn documents_are_read_and_written() {
        let document = json!([
            {"latestRevision": true, "percent": 100},
            {"revisionName": "a", "tag": "t"},
        ]);
        let got = read(&document);
        assert_eq!(text(&got), "LATEST=100 a#t");
        assert_eq!(write(&got), document);
        assert_eq!(text(&read(&Value::Null)), "LATEST=100");
    }
}
