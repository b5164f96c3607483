//! Tasks that return a stream of items, taken while the task still runs (decision 27).
//!
//! An item is a put of its task at a known place. Three things are told beside that: by the executor to the keeper which
//! items there are, by the keeper to the client how many, and from the client back to the worker how many it has taken. A
//! worker that is too far ahead of that waits, and refers to each item until it hears that it was taken: by then whoever takes
//! it holds it. So items need no home, no hold and no recovery of their own.

use crate::core::{Core, KeptState};
use crate::execute::Run;
use crate::objects::State;
use crate::types::{ClientId, Effect, Value};
use mobula_base::ids::{STREAM_ITEMS_MAX, STREAM_WINDOW_MAX};
use mobula_base::{Incarnation, JobId, ObjectId, ShardId, TaskId, mutant};
use mobula_proto::value as wire;
use mobula_proto::{Failure, FailureKind, NewItems, Output, TaskSpec, Value as Told, task_bytes, task_id};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// As many items as there can be: nobody takes them, so their worker need not wait for anybody, nor keep them.
pub const ALL_TAKEN: u32 = u32::MAX;
/// Items that a client takes by one message at most.
pub const TAKES_MAX: u32 = 4096;
/// Bytes of small items in one message to a keeper, about; one more item may come on top.
const NEWS_BYTES: usize = 1 << 20;

/// Items that may wait to be taken, if the task returns a stream; else 0.
#[inline]
pub(crate) fn window(spec: &TaskSpec) -> u32 {
    spec.options.as_deref().map_or(0, |options| options.window)
}

/// Why a task cannot return such a stream, if so.
pub(crate) fn refused(spec: &TaskSpec) -> Option<String> {
    let window = window(spec);
    if window > STREAM_WINDOW_MAX {
        return Some(format!(
            "{window} items of a stream are to be made before they are taken: at most {STREAM_WINDOW_MAX} are possible"
        ));
    }
    let both = window > 0 && crate::elements::count(spec) > 0;
    both.then(|| "a task returns a stream or several objects, not both".to_owned())
}

/// What a client of this node takes of a stream.
#[derive(Debug)]
pub(crate) struct Consumer {
    client: ClientId,
    job: JobId,
    /// Of each item that was made: what a further attempt makes again must be the same (G3).
    made: Vec<Output>,
    /// Those that another node has made and that are not taken yet.
    ahead: BTreeMap<u32, State>,
    /// So many the client has taken.
    asked: u32,
    /// So many of them are held for sure: their worker may let go of them.
    taken: u32,
    /// Counts that are safe once their holds are acknowledged, the oldest first.
    unsafe_yet: VecDeque<(u32, BTreeMap<ShardId, u64>)>,
    /// What the task is to end with, whatever it makes.
    diverged: Option<Failure>,
}

/// What an attempt here makes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Making {
    made: u32,
    /// So many items need not be kept by the worker any more.
    taken: u32,
    /// Made, and not told to the keeper: what lies inside may have to be recorded first (R4).
    untold: VecDeque<Untold>,
}

#[derive(Debug)]
struct Untold {
    item: Told,
    after: BTreeMap<ShardId, u64>,
}

/// What a run has to remember if its task returns a stream.
#[inline]
pub(crate) fn making(spec: &TaskSpec) -> Option<Box<Making>> {
    (window(spec) > 0).then(Box::default)
}

fn told_bytes(item: &Told) -> usize {
    match &item.value {
        Some(wire::Value::Inline(bytes)) => bytes.len(),
        _ => 0,
    }
}

// ------------------------------------------------------------ at the executor

impl Core {
    /// A worker has put something; an item of the stream that its task returns, perhaps.
    pub(crate) fn item_put(&mut self, worker: ClientId, id: ObjectId, value: &Value, has_refs: bool) {
        let (Some(n), crc, me) = (id.item(), self.config.crc, self.config.incarnation) else { return };
        let streams = &self.streams;
        let Some(run) = self.runs.get_mut(&id.task).filter(|run| run.given == Some(worker)) else { return };
        let other = run.askers().map(|asker| asker.node).find(|node| *node != me);
        let leaves = other.is_some() || run.spec.max_retries == 0;
        let open = |(shard, number): &(&ShardId, &u64)| !streams.are_committed(**shard, **number);
        let after = match has_refs && leaves && !mutant!("W33") {
            true => run.submitted.iter().filter(open).map(|(shard, number)| (*shard, *number)).collect(),
            false => BTreeMap::new(),
        };
        let Some(making) = run.items.as_deref_mut().filter(|making| making.made == n) else { return };
        making.made += 1;
        let value = match value {
            Value::Inline(bytes) => wire::Value::Inline(bytes.clone()),
            shared @ Value::Shared { .. } => wire::Value::Elsewhere(shared.output(crc)),
        };
        making.untold.push_back(Untold { item: Told { value: Some(value) }, after });
        self.untold.insert(id.task);
        if let (Some(other), Some(object)) = (other, self.objects.get_mut(&id)) {
            // Whoever takes it has a copy, too: the last of the two to be done with it lets the other one go.
            (object.refs.left, object.refs.copy_at) = (true, Some(other));
        }
    }

