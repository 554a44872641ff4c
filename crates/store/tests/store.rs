//! The store against real `SQLite` in temporary directories, and against its own process being killed.

#[path = "store/form.rs"]
mod form;
#[path = "store/iam.rs"]
mod iam;
#[path = "store/secret.rs"]
mod secret;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    hash::{BuildHasher as _, RandomState},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use homerun_store::{OpenError, Store, TransactError, Transaction};
use model::{
    ArtifactRepository, Bucket, Build, Group, ResourcePolicy, Revision, RevisionKey, RevisionName, RevokedToken,
    Secret, SecretVersion, Service, ServiceAccount, ServiceKey, ServiceName,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// What schema version 6 keeps, every field and every variant of it.
const GOLDEN: &str = include_str!("golden/v6.json");

#[derive(Deserialize, Serialize)]
struct Golden {
    services: Vec<Service>,
    revisions: Vec<Revision>,
    repositories: Vec<ArtifactRepository>,
    buckets: Vec<Bucket>,
    builds: Vec<Build>,
    policies: Vec<ResourcePolicy>,
    accounts: Vec<ServiceAccount>,
    groups: Vec<Group>,
    revoked: Vec<RevokedToken>,
    secrets: Vec<Secret>,
    secret_versions: Vec<SecretVersion>,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).expect("the stored form of version 6 is still read")
}

fn service(name: &str) -> Service {
    let mut service = golden().services.swap_remove(0);
    service.key.name = ServiceName::parse(name).expect(name);
    service
}

fn revision(of: &Service, name: &str) -> Revision {
    let mut revision = golden().revisions.swap_remove(0);
    revision.key = RevisionKey {
        service: of.key.clone(),
        name: RevisionName::parse(name).expect(name),
    };
    revision.service_uid.clone_from(&of.uid);
    revision
}

fn key(name: &str) -> ServiceKey {
    service(name).key
}

fn dir() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

async fn write(
    store: &Store,
    work: impl FnOnce(&mut Transaction) + Send + 'static,
) -> Result<u64, TransactError<Infallible>> {
    store
        .transact(move |tx| {
            work(tx);
            Ok(tx.version())
        })
        .await
}

#[tokio::test]
async fn a_write_survives_reopen() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    assert_eq!(store.snapshot().version, 0);
    let version = write(&store, |tx| {
        let s = service("s");
        tx.put_revision(revision(&s, "s-00001-abc"));
        tx.put_service(s);
    })
    .await
    .expect("written");
    assert_eq!(version, 1);
    drop(store);

    let store = Store::open(dir.path()).expect("the same store");
    let snapshot = store.snapshot();
    assert_eq!(snapshot.version, 1);
    let mut expected = service("s");
    expected.resource_version = 1;
    assert_eq!(snapshot.service(&key("s")), Some(&expected));
    let expected = revision(&expected, "s-00001-abc");
    assert_eq!(snapshot.revision(&expected.key), Some(&expected));
    let version = write(&store, |tx| tx.put_service(service("t"))).await.expect("written");
    assert_eq!(version, 2, "the counter goes on where it was");
}

#[tokio::test]
async fn deletes_survive_reopen_and_take_the_revisions() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    write(&store, |tx| {
        for name in ["s", "s-b"] {
            let s = service(name);
            for number in 1..=2 {
                tx.put_revision(revision(&s, &format!("{name}-0000{number}-abc")));
            }
            tx.put_service(s);
        }
    })
    .await
    .expect("written");
    write(&store, |tx| {
        tx.delete_service(&key("s"));
        tx.delete_revision(&revision(&service("s-b"), "s-b-00001-abc").key);
        assert!(tx.snapshot().service(&key("s")).is_none());
        assert_eq!(tx.snapshot().revisions.len(), 1);
    })
    .await
    .expect("written");
    drop(store);
    let snapshot = Store::open(dir.path()).expect("the same store").snapshot();
    let names: Vec<String> = snapshot.services.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["us-central1/s-b"]);
    let names: Vec<String> = snapshot.revisions.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["us-central1/s-b-00002-abc"]);
}

