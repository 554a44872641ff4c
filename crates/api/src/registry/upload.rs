//! Uploads of a blob: in one piece or in chunks.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use image::{Digest, Images, Repository, UploadId};

use super::{Refusal, accepted, blocking, created, put_location};
use crate::{
    document::short,
    reply::{self, Body},
};

/// How much is gathered before it goes to the disk, in at most how many pieces.
const GATHERED: usize = 512 << 10;
const PIECES: usize = 256;

fn parameter(head: &Parts, name: &str) -> Option<String> {
    form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
        .find(|(key, value)| key == name && !value.is_empty())
        .map(|(_, value)| value.into_owned())
}

fn digest(head: &Parts) -> Result<Option<Digest>, Refusal> {
    parameter(head, "digest")
        .map(|text| text.parse().map_err(|error| Refusal::digest(&error)))
        .transpose()
}

fn location(repository: &Repository, upload: &UploadId) -> String {
    format!("/v2/{}/blobs/uploads/{upload}", repository.path())
}

fn blob_location(repository: &Repository, digest: &Digest) -> String {
    format!("/v2/{}/blobs/{digest}", repository.path())
}

/// `POST`: opens an upload; with `digest` the body is the whole blob; with `mount` a blob that is stored already, for
/// whichever repository, is taken over.
pub(super) async fn begin(
    images: &Images,
    repository: &Repository,
    head: &Parts,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    if let Some(wanted) = parameter(head, "mount") {
        let wanted: Digest = wanted.parse().map_err(|error| Refusal::digest(&error))?;
        let all = images.clone();
        if blocking(move || all.claim_blob(&wanted)).await??.is_some() {
            return Ok(created(&blob_location(repository, &wanted), &wanted));
        }
    }
    let expected = digest(head)?;
    let upload = images.begin_upload().await?;
    let Some(expected) = expected else {
        return Ok(going_on(StatusCode::ACCEPTED, repository, &upload, 0));
    };
    let stored = async {
        append(images, &upload, None, body).await?;
        images.finish_upload(&upload, expected).await?;
        Ok(created(&blob_location(repository, &expected), &expected))
    };
    let stored = stored.await;
    if stored.is_err() {
        // Gone already when it was the digest that was wrong.
        let _ = images.cancel_upload(&upload).await;
    }
    stored
}

pub(super) async fn answer(
    images: &Images,
    repository: &Repository,
    upload: UploadId,
    head: &Parts,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    match head.method {
        Method::GET | Method::HEAD => {
            let length = images.upload_length(&upload).await?;
            Ok(going_on(StatusCode::NO_CONTENT, repository, &upload, length))
        }
        Method::PATCH => {
            let length = append(images, &upload, start(head)?, body).await?;
            Ok(going_on(StatusCode::ACCEPTED, repository, &upload, length))
        }
        Method::PUT => {
            let expected = digest(head)?.ok_or_else(Refusal::no_digest)?;
            append(images, &upload, start(head)?, body).await?;
            images.finish_upload(&upload, expected).await?;
            Ok(created(&blob_location(repository, &expected), &expected))
        }
        Method::DELETE => {
            images.cancel_upload(&upload).await?;
            let mut response = accepted();
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        _ => Err(Refusal::unsupported(head)),
    }
}

/// The first byte's place, by `Content-Range: FIRST-LAST`. The chunk must be as long as that says.
fn start(head: &Parts) -> Result<Option<u64>, Refusal> {
    let Some(value) = head.headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let range = text.strip_prefix("bytes").unwrap_or(text).trim();
    let range = range.split_once('/').map_or(range, |(range, _)| range);
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let places = range.split_once('-').map(|(first, last)| (number(first), number(last)));
    let Some((Some(first), Some(last))) = places else {
        return Err(Refusal::chunk(format!(
            "Content-Range \"{}\" is not of the form FIRST-LAST",
            short(text)
        )));
    };
    let length = head.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| number(length.to_str().ok()?));
    if last.checked_sub(first).is_none() || length.is_some_and(|length| length != last - first + 1) {
        return Err(Refusal::chunk(format!(
            "Content-Range \"{}\" does not fit the chunk's length",
            short(text)
        )));
    }
    Ok(Some(first))
}

/// Writes the body through to the upload, in the pieces in which it came. Answers its new length.
async fn append(images: &Images, upload: &UploadId, at: Option<u64>, mut body: Body) -> Result<u64, Refusal> {
    let mut place = at;
    let mut length = images.upload_length(upload).await?;
    let mut gathered: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    loop {
        let data = super::next(&mut body).await?;
        let ended = data.is_none();
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            bytes += data.len();
            gathered.push(data);
        }
        // Also the empty chunk at the end: its place is checked as any other's.
        if bytes >= GATHERED || gathered.len() >= PIECES || (ended && (bytes > 0 || place.is_some())) {
            length = images.append(upload, place, std::mem::take(&mut gathered)).await?;
            bytes = 0;
            place = place.is_some().then_some(length);
        }
        if ended {
            return Ok(length);
        }
    }
}

/// Where the upload stands and where its next chunk goes.
fn going_on(status: StatusCode, repository: &Repository, upload: &UploadId, length: u64) -> Response<Body> {
    let mut response = Response::new(reply::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    put_location(headers, &location(repository, upload));
    let range = HeaderValue::from_str(&format!("0-{}", length.saturating_sub(1))).expect("plain ASCII");
    headers.insert(header::RANGE, range);
    let id = HeaderValue::from_str(&upload.to_string()).expect("hexadecimal digits");
    headers.insert("docker-upload-uuid", id);
    response
}
