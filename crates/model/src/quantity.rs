//! CPU and memory amounts in Kubernetes' notation, kept as the caller typed them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantityError {
    pub text: String,
    pub expected: &'static str,
}

impl fmt::Display for QuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.text.chars().take(40).collect();
        write!(f, "\"{text}\" is not {}", self.expected)
    }
}

impl std::error::Error for QuantityError {}

/// An amount of CPU: `1`, `2`, `0.5`, `500m`. Compared by value, printed as typed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cpu {
    text: Box<str>,
    millis: u32,
}

/// An amount of memory: `512Mi`, `1Gi`, `1G`, `536870912`. Compared by value, printed as typed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Memory {
    text: Box<str>,
    bytes: u64,
}

impl Cpu {
    const EXPECTED: &str = "an amount of CPU: a number of CPUs such as 1 or 0.5, or of thousandths such as 500m";

    /// Thousandths of one CPU.
    pub fn millis(&self) -> u32 {
        self.millis
    }

    pub fn from_millis(millis: u32) -> Self {
        let text = if millis.is_multiple_of(1000) {
            (millis / 1000).to_string()
        } else {
            format!("{millis}m")
        };
        Self {
            text: text.into(),
            millis,
        }
    }

    /// # Errors
    /// When the text is no decimal number with at most three places, or larger than 4 million CPUs.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            text: text.to_owned(),
            expected: Self::EXPECTED,
        };
        let millis = match text.strip_suffix('m') {
            Some(thousandths) => decimal(thousandths, 0),
            None => decimal(text, 3),
        }
        .and_then(|millis| u32::try_from(millis).ok())
        .ok_or_else(error)?;
        Ok(Self {
            text: text.into(),
            millis,
        })
    }
}

impl Memory {
    const EXPECTED: &str = "an amount of memory: a number of bytes, or one with a unit such as 512Mi or 2Gi";

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn mebibytes(mebibytes: u32) -> Self {
        Self {
            text: format!("{mebibytes}Mi").into(),
            bytes: u64::from(mebibytes) << 20,
        }
    }

    /// # Errors
    /// When the number or the unit cannot be read, or the amount passes 2^63 bytes.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        const UNITS: &[(&str, u64)] = &[
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("Ti", 1 << 40),
            ("k", 1_000),
            ("K", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
            ("", 1),
        ];
        let error = || QuantityError {
            text: text.to_owned(),
            expected: Self::EXPECTED,
        };
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .ok_or_else(error)?;
        let bytes = decimal(number, 3)
            .and_then(|thousandths| thousandths.checked_mul(unit))
            .filter(|thousandths| thousandths.is_multiple_of(1000))
            .map(|thousandths| thousandths / 1000)
            .ok_or_else(error)?;
        Ok(Self {
            text: text.into(),
            bytes,
        })
    }
}

/// Reads an unsigned decimal with at most `places` digits after the point, as a whole number of 10^-places.
fn decimal(text: &str, places: u32) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || text.ends_with('.') {
        return None;
    }
    let used = u32::try_from(fraction.len()).ok()?;
    if used > places {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    whole
        .checked_mul(10_u64.pow(places))?
        .checked_add(part * 10_u64.pow(places - used))
}

macro_rules! amount {
    ($type:ident, $field:ident) => {
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.$field == other.$field
            }
        }
        impl Eq for $type {}
        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $type {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.$field.cmp(&other.$field)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }
        impl FromStr for $type {
            type Err = QuantityError;
            fn from_str(text: &str) -> Result<Self, QuantityError> {
                Self::parse(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = QuantityError;
            fn try_from(text: String) -> Result<Self, QuantityError> {
                Self::parse(&text)
            }
        }
        impl From<$type> for String {
            fn from(amount: $type) -> Self {
                amount.text.into()
            }
        }
    };
}
amount!(Cpu, millis);
amount!(Memory, bytes);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cpu() {
        for (text, millis) in [
            ("1", 1000),
            ("0.5", 500),
            ("500m", 500),
            ("0.08", 80),
            ("8", 8000),
            ("1.001", 1001),
        ] {
            assert_eq!(Cpu::parse(text).expect(text).millis(), millis, "{text}");
        }
        for text in [
            "",
            "abc",
            "-1",
            "1.",
            ".5",
            "1.0005",
            "0.5m",
            "1e3",
            "99999999999999999999",
            "1 ",
        ] {
            assert!(Cpu::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory() {
        for (text, bytes) in [
            ("512Mi", 512 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("1G", 1_000_000_000),
            ("512", 512),
            ("64Ki", 65_536),
        ] {
            assert_eq!(Memory::parse(text).expect(text).bytes(), bytes, "{text}");
        }
        for text in [
            "",
            "1X",
            "Mi",
            "-1Mi",
            "1.5",
            "1.1Ki",
            "99999999999Ti",
            "512MiB",
            "1 Gi",
        ] {
            assert!(Memory::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn prints_as_typed(text in "[0-9]{1,6}(\\.[0-9]{1,3})?(m|Mi|Gi)?") {
            if let Ok(cpu) = Cpu::parse(&text) {
                prop_assert_eq!(cpu.to_string(), text.clone());
            }
            if let Ok(memory) = Memory::parse(&text) {
                prop_assert_eq!(memory.to_string(), text);
            }
        }

        #[test]
        fn millis_round_trip(millis in 0_u32..4_000_000) {
            let printed = Cpu::from_millis(millis).to_string();
            prop_assert_eq!(Cpu::parse(&printed).expect("printed by us").millis(), millis);
        }
    }
}
