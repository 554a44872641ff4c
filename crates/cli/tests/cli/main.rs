//! The client against a server on a real socket: what it prints, what it sends, how it ends.

mod cloud;
mod own_words;

use cloud::{Cloud, Ran, Seat};
use serde_json::{Value, json};

fn deploy(cloud: &Cloud, service: &str) -> Ran {
    let words = [
        "run",
        "deploy",
        service,
        "--image=us-central1-docker.pkg.dev/p/r/i:v1",
        "--quiet",
    ];
    cloud.run(&words).ok()
}

fn terminal(input: &str) -> Seat {
    Seat {
        terminal: true,
        input: input.to_owned(),
        ..Seat::default()
    }
}

fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut parts = text.split('\x1b');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let end = part
            .find(|c: char| c.is_ascii_alphabetic())
            .map_or(part.len(), |end| end + 1);
        plain.push_str(&part[end..]);
    }
    plain
}

#[test]
fn the_tutorials_way_from_blue_to_green_and_back() {
    let cloud = Cloud::start();
    let first = cloud
        .run(&[
            "run",
            "deploy",
            "my-api",
            "--image=us-central1-docker.pkg.dev/my-project/docker-repo/my-api:v1.0.0",
            "--region=us-central1",
            "--allow-unauthenticated",
            "--port=8080",
            "--memory=512Mi",
            "--cpu=1",
            "--min-instances=0",
            "--max-instances=100",
        ])
        .ok();
    assert_eq!(first.out, "");
    insta::assert_snapshot!(first.err, @r"
    Deploying container to Cloud Run service [my-api] in project [my-project] region [us-central1]
    Deploying new service...
    Setting IAM Policy... done
    Creating Revision... done
    Routing traffic... done
    Done.
    Service [my-api] revision [my-api-00001-abc] has been deployed and is serving 100 percent of traffic.
    Service URL: https://my-api-h-uc.test
    ");
    let written = cloud.state().written.clone();
    assert_eq!(written["metadata"]["namespace"], "my-project");
    let template = &written["spec"]["template"];
    assert_eq!(
        template["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"],
        "100"
    );
    assert_eq!(
        template["metadata"]["annotations"]["run.googleapis.com/startup-cpu-boost"],
        "True"
    );
    assert_eq!(
        template["spec"]["containers"][0],
        json!({"image": "us-central1-docker.pkg.dev/my-project/docker-repo/my-api:v1.0.0",
            "resources": {"limits": {"memory": "512Mi", "cpu": "1"}}, "ports": [{"containerPort": 8080}]})
    );
    assert_eq!(
        cloud.state().policies["my-api"]["bindings"],
        json!([{"role": "roles/run.invoker", "members": ["allUsers"]}])
    );

    let url = cloud.run(&[
        "run",
        "services",
        "describe",
        "my-api",
        "--region=us-central1",
        "--format=value(status.url)",
    ]);
    assert_eq!(url.ok().out, "https://my-api-h-uc.test\n");

    let green = cloud
        .run(&[
            "run",
            "deploy",
            "my-api",
            "--image=i:v2",
            "--region=us-central1",
            "--no-traffic",
            "--tag=green",
        ])
        .ok();
    assert!(green.err.contains("is serving 0 percent of traffic."), "{}", green.err);
    assert!(
        green
            .err
            .contains("The revision can be reached directly at https://green---my-api-h-uc.test"),
        "{}",
        green.err
    );
    assert!(!green.err.contains("Service URL"), "{}", green.err);
    assert!(!green.err.contains("Routing"), "{}", green.err);
    let url = cloud.run(&[
        "run",
        "services",
        "describe",
        "my-api",
        "--format",
        "value(status.traffic[1].url)",
    ]);
    assert_eq!(url.ok().out, "https://green---my-api-h-uc.test\n");

    let names = cloud
        .run(&[
            "run",
            "revisions",
            "list",
            "--service=my-api",
            "--format=value(REVISION)",
        ])
        .ok()
        .out;
    let names: Vec<&str> = names.lines().collect();
    let [newest, oldest] = names.as_slice() else {
        panic!("{names:?}")
    };
    assert_eq!(*oldest, "my-api-00001-abc");
    assert!(newest.starts_with("my-api-00002-"), "{newest}");

    let split = cloud
        .run(&[
            "run",
            "services",
            "update-traffic",
            "my-api",
            &format!("--to-revisions={oldest}=90,{newest}=10"),
        ])
        .ok();
    assert_eq!(
        split.out.replace(newest, "NEWEST"),
        "URL: https://my-api-h-uc.test\nTraffic:\n  90% my-api-00001-abc\n  10% NEWEST\n        green: https://green---my-api-h-uc.test\n"
    );
    assert_eq!(split.err, "Updating traffic...\nRouting traffic... done\nDone.\n");
    let yaml = cloud
        .run(&["run", "services", "describe", "my-api", "--format=yaml(status.traffic)"])
        .ok()
        .out;
    assert!(
        yaml.starts_with("status:\n  traffic:\n  - percent: 90\n    revisionName: my-api-00001-abc\n"),
        "{yaml}"
    );

    let latest = cloud
        .run(&["run", "services", "update-traffic", "my-api", "--to-latest"])
        .ok();
    assert!(
        latest.out.contains("100% LATEST (currently my-api-00002-"),
        "{}",
        latest.out
    );
    cloud
        .run(&[
            "run",
            "services",
            "update-traffic",
            "my-api",
            "--to-revisions=my-api-00001-abc=100",
        ])
        .ok();
    cloud
        .run(&["run", "services", "update-traffic", "my-api", "--remove-tags=green"])
        .ok();
    assert_eq!(
        cloud.state().services["my-api"]["spec"]["traffic"],
        json!([{"revisionName": "my-api-00001-abc", "percent": 100}])
    );
    assert_eq!(cloud.state().revisions.len(), 2, "traffic makes no revision");

    let gone = cloud
        .run(&["run", "services", "delete", "my-api", "--region=us-central1", "--quiet"])
        .ok();
    assert!(gone.err.ends_with("Deleted service [my-api].\n"), "{}", gone.err);
    let none = cloud.run(&["run", "services", "describe", "my-api"]);
    assert_eq!(
        (none.code, none.err.as_str()),
        (
            1,
            "ERROR: (homerun.run.services.describe) Cannot find service [my-api]\n"
        )
    );
}

#[test]
fn describe_makes_two_calls() {
    let cloud = Cloud::start();
    deploy(&cloud, "my-api");
    cloud.state().seen.clear();
    let shown = cloud.run(&["run", "services", "describe", "my-api"]).ok().out;
    assert!(shown.starts_with("✔ Service my-api in region us-central1\n"), "{shown}");
    assert!(
        shown.contains("  100% LATEST (currently my-api-00001-abc)\n"),
        "{shown}"
    );
    let seen = cloud.state().seen.clone();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[0].ends_with(" /homerun/about"), "{seen:?}");
    assert_eq!(
        seen[1],
        "GET us-central1-run.googleapis.com /apis/serving.knative.dev/v1/namespaces/my-project/services/my-api"
    );
}

