//! Log lines: what containers said, which requests came, who changed what. Written fast, kept within a limit, lost by
//! the end of a process for at most [`FLUSH`]; never in the way of who writes.
//!
//! An entry is encoded where it comes from, into the shard of its thread, so that requests on different threads share no
//! lock and nothing is freed by another thread than made it. One thread empties the shards some times a second, in the order
//! of the entries, appends them as JSON lines to segments (`00000000000000000001.jsonl`, ...) and removes the oldest
//! segments beyond the limit; while nothing comes it sleeps. It is woken for the first entry only: waking it for each cost
//! a request more than all of its own work (measured: a futex call of each side, and the switch). What finds its shard full
//! is dropped and counted, and the next line that gets through says how many. They leave by [`read_last`], newest first;
//! lines that are no entry, such as the half line a crash leaves, are passed over.

use std::{
    collections::VecDeque,
    fmt,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    ops::Range,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use model::{Entry, RevisionKey, ServiceKey};
use serde::Deserialize;

/// Longest time that an entry stays in memory.
pub const FLUSH: Duration = Duration::from_millis(200);

/// How often the writer looks while entries come.
const TICK: Duration = Duration::from_millis(50);

/// Threads that write share so many shards.
const SHARDS: usize = 8;

/// Bytes that may wait in a shard; then entries are dropped.
const SHARD_BYTES: usize = 4 << 20;

/// How much is kept, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A segment that has reached this is closed.
    pub segment: u64,
    /// Whole segments are removed, oldest first, so that the one being written has room within this.
    pub total: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment: 16 << 20,
            total: 1 << 30,
        }
    }
}

/// Why the journal did not open, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the log directory {}", dir.display())]
    Directory {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the log segment {}", file.display())]
    Segment {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the writer of {}", dir.display())]
    Thread {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Clones share one journal; when the last is dropped, what waits is written before the drop returns.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    shared: Arc<Shared>,
    writer: Option<thread::JoinHandle<()>>,
}

/// What those who write and the writer have in common.
#[derive(Default)]
struct Shared {
    shards: [Shard; SHARDS],
    /// Gives each entry its place among those of all shards.
    numbers: AtomicU64,
    dropped: AtomicU64,
    /// The writer sleeps until it is woken.
    asleep: AtomicBool,
    /// What waits is the last.
    closing: AtomicBool,
}

/// On a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Waiting>);

/// Encoded entries one behind the other.
#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    /// The number of each, and where it ends in `text`.
    ends: Vec<(u64, usize)>,
}

impl Waiting {
    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    /// The number of each entry, and where it lies.
    fn places(&self) -> impl Iterator<Item = (u64, Range<usize>)> {
        let mut begin = 0;
        self.ends
            .iter()
            .map(move |(number, end)| (*number, std::mem::replace(&mut begin, *end)..*end))
    }
}

impl Shared {
    /// The shard of the calling thread.
    fn shard(&self) -> MutexGuard<'_, Waiting> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        self.shards[THREAD.with(|number| number % SHARDS)].lock()
    }

    fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.lock().ends.is_empty())
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("nobody panics in here")
    }
}

