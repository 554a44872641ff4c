//! How one starts and ends: the data directory and the ports belong to one, wrong words are refused before anything is
//! touched, and requests under way survive the order to stop.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, Homerun, Session, User, binary, exchange, read_answer};
use tempfile::TempDir;

/// Any free ports, for what must not come to be.
pub(crate) const ANY: [&str; 6] = [
    "--api",
    "127.0.0.1:0",
    "--http",
    "127.0.0.1:0",
    "--https",
    "127.0.0.1:0",
];

/// Runs the binary with these words alone; a server that comes up after all would be ended after 20 s.
fn homerun(words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new("timeout");
    command
        .args(["--signal=TERM", "20"])
        .arg(binary().expect("built"))
        .args(words);
    command
        .env_clear()
        .env("PATH", std::env::var("PATH").expect("there is one"));
    command.envs(variables.iter().copied());
    command.output().expect("timeout is a command")
}

#[track_caller]
pub(crate) fn ends(words: &[&str], variables: &[(&str, &str)], status: i32) -> String {
    let output = homerun(words, variables);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(status),
        "homerun {words:?} {variables:?}\n{text}"
    );
    text
}

/// With the port in question instead of any.
fn up_at<'a>(dir: &'a str, flag: &str, address: &'a str) -> Vec<&'a str> {
    let mut words = vec!["up", "--data-dir", dir];
    words.extend(ANY);
    let at = words.iter().position(|word| *word == flag).expect("one of them");
    words[at + 1] = address;
    words
}

#[test]
fn a_data_directory_has_one_homerun() {
    let mut user = User::of_homerun();
    let url = user.deploy("s", "--image=$HELLO");
    let data = user.ok("echo $DATA_DIR").trim().to_owned();
    let mut words = vec!["up", "--data-dir", &data];
    words.extend(ANY);
    let refused = ends(&words, &[], 1);
    let named = format!("the data directory {data} is held by process {}", user.homerun.pid());
    assert!(refused.contains(&named), "{refused}");

    // By another name it is the same.
    let other = user.homerun.root().join("other");
    std::os::unix::fs::symlink(&data, &other).expect("a link");
    words[2] = other.to_str().expect("text");
    let refused = ends(&words, &[], 1);
    assert!(refused.contains(&named), "{refused}");

    user.get(&url);
    user.leaves();
}

#[test]
fn a_port_has_one_owner() {
    let mut user = User::of_homerun();
    let url = user.deploy("s", "--image=$HELLO");
    let foreign = TcpListener::bind("127.0.0.1:0").expect("a port");
    let dir = TempDir::with_prefix("homerun-e2e-").expect("a directory");
    let data = dir.path().join("data");
    let data = data.to_str().expect("text");
    let held = [
        foreign.local_addr().expect("bound"),
        user.homerun.api(),
        user.homerun.http(),
        user.homerun.https(),
    ];
    for address in held {
        let address = address.to_string();
        for flag in ["--api", "--http", "--https"] {
            let refused = ends(&up_at(data, flag, &address), &[], 1);
            let named = format!("cannot listen on {address} ({flag}): Address already in use");
            assert!(refused.contains(&named), "{refused}");
        }
    }
    let twice = "127.0.0.1:9".to_owned();
    let refused = ends(
        &[
            "up",
            "--data-dir",
            data,
            "--api",
            "127.0.0.1:0",
            "--http",
            &twice,
            "--https",
            &twice,
        ],
        &[],
        1,
    );
    assert!(refused.contains("(--http and --https)"), "{refused}");
    // Of the refused ones nothing runs and nothing is mounted; the directory is free for the next.
    assert_eq!(left_in(dir.path()), Vec::<String>::new());
    user.get(&url);
    user.leaves();
}

/// `timeout` and a terminal with a runner of scripts send what is one wish twice.
#[test]
fn a_wish_to_stop_that_comes_twice_is_one_and_a_later_one_is_another() {
    for later in [false, true] {
        let mut user = User::of_homerun();
        let image = user.import_probe("hold");
        let url = user.deploy("hold", &format!("--image={image}"));
        user.get(&url);
        let hold = if later { 8000 } else { 2000 };
        user.ok(&format!(
            "curl --fail '{url}/hold?ms={hold}' > held & HELD=$!; sleep 0.5"
        ));
        let between = Duration::from_millis(if later { 800 } else { 20 });
        for _ in 0..2 {
            user.homerun.order_to_stop().expect("signalled");
            thread::sleep(between);
        }
        if later {
            let ended = user.homerun.first_ends(Duration::from_secs(4));
            let told = format!("{:#}", ended.expect_err("not well"));
            assert!(told.contains("stopped at the second signal"), "{told}");
            user.homerun
                .leaves_within(Duration::from_secs(10))
                .expect("nothing is left");
        } else {
            user.ok("wait $HELD && test -s held");
            user.homerun.ended().expect("ended well");
        }
    }
}

