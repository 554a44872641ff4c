//! Creating, replacing, deleting: documents as gcloud sends them, what is stored, what is answered.

use model::{CpuAllocation, Entry, Sandbox};
use serde_json::{Value, json};

use crate::setting::{REVISIONS, RUN, SERVICES, Setting, deploy, golden, pass};

#[tokio::test]
async fn the_first_deploy_from_document_to_ready() {
    let setting = Setting::new().await;
    let created = setting.create(&deploy("my-api")).await;
    golden("created", &created, &created);
    assert_eq!(
        setting.service("my-api").await,
        created,
        "what was answered is what is read"
    );

    setting.settle("my-api", true).await;
    let ready = setting.service("my-api").await;
    golden("ready", &ready, &created);
    let conditions = ready["status"]["conditions"].as_array().expect("conditions");
    let all: Vec<_> = conditions
        .iter()
        .map(|c| (c["type"].as_str(), c["status"].as_str()))
        .collect();
    assert_eq!(
        all,
        [
            (Some("Ready"), Some("True")),
            (Some("ConfigurationsReady"), Some("True")),
            (Some("RoutesReady"), Some("True"))
        ]
    );
    let revision = setting.get(&format!("{REVISIONS}/my-api-00001-xyb")).await;
    golden("revision", &revision, &created);
    let base = SERVICES.replace("/services", "");
    golden(
        "configuration",
        &setting.get(&format!("{base}/configurations/my-api")).await,
        &created,
    );
    golden("route", &setting.get(&format!("{base}/routes/my-api")).await, &created);
    let journal = setting.journal.lock().expect("no panic before");
    assert!(
        matches!(journal.as_slice(), [Entry::Audit(record)]
            if record.method == "google.cloud.run.v1.Services.CreateService"
                && record.caller == "owner@my-project.iam.gserviceaccount.com"
                && record.allowed),
        "{journal:?}"
    );
}

#[tokio::test]
async fn sending_back_what_was_read_changes_nothing() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    let read = setting.service("my-api").await;
    let before = setting.stored("my-api");
    let answered = setting.replace(&read).await;
    let after = setting.stored("my-api");
    assert_eq!((after.generation, after.template_generation), (1, 1));
    assert_eq!(
        (&after.template, &after.traffic, after.updated),
        (&before.template, &before.traffic, before.updated)
    );
    assert_eq!(
        answered["status"]["conditions"][0]["status"], "True",
        "nothing is under way"
    );
    // Also with the project's number for a namespace, as Google's answers have it.
    let mut read = setting.service("my-api").await;
    read["metadata"]["namespace"] = setting.surface.site.number().to_string().into();
    setting.replace(&read).await;
}

#[tokio::test]
async fn every_setting_of_the_tutorial_is_stored_and_shown() {
    let setting = Setting::new().await;
    let mut document = deploy("my-api");
    let template = &mut document["spec"]["template"];
    template["metadata"]["annotations"] = json!({
        "autoscaling.knative.dev/minScale": "1",
        "autoscaling.knative.dev/maxScale": "10",
        "run.googleapis.com/cpu-throttling": "False",
        "run.googleapis.com/startup-cpu-boost": "FALSE",
        "run.googleapis.com/execution-environment": "gen2",
        "example.com/note": "kept",
    });
    template["spec"]["containerConcurrency"] = "20".into();
    template["spec"]["timeoutSeconds"] = "600".into();
    template["spec"]["serviceAccountName"] = "api-runner@my-project.iam.gserviceaccount.com".into();
    let container = &mut template["spec"]["containers"][0];
    container["resources"] = json!({ "limits": { "cpu": 2, "memory": "1Gi" } });
    container["ports"] = json!([{ "name": "h2c", "containerPort": 9000 }]);
    container["env"] = json!([{ "name": "A", "value": "1" }, { "name": "EMPTY" }, { "name": "B", "value": "x=y, z" }]);
    container["command"] = json!(["/bin/app"]);
    container["args"] = json!(["--flag", ""]);
    container["workingDir"] = "/srv".into();
    container["startupProbe"] = json!({ "tcpSocket": { "port": 9000 }, "periodSeconds": 5, "timeoutSeconds": 2 });
    document["metadata"]["labels"] = json!({ "team": "web", "cloud.googleapis.com/location": "mars" });

    let (status, refused) = setting.call("POST", SERVICES, Some(&document)).await;
    assert_eq!(status, 403, "no such account: {refused}");
    setting.account("api-runner", &[]).await;
    let shown = setting.create(&document).await;
    let stored = setting.stored("my-api");
    let template = &stored.template;
    assert_eq!((template.scaling.min, template.scaling.max.get()), (1, 10));
    assert_eq!(template.cpu_allocation, Some(CpuAllocation::Instance));
    assert_eq!(template.startup_cpu_boost, Some(false));
    assert_eq!(template.sandbox, Some(Sandbox::Gen2));
    assert_eq!((template.concurrency.get(), template.timeout.seconds()), (20, 600));
    assert_eq!(
        template.service_account.as_deref(),
        Some("api-runner@my-project.iam.gserviceaccount.com")
    );
    assert_eq!(template.container.resources.cpu.millis(), 2000);
    assert_eq!(template.container.env[1], model::EnvVar::literal("EMPTY", ""));
    assert_eq!(template.container.args, ["--flag", ""]);
    assert_eq!(template.container.startup_probe.as_ref().expect("a probe").failures, 3);
    golden("settings", &shown["spec"], &shown);
    assert_eq!(
        shown["metadata"]["labels"],
        json!({ "team": "web", "cloud.googleapis.com/location": "us-central1" })
    );
    setting.replace(&shown).await;
    assert_eq!(setting.stored("my-api").generation, 1, "read back it is the same");
}

