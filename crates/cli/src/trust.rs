//! `trust`: the local certificate authority in this machine's trust store (Debian's place and command).

use std::io;
use std::path::Path;
use std::process::Command;

use clap::Args;

use crate::call::Server;
use crate::words::Global;
use crate::{Error, Outside, surroundings};

const STORE: &str = "/usr/local/share/ca-certificates";
const UPDATE: &str = "update-ca-certificates";

#[derive(Debug, Args)]
pub(crate) struct Trust {
    /// Take the certificate authority out again
    #[arg(long)]
    pub(crate) remove: bool,
}

pub(crate) fn run(outside: &mut Outside<'_>, global: &Global, trust: &Trust) -> Result<(), Error> {
    let server = Server::find(outside, global)?;
    let about = &server.about;
    let file = Path::new(STORE).join(format!("homerun-{}.crt", surroundings::short_id(&about.data_dir)));
    if trust.remove {
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                outside.say(&format!("{} is not there", file.display()));
                return Ok(());
            }
            Err(source) => return Err(failed(&file, source)),
        }
        refresh(&["--fresh"])?;
        outside.say(&format!("Removed {}", file.display()));
        return Ok(());
    }
    let authority = about.authority();
    let text = std::fs::read(&authority).map_err(|source| Error::File {
        path: authority.clone(),
        source,
    })?;
    if std::fs::read(&file).ok().as_ref() == Some(&text) {
        outside.say(&format!("{} is installed already", file.display()));
    } else {
        std::fs::write(&file, &text).map_err(|source| failed(&file, source))?;
        outside.say(&format!("Installed {}", file.display()));
    }
    refresh(&[])
}

/// Tells who may do this where that is what was missing.
fn failed(file: &Path, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::PermissionDenied {
        Error::Failed(format!(
            "cannot write {}: this needs root, run `sudo homerun trust`",
            file.display()
        ))
    } else if source.kind() == io::ErrorKind::NotFound {
        Error::Failed(format!("{STORE} does not exist: install the package ca-certificates"))
    } else {
        Error::File {
            path: file.to_owned(),
            source,
        }
    }
}

fn refresh(words: &[&str]) -> Result<(), Error> {
    let output = Command::new(UPDATE)
        .args(words)
        .output()
        .map_err(|source| Error::Program {
            program: UPDATE.to_owned(),
            source,
        })?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Error::Failed(format!(
            "{UPDATE} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }
}
