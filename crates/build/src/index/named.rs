//! From what a step asks for to what is read, and from what an index names to what a step asks for.
//!
//! What lies below the index keeps its place. Files elsewhere (those of `PyPI` lie at files.pythonhosted.org) are named to the
//! step as `/KIND-link/SEAL/https/HOST/PATH`; the seal is made with a key of the build.

use percent_encoding::percent_decode_str;
use reqwest::Url;
use sha2::{Digest as _, Sha256};

use super::{Index, Kind, cargo, is_here, plain, reader::Refused};

/// An index and what it has named in one build.
#[derive(Clone)]
pub(super) struct Named {
    kind: Kind,
    base: Url,
    key: [u8; 32],
    /// Of the relay, in a builder.
    port: u16,
}

impl Named {
    pub(super) fn new(index: &Index, secret: &str, port: u16) -> Self {
        Self {
            kind: index.kind,
            base: index.url.clone(),
            key: Sha256::digest(format!("{} links of {secret}", index.kind).as_bytes()).into(),
            port,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The index's URL.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// From what a step asks for to what is read.
    pub(super) fn meant(&self, asked: &str) -> Result<Url, Refused> {
        let outside = || Refused::forbidden("that is not below the package index");
        let Some(sealed) = asked.strip_prefix(self.kind.link()) else {
            let rest = asked.strip_prefix(self.kind.own()).unwrap_or_default();
            // As a path, whatever it looks like.
            let url = self.base.join(&format!("./{rest}")).map_err(|_| outside())?;
            return if self.is_below(&url) && !climbs(&url) {
                Ok(url)
            } else {
                Err(outside())
            };
        };
        let unnamed = || Refused::forbidden("the package index of this build has not named that");
        let (seal, rest) = sealed.split_once('/').ok_or_else(unnamed)?;
        if self.kind == Kind::Cargo {
            let crate_asked = cargo::asked(rest).ok_or_else(unnamed)?;
            let url = Some(crate_asked).filter(|asked| self.seal(&asked.template) == seal);
            let url = url.and_then(|asked| asked.url()).filter(|url| self.may_name(url));
            return url.ok_or_else(unnamed);
        }
        let (scheme, rest) = rest.split_once('/').ok_or_else(unnamed)?;
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|_| unnamed())?;
        let mut named = url.clone();
        // A file's own metadata lies beside it (PEP 658), and is not named apart.
        if let Some(file) = url.path().strip_suffix(".metadata").filter(|_| self.kind == Kind::Pip) {
            named.set_path(file);
        }
        if [&url, &named].iter().any(|url| self.seal(url.as_str()) == seal) {
            Ok(url)
        } else {
            Err(unnamed())
        }
    }

    /// The path of the relay that stands for a link of a page: None where it stays as it is.
    pub(super) fn link(&self, page: &Url, link: &str) -> Option<String> {
        let mut url = page.join(link).ok().map(plain)?;
        if !matches!(url.scheme(), "http" | "https") || link.starts_with('#') {
            return None;
        }
        let fragment = url.fragment().map(|text| format!("#{text}")).unwrap_or_default();
        url.set_fragment(None);
        if self.is_below(&url) {
            let query = url.query().map(|text| format!("?{text}")).unwrap_or_default();
            let rest = &url.path()[self.base.path().len()..];
            return Some(format!("{}{rest}{query}{fragment}", self.kind.own()));
        }
        if !self.may_name(&url) {
            return None;
        }
        let seal = self.seal(url.as_str());
        let (scheme, rest) = url.as_str().split_once("://")?;
        Some(format!("{}{seal}/{scheme}/{rest}{fragment}", self.kind.link()))
    }

    /// The relay's URL for one of its paths.
    pub(super) fn absolute(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Whether files may lie there: at hosts of the internet by their names, beside the index, and on this machine only
    /// where the index is there too.
    pub(super) fn may_name(&self, url: &Url) -> bool {
        let is_name = url.domain().is_some_and(|name| name.contains('.')) && !is_here(url);
        url.origin() == self.base.origin()
            || (url.scheme() == "https" && is_name)
            || (is_here(&self.base) && is_here(url))
    }

    pub(super) fn is_below(&self, url: &Url) -> bool {
        url.origin() == self.base.origin() && url.path().starts_with(self.base.path())
    }

    /// Where a document lies below the index.
    pub(super) fn place<'u>(&self, url: &'u Url) -> Option<&'u str> {
        self.is_below(url).then(|| &url.path()[self.base.path().len()..])
    }

