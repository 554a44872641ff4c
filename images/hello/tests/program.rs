//! The program as it goes into the image: built by the product's own build script, then spoken to over sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The kind of an ELF program header that names a loader.
const PT_INTERP: usize = 3;

/// Ends with the test, however that ends.
struct Hello {
    child: Child,
    port: u16,
}

impl Drop for Hello {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hello {
    fn start(program: &Path) -> Hello {
        let port = TcpListener::bind("127.0.0.1:0")
            .expect("loopback")
            .local_addr()
            .expect("bound")
            .port();
        let child = Command::new(program)
            .env_clear()
            .envs([
                ("PORT", port.to_string().as_str()),
                ("K_SERVICE", "svc"),
                ("K_REVISION", "svc-00001-abc"),
            ])
            .envs([("HOMERUN_REGION", "us-central1"), ("COLOR", "green")])
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let hello = Hello { child, port };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "hello does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        hello
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("listening");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        stream
    }

    /// Sends a request on a connection of its own and reads to the end.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(Instant::now() < until, "hello does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads one answer of a connection that stays open: status line and body.
fn read_answer(reader: &mut impl BufRead) -> (String, String) {
    let mut status = String::new();
    reader.read_line(&mut status).expect("status line");
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("header");
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a number");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("body");
    (status.trim().to_owned(), String::from_utf8(body).expect("text"))
}

fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_homerun-hello"))
}

#[test]
fn tells_which_revision_answered_on_any_path() {
    let hello = Hello::start(built());
    let mut stream = hello.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
    for path in ["/", "/healthz", "/a/b?c=d"] {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent on the same connection");
        let (status, body) = read_answer(&mut reader);
        assert_eq!(status, "HTTP/1.1 200 OK");
        let says =
            r#"{"service":"svc","revision":"svc-00001-abc","region":"us-central1","colour":"green","startTime":"2"#;
        assert!(body.starts_with(says), "{body}");
    }
}

#[test]
fn reads_bodies_and_gives_them_back() {
    let hello = Hello::start(built());
    let answer = hello.ask("POST /echo HTTP/1.1\r\nConnection: close\r\nX-A: \"b\"\r\nContent-Length: 5\r\n\r\nhello");
    assert!(
        answer.contains(r#""body":"hello""#) && answer.contains(r#""X-A":"\"b\"""#),
        "{answer}"
    );
    let chunked = "POST /echo HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nT: r\r\n\r\n";
    assert!(hello.ask(chunked).contains(r#""body":"hello""#));
    // A body that nobody wants is read all the same: the next request begins after it.
    let mut stream = hello.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
    stream
        .write_all(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET GET /bytes?n=3 HTTP/1.1\r\n\r\n")
        .expect("sent");
    assert!(read_answer(&mut reader).1.contains("svc"));
    assert_eq!(read_answer(&mut reader).1, "xxx");
}

#[test]
fn behaves_as_asked() {
    let mut hello = Hello::start(built());
    let close = |path: &str| format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n");
    let answer = hello.ask(&close("/bytes?n=100000"));
    assert!(answer.ends_with(&"x".repeat(100_000)) && answer.contains("content-length: 100000\r\n"));
    let answer = hello.ask(&close("/stream?chunks=2&ms=1"));
    assert!(
        answer.ends_with("8\r\nchunk 0\n\r\n8\r\nchunk 1\n\r\n0\r\n\r\n"),
        "{answer}"
    );
    let began = Instant::now();
    hello.ask(&close("/sleep?ms=120"));
    assert!(began.elapsed() >= Duration::from_millis(120));
    assert!(hello.ask(&close("/env")).contains(r#""COLOR":"green""#));
    assert!(
        !hello
            .ask("HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n")
            .contains("svc")
    );
    assert_eq!(hello.ask(&close("/crash?code=7")), "");
    assert_eq!(hello.end().code(), Some(7));
}

#[test]
fn ends_at_once_with_open_connections() {
    let mut hello = Hello::start(built());
    let _idle = hello.connect();
    let mut busy = hello.connect();
    busy.write_all(b"GET /sleep?ms=60000 HTTP/1.1\r\n\r\n").expect("sent");
    let status = Command::new("kill")
        .args(["-TERM", &hello.child.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success());
    assert_eq!(hello.end().code(), Some(0));
}

#[test]
fn what_the_build_script_makes_needs_nothing_else() {
    let house = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/homerun");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hello-{}", std::process::id()));
    std::fs::create_dir_all(&out).expect("made");
    let script = out.join("build-script");
    let compiled = Command::new("rustc")
        .args(["--edition", "2024", "-o"])
        .arg(&script)
        .arg(house.join("build.rs"))
        .status();
    assert!(compiled.expect("rustc runs").success());
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(&script)
        .env("CARGO_MANIFEST_DIR", &house)
        .env("OUT_DIR", &out)
        .env("RUSTC", "rustc")
        .env("TARGET", target)
        .output()
        .expect("the script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let program = out.join("hello");
    let says = String::from_utf8(output.stdout).expect("text");
    assert!(
        says.contains(&format!("cargo::rustc-env=HOMERUN_HELLO={}", program.display())),
        "{says}"
    );
    assert!(says.contains("images/hello/src/main.rs"), "{says}");

    // Static: no program header asks for a loader.
    let elf = std::fs::read(&program).expect("made");
    let number = |at: usize, length: usize| {
        elf[at..at + length]
            .iter()
            .rev()
            .fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    assert!(count > 0 && elf.starts_with(b"\x7fELF\x02\x01"));
    assert!((0..count).all(|header| number(table + header * size, 4) != PT_INTERP));
    assert!(elf.len() < 4 << 20, "{} bytes", elf.len());
    let here = env!("CARGO_MANIFEST_DIR").as_bytes();
    assert!(
        !elf.windows(here.len()).any(|bytes| bytes == here),
        "it tells where it was built"
    );

    let hello = Hello::start(&program);
    assert!(hello.ask("GET / HTTP/1.0\r\n\r\n").contains("svc-00001-abc"));
    drop(hello);
    std::fs::remove_dir_all(&out).expect("removed");
}
