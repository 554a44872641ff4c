//! `/homerun/v1/images:mirror`, `:unmirror` and `:mirrors`: names of other registries that mean an image of this one, or
//! are had from elsewhere. No API of Google's has this.

use http::{Method, Response, StatusCode};
use image::{Meaning, Names, Prefix, Reference, Tag, is_own_host};
use model::with_causes;
use serde_json::{Value, json};

use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
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
            Ok(reply::json(StatusCode::OK, &set(surface, decode(document)?).await?))
        }
        (&Method::POST, "/homerun/v1/images:unmirror") => {
            let document = document::read_json(body).await?;
            remove(surface, decode_name(document)?).await?;
            Ok(reply::json(StatusCode::OK, &json!({})))
        }
        (method, path) => Err(unimplemented(host, method, path)),
    }
}

async fn set(surface: &Surface, wanted: Wanted) -> Result<Value, Error> {
    let images = &surface.images;
    match wanted {
        Wanted::Image { name, image } => {
            let tag = tag_of(&name);
            let digest = images.mirror(name.repository(), &tag, &image).await;
            let digest = digest.map_err(|error| failed(&error, &image.to_string()))?;
            let name = Reference::tagged(name.repository().clone(), tag);
            Ok(json!({ "name": name.to_string(), "digest": digest.to_string() }))
        }
        Wanted::ImageFrom { name, place } => {
            let tag = tag_of(&name);
            let set = images.mirror_from(name.repository(), &tag, &place).await;
            set.map_err(|error| failed(&error, &place.to_string()))?;
            let name = Reference::tagged(name.repository().clone(), tag);
            Ok(json!({ "name": name.to_string(), "from": place.to_string() }))
        }
        Wanted::Below { names, place } => {
            let set = images.mirror_below(&names, &place).await;
            set.map_err(|error| failed(&error, &place.to_string()))?;
            Ok(json!({ "name": names.to_string(), "from": place.to_string() }))
        }
    }
}

fn tag_of(name: &Reference) -> Tag {
    name.tag().cloned().unwrap_or_else(Tag::latest)
}

async fn remove(surface: &Surface, name: Names) -> Result<(), Error> {
    let removed = match &name {
        Names::Below(names) => surface.images.unmirror_below(names).await,
        Names::One(name) => match surface.images.unmirror(name.repository(), &tag_of(name)).await {
            Err(image::Error::ManifestUnknown { .. }) => Ok(false),
            gone => gone.map(|()| true),
        },
    };
    if removed.map_err(|error| failed(&error, &name.to_string()))? {
        return Ok(());
    }
    let name = match name {
        Names::Below(names) => names.to_string(),
        Names::One(name) => Reference::tagged(name.repository().clone(), tag_of(&name)).to_string(),
    };
    Err(Error::not_found(format!(
        "{name} means nothing else here than in its own registry"
    )))
}

async fn list(surface: &Surface) -> Result<Response<Body>, Error> {
    let images = surface.images.clone();
    let found = tokio::task::spawn_blocking(move || images.mirrors()).await;
    let found = found
        .map_err(|error| Error::new(Code::Unavailable, error.to_string()))?
        .map_err(|error| Error::new(Code::Unavailable, with_causes(&error)))?;
    let mirrors: Vec<Value> = found
        .iter()
        .map(|mirror| match &mirror.meaning {
            Meaning::Image(digest) => json!({ "name": mirror.name, "digest": digest.to_string() }),
            Meaning::From(place) => json!({ "name": mirror.name, "from": place }),
        })
        .collect();
    Ok(reply::json(StatusCode::OK, &json!({ "mirrors": mirrors })))
}

/// What a name is to mean.
#[derive(Debug)]
enum Wanted {
    /// An image of this Homerun, as it is now.
    Image {
        name: Reference,
        image: Reference,
    },
    /// An image of another registry.
    ImageFrom {
        name: Reference,
        place: Reference,
    },
    Below {
        names: Prefix,
        place: Prefix,
    },
}

/// `name`, which is of another registry, and `image`.
fn decode(document: Value) -> Result<Wanted, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let (name, image) = (foreign(&mut root), names(&mut root, "image"));
    let wanted = name.zip(image).and_then(|(name, image)| {
        if name == image {
            root.say("image", format!("{image} is what {name} means by itself"));
            return None;
        }
        match (name, image) {
            (Names::One(name), Names::One(image)) if is_own_host(image.repository().host()) => {
                Some(Wanted::Image { name, image })
            }
            (Names::One(name), Names::One(place)) => Some(Wanted::ImageFrom { name, place }),
            (Names::Below(names), Names::Below(place)) => Some(Wanted::Below { names, place }),
            (Names::Below(names), Names::One(image)) => {
                let place = image.repository();
                root.say(
                    "image",
                    format!(
                        "{names} are many images, {image} is one: give a registry, or all below a path ({place}/*)"
                    ),
                );
                None
            }
            (Names::One(name), Names::Below(place)) => {
                root.say("image", format!("{name} is one image, {place} are many: give one"));
                None
            }
        }
    });
    root.finish();
    let violations = findings.into_violations();
    wanted
        .filter(|_| violations.is_empty())
        .ok_or_else(|| Error::violations(violations))
}

/// `name` alone.
fn decode_name(document: Value) -> Result<Names, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let name = foreign(&mut root);
    root.finish();
    let violations = findings.into_violations();
    name.filter(|_| violations.is_empty())
        .ok_or_else(|| Error::violations(violations))
}

fn foreign(root: &mut Object<'_>) -> Option<Names> {
    let name = names(root, "name")?;
    if let Names::One(one) = &name {
        let host = one.repository().host();
        if is_own_host(host) {
            root.say(
                "name",
                format!(
                    "{host} is this Homerun itself: an image has a name there by `images import` or a push; names below a \
                     path ({host}/PATH/*) can be mirrored, for what is not here"
                ),
            );
        }
        if one.digest().is_some() {
            root.say("name", "a digest means one image only: give a tag");
        }
    }
    Some(name)
}

fn names(root: &mut Object<'_>, field: &str) -> Option<Names> {
    let text = root.text(field).unwrap_or_default();
    match text.parse() {
        Ok(names) => Some(names),
        Err(error) => {
            root.say(
                field,
                format!("\"{}\" is no image name: {}", short(&text), with_causes(&error)),
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
        return Error::not_found(format!("{name} is not stored here: push or import it"));
    }
    Error::new(Code::Unavailable, with_causes(error))
}
