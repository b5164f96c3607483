use super::*;
use crate::spec_store::MemSpecs;
use mobula_base::{JobId, ObjectId};
use proptest::prelude::*;
use proto::item_outcome::Outcome;
use proto::stream_item::Item;
use proto::{StreamAck, StreamBatch, StreamItem, TaskState};

fn shard(number: u32) -> ShardState {
    ShardState::new(number, Arc::new(MemSpecs::default()))
}

fn task(n: u64) -> TaskId {
    TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, n)
}

fn submit(n: u64, digest: u64) -> Item {
    let spec =
        proto::TaskSpec { id: proto::task_bytes(task(n)), digest, max_retries: 3, ..Default::default() };
    Item::Submit(spec)
}

fn done(n: u64, attempt: u32, executor: u64, crc: u32) -> Item {
    let outputs = vec![proto::Output { crc, size: 8 }];
    Item::Done(proto::Done {
        task: proto::task_bytes(task(n)),
        attempt,
        executor,
        outputs,
        ..Default::default()
    })
}

fn next(n: u64, from: u32, failed: bool) -> Item {
    Item::Next(proto::NextAttempt { task: proto::task_bytes(task(n)), from, failed })
}

fn batch(incarnation: u64, first_seq: u64, items: Vec<Item>) -> proto::Command {
    let items = items.into_iter().map(|item| StreamItem { item: Some(item) }).collect();
    proto::Command { op: Some(CommandOp::Stream(StreamBatch { incarnation, first_seq, items })) }
}

fn fence(incarnation: u64) -> proto::Command {
    proto::Command { op: Some(CommandOp::Fence(proto::Fence { incarnation })) }
}

fn call(session: u64, seq: u64, op: Op) -> proto::Command {
    proto::Command { op: Some(CommandOp::Call(proto::Call { session, seq, op: Some(op) })) }
}

fn join(address: &str) -> Op {
    Op::NodeJoin(proto::NodeJoin { address: address.into(), ..Default::default() })
}

fn acked(reply: proto::Reply) -> StreamAck {
    match reply.reply {
        Some(Answer::Stream(ack)) => ack,
        other => panic!("not an ack: {other:?}"),
    }
}

fn called(reply: proto::Reply) -> Called {
    match reply.reply {
        Some(Answer::Call(proto::CallReply { reply: Some(called) })) => called,
        other => panic!("not the answer to a call: {other:?}"),
    }
}

fn state_of(state: &ShardState, n: u64) -> TaskState {
    state.view_of(task(n), false).state()
}

#[test]
fn a_repeated_batch_gets_the_same_ack_and_a_gap_is_named() {
    let mut state = shard(1);
    let first = batch(7, 1, vec![submit(0, 5), submit(1, 5), submit(0, 6)]);
    let ack = acked(state.apply(10, &first));
    assert_eq!((ack.mark, ack.revision, ack.outcomes.len()), (3, 10, 1));
    assert!(matches!(ack.outcomes[0].outcome, Some(Outcome::Diverged(_))), "the first digest stands");
    assert_eq!(acked(state.apply(11, &first)), ack);
    let gap = state.apply(12, &batch(7, 6, vec![submit(2, 5)]));
    assert_eq!(gap.reply, Some(Answer::ExpectedSeq(4)));
    let stale = state.apply(13, &batch(7, 2, vec![submit(2, 5)]));
    assert_eq!(stale.reply, Some(Answer::ExpectedSeq(4)));
    assert_eq!(state.tasks.len(), 2);
}

#[test]
fn the_first_done_stands_and_others_are_compared() {
    let mut state = shard(1);
    let ack = acked(state.apply(1, &batch(7, 1, vec![submit(0, 5), done(0, 1, 9, 1), done(0, 1, 8, 1)])));
    assert!(ack.outcomes.is_empty(), "equal results are no news: {ack:?}");
    let ack = acked(state.apply(2, &batch(7, 4, vec![done(0, 1, 8, 2), done(5, 1, 8, 2)])));
    assert!(matches!(&ack.outcomes[0].outcome, Some(Outcome::DivergedDone(view)) if view.executor == 9));
    assert!(
        matches!(&ack.outcomes[1].outcome, Some(Outcome::Refused(view)) if view.state() == TaskState::TaskUnknown)
    );
}

