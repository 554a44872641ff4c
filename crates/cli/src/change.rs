//! What the flags of `deploy` and `services update` change in a service document.
//!
//! The document is kept as the server gave it, word for word, and only what a flag means is changed, in the fields that
//! gcloud uses for it: the server cannot tell the two clients apart. Pure: document and flags enter, the changed
//! document leaves.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::audience;
use crate::parts;
use crate::secret_flags;
use crate::settings::Settings;
use crate::template;
use crate::traffic::{self, To};

pub(crate) const MIN_SCALE: &str = "autoscaling.knative.dev/minScale";
pub(crate) const MAX_SCALE: &str = "autoscaling.knative.dev/maxScale";
pub(crate) const CPU_THROTTLING: &str = "run.googleapis.com/cpu-throttling";
pub(crate) const CPU_BOOST: &str = "run.googleapis.com/startup-cpu-boost";
pub(crate) const EXECUTION_ENVIRONMENT: &str = "run.googleapis.com/execution-environment";
const CLIENT_NAME: &str = "run.googleapis.com/client-name";
const CLIENT_VERSION: &str = "run.googleapis.com/client-version";
pub(crate) const NONCE: &str = "client.knative.dev/nonce";
/// Of a label value that is a DNS name's part.
const LONGEST_NAME: usize = 63;

