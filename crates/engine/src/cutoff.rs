//! What was cut off when an idle instance lost its CPU: threads that still ran, and connections to the outside whose
//! other end now waits. It is said in the log of the service, with the flag that would help.
//!
//! A look takes a moment of [`WINDOW`], in which the instance still runs, and is taken by one thread for many instances
//! at a time. What finds that thread overrun is frozen unseen: a look is never waited for. An instance is looked at
//! every ten seconds at most, and only after a request: what a start leaves undone goes on with the first request.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use model::{InstanceId, RevisionKey, Severity};
use tokio::sync::mpsc;

use crate::{
    Inner,
    cgroup::{Groups, Layout, groups_below},
    cpu::Cpu,
    network::{ADDRESS, Home},
};

/// Between the two readings of one look.
const WINDOW: Duration = Duration::from_millis(20);
/// How many instances are looked at together.
pub(crate) const BATCH: usize = 64;
/// Threads of an instance beyond these are not read.
const MOST_THREADS: usize = 256;
/// How long nothing more is said of a revision after it was said that threads were cut off.
const QUIET: Duration = Duration::from_mins(10);
/// The same after open connections alone, which many servers keep for no harm.
const QUIET_CONNECTIONS: Duration = Duration::from_hours(1);
/// How long the connections of a revision are not read again: the kernel walks all of the machine's to find them, for
/// some milliseconds, and the instances of a revision are alike.
const CONNECTIONS_PAUSE: Duration = Duration::from_mins(5);
/// How many peers are named.
const MOST_PEERS: usize = 3;

/// An instance whose linger is over.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) id: InstanceId,
    pub(crate) cpu: Arc<Cpu>,
}

/// One reading of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Thread {
    /// It runs, waits for a CPU, or waits for a disk.
    runnable: bool,
    ran: Duration,
    /// Waited for a CPU.
    waited: Duration,
}

type Threads = BTreeMap<u32, Thread>;

#[derive(Debug, Default, PartialEq, Eq)]
struct Work {
    threads: usize,
    /// Thousandths of a CPU.
    wanted_millis: u64,
}

/// Looks at instances and freezes them, for ever.
pub(crate) async fn watch(engine: Arc<Inner>, mut looks: mpsc::Receiver<Look>) {
    let mut pauses = Pauses::default();
    let mut batch = Vec::new();
    while looks.recv_many(&mut batch, BATCH).await > 0 {
        let (inner, batch, before) = (
            Arc::clone(&engine),
            std::mem::take(&mut batch),
            std::mem::take(&mut pauses),
        );
        let looked = tokio::task::spawn_blocking(move || look(&inner, batch, before));
        match looked.await {
            Ok(after) => pauses = after,
            Err(error) => tracing::error!(%error, "looking at idle instances failed"),
        }
    }
}

/// Until when something is not done again for a revision.
#[derive(Debug, Default)]
struct Pauses {
    /// Saying anything.
    quiet: HashMap<RevisionKey, Instant>,
    /// Reading its connections.
    connections: HashMap<RevisionKey, Instant>,
}

fn look(engine: &Inner, batch: Vec<Look>, mut pauses: Pauses) -> Pauses {
    let now = Instant::now();
    pauses.quiet.retain(|_, until| *until > now);
    pauses.connections.retain(|_, until| *until > now);
    let quiet = &mut pauses.quiet;
    let mut first = Vec::new();
    for Look { id, cpu } in batch {
        let entry = engine.entry(&id).filter(|entry| !quiet.contains_key(&entry.spec.of));
        match entry {
            Some(entry) => first.push((Instant::now(), threads(&entry.groups), cpu.idle_since(), entry)),
            None => engine.linger.settle(&id, &cpu),
        }
    }
    std::thread::sleep(WINDOW);
    let overloaded = is_overloaded();
    for (begin, before, idle_since, entry) in first {
        let (id, spec) = (&entry.spec.id, &entry.spec);
        let after = threads(&entry.groups);
        let elapsed = begin.elapsed();
        // At once, so that what was seen is what was cut off.
        engine.linger.settle(id, &entry.cpu);
        if idle_since.is_none() || entry.cpu.idle_since() != idle_since {
            continue;
        }
        let work = match judge(&before, &after, elapsed, overloaded) {
            Judgement::Work(work) => Some(work),
            Judgement::Calm => None,
            Judgement::Unknown => {
                entry.cpu.look_again();
                continue;
            }
        };
        let unread = !pauses.connections.contains_key(&spec.of);
        if quiet.contains_key(&spec.of) || work.is_none() && !unread {
            continue;
        }
        pauses
            .connections
            .insert(spec.of.clone(), Instant::now() + CONNECTIONS_PAUSE);
        let peers = entry.running.get().map(|running| peers(&engine.home, &running.network));
        let peers = match peers {
            Some(Ok(peers)) => peers,
            Some(Err(error)) => {
                tracing::warn!(%id, %error, "cannot read an instance's connections");
                Vec::new()
            }
            None => Vec::new(),
        };
        if let Some(text) = words(work.as_ref(), &peers) {
            engine.log.system(spec, Severity::Warning, text);
            let (of, now) = (spec.of.clone(), Instant::now());
            if work.is_some() {
                quiet.insert(of, now + QUIET);
            } else {
                pauses.connections.insert(of, now + QUIET_CONNECTIONS);
            }
        }
    }
    pauses
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// Nothing but the housekeeping of a server at rest.
    Calm,
    Work(Work),
    /// The machine has more to do than it can, so that waiting says nothing.
    Unknown,
}

