//! How many instances there are, and what becomes of requests while their number or their revision changes.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, User};
use serde_json::Value;

/// Answers of `/hold`: the distinct instances, and the most requests one had at once.
#[track_caller]
fn held(answers: &str, expected: usize) -> (usize, u64) {
    let lines: Vec<_> = answers.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), expected, "{answers}");
    let mut starts = BTreeSet::new();
    let mut most = 0;
    for line in lines {
        let (start, held) = line
            .split_once(' ')
            .unwrap_or_else(|| panic!("not of the probe: {line}"));
        starts.insert(start);
        most = most.max(held.parse().expect("a number"));
    }
    (starts.len(), most)
}

#[test]
fn instances_follow_concurrency() {
    let mut user = User::of_homerun();
    let image = user.import_probe("many");
    let url = user.deploy("many", &format!("--image={image} --concurrency=80"));
    let at_once = |count: usize, ms: u32| {
        format!(
            "curl --fail --parallel --parallel-immediate --parallel-max 200 '{url}/hold?ms={ms}&n=[1-{count}]' 2>/dev/null"
        )
    };
    let answers = user.ok(&at_once(81, 3000));
    assert_eq!(held(&answers, 81), (2, 80), "81 requests at concurrency 80");

    let url = user.deploy("few", &format!("--image={image} --concurrency=3 --max-instances=2"));
    let answers = user.ok(&format!(
        "curl --fail --parallel --parallel-immediate --parallel-max 200 '{url}/hold?ms=300&n=[1-18]' 2>/dev/null"
    ));
    assert_eq!(
        held(&answers, 18),
        (2, 3),
        "18 requests at concurrency 3, at most 2 instances"
    );
    user.leaves();
}

#[test]
fn at_the_maximum_requests_queue_then_429() {
    let mut user = User::of_homerun();
    let image = user.import_probe("one");
    let url = user.deploy("one", &format!("--image={image} --concurrency=1 --max-instances=1"));
    let answers = user.ok(&format!(
        "curl --fail --parallel --parallel-immediate '{url}/hold?ms=200&n=[1-5]' 2>/dev/null"
    ));
    assert_eq!(held(&answers, 5), (1, 1), "one after the other");
    let said = user.ok(&format!(
        "curl -o /dev/null '{url}/hold?ms=13000' & sleep 0.5; curl -w '\\n%{{http_code}} %{{time_total}}' '{url}/'; wait"
    ));
    let last = said.lines().last().expect("a line");
    let (status, took) = last.split_once(' ').expect("status and time");
    let took: f64 = took.parse().expect("seconds");
    assert_eq!(status, "429", "{said}");
    assert!((9.0..12.5).contains(&took), "{said}");
    assert!(said.contains("no available instance"), "{said}");
    assert!(!said.contains("no room"), "it is the maximum, not the machine: {said}");

    let why = user.ok("gcloud run services why-scaled one $REGION");
    let heading = why.lines().next().unwrap_or_default();
    for word in ["TIME", "REVISION", "WHAT", "RULE", "WHY", "INPUTS"] {
        assert!(heading.contains(word), "{why}");
    }
    assert!(why.contains("ceiling") && why.contains("max=1"), "{why}");
    let rules = user.ok("gcloud run services why-scaled one $REGION --format='value(stands,instances,rule)'");
    assert!(rules.lines().any(|line| line.starts_with("True\t1\t")), "{rules}");
    assert!(rules.lines().any(|line| line.starts_with("False\t")), "{rules}");
    let told = user.ok("gcloud run services why-scaled one $REGION --format=json --limit=1");
    assert!(
        told.contains("\"concurrency\": 1") && told.contains("\"meanRequestsMilli\""),
        "{told}"
    );
    user.refused("gcloud run services why-scaled none $REGION");
    user.leaves();
}

