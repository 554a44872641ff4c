//! An image of 1 GiB pushed and pulled over loopback: by the same client to Homerun and to the CNCF's distribution registry
//! (Debian's `docker-registry`), round by round, each into a directory of its own on the same disk.
//!
//! The client is ours, so that it is small beside what is measured: layers go from a file into the socket by the kernel
//! alone, and what comes is read and dropped. It speaks as docker and skopeo do: three layers at a time, each by POST,
//! PATCH and PUT, the manifest last; a pull is the manifest, then the blobs. Once, apart from the rounds, what comes is
//! summed.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    figure::{Measured, median},
    server::Homerun,
};

const ROUNDS: usize = 5;
const LAYERS: usize = 8;
const LAYER_BYTES: u64 = 128 << 20;
/// As docker has them for pulls.
const AT_ONCE: usize = 3;
const PATIENCE: Duration = Duration::from_mins(1);
const NAME: &str = "my-project/bench/large";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// MiB/s of each round.
#[derive(Debug, Clone, Default)]
struct Speeds {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Speeds {
    fn measured(&self) -> Measured {
        let (ours, theirs) = (median(&self.ours), median(&self.theirs));
        Measured {
            value: ours / theirs,
            notes: vec![format!(
                "homerun {ours:.0} MiB/s, docker-registry {theirs:.0} MiB/s, medians of {ROUNDS}"
            )],
            samples: vec![
                ("homerun MiB/s".to_owned(), self.ours.clone()),
                ("docker-registry MiB/s".to_owned(), self.theirs.clone()),
            ],
        }
    }
}

pub(crate) fn push() -> Result<Measured> {
    Ok(both()?.0.measured())
}

pub(crate) fn pull() -> Result<Measured> {
    Ok(both()?.1.measured())
}

/// Pushes and pulls of one run: measured once for both figures.
fn both() -> Result<(Speeds, Speeds)> {
    static MEASURED: OnceLock<(Speeds, Speeds)> = OnceLock::new();
    if let Some(measured) = MEASURED.get() {
        return Ok(measured.clone());
    }
    let measured = rounds()?;
    Ok(MEASURED.get_or_init(|| measured).clone())
}

fn rounds() -> Result<(Speeds, Speeds)> {
    let homerun = Homerun::up("15m")?;
    let dir = TempDir::with_prefix("homerun-bench-")?;
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        layers.push(random(&dir.path().join(format!("layer-{number}")))?);
    }
    let (mut pushes, mut pulls) = (Speeds::default(), Speeds::default());
    for round in 0..ROUNDS {
        let image = Image::of(&layers, round)?;
        // The one that begins has the quieter disk: each does in turn.
        for turn in 0..2 {
            let is_ours = (round + turn) % 2 == 0;
            let peer = (!is_ours).then(|| Peer::up(dir.path())).transpose()?;
            let registry = match &peer {
                None => Registry {
                    address: homerun.api,
                    token: homerun.token()?,
                },
                Some(peer) => Registry {
                    address: peer.address,
                    token: String::new(),
                },
            };
            // Nothing is on its way to the disk but what is measured.
            rustix::fs::sync();
            let push = registry.push(&image)?;
            rustix::fs::sync();
            let pull = registry.pull(&image)?;
            if round == 0 {
                registry.verify(&image)?;
            }
            for (speeds, took) in [(&mut pushes, push), (&mut pulls, pull)] {
                let speed = f64::from(u32::try_from(image.bytes() >> 20)?) / took.as_secs_f64();
                if is_ours { &mut speeds.ours } else { &mut speeds.theirs }.push(speed);
            }
            if is_ours {
                registry.delete(&image)?;
            }
        }
    }
    Ok((pushes, pulls))
}

/// A file that no compression makes smaller.
fn random(path: &Path) -> Result<PathBuf> {
    let mut from = File::open("/dev/urandom")?.take(LAYER_BYTES);
    io::copy(&mut from, &mut File::create(path)?)?;
    Ok(path.to_owned())
}

#[derive(Debug)]
struct Blob {
    path: PathBuf,
    digest: String,
    size: u64,
}

#[derive(Debug)]
struct Image {
    /// Layers, and the configuration last.
    blobs: Vec<Blob>,
    manifest: String,
    manifest_digest: String,
}

