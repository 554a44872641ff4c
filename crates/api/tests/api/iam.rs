//! Policies of services: etags, malformed members, and which permissions are held.

use serde_json::{Value, json};

use crate::setting::{PROJECT, PROJECTS, Setting, deploy};

const HOST: &str = "run.googleapis.com";
const SERVICE: &str = "/v1/projects/my-project/locations/us-central1/services/my-api";

async fn set(setting: &Setting, policy: Value) -> (u16, Value) {
    let body = json!({ "policy": policy });
    setting
        .call_at(HOST, "POST", &format!("{SERVICE}:setIamPolicy"), Some(&body))
        .await
}

async fn get(setting: &Setting) -> Value {
    let path = format!("{SERVICE}:getIamPolicy?options.requestedPolicyVersion=3&alt=json");
    let (status, policy) = setting.call_at(HOST, "GET", &path, None).await;
    assert_eq!(status, 200, "{policy}");
    policy
}

#[tokio::test]
async fn a_policy_is_read_changed_and_set() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    let mut policy = get(&setting).await;
    assert_eq!((policy.get("bindings"), &policy["version"]), (None, &json!(1)));
    // As gcloud does for --allow-unauthenticated, before the service is ready.
    policy["bindings"] = json!([{ "role": "roles/run.invoker", "members": ["allUsers"] }]);
    let (status, stored) = set(&setting, policy.clone()).await;
    assert_eq!(status, 200, "{stored}");
    assert_eq!(stored["bindings"], policy["bindings"]);
    assert_ne!(stored["etag"], policy["etag"]);
    assert_eq!(get(&setting).await, stored);
    let service = setting.stored("my-api");
    assert!(service.policy.invokable_by_anyone());
    assert_eq!(service.generation, 1, "no new revision, no new route");

    let (status, stale) = set(&setting, policy).await;
    assert_eq!((status, &stale["error"]["status"]), (409, &json!("ABORTED")));
    let (status, cleared) = set(&setting, json!({ "etag": stored["etag"] })).await;
    assert_eq!((status, cleared.get("bindings")), (200, None));
    // A later replace keeps the policy.
    set(
        &setting,
        json!({ "bindings": [{ "role": "roles/run.invoker", "members": ["user:a@b.c"] }] }),
    )
    .await;
    let read = setting.service("my-api").await;
    setting.replace(&read).await;
    let kept = setting.stored("my-api").policy.bindings;
    assert_eq!(kept[0].members[0].to_string(), "user:a@b.c");
}

