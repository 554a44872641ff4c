//! A program for the inside of test instances. Built by the tests with plain rustc, static, without any crate.

mod dump;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn signal(number: i32, handler: usize) -> usize;
    fn _exit(code: i32) -> !;
    fn mmap(at: *mut u8, length: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
}

static COUNT: AtomicU64 = AtomicU64::new(0);
/// The status of `/healthz`; 0 is no answer at all.
static HEALTH: AtomicU64 = AtomicU64::new(200);
/// How often `/healthz` was asked.
static ASKED: AtomicU64 = AtomicU64::new(0);

extern "C" fn say_bye(_: i32) {
    // Both are safe inside a signal handler.
    unsafe {
        syscall(1, 1_i64, b"bye\n".as_ptr(), 4_i64);
        _exit(0)
    }
}

extern "C" fn nothing(_: i32) {}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if std::env::args().next().is_some_and(|name| name.ends_with("/runsc")) {
        hang_as_runsc(&words);
        return;
    }
    match words.as_slice() {
        ["exit", code] => {
            println!("to stdout");
            eprintln!("to stderr");
            std::process::exit(code.parse().unwrap())
        }
        ["fault"] => {
            // The one kind of signal that the first process of a namespace cannot ignore.
            let nowhere: *mut u8 = std::hint::black_box(std::ptr::without_provenance_mut(8));
            unsafe { nowhere.write_volatile(1) }
        }
        ["sleep"] => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        ["eat", mebibytes] => eat(mebibytes.parse().unwrap()),
        ["loopback"] => serve(TcpListener::bind(("127.0.0.1", port())).unwrap()),
        ["late", millis] => {
            thread::sleep(Duration::from_millis(millis.parse().unwrap()));
            serve(TcpListener::bind(("0.0.0.0", port())).unwrap())
        }
        ["sick", millis] => {
            // Unhealthy for so long.
            let millis = millis.parse().unwrap();
            HEALTH.store(503, Ordering::SeqCst);
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(millis));
                HEALTH.store(200, Ordering::SeqCst);
            });
            serve(TcpListener::bind(("0.0.0.0", port())).unwrap())
        }
        ["polite"] => {
            unsafe { signal(15, say_bye as *const () as usize) };
            serve(TcpListener::bind(("0.0.0.0", port())).unwrap())
        }
        ["stubborn"] => {
            unsafe { signal(15, nothing as *const () as usize) };
            serve(TcpListener::bind(("0.0.0.0", port())).unwrap())
        }
        ["long", bytes] => {
            println!("{}", "x".repeat(bytes.parse().unwrap()));
            print!("no line end");
            std::io::stdout().flush().unwrap();
            serve(TcpListener::bind(("0.0.0.0", port())).unwrap())
        }
        _ => serve(TcpListener::bind(("0.0.0.0", port())).unwrap()),
    }
}

/// What runsc answers, and what it does on a bad day: the container's arguments say when it hangs.
fn hang_as_runsc(words: &[&str]) {
    let bad_day = |word: &str| fs::read_to_string("/bundle/config.json").is_ok_and(|config| config.contains(word));
    let hang = || loop {
        thread::sleep(Duration::from_secs(3600));
    };
    match words {
        ["--version"] => println!("runsc version release-20990101.0"),
        ["help", "platforms"] => println!("systrap"),
        ["flags"] => {}
        [.., "sandbox"] => hang(),
        [.., "create", "--bundle", _, "--pid-file", file, _] => {
            if bad_day("hang at create") {
                hang();
            }
            let sandbox = Command::new("/runsc").arg("sandbox").spawn().unwrap();
            fs::write(file, sandbox.id().to_string()).unwrap();
        }
        [.., "start", _] => hang(),
        _ => {}
    }
}

fn port() -> u16 {
    std::env::var("PORT").unwrap().parse().unwrap()
}

fn eat(mebibytes: usize) {
    let mut all = Vec::new();
    for _ in 0..mebibytes {
        all.push(vec![1_u8; 1 << 20]);
    }
    println!("ate {}", all.len());
}

fn serve(listener: TcpListener) {
    thread::spawn(|| loop {
        COUNT.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    });
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0; 1024];
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut byte) {
                    Ok(0) | Err(_) => return,
                    Ok(length) => head.extend(&byte[..length]),
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
            let (status, body) = if path == "/healthz" {
                ASKED.fetch_add(1, Ordering::SeqCst);
                (HEALTH.load(Ordering::SeqCst), String::new())
            } else {
                (200, answer(&path))
            };
            if status == 0 {
                thread::sleep(Duration::from_secs(3600));
            }
            let _ = write!(
                stream,
                "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        });
    }
}

