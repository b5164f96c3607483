//! Edges that end in other shards than the record they come from (R6): what this shard's leader has to
//! tell the others, kept until they have it.
//!
//! Ends are numbered. The other shard takes those of one shard in ascending order and answers for each that
//! it could not take: the slot is elsewhere, or a later one came before it. Such an end gets a new number,
//! so what is delayed on the way can never count twice. Taking one twice would do harm only if the record
//! was submitted again meanwhile; then the edge is told anew, behind whatever is on its way. And what is made
//! from that record would have its edges ended with those of the earlier one: so it runs only once they have
//! (`early`).

use super::format::OutboxDump;
use super::{Answer, ShardState};
use mobula_base::{ObjectId, RunId, TaskId};
use mobula_proto as proto;
use prost::Message;
use std::collections::BTreeMap;
use std::io;

/// While more wait than this, nothing is pruned that would add to it.
pub const MAX_OUTBOX: usize = 100_000;

/// An edge elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    object: ObjectId,
    by: ObjectId,
    what: What,
}

/// What is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// It ends.
    Ends,
    /// It begins.
    Begins,
    /// Is there what it comes from? Who said so is dead. It goes to the shard of that.
    Asks(u64),
    /// There is not: it ends, unless somebody else has said so by now.
    Orphan,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Outbox {
    last: u64,
    ends: BTreeMap<u64, End>,
    /// How many there are by the runs that they come from.
    sources: BTreeMap<RunId, u32>,
    /// By shard: up to which number its ends were taken here.
    marks: BTreeMap<u32, u64>,
}

impl Outbox {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether edges from a record have yet to end.
    pub(super) fn is_ending(&self, by: TaskId) -> bool {
        let ends = |end: &End| end.what == What::Ends && end.by.task == by;
        self.sources.contains_key(&by.run) && self.ends.values().any(ends)
    }

    /// The first `limit` that wait.
    pub fn first(&self, limit: usize) -> Vec<proto::LooseEnd> {
        self.ends.iter().take(limit).map(|(seq, end)| end.dump(*seq)).collect()
    }

    fn push(&mut self, end: End) {
        self.last += 1;
        self.insert(self.last, end);
    }

    fn insert(&mut self, seq: u64, end: End) {
        *self.sources.entry(end.by.task.run).or_default() += 1;
        self.ends.insert(seq, end);
    }

    fn remove(&mut self, seq: u64) -> Option<End> {
        let end = self.ends.remove(&seq)?;
        let run = end.by.task.run;
        if let Some(count) = self.sources.get_mut(&run) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&run);
            }
        }
        Some(end)
    }

    pub(super) fn dump(&self) -> OutboxDump {
        OutboxDump { last: self.last, ends: self.first(self.ends.len()), marks: self.marks.clone() }
    }

    pub(super) fn restored(dump: OutboxDump) -> Option<Self> {
        let mut outbox = Outbox { last: dump.last, marks: dump.marks, ..Outbox::default() };
        for end in &dump.ends {
            outbox.insert(end.seq, End::load(end)?);
        }
        Some(outbox)
    }
}

impl End {
    fn dump(&self, seq: u64) -> proto::LooseEnd {
        let (object, by) = (proto::object_bytes(self.object), proto::object_bytes(self.by));
        let mut end = proto::LooseEnd { seq, object, by, ..Default::default() };
        match self.what {
            What::Ends => {}
            What::Begins => end.name = true,
            What::Asks(dead) => {
                // The first of the two says who is to be told.
                std::mem::swap(&mut end.object, &mut end.by);
                end.asks = dead;
            }
            What::Orphan => end.orphan = true,
        }
        end
    }

    /// Whose shard takes it.
    fn home(&self) -> RunId {
        match self.what {
            What::Asks(_) => self.by.task.run,
            What::Ends | What::Begins | What::Orphan => self.object.task.run,
        }
    }