/// Processes and mounts that name the directory.
fn left_in(dir: &Path) -> Vec<String> {
    let name = dir.to_str().expect("text");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let mut left: Vec<String> = mounts
        .lines()
        .filter(|line| line.contains(name))
        .map(str::to_owned)
        .collect();
    for process in fs::read_dir("/proc").expect("readable").flatten() {
        let command = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        if command.contains(name) {
            left.push(command);
        }
    }
    for owner in fs::read_dir("/run/homerun").into_iter().flatten().flatten() {
        let owner = fs::read_to_string(owner.path().join("owner")).unwrap_or_default();
        if owner.contains(name) {
            left.push(owner);
        }
    }
    left
}

#[test]
fn the_start_tells_the_ports_it_got() {
    let homerun = Homerun::up().expect("starts");
    for address in [homerun.api(), homerun.http(), homerun.https()] {
        assert_ne!(address.port(), 0, "{}", homerun.log());
        TcpStream::connect(address).expect("listens");
    }
    let text = ends(&["status", "--api", &homerun.api().to_string()], &[], 0);
    let data = homerun.root().join("data");
    let expected = format!(
        "running  homerun {}\nproject  my-project\nregion   us-central1\napi      http://{}\ndata     {}\n",
        env!("CARGO_PKG_VERSION"),
        homerun.api(),
        data.display()
    );
    assert_eq!(text, expected);
    let text = ends(&["status"], &[("HOMERUN_API", &homerun.api().to_string())], 0);
    assert_eq!(text, expected);

    let text = ends(&["status", "--api", &homerun.http().to_string()], &[], 1);
    let named = format!("something listens at {}, but it is no Homerun", homerun.http());
    assert!(text.contains(&named), "{text}");
    let api = homerun.api().to_string();
    homerun.stop().expect("leaves nothing");
    let text = ends(&["status", "--api", &api], &[], 1);
    let named = format!("no Homerun answers at {api}; start one with `homerun up`");
    assert!(text.contains(&named), "{text}");
}

#[test]
fn wrong_words_are_refused_before_anything_is_touched() {
    let dir = TempDir::with_prefix("homerun-e2e-").expect("a directory");
    let data = dir.path().join("data");
    let data = data.to_str().expect("text");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let unknown = file("unknown.toml", "htp = \"127.0.0.1:0\"\n");
    let wrong = file("wrong.toml", "http = \"localhost\"\n");
    let time = file("time.toml", "idle-retention = \"soon\"\n");
    let broken = file("broken.toml", "http = \n");
    let table: [(&[&str], &str); 16] = [
        (&["--api", "localhost"], "invalid value 'localhost' for '--api"),
        (
            &["--http", "127.0.0.1:70000"],
            "invalid value '127.0.0.1:70000' for '--http",
        ),
        (&["--https", "8443"], "invalid value '8443' for '--https"),
        (
            &["--idle-retention", "1d"],
            "\"1d\" is not a time, such as 90s, 15m or 1h",
        ),
        (
            &["--domain", "localhost"],
            "\"localhost\" is not a domain in lower case with at least two labels",
        ),
        (
            &["--project", "five5"],
            "project id \"five5\" is invalid: 6 to 30 lowercase letters",
        ),
        (&["--region", "Moon"], "region \"Moon\" is invalid"),
        (&["--url-scheme", "ftp"], "\"ftp\" is neither http nor https"),
        (&["--no-such-flag"], "unexpected argument '--no-such-flag'"),
        (&["word"], "unexpected argument 'word'"),
        (&["--config"], "a value is required for '--config"),
        (&["--config", "/nonexistent/file"], "cannot read /nonexistent/file"),
        (
            &["--config", &unknown],
            "unknown field `htp`, expected one of `data-dir`, `api`",
        ),
        (&["--config", &wrong], "invalid socket address"),
        (&["--config", &time], "idle-retention: \"soon\" is not a time"),
        (&["--config", &broken], "broken.toml is not a configuration"),
    ];
    for (words, named) in table {
        let mut all = vec!["up", "--data-dir", data];
        all.extend(words);
        let text = ends(&all, &[], 2);
        assert!(text.contains(named), "{words:?}: {text}");
    }
    let text = ends(&["up", "--data-dir", data], &[("HOMERUN_HTTP", "nowhere")], 2);
    assert!(text.contains("'nowhere' for '--http"), "{text}");
    assert!(!Path::new(data).exists(), "nothing was made");
    let text = ends(&["no-such-word"], &[], 2);
    assert!(text.contains("no-such-word"), "{text}");
    let text = ends(&["status", "--api", "x"], &[], 2);
    assert!(text.contains("'x' for '--api"), "{text}");
}