/// Work is a thread that could run at both readings, or that ran for a good part of the time between. On an
/// overloaded machine every thread that wakes up waits for long: there only what did run is believed.
fn judge(before: &Threads, after: &Threads, elapsed: Duration, overloaded: bool) -> Judgement {
    let mut work = Work::default();
    let mut wanted = Duration::ZERO;
    let mut unknown = false;
    for (id, last) in after {
        let Some(first) = before.get(id) else { continue };
        let ran = last.ran.saturating_sub(first.ran);
        let waited = last.waited.saturating_sub(first.waited);
        let throughout = first.runnable && last.runnable;
        let much = ran >= elapsed / 4;
        let some = ran >= elapsed / 20;
        if much || throughout && (some || !overloaded) {
            work.threads += 1;
            wanted += ran + waited;
        } else if throughout {
            unknown = true;
        }
    }
    if work.threads > 0 {
        let wanted = wanted.as_micros() * 1000 / elapsed.as_micros().max(1);
        work.wanted_millis = u64::try_from(wanted).unwrap_or(u64::MAX);
        Judgement::Work(work)
    } else if unknown {
        Judgement::Unknown
    } else {
        Judgement::Calm
    }
}

/// None: nothing was cut off.
fn words(work: Option<&Work>, peers: &[SocketAddr]) -> Option<String> {
    let mut found = Vec::new();
    if let Some(work) = work {
        let (s, verb) = if work.threads == 1 { ("", "was") } else { ("s", "were") };
        // Of a thread that is held by the CPU limit no waiting is known.
        let wanted = match work.wanted_millis.div_ceil(100) {
            0 => String::new(),
            tenths => format!(" and wanted {}.{} CPU", tenths / 10, tenths % 10),
        };
        found.push(format!("{} thread{s} {verb} still running{wanted}", work.threads));
    }
    if !peers.is_empty() {
        let (s, verb) = if peers.len() == 1 { ("", "was") } else { ("s", "were") };
        let mut named: Vec<String> = peers.iter().take(MOST_PEERS).map(ToString::to_string).collect();
        if peers.len() > MOST_PEERS {
            named.push("others".to_owned());
        }
        found.push(format!(
            "{} outgoing connection{s} {verb} open (to {})",
            peers.len(),
            named.join(", ")
        ));
    }
    if found.is_empty() {
        return None;
    }
    Some(format!(
        "The CPU was taken from this instance after its last request had ended, while {}. This goes on with the next \
         request. For work outside of requests deploy with --no-cpu-throttling.",
        found.join(", and ")
    ))
}

/// Whether more threads want to run than the machine's CPUs can soon serve.
fn is_overloaded() -> bool {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let running = text.split(' ').nth(3).and_then(|counts| counts.split('/').next());
    let running: usize = running.and_then(|count| count.parse().ok()).unwrap_or(0);
    running > 2 * crate::cpus()
}

/// Every thread of an instance. One that ends meanwhile is left out.
fn threads(groups: &Groups) -> Threads {
    let name = match groups.layout() {
        Layout::V1 { unified: None, .. } => "tasks",
        Layout::V1 { unified: Some(_), .. } | Layout::V2 { .. } => "cgroup.threads",
    };
    let Ok(group) = groups.freezing() else {
        return Threads::new();
    };
    let mut ids = BTreeSet::new();
    for group in groups_below(&group) {
        let text = fs::read_to_string(group.join(name)).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    let read = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let schedule = fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
        Some((id, thread(&stat, &schedule)?))
    };
    ids.into_iter().take(MOST_THREADS).filter_map(read).collect()
}

