//! The one binary: reads flags and configuration, joins the other crates, and drains them in order.
//!
//! No rule of the product lives here. `up` is the server, `doctor` and `status` look at the machine, everything else that
//! people type goes to `cli`; the engine starts this binary again as its launcher, its relay and its builders. What
//! enters is the process's words, environment and clock, which are read here and nowhere else; what leaves is an exit
//! code: 0 done, 1 failed, 2 not understood.

mod client;
mod config;
mod doctor;
mod handover;
mod inside;
mod invoker;
mod passphrase;
mod proxying;
mod status;
mod up;
mod upgrade;
mod wiring;

use std::{ffi::OsString, process::ExitCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let called = (!words.is_empty()).then(|| words.remove(0));
    if words.first().is_some_and(|word| word == engine::LAUNCHER) {
        let duty = words.get(1).cloned().unwrap_or_default();
        return ExitCode::from(engine::launcher_main(&duty));
    }
    if words.first().is_some_and(|word| word == engine::EGRESS) {
        let duty = words.get(1).cloned().unwrap_or_default();
        return ExitCode::from(engine::egress_main(&duty));
    }
    if words.first().is_some_and(|word| word == engine::BUILDER) {
        return ExitCode::from(engine::builder_main());
    }
    if client::is_proxy(called.as_deref()) {
        return client::cloud_run_proxy(&words);
    }
    let name = client::name_of(called.as_deref());
    let own = match name {
        cli::Name::Homerun => words.first().and_then(|word| word.to_str()).unwrap_or(""),
        cli::Name::Gcloud => "",
    };
    match own {
        "up" => up::main(&words),
        "doctor" => doctor::main(&words),
        "upgrade" => upgrade::main(&words),
        "status" => status::main(&words),
        _ => client::main(name, &words),
    }
}

/// Runs what may fail, and turns the failure into a line with its causes.
fn exit(command: &str, done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(command, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(command: &str, text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "ERROR: (homerun.{command}) {text}");
}

/// Microseconds since the epoch, by the system's clock.
fn now() -> model::Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    model::Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn seconds() -> u64 {
    u64::try_from(now().as_seconds()).unwrap_or(0)
}

/// 128 bits of the system's chance.
fn chance() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    u128::from_le_bytes(bytes)
}
