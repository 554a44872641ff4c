//! Keeps the table of rules as it was written. The kernel tells of every change of rules in the namespace; then what is
//! there is compared with what was there at first, and written again where it differs. Until that is done nothing
//! gets out that should not: without rules nothing leads to the relay but its own port, and the relay checks again.

use std::{io, os::fd::OwnedFd, path::PathBuf, time::Duration};

use rustix::net::{Protocol, RecvFlags, netlink, recv};
use serde_json::Value;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{
    ruleset::{self, Reached},
    say,
};
use crate::{netlink::listening_socket, watched::watched};

/// Changes come in several messages, and several changes at once.
const SETTLE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Rules {
    nft: PathBuf,
    id8: String,
    reached: Reached,
    changes: AsyncFd<OwnedFd>,
    right: Value,
}

impl Rules {
    /// Writes the table into the network namespace of the calling thread.
    pub(crate) fn write(nft: PathBuf, id8: String, reached: Reached) -> io::Result<Self> {
        /// `1 << (NFNLGRP_NFTABLES - 1)`
        const RULES: u32 = 1 << 6;
        let protocol: Protocol = netlink::NETFILTER;
        let changes = watched(listening_socket(Some(protocol), RULES)?)?;
        ruleset::write(&nft, &id8, &reached, false)?;
        let right = ruleset::read(&nft, &id8)?;
        Ok(Self {
            nft,
            id8,
            reached,
            changes,
            right,
        })
    }

    /// Restores the table for ever.
    pub(crate) async fn keep(self) -> io::Error {
        loop {
            if let Err(error) = self.changed().await {
                return error;
            }
            while let Err(error) = self.restore().await {
                say(format_args!("cannot restore the table of rules: {error}"));
                sleep(RETRY).await;
            }
        }
    }

    async fn changed(&self) -> io::Result<()> {
        let drain = |socket: &OwnedFd| {
            let mut buffer = [0; 8192];
            match recv(socket, &mut buffer[..], RecvFlags::empty()) {
                // Some were lost, so there were some.
                Ok(_) | Err(rustix::io::Errno::NOBUFS) => Ok(()),
                Err(error) => Err(io::Error::from(error)),
            }
        };
        self.changes.async_io(Interest::READABLE, drain).await?;
        sleep(SETTLE).await;
        while drain(self.changes.get_ref()).is_ok() {}
        Ok(())
    }

    async fn restore(&self) -> io::Result<()> {
        let (nft, id8, right) = (self.nft.clone(), self.id8.clone(), self.right.clone());
        let reached = self.reached.clone();
        let restored = tokio::task::spawn_blocking(move || -> io::Result<bool> {
            if ruleset::read(&nft, &id8).is_ok_and(|seen| seen == right) {
                return Ok(false);
            }
            ruleset::write(&nft, &id8, &reached, false)?;
            Ok(true)
        });
        if restored.await.map_err(io::Error::other)?? {
            say(format_args!("somebody changed the table of rules; it is restored"));
        }
        Ok(())
    }
}
