//! Who reads secrets: services, and callers by their roles.

use serde_json::{Value, json};

use crate::{
    secrets::{HOST, SECRETS, add, make, number, ok, payload, refused},
    setting::{SERVICES, Setting, deploy},
};

#[tokio::test]
async fn services_name_secrets_that_are_there() {
    let setting = Setting::new().await;
    make(&setting, "db-password").await;
    add(&setting, "db-password", b"hunter2").await;
    let mut document = deploy("my-api");
    let spec = &mut document["spec"]["template"]["spec"];
    // As gcloud writes `--set-secrets=DB=db-password:latest,/keys/one=db-password:1`.
    spec["containers"][0]["env"] =
        json!([{ "name": "DB", "valueFrom": { "secretKeyRef": { "name": "db-password", "key": "latest" } } }]);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "d-lup-rej-jon", "mountPath": "/keys" }]);
    spec["volumes"] = json!([{
        "name": "d-lup-rej-jon",
        "secret": { "secretName": "db-password", "items": [{ "key": "1", "path": "one" }] },
    }]);
    // Whom the service runs as has to be let.
    let (status, refused) = setting.call("POST", SERVICES, Some(&document)).await;
    let account = setting.surface.site.default_account();
    let why = format!(
        "Permission denied on secret: projects/{}/secrets/db-password/versions/latest for Revision service account \
         {account}. The service account used must be granted the 'Secret Manager Secret Accessor' role \
         (roles/secretmanager.secretAccessor) at the secret, project or higher level.",
        number()
    );
    assert!(
        status == 400 && refused.to_string().contains(&why),
        "{status} {refused}"
    );
    let accessor = json!({ "role": "roles/secretmanager.secretAccessor",
        "members": [format!("serviceAccount:{account}")] });
    let policy = json!({ "policy": { "bindings": [accessor] } });
    ok(
        &setting,
        "POST",
        &format!("{SECRETS}/db-password:setIamPolicy"),
        Some(policy),
    )
    .await;
    let stored = setting.create(&document).await;
    let shown = &stored["spec"]["template"]["spec"];
    let given = &document["spec"]["template"]["spec"];
    assert_eq!(shown["containers"][0]["env"], given["containers"][0]["env"]);
    assert_eq!(
        shown["containers"][0]["volumeMounts"],
        given["containers"][0]["volumeMounts"]
    );
    assert_eq!(shown["volumes"], given["volumes"]);
    let generation = stored["metadata"]["generation"].clone();
    let read = setting.replace(&setting.service("my-api").await).await;
    assert_eq!(read["metadata"]["generation"], generation, "read and sent back");

    // An alias for a full path is the secret itself.
    let mut aliased = document.clone();
    aliased["metadata"]["name"] = json!("aliased");
    let template = &mut aliased["spec"]["template"];
    template["metadata"]["annotations"]["run.googleapis.com/secrets"] =
        json!(format!("db-pa-0:projects/{}/secrets/db-password", number()));
    template["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] = json!("db-pa-0");
    let stored = setting.create(&aliased).await;
    let shown = &stored["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"];
    assert_eq!(shown["name"], "db-password");

    let missing = |version: &str| {
        let path = format!("projects/{}/secrets/db-password/versions/{version}", number());
        format!("Secret {path} was not found")
    };
    ok(
        &setting,
        "POST",
        &format!("{SECRETS}/db-password/versions/1:disable"),
        Some(json!({})),
    )
    .await;
    for (pointer, value, field, why) in [
        (
            "/containers/0/env/0/valueFrom/secretKeyRef/key",
            "7",
            "containers[0].env[0].value_from.secret_key_ref.name",
            missing("7"),
        ),
        (
            "/containers/0/env/0/valueFrom/secretKeyRef/name",
            "none",
            "containers[0].env[0].value_from.secret_key_ref.name",
            format!(
                "Secret projects/{}/secrets/none/versions/latest was not found",
                number()
            ),
        ),
        (
            "/volumes/0/secret/items/0/key",
            "good",
            "volumes[0].secret.items[0].key",
            missing("good"),
        ),
        (
            "/volumes/0/secret/items/0/path",
            "two",
            "volumes[0].secret.items[0].key",
            "is in DISABLED state".to_owned(),
        ),
    ] {
        let mut document = read.clone();
        let at = document["spec"]["template"]["spec"]
            .pointer_mut(pointer)
            .expect(pointer);
        *at = json!(value);
        let (status, refused) = setting
            .call("PUT", &format!("{SERVICES}/my-api"), Some(&document))
            .await;
        assert_eq!(status, 400, "{refused}");
        let found = refused["error"]["details"][0]["fieldViolations"]
            .as_array()
            .expect("violations");
        let told = found.iter().any(|found| {
            let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
            text("field") == format!("spec.template.spec.{field}") && text("description").contains(&why)
        });
        assert!(told, "{field}: {why}: {refused}");
    }
    // What does not touch the template is not looked at.
    let mut labelled = read;
    labelled["metadata"]["labels"]["a"] = json!("b");
    setting.replace(&labelled).await;
}

