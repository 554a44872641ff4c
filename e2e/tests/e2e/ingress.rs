//! Requests from outside: hosts, TLS, who may call, what the container is told, streams, one record each.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use homerun_e2e::User;

const CODE: &str = "curl -o /dev/null -w '%{http_code}'";

#[test]
fn every_host_answers_by_every_way() {
    let mut user = User::of_homerun();
    let url = user.deploy("hosts", "--image=$HELLO --tag=both");
    user.ok("CA=$DATA_DIR/ca/ca.pem");
    let host = url
        .trim_start_matches("http://")
        .split(':')
        .next()
        .expect("a host")
        .to_owned();
    let urls = user.ok("gcloud run services describe hosts $REGION --format=yaml | grep 'googleapis.com/urls:'");
    let number = urls
        .split('"')
        .find_map(|part| {
            Some(part.strip_prefix("http://")?.split(':').next()?.to_owned()).filter(|h| h.contains(".us-central1."))
        })
        .unwrap_or_else(|| panic!("no host with region in {urls}"));
    let tagged = user.describe("hosts", "value(status.traffic[0].url,status.traffic[1].url)");
    assert!(tagged.contains(&format!("both---{host}")), "{tagged}");
    for host in [
        host.clone(),
        number.clone(),
        format!("both---{host}"),
        format!("both---{number}"),
    ] {
        let answered = |user: &mut User, command: &str, version: &str| {
            let said = user.ok(&format!("{command} -w ' %{{http_version}} %{{http_code}}'"));
            assert!(
                said.contains(r#""service":"hosts""#) && said.ends_with(&format!("{version} 200")),
                "{command}: {said}"
            );
        };
        answered(&mut user, &format!("curl http://{host}:$HTTP_PORT/"), "1.1");
        answered(
            &mut user,
            &format!("curl --http1.1 --cacert $CA https://{host}:$HTTPS_PORT/"),
            "1.1",
        );
        answered(
            &mut user,
            &format!("curl --http2 --cacert $CA https://{host}:$HTTPS_PORT/"),
            "2",
        );
        answered(
            &mut user,
            &format!(
                "command curl -sS --http1.1 --noproxy '' --proxy http://$HOMERUN_API --cacert $CA https://{host}/"
            ),
            "1.1",
        );
        answered(
            &mut user,
            &format!(
                "command curl -sS --noproxy '' --proxy http://$HOMERUN_API --cacert $CA https://{host}:$HTTPS_PORT/"
            ),
            "2",
        );
    }
    // The certificate is of the local authority, and of nobody that a client trusts without it.
    user.ends(&format!("curl https://{host}:$HTTPS_PORT/"), 60);
    for wrong in [format!("none---{host}"), format!("x{host}"), "localhost".to_owned()] {
        assert_eq!(user.ok(&format!("{CODE} http://{wrong}:$HTTP_PORT/")), "404", "{wrong}");
    }
    user.leaves();
}

#[test]
fn only_who_may_calls() {
    let mut user = User::of_homerun();
    user.ok("gcloud run deploy private --image=$HELLO $REGION --no-allow-unauthenticated --quiet");
    let url = user.describe("private", "value(status.url)").trim().to_owned();
    let code = |user: &mut User, flags: &str| user.ok(&format!("{CODE} {flags} {url}"));
    assert_eq!(code(&mut user, ""), "403");
    assert_eq!(code(&mut user, "-H 'Authorization: Bearer garbage'"), "401");
    user.ok("TOKEN=$(gcloud auth print-identity-token)");
    assert_eq!(code(&mut user, "-H \"Authorization: Bearer $TOKEN\""), "200");
    assert_eq!(
        code(&mut user, "-H \"X-Serverless-Authorization: Bearer $TOKEN\""),
        "200"
    );
    // A changed signature, an access token, a token for another service.
    assert_eq!(
        code(&mut user, "-H \"Authorization: Bearer ${TOKEN%????????}AAAAAAAA\""),
        "401"
    );
    assert_eq!(
        code(
            &mut user,
            "-H \"Authorization: Bearer $(gcloud auth print-access-token)\""
        ),
        "401"
    );
    let other =
        "-H \"Authorization: Bearer $(gcloud auth print-identity-token --audiences=http://other.a.run.localhost)\"";
    assert_eq!(code(&mut user, other), "401");
    let own = format!("-H \"Authorization: Bearer $(gcloud auth print-identity-token --audiences={url})\"");
    assert_eq!(code(&mut user, &own), "200");

    let binding = "private $REGION --member=allUsers --role=roles/run.invoker";
    user.ok(&format!("gcloud run services add-iam-policy-binding {binding}"));
    assert_eq!(code(&mut user, ""), "200");
    user.ok(&format!("gcloud run services remove-iam-policy-binding {binding}"));
    assert_eq!(code(&mut user, ""), "403");
    user.leaves();
}

#[test]
fn the_container_is_told_who_asks() {
    let mut user = User::of_homerun();
    let url = user.deploy("told", "--image=$HELLO");
    let host = url.trim_start_matches("http://").to_owned();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let said = user.ok(&format!(
        "curl --fail -d 'a body' -H 'X-Forwarded-For: 192.0.2.1' -H 'traceparent: {parent}' '{url}/echo?q=1'"
    ));
    for part in [
        r#""method":"POST""#.to_owned(),
        r#""target":"/echo?q=1""#.to_owned(),
        r#""body":"a body""#.to_owned(),
        format!(r#"ost":"{host}""#),
        "192.0.2.1,127.0.0.1".to_owned(),
        r#"orwarded":"for=\"127.0.0.1\";proto=http""#.to_owned(),
        "0af7651916cd43dd8448eb211c80319c".to_owned(),
    ] {
        assert!(said.replace(", ", ",").contains(&part), "no {part} in {said}");
    }
    assert!(said.to_lowercase().contains(r#""x-forwarded-proto":"http""#), "{said}");
    let said = user
        .ok(&format!(
            "curl --fail --cacert $DATA_DIR/ca/ca.pem https://{}:$HTTPS_PORT/echo",
            host.split(':').next().expect("a host")
        ))
        .to_lowercase();
    assert!(said.contains(r#""x-forwarded-proto":"https""#), "{said}");
    assert!(
        said.contains(r#""traceparent":"00-"#),
        "one is made where none came: {said}"
    );
    user.leaves();
}

/// Milliseconds at which the lines of a command's output came, beside them.
fn timed(command: &str) -> String {
    format!("{command} | while read -r line; do echo $(date +%s%3N) $line; done")
}

#[track_caller]
fn spread(text: &str, lines: usize) -> u64 {
    let times: Vec<u64> = text
        .lines()
        .map(|line| {
            line.split(' ')
                .next()
                .and_then(|time| time.parse().ok())
                .unwrap_or_else(|| panic!("{text}"))
        })
        .collect();
    assert_eq!(times.len(), lines, "{text}");
    times[lines - 1] - times[0]
}

#[test]
fn bodies_stream_both_ways() {
    let mut user = User::of_homerun();
    let url = user.deploy("stream", "--image=$HELLO");
    let text = user.ok(&timed(&format!("curl --fail -N '{url}/stream?chunks=3&ms=700'")));
    assert!(spread(&text, 3) > 1000, "the first chunk came late: {text}");

    let image = user.import_probe("back");
    let url = user.deploy("back", &format!("--image={image}"));
    // Each piece is answered before the next is sent, or this never ends well.
    let host = url.trim_start_matches("http://");
    let port = host.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let mut stream = TcpStream::connect(("127.0.0.1", port.expect("a port"))).expect("connects");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("settable");
    write!(
        stream,
        "POST /back HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .expect("sent");
    let mut answer = String::new();
    for piece in ["one", "two", "three"] {
        write!(stream, "{:x}\r\n{piece}\r\n", piece.len()).expect("sent");
        while !answer.contains(piece) {
            let mut read = [0; 1024];
            let length = stream
                .read(&mut read)
                .unwrap_or_else(|error| panic!("{piece}: {error} after {answer}"));
            assert_ne!(length, 0, "{piece}: ended after {answer}");
            answer.push_str(&String::from_utf8_lossy(&read[..length]));
        }
    }
    write!(stream, "0\r\n\r\n").expect("sent");
    while !answer.ends_with("\r\n0\r\n\r\n") {
        let mut read = [0; 1024];
        let length = stream.read(&mut read).expect("its end");
        assert_ne!(length, 0, "ended after {answer}");
        answer.push_str(&String::from_utf8_lossy(&read[..length]));
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    user.leaves();
}

#[test]
fn one_record_for_each_request() {
    let mut user = User::of_homerun();
    let url = user.deploy("records", "--image=$HELLO --timeout=1");
    user.ok(&format!("{CODE} -A agent/1 -d 12345 '{url}/echo?marked'"));
    user.ok(&format!("{CODE} '{url}/sleep?ms=3000&marked'"));
    user.ok(&format!("{CODE} 'http://none.a.run.localhost:'$HTTP_PORT'/marked'"));
    user.ends(&format!("curl --max-time 0.3 '{url}/sleep?ms=900&marked'"), 28);
    user.ok("sleep 0.6");
    let mut records = Vec::new();
    for segment in fs::read_dir(user.homerun.root().join("data/log")).expect("a journal") {
        let text = fs::read_to_string(segment.expect("a segment").path()).expect("readable");
        for line in text.lines().filter(|line| line.contains("marked")) {
            let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
            records.push(entry["entry"]["Request"].clone());
        }
    }
    let statuses: Vec<_> = records
        .iter()
        .map(|r| r["status"].as_u64().expect("a status"))
        .collect();
    assert_eq!(statuses, [200, 504, 404, 499], "{records:?}");
    let first = &records[0];
    assert_eq!(first["method"], "POST");
    assert_eq!(first["user_agent"], "agent/1");
    assert_eq!(first["request_bytes"], 5);
    assert_eq!(first["protocol"], "HTTP/1.1");
    assert_eq!(first["url"], format!("{url}/echo?marked"));
    assert!(first["response_bytes"].as_u64() > Some(20), "{first}");
    assert!(first["instance"].is_string() && first["refusal"].is_null(), "{first}");
    assert!(records[1]["latency_micros"].as_u64() > Some(900_000), "{}", records[1]);
    assert!(records[2]["service"].is_null(), "{}", records[2]);
    user.leaves();
}
