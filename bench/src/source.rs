//! From source to a service that answers: what a change costs from its save, and what a deploy costs that changed nothing.
//!
//! The app is the tutorial's, Flask under gunicorn on Debian's Python, its packages from an index on loopback. By hand is
//! the same Dockerfile by `buildah build` with its layers kept and without any confinement, `buildah push` into the same
//! registry, and a deploy of that image.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    figure::{Measured, median, percentile},
    http,
    server::{Homerun, REGION},
};

const ROUNDS: usize = 7;
const PATIENCE: Duration = Duration::from_mins(1);
const BASE: &str = "us-central1-docker.pkg.dev/my-project/base/python:3.11";
const FROM: &str = "docker.io/library/python:3.12-slim";
const APP: &str = r#"from flask import Flask
app = Flask(__name__)
@app.route("/")
def home():
    return "MARK"
"#;

/// A Homerun that builds the app, and buildah beside it.
#[derive(Debug)]
struct Workshop {
    homerun: Homerun,
    index: Child,
    app: PathBuf,
    hand: PathBuf,
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = self.index.kill();
        let _ = self.index.wait();
    }
}

/// Runs one of the repository's scripts; what it prints.
fn script(name: &str, arguments: &[&Path]) -> Result<String> {
    let runs = std::env::var_os("HOMERUN_BENCH_RUNS").context("run bench/run")?;
    let program = PathBuf::from(runs).join("../..").join(name);
    run(Command::new(&program).args(arguments))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Workshop {
    fn open() -> Result<Self> {
        let wheels = script("scripts/wheels", &[])?;
        let mut index = Command::new("python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(wheels.trim())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("no python3")?;
        let mut said = String::new();
        BufReader::new(index.stdout.take().context("a pipe was asked for")?).read_line(&mut said)?;
        let port = said.split(" port ").nth(1).and_then(|rest| rest.split(' ').next());
        let url = format!("http://127.0.0.1:{}/simple", port.context("no port")?);
        let homerun = Homerun::up_with(&["--idle-retention=1s", &format!("--build-index=pip={url}")])?;
        let (layout, app, hand) = (
            homerun.make_dir("base")?,
            homerun.make_dir("app")?,
            homerun.make_dir("hand")?,
        );
        script("demo/base", &[&layout])?;
        homerun.client(&["images", "import", &layout.display().to_string(), BASE])?;
        homerun.client(&["images", "mirror", FROM, BASE])?;
        fs::write(app.join("requirements.txt"), "flask>=3.0.0\ngunicorn>=21.2.0\n")?;
        fs::write(
            app.join("Dockerfile"),
            format!(
                "FROM {FROM}\nWORKDIR /app\nCOPY requirements.txt .\nRUN pip install --no-cache-dir -r requirements.txt\n\
                 COPY main.py .\nEXPOSE 8080\n\
                 CMD [\"gunicorn\", \"--bind\", \"0.0.0.0:8080\", \"--workers\", \"2\", \"main:app\"]\n"
            ),
        )?;
        fs::write(hand.join("pip.conf"), format!("[global]\nindex-url = {url}\n"))?;
        let workshop = Self {
            homerun,
            index,
            app,
            hand,
        };
        // It makes a name of the path, and temporary directories have capitals.
        let mut pull = workshop.buildah();
        let id = run(pull
            .current_dir(workshop.homerun.dir())
            .args(["pull", "oci:base:latest"]))?;
        run(workshop.buildah().args(["tag", id.trim(), FROM]))?;
        Ok(workshop)
    }

    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver=overlay", "--root"])
            .arg(self.hand.join("storage"));
        command.arg("--runroot").arg(self.hand.join("run"));
        command
    }

    /// Saves the app with another line.
    fn save(&self, mark: &str) -> Result<()> {
        Ok(fs::write(self.app.join("main.py"), APP.replace("MARK", mark))?)
    }

    fn deploy(&self, service: &str, from: &str, what: &str) -> Result<()> {
        let words = ["run", "deploy", service, from, what, "--region", REGION];
        self.homerun
            .client(&[&words[..], &["--allow-unauthenticated", "--quiet"]].concat())?;
        Ok(())
    }

    fn deploy_source(&self) -> Result<()> {
        self.deploy("app", "--source", &self.app.display().to_string())
    }

    fn by_hand(&self, mark: &str) -> Result<()> {
        let conf = format!("{}:/etc/pip.conf:ro", self.hand.join("pip.conf").display());
        let mut build = self.buildah();
        build.args([
            "build",
            "--isolation=chroot",
            "--layers",
            "--pull-never",
            "--volume",
            &conf,
            "--tag",
            "app",
        ]);
        run(build.arg(&self.app))?;
        let token = self.homerun.token()?;
        let mut push = self.buildah();
        push.args(["push", "--quiet", "--tls-verify=false", "--creds"]);
        push.arg(format!("oauth2accesstoken:{token}"));
        push.args([
            "app".to_owned(),
            format!("docker://{}/my-project/bench/app:{mark}", self.homerun.api),
        ]);
        run(&mut push)?;
        let image = format!("us-central1-docker.pkg.dev/my-project/bench/app:{mark}");
        self.deploy("hand", "--image", &image)
    }

    fn host(&self, service: &str) -> Result<String> {
        let described = self.homerun.describe(service)?;
        let url = described["status"]["url"].as_str().context("the service has no URL")?;
        Ok(url.trim_start_matches("http://").to_owned())
    }

    /// Until a service answers with a line.
    fn answers(&self, host: &str, mark: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = http::get(self.homerun.http, host, "/")?;
            if answer.status == 200 && answer.body == mark.as_bytes() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{host} does not answer {mark} after {PATIENCE:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn note(what: &str, seconds: &[f64]) -> String {
    format!(
        "{what} p50 {:.2} s, least {:.2}, most {:.2}, of {}",
        median(seconds),
        percentile(seconds, 0),
        percentile(seconds, 100),
        seconds.len()
    )
}

/// From the save of a changed line until the service answers with it.
pub(crate) fn rebuild() -> Result<Measured> {
    let workshop = Workshop::open()?;
    workshop.save("first")?;
    let began = Instant::now();
    workshop.deploy_source()?;
    let first = began.elapsed().as_secs_f64();
    let began = Instant::now();
    workshop.by_hand("first")?;
    let first_by_hand = began.elapsed().as_secs_f64();
    let (ours, hand) = (workshop.host("app")?, workshop.host("hand")?);
    let (mut by_us, mut by_hand) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mark = format!("ours-{round}");
        let began = Instant::now();
        workshop.save(&mark)?;
        workshop.deploy_source()?;
        workshop.answers(&ours, &mark)?;
        by_us.push(began.elapsed().as_secs_f64());
        let mark = format!("hand-{round}");
        let began = Instant::now();
        workshop.save(&mark)?;
        workshop.by_hand(&mark)?;
        workshop.answers(&hand, &mark)?;
        by_hand.push(began.elapsed().as_secs_f64());
    }
    Ok(Measured {
        value: median(&by_us) / median(&by_hand),
        notes: vec![
            note("run deploy --source", &by_us),
            note("buildah build, buildah push, run deploy --image", &by_hand),
            format!("the first deploy, without layers of an earlier build: {first:.2} s, by hand {first_by_hand:.2} s"),
        ],
        samples: vec![("source s".to_owned(), by_us), ("by hand s".to_owned(), by_hand)],
    })
}

/// A deploy of a source that was built before, of the deploy of its image.
pub(crate) fn unchanged() -> Result<Measured> {
    let workshop = Workshop::open()?;
    workshop.save("same")?;
    workshop.deploy_source()?;
    let image = workshop.homerun.describe("app")?;
    let image = image["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    let image = image.context("the service has no image")?.to_owned();
    let (mut source, mut digest) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        workshop.save("same")?;
        let began = Instant::now();
        workshop.deploy_source()?;
        source.push(began.elapsed().as_secs_f64() * 1000.0);
        let began = Instant::now();
        workshop.deploy("app", "--image", &image)?;
        digest.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    let builds = workshop
        .homerun
        .client(&["builds", "list", "--region", REGION, "--format", "json"])?;
    let builds: serde_json::Value = serde_json::from_slice(&builds.stdout)?;
    let same = builds.as_array().map(|all| {
        all.iter()
            .all(|build| build["results"]["images"][0]["digest"] == builds[0]["results"]["images"][0]["digest"])
    });
    ensure!(same == Some(true), "they are not builds of one image");
    Ok(Measured {
        value: median(&source),
        notes: vec![
            format!(
                "of a source p50 {:.0} ms, most {:.0} ms, of {ROUNDS}",
                median(&source),
                percentile(&source, 100)
            ),
            format!("of its image p50 {:.0} ms", median(&digest)),
        ],
        samples: vec![("source ms".to_owned(), source), ("image ms".to_owned(), digest)],
    })
}
