//! `/homerun/v1/images:mirror`, `:unmirror` and `:mirrors`: names of other registries that mean an image of this one. No
//! API of Google's has this.

use http::{Method, Response, StatusCode};
use image::{Reference, Tag, is_own_host};
use serde_json::{Value, json};

use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error, told},
    query::Query,
    reply::{self, Body},
    run::call::unimplemented,
    surface::Surface,
};

/// Answers what is below `/homerun/v1/images:` and about names.
pub(crate) async fn answer(
    surface: &Surface,
    host: &str,
    request: http::Request<Body>,
) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    let (method, path) = (&head.method, head.uri.path());
    Query::parse(head.uri.query()).finish()?;
    match (method, path) {
        (&Method::GET, "/homerun/v1/images:mirrors") => list(surface).await,
        (&Method::POST, "/homerun/v1/images:mirror") => {
            let document = document::read_json(body).await?;
            let (name, image) = decode(document)?;
            let tag = name.tag().cloned().unwrap_or_else(Tag::latest);
            let digest = surface.images.mirror(name.repository(), &tag, &image).await;
            let digest = digest.map_err(|error| failed(&error, &image.to_string()))?;
            let mirror = json!({ "name": format!("{}:{tag}", name.repository()), "digest": digest.to_string() });
            Ok(reply::json(StatusCode::OK, &mirror))
        }
        (&Method::POST, "/homerun/v1/images:unmirror") => {
            let document = document::read_json(body).await?;
            let name = decode_name(document)?;
            let tag = name.tag().cloned().unwrap_or_else(Tag::latest);
            match surface.images.unmirror(name.repository(), &tag).await {
                Err(image::Error::ManifestUnknown { .. }) => {
                    let name = format!("{}:{tag}", name.repository());
                    return Err(Error::not_found(format!("{name} means no image of this Homerun")));
                }
                gone => gone.map_err(|error| failed(&error, &name.to_string()))?,
            }
            Ok(reply::json(StatusCode::OK, &json!({})))
        }
        (method, path) => Err(unimplemented(host, method, path)),
    }
}

async fn list(surface: &Surface) -> Result<Response<Body>, Error> {
    let images = surface.images.clone();
    let found = tokio::task::spawn_blocking(move || images.mirrors()).await;
    let found = found
        .map_err(|error| Error::new(Code::Unavailable, error.to_string()))?
        .map_err(|error| Error::new(Code::Unavailable, told(&error)))?;
    let mirrors: Vec<Value> = found
        .iter()
        .map(|mirror| {
            json!({
                "name": format!("{}:{}", mirror.repository, mirror.tag),
                "digest": mirror.digest.to_string(),
            })
        })
        .collect();
    Ok(reply::json(StatusCode::OK, &json!({ "mirrors": mirrors })))
}

/// `name`, which is of another registry, and `image`.
fn decode(document: Value) -> Result<(Reference, Reference), Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let (name, image) = (foreign(&mut root), reference(&mut root, "image"));
    root.finish();
    let violations = findings.into_violations();
    name.zip(image)
        .filter(|_| violations.is_empty())
        .ok_or_else(|| Error::violations(violations))
}

/// `name` alone.
fn decode_name(document: Value) -> Result<Reference, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let name = foreign(&mut root);
    root.finish();
    let violations = findings.into_violations();
    name.filter(|_| violations.is_empty())
        .ok_or_else(|| Error::violations(violations))
}

fn foreign(root: &mut Object<'_>) -> Option<Reference> {
    let name = reference(root, "name")?;
    let host = name.repository().host();
    if is_own_host(host) {
        root.say(
            "name",
            format!("{host} is this Homerun itself: an image has a name there by `images import` or a push"),
        );
    }
    if name.digest().is_some() {
        root.say("name", "a digest means one image only: give a tag");
    }
    Some(name)
}

fn reference(root: &mut Object<'_>, field: &str) -> Option<Reference> {
    let text = root.text(field).unwrap_or_default();
    match text.parse() {
        Ok(reference) => Some(reference),
        Err(error) => {
            root.say(
                field,
                format!("\"{}\" is no image name: {}", short(&text), told(&error)),
            );
            None
        }
    }
}

fn failed(error: &image::Error, name: &str) -> Error {
    let absent = matches!(
        error,
        image::Error::ManifestUnknown { .. } | image::Error::RepositoryUnknown { .. }
    );
    if absent {
        return Error::not_found(format!(
            "{name} is not stored here: push or import it (other registries are no place to mirror from)"
        ));
    }
    Error::new(Code::Unavailable, told(error))
}
