//! The instances that are attached, and how much each may have open at a time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::router::Slot;

/// TCP connections of one instance, those that are being made among them.
const MOST_CONNECTIONS: usize = 1000;
/// Pairs of addresses that one instance exchanges UDP datagrams between.
const MOST_SESSIONS: usize = 1000;
/// Questions of one instance to the resolver that wait for an answer.
const MOST_QUESTIONS: usize = 256;

/// One attached instance.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The runtime's name of the instance.
    pub(crate) id: String,
    connections: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    gone: watch::Sender<bool>,
}

/// What is held for as long as something of an instance is open.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// All that are attached.
#[derive(Debug)]
pub(crate) struct Guests {
    all: Mutex<HashMap<Slot, Arc<Guest>>>,
    /// What all instances together may have open: each takes two files.
    places: Arc<Semaphore>,
}

impl Guests {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            all: Mutex::default(),
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Whose address it is. None: nobody's who is here.
    pub(crate) fn of(&self, address: IpAddr) -> Option<Arc<Guest>> {
        let slot = Slot::of(address)?;
        self.all.lock().expect("no panic while held").get(&slot).cloned()
    }

    pub(crate) fn add(&self, slot: Slot, id: &str) {
        let semaphore = |most| Arc::new(Semaphore::new(most));
        let guest = Guest {
            id: id.to_owned(),
            connections: semaphore(MOST_CONNECTIONS),
            sessions: semaphore(MOST_SESSIONS),
            questions: semaphore(MOST_QUESTIONS),
            gone: watch::Sender::new(false),
        };
        let former = self
            .all
            .lock()
            .expect("no panic while held")
            .insert(slot, Arc::new(guest));
        if let Some(former) = former {
            former.gone.send_replace(true);
        }
    }

    /// Ends whatever it has open.
    pub(crate) fn remove(&self, slot: Slot) {
        let guest = self.all.lock().expect("no panic while held").remove(&slot);
        if let Some(guest) = guest {
            guest.gone.send_replace(true);
        }
    }

    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.all.lock().expect("no panic while held").keys().copied().collect()
    }

    /// None: the instance or the relay has as many as it may.
    pub(crate) fn connection(&self, guest: &Guest) -> Option<Place> {
        self.place(&guest.connections)
    }

    pub(crate) fn session(&self, guest: &Guest) -> Option<Place> {
        self.place(&guest.sessions)
    }

    pub(crate) fn question(&self, guest: &Guest) -> Option<Place> {
        self.place(&guest.questions)
    }

    fn place(&self, own: &Arc<Semaphore>) -> Option<Place> {
        Some(Place {
            _own: Arc::clone(own).try_acquire_owned().ok()?,
            _of_all: Arc::clone(&self.places).try_acquire_owned().ok()?,
        })
    }
}

impl Guest {
    /// Until the instance is not attached any more.
    pub(crate) async fn gone(&self) {
        // An error would mean that the guest is dropped while borrowed.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}
