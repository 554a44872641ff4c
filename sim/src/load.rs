//! How many requests come, millisecond by millisecond.

use std::time::Duration;

use crate::chance::Chance;

/// What a revision is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// So many requests at the end of the first second, then none for two minutes.
    Burst { requests: u32 },
    /// Ten minutes at so many requests per second (at most 1000).
    Constant { per_second: u32 },
    /// A minute low, a minute high, a minute low again.
    Spike { low: u32, high: u32 },
    /// A day that is empty for its first eight hours, rises evenly to the peak until four in the afternoon, and falls
    /// to nothing until midnight.
    Day { peak_per_second: u32 },
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

impl Load {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Burst { requests } => format!("burst of {requests}"),
            Self::Constant { per_second } => format!("constant, {per_second}/s"),
            Self::Spike { low, high } => format!("spike, {low}/s to {high}/s"),
            Self::Day { peak_per_second } => format!("day, up to {peak_per_second}/s"),
        }
    }

    /// For how long it is played.
    pub fn length(self) -> Duration {
        Duration::from_millis(match self {
            Self::Burst { .. } => 2 * MINUTE,
            Self::Constant { .. } => 10 * MINUTE,
            Self::Spike { .. } => 3 * MINUTE,
            Self::Day { .. } => 24 * HOUR,
        })
    }

    /// How many arrive in the millisecond `at`. One at most, by chance, but for a burst.
    pub(crate) fn arrivals(self, at: u64, chance: &mut Chance) -> u32 {
        let per_million = match self {
            Self::Burst { requests } => return if at == 999 { requests } else { 0 },
            Self::Constant { per_second } => u64::from(per_second) * 1000,
            Self::Spike { low, high } => {
                let is_high = (MINUTE..2 * MINUTE).contains(&at);
                u64::from(if is_high { high } else { low }) * 1000
            }
            Self::Day { peak_per_second } => {
                let from_peak = at.abs_diff(16 * HOUR);
                u64::from(peak_per_second) * 1000 * (8 * HOUR).saturating_sub(from_peak) / (8 * HOUR)
            }
        };
        u32::from(chance.below(1_000_000) < per_million)
    }
}
