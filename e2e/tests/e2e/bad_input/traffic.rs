//! Traffic that does not add up, tags given twice, revisions that cannot take it.

use homerun_e2e::Client;
use serde_json::{Value, json};

use super::{HELLO, Stand};

#[test]
fn traffic_that_does_not_add_up() {
    let mut stand = Stand::new(Client::Homerun);
    let service = |traffic: &Value| {
        json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "kept"},
            "spec": {"template": {"spec": {"containers": [{"image": HELLO}]}}, "traffic": traffic},
        })
    };
    let tag_rule = "only lowercase letters, digits and hyphens; must begin with a letter, may not end with a hyphen, and at \
                    most 46 characters";
    let table: &[(Value, String)] = &[
        (
            json!([{"latestRevision": true, "percent": 99}]),
            "spec.traffic: traffic percents must sum to 100, not 99".to_owned(),
        ),
        (
            json!([{"latestRevision": true, "percent": 60}, {"revisionName": "kept-00001", "percent": 39}]),
            "spec.traffic: traffic percents must sum to 100, not 99".to_owned(),
        ),
        (
            json!([{"latestRevision": true, "percent": 60}, {"revisionName": "kept-00001", "percent": 41}]),
            "spec.traffic: traffic percents must sum to 100, not 101".to_owned(),
        ),
        (
            json!([{"revisionName": "kept-00001", "tag": "a"}]),
            "spec.traffic: traffic percents must sum to 100, not 0".to_owned(),
        ),
        (
            json!([{"latestRevision": true, "percent": 101}]),
            "spec.traffic[0].percent: 101 is out of range: 0 to 100".to_owned(),
        ),
        (
            json!([{"latestRevision": true, "percent": -1}]),
            "spec.traffic[0].percent: -1 is out of range: 0 to 100".to_owned(),
        ),
        (
            json!([{"latestRevision": true, "percent": 4_294_967_396_u64}]),
            "spec.traffic[0].percent: 4294967396 is out of range: 0 to 100".to_owned(),
        ),
        (
            json!([{"latestRevision": true, "percent": 100, "tag": "a"}, {"revisionName": "kept-00001", "tag": "a"}]),
            "spec.traffic[1].tag: tag a is given twice, a tag names one revision".to_owned(),
        ),
        (
            json!([{"latestRevision": true, "percent": 100, "tag": "T"}]),
            format!("spec.traffic[0].tag: tag \"T\" is invalid: {tag_rule}"),
        ),
        (
            json!([{"percent": 100}]),
            "spec.traffic[0].revisionName: a revisionName or latestRevision: true is required".to_owned(),
        ),
        (
            json!([{"percent": 100, "latestRevision": true, "revisionName": "kept-00001"}]),
            "spec.traffic[0].revisionName: kept-00001 and latestRevision exclude each other".to_owned(),
        ),
        (
            json!([{"percent": 100, "revisionName": "kept-00009"}]),
            "spec.traffic[0].revisionName: revision \"kept-00009\" of service \"kept\" does not exist".to_owned(),
        ),
        (json!("x"), "spec.traffic: expected a list, not a text".to_owned()),
    ];
    for (traffic, error) in table {
        // Once by YAML (JSON is YAML) through a client, once as it is.
        let file = stand.user.homerun.root().join("service.yaml");
        std::fs::write(&file, service(traffic).to_string()).expect("written");
        let command = format!("gcloud run services replace {} $REGION", file.display());
        stand.refused(&command, 1, &format!("(gcloud.run.services.replace) {error}"));
        let answer = stand.call("PUT", "/kept", service(traffic).to_string());
        let body: Value = serde_json::from_str(&answer.body).expect("an error in JSON");
        assert_eq!(
            (answer.status, &body["error"]["status"]),
            (400, &json!("INVALID_ARGUMENT")),
            "{body}"
        );
        assert_eq!(body["error"]["message"], error.as_str());
        let (field, description) = error.split_once(": ").expect("both");
        let violation = &body["error"]["details"][0]["fieldViolations"][0];
        assert_eq!(violation, &json!({"field": field, "description": description}));
    }
    for (flags, status, error) in [
        (
            "--to-revisions=kept-00001=101",
            2,
            "invalid value 'kept-00001=101' for '--to-revisions <REVISION=PERCENT,...>': traffic percentage value 101 is not between 0 and 100",
        ),
        (
            "--to-revisions=kept-00001",
            2,
            "invalid value 'kept-00001' for '--to-revisions <REVISION=PERCENT,...>': [kept-00001] is not of the form KEY=VALUE",
        ),
        (
            "--to-revisions=kept-00009=100",
            1,
            "spec.traffic[0].revisionName: revision \"kept-00009\" of service \"kept\" does not exist",
        ),
        (
            "--to-tags=nothing=100",
            1,
            "there is no revision tagged with [nothing] in the traffic allocation",
        ),
        (
            "--to-latest --to-revisions=kept-00001=100",
            2,
            "the argument '--to-latest' cannot be used with '--to-revisions <REVISION=PERCENT,...>'",
        ),
        ("", 1, "No traffic configuration change requested."),
    ] {
        let command = format!("gcloud run services update-traffic kept $REGION {flags}");
        stand.refused(
            &command,
            status,
            &format!("(gcloud.run.services.update-traffic) {error}"),
        );
    }
    // A revision that failed gets no traffic, and one that is needed is not deleted.
    stand.deploy_fails(
        "--image=$HELLO --command=/nonexistent --revision-suffix=bad",
        &["/nonexistent"],
    );
    stand.refused(
        "gcloud run services update-traffic kept $REGION --to-revisions=kept-bad=100",
        1,
        "(gcloud.run.services.update-traffic) spec.traffic[0].revisionName: revision \"kept-bad\" failed and cannot serve traffic",
    );
    let command = format!("gcloud run revisions delete {} $REGION --quiet", stand.revision);
    let error = format!(
        "(gcloud.run.revisions.delete) FAILED_PRECONDITION: revision \"{}\" cannot be deleted: traffic or a tag of service \
         \"kept\" names it",
        stand.revision
    );
    stand.refused(&command, 1, &error);
    stand.user.leaves();
}
