//! A private service at a port of this machine's loopback: `run services proxy` by our own command line and by Google's
//! gcloud, which starts our binary as its `cloud-run-proxy`.

use std::net::{SocketAddr, TcpListener};

use homerun_e2e::{Client, User};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::faults::faketime;
use crate::protocols::{SPEAKER, echoes, run, websocket};

const CODE: &str = "curl -s -o /dev/null -w '%{http_code}'";
/// Waits until PROXY's file of errors says what it proxies to, or shows why it does not.
const MEET: &str = "for i in $(seq 300); do grep -q ' proxies to ' $LOG && break; kill -0 $PROXY 2>/dev/null || break; \
                    sleep 0.1; done; cat $LOG >&2; grep -q ' proxies to ' $LOG";
/// Ends PROXY with a signal, and shows its exit status and how many seconds that took.
const END: &str =
    "BEGAN=$(date +%s); kill -$SIGNAL $PROXY; wait $PROXY; echo \"status $? after $(($(date +%s) - BEGAN))\"";

/// Starts a proxy in the background; gives its port.
#[track_caller]
fn start(user: &mut User, command: &str) -> u16 {
    user.ok(&format!("LOG=$(mktemp); {command} >$LOG 2>&1 & PROXY=$!"));
    let said = user.ok(MEET);
    let port = said
        .lines()
        .find_map(|line| line.strip_prefix("http://127.0.0.1:")?.split(' ').next()?.parse().ok());
    port.unwrap_or_else(|| panic!("{said}"))
}

