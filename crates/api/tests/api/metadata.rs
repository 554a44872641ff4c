//! The metadata server, asked as an instance is heard: whose it is is told beside the request.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use homerun_api::{Asker, Metadata};
use http::Request;
use http_body_util::Full;
use model::{InstanceId, RevisionKey};
use serde_json::{Value, json};

use crate::setting::{ACCOUNTS, IAM, SERVICES, Setting, deploy, key, pass, read};

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const ACCOUNT: &str = "/computeMetadata/v1/instance/service-accounts/default";

/// A service that runs as the runner, and its instance's ear.
struct Inside {
    setting: Setting,
    metadata: Arc<Metadata>,
    asker: Asker,
}

impl Inside {
    async fn new() -> Self {
        let setting = Setting::new().await;
        setting.account("runner", &[]).await;
        let mut document = deploy("my-api");
        document["spec"]["template"]["spec"]["serviceAccountName"] = json!(RUNNER);
        setting.create(&document).await;
        let revision = setting.settle("my-api", true).await;
        Self {
            metadata: Arc::new(Metadata::new(setting.surface.clone())),
            asker: Asker {
                instance: InstanceId::new([7; 12]),
                of: RevisionKey {
                    service: key("my-api"),
                    name: revision.parse().expect("a name"),
                },
            },
            setting,
        }
    }

    async fn ask(&self, path: &str) -> (u16, Value) {
        let request = Request::get(path).header("metadata-flavor", "Google").body(());
        let answer = self.metadata.answer(&self.asker, &request.expect("a request")).await;
        assert_eq!(answer.headers()["metadata-flavor"], "Google");
        read(answer).await
    }

    async fn token(&self) -> (String, u64) {
        let (status, said) = self.ask(&format!("{ACCOUNT}/token")).await;
        assert_eq!(status, 200, "{said}");
        let token = said["access_token"].as_str().expect("a token").to_owned();
        (token, said["expires_in"].as_u64().expect("seconds"))
    }
}

#[tokio::test]
async fn an_access_token_is_the_account_s_and_is_kept_until_it_is_nearly_over() {
    let inside = Inside::new().await;
    let (token, left) = inside.token().await;
    assert_eq!(left, 3599);
    let list = async |token: &str| {
        inside
            .setting
            .call_as(token, "us-central1-run.googleapis.com", "GET", SERVICES, None)
            .await
    };
    assert_eq!(list(&token).await.0, 403, "without a role");
    inside
        .setting
        .bind(&format!("serviceAccount:{RUNNER}"), "roles/run.viewer")
        .await;
    assert_eq!(list(&token).await.0, 200);
    pass(3000);
    assert_eq!(inside.token().await, (token.clone(), 599));
    pass(300);
    let (fresh, left) = inside.token().await;
    assert_ne!(fresh, token);
    assert_eq!(left, 3599);

    // One that was taken back is not given out again.
    let revoke = Request::post("/revoke").body(Full::new(Bytes::from(format!("token={fresh}"))));
    let (status, said) = read(
        inside
            .setting
            .send("oauth2.googleapis.com", revoke.expect("a request"))
            .await,
    )
    .await;
    assert_eq!(status, 200, "{said}");
    let (next, _) = inside.token().await;
    assert_ne!(next, fresh);
    assert_eq!(list(&next).await.0, 200);
    // With a scope of its own it is for nothing but that.
    let (_, said) = inside
        .ask(&format!("{ACCOUNT}/token?scopes=https://example.com/auth/x"))
        .await;
    let narrow = said["access_token"].as_str().expect("a token");
    assert_eq!(list(narrow).await.0, 403);
}

