//! Tasks on this node: arguments, workers, leases, results.

use crate::cancel::time_limit;
use crate::core::Core;
use crate::elements;
use crate::groups;
use crate::hedge;
use crate::items::{self, Making};
use crate::objects::State;
use crate::outcome::End;
use crate::placement::Class;
use crate::reserve::pool;
use crate::submit::{arg_objects, dependency_failed};
use crate::types::{ClientId, Effect, Elements, TaskOutcome, Value};
use crate::workers::Lease;
use mobula_base::resources::GPU;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, ShardId, TaskId, mutant};
use mobula_proto::{
    Assign, Failure, PeerResult, TaskSpec, arg, object_bytes, object_id, task_bytes, task_id,
};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// An attempt that runs on this node.
#[derive(Debug)]
pub(crate) struct Run {
    pub spec: Arc<TaskSpec>,
    /// The highest number under which it was assigned: what its worker knows it by.
    pub attempt: u32,
    pub keeper: Asker,
    /// Other nodes that assigned it, each once. Only one of all keeps the task still: the record was pruned
    /// with a keeper that died, and a replayed parent has submitted it anew.
    pub others: Vec<Asker>,
    /// Whoever assigned it is dead, and nobody has since: a worker has it, for nobody.
    pub orphan: bool,
    /// Whoever assigned it has what it is for (decision 29): it need not begin, nor wait for anything.
    pub in_vain: bool,
    pub class: usize,
    /// The worker that has it. What a worker has of another attempt of the task is not this run.
    pub given: Option<ClientId>,
    /// When it became the first of that worker's: its time runs from then on.
    pub began: Instant,
    /// Arguments whose bytes are not here yet.
    pub missing: u32,
    /// Last ticket of each shard that a record of it has (R4).
    pub submitted: BTreeMap<ShardId, u64>,
    /// Objects whose references lie inside what it put.
    pub contains: Vec<ObjectId>,
    /// What it makes of a stream, if its task returns one.
    pub items: Option<Box<Making>>,
}

/// Who waits for the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub node: Incarnation,
    /// The attempt that it waits for: a record that came anew counts from 1 again.
    pub attempt: u32,
}

impl Run {
    /// A node assigns an attempt that is not later than what runs.
    fn asked(&mut self, by: Asker) {
        self.in_vain = false;
        if self.orphan && (by.attempt == self.attempt || !mutant!("W13")) {
            (self.keeper, self.orphan) = (by, false);
            return;
        }
        let known = std::iter::once(&mut self.keeper).chain(&mut self.others).find(|a| a.node == by.node);
        match known {
            Some(known) => known.attempt = known.attempt.max(by.attempt),
            None if by.attempt == self.attempt || !mutant!("W13") => self.others.push(by),
            None => {}
        }
    }

    /// Whoever waits for its end.
    pub(crate) fn askers(&self) -> impl Iterator<Item = Asker> + '_ {
        let first = (!self.orphan).then_some(self.keeper);
        first.into_iter().chain(self.others.iter().copied())
    }

    /// Its done-record comes after what has this ticket of a shard.
    pub(crate) fn waits_for(&mut self, shard: ShardId, number: u64) {
        let last = self.submitted.entry(shard).or_default();
        *last = number.max(*last);
    }
}

/// A finished run whose submissions are not all committed.
#[derive(Debug)]
pub(crate) struct UndurableRun {
    pub task: TaskId,
    /// Whoever waits for its end.
    pub askers: Vec<Asker>,
    pub pending: BTreeMap<ShardId, u64>,
    /// What is told only once all it submitted is committed: of a task without retries, which nothing would
    /// replay (R5), and of a value in which references lie that leaves this node. Should this node die
    /// before, and the next attempt come to another end, nothing would ever make what lies inside (R4).
    pub report: Option<Box<Report>>,
}

/// What a finished run came to.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub job: JobId,
    pub value: Result<Value, Failure>,
    pub contains: Vec<ObjectId>,
    pub elements: Elements,
    pub ran_ns: u64,
}

