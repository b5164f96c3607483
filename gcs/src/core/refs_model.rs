//! The tables against a model of plain sets: a record is there if and only if the model says so.

use super::refs_tests::{Shard, a_put, done, edge, hold, is_empty, next, release};
use super::*;
use mobula_base::JobId;
use proptest::collection::vec;
use proptest::prelude::*;
use proto::stream_item::Item;

/// Tasks of the model; half of them in another run.
const TASKS: u64 = 10;
/// Driver's puts of the model.
const PUTS: u64 = 3;
/// Nodes of the model.
const NODES: u64 = 5;

fn id(n: u64) -> TaskId {
    TaskId::new(JobId(1), TaskId::root(JobId(1)), n / 5, n % 5)
}

/// Objects by number: what the tasks return, then the puts.
fn object(n: u64) -> ObjectId {
    if n < TASKS { id(n).output(0) } else { a_put((n - TASKS) as u32) }
}

/// What is fixed of each task or put, whoever sends it.
#[derive(Clone, Debug)]
struct Fixed {
    args: Vec<u64>,
    contains: Vec<u64>,
    once: bool,
    accepts: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Submit(u64, u64),
    Done(u64, u64, u32),
    Next(u64, u64),
    Put(u64, u64),
    Hold(u64, u64),
    Release(u64, u64),
    ReleaseMany(u64),
    Stray(u64, u64, u64),
    Fence(u64),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let (who, task, any) = (1..=NODES, 0..TASKS, 0..TASKS + PUTS);
    prop_oneof![
        8 => (who.clone(), task.clone()).prop_map(|(w, n)| Step::Submit(w, n)),
        8 => (who.clone(), task.clone(), 1u32..3).prop_map(|(w, n, crc)| Step::Done(w, n, crc)),
        3 => (who.clone(), task.clone()).prop_map(|(w, n)| Step::Next(w, n)),
        3 => (who.clone(), TASKS..TASKS + PUTS).prop_map(|(w, n)| Step::Put(w, n)),
        3 => (who.clone(), any.clone()).prop_map(|(w, n)| Step::Hold(w, n)),
        9 => (who.clone(), any.clone()).prop_map(|(w, n)| Step::Release(w, n)),
        2 => who.clone().prop_map(Step::ReleaseMany),
        1 => (who.clone(), any, task).prop_map(|(w, n, by)| Step::Stray(w, n, by)),
        1 => who.prop_map(Step::Fence),
        2 => Just(Step::Restart),
    ]
}

fn any_fixed() -> impl Strategy<Value = Vec<Fixed>> {
    let one = |n: u64| {
        let others = vec(0..TASKS + PUTS, 0..3);
        // Nothing names or contains itself or what comes later.
        let before = move |all: Vec<u64>| all.into_iter().filter(|other| *other < n).collect::<Vec<_>>();
        (others.clone(), others, prop::bool::weighted(0.15), any::<bool>()).prop_map(
            move |(args, contains, once, accepts)| Fixed {
                args: before(args),
                contains: before(contains),
                once,
                accepts,
            },
        )
    };
    (0..TASKS + PUTS).map(one).collect::<Vec<_>>()
}

/// A record of the model.
#[derive(Clone, Debug)]
struct Record {
    submitter: u64,
    released: bool,
    keeper: u64,
    attempt: u32,
    ended: bool,
    failed: bool,
    value: Option<u32>,
    contains: bool,
}

#[derive(Clone, Debug, Default)]
struct Model {
    fixed: Vec<Fixed>,
    records: BTreeMap<u64, Record>,
    /// Puts that have come: whether what they contain is theirs.
    puts: BTreeSet<u64>,
    holds: BTreeSet<(u64, u64)>,
    /// By object and source: who spoke of it last; 0 once it has been asked whether it is meant.
    edges: BTreeMap<(u64, u64), u64>,
    /// Those of them, by object and task, that come from a value of the task.
    in_values: BTreeSet<(u64, u64)>,
    fenced: BTreeSet<u64>,
}

impl Model {
    fn is_needed(&self, n: u64) -> bool {
        self.holds.iter().any(|(object, _)| *object == n) || self.edges.keys().any(|(object, _)| *object == n)
    }

    fn is_over(&self, n: u64) -> bool {
        let Some(record) = self.records.get(&n) else { return self.puts.contains(&n) && !self.is_needed(n) };
        let orphan = self.fenced.contains(&record.submitter) && self.fenced.contains(&record.keeper);
        let held = !record.released && !self.fenced.contains(&record.submitter);
        (record.ended || orphan) && !held && !self.is_needed(n) && !self.fixed[n as usize].once
    }

    fn prune(&mut self) {
        while let Some(n) = (0..TASKS + PUTS).find(|n| self.is_over(*n)) {
            let fixed = &self.fixed[n as usize];
            let contains = self.records.remove(&n).is_none_or(|record| record.contains);
            let names = if n < TASKS { fixed.args.clone() } else { Vec::new() };
            let contained = if contains { fixed.contains.clone() } else { Vec::new() };
            for target in names.into_iter().chain(contained) {
                self.edges.remove(&(target, n));
                self.in_values.remove(&(target, n));
            }
            self.puts.remove(&n);
        }
    }

