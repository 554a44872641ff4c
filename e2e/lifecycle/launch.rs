//! `launcher`: becomes the process that the image was started for, with the layers' programs in its path.

use std::{fs, os::unix::process::CommandExt as _, process::Command};

use crate::{Failure, at};

pub(crate) fn launch(name: &str) -> Result<(), Failure> {
    let text = fs::read_to_string("/layers/config/metadata.toml").map_err(at(82, "read the processes"))?;
    let metadata: toml::Table = toml::from_str(&text).map_err(at(82, "read the processes"))?;
    let process = metadata["processes"]
        .as_array()
        .and_then(|all| all.iter().find(|process| process["type"].as_str() == Some(name)))
        .ok_or_else(|| at(82, "launch")(format!("there is no process {name}")))?;
    let words: Vec<&str> = process["command"]
        .as_array()
        .map(|words| words.iter().filter_map(|word| word.as_str()).collect())
        .unwrap_or_default();
    let mut path = Vec::new();
    for buildpack in fs::read_dir("/layers").map_err(at(82, "read the layers"))?.flatten() {
        for layer in fs::read_dir(buildpack.path()).into_iter().flatten().flatten() {
            path.push(layer.path().join("bin").display().to_string());
        }
    }
    path.push(
        std::env::var("PATH")
            .unwrap_or_default()
            .trim_start_matches("/cnb/process:")
            .to_owned(),
    );
    let (program, arguments) = words.split_first().ok_or_else(|| at(82, "launch")("no command"))?;
    // The shell looks for it in the new path.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec \"$0\" \"$@\"", program])
        .args(arguments)
        .env("PATH", path.join(":"))
        .current_dir("/workspace");
    Err(at(82, "become the process")(command.exec()))
}
