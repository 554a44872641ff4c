//! The way out of instances, in a network of its own that has none: everything here runs below `unshare --net`, and
//! what it calls is the internet of `internet`.

use std::{
    fs,
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use homerun_engine::Egress;
use image::Digest;
use model::InstanceId;
use serde_json::json;

use crate::{
    internet::{BREAK, BULK, ECHO, Internet, MACHINE, run},
    lab::{Lab, PATIENCE, Recipe, layer, leftovers},
};

/// Set for the test that runs in a network of its own.
const SEALED: &str = "HOMERUN_TEST_SEALED";

#[test]
fn the_way_out() {
    let sealed = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "egress::sealed", "--ignored", "--nocapture"])
        .env(SEALED, "1")
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&sealed.stdout).into_owned() + &String::from_utf8_lossy(&sealed.stderr);
    assert!(sealed.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the_way_out in a network of its own"]
async fn sealed() {
    if std::env::var_os(SEALED).is_none() {
        return;
    }
    let internet = Internet::build();
    let resolvers = tempfile::NamedTempFile::new().expect("a file");
    fs::write(resolvers.path(), "nameserver 11.0.0.53\n").expect("written");
    run(&format!("mount --bind {} /etc/resolv.conf", resolvers.path().display()));
    // Something to be found on the machine, if anything finds it.
    let own = ["127.0.0.1", "11.0.0.2", "10.9.9.2"];
    let mut listeners: Vec<TcpListener> = own.map(|at| TcpListener::bind((at, 80)).expect("a listener")).into();
    listeners.extend(["::1", MACHINE[2]].map(|at| TcpListener::bind((at, 80)).expect("a listener")));

    let mut lab = Lab::with_egress(recipe(), Egress::Internet).await;
    let one = lab.ready(lab.spec(&[])).await;
    let two = lab.ready(lab.spec(&[])).await;
    attached(&lab, &one).await;
    attached(&lab, &two).await;

    the_view(&lab, &one).await;
    what_is_reached(&lab, &one).await;
    what_is_not(&lab, &one, &two, &internet).await;
    as_the_peer_does(&lab, &one).await;
    names(&lab, &one, resolvers.path()).await;
    somebody_flushes(&lab, &one, &internet).await;
    a_killed_relay(&lab, &one, &two).await;
    an_early_call(&mut lab).await;
    bounds(&lab, &one).await;
    a_killed_launcher(&mut lab, &one).await;
    for listener in listeners {
        listener.set_nonblocking(true).expect("set");
        assert!(listener.accept().is_err(), "{listener:?} was called");
    }
    let id8 = lab.id8.clone();
    lab.close().await;
    assert_eq!(leftovers(&id8), [""; 0]);
    let links = run("ip -o link");
    assert!(!links.contains("hr"), "{links}");
}

pub(crate) fn recipe() -> Recipe {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/caller.rs");
    let text = fs::read(&source).expect("the source");
    let built = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("caller-{}", &Digest::of(&text).hex()[..16]));
    if !built.exists() {
        let part = built.with_extension(std::process::id().to_string());
        let done = Command::new("rustc")
            .args(["--edition=2024", "-Copt-level=1", "-Ctarget-feature=+crt-static", "-o"])
            .arg(&part)
            .arg(&source)
            .status();
        assert!(done.expect("rustc runs").success(), "the caller does not build");
        fs::rename(&part, &built).expect("renamed");
    }
    let program = fs::read(built).expect("the program");
    Recipe {
        layers: vec![layer(&[("caller", &program, 0o755, 0)])],
        config: json!({"Entrypoint": ["/caller"]}),
    }
}

