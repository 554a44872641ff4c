//! From one process to the next, without a client noticing: what they tell each other on a socket that the new one finds
//! as its standard input.
//!
//! ```text
//! old                                         new
//!  starts it ────────────────────────────────▶ reads flags, looks at the machine
//!                                  Hello ◀──── waits
//!  stops control, gives up store and instances
//!  Go, with the listening sockets ────────────▶ opens store, takes instances over, serves
//!                                  Ready ◀────
//!  ends its requests; Busy as they end ───────▶ leaves those instances their CPU
//!  ends
//! ```

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ingress::listen::Open;
use model::{InstanceId, RevisionKey};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

/// Set in a process that takes over from its parent.
const VARIABLE: &str = "HOMERUN_HANDOVER";
/// Of these messages.
const VERSION: u32 = 1;
/// The most of a message, bytes.
const LONGEST: usize = 1 << 20;
/// The most files beside one (`SCM_MAX_FD`).
const MOST_FILES: usize = 253;
/// How long a new binary may take to say that it is one.
const HELLO_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to serve.
const READY_PATIENCE: Duration = Duration::from_mins(1);

/// The requests of the old process: how many in which instance.
pub(crate) type Busy = Vec<(RevisionKey, InstanceId, u32)>;

#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Hello {
        version: String,
    },
    /// With so many sockets of the API, of http and of https.
    Go {
        sockets: [usize; 3],
        busy: Busy,
    },
    Ready,
    Busy(Busy),
}

/// Of our messages, and of those to the launcher, which goes on: only who has both can take over.
fn version() -> String {
    format!("{VERSION}.{}", engine::LAUNCHER_VERSION)
}

/// The listening sockets of one Homerun.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) api: TcpListener,
    pub(crate) ingress: Open,
}

impl Sockets {
    pub(crate) fn share(&self) -> io::Result<Self> {
        Ok(Self {
            api: self.api.try_clone()?,
            ingress: self.ingress.share()?,
        })
    }
}

/// What a Homerun begins with that takes over from another one.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(crate) sockets: Sockets,
    /// The old one's requests, as they end.
    pub(crate) busy: watch::Receiver<Arc<Busy>>,
}

/// The new process's end.
#[derive(Debug)]
pub(crate) struct Heir(Arc<OwnedFd>);

impl Heir {
    /// None: nobody hands over.
    pub(crate) fn of_environment() -> io::Result<Option<Self>> {
        match std::env::var(VARIABLE) {
            Err(_) => Ok(None),
            Ok(said) if said == version() => {
                let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
                Ok(Some(Self(Arc::new(socket))))
            }
            Ok(said) => Err(io::Error::other(format!(
                "the one that serves hands over in version {said}, this one takes over in {}; stop it and start this one",
                version()
            ))),
        }
    }

    /// Says that we are there, and waits for what is handed over. Blocks.
    pub(crate) fn inherit(&self) -> io::Result<Inheritance> {
        send(&self.0, &Word::Hello { version: version() }, &[])?;
        let (Word::Go { sockets, busy }, mut files) = receive(&self.0)? else {
            return Err(io::Error::other("the old process says what was not asked"));
        };
        let [api, http, https] = sockets;
        if api != 1 || files.len() != api + http + https {
            return Err(io::Error::other(
                "the old process hands over other sockets than it says",
            ));
        }
        let listeners = |files: Vec<OwnedFd>| files.into_iter().map(TcpListener::from).collect::<Vec<_>>();
        let ingress = Open {
            https: listeners(files.split_off(api + http)),
            http: listeners(files.split_off(api)),
        };
        let api = TcpListener::from(files.pop().ok_or(io::ErrorKind::UnexpectedEof)?);
        let (sender, receiver) = watch::channel(Arc::new(busy));
        let socket = Arc::clone(&self.0);
        std::thread::Builder::new().name("handover".to_owned()).spawn(move || {
            while let Ok((Word::Busy(busy), _)) = receive(&socket) {
                sender.send_replace(Arc::new(busy));
            }
            // It is gone, and its requests with it.
            sender.send_replace(Arc::default());
        })?;
        Ok(Inheritance {
            sockets: Sockets { api, ingress },
            busy: receiver,
        })
    }

