//! What the driver of a run does when: seeded groups of tasks, and what is got, dropped and cancelled of them.

use crate::dice::Dice;
use crate::program::{self, Content, Expected, INLINE_MAX, Oracle, Style, Submission};
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{JobId, ObjectId, TaskId};
use std::collections::BTreeSet;
use std::time::Duration;

/// Steps, and when each is due, counted from the driver's connection.
pub type Script = Vec<(Duration, Step)>;

/// A step of the driver.
#[derive(Clone, Debug)]
pub enum Step {
    /// Submits a task.
    Submit(Submission),
    /// Stores a value.
    Put { object: ObjectId, content: Content },
    /// Wants a value.
    Get(ObjectId),
    /// Refers to it no longer.
    Drop(ObjectId),
    /// Cancels the task that makes it, perhaps with all that this has submitted.
    Cancel(ObjectId, bool),
    /// Wants one more item of this task's stream, and its value.
    Take(TaskId),
    /// Takes no more of it: cancels it, unless it has seen the end.
    EndStream(TaskId),
}

/// What a script is drawn from.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Decides everything.
    pub seed: u64,
    /// The programs.
    pub style: &'a Style,
    /// Top-level tasks per second, and how many come at once.
    pub rate: (u64, u64),
    /// What the driver no longer names it drops, so many times in a thousand.
    pub drop_permille: u64,
    /// No more steps after this; the last come somewhat before.
    pub end: Duration,
    /// The driver dies then: much is in flight.
    pub dies: bool,
    /// Steps that are left out, by number, with all that takes what they make.
    pub without: &'a BTreeSet<usize>,
}

/// How a group of tasks hangs together.
#[derive(Clone, Copy)]
enum Shape {
    Chain,
    FanOut,
    FanIn,
    Random,
    /// All take something old, which may be lost by then.
    Again,
}

const SHAPES: [Shape; 5] = [Shape::Chain, Shape::FanOut, Shape::FanIn, Shape::Random, Shape::Again];

/// A seed's script in the making.
struct Writer<'a> {
    plan: &'a Plan<'a>,
    oracle: &'a mut Oracle,
    dice: Dice,
    script: Script,
    tasks: u64,
    puts: u32,
    /// What later steps may name.
    known: Vec<ObjectId>,
    end: Duration,
}

/// Writes the script, and runs it in the oracle.
pub fn write(plan: &Plan, oracle: &mut Oracle) -> Script {
    let end = plan.end.saturating_sub(Duration::from_millis(300));
    let dice = Dice::new(plan.seed, "driver");
    let (script, known) = (Vec::new(), Vec::new());
    let mut writer = Writer { plan, oracle, dice, script, tasks: 0, puts: 0, known, end };
    let mut at = Duration::from_millis(200);
    let (rate, burst) = plan.rate;
    while at < end {
        let many = writer.dice.from_to(1, burst * 2);
        writer.group(at, many);
        let pause = writer.dice.from_to(1, 2 * 1000 * (burst + 1).div_ceil(2) / rate).max(1);
        at += Duration::from_millis(pause);
    }
    if plan.dies {
        // Much is in flight then.
        writer.group(end, LAST_GROUP);
    }
    writer.streams();
    let mut script = writer.script;
    script.extend(cancels(&script, plan, end));
    script.sort_by_key(|(at, _)| *at);
    if !plan.without.is_empty() {
        (script, *oracle) = left_of(script, plan, oracle.job());
    }
    script
}

/// Streams that a driver takes from at most.
const STREAMS_MAX: u64 = 40;
/// Tasks that a driver submits just before it dies.
const LAST_GROUP: u64 = 60;

