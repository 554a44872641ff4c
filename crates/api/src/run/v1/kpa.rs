//! Knative's own scaling: annotations under `autoscaling.knative.dev/` other than the bounds.
//!
//! Each key is taken in both of Knative's spellings (`panic-window-percentage`, `panicWindowPercentage`) and shown in
//! the first. The limits are those of Knative's validation.

use std::collections::BTreeMap;

use model::{Kpa, KpaMetric};

use crate::document::{Object, short};

const CLASS: &str = "kpa.autoscaling.knative.dev";

/// The keys, in their first spelling.
const KEYS: [&str; 12] = [
    "class",
    "metric",
    "target",
    "target-utilization-percentage",
    "window",
    "panic-window-percentage",
    "panic-threshold-percentage",
    "target-burst-capacity",
    "initial-scale",
    "activation-scale",
    "scale-down-delay",
    "scale-to-zero-pod-retention-period",
];

/// What was given, by key: how the key was spelled, and its value.
#[derive(Debug, Default)]
pub(crate) struct Given(BTreeMap<&'static str, (String, String)>);

impl Given {
    /// Takes the annotation when it is one of these. One given in both spellings must say the same.
    pub(crate) fn take(&mut self, metadata: &Object<'_>, name: &str, value: &str) -> bool {
        let plain = kebab(name);
        let Some(key) = KEYS.into_iter().find(|key| *key == plain) else {
            return false;
        };
        match self.0.get(key) {
            Some((spelled, other)) if other != value => metadata.say(
                &field(name),
                format!("differs from {spelled}, which is another spelling of it"),
            ),
            Some(_) => {}
            None => {
                self.0.insert(key, (name.to_owned(), value.to_owned()));
            }
        }
        true
    }

    /// Reads the values. None when no annotation was given.
    pub(crate) fn read(self, metadata: &Object<'_>) -> Option<Kpa> {
        if self.0.is_empty() {
            return None;
        }
        let mut kpa = Kpa {
            metric: KpaMetric::Concurrency,
            target_centi: None,
            target_utilization: None,
            window: None,
            panic_window_centi: None,
            panic_threshold_centi: None,
            target_burst_capacity: None,
            initial_scale: None,
            activation_scale: None,
            scale_down_delay: None,
            retention: None,
        };
        for (key, (spelled, value)) in &self.0 {
            if let Err(expected) = set(&mut kpa, key, value) {
                metadata.say(&field(spelled), format!("\"{}\" {expected}", short(value)));
            }
        }
        Some(kpa)
    }
}

fn field(name: &str) -> String {
    format!("annotations[autoscaling.knative.dev/{name}]")
}

/// `panicWindowPercentage` as `panic-window-percentage`.
fn kebab(name: &str) -> String {
    let mut plain = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            plain.push('-');
        }
        plain.push(c.to_ascii_lowercase());
    }
    plain
}

/// Sets what `key` says, or tells what was expected.
fn set(kpa: &mut Kpa, key: &str, value: &str) -> Result<(), String> {
    match key {
        "class" if value == CLASS => {}
        "class" => return Err(format!("is not served by this Homerun, only {CLASS} is")),
        "metric" => {
            kpa.metric = match value {
                "concurrency" => KpaMetric::Concurrency,
                "rps" => KpaMetric::Rps,
                _ => return Err("is neither concurrency nor rps".to_owned()),
            };
        }
        "target" => kpa.target_centi = Some(hundredths(value, 1, u32::MAX)?),
        "target-utilization-percentage" => {
            let whole = whole(value, 1, 100)?;
            kpa.target_utilization = Some(u8::try_from(whole).expect("at most 100"));
        }
        "window" => kpa.window = Some(seconds(value, 6)?),
        "panic-window-percentage" => kpa.panic_window_centi = Some(hundredths(value, 100, 10_000)?),
        "panic-threshold-percentage" => kpa.panic_threshold_centi = Some(hundredths(value, 11_000, 100_000)?),
        "target-burst-capacity" => {
            let capacity = value.parse().ok().filter(|capacity: &i64| *capacity >= -1);
            kpa.target_burst_capacity = Some(capacity.ok_or("is out of range: a whole number from 0, or -1")?);
        }
        "initial-scale" => kpa.initial_scale = Some(whole(value, 1, 1000)?),
        "activation-scale" => kpa.activation_scale = Some(whole(value, 2, 1000)?),
        "scale-down-delay" => kpa.scale_down_delay = Some(seconds(value, 0)?),
        "scale-to-zero-pod-retention-period" => kpa.retention = Some(seconds(value, 0)?),
        other => unreachable!("{other} is none of the keys"),
    }
    Ok(())
}

