//! The order in which the containers of an instance are started.

use std::sync::Arc;

use model::{ContainerSpec, ExitCause};
use tokio::task::JoinSet;

use super::{Entry, not_started};
use crate::{Inner, company, probe};

/// Starts the containers in the order of their dependencies, until all have started; or which has not, and why.
pub(super) async fn started(engine: Arc<Inner>, entry: Arc<Entry>) -> Result<(), (usize, ExitCause)> {
    let spec = &entry.spec;
    let running = entry.running.get().expect("set by begin");
    let containers: Vec<&ContainerSpec> = spec.containers().collect();
    let mut begun = vec![false; containers.len()];
    let mut done = vec![false; containers.len()];
    let mut probing = JoinSet::new();
    loop {
        loop {
            let due = company::due(&containers, &begun, &done);
            for index in &due {
                begun[*index] = true;
                running.open(*index, spec);
                let probe = match (index, &containers[*index].startup_probe) {
                    (0, _) => Some(spec.startup_probe()),
                    (_, probe) => probe.clone(),
                };
                let Some(probe) = probe else {
                    done[*index] = true;
                    continue;
                };
                let (engine, entry, index) = (Arc::clone(&engine), Arc::clone(&entry), *index);
                probing.spawn(async move {
                    let running = entry.running.get().expect("set by begin");
                    let spec = &entry.spec;
                    let container = spec.containers().nth(index).expect("one of the spec's");
                    let started = probe::until_started(&engine, spec, container, &probe, &running.network).await;
                    (index, started)
                });
            }
            if due.is_empty() {
                break;
            }
        }
        match probing.join_next().await {
            Some(Ok((index, Ok(())))) => done[index] = true,
            Some(Ok((index, Err(cause)))) => return Err((index, cause)),
            Some(Err(error)) => return Err((0, not_started(format!("a startup probe broke off: {error}")))),
            // Nothing is asked any more, so nothing else can become due.
            None => return Ok(()),
        }
    }
}
