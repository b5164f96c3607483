//! The network: messages take one latency each; bulk takes turns on the link between two nodes.

use mobula_base::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// Links between nodes. Messages are small and go beside the bulk, as they do on connections of their own.
pub struct Wire {
    latency: Duration,
    bytes_per_s: u64,
    /// When the last byte that is under way from one node to another has left.
    free: BTreeMap<(usize, usize), Instant>,
}

impl Wire {
    /// Idle links.
    pub fn new(latency: Duration, bytes_per_s: u64) -> Self {
        Wire { latency, bytes_per_s, free: BTreeMap::new() }
    }

    /// How long a message takes.
    pub fn latency(&self) -> Duration {
        self.latency
    }

    /// When so many bytes that are asked for now are there: the question goes one way, they come the other.
    pub fn bulk(&mut self, now: Instant, from: usize, to: usize, bytes: u64) -> Instant {
        let asked = now + self.latency;
        let free = self.free.entry((from, to)).or_default();
        let takes = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        *free = asked.max(*free) + Duration::from_nanos(takes as u64);
        *free + self.latency
    }
}
