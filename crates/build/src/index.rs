//! The package indexes that build steps may read: one of a kind (pip's, npm's, cargo's, Go's, apt's), and only where the owner
//! named it. Steps reach it at `http://127.0.0.1:PORT/KIND/`, by the same listener as the relay of base images and
//! without its secret, and find that address in the file of configuration that their package manager looks for.
//!
//! What enters is a GET or HEAD below that path; what leaves is what the index answers at the same place below its URL.
//! What an index names elsewhere is sealed with a key of the build ([`named`]), so that a step reads what the index named,
//! and nothing else of those hosts. [`reader`] asks; how an index names files is in the module of its kind. Go's needs
//! none: all that it has lies below its URL. Apt's neither, which asks for it as of a proxy ([`apt`]).

mod apt;
mod cargo;
mod named;
mod npm;
mod pip;
mod reader;

use std::{fmt, net::IpAddr};

use reqwest::Url;

pub(crate) use self::reader::Reader;

/// Other kinds that somebody may look for.
const NOT_SERVED: [&str; 5] = ["maven", "gem", "composer", "nuget", "uv"];

/// Whose index it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Pip,
    Npm,
    Cargo,
    Go,
    Apt,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pip, Self::Npm, Self::Cargo, Self::Go, Self::Apt];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pip => "pip",
            Self::Npm => "npm",
            Self::Cargo => "cargo",
            Self::Go => "go",
            Self::Apt => "apt",
        }
    }

    /// What is said to the owner who has to name one.
    fn example(self) -> &'static str {
        match self {
            Self::Pip => "pip=https://pypi.org/simple",
            Self::Npm => "npm=https://registry.npmjs.org",
            Self::Cargo => "cargo=https://index.crates.io",
            Self::Go => "go=https://proxy.golang.org",
            Self::Apt => "apt=https://deb.debian.org",
        }
    }

    /// Where steps find the index, on the relay's port.
    fn own(self) -> &'static str {
        match self {
            Self::Pip => "/pip/",
            Self::Npm => "/npm/",
            Self::Cargo => "/cargo/",
            Self::Go => "/go/",
            Self::Apt => "/apt/",
        }
    }

    /// Where steps find what the index named elsewhere.
    fn link(self) -> &'static str {
        match self {
            Self::Pip => "/pip-link/",
            Self::Npm => "/npm-link/",
            Self::Cargo => "/cargo-link/",
            Self::Go => "/go-link/",
            Self::Apt => "/apt-link/",
        }
    }

    /// Whose index a path of the relay belongs to.
    fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| {
            path == kind.own().trim_end_matches('/') || path.starts_with(kind.own()) || path.starts_with(kind.link())
        })
    }

    /// Where package managers in a step look for their configuration: each of these files is laid there.
    pub(crate) fn places(self) -> &'static [&'static str] {
        match self {
            Self::Pip => &["/etc/pip.conf"],
            // Of Debian's npm, of node below /usr/local as in docker's images, and of node below /usr.
            Self::Npm => &["/etc/npmrc", "/usr/local/etc/npmrc", "/usr/etc/npmrc"],
            // It is looked for beside the sources, and in every directory above.
            Self::Cargo => &["/.cargo/config.toml"],
            Self::Go => &["/root/.config/go/env"],
            Self::Apt => &["/etc/apt/apt.conf.d/90homerun"],
        }
    }

    /// What those files say.
    pub(crate) fn configuration(self, port: u16) -> String {
        let url = format!("http://127.0.0.1:{port}{}", self.own());
        match self {
            Self::Pip => format!("[global]\nindex-url = {url}\ndisable-pip-version-check = true\n"),
            // What is written by POST is not served.
            Self::Npm => format!("registry={url}\naudit=false\nupdate-notifier=false\n"),
            Self::Cargo => format!(
                "[source.crates-io]\nreplace-with = \"homerun\"\n\n[source.homerun]\nregistry = \"sparse+{url}\"\n"
            ),
            Self::Go => format!("GOPROXY={}\n", url.trim_end_matches('/')),
            Self::Apt => format!("Acquire::http::Proxy \"http://127.0.0.1:{port}/\";\n"),
        }
    }

    /// The same as a variable of the environment, where the package manager reads one that says it all.
    pub(crate) fn variable(self, port: u16) -> Option<(&'static str, String)> {
        let url = format!("http://127.0.0.1:{port}{}", self.own());
        match self {
            Self::Pip => Some(("PIP_INDEX_URL", url)),
            Self::Npm => Some(("NPM_CONFIG_REGISTRY", url)),
            // Cargo replaces its own registry in a file alone, and apt has its proxy from one.
            Self::Cargo | Self::Apt => None,
            Self::Go => Some(("GOPROXY", url.trim_end_matches('/').to_owned())),
        }
    }

    /// What a package manager says that has found nothing: the name of the index that it asks by itself, for one.
    fn laments(self) -> &'static [&'static str] {
        match self {
            Self::Pip => &["No matching distribution found for ", "': /simple/"],
            Self::Npm => &["registry.npmjs.org", "registry.yarnpkg.com"],
            Self::Cargo => &["index.crates.io", "static.crates.io", "rust-lang/crates.io-index"],
            Self::Go => &["proxy.golang.org", "sum.golang.org"],
            Self::Apt => &["deb.debian.org", "archive.ubuntu.com", "Unable to locate package "],
        }
    }
}

/// An index that builds use, as the owner named it.
#[derive(Clone, PartialEq, Eq)]
pub struct Index {
    kind: Kind,
    /// Ends with a slash; may hold credentials.
    url: Url,
}

