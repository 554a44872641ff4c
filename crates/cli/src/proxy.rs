//! `run services proxy`, and `cloud-run-proxy`, the program that Google's gcloud starts for the same words.
//!
//! Which service, by which token, at which port: that is decided here. The passing on itself is handed in from outside
//! ([`Outside::serve`](crate::Outside)), as are the signals that end it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::call::Server;
use crate::words::Global;
use crate::{Error, Order, Outside, Proxying};

/// The field that the token goes into, as Google's own proxy puts it: a request's `Authorization` stays its own.
const HEADER: &str = "X-Serverless-Authorization";

#[derive(Debug, Args)]
pub(crate) struct Proxy {
    service: String,
    /// Port of 127.0.0.1
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Call this tag's revision instead of the service's traffic
    #[arg(long)]
    tag: Option<String>,
    /// ID token to use, which is not renewed, instead of the account's own
    #[arg(long)]
    token: Option<String>,
}

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, words: &Proxy) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let service = server.find_one(outside, "services", &words.service)?.ok_or_else(|| {
        Error::Failed(format!(
            "Service [{}] could not be found in project [{}] region [{}].",
            words.service,
            server.project,
            server.region()
        ))
    })?;
    let url = url_of(&service, &words.service, words.tag.as_deref())?;
    let audience = url_of(&service, &words.service, None)?;
    let token = match &words.token {
        Some(token) => token.clone(),
        None => server.identity_token(outside, &audience, true, outside.now)?,
    };
    let listener = listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), words.port)).map_err(|text| {
        Error::Failed(format!(
            "{text}\nYou can set the --port flag to specify a different local port"
        ))
    })?;
    outside.say(&format!(
        "Proxying to Cloud Run service [{}] in project [{}] region [{}]",
        words.service,
        server.project,
        server.region()
    ));
    outside.say(&format!("http://{} proxies to {url}", address_of(&listener)));
    let proxying = Proxying {
        listener,
        to: server.ingress(&url)?,
        url,
        authority: server.about.authority(),
        header: HEADER.to_owned(),
        user_agent: None,
        http2: false,
        token,
        up_time: None,
    };
    let (serve, seen) = (outside.serve, &*outside);
    let mut renew = |now| {
        let token = server.identity_token(seen, &audience, true, now);
        token.map_err(|error| error.text())
    };
    let renewed: Option<&mut crate::Renew<'_>> = match words.token {
        Some(_) => None,
        None => Some(&mut renew),
    };
    serve(proxying, renewed).map_err(Error::Failed)
}

/// The service's URL, or that of a tag.
fn url_of(service: &Value, name: &str, tag: Option<&str>) -> Result<String, Error> {
    let not_ready = |what: String| Error::Failed(format!("URL for {what} is not ready"));
    let Some(tag) = tag else {
        let url = service["status"]["url"].as_str().filter(|url| !url.is_empty());
        return url
            .map(str::to_owned)
            .ok_or_else(|| not_ready(format!("service [{name}]")));
    };
    let traffic = service["status"]["traffic"].as_array();
    let entry = traffic.into_iter().flatten().find(|entry| entry["tag"] == tag);
    let entry = entry.ok_or_else(|| Error::Failed(format!("Cannot find tag [{tag}] in service [{name}].")))?;
    let url = entry["url"].as_str().filter(|url| !url.is_empty());
    url.map(str::to_owned)
        .ok_or_else(|| not_ready(format!("tag [{tag}] in service [{name}]")))
}

impl Server {
    /// Where this Homerun answers for a URL of its services.
    ///
    /// # Errors
    /// When it is no URL of one.
    pub(crate) fn ingress(&self, url: &str) -> Result<SocketAddr, Error> {
        let strange = || {
            Error::Failed(format!(
                "{url} is no URL of the Homerun at {} (its services are below {})",
                self.api(),
                self.about.domain
            ))
        };
        let (listens, rest) = match url.split_once("://") {
            Some(("http", rest)) => (&self.about.http, rest),
            Some(("https", rest)) => (&self.about.https, rest),
            Some(_) => return Err(strange()),
            None => (&self.about.https, url),
        };
        let host = rest.split('/').next().unwrap_or_default();
        let host = host
            .rsplit_once(':')
            .map_or(host, |(host, _)| host)
            .to_ascii_lowercase();
        let below = host.strip_suffix(self.about.domain.as_str());
        if self.about.domain.is_empty() || below.is_none_or(|below| !below.ends_with('.')) {
            return Err(strange());
        }
        let mut address: SocketAddr = listens.parse().map_err(|_| Error::Answer {
            call: "GET /homerun/about".to_owned(),
            what: "no address of its ingress".to_owned(),
        })?;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            });
        }
        Ok(address)
    }
}

