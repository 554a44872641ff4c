//! The values that flags take: lists and maps with gcloud's `^DELIMITER^` form, durations, counts.
//!
//! Words enter, values or a text that says what was expected leave. Which flag it was is known to the caller.

use std::collections::BTreeMap;

use crate::traffic::To;

/// The parts of a list value: by comma, or by what stands between two carets at the start (`^:^a,b:c`).
///
/// An empty value is a list without parts.
pub(crate) fn parts(value: &str) -> Vec<String> {
    let (delimiter, rest) = match value.strip_prefix('^').and_then(|v| v.split_once('^')) {
        Some((delimiter, rest)) if !delimiter.is_empty() => (delimiter, rest),
        Some(_) | None => (",", value),
    };
    if rest.is_empty() {
        Vec::new()
    } else {
        rest.split(delimiter).map(str::to_owned).collect()
    }
}

/// A list flag: all parts of one occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List(pub(crate) Vec<String>);

/// A map flag, in the order given; a key given twice keeps its place and its last value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pairs(pub(crate) Vec<(String, String)>);

impl From<String> for List {
    fn from(value: String) -> Self {
        Self(parts(&value))
    }
}

pub(crate) fn pairs(value: &str) -> Result<Pairs, String> {
    let mut pairs = Vec::new();
    for part in parts(value) {
        let (key, value) = part
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| format!("[{part}] is not of the form KEY=VALUE"))?;
        put(&mut pairs, key.to_owned(), value.to_owned());
    }
    Ok(Pairs(pairs))
}

fn put(pairs: &mut Vec<(String, String)>, key: String, value: String) {
    match pairs.iter_mut().find(|(known, _)| *known == key) {
        Some(pair) => pair.1 = value,
        None => pairs.push((key, value)),
    }
}

/// The occurrences of one map flag as one map.
pub(crate) fn joined(occurrences: &[Pairs]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for Pairs(pairs) in occurrences {
        for (key, value) in pairs {
            put(&mut all, key.clone(), value.clone());
        }
    }
    all
}

/// The occurrences of one list flag as one list.
pub(crate) fn listed(occurrences: &[List]) -> Vec<String> {
    occurrences
        .iter()
        .flat_map(|List(parts)| parts.iter().cloned())
        .collect()
}

/// A traffic flag: names and whole percents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Percents(Vec<(String, u32)>);

pub(crate) fn percents(value: &str) -> Result<Percents, String> {
    let Pairs(pairs) = pairs(value)?;
    pairs
        .into_iter()
        .map(|(name, percent)| {
            let number: u32 = percent
                .parse()
                .map_err(|_| format!("traffic percentage value {percent} is not an integer"))?;
            if number > 100 {
                return Err(format!("traffic percentage value {number} is not between 0 and 100"));
            }
            Ok((name, number))
        })
        .collect::<Result<_, _>>()
        .map(Percents)
}

/// The occurrences of a percent flag by name.
pub(crate) fn by_name(occurrences: &[Percents]) -> BTreeMap<String, u32> {
    occurrences
        .iter()
        .flat_map(|Percents(pairs)| pairs.iter().cloned())
        .collect()
}

/// The occurrences of a percent flag by target.
pub(crate) fn by_target(occurrences: &[Percents]) -> BTreeMap<To, u32> {
    by_name(occurrences)
        .into_iter()
        .map(|(name, percent)| (To::parse(&name), percent))
        .collect()
}

/// Seconds of a duration: `60`, `60s`, `10m`, `1h`, `1m30s`; at least one second.
pub(crate) fn duration(value: &str) -> Result<u64, String> {
    let wrong = || format!("[{value}] is no duration such as 60, 60s, 10m or 1h");
    let mut seconds: u64 = 0;
    let mut rest = value;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit: u64 = match &rest[..letters] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        seconds = number
            .checked_mul(unit)
            .and_then(|part| seconds.checked_add(part))
            .ok_or_else(wrong)?;
    }
    if seconds == 0 {
        return Err(format!("[{value}] is too short: at least 1s"));
    }
    Ok(seconds)
}

