//! What many services cost that nobody asks: in requests to another one, in memory, in CPU.
//!
//! Ten thousand deploys would take longer than anyone waits, and would measure deploys. One service is deployed as
//! anyone does it; then, with Homerun stopped, its rows in the database are written again under other names.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rusqlite::Connection;

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
    thread::sleep(Duration::from_secs(5));
    let before = cpu_seconds(homerun.pid())?;
    thread::sleep(WATCHED);
    let used = cpu_seconds(homerun.pid())? - before;
    let percent = used / WATCHED.as_secs_f64() * 100.0;
    Ok(Measured {
        value: percent,
        notes: vec![format!("{:.0} ms in {} s", used * 1000.0, WATCHED.as_secs())],
        samples: vec![("percent".to_owned(), vec![percent])],
    })
}

/// The same Homerun with so many more services like `name`, at most 1,000 in each region.
fn copied(homerun: Homerun, name: &str, copies: usize) -> Result<Homerun> {
    const REGIONS: [&str; 10] = [
        "us-central1",
        "us-east1",
        "us-east4",
        "us-west1",
        "us-west2",
        "europe-west1",
        "europe-west2",
        "europe-west3",
        "asia-east1",
        "asia-northeast1",
    ];
    let stopped = homerun.stop()?;
    let mut database = Connection::open(stopped.data_dir().join("homerun.db"))?;
    let transaction = database.transaction()?;
    let service: String =
        transaction.query_row("SELECT body FROM services WHERE name = ?1", [name], |row| row.get(0))?;
    let revision: String = transaction.query_row("SELECT body FROM revisions WHERE service = ?1", [name], |row| {
        row.get(0)
    })?;
    let first_region = "us-central1";
    let mut made = BTreeMap::<&str, usize>::new();
    for number in 0..copies {
        let region = REGIONS[number % REGIONS.len()];
        *made.entry(region).or_default() += 1;
        let copy = format!("{name}{number}");
        // Names stand in quotes, revision names begin with the service's; the image is named in another way.
        let rename = |body: &str| {
            body.replace(&format!("\"{name}\""), &format!("\"{copy}\""))
                .replace(&format!("\"{name}-"), &format!("\"{copy}-"))
                .replace(first_region, region)
        };
        let (service, revision) = (rename(&service), rename(&revision));
        let revision_name = field(&revision, "name")?;
        transaction.execute("INSERT INTO services VALUES (?1, ?2, ?3)", (region, &copy, &service))?;
        transaction.execute(
            "INSERT INTO revisions VALUES (?1, ?2, ?3, ?4)",
            (region, &copy, &revision_name, &revision),
        )?;
    }
    ensure!(made.values().all(|count| *count <= 1000), "more than a region takes");
    transaction.commit()?;
    drop(database);
    stopped.up()
}

/// The revision's own name in its stored form.
fn field(revision: &str, name: &str) -> Result<String> {
    let revision: serde_json::Value = serde_json::from_str(revision)?;
    let text = revision["key"][name].as_str().context("a revision has a name")?;
    Ok(text.to_owned())
}
