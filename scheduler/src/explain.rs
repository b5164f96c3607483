//! What a task waits for, in words: for whoever asks why nothing comes of it.

use crate::core::{Core, Kept, KeptState, Record};
use crate::execute::Run;
use crate::objects::FETCHES_MAX;
use crate::objects::State;
use crate::submit::arg_objects;
use mobula_base::{Incarnation, ObjectId, TaskId, TaskPrefix};

/// Arguments of one task that are named; the others are counted.
const ARGUMENTS_MAX: usize = 8;

/// How a task stands on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The task.
    pub task: TaskId,
    /// Where it stands, in a word: what `status` and the metrics count it under.
    pub state: &'static str,
    /// What it waits for, and because of what.
    pub because: Vec<String>,
}

impl Core {
    /// Up to `limit` of the tasks that this node keeps or runs and whose ids begin so, sorted, and whether there
    /// are more. Those that have ended are told of only if their ids are asked for. Looks at every task.
    pub fn explain(&self, prefix: TaskPrefix, limit: usize) -> (Vec<Explained>, bool) {
        let counts = |kept: &Kept| kept.state != KeptState::Finishing || !prefix.is_empty();
        let kept = self.kept.iter().filter(|(_, kept)| counts(kept)).map(|(task, _)| task);
        let mut tasks: Vec<TaskId> =
            kept.chain(self.runs.keys()).filter(|task| prefix.begins(**task)).copied().collect();
        tasks.sort_unstable();
        tasks.dedup();
        let more = tasks.len() > limit;
        tasks.truncate(limit);
        (tasks.into_iter().map(|task| self.explain_one(task)).collect(), more)
    }

    fn explain_one(&self, task: TaskId) -> Explained {
        let mut because = Vec::new();
        match (self.kept.get(&task), self.runs.get(&task)) {
            (Some(kept), _) => self.explain_kept(task, kept, &mut because),
            (None, Some(run)) => {
                let node = self.name_of(run.keeper.node);
                because.push(format!("{node} keeps it and waits for its end, attempt {}", run.attempt));
                self.explain_run(task, run, &mut because);
            }
            (None, None) => {}
        }
        Explained { task, state: self.state_of(task), because }
    }

    fn explain_kept(&self, task: TaskId, kept: &Kept, because: &mut Vec<String>) {
        if self.cancelled.contains(&task) {
            because.push("it was cancelled, and ends as soon as whoever runs it has stopped".into());
        }
        let shard = self.shard_of(task);
        match kept.state {
            KeptState::AwaitCommit => {
                because.push(match &kept.record {
                    Record::Waits(waits) => format!(
                        "its record waits until {} references in other shards are on record",
                        waits.edges.len()
                    ),
                    Record::Queued(_) | Record::Sent => {
                        format!("it begins once {shard} has committed its record; {}", self.backlog())
                    }
                });
            }
            KeptState::AwaitAttempt => {
                let what = match self.hedges.shunned(task) {
                    Some(_) => "takes far too long",
                    None => "was lost or failed",
                };
                because.push(format!(
                    "attempt {} {what}; {shard} is asked for the next one; {}",
                    kept.attempt,
                    self.backlog()
                ));
            }
            KeptState::AwaitDeps(missing) => {
                let all = arg_objects(&kept.spec).count();
                because.push(format!("{missing} of its {all} arguments have not been made"));
                self.explain_arguments(arg_objects(&kept.spec), because);
            }
            KeptState::Queued => {
                self.explain_queued(task, kept, because);
            }
            KeptState::Placed(node) if node == self.config.incarnation => {
                if let Some(run) = self.runs.get(&task) {
                    self.explain_run(task, run, because);
                }
            }
            KeptState::Placed(node) => {
                because.push(format!("it was given to {}: ask there", self.name_of(node)));
                if let Some(slow) = self.hedges.shunned(task) {
                    let slow = self.name_of(slow);
                    because.push(format!(
                        "an earlier attempt took long, and still runs on {slow}: the first counts"
                    ));
                }
            }
            KeptState::Undurable(node) => {
                because.push(format!(
                    "it has ended on {}, and not all that it submitted is on record; {}",
                    self.name_of(node),
                    self.backlog()
                ));
            }
            KeptState::Finishing => {
                because.push(format!("it has ended; that goes to {shard} once it has lingered"));
            }
        }
    }

    fn backlog(&self) -> String {
        format!("{} records of this node are not acknowledged", self.unacknowledged())
    }

