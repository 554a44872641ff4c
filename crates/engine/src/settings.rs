//! What an engine is told when it is made.

use std::{path::PathBuf, time::Duration};

use image::Images;
use model::{LogLine, StartRecord};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::calls::Call;

/// What an engine is made of.
#[derive(Debug)]
pub struct Settings {
    /// Only told to people who look into `/run/homerun`.
    pub data_dir: PathBuf,
    /// 8 lower-case hex digits of the data directory; in the name of everything that the machine shares.
    pub id8: String,
    pub images: Images,
    /// Where lines of output go. Lines that find it full are dropped and counted.
    pub log: mpsc::Sender<LogLine>,
    /// Where records of starts go, once for each instance that became ready. One that finds it full is dropped.
    pub starts: mpsc::Sender<StartRecord>,
    /// A binary that calls [`crate::launcher_main`] when its first argument is [`crate::LAUNCHER`].
    pub launcher: PathBuf,
    /// `crun`, or a path to it.
    pub runtime: PathBuf,
    /// How long instances are kept without a server, for the next one to take over. Zero: they end with their server.
    pub adoption: Duration,
    /// Where instances may call.
    pub egress: Egress,
    /// What instances reach of Homerun itself. None: nothing.
    pub inside: Option<Inside>,
    /// Who makes the sandboxes of gen2.
    pub maker: Maker,
    /// Directories in which gVisor's `runsc` is looked for, as in `PATH`.
    pub gvisor_path: std::ffi::OsString,
    /// The first user and group id that instances run with; [`crate::FIRST_ID`] unless something else has these.
    pub first_id: u32,
}

/// Where instances may call, as far as the machine allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Nowhere but to [`Inside`].
    Off,
    /// The public internet, and a resolver.
    Internet,
}

/// Who makes a sandbox of gen2 from its OCI configuration. Both make the same one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Maker {
    /// This crate; for what it cannot do, crun.
    #[default]
    Own,
    Crun,
}

/// What instances reach of Homerun itself: its metadata server and its ingress.
#[derive(Debug)]
pub struct Inside {
    pub doors: Doors,
    /// Where their connections go. One that finds it full waits outside.
    pub calls: mpsc::Sender<Call>,
    /// The certificate, in PEM, of the authority that signs for the ingress: programs are told to trust it.
    pub authority: String,
}

/// Under which names and ports instances find the ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doors {
    /// Every name below it leads there.
    pub domain: String,
    pub http: u16,
    pub https: u16,
    /// Which of the two is in the URLs of services.
    pub public: u16,
}
