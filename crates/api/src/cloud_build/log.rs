//! Logs of builds, read as objects of the default bucket of logs while they grow.

use std::io::SeekFrom;

use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use model::BuildId;
use serde_json::json;
use tokio::io::AsyncSeekExt as _;

use crate::{
    document::short,
    error::{Code, Error},
    reply::{self, Body, FileBody},
    surface::Surface,
};

/// `NUMBER.cloudbuild-logs.googleusercontent.com`, as at Google.
pub(super) fn bucket(surface: &Surface) -> String {
    format!("{}.cloudbuild-logs.googleusercontent.com", surface.site.number())
}

/// Answers `GET /BUCKET/log-ID.txt` with what there is from the asked byte on. None: another bucket.
pub(crate) async fn read(surface: &Surface, head: &Parts) -> Option<Result<Response<Body>, Error>> {
    let rest = head
        .uri
        .path()
        .strip_prefix('/')?
        .strip_prefix(bucket(surface).as_str())?;
    let name = rest.strip_prefix('/')?;
    if head.method != Method::GET && head.method != Method::HEAD {
        return None;
    }
    Some(answer(surface, head, name).await)
}

async fn answer(surface: &Surface, head: &Parts, name: &str) -> Result<Response<Body>, Error> {
    let absent = || Error::new(Code::NotFound, format!("no such log: {}", short(name)));
    let id = name.strip_prefix("log-").and_then(|rest| rest.strip_suffix(".txt"));
    let id = id.and_then(BuildId::parse).ok_or_else(absent)?;
    let path = surface.build_logs.join(format!("log-{id}.txt"));
    let mut file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(absent()),
        Err(error) => return Err(failed(&error)),
    };
    let size = file.metadata().await.map_err(|error| failed(&error))?.len();
    let from = head.headers.get(header::RANGE).and_then(|range| {
        let range = range.to_str().ok()?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse::<u64>().ok()
    });
    let first = from.unwrap_or(0);
    if from.is_some() && first >= size {
        let mut response = reply::json(StatusCode::RANGE_NOT_SATISFIABLE, &json!({}));
        let value = HeaderValue::from_str(&format!("bytes */{size}")).expect("plain ASCII");
        response.headers_mut().insert(header::CONTENT_RANGE, value);
        return Ok(response);
    }
    file.seek(SeekFrom::Start(first))
        .await
        .map_err(|error| failed(&error))?;
    let left = size - first;
    let body = if head.method == Method::HEAD {
        reply::empty()
    } else {
        FileBody::new(file.into_std().await, left).boxed_unsync()
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CONTENT_LENGTH, left.into());
    if from.is_some() {
        let range = format!("bytes {first}-{}/{size}", size - 1);
        headers.insert(
            header::CONTENT_RANGE,
            HeaderValue::from_str(&range).expect("plain ASCII"),
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

fn failed(error: &std::io::Error) -> Error {
    tracing::error!(%error, "the log of a build cannot be read");
    Error::new(Code::Unavailable, format!("the log cannot be read: {error}"))
}