#[tokio::test]
async fn concurrency_follows_the_cpu_when_unset() {
    let setting = Setting::new().await;
    let mut document = deploy("my-api");
    document["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "0.5".into();
    let shown = setting.create(&document).await;
    assert_eq!(shown["spec"]["template"]["spec"]["containerConcurrency"], 1);
}

#[tokio::test]
async fn a_changed_template_makes_the_next_revision() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    pass(10);
    let mut document = setting.service("my-api").await;
    document["spec"]["template"]["metadata"]["labels"]["client.knative.dev/nonce"] = "other".into();
    let answered = setting.replace(&document).await;
    assert_eq!(answered["metadata"]["generation"], 2);
    assert_eq!(answered["status"]["observedGeneration"], 2);
    assert_eq!(
        answered["status"]["conditions"][0]["status"], "Unknown",
        "not the old one's Ready"
    );
    assert_eq!(answered["status"]["latestReadyRevisionName"], "my-api-00001-xyb");
    setting.settle("my-api", false).await;
    let failed = setting.service("my-api").await;
    assert_eq!(failed["status"]["conditions"][0]["reason"], "HealthCheckContainerError");
    assert_eq!(
        failed["status"]["conditions"][0]["message"],
        "the container exited with code 7"
    );
    assert_eq!(failed["status"]["latestCreatedRevisionName"], "my-api-00002-xyc");
    assert_eq!(
        failed["status"]["traffic"][0]["revisionName"], "my-api-00001-xyb",
        "traffic stays"
    );
}

#[tokio::test]
async fn traffic_alone_keeps_the_template() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    let mut document = setting.service("my-api").await;
    document["spec"]["template"]["metadata"]["labels"]["client.knative.dev/nonce"] = "two".into();
    setting.replace(&document).await;
    setting.settle("my-api", true).await;
    let mut document = setting.service("my-api").await;
    // The tutorial's own spelling, without the suffix.
    document["spec"]["traffic"] = json!([
        { "revisionName": "my-api-00001", "percent": 90 },
        { "revisionName": "my-api-00002", "percent": "10" },
        { "revisionName": "my-api-00001", "tag": "blue" },
    ]);
    let answered = setting.replace(&document).await;
    assert_eq!(answered["metadata"]["generation"], 3);
    assert_eq!(
        answered["spec"]["traffic"],
        json!([
            { "revisionName": "my-api-00001-xyb", "percent": 90 },
            { "revisionName": "my-api-00002-xyc", "percent": 10 },
            { "revisionName": "my-api-00001-xyb", "tag": "blue" },
        ])
    );
    assert_eq!(setting.stored("my-api").template_generation, 2);
    setting.settle("my-api", true).await;
    let routed = setting.service("my-api").await;
    assert_eq!(routed["status"]["conditions"][0]["status"], "True");
    let host = routed["status"]["url"]
        .as_str()
        .expect("a url")
        .trim_start_matches("https://")
        .to_owned();
    assert_eq!(
        routed["status"]["traffic"][2],
        json!({ "revisionName": "my-api-00001-xyb", "tag": "blue", "url": format!("https://blue---{host}") })
    );
}

