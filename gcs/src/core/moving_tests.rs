//! Slots move: what a shard answers for slots that it does not own, and that their content arrives whole.

use super::ShardState;
use super::slot_table::SlotTable;
use crate::cold;
use mobula_base::sim_disk::SimDisk;
use mobula_base::slots::slot_of_key;
use mobula_base::{JobId, ShardId, SlotMap, SlotSet, TaskId};
use mobula_proto as proto;
use proto::call::Op as CallOp;
use proto::call_reply::Reply as Called;
use proto::command::Op;
use proto::item_outcome::Outcome;
use proto::reply::Reply as Answer;
use proto::slot_command::Op as SlotOp;
use proto::stream_item::Item;
use proto::{SlotContent, SlotCursor};
use std::sync::Arc;

const SHARDS: u32 = 2;
/// Memory for hot runs that makes most of them go cold, in bytes.
const HOT: usize = 2000;

fn shard(number: u32, hot: usize) -> ShardState {
    let disk = Arc::new(SimDisk::new(u64::from(number) + 1));
    let mut state = ShardState::new(number, cold::open_one(disk, number).expect("memory"));
    state.set_hot_limit(hot);
    state
}

struct Shard {
    state: ShardState,
    index: u64,
}

impl Shard {
    fn new(number: u32) -> Self {
        Shard { state: shard(number, HOT), index: 0 }
    }

    /// A replica that is made of a snapshot goes on alike.
    fn start_again(&mut self) {
        let (dump, cold, before) = (self.state.snapshot(2), self.state.manifest(), self.state.digest());
        self.state.restore(dump.into(), &cold).expect("just written");
        self.state.set_hot_limit(HOT);
        assert_eq!(self.state.digest(), before);
    }

    fn apply(&mut self, op: Op) -> Answer {
        self.index += 1;
        let reply = self.state.apply(self.index, &proto::Command::from(op)).reply;
        assert_eq!(self.state.broken(), None);
        reply.expect("every command here has an answer")
    }

    fn slots(&mut self, op: SlotOp) {
        let answer = self.apply(Op::Slots(proto::SlotCommand { op: Some(op) }));
        assert_eq!(answer, Answer::Slots(proto::SlotOutcome::default()));
    }

