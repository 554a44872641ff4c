//! The Revision document: read and deleted, never written.

use std::collections::BTreeMap;

use model::{Revision, Service, ServiceName, Site, revision_conditions};
use serde_json::{Value, json};

use crate::run::v1::{SERVING, annotation, conditions, configuration, metadata, opaque, rfc3339, template};

/// The template's labels with those by which revisions are found.
pub(crate) fn labels(revision: &Revision, service: &Service) -> BTreeMap<String, String> {
    let mut labels = revision.template.labels.clone();
    let name = service.key.name.as_str();
    for (key, value) in [
        ("serving.knative.dev/service", name.to_owned()),
        ("serving.knative.dev/configuration", name.to_owned()),
        (
            "serving.knative.dev/configurationGeneration",
            revision.template_generation.to_string(),
        ),
        ("serving.knative.dev/route", name.to_owned()),
        ("serving.knative.dev/serviceUid", service.uid.clone()),
        (metadata::LOCATION, service.key.region.to_string()),
    ] {
        labels.insert(key.to_owned(), value);
    }
    labels
}

/// The digest of each container's image, in the document's order. `ingress` is that of the ingress container.
fn container_statuses(revision: &Revision, service: &ServiceName, ingress: &str) -> Value {
    let template = &revision.template;
    let names = template.container_names(service);
    let mut digests: Vec<&str> = revision.sidecar_digests.iter().map(String::as_str).collect();
    digests.insert(template.ingress_position().min(digests.len()), ingress);
    names
        .into_iter()
        .zip(digests)
        .map(|(name, digest)| json!({ "name": name, "imageDigest": digest }))
        .collect()
}

pub(crate) fn encode(revision: &Revision, service: &Service, site: &Site) -> Value {
    let mut annotations = annotation::shown(&revision.template, &service.key.name);
    annotations.insert("serving.knative.dev/creator".to_owned(), revision.creator.clone());
    // Set or not, a revision tells what it runs in.
    annotations
        .entry("run.googleapis.com/execution-environment".to_owned())
        .or_insert_with(|| {
            annotation::execution_environment(revision.template.sandbox(site.default_sandbox)).to_owned()
        });
    let mut status = json!({
        "observedGeneration": 1,
        "conditions": conditions(&revision_conditions(revision, service.reaches(&revision.key.name))),
    });
    if let Some(digest) = revision.state.digest() {
        status["imageDigest"] = digest.into();
        status["containerStatuses"] = container_statuses(revision, &service.key.name, digest);
    }
    let name = &revision.key.name;
    let project = &site.project;
    json!({
        "apiVersion": SERVING,
        "kind": "Revision",
        "metadata": {
            "name": name.as_str(),
            "namespace": project.as_str(),
            "selfLink": format!("/apis/{SERVING}/namespaces/{project}/revisions/{name}"),
            "uid": revision.uid,
            "resourceVersion": opaque(revision.since.as_micros().unsigned_abs()),
            "generation": 1,
            "creationTimestamp": rfc3339(revision.created),
            "labels": labels(revision, service),
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": SERVING,
                "kind": "Configuration",
                "name": service.key.name.as_str(),
                "uid": configuration::derived_uid(&service.uid, configuration::CONFIGURATION),
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": template::encode_spec(&revision.template, &service.key.name, site),
        "status": status,
    })
}
