//! Who is let in, and who answers.

use serde_json::Value;
use tokio::process::Command;

use crate::setting::{RUN, SERVICE, Setting, Version, exchange};

#[tokio::test]
async fn requests_in_a_tunnel_are_dispatched_by_host() {
    let setting = Setting::new().await;
    for version in Version::ALL {
        for (host, answered_by) in [
            (RUN, "api"),
            ("oauth2.googleapis.com", "api"),
            ("accounts.google.com", "api"),
            ("us-docker.pkg.dev", "api"),
            ("my-api-abcdefghij-uc.a.run.app", "api"),
            (SERVICE, "ingress"),
        ] {
            let mut client = setting.client(host, version).await;
            // twice: the connection is kept
            for path in ["/v1/a?b=c", "/"] {
                let (status, seen) = client.ask(host, path).await.expect("an answer");
                assert_eq!(status, 200);
                assert_eq!(seen["answered_by"], answered_by, "{version:?} {host}");
                assert_eq!(seen["uri"], path);
                assert_eq!(seen["host"], host);
                assert_eq!(seen["host_line"], host);
                assert_eq!(seen["secure"], true);
                assert_eq!(seen["peer"], "127.0.0.1");
            }
        }
    }
}

#[tokio::test]
async fn one_tunnel_serves_other_hosts_of_ours_but_no_foreign_one() {
    let setting = Setting::new().await;
    for version in Version::ALL {
        let mut client = setting.client(RUN, version).await;
        let (status, seen) = client.ask(SERVICE, "/").await.expect("an answer");
        assert_eq!((status, &seen["answered_by"]), (200, &"ingress".into()));
        let (status, seen) = client.ask("example.com", "/").await.expect("an answer");
        assert_eq!(status, 421);
        let message = seen["error"]["message"].as_str().expect("text");
        assert!(message.contains("example.com"), "{message}");
    }
}