impl Core {
    pub(crate) fn assigned(&mut self, from: Incarnation, assign: Assign) {
        let Some(spec) = assign.spec else { return };
        let job = JobId(spec.job);
        if self.jobs_ended.contains(&job) || task_id(&spec.id).is_err() {
            return;
        }
        for hint in assign.hints {
            let Ok(id) = object_id(&hint.object) else { continue };
            let object = self.object(id, job);
            // What a task that runs again has put by now is there, though the task, which this node keeps, has
            // not ended: it may be waiting for the one that is assigned.
            let is_put_again = id.is_put() && object.state == State::Pending;
            if !matches!(object.state, State::Unknown | State::Locating) && !is_put_again {
                continue;
            }
            if hint.has_inline {
                object.state = State::Here(Value::Inline(hint.inline));
                self.announce(id);
            } else if let (Some(output), false) = (hint.output, hint.holders.is_empty()) {
                let holders = hint.holders.into_iter().map(Incarnation).collect();
                object.state = State::Elsewhere { holders, output };
                self.announce(id);
            }
        }
        self.start_run(Arc::new(spec), assign.attempt, from);
    }

    /// Begins an attempt here: brings its arguments, then queues it for a worker.
    pub(crate) fn start_run(&mut self, spec: Arc<TaskSpec>, attempt: u32, keeper: Incarnation) {
        let Ok(task) = task_id(&spec.id) else { return };
        let keeper = Asker { node: keeper, attempt };
        let mut others = Vec::new();
        if let Some(old) = self.runs.get_mut(&task) {
            // A repeated or older assignment begins nothing; a newer attempt waits for nobody.
            if old.attempt >= attempt {
                let is_news = old.askers().all(|asker| asker.node != keeper.node);
                old.asked(keeper);
                if is_news && old.items.is_some() {
                    // It has not heard of the first items, so whoever takes them there may want those.
                    self.heed_taken(task, items::ALL_TAKEN);
                }
                return;
            }
            let living = (!old.orphan).then_some(old.keeper);
            others.extend(living.into_iter().chain(old.others.drain(..)));
            others.retain(|other| other.node != keeper.node);
            self.drop_run(task);
        }
        let job = JobId(spec.job);
        let class = self.class_of(&spec.demand(), groups::of_run(&spec).as_ref());
        self.groups.runs += u64::from(self.classes[class].group.is_some());
        self.timed += u64::from(time_limit(&spec).is_some());
        let objects: Vec<_> = arg_objects(&spec).collect();
        self.use_args(&spec, true);
        let (submitted, contains) = (BTreeMap::new(), Vec::new());
        let (orphan, given, began, missing) = (false, None, self.now, 0);
        let items = items::making(&spec);
        let run = Run {
            spec,
            attempt,
            keeper,
            others,
            orphan,
            in_vain: false,
            class,
            given,
            began,
            missing,
            submitted,
            contains,
            items,
        };
        self.runs.insert(task, run);
        let mut missing = 0;
        for id in objects {
            let object = self.object(id, job);
            match &object.state {
                State::Here(_) => {}
                State::Failed(failure) => {
                    let failure = dependency_failed(id, failure);
                    self.fail_run(task, failure);
                    return;
                }
                State::Unknown | State::Locating | State::Pending | State::Elsewhere { .. } => {
                    object.runs_waiting.push(task);
                    missing += 1;
                    self.want_here(id);
                }
            }
        }
        if missing == 0 {
            return self.queue_run(task, attempt, class);
        }
        let Some(run) = self.runs.get_mut(&task) else { return };
        run.missing = missing;
        self.arriving.insert(task);
    }

    pub(crate) fn arg_here(&mut self, task: TaskId) {
        let Some(run) = self.runs.get_mut(&task) else { return };
        run.missing = run.missing.saturating_sub(1);
        if run.missing == 0 {
            let (attempt, class) = (run.attempt, run.class);
            self.arriving.remove(&task);
            self.queue_run(task, attempt, class);
        }
    }

