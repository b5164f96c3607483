//! Stragglers: a pure task that takes far longer on another node than others of its function gets its next attempt
//! elsewhere, while this one goes on. Whichever ends first counts (decision 29; the tail at scale, Dean and Barroso
//! 2013).
//!
//! To the control store a hedge is the next attempt, asked for by compare-and-set like any other (R7): so at every moment
//! one attempt counts, and deaths, refusals and records go as they always go. What is new lies with the keeper alone:
//! the attempt *beside* the one that counts. When its result comes first, it is taken for that of the one
//! that counts; a pure task makes the same value each time. What is left then runs out, for nobody.

use crate::core::{Core, Kept, KeptState, Record};
use crate::elements;
use crate::execute::{Asker, Report};
use crate::items;
use crate::objects::State;
use crate::recovery::Timer;
use crate::submit::arg_objects;
use crate::types::{Effect, Elements};
use mobula_base::{Incarnation, Instant, JobId, TaskId, mutant};
use mobula_proto::{Failure, FailureKind, Output, PeerResult, TaskSpec};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Tasks that are done sooner are never hedged: asking for an attempt costs a round trip, and starting it another.
pub const HEDGE_MIN: Duration = Duration::from_millis(50);
/// A task is a straggler when it takes so many times as long as the 95th percentile of its function.
pub const HEDGE_FACTOR: u32 = 3;
/// So many tasks of a function must have come back before any is called a straggler.
pub const HEDGE_KNOWN: usize = 16;
/// So many of the last ones say what is usual.
const REMEMBERED: usize = 64;
/// Functions whose usual times are remembered, at most.
const FUNCTIONS_MAX: usize = 1024;
/// How often it is looked for stragglers while there are pure tasks on other nodes.
const LOOK: Duration = Duration::from_millis(20);

/// Whether an attempt of a task may begin while another one runs: it says that it does nothing but make a value, may be
/// repeated, and may run anywhere.
pub(crate) fn may_be_hedged(spec: &TaskSpec) -> bool {
    (spec.options.as_deref().is_some_and(|options| options.pure) || mutant!("W39"))
        && spec.max_retries > 0
        && spec.resources.is_empty()
        && spec.placement().is_none()
        && elements::count(spec) == 0
        && items::window(spec) == 0
}

/// A pure task returned references: what came of a second attempt after the first would keep what lies inside for ever.
pub(crate) fn no_references() -> Failure {
    let why = "a pure task returned references: it may only compute a value. Return them from a task that is not declared \
               pure";
    Failure::new(FailureKind::FailureBadArguments, why)
}

fn in_vain() -> Failure {
    Failure::new(FailureKind::FailureCancelled, "another attempt came first")
}

/// How many hedges a job may have: of so many pure tasks that came back from other nodes a share.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    permille: u32,
    came_back: u64,
    hedged: u64,
}

impl Budget {
    fn has_room(self) -> bool {
        (self.hedged + 1) * 1000 <= u64::from(self.permille) * self.came_back || mutant!("W37")
    }
}

/// An attempt that runs beside the one that counts.
#[derive(Debug)]
struct Beside {
    job: JobId,
    node: Incarnation,
    attempt: u32,
    /// What it came to before the next attempt was granted.
    result: Option<PeerResult>,
}

/// What a keeper knows of its pure tasks on other nodes.
#[derive(Debug, Default)]
pub(crate) struct Hedges {
    budgets: BTreeMap<JobId, Budget>,
    /// First attempts on other nodes, and since when.
    away: BTreeMap<TaskId, Instant>,
    /// The same in that order, and some that have come back.
    order: VecDeque<(Instant, TaskId)>,
    /// By function, how long the last ones were away.
    usual: BTreeMap<u64, VecDeque<Duration>>,
    beside: BTreeMap<TaskId, Beside>,
    /// A timer is set.
    looks: bool,
}

impl Hedges {
    /// Whether any job has a budget.
    pub fn are_wanted(&self) -> bool {
        !self.budgets.is_empty()
    }

    /// The node on which the next attempt would be no hedge.
    pub fn shunned(&self, task: TaskId) -> Option<Incarnation> {
        self.beside.get(&task).map(|beside| beside.node)
    }

    /// Attempts beside those that count.
    pub fn running_beside(&self) -> usize {
        self.beside.len()
    }

    /// Whether a node runs a later attempt than this: whoever is given it there would hear of that one only.
    pub fn is_ahead(&self, task: TaskId, node: Incarnation, attempt: u32) -> bool {
        let is_there = |beside: &Beside| beside.node == node && beside.attempt > attempt;
        self.beside.get(&task).is_some_and(is_there)
    }

