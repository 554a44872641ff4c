//! The server's end of its launcher: starting it, giving it orders, hearing its reports.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    launcher::{self, Duty},
    watched::watched,
    wire::{self, Order, Report},
};

/// How long a launcher may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// One launcher. When it is dropped the launcher ends everything and goes.
#[derive(Debug)]
pub(crate) struct Link {
    socket: AsyncFd<OwnedFd>,
    /// Counts the launchers of one engine.
    pub(crate) number: u64,
}

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("cannot start the launcher {}", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the launcher {} ended before it was ready", program.display())]
    Ended { program: PathBuf },
    #[error("the launcher {} was not ready within {} s", program.display(), PATIENCE.as_secs())]
    Late { program: PathBuf },
}

impl Link {
    /// Starts `program` as launcher and waits until it takes orders.
    pub(crate) async fn open(program: &Path, duty: &Duty, number: u64) -> Result<(Self, Child), LaunchError> {
        let spawn = || -> io::Result<(Self, Child)> {
            let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            let child = Command::new(program)
                .args(launcher::arguments(duty)?)
                .stdin(Stdio::from(its))
                .stdout(Stdio::null())
                .spawn()?;
            let socket = watched(ours)?;
            Ok((Self { socket, number }, child))
        };
        let program = program.to_owned();
        let (link, child) = spawn().map_err(|source| LaunchError::Spawn {
            program: program.clone(),
            source,
        })?;
        match timeout(PATIENCE, link.report()).await {
            Ok(Ok(Some((Report::Up, _)))) => Ok((link, child)),
            Ok(_) => Err(LaunchError::Ended { program }),
            Err(_) => Err(LaunchError::Late { program }),
        }
    }

    pub(crate) async fn order(&self, order: &Order, files: &[&OwnedFd]) -> io::Result<()> {
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.socket
            .async_io(Interest::WRITABLE, |socket| wire::send(socket, order, &files))
            .await
    }

    /// None: it is gone.
    pub(crate) async fn report(&self) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
        self.socket
            .async_io(Interest::READABLE, |socket| wire::receive(socket))
            .await
    }

    /// Lets it go without ending anything.
    pub(crate) fn close(&self) {
        // Gone already is as good.
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}
