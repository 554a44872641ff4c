//! `homerun upgrade`: another process serves, and no client notices.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use homerun_e2e::{Client, Layout, User};
use tokio_tungstenite::tungstenite::Message;

use crate::protocols::{SPEAKER, echoes, run, websocket};

const PATIENCE: Duration = Duration::from_mins(1);

/// A person with a service of the broken image, and what its one instance answers.
fn user(flags: &str) -> (User, String, String) {
    let mut user = User::with(&["--idle-retention", "1m"], Client::Homerun);
    let dir = user.homerun.root().join("layouts/broken");
    Layout::image(&dir, "broken").expect("a layout");
    let image = "us-central1-docker.pkg.dev/my-project/e2e/broken:latest";
    user.ok(&format!("homerun images import {} {image}", dir.display()));
    let url = user.deploy(
        "lasting",
        &format!("--image={image} --command=/broken --args=serve --max-instances=1 {flags}"),
    );
    let own = user.get(&url);
    (user, url, own)
}

/// A client that asks again and again, by one connection for as long as it is kept, or by a new one each time.
struct Load {
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    /// How often a connection was said to end with its answer; or how a request failed.
    asking: JoinHandle<Result<usize, String>>,
}

impl Load {
    fn begin(to: SocketAddr, url: &str, own: &str, keep: bool) -> Self {
        let host = url.trim_start_matches("http://").to_owned();
        let own = own.to_owned();
        let (asked, over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, ended) = (asked.clone(), over.clone());
        let asking = thread::spawn(move || {
            let mut connection = None;
            let mut closed = 0;
            while !ended.load(Ordering::SeqCst) {
                let number = counted.load(Ordering::SeqCst);
                let failed = |what: &dyn std::fmt::Display| format!("request {number}: {what}");
                let mut reader = if let Some(reader) = connection.take() {
                    reader
                } else {
                    let stream = TcpStream::connect(to).map_err(|error| failed(&error))?;
                    let timeout = stream.set_read_timeout(Some(PATIENCE));
                    timeout.map_err(|error| failed(&error))?;
                    BufReader::new(stream)
                };
                let (answer, last) = ask(&mut reader, &host).map_err(|error| failed(&error))?;
                if answer.trim() != own {
                    return Err(failed(&format!("answered by {answer}, not by {own}")));
                }
                closed += usize::from(last);
                connection = (keep && !last).then_some(reader);
                counted.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(3));
            }
            Ok(closed)
        });
        Self { asked, over, asking }
    }

    /// Until it has asked so often from now on, or has failed.
    fn goes_on(&self, times: usize) {
        let until = self.asked.load(Ordering::SeqCst) + times;
        let begin = Instant::now();
        while self.asked.load(Ordering::SeqCst) < until && !self.asking.is_finished() {
            assert!(begin.elapsed() < PATIENCE, "it asks no more");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(self) -> Result<usize, String> {
        self.over.store(true, Ordering::SeqCst);
        self.asking.join().expect("no panic")
    }
}

/// The body of an answer of 200, and whether the connection ends with it.
fn ask(reader: &mut BufReader<TcpStream>, host: &str) -> std::io::Result<(String, bool)> {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    reader.get_mut().write_all(request.as_bytes())?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::Error::other(format!("closed after {head:?}")));
        }
    }
    let head = head.to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let Some(length) = length.filter(|_| head.starts_with("http/1.1 200")) else {
        return Err(std::io::Error::other(head));
    };
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((
        String::from_utf8_lossy(&body).into_owned(),
        head.lines().any(|line| line == "connection: close"),
    ))
}

/// All lines of the journal with these words in them.
fn lines(user: &User, words: &str) -> Vec<String> {
    let mut found = Vec::new();
    for segment in fs::read_dir(user.homerun.root().join("data/log"))
        .expect("a journal")
        .flatten()
    {
        let text = fs::read_to_string(segment.path()).unwrap_or_default();
        found.extend(text.lines().filter(|line| line.contains(words)).map(str::to_owned));
    }
    found
}

/// How many lines an answer has, which must be there one after the other, before the word of the instance.
fn drips(answer: &str, name: &str, own: &str) -> usize {
    let (drips, last) = answer.rsplit_once('\n').expect("several lines");
    assert_eq!(last, own, "the same instance, to the end");
    for (number, line) in drips.lines().enumerate() {
        assert_eq!(line, format!("{name} drips {number}"));
    }
    drips.lines().count()
}