#[tokio::test]
async fn values_go_by_the_roles_on_their_secret() {
    let setting = Setting::new().await;
    for name in ["own", "other"] {
        make(&setting, name).await;
        add(&setting, name, b"hunter2").await;
    }
    let key = setting.account("reader", &[]).await;
    let token = setting.token_of(&key).await;
    let call = async |method: &str, path: &str, body: Option<Value>| {
        let path = format!("{SECRETS}{path}");
        setting.call_as(&token, HOST, method, &path, body.as_ref()).await
    };
    let (status, refused) = call("GET", "/own/versions/latest:access", None).await;
    assert!(
        status == 403 && refused.to_string().contains("secretmanager.versions.access"),
        "{refused}"
    );
    let path = format!("{SECRETS}/own:getIamPolicy?options.requestedPolicyVersion=3");
    let mut policy = ok(&setting, "GET", &path, None).await;
    policy["bindings"] = json!([{ "role": "roles/secretmanager.secretAccessor",
        "members": ["serviceAccount:reader@my-project.iam.gserviceaccount.com"] }]);
    let set = json!({ "policy": policy });
    ok(
        &setting,
        "POST",
        &format!("{SECRETS}/own:setIamPolicy"),
        Some(set.clone()),
    )
    .await;
    let (status, _, _) = refused_of(&setting, "/own:setIamPolicy", set).await;
    assert_eq!(status, 409, "its etag was used");
    assert_eq!(call("GET", "/own/versions/latest:access", None).await.0, 200);
    for (method, path, body) in [
        ("GET", "/other/versions/latest:access", None),
        ("GET", "/own", None),
        ("GET", "", None),
        ("POST", "/own:addVersion", Some(payload(b"x"))),
        ("POST", "/own/versions/1:disable", Some(json!({}))),
        ("POST", "/own/versions/1:destroy", Some(json!({}))),
        ("GET", "/own:getIamPolicy", None),
        ("DELETE", "/own", None),
    ] {
        let (status, answer) = call(method, path, body).await;
        assert_eq!(status, 403, "{method} {path}: {answer}");
    }
    let asked = json!({ "permissions": ["secretmanager.versions.access", "secretmanager.secrets.delete"] });
    let held = call("POST", "/own:testIamPermissions", Some(asked)).await;
    assert_eq!(held, (200, json!({ "permissions": ["secretmanager.versions.access"] })));
    // A secret of the same name, made anew, is nobody's but the project's.
    ok(&setting, "DELETE", &format!("{SECRETS}/own"), None).await;
    make(&setting, "own").await;
    add(&setting, "own", b"hunter3").await;
    assert_eq!(call("GET", "/own/versions/latest:access", None).await.0, 403);
}

async fn refused_of(setting: &Setting, path: &str, body: Value) -> (u16, String, String) {
    refused(setting, "POST", &format!("{SECRETS}{path}"), Some(body)).await
}
