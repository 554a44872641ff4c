//! Names and numbers outside their rules: the exact words, and nothing stored.

use homerun_e2e::Client;

use super::Stand;

#[test]
fn names_and_numbers() {
    let mut stand = Stand::new(Client::Homerun);
    let service_rule = "only lowercase letters, digits and hyphens; must begin with a letter, may not end with a hyphen, \
                        must not contain three hyphens in a row, and must be less than 50 characters";
    let long = "a".repeat(50);
    for name in ["Upper", "1x", "x-", "under_score", "a---b", "x.y", long.as_str()] {
        let command = format!("gcloud run deploy {name} $REGION --quiet --image=$HELLO");
        let error = format!("(gcloud.run.deploy) metadata.name: service name \"{name}\" is invalid: {service_rule}");
        stand.refused(&command, 1, &error);
        assert_eq!(
            stand.call("GET", &format!("/{name}"), "").status,
            404,
            "{name} was not made"
        );
    }
    let template = "spec.template.spec.containers[0]";
    let annotation = "spec.template.metadata.annotations";
    let label = "lowercase letters, digits, '_' and '-'";
    let suffix = "s".repeat(60);
    // The flags, the exit status, and what is said about them.
    let table: &[(&str, i32, String)] = &[
        ("--memory=5x", 1, format!("{template}.resources.limits.memory: \"5x\" is not an amount of memory: a number of bytes, or one with a unit such as 512Mi or 2Gi")),
        ("--memory=-1Mi", 1, format!("{template}.resources.limits.memory: \"-1Mi\" is not an amount of memory: a number of bytes, or one with a unit such as 512Mi or 2Gi")),
        ("--memory=127Mi", 1, format!("{template}.resources.limits.memory: 127Mi is too little: at least 128Mi")),
        ("--memory=33Gi --cpu=8", 1, format!("{template}.resources.limits.memory: 33Gi is too much: at most 32Gi")),
        ("--cpu=0.07 --concurrency=1", 1, format!("{template}.resources.limits.cpu: 0.07 is too little: at least 0.08")),
        ("--cpu=3", 1, format!("{template}.resources.limits.cpu: 3 is not allowed: 0.08 to 1, 2, 4, 6 or 8")),
        ("--cpu=x", 1, format!("{template}.resources.limits.cpu: \"x\" is not an amount of CPU: a number of CPUs such as 1 or 0.5, or of thousandths such as 500m")),
        ("--concurrency=1001", 1, "spec.template.spec.containerConcurrency: 1001 is out of range: 1 to 1000".to_owned()),
        ("--concurrency=0", 2, "invalid value '0' for '--concurrency <N|default>': [0] is not a whole number of at least 1, or default".to_owned()),
        ("--timeout=3601", 1, "spec.template.spec.timeoutSeconds: 3601 is out of range: 1 to 3600 seconds".to_owned()),
        ("--timeout=1x", 2, "invalid value '1x' for '--timeout <DURATION>': [1x] is no duration such as 60, 60s, 10m or 1h".to_owned()),
        ("--port=65536", 2, "invalid value '65536' for '--port <PORT|default>': [65536] is not a whole number from 1 to 65535, or default".to_owned()),
        ("--port=http", 2, "invalid value 'http' for '--port <PORT|default>': [http] is not a whole number from 1 to 65535, or default".to_owned()),
        ("--max-instances=0", 1, format!("{annotation}[autoscaling.knative.dev/maxScale]: \"0\" is out of range: 1 to 1000")),
        ("--max-instances=1001", 1, format!("{annotation}[autoscaling.knative.dev/maxScale]: \"1001\" is out of range: 1 to 1000")),
        ("--min-instances=5 --max-instances=2", 1, format!("{annotation}[autoscaling.knative.dev/minScale]: 5 is more than the maximum of 2 instances")),
        ("--min-instances=-1", 2, "invalid value '-1' for '--min-instances <N|default>': [-1] is not a whole number of at least 0, or default".to_owned()),
        ("--set-env-vars=PORT=1", 1, format!("{template}.env[0].name: PORT is reserved: Cloud Run sets it itself")),
        ("--set-env-vars=K_SERVICE=x", 1, format!("{template}.env[0].name: K_SERVICE is reserved: Cloud Run sets it itself")),
        ("--set-env-vars=A", 2, "invalid value 'A' for '--set-env-vars <KEY=VALUE,...>': [A] is not of the form KEY=VALUE".to_owned()),
        ("--labels=a=B", 1, format!("metadata.labels[a]: \"B\" is no value of a label: {label}, and at most 63 characters\nspec.template.metadata.labels[a]: \"B\" is no value of a label: {label}, and at most 63 characters")),
        ("--revision-suffix=Up", 1, "spec.template.metadata.name: revision name \"kept-Up\" is invalid: only lowercase, digits, and hyphens; must begin with letter, and may not end with hyphen; must be less than 64 characters".to_owned()),
        ("--service-account=me", 1, "spec.template.spec.serviceAccountName: \"me\" is not the e-mail of a service account, such as NAME@PROJECT.iam.gserviceaccount.com".to_owned()),
        ("--execution-environment=gen3", 2, "invalid value 'gen3' for '--execution-environment <EXECUTION_ENVIRONMENT>' [possible values: gen1, gen2]".to_owned()),
        ("--set-secrets=A=b", 1, "No secret version specified for A. Use A:latest to reference the latest version.".to_owned()),
        ("--set-secrets=/a=b:1", 1, "Mount path [/a] must be in the form /<mountPath>/<path>".to_owned()),
        ("--no-such-flag", 2, "unrecognized arguments: --no-such-flag".to_owned()),
        ("--region=Moon", 2, "--region: region \"Moon\" is invalid: only lowercase letters, digits and hyphens; must begin with a letter, and at most 40 characters".to_owned()),
        ("--project=five5", 2, "--project: project id \"five5\" is invalid: 6 to 30 lowercase letters, digits and hyphens; must begin with a letter and may not end with a hyphen".to_owned()),
        ("--tag=Up", 1, "spec.traffic[2].tag: tag \"Up\" is invalid: only lowercase letters, digits and hyphens; must begin with a letter, may not end with a hyphen, and at most 46 characters".to_owned()),
    ];
    for (flags, status, error) in table {
        let command = format!("gcloud run deploy kept $REGION --quiet --image=$HELLO {flags}");
        stand.refused(&command, *status, &format!("(gcloud.run.deploy) {error}"));
    }
    // All faults are told at once. Of a suffix that is too long clients cut the service's name, as gcloud does.
    let text = stand.user.refused(&format!(
        "gcloud run deploy kept $REGION --quiet --image=$HELLO --cpu=9 --timeout=9999 --revision-suffix={suffix}"
    ));
    for named in [
        "limits.cpu: 9 is not allowed",
        "timeoutSeconds: 9999 is out of range",
        "metadata.name: \"ke-s",
    ] {
        assert!(text.contains(named), "{text}");
    }
    for (command, status, error) in [
        (
            "gcloud run services describe nothing $REGION",
            1,
            "(gcloud.run.services.describe) Cannot find service [nothing]",
        ),
        (
            "gcloud run services delete nothing $REGION --quiet",
            1,
            "(gcloud.run.services.delete) Service [nothing] could not be found.",
        ),
        (
            "gcloud run services update nothing $REGION --memory=1Gi",
            1,
            "(gcloud.run.services.update) Service [nothing] could not be found.",
        ),
        (
            "gcloud run services add-iam-policy-binding kept $REGION --member=nobody --role=roles/run.invoker",
            1,
            "(gcloud.run.services.add-iam-policy-binding) policy.bindings[0].members[1]: \"nobody\" is not a member: allUsers, allAuthenticatedUsers, user:EMAIL, serviceAccount:EMAIL, group:EMAIL or domain:NAME",
        ),
        (
            "gcloud run services add-iam-policy-binding kept $REGION --member=allUsers --role=invoker",
            1,
            "(gcloud.run.services.add-iam-policy-binding) policy.bindings[1].role: \"invoker\" is not a role, such as roles/run.invoker",
        ),
    ] {
        stand.refused(command, status, error);
    }
    stand.user.leaves();
}
