//! `POST /homerun/v1/images:collect`: removes image content that nothing needs, at once. No API of Google's has this.

use std::time::{Duration, SystemTime};

use http::{Response, StatusCode};
use model::with_causes;
use serde_json::{Value, json};

use crate::{
    document::{self, Findings, Object, short},
    error::{Code, Error},
    query::Query,
    reply::{self, Body},
    surface::Surface,
};

/// With `{"olderThan": "86400s"}`: what was wanted within that time stays.
pub(crate) async fn answer(surface: &Surface, request: http::Request<Body>) -> Result<Response<Body>, Error> {
    let (head, body) = request.into_parts();
    Query::parse(head.uri.query()).finish()?;
    let age = decode(document::read_json(body).await?)?;
    let unavailable = |why: String| Error::new(Code::Unavailable, why);
    let held = (surface.held)().ok_or_else(|| unavailable("Homerun is ending".to_owned()))?;
    let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    let collected = surface.images.collect(held, before).await.map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "image content was not collected"
        );
        unavailable(with_causes(&error))
    })?;
    let answer = json!({
        "blobs": collected.blobs,
        "bytes": collected.bytes,
        "layers": collected.layers,
        "storedBytes": surface.images.stored_bytes(),
    });
    Ok(reply::json(StatusCode::OK, &answer))
}

/// `olderThan` of the document.
fn decode(document: Value) -> Result<Duration, Error> {
    let findings = Findings::default();
    let mut root = Object::root(document, &findings);
    let text = root.text("olderThan").unwrap_or_default();
    let age = text.strip_suffix('s').and_then(|number| number.parse().ok());
    if age.is_none() {
        root.say(
            "olderThan",
            format!("expected whole seconds such as 86400s, not \"{}\"", short(&text)),
        );
    }
    root.finish();
    let violations = findings.into_violations();
    match age.map(Duration::from_secs).filter(|_| violations.is_empty()) {
        Some(age) => Ok(age),
        None => Err(Error::violations(violations)),
    }
}
