//! The program of the built-in hello image: a web server that tells which revision answered. It stands alone (the
//! standard library only, one file, linked statically) because it is compiled by the product's own build and runs in
//! an image that holds nothing else. What enters: `PORT` and the environment of the container contract. What leaves:
//! JSON on every path, and a few paths that behave in ways that tests of a platform need.
//!
//! | path | answers |
//! |---|---|
//! | `/sleep?ms=N` | after N milliseconds |
//! | `/bytes?n=N` | N bytes of `x` |
//! | `/stream?chunks=N&ms=M` | N chunks, M milliseconds apart |
//! | `/echo` | method, target, headers and body of the request |
//! | `/crash?code=N` | nothing: the process ends with status N |
//! | `/env` | the environment |
//! | any other | service, revision, region, colour, start time |

#![allow(
    unsafe_code,
    reason = "SIGTERM needs a handler, see `signal` below; `allow`, since plain rustc denies nothing to be expected"
)]

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest request line and headers together, in bytes.
const MAX_HEAD: u64 = 64 << 10;
/// Longest body that `/echo` gives back, in bytes; a longer one is read and cut.
const MAX_ECHO: usize = 1 << 20;
/// Stack of a connection's thread: thousands of idle connections must fit into a small instance.
const STACK: usize = 128 << 10;
const SIGTERM: i32 = 15;

static STARTED: OnceLock<SystemTime> = OnceLock::new();

// The first process of a container gets no default action for signals: without a handler SIGTERM is lost, and the
// standard library has none. Two functions of the C library (linked anyway) are less than a dependency.
unsafe extern "C" {
    fn signal(number: i32, action: extern "C" fn(i32)) -> usize;
    fn _exit(status: i32) -> !;
}

extern "C" fn end(_signal: i32) {
    // SAFETY: `_exit` may be called in a signal handler (POSIX lists it so); nothing of this process outlives it.
    unsafe { _exit(0) }
}

fn main() {
    let _ = STARTED.set(SystemTime::now());
    // SAFETY: the handler is a function of the type `signal` takes, it lives as long as the program, and it calls
    // nothing but `_exit`.
    unsafe {
        signal(SIGTERM, end);
    }
    let port = env::var("PORT").unwrap_or_else(|_| "8080".to_owned());
    let listener = match port
        .parse::<u16>()
        .map_err(io::Error::other)
        .and_then(|port| TcpListener::bind(("0.0.0.0", port)))
    {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            process::exit(1);
        }
    };
    eprintln!("hello listens on port {port}");
    for connection in listener.incoming() {
        let Ok(connection) = connection else {
            // Out of descriptors: let connections end first.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let serve = move || {
            // A client that goes away is no event.
            let _ = serve(&connection);
        };
        if thread::Builder::new().stack_size(STACK).spawn(serve).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    keep: bool,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A number of the query, `otherwise` if it is not there.
    fn number(&self, name: &str, otherwise: u64) -> u64 {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(otherwise)
    }
}

fn serve(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(8 << 10, connection);
    let mut writer = connection;
    while let Some(request) = read_head(&mut reader)? {
        if request
            .header("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = read_body(&mut reader, &request)?;
        answer(&mut writer, &request, &body)?;
        if !request.keep {
            break;
        }
    }
    Ok(())
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a request's head; `None` at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = reader.take(MAX_HEAD);
    let mut line = String::new();
    while line.trim().is_empty() {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Err(invalid("request line"));
    };
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        keep: version != "HTTP/1.0",
    };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(invalid("request head"));
        }
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(invalid("header"))?;
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if let Some(connection) = request.header("connection") {
        request.keep = connection.eq_ignore_ascii_case("keep-alive")
            || (request.keep && !connection.to_ascii_lowercase().contains("close"));
    }
    Ok(Some(request))
}

/// Reads a body to its end and keeps the first [`MAX_ECHO`] bytes.
fn read_body(reader: &mut impl BufRead, request: &Request) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let chunked = request
        .header("transfer-encoding")
        .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    if !chunked {
        let length = request
            .header("content-length")
            .map_or(Ok(0), str::parse)
            .map_err(|_| invalid("content-length"))?;
        copy(reader, length, &mut body)?;
        return Ok(body);
    }
    loop {
        let mut line = String::new();
        reader.take(1024).read_line(&mut line)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| invalid("chunk size"))?;
        copy(reader, size, &mut body)?;
        if size > 0 {
            reader.take(2).read_line(&mut String::new())?;
            continue;
        }
        loop {
            let mut trailer = String::new();
            if reader.take(MAX_HEAD).read_line(&mut trailer)? == 0 || trailer.trim().is_empty() {
                return Ok(body);
            }
        }
    }
}