    fn call(&mut self, session: u64, seq: u64, op: CallOp) -> Called {
        match self.apply(Op::Call(proto::Call { session, seq, op: Some(op) })) {
            Answer::Call(reply) => reply.reply.expect("an answer"),
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self) -> u64 {
        match self.call(0, 0, CallOp::Open(proto::OpenSession {})) {
            Called::Session(session) => session,
            other => panic!("{other:?}"),
        }
    }

    fn stream(&mut self, first_seq: u64, items: Vec<Item>) -> proto::StreamAck {
        let items = items.into_iter().map(|item| proto::StreamItem { item: Some(item) }).collect();
        match self.apply(Op::Stream(proto::StreamBatch { incarnation: 7, first_seq, items })) {
            Answer::Stream(ack) => ack,
            other => panic!("{other:?}"),
        }
    }
}

fn put(key: &str, value: &str) -> CallOp {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    CallOp::KvPut(proto::KvPut { key, value, ..Default::default() })
}

/// Task number `n`, each in a run of its own.
fn task(n: u64) -> TaskId {
    TaskId::new(JobId(1), TaskId::root(JobId(1)), n, 0)
}

fn submit(n: u64) -> Item {
    let id = proto::task_bytes(task(n));
    Item::Submit(proto::TaskSpec { id, job: 1, digest: n, max_retries: 3, ..Default::default() })
}

fn owned(number: u32) -> Vec<proto::SlotRow> {
    proto::slot_rows(&SlotMap::even(SHARDS).slots_of(ShardId(number)))
}

fn release(epoch: u64, slots: &SlotSet) -> SlotOp {
    let slots = proto::slot_rows(slots);
    SlotOp::Release(proto::ReleaseSlots { epoch, to: 1, slots, owned: owned(0) })
}

fn expect(epoch: u64, slots: &SlotSet) -> SlotOp {
    let slots = proto::slot_rows(slots);
    SlotOp::Await(proto::AwaitSlots { epoch, from: 0, slots, owned: owned(1) })
}

/// Names of keys of shard 0, that lie in `slots` or do not.
fn keys(slots: &SlotSet, within: bool, count: usize) -> Vec<String> {
    let ours = SlotMap::even(SHARDS).slots_of(ShardId(0));
    let fits = |key: &String| {
        let slot = slot_of_key(key.as_bytes());
        ours.contains(slot) && slots.contains(slot) == within
    };
    (0..).map(|n| format!("key-{n}")).filter(fits).take(count).collect()
}

/// Numbers of tasks of shard 0, that lie in `slots` or do not.
fn tasks(slots: &SlotSet, within: bool, count: usize) -> Vec<u64> {
    let ours = SlotMap::even(SHARDS).slots_of(ShardId(0));
    let fits = |n: &u64| {
        let slot = task(*n).run.slot();
        ours.contains(slot) && slots.contains(slot) == within
    };
    (0..).filter(fits).take(count).collect()
}

fn some() -> SlotSet {
    SlotSet::parse("100-299").expect("slots")
}

#[test]
fn half_a_batch_is_answered_moved_singly_and_a_repeated_batch_gets_the_same_answer() {
    let mut a = Shard::new(0);
    let (goes, stays) = (tasks(&some(), true, 2), tasks(&some(), false, 2));
    a.stream(1, vec![submit(stays[0]), submit(goes[0])]);
    a.slots(release(2, &some()));
    let moved = [150, 600, 10].map(|slot| a.state.slots.moved(slot));
    assert_eq!(moved, [Some(2), Some(1), None], "what has left before is not waited for again");
    let done = proto::Done {
        task: proto::task_bytes(task(goes[0])),
        attempt: 1,
        executor: 7,
        outputs: vec![proto::Output::default()],
        ..Default::default()
    };
    let batch = vec![submit(stays[1]), submit(goes[1]), Item::Done(done), submit(stays[0])];
    let ack = a.stream(3, batch.clone());
    let said: Vec<_> = ack.outcomes.iter().map(|o| (o.seq, o.outcome.clone().expect("said"))).collect();
    assert_eq!(said[..2], [(4, Outcome::Moved(2)), (5, Outcome::Moved(2))]);
    assert!(matches!(said[2..], [(6, Outcome::Known(_))]), "{said:?}");
    assert_eq!((ack.mark, a.state.tasks.len()), (6, 3), "the rest is applied, and the stream goes on");
    assert_eq!(a.stream(3, batch), ack);
    // A packed run is as many items as it has records.
    let items = (0..3).map(|place| {
        let id = proto::task_bytes(TaskId { place, ..task(goes[1]) });
        let spec = proto::TaskSpec { id, job: 1, digest: 1, ..Default::default() };
        proto::StreamItem { item: Some(Item::Submit(spec)) }
    });
    let batch = proto::StreamBatch { incarnation: 7, first_seq: 7, items: items.collect() };
    let Answer::Stream(ack) = a.apply(Op::Stream(super::pack::pack(batch))) else { panic!("no ack") };
    assert_eq!(ack.outcomes.iter().map(|outcome| outcome.seq).collect::<Vec<_>>(), [7, 8, 9]);
}

#[test]
fn a_call_across_a_move_takes_effect_once() {
    let mut a = Shard::new(0);
    let key = &keys(&some(), true, 1)[0];
    let session = a.open();
    let first = a.call(session, 1, put(key, "first"));
    a.slots(release(2, &some()));
    // Its answer was lost: it is asked where it was asked first, and answered as it was.
    assert_eq!(a.call(session, 1, put(key, "first")), first);
    // A new one is not done, and never will be under this number, should the slot come back.
    assert_eq!(a.call(session, 2, put(key, "second")), Called::Moved(2));
    let back = expect(3, &some());
    a.slots(back);
    let piece = SlotContent { epoch: 3, next: Some(SlotCursor::default()), last: true, ..Default::default() };
    a.slots(SlotOp::Content(piece));
    assert_eq!(a.call(session, 2, put(key, "second")), Called::Moved(2));
    assert!(matches!(a.call(session, 3, put(key, "second")), Called::Revision(_)));
    // What is not of a slot is not concerned.
    let join = proto::NodeJoin { address: "n:1".into(), ..Default::default() };
    assert!(matches!(a.call(session, 4, CallOp::NodeJoin(join)), Called::Incarnation(1)));
}

/// Copies what has left to `to`, in pieces of about `bytes`; each is sent twice, and `between` is run
/// after each.
fn copy(
    from: &Shard,
    to: &mut Shard,
    epoch: u64,
    bytes: usize,
    mut between: impl FnMut(&mut Shard),
) -> usize {
    let mut pieces = 0;
    while let Some(coming) = to.state.slots.coming().cloned() {
        let piece = from.state.content(epoch, &coming.cursor, bytes).expect("readable").expect("it is here");
        to.slots(SlotOp::Content(piece.clone()));
        to.slots(SlotOp::Content(piece));
        between(to);
        pieces += 1;
    }
    pieces
}

fn filled() -> (Shard, Vec<String>, Vec<u64>) {
    let mut a = Shard::new(0);
    let (goes, stays) = (keys(&some(), true, 20), keys(&some(), false, 20));
    let session = a.open();
    for (seq, key) in (1..).zip(goes.iter().chain(&stays)) {
        a.call(session, seq, put(key, &format!("value of {key}")));
    }
    let numbers: Vec<u64> = tasks(&some(), true, 60).into_iter().chain(tasks(&some(), false, 60)).collect();
    a.stream(1, numbers.iter().map(|n| submit(*n)).collect());
    let small = |n: u64| {
        let object = proto::object_bytes(task(n).output(mobula_base::ids::FIRST_PUT_SLOT));
        Item::Put(proto::SmallPut { object, job: 1, value: format!("put {n}").into(), ..Default::default() })
    };
    a.stream(121, vec![small(numbers[0]), small(numbers[60])]);
    (a, goes, numbers)
}

#[test]
fn content_arrives_whole_in_pieces_of_any_size_also_what_is_cold() {
    for bytes in [1, 300, 1 << 20] {
        let (mut a, goes, numbers) = filled();
        let mut b = Shard::new(1);
        assert!(a.state.manifest().files.len() == 1, "some of it is on the disk");
        a.apply(Op::Fence(proto::Fence { incarnation: 9 }));
        b.slots(expect(2, &some()));
        assert!(b.state.content(2, &SlotCursor::default(), 1).expect("no error").is_none());
        a.slots(release(2, &some()));
        let last = a.state.kv.history().last();
        let pieces = copy(&a, &mut b, 2, bytes, |b| {
            b.start_again();
        });
        assert!(pieces > 3 || bytes > 300, "{pieces}");
        for key in &goes {
            let entry = b.state.kv.get(&key.clone().into()).expect("it has come").clone();
            assert_eq!(entry.value, format!("value of {key}"));
            assert_eq!(Some(&entry), a.state.kv.get(&key.clone().into()), "with its revision");
        }
        assert_eq!((b.state.kv.count(), b.state.tasks.len(), b.state.puts.len()), (20, 60, 1));
        for n in &numbers[..60] {
            assert_eq!(
                b.state.view_of(task(*n), true).expect("read"),
                a.state.view_of(task(*n), true).expect("read")
            );
        }
        assert!(b.state.is_fenced(9) && b.state.kv.history().last() > last);
        assert_eq!(b.state.slots.adopted(), 2);

        // The copy goes, and nothing else.
        let mut after = None;
        loop {
            let (runs, next) = a.state.left_behind(2, after).expect("readable");
            let runs = runs.into_iter().map(|id| super::run_bytes(id).into()).collect();
            a.slots(SlotOp::Forget(proto::ForgetSlots { epoch: 2, runs, last: next.is_none() }));
            a.start_again();
            if next.is_none() {
                break;
            }
            after = next;
        }
        assert_eq!((a.state.kv.count(), a.state.tasks.len(), a.state.puts.len()), (20, 60, 1));
        assert!(a.state.slots.leaving().is_none());
        let (left, _) = a.state.tasks.ids_after(None, 1000).expect("readable");
        let is_there = left.len() == 60 && left.iter().all(|id| !some().contains(id.slot()));
        assert!(is_there, "what has gone does not come back out of the files: {left:?}");
        for n in &numbers[60..] {
            assert_eq!(a.state.view_of(task(*n), true).expect("read").state(), proto::TaskState::TaskPending);
        }
        assert_eq!(a.state.jobs().len(), 1);
    }
}

#[test]
fn one_move_at_a_time_and_a_repeated_request_is_answered_as_before() {
    let mut table = SlotTable::default();
    let start = |request, from, to, slots: &str, count| proto::StartSlotPlan {
        request,
        from,
        to,
        slots: SlotSet::parse(slots).map(|slots| proto::slot_rows(&slots)).unwrap_or_default(),
        count,
    };
    for (wrong, why) in [
        (start(1, 0, 2, "", 1), "no shard 2"),
        (start(1, 1, 1, "", 1), "has its slots already"),
        (start(1, 0, 1, "", 0), "name which of them"),
        (start(1, 0, 1, "510-513", 0), "does not own slots 512-513"),
    ] {
        let refused = table.start(5, SHARDS, &wrong).expect_err("wrong");
        assert!(refused.contains(why), "{refused}");
    }
    let first = start(1, 0, 1, "", 10);
    let outcome = table.start(5, SHARDS, &first).expect("accepted");
    assert_eq!((outcome.epoch, outcome.finished), (2, false));
    assert_eq!(table.start(6, SHARDS, &first).expect("the same"), outcome);
    let refused = table.start(7, SHARDS, &start(2, 1, 0, "", 1)).expect_err("one at a time");
    assert!(refused.contains("10 slots from shard 0 to shard 1, map 2: 502-511"), "{refused}");
    // Steps out of turn change nothing.
    assert!(!table.switch(SHARDS, 3) && table.end(2).is_none());
    assert!(table.switch(SHARDS, 2) && !table.switch(SHARDS, 2));
    assert_eq!((table.map(SHARDS).of_slot(505), table.map(SHARDS).epoch()), (ShardId(1), 2));
    assert_eq!(SlotTable::restored(table.dump()).expect("readable"), table);
    assert!(table.end(2).is_some() && table.end(2).is_none());
    let outcome = table.start(8, SHARDS, &first).expect("the same");
    assert!(outcome.finished && outcome.epoch == 2);
    assert_eq!(SlotTable::restored(table.dump()).expect("readable"), table);
    assert!(SlotTable::default().dump().is_none(), "nothing to say before the first move");
}

fn reference(kind: &str, object: mobula_base::ObjectId, by: Option<mobula_base::ObjectId>) -> Item {
    let object = proto::object_bytes(object);
    match (kind, by) {
        ("release", _) => Item::Release(proto::Release { object }),
        ("hold", _) => Item::Name(proto::Name { object, hold: true, job: 1, ..Default::default() }),
        (_, by) => {
            let by = by.map(proto::object_bytes).unwrap_or_default();
            Item::Name(proto::Name { object, by, job: 1, contains: kind == "contains", ..Default::default() })
        }
    }
}

fn done(n: u64) -> Item {
    Item::Done(proto::Done {
        task: proto::task_bytes(task(n)),
        attempt: 1,
        executor: 7,
        outputs: vec![proto::Output::default()],
        ..Default::default()
    })
}

/// Who holds what moves with its slot, and what happens meanwhile on either side is not forgotten.
#[test]
fn references_move_with_their_slots() {
    let (mut a, mut b) = (Shard::new(0), Shard::new(1));
    a.apply(super::first_sweep(0, SHARDS));
    b.apply(super::first_sweep(1, SHARDS));
    let goes = tasks(&some(), true, 4);
    let stays = tasks(&some(), false, 1)[0];
    let [held, named, lone, waits] = [0, 1, 2, 3].map(|at| task(goes[at]).output(0));
    let user = task(stays).output(0);
    let a_put = {
        // The root's run of some job lies in a slot that goes.
        let job = (2u64..).find(|job| some().contains(TaskId::root(JobId(*job)).run.slot())).expect("many");
        (job, TaskId::root(JobId(job)).output(mobula_base::ids::FIRST_PUT_SLOT))
    };
    a.stream(1, goes.iter().flat_map(|n| [submit(*n), done(*n)]).collect());
    let arg = proto::Arg { arg: Some(proto::arg::Arg::Object(proto::object_bytes(named))) };
    let Item::Submit(plain) = submit(stays) else { unreachable!() };
    let put = proto::SmallPut {
        object: proto::object_bytes(a_put.1),
        job: a_put.0,
        large: true,
        contains: vec![proto::object_bytes(waits)],
        ..Default::default()
    };
    a.stream(
        9,
        vec![
            reference("names", named, Some(user)),
            Item::Submit(proto::TaskSpec { args: vec![arg], ..plain }),
            reference("contains", waits, Some(a_put.1)),
            Item::Put(put),
            reference("release", named, None),
            reference("release", waits, None),
        ],
    );
    let hold = vec![proto::StreamItem { item: Some(reference("hold", held, None)) }];
    a.apply(Op::Stream(proto::StreamBatch { incarnation: 8, first_seq: 1, items: hold }));
    b.slots(expect(2, &some()));
    a.slots(release(2, &some()));
    // A record here is over, and what it names is on its way: that end is told wherever it will be.
    a.stream(15, vec![done(stays), reference("release", user, None)]);
    assert_eq!(a.state.counting.outbox().len(), 1);
    // One who holds something dies meanwhile, and both shards learn it before it has all come.
    a.apply(Op::Fence(proto::Fence { incarnation: 7 }));
    b.apply(Op::Fence(proto::Fence { incarnation: 7 }));
    copy(&a, &mut b, 2, 1, |b| {
        b.start_again();
    });
    a.start_again();
    let ends = a.state.counting.outbox().first(9);
    b.apply(Op::Unnames(proto::Unnames { from_shard: 0, ends }));
    while b.state.counting.has_work() {
        b.apply(Op::Sweep(proto::Sweep::default()));
    }
    let there =
        [held, named, lone, waits].map(|object| b.state.tasks.get(object.task).expect("read").is_some());
    assert_eq!(there, [true, false, false, false], "node 8 holds the first");
    assert!(b.state.puts.is_empty());
    b.apply(Op::Fence(proto::Fence { incarnation: 8 }));
    while b.state.counting.has_work() {
        b.apply(Op::Sweep(proto::Sweep::default()));
    }
    assert!(b.state.tasks.is_empty() && b.state.jobs().is_empty());
    assert_eq!(a.state.tasks.len(), 4, "nothing changes where it was");
}

/// What had gone before its slot left is not taken for gone when the slot is here again: its new shard has had it anew.
#[test]
fn what_is_known_to_be_over_is_forgotten_with_its_slot() {
    let (mut a, mut b) = (Shard::new(0), Shard::new(1));
    a.apply(super::first_sweep(0, SHARDS));
    b.apply(super::first_sweep(1, SHARDS));
    let (goes, stays) = (tasks(&some(), true, 1)[0], tasks(&some(), false, 1)[0]);
    let over = |n: u64| [submit(n), done(n), reference("release", task(n).output(0), None)];
    // Of drivers' puts some lie in a slot that goes, others do not.
    let roots = [true, false].map(|within| {
        let ours = SlotMap::even(SHARDS).slots_of(ShardId(0));
        let fits = |slot| ours.contains(slot) && some().contains(slot) == within;
        (2u64..).find(|job| fits(TaskId::root(JobId(*job)).run.slot())).expect("many")
    });
    let puts = roots.map(|job| TaskId::root(JobId(job)).output(mobula_base::ids::FIRST_PUT_SLOT));
    let put = |at: usize| {
        let (object, value) = (proto::object_bytes(puts[at]), "small".into());
        let put = proto::SmallPut { object, job: roots[at], value, ..Default::default() };
        [Item::Put(put), reference("release", puts[at], None)]
    };
    a.stream(1, [over(goes), over(stays)].concat().into_iter().chain(put(0)).chain(put(1)).collect());
    while a.state.counting.has_work() {
        a.apply(Op::Sweep(proto::Sweep::default()));
    }
    let all = [task(goes).output(0), puts[0], task(stays).output(0), puts[1]];
    let is_over = |shard: &Shard| all.map(|object| shard.state.counting.bygone.has(object));
    assert_eq!(is_over(&a), [true; 4]);
    b.slots(expect(2, &some()));
    a.slots(release(2, &some()));
    copy(&a, &mut b, 2, 1000, |_| {});
    a.slots(SlotOp::Forget(proto::ForgetSlots { epoch: 2, runs: Vec::new(), last: true }));
    assert_eq!(is_over(&a), [false, false, true, true]);
    a.start_again();
    assert_eq!(is_over(&a), [false, false, true, true]);
}
