//! The way out of instances as `homerun up --egress` says, in a network that leads nowhere but to one other machine,
//! which answers at every address there is.

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, User};

use crate::apart;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// Where the file lies in which the world writes who was called, an address a line.
const CALLED: &str = "HOMERUN_TEST_CALLED";
/// Public ones, of the world.
const PUBLIC: [&str; 2] = ["8.8.8.8", "2600::8"];
/// Of the world too, but of no public network.
const PRIVATE: [&str; 7] = [
    "10.9.9.1",
    "10.200.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.1.1",
    "fd00::1",
    "fd68::1",
];
/// Of the machine that Homerun runs on, where somebody listens.
const OWN: [&str; 3] = ["11.0.0.2", "10.9.9.2", "2a01:9::2"];
/// How instances are refused: at once, and not by the peer.
const REFUSED: [&str; 4] = [
    "HostUnreachable",
    "PermissionDenied",
    "NetworkUnreachable",
    "Uncategorized",
];

#[test]
fn the_flag_decides_the_way_out() {
    apart::run("egress::sealed", &["--net"]);
}

#[test]
#[ignore = "run by the_flag_decides_the_way_out in a network of its own"]
fn sealed() {
    if !apart::is_here() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let called = place.path().join("called");
    let world = World::build(&called);
    let own = TcpListener::bind("[::]:80").expect("a listener");
    for to in PUBLIC.iter().chain(&PRIVATE) {
        let from_outside = TcpStream::connect((*to, 80)).and_then(|stream| {
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).map(|_| line)
        });
        assert_eq!(from_outside.expect("an answer"), format!("hello {to}\n"));
    }
    world.forget();

    // Without the flag: the internet, and nothing else.
    let mut user = User::with(&[], Client::Homerun);
    let image = user.import_probe("caller");
    let mut deploy = |name| user.deploy(name, &format!("--image={image} --min-instances=1"));
    let (url, other) = (deploy("one"), deploy("two"));
    for to in PUBLIC {
        let begin = Instant::now();
        // The link comes a moment after the start.
        while reach(&mut user, &url, to, 80) != format!("hello {to}") {
            assert!(begin.elapsed() < PATIENCE, "{to}: {}", reach(&mut user, &url, to, 80));
            thread::sleep(Duration::from_millis(100));
        }
    }
    let neighbour = addresses(&mut user, &other);
    for to in PRIVATE.iter().chain(&OWN) {
        refused(&mut user, &url, to, 80);
    }
    for to in &neighbour {
        refused(&mut user, &url, to, 8080);
    }
    let ports = [user.homerun.api(), user.homerun.http(), user.homerun.https()].map(|at| at.port());
    for to in OWN {
        for port in ports {
            refused(&mut user, &url, to, port);
        }
    }
    assert_eq!(world.called(), PUBLIC);
    user.leaves();
    world.forget();

    // Off: Homerun's own two addresses, and nothing else.
    let mut user = User::with(&["--egress=off"], Client::Homerun);
    let image = user.import_probe("caller");
    let url = user.deploy("one", &format!("--image={image}"));
    for to in PUBLIC.iter().chain(&PRIVATE).chain(&OWN) {
        refused(&mut user, &url, to, 80);
    }
    for to in &neighbour {
        refused(&mut user, &url, to, 8080);
    }
    let routes = user.get(&format!("{url}/read/proc/net/route"));
    for route in routes.lines().skip(1) {
        let to = route.split('\t').nth(1).unwrap_or_default();
        assert!(["FEA9FEA9", "FDA9FEA9"].contains(&to), "{routes}");
    }
    assert_eq!(world.called(), [""; 0]);
    user.leaves();
    own.set_nonblocking(true).expect("set");
    assert!(own.accept().is_err(), "the machine was called");
}

/// What an instance hears from there, or the kind of the error.
#[track_caller]
fn reach(user: &mut User, url: &str, to: &str, port: u16) -> String {
    let to = if to.contains(':') {
        format!("[{to}]")
    } else {
        to.to_owned()
    };
    user.ok(&format!("curl --globoff --fail '{url}/reach/{to}:{port}'"))
}

