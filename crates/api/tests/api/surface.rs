//! Hosts, callers, and what is answered where nothing is served.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::setting::{RUN, SERVICES, Setting, deploy, pass, read};

async fn plain(setting: &Setting, host: &str, request: http::request::Builder, body: &str) -> (u16, Value) {
    let request = request
        .body(Full::new(Bytes::from(body.to_owned())))
        .expect("a request");
    read(setting.send(host, request).await).await
}

#[tokio::test]
async fn every_call_needs_an_access_token() {
    let setting = Setting::new().await;
    let keys = &setting.surface.keys;
    let identity = keys
        .issuer()
        .mint_identity(keys.owner().caller(), "https://x", 1_800_000_000);
    let foreign = Setting::new().await.token;
    let unscoped = keys
        .issuer()
        .mint_access(keys.owner().caller(), "email", 1_800_000_000, 60);
    for (header, status, says) in [
        (None, 401, "no access token"),
        (Some("Basic eDp5".to_owned()), 401, "Bearer"),
        (Some("Bearer".to_owned()), 401, "Bearer"),
        (Some("Bearer x.y.z".to_owned()), 401, "malformed"),
        (Some(format!("Bearer {identity}")), 401, "an ID token"),
        (Some(format!("Bearer {foreign}")), 401, "not accepted"),
        (Some(format!("Bearer {}x", setting.token)), 401, "not accepted"),
        (Some(format!("Bearer {unscoped}")), 403, "scope"),
    ] {
        for (host, path) in [
            (RUN, SERVICES),
            ("run.googleapis.com", "/v1/projects/my-project/locations"),
            ("serviceusage.googleapis.com", "/v1/projects/my-project/services"),
            ("cloudresourcemanager.googleapis.com", "/v1/projects/my-project"),
        ] {
            let mut request = Request::get(path);
            if let Some(header) = &header {
                request = request.header("authorization", header);
            }
            let (found, body) = plain(&setting, host, request, "").await;
            assert_eq!(found, status, "{header:?} at {host}: {body}");
            assert!(
                body["error"]["message"].as_str().expect("text").contains(says),
                "{body}"
            );
        }
    }
    // A scheme's case does not matter, and a second header is not a way around the first.
    let request = Request::get(SERVICES).header("authorization", format!("bearer {}", setting.token));
    assert_eq!(plain(&setting, RUN, request, "").await.0, 200);
    let twice = Request::get(SERVICES)
        .header("authorization", format!("Bearer {}", setting.token))
        .header("authorization", "Bearer x");
    assert_eq!(plain(&setting, RUN, twice, "").await.0, 401);
    pass(3599);
    let (status, expired) = setting.call("GET", SERVICES, None).await;
    assert_eq!((status, &expired["error"]["status"]), (401, &json!("UNAUTHENTICATED")));
    assert!(
        expired["error"]["message"].as_str().expect("text").contains("expired"),
        "{expired}"
    );
}

#[tokio::test]
async fn the_token_endpoint_says_why_not() {
    let setting = Setting::new().await;
    for (form, code) in [
        ("", "invalid_request"),
        ("grant_type=password", "unsupported_grant_type"),
        ("grant_type=refresh_token&refresh_token=x", "invalid_grant"),
        (
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=x",
            "invalid_grant",
        ),
    ] {
        let (status, body) = plain(&setting, "oauth2.googleapis.com", Request::post("/token"), form).await;
        assert_eq!((status, &body["error"]), (400, &json!(code)), "{form}");
        assert!(body["error_description"].is_string());
    }
    let (status, keys) = plain(&setting, "www.googleapis.com", Request::get("/oauth2/v3/certs"), "").await;
    assert_eq!((status, &keys["keys"][0]["kty"]), (200, &json!("RSA")));
}

