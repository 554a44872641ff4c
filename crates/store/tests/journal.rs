//! The journal in temporary directories: order, limits, loss that is counted, halves that are passed over.

use std::{fs, path::Path, time::Duration};

use homerun_store::journal::{FLUSH, Journal, Limits, Of, read_last};
use model::{
    AuditRecord, Entry, InstanceId, LogLine, Region, RevisionKey, RevisionName, ServiceKey, ServiceName, Severity,
    StartRecord, Stream, Timestamp,
};
use tempfile::TempDir;

fn dir() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

fn of(service: &str, revision: &str) -> RevisionKey {
    RevisionKey {
        service: ServiceKey {
            region: Region::parse("us-central1").expect("a region"),
            name: ServiceName::parse(service).expect("a name"),
        },
        name: RevisionName::parse(revision).expect("a name"),
    }
}

fn line(of: RevisionKey, text: impl Into<String>) -> Entry {
    Entry::Line(LogLine {
        at: Timestamp::from_micros(1),
        of,
        instance: InstanceId::new([7; 12]),
        container: String::new(),
        stream: Stream::Stdout,
        severity: Severity::Default,
        text: text.into(),
    })
}

fn text(entry: &Entry) -> &str {
    match entry {
        Entry::Line(line) => &line.text,
        Entry::Request(request) => &request.url,
        Entry::Audit(record) => &record.method,
        Entry::Start(start) => start.instance.as_str(),
    }
}

fn last(dir: &Path, most: usize, of: &Of) -> Vec<String> {
    read_last(dir, most, of)
        .expect("reads")
        .iter()
        .map(|entry| text(entry).to_owned())
        .collect()
}

fn bytes(dir: &Path) -> Vec<u64> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("there")
        .map(|file| file.expect("there").path())
        .collect();
    files.sort();
    files.iter().map(|file| file.metadata().expect("there").len()).collect()
}

#[test]
fn newest_first_by_service_and_revision() {
    let dir = dir();
    let journal = Journal::open(&dir.path().join("log")).expect("opens");
    let service = of("s", "s-00001-abc").service;
    journal.write(&line(of("s", "s-00001-abc"), "one"));
    journal.write(&line(of("s", "s-00002-abc"), "two"));
    journal.write(&line(of("t", "t-00001-abc"), "three, of s-00001-abc"));
    journal.write(&Entry::Start(StartRecord {
        at: Timestamp::from_micros(2),
        of: of("t", "t-00001-abc"),
        instance: InstanceId::new([9; 12]),
        parked: false,
        turn_micros: 1,
        rootfs_micros: Some(2),
        network_micros: None,
        cgroup_micros: Some(3),
        sandbox_micros: 4,
        process_micros: None,
        listening_micros: 5,
        ready_micros: 15,
    }));
    journal.write(&Entry::Audit(AuditRecord {
        at: Timestamp::from_micros(2),
        service: Some(service.clone()),
        caller: "me".to_owned(),
        method: "four".to_owned(),
        resource: "//run.googleapis.com/projects/p/locations/r/services/s".to_owned(),
        from: "127.0.0.1:1".to_owned(),
        allowed: true,
        status: 200,
    }));
    drop(journal);
    let dir = dir.path().join("log");
    let start = "i090909090909090909090909";
    let everything = ["four", start, "three, of s-00001-abc", "two", "one"];
    assert_eq!(last(&dir, 10, &Of::Everything), everything);
    assert_eq!(last(&dir, 2, &Of::Everything), everything[..2]);
    assert_eq!(last(&dir, 10, &Of::Service(service)), ["four", "two", "one"]);
    assert_eq!(last(&dir, 10, &Of::Revision(of("s", "s-00001-abc"))), ["one"]);
    let of_start = Of::Revision(of("t", "t-00001-abc"));
    assert_eq!(last(&dir, 10, &of_start), [start, "three, of s-00001-abc"]);
}

#[test]
fn entries_of_many_threads_keep_their_order() {
    let dir = dir();
    let journal = Journal::open(dir.path()).expect("opens");
    let turn = std::sync::Mutex::new(0_u32);
    // More threads than shards, each next entry by whoever comes: their order is known by the lock.
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut number = turn.lock().expect("lock");
                    journal.write(&line(of("s", "s-00001-abc"), number.to_string()));
                    *number += 1;
                    drop(number);
                    std::thread::yield_now();
                }
            });
        }
    });
    assert_eq!(journal.dropped(), 0);
    drop(journal);
    let mut expected: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    expected.reverse();
    assert_eq!(last(dir.path(), 2000, &Of::Everything), expected);
}