#[track_caller]
fn refused(user: &mut User, url: &str, to: &str, port: u16) {
    let answer = reach(user, url, to, port);
    assert!(REFUSED.contains(&answer.as_str()), "{to} port {port}: {answer}");
}

/// Those of the instance of a service, by IPv4 and IPv6; the last 32 bits of both count from the start of a network.
fn addresses(user: &mut User, url: &str) -> [String; 2] {
    let begin = Instant::now();
    let slot = loop {
        let all = user.get(&format!("{url}/read/proc/net/if_inet6"));
        if let Some(rest) = all
            .lines()
            .find_map(|line| line.strip_prefix("fd686f6d6572756e00000000"))
        {
            break u32::from_str_radix(&rest[..8], 16).expect("hex");
        }
        assert!(begin.elapsed() < PATIENCE, "no address: {all}");
        thread::sleep(Duration::from_millis(100));
    };
    let four = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + slot).to_string();
    let all = user.get(&format!("{url}/read/proc/net/fib_trie"));
    assert!(all.contains(&four), "{four} is not in {all}");
    [four, format!("fd68:6f6d:6572:756e::{slot:x}")]
}

/// A network namespace that has every address, behind a link to the test's own.
struct World<'a> {
    holder: Child,
    called: &'a Path,
}

impl<'a> World<'a> {
    /// The calling process is in a network namespace of its own with nothing in it.
    fn build(called: &'a Path) -> Self {
        fs::write(called, "").expect("written");
        let holder = Command::new("unshare")
            .arg("--net")
            .arg(env::current_exe().expect("this program"))
            .args(["--exact", "egress::world", "--ignored"])
            .env(CALLED, called)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare");
        let world = Self { holder, called };
        let pid = world.holder.id();
        let own = fs::read_link("/proc/self/ns/net").expect("a namespace");
        let begin = Instant::now();
        while fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its == own) {
            assert!(begin.elapsed() < PATIENCE, "no namespace");
            thread::sleep(Duration::from_millis(2));
        }
        let [public, private, six] = OWN;
        apart::sh(&format!(
            "ip link set lo up
             ip link add world type veth peer name below netns {pid}
             ip link set world up
             ip addr add {public}/24 dev world
             ip addr add {private}/24 dev world
             ip addr add {six}/64 dev world nodad
             nsenter --net=/proc/{pid}/ns/net sh -ec '
                 ip link set lo up
                 ip link set below up
                 ip addr add 11.0.0.1/24 dev below
                 ip addr add 10.9.9.1/24 dev below
                 ip addr add 2a01:9::1/64 dev below nodad
                 ip route add local 0.0.0.0/0 dev lo
                 ip -6 route add local ::/0 dev lo table main'
             ip route add default via 11.0.0.1
             ip -6 route add default via 2a01:9::1"
        ));
        while TcpStream::connect("11.0.0.1:80").is_err() {
            assert!(begin.elapsed() < PATIENCE, "nobody is there");
            thread::sleep(Duration::from_millis(10));
        }
        world
    }

    /// Each address once, in the order of the first calls.
    fn called(&self) -> Vec<String> {
        let mut called: Vec<String> = Vec::new();
        for line in fs::read_to_string(self.called).expect("read").lines() {
            if !called.iter().any(|known| known == line) {
                called.push(line.to_owned());
            }
        }
        called
    }

    fn forget(&self) {
        fs::write(self.called, "").expect("written");
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
#[ignore = "run by the world of `sealed`"]
fn world() {
    let Some(called) = env::var_os(CALLED) else {
        return;
    };
    let listener = TcpListener::bind("[::]:80").expect("a listener");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let to = stream.local_addr().expect("an address").ip().to_canonical();
            let mut file = File::options().append(true).open(&called).expect("the file");
            // Before the answer: who has it may look.
            writeln!(file, "{to}").expect("written");
            let _ = writeln!(stream, "hello {to}");
        }
    });
    // Until the test ends, however it does.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}
