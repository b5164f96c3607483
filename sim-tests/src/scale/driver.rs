//! Who submits: a driver on a node, with strands that each keep a number of tasks under way.

use super::JOB;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{Arg, NodeAffinity, Placement, TaskOptions, TaskSpec, arg, object_bytes, task_bytes};
use std::collections::BTreeMap;

/// What a strand submits: of each of its numbers, a task.
pub type Make = Box<dyn Fn(TaskId, u64) -> TaskSpec>;

/// A thread of a driver.
pub struct Strand {
    /// No two of a cluster have the same.
    pub number: u64,
    /// It submits so many in all.
    pub tasks: u64,
    /// It waits while so many have not ended.
    pub window: u64,
    /// What.
    pub make: Make,
    pub(super) next: u64,
}

impl Strand {
    /// One that submits `tasks`, at most `window` of them at a time.
    pub fn new(number: u64, tasks: u64, window: u64, make: Make) -> Self {
        Strand { number, tasks, window, make, next: 0 }
    }

    /// Its next tasks, as many as there are up to `many`.
    fn submit(&mut self, many: u64) -> Vec<(TaskId, TaskSpec)> {
        let end = self.tasks.min(self.next + many);
        let range = std::mem::replace(&mut self.next, end)..end;
        let one = |index| {
            let task = TaskId::new(JOB, TaskId::root(JOB), self.number, index);
            (task, (self.make)(task, index))
        };
        range.map(one).collect()
    }
}

/// A driver.
pub struct Driver {
    strands: Vec<Strand>,
    open: BTreeMap<TaskId, usize>,
}

impl Driver {
    /// With these threads.
    pub fn new(strands: Vec<Strand>) -> Self {
        Driver { strands, open: BTreeMap::new() }
    }

    /// What it submits to begin with.
    pub fn begin(&mut self) -> Vec<TaskSpec> {
        (0..self.strands.len()).flat_map(|strand| self.submit(strand, self.strands[strand].window)).collect()
    }

    /// It is told of the end of a task, whose strand goes on.
    pub fn ended(&mut self, object: ObjectId) -> Option<Vec<TaskSpec>> {
        let strand = self.open.remove(&object.task)?;
        Some(self.submit(strand, 1))
    }

    fn submit(&mut self, strand: usize, many: u64) -> Vec<TaskSpec> {
        let made = self.strands[strand].submit(many);
        made.into_iter().map(|(task, spec)| (self.open.insert(task, strand), spec).1).collect()
    }
}

/// A task of one CPU without arguments.
pub fn plain(task: TaskId, function: u64) -> TaskSpec {
    TaskSpec {
        id: task_bytes(task),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function,
        cpu_milli: 1000,
        max_retries: 3,
        digest: 9,
        ..TaskSpec::default()
    }
}

/// The same, of which it is said that it only computes.
pub fn pure(spec: TaskSpec) -> TaskSpec {
    TaskSpec { options: Some(Box::new(TaskOptions { pure: true, ..TaskOptions::default() })), ..spec }
}

/// The same with a wish about where.
pub fn placed(spec: TaskSpec, placement: Placement) -> TaskSpec {
    let options = TaskOptions { placement: Some(placement), ..TaskOptions::default() };
    TaskSpec { options: Some(Box::new(options)), ..spec }
}

/// The same on one node and no other.
pub fn on(spec: TaskSpec, node: usize) -> TaskSpec {
    let affinity = NodeAffinity { incarnation: node as u64 + 1, ..NodeAffinity::default() };
    placed(spec, Placement { node: Some(affinity), ..Placement::default() })
}

/// The same wherever there is least to do, whatever it takes as arguments.
pub fn spread(spec: TaskSpec) -> TaskSpec {
    placed(spec, Placement { spread: true, ..Placement::default() })
}

/// The same with an argument.
pub fn taking(mut spec: TaskSpec, object: ObjectId) -> TaskSpec {
    spec.args.push(Arg { arg: Some(arg::Arg::Object(object_bytes(object))) });
    spec
}