    fn came_back(&mut self, job: JobId, function: u64, after: Duration) {
        if let Some(budget) = self.budgets.get_mut(&job) {
            budget.came_back += 1;
        }
        if self.usual.len() >= FUNCTIONS_MAX && !self.usual.contains_key(&function) {
            self.usual.pop_first();
        }
        let times = self.usual.entry(function).or_default();
        if times.len() == REMEMBERED {
            times.pop_front();
        }
        times.push_back(after);
    }

    /// How long a task of a function may be away before it is a straggler, once that is known.
    fn patience(&self, function: u64) -> Option<Duration> {
        let mut times: Vec<Duration> = self.usual.get(&function)?.iter().copied().collect();
        if times.len() < HEDGE_KNOWN {
            return None;
        }
        times.sort_unstable();
        let most = times[(times.len() * 95).div_ceil(100) - 1];
        Some((most * HEDGE_FACTOR).max(HEDGE_MIN))
    }
}

impl Core {
    /// How many tasks of a job may be hedged, of a thousand pure ones that came back from other nodes.
    pub(crate) fn budget_hedges(&mut self, job: JobId, permille: u32) {
        if permille > 0 && !self.jobs_ended.contains(&job) {
            self.hedges.budgets.entry(job).or_default().permille = permille;
        }
    }

    /// A kept task was given to another node.
    pub(crate) fn goes_away(&mut self, task: TaskId, node: Incarnation) {
        if self.hedges.shunned(task) == Some(node) {
            // There is no other node: the attempt there gives way to this one, and is not heard of again.
            self.ends_beside(task);
        }
        let Some(kept) = self.kept.get(&task).filter(|kept| kept.attempt == 1) else { return };
        if may_be_hedged(&kept.spec) && self.hedges.budgets.contains_key(&JobId(kept.spec.job)) {
            self.hedges.away.insert(task, self.now);
            self.hedges.order.push_back((self.now, task));
            if !std::mem::replace(&mut self.hedges.looks, true) {
                self.set_timer(LOOK, Timer::Stragglers);
            }
        }
    }

    /// Asks for the next attempts of tasks that take too long, where a node has nothing else to do.
    pub(crate) fn look_for_stragglers(&mut self) {
        let late = self.stragglers();
        self.hedges.looks = !self.hedges.away.is_empty();
        if self.hedges.looks {
            self.set_timer(LOOK, Timer::Stragglers);
        }
        for (since, task) in late {
            self.hedge(task, since);
        }
    }

    /// Those that have been away for longer than is usual. Of those away for long enough to be, what has come back is
    /// forgotten.
    fn stragglers(&mut self) -> Vec<(Instant, TaskId)> {
        let (now, me) = (self.now, self.config.incarnation);
        let young = self.hedges.order.partition_point(|(since, _)| now >= *since + HEDGE_MIN);
        let mut young = self.hedges.order.split_off(young);
        let (mut patience, mut late) = (BTreeMap::new(), Vec::new());
        let mut old = std::mem::take(&mut self.hedges.order);
        old.retain(|(since, task)| {
            if self.hedges.away.get(task) != Some(since) {
                return false;
            }
            let kept = self.kept.get(task).filter(|kept| kept.attempt == 1);
            let is_away = |kept: &&Kept| matches!(kept.state, KeptState::Placed(node) if node != me);
            let Some(kept) = kept.filter(is_away) else {
                self.hedges.away.remove(task);
                return false;
            };
            let function = kept.spec.function;
            let longest = *patience.entry(function).or_insert_with(|| self.hedges.patience(function));
            if longest.is_some_and(|longest| now >= *since + longest) {
                late.push((*since, *task));
            }
            true
        });
        old.append(&mut young);
        self.hedges.order = old;
        late
    }

    fn hedge(&mut self, task: TaskId, since: Instant) {
        let Some(kept) = self.kept.get(&task) else { return };
        let (KeptState::Placed(node), spec) = (kept.state, kept.spec.clone()) else { return };
        let (job, attempt) = (JobId(spec.job), kept.attempt);
        let is_sent = matches!(kept.record, Record::Sent);
        if !is_sent || self.cancelled.contains(&task) || self.hedges.beside.contains_key(&task) {
            return;
        }
        if !self.hedges.budgets.get(&job).is_some_and(|budget| budget.has_room()) {
            return;
        }
        let class = self.class_of(&spec.demand(), None);
        if self.idle_cpus(class, node) <= self.unplaced_hedges() {
            return;
        }
        if let Some(budget) = self.hedges.budgets.get_mut(&job) {
            budget.hedged += 1;
        }
        self.hedges.away.remove(&task);
        self.hedges.beside.insert(task, Beside { job, node, attempt, result: None });
        let name = self.members.get(&node).map(|member| member.name.clone()).unwrap_or_default();
        let text = format!(
            "attempt {attempt} has been on node {name} for {:?}, far longer than is usual: the next one begins \
             elsewhere",
            self.now - since
        );
        self.notice(job, "hedge", text, Some(task), node.0);
        self.propose_next(task, attempt, false);
    }

