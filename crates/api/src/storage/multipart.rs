//! `multipart/related` of two parts, the description and the bytes, read as it arrives. gcloud writes the boundary in
//! single quotes and ends its lines by LF alone; others write CRLF. Both are taken.

use bytes::{Bytes, BytesMut};

use crate::error::Error;

/// Most bytes before the second part's content.
const LONGEST_HEAD: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Multipart {
    /// `--BOUNDARY`.
    mark: Vec<u8>,
    arrived: BytesMut,
    /// Whether lines end by CRLF.
    carriage: bool,
    in_content: bool,
    ended: bool,
}

/// What comes before the bytes.
#[derive(Debug)]
pub(super) struct Description {
    /// The first part's content.
    pub(super) document: Vec<u8>,
    /// The second part's media type.
    pub(super) content_type: Option<String>,
}

impl Multipart {
    /// By the request's `Content-Type`; None where it is of another kind.
    pub(super) fn new(content_type: &str) -> Option<Self> {
        let (kind, parameters) = content_type.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("multipart/related") {
            return None;
        }
        let boundary = parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim())
        })?;
        let quoted = |quote: char| {
            let inside = boundary.strip_prefix(quote)?;
            inside.strip_suffix(quote)
        };
        let boundary = quoted('\'').or_else(|| quoted('"')).unwrap_or(boundary);
        if boundary.is_empty() || boundary.len() > 200 {
            return None;
        }
        Some(Self {
            mark: format!("--{boundary}").into_bytes(),
            arrived: BytesMut::new(),
            carriage: false,
            in_content: false,
            ended: false,
        })
    }

    pub(super) fn push(&mut self, data: &[u8]) {
        // What follows the closing boundary is nobody's.
        if !self.ended {
            self.arrived.extend_from_slice(data);
        }
    }

    /// What comes before the bytes, once the second part's head is there.
    pub(super) fn description(&mut self) -> Result<Option<Description>, Error> {
        let read = self.head();
        if read.is_none() && self.arrived.len() > LONGEST_HEAD {
            return Err(Error::invalid(format!(
                "the request body has more than {LONGEST_HEAD} bytes before its second part"
            )));
        }
        let Some((document, kind, from, carriage)) = read else {
            return Ok(None);
        };
        self.arrived = self.arrived.split_off(from);
        self.carriage = carriage;
        self.in_content = true;
        Ok(Some(Description {
            document,
            content_type: kind,
        }))
    }

    /// First content, second media type, where the second content begins, whether lines end by CRLF.
    fn head(&self) -> Option<(Vec<u8>, Option<String>, usize, bool)> {
        let all = &self.arrived[..];
        let first = find(all, &self.mark)? + self.mark.len();
        let carriage = all.get(first) == Some(&b'\r');
        let (_, begin) = headers(all, first)?;
        let second = begin + find(&all[begin..], &self.mark)?;
        let document = trimmed(&all[begin..second]).to_vec();
        let (lines, from) = headers(all, second + self.mark.len())?;
        let kind = lines.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim()
                .eq_ignore_ascii_case("content-type")
                .then(|| value.trim().to_owned())
        });
        Some((document, kind, from, carriage))
    }

    /// The second part's bytes that are surely its content; at the end all of them.
    pub(super) fn content(&mut self, at_end: bool) -> Result<Bytes, Error> {
        if self.ended {
            return Ok(Bytes::new());
        }
        let mut closing = if self.carriage {
            b"\r\n".to_vec()
        } else {
            b"\n".to_vec()
        };
        closing.extend_from_slice(&self.mark);
        if let Some(end) = find(&self.arrived, &closing) {
            self.ended = true;
            let content = self.arrived.split_to(end).freeze();
            self.arrived.clear();
            return Ok(content);
        }
        if at_end {
            return Err(Error::invalid("the request body ends without its closing boundary"));
        }
        let sure = self.arrived.len().saturating_sub(closing.len());
        Ok(self.arrived.split_to(sure).freeze())
    }
}

/// The lines from the end of a boundary to the empty one, and where what follows begins.
fn headers(all: &[u8], from: usize) -> Option<(Vec<String>, usize)> {
    let mut lines = Vec::new();
    let mut at = from + find(&all[from..], b"\n")? + 1;
    loop {
        let end = at + find(&all[at..], b"\n")?;
        let line = String::from_utf8_lossy(&all[at..end]).trim_end_matches('\r').to_owned();
        at = end + 1;
        if line.is_empty() {
            return Some((lines, at));
        }
        lines.push(line);
    }
}

fn trimmed(content: &[u8]) -> &[u8] {
    content.trim_ascii()
}

fn find(all: &[u8], wanted: &[u8]) -> Option<usize> {
    all.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, body: &[u8], piece: usize) -> (Vec<u8>, Option<String>, Vec<u8>) {
        let mut parts = Multipart::new(kind).expect("multipart");
        let mut head = None;
        let mut content = Vec::new();
        for data in body.chunks(piece) {
            parts.push(data);
            if head.is_none() {
                head = parts.description().expect("short");
            }
            if head.is_some() {
                content.extend_from_slice(&parts.content(false).expect("goes on"));
            }
        }
        content.extend_from_slice(&parts.content(true).expect("closed"));
        let head = head.expect("two parts");
        (head.document, head.content_type, content)
    }

    #[test]
    fn as_gcloud_writes_it_and_as_others_do() {
        let gcloud = b"--===1==\nContent-Type: application/json\nMIME-Version: 1.0\n\n{\"size\": \"9\"}\n--===1==\nContent-Type: application/zip\n\nPK\n\r\n--=\n\n\n--===1==--";
        let content = b"PK\n\r\n--=\n\n";
        for piece in [1, 7, 1000] {
            let (document, kind, found) = read("multipart/related; boundary='===1=='", gcloud, piece);
            assert_eq!(document, b"{\"size\": \"9\"}");
            assert_eq!(kind.as_deref(), Some("application/zip"));
            assert_eq!(found, content, "in pieces of {piece}");
        }
        let plain = b"--x\r\nContent-Type: application/json\r\n\r\n{}\r\n--x\r\nContent-Type: a/b\r\n\r\none\ntwo\n\r\n--x--\r\n";
        for piece in [1, 5, 1000] {
            let (document, _, found) = read("multipart/related; boundary=\"x\"; charset=utf-8", plain, piece);
            assert_eq!(
                (document.as_slice(), found.as_slice()),
                (&b"{}"[..], &b"one\ntwo\n"[..])
            );
        }
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        assert!(Multipart::new("multipart/form-data; boundary=x").is_none());
        assert!(Multipart::new("multipart/related").is_none());
        let mut parts = Multipart::new("multipart/related; boundary=x").expect("multipart");
        parts.push(b"--x\n\n{}\n--x\n\nabc");
        assert!(parts.description().expect("short").is_some());
        assert!(parts.content(true).is_err());
        let mut endless = Multipart::new("multipart/related; boundary=x").expect("multipart");
        endless.push(&vec![b'a'; LONGEST_HEAD + 1]);
        assert!(endless.description().is_err());
    }
}