    /// Tells of items what can be told by now.
    pub(crate) fn tell_items(&mut self) {
        if self.untold.is_empty() {
            return;
        }
        for task in std::mem::take(&mut self.untold) {
            self.tell_items_of(task);
        }
    }

    /// The same of one task, which may be about to end.
    pub(crate) fn tell_items_of(&mut self, task: TaskId) {
        loop {
            let streams = &self.streams;
            let Some(run) = self.runs.get_mut(&task) else { return };
            let Some(making) = run.items.as_deref_mut() else { return };
            let first = making.made - making.untold.len() as u32;
            let (mut items, mut bytes) = (Vec::new(), 0);
            let is_open = |next: &Untold| next.after.iter().any(|(s, n)| !streams.are_committed(*s, *n));
            while bytes < NEWS_BYTES
                && making.untold.front().is_some_and(|next| !is_open(next))
                && let Some(next) = making.untold.pop_front()
            {
                bytes += told_bytes(&next.item);
                items.push(next.item);
            }
            if !making.untold.is_empty() {
                let after: Vec<_> = making.untold[0].after.iter().map(|(s, n)| (*s, *n)).collect();
                after.into_iter().for_each(|(shard, number)| self.streams.hurry_for(shard, number));
                self.untold.insert(task);
            }
            if items.is_empty() {
                return;
            }
            let Some(run) = self.runs.get(&task) else { return };
            let askers: Vec<_> = run.askers().collect();
            for asker in askers {
                if asker.node == self.config.incarnation {
                    self.items_known(asker.node, task, asker.attempt, first, items.clone());
                } else {
                    let (task, attempt, items) = (task_bytes(task), asker.attempt, items.clone());
                    let news = NewItems { task, attempt, first, items };
                    self.effects.push(Effect::NewItems { to: asker.node, news });
                }
            }
        }
    }

    /// The keeper of an attempt here says how many of its items are taken.
    pub(crate) fn peer_taken(&mut self, from: Incarnation, task: TaskId, taken: u32) {
        if self.runs.get(&task).is_some_and(|run| run.askers().any(|asker| asker.node == from)) {
            self.heed_taken(task, taken);
        }
    }

    /// An attempt here may go on, and let go of what is taken.
    pub(crate) fn heed_taken(&mut self, task: TaskId, taken: u32) {
        let Some(run) = self.runs.get_mut(&task) else { return };
        let given = run.given;
        let Some(making) = run.items.as_deref_mut().filter(|making| making.taken < taken) else { return };
        making.taken = taken;
        if let Some(worker) = given {
            self.effects.push(Effect::ItemsTaken { worker, task, taken });
        }
    }

    /// A worker is given an attempt that returns a stream: it may have been taken from before.
    pub(crate) fn tell_worker_taken(&mut self, worker: ClientId, task: TaskId) {
        let making = self.runs.get(&task).and_then(|run| run.items.as_deref());
        if let Some(taken) = making.map(|making| making.taken).filter(|taken| *taken > 0) {
            self.effects.push(Effect::ItemsTaken { worker, task, taken });
        }
    }

    /// Nobody waits for this attempt any more, or somebody who has not heard of its first items: it need not wait for
    /// anybody.
    pub(crate) fn let_run_on(&mut self, run: &Run, task: TaskId) {
        if let (Some(worker), true) = (run.given, run.items.is_some() && !mutant!("W34")) {
            self.effects.push(Effect::ItemsTaken { worker, task, taken: ALL_TAKEN });
        }
    }

    /// How many items an attempt here has made, and how many of them were taken.
    pub(crate) fn progress(run: &Run) -> Option<(u32, u32)> {
        run.items.as_deref().map(|making| (making.made, making.taken))
    }
}

// ------------------------------------------------------------ at the keeper

impl Core {
    /// A client submits a task that returns a stream, and takes what it makes.
    pub(crate) fn begin_consuming(&mut self, client: ClientId, task: TaskId, job: JobId) {
        let before = self.consumers.remove(&task);
        let was_taken = before.is_some();
        let consumer = Consumer {
            client,
            job,
            made: Vec::new(),
            ahead: BTreeMap::new(),
            asked: 0,
            taken: 0,
            unsafe_yet: VecDeque::new(),
            // The task is being stopped for that.
            diverged: before.and_then(|before| before.diverged),
        };
        if was_taken {
            // What the attempt that runs has made by now, another one has taken. It runs on without anybody.
            self.tell_taken(task);
        }
        self.consumers.insert(task, consumer);
    }