#[tokio::test]
async fn an_identity_token_is_signed_once_for_each_audience() {
    let inside = Inside::new().await;
    let identity = async |audience: &str| {
        let (status, said) = inside.ask(&format!("{ACCOUNT}/identity?audience={audience}")).await;
        assert_eq!(status, 200, "{said}");
        said.as_str().expect("a token").to_owned()
    };
    let one = identity("https://b").await;
    let part = one.split('.').nth(1).expect("three parts");
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON");
    assert_eq!(
        (&claims["aud"], &claims["email"]),
        (&json!("https://b"), &json!(RUNNER))
    );
    let life = claims["exp"].as_u64().expect("seconds") - claims["iat"].as_u64().expect("seconds");
    assert_eq!(life, 3600);
    pass(1);
    assert_eq!(identity("https://b").await, one);
    assert_ne!(identity("https://c").await, one);
    pass(3600 - 300);
    assert_ne!(identity("https://b").await, one);
}

#[tokio::test]
async fn an_account_that_is_off_or_gone_gets_none() {
    let inside = Inside::new().await;
    let change = async |method: &str, path: &str| {
        let path = format!("{ACCOUNTS}/{RUNNER}{path}");
        let (status, said) = inside.setting.call_at(IAM, method, &path, Some(&json!({}))).await;
        assert_eq!(status, 200, "{method} {path}: {said}");
    };
    let (before, _) = inside.token().await;
    change("POST", ":disable").await;
    for (what, words) in [("token", "access"), ("identity?audience=x", "identity")] {
        let (status, said) = inside.ask(&format!("{ACCOUNT}/{what}")).await;
        let right = format!(
            "Unable to generate {words} token; IAM returned 403 Forbidden: Service account {RUNNER} is disabled\n"
        );
        assert_eq!((status, said), (403, json!(right)));
    }
    // Who it is stays what it is.
    assert_eq!(inside.ask(&format!("{ACCOUNT}/email")).await, (200, json!(RUNNER)));
    change("POST", ":enable").await;
    assert_eq!(inside.token().await.0, before);
    change("DELETE", "").await;
    let (status, said) = inside.ask(&format!("{ACCOUNT}/token")).await;
    let right = format!(
        "Unable to generate access token; IAM returned 404 Not Found: Not found; Gaia id not found for email {RUNNER}\n"
    );
    assert_eq!((status, said), (404, json!(right)));
    // Made again it is another one, which no token of the former one is given to.
    inside.setting.account("runner", &[]).await;
    assert_ne!(inside.token().await.0, before);

    let (status, _) = inside.setting.call("DELETE", &format!("{SERVICES}/my-api"), None).await;
    assert_eq!(status, 200);
    assert_eq!(inside.ask(&format!("{ACCOUNT}/token")).await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_waited_for_as_long_as_is_asked() {
    let inside = Inside::new().await;
    let request = |query: &str| {
        let path = format!("/computeMetadata/v1/project/project-id?{query}");
        Request::get(path)
            .header("metadata-flavor", "Google")
            .body(())
            .expect("a request")
    };
    let first = inside.metadata.answer(&inside.asker, &request("")).await;
    let etag = first.headers()["etag"].to_str().expect("text").to_owned();
    for (query, seconds) in [
        ("wait_for_change=true&timeout_sec=7".to_owned(), 7),
        (format!("wait_for_change=true&timeout_sec=7&last_etag={etag}"), 7),
        ("wait_for_change=true&timeout_sec=7&last_etag=0".to_owned(), 0),
        ("wait_for_change=false&timeout_sec=7".to_owned(), 0),
    ] {
        let begin = tokio::time::Instant::now();
        let answer = inside.metadata.answer(&inside.asker, &request(&query)).await;
        assert_eq!(answer.headers()["etag"], etag, "{query}");
        assert_eq!(begin.elapsed().as_secs(), seconds, "{query}");
    }
    let endless = request("wait_for_change=true");
    let waiting = inside.metadata.answer(&inside.asker, &endless);
    let told = tokio::time::timeout(Duration::from_hours(24), waiting).await;
    assert!(told.is_err(), "nothing has changed");
}
