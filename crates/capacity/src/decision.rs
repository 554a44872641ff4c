//! A number of instances, and the rule that said so.

/// How many instances there should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub instances: u32,
    pub because: Because,
}

/// The rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The minimum asked for.
    Floor,
    /// Manual scaling: a fixed number.
    Manual,
    /// The requests that are here now.
    Demand,
    /// The mean concurrency of the last minute.
    Average,
    /// The mean CPU utilization of the last minute.
    Cpu,
    /// More are wanted than the maximum allows.
    Ceiling,
    /// Instances that have been idle for less than the retention stay.
    Holding,
    /// Nothing is asked and nothing is held.
    Idle,
    /// Knative: the mean of the stable window.
    Stable,
    /// Knative: the mean of the panic window, or the most that was wanted during this panic.
    Panic,
    /// Knative: the initial scale, not reached yet.
    Initial,
    /// Knative: the least to go from zero to.
    Activation,
    /// Knative: a higher number within the scale-down delay.
    Delay,
    /// Knative: the last instance stays until the window, the grace period and the retention are over.
    Grace,
    /// Neither traffic nor a tag leads there.
    Unreachable,
}

impl Because {
    /// The number is meant exactly: what is above it goes, idle for long or not.
    pub fn is_exact(self) -> bool {
        match self {
            Self::Manual
            | Self::Ceiling
            | Self::Stable
            | Self::Panic
            | Self::Initial
            | Self::Activation
            | Self::Delay
            | Self::Grace => true,
            Self::Floor | Self::Demand | Self::Average | Self::Cpu | Self::Holding | Self::Idle | Self::Unreachable => {
                false
            }
        }
    }

    /// One word, for machines and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Manual => "manual",
            Self::Demand => "demand",
            Self::Average => "average",
            Self::Cpu => "cpu",
            Self::Ceiling => "ceiling",
            Self::Holding => "holding",
            Self::Idle => "idle",
            Self::Stable => "stable",
            Self::Panic => "panic",
            Self::Initial => "initial",
            Self::Activation => "activation",
            Self::Delay => "delay",
            Self::Grace => "grace",
            Self::Unreachable => "unreachable",
        }
    }

    /// What the rule says, for people.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Floor => "the minimum number of instances",
            Self::Manual => "manual scaling: exactly so many",
            Self::Demand => "requests in flight and queued, divided by the concurrency",
            Self::Average => "mean requests of the last minute, at 60 % of the concurrency",
            Self::Cpu => "mean CPU of the last minute, at 60 % of the limit",
            Self::Ceiling => "the maximum number of instances; more are wanted",
            Self::Holding => "instances idle for less than the idle retention are kept",
            Self::Idle => "no request, and no instance left to keep",
            Self::Stable => "Knative: mean of the stable window, divided by the target",
            Self::Panic => "Knative: panic, the most wanted in it",
            Self::Initial => "Knative: the initial scale, until it was reached once",
            Self::Activation => "Knative: the activation scale, the least above zero",
            Self::Delay => "Knative: the most wanted within the scale-down delay",
            Self::Grace => "Knative: the last instance, until window, grace period and retention are over",
            Self::Unreachable => "neither traffic nor a tag leads to the revision",
        }
    }
}
