//! npm's registry: a packument, the document of a package, names the file of each version as
//! `versions.VERSION.dist.tarball`, and the document of one version as `dist.tarball`. They are rewritten while they pass:
//! a packument may have hundreds of megabytes, and all else in it stays byte for byte. What a publisher puts elsewhere
//! into it names nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Frame;
use reqwest::Url;

use super::named::Named;
use crate::relay::Body;

/// Largest packument. Those of a package with thousands of versions have a tenth of it.
pub(super) const MAX_PACKUMENT: usize = 256 << 20;
/// Longest link, and longest key that is looked at.
const MAX_LINK: usize = 16 << 10;
const MAX_KEY: usize = 1 << 10;
/// How deep a document may be.
const MAX_DEPTH: usize = 200;

/// Whether a document of this content type may be a packument.
pub(super) fn is_packument(kind: &str) -> bool {
    kind == "application/json" || kind == "application/vnd.npm.install-v1+json"
}

/// A packument that names its files by the relay.
pub(super) fn with_links(document: reqwest::Body, at: Url, named: Named) -> Body {
    Rewritten {
        document: Limited::new(document, MAX_PACKUMENT),
        scanner: Scanner::default(),
        at,
        named,
    }
    .boxed_unsync()
}

struct Rewritten {
    document: Limited<reqwest::Body>,
    scanner: Scanner,
    at: Url,
    named: Named,
}

impl hyper::body::Body for Rewritten {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            let frame = match ready!(Pin::new(&mut this.document).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                Some(Ok(frame)) => frame,
            };
            // What comes after the content is of no use to a package manager.
            let Ok(piece) = frame.into_data() else { continue };
            let (at, named) = (&this.at, &this.named);
            let made = this.scanner.feed(&piece, |link| {
                let is_whole = link.starts_with("https://") || link.starts_with("http://");
                let path = is_whole.then(|| named.link(at, link)).flatten()?;
                Some(named.absolute(&path))
            });
            return Poll::Ready(Some(match made {
                Ok(made) if made.is_empty() => continue,
                Ok(made) => Ok(Frame::data(made.into())),
                Err(why) => Err(io::Error::other(why)),
            }));
        }
    }
}

/// A string that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Key,
    /// The value that is rewritten; it is held back until its end.
    Link,
    Other,
}

/// Follows a JSON document as far as to know where in it a value stands.
#[derive(Debug, Default)]
struct Scanner {
    /// The keys that lead to where it is; that of an element of a list is empty.
    path: Vec<Vec<u8>>,
    /// What the outer objects and lists are, and the innermost.
    is_object: Vec<bool>,
    /// In an object, before a colon.
    before_colon: bool,
    text: Option<Text>,
    /// The next byte of a string is escaped.
    is_escaped: bool,
    /// Of a key or a link, with its quotes.
    held: Vec<u8>,
}

impl Scanner {
    /// Answers what goes on of the next piece.
    fn feed(&mut self, piece: &[u8], link: impl Fn(&str) -> Option<String>) -> Result<Vec<u8>, String> {
        let mut made = Vec::with_capacity(piece.len() + 256);
        for &byte in piece {
            match self.text {
                Some(text) => self.inside(text, byte, &mut made, &link)?,
                None => self.between(byte, &mut made)?,
            }
        }
        Ok(made)
    }

    fn between(&mut self, byte: u8, made: &mut Vec<u8>) -> Result<(), String> {
        match byte {
            b'"' => {
                let text = if self.before_colon {
                    Text::Key
                } else if self.is_at_link() {
                    Text::Link
                } else {
                    Text::Other
                };
                self.text = Some(text);
                self.held.clear();
                self.held.push(byte);
                if text == Text::Link {
                    return Ok(());
                }
            }
            b'{' | b'[' => {
                if self.path.len() == MAX_DEPTH {
                    return Err(format!("a packument is more than {MAX_DEPTH} levels deep"));
                }
                self.before_colon = byte == b'{';
                self.is_object.push(self.before_colon);
                self.path.push(Vec::new());
            }
            b'}' | b']' => {
                self.path.pop();
                self.is_object.pop();
                self.before_colon = false;
            }
            b',' => self.before_colon = self.is_object.last().copied().unwrap_or(false),
            b':' => self.before_colon = false,
            _ => {}
        }
        made.push(byte);
        Ok(())
    }

