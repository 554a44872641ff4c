//! Reading a blob: whole, or the one range that a resuming client asks for.

use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use image::{Digest, Images};

use super::{Refusal, blocking, put_digest};
use crate::reply::{self, Body, FileBody};

pub(super) async fn read(images: &Images, digest: Digest, head: &Parts) -> Result<Response<Body>, Refusal> {
    let images = images.clone();
    // A client that hears of a blob does not push it again: it stays for the manifest that will name it.
    let is_asked = head.method == Method::HEAD;
    let blob = blocking(move || {
        if is_asked {
            images.claim_blob(&digest)?;
        }
        images.blob(&digest)
    })
    .await??;
    let length = blob.length;
    let asked = head.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let part = match asked.map_or(Asked::Whole, |range| range_of(range, length)) {
        Asked::Whole => None,
        Asked::Part(part) => Some(part),
        Asked::Nothing => {
            let mut response = Refusal::range(format!("the blob has {length} bytes")).response();
            let value = HeaderValue::from_str(&format!("bytes */{length}")).expect("plain ASCII");
            response.headers_mut().insert(header::CONTENT_RANGE, value);
            return Ok(response);
        }
    };
    let (first, left) = part.map_or((0, length), |(first, last)| (first, last - first + 1));
    let mut file = blob.file;
    if first > 0 {
        let sought =
            blocking(move || std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(first)).map(|_| file)).await?;
        file = sought.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, %digest, "cannot seek in a blob");
            Refusal::unavailable()
        })?;
    }
    let body = if head.method == Method::HEAD {
        reply::empty()
    } else {
        FileBody::new(file, left).boxed_unsync()
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, left.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    put_digest(headers, &digest);
    if let Some((first, last)) = part {
        let value = HeaderValue::from_str(&format!("bytes {first}-{last}/{length}")).expect("plain ASCII");
        headers.insert(header::CONTENT_RANGE, value);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    /// First and last byte.
    Part((u64, u64)),
    /// A range of which the blob has no byte.
    Nothing,
}

/// One range is served; several, or what is not understood, get the whole (RFC 9110 14.2 lets a server do so).
fn range_of(header: &str, length: u64) -> Asked {
    let Some((first, last)) = header
        .trim()
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
    else {
        return Asked::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last && first < length => Asked::Part((first, last.min(length - 1))),
        (Ok(first), Ok(last)) if first <= last => Asked::Nothing,
        (Ok(first), Err(_)) if last.trim().is_empty() && first < length => Asked::Part((first, length - 1)),
        (Ok(_), Err(_)) if last.trim().is_empty() => Asked::Nothing,
        (Err(_), Ok(count)) if first.trim().is_empty() => {
            if count == 0 || length == 0 {
                Asked::Nothing
            } else {
                Asked::Part((length.saturating_sub(count), length - 1))
            }
        }
        _ => Asked::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (header, asked) in [
            ("bytes=0-3", Asked::Part((0, 3))),
            ("bytes=4-", Asked::Part((4, 9))),
            ("bytes=8-99", Asked::Part((8, 9))),
            ("bytes=-4", Asked::Part((6, 9))),
            ("bytes=-99", Asked::Part((0, 9))),
            ("bytes=10-", Asked::Nothing),
            ("bytes=10-12", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=3-1", Asked::Whole),
            ("bytes=0-1,4-5", Asked::Whole),
            ("lines=1-2", Asked::Whole),
        ] {
            assert_eq!(range_of(header, 10), asked, "{header}");
        }
    }
}
