//! What is said of work that was cut off when an idle instance lost its CPU.

use std::{
    process::{Child, Command},
    time::Duration,
};

use model::{Activity, CpuAllocation, InstanceId, LogLine, Severity};

use crate::lab::{Lab, process_of};

/// As one request after another, each followed by a pause in which the CPU is taken, until something is said.
async fn until_warned(lab: &mut Lab, id: &InstanceId) -> LogLine {
    let mut tries = 0;
    loop {
        lab.engine.activity(id, Activity::Idle);
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(line) = warning(lab) {
            return line;
        }
        tries += 1;
        assert!(tries < 60, "nothing was said");
        // On an overloaded machine a look may find nothing out, and is taken again.
        assert_eq!(lab.text_busy(id, "/").await, "ok");
    }
}

fn warning(lab: &mut Lab) -> Option<LogLine> {
    std::iter::from_fn(|| lab.lines.try_recv().ok()).find(|line| line.severity == Severity::Warning)
}

async fn throttled(lab: &mut Lab) -> InstanceId {
    let mut spec = lab.spec(&[]);
    spec.cpu_allocation = CpuAllocation::Request;
    lab.ready(spec).await
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_that_still_ran_are_told_once() {
    let mut lab = Lab::open().await;
    let id = throttled(&mut lab).await;
    assert_eq!(lab.text_busy(&id, "/background/600000").await, "begun");
    let line = until_warned(&mut lab, &id).await;
    assert_eq!(line.instance, id);
    assert!(
        line.text.contains("1 thread was still running and wanted "),
        "{}",
        line.text
    );
    assert!(line.text.ends_with("deploy with --no-cpu-throttling."), "{}", line.text);
    // And is frozen all the same; and of the revision nothing more is said for a while.
    let other = throttled(&mut lab).await;
    assert_eq!(lab.text_busy(&other, "/background/600000").await, "begun");
    lab.engine.activity(&other, Activity::Idle);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting = tokio::time::timeout(Duration::from_millis(300), lab.get(&other, "/"));
    assert!(waiting.await.is_err(), "not frozen");
    assert_eq!(warning(&mut lab), None);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_at_rest_is_not_told_of() {
    let mut lab = Lab::open().await;
    let id = throttled(&mut lab).await;
    // Work that ends before the CPU is taken is no matter either.
    assert_eq!(lab.text_busy(&id, "/background/20").await, "begun");
    for _ in 0..4 {
        lab.engine.activity(&id, Activity::Idle);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(lab.text_busy(&id, "/").await, "ok");
    }
    assert_eq!(warning(&mut lab), None);
    lab.close().await;
}

/// A network beside the instance's, joined with it by a cable. Gone with its process.
struct Outside(Child);

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Outside {
    fn beside(id: &InstanceId) -> Self {
        let instance = process_of(id).expect("a process");
        let child = Command::new("unshare")
            .args(["--net", "sleep", "60"])
            .spawn()
            .expect("unshare runs");
        let outside = Self(child);
        let network = format!("/proc/{}/ns/net", outside.0.id());
        let own = std::fs::read_link("/proc/self/ns/net").expect("a network");
        while std::fs::read_link(&network).expect("a network") == own {
            std::thread::sleep(Duration::from_millis(5));
        }
        let ip = |network: &str, words: &str| {
            let status = Command::new("nsenter")
                .arg(format!("--net={network}"))
                .arg("ip")
                .args(words.split(' '))
                .status();
            assert!(status.expect("nsenter runs").success(), "ip {words}");
        };
        let inside = instance.join("ns/net");
        let inside = inside.to_str().expect("text");
        let peer = outside.0.id();
        ip(
            inside,
            &format!("link add cable type veth peer name cable netns {peer}"),
        );
        for (network, address) in [(inside, "198.51.100.1/30"), (network.as_str(), "198.51.100.2/30")] {
            ip(network, &format!("address add {address} dev cable"));
            ip(network, "link set cable up");
        }
        outside
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_to_the_outside_are_told() {
    let mut lab = Lab::open().await;
    let id = throttled(&mut lab).await;
    let outside = Outside::beside(&id);
    let network = format!("/proc/{}/ns/net", outside.0.id());
    let network = std::fs::File::open(network).expect("its network");
    // Accepts by itself: nobody has to take what waits in the queue.
    let listener = crate::lab::inside(network, || {
        std::net::TcpListener::bind("198.51.100.2:5432").expect("a port")
    });
    let _listener = listener.await;
    // One within, which is nobody's matter.
    assert_eq!(lab.text_busy(&id, "/hold/127.0.0.1:8080").await, "held");
    assert_eq!(lab.text(&id, "/hold/198.51.100.2:5432").await, "held");
    let line = until_warned(&mut lab, &id).await;
    let expected = "while 1 outgoing connection was open (to 198.51.100.2:5432).";
    assert!(line.text.contains(expected), "{}", line.text);
    // Which keeps nobody from hearing of threads.
    assert_eq!(lab.text_busy(&id, "/background/600000").await, "begun");
    let late = async {
        // Looked at again after ten seconds.
        loop {
            let line = until_warned(&mut lab, &id).await;
            if line.text.contains("still running") {
                return line;
            }
        }
    };
    let line = tokio::time::timeout(crate::lab::PATIENCE, late).await.expect("in time");
    assert!(
        line.text.contains(", and 1 outgoing connection was open"),
        "{}",
        line.text
    );
    lab.close().await;
    drop(outside);
}