fn nobody_notices(flags: &str) {
    let (mut user, url, own) = user(flags);
    let to = user.homerun.http();
    let loads = [Load::begin(to, &url, &own, false), Load::begin(to, &url, &own, true)];
    for (name, flag) in [("one", ""), ("two", "--http2-prior-knowledge")] {
        user.ok(&format!("curl --fail {flag} '{url}/drip?{name}' > {name} & {name}=$!"));
    }
    let begin = Instant::now();
    while lines(&user, " drips 3").len() < 2 {
        assert!(begin.elapsed() < PATIENCE, "nothing flows\n{}", user.homerun.log());
        thread::sleep(Duration::from_millis(20));
    }
    for load in &loads {
        load.goes_on(5);
    }
    let said = user.ok("homerun upgrade");
    user.homerun.follow().expect("another process");
    assert_eq!(said, format!("process {} serves", user.homerun.pid()));
    for load in &loads {
        load.goes_on(20);
    }
    // The old one's answers end whole.
    assert_eq!(user.get(&format!("{url}/enough")), own);
    let said: Vec<(&str, usize)> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let answer = user.ok(&format!("wait ${name} && cat {name}"));
            (name, drips(&answer, name, &own))
        })
        .collect();
    let [fresh, kept] = loads.map(Load::end);
    fresh.unwrap_or_else(|error| panic!("{error}\n{}", user.homerun.log()));
    let closed = kept.unwrap_or_else(|error| panic!("{error}\n{}", user.homerun.log()));
    assert_eq!(closed, 1, "the old process said goodbye once");
    user.homerun
        .first_ends(PATIENCE)
        .expect("it ends when its requests have");
    assert_eq!(user.get(&url), own, "still the same instance");
    // What was said meanwhile, each line once.
    let begin = Instant::now();
    for (name, count) in said {
        let words = format!("\"{name} drips ");
        while lines(&user, &words).len() < count && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
        for number in 0..count {
            let times = lines(&user, &format!("{words}{number}\"")).len();
            assert_eq!(times, 1, "{name} {number} of {count}\n{}", user.homerun.log());
        }
    }
    // And once more, from the one that was handed over to.
    user.ok("homerun upgrade");
    user.homerun.follow().expect("another process");
    assert_eq!(user.get(&url), own, "still the same instance");
    user.leaves();
}

#[test]
fn an_upgrade_that_nobody_notices() {
    nobody_notices("");
}

#[test]
fn nor_when_instances_are_not_throttled() {
    nobody_notices("--no-cpu-throttling");
}

/// A binary that does not serve: the old process does, on all its ports, with its store and its instances.
fn stays(user: &mut User, url: &str, own: &str, binary: &str, why: &str) {
    let pid = user.homerun.pid();
    let load = Load::begin(user.homerun.http(), url, own, false);
    load.goes_on(5);
    let said = user.refused(&format!("homerun upgrade --binary {binary}"));
    assert!(said.contains("the old one serves on") && said.contains(why), "{said}");
    load.goes_on(20);
    load.end()
        .unwrap_or_else(|error| panic!("{error}\n{}", user.homerun.log()));
    assert_eq!(user.homerun.pid(), pid);
    assert!(user.homerun.follow().is_err(), "the same process");
    assert_eq!(user.get(url), own, "the same instance");
    // The store is open.
    user.deploy("other", "--image=$HELLO");
}

#[test]
fn a_binary_that_does_not_come_up() {
    let (mut user, url, own) = user("");
    let no_program = user.homerun.root().join("nothing");
    stays(
        &mut user,
        &url,
        &own,
        "/bin/false",
        "/bin/false: the new process ended before it was ready",
    );
    let why = "No such file or directory";
    stays(&mut user, &url, &own, &no_program.display().to_string(), why);
    user.leaves();
}

#[test]
fn a_binary_that_ends_after_all_was_handed_to_it() {
    let (mut user, url, own) = user("");
    let binary = user.homerun.root().join("ends");
    let program = "#!/usr/bin/env python3\n\
        import json, os, socket\n\
        handover = socket.socket(fileno=0)\n\
        hello = {\"Hello\": {\"version\": os.environ[\"HOMERUN_HANDOVER\"]}}\n\
        handover.send(json.dumps(hello).encode())\n\
        handover.recv(1 << 20)\n";
    fs::write(&binary, program).expect("written");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o700)).expect("a program");
    let why = "the new binary does not serve: the new process ended before it was ready";
    stays(&mut user, &url, &own, &binary.display().to_string(), why);
    user.ok("homerun upgrade");
    user.homerun.follow().expect("another process");
    assert_eq!(user.get(&url), own, "the same instance");
    user.leaves();
}

