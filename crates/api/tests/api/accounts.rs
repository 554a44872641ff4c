//! Service accounts: made, changed, switched off and deleted; their keys and tokens.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::setting::{ACCOUNTS, IAM, PROJECT, PROJECTS, RUN, SERVICES, Setting, pass, read, seconds};

const CREDENTIALS: &str = "iamcredentials.googleapis.com";
const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";

async fn owner(setting: &Setting, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    setting
        .call_at(IAM, method, &format!("{ACCOUNTS}{path}"), body.as_ref())
        .await
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("json")
}

#[tokio::test]
async fn an_account_is_made_changed_and_deleted() {
    let setting = Setting::new().await;
    let create = json!({ "accountId": "runner", "serviceAccount": { "displayName": "Runner" } });
    let (status, made) = owner(&setting, "POST", "", Some(create.clone())).await;
    assert_eq!(status, 200, "{made}");
    assert_eq!(
        (&made["email"], &made["displayName"]),
        (&json!(RUNNER), &json!("Runner"))
    );
    assert_eq!(made["name"], format!("projects/my-project/serviceAccounts/{RUNNER}"));
    let id = made["uniqueId"].as_str().expect("text").to_owned();
    assert_eq!(id.len(), 21);
    assert_eq!(owner(&setting, "POST", "", Some(create.clone())).await.0, 409);
    for name in [RUNNER, &id] {
        assert_eq!(
            owner(&setting, "GET", &format!("/{name}"), None).await,
            (200, made.clone())
        );
    }
    let (_, all) = owner(&setting, "GET", "?pageSize=2", None).await;
    let next = all["nextPageToken"].as_str().expect("three accounts");
    let (_, rest) = owner(&setting, "GET", &format!("?pageSize=2&pageToken={next}"), None).await;
    assert_eq!(rest["accounts"][0]["email"], RUNNER);

    let change =
        json!({ "serviceAccount": { "description": "runs", "etag": made["etag"] }, "updateMask": "description" });
    let (status, changed) = owner(&setting, "PATCH", &format!("/{RUNNER}"), Some(change.clone())).await;
    assert_eq!(
        (status, &changed["description"], &changed["displayName"]),
        (200, &json!("runs"), &json!("Runner"))
    );
    let (status, stale) = owner(&setting, "PATCH", &format!("/{RUNNER}"), Some(change)).await;
    assert_eq!((status, &stale["error"]["status"]), (409, &json!("ABORTED")));

    setting
        .bind(&format!("serviceAccount:{RUNNER}"), "roles/run.viewer")
        .await;
    assert_eq!(
        owner(&setting, "DELETE", &format!("/{RUNNER}"), None).await,
        (200, json!({}))
    );
    assert_eq!(owner(&setting, "GET", &format!("/{RUNNER}"), None).await.0, 404);
    let (_, again) = owner(&setting, "POST", "", Some(create)).await;
    assert_ne!(again["uniqueId"], id, "another one");
    let (_, policy) = setting
        .call_at(PROJECTS, "POST", &format!("{PROJECT}:getIamPolicy"), Some(&json!({})))
        .await;
    assert_eq!(
        policy["bindings"][1]["members"],
        json!([format!("deleted:serviceAccount:{RUNNER}?uid={id}")])
    );
}

