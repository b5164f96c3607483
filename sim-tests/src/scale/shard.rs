//! One shard of the control store: the production tables, served by one hand at a set pace.

use super::shape::Shape;
use mobula_base::Instant;
use mobula_base::sim_disk::SimDisk;
use mobula_gcs::cold;
use mobula_gcs::core::pack::pack;
use mobula_gcs::core::{ShardState, first_sweep};
use mobula_proto::command::Op;
use mobula_proto::{Command, Fence, StreamAck, StreamBatch, Sweep, reply};
use std::sync::Arc;
use std::time::Duration;

/// A shard. Batches are served in the order they come: each costs its share of a sync and what its items cost.
pub struct Shard {
    state: ShardState,
    index: u64,
    batch: Duration,
    item: Duration,
    /// It is busy until then.
    free: Instant,
}

impl Shard {
    /// An empty shard that counts references.
    pub fn new(number: u32, shape: &Shape) -> Self {
        let cold = cold::open_one(Arc::new(SimDisk::new(u64::from(number))), number);
        let state = ShardState::new(number, cold.expect("a simulated disk has room"));
        let mut shard =
            Shard { state, index: 0, batch: shape.batch, item: shape.item, free: Instant::default() };
        shard.apply(first_sweep(number, shape.shards));
        shard
    }

    fn apply(&mut self, op: Op) -> Option<reply::Reply> {
        self.index += 1;
        let reply = self.state.apply(self.index, &Command::from(op)).reply;
        assert_eq!(self.state.broken(), None);
        reply
    }

    /// Takes a batch: when it is done, and what is answered. `None`: whoever sent it is dead.
    pub fn serve(&mut self, now: Instant, batch: StreamBatch) -> Option<(Instant, StreamAck)> {
        let items = batch.items.len() as u32;
        self.free = now.max(self.free) + self.batch + self.item * items;
        // Nobody looks between now and then, and what comes later is applied later.
        let reply = self.apply(Op::Stream(pack(batch)));
        while self.state.counting.has_work() {
            self.apply(Op::Sweep(Sweep::default()));
        }
        match reply {
            Some(reply::Reply::Stream(ack)) => Some((self.free, ack)),
            Some(reply::Reply::Fenced(_)) => None,
            other => unreachable!("streams here have no gaps: {other:?}"),
        }
    }

    /// Takes nothing more from a node that is dead (R10).
    pub fn fence(&mut self, incarnation: u64) {
        self.apply(Op::Fence(Fence { incarnation }));
    }
}
