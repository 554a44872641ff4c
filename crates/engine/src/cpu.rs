//! The CPU on the edge between idle and busy: an instance without a request stands still, and is set going before its
//! next request is forwarded.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use model::{Activity, CpuAllocation, InstanceId};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, error::TrySendError},
    },
    time::Instant,
};

use crate::{
    cgroup::Freezer,
    cutoff::{BATCH, Look},
};

/// How long an instance keeps its CPU after its last request, so that one that is asked again at once is not stopped
/// and started for nothing.
pub(crate) const LINGER: Duration = Duration::from_millis(75);

/// How long an instance is not looked at again when its CPU is taken; see `cutoff`.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

/// Whether one instance runs or stands still. Locked for the one write that changes it.
#[derive(Debug)]
pub(crate) struct Cpu {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Present while the instance may be frozen at all: it is ready, not stopping, and pays per request.
    freezer: Option<Freezer>,
    frozen: bool,
    busy: bool,
    /// How many probes are being asked: it runs for them, but its idle time goes on.
    held: u32,
    idle_since: Instant,
    whose: Whose,
    /// Somewhere in the queue of [`Linger`], or being looked at.
    queued: bool,
    /// From when on the end of its linger is a reason to look at it. None: it had no request yet.
    next_look: Option<Instant>,
}

/// Whose requests may be in an instance, while one server hands over to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    /// Another server's as well: it runs for them.
    Lent,
    /// It is another server's to freeze: we only ever set it going.
    Left,
}

/// What became of an instance that had lingered.
#[derive(Debug, PartialEq, Eq)]
enum Lingered {
    Done,
    /// It was busy and idle again in between.
    Until(Instant),
    /// It is to be looked at before it is frozen.
    Look,
}

impl Cpu {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                freezer: None,
                frozen: false,
                busy: false,
                held: 0,
                whose: Whose::Ours,
                idle_since: now,
                queued: false,
                next_look: None,
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// The instance takes requests: from now on it may be frozen. True: it has to linger.
    fn allow(&self, freezer: Freezer, now: Instant) -> bool {
        let mut state = self.lock();
        state.freezer = Some(freezer);
        state.idle_since = now;
        !state.busy && !std::mem::replace(&mut state.queued, true)
    }

    /// Sets it going for good: it is stopping.
    pub(crate) fn release(&self, id: &InstanceId) {
        let mut state = self.lock();
        state.thaw(id);
        state.freezer = None;
    }

    /// Whether it has no request now.
    pub(crate) fn is_idle(&self) -> bool {
        !self.lock().busy
    }

    /// Lets it run while the guard lives, for a probe.
    pub(crate) fn hold<'a>(&'a self, id: &'a InstanceId) -> Hold<'a> {
        let mut state = self.lock();
        state.held += 1;
        state.thaw(id);
        Hold { cpu: self, id }
    }

    /// Whether another server has requests in it.
    pub(crate) fn lend(&self, id: &InstanceId, lent: bool) {
        let mut state = self.lock();
        if lent {
            state.whose = Whose::Lent;
            state.thaw(id);
        } else if state.whose == Whose::Lent {
            state.whose = Whose::Ours;
            if !state.queued {
                state.freeze(id);
            }
        }
    }

    /// Another server decides from now on.
    pub(crate) fn leave(&self) {
        self.lock().whose = Whose::Left;
    }

    /// Since when it has no request. None: it has one.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (!state.busy).then_some(state.idle_since)
    }

    /// What was seen of it said nothing: the next end of its linger is a reason to look.
    pub(crate) fn look_again(&self) {
        let mut state = self.lock();
        state.next_look = Some(state.idle_since);
    }

    fn busy(&self, id: &InstanceId) {
        let mut state = self.lock();
        state.busy = true;
        let since = state.idle_since;
        state.next_look.get_or_insert(since);
        state.thaw(id);
    }

    /// True: it has to linger.
    fn idle(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.busy = false;
        state.idle_since = now;
        state.freezer.is_some() && !std::mem::replace(&mut state.queued, true)
    }

    fn lingered(&self, id: &InstanceId, now: Instant) -> Lingered {
        let mut state = self.lock();
        let due = state.idle_since + LINGER;
        if !state.busy && state.freezer.is_some() && now < due {
            return Lingered::Until(due);
        }
        let freezes = !state.busy && !state.frozen && state.freezer.is_some();
        if freezes && state.next_look.is_some_and(|next| now >= next) {
            state.next_look = Some(now + LOOK_PAUSE);
            return Lingered::Look;
        }
        state.queued = false;
        state.freeze(id);
        Lingered::Done
    }
}

