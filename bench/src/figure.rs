//! What is measured, and what is aimed at.

use std::fmt;

use anyhow::Result;

/// One number with its goal. Goals and floors are those that were set when the house was designed.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) goal: Goal,
    pub(crate) measure: fn() -> Result<Measured>,
}

/// A measured value with what it was made of.
#[derive(Debug, Clone)]
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
    /// `NAME <value> goal <op><value> ok|short`
    pub(crate) fn line(&self, measured: &Measured) -> String {
        let verdict = if self.goal.is_met_by(measured.value) {
            "ok"
        } else {
            "short"
        };
        format!("{} {:.2} goal {} {verdict}", self.name, measured.value, self.goal)
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
        let figure = |goal| Figure {
            name: "speed",
            about: "",
            goal,
            measure: || Ok(measured(0.0)),
        };
        let line = |goal, value| figure(goal).line(&measured(value));
        assert_eq!(line(Goal::AtLeast(1.0), 1.0), "speed 1.00 goal >=1 ok");
        assert_eq!(line(Goal::AtLeast(1.0), 0.95), "speed 0.95 goal >=1 short");
        assert_eq!(line(Goal::AtMost(1.5), 1.5), "speed 1.50 goal <=1.5 ok");
        assert_eq!(line(Goal::AtMost(1.5), 23.0), "speed 23.00 goal <=1.5 short");
    }

    #[test]
    fn percentiles() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(median(&values).to_bits(), 3.0_f64.to_bits());
        assert_eq!(percentile(&values, 99).to_bits(), 5.0_f64.to_bits());
        assert_eq!(median(&[7.0]).to_bits(), 7.0_f64.to_bits());
    }
}
