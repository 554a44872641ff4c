//! The life of an instance that another server has begun.

use std::sync::Arc;

use model::ExitCause;
use tokio::sync::mpsc;

use super::{Entry, Event, Life};
use crate::{Inner, output::Output, phases::Made};

/// From where it was left to the last step. `link` is the number of the launcher that has kept it, `made` is known of one
/// that is parked.
pub(crate) async fn go_on(
    engine: Arc<Inner>,
    entry: Arc<Entry>,
    events: mpsc::Receiver<Event>,
    output: Output,
    link: u64,
    ready: bool,
    made: Option<Made>,
) {
    let mut life = Life::new(engine, entry, events);
    life.output = output;
    life.link = link;
    life.made = made;
    let cause = match if ready { life.be_ready() } else { Ok(()) } {
        Ok(()) => life.supervise().await,
        Err(cause) => {
            life.kill().await;
            cause
        }
    };
    if cause != ExitCause::Stopped {
        tracing::info!(id = %life.entry.spec.id, ?cause, "an instance that was taken over has ended");
    }
    life.end(cause).await;
}
