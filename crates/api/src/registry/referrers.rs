//! Which manifests speak about another one, as an index (OCI distribution specification 1.1, "Listing Referrers").

use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use image::{Digest, Images, Referrer, Repository, media_type};
use serde_json::{Value, json};

use super::{Refusal, blocking};
use crate::reply::{self, Body};

/// All of them in one answer; of a subject or a repository that nobody knows an empty list.
pub(super) async fn list(
    images: &Images,
    repository: Repository,
    subject: Digest,
    head: &Parts,
) -> Result<Response<Body>, Refusal> {
    let kind = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
        .find(|(key, value)| key == "artifactType" && !value.is_empty())
        .map(|(_, value)| value.into_owned());
    let images = images.clone();
    let mut found = blocking(move || images.referrers(&repository, &subject)).await??;
    if let Some(kind) = &kind {
        found.retain(|referrer| referrer.artifact_type == *kind);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": found.iter().map(descriptor).collect::<Vec<_>>(),
    });
    let mut response = reply::json(StatusCode::OK, &index);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
    if kind.is_some() {
        headers.insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

fn descriptor(referrer: &Referrer) -> Value {
    let mut descriptor = json!({
        "mediaType": referrer.media_type,
        "digest": referrer.digest.to_string(),
        "size": referrer.size,
    });
    if !referrer.artifact_type.is_empty() {
        descriptor["artifactType"] = referrer.artifact_type.as_str().into();
    }
    if !referrer.annotations.is_empty() {
        descriptor["annotations"] = json!(referrer.annotations);
    }
    descriptor
}
