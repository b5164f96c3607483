//! All streams of a node, and which of them an item belongs to: that is what the slot map says.
//!
//! Slots move while items are on their way. What belongs together must stay in order: a record before
//! its done-record. So a slot that has moved is *parked* while anything of it may still be on its way to
//! its old shard: whatever comes meanwhile waits behind, and all goes to the new shard in order.
//!
//! 1. The old shard answers items `moved`: it did not take them, and never will. They are parked, with
//!    all that waits behind them, until the map is known that says where they belong.
//! 2. The new map is known first: what waits for the old shard is parked; so is the slot, until the batch
//!    in flight that may have some of it is acknowledged.

use crate::stream::{About, Content, Queued, Stream, Ticket, Waits};
use mobula_base::{Incarnation, Instant, ShardId, SlotMap};
use mobula_proto::{ItemOutcome, StreamAck, StreamBatch, StreamItem, item_outcome};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Items of a slot that cannot be sent now.
#[derive(Debug, Default)]
struct Parked {
    queue: VecDeque<Queued>,
    /// They wait for the map of this epoch.
    epoch: u64,
    /// They wait for the batch that this shard has.
    in_flight: Option<usize>,
}

/// The streams to all shards.
#[derive(Debug)]
pub struct Streams {
    /// What is queued now is due then, if nobody waits for it.
    lingers: Instant,
    map: SlotMap,
    streams: Vec<Stream>,
    parked: BTreeMap<u32, Parked>,
}

impl Streams {
    /// Streams to so many shards, that own what the first map gives them.
    pub fn new(shards: u32) -> Self {
        let streams = (0..shards).map(|_| Stream::default()).collect();
        Streams { lingers: Instant::default(), map: SlotMap::even(shards), streams, parked: BTreeMap::new() }
    }

    /// Batches have so many items at most from here on, if not as many as usual.
    pub fn bend(&mut self, items_max: Option<usize>) {
        self.streams.iter_mut().for_each(|stream| stream.items_max = items_max);
    }

    /// What is queued from now on may linger until then.
    pub fn linger(&mut self, until: Instant) {
        self.lingers = until;
    }

    /// Somebody waits for something that is queued: all of it is due.
    pub fn hurry(&mut self) {
        self.streams.iter_mut().for_each(Stream::hurry);
    }

    /// Somebody waits for all items of a shard up to this ticket's number.
    pub fn hurry_for(&mut self, shard: ShardId, number: u64) {
        if self.streams[shard.0 as usize].hurry_for(number) {
            // It may be anywhere.
            self.hurry();
        }
    }

    /// When the next batch is due for which no acknowledgement has to come first.
    pub fn due(&self) -> Option<Instant> {
        self.streams.iter().filter_map(Stream::due).min()
    }

    /// Which shard has what, as far as is known.
    pub fn map(&self) -> &SlotMap {
        &self.map
    }

    /// Queues an item of about `bytes` bytes.
    pub(crate) fn push(&mut self, item: impl Into<Content>, bytes: usize, about: About) -> Ticket {
        let (slot, item, due) = (about.slot(), item.into(), self.lingers);
        let shard = self.map.of_slot(slot);
        let stream = &mut self.streams[shard.0 as usize];
        let parked = if self.parked.is_empty() { None } else { self.parked.get_mut(&slot) };
        let Some(parked) = parked else { return stream.push_own(shard, item, bytes, about, due) };
        let ticket = stream.stray(shard);
        parked.queue.push_back(Queued { item, bytes, waits: Waits { about, ticket, strays: true }, due });
        ticket
    }

    /// A ticket for an item of a slot that is to be queued later, with `push_reserved`: until then
    /// nothing after it counts as acknowledged.
    pub fn reserve(&mut self, slot: u32) -> Ticket {
        let shard = self.map.of_slot(slot);
        self.streams[shard.0 as usize].stray(shard)
    }

    /// Queues the item that a ticket was reserved for.
    pub(crate) fn push_reserved(
        &mut self,
        item: impl Into<Content>,
        bytes: usize,
        about: About,
        ticket: Ticket,
    ) {
        let (slot, item) = (about.slot(), item.into());
        // It has waited long enough.
        let due = Instant::default();
        let queued = Queued { item, bytes, waits: Waits { about, ticket, strays: true }, due };
        match self.parked.get_mut(&slot) {
            Some(parked) => parked.queue.push_back(queued),
            None => {
                let stream = &mut self.streams[self.map.of_slot(slot).0 as usize];
                stream.push(queued);
                stream.hurry();
            }
        }
    }

