//! Which host a request or a tunnel is for, and whether it is let in. Pure: names and numbers in, a verdict out.

use std::sync::Arc;

use http::header::HOST;
use http::uri::Authority;
use http::{Request, StatusCode};
use serde_json::{Value, json};

/// Who answers for a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Api,
    Ingress,
}

/// Tells whose a host is (lower case, no port): `None` for a name that is not ours. Google's hosts need not be known to
/// it, they are the API's unless it says otherwise.
pub type SideOf = Arc<dyn Fn(&str) -> Option<Side> + Send + Sync>;

/// The ports that a client may name together with one of our own hosts: 443 and 80, and the ports of the ingress, since
/// a service's URL carries them. Google's hosts are reached on 443 and 80 alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePorts {
    pub https: Vec<u16>,
    pub http: Vec<u16>,
}

impl Default for ServicePorts {
    fn default() -> Self {
        Self {
            https: vec![443],
            http: vec![80],
        }
    }
}

/// Domains that are always answered: a refused tunnel would make gcloud retry for 22 seconds before it reports.
const GOOGLE: [&str; 4] = ["googleapis.com", "google.com", "pkg.dev", "run.app"];

/// True for Google's domains and the hosts under them. `host` in lower case.
pub(crate) fn is_google(host: &str) -> bool {
    GOOGLE.iter().any(|domain| {
        host.strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// A host name as it is compared: lower case, without the root's dot.
pub(crate) fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Why a request or tunnel is turned away at the door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("host {host} is not served by this Homerun, and nothing is forwarded")]
    Foreign { host: String },
    #[error("port {port} of {host} is not served by this Homerun, expected {expected}")]
    Port { host: String, port: u16, expected: String },
    #[error("scheme {scheme} in a proxy request to {host} is not supported, use CONNECT for https")]
    Scheme { scheme: String, host: String },
    #[error("CONNECT target {target:?} is not of the form host:port")]
    Target { target: String },
    #[error("request names no host, or more than one")]
    Host,
    #[error("request for {host} came through a tunnel, whose hosts do not include it")]
    Misdirected { host: String },
    #[error("CONNECT to {target} inside a tunnel is not supported")]
    Nested { target: String },
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Foreign { .. } | Self::Port { .. } => StatusCode::FORBIDDEN,
            Self::Scheme { .. } | Self::Target { .. } | Self::Host => StatusCode::BAD_REQUEST,
            Self::Misdirected { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Nested { .. } => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    /// In the form of Google's APIs, which every client of the door can read.
    pub(crate) fn body(&self) -> Value {
        let status = match self {
            Self::Foreign { .. } | Self::Port { .. } => "PERMISSION_DENIED",
            Self::Scheme { .. } | Self::Target { .. } | Self::Host => "INVALID_ARGUMENT",
            Self::Misdirected { .. } => "NOT_FOUND",
            Self::Nested { .. } => "UNIMPLEMENTED",
        };
        json!({
            "error": {
                "code": self.status().as_u16(),
                "message": self.to_string(),
                "status": status,
            }
        })
    }
}

/// A tunnel that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    Tls,
    Plain,
}

/// Decides on `CONNECT host:port`.
pub(crate) fn tunnel(
    target: Option<&Authority>,
    side: impl Fn(&str) -> Option<Side>,
    ports: &ServicePorts,
) -> Result<Tunnel, Refusal> {
    let target = target.ok_or_else(|| Refusal::Target { target: String::new() })?;
    let malformed = || Refusal::Target {
        target: target.to_string(),
    };
    let port = target.port_u16().ok_or_else(malformed)?;
    let host = normal(target.host());
    if host.is_empty() || target.as_str().contains('@') {
        return Err(malformed());
    }
    if side(&host).is_some() {
        return if ports.https.contains(&port) {
            Ok(Tunnel::Tls)
        } else if ports.http.contains(&port) {
            Ok(Tunnel::Plain)
        } else {
            let all = ports.https.iter().chain(&ports.http);
            Err(wrong_port(host, port, all))
        };
    }
    if !is_google(&host) {
        return Err(Refusal::Foreign { host });
    }
    match port {
        443 => Ok(Tunnel::Tls),
        _ => Err(wrong_port(host, port, &[443])),
    }
}

fn wrong_port<'a>(host: String, port: u16, expected: impl IntoIterator<Item = &'a u16>) -> Refusal {
    let expected: Vec<String> = expected.into_iter().map(u16::to_string).collect();
    Refusal::Port {
        host,
        port,
        expected: expected.join(" or "),
    }
}

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// On the door's own port, which has this number.
    Open { port: u16 },
    /// Inside a tunnel.
    Tunnel,
}