    /// Whether the source of an edge is there, and says so itself.
    fn is_meant(&self, object: u64, by: u64) -> bool {
        let Fixed { args, contains, .. } = &self.fixed[by as usize];
        let record = self.records.get(&by);
        record.is_some_and(|record| args.contains(&object) || record.contains && contains.contains(&object))
            || self.puts.contains(&by) && contains.contains(&object)
    }

    fn fence(&mut self, who: u64) {
        self.fenced.insert(who);
        self.holds.retain(|(_, holder)| *holder != who);
        let orphans =
            self.edges.iter().filter(|(edge, sender)| **sender == who && !self.in_values.contains(*edge));
        for (object, by) in orphans.map(|(edge, _)| *edge).collect::<Vec<_>>() {
            match self.is_meant(object, by) {
                true => _ = self.edges.insert((object, by), 0),
                false => _ = self.edges.remove(&(object, by)),
            }
        }
    }

    fn hold(&mut self, who: u64, n: u64) {
        let implied = self.records.get(&n).is_some_and(|record| record.submitter == who && !record.released);
        if !implied {
            self.holds.insert((n, who));
        }
    }

    fn let_go(&mut self, who: u64, n: u64) {
        self.holds.remove(&(n, who));
        if let Some(record) = self.records.get_mut(&n).filter(|record| record.submitter == who) {
            record.released = true;
        }
    }

    /// Takes a step that the table takes, too; what is sent for it.
    fn step(&mut self, step: &Step) -> Vec<Item> {
        let fixed = |n: &u64| self.fixed[*n as usize].clone();
        match step {
            Step::Submit(who, n) => {
                let Fixed { args, once, accepts, .. } = fixed(n);
                let names = args.iter().map(|arg| edge(object(*arg), object(*n), false)).collect::<Vec<_>>();
                args.iter().for_each(|arg| _ = self.edges.insert((*arg, *n), *who));
                if self.records.contains_key(n) {
                    self.hold(*who, *n);
                } else {
                    let (submitter, keeper) = (*who, *who);
                    let (released, ended, failed, contains) = (false, false, false, false);
                    let record = Record {
                        submitter,
                        released,
                        keeper,
                        attempt: 1,
                        ended,
                        failed,
                        value: None,
                        contains,
                    };
                    self.records.insert(*n, record);
                }
                let arg = |n: &u64| proto::Arg {
                    arg: Some(proto::arg::Arg::Object(proto::object_bytes(object(*n)))),
                };
                let spec = proto::TaskSpec {
                    id: proto::task_bytes(id(*n)),
                    job: 1,
                    parent: if once { proto::task_bytes(id(90)) } else { Bytes::new() },
                    max_retries: if once { 0 } else { 3 },
                    accept_divergence: accepts,
                    args: args.iter().map(arg).collect(),
                    ..Default::default()
                };
                [names, vec![Item::Submit(spec)]].concat()
            }
            Step::Done(who, n, crc) => {
                let contains = fixed(n).contains;
                let mut items: Vec<Item> =
                    contains.iter().map(|inner| edge(object(*inner), object(*n), true)).collect();
                contains.iter().for_each(|inner| _ = self.edges.insert((*inner, *n), *who));
                contains.iter().for_each(|inner| _ = self.in_values.insert((*inner, *n)));
                let accepts = fixed(n).accepts;
                let record = self.records.get_mut(n);
                let attempt = record.as_ref().map_or(1, |record| record.attempt);
                if let Some(record) = record.filter(|record| !record.ended && record.keeper == *who) {
                    let same = record.value.is_none_or(|value| value == *crc);
                    record.ended = true;
                    record.failed = !same && !accepts;
                    if !record.failed {
                        (record.value, record.contains) = (Some(*crc), true);
                    }
                }
                let Item::Done(done) = done(id(*n), attempt, *crc) else { unreachable!() };
                let contains = contains.iter().map(|inner| proto::object_bytes(object(*inner))).collect();
                items.push(Item::Done(proto::Done { contains, executor: *who, ..done }));
                items
            }
            Step::Next(who, n) => {
                let fenced = self.fenced.clone();
                let record = self.records.get_mut(n);
                let from = record.as_ref().map_or(1, |record| record.attempt);
                let may = |r: &&mut Record| match (r.ended, r.failed) {
                    (false, _) => r.keeper == *who || fenced.contains(&r.keeper),
                    (true, failed) => !failed,
                };
                if let Some(record) = record.filter(may) {
                    (record.keeper, record.ended) = (*who, false);
                    record.attempt += 1;
                }
                vec![next(id(*n), from)]
            }
            Step::Put(who, n) => {
                let contains = fixed(n).contains;
                let mut items: Vec<Item> =
                    contains.iter().map(|inner| edge(object(*inner), object(*n), true)).collect();
                contains.iter().for_each(|inner| _ = self.edges.insert((*inner, *n), *who));
                self.puts.insert(*n);
                self.holds.insert((*n, *who));
                items.push(super::refs_tests::put(
                    object(*n),
                    &contains.iter().map(|n| object(*n)).collect::<Vec<_>>(),
                ));
                items
            }
            Step::Hold(who, n) => {
                self.hold(*who, *n);
                vec![hold(object(*n))]
            }
            Step::Release(who, n) => {
                self.let_go(*who, *n);
                vec![release(object(*n))]
            }
            Step::ReleaseMany(who) => {
                (0..TASKS).for_each(|n| self.let_go(*who, n));
                (0..TASKS).map(|n| release(object(n))).collect()
            }
            Step::Stray(who, n, by) => {
                if self.edges.get(&(*n, *by)) == Some(who) && !self.is_meant(*n, *by) {
                    self.edges.remove(&(*n, *by));
                    self.in_values.remove(&(*n, *by));
                }
                let unname = proto::Unname {
                    object: proto::object_bytes(object(*n)),
                    by: proto::object_bytes(object(*by)),
                };
                vec![Item::Unname(unname)]
            }
            Step::Fence(_) | Step::Restart => Vec::new(),
        }
    }
}

