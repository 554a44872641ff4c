//! What the flags of `deploy` and `services update` change in a service document.
//!
//! The document is kept as the server gave it, word for word, and only what a flag means is changed, in the fields that
//! gcloud uses for it: the server cannot tell the two clients apart. Pure: document and flags enter, the changed
//! document leaves.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::flag::{self, OrDefault};
use crate::traffic::{self, To};
use crate::words::{ExecutionEnvironment, Settings};

pub(crate) const MIN_SCALE: &str = "autoscaling.knative.dev/minScale";
pub(crate) const MAX_SCALE: &str = "autoscaling.knative.dev/maxScale";
pub(crate) const CPU_THROTTLING: &str = "run.googleapis.com/cpu-throttling";
pub(crate) const CPU_BOOST: &str = "run.googleapis.com/startup-cpu-boost";
pub(crate) const EXECUTION_ENVIRONMENT: &str = "run.googleapis.com/execution-environment";
const CLIENT_NAME: &str = "run.googleapis.com/client-name";
const CLIENT_VERSION: &str = "run.googleapis.com/client-version";
const NONCE: &str = "client.knative.dev/nonce";
/// Of a label value that is a DNS name's part.
const LONGEST_NAME: usize = 63;

/// The document of a service that is to be.
pub(crate) fn new_service(name: &str, project: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": project},
        "spec": {"template": {"metadata": {}, "spec": {"containers": [{}]}}},
    })
}

/// The object at a path of fields, made where it is absent.
pub(crate) fn object<'a>(document: &'a mut Value, path: &[&str]) -> Result<&'a mut Map<String, Value>, Error> {
    let mut at = document;
    for field in path {
        let fields = fields_of(at, field)?;
        at = fields.entry((*field).to_owned()).or_insert(Value::Null);
    }
    fields_of(at, path.last().copied().unwrap_or_default())
}

fn fields_of<'a>(at: &'a mut Value, name: &str) -> Result<&'a mut Map<String, Value>, Error> {
    if at.is_null() {
        *at = Value::Object(Map::new());
    }
    at.as_object_mut().ok_or_else(|| Error::Answer {
        call: "the server".to_owned(),
        what: format!("something else than an object around {name}"),
    })
}

fn template_annotations(service: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    object(service, &["spec", "template", "metadata", "annotations"])
}

/// The container that takes requests: the one with a port, or the only one.
fn container(service: &mut Value) -> Result<&mut Value, Error> {
    let spec = object(service, &["spec", "template", "spec"])?;
    let containers = spec
        .entry("containers")
        .or_insert_with(|| json!([{}]))
        .as_array_mut()
        .filter(|containers| !containers.is_empty())
        .ok_or_else(|| Error::Answer {
            call: "the server".to_owned(),
            what: "a service without containers".to_owned(),
        })?;
    let with_port = containers.iter().position(|c| c["ports"].is_array());
    Ok(&mut containers[with_port.unwrap_or(0)])
}

/// The image that the service runs now.
pub(crate) fn image(service: &Value) -> Option<&str> {
    let containers = service["spec"]["template"]["spec"]["containers"].as_array()?;
    let with_port = containers.iter().position(|c| c["ports"].is_array());
    containers.get(with_port.unwrap_or(0))?["image"].as_str()
}

/// Runs the same bytes as before: the digest in place of a tag.
pub(crate) fn pin(service: &mut Value, image: &str) -> Result<(), Error> {
    object_of(container(service)?)?.insert("image".to_owned(), json!(image));
    Ok(())
}

fn object_of(container: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    object(container, &[])
}

/// `true` or `false` of a pair of flags, nothing where neither stands.
fn pair(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

/// gcloud's spelling of a truth.
fn truth(yes: bool) -> Value {
    json!(if yes { "True" } else { "False" })
}

/// How the command that changes differs from others like it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occasion {
    /// The service does not exist yet.
    pub(crate) new: bool,
    /// Make a new revision even when nothing in the template changes.
    pub(crate) deploy: bool,
    /// A number drawn at random.
    pub(crate) chance: u64,
}