/// Decides who answers a request, and under which host.
pub(crate) fn dispatch<B>(
    request: &Request<B>,
    way: Way,
    side: impl Fn(&str) -> Option<Side>,
    ports: &ServicePorts,
) -> Result<(Side, String), Refusal> {
    match way {
        Way::Tunnel => {
            let host = host(request)?.ok_or(Refusal::Host)?;
            match side(&host) {
                Some(side) => Ok((side, host)),
                None if is_google(&host) => Ok((Side::Api, host)),
                None => Err(Refusal::Misdirected { host }),
            }
        }
        Way::Open { port: own } => {
            if let Some(authority) = request.uri().authority() {
                let scheme = request.uri().scheme_str().unwrap_or_default();
                return proxied(scheme, authority, own, side, ports);
            }
            // as to a server: the CLI, a registry client, a health check
            let host = host(request)?.unwrap_or_default();
            Ok((side(&host).unwrap_or(Side::Api), host))
        }
    }
}

/// A request in absolute form, as to a proxy.
fn proxied(
    scheme: &str,
    authority: &Authority,
    own: u16,
    side: impl Fn(&str) -> Option<Side>,
    ports: &ServicePorts,
) -> Result<(Side, String), Refusal> {
    let host = normal(authority.host());
    if scheme != "http" {
        let scheme = scheme.to_owned();
        return Err(Refusal::Scheme { scheme, host });
    }
    let port = authority.port_u16().unwrap_or(80);
    let google = [80];
    let (side, served) = if let Some(side) = side(&host) {
        (side, ports.http.as_slice())
    } else if is_google(&host) {
        (Side::Api, google.as_slice())
    } else if port == own && matches!(host.as_str(), "localhost" | "127.0.0.1" | "[::1]") {
        // a client with `http_proxy` set that asks the door itself
        return Ok((Side::Api, host));
    } else {
        return Err(Refusal::Foreign { host });
    };
    if served.contains(&port) {
        Ok((side, host))
    } else {
        Err(wrong_port(host, port, served))
    }
}

