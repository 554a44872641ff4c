//! Everything that a process can find out about the sandbox it is in, as lines of `key = value`. Two sandboxes made from
//! one configuration must answer alike, so whatever differs by chance (numbers of namespaces, usage) is left out or
//! left to the reader to put into one form.

use std::{
    fmt::Write as _,
    fs,
    io::Read as _,
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
        },
    },
    path::Path,
};

use crate::syscall;

const O_PATH: i32 = 0o10_000_000;
const O_NONBLOCK: i32 = 0o4000;

pub fn all() -> String {
    let mut out = String::new();
    namespaces(&mut out);
    process(&mut out);
    files(&mut out);
    mounts(&mut out);
    for (root, depth) in [
        ("/", 1),
        ("/proc", 1),
        ("/dev", 3),
        ("/sys", 2),
        ("/etc", 1),
        ("/tmp", 1),
    ] {
        tree(&mut out, Path::new(root), depth);
    }
    groups(&mut out, Path::new("/sys/fs/cgroup"));
    writable(&mut out, Path::new("/proc/sys"));
    masked(&mut out);
    calls(&mut out);
    out
}

fn line(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "{key} = {}", value.trim_end().replace('\n', " | "));
}

/// At most so much, without waiting.
fn text(path: impl AsRef<Path>) -> String {
    let read = || {
        let file = fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let mut bytes = Vec::new();
        file.take(64 << 10).read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("error {}", error.raw_os_error().unwrap_or(0)))
}

fn link(path: impl AsRef<Path>) -> String {
    fs::read_link(path).map_or_else(
        |error| format!("error {}", error.raw_os_error().unwrap_or(0)),
        |to| to.to_string_lossy().into_owned(),
    )
}

/// Each kind with its number, and whether our own user namespace owns it.
fn namespaces(out: &mut String) {
    const OWNER: i64 = 0xb701;
    let own = fs::metadata("/proc/self/ns/user").map(|m| m.ino()).unwrap_or(0);
    for kind in names(Path::new("/proc/self/ns")) {
        let path = format!("/proc/self/ns/{kind}");
        line(out, &format!("namespace {kind}"), &link(&path));
        let Ok(file) = fs::File::open(&path) else { continue };
        let owner = unsafe { syscall(16, i64::from(file.as_raw_fd()), OWNER, 0_i64) };
        let owner = if owner < 0 {
            format!("error {}", errno())
        } else {
            let inode = fs::metadata(format!("/proc/self/fd/{owner}"))
                .map(|m| m.ino())
                .unwrap_or(1);
            unsafe { syscall(3, owner) };
            if inode == own { "ours" } else { "another" }.to_owned()
        };
        line(out, &format!("owner of namespace {kind}"), &owner);
    }
}

