//! Random programs whose answers are known before they run.
//!
//! A task is a number: its body, what it submits, gets, puts and returns follows from it. Every value is a
//! hash over all that went into it, so a wrong, stale or doubled input shows. [`Oracle`] runs a program
//! one step after the other, without a cluster.

use super::dice::Dice;
use super::trace::mix;
use bytes::Bytes;
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{JobId, ObjectId, TaskId};
use mobula_proto::{
    Arg, LabelOp, LabelTerm, NodeAffinity, Placement, TaskOptions, TaskSpec, arg, object_bytes, task_bytes,
};
use std::collections::BTreeMap;

/// The one job of a run.
pub const JOB: JobId = JobId(7);

/// What a seed's programs are like.
#[derive(Clone, Debug)]
pub struct Style {
    /// Tasks nest so deep.
    pub depth: u8,
    /// Tasks that submit others, in a thousand.
    pub nest_permille: u64,
    /// Values that are large, in a thousand.
    pub large_permille: u64,
    /// Tasks that may not be repeated, in a thousand.
    pub once_permille: u64,
    /// Tasks that end with an error of their own, in a thousand.
    pub error_permille: u64,
    /// Tasks that kill their worker, in a thousand.
    pub poison_permille: u64,
    /// Values that have references in them, in a thousand.
    pub refs_permille: u64,
    /// Tasks that kill their worker the first time, in a thousand.
    pub stumble_permille: u64,
    /// Tasks that make other bytes each time, in a thousand.
    pub moody_permille: u64,
    /// The job accepts that (G3).
    pub accepts: bool,
    /// The job's tasks begin once their records are committed.
    pub commits: bool,
    /// A task runs so long, in microseconds.
    pub work_us: (u64, u64),
    /// Tasks that may not run everywhere, or are to be spread, in a thousand.
    pub placed_permille: u64,
    /// Tasks of the driver that it cancels, in a thousand.
    pub cancel_permille: u64,
    /// Tasks that one worker is given; 0 for any number.
    pub reuse: u32,
}

/// One step of a task. What it refers to is a pick among the references it has by then.
#[derive(Clone, Debug)]
pub enum Op {
    /// Computes for so many nanoseconds.
    Work(u64),
    /// Submits a task; some references are arguments, others lie in an argument given by value.
    Submit { seed: u64, args: Vec<u64>, nested: Vec<u64> },
    /// Waits for a value, and takes the references in it.
    Get(u64),
    /// Waits until something exists.
    Wait(u64),
    /// Stores a value with references in it.
    Put { seed: u64, len: u64, refs: Vec<u64> },
    /// Submits another task each time under the same number (R2), waits until it has ended, and goes on
    /// whatever came of it.
    Whim(u64),
}

/// Depth of a task that was submitted on a whim: it is like all of its kind.
pub const WHIM: u8 = u8::MAX;

/// What a pick stands for.
pub fn picked(locals: &[ObjectId], pick: u64) -> Option<ObjectId> {
    locals.get((pick % (locals.len() as u64).max(1)) as usize).copied()
}

