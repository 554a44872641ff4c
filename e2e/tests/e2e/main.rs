//! Every case in `cases/`, with the clients it is written for.
//!
//! `cargo nextest run -p homerun-e2e` needs the binary (`HOMERUN_BIN` or a debug build), root, crun, buildah, curl, the
//! registry's clients (skopeo, podman, docker), and for Google's half gcloud.

mod adoption;
mod apart;
mod auth;
mod bad_input;
mod bounds;
mod build_secrets;
mod buildpacks;
mod builds;
mod clients;
mod containers;
mod doctor;
mod durability;
mod egress;
mod faults;
mod generations;
mod half_open;
mod iam;
mod images;
mod index;
mod ingress;
mod invoker;
mod lab;
mod metadata;
mod mirror;
mod outside;
mod probes;
mod protocols;
mod proxy;
mod rebuilds;
mod recipes;
mod refused_builds;
mod room;
mod runtime;
mod scaling;
mod secrets;
mod settings;
mod start;
mod storage;
mod upgrade;
mod uploads;

use std::{collections::BTreeSet, fs, path::Path};

use homerun_e2e::{Client, Homerun, Session, run_case};

macro_rules! cases {
    ($($case:ident: $($test:ident by $client:ident),+;)+) => {
        $($(
            #[test]
            fn $test() {
                if let Err(error) = run_case(stringify!($case), Client::$client) {
                    panic!("{error:#}");
                }
            }
        )+)+

        #[test]
        fn every_case_is_run() {
            let run: BTreeSet<String> = [$(stringify!($case)),+].map(str::to_owned).into();
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
            let there: BTreeSet<String> = fs::read_dir(dir)
                .expect("there are cases")
                .map(|file| file.expect("readable").file_name().to_string_lossy().into_owned())
                .map(|name| name.trim_end_matches(".txt").to_owned())
                .collect();
            assert_eq!(there, run);
        }
    };
}

cases! {
    authentication: authentication_with_googles_gcloud by Google, authentication_with_ours by Homerun;
    service_identity: service_identity_with_googles_gcloud by Google, service_identity_with_ours by Homerun;
    artifacts: artifacts_with_googles_gcloud by Google, artifacts_with_ours by Homerun;
    hello: hello_with_googles_gcloud by Google, hello_with_ours by Homerun;
    tags: tags_with_googles_gcloud by Google, tags_with_ours by Homerun;
    traffic: traffic_with_googles_gcloud by Google, traffic_with_ours by Homerun;
}

/// What was acknowledged is there after SIGKILL, and the service answers again, by the instance it had.
#[test]
fn a_killed_homerun_loses_nothing_and_serves_again() {
    let mut homerun = Homerun::up().expect("starts");
    let run = |homerun: &Homerun, command: &str| {
        let mut session = Session::new(homerun, Client::Homerun).expect("a shell");
        let output = session.run(command).expect("ends");
        assert_eq!(output.status, 0, "{command}\n{}\n{}", output.text, homerun.log());
        output.text
    };
    let ask = "curl --fail $(homerun run services describe s --region=us-central1 --format='value(status.url)')";
    run(
        &homerun,
        "homerun run deploy s --image=us-docker.pkg.dev/cloudrun/container/hello \
         --region=us-central1 --set-env-vars=COLOR=red --allow-unauthenticated",
    );
    let before = run(&homerun, ask);
    homerun.kill_and_restart().expect("starts after a kill");
    let after = run(&homerun, ask);
    for answer in [&before, &after] {
        assert!(answer.contains(r#""colour":"red""#), "{answer}");
    }
    assert_eq!(before, after, "the same instance");
    homerun.stop().expect("ends in order");
}