/// Clients of HTTPS that keep a connection: `curl` with so many requests one after the other, and how many connections it
/// may make for them.
const KEPT: [(&str, usize); 2] = [("--http1.1", 2), ("--http2", 2)];
const REQUESTS: usize = 1200;

/// How many of the requests of [`KEPT`] have been answered.
fn answered(user: &mut User) -> Vec<usize> {
    let count = "for kept in kept-*; do grep -c '^200 ' $kept; done; true";
    let counts = user.ok(count);
    counts.lines().map(|count| count.parse().expect("a number")).collect()
}

#[test]
fn nor_who_speaks_websocket_or_https() {
    let mut user = User::with(&["--idle-retention", "1m"], Client::Homerun);
    let image = user.import_speaker(SPEAKER);
    let url = user.deploy("spoken", &format!("--image={image} --max-instances=1"));
    assert_eq!(user.get(&url), "spoken");
    let instances = user.homerun.footprint().expect("looks").instances;
    let host = url.trim_start_matches("http://").to_owned();
    let (name, _) = host.rsplit_once(':').expect("a port");
    user.ok(&format!("HTTPS=https://{name}:$HTTPS_PORT/; CA=$DATA_DIR/ca/ca.pem"));
    for (version, _) in KEPT {
        user.ok(&format!(
            "curl {version} --cacert $CA --rate 50/s -o /dev/null -w '%{{http_code}} %{{num_connects}}\\n' \
             \"$HTTPS?n=[1-{REQUESTS}]\" > kept{version} 2>&1 & KEPT=\"$KEPT $!\""
        ));
    }
    user.ok(
        "( until test -e stop; do curl --cacert $CA -o /dev/null -w '%{http_code}\\n' $HTTPS; done > fresh 2>&1 ) & FRESH=$!",
    );
    let to = user.homerun.http();
    run(async {
        let connect = || async { tokio::net::TcpStream::connect(to).await.expect("connects") };
        let mut asked = websocket(connect().await, &host).await;
        let mut ticking = websocket(connect().await, &host).await;
        echoes(&mut asked, Message::text("before")).await;
        ticking.send(Message::text("tick")).await.expect("it is sent");
        let mut ticks = 0;
        let mut begin = Instant::now();
        while begin.elapsed() < PATIENCE && answered(&mut user).iter().any(|count| *count < 20) {
            thread::sleep(Duration::from_millis(20));
        }
        user.ok("homerun upgrade");
        user.homerun.follow().expect("another process");
        let before = answered(&mut user);
        assert!(
            before.iter().all(|count| *count < REQUESTS),
            "they were done before: {before:?}"
        );
        let fresh = user.ok("wc -l < fresh");
        echoes(&mut asked, Message::text("after")).await;
        // Whoever kept a connection goes on with the new process.
        for process in 0..KEPT.len() {
            user.ok(&format!("set -- $KEPT; shift {process}; wait $1"));
        }
        let more = user.ok("touch stop; wait $FRESH; wc -l < fresh");
        assert!(
            more.trim().parse::<usize>().ok() > fresh.trim().parse().ok(),
            "{fresh}, then {more}"
        );
        assert_eq!(
            user.ok("grep -vc '^200$' fresh || true"),
            "0",
            "{}",
            user.ok("sort fresh | uniq -c")
        );
        for (version, connections) in KEPT {
            let said = user.ok(&format!("cat kept{version}"));
            assert_eq!(
                said.lines().filter(|line| line.starts_with("200 ")).count(),
                REQUESTS,
                "{said}"
            );
            assert_eq!(said.lines().count(), REQUESTS, "{said}");
            let made = said.lines().filter(|line| line.ends_with(" 1")).count();
            assert_eq!(made, connections, "{version}: {said}");
        }
        // Nobody else asks: the instance has its CPU, for what the old process has with it alone.
        begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            let said = ticking.next().await.expect("it goes on").expect("a message");
            assert_eq!(said, Message::text(ticks.to_string()), "each one, in its turn");
            ticks += 1;
        }
        assert!(
            user.homerun.first_ends(Duration::ZERO).is_err(),
            "the old process has them"
        );
        echoes(&mut asked, Message::text("at last")).await;
        asked.send(Message::text("end")).await.expect("it is sent");
        while asked.next().await.is_some() {}
    });
    user.homerun
        .first_ends(PATIENCE)
        .expect("it ends when its requests have");
    assert_eq!(user.get(&url), "spoken");
    assert_eq!(
        user.homerun.footprint().expect("looks").instances,
        instances,
        "the same instance"
    );
    user.leaves();
}
