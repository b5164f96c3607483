//! Who owns which slots, in shard 0: the map, and the one move that is under way.
//!
//! The table says what is wanted; [`crate::moves`] compares it with what the two shards have come to and
//! says what is next, as `membership` does for the heads.

use super::slots::Owned;
use mobula_base::{ShardId, SlotMap, SlotSet};
use mobula_proto as proto;
use proto::{SlotOutcome, SlotPlan, SlotPlanDone, SlotTable as Table};

/// Finished moves that are remembered, so that a repeated request is answered as the first one.
pub const MAX_DONE: usize = 64;

/// See the module. The map is `None` until the first move.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotTable {
    map: Option<SlotMap>,
    plan: Option<SlotPlan>,
    done: Vec<SlotPlanDone>,
}

impl SlotTable {
    /// The map; that of a new cluster of so many shards before the first move.
    pub fn map(&self, shards: u32) -> SlotMap {
        self.map.clone().unwrap_or_else(|| SlotMap::even(shards))
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.map.as_ref().map_or(1, SlotMap::epoch)
    }

    /// Whether slots have moved, or do now.
    pub fn has_moves(&self) -> bool {
        self.epoch() > 1 || self.plan.is_some()
    }

    /// The move that is under way.
    pub fn plan(&self) -> Option<&SlotPlan> {
        self.plan.as_ref()
    }

    /// Begins a move.
    pub(super) fn start(
        &mut self,
        index: u64,
        shards: u32,
        start: &proto::StartSlotPlan,
    ) -> Result<SlotOutcome, String> {
        if let Some(done) = self.done.iter().find(|done| done.request == start.request) {
            return Ok(SlotOutcome { epoch: done.epoch, finished: true, ..Default::default() });
        }
        if let Some(plan) = &self.plan {
            if plan.request == start.request {
                return Ok(SlotOutcome { epoch: plan.epoch, ..Default::default() });
            }
            return Err(format!("another move of slots is under way ({}): wait for its end", say(plan)));
        }
        let map = self.map(shards);
        let slots = chosen(&map, shards, start)?;
        let epoch = map.epoch() + 1;
        self.plan = Some(SlotPlan {
            request: start.request,
            epoch,
            from: start.from,
            to: start.to,
            slots: proto::slot_rows(&slots),
            since: index,
        });
        Ok(SlotOutcome { epoch, ..Default::default() })
    }

    /// The slots have arrived: from here on the new map holds. Whether it does by this.
    pub(super) fn switch(&mut self, shards: u32, epoch: u64) -> bool {
        let Some(plan) = self.plan.as_ref().filter(|plan| plan.epoch == epoch && self.epoch() < epoch) else {
            return false;
        };
        let slots = proto::slot_set(&plan.slots).unwrap_or_default();
        self.map = Some(self.map(shards).moved(&slots, ShardId(plan.to)));
        true
    }

    /// The move is over; which one, if it is by this.
    pub(super) fn end(&mut self, epoch: u64) -> Option<SlotPlan> {
        let is_over = self.epoch() >= epoch;
        let plan = self.plan.take_if(|plan| plan.epoch == epoch && is_over)?;
        self.done.push(SlotPlanDone { request: plan.request, epoch });
        let surplus = self.done.len().saturating_sub(MAX_DONE);
        self.done.drain(..surplus);
        Some(plan)
    }

    /// `None` while there is nothing to say: dumps of the first level have no such thing.
    pub(super) fn dump(&self) -> Option<Table> {
        (*self != SlotTable::default()).then(|| Table {
            map: self.map.as_ref().map(proto::slot_map),
            plan: self.plan.clone(),
            done: self.done.clone(),
        })
    }

    /// What [`SlotTable::dump`] gave.
    pub(super) fn restored(dump: Option<Table>) -> Result<Self, proto::Malformed> {
        let dump = dump.unwrap_or_default();
        let map = dump.map.as_ref().map(proto::SlotMap::read).transpose()?;
        Ok(SlotTable { map, plan: dump.plan, done: dump.done })
    }
}

/// The slots that a request is about.
fn chosen(map: &SlotMap, shards: u32, start: &proto::StartSlotPlan) -> Result<SlotSet, String> {
    let (from, to) = (start.from, start.to);
    if let Some(missing) = [from, to].into_iter().find(|shard| *shard >= shards) {
        return Err(format!("no shard {missing}: this cluster has {shards}"));
    }
    if from == to {
        return Err(format!("shard {from} has its slots already"));
    }
    let owned = map.slots_of(ShardId(from));
    let named = proto::slot_set(&start.slots).map_err(|error| error.to_string())?;
    let slots = if start.slots.is_empty() { owned.highest(start.count) } else { named };
    if slots.is_empty() {
        return Err(format!("shard {from} owns {} slots: name which of them, or how many", owned.len()));
    }
    if !slots.is_within(&owned) {
        return Err(format!("shard {from} does not own slots {}", slots.without(&owned)));
    }
    Ok(slots)
}

/// What a move is about, for people.
pub fn say(plan: &SlotPlan) -> String {
    let slots = proto::slot_set(&plan.slots).unwrap_or_default();
    let (count, from, to) = (slots.len(), plan.from, plan.to);
    format!("{count} slots from shard {from} to shard {to}, map {}: {slots}", plan.epoch)
}

/// Where one of the two shards of a move stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Of the last move that it took part in.
    pub epoch: u64,
    /// It still has the copy that has left.
    pub leaving: bool,
    /// Slots are arriving.
    pub coming: bool,
}

impl Side {
    /// As its tables have it, for the move that makes map `epoch`.
    pub fn of(owned: &Owned, epoch: u64) -> Self {
        Side {
            epoch: owned.epoch(),
            leaving: owned.leaving().is_some_and(|leaving| leaving.epoch == epoch),
            coming: owned.coming().is_some_and(|coming| coming.epoch == epoch),
        }
    }
}
