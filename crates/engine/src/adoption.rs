//! Going on with the instances of a server that is gone.
//!
//! Its launcher has kept their processes, and it has left a record of each. An instance of which every container was
//! made is taken over as it is: parked, starting, ready or stopping, running or ended. Of any other everything is
//! removed, as if it had never been asked for.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use model::{InstanceId, InstanceState};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    Engine, company,
    gate::{Gate, Way},
    launch::Link,
    life::{self, CREATE_PATIENCE, Container, Entry, Event, Running},
    output::Output,
    phases::Made,
    records::{self, Record},
    sweep,
    watched::watched,
    wire::{End, Order},
};

/// A container that the launcher has kept.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) end: Option<End>,
    pub(crate) files: Vec<OwnedFd>,
}

/// An instance that is taken over, before its life goes on.
struct Adopted {
    entry: Arc<Entry>,
    events: mpsc::Receiver<Event>,
    output: Output,
    ready: bool,
    stopping: Option<std::time::Duration>,
    /// Of a parked one.
    made: Option<Made>,
}

impl Engine {
    /// Takes over what can be, and removes the rest.
    pub(crate) async fn adopt(&self, held: Vec<Held>, link: &Arc<Link>) -> io::Result<()> {
        let inner = &self.inner;
        let names: Vec<String> = held.iter().map(|held| held.id.clone()).collect();
        let mut of: HashMap<String, Vec<Held>> = HashMap::new();
        for container in held {
            of.entry(company::whose(&container.id).0.to_owned())
                .or_default()
                .push(container);
        }
        let mut adopted = Vec::new();
        for (id, containers) in of {
            let Some(record) = Record::read(&inner.run.bundle(&id)) else {
                continue;
            };
            match self.take_over(record, containers) {
                Ok(one) => adopted.push(one),
                Err(error) => tracing::warn!(id, %error, "an instance of the last server is ended"),
            }
        }
        let kept: BTreeSet<InstanceId> = adopted.iter().map(|one| one.entry.spec.id.clone()).collect();
        for name in names {
            let is_kept = InstanceId::parse(company::whose(&name).0).is_some_and(|id| kept.contains(&id));
            if !is_kept {
                link.order(&Order::Forget { id: name }, &[]).await?;
            }
        }
        let (number, count) = (link.number, kept.len());
        let cleared = {
            let inner = Arc::clone(inner);
            tokio::task::spawn_blocking(move || sweep::sweep_others(&inner.id8, &inner.run, &inner.layout, &kept))
        };
        cleared.await.map_err(io::Error::other)??;
        if count > 0 {
            tracing::info!(instances = count, "taken over from the last server");
        }
        for one in adopted {
            self.go_on(one, number);
        }
        Ok(())
    }

    /// The instances in which another server has requests, all of them: they keep their CPU.
    pub fn lend(&self, busy: &BTreeSet<InstanceId>) {
        let entries = self.inner.entries.read().expect("no panic while held");
        for (id, entry) in &*entries {
            entry.cpu.lend(id, busy.contains(id));
        }
    }

    /// Leaves everything that runs to another server, which may take it over when this returns. Requests under way can
    /// still be connected; nothing starts or ends any more. Instances that are being made are waited for.
    pub async fn leave(&self) {
        let inner = &self.inner;
        inner.closing.store(true, Ordering::SeqCst);
        self.hang_up();
        let all = u32::try_from(crate::creations()).unwrap_or(u32::MAX);
        // One that is late is given up by the launcher.
        if let Ok(Ok(turns)) = timeout(CREATE_PATIENCE, inner.creations.acquire_many(all)).await {
            turns.forget();
        }
        inner.log.leave().await;
        for entry in inner.entries.read().expect("no panic while held").values() {
            entry.cpu.leave();
        }
        self.freezing.abort();
        let mut lives = std::mem::take(&mut *self.lives.lock().expect("no panic while held"));
        lives.shutdown().await;
        let listening = self.listening.lock().expect("no panic while held").take();
        if let Some(listening) = listening {
            listening.abort();
            let _ = listening.await;
        }
        inner.link.send_replace(None);
        drop(inner.claim.lock().expect("no panic while held").take());
    }