fn process(out: &mut String) {
    let by_chance = [
        "State",
        "FDSize",
        "Vm",
        "Rss",
        "HugetlbPages",
        "Threads",
        "SigQ",
        "voluntary_ctxt",
        "nonvoluntary_ctxt",
    ];
    // While the first thread makes another one it blocks signals.
    std::thread::sleep(std::time::Duration::from_millis(50));
    for row in text("/proc/self/status").lines() {
        let (name, value) = row.split_once(':').unwrap_or((row, ""));
        if !by_chance.iter().any(|skipped| name.starts_with(skipped)) {
            line(out, &format!("status {name}"), value.trim());
        }
    }
    let stat_line = text("/proc/self/stat");
    let fields: Vec<&str> = stat_line.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    // See proc_pid_stat(5); the first here is its third.
    for (name, number) in [
        ("parent", 4),
        ("group", 5),
        ("session", 6),
        ("terminal", 7),
        ("terminal group", 8),
        ("priority", 18),
        ("nice", 19),
        ("exit signal", 38),
        ("real time priority", 40),
        ("policy", 41),
    ] {
        line(out, &format!("stat {name}"), fields.get(number - 3).unwrap_or(&""));
    }
    for name in [
        "oom_score_adj",
        "uid_map",
        "gid_map",
        "projid_map",
        "setgroups",
        "limits",
        "cgroup",
        "loginuid",
        "sessionid",
        "coredump_filter",
        "timerslack_ns",
        "timens_offsets",
        "comm",
        "cmdline",
        "personality",
        "attr/current",
    ] {
        line(out, &format!("proc {name}"), &text(format!("/proc/self/{name}")));
    }
    for name in ["exe", "cwd", "root"] {
        line(out, &format!("link {name}"), &link(format!("/proc/self/{name}")));
    }
    if let Ok(here) = std::env::current_dir() {
        for directory in here.ancestors() {
            line(out, &format!("tree {}", directory.display()), &stat(directory, false));
        }
    }
    for (number, (name, value)) in std::env::vars_os().enumerate() {
        let (name, value) = (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let pair = format!("{}={}", String::from_utf8_lossy(&name), String::from_utf8_lossy(&value));
        line(out, &format!("environment {number}"), &pair);
    }
    // prctl: parent's death signal, dumpable, keep capabilities, secure bits, timer slack, subreaper, huge pages off,
    // machine checks, speculation.
    for (name, option, argument) in [
        ("dumpable", 3, 0),
        ("keep capabilities", 7, 0),
        ("timing", 13, 0),
        ("secure bits", 27, 0),
        ("timer slack", 30, 0),
        ("machine checks", 34, 0),
        ("no new privileges", 39, 0),
        ("huge pages off", 42, 0),
        ("speculation store", 52, 0),
        ("speculation branch", 52, 1),
        ("speculation cache", 52, 2),
        ("io flusher", 58, 0),
        ("memory merge", 68, 0),
    ] {
        let got = unsafe { syscall(157, i64::from(option), i64::from(argument), 0_i64, 0_i64, 0_i64) };
        let got = if got < 0 {
            format!("error {}", errno())
        } else {
            got.to_string()
        };
        line(out, &format!("prctl {name}"), &got);
    }
    for (name, option) in [("death signal", 2), ("subreaper", 37)] {
        let mut value = 0_i32;
        unsafe { syscall(157, i64::from(option), &raw mut value, 0_i64, 0_i64, 0_i64) };
        line(out, &format!("prctl {name}"), &value.to_string());
    }
    for name in ["hostname", "domainname"] {
        line(
            out,
            &format!("system {name}"),
            &text(format!("/proc/sys/kernel/{name}")),
        );
    }
    for name in [
        "key-users",
        "net/dev",
        "net/if_inet6",
        "net/fib_trie",
        "net/route",
        "sysvipc/shm",
    ] {
        let shown = text(format!("/proc/{name}"));
        let shown: Vec<&str> = match name {
            // The rest counts packets.
            "net/dev" => shown.lines().filter_map(|row| row.split(':').next()).collect(),
            _ => vec![&shown],
        };
        line(out, &format!("system {name}"), &shown.join(" "));
    }
    line(out, "system lo", &text("/sys/class/net/lo/flags"));
}

fn files(out: &mut String) {
    for name in names(Path::new("/proc/self/fd")) {
        let target = link(format!("/proc/self/fd/{name}"));
        let kind = target.split(':').next().unwrap_or_default().to_owned();
        if name.len() == 1 && ("0"..="2").contains(&name.as_str()) {
            let info = text(format!("/proc/self/fdinfo/{name}"));
            let flags = info
                .lines()
                .find(|row| row.starts_with("flags"))
                .unwrap_or_default()
                .to_owned();
            line(
                out,
                &format!("file {name}"),
                &format!(
                    "{kind} {flags} {}",
                    stat(Path::new(&format!("/proc/self/fd/{name}")), true)
                ),
            );
        } else if kind != "socket" && !target.contains("/proc/") && !target.starts_with("error") {
            line(out, &format!("file {name}"), &target);
        }
    }
}

/// Places of parents instead of numbers, kinds of propagation without theirs, no device numbers.
fn mounts(out: &mut String) {
    let table = text("/proc/self/mountinfo");
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split(' ').collect()).collect();
    for (number, row) in rows.iter().enumerate() {
        let parent = rows
            .iter()
            .find(|other| other[0] == row[1])
            .map_or("none", |parent| parent[4]);
        let end = row.iter().position(|word| *word == "-").unwrap_or(row.len());
        let propagation: Vec<&str> = row[6..end]
            .iter()
            .map(|word| word.split(':').next().unwrap_or_default())
            .collect();
        let shown = format!(
            "{} from {} in {parent} {} [{}] {}",
            row[4],
            row[3],
            row[5],
            propagation.join(" "),
            row[end + 1..].join(" ")
        );
        line(out, &format!("mount at {}", row[4]), &format!("{number:02} {shown}"));
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn stat(path: &Path, follow: bool) -> String {
    let found = if follow {
        fs::metadata(path)
    } else {
        fs::symlink_metadata(path)
    };
    match found {
        Ok(m) => {
            let device = if m.file_type().is_char_device() || m.file_type().is_block_device() {
                m.rdev()
            } else {
                0
            };
            format!("{:o} {}:{} device {device}", m.mode(), m.uid(), m.gid())
        }
        Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
    }
}

fn tree(out: &mut String, root: &Path, depth: u32) {
    line(out, &format!("tree {}", root.display()), &stat(root, false));
    if depth == 0 {
        return;
    }
    for name in names(root) {
        if root == Path::new("/proc") && name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let path = root.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            tree(out, &path, depth - 1);
        } else {
            // Another one each time.
            let to = fs::read_link(&path).ok().filter(|_| !path.ends_with("thread-self"));
            let to = to.map(|to| format!(" to {}", to.display())).unwrap_or_default();
            line(out, &format!("tree {}", path.display()), &(stat(&path, false) + &to));
        }
    }
}

/// Files of control groups with their values, unless these change by themselves.
fn groups(out: &mut String, root: &Path) {
    let moving = [
        "usage",
        "stat",
        "procs",
        "tasks",
        "failcnt",
        "pressure",
        "max_usage",
        "current",
        "peak",
        "events",
        "numa",
        "io_",
        "throttle",
        "time",
        "sectors",
        "force_empty",
        "event_control",
        "pids.forks",
        "slabinfo",
        "release_agent",
    ];
    for name in names(root) {
        let path = root.join(&name);
        let shown = stat(&path, false);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {
                line(out, &format!("group {}", path.display()), &shown);
                groups(out, &path);
            }
            Ok(found) if found.is_file() => {
                let value = if moving.iter().any(|word| name.contains(word)) {
                    String::new()
                } else {
                    text(&path)
                };
                line(out, &format!("group {}", path.display()), &format!("{shown} {value}"));
            }
            _ => line(
                out,
                &format!("group {}", path.display()),
                &format!("{shown} {}", link(&path)),
            ),
        }
    }
}

