//! Speaking for an account: through others that may (`delegates`), and by a token that it signed itself.

use aws_lc_rs::{rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use identity::ServiceAccountKey;
use serde_json::{Value, json};

use crate::setting::{ACCOUNTS, IAM, RUN, SERVICES, Setting, pass, seconds};

const CREDENTIALS: &str = "iamcredentials.googleapis.com";
const CREATOR: &str = "roles/iam.serviceAccountTokenCreator";
const CLOUD: &str = "https://www.googleapis.com/auth/cloud-platform";

fn email(id: &str) -> String {
    format!("{id}@my-project.iam.gserviceaccount.com")
}

/// Gives `who` the token creator's role on `account` alone.
async fn lets(setting: &Setting, account: &str, who: &str) {
    let policy = json!({ "policy": { "bindings": [
        { "role": CREATOR, "members": [format!("serviceAccount:{}", email(who))] },
    ] } });
    let path = format!("{ACCOUNTS}/{}:setIamPolicy", email(account));
    let (status, answer) = setting.call_at(IAM, "POST", &path, Some(&policy)).await;
    assert_eq!(status, 200, "{answer}");
}

async fn asks(setting: &Setting, token: &str, account: &str, verb: &str, delegates: Value) -> (u16, Value) {
    let mut body = match verb {
        "generateAccessToken" => json!({ "scope": [CLOUD] }),
        "generateIdToken" => json!({ "audience": "https://a", "includeEmail": true }),
        "signJwt" => json!({ "payload": "{}" }),
        _ => json!({ "payload": STANDARD.encode("x") }),
    };
    body["delegates"] = delegates;
    let path = format!("/v1/projects/-/serviceAccounts/{}:{verb}", email(account));
    setting.call_as(token, CREDENTIALS, "POST", &path, Some(&body)).await
}

/// first may act for second, second for third, third for target; and nobody otherwise.
async fn chain() -> (Setting, String) {
    let setting = Setting::new().await;
    let first = setting.token_of(&setting.account("first-one", &[]).await).await;
    for id in ["second-one", "third-one", "target-one"] {
        setting.account(id, &[]).await;
    }
    lets(&setting, "second-one", "first-one").await;
    lets(&setting, "third-one", "second-one").await;
    lets(&setting, "target-one", "third-one").await;
    (setting, first)
}

#[tokio::test]
async fn each_link_of_a_chain_acts_for_the_next() {
    let (setting, first) = chain().await;
    setting
        .bind(&format!("serviceAccount:{}", email("target-one")), "roles/run.viewer")
        .await;
    let through = json!([
        email("second-one"),
        format!("projects/-/serviceAccounts/{}", email("third-one"))
    ]);
    for verb in ["generateAccessToken", "generateIdToken", "signJwt", "signBlob"] {
        let (status, answer) = asks(&setting, &first, "target-one", verb, through.clone()).await;
        assert_eq!(status, 200, "{verb}: {answer}");
        if let Some(token) = answer["accessToken"].as_str() {
            let (status, listed) = setting.call_as(token, RUN, "GET", SERVICES, None).await;
            assert_eq!(status, 200, "as the target: {listed}");
        }
    }
    // By unique id too.
    let path = format!("{ACCOUNTS}/{}", email("second-one"));
    let (_, second) = setting.call_at(IAM, "GET", &path, None).await;
    let through = json!([second["uniqueId"], email("third-one")]);
    let (status, answer) = asks(&setting, &first, "target-one", "signBlob", through).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_chain_with_a_link_missing_holds_nothing() {
    let (setting, first) = chain().await;
    let (second, third) = (email("second-one"), email("third-one"));
    for verb in ["generateAccessToken", "generateIdToken", "signJwt", "signBlob"] {
        for (delegates, denied) in [
            (json!([]), "target-one"),
            (json!([third]), "third-one"),
            (json!([second]), "target-one"),
            (json!([third, second]), "third-one"),
            (json!([second, third, email("nobody-one")]), "nobody-one"),
            (json!([email("target-one")]), "target-one"),
        ] {
            let (status, answer) = asks(&setting, &first, "target-one", verb, delegates.clone()).await;
            assert_eq!(status, 403, "{verb} {delegates}: {answer}");
            let message = answer["error"]["message"].as_str().expect("a message");
            assert!(message.contains(&email(denied)), "{verb} {delegates}: {message}");
        }
    }
    // The last link is asked for what the method needs, those before for delegation.
    let (_, answer) = asks(&setting, &first, "target-one", "signJwt", json!([second])).await;
    assert!(answer.to_string().contains("iam.serviceAccounts.signJwt"), "{answer}");
    let (_, answer) = asks(&setting, &first, "target-one", "signJwt", json!([third])).await;
    assert!(
        answer.to_string().contains("iam.serviceAccounts.implicitDelegation"),
        "{answer}"
    );

    let path = format!("{ACCOUNTS}/{third}:disable");
    setting.call_at(IAM, "POST", &path, Some(&json!({}))).await;
    let through = json!([second, third]);
    let (status, answer) = asks(&setting, &first, "target-one", "generateAccessToken", through).await;
    assert_eq!(status, 400, "a disabled account acts for nobody: {answer}");
    assert!(answer.to_string().contains("third-one"), "{answer}");
}

/// Google's libraries impersonate with a token of this scope, which is enough for IAM and for nothing else.
#[tokio::test]
async fn the_iam_scope_is_for_iam_alone() {
    let (setting, _) = chain().await;
    let key = setting.key_of(&email("third-one")).await;
    setting
        .bind(&format!("serviceAccount:{}", email("third-one")), "roles/viewer")
        .await;
    let by_scope = |scope: &str| {
        signed(&key, |claims| {
            claims.as_object_mut().expect("claims").remove("aud");
            claims["scope"] = scope.into();
        })
    };
    let caller = identity::Caller {
        email: key.client_email.clone(),
        subject: key.client_id.clone(),
    };
    let issuer = setting.surface.keys.issuer();
    let iam = "https://www.googleapis.com/auth/iam";
    for token in [issuer.mint_access(&caller, iam, seconds(), 60), by_scope(iam)] {
        assert_eq!(asks(&setting, &token, "target-one", "signBlob", json!([])).await.0, 200);
        assert_eq!(setting.call_as(&token, IAM, "GET", ACCOUNTS, None).await.0, 200);
        assert_eq!(setting.call_as(&token, RUN, "GET", SERVICES, None).await.0, 403);
    }
    let email = "https://www.googleapis.com/auth/userinfo.email";
    for token in [issuer.mint_access(&caller, email, seconds(), 60), by_scope(email)] {
        assert_eq!(asks(&setting, &token, "target-one", "signBlob", json!([])).await.0, 403);
    }
}

/// Who may act for everybody still needs the links of a chain to be there.
#[tokio::test]
async fn bad_chains_are_named() {
    let setting = Setting::new().await;
    setting.account("target-one", &[]).await;
    let creator = setting.token_of(&setting.account("creator", &[CREATOR]).await).await;
    for (delegates, status, word) in [
        (json!(["nobody@my-project.iam.gserviceaccount.com"]), 404, "nobody@"),
        (json!(["projects/my-project/serviceAccounts/x@y"]), 400, "delegates[0]"),
        (json!([""]), 400, "delegates[0]"),
        (json!([1]), 400, "delegates"),
        (json!("creator"), 400, "delegates"),
        (json!(vec![email("creator"); 21]), 400, "at most 20"),
    ] {
        let (found, answer) = asks(&setting, &creator, "target-one", "signBlob", delegates.clone()).await;
        assert_eq!(found, status, "{delegates}: {answer}");
        assert!(answer.to_string().contains(word), "{delegates}: {answer}");
    }
    let empty = asks(&setting, &creator, "target-one", "signBlob", json!(null)).await;
    assert_eq!(empty.0, 200, "{}", empty.1);
}

/// A token as Google's libraries sign it, with claims changed by `change`.
fn signed(key: &ServiceAccountKey, change: impl FnOnce(&mut Value)) -> String {
    let mut claims = json!({
        "iss": key.client_email,
        "sub": key.client_email,
        "aud": format!("https://{RUN}/"),
        "iat": seconds(),
        "exp": seconds() + 3600,
    });
    change(&mut claims);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = json!({ "alg": "RS256", "typ": "JWT", "kid": key.private_key_id });
    let text = format!("{}.{}", part(&head), part(&claims));
    let file = serde_json::to_value(key).expect("a document");
    let pem: String = file["private_key"]
        .as_str()
        .expect("a key")
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let pair = KeyPair::from_pkcs8(&STANDARD.decode(pem).expect("base64")).expect("a key");
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
        .expect("signs");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_token_that_an_account_signed_itself_is_taken() {
    let setting = Setting::new().await;
    let key = setting.account("viewer", &["roles/run.viewer"]).await;
    let own = signed(&key, |_| ());
    let by_scope = signed(&key, |claims| {
        claims.as_object_mut().expect("claims").remove("aud");
        claims["scope"] = CLOUD.into();
    });
    for token in [&own, &by_scope] {
        let (status, listed) = setting.call_as(token, RUN, "GET", SERVICES, None).await;
        assert_eq!(status, 200, "{listed}");
        let (status, refused) = setting
            .call_as(token, RUN, "DELETE", &format!("{SERVICES}/a"), None)
            .await;
        assert_eq!(status, 403, "what the account may not: {refused}");
    }
    // Libraries sign for the API also where they call a regional host of it.
    let regional = "us-central1-run.googleapis.com";
    assert_eq!(setting.call_as(&own, regional, "GET", SERVICES, None).await.0, 200);

    // Google's library for Node signs for the very URL.
    let exact = signed(&key, |claims| claims["aud"] = format!("https://{RUN}{SERVICES}").into());
    assert_eq!(setting.call_as(&exact, RUN, "GET", SERVICES, None).await.0, 200);
    let other = format!("{SERVICES}/a");
    assert_eq!(setting.call_as(&exact, RUN, "GET", &other, None).await.0, 401);

    // For one API is for no other; by its scope it is for all.
    let elsewhere = async |token: &str| setting.call_as(token, IAM, "GET", ACCOUNTS, None).await.0;
    assert_eq!(elsewhere(&own).await, 401);
    assert_eq!(elsewhere(&by_scope).await, 403, "known, without the role");
}

#[tokio::test]
async fn and_nothing_that_only_looks_like_one() {
    let setting = Setting::new().await;
    let key = setting.account("viewer", &["roles/run.viewer"]).await;
    let list = async |token: &str| setting.call_as(token, RUN, "GET", SERVICES, None).await;
    let changed = |field: &str, value: Value| signed(&key, |claims| claims[field] = value);
    let other = email("owner");
    let mut forged = key.clone();
    other.clone_into(&mut forged.client_email);
    let id_token = {
        let caller = identity::Caller {
            email: key.client_email.clone(),
            subject: key.client_id.clone(),
        };
        let issuer = setting.surface.keys.issuer();
        issuer.mint_identity(&caller, &format!("https://{RUN}/"), seconds())
    };
    let unsigned = {
        let good = signed(&key, |_| ());
        let (_, rest) = good.split_once('.').expect("three parts");
        format!("{}.{rest}", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#))
    };
    for (what, token, word) in [
        (
            "another API's",
            changed("aud", "https://iam.googleapis.com/".into()),
            "audience",
        ),
        (
            "no root",
            changed("aud", format!("https://{RUN}/v1").into()),
            "audience",
        ),
        (
            "an assertion for the token endpoint",
            changed("aud", "https://oauth2.googleapis.com/token".into()),
            "audience",
        ),
        ("both", changed("scope", CLOUD.into()), "one of them"),
        ("for another", changed("sub", other.clone().into()), "may not act for"),
        ("too long", changed("exp", (seconds() + 3601).into()), "3601"),
        (
            "a target audience",
            changed("target_audience", "https://a".into()),
            "target_audience",
        ),
        ("another's name", signed(&forged, |_| ()), "no key of this account"),
        ("an ID token", id_token, "an ID token"),
        ("unsigned", unsigned, "RS256"),
        ("nonsense", "a.b.c".to_owned(), "malformed"),
    ] {
        let (status, refused) = list(&token).await;
        assert_eq!(status, 401, "{what}: {refused}");
        assert!(refused.to_string().contains(word), "{what}: {refused}");
    }
    let narrow = signed(&key, |claims| {
        claims.as_object_mut().expect("claims").remove("aud");
        claims["scope"] = "https://www.googleapis.com/auth/userinfo.email".into();
    });
    assert_eq!(list(&narrow).await.0, 403);

    let token = signed(&key, |_| ());
    assert_eq!(list(&token).await.0, 200);
    let path = format!("{ACCOUNTS}/{}/keys/{}", key.client_email, key.private_key_id);
    for (verb, status) in [("disable", 401), ("enable", 200)] {
        setting
            .call_at(IAM, "POST", &format!("{path}:{verb}"), Some(&json!({})))
            .await;
        assert_eq!(list(&token).await.0, status, "{verb}");
    }
    pass(3661);
    assert_eq!(list(&token).await.0, 401, "it ended");
    pass(-3661);
    setting.call_at(IAM, "DELETE", &path, None).await;
    assert_eq!(list(&token).await.0, 401, "the key is gone");
}