/// Ends with the probe; see [`Cpu::hold`].
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    cpu: &'a Cpu,
    id: &'a InstanceId,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut state = self.cpu.lock();
        state.held -= 1;
        // One that lingers is frozen when that is over.
        if !state.queued {
            state.freeze(self.id);
        }
    }
}

impl State {
    /// Unless something lets it run.
    fn freeze(&mut self, id: &InstanceId) {
        if !self.busy
            && self.held == 0
            && self.whose == Whose::Ours
            && !self.frozen
            && let Some(freezer) = &self.freezer
        {
            match freezer.freeze(true) {
                Ok(()) => self.frozen = true,
                Err(error) => tracing::error!(%id, %error, "cannot freeze an idle instance"),
            }
        }
    }

    fn thaw(&mut self, id: &InstanceId) {
        if (self.frozen || self.whose == Whose::Left)
            && let Some(freezer) = &self.freezer
        {
            match freezer.freeze(false) {
                Ok(()) => self.frozen = false,
                Err(error) => tracing::error!(%id, %error, "cannot thaw an instance"),
            }
        }
    }
}

/// The instances that became idle a moment ago, in the order in which they are to be frozen.
#[derive(Debug)]
pub(crate) struct Linger {
    queue: Mutex<VecDeque<(Instant, InstanceId, Arc<Cpu>)>>,
    bell: Notify,
    /// To be looked at before they are frozen.
    looks: mpsc::Sender<Look>,
}

impl Linger {
    /// What is to be looked at comes out of the receiver, and has to be settled.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Look>) {
        let (looks, receiver) = mpsc::channel(BATCH);
        let linger = Self {
            queue: Mutex::default(),
            bell: Notify::new(),
            looks,
        };
        (linger, receiver)
    }

    pub(crate) fn allow(&self, id: &InstanceId, cpu: &Arc<Cpu>, allocation: CpuAllocation, freezer: Freezer) {
        match allocation {
            CpuAllocation::Instance => {}
            CpuAllocation::Request => {
                let now = Instant::now();
                if cpu.allow(freezer, now) {
                    self.push(now + LINGER, id.clone(), Arc::clone(cpu));
                }
            }
        }
    }

    /// Gives the CPU before it returns, or takes it [`LINGER`] later.
    pub(crate) fn follow(&self, id: &InstanceId, cpu: &Arc<Cpu>, activity: Activity) {
        match activity {
            Activity::Busy => cpu.busy(id),
            Activity::Idle => {
                let now = Instant::now();
                if cpu.idle(now) {
                    self.push(now + LINGER, id.clone(), Arc::clone(cpu));
                }
            }
        }
    }

    /// Every instance is in the queue at most once, so it is as long as there are instances.
    fn push(&self, due: Instant, id: InstanceId, cpu: Arc<Cpu>) {
        let mut queue = self.queue.lock().expect("no panic while held");
        queue.push_back((due, id, cpu));
        drop(queue);
        self.bell.notify_one();
    }

    fn first_due(&self) -> Option<Instant> {
        let queue = self.queue.lock().expect("no panic while held");
        queue.front().map(|(due, ..)| *due)
    }

    fn pop(&self) -> Option<(Instant, InstanceId, Arc<Cpu>)> {
        self.queue.lock().expect("no panic while held").pop_front()
    }

    /// Freezes what has lingered, for ever.
    pub(crate) async fn run(&self) {
        loop {
            let Some(due) = self.first_due() else {
                self.bell.notified().await;
                continue;
            };
            tokio::time::sleep_until(due).await;
            if let Some((_, id, cpu)) = self.pop() {
                self.end(id, cpu);
            }
        }
    }

    /// Of one that was looked at: freezes it, unless something lets it run.
    pub(crate) fn settle(&self, id: &InstanceId, cpu: &Arc<Cpu>) {
        self.end(id.clone(), Arc::clone(cpu));
    }

    fn end(&self, id: InstanceId, cpu: Arc<Cpu>) {
        match cpu.lingered(&id, Instant::now()) {
            Lingered::Done => {}
            Lingered::Until(due) => self.push(due, id, cpu),
            Lingered::Look => {
                if let Err(TrySendError::Full(look) | TrySendError::Closed(look)) =
                    self.looks.try_send(Look { id, cpu })
                {
                    // Nobody has the time: frozen unseen, since it was just said to be looked at.
                    self.end(look.id, look.cpu);
                }
            }
        }
    }
}
