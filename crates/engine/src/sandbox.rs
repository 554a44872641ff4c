//! Our own maker of sandboxes: reads the configuration that `bundle` makes, as crun does, and makes of it the same
//! thing in less time. What it cannot read it refuses, and crun makes it.
//!
//! ```text
//! plan       the configuration's text, read; a pure function
//! nursery    in the launcher: starts the makers and hears from them
//!   maker      child of the launcher: groups, root file system; enters the user namespace, and
//!     inside     its child, the first process of the sandbox: network, mounts, privileges. Then it waits to be
//!                released, and becomes the program
//! ```
//!
//! The maker is one process with one thread on purpose: a single thread that moves itself from group to group does not
//! wait for the other CPUs to notice, which costs a process that is moved 7 to 15 ms on an idle machine.

mod confined;
mod filter;
mod inside;
mod maker;
mod mounts;
mod nursery;
mod plan;

pub(crate) use self::{
    confined::{enter, leave, own_keyring},
    inside::furnish_builder,
    maker::Spent,
    nursery::{Heard, Infant, Nursery, Request},
    plan::Plan,
};
