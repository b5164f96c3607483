//! A node's traffic to one shard: one sequenced stream, one batch in flight (R12).
//!
//! Whatever has queued up while a batch was under way is the next batch, so batches grow with the
//! shard's latency. A batch is repeated unchanged until it is acknowledged.

use mobula_base::{Incarnation, ObjectId, TaskId};
use mobula_proto::{StreamBatch, StreamItem};
use std::collections::VecDeque;

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
    /// A small put.
    Put(ObjectId),
}

/// The stream to one shard.
#[derive(Debug, Default)]
pub struct Stream {
    queue: VecDeque<(StreamItem, usize, About)>,
    in_flight: Vec<About>,
    acked: u64,
    pushed: u64,
}

impl Stream {
    /// Queues an item of about `bytes` bytes; returns its sequence number.
    pub fn push(&mut self, item: StreamItem, bytes: usize, about: About) -> u64 {
        self.queue.push_back((item, bytes, about));
        self.pushed += 1;
        self.pushed
    }

    /// The highest acknowledged sequence number.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The sequence number of the last item that was queued.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Items that are not acknowledged.
    pub fn pending(&self) -> u64 {
        self.pushed - self.acked
    }

    /// The next batch, unless one is in flight or nothing waits.
    pub fn next_batch(&mut self, incarnation: Incarnation) -> Option<StreamBatch> {
        if !self.in_flight.is_empty() || self.queue.is_empty() {
            return None;
        }
        let mut total = 0;
        let fits = |(at, (_, bytes, _)): (usize, &(StreamItem, usize, About))| {
            total += bytes;
            at < BATCH_ITEMS_MAX && (total <= BATCH_BYTES_MAX || at == 0)
        };
        let count = self.queue.iter().enumerate().map(fits).take_while(|fits| *fits).count();
        // Records first: so neighbours of a run stand together and travel as one piece. Nothing that
        // follows from a record comes before it, and a record follows from nothing in its batch.
        let (records, rest): (Vec<_>, Vec<_>) =
            self.queue.drain(..count).partition(|(_, _, about)| matches!(about, About::Submit(_)));
        let mut items = Vec::with_capacity(count);
        for (item, _, about) in records.into_iter().chain(rest) {
            items.push(item);
            self.in_flight.push(about);
        }
        Some(StreamBatch { incarnation: incarnation.0, first_seq: self.acked + 1, items })
    }

    /// The batch in flight is acknowledged up to `mark`: what its items were about, with their
    /// sequence numbers. Empty for an acknowledgement of something older.
    pub fn acknowledge(&mut self, mark: u64) -> Vec<(u64, About)> {
        if mark < self.acked + self.in_flight.len() as u64 || self.in_flight.is_empty() {
            return Vec::new();
        }
        let first = self.acked + 1;
        self.acked += self.in_flight.len() as u64;
        self.in_flight.drain(..).enumerate().map(|(i, about)| (first + i as u64, about)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::JobId;

    #[test]
    fn one_batch_at_a_time_and_what_waited_is_the_next() {
        let task = TaskId::root(JobId(1));
        let mut stream = Stream::default();
        assert_eq!(stream.push(StreamItem::default(), 1, About::Submit(task)), 1);
        let first = stream.next_batch(Incarnation(3)).expect("one waits");
        assert_eq!((first.first_seq, first.items.len()), (1, 1));
        stream.push(StreamItem::default(), 1, About::Done(task));
        stream.push(StreamItem::default(), 1, About::Next(task));
        assert!(stream.next_batch(Incarnation(3)).is_none(), "one is in flight");
        assert!(stream.acknowledge(0).is_empty(), "an old acknowledgement says nothing");
        assert_eq!(stream.acknowledge(1), vec![(1, About::Submit(task))]);
        let second = stream.next_batch(Incarnation(3)).expect("two wait");
        assert_eq!((second.first_seq, second.items.len()), (2, 2));
        assert_eq!(stream.acknowledge(3).len(), 2);
        assert_eq!(stream.pending(), 0);
    }
}
