//! Seeded draws in the shapes that a simulation needs.

use mobula_base::random::Random;
use std::time::Duration;

/// A stream of draws.
#[derive(Clone)]
pub struct Dice(Random);

impl Dice {
    /// A stream of its own, by its name.
    pub fn new(seed: u64, name: &str) -> Self {
        Dice(Random::new(seed).fork(name))
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    /// From `low` to `high`, both included.
    pub fn from_to(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so many times in a thousand.
    pub fn permille(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// From `low` to `high`, small ones as likely as large ones.
    pub fn log_uniform(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(low.max(1)));
        let octaves = u64::from((high / low).max(1).ilog2());
        let base = low << self.below(octaves + 1);
        self.from_to(base.min(high), (base * 2).min(high))
    }

    /// Microseconds from `low` to `high`.
    pub fn us(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_nanos(self.from_to(low * 1000, high * 1000))
    }

    /// Milliseconds from `low` to `high`.
    pub fn ms(&mut self, low: u64, high: u64) -> Duration {
        self.us(low * 1000, high * 1000)
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len() as u64) as usize).copied()
    }
}
