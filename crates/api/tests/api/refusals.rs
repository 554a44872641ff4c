//! Each rule a document can break, the field it is told under, and that nothing is stored.

use serde_json::{Value, json};

use crate::setting::{SERVICES, Setting, deploy};

/// Where in the document, what is put there, the field of the first violation, and what it says.
type Case = (&'static str, Value, &'static str, &'static str);

fn put(document: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let parent = document.pointer_mut(parent).expect(pointer);
    match field.parse::<usize>() {
        Ok(index) if parent.is_array() => {
            let items = parent.as_array_mut().expect("an array");
            if index < items.len() {
                items[index] = value;
            } else {
                items.push(value);
            }
        }
        _ => {
            // In a pointer, ~1 stands for a slash.
            parent
                .as_object_mut()
                .expect("an object")
                .insert(field.replace("~1", "/"), value);
        }
    }
}

async fn refused(setting: &Setting, cases: &[Case]) {
    for (pointer, value, field, says) in cases {
        let mut document = deploy("my-api");
        put(&mut document, pointer, value.clone());
        let (status, body) = setting.call("POST", SERVICES, Some(&document)).await;
        assert_eq!(status, 400, "{pointer} = {value}: {body}");
        assert_eq!(body["error"]["status"], "INVALID_ARGUMENT", "{body}");
        let violations = body["error"]["details"][0]["fieldViolations"]
            .as_array()
            .expect("violations");
        assert_eq!(
            violations.len(),
            1,
            "{pointer} = {value}: one cause, one violation: {body}"
        );
        assert_eq!(violations[0]["field"], *field, "{pointer} = {value}: {body}");
        let description = violations[0]["description"].as_str().expect("text");
        assert!(description.contains(says), "{pointer} = {value}: {description}");
    }
    assert_eq!(setting.get(SERVICES).await["items"], json!([]), "nothing was stored");
}

const NOT_SERVED: &str = "is not served by this Homerun";

#[tokio::test]
async fn wrong_values() {
    let long = "a".repeat(50);
    let setting = Setting::new().await;
    refused(
        &setting,
        &[
            ("/metadata/name", json!("My-api"), "metadata.name", "less than 50"),
            ("/metadata/name", json!(long), "metadata.name", "less than 50"),
            ("/metadata/name", json!(""), "metadata.name", "required"),
            (
                "/metadata/namespace",
                json!("other"),
                "metadata.namespace",
                "my-project",
            ),
            ("/kind", json!("Route"), "kind", "\"Service\""),
            ("/apiVersion", json!("v1"), "apiVersion", "serving.knative.dev/v1"),
            (
                "/metadata/labels",
                json!({ "A": "b" }),
                "metadata.labels[A]",
                "lowercase",
            ),
            (
                "/metadata/labels",
                json!({ "a": "B" }),
                "metadata.labels[a]",
                "lowercase",
            ),
            (
                "/metadata/labels",
                json!({ "a": 1 }),
                "metadata.labels[a]",
                "expected a text",
            ),
            (
                "/metadata/labels",
                json!({ "serving.knative.dev/service": "x" }),
                "metadata.labels[serving.knative.dev/service]",
                "set by the server",
            ),
            (
                "/metadata/labels",
                (0..65)
                    .map(|n| (format!("l{n}"), json!("x")))
                    .collect::<serde_json::Map<_, _>>()
                    .into(),
                "metadata.labels",
                "at most 64",
            ),
            (
                "/metadata/annotations",
                json!({ "a b": "c" }),
                "metadata.annotations[a b]",
                "annotation",
            ),
            (
                "/spec/template/metadata/name",
                json!("other-1"),
                "spec.template.metadata.name",
                "my-api-",
            ),
            (
                "/spec/template/metadata/name",
                json!("my-api-UP"),
                "spec.template.metadata.name",
                "less than 64",
            ),
            (
                "/spec/template/spec/containers",
                json!([]),
                "spec.template.spec.containers",
                "required",
            ),
            (
                "/spec/template/spec/containers/0/image",
                json!(""),
                "spec.template.spec.containers[0].image",
                "required",
            ),
            (
                "/spec/template/spec/containers/0/image",
                json!("a//b"),
                "spec.template.spec.containers[0].image",
                "a//b",
            ),
            (
                "/spec/template/spec/containers/0/resources/limits/memory",
                json!("1X"),
                "spec.template.spec.containers[0].resources.limits.memory",
                "\"1X\"",
            ),
            (
                "/spec/template/spec/containers/0/resources/limits/memory",
                json!("64Mi"),
                "spec.template.spec.containers[0].resources.limits.memory",
                "at least 128Mi",
            ),
            (
                "/spec/template/spec/containers/0/resources/limits/memory",
                json!("64Gi"),
                "spec.template.spec.containers[0].resources.limits.memory",
                "at most 32Gi",
            ),
            (
                "/spec/template/spec/containers/0/resources/limits/cpu",
                json!("abc"),
                "spec.template.spec.containers[0].resources.limits.cpu",
                "\"abc\"",
            ),
            (
                "/spec/template/spec/containers/0/resources/limits/cpu",
                json!("3"),
                "spec.template.spec.containers[0].resources.limits.cpu",
                "2, 4, 6 or 8",
            ),
            (
                "/spec/template/spec/containers/0/ports",
                json!([{ "containerPort": 0 }]),
                "spec.template.spec.containers[0].ports[0].containerPort",
                "1 to 65535",
            ),
            (
                "/spec/template/spec/containers/0/ports",
                json!([{ "containerPort": 8080, "name": "grpc" }]),
                "spec.template.spec.containers[0].ports[0].name",
                "http1 nor h2c",
            ),
            (
                "/spec/template/spec/containers/0/ports",
                json!([{ "containerPort": 8080 }, { "containerPort": 8081 }]),
                "spec.template.spec.containers[0].ports",
                "listens on one",
            ),
            (
                "/spec/template/spec/containers/0/env",
                json!([{ "name": "PORT", "value": "1" }]),
                "spec.template.spec.containers[0].env[0].name",
                "reserved",
            ),
            (
                "/spec/template/spec/containers/0/env",
                json!([{ "name": "A", "value": 1 }]),
                "spec.template.spec.containers[0].env[0].value",
                "expected a text",
            ),
            (
                "/spec/template/spec/containers/0/startupProbe",
                json!({ "tcpSocket": { "port": 8080 }, "timeoutSeconds": 11 }),
                "spec.template.spec.containers[0].startupProbe.periodSeconds",
                "10 is below timeoutSeconds 11",
            ),
            (
                "/spec/template/spec/containerConcurrency",
                json!(1001),
                "spec.template.spec.containerConcurrency",
                "1 to 1000",
            ),
            (
                "/spec/template/spec/containerConcurrency",
                json!("x"),
                "spec.template.spec.containerConcurrency",
                "\"x\"",
            ),
            (
                "/spec/template/spec/timeoutSeconds",
                json!(0),
                "spec.template.spec.timeoutSeconds",
                "1 to 3600",
            ),
            (
                "/spec/template/spec/timeoutSeconds",
                json!(3601),
                "spec.template.spec.timeoutSeconds",
                "1 to 3600",
            ),
            (
                "/spec/template/spec/timeoutSeconds",
                json!(1.5),
                "spec.template.spec.timeoutSeconds",
                "1.5",
            ),
            (
                "/spec/template/spec/serviceAccountName",
                json!("me"),
                "spec.template.spec.serviceAccountName",
                "\"me\"",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn wrong_annotations() {
    let setting = Setting::new().await;
    let of_template = [
        ("autoscaling.knative.dev/maxScale", "0", "1 to 1000"),
        ("autoscaling.knative.dev/maxScale", "1001", "1 to 1000"),
        ("autoscaling.knative.dev/minScale", "-1", "0 to 1000"),
        (
            "autoscaling.knative.dev/minScale",
            "101",
            "more than the maximum of 100",
        ),
        ("autoscaling.knative.dev/rollout-duration", "10s", "is no annotation"),
        (
            "autoscaling.knative.dev/class",
            "hpa.autoscaling.knative.dev",
            "only kpa.",
        ),
        ("autoscaling.knative.dev/metric", "cpu", "neither concurrency nor rps"),
        ("autoscaling.knative.dev/target", "0", "at least 0.01"),
        ("autoscaling.knative.dev/targetUtilizationPercentage", "101", "1 to 100"),
        ("autoscaling.knative.dev/window", "5s", "6s to 1h"),
        (
            "autoscaling.knative.dev/panic-window-percentage",
            "0.5",
            "from 1 to 100",
        ),
        (
            "autoscaling.knative.dev/panicThresholdPercentage",
            "100",
            "from 110 to 1000",
        ),
        ("autoscaling.knative.dev/target-burst-capacity", "-2", "or -1"),
        ("autoscaling.knative.dev/initial-scale", "0", "1 to 1000"),
        ("autoscaling.knative.dev/activation-scale", "1", "2 to 1000"),
        ("autoscaling.knative.dev/scale-down-delay", "2h", "0s to 1h"),
        (
            "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
            "1.5m",
            "whole seconds",
        ),
        ("run.googleapis.com/cpu-throttling", "maybe", "true or false"),
        (
            "run.googleapis.com/execution-environment",
            "gen3",
            "neither gen1 nor gen2",
        ),
        ("run.googleapis.com/new-thing", "x", "is no annotation"),
        ("run.googleapis.com/vpc-access-connector", "c", NOT_SERVED),
        (
            "run.googleapis.com/network-interfaces",
            "[{\"network\": \"n\"}]",
            NOT_SERVED,
        ),
        ("run.googleapis.com/vpc-access-egress", "all", NOT_SERVED),
        ("run.googleapis.com/cloudsql-instances", "p:r:i", NOT_SERVED),
        ("run.googleapis.com/sessionAffinity", "yes", "true or false"),
        (
            "run.googleapis.com/container-dependencies",
            "{nginx: [hello]}",
            "JSON object",
        ),
        (
            "run.googleapis.com/container-dependencies",
            "{\"x\":[]}",
            "\"x\" is no container",
        ),
        (
            "run.googleapis.com/secrets",
            "a:b",
            "ALIAS:projects/PROJECT/secrets/SECRET",
        ),
        (
            "run.googleapis.com/secrets",
            "a:projects/12/secrets/b",
            "of other projects are not served",
        ),
        ("run.googleapis.com/health-check-disabled", "true", NOT_SERVED),
    ];
    for (key, value, says) in of_template {
        let mut document = deploy("my-api");
        document["spec"]["template"]["metadata"]["annotations"][key] = value.into();
        expect_one(
            &setting,
            &document,
            &format!("spec.template.metadata.annotations[{key}]"),
            says,
        )
        .await;
    }
    let long = format!("[\"{}\"]", "x".repeat(32_765));
    let of_service = [
        ("run.googleapis.com/ingress", "internal", "only \"all\""),
        ("run.googleapis.com/ingress", "some", "none of"),
        ("run.googleapis.com/minScale", "1001", "0 to 1000"),
        ("run.googleapis.com/maxScale", "0", "1 to 1000"),
        ("run.googleapis.com/scalingMode", "some", "neither automatic nor manual"),
        (
            "run.googleapis.com/manualInstanceCount",
            "3",
            "only when scalingMode is manual",
        ),
        ("run.googleapis.com/custom-audiences", "x", "no JSON list of texts"),
        (
            "run.googleapis.com/custom-audiences",
            "[\"x\", 1]",
            "no JSON list of texts",
        ),
        (
            "run.googleapis.com/custom-audiences",
            "{\"x\": 1}",
            "no JSON list of texts",
        ),
        (
            "run.googleapis.com/custom-audiences",
            "[\"x\", \"\"]",
            "an empty audience",
        ),
        (
            "run.googleapis.com/custom-audiences",
            long.as_str(),
            "longer than 32768 characters",
        ),
        ("run.googleapis.com/binary-authorization", "default", NOT_SERVED),
        ("run.googleapis.com/invoker-iam-disabled", "true", NOT_SERVED),
        ("run.googleapis.com/default-url-disabled", "true", NOT_SERVED),
        ("autoscaling.knative.dev/minScale", "1", "is no annotation"),
        ("run.googleapis.com/cpu-throttling", "true", "is no annotation"),
    ];
    for (key, value, says) in of_service {
        let mut document = deploy("my-api");
        document["metadata"]["annotations"][key] = value.into();
        expect_one(&setting, &document, &format!("metadata.annotations[{key}]"), says).await;
    }
}

async fn expect_one(setting: &Setting, document: &Value, field: &str, says: &str) {
    let (status, body) = setting.call("POST", SERVICES, Some(document)).await;
    assert_eq!(status, 400, "{field}: {body}");
    let violations = body["error"]["details"][0]["fieldViolations"]
        .as_array()
        .expect("violations");
    assert_eq!(violations.len(), 1, "{body}");
    assert_eq!(violations[0]["field"], field, "{body}");
    assert!(
        violations[0]["description"].as_str().expect("text").contains(says),
        "{body}"
    );
}

#[tokio::test]
async fn custom_audiences_come_and_go() {
    const KEY: &str = "run.googleapis.com/custom-audiences";
    let setting = Setting::new().await;
    let mut document = deploy("my-api");
    let longest = format!("[\"{}\"]", "x".repeat(32_764));
    document["metadata"]["annotations"][KEY] = longest.clone().into();
    let shown = setting.create(&document).await;
    assert_eq!(shown["metadata"]["annotations"][KEY], longest);
    let generation = shown["metadata"]["generation"].clone();
    for (given, expected) in [
        ("[\"https://a.example\", \"b\"]", "[\"https://a.example\",\"b\"]".into()),
        ("[]", Value::Null),
        ("", Value::Null),
    ] {
        document["metadata"]["annotations"][KEY] = given.into();
        let (status, shown) = setting
            .call("PUT", &format!("{SERVICES}/my-api"), Some(&document))
            .await;
        assert_eq!(status, 200, "{shown}");
        let annotations = &shown["metadata"]["annotations"];
        assert_eq!(annotations.get(KEY).cloned().unwrap_or_default(), expected, "{given}");
        assert_eq!(shown["metadata"]["generation"], generation, "no change of the spec");
    }
}

#[tokio::test]
async fn harmless_annotations_are_kept() {
    let setting = Setting::new().await;
    let mut document = deploy("my-api");
    for (key, value) in [
        ("run.googleapis.com/launch-stage", "BETA"),
        ("run.googleapis.com/build-image-uri", "x/y"),
        ("run.googleapis.com/binary-authorization-breakglass", "false"),
        ("run.googleapis.com/operation-id", "would make gcloud wait"),
        ("run.googleapis.com/ingress", "all"),
        ("juicy", "jamba"),
    ] {
        document["metadata"]["annotations"][key] = value.into();
    }
    let shown = setting.create(&document).await;
    let annotations = &shown["metadata"]["annotations"];
    assert_eq!(annotations["run.googleapis.com/launch-stage"], "BETA");
    assert_eq!(annotations["run.googleapis.com/build-image-uri"], "x/y");
    assert_eq!(annotations["juicy"], "jamba");
    assert_eq!(annotations["run.googleapis.com/ingress"], "all");
    assert!(annotations.get("run.googleapis.com/operation-id").is_none());
}

#[tokio::test]
async fn what_is_not_served_is_named() {
    let setting = Setting::new().await;
    let container = "spec.template.spec.containers[0]";
    for (at, field, value) in [
        ("c", "envFrom", json!([{ "configMapRef": { "name": "x" } }])),
        ("c", "securityContext", json!({ "runAsUser": 7 })),
        ("c", "imagePullPolicy", json!("Always")),
        ("c", "lifecycle", json!({ "preStop": { "exec": { "command": ["x"] } } })),
        ("c", "stdin", json!(true)),
        (
            "s",
            "nodeSelector",
            json!({ "run.googleapis.com/accelerator": "nvidia-l4" }),
        ),
        ("s", "initContainers", json!([{ "image": "x" }])),
    ] {
        let mut document = deploy("my-api");
        let spec = &mut document["spec"]["template"]["spec"];
        let path = if at == "c" {
            spec["containers"][0][field] = value;
            format!("{container}.{field}")
        } else {
            spec[field] = value;
            format!("spec.template.spec.{field}")
        };
        expect_one(&setting, &document, &path, NOT_SERVED).await;
    }
    for (pointer, value, field) in [
        (
            "env",
            json!([{ "name": "A", "valueFrom": { "configMapKeyRef": { "name": "s", "key": "1" } } }]),
            "env[0].valueFrom.configMapKeyRef",
        ),
        (
            "startupProbe",
            json!({ "exec": { "command": ["x"] }, "tcpSocket": {} }),
            "startupProbe.exec",
        ),
        (
            "livenessProbe",
            json!({ "httpGet": { "host": "x" } }),
            "livenessProbe.httpGet.host",
        ),
        (
            "resources",
            json!({ "limits": { "cpu": "1", "nvidia.com/gpu": "1" } }),
            "resources.limits.nvidia.com/gpu",
        ),
        ("resources", json!({ "requests": { "cpu": "1" } }), "resources.requests"),
    ] {
        let mut document = deploy("my-api");
        document["spec"]["template"]["spec"]["containers"][0][pointer] = value;
        expect_one(&setting, &document, &format!("{container}.{field}"), NOT_SERVED).await;
    }
}

#[tokio::test]
async fn unknown_fields_are_named_and_empty_ones_are_not() {
    let setting = Setting::new().await;
    for (pointer, field) in [
        ("", "extra"),
        ("/metadata", "metadata.extra"),
        ("/spec", "spec.extra"),
        ("/spec/template", "spec.template.extra"),
        ("/spec/template/metadata", "spec.template.metadata.extra"),
        ("/spec/template/spec", "spec.template.spec.extra"),
        (
            "/spec/template/spec/containers/0",
            "spec.template.spec.containers[0].extra",
        ),
        (
            "/spec/template/spec/containers/0/resources",
            "spec.template.spec.containers[0].resources.extra",
        ),
    ] {
        let mut document = deploy("my-api");
        document.pointer_mut(pointer).expect(pointer)["extra"] = json!({ "on": true });
        expect_one(&setting, &document, field, "is not a field").await;
    }
    let mut document = deploy("my-api");
    for pointer in [
        "",
        "/metadata",
        "/spec",
        "/spec/template/spec",
        "/spec/template/spec/containers/0",
    ] {
        document.pointer_mut(pointer).expect(pointer)["extra"] = json!({ "a": [], "b": { "c": "" }, "d": null });
    }
    setting.create(&document).await;
}

#[tokio::test]
async fn several_at_once_are_all_told() {
    let setting = Setting::new().await;
    let mut document = deploy("my-api");
    document["spec"]["template"]["spec"]["timeoutSeconds"] = 0.into();
    document["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "64Mi".into();
    document["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{ "name": "K_SERVICE", "value": "x" }]);
    document["spec"]["traffic"] = json!([{ "latestRevision": true, "percent": 99 }]);
    document["metadata"]["labels"] = json!({ "A": "b" });
    let (status, body) = setting.call("POST", SERVICES, Some(&document)).await;
    assert_eq!(status, 400);
    let violations = body["error"]["details"][0]["fieldViolations"]
        .as_array()
        .expect("violations");
    let fields: Vec<&str> = violations.iter().filter_map(|v| v["field"].as_str()).collect();
    assert_eq!(
        fields,
        [
            "metadata.labels[A]",
            "spec.template.spec.timeoutSeconds",
            "spec.traffic",
            "spec.template.spec.containers[0].env[0].name",
            "spec.template.spec.containers[0].resources.limits.memory",
        ]
    );
    assert_eq!(
        body["error"]["details"][0]["@type"],
        "type.googleapis.com/google.rpc.BadRequest"
    );
    assert_eq!(body["error"]["code"], 400);
}