    /// Hedges that were asked for and have no node yet: each will take a CPU.
    fn unplaced_hedges(&self) -> u64 {
        let has_none = |state: KeptState| {
            matches!(state, KeptState::AwaitAttempt | KeptState::AwaitDeps(_) | KeptState::Queued)
        };
        let waits = |task: &&TaskId| self.kept.get(task).is_some_and(|kept| has_none(kept.state));
        self.hedges.beside.keys().filter(waits).count() as u64
    }

    /// CPUs of nodes other than this one that this node has given nothing to do.
    fn idle_cpus(&self, class: usize, but: Incarnation) -> u64 {
        let me = self.config.incarnation;
        let others = self.members.iter().filter(|(node, _)| **node != me);
        let all = others.map(|(node, member)| (*node, member)).chain([(me, &self.me)]);
        let demand = &self.classes[class].demand;
        let fit = all.filter(|(node, member)| *node != but && member.open.fits(demand));
        fit.map(|(node, member)| {
            let (load, at_once) = self.busy(class, node, member);
            at_once.saturating_sub(load)
        })
        .sum()
    }

    /// A node has told what an attempt came to: what is to be made of that, if anything.
    pub(crate) fn heed_hedges(
        &mut self,
        from: Incarnation,
        task: TaskId,
        result: PeerResult,
    ) -> Option<PeerResult> {
        let is_beside = |beside: &&Beside| beside.node == from && beside.attempt == result.attempt;
        if self.hedges.beside.get(&task).filter(is_beside).is_some() {
            return self.beside_ended(from, task, result);
        }
        let counts = |kept: &&Kept| kept.attempt == result.attempt && kept.state == KeptState::Placed(from);
        if let Some(kept) = self.kept.get(&task).filter(counts)
            && let Some(since) = self.hedges.away.remove(&task)
            && result.failure.is_none()
        {
            let (job, function) = (JobId(kept.spec.job), kept.spec.function);
            self.hedges.came_back(job, function, self.now - since);
        }
        Some(result)
    }

    /// The attempt beside the one that counts has ended. If it came first, its value is that of the one that counts.
    fn beside_ended(&mut self, from: Incarnation, task: TaskId, result: PeerResult) -> Option<PeerResult> {
        let is_value = result.failure.is_none() && result.durable && result.contains.is_empty();
        let me = self.config.incarnation;
        let state = self.kept.get(&task).map(|kept| (kept.state, kept.attempt));
        match state.filter(|_| is_value) {
            // It counts for nothing before the next one is granted.
            Some((KeptState::AwaitAttempt, _)) => {
                if let Some(beside) = self.hedges.beside.get_mut(&task) {
                    beside.result = Some(result);
                }
                None
            }
            Some((KeptState::Placed(node), attempt)) if node != me => {
                if let Some(beside) = self.hedges.beside.get_mut(&task) {
                    (beside.node, beside.attempt) = (node, attempt);
                }
                Some(self.takes_its_place(task, from, result))
            }
            Some((KeptState::Placed(_), _)) => {
                self.leave_to_others(task);
                self.hedges.beside.remove(&task);
                Some(self.takes_its_place(task, from, result))
            }
            Some((KeptState::Queued | KeptState::AwaitDeps(_), _)) => {
                if let Some(kept) = self.kept.get(&task) {
                    self.waited_for.extend(arg_objects(&kept.spec));
                }
                self.hedges.beside.remove(&task);
                Some(self.takes_its_place(task, from, result))
            }
            state => {
                self.ends_beside(task);
                let over = matches!(state, Some((KeptState::Undurable(_) | KeptState::Finishing, _)) | None);
                if let Some(output) = result.output.filter(|_| is_value && over) {
                    self.compare_late(task, from, output);
                }
                None
            }
        }
    }

    /// What this node runs of a task is not for itself any more.
    fn leave_to_others(&mut self, task: TaskId) {
        match self.runs.get_mut(&task) {
            Some(run) if !run.others.is_empty() => run.keeper = run.others.remove(0),
            Some(_) => self.drop_run(task),
            None => {}
        }
    }

    /// From here on the attempt that counts is the one on this node.
    fn takes_its_place(&mut self, task: TaskId, node: Incarnation, result: PeerResult) -> PeerResult {
        self.set_kept_state(task, KeptState::Placed(node));
        let counts = self.kept.get(&task).map_or(0, |kept| kept.attempt);
        PeerResult { attempt: if mutant!("W38") { result.attempt } else { counts }, ..result }
    }

