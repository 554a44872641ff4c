//! What an instance sees of the world.

use model::ResolvedVar;
use serde_json::json;

use crate::lab::{Lab, Recipe, words};

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_from_inside() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;

    // Interfaces: lo alone.
    let interfaces = lab.text(&id, "/list/sys/class/net").await;
    assert_eq!(interfaces, "lo");
    let addresses = lab.text(&id, "/read/proc/net/fib_trie").await;
    assert!(
        addresses.contains("169.254.8.1") && addresses.contains("127.0.0.1"),
        "{addresses}"
    );
    assert_eq!(lab.text(&id, "/read/proc/net/route").await.lines().count(), 1);

    // Ids: a range of 65,536 that is not the machine's.
    for map in ["uid_map", "gid_map"] {
        let map = lab.text(&id, &format!("/read/proc/self/{map}")).await;
        let numbers: Vec<u64> = map.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        assert_eq!((numbers[0], numbers[2]), (0, 65_536));
        assert!(numbers[1] >= 0x7000_0000, "{map}");
    }

    // Privileges.
    let status = lab.text(&id, "/read/proc/self/status").await;
    assert_eq!(field(&status, "Uid:"), "0\t0\t0\t0");
    assert_eq!(field(&status, "Pid:"), "1");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(field(&status, "Seccomp:"), "2");
    // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot, setfcap
    for set in ["CapBnd:", "CapEff:", "CapPrm:"] {
        assert_eq!(field(&status, set), "00000000800405fb", "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    // None is blocked by whoever started it.
    assert_eq!(field(&status, "SigBlk:"), "0000000000000000");
    let limits = lab.text(&id, "/read/proc/self/limits").await;
    let files: Vec<&str> = limits
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .expect("files")
        .split_whitespace()
        .collect();
    let most: u64 = files[4].parse().expect("a number");
    assert!((1024..=25_000).contains(&most), "{limits}");

    // Devices.
    let devices = lab.text(&id, "/list/dev").await;
    assert_eq!(
        devices,
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        lab.text(&id, "/read/dev/console").await,
        "error: No such file or directory (os error 2)"
    );
    // Character device 1:3, and nobody inside owns the machine's node.
    assert_eq!(lab.text(&id, "/stat/dev/null").await, "20666 65534 65534 259");
    assert_eq!(lab.text(&id, "/write/dev/null").await, "ok");
    for number in 0..=2 {
        let there = lab.text(&id, &format!("/link/proc/self/fd/{number}")).await;
        assert!(there.starts_with("pipe:"), "{number}: {there}");
    }
    assert_eq!(lab.text(&id, "/read/dev/stdin").await, "");
    assert_eq!(lab.text(&id, "/write/dev/stdout").await, "ok");
    // 0 to 2, the listener, this connection, and the directory being read: nothing of ours was left open. The startup
    // probe's connection may not be closed yet.
    let mut open = 0;
    for _ in 0..100 {
        open = words(&lab.text(&id, "/list/proc/self/fd").await).len();
        if open == 6 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(open, 6);

    // Mounts: all known, nothing of the machine but six device nodes.
    let mounts = lab.text(&id, "/read/proc/self/mounts").await;
    for mount in mounts.lines() {
        let parts: Vec<&str> = mount.split(' ').collect();
        let (point, kind, options) = (parts[1], parts[2], parts[3]);
        let fine = match kind {
            "overlay" => point == "/",
            "proc" => point == "/proc" || options.starts_with("ro,"),
            "devtmpfs" => {
                [
                    "/dev/null",
                    "/dev/zero",
                    "/dev/full",
                    "/dev/tty",
                    "/dev/random",
                    "/dev/urandom",
                ]
                .contains(&point)
                    || (options.starts_with("ro,") && point.starts_with("/proc/"))
            }
            "tmpfs" => point.starts_with("/dev") || options.starts_with("ro") || point == "/sys/fs/cgroup",
            "devpts" | "mqueue" => point.starts_with("/dev/"),
            "sysfs" => options.starts_with("ro,"),
            "cgroup" | "cgroup2" => options.starts_with("ro,"),
            _ => false,
        };
        assert!(fine, "{mount}");
    }
    // Masked and read-only parts.
    for masked in ["/read/proc/keys", "/read/proc/kcore", "/read/proc/timer_list"] {
        let text = lab.text(&id, masked).await;
        assert!(text.is_empty() || text.starts_with("error: "), "{masked}: {text}");
    }
    assert_eq!(lab.text(&id, "/list/sys/firmware").await, "");
    for refused in [
        "/write/proc/sys/kernel/hostname",
        "/write/proc/sysrq-trigger",
        "/write/sys/kernel/mm/ksm/run",
        "/write/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ] {
        let text = lab.text(&id, refused).await;
        assert!(text.starts_with("error: "), "{refused}: {text}");
    }

    // Files that every instance has.
    assert_eq!(lab.text(&id, "/stat/tmp").await.split(' ').next(), Some("41777"));
    assert_eq!(lab.text(&id, "/write/tmp/file").await, "ok");
    assert_eq!(lab.text(&id, "/write/anywhere").await, "ok");
    assert_eq!(lab.text(&id, "/write/dev/shm/file").await, "ok");
    assert!(lab.text(&id, "/read/etc/hosts").await.contains("127.0.0.1 localhost"));
    assert_eq!(lab.text(&id, "/read/etc/hostname").await, "localhost\n");
    assert_eq!(lab.text(&id, "/read/proc/sys/kernel/hostname").await, "localhost\n");
    assert_eq!(lab.text(&id, "/stat/etc/resolv.conf").await, "100644 0 0 0");
    // Owners of the image's files are as in the image.
    assert_eq!(lab.text(&id, "/stat/guest").await, "100755 0 0 0");
    assert_eq!(lab.text(&id, "/stat/home/own").await, "100600 1000 1000 0");
    assert_eq!(lab.text(&id, "/stat/").await, "40755 0 0 0");

    assert_eq!(lab.text(&id, "/bind/80").await, "ok");
    lab.close().await;
}

const EPERM: &str = "1";
const ENOSYS: &str = "38";

#[tokio::test(flavor = "multi_thread")]
async fn system_calls_that_reach_out_are_refused() {
    let mut lab = Lab::open().await;
    let id = lab.ready(lab.spec(&[])).await;
    let refused = [
        ("mount", 165, 0, EPERM),
        ("umount2", 166, 0, EPERM),
        ("pivot_root", 155, 0, EPERM),
        ("ptrace", 101, 0, EPERM),
        ("keyctl", 250, 0, EPERM),
        ("unshare of a user namespace", 272, 0x1000_0000, EPERM),
        ("setns", 308, 0, EPERM),
        ("bpf", 321, 0, EPERM),
        ("perf_event_open", 298, 0, EPERM),
        ("reboot", 169, 0, EPERM),
        ("init_module", 175, 0, EPERM),
        ("open_by_handle_at", 304, 0, EPERM),
        ("clone3", 435, 0, ENOSYS),
        ("io_uring_setup", 425, 1, ENOSYS),
        ("clone of a user namespace", 56, 0x1000_0000, ENOSYS),
        ("a packet socket", 41, 17, ENOSYS),
        ("a vsock socket", 41, 40, ENOSYS),
        ("a call that no kernel has", 5000, 0, ENOSYS),
    ];
    for (name, number, argument, expected) in refused {
        let got = lab.text(&id, &format!("/call/{number}/{argument}")).await;
        assert_eq!(got, expected, "{name}");
    }
    // getpid: the filter is no wall.
    assert_eq!(lab.text(&id, "/call/39/0").await, "0");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_names_its_user() {
    let mut recipe = Recipe::default();
    recipe.config["User"] = json!("app");
    recipe.config["WorkingDir"] = json!("/home");
    let mut lab = Lab::with(recipe).await;
    let mut spec = lab.spec(&[]);
    let port = std::num::NonZeroU16::new(80).expect("not zero");
    spec.container.startup_probe = Some(model::Probe::implicit(port));
    spec.port = port;
    spec.container.env = ["PORT=80", "FROM=spec", "TWICE=1", "TWICE=2"]
        .map(|pair| {
            let (name, value) = pair.split_once('=').expect("a pair");
            ResolvedVar {
                name: name.to_owned(),
                value: value.to_owned(),
            }
        })
        .to_vec();
    // Ready means that a user other than root listens on port 80.
    let id = lab.ready(spec).await;
    let status = lab.text(&id, "/read/proc/self/status").await;
    assert_eq!(field(&status, "Uid:"), "1000\t1000\t1000\t1000");
    assert_eq!(field(&status, "Gid:"), "1001\t1001\t1001\t1001");
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(lab.text(&id, "/link/proc/self/cwd").await, "/home");
    assert_eq!(lab.text(&id, "/read/home/own").await, "mine");
    assert_eq!(lab.text(&id, "/write/dev/stderr").await, "ok");
    assert_eq!(lab.text(&id, "/write/tmp/file").await, "ok");
    assert_eq!(
        lab.text(&id, "/write/etc/hosts").await,
        "error: Permission denied (os error 13)"
    );
    let environment = lab.text(&id, "/env").await;
    for pair in ["FROM=spec", "TWICE=2", "PORT=80", "PATH=/bin"] {
        assert!(environment.lines().any(|line| line == pair), "{pair} in {environment}");
    }
    assert!(!environment.contains("TWICE=1"));
    lab.close().await;
}
