//! Cloud Storage's JSON API, as much of it as gcloud needs: buckets, and objects with their uploads and downloads.
//!
//! Buckets are kept by the store, objects by `bucket`. Bytes are written through as they arrive and read piece by piece.

mod multipart;
mod object;
mod upload;

use bucket::Object;
use http::{Method, Response, StatusCode, request::Parts};
use model::{Bucket, BucketName, with_causes};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::{
    cloud_build,
    document::{self, Findings, Object as Document, short},
    error::{Code, Error},
    page::page,
    query::Query,
    reply::{self, Body},
    run::{
        call::{check_project, unimplemented},
        v1::rfc3339,
    },
    surface::Surface,
};

pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    if let Some(log) = cloud_build::read_log(surface, &head).await {
        return log;
    }
    let path = head.uri.path().to_owned();
    let unknown = || unimplemented(host, &head.method, &path);
    // Each part is decoded by itself: names of objects have their `/` as `%2F`.
    let decode = |part: &str| {
        percent_decode_str(part)
            .decode_utf8()
            .ok()
            .map(std::borrow::Cow::into_owned)
    };
    let parts: Option<Vec<String>> = path.trim_start_matches('/').split('/').map(decode).collect();
    let parts = parts.ok_or_else(unknown)?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["storage", "v1", "b"] if head.method == Method::GET => list(surface, Query::parse(head.uri.query())),
        ["storage", "v1", "b"] if head.method == Method::POST => create(surface, &head, body).await,
        ["storage", "v1", "b", bucket] => {
            let bucket = stored(surface, bucket)?;
            match head.method {
                Method::GET => {
                    get_query(&head)?;
                    Ok(reply::json(StatusCode::OK, &encode(surface, &bucket)))
                }
                Method::DELETE => delete(surface, &head, bucket).await,
                _ => Err(unknown()),
            }
        }
        ["storage", "v1", "b", bucket, "storageLayout"] if head.method == Method::GET => {
            let bucket = stored(surface, bucket)?;
            let mut query = Query::parse(head.uri.query());
            query.take("prefix")?;
            aside(&mut query)?;
            query.finish()?;
            let layout = json!({
                "kind": "storage#storageLayout",
                "bucket": bucket.name.as_str(),
                "location": bucket.location,
                "locationType": "region",
                "hierarchicalNamespace": { "enabled": false },
            });
            Ok(reply::json(StatusCode::OK, &layout))
        }
        ["storage", "v1", "b", bucket, "o"] if head.method == Method::GET => {
            object::list(surface, &stored(surface, bucket)?, Query::parse(head.uri.query())).await
        }
        ["storage", "v1", "b", bucket, "o", name] | ["download", "storage", "v1", "b", bucket, "o", name] => {
            let bucket = stored(surface, bucket)?;
            match head.method {
                Method::GET | Method::HEAD => object::get(surface, &bucket, name, &head).await,
                Method::DELETE => object::delete(surface, &bucket, name, &head).await,
                _ => Err(unknown()),
            }
        }
        ["upload", "storage", "v1", "b", bucket, "o"] | ["resumable", "upload", "storage", "v1", "b", bucket, "o"] => {
            let bucket = stored(surface, bucket)?;
            upload::answer(surface, &bucket, &head, body).await
        }
        _ => Err(unknown()),
    }
}

/// What could never have been made is not there.
fn stored(surface: &Surface, name: &str) -> Result<Bucket, Error> {
    let absent = || {
        Error::new(
            Code::NotFound,
            format!("The specified bucket does not exist: {}", short(name)),
        )
    };
    let name = BucketName::parse(name).map_err(|_| absent())?;
    let snapshot = surface.store.snapshot();
    let found = snapshot.buckets.get(&name).map(|bucket| bucket.as_ref().clone());
    found.ok_or_else(absent)
}