    fn queue_run(&mut self, task: TaskId, attempt: u32, class: usize) {
        let urgent = attempt > 1;
        let class = &mut self.classes[class];
        if urgent { class.runs_urgent.push_back(task) } else { class.runs.push_back(task) }
    }

    /// Gives queued runs to workers.
    pub(crate) fn dispatch(&mut self) {
        for class in 0..self.classes.len() {
            loop {
                let queues = &mut self.classes[class];
                let urgent = !queues.runs_urgent.is_empty();
                let queue = if urgent { &mut queues.runs_urgent } else { &mut queues.runs };
                let Some(task) = queue.pop_front() else { break };
                if !self.dispatch_one(class, task) {
                    let queues = &mut self.classes[class];
                    let queue = if urgent { &mut queues.runs_urgent } else { &mut queues.runs };
                    queue.push_front(task);
                    break;
                }
            }
        }
    }

    /// Gives one run to a worker; false when none can take it now.
    fn dispatch_one(&mut self, class: usize, task: TaskId) -> bool {
        // What an earlier attempt left in line stands for nothing.
        let waits = |run: &&Run| run.missing == 0 && (run.given.is_none() || mutant!("W8"));
        let Some(run) = self.runs.get(&task).filter(waits) else { return true };
        let (job, function) = (JobId(run.spec.job), run.spec.function);
        if let Some(failure) = self.broken_jobs.get(&job).cloned() {
            self.fail_run(task, failure);
            return true;
        }
        if let Some(failure) = self.gone_class(class) {
            self.fail_run(task, failure);
            return true;
        }
        let depth = self.depth(function) as usize;
        let barred = run.attempt == 1 && self.is_barred(class);
        let fits = !barred && self.fits_now(class);
        // One that still has an earlier attempt could not tell the two apart.
        let stray = self.strays.contains(&task);
        let usable = self
            .workers
            .iter()
            .filter(|(_, w)| w.job == job && w.takes() && !(stray && w.queue.contains(&task)));
        let takers = usable.filter(|(_, w)| match &w.lease {
            None => fits && w.queue.is_empty(),
            Some(lease) => !barred && lease.class == class && lease.with_cpu && w.queue.len() < depth,
        });
        let choice = if mutant!("M27") {
            takers.map(|(id, _)| *id).collect::<HashSet<_>>().into_iter().next()
        } else {
            takers.min_by_key(|(id, w)| (w.queue.len(), **id)).map(|(id, _)| *id)
        };
        let Some(worker) = choice else {
            if fits {
                self.start_worker(job);
            }
            return false;
        };
        let Some(args) = self.arg_values(&self.runs[&task].spec, None) else {
            // An argument went while the run waited for a worker: bring it again.
            let run = self.take_run(task).expect("seen above");
            self.start_run(run.spec, run.attempt, run.keeper.node);
            if let Some(again) = self.runs.get_mut(&task) {
                (again.keeper, again.others, again.orphan) = (run.keeper, run.others, run.orphan);
            }
            return true;
        };
        let entry = self.workers.get_mut(&worker).expect("just chosen");
        if entry.lease.is_none() {
            let Class { demand, group, .. } = &self.classes[class];
            let from = group.and_then(|group| self.ledger.room_for(group, demand));
            let (free, devices) = pool(&mut self.free, &mut self.devices, &mut self.ledger, from);
            free.take(demand);
            let devices = devices.take(demand.of(GPU));
            entry.lease = Some(Lease { class, with_cpu: true, devices, from });
        }
        let devices = entry.lease.as_ref().map(|lease| lease.devices.clone()).unwrap_or_default();
        entry.push(task);
        let is_first = entry.queue.len() == 1;
        let run = self.runs.get_mut(&task).expect("seen above");
        run.given = Some(worker);
        let (spec, attempt, streams) = (run.spec.clone(), run.attempt, run.items.is_some());
        self.effects.push(Effect::Run { worker, spec, attempt, args, made: None, devices });
        if streams {
            self.tell_worker_taken(worker, task);
        }
        if is_first {
            self.watch_time(worker);
        }
        self.follow(worker, task);
        true
    }