    pub(super) fn with_credentials(&self, mut url: Url) -> Url {
        if url.origin() == self.base.origin() {
            // They come from a URL of the same form.
            let _ = url.set_username(self.base.username());
            let _ = url.set_password(self.base.password());
        }
        url
    }

    /// Shows that this build's index named it.
    pub(super) fn seal(&self, named: &str) -> String {
        use std::fmt::Write as _;
        let inner = Sha256::new().chain_update(self.key).chain_update(named).finalize();
        let outer = Sha256::new().chain_update(self.key).chain_update(inner).finalize();
        let mut seal = String::with_capacity(32);
        for byte in &outer[..16] {
            let _ = write!(seal, "{byte:02x}");
        }
        seal
    }
}

/// Whether a path leads up where an index reads `%2f` as a slash, as npm's does.
fn climbs(url: &Url) -> bool {
    let path = percent_decode_str(url.path()).collect::<Vec<u8>>();
    path.split(|byte| b"/\\".contains(byte)).any(|part| part == b"..")
}

/// Of one kind, for the tests of all.
#[cfg(test)]
pub(super) fn named(index: &str) -> Named {
    Named::new(&Index::parse(index).expect("an index"), "secret", 3128)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn what_a_step_may_read() {
        let named = named("pip=https://u:p@pypi.example/root/simple");
        let meant = |asked: &str| named.meant(asked).map(|url| plain(url).to_string());
        assert_eq!(
            meant("/pip/flask/?a=1"),
            Ok("https://pypi.example/root/simple/flask/?a=1".to_owned())
        );
        assert_eq!(meant("/pip/"), Ok("https://pypi.example/root/simple/".to_owned()));
        assert_eq!(
            meant("/pip///evil.example/x"),
            Ok("https://pypi.example/root/simple///evil.example/x".to_owned())
        );
        for asked in [
            "/pip/../admin",
            "/pip/%2e%2e/admin",
            "/pip/a/../../admin",
            "/pip/a%2f..%2f..%2fadmin",
            "/pip/..%5c..%5cadmin",
            "/pip-link/00000000000000000000000000000000/https/files.example/a.whl",
            "/pip-link/x",
        ] {
            assert_eq!(meant(asked).expect_err(asked).0, StatusCode::FORBIDDEN, "{asked}");
        }
        let page = Url::parse("https://pypi.example/root/simple/flask/").expect("a page");
        let link = |to: &str| named.link(&page, to);
        assert_eq!(
            link("f-1.whl#sha256=ab"),
            Some("/pip/flask/f-1.whl#sha256=ab".to_owned())
        );
        let other = link("https://files.example/p/f-1.whl#sha256=ab").expect("rewritten");
        assert!(other.starts_with("/pip-link/") && other.ends_with("/https/files.example/p/f-1.whl#sha256=ab"));
        let asked = other.split('#').next().expect("a path");
        assert_eq!(meant(asked), Ok("https://files.example/p/f-1.whl".to_owned()));
        assert_eq!(
            meant(&format!("{asked}.metadata")),
            Ok("https://files.example/p/f-1.whl.metadata".to_owned())
        );
        for changed in [
            format!("{asked}x"),
            asked.replace("/p/", "/q/"),
            asked.replace("https", "http"),
        ] {
            assert!(meant(&changed).is_err(), "{changed}");
        }
        // Beside the index, above its prefix.
        let beside = link("../../files/f-1.whl").expect("rewritten");
        assert!(beside.ends_with("/https/pypi.example/root/files/f-1.whl"), "{beside}");
        for stays in [
            "http://files.example/f.whl",
            "https://127.0.0.1/f.whl",
            "https://10.0.0.1/f.whl",
            "https://localhost/f.whl",
            "https://metadata/f.whl",
            "mailto:a@b.example",
            "#top",
        ] {
            assert_eq!(link(stays), None, "{stays}");
        }
    }

    #[test]
    fn names_of_npm_keep_their_slash() {
        let named = named("npm=https://registry.example/all");
        let meant = |asked: &str| named.meant(asked).map(|url| url.to_string());
        assert_eq!(
            meant("/npm/@a%2fb"),
            Ok("https://registry.example/all/@a%2fb".to_owned())
        );
        // A file's metadata is pip's.
        let page = Url::parse("https://registry.example/all/x").expect("a page");
        let link = named.link(&page, "https://files.example/x.tgz").expect("sealed");
        assert_eq!(meant(&link), Ok("https://files.example/x.tgz".to_owned()));
        assert!(meant(&format!("{link}.metadata")).is_err());
    }
}
