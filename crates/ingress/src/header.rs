//! Header fields on their way: what belongs to one connection is taken off, what the container contract promises is
//! put on.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, header, request, uri};
use hyper::body::Incoming;
use model::Protocol;

use crate::{Refusal, arrival::Arrival};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Fields that speak of one connection only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
];

/// The host that the client asked for, as it wrote it.
///
/// # Errors
/// `Malformed` when there is none, there are two, or an HTTP/2 request names two different ones.
pub(crate) fn host(request: &Request<Incoming>) -> Result<HeaderValue, Refusal> {
    let mut given = request.headers().get_all(header::HOST).iter();
    let field = given.next();
    if given.next().is_some() {
        return Err(Refusal::Malformed("Bad request: more than one Host field."));
    }
    let Some(authority) = request.uri().authority() else {
        return field.cloned().ok_or(Refusal::Malformed("Bad request: no Host field."));
    };
    let text = authority.as_str();
    if text.contains('@') {
        return Err(Refusal::Malformed("Bad request: user name in the host."));
    }
    // An absolute-form target of HTTP/1 overrides the field (RFC 9112, 3.2.2); in HTTP/2 they must agree (RFC 9113, 8.3.1).
    if request.version() == Version::HTTP_2
        && field.is_some_and(|field| !field.as_bytes().eq_ignore_ascii_case(text.as_bytes()))
    {
        return Err(Refusal::Malformed(
            "Bad request: the Host field differs from :authority.",
        ));
    }
    HeaderValue::from_str(text).map_err(|_| Refusal::Malformed("Bad request: malformed host."))
}

/// What the container is spoken to with: what it asked for, and HTTP/2 for a gRPC request in any case, which has no
/// meaning without (Cloud Run, "Use HTTP/2").
pub(crate) fn protocol(parts: &request::Parts, of_revision: Protocol) -> Protocol {
    if of_revision == Protocol::Http1 && parts.version == Version::HTTP_2 && is_grpc(&parts.headers) {
        return Protocol::H2c;
    }
    of_revision
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Whether the client sends its body only when it is told to.
pub(crate) fn waits_to_be_asked(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Makes the client's request the container's: its own fields off, the contract's on, the target in the form that the
/// protocol wants. Trace context is apart, in `trace`.
pub(crate) fn prepare(
    parts: &mut request::Parts,
    host: HeaderValue,
    arrival: &Arrival,
    protocol: Protocol,
) -> Result<(), Refusal> {
    // What the server's side noted for itself.
    parts.extensions.clear();
    let headers = &mut parts.headers;
    let trailers = wants_trailers(headers);
    strip_hop_by_hop(headers);
    headers.remove(header::UPGRADE);
    headers.remove(header::EXPECT);
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    append(headers, X_FORWARDED_FOR, arrival.forwarded_for());
    append(headers, header::FORWARDED, arrival.forwarded());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(arrival.scheme()));
    let path = parts.uri.path_and_query().cloned();
    let mut target = uri::Parts::default();
    target.path_and_query = path.or_else(|| Some(uri::PathAndQuery::from_static("/")));
    match protocol {
        Protocol::Http1 => {
            headers.insert(header::HOST, host);
            if parts.uri.authority().is_some() {
                parts.uri = Uri::from_parts(target).expect("a path alone is a target");
            }
            parts.version = Version::HTTP_11;
        }
        Protocol::H2c => {
            headers.remove(header::HOST);
            target.scheme = Some(uri::Scheme::HTTP);
            let malformed = Refusal::Malformed("Bad request: malformed host.");
            target.authority = uri::Authority::try_from(host.as_bytes()).ok();
            parts.uri = Uri::from_parts(target).map_err(|_| malformed)?;
            parts.version = Version::HTTP_2;
        }
    }
    Ok(())
}

/// Makes the container's answer the client's.
pub(crate) fn finish(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(header::UPGRADE);
    if headers.contains_key(header::SET_COOKIE) {
        let is_private = headers.get_all(header::CACHE_CONTROL).iter().any(|value| {
            let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
            ["private", "no-store", "no-cache"]
                .iter()
                .any(|word| text.contains(word))
        });
        if !is_private {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
        }
    }
}

/// Takes off what speaks of one connection, the fields included that `Connection` lists.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
        for value in &listed {
            for name in value.as_bytes().split(|b| *b == b',') {
                let name = name.trim_ascii();
                // Framing and routing are not the client's to take away.
                let keeps = [&b"host"[..], b"content-length", b"close", b"keep-alive"]
                    .iter()
                    .any(|kept| name.eq_ignore_ascii_case(kept));
                if !keeps && let Ok(name) = HeaderName::from_bytes(name) {
                    headers.remove(name);
                }
            }
        }
        headers.remove(header::CONNECTION);
    }
    // Most have none of them: looking at the few names that are there is quicker than asking for each.
    if headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// Adds `value` behind what the field says already, as one line.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let mut joined: Option<Vec<u8>> = None;
    for before in headers.get_all(&name) {
        let line = joined.get_or_insert_default();
        line.extend_from_slice(before.as_bytes());
        line.extend_from_slice(b", ");
    }
    let all = match joined {
        None => value.clone(),
        Some(mut line) => {
            line.extend_from_slice(value.as_bytes());
            HeaderValue::from_maybe_shared(bytes::Bytes::from(line)).expect("values joined by a comma are a value")
        }
    };
    headers.insert(name, all);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn hop_by_hop_goes_and_the_rest_stays() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "host, content-length"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("host", "a"),
            ("content-length", "3"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "host", "x-kept"]);
    }

    #[test]
    fn forwarded_fields_are_appended_to() {
        let mut headers = map(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]);
        append(&mut headers, X_FORWARDED_FOR, &HeaderValue::from_static("3.3.3.3"));
        let all: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().collect();
        assert_eq!(all, ["1.1.1.1, 2.2.2.2, 3.3.3.3"]);
    }

    #[test]
    fn cookies_are_private() {
        for (before, after) in [
            (None, "private"),
            (Some("public, max-age=60"), "private"),
            (Some("no-store"), "no-store"),
            (Some("Private, max-age=1"), "Private, max-age=1"),
        ] {
            let mut headers = map(&[("set-cookie", "a=b")]);
            if let Some(before) = before {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(before));
            }
            finish(&mut headers);
            assert_eq!(headers[header::CACHE_CONTROL], after);
        }
    }
}
