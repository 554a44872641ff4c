//! Secret Manager as gcloud 528 asks it, and secrets in services.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::setting::{Setting, pass};

pub(crate) const HOST: &str = "secretmanager.googleapis.com";
pub(crate) const SECRETS: &str = "/v1/projects/my-project/secrets";

async fn call(setting: &Setting, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    setting.call_at(HOST, method, path, body.as_ref()).await
}

pub(crate) async fn ok(setting: &Setting, method: &str, path: &str, body: Option<Value>) -> Value {
    let (status, answer) = call(setting, method, path, body).await;
    assert_eq!(status, 200, "{method} {path}: {answer}");
    answer
}

/// Status, code and message of what must be refused.
pub(crate) async fn refused(setting: &Setting, method: &str, path: &str, body: Option<Value>) -> (u16, String, String) {
    let (status, answer) = call(setting, method, path, body).await;
    let error = &answer["error"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert_ne!(status, 200, "{method} {path}: {answer}");
    (status, text(&error["status"]), text(&error["message"]))
}

pub(crate) async fn make(setting: &Setting, name: &str) {
    let body = json!({ "replication": { "automatic": {} }, "annotations": {} });
    ok(
        setting,
        "POST",
        &format!("{SECRETS}?secretId={name}&alt=json"),
        Some(body),
    )
    .await;
}

pub(crate) fn payload(value: &[u8]) -> Value {
    let sum = crc32c::crc32c(value).to_string();
    json!({ "payload": { "data": STANDARD.encode(value), "dataCrc32c": sum } })
}

pub(crate) async fn add(setting: &Setting, name: &str, value: &[u8]) -> Value {
    ok(
        setting,
        "POST",
        &format!("{SECRETS}/{name}:addVersion"),
        Some(payload(value)),
    )
    .await
}

pub(crate) fn number() -> String {
    model::ProjectNumber::of(&model::ProjectId::parse("my-project").expect("an id")).to_string()
}

#[tokio::test]
async fn a_secret_and_its_versions() {
    let setting = Setting::new().await;
    let own = format!("projects/{}/secrets/db-password", number());
    let body = json!({
        "replication": { "automatic": {} }, "annotations": {}, "labels": { "team": "a" }, "topics": [],
    });
    let made = ok(&setting, "POST", &format!("{SECRETS}?secretId=db-password"), Some(body)).await;
    assert_eq!(made["name"], own);
    assert_eq!(made["replication"], json!({ "automatic": {} }));
    assert_eq!(made["labels"], json!({ "team": "a" }));
    assert_eq!(ok(&setting, "GET", &format!("{SECRETS}/db-password"), None).await, made);
    let again = json!({ "replication": { "automatic": {} } });
    let twice = refused(
        &setting,
        "POST",
        &format!("{SECRETS}?secretId=db-password"),
        Some(again),
    )
    .await;
    assert_eq!(
        twice,
        (
            409,
            "ALREADY_EXISTS".to_owned(),
            format!("Secret [{own}] already exists.")
        )
    );

    let latest = format!("{SECRETS}/db-password/versions/latest:access");
    let none = refused(&setting, "GET", &latest, None).await;
    assert_eq!(
        (none.0, none.2),
        (404, format!("Secret [{own}] not found or has no versions."))
    );
    let version = add(&setting, "db-password", b"hunter2").await;
    assert_eq!(version["name"], format!("{own}/versions/1"));
    assert_eq!(
        (&version["state"], &version["clientSpecifiedPayloadChecksum"]),
        (&json!("ENABLED"), &json!(true))
    );
    assert!(version.get("payload").is_none());
    add(&setting, "db-password", &[0, 0xff, b'\n']).await;
    let value = ok(&setting, "GET", &latest, None).await;
    assert_eq!(value["name"], format!("{own}/versions/2"));
    assert_eq!(value["payload"]["data"], STANDARD.encode([0, 0xff, b'\n']));
    assert_eq!(
        value["payload"]["dataCrc32c"],
        crc32c::crc32c(&[0, 0xff, b'\n']).to_string()
    );

    // An alias, and what it may be.
    let alias = json!({ "labels": {}, "versionAliases": { "good": 1 } });
    let mask = format!("{SECRETS}/db-password?updateMask=version_aliases");
    let after = ok(&setting, "PATCH", &mask, Some(alias)).await;
    assert_eq!(after["versionAliases"], json!({ "good": "1" }));
    assert_eq!(after["labels"], made["labels"], "the mask does not name them");
    let good = ok(
        &setting,
        "GET",
        &format!("{SECRETS}/db-password/versions/good:access"),
        None,
    )
    .await;
    assert_eq!(good["payload"]["data"], STANDARD.encode("hunter2"));
    for (aliases, why) in [
        (json!({ "bad": 3 }), "has no version 3"),
        (json!({ "latest": 1 }), "is no alias"),
        (json!({ "1a": 1 }), "is no alias"),
        (json!({ "a": 0 }), "the number of a version"),
    ] {
        let no = refused(&setting, "PATCH", &mask, Some(json!({ "versionAliases": aliases }))).await;
        assert!(no.0 == 400 && no.2.contains(why), "{no:?}");
    }

    // Off, on, and gone; latest stays the newest whatever its state.
    let two = format!("{SECRETS}/db-password/versions/2");
    let state =
        async |verb: &str| ok(&setting, "POST", &format!("{two}:{verb}"), Some(json!({}))).await["state"].clone();
    assert_eq!(state("disable").await, "DISABLED");
    let off = refused(&setting, "GET", &latest, None).await;
    let told = format!("Secret Version [{own}/versions/2] is in DISABLED state.");
    assert_eq!(off, (400, "FAILED_PRECONDITION".to_owned(), told));
    assert_eq!(state("enable").await, "ENABLED");
    let etag = ok(&setting, "GET", &two, None).await["etag"].clone();
    let stale = refused(
        &setting,
        "POST",
        &format!("{two}:destroy"),
        Some(json!({ "etag": "\"0\"" })),
    )
    .await;
    assert_eq!((stale.0, stale.1.as_str()), (409, "ABORTED"));
    let gone = ok(
        &setting,
        "POST",
        &format!("{two}:destroy"),
        Some(json!({ "etag": etag })),
    )
    .await;
    assert!(
        gone["state"] == "DESTROYED" && gone["destroyTime"].is_string(),
        "{gone}"
    );
    for verb in ["enable", "disable", "destroy"] {
        let no = refused(&setting, "POST", &format!("{two}:{verb}"), Some(json!({}))).await;
        assert!(no.0 == 400 && no.2.contains("DESTROYED state"), "{no:?}");
    }
    add(&setting, "db-password", b"three").await;
    let list = ok(
        &setting,
        "GET",
        &format!("{SECRETS}/db-password/versions?pageSize=0"),
        None,
    )
    .await;
    let names: Vec<&str> = list["versions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|version| {
            version["name"]
                .as_str()
                .expect("a name")
                .rsplit('/')
                .next()
                .expect("a part")
        })
        .collect();
    assert_eq!(
        (names, &list["totalSize"]),
        (vec!["3", "2", "1"], &json!(3)),
        "newest first, no number twice"
    );

    assert_eq!(
        ok(&setting, "DELETE", &format!("{SECRETS}/db-password"), None).await,
        json!({})
    );
    let missing = refused(&setting, "GET", &format!("{SECRETS}/db-password"), None).await;
    assert_eq!(
        missing,
        (404, "NOT_FOUND".to_owned(), format!("Secret [{own}] not found."))
    );
    assert_eq!(setting.surface.store.snapshot().secret_versions.len(), 0);
}