/// See proc(5). The name of a thread, in brackets, may hold anything.
fn thread(stat: &str, schedule: &str) -> Option<Thread> {
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    let mut numbers = schedule.split_whitespace();
    let mut nanos = || numbers.next()?.parse().ok().map(Duration::from_nanos);
    Some(Thread {
        runnable: matches!(state, 'R' | 'D'),
        ran: nanos()?,
        waited: nanos()?,
    })
}

/// Who is at the other end of the connections that the instance made to the outside.
fn peers(home: &Home, network: &OwnedFd) -> io::Result<Vec<SocketAddr>> {
    // What is opened in the instance's network is read from any.
    let open = |name| fs::File::open(format!("/proc/thread-self/net/{name}"));
    let kinds = [("sockstat", "TCP:", "tcp"), ("sockstat6", "TCP6:", "tcp6")];
    let files = home.inside(network, || {
        kinds.map(|(count, name, all)| (open(count), name, open(all)))
    })?;
    let mut text = String::new();
    for (count, name, all) in files {
        // A machine without version 6 has no such file.
        let Ok(count) = count else { continue };
        if are_in_use(&io::read_to_string(count)?, name) {
            text.push_str(&io::read_to_string(all?)?);
        }
    }
    Ok(outgoing(&text))
}

/// Whether a network has sockets of a kind, from `/proc/net/sockstat`. To ask is cheap, to list them is not.
fn are_in_use(text: &str, name: &str) -> bool {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.is_some_and(|counts| !counts.trim_start().starts_with("inuse 0"))
}

/// The far ends of connections in `/proc/net/tcp` and `/proc/net/tcp6` that are open, were not accepted on a port that
/// is listened on, and do not end in the same network.
fn outgoing(text: &str) -> Vec<SocketAddr> {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let mut listening = BTreeSet::new();
    let mut open = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let ends = (fields.next().and_then(end), fields.next().and_then(end), fields.next());
        match ends {
            (Some(near), Some(_), Some(LISTEN)) => drop(listening.insert(near.port())),
            (Some(near), Some(far), Some(ESTABLISHED)) => open.push((near, far)),
            _ => {}
        }
    }
    let both: BTreeSet<(SocketAddr, SocketAddr)> = open.iter().copied().collect();
    let is_outgoing = |(near, far): &(SocketAddr, SocketAddr)| {
        let within = far.ip().is_loopback() || far.ip() == IpAddr::V4(ADDRESS) || both.contains(&(*far, *near));
        !within && !listening.contains(&near.port())
    };
    open.into_iter().filter(is_outgoing).map(|(_, far)| far).collect()
}

