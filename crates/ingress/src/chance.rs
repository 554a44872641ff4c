//! Chance, seeded by whoever builds the ingress: one small generator per thread, so that draws share no memory.
//! It decides which revision a request falls on and names traces; nothing secret comes from it.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

thread_local! {
    /// Zero until the thread's first draw.
    static STATE: Cell<u64> = const { Cell::new(0) };
}

#[derive(Debug)]
pub(crate) struct Chance {
    seed: u64,
    threads: AtomicU64,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            threads: AtomicU64::new(0),
        }
    }

    /// Xorshift with a multiplication after it (Vigna's xorshift64*).
    pub(crate) fn next(&self) -> u64 {
        STATE.with(|state| {
            let mut x = state.get();
            if x == 0 {
                let thread = self.threads.fetch_add(1, Ordering::Relaxed);
                x = scatter(self.seed.wrapping_add(thread)).max(1);
            }
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
            state.set(x);
            x.wrapping_mul(0x2545_f491_4f6c_dd1d)
        })
    }

    /// Evenly from 0 to 99.
    pub(crate) fn percent(&self) -> u8 {
        let wide = (self.next() >> 32) * 100;
        u8::try_from(wide >> 32).expect("below 100")
    }
}

/// Spreads neighbouring seeds over the whole range (the finalizer of splitmix64).
fn scatter(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_even() {
        let chance = Chance::new(7);
        let mut counts = [0_u32; 100];
        for _ in 0..100_000 {
            counts[usize::from(chance.percent())] += 1;
        }
        // Binomial with mean 1000 and deviation 31.5; five deviations.
        assert!(counts.iter().all(|n| (842..1158).contains(n)), "{counts:?}");
    }
}
