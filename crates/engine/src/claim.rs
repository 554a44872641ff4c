//! The directory of one Homerun below `/run`, and the proof of being its owner.
//!
//! ```text
//! /run/homerun/<id8>/owner         locked (flock) by the live owner; holds its process id and data directory
//!                   /launcher      the launcher's socket, for the server that comes after a dead one
//!                   /calls         the server's socket, where the relay hands over calls of instances to Homerun
//!                   /runtime/      the container runtime's own state
//!                   /bundles/<id>/ one instance: config.json, pid, log, and a record (0700: environments hold secrets)
//!                   (where /run is no memory, runtime and bundles are a tmpfs each: no environment lies on a disk)
//!                   /box/          where each starting instance mounts its root, seen by itself alone
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock, statfs},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

/// Types of file systems in memory, as statfs(2) gives them: tmpfs and ramfs.
const IN_MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6];

/// Where every Homerun of this machine has its directory.
pub(crate) const RUN: &str = "/run/homerun";

/// Whether a text is 8 lower-case hex digits.
pub(crate) fn is_id8(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The paths in it; says nothing about whether they exist.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    pub(crate) fn of(id8: &str) -> Self {
        Self(Path::new(RUN).join(id8))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn owner(&self) -> PathBuf {
        self.0.join("owner")
    }

    /// Where a launcher without a server waits for the next one.
    pub(crate) fn launcher(&self) -> PathBuf {
        self.0.join("launcher")
    }

    /// Where the relay brings calls of instances to the server.
    pub(crate) fn calls(&self) -> PathBuf {
        self.0.join("calls")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }

    pub(crate) fn bundles(&self) -> PathBuf {
        self.0.join("bundles")
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.bundles().join(id)
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.bundle(id).join("log")
    }

    /// Where the launcher, and nobody else, sees the volumes of an instance.
    pub(crate) fn volumes(&self, id: &str) -> PathBuf {
        self.all_volumes().join(id)
    }

    pub(crate) fn all_volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.0.join("box")
    }

    pub(crate) fn merged(&self) -> PathBuf {
        self.place().join(crate::rootfs::MERGED)
    }

    /// Makes what is below it.
    pub(crate) fn furnish(&self) -> io::Result<()> {
        let directory = |path: PathBuf, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(&path);
        directory(self.runtime(), 0o700)?;
        directory(self.bundles(), 0o700)?;
        directory(self.all_volumes(), 0o711)?;
        directory(self.place(), 0o711)?;
        for held in [self.runtime(), self.bundles()] {
            if !is_memory(&held)? {
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                mount("homerun", &held, "tmpfs", flags, Some(c"mode=0700"))?;
            }
        }
        Ok(())
    }

    /// Takes away what [`Self::furnish`] mounted, with all that is in it.
    pub(crate) fn unmount(&self) {
        for held in [self.runtime(), self.bundles()] {
            // Not mounted, or not there: as good.
            let _ = unmount(&held, UnmountFlags::DETACH);
        }
    }

    /// The last thing that the runtime wrote into its log about an instance: it writes errors only.
    pub(crate) fn complaint(&self, id: &str) -> Option<String> {
        let log = fs::read_to_string(self.log(id)).ok()?;
        let last = log.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
        // The one complaint of crun about a container's program that does not say which.
        match last.strip_prefix("open executable: ") {
            Some(why) => Some(format!("cannot execute {}: {why}", self.program(id)?)),
            None => Some(last.to_owned()),
        }
    }

    /// The first word of what the bundle starts.
    fn program(&self, id: &str) -> Option<String> {
        let config = fs::read(self.bundle(id).join("config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&config).ok()?;
        config["process"]["args"][0].as_str().map(str::to_owned)
    }

    /// Forgets one instance. Nothing there is success.
    pub(crate) fn remove_instance(&self, id: &str) {
        // What cannot be removed is tried again by the next sweep.
        let _ = fs::remove_dir_all(self.bundle(id));
        let _ = fs::remove_dir_all(self.runtime().join(id));
        // Empty here: what is mounted on it elsewhere goes with the directory.
        let _ = fs::remove_dir_all(self.volumes(id));
    }
}

/// How to take a directory that somebody else holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    Not,
    /// An owner that signed and lives is not waited for, one that only cleans up after a dead one is.
    ForCleaner(Duration),
    ForAnyone(Duration),
}

/// While it lives, nobody else owns the directory.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) dir: RunDir,
    file: File,
}

impl Claim {
    /// Takes the directory. None: it is somebody else's.
    pub(crate) fn take(id8: &str, wait: Wait) -> io::Result<Option<Self>> {
        let dir = RunDir::of(id8);
        let begin = Instant::now();
        loop {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(dir.path())?;
            let file = match OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(dir.owner())
            {
                Ok(file) => file,
                // Its last owner removed the directory just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let same = fs::metadata(dir.owner())
                        .is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino()));
                    if same {
                        return Ok(Some(Self { dir, file }));
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                    let give_up = match wait {
                        Wait::Not => true,
                        Wait::ForCleaner(patience) => begin.elapsed() >= patience || has_live_owner(&dir),
                        Wait::ForAnyone(patience) => begin.elapsed() >= patience,
                    };
                    if give_up {
                        return Ok(None);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Says who owns it.
    pub(crate) fn sign(&mut self, data_dir: &Path) -> io::Result<()> {
        self.unsign()?;
        let own = std::process::id();
        writeln!(self.file, "{own} {}", data_dir.display())
    }

    /// Says that whoever signed it is dead.
    pub(crate) fn unsign(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()
    }

    /// Removes the directory and gives it up.
    pub(crate) fn remove(self) -> io::Result<()> {
        match fs::remove_dir_all(self.dir.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Whether files in it are in memory.
fn is_memory(directory: &Path) -> io::Result<bool> {
    Ok(IN_MEMORY.contains(&i128::from(statfs(directory)?.f_type)))
}

fn has_live_owner(dir: &RunDir) -> bool {
    let text = fs::read_to_string(dir.owner()).unwrap_or_default();
    let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}
