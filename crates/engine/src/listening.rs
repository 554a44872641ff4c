//! How often to look whether somebody listens already: the time between two attempts to connect.
//!
//! A server that starts in a millisecond shall not be found two milliseconds later, and one that takes a minute shall
//! not be asked ten thousand times. The runtime's own clock ticks once in a millisecond, so short pauses are timed by
//! a file of the kernel's.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::watched::watched;

/// What one attempt may take of a CPU's time is a part of this.
const SHORTEST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(20);
/// Below this the runtime's own clock is too coarse.
const COARSE: Duration = Duration::from_millis(5);

/// How many are looked for at present.
static SOUGHT: AtomicU32 = AtomicU32::new(0);

/// One search for somebody who listens.
#[derive(Debug)]
pub(crate) struct Pace {
    clock: Option<AsyncFd<OwnedFd>>,
}

/// How long to wait after so much waiting, when so many are sought.
fn pause(waited: Duration, sought: u32) -> Duration {
    (waited / 20).min(LONGEST).max(SHORTEST * sought.max(1))
}

impl Pace {
    pub(crate) fn begin() -> Self {
        SOUGHT.fetch_add(1, Ordering::Relaxed);
        let clock = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        );
        Self {
            // Without one the runtime's clock has to do.
            clock: clock.ok().and_then(|clock| watched(clock).ok()),
        }
    }

    /// Between two attempts, `waited` after the first; not longer than `most`.
    pub(crate) async fn rest(&self, waited: Duration, most: Duration) {
        let pause = pause(waited, SOUGHT.load(Ordering::Relaxed)).min(most);
        let Some(clock) = self.clock.as_ref().filter(|_| pause < COARSE) else {
            return tokio::time::sleep(pause).await;
        };
        if rest(clock, pause).await.is_err() {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn rest(clock: &AsyncFd<OwnedFd>, pause: Duration) -> std::io::Result<()> {
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let once = Itimerspec {
        it_interval: never,
        it_value: Timespec {
            tv_sec: 0,
            // Zero would be never.
            tv_nsec: i64::from(pause.subsec_nanos().max(1)),
        },
    };
    timerfd_settime(clock.get_ref(), TimerfdTimerFlags::empty(), &once)?;
    let mut expired = [0; 8];
    clock
        .async_io(tokio::io::Interest::READABLE, |clock| {
            Ok(rustix::io::read(clock, &mut expired)?)
        })
        .await?;
    Ok(())
}

impl Drop for Pace {
    fn drop(&mut self) {
        SOUGHT.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_with_time_and_with_company() {
        let after = |millis, sought| pause(Duration::from_millis(millis), sought).as_micros();
        assert_eq!(
            [after(0, 1), after(2, 1), after(100, 1), after(10_000, 1)],
            [100, 100, 5000, 20_000]
        );
        assert_eq!([after(0, 10), after(100, 10), after(0, 1000)], [1000, 5000, 100_000]);
    }

    #[tokio::test]
    async fn a_short_rest_is_a_rest_and_not_longer_than_allowed() {
        let pace = Pace::begin();
        let begin = std::time::Instant::now();
        for _ in 0..20 {
            pace.rest(Duration::ZERO, Duration::from_secs(1)).await;
        }
        assert!(begin.elapsed() >= SHORTEST * 20);
        pace.rest(Duration::from_mins(1), Duration::ZERO).await;
    }
}