/// Flags beat variables, these beat the file, the file beats the defaults.
#[test]
fn what_is_said_nearest_counts() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("homerun.toml");
    fs::write(
        &path,
        "project = \"file-project\"\nregion = \"europe-west1\"\ndomain = \"file.localhost\"\nidle-retention = \"1h\"\n",
    )
    .expect("written");
    let flags = ["--config", path.to_str().expect("text"), "--project", "flag-project"];
    let variables = [
        ("HOMERUN_PROJECT", "variable-project"),
        ("HOMERUN_REGION", "asia-east1"),
    ];
    let homerun = Homerun::up_in(&flags, &variables).expect("starts");
    let status = ends(&["status", "--api", &homerun.api().to_string()], &[], 0);
    assert!(
        status.contains("project  flag-project\nregion   asia-east1\n"),
        "{status}"
    );
    let session = Session::new(&homerun, Client::Homerun).expect("a shell");
    let mut user = User { homerun, session };
    user.ok("gcloud run deploy s --image=us-docker.pkg.dev/cloudrun/container/hello --allow-unauthenticated --quiet");
    let url = user.ok("gcloud run services describe s --format='value(status.url)'");
    assert!(
        url.trim()
            .ends_with(&format!(".file.localhost:{}", user.homerun.http().port())),
        "{url}"
    );
    user.get(url.trim());
    user.leaves();
}

#[test]
fn the_order_to_stop_lets_requests_end_and_takes_no_new_ones() {
    let mut user = User::of_homerun();
    let url = user.deploy("s", "--image=$HELLO --concurrency=1");
    let host = url.strip_prefix("http://").expect("as it was started").to_owned();
    let http = user.homerun.http();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    exchange(http, get("/")).expect("wakes it");

    let mut under_way = TcpStream::connect(http).expect("listens");
    under_way.write_all(get("/sleep?ms=1500").as_bytes()).expect("sent");
    // One that has said nothing yet is not under way.
    let silent = TcpStream::connect(http).expect("listens");
    thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    user.homerun.order_to_stop().expect("it runs");
    let refused = refuses_within(http, Duration::from_secs(1));
    assert!(refused, "still takes connections a second after the order to stop");
    assert!(
        refuses_within(user.homerun.api(), Duration::from_secs(1)),
        "the API too"
    );
    let answer = read_answer(&mut under_way).expect("answered");
    let waited = begun.elapsed();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(waited > Duration::from_millis(900), "it was under way: {waited:?}");
    user.homerun.ended().expect("ends well, leaves nothing");
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "nothing else was waited for: {:?}",
        begun.elapsed()
    );
    drop(silent);
}

fn refuses_within(address: SocketAddr, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if TcpStream::connect(address).is_err() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

/// A request that does not end is cut off at the deadline.
#[test]
fn a_request_without_end_does_not_hold_up_the_end() {
    let mut user = User::of_homerun();
    let url = user.deploy("s", "--image=$HELLO");
    let host = url.strip_prefix("http://").expect("as it was started").to_owned();
    let http = user.homerun.http();
    let mut endless = TcpStream::connect(http).expect("listens");
    let request = format!("GET /stream?chunks=1000000&ms=50 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    endless.write_all(request.as_bytes()).expect("sent");
    thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let User { homerun, session } = user;
    drop(session);
    homerun.stop().expect("ends well, leaves nothing");
    let took = begun.elapsed();
    assert!(
        (Duration::from_secs(9)..Duration::from_secs(25)).contains(&took),
        "cut off at the deadline of 10 s: {took:?}"
    );
}
