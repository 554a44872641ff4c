//! The program of the tests' broken image: it does, on request, what a container must not do. It stands alone (the
//! standard library only, one file, linked statically), compiled by `build.rs`. What enters: `PORT`, arguments. What
//! leaves: plain text.
//!
//! | arguments | it |
//! |---|---|
//! | `exit CODE LINE...` | writes the lines to its log and ends with that status |
//! | `mute` | never listens |
//! | `loopback` | serves on 127.0.0.1 only |
//! | `hog MIB` | takes that much memory before it would listen |
//! | `serve` | serves |
//! | `sick` | serves, and is not well |
//!
//! | path | answers |
//! |---|---|
//! | `/hog?mib=N` | after it took N MiB, which it keeps |
//! | `/crash?code=N` | nothing: it ends with status N |
//! | `/forks` | how many processes it could start, each of which starts more |
//! | `/disk?mib=N` | after it wrote that much into a file, which it keeps |
//! | `/shut` | its start, and takes no connection any more |
//! | `/garbage` | what is no HTTP |
//! | `/sleep?ms=N` | its start, after so many milliseconds |
//! | `/drip?NAME` | a numbered line every 50 ms, also to its log, until it is asked `/enough`; then its start |
//! | `/enough` | its start |
//! | `/health?status=N` | its start, and is from now on as well as status N says |
//! | `/healthz` | with that status; at first 200, or 500 of a `sick` one |
//! | `/background?ms=N` | its start, and computes for so many milliseconds afterwards |
//! | any other | its start, which no other instance shares |

#![allow(unsafe_code, reason = "SIGTERM needs a handler, see `signal`; `allow`, since plain rustc denies nothing")]

use std::env;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SIGTERM: i32 = 15;

// The first process of a container gets no default action for signals.
unsafe extern "C" {
    fn signal(number: i32, action: extern "C" fn(i32)) -> usize;
    fn _exit(status: i32) -> !;
    fn shutdown(socket: i32, how: i32) -> i32;
}

static LISTENER: AtomicI32 = AtomicI32::new(-1);
static HEALTH: AtomicI32 = AtomicI32::new(200);
static ENOUGH: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_signal: i32) {
    // SAFETY: `_exit` may be called in a signal handler; nothing of this process outlives it.
    unsafe { _exit(0) }
}

fn main() {
    // SAFETY: the handler is a function of the type `signal` takes and calls nothing but `_exit`.
    unsafe {
        signal(SIGTERM, end);
    }
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
    let host = match args.first().map(String::as_str) {
        Some("exit") => {
            for line in &args[2.min(args.len())..] {
                eprintln!("{line}");
            }
            process::exit(number(1));
        }
        Some("mute") => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        Some("hog") => {
            take(usize::try_from(number(1)).unwrap_or(0));
            Ipv4Addr::UNSPECIFIED
        }
        // One of very many, each of which starts others until nothing more can be started.
        Some("forks") => loop {
            if process::Command::new("/proc/self/exe").arg("forks").spawn().is_err() {
                thread::sleep(Duration::from_secs(1));
            }
        },
        Some("loopback") => Ipv4Addr::LOCALHOST,
        Some("serve") => Ipv4Addr::UNSPECIFIED,
        Some("sick") => {
            HEALTH.store(500, Ordering::SeqCst);
            Ipv4Addr::UNSPECIFIED
        }
        other => {
            eprintln!("no such way to be broken: {other:?}");
            process::exit(64);
        }
    };
    let port = env::var("PORT").ok().and_then(|port| port.parse::<u16>().ok()).unwrap_or(0);
    let listener = TcpListener::bind((host, port)).unwrap_or_else(|error| {
        eprintln!("cannot listen on {host}:{port}: {error}");
        process::exit(1);
    });
    LISTENER.store(listener.as_raw_fd(), Ordering::SeqCst);
    for connection in listener.incoming() {
        match connection {
            Ok(connection) => drop(thread::spawn(move || drop(serve(&connection, start)))),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn serve(connection: &TcpStream, start: u128) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
        }
        if let Some(mib) = target.strip_prefix("/hog?mib=") {
            eprintln!("takes {mib} MiB");
            take(mib.parse().unwrap_or(0));
        }
        if target == "/forks" {
            let mut started = 0;
            while process::Command::new("/proc/self/exe").arg("forks").spawn().is_ok() {
                started += 1;
            }
            eprintln!("started {started} processes");
        }
        if let Some(mib) = target.strip_prefix("/disk?mib=") {
            let piece = vec![1_u8; 1 << 20];
            let mut file = std::fs::File::create("/filled")?;
            for _ in 0..mib.parse().unwrap_or(0) {
                file.write_all(&piece)?;
            }
        }
        if target == "/shut" {
            // SAFETY: takes two numbers and touches no memory.
            unsafe { shutdown(LISTENER.load(Ordering::SeqCst), 2) };
        }
        if target == "/garbage" {
            return writer.write_all(b"no such thing as HTTP\r\n\r\n");
        }
        if let Some(millis) = target.strip_prefix("/sleep?ms=") {
            thread::sleep(Duration::from_millis(millis.parse().unwrap_or(0)));
        }
        if let Some(name) = target.strip_prefix("/drip?") {
            writer.write_all(b"HTTP/1.1 200 Said\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")?;
            let piece = |text: &str| write!(&*connection, "{:x}\r\n{text}\r\n", text.len());
            for number in 0.. {
                let text = format!("{name} drips {number}\n");
                eprint!("{text}");
                piece(&text)?;
                if ENOUGH.load(Ordering::SeqCst) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            piece(&format!("{start}\n"))?;
            writer.write_all(b"0\r\n\r\n")?;
            continue;
        }
        if target == "/enough" {
            ENOUGH.store(true, Ordering::SeqCst);
        }
        if let Some(code) = target.strip_prefix("/crash?code=") {
            process::exit(code.parse().unwrap_or(1));
        }
        // A word half a second later, and perhaps an end.
        if let Some(code) = target.strip_prefix("/later?code=") {
            let code = code.parse::<i32>();
            eprint!("begins, ");
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(500));
                eprintln!("said later");
                if let Ok(code) = code {
                    process::exit(code);
                }
            });
        }
        if let Some(status) = target.strip_prefix("/health?status=") {
            HEALTH.store(status.parse().unwrap_or(500), Ordering::SeqCst);
        }
        if let Some(millis) = target.strip_prefix("/background?ms=") {
            let until = Instant::now() + Duration::from_millis(millis.parse().unwrap_or(0));
            thread::spawn(move || {
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            });
        }
        let status = if target == "/healthz" { HEALTH.load(Ordering::SeqCst) } else { 200 };
        let text = format!("{start}\n");
        write!(writer, "HTTP/1.1 {status} Said\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{text}", text.len())?;
    }
}

/// Memory counts when it was written to.
fn take(mib: usize) {
    let memory = vec![1_u8; mib << 20];
    black_box(&memory);
    std::mem::forget(memory);
}