#[tokio::test]
async fn a_foreign_host_is_refused_by_name_and_the_connection_goes_on() {
    let setting = Setting::new().await;
    let mut socket = setting.dial().await;
    let asks = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n\
                GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n\
                GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:8787\r\nConnection: close\r\n\r\n";
    let answers = exchange(&mut socket, asks).await;
    assert_eq!(answers.matches("HTTP/1.1 403 Forbidden\r\n").count(), 2);
    assert_eq!(answers.matches("host example.com is not served").count(), 2);
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 1);
    assert!(answers.ends_with('}'), "{answers}");
    assert!(answers.contains(r#""answered_by":"api""#), "{answers}");
}

#[tokio::test]
async fn only_the_ports_of_a_service_are_let_in() {
    let setting = Setting::new().await;
    for (target, status) in [
        (format!("{SERVICE}:8443"), 200),
        (format!("{SERVICE}:8081"), 200),
        (format!("{SERVICE}:22"), 403),
        (format!("{RUN}:80"), 403),
        ("127.0.0.1:443".to_owned(), 403),
        ("metadata.google.internal:443".to_owned(), 403),
        (RUN.to_owned(), 400),
    ] {
        assert_eq!(setting.connect(&target).await.0, status, "{target}");
    }
}

#[tokio::test]
async fn a_tunnel_to_a_services_http_port_carries_plain_http() {
    let setting = Setting::new().await;
    let (status, mut socket) = setting.connect(&format!("{SERVICE}:80")).await;
    assert_eq!(status, 200);
    let ask = format!("GET /p HTTP/1.1\r\nHost: {SERVICE}\r\nConnection: close\r\n\r\n");
    let answer = exchange(&mut socket, &ask).await;
    assert!(answer.contains(r#""answered_by":"ingress""#), "{answer}");
    assert!(answer.contains(r#""secure":false"#), "{answer}");
}

#[tokio::test]
async fn plain_http_on_the_open_port() {
    let setting = Setting::new().await;
    for (host, answered_by) in [
        (RUN, "api"),
        ("127.0.0.1:8787", "api"),
        ("whatever.example", "api"),
        (SERVICE, "ingress"),
    ] {
        let mut socket = setting.dial().await;
        let ask = format!("GET /v1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = exchange(&mut socket, &ask).await;
        let expected = format!(r#""answered_by":"{answered_by}""#);
        assert!(answer.contains(&expected), "{answer}");
        let expected = format!(r#""host_line":"{host}""#);
        assert!(answer.contains(&expected), "{answer}");
        assert!(answer.contains(r#""secure":false"#), "{answer}");
    }
}

#[tokio::test]
async fn a_head_that_is_no_http_or_too_long_is_refused() {
    let setting = Setting::new().await;
    let mut socket = setting.dial().await;
    let answer = exchange(&mut socket, "\u{16}\u{3}\u{1} nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let mut socket = setting.dial().await;
    let long = "x".repeat(70_000);
    let ask = format!("GET / HTTP/1.1\r\nHost: {RUN}\r\nX: {long}\r\n\r\n");
    let answer = exchange(&mut socket, &ask).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let mut socket = setting.dial().await;
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n";
    let answer = exchange(&mut socket, ask).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_name_that_is_not_ours_gets_no_certificate() {
    let setting = Setting::new().await;
    for version in ["h2", "http/1.1"] {
        let refused = setting.tls(RUN, "example.com", &[version]).await;
        assert!(refused.is_err());
        let served = setting.tls(RUN, RUN, &[version]).await;
        assert!(served.is_ok());
    }
}

#[tokio::test]
async fn h2_is_chosen_where_both_are_offered_and_http1_where_none_is() {
    let setting = Setting::new().await;
    for (offered, chosen) in [
        (&["http/1.1", "h2"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let tls = setting.tls(RUN, RUN, offered).await.expect("handshake");
        assert_eq!(tls.get_ref().1.alpn_protocol(), chosen);
    }
}

struct Curled {
    exit: Option<i32>,
    out: String,
}

async fn curl(setting: &Setting, arguments: &[&str]) -> Curled {
    let output = Command::new("curl")
        .args(["--silent", "--max-time", "10", "--noproxy", ""])
        .args(["--proxy", &setting.proxy()])
        .args(arguments)
        .output()
        .await
        .expect("curl is installed");
    Curled {
        exit: output.status.code(),
        out: String::from_utf8(output.stdout).expect("utf-8"),
    }
}

#[tokio::test]
async fn curl_goes_through_with_the_authority_and_not_without() {
    let setting = Setting::new().await;
    let ca = setting.authority.certificate_file();
    let ca = ca.to_str().expect("utf-8");
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for (host, answered_by) in [(RUN, "api"), (SERVICE, "ingress")] {
            let url = format!("https://{host}/v1?x=y");
            let write = "\n%{http_version}";
            let curled = curl(&setting, &["--cacert", ca, flag, "-w", write, &url]).await;
            assert_eq!(curled.exit, Some(0), "{}", curled.out);
            let (body, spoken) = curled.out.rsplit_once('\n').expect("two lines");
            assert_eq!(spoken, version);
            let seen: Value = serde_json::from_str(body).expect("json");
            assert_eq!(seen["answered_by"], answered_by);
            assert_eq!(seen["uri"], "/v1?x=y");
        }
    }
    // 60: the peer's certificate cannot be verified
    let url = format!("https://{RUN}/");
    assert_eq!(curl(&setting, &[&url]).await.exit, Some(60));
    // 56: the proxy refused the tunnel
    let foreign = curl(&setting, &["--cacert", ca, "https://example.com/"]).await;
    assert_eq!(foreign.exit, Some(56));
}

#[tokio::test]
async fn curl_with_an_http_proxy_reaches_our_hosts_and_no_other() {
    let setting = Setting::new().await;
    let url = format!("http://{SERVICE}:8081/a?b");
    let seen: Value = serde_json::from_str(&curl(&setting, &[&url]).await.out).expect("json");
    assert_eq!(seen["answered_by"], "ingress");
    assert_eq!(seen["uri"], "/a?b");
    assert_eq!(seen["host"], SERVICE);
    assert_eq!(seen["host_line"], format!("{SERVICE}:8081"));
    assert_eq!(seen["proxy_line"], false);
    let own = format!("{}/healthz", setting.proxy());
    let seen: Value = serde_json::from_str(&curl(&setting, &[&own]).await.out).expect("json");
    assert_eq!(seen["answered_by"], "api");
    let foreign = curl(&setting, &["-w", "%{http_code}", "http://example.com/"]).await;
    assert!(foreign.out.ends_with("403"), "{}", foreign.out);
    assert!(foreign.out.contains("example.com"), "{}", foreign.out);
}
