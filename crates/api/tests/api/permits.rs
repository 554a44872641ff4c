//! What each caller may do, by roles, groups and conditions, and what is written down of it.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use model::Entry;
use serde_json::json;

use crate::setting::{ACCOUNTS, IAM, PROJECT, PROJECTS, RUN, SERVICES, Setting, deploy, pass};

const CREDENTIALS: &str = "iamcredentials.googleapis.com";
const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const OWNER: &str = "owner@my-project.iam.gserviceaccount.com";

#[tokio::test]
async fn each_may_do_what_its_roles_say() {
    let setting = Setting::new().await;
    let viewer = setting
        .token_of(&setting.account("viewer", &["roles/run.viewer"]).await)
        .await;
    let developer = setting
        .token_of(&setting.account("developer", &["roles/run.developer"]).await)
        .await;
    let admin = setting
        .token_of(&setting.account("run-admin", &["roles/run.admin"]).await)
        .await;
    let nobody = setting.token_of(&setting.account("nobody", &[]).await).await;
    let service = format!("{SERVICES}/my-api");
    let policy = "/v1/projects/my-project/locations/us-central1/services/my-api:setIamPolicy";
    let open = json!({ "policy": { "bindings": [{ "role": "roles/run.invoker", "members": ["allUsers"] }] } });
    // actAs is not in any role of Cloud Run
    let (status, refused) = setting
        .call_as(&developer, RUN, "POST", SERVICES, Some(&deploy("my-api")))
        .await;
    assert_eq!(status, 403, "{refused}");
    assert!(refused.to_string().contains("iam.serviceaccounts.actAs"), "{refused}");
    setting
        .bind(
            "serviceAccount:developer@my-project.iam.gserviceaccount.com",
            "roles/iam.serviceAccountUser",
        )
        .await;
    let (status, made) = setting
        .call_as(&developer, RUN, "POST", SERVICES, Some(&deploy("my-api")))
        .await;
    assert_eq!(status, 200, "{made}");
    for (token, method, path, body, allowed) in [
        (&nobody, "GET", SERVICES, None, false),
        (&nobody, "GET", &service, None, false),
        (&viewer, "GET", SERVICES, None, true),
        (&viewer, "GET", &service, None, true),
        (&viewer, "DELETE", &service, None, false),
        (&viewer, "POST", SERVICES, Some(deploy("other")), false),
        (&developer, "POST", policy, Some(open.clone()), false),
        (&admin, "POST", policy, Some(open), true),
        (&admin, "PUT", &service, Some(deploy("my-api")), false),
        (&developer, "PUT", &service, Some(deploy("my-api")), true),
        (&developer, "DELETE", &service, None, true),
    ] {
        let (status, answer) = setting.call_as(token, RUN, method, path, body.as_ref()).await;
        assert_eq!(status == 200, allowed, "{method} {path}: {status} {answer}");
        assert!(allowed || status == 403, "{method} {path}: {status} {answer}");
    }
    for (host, method, path) in [
        (IAM, "GET", ACCOUNTS),
        (IAM, "POST", &format!("{ACCOUNTS}/{OWNER}/keys")),
        (PROJECTS, "POST", &format!("{PROJECT}:setIamPolicy")),
        (
            CREDENTIALS,
            "POST",
            &format!("/v1/projects/-/serviceAccounts/{OWNER}:generateAccessToken"),
        ),
        ("storage.googleapis.com", "GET", "/storage/v1/b"),
        (
            "artifactregistry.googleapis.com",
            "GET",
            "/v1/projects/my-project/locations/us-central1/repositories",
        ),
        ("cloudbuild.googleapis.com", "GET", "/v1/projects/my-project/builds"),
        ("serviceusage.googleapis.com", "GET", "/v1/projects/my-project/services"),
        ("127.0.0.1", "POST", "/homerun/v1/images:collect"),
        ("127.0.0.1", "PUT", "/homerun/v1/groups/g@b.c"),
    ] {
        let (status, refused) = setting.call_as(&nobody, host, method, path, Some(&json!({}))).await;
        assert_eq!(
            (status, &refused["error"]["status"]),
            (403, &json!("PERMISSION_DENIED")),
            "{host} {path}"
        );
        let details = &refused["error"]["details"][0];
        assert_eq!(details["reason"], "IAM_PERMISSION_DENIED", "{refused}");
        let message = refused["error"]["message"].as_str().expect("text");
        assert!(message.ends_with("(or it may not exist)."), "{message}");
    }
}

#[tokio::test]
async fn a_role_on_a_resource_is_for_it_alone() {
    let setting = Setting::new().await;
    let token = setting.token_of(&setting.account("viewer", &[]).await).await;
    setting.create(&deploy("one")).await;
    setting.create(&deploy("two")).await;
    let path = "/v1/projects/my-project/locations/us-central1/services/one:setIamPolicy";
    let member = "serviceAccount:viewer@my-project.iam.gserviceaccount.com";
    let policy = json!({ "policy": { "bindings": [{ "role": "roles/run.viewer", "members": [member] }] } });
    assert_eq!(setting.call("POST", path, Some(&policy)).await.0, 200);
    let get = async |name: &str| {
        setting
            .call_as(&token, RUN, "GET", &format!("{SERVICES}/{name}"), None)
            .await
            .0
    };
    assert_eq!((get("one").await, get("two").await, get("none").await), (200, 403, 403));

    setting.account("runner", &[]).await;
    let of = format!("{ACCOUNTS}/{RUNNER}");
    let policy =
        json!({ "policy": { "bindings": [{ "role": "roles/iam.serviceAccountViewer", "members": [member] }] } });
    let (status, set) = setting
        .call_at(IAM, "POST", &format!("{of}:setIamPolicy"), Some(&policy))
        .await;
    assert_eq!(status, 200, "{set}");
    assert_eq!(setting.call_as(&token, IAM, "GET", &of, None).await.0, 200);
    assert_eq!(
        setting
            .call_as(&token, IAM, "GET", &format!("{ACCOUNTS}/{OWNER}"), None)
            .await
            .0,
        403
    );
    let asked = json!({ "permissions": ["iam.serviceAccounts.get", "iam.serviceAccounts.delete"] });
    let held = setting
        .call_as(&token, IAM, "POST", &format!("{of}:testIamPermissions"), Some(&asked))
        .await;
    assert_eq!(held, (200, json!({ "permissions": ["iam.serviceAccounts.get"] })));
}