    /// Takes a run out of what this node does; it no longer uses its arguments.
    pub(crate) fn take_run(&mut self, task: TaskId) -> Option<Run> {
        let run = self.runs.remove(&task)?;
        self.groups.runs -= u64::from(self.classes[run.class].group.is_some());
        self.timed -= u64::from(time_limit(&run.spec).is_some());
        self.stopping.remove(&task);
        if run.missing > 0 {
            self.arriving.remove(&task);
        }
        // One that ends before its arguments have come waits for them no longer.
        if run.missing > 0 && !mutant!("W17") {
            for id in arg_objects(&run.spec) {
                if let Some(object) = self.objects.get_mut(&id) {
                    object.runs_waiting.retain(|other| *other != task);
                }
            }
        }
        self.use_args(&run.spec, false);
        Some(run)
    }

    /// The arguments' values, if all are here but the one that the worker makes itself: nothing is handed over of that.
    pub(crate) fn arg_values(&self, spec: &TaskSpec, made: Option<ObjectId>) -> Option<Vec<Value>> {
        let nothing = || Value::Inline(bytes::Bytes::new());
        spec.args
            .iter()
            .map(|a| match &a.arg {
                Some(arg::Arg::Value(bytes)) => Some(Value::Inline(bytes.clone())),
                Some(arg::Arg::Object(bytes)) => match object_id(bytes).ok()? {
                    id if Some(id) == made => Some(nothing()),
                    id => self.value_of(id).cloned(),
                },
                None => Some(nothing()),
            })
            .collect()
    }

    pub(crate) fn finished(&mut self, worker: ClientId, outcomes: Vec<TaskOutcome>) {
        for outcome in outcomes {
            let run = self.runs.get(&outcome.task).filter(|run| run.given == Some(worker) || mutant!("W2"));
            let counts = run.is_some_and(|run| run.attempt == outcome.attempt || mutant!("W2"));
            if run.is_some() && !counts {
                continue;
            }
            if let Some(w) = self.workers.get_mut(&worker)
                && let Some(at) = w.queue.iter().position(|t| *t == outcome.task)
            {
                w.queue.remove(at);
                if at == 0 {
                    self.watch_time(worker);
                }
            }
            self.forget_stray(outcome.task);
            if counts {
                self.finish_run(outcome);
            }
        }
        if self.workers.get(&worker).is_some_and(|w| w.queue.is_empty()) {
            self.rest(worker);
        }
    }

    pub(crate) fn fail_run(&mut self, task: TaskId, failure: Failure) {
        if self.runs.contains_key(&task) {
            let (value, contains, elements) = (Err(failure), Vec::new(), Elements::new());
            // Whichever attempt that was.
            self.finish_run(TaskOutcome { task, attempt: 0, value, contains, ran_ns: 0, elements });
        }
    }

    /// Whether what this worker makes as this attempt counts here: it was given it, and nothing has taken its place.
    pub fn has_given(&self, worker: ClientId, task: TaskId, attempt: u32) -> bool {
        self.runs.get(&task).is_some_and(|run| run.given == Some(worker) && run.attempt == attempt)
    }

    /// A value in this node's memory that counts, told or not: it may wait for the records of what the task
    /// submitted (R4, R5).
    pub fn keeps(&self, id: ObjectId) -> Option<&Value> {
        let untold = || {
            // An earlier attempt, which has been reported, may wait for its own submissions.
            let element = id.element();
            let is_made = element.is_some() || !id.is_put();
            let mut of_task = self.undurable.iter().filter(|run| is_made && run.task == id.task);
            of_task.find_map(|run| {
                let report = run.report.as_ref()?;
                let of_element = |n: u32| report.elements.get(n as usize).map(|element| &element.value);
                element.map_or_else(|| report.value.as_ref().ok(), of_element)
            })
        };
        self.value_of(id).or_else(untold)
    }

