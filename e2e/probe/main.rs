//! The program in the tests' own image: it reports what it sees from inside an instance and behaves in ways that tests
//! of a platform need. It stands alone (the standard library only, one file, linked statically), compiled by
//! `build.rs`. What enters: `PORT`, arguments, and `LISTEN_AFTER_MS`, which it lets pass before it listens. What leaves:
//! plain text.
//!
//! | path | answers |
//! |---|---|
//! | `/name` | what `/etc/name` of the image holds |
//! | `/args` | its arguments, one a line |
//! | `/read/PATH` | the file |
//! | `/write/PATH?TEXT` | the file, after it has written the text there |
//! | `/call/PORT/PATH` | what the server at this port of 127.0.0.1 answers |
//! | `/say/ADDRESS:PORT?TEXT` | what somebody there answers to the text, which is percent-encoded, until the end |
//! | `/reach/ADDRESS:PORT` | the first line that somebody says there, or the kind of the error |
//! | `/burn?ms=N` | milliseconds of CPU it got while two threads used all they could get for N |
//! | `/fill?mb=N` | after it has written so many MiB of memory, and given them back |
//! | `/count` | how often a thread has slept a millisecond so far |
//! | `/hold?ms=N` | after N milliseconds: its start and the most requests it ever had at once |
//! | `/back` | every piece of the request's body at once, as it comes |
//! | any other | its start, which no other instance shares |

#![allow(
    unsafe_code,
    reason = "SIGTERM needs a handler, see `signal`; `allow`, since plain rustc denies nothing"
)]

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SIGTERM: i32 = 15;

static START: OnceLock<String> = OnceLock::new();
static COUNT: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicU64 = AtomicU64::new(0);
static MOST_HELD: AtomicU64 = AtomicU64::new(0);

// The first process of a container gets no default action for signals.
unsafe extern "C" {
    fn signal(number: i32, action: extern "C" fn(i32)) -> usize;
    fn _exit(status: i32) -> !;
}

extern "C" fn end(_signal: i32) {
    // SAFETY: `_exit` may be called in a signal handler; nothing of this process outlives it.
    unsafe { _exit(0) }
}

fn main() {
    // SAFETY: the handler is a function of the type `signal` takes and calls nothing but `_exit`.
    unsafe {
        signal(SIGTERM, end);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = START.set(now.as_nanos().to_string());
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_millis(1));
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
    });
    if let Some(millis) = env::var("LISTEN_AFTER_MS").ok().and_then(|text| text.parse().ok()) {
        thread::sleep(Duration::from_millis(millis));
    }
    let port = env::var("PORT").unwrap_or_default();
    let listener = match port
        .parse()
        .map_err(io::Error::other)
        .and_then(|port: u16| TcpListener::bind(("0.0.0.0", port)))
    {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            process::exit(1);
        }
    };
    for connection in listener.incoming().flatten() {
        thread::spawn(move || {
            let _ = serve(&connection);
        });
    }
}

fn serve(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut chunked) = (0, false);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        if target == "/back" {
            return back(&mut reader, &mut writer, chunked, length);
        }
        io::copy(&mut (&mut reader).take(length), &mut io::sink())?;
        let text = answer(&target);
        write!(
            writer,
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )?;
    }
}

fn answer(target: &str) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(0)
    };
    let millis = number("ms");
    let start = START.get().map_or("", String::as_str);
    match path {
        "/name" => read("/etc/name"),
        "/args" => env::args().skip(1).map(|arg| arg + "\n").collect(),
        "/burn" => burn(Duration::from_millis(millis)).to_string(),
        "/fill" => {
            let bytes = usize::try_from(number("mb") << 20).unwrap_or(0);
            std::hint::black_box(vec![1_u8; bytes]).len().to_string()
        }
        "/count" => COUNT.load(Ordering::Relaxed).to_string(),
        "/hold" => {
            let held = HELD.fetch_add(1, Ordering::SeqCst) + 1;
            MOST_HELD.fetch_max(held, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(millis));
            HELD.fetch_sub(1, Ordering::SeqCst);
            format!("{start} {}\n", MOST_HELD.load(Ordering::SeqCst))
        }
        _ => {
            if let Some(file) = path.strip_prefix("/read/") {
                read(&format!("/{file}"))
            } else if let Some(file) = path.strip_prefix("/write/") {
                let file = format!("/{file}");
                fs::write(&file, query).map_or_else(|error| format!("{file}: {error}"), |()| read(&file))
            } else if let Some((port, path)) = target.strip_prefix("/call/").and_then(|rest| rest.split_once('/')) {
                call(port, path).unwrap_or_else(|error| format!("127.0.0.1:{port}: {error}"))
            } else if let Some(address) = path.strip_prefix("/say/") {
                say(address, &decoded(query)).unwrap_or_else(|error| format!("{:?}", error.kind()))
            } else if let Some(address) = path.strip_prefix("/reach/") {
                reach(address).unwrap_or_else(|error| format!("{:?}", error.kind()))
            } else {
                format!("{start}\n")
            }
        }
    }
}

/// The body of an answer, by a server that says how long it is.
fn call(port: &str, path: &str) -> io::Result<String> {
    let connection = TcpStream::connect(("127.0.0.1", port.parse().map_err(io::Error::other)?))?;
    let mut reader = BufReader::new(&connection);
    write!(&connection, "GET /{path} HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim().to_ascii_lowercase().strip_prefix("content-length:") {
            Some(value) => length = value.trim().parse().map_err(io::Error::other)?,
            None if line.trim().is_empty() => break,
            None => {}
        }
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    Ok(body)
}

fn say(address: &str, text: &[u8]) -> io::Result<String> {
    let address = address.parse().map_err(io::Error::other)?;
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(30))?;
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    connection.write_all(text)?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A text with `%` and two hexadecimal digits for what does not go into a path.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut all = Vec::new();
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        all.push(match byte {
            b'%' => match (digit(), digit()) {
                (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or(b'?'),
                _ => b'?',
            },
            other => other,
        });
    }
    all
}

fn reach(address: &str) -> io::Result<String> {
    let address = address.parse().map_err(io::Error::other)?;
    let connection = TcpStream::connect_timeout(&address, Duration::from_secs(30))?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    Ok(line)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("{path}: {error}"))
}

/// Milliseconds of CPU that all threads got.
fn burn(wall: Duration) -> u64 {
    let before = cpu_millis();
    let until = Instant::now() + wall;
    let threads: Vec<_> = (0..2)
        .map(|_| thread::spawn(move || while Instant::now() < until {}))
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    cpu_millis() - before
}

/// User and system time of this process, in steps of 10 ms (fields 14 and 15, the name being in brackets).
fn cpu_millis() -> u64 {
    let stat = read("/proc/self/stat");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum::<u64>()
        * 10
}

/// Answers the first piece before the second has come.
fn back(reader: &mut impl BufRead, writer: &mut impl Write, chunked: bool, length: u64) -> io::Result<()> {
    writer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")?;
    let mut left = length;
    loop {
        if chunked && left == 0 {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            if size.trim().is_empty() {
                continue;
            }
            left = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        }
        if left == 0 {
            return writer.write_all(b"0\r\n\r\n");
        }
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let taken = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        write!(writer, "{taken:x}\r\n")?;
        writer.write_all(&piece[..taken])?;
        writer.write_all(b"\r\n")?;
        reader.consume(taken);
        left -= taken as u64;
    }
}
