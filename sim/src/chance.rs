//! Chance from a seed: `SplitMix64` (Steele, Lea and Flood, 2014). Whole numbers only, so that every machine draws alike.

#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, evenly but for a bias far below anything seen here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// From half of `mean` to one and a half, evenly; at least 1.
    pub(crate) fn around(&mut self, mean: u64) -> u64 {
        (mean / 2 + self.below(mean + 1)).max(1)
    }
}