/// Until it has its link, which comes behind its start.
async fn attached(lab: &Lab, id: &InstanceId) {
    let begin = Instant::now();
    while !lab.text(id, "/read/proc/net/route").await.contains("eth0") {
        assert!(begin.elapsed() < PATIENCE, "no link");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn the_view(lab: &Lab, id: &InstanceId) {
    let routes = lab.text(id, "/read/proc/net/route").await;
    let routes: Vec<&str> = routes.lines().skip(1).collect();
    // One route, to everywhere, by 169.254.169.254.
    assert_eq!(routes.len(), 1, "{routes:?}");
    assert!(routes[0].starts_with("eth0\t00000000\tFEA9FEA9"), "{routes:?}");
    let addresses = lab.text(id, "/read/proc/net/if_inet6").await;
    assert!(addresses.contains("fd686f6d6572756e"), "{addresses}");
    let resolver = lab.text(id, "/read/etc/resolv.conf").await;
    assert!(resolver.starts_with("nameserver 169.254.169.254\n"), "{resolver}");
    // Forwarding is nobody's here; the machine's is as it was.
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
            .expect("read")
            .trim(),
        machine_forwards()
    );
}

/// What a new network namespace has.
fn machine_forwards() -> String {
    run("unshare --net cat /proc/sys/net/ipv4/ip_forward").trim().to_owned()
}

async fn what_is_reached(lab: &Lab, id: &InstanceId) {
    for by in ["tcp", "udp"] {
        for (to, shown) in [("8.8.8.8", "8.8.8.8"), ("[2600::8]", "2600::8")] {
            let answer = lab.text(id, &format!("/{by}/{to}:{ECHO}")).await;
            assert_eq!(answer, format!("{shown} hello"), "{by} {to}");
        }
    }
    // Addresses of IPv6 that carry one of IPv4 that is public.
    for to in ["[64:ff9b::8.8.8.8]", "[2002:808:808::1]"] {
        let answer = lab.text(id, &format!("/tcp/{to}:{ECHO}")).await;
        assert!(answer.ends_with(" hello"), "{to}: {answer}");
    }
    assert_eq!(lab.text(id, &format!("/half/8.8.8.8:{ECHO}")).await, "first second end");
    assert_eq!(lab.text(id, &format!("/bulk/8.8.8.8:{BULK}")).await, "true");
    assert_eq!(lab.text(id, &format!("/bulk/[2600::8]:{BULK}")).await, "true");
}

/// How the first packet of each is answered.
/// The last stands for errors that the standard library has no word for; seen once, on a loaded machine.
pub(crate) const REFUSED: [&str; 4] = [
    "HostUnreachable",
    "PermissionDenied",
    "NetworkUnreachable",
    "Uncategorized",
];

async fn what_is_not(lab: &Lab, one: &InstanceId, two: &InstanceId, internet: &Internet) {
    let before = internet.called();
    let (neighbour_v4, neighbour_v6) = addresses(lab, two).await;
    let own_v4 = MACHINE[0];
    let own_v6 = MACHINE[2];
    let all = [
        "10.9.9.1",
        "10.9.9.2",
        "10.200.0.1",
        "172.16.0.1",
        "172.31.255.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.1.1",
        "169.254.169.254",
        "198.18.0.0",
        "192.0.2.1",
        "203.0.113.1",
        "240.0.0.1",
        own_v4,
        neighbour_v4.as_str(),
        "[fd00::1]",
        "[fc00::1]",
        "[fd68:6f6d:6572:756e::]",
        "[2001:db8::1]",
        "[64:ff9b::10.9.9.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:a09:901::1]",
        "[100::1]",
        &format!("[{own_v6}]"),
        &format!("[{neighbour_v6}]"),
    ];
    for to in all {
        for port in [80, ECHO, 1, 8080] {
            let answer = lab.text(one, &format!("/tcp/{to}:{port}")).await;
            assert!(REFUSED.contains(&answer.as_str()), "{to}:{port}: {answer}");
        }
    }
    for to in ["10.9.9.1", "169.254.1.1", "[fd00::1]", own_v4, neighbour_v4.as_str()] {
        let answer = lab.text(one, &format!("/udp/{to}:{ECHO}")).await;
        assert!(REFUSED.contains(&answer.as_str()), "{to}: {answer}");
    }
    // Here these mean the instance itself, where nobody listens; to the kernel they are no destinations beyond it.
    for to in ["127.0.0.1", "127.8.8.8", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        assert_eq!(
            lab.text(one, &format!("/tcp/{to}:80")).await,
            "ConnectionRefused",
            "{to}"
        );
    }
    for to in [
        "[::ffff:10.9.9.1]",
        "[::10.9.9.1]",
        "[fe80::1]",
        "[fec0::1]",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let answer = lab.text(one, &format!("/tcp/{to}:{ECHO}")).await;
        assert!(!answer.contains("hello"), "{to}: {answer}");
    }
    // In the name of the neighbour, of the resolver's machine, of somebody in the internet.
    for from in [neighbour_v6.as_str(), "fd68:6f6d:6572:756e::", "2600::99"] {
        let answer = lab.text(one, &format!("/spoof/{from}/[2600::9]:{ECHO}")).await;
        assert_eq!(answer, "sent", "the kernel lets it go, or this proves nothing");
    }
    // The last one comes through, so the ones before it would have.
    assert_eq!(lab.text(one, &format!("/udp/[2600::8]:{ECHO}")).await, "2600::8 hello");
    let after = internet.called();
    let new: Vec<&IpAddr> = after.difference(&before).collect();
    assert!(new.is_empty(), "called: {new:?}");
}

async fn addresses(lab: &Lab, id: &InstanceId) -> (String, String) {
    let six = lab.text(id, "/read/proc/net/if_inet6").await;
    let slot = six.lines().find_map(|line| line.strip_prefix("fd686f6d6572756e"));
    let slot = slot.expect("its address").split(' ').next().expect("hex");
    let slot = u32::from_str_radix(&slot[8..], 16).expect("hex");
    let four = std::net::Ipv4Addr::from_bits(std::net::Ipv4Addr::new(198, 18, 0, 0).to_bits() + slot);
    assert!(
        lab.text(id, "/read/proc/net/fib_trie")
            .await
            .contains(&four.to_string())
    );
    (four.to_string(), format!("fd68:6f6d:6572:756e::{slot:x}"))
}

async fn as_the_peer_does(lab: &Lab, id: &InstanceId) {
    assert_eq!(lab.text(id, "/tcp/8.8.8.8:9").await, "ConnectionRefused");
    assert_eq!(lab.text(id, "/tcp/[2600::8]:9").await, "ConnectionRefused");
    assert_eq!(lab.text(id, "/udp/8.8.8.8:9").await, "ConnectionRefused");
    assert_eq!(lab.text(id, "/tcp/12.0.0.1:80").await, "HostUnreachable");
    assert_eq!(lab.text(id, &format!("/hold/8.8.8.8:{BREAK}")).await, "ConnectionReset");
    assert_eq!(lab.text(id, &format!("/many/200/8.8.8.8:{ECHO}")).await, "200 200");
}

async fn names(lab: &Lab, id: &InstanceId, resolvers: &Path) {
    for by in ["udp", "tcp"] {
        let answer = lab
            .text(id, &format!("/ask/{by}/169.254.169.254:53/www.example.com"))
            .await;
        assert_eq!(answer, "8.8.8.8", "{by}");
    }
    assert_eq!(lab.text(id, "/resolve/www.example.com").await, "8.8.8.8");
    // Some other resolver of the internet.
    assert_eq!(lab.text(id, "/ask/udp/8.8.8.8:53/www.example.com").await, "8.8.8.8");
    // A name may well have a private address; calling that is another matter.
    assert_eq!(lab.text(id, "/resolve/home.example.com").await, "10.9.9.1");
    // Read again for each question. The second one answers.
    fs::write(resolvers, "nameserver 11.0.0.2\nnameserver 11.0.0.53\n").expect("written");
    assert_eq!(
        lab.text(id, "/ask/udp/169.254.169.254:53/www.example.com").await,
        "8.8.8.8"
    );
    fs::write(resolvers, "").expect("written");
    assert_eq!(
        lab.text(id, "/ask/udp/169.254.169.254:53/www.example.com").await,
        "code 2"
    );
    fs::write(resolvers, "nameserver 11.0.0.53\n").expect("written");
}

/// The process that relays.
pub(crate) fn relay(lab: &Lab) -> Option<u32> {
    process(lab, homerun_engine::EGRESS)
}

/// The process of this engine in a role.
fn process(lab: &Lab, role: &str) -> Option<u32> {
    let all = fs::read_dir("/proc").expect("proc").flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.contains(role) && words.contains(&lab.id8)
    })
}