#[tokio::test]
async fn repositories_buckets_and_builds_survive_reopen_and_deletes_do() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let golden = golden();
    let (repositories, buckets) = (golden.repositories.clone(), golden.buckets.clone());
    let builds = golden.builds.clone();
    write(&store, move |tx| {
        golden.repositories.into_iter().for_each(|r| tx.put_repository(r));
        golden.buckets.into_iter().for_each(|b| tx.put_bucket(b));
        golden.builds.into_iter().for_each(|b| tx.put_build(b));
    })
    .await
    .expect("written");
    drop(store);
    let store = Store::open(dir.path()).expect("the same store");
    let snapshot = store.snapshot();
    for repository in &repositories {
        assert_eq!(snapshot.repositories[&repository.key].as_ref(), repository);
    }
    assert_eq!(snapshot.buckets.len(), buckets.len());
    for build in &builds {
        assert_eq!(snapshot.builds[&build.id].as_ref(), build);
    }
    let (key, name) = (repositories[0].key.clone(), buckets[0].name.clone());
    let build = builds[0].id.clone();
    write(&store, move |tx| {
        tx.delete_repository(&key);
        tx.delete_bucket(&name);
        tx.delete_build(&build);
    })
    .await
    .expect("written");
    drop(store);
    let snapshot = Store::open(dir.path()).expect("the same store").snapshot();
    assert_eq!(snapshot.repositories.len(), repositories.len() - 1);
    assert!(!snapshot.buckets.contains_key(&buckets[0].name));
    assert_eq!(snapshot.builds.len(), builds.len() - 1);
}

#[tokio::test]
async fn revisions_of_a_service_are_those_of_its_uid_by_name() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    write(&store, |tx| {
        for name in ["r", "s", "s-b"] {
            let s = service(name);
            for number in [3, 1, 2] {
                let mut r = revision(&s, &format!("{name}-0000{number}-abc"));
                if number == 2 {
                    "of a service that was deleted".clone_into(&mut r.service_uid);
                }
                tx.put_revision(r);
            }
            tx.put_service(s);
        }
    })
    .await
    .expect("written");
    let snapshot = store.snapshot();
    let s = snapshot.service(&key("s")).expect("written");
    let names: Vec<&str> = snapshot.revisions_of(s).map(|r| r.key.name.as_str()).collect();
    assert_eq!(names, ["s-00001-abc", "s-00003-abc"]);
}

#[tokio::test]
async fn a_refused_transaction_writes_nothing() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    write(&store, |tx| tx.put_service(service("s"))).await.expect("written");
    let bell = store.changed();
    let refused = store
        .transact(|tx| {
            tx.delete_service(&key("s"));
            tx.put_service(service("t"));
            assert!(tx.snapshot().service(&key("t")).is_some());
            Err::<(), _>("no")
        })
        .await;
    assert!(matches!(refused, Err(TransactError::Refused("no"))));
    assert!(!bell.has_changed().expect("open"), "nothing to tell");
    for snapshot in [store.snapshot(), {
        drop((store, bell));
        Store::open(dir.path()).expect("the same store").snapshot()
    }] {
        assert_eq!(snapshot.version, 1);
        assert!(snapshot.service(&key("s")).is_some());
        assert!(snapshot.service(&key("t")).is_none());
    }
}

#[tokio::test]
async fn work_that_writes_nothing_takes_no_version_and_rings_no_bell() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let bell = store.changed();
    write(&store, |tx| tx.delete_service(&key("absent")))
        .await
        .expect("nothing to do");
    assert_eq!(store.snapshot().version, 0);
    assert!(!bell.has_changed().expect("open"));
}

