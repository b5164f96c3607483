//! Who needs what, and that everything goes when nobody needs it.

use super::*;
use crate::cold;
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::sim_disk::SimDisk;
use mobula_base::{JobId, RunId};
use proto::item_outcome::Outcome;
use proto::stream_item::Item;
use proto::{StreamAck, TaskState};

/// A shard of `shards` that counts, what it is told, and what it answers.
pub(super) struct Shard {
    pub state: ShardState,
    index: u64,
    seqs: BTreeMap<u64, u64>,
}

impl Shard {
    pub fn new(number: u32, shards: u32) -> Self {
        let disk = Arc::new(SimDisk::new(u64::from(number) + 1));
        let state = ShardState::new(number, cold::open_one(disk, number).expect("memory"));
        let mut shard = Shard { state, index: 0, seqs: BTreeMap::new() };
        shard.apply(first_sweep(number, shards));
        shard
    }

    pub fn apply(&mut self, op: CommandOp) -> Answer {
        self.index += 1;
        let reply = self.state.apply(self.index, &proto::Command::from(op)).reply;
        assert_eq!(self.state.broken(), None);
        reply.expect("every command here has an answer")
    }

    /// Sends items packed, as a node does; what they had to say.
    pub fn say(&mut self, who: u64, items: Vec<Item>) -> Vec<Outcome> {
        let mark = self.seqs.entry(who).or_default();
        let (first_seq, len) = (*mark + 1, items.len() as u64);
        *mark += len;
        let items = items.into_iter().map(|item| proto::StreamItem { item: Some(item) }).collect();
        let batch = pack::pack(proto::StreamBatch { incarnation: who, first_seq, items });
        match self.apply(CommandOp::Stream(batch)) {
            Answer::Stream(StreamAck { mark, outcomes, .. }) => {
                assert_eq!(mark, first_seq + len - 1);
                outcomes.into_iter().filter_map(|outcome| outcome.outcome).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn fence(&mut self, who: u64) {
        self.apply(CommandOp::Fence(proto::Fence { incarnation: who }));
    }

    pub fn settle(&mut self) {
        while self.state.counting.has_work() {
            self.apply(CommandOp::Sweep(proto::Sweep::default()));
        }
    }

    /// A replica that is made of a snapshot goes on alike.
    pub fn start_again(&mut self) {
        let (dump, cold, before) = (self.state.snapshot(1), self.state.manifest(), self.state.digest());
        self.state.restore(dump.into(), &cold).expect("just written");
        assert_eq!(self.state.digest(), before);
    }

    pub fn has(&self, id: TaskId) -> bool {
        self.state.view_of(id, false).expect("memory").state() != TaskState::TaskUnknown
    }
}

pub(super) fn task(n: u64) -> TaskId {
    TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, n)
}

fn spec(id: TaskId, args: &[ObjectId]) -> proto::TaskSpec {
    let arg = |id: &ObjectId| proto::Arg { arg: Some(proto::arg::Arg::Object(proto::object_bytes(*id))) };
    proto::TaskSpec {
        id: proto::task_bytes(id),
        job: 1,
        digest: 5,
        max_retries: 3,
        args: args.iter().map(arg).collect(),
        ..Default::default()
    }
}

pub(super) fn submit(id: TaskId, args: &[ObjectId]) -> Item {
    Item::Submit(spec(id, args))
}

pub(super) fn done(id: TaskId, attempt: u32, crc: u32) -> Item {
    Item::Done(proto::Done {
        task: proto::task_bytes(id),
        attempt,
        executor: 90,
        outputs: vec![proto::Output { crc, size: 8 }],
        ..Default::default()
    })
}

pub(super) fn next(id: TaskId, from: u32) -> Item {
    Item::Next(proto::NextAttempt { task: proto::task_bytes(id), from, failed: false, ..Default::default() })
}

pub(super) fn edge(object: ObjectId, by: ObjectId, contains: bool) -> Item {
    let (object, by) = (proto::object_bytes(object), proto::object_bytes(by));
    Item::Name(proto::Name { object, by, contains, job: 1, hold: false })
}

pub(super) fn hold(object: ObjectId) -> Item {
    Item::Name(proto::Name { object: proto::object_bytes(object), job: 1, hold: true, ..Default::default() })
}

pub(super) fn release(object: ObjectId) -> Item {
    Item::Release(proto::Release { object: proto::object_bytes(object) })
}

pub(super) fn put(object: ObjectId, contains: &[ObjectId]) -> Item {
    let contains = contains.iter().map(|id| proto::object_bytes(*id)).collect();
    let (object, output) = (proto::object_bytes(object), Some(proto::Output { crc: 1, size: 1 << 20 }));
    Item::Put(proto::SmallPut { object, job: 1, large: true, output, contains, ..Default::default() })
}

pub(super) fn a_put(n: u32) -> ObjectId {
    TaskId::root(JobId(1)).output(FIRST_PUT_SLOT + n)
}

pub(super) fn is_empty(state: &ShardState) -> bool {
    state.tasks.is_empty()
        && state.tasks.hot().count() == 0
        && state.puts.is_empty()
        && state.jobs().is_empty()
        && state.counting.concerns.is_empty()
}

#[test]
fn what_a_later_attempt_makes_is_compared_with_what_was_recorded() {
    for accept in [false, true] {
        let mut shard = Shard::new(0, 1);
        let id = task(0);
        let record = proto::TaskSpec { accept_divergence: accept, ..spec(id, &[]) };
        shard.say(1, vec![Item::Submit(record), done(id, 1, 7)]);
        let said = shard.say(1, vec![next(id, 1)]);
        let [Outcome::Granted(view)] = &said[..] else { panic!("{said:?}") };
        assert_eq!((view.attempt, view.outputs[0].crc), (2, 7), "its keeper can compare");
        shard.start_again();
        // An attempt that dies keeps what was recorded before it.
        shard.say(1, vec![next(id, 2)]);
        let said = shard.say(1, vec![done(id, 3, 8)]);
        let [Outcome::DivergedDone(view)] = &said[..] else { panic!("{said:?}") };
        assert_eq!(view.outputs[0].crc, 7);
        shard.start_again();
        let view = shard.state.view_of(id, false).expect("memory");
        if accept {
            assert_eq!((view.state(), view.outputs[0].crc), (TaskState::TaskDone, 8));
            assert!(shard.say(1, vec![next(id, 3), done(id, 4, 8)]).len() == 1, "it is the value now");
        } else {
            let failure = view.failure.clone().expect("failed");
            assert_eq!((view.state(), failure.kind()), (TaskState::TaskFailed, FailureKind::FailureDiverged));
            assert!(
                failure.message.contains("8 bytes with CRC 00000007 and is now 8 bytes with CRC 00000008")
            );
        }
    }
}

#[test]
fn an_attempt_that_failed_made_nothing_else_than_what_is_recorded() {
    let mut shard = Shard::new(0, 1);
    let id = task(0);
    shard.say(1, vec![submit(id, &[]), done(id, 1, 7)]);
    // A replayed parent had submitted it to node 1, whose record came first.
    let failure = Some(proto::Failure::new(FailureKind::FailureStoreFull, "no room"));
    let task = proto::task_bytes(id);
    let failed = Item::Done(proto::Done { task, attempt: 1, executor: 91, failure, ..Default::default() });
    let said = shard.say(2, vec![submit(id, &[]), failed]);
    let [Outcome::Known(_), Outcome::Refused(view)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((view.state(), view.outputs[0].crc), (TaskState::TaskDone, 7));
}

#[test]
fn an_equal_value_of_a_later_attempt_is_no_news() {
    let mut shard = Shard::new(0, 1);
    shard.say(1, vec![submit(task(0), &[]), done(task(0), 1, 7), next(task(0), 1)]);
    assert!(shard.say(1, vec![done(task(0), 2, 7)]).is_empty());
    assert_eq!(shard.state.view_of(task(0), false).expect("memory").state(), TaskState::TaskDone);
}

#[test]
fn a_record_goes_with_its_end_and_its_release_in_either_order() {
    for ends_first in [true, false] {
        let mut shard = Shard::new(0, 1);
        let id = task(3);
        let mut items = vec![done(id, 1, 7), release(id.output(0))];
        if !ends_first {
            items.reverse();
        }
        shard.say(1, vec![submit(id, &[])]);
        assert!(shard.say(1, vec![items.remove(0)]).is_empty());
        assert!(shard.has(id));
        shard.start_again();
        shard.say(1, items);
        assert!(!shard.has(id) && is_empty(&shard.state));
        // A second end is nobody's business any more, and a replay makes it again.
        assert!(matches!(&shard.say(1, vec![done(id, 1, 7)])[..], [Outcome::Refused(_)]));
        assert!(shard.say(1, vec![submit(id, &[]), done(id, 1, 8)]).is_empty());
        assert!(shard.has(id));
    }
}

#[test]
fn a_whole_run_goes_at_once() {
    let mut shard = Shard::new(0, 1);
    let all = || (0..512).map(task);
    shard.say(1, all().map(|id| submit(id, &[])).collect());
    shard.say(1, all().take(300).map(|id| done(id, 1, 7)).collect());
    assert!(shard.say(1, all().map(|id| release(id.output(0))).collect()).is_empty());
    assert_eq!(shard.state.tasks.len(), 212);
    shard.start_again();
    shard.say(1, all().skip(300).map(|id| done(id, 1, 7)).collect());
    assert!(is_empty(&shard.state) && !shard.state.counting.has_work());
    assert!(shard.state.tasks.hot_bytes() == 0);
    // It is remembered that they were here: copies of what they made may go.
    assert!(shard.state.may_drop(task(17).output(0)).expect("memory"));
    assert!(!shard.state.may_drop(task(512).output(0)).expect("memory"), "nothing is known of it");
}

#[test]
fn what_a_record_names_stays_until_the_record_goes() {
    let mut shard = Shard::new(0, 1);
    let chain: Vec<TaskId> = (0..200).map(task).collect();
    for (n, id) in chain.iter().enumerate() {
        let mut items = Vec::new();
        let args: Vec<ObjectId> =
            n.checked_sub(1).map(|before| chain[before].output(0)).into_iter().collect();
        items.extend(args.iter().map(|arg| edge(*arg, id.output(0), false)));
        items.extend([submit(*id, &args), done(*id, 1, 7)]);
        shard.say(1, items);
    }
    let most: Vec<Item> = chain[..199].iter().map(|id| release(id.output(0))).collect();
    assert!(shard.say(1, most).is_empty(), "what can be made again need not be kept for its name's sake");
    assert_eq!(shard.state.tasks.len(), 200);
    shard.start_again();
    // With the last one all go, a bounded number with each entry.
    shard.say(1, vec![release(chain[199].output(0))]);
    assert!(shard.state.tasks.len() > 100 && shard.state.counting.has_work());
    shard.start_again();
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn an_object_in_a_value_stays_with_the_value_and_its_copies_are_kept() {
    let mut shard = Shard::new(0, 1);
    let (inner, outer) = (task(0), task(1));
    shard.say(1, vec![submit(inner, &[]), done(inner, 1, 7), submit(outer, &[])]);
    let Item::Done(plain) = done(outer, 1, 8) else { unreachable!() };
    let contains = vec![proto::object_bytes(inner.output(0))];
    shard.say(1, vec![edge(inner.output(0), outer.output(0), true)]);
    shard.say(1, vec![Item::Done(proto::Done { contains, ..plain })]);
    assert_eq!(shard.say(1, vec![release(inner.output(0))]), [Outcome::Kept(true)]);
    assert!(!shard.state.may_drop(inner.output(0)).expect("memory"));
    // Also when the value was made twice.
    shard.say(1, vec![next(outer, 1), done(outer, 2, 8)]);
    shard.start_again();
    assert!(shard.has(inner));
    shard.say(1, vec![release(outer.output(0))]);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn a_hold_of_another_node_keeps_it_until_that_node_lets_go_or_dies() {
    for dies in [false, true] {
        let mut shard = Shard::new(0, 1);
        let (id, object) = (task(0), task(0).output(0));
        // The name comes before the record.
        shard.say(2, vec![hold(object)]);
        shard.start_again();
        shard.say(1, vec![submit(id, &[]), done(id, 1, 7)]);
        assert_eq!(shard.say(1, vec![release(object)]), [Outcome::Kept(true)]);
        shard.start_again();
        assert!(shard.has(id));
        if dies {
            shard.fence(2);
            shard.settle();
        } else {
            assert!(shard.say(2, vec![release(object)]).is_empty());
        }
        assert!(is_empty(&shard.state));
    }
}

#[test]
fn what_the_dead_submitted_goes_unless_somebody_living_needs_or_makes_it() {
    let mut shard = Shard::new(0, 1);
    let [lone, made, named, kept] = [0, 1, 2, 3].map(task);
    shard.say(1, [lone, made, named, kept].map(|id| submit(id, &[])).into());
    shard.say(
        2,
        vec![submit(task(600), &[named.output(0)]), edge(named.output(0), task(600).output(0), false)],
    );
    shard.say(2, vec![hold(kept.output(0))]);
    // One that is dead already has made nothing of it; a living node takes over.
    shard.fence(1);
    let said = shard.say(2, vec![next(made, 1)]);
    assert!(said.is_empty() || matches!(&said[..], [Outcome::Refused(_) | Outcome::Granted(_)]), "{said:?}");
    shard.start_again();
    shard.settle();
    assert!(!shard.has(lone) && shard.has(named) && shard.has(kept));
    for id in [named, kept] {
        assert!(matches!(&shard.say(2, vec![next(id, 1)])[..], [Outcome::Granted(_)]));
        shard.say(2, vec![done(id, 2, 7)]);
    }
    shard.say(2, vec![release(kept.output(0)), done(task(600), 1, 7), release(task(600).output(0))]);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn what_a_task_puts_after_its_record_went_with_its_keeper_stays_while_it_is_named() {
    let mut shard = Shard::new(0, 1);
    let (lone, user) = (task(0), task(600));
    let inner = lone.output(FIRST_PUT_SLOT);
    shard.say(1, vec![submit(lone, &[])]);
    shard.fence(1);
    shard.settle();
    assert!(!shard.has(lone));
    // A worker of a living node has it, and goes on.
    shard.say(2, vec![hold(inner), edge(inner, user.output(0), false), submit(user, &[inner])]);
    assert_eq!(shard.say(2, vec![release(inner)]), [Outcome::Kept(true)]);
    shard.start_again();
    assert!(!shard.has(lone) && !shard.state.may_drop(inner).expect("memory"));
    shard.say(2, vec![done(user, 1, 7), release(user.output(0))]);
    shard.settle();
    assert!(shard.state.may_drop(inner).expect("memory") && is_empty(&shard.state));
}

#[test]
fn a_task_that_a_living_node_took_over_ends_first() {
    let mut shard = Shard::new(0, 1);
    let id = task(0);
    shard.say(2, vec![hold(id.output(0))]);
    shard.say(1, vec![submit(id, &[])]);
    shard.fence(1);
    assert!(matches!(&shard.say(2, vec![next(id, 1)])[..], [Outcome::Granted(_)]));
    shard.say(2, vec![release(id.output(0))]);
    shard.settle();
    assert!(shard.has(id), "it runs there");
    // Its new keeper dies, too: nobody is left who would want it.
    shard.start_again();
    shard.fence(2);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn a_task_that_must_not_run_twice_goes_with_its_job_unless_the_driver_submitted_it() {
    let mut shard = Shard::new(0, 1);
    let once = |id, parent| {
        let parent = proto::task_bytes(parent);
        Item::Submit(proto::TaskSpec { max_retries: 0, parent, ..spec(id, &[]) })
    };
    let (of_driver, of_task) = (task(0), task(1));
    let items = [once(of_driver, TaskId::root(JobId(1))), once(of_task, task(9))];
    shard.say(1, items.into());
    let end = |id: TaskId| [done(id, 1, 7), release(id.output(0))];
    shard.say(1, [end(of_driver), end(of_task)].concat());
    shard.settle();
    assert!(!shard.has(of_driver) && shard.has(of_task));
    shard.apply(CommandOp::Forget(proto::ForgetJob { job: 1 }));
    assert!(is_empty(&shard.state));
}

#[test]
fn puts_are_held_named_and_contained_like_values() {
    let mut shard = Shard::new(0, 1);
    let (first, second, user) = (a_put(0), a_put(1), task(0));
    shard.say(1, vec![put(first, &[]), edge(first, second, true), put(second, &[first])]);
    assert_eq!(shard.say(1, vec![release(first)]), [Outcome::Kept(true)]);
    shard.say(1, vec![edge(second, user.output(0), false), submit(user, &[second])]);
    // No task makes it again: a name is enough to keep its copies.
    assert_eq!(shard.say(1, vec![release(second)]), [Outcome::Kept(true)]);
    shard.start_again();
    assert_eq!(shard.state.puts.len(), 2);
    shard.say(1, vec![done(user, 1, 7), release(user.output(0))]);
    shard.settle();
    assert!(is_empty(&shard.state));
    // And what a driver's node held goes with the node.
    shard.say(1, vec![put(a_put(2), &[])]);
    shard.fence(1);
    shard.settle();
    assert!(is_empty(&shard.state));
}

/// Delivers all that `from` has to tell, `late` of it answered as if it had been lost; how much that was.
pub(super) fn deliver(from: &mut Shard, number: u32, to: &mut Shard) -> usize {
    let ends = from.state.counting.outbox().first(100);
    let (count, seqs) = (ends.len(), ends.iter().map(|end| end.seq).collect::<Vec<_>>());
    let Answer::Unnames(ack) = to.apply(CommandOp::Unnames(proto::Unnames { from_shard: number, ends }))
    else {
        panic!("not taken")
    };
    let done = seqs.into_iter().filter(|seq| !ack.again.contains(seq)).collect();
    from.apply(CommandOp::Delivered(proto::Delivered { done, again: ack.again }));
    count
}

/// The first task in a run of its own that lies in a shard of two.
pub(super) fn task_in(shard: u32) -> TaskId {
    let run = |n| RunId::new(JobId(1), TaskId::root(JobId(1)), n, 0);
    let run = (0..).map(run).find(|run| run.shard(2).0 == shard).expect("one of two");
    TaskId { run, place: 0 }
}

#[test]
fn edges_into_other_shards_end_through_the_outbox() {
    let (mut a, mut b) = (Shard::new(0, 2), Shard::new(1, 2));
    let (user, arg) = (task_in(0), task_in(1));
    b.say(1, vec![submit(arg, &[]), done(arg, 1, 7), edge(arg.output(0), user.output(0), false)]);
    b.say(1, vec![release(arg.output(0))]);
    a.say(1, vec![submit(user, &[arg.output(0)]), done(user, 1, 7), release(user.output(0))]);
    assert!(is_empty(&a.state) && b.has(arg));
    assert_eq!(a.state.counting.outbox().len(), 1);
    a.start_again();
    // The answer is lost once: told again under its old number it is late, under a new one it counts.
    let ends = a.state.counting.outbox().first(9);
    b.apply(CommandOp::Unnames(proto::Unnames { from_shard: 0, ends }));
    assert!(is_empty(&b.state));
    b.start_again();
    assert_eq!(
        (deliver(&mut a, 0, &mut b), deliver(&mut a, 0, &mut b), deliver(&mut a, 0, &mut b)),
        (1, 1, 0)
    );
    assert!(is_empty(&b.state) && a.state.counting.outbox().is_empty());
}

#[test]
fn what_was_made_before_references_were_counted_stays() {
    let disk = Arc::new(SimDisk::new(1));
    let state = ShardState::new(1, cold::open_one(disk, 1).expect("memory"));
    let mut shard = Shard { state, index: 0, seqs: BTreeMap::new() };
    shard.say(1, vec![submit(task(0), &[]), done(task(0), 1, 7)]);
    assert_eq!(shard.say(1, vec![release(task(0).output(0))]), [Outcome::Kept(true)]);
    let later = task(600);
    shard.say(1, vec![submit(later, &[]), done(later, 1, 7), release(later.output(0))]);
    let other = proto::TaskSpec { job: 2, ..spec(task(1200), &[]) };
    shard.say(1, vec![Item::Submit(other)]);
    shard.fence(1);
    shard.settle();
    assert!(shard.has(task(0)) && shard.has(later) && !shard.has(task(1200)));
    shard.apply(CommandOp::Forget(proto::ForgetJob { job: 1 }));
    assert!(is_empty(&shard.state));
}

#[test]
fn what_a_task_has_put_into_its_own_value_goes_with_it() {
    let mut shard = Shard::new(0, 1);
    let (id, inner) = (task(0), task(0).output(FIRST_PUT_SLOT));
    shard.say(1, vec![submit(id, &[]), hold(inner), edge(inner, id.output(0), true)]);
    let Item::Done(plain) = done(id, 1, 8) else { unreachable!() };
    let contains = vec![proto::object_bytes(inner)];
    shard.say(1, vec![Item::Done(proto::Done { contains, ..plain })]);
    assert_eq!(shard.say(1, vec![release(inner)]), [Outcome::Kept(true)], "its value is held");
    assert!(!shard.state.may_drop(inner).expect("memory"));
    shard.start_again();
    shard.say(2, vec![hold(inner)]);
    shard.say(1, vec![release(id.output(0))]);
    shard.settle();
    assert!(shard.has(id), "somebody holds what it has put");
    shard.say(2, vec![release(inner)]);
    shard.settle();
    assert!(is_empty(&shard.state));
    assert!(shard.state.may_drop(inner).expect("memory"));
}

#[test]
fn copies_of_a_drivers_put_that_has_gone_may_go() {
    let mut shard = Shard::new(0, 1);
    let (inner, outer) = (a_put(0), a_put(1));
    shard.say(1, vec![edge(inner, outer, true), put(inner, &[]), put(outer, &[inner])]);
    assert_eq!(shard.say(1, vec![release(inner)]), [Outcome::Kept(true)]);
    assert!(!shard.state.may_drop(inner).expect("memory"));
    shard.say(1, vec![release(outer)]);
    shard.settle();
    shard.start_again();
    assert!(is_empty(&shard.state));
    assert!(shard.state.may_drop(inner).expect("memory"));
    assert!(!shard.state.may_drop(a_put(2)).expect("memory"), "its record may be under way");
}

#[test]
fn an_edge_of_a_put_from_a_value_that_never_came_goes_with_the_record() {
    let mut shard = Shard::new(0, 1);
    let (id, inner) = (task(0), task(0).output(FIRST_PUT_SLOT));
    shard.say(1, vec![submit(id, &[]), edge(inner, id.output(0), true), done(id, 1, 8)]);
    shard.say(1, vec![release(id.output(0))]);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn an_edge_whose_record_never_came_ends_with_whoever_spoke_of_it() {
    let mut shard = Shard::new(0, 1);
    let [lost, meant, again] = [0, 1, 2].map(task);
    let by = |n: u64| task(600 + n).output(0);
    shard.say(1, [lost, meant, again].into_iter().flat_map(|id| [submit(id, &[]), done(id, 1, 7)]).collect());
    let edges = [(lost, by(0)), (meant, by(1)), (again, by(2))].map(|(id, by)| edge(id.output(0), by, false));
    shard.say(2, edges.into());
    shard.say(2, vec![submit(task(601), &[meant.output(0)])]);
    shard.say(3, vec![hold(by(1)), edge(again.output(0), by(2), false)]);
    shard.say(1, [lost, meant, again].map(|id| release(id.output(0))).into());
    shard.fence(2);
    shard.settle();
    shard.start_again();
    assert_eq!([lost, meant, again].map(|id| shard.has(id)), [false, true, true]);
    shard.fence(3);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn whether_a_record_in_another_shard_ever_came_is_asked_there_once_no_more_can_come() {
    let (mut a, mut b) = (Shard::new(0, 2), Shard::new(1, 2));
    let (user, arg) = (task_in(0), task_in(1));
    b.say(1, vec![submit(arg, &[]), done(arg, 1, 7)]);
    b.say(2, vec![edge(arg.output(0), user.output(0), false)]);
    b.say(1, vec![release(arg.output(0))]);
    b.fence(2);
    b.settle();
    // It may still come there, as far as that shard knows.
    assert_eq!((deliver(&mut b, 1, &mut a), a.state.counting.outbox().len()), (1, 0));
    a.fence(2);
    a.start_again();
    b.start_again();
    assert_eq!((deliver(&mut b, 1, &mut a), deliver(&mut b, 1, &mut a)), (1, 0));
    assert!(b.has(arg));
    a.start_again();
    assert_eq!(deliver(&mut a, 0, &mut b), 1);
    assert!(is_empty(&a.state) && is_empty(&b.state));
    // One that did come keeps what it names, and one that somebody else speaks of as well.
    for came in [true, false] {
        let (mut a, mut b) = (Shard::new(0, 2), Shard::new(1, 2));
        b.say(1, vec![submit(arg, &[]), done(arg, 1, 7), release(arg.output(0))]);
        b.say(1, vec![submit(arg, &[]), done(arg, 1, 7)]);
        b.say(2, vec![edge(arg.output(0), user.output(0), false)]);
        b.say(1, vec![release(arg.output(0))]);
        if came {
            a.say(2, vec![submit(user, &[arg.output(0)])]);
            a.say(3, vec![hold(user.output(0))]);
        }
        [&mut a, &mut b].into_iter().for_each(|shard| shard.fence(2));
        if !came {
            b.say(3, vec![edge(arg.output(0), user.output(0), false)]);
        }
        deliver(&mut b, 1, &mut a);
        deliver(&mut a, 0, &mut b);
        assert!(b.has(arg), "{came}");
    }
}

#[test]
fn an_edge_from_a_value_outlives_the_node_that_made_it() {
    let mut shard = Shard::new(0, 1);
    let (inner, outer) = (task(0), task(600));
    shard.say(1, vec![submit(inner, &[]), done(inner, 1, 7)]);
    shard.say(3, vec![edge(inner.output(0), outer.output(0), true)]);
    shard.say(1, vec![release(inner.output(0))]);
    shard.fence(3);
    shard.settle();
    assert!(shard.has(inner), "the record of what contains it is with another node");
    let Item::Done(plain) = done(outer, 1, 8) else { unreachable!() };
    let contains = vec![proto::object_bytes(inner.output(0))];
    let executor = 2;
    shard.say(2, vec![submit(outer, &[]), Item::Done(proto::Done { contains, executor, ..plain })]);
    shard.settle();
    assert!(shard.has(inner));
    shard.say(2, vec![release(outer.output(0))]);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn what_a_task_that_failed_had_put_ends_its_edges_with_the_task() {
    let mut shard = Shard::new(0, 1);
    let (inner, outer) = (task(0), task(1));
    shard.say(1, vec![submit(inner, &[]), done(inner, 1, 7), submit(outer, &[])]);
    let Item::Done(plain) = done(outer, 1, 8) else { unreachable!() };
    let contains = vec![proto::object_bytes(inner.output(0))];
    let failure = Some(proto::Failure::new(FailureKind::FailureUserError, "after it had put something"));
    shard.say(1, vec![edge(inner.output(0), outer.output(0), true)]);
    shard.say(1, vec![Item::Done(proto::Done { contains, failure, outputs: Vec::new(), ..plain })]);
    shard.say(1, vec![release(inner.output(0))]);
    shard.start_again();
    shard.settle();
    assert!(shard.has(inner), "what failed is held, and what it had put names this");
    shard.say(1, vec![release(outer.output(0))]);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn what_a_task_had_put_whose_executors_all_died_ends_its_edges_with_the_task() {
    let mut shard = Shard::new(0, 1);
    let (inner, outer) = (task(0), task(1));
    shard.say(1, vec![submit(inner, &[]), done(inner, 1, 7), submit(outer, &[])]);
    shard.say(1, vec![edge(inner.output(0), outer.output(0), true)]);
    let contains = vec![proto::object_bytes(inner.output(0))];
    let died = |from| {
        let (task, contains) = (proto::task_bytes(outer), contains.clone());
        Item::Next(proto::NextAttempt { task, from, failed: true, contains, ..Default::default() })
    };
    for from in 1..=3 {
        let said = shard.say(1, vec![died(from)]);
        assert!(matches!(&said[..], [Outcome::Granted(_)]), "{said:?}");
        shard.start_again();
    }
    assert!(matches!(&shard.say(1, vec![died(4)])[..], [Outcome::Refused(_)]));
    shard.say(1, vec![release(inner.output(0)), release(outer.output(0))]);
    shard.settle();
    assert!(is_empty(&shard.state));
}

#[test]
fn whoever_lets_go_of_what_is_still_to_come_keeps_its_copy() {
    let mut shard = Shard::new(0, 1);
    for object in [a_put(0), task(0).output(0)] {
        let said = shard.say(2, vec![hold(object), release(object)]);
        assert!(matches!(said[..], [Outcome::Kept(true)]), "its record is under way: {said:?}");
        shard.settle();
        assert!(!shard.state.may_drop(object).expect("memory"));
    }
    shard.say(1, vec![put(a_put(0), &[]), submit(task(0), &[]), done(task(0), 1, 7)]);
    for object in [a_put(0), task(0).output(0)] {
        assert!(!shard.state.may_drop(object).expect("memory"), "held by who put or submitted it");
        shard.say(1, vec![release(object)]);
        shard.settle();
        assert!(shard.state.may_drop(object).expect("memory"), "{object}");
    }
}

#[test]
fn what_a_running_task_has_put_stays_while_somebody_may_need_it_again() {
    // The value of the one that takes it may be lost, and the one that has put it wait for that.
    let mut shard = Shard::new(0, 1);
    let (parent, child) = (task(0), task(1));
    let given = parent.output(FIRST_PUT_SLOT);
    shard.say(1, vec![submit(parent, &[]), hold(given), edge(given, child.output(0), false)]);
    shard.say(1, vec![submit(child, &[given]), done(child, 1, 7)]);
    assert_eq!(shard.say(1, vec![release(given)]), [Outcome::Kept(true)]);
    assert!(!shard.state.may_drop(given).expect("memory"));
    // From here on it is made again with the parent.
    shard.say(1, vec![done(parent, 1, 7)]);
    assert!(shard.state.may_drop(given).expect("memory"));
    shard.say(1, vec![hold(given)]);
    assert!(shard.say(1, vec![release(given)]).is_empty());
}
