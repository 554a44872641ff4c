//! How many instances there are when the service has bounds of its own, and under Knative's rules.

use std::{
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::User;

/// Instances of the service that run.
fn running(user: &mut User, service: &str) -> usize {
    let count = user.ok(&format!("pgrep -fc \"^/probe {service}-$HTTP_PORT\\$\" || true"));
    count.parse().expect("a number")
}

#[track_caller]
fn comes_to(user: &mut User, service: &str, what: &str, expected: impl Fn(usize) -> bool) -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let count = running(user, service);
        if expected(count) {
            return count;
        }
        if Instant::now() >= deadline {
            let why = user.ok(&format!("gcloud run services why-scaled {service} $REGION"));
            panic!("{what}: {count} instances run after 30 s\n{why}");
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Puts a service of the probe, with annotations of the service and of its template, a line each.
fn replace(user: &mut User, service: &str, image: &str, own: &[&str], template: &[&str]) {
    let lines = |of: &[&str], indent: &str| -> String {
        if of.is_empty() {
            return String::new();
        }
        let lines = of.iter().map(|line| format!("{indent}  {line}\n"));
        std::iter::once(format!("{indent}annotations:\n"))
            .chain(lines)
            .collect()
    };
    let document = format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {service}\n{}spec:\n  template:\n    metadata:\n      labels: {{e2e: bounds}}\n{}    spec:\n      containers:\n      - image: {image}\n        args: [{service}-$HTTP_PORT]\n",
        lines(own, "  "),
        lines(template, "      "),
    );
    user.ok(&format!("cat > service.yaml <<END\n{document}END"));
    user.ok("gcloud run services replace service.yaml $REGION");
}

#[test]
fn a_service_has_its_own_minimum_and_a_manual_number() {
    let mut user = User::of_homerun();
    let image = user.import_probe("own");
    let minimum = ["run.googleapis.com/minScale: '2'"];
    replace(&mut user, "own", &image, &minimum, &[]);
    comes_to(&mut user, "own", "a minimum of 2", |count| count == 2);
    // Longer than the idle retention of 3 s.
    thread::sleep(Duration::from_secs(4));
    assert_eq!(running(&mut user, "own"), 2, "the minimum stays");
    let manual = |number: u32| format!("run.googleapis.com/manualInstanceCount: '{number}'");
    let mode = "run.googleapis.com/scalingMode: manual";
    replace(&mut user, "own", &image, &[mode, &manual(3)], &[]);
    comes_to(&mut user, "own", "manual scaling to 3", |count| count == 3);
    thread::sleep(Duration::from_secs(4));
    assert_eq!(running(&mut user, "own"), 3, "whatever is asked");
    replace(&mut user, "own", &image, &[mode, &manual(1)], &[]);
    comes_to(&mut user, "own", "manual scaling to 1", |count| count == 1);
    let rules = user.ok("gcloud run services why-scaled own $REGION --format='value(rule)'");
    assert!(
        rules.lines().next() == Some("manual") && rules.contains("floor"),
        "{rules}"
    );
    user.leaves();
}

#[test]
fn knatives_annotations_follow_knatives_rules() {
    let mut user = User::of_homerun();
    let image = user.import_probe("kn");
    let annotations = [
        "autoscaling.knative.dev/target: '1'",
        "autoscaling.knative.dev/window: 6s",
    ];
    replace(&mut user, "kn", &image, &[], &annotations);
    user.ok("gcloud run services add-iam-policy-binding kn $REGION --member=allUsers --role=roles/run.invoker");
    let url = user.describe("kn", "value(status.url)").trim().to_owned();
    user.ok(&format!(
        "curl --fail --parallel --parallel-immediate '{url}/hold?ms=9000&n=[1-3]' > held 2>&1 & HELD=$!"
    ));
    // Three at a target of 0.7 are five; Cloud Run's rules would have one for eighty.
    comes_to(&mut user, "kn", "three requests at a target of 1", |count| count == 5);
    user.ok("wait $HELD");
    comes_to(&mut user, "kn", "after a window without requests", |count| count < 5);
    let rules = user.ok("gcloud run services why-scaled kn $REGION --format='value(rule)'");
    assert!(rules.contains("panic"), "{rules}");
    user.leaves();
}
