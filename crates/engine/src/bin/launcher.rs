//! The launcher alone, as `engine-launcher engine-launcher DUTY`, the way the server calls it. The tests of this crate use it; the
//! product's binary calls the same function.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(word), Some(duty)) if word == homerun_engine::LAUNCHER => {
            ExitCode::from(homerun_engine::launcher_main(&duty))
        }
        (Some(word), Some(duty)) if word == homerun_engine::EGRESS => {
            ExitCode::from(homerun_engine::egress_main(&duty))
        }
        (Some(word), None) if word == homerun_engine::BUILDER => ExitCode::from(homerun_engine::builder_main()),
        _ => ExitCode::from(64),
    }
}
