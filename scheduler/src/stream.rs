//! A node's traffic to one shard: one sequenced stream, one batch in flight (R12).
//!
//! Whatever has queued up while a batch was under way is the next batch, so batches grow with the
//! shard's latency. A batch is repeated unchanged until it is acknowledged.
//!
//! Items that nobody waits for *linger*: a task that comes and goes meanwhile is elided (R4), and the control
//! store never hears of it. An item is due when it has lingered its time, when somebody waits for it or for
//! one behind it, and when too many linger.
//!
//! What an item is waited for by is its *ticket*, not its number on the wire: an item whose slot moves
//! leaves its stream for another one, and keeps the ticket of the shard that it was first meant for.

use crate::line::Line;
use mobula_base::{Incarnation, Instant, ObjectId, ShardId, TaskId, mutant};
use mobula_proto::{Done, Output, StreamBatch, StreamItem, TaskSpec, object_id, stream_item, task_bytes};
use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Items in a batch at most.
pub const BATCH_ITEMS_MAX: usize = 4096;
/// Bytes in a batch at most (arguments travel inside records).
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Items of a stream that linger at most.
pub const LINGER_ITEMS_MAX: usize = 8 * BATCH_ITEMS_MAX;
/// Bytes of a stream that linger at most.
pub const LINGER_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// What an item was about, kept until its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A lineage record.
    Submit(TaskId),
    /// A done-record.
    Done(TaskId),
    /// A compare-and-set on the attempt.
    Next(TaskId),
    /// A driver's put.
    Put(ObjectId),
    /// A reference: an edge, a hold, or both (R6, R8).
    Name(ObjectId),
    /// The end of an edge.
    Unname(ObjectId),
    /// The end of a hold.
    Release(ObjectId),
}

impl About {
    /// The task that it is about, or whose object it is about.
    pub fn task(self) -> TaskId {
        match self {
            About::Submit(task) | About::Done(task) | About::Next(task) => task,
            About::Put(object) | About::Name(object) | About::Unname(object) | About::Release(object) => {
                object.task
            }
        }
    }

    /// The slot that it lies in.
    pub fn slot(self) -> u32 {
        self.task().run.slot()
    }
}

/// By what an item is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The shard it was first meant for.
    pub shard: ShardId,
    /// Counted from 1 for each shard.
    pub number: u64,
    /// Where in that shard's line it was put, if it was.
    pub place: Option<NonZeroU64>,
}

/// What an item says.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A lineage record, whose specification others have, too.
    Record(Arc<TaskSpec>),
    /// The done-record of a task that made a value with no references inside: most are withdrawn again, and
    /// never written.
    Done(PlainDone),
    /// Anything else.
    Item(Box<StreamItem>),
}

/// What a plain done-record says of its task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainDone {
    pub attempt: u32,
    pub executor: Incarnation,
    pub output: Output,
    /// The node that has the value, too, if it did not make it; or nobody.
    pub holder: Incarnation,
}

impl PlainDone {
    /// Bytes of such a record, at most.
    pub const BYTES: usize = 80;

    fn of(self, task: TaskId) -> StreamItem {
        let done = Done {
            task: task_bytes(task),
            attempt: self.attempt,
            executor: self.executor.0,
            outputs: vec![self.output],
            holders: Some(self.holder.0).filter(|node| *node != 0).into_iter().collect(),
            ..Done::default()
        };
        StreamItem { item: Some(stream_item::Item::Done(done)) }
    }
}

impl Content {
    /// What an edge comes from.
    fn named_by(&self) -> Option<ObjectId> {
        let Content::Item(item) = self else { return None };
        let Some(stream_item::Item::Name(name)) = &item.item else { return None };
        object_id(&name.by).ok()
    }

    fn into_item(self, about: About) -> StreamItem {
        match self {
            Content::Record(spec) => {
                StreamItem { item: Some(stream_item::Item::Submit(Arc::unwrap_or_clone(spec))) }
            }
            Content::Done(done) => done.of(about.task()),
            Content::Item(item) => *item,
        }
    }
}

impl From<Arc<TaskSpec>> for Content {
    fn from(spec: Arc<TaskSpec>) -> Self {
        Content::Record(spec)
    }
}

impl From<StreamItem> for Content {
    fn from(item: StreamItem) -> Self {
        Content::Item(Box::new(item))
    }
}

/// An item in a stream, without its content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    pub about: About,
    pub ticket: Ticket,
    /// It has left the stream that gave the ticket, which remembers it.
    pub strays: bool,
}

/// Places of [`rank`].
const RANKS: usize = 4;

/// Where in a batch an item stands.
fn rank(about: About) -> usize {
    match about {
        About::Name(_) | About::Unname(_) => 0,
        About::Submit(_) => 1,
        About::Done(_) | About::Next(_) | About::Put(_) => 2,
        About::Release(_) => 3,
    }
}

/// An item in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub item: Content,
    pub bytes: usize,
    pub waits: Waits,
    /// It is due then.
    pub due: Instant,
}

