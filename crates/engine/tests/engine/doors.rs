//! What instances reach of Homerun itself: which connection is handed over as whose, and what no program inside can make of
//! it.

use std::{
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use homerun_engine::{Call, Door, Doors, Egress, Inside};
use model::InstanceId;
use tokio::sync::mpsc;

use crate::{
    egress::{REFUSED, recipe},
    lab::{Lab, PATIENCE},
};

/// Set for the test that finds no `nft`.
const WITHOUT: &str = "HOMERUN_TEST_WITHOUT_NFT";
const PUBLIC: u16 = 18443;

fn inside() -> (Inside, mpsc::Receiver<Call>) {
    let (calls, called) = mpsc::channel(8);
    let doors = Doors {
        domain: "a.run.localhost".to_owned(),
        http: 18081,
        https: PUBLIC,
        public: PUBLIC,
    };
    let authority = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n".to_owned();
    let inside = Inside {
        doors,
        calls,
        authority,
    };
    (inside, called)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_a_way_out_reaches_homerun_alone() {
    reaches(Egress::Off).await;
}

#[test]
fn so_does_one_on_a_machine_without_nft() {
    let place = tempfile::tempdir().expect("a directory");
    let path = std::env::var_os("PATH").expect("a path");
    let sbin = ["/usr/sbin", "/sbin"].map(|sbin| Path::new(sbin).to_owned());
    for directory in std::env::split_paths(&path).chain(sbin) {
        for program in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if program.file_name() != "nft" {
                // The first of a name is the one that counts.
                let _ = symlink(program.path(), place.path().join(program.file_name()));
            }
        }
    }
    let done = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "doors::without_nft", "--ignored", "--nocapture"])
        .env("PATH", place.path())
        .env(WITHOUT, "1")
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    assert!(said.contains("instances have no way out: there is no nft"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by so_does_one_on_a_machine_without_nft"]
async fn without_nft() {
    if std::env::var_os(WITHOUT).is_some() {
        reaches(Egress::Internet).await;
    }
}

/// Answers every call with whose it is and what it knocked at.
async fn answer(mut called: mpsc::Receiver<Call>) {
    while let Some(call) = called.recv().await {
        tokio::task::spawn_blocking(move || {
            let mut stream = call.stream;
            stream.set_nonblocking(false).expect("set");
            let mut asked = [0; 64];
            // One that asks nothing is gone.
            let _ = stream.read(&mut asked);
            let said = format!("{} {:?}", call.instance, call.door);
            let _ = stream.write_all(said.as_bytes());
        });
    }
}

async fn reaches(egress: Egress) {
    let (inside, called) = inside();
    let mut lab = Lab::with_inside(recipe(), egress, inside).await;
    let answering = tokio::spawn(answer(called));
    let one = lab.ready(lab.spec(&[])).await;
    let two = lab.ready(lab.spec(&[])).await;
    let places = [
        ("169.254.169.254:80".to_owned(), Door::Metadata),
        ("169.254.169.253:80".to_owned(), Door::Http),
        ("169.254.169.253:443".to_owned(), Door::Https),
        ("169.254.169.253:18081".to_owned(), Door::Http),
        (format!("169.254.169.253:{PUBLIC}"), Door::Https),
        (format!("127.0.0.1:{PUBLIC}"), Door::Https),
    ];
    for id in [&one, &two] {
        let right = format!("{id} Metadata");
        let begin = Instant::now();
        while lab.text(id, "/tcp/169.254.169.254:80").await != right {
            assert!(begin.elapsed() < PATIENCE, "no metadata server");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (to, door) in &places {
            assert_eq!(
                lab.text(id, &format!("/tcp/{to}")).await,
                format!("{id} {door:?}"),
                "{to}"
            );
        }
        for to in [
            "169.254.169.254:81",
            "169.254.169.253:81",
            "169.254.169.252:80",
            "127.0.0.1:18081",
            "8.8.8.8:80",
            "10.0.0.1:80",
            "198.18.255.254:8080",
        ] {
            let answer = lab.text(id, &format!("/tcp/{to}")).await;
            let refused = answer == "ConnectionRefused" || REFUSED.contains(&answer.as_str());
            assert!(refused, "{to}: {answer}");
        }
        // To its own programs an instance is what it was.
        assert_eq!(lab.text(id, "/tcp/127.0.0.1:8080").await, "TimedOut");
    }
    for (name, address) in [
        ("metadata.google.internal", "169.254.169.254"),
        ("metadata", "169.254.169.254"),
        ("b-0123456789-uc.a.run.localhost", "169.254.169.253"),
    ] {
        assert_eq!(lab.text(&one, &format!("/resolve/{name}")).await, address, "{name}");
    }
    in_another_s_name(&lab, &one, &two).await;
    a_port_that_is_listened_on(&mut lab).await;

    // The next relay knows them all again.
    let relay = crate::egress::relay(&lab).expect("a relay");
    crate::internet::run(&format!("kill -9 {relay}"));
    let begin = Instant::now();
    while lab.text(&two, &format!("/tcp/127.0.0.1:{PUBLIC}")).await != format!("{two} Https") {
        assert!(begin.elapsed() < PATIENCE, "no relay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.close().await;
    answering.await.expect("it ends with the engine");
}

/// Neither by a sender's address that is another one's, nor by none that is anybody's.
async fn in_another_s_name(lab: &Lab, one: &InstanceId, two: &InstanceId) {
    let trie = lab.text(two, "/read/proc/net/fib_trie").await;
    let other = trie.split_whitespace().find(|word| word.starts_with("198.18."));
    let other = other.unwrap_or_else(|| panic!("no address: {trie}"));
    for (from, to) in [
        (other, "169.254.169.254:80".to_owned()),
        ("127.0.0.1", "169.254.169.254:80".to_owned()),
        ("198.18.200.200", "169.254.169.253:80".to_owned()),
        (other, format!("127.0.0.1:{PUBLIC}")),
    ] {
        let answer = lab.text(one, &format!("/as/{from}/{to}")).await;
        assert!(
            !answer.contains("Metadata") && !answer.contains("Http"),
            "{from} to {to}: {answer}"
        );
        assert!(
            !answer.contains("AddrNotAvailable"),
            "{from} was not even tried: {answer}"
        );
    }
    // And in its own, so that the question makes sense.
    let trie = lab.text(one, "/read/proc/net/fib_trie").await;
    let own = trie
        .split_whitespace()
        .find(|word| word.starts_with("198.18."))
        .expect("an address");
    let answer = lab.text(one, &format!("/as/{own}/169.254.169.254:80")).await;
    assert_eq!(answer, format!("{one} Metadata"));
}

/// A program has the port that it listens on, though its 127.0.0.1 leads elsewhere there; unless it is known.
async fn a_port_that_is_listened_on(lab: &mut Lab) {
    let mut spec = lab.spec(&[]);
    let port = PUBLIC.try_into().expect("not zero");
    spec.port = port;
    spec.container.startup_probe = Some(model::Probe::implicit(port));
    for variable in &mut spec.container.env {
        if variable.name == "PORT" {
            variable.value = PUBLIC.to_string();
        }
    }
    let id = lab.ready(spec).await;
    let begin = Instant::now();
    while lab.text(&id, "/tcp/169.254.169.254:80").await != format!("{id} Metadata") {
        assert!(begin.elapsed() < PATIENCE, "no metadata server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Itself, which waits for the rest of a request.
    assert_eq!(lab.text(&id, &format!("/tcp/127.0.0.1:{PUBLIC}")).await, "TimedOut");
}
