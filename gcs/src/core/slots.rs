//! Which slots a shard owns, as its own log has it (R12).
//!
//! Until the first move that touches it a shard keeps no list: it takes what it is asked, and is asked
//! only for what the first map gives it. The move's first command brings the list. From then on whatever
//! lies in a slot that is not on it is answered `moved`, with the epoch of the map that says where it is.
//!
//! Slots that leave keep their content here, unchanged, until the shard they go to has all of it.

use bytes::Bytes;
use mobula_base::slots::slot_of_key;
use mobula_base::{ObjectId, RunId, SlotSet, TaskId};
use mobula_proto as proto;
use proto::stream_item::Item;
use proto::{SlotCursor, SlotRow};

/// Slots on their way out.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaving {
    /// The map that the move makes.
    pub epoch: u64,
    /// Which.
    pub slots: SlotSet,
    /// The copy here is being taken apart.
    pub forgetting: bool,
}

/// Slots on their way in.
#[derive(Clone, Debug, PartialEq)]
pub struct Coming {
    /// The map that the move makes.
    pub epoch: u64,
    /// Which.
    pub slots: SlotSet,
    /// What is here so far.
    pub cursor: SlotCursor,
}

/// What a shard owns. See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owned {
    /// `None` until a move has touched this shard.
    slots: Option<SlotSet>,
    /// Of the last move that touched it.
    epoch: u64,
    /// Of the last move that brought slots: what nodes reported before says nothing about them (R9).
    adopted: u64,
    leaving: Option<Leaving>,
    coming: Option<Coming>,
}

/// As snapshots hold it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OwnedDump {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(message, repeated, tag = "2")]
    slots: Vec<SlotRow>,
    #[prost(uint64, tag = "3")]
    adopted: u64,
    #[prost(uint64, tag = "4")]
    leaving_epoch: u64,
    #[prost(message, repeated, tag = "5")]
    leaving: Vec<SlotRow>,
    #[prost(bool, tag = "6")]
    forgetting: bool,
    #[prost(uint64, tag = "7")]
    coming_epoch: u64,
    #[prost(message, repeated, tag = "8")]
    coming: Vec<SlotRow>,
    #[prost(message, optional, tag = "9")]
    cursor: Option<SlotCursor>,
}

impl Owned {
    /// Of the last move that touched this shard, 0 for none.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Of the last move that brought slots here, 0 for none.
    pub fn adopted(&self) -> u64 {
        self.adopted
    }

    /// Slots on their way out.
    pub fn leaving(&self) -> Option<&Leaving> {
        self.leaving.as_ref()
    }

    /// Slots on their way in.
    pub fn coming(&self) -> Option<&Coming> {
        self.coming.as_ref()
    }

    /// Whether a slot is elsewhere: the epoch of the map that says where.
    pub fn moved(&self, slot: u32) -> Option<u64> {
        self.slots.as_ref().filter(|slots| !slots.contains(slot))?;
        let leaving = self.leaving.as_ref().map(|leaving| &leaving.slots);
        match leaving.or(self.coming.as_ref().map(|coming| &coming.slots)) {
            // The move that is under way does not concern it: no need to wait for its end.
            Some(slots) if !slots.contains(slot) => Some(self.epoch - 1),
            _ => Some(self.epoch),
        }
    }

    /// As [`Owned::moved`], for the slot of a key.
    pub fn moved_key(&self, key: &[u8]) -> Option<u64> {
        self.slots.as_ref()?;
        self.moved(slot_of_key(key))
    }

    /// As [`Owned::moved`], for the slot of what a node sends; what is malformed is nobody's.
    pub fn moved_item(&self, item: &proto::StreamItem) -> Option<u64> {
        self.slots.as_ref()?;
        self.moved(run_of(item)?.slot())
    }

    /// Slots begin to arrive from another shard; repeating it changes nothing.
    pub(super) fn expect(&mut self, epoch: u64, slots: SlotSet, owned: SlotSet) {
        if epoch > self.epoch {
            let had = self.slots.unwrap_or(owned);
            (self.slots, self.epoch) = (Some(had.without(&slots)), epoch);
            self.coming = Some(Coming { epoch, slots, cursor: SlotCursor::default() });
        }
    }