impl Image {
    /// Another one each round, of the same files.
    fn of(layers: &[PathBuf], round: usize) -> Result<Self> {
        for layer in layers {
            let file = File::options().write(true).open(layer)?;
            file.write_all_at(&round.to_le_bytes(), 0)?;
        }
        let config = layers[0].with_file_name("config");
        fs::write(&config, json!({ "architecture": "amd64", "os": "linux" }).to_string())?;
        let paths = layers.iter().chain([&config]);
        let blobs: Vec<Blob> = paths.map(|path| blob(path)).collect::<Result<_>>()?;
        let described =
            |blob: &Blob, kind: &str| json!({ "mediaType": kind, "digest": blob.digest, "size": blob.size });
        let (config, layers) = blobs.split_last().context("a configuration at least")?;
        let layers: Vec<_> = layers
            .iter()
            .map(|blob| described(blob, "application/vnd.oci.image.layer.v1.tar"))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        });
        let path = config.path.with_file_name("manifest");
        fs::write(&path, manifest.to_string())?;
        Ok(Self {
            manifest: manifest.to_string(),
            manifest_digest: blob(&path)?.digest,
            blobs,
        })
    }

    fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    /// Does something with each blob, some at a time.
    fn each(&self, what: impl Fn(&Blob) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || self.blobs.get(next.fetch_add(1, Ordering::Relaxed));
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE)
                .map(|_| scope.spawn(|| std::iter::from_fn(work).try_for_each(&what)))
                .collect();
            let mut ended = workers.into_iter().map(thread::ScopedJoinHandle::join);
            ended.try_for_each(|ended| ended.ok().context("a thread broke off")?)
        })
    }
}

fn blob(path: &Path) -> Result<Blob> {
    let size = fs::metadata(path)?.len();
    let summed = Command::new("sha256sum").arg(path).output()?;
    Ok(Blob {
        path: path.to_owned(),
        digest: sum(&summed.stdout)?,
        size,
    })
}

fn sum(printed: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(printed);
    let hex = text.split_whitespace().next().context("sha256sum prints a sum")?;
    Ok(format!("sha256:{hex}"))
}

#[derive(Debug)]
struct Registry {
    address: SocketAddr,
    token: String,
}

/// One connection, kept from one request to the next.
struct Connection<'a> {
    registry: &'a Registry,
    stream: BufReader<TcpStream>,
}

struct Head {
    status: u16,
    location: String,
    length: u64,
}

impl Registry {
    fn connect(&self) -> Result<Connection<'_>> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection {
            registry: self,
            stream: BufReader::with_capacity(16 << 10, stream),
        })
    }

    fn push(&self, image: &Image) -> Result<Duration> {
        let began = Instant::now();
        image.each(|blob| {
            let mut connection = self.connect()?;
            let begun = connection.small("POST", &format!("/v2/{NAME}/blobs/uploads/"), "", b"", 202)?;
            let place = path_of(&begun.location);
            connection.head("PATCH", place, "application/octet-stream", blob.size)?;
            // By the kernel, from file to socket.
            io::copy(&mut File::open(&blob.path)?, connection.stream.get_mut())?;
            let patched = connection.answer(202)?;
            let place = path_of(&patched.location);
            let mark = if place.contains('?') { '&' } else { '?' };
            connection.small("PUT", &format!("{place}{mark}digest={}", blob.digest), "", b"", 201)?;
            Ok(())
        })?;
        let path = format!("/v2/{NAME}/manifests/v1");
        self.connect()?
            .small("PUT", &path, MANIFEST, image.manifest.as_bytes(), 201)?;
        Ok(began.elapsed())
    }

    fn pull(&self, image: &Image) -> Result<Duration> {
        let began = Instant::now();
        let mut connection = self.connect()?;
        connection.head("GET", &format!("/v2/{NAME}/manifests/v1"), "", 0)?;
        let length = connection.answer_head(200)?.length;
        connection.body(length, |_| Ok(()))?;
        image.each(|blob| {
            let mut connection = self.connect()?;
            connection.head("GET", &format!("/v2/{NAME}/blobs/{}", blob.digest), "", 0)?;
            let length = connection.answer_head(200)?.length;
            ensure!(length == blob.size, "{} of {} bytes", length, blob.size);
            connection.body(length, |_| Ok(()))
        })?;
        Ok(began.elapsed())
    }

    /// Whether what comes is what went.
    fn verify(&self, image: &Image) -> Result<()> {
        image.each(|blob| {
            let mut connection = self.connect()?;
            connection.head("GET", &format!("/v2/{NAME}/blobs/{}", blob.digest), "", 0)?;
            let length = connection.answer_head(200)?.length;
            let mut summing = Command::new("sha256sum")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let mut to = summing.stdin.take().context("a pipe was asked for")?;
            connection.body(length, |piece| Ok(to.write_all(piece)?))?;
            drop(to);
            let digest = sum(&summing.wait_with_output()?.stdout)?;
            ensure!(digest == blob.digest, "{digest} came for {}", blob.digest);
            Ok(())
        })
    }

    fn delete(&self, image: &Image) -> Result<()> {
        let mut connection = self.connect()?;
        let path = format!("/v2/{NAME}/manifests/{}", image.manifest_digest);
        connection.small("DELETE", &path, "", b"", 202)?;
        // The configuration is the same in each round.
        for blob in &image.blobs {
            connection.small("DELETE", &format!("/v2/{NAME}/blobs/{}", blob.digest), "", b"", 202)?;
        }
        Ok(())
    }
}

