//! Each setting of a deploy: stored, shown, seen from inside the instance, refused with its limit when wrong.

use std::{thread, time::Duration};

use homerun_e2e::{Client, User};

/// What every line of `wanted` says must be a line of `text`, however indented.
#[track_caller]
fn shows(text: &str, wanted: &str) {
    for line in wanted.lines() {
        assert!(
            text.lines()
                .any(|printed| printed.trim_start_matches([' ', '-']) == line),
            "no \"{line}\" in\n{text}"
        );
    }
}

const SETTINGS: &str = "--memory=300Mi --cpu=0.5 --port=9090 --min-instances=1 --max-instances=3 --timeout=60 \
    --concurrency=1 --cpu-throttling --no-cpu-boost --set-env-vars=A=1,B=two --service-account=runner@my-project.iam.gserviceaccount.com \
    --labels=team=core";

const SHOWN: &str = "\
autoscaling.knative.dev/minScale: '1'
autoscaling.knative.dev/maxScale: '3'
run.googleapis.com/cpu-throttling: 'true'
run.googleapis.com/startup-cpu-boost: 'false'
team: core
containerConcurrency: 1
timeoutSeconds: 60
serviceAccountName: runner@my-project.iam.gserviceaccount.com
cpu: '0.5'
memory: 300Mi
containerPort: 9090
name: A
value: '1'
name: B
value: two";

/// A file of the instance's own cgroups, of whichever version the machine has.
fn limits(user: &mut User, url: &str) -> (String, String) {
    let mut read = |path: &str| user.get(&format!("{url}/read/sys/fs/cgroup/{path}")).trim().to_owned();
    let memory = read("memory/memory.limit_in_bytes");
    if !memory.contains("No such file") {
        let quota = read("cpu/cpu.cfs_quota_us");
        assert_eq!(read("cpu/cpu.cfs_period_us"), "100000");
        return (memory, quota);
    }
    let cpu = read("cpu.max");
    let (quota, period) = cpu.split_once(' ').expect("quota and period");
    assert_eq!(period, "100000");
    (read("memory.max"), quota.replace("max", "-1"))
}

