//! Files that the runtime waits for.
#![expect(unsafe_code, reason = "registering a file has no safe form")]

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a non-blocking file for waiting until it is readable or writable.
pub(crate) fn watched(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and stays so and the same until it is dropped with the registration.
    Ok(unsafe { AsyncFd::register(file) }?)
}