/// What became of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) template: bool,
}

/// Carries the flags into the document. `None` where no flag asks for anything.
pub(crate) fn apply(service: &mut Value, settings: &Settings, occasion: Occasion) -> Result<Option<Changed>, Error> {
    let mut template = occasion.deploy;
    template |= resources(service, settings)?;
    template |= port(service, settings)?;
    template |= environment(service, settings)?;
    template |= entry_point(service, settings)?;
    template |= annotations(service, settings, occasion)?;
    template |= requests(service, settings)?;
    template |= labels(service, settings)?;
    template |= settings.revision_suffix.is_some();
    let traffic = settings.no_traffic || settings.tag.is_some();
    if !template && !traffic {
        return Ok(None);
    }
    if template || settings.tag.is_some() {
        force_revision(service, settings, occasion)?;
        template = true;
    }
    if settings.no_traffic {
        if occasion.new {
            return Err(Error::Failed(
                "--no-traffic not supported when creating a new service".to_owned(),
            ));
        }
        let ready = service["status"]["latestReadyRevisionName"].as_str();
        let held = traffic::hold(&traffic::read(&service["spec"]["traffic"]), ready)?;
        object(service, &["spec"])?.insert("traffic".to_owned(), traffic::write(&held));
    }
    if let Some(tag) = &settings.tag {
        let name = service["spec"]["template"]["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let set = std::iter::once((tag.clone(), To::Revision(name))).collect();
        let entries = traffic::read(&service["spec"]["traffic"]);
        let tagged = traffic::set_tags(&entries, &set, &BTreeSet::new(), false);
        object(service, &["spec"])?.insert("traffic".to_owned(), traffic::write(&tagged));
    }
    sign(service, template)?;
    Ok(Some(Changed { template }))
}

/// Says which client wrote.
pub(crate) fn sign(service: &mut Value, template: bool) -> Result<(), Error> {
    let mut places: Vec<&[&str]> = vec![&["metadata", "annotations"]];
    if template {
        places.push(&["spec", "template", "metadata", "annotations"]);
    }
    for place in places {
        let annotations = object(service, place)?;
        annotations.insert(CLIENT_NAME.to_owned(), json!("homerun"));
        annotations.insert(CLIENT_VERSION.to_owned(), json!(env!("CARGO_PKG_VERSION")));
    }
    Ok(())
}

/// Makes sure of a new revision: by a name where a tag or a suffix needs one, else by a fresh nonce.
fn force_revision(service: &mut Value, settings: &Settings, occasion: Occasion) -> Result<(), Error> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let generation = service["metadata"]["generation"].as_u64().unwrap_or(0);
    let suffix = match &settings.revision_suffix {
        Some(suffix) => Some(suffix.clone()).filter(|suffix| !suffix.is_empty()),
        None if settings.tag.is_some() => Some(format!("{:05}-{}", generation + 1, letters(occasion.chance, 3))),
        None => None,
    };
    let metadata = object(service, &["spec", "template", "metadata"])?;
    if let Some(suffix) = suffix {
        let room = LONGEST_NAME.saturating_sub(suffix.len() + 1);
        let prefix: String = name.chars().take(room).collect();
        metadata.insert("name".to_owned(), json!(format!("{prefix}-{suffix}")));
        object(service, &["spec", "template", "metadata", "labels"])?.remove(NONCE);
    } else {
        metadata.remove("name");
        let nonce = letters(occasion.chance, 10);
        object(service, &["spec", "template", "metadata", "labels"])?.insert(NONCE.to_owned(), json!(nonce));
    }
    Ok(())
}

/// So many letters out of a number, none of which makes words.
fn letters(mut chance: u64, count: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz";
    (0..count)
        .map(|_| {
            let letter = LETTERS[usize::try_from(chance % 20).expect("below 20")];
            chance /= 20;
            char::from(letter)
        })
        .collect()
}

