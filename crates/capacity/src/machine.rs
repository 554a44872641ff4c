//! What the machine has left, and how hard its memory is pressed.

use model::Room;

/// Memory that is left to everything but instances: a twentieth of the machine's, at least 128 MiB, at most 2 GiB.
pub fn reserve(total_bytes: u64) -> u64 {
    (total_bytes / 20).clamp(128 << 20, 2 << 30)
}

/// How hard memory is pressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    #[default]
    Calm,
    /// Less than twice the reserve is left, or everything stood still for memory a twentieth of the last ten seconds.
    Tight,
    /// Less than the reserve is left, or everything stood still for memory a fifth of the last ten seconds.
    Scarce,
}

impl Pressure {
    pub fn word(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Tight => "tight",
            Self::Scarce => "scarce",
        }
    }
}

/// The share of ten seconds that is tight and scarce, percent.
const STALLED_TIGHT: u8 = 5;
const STALLED_SCARCE: u8 = 20;

/// The pressure now; `before` is what it was. A level is left only when a quarter more than what it asks for is there,
/// so that a number that wavers does not change it at every look.
pub fn pressure(room: &Room, before: Pressure) -> Pressure {
    let reserve = reserve(room.memory_total_bytes);
    let level = |bytes: u64, margin: u64, stalled: u8| {
        let most = bytes.saturating_mul(margin) / 100;
        room.memory_bytes < most || room.memory_stalled >= stalled
    };
    let margin = |level: Pressure| if before >= level { 125 } else { 100 };
    if level(reserve, margin(Pressure::Scarce), STALLED_SCARCE) {
        Pressure::Scarce
    } else if level(2 * reserve, margin(Pressure::Tight), STALLED_TIGHT) {
        Pressure::Tight
    } else {
        Pressure::Calm
    }
}

/// What must be freed for the machine to be calm again, bytes; zero when it is.
pub fn shortage(room: &Room, pressure: Pressure) -> u64 {
    let reserve = reserve(room.memory_total_bytes);
    match pressure {
        Pressure::Calm => 0,
        // Pressed by what stands still although memory seems to be left: a tenth of the reserve at a time.
        Pressure::Tight | Pressure::Scarce => (reserve * 5 / 2).saturating_sub(room.memory_bytes).max(reserve / 10),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn room(available_mib: u64) -> Room {
        Room {
            memory_bytes: available_mib << 20,
            memory_total_bytes: 4000 << 20,
            cpu_millis: 2000,
            cpus: 2,
            cpu_stalled: 0,
            memory_stalled: 0,
        }
    }

    #[test]
    fn the_reserve_is_a_twentieth_within_limits() {
        assert_eq!(reserve(4000 << 20), 200 << 20);
        assert_eq!(reserve(1 << 30), 128 << 20);
        assert_eq!(reserve(1 << 40), 2 << 30);
    }

    #[test]
    fn levels_are_left_later_than_entered() {
        let mut now = Pressure::Calm;
        for (available, expected) in [
            (1000, Pressure::Calm),
            (399, Pressure::Tight),
            (450, Pressure::Tight),
            (199, Pressure::Scarce),
            (240, Pressure::Scarce),
            (260, Pressure::Tight),
            (501, Pressure::Calm),
            (450, Pressure::Calm),
        ] {
            now = pressure(&room(available), now);
            assert_eq!(now, expected, "{available} MiB");
        }
    }

    #[test]
    fn standing_still_is_pressure_too() {
        let stalled = |percent| Room {
            memory_stalled: percent,
            ..room(3000)
        };
        assert_eq!(pressure(&stalled(4), Pressure::Calm), Pressure::Calm);
        assert_eq!(pressure(&stalled(5), Pressure::Calm), Pressure::Tight);
        assert_eq!(pressure(&stalled(20), Pressure::Calm), Pressure::Scarce);
        assert_eq!(shortage(&stalled(5), Pressure::Tight), 20 << 20);
        assert_eq!(shortage(&room(300), Pressure::Tight), 200 << 20);
        assert_eq!(shortage(&room(3000), Pressure::Calm), 0);
    }
}
