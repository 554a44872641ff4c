//! What an instance prints, line by line: to the log at once, and the last of it kept for the words of a failure.

use std::{
    collections::VecDeque,
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use model::{InstanceId, InstanceSpec, LogLine, RevisionKey, Severity, Stream};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    sync::{
        mpsc::{Sender, error::TrySendError},
        watch,
    },
    task::JoinSet,
};

use crate::records;

/// Longer lines are split: Cloud Logging's limit of one entry.
pub(crate) const LONGEST_LINE: usize = 256 << 10;
/// How much a stream holds while nobody reads it.
const PIPE_BYTES: usize = 1 << 20;
/// How many lines an exit tells, and how many characters of each.
const LAST_LINES: usize = 20;
const LAST_CHARACTERS: usize = 500;

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    open: Vec<u8>,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(String)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.extend(&bytes[..end], &mut line);
            line(text(&std::mem::take(&mut self.open)));
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes, &mut line);
    }

    fn extend(&mut self, mut bytes: &[u8], line: &mut impl FnMut(String)) {
        while self.open.len() + bytes.len() > LONGEST_LINE {
            let (fits, rest) = bytes.split_at(LONGEST_LINE - self.open.len());
            self.open.extend(fits);
            let at = character_start(&self.open);
            let rest_of_character = self.open.split_off(at);
            line(text(&std::mem::replace(&mut self.open, rest_of_character)));
            bytes = rest;
        }
        self.open.extend(bytes);
    }

    fn finish(&mut self, mut line: impl FnMut(String)) {
        if !self.open.is_empty() {
            line(text(&std::mem::take(&mut self.open)));
        }
    }
}

/// Where to cut before the end so that no UTF-8 character is torn; the end itself for other bytes.
fn character_start(bytes: &[u8]) -> usize {
    for back in 1..=3 {
        let Some(at) = bytes.len().checked_sub(back) else {
            break;
        };
        let length = match bytes[at] {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
            0x00..=0x7f => 1,
        };
        return if length > back && at > 0 { at } else { bytes.len() };
    }
    bytes.len()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where lines go, and how many found no room there.
#[derive(Debug)]
pub(crate) struct Log {
    sender: Sender<LogLine>,
    dropped: AtomicU64,
    /// Another server reads from now on.
    leaving: watch::Sender<bool>,
}

impl Log {
    pub(crate) fn new(sender: Sender<LogLine>) -> Self {
        Self {
            sender,
            dropped: AtomicU64::new(0),
            leaving: watch::Sender::new(false),
        }
    }

    /// Stops all reading; what was read of a line without its end is written down when this returns.
    pub(crate) async fn leave(&self) {
        self.leaving.send_replace(true);
        self.leaving.closed().await;
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn line(&self, from: &Source, text: String) {
        let Source {
            of,
            instance,
            container,
            stream,
        } = from.clone();
        self.send(LogLine {
            at: crate::now(),
            of,
            instance,
            container,
            stream,
            severity: Severity::Default,
            text,
        });
    }

    /// Says something of an instance in the log of its service.
    pub(crate) fn system(&self, spec: &InstanceSpec, severity: Severity, text: String) {
        self.send(LogLine {
            at: crate::now(),
            of: spec.of.clone(),
            instance: spec.id.clone(),
            container: String::new(),
            stream: Stream::System,
            severity,
            text,
        });
    }

    fn send(&self, line: LogLine) {
        match self.sender.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Whose lines they are.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) of: RevisionKey,
    pub(crate) instance: InstanceId,
    /// Empty for a container that is alone.
    pub(crate) container: String,
    pub(crate) stream: Stream,
}

/// The readers of one instance's output.
#[derive(Debug, Default)]
pub(crate) struct Output {
    last: Arc<Mutex<VecDeque<String>>>,
    readers: JoinSet<()>,
}

impl Output {
    /// Starts to read one stream. Returns the end that the instance writes to, and another one to read from, for whoever
    /// keeps the stream open when we are gone.
    pub(crate) fn open(&mut self, log: &Arc<Log>, source: Source, bundle: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // What is said while no server reads. Less is what a machine gives that has none left.
        let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_BYTES);
        rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::RDONLY)?;
        let kept = read.try_clone()?;
        self.read(log, source, read, Lines::default(), bundle)?;
        Ok((write, kept))
    }

    /// Reads on where another server has stopped.
    pub(crate) fn go_on(&mut self, log: &Arc<Log>, source: Source, read: OwnedFd, bundle: &Path) -> io::Result<()> {
        let tail = records::tail(bundle, source.stream);
        let lines = Lines {
            open: fs::read(&tail).unwrap_or_default(),
        };
        let _ = fs::remove_file(&tail);
        self.read(log, source, read, lines, bundle)
    }

    fn read(
        &mut self,
        log: &Arc<Log>,
        source: Source,
        read: OwnedFd,
        mut lines: Lines,
        bundle: &Path,
    ) -> io::Result<()> {
        let mut read = pipe::Receiver::from_owned_fd(read)?;
        let log = Arc::clone(log);
        let last = Arc::clone(&self.last);
        let tail = records::tail(bundle, source.stream);
        let mut leaving = log.leaving.subscribe();
        self.readers.spawn(async move {
            let say = |text: String| {
                keep(&mut last.lock().expect("no panic while held"), &text);
                log.line(&source, text);
            };
            let mut buffer = vec![0; 16 << 10];
            loop {
                tokio::select! {
                    biased;
                    _ = leaving.wait_for(|leaving| *leaving) => {
                        if !lines.open.is_empty()
                            && let Err(error) = fs::write(&tail, &lines.open)
                        {
                            tracing::error!(%error, "the beginning of a line is lost");
                        }
                        return;
                    }
                    // An error ends it like the end of the stream: a pipe has no others worth telling.
                    length = read.read(&mut buffer) => match length {
                        Ok(length @ 1..) => lines.push(&buffer[..length], say),
                        Ok(0) | Err(_) => break,
                    }
                }
            }
            lines.finish(say);
        });
        Ok(())
    }

    /// Reads to the end, for at most a second, and returns the last lines.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        let all = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), all).await;
        let mut last = self.last.lock().expect("no panic while held");
        last.drain(..).collect()
    }
}

