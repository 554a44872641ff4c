//! How the end of an instance is called.

use model::ExitCause;

use crate::gvisor;

pub(super) fn not_started(why: impl Into<String>) -> ExitCause {
    ExitCause::NotStarted(why.into())
}

/// The runtime only finds out that a file is no program once the instance is released, and then says so as the
/// instance itself: on its standard error, with an exit code of 1.
pub(super) fn never_executed(cause: ExitCause, last_lines: &[String]) -> ExitCause {
    match (&cause, last_lines) {
        (ExitCause::Code(1), [only]) if only.starts_with("exec container process ") => {
            ExitCause::NotStarted(only.clone())
        }
        (ExitCause::Code(1), [.., last]) if last.starts_with(gvisor::NOT_STARTED) => {
            ExitCause::NotStarted(last[gvisor::NOT_STARTED.len()..].to_owned())
        }
        _ => cause,
    }
}
