//! Joins the client's words to the world: streams, environment, clock, and the signature that `cli` cannot make itself.

use std::{
    ffi::{OsStr, OsString},
    io::{IsTerminal as _, stderr, stdin, stdout},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use identity::ServiceAccountKey;

/// The name we were called by: `gcloud` by symlink, else our own.
pub(crate) fn name_of(called: Option<&OsStr>) -> cli::Name {
    match called.map(Path::new).and_then(Path::file_name) {
        Some(name) if name == "gcloud" => cli::Name::Gcloud,
        _ => cli::Name::Homerun,
    }
}

/// Whether we were called by the name of Google's proxy, as gcloud does by a symlink.
pub(crate) fn is_proxy(called: Option<&OsStr>) -> bool {
    called
        .map(Path::new)
        .and_then(Path::file_name)
        .is_some_and(|name| name == "cloud-run-proxy")
}

pub(crate) fn cloud_run_proxy(words: &[OsString]) -> ExitCode {
    started(cli::Name::Homerun, words, cli::cloud_run_proxy)
}

pub(crate) fn main(name: cli::Name, words: &[OsString]) -> ExitCode {
    if matches!(name, cli::Name::Homerun)
        && matches!(
            words.first().and_then(|word| word.to_str()),
            None | Some("help" | "--help" | "-h")
        )
    {
        return help();
    }
    started(name, words, cli::run)
}

/// Runs one of the client's entries in this process's world.
fn started(name: cli::Name, words: &[OsString], entry: impl FnOnce(&[String], cli::Outside<'_>) -> u8) -> ExitCode {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let config_dir = config_dir(&environment);
    let code = entry(
        &words,
        cli::Outside {
            name,
            environment,
            input: &mut stdin().lock(),
            out: &mut std::io::BufWriter::new(stdout().lock()),
            err: &mut stderr(),
            input_is_terminal: stdin().is_terminal(),
            out_is_terminal: stdout().is_terminal(),
            err_is_terminal: stderr().is_terminal(),
            sign: &sign,
            now: crate::seconds(),
            chance: u64::try_from(crate::chance() & u128::from(u64::MAX)).expect("masked to 64 bits"),
            config_dir,
            executable: std::env::current_exe().unwrap_or_default(),
            exec: &|program| {
                let mut command = Command::new(&program.program);
                command
                    .args(&program.words)
                    .envs(program.set.iter().map(|(name, value)| (name, value)));
                for name in &program.unset {
                    command.env_remove(name);
                }
                command.exec()
            },
            serve: &crate::proxying::serve,
        },
    );
    ExitCode::from(code)
}

/// Our own words and the client's, in one page.
fn help() -> ExitCode {
    use std::io::Write as _;
    let mut grammar = cli::grammar()
        .name("homerun")
        .about("Cloud Run on machines you own")
        .subcommand(crate::up::grammar())
        .subcommand(crate::status::grammar())
        .subcommand(crate::upgrade::grammar())
        .subcommand(crate::doctor::grammar());
    match writeln!(stdout(), "{}", grammar.render_long_help()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn config_dir(environment: &[(String, String)]) -> PathBuf {
    let var = |wanted: &str| {
        environment
            .iter()
            .find(|(name, value)| name == wanted && !value.is_empty())
            .map(|(_, value)| PathBuf::from(value))
    };
    var("XDG_CONFIG_HOME")
        .or_else(|| Some(var("HOME")?.join(".config")))
        .unwrap_or_else(|| PathBuf::from("/etc"))
        .join("homerun")
}

fn sign(key_file: &str, ask: cli::Ask<'_>, now: u64) -> Result<String, String> {
    let ask = match ask {
        cli::Ask::Scope(scope) => identity::Ask::Scope(scope),
        cli::Ask::Audience(audience) => identity::Ask::Audience(audience),
    };
    ServiceAccountKey::from_json(key_file)
        .and_then(|key| identity::sign_assertion(&key, ask, now))
        .map_err(|error| error.to_string())
}