#[test]
fn one_keeper_wins_the_next_attempt() {
    let mut state = shard(1);
    state.apply(1, &batch(1, 1, vec![submit(0, 5)]));
    // The keeper lives: nobody else may take over.
    let ack = acked(state.apply(2, &batch(2, 1, vec![next(0, 1, true)])));
    assert!(matches!(ack.outcomes[0].outcome, Some(Outcome::Refused(_))));
    state.apply(3, &fence(1));
    let ack = acked(state.apply(4, &batch(2, 2, vec![next(0, 1, true)])));
    let Some(Outcome::Granted(view)) = &ack.outcomes[0].outcome else { panic!("{ack:?}") };
    assert_eq!((view.attempt, view.keeper), (2, 2));
    assert!(view.spec.is_some(), "the winner needs the spec");
    let ack = acked(state.apply(5, &batch(3, 1, vec![next(0, 1, true)])));
    assert!(matches!(&ack.outcomes[0].outcome, Some(Outcome::Refused(view)) if view.keeper == 2));
}

#[test]
fn retries_run_out_with_a_clear_failure() {
    let mut state = shard(1);
    let mut items = vec![submit(0, 5)];
    items.extend((1..=3).map(|from| next(0, from, true)));
    acked(state.apply(1, &batch(1, 1, items)));
    assert_eq!(state_of(&state, 0), TaskState::TaskPending);
    let ack = acked(state.apply(2, &batch(1, 5, vec![next(0, 4, true), next(0, 4, true)])));
    for outcome in &ack.outcomes {
        let Some(Outcome::Refused(view)) = &outcome.outcome else { panic!("{outcome:?}") };
        let failure = view.failure.as_ref().expect("failed for good");
        assert_eq!(failure.kind(), FailureKind::FailureWorkerDied);
        assert!(failure.message.contains("4 attempts"), "{}", failure.message);
    }
}

#[test]
fn the_fenced_are_rejected_at_apply() {
    let mut state = shard(1);
    state.apply(1, &batch(1, 1, vec![submit(0, 5)]));
    state.apply(2, &fence(1));
    let reply = state.apply(3, &batch(1, 2, vec![done(0, 1, 1, 1)]));
    assert_eq!(reply.reply, Some(Answer::Fenced(true)));
    // Nor does a result of theirs count that somebody else reports.
    state.apply(4, &batch(2, 1, vec![next(0, 1, false), done(0, 2, 1, 1)]));
    assert_eq!(state_of(&state, 0), TaskState::TaskPending);
}

#[test]
fn a_request_happens_once_and_an_old_session_never_twice() {
    let mut state = shard(0);
    assert_eq!(called(state.apply(1, &call(9, 1, join("a:1")))), Called::Incarnation(1));
    assert_eq!(called(state.apply(2, &call(9, 1, join("a:1")))), Called::Incarnation(1));
    assert_eq!(called(state.apply(3, &call(9, 2, join("b:1")))), Called::Incarnation(2));
    assert_eq!(called(state.apply(4, &call(9, 1, join("a:1")))), Called::SessionExpired(true));
    assert_eq!(called(state.apply(5, &call(8, 4, join("a:1")))), Called::SessionExpired(true));
}

#[test]
fn a_new_life_at_an_address_ends_the_old_one() {
    let mut state = shard(0);
    state.apply(1, &call(1, 1, join("a:1")));
    state.apply(2, &call(2, 1, join("a:1")));
    assert!(state.is_fenced(1) && !state.is_fenced(2));
    assert_eq!(state.cluster.deaths.len(), 1);
    assert_eq!(state.cluster.version, 2);
    let again = proto::DeclareDead { incarnation: 1, evidence: "again".into(), silent_ms: 1 };
    state.apply(3, &proto::Command { op: Some(CommandOp::DeclareDead(again)) });
    assert_eq!((state.cluster.deaths.len(), state.cluster.version), (1, 2), "idempotent");
}