    /// Another node has made items of a stream for this one.
    pub(crate) fn peer_items(&mut self, from: Incarnation, news: NewItems) {
        if let Ok(task) = task_id(&news.task) {
            self.items_known(from, task, news.attempt, news.first, news.items);
        }
    }

    /// An attempt of a kept task has made these items. What was known before must be the same, and comes again for whoever
    /// lacks it.
    fn items_known(&mut self, by: Incarnation, task: TaskId, attempt: u32, first: u32, items: Vec<Told>) {
        let is_current = |k: &&crate::core::Kept| k.attempt == attempt && k.state == KeptState::Placed(by);
        let Some(kept) = self.kept.get(&task).filter(is_current) else { return };
        let accepts = kept.spec.accept_divergence;
        let (me, crc) = (self.config.incarnation, self.config.crc);
        let Some(consumer) = self.consumers.get_mut(&task) else { return };
        let known = consumer.made.len();
        let client = consumer.client;
        let mut again = Vec::new();
        for (n, item) in (first..STREAM_ITEMS_MAX).zip(items) {
            let (state, output) = match item.value {
                Some(wire::Value::Inline(bytes)) => {
                    let value = Value::Inline(bytes);
                    let output = value.output(crc);
                    (State::Here(value), output)
                }
                Some(wire::Value::Elsewhere(output)) => {
                    (State::Elsewhere { holders: vec![by], output }, output)
                }
                Some(wire::Value::Shared(_) | wire::Value::Failure(_)) | None => break,
            };
            let count = consumer.made.len();
            let told = consumer.made.get(n as usize).copied().filter(|_| !mutant!("W35"));
            // An attempt that nobody takes from any more may have left one here. What is made here takes its place.
            let lies_here = || match &self.objects.get(&task.item(n))?.state {
                State::Here(value) if by != me && !mutant!("W54") => Some(value.output(crc)),
                _ => None,
            };
            if let Some(before) = told.or_else(lies_here).filter(|before| *before != output && !accepts) {
                let failure = say_diverged(task, attempt, n, before, output);
                consumer.diverged.get_or_insert(failure);
                self.cancel(vec![task], false, None);
                return;
            }
            match consumer.made.get_mut(n as usize) {
                Some(before) => *before = output,
                None if count == n as usize => consumer.made.push(output),
                // Of an attempt that had begun before anybody here took from it.
                None => break,
            }
            if by != me {
                match n < consumer.asked {
                    true => again.push((n, state)),
                    false => drop(consumer.ahead.insert(n, state)),
                }
            }
        }
        let made = consumer.made.len();
        if made > known {
            self.effects.push(Effect::ItemsMade { client, task, made: made as u32 });
        }
        for (n, state) in again {
            self.item_found(task.item(n), state, by);
        }
    }

