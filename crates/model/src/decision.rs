//! A decision on instances, told: what it was, by which rule, and what it looked at.

use crate::{RevisionName, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalingDecision {
    pub at: Timestamp,
    pub revision: RevisionName,
    /// It is the one that holds now; all others are changes of the past.
    pub stands: bool,
    pub kind: DecisionKind,
    /// What the number is of says the kind.
    pub instances: u32,
    /// Instances that there were, of that kind.
    pub alive: u32,
    /// One word.
    pub rule: &'static str,
    /// What the rule says.
    pub text: String,
    /// All that was looked at, by name (lower camel case; the unit is in the name).
    pub inputs: Vec<(&'static str, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecisionKind {
    /// How many instances there are to be.
    Scale,
    /// How many starts have to wait.
    Held,
    /// How many parked instances there are to be.
    Park,
    /// How many idle instances were stopped before their time.
    Early,
}

impl DecisionKind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Scale => "scale",
            Self::Held => "held",
            Self::Park => "park",
            Self::Early => "early",
        }
    }
}