/// Listens, or says in the words of Google's proxy, which gcloud looks for, why not.
fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|error| {
        let why = if error.kind() == std::io::ErrorKind::AddrInUse {
            "address already in use".to_owned()
        } else {
            error.to_string()
        };
        format!("server error: listen tcp {address}: bind: {why}")
    })
}

fn address_of(listener: &TcpListener) -> String {
    listener
        .local_addr()
        .map_or_else(|error| error.to_string(), |address| address.to_string())
}

/// What `cloud-run-proxy` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flags {
    host: String,
    bind: String,
    audience: Option<String>,
    token: Option<String>,
    prepend_user_agent: bool,
    up_time: Option<Duration>,
    http2: bool,
    header: String,
    version: bool,
}

/// Runs as `cloud-run-proxy` with the words after its name, and returns its exit code. Where no token is given it is the
/// one of the account that our own command line would use.
pub fn cloud_run_proxy(words: &[String], mut outside: Outside<'_>) -> u8 {
    let done = flags(words).map_err(Error::Failed).and_then(|flags| {
        if flags.version {
            outside.print(&introduction())
        } else {
            proxy(&mut outside, flags)
        }
    });
    match done {
        Ok(()) => 0,
        Err(error) => {
            outside.say(&error.text());
            1
        }
    }
}

fn proxy(outside: &mut Outside<'_>, flags: Flags) -> Result<(), Error> {
    let global = Global::default();
    let server = Server::find(outside, &global)?;
    let url = flags.host.trim().trim_end_matches('/');
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("https://{url}")
    };
    let to = server.ingress(&url)?;
    let audience = flags.audience.unwrap_or_else(|| url.clone());
    let token = match &flags.token {
        Some(token) => token.clone(),
        None => server.identity_token(outside, &audience, true, outside.now)?,
    };
    let bind: SocketAddr = flags
        .bind
        .replace("localhost:", "127.0.0.1:")
        .parse()
        .map_err(|_| Error::Failed(format!("failed to parse bind address: {}", flags.bind)))?;
    let listener = listen(bind).map_err(Error::Failed)?;
    outside.say(&format!("http://{} proxies to {url}", address_of(&listener)));
    let proxying = Proxying {
        listener,
        url,
        to,
        authority: server.about.authority(),
        header: flags.header,
        user_agent: flags.prepend_user_agent.then(introduction),
        http2: flags.http2,
        token,
        up_time: flags.up_time,
    };
    let (serve, seen) = (outside.serve, &*outside);
    let mut renew = |now| {
        let token = server.identity_token(seen, &audience, true, now);
        token.map_err(|error| error.text())
    };
    let renewed: Option<&mut crate::Renew<'_>> = match flags.token {
        Some(_) => None,
        None => Some(&mut renew),
    };
    serve(proxying, renewed).map_err(Error::Failed)
}

/// What the proxy says that it is.
fn introduction() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "cloud-run-proxy/{} ({}/{arch})",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS
    )
}

/// Reads flags as Go programs take them: `-name value`, `-name=value`, with one dash or two; a switch takes its value only
/// after `=`.
fn flags(words: &[String]) -> Result<Flags, String> {
    let mut flags = Flags {
        host: String::new(),
        bind: "127.0.0.1:8080".to_owned(),
        audience: None,
        token: None,
        prepend_user_agent: true,
        up_time: None,
        http2: false,
        header: HEADER.to_owned(),
        version: false,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Err(format!("unexpected argument: {word}"));
        };
        let (name, given) = match name.split_once('=') {
            Some((name, given)) => (name, Some(given.to_owned())),
            None => (name, None),
        };
        let switch = |given: &Option<String>| match given.as_deref() {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(other) => Err(format!("invalid boolean value \"{other}\" for -{name}")),
        };
        match name {
            "v" | "version" => flags.version = true,
            "prepend-user-agent" => flags.prepend_user_agent = switch(&given)?,
            "http2" => flags.http2 = switch(&given)?,
            "host" | "bind" | "audience" | "token" | "server-up-time" | "authorization-header" => {
                let value = given.or_else(|| words.next().cloned());
                let value = value.ok_or_else(|| format!("flag needs an argument: -{name}"))?;
                match name {
                    "host" => flags.host = value,
                    "bind" => flags.bind = value,
                    "audience" => flags.audience = Some(value).filter(|value| !value.is_empty()),
                    "token" => flags.token = Some(value).filter(|value| !value.is_empty()),
                    "authorization-header" => flags.header = value,
                    _ => flags.up_time = up_time(&value)?,
                }
            }
            _ => return Err(format!("flag provided but not defined: -{name}")),
        }
    }
    let missing = [
        ("host", &flags.host),
        ("bind", &flags.bind),
        ("authorization-header", &flags.header),
    ];
    match missing.iter().find(|(_, value)| value.trim().is_empty()) {
        Some((name, _)) if !flags.version => Err(format!("missing -{name}")),
        Some(_) | None => Ok(flags),
    }
}

