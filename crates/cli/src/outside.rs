//! What a command sees of the world: its streams, its environment, the time, chance, a place for its own files.
//!
//! All of it is handed in by the binary, so that a test can stand where a terminal stands.

use std::fmt;
use std::io::{BufRead, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use crate::Error;

/// What a signed assertion asks the token endpoint for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    /// An access token with this scope.
    Scope(&'a str),
    /// An ID token for this audience.
    Audience(&'a str),
}

/// Under which name the program was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Homerun,
    /// By a symlink: then gcloud's own variables for project and region are read too.
    Gcloud,
}

impl Name {
    pub fn word(self) -> &'static str {
        match self {
            Self::Homerun => "homerun",
            Self::Gcloud => "gcloud",
        }
    }
}

/// Signs with the text of a service-account key file what an [`Ask`] says, at a time in Unix seconds.
pub type Sign<'a> = dyn Fn(&str, Ask<'_>, u64) -> Result<String, String> + 'a;

/// Gets an ID token at a time in Unix seconds, or says why there is none.
pub type Renew<'a> = dyn FnMut(u64) -> Result<String, String> + 'a;

/// Passes requests on until it is told to end or its time is over. Without a [`Renew`] the token is all there is.
pub type Serve<'a> = dyn Fn(Proxying, Option<&mut Renew<'_>>) -> Result<(), String> + 'a;

/// What is to be passed on, from where to where.
pub struct Proxying {
    pub listener: TcpListener,
    /// Of the service, and the address where it is reached.
    pub url: String,
    pub to: SocketAddr,
    /// File with the certificates that may vouch for it.
    pub authority: PathBuf,
    /// The field that the token goes into.
    pub header: String,
    /// Put before what a client says of itself.
    pub user_agent: Option<String>,
    pub http2: bool,
    /// The first one.
    pub token: String,
    /// None: until it is told.
    pub up_time: Option<Duration>,
}

impl fmt::Debug for Proxying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxying")
            .field("listener", &self.listener)
            .field("url", &self.url)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

/// Everything outside of the program that a command may touch.
pub struct Outside<'a> {
    pub name: Name,
    /// The whole environment. Variables that are not UTF-8 are left out.
    pub environment: Vec<(String, String)>,
    pub input: &'a mut dyn BufRead,
    /// Results go here.
    pub out: &'a mut dyn Write,
    /// Progress, questions and errors go here.
    pub err: &'a mut dyn Write,
    pub input_is_terminal: bool,
    pub out_is_terminal: bool,
    pub err_is_terminal: bool,
    pub sign: &'a Sign<'a>,
    /// Unix seconds.
    pub now: u64,
    /// A number drawn at random, for names and nonces.
    pub chance: u64,
    /// Where this program keeps its own files, such as `~/.config/homerun`. Made when first written.
    pub config_dir: PathBuf,
    /// This program's file, so that it is not taken for Google's `gcloud`.
    pub executable: PathBuf,
    /// Replaces this process by another program; returns only when that failed.
    pub exec: &'a dyn Fn(&Exec) -> std::io::Error,
    /// Runs a proxy.
    pub serve: &'a Serve<'a>,
}

/// A program to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    pub program: PathBuf,
    pub words: Vec<String>,
    pub set: Vec<(String, String)>,
    pub unset: Vec<String>,
}

impl fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside")
            .field("name", &self.name)
            .field("config_dir", &self.config_dir)
            .field("executable", &self.executable)
            .finish_non_exhaustive()
    }
}

impl Outside<'_> {
    /// A variable that is set and not empty.
    pub(crate) fn var(&self, name: &str) -> Option<&str> {
        self.environment
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// A line of the result.
    pub(crate) fn print(&mut self, text: &str) -> Result<(), Error> {
        self.out.write_all(text.as_bytes()).map_err(Error::Output)?;
        self.out.write_all(b"\n").map_err(Error::Output)
    }

    /// A line beside the result. A stream of errors that is closed is no reason to stop.
    pub(crate) fn say(&mut self, text: &str) {
        let written = writeln!(self.err, "{text}").and_then(|()| self.err.flush());
        drop(written);
    }

    /// How text beside the result is drawn.
    pub(crate) fn err_ink(&self) -> Ink {
        Ink(self.err_is_terminal && self.var("NO_COLOR").is_none())
    }

    /// How the result is drawn.
    pub(crate) fn out_ink(&self) -> Ink {
        Ink(self.out_is_terminal && self.var("NO_COLOR").is_none())
    }

    /// Asks on the stream of errors. `None` where nobody can answer.
    pub(crate) fn ask(&mut self, question: &str) -> Option<String> {
        if !(self.input_is_terminal && self.err_is_terminal) {
            return None;
        }
        let asked = write!(self.err, "{question} ").and_then(|()| self.err.flush());
        let mut line = String::new();
        asked.and_then(|()| self.input.read_line(&mut line)).ok()?;
        Some(line.trim().to_lowercase())
    }
}

/// Bold and colours, on terminals only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ink(pub(crate) bool);

impl Ink {
    fn paint(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A ready symbol in its colour.
    pub(crate) fn symbol(self, symbol: &str) -> String {
        match symbol {
            "✔" => self.paint("32", symbol),
            "X" => self.paint("31", symbol),
            _ => self.paint("33", symbol),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What `act` writes beside the result, on a terminal or elsewhere.
    pub(crate) fn outside_with(terminal: bool, act: impl FnOnce(&mut Outside<'_>)) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut outside = Outside {
            name: Name::Homerun,
            environment: Vec::new(),
            input: &mut std::io::empty(),
            out: &mut out,
            err: &mut err,
            input_is_terminal: false,
            out_is_terminal: false,
            err_is_terminal: terminal,
            sign: &|_, _, _| Err("no key".to_owned()),
            now: 0,
            chance: 0,
            config_dir: PathBuf::new(),
            executable: PathBuf::new(),
            exec: &|_| std::io::Error::from(std::io::ErrorKind::Unsupported),
            serve: &|_, _| Err("nobody serves".to_owned()),
        };
        act(&mut outside);
        String::from_utf8(err).expect("text")
    }
}