    fn inside(
        &mut self,
        text: Text,
        byte: u8,
        made: &mut Vec<u8>,
        link: impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let ends = byte == b'"' && !self.is_escaped;
        self.is_escaped = byte == b'\\' && !self.is_escaped;
        match text {
            Text::Other => made.push(byte),
            Text::Key => {
                made.push(byte);
                // A longer one is none of those that are looked for.
                if self.held.len() < MAX_KEY {
                    self.held.push(byte);
                }
                if ends && let Some(last) = self.path.last_mut() {
                    last.clear();
                    last.extend_from_slice(self.held.get(1..self.held.len() - 1).unwrap_or_default());
                }
            }
            Text::Link => {
                if self.held.len() == MAX_LINK {
                    return Err(format!("a link of a packument has more than {MAX_LINK} bytes"));
                }
                self.held.push(byte);
                if ends {
                    let given = serde_json::from_slice::<String>(&self.held).ok();
                    match given.and_then(|given| link(&given)) {
                        Some(other) => made.extend(serde_json::Value::from(other).to_string().into_bytes()),
                        None => made.extend_from_slice(&self.held),
                    }
                }
            }
        }
        if ends {
            self.text = None;
        }
        Ok(())
    }

    fn is_at_link(&self) -> bool {
        let path: Vec<&[u8]> = self.path.iter().map(Vec::as_slice).collect();
        matches!(path[..], [b"versions", _, b"dist", b"tarball"] | [b"dist", b"tarball"])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Rewritten in pieces of one length.
    fn rewritten(document: &[u8], length: usize) -> Result<Vec<u8>, String> {
        let mut scanner = Scanner::default();
        let link = |to: &str| to.strip_prefix("http").map(|rest| format!("relay{rest}"));
        let made: Result<Vec<_>, _> = document.chunks(length).map(|piece| scanner.feed(piece, link)).collect();
        Ok(made?.concat())
    }

    #[test]
    fn links_in_their_place_alone_are_rewritten() {
        let document = r#" {"name":"a\"b","dist":{"tarball":"http:0"}, "versions" : {"1.0.0":{"scripts":{"tarball":"http:1"},
            "dist":{"x":["tarball","http:2",{"tarball":"http:3"}],"tarball" : "http:\/\/4\u0041" ,"y":"tarball"},"dist2":{"tarball":"http:5"},
            "keywords":[{"dist":{"tarball":"http:6"}}],"x":{"dist":{"tarball":"http:7"}}},
            "2":{"dist":{"tarball":"ftp:8"}}},"other":{"1":{"dist":{"tarball":"http:9"}}}} "#;
        let expected = document
            .replace("\"http:0\"", "\"relay:0\"")
            .replace(r#""http:\/\/4\u0041""#, "\"relay://4A\"");
        for length in [1, 2, 3, 7, 64, document.len()] {
            let made = rewritten(document.as_bytes(), length).expect("short links");
            assert_eq!(String::from_utf8(made).expect("text"), expected, "{length}");
        }
    }

    #[test]
    fn what_is_too_long_or_too_deep_is_refused() {
        let long = json!({"dist": {"tarball": "x".repeat(MAX_LINK)}}).to_string();
        assert!(rewritten(long.as_bytes(), 100).is_err_and(|why| why.contains("16384")));
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert!(rewritten(deep.as_bytes(), 100).is_err_and(|why| why.contains("200 levels")));
        let (key, dist) = ("x".repeat(5000), r#","dist":{"tarball":"#);
        let made = rewritten(format!("{{\"{key}\":\"http:1\"{dist}\"http:2\"}}}}").as_bytes(), 100);
        let expected = format!("{{\"{key}\":\"http:1\"{dist}\"relay:2\"}}}}");
        assert_eq!(
            made.map(String::from_utf8),
            Ok(Ok(expected)),
            "a long key is nothing to us"
        );
    }

    fn document() -> impl Strategy<Value = Value> {
        let word = proptest::sample::select(vec![
            "versions", "dist", "tarball", "1", "http:x", "\"", "\\", "\\\"", "{", "}", "[", ",", ":", "é", "",
        ]);
        let text = proptest::collection::vec(word, 0..3).prop_map(|words| words.concat());
        let leaf = prop_oneof![text.clone().prop_map(Value::from), Just(json!(null)), Just(json!(1.5))];
        leaf.prop_recursive(6, 64, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((text.clone(), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// The same by a parser.
    fn by_parser(mut document: Value) -> Value {
        fn tarball(of: Option<&mut Value>) {
            if let Some(Value::String(link)) = of.and_then(|of| of.get_mut("dist")?.get_mut("tarball"))
                && let Some(rest) = link.strip_prefix("http")
            {
                *link = format!("relay{rest}");
            }
        }
        tarball(Some(&mut document));
        if let Some(Value::Object(versions)) = document.get_mut("versions") {
            versions.values_mut().for_each(|version| tarball(Some(version)));
        }
        document
    }

    proptest! {
        #[test]
        fn nothing_else_changes(document in document(), length in 1_usize..20) {
            // A list of versions is none; the scanner looks at no more than keys.
            prop_assume!(!document["versions"].is_array());
            let made = rewritten(document.to_string().as_bytes(), length).expect("no long link");
            let made: Value = serde_json::from_slice(&made).expect("a document");
            prop_assert_eq!(made, by_parser(document));
        }
    }
}