/// `0100007F:1F90`: the address as numbers in the machine's own byte order, the port as one.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(runnable: bool, ran: u64, waited: u64) -> Thread {
        Thread {
            runnable,
            ran: Duration::from_millis(ran),
            waited: Duration::from_millis(waited),
        }
    }

    fn work(threads: usize, wanted_millis: u64) -> Judgement {
        Judgement::Work(Work { threads, wanted_millis })
    }

    #[test]
    fn work_is_told_from_housekeeping() {
        let window = Duration::from_millis(20);
        for (what, before, after, calm_machine, overloaded) in [
            (
                "asleep",
                read(false, 5, 0),
                read(false, 5, 0),
                Judgement::Calm,
                Judgement::Calm,
            ),
            (
                "computes",
                read(true, 5, 0),
                read(true, 25, 0),
                work(1, 1000),
                work(1, 1000),
            ),
            (
                "shares",
                read(true, 5, 0),
                read(true, 15, 10),
                work(1, 1000),
                work(1, 1000),
            ),
            // Seen between two bursts of it.
            (
                "often",
                read(false, 5, 0),
                read(false, 12, 0),
                work(1, 350),
                work(1, 350),
            ),
            (
                "woke up",
                read(false, 5, 0),
                read(true, 5, 0),
                Judgement::Calm,
                Judgement::Calm,
            ),
            // By its CPU limit, or by all the others.
            (
                "held",
                read(true, 5, 0),
                read(true, 5, 0),
                work(1, 0),
                Judgement::Unknown,
            ),
            (
                "ended",
                read(true, 5, 0),
                read(false, 6, 0),
                Judgement::Calm,
                Judgement::Calm,
            ),
        ] {
            let (before, after) = (Threads::from([(7, before)]), Threads::from([(7, after)]));
            assert_eq!(judge(&before, &after, window, false), calm_machine, "{what}");
            assert_eq!(judge(&before, &after, window, true), overloaded, "{what}, overloaded");
        }
        let before = Threads::from([(1, read(true, 0, 0)), (2, read(true, 0, 0)), (3, read(false, 0, 0))]);
        let after = Threads::from([(1, read(true, 20, 0)), (2, read(true, 15, 5)), (4, read(true, 9, 0))]);
        assert_eq!(judge(&before, &after, window, false), work(2, 2000));
        assert_ne!(judge(&before, &after, Duration::ZERO, false), Judgement::Calm);
    }

    #[test]
    fn what_is_said() {
        assert_eq!(words(None, &[]), None);
        let one = Work {
            threads: 1,
            wanted_millis: 990,
        };
        let text = words(Some(&one), &[]).expect("something");
        assert!(
            text.contains(", while 1 thread was still running and wanted 1.0 CPU. "),
            "{text}"
        );
        assert!(text.ends_with("deploy with --no-cpu-throttling."), "{text}");
        let held = Work {
            threads: 2,
            wanted_millis: 0,
        };
        let peers: Vec<SocketAddr> = (1..=4).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect();
        let text = words(Some(&held), &peers).expect("something");
        let all = ", while 2 threads were still running, and 4 outgoing connections were open (to 10.0.0.1:1, \
                   10.0.0.1:2, 10.0.0.1:3, others). ";
        assert!(text.contains(all), "{text}");
        let text = words(None, &peers[..1]).expect("something");
        assert!(
            text.contains(", while 1 outgoing connection was open (to 10.0.0.1:1). "),
            "{text}"
        );
    }

    #[test]
    fn a_thread_is_read_whatever_its_name() {
        let stat = "12 (a) S (b) R 1 12 12 0 -1 4194304 107 0 0 0";
        assert_eq!(
            thread(stat, "2000000 1000000 3\n"),
            Some(Thread {
                runnable: true,
                ran: Duration::from_millis(2),
                waited: Duration::from_millis(1),
            })
        );
        assert_eq!(thread("12 (a) D 1", "0 0 0").map(|thread| thread.runnable), Some(true));
        assert_eq!(thread("12 (a) S 1", "0 0 0").map(|thread| thread.runnable), Some(false));
        assert_eq!(thread("", "0 0 0"), None);
        assert_eq!(thread("12 (a) S 1", ""), None);
    }

    #[test]
    fn sockets_are_counted_before_they_are_listed() {
        let text = "sockets: used 3\nTCP: inuse 2 orphan 0 tw 0 alloc 3 mem 0\nTCP6: inuse 0\nUDP: inuse 0 mem 0\n";
        assert!(are_in_use(text, "TCP:"));
        assert!(!are_in_use(text, "TCP6:"));
        assert!(!are_in_use("", "TCP:"));
    }

    #[test]
    fn outgoing_connections_are_those_to_the_outside() {
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0108FEA9:1F90 0108FEA9:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 016433C6:C001 026433C6:1538 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0100007F:C002 0100007F:18EB 01 00000000:00000000 00:00000000 00000000     0        0 4 1
   4: 016433C6:C003 026433C6:1538 06 00000000:00000000 00:00000000 00000000     0        0 5 1
   5: 016433C6:1F90 026433C6:C004 01 00000000:00000000 00:00000000 00000000     0        0 6 1
   6: 056433C6:C005 056433C6:C006 01 00000000:00000000 00:00000000 00000000     0        0 7 1
   7: 056433C6:C006 056433C6:C005 01 00000000:00000000 00:00000000 00000000     0        0 8 1
   8: 0000000000000000FFFF0000016433C6:C007 0000000000000000FFFF0000036433C6:01BB 01 0:0 0:0 0 0 0 9 1
   9: B80D0120000000000000000001000000:C008 B80D0120000000000000000002000000:01BB 01 0:0 0:0 0 0 0 9 1
";
        let peers: Vec<String> = outgoing(text).iter().map(ToString::to_string).collect();
        assert_eq!(peers, ["198.51.100.2:5432", "198.51.100.3:443", "[2001:db8::2]:443"]);
        assert_eq!(outgoing("garbage\n x: y:z 1:2 01\n"), []);
    }
}
