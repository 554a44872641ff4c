//! The registry by the specification's requests, and by skopeo over a real socket.

use std::{path::Path, process::Output, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use image::Digest;
use serde_json::{Value, json};

use crate::setting::{Setting, read};

pub(crate) const HOST: &str = "us-central1-docker.pkg.dev";
pub(crate) const APP: &str = "/v2/my-project/repo/app";

pub(crate) struct Call<'a> {
    pub(crate) setting: &'a Setting,
    pub(crate) host: &'a str,
}

impl Call<'_> {
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response<homerun_api::Body> {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(path)
            .header("authorization", format!("Bearer {}", self.setting.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body)))
            .expect("a request");
        self.setting.send(self.host, request).await
    }

    pub(crate) async fn refused(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, String) {
        let (status, body) = read(self.send(method, path, headers, body).await).await;
        (
            status,
            body["errors"][0]["code"].as_str().unwrap_or_default().to_owned(),
        )
    }
}

pub(crate) fn header<'r>(response: &'r Response<homerun_api::Body>, name: &str) -> &'r str {
    response.headers().get(name).expect(name).to_str().expect("text")
}

pub(crate) async fn bytes(response: Response<homerun_api::Body>) -> Bytes {
    response.into_body().collect().await.expect("a body").to_bytes()
}

#[tokio::test]
async fn blobs_in_one_piece_and_in_chunks() {
    let setting = Setting::new().await;
    let call = Call {
        setting: &setting,
        host: HOST,
    };
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|n| u8::try_from(n % 251).expect("below 251"))
        .collect();
    let digest = Digest::of(&content);
    let path = format!("{APP}/blobs/{digest}");
    assert_eq!(
        call.refused("GET", &path, &[], b"").await,
        (404, "BLOB_UNKNOWN".to_owned())
    );

    let begun = call.send("POST", &format!("{APP}/blobs/uploads/"), &[], b"").await;
    assert_eq!(begun.status(), 202);
    let upload = header(&begun, "location").to_owned();
    let half = 1_500_000;
    let first = format!("0-{}", half - 1);
    let patched = call
        .send("PATCH", &upload, &[("content-range", &first)], &content[..half])
        .await;
    assert_eq!(
        (patched.status().as_u16(), header(&patched, "range")),
        (202, first.as_str())
    );
    // A chunk that does not continue, and what the client then asks.
    let wrong = call
        .refused("PATCH", &upload, &[("content-range", "7-9")], b"abc")
        .await;
    assert_eq!(wrong, (416, "BLOB_UPLOAD_INVALID".to_owned()));
    let asked = call.send("GET", &upload, &[], b"").await;
    assert_eq!(
        (asked.status().as_u16(), header(&asked, "range")),
        (204, first.as_str())
    );
    let put = call
        .send("PUT", &format!("{upload}?digest={digest}"), &[], &content[half..])
        .await;
    assert_eq!((put.status().as_u16(), header(&put, "location")), (201, path.as_str()));
    assert_eq!(
        call.refused("GET", &upload, &[], b"").await,
        (404, "BLOB_UPLOAD_UNKNOWN".to_owned())
    );

    let head = call.send("HEAD", &path, &[], b"").await;
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-length")),
        (200, "3000000")
    );
    assert_eq!(header(&head, "docker-content-digest"), digest.to_string());
    assert!(bytes(head).await.is_empty());
    let whole = call.send("GET", &path, &[], b"").await;
    assert_eq!(bytes(whole).await, content);
    let part = call.send("GET", &path, &[("range", "bytes=2999990-")], b"").await;
    assert_eq!(
        (part.status().as_u16(), header(&part, "content-range")),
        (206, "bytes 2999990-2999999/3000000")
    );
    assert_eq!(bytes(part).await, content[2_999_990..]);
    let none = call.send("GET", &path, &[("range", "bytes=3000000-")], b"").await;
    assert_eq!(
        (none.status().as_u16(), header(&none, "content-range")),
        (416, "bytes */3000000")
    );

    // Another repository takes it over without the bytes; an unknown one becomes an upload.
    let mount = format!("/v2/my-project/other/app/blobs/uploads/?mount={digest}&from=my-project/repo/app");
    assert_eq!(call.send("POST", &mount, &[], b"").await.status(), 201);
    let unknown = Digest::of(b"unknown");
    let mount = format!("/v2/my-project/other/app/blobs/uploads/?mount={unknown}&from=my-project/repo/app");
    assert_eq!(call.send("POST", &mount, &[], b"").await.status(), 202);

    let small = Digest::of(b"small");
    let monolithic = format!("{APP}/blobs/uploads/?digest={small}");
    assert_eq!(
        call.refused("POST", &monolithic, &[], b"other").await,
        (400, "DIGEST_INVALID".to_owned())
    );
    assert_eq!(call.send("POST", &monolithic, &[], b"small").await.status(), 201);

    let begun = call.send("POST", &format!("{APP}/blobs/uploads/"), &[], b"").await;
    let upload = header(&begun, "location").to_owned();
    assert_eq!(
        call.refused("PUT", &upload, &[], b"").await,
        (400, "DIGEST_INVALID".to_owned())
    );
    assert_eq!(call.send("DELETE", &upload, &[], b"").await.status(), 204);
    assert_eq!(
        call.refused("PATCH", &upload, &[], b"x").await,
        (404, "BLOB_UPLOAD_UNKNOWN".to_owned())
    );
    assert_eq!(
        call.refused("PUT", &format!("{APP}/blobs/uploads/..?digest={small}"), &[], b"")
            .await
            .0,
        404,
        "no path out of the store"
    );
}