fn copy(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let taken = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let kept = taken.min(MAX_ECHO.saturating_sub(body.len()));
        body.extend_from_slice(&available[..kept]);
        reader.consume(taken);
        left -= taken as u64;
    }
    Ok(())
}

fn answer(writer: &mut impl Write, request: &Request, body: &[u8]) -> io::Result<()> {
    match request.path() {
        "/sleep" => {
            thread::sleep(Duration::from_millis(request.number("ms", 0)));
            send_json(writer, request, &about())
        }
        "/bytes" => send_bytes(writer, request, request.number("n", 0)),
        "/stream" => stream(writer, request),
        "/echo" => send_json(writer, request, &echo(request, body)),
        "/crash" => {
            let code = i32::try_from(request.number("code", 1)).unwrap_or(1);
            eprintln!("hello ends with status {code} as asked");
            process::exit(code)
        }
        "/env" => {
            let vars: BTreeMap<String, String> = env::vars_os()
                .map(|(name, value)| {
                    (
                        name.to_string_lossy().into_owned(),
                        value.to_string_lossy().into_owned(),
                    )
                })
                .collect();
            send_json(
                writer,
                request,
                &object(vars.iter().map(|(name, value)| (name.as_str(), text(value)))),
            )
        }
        _ => send_json(writer, request, &about()),
    }
}

/// Which revision of what this is.
fn about() -> String {
    let var = |name: &str, otherwise: &str| text(&env::var(name).unwrap_or_else(|_| otherwise.to_owned()));
    let started = STARTED.get().copied().unwrap_or(UNIX_EPOCH);
    object([
        ("service", var("K_SERVICE", "")),
        ("revision", var("K_REVISION", "")),
        ("region", var("HOMERUN_REGION", "")),
        ("colour", var("COLOR", "blue")),
        ("startTime", text(&rfc3339(started))),
    ])
}

fn echo(request: &Request, body: &[u8]) -> String {
    let headers = request.headers.iter().map(|(name, value)| (name.as_str(), text(value)));
    object([
        ("method", text(&request.method)),
        ("target", text(&request.target)),
        ("headers", object(headers)),
        ("body", text(&String::from_utf8_lossy(body))),
    ])
}

fn send_json(writer: &mut impl Write, request: &Request, json: &str) -> io::Result<()> {
    let mut answer = head(request, "application/json", Some(json.len() as u64 + 1));
    if request.method != "HEAD" {
        answer.push_str(json);
        answer.push('\n');
    }
    writer.write_all(answer.as_bytes())
}

fn send_bytes(writer: &mut impl Write, request: &Request, length: u64) -> io::Result<()> {
    writer.write_all(head(request, "application/octet-stream", Some(length)).as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let block = [b'x'; 16 << 10];
    let mut left = length;
    while left > 0 {
        let part = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        writer.write_all(&block[..part])?;
        left -= part as u64;
    }
    Ok(())
}

fn stream(writer: &mut impl Write, request: &Request) -> io::Result<()> {
    writer.write_all(head(request, "text/plain", None).as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let pause = Duration::from_millis(request.number("ms", 0));
    for number in 0..request.number("chunks", 1) {
        if number > 0 {
            thread::sleep(pause);
        }
        let line = format!("chunk {number}\n");
        writer.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
    }
    writer.write_all(b"0\r\n\r\n")
}

/// The head of an answer; without a length the body is chunked.
fn head(request: &Request, kind: &str, length: Option<u64>) -> String {
    let connection = if request.keep { "keep-alive" } else { "close" };
    let framing = length.map_or("transfer-encoding: chunked".to_owned(), |length| {
        format!("content-length: {length}")
    });
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{framing}\r\nconnection: {connection}\r\n\r\n")
}

/// A JSON object of members that are JSON already.
fn object<'a>(members: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let members: Vec<String> = members
        .into_iter()
        .map(|(name, value)| format!("{}:{value}", text(name)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// A JSON string.
fn text(value: &str) -> String {
    let mut json = String::with_capacity(value.len() + 2);
    json.push('"');
    for character in value.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            control if control < ' ' => {
                let _ = write!(json, "\\u{:04x}", u32::from(control));
            }
            other => json.push(other),
        }
    }
    json.push('"');
    json
}

/// `2026-11-24T23:48:19.123Z`. The days are counted in years that begin in March, so that a leap day comes last.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let from_march_0 = days + 719_468;
    let (era, day_of_era) = (from_march_0 / 146_097, from_march_0 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    let (second, millis) = (second % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}
