//! An engine of its own for each test, an image with the guest program, and the questions that tests ask.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    num::NonZeroU16,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use homerun_engine::{Egress, Engine, FIRST_ID, Inside, Maker, Settings};
use image::{Digest, Images, Reference};
use model::{
    ContainerSpec, CpuAllocation, Exit, Instance, InstanceId, InstanceSpec, InstanceState, LogLine, Observed, Probe,
    Region, ResolvedVar, RevisionKey, RevisionName, Sandbox, ServiceKey, ServiceName, StartRecord,
};
use serde_json::json;
use tokio::sync::{mpsc, watch};

pub(crate) const PORT: u16 = 8080;
/// Longer than anything takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Lab {
    pub(crate) engine: Arc<Engine>,
    pub(crate) observed: watch::Receiver<Arc<Observed>>,
    pub(crate) lines: mpsc::Receiver<LogLine>,
    passed_over: Vec<LogLine>,
    pub(crate) starts: mpsc::Receiver<StartRecord>,
    pub(crate) id8: String,
    pub(crate) image: String,
    data: tempfile::TempDir,
}

/// What is left on the machine of an id: processes, groups, mounts, directories.
pub(crate) fn leftovers(id8: &str) -> Vec<String> {
    let name = format!("homerun-{id8}");
    let mut found = Vec::new();
    let run = Path::new("/run/homerun").join(id8);
    if run.exists() {
        found.push(run.display().to_string());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    found.extend(mounts.lines().filter(|m| m.contains(id8)).map(str::to_owned));
    for line in mounts.lines() {
        let (mount, kind) = line.split_once(" - ").expect("a mount has a type");
        if kind.starts_with("cgroup") {
            let point = mount.split(' ').nth(4).expect("a mount has a point");
            let group = Path::new(point).join(&name);
            if group.exists() {
                found.push(group.display().to_string());
            }
        }
    }
    for process in fs::read_dir("/proc").expect("proc").flatten() {
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        // A zombie is nothing but a number that its parent has not read yet.
        if groups.contains(&name) && !status.contains("State:\tZ") {
            found.push(format!("{} in {name}", process.path().display()));
        }
    }
    found
}

pub(crate) fn fresh_id8() -> String {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .subsec_nanos();
    format!("{:08x}", nanos ^ std::process::id().rotate_left(16))
}

/// The guest program, built once per target directory.
pub(crate) fn guest() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/main.rs");
    let mut text = fs::read(&source).expect("the guest's source");
    text.extend(fs::read(source.with_file_name("dump.rs")).expect("its second file"));
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = place.join(format!("guest-{}", &Digest::of(&text).hex()[..16]));
    if !built.exists() {
        let part = place.join(format!(
            "guest-{}-{:?}.part",
            std::process::id(),
            std::thread::current().id()
        ));
        let status = Command::new("rustc")
            .args(["--edition=2024", "-Copt-level=1", "-Ctarget-feature=+crt-static", "-o"])
            .arg(&part)
            .arg(&source)
            .status()
            .expect("rustc runs");
        assert!(status.success(), "the guest does not build");
        fs::rename(&part, &built).expect("rename the guest");
    }
    built
}

/// A layer of links, each from a path to a target.
pub(crate) fn links(links: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, target) in links {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o777);
        header.set_entry_type(tar::EntryType::Symlink);
        archive.append_link(&mut header, path, target).expect("a link");
    }
    archive.into_inner().expect("an archive")
}

/// Layers and configuration of an image, before it is stored.
pub(crate) struct Recipe {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: serde_json::Value,
}

impl Default for Recipe {
    fn default() -> Self {
        let program = fs::read(guest()).expect("the guest");
        let passwd = b"root:x:0:0::/:/bin/sh\napp:x:1000:1001::/home:/bin/sh\n";
        let first: [(&str, &[u8], u32, u64); 2] = [("guest", &program, 0o755, 0), ("etc/passwd", passwd, 0o644, 0)];
        let second: [(&str, &[u8], u32, u64); 1] = [("home/own", b"mine", 0o600, 1000)];
        Self {
            layers: vec![layer(&first), layer(&second)],
            config: json!({"Entrypoint": ["/guest"], "Cmd": ["serve"], "Env": ["FROM=image", "PATH=/bin"]}),
        }
    }
}

pub(crate) fn layer(files: &[(&str, &[u8], u32, u64)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content, mode, owner) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_entry_type(tar::EntryType::Regular);
        archive.append_data(&mut header, path, *content).expect("an entry");
    }
    archive.into_inner().expect("an archive")
}