    /// An attempt ended here: keeps its value and reports to the keeper.
    fn finish_run(&mut self, outcome: TaskOutcome) {
        let TaskOutcome { task, value, mut contains, ran_ns, mut elements, .. } = outcome;
        let Some(run) = self.runs.get(&task) else { return };
        let job = JobId(run.spec.job);
        let (mismatch, streams) = (elements::mismatch(&run.spec, elements.len()), run.items.is_some());
        let breaks_word = !contains.is_empty() && hedge::may_be_hedged(&run.spec);
        if streams {
            self.tell_items_of(task);
        }
        let mut value = if self.stopping.is_empty() { value } else { self.stopped(task, value) };
        if let (Ok(_), Some(failure)) = (&value, mismatch) {
            value = Err(failure);
        }
        if value.is_ok() && breaks_word {
            value = Err(hedge::no_references());
        }
        if value.is_err() {
            contains.clear();
            elements = Elements::new();
        }
        if !elements.is_empty() {
            contains.extend(elements.iter().flat_map(|element| element.contains.iter().copied()));
        }
        // Counted or not: what lies inside may never come.
        let has_refs = value.is_ok() && !contains.is_empty() && !mutant!("R4d");
        if !self.counts(job) {
            contains.clear();
        }
        // Edges from the task: there before its done-record (R6).
        for inner in contains.iter().copied() {
            let ticket = self.name(inner, job, Some(task.output(0)), true, false);
            if let Some(run) = self.runs.get_mut(&task) {
                run.waits_for(ticket.shard, ticket.number);
            }
        }
        let Some(run) = self.take_run(task) else { return };
        self.trace.ended(task, &run, value.is_err(), ran_ns, self.now);
        let streams = &self.streams;
        let pending: BTreeMap<ShardId, u64> = run
            .submitted
            .into_iter()
            .filter(|(shard, number)| !streams.are_committed(*shard, *number))
            .collect();
        let durable = pending.is_empty() || mutant!("R4");
        if ran_ns > 0 {
            self.observe(run.spec.function, ran_ns);
        }
        contains.extend(run.contains);
        contains.sort_unstable();
        contains.dedup();
        let (mut askers, keeper) = (run.others, run.keeper);
        let report = Report { job, value, contains, elements, ran_ns };
        let leaves = askers.iter().chain([&keeper]).any(|asker| asker.node != self.config.incarnation);
        let waits = !durable && (run.spec.max_retries == 0 || has_refs && leaves);
        let report = if waits {
            Some(Box::new(report))
        } else {
            self.report_to_all(task, &askers, keeper, report, durable);
            None
        };
        if durable {
            self.begin_later_copies(task);
        } else {
            askers.push(keeper);
            for (shard, number) in &pending {
                self.streams.hurry_for(*shard, *number);
            }
            self.undurable.push(UndurableRun { task, askers, pending, report });
        }
    }

    fn report_to_all(&mut self, task: TaskId, others: &[Asker], last: Asker, report: Report, durable: bool) {
        for other in others {
            self.report(task, *other, report.clone(), durable);
        }
        self.report(task, last, report, durable);
    }

    pub(crate) fn report(&mut self, task: TaskId, to: Asker, report: Report, durable: bool) {
        let Asker { node: keeper, attempt } = to;
        let Report { job, value, contains, elements, ran_ns } = report;
        let me = self.config.incarnation;
        if keeper == me {
            let elements = elements::made_here(elements);
            return self.result(End { task, attempt, executor: me, durable, contains, elements }, value);
        }
        let plain = contains.is_empty();
        let contains = contains.into_iter().map(object_bytes).collect();
        let task_name = task_bytes(task);
        let mut result =
            PeerResult { task: task_name, attempt, durable, ran_ns, contains, ..PeerResult::default() };
        match value {
            Err(failure) => result.failure = Some(failure),
            Ok(value) => {
                result.output = Some(value.output(self.config.crc));
                if let Value::Inline(bytes) = &value {
                    result.inline = bytes.clone();
                    result.has_inline = true;
                }
                self.has_made(task.output(0), &value);
                self.make_known(task.output(0), job, State::Here(value));
                self.object(task.output(0), job).refs.plain = plain;
                self.announce(task.output(0));
                result.elements = elements::to_keeper(&elements, self.config.crc);
                self.elements_made_for_another(task, job, elements);
            }
        }
        self.effects.push(Effect::Result { to: keeper, result });
    }

