//! The looks of the stable window, one bucket a second.

use std::{collections::VecDeque, time::Duration};

use model::KpaMetric;

use super::Settings;
use crate::autoscaler::{Observation, Tick};

#[derive(Debug, Default)]
pub(super) struct Window {
    buckets: VecDeque<Bucket>,
    /// The second of the first look since nothing had been seen for a whole window.
    first: u64,
}

#[derive(Debug)]
struct Bucket {
    second: u64,
    /// Concurrency: a sum over looks. Requests per second: how many ended.
    sum: u64,
    looks: u64,
    metric: KpaMetric,
}

impl Bucket {
    fn milli(&self) -> u64 {
        match self.metric {
            KpaMetric::Concurrency => self.sum * 1000 / self.looks,
            KpaMetric::Rps => self.sum * 1000,
        }
    }
}

impl Window {
    pub(super) fn look(&mut self, settings: &Settings, seen: &Observation, now: Tick) {
        let second = now.0 / 1000;
        let oldest = (second + 1).saturating_sub(settings.window.as_secs());
        while self.buckets.front().is_some_and(|bucket| bucket.second < oldest) {
            self.buckets.pop_front();
        }
        let value = match settings.metric {
            KpaMetric::Concurrency => u64::from(seen.in_flight) + u64::from(seen.queued),
            KpaMetric::Rps => seen.served.into(),
        };
        if self.buckets.is_empty() {
            self.first = second;
        }
        match self.buckets.back_mut() {
            Some(last) if last.second >= second => {
                last.sum += value;
                last.looks += 1;
            }
            Some(_) | None => self.buckets.push_back(Bucket {
                second,
                sum: value,
                looks: 1,
                metric: settings.metric,
            }),
        }
    }

    /// Over the seconds of `window` that have been since the first look; those without one count as zero.
    pub(super) fn mean(&self, window: Duration, now: Tick) -> u64 {
        let second = now.0 / 1000;
        let from = (second + 1).saturating_sub(window.as_secs().max(1)).max(self.first);
        let Some(last) = self.buckets.back().map(|bucket| bucket.second) else {
            return 0;
        };
        if last < from {
            return 0;
        }
        let sum: u64 = self
            .buckets
            .iter()
            .filter(|bucket| bucket.second >= from)
            .map(Bucket::milli)
            .sum();
        sum / (last + 1 - from)
    }
}