/// What picks stand for, each once.
pub fn picked_all(locals: &[ObjectId], picks: &[u64]) -> Vec<ObjectId> {
    let mut all: Vec<ObjectId> = picks.iter().filter_map(|pick| picked(locals, *pick)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The references that a task has, in the order in which it came to them.
#[derive(Clone, Debug, Default)]
pub struct Locals {
    task: TaskId,
    /// All of them.
    pub all: Vec<ObjectId>,
    /// Those that come from a child to which the task has given something that it put itself. Such a
    /// reference in a value of the task would be a ring, which nobody can let go of before the job ends.
    rings: Vec<ObjectId>,
}

impl Locals {
    /// A task that is given these.
    pub fn new(task: TaskId, given: Vec<ObjectId>) -> Self {
        Locals { task, all: given, rings: Vec::new() }
    }

    /// What comes out of a value of `from` (of another task's, when there is none); those that are new.
    pub fn take(&mut self, from: Option<ObjectId>, refs: &[ObjectId]) -> Vec<ObjectId> {
        let fresh: Vec<ObjectId> = refs.iter().copied().filter(|id| !self.all.contains(id)).collect();
        self.all.extend(&fresh);
        if from.is_some_and(|from| self.rings.contains(&from)) {
            self.rings.extend(fresh.iter().filter(|id| id.task != self.task));
        }
        fresh
    }

    /// A child, with what it was given.
    pub fn child(&mut self, child: ObjectId, given: &[ObjectId]) {
        self.all.push(child);
        if given.iter().any(|id| id.task == self.task || self.rings.contains(id)) {
            self.rings.push(child);
        }
    }

    /// Something that the task put.
    pub fn put(&mut self, object: ObjectId) {
        self.all.push(object);
    }

    /// References for a value of the task.
    pub fn for_value(&self, picks: &[u64]) -> Vec<ObjectId> {
        let fit: Vec<ObjectId> = self.all.iter().copied().filter(|id| !self.rings.contains(id)).collect();
        picked_all(&fit, picks)
    }
}

/// How a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a value.
    Value,
    /// With an error.
    Error,
    /// With its worker.
    Poison,
}

/// Where a task may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It does not matter.
    Anywhere,
    /// Where there is least to do.
    Spread,
    /// On this machine if that can be.
    Rather(usize),
    /// On this machine only.
    Only(usize),
    /// Where the label is that of machine 0, or this.
    OneOf(&'static str),
    /// Where the label is not this.
    AllBut(&'static str),
}

/// The label `zone` of a machine.
pub fn label_of(machine: usize) -> &'static str {
    ["a", "b", "c"][machine % 3]
}

impl Place {
    fn options(self) -> Option<Box<TaskOptions>> {
        let mut placement = Placement::default();
        let mut label = |op: LabelOp, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            placement.labels.push(LabelTerm { key: "zone".into(), op: op as i32, values });
        };
        let affinity =
            |machine, soft| Some(NodeAffinity { name: format!("node-{machine}"), incarnation: 0, soft });
        match self {
            Place::Anywhere => return None,
            Place::Spread => placement.spread = true,
            Place::Rather(machine) => placement.node = affinity(machine, true),
            Place::Only(machine) => placement.node = affinity(machine, false),
            Place::OneOf(zone) => {
                label(LabelOp::LabelIn, &[label_of(0), zone]);
                label(LabelOp::LabelExists, &[]);
            }
            Place::AllBut(zone) => label(LabelOp::LabelNotIn, &[zone]),
        }
        Some(Box::new(TaskOptions { placement: Some(placement), ..TaskOptions::default() }))
    }
}

/// A task, spelled out.
#[derive(Clone, Debug)]
pub struct Body {
    /// Where it may run.
    pub place: Place,
    /// What it does before it ends.
    pub ops: Vec<Op>,
    /// Bytes of its value.
    pub len: u64,
    /// References that lie in its value.
    pub returns: Vec<u64>,
    /// How it ends.
    pub end: End,
    /// How often it may be repeated.
    pub retries: u32,
    /// What it needs.
    pub cpu_milli: u32,
    /// Which function it is.
    pub function: u64,
    /// It makes other bytes each time, though nothing that comes of its value differs.
    pub moody: bool,
    /// It kills its worker the first time, having done all that it does.
    pub stumbles: bool,
}

/// Values beyond this are large.
pub const INLINE_MAX: u64 = mobula_proto::INLINE_MAX as u64;

impl Style {
    /// Draws a style.
    pub fn draw(dice: &mut Dice) -> Self {
        Style {
            depth: dice.below(4) as u8,
            nest_permille: dice.from_to(50, 350),
            large_permille: dice.from_to(0, 400),
            once_permille: dice.pick(&[0, 0, 50, 200]).unwrap_or(0),
            error_permille: dice.pick(&[0, 0, 10, 40]).unwrap_or(0),
            poison_permille: dice.pick(&[0, 0, 0, 5]).unwrap_or(0),
            refs_permille: dice.pick(&[0, 100, 400, 800]).unwrap_or(0),
            stumble_permille: dice.pick(&[0, 0, 20, 60]).unwrap_or(0),
            moody_permille: dice.pick(&[0, 0, 0, 20, 80]).unwrap_or(0),
            accepts: dice.permille(500),
            commits: dice.permille(150),
            // Very short ones queue up at their workers.
            work_us: dice
                .pick(&[(5, 100), (500, 20_000), (2_000, 80_000), (10_000, 300_000), (20_000, 1_000_000)])
                .unwrap_or((500, 20_000)),
            placed_permille: dice.pick(&[0, 100, 600]).unwrap_or(0),
            cancel_permille: dice.pick(&[0, 0, 20, 100]).unwrap_or(0),
            reuse: dice.pick(&[0, 0, 0, 1, 5]).unwrap_or(0),
        }
    }