impl Journal {
    /// Opens the journal in `dir`, made if need be, with the usual limits. One process at a time, the store's lock on
    /// the data directory sees to that; except that one that has handed over to the next may still append for its last
    /// requests: both write whole batches to the end of the same segments.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, Limits::default())
    }

    pub fn open_with(dir: &Path, limits: Limits) -> Result<Self, Error> {
        let segments = Segments::open(dir, limits)?;
        let shared = Arc::<Shared>::default();
        let of_writer = shared.clone();
        let writer = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || Writer::new(segments, of_writer).run())
            .map_err(|source| Error::Thread {
                dir: dir.to_owned(),
                source,
            })?;
        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            shared,
            writer: Some(writer),
        })))
    }

    /// Never waits for a disk: with its shard full, the entry is dropped and counted.
    pub fn write(&self, entry: &Entry) {
        let shared = &*self.0.shared;
        let mut waiting = shared.shard();
        if waiting.text.len() >= SHARD_BYTES {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        serde_json::to_writer(&mut waiting.text, entry).expect("plain data, written to memory");
        // Under the lock, so that the numbers of a shard ascend.
        let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
        let end = waiting.text.len();
        waiting.ends.push((number, end));
        drop(waiting);
        // Either the writer, which looks at the shards after it said that it sleeps, saw the entry, or it is seen here.
        if shared.asleep.load(Ordering::SeqCst) && shared.asleep.swap(false, Ordering::SeqCst) {
            self.0.wake();
        }
    }

    /// Entries lost since the journal was opened: shard full, or disk full.
    pub fn dropped(&self) -> u64 {
        self.0.shared.dropped.load(Ordering::Relaxed)
    }

    /// As [`read_last`], of this journal. What was written less than [`FLUSH`] ago may be missing.
    pub fn read_last(&self, most: usize, of: &Of) -> Result<Vec<Entry>, Error> {
        read_last(&self.0.dir, most, of)
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("dir", &self.0.dir)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn wake(&self) {
        if let Some(writer) = &self.writer {
            writer.thread().unpark();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(dir = %self.dir.display(), "the writer of the journal panicked");
        }
    }
}

/// The form on disk, as it is read. `Writer::append` writes it.
#[derive(Deserialize)]
struct Line {
    entry: Entry,
}

struct Writer {
    segments: Segments,
    shared: Arc<Shared>,
    /// Taken from the shards, and given back to them empty.
    taken: [Waiting; SHARDS],
    /// Taken before it was their turn: what came into other shards before them may not have been taken yet.
    early: Waiting,
    /// The same of the batch that is being made.
    earlier: Waiting,
    /// Of what was taken: number, shard (None: `early`), and where it lies there.
    order: Vec<(u64, Option<usize>, Range<usize>)>,
    buffer: Vec<u8>,
    /// Lines in `buffer`.
    lines: u64,
    /// Of the dropped ones, how many a line in a segment tells of.
    told: u64,
    /// The same with the lines in `buffer`.
    telling: u64,
    /// The last write failed, which was logged.
    failing: bool,
}

impl Writer {
    fn new(segments: Segments, shared: Arc<Shared>) -> Self {
        Self {
            segments,
            shared,
            taken: Default::default(),
            early: Waiting::default(),
            earlier: Waiting::default(),
            order: Vec::new(),
            buffer: Vec::new(),
            lines: 0,
            told: 0,
            telling: 0,
            failing: false,
        }
    }

    fn run(mut self) {
        loop {
            let closing = self.shared.closing.load(Ordering::SeqCst);
            self.take();
            if self.lines > 0 {
                self.flush();
                if !closing {
                    thread::park_timeout(TICK);
                }
                continue;
            }
            if !self.early.ends.is_empty() {
                continue;
            }
            if closing {
                return;
            }
            // An idle journal sleeps without a clock.
            self.shared.asleep.store(true, Ordering::SeqCst);
            if self.shared.is_empty() && !self.shared.closing.load(Ordering::SeqCst) {
                thread::park();
            }
            self.shared.asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Fills the buffer with what waits in the shards, in its order. The shards are taken one after the other, while others
    /// write: an entry may come into one that was taken, and the next into one that was not. What has a number from now on
    /// therefore waits for the next batch; everything below has its place in a shard, or gets it before that shard's lock
    /// is ours.
    fn take(&mut self) {
        let now = self.shared.numbers.load(Ordering::SeqCst);
        std::mem::swap(&mut self.early, &mut self.earlier);
        self.early.clear();
        for (number, range) in self.earlier.places() {
            self.order.push((number, None, range));
        }
        for (shard, taken) in self.taken.iter_mut().enumerate() {
            taken.clear();
            std::mem::swap(taken, &mut self.shared.shards[shard].lock());
            for (number, range) in taken.places() {
                if number < now {
                    self.order.push((number, Some(shard), range));
                } else {
                    self.early.text.extend_from_slice(&taken.text[range]);
                    self.early.ends.push((number, self.early.text.len()));
                }
            }
        }
        self.order.sort_unstable_by_key(|(number, ..)| *number);
        for (_, shard, range) in self.order.drain(..) {
            // How many were lost just before this one.
            let all = self.shared.dropped.load(Ordering::Relaxed);
            let lost = all - self.telling;
            self.telling = all;
            self.buffer.extend_from_slice(b"{");
            if lost > 0 {
                write!(self.buffer, "\"dropped\":{lost},").expect("memory takes any write");
            }
            self.buffer.extend_from_slice(b"\"entry\":");
            let of = shard.map_or(&self.earlier, |shard| &self.taken[shard]);
            self.buffer.extend_from_slice(&of.text[range]);
            self.buffer.extend_from_slice(b"}\n");
            self.lines += 1;
        }
    }

    fn flush(&mut self) {
        match self.segments.append(&self.buffer) {
            Ok(()) => {
                self.told = self.telling;
                self.failing = false;
            }
            Err(error) => {
                self.shared.dropped.fetch_add(self.lines, Ordering::Relaxed);
                self.telling = self.told;
                if !std::mem::replace(&mut self.failing, true) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "log lines are being lost");
                }
            }
        }
        self.buffer.clear();
        self.lines = 0;
    }
}

/// The files, oldest first; the last is being written.
struct Segments {
    dir: PathBuf,
    limits: Limits,
    closed: VecDeque<(PathBuf, u64)>,
    closed_bytes: u64,
    number: u64,
    file: File,
    /// Of `file`, up to the last whole line.
    length: u64,
}

impl Segments {
    fn open(dir: &Path, limits: Limits) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| Error::Directory {
                dir: dir.to_owned(),
                source,
            })?;
        let mut closed = VecDeque::new();
        for (_, path) in list(dir)? {
            let size = path.metadata().map_err(|source| Error::Segment {
                file: path.clone(),
                source,
            })?;
            closed.push_back((path, size.len()));
        }
        let number = list(dir)?.last().map_or(1, |(number, _)| *number);
        closed.pop_back();
        let (file, length) = open_segment(dir, number)?;
        let mut segments = Self {
            dir: dir.to_owned(),
            limits,
            closed_bytes: closed.iter().map(|(_, size)| size).sum(),
            closed,
            number,
            file,
            length,
        };
        segments.trim()?;
        Ok(segments)
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), Error> {
        if self.length >= self.limits.segment {
            let (file, length) = open_segment(&self.dir, self.number + 1)?;
            self.closed
                .push_back((segment_path(&self.dir, self.number), self.length));
            self.closed_bytes += self.length;
            self.number += 1;
            self.file = file;
            self.length = length;
            self.trim()?;
        }
        let written = self.file.write_all(lines).map_err(|source| Error::Segment {
            file: segment_path(&self.dir, self.number),
            source,
        });
        match written {
            Ok(()) => self.length += lines.len() as u64,
            // Half a batch would be counted as lost and yet be read; failing that too, the reader copes.
            Err(_) => drop(self.file.set_len(self.length)),
        }
        written
    }

    fn trim(&mut self) -> Result<(), Error> {
        while self.closed_bytes + self.limits.segment > self.limits.total
            && let Some((file, size)) = self.closed.pop_front()
        {
            self.closed_bytes -= size;
            match std::fs::remove_file(&file) {
                // The process before, or the one after, removes the same ones.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(|source| Error::Segment { file, source })?,
            }
        }
        Ok(())
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.jsonl"))
}

