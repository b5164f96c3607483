//! R12: *a node's traffic to a shard is applied in order and once, however often it is sent.* The same for
//! frames between nodes.

use super::{Found, object};
use crate::core::sometimes::Sometimes;
use mobula_proto::{Reply, StreamBatch, reply};
use std::collections::BTreeMap;

/// Counts what was sent and what was applied.
#[derive(Default)]
pub struct Stream {
    pub(super) found: Found,
    sent: BTreeMap<(u64, usize), u64>,
    applied: BTreeMap<(u64, usize), u64>,
    frames: BTreeMap<(u64, u64), u64>,
}

fn len(batch: &StreamBatch) -> u64 {
    batch.items.iter().map(mobula_gcs::core::seqs_of).sum()
}

impl Stream {
    /// A node sends a batch for the first time.
    pub fn sent(&mut self, batch: &StreamBatch, shard: usize) {
        let last = self.sent.entry((batch.incarnation, shard)).or_default();
        if batch.first_seq != *last + 1 {
            let (who, last, first) = (batch.incarnation, *last, batch.first_seq);
            object(&mut self.found, || format!("{who} sends {first} to shard {shard} after {last}"));
        }
        *last = batch.first_seq + batch.items.len() as u64 - 1;
    }

    /// A batch is applied; whether for the first time.
    pub fn applied(
        &mut self,
        shard: usize,
        batch: &StreamBatch,
        reply: &Reply,
        sometimes: &mut Sometimes,
    ) -> bool {
        let Some(reply::Reply::Stream(ack)) = &reply.reply else { return false };
        let mark = self.applied.entry((batch.incarnation, shard)).or_default();
        if ack.mark == *mark {
            sometimes.hit("batch applied twice");
            return false;
        }
        if batch.first_seq != *mark + 1 || ack.mark != *mark + len(batch) {
            let (who, mark, first, to) = (batch.incarnation, *mark, batch.first_seq, ack.mark);
            object(&mut self.found, || {
                format!("shard {shard} of {who} applied {first} to {to} after {mark}")
            });
        }
        *mark = ack.mark;
        true
    }

    /// A node takes so many new messages of another, numbered from `first` on or later.
    pub fn frame(&mut self, from: u64, to: u64, first: u64, fresh: u64, mark: u64) {
        let seen = self.frames.entry((from, to)).or_default();
        if mark != *seen + fresh || (fresh > 0 && first > *seen + 1) {
            let seen = *seen;
            object(&mut self.found, || {
                format!("{to} takes {fresh} messages of {from} from {first} after {seen}")
            });
        }
        *seen = mark;
    }
}
