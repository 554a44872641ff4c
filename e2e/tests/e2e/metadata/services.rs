//! A private service called by another one.

use std::{
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, User};
use serde_json::Value;

use super::{ACCOUNT, PATIENCE, RUNNER, attached, request, told};

/// A private service is called by its URL from inside another one's instance.
fn service_to_service(flags: &[&str], environment: &str) {
    let mut user = User::with(flags, Client::Homerun);
    let image = user.import_probe("caller");
    user.ok("gcloud iam service-accounts create runner");
    let a = user.deploy(
        "a",
        &format!("--image={image} --service-account={RUNNER} --execution-environment={environment}"),
    );
    user.ok(&format!(
        "gcloud run deploy b --image={image} $REGION --no-allow-unauthenticated --quiet"
    ));
    let b = user.describe("b", "value(status.url)").trim().to_owned();
    attached(&mut user, &a);
    let host = b.trim_start_matches("http://").to_owned();
    let port = host.rsplit(':').next().expect("a port").to_owned();
    let token = told(&mut user, &a, &format!("{ACCOUNT}/identity?audience={b}"));
    let elsewhere = told(
        &mut user,
        &a,
        &format!("{ACCOUNT}/identity?audience=https://example.com"),
    );
    let access: Value = serde_json::from_str(&told(&mut user, &a, &format!("{ACCOUNT}/token"))).expect("JSON");
    // Where programs look that take every name below localhost for their own machine, and where those do that ask.
    let places = [format!("127.0.0.1:{port}"), format!("169.254.169.253:{port}")];
    let call = |user: &mut User, to: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Authorization: Bearer {token}"));
        let host = format!("Host: {host}");
        let headers: Vec<&str> = std::iter::once(host.as_str()).chain(bearer.as_deref()).collect();
        let answer = request(user, &a, to, "GET /name", &headers);
        (answer.status, answer.body)
    };
    for to in &places {
        assert_eq!(call(&mut user, to, None).0, 403, "{to}: without a token");
        assert_eq!(call(&mut user, to, Some(&token)).0, 403, "{to}: without the role");
    }
    user.ok(&format!(
        "gcloud run services add-iam-policy-binding b $REGION --member=serviceAccount:{RUNNER} --role=roles/run.invoker"
    ));
    for to in &places {
        let begin = Instant::now();
        loop {
            let (status, body) = call(&mut user, to, Some(&token));
            if status == 200 {
                assert_eq!(body.trim(), "caller");
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "{to}: {status}: {body}");
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(call(&mut user, to, None).0, 403, "{to}");
        assert_eq!(call(&mut user, to, Some(&elsewhere)).0, 401, "{to}: for somebody else");
        let access = access["access_token"].as_str().expect("a token");
        assert_eq!(call(&mut user, to, Some(access)).0, 401, "{to}: no identity token");
    }
    user.leaves();
}

#[test]
fn a_private_service_is_called_from_the_second_generation() {
    service_to_service(&[], "gen2");
}

#[test]
fn a_private_service_is_called_from_the_first_generation_without_a_way_out() {
    service_to_service(&["--egress=off"], "gen1");
}

/// A program that listens itself on the port of services' URLs has it, and its 127.0.0.1.
#[test]
fn the_port_of_urls_is_a_program_s_own_where_it_listens() {
    let mut user = User::of_homerun();
    let image = user.import_probe("caller");
    let port = user.homerun.http().port();
    let url = user.deploy("one", &format!("--image={image} --port={port}"));
    attached(&mut user, &url);
    assert_eq!(user.get(&format!("{url}/call/{port}/name")).trim(), "caller");
    user.leaves();
}
