//! What apps are built from, offline: a Python and a Node to start from, and their packages as indexes on loopback. All
//! are made once by scripts of this repository, and kept below the user's cache directory.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, ensure};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a script of this repository, and gives what it printed.
fn script(name: &str, words: &[&str]) -> Result<String> {
    let said = Command::new(repository().join(name)).args(words).output()?;
    ensure!(
        said.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(String::from_utf8(said.stdout)?)
}

/// Makes an image of `demo/base`, as an OCI layout: Debian's `python` with pip, or its `node` with npm.
///
/// # Errors
/// What the script says.
pub fn language_base(dir: &Path, language: &str) -> Result<()> {
    let dir = dir.to_str().context("a path of text")?;
    script("demo/base", &[dir, language]).map(drop)
}

/// A web server of a directory.
#[derive(Debug)]
pub struct Files {
    server: Child,
    /// Of the directory, without a slash at its end.
    pub url: String,
}

impl Files {
    /// Serves until it is dropped.
    ///
    /// # Errors
    /// When there is no python3.
    pub fn serve(dir: &Path) -> Result<Self> {
        let mut server = Command::new("python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("no python3")?;
        let output = server.stdout.take().context("a pipe was asked for")?;
        let mut files = Self {
            server,
            url: String::new(),
        };
        // "Serving HTTP on 127.0.0.1 port 40133 (http://127.0.0.1:40133/) ..."
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next());
        let port = port.with_context(|| format!("no port in {line:?}"))?;
        files.url = format!("http://127.0.0.1:{port}");
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The directory of Google's sign-in libraries for programs on this machine (`scripts/auth-clients`).
///
/// # Errors
/// What the script says.
pub fn auth_clients() -> Result<PathBuf> {
    Ok(PathBuf::from(script("scripts/auth-clients", &[])?.trim()))
}

/// A server of `scripts/wheels`' directory.
#[derive(Debug)]
pub struct Wheels {
    _files: Files,
    /// Has a project with the lock file of uv in `uv`, and of poetry in `poetry`.
    pub locks: PathBuf,
    /// What pip calls its index-url.
    pub url: String,
}

impl Wheels {
    /// # Errors
    /// What the script says, or when there is no python3.
    pub fn serve() -> Result<Self> {
        let dir = script("scripts/wheels", &[])?;
        let files = Files::serve(Path::new(dir.trim()))?;
        Ok(Self {
            url: format!("{}/simple", files.url),
            locks: Path::new(dir.trim()).join("locks"),
            _files: files,
        })
    }
}

/// An npm registry of `scripts/npm-packages`' directory.
#[derive(Debug)]
pub struct Packages {
    /// The directory, with the `package.json` and the `package-lock.json` of an app.
    pub dir: PathBuf,
    /// What npm calls its registry.
    pub url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Packages {
    /// Serves until the test ends.
    ///
    /// # Errors
    /// What the script says, or when there is no port.
    pub fn serve() -> Result<Self> {
        let dir = PathBuf::from(script("scripts/npm-packages", &[])?.trim());
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let packages = Self {
            url: format!("http://{}", listener.local_addr()?),
            dir: dir.clone(),
            seen: Arc::default(),
        };
        let (url, seen) = (packages.url.clone(), Arc::clone(&packages.seen));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (dir, url, seen) = (dir.clone(), url.clone(), Arc::clone(&seen));
                // One that hangs up has what it wants.
                thread::spawn(move || answer(stream, &dir, &url, &seen));
            }
        });
        Ok(packages)
    }

    /// The paths that were asked for since the last time.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers one request as a registry does: a packument, a file, or nothing.
fn answer(mut stream: TcpStream, dir: &Path, url: &str, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = String::new();
    let mut lines = BufReader::new(stream.try_clone()?);
    while lines.read_line(&mut head)? > 2 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
    let place = path.trim_start_matches('/').replace("%2f", "/").replace("%2F", "/");
    let is_inside = !place.split('/').any(|part| part == "..");
    let file = dir.join(place);
    let (status, content) = if !is_inside {
        ("403 Forbidden", Vec::new())
    } else if let Ok(packument) = fs::read_to_string(file.join("packument.json")) {
        let packument = packument.replace("REGISTRY", url);
        ("200 OK\r\nContent-Type: application/json", packument.into_bytes())
    } else if let Ok(content) = fs::read(&file) {
        ("200 OK\r\nContent-Type: application/octet-stream", content)
    } else {
        ("404 Not Found", Vec::new())
    };
    let length = content.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&content)
}
