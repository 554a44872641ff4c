//! How many bytes the blobs may have together. What is being uploaded or pulled counts from its first byte, so that many
//! uploads at a time cannot pass the bound together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// No bound.
const NONE: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Quota {
    bytes: AtomicU64,
    used: AtomicU64,
}

impl Quota {
    /// Without a bound, with `used` bytes stored already.
    pub(crate) fn new(used: u64) -> Quota {
        Quota {
            bytes: AtomicU64::new(NONE),
            used: AtomicU64::new(used),
        }
    }

    pub(crate) fn set(&self, bytes: Option<u64>) {
        self.bytes.store(bytes.unwrap_or(NONE), Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// A share of nothing yet.
    pub(crate) fn reserve(self: &Arc<Quota>) -> Reserved {
        Reserved {
            quota: Arc::clone(self),
            bytes: 0,
        }
    }

    /// Gives back what a removed blob had.
    pub(crate) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A share of the quota; given back when dropped, unless it was kept.
#[derive(Debug)]
pub(crate) struct Reserved {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Reserved {
    /// Makes it at least `bytes` large.
    ///
    /// # Errors
    /// [`Error::Quota`] when the bound would be passed; the share is then as it was.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), Error> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        let bound = self.quota.bytes.load(Ordering::Relaxed);
        let taken = self
            .quota
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|sum| *sum <= bound)
            });
        match taken {
            Ok(_) => {
                self.bytes = bytes;
                Ok(())
            }
            Err(used) => Err(Error::Quota {
                quota: bound,
                used,
                more,
            }),
        }
    }

    /// The bytes are stored now: whoever removes them gives them back.
    pub(crate) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.quota.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let quota = Arc::new(Quota::new(10));
        quota.set(Some(100));
        let mut one = quota.reserve();
        let mut two = quota.reserve();
        one.grow_to(50).expect("room");
        two.grow_to(40).expect("room");
        let refused = two.grow_to(41).expect_err("full");
        assert!(
            matches!(
                refused,
                Error::Quota {
                    quota: 100,
                    used: 100,
                    more: 1
                }
            ),
            "{refused}"
        );
        two.grow_to(40).expect("no more than it has");
        drop(one);
        assert_eq!(quota.used(), 50);
        two.keep();
        assert_eq!(quota.used(), 50);
        quota.release(40);
        assert_eq!(quota.used(), 10);
        quota.set(None);
        quota.reserve().grow_to(1 << 60).expect("no bound");
    }
}
