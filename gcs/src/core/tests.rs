use super::*;
use crate::cold;
use mobula_base::disk::Disk;
use mobula_base::sim_disk::SimDisk;
use mobula_base::{JobId, ObjectId};
use proptest::prelude::*;
use proto::item_outcome::Outcome;
use proto::stream_item::Item;
use proto::{StreamAck, StreamBatch, StreamItem, TaskState};

fn shard(number: u32) -> ShardState {
    shard_on(number, Arc::new(SimDisk::new(1)))
}

fn shard_on(number: u32, disk: Arc<SimDisk>) -> ShardState {
    ShardState::new(number, cold::open_one(disk, number).expect("memory"))
}

/// What another replica is after it was sent a snapshot of `state`, whose files are on `disk`.
fn restored(state: &ShardState, disk: &SimDisk) -> ShardState {
    let other = Arc::new(SimDisk::new(2));
    other.create_dir(cold::DIR).expect("memory");
    let manifest = state.manifest();
    for file in &manifest.files {
        let path = cold::path(state.shard, file.number);
        let bytes = disk.read(&path).expect("named by the manifest");
        let mut copy = other.open(&path, true).expect("memory");
        copy.write_at(0, &bytes[..file.len as usize]).expect("memory");
    }
    let mut restored = shard_on(state.shard, other);
    restored.restore(state.snapshot(1).into(), &manifest).expect("just written");
    restored
}

fn task(n: u64) -> TaskId {
    TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, n)
}

fn submit(n: u64, digest: u64) -> Item {
    let spec = proto::TaskSpec {
        id: proto::task_bytes(task(n)),
        job: 1,
        digest,
        max_retries: 3,
        ..Default::default()
    };
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
    Item::Next(proto::NextAttempt { task: proto::task_bytes(task(n)), from, failed, ..Default::default() })
}

fn batch(incarnation: u64, first_seq: u64, items: Vec<Item>) -> proto::Command {
    let items = items.into_iter().map(|item| StreamItem { item: Some(item) }).collect();
    proto::Command::from(CommandOp::Stream(StreamBatch { incarnation, first_seq, items }))
}

fn fence(incarnation: u64) -> proto::Command {
    proto::Command::from(CommandOp::Fence(proto::Fence { incarnation }))
}

fn call(session: u64, seq: u64, op: Op) -> proto::Command {
    proto::Command::from(CommandOp::Call(proto::Call { session, seq, op: Some(op) }))
}

/// Opens the sessions 1 to 4, the first of a shard.
fn with_sessions(mut state: ShardState) -> ShardState {
    for session in 1..5 {
        let opened = called(state.apply(0, &call(0, 0, Op::Open(proto::OpenSession {}))));
        assert_eq!(opened, Called::Session(session));
    }
    state
}

