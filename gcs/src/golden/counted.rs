//! A shard that counts references, with something of every kind that it keeps for that.

use super::{SimDisk, committed, done_of, spec_of, task};
use crate::cold;
use crate::core::{ShardState, first_sweep};
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{JobId, ObjectId, TaskId};
use mobula_proto as proto;
use proto::command::Op;
use proto::stream_item::Item;
use std::sync::Arc;

fn name(object: ObjectId, by: Option<ObjectId>, contains: bool) -> Item {
    let (object, hold) = (proto::object_bytes(object), by.is_none());
    let by = by.map(proto::object_bytes).unwrap_or_default();
    Item::Name(proto::Name { object, by, contains, hold, job: 1 })
}

fn release(id: TaskId) -> Item {
    Item::Release(proto::Release { object: proto::object_bytes(id.output(0)) })
}

fn names(id: u64, object: ObjectId) -> Item {
    let arg = proto::Arg { arg: Some(proto::arg::Arg::Object(proto::object_bytes(object))) };
    Item::Submit(proto::TaskSpec { args: vec![arg], ..spec_of(id) })
}

/// A task of the other shard of two.
fn elsewhere() -> ObjectId {
    let id = |n| TaskId::new(JobId(1), TaskId::root(JobId(1)), n, 0);
    (1..).map(id).find(|id| id.run.shard(2).0 == 1).expect("one of two").output(0)
}

/// What nodes said.
fn said() -> Vec<(u64, Vec<Item>)> {
    let a_put = |n| TaskId::root(JobId(1)).output(FIRST_PUT_SLOT + n);
    let put = |n, contains: Vec<ObjectId>| {
        Item::Put(proto::SmallPut {
            object: proto::object_bytes(a_put(n)),
            job: 1,
            large: true,
            output: Some(proto::Output { crc: 9, size: 1 << 20 }),
            contains: contains.into_iter().map(proto::object_bytes).collect(),
            ..Default::default()
        })
    };
    let out = |n| task(n).output(0);
    let chain = (10..200u64).flat_map(|n| {
        [
            name(out(n - 1), Some(out(n)), false),
            names(n, out(n - 1)),
            Item::Done(done_of(n, 1, 9)),
            release(task(n)),
        ]
    });
    let contains = vec![proto::object_bytes(out(0))];
    vec![
        (1, (0..10).map(|n| Item::Submit(spec_of(n))).collect()),
        (1, vec![name(out(0), Some(out(1)), true), Item::Done(proto::Done { contains, ..done_of(1, 1, 9) })]),
        // A later attempt is under way.
        (
            1,
            vec![Item::Next(proto::NextAttempt {
                task: proto::task_bytes(task(1)),
                from: 1,
                failed: false,
                ..Default::default()
            })],
        ),
        (2, vec![name(out(2), None, false), put(0, vec![out(3)]), name(a_put(1), Some(a_put(2)), true)]),
        (
            1,
            vec![
                name(out(3), Some(a_put(0)), true),
                Item::Done(done_of(4, 1, 9)),
                release(task(4)),
                release(task(3)),
            ],
        ),
        // An edge elsewhere has ended.
        (1, vec![names(600, elsewhere()), Item::Done(done_of(600, 1, 9)), release(task(600))]),
        (1, chain.take(190 * 4 - 1).collect()),
        (3, vec![name(out(5), None, false)]),
        (1, vec![release(task(199))]),
    ]
}

/// Shard 0 of two.
pub(super) fn counted() -> ShardState {
    let mut state = ShardState::new(0, cold::open_one(Arc::new(SimDisk::new(6)), 0).expect("memory"));
    let mut ops = vec![first_sweep(0, 2)];
    let mut marks = std::collections::BTreeMap::<u64, u64>::new();
    for (incarnation, items) in said() {
        let mark = marks.entry(incarnation).or_default();
        let (first_seq, items) = (*mark + 1, items.into_iter());
        let items: Vec<_> = items.map(|item| proto::StreamItem { item: Some(item) }).collect();
        *mark += items.len() as u64;
        ops.push(Op::Stream(proto::StreamBatch { incarnation, first_seq, items }));
    }
    // A chain of two hundred goes with its last: not all in one entry.
    ops.push(Op::Fence(proto::Fence { incarnation: 3 }));
    let by = proto::object_bytes(elsewhere());
    let ends = vec![proto::LooseEnd {
        seq: 7,
        object: proto::object_bytes(task(3).output(0)),
        by,
        ..Default::default()
    }];
    ops.push(Op::Unnames(proto::Unnames { from_shard: 1, ends }));
    for (index, op) in (1u64..).zip(ops) {
        state.apply(index, &proto::Command::from(op));
    }
    assert!(state.broken().is_none() && state.counting.has_work());
    state
}

#[test]
fn a_golden_dump_of_references_is_read() {
    let mut state = ShardState::new(0, cold::open_one(Arc::new(SimDisk::new(7)), 0).expect("memory"));
    state.restore(committed("dump-v5"), &cold::Manifest::default()).expect("readable");
    let expected = counted();
    assert_eq!(state.digest(), expected.digest());
    assert!(state.counting.is_on());
    assert_eq!(state.counting.outbox().first(9), expected.counting.outbox().first(9));
    assert_eq!((state.counting.outbox().len(), state.puts.len()), (1, 2));
    let view = state.view_of(task(1), false).expect("memory");
    assert_eq!((view.attempt, view.outputs[0].crc), (2, 9), "what was recorded before");
    assert!(state.view_of(task(4), false).expect("memory").state() == proto::TaskState::TaskUnknown);
    assert!(state.may_drop(task(4).output(0)).expect("memory"));
    assert!(!state.may_drop(task(0).output(0)).expect("memory"), "a value contains it");
    // Its fence and its release are worked off as by whoever wrote it.
    let mut other = expected;
    for (index, state) in [(500, &mut state), (500, &mut other)] {
        state.apply(index, &proto::Command::from(Op::Sweep(proto::Sweep::default())));
    }
    assert_eq!(state.digest(), other.digest());
}
