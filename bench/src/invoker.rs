//! What it costs to know who calls: the same container as an open service and as a private one, round by round.

use std::thread;

use anyhow::{Context as _, Result};

use crate::{
    figure::{Measured, median},
    proxy::{ONE_THAT_TAKES_ALL, PAUSE, ROUNDS, SECONDS, measured},
    server::Homerun,
    wrk,
};

const CONNECTIONS: u32 = 64;

/// CPU of a request with an identity token, of one to the open service without. What part of it is the token's way to the
/// container shows where the open service gets one as well.
pub(crate) fn authenticated_request() -> Result<Measured> {
    let homerun = Homerun::up("15m")?;
    let open = homerun.deploy("open", &ONE_THAT_TAKES_ALL)?;
    let private = {
        let mut flags = ONE_THAT_TAKES_ALL.to_vec();
        flags.push("--no-allow-unauthenticated");
        homerun.deploy("private", &flags)?
    };
    homerun.wait_until_served(&open)?;
    let token = homerun.identity_token()?;
    let bearer = format!("Authorization: Bearer {token}");
    let url = format!("http://{}/", homerun.http);
    let [open, private] = [open, private].map(|host| format!("Host: {host}"));
    let ways = [
        ("open", vec![open.clone()]),
        ("private", vec![private, bearer.clone()]),
        ("open with a token", vec![open, bearer]),
    ];
    let mut columns = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        for ((name, headers), column) in ways.iter().zip(&mut columns) {
            let load = || wrk::load_with(&url, headers, CONNECTIONS, SECONDS, None);
            let found = measured(homerun.pid(), load).with_context(|| format!("to the {name} service"))?;
            // The first opens connections and warms caches.
            if round > 0 {
                column.push(found.cpu_micros_per_request);
            }
            thread::sleep(PAUSE);
        }
    }
    let [open, private, carried] = columns.each_ref().map(|column| median(column));
    Ok(Measured {
        value: private / open,
        notes: vec![format!(
            "open {open:.1} us, private {private:.1} us, open with a token {carried:.1} us, medians of {ROUNDS}"
        )],
        samples: ways
            .iter()
            .map(|(name, _)| format!("{name} CPU us/request"))
            .zip(columns)
            .collect(),
    })
}
