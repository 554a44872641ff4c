//! The store itself, and the one thread that owns the connection.
//!
//! Work arrives through a bounded queue. Whatever waits there is run, one after the other, each on top of the last,
//! and then written by one `SQLite` commit (one sync of the disk for all of them). Only then is any of it answered and
//! the new snapshot published, refusals included: a refusal may rest on what a neighbour in the same commit wrote.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use arc_swap::ArcSwap;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{Error, OpenError, Snapshot, TransactError, Transaction, lock::Lock, schema, transaction::Change};

/// Work that may wait before callers of [`Store::transact`] wait for a place.
const QUEUE: usize = 256;

/// Most transactions in one commit, so that the first of them is not kept waiting.
const GROUP: usize = 64;

/// What survives a restart. Clones share one store; when the last is dropped, the writer ends and the lock is given
/// back, before the drop returns.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    file: PathBuf,
    /// The newest committed state, for whoever asks.
    at_hand: Arc<ArcSwap<Snapshot>>,
    newest: watch::Receiver<Arc<Snapshot>>,
    /// None once it is closed.
    open: Mutex<Option<Open>>,
}

struct Open {
    queue: mpsc::Sender<Job>,
    writer: thread::JoinHandle<()>,
    lock: Lock,
}

/// Runs the work; says whether its changes are to be kept, and how to answer once they are on the disk.
type Job = Box<dyn FnOnce(&mut Transaction) -> (bool, Answer) + Send>;
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

impl Store {
    /// Opens `dir/homerun.db`, made if need be, and reads all of it. Blocks; call it before serving.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let lock = Lock::take(dir)?;
        let file = dir.join("homerun.db");
        let connection = schema::open(&file)?;
        let snapshot = Arc::new(schema::load(&connection, &file)?);
        let at_hand = Arc::new(ArcSwap::new(snapshot.clone()));
        let (publish, newest) = watch::channel(snapshot.clone());
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = Writer {
            file: file.clone(),
            connection,
            newest: snapshot,
            in_doubt: false,
            at_hand: at_hand.clone(),
            publish,
        };
        let writer = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(jobs))
            .map_err(|source| OpenError::Thread {
                file: file.clone(),
                source,
            })?;
        Ok(Self(Arc::new(Inner {
            file,
            at_hand,
            newest,
            open: Mutex::new(Some(Open { queue, writer, lock })),
        })))
    }

    /// The newest committed state. Waits for nobody.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.at_hand.load_full()
    }

    /// The same for a short look at each request, without a lock and without a share in it that all threads would count.
    pub fn look<T>(&self, at: impl FnOnce(&Snapshot) -> T) -> T {
        at(&self.0.at_hand.load())
    }

    /// The bell: holds the newest committed state, and wakes who waits on it. A commit has rung before its
    /// [`Self::transact`] returns. Refusals and work that wrote nothing do not ring.
    pub fn changed(&self) -> watch::Receiver<Arc<Snapshot>> {
        let mut bell = self.0.newest.clone();
        bell.borrow_and_update();
        bell
    }

    /// Runs `work` alone and commits what it wrote. Returns after the commit has reached the disk; on an error of
    /// the work or of the disk nothing was written. Work is short and does not wait: everybody's writes stand behind
    /// it. A caller that drops this future does not call the work off once it was handed over.
    pub async fn transact<T, E>(
        &self,
        work: impl FnOnce(&mut Transaction) -> Result<T, E> + Send + 'static,
    ) -> Result<T, TransactError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let ended = || {
            TransactError::Storage(Error::Ended {
                file: self.0.file.clone(),
            })
        };
        let (send, answer) = oneshot::channel();
        let job: Job = Box::new(move |transaction| {
            // A panic of the work is its caller's, not the writer's.
            let outcome = catch_unwind(AssertUnwindSafe(|| work(transaction)));
            let keep = matches!(outcome, Ok(Ok(_)));
            let answer: Answer = Box::new(move |committed| {
                // Nobody there: the caller left, which changes nothing here.
                drop(send.send(committed.map(|()| outcome)));
            });
            (keep, answer)
        });
        let queue = {
            let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.as_ref().map(|open| open.queue.clone())
        };
        queue.ok_or_else(ended)?.send(job).await.map_err(|_| ended())?;
        match answer.await.map_err(|_| ended())? {
            Ok(Ok(outcome)) => outcome.map_err(TransactError::Refused),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(error) => Err(TransactError::Storage(error)),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("file", &self.0.file)
            .field("version", &self.snapshot().version)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Writes what waits and gives the lock back, for another process, before it returns. The newest snapshot stays to be
    /// read; whoever writes from now on is refused.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn close(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Open { queue, writer, lock }) = open else {
            return;
        };
        drop(queue);
        // The last clone may have been inside of a piece of work; the thread then ends by itself.
        if writer.thread().id() != thread::current().id() && writer.join().is_err() {
            tracing::error!(file = %self.file.display(), "the writer of the store panicked");
        }
        drop(lock);
    }
}

