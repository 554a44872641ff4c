//! The metadata server as instances meet it, in both generations and with any way out; Google's own libraries inside
//! containers; and a private service called by another one.

mod libraries;
mod services;

use std::{
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Session, User};
use serde_json::Value;

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const SERVER: &str = "169.254.169.254:80";
const FLAVOR: &str = "Metadata-Flavor: Google";
const ACCOUNT: &str = "/computeMetadata/v1/instance/service-accounts/default";
/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// An answer, as it came.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// What an instance of the service at `url` hears when it says so to `to`.
#[track_caller]
fn say(user: &mut User, url: &str, to: &str, said: &str) -> String {
    let encoded = said
        .bytes()
        .fold(String::new(), |text, byte| format!("{text}%{byte:02x}"));
    user.ok(&format!("curl --fail '{url}/say/{to}?{encoded}'"))
}

#[track_caller]
fn request(user: &mut User, url: &str, to: &str, first: &str, headers: &[&str]) -> Answer {
    let headers: String = headers.iter().flat_map(|header| [*header, "\r\n"]).collect();
    let said = format!("{first} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    let answer = say(user, url, to, &said);
    // The shell's transcript has line ends of its own.
    let answer = answer.replace("\r\n", "\n");
    let (head, body) = answer.split_once("\n\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("{first} {headers}: {answer:?}")),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// A well-meant question to the metadata server.
#[track_caller]
fn ask(user: &mut User, url: &str, path: &str) -> Answer {
    let answer = request(
        user,
        url,
        SERVER,
        &format!("GET {path}"),
        &["Host: metadata.google.internal", FLAVOR],
    );
    assert!(
        answer.head.to_ascii_lowercase().contains("\nmetadata-flavor: google"),
        "{path}: {}",
        answer.head
    );
    answer
}

#[track_caller]
fn told(user: &mut User, url: &str, path: &str) -> String {
    let answer = ask(user, url, path);
    assert_eq!(answer.status, 200, "{path}: {}\n{}", answer.head, answer.body);
    answer.body
}

/// What a signed token says, unchecked.
#[track_caller]
fn claims(user: &mut User, token: &str) -> Value {
    let said = user.ok(&format!(
        "python3 -c \"import base64,sys; part = sys.argv[1].split('.')[1]; \
         print(base64.urlsafe_b64decode(part + '=' * (-len(part) % 4)).decode())\" {token}"
    ));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Until the link of a new instance is there, which comes a moment after its start.
fn attached(user: &mut User, url: &str) {
    let begin = Instant::now();
    while say(user, url, SERVER, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").len() < 100 {
        assert!(begin.elapsed() < PATIENCE, "no metadata server");
        thread::sleep(Duration::from_millis(100));
    }
}

/// All of the contract, asked by the instances of one service.
fn contract(user: &mut User, url: &str) {
    attached(user, url);
    let number = user.ok("gcloud projects describe my-project --format='value(projectNumber)'");
    let number = number.trim();
    for (path, right) in [
        ("/", "computeMetadata/\n".to_owned()),
        ("/computeMetadata/v1/", "instance/\nproject/\n".to_owned()),
        ("/computeMetadata/v1/project/project-id", "my-project".to_owned()),
        ("/computeMetadata/v1/project/numeric-project-id", number.to_owned()),
        (
            "/computeMetadata/v1/instance/region",
            format!("projects/{number}/regions/us-central1"),
        ),
        (
            "/computeMetadata/v1/instance/zone",
            format!("projects/{number}/zones/us-central1-1"),
        ),
        (
            "/computeMetadata/v1/instance/service-accounts/",
            format!("default/\n{RUNNER}/\n"),
        ),
        (
            &format!("{ACCOUNT}/"),
            "aliases\nemail\nidentity\nscopes\ntoken\n".to_owned(),
        ),
        (&format!("{ACCOUNT}/email"), RUNNER.to_owned()),
        (&format!("{ACCOUNT}/aliases"), "default\n".to_owned()),
        (
            &format!("{ACCOUNT}/scopes"),
            "https://www.googleapis.com/auth/cloud-platform\n".to_owned(),
        ),
        (&format!("{ACCOUNT}/email?alt=json"), format!("\"{RUNNER}\"")),
    ] {
        // The shell's output ends without the last line end.
        assert_eq!(told(user, url, path).trim_end(), right.trim_end(), "{path}");
    }
    let id = told(user, url, "/computeMetadata/v1/instance/id");
    assert!(
        id.len() > 12 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "{id}"
    );
    let all = told(user, url, "/computeMetadata/v1/?recursive=true");
    let all: Value = serde_json::from_str(&all).expect("JSON");
    assert_eq!(all["project"]["projectId"], "my-project");
    assert_eq!(all["instance"]["serviceAccounts"]["default"]["email"], RUNNER);
    assert_eq!(all["instance"]["id"], id.as_str());

    // Tokens, and the same ones when they are asked for again.
    let token = told(user, url, &format!("{ACCOUNT}/token"));
    let token: Value = serde_json::from_str(&token).expect("JSON");
    assert_eq!(token["token_type"], "Bearer");
    let left = token["expires_in"].as_u64().expect("seconds");
    assert!((3000..=3600).contains(&left), "{left}");
    let again: Value = serde_json::from_str(&told(user, url, &format!("{ACCOUNT}/token"))).expect("JSON");
    assert_eq!(again["access_token"], token["access_token"]);
    let of_email = format!("/computeMetadata/v1/instance/service-accounts/{RUNNER}/identity");
    let identity = told(
        user,
        url,
        &format!("{of_email}?audience=https://example.com/x&format=full"),
    );
    let said = claims(user, &identity);
    assert_eq!(said["aud"], "https://example.com/x");
    assert_eq!(said["email"], RUNNER);
    assert_eq!(said["iss"], "https://accounts.google.com");
    let life = said["exp"].as_u64().expect("seconds") - said["iat"].as_u64().expect("seconds");
    assert_eq!(life, 3600);
    assert!(said["sub"].is_string() && said["azp"].is_string(), "{said}");
    let of_default = format!("{ACCOUNT}/identity?audience=https://example.com/x");
    assert_eq!(told(user, url, &of_default), identity);
    let other = told(user, url, &format!("{ACCOUNT}/identity?audience=other"));
    assert_ne!(other, identity);

    refusals(user, url);
    changes(user, url);
}

fn refusals(user: &mut User, url: &str) {
    let email = format!("{ACCOUNT}/email");
    for (first, headers, status) in [
        (format!("GET {email}"), vec![], 403),
        (format!("GET {email}"), vec!["Metadata-Flavor: google"], 403),
        (format!("GET {email}"), vec![FLAVOR, "X-Forwarded-For: 10.0.0.1"], 403),
        ("GET /".to_owned(), vec![], 403),
        (format!("POST {email}"), vec![FLAVOR, "Content-Length: 0"], 405),
        (format!("GET {email}/"), vec![FLAVOR], 404),
        (
            "GET /computeMetadata/v1/instance/attributes/".to_owned(),
            vec![FLAVOR],
            404,
        ),
        (
            "GET /computeMetadata/v1/instance/service-accounts/owner@my-project.iam.gserviceaccount.com/token"
                .to_owned(),
            vec![FLAVOR],
            404,
        ),
        (format!("GET {ACCOUNT}/identity"), vec![FLAVOR], 400),
        (format!("GET {ACCOUNT}/token?alt=xml"), vec![FLAVOR], 400),
        ("GET /computeMetadata/v1/instance".to_owned(), vec![FLAVOR], 301),
    ] {
        let headers: Vec<&str> = ["Host: metadata"].into_iter().chain(headers).collect();
        let answer = request(user, url, SERVER, &first, &headers);
        assert_eq!(answer.status, status, "{first} {headers:?}: {}", answer.body);
        let head = answer.head.to_ascii_lowercase();
        assert!(head.contains("\nmetadata-flavor: google"), "{first}: {head}");
        match status {
            403 if headers.len() < 3 => assert!(answer.body.contains("Metadata-Flavor:Google"), "{}", answer.body),
            404 => assert!(answer.body.contains("was not found on this server"), "{}", answer.body),
            301 => assert!(
                head.contains("location: http://metadata.google.internal/computemetadata/v1/instance/"),
                "{head}"
            ),
            _ => {}
        }
    }
    let none = ask(user, url, &format!("{ACCOUNT}/identity?audience="));
    assert_eq!(none.body.trim_end(), "non-empty audience parameter required");
}

fn changes(user: &mut User, url: &str) {
    let path = "/computeMetadata/v1/project/project-id";
    let head = ask(user, url, path).head.to_ascii_lowercase();
    let etag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .expect("an etag");
    let waiting = |etag: &str| format!("{path}?wait_for_change=true&timeout_sec=1&last_etag={etag}");
    let begin = Instant::now();
    assert_eq!(told(user, url, &waiting(etag)), "my-project");
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    // Something else was there before.
    let before = waiting("0").replace("timeout_sec=1", "timeout_sec=3000");
    assert_eq!(told(user, url, &before), "my-project");
}

/// With a way out or none, in both generations.
fn everywhere(flags: &[&str]) {
    let mut user = User::with(flags, Client::Homerun);
    let image = user.import_probe("caller");
    user.ok("gcloud iam service-accounts create runner");
    for (name, more) in [("second", ""), ("first", "--execution-environment=gen1")] {
        let url = user.deploy(name, &format!("--image={image} --service-account={RUNNER} {more}"));
        contract(&mut user, &url);
        let hosts = user.get(&format!("{url}/read/etc/hosts"));
        assert!(
            hosts.contains("169.254.169.254 metadata.google.internal metadata"),
            "{hosts}"
        );
        nothing_else(&mut user, &url);
    }
    user.leaves();
}

/// Of the machine and of Homerun nothing is reached but these doors.
fn nothing_else(user: &mut User, url: &str) {
    let [api, http, https] = [user.homerun.api(), user.homerun.http(), user.homerun.https()].map(|at| at.port());
    for to in [
        format!("127.0.0.1:{api}"),
        format!("127.0.0.1:{https}"),
        format!("169.254.169.254:{api}"),
        format!("169.254.169.254:{http}"),
        "169.254.169.254:22".to_owned(),
        format!("169.254.169.253:{api}"),
        "169.254.169.253:22".to_owned(),
        "169.254.169.253:53".to_owned(),
        "169.254.169.252:80".to_owned(),
        "198.18.7.7:8080".to_owned(),
    ] {
        let said = say(user, url, &to, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        let refused = [
            "ConnectionRefused",
            "HostUnreachable",
            "PermissionDenied",
            "NetworkUnreachable",
            "Uncategorized",
        ];
        assert!(refused.contains(&said.as_str()), "{to}: {said}");
    }
    // The ingress has services and nothing else, whatever a request calls itself.
    for host in [
        format!("127.0.0.1:{api}"),
        "run.googleapis.com".to_owned(),
        "metadata".to_owned(),
    ] {
        for first in [
            "GET /homerun/about",
            "GET /v2/",
            "GET /computeMetadata/v1/project/project-id",
        ] {
            let answer = request(
                user,
                url,
                &format!("169.254.169.253:{http}"),
                first,
                &[&format!("Host: {host}"), FLAVOR],
            );
            assert_eq!(answer.status, 404, "{first} at {host}: {}", answer.body);
        }
    }
    // And the metadata server is no way to the ingress.
    let host = url.trim_start_matches("http://");
    let answer = request(user, url, SERVER, "GET /name", &[&format!("Host: {host}"), FLAVOR]);
    assert_eq!(answer.status, 404);
}

#[test]
fn the_contract_with_a_way_out() {
    everywhere(&[]);
}

#[test]
fn the_contract_without_a_way_out() {
    everywhere(&["--egress=off"]);
}

/// An account that is off or gone gives no token; each instance has its own; and both survive their server.
#[test]
fn an_instance_is_who_its_revision_says() {
    let mut user = User::with(&[], Client::Homerun);
    let image = user.import_probe("caller");
    user.ok("gcloud iam service-accounts create runner");
    user.ok("gcloud iam service-accounts create stranger");
    let stranger = RUNNER.replace("runner", "stranger");
    // Requests that live for longer than their server find their instance again.
    let deploy = |user: &mut User, name: &str, flags: &str| user.deploy(name, &format!("--image={image} {flags}"));
    let one = deploy(
        &mut user,
        "one",
        &format!("--service-account={RUNNER} --min-instances=1"),
    );
    let other = deploy(&mut user, "other", &format!("--service-account={stranger}"));
    let unset = deploy(&mut user, "unset", "");
    attached(&mut user, &one);
    attached(&mut user, &other);
    attached(&mut user, &unset);
    assert_eq!(told(&mut user, &one, &format!("{ACCOUNT}/email")), RUNNER);
    assert_eq!(told(&mut user, &other, &format!("{ACCOUNT}/email")), stranger);
    let default = told(&mut user, &unset, &format!("{ACCOUNT}/email"));
    assert!(default.ends_with("-compute@developer.gserviceaccount.com"), "{default}");
    let of_stranger = format!("/computeMetadata/v1/instance/service-accounts/{stranger}/identity?audience=x");
    assert_eq!(ask(&mut user, &one, &of_stranger).status, 404);
    told(&mut user, &other, &of_stranger);
    // Another name, another header: the link is the same.
    for headers in [
        ["Host: other", FLAVOR, "X-Real-IP: 198.18.0.2"],
        ["Host: 198.18.0.2", FLAVOR, "Forwarded: for=198.18.0.2"],
    ] {
        let answer = request(&mut user, &one, SERVER, &format!("GET {ACCOUNT}/email"), &headers);
        assert_eq!(answer.body, RUNNER);
    }

    let [token, identity] = ["token", "identity?audience=x"].map(|what| format!("{ACCOUNT}/{what}"));
    told(&mut user, &one, &token);
    told(&mut user, &one, &identity);
    user.ok(&format!("gcloud iam service-accounts disable {RUNNER}"));
    for path in [&token, &identity] {
        let answer = ask(&mut user, &one, path);
        assert_eq!(answer.status, 403, "{}", answer.body);
        assert!(answer.body.contains("is disabled"), "{}", answer.body);
    }
    user.ok(&format!("gcloud iam service-accounts enable {RUNNER}"));
    let before = told(&mut user, &one, &identity);

    // The next server, by an upgrade and after a crash: the instance is the same, and so is who it is.
    let id = told(&mut user, &one, "/computeMetadata/v1/instance/id");
    user.ok("homerun upgrade");
    user.homerun.follow().expect("another process");
    assert_eq!(told(&mut user, &one, "/computeMetadata/v1/instance/id"), id);
    let after = told(&mut user, &one, &identity);
    assert_eq!(claims(&mut user, &before)["sub"], claims(&mut user, &after)["sub"]);

    user.ok(&format!("gcloud iam service-accounts delete {RUNNER} --quiet"));
    let answer = ask(&mut user, &one, &token);
    assert_eq!(answer.status, 404, "{}", answer.body);
    assert!(answer.body.contains("not found for email"), "{}", answer.body);
    // Another one of the same name is somebody else.
    user.ok("gcloud iam service-accounts create runner");
    let new = told(&mut user, &one, &identity);
    assert_ne!(claims(&mut user, &before)["sub"], claims(&mut user, &new)["sub"]);
    user.leaves();
}

/// The next server is found where it listens as the last one did, and where it does not.
#[test]
fn after_a_crash_an_instance_finds_the_next_server() {
    let mut user = User::with(&["--idle-retention", "1m"], Client::Homerun);
    let image = user.import_probe("caller");
    let url = user.deploy("one", &format!("--image={image} --min-instances=1"));
    attached(&mut user, &url);
    let path = "/computeMetadata/v1/instance/id";
    let id = told(&mut user, &url, path);
    user.homerun.kill().expect("killed");
    user.homerun.start_again().expect("starts");
    assert_eq!(told(&mut user, &url, path), id);

    user.homerun.kill_and_restart().expect("starts at other ports");
    user.session = Session::new(&user.homerun, Client::Homerun).expect("a shell");
    user.ok("REGION=--region=us-central1");
    let url = user.describe("one", "value(status.url)").trim().to_owned();
    attached(&mut user, &url);
    assert_eq!(told(&mut user, &url, path), id);
    let host = url.trim_start_matches("http://").to_owned();
    let own = format!("127.0.0.1:{}", user.homerun.http().port());
    let answer = request(&mut user, &url, &own, "GET /name", &[&format!("Host: {host}")]);
    assert_eq!((answer.status, answer.body.trim()), (200, "caller"));
    user.leaves();
}
