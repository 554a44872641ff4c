//! The images of a revision: from names to digests, and from digests to unpacked layers.
//!
//! All containers of a revision have theirs resolved at once, so that a tag that moves later changes none of them.

use std::error::Error;

use image::{Digest, EnsureError, Images, Reference, ResolveError};
use model::{Reason, RevisionState, RevisionTemplate, bare_digest, with_causes};

/// What a resolve or a pull came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) state: RevisionState,
    /// Of the sidecars, when they were resolved.
    pub(crate) sidecar_digests: Option<Vec<String>>,
}

impl From<RevisionState> for Outcome {
    fn from(state: RevisionState) -> Self {
        Self {
            state,
            sidecar_digests: None,
        }
    }
}

pub(crate) async fn resolve(images: &Images, template: &RevisionTemplate) -> Outcome {
    let all = [&template.container].into_iter().chain(&template.sidecars);
    let mut digests = Vec::new();
    for container in all {
        match resolved(images, &container.image).await {
            Ok(digest) => digests.push(digest),
            Err((reason, message)) => {
                let state = RevisionState::Failed {
                    reason,
                    message,
                    digest: None,
                };
                return state.into();
            }
        }
    }
    let digest = digests.remove(0);
    Outcome {
        state: RevisionState::Pulling { digest },
        sidecar_digests: Some(digests),
    }
}

async fn resolved(images: &Images, image: &str) -> Result<String, (Reason, String)> {
    let reference: Reference = match image.parse() {
        Ok(reference) => reference,
        Err(error) => return Err((Reason::ContainerMissing, with_causes(&error as &dyn Error))),
    };
    match images.resolve(&reference).await {
        Ok(resolved) => Ok(resolved.pinned().to_string()),
        Err(ResolveError::NotFound { .. }) => Err((Reason::ContainerMissing, format!("Image '{image}' not found."))),
        Err(error @ ResolveError::Mirror { .. }) if error.is_absence() => {
            Err((Reason::ContainerMissing, with_causes(&error)))
        }
        Err(ResolveError::Store { reference, source }) => Err((
            Reason::Internal,
            with_causes(&ResolveError::Store { reference, source }),
        )),
        Err(
            error @ (ResolveError::Unauthorized { .. }
            | ResolveError::Credential { .. }
            | ResolveError::Manifest { .. }
            | ResolveError::DigestMismatch { .. }
            | ResolveError::Size { .. }
            | ResolveError::Network { .. }
            | ResolveError::Mirror { .. }),
        ) => Err((Reason::ContainerImageUnusable, with_causes(&error))),
    }
}

pub(crate) async fn unpack(images: &Images, digest: String, sidecars: &[String]) -> Outcome {
    let mut broken = None;
    for pinned in [&digest].into_iter().chain(sidecars) {
        broken = unpacked(images, pinned).await.err();
        if broken.is_some() {
            break;
        }
    }
    let state = match broken {
        None => RevisionState::Probing { digest },
        Some(message) => RevisionState::Failed {
            reason: Reason::ContainerImageUnusable,
            message,
            digest: Some(digest),
        },
    };
    state.into()
}

async fn unpacked(images: &Images, pinned: &str) -> Result<(), String> {
    let digest: Digest = bare_digest(pinned).parse().map_err(|error| with_causes(&error))?;
    match images.ensure(&digest).await {
        Ok(_) => Ok(()),
        Err(error @ (EnsureError::Store { .. } | EnsureError::Layer { .. })) => {
            Err(format!("image {pinned} cannot be unpacked: {}", with_causes(&error)))
        }
    }
}