#[tokio::test]
async fn bad_input_is_named() {
    let setting = Setting::new().await;
    setting.account("runner", &[]).await;
    let long = "x".repeat(101);
    for (method, path, body, status, word) in [
        ("POST", "", json!({ "accountId": "short" }), 400, "6 to 30"),
        ("POST", "", json!({ "accountId": "Runner-1" }), 400, "6 to 30"),
        ("POST", "", json!({}), 400, "6 to 30"),
        (
            "POST",
            "",
            json!({ "accountId": "runner2", "serviceAccount": { "displayName": long } }),
            400,
            "100",
        ),
        ("POST", "", json!({ "accountId": "runner2", "more": 1 }), 400, "more"),
        ("GET", "/nobody@example.com", Value::Null, 404, "nobody@example.com"),
        ("DELETE", "/nobody@example.com", Value::Null, 404, "nobody@example.com"),
        (
            "POST",
            "/runner@my-project.iam.gserviceaccount.com:undelete",
            json!({}),
            400,
            "brought back",
        ),
        (
            "DELETE",
            "/owner@my-project.iam.gserviceaccount.com",
            Value::Null,
            400,
            "owner of this Homerun",
        ),
        (
            "POST",
            "/owner@my-project.iam.gserviceaccount.com:disable",
            json!({}),
            400,
            "owner of this Homerun",
        ),
        (
            "PATCH",
            "/runner@my-project.iam.gserviceaccount.com",
            json!({ "updateMask": "email" }),
            400,
            "email",
        ),
        (
            "POST",
            "/runner@my-project.iam.gserviceaccount.com/keys",
            json!({ "privateKeyType": "TYPE_PKCS12_FILE" }),
            400,
            "TYPE_PKCS12_FILE",
        ),
        (
            "POST",
            "/runner@my-project.iam.gserviceaccount.com/keys:upload",
            json!({}),
            400,
            "not served",
        ),
        (
            "DELETE",
            "/runner@my-project.iam.gserviceaccount.com/keys/0",
            Value::Null,
            404,
            "key 0",
        ),
        (
            "GET",
            "/runner@my-project.iam.gserviceaccount.com/keys?keyTypes=MINE",
            Value::Null,
            400,
            "MINE",
        ),
    ] {
        let body = (!body.is_null()).then_some(body);
        let (found, refused) = owner(&setting, method, path, body).await;
        assert_eq!(found, status, "{method} {path}: {refused}");
        assert!(refused.to_string().contains(word), "{method} {path}: {refused}");
    }
}

#[tokio::test]
async fn keys_come_and_go() {
    let setting = Setting::new().await;
    let key = setting.account("runner", &[]).await;
    assert_eq!(
        (key.client_email.as_str(), key.project_id.as_str()),
        (RUNNER, "my-project")
    );
    let path = format!("/{RUNNER}/keys");
    let (_, listed) = owner(&setting, "GET", &format!("{path}?keyTypes=USER_MANAGED"), None).await;
    let name = format!(
        "projects/my-project/serviceAccounts/{RUNNER}/keys/{}",
        key.private_key_id
    );
    assert_eq!(
        (&listed["keys"][0]["name"], &listed["keys"][1]),
        (&json!(name), &Value::Null)
    );
    assert!(listed["keys"][0].get("privateKeyData").is_none(), "shown once");
    let one = format!("{path}/{}", key.private_key_id);
    let (_, public) = owner(
        &setting,
        "GET",
        &format!("{one}?publicKeyType=TYPE_X509_PEM_FILE"),
        None,
    )
    .await;
    let pem = STANDARD
        .decode(public["publicKeyData"].as_str().expect("text"))
        .expect("base64");
    assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    assert!(!format!("{:?}", setting.surface.store.snapshot()).contains("PRIVATE KEY"));

    assert_eq!(setting.exchange(&key).await.0, 200);
    assert_eq!(
        owner(&setting, "POST", &format!("{one}:disable"), Some(json!({})))
            .await
            .0,
        200
    );
    let (status, refused) = setting.exchange(&key).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_grant")));
    assert_eq!(
        owner(&setting, "POST", &format!("{one}:enable"), Some(json!({})))
            .await
            .0,
        200
    );
    assert_eq!(setting.exchange(&key).await.0, 200);
    for _ in 1..model::MAX_ACCOUNT_KEYS {
        setting.key_of(RUNNER).await;
    }
    let (status, full) = owner(&setting, "POST", &path, Some(json!({}))).await;
    assert_eq!(status, 400, "{full}");
    assert_eq!(owner(&setting, "DELETE", &one, None).await, (200, json!({})));
    assert_eq!(setting.exchange(&key).await.0, 400);
}