/// Of a location, whether it has a host or not.
fn path_of(location: &str) -> &str {
    match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => location,
    }
}

impl Connection<'_> {
    fn head(&mut self, method: &str, path: &str, kind: &str, length: u64) -> Result<()> {
        let Registry { address, token } = self.registry;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n");
        for (name, value) in [
            ("Content-Type", kind.to_owned()),
            ("Accept", MANIFEST.to_owned()),
            ("Authorization", format!("Bearer {token}")),
        ] {
            let is_given = !(value.is_empty() || (name == "Authorization" && token.is_empty()));
            if is_given {
                head.extend([name, ": ", &value, "\r\n"]);
            }
        }
        head.push_str("\r\n");
        Ok(self.stream.get_mut().write_all(head.as_bytes())?)
    }

    fn small(&mut self, method: &str, path: &str, kind: &str, body: &[u8], expected: u16) -> Result<Head> {
        self.head(method, path, kind, body.len() as u64)?;
        self.stream.get_mut().write_all(body)?;
        self.answer(expected)
    }

    fn answer(&mut self, expected: u16) -> Result<Head> {
        let head = self.answer_head(expected)?;
        self.body(head.length, |_| Ok(()))?;
        Ok(head)
    }

    fn answer_head(&mut self, expected: u16) -> Result<Head> {
        let mut head = Head {
            status: 0,
            location: String::new(),
            length: 0,
        };
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if head.status == 0 {
                head.status = text
                    .split(' ')
                    .nth(1)
                    .and_then(|status| status.parse().ok())
                    .unwrap_or(0);
            } else if let Some((name, value)) = text.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "location" => value.trim().clone_into(&mut head.location),
                    "content-length" => head.length = value.trim().parse()?,
                    _ => {}
                }
            }
        }
        if head.status != expected {
            let mut said = Vec::new();
            self.body(head.length.min(4096), |piece| {
                said.extend_from_slice(piece);
                Ok(())
            })?;
            let said = String::from_utf8_lossy(&said);
            anyhow::bail!(
                "{} answers {}, not {expected}: {said}",
                self.registry.address,
                head.status
            );
        }
        Ok(head)
    }

    fn body(&mut self, length: u64, mut what: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.stream.read(&mut buffer[..most])?;
            ensure!(read > 0, "the answer ends {left} bytes early");
            what(&buffer[..read])?;
            left -= read as u64;
        }
        Ok(())
    }
}

/// The CNCF's registry, with nothing stored.
struct Peer {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Peer {
    fn up(place: &Path) -> Result<Self> {
        let dir = TempDir::with_prefix_in("registry-", place)?;
        // Free a moment ago; the registry has no way to say which one it took.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = json!({
            "version": "0.1",
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": {
                "cache": { "blobdescriptor": "inmemory" },
                "filesystem": { "rootdirectory": dir.path().join("data") },
            },
            "http": { "addr": address.to_string() },
        });
        // JSON is YAML.
        let file = dir.path().join("config.yml");
        fs::write(&file, config.to_string())?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?)
            .spawn()
            .context("cannot start docker-registry")?;
        let peer = Self {
            child,
            address,
            _dir: dir,
        };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
