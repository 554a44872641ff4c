//! Trace context: which trace a request belongs to, as W3C and Google write it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::chance::Chance;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const CLOUD: HeaderName = HeaderName::from_static("x-cloud-trace-context");

/// Keeps the trace that the client named, or begins one; afterwards `headers` name it both ways. Answers the trace id,
/// 32 hex digits.
pub(crate) fn carry(headers: &mut HeaderMap, chance: &Chance) -> String {
    let parent = headers.get(TRACEPARENT).and_then(|value| {
        let text = value.to_str().ok()?;
        is_traceparent(text).then(|| (text[3..35].to_owned(), text[36..52].to_owned()))
    });
    let cloud = headers.get(CLOUD).and_then(|value| {
        let (trace, span) = cloud_trace(value.to_str().ok()?)?;
        Some((trace.to_ascii_lowercase(), span))
    });
    let (trace, span, keep_cloud) = match (parent, cloud) {
        (Some((trace, span)), cloud) => {
            let same = cloud.is_some_and(|(other, _)| other == trace);
            (trace, span, same)
        }
        (None, Some((trace, span))) => {
            let span = hex(span.unwrap_or_else(|| chance.next().max(1)));
            set_parent(headers, &trace, text(&span));
            (trace, text(&span).to_owned(), true)
        }
        (None, None) => {
            return begin(headers, chance);
        }
    };
    if !keep_cloud {
        let number = u64::from_str_radix(&span, 16).expect("sixteen hex digits");
        set_cloud(headers, &trace, number);
    }
    trace
}

/// A trace of our own: most requests have none.
fn begin(headers: &mut HeaderMap, chance: &Chance) -> String {
    let mut trace = String::with_capacity(32);
    trace.push_str(text(&hex(chance.next())));
    trace.push_str(text(&hex(chance.next().max(1))));
    let span = chance.next().max(1);
    set_parent(headers, &trace, text(&hex(span)));
    set_cloud(headers, &trace, span);
    trace
}

fn set_parent(headers: &mut HeaderMap, trace: &str, span: &str) {
    headers.insert(TRACEPARENT, value(&["00-", trace, "-", span, "-01"].concat()));
}

fn set_cloud(headers: &mut HeaderMap, trace: &str, span: u64) {
    headers.insert(CLOUD, value(&format!("{trace}/{span};o=1")));
}

/// Sixteen hex digits.
fn hex(number: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [b'0'; 16];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    digits
}

fn text(digits: &[u8; 16]) -> &str {
    std::str::from_utf8(digits).expect("hex digits")
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("hex digits and punctuation")
}

/// `VV-TRACE-SPAN-FF`, lower-case hex, neither id zero; a version after 00 may say more (W3C Trace Context, 3.2).
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut hex = |length: usize| {
        parts.next().is_some_and(|part| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let lengths = hex(2) && hex(32) && hex(16) && hex(2);
    let more = parts.next().is_some();
    lengths
        && !text.starts_with("ff")
        && !(more && text.starts_with("00"))
        && text[3..35].bytes().any(|b| b != b'0')
        && text[36..52].bytes().any(|b| b != b'0')
}

/// `TRACE[/SPAN][;o=OPTIONS]`, the trace 32 hex digits, the span decimal.
fn cloud_trace(text: &str) -> Option<(&str, Option<u64>)> {
    let (ids, options) = text.split_once(';').unwrap_or((text, "o=0"));
    let (trace, span) = match ids.split_once('/') {
        Some((trace, span)) => (trace, Some(span.parse().ok()?)),
        None => (ids, None),
    };
    let valid = trace.len() == 32
        && trace.bytes().all(|b| b.is_ascii_hexdigit())
        && trace.bytes().any(|b| b != b'0')
        && options.starts_with("o=");
    valid.then_some((trace, span.filter(|span| *span != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn carried(sent: &[(&'static str, &str)]) -> (String, String, String) {
        let mut headers = HeaderMap::new();
        for (name, text) in sent {
            headers.insert(*name, HeaderValue::from_str(text).expect("a value"));
        }
        let trace = carry(&mut headers, &Chance::new(1));
        let read = |name: HeaderName| headers[name].to_str().expect("text").to_owned();
        (trace, read(TRACEPARENT), read(CLOUD))
    }

    #[test]
    fn numbers_are_written_with_all_their_digits() {
        for number in [0, 1, 0x10, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(text(&hex(number)), format!("{number:016x}"));
        }
    }

    #[test]
    fn a_trace_of_our_own_is_the_same_in_both_fields() {
        let (trace, parent, cloud) = carried(&[]);
        assert!(is_traceparent(&parent) && parent[3..35] == trace, "{parent}");
        let span = u64::from_str_radix(&parent[36..52], 16).expect("hex");
        assert_eq!(cloud, format!("{trace}/{span};o=1"));
    }

    #[test]
    fn a_valid_parent_is_kept() {
        let sent = format!("00-{TRACE}-00f067aa0ba902b7-00");
        let (trace, parent, cloud) = carried(&[("traceparent", &sent)]);
        assert_eq!((trace.as_str(), parent), (TRACE, sent));
        assert_eq!(cloud, format!("{TRACE}/67667974448284343;o=1"));
    }

    #[test]
    fn a_cloud_trace_is_kept_and_becomes_a_parent() {
        let sent = format!("{TRACE}/67667974448284343;o=1");
        let (trace, parent, cloud) = carried(&[("x-cloud-trace-context", &sent)]);
        assert_eq!((trace.as_str(), cloud), (TRACE, sent));
        assert_eq!(parent, format!("00-{TRACE}-00f067aa0ba902b7-01"));
    }

    #[test]
    fn what_is_invalid_is_replaced() {
        let zeros = "0".repeat(32);
        for bad in [
            "",
            "nonsense",
            &format!("ff-{TRACE}-00f067aa0ba902b7-00"),
            &format!("00-{zeros}-00f067aa0ba902b7-00"),
            &format!("00-{TRACE}-0000000000000000-00"),
            &format!("00-{TRACE}-00f067aa0ba902b7-00-more"),
            &format!("00-{}-00f067aa0ba902b7-00", TRACE.to_uppercase()),
            &format!("00-{TRACE}-00f067aa0ba902b7"),
        ] {
            let (trace, parent, cloud) = carried(&[("traceparent", bad)]);
            assert!(is_traceparent(&parent), "{bad} became {parent}");
            assert!(parent[3..35] == trace && trace != TRACE, "{bad}");
            assert!(cloud.starts_with(&trace), "{cloud}");
        }
        let future = format!("01-{TRACE}-00f067aa0ba902b7-00-more");
        assert_eq!(carried(&[("traceparent", &future)]).1, future);
    }
}