/// One request at a time is all that an instance takes, and one at a time is all there is: the mean concurrency never asks
/// for a second instance. What they compute does.
#[test]
fn instances_follow_cpu() {
    let mut user = User::with(&["--parked=0"], Client::Homerun);
    let image = user.import_probe("busy");
    let url = user.deploy(
        "busy",
        &format!("--image={image} --cpu=0.1 --memory=256Mi --max-instances=3"),
    );
    user.get(&url);
    user.ok(&format!(
        "( until test -e stop; do curl --fail '{url}/burn?ms=1500' >> burnt; sleep 0.1; done ) & LOOP=$!"
    ));
    let begin = Instant::now();
    let asks = "gcloud run services why-scaled busy $REGION --format=json";
    let told = loop {
        let told: Value = serde_json::from_str(&user.ok(asks)).expect("JSON");
        // The newest comes first.
        let found = told
            .as_array()
            .and_then(|all| all.iter().rfind(|one| one["rule"] == "cpu"));
        if let Some(found) = found {
            break found.clone();
        }
        assert!(
            begin.elapsed() < Duration::from_secs(200),
            "{told}\n{}",
            user.homerun.log()
        );
        thread::sleep(Duration::from_secs(1));
    };
    assert_eq!(told["instances"], 2, "{told}");
    assert!(
        told["text"]
            .as_str()
            .is_some_and(|text| text.contains("CPU of the last minute, at 60 %")),
        "{told}"
    );
    let seen = |name: &str| {
        told["inputs"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {told}"))
    };
    assert!(seen("meanCpuMillis") > 60 && seen("cpuLimitMillis") == 100, "{told}");
    assert!(seen("meanRequestsMilli") <= 1000 && seen("concurrency") == 1, "{told}");
    assert_eq!((seen("queued"), seen("ready")), (0, 1), "{told}");
    let there = |user: &User| user.homerun.footprint().expect("looks").instances.len();
    while there(&user) < 2 {
        assert!(
            begin.elapsed() < Duration::from_secs(230),
            "no second one\n{}",
            user.homerun.log()
        );
        thread::sleep(Duration::from_millis(200));
    }
    // It takes requests.
    let both = format!("curl --fail --parallel --parallel-immediate '{url}/hold?ms=2000&n=[1-2]' 2>/dev/null");
    user.ok("touch stop; wait $LOOP");
    assert_eq!(held(&user.ok(&both), 2), (2, 1));
    user.leaves();
}

#[test]
fn to_zero_and_awake_again() {
    let mut user = User::of_homerun();
    let image = user.import_probe("zero");
    let url = user.deploy("zero", &format!("--image={image} --args=zero-$HTTP_PORT"));
    let running = |user: &mut User| user.ok("pgrep -fc \"^/probe zero-$HTTP_PORT\\$\" || true");
    let first = user.get(&url);
    assert_eq!(running(&mut user), "1");
    thread::sleep(Duration::from_secs(6));
    assert_eq!(running(&mut user), "0", "after the idle retention of 3 s");
    let answer = user.ok(&format!("curl --fail -w '%{{time_starttransfer}}' '{url}'"));
    let (second, took) = answer.split_once('\n').expect("a start and a time");
    eprintln!("cold start: {took} s to the first byte");
    assert_ne!(first, second);
    assert_eq!(running(&mut user), "1");
    user.leaves();
}

#[test]
fn a_retired_revision_drains() {
    let mut user = User::of_homerun();
    let image = user.import_probe("drain");
    let url = user.deploy(
        "drain",
        &format!("--image={image} --min-instances=1 --args=old-$HTTP_PORT"),
    );
    let old = user.get(&url);
    user.ok(&format!("curl --fail '{url}/hold?ms=5000' > held & HELD=$!"));
    user.deploy(
        "drain",
        &format!("--image={image} --min-instances=1 --args=new-$HTTP_PORT"),
    );
    let new = user.get(&url);
    assert_ne!(old, new, "new requests go to the new revision");
    assert_eq!(
        user.ok("pgrep -fc \"^/probe old-$HTTP_PORT\\$\" || true"),
        "1",
        "it still has a request"
    );
    let answer = user.ok("wait $HELD && cat held");
    assert_eq!(answer.split(' ').next(), Some(old.as_str()), "{answer}");
    thread::sleep(Duration::from_secs(6));
    assert_eq!(user.ok("pgrep -fc \"^/probe old-$HTTP_PORT\\$\" || true"), "0");
    user.leaves();
}

#[test]
fn a_cut_over_fails_no_request() {
    let mut user = User::of_homerun();
    let url = user.deploy("flip", "--image=$HELLO --set-env-vars=COLOR=blue");
    user.deploy("flip", "--image=$HELLO --set-env-vars=COLOR=green --no-traffic");
    // New connections and kept ones.
    user.ok(&format!(
        "( until test -e stop; do curl --max-time 20 -w '%{{http_code}}\\n' '{url}/?n=[1-20]'; done > answers 2>&1 ) & LOOP=$!"
    ));
    for flip in 0..10 {
        let revision = if flip % 2 == 0 { "flip-00002" } else { "flip-00001" };
        user.ok(&format!(
            "gcloud run services update-traffic flip $REGION --to-revisions={revision}=100"
        ));
        thread::sleep(Duration::from_millis(150));
    }
    let answers = user.ok("touch stop; wait $LOOP; cat answers");
    let (mut statuses, mut colours) = (0, BTreeSet::new());
    for line in answers.lines() {
        if line == "200" {
            statuses += 1;
        } else {
            assert!(line.starts_with('{'), "{line}");
            colours.insert(if line.contains("green") { "green" } else { "blue" });
        }
    }
    assert!(statuses > 50, "only {statuses} requests");
    assert_eq!(colours.len(), 2, "both revisions answered");
    user.leaves();
}

#[test]
fn a_deleted_service_lets_its_request_end() {
    let mut user = User::of_homerun();
    let image = user.import_probe("gone");
    let url = user.deploy("gone", &format!("--image={image} --args=gone-$HTTP_PORT"));
    let start = user.get(&url);
    user.ok(&format!(
        "curl -w '%{{http_code}}' '{url}/hold?ms=3000' > held & HELD=$!; sleep 0.3"
    ));
    user.ok("gcloud run services delete gone $REGION --quiet");
    assert_eq!(
        user.ok(&format!("curl -o /dev/null -w '%{{http_code}}' '{url}'")),
        "404"
    );
    assert_eq!(user.ok("wait $HELD; cat held"), format!("{start} 1\n200"));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(user.ok("pgrep -fc \"^/probe gone-$HTTP_PORT\\$\" || true"), "0");
    user.refused("gcloud run services describe gone $REGION");
    assert_eq!(
        user.ok("gcloud run revisions list $REGION --format='value(metadata.name)'"),
        ""
    );
    user.leaves();
}