    /// Where a task may run: of a stream of its own. Machine 0, which is the driver's, always may.
    fn place(&self, seed: u64, depth: u8) -> Place {
        let dice = &mut Dice::new(seed, "place");
        if depth == WHIM || !dice.permille(self.placed_permille) {
            return Place::Anywhere;
        }
        let machine = dice.below(10) as usize;
        match dice.below(6) {
            0 | 1 => Place::Spread,
            2 => Place::Rather(machine),
            3 => Place::OneOf(label_of(machine)),
            4 => Place::AllBut(label_of(dice.from_to(1, 2) as usize)),
            _ => Place::Only(0),
        }
    }

    fn len(&self, dice: &mut Dice) -> u64 {
        if dice.permille(self.large_permille) {
            dice.log_uniform(INLINE_MAX + 1, 2_000_000)
        } else {
            dice.log_uniform(8, 2_000)
        }
    }

    /// Spells out a task.
    pub fn body(&self, seed: u64, depth: u8) -> Body {
        let dice = &mut Dice::new(seed, "body");
        let work = |dice: &mut Dice| Op::Work(dice.log_uniform(self.work_us.0, self.work_us.1) * 1000);
        let mut ops = vec![work(dice)];
        if depth == WHIM {
            let (end, function) = (End::Value, seed % 5 + 1);
            let returns = Vec::new();
            return Body {
                place: Place::Anywhere,
                ops,
                len: 16,
                returns,
                end,
                retries: 3,
                cpu_milli: 500,
                function,
                moody: false,
                stumbles: false,
            };
        }
        // Of what it was given as a reference it wants the first.
        if dice.permille(300) {
            ops.push(Op::Get(0));
        }
        let moody = dice.permille(self.moody_permille);
        if moody && depth > 0 && dice.permille(500) {
            ops.push(Op::Whim(dice.bits()));
        }
        if depth > 0 && dice.permille(self.nest_permille) {
            self.nest(dice, &mut ops);
            ops.push(work(dice));
        }
        let end = match dice.below(1000) {
            n if n < self.error_permille => End::Error,
            n if n < self.error_permille + self.poison_permille => End::Poison,
            _ => End::Value,
        };
        let retries = if dice.permille(self.once_permille) { 0 } else { dice.from_to(2, 6) as u32 };
        let stumbles = retries > 0 && dice.permille(self.stumble_permille);
        let cpu_milli = dice.pick(&[1000, 1000, 1000, 500, 2000]).unwrap_or(1000);
        let returns = self.refs(dice);
        Body {
            place: self.place(seed, depth),
            ops,
            len: self.len(dice),
            returns,
            end,
            retries,
            cpu_milli,
            function: seed % 5 + 1,
            moody,
            stumbles,
        }
    }

    /// Some of `among`, or mostly none.
    pub fn pick_refs(&self, dice: &mut Dice, among: &[ObjectId]) -> Vec<ObjectId> {
        let picks = self.refs(dice);
        picked_all(among, &picks)
    }

    /// Some references, or mostly none.
    fn refs(&self, dice: &mut Dice) -> Vec<u64> {
        let many = if dice.permille(self.refs_permille) { dice.from_to(1, 3) } else { 0 };
        (0..many).map(|_| dice.bits()).collect()
    }

    /// Children, some of which take earlier ones as arguments, and gets of some of them.
    fn nest(&self, dice: &mut Dice, ops: &mut Vec<Op>) {
        for _ in 0..dice.from_to(1, 4) {
            let refs = self.refs(dice);
            if dice.permille(200) {
                ops.push(Op::Put { seed: dice.bits(), len: self.len(dice), refs });
            } else {
                let many = dice.below(3);
                let args = (0..many).map(|_| dice.bits()).collect();
                ops.push(Op::Submit { seed: dice.bits(), args, nested: refs });
            }
        }
        for _ in 0..dice.from_to(1, 4) {
            match dice.below(10) {
                0 => {}
                1 => ops.push(Op::Wait(dice.bits())),
                _ => ops.push(Op::Get(dice.bits())),
            }
        }
    }
}

