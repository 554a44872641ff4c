//! The stages of a change while it is waited for: gcloud's lines, redrawn in place on a terminal, one by one elsewhere.

use std::fmt::Write as _;

use crate::Outside;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Done,
    Failed,
}

#[derive(Debug)]
struct Stage {
    /// The condition that it follows.
    key: &'static str,
    text: &'static str,
    state: State,
    note: String,
}

pub(crate) const CONFIGURATIONS: &str = "ConfigurationsReady";
pub(crate) const ROUTES: &str = "RoutesReady";
pub(crate) const POLICY: &str = "IamPolicySet";

/// A header with its stages.
#[derive(Debug)]
pub(crate) struct Stages {
    header: String,
    each: Vec<Stage>,
    /// Lines drawn on a terminal that the next drawing goes over.
    drawn: usize,
    turn: usize,
    silent: bool,
}

const SPINNER: [&str; 8] = ["⠏", "⠛", "⠹", "⠼", "⠶", "⠧", "⠯", "⠟"];

impl Stages {
    pub(crate) fn begin(outside: &mut Outside<'_>, header: &str, keys: &[&'static str], silent: bool) -> Self {
        let each = keys
            .iter()
            .map(|key| Stage {
                key,
                text: match *key {
                    CONFIGURATIONS => "Creating Revision...",
                    ROUTES => "Routing traffic...",
                    POLICY => "Setting IAM Policy...",
                    other => other,
                },
                state: State::Waiting,
                note: String::new(),
            })
            .collect();
        let mut begun = Self {
            header: header.to_owned(),
            each,
            drawn: 0,
            turn: 0,
            silent,
        };
        if silent {
            return begun;
        }
        if outside.err_is_terminal {
            begun.draw(outside, State::Running, "");
        } else {
            outside.say(header);
        }
        begun
    }

    pub(crate) fn run(&mut self, outside: &mut Outside<'_>, key: &str, note: &str) {
        self.set(outside, key, State::Running, note);
    }

    pub(crate) fn done(&mut self, outside: &mut Outside<'_>, key: &str) {
        self.set(outside, key, State::Done, "");
    }

    pub(crate) fn failed(&mut self, outside: &mut Outside<'_>, key: &str) {
        self.set(outside, key, State::Failed, "");
    }

    fn set(&mut self, outside: &mut Outside<'_>, key: &str, state: State, note: &str) {
        let Some(stage) = self.each.iter_mut().find(|stage| stage.key == key) else {
            return;
        };
        let before = stage.state;
        if before == State::Done || before == State::Failed {
            return;
        }
        stage.state = state;
        note.clone_into(&mut stage.note);
        let text = stage.text;
        if self.silent {
            return;
        }
        if outside.err_is_terminal {
            self.draw(outside, State::Running, "");
        } else if before != state {
            match state {
                State::Waiting | State::Running => {}
                State::Done => outside.say(&format!("{text} done")),
                State::Failed => outside.say(&format!("{text} failed")),
            }
        }
    }

    /// Turns the spinner on a terminal.
    pub(crate) fn tick(&mut self, outside: &mut Outside<'_>) {
        if !self.silent && outside.err_is_terminal {
            self.turn += 1;
            self.draw(outside, State::Running, "");
        }
    }

    /// The end, good: every stage that is still open is done.
    pub(crate) fn end(mut self, outside: &mut Outside<'_>) {
        let open: Vec<&str> = self.each.iter().map(|stage| stage.key).collect();
        for key in open {
            self.done(outside, key);
        }
        if self.silent {
            return;
        }
        if outside.err_is_terminal {
            self.draw(outside, State::Done, " Done.");
        } else {
            // gcloud ends a tracker of stages and a plain one in these two ways.
            outside.say(if self.each.is_empty() { "done." } else { "Done." });
        }
    }

    /// The end, bad: `text` says of what.
    pub(crate) fn fail(mut self, outside: &mut Outside<'_>, text: &str) {
        for stage in &mut self.each {
            if stage.state == State::Running {
                stage.state = State::Failed;
            }
        }
        if self.silent {
            return;
        }
        if outside.err_is_terminal {
            self.draw(outside, State::Failed, "");
        }
        outside.say(text);
    }

    fn draw(&mut self, outside: &mut Outside<'_>, whole: State, tail: &str) {
        let ink = outside.err_ink();
        let spinner = SPINNER[self.turn % SPINNER.len()];
        let mark = |state: State| match state {
            State::Waiting => ".".to_owned(),
            State::Running => ink.symbol(spinner),
            State::Done => ink.symbol("✔"),
            State::Failed => ink.symbol("X"),
        };
        let mut text = String::new();
        if self.drawn > 0 {
            write!(text, "\x1b[{}A", self.drawn).expect("a string takes text");
        }
        write!(text, "\r\x1b[K{} {}{tail}\n", mark(whole), self.header).expect("a string takes text");
        for stage in &self.each {
            let note = &stage.note;
            write!(
                text,
                "\r\x1b[K  {} {}{}{note}\n",
                mark(stage.state),
                stage.text,
                if note.is_empty() { "" } else { " " },
            )
            .expect("a string takes text");
        }
        self.drawn = 1 + self.each.len();
        // a terminal that went away is no reason to stop
        drop(
            outside
                .err
                .write_all(text.as_bytes())
                .and_then(|()| outside.err.flush()),
        );
    }
}