#[track_caller]
fn ends(user: &mut User, signal: &str) {
    let said = user.ok(&format!("SIGNAL={signal}; {END}"));
    let (status, seconds) = said
        .trim()
        .strip_prefix("status ")
        .and_then(|rest| rest.split_once(" after "))
        .unwrap_or_else(|| panic!("{said}"));
    assert_eq!(status, "0", "{said}");
    assert!(seconds.parse::<u32>().expect("a number") < 8, "{said}");
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Bodies of any size in both directions, an upgrade, and nothing of it without the proxy.
#[track_caller]
fn everything_passes(user: &mut User, port: u16) {
    let near = format!("http://127.0.0.1:{port}");
    user.ok("test -e big || head -c 12000000 /dev/urandom >big");
    let sent = user.ok(&format!("curl --fail --data-binary @big {near}/count"));
    assert_eq!(sent.trim(), "12000000");
    let chunked = user.ok(&format!("head -c 5000000 big | curl --fail -T - {near}/count"));
    assert_eq!(chunked.trim(), "5000000");
    let read = user.ok(&format!("curl --fail '{near}/zeros?mb=24' | wc -c"));
    assert_eq!(read.trim(), (24 << 20).to_string());
    assert_eq!(
        user.ok(&format!("{CODE} {near}/refuse")),
        "403",
        "the service's own answer"
    );
    run(async {
        let stream = TcpStream::connect(at(port)).await.expect("connects");
        let mut socket = websocket(stream, &format!("127.0.0.1:{port}")).await;
        echoes(&mut socket, Message::text("one")).await;
        echoes(&mut socket, Message::binary(vec![1; 1 << 20])).await;
    });
}

fn passes_by_scheme(scheme: &str) {
    let mut user = User::with(&["--url-scheme", scheme], Client::Homerun);
    let image = user.import_speaker(SPEAKER);
    user.ok(&format!(
        "gcloud run deploy spoken --image={image} $REGION --no-allow-unauthenticated --quiet"
    ));
    let url = user.describe("spoken", "value(status.url)").trim().to_owned();
    assert!(url.starts_with(&format!("{scheme}://")), "{url}");
    assert_eq!(user.ok(&format!("{CODE} --cacert $DATA_DIR/ca/ca.pem {url}")), "403");
    let port = start(&mut user, "homerun run services proxy spoken $REGION --port=0");
    let said = user.ok("cat $LOG");
    assert!(
        said.contains("Proxying to Cloud Run service [spoken] in project [my-project] region [us-central1]"),
        "{said}"
    );
    assert!(
        said.contains(&format!("http://127.0.0.1:{port} proxies to {url}")),
        "{said}"
    );
    everything_passes(&mut user, port);

    // A page whose name leads here, and a client that takes it for a proxy.
    let near = format!("http://127.0.0.1:{port}");
    assert_eq!(user.ok(&format!("{CODE} -H 'Host: evil.example:{port}' {near}")), "421");
    assert_eq!(user.ok(&format!("{CODE} -H 'Host: localhost:{port}' {near}")), "200");
    // `command`, since the function of that name lets no proxy be used.
    let by_proxy = format!("command curl -s -o /dev/null -w '%{{http_code}}' --noproxy '' --proxy {near}");
    assert_eq!(user.ok(&format!("{by_proxy} http://evil.example/")), "421");

    // It ends at once although a WebSocket is open.
    run(async {
        let stream = TcpStream::connect(at(port)).await.expect("connects");
        let mut socket = websocket(stream, &format!("127.0.0.1:{port}")).await;
        echoes(&mut socket, Message::text("one")).await;
        ends(&mut user, "TERM");
        let left = futures_util::StreamExt::next(&mut socket).await;
        assert!(left.is_none_or(|message| message.is_err()), "the tunnel is closed");
    });
    let said = user.ok("cat $LOG");
    assert!(said.contains("server is shutting down..."), "{said}");
    user.leaves();
}

#[test]
fn bodies_and_upgrades_pass_by_http() {
    passes_by_scheme("http");
}

#[test]
fn bodies_and_upgrades_pass_by_https() {
    passes_by_scheme("https");
}

/// Which token, whose, for which revision; and what is said where it cannot be.
#[test]
fn the_token_is_added_and_nothing_else_is_touched() {
    const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
    let mut user = User::of_homerun();
    user.ok("gcloud run deploy told --image=$HELLO $REGION --no-allow-unauthenticated --quiet");
    user.ok(
        "gcloud run deploy told --image=$HELLO $REGION --no-traffic --tag=green --set-env-vars=COLOR=green --quiet",
    );
    let port = start(&mut user, "homerun run services proxy told $REGION --port=0");
    let said = user.ok(&format!(
        "curl --fail -d 'a body' -H 'Authorization: Basic bWluZQ==' -H 'X-Serverless-Authorization: Bearer forged' \
         -H 'Connection: X-Mine' -H 'X-Mine: 1' 'http://127.0.0.1:{port}/echo?q=%2F1'"
    ));
    for part in [
        r#""target":"/echo?q=%2F1""#,
        r#""body":"a body""#,
        r#"uthorization":"Basic bWluZQ==""#,
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    // The proxy's own in place of the client's, and without its signature.
    assert!(
        said.contains(".SIGNATURE_REMOVED_BY_GOOGLE") && !said.contains("forged"),
        "{said}"
    );
    assert!(!said.to_lowercase().contains("x-mine"), "{said}");

    // The port is taken.
    let said = user.refused(&format!("homerun run services proxy told $REGION --port={port}"));
    assert!(
        said.contains("bind: address already in use") && said.contains("--port flag"),
        "{said}"
    );
    ends(&mut user, "INT");

    let said = user.refused("homerun run services proxy nothing $REGION --port=0");
    assert!(
        said.contains("Service [nothing] could not be found in project [my-project] region [us-central1]."),
        "{said}"
    );
    let said = user.refused("homerun run services proxy told $REGION --port=0 --tag=red");
    assert!(said.contains("Cannot find tag [red] in service [told]."), "{said}");

    let port = start(
        &mut user,
        "homerun run services proxy told $REGION --port=0 --tag=green",
    );
    let said = user.get(&format!("http://127.0.0.1:{port}/"));
    assert!(said.contains(r#""colour":"green""#), "{said}");
    ends(&mut user, "TERM");

    // A given token is used as it is.
    let port = start(
        &mut user,
        "homerun run services proxy told $REGION --port=0 --token=x.y.z",
    );
    assert_eq!(user.ok(&format!("{CODE} http://127.0.0.1:{port}/")), "401");
    ends(&mut user, "TERM");

    // In another account's name, which may not call before it has the role.
    user.ok("gcloud iam service-accounts create runner");
    user.ok(&format!(
        "gcloud iam service-accounts add-iam-policy-binding {RUNNER} \
         --member=serviceAccount:owner@my-project.iam.gserviceaccount.com --role=roles/iam.serviceAccountTokenCreator"
    ));
    // And may look at the service, for its URL.
    user.ok(&format!(
        "gcloud projects add-iam-policy-binding my-project --member=serviceAccount:{RUNNER} --role=roles/run.viewer"
    ));
    let port = start(
        &mut user,
        &format!("homerun run services proxy told $REGION --port=0 --impersonate-service-account={RUNNER}"),
    );
    assert_eq!(user.ok(&format!("{CODE} http://127.0.0.1:{port}/")), "403");
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding told $REGION --member=serviceAccount:{RUNNER} --role=roles/run.invoker"
    ));
    assert_eq!(user.ok(&format!("{CODE} http://127.0.0.1:{port}/")), "200");
    ends(&mut user, "TERM");
    user.leaves();
}

/// As after a night in which the machine slept: the proxy gets a new token by itself, and one that was given ends.
#[test]
fn the_token_is_renewed() {
    let library = faketime();
    let clock = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(clock.path(), "+0\n").expect("written");
    let variables = [
        ("LD_PRELOAD", library.to_str().expect("a plain path")),
        ("FAKETIME_TIMESTAMP_FILE", clock.path().to_str().expect("a plain path")),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut user = User::in_surroundings(&[], &variables, Client::Homerun);
    user.ok("gcloud run deploy told --image=$HELLO $REGION --no-allow-unauthenticated --quiet");
    let set: Vec<String> = variables
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let proxy = format!("env {} homerun run services proxy told $REGION --port=0", set.join(" "));
    let own = start(&mut user, &proxy);
    user.ok("OWN=$PROXY; TOKEN=$(gcloud auth print-identity-token)");
    let given = start(&mut user, &format!("{proxy} --token=$TOKEN"));
    let code = |user: &mut User, port: u16| user.ok(&format!("{CODE} http://127.0.0.1:{port}/"));
    assert_eq!(
        (code(&mut user, own).as_str(), code(&mut user, given).as_str()),
        ("200", "200")
    );

    let next = clock.path().with_extension("next");
    std::fs::write(&next, "+8h\n").expect("written");
    std::fs::rename(&next, clock.path()).expect("set");
    let ended = |user: &mut User| {
        let began = std::time::Instant::now();
        while code(user, given) == "200" {
            assert!(began.elapsed() < std::time::Duration::from_secs(20), "the clock stands");
        }
    };
    ended(&mut user);
    assert_eq!(code(&mut user, given), "401");
    user.ok(&format!(
        "for i in $(seq 100); do test $({CODE} http://127.0.0.1:{own}/) = 200 && break; sleep 0.2; done"
    ));
    assert_eq!(code(&mut user, own), "200");
    ends(&mut user, "TERM");
    user.ok("PROXY=$OWN");
    ends(&mut user, "TERM");
    user.leaves();
}

/// Google's gcloud starts our binary under the name that it looks for, and ends with it.
#[test]
fn googles_gcloud_finds_its_proxy() {
    let mut user = User::with(&["--url-scheme", "https"], Client::Google);
    let image = user.import_speaker(SPEAKER);
    user.ok(&format!(
        "gcloud run deploy spoken --image={image} $REGION --no-allow-unauthenticated --quiet"
    ));
    let port = free_port();
    // A session of its own, so that the signal reaches all of gcloud, as Ctrl-C does.
    let command = format!("setsid homerun gcloud run services proxy spoken $REGION --port={port}");
    assert_eq!(start(&mut user, &command), port);
    let said = user.ok("sed 's/\\x1b\\[[0-9;]*m//g' $LOG");
    assert!(
        said.contains("Proxying to Cloud Run service [spoken] in project [my-project] region [us-central1]"),
        "{said}"
    );
    user.ok(&format!(
        "for i in $(seq 100); do curl -s http://127.0.0.1:{port}/ && break; sleep 0.2; done"
    ));
    everything_passes(&mut user, port);
    let seen = user.ok("ps -ww -eo args | grep '[c]loud-run-proxy -host'");
    assert!(seen.contains("-server-up-time 55m"), "{seen}");
    let said = user.ok("kill -INT -- -$PROXY; wait $PROXY; echo status $?");
    assert!(said.contains("status 0"), "{said}");
    user.ends(&format!("curl -s http://127.0.0.1:{port}/"), 7);

    // In use already: gcloud's own advice.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let said = user.ok(&format!(
        "homerun gcloud run services proxy spoken $REGION --port={port} 2>&1"
    ));
    assert!(said.contains("You can set the --port flag"), "{said}");
    user.leaves();
}

/// By hand, as Google's program is used, in a shell that `homerun env` made.
#[test]
fn cloud_run_proxy_by_hand() {
    let mut user = User::of_homerun();
    let image = user.import_speaker(SPEAKER);
    user.ok(&format!(
        "gcloud run deploy spoken --image={image} $REGION --no-allow-unauthenticated --quiet"
    ));
    let url = user.describe("spoken", "value(status.url)").trim().to_owned();
    user.ok("eval \"$(homerun env)\"");
    let again = user.ok("homerun env");
    assert!(!again.contains("export PATH"), "it is in front already: {again}");
    assert!(user.ok("cloud-run-proxy -version").starts_with("cloud-run-proxy/"));
    for (flags, says) in [
        ("", "missing -host"),
        ("-hots a", "flag provided but not defined: -hots"),
        ("-host https://x.a.run.app", "is no URL of the Homerun at"),
    ] {
        let said = user.refused(&format!("cloud-run-proxy {flags}"));
        assert!(said.contains(says), "{said}");
    }
    let said = user.refused(&format!("cloud-run-proxy -host {url} -bind 0.0.0.0:0"));
    assert!(said.contains("no loopback address"), "{said}");

    let port = start(&mut user, &format!("cloud-run-proxy -host {url} -bind 127.0.0.1:0"));
    everything_passes(&mut user, port);
    ends(&mut user, "TERM");
    // gRPC needs HTTP/2 from end to end.
    let port = start(
        &mut user,
        &format!("cloud-run-proxy -http2 -host {url} -bind 127.0.0.1:0 -server-up-time 60s"),
    );
    let said = user.ok(&format!(
        "curl --http2-prior-knowledge -w ' %{{http_version}}' -d text http://127.0.0.1:{port}/count"
    ));
    assert_eq!(said, "4 2");
    assert_eq!(
        user.ok(&format!("curl --http1.1 -d text http://127.0.0.1:{port}/count")),
        "4"
    );
    ends(&mut user, "TERM");
    let said = user.ok(&format!(
        "cloud-run-proxy -host {url} -bind 127.0.0.1:0 -server-up-time 1s 2>&1; echo status $?"
    ));
    assert!(said.ends_with("status 0") && !said.contains("shutting down"), "{said}");
    user.leaves();
}