fn who(step: &Step) -> u64 {
    match step {
        Step::Submit(who, _) | Step::Next(who, _) | Step::Put(who, _) | Step::Hold(who, _) => *who,
        Step::Release(who, _) | Step::ReleaseMany(who) | Step::Fence(who) => *who,
        Step::Done(who, ..) | Step::Stray(who, ..) => *who,
        Step::Restart => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_record_is_there_while_somebody_needs_it(fixed in any_fixed(), steps in vec(any_step(), 1..120)) {
        let mut shard = Shard::new(0, 1);
        shard.state.set_hot_limit(200);
        let mut model = Model { fixed, ..Model::default() };
        for step in &steps {
            match step {
                Step::Restart => shard.start_again(),
                Step::Fence(who) => {
                    shard.fence(*who);
                    model.fence(*who);
                }
                _ if model.fenced.contains(&who(step)) => continue,
                _ => {
                    let items = model.step(step);
                    shard.say(who(step), items);
                }
            }
            shard.settle();
            model.prune();
            for n in 0..TASKS {
                prop_assert_eq!(shard.has(id(n)), model.records.contains_key(&n), "task {} after {:?}", n, step);
                if let Some(record) = model.records.get(&n) {
                    let view = shard.state.view_of(id(n), false).expect("memory");
                    prop_assert_eq!((view.attempt, view.keeper), (record.attempt, record.keeper));
                    let state = match (record.ended, record.failed) {
                        (false, _) => proto::TaskState::TaskPending,
                        (true, false) => proto::TaskState::TaskDone,
                        (true, true) => proto::TaskState::TaskFailed,
                    };
                    prop_assert_eq!(view.state(), state);
                }
            }
            for n in TASKS..TASKS + PUTS {
                let put = shard.state.puts.get(&object(n));
                let has_come = put.is_some_and(|put| put.stored != puts::Stored::Coming);
                prop_assert_eq!(has_come, model.puts.contains(&n), "put {} after {:?}", n, step);
            }
        }
        // With the last node all that only nodes need goes, also edges whose records never came.
        (1..=NODES).for_each(|node| shard.fence(node));
        shard.settle();
        // Whatever must not run twice is all that is left, with what it needs.
        let forget = proto::ForgetJob { job: 1 };
        let once = (0..TASKS).any(|n| shard.has(id(n)));
        // What lies in a value whose record never came stays as well.
        if once || !model.in_values.is_empty() {
            let stays = (0..TASKS).any(|n| shard.has(id(n)) && model.fixed[n as usize].once);
            prop_assert!(stays || !model.in_values.is_empty());
            shard.apply(CommandOp::Forget(forget));
        }
        prop_assert!(is_empty(&shard.state), "{:?}", shard.state.puts);
        prop_assert_eq!(shard.state.tasks.hot_bytes(), 0);
        prop_assert!(shard.state.counting.concerns.is_empty() && shard.state.counting.outbox().is_empty());
    }

    /// However much waits, and whatever is cold: who starts from a snapshot goes on alike.
    #[test]
    fn replicas_agree_on_what_waits(fixed in any_fixed(), steps in vec(any_step(), 1..80)) {
        let (mut a, mut b) = (Shard::new(0, 1), Shard::new(0, 1));
        a.state.set_hot_limit(200);
        let mut model = Model { fixed, ..Model::default() };
        for step in &steps {
            match step {
                Step::Restart => b.start_again(),
                Step::Fence(who) => {
                    [&mut a, &mut b].into_iter().for_each(|shard| shard.fence(*who));
                    model.fenced.insert(*who);
                }
                _ if model.fenced.contains(&who(step)) => continue,
                _ => {
                    let items = model.step(step);
                    prop_assert_eq!(a.say(who(step), items.clone()), b.say(who(step), items));
                }
            }
            prop_assert_eq!(a.state.digest(), b.state.digest());
        }
    }
}
