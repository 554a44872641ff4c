//! Google's APIs, spoken by this Homerun: paths, JSON, errors.
//!
//! Here lives everything that names a Google path, a JSON field, an annotation or an error code: the Run Admin API v1
//! (Knative-shaped documents), IAM (policies, service accounts, tokens in their name) and the permission that each
//! method asks for, the serviceusage and project answers that gcloud asks for, the OAuth token endpoint,
//! the HTTP face of the image registry, Artifact Registry over it,
//! Cloud Storage as far as gcloud uploads by it, Cloud Build for Dockerfiles, Secret Manager, and the metadata server that
//! instances ask. It is one crate because they share one dispatch by host name, one check of
//! the caller and one form of error.
//!
//! What enters is a request with the host it was meant for; it is decoded to `model`, with every broken rule named by
//! the path of its field. What leaves is an answer encoded from what the store holds. The API decides nothing about what
//! runs and waits for nothing but the store and the image content: whoever makes a deploy happen is woken by the store.

mod artifact_registry;
mod cloud_build;
mod collect;
mod decisions;
mod document;
mod error;
mod iam;
mod metadata;
mod mirror;
mod oauth;
mod operations;
mod page;
mod projects;
mod query;
mod registry;
mod reply;
mod run;
mod secret_manager;
mod selector;
mod service_usage;
mod storage;
mod surface;

pub use metadata::{Asker, Metadata};
pub use operations::Operations;
pub use reply::{Body, BoxError};
pub use surface::{About, Decisions, Held, Peer, Surface, answer};
