//! What was counted.

use mobula_base::Instant;

/// Messages, tasks, and how many ran when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Tasks that drivers have submitted.
    pub submitted: u64,
    /// Tasks of whose end drivers were told.
    pub ended: u64,
    /// When drivers were told, in order.
    pub ends: Vec<Instant>,
    /// Messages from one node to another.
    pub between_nodes: u64,
    /// Batches to shards, and their acknowledgements.
    pub with_shards: u64,
    /// Items in these batches.
    pub items: u64,
    /// Objects that were brought from another node.
    pub transfers: u64,
    /// Their bytes.
    pub transferred: u64,
    /// Attempts that began beside another.
    pub hedges: u64,
    /// How many tasks ran from a moment on, whenever that changed.
    pub running: Vec<(Instant, u64)>,
}

impl Tally {
    /// One more runs, or one fewer.
    pub fn runs(&mut self, now: Instant, by: i64) {
        let before = self.running.last().map_or(0, |(_, running)| *running);
        self.running.push((now, before.checked_add_signed(by).expect("no more end than began")));
    }

    /// Messages of any kind.
    pub fn messages(&self) -> u64 {
        self.between_nodes + self.with_shards
    }

    /// The first moment, from `from` on, at which so many run.
    pub fn first_with(&self, from: Instant, running: u64) -> Option<Instant> {
        self.running.iter().find(|(at, now)| *at >= from && *now >= running).map(|(at, _)| *at)
    }

    /// The fewest that run at any moment of a span.
    pub fn fewest(&self, from: Instant, to: Instant) -> u64 {
        let before = self.running.iter().take_while(|(at, _)| *at <= from).last();
        let within = self.running.iter().filter(|(at, _)| *at > from && *at <= to);
        before.into_iter().chain(within).map(|(_, running)| *running).min().unwrap_or(0)
    }

    /// How many tasks ended within a span.
    pub fn ended_within(&self, from: Instant, to: Instant) -> u64 {
        self.ends.iter().filter(|at| **at > from && **at <= to).count() as u64
    }
}