/// The one host that the request names: of its URI (always so in HTTP/2) or else of its `Host` line. `None` if it names
/// none, as HTTP/1.0 may.
fn host<B>(request: &Request<B>) -> Result<Option<String>, Refusal> {
    if let Some(authority) = request.uri().authority() {
        return Ok(Some(normal(authority.host())));
    }
    let mut lines = request.headers().get_all(HOST).iter();
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() {
        return Err(Refusal::Host);
    }
    let authority: Authority = line
        .to_str()
        .ok()
        .and_then(|line| line.parse().ok())
        .ok_or(Refusal::Host)?;
    Ok(Some(normal(authority.host())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(host: &str) -> Option<Side> {
        host.ends_with(".a.run.localhost").then_some(Side::Ingress)
    }

    fn ports() -> ServicePorts {
        ServicePorts {
            https: vec![443, 8443],
            http: vec![80, 8081],
        }
    }

    fn connect(target: &str) -> Result<Tunnel, Refusal> {
        let target: Authority = target.parse().expect("an authority");
        tunnel(Some(&target), ours, &ports())
    }

    #[test]
    fn tunnels_are_let_in_by_host_and_port() {
        for (target, verdict) in [
            ("run.googleapis.com:443", Tunnel::Tls),
            ("US-Central1-Run.GoogleAPIs.com:443", Tunnel::Tls),
            ("oauth2.googleapis.com.:443", Tunnel::Tls),
            ("google.com:443", Tunnel::Tls),
            ("us-docker.pkg.dev:443", Tunnel::Tls),
            ("x-abc-uc.a.run.app:443", Tunnel::Tls),
            ("x.a.run.localhost:443", Tunnel::Tls),
            ("x.a.run.localhost:8443", Tunnel::Tls),
            ("x.a.run.localhost:80", Tunnel::Plain),
            ("x.a.run.localhost:8081", Tunnel::Plain),
        ] {
            assert_eq!(connect(target), Ok(verdict), "{target}");
        }
        for host in [
            "example.com",
            "evilgoogleapis.com",
            "googleapis.com.evil.example",
            "127.0.0.1",
            "[::1]",
            "metadata.google.internal",
            "a.run.localhost",
        ] {
            let host = host.to_owned();
            let refusal = connect(&format!("{host}:443"));
            assert_eq!(refusal, Err(Refusal::Foreign { host }));
        }
        assert_eq!(
            connect("run.googleapis.com:80"),
            Err(Refusal::Port {
                host: "run.googleapis.com".to_owned(),
                port: 80,
                expected: "443".to_owned()
            })
        );
        assert!(matches!(
            connect("x.a.run.localhost:22"),
            Err(Refusal::Port { port: 22, .. })
        ));
        for target in ["run.googleapis.com", "user@run.googleapis.com:443"] {
            let refusal = connect(target);
            let target = target.to_owned();
            assert_eq!(refusal, Err(Refusal::Target { target }));
        }
    }

    fn request(uri: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).expect("a request")
    }

    #[test]
    fn a_request_on_the_open_port_is_dispatched_by_its_host() {
        let way = Way::Open { port: 8787 };
        for (uri, hosts, side, host) in [
            (
                "/v1",
                &["us-central1-run.googleapis.com"][..],
                Side::Api,
                "us-central1-run.googleapis.com",
            ),
            ("/healthz", &["127.0.0.1:8787"], Side::Api, "127.0.0.1"),
            ("/healthz", &[], Side::Api, ""),
            ("/", &["Any.Example:1"], Side::Api, "any.example"),
            ("/", &["x.a.run.localhost:8787"], Side::Ingress, "x.a.run.localhost"),
            (
                "http://x.a.run.localhost/",
                &["other"],
                Side::Ingress,
                "x.a.run.localhost",
            ),
            (
                "http://x.a.run.localhost:8081/",
                &[],
                Side::Ingress,
                "x.a.run.localhost",
            ),
            ("http://run.googleapis.com/", &[], Side::Api, "run.googleapis.com"),
            ("http://localhost:8787/healthz", &[], Side::Api, "localhost"),
            ("http://[::1]:8787/healthz", &[], Side::Api, "[::1]"),
        ] {
            let verdict = dispatch(&request(uri, hosts), way, ours, &ports());
            assert_eq!(verdict, Ok((side, host.to_owned())), "{uri} {hosts:?}");
        }
        for (uri, hosts, status) in [
            ("http://example.com/", &["example.com"][..], 403),
            ("http://localhost:8788/", &[], 403),
            ("http://x.a.run.localhost:22/", &[], 403),
            ("https://run.googleapis.com/", &[], 400),
            ("/", &["a", "b"], 400),
            ("/", &["no host"], 400),
        ] {
            let verdict = dispatch(&request(uri, hosts), way, ours, &ports());
            let refusal = verdict.expect_err(uri);
            assert_eq!(refusal.status(), status, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_request_in_a_tunnel_must_be_for_a_host_that_tunnels_reach() {
        let verdict = |uri, hosts: &[&str]| {
            dispatch(&request(uri, hosts), Way::Tunnel, ours, &ports()).map_err(|refusal| refusal.status().as_u16())
        };
        let google = "run.googleapis.com";
        assert_eq!(verdict("/", &[google]), Ok((Side::Api, google.to_owned())));
        assert_eq!(
            verdict("https://x.a.run.localhost/", &[]),
            Ok((Side::Ingress, "x.a.run.localhost".to_owned()))
        );
        assert_eq!(verdict("/", &["example.com"]), Err(421));
        assert_eq!(verdict("/", &[]), Err(400));
    }

    #[test]
    fn a_refusal_names_the_host_in_googles_form() {
        let refusal = connect("example.com:443").expect_err("foreign");
        let body = refusal.body();
        assert_eq!(body["error"]["code"], 403);
        assert_eq!(body["error"]["status"], "PERMISSION_DENIED");
        let message = body["error"]["message"].as_str().expect("text");
        assert!(message.contains("example.com"), "{message}");
    }
}