/// What a value is made of. Its length is that of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Says all.
    pub hash: u64,
    /// Bytes it takes.
    pub len: u64,
    /// What was different this time: in its bytes, but nowhere else.
    pub mood: u64,
    /// References that lie in it.
    pub refs: Vec<ObjectId>,
}

/// What memory reads as that was freed under its reader.
pub const GARBAGE: Content = Content { hash: 0xdead, len: 16, mood: 0, refs: Vec::new() };

impl Content {
    /// Small values travel as their bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = self.hash.to_le_bytes().to_vec();
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.mood.to_le_bytes());
        self.refs.iter().for_each(|id| bytes.extend(id.to_bytes()));
        bytes.into()
    }

    /// The inverse of [`Content::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Content { hash: word(0)?, len: word(8)?, mood: word(16)?, refs: refs_of(bytes.get(24..)?) })
    }

    /// Stands for the CRC-32 of its bytes.
    pub fn crc(&self) -> u32 {
        crc(&self.encode())
    }
}

fn refs_of(bytes: &[u8]) -> Vec<ObjectId> {
    bytes.chunks_exact(ObjectId::LEN).filter_map(ObjectId::from_bytes).collect()
}

/// Stands for CRC-32.
pub fn crc(bytes: &[u8]) -> u32 {
    mobula_base::ids::hash64(&[bytes]) as u32
}

fn with_refs(hash: u64, refs: &[ObjectId]) -> u64 {
    refs.iter().fold(hash, |hash, id| {
        mix(mix(hash, id.task.run.0 as u64), u64::from(id.task.place) << 32 | u64::from(id.slot))
    })
}

/// A value that was put.
pub fn put_content(seed: u64, len: u64, refs: Vec<ObjectId>) -> Content {
    Content { hash: with_refs(mix(seed, 0x707574), &refs), len, mood: 0, refs }
}

/// A task's value, from what it was given and what it got.
pub fn task_content(seed: u64, inputs: impl Iterator<Item = u64>, len: u64, refs: Vec<ObjectId>) -> Content {
    Content { hash: with_refs(inputs.fold(mix(seed, 0x7461736b), mix), &refs), len, mood: 0, refs }
}

/// A task to be submitted.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Which.
    pub id: TaskId,
    /// By whom.
    pub parent: TaskId,
    /// What it is.
    pub seed: u64,
    /// How deep it may nest.
    pub depth: u8,
    /// What it takes.
    pub args: Vec<ObjectId>,
    /// References that it is given as such.
    pub nested: Vec<ObjectId>,
}

impl Submission {
    /// Its record.
    pub fn spec(&self, style: &Style, replay: bool) -> TaskSpec {
        let body = style.body(self.seed, self.depth);
        let mut what = self.seed.to_le_bytes().to_vec();
        what.push(self.depth);
        self.nested.iter().for_each(|id| what.extend(id.to_bytes()));
        let by_value = Arg { arg: Some(arg::Arg::Value(what.into())) };
        let by_reference = |object: &ObjectId| Arg { arg: Some(arg::Arg::Object(object_bytes(*object))) };
        let mut spec = TaskSpec {
            id: task_bytes(self.id),
            job: JOB.0,
            parent: task_bytes(self.parent),
            function: body.function,
            args: std::iter::once(by_value).chain(self.args.iter().map(by_reference)).collect(),
            nested: self.nested.iter().map(|id| object_bytes(*id)).collect(),
            cpu_milli: body.cpu_milli,
            max_retries: body.retries,
            replay,
            accept_divergence: style.accepts,
            commit_first: style.commits,
            options: body.place.options(),
            ..TaskSpec::default()
        };
        spec.digest = spec.compute_digest();
        spec
    }
}

/// Seed, depth and given references of a task, from its first argument.
pub fn read_what(bytes: &[u8]) -> Option<(u64, u8, Vec<ObjectId>)> {
    let seed = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    Some((seed, *bytes.get(8)?, refs_of(bytes.get(9..)?)))
}