    fn load(end: &proto::LooseEnd) -> Option<Self> {
        let (object, by) = (ObjectId::from_bytes(&end.object)?, ObjectId::from_bytes(&end.by)?);
        let what = match end {
            proto::LooseEnd { name: true, .. } => What::Begins,
            proto::LooseEnd { orphan: true, .. } => What::Orphan,
            proto::LooseEnd { asks: 0, .. } => What::Ends,
            proto::LooseEnd { asks, .. } => What::Asks(*asks),
        };
        match what {
            What::Asks(_) => Some(End { object: by, by: object, what }),
            What::Ends | What::Begins | What::Orphan => Some(End { object, by, what }),
        }
    }
}

impl ShardState {
    /// An edge to an object of another shard has ended.
    pub(super) fn tell_end(&mut self, object: ObjectId, by: ObjectId) {
        self.counting.outbox.push(End { object, by, what: What::Ends });
    }

    /// An edge that the dead spoke of comes from another shard: is there such a record?
    pub(super) fn ask_for(&mut self, object: ObjectId, by: ObjectId, dead: u64) {
        self.counting.outbox.push(End { object, by, what: What::Asks(dead) });
    }

    /// A record has come (again): edges of its earlier life that are about to end elsewhere are told anew.
    pub(super) fn renew(&mut self, id: TaskId, spec: &[u8]) {
        let outbox = &mut self.counting.outbox;
        if !outbox.sources.contains_key(&id.run) {
            return;
        }
        let names = super::prune::named(&proto::TaskSpec::decode(spec).unwrap_or_default());
        let is_ending = |end: &&End| !matches!(end.what, What::Asks(_) | What::Begins);
        let ends = outbox.ends.values().filter(is_ending);
        let ends = ends.filter(|end| end.by.task == id && names.contains(&end.object));
        let again: Vec<End> = ends.map(|end| End { what: What::Begins, ..*end }).collect();
        again.into_iter().for_each(|end| outbox.push(end));
    }

    /// What another shard has to tell.
    pub(super) fn take_ends(&mut self, told: &proto::Unnames) -> io::Result<Answer> {
        self.count_from_here();
        let mut mark = self.counting.outbox.marks.get(&told.from_shard).copied().unwrap_or(0);
        let mut again = Vec::new();
        for dump in &told.ends {
            let Some(end) = End::load(dump) else { continue };
            let is_late = dump.seq <= mark;
            mark = mark.max(dump.seq);
            if is_late || self.slots.moved(end.home().slot()).is_some() || !self.take_end(end)? {
                again.push(dump.seq);
            }
        }
        self.counting.outbox.marks.insert(told.from_shard, mark);
        Ok(Answer::Unnames(proto::UnnamesAck { again }))
    }

    /// Takes one; false when it is too early for that.
    fn take_end(&mut self, end: End) -> io::Result<bool> {
        match end.what {
            What::Ends => self.end_edge_here(end.object, end.by)?,
            // What is not here any more is not made again for this.
            What::Begins => self.name_if_there(end.object, end.by)?,
            What::Orphan => self.end_orphan_here(end.object, end.by)?,
            // What the dead have sent may still come.
            What::Asks(dead) if !self.is_fenced(dead) => return Ok(false),
            What::Asks(_) => {
                if !self.is_meant(end.object, end.by)? {
                    self.counting.outbox.push(End { what: What::Orphan, ..end });
                }
            }
        }
        Ok(true)
    }

    /// What has become of ends that were told.
    pub(super) fn note_delivered(&mut self, told: &proto::Delivered) -> io::Result<()> {
        for seq in &told.done {
            self.counting.outbox.remove(*seq);
        }
        for seq in &told.again {
            let Some(end) = self.counting.outbox.remove(*seq) else { continue };
            // Its record has come again meanwhile: it would end what was told since.
            if end.what != What::Ends || self.tasks.get(end.by.task)?.is_none() {
                self.counting.outbox.push(end);
            }
        }
        Ok(())
    }
}
