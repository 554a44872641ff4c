//! The ranges of user and group ids that instances run with: one range each, given back when the instance is gone.

use std::sync::{Arc, Mutex};

use crate::rootfs::IDS;

/// The first id of the first range. No distribution gives ids above 2^31 - 2^28 to anything.
pub const FIRST_ID: u32 = 0x7000_0000;
/// How many ranges there are from [`FIRST_ID`] to 2^31, above which some programs take an id for a negative number.
pub(crate) const MOST_RANGES: u32 = 4096;

/// The ranges of one engine.
#[derive(Debug, Clone)]
pub(crate) struct Ranges(Arc<Mutex<Free>>);

#[derive(Debug)]
struct Free {
    first: u32,
    /// Never given out from here on.
    next: u32,
    /// Given back; the last one is the next to be used, since what was made for it is still at hand.
    back: Vec<u32>,
}

/// 65,536 ids for one instance.
#[derive(Debug)]
pub(crate) struct Range {
    of: Ranges,
    index: u32,
    first: u32,
}

impl Ranges {
    pub(crate) fn new(first: u32) -> Self {
        Self(Arc::new(Mutex::new(Free {
            first,
            next: 0,
            back: Vec::new(),
        })))
    }

    /// None: all are in use.
    pub(crate) fn take(&self) -> Option<Range> {
        let mut free = self.0.lock().expect("no panic while held");
        let index = match free.back.pop() {
            Some(index) => index,
            None if free.next < MOST_RANGES => {
                free.next += 1;
                free.next - 1
            }
            None => return None,
        };
        Some(Range {
            of: self.clone(),
            index,
            first: free.first.checked_add(index.checked_mul(IDS)?)?,
        })
    }
}

impl Ranges {
    /// The range that begins with `first`. None: it is in use, or none of ours.
    pub(crate) fn take_at(&self, first: u32) -> Option<Range> {
        let mut free = self.0.lock().expect("no panic while held");
        let offset = first.checked_sub(free.first)?;
        let index = offset / IDS;
        if offset % IDS != 0 || index >= MOST_RANGES {
            return None;
        }
        while free.next <= index {
            let next = free.next;
            free.back.push(next);
            free.next += 1;
        }
        let at = free.back.iter().position(|back| *back == index)?;
        free.back.swap_remove(at);
        Some(Range {
            of: self.clone(),
            index,
            first,
        })
    }
}

impl Range {
    pub(crate) fn first(&self) -> u32 {
        self.first
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Ok(mut free) = self.of.0.lock() {
            free.back.push(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_live_ranges_overlap_and_the_last_one_back_is_first_out() {
        let ranges = Ranges::new(FIRST_ID);
        let one = ranges.take().expect("free");
        let two = ranges.take().expect("free");
        assert_eq!(two.first() - one.first(), IDS);
        let first = one.first();
        drop(one);
        assert_eq!(ranges.take().expect("free").first(), first);
    }

    #[test]
    fn a_range_that_was_in_use_before_is_taken_once() {
        let ranges = Ranges::new(FIRST_ID);
        let third = ranges.take_at(FIRST_ID + 2 * IDS).expect("free");
        assert!(ranges.take_at(FIRST_ID + 2 * IDS).is_none());
        assert!(ranges.take_at(FIRST_ID + 1).is_none());
        assert!(ranges.take_at(FIRST_ID - IDS).is_none());
        let others: Vec<Range> = (0..3).filter_map(|_| ranges.take()).collect();
        assert!(others.iter().all(|other| other.first() != third.first()));
    }

    #[test]
    fn there_is_an_end() {
        let ranges = Ranges::new(FIRST_ID);
        let all: Vec<Range> = std::iter::from_fn(|| ranges.take()).collect();
        assert_eq!(all.len(), 4096);
        let last = all[4095].first() + (IDS - 1);
        assert_eq!(last, 0x7fff_ffff);
    }
}
