//! Prints the report of the library beside it: what each scaling policy costs under each load.
//!
//! `make sim` runs it. When the numbers are meant to change, `make sim > sim/tests/golden/report.txt` keeps the new ones.

use std::io::Write as _;

fn main() -> anyhow::Result<()> {
    std::io::stdout().write_all(homerun_sim::report().as_bytes())?;
    Ok(())
}
