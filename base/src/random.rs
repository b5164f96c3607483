//! Seeded random streams. Entropy enters a process once, as a seed.

use crate::ids::hash64;

/// A splitmix64 stream (Steele, Lea, Flood 2014): small, fast, good enough for jitter and picks,
/// never for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream that repeats for the same seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// An independent stream, named so that adding one does not shift the others.
    pub fn fork(&self, name: &str) -> Self {
        Random(hash64(&[&self.0.to_le_bytes(), name.as_bytes()]))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}
