//! How large a cluster is, and how fast its parts.

use std::time::Duration;

/// A cluster of equal nodes.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Nodes; the first has incarnation 1.
    pub nodes: usize,
    /// CPUs and workers of each.
    pub cpus: u32,
    /// Shards of the control store.
    pub shards: u32,
    /// A message takes so long.
    pub latency: Duration,
    /// A link between two nodes carries so much each way.
    pub link_bytes_per_s: u64,
    /// A shard needs so long for a batch, and so long more for each item in it.
    pub batch: Duration,
    /// See `batch`.
    pub item: Duration,
    /// A task runs at least so long, and at most: its id decides.
    pub task: (Duration, Duration),
    /// What a task makes that makes something large.
    pub large_bytes: u64,
    /// One node on which tasks take so many times as long.
    pub slow: Option<(usize, u32)>,
    /// Of a thousand pure tasks that came back from other nodes so many may be hedged.
    pub hedge_permille: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            nodes: 1,
            cpus: 4,
            shards: 16,
            latency: Duration::from_micros(250),
            link_bytes_per_s: 125_000_000,
            batch: Duration::from_micros(20),
            item: Duration::from_micros(2),
            task: (Duration::from_millis(9), Duration::from_millis(11)),
            large_bytes: 0,
            slow: None,
            hedge_permille: 0,
        }
    }
}

impl Shape {
    /// How many times as long a task takes on a node.
    pub fn slowness(&self, node: usize) -> u32 {
        self.slow.filter(|(slow, _)| *slow == node).map_or(1, |(_, times)| times)
    }

    /// All CPUs.
    pub fn cpus_in_all(&self) -> u64 {
        self.nodes as u64 * u64::from(self.cpus)
    }
}