/// A time as Go writes it, such as `55m` or `1h30m`. None: for ever.
fn up_time(text: &str) -> Result<Option<Duration>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || format!("error parsing -server-up-time: time: invalid duration \"{text}\"");
    let mut left = text;
    let mut seconds = 0.0_f64;
    while !left.is_empty() {
        let end = left.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let amount: f64 = left[..end].parse().map_err(|_| wrong())?;
        left = &left[end..];
        let end = left
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(left.len());
        let unit = match &left[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        left = &left[end..];
        seconds += amount * unit;
    }
    Duration::try_from_secs_f64(seconds).map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_as_gcloud_gives_them() {
        let line = "-host https://a.run.localhost:8443 -token x.y.z -bind 127.0.0.1:8099 -server-up-time 55m";
        let read = flags(&words(line)).expect("gcloud's own words");
        assert_eq!(read.host, "https://a.run.localhost:8443");
        assert_eq!(
            (read.token.as_deref(), read.bind.as_str()),
            (Some("x.y.z"), "127.0.0.1:8099")
        );
        assert_eq!(read.up_time, Some(Duration::from_mins(55)));
        assert!(read.prepend_user_agent && !read.http2);
        assert_eq!(read.header, "X-Serverless-Authorization");
    }

    #[test]
    fn flags_as_go_takes_them() {
        let read = flags(&words(
            "--host=a -http2 -prepend-user-agent=false --authorization-header Authorization -token=",
        ));
        let read = read.expect("all of them");
        assert!(read.http2 && !read.prepend_user_agent && read.token.is_none());
        assert_eq!(read.header, "Authorization");
        assert!(flags(&words("-version")).expect("no host needed").version);
        for (line, says) in [
            ("", "missing -host"),
            ("-host a -bind=", "missing -bind"),
            ("-host", "flag needs an argument: -host"),
            ("-hots a", "flag provided but not defined: -hots"),
            ("-host a b", "unexpected argument: b"),
            ("-host a -http2=maybe", "invalid boolean value"),
            ("-host a -server-up-time 5", "invalid duration \"5\""),
            ("-host a -server-up-time 5x", "invalid duration \"5x\""),
        ] {
            let refused = flags(&words(line)).expect_err(line);
            assert!(refused.contains(says), "{line}: {refused}");
        }
    }

    #[test]
    fn times_as_go_writes_them() {
        for (text, milliseconds) in [
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("300ms", 300),
            ("2m0.5s", 120_500),
        ] {
            assert_eq!(up_time(text), Ok(Some(Duration::from_millis(milliseconds))), "{text}");
        }
        assert_eq!(up_time(""), Ok(None));
        for text in ["h", "-1s", "1", "1.2.3s", "s1"] {
            assert!(up_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls_of_services_and_tags() {
        let service = json!({ "status": { "url": "https://a", "traffic": [
            { "percent": 100 }, { "tag": "blue", "url": "https://blue---a" }, { "tag": "new" },
        ] } });
        let url = |tag| url_of(&service, "a", tag).map_err(|error| error.to_string());
        assert_eq!(url(None).as_deref(), Ok("https://a"));
        assert_eq!(url(Some("blue")).as_deref(), Ok("https://blue---a"));
        assert_eq!(url(Some("x")), Err("Cannot find tag [x] in service [a].".to_owned()));
        assert_eq!(
            url(Some("new")),
            Err("URL for tag [new] in service [a] is not ready".to_owned())
        );
        let none = url_of(&json!({}), "a", None).map_err(|error| error.to_string());
        assert_eq!(none, Err("URL for service [a] is not ready".to_owned()));
    }
}