impl Writer<'_> {
    fn shape(&mut self) -> Shape {
        let weights = self.plan.style.shapes;
        let mut drawn = self.dice.below(weights.iter().sum());
        for (shape, weight) in SHAPES.into_iter().zip(weights) {
            if drawn < weight {
                return shape;
            }
            drawn = drawn.saturating_sub(weight);
        }
        Shape::Random
    }

    /// A group of tasks and puts, and what becomes of them.
    fn group(&mut self, at: Duration, many: u64) {
        let shape = self.shape();
        let old = self.dice.pick(&self.known);
        let mut group: Vec<ObjectId> = Vec::new();
        for n in 0..many {
            let mut refs = self.plan.style.pick_refs(&mut self.dice, &group);
            if self.dice.permille(80) {
                group.push(self.put(at, refs));
                continue;
            }
            let args = match (shape, old) {
                // Whoever runs it looks for it, or whoever submitted it does.
                (Shape::Again, Some(old)) if n % 2 == 0 => {
                    refs = vec![old];
                    Vec::new()
                }
                (Shape::Again, Some(old)) => vec![old],
                _ => pick_args(&mut self.dice, shape, &group, &self.known, n + 1 == many),
            };
            group.extend(self.submit(at, args, refs));
        }
        for object in &group {
            if self.dice.permille(300) {
                let later = self.later(at, 4_000);
                self.script.push((later, Step::Get(*object)));
            }
        }
        self.let_go(at, group);
    }

    fn later(&mut self, at: Duration, most_ms: u64) -> Duration {
        (at + Duration::from_millis(self.dice.log_uniform(5, most_ms))).min(self.end.max(at))
    }

    fn put(&mut self, at: Duration, refs: Vec<ObjectId>) -> ObjectId {
        let object = TaskId::root(self.oracle.job()).output(FIRST_PUT_SLOT + self.puts);
        self.puts += 1;
        let large = self.dice.permille(self.plan.style.large_permille);
        let len = if large { self.dice.log_uniform(INLINE_MAX + 1, 2_000_000) } else { 16 };
        let content = program::put_content(self.dice.bits(), len, refs);
        self.oracle.objects.insert(object, Expected::Value(content.clone()));
        self.script.push((at, Step::Put { object, content }));
        object
    }

    fn submit(&mut self, at: Duration, args: Vec<ObjectId>, nested: Vec<ObjectId>) -> Vec<ObjectId> {
        let job = self.oracle.job();
        let root = TaskId::root(job);
        let id = TaskId::new(job, root, 0, self.tasks);
        self.tasks += 1;
        let (seed, depth) = (self.dice.bits(), self.plan.style.depth);
        let task = Submission { id, parent: root, seed, depth, args, nested };
        self.oracle.run(self.plan.style, &task);
        let outputs = task.outputs(self.plan.style);
        self.script.push((at, Step::Submit(task)));
        outputs
    }

    /// Streams that the driver takes from, of which it drops some before their end.
    fn streams(&mut self) {
        let (style, job) = (self.plan.style, self.oracle.job());
        let root = TaskId::root(job);
        if style.streams_permille == 0 || style.depth == 0 {
            return;
        }
        let dice = &mut Dice::new(self.plan.seed, "driver's streams");
        let end = self.end.as_millis() as u64;
        for _ in 0..dice.from_to(1, STREAMS_MAX) {
            let id = TaskId::new(job, root, 0, self.tasks);
            let (seed, depth) = (dice.bits(), style.depth - 1);
            let task = Submission { id, parent: root, seed, depth, args: Vec::new(), nested: Vec::new() };
            let Some(items) = task.stream(style) else { continue };
            self.tasks += 1;
            self.oracle.run(style, &task);
            let mut at = dice.from_to(200, end.max(200));
            let mut due = |dice: &mut Dice, most_ms: u64| {
                at = (at + dice.log_uniform(1, most_ms)).min(end.max(at));
                Duration::from_millis(at)
            };
            self.script.push((due(dice, 10), Step::Submit(task)));
            // One more than there are finds the end.
            for n in 0..dice.from_to(0, u64::from(items) + 1) as u32 {
                self.script.push((due(dice, 3_000), Step::Take(id)));
                if dice.permille(300) {
                    self.script.push((due(dice, 1_000), Step::Drop(id.item(n))));
                }
            }
            if dice.permille(600) {
                self.script.push((due(dice, 3_000), Step::EndStream(id)));
            }
        }
    }

    /// Some of a group is dropped at once, some is wanted for what lies inside and dropped then, some stays for a
    /// while.
    fn let_go(&mut self, at: Duration, group: Vec<ObjectId>) {
        for object in group {
            if self.dice.permille(self.plan.style.hasty_permille) {
                let later = at + Duration::from_millis(self.dice.log_uniform(1, 256) - 1);
                self.script.push((later.min(self.end.max(at)), Step::Drop(object)));
            } else if self.dice.permille(self.plan.drop_permille / 4) {
                let later = self.later(at, 4_000);
                self.script.extend([(later, Step::Get(object)), (later, Step::Drop(object))]);
            } else {
                self.known.push(object);
            }
        }
        // Nothing that comes later names what is dropped here.
        let keep = self.dice.from_to(10, 64) as usize;
        let many = self.known.len().saturating_sub(keep);
        for object in self.known.drain(..many) {
            if self.dice.permille(self.plan.drop_permille) {
                self.script.push((at, Step::Drop(object)));
            }
        }
    }
}