#[test]
fn an_entry_is_on_disk_soon_without_a_close() {
    let dir = dir();
    let journal = Journal::open(dir.path()).expect("opens");
    journal.write(&line(of("s", "s-00001-abc"), "one"));
    // Ten times the promise: the machine may be busy.
    let soon = std::time::Instant::now() + FLUSH * 10;
    while journal.read_last(1, &Of::Everything).expect("reads").is_empty() {
        assert!(std::time::Instant::now() < soon, "not flushed");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn segments_are_closed_and_the_oldest_removed() {
    let dir = dir();
    let limits = Limits {
        segment: 2_000,
        total: 6_000,
    };
    for round in 0..5 {
        let journal = Journal::open_with(dir.path(), limits).expect("opens");
        for number in 0..10 {
            journal.write(&line(of("s", "s-00001-abc"), format!("{round}.{number}")));
            if number == 4 {
                // Two batches at least, so that a segment ends within a round.
                std::thread::sleep(FLUSH * 2);
            }
        }
        drop(journal);
        let sizes = bytes(dir.path());
        assert!(sizes.iter().sum::<u64>() < 6_000 + 2_000, "{sizes:?}");
    }
    let kept = last(dir.path(), 1000, &Of::Everything);
    assert!(
        kept.len() < 50 && kept.len() > 10,
        "old ones are gone, new ones are not: {kept:?}"
    );
    let mut expected: Vec<String> = (0..5)
        .flat_map(|round| (0..10).map(move |number| format!("{round}.{number}")))
        .collect();
    expected.reverse();
    expected.truncate(kept.len());
    assert_eq!(kept, expected);
    assert!(bytes(dir.path()).len() > 1);
}

#[test]
fn a_half_line_is_passed_over_and_the_next_is_whole() {
    let dir = dir();
    let journal = Journal::open(dir.path()).expect("opens");
    journal.write(&line(of("s", "s-00001-abc"), "one"));
    journal.write(&line(of("s", "s-00001-abc"), "two"));
    drop(journal);
    let file = dir.path().join("00000000000000000001.jsonl");
    let whole = fs::read(&file).expect("there");
    fs::write(&file, &whole[..whole.len() - 9]).expect("cut");
    assert_eq!(last(dir.path(), 10, &Of::Everything), ["one"]);
    let journal = Journal::open(dir.path()).expect("opens");
    journal.write(&line(of("s", "s-00001-abc"), "three"));
    drop(journal);
    assert_eq!(last(dir.path(), 10, &Of::Everything), ["three", "one"]);
}

#[test]
fn what_does_not_fit_the_queue_is_counted_and_told() {
    let dir = dir();
    let journal = Journal::open(dir.path()).expect("opens");
    // More bytes than may wait, written faster than any disk takes them.
    let long = "x".repeat(256 << 10);
    let entries: Vec<Entry> = (0..600).map(|_| line(of("s", "s-00001-abc"), long.clone())).collect();
    let written = entries.len() as u64;
    for entry in &entries {
        journal.write(entry);
    }
    let dropped = journal.dropped();
    assert!(dropped > 0, "the queue has no end");
    let patience = std::time::Instant::now() + Duration::from_secs(30);
    while std::time::Instant::now() < patience
        && last(dir.path(), 1000, &Of::Everything).len() as u64 + dropped < written
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    journal.write(&line(of("s", "s-00001-abc"), "after"));
    assert_eq!(journal.dropped(), dropped, "there is room again");
    drop(journal);
    let mut told = 0;
    let mut kept = 0;
    for number in 1..=99 {
        let Ok(text) = fs::read_to_string(dir.path().join(format!("{number:020}.jsonl"))) else {
            break;
        };
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("whole lines");
            told += line.get("dropped").map_or(0, |n| n.as_u64().expect("a count"));
            kept += 1;
        }
    }
    assert_eq!(told, dropped);
    assert_eq!(kept + dropped, written + 1);
}