#[tokio::test]
async fn manifests_and_tags() {
    let setting = Setting::new().await;
    let call = Call {
        setting: &setting,
        host: HOST,
    };
    let config = br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(config).to_string(),
            "size": config.len(),
        },
        "layers": [],
    })
    .to_string();
    let typed = [("content-type", kind)];
    let put = |name: &str| format!("{APP}/manifests/{name}");
    let missing = call.refused("PUT", &put("v1"), &typed, manifest.as_bytes()).await;
    assert_eq!(missing, (400, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    let blob = format!("{APP}/blobs/uploads/?digest={}", Digest::of(config));
    assert_eq!(call.send("POST", &blob, &[], config).await.status(), 201);

    let digest = Digest::of(manifest.as_bytes());
    for name in ["v1", "latest", "v0", &digest.to_string()] {
        let stored = call.send("PUT", &put(name), &typed, manifest.as_bytes()).await;
        assert_eq!(
            (stored.status().as_u16(), header(&stored, "docker-content-digest")),
            (201, &*digest.to_string())
        );
    }
    for name in ["v1", &digest.to_string()] {
        let read = call.send("GET", &put(name), &[], b"").await;
        assert_eq!((read.status().as_u16(), header(&read, "content-type")), (200, kind));
        assert_eq!(bytes(read).await, manifest.as_bytes());
    }
    let head = call.send("HEAD", &put("v1"), &[], b"").await;
    assert_eq!(header(&head, "content-length"), manifest.len().to_string());

    let (_, tags) = read(call.send("GET", &format!("{APP}/tags/list"), &[], b"").await).await;
    assert_eq!(
        tags,
        json!({ "name": "my-project/repo/app", "tags": ["latest", "v0", "v1"] })
    );
    let page = call.send("GET", &format!("{APP}/tags/list?n=2"), &[], b"").await;
    assert_eq!(
        header(&page, "link"),
        format!("<{APP}/tags/list?n=2&last=v0>; rel=\"next\"")
    );
    let (_, rest) = read(
        call.send("GET", &format!("{APP}/tags/list?n=2&last=v0"), &[], b"")
            .await,
    )
    .await;
    assert_eq!(rest["tags"], json!(["v1"]));

    let long = vec![b' '; 5 << 20];
    for (method, path, headers, body, status, code) in [
        ("PUT", put("v2"), &typed[..], &b"{"[..], 400, "MANIFEST_INVALID"),
        ("PUT", put("v2"), &[], manifest.as_bytes(), 400, "MANIFEST_INVALID"),
        ("PUT", put("v2"), &typed, &long, 413, "SIZE_INVALID"),
        (
            "PUT",
            put(&Digest::of(b"x").to_string()),
            &typed,
            manifest.as_bytes(),
            400,
            "DIGEST_INVALID",
        ),
        ("PUT", put("-bad"), &typed, manifest.as_bytes(), 400, "MANIFEST_INVALID"),
        ("GET", put("none"), &[], b"", 404, "MANIFEST_UNKNOWN"),
        ("GET", put("sha256:12"), &[], b"", 400, "DIGEST_INVALID"),
        ("GET", format!("{APP}/blobs/sha256:12"), &[], b"", 400, "DIGEST_INVALID"),
        ("GET", "/v2/UP/manifests/v1".to_owned(), &[], b"", 400, "NAME_INVALID"),
        (
            "GET",
            "/v2/my-project/../x/manifests/v1".to_owned(),
            &[],
            b"",
            400,
            "NAME_INVALID",
        ),
        (
            "GET",
            "/v2/my-project/none/tags/list".to_owned(),
            &[],
            b"",
            404,
            "NAME_UNKNOWN",
        ),
        (
            "GET",
            format!("{APP}/tags/list?n=x"),
            &[],
            b"",
            400,
            "PAGINATION_NUMBER_INVALID",
        ),
        (
            "PUT",
            "/v2/other/repo/app/manifests/v1".to_owned(),
            &typed,
            manifest.as_bytes(),
            403,
            "DENIED",
        ),
        (
            "POST",
            "/v2/cloudrun/container/hello/blobs/uploads/".to_owned(),
            &[],
            b"",
            403,
            "DENIED",
        ),
        ("GET", "/v2/_catalog".to_owned(), &[], b"", 405, "UNSUPPORTED"),
        (
            "DELETE",
            format!("{APP}/blobs/{}", Digest::of(config)),
            &[],
            b"",
            403,
            "DENIED",
        ),
    ] {
        assert_eq!(
            call.refused(method, &path, headers, body).await,
            (status, code.to_owned()),
            "{method} {path}"
        );
    }
    assert_eq!(call.send("DELETE", &put("v0"), &[], b"").await.status(), 202);
    assert_eq!(call.send("GET", &put("v0"), &[], b"").await.status(), 404);
    assert_eq!(
        call.send("DELETE", &put(&digest.to_string()), &[], b"").await.status(),
        202
    );
    assert_eq!(call.send("GET", &put("v1"), &[], b"").await.status(), 404);
}

#[tokio::test]
async fn who_may_come_in() {
    let setting = Setting::new().await;
    let basic = |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let key = std::fs::read_to_string(setting.surface.keys.owner_key_file()).expect("the owner's key");
    let foreign = Setting::new().await;
    let foreign = std::fs::read_to_string(foreign.surface.keys.owner_key_file()).expect("another's key");
    for (value, status) in [
        (None, 401),
        (Some(basic("_dcgcloud_token", &setting.token)), 200),
        (Some(basic("oauth2accesstoken", &setting.token)), 200),
        (Some(format!("Bearer {}", setting.token)), 200),
        (Some(basic("root", &setting.token)), 401),
        (Some(basic("oauth2accesstoken", "x")), 401),
        (Some("Basic ???".to_owned()), 401),
        (Some("Digest x".to_owned()), 401),
        (Some(basic("_json_key", &key)), 200),
        (Some(basic("_json_key_base64", &STANDARD.encode(&key))), 200),
        (Some(basic("_json_key", &foreign)), 401),
        (Some(basic("_json_key", "{}")), 401),
    ] {
        for host in [HOST, "127.0.0.1"] {
            let mut request = Request::get("/v2/");
            if let Some(value) = &value {
                request = request.header("authorization", value);
            }
            let request = request.body(Full::default()).expect("a request");
            let response = setting.send(host, request).await;
            assert_eq!(response.status(), status, "{value:?}");
            assert_eq!(header(&response, "docker-distribution-api-version"), "registry/2.0");
            assert_eq!(response.headers().contains_key("www-authenticate"), status == 401);
        }
    }
}

#[tokio::test]
async fn a_challenge_leads_to_a_token() {
    let setting = Setting::new().await;
    let basic = |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let ask = async |host: &str, request: http::request::Builder, body: &str| {
        let request = request.body(Full::new(Bytes::from(body.to_owned())));
        setting.send(host, request.expect("a request")).await
    };
    for (host, named, realm) in [
        (HOST, HOST, "https://us-central1-docker.pkg.dev/v2/token"),
        (
            HOST,
            "us-central1-docker.pkg.dev:443",
            "https://us-central1-docker.pkg.dev/v2/token",
        ),
        ("127.0.0.1", "127.0.0.1:8787", "http://127.0.0.1:8787/v2/token"),
        ("localhost", "localhost:8787", "http://localhost:8787/v2/token"),
    ] {
        let refused = ask(host, Request::get("/v2/").header("host", named), "").await;
        assert_eq!(
            header(&refused, "www-authenticate"),
            format!("Bearer realm=\"{realm}\",service=\"{HOST}\"")
        );
    }
    let key = std::fs::read_to_string(setting.surface.keys.owner_key_file()).expect("the owner's key");
    let form = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([
            ("grant_type", "password"),
            ("username", "_json_key"),
            ("password", &key),
        ])
        .finish();
    let get =
        |value: String| Request::get("/v2/token?service=x&scope=repository:a:pull").header("authorization", value);
    for (request, body) in [
        (get(basic("oauth2accesstoken", &setting.token)), ""),
        (get(basic("_json_key", &key)), ""),
        (Request::post("/v2/token"), form.as_str()),
    ] {
        let (status, answer) = read(ask(HOST, request, body).await).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["token"], answer["access_token"]);
        let token = answer["token"].as_str().expect("a token");
        let request = Request::get("/v2/").header("authorization", format!("Bearer {token}"));
        assert_eq!(ask(HOST, request, "").await.status(), 200);
    }
    for (request, body) in [
        (Request::get("/v2/token"), ""),
        (get(basic("oauth2accesstoken", "x")), ""),
        (get(basic("_json_key", "x")), ""),
        (get(format!("Bearer {}", setting.token)), ""),
        (Request::post("/v2/token"), "grant_type=refresh_token&refresh_token=x"),
        (Request::post("/v2/token"), ""),
    ] {
        let refused = ask(HOST, request, body).await;
        assert_eq!(refused.status(), 401, "{body}");
    }
}

