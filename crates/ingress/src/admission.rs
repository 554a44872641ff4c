//! Whether the caller may invoke the service, as its policy and the project's say.
//!
//! A token that is meant for us goes on to the container without its signature, so that whoever runs there can read who
//! calls and cannot use it again.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use model::{Invoker, Permission, Route};

use crate::{Invokers, Refusal};

/// Looked at in place of `Authorization` where it is there, which then is the application's own.
const SERVERLESS: HeaderName = HeaderName::from_static("x-serverless-authorization");

const PLACEHOLDER: &[u8] = b"SIGNATURE_REMOVED_BY_GOOGLE";

/// Lets the caller pass or says why not; takes what is secret out of `headers`.
pub(crate) fn check(route: &Route, invokers: &Invokers, headers: &mut HeaderMap) -> Result<(), Refusal> {
    let Invoker::Checked(access) = &route.invoker else {
        // To an open service `Authorization` is the application's own; the other never is.
        unsign(headers, &SERVERLESS);
        return Ok(());
    };
    let field = if headers.contains_key(&SERVERLESS) {
        SERVERLESS
    } else {
        header::AUTHORIZATION
    };
    let mut sent = headers.get_all(&field).iter();
    let token = sent.next().and_then(bearer).ok_or(Refusal::NoToken)?;
    // Whoever looks at the other would see another caller.
    if sent.next().is_some() {
        return Err(Refusal::BadToken(format!("there is more than one {field} field")));
    }
    let caller = (invokers.check)(token, &route.audiences).map_err(Refusal::BadToken)?;
    if !access.allows(Some(&caller), Permission::RUN_ROUTES_INVOKE, &*invokers.holds) {
        return Err(Refusal::NotInvoker(caller.email().to_owned()));
    }
    unsign(headers, &field);
    Ok(())
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Puts the placeholder where the token's signature was. What has no signature that could be told is taken out.
fn unsign(headers: &mut HeaderMap, field: &HeaderName) {
    let Some(value) = headers.remove(field) else {
        return;
    };
    let bytes = value.as_bytes();
    let Some(dot) = bytes.iter().rposition(|byte| *byte == b'.') else {
        return;
    };
    let mut without = Vec::with_capacity(dot + 1 + PLACEHOLDER.len());
    without.extend_from_slice(&bytes[..=dot]);
    without.extend_from_slice(PLACEHOLDER);
    let without =
        HeaderValue::from_maybe_shared(bytes::Bytes::from(without)).expect("a part of a field's value is one");
    headers.insert(field, without);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes() {
        for (value, token) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("bearer a.b.c", Some("a.b.c")),
            ("BEARER   a.b.c  ", Some("a.b.c")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Bearer  ", None),
            ("Bearera.b.c", None),
            ("Bearer\ta.b.c", None),
            (" Bearer a.b.c", None),
            ("Basic a.b.c", None),
            ("Bearer: a.b.c", None),
            ("Bearer a.b.c, Bearer d.e.f", Some("a.b.c, Bearer d.e.f")),
            ("", None),
        ] {
            assert_eq!(bearer(&HeaderValue::from_static(value)), token, "{value:?}");
        }
        let latin = HeaderValue::from_bytes(b"Bearer a.b.\xe9").expect("a value");
        assert_eq!(bearer(&latin), None);
    }

    #[test]
    fn no_signature_stays() {
        for (before, after) in [
            ("Bearer a.b.c", Some("Bearer a.b.SIGNATURE_REMOVED_BY_GOOGLE")),
            ("bearer  a.b.c ", Some("bearer  a.b.SIGNATURE_REMOVED_BY_GOOGLE")),
            ("a.", Some("a.SIGNATURE_REMOVED_BY_GOOGLE")),
            ("Bearer opaque", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(SERVERLESS, HeaderValue::from_static(before));
            unsign(&mut headers, &SERVERLESS);
            let found = headers.get(&SERVERLESS).map(|value| value.to_str().expect("text"));
            assert_eq!(found, after, "{before:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(SERVERLESS, HeaderValue::from_static("Bearer a.b.c"));
        headers.append(SERVERLESS, HeaderValue::from_static("Bearer d.e.f"));
        unsign(&mut headers, &SERVERLESS);
        assert_eq!(headers.get_all(&SERVERLESS).iter().count(), 1, "the other is gone");
    }
}
