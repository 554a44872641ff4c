//! The log of one build: a file that grows while clients read it, and its last lines for whoever is told why it failed.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
};

use tokio::io::AsyncWriteExt as _;

/// Most bytes of one log: 64 MiB. What comes after is left out, and the log says so.
pub const MAX_LOG: u64 = 64 << 20;
/// How many of the last lines a failure shows.
const TAIL: usize = 10;
/// Longest of these, in characters.
const LINE: usize = 1000;
/// What a line of a step begins with, in what buildah says.
const STEP: &str = "STEP ";
/// The same of a lifecycle's phase.
const PHASE: &str = "===> ";

/// Where the log of a build is.
pub fn path(dir: &Path, id: &model::BuildId) -> PathBuf {
    dir.join(format!("log-{id}.txt"))
}

#[derive(Debug)]
pub(crate) struct Log {
    file: tokio::fs::File,
    written: u64,
    tail: Tail,
}

impl Log {
    /// Begins the log; one that is there is of an attempt that a restart broke off, and goes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) async fn begin(path: &Path) -> io::Result<Self> {
        let file = tokio::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .await?;
        Ok(Self {
            file,
            written: 0,
            tail: Tail::default(),
        })
    }

    /// A line of our own.
    pub(crate) async fn say(&mut self, line: &str) -> io::Result<()> {
        self.write(line.as_bytes()).await?;
        self.write(b"\n").await
    }

    /// What the builder said, as it comes.
    pub(crate) async fn heard(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tail.hear(bytes);
        self.write(bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        const CUT: &[u8] = b"\n... the log is longer than 64 MiB, and ends here.\n";
        if self.written >= MAX_LOG {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).await?;
        if self.written >= MAX_LOG {
            self.file.write_all(CUT).await?;
        }
        // Readers see it now.
        self.file.flush().await
    }

    /// The step at which it ended, with what was said last.
    pub(crate) fn why(&self) -> String {
        self.tail.why()
    }
}

#[derive(Debug, Default)]
struct Tail {
    /// The line that has not ended yet.
    open: Vec<u8>,
    lines: VecDeque<String>,
    step: Option<String>,
}

impl Tail {
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end();
            } else if self.open.len() < 4 * LINE {
                self.open.push(*byte);
            }
        }
    }

    fn end(&mut self) {
        let line = String::from_utf8_lossy(&self.open)
            .trim_end()
            .chars()
            .take(LINE)
            .collect::<String>();
        self.open.clear();
        // With several stages: "[1/2] STEP 2/3: RUN ...".
        let of_stage = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "))
            .map(|(_, rest)| rest);
        if line.starts_with(STEP) || line.starts_with(PHASE) || of_stage.is_some_and(|rest| rest.starts_with(STEP)) {
            self.step = Some(line);
            self.lines.clear();
            return;
        }
        // What buildah logs for its own developers says nothing that its last line does not.
        if line.is_empty() || line.starts_with("time=\"") {
            return;
        }
        let line = match line.split_once(" &imagebuilder.") {
            Some((plain, _)) => plain.to_owned(),
            None => line,
        };
        if self.lines.len() == TAIL {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn why(&self) -> String {
        let mut lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        let open = String::from_utf8_lossy(&self.open);
        if !open.trim().is_empty() {
            lines.push(open.trim());
        }
        let said = lines.join("\n");
        match &self.step {
            Some(step) => format!("at {step}\n{said}"),
            None => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_step_and_its_last_lines() {
        let mut tail = Tail::default();
        tail.hear(b"STEP 1/2: FROM x\nTrying to pull\n[2/2] STEP 2/2: RUN make\n");
        for line in 0..20 {
            tail.hear(format!("line {line}\n\n").as_bytes());
        }
        tail.hear(b"time=\"2026-11-28T12:16:48Z\" level=error msg=x\n");
        tail.hear(b"Error: Unknown instruction: \"RUNN\" &imagebuilder.Step{Env:[]}\n");
        assert!(
            tail.why().ends_with("line 19\nError: Unknown instruction: \"RUNN\""),
            "{}",
            tail.why()
        );
        tail.hear(b"Error: no");
        let why = tail.why();
        assert!(why.starts_with("at [2/2] STEP 2/2: RUN make\nline 11\n"), "{why}");
        assert!(why.ends_with("\nError: no"), "{why}");
    }
}