/// How an object must turn out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This value.
    Value(Content),
    /// A failure that the program itself asks for.
    Failure,
}

/// What is known of a task before it runs.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it takes.
    pub args: Vec<ObjectId>,
    /// All that it refers to while it runs.
    pub uses: Vec<ObjectId>,
    /// What it submits.
    pub children: Vec<TaskId>,
    /// How often it may be repeated.
    pub retries: u32,
    /// Whether it kills its workers.
    pub poison: bool,
    /// It makes other bytes each time.
    pub moody: bool,
    /// Whether it may fail because of that.
    pub diverges: bool,
}

impl Known {
    /// A task that was submitted on a whim.
    fn whim() -> Self {
        let (args, uses, children) = (Vec::new(), Vec::new(), Vec::new());
        Known { args, uses, children, retries: 3, poison: false, moody: false, diverges: false }
    }
}

/// Runs programs one step after the other.
#[derive(Default)]
pub struct Oracle {
    /// How every object must turn out.
    pub objects: BTreeMap<ObjectId, Expected>,
    /// Every task.
    pub tasks: BTreeMap<TaskId, Known>,
}

impl Oracle {
    /// Whether a task, or what its parent submits as it, may differ from one time to the next.
    pub fn may_differ(&self, task: TaskId) -> bool {
        let is_moody = |known: &Known| known.moody;
        self.tasks.get(&task).is_some_and(is_moody)
            || self.tasks.values().any(|parent| parent.moody && parent.children.contains(&task))
    }

    /// Runs a task and all that it submits.
    pub fn run(&mut self, style: &Style, task: &Submission) {
        let Submission { id, seed, depth, args, nested, .. } = task;
        let body = style.body(*seed, *depth);
        let mut inputs = Vec::new();
        let mut fails = body.end != End::Value;
        let mut locals = Locals::new(*id, nested.clone());
        let (mut children, mut puts) = (Vec::new(), 0);
        let given = args.iter().all(|object| self.take(*object, &mut inputs, &mut locals, false));
        for op in if given { &body.ops[..] } else { &[] } {
            match op {
                Op::Work(_) | Op::Wait(_) => {}
                Op::Submit { seed, args, nested } => {
                    let child = TaskId::new(JOB, *id, 0, children.len() as u64);
                    let (args, nested) = (picked_all(&locals.all, args), picked_all(&locals.all, nested));
                    let given = [&args[..], &nested[..]].concat();
                    let child =
                        Submission { id: child, parent: *id, seed: *seed, depth: depth - 1, args, nested };
                    self.run(style, &child);
                    children.push(child.id);
                    locals.child(child.id.output(0), &given);
                }
                Op::Whim(_) => {
                    let child = TaskId::new(JOB, *id, 0, children.len() as u64);
                    self.tasks.insert(child, Known::whim());
                    children.push(child);
                }
                Op::Put { seed, len, refs } => {
                    let object = id.output(FIRST_PUT_SLOT + puts);
                    puts += 1;
                    let content = put_content(*seed, *len, locals.for_value(refs));
                    self.objects.insert(object, Expected::Value(content));
                    locals.put(object);
                }
                Op::Get(pick) => {
                    let Some(object) = picked(&locals.all, *pick) else { continue };
                    if !self.take(object, &mut inputs, &mut locals, true) {
                        fails = true;
                        break;
                    }
                }
            }
        }
        let refs = locals.for_value(&body.returns);
        let value = match given && !fails {
            true => Expected::Value(task_content(*seed, inputs.into_iter(), body.len, refs)),
            false => Expected::Failure,
        };
        let poison = given && body.end == End::Poison;
        let diverges = body.moody && !style.accepts;
        let (args, uses, retries) = (args.clone(), locals.all, body.retries);
        let known = Known { args, uses, children, retries, poison, moody: body.moody, diverges };
        self.tasks.insert(*id, known);
        self.objects.insert(id.output(0), value);
    }

    fn take(&self, object: ObjectId, inputs: &mut Vec<u64>, locals: &mut Locals, own: bool) -> bool {
        match self.objects.get(&object) {
            Some(Expected::Value(content)) => {
                inputs.push(content.hash);
                locals.take(own.then_some(object), &content.refs);
                true
            }
            Some(Expected::Failure) | None => false,
        }
    }
}
