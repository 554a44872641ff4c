//! One shell in which the commands of a case are run, with its own home and gcloud configuration.

use std::{
    fs,
    io::{BufRead as _, BufReader, PipeReader, Write as _},
    os::unix::{fs::symlink, process::CommandExt as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{Homerun, server::binary};

/// Longest that one command may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// Ends the output of each command; followed by its exit status.
const MARK: &str = "\u{1}ended";

/// Whose program the word `gcloud` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Google's, through `homerun gcloud`.
    Google,
    /// Ours, under the name gcloud by symlink.
    Homerun,
}

/// A bash that keeps its variables from one command to the next.
#[derive(Debug)]
pub struct Session {
    shell: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

/// What a command printed (both streams, in order), and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub text: String,
    pub status: i32,
}

/// `curl` reaches every service host at its URL's port on this machine, whatever the resolver thinks of it.
const PREAMBLE: &str = r#"
curl() { command curl -sS --max-time 60 --noproxy '*' --connect-to '::127.0.0.1:' "$@"; }
"#;

/// A function, not a file: `homerun gcloud` looks for Google's on the PATH and must not find itself.
const GOOGLE: &str = r#"
gcloud() { homerun gcloud "$@"; }
"#;

impl Session {
    /// # Errors
    /// When there is no bash, or the directory cannot be prepared.
    pub fn new(homerun: &Homerun, client: Client) -> Result<Self> {
        let root = homerun.root();
        let bin = root.join("bin");
        for name in ["homerun", "gcloud"] {
            let link = bin.join(name);
            if link.symlink_metadata().is_ok() {
                fs::remove_file(&link)?;
            }
            if name == "homerun" || client == Client::Homerun {
                symlink(binary()?, &link)?;
            }
        }
        let inherited = std::env::var("PATH").context("no PATH")?;
        let addresses = homerun.addresses();
        let (output, writer) = std::io::pipe()?;
        let mut shell = Command::new("bash");
        shell
            .args(["--noprofile", "--norc"])
            .env_clear()
            .env("PATH", format!("{}:{inherited}", bin.display()))
            .env("HOME", root.join("home"))
            .env("TMPDIR", root.join("tmp"))
            .env("CLOUDSDK_CONFIG", root.join("gcloud"))
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("COLUMNS", "200")
            .env("HOMERUN_API", addresses.api.to_string())
            .env("DATA_DIR", &addresses.data)
            .env("HTTP_PORT", addresses.http.port().to_string())
            .env("HTTPS_PORT", addresses.https.port().to_string())
            .current_dir(root.join("home"))
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0);
        let mut child = shell.spawn().context("cannot start bash")?;
        // The command still holds the writing end; without it the reader sees the end of the shell.
        drop(shell);
        let mut input = child.stdin.take().context("a pipe was asked for")?;
        input.write_all(PREAMBLE.as_bytes())?;
        if client == Client::Google {
            input.write_all(GOOGLE.as_bytes())?;
        }
        Ok(Self {
            shell: child,
            input,
            lines: read_lines(output),
        })
    }

    /// Runs one command (or several lines of them) in the shell.
    ///
    /// # Errors
    /// When it takes too long or ends the shell; the session is of no use afterwards.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        let quoted = command.replace('\'', r"'\''");
        // `eval` keeps assignments; the command gets no input, or it would read the next one.
        write!(
            self.input,
            "eval '{quoted}' </dev/null\nprintf '\\n{MARK} %d\\n' \"$?\"\n"
        )
        .and_then(|()| self.input.flush())
        .with_context(|| format!("the shell is gone before: {command}"))?;
        let deadline = Instant::now() + PATIENCE;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix(MARK) {
                    Some(status) => {
                        // The line end that was put before the mark.
                        if text.ends_with('\n') {
                            text.pop();
                        }
                        let status = status.trim().parse().context("an exit status")?;
                        return Ok(Output { text, status });
                    }
                    None => text.push_str(&line),
                },
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!("no end after {PATIENCE:?}: {command}\nso far:\n{text}")
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("the shell ended in: {command}\nso far:\n{text}")
                }
            }
        }
    }
}

/// Lines with their ends, read apart so that waiting for them can end.
fn read_lines(output: PipeReader) -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while matches!(output.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if send.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    lines
}

impl Drop for Session {
    fn drop(&mut self) {
        // The whole group: a command that hangs must not outlive its test.
        let group = format!("-{}", self.shell.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.shell.wait();
    }
}
