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
            let span = format!("{:016x}", span.unwrap_or_else(|| chance.next().max(1)));
            set_parent(headers, &trace, &span);
            (trace, span, true)
        }
        (None, None) => {
            let trace = format!("{:016x}{:016x}", chance.next(), chance.next().max(1));
            let span = format!("{:016x}", chance.next().max(1));
            set_parent(headers, &trace, &span);
            (trace, span, false)
        }
    };
    if !keep_cloud {
        let number = u64::from_str_radix(&span, 16).expect("sixteen hex digits");
        headers.insert(CLOUD, value(&format!("{trace}/{number};o=1")));
    }
    trace
}

fn set_parent(headers: &mut HeaderMap, trace: &str, span: &str) {
    headers.insert(TRACEPARENT, value(&format!("00-{trace}-{span}-01")));
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
