//! What many services cost that nobody asks: in requests to another one, in memory, in CPU.
//!
//! Ten thousand deploys would take longer than anyone waits, and would measure deploys. One service is deployed as
//! anyone does it; then, with Homerun stopped, its rows in the database are written again under other names.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    figure::{Measured, median},
    memory,
    proxy::{ONE_THAT_TAKES_ALL, cpu_seconds},
    server::{HELLO, Homerun},
    wrk,
};

const ROUNDS: usize = 7;
const SECONDS: u32 = 2;
const CONNECTIONS: u32 = 64;

pub(crate) fn ten_thousand() -> Result<Measured> {
    let alone = Homerun::up("15m")?;
    let among = Homerun::up("15m")?;
    let mut hosts = Vec::new();
    for homerun in [&alone, &among] {
        hosts.push(homerun.deploy("bench", &ONE_THAT_TAKES_ALL)?);
        homerun.deploy("other", &[])?;
    }
    let among = copied(among, "other", 10_000)?;
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for ((homerun, host), rates) in [&alone, &among].into_iter().zip(&hosts).zip(&mut rates) {
            homerun.wait_until_served(host)?;
            let url = format!("http://{}/", homerun.http);
            let load = wrk::load(&url, host, CONNECTIONS, SECONDS, None)?;
            if round > 0 {
                rates.push(load.requests_per_second);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
    let [alone, among] = &rates;
    Ok(Measured {
        value: median(among) / median(alone),
        notes: vec![format!(
            "alone {:.0}/s, among 10,000 {:.0}/s, medians of {ROUNDS}",
            median(alone),
            median(among)
        )],
        samples: vec![
            ("alone requests/s".to_owned(), rates[0].clone()),
            ("among 10,000 requests/s".to_owned(), rates[1].clone()),
        ],
    })
}

pub(crate) fn memory() -> Result<Measured> {
    let homerun = Homerun::up("1s")?;
    homerun.deploy("other", &[])?;
    let homerun = copied(homerun, "other", 1000)?;
    thread::sleep(Duration::from_secs(5));
    let value = memory::of_tree(homerun.pid())?;
    Ok(Measured {
        value,
        notes: vec![format!("the server alone {:.1} MiB", memory::resident(homerun.pid())?)],
        samples: vec![("MiB".to_owned(), vec![value])],
    })
}

pub(crate) fn idle_cpu() -> Result<Measured> {
    const WATCHED: Duration = Duration::from_secs(20);
    let homerun = Homerun::up("15m")?;
    homerun.deploy_image("other", HELLO, &["--min-instances=1"])?;
    let homerun = copied(homerun, "other", 200)?;
    homerun.wait_for_instances(201)?;
    // Idle is what it is when everything is parked that is to be, a few in a second.
    let mut parked = None;
    for _ in 0..60 {
        thread::sleep(Duration::from_secs(5));
        let now = homerun.parked();
        if parked.replace(now) == Some(now) {
            break;
        }
    }
    let before = cpu_seconds(homerun.pid())?;
    thread::sleep(WATCHED);
    let used = cpu_seconds(homerun.pid())? - before;
    let percent = used / WATCHED.as_secs_f64() * 100.0;
    Ok(Measured {
        value: percent,
        notes: vec![format!(
            "{:.0} ms in {} s, {} sandboxes parked",
            used * 1000.0,
            WATCHED.as_secs(),
            parked.unwrap_or_default()
        )],
        samples: vec![("percent".to_owned(), vec![percent])],
    })
}

/// Writes the rows anew: the arguments are the database, the service, and how many. At most 1,000 in each region. Names
/// stand in quotes, revision names begin with the service's; the image is named in another way.
const COPY: &str = r#"
import json, sqlite3, sys
file, name, copies = sys.argv[1], sys.argv[2], int(sys.argv[3])
regions = ["us-central1", "us-east1", "us-east4", "us-west1", "us-west2",
           "europe-west1", "europe-west2", "europe-west3", "asia-east1", "asia-northeast1"]
database = sqlite3.connect(file)
service, = database.execute("SELECT body FROM services WHERE name = ?", [name]).fetchone()
revision, = database.execute("SELECT body FROM revisions WHERE service = ?", [name]).fetchone()
for number in range(copies):
    region, copy = regions[number % len(regions)], f"{name}{number}"
    def rename(body):
        body = body.replace(f'"{name}"', f'"{copy}"').replace(f'"{name}-', f'"{copy}-')
        return body.replace("us-central1", region)
    mine, its = rename(service), rename(revision)
    database.execute("INSERT INTO services VALUES (?, ?, ?)", [region, copy, mine])
    database.execute("INSERT INTO revisions VALUES (?, ?, ?, ?)", [region, copy, json.loads(its)["key"]["name"], its])
database.commit()
"#;

/// The same Homerun with so many more services like `name`.
fn copied(homerun: Homerun, name: &str, copies: usize) -> Result<Homerun> {
    let stopped = homerun.stop()?;
    let written = Command::new("python3")
        .args(["-c", COPY])
        .arg(stopped.data_dir().join("homerun.db"))
        .args([name, &copies.to_string()])
        .output()
        .context("cannot run python3")?;
    ensure!(
        written.status.success(),
        "no copies were written: {}",
        String::from_utf8_lossy(&written.stderr)
    );
    stopped.up()
}
