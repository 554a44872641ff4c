//! Several containers, volumes, probes, and scaling of a service and by Knative's rules: what is stored, what is shown,
//! that it reads back as it was, and what is refused.

use std::num::NonZeroU32;

use model::{Check, KpaMetric, ServiceScaling};
use serde_json::{Value, json};

use crate::setting::{SERVICES, Setting, deploy};

const DEPENDENCIES: &str = "run.googleapis.com/container-dependencies";

/// A proxy that takes requests in the middle of two others, with a volume between them.
fn several(name: &str) -> Value {
    let mut document = deploy(name);
    let template = &mut document["spec"]["template"];
    template["metadata"]["annotations"][DEPENDENCIES] = json!({ "proxy": ["app"] }).to_string().into();
    template["metadata"]["annotations"]["run.googleapis.com/sessionAffinity"] = "true".into();
    template["spec"]["containers"] = json!([
        {
            "name": "app",
            "image": "us-central1-docker.pkg.dev/my-project/docker-repo/app:v1",
            "env": [{ "name": "PORT", "value": "8888" }],
            "resources": { "limits": { "cpu": "500m", "memory": "256Mi" } },
            "startupProbe": { "httpGet": { "port": 8888, "httpHeaders": [{ "name": "x-a", "value": "b" }] } },
            "volumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }],
        },
        {
            "name": "proxy",
            "image": "us-central1-docker.pkg.dev/my-project/docker-repo/proxy:v1",
            "ports": [{ "containerPort": 8080 }],
            "livenessProbe": { "grpc": { "service": "live" }, "periodSeconds": 3600, "timeoutSeconds": 30 },
            "readinessProbe": { "httpGet": { "path": "/ready" }, "successThreshold": 2 },
            "volumeMounts": [{ "name": "scratch", "mountPath": "/in" }, { "name": "rest", "mountPath": "/rest" }],
        },
        { "image": "us-central1-docker.pkg.dev/my-project/docker-repo/agent:v1" },
    ]);
    template["spec"]["volumes"] = json!([
        { "name": "scratch", "emptyDir": { "medium": "Memory", "sizeLimit": "64Mi" } },
        { "name": "rest", "emptyDir": {} },
    ]);
    document
}

#[tokio::test]
async fn several_containers_are_stored_shown_and_read_back() {
    let setting = Setting::new().await;
    let shown = setting.create(&several("my-api")).await;
    let template = setting.stored("my-api").template;
    assert_eq!(template.container.name, "proxy");
    assert_eq!(template.ingress_position, 1);
    let sidecars: Vec<&str> = template.sidecars.iter().map(|sidecar| sidecar.name.as_str()).collect();
    assert_eq!(sidecars, ["app", ""]);
    assert_eq!(template.container.depends_on, ["app"]);
    assert_eq!(template.session_affinity, Some(true));
    assert_eq!(template.volumes.len(), 2);
    assert!(
        template.sidecars[1].startup_probe.is_none(),
        "a sidecar has none unsaid"
    );
    let live = template.container.liveness_probe.as_ref().expect("a probe");
    assert!(matches!(&live.check, Check::Grpc { port, service } if port.get() == 8080 && service == "live"));
    crate::setting::golden("containers", &shown["spec"], &shown);
    let annotations = &shown["spec"]["template"]["metadata"]["annotations"];
    let dependencies: Value = serde_json::from_str(annotations[DEPENDENCIES].as_str().expect("text")).expect("JSON");
    assert_eq!(dependencies, json!({ "proxy": ["app"] }));

    setting.replace(&shown).await;
    assert_eq!(setting.stored("my-api").generation, 1, "read back it is the same");

    let name = setting.settle("my-api", true).await;
    let revision = setting
        .get(&format!(
            "/apis/serving.knative.dev/v1/namespaces/my-project/revisions/{name}"
        ))
        .await;
    let statuses = revision["status"]["containerStatuses"].as_array().expect("a list");
    let told: Vec<(&str, bool)> = statuses
        .iter()
        .map(|status| {
            let digest = status["imageDigest"].as_str().expect("text");
            (status["name"].as_str().expect("text"), digest.contains("@sha256:"))
        })
        .collect();
    assert_eq!(told, [("app", true), ("proxy", true), ("my-api-3", true)]);
    assert_ne!(statuses[0]["imageDigest"], statuses[1]["imageDigest"]);
}

