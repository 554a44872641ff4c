//! Cloud Build and the Run API's `builds:submit` by the requests that gcloud sends. Nothing is built here: the store is
//! written as the builder would.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use model::{BuildId, BuildState, BuiltImage, Timestamp};
use serde_json::{Value, json};

use crate::setting::Setting;

const HOST: &str = "cloudbuild.googleapis.com";
const BUILDS: &str = "/v1/projects/my-project/locations/global/builds";
const SUBMIT: &str = "/v2/projects/my-project/locations/us-central1/builds:submit";
const TAG: &str = "us-central1-docker.pkg.dev/my-project/r/app:v1";

/// What gcloud sends for `builds submit --tag`.
fn tagged() -> Value {
    json!({
        "images": [TAG],
        "source": { "storageSource": { "bucket": "my-project_cloudbuild", "object": "source/1.tgz", "generation": "7" } },
        "steps": [{
            "name": "gcr.io/cloud-builders/docker",
            "args": ["build", "--network", "cloudbuild", "--no-cache", "-t", TAG, "."],
        }],
    })
}

/// What gcloud sends for `run deploy --source`.
fn deployed() -> Value {
    json!({
        "dockerBuild": {},
        "imageUri": "us-central1-docker.pkg.dev/my-project/cloud-run-source-deploy/app",
        "storageSource": { "bucket": "run-sources-my-project-us-central1", "object": "services/app/1.zip", "generation": "7" },
        "tags": ["service_app"],
    })
}

async fn submitted(setting: &Setting) -> String {
    let (status, operation) = setting.call_at(HOST, "POST", BUILDS, Some(&tagged())).await;
    assert_eq!(status, 200, "{operation}");
    assert_eq!(operation["done"], false);
    operation["metadata"]["build"]["id"].as_str().expect("an id").to_owned()
}

async fn ends(setting: &Setting, id: &str, state: BuildState) {
    let id = BuildId::parse(id).expect("an id");
    let written = setting.surface.store.transact(move |transaction| {
        let mut build = transaction.snapshot().builds[&id].as_ref().clone();
        build.state = state;
        transaction.put_build(build);
        Ok::<_, std::convert::Infallible>(())
    });
    written.await.expect("written");
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(1_800_000_000_000_000 + second * 1_000_000)
}

#[tokio::test]
async fn a_build_is_written_down_and_its_end_is_shown() {
    let setting = Setting::new().await;
    let id = submitted(&setting).await;
    let (_, build) = setting.call_at(HOST, "GET", &format!("{BUILDS}/{id}"), None).await;
    assert_eq!(build["status"], "QUEUED");
    assert_eq!(build["source"]["storageSource"]["generation"], "7");
    assert_eq!(build["steps"][0]["args"], tagged()["steps"][0]["args"]);
    assert_eq!(build["timeout"], "3600s");
    let repository = "/v1/projects/my-project/locations/us-central1/repositories/r";
    let (status, _) = setting
        .call_at("artifactregistry.googleapis.com", "GET", repository, None)
        .await;
    assert_eq!(status, 200, "made for what will be pushed");

    let digest = format!("sha256:{}", "ab".repeat(32));
    let images = vec![BuiltImage {
        name: TAG.to_owned(),
        digest: digest.clone(),
    }];
    let state = BuildState::Success {
        started: at(1),
        finished: at(4),
        images,
    };
    ends(&setting, &id, state).await;
    let path = format!("/v1/projects/my-project/locations/global/operations/{id}");
    let (_, operation) = setting.call_at(HOST, "GET", &path, None).await;
    assert_eq!(operation["done"], true);
    let response = &operation["response"];
    assert_eq!(response["status"], "SUCCESS");
    assert_eq!(
        response["results"]["images"],
        json!([{ "name": TAG, "digest": digest }])
    );
    assert_eq!(response["timing"]["BUILD"]["endTime"], response["finishTime"]);
}

#[tokio::test]
async fn a_source_deploy_waits_for_its_build_and_hears_why_it_failed() {
    let setting = Setting::new().await;
    let (status, answer) = setting
        .call_at("us-central1-run.googleapis.com", "POST", SUBMIT, Some(&deployed()))
        .await;
    assert_eq!(status, 200, "{answer}");
    let build = &answer["buildOperation"]["metadata"]["build"];
    for field in ["name", "id", "projectId", "logUrl"] {
        assert!(build[field].is_string(), "{field} of {build}");
    }
    let id = build["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/projects/my-project/locations/us-central1/operations/{id}");
    let asked = setting.call_at(HOST, "GET", &path, None);
    let failed = async {
        tokio::task::yield_now().await;
        let why = "the build failed at STEP 1/1".to_owned();
        let state = BuildState::Failure {
            started: at(1),
            finished: at(2),
            why,
        };
        ends(&setting, &id, state).await;
    };
    let ((_, operation), ()) = tokio::join!(asked, failed);
    assert_eq!(operation["done"], true, "held until the end: {operation}");
    assert!(
        operation["response"].is_null(),
        "gcloud crashes over a response that failed"
    );
    assert_eq!(operation["error"]["code"], 9);
    let message = operation["error"]["message"].as_str().expect("a message");
    assert!(message.starts_with("the build failed at STEP 1/1\n"), "{message}");
}