    /// The old process ends when it has answered what it has begun.
    pub(crate) fn ready(&self) -> io::Result<()> {
        send(&self.0, &Word::Ready, &[])
    }
}

/// The old process's end. A new one that is not `ready` is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Successor {
    socket: OwnedFd,
    child: Child,
    is_ready: bool,
}

impl Successor {
    /// Starts `binary` with our own words and waits until it is there. Blocks.
    pub(crate) fn start(binary: &Path) -> io::Result<Self> {
        let words: Vec<OsString> = std::env::args_os().skip(1).collect();
        let (socket, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(binary)
            .args(words)
            .env(VARIABLE, version())
            .stdin(Stdio::from(its))
            .spawn()?;
        let successor = Self {
            socket,
            child,
            is_ready: false,
        };
        match successor.word(HELLO_PATIENCE)? {
            Word::Hello { version: said } if said == version() => Ok(successor),
            Word::Hello { .. } | Word::Go { .. } | Word::Ready | Word::Busy(_) => {
                Err(io::Error::other("the new binary takes over in another way"))
            }
        }
    }

    fn word(&self, patience: Duration) -> io::Result<Word> {
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(patience))?;
        let (word, _) = receive(&self.socket).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                io::Error::other("the new process ended before it was ready")
            } else if error.kind() == io::ErrorKind::WouldBlock {
                io::Error::other("the new process was not ready in time")
            } else {
                error
            }
        })?;
        Ok(word)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Hands the sockets over and waits until it serves. Blocks.
    pub(crate) fn go(&mut self, sockets: &Sockets, busy: Busy) -> io::Result<()> {
        let Sockets { api, ingress } = sockets;
        let all = std::iter::once(api).chain(&ingress.http).chain(&ingress.https);
        let files: Vec<BorrowedFd<'_>> = all.map(std::os::fd::AsFd::as_fd).collect();
        let go = Word::Go {
            sockets: [1, ingress.http.len(), ingress.https.len()],
            busy,
        };
        send(&self.socket, &go, &files)?;
        match self.word(READY_PATIENCE)? {
            Word::Ready => {
                self.is_ready = true;
                Ok(())
            }
            Word::Hello { .. } | Word::Go { .. } | Word::Busy(_) => {
                Err(io::Error::other("the new process makes no sense"))
            }
        }
    }

    /// Which of our requests are left.
    pub(crate) fn tell(&self, busy: Busy) -> io::Result<()> {
        send(&self.socket, &Word::Busy(busy), &[])
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.is_ready {
            // Ended already is as good.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn send(socket: &OwnedFd, word: &Word, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(word)?;
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many sockets"));
    }
    sendmsg(
        socket.as_fd(),
        &[IoSlice::new(&bytes)],
        &mut beside,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn receive<W: DeserializeOwned>(socket: &OwnedFd) -> io::Result<(W, Vec<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut beside,
        RecvFlags::CMSG_CLOEXEC,
    );
    let received = match received {
        Ok(received) if received.bytes > 0 => received,
        Ok(_) | Err(rustix::io::Errno::CONNRESET) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => return Err(error.into()),
    };
    let mut files = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    Ok((serde_json::from_slice(&bytes[..received.bytes])?, files))
}

/// Tells systemd, where it started us (`sd_notify(3)`).
pub(crate) fn notify(state: &str) {
    use std::os::{linux::net::SocketAddrExt as _, unix::net};
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = || -> io::Result<()> {
        let address = match address.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => net::SocketAddr::from_abstract_name(name)?,
            None => net::SocketAddr::from_pathname(&address)?,
        };
        net::UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(error) = told() {
        tracing::warn!(%error, "cannot tell systemd");
    }
}
