//! From zero to the first byte: through the ingress, of the bare program started by hand, and of others, in turns.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    by_hand::Hands,
    figure::{Measured, median, percentile},
    http,
    server::Homerun,
};

const ROUNDS: usize = 30;
/// Nothing happens before each start: a loop without a pause would hide what a start after idle costs.
const IDLE: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_secs(20);
/// Until what was parked anew after the last start is there: that begins two seconds after it.
const REFILL: Duration = Duration::from_millis(2700);
const PEER_ROUNDS: usize = 5;

/// Two figures are made of these rounds.
static PARKED: OnceLock<[Vec<f64>; 2]> = OnceLock::new();

fn parked() -> Result<&'static [Vec<f64>; 2]> {
    if PARKED.get().is_none() {
        let homerun = Homerun::up("100ms")?;
        let host = homerun.deploy("cold", &[])?;
        let program = program_of(&homerun, &host)?;
        let mut rounds = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            rounds[0].push(through_ingress(&homerun, &host, REFILL)?);
            thread::sleep(IDLE);
            rounds[1].push(bare(&program)?);
        }
        let _ = PARKED.set(rounds);
    }
    PARKED.get().context("just set")
}

pub(crate) fn parked_p50() -> Result<Measured> {
    let [ours, bare] = parked()?;
    Ok(Measured {
        value: median(ours) - median(bare),
        notes: vec![spread("through the ingress", ours), spread("bare exec", bare)],
        samples: vec![
            ("homerun ms".to_owned(), ours.clone()),
            ("bare ms".to_owned(), bare.clone()),
        ],
    })
}

pub(crate) fn parked_p99() -> Result<Measured> {
    let [ours, bare] = parked()?;
    Ok(Measured {
        value: percentile(ours, 99) - percentile(bare, 99),
        notes: vec![spread("through the ingress", ours), spread("bare exec", bare)],
        samples: Vec::new(),
    })
}

/// With nothing parked, beside crun by hand; podman and docker for comparison.
pub(crate) fn on_demand() -> Result<Measured> {
    let homerun = Homerun::up_with(&["--idle-retention=100ms", NOTHING_PARKED])?;
    let host = homerun.deploy("cold", &[])?;
    let program = program_of(&homerun, &host)?;
    let mut hands = Hands::new(&program, &homerun.make_dir("by-hand")?)?;
    let (mut ours, mut crun) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(through_ingress(&homerun, &host, IDLE)?);
        thread::sleep(IDLE);
        crun.push(hands.start("crun")?);
    }
    Ok(Measured {
        value: median(&ours) / median(&crun),
        notes: vec![
            spread("through the ingress", &ours),
            spread("crun run by hand", &crun),
            hands.note("podman", PEER_ROUNDS),
            hands.note("docker", PEER_ROUNDS),
        ],
        samples: vec![("homerun ms".to_owned(), ours), ("crun ms".to_owned(), crun)],
    })
}

pub(crate) fn gen1() -> Result<Measured> {
    let homerun = Homerun::up("100ms")?;
    let host = homerun.deploy("cold", &["--execution-environment=gen1"])?;
    let plain = homerun.deploy("plain", &[])?;
    let program = program_of(&homerun, &plain)?;
    let mut hands = Hands::new(&program, &homerun.make_dir("by-hand")?)?;
    let (mut ours, mut runsc) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        ours.push(through_ingress(&homerun, &host, REFILL)?);
        thread::sleep(IDLE);
        runsc.push(hands.start("runsc")?);
    }
    Ok(Measured {
        value: median(&ours) / median(&runsc),
        notes: vec![
            spread("gen1 through the ingress", &ours),
            spread("runsc run by hand", &runsc),
        ],
        samples: vec![("homerun ms".to_owned(), ours), ("runsc ms".to_owned(), runsc)],
    })
}

