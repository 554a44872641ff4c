//! The cases of the distribution specification's conformance suite that docs/registry.md claims, in the suite's sections
//! and under its words: pull, push, content discovery, content management.

use http::Response;
use image::Digest;
use serde_json::{Value, json};

use crate::{
    registry::{APP, Call, HOST, bytes, header},
    setting::{Setting, read},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const OTHER: &str = "/v2/my-project/other/app";

fn status(response: &Response<homerun_api::Body>) -> u16 {
    response.status().as_u16()
}

impl Call<'_> {
    async fn blob(&self, under: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let path = format!("{under}/blobs/uploads/?digest={digest}");
        assert_eq!(status(&self.send("POST", &path, &[], content).await), 201);
        digest
    }

    /// An artifact of one layer, about `subject` if there is one; its digest and the answer.
    async fn artifact(
        &self,
        name: Option<&str>,
        layer: &str,
        kind: Option<&str>,
        subject: Option<Digest>,
    ) -> (Digest, Response<homerun_api::Body>) {
        let config = self.blob(APP, b"{}").await;
        let digest = self.blob(APP, layer.as_bytes()).await;
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": EMPTY, "digest": config.to_string(), "size": 2 },
            "layers": [{ "mediaType": "text/plain", "digest": digest.to_string(), "size": layer.len() }],
            "annotations": { "about": layer },
        });
        if let Some(kind) = kind {
            manifest["artifactType"] = kind.into();
        }
        if let Some(subject) = subject {
            manifest["subject"] = json!({ "mediaType": MANIFEST, "digest": subject.to_string(), "size": 7 });
        }
        let text = manifest.to_string();
        let digest = Digest::of(text.as_bytes());
        let name = name.map_or(digest.to_string(), str::to_owned);
        let path = format!("{APP}/manifests/{name}");
        let response = self
            .send("PUT", &path, &[("content-type", MANIFEST)], text.as_bytes())
            .await;
        (digest, response)
    }

    async fn json(&self, path: &str) -> Value {
        let (status, body) = read(self.send("GET", path, &[], b"").await).await;
        assert_eq!(status, 200, "{body}");
        body
    }
}

macro_rules! begin {
    ($setting:ident, $call:ident) => {
        let $setting = Setting::new().await;
        let $call = Call {
            setting: &$setting,
            host: HOST,
        };
    };
}

#[tokio::test]
async fn pull() {
    begin!(setting, call);
    let (digest, _) = call.artifact(Some("v1"), "layer", None, None).await;
    let blob = Digest::of(b"layer");
    let absent = Digest::of(b"absent");
    for (method, path, expected) in [
        ("HEAD", format!("{APP}/blobs/{absent}"), 404),
        ("GET", format!("{APP}/blobs/{absent}"), 404),
        ("HEAD", format!("{APP}/blobs/{blob}"), 200),
        ("GET", format!("{APP}/blobs/{blob}"), 200),
        ("HEAD", format!("{APP}/manifests/.INVALID_MANIFEST_NAME"), 400),
        ("HEAD", format!("{APP}/manifests/absent"), 404),
        ("HEAD", format!("{APP}/manifests/{digest}"), 200),
        ("GET", format!("{APP}/manifests/{absent}"), 404),
        ("GET", format!("{APP}/manifests/{digest}"), 200),
        ("HEAD", format!("{APP}/manifests/v1"), 200),
        ("GET", format!("{APP}/manifests/v1"), 200),
    ] {
        let response = call.send(method, &path, &[], b"").await;
        assert_eq!(status(&response), expected, "{method} {path}");
        if expected == 200 {
            let named = if path.contains("/blobs/") { blob } else { digest };
            assert_eq!(header(&response, "docker-content-digest"), named.to_string());
            let length: usize = header(&response, "content-length").parse().expect("a number");
            let got = bytes(response).await;
            assert_eq!(got.len(), if method == "HEAD" { 0 } else { length });
            if method == "GET" {
                assert_eq!(Digest::of(&got), named);
            }
        }
    }
    // Error codes: 4XX bodies are of the specification's form.
    let (_, body) = read(call.send("GET", &format!("{APP}/manifests/absent"), &[], b"").await).await;
    assert!(body["errors"][0]["code"].is_string() && body["errors"][0]["message"].is_string());
}

