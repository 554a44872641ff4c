//! What the tutorial's lab is built from, offline: a Python to start from, and its packages as an index on loopback. Both
//! are made once by scripts of this repository, and kept below the user's cache directory.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Makes the image of `demo/base`, as an OCI layout: Debian's Python with pip.
///
/// # Errors
/// What the script says.
pub fn python_base(dir: &Path) -> Result<()> {
    let said = Command::new(repository().join("demo/base")).arg(dir).output()?;
    ensure!(
        said.status.success(),
        "demo/base: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

/// A server of `scripts/wheels`' directory.
#[derive(Debug)]
pub struct Wheels {
    server: Child,
    /// What pip calls its index-url.
    pub url: String,
}

impl Wheels {
    /// # Errors
    /// What the script says, or when there is no python3.
    pub fn serve() -> Result<Self> {
        let said = Command::new(repository().join("scripts/wheels")).output()?;
        ensure!(
            said.status.success(),
            "scripts/wheels: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        let dir = String::from_utf8(said.stdout)?;
        let mut server = Command::new("python3")
            .args([
                "-u",
                "-m",
                "http.server",
                "0",
                "--bind",
                "127.0.0.1",
                "--directory",
                dir.trim(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("no python3")?;
        let output = server.stdout.take().context("a pipe was asked for")?;
        let mut wheels = Self {
            server,
            url: String::new(),
        };
        // "Serving HTTP on 127.0.0.1 port 40133 (http://127.0.0.1:40133/) ..."
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next());
        wheels.url = format!(
            "http://127.0.0.1:{}/simple",
            port.with_context(|| format!("no port in {line:?}"))?
        );
        Ok(wheels)
    }
}

impl Drop for Wheels {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