impl Recipe {
    pub(crate) async fn store(self, images: &Images) -> String {
        let blob = async |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            let size = bytes.len();
            images.put_blob(digest, Bytes::from(bytes)).await.expect("a blob");
            (digest, size)
        };
        let mut layers = Vec::new();
        let mut ids = Vec::new();
        for bytes in self.layers {
            let (digest, size) = blob(bytes).await;
            ids.push(digest);
            layers.push(json!({"mediaType": image::media_type::OCI_LAYER, "digest": digest, "size": size}));
        }
        let config = json!({
            "architecture": image::machine_architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let (digest, size) = blob(config.to_string().into_bytes()).await;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": image::media_type::OCI_MANIFEST,
            "config": {"mediaType": image::media_type::OCI_CONFIG, "digest": digest, "size": size},
            "layers": layers,
        })
        .to_string();
        let reference: Reference = "example.com/lab/guest:latest".parse().expect("a reference");
        images
            .put_manifest(
                reference.repository(),
                &reference.version(),
                image::media_type::OCI_MANIFEST,
                manifest.as_bytes(),
            )
            .await
            .expect("a manifest")
            .to_string()
    }
}

pub(crate) async fn open(data: &Path, id8: &str, log: mpsc::Sender<LogLine>) -> (Engine, Images) {
    let (starts, _) = mpsc::channel(1);
    let path = std::env::var_os("PATH").unwrap_or_default();
    open_with(data, id8, log, starts, (Egress::Off, None), Maker::Own, &path).await
}

async fn open_with(
    data: &Path,
    id8: &str,
    log: mpsc::Sender<LogLine>,
    starts: mpsc::Sender<StartRecord>,
    (egress, inside): (Egress, Option<Inside>),
    maker: Maker,
    gvisor_path: &OsStr,
) -> (Engine, Images) {
    let images = Images::open(&data.join("images")).expect("an image store");
    let settings = Settings {
        data_dir: data.to_owned(),
        id8: id8.to_owned(),
        images: images.clone(),
        log,
        starts,
        launcher: env!("CARGO_BIN_EXE_engine-launcher").into(),
        runtime: "crun".into(),
        adoption: Duration::ZERO,
        egress,
        inside,
        maker,
        gvisor_path: gvisor_path.to_owned(),
        first_id: FIRST_ID,
    };
    (Engine::open(settings).await.expect("an engine"), images)
}

impl Lab {
    pub(crate) async fn open() -> Self {
        Self::with(Recipe::default()).await
    }

    pub(crate) async fn with(recipe: Recipe) -> Self {
        Self::made(recipe, Egress::Off, Maker::Own).await
    }

    /// For tests in a network of their own.
    pub(crate) async fn with_egress(recipe: Recipe, egress: Egress) -> Self {
        Self::made(recipe, egress, Maker::Own).await
    }

