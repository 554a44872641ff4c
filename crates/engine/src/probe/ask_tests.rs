//! Against servers on a loopback: the real health service of gRPC, and some that answer with what they please.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tonic_health::ServingStatus;

use super::*;

async fn to(port: u16) -> TokioIo<TcpStream> {
    TokioIo::new(TcpStream::connect(("127.0.0.1", port)).await.expect("it listens"))
}

fn answer(text: &str) -> Result<(), No> {
    Err(No::Answer(text.to_owned()))
}

/// Answers one request with `bytes`, and returns what was asked.
async fn server(bytes: &'static [u8]) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut asked = vec![0; 4096];
        let length = stream.read(&mut asked).await.expect("a request");
        asked.truncate(length);
        // The client may have heard enough.
        let _ = stream.write_all(bytes).await;
        String::from_utf8(asked).expect("text")
    });
    (port, serving)
}

#[tokio::test]
async fn http_is_good_from_200_to_399() {
    let cases: [(&[u8], Result<(), No>); 6] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Ok(())),
        (b"HTTP/1.1 399 Odd\r\nContent-Length: 0\r\n\r\n", Ok(())),
        // Not followed.
        (
            b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
            Ok(()),
        ),
        (
            b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n",
            answer("The answer was 400."),
        ),
        (b"HTTP/1.1 503 No\r\n\r\n", answer("The answer was 503.")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 None\r\n\r\n", Ok(())),
    ];
    for (bytes, expected) in cases {
        let (port, serving) = server(bytes).await;
        assert_eq!(http(to(port).await, port, "/healthz?full=1", &[]).await, expected);
        let asked = serving.await.expect("served");
        let lines: Vec<&str> = asked.lines().collect();
        assert_eq!(lines[0], "GET /healthz?full=1 HTTP/1.1");
        for header in [
            format!("host: localhost:{port}"),
            format!("user-agent: {USER_AGENT}"),
            "connection: close".to_owned(),
        ] {
            assert!(lines.contains(&header.as_str()), "{header} in {asked}");
        }
    }
}

#[tokio::test]
async fn headers_of_the_probe_are_sent_and_go_before_our_own() {
    let header = |name: &str, value: &str| Header {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let headers = [
        header("Host", "example.com"),
        header("X-Twice", "1"),
        header("X-Twice", "2"),
        header("User-Agent", "mine"),
    ];
    let (port, serving) = server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(http(to(port).await, port, "/", &headers).await, Ok(()));
    let asked = serving.await.expect("served");
    for (line, times) in [
        ("host: example.com", 1),
        ("x-twice: 1", 1),
        ("x-twice: 2", 1),
        ("user-agent: mine", 1),
    ] {
        assert_eq!(asked.lines().filter(|l| l == &line).count(), times, "{line} in {asked}");
    }
    assert!(!asked.contains("localhost"), "{asked}");
}

#[tokio::test]
async fn garbage_is_no_answer_and_an_endless_one_ends() {
    let (port, serving) = server(b"what?\r\n\r\n").await;
    let no = http(to(port).await, port, "/", &[]).await.expect_err("garbage");
    assert!(
        matches!(&no, No::Answer(why) if why.starts_with("The connection broke: ")),
        "{no:?}"
    );
    serving.await.expect("served");

    let (port, serving) = server(b"").await;
    assert!(http(to(port).await, port, "/", &[]).await.is_err());
    serving.await.expect("served");

    // Longer than is read, and never at its end.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut sent = stream.write_all(head).await;
        while sent.is_ok() {
            sent = stream.write_all(b"4\r\nmore\r\n").await;
        }
    });
    assert_eq!(http(to(port).await, port, "/", &[]).await, Ok(()));
    serving.await.expect("its client left");
}

#[tokio::test]
async fn grpc_asks_a_real_health_service() {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("up", ServingStatus::Serving).await;
    let long = "long-name-".repeat(30);
    reporter.set_service_status(&long, ServingStatus::Serving).await;
    reporter.set_service_status("down", ServingStatus::NotServing).await;
    reporter.set_service_status("odd", ServingStatus::Unknown).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    for (service, expected) in [
        // The server as a whole.
        ("", Ok(())),
        ("up", Ok(())),
        (long.as_str(), Ok(())),
        ("down", answer("The answer was NOT_SERVING.")),
        ("odd", answer("The answer was UNKNOWN.")),
        // NOT_FOUND
        ("unheard-of", answer("The answer was gRPC status 5.")),
    ] {
        assert_eq!(grpc(to(port).await, port, service).await, expected, "{service}");
    }
    serving.abort();
}

#[tokio::test]
async fn grpc_of_something_else_is_no_answer() {
    // A gRPC server without the health service.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let router = tonic::service::Routes::default();
    let without = tonic::transport::Server::builder().add_routes(router);
    let serving = tokio::spawn(without.serve_with_incoming(incoming));
    // UNIMPLEMENTED
    assert_eq!(
        grpc(to(port).await, port, "").await,
        answer("The answer was gRPC status 12.")
    );
    serving.abort();

    let (port, serving) = server(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let no = grpc(to(port).await, port, "").await.expect_err("not HTTP/2");
    assert!(
        matches!(&no, No::Answer(why) if why.starts_with("The connection broke: ")),
        "{no:?}"
    );
    serving.abort();
}

#[test]
fn health_messages() {
    assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
    assert_eq!(health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    assert_eq!(health_request(&"x".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
    let read = |bytes: &'static [u8]| health_answer(Bytes::from_static(bytes));
    assert_eq!(read(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
    assert_eq!(read(&[0, 0, 0, 0, 0]), answer("The answer was UNKNOWN."));
    assert_eq!(read(&[0, 0, 0, 0, 2, 8, 3]), answer("The answer was SERVICE_UNKNOWN."));
    assert_eq!(
        read(&[0, 0, 0, 0, 2, 8, 9]),
        answer("The answer was the unknown status 9.")
    );
    // Fields of later versions: a number, 8 bytes, text, 4 bytes.
    let later = [
        &[0, 0, 0, 0, 22, 16, 5, 25, 0, 0, 0, 0, 0, 0, 0, 0, 34, 1, 7][..],
        &[45, 0, 0, 0, 0, 8, 1, 16, 0],
    ];
    let mut later = later.concat();
    later[4] = u8::try_from(later.len() - 5).expect("short");
    assert_eq!(health_answer(Bytes::from(later)), Ok(()));
    let garbled = answer("The answer was no health message.");
    for bad in [
        &[][..],
        &[0, 0, 0, 0],
        &[1, 0, 0, 0, 0],
        &[0, 0, 0, 0, 9, 8, 1],
        &[0, 0, 0, 0, 1, 8],
        &[0, 0, 0, 0, 2, 8, 0x80],
        &[0, 0, 0, 0, 2, 18, 9],
        &[0, 0, 0, 0, 1, 15],
    ] {
        assert_eq!(health_answer(Bytes::copy_from_slice(bad)), garbled, "{bad:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..64)) {
        let _ = health_answer(Bytes::from(bytes));
    }
}
