//! The service that is passed on to: its URL, and the address at which it is reached.

use std::net::SocketAddr;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri, header};

/// Why a text is no URL of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid url {0:?}: expected https://HOST or http://HOST, with a port or not")]
pub struct TargetError(String);

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    scheme: Scheme,
    authority: Authority,
    /// Where its server listens, whatever a resolver says of the name.
    to: SocketAddr,
}

impl Target {
    /// From a URL as the service's status has it; a host alone is taken as https. A path is refused unless it is `/`.
    ///
    /// # Errors
    /// [`TargetError`] with the text.
    pub fn parse(url: &str, to: SocketAddr) -> Result<Self, TargetError> {
        let wrong = || TargetError(url.to_owned());
        let text = url.trim();
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let parts = uri.into_parts();
        let scheme = parts
            .scheme
            .filter(|scheme| *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP);
        let scheme = scheme.ok_or_else(wrong)?;
        let authority = parts
            .authority
            .filter(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(wrong)?;
        if parts.path_and_query.is_some_and(|path| path.as_str() != "/") {
            return Err(wrong());
        }
        Ok(Self { scheme, authority, to })
    }

    /// Without a final slash, as the service's status has it: the audience of its tokens.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// Without a port.
    pub fn host(&self) -> &str {
        self.authority.host()
    }

    pub fn is_secure(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    pub(crate) fn to(&self) -> SocketAddr {
        self.to
    }

    /// The same path at the service.
    pub(crate) fn uri(&self, of: &Uri) -> Uri {
        let path = of.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let built = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build();
        built.expect("parts of URIs are one")
    }

    /// A redirect to the service itself leads back through the proxy at `own`. None: to elsewhere, or relative already.
    pub(crate) fn redirected(&self, location: &HeaderValue, own: SocketAddr) -> Option<HeaderValue> {
        let uri: Uri = location.to_str().ok()?.parse().ok()?;
        uri.scheme()?;
        let to = uri.authority()?;
        if !to.as_str().eq_ignore_ascii_case(self.authority.as_str()) {
            return None;
        }
        let path = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        HeaderValue::from_str(&format!("http://{own}{path}")).ok()
    }
}

/// Whether a request is for a name of this machine's loopback, as its client wrote it. One without a name, as HTTP/1.0
/// knows, is.
pub(crate) fn is_for_loopback(uri: &Uri, headers: &http::HeaderMap) -> bool {
    let mut named = headers
        .get_all(header::HOST)
        .iter()
        .map(|value| value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()))
        .chain(uri.authority().map(|authority| Some(authority.clone())));
    named.all(|name| name.is_some_and(|name| is_loopback(name.host())))
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, TargetError> {
        Target::parse(url, SocketAddr::from(([127, 0, 0, 1], 8443)))
    }

    #[test]
    fn urls() {
        for (text, url) in [
            ("https://a-h.a.run.localhost:8443", "https://a-h.a.run.localhost:8443"),
            ("https://a-h.a.run.localhost/", "https://a-h.a.run.localhost"),
            ("http://a-h.a.run.localhost:8081", "http://a-h.a.run.localhost:8081"),
            ("a-h.a.run.localhost:8443", "https://a-h.a.run.localhost:8443"),
            (" a.b ", "https://a.b"),
        ] {
            assert_eq!(target(text).expect(text).url(), url);
        }
        for text in [
            "",
            "https://",
            "ftp://a",
            "https://a/b",
            "https://u@a",
            "https://a?q=1",
            "a b",
        ] {
            assert!(target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_go_on_as_they_are() {
        let to = target("https://a.b:8443").expect("a target");
        for (of, uri) in [
            ("/", "https://a.b:8443/"),
            ("/x//y?q=%2F&r", "https://a.b:8443/x//y?q=%2F&r"),
            ("http://127.0.0.1:8080/x", "https://a.b:8443/x"),
        ] {
            assert_eq!(to.uri(&of.parse().expect("a uri")).to_string(), uri);
        }
    }

    #[test]
    fn redirects_stay_on_this_side() {
        let to = target("https://a.b:8443").expect("a target");
        let own = SocketAddr::from(([127, 0, 0, 1], 8080));
        for (location, led) in [
            ("https://a.b:8443/x?y", Some("http://127.0.0.1:8080/x?y")),
            ("http://A.B:8443/", Some("http://127.0.0.1:8080/")),
            ("https://a.b/x", None),
            ("https://elsewhere/x", None),
            ("/x", None),
            ("x", None),
        ] {
            let value = HeaderValue::from_static(location);
            let found = to.redirected(&value, own);
            assert_eq!(found.as_ref().and_then(|v| v.to_str().ok()), led, "{location}");
        }
    }

    #[test]
    fn only_names_of_loopback() {
        for (host, is) in [
            ("127.0.0.1:8080", true),
            ("127.9.9.9", true),
            ("[::1]:8080", true),
            ("localhost:8080", true),
            ("LocalHost.", true),
            ("app.localhost:1", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("notlocalhost", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            let mut headers = http::HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(is_for_loopback(&Uri::from_static("/"), &headers), is, "{host}");
        }
        let none = http::HeaderMap::new();
        assert!(is_for_loopback(&Uri::from_static("/"), &none));
        let absolute = Uri::from_static("http://evil.example/");
        assert!(!is_for_loopback(&absolute, &none));
    }
}