/// Whether anything below may be opened for writing, and what it says.
fn writable(out: &mut String, root: &Path) {
    let by_chance = [
        "random",
        "ns_last_pid",
        "file-nr",
        "inode",
        "quota",
        "dentry-state",
        "pty",
        "aio-nr",
        "binfmt_misc",
        "sched_domain",
        "perf_event",
    ];
    for name in names(root) {
        let path = root.join(&name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => writable(out, &path),
            Ok(found) if found.is_file() => {
                let opened = fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&path);
                let opened = opened.map_or_else(
                    |e| format!("error {}", e.raw_os_error().unwrap_or(0)),
                    |_| "opens".to_owned(),
                );
                let value = if root.starts_with("/proc/sys")
                    && !by_chance.iter().any(|word| path.to_string_lossy().contains(word))
                {
                    text(&path)
                } else {
                    String::new()
                };
                line(
                    out,
                    &format!("writable {}", path.display()),
                    &format!("{opened} {} {value}", stat(&path, false)),
                );
            }
            _ => {}
        }
    }
}

fn masked(out: &mut String) {
    for path in [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
        "/sys/fs/selinux",
        "/sys/kernel/debug",
        "/proc/sysrq-trigger",
        "/proc/kmsg",
        "/proc/kallsyms",
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/1/environ",
        "/proc/kpagecount",
        "/sys/kernel/mm/ksm/run",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/dev/null",
        "/dev/full",
        "/dev/console",
        "/dev/tty",
        "/dev/ptmx",
        "/dev/kmsg",
        "/dev/mem",
        "/",
    ] {
        let read = match fs::read_dir(path) {
            Ok(entries) => format!("{} entries", entries.count()),
            Err(_) => {
                let mut byte = [0];
                match fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(O_NONBLOCK)
                    .open(path)
                    .and_then(|mut f| f.read(&mut byte))
                {
                    Ok(length) => format!("reads {length}"),
                    Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
                }
            }
        };
        let write = fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path);
        let write = write.map_or_else(
            |e| format!("error {}", e.raw_os_error().unwrap_or(0)),
            |_| "opens".to_owned(),
        );
        let path_only = fs::OpenOptions::new()
            .read(true)
            .custom_flags(O_PATH)
            .open(path)
            .is_ok();
        line(
            out,
            &format!("reach {path}"),
            &format!("{read}, for writing {write}, {path_only}"),
        );
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// What becomes of a child that does one thing: how it ends, within a second.
fn child(work: impl FnOnce() -> i32) -> String {
    let pid = unsafe { syscall(57) };
    if pid == 0 {
        unsafe { syscall(37, 1_i64) };
        let code = work();
        unsafe { syscall(231, i64::from(code)) };
    }
    if pid < 0 {
        return format!("no child: {}", errno());
    }
    let mut status = 0_i32;
    while unsafe { syscall(61, pid, &raw mut status, 0_i64, 0_i64) } < 0 && errno() == 4 {}
    if status & 0x7f == 0 {
        format!("{}", (status >> 8) & 0xff)
    } else {
        format!("signal {}", status & 0x7f)
    }
}

/// Every system call with nonsense, and the ones whose arguments the filter looks at. 0 is success, else the error.
fn calls(out: &mut String) {
    let done = |result: i64| if result < 0 { errno() } else { 0 };
    // Not sync, which the machine feels, nor vfork, whose child would return into its parent's stack, nor the return
    // from a signal that was none, which goes anywhere.
    let all = (0..480_i64).chain([512, 1000, 0x4000_0000, 0x4000_0027]);
    for number in all.filter(|number| ![15, 58, 162].contains(number)) {
        let ended = child(|| done(unsafe { syscall(number, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) }));
        line(out, &format!("call {number}"), &ended);
    }
    for family in 0..46_i64 {
        let ended = child(|| done(unsafe { syscall(41, family, 2_i64, 0_i64) }));
        let raw = child(|| done(unsafe { syscall(41, family, 3_i64, 0_i64) }));
        line(out, &format!("call socket {family}"), &format!("{ended} raw {raw}"));
    }
    for personality in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff_i64, 0x4_0000, 1] {
        line(
            out,
            &format!("call personality {personality:x}"),
            &child(|| done(unsafe { syscall(135, personality) })),
        );
    }
    for bit in 0..32_i64 {
        // Not those that would need a stack or share it (VM, VFORK, THREAD), nor signals.
        if bit < 8 || [8, 14, 16].contains(&bit) {
            continue;
        }
        let ended = child(|| done(unsafe { syscall(56, (1_i64 << bit) | 17, 0_i64, 0_i64, 0_i64, 0_i64) }));
        line(out, &format!("call clone with bit {bit}"), &ended);
    }
    #[cfg(target_arch = "x86_64")]
    {
        // getpid as a 32-bit program would ask for it.
        let ended = child(|| {
            let mut result = 20_i64;
            unsafe { std::arch::asm!("int 0x80", inout("rax") result, options(nostack)) };
            i32::from(result < 0)
        });
        line(out, "call of 32 bits", &ended);
    }
}
