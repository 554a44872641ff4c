//! The last decisions on instances, with all that each looked at: the answer to "why seven instances?".
//!
//! Kept in memory, a few for each revision, and only changes. What went into a decision is kept whole, so that the same
//! function gives the same answer again; a test does so.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use capacity::{
    Because, Decision,
    autoscaler::{self, Bounds, Means, Observation, Tick},
    governor::Held,
    kpa,
};
use model::{DecisionKind, RevisionKey, ScalingDecision, ServiceKey, Timestamp};

/// So many changes are kept of each revision.
const KEPT: usize = 24;

/// What a number of instances was decided by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inputs {
    CloudRun {
        bounds: Bounds,
        means: Means,
        seen: Observation,
    },
    Knative {
        settings: kpa::Settings,
        inputs: kpa::Inputs,
        at: Tick,
    },
}

impl Inputs {
    /// The decision that these inputs lead to: always the same.
    pub(crate) fn decide(&self) -> Decision {
        match self {
            Self::CloudRun { bounds, means, seen } => autoscaler::decide(bounds, *means, seen),
            Self::Knative { settings, inputs, at } => kpa::decide(settings, inputs, *at).1,
        }
    }

    fn named(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::CloudRun { bounds, means, seen } => {
                let mut named = vec![
                    ("inFlight", u64::from(seen.in_flight)),
                    ("queued", seen.queued.into()),
                    ("served", seen.served.into()),
                    ("ready", seen.ready.into()),
                    ("unready", seen.unready.into()),
                    ("starting", seen.starting.into()),
                    ("busy", seen.busy.into()),
                    ("expired", seen.expired.into()),
                    ("cpuMillis", seen.cpu_millis.into()),
                    ("meanRequestsMilli", means.requests_milli),
                    ("meanCpuMillis", means.cpu_millis),
                    ("asked", means.asked.into()),
                    ("concurrency", bounds.concurrency.into()),
                    ("cpuLimitMillis", bounds.cpu_millis.into()),
                    ("min", bounds.min.into()),
                    ("max", bounds.max.into()),
                ];
                named.extend(bounds.manual.map(|manual| ("manual", u64::from(manual))));
                named
            }
            Self::Knative { settings, inputs, at } => {
                let state = &inputs.state;
                let mut named = vec![
                    ("stableMilli", inputs.stable_milli),
                    ("panicMilli", inputs.panic_milli),
                    ("ready", inputs.ready.into()),
                    ("reachable", inputs.reachable.into()),
                    ("delayed", inputs.delayed.into()),
                    ("targetCenti", settings.total_centi.into()),
                    ("utilization", settings.utilization.into()),
                    ("windowSeconds", settings.window.as_secs()),
                    ("panicThresholdCenti", settings.panic_threshold_centi.into()),
                    ("mostInPanic", state.most_in_panic.into()),
                    ("started", state.started.into()),
                    ("min", settings.min.into()),
                    ("max", settings.max.into()),
                    ("tick", at.0),
                ];
                let since = [
                    ("panicSince", state.panic_since),
                    ("activeSince", state.active_since),
                    ("inactiveSince", state.inactive_since),
                    ("proxiedSince", state.proxied_since),
                ];
                named.extend(since.iter().filter_map(|(name, tick)| Some((*name, (*tick)?.0))));
                named
            }
        }
    }
}

/// One decision, or what kept it from being carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    Scale {
        inputs: Inputs,
        decision: Decision,
        /// Instances that were there or on their way.
        alive: u32,
    },
    /// Starts that the governor holds back.
    Held { count: u32, why: Held },
    /// Starts that wait after failures.
    Failing { count: u32, why: Arc<str> },
    /// How many parked ones there are to be now.
    Park {
        keep: u32,
        parked: u32,
        burst: u32,
        available: u64,
    },
    /// Stopped before their retention is over, to free memory.
    Early { count: u32, shortage: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) at: Timestamp,
    pub(crate) made: Made,
}

#[derive(Debug, Default)]
struct Book {
    /// The decision that stands.
    now: Option<Recorded>,
    /// Changes, oldest first.
    changes: VecDeque<Recorded>,
}

/// What was decided lately. A handle: all clones read and write the same.
#[derive(Debug, Clone, Default)]
pub struct Decisions(Arc<Mutex<BTreeMap<RevisionKey, Book>>>);

impl Decisions {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RevisionKey, Book>> {
        self.0.lock().expect("no panic while held")
    }

