//! Figures of the real binary, each beside its goal.
//!
//! One module per thing that is measured, and those it needs: the server under test, nginx, HAProxy and the CNCF's registry as
//! peers, `wrk` and `h2load` as the load. What enters is the path of the binary (`HOMERUN_BIN`) and names of figures; what leaves is one line per figure
//! and, for all of them, a file that names the machine. Ours and the peer's rounds alternate, values are medians. All
//! load goes to loopback addresses of this machine and ends by itself.

mod answer;
mod burst;
mod by_hand;
mod cold;
mod deploy;
mod figure;
mod h2load;
mod http;
mod invoker;
mod list;
mod machine;
mod many;
mod memory;
mod peer;
mod proxy;
mod registry;
mod server;
mod source;
mod spike;
mod thaw;
mod wrk;

use std::{
    io::{Write as _, stderr, stdout},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    figure::{Figure, Measured},
    list::FIGURES,
};

const USAGE: &str = "usage: bench/run NAME | --list | --all";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(stderr(), "bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// False: a figure is short of its goal. All of them together are a report, in which short is an answer.
fn run(words: &[String]) -> Result<bool> {
    let [word] = words else { bail!("{USAGE}") };
    match word.as_str() {
        "--list" => {
            for figure in FIGURES {
                writeln!(stdout(), "{:<22} goal {:<8} {}", figure.name, figure.goal, figure.about)?;
            }
            Ok(true)
        }
        "--all" => {
            let mut measured = Vec::new();
            for figure in FIGURES {
                // One that cannot be measured here is said so, and does not cost the others.
                match measure(figure) {
                    Ok(found) => measured.push((figure, found)),
                    Err(error) => writeln!(stdout(), "{} not measured: {error:#}", figure.name)?,
                }
            }
            writeln!(stdout(), "\n{} wrote", machine::keep(&measured)?.display())?;
            for (figure, measured) in &measured {
                writeln!(stdout(), "{}", figure.line(measured))?;
            }
            Ok(measured.len() == FIGURES.len())
        }
        by_hand::WORD => by_hand::starts().map(|()| true),
        name => {
            let figure = list::named(name).with_context(|| format!("no figure \"{name}\"; {USAGE}"))?;
            let measured = measure(figure)?;
            Ok(figure.goal.is_met_by(measured.value))
        }
    }
}

fn measure(figure: &Figure) -> Result<Measured> {
    writeln!(stdout(), "{}: {}", figure.name, figure.about)?;
    let measured = (figure.measure)().with_context(|| format!("cannot measure {}", figure.name))?;
    for note in &measured.notes {
        writeln!(stdout(), "  {note}")?;
    }
    writeln!(stdout(), "{}", figure.line(&measured))?;
    Ok(measured)
}
