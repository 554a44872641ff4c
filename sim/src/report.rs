//! The loads and policies that are compared, and the table of what came of them.

use std::{fmt::Write as _, time::Duration};

use capacity::kpa::Settings;
use model::Concurrency;

use crate::{Load, Policy, replay};

const SEED: u64 = 20;

fn policies(load: Load) -> Vec<Policy> {
    let concurrency = |requests| Concurrency::new(requests).expect("1 to 1000");
    let default = Policy {
        name: "default (concurrency 80, kept 15 min)",
        concurrency: concurrency(80),
        min: 0,
        max: 100,
        idle_retention: Duration::from_mins(15),
        cold_start: Duration::from_millis(200),
        service: Duration::from_millis(20),
        kpa: None,
    };
    let knative = |target| {
        let asked = model::Kpa {
            target_centi: Some(target * 100),
            ..model::Kpa::default()
        };
        Some(Settings::of(&asked, target, 0, 100))
    };
    let ten = Policy {
        name: "concurrency 10",
        concurrency: concurrency(10),
        ..default
    };
    let one = Policy {
        name: "concurrency 1",
        concurrency: concurrency(1),
        ..default
    };
    match load {
        Load::Burst { .. } | Load::Constant { .. } => vec![default, ten, one],
        Load::Spike { .. } => vec![
            default,
            ten,
            Policy {
                name: "concurrency 10, minimum 2",
                min: 2,
                ..ten
            },
            Policy {
                name: "concurrency 10, maximum 1",
                max: 1,
                ..ten
            },
            Policy {
                name: "concurrency 10, start-up 2 s",
                cold_start: Duration::from_secs(2),
                ..ten
            },
            Policy {
                name: "concurrency 10, parked (5 ms)",
                cold_start: Duration::from_millis(5),
                ..ten
            },
            Policy {
                name: "concurrency 10, Knative's KPA",
                kpa: knative(10),
                ..ten
            },
        ],
        Load::Day { .. } => vec![
            default,
            Policy {
                name: "concurrency 80, kept 3 s",
                idle_retention: Duration::from_secs(3),
                ..default
            },
            Policy {
                name: "concurrency 80, minimum 1",
                min: 1,
                ..default
            },
            one,
            Policy {
                name: "concurrency 80, Knative's KPA",
                kpa: knative(80),
                ..default
            },
        ],
    }
}

/// What each policy costs under each load, as text.
pub fn report() -> String {
    let loads = [
        Load::Burst { requests: 81 },
        Load::Constant { per_second: 100 },
        Load::Spike { low: 20, high: 500 },
        Load::Day { peak_per_second: 20 },
    ];
    let mut text = String::from(
        "Requests take 20 ms and start-ups 200 ms in the mean, unless a policy says otherwise, each half to one and a\n\
         half of that by chance. Waits are for a slot, in ms, over all requests.\n",
    );
    for load in loads {
        let mut line = |args: std::fmt::Arguments<'_>| {
            text.write_fmt(args).expect("a string takes any write");
            text.push('\n');
        };
        line(format_args!(""));
        line(format_args!(
            "{:<38} {:>9} {:>10} {:>5} {:>7} {:>7} {:>7} {:>5} {:>5} {:>5}",
            load.name(),
            "requests",
            "instance-s",
            "most",
            "starts",
            "waited",
            "refused",
            "p50",
            "p99",
            "max"
        ));
        for policy in policies(load) {
            let outcome = replay(load, policy, SEED);
            line(format_args!(
                "{:<38} {:>9} {:>10} {:>5} {:>7} {:>7} {:>7} {:>5} {:>5} {:>5}",
                policy.name,
                outcome.requests,
                outcome.instance_milliseconds / 1000,
                outcome.most,
                outcome.starts,
                outcome.waited,
                outcome.refused,
                outcome.wait(50).as_millis(),
                outcome.wait(99).as_millis(),
                outcome.wait(100).as_millis(),
            ));
        }
    }
    text
}