#[tokio::test]
async fn builds_are_cancelled_once_and_listed_newest_first() {
    let setting = Setting::new().await;
    let first = submitted(&setting).await;
    let (status, cancelled) = setting
        .call_at(HOST, "POST", &format!("{BUILDS}/{first}:cancel"), Some(&json!({})))
        .await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("CANCELLED")));
    let (status, refused) = setting
        .call_at(HOST, "POST", &format!("{BUILDS}/{first}:cancel"), None)
        .await;
    assert_eq!(status, 400);
    let said = refused["error"]["message"].as_str().expect("a message");
    assert!(said.contains("has ended already: CANCELLED"), "{said}");
    let second = submitted(&setting).await;
    let ids = |list: Value| -> Vec<String> {
        let builds = list["builds"].as_array().expect("a list").clone();
        builds
            .iter()
            .map(|build| build["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let (_, all) = setting
        .call_at(HOST, "GET", &format!("{BUILDS}?alt=json&pageSize=100"), None)
        .await;
    let mut both = vec![first.clone(), second.clone()];
    both.sort_unstable();
    let mut listed = ids(all);
    listed.sort_unstable();
    assert_eq!(listed, both);
    let ongoing = "status%3D%22WORKING%22+OR+status%3D%22QUEUED%22";
    let (_, open) = setting
        .call_at(HOST, "GET", &format!("{BUILDS}?filter={ongoing}"), None)
        .await;
    assert_eq!(ids(open), [second]);
    let elsewhere = "/v1/projects/my-project/locations/europe-west1/builds";
    let (_, none) = setting.call_at(HOST, "GET", elsewhere, None).await;
    assert_eq!(none["builds"], json!([]));
    let (status, _) = setting
        .call_at(
            HOST,
            "GET",
            &format!("{BUILDS}/0b1f2e3d-0000-4000-8000-000000000001"),
            None,
        )
        .await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn what_is_not_served_is_named_and_nothing_is_written() {
    let setting = Setting::new().await;
    let with = |path: &str, value: Value| {
        let mut build = tagged();
        *build.pointer_mut(path).expect("a place") = value;
        build
    };
    let and = |field: &str, value: Value| {
        let mut build = tagged();
        build[field] = value;
        build
    };
    let docker = |args: Value| with("/steps/0/args", args);
    for (build, field) in [
        (and("steps", json!([])), "steps"),
        (
            with("/steps/0/name", json!("gcr.io/cloud-builders/npm")),
            "steps[0].name",
        ),
        (docker(json!(["run", "x"])), "steps[0].args"),
        (docker(json!(["build", "-t", "$_X", "."])), "steps[0].args[2]"),
        (docker(json!(["build", "-t", TAG, ".."])), "steps[0].args"),
        (and("serviceAccount", json!("me")), "serviceAccount"),
        (and("timeout", json!("90000s")), "timeout"),
        (and("timeout", json!("soon")), "timeout"),
        (and("images", json!(["docker.io/me/app"])), "images[0]"),
        (and("images", json!([])), "images"),
        (
            and("options", json!({ "machineType": "E2_HIGHCPU_8" })),
            "options.machineType",
        ),
        (
            and("options", json!({ "logging": "CLOUD_LOGGING_ONLY" })),
            "options.logging",
        ),
        (and("substitutions", json!({ "x": "y" })), "substitutions"),
        (
            and("source", json!({ "repoSource": { "repoName": "r" } })),
            "source.repoSource",
        ),
        (
            with("/source/storageSource/bucket", json!("UP")),
            "source.storageSource.bucket",
        ),
        (and("new", json!("field")), "new"),
    ] {
        let (status, refused) = setting.call_at(HOST, "POST", BUILDS, Some(&build)).await;
        assert_eq!(status, 400, "{build}");
        let violations = refused["error"]["details"][0]["fieldViolations"]
            .as_array()
            .expect("violations");
        assert!(
            violations.iter().any(|violation| violation["field"] == field),
            "no {field} in {refused}"
        );
    }
    let mut buildpack = deployed();
    buildpack.as_object_mut().expect("an object").remove("dockerBuild");
    for (field, value) in [
        ("baseImage", json!("python312")),
        ("enableAutomaticUpdates", json!(true)),
        ("runtime", json!("python312")),
        ("environmentVariables", json!({ "../A": "b" })),
        ("projectDescriptor", json!("../project.toml")),
        ("cacheImageUri", json!("docker.io/x/y")),
        ("builder", json!("x")),
    ] {
        buildpack["buildpackBuild"] = json!({ "baseImage": "gcr.io/buildpacks/google-22/run" });
        buildpack["buildpackBuild"][field] = value;
        let (status, refused) = setting
            .call_at("us-central1-run.googleapis.com", "POST", SUBMIT, Some(&buildpack))
            .await;
        assert_eq!(status, 400, "{field}");
        let named = format!("\"buildpackBuild.{field}\"");
        assert!(refused.to_string().contains(&named), "no {named} in {refused}");
    }
    assert!(setting.surface.store.snapshot().builds.is_empty());
}

#[tokio::test]
async fn a_source_without_a_dockerfile_is_looked_at_by_the_build() {
    let setting = Setting::new().await;
    let mut asked = deployed();
    asked.as_object_mut().expect("an object").remove("dockerBuild");
    asked["buildpackBuild"] =
        json!({ "baseImage": "gcr.io/buildpacks/google-22/run", "enableAutomaticUpdates": false });
    let (status, answer) = setting
        .call_at("us-central1-run.googleapis.com", "POST", SUBMIT, Some(&asked))
        .await;
    assert_eq!(status, 200, "{answer}");
    let snapshot = setting.surface.store.snapshot();
    let build = snapshot.builds.values().next().expect("a build");
    assert!(build.recipe.detect);
    assert_eq!(build.recipe.pack, None);
    asked["buildpackBuild"] = json!({
        "baseImage": "gcr.io/p/run",
        "functionTarget": "f",
        "environmentVariables": { "A": "b" },
        "projectDescriptor": "project.toml",
        "cacheImageUri": "us-central1-docker.pkg.dev/my-project/caches/a",
    });
    let (status, answer) = setting
        .call_at("us-central1-run.googleapis.com", "POST", SUBMIT, Some(&asked))
        .await;
    assert_eq!(status, 200, "{answer}");
    let snapshot = setting.surface.store.snapshot();
    let mut packs = snapshot.builds.values().filter_map(|build| build.recipe.pack.clone());
    let pack = packs.next().expect("a build by buildpacks");
    assert_eq!(pack.run_image.as_deref(), Some("gcr.io/p/run"));
    let variables = [("A", "b"), ("GOOGLE_FUNCTION_TARGET", "f")];
    assert_eq!(
        pack.environment,
        variables.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    assert_eq!(pack.descriptor.as_deref(), Some("project.toml"));
    asked["dockerBuild"] = json!({});
    let (status, refused) = setting
        .call_at("us-central1-run.googleapis.com", "POST", SUBMIT, Some(&asked))
        .await;
    assert_eq!(status, 400);
    assert!(
        refused.to_string().contains("not together with dockerBuild"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_log_is_read_from_where_the_last_look_ended() {
    let setting = Setting::new().await;
    let id = submitted(&setting).await;
    let (_, build) = setting.call_at(HOST, "GET", &format!("{BUILDS}/{id}"), None).await;
    let bucket = build["logsBucket"]
        .as_str()
        .expect("a bucket")
        .trim_start_matches("gs://")
        .to_owned();
    let read = async |range: &str, name: &str| {
        let request = Request::builder()
            .uri(format!("/{bucket}/{name}"))
            .header("authorization", format!("Bearer {}", setting.token))
            .header("range", range)
            .body(Full::new(Bytes::new()))
            .expect("a request");
        let response = setting.send("storage.googleapis.com", request).await;
        let status = response.status().as_u16();
        let content = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&content).into_owned())
    };
    let name = format!("log-{id}.txt");
    assert_eq!(read("bytes=0-", &name).await.0, 404, "it has not begun");
    std::fs::create_dir_all(&setting.surface.build_logs).expect("made");
    std::fs::write(setting.surface.build_logs.join(&name), "one\n").expect("written");
    assert_eq!(read("bytes=0-", &name).await, (206, "one\n".to_owned()));
    assert_eq!(read("bytes=4-", &name).await.0, 416, "nothing new");
    std::fs::write(setting.surface.build_logs.join(&name), "one\ntwo\n").expect("written");
    assert_eq!(read("bytes=4-", &name).await, (206, "two\n".to_owned()));
    for strange in ["log-..%2F..%2Fhomerun.db.txt", "log-x.txt", "homerun.db"] {
        assert_eq!(read("bytes=0-", strange).await.0, 404, "{strange}");
    }
}

#[tokio::test]
async fn the_accounts_that_gcloud_asks_for_are_there() {
    let setting = Setting::new().await;
    let path = "/v1/projects/my-project/locations/us-central1/defaultServiceAccount";
    let (status, account) = setting.call_at(HOST, "GET", path, None).await;
    assert_eq!(status, 200, "{account}");
    let email = account["serviceAccountEmail"].as_str().expect("an email");
    let email = email.rsplit('/').next().expect("a last part");
    let path = format!("/v1/projects/-/serviceAccounts/{email}");
    let (status, account) = setting.call_at("iam.googleapis.com", "GET", &path, None).await;
    assert_eq!((status, &account["email"]), (200, &json!(email)));
    let path = "/v1/projects/-/serviceAccounts/nobody@example.com";
    assert_eq!(setting.call_at("iam.googleapis.com", "GET", path, None).await.0, 404);
}