    pub(crate) async fn with_inside(recipe: Recipe, egress: Egress, inside: Inside) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::made_with(recipe, (egress, Some(inside)), Maker::Own, &path).await
    }

    pub(crate) async fn made_by(maker: Maker, recipe: Recipe) -> Self {
        Self::made(recipe, Egress::Off, maker).await
    }

    /// One that looks for runsc in the directories of `path`.
    pub(crate) async fn with_gvisor(recipe: Recipe, path: &OsStr) -> Self {
        Self::made_with(recipe, (Egress::Off, None), Maker::Own, path).await
    }

    async fn made(recipe: Recipe, egress: Egress, maker: Maker) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::made_with(recipe, (egress, None), maker, &path).await
    }

    async fn made_with(recipe: Recipe, reach: (Egress, Option<Inside>), maker: Maker, gvisor_path: &OsStr) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let (log, lines) = mpsc::channel(1000);
        let (started, starts) = mpsc::channel(4096);
        let id8 = fresh_id8();
        let (engine, images) = open_with(data.path(), &id8, log, started, reach, maker, gvisor_path).await;
        let image = recipe.store(&images).await;
        Self {
            observed: engine.observe(),
            engine: Arc::new(engine),
            lines,
            passed_over: Vec::new(),
            starts,
            id8,
            image,
            data,
        }
    }

    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// 1 CPU, 256 MiB, and a startup probe with 20 s of patience.
    pub(crate) fn spec(&self, arguments: &[&str]) -> InstanceSpec {
        spec(&self.image, arguments)
    }

    pub(crate) async fn start(&self, spec: InstanceSpec) -> InstanceId {
        let id = spec.id.clone();
        self.engine.start(spec).await.expect("accepted");
        id
    }

    pub(crate) async fn until(&mut self, id: &InstanceId, right: impl Fn(&InstanceState) -> bool) -> Instance {
        let mut observed = self.observed.clone();
        let found = observed.wait_for(|observed| {
            observed
                .instances
                .get(id)
                .is_some_and(|instance| right(&instance.state))
        });
        let found = tokio::time::timeout(PATIENCE, found).await;
        match found {
            Ok(observed) => observed.expect("the engine lives").instances[id].clone(),
            Err(tokio::time::error::Elapsed { .. }) => panic!("{id}: {:?}", self.observed.borrow().instances.get(id)),
        }
    }

    /// Panics with the exit when it stops instead.
    pub(crate) async fn ready(&mut self, spec: InstanceSpec) -> InstanceId {
        let id = self.start(spec).await;
        let seen = self
            .until(&id, |state| {
                matches!(state, InstanceState::Ready | InstanceState::Stopped(_))
            })
            .await;
        assert_eq!(seen.state, InstanceState::Ready);
        id
    }

    pub(crate) async fn exit(&mut self, id: &InstanceId) -> Exit {
        let seen = self.until(id, |state| matches!(state, InstanceState::Stopped(_))).await;
        let InstanceState::Stopped(exit) = seen.state else {
            panic!("{:?}", seen.state);
        };
        exit
    }

    /// One request by a thread of its own, as the ingress does it.
    pub(crate) async fn get(&self, id: &InstanceId, path: &str) -> std::io::Result<String> {
        let (engine, id, path) = (Arc::clone(&self.engine), id.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || request(engine.connect(&id)?, &path))
            .await
            .expect("no panic")
    }

    pub(crate) async fn text(&self, id: &InstanceId, path: &str) -> String {
        self.get(id, path)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The same, as one that is served with a request.
    pub(crate) async fn text_busy(&self, id: &InstanceId, path: &str) -> String {
        self.engine.activity(id, model::Activity::Busy);
        self.text(id, path).await
    }

    pub(crate) async fn line(&mut self, right: impl Fn(&LogLine) -> bool) -> LogLine {
        let search = async {
            loop {
                let line = self.lines.recv().await.expect("the log is open");
                if right(&line) {
                    return line;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the line in time")
    }

    /// As [`Lab::line`], for lines that come in any order: those that were passed over are looked at again.
    pub(crate) async fn kept_line(&mut self, right: impl Fn(&LogLine) -> bool) -> LogLine {
        if let Some(at) = self.passed_over.iter().position(&right) {
            return self.passed_over.remove(at);
        }
        let search = async {
            loop {
                let line = self.lines.recv().await.expect("the log is open");
                if right(&line) {
                    return line;
                }
                self.passed_over.push(line);
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the line in time")
    }

    /// Shuts down and proves that nothing is left.
    pub(crate) async fn close(self) {
        self.engine.shutdown(Duration::from_secs(2)).await;
        assert_eq!(leftovers(&self.id8), [""; 0]);
    }
}

pub(crate) fn request(socket: OwnedFd, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::from(socket);
    // Waits for the connection too: a blocking write to a connecting socket does.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => Err(std::io::Error::other(format!("no answer: {answer:?}"))),
    }
}

pub(crate) fn spec(image: &str, arguments: &[&str]) -> InstanceSpec {
    // Unique within an engine, which is all that an id has to be.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut id = [0; 12];
    id[..4].copy_from_slice(&std::process::id().to_be_bytes());
    id[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    InstanceSpec {
        id: InstanceId::new(id),
        of: RevisionKey {
            service: ServiceKey {
                region: Region::parse("us-central1").expect("a region"),
                name: ServiceName::parse("guest").expect("a name"),
            },
            name: RevisionName::parse("guest-00001-abc").expect("a name"),
        },
        container: ContainerSpec {
            name: String::new(),
            image: image.to_owned(),
            command: Vec::new(),
            args: arguments.iter().map(|word| (*word).to_owned()).collect(),
            working_dir: None,
            env: vec![ResolvedVar {
                name: "PORT".to_owned(),
                value: PORT.to_string(),
            }],
            cpu_millis: 1000,
            memory_bytes: 256 << 20,
            startup_probe: Some(Probe {
                period: 20,
                timeout: 1,
                ..Probe::implicit(NonZeroU16::new(PORT).expect("not zero"))
            }),
            liveness_probe: None,
            readiness_probe: None,
            mounts: Vec::new(),
            depends_on: Vec::new(),
        },
        sidecars: Vec::new(),
        port: NonZeroU16::new(PORT).expect("not zero"),
        volumes: Vec::new(),
        secrets: model::Revealed::default(),
        startup_cpu_boost: false,
        cpu_allocation: CpuAllocation::Instance,
        sandbox: Sandbox::Gen2,
    }
}

/// Runs `work` on a thread of its own in the network of an instance, as soon as that has a process.
pub(crate) async fn inside_network<T: Send + 'static>(id: &InstanceId, work: impl FnOnce() -> T + Send + 'static) -> T {
    let process = async {
        loop {
            if let Some(process) = process_of(id) {
                return process;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let process = tokio::time::timeout(PATIENCE, process)
        .await
        .expect("a process in time");
    inside(fs::File::open(process.join("ns/net")).expect("its network"), work).await
}

/// Runs `work` on a thread of its own in a network.
pub(crate) async fn inside<T: Send + 'static>(network: fs::File, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), kind).expect("moved");
        work()
    });
    tokio::task::spawn_blocking(move || thread.join().expect("no panic"))
        .await
        .expect("no panic")
}

/// The folder in `/proc` of the guest of an instance.
pub(crate) fn process_of(id: &InstanceId) -> Option<PathBuf> {
    let processes = fs::read_dir("/proc").expect("proc").flatten();
    let mut paths = processes.map(|process| process.path());
    paths.find(|path| {
        let groups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let program = fs::read_link(path.join("exe")).unwrap_or_default();
        groups.contains(id.as_str()) && program.ends_with("guest")
    })
}

pub(crate) fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().collect()
}
