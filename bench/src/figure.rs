//! What is measured, and what is aimed at.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    RequestsPerSecond,
    P99With512,
    ColdStart,
    DeployCached,
    TrafficChange,
    Describe,
    IdleMemory,
}

/// A measured value with what it was made of.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) value: f64,
    /// For people: the numbers behind it, line by line.
    pub(crate) notes: Vec<String>,
    /// Every round, by name.
    pub(crate) samples: Vec<(String, Vec<f64>)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    pub(crate) fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::AtLeast(bound) => format!(">={bound}"),
            Self::AtMost(bound) => format!("<={bound}"),
        };
        f.pad(&text)
    }
}

impl Figure {
    pub(crate) const ALL: [Self; 7] = [
        Self::RequestsPerSecond,
        Self::P99With512,
        Self::ColdStart,
        Self::DeployCached,
        Self::TrafficChange,
        Self::Describe,
        Self::IdleMemory,
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|figure| figure.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests-per-second",
            Self::P99With512 => "p99-512",
            Self::ColdStart => "cold-start",
            Self::DeployCached => "deploy-cached",
            Self::TrafficChange => "traffic-change",
            Self::Describe => "cli-describe",
            Self::IdleMemory => "idle-memory",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "HTTP/1.1, 64 connections, as a ratio to nginx before the same container",
            Self::P99With512 => "p99 at 512 connections, as a ratio to nginx before the same container",
            Self::ColdStart => {
                "ms from zero to the first byte through the ingress, beyond a bare start of the program (p50)"
            }
            Self::DeployCached => "ms from a changed service to Ready, its image on the machine",
            Self::TrafficChange => "ms from sending a changed traffic block to the first request that follows it",
            Self::Describe => "ms of our client describing a service, from start to end",
            Self::IdleMemory => "MiB resident in an idle Homerun, its launcher included",
        }
    }

    pub(crate) fn goal(self) -> Goal {
        match self {
            Self::RequestsPerSecond => Goal::AtLeast(1.0),
            Self::P99With512 => Goal::AtMost(1.0),
            Self::ColdStart => Goal::AtMost(1.5),
            Self::DeployCached => Goal::AtMost(150.0),
            Self::TrafficChange => Goal::AtMost(20.0),
            Self::Describe => Goal::AtMost(20.0),
            Self::IdleMemory => Goal::AtMost(40.0),
        }
    }

    /// `NAME <value> goal <op><value> ok|short`
    pub(crate) fn line(self, measured: &Measured) -> String {
        let verdict = if self.goal().is_met_by(measured.value) {
            "ok"
        } else {
            "short"
        };
        format!("{} {:.2} goal {} {verdict}", self.name(), measured.value, self.goal())
    }
}

/// The value that `percent` of a hundred do not exceed.
///
/// # Panics
/// When there is none.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(value: f64) -> Measured {
        Measured {
            value,
            notes: Vec::new(),
            samples: Vec::new(),
        }
    }

    #[test]
    fn lines() {
        let line = |value| Figure::RequestsPerSecond.line(&measured(value));
        assert_eq!(line(1.0), "requests-per-second 1.00 goal >=1 ok");
        assert_eq!(line(0.95), "requests-per-second 0.95 goal >=1 short");
        let line = |value| Figure::ColdStart.line(&measured(value));
        assert_eq!(line(1.5), "cold-start 1.50 goal <=1.5 ok");
        assert_eq!(line(23.0), "cold-start 23.00 goal <=1.5 short");
    }

    #[test]
    fn names_are_found() {
        for figure in Figure::ALL {
            assert_eq!(Figure::named(figure.name()), Some(figure));
        }
        assert_eq!(Figure::named("speed"), None);
    }

    #[test]
    fn percentiles() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(median(&values).to_bits(), 3.0_f64.to_bits());
        assert_eq!(percentile(&values, 99).to_bits(), 5.0_f64.to_bits());
        assert_eq!(median(&[7.0]).to_bits(), 7.0_f64.to_bits());
    }
}
