//! The Configuration: a view of a service's template, never written by itself.

use model::{Service, Site, service_conditions};
use serde_json::{Value, json};
use store::Snapshot;

use crate::run::v1::{SERVING, as_ready, name_latest, service, template};

/// A uid for a view of a service: the service's own with its last digits changed, so that it is stable and differs.
pub(crate) fn derived_uid(uid: &str, which: u8) -> String {
    match uuid::Uuid::parse_str(uid) {
        Ok(uid) => uuid::Uuid::from_u128(uid.as_u128() ^ u128::from(which)).to_string(),
        Err(_) => format!("{uid}-{which}"),
    }
}

/// Which view [`derived_uid`] means.
pub(crate) const CONFIGURATION: u8 = 1;
pub(crate) const ROUTE: u8 = 2;

/// The service as owner of a view.
pub(crate) fn owned_by_service(service: &Service) -> Value {
    json!([{
        "apiVersion": SERVING,
        "kind": "Service",
        "name": service.key.name.as_str(),
        "uid": service.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// `metadata` of a view: the service's, with its label and owner.
pub(crate) fn encode_metadata(service: &Service, site: &Site, collection: &str, which: u8, generation: u64) -> Value {
    let uid = derived_uid(&service.uid, which);
    let mut meta = service::encode_metadata(service, site, collection, &uid, generation);
    meta["labels"]["serving.knative.dev/service"] = service.key.name.as_str().into();
    meta.insert("ownerReferences".to_owned(), owned_by_service(service));
    meta.into()
}

pub(crate) fn encode(service: &Service, snapshot: &Snapshot, site: &Site) -> Value {
    let revisions = snapshot.revisions_of(service);
    let all = service_conditions(service, revisions.clone());
    let mut status = json!({
        "observedGeneration": service.template_generation,
        "conditions": as_ready(&all, "ConfigurationsReady"),
    });
    name_latest(&mut status, revisions);
    json!({
        "apiVersion": SERVING,
        "kind": "Configuration",
        "metadata": encode_metadata(service, site, "configurations", CONFIGURATION, service.template_generation),
        "spec": { "template": template::encode(&service.template, &service.key.name, site) },
        "status": status,
    })
}
