//! The server's end of its launcher: starting it, giving it orders, hearing its reports.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, socketpair};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    adoption::Held,
    launcher::{self, Duty},
    watched::watched,
    wire::{self, Order, Report},
};

/// How long a launcher may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// One launcher. When it is dropped the launcher keeps what runs for a while, if it was told so, and goes.
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

    /// Takes over the launcher of a server that is gone, with what it has kept. None: there is none that suits.
    pub(crate) async fn take_over(path: &Path, duty: &Duty, number: u64) -> Option<(Self, Vec<Held>)> {
        let knock = || -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            let socket = watched(socket)?;
            Ok(Self { socket, number })
        };
        let taking = async {
            let link = knock()?;
            let order = Order::TakeOver {
                version: wire::VERSION,
                duty: duty.clone(),
            };
            link.order(&order, &[]).await?;
            let mut all = Vec::new();
            loop {
                match link.report().await? {
                    Some((Report::Up, _)) => return Ok((link, all)),
                    Some((Report::Held { id, end, .. }, files)) => all.push(Held { id, end, files }),
                    Some(_) | None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                }
            }
        };
        match timeout(PATIENCE, taking).await {
            Ok(Ok(taken)) => Some(taken),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no launcher to take over");
                None
            }
            Err(_) => {
                tracing::warn!("the launcher of the last server does not answer, and is ended");
                None
            }
        }
    }

    /// Has the launcher end everything at once, when nobody waits for it.
    pub(crate) fn end(&self) {
        // One that is gone has ended everything.
        let _ = wire::send(self.socket.get_ref(), &Order::End, &[]);
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