/// The stream to one shard.
#[derive(Debug, Default)]
pub struct Stream {
    line: Line<Queued>,
    /// Bytes of what is in the line.
    bytes: usize,
    /// What has a place before this one is due, whatever its time.
    hurried: u64,
    /// Items of a batch, at most, if not as many as usual.
    pub(crate) items_max: Option<usize>,
    in_flight: Vec<Waits>,
    /// Highest acknowledged sequence number on the wire.
    acked: u64,
    /// Tickets given.
    given: u64,
    /// The last ticket of this shard that was acknowledged from this stream.
    settled: u64,
    /// Items here, or on their way from here, that have a ticket of this shard and never left.
    own: usize,
    /// Tickets of this shard whose items have left, and are not acknowledged elsewhere yet.
    strayed: BTreeSet<u64>,
    /// Tickets of this shard whose items are acknowledged, though one before them is not.
    early: BTreeSet<u64>,
}

impl Stream {
    /// A ticket for an item of this shard that is not in its line.
    pub(crate) fn stray(&mut self, shard: ShardId) -> Ticket {
        self.given += 1;
        self.strayed.insert(self.given);
        Ticket { shard, number: self.given, place: None }
    }

    /// Queues an item that was meant for this shard from the start; its ticket.
    pub(crate) fn push_own(
        &mut self,
        shard: ShardId,
        item: Content,
        bytes: usize,
        about: About,
        due: Instant,
    ) -> Ticket {
        self.given += 1;
        self.own += 1;
        let ticket = Ticket { shard, number: self.given, place: NonZeroU64::new(self.line.next()) };
        self.push(Queued { item, bytes, waits: Waits { about, ticket, strays: false }, due });
        ticket
    }

    /// Queues an item that has a ticket.
    pub(crate) fn push(&mut self, queued: Queued) {
        self.bytes += queued.bytes;
        self.line.push(queued);
    }

    /// Whatever is queued is due.
    pub(crate) fn hurry(&mut self) {
        self.hurried = self.line.next();
    }

    /// Somebody waits for the item with this ticket of this shard: whether it is not here.
    pub(crate) fn hurry_for(&mut self, number: u64) -> bool {
        let first = self.line.front().map(|first| first.waits);
        if first.is_some_and(|first| first.strays || first.ticket.number <= number) {
            self.hurry();
        }
        self.strayed.contains(&number)
    }