impl Index {
    /// Reads `pip=https://pypi.org/simple`.
    ///
    /// # Errors
    /// What is wrong, in words for the owner.
    pub fn parse(text: &str) -> Result<Self, String> {
        let such = format!("such as {}", Kind::Pip.example());
        let served = Kind::ALL.map(Kind::name).join(", ");
        let (name, url) = text
            .split_once('=')
            .ok_or_else(|| format!("\"{text}\" is no KIND=URL, {such}"))?;
        if NOT_SERVED.contains(&name) {
            return Err(format!("an index of {name} is not served to builds: only {served} are"));
        }
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("\"{name}\" is no kind of package index: {served} are, {such}"))?;
        let mut url = Url::parse(url).map_err(|error| {
            format!(
                "the URL of the {kind} index is wrong ({error}), such as {}",
                kind.example()
            )
        })?;
        // What apt reads is signed, whatever brings it; most mirrors of distributions know nothing else.
        let may_be_open = kind == Kind::Apt || is_here(&url);
        let is_safe = url.scheme() == "https" || (url.scheme() == "http" && may_be_open);
        if !is_safe {
            return Err(format!(
                "the URL of the {kind} index must be https, or http on this machine's loopback"
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!(
                "the URL of the {kind} index must have no query and no fragment"
            ));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self { kind, url })
    }

    /// Whose it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// Without its credentials.
impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(plain(self.url.clone()).as_str())
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={self}", self.kind)
    }
}

/// What is said after a step in which a package manager found nothing, and was to find nothing.
pub(crate) fn hint(why: &str, indexes: &[Index]) -> Option<String> {
    let lacks = |kind: &Kind| !indexes.iter().any(|index| index.kind == *kind);
    let kind = Kind::ALL
        .into_iter()
        .filter(lacks)
        .find(|kind| kind.laments().iter().any(|words| why.contains(words)))?;
    Some(format!(
        "a build reaches no package index unless Homerun is told of one: homerun up --build-index {}",
        kind.example()
    ))
}

/// Whether a path of the relay is an index's.
fn is_asked_for(path: &str) -> bool {
    Kind::of_path(path).is_some()
}

/// Whether a host is this machine's loopback.
fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Without user and password.
fn plain(mut url: Url) -> Url {
    // One that cannot have them has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_owner_may_name() {
        let shown = |text: &str| Index::parse(text).map(|index| format!("{} {index} {index:?}", index.kind()));
        let good = |kind: &str, url: &str| Ok(format!("{kind} {url} {kind}={url}"));
        for (text, kind, url) in [
            ("pip=https://pypi.org/simple", "pip", "https://pypi.org/simple/"),
            ("pip=https://u:p@a.example/x/", "pip", "https://a.example/x/"),
            ("pip=http://127.0.0.1:81/", "pip", "http://127.0.0.1:81/"),
            ("npm=http://[::1]/s", "npm", "http://[::1]/s/"),
            ("cargo=https://index.crates.io", "cargo", "https://index.crates.io/"),
            ("go=https://proxy.golang.org", "go", "https://proxy.golang.org/"),
            ("apt=http://archive.ubuntu.com", "apt", "http://archive.ubuntu.com/"),
        ] {
            assert_eq!(shown(text), good(kind, url), "{text}");
        }
        for (text, told) in [
            ("https://pypi.org/simple", "\"https://pypi.org/simple\" is no KIND=URL"),
            ("https://pypi.org/?a=b", "no kind of package index"),
            ("pypi", "no KIND=URL"),
            ("maven=https://repo.example", "an index of maven is not served"),
            ("apt=ftp://deb.debian.org", "must be https"),
            ("pip=http://pypi.org/simple", "must be https"),
            ("npm=ftp://127.0.0.1/", "the npm index must be https"),
            ("pip=pypi.org", "is wrong"),
            ("cargo=sparse+https://index.crates.io/", "must be https"),
            ("pip=https://a.example/?x=1", "no query"),
        ] {
            let error = shown(text).expect_err(text);
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn whose_path_it_is() {
        for (path, kind) in [
            ("/pip", Some(Kind::Pip)),
            ("/npm/@a%2fb", Some(Kind::Npm)),
            ("/npm-link/x", Some(Kind::Npm)),
            ("/cargo/config.json", Some(Kind::Cargo)),
            ("/go/x/@v/list", Some(Kind::Go)),
            ("/apt/debian/dists/bookworm/InRelease", Some(Kind::Apt)),
            ("/", None),
            ("/gopher", None),
            ("/v2/", None),
        ] {
            assert_eq!(Kind::of_path(path), kind, "{path}");
        }
    }

    #[test]
    fn a_hint_where_nothing_was_found() {
        let pip = Index::parse("pip=https://pypi.org/simple").expect("an index");
        let found_nothing = "at STEP 4/7: RUN pip install x\nERROR: No matching distribution found for flask>=3.0.0";
        assert!(hint(found_nothing, &[]).is_some_and(|hint| hint.ends_with(" pip=https://pypi.org/simple")));
        assert_eq!(hint(found_nothing, std::slice::from_ref(&pip)), None);
        let npm = "npm error request to https://registry.npmjs.org/hono failed, reason: getaddrinfo EAI_AGAIN";
        assert!(hint(npm, &[pip]).is_some_and(|hint| hint.ends_with(" npm=https://registry.npmjs.org")));
        let apt = "W: Failed to fetch http://deb.debian.org/debian/dists/bookworm/InRelease";
        assert!(hint(apt, &[]).is_some_and(|hint| hint.ends_with(" apt=https://deb.debian.org")));
        assert_eq!(hint("at STEP 4/7: RUN make\nmake: not found", &[]), None);
    }
}