#[tokio::test]
async fn what_is_not_served_is_said_so() {
    let setting = Setting::new().await;
    for (host, method, path) in [
        (
            RUN,
            "PATCH",
            "/apis/serving.knative.dev/v1/namespaces/my-project/services/my-api",
        ),
        (
            RUN,
            "POST",
            "/apis/serving.knative.dev/v1/namespaces/my-project/revisions",
        ),
        (
            RUN,
            "PUT",
            "/apis/serving.knative.dev/v1/namespaces/my-project/routes/my-api",
        ),
        (RUN, "GET", "/apis/run.googleapis.com/v1/namespaces/my-project/jobs"),
        (
            RUN,
            "POST",
            "/apis/run.googleapis.com/v1/namespaces/my-project/jobs/j:run",
        ),
        (
            RUN,
            "GET",
            "/v2/projects/my-project/locations/us-central1/builds:submit",
        ),
        (RUN, "GET", "/v2/projects/my-project/locations/us-central1/services"),
        (
            RUN,
            "POST",
            "/v1/projects/my-project/locations/us-central1/services/a:explode",
        ),
        (RUN, "GET", "/v1/projects/my-project/authorizeddomains"),
        (RUN, "GET", "/"),
        (RUN, "POST", "/v1/projects/my-project/locations"),
        ("logging.googleapis.com", "POST", "/v2/entries:list"),
        (
            "secretmanager.googleapis.com",
            "POST",
            "/v1/projects/my-project/locations/us-central1/secrets",
        ),
        ("console.cloud.google.com", "GET", "/run"),
        (
            "cloudresourcemanager.googleapis.com",
            "POST",
            "/v1/projects/my-project:undelete",
        ),
        ("cloudresourcemanager.googleapis.com", "GET", "/v1/projects"),
        (
            "serviceusage.googleapis.com",
            "POST",
            "/v1/projects/my-project/services/run.googleapis.com:disable",
        ),
        ("oauth2.googleapis.com", "GET", "/token"),
        ("127.0.0.1", "GET", "/favicon.ico"),
    ] {
        let (status, body) = setting.call_at(host, method, path, None).await;
        assert_eq!(
            (status, &body["error"]["status"]),
            (400, &json!("UNIMPLEMENTED")),
            "{method} {host}{path}: {body}"
        );
        let message = body["error"]["message"].as_str().expect("text");
        assert!(
            message.contains(method) && message.contains(path) && message.contains(host),
            "{message}"
        );
    }
}

#[tokio::test]
async fn broken_documents() {
    let setting = Setting::new().await;
    let post = || Request::post(SERVICES).header("authorization", format!("Bearer {}", setting.token));
    for (body, says) in [
        ("{\n  \"kind\": }", "line 2 column 11"),
        ("{\"kind\": \"Service\"", "line 1 column"),
        ("{} {}", "line 1 column 4"),
        ("\u{feff}{}", "not valid JSON"),
    ] {
        let (status, refused) = plain(&setting, RUN, post(), body).await;
        assert_eq!(
            (status, &refused["error"]["status"]),
            (400, &json!("INVALID_ARGUMENT")),
            "{body}"
        );
        assert!(
            refused["error"]["message"].as_str().expect("text").contains(says),
            "{refused}"
        );
    }
    let (status, refused) = plain(&setting, RUN, post(), "[1]").await;
    assert_eq!(status, 400, "{refused}");
    assert!(
        refused
            .to_string()
            .contains("the document: expected an object, not a list"),
        "{refused}"
    );
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(plain(&setting, RUN, post(), &deep).await.0, 400);

    let mut large = deploy("my-api");
    large["metadata"]["annotations"]["pad"] = "x".repeat(1 << 20).into();
    let (status, refused) = plain(&setting, RUN, post(), &large.to_string()).await;
    assert_eq!(status, 400);
    assert!(
        refused["error"]["message"]
            .as_str()
            .expect("text")
            .contains("1048576 bytes"),
        "{refused}"
    );
    let mut annotated = deploy("my-api");
    annotated["metadata"]["annotations"]["pad"] = "x".repeat(300 << 10).into();
    let (status, refused) = plain(&setting, RUN, post(), &annotated.to_string()).await;
    assert_eq!(
        (status, refused.to_string().contains("at most 262144")),
        (400, true),
        "{refused}"
    );
    assert_eq!(setting.get(SERVICES).await["items"], json!([]));
}

#[tokio::test]
async fn the_api_port_itself() {
    let setting = Setting::new().await;
    assert_eq!(
        plain(&setting, "127.0.0.1", Request::get("/healthz"), "").await,
        (200, json!("ok\n"))
    );
    let (status, about) = plain(&setting, "localhost", Request::get("/homerun/about"), "").await;
    assert_eq!(status, 200);
    assert_eq!(
        about,
        json!({
            "product": "homerun",
            "version": "0.1.0",
            "project": "my-project",
            "projectNumber": setting.surface.site.number().to_string(),
            "region": "us-central1",
            "domain": "a.run.localhost",
            "dataDir": "/var/lib/homerun",
            "api": "127.0.0.1:8787",
            "http": "127.0.0.1:8081",
            "https": "127.0.0.1:8443",
        })
    );
}

#[tokio::test]
async fn decisions_are_told_to_the_owner() {
    let setting = Setting::new().await;
    let path =
        |service: &str| format!("/homerun/v1/projects/my-project/locations/us-central1/services/{service}/decisions");
    let (status, _) = plain(&setting, "127.0.0.1", Request::get(path("a")), "").await;
    assert_eq!(status, 401, "not without a token");
    let get = async |path: String| {
        let request = Request::get(path).header("authorization", format!("Bearer {}", setting.token));
        plain(&setting, "127.0.0.1", request, "").await
    };
    let (status, refused) = get(path("a")).await;
    assert_eq!(status, 404, "{refused}");
    assert_eq!(get(path("a").replace("my-project", "other")).await.0, 403);
    assert_eq!(get(format!("{}?x=1", path("a"))).await.0, 400);
    setting.create(&deploy("a")).await;
    let (status, told) = get(path("a")).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(
        told,
        json!({"decisions": [{
            "time": "2023-11-14T22:13:20.000000Z",
            "revision": "a-00001-abc",
            "stands": true,
            "kind": "scale",
            "instances": 2,
            "alive": 1,
            "rule": "demand",
            "text": "requests",
            "inputs": {"queued": 81},
        }]})
    );
}