fn resources(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let container = container(service)?;
    if let Some(image) = &settings.image {
        object_of(container)?.insert("image".to_owned(), json!(image));
    }
    for (key, value) in [("memory", &settings.memory), ("cpu", &settings.cpu)] {
        if let Some(value) = value {
            object(container, &["resources", "limits"])?.insert(key.to_owned(), json!(value));
        }
    }
    Ok(settings.image.is_some() || settings.memory.is_some() || settings.cpu.is_some())
}

fn port(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let http2 = pair(settings.use_http2, settings.no_use_http2);
    if settings.port.is_none() && http2.is_none() {
        return Ok(false);
    }
    let container = container(service)?;
    let before = container["ports"][0]["containerPort"].as_u64().unwrap_or(8080);
    let mut port = container["ports"][0].as_object().cloned().unwrap_or_default();
    match settings.port {
        Some(OrDefault::Number(number)) => {
            port.insert("containerPort".to_owned(), json!(number));
        }
        Some(OrDefault::Default) => {
            port.remove("containerPort");
        }
        None => {}
    }
    match http2 {
        Some(true) => {
            port.insert("name".to_owned(), json!("h2c"));
            port.entry("containerPort").or_insert(json!(8080));
        }
        Some(false) => {
            port.remove("name");
        }
        None => {}
    }
    let now = port.get("containerPort").cloned();
    let fields = object_of(container)?;
    if now.is_some() {
        fields.insert("ports".to_owned(), json!([port]));
    } else {
        fields.remove("ports");
    }
    // the default probe asks the port of before
    if let Some(Value::Object(probe)) = container.pointer_mut("/startupProbe/tcpSocket")
        && probe.get("port").and_then(Value::as_u64) == Some(before)
    {
        probe.insert("port".to_owned(), now.unwrap_or(json!(8080)));
    }
    Ok(true)
}

fn environment(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let clear = settings.clear_env_vars || !settings.set_env_vars.is_empty();
    let mut updates = flag::joined(&settings.set_env_vars);
    updates.extend(flag::joined(&settings.update_env_vars));
    let removes = flag::listed(&settings.remove_env_vars);
    if !clear && updates.is_empty() && removes.is_empty() {
        return Ok(false);
    }
    let fields = object_of(container(service)?)?;
    let mut variables = match fields.remove("env") {
        Some(Value::Array(variables)) => variables,
        Some(_) | None => Vec::new(),
    };
    let literal = |variable: &Value| variable.get("valueFrom").is_none_or(Value::is_null);
    variables.retain(|variable| {
        let named = |name: &String| variable["name"].as_str() == Some(name);
        !literal(variable) || !(clear || removes.iter().any(named))
    });
    for (name, value) in updates {
        match variables.iter_mut().find(|v| v["name"] == name.as_str()) {
            Some(variable) if literal(variable) => variable["value"] = json!(value),
            Some(_) => {
                return Err(Error::Failed(format!(
                    "cannot update environment variable [{name}] to string literal because it has \
                     already been set with a different type"
                )));
            }
            None => variables.push(json!({"name": name, "value": value})),
        }
    }
    if !variables.is_empty() {
        fields.insert("env".to_owned(), Value::Array(variables));
    }
    Ok(true)
}

fn entry_point(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let fields = object_of(container(service)?)?;
    for (key, given) in [("command", &settings.command), ("args", &settings.args)] {
        // the last occurrence counts, an empty one takes the image's own
        if let Some(list) = given.last() {
            if list.0.is_empty() {
                fields.remove(key);
            } else {
                fields.insert(key.to_owned(), json!(list.0));
            }
        }
    }
    Ok(!settings.command.is_empty() || !settings.args.is_empty())
}