#[tokio::test]
async fn a_tagged_revision_without_traffic() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    // gcloud names the revision itself and refers to it before it exists.
    let mut document = setting.service("my-api").await;
    document["spec"]["template"]["metadata"]["name"] = "my-api-00002-fub".into();
    document["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{ "name": "COLOR", "value": "green" }]);
    document["spec"]["traffic"] = json!([
        { "percent": 100, "revisionName": "my-api-00001-xyb" },
        { "revisionName": "my-api-00002-fub", "tag": "green" },
    ]);
    let answered = setting.replace(&document).await;
    assert_eq!(answered["status"]["conditions"][0]["status"], "Unknown");
    assert_eq!(setting.settle("my-api", true).await, "my-api-00002-fub");
    let ready = setting.service("my-api").await;
    assert_eq!(
        ready["status"]["traffic"][0],
        json!({ "revisionName": "my-api-00001-xyb", "percent": 100 })
    );
    assert!(
        ready["status"]["traffic"][1]["url"]
            .as_str()
            .expect("a url")
            .starts_with("https://green---my-api-")
    );

    // update-traffic sends the named template unchanged: no revision, no conflict.
    let mut document = ready.clone();
    document["spec"]["traffic"][0]["percent"] = 50.into();
    document["spec"]["traffic"][1]["percent"] = 50.into();
    setting.replace(&document).await;
    assert_eq!(setting.stored("my-api").template_generation, 2);

    // The same name with another template.
    let mut document = setting.service("my-api").await;
    document["spec"]["template"]["spec"]["timeoutSeconds"] = 7.into();
    let (status, refused) = setting
        .call("PUT", &format!("{SERVICES}/my-api"), Some(&document))
        .await;
    assert_eq!((status, &refused["error"]["status"]), (409, &json!("ALREADY_EXISTS")));
    assert!(
        refused["error"]["message"]
            .as_str()
            .expect("text")
            .contains("my-api-00002-fub"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_name_taken_by_another_service_is_refused() {
    let setting = Setting::new().await;
    let mut document = deploy("my");
    document["spec"]["template"]["metadata"]["name"] = "my-api-one".into();
    setting.create(&document).await;
    setting.settle("my", true).await;
    let mut other = deploy("my-api");
    other["spec"]["template"]["metadata"]["name"] = "my-api-one".into();
    let (status, refused) = setting.call("POST", SERVICES, Some(&other)).await;
    assert_eq!(status, 409, "{refused}");
}

#[tokio::test]
async fn labels_of_the_service_alone_make_no_revision() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    let mut document = setting.service("my-api").await;
    let version = document["metadata"]["resourceVersion"].clone();
    document["metadata"]["labels"]["team"] = "web".into();
    document["metadata"]["annotations"]["run.googleapis.com/description"] = "an API".into();
    let answered = setting.replace(&document).await;
    assert_eq!(answered["metadata"]["generation"], 1);
    assert_ne!(answered["metadata"]["resourceVersion"], version);
    assert_eq!(answered["metadata"]["labels"]["team"], "web");
    assert_eq!(
        answered["metadata"]["annotations"]["run.googleapis.com/description"],
        "an API"
    );
    assert_eq!(answered["status"]["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn conflicts() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    let (status, twice) = setting.call("POST", SERVICES, Some(&deploy("my-api"))).await;
    assert_eq!((status, &twice["error"]["status"]), (409, &json!("ALREADY_EXISTS")));
    let read = setting.service("my-api").await;
    let mut first = read.clone();
    first["metadata"]["labels"]["a"] = "1".into();
    setting.replace(&first).await;
    let (status, stale) = setting.call("PUT", &format!("{SERVICES}/my-api"), Some(&read)).await;
    assert_eq!((status, &stale["error"]["status"]), (409, &json!("ABORTED")));
    let mut unversioned = read;
    unversioned["metadata"]
        .as_object_mut()
        .expect("an object")
        .remove("resourceVersion");
    setting.replace(&unversioned).await;

    let (status, absent) = setting
        .call("PUT", &format!("{SERVICES}/other"), Some(&deploy("other")))
        .await;
    assert_eq!((status, &absent["error"]["status"]), (404, &json!("NOT_FOUND")));
    assert_eq!(absent["error"]["details"][0]["domain"], "run.googleapis.com");
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let setting = Setting::new().await;
    let path = format!("{SERVICES}?dryRun=all&alt=json");
    let (status, answered) = setting.call("POST", &path, Some(&deploy("my-api"))).await;
    assert_eq!(
        (status, &answered["metadata"]["generation"]),
        (200, &json!(1)),
        "{answered}"
    );
    let (status, _) = setting.call("GET", &format!("{SERVICES}/my-api"), None).await;
    assert_eq!(status, 404);
    setting.create(&deploy("my-api")).await;
    let before = setting.service("my-api").await;
    let mut changed = before.clone();
    changed["spec"]["template"]["spec"]["timeoutSeconds"] = 7.into();
    let one = format!("{SERVICES}/my-api?dryRun=all");
    let (status, answered) = setting.call("PUT", &one, Some(&changed)).await;
    assert_eq!(
        (status, &answered["metadata"]["generation"]),
        (200, &json!(2)),
        "{answered}"
    );
    changed["spec"]["template"]["spec"]["timeoutSeconds"] = 7000.into();
    assert_eq!(
        setting.call("PUT", &one, Some(&changed)).await.0,
        400,
        "it validates in full"
    );
    assert_eq!(setting.call("POST", &path, Some(&deploy("my-api"))).await.0, 409);
    assert_eq!(setting.call("DELETE", &one, None).await.0, 200);
    assert_eq!(setting.service("my-api").await, before);
    let journal = setting.journal.lock().expect("no panic before");
    assert_eq!(journal.len(), 1, "only the real create is a write");
}

#[tokio::test]
async fn traffic_goes_only_where_it_can() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    let mut document = setting.service("my-api").await;
    document["spec"]["template"]["spec"]["timeoutSeconds"] = 7.into();
    setting.replace(&document).await;
    setting.settle("my-api", false).await;
    let good = setting.service("my-api").await;
    let longest = "t".repeat(40);
    let too_long = "t".repeat(41);
    for (traffic, field, says) in [
        (
            json!([{ "revisionName": "my-api-00002-xyc", "percent": 100 }]),
            "spec.traffic[0].revisionName",
            "failed",
        ),
        (
            json!([{ "latestRevision": true, "percent": 100 }, { "revisionName": "my-api-00002-xyc", "tag": "x" }]),
            "spec.traffic[1].revisionName",
            "(tag x) failed",
        ),
        (
            json!([{ "revisionName": "my-api-00003", "percent": 100 }]),
            "spec.traffic[0].revisionName",
            "does not exist",
        ),
        (
            json!([{ "revisionName": "my-api-00001-xyb", "percent": 99 }]),
            "spec.traffic",
            "99",
        ),
        (
            json!([{ "latestRevision": true, "percent": 100, "tag": "x" }, { "latestRevision": true, "tag": "x" }]),
            "spec.traffic[1].tag",
            "twice",
        ),
        (
            json!([{ "latestRevision": true, "percent": 100, "tag": too_long }]),
            "spec.traffic[0].tag",
            "at most 40",
        ),
        (
            json!([{ "latestRevision": true, "percent": 100, "tag": "UP" }]),
            "spec.traffic[0].tag",
            "\"UP\"",
        ),
        (json!([{ "percent": 100 }]), "spec.traffic[0].revisionName", "required"),
        (
            json!([{ "latestRevision": true, "percent": 101 }]),
            "spec.traffic[0].percent",
            "0 to 100",
        ),
        (
            json!([{ "latestRevision": true, "revisionName": "my-api-00001-xyb", "percent": 100 }]),
            "spec.traffic[0].revisionName",
            "exclude",
        ),
        (
            json!([{ "configurationName": "my-api", "latestRevision": true, "percent": 100 }]),
            "spec.traffic[0].configurationName",
            "not served",
        ),
    ] {
        let mut document = good.clone();
        document["spec"]["traffic"] = traffic.clone();
        let (status, refused) = setting
            .call("PUT", &format!("{SERVICES}/my-api"), Some(&document))
            .await;
        assert_eq!(status, 400, "{traffic}: {refused}");
        let violation = &refused["error"]["details"][0]["fieldViolations"][0];
        assert_eq!(violation["field"], field, "{traffic}: {refused}");
        assert!(
            violation["description"].as_str().expect("text").contains(says),
            "{traffic}: {refused}"
        );
    }
    let mut document = good;
    document["spec"]["traffic"] = json!([{ "latestRevision": true, "percent": 100, "tag": longest }]);
    setting.replace(&document).await;
}

#[tokio::test]
async fn a_revision_still_deploying_is_no_new_target() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    let mut document = setting.service("my-api").await;
    document["spec"]["template"]["metadata"]["name"] = "my-api-next".into();
    document["spec"]["traffic"] = json!([{ "revisionName": "my-api-00001-xyb", "percent": 100 }]);
    setting.replace(&document).await;
    let name = setting.settle("my-api", true).await;
    // Back to the beginning of its way.
    setting
        .surface
        .store
        .transact(move |tx| {
            let mut revision = tx
                .snapshot()
                .revisions
                .values()
                .find(|revision| revision.key.name.as_str() == name)
                .expect("made")
                .as_ref()
                .clone();
            revision.state = model::RevisionState::Resolving;
            tx.put_revision(revision);
            Ok::<_, ()>(())
        })
        .await
        .expect("it is written");
    let mut document = setting.service("my-api").await;
    document["spec"]["template"]["metadata"]["name"] = Value::Null;
    document["spec"]["template"]["spec"]["timeoutSeconds"] = 9.into();
    document["spec"]["traffic"] = json!([
        { "revisionName": "my-api-00001-xyb", "percent": 100 },
        { "revisionName": "my-api-next", "tag": "next" },
    ]);
    let (status, refused) = setting
        .call("PUT", &format!("{SERVICES}/my-api"), Some(&document))
        .await;
    assert_eq!(status, 400, "{refused}");
    assert!(refused.to_string().contains("is not ready yet"), "{refused}");
}

#[tokio::test]
async fn the_implicit_probe_follows_the_port() {
    let setting = Setting::new().await;
    let mut document = setting.create(&deploy("my-api")).await;
    // A client that moves the port and sends the rest back as it was shown.
    document["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 9000 }]);
    let answered = setting.replace(&document).await;
    let probe = &answered["spec"]["template"]["spec"]["containers"][0]["startupProbe"];
    assert_eq!(probe["tcpSocket"]["port"], 9000);
    assert_eq!(setting.stored("my-api").template.container.startup_probe, None);
}

#[tokio::test]
async fn deleting() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    for seconds in [7, 8, 9] {
        let mut document = setting.service("my-api").await;
        document["spec"]["template"]["spec"]["timeoutSeconds"] = seconds.into();
        if seconds == 8 {
            document["spec"]["traffic"] = json!([
                { "latestRevision": true, "percent": 100 },
                { "revisionName": "my-api-00001", "tag": "old" },
            ]);
        }
        setting.replace(&document).await;
        setting.settle("my-api", true).await;
    }
    for (name, says) in [("my-api-00001-xyb", "a tag"), ("my-api-00004-xye", "latest")] {
        let (status, refused) = setting.call("DELETE", &format!("{REVISIONS}/{name}"), None).await;
        assert_eq!(
            (status, &refused["error"]["status"]),
            (400, &json!("FAILED_PRECONDITION")),
            "{refused}"
        );
        assert!(
            refused["error"]["message"].as_str().expect("text").contains(says),
            "{refused}"
        );
    }
    let (status, gone) = setting
        .call("DELETE", &format!("{REVISIONS}/my-api-00002-xyc"), None)
        .await;
    assert_eq!((status, &gone["status"]), (200, &json!("Success")));
    assert_eq!(
        setting
            .call("GET", &format!("{REVISIONS}/my-api-00002-xyc"), None)
            .await
            .0,
        404
    );
    assert_eq!(
        setting
            .call("DELETE", &format!("{REVISIONS}/my-api-00002-xyc"), None)
            .await
            .0,
        404
    );

    let orphan = json!({ "propagationPolicy": "Orphan" });
    assert_eq!(
        setting
            .call("DELETE", &format!("{SERVICES}/my-api"), Some(&orphan))
            .await
            .0,
        400
    );
    let (status, gone) = setting.call("DELETE", &format!("{SERVICES}/my-api"), None).await;
    assert_eq!(
        (status, &gone["kind"], &gone["details"]["name"]),
        (200, &json!("Status"), &json!("my-api"))
    );
    assert_eq!(setting.call("GET", &format!("{SERVICES}/my-api"), None).await.0, 404);
    assert_eq!(setting.call("DELETE", &format!("{SERVICES}/my-api"), None).await.0, 404);
    assert_eq!(setting.get(REVISIONS).await["items"], json!([]));
    let (status, _) = setting
        .call_at(RUN, "GET", &format!("{REVISIONS}/my-api-00004-xye"), None)
        .await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn labels_copied_to_the_template_by_gcloud() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    setting.settle("my-api", true).await;
    // `services update --update-labels` sends all labels it read, and its own, in both places.
    let mut document = setting.service("my-api").await;
    let labels = json!({ "cloud.googleapis.com/location": "us-central1", "x": "y" });
    document["metadata"]["labels"] = labels.clone();
    document["spec"]["template"]["metadata"]["labels"] = labels;
    let answered = setting.replace(&document).await;
    assert_eq!(answered["spec"]["template"]["metadata"]["labels"], json!({ "x": "y" }));
    assert_eq!(setting.stored("my-api").template_generation, 2);
}