    fn take_over(&self, record: Record, mut containers: Vec<Held>) -> io::Result<Adopted> {
        let inner = &self.inner;
        let Record {
            spec,
            first_id,
            created,
        } = record;
        containers.sort_by_key(|container| company::whose(&container.id).1);
        let whole = containers
            .iter()
            .enumerate()
            .all(|(index, container)| company::whose(&container.id).1 == index);
        if !whole || containers.len() != spec.containers().count() {
            return Err(io::Error::other("not all of its containers were made"));
        }
        let range = inner.ranges.take_at(first_id);
        let range = range.ok_or_else(|| io::Error::other(format!("the user ids from {first_id} on are not free")))?;
        let bundle = inner.run.bundle(spec.id.as_str());
        let (parked, ready, stopping) = (
            crate::gate::is_marked(&bundle),
            records::is_ready(&bundle),
            records::stopping(&bundle),
        );
        let made = records::making(&bundle).filter(|_| parked).map(Made::before);
        let (mut entry, events) = Entry::new(inner, spec, range, parked);
        entry.secrets.get_mut().asked = true;
        let mut output = Output::default();
        let mut network = None;
        let mut running = Vec::new();
        for (index, held) in containers.into_iter().enumerate() {
            let mut files = held.files.into_iter();
            let missing = || io::Error::other("the launcher passed it on without its files");
            let mut next = || files.next().ok_or_else(missing);
            let (process, own_network, stdout, stderr) = (next()?, next()?, next()?, next()?);
            network.get_or_insert(own_network);
            let bundle = inner.run.bundle(&held.id);
            for (stream, file) in [(model::Stream::Stdout, stdout), (model::Stream::Stderr, stderr)] {
                let source = life::source(&entry.spec, index, stream);
                output.go_on(&inner.log, source, file, &bundle)?;
            }
            let way = match files.next() {
                Some(socket) => Way::Socket(watched(socket)?),
                None => Way::Fifo(inner.run.runtime().join(&held.id).join("exec.fifo")),
            };
            let open = ready || (stopping.is_some() && !crate::gate::is_marked(&bundle));
            running.push(Container {
                process,
                gate: Gate::taken_over(way, &bundle, open || held.end.is_some()),
                kills: entry.groups_of(index).memory_kills()?,
            });
            if let Some(end) = held.end {
                entry
                    .events
                    .try_send(Event::Exited(index, end))
                    .map_err(io::Error::other)?;
            }
        }
        let network = network.ok_or_else(|| io::Error::other("it has no container"))?;
        let running = Running {
            network,
            containers: running,
        };
        entry
            .running
            .set(running)
            .map_err(|_| io::Error::other("it runs already"))?;
        // Its server may have frozen it.
        entry.groups.freezer()?.freeze(false)?;
        let state = if parked {
            InstanceState::Parked
        } else if ready {
            InstanceState::Ready
        } else {
            InstanceState::Starting
        };
        inner.board.add_since(&entry.spec.id, &entry.spec.of, state, created);
        Ok(Adopted {
            entry: Arc::new(entry),
            events,
            output,
            ready,
            stopping,
            made,
        })
    }

    fn go_on(&self, adopted: Adopted, link: u64) {
        let Adopted {
            entry,
            events,
            output,
            ready,
            stopping,
            made,
        } = adopted;
        let inner = &self.inner;
        inner
            .entries
            .write()
            .expect("no panic while held")
            .insert(entry.spec.id.clone(), Arc::clone(&entry));
        if let Some(grace) = stopping {
            inner.stop(&entry, grace);
        }
        let mut lives = self.lives.lock().expect("no panic while held");
        lives.spawn(life::go_on(Arc::clone(inner), entry, events, output, link, ready, made));
    }
}