struct Writer {
    file: PathBuf,
    connection: Connection,
    newest: Arc<Snapshot>,
    /// A commit failed: whether it reached the disk is to be read there before the next.
    in_doubt: bool,
    at_hand: Arc<ArcSwap<Snapshot>>,
    publish: watch::Sender<Arc<Snapshot>>,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut group = Vec::with_capacity(GROUP);
        while let Some(first) = jobs.blocking_recv() {
            group.push(first);
            while group.len() < GROUP
                && let Ok(next) = jobs.try_recv()
            {
                group.push(next);
            }
            self.serve(group.drain(..));
        }
    }

    fn serve(&mut self, jobs: impl Iterator<Item = Job>) {
        let settled = self.settle();
        let mut reached = self.newest.clone();
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        for job in jobs {
            let mut transaction = Transaction::new(reached.clone());
            let (keep, answer) = job(&mut transaction);
            if keep {
                let (after, mut written) = transaction.finish();
                reached = after;
                changes.append(&mut written);
            }
            answers.push(answer);
        }
        let committed = settled.and_then(|()| {
            if changes.is_empty() {
                return Ok(());
            }
            let done = commit(&mut self.connection, reached.version, &changes);
            self.in_doubt = done.is_err();
            done.map_err(|source| Error::Write {
                file: self.file.clone(),
                source: Arc::new(source),
            })
        });
        if committed.is_ok() && !changes.is_empty() {
            self.publish(reached);
        }
        for answer in answers {
            answer(committed.clone());
        }
    }

    /// After a commit that failed only the disk knows whether it is there.
    fn settle(&mut self) -> Result<(), Error> {
        if self.in_doubt {
            let found = schema::load(&self.connection, &self.file).map_err(|source| Error::Doubt {
                file: self.file.clone(),
                source: Arc::new(source),
            })?;
            self.in_doubt = false;
            if found.version != self.newest.version {
                self.publish(Arc::new(found));
            }
        }
        Ok(())
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.newest = snapshot.clone();
        // First of all: whoever the bell wakes finds it.
        self.at_hand.store(snapshot.clone());
        self.publish.send_replace(snapshot);
    }
}

fn commit(connection: &mut Connection, version: u64, changes: &[Change]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for change in changes {
        apply(&transaction, change)?;
    }
    let version = i64::try_from(version).expect("a counter of commits");
    transaction
        .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'version'")?
        .execute([version])?;
    transaction.commit()
}

fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    let json = "model types are plain data, their keys are strings";
    match change {
        Change::PutService(service) => {
            let body = serde_json::to_string(&**service).expect(json);
            let (region, name) = (service.key.region.as_str(), service.key.name.as_str());
            connection
                .prepare_cached("INSERT OR REPLACE INTO services VALUES (?1, ?2, ?3)")?
                .execute(params![region, name, body])?;
        }
        Change::DeleteService(key) => {
            connection
                .prepare_cached("DELETE FROM services WHERE region = ?1 AND name = ?2")?
                .execute(params![key.region.as_str(), key.name.as_str()])?;
        }
        Change::PutRevision(revision) => {
            let body = serde_json::to_string(&**revision).expect(json);
            let key = &revision.key;
            connection
                .prepare_cached("INSERT OR REPLACE INTO revisions VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![
                    key.service.region.as_str(),
                    key.service.name.as_str(),
                    key.name.as_str(),
                    body
                ])?;
        }
        Change::DeleteRevision(key) => {
            connection
                .prepare_cached("DELETE FROM revisions WHERE region = ?1 AND service = ?2 AND name = ?3")?
                .execute(params![
                    key.service.region.as_str(),
                    key.service.name.as_str(),
                    key.name.as_str()
                ])?;
        }
        Change::PutRepository(repository) => {
            let body = serde_json::to_string(&**repository).expect(json);
            let (location, name) = (repository.key.location.as_str(), repository.key.name.as_str());
            connection
                .prepare_cached("INSERT OR REPLACE INTO repositories VALUES (?1, ?2, ?3)")?
                .execute(params![location, name, body])?;
        }
        Change::DeleteRepository(key) => {
            connection
                .prepare_cached("DELETE FROM repositories WHERE location = ?1 AND name = ?2")?
                .execute(params![key.location.as_str(), key.name.as_str()])?;
        }
        Change::PutBucket(bucket) => {
            let body = serde_json::to_string(&**bucket).expect(json);
            connection
                .prepare_cached("INSERT OR REPLACE INTO buckets VALUES (?1, ?2)")?
                .execute(params![bucket.name.as_str(), body])?;
        }
        Change::DeleteBucket(name) => {
            connection
                .prepare_cached("DELETE FROM buckets WHERE name = ?1")?
                .execute([name.as_str()])?;
        }
        Change::PutBuild(build) => {
            let body = serde_json::to_string(&**build).expect(json);
            connection
                .prepare_cached("INSERT OR REPLACE INTO builds VALUES (?1, ?2)")?
                .execute(params![build.id.as_str(), body])?;
        }
        Change::PutSecret(secret) => {
            let body = serde_json::to_string(&**secret).expect(json);
            connection
                .prepare_cached("INSERT OR REPLACE INTO secrets VALUES (?1, ?2)")?
                .execute(params![secret.name.as_str(), body])?;
        }
        Change::DeleteSecret(name) => {
            connection
                .prepare_cached("DELETE FROM secrets WHERE name = ?1")?
                .execute([name.as_str()])?;
        }
        Change::PutSecretVersion(version) => {
            let body = serde_json::to_string(&**version).expect(json);
            connection
                .prepare_cached("INSERT OR REPLACE INTO secret_versions VALUES (?1, ?2)")?
                .execute(params![version.key.to_string(), body])?;
        }
        Change::DeleteSecretVersion(key) => {
            connection
                .prepare_cached("DELETE FROM secret_versions WHERE name = ?1")?
                .execute([key.to_string()])?;
        }
        Change::DeleteBuild(id) => {
            connection
                .prepare_cached("DELETE FROM builds WHERE name = ?1")?
                .execute([id.as_str()])?;
        }
        Change::PutPolicy(held) => {
            let body = serde_json::to_string(&**held).expect(json);
            put(connection, "policies", &held.resource.to_string(), &body)?;
        }
        Change::DeletePolicy(of) => delete(connection, "policies", &of.to_string())?,
        Change::PutAccount(account) => {
            let body = serde_json::to_string(&**account).expect(json);
            put(connection, "accounts", &account.email, &body)?;
        }
        Change::DeleteAccount(email) => delete(connection, "accounts", email)?,
        Change::PutGroup(group) => {
            let body = serde_json::to_string(&**group).expect(json);
            put(connection, "local_groups", &group.email, &body)?;
        }
        Change::DeleteGroup(email) => delete(connection, "local_groups", email)?,
        Change::PutRevoked(token) => {
            let body = serde_json::to_string(&**token).expect(json);
            put(connection, "revoked", &token.id, &body)?;
        }
        Change::DeleteRevoked(id) => delete(connection, "revoked", id)?,
    }
    Ok(())
}

fn put(connection: &Connection, table: &str, name: &str, body: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached(&format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2)"))?
        .execute([name, body])
        .map(drop)
}

fn delete(connection: &Connection, table: &str, name: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached(&format!("DELETE FROM {table} WHERE name = ?1"))?
        .execute([name])
        .map(drop)
}
