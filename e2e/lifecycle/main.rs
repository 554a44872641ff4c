//! A stand-in for the lifecycle of Cloud Native Buildpacks, for builders of the tests: it does what the platform
//! interface asks of `creator` and of `launcher`, as far as the tests go, and refuses the rest.
//!
//! The real one is written in Go, and is in no registry of packages that tests may install from.

#![expect(clippy::print_stdout, reason = "its output is the log of a build")]

mod create;
mod launch;
mod registry;

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let name = Path::new(&name)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let words: Vec<String> = words.collect();
    let failed = if name == "creator" {
        create::create(&words)
    } else {
        launch::launch(&name)
    };
    match failed {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, why }) => {
            eprintln!("ERROR: {why}");
            ExitCode::from(code)
        }
    }
}

/// Why it ends, with the specification's number.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) why: String,
}

/// For the phase whose failures have this number.
pub(crate) fn at<E: std::fmt::Display>(code: u8, doing: &str) -> impl Fn(E) -> Failure {
    move |error| Failure {
        code,
        why: format!("{doing}: {error}"),
    }
}