fn annotations(service: &mut Value, settings: &Settings, occasion: Occasion) -> Result<bool, Error> {
    let annotations = template_annotations(service)?;
    let mut changed = false;
    let mut put = |key: &str, value: Option<Value>| {
        changed = true;
        match value {
            Some(value) => annotations.insert(key.to_owned(), value),
            None => annotations.remove(key),
        };
    };
    match settings.min_instances {
        Some(OrDefault::Number(0) | OrDefault::Default) => put(MIN_SCALE, None),
        Some(OrDefault::Number(count)) => put(MIN_SCALE, Some(json!(count.to_string()))),
        None => {}
    }
    match settings.max_instances {
        Some(OrDefault::Default) => put(MAX_SCALE, None),
        Some(OrDefault::Number(count)) => put(MAX_SCALE, Some(json!(count.to_string()))),
        None => {}
    }
    if let Some(throttling) = pair(settings.cpu_throttling, settings.no_cpu_throttling) {
        put(CPU_THROTTLING, Some(truth(throttling)));
    }
    match pair(settings.cpu_boost, settings.no_cpu_boost) {
        Some(boost) => put(CPU_BOOST, Some(truth(boost))),
        None if occasion.new => put(CPU_BOOST, Some(truth(true))),
        None => {}
    }
    match settings.execution_environment {
        Some(ExecutionEnvironment::Gen1) => put(EXECUTION_ENVIRONMENT, Some(json!("gen1"))),
        Some(ExecutionEnvironment::Gen2) => put(EXECUTION_ENVIRONMENT, Some(json!("gen2"))),
        None => {}
    }
    Ok(changed)
}

fn requests(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let spec = object(service, &["spec", "template", "spec"])?;
    match settings.concurrency {
        Some(OrDefault::Number(requests)) => {
            spec.insert("containerConcurrency".to_owned(), json!(requests));
        }
        Some(OrDefault::Default) => {
            spec.remove("containerConcurrency");
        }
        None => {}
    }
    if let Some(seconds) = settings.timeout {
        spec.insert("timeoutSeconds".to_owned(), json!(seconds));
    }
    if let Some(account) = &settings.service_account {
        spec.insert("serviceAccountName".to_owned(), json!(account));
    }
    Ok(settings.concurrency.is_some() || settings.timeout.is_some() || settings.service_account.is_some())
}

fn labels(service: &mut Value, settings: &Settings) -> Result<bool, Error> {
    let updates = flag::joined(&settings.update_labels);
    let removes = flag::listed(&settings.remove_labels);
    if !settings.clear_labels && updates.is_empty() && removes.is_empty() {
        return Ok(false);
    }
    let labels = object(service, &["metadata", "labels"])?;
    if settings.clear_labels {
        labels.retain(|key, _| is_reserved(key));
    }
    labels.retain(|key, _| !removes.contains(key));
    for (key, value) in updates {
        labels.insert(key, json!(value));
    }
    // the service's labels are those of its next revision
    let mut of_revision = labels.clone();
    of_revision.retain(|key, _| !is_reserved(key));
    let template = object(service, &["spec", "template", "metadata", "labels"])?;
    if let Some(nonce) = template.remove(NONCE) {
        of_revision.insert(NONCE.to_owned(), nonce);
    }
    *template = of_revision;
    Ok(true)
}