/// The segments there are, oldest first.
fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let directory = |source| Error::Directory {
        dir: dir.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir).map_err(directory)? {
        let path = file.map_err(directory)?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".jsonl"))
            .and_then(|digits| digits.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Opens the segment for appending; a half line at its end is closed, to be passed over.
fn open_segment(dir: &Path, number: u64) -> Result<(File, u64), Error> {
    let path = segment_path(dir, number);
    let open = || {
        let mut file = OpenOptions::new()
            .append(true)
            .read(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        let length = file.seek(SeekFrom::End(0))?;
        if length == 0 {
            return Ok((file, 0));
        }
        let mut last = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut last, length - 1)?;
        if last == *b"\n" {
            return Ok((file, length));
        }
        file.write_all(b"\n")?;
        Ok((file, length + 1))
    };
    open().map_err(|source| Error::Segment {
        file: path.clone(),
        source,
    })
}

/// Which entries are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    Everything,
    Service(ServiceKey),
    /// Its requests and lines; audit entries are the service's.
    Revision(RevisionKey),
}

impl Of {
    fn admits(&self, entry: &Entry) -> bool {
        let (service, revision) = match entry {
            Entry::Request(request) => (request.service.as_ref(), request.revision.as_ref()),
            Entry::Line(line) => (Some(&line.of.service), Some(&line.of)),
            Entry::Start(start) => (Some(&start.of.service), Some(&start.of)),
            Entry::Audit(record) => (record.service.as_ref(), None),
        };
        match self {
            Self::Everything => true,
            Self::Service(wanted) => service == Some(wanted),
            Self::Revision(wanted) => revision == Some(wanted),
        }
    }

    /// A text that every line of it contains, to pass over the others unparsed.
    fn mark(&self) -> &str {
        match self {
            Self::Everything => "",
            Self::Service(key) => key.name.as_str(),
            Self::Revision(key) => key.name.as_str(),
        }
    }
}

/// The newest entries, at most `most`, newest first. Reads files: not for a thread that serves requests.
pub fn read_last(dir: &Path, most: usize, of: &Of) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for (_, file) in list(dir)?.into_iter().rev() {
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            // Removed since, being the oldest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(source) => return Err(Error::Segment { file, source }),
        };
        for line in bytes.rsplit(|byte| *byte == b'\n') {
            if found.len() == most {
                return Ok(found);
            }
            let entry = std::str::from_utf8(line)
                .ok()
                .filter(|line| line.contains(of.mark()))
                .and_then(|line| serde_json::from_str::<Line>(line).ok())
                .map(|line| line.entry);
            found.extend(entry.filter(|entry| of.admits(entry)));
        }
    }
    Ok(found)
}
