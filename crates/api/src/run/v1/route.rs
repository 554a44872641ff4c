//! The Route: a view of a service's traffic, never written by itself.

use model::{Service, Site, service_conditions};
use serde_json::{Value, json};
use store::Snapshot;

use crate::run::v1::{SERVING, as_ready, configuration, traffic};

pub(crate) fn encode(service: &Service, snapshot: &Snapshot, site: &Site) -> Value {
    let revisions = snapshot.revisions_of(service);
    let url = site.url(&service.key);
    json!({
        "apiVersion": SERVING,
        "kind": "Route",
        "metadata": configuration::encode_metadata(service, site, "routes", configuration::ROUTE, service.generation),
        "spec": { "traffic": traffic::encode_spec(&service.traffic) },
        "status": {
            "observedGeneration": service.generation,
            "conditions": as_ready(&service_conditions(service, revisions), "RoutesReady"),
            "url": url,
            "address": { "url": url },
            "traffic": traffic::encode_status(&service.routed, &service.key, site),
        },
    })
}