#[tokio::test]
async fn push_streamed_and_monolithic() {
    begin!(setting, call);
    let content = b"some bytes";
    let digest = Digest::of(content);
    let begun = call.send("POST", &format!("{APP}/blobs/uploads/"), &[], b"").await;
    let upload = header(&begun, "location").to_owned();
    let patched = call.send("PATCH", &upload, &[], content).await;
    assert_eq!((status(&patched), header(&patched, "range")), (202, "0-9"));
    let upload = header(&patched, "location").to_owned();
    let put = call.send("PUT", &format!("{upload}?digest={digest}"), &[], b"").await;
    assert_eq!(status(&put), 201);
    let place = header(&put, "location").to_owned();
    assert_eq!(&*bytes(call.send("GET", &place, &[], b"").await).await, content);

    let begun = call
        .send(
            "POST",
            &format!("{APP}/blobs/uploads/"),
            &[("content-length", "0")],
            b"",
        )
        .await;
    let upload = header(&begun, "location").to_owned();
    let wrong = format!("{upload}?digest={}", Digest::of(b"other"));
    assert_eq!(
        call.refused("PUT", &wrong, &[], content).await,
        (400, "DIGEST_INVALID".to_owned())
    );
    let single = format!("{APP}/blobs/uploads/?digest={digest}");
    let kind = [("content-type", "application/octet-stream")];
    assert_eq!(status(&call.send("POST", &single, &kind, content).await), 201);
}

#[tokio::test]
async fn push_chunked() {
    begin!(setting, call);
    let content = b"chunk one|chunk two";
    let digest = Digest::of(content);
    let begun = call
        .send(
            "POST",
            &format!("{APP}/blobs/uploads/"),
            &[("content-length", "0")],
            b"",
        )
        .await;
    assert_eq!(status(&begun), 202);
    let upload = header(&begun, "location").to_owned();
    let range = |text| [("content-range", text)];
    // Out-of-order blob upload.
    let early = call.refused("PATCH", &upload, &range("10-18"), &content[10..]).await;
    assert_eq!(early, (416, "BLOB_UPLOAD_INVALID".to_owned()));
    let first = call.send("PATCH", &upload, &range("0-9"), &content[..10]).await;
    assert_eq!((status(&first), header(&first, "range")), (202, "0-9"));
    // Retrying the previous chunk.
    let again = call.refused("PATCH", &upload, &range("0-9"), &content[..10]).await;
    assert_eq!(again.0, 416);
    // Get on stale blob upload.
    let stale = call.send("GET", &upload, &[], b"").await;
    assert_eq!((status(&stale), header(&stale, "range")), (204, "0-9"));
    for wrong in ["x", "9", "18-10", "10-99"] {
        let length = [("content-range", wrong), ("content-length", "9")];
        let refused = call.refused("PATCH", &upload, &length, &content[10..]).await;
        assert_eq!(refused, (400, "BLOB_UPLOAD_INVALID".to_owned()), "{wrong}");
    }
    let second = call.send("PATCH", &upload, &range("10-18"), &content[10..]).await;
    assert_eq!((status(&second), header(&second, "range")), (202, "0-18"));
    let put = call
        .send(
            "PUT",
            &format!("{upload}?digest={digest}"),
            &[("content-length", "0")],
            b"",
        )
        .await;
    assert_eq!(status(&put), 201);
    assert_eq!(
        &*bytes(call.send("GET", &format!("{APP}/blobs/{digest}"), &[], b"").await).await,
        content
    );
}