#[test]
fn lists() {
    let cloud = Cloud::start();
    let empty = cloud.run(&["run", "services", "list"]).ok();
    assert_eq!((empty.out.as_str(), empty.err.as_str()), ("", "Listed 0 items.\n"));
    deploy(&cloud, "b");
    deploy(&cloud, "a");
    let table = cloud.run(&["run", "services", "list"]).ok().out;
    insta::assert_snapshot!(table, @r"
       SERVICE  REGION       URL                  LAST DEPLOYED BY  LAST DEPLOYED AT
    ✔  a        us-central1  https://a-h-uc.test  dev@example.com   2026-11-25T00:00:00Z
    ✔  b        us-central1  https://b-h-uc.test  dev@example.com   2026-11-25T00:00:00Z
    ");
    let one = cloud.run(&[
        "run",
        "services",
        "list",
        "--limit=1",
        "--format=value(SERVICE,URL)",
        "--region=us-central1",
    ]);
    assert_eq!(one.ok().out, "a\thttps://a-h-uc.test\n");
    let revisions = cloud.run(&["run", "revisions", "list", "--service", "a"]).ok().out;
    insta::assert_snapshot!(revisions, @r"
       REVISION     ACTIVE  SERVICE  DEPLOYED                 DEPLOYED BY
    ✔  a-00001-abc  yes     a        2026-11-25 00:00:02 UTC  dev@example.com
    ");
    let regions = cloud.run(&["run", "regions", "list"]).ok().out;
    assert_eq!(regions, "NAME\nus-central1\nus-east1\n");
    let json: Value =
        serde_json::from_str(&cloud.run(&["run", "services", "list", "--format=json"]).ok().out).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(2));
}

#[test]
fn words_that_are_not_understood_exit_with_2() {
    let cloud = Cloud::start();
    let table = [
        (
            vec!["run", "deploy", "a", "--source=.", "--function=f"],
            "--function is not served by Homerun",
        ),
        (
            vec!["run", "deploy", "a", "--image=i", "--source=."],
            "cannot be used with",
        ),
        (
            vec!["run", "deploy", "a", "--image=i", "--memroy=1Gi"],
            "(did you mean '--memory'?)",
        ),
        (
            vec!["run", "services", "list", "--format=value(a.basename())"],
            "transform basename() in [a.basename()] is not served",
        ),
        (
            vec![
                "run",
                "services",
                "update-traffic",
                "a",
                "--to-latest",
                "--to-revisions=a=1",
            ],
            "cannot be used with",
        ),
        (vec!["run", "services", "update", "a", "--timeout=0"], "at least 1s"),
        (vec!["run", "jobs", "list"], "`run jobs` is not served"),
        (vec!["run", "services", "list", "--region=no/where"], "--region"),
        (vec!["run"], "services"),
    ];
    for (words, want) in table {
        let ran = cloud.run(&words);
        assert_eq!(ran.code, 2, "{words:?}: {}", ran.err);
        assert!(ran.err.contains(want), "{words:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{words:?}");
    }
    let help = cloud.run(&["run", "deploy", "--help"]).ok();
    assert!(help.out.contains("--no-traffic"), "{}", help.out);
}

#[test]
fn a_revision_that_cannot_start_ends_the_deploy_with_its_reason() {
    let cloud = Cloud::start();
    let ran = cloud.run(&["run", "deploy", "fail-api", "--image=i", "--quiet"]);
    assert_eq!(ran.code, 1);
    insta::assert_snapshot!(ran.err, @r"
    Deploying container to Cloud Run service [fail-api] in project [my-project] region [us-central1]
    Deploying new service...
    Creating Revision... failed
    Deployment failed
    ERROR: (homerun.run.deploy) The container exited with code 3: no such file
    ");
}

#[test]
fn a_wrong_field_is_named() {
    let cloud = Cloud::start();
    let ran = cloud.run(&["run", "deploy", "a", "--image=i", "--memory=1X", "--quiet"]);
    assert_eq!(ran.code, 1);
    let want =
        "ERROR: (homerun.run.deploy) spec.template.spec.containers[0].resources.limits.memory: 1X is no quantity\n";
    assert!(ran.err.ends_with(want), "{}", ran.err);
}

#[test]
fn async_waits_for_nothing() {
    let cloud = Cloud::start();
    let ran = cloud
        .run(&["run", "deploy", "a", "--image=i", "--quiet", "--async"])
        .ok();
    assert!(
        ran.err.ends_with("Service [a] is deploying asynchronously.\n"),
        "{}",
        ran.err
    );
    let last = cloud.state().seen.last().cloned().expect("calls");
    assert!(last.starts_with("POST"), "{last}");
}

#[test]
fn a_service_that_is_ready_at_once_is_not_polled() {
    let cloud = Cloud::start();
    cloud.state().delay = 0;
    deploy(&cloud, "a");
    let seen = cloud.state().seen.clone();
    assert!(seen.last().is_some_and(|last| last.starts_with("POST")), "{seen:?}");
}

#[test]
fn questions() {
    let cloud = Cloud::start();
    let deploy = ["run", "deploy", "a", "--image=i"];
    let asked = cloud.run_as(&deploy, &terminal("y\n")).ok();
    assert!(
        asked.err.contains("Allow unauthenticated invocations to [a] (y/N)?"),
        "{}",
        asked.err
    );
    assert!(cloud.state().policies.contains_key("a"));
    assert!(
        plain(&asked.err).contains("✔ Deploying new service... Done."),
        "{}",
        asked.err
    );
    assert!(asked.err.contains("\x1b[1mhttps://a-h-uc.test\x1b[0m"), "{}", asked.err);

    let delete = ["run", "services", "delete", "a"];
    let unattended = cloud.run(&delete);
    assert_eq!(unattended.code, 1);
    assert!(unattended.err.contains("--quiet"), "{}", unattended.err);
    let declined = cloud.run_as(&delete, &terminal("n\n"));
    assert_eq!((declined.code, cloud.state().services.len()), (1, 1));
    assert!(declined.err.contains("aborted by user"), "{}", declined.err);
    cloud.run_as(&delete, &terminal("\n")).ok();
    assert!(cloud.state().services.is_empty());

    cloud.run_as(&["run", "deploy", "b", "--image=i"], &terminal("\n")).ok();
    assert!(!cloud.state().policies.contains_key("b"), "the default answer is no");
    assert_eq!(cloud.run(&["config", "set", "disable_prompts", "true"]).code, 0);
    cloud.run(&["run", "services", "delete", "b"]).ok();
}

#[test]
fn update_keeps_the_bytes_that_run() {
    let cloud = Cloud::start();
    deploy(&cloud, "a");
    let ran = cloud
        .run(&[
            "run",
            "services",
            "update",
            "a",
            "--memory=1Gi",
            "--set-env-vars=DATABASE_URL=postgres://db:5432/mydb,LOG_LEVEL=info",
            "--timeout=60",
        ])
        .ok();
    assert!(
        ran.err.contains("revision [a-00002-abc] has been deployed"),
        "{}",
        ran.err
    );
    let written = cloud.state().written.clone();
    let container = &written["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container["image"],
        format!("us-central1-docker.pkg.dev/p/r/i@sha256:{}", "a".repeat(64))
    );
    assert_eq!(written["spec"]["template"]["spec"]["timeoutSeconds"], 60);
    assert_eq!(
        container["env"][0],
        json!({"name": "DATABASE_URL", "value": "postgres://db:5432/mydb"})
    );
    let nothing = cloud.run(&["run", "services", "update", "a"]);
    assert_eq!(nothing.code, 1);
    assert!(
        nothing.err.contains("No configuration change requested"),
        "{}",
        nothing.err
    );
    let none = cloud.run(&["run", "services", "update", "nope", "--memory=1Gi"]);
    assert!(none.err.contains("Service [nope] could not be found."), "{}", none.err);
}

#[test]
fn deploy_without_an_image_keeps_the_services_own() {
    let cloud = Cloud::start();
    let none = cloud.run(&["run", "deploy", "a", "--allow-unauthenticated"]);
    assert_eq!(none.code, 1);
    assert!(none.err.contains("--image"), "{}", none.err);
    deploy(&cloud, "a");
    cloud.run(&["run", "deploy", "a", "--allow-unauthenticated"]).ok();
    assert_eq!(
        cloud.state().policies["a"]["bindings"][0]["members"],
        json!(["allUsers"])
    );
    cloud.run(&["run", "deploy", "a", "--no-allow-unauthenticated"]).ok();
    assert_eq!(cloud.state().policies["a"]["bindings"], json!([]));
    let image = |cloud: &Cloud| {
        let services = &cloud.state().services;
        services["a"]["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    let before = image(&cloud);
    cloud.run(&["run", "deploy", "a", "--memory=1Gi"]).ok();
    let after = &cloud.state().services["a"]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&after["image"], &after["resources"]["limits"]["memory"]),
        (&before, &json!("1Gi"))
    );
}

#[test]
fn a_change_in_between_is_not_lost() {
    let cloud = Cloud::start();
    deploy(&cloud, "a");
    let file = cloud.dir.path().join("policy.yaml");
    std::fs::write(&file, "etag: e99\nbindings: []\n").expect("a file");
    let ran = cloud.run(&["run", "services", "set-iam-policy", "a", file.to_str().expect("text")]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("ABORTED: stale etag"), "{}", ran.err);
}

#[test]
fn policies() {
    let cloud = Cloud::start();
    deploy(&cloud, "a");
    let member = "--member=serviceAccount:invoker@my-project.iam.gserviceaccount.com";
    let role = "--role=roles/run.invoker";
    let added = cloud
        .run(&[
            "run",
            "services",
            "add-iam-policy-binding",
            "a",
            "--region=us-central1",
            member,
            role,
        ])
        .ok();
    assert_eq!(added.err, "Updated IAM policy for service [a].\n");
    let shown = "bindings:\n- members:\n  - serviceAccount:invoker@my-project.iam.gserviceaccount.com\n  \
                 role: roles/run.invoker\netag: e2\nversion: 1\n";
    assert_eq!(added.out, shown);
    assert_eq!(cloud.run(&["run", "services", "get-iam-policy", "a"]).ok().out, shown);
    cloud
        .run(&["run", "services", "remove-iam-policy-binding", "a", member, role])
        .ok();
    let again = cloud.run(&["run", "services", "remove-iam-policy-binding", "a", member, role]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("not found"), "{}", again.err);
}

#[test]
fn traffic_that_cannot_be_is_not_sent() {
    let cloud = Cloud::start();
    deploy(&cloud, "a");
    cloud.state().seen.clear();
    for (words, want) in [
        ("--to-revisions=LATEST=60", "only 60%"),
        ("--to-revisions=x=60,y=60", "over 100%"),
        ("--to-tags=none=10", "[none]"),
    ] {
        let ran = cloud.run(&["run", "services", "update-traffic", "a", words]);
        assert_eq!(ran.code, 1);
        assert!(ran.err.contains(want), "{words}: {}", ran.err);
    }
    let none = cloud.run(&["run", "services", "update-traffic", "a"]);
    assert!(
        none.err.contains("No traffic configuration change requested."),
        "{}",
        none.err
    );
    assert!(!cloud.state().seen.iter().any(|call| call.starts_with("PUT")));
}

#[test]
fn revisions_are_shown_and_deleted() {
    let cloud = Cloud::start();
    deploy(&cloud, "a");
    let shown = cloud.run(&["run", "revisions", "describe", "a-00001-abc"]).ok().out;
    assert!(shown.contains("Revision a-00001-abc in region us-central1"), "{shown}");
    assert!(shown.contains("Image digest:"), "{shown}");
    let ran = cloud
        .run(&["run", "revisions", "delete", "a-00001-abc", "--quiet"])
        .ok();
    assert!(ran.err.ends_with("Deleted revision [a-00001-abc].\n"), "{}", ran.err);
    let none = cloud.run(&["run", "revisions", "delete", "a-00001-abc", "--quiet"]);
    assert!(none.err.contains("Cannot find revision [a-00001-abc]"), "{}", none.err);
}

#[test]
fn a_file_replaces_a_service() {
    let cloud = Cloud::start();
    let file = cloud.dir.path().join("service.yaml");
    let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: a\n  namespace: 123\n\
                spec:\n  template:\n    spec:\n      containers:\n      - image: i:v1\nstatus:\n  url: x\n";
    std::fs::write(&file, text).expect("a file");
    let path = file.to_str().expect("text");
    let tried = cloud.run(&["run", "services", "replace", path, "--dry-run"]).ok();
    assert!(
        tried.err.contains("has been validated for service [a]"),
        "{}",
        tried.err
    );
    assert!(cloud.state().services.is_empty());
    for _ in 0..2 {
        let ran = cloud.run(&["run", "services", "replace", path]).ok();
        assert!(
            ran.err
                .ends_with("New configuration has been applied to service [a].\nURL: https://a-h-uc.test\n"),
            "{}",
            ran.err
        );
    }
    assert_eq!(cloud.state().written["metadata"]["namespace"], "123");
    assert!(cloud.state().written.get("status").is_none());
    std::fs::write(&file, "kind: Job\n").expect("a file");
    let wrong = cloud.run(&["run", "services", "replace", path]);
    assert!(wrong.err.contains("kind is [Job], expected Service"), "{}", wrong.err);
}

#[test]
fn a_rollback_works_after_a_deploy_that_failed() {
    let cloud = Cloud::start();
    deploy(&cloud, "a");
    let failed = cloud.run(&["run", "deploy", "a", "--image=bad", "--quiet"]);
    assert_eq!(failed.code, 1);
    assert!(
        failed.err.contains("The container exited with code 3"),
        "{}",
        failed.err
    );
    let shown = cloud.run(&["run", "services", "describe", "a"]).ok().out;
    assert!(shown.starts_with("! Service a"), "{shown}");
    let back = cloud.run(&[
        "run",
        "services",
        "update-traffic",
        "a",
        "--to-revisions=a-00001-abc=100",
    ]);
    let back = back.ok();
    assert!(back.out.contains("  100% a-00001-abc"), "{}", back.out);
    assert!(back.err.ends_with("Routing traffic... done\nDone.\n"), "{}", back.err);
}
