//! Documents that are no JSON, or say what nobody knows.

use homerun_e2e::Client;
use serde_json::{Value, json};

use super::{HELLO, Stand};

#[test]
fn documents_that_are_none() {
    let mut stand = Stand::new(Client::Homerun);
    let before = stand.stored();
    let good = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "kept"},
        "spec": {"template": {"spec": {"containers": [{"image": HELLO}]}}},
    });
    let with = |path: &str, value: Value| {
        let mut document = good.clone();
        let (parent, name) = path.rsplit_once('/').expect("a path");
        document.pointer_mut(parent).expect("there")[name] = value;
        document.to_string().into_bytes()
    };
    let container = "/spec/template/spec/containers/0";
    let nested = "[".repeat(100_000);
    let large = vec![b' '; (1 << 20) + 1];
    let table: &[(Vec<u8>, &str)] = &[
        (
            b"{".to_vec(),
            "the request body is not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            b"{\"a\":1}{".to_vec(),
            "the request body is not valid JSON: trailing characters at line 1 column 8",
        ),
        (
            b"apiVersion: v1".to_vec(),
            "the request body is not valid JSON: expected value at line 1 column 1",
        ),
        (
            b"\xff\xfe".to_vec(),
            "the request body is not valid JSON: expected value at line 1 column 1",
        ),
        (
            nested.into_bytes(),
            "the request body is not valid JSON: recursion limit exceeded at line 1 column 128",
        ),
        (large, "the request body is larger than 1048576 bytes, the limit"),
        (
            Vec::new(),
            "spec.template.spec.containers: a container with an image is required",
        ),
        (with("/x", json!(5)), "x: is not a field of this object"),
        (
            with("/spec/trafic", json!([1])),
            "spec.trafic: is not a field of this object",
        ),
        (
            with("/spec/template/spec/timeoutSecond", json!(1)),
            "spec.template.spec.timeoutSecond: is not a field of this object",
        ),
        (
            with(&format!("{container}/imag"), json!("y")),
            "spec.template.spec.containers[0].imag: is not a field of this object",
        ),
        (
            with("/metadata/annotations", json!({"run.googleapis.com/nonsense": "1"})),
            "metadata.annotations[run.googleapis.com/nonsense]: ",
        ),
        (
            with("/spec/template/spec/timeoutSeconds", json!("x")),
            "spec.template.spec.timeoutSeconds: expected a whole number, not \"x\"",
        ),
        (
            with(
                &format!("{container}/ports"),
                json!([{"containerPort": 80}, {"containerPort": 81}]),
            ),
            "spec.template.spec.containers[0].ports: 2 ports are too many: a container listens on one",
        ),
        (
            with("/apiVersion", json!("v9")),
            "apiVersion: expected \"serving.knative.dev/v1\", not \"v9\"",
        ),
        (with("/kind", json!("Job")), "kind: expected \"Service\", not \"Job\""),
        (
            with("/metadata/name", json!("other")),
            "metadata.name: \"other\" is not the service of the path, \"kept\"",
        ),
    ];
    for (document, error) in table {
        let answer = stand.call("PUT", "/kept", document);
        let shown = String::from_utf8_lossy(&document[..document.len().min(200)]);
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("no JSON: {answer:?}"));
        assert_eq!(
            (answer.status, &body["error"]["code"], &body["error"]["status"]),
            (400, &json!(400), &json!("INVALID_ARGUMENT")),
            "{shown}: {body}"
        );
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(
            message == *error || (error.ends_with(' ') && message.starts_with(error)),
            "{shown}: {message}"
        );
        stand.kept();
    }
    assert_eq!(stand.stored(), before, "nothing of it was stored");

    let mut stale = good.clone();
    stale["metadata"]["resourceVersion"] = json!("AAAAAAAAAAA=");
    let answer = stand.call("PUT", "/kept", stale.to_string());
    assert!(
        answer.status == 409 && answer.body.contains("was changed since it was read"),
        "{answer:?}"
    );
    let answer = stand.call("POST", "", good.to_string());
    assert!(
        answer.status == 409 && answer.body.contains("service \\\"kept\\\" already exists"),
        "{answer:?}"
    );
    let answer = stand.call("PUT", "/kept?nosuch=1", good.to_string());
    assert!(
        answer.status == 400 && answer.body.contains("nosuch: is not a parameter of this method"),
        "{answer:?}"
    );
    let answer = stand.call("PATCH", "/kept", good.to_string());
    assert!(
        answer.status == 400 && answer.body.contains("is not served by this Homerun"),
        "{answer:?}"
    );
    let path = "PUT /apis/serving.knative.dev/v1/namespaces/my-project/services/kept";
    let host = "us-central1-run.googleapis.com";
    let answer = stand.ask(path, host, "Bearer wrong", good.to_string());
    assert!(
        answer.status == 401 && answer.body.contains("UNAUTHENTICATED"),
        "{answer:?}"
    );
    assert_eq!(stand.stored(), before, "nothing of it was stored");

    // The same by a file through a client.
    for (text, error) in [
        ("a: [", "service.yaml"),
        ("- a\n- b\n", "service.yaml"),
        (
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: kept\nspec:\n  tmplate: {a: 1}\n",
            "spec.tmplate: is not a field of this object",
        ),
    ] {
        let file = stand.user.homerun.root().join("service.yaml");
        std::fs::write(&file, text).expect("written");
        let said = stand
            .user
            .refused(&format!("gcloud run services replace {} $REGION", file.display()));
        assert!(said.contains(error), "{text:?}: {said}");
    }
    assert_eq!(stand.stored(), before, "nothing of it was stored");
    stand.kept();
    stand.user.leaves();
}