    fn explain_queued(&self, task: TaskId, kept: &Kept, because: &mut Vec<String>) {
        let demand = kept.spec.demand();
        let is_its = |c: &&crate::placement::Class| {
            c.demand == demand && c.placement.as_ref() == kept.spec.placement()
        };
        let Some(index) = self.classes.iter().position(|class| is_its(&class)) else { return };
        if !self.is_feasible(index) {
            because.push(self.why_never(index));
            return;
        }
        let class = &self.classes[index];
        if let Some((node, _)) = class.held.iter().find(|(_, line)| line.contains(&task)) {
            because.push(format!("it waits for {}, which has its arguments", self.name_of(*node)));
            return;
        }
        let before = class.urgent.iter().chain(&class.waiting).position(|other| *other == task).unwrap_or(0);
        because.push(format!(
            "no node has room: it needs {demand}; {before} tasks that need the same are in line before it"
        ));
        because.push(format!("this node: {} free of {}", self.free, self.config.resources));
        for (node, member) in self.members.iter().filter(|(node, _)| **node != self.config.incarnation) {
            let (load, at_once) = self.busy(index, *node, member);
            because.push(format!(
                "{}: was given {load} tasks by this node, runs {at_once} at once",
                member.name
            ));
        }
    }

    fn explain_run(&self, task: TaskId, run: &Run, because: &mut Vec<String>) {
        if run.missing > 0 {
            because.push(format!("the bytes of {} arguments are not here yet", run.missing));
            self.explain_arguments(arg_objects(&run.spec), because);
            return;
        }
        let Some(worker) = run.given else {
            let workers = self.workers.values().filter(|w| w.job.0 == run.spec.job);
            let (all, busy) =
                workers.fold((0, 0), |(all, busy), w| (all + 1, busy + u32::from(!w.queue.is_empty())));
            let starting = self.starting.get(&mobula_base::JobId(run.spec.job)).copied().unwrap_or(0);
            because.push(format!(
                "it waits for a worker: its job has {all}, {busy} at work, {starting} starting; it needs {}, free \
                 are {} of {}",
                run.spec.demand(),
                self.free,
                self.config.resources
            ));
            return;
        };
        let Some(w) = self.workers.get(&worker) else { return };
        match w.queue.iter().position(|other| *other == task) {
            Some(0) if w.blocked => {
                because.push(format!("it runs in worker {worker} and waits there for what it asked for"));
                because.extend(how_far(run));
            }
            Some(0) if w.stalled => {
                because.push(format!("it runs in worker {worker} and waits there for room in shared memory"));
            }
            Some(0) | None => because.push(format!("it runs in worker {worker}")),
            Some(before) => {
                because.push(format!("it stands behind {before} others in the line of worker {worker}"));
            }
        }
    }

    /// What keeps the arguments that are not here.
    fn explain_arguments(&self, ids: impl Iterator<Item = ObjectId>, because: &mut Vec<String>) {
        let mut missing: Vec<String> = ids.filter_map(|id| self.explain_object(id)).collect();
        let rest = missing.len().saturating_sub(ARGUMENTS_MAX);
        missing.truncate(ARGUMENTS_MAX);
        because.extend(missing);
        if rest > 0 {
            because.push(format!("and {rest} more"));
        }
    }

    fn explain_object(&self, id: ObjectId) -> Option<String> {
        let what = match self.objects.get(&id).map(|object| &object.state) {
            Some(State::Here(_)) => return None,
            Some(State::Pending) => match self.kept.get(&id.task).map(|kept| kept.state) {
                Some(KeptState::Placed(node)) => format!("its task was given to {}", self.name_of(node)),
                Some(_) => "its task, kept by this node, has not begun".into(),
                None => "its task has not ended".into(),
            },
            Some(State::Locating) | Some(State::Unknown) | None => {
                format!("{} is asked where it is", self.shard_of(id.task))
            }
            Some(State::Elsewhere { .. }) if self.fetching.contains(&id) => "it is being brought here".into(),
            Some(State::Elsewhere { holders, .. }) => format!(
                "it is to be brought from {}; {} of {FETCHES_MAX} transfers are under way",
                holders.first().map_or_else(|| "nowhere".into(), |node| self.name_of(*node)),
                self.fetching.len()
            ),
            Some(State::Failed(failure)) => format!("it will never be made: {}", failure.message),
        };
        Some(format!("argument {id}: {what}"))
    }

    fn name_of(&self, node: Incarnation) -> String {
        if node == self.config.incarnation {
            return "this node".into();
        }
        match self.members.get(&node) {
            Some(member) => format!("node {} ({node})", member.name),
            None => format!("a node that is gone ({node})"),
        }
    }
}

/// How far a stream is, if that may be why its worker waits.
fn how_far(run: &Run) -> Option<String> {
    let (made, taken) = Core::progress(run).filter(|(made, taken)| made > taken)?;
    let window = crate::items::window(&run.spec);
    Some(format!(
        "of the {made} items of its stream that it has made {taken} are taken: it waits when it is {window} ahead"
    ))
}