#[tokio::test]
async fn services_that_are_served_are_enabled() {
    let setting = Setting::new().await;
    let host = "serviceusage.googleapis.com";
    let base = "/v1/projects/my-project/services";
    let state = async |name: &str| {
        let (status, service) = setting.call_at(host, "GET", &format!("{base}/{name}"), None).await;
        (status, service["state"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(state("run.googleapis.com").await, (200, "ENABLED".to_owned()));
    assert_eq!(state("cloudbuild.googleapis.com").await, (200, "ENABLED".to_owned()));
    assert_eq!(
        state("cloudscheduler.googleapis.com").await,
        (200, "DISABLED".to_owned())
    );
    assert_eq!(state("nonsense").await.0, 404);
    let (status, done) = setting
        .call_at(
            host,
            "POST",
            &format!("{base}/run.googleapis.com:enable"),
            Some(&json!({})),
        )
        .await;
    assert_eq!(
        (status, &done["done"], &done["response"]["service"]["state"]),
        (200, &json!(true), &json!("ENABLED"))
    );
    let ids = json!({ "serviceIds": ["run.googleapis.com", "artifactregistry.googleapis.com"] });
    let (status, done) = setting
        .call_at(host, "POST", &format!("{base}:batchEnable"), Some(&ids))
        .await;
    assert_eq!(
        (status, done["response"]["services"].as_array().map(Vec::len)),
        (200, Some(2))
    );
    for (path, body) in [
        (format!("{base}/cloudscheduler.googleapis.com:enable"), json!({})),
        (
            format!("{base}:batchEnable"),
            json!({ "serviceIds": ["run.googleapis.com", "cloudscheduler.googleapis.com"] }),
        ),
    ] {
        let (status, refused) = setting.call_at(host, "POST", &path, Some(&body)).await;
        assert_eq!(status, 400, "{refused}");
        let message = refused["error"]["message"].as_str().expect("text");
        assert!(
            message.starts_with("cloudscheduler.googleapis.com cannot be enabled"),
            "{message}"
        );
    }
    let (_, list) = setting
        .call_at(host, "GET", &format!("{base}?filter=state:ENABLED&pageSize=2"), None)
        .await;
    assert_eq!(list["services"].as_array().map(Vec::len), Some(2));
    let next = list["nextPageToken"].as_str().expect("more");
    let (_, rest) = setting
        .call_at(host, "GET", &format!("{base}?pageSize=2&pageToken={next}"), None)
        .await;
    assert_eq!(
        rest["services"][0]["config"]["name"],
        "cloudresourcemanager.googleapis.com"
    );
    assert_eq!(
        setting
            .call_at(host, "GET", &base.replace("my-", "other-"), None)
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn the_project_is_described() {
    let setting = Setting::new().await;
    let host = "cloudresourcemanager.googleapis.com";
    let number = setting.surface.site.number().to_string();
    for name in ["my-project", number.as_str()] {
        let (status, project) = setting
            .call_at(host, "GET", &format!("/v1/projects/{name}?alt=json"), None)
            .await;
        assert_eq!(
            (status, &project["projectId"]),
            (200, &json!("my-project")),
            "{project}"
        );
        assert_eq!(
            (&project["projectNumber"], &project["lifecycleState"]),
            (&json!(number), &json!("ACTIVE"))
        );
    }
    assert_eq!(
        setting.call_at(host, "GET", "/v1/projects/other-project", None).await.0,
        403
    );
}

/// A body that never comes.
struct Silent;

impl hyper::body::Body for Silent {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_client_that_stays_silent_is_told_so() {
    let setting = Setting::new().await;
    tokio::time::pause();
    for (host, path, status) in [
        (RUN, SERVICES, 400),
        (
            "us-central1-docker.pkg.dev",
            "/v2/my-project/repo/app/manifests/v1",
            408,
        ),
    ] {
        let request = Request::builder()
            .method(if host == RUN { "POST" } else { "PUT" })
            .uri(path)
            .header("authorization", format!("Bearer {}", setting.token))
            .header("content-type", "application/json")
            .body(Silent)
            .expect("a request");
        let begun = tokio::time::Instant::now();
        let (found, body) = read(homerun_api::answer(&setting.surface, host, request).await).await;
        assert_eq!(found, status, "{body}");
        assert!(body.to_string().contains("60 seconds"), "{body}");
        assert_eq!(begun.elapsed().as_secs(), 60);
    }
}
