//! `homerun status`: whether a Homerun answers, and where.

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Arg, Command};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_ANSWER: u64 = 1 << 20;

pub(crate) fn grammar() -> Command {
    Command::new("status")
        .about("Tell whether a Homerun runs, and where")
        .arg(
            Arg::new("api")
                .long("api")
                .env("HOMERUN_API")
                .value_name("ADDRESS")
                .value_parser(clap::value_parser!(SocketAddr))
                .default_value("127.0.0.1:8787")
                .help("Which Homerun to ask"),
        )
}

pub(crate) fn main(words: &[OsString]) -> ExitCode {
    let matches = match grammar().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => error.exit(),
    };
    let api: SocketAddr = *matches.get_one("api").expect("has a default");
    crate::exit("status", print(api))
}

fn print(api: SocketAddr) -> anyhow::Result<()> {
    let about = ask(api)?;
    let text = |field: &str| about.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
    writeln!(
        std::io::stdout(),
        "running  homerun {}\nproject  {}\nregion   {}\napi      http://{api}\ndata     {}",
        text("version"),
        text("project"),
        text("region"),
        text("dataDir"),
    )?;
    Ok(())
}

/// One small HTTP/1.0 exchange; nothing here is worth a client library.
pub(crate) fn ask(api: SocketAddr) -> anyhow::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&api, PATIENCE)
        .with_context(|| format!("no Homerun answers at {api}; start one with `homerun up`"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /homerun/about HTTP/1.0\r\nHost: {api}\r\n\r\n")?;
    let mut answer = String::new();
    stream
        .take(LONGEST_ANSWER)
        .read_to_string(&mut answer)
        .with_context(|| format!("{api} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) != Some("200") {
        bail!("something listens at {api}, but it is no Homerun");
    }
    serde_json::from_str(body).with_context(|| format!("something listens at {api}, but it is no Homerun"))
}