/// Nothing that was good before is good after: not the key, not the token, not for the next of the same name.
#[tokio::test]
async fn nobody_speaks_for_a_disabled_or_deleted_account() {
    let setting = Setting::new().await;
    let key = setting.account("runner", &["roles/run.viewer"]).await;
    let token = setting.token_of(&key).await;
    let list = async |token: &str| setting.call_as(token, RUN, "GET", SERVICES, None).await.0;
    assert_eq!(list(&token).await, 200);
    owner(&setting, "POST", &format!("/{RUNNER}:disable"), Some(json!({}))).await;
    assert_eq!(list(&token).await, 401);
    assert_eq!(setting.exchange(&key).await.0, 400);
    owner(&setting, "POST", &format!("/{RUNNER}:enable"), Some(json!({}))).await;
    assert_eq!(list(&token).await, 200);

    owner(&setting, "DELETE", &format!("/{RUNNER}"), None).await;
    assert_eq!(list(&token).await, 401);
    let next = setting.account("runner", &[]).await;
    assert_eq!(list(&token).await, 401, "the token is of the former one");
    assert_eq!(setting.exchange(&key).await.0, 400, "and so is the key");
    let token = setting.token_of(&next).await;
    assert_eq!(list(&token).await, 403, "roles were not inherited");
}

#[tokio::test]
async fn a_token_can_be_taken_back() {
    let setting = Setting::new().await;
    let key = setting.account("runner", &["roles/viewer"]).await;
    let (one, two) = (setting.token_of(&key).await, setting.token_of(&key).await);
    let post = async |path: &str, token: &str| {
        let request = Request::post(format!("{path}?token={token}&access_token={token}"));
        let request = request.body(Full::new(Bytes::new())).expect("a request");
        read(setting.send("oauth2.googleapis.com", request).await).await
    };
    let (status, told) = post("/tokeninfo", &one).await;
    assert_eq!(
        (status, &told["email"], &told["expires_in"]),
        (200, &json!(RUNNER), &json!("3599"))
    );
    assert_eq!(post("/revoke", &one).await, (200, json!({})));
    let list = async |token: &str| setting.call_as(token, RUN, "GET", SERVICES, None).await.0;
    assert_eq!((list(&one).await, list(&two).await), (401, 200));
    assert_eq!(post("/tokeninfo", &one).await.0, 400);
    assert_eq!(post("/revoke", "ya29.nonsense").await.0, 400);
    pass(3600);
    assert_eq!(list(&two).await, 401, "it ends by itself");
    pass(-3600);
}

