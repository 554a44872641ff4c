//! What stands between a sandbox that is made and the start of its program.
//!
//! A parked instance waits in front of its gate. That it waits is a mark in its bundle, which outlives this process:
//! the mark goes before the gate opens, and to open a gate twice does nothing, so whoever finds no mark may open again.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::io::unix::AsyncFd;

/// The name of the mark in the bundle of an instance that has not been released.
const MARK: &str = "parked";

/// One instance's.
#[derive(Debug)]
pub(crate) struct Gate {
    way: Way,
    mark: PathBuf,
    open: AtomicBool,
    /// Whoever had it before may have opened it.
    doubtful: bool,
}

/// How the process that waits is told.
#[derive(Debug)]
pub(crate) enum Way {
    /// crun's: one byte into its fifo. It has to be removed then, or crun takes the instance for a created one.
    Fifo(PathBuf),
    /// Our own sandbox's: one byte into its socket. More than one is nobody's harm, it is closed by the program's start.
    Socket(AsyncFd<OwnedFd>),
}

/// Marks the instance of a bundle as parked.
pub(crate) fn mark(bundle: &Path) -> io::Result<()> {
    fs::File::create(bundle.join(MARK)).map(drop)
}

/// Whether it is.
pub(crate) fn is_marked(bundle: &Path) -> bool {
    bundle.join(MARK).exists()
}

impl Gate {
    pub(crate) fn new(way: Way, bundle: &Path) -> Self {
        Self {
            way,
            mark: bundle.join(MARK),
            open: AtomicBool::new(false),
            doubtful: false,
        }
    }

    /// One that another server has made, and perhaps opened.
    pub(crate) fn taken_over(way: Way, bundle: &Path, open: bool) -> Self {
        Self {
            open: AtomicBool::new(open),
            doubtful: true,
            ..Self::new(way, bundle)
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Lets the program run. Does not block.
    pub(crate) fn open(&self) -> io::Result<()> {
        if self.open.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        match fs::remove_file(&self.mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match self.pass_through() {
            // It was open.
            Err(_) if self.doubtful => {
                if let Way::Fifo(path) = &self.way {
                    let _ = fs::remove_file(path);
                }
                Ok(())
            }
            done => done,
        }
    }

    fn pass_through(&self) -> io::Result<()> {
        match &self.way {
            Way::Fifo(path) => {
                // The other end is open since before the instance was reported.
                let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a small flag");
                let mut fifo = fs::OpenOptions::new()
                    .write(true)
                    .custom_flags(nonblocking)
                    .open(path)?;
                io::Write::write_all(&mut fifo, &[0])?;
                fs::remove_file(path)
            }
            Way::Socket(socket) => {
                let socket = socket.get_ref();
                rustix::net::send(
                    socket,
                    &[0],
                    rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT,
                )?;
                Ok(())
            }
        }
    }
}

impl Gate {
    /// Until the process behind the open gate runs its program, or is gone; what crun made does not tell, and there it
    /// returns at once. Whether it told.
    pub(crate) async fn passed(&self) -> bool {
        match &self.way {
            Way::Fifo(_) => false,
            // The process closes its end by becoming the program.
            Way::Socket(socket) => socket.readable().await.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_gate_opens_once_and_takes_its_mark_away_first() {
        let bundle = tempfile::tempdir().expect("a directory");
        let fifo = bundle.path().join("exec.fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a fifo");
        mark(bundle.path()).expect("marked");
        let gate = Gate::new(Way::Fifo(fifo.clone()), bundle.path());
        // Nobody waits yet.
        assert!(gate.open().is_err());
        assert!(!bundle.path().join(MARK).exists());

        let gate = Gate::new(Way::Fifo(fifo.clone()), bundle.path());
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("small");
        let mut waiting = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nonblocking)
            .open(&fifo)
            .expect("opened");
        gate.open().expect("opened");
        gate.open().expect("open already");
        let mut all = Vec::new();
        waiting.read_to_end(&mut all).expect("read");
        assert_eq!(all, [0]);
        assert!(!fifo.exists());
    }
}