#[tokio::test]
async fn the_bell_has_rung_when_the_write_is_acknowledged() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let mut bell = store.changed();
    let mut last = 0;
    for name in ["a", "b", "c"] {
        let version = write(&store, move |tx| tx.put_service(service(name)))
            .await
            .expect("written");
        assert!(version > last, "{version} after {last}");
        last = version;
        assert!(bell.has_changed().expect("open"));
        let seen = bell.borrow_and_update().clone();
        assert_eq!(seen.version, version);
        let written = seen.service(&key(name)).expect("in the snapshot");
        assert_eq!(written.resource_version, version);
        assert_eq!(store.snapshot().version, version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_transactions_all_land_each_at_its_own_version() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let refuse = number % 10 == 9;
                let version = store
                    .transact(move |tx| {
                        tx.put_service(service(&format!("s{number}")));
                        if refuse { Err("no") } else { Ok(tx.version()) }
                    })
                    .await;
                (number, version)
            })
        })
        .collect();
    let mut acknowledged = Vec::new();
    for task in tasks {
        match task.await.expect("no panic") {
            (number, Ok(version)) => acknowledged.push((number, version)),
            (number, Err(error)) => {
                assert!(matches!(error, TransactError::Refused("no")), "{error}");
                assert_eq!(number % 10, 9);
            }
        }
    }
    let versions: BTreeSet<u64> = acknowledged.iter().map(|(_, version)| *version).collect();
    assert_eq!(versions, (1..=90).collect::<BTreeSet<u64>>());
    drop(store);
    let snapshot = Store::open(dir.path()).expect("the same store").snapshot();
    assert_eq!((snapshot.version, snapshot.services.len()), (90, 90));
    for (number, version) in acknowledged {
        let s = snapshot.service(&key(&format!("s{number}"))).expect("kept");
        assert_eq!(s.resource_version, version);
    }
}

#[tokio::test]
async fn a_panic_in_the_work_is_its_callers() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let caller = store.clone();
    let panicked = tokio::spawn(async move {
        write(&caller, |tx| {
            tx.put_service(service("s"));
            panic!("on purpose");
        })
        .await
    })
    .await
    .expect_err("it panicked");
    assert!(panicked.is_panic());
    let version = write(&store, |tx| {
        assert!(tx.snapshot().services.is_empty());
        tx.put_service(service("t"));
    })
    .await
    .expect("the store goes on");
    assert_eq!(version, 1);
}

#[tokio::test]
async fn a_write_that_the_disk_refuses_is_an_error_and_leaves_nothing() {
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    write(&store, |tx| tx.put_service(service("s"))).await.expect("written");
    let other = rusqlite::Connection::open(dir.path().join("homerun.db")).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("taken");
    let error = write(&store, |tx| tx.put_service(service("t")))
        .await
        .expect_err("somebody else is writing");
    assert!(matches!(&error, TransactError::Storage(e) if e.to_string().contains("homerun.db")));
    assert_eq!(store.snapshot().version, 1);
    other.execute_batch("ROLLBACK").expect("given back");
    let version = write(&store, |tx| tx.put_service(service("u")))
        .await
        .expect("the store goes on");
    assert_eq!(version, 2);
    let snapshot = store.snapshot();
    assert!(snapshot.service(&key("t")).is_none());
    assert!(snapshot.service(&key("u")).is_some());
}

/// The program of this test, to be run as another process that does its part in `dir`.
fn another_process(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args([test, "--exact", "--nocapture"])
        .env("STORE_TEST_CHILD", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn as_child() -> Option<std::path::PathBuf> {
    std::env::var_os("STORE_TEST_CHILD").map(Into::into)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may have left off reading: then nobody is to be told.
    drop(writeln!(out, "\n{line}").and_then(|()| out.flush()));
}

/// Writes without end, several at a time, and says which versions were acknowledged.
#[tokio::main]
async fn write_until_killed(dir: &Path) {
    let store = Store::open(dir).expect("the killed one holds no lock");
    say("open");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            loop {
                let version = write(&store, |tx| {
                    let s = service(&format!("s{}", tx.version()));
                    tx.put_revision(revision(&s, &format!("s{}-00001-abc", tx.version())));
                    tx.put_service(s);
                })
                .await
                .expect("written");
                say(&format!("acknowledged {version}"));
            }
        });
    }
    let ended: Option<Result<(), _>> = tasks.join_next().await;
    panic!("runs until killed, not {ended:?}");
}

