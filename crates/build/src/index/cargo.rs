//! Cargo's sparse index: its `config.json` says where the files of crates lie, as a template that cargo fills in. The
//! template is sealed as a whole, and what cargo would put into it is asked for apart:
//! `/cargo-link/SEAL/TEMPLATE/CRATE/VERSION/SHA256`.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;
use serde_json::{Value, json};

use super::{named::Named, reader::Refused};

/// The document that names files; all others are lists of versions.
pub(super) const CONFIGURATION: &str = "config.json";
/// Its largest size.
pub(super) const MAX_CONFIGURATION: usize = 64 << 10;

/// The configuration with the relay as the place of files. Its `api` is for those who publish, and is left out.
pub(super) fn with_links(content: &[u8], named: &Named) -> Result<Vec<u8>, Refused> {
    let document: Value = serde_json::from_slice(content).map_err(|error| Refused::index(&error))?;
    let Some(template) = document["dl"].as_str() else {
        return Err(Refused::forbidden(
            "the package index of cargo has no \"dl\" in its config.json",
        ));
    };
    if document["auth-required"] == true {
        return Err(Refused::forbidden(
            "the package index of cargo wants a token (auth-required), which is not served",
        ));
    }
    let probe = Asked {
        template: template.to_owned(),
        name: "probe".to_owned(),
        version: "1.0.0".to_owned(),
        checksum: "0".repeat(64),
    };
    if !probe.url().is_some_and(|url| named.may_name(&url)) {
        return Err(Refused::forbidden(
            "the package index of cargo keeps its files where the relay does not go",
        ));
    }
    let (seal, template) = (named.seal(template), utf8_percent_encode(template, NON_ALPHANUMERIC));
    let path = format!("/cargo-link/{seal}/{template}/{{crate}}/{{version}}/{{sha256-checksum}}");
    Ok(json!({ "dl": named.absolute(&path) }).to_string().into_bytes())
}

/// A crate's file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) template: String,
    name: String,
    version: String,
    checksum: String,
}

/// What a path names, without its seal.
pub(super) fn asked(path: &str) -> Option<Asked> {
    let words: Vec<String> = path
        .split('/')
        .map(|word| percent_decode_str(word).decode_utf8().map(Into::into).ok())
        .collect::<Option<_>>()?;
    let [template, name, version, checksum] = <[String; 4]>::try_from(words).ok()?;
    let consists = |word: &str, most: usize, others: &[u8]| {
        (1..=most).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
    };
    let fits = consists(&name, 64, b"_-")
        && consists(&version, 256, b".+-")
        && !version.contains("..")
        && checksum.len() == 64
        && consists(&checksum, 64, b"");
    fits.then_some(Asked {
        template,
        name,
        version,
        checksum,
    })
}

impl Asked {
    /// The template filled in, by cargo's rules.
    pub(super) fn url(&self) -> Option<Url> {
        let lower = self.name.to_ascii_lowercase();
        let marks = [
            ("{crate}", self.name.clone()),
            ("{version}", self.version.clone()),
            ("{prefix}", prefix(&self.name)),
            ("{lowerprefix}", prefix(&lower)),
            ("{sha256-checksum}", self.checksum.clone()),
        ];
        let text = if marks.iter().any(|(mark, _)| self.template.contains(mark)) {
            let fill = |text: String, (mark, value): &(&str, String)| text.replace(mark, value);
            marks.iter().fold(self.template.clone(), fill)
        } else {
            format!("{}/{}/{}/download", self.template, self.name, self.version)
        };
        Url::parse(&text).ok()
    }
}

/// The directory of a crate in an index.
fn prefix(name: &str) -> String {
    match name.len() {
        1 => "1".to_owned(),
        2 => "2".to_owned(),
        3 => format!("3/{}", &name[..1]),
        _ => format!("{}/{}", &name[..2], &name[2..4]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// What a step gets that asks for `name` as cargo would.
    fn read(template: &str, name: &str, version: &str) -> Option<String> {
        let named = super::super::named::named("cargo=https://index.example/sparse");
        let made = with_links(json!({"dl": template, "api": "x"}).to_string().as_bytes(), &named).ok()?;
        let made: Value = serde_json::from_slice(&made).expect("a document");
        assert_eq!(made.get("api"), None);
        let url = made["dl"].as_str().expect("a template");
        let url = url
            .replace("{crate}", name)
            .replace("{version}", version)
            .replace("{sha256-checksum}", SUM);
        let path = url
            .strip_prefix("http://127.0.0.1:3128")
            .expect("the relay's")
            .to_owned();
        named.meant(&path).map(|url| url.to_string()).ok()
    }

    #[test]
    fn templates_are_filled_in_as_cargo_does() {
        for (template, name, url) in [
            (
                "https://static.example/crates",
                "Serde_json",
                "https://static.example/crates/Serde_json/1.0.0+x/download".to_owned(),
            ),
            (
                "https://static.example/{prefix}/{lowerprefix}/{crate}-{version}?{sha256-checksum}",
                "AbCd",
                format!("https://static.example/Ab/Cd/ab/cd/AbCd-1.0.0+x?{SUM}"),
            ),
            (
                "https://static.example/{prefix}/{crate}",
                "syn",
                "https://static.example/3/s/syn".to_owned(),
            ),
        ] {
            assert_eq!(read(template, name, "1.0.0+x"), Some(url), "{template}");
        }
    }

    #[test]
    fn nothing_else_of_the_host_is_read() {
        let good = "https://static.example/crates";
        for (template, name, version) in [
            (good, "a/b", "1.0.0"),
            (good, "..", "1.0.0"),
            (good, "a", ".."),
            (good, "a%2fb", "1.0.0"),
            (good, "a", "1.0.0/x"),
            (good, "", "1"),
            ("http://static.example/crates", "a", "1"),
            ("https://10.0.0.1/crates", "a", "1"),
            ("https://localhost/crates", "a", "1"),
            ("file:///crates", "a", "1"),
        ] {
            assert_eq!(read(template, name, version), None, "{template} {name} {version}");
        }
        let named = super::super::named::named("cargo=https://index.example/sparse");
        let encoded = utf8_percent_encode(good, NON_ALPHANUMERIC);
        let path = format!("/cargo-link/{}/{encoded}/a/1.0.0/{SUM}", "0".repeat(32));
        assert!(named.meant(&path).is_err());
        for config in [
            "{}",
            "[]",
            "{\"dl\":1}",
            "{\"dl\":\"https://a.example\",\"auth-required\":true}",
        ] {
            assert!(with_links(config.as_bytes(), &named).is_err(), "{config}");
        }
    }
}