#[tokio::test]
async fn a_list_in_pages() {
    let setting = Setting::new().await;
    assert_eq!(ok(&setting, "GET", SECRETS, None).await, json!({}));
    for name in ["c", "a", "b"] {
        make(&setting, name).await;
    }
    let list = ok(&setting, "GET", &format!("{SECRETS}?pageSize=2"), None).await;
    let names = |list: &Value| -> Vec<String> {
        let secrets = list["secrets"].as_array().expect("a list").iter();
        secrets
            .map(|secret| {
                secret["name"]
                    .as_str()
                    .expect("a name")
                    .rsplit('/')
                    .next()
                    .expect("one")
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(
        (names(&list), &list["totalSize"]),
        (vec!["a".to_owned(), "b".to_owned()], &json!(3))
    );
    let next = list["nextPageToken"].as_str().expect("more");
    let rest = ok(&setting, "GET", &format!("{SECRETS}?pageToken={next}"), None).await;
    assert_eq!((names(&rest), rest.get("nextPageToken")), (vec!["c".to_owned()], None));
}

#[tokio::test]
async fn what_a_secret_cannot_be() {
    let setting = Setting::new().await;
    make(&setting, "s").await;
    let automatic = json!({ "automatic": {} });
    let with = |field: &str, value: Value| {
        let mut body = json!({ "replication": automatic });
        body[field] = value;
        body
    };
    for (query, body, why) in [
        ("", with("labels", json!({})), "secretId: is required"),
        (
            "?secretId=a.b",
            with("labels", json!({})),
            "secretId: secret name \"a.b\" is invalid",
        ),
        ("?secretId=x", json!({}), "replication: is required"),
        (
            "?secretId=x",
            json!({ "replication": { "userManaged": {} } }),
            "replicas: at least one is required",
        ),
        (
            "?secretId=x",
            json!({ "replication": { "automatic": { "customerManagedEncryption": { "kmsKeyName": "k" } } } }),
            "replication.automatic.customerManagedEncryption: is not served",
        ),
        (
            "?secretId=x",
            with("topics", json!([{ "name": "t" }])),
            "topics: is not served",
        ),
        (
            "?secretId=x",
            with("rotation", json!({ "rotationPeriod": "3600s" })),
            "rotation: is not served",
        ),
        (
            "?secretId=x",
            with("versionDestroyTtl", json!("86400s")),
            "versionDestroyTtl: is not served",
        ),
        (
            "?secretId=x",
            with("labels", json!({ "A": "b" })),
            "labels[A]: is no key of a label",
        ),
        (
            "?secretId=x",
            with("annotations", json!({ "-a": "b" })),
            "annotations[-a]: is no key",
        ),
        (
            "?secretId=x",
            with("annotations", json!({ "a": "b".repeat(16 << 10) })),
            "the limit is less than 16384",
        ),
        ("?secretId=x", with("ttl", json!("-1s")), "ttl: \"-1s\" is no duration"),
        (
            "?secretId=x",
            with("expireTime", json!("tomorrow")),
            "expireTime: \"tomorrow\" is no time",
        ),
        (
            "?secretId=x",
            with("expireTime", json!("2001-01-01T00:00:00Z")),
            "is not in the future",
        ),
        ("?secretId=x", with("nonsense", json!(1)), "nonsense: is not a field"),
    ] {
        let no = refused(&setting, "POST", &format!("{SECRETS}{query}"), Some(body)).await;
        assert!(no.0 == 400 && no.2.contains(why), "{why}: {no:?}");
    }
    let version = format!("{SECRETS}/s:addVersion");
    for (body, why) in [
        (json!({}), "payload.data: is required"),
        (json!({ "payload": { "data": "" } }), "payload.data: is empty"),
        (json!({ "payload": { "data": "h=" } }), "payload.data: is no base64"),
        (
            json!({ "payload": { "data": STANDARD.encode("hunter2"), "dataCrc32c": "1" } }),
            "payload.dataCrc32c: is not the CRC32C",
        ),
        (
            payload(&vec![7; (64 << 10) + 1]),
            "payload.data: has 65537 bytes, the limit is 65536",
        ),
        (payload(&vec![7; 1 << 20]), "larger than 1048576 bytes"),
    ] {
        let no = refused(&setting, "POST", &version, Some(body)).await;
        assert!(no.0 == 400 && no.2.contains(why), "{why}: {no:?}");
        assert!(
            !no.2.contains("hunter2") && !no.2.contains(&STANDARD.encode("hunter2")),
            "{no:?}"
        );
    }
    add(&setting, "s", &vec![7; 64 << 10]).await;
    for (method, path, code, why) in [
        (
            "GET",
            "/s/versions/2",
            404,
            "Secret Version [projects/NUMBER/secrets/s/versions/2] not found.",
        ),
        (
            "GET",
            "/none/versions/1:access",
            404,
            "Secret [projects/NUMBER/secrets/none] not found.",
        ),
        ("GET", "/a.b", 404, "Secret [projects/NUMBER/secrets/a.b] not found."),
        ("GET", "/s/versions/0", 400, "is no version of a secret"),
        ("POST", "/s/versions/latest:destroy", 400, "by its number"),
        ("GET", "?filter=name:s", 400, "filter: is not served"),
        ("PATCH", "/s", 400, "updateMask: is required"),
        (
            "PATCH",
            "/s?updateMask=replication",
            400,
            "replication cannot be changed",
        ),
        ("DELETE", "/s?etag=%220%22", 409, "was changed since it was read"),
    ] {
        let no = refused(&setting, method, &format!("{SECRETS}{path}"), None).await;
        let why = why.replace("NUMBER", &number());
        assert!(no.0 == code && no.2.contains(&why), "{why}: {no:?}");
    }
    let foreign = refused(&setting, "GET", "/v1/projects/other-project/secrets", None).await;
    assert_eq!(foreign.1, "PERMISSION_DENIED");
}

#[tokio::test]
async fn a_secret_ends_when_its_time_is_over() {
    let setting = Setting::new().await;
    let body = json!({ "replication": { "automatic": {} }, "ttl": "60s" });
    let made = ok(&setting, "POST", &format!("{SECRETS}?secretId=short"), Some(body)).await;
    assert!(made["expireTime"].is_string() && made.get("ttl").is_none(), "{made}");
    add(&setting, "short", b"x").await;
    let mask = format!("{SECRETS}/short?updateMask=expire_time");
    pass(30);
    let cleared = ok(&setting, "PATCH", &mask, Some(json!({}))).await;
    assert!(cleared.get("expireTime").is_none(), "{cleared}");
    ok(
        &setting,
        "PATCH",
        &format!("{SECRETS}/short?updateMask=ttl"),
        Some(json!({ "ttl": "60s" })),
    )
    .await;
    pass(61);
    assert_eq!(refused(&setting, "GET", &format!("{SECRETS}/short"), None).await.0, 404);
    assert_eq!(
        refused(&setting, "GET", &format!("{SECRETS}/short/versions/1:access"), None)
            .await
            .0,
        404
    );
    assert_eq!(ok(&setting, "GET", SECRETS, None).await, json!({}));
    // The name is free, and nothing of before comes with it.
    make(&setting, "short").await;
    let list = ok(&setting, "GET", &format!("{SECRETS}/short/versions"), None).await;
    assert_eq!(list, json!({}));
}

#[tokio::test]
async fn values_lie_sealed_and_a_new_key_changes_nothing_else() {
    let setting = Setting::new().await;
    make(&setting, "s").await;
    add(&setting, "s", b"hunter2").await;
    add(&setting, "s", b"hunter3").await;
    let sealed = || -> Vec<model::SealedValue> {
        let snapshot = setting.surface.store.snapshot();
        let versions = snapshot.secret_versions.values();
        versions
            .map(|version| version.state.sealed().expect("a value").clone())
            .collect()
    };
    let before = sealed();
    let all = format!("{:?}", setting.surface.store.snapshot());
    assert!(!all.contains("hunter") && !all.contains(&before[0].value), "{all}");
    let (status, answer) = setting
        .call_at("127.0.0.1", "POST", "/homerun/v1/secrets:rotateKey", Some(&json!({})))
        .await;
    assert_eq!((status, answer), (200, json!({ "versions": "2" })));
    let after = sealed();
    assert_ne!(before[0].key, after[0].key);
    assert_eq!(before[0].value, after[0].value);
    let value = ok(&setting, "GET", &format!("{SECRETS}/s/versions/1:access"), None).await;
    assert_eq!(value["payload"]["data"], STANDARD.encode("hunter2"));
    let keys = std::fs::read_to_string(setting.surface.vault.key_file()).expect("the key file");
    assert!(
        !keys.contains(&before[0].key) && keys.contains(&after[0].key),
        "the old key is gone"
    );
}