#[tokio::test]
async fn push_cross_repository_mount() {
    begin!(setting, call);
    let digest = call.blob(APP, b"mounted").await;
    let absent = Digest::of(b"absent");
    for (query, expected) in [
        (format!("mount={digest}&from=my-project/repo/app"), 201),
        (format!("mount={digest}"), 201),
        (format!("mount={absent}&from=my-project/repo/app"), 202),
        (format!("mount={absent}"), 202),
        ("mount=sha256:12".to_owned(), 400),
    ] {
        let response = call
            .send("POST", &format!("{OTHER}/blobs/uploads/?{query}"), &[], b"")
            .await;
        assert_eq!(status(&response), expected, "{query}");
        if expected == 201 {
            assert_eq!(header(&response, "location"), format!("{OTHER}/blobs/{digest}"));
        }
        if expected == 202 {
            assert!(header(&response, "location").starts_with(&format!("{OTHER}/blobs/uploads/")));
        }
    }
}

#[tokio::test]
async fn push_manifest() {
    begin!(setting, call);
    let path = format!("{APP}/manifests/v1");
    let absent = Digest::of(b"absent");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": EMPTY, "digest": absent.to_string(), "size": 6 },
    });
    let kind = [("content-type", MANIFEST)];
    let refused = call.refused("PUT", &path, &kind, manifest.to_string().as_bytes()).await;
    assert_eq!(refused, (400, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    let (digest, put) = call.artifact(Some("v1"), "layer", Some("text/x-note"), None).await;
    assert_eq!(status(&put), 201);
    assert_eq!(header(&put, "location"), format!("{APP}/manifests/{digest}"));
    assert!(!put.headers().contains_key("oci-subject"));
}

#[tokio::test]
async fn content_discovery_tags() {
    begin!(setting, call);
    for tag in ["test3", "test1", "TEST0", "test2"] {
        assert_eq!(status(&call.artifact(Some(tag), "layer", None, None).await.1), 201);
    }
    let list = format!("{APP}/tags/list");
    for (query, expected) in [
        ("", json!(["TEST0", "test1", "test2", "test3"])),
        ("?n=4", json!(["TEST0", "test1", "test2", "test3"])),
        ("?n=2", json!(["TEST0", "test1"])),
        ("?n=0", json!([])),
        ("?last=test1", json!(["test2", "test3"])),
        ("?n=1&last=test1", json!(["test2"])),
        ("?last=zzz", json!([])),
    ] {
        let answer = call.json(&format!("{list}{query}")).await;
        assert_eq!(
            answer,
            json!({ "name": "my-project/repo/app", "tags": expected }),
            "{query}"
        );
    }
    let last = call.send("GET", &format!("{list}?n=2&last=test1"), &[], b"").await;
    assert!(!last.headers().contains_key("link"), "nothing follows");
}

#[tokio::test]
async fn content_discovery_referrers() {
    begin!(setting, call);
    let (subject, _) = call.artifact(Some("v1"), "image", None, None).await;
    let list = format!("{APP}/referrers/{subject}");
    let nobody = call.send("GET", &list, &[], b"").await;
    assert_eq!(
        header(&nobody, "content-type"),
        "application/vnd.oci.image.index.v1+json"
    );
    assert_eq!(read(nobody).await.1["manifests"], json!([]));
    let unknown = format!("/v2/my-project/none/app/referrers/{subject}");
    assert_eq!(call.json(&unknown).await["manifests"], json!([]));
    let invalid = call
        .refused("GET", &format!("{APP}/referrers/sha256:12"), &[], b"")
        .await;
    assert_eq!(invalid, (400, "DIGEST_INVALID".to_owned()));

    let (signature, put) = call
        .artifact(None, "signature", Some("text/x-signature"), Some(subject))
        .await;
    assert_eq!(
        (status(&put), header(&put, "oci-subject")),
        (201, &*subject.to_string())
    );
    // Without a type of its own it is that of its configuration.
    let (note, _) = call.artifact(None, "note", None, Some(subject)).await;
    let absent = Digest::of(b"a subject that comes later or never");
    let (early, put) = call
        .artifact(None, "early", Some("text/x-signature"), Some(absent))
        .await;
    assert_eq!(status(&put), 201, "the subject need not be there");

    let found = call.json(&list).await;
    let mut types: Vec<(String, String)> = found["manifests"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| {
            assert_eq!(item["mediaType"], MANIFEST);
            assert!(
                item["size"].is_u64() && item["annotations"]["about"].is_string(),
                "{item}"
            );
            (
                item["digest"].as_str().expect("text").to_owned(),
                item["artifactType"].as_str().expect("text").to_owned(),
            )
        })
        .collect();
    types.sort();
    let mut expected = vec![
        (signature.to_string(), "text/x-signature".to_owned()),
        (note.to_string(), EMPTY.to_owned()),
    ];
    expected.sort();
    assert_eq!(types, expected);
    let filtered = call
        .send("GET", &format!("{list}?artifactType=text/x-signature"), &[], b"")
        .await;
    assert_eq!(header(&filtered, "oci-filters-applied"), "artifactType");
    let filtered = read(filtered).await.1;
    assert_eq!(filtered["manifests"].as_array().map(Vec::len), Some(1));
    assert_eq!(filtered["manifests"][0]["digest"], signature.to_string());
    let others = call.json(&format!("{APP}/referrers/{absent}")).await;
    assert_eq!(others["manifests"][0]["digest"], early.to_string());

    let gone = call
        .send("DELETE", &format!("{APP}/manifests/{signature}"), &[], b"")
        .await;
    assert_eq!(status(&gone), 202);
    let left = call.json(&list).await;
    assert_eq!(left["manifests"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn content_management() {
    begin!(setting, call);
    let (digest, _) = call.artifact(Some("tagtest0"), "layer", None, None).await;
    call.artifact(Some("tagtest1"), "layer", None, None).await;
    let path = |of: &str| format!("{APP}/manifests/{of}");
    let layer = format!("{APP}/blobs/{}", Digest::of(b"layer"));
    assert_eq!(
        call.refused("DELETE", &layer, &[], b"").await,
        (403, "DENIED".to_owned())
    );

    assert_eq!(status(&call.send("DELETE", &path("tagtest0"), &[], b"").await), 202);
    assert_eq!(status(&call.send("GET", &path("tagtest0"), &[], b"").await), 404);
    assert_eq!(
        status(&call.send("GET", &path(&digest.to_string()), &[], b"").await),
        200
    );
    assert_eq!(
        status(&call.send("DELETE", &path(&digest.to_string()), &[], b"").await),
        202
    );
    assert_eq!(
        status(&call.send("GET", &path(&digest.to_string()), &[], b"").await),
        404
    );
    assert_eq!(
        status(&call.send("DELETE", &path(&digest.to_string()), &[], b"").await),
        404
    );
    assert_eq!(call.json(&format!("{APP}/tags/list")).await["tags"], json!([]));

    // A revision runs it: what it is made of stays.
    setting.held.lock().expect("no panic before").insert(digest);
    assert_eq!(call.refused("DELETE", &layer, &[], b"").await.0, 403);
    setting.held.lock().expect("no panic before").clear();
    assert_eq!(status(&call.send("DELETE", &layer, &[], b"").await), 202);
    assert_eq!(status(&call.send("GET", &layer, &[], b"").await), 404);
    assert_eq!(
        call.refused("DELETE", &layer, &[], b"").await,
        (404, "BLOB_UNKNOWN".to_owned())
    );
}

#[tokio::test]
async fn a_full_registry_says_so() {
    begin!(setting, call);
    setting.surface.images.set_quota(Some(1000));
    let content = vec![7; 2000];
    let path = format!("{APP}/blobs/uploads/?digest={}", Digest::of(&content));
    let (status, body) = read(call.send("POST", &path, &[], &content).await).await;
    assert_eq!((status, &body["errors"][0]["code"]), (403, &json!("DENIED")));
    let told = body["errors"][0]["message"].as_str().expect("text");
    assert!(
        told.contains("quota of 1000 bytes") && told.contains("--registry-quota"),
        "{told}"
    );
    assert_eq!(setting.surface.images.stored_bytes(), 0);
}