fn keep(last: &mut VecDeque<String>, text: &str) {
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(text.chars().take(LAST_CHARACTERS).collect());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| all.push(line));
        }
        lines.finish(|line| all.push(line));
        all
    }

    #[test]
    fn lines_end_at_line_feeds_wherever_the_reads_end() {
        assert_eq!(cut(&[b"a\nb", b"c\n\n", b"d"]), ["a", "bc", "", "d"]);
        assert_eq!(cut(&[b""]), [""; 0]);
    }

    #[test]
    fn a_long_line_is_split_between_characters() {
        let long = "\u{20ac}".repeat(LONGEST_LINE / 3 + 10);
        let parts = cut(&[long.as_bytes(), b"\n"]);
        assert_eq!(parts.len(), 2);
        assert!(parts[0].len() <= LONGEST_LINE && parts[0].len() > LONGEST_LINE - 3);
        assert_eq!(parts.concat(), long);
    }

    #[test]
    fn bytes_that_are_no_text_are_still_lines() {
        assert_eq!(cut(&[&[0xff, b'x', b'\n']]), ["\u{fffd}x"]);
        let noise = vec![0x80; LONGEST_LINE + 1];
        assert_eq!(cut(&[&noise]).len(), 2);
    }

    #[test]
    fn twenty_lines_of_five_hundred_characters_are_kept() {
        let mut last = VecDeque::new();
        for number in 0..25 {
            keep(&mut last, &format!("{number} {}", "x".repeat(600)));
        }
        assert_eq!(last.len(), 20);
        assert!(last[0].starts_with("5 ") && last[19].starts_with("24 "));
        assert_eq!(last[0].len(), 500);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(chunks in proptest::collection::vec("[a-c\n\u{e9}\u{20ac}]{0,20}", 0..20)) {
            let whole = chunks.concat();
            let bytes: Vec<&[u8]> = chunks.iter().map(String::as_bytes).collect();
            let mut expected: Vec<&str> = whole.split('\n').collect();
            if expected.last() == Some(&"") {
                expected.pop();
            }
            prop_assert_eq!(cut(&bytes), expected);
        }
    }
}