fn encode(surface: &Surface, bucket: &Bucket) -> Value {
    let at = rfc3339(bucket.created);
    let mut shown = json!({
        "kind": "storage#bucket",
        "id": bucket.name.as_str(),
        "name": bucket.name.as_str(),
        "selfLink": format!("https://www.googleapis.com/storage/v1/b/{}", bucket.name),
        "projectNumber": surface.site.number().to_string(),
        "location": bucket.location,
        "locationType": "region",
        "storageClass": "STANDARD",
        "timeCreated": at,
        "updated": at,
        "metageneration": "1",
        "etag": "CAE=",
        "iamConfiguration": { "uniformBucketLevelAccess": { "enabled": bucket.uniform_access } },
    });
    if !bucket.labels.is_empty() {
        shown["labels"] = json!(bucket.labels);
    }
    if let Ok(cors) = serde_json::from_str::<Value>(&bucket.cors)
        && cors.as_array().is_some_and(|rules| !rules.is_empty())
    {
        shown["cors"] = cors;
    }
    shown
}

/// Takes what gcloud sends along with each call and what changes nothing here.
fn aside(query: &mut Query) -> Result<(), Error> {
    for name in [
        "projection",
        "userProject",
        "fields",
        "includeFoldersAsPrefixes",
        "softDeleted",
    ] {
        query.take(name)?;
    }
    Ok(())
}

fn get_query(head: &Parts) -> Result<(), Error> {
    let mut query = Query::parse(head.uri.query());
    aside(&mut query)?;
    query.finish()
}

fn list(surface: &Surface, mut query: Query) -> Result<Response<Body>, Error> {
    let project = query
        .take("project")?
        .ok_or_else(|| Error::field("project", "is required"))?;
    check_project(&project, &surface.site)?;
    let prefix = query.take("prefix")?.unwrap_or_default();
    let limit = query.limit("maxResults")?;
    let token = query.take("pageToken")?;
    aside(&mut query)?;
    query.finish()?;
    let snapshot = surface.store.snapshot();
    let items = snapshot
        .buckets
        .values()
        .filter(|bucket| bucket.name.as_str().starts_with(&prefix))
        .map(|bucket| (bucket.name.as_str().to_owned(), encode(surface, bucket)))
        .collect();
    let page = page(items, limit, token.as_deref(), "pageToken")?;
    let mut answer = json!({ "kind": "storage#buckets", "items": page.items });
    if let Some(next) = page.next {
        answer["nextPageToken"] = next.into();
    }
    Ok(reply::json(StatusCode::OK, &answer))
}

fn decode(surface: &Surface, document: Value) -> Result<Bucket, Error> {
    let cors = document.get("cors").cloned().unwrap_or_else(|| json!([]));
    let findings = Findings::default();
    let mut root = Document::root(document, &findings);
    let name = root.text("name").unwrap_or_default();
    let name = BucketName::parse(&name).map_err(|error| root.say("name", error.to_string()));
    let location = root
        .text("location")
        .unwrap_or_else(|| surface.site.region.as_str().to_owned());
    let labels = root.map("labels");
    root.drop_owned(&["cors"]);
    let mut iam = root.object("iamConfiguration");
    let mut uniform = iam.object("uniformBucketLevelAccess");
    let uniform_access = uniform.boolean("enabled").unwrap_or(false);
    uniform.finish();
    match iam.text("publicAccessPrevention").as_deref() {
        // Nothing is public here.
        None | Some("enforced" | "inherited") => {}
        Some(other) => iam.say("publicAccessPrevention", format!("is not \"{}\"", short(other))),
    }
    iam.finish();
    match root.text("storageClass").as_deref() {
        None | Some("STANDARD") => {}
        Some(other) => root.say(
            "storageClass",
            format!("only STANDARD is served, not \"{}\"", short(other)),
        ),
    }
    root.unserved(&[
        "acl",
        "autoclass",
        "billing",
        "customPlacementConfig",
        "defaultEventBasedHold",
        "defaultObjectAcl",
        "encryption",
        "hierarchicalNamespace",
        "lifecycle",
        "logging",
        "objectRetention",
        "retentionPolicy",
        "rpo",
        "softDeletePolicy",
        "versioning",
        "website",
    ]);
    root.finish();
    let violations = findings.into_violations();
    match name {
        Ok(name) if violations.is_empty() => Ok(Bucket {
            name,
            location: location.to_ascii_uppercase(),
            created: (surface.now)(),
            labels,
            uniform_access,
            cors: cors.to_string(),
        }),
        Ok(_) | Err(()) => Err(Error::violations(violations)),
    }
}

