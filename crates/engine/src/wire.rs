//! What the server and its launcher tell each other: one message per packet, with open files beside it.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use model::MAX_SECRET_BYTES;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    gvisor::Gvisor,
    launcher::Duty,
    sandbox::{Plan, Spent},
    secret_files::SecretFile,
};

/// Longest message, bytes. The layers of an image are at most 127 paths.
const LONGEST: usize = 128 << 10;
/// Most open files beside one message.
const MOST_FILES: usize = 6;
/// Goes up with every change of these messages, of what is in them and of what is kept in records: servers take over
/// launchers of their own version only.
pub const VERSION: u32 = 3;

/// From the server to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The first word of a server that takes over.
    TakeOver { version: u32, duty: Duty },
    /// With the files that become standard input, output and error, those from which the last two are read, and where
    /// there are files of secrets, the memory that holds their values.
    Start(Start),
    /// Files of secrets of an instance that has them, with the memory that holds their values.
    Renew {
        id: String,
        first_id: u32,
        secrets: Vec<SecretFile>,
    },
    /// Give up a start that has not been reported yet.
    Abort { id: String },
    /// Its end was taken note of.
    Forget { id: String },
    /// Go, and leave everything to the server.
    Leave,
    /// End everything at once.
    End,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The runtime's name of the container.
    pub(crate) id: String,
    /// Lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// The user and group on the machine that is root inside.
    pub(crate) first_id: u32,
    /// How our own sandbox is made. None: crun makes it of the bundle.
    pub(crate) plan: Option<Box<Plan>>,
    /// What runs it when it is of the first generation.
    #[serde(default)]
    pub(crate) gvisor: Option<Gvisor>,
    /// What else `/etc/hosts` calls 127.0.0.1: every container of an instance that has several.
    pub(crate) names: Vec<String>,
    /// Ports of 127.0.0.1 that its containers are known to use.
    pub(crate) ports: Vec<u16>,
    /// Made with the first container.
    pub(crate) volumes: Vec<VolumeSize>,
    /// Put into the volumes before the first container is made.
    pub(crate) secrets: Vec<SecretFile>,
}

/// A volume, with the most bytes that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum VolumeSize {
    /// Containers write it.
    Memory(u64),
    /// Files of a secret; containers read them.
    Secret(u64),
}

impl VolumeSize {
    /// Of files of secrets, each of which is there twice while it is replaced.
    pub(crate) fn of_secrets(files: usize) -> Self {
        Self::Secret((files * 2 * MAX_SECRET_BYTES) as u64)
    }
}

/// From the launcher to the server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It takes orders.
    Up,
    /// To a server that takes over, before `Up`: a container, with the files of `Keeping::held`.
    Held {
        id: String,
        pid: i32,
        /// If it has ended.
        end: Option<End>,
    },
    /// With a pidfd of the first process, its network namespace and, unless crun made it, what releases it. The process
    /// waits to be released.
    Created {
        id: String,
        pid: i32,
        /// Known of our own sandboxes.
        spent: Option<Spent>,
    },
    NotStarted {
        id: String,
        why: String,
    },
    Exited {
        id: String,
        end: End,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Code(i32),
    Signal(i32),
}

pub(crate) fn send(socket: impl AsFd, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > LONGEST || files.len() > MOST_FILES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("message of {} bytes, at most {LONGEST}", bytes.len()),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(files));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// None: the other side is gone.
pub(crate) fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    BYTES.with_borrow_mut(|bytes| receive_into(&socket, bytes))
}

std::thread_local! {
    /// Where a message comes to. Not made anew for each: it is far larger than most of them.
    static BYTES: RefCell<Vec<u8>> = RefCell::new(vec![0; LONGEST]);
}

fn receive_into<M: DeserializeOwned>(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut beside,
        RecvFlags::CMSG_CLOEXEC,
    );
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut files = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, files)))
}