fn in_router(relay: u32, command: &str) -> String {
    run(&format!("nsenter --net=/proc/{relay}/ns/net {command}"))
}

async fn somebody_flushes(lab: &Lab, id: &InstanceId, internet: &Internet) {
    let relay = relay(lab).expect("a relay");
    let table = format!("homerun_{}", lab.id8);
    let rules = || in_router(relay, "nft list ruleset");
    let before = rules();
    assert!(before.contains(&table), "{before}");
    assert!(!run("nft list tables").contains(&table), "it is in the router alone");
    let called = internet.called();
    let changes = [
        "nft flush ruleset".to_owned(),
        format!("nft flush chain inet {table} inward"),
        format!("nft delete table inet {table}"),
        format!("nft insert rule inet {table} inward accept"),
        format!("nft delete element inet {table} forbidden4 '{{ 10.0.0.0/8 }}'"),
    ];
    for change in changes {
        in_router(relay, &change);
        // Before and after it is restored.
        for port in [1, ECHO] {
            let answer = lab.text(id, &format!("/tcp/10.9.9.1:{port}")).await;
            assert!(!answer.contains("hello"), "{change}: {answer}");
        }
        let begin = Instant::now();
        while rules() != before {
            assert!(begin.elapsed() < PATIENCE, "{change}: {}", rules());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let answer = lab.text(id, &format!("/tcp/8.8.8.8:{ECHO}")).await;
        assert_eq!(answer, "8.8.8.8 hello", "{change}");
    }
    assert_eq!(internet.called(), called);
}

async fn a_killed_relay(lab: &Lab, one: &InstanceId, two: &InstanceId) {
    let first = relay(lab).expect("a relay");
    run(&format!("kill -9 {first}"));
    for id in [one, two] {
        let begin = Instant::now();
        while lab.text(id, &format!("/tcp/8.8.8.8:{ECHO}")).await != "8.8.8.8 hello" {
            assert!(begin.elapsed() < PATIENCE, "no way out again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let answer = lab.text(id, &format!("/tcp/10.9.9.1:{ECHO}")).await;
        assert!(REFUSED.contains(&answer.as_str()), "{answer}");
    }
    assert_ne!(relay(lab).expect("another relay"), first);
}

/// One that calls before it does anything else.
async fn an_early_call(lab: &mut Lab) {
    let spec = lab.spec(&[&format!("8.8.8.8:{ECHO}")]);
    let id = lab.ready(spec).await;
    let answer = lab.text(&id, "/early").await;
    assert!(answer.ends_with("8.8.8.8 hello"), "{answer}");
}

async fn bounds(lab: &Lab, id: &InstanceId) {
    // 1,000 connections of one instance; the next is refused, and those that are there go on.
    let answer = lab.text(id, &format!("/many/1001/8.8.8.8:{ECHO}")).await;
    assert_eq!(answer, "1000 1000");
}

/// Its relay goes with it, as its instances do. The engine starts another pair.
async fn a_killed_launcher(lab: &mut Lab, id: &InstanceId) {
    let first = relay(lab).expect("a relay");
    run(&format!(
        "kill -9 {}",
        process(lab, homerun_engine::LAUNCHER).expect("a launcher")
    ));
    lab.exit(id).await;
    let begin = Instant::now();
    while relay(lab).is_none_or(|now| now == first) {
        assert!(begin.elapsed() < PATIENCE, "{first} is still there, or no other one");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let next = lab.ready(lab.spec(&[])).await;
    attached(lab, &next).await;
    let answer = lab.text(&next, &format!("/tcp/8.8.8.8:{ECHO}")).await;
    assert_eq!(answer, "8.8.8.8 hello");
}
