//! The Service document.

use std::collections::BTreeMap;

use model::{RevisionTemplate, Service, ServiceKey, ServiceName, ServiceScaling, Site, Traffic, service_conditions};
use serde_json::{Map, Value, json};
use store::Snapshot;

use crate::{
    document::{Findings, Object, short},
    run::v1::{SERVING, annotation, conditions, metadata, name_latest, opaque, rfc3339, template, traffic},
};

/// What a create or replace asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The name in the document.
    pub(crate) name: Option<String>,
    /// The version that the caller read, as it was given.
    pub(crate) resource_version: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) scaling: ServiceScaling,
    pub(crate) custom_audiences: Vec<String>,
    pub(crate) template: RevisionTemplate,
    /// None when the entries cannot be read, which was noted.
    pub(crate) traffic: Option<Traffic>,
}

/// Reads the document; what is wrong is noted in `findings`. `key` names the service when the path does.
pub(crate) fn decode(
    document: Value,
    name: Option<&ServiceName>,
    region: &model::Region,
    site: &Site,
    findings: &Findings,
) -> Asked {
    let mut root = Object::root(document, findings);
    for (field, expected) in [("apiVersion", SERVING), ("kind", "Service")] {
        if let Some(other) = root.text(field).filter(|text| text != expected) {
            root.say(field, format!("expected \"{expected}\", not \"{}\"", short(&other)));
        }
    }
    root.drop_owned(&["status"]);
    let mut meta = root.object("metadata");
    let given = meta.text("name");
    if let Some(namespace) = meta.text("namespace")
        && namespace != site.project.as_str()
        && namespace != site.number().to_string()
    {
        meta.say(
            "namespace",
            format!(
                "\"{}\" is not this Homerun's project {} ({})",
                short(&namespace),
                site.project,
                site.number()
            ),
        );
    }
    let resource_version = meta.text("resourceVersion");
    let labels = metadata::labels(&mut meta, &[metadata::LOCATION]);
    let annotation::ServiceMeaning {
        kept: annotations,
        scaling,
        custom_audiences,
    } = annotation::of_service(&mut meta);
    meta.drop_owned(metadata::OWNED);
    meta.unserved(&["generateName"]);
    meta.finish();

    // A name that is none is found out by the caller; any length will do for the tags then.
    let service = name
        .cloned()
        .or_else(|| given.as_deref().and_then(|name| ServiceName::parse(name).ok()));
    let mut spec = root.object("spec");
    let template = template::decode(spec.object("template"), service.as_ref(), site);
    let longest_tag = service.map_or(usize::MAX, |name| {
        site.longest_tag(&ServiceKey {
            region: region.clone(),
            name,
        })
    });
    let traffic = traffic::decode(&mut spec, longest_tag);
    spec.finish();
    root.finish();
    Asked {
        name: given,
        resource_version,
        labels,
        annotations,
        scaling,
        custom_audiences,
        template,
        traffic,
    }
}

/// The annotations that every view of a service shows.
pub(crate) fn shown_annotations(service: &Service, site: &Site) -> BTreeMap<String, String> {
    let mut shown = service.annotations.clone();
    annotation::put_scaling(&service.scaling, &mut shown);
    annotation::put_audiences(&service.custom_audiences, &mut shown);
    let urls = serde_json::to_string(&site.urls(&service.key)).expect("texts are JSON");
    for (key, value) in [
        ("serving.knative.dev/creator", service.creator.clone()),
        ("serving.knative.dev/lastModifier", service.modifier.clone()),
        ("run.googleapis.com/ingress", "all".to_owned()),
        ("run.googleapis.com/ingress-status", "all".to_owned()),
        ("run.googleapis.com/urls", urls),
    ] {
        shown.insert(key.to_owned(), value);
    }
    shown
}

/// A service's labels with the one that tells its region.
pub(crate) fn shown_labels(service: &Service) -> BTreeMap<String, String> {
    let mut shown = service.labels.clone();
    shown.insert(metadata::LOCATION.to_owned(), service.key.region.to_string());
    shown
}

/// `metadata` of a service or a view of it.
pub(crate) fn encode_metadata(
    service: &Service,
    site: &Site,
    collection: &str,
    uid: &str,
    generation: u64,
) -> Map<String, Value> {
    let project = &site.project;
    let name = &service.key.name;
    let mut shown = Map::new();
    for (key, value) in [
        ("name", Value::from(name.as_str())),
        ("namespace", project.as_str().into()),
        (
            "selfLink",
            format!("/apis/{SERVING}/namespaces/{project}/{collection}/{name}").into(),
        ),
        ("uid", uid.into()),
        ("resourceVersion", opaque(service.resource_version).into()),
        ("generation", generation.into()),
        ("creationTimestamp", rfc3339(service.created).into()),
        ("labels", json!(shown_labels(service))),
        ("annotations", json!(shown_annotations(service, site))),
    ] {
        shown.insert(key.to_owned(), value);
    }
    shown
}

/// The document as clients read it. `snapshot` holds the service's revisions; the service itself may be one that is
/// not in it yet.
pub(crate) fn encode(service: &Service, snapshot: &Snapshot, site: &Site) -> Value {
    let revisions = snapshot.revisions_of(service);
    let url = site.url(&service.key);
    let mut status = json!({
        "observedGeneration": service.generation,
        "conditions": conditions(&service_conditions(service, revisions.clone())),
        "url": url,
        "address": { "url": url },
        "traffic": traffic::encode_status(&service.routed, &service.key, site),
    });
    name_latest(&mut status, revisions);
    json!({
        "apiVersion": SERVING,
        "kind": "Service",
        "metadata": encode_metadata(service, site, "services", &service.uid, service.generation),
        "spec": {
            "template": template::encode(&service.template, &service.key.name, site),
            "traffic": traffic::encode_spec(&service.traffic),
        },
        "status": status,
    })
}
