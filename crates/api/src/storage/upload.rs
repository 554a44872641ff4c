//! Uploads: `media` (the body is the object), `multipart` (description and bytes in one body), `resumable` (opened with
//! the description; the bytes come in as many requests as it takes, and the server tells where to go on).

use std::time::Duration;

use bucket::{Draft, UploadId};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use model::Bucket;
use serde_json::Value;

use super::{aside, blocking, encode_object, multipart::Multipart};
use crate::{
    document::{self, Findings, Object as Document, short},
    error::{Code, Error},
    query::Query,
    reply::{self, Body},
    surface::Surface,
};

/// How much is gathered before it goes to the disk.
const PIECE: usize = 512 << 10;
/// How long a body may pause.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) async fn answer(
    surface: &Surface,
    bucket: &Bucket,
    head: &Parts,
    body: Body,
) -> Result<Response<Body>, Error> {
    let mut query = Query::parse(head.uri.query());
    let kind = query.take("uploadType")?.unwrap_or_default();
    let name = query.take("name")?;
    let id = query.take("upload_id")?;
    let if_generation = query.take("ifGenerationMatch")?;
    aside(&mut query)?;
    query.finish()?;
    let if_generation = if_generation
        .map(|text| {
            text.parse()
                .map_err(|_| Error::field("ifGenerationMatch", "expected a generation"))
        })
        .transpose()?;
    let media_type = |head: &Parts, name: &str| {
        let value = head.headers.get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    match (&head.method, kind.as_str(), id) {
        (&Method::POST, "media", None) => {
            let draft = Draft {
                name: name.unwrap_or_default(),
                content_type: media_type(head, "content-type"),
                if_generation,
                ..Draft::default()
            };
            let id = begin(surface, bucket, draft).await?;
            whole(surface, bucket, &id, body, None).await
        }
        (&Method::POST, "multipart", None) => {
            let kind = media_type(head, "content-type").unwrap_or_default();
            let mut parts = Multipart::new(&kind)
                .ok_or_else(|| Error::invalid("the Content-Type is not multipart/related with a boundary"))?;
            let mut body = body;
            let description = loop {
                if let Some(first) = parts.description()? {
                    break first;
                }
                match next(&mut body).await? {
                    Some(data) => parts.push(&data),
                    None => return Err(Error::invalid("the request body ends before its second part")),
                }
            };
            let value = serde_json::from_slice(&description.document)
                .map_err(|error| Error::invalid(format!("the first part is not valid JSON: {error}")))?;
            let mut draft = decode(value, name)?;
            draft.if_generation = if_generation;
            draft.content_type = draft.content_type.or(description.content_type);
            let id = begin(surface, bucket, draft).await?;
            whole(surface, bucket, &id, body, Some(parts)).await
        }
        (&Method::POST, "resumable", None) => {
            let kind = media_type(head, "x-upload-content-type");
            let mut draft = decode(document::read_json(body).await?, name)?;
            draft.if_generation = if_generation;
            draft.content_type = draft.content_type.or(kind);
            let id = begin(surface, bucket, draft).await?;
            let location = format!(
                "https://storage.googleapis.com/upload/storage/v1/b/{}/o?uploadType=resumable&upload_id={id}",
                bucket.name
            );
            let mut response = Response::new(reply::empty());
            let headers = response.headers_mut();
            headers.insert(header::LOCATION, HeaderValue::from_str(&location).expect("plain ASCII"));
            headers.insert(
                "x-guploader-uploadid",
                HeaderValue::from_str(&id.to_string()).expect("hex"),
            );
            Ok(response)
        }
        (&Method::PUT | &Method::POST, "resumable", Some(id)) => {
            let id: UploadId = id.parse().map_err(super::from_objects)?;
            resume(surface, bucket, &id, head, body).await
        }
        (&Method::DELETE, "resumable", Some(id)) => {
            let id: UploadId = id.parse().map_err(super::from_objects)?;
            surface.objects.cancel(&id);
            let mut response = Response::new(reply::empty());
            *response.status_mut() = StatusCode::from_u16(499).expect("a status");
            Ok(response)
        }
        (_, other, _) => Err(Error::field(
            "uploadType",
            format!("expected media, multipart or resumable, not \"{}\"", short(other)),
        )),
    }
}

/// The description that comes before the bytes. `name` of the query is the object's where it has none.
fn decode(document: Value, name: Option<String>) -> Result<Draft, Error> {
    let findings = Findings::default();
    let mut root = Document::root(document, &findings);
    let draft = Draft {
        name: root.text("name").or(name).unwrap_or_default(),
        content_type: root.text("contentType"),
        metadata: root.map("metadata"),
        md5: root.text("md5Hash"),
        crc32c: root.text("crc32c"),
        if_generation: None,
    };
    match root.text("storageClass").as_deref() {
        None | Some("STANDARD") => {}
        Some(other) => root.say(
            "storageClass",
            format!("only STANDARD is served, not \"{}\"", short(other)),
        ),
    }
    root.drop_owned(&["size", "bucket", "kind", "id", "generation"]);
    root.unserved(&[
        "acl",
        "cacheControl",
        "contentDisposition",
        "contentEncoding",
        "contentLanguage",
        "contexts",
        "customTime",
        "eventBasedHold",
        "kmsKeyName",
        "retention",
        "temporaryHold",
    ]);
    root.finish();
    let violations = findings.into_violations();
    if violations.is_empty() {
        Ok(draft)
    } else {
        Err(Error::violations(violations))
    }
}

async fn begin(surface: &Surface, bucket: &Bucket, draft: Draft) -> Result<UploadId, Error> {
    let (objects, of) = (surface.objects.clone(), bucket.name.clone());
    blocking(move || objects.begin(&of, draft)).await
}

/// The next bytes of a body; None at its end.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| {
            Error::invalid(format!(
                "the request body paused for more than {} seconds",
                PATIENCE.as_secs()
            ))
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| Error::invalid(format!("the request body broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

async fn append(surface: &Surface, id: &UploadId, at: u64, piece: Bytes) -> Result<u64, Error> {
    let (objects, id) = (surface.objects.clone(), id.clone());
    blocking(move || objects.append(&id, at, &piece)).await
}

async fn finish(surface: &Surface, bucket: &Bucket, id: &UploadId) -> Result<Response<Body>, Error> {
    let (objects, id, now) = (surface.objects.clone(), id.clone(), (surface.now)());
    let object = blocking(move || objects.finish(&id, now)).await?;
    Ok(reply::json(StatusCode::OK, &encode_object(bucket, &object)))
}

/// A body that is the object, or its last part of several. An upload that breaks off is given up.
async fn whole(
    surface: &Surface,
    bucket: &Bucket,
    id: &UploadId,
    mut body: Body,
    mut parts: Option<Multipart>,
) -> Result<Response<Body>, Error> {
    let stored = async {
        let mut at = 0;
        let mut gathered = BytesMut::new();
        loop {
            let data = next(&mut body).await?;
            let ended = data.is_none();
            match (&mut parts, data) {
                (None, data) => gathered.extend_from_slice(&data.unwrap_or_default()),
                (Some(parts), data) => {
                    parts.push(&data.unwrap_or_default());
                    gathered.extend_from_slice(&parts.content(ended)?);
                }
            }
            if gathered.len() >= PIECE || (ended && !gathered.is_empty()) {
                at = append(surface, id, at, gathered.split().freeze()).await?;
            }
            if ended {
                return finish(surface, bucket, id).await;
            }
        }
    };
    stored.await.inspect_err(|_| surface.objects.cancel(id))
}

/// `Content-Range: bytes FIRST-LAST/TOTAL`, `bytes */TOTAL` (where does it stand?), either with `*` for an unknown
/// total.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    first: Option<u64>,
    total: Option<u64>,
}

fn sent(head: &Parts) -> Result<Option<Sent>, Error> {
    let Some(value) = head.headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let wrong = || {
        Error::invalid(format!(
            "Content-Range \"{}\" is not of the form bytes FIRST-LAST/TOTAL",
            short(text)
        ))
    };
    let (range, total) = text
        .strip_prefix("bytes")
        .and_then(|rest| rest.trim().split_once('/'))
        .ok_or_else(wrong)?;
    let total = if total == "*" {
        None
    } else {
        Some(total.parse().map_err(|_| wrong())?)
    };
    let first = match range.split_once('-') {
        None if range == "*" => None,
        None => return Err(wrong()),
        Some((first, _)) => Some(first.parse().map_err(|_| wrong())?),
    };
    Ok(Some(Sent { first, total }))
}

/// Takes more bytes of a resumable upload. What came before a break is kept.
async fn resume(
    surface: &Surface,
    bucket: &Bucket,
    id: &UploadId,
    head: &Parts,
    mut body: Body,
) -> Result<Response<Body>, Error> {
    let sent = sent(head)?;
    let mut length = surface.objects.length(id).map_err(super::from_objects)?;
    let total = match &sent {
        Some(sent) => sent.total,
        None => None,
    };
    let asked_only = matches!(sent, Some(Sent { first: None, .. }));
    if !asked_only {
        let first = sent.as_ref().and_then(|sent| sent.first).unwrap_or(0);
        if first > length {
            // The client is told where to go on.
            return Ok(incomplete(length));
        }
        // What came already is not taken twice.
        let mut skip = length - first;
        let mut gathered = BytesMut::new();
        loop {
            // Bytes before a break are kept, so that the client goes on after them.
            let data = next(&mut body).await;
            let ended = !matches!(data, Ok(Some(_)));
            if let Ok(Some(data)) = &data {
                let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
                skip -= passed as u64;
                gathered.extend_from_slice(&data[passed..]);
            }
            if gathered.len() >= PIECE || (ended && !gathered.is_empty()) {
                length = append(surface, id, length, gathered.split().freeze()).await?;
            }
            data?;
            if ended {
                break;
            }
        }
    }
    match (total, &sent) {
        (Some(total), _) if length == total => finish(surface, bucket, id).await,
        (Some(total), _) if length > total => {
            surface.objects.cancel(id);
            Err(Error::new(
                Code::InvalidArgument,
                format!("the upload has {length} bytes, more than the {total} that it was to have"),
            ))
        }
        // Without a Content-Range the body is all there is.
        (None, None) => finish(surface, bucket, id).await,
        (Some(_) | None, _) => Ok(incomplete(length)),
    }
}

/// 308: so much is here, go on after it.
fn incomplete(length: u64) -> Response<Body> {
    let mut response = Response::new(reply::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Some(last) = length.checked_sub(1) {
        let range = HeaderValue::from_str(&format!("bytes=0-{last}")).expect("plain ASCII");
        response.headers_mut().insert(header::RANGE, range);
    }
    response
}