/// `/word/rest`
fn answer(path: &str) -> String {
    let (word, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let at = format!("/{rest}");
    let shown = |result: std::io::Result<String>| result.unwrap_or_else(|e| format!("error: {e}"));
    match word {
        "read" => shown(fs::read(at).map(|b| String::from_utf8_lossy(&b).into_owned())),
        "list" => shown(fs::read_dir(at).map(|all| {
            let mut names: Vec<_> = all.flatten().map(|e| e.file_name().into_string().unwrap()).collect();
            names.sort();
            names.join(" ")
        })),
        "link" => shown(fs::read_link(at).map(|to| to.to_string_lossy().into_owned())),
        "stat" => shown(fs::symlink_metadata(at).map(|m| {
            format!("{:o} {} {} {}", m.mode(), m.uid(), m.gid(), m.rdev())
        })),
        "write" => shown(fs::write(at, b"written").map(|()| "ok".to_owned())),
        "fill" => {
            // /fill/MiB/path: writes so much into a file
            let (mebibytes, path) = rest.split_once('/').unwrap();
            shown((|| {
                let mut file = fs::File::create(format!("/{path}"))?;
                for _ in 0..mebibytes.parse::<u32>().unwrap() {
                    file.write_all(&[1; 1 << 20])?;
                }
                Ok("ok".to_owned())
            })())
        }
        "env" => {
            let all = std::env::vars_os().map(|(k, v)| {
                let (k, v) = (k.as_bytes().to_vec(), v.as_bytes().to_vec());
                format!("{}={}", String::from_utf8_lossy(&k), String::from_utf8_lossy(&v))
            });
            all.collect::<Vec<_>>().join("\n")
        }
        "dump" => dump::all(),
        "health" => {
            HEALTH.store(rest.parse().unwrap(), Ordering::SeqCst);
            "set".to_owned()
        }
        "asked" => ASKED.load(Ordering::SeqCst).to_string(),
        "wait" => {
            thread::sleep(Duration::from_millis(rest.parse().unwrap()));
            "waited".to_owned()
        }
        "background" => {
            // Goes on computing for so many milliseconds after the answer.
            let until = Instant::now() + Duration::from_millis(rest.parse().unwrap());
            thread::spawn(move || while Instant::now() < until {
                std::hint::spin_loop();
            });
            "begun".to_owned()
        }
        "hold" => {
            // Keeps a connection to an address and a port.
            shown(std::net::TcpStream::connect(rest).map(|stream| {
                std::mem::forget(stream);
                "held".to_owned()
            }))
        }
        "fetch" => {
            // /fetch/host:port/path: asks another server, as this container sees it
            let (server, path) = rest.split_once('/').unwrap();
            shown((|| {
                let mut stream = std::net::TcpStream::connect(server)?;
                write!(stream, "GET /{path} HTTP/1.1\r\nHost: {server}\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
            })())
        }
        "count" => COUNT.load(Ordering::Relaxed).to_string(),
        "say" => {
            println!("{rest}");
            "said".to_owned()
        }
        "spin" => {
            // Milliseconds of wall time; returns those of CPU time.
            let until = Instant::now() + Duration::from_millis(rest.parse().unwrap());
            let begin = cpu_millis();
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            (cpu_millis() - begin).to_string()
        }
        "child" => {
            // Words for a child of this program; how it ended.
            let words = rest.split('/');
            let child = Command::new("/proc/self/exe").args(words).status();
            shown(child.map(|status| status.to_string()))
        }
        "threads" => {
            let mut running = Vec::new();
            let most: usize = rest.parse().unwrap();
            for _ in 0..most {
                let thread = thread::Builder::new()
                    .stack_size(16 << 10)
                    .spawn(|| thread::sleep(Duration::from_secs(3)));
                match thread {
                    Ok(thread) => running.push(thread),
                    Err(_) => break,
                }
            }
            let count = running.len();
            for thread in running {
                let _ = thread.join();
            }
            count.to_string()
        }
        "call" => {
            // A system call with one argument, by numbers: 0, or the error's number.
            let (number, argument) = rest.split_once('/').unwrap_or((rest, "0"));
            let (number, argument) = (number.parse::<i64>().unwrap(), argument.parse::<i64>().unwrap());
            let done = unsafe { syscall(number, argument, 0_i64, 0_i64, 0_i64, 0_i64) };
            if done < 0 {
                std::io::Error::last_os_error().raw_os_error().unwrap().to_string()
            } else {
                "0".to_owned()
            }
        }
        "files" => {
            // prlimit64: most open files, soft and hard.
            let mut limit = [0_u64; 2];
            unsafe { syscall(302, 0_i64, 7_i64, 0_i64, limit.as_mut_ptr()) };
            format!("{} {}", limit[0], limit[1])
        }
        "opened" => {
            // How many files can be open at a time.
            let mut all = Vec::new();
            while let Ok(file) = fs::File::open("/guest") {
                all.push(file);
            }
            all.len().to_string()
        }
        "untouched" => {
            // Whether mincore says that a page is there which nobody has touched: private, anonymous memory.
            let mut resident = [0_u8; 1];
            let done = unsafe {
                let page = mmap(std::ptr::null_mut(), 4096, 3, 0x22, -1, 0);
                syscall(27, page, 4096_i64, resident.as_mut_ptr())
            };
            format!("{done} {}", resident[0] & 1)
        }
        "syslog" => {
            // SYSLOG_ACTION_READ_ALL
            let mut text = vec![0_u8; 4096];
            let read = unsafe { syscall(103, 3_i64, text.as_mut_ptr(), text.len()) };
            if read < 0 {
                format!("error: {}", std::io::Error::last_os_error())
            } else {
                String::from_utf8_lossy(&text[..usize::try_from(read).unwrap()]).into_owned()
            }
        }
        "bind" => shown(TcpListener::bind(("0.0.0.0", rest.parse().unwrap())).map(|_| "ok".to_owned())),
        "die" => std::process::exit(rest.parse().unwrap()),
        _ => "ok".to_owned(),
    }
}

fn cpu_millis() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: u64 = text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    nanos / 1_000_000
}
