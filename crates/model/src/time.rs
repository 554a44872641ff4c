//! A moment, as a number: the clock itself is never read here.

use serde::{Deserialize, Serialize};

/// Microseconds since 1970-01-01T00:00:00Z. Microseconds, since lists of revisions are sorted by it and two
/// revisions may be made within one millisecond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        let micros = self.0.saturating_sub(earlier.0).max(0);
        std::time::Duration::from_micros(micros.unsigned_abs())
    }

    #[must_use]
    pub fn plus(self, duration: std::time::Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }
}
