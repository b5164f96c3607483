//! Slots that move, as the replicas applied it: what is known of keys afterwards, and where. The rule is
//! that of `mobula_gcs::core::slots`, written down once more.

use super::watch::{Jump, Truth};
use mobula_base::SlotSet;
use mobula_proto as proto;
use proto::SlotCursor;
use proto::slot_command::Op;
use std::collections::BTreeMap;

/// Slots on their way into a shard.
struct Coming {
    epoch: u64,
    cursor: SlotCursor,
    keys: Vec<proto::KvEntry>,
}

/// What each shard has come to.
#[derive(Default)]
pub struct Moves {
    epochs: BTreeMap<u32, u64>,
    coming: BTreeMap<u32, Coming>,
}

impl Moves {
    /// A command was applied to a shard, in the order of its log.
    pub fn applied(&mut self, shard: u32, op: Op, truth: &mut Truth) {
        match op {
            Op::Await(wait) if self.begins(shard, wait.epoch) => {
                let (epoch, cursor, keys) = (wait.epoch, SlotCursor::default(), Vec::new());
                self.coming.insert(shard, Coming { epoch, cursor, keys });
            }
            Op::Release(go) if self.begins(shard, go.epoch) => {
                let left = proto::slot_set(&go.slots).unwrap_or_default();
                truth.jump(shard, 0, Jump { arrived: Vec::new(), left });
            }
            Op::Content(piece) => self.content(shard, piece, truth),
            _ => {}
        }
    }

    fn begins(&mut self, shard: u32, epoch: u64) -> bool {
        let known = self.epochs.entry(shard).or_default();
        let begins = epoch > *known;
        *known = epoch.max(*known);
        begins
    }

    fn content(&mut self, shard: u32, piece: proto::SlotContent, truth: &mut Truth) {
        let from = piece.from.unwrap_or_default();
        let is_next = |coming: &&mut Coming| (coming.epoch, &coming.cursor) == (piece.epoch, &from);
        let Some(coming) = self.coming.get_mut(&shard).filter(is_next) else { return };
        let entry =
            |key: proto::MovedKey| proto::KvEntry { key: key.key, value: key.value, revision: key.revision };
        coming.keys.extend(piece.keys.into_iter().map(entry));
        coming.cursor = piece.next.unwrap_or_default();
        if piece.last {
            let arrived = self.coming.remove(&shard).map(|coming| coming.keys).unwrap_or_default();
            truth.jump(shard, piece.revision, Jump { arrived, left: SlotSet::default() });
        }
    }
}