/// A number, or the word `default` for "not set".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrDefault {
    Default,
    Number(u32),
}

fn or_default(value: &str, least: u32, most: u32) -> Result<OrDefault, String> {
    if value == "default" {
        return Ok(OrDefault::Default);
    }
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(OrDefault::Number(number)),
        Ok(_) | Err(_) if most == u32::MAX => Err(format!(
            "[{value}] is not a whole number of at least {least}, or default"
        )),
        Ok(_) | Err(_) => Err(format!(
            "[{value}] is not a whole number from {least} to {most}, or default"
        )),
    }
}

/// `--min-instances`, `--max-instances`.
pub(crate) fn count(value: &str) -> Result<OrDefault, String> {
    or_default(value, 0, u32::MAX)
}

/// `--concurrency`.
pub(crate) fn concurrency(value: &str) -> Result<OrDefault, String> {
    or_default(value, 1, u32::MAX)
}

/// `--port`.
pub(crate) fn port(value: &str) -> Result<OrDefault, String> {
    or_default(value, 1, 65_535)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: &str) -> Vec<(String, String)> {
        pairs(value).expect(value).0
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn lists_and_their_delimiters() {
        let table: &[(&str, &[&str])] = &[
            ("a,b", &["a", "b"]),
            ("", &[]),
            ("a", &["a"]),
            ("^:^a,b:c", &["a,b", "c"]),
            ("^--^a--b-c", &["a", "b-c"]),
            ("^a", &["^a"]),
            ("^^a,b", &["^^a", "b"]),
            ("^;^", &[]),
        ];
        for (value, want) in table {
            assert_eq!(parts(value), *want, "{value}");
        }
    }

    #[test]
    fn maps_keep_order_and_last_value() {
        assert_eq!(
            map("DATABASE_URL=postgres://db:5432/mydb,LOG_LEVEL=info"),
            [
                pair("DATABASE_URL", "postgres://db:5432/mydb"),
                pair("LOG_LEVEL", "info")
            ]
        );
        assert_eq!(map("^@^A=1,2@B=x=y"), [pair("A", "1,2"), pair("B", "x=y")]);
        assert_eq!(map("A="), [pair("A", "")]);
        assert_eq!(map("A=1,B=2,A=3"), [pair("A", "3"), pair("B", "2")]);
        for wrong in ["A", "A=1,B", "=1"] {
            let text = pairs(wrong).expect_err(wrong);
            assert!(text.contains("KEY=VALUE"), "{text}");
        }
        let twice = [pairs("A=1,B=2").expect("a map"), pairs("A=3").expect("a map")];
        assert_eq!(joined(&twice), [pair("A", "3"), pair("B", "2")]);
    }

    #[test]
    fn durations() {
        let table = [
            ("60", Some(60)),
            ("60s", Some(60)),
            ("10m", Some(600)),
            ("1h", Some(3600)),
            ("1m30s", Some(90)),
            ("0", None),
            ("", None),
            ("-1", None),
            ("1x", None),
            ("m", None),
            ("99999999999999999999", None),
        ];
        for (value, want) in table {
            assert_eq!(duration(value).ok(), want, "{value}");
        }
    }

    #[test]
    fn percents_are_whole_and_at_most_100() {
        let ok = percents("my-api-00001=90,LATEST=10").expect("percents");
        let want = BTreeMap::from([(To::Revision("my-api-00001".to_owned()), 90), (To::Latest, 10)]);
        assert_eq!(by_target(&[ok]), want);
        assert!(percents("a=1.5").expect_err("not whole").contains("1.5"));
        assert!(percents("a=101").expect_err("too much").contains("100"));
        assert!(percents("a=-1").is_err());
    }

    #[test]
    fn numbers_or_default() {
        assert_eq!(count("0"), Ok(OrDefault::Number(0)));
        assert_eq!(count("default"), Ok(OrDefault::Default));
        assert!(count("-1").is_err());
        assert!(concurrency("0").expect_err("none").contains("at least 1"));
        assert!(port("65536").expect_err("too high").contains("65535"));
    }
}