#[test]
fn cold_specs_come_back_when_they_are_needed() {
    let mut state = shard(1);
    state.set_hot_limit(200);
    for n in 0..100 {
        state.apply(n + 1, &batch(1, n * 2 + 1, vec![submit(n, 5), done(n, 1, 1, 1)]));
    }
    assert!(state.hot_bytes <= 200);
    assert!(state.tasks.get(task(0)).is_some_and(|record| record.spec.is_none()), "went cold");
    let ack = acked(state.apply(200, &batch(1, 201, vec![next(0, 1, false)])));
    let Some(Outcome::Granted(view)) = &ack.outcomes[0].outcome else { panic!("{ack:?}") };
    assert_eq!(view.spec.as_ref().map(|spec| spec.digest), Some(5));
    assert!(state.broken().is_none());
}

fn any_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        3 => (0u64..40, 1u64..3).prop_map(|(n, digest)| submit(n, digest)),
        3 => (0u64..40, 1u32..4, 1u64..4, 1u32..3).prop_map(|(n, a, e, c)| done(n, a, e, c)),
        2 => (0u64..40, 1u32..4, any::<bool>()).prop_map(|(n, from, failed)| next(n, from, failed)),
        1 => (0u32..9).prop_map(|slot| {
            let object = ObjectId { task: task(0), slot: mobula_base::ids::FIRST_PUT_SLOT + slot };
            Item::Put(proto::SmallPut { object: proto::object_bytes(object), job: 1, value: vec![7; 9].into() })
        }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Batch(u64, Vec<Item>),
    Repeat(u64),
    Fence(u64),
    Put(u64, u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..5, proptest::collection::vec(any_item(), 1..8)).prop_map(|(w, items)| Step::Batch(w, items)),
        2 => (1u64..5).prop_map(Step::Repeat),
        1 => (1u64..5).prop_map(Step::Fence),
        2 => (1u64..5, any::<u8>()).prop_map(|(s, v)| Step::Put(s, v)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Replaying, restoring a snapshot in the middle, and repeating batches all lead to one state.
    #[test]
    fn replicas_agree_whatever_way_they_came(steps in proptest::collection::vec(any_step(), 1..60), cut in 0usize..60) {
        let (mut a, mut b) = (shard(0), shard(0));
        a.set_hot_limit(300);
        let mut marks = BTreeMap::<u64, u64>::new();
        let mut last = BTreeMap::<u64, (proto::Command, StreamAck)>::new();
        let mut seqs = BTreeMap::<u64, u64>::new();
        for (index, step) in (1u64..).zip(&steps) {
            let command = match step {
                Step::Batch(who, items) => batch(*who, marks.get(who).unwrap_or(&0) + 1, items.clone()),
                Step::Repeat(who) => match last.get(who) {
                    Some((command, _)) => command.clone(),
                    None => continue,
                },
                Step::Fence(who) => fence(*who),
                Step::Put(session, value) => {
                    let seq = seqs.entry(*session).or_default();
                    *seq += 1;
                    let put = proto::KvPut { key: vec![*session as u8].into(), value: vec![*value].into(), only_if_absent: false };
                    call(*session, *seq, Op::KvPut(put))
                }
            };
            let (ra, rb) = (a.apply(index, &command), b.apply(index, &command));
            prop_assert_eq!(&ra, &rb);
            if let (Step::Batch(who, _), Some(Answer::Stream(ack))) = (step, &ra.reply) {
                marks.insert(*who, ack.mark);
                last.insert(*who, (command.clone(), ack.clone()));
            }
            if let (Step::Repeat(who), Some(Answer::Stream(ack))) = (step, &ra.reply) {
                prop_assert_eq!(ack, &last[who].1);
            }
            if index as usize == cut {
                let dump = a.snapshot().expect("memory");
                let mut restored = shard(0);
                restored.restore(&dump).expect("just written");
                prop_assert_eq!(&restored.snapshot().expect("memory"), &dump);
                b = restored;
            }
        }
        prop_assert_eq!(a.digest().expect("memory"), b.digest().expect("memory"));
    }
}
