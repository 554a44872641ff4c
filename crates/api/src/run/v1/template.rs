//! `spec.template`: from the document to `model::RevisionTemplate` and back.
//!
//! What a caller leaves out is filled in where the template is shown, and reads back as left out: a client that sends
//! back what it read changes nothing.

use model::{Concurrency, Port, RequestTimeout, RevisionName, RevisionTemplate, ServiceName, Site};
use serde_json::{Map, Value, json};

use crate::{
    document::Object,
    run::v1::{annotation, container, metadata},
};

/// Fields of the template's `spec` that exist and are not served.
const UNSERVED: &[&str] = &[
    "volumes",
    "initContainers",
    "imagePullSecrets",
    "nodeSelector",
    "runtimeClassName",
    "affinity",
    "tolerations",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "securityContext",
    "dnsPolicy",
    "dnsConfig",
    "hostAliases",
    "idleTimeoutSeconds",
    "responseStartTimeoutSeconds",
    "servingState",
];

/// The account that instances run as when the caller names none.
pub(crate) fn default_account(site: &Site) -> String {
    format!("{}-compute@developer.gserviceaccount.com", site.number())
}

/// `service` is None when the document names none that can be read.
pub(crate) fn decode(mut given: Object<'_>, service: Option<&ServiceName>, site: &Site) -> RevisionTemplate {
    let mut meta = given.object("metadata");
    let name = meta.text("name").and_then(|text| match RevisionName::parse(&text) {
        Ok(name) => Some(name),
        Err(error) => {
            meta.say("name", error.to_string());
            None
        }
    });
    // gcloud copies all labels it reads on a service to the template.
    let labels = metadata::labels(&mut meta, &[metadata::LOCATION]);
    let meaning = annotation::of_template(&mut meta);
    meta.drop_owned(metadata::OWNED);
    meta.drop_owned(&["namespace", "resourceVersion"]);
    meta.unserved(&["generateName"]);
    meta.finish();

    let mut spec = given.object("spec");
    let mut containers = spec.objects("containers");
    let count = containers.len();
    let (container, port) = match containers.drain(..).next() {
        None => {
            spec.say("containers", "a container with an image is required");
            (container::unread(), Port::default())
        }
        Some(first) => {
            if count > 1 {
                spec.say(
                    "containers",
                    format!("{count} containers: sidecars are not served by this Homerun, only one container is"),
                );
            }
            container::decode(first, service)
        }
    };
    let unset = Concurrency::default_for(container.resources.cpu.millis());
    let concurrency = match spec.integer("containerConcurrency") {
        None | Some(0) => unset,
        Some(number) => u32::try_from(number)
            .ok()
            .and_then(Concurrency::new)
            .unwrap_or_else(|| {
                spec.say("containerConcurrency", format!("{number} is out of range: 1 to 1000"));
                unset
            }),
    };
    let timeout = match spec.integer("timeoutSeconds") {
        None => RequestTimeout::default(),
        Some(number) => u32::try_from(number)
            .ok()
            .and_then(RequestTimeout::new)
            .unwrap_or_else(|| {
                spec.say("timeoutSeconds", format!("{number} is out of range: 1 to 3600 seconds"));
                RequestTimeout::default()
            }),
    };
    // The field has an older name beside its own.
    let account = spec.text("serviceAccountName");
    let account = spec.text("serviceAccount").or(account);
    let service_account = account.filter(|account| *account != default_account(site));
    spec.unserved(UNSERVED);
    spec.finish();
    given.finish();
    RevisionTemplate {
        name,
        labels,
        annotations: meaning.kept,
        container,
        port,
        sidecars: Vec::new(),
        ingress_position: 0,
        volumes: Vec::new(),
        concurrency,
        timeout,
        service_account,
        scaling: meaning.scaling,
        cpu_allocation: meaning.cpu_allocation,
        sandbox: meaning.sandbox,
        startup_cpu_boost: meaning.startup_cpu_boost,
        session_affinity: None,
        kpa: None,
    }
}

/// The `spec` of a template, and of the revision made of it.
pub(crate) fn encode_spec(template: &RevisionTemplate, service: &ServiceName, site: &Site) -> Value {
    let account = template
        .service_account
        .clone()
        .unwrap_or_else(|| default_account(site));
    json!({
        "containerConcurrency": template.concurrency.get(),
        "timeoutSeconds": template.timeout.seconds(),
        "serviceAccountName": account,
        "containers": [container::encode(&template.container, template.port, service)],
    })
}

pub(crate) fn encode(template: &RevisionTemplate, service: &ServiceName, site: &Site) -> Value {
    let mut meta = Map::new();
    if let Some(name) = &template.name {
        meta.insert("name".to_owned(), name.as_str().into());
    }
    if !template.labels.is_empty() {
        meta.insert("labels".to_owned(), json!(template.labels));
    }
    meta.insert("annotations".to_owned(), json!(annotation::shown(template)));
    json!({ "metadata": meta, "spec": encode_spec(template, service, site) })
}