/// Some tasks are cancelled, before they begin, while they run, or when they have ended.
fn cancels(script: &Script, plan: &Plan, end: Duration) -> Script {
    let dice = &mut Dice::new(plan.seed, "cancels");
    let mut cancels = Vec::new();
    for (at, step) in script {
        if let Step::Submit(task) = step
            && dice.permille(plan.style.cancel_permille)
        {
            let later = *at + Duration::from_millis(dice.log_uniform(1, 2_000));
            cancels.push((later.min(end.max(*at)), Step::Cancel(task.id.output(0), dice.permille(500))));
        }
    }
    cancels
}

/// A script without some of its steps, nor what takes the values that these would have made; and what is
/// left must come to.
fn left_of(script: Script, plan: &Plan, job: JobId) -> (Script, Oracle) {
    let (mut left, mut oracle) = (Vec::new(), Oracle::of(job));
    for (number, (at, step)) in script.into_iter().enumerate() {
        let there = |object: &ObjectId| oracle.objects.contains_key(object);
        let possible = match &step {
            Step::Submit(task) => task.args.iter().chain(&task.nested).all(there),
            Step::Put { content, .. } => content.refs.iter().all(there),
            Step::Get(object) | Step::Drop(object) | Step::Cancel(object, _) => there(object),
            Step::Take(task) | Step::EndStream(task) => oracle.tasks.contains_key(task),
        };
        if !possible || plan.without.contains(&number) {
            continue;
        }
        match &step {
            Step::Submit(task) => oracle.run(plan.style, task),
            Step::Put { object, content } => {
                oracle.objects.insert(*object, Expected::Value(content.clone()));
            }
            Step::Get(_) | Step::Drop(_) | Step::Cancel(..) | Step::Take(_) | Step::EndStream(_) => {}
        }
        left.push((at, step));
    }
    (left, oracle)
}

fn pick_args(
    dice: &mut Dice,
    shape: Shape,
    group: &[ObjectId],
    known: &[ObjectId],
    last: bool,
) -> Vec<ObjectId> {
    match shape {
        Shape::Chain => group.last().or(known.last()).copied().into_iter().collect(),
        Shape::FanOut => group.first().copied().into_iter().collect(),
        Shape::FanIn if last => group.to_vec(),
        Shape::FanIn => Vec::new(),
        Shape::Random | Shape::Again => {
            let from: Vec<ObjectId> = known.iter().chain(group).rev().take(20).copied().collect();
            let many = dice.below(4);
            let mut args: Vec<ObjectId> = (0..many).filter_map(|_| dice.pick(&from)).collect();
            args.dedup();
            args
        }
    }
}