async fn run(program: &str, words: &[&str]) -> Output {
    tokio::process::Command::new(program)
        .args(words)
        .output()
        .await
        .expect(program)
}

/// An OCI layout of one layer, as `skopeo copy` reads it.
fn layout(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a directory");
    let put = |content: &[u8]| {
        let digest = Digest::of(content);
        std::fs::write(blobs.join(digest.hex()), content).expect("a file");
        json!({ "digest": digest.to_string(), "size": content.len() })
    };
    // Larger than what is gathered before a write, so that several pieces go to the disk.
    let layer = put(&vec![0; 3 << 20]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/app"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let with = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        descriptor
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": with(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": [with(layer, "layer.v1.tar")],
    });
    let index = json!({
        "schemaVersion": 2,
        "manifests": [with(put(manifest.to_string().as_bytes()), "manifest.v1+json")],
    });
    std::fs::write(dir.join("index.json"), index.to_string()).expect("a file");
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
}

#[tokio::test]
async fn skopeo_pushes_and_pulls() {
    let setting = Arc::new(Setting::new().await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let surface = setting.surface.clone();
    let server = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let surface = surface.clone();
            connections.spawn(async move {
                let serve = hyper::service::service_fn(|request| {
                    let surface = surface.clone();
                    async move {
                        Ok::<_, std::convert::Infallible>(homerun_api::answer(&surface, "127.0.0.1", request).await)
                    }
                });
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), serve)
                    .await
            });
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    layout(&dir.path().join("given"));
    let given = format!("oci:{}", dir.path().join("given").display());
    let remote = format!("docker://127.0.0.1:{port}/my-project/repo/app:v1");
    let creds = format!("oauth2accesstoken:{}", setting.token);
    let wrong = run(
        "skopeo",
        &[
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            "--dest-creds",
            "oauth2accesstoken:x",
            &given,
            &remote,
        ],
    )
    .await;
    assert!(!wrong.status.success(), "a wrong token pushes nothing");
    let pushed = run(
        "skopeo",
        &[
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            "--dest-creds",
            &creds,
            &given,
            &remote,
        ],
    )
    .await;
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    // It is stored under the default region's host.
    let repository = image::Repository::new(HOST, "my-project/repo/app").expect("a repository");
    let tags = setting.surface.images.tags(&repository).expect("tags");
    assert_eq!(tags.iter().map(image::Tag::as_str).collect::<Vec<_>>(), ["v1"]);

    let taken = format!("oci:{}", dir.path().join("taken").display());
    let pulled = run(
        "skopeo",
        &[
            "copy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--src-creds",
            &creds,
            &remote,
            &taken,
        ],
    )
    .await;
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let hex = Digest::of(&vec![0; 3 << 20]).hex();
    let layer = std::fs::read(dir.path().join("taken/blobs/sha256").join(hex)).expect("the layer came back");
    assert_eq!(layer.len(), 3 << 20);
    let listed = run(
        "skopeo",
        &[
            "list-tags",
            "--tls-verify=false",
            "--creds",
            &creds,
            remote.trim_end_matches(":v1"),
        ],
    )
    .await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("\"v1\""), "{listed:?}");
    server.abort();
}