    /// The next attempt is granted: whether the one beside it has ended meanwhile, so that it need not run.
    pub(crate) fn has_ended_beside(&mut self, task: TaskId) -> bool {
        let Some(beside) = self.hedges.beside.get_mut(&task) else { return false };
        let Some(result) = beside.result.take() else { return false };
        let node = beside.node;
        if self.cancelled.contains(&task) {
            self.ends_beside(task);
            return false;
        }
        self.hedges.beside.remove(&task);
        let result = self.takes_its_place(task, node, result);
        self.peer_result(node, result);
        true
    }

    /// A task has ended: what runs beside need not begin any more, and waits for nothing.
    pub(crate) fn take_back(&mut self, task: TaskId) {
        if let Some(Beside { node, attempt, .. }) = self.hedges.beside.get(&task).filter(|_| !mutant!("W53"))
        {
            self.effects.push(Effect::TakeBack { to: *node, task, attempt: *attempt });
        }
    }

    /// An attempt here is not wanted any more by whoever assigned it. One that has begun runs out; it is
    /// told of its end like any other.
    pub(crate) fn taken_back(&mut self, from: Incarnation, task: TaskId, attempt: u32) {
        let Some(run) = self.runs.get_mut(&task) else { return };
        if run.keeper != (Asker { node: from, attempt }) || run.orphan || !run.others.is_empty() {
            return;
        }
        run.in_vain = true;
        if run.given.is_none() {
            self.fail_run(task, in_vain());
        }
    }

    /// An attempt that nobody wants waits for what nobody knows, and ends.
    pub(crate) fn end_in_vain(&mut self, task: TaskId) {
        if let Some(run) = self.runs.get(&task).filter(|run| run.in_vain) {
            let (to, job) = (run.keeper, JobId(run.spec.job));
            let (contains, elements) = (Vec::new(), Elements::new());
            let report = Report { job, value: Err(in_vain()), contains, elements, ran_ns: 0 };
            self.report(task, to, report, true);
        }
    }

    /// What was made after all had ended is compared with what counts (G3); a copy that differs goes.
    fn compare_late(&mut self, task: TaskId, from: Incarnation, made: Output) {
        let id = task.output(0);
        let Some(object) = self.objects.get(&id) else { return };
        let counts = match &object.state {
            State::Here(value) => value.output(self.config.crc),
            State::Elsewhere { output, .. } => *output,
            State::Unknown | State::Locating | State::Pending | State::Failed(_) => return,
        };
        if counts != made {
            let text = format!(
                "task {task} says that it is pure, and two attempts made different bytes ({:08x} and {:08x})",
                counts.crc, made.crc
            );
            self.notice(object.job, "diverged", text, Some(task), 0);
            self.freed_at.entry(from).or_default().push(id);
        }
    }

    /// The attempt beside the one that counts takes no room any more.
    fn ends_beside(&mut self, task: TaskId) {
        if let Some(beside) = self.hedges.beside.remove(&task)
            && let Some(n) = self.placed.get_mut(&beside.node)
        {
            *n = n.saturating_sub(1);
            self.waiting.bound(beside.node, *n);
        }
    }

    /// The task is kept here no longer: of an attempt that has ended already nothing more comes, and one that has not is
    /// in vain.
    pub(crate) fn kept_no_longer(&mut self, task: TaskId) {
        match self.hedges.beside.get(&task) {
            Some(beside) if beside.result.is_some() => self.ends_beside(task),
            Some(_) => self.take_back(task),
            None => {}
        }
    }

    /// Of a node that is dead nothing more comes.
    pub(crate) fn forget_beside(&mut self, node: Incarnation) {
        self.hedges.beside.retain(|_, beside| beside.node != node);
    }

    /// A job ended.
    pub(crate) fn forget_hedges(&mut self, job: JobId) {
        if self.hedges.budgets.remove(&job).is_none() {
            return;
        }
        let of_it = self.hedges.beside.iter().filter(|(_, beside)| beside.job == job);
        for task in of_it.map(|(task, _)| *task).collect::<Vec<_>>() {
            self.ends_beside(task);
        }
    }

    /// A task that says it is pure has submitted or put something: two attempts at once would both keep that. It ends.
    pub(crate) fn breaks_its_word(&mut self, task: TaskId) {
        let why = "a pure task submitted or put something: it may run twice at once, and so may only compute. Do that \
                   in a task that is not declared pure";
        self.stop_run(task, Failure::new(FailureKind::FailureBadArguments, why));
    }
}