#[tokio::test]
async fn one_container_may_have_probes_and_volumes() {
    let setting = Setting::new().await;
    let mut document = deploy("my-api");
    let spec = &mut document["spec"]["template"]["spec"];
    spec["volumes"] = json!([{ "name": "v", "emptyDir": { "sizeLimit": "10Mi" } }]);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    // Says what goes without saying.
    spec["containers"][0]["startupProbe"] = json!({
        "tcpSocket": { "port": 8080 }, "timeoutSeconds": 240, "periodSeconds": 240, "failureThreshold": 1,
    });
    spec["containers"][0]["livenessProbe"] = json!({ "httpGet": {} });
    let shown = setting.create(&document).await;
    let template = setting.stored("my-api").template;
    assert!(template.container.startup_probe.is_none());
    let live = &shown["spec"]["template"]["spec"]["containers"][0]["livenessProbe"];
    assert_eq!(
        *live,
        json!({
            "timeoutSeconds": 1, "periodSeconds": 10, "failureThreshold": 3, "httpGet": { "path": "/", "port": 8080 },
        })
    );
    setting.replace(&shown).await;
    assert_eq!(setting.stored("my-api").generation, 1, "read back it is the same");
}

#[tokio::test]
async fn a_service_has_bounds_of_its_own_which_make_no_revision() {
    let setting = Setting::new().await;
    let mut shown = setting.create(&deploy("my-api")).await;
    assert_eq!(setting.stored("my-api").scaling, ServiceScaling::default());
    let annotations = &mut shown["metadata"]["annotations"];
    annotations["run.googleapis.com/minScale"] = "2".into();
    annotations["run.googleapis.com/maxScale"] = "10".into();
    annotations["run.googleapis.com/scalingMode"] = "manual".into();
    annotations["run.googleapis.com/manualInstanceCount"] = "3".into();
    let mut shown = setting.replace(&shown).await;
    let stored = setting.stored("my-api");
    let expected = ServiceScaling {
        min: 2,
        max: NonZeroU32::new(10),
        manual: Some(3),
    };
    assert_eq!(stored.scaling, expected);
    assert_eq!((stored.generation, stored.template_generation), (1, 1));
    let annotations = &mut shown["metadata"]["annotations"];
    assert_eq!(annotations["run.googleapis.com/scalingMode"], "manual");
    // As gcloud goes back to automatic scaling.
    annotations["run.googleapis.com/scalingMode"] = "automatic".into();
    annotations
        .as_object_mut()
        .expect("an object")
        .remove("run.googleapis.com/manualInstanceCount");
    setting.replace(&shown).await;
    assert_eq!(setting.stored("my-api").scaling.manual, None);
}

