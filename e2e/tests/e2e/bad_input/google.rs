//! The main ones as people meet them with Google's gcloud.

use homerun_e2e::Client;
use serde_json::json;

use super::{HELLO, NOT_READY, REPOSITORY, Stand};

/// The main ones by the client that people have.
#[test]
fn googles_gcloud_tells_what_is_wrong() {
    let mut stand = Stand::new(Client::Google);
    let error = "ERROR: (gcloud.run.deploy)";
    stand.deploy_fails(
        &format!("--image={REPOSITORY}/nothing:v1"),
        &[&format!("Image '{REPOSITORY}/nothing:v1' not found.")],
    );
    stand.deploy_fails(
        "--image=$HELLO --command=/nonexistent --args=x --memory=128Mi",
        &[NOT_READY, "executable file `/nonexistent` not found"],
    );
    for (flags, named) in [
        ("--memory=64Gi", "64Gi is too much: at most 32Gi"),
        ("--concurrency=1001", "1001 is out of range: 1 to 1000"),
        ("--set-env-vars=PORT=1", "PORT is reserved"),
    ] {
        let before = stand.stored();
        let text = stand.user.refused(&format!(
            "gcloud run deploy kept $REGION --quiet --image=$HELLO {flags}"
        ));
        assert!(text.contains(error) && text.contains(named), "{flags}: {text}");
        assert_eq!(stand.stored(), before);
        stand.kept();
    }
    let service = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "kept"},
        "spec": {"template": {"spec": {"containers": [{"image": HELLO}]}}, "traffic": [{"latestRevision": true, "percent": 99}]},
    });
    let file = stand.user.homerun.root().join("service.yaml");
    std::fs::write(&file, service.to_string()).expect("written");
    let text = stand
        .user
        .refused(&format!("gcloud run services replace {} $REGION", file.display()));
    assert!(text.contains("traffic percents must sum to 100, not 99"), "{text}");
    stand.kept();
    stand.user.leaves();
}