#[test]
fn every_acknowledged_write_survives_a_kill_at_any_moment() {
    if let Some(dir) = as_child() {
        return write_until_killed(&dir);
    }
    let dir = dir();
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        let mut child = another_process("every_acknowledged_write_survives_a_kill_at_any_moment", dir.path())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        lines
            .by_ref()
            .map(|line| line.expect("text"))
            .find(|line| line == "open")
            .expect("it opened the store");
        let chance = RandomState::new().hash_one(round) % 40_000;
        let reader = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok())
                .collect::<Vec<u64>>()
        });
        std::thread::sleep(Duration::from_micros(chance));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let mut lines = reader.join().expect("no panic");
        acknowledged.append(&mut lines);

        let snapshot = Store::open(dir.path()).expect("opens after a kill").snapshot();
        for version in &acknowledged {
            let s = snapshot
                .service(&key(&format!("s{version}")))
                .unwrap_or_else(|| panic!("{version} was acknowledged, round {round}"));
            assert_eq!(s.resource_version, *version);
        }
        assert_eq!(
            snapshot.services.len() as u64,
            snapshot.version,
            "one service for each version, no version without its writes"
        );
        for s in snapshot.services.values() {
            assert_eq!(snapshot.revisions_of(s).count(), 1, "never half of a write");
        }
    }
    assert!(
        acknowledged.len() > 12,
        "the kills came too early to say anything: {acknowledged:?}"
    );
}

#[test]
fn a_second_process_is_refused_with_the_first_ones_pid() {
    if let Some(dir) = as_child() {
        let error = Store::open(&dir).expect_err("held");
        return say(&format!("refused: {error}"));
    }
    let dir = dir();
    let store = Store::open(dir.path()).expect("a new store");
    let refused = |expected: bool| {
        let child = another_process("a_second_process_is_refused_with_the_first_ones_pid", dir.path())
            .stderr(Stdio::null())
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        let line = said.lines().find_map(|line| line.strip_prefix("refused: "));
        assert_eq!(line.is_some(), expected, "{said}");
        line.unwrap_or_default().to_owned()
    };
    assert_eq!(
        refused(true),
        format!(
            "the data directory {} is held by process {}",
            dir.path().display(),
            std::process::id()
        )
    );
    drop(store);
    refused(false);
}

#[tokio::test]
async fn a_damaged_database_is_refused_by_name() {
    let dir = dir();
    let file = dir.path().join("homerun.db");
    let store = Store::open(dir.path()).expect("a new store");
    write(&store, |tx| {
        (0..200).for_each(|number| tx.put_service(service(&format!("s{number}"))));
    })
    .await
    .expect("written");
    drop(store);
    let whole = fs::read(&file).expect("the database");
    assert!(whole.len() > 5 * 4096);
    let refused = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("written");
        let error = Store::open(dir.path()).expect_err("damaged");
        let text = error.to_string();
        assert!(text.contains(&file.display().to_string()), "{text}");
        error
    };
    assert!(matches!(
        refused(b"not a database at all, though long enough to be looked at as one, and then some more of the same"),
        OpenError::Database { .. }
    ));
    let mut middle = whole.clone();
    middle[3 * 4096..5 * 4096].fill(0x5a);
    assert!(matches!(
        refused(&middle),
        OpenError::Damaged { .. } | OpenError::Database { .. }
    ));
    refused(&whole[..whole.len() - 2 * 4096]);

    fs::write(&file, &whole).expect("written");
    let at = |sql: &str| {
        let database = rusqlite::Connection::open(&file).expect("opens");
        database.execute_batch(sql).expect(sql);
        Store::open(dir.path()).expect_err(sql)
    };
    let error = at("UPDATE services SET body = '{}' WHERE name = 's7'");
    assert!(
        matches!(&error, OpenError::Content { kind: "service", name, .. } if name == "s7"),
        "{error:?}"
    );
    let error = at("UPDATE meta SET value = 99 WHERE name = 'schema'");
    let text = error.to_string();
    assert!(text.contains("99") && text.contains("up to 6"), "{text}");
    let error = at("PRAGMA application_id = 7");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let dir = dir();
    fs::write(dir.path().join("homerun.db"), "").expect("written");
    let store = Store::open(dir.path()).expect("an empty file is a new store");
    write(&store, |tx| tx.put_service(service("s"))).await.expect("written");
    let mut seen = 0;
    for file in fs::read_dir(dir.path()).expect("there") {
        let file = file.expect("there");
        let mode = file.metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.path().display());
        seen += 1;
    }
    assert_eq!(seen, 4, "database, log, its index, lock");
}