#[tokio::test]
async fn knatives_scaling_is_taken_in_both_spellings() {
    let setting = Setting::new().await;
    let mut document = deploy("my-api");
    let annotations = &mut document["spec"]["template"]["metadata"]["annotations"];
    for (key, value) in [
        ("metric", "rps"),
        ("target", "150.5"),
        ("targetUtilizationPercentage", "80"),
        ("window", "1m30s"),
        ("panicWindowPercentage", "12.5"),
        ("panic-threshold-percentage", "150"),
        ("targetBurstCapacity", "-1"),
        ("initialScale", "2"),
        ("activation-scale", "3"),
        ("scaleDownDelay", "15m"),
        ("scaleToZeroPodRetentionPeriod", "40s"),
    ] {
        annotations[format!("autoscaling.knative.dev/{key}")] = value.into();
    }
    let shown = setting.create(&document).await;
    let kpa = setting.stored("my-api").template.kpa.expect("asked for");
    assert_eq!(kpa.metric, KpaMetric::Rps);
    assert_eq!((kpa.target_centi, kpa.target_utilization), (Some(15_050), Some(80)));
    assert_eq!(
        (kpa.window, kpa.scale_down_delay, kpa.retention),
        (Some(90), Some(900), Some(40))
    );
    assert_eq!(
        (kpa.panic_window_centi, kpa.panic_threshold_centi),
        (Some(1250), Some(15_000))
    );
    assert_eq!(kpa.target_burst_capacity, Some(-1));
    assert_eq!((kpa.initial_scale, kpa.activation_scale), (Some(2), Some(3)));
    let annotations = &shown["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["autoscaling.knative.dev/panic-window-percentage"], "12.5");
    assert_eq!(
        annotations["autoscaling.knative.dev/class"],
        "kpa.autoscaling.knative.dev"
    );
    setting.replace(&shown).await;
    assert_eq!(setting.stored("my-api").generation, 1, "read back it is the same");

    let mut twice = deploy("twice");
    let annotations = &mut twice["spec"]["template"]["metadata"]["annotations"];
    annotations["autoscaling.knative.dev/initialScale"] = "2".into();
    annotations["autoscaling.knative.dev/initial-scale"] = "3".into();
    let (status, body) = setting.call("POST", SERVICES, Some(&twice)).await;
    assert_eq!(status, 400, "{body}");
    assert!(body.to_string().contains("another spelling"), "{body}");
}

/// Where below `spec.template.spec`, what is put there, the field that is told below `spec.template`, what it says.
type Case = (&'static str, Value, &'static str, &'static str);

#[tokio::test]
async fn each_rule_of_several_containers_is_told_at_its_field() {
    let setting = Setting::new().await;
    let cases: Vec<Case> = vec![
        (
            "/containers/2/name",
            json!("app"),
            "spec.containers[2].name",
            "another container",
        ),
        (
            "/containers/2/name",
            json!("Bad"),
            "spec.containers[2].name",
            "is no name of a container",
        ),
        (
            "/containers/2/ports",
            json!([{ "containerPort": 9 }]),
            "spec.containers",
            "2 containers have a port",
        ),
        (
            "/containers/0/env",
            json!([{ "name": "K_SERVICE", "value": "x" }]),
            "spec.containers[0].env[0].name",
            "reserved",
        ),
        (
            "/containers/1/env",
            json!([{ "name": "PORT", "value": "1" }]),
            "spec.containers[1].env[0].name",
            "reserved",
        ),
        ("/containers/2/image", json!(""), "spec.containers[2].image", "required"),
        (
            "/containers/0/startupProbe",
            json!({ "httpGet": { "path": "/" } }),
            "spec.containers[0].startupProbe.httpGet.port",
            "a port is required",
        ),
        (
            "/containers/1/livenessProbe",
            json!({ "tcpSocket": { "port": 8080 } }),
            "spec.containers[1].livenessProbe.tcpSocket",
            "httpGet or grpc",
        ),
        (
            "/containers/1/livenessProbe",
            json!({ "periodSeconds": 5 }),
            "spec.containers[1].livenessProbe",
            "one of httpGet and grpc",
        ),
        (
            "/containers/1/livenessProbe",
            json!({ "grpc": { "port": 1 }, "httpGet": { "port": 1 } }),
            "spec.containers[1].livenessProbe",
            "a probe has one",
        ),
        (
            "/containers/1/readinessProbe",
            json!({ "httpGet": { "path": "/" }, "initialDelaySeconds": 1 }),
            "spec.containers[1].readinessProbe.initialDelaySeconds",
            "no delay",
        ),
        (
            "/containers/1/ports",
            json!([{ "name": "h2c", "containerPort": 8080 }]),
            "spec.containers[1].readinessProbe.httpGet",
            "HTTP/1.1",
        ),
        (
            "/containers/0/resources/limits/cpu",
            json!("1.5"),
            "spec.containers[0].resources.limits.cpu",
            "2, 4, 6 or 8",
        ),
        (
            "/containers/0/resources/limits/memory",
            json!("20Gi"),
            "spec.containers[1].resources.limits.memory",
            "3 containers together",
        ),
        (
            "/containers/0/volumeMounts/0/name",
            json!("other"),
            "spec.containers[0].volumeMounts[0].name",
            "no volume",
        ),
        (
            "/containers/0/volumeMounts/0/mountPath",
            json!("/proc/x"),
            "spec.containers[0].volumeMounts[0].mountPath",
            "/proc",
        ),
        (
            "/containers/1/volumeMounts/1/mountPath",
            json!("/in/x"),
            "spec.containers[1].volumeMounts[1].mountPath",
            "nested",
        ),
        (
            "/containers/1/volumeMounts/1/subPath",
            json!("x"),
            "spec.containers[1].volumeMounts[1].subPath",
            "is not served",
        ),
        (
            "/volumes/2",
            json!({ "name": "scratch", "emptyDir": {} }),
            "spec.volumes[2].name",
            "another volume",
        ),
        (
            "/volumes/0/emptyDir/medium",
            json!("Disk"),
            "spec.volumes[0].emptyDir.medium",
            "Disk is not served",
        ),
        (
            "/volumes/0/emptyDir/sizeLimit",
            json!("1X"),
            "spec.volumes[0].emptyDir.sizeLimit",
            "an amount of memory",
        ),
        (
            "/volumes/2",
            json!({ "name": "s", "secret": { "secretName": "s", "items": [{ "key": "1", "path": "../s" }] } }),
            "spec.volumes[2].secret.items[0].path",
            "is no path of a file",
        ),
        (
            "/volumes/2",
            json!({ "name": "s", "csi": { "driver": "gcsfuse.run.googleapis.com" } }),
            "spec.volumes[2].csi",
            "is not served",
        ),
        (
            "/volumes/2",
            json!({ "name": "s", "nfs": { "server": "x", "path": "/" } }),
            "spec.volumes[2].nfs",
            "is not served",
        ),
        (
            "/volumes/2",
            json!({ "name": "s" }),
            "spec.volumes[2].emptyDir",
            "is required",
        ),
    ];
    for (pointer, value, field, says) in cases {
        let mut document = several("my-api");
        let spec = document.pointer_mut("/spec/template/spec").expect("there");
        put(spec, pointer, value.clone());
        expect_one(&setting, &document, field, says).await;
    }
    let mut document = deploy("my-api");
    let containers = document["spec"]["template"]["spec"]["containers"].as_array_mut();
    let containers = containers.expect("a list");
    containers[0].as_object_mut().expect("an object").remove("ports");
    containers.push(json!({ "name": "second", "image": "second:v1" }));
    expect_one(
        &setting,
        &document,
        "spec.containers",
        "none of 2 containers has a port",
    )
    .await;
    for (dependencies, says) in [
        (json!({ "proxy": ["app"], "app": ["proxy"] }), "app -> proxy -> app"),
        (json!({ "app": ["app"] }), "app -> app"),
        (json!({ "app": ["ghost"] }), "\"ghost\", which is no container"),
        (json!({ "ghost": ["app"] }), "\"ghost\" is no container"),
    ] {
        let mut document = several("my-api");
        document["spec"]["template"]["metadata"]["annotations"][DEPENDENCIES] = dependencies.to_string().into();
        expect_one(
            &setting,
            &document,
            "metadata.annotations[run.googleapis.com/container-dependencies]",
            says,
        )
        .await;
    }
}

fn put(spec: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let parent = spec.pointer_mut(parent).expect(pointer);
    if let Some(items) = parent.as_array_mut() {
        match items.get_mut(field.parse::<usize>().expect("an index")) {
            Some(item) => *item = value,
            None => items.push(value),
        }
    } else {
        parent[field] = value;
    }
}

async fn expect_one(setting: &Setting, document: &Value, field: &str, says: &str) {
    let (status, body) = setting.call("POST", SERVICES, Some(document)).await;
    assert_eq!(status, 400, "{field}: {body}");
    let violations = body["error"]["details"][0]["fieldViolations"]
        .as_array()
        .expect("violations");
    assert_eq!(violations.len(), 1, "{field}: {body}");
    assert_eq!(violations[0]["field"], format!("spec.template.{field}"), "{body}");
    let description = violations[0]["description"].as_str().expect("text");
    assert!(description.contains(says), "{field}: {body}");
}
