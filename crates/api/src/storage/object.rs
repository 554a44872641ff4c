//! Objects: listed, described, read, deleted.

use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use model::Bucket;
use serde_json::{Value, json};

use super::{aside, blocking, encode_object, no_content};
use crate::{
    document::short,
    error::{Code, Error},
    page::page,
    query::Query,
    reply::{self, Body, FileBody},
    surface::Surface,
};

/// With `delimiter`, what lies below it is one prefix each.
pub(super) async fn list(surface: &Surface, bucket: &Bucket, mut query: Query) -> Result<Response<Body>, Error> {
    let prefix = query.take("prefix")?.unwrap_or_default();
    let delimiter = query.take("delimiter")?;
    let limit = query.limit("maxResults")?;
    let token = query.take("pageToken")?;
    query.take("versions")?;
    query.take("includeTrailingDelimiter")?;
    aside(&mut query)?;
    query.finish()?;
    let (objects, name, begin) = (surface.objects.clone(), bucket.name.clone(), prefix.clone());
    let found = blocking(move || objects.list(&name, &begin)).await?;
    let mut items: Vec<(String, Option<Value>)> = Vec::new();
    for object in &found {
        let below = delimiter.as_ref().and_then(|delimiter| {
            let rest = &object.name[prefix.len()..];
            let end = rest.find(delimiter.as_str())? + delimiter.len();
            Some(format!("{prefix}{}", &rest[..end]))
        });
        match below {
            Some(below) if items.last().is_some_and(|(last, _)| *last == below) => {}
            Some(below) => items.push((below, None)),
            None => items.push((object.name.clone(), Some(encode_object(bucket, object)))),
        }
    }
    let items = items
        .into_iter()
        .map(|(name, shown)| (name.clone(), (name, shown)))
        .collect();
    let page = page(items, limit, token.as_deref(), "pageToken")?;
    let (mut shown, mut prefixes) = (Vec::new(), Vec::new());
    for (name, object) in page.items {
        match object {
            Some(object) => shown.push(object),
            None => prefixes.push(name),
        }
    }
    let mut answer = json!({ "kind": "storage#objects", "items": shown, "prefixes": prefixes });
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(reply::json(StatusCode::OK, &answer))
}

/// The description, or the bytes with `alt=media`: all of them, or from one place to the end.
pub(super) async fn get(surface: &Surface, bucket: &Bucket, name: &str, head: &Parts) -> Result<Response<Body>, Error> {
    let mut query = Query::parse(head.uri.query());
    let media = head.uri.path().starts_with("/download/")
        || head
            .uri
            .query()
            .is_some_and(|query| query.split('&').any(|part| part == "alt=media"));
    if media {
        query.take("alt")?;
    }
    let generation = query.take("generation")?;
    aside(&mut query)?;
    query.finish()?;
    let (objects, of, wanted) = (surface.objects.clone(), bucket.name.clone(), name.to_owned());
    let (object, file) = blocking(move || objects.read(&of, &wanted)).await?;
    if generation.is_some_and(|generation| generation != object.generation.to_string()) {
        return Err(Error::new(
            Code::NotFound,
            format!("No such object: {}/{}", bucket.name, short(name)),
        ));
    }
    if !media {
        return Ok(reply::json(StatusCode::OK, &encode_object(bucket, &object)));
    }
    let from = head.headers.get(header::RANGE).and_then(|range| {
        let range = range.to_str().ok()?.strip_prefix("bytes=")?;
        let (first, last) = range.split_once('-')?;
        let last = if last.is_empty() {
            object.size.checked_sub(1)?
        } else {
            last.parse().ok()?
        };
        Some((first.parse::<u64>().ok()?, last.min(object.size.checked_sub(1)?)))
    });
    let (first, left) = match from {
        None => (0, object.size),
        Some((first, last)) if first <= last => (first, last - first + 1),
        Some(_) => {
            let mut response = reply::json(StatusCode::RANGE_NOT_SATISFIABLE, &json!({}));
            let value = HeaderValue::from_str(&format!("bytes */{}", object.size)).expect("plain ASCII");
            response.headers_mut().insert(header::CONTENT_RANGE, value);
            return Ok(response);
        }
    };
    let mut file = tokio::fs::File::from_std(file);
    if first > 0 {
        let sought = tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(first)).await;
        sought.map_err(|error| Error::new(Code::Unavailable, error.to_string()))?;
    }
    let body = if head.method == Method::HEAD {
        reply::empty()
    } else {
        FileBody::new(file.into_std().await, left).boxed_unsync()
    };
    let mut response = Response::new(body);
    let kind = object
        .content_type
        .as_deref()
        .and_then(|kind| HeaderValue::from_str(kind).ok());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        kind.unwrap_or(HeaderValue::from_static("application/octet-stream")),
    );
    headers.insert(header::CONTENT_LENGTH, left.into());
    let sums = format!("crc32c={},md5={}", object.crc32c, object.md5);
    headers.insert("x-goog-hash", HeaderValue::from_str(&sums).expect("plain ASCII"));
    headers.insert("x-goog-generation", object.generation.into());
    if from.is_some() {
        let range = format!("bytes {first}-{}/{}", first + left - 1, object.size);
        headers.insert(
            header::CONTENT_RANGE,
            HeaderValue::from_str(&range).expect("plain ASCII"),
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

pub(super) async fn delete(
    surface: &Surface,
    bucket: &Bucket,
    name: &str,
    head: &Parts,
) -> Result<Response<Body>, Error> {
    let mut query = Query::parse(head.uri.query());
    let generation = query.take("generation")?;
    aside(&mut query)?;
    query.finish()?;
    let (objects, of, wanted) = (surface.objects.clone(), bucket.name.clone(), name.to_owned());
    if let Some(generation) = generation {
        let (objects, of, wanted) = (objects.clone(), of.clone(), wanted.clone());
        let object = blocking(move || objects.get(&of, &wanted)).await?;
        if object.generation.to_string() != generation {
            return Err(Error::new(
                Code::NotFound,
                format!("No such object: {}/{}", bucket.name, short(name)),
            ));
        }
    }
    blocking(move || objects.delete(&of, &wanted)).await?;
    Ok(no_content())
}