#[tokio::test]
async fn malformed_policies_are_named() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    for (policy, field) in [
        (
            json!({ "bindings": [{ "role": "invoker", "members": ["allUsers"] }] }),
            "policy.bindings[0].role",
        ),
        (
            json!({ "bindings": [{ "role": "roles/run.invoker", "members": ["allUsers", "bob"] }] }),
            "policy.bindings[0].members[1]",
        ),
        (
            json!({ "bindings": [{ "role": "roles/run.invokr", "members": ["allUsers"] }] }),
            "policy.bindings[0].role",
        ),
        (
            json!({ "bindings": [{ "role": "projects/my-project/roles/mine", "members": ["allUsers"] }] }),
            "policy.bindings[0].role",
        ),
        (
            json!({ "bindings": [{ "role": "roles/run.invoker",
                "members": ["serviceAccount:nobody@my-project.iam.gserviceaccount.com"] }] }),
            "policy.bindings[0].members[0]",
        ),
        (
            json!({ "version": 3, "bindings": [{ "role": "roles/run.invoker", "members": ["allUsers"],
                "condition": { "expression": "x", "title": "t" } }] }),
            "policy.bindings[0].condition.expression",
        ),
        (
            json!({ "version": 3, "bindings": [{ "role": "roles/run.invoker", "members": ["allUsers"],
                "condition": { "expression": "true" } }] }),
            "policy.bindings[0].condition.title",
        ),
        (
            json!({ "version": 1, "bindings": [{ "role": "roles/run.invoker", "members": ["allUsers"],
                "condition": { "expression": "true", "title": "t" } }] }),
            "policy.version",
        ),
        (json!({ "auditConfigs": [{ "service": "x" }] }), "policy.auditConfigs"),
        (json!({ "version": 9 }), "policy.version"),
        (json!({ "extra": 1 }), "policy.extra"),
    ] {
        let (status, refused) = set(&setting, policy.clone()).await;
        assert_eq!(status, 400, "{policy}: {refused}");
        assert_eq!(
            refused["error"]["details"][0]["fieldViolations"][0]["field"], field,
            "{refused}"
        );
    }
    let (status, refused) = setting
        .call_at(HOST, "POST", &format!("{SERVICE}:setIamPolicy"), Some(&json!({})))
        .await;
    assert_eq!(status, 400, "{refused}");
    assert_eq!(get(&setting).await.get("bindings"), None);
    let other = SERVICE.replace("my-api", "other");
    assert_eq!(
        setting
            .call_at(HOST, "GET", &format!("{other}:getIamPolicy"), None)
            .await
            .0,
        404
    );
    let body = json!({ "policy": {} });
    assert_eq!(
        setting
            .call_at(HOST, "POST", &format!("{other}:setIamPolicy"), Some(&body))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn permissions() {
    let setting = Setting::new().await;
    // Also of a service that is not there yet: gcloud asks before it deploys.
    let ask = async |permissions: Value| {
        let body = json!({ "permissions": permissions });
        setting
            .call_at(HOST, "POST", &format!("{SERVICE}:testIamPermissions"), Some(&body))
            .await
    };
    let (status, held) = ask(json!([
        "run.services.setIamPolicy",
        "compute.instances.create",
        "run.services.get"
    ]))
    .await;
    assert_eq!(
        (status, held),
        (
            200,
            json!({ "permissions": ["run.services.setIamPolicy", "run.services.get"] })
        )
    );
    assert_eq!(ask(json!(["compute.instances.create"])).await, (200, json!({})));
    assert_eq!(ask(json!(["run.services.*"])).await.0, 400);
    assert_eq!(ask(json!("run.services.get")).await.0, 400);
}

#[tokio::test]
async fn conditions_are_kept_and_shown() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    let binding = json!({ "role": "roles/run.invoker", "members": ["allUsers"], "condition": {
        "expression": "request.time < timestamp('2030-01-01T00:00:00Z')", "title": "until", "description": "a while" } });
    let (status, stored) = set(&setting, json!({ "version": 3, "bindings": [binding] })).await;
    assert_eq!(status, 200, "{stored}");
    assert_eq!((&stored["bindings"][0], &stored["version"]), (&binding, &json!(3)));
    assert_eq!(get(&setting).await, stored);
    // A client that knows of no conditions does not lose them by writing back.
    let (status, refused) = set(&setting, json!({ "version": 1, "bindings": [] })).await;
    assert_eq!(status, 400, "{refused}");
    assert_eq!(get(&setting).await, stored);
}

#[tokio::test]
async fn the_project_keeps_an_owner() {
    let setting = Setting::new().await;
    let call = async |verb: &str, body: Value| {
        setting
            .call_at(PROJECTS, "POST", &format!("{PROJECT}:{verb}"), Some(&body))
            .await
    };
    let (status, policy) = call("getIamPolicy", json!({ "options": { "requestedPolicyVersion": 3 } })).await;
    assert_eq!(status, 200, "{policy}");
    let owner = "serviceAccount:owner@my-project.iam.gserviceaccount.com";
    assert_eq!(
        policy["bindings"],
        json!([{ "role": "roles/owner", "members": [owner] }])
    );
    for bindings in [
        json!([]),
        json!([{ "role": "roles/editor", "members": [owner] }]),
        json!([{ "role": "roles/owner", "members": [owner] }, { "role": "roles/viewer", "members": ["allUsers"] }]),
        json!([{ "role": "roles/owner", "members": ["allAuthenticatedUsers"] }]),
    ] {
        let (status, refused) = call("setIamPolicy", json!({ "policy": { "bindings": bindings } })).await;
        assert_eq!(status, 400, "{bindings}: {refused}");
    }
    let (status, again) = setting
        .call_at(
            PROJECTS,
            "POST",
            "/v3/projects/my-project:getIamPolicy",
            Some(&json!({})),
        )
        .await;
    assert_eq!((status, &again), (200, &policy), "nothing was changed");
    // Two that read the same policy: the second write is refused.
    assert_eq!(call("setIamPolicy", json!({ "policy": policy })).await.0, 200);
    let (status, stale) = call("setIamPolicy", json!({ "policy": policy })).await;
    assert_eq!((status, &stale["error"]["status"]), (409, &json!("ABORTED")));
}
