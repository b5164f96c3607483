//! A node's traffic to one shard: one sequenced stream, one batch in flight (R12).
//!
//! Whatever has queued up while a batch was under way is the next batch, so batches grow with the
//! shard's latency. A batch is repeated unchanged until it is acknowledged.
//!
//! What an item is waited for by is its *ticket*, not its number on the wire: an item whose slot moves
//! leaves its stream for another one, and keeps the ticket of the shard that it was first meant for.

use mobula_base::{Incarnation, ObjectId, ShardId, TaskId, mutant};
use mobula_proto::{StreamBatch, StreamItem};
use std::collections::{BTreeSet, VecDeque};

/// Items in a batch at most.
pub const BATCH_ITEMS_MAX: usize = 4096;
/// Bytes in a batch at most (arguments travel inside records).
pub const BATCH_BYTES_MAX: usize = 4 << 20;

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
    /// The slot that it lies in.
    pub fn slot(self) -> u32 {
        match self {
            About::Submit(task) | About::Done(task) | About::Next(task) => task.run.slot(),
            About::Put(object) | About::Name(object) | About::Unname(object) | About::Release(object) => {
                object.task.run.slot()
            }
        }
    }
}

/// By what an item is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The shard it was first meant for.
    pub shard: ShardId,
    /// Counted from 1 for each shard.
    pub number: u64,
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
    pub item: StreamItem,
    pub bytes: usize,
    pub waits: Waits,
}

/// The stream to one shard.
#[derive(Debug, Default)]
pub struct Stream {
    queue: VecDeque<Queued>,
    in_flight: Vec<Waits>,
    /// Highest acknowledged sequence number on the wire.
    acked: u64,
    /// Tickets given.
    given: u64,
    /// The last ticket of this shard that was acknowledged from this stream.
    settled: u64,
    /// Items here that have a ticket of this shard, never left, and were not withdrawn.
    own: usize,
    /// The last ticket of this shard whose item was put into a batch here.
    taken: u64,
    /// Tickets whose items are still queued and will not be sent.
    withdrawn: BTreeSet<u64>,
    /// Tickets of this shard whose items have left, and are not acknowledged elsewhere yet.
    strayed: BTreeSet<u64>,
}

impl Stream {
    /// A ticket for an item of this shard, that is queued here or strays from the start.
    pub(crate) fn ticket(&mut self, shard: ShardId, strays: bool) -> Ticket {
        self.given += 1;
        if strays {
            self.strayed.insert(self.given);
        }
        Ticket { shard, number: self.given }
    }

    /// Queues an item.
    pub(crate) fn push(&mut self, queued: Queued) {
        self.own += usize::from(!queued.waits.strays);
        self.queue.push_back(queued);
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
        let here = if self.own == 0 { self.given } else { self.settled };
        self.strayed.first().map_or(here, |first| here.min(first - 1))
    }

    /// Items that are here and not acknowledged.
    pub(crate) fn pending(&self) -> u64 {
        (self.queue.len() + self.in_flight.len() - self.withdrawn.len()) as u64
    }

    /// Whether the item with this ticket of this shard waits here, so that it could be withdrawn.
    pub(crate) fn is_queued(&self, number: u64) -> bool {
        number > self.taken && !self.strayed.contains(&number) && !self.withdrawn.contains(&number)
    }

    /// The item with this ticket is not to be sent, if it has not been.
    pub(crate) fn withdraw(&mut self, number: u64) -> bool {
        let queued = self.is_queued(number);
        if queued {
            self.withdrawn.insert(number);
            self.own -= 1;
        }
        queued
    }

    /// What the batch in flight is about.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = About> + '_ {
        self.in_flight.iter().map(|waits| waits.about)
    }

    /// The next batch, unless one is in flight or nothing waits.
    pub(crate) fn next_batch(&mut self, incarnation: Incarnation) -> Option<StreamBatch> {
        if !self.in_flight.is_empty() || self.queue.is_empty() {
            return None;
        }
        let mut ranks = self.take_batch();
        if ranks.iter().all(Vec::is_empty) {
            return None;
        }
        // References first, then records, so that neighbours of a run stand together and travel as one
        // piece. Nothing that follows from a record comes before it, and a record follows from nothing in
        // its batch but its edges.
        if mutant!("R12c") {
            ranks.reverse();
        }
        let mut items = Vec::with_capacity(ranks.iter().map(Vec::len).sum());
        for queued in ranks.into_iter().flatten() {
            items.push(queued.item);
            self.in_flight.push(queued.waits);
        }
        Some(StreamBatch { incarnation: incarnation.0, first_seq: self.acked + 1, items })
    }

    /// What the next batch is made of, by rank, each as it was queued: what was withdrawn is left out. It ends
    /// before an object is held or made anew whose release is in it, since the order within it changes.
    fn take_batch(&mut self) -> [Vec<Queued>; RANKS] {
        let mut ranks: [Vec<Queued>; RANKS] = Default::default();
        let (mut count, mut bytes, mut released) = (0, 0, BTreeSet::new());
        while let Some(next) = self.queue.front() {
            let Waits { about, ticket, strays } = next.waits;
            if !strays && self.withdrawn.remove(&ticket.number) {
                self.queue.pop_front();
                continue;
            }
            let full = count == BATCH_ITEMS_MAX || (bytes + next.bytes > BATCH_BYTES_MAX && count > 0);
            let anew = match about {
                About::Submit(task) => released.contains(&task.output(0)),
                About::Name(object) => released.contains(&object),
                _ => false,
            };
            if full || anew {
                break;
            }
            bytes += next.bytes;
            if let About::Release(object) = about {
                released.insert(object);
            }
            if !strays {
                self.taken = self.taken.max(ticket.number);
            }
            count += 1;
            ranks[rank(about)].extend(self.queue.pop_front());
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
        self.in_flight.drain(..).enumerate().map(|(i, waits)| (first + i as u64, waits)).collect()
    }

    /// An item that was acknowledged or is taken out here is to be sent elsewhere.
    pub(crate) fn lose(&mut self, waits: &mut Waits) {
        if !waits.strays {
            waits.strays = true;
            self.strayed.insert(waits.ticket.number);
        }
    }

    /// An item that has left this shard's stream is acknowledged.
    pub(crate) fn found(&mut self, ticket: u64) {
        self.strayed.remove(&ticket);
    }

    /// Whether an item of one of these slots is in flight.
    pub(crate) fn slots_in_flight(&self) -> BTreeSet<u32> {
        self.in_flight.iter().map(|waits| waits.about.slot()).collect()
    }

    /// Takes what waits here and `goes` out, in order.
    pub(crate) fn take_out(&mut self, goes: impl Fn(u32) -> bool) -> Vec<Queued> {
        let withdrawn = std::mem::take(&mut self.withdrawn);
        let queue = std::mem::take(&mut self.queue).into_iter();
        let sent =
            queue.filter(|queued| queued.waits.strays || !withdrawn.contains(&queued.waits.ticket.number));
        let (out, stay): (VecDeque<_>, _) = sent.partition(|queued| goes(queued.waits.about.slot()));
        self.queue = stay;
        let mut out = Vec::from(out);
        for queued in &mut out {
            self.own -= usize::from(!queued.waits.strays);
            self.lose(&mut queued.waits);
        }
        out
    }
}