/// Whether a label or annotation belongs to the platform.
pub(crate) fn is_reserved(key: &str) -> bool {
    let group = key.split_once('/').map_or("", |(group, _)| group);
    [
        "client.knative.dev",
        "serving.knative.dev",
        "autoscaling.knative.dev",
        "eventing.knative.dev",
        "cloud.googleapis.com",
        "run.googleapis.com",
    ]
    .contains(&group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Run, Word, read};

    fn settings(line: &str) -> Settings {
        let words: Vec<String> = ["run", "services", "update", "s"]
            .into_iter()
            .chain(line.split_whitespace())
            .map(str::to_owned)
            .collect();
        let read = read(&words, "homerun").unwrap_or_else(|why| panic!("{line}: {why:?}"));
        let Word::Run(Run::Services(crate::words::Services::Update(update))) = read.word else {
            panic!("{line} is another word")
        };
        update.settings
    }

    const UPDATE: Occasion = Occasion {
        new: false,
        deploy: false,
        chance: 7,
    };

    fn existing() -> Value {
        json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": "s", "generation": 4, "labels": {"team": "x", "cloud.googleapis.com/location": "us-central1"}},
            "spec": {
                "template": {
                    "metadata": {"name": "s-old", "labels": {"team": "x", "client.knative.dev/nonce": "n"}},
                    "spec": {"containers": [{"image": "i:v1", "ports": [{"containerPort": 8080, "name": "http1"}],
                        "env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s"}}}, {"name": "A", "value": "1"}],
                        "startupProbe": {"tcpSocket": {"port": 8080}}, "extra": {"kept": [1]}}],
                        "containerConcurrency": 80, "timeoutSeconds": 300}},
                "traffic": [{"latestRevision": true, "percent": 100}]},
            "status": {"latestReadyRevisionName": "s-00004-abc", "url": "u"}
        })
    }

    fn changed(line: &str) -> Value {
        let mut service = existing();
        let changed = apply(&mut service, &settings(line), UPDATE).unwrap_or_else(|why| panic!("{line}: {why}"));
        assert!(changed.is_some(), "{line}");
        service
    }

    #[test]
    fn each_flag_changes_its_field_and_nothing_else() {
        let container = "/spec/template/spec/containers/0";
        let annotation = |key: &str| format!("/spec/template/metadata/annotations/{}", key.replace('/', "~1"));
        let table: Vec<(&str, String, Value)> = vec![
            (
                "--memory=1Gi",
                format!("{container}/resources/limits/memory"),
                json!("1Gi"),
            ),
            ("--cpu=2", format!("{container}/resources/limits/cpu"), json!("2")),
            ("--port=9000", format!("{container}/ports/0/containerPort"), json!(9000)),
            (
                "--port=9000",
                format!("{container}/startupProbe/tcpSocket/port"),
                json!(9000),
            ),
            ("--port=default", format!("{container}/ports"), Value::Null),
            ("--use-http2", format!("{container}/ports/0/name"), json!("h2c")),
            (
                "--no-use-http2",
                format!("{container}/ports"),
                json!([{"containerPort": 8080}]),
            ),
            ("--image=j", format!("{container}/image"), json!("j")),
            ("--command=/a,b", format!("{container}/command"), json!(["/a", "b"])),
            ("--args=--x,y", format!("{container}/args"), json!(["--x", "y"])),
            ("--args=", format!("{container}/args"), Value::Null),
            ("--min-instances=2", annotation(MIN_SCALE), json!("2")),
            ("--min-instances=0", annotation(MIN_SCALE), Value::Null),
            ("--max-instances=200", annotation(MAX_SCALE), json!("200")),
            ("--no-cpu-throttling", annotation(CPU_THROTTLING), json!("False")),
            ("--cpu-throttling", annotation(CPU_THROTTLING), json!("True")),
            ("--no-cpu-boost", annotation(CPU_BOOST), json!("False")),
            (
                "--execution-environment=gen2",
                annotation(EXECUTION_ENVIRONMENT),
                json!("gen2"),
            ),
            (
                "--concurrency=100",
                "/spec/template/spec/containerConcurrency".into(),
                json!(100),
            ),
            (
                "--concurrency=default",
                "/spec/template/spec/containerConcurrency".into(),
                Value::Null,
            ),
            ("--timeout=10m", "/spec/template/spec/timeoutSeconds".into(), json!(600)),
            (
                "--service-account=a@b",
                "/spec/template/spec/serviceAccountName".into(),
                json!("a@b"),
            ),
        ];
        for (line, path, want) in table {
            let service = changed(line);
            let got = service.pointer(&path).cloned().unwrap_or_default();
            assert_eq!(got, want, "{line}");
            assert_eq!(
                service["spec"]["template"]["spec"]["containers"][0]["extra"],
                json!({"kept": [1]})
            );
            let metadata = &service["spec"]["template"]["metadata"];
            assert!(metadata.get("name").is_none(), "{line}: the old name is gone");
            assert_ne!(metadata["labels"][NONCE], "n", "{line}: a new nonce");
            assert_eq!(service["status"], existing()["status"]);
        }
    }

    #[test]
    fn variables_keep_their_order_and_references_stay() {
        let env = |line: &str| changed(line)["spec"]["template"]["spec"]["containers"][0]["env"].clone();
        let secret = json!({"name": "S", "valueFrom": {"secretKeyRef": {"name": "s"}}});
        let literal = |name: &str, value: &str| json!({"name": name, "value": value});
        assert_eq!(
            env("--set-env-vars=B=2,C=3"),
            json!([secret, literal("B", "2"), literal("C", "3")])
        );
        assert_eq!(
            env("--update-env-vars=A=9,B=2"),
            json!([secret, literal("A", "9"), literal("B", "2")])
        );
        assert_eq!(env("--remove-env-vars=A"), json!([secret]));
        assert_eq!(env("--clear-env-vars"), json!([secret]));
        assert_eq!(
            env("--update-env-vars=B=2 --remove-env-vars=A"),
            json!([secret, literal("B", "2")])
        );
        let refused = apply(&mut existing(), &settings("--set-env-vars=S=1"), UPDATE);
        assert!(refused.expect_err("another type").to_string().contains("[S]"));
    }

    #[test]
    fn labels_go_to_service_and_revision() {
        let service = changed("--update-labels=a=b --remove-labels=team");
        assert_eq!(
            service["metadata"]["labels"],
            json!({"cloud.googleapis.com/location": "us-central1", "a": "b"})
        );
        let of_revision = &service["spec"]["template"]["metadata"]["labels"];
        assert_eq!(of_revision["a"], "b");
        assert!(of_revision.get("team").is_none());
        assert!(of_revision.get("cloud.googleapis.com/location").is_none());
        let cleared = changed("--clear-labels --labels=z=1");
        assert_eq!(cleared["metadata"]["labels"]["z"], "1");
        assert!(cleared["metadata"]["labels"].get("team").is_none());
    }

    #[test]
    fn a_tag_names_the_revision() {
        let service = changed("--memory=1Gi --no-traffic --tag=green");
        let name = service["spec"]["template"]["metadata"]["name"]
            .as_str()
            .expect("a name");
        assert!(name.starts_with("s-00005-") && name.len() == 11, "{name}");
        assert!(service["spec"]["template"]["metadata"]["labels"].get(NONCE).is_none());
        assert_eq!(
            service["spec"]["traffic"],
            json!([{"revisionName": "s-00004-abc", "percent": 100}, {"revisionName": name, "tag": "green"}])
        );
        let service = changed("--memory=1Gi --tag=t --revision-suffix=v2");
        assert_eq!(service["spec"]["template"]["metadata"]["name"], "s-v2");
        assert_eq!(
            service["spec"]["traffic"][1],
            json!({"revisionName": "s-v2", "tag": "t"})
        );
    }

    #[test]
    fn traffic_alone_makes_no_revision() {
        let mut service = existing();
        let changed = apply(&mut service, &settings("--no-traffic"), UPDATE).expect("applies");
        assert_eq!(changed, Some(Changed { template: false }));
        assert_eq!(service["spec"]["template"]["metadata"]["name"], "s-old");
        let nothing = apply(&mut existing(), &settings(""), UPDATE).expect("applies");
        assert_eq!(nothing, None);
    }

    #[test]
    fn a_new_service_boosts_and_takes_no_no_traffic() {
        let new = Occasion {
            new: true,
            deploy: true,
            chance: 1,
        };
        let mut service = new_service("s", "p");
        apply(&mut service, &settings("--image=i"), new).expect("applies");
        assert_eq!(
            service["spec"]["template"]["metadata"]["annotations"][CPU_BOOST],
            "True"
        );
        assert!(service["spec"].get("traffic").is_none());
        let refused = apply(&mut new_service("s", "p"), &settings("--no-traffic"), new);
        assert!(refused.is_err());
    }

    #[test]
    fn odd_documents_are_refused_without_a_panic() {
        for odd in [
            json!({"spec": 1}),
            json!({"spec": {"template": {"spec": {"containers": []}}}}),
            json!([]),
        ] {
            let mut service = odd.clone();
            assert!(apply(&mut service, &settings("--memory=1Gi"), UPDATE).is_err(), "{odd}");
        }
    }
}