/// The demo's Flask app. Bare is the same program in the same files, by chroot into an instance of the same image.
pub(crate) fn flask() -> Result<Measured> {
    const ROUNDS: usize = 12;
    let homerun = Homerun::up("100ms")?;
    let layout = homerun.make_dir("flask")?;
    let image =
        PathBuf::from(std::env::var_os("HOMERUN_BENCH_RUNS").context("run bench/run")?).join("../../demo/image");
    let made = Command::new(&image)
        .arg("blue")
        .arg(&layout)
        .stdout(Stdio::null())
        .status()?;
    ensure!(made.success(), "{} makes no image", image.display());
    let name = "us-central1-docker.pkg.dev/my-project/bench/flask:1";
    homerun.client(&["images", "import", &layout.display().to_string(), name])?;
    let host = homerun.deploy_image("flask", name, &[])?;
    let base = homerun.deploy_image("base", name, &["--min-instances=1", "--no-cpu-throttling"])?;
    homerun.wait_until_served(&base)?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    homerun.wait_for_instances(1)?;
    let inside = *homerun.instance_processes().first().context("no process is seen")?;
    for _ in 0..ROUNDS {
        homerun.wait_for_instances(1)?;
        thread::sleep(REFILL);
        ours.push(answered(&homerun, &host)?);
        thread::sleep(IDLE);
        bare.push(bare_flask(inside)?);
    }
    Ok(Measured {
        value: median(&ours) / median(&bare),
        notes: vec![
            spread("through the ingress", &ours),
            spread("gunicorn by chroot", &bare),
        ],
        samples: vec![("homerun ms".to_owned(), ours), ("bare ms".to_owned(), bare)],
    })
}

/// No instance of these is ever started from a parked sandbox.
const NOTHING_PARKED: &str = "--parked=0";

fn spread(what: &str, millis: &[f64]) -> String {
    format!(
        "{what} p50 {:.2} ms, p99 {:.2} ms, of {}",
        median(millis),
        percentile(millis, 99),
        millis.len()
    )
}

/// The container's own program, so that all start the same bytes.
pub(crate) fn program_of(homerun: &Homerun, host: &str) -> Result<PathBuf> {
    homerun.wait_until_served(host)?;
    let process = *homerun
        .instance_processes()
        .first()
        .context("no process of the instance is seen")?;
    let program = homerun.dir().join("program");
    fs::copy(format!("/proc/{process}/exe"), &program).context("cannot copy the container's program")?;
    Ok(program)
}

/// Milliseconds of a request that finds no instance.
fn through_ingress(homerun: &Homerun, host: &str, idle: Duration) -> Result<f64> {
    homerun.wait_for_instances(0)?;
    thread::sleep(idle);
    answered(homerun, host)
}

fn answered(homerun: &Homerun, host: &str) -> Result<f64> {
    let answer = http::get(homerun.http, host, "/")?;
    ensure!(answer.status == 200, "a cold start is answered with {}", answer.status);
    Ok(millis(answer.first_byte))
}

fn bare(program: &Path) -> Result<f64> {
    let port = free_port()?;
    let mut command = Command::new(program);
    command.env_clear().env("PORT", port.to_string());
    bare_start(command, port)
}

fn bare_flask(inside: u32) -> Result<f64> {
    let port = free_port()?;
    // By its place: it is looked for along the PATH that it is given.
    let mut command = Command::new("/usr/sbin/chroot");
    command
        .arg(format!("/proc/{inside}/root"))
        .args(["/bin/sh", "-c"])
        .arg(format!(
            "cd /app && exec gunicorn --bind 127.0.0.1:{port} --workers 2 main:app"
        ))
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("APP_COLOR", "blue")
        .env("APP_VERSION", "1.0.0");
    bare_start(command, port)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn bare_start(mut command: Command, port: u16) -> Result<f64> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let first_byte = first_byte(address, began);
    // By SIGTERM, so that a server with workers ends them too.
    let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    let deadline = Instant::now() + Duration::from_secs(5);
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(millis(first_byte?))
}

fn first_byte(address: SocketAddr, began: Instant) -> Result<Duration> {
    let ask = || -> io::Result<usize> {
        let mut stream = TcpStream::connect(address)?;
        // While nobody listens at a port that the kernel gives away, a socket may be connected to itself.
        if stream.local_addr()? == address {
            return Ok(0);
        }
        write!(stream, "GET / HTTP/1.1\r\nHost: bare\r\nConnection: close\r\n\r\n")?;
        stream.read(&mut [0; 1024])
    };
    let mut told = String::from("it does not listen");
    while began.elapsed() < PATIENCE {
        match ask() {
            Ok(read) if read > 0 => return Ok(began.elapsed()),
            Ok(_) => "it closes without an answer".clone_into(&mut told),
            Err(error) => told = error.to_string(),
        }
        thread::sleep(Duration::from_micros(100));
    }
    bail!("no answer of the bare program within {PATIENCE:?}: {told}")
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