fn put(session: u64, seq: u64, value: &str, expected: Option<u64>) -> proto::Command {
    let (key, value) = (Bytes::from("k"), Bytes::from(value.to_owned()));
    let put = proto::KvPut { key, value, expected_revision: expected, ..Default::default() };
    call(session, seq, Op::KvPut(put))
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
    state.view_of(task(n), false).expect("memory").state()
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
fn retries_after_errors_of_its_own_end_with_the_last_of_them() {
    let mut state = shard(1);
    let failed = |n: u64, from: u32, why: &str| {
        let failure = Some(proto::Failure::new(FailureKind::FailureUserError, why));
        let task = proto::task_bytes(task(n));
        Item::Next(proto::NextAttempt { task, from, failed: true, failure, ..Default::default() })
    };
    let items = vec![submit(0, 5), failed(0, 1, "one"), next(0, 2, true), failed(0, 3, "three")];
    acked(state.apply(1, &batch(1, 1, items)));
    assert_eq!(state_of(&state, 0), TaskState::TaskPending);
    let ack = acked(state.apply(2, &batch(1, 5, vec![failed(0, 4, "four")])));
    let Some(Outcome::Refused(view)) = &ack.outcomes[0].outcome else { panic!("{ack:?}") };
    let failure = view.failure.as_ref().expect("failed for good");
    assert_eq!((failure.kind(), &failure.message[..]), (FailureKind::FailureUserError, "four"));
    assert!(failure.causes[0].contains("4 attempts"), "deaths count, too: {failure:?}");
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
    let mut state = with_sessions(shard(0));
    assert_eq!(called(state.apply(1, &call(2, 1, join("a:1")))), Called::Incarnation(1));
    assert_eq!(called(state.apply(2, &call(2, 1, join("a:1")))), Called::Incarnation(1));
    assert_eq!(called(state.apply(3, &call(2, 2, join("b:1")))), Called::Incarnation(2));
    assert_eq!(called(state.apply(4, &call(2, 1, join("a:1")))), Called::SessionExpired(true));
    assert_eq!(called(state.apply(5, &call(1, 4, join("a:1")))), Called::SessionExpired(true));
    assert_eq!(called(state.apply(6, &call(5, 1, join("a:1")))), Called::SessionExpired(true));
}

#[test]
fn changes_that_share_an_entry_have_revisions_of_their_own() {
    let mut state = with_sessions(shard(1));
    let commands = [put(1, 1, "a", Some(0)), put(2, 1, "b", None), put(1, 2, "c", Some(1))];
    let commands = commands.iter().map(|command| command.encode_to_vec().into()).collect();
    let reply = state.apply(9, &proto::Command::from(CommandOp::Batch(proto::CommandBatch { commands })));
    let Some(Answer::Batch(batch)) = reply.reply else { panic!("{reply:?}") };
    let replies: Vec<Called> = batch
        .replies
        .into_iter()
        .map(|reply| called(proto::Reply::decode(reply).expect("a reply")))
        .collect();
    // The third builds on what the second overwrote, within the same entry.
    assert_eq!(replies, [Called::Revision(1), Called::Revision(2), Called::KvConflict(2)]);
    let delete = |seq, expected| {
        call(1, seq, Op::KvDelete(proto::KvDelete { key: "k".into(), expected_revision: expected }))
    };
    assert_eq!(called(state.apply(10, &delete(3, Some(1)))), Called::KvConflict(2));
    assert_eq!(called(state.apply(11, &delete(4, Some(2)))), Called::Revision(3));
    assert_eq!(called(state.apply(12, &delete(5, None))), Called::Revision(0), "there was nothing");
    let watch::Since::Changes(changes, next) = state.kv.history().since(1, b"k", 1 << 20) else {
        panic!("all is kept")
    };
    let seen: Vec<(u64, bool)> = changes.iter().map(|change| (change.revision, change.deleted)).collect();
    assert_eq!((seen, next), (vec![(1, false), (2, false), (3, true)], 4));
}

#[test]
fn a_new_life_at_an_address_ends_the_old_one() {
    let mut state = with_sessions(shard(0));
    state.apply(1, &call(1, 1, join("a:1")));
    state.apply(2, &call(2, 1, join("a:1")));
    assert!(state.is_fenced(1) && !state.is_fenced(2));
    assert_eq!(state.cluster.deaths.len(), 1);
    assert_eq!(state.cluster.version, 2);
    let again = proto::DeclareDead { incarnation: 1, evidence: "again".into(), silent_ms: 1 };
    state.apply(3, &proto::Command::from(CommandOp::DeclareDead(again)));
    assert_eq!((state.cluster.deaths.len(), state.cluster.version), (1, 2), "idempotent");
}

#[test]
fn a_level_of_formats_counts_only_for_the_heads_that_were_asked() {
    let raise = |level, heads| {
        let raise = proto::RaiseLevel { level, program: "0.2".into(), heads };
        proto::Command::from(CommandOp::Raise(raise))
    };
    let mut state = shard(0);
    state.set_formats(Formats { newest: 5, ..Formats::default() });
    assert_eq!(state.cluster.level().0, 1);
    state.apply(1, &raise(5, 9));
    assert_eq!(state.cluster.level().0, 1, "the heads are others by now");
    state.apply(2, &raise(5, 0));
    state.apply(3, &raise(4, 0));
    assert_eq!(state.cluster.level(), (5, "0.2".into()), "it never falls");
    assert!(state.broken().is_none());
    // A program that reads less stops there, also when it is sent the state.
    let mut older = shard(0);
    older.apply(2, &raise(5, 0));
    let said = "writes format 5, this program reads up to 4: install version 0.2";
    assert!(older.broken().is_some_and(|why| why.contains(said)), "{:?}", older.broken());
    let error = shard(0).restore(state.snapshot(1).into(), &state.manifest()).expect_err("too old");
    assert!(error.to_string().contains(said), "{error}");
}

#[test]
fn cold_runs_come_back_when_they_are_needed() {
    let disk = Arc::new(SimDisk::new(1));
    let mut state = shard_on(1, disk.clone());
    state.set_hot_limit(4000);
    for n in 0..2000 {
        state.apply(n + 1, &batch(1, n * 2 + 1, vec![submit(n, 5), done(n, 1, 1, 1)]));
    }
    assert!(state.tasks.hot_bytes() < 512 * 300, "most runs went cold");
    assert!(state.tasks.jobs().any(|(_, sum)| sum.cold_runs >= 3 && sum.tasks == 2000));
    assert_eq!(state_of(&state, 0), TaskState::TaskDone);
    let mut other = restored(&state, &disk);
    for state in [&mut state, &mut other] {
        let ack = acked(state.apply(9000, &batch(1, 4001, vec![next(0, 1, false)])));
        let Some(Outcome::Granted(view)) = &ack.outcomes[0].outcome else { panic!("{ack:?}") };
        assert_eq!(view.spec.as_ref().map(|spec| spec.digest), Some(5));
        assert!(state.broken().is_none());
    }
    assert_eq!(state.digest(), other.digest());
}

#[test]
fn a_forgotten_job_leaves_nothing_and_does_not_come_back() {
    let mut state = shard(1);
    state.set_hot_limit(4000);
    let empty = state.digest();
    for n in 0..1200 {
        state.apply(n + 1, &batch(1, n + 1, vec![submit(n, 5)]));
    }
    let put = proto::SmallPut {
        object: proto::object_bytes(task(0).output(mobula_base::ids::FIRST_PUT_SLOT)),
        job: 1,
        value: vec![1].into(),
        ..Default::default()
    };
    state.apply(1300, &batch(1, 1201, vec![Item::Put(put)]));
    assert_eq!(state.jobs(), BTreeSet::from([1]));
    state.apply(1301, &proto::Command::from(CommandOp::Forget(proto::ForgetJob { job: 1 })));
    assert!(state.jobs().is_empty() && state.puts.is_empty() && state.tasks.is_empty());
    assert!(state.manifest().files.is_empty(), "nothing of it counts on the disk");
    assert_eq!(state_of(&state, 0), TaskState::TaskUnknown);
    let ack = acked(state.apply(1302, &batch(1, 1202, vec![submit(0, 5)])));
    assert!(matches!(&ack.outcomes[0].outcome, Some(Outcome::Failed(_))), "{ack:?}");
    assert_ne!(state.digest(), empty, "it is remembered that there was such a job");
}

#[test]
fn commands_that_share_an_entry_have_replies_of_their_own() {
    let mut state = with_sessions(shard(0));
    let commands = [call(2, 1, join("a:1")), call(2, 1, join("a:1")), call(1, 1, join("b:1"))];
    let commands: Vec<Bytes> = commands.iter().map(|command| command.encode_to_vec().into()).collect();
    let nested = proto::Command::from(CommandOp::Batch(proto::CommandBatch { commands: commands.clone() }));
    let commands = commands.into_iter().chain([nested.encode_to_vec().into()]).collect();
    let reply = state.apply(1, &proto::Command::from(CommandOp::Batch(proto::CommandBatch { commands })));
    let Some(Answer::Batch(batch)) = reply.reply else { panic!("{reply:?}") };
    let replies: Vec<proto::Reply> =
        batch.replies.into_iter().map(|reply| proto::Reply::decode(reply).expect("a reply")).collect();
    let incarnations: Vec<Called> = replies[..3].iter().map(|reply| called(reply.clone())).collect();
    assert_eq!(incarnations, [1, 1, 2].map(Called::Incarnation));
    assert_eq!(replies[3].reply, None, "a batch inside a batch is nobody's request");
}

/// Items packed into one.
fn packed(numbers: std::ops::Range<u64>, item: impl Fn(u64) -> Item) -> Item {
    let items = numbers.map(|n| StreamItem { item: Some(item(n)) }).collect();
    let batch = pack::pack(StreamBatch { incarnation: 1, first_seq: 1, items });
    assert_eq!(batch.items.len(), 1, "neighbours are packed");
    batch.items.into_iter().next().and_then(|item| item.item).expect("one")
}

fn any_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        3 => (0u64..40, 1u64..3).prop_map(|(n, digest)| submit(n, digest)),
        3 => (0u64..40, 1u32..4, 1u64..4, 1u32..3).prop_map(|(n, a, e, c)| done(n, a, e, c)),
        2 => (0u64..40, 1u64..3, 2u64..9).prop_map(|(n, digest, count)| packed(n..n + count, |n| submit(n, digest))),
        2 => (0u64..40, 1u64..4, 2u64..9).prop_map(|(n, e, count)| packed(n..n + count, |n| done(n, 1, e, 1))),
        2 => (0u64..40, 1u32..4, any::<bool>()).prop_map(|(n, from, failed)| next(n, from, failed)),
        1 => (0u32..9).prop_map(|slot| {
            let object = ObjectId { task: task(0), slot: mobula_base::ids::FIRST_PUT_SLOT + slot };
            Item::Put(proto::SmallPut { object: proto::object_bytes(object), job: 1, value: vec![7; 9].into(), ..Default::default() })
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
        let disk = Arc::new(SimDisk::new(1));
        let (mut a, mut b) = (with_sessions(shard_on(0, disk.clone())), with_sessions(shard(0)));
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
                    let put = proto::KvPut { key: vec![*session as u8].into(), value: vec![*value].into(), ..Default::default() };
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
                b = restored(&a, &disk);
                prop_assert_eq!(b.snapshot(1), a.snapshot(1));
            }
        }
        prop_assert_eq!(a.digest(), b.digest());
    }

    /// A batch says and does the same whether it was packed or not.
    #[test]
    fn packing_changes_nothing(items in proptest::collection::vec((any::<bool>(), 0u64..30, 1u64..3), 1..80)) {
        let (mut plain, mut tight) = (shard(1), shard(1));
        let items: Vec<Item> = items.into_iter().map(|(is_done, n, x)| if is_done { done(n, 1, 7, x as u32) } else { submit(n, x) }).collect();
        let sorted = |items: &[Item]| {
            let mut items: Vec<Item> = items.to_vec();
            items.sort_by_key(|item| match item { Item::Submit(spec) => (0, spec.id.clone()), Item::Done(done) => (1, done.task.clone()), _ => (2, Bytes::new()) });
            items
        };
        for (index, items) in [(1, items.clone()), (2, sorted(&items))] {
            let first_seq = 1 + (index - 1) * items.len() as u64;
            let stream = |items: &[Item]| StreamBatch { incarnation: 7, first_seq, items: items.iter().map(|i| StreamItem { item: Some(i.clone()) }).collect() };
            let unpacked = stream(&items);
            let packed = pack::pack(unpacked.clone());
            let apply = |state: &mut ShardState, batch: StreamBatch| acked(state.apply(index, &proto::Command::from(CommandOp::Stream(batch))));
            prop_assert_eq!(apply(&mut plain, unpacked), apply(&mut tight, packed));
            for n in 0..30 {
                prop_assert_eq!(plain.view_of(task(n), true).expect("memory"), tight.view_of(task(n), true).expect("memory"));
            }
        }
    }
}