    /// Slots go: nothing in them changes from here on. Whether they went by this.
    pub(super) fn release(&mut self, epoch: u64, slots: SlotSet, owned: SlotSet) -> bool {
        let goes = epoch > self.epoch;
        if goes {
            let had = self.slots.unwrap_or(owned);
            (self.slots, self.epoch) = (Some(had.without(&slots)), epoch);
            self.leaving = Some(Leaving { epoch, slots, forgetting: false });
        }
        goes
    }

    /// Whether a piece of content is the next one.
    pub(super) fn wants(&self, piece: &proto::SlotContent) -> bool {
        let from = piece.from.clone().unwrap_or_default();
        self.coming.as_ref().is_some_and(|coming| coming.epoch == piece.epoch && coming.cursor == from)
    }

    /// A piece that was wanted is here.
    pub(super) fn has_come(&mut self, piece: &proto::SlotContent) {
        let Some(coming) = &mut self.coming else { return };
        coming.cursor = piece.next.clone().unwrap_or_default();
        if piece.last {
            self.slots = Some(self.slots.unwrap_or_default().union(&coming.slots));
            (self.adopted, self.coming) = (coming.epoch, None);
        }
    }

    /// The copy of slots that have left is taken apart, or with `last` has been; whether it is so now.
    pub(super) fn forget(&mut self, epoch: u64, last: bool) -> Option<SlotSet> {
        let leaving = self.leaving.as_mut().filter(|leaving| leaving.epoch == epoch)?;
        leaving.forgetting = true;
        let slots = leaving.slots;
        if last {
            self.leaving = None;
        }
        Some(slots)
    }

    /// `None` while there is nothing to say: dumps of the first level have no such thing.
    pub(super) fn dump(&self) -> Option<OwnedDump> {
        let slots = self.slots.as_ref()?;
        let leaving = self.leaving.as_ref();
        let coming = self.coming.as_ref();
        Some(OwnedDump {
            epoch: self.epoch,
            slots: proto::slot_rows(slots),
            adopted: self.adopted,
            leaving_epoch: leaving.map_or(0, |leaving| leaving.epoch),
            leaving: leaving.map(|leaving| proto::slot_rows(&leaving.slots)).unwrap_or_default(),
            forgetting: leaving.is_some_and(|leaving| leaving.forgetting),
            coming_epoch: coming.map_or(0, |coming| coming.epoch),
            coming: coming.map(|coming| proto::slot_rows(&coming.slots)).unwrap_or_default(),
            cursor: coming.map(|coming| coming.cursor.clone()),
        })
    }

    /// What [`Owned::dump`] gave.
    pub(super) fn restored(dump: Option<OwnedDump>) -> Result<Self, proto::Malformed> {
        let Some(dump) = dump else { return Ok(Owned::default()) };
        let leaving = Leaving {
            epoch: dump.leaving_epoch,
            slots: proto::slot_set(&dump.leaving)?,
            forgetting: dump.forgetting,
        };
        let coming = Coming {
            epoch: dump.coming_epoch,
            slots: proto::slot_set(&dump.coming)?,
            cursor: dump.cursor.unwrap_or_default(),
        };
        Ok(Owned {
            slots: Some(proto::slot_set(&dump.slots)?),
            epoch: dump.epoch,
            adopted: dump.adopted,
            leaving: Some(leaving).filter(|leaving| leaving.epoch > 0),
            coming: Some(coming).filter(|coming| coming.epoch > 0),
        })
    }
}

/// The run that an item is about.
fn run_of(item: &proto::StreamItem) -> Option<RunId> {
    let of_task = |id: &Bytes| TaskId::from_bytes(id).map(|id| id.run);
    let of_run = |id: &Bytes| Some(RunId(u128::from_be_bytes(id[..].try_into().ok()?)));
    match item.item.as_ref()? {
        Item::Submit(spec) => of_task(&spec.id),
        Item::Done(done) => of_task(&done.task),
        Item::Next(next) => of_task(&next.task),
        Item::Put(put) => ObjectId::from_bytes(&put.object).map(|id| id.task.run),
        Item::Run(run) => of_run(&run.run),
        Item::RunDone(done) => of_run(&done.run),
        Item::RunRelease(release) => of_run(&release.run),
        Item::Name(proto::Name { object, .. })
        | Item::Unname(proto::Unname { object, .. })
        | Item::Release(proto::Release { object }) => ObjectId::from_bytes(object).map(|id| id.task.run),
    }
}
