//! How much a node has of everything. Nothing is decided on it.

use crate::core::{Core, Kept, KeptState, Record};
use crate::objects::Object;
use mobula_base::{ObjectId, ShardId, TaskId};

/// Classes that are counted by themselves; the tasks of all further ones count as one.
const CLASSES_MAX: usize = 32;
/// What those further ones are called.
const OTHER_CLASSES: &str = "other";

/// Counts at one moment, each with what it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Tasks that this node keeps (R4), by where they stand. A task has one keeper, so the counts of all
    /// nodes add up.
    pub kept: Vec<(&'static str, u64)>,
    /// Attempts that run on this node, by how far they are.
    pub runs: Vec<(&'static str, u64)>,
    /// Kept tasks that wait for a node and attempts that wait for a worker, by what they demand.
    pub queues: Vec<(String, u64)>,
    /// Worker processes, by what they do.
    pub workers: Vec<(&'static str, u64)>,
    /// Workers that ended because of the memory they had, so far, by what for.
    pub ended_for_memory: Vec<(&'static str, u64)>,
    /// Kept tasks that no known node could ever run.
    pub infeasible: u64,
    /// Objects whose copying here is asked for, and under way.
    pub fetches: (u64, u64),
    /// Objects that this node knows of, and copies among them that it has no use for.
    pub objects: (u64, u64),
    /// Objects that shall be there several times and that this node sees to; those of them with too few nodes; and
    /// copies that shall be on this node and are not yet.
    pub copies: (u64, u64, u64),
    /// Lineage records that their shards have not acknowledged.
    pub unacknowledged: u64,
    /// CPUs that are free, and that there are, in thousandths.
    pub cpu_milli: (u64, u64),
}

impl Core {
    /// Counts everything; takes as long as there are tasks.
    pub fn census(&self) -> Census {
        Census {
            kept: self.count_kept(),
            runs: self.count_runs(),
            queues: self.count_queues(),
            workers: self.count_workers(),
            ended_for_memory: self.memory.ended(),
            infeasible: self.count_infeasible(),
            fetches: (self.fetch_queue.len() as u64, self.fetching.len() as u64),
            objects: (self.objects.len() as u64, self.idle.len() as u64),
            copies: self.count_copies(),
            unacknowledged: self.unacknowledged(),
            cpu_milli: (self.free.cpu_milli, self.config.resources.cpu_milli),
        }
    }

    /// What this node remembers of tasks although it keeps none and runs none, in words: there should be nothing.
    pub fn leftover(&self) -> Option<String> {
        if self.kept.len() + self.runs.len() > 0 {
            return None;
        }
        let placed = self.placed.values().map(|tasks| *tasks as usize).sum();
        let counts = [
            ("strays", self.strays.len()),
            ("being recovered", self.recovering.len()),
            ("being rebuilt", self.rebuilding.len()),
            ("cancelled", self.cancelled.len()),
            ("told to stop", self.stopping.len()),
            ("waiting for arguments", self.arriving.len()),
            ("not durable", self.undurable.len()),
            ("placed", placed),
        ];
        let of_tasks = counts.into_iter().find(|(_, count)| *count > 0);
        let waits = |object: &Object| {
            let waited_for = !object.tasks_waiting.is_empty() || !object.runs_waiting.is_empty();
            waited_for || object.refs.serves_tasks()
        };
        let of_objects = || self.objects.sorted_keys(waits).into_iter().next();
        of_tasks
            .map(|(what, count)| format!("{count} tasks that are {what}"))
            .or_else(|| of_objects().map(|id| format!("{id}: {:?}", self.objects[&id])))
    }

    /// Up to `limit` of the objects that this node knows of and may not forget, in words: for whoever asks
    /// why they stay.
    pub fn why_known(&self, limit: usize) -> Vec<(ObjectId, String)> {
        let mut known: Vec<ObjectId> =
            self.objects.keys().filter(|id| !self.idle.contains(id)).copied().collect();
        known.sort_unstable();
        known.truncate(limit);
        known.into_iter().map(|id| (id, format!("{:?}", self.objects[&id]))).collect()
    }

    /// Up to `limit` of the tasks that this node keeps, and how far each stream is, in words: for whoever asks
    /// why nothing moves.
    pub fn why_waiting(&self, limit: usize) -> Vec<String> {
        // Those whose records hold up whatever comes after them come first.
        let place = |kept: &Kept| match &kept.record {
            Record::Waits(waits) => (waits.ticket.number, waits.ticket.shard),
            Record::Queued(_) | Record::Sent => (u64::MAX, ShardId(0)),
        };
        let mut kept: Vec<TaskId> = self.kept.keys().copied().collect();
        kept.sort_unstable_by_key(|task| (place(&self.kept[task]), *task));
        kept.truncate(limit);
        let of_task = |task: TaskId| {
            let kept = &self.kept[&task];
            format!("{task}: {:?}, {:?}, done {:?}", kept.state, kept.record, kept.done)
        };
        kept.into_iter().map(of_task).chain(self.streams.progress()).collect()
    }

    /// A re-execution in line for a node that some node could run: after a step there is none (R16).
    pub fn urgent_waiting(&self) -> Option<TaskId> {
        let in_line = self.classes.iter().enumerate().filter(|(_, class)| !class.urgent.is_empty());
        let in_line = in_line.filter(|(index, _)| self.is_feasible(*index) && !self.is_kept_back(*index));
        let counts =
            |task: &&TaskId| self.kept.get(*task).is_some_and(|kept| kept.state == KeptState::Queued);
        in_line.flat_map(|(_, class)| &class.urgent).find(counts).copied()
    }

    fn count_infeasible(&self) -> u64 {
        let waiting = |index: usize| self.classes[index].urgent.iter().chain(&self.classes[index].waiting);
        // What waits for a placement group is told of that.
        let plain = (0..self.classes.len()).filter(|index| self.classes[*index].group.is_none());
        let stuck = plain.filter(|index| !self.is_feasible(*index));
        let counts =
            |task: &&TaskId| self.kept.get(*task).is_some_and(|kept| kept.state == KeptState::Queued);
        stuck.flat_map(waiting).filter(counts).count() as u64
    }

    fn count_kept(&self) -> Vec<(&'static str, u64)> {
        const NAMES: [&str; 7] = [
            "await_commit",
            "await_attempt",
            "await_arguments",
            "queued",
            "placed",
            "undurable",
            "finishing",
        ];
        let mut counts = [0; NAMES.len()];
        for kept in self.kept.values() {
            counts[match kept.state {
                KeptState::AwaitCommit => 0,
                KeptState::AwaitAttempt => 1,
                KeptState::AwaitDeps(_) => 2,
                KeptState::Queued => 3,
                KeptState::Placed(_) => 4,
                KeptState::Undurable(_) => 5,
                KeptState::Finishing => 6,
            }] += 1;
        }
        NAMES.into_iter().zip(counts).collect()
    }

    fn count_runs(&self) -> Vec<(&'static str, u64)> {
        let arriving = self.arriving.len() as u64;
        let waiting: u64 = self.classes.iter().map(|c| (c.runs.len() + c.runs_urgent.len()) as u64).sum();
        let given: u64 = self.workers.values().map(|worker| worker.queue.len() as u64).sum();
        let begun = self.workers.values().filter(|worker| !worker.queue.is_empty());
        let (blocked, running) =
            begun.fold(
                (0, 0),
                |(blocked, running), worker| {
                    if worker.blocked { (blocked + 1, running) } else { (blocked, running + 1) }
                },
            );
        vec![
            ("await_arguments", arriving),
            ("await_worker", waiting),
            ("given", given - blocked - running),
            ("running", running),
            ("blocked", blocked),
        ]
    }

    fn count_queues(&self) -> Vec<(String, u64)> {
        let waiting = |class: &crate::placement::Class| {
            let queues = [&class.urgent, &class.waiting, &class.runs_urgent, &class.runs];
            queues.into_iter().chain(class.held.values()).map(|queue| queue.len() as u64).sum::<u64>()
        };
        let (named, rest) = self.classes.split_at(self.classes.len().min(CLASSES_MAX));
        let mut queues: Vec<_> =
            named.iter().map(|class| (class.demand.to_string(), waiting(class))).collect();
        if !rest.is_empty() {
            queues.push((OTHER_CLASSES.to_owned(), rest.iter().map(waiting).sum()));
        }
        queues
    }

    fn count_workers(&self) -> Vec<(&'static str, u64)> {
        let starting: u32 = self.starting.values().sum();
        let (mut idle, mut busy, mut blocked, mut stalled) = (0, 0, 0, 0);
        for worker in self.workers.values() {
            *(if worker.blocked {
                &mut blocked
            } else if worker.stalled {
                &mut stalled
            } else if worker.queue.is_empty() {
                &mut idle
            } else {
                &mut busy
            }) += 1;
        }
        vec![
            ("starting", u64::from(starting)),
            ("idle", idle),
            ("busy", busy),
            ("blocked", blocked),
            ("stalled", stalled),
        ]
    }
}