#[test]
fn each_setting_is_shown_and_seen_inside() {
    let mut user = User::of_homerun();
    user.ok("gcloud iam service-accounts create runner");
    let url = user.deploy("settings", &format!("--image=$HELLO {SETTINGS} --command=/hello"));
    shows(&user.describe("settings", "yaml"), SHOWN);
    let revision = user.describe("settings", "value(status.latestReadyRevisionName)");
    let shown = user.ok(&format!(
        "gcloud run revisions describe {} $REGION --format=yaml",
        revision.trim()
    ));
    shows(&shown, SHOWN);
    // Nobody named one; the revision shows which one it runs in.
    shows(&shown, "run.googleapis.com/execution-environment: gen2");
    let seen = user.get(&format!("{url}/env"));
    for pair in [
        r#""PORT":"9090""#.to_owned(),
        r#""A":"1""#.to_owned(),
        r#""B":"two""#.to_owned(),
        r#""K_SERVICE":"settings""#.to_owned(),
        r#""K_CONFIGURATION":"settings""#.to_owned(),
        format!(r#""K_REVISION":"{}""#, revision.trim()),
    ] {
        assert!(seen.contains(&pair), "no {pair} in {seen}");
    }

    let image = user.import_probe("inside");
    let url = user.deploy("inside", &format!("--image={image} {SETTINGS}"));
    assert_eq!(limits(&mut user, &url), ((300 << 20).to_string(), "50000".to_owned()));
    assert_eq!(user.get(&format!("{url}/args")), "of\nimage");
    let url = user.deploy(
        "inside",
        "--image=$IMAGE --command=/probe".replace("$IMAGE", &image).as_str(),
    );
    assert_eq!(
        user.get(&format!("{url}/args")),
        "",
        "a command drops the image's arguments"
    );
    let url = user.deploy("inside", &format!("--image={image} '--args=--x=1,^,y z'"));
    assert_eq!(user.get(&format!("{url}/args")), "--x=1\n^\ny z");
    user.leaves();
}

#[test]
fn googles_gcloud_sets_them_all() {
    let mut user = User::with(&[], Client::Google);
    user.ok("gcloud iam service-accounts create runner");
    let url = user.deploy(
        "settings",
        &format!(
            "--image=$HELLO {} --command=/hello --args=x,y --execution-environment=gen2",
            SETTINGS.replace("300Mi", "600Mi").replace("--cpu=0.5", "--cpu=1")
        ),
    );
    let shown = user.describe("settings", "yaml");
    shows(
        &shown,
        &SHOWN.replace("300Mi", "600Mi").replace("cpu: '0.5'", "cpu: '1'"),
    );
    shows(&shown, "run.googleapis.com/execution-environment: gen2\n/hello\nx\ny");
    assert!(user.get(&format!("{url}/env")).contains(r#""B":"two""#));
    let said = user.refused("gcloud run deploy settings --image=$HELLO $REGION --memory=64Mi --quiet");
    assert!(
        said.contains("resources.limits.memory") && said.contains("at least 512Mi"),
        "{said}"
    );
    user.leaves();
}

/// The flags, the field and the limit that must be named. The service that was there goes on.
#[test]
fn wrong_values_are_refused_with_their_limits() {
    let mut user = User::of_homerun();
    let url = user.deploy("right", "--image=$HELLO --max-instances=3");
    let before = user.get(&url);
    for (flags, field, limit) in [
        ("--memory=64Mi", "resources.limits.memory", "at least 128Mi"),
        ("--memory=127Mi", "resources.limits.memory", "at least 128Mi"),
        ("--memory=33Gi --cpu=8", "resources.limits.memory", "at most 32Gi"),
        ("--memory=5Gi", "resources.limits.memory", "at most 4096Mi"),
        ("--memory=much", "resources.limits.memory", "512Mi"),
        ("--cpu=4", "resources.limits.memory", "at least 2Gi"),
        ("--cpu=0.07", "resources.limits.cpu", "at least 0.08"),
        ("--cpu=3", "resources.limits.cpu", "0.08 to 1, 2, 4, 6 or 8"),
        ("--cpu=0.5 --concurrency=2", "containerConcurrency", "must be 1"),
        (
            "--cpu=0.5 --concurrency=1 --no-cpu-throttling",
            "cpu-throttling",
            "at least 1 CPU",
        ),
        (
            "--cpu=0.5 --concurrency=1 --execution-environment=gen2",
            "resources.limits.cpu",
            "at least 1",
        ),
        (
            "--memory=256Mi --execution-environment=gen2",
            "resources.limits.memory",
            "at least 512Mi",
        ),
        ("--min-instances=4", "minScale", "maximum of 3"),
        ("--max-instances=0", "maxScale", "1 to 1000"),
        ("--max-instances=1001", "maxScale", "1 to 1000"),
        ("--timeout=3601", "timeoutSeconds", "1 to 3600"),
        ("--concurrency=1001", "containerConcurrency", "1 to 1000"),
        ("--set-env-vars=PORT=1", "env[0].name", "reserved"),
        ("--set-env-vars=1A=2", "env[0].name", "no digit first"),
        (
            "--service-account=me",
            "serviceAccountName",
            "NAME@PROJECT.iam.gserviceaccount.com",
        ),
        ("--labels=Team=x", "labels[Team]", "at most 63"),
        ("--labels=team=X", "labels[team]", "at most 63"),
    ] {
        let said = user.refused(&format!("gcloud run deploy right --image=$HELLO $REGION {flags}"));
        assert!(said.contains(field) && said.contains(limit), "{flags}: {said}");
    }
    // What no service could ever have is a matter of words, as in Google's client.
    for (flags, limit) in [
        ("--port=0", "1 to 65535"),
        ("--port=65536", "1 to 65535"),
        ("--timeout=0", "at least 1s"),
        ("--concurrency=0", "at least 1"),
        ("--execution-environment=gen3", "gen1, gen2"),
    ] {
        let said = user.ends(&format!("gcloud run deploy right --image=$HELLO $REGION {flags}"), 2);
        assert!(
            said.contains(flags.split('=').next().expect("a flag")) && said.contains(limit),
            "{said}"
        );
    }
    assert_eq!(user.get(&url), before, "not even another instance");
    let revisions = user.ok("gcloud run revisions list --service=right $REGION --format='value(metadata.name)'");
    assert_eq!(revisions.lines().count(), 1, "{revisions}");
    // Without the environment named, the wider limits.
    user.deploy("right", "--image=$HELLO --memory=128Mi --cpu=0.08 --concurrency=1");
    user.leaves();
}

#[test]
fn cpu_is_limited_and_taken_between_requests() {
    let mut user = User::of_homerun();
    let image = user.import_probe("cpu");
    let half = user.deploy(
        "half",
        &format!("--image={image} --cpu=0.5 --concurrency=1 --no-cpu-boost"),
    );
    let used: u64 = user.get(&format!("{half}/burn?ms=2000")).parse().expect("milliseconds");
    assert!((100..=1250).contains(&used), "{used} ms of CPU in 2 s at half a CPU");

    let count = |user: &mut User, url: &str| -> u64 { user.get(&format!("{url}/count")).parse().expect("a number") };
    let gained = |user: &mut User, url: &str| {
        let before = count(user, url);
        thread::sleep(Duration::from_millis(1500));
        count(user, url) - before
    };
    let throttled = user.deploy("throttled", &format!("--image={image} --no-cpu-boost"));
    let grown = gained(&mut user, &throttled);
    assert!(
        grown < 350,
        "a throttled instance counted {grown} in 1.5 s between requests"
    );
    let always = user.deploy("always", &format!("--image={image} --no-cpu-boost --no-cpu-throttling"));
    let grown = gained(&mut user, &always);
    assert!(grown > 450, "an instance with CPU always counted {grown} in 1.5 s");

    // No quota until ready and 10 s more.
    let boosted = user.deploy(
        "boosted",
        &format!("--image={image} --cpu=0.5 --concurrency=1 --cpu-boost --min-instances=1"),
    );
    assert_eq!(limits(&mut user, &boosted).1, "-1");
    thread::sleep(Duration::from_secs(11));
    assert_eq!(limits(&mut user, &boosted).1, "50000");
    user.leaves();
}

#[test]
fn memory_is_limited() {
    let mut user = User::of_homerun();
    let image = user.import_probe("memory");
    let url = user.deploy("memory", &format!("--image={image} --memory=128Mi --min-instances=1"));
    assert_eq!(user.get(&format!("{url}/fill?mb=64")), (64 << 20).to_string());
    // Only the request that went over it fails, none that comes right after.
    for _ in 0..5 {
        let start = user.get(&url);
        let said = user.ok(&format!("curl -w ' %{{http_code}}' '{url}/fill?mb=160'"));
        assert!(said.ends_with(" 500"), "{said}");
        assert_ne!(user.get(&url), start, "another instance");
    }
    user.ok("sleep 0.5");
    let told = user.ok("grep -h 128.MiB $DATA_DIR/log/*.jsonl");
    assert!(
        told.contains("Memory limit of 128 MiB exceeded") && told.contains("System"),
        "nothing of Homerun in {told}"
    );
    assert!(told.contains("/fill?mb=160"), "no record of the request in {told}");
    user.leaves();
}

#[test]
fn instances_are_kept_warm_and_requests_end_in_time() {
    let mut user = User::of_homerun();
    let image = user.import_probe("warm");
    let warm = user.deploy("warm", &format!("--image={image} --min-instances=1"));
    let cold = user.deploy("cold", &format!("--image={image}"));
    let (warm_start, cold_start) = (user.get(&warm), user.get(&cold));
    thread::sleep(Duration::from_secs(7));
    assert_eq!(user.get(&warm), warm_start);
    assert_ne!(user.get(&cold), cold_start);

    let quick = user.deploy("quick", &format!("--image={image} --timeout=1"));
    let answer = user.ok(&format!(
        "curl -w ' %{{http_code}} %{{time_total}}' '{quick}/hold?ms=5000'"
    ));
    let (text, rest) = answer.rsplit_once(' ').expect("a time");
    assert!(text.ends_with(" 504"), "{answer}");
    let took: f64 = rest.parse().expect("seconds");
    assert!((0.9..4.0).contains(&took), "{answer}");
    assert_eq!(
        user.ok(&format!("curl -o /dev/null -w '%{{http_code}}' '{quick}/hold?ms=10'")),
        "200"
    );
    user.leaves();
}

#[test]
fn only_a_changed_template_makes_a_revision() {
    let mut user = User::of_homerun();
    user.deploy("same", "--image=$HELLO --set-env-vars=A=1");
    let revisions = |user: &mut User| {
        let text = user.ok("gcloud run revisions list --service=same $REGION --format='value(metadata.name)'");
        text.lines().count()
    };
    user.ok("gcloud run services describe same $REGION --format=yaml > same.yaml");
    user.ok("gcloud run services replace same.yaml $REGION");
    user.ok("gcloud run services update-traffic same $REGION --to-latest --update-tags=t=LATEST");
    user.ok("gcloud run services remove-iam-policy-binding same $REGION --member=allUsers --role=roles/run.invoker");
    assert_eq!(revisions(&mut user), 1);
    user.ok("gcloud run services describe same $REGION --format=yaml | sed 's/timeoutSeconds: 300/timeoutSeconds: 299/' > changed.yaml; gcloud run services replace changed.yaml $REGION");
    assert_eq!(revisions(&mut user), 2);
    user.ok("gcloud run services update same $REGION --update-labels=team=core");
    assert_eq!(revisions(&mut user), 3);
    let shown =
        user.ok("gcloud run revisions list --service=same $REGION --format='value(metadata.labels.team)' --limit=1");
    assert_eq!(shown, "core");
    user.leaves();
}
