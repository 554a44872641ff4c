//! Reading: lists by selector and page, regions, project names, views.

use serde_json::{Value, json};

use crate::setting::{REVISIONS, RUN, SERVICES, Setting, deploy, pass};

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().expect("a name"))
        .collect()
}

async fn three(setting: &Setting) {
    for (name, team) in [("b", "web"), ("a", "web"), ("c", "data")] {
        let mut document = deploy(name);
        document["metadata"]["labels"] = json!({ "team": team });
        setting.create(&document).await;
        setting.settle(name, true).await;
    }
}

#[tokio::test]
async fn lists_are_sorted_selected_and_paged() {
    let setting = Setting::new().await;
    assert_eq!(setting.get(SERVICES).await["items"], json!([]));
    three(&setting).await;
    let all = setting.get(SERVICES).await;
    assert_eq!(
        (&all["kind"], &all["apiVersion"]),
        (&json!("ServiceList"), &json!("serving.knative.dev/v1"))
    );
    assert_eq!(names(&all), ["a", "b", "c"]);
    assert_eq!(all["items"][0], setting.service("a").await);
    for (query, found) in [
        ("labelSelector=team%3Dweb", vec!["a", "b"]),
        ("labelSelector=team+%3D+data", vec!["c"]),
        ("labelSelector=team+notin+(web)", vec!["c"]),
        ("labelSelector=!team", vec![]),
        (
            "labelSelector=cloud.googleapis.com/location=us-central1,team=data",
            vec!["c"],
        ),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name=x", vec![]),
        ("limit=0", vec!["a", "b", "c"]),
    ] {
        let list = setting.get(&format!("{SERVICES}?{query}")).await;
        assert_eq!(names(&list), found, "{query}");
        assert!(list["metadata"].get("continue").is_none(), "{query}");
    }
    let first = setting.get(&format!("{SERVICES}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    let next = first["metadata"]["continue"].as_str().expect("more");
    let second = setting.get(&format!("{SERVICES}?limit=2&continue={next}")).await;
    assert_eq!(names(&second), ["c"]);
    assert!(second["metadata"].get("continue").is_none());
    for wrong in [
        "continue=garbage",
        "limit=-1",
        "limit=x",
        "limit=1&limit=2",
        "labelSelector=a+in+b",
        "fieldSelector=spec.x=1",
        "watch=true",
        "watch=maybe",
        "alt=proto",
        "surprise=1",
    ] {
        let (status, refused) = setting.call("GET", &format!("{SERVICES}?{wrong}"), None).await;
        assert_eq!(status, 400, "{wrong}: {refused}");
    }
}

#[tokio::test]
async fn revisions_are_found_by_their_labels() {
    let setting = Setting::new().await;
    three(&setting).await;
    let mut document = setting.service("a").await;
    document["spec"]["template"]["metadata"]["labels"]["client.knative.dev/nonce"] = "second".into();
    pass(1);
    setting.replace(&document).await;
    setting.settle("a", true).await;
    // As gcloud asks. The newest comes first.
    let of_a = setting
        .get(&format!(
            "{REVISIONS}?labelSelector=serving.knative.dev%2Fservice+%3D+a"
        ))
        .await;
    assert_eq!(
        (&of_a["kind"], names(&of_a)),
        (&json!("RevisionList"), vec!["a-00002-xyc", "a-00001-xyb"])
    );
    let second = setting
        .get(&format!(
            "{REVISIONS}?labelSelector=client.knative.dev/nonce+%3D+second"
        ))
        .await;
    assert_eq!(names(&second), ["a-00002-xyc"]);
    let active = |revision: &Value| {
        let conditions = revision["status"]["conditions"].as_array().expect("conditions").clone();
        conditions.into_iter().find(|c| c["type"] == "Active").expect("Active")["status"].clone()
    };
    assert_eq!(active(&of_a["items"][0]), "True");
    assert_eq!(active(&of_a["items"][1]), "False", "retired");
    assert_eq!(
        of_a["items"][1]["status"]["conditions"][0]["status"], "True",
        "retired is not unhealthy"
    );
    let paged = setting.get(&format!("{REVISIONS}?limit=3")).await;
    assert_eq!(names(&paged), ["a-00002-xyc", "a-00001-xyb", "b-00001-xyb"]);
    assert!(paged["metadata"]["continue"].is_string());
}

#[tokio::test]
async fn regions_are_apart() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    let paris = "europe-west9-run.googleapis.com";
    let (status, there) = setting.call_at(paris, "POST", SERVICES, Some(&deploy("my-api"))).await;
    assert_eq!(
        (status, &there["metadata"]["labels"]["cloud.googleapis.com/location"]),
        (200, &json!("europe-west9"))
    );
    assert_ne!(there["status"]["url"], setting.service("my-api").await["status"]["url"]);
    let global = "run.googleapis.com";
    let everywhere = "/v1/projects/my-project/locations/-/services";
    let (_, all) = setting.call_at(global, "GET", everywhere, None).await;
    assert_eq!(all["items"].as_array().expect("items").len(), 2);
    let (_, one) = setting
        .call_at(
            global,
            "GET",
            "/v1/projects/my-project/locations/europe-west9/services",
            None,
        )
        .await;
    assert_eq!(names(&one), ["my-api"]);
    let (status, one) = setting
        .call_at(
            global,
            "GET",
            "/v1/projects/my-project/locations/us-central1/services/my-api",
            None,
        )
        .await;
    assert_eq!(
        (status, &one["metadata"]["labels"]["cloud.googleapis.com/location"]),
        (200, &json!("us-central1"))
    );
    // The unprefixed host is the default region's for namespaced calls.
    let (_, default) = setting
        .call_at(global, "GET", &format!("{SERVICES}/my-api"), None)
        .await;
    assert_eq!(default, setting.service("my-api").await);
    let (status, locations) = setting
        .call_at(global, "GET", "/v1/projects/my-project/locations?pageSize=100", None)
        .await;
    let ids: Vec<_> = locations["locations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|l| &l["locationId"])
        .collect();
    assert_eq!(
        (status, ids),
        (200, vec![&json!("europe-west9"), &json!("us-central1")])
    );
    let (status, _) = setting.call_at(global, "POST", everywhere, Some(&deploy("x"))).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn the_project_by_id_or_number_and_no_other() {
    let setting = Setting::new().await;
    setting.create(&deploy("my-api")).await;
    let number = setting.surface.site.number().to_string();
    let by_number = SERVICES.replace("my-project", &number);
    let shown = setting.get(&format!("{by_number}/my-api")).await;
    assert_eq!(shown["metadata"]["namespace"], "my-project");
    for path in [
        SERVICES.replace("my-project", "other-project"),
        "/v1/projects/other-project/locations/-/services".to_owned(),
        "/v1/projects/other-project/locations".to_owned(),
    ] {
        let (status, refused) = setting.call_at(RUN, "GET", &path, None).await;
        assert_eq!(
            (status, &refused["error"]["status"]),
            (403, &json!("PERMISSION_DENIED")),
            "{path}"
        );
        assert!(
            refused["error"]["message"]
                .as_str()
                .expect("text")
                .contains("other-project"),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn what_is_not_there() {
    let setting = Setting::new().await;
    for path in [
        format!("{SERVICES}/none"),
        format!("{SERVICES}/None_at_all"),
        format!("{REVISIONS}/none-00001-abc"),
        SERVICES.replace("services", "routes/none"),
        SERVICES.replace("services", "configurations/none"),
    ] {
        let (status, refused) = setting.call("GET", &path, None).await;
        assert_eq!(
            (status, &refused["error"]["status"]),
            (404, &json!("NOT_FOUND")),
            "{path}"
        );
        assert_eq!(
            refused["error"]["details"][0]["@type"],
            "type.googleapis.com/google.rpc.ErrorInfo"
        );
    }
}