    /// Notes decisions; of numbers of instances only those that differ from the one before, or lead to a start or a
    /// stop (`acts`).
    pub(crate) fn note(&self, made: Vec<(RevisionKey, Made, bool)>, at: Timestamp) {
        if made.is_empty() {
            return;
        }
        let mut books = self.lock();
        for (revision, made, acts) in made {
            let book = books.entry(revision).or_default();
            let is_scale = matches!(made, Made::Scale { .. });
            let recorded = Recorded { at, made };
            if !is_scale || acts || book.is_news(&recorded.made) {
                if book.changes.len() == KEPT {
                    book.changes.pop_front();
                }
                book.changes.push_back(recorded.clone());
            }
            if is_scale {
                book.now = Some(recorded);
            }
        }
    }

    pub(crate) fn retain(&self, keep: impl Fn(&RevisionKey) -> bool) {
        self.lock().retain(|revision, _| keep(revision));
    }

    #[cfg(test)]
    pub(crate) fn of(&self, revision: &RevisionKey) -> Vec<Recorded> {
        let books = self.lock();
        books
            .get(revision)
            .map(|book| book.changes.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// What was decided for the revisions of a service, newest first; of each the decision that stands comes first.
    pub fn of_service(&self, service: &ServiceKey) -> Vec<ScalingDecision> {
        let books = self.lock();
        let own = books.iter().filter(|(revision, _)| revision.service == *service);
        let mut told = Vec::new();
        for (revision, book) in own {
            let changes = book.changes.iter().rev().map(|recorded| (recorded, false));
            let now = book.now.iter().map(|recorded| (recorded, true));
            told.extend(
                now.chain(changes)
                    .map(|(recorded, stands)| recorded.told(revision, stands)),
            );
        }
        told.sort_by(|one, other| other.at.cmp(&one.at).then(other.stands.cmp(&one.stands)));
        told
    }
}

impl Book {
    /// Another number, or the maximum is reached and that was not the last news.
    fn is_news(&self, made: &Made) -> bool {
        let decided = |made: &Made| match made {
            Made::Scale { decision, .. } => Some(*decision),
            Made::Held { .. } | Made::Failing { .. } | Made::Park { .. } | Made::Early { .. } => None,
        };
        let number = |made: &Made| decided(made).map(|decision| decision.instances);
        let at_maximum = |made: &Made| decided(made).is_some_and(|decision| decision.because == Because::Ceiling);
        if self.now.as_ref().is_none_or(|now| number(&now.made) != number(made)) {
            return true;
        }
        let last = self.changes.iter().rev().find(|of| decided(&of.made).is_some());
        at_maximum(made) && !last.is_some_and(|last| at_maximum(&last.made))
    }
}

impl Recorded {
    fn told(&self, revision: &RevisionKey, stands: bool) -> ScalingDecision {
        let mib = |bytes: u64| bytes >> 20;
        let (kind, instances, alive, rule, text, inputs) = match &self.made {
            Made::Scale {
                inputs,
                decision,
                alive,
            } => (
                DecisionKind::Scale,
                decision.instances,
                *alive,
                decision.because.word(),
                decision.because.rule().to_owned(),
                inputs.named(),
            ),
            Made::Held { count, why } => {
                let inputs = match why {
                    Held::Memory {
                        available,
                        reserve,
                        promised,
                        need,
                    } => vec![
                        ("availableMib", mib(*available)),
                        ("reserveMib", mib(*reserve)),
                        ("promisedMib", mib(*promised)),
                        ("needMib", mib(*need)),
                    ],
                    Held::Pressure(_) => vec![],
                    Held::Starts { under_way, limit } => {
                        vec![("underWay", (*under_way).into()), ("limit", (*limit).into())]
                    }
                };
                (DecisionKind::Held, *count, 0, why.word(), why.to_string(), inputs)
            }
            Made::Failing { count, why } => (
                DecisionKind::Held,
                *count,
                0,
                "failing",
                why.lines().next().unwrap_or_default().to_owned(),
                vec![],
            ),
            Made::Park {
                keep,
                parked,
                burst,
                available,
            } => (
                DecisionKind::Park,
                *keep,
                *parked,
                "parking",
                "parked instances kept for the next calls".to_owned(),
                vec![("burst", u64::from(*burst)), ("availableMib", mib(*available))],
            ),
            Made::Early { count, shortage } => (
                DecisionKind::Early,
                *count,
                0,
                "pressure",
                "idle instances stopped early, memory is short".to_owned(),
                vec![("shortageMib", mib(*shortage))],
            ),
        };
        ScalingDecision {
            at: self.at,
            revision: revision.name.clone(),
            stands,
            kind,
            instances,
            alive,
            rule,
            text,
            inputs,
        }
    }
}
