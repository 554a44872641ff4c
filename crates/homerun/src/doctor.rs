//! `homerun doctor`: what the machine lacks, and the command that mends it. A machine without gVisor is fine, and is told
//! that the first generation is missing.

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Arg, ArgAction, Command};

pub(crate) fn grammar() -> Command {
    Command::new("doctor")
        .about("Tell what this machine lacks to run containers, and the command that mends it")
        .arg(
            Arg::new("sweep")
                .long("sweep")
                .action(ArgAction::SetTrue)
                .help("Also remove what dead Homeruns left on this machine"),
        )
}

pub(crate) fn main(words: &[OsString]) -> ExitCode {
    let matches = match grammar().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => error.exit(),
    };
    let mut out = std::io::stdout();
    if matches.get_flag("sweep") {
        let swept = engine::sweep_dead().context("cannot sweep what dead Homeruns left");
        match swept {
            Ok(ids) if ids.is_empty() => drop(writeln!(out, "swept    nothing was left")),
            Ok(ids) => drop(writeln!(out, "swept    {}", ids.join(", "))),
            Err(error) => return crate::exit("doctor", Err(error)),
        }
    }
    let findings = engine::doctor();
    for finding in &findings {
        let _ = writeln!(out, "lacking  {}\n  mend   {}", finding.problem, finding.remedy);
    }
    match engine::first_generation() {
        Ok(told) => drop(writeln!(out, "gen1     {told}")),
        Err(finding) => drop(writeln!(
            out,
            "without  {}\n  mend   {}",
            finding.problem, finding.remedy
        )),
    }
    match engine::builder_program() {
        Ok(program) => drop(writeln!(out, "builds   {}", program.display())),
        Err(finding) => drop(writeln!(
            out,
            "without  {}\n  mend   {}",
            finding.problem, finding.remedy
        )),
    }
    if findings.is_empty() {
        let _ = writeln!(out, "fine     this machine has all that Homerun needs");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