    /// A value that an attempt made here may be told from now on, so its home may send others here. Small ones
    /// are named by their done-records alone.
    pub(crate) fn has_made(&mut self, object: ObjectId, value: &Value) {
        if matches!(value, Value::Shared { .. }) {
            self.effects.push(Effect::Held { object });
        }
    }

    /// Some records were acknowledged: which finished runs are durable now?
    pub(crate) fn check_undurable(&mut self) {
        let streams = &self.streams;
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.undurable)
            .into_iter()
            .partition(|u| u.pending.iter().all(|(shard, number)| streams.are_committed(*shard, *number)));
        self.undurable = waiting;
        for UndurableRun { task, askers, report, .. } in done {
            self.begin_later_copies(task);
            if let Some(report) = report {
                // What is told after its job has ended would be remembered for ever.
                if self.jobs_ended.contains(&report.job) {
                    continue;
                }
                if let Some((last, others)) = askers.split_last() {
                    self.report_to_all(task, others, *last, *report, true);
                }
                continue;
            }
            for Asker { node, attempt } in askers {
                if node == self.config.incarnation {
                    self.durable(task, attempt);
                } else {
                    self.effects.push(Effect::Durable { to: node, task, attempt });
                }
            }
        }
    }

    /// Takes an attempt out of every queue of this node. One that a worker has ends by itself; its result
    /// is then for nobody.
    pub(crate) fn forget_run(&mut self, task: TaskId) {
        if self.runs.get(&task).is_some_and(|run| run.given.is_none()) {
            self.drop_run(task);
        }
    }

    /// A worker has ended an attempt of a task, or itself.
    pub(crate) fn forget_stray(&mut self, task: TaskId) {
        if self.strays.contains(&task) && !self.workers.values().any(|w| w.queue.contains(&task)) {
            self.strays.remove(&task);
        }
    }

    /// Workers that wait inside their tasks for an object, or to hear that it exists.
    pub(crate) fn blocked_readers(&self, id: ObjectId) -> Vec<(ClientId, TaskId)> {
        let Some(object) = self.objects.get(&id).filter(|_| !mutant!("W21")) else { return Vec::new() };
        let mut readers: Vec<ClientId> = object.getters.iter().chain(&object.subscribers).copied().collect();
        readers.sort_unstable();
        readers.dedup();
        let runs = |worker: ClientId| {
            let w = self.workers.get(&worker).filter(|w| w.blocked)?;
            w.queue.front().map(|task| (worker, *task))
        };
        readers.into_iter().filter_map(runs).collect()
    }

    /// Nobody knows of an object, and whoever was to record it may be dead. What waits for it in an attempt that
    /// is for nobody would wait until its job ends: its worker ends. Were the task assigned here again later, it
    /// would begin anew.
    pub(crate) fn end_vain_readers(&mut self, id: ObjectId) {
        for (worker, task) in self.blocked_readers(id) {
            match self.runs.get(&task).filter(|run| run.given == Some(worker)) {
                Some(run) if !(run.orphan || run.in_vain) => continue,
                Some(_) => {
                    self.end_in_vain(task);
                    self.drop_run(task);
                }
                // An attempt that does not count any more.
                None => {}
            }
            self.effects.push(Effect::Kill { worker });
        }
    }

    /// Nothing of an attempt counts any more, whoever has it.
    pub(crate) fn drop_run(&mut self, task: TaskId) {
        let Some(run) = self.take_run(task) else { return };
        if run.given.is_some() {
            self.strays.insert(task);
            self.let_run_on(&run, task);
            self.call_back(task);
        }
    }
}
