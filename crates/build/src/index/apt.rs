//! Apt asks for its index as of a proxy: `GET http://deb.debian.org/debian/dists/...`. What lies at the index's host below its
//! path is read from there, by whatever scheme and port the owner named; nothing else is. What comes is signed by the
//! distribution, which apt checks.

use http::{HeaderMap, Method, Uri, header};
use reqwest::Url;

use super::reader::Refused;

/// Whether a request is one to a proxy, as steps make them: the builder itself tells its secret.
pub(super) fn is_to_proxy(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    uri.authority().is_some() && *method != Method::CONNECT && !headers.contains_key(header::PROXY_AUTHORIZATION)
}

/// The path of the relay that stands for what the proxy is asked for.
pub(super) fn asked(base: &Url, uri: &Uri) -> Result<String, Refused> {
    let host = uri.host().unwrap_or_default();
    let is_host = base.host_str().is_some_and(|own| own.eq_ignore_ascii_case(host));
    let port = uri.port_u16().unwrap_or(80);
    let is_port = port == 80 || Some(port) == base.port_or_known_default();
    if !(is_host && is_port && uri.scheme_str() == Some("http")) {
        return Err(Refused::forbidden(&format!(
            "the package index of apt is that of {}, and {} is another host",
            base.host_str().unwrap_or_default(),
            uri.authority().map_or("", |authority| authority.as_str())
        )));
    }
    let path = uri.path_and_query().map_or("/", |asked| asked.as_str());
    let below = path.strip_prefix(base.path());
    let rest = below.ok_or_else(|| Refused::forbidden("that is not below the package index"))?;
    Ok(format!("/apt/{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_may_read() {
        let named = super::super::named::named("apt=https://deb.example/mirror");
        let base = Url::parse("https://deb.example/mirror/").expect("a URL");
        let read = |uri: &str| {
            let path = asked(&base, &uri.parse().expect("a URI"))?;
            named.meant(&path).map(|url| url.to_string())
        };
        for uri in [
            "http://deb.example/mirror/dists/a/InRelease",
            "http://DEB.example:80/mirror/dists/a/InRelease",
            "http://deb.example:443/mirror/dists/a/InRelease",
        ] {
            let meant = "https://deb.example/mirror/dists/a/InRelease".to_owned();
            assert_eq!(read(uri), Ok(meant), "{uri}");
        }
        for uri in [
            "http://other.example/mirror/dists/a/InRelease",
            "http://deb.example:8787/mirror/x",
            "https://deb.example/mirror/x",
            "http://127.0.0.1/mirror/x",
            "http://deb.example/elsewhere/x",
            "http://deb.example/mirror/../x",
            "http://deb.example/mirror/%2e%2e/x",
            "http://deb.example/mirror/a%2f..%2f..%2fx",
        ] {
            assert!(read(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn whose_request_it_is() {
        let to_proxy = |method: Method, uri: &str, secret: bool| {
            let mut headers = HeaderMap::new();
            if secret {
                headers.insert(header::PROXY_AUTHORIZATION, "Basic x".parse().expect("a value"));
            }
            is_to_proxy(&method, &uri.parse().expect("a URI"), &headers)
        };
        assert!(to_proxy(Method::GET, "http://deb.example/x", false));
        assert!(!to_proxy(Method::GET, "http://deb.example/x", true), "the builder");
        assert!(!to_proxy(Method::CONNECT, "deb.example:443", false));
        assert!(!to_proxy(Method::GET, "/apt/x", false));
    }
}