/// Roles on one service, on one repository and on one account do not reach others.
#[tokio::test]
async fn tokens_and_signatures_in_an_account_s_name() {
    let setting = Setting::new().await;
    setting.account("runner", &["roles/run.viewer"]).await;
    let creator = setting
        .token_of(
            &setting
                .account("creator", &["roles/iam.serviceAccountTokenCreator"])
                .await,
        )
        .await;
    let call = async |token: &str, verb: &str, body: Value| {
        let path = format!("/v1/projects/-/serviceAccounts/{RUNNER}:{verb}");
        setting.call_as(token, CREDENTIALS, "POST", &path, Some(&body)).await
    };
    let cloud = json!({ "scope": ["https://www.googleapis.com/auth/cloud-platform"], "lifetime": "600s" });
    let (status, refused) = call(&setting.token, "generateAccessToken", cloud.clone()).await;
    assert_eq!(status, 403, "not even the owner, as at Google: {refused}");
    let (status, made) = call(&creator, "generateAccessToken", cloud).await;
    assert_eq!(status, 200, "{made}");
    assert_eq!(made["expireTime"], "2027-01-15T08:10:00Z");
    let token = made["accessToken"].as_str().expect("a token");
    assert_eq!(setting.call_as(token, RUN, "GET", SERVICES, None).await.0, 200);
    assert_eq!(
        setting.call_as(token, IAM, "GET", ACCOUNTS, None).await.0,
        403,
        "as the account, not as its creator"
    );

    let (_, made) = call(
        &creator,
        "generateIdToken",
        json!({ "audience": "https://a", "includeEmail": true }),
    )
    .await;
    let told = claims(made["token"].as_str().expect("a token"));
    assert_eq!((&told["aud"], &told["email"]), (&json!("https://a"), &json!(RUNNER)));
    let (_, made) = call(&creator, "generateIdToken", json!({ "audience": "https://a" })).await;
    assert!(claims(made["token"].as_str().expect("a token")).get("email").is_none());

    let payload = json!({ "iss": RUNNER, "exp": seconds() + 60 }).to_string();
    let (status, signed) = call(&creator, "signJwt", json!({ "payload": payload })).await;
    assert_eq!(status, 200, "{signed}");
    assert_eq!(claims(signed["signedJwt"].as_str().expect("a token"))["iss"], RUNNER);
    let (_, blob) = call(&creator, "signBlob", json!({ "payload": STANDARD.encode("text") })).await;
    assert_eq!(blob["keyId"], signed["keyId"], "one key, made once");
    let request = Request::get(format!("/robot/v1/metadata/x509/{RUNNER}")).body(Full::new(Bytes::new()));
    let request = request.expect("a request");
    let (_, certificates) = read(setting.send("www.googleapis.com", request).await).await;
    let id = signed["keyId"].as_str().expect("an id");
    assert!(
        certificates[id]
            .as_str()
            .expect("its certificate")
            .contains("BEGIN CERTIFICATE")
    );

    for (verb, body, word) in [
        ("generateAccessToken", json!({}), "scope"),
        (
            "generateAccessToken",
            json!({ "scope": ["a"], "lifetime": "3601s" }),
            "lifetime",
        ),
        ("generateIdToken", json!({}), "audience"),
        ("signJwt", json!({ "payload": "[]" }), "payload"),
        (
            "signJwt",
            json!({ "payload": json!({ "exp": seconds() + 13 * 3600 }).to_string() }),
            "exp",
        ),
        ("signBlob", json!({ "payload": "***" }), "base64"),
        (
            "signBlob",
            json!({ "payload": STANDARD.encode(vec![0; 65537]) }),
            "65536",
        ),
        ("generateNothing", json!({}), "not served"),
    ] {
        let (status, refused) = call(&creator, verb, body).await;
        assert_eq!(status, 400, "{verb}: {refused}");
        assert!(refused.to_string().contains(word), "{verb}: {refused}");
    }
    owner(&setting, "POST", &format!("/{RUNNER}:disable"), Some(json!({}))).await;
    assert_eq!(call(&creator, "signBlob", json!({ "payload": "eA==" })).await.0, 400);
}

#[tokio::test]
async fn roles_are_listed_and_described() {
    let setting = Setting::new().await;
    let get = async |path: &str| setting.call_at(IAM, "GET", path, None).await;
    let (status, role) = get("/v1/roles/run.invoker").await;
    assert_eq!(status, 200, "{role}");
    assert_eq!(
        role["includedPermissions"],
        json!(["run.jobs.run", "run.routes.invoke"])
    );
    let (_, all) = get("/v1/roles?pageSize=1000").await;
    assert!(all["roles"].as_array().expect("a list").len() > 30);
    assert!(all["roles"][0].get("includedPermissions").is_none(), "only in full");
    let (status, none) = get("/v1/roles/run.invokr").await;
    assert_eq!(status, 404, "{none}");
    assert_eq!(get("/v1/projects/my-project/roles").await, (200, json!({})));
}

#[tokio::test]
async fn what_others_check_our_tokens_with() {
    let setting = Setting::new().await;
    let get = async |host: &str, path: &str| {
        let request = Request::get(path).body(Full::new(Bytes::new())).expect("a request");
        read(setting.send(host, request).await).await
    };
    let (status, discovery) = get("accounts.google.com", "/.well-known/openid-configuration").await;
    assert_eq!(
        (status, &discovery["issuer"]),
        (200, &json!("https://accounts.google.com"))
    );
    let (_, keys) = get("www.googleapis.com", "/oauth2/v3/certs").await;
    let (_, certificates) = get("www.googleapis.com", "/oauth2/v1/certs").await;
    let id = keys["keys"][0]["kid"].as_str().expect("an id");
    assert!(
        certificates[id]
            .as_str()
            .expect("pem")
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    for path in [
        "/.well-known/openid-configuration",
        "/oauth2/v3/certs",
        "/oauth2/v1/certs",
    ] {
        assert_eq!(get("127.0.0.1", path).await.0, 200, "{path}");
    }
    assert_eq!(
        get("oauth2.googleapis.com", "/oauth2/v3/certs").await.0,
        400,
        "another host's"
    );
}
