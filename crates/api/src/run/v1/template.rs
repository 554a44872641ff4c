//! `spec.template`: from the document to `model::RevisionTemplate` and back.
//!
//! What a caller leaves out is filled in where the template is shown, and reads back as left out: a client that sends
//! back what it read changes nothing.

use std::{cmp::Ordering, collections::BTreeMap};

use model::{Concurrency, Container, Port, RequestTimeout, RevisionName, RevisionTemplate, ServiceName, Site};
use serde_json::{Map, Value, json};

use crate::{
    document::{Object, short},
    run::v1::{annotation, container, metadata, secrets, volume},
};

/// Fields of the template's `spec` that exist and are not served.
const UNSERVED: &[&str] = &[
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
    let aliases = secrets::aliases(&meaning.secrets, site, &meta, "annotations[run.googleapis.com/secrets]");
    let dependencies_path = meta.path("annotations[run.googleapis.com/container-dependencies]");
    meta.drop_owned(metadata::OWNED);
    meta.drop_owned(&["namespace", "resourceVersion"]);
    meta.unserved(&["generateName"]);
    meta.finish();

    let mut spec = given.object("spec");
    let Containers {
        container,
        port,
        sidecars,
        ingress_position,
    } = containers(&mut spec, service, &aliases);
    let volumes = volume::decode(&mut spec, &aliases);
    let mut template = RevisionTemplate {
        name,
        labels,
        annotations: meaning.kept,
        container,
        port,
        sidecars,
        ingress_position,
        volumes,
        concurrency: Concurrency::ONE,
        timeout: RequestTimeout::default(),
        service_account: None,
        scaling: meaning.scaling,
        cpu_allocation: meaning.cpu_allocation,
        sandbox: meaning.sandbox,
        startup_cpu_boost: meaning.startup_cpu_boost,
        session_affinity: meaning.session_affinity,
        kpa: meaning.kpa,
    };
    depend(&mut template, service, meaning.dependencies, &spec, &dependencies_path);
    let unset = Concurrency::default_for(template.cpu_millis());
    template.concurrency = match spec.integer("containerConcurrency") {
        None | Some(0) => unset,
        Some(number) => u32::try_from(number)
            .ok()
            .and_then(Concurrency::new)
            .unwrap_or_else(|| {
                spec.say("containerConcurrency", format!("{number} is out of range: 1 to 1000"));
                unset
            }),
    };
    template.timeout = match spec.integer("timeoutSeconds") {
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
    template.service_account = account.filter(|account| *account != site.default_account());
    spec.unserved(UNSERVED);
    spec.finish();
    given.finish();
    template
}

/// The containers of a template, told apart.
struct Containers {
    container: Container,
    port: Port,
    sidecars: Vec<Container>,
    ingress_position: usize,
}

/// The one with a port takes requests; one that is alone needs none.
fn containers(spec: &mut Object<'_>, service: Option<&ServiceName>, aliases: &secrets::Aliases) -> Containers {
    let given = spec.objects("containers");
    let alone = given.len() == 1;
    let mut read: Vec<container::Read> = given
        .into_iter()
        .enumerate()
        .map(|(index, given)| container::decode(given, service, index, alone, aliases))
        .collect();
    let with_port: Vec<usize> = (0..read.len()).filter(|index| read[*index].port.is_some()).collect();
    let ingress_position = match (read.len(), with_port.as_slice()) {
        (0, _) => {
            spec.say("containers", "a container with an image is required");
            read.push(container::Read {
                container: container::unread(),
                port: None,
            });
            0
        }
        (_, [one]) => *one,
        (count, []) => {
            spec.say(
                "containers",
                format!("none of {count} containers has a port: exactly one takes requests and has one"),
            );
            0
        }
        (_, [first, ..]) => {
            spec.say(
                "containers",
                format!(
                    "{} containers have a port: exactly one takes requests and has one",
                    with_port.len()
                ),
            );
            *first
        }
    };
    let ingress = read.remove(ingress_position);
    Containers {
        container: ingress.container,
        port: ingress.port.unwrap_or_default(),
        sidecars: read.into_iter().map(|read| read.container).collect(),
        ingress_position,
    }
}

/// Gives each container what the annotation says it depends on.
fn depend(
    template: &mut RevisionTemplate,
    service: Option<&ServiceName>,
    mut dependencies: BTreeMap<String, Vec<String>>,
    spec: &Object<'_>,
    path: &str,
) {
    // Without a service's name only names that were given can be found; the name's absence was noted.
    let names: Vec<String> = match service {
        Some(service) => template.container_names(service),
        None => template.containers().map(|container| container.name.clone()).collect(),
    };
    let ingress = template.ingress_position();
    for (index, name) in names.iter().enumerate() {
        let container = match index.cmp(&ingress) {
            Ordering::Less => &mut template.sidecars[index],
            Ordering::Equal => &mut template.container,
            Ordering::Greater => &mut template.sidecars[index - 1],
        };
        container.depends_on = dependencies.remove(name).unwrap_or_default();
    }
    for stranger in dependencies.keys() {
        spec.findings()
            .say(path, format!("\"{}\" is no container", short(stranger)));
    }
}

/// The `spec` of a template, and of the revision made of it.
pub(crate) fn encode_spec(template: &RevisionTemplate, service: &ServiceName, site: &Site) -> Value {
    let account = template
        .service_account
        .clone()
        .unwrap_or_else(|| site.default_account());
    let names = template.container_names(service);
    let ingress = template.ingress_position();
    let containers: Vec<Value> = template
        .containers()
        .zip(names)
        .enumerate()
        .map(|(index, (container, name))| {
            let port = (index == ingress).then_some(template.port);
            container::encode(container, &name, port)
        })
        .collect();
    let mut shown = json!({
        "containerConcurrency": template.concurrency.get(),
        "timeoutSeconds": template.timeout.seconds(),
        "serviceAccountName": account,
        "containers": containers,
    });
    if !template.volumes.is_empty() {
        shown["volumes"] = volume::encode(&template.volumes);
    }
    shown
}

pub(crate) fn encode(template: &RevisionTemplate, service: &ServiceName, site: &Site) -> Value {
    let mut meta = Map::new();
    if let Some(name) = &template.name {
        meta.insert("name".to_owned(), name.as_str().into());
    }
    if !template.labels.is_empty() {
        meta.insert("labels".to_owned(), json!(template.labels));
    }
    meta.insert("annotations".to_owned(), json!(annotation::shown(template, service)));
    json!({ "metadata": meta, "spec": encode_spec(template, service, site) })
}