/// The document of a service that is to be.
pub(crate) fn new_service(name: &str, project: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": project},
        "spec": {"template": {"metadata": {}, "spec": {}}},
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
    if occasion.deploy {
        settings.check_containers().map_err(Error::Failed)?;
    }
    for (name, flags) in settings.each_container() {
        let container = match name {
            Some(name) => template::container_named(service, name)?,
            None => template::container(service)?,
        };
        template |= template::resources(container, flags)?;
        template |= template::port(container, flags)?;
        template |= template::environment(container, flags)?;
        template |= template::entry_point(container, flags)?;
        template |= parts::probes(container, flags)?;
        template |= parts::mounts(container, flags)?;
        template |= secret_flags::apply(service, name, flags)?;
    }
    template |= template::company(service, settings)?;
    template |= template::annotations(service, settings, occasion)?;
    template |= template::requests(service, settings)?;
    template |= template::labels(service, settings)?;
    template |= parts::of_template(service, &settings.parts)?;
    template |= audience::apply(service, &settings.audiences)?;
    template |= settings.revision_suffix.is_some();
    let scaled = parts::of_service(service, &settings.parts)?;
    let traffic = settings.no_traffic || settings.tag.is_some();
    if !template && !traffic && !scaled {
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
            (
                "--startup-probe=httpGet.path=/ok,httpGet.port=81,periodSeconds=5",
                format!("{container}/startupProbe"),
                json!({"httpGet": {"path": "/ok", "port": 81}, "periodSeconds": 5}),
            ),
            ("--startup-probe=", format!("{container}/startupProbe"), Value::Null),
            (
                "--liveness-probe=grpc.service=x,initialDelaySeconds=9",
                format!("{container}/livenessProbe"),
                json!({"grpc": {"service": "x"}, "initialDelaySeconds": 9}),
            ),
            (
                "--readiness-probe=httpGet.path=/r,successThreshold=2",
                format!("{container}/readinessProbe"),
                json!({"httpGet": {"path": "/r"}, "successThreshold": 2}),
            ),
            (
                "--add-volume=name=v,type=in-memory,size-limit=64Mi --add-volume=name=w,type=in-memory",
                "/spec/template/spec/volumes".into(),
                json!([
                    {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
                    {"name": "w", "emptyDir": {"medium": "Memory"}},
                ]),
            ),
            ("--clear-volumes", "/spec/template/spec/volumes".into(), Value::Null),
            (
                "--add-volume-mount=volume=v,mount-path=/v",
                format!("{container}/volumeMounts"),
                json!([{"name": "v", "mountPath": "/v"}]),
            ),
            (
                "--remove-volume-mount=/v",
                format!("{container}/volumeMounts"),
                Value::Null,
            ),
            (
                "--session-affinity",
                annotation("run.googleapis.com/sessionAffinity"),
                json!("true"),
            ),
            (
                "--no-session-affinity",
                annotation("run.googleapis.com/sessionAffinity"),
                Value::Null,
            ),
            (
                "--set-custom-audiences=a,b",
                "/metadata/annotations/run.googleapis.com~1custom-audiences".into(),
                json!(r#"["a","b"]"#),
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
    fn the_scaling_of_a_service_makes_no_revision() {
        let annotation = |service: &Value, key: &str| service["metadata"]["annotations"][key].clone();
        let mut service = existing();
        let mut untouched = existing();
        // To look for annotations makes room for them.
        untouched["spec"]["template"]["metadata"]["annotations"] = json!({});
        for (line, key, want) in [
            ("--min=2 --max=9", "run.googleapis.com/minScale", json!("2")),
            ("--min=0", "run.googleapis.com/minScale", Value::Null),
            ("--max=default", "run.googleapis.com/maxScale", Value::Null),
            ("--scaling=3", "run.googleapis.com/manualInstanceCount", json!("3")),
            ("--scaling=3", "run.googleapis.com/scalingMode", json!("manual")),
            ("--scaling=auto", "run.googleapis.com/manualInstanceCount", Value::Null),
            ("--scaling=auto", "run.googleapis.com/scalingMode", json!("automatic")),
        ] {
            let changed = apply(&mut service, &settings(line), UPDATE).expect(line);
            assert_eq!(changed, Some(Changed { template: false }), "{line}");
            assert_eq!(annotation(&service, key), want, "{line}");
            assert_eq!(service["spec"], untouched["spec"], "{line}");
        }
        let refused = apply(&mut service, &settings("--scaling=3 --max=4"), UPDATE);
        assert!(refused.is_err());
    }

    #[test]
    fn keys_of_probes_and_kinds_of_volumes_are_checked() {
        for (line, says) in [
            ("--startup-probe=x=1", "[x]"),
            ("--startup-probe=successThreshold=1", "[successThreshold]"),
            ("--liveness-probe=tcpSocket.port=1", "liveness"),
            ("--readiness-probe=initialDelaySeconds=1", "readiness"),
            ("--startup-probe=periodSeconds=a", "integer"),
            ("--add-volume=name=v,type=nfs,location=a:/b", "only in-memory"),
            ("--add-volume=name=v", "name and type"),
            ("--add-volume=name=v,type=in-memory,x=y", "unexpected parameter x"),
            ("--add-volume-mount=volume=v", "mount-path"),
            ("--add-volume-mount=volume=v,mount-path=/v,ro=1", "[ro]"),
        ] {
            let mut service = existing();
            let error = apply(&mut service, &settings(line), UPDATE).expect_err(line);
            assert!(error.to_string().contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn containers_are_changed_made_and_removed_by_name() {
        const DEPENDENCIES: &str = "run.googleapis.com/container-dependencies";
        let dependencies = |service: &Value| {
            let text = service["spec"]["template"]["metadata"]["annotations"][DEPENDENCIES].clone();
            text.as_str()
                .map(|text| serde_json::from_str::<Value>(text).expect("JSON"))
        };
        let containers = |service: &Value| service["spec"]["template"]["spec"]["containers"].clone();
        let new = Occasion {
            new: true,
            deploy: true,
            chance: 1,
        };
        let mut service = new_service("s", "p");
        let line = "--container=app --image=i --port=8080 --depends-on=side,third --container=side --image=j \
                    --depends-on=third --container=third --image=k";
        apply(&mut service, &settings(line), new).expect("applies");
        assert_eq!(
            containers(&service),
            json!([
                {"name": "app", "image": "i", "ports": [{"containerPort": 8080}]},
                {"name": "side", "image": "j"},
                {"name": "third", "image": "k"},
            ])
        );
        assert_eq!(
            dependencies(&service),
            Some(json!({"app": ["side", "third"], "side": ["third"]}))
        );
        apply(&mut service, &settings("--container=side --cpu=2"), UPDATE).expect("applies");
        assert_eq!(containers(&service)[1]["resources"]["limits"]["cpu"], "2");
        // Without a name it is the one with the port.
        apply(&mut service, &settings("--memory=1Gi"), UPDATE).expect("applies");
        assert_eq!(containers(&service)[0]["resources"]["limits"]["memory"], "1Gi");
        apply(&mut service, &settings("--remove-containers=third"), UPDATE).expect("applies");
        assert_eq!(dependencies(&service), Some(json!({"app": ["side"]})));
        apply(&mut service, &settings("--depends-on="), UPDATE).expect("applies");
        assert_eq!(dependencies(&service), None);

        let ghost = apply(&mut service, &settings("--container=app --depends-on=ghost"), UPDATE);
        assert!(ghost.expect_err("no ghost").to_string().contains("app names ghost"));
        for line in [
            "--container=a --port=1 --container=b --port=2",
            "--container=a --container=b",
        ] {
            let refused = apply(&mut new_service("s", "p"), &settings(line), new);
            assert!(refused.expect_err(line).to_string().contains("Exactly one container"));
        }
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
