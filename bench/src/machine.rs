//! On which machine, and where the numbers are kept.

use std::{env, fs, path::PathBuf, thread};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::figure::{Figure, Measured};

/// Writes `<date>-<machine>.json` into the folder of runs.
pub(crate) fn keep(measured: &[(&Figure, Measured)]) -> Result<PathBuf> {
    let var = |name: &str| env::var(name).with_context(|| format!("{name} is not set: run bench/run"));
    let cpu = cpu();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut figures = Map::new();
    for (figure, measured) in measured {
        let samples: Map<String, Value> = measured
            .samples
            .iter()
            .map(|(name, values)| {
                let rounded: Vec<f64> = values.iter().map(|value| (value * 1000.0).round() / 1000.0).collect();
                (name.clone(), json!(rounded))
            })
            .collect();
        figures.insert(
            figure.name.to_owned(),
            json!({
                "about": figure.about,
                "value": (measured.value * 1000.0).round() / 1000.0,
                "goal": figure.goal.to_string(),
                "met": figure.goal.is_met_by(measured.value),
                "notes": measured.notes,
                "samples": samples,
            }),
        );
    }
    let date = var("HOMERUN_BENCH_DATE")?;
    let run = json!({
        "date": date,
        "commit": var("HOMERUN_BENCH_COMMIT")?,
        "machine": {"cpu": cpu, "cores": cores, "kernel": first_line("/proc/sys/kernel/osrelease")},
        "figures": figures,
    });
    let dir = PathBuf::from(var("HOMERUN_BENCH_RUNS")?);
    fs::create_dir_all(&dir)?;
    let file = dir.join(format!("{date}-{}-{cores}.json", slug(&cpu)));
    fs::write(&file, format!("{run:#}\n"))?;
    Ok(file)
}

fn cpu() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| {
        line.strip_prefix("model name")?
            .split_once(':')
            .map(|(_, model)| model.trim())
    });
    model.unwrap_or(env::consts::ARCH).to_owned()
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Small letters, digits, and one dash for anything else.
fn slug(text: &str) -> String {
    let words: Vec<String> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("-")
}

#[cfg(test)]
mod tests {
    use super::slug;

    #[test]
    fn slugs() {
        assert_eq!(slug("AMD EPYC 7B13 (64-Core)"), "amd-epyc-7b13-64-core");
    }
}