#[tokio::test]
async fn groups_and_conditions_count() {
    let setting = Setting::new().await;
    let token = setting.token_of(&setting.account("viewer", &[]).await).await;
    let list = async || setting.call_as(&token, RUN, "GET", SERVICES, None).await.0;
    setting.bind("group:viewers@example.com", "roles/run.viewer").await;
    assert_eq!(list().await, 403, "nobody is in it");
    let group = json!({ "members": ["serviceAccount:viewer@my-project.iam.gserviceaccount.com"] });
    let path = "/homerun/v1/groups/viewers@example.com";
    let (status, made) = setting.call_at("127.0.0.1", "PUT", path, Some(&group)).await;
    assert_eq!(status, 200, "{made}");
    assert_eq!(list().await, 200);
    assert_eq!(setting.call_at("127.0.0.1", "DELETE", path, None).await.0, 200);
    assert_eq!(list().await, 403);

    let (_, mut policy) = setting
        .call_at(PROJECTS, "POST", &format!("{PROJECT}:getIamPolicy"), Some(&json!({})))
        .await;
    let now = "timestamp('2027-01-15T09:00:00Z')";
    policy["version"] = 3.into();
    policy["bindings"][1] = json!({ "role": "roles/run.viewer",
        "members": ["serviceAccount:viewer@my-project.iam.gserviceaccount.com"],
        "condition": { "title": "for an hour", "expression": format!("request.time < {now}") } });
    let (status, set) = setting
        .call_at(
            PROJECTS,
            "POST",
            &format!("{PROJECT}:setIamPolicy"),
            Some(&json!({ "policy": policy })),
        )
        .await;
    assert_eq!(status, 200, "{set}");
    assert_eq!(list().await, 200);
    pass(3590);
    assert_eq!(list().await, 200);
    pass(11);
    assert_ne!(list().await, 200, "over");
    pass(-3601);
}

#[tokio::test]
async fn every_write_is_written_down() {
    let setting = Setting::new().await;
    let nobody = setting.token_of(&setting.account("nobody", &[]).await).await;
    setting.journal.lock().expect("no panic before").clear();
    setting.call_as(&nobody, RUN, "GET", SERVICES, None).await;
    setting
        .call_as(&nobody, RUN, "POST", SERVICES, Some(&deploy("my-api")))
        .await;
    setting
        .call_as("nonsense", RUN, "DELETE", &format!("{SERVICES}/my-api"), None)
        .await;
    setting
        .call_as(&setting.token, RUN, "POST", SERVICES, Some(&json!({})))
        .await;
    setting
        .call_as(
            &setting.token,
            IAM,
            "POST",
            &format!("{ACCOUNTS}/{RUNNER}:disable"),
            None,
        )
        .await;
    let journal = setting.journal.lock().expect("no panic before");
    let told: Vec<_> = journal
        .iter()
        .map(|entry| match entry {
            Entry::Audit(record) => (
                record.caller.split('@').next().unwrap_or_default(),
                record.method.rsplit('.').next().unwrap_or_default(),
                record.resource.as_str(),
                record.from.as_str(),
                record.allowed,
                record.status,
            ),
            Entry::Request(_) | Entry::Line(_) | Entry::Start(_) => panic!("{entry:?}"),
        })
        .collect();
    let project = "//cloudresourcemanager.googleapis.com/projects/my-project";
    let service = "//run.googleapis.com/projects/my-project/locations/us-central1/services/my-api";
    let account = format!("//iam.googleapis.com/projects/my-project/serviceAccounts/{RUNNER}");
    let from = "127.0.0.1:4321";
    assert_eq!(
        told,
        [
            ("nobody", "CreateService", project, from, false, 403),
            ("", "DeleteService", service, from, false, 401),
            ("owner", "CreateService", project, from, true, 400),
            ("owner", "DisableServiceAccount", account.as_str(), from, true, 404),
        ]
    );
}

/// To write into a repository is one thing, to make one another.
#[tokio::test]
async fn a_push_makes_a_repository_only_for_who_may() {
    let setting = Setting::new().await;
    let writer = setting.account("writer", &["roles/artifactregistry.writer"]).await;
    let writer = setting.token_of(&writer).await;
    let host = "us-central1-docker.pkg.dev";
    let begin = async |token: &str| {
        let request =
            Request::post("/v2/my-project/r/app/blobs/uploads/").header("authorization", format!("Bearer {token}"));
        let request = request.body(Full::new(Bytes::new())).expect("a request");
        setting.send(host, request).await.status().as_u16()
    };
    assert_eq!(begin(&writer).await, 403);
    assert_eq!(begin(&setting.token).await, 202);
    let path = "/v1/projects/my-project/locations/us-central1/repositories?repositoryId=r";
    let (status, made) = setting
        .call_at(
            "artifactregistry.googleapis.com",
            "POST",
            path,
            Some(&json!({ "format": "DOCKER" })),
        )
        .await;
    assert_eq!(status, 200, "{made}");
    assert_eq!(begin(&writer).await, 202);
}
