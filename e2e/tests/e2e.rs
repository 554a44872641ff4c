//! Every case in `cases/`, with the clients it is written for.
//!
//! `cargo nextest run -p homerun-e2e` needs the binary (`HOMERUN_BIN` or a debug build), root, crun, curl, and for
//! Google's half gcloud.

use std::{collections::BTreeSet, fs, path::Path};

use homerun_e2e::{Client, run_case};

macro_rules! cases {
    ($($case:ident: $($test:ident by $client:ident),+;)+) => {
        $($(
            #[test]
            fn $test() {
                if let Err(error) = run_case(stringify!($case), Client::$client) {
                    panic!("{error:?}");
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
    hello: hello_with_googles_gcloud by Google, hello_with_ours by Homerun;
    traffic: traffic_with_googles_gcloud by Google, traffic_with_ours by Homerun;
}