    /// Takes note of where an item is, unless that is known.
    fn item_found(&mut self, id: ObjectId, state: State, by: Incarnation) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        if !matches!(object.state, State::Unknown | State::Locating | State::Pending) {
            return;
        }
        object.refs.copy_at = Some(by);
        if let State::Here(_) = &state {
            self.effects.push(Effect::Held { object: id });
        }
        object.state = state;
        self.announce(id);
    }

    /// A client takes items of a stream: it refers to them, and wants to know when they are there.
    pub(crate) fn take_items(
        &mut self,
        client: ClientId,
        job: JobId,
        task: TaskId,
        (first, upto): (u32, u32),
        over: bool,
    ) {
        let upto = upto.min(first.saturating_add(TAKES_MAX)).min(STREAM_ITEMS_MAX);
        let items: Vec<ObjectId> = (first..upto).map(|n| task.item(n)).collect();
        self.client_held(client, job, items.clone());
        for id in &items {
            self.take_ahead(client, *id);
        }
        self.get(client, job, items, false);
        let Some(consumer) = self.consumers.get_mut(&task).filter(|c| c.client == client) else { return };
        if over {
            self.consumers.remove(&task);
            return self.tell_taken(task);
        }
        if upto <= consumer.asked {
            return;
        }
        consumer.asked = upto;
        let streams = &self.streams;
        let gate = self.gates.get(&client).into_iter().flatten();
        let open = gate.filter(|(shard, number)| !streams.are_committed(**shard, **number));
        let open: BTreeMap<ShardId, u64> = match mutant!("W36") {
            true => BTreeMap::new(),
            false => open.map(|(shard, number)| (*shard, *number)).collect(),
        };
        match consumer.unsafe_yet.back_mut() {
            Some((last, gate)) if *gate == open => *last = upto,
            _ => consumer.unsafe_yet.push_back((upto, open)),
        }
        self.safely_taken(task);
    }

    /// What is known of an item before it is taken.
    fn take_ahead(&mut self, client: ClientId, id: ObjectId) {
        let Some(consumer) = self.consumers.get_mut(&id.task).filter(|c| c.client == client) else { return };
        let Some(state) = id.item().and_then(|n| consumer.ahead.remove(&n)) else { return };
        let Some(KeptState::Placed(by)) = self.kept.get(&id.task).map(|kept| kept.state) else {
            // It has ended, so where it is may have changed: but what it is has not.
            if let State::Here(_) = state {
                self.item_found(id, state, self.config.incarnation);
            }
            return;
        };
        let is_there = |node: &Incarnation| self.members.contains_key(node);
        if !matches!(&state, State::Elsewhere { holders, .. } if !holders.iter().all(is_there)) {
            self.item_found(id, state, by);
        }
    }

    /// Some items were acknowledged: what is taken for sure by now?
    pub(crate) fn check_taken(&mut self) {
        let waits = |consumer: &Consumer| !consumer.unsafe_yet.is_empty();
        let waiting: Vec<TaskId> =
            self.consumers.iter().filter(|(_, c)| waits(c)).map(|(task, _)| *task).collect();
        for task in waiting {
            self.safely_taken(task);
        }
    }

    fn safely_taken(&mut self, task: TaskId) {
        let streams = &self.streams;
        let Some(consumer) = self.consumers.get_mut(&task) else { return };
        let before = consumer.taken;
        let is_safe = |gate: &BTreeMap<ShardId, u64>| gate.iter().all(|(s, n)| streams.are_committed(*s, *n));
        while consumer.unsafe_yet.front().is_some_and(|(_, gate)| is_safe(gate))
            && let Some((taken, _)) = consumer.unsafe_yet.pop_front()
        {
            consumer.taken = taken;
        }
        if consumer.taken > before {
            self.tell_taken(task);
        }
    }

    /// Tells whoever runs a kept task how many of its items are taken; all, if nobody here takes them.
    pub(crate) fn tell_taken(&mut self, task: TaskId) {
        let Some(KeptState::Placed(to)) = self.kept.get(&task).map(|kept| kept.state) else { return };
        let taken = self.consumers.get(&task).map_or(ALL_TAKEN, |consumer| consumer.taken);
        if taken == 0 {
        } else if to == self.config.incarnation {
            self.heed_taken(task, taken);
        } else {
            self.effects.push(Effect::TellTaken { to, task, taken });
        }
    }

    /// This node keeps the task no longer: whoever still runs an attempt of it does so for nobody here.
    pub(crate) fn let_go_of_stream(&mut self, task: TaskId, state: KeptState) {
        match state {
            KeptState::Placed(to) if to == self.config.incarnation => self.heed_taken(task, ALL_TAKEN),
            KeptState::Placed(to) => {
                self.effects.push(Effect::TellTaken { to, task, taken: ALL_TAKEN });
            }
            _ => {}
        }
    }

    /// A job has ended.
    pub(crate) fn forget_streams(&mut self, job: JobId) {
        self.consumers.retain(|_, consumer| consumer.job != job);
        self.untold.retain(|task| self.runs.contains_key(task));
    }

    /// A client is gone: nobody takes what it took.
    pub(crate) fn forget_consumer(&mut self, client: ClientId) {
        let is_its = |(_, consumer): &(&TaskId, &Consumer)| consumer.client == client;
        let tasks: BTreeSet<TaskId> = self.consumers.iter().filter(is_its).map(|(task, _)| *task).collect();
        for task in tasks {
            self.consumers.remove(&task);
            self.tell_taken(task);
        }
    }

    /// What a stream ends with that has made something else than before.
    pub(crate) fn verdict(&self, task: TaskId, value: Result<Value, Failure>) -> Result<Value, Failure> {
        match self.consumers.get(&task).and_then(|consumer| consumer.diverged.clone()) {
            Some(diverged) => Err(diverged),
            None => value,
        }
    }
}

fn say_diverged(task: TaskId, attempt: u32, n: u32, before: Output, now: Output) -> Failure {
    Failure::new(
        FailureKind::FailureDiverged,
        format!(
            "attempt {attempt} of task {task} made another item {n} (checksum {:08x}, {} bytes) than the one before \
             ({:08x}, {} bytes): the task is not deterministic. Make it so, or let the job accept divergence",
            now.crc, now.size, before.crc, before.size
        ),
    )
}