fn whole(value: &str, least: u32, most: u32) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("is out of range: a whole number from {least} to {most}"))
}

/// A decimal number with at most two places, in hundredths.
fn hundredths(value: &str, least: u32, most: u32) -> Result<u32, String> {
    let read = || {
        let (whole, fraction) = value.split_once('.').unwrap_or((value, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 2 {
            return None;
        }
        let whole: u32 = whole.parse().ok()?;
        let places: u32 = format!("{fraction:0<2}").parse().ok()?;
        whole.checked_mul(100)?.checked_add(places)
    };
    read().filter(|number| (least..=most).contains(number)).ok_or_else(|| {
        let bounds = if most == u32::MAX {
            format!("at least {}", shown(least))
        } else {
            format!("from {} to {}", shown(least), shown(most))
        };
        format!("is out of range: a number {bounds}, with at most two places")
    })
}

/// Hundredths as a decimal number.
fn shown(hundredths: u32) -> String {
    match (hundredths / 100, hundredths % 100) {
        (whole, 0) => whole.to_string(),
        (whole, places) if places % 10 == 0 => format!("{whole}.{}", places / 10),
        (whole, places) => format!("{whole}.{places:02}"),
    }
}

/// Go's text of a duration in whole seconds, at most an hour.
fn seconds(value: &str, least: u32) -> Result<u32, String> {
    let read = || {
        if value == "0" {
            return Some(0);
        }
        let mut total: u32 = 0;
        let mut rest = value;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let number: u32 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let (unit, letter) = [(3600, 'h'), (60, 'm'), (1, 's')]
                .into_iter()
                .find(|(_, letter)| rest.starts_with(*letter))?;
            total = number.checked_mul(unit)?.checked_add(total)?;
            rest = &rest[letter.len_utf8()..];
        }
        (!value.is_empty()).then_some(total)
    };
    read()
        .filter(|seconds| (least..=3600).contains(seconds))
        .ok_or_else(|| format!("is out of range: whole seconds from {least}s to 1h, such as 90s or 1m30s"))
}

/// The annotations that say what is set, without their namespace.
pub(crate) fn annotations(kpa: &Kpa) -> Vec<(&'static str, String)> {
    let time = |seconds: Option<u32>| seconds.map(|seconds| format!("{seconds}s"));
    let count = |count: Option<u32>| count.map(|count| count.to_string());
    [
        ("class", Some(CLASS.to_owned())),
        (
            "metric",
            match kpa.metric {
                KpaMetric::Concurrency => None,
                KpaMetric::Rps => Some("rps".to_owned()),
            },
        ),
        ("target", kpa.target_centi.map(shown)),
        (
            "target-utilization-percentage",
            kpa.target_utilization.map(|percent| percent.to_string()),
        ),
        ("window", time(kpa.window)),
        ("panic-window-percentage", kpa.panic_window_centi.map(shown)),
        ("panic-threshold-percentage", kpa.panic_threshold_centi.map(shown)),
        (
            "target-burst-capacity",
            kpa.target_burst_capacity.map(|capacity| capacity.to_string()),
        ),
        ("initial-scale", count(kpa.initial_scale)),
        ("activation-scale", count(kpa.activation_scale)),
        ("scale-down-delay", time(kpa.scale_down_delay)),
        ("scale-to-zero-pod-retention-period", time(kpa.retention)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(hundredths("10", 1, u32::MAX), Ok(1000));
        assert_eq!(hundredths("0.01", 1, u32::MAX), Ok(1));
        assert_eq!(hundredths("10.5", 1, u32::MAX), Ok(1050));
        for wrong in ["", "0", "0.001", "-1", ".5", "1.", "1e3", "99999999999", "+1"] {
            assert!(hundredths(wrong, 1, u32::MAX).is_err(), "{wrong}");
        }
        assert_eq!(
            [shown(1000), shown(1050), shown(1), shown(1234)],
            ["10", "10.5", "0.01", "12.34"]
        );
        assert_eq!(seconds("1m30s", 6), Ok(90));
        assert_eq!(seconds("1h", 6), Ok(3600));
        assert_eq!(seconds("0", 0), Ok(0));
        for wrong in ["", "5s", "1h1s", "90", "1.5m", "500ms", "s", "-6s", "1ü"] {
            assert!(seconds(wrong, 6).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spellings() {
        assert_eq!(kebab("panicWindowPercentage"), "panic-window-percentage");
        assert_eq!(
            kebab("scaleToZeroPodRetentionPeriod"),
            "scale-to-zero-pod-retention-period"
        );
        assert_eq!(kebab("initial-scale"), "initial-scale");
    }
}