async fn create(surface: &Surface, head: &Parts, body: Body) -> Result<Response<Body>, Error> {
    let mut query = Query::parse(head.uri.query());
    let project = query
        .take("project")?
        .ok_or_else(|| Error::field("project", "is required"))?;
    check_project(&project, &surface.site)?;
    if let Some(retention) = query.take("enableObjectRetention")?
        && !retention.eq_ignore_ascii_case("false")
    {
        return Err(Error::field("enableObjectRetention", "is not served by this Homerun"));
    }
    aside(&mut query)?;
    query.finish()?;
    let bucket = decode(surface, document::read_json(body).await?)?;
    let made = bucket.clone();
    let written = surface.store.transact(move |transaction| {
        if transaction.snapshot().buckets.contains_key(&made.name) {
            return Err(Error::new(
                Code::AlreadyExists,
                "Your previous request to create the named bucket succeeded and you already own it.",
            ));
        }
        transaction.put_bucket(made);
        Ok(())
    });
    written.await?;
    Ok(reply::json(StatusCode::OK, &encode(surface, &bucket)))
}

/// An empty one only, as there.
async fn delete(surface: &Surface, head: &Parts, bucket: Bucket) -> Result<Response<Body>, Error> {
    get_query(head)?;
    let (objects, name) = (surface.objects.clone(), bucket.name.clone());
    let held = blocking(move || objects.list(&name, "")).await?;
    if !held.is_empty() {
        return Err(Error::new(
            Code::AlreadyExists,
            "The bucket you tried to delete is not empty.",
        ));
    }
    let written = surface.store.transact(move |transaction| {
        transaction.delete_bucket(&bucket.name);
        Ok::<_, Error>(())
    });
    written.await?;
    Ok(no_content())
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(reply::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// An object as Cloud Storage shows it.
fn encode_object(bucket: &Bucket, object: &Object) -> Value {
    let at = rfc3339(object.created);
    let name = percent_encoding::utf8_percent_encode(&object.name, percent_encoding::NON_ALPHANUMERIC);
    let link = format!(
        "https://storage.googleapis.com/download/storage/v1/b/{}/o/{name}",
        bucket.name
    );
    let mut shown = json!({
        "kind": "storage#object",
        "id": format!("{}/{}/{}", bucket.name, object.name, object.generation),
        "selfLink": format!("https://www.googleapis.com/storage/v1/b/{}/o/{name}", bucket.name),
        "mediaLink": format!("{link}?generation={}&alt=media", object.generation),
        "name": object.name,
        "bucket": bucket.name.as_str(),
        "generation": object.generation.to_string(),
        "metageneration": "1",
        "storageClass": "STANDARD",
        "size": object.size.to_string(),
        "md5Hash": object.md5,
        "crc32c": object.crc32c,
        "etag": format!("g{}", object.generation),
        "timeCreated": at,
        "updated": at,
        "timeStorageClassUpdated": at,
    });
    if let Some(kind) = &object.content_type {
        shown["contentType"] = kind.as_str().into();
    }
    if !object.metadata.is_empty() {
        shown["metadata"] = json!(object.metadata);
    }
    shown
}

/// What failed, in the words of this API.
fn from_objects(error: bucket::Error) -> Error {
    use bucket::Error as Objects;
    let code = match &error {
        Objects::Absent { .. } | Objects::UploadUnknown { .. } => Code::NotFound,
        Objects::Name | Objects::TooLarge | Objects::Sum { .. } | Objects::Offset { .. } => Code::InvalidArgument,
        Objects::Generation { .. } => Code::Precondition,
        Objects::Io { .. } | Objects::Random(_) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "objects cannot be read or written"
            );
            Code::Unavailable
        }
    };
    Error::new(code, with_causes(&error))
}

/// Runs work that blocks on the disk off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, bucket::Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(from_objects),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "work on objects broke off");
            Err(Error::new(Code::Unavailable, "objects cannot be read or written"))
        }
    }
}
