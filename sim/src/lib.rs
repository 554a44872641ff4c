//! Plays loads through the real slot pool and the real autoscaler in virtual time, and says what each policy costs.
//!
//! A [`Load`] says how many requests come in each millisecond, a [`Policy`] how a revision scales; [`replay`] runs both
//! against [`capacity`], with instances that take a while to start and requests that take a while to serve, and
//! returns an [`Outcome`]. A day takes about a second. Nothing here reads a clock: chance comes from a seed, so the
//! [`report`] is the same on every run, and the copy of it in `tests/golden` shows in review what a change costs.

mod chance;
mod load;
mod replay;
mod report;

pub use load::Load;
pub use replay::{Outcome, Policy, replay};
pub use report::report;
