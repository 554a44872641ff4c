//! Clients that stop in the middle: their connections end in bounded time, and nobody else waits for them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{User, exchange};

/// How a client stops, and how long it may be suffered.
struct Stop {
    name: &'static str,
    to: SocketAddr,
    sends: String,
    /// One more byte each second, so that the connection is never silent.
    trickles: bool,
    at_least: Duration,
    at_most: Duration,
    /// What must have been said before the end, if anything.
    told: &'static str,
}

impl Stop {
    /// Until the connection ends: for how long it was there, and what came.
    fn play(&self) -> (Duration, String) {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(self.to).expect("listens");
        stream.write_all(self.sends.as_bytes()).expect("sent");
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time");
        let mut got = Vec::new();
        let mut piece = [0; 4096];
        while begun.elapsed() < self.at_most + Duration::from_secs(5) {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => got.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if self.trickles && stream.write_all(b"x").is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        (begun.elapsed(), String::from_utf8_lossy(&got).into_owned())
    }
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

#[test]
fn half_open_clients_are_dropped_and_hold_up_nobody() {
    let mut user = User::of_homerun();
    let url = user.deploy("kept", "--image=$HELLO --timeout=5");
    let narrow = user.deploy("narrow", "--image=$HELLO --concurrency=1 --max-instances=1 --timeout=5");
    let host_of = |url: &str| url.strip_prefix("http://").expect("as it was started").to_owned();
    let (host, narrow) = (host_of(&url), host_of(&narrow));
    let token = user.ok("gcloud auth print-access-token").trim().to_owned();
    let (api, http, https) = (user.homerun.api(), user.homerun.http(), user.homerun.https());

    let stop = |name, to, sends: &str, seconds: std::ops::RangeInclusive<u64>, told| Stop {
        name,
        to,
        sends: sends.to_owned(),
        trickles: false,
        at_least: Duration::from_secs(*seconds.start()),
        at_most: Duration::from_secs(*seconds.end()),
        told,
    };
    let put = format!(
        "PUT /apis/serving.knative.dev/v1/namespaces/my-project/services/kept HTTP/1.1\r\n\
         host: us-central1-run.googleapis.com\r\nauthorization: Bearer {token}\r\ncontent-length: 100\r\n\r\n{{"
    );
    let post = format!("POST /echo HTTP/1.1\r\nhost: {host}\r\ncontent-length: 100\r\n\r\nhalf");
    let half = format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-long: ");
    // The limits of the ingress are for a connection without a request: 30 s, at most twice that; 10 s for TLS.
    let mut stops = vec![
        stop("http, silent", http, "", 29..=61, ""),
        stop("http, half a head", http, &half, 9..=61, ""),
        stop("https, silent", https, "", 9..=15, ""),
        stop("https, half a hello", https, "\u{16}\u{3}\u{1}", 9..=15, ""),
        stop("http, half a body", http, &post, 4..=15, " 504 "),
        stop("api, silent", api, "", 29..=40, ""),
        stop(
            "api, half a head",
            api,
            "GET / HTTP/1.1\r\nhost: x\r\nx-long: ",
            29..=40,
            "",
        ),
        stop(
            "api, half a body",
            api,
            &put,
            29..=65,
            "did not arrive within 60 seconds",
        ),
        stop(
            "api, a tunnel without TLS",
            api,
            "CONNECT us-central1-run.googleapis.com:443 HTTP/1.1\r\nhost: us-central1-run.googleapis.com:443\r\n\r\n",
            9..=15,
            " 200 ",
        ),
    ];
    for (name, to) in [("http, a trickling head", http), ("api, a trickling head", api)] {
        stops.push(Stop {
            trickles: true,
            ..stop(name, to, &half, 9..=61, "")
        });
    }
    let begun = Instant::now();
    let (send, ended) = mpsc::channel();
    let count = stops.len();
    for stop in stops {
        let send = send.clone();
        thread::spawn(move || {
            let (took, got) = stop.play();
            drop(send.send((stop, took, got)));
        });
    }
    drop(send);

    // Whoever goes away gives the only place back at once; so does who closes its half, which looks the same.
    for half in [false, true] {
        let mut gone = TcpStream::connect(http).expect("listens");
        gone.write_all(get(&narrow, "/sleep?ms=4000").as_bytes()).expect("sent");
        thread::sleep(Duration::from_millis(300));
        let next = Instant::now();
        if half {
            gone.shutdown(std::net::Shutdown::Write).expect("shut");
            gone.read_to_end(&mut Vec::new()).expect("ends");
        } else {
            drop(gone);
        }
        let answer = exchange(http, get(&narrow, "/")).expect("answered");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(
            next.elapsed() < Duration::from_secs(2),
            "waited for who had gone: {:?}",
            next.elapsed()
        );
    }
    // Whoever takes no answer gives it back after the request's time and twice the limit of quiet.
    let mut deaf = TcpStream::connect(http).expect("listens");
    deaf.write_all(get(&narrow, "/bytes?n=30000000").as_bytes())
        .expect("sent");
    thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    let deaf_ended = thread::spawn(move || {
        loop {
            let answer = exchange(http, get(&narrow, "/")).expect("answered");
            match answer.status {
                200 => break since.elapsed(),
                429 | 504 => assert!(since.elapsed() < Duration::from_secs(75), "{answer:?}"),
                _ => panic!("{answer:?}"),
            }
        }
    });

    let mut wrong = Vec::new();
    let mut seen = 0;
    while seen < count {
        let others = Instant::now();
        let answer = exchange(http, get(&host, "/")).expect("answered");
        assert_eq!(answer.status, 200, "{answer:?}");
        let status = user.ok("homerun status --api=$HOMERUN_API");
        assert!(status.starts_with("running"), "{status}");
        assert!(
            others.elapsed() < Duration::from_secs(5),
            "others wait: {:?}",
            others.elapsed()
        );
        if let Ok((stop, took, got)) = ended.recv_timeout(Duration::from_secs(1)) {
            seen += 1;
            if took < stop.at_least || took > stop.at_most || !got.contains(stop.told) {
                wrong.push(format!(
                    "{}: after {took:?}, not {:?} to {:?}: {got:?}",
                    stop.name, stop.at_least, stop.at_most
                ));
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(80), "{seen} of {count} ended");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let held = deaf_ended.join().expect("it ended");
    assert!(
        (Duration::from_secs(4)..Duration::from_secs(71)).contains(&held),
        "{held:?}"
    );
    drop(deaf);
    user.leaves();
}