    /// When the first item is due, unless a batch is in flight: what comes next, comes with its acknowledgement.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.line.front().filter(|_| self.in_flight.is_empty()).map(|first| first.due)
    }

    fn pop(&mut self) -> Option<Queued> {
        let queued = self.line.pop()?;
        self.bytes -= queued.bytes;
        Some(queued)
    }

    /// Whether the first item is to be sent now.
    fn is_due(&self, now: Instant) -> bool {
        let Some(first) = self.line.front() else { return false };
        let many = self.line.len() > LINGER_ITEMS_MAX || self.bytes > LINGER_BYTES_MAX;
        many || self.line.first() < self.hurried || first.due <= now
    }

    /// The number of the last ticket.
    pub(crate) fn given(&self) -> u64 {
        self.given
    }

    /// The highest ticket whose item has left and is not acknowledged yet.
    pub(crate) fn last_strayed(&self) -> Option<u64> {
        self.strayed.last().copied()
    }

    /// The first ticket whose item has left, or has not come, and is not acknowledged yet.
    pub(crate) fn first_strayed(&self) -> Option<u64> {
        self.strayed.first().copied()
    }

    /// All items with a ticket up to this one are acknowledged.
    pub(crate) fn committed(&self) -> u64 {
        let here = match self.line.front() {
            _ if self.own == 0 => self.given,
            // All before it were acknowledged or withdrawn.
            Some(Queued { waits: Waits { ticket, strays: false, .. }, .. }) if self.in_flight.is_empty() => {
                ticket.number - 1
            }
            _ => self.settled,
        };
        self.strayed.first().map_or(here, |first| here.min(first - 1))
    }

    /// Whether the item with this ticket is acknowledged.
    pub(crate) fn is_committed(&self, number: u64) -> bool {
        self.early.contains(&number) || self.committed() >= number
    }

    /// Remembers of these what the first open ticket hides.
    fn note_early(&mut self, acknowledged: impl Iterator<Item = u64>) {
        let committed = self.committed();
        self.early.extend(acknowledged.filter(|number| *number > committed));
        if self.early.first().is_some_and(|first| *first <= committed) {
            self.early = self.early.split_off(&(committed + 1));
        }
    }

    /// Items that are here and not acknowledged.
    pub(crate) fn pending(&self) -> u64 {
        (self.line.len() + self.in_flight.len()) as u64
    }

    /// Whether the item with this ticket of this shard waits here, so that it could be withdrawn.
    pub(crate) fn is_queued(&self, ticket: Ticket) -> bool {
        let queued = ticket.place.and_then(|place| self.line.get(place.get()));
        queued.is_some_and(|queued| !queued.waits.strays && queued.waits.ticket == ticket)
    }

    /// The item with this ticket is not to be sent, if it has not been.
    pub(crate) fn withdraw(&mut self, ticket: Ticket) -> bool {
        if !self.is_queued(ticket) {
            return false;
        }
        if let Some(queued) = ticket.place.and_then(|place| self.line.take(place.get())) {
            self.bytes -= queued.bytes;
            self.own -= 1;
        }
        true
    }

    /// What the batch in flight is about.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = About> + '_ {
        self.in_flight.iter().map(|waits| waits.about)
    }

    /// The next batch, unless one is in flight or nothing is due.
    pub(crate) fn next_batch(&mut self, incarnation: Incarnation, now: Instant) -> Option<StreamBatch> {
        if !self.in_flight.is_empty() || !self.is_due(now) {
            return None;
        }
        let mut ranks = self.take_batch(now);
        if ranks.iter().all(Vec::is_empty) {
            return None;
        }
        // References first, then records, so that neighbours of a run stand together and travel as one
        // piece. Nothing that follows from a record comes before it, and a record follows from nothing in
        // its batch but its edges.
        if mutant!("R12c") {
            ranks.reverse();
        }
        let many = ranks.iter().map(Vec::len).sum();
        let mut items = Vec::with_capacity(many);
        self.in_flight.reserve(many);
        for queued in ranks.into_iter().flatten() {
            items.push(queued.item.into_item(queued.waits.about));
            self.in_flight.push(queued.waits);
        }
        Some(StreamBatch { incarnation: incarnation.0, first_seq: self.acked + 1, items })
    }

    /// What the next batch is made of, by rank, each as it was queued. It ends before an object is held, put, made
    /// anew or names another whose release is in it, since the order within it changes.
    fn take_batch(&mut self, now: Instant) -> [Vec<Queued>; RANKS] {
        let mut ranks: [Vec<Queued>; RANKS] = Default::default();
        let (mut count, mut bytes, mut released) = (0, 0, BTreeSet::new());
        while self.is_due(now)
            && let Some(next) = self.line.front()
        {
            let about = next.waits.about;
            let full = count == BATCH_ITEMS_MAX || (bytes + next.bytes > BATCH_BYTES_MAX && count > 0);
            let anew = match about {
                About::Submit(task) => released.contains(&task.output(0)),
                About::Name(object) => {
                    // What is pruned takes its edges along, those of its next life, too, if they are told before.
                    let by = || next.item.named_by().filter(|_| !mutant!("R12e"));
                    let lets_go = |id| released.contains(&id);
                    !released.is_empty() && (lets_go(object) || by().is_some_and(lets_go))
                }
                About::Put(object) => released.contains(&object) && !mutant!("R12d"),
                _ => false,
            };
            if full || anew {
                break;
            }
            bytes += next.bytes;
            if let About::Release(object) = about {
                released.insert(object);
            }
            count += 1;
            ranks[rank(about)].extend(self.pop());
        }
        ranks
    }

    /// The batch in flight is acknowledged up to `mark`: its items with their sequence numbers. Empty
    /// for an acknowledgement of something older.
    pub(crate) fn acknowledge(&mut self, mark: u64) -> Vec<(u64, Waits)> {
        if mark < self.acked + self.in_flight.len() as u64 || self.in_flight.is_empty() {
            return Vec::new();
        }
        let first = self.acked + 1;
        self.acked += self.in_flight.len() as u64;
        for waits in self.in_flight.iter().filter(|waits| !waits.strays) {
            self.own -= 1;
            self.settled = self.settled.max(waits.ticket.number);
        }
        let told = std::mem::take(&mut self.in_flight);
        self.note_early(told.iter().filter(|waits| !waits.strays).map(|waits| waits.ticket.number));
        (first..).zip(told).collect()
    }

    /// An item that was acknowledged or is taken out here is to be sent elsewhere.
    pub(crate) fn lose(&mut self, waits: &mut Waits) {
        if !waits.strays {
            waits.strays = true;
            self.strayed.insert(waits.ticket.number);
            self.early.remove(&waits.ticket.number);
        }
    }

    /// An item that has left this shard's stream is acknowledged.
    pub(crate) fn found(&mut self, ticket: u64) {
        self.strayed.remove(&ticket);
        self.note_early(std::iter::once(ticket));
    }

    /// Whether an item of one of these slots is in flight.
    pub(crate) fn slots_in_flight(&self) -> BTreeSet<u32> {
        self.in_flight.iter().map(|waits| waits.about.slot()).collect()
    }

    /// Takes what waits here and `goes` out, in order.
    pub(crate) fn take_out(&mut self, goes: impl Fn(u32) -> bool) -> Vec<Queued> {
        let mut out = self.line.take_all(|queued| goes(queued.waits.about.slot()));
        for queued in &mut out {
            self.bytes -= queued.bytes;
            self.own -= usize::from(!queued.waits.strays);
            self.lose(&mut queued.waits);
        }
        out
    }
}