    /// The item that a ticket was reserved for will not come.
    pub fn give_up(&mut self, ticket: Ticket) {
        self.streams[ticket.shard.0 as usize].found(ticket.number);
    }

    /// Whether an item waits in its stream, so that it can be withdrawn.
    pub fn is_queued(&self, ticket: Ticket) -> bool {
        self.streams[ticket.shard.0 as usize].is_queued(ticket)
    }

    /// Takes an item back, if it has not been sent; its ticket then counts as acknowledged.
    pub fn withdraw(&mut self, ticket: Ticket) -> bool {
        self.streams[ticket.shard.0 as usize].withdraw(ticket)
    }

    /// Whether what is queued for the first slot now arrives before what is queued for the second later.
    pub fn is_in_order(&self, first: u32, second: u32) -> bool {
        first == second || (self.parked.is_empty() && self.map.of_slot(first) == self.map.of_slot(second))
    }

    /// What the batch that is on its way to a shard is about.
    pub fn in_flight(&self, shard: ShardId) -> impl Iterator<Item = About> + '_ {
        self.streams[shard.0 as usize].in_flight()
    }

    /// Whether an item is acknowledged, by its ticket.
    pub fn is_committed(&self, ticket: Ticket) -> bool {
        self.streams[ticket.shard.0 as usize].is_committed(ticket.number)
    }

    /// Whether all items of a shard up to this ticket's number are acknowledged.
    pub fn are_committed(&self, shard: ShardId, number: u64) -> bool {
        self.streams[shard.0 as usize].committed() >= number
    }

    /// What stands for whatever was queued so far that may be of a slot: the number of its shard's last ticket,
    /// and of all that have left their shard.
    pub fn all_of(&self, slot: u32) -> Vec<(ShardId, u64)> {
        let home = self.map.of_slot(slot);
        let last = (home, self.streams[home.0 as usize].given());
        let strayed = |(shard, stream): (u32, &Stream)| Some((ShardId(shard), stream.last_strayed()?));
        std::iter::once(last).chain((0..).zip(&self.streams).filter_map(strayed)).collect()
    }

    /// Items that are not acknowledged.
    pub fn pending(&self) -> u64 {
        let parked: usize = self.parked.values().map(|parked| parked.queue.len()).sum();
        self.streams.iter().map(Stream::pending).sum::<u64>() + parked as u64
    }

    /// How far each stream is, in words.
    pub fn progress(&self) -> impl Iterator<Item = String> + '_ {
        (0..).zip(&self.streams).map(|(shard, stream): (u32, &Stream)| {
            let (given, first) = (stream.given(), stream.first_strayed());
            format!(
                "shard {shard}: {given} tickets, committed to {}, first strayed {first:?}",
                stream.committed()
            )
        })
    }

    /// The batches that can be sent now.
    pub fn next_batches(&mut self, incarnation: Incarnation, now: Instant) -> Vec<(ShardId, StreamBatch)> {
        let batch = |(shard, stream): (u32, &mut Stream)| {
            stream.next_batch(incarnation, now).map(|batch| (ShardId(shard), batch))
        };
        (0..).zip(&mut self.streams).filter_map(batch).collect()
    }

    /// A batch is acknowledged: what its items were about, and what was said of each. Those that were
    /// answered `moved` are not among them: they are `moved`, in their order, and will be sent again.
    pub fn acknowledge(
        &mut self,
        shard: ShardId,
        ack: StreamAck,
        moved: Vec<StreamItem>,
    ) -> Vec<(About, Option<ItemOutcome>)> {
        let (at, mut moved) = (shard.0 as usize, moved.into_iter());
        let mut outcomes = ack.outcomes.into_iter().peekable();
        let acknowledged = self.streams[at].acknowledge(ack.mark);
        let mut told = Vec::with_capacity(acknowledged.len());
        let mut back: BTreeMap<u32, (u64, VecDeque<Queued>)> = BTreeMap::new();
        for (seq, mut waits) in acknowledged {
            let outcome = outcomes.next_if(|outcome| outcome.seq == seq);
            match outcome.as_ref().and_then(|outcome| outcome.outcome.as_ref()) {
                Some(item_outcome::Outcome::Moved(epoch)) => {
                    let item = moved.next().expect("whoever acknowledges brings back what has moved");
                    let bytes = item.encoded_len();
                    self.streams[at].lose(&mut waits);
                    let (newest, queue) = back.entry(waits.about.slot()).or_default();
                    *newest = (*newest).max(*epoch);
                    let item = item.into();
                    queue.push_back(Queued { item, bytes, waits, due: Instant::default() });
                }
                _ => {
                    if waits.strays {
                        self.streams[waits.ticket.shard.0 as usize].found(waits.ticket.number);
                    }
                    told.push((waits.about, outcome));
                }
            }
        }
        self.park_back(at, back);
        told
    }

    /// Parks what came back from a shard, before all that waits for the same slots.
    fn park_back(&mut self, at: usize, back: BTreeMap<u32, (u64, VecDeque<Queued>)>) {
        if back.is_empty() && self.parked.is_empty() {
            return;
        }
        let behind = if back.is_empty() {
            Vec::new()
        } else {
            self.streams[at].take_out(|slot| back.contains_key(&slot))
        };
        for (slot, (epoch, mut queue)) in back {
            let parked = self.parked.entry(slot).or_default();
            parked.epoch = parked.epoch.max(epoch);
            queue.append(&mut parked.queue);
            parked.queue = queue;
        }
        for queued in behind {
            self.parked.entry(queued.waits.about.slot()).or_default().queue.push_back(queued);
        }
        self.parked.values_mut().for_each(|parked| _ = parked.in_flight.take_if(|shard| *shard == at));
        self.release();
    }

    /// Takes over a slot map, if it is newer.
    pub fn learn(&mut self, map: SlotMap) {
        if map.epoch() <= self.map.epoch() {
            return;
        }
        for at in 0..self.streams.len() {
            let old = ShardId(at as u32);
            let goes = |slot: u32| map.of_slot(slot) != old;
            let in_flight: BTreeSet<u32> =
                self.streams[at].slots_in_flight().into_iter().filter(|slot| goes(*slot)).collect();
            for queued in self.streams[at].take_out(goes) {
                self.parked.entry(queued.waits.about.slot()).or_default().queue.push_back(queued);
            }
            for slot in in_flight {
                self.parked.entry(slot).or_default().in_flight = Some(at);
            }
        }
        self.map = map;
        self.release();
    }

    /// Sends on what has nothing left to wait for.
    fn release(&mut self) {
        let known = self.map.epoch();
        let ready = |(slot, parked): (&u32, &Parked)| {
            (parked.in_flight.is_none() && parked.epoch <= known).then_some(*slot)
        };
        let ready: Vec<u32> = self.parked.iter().filter_map(ready).collect();
        for slot in ready {
            let parked = self.parked.remove(&slot).unwrap_or_default();
            let stream = &mut self.streams[self.map.of_slot(slot).0 as usize];
            parked.queue.into_iter().for_each(|queued| stream.push(queued));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{LINGER_BYTES_MAX, LINGER_ITEMS_MAX};
    use mobula_base::{JobId, SlotSet, TaskId};
    use mobula_proto::{Done, StreamAck, TaskSpec, stream_item, task_bytes};
    use proptest::prelude::*;

    const ME: Incarnation = Incarnation(3);
    const NOW: Instant = Instant(0);

    /// Task number `n`, in a run of its own.
    fn task(n: u64) -> TaskId {
        TaskId::new(JobId(1), TaskId::root(JobId(1)), n, 0)
    }

    fn submit(streams: &mut Streams, n: u64) -> Ticket {
        let spec = TaskSpec { id: task_bytes(task(n)), ..Default::default() };
        let item = StreamItem { item: Some(stream_item::Item::Submit(spec)) };
        streams.push(item, 1, About::Submit(task(n)))
    }

    fn done(streams: &mut Streams, n: u64) -> Ticket {
        let item = Done { task: task_bytes(task(n)), ..Default::default() };
        let item = StreamItem { item: Some(stream_item::Item::Done(item)) };
        streams.push(item, 1, About::Done(task(n)))
    }

    /// Acknowledges a batch; items of `moved` slots as such.
    fn ack(
        streams: &mut Streams,
        (shard, batch): &(ShardId, StreamBatch),
        moved: &SlotSet,
        epoch: u64,
    ) -> Vec<About> {
        let slot = |item: &StreamItem| match &item.item {
            Some(stream_item::Item::Submit(spec)) => {
                mobula_proto::task_id(&spec.id).expect("valid").run.slot()
            }
            Some(stream_item::Item::Done(done)) => {
                mobula_proto::task_id(&done.task).expect("valid").run.slot()
            }
            other => panic!("{other:?}"),
        };
        let mut outcomes = Vec::new();
        let mut back = Vec::new();
        for (seq, item) in (batch.first_seq..).zip(&batch.items) {
            if moved.contains(slot(item)) {
                outcomes.push(ItemOutcome { seq, outcome: Some(item_outcome::Outcome::Moved(epoch)) });
                back.push(item.clone());
            }
        }
        let mark = batch.first_seq + batch.items.len() as u64 - 1;
        let told = streams.acknowledge(*shard, StreamAck { mark, revision: 1, outcomes }, back);
        told.into_iter().map(|(about, _)| about).collect()
    }

    /// Two tasks of shard 0 of two: the first one's slot moves.
    fn two() -> (u64, u64, SlotSet, SlotMap) {
        let map = SlotMap::even(2);
        let mut ours = (0..).filter(|n| map.of_run(task(*n).run) == ShardId(0));
        let (goes, stays) = (ours.next().expect("many"), ours.next().expect("many"));
        let slots: SlotSet = [task(goes).run.slot()].into_iter().collect();
        let next = map.moved(&slots, ShardId(1));
        (goes, stays, slots, next)
    }

    #[test]
    fn what_is_answered_moved_waits_for_the_map_with_all_that_follows_it() {
        let (goes, stays, slots, next) = two();
        let mut streams = Streams::new(2);
        let (first, other) = (submit(&mut streams, goes), submit(&mut streams, stays));
        let batch = streams.next_batches(ME, NOW).remove(0);
        let behind = done(&mut streams, goes);
        done(&mut streams, stays);
        assert_eq!(ack(&mut streams, &batch, &slots, 2), [About::Submit(task(stays))]);
        // What is not known to be applied is not taken for it, nor is what came after it.
        assert!(!streams.is_committed(first) && !streams.is_committed(behind));
        assert!(!streams.is_committed(other), "tickets are a line: it waits for the one before");
        let late = done(&mut streams, goes);
        let batches = streams.next_batches(ME, NOW);
        assert_eq!((batches.len(), batches[0].1.items.len()), (1, 1), "the other goes on");
        assert_eq!(ack(&mut streams, &batches[0], &slots, 2), [About::Done(task(stays))]);
        assert_eq!((streams.next_batches(ME, NOW).len(), streams.pending()), (0, 3));
        streams.learn(next);
        let batch = streams.next_batches(ME, NOW).remove(0);
        assert_eq!((batch.0, batch.1.first_seq), (ShardId(1), 1));
        let expected = [About::Submit(task(goes)), About::Done(task(goes)), About::Done(task(goes))];
        assert_eq!(ack(&mut streams, &batch, &SlotSet::default(), 2), expected, "in order");
        assert!([first, other, behind, late].into_iter().all(|ticket| streams.is_committed(ticket)));
        assert_eq!(streams.pending(), 0);
    }

    #[test]
    fn a_new_map_that_is_known_first_waits_for_the_batch_in_flight() {
        let (goes, stays, slots, next) = two();
        for taken in [true, false] {
            let mut streams = Streams::new(2);
            let first = submit(&mut streams, goes);
            let batch = streams.next_batches(ME, NOW).remove(0);
            let behind = done(&mut streams, goes);
            streams.learn(next.clone());
            let late = done(&mut streams, goes);
            submit(&mut streams, stays);
            assert!(streams.next_batches(ME, NOW).is_empty(), "nothing overtakes what is in flight");
            let moved = if taken { SlotSet::default() } else { slots };
            ack(&mut streams, &batch, &moved, 2);
            assert_eq!(streams.is_committed(first), taken);
            let batches = streams.next_batches(ME, NOW);
            assert_eq!(batches.iter().map(|(shard, _)| shard.0).collect::<Vec<_>>(), [0, 1]);
            assert_eq!(batches[1].1.items.len(), if taken { 2 } else { 3 });
            for batch in &batches {
                ack(&mut streams, batch, &SlotSet::default(), 2);
            }
            assert!([first, behind, late].into_iter().all(|ticket| streams.is_committed(ticket)));
            assert_eq!(streams.pending(), 0);
        }
    }

    #[test]
    fn a_slot_that_moves_on_while_its_items_wait_takes_them_along() {
        let (goes, _, slots, next) = two();
        let mut streams = Streams::new(2);
        let first = submit(&mut streams, goes);
        let batch = streams.next_batches(ME, NOW).remove(0);
        ack(&mut streams, &batch, &slots, 2);
        streams.learn(next.clone());
        let batch = streams.next_batches(ME, NOW).remove(0);
        let behind = done(&mut streams, goes);
        // It has gone back already.
        ack(&mut streams, &batch, &slots, 3);
        assert!(streams.next_batches(ME, NOW).is_empty());
        assert!(
            !streams
                .all_of(task(goes).run.slot())
                .into_iter()
                .all(|(shard, n)| streams.are_committed(shard, n))
        );
        streams.learn(next.moved(&slots, ShardId(0)));
        let batch = streams.next_batches(ME, NOW).remove(0);
        assert_eq!((batch.0, batch.1.first_seq, batch.1.items.len()), (ShardId(0), 2, 2));
        ack(&mut streams, &batch, &SlotSet::default(), 0);
        assert!(streams.is_committed(first) && streams.is_committed(behind));
    }

    #[test]
    fn one_batch_at_a_time_and_what_waited_is_the_next() {
        let (_, stays, _, _) = two();
        let mut streams = Streams::new(2);
        let none = SlotSet::default();
        submit(&mut streams, stays);
        let first = streams.next_batches(ME, NOW).remove(0);
        assert_eq!((first.1.first_seq, first.1.items.len()), (1, 1));
        done(&mut streams, stays);
        let last = done(&mut streams, stays);
        assert!(streams.next_batches(ME, NOW).is_empty(), "one is in flight");
        let old = StreamAck::default();
        assert!(streams.acknowledge(ShardId(0), old, Vec::new()).is_empty(), "it says nothing");
        assert_eq!(ack(&mut streams, &first, &none, 0), [About::Submit(task(stays))]);
        let second = streams.next_batches(ME, NOW).remove(0);
        assert_eq!((second.1.first_seq, second.1.items.len()), (2, 2));
        assert!(!streams.is_committed(last));
        assert_eq!(ack(&mut streams, &second, &none, 0).len(), 2);
        assert!(streams.is_committed(last) && streams.pending() == 0);
    }

    #[test]
    fn what_is_acknowledged_counts_though_something_before_it_has_not_come() {
        let mut streams = Streams::new(1);
        let late = streams.reserve(task(0).run.slot());
        let edge = submit(&mut streams, 1);
        let batch = streams.next_batches(ME, NOW).remove(0);
        ack(&mut streams, &batch, &SlotSet::default(), 0);
        assert!(streams.is_committed(edge) && !streams.is_committed(late));
        assert!(!streams.are_committed(edge.shard, edge.number), "not all up to it");
        streams.give_up(late);
        assert!(streams.are_committed(edge.shard, edge.number));
    }

    #[test]
    fn what_was_withdrawn_counts_as_acknowledged_though_what_is_behind_it_lingers() {
        let mut streams = Streams::new(2);
        let (goes, stays, _, _) = two();
        streams.linger(Instant(5));
        let (first, behind) = (submit(&mut streams, goes), submit(&mut streams, stays));
        assert!(streams.next_batches(ME, Instant(4)).is_empty() && !streams.is_committed(first));
        assert!(streams.withdraw(first) && streams.is_committed(first) && !streams.is_committed(behind));
        assert_eq!((streams.pending(), streams.due()), (1, Some(Instant(5))));
        let batch = streams.next_batches(ME, Instant(5)).remove(0);
        assert_eq!((batch.1.items.len(), streams.due()), (1, None));
    }

    #[test]
    fn too_many_that_linger_are_sent_and_so_are_too_many_bytes() {
        for (bytes, most) in [(1, LINGER_ITEMS_MAX), (LINGER_BYTES_MAX / 4, 4)] {
            let mut streams = Streams::new(1);
            streams.linger(Instant(5));
            let push = |streams: &mut Streams, n| {
                let spec = TaskSpec { id: task_bytes(task(n)), ..Default::default() };
                let item = StreamItem { item: Some(stream_item::Item::Submit(spec)) };
                streams.push(item, bytes, About::Submit(task(n)));
            };
            (0..most as u64).for_each(|n| push(&mut streams, n));
            assert!(streams.next_batches(ME, Instant(0)).is_empty());
            push(&mut streams, most as u64);
            let batch = streams.next_batches(ME, Instant(0)).remove(0);
            assert_eq!(batch.1.items.len(), 1, "so many that the rest may linger");
        }
    }

    /// One step of a story: what happens, and to what.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Submit(u64),
        Withdraw(usize),
        Later,
        Send,
        Acknowledge(usize),
        Move(u64),
        Learn,
        Hurry,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..12u64).prop_map(Step::Submit),
            2 => any::<usize>().prop_map(Step::Withdraw),
            2 => Just(Step::Later),
            3 => Just(Step::Send),
            3 => any::<usize>().prop_map(Step::Acknowledge),
            1 => (0..12u64).prop_map(Step::Move),
            1 => Just(Step::Learn),
            1 => Just(Step::Hurry),
        ]
    }

    proptest! {
        /// Whatever moves, lingers and is withdrawn: all else is told once, and nothing is committed before.
        #[test]
        fn everything_arrives_once(steps in prop::collection::vec(step(), 1..200)) {
            let mut streams = Streams::new(3);
            let (mut now, mut truth) = (0, SlotMap::even(3));
            let (mut batches, mut open, mut told) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
            let ending = [Step::Learn, Step::Hurry, Step::Send, Step::Acknowledge(0), Step::Acknowledge(0), Step::Acknowledge(0)];
            let ending = std::iter::repeat_n(ending, 12).flatten();
            for step in steps.into_iter().chain(ending) {
                streams.linger(Instant(now + 5));
                match step {
                    Step::Submit(run) => {
                        // Tasks of a run have its slot.
                        let place = open.len() + told.len();
                        let id = TaskId { place: place as u16, ..task(run) };
                        let spec = TaskSpec { id: task_bytes(id), ..Default::default() };
                        let item = StreamItem { item: Some(stream_item::Item::Submit(spec)) };
                        open.insert(id, streams.push(item, 1, About::Submit(id)));
                    }
                    Step::Withdraw(which) if !open.is_empty() => {
                        let (id, ticket) = open.iter().nth(which % open.len()).map(|(id, t)| (*id, *t)).expect("some");
                        if streams.withdraw(ticket) {
                            prop_assert!(!streams.withdraw(ticket));
                            open.remove(&id);
                            told.insert(id, 0);
                        }
                    }
                    Step::Later => now += 3,
                    Step::Send => batches.extend(streams.next_batches(ME, Instant(now))),
                    Step::Acknowledge(which) if !batches.is_empty() => {
                        let (shard, batch) = batches.remove(which % batches.len());
                        let slots = truth.slots_of(shard);
                        let gone: SlotSet = (0..12).map(|run| task(run).run.slot()).filter(|slot| !slots.contains(*slot)).collect();
                        for about in ack(&mut streams, &(shard, batch), &gone, truth.epoch()) {
                            let About::Submit(id) = about else { unreachable!("nothing else was sent") };
                            prop_assert!(open.remove(&id).is_some(), "told twice, or withdrawn");
                            *told.entry(id).or_insert(0) += 1;
                        }
                    }
                    Step::Move(run) => {
                        let slot: SlotSet = [task(run).run.slot()].into_iter().collect();
                        let to = ShardId((truth.of_slot(task(run).run.slot()).0 + 1) % 3);
                        truth = truth.moved(&slot, to);
                    }
                    Step::Learn => streams.learn(truth.clone()),
                    Step::Hurry => streams.hurry(),
                    Step::Withdraw(_) | Step::Acknowledge(_) => {}
                }
                for ticket in open.values() {
                    prop_assert!(!streams.is_committed(*ticket));
                }
            }
            prop_assert!(open.is_empty(), "{open:?} never arrived");
            prop_assert_eq!(streams.pending(), 0);
        }
    }
}
