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
use mobula_proto::{Arg, TaskSpec, arg, object_bytes, task_bytes};
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
    /// A task runs so long, in microseconds.
    pub work_us: (u64, u64),
}

/// One step of a task.
#[derive(Clone, Debug)]
pub enum Op {
    /// Computes for so many nanoseconds.
    Work(u64),
    /// Submits a task; its arguments are what was submitted or put before, by number.
    Submit { seed: u64, args: Vec<usize> },
    /// Waits for the value of something submitted or put.
    Get(usize),
    /// Waits until something exists.
    Wait(usize),
    /// Stores a value.
    Put { seed: u64, len: u64 },
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

/// A task, spelled out.
#[derive(Clone, Debug)]
pub struct Body {
    /// What it does before it ends.
    pub ops: Vec<Op>,
    /// Bytes of its value.
    pub len: u64,
    /// How it ends.
    pub end: End,
    /// How often it may be repeated.
    pub retries: u32,
    /// What it needs.
    pub cpu_milli: u32,
    /// Which function it is.
    pub function: u64,
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
            once_permille: dice.from_to(0, 200),
            error_permille: dice.pick(&[0, 0, 10, 40]).unwrap_or(0),
            poison_permille: dice.pick(&[0, 0, 0, 5]).unwrap_or(0),
            work_us: dice.pick(&[(500, 20_000), (2_000, 80_000), (10_000, 300_000)]).unwrap_or((500, 20_000)),
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
        let cpu_milli = dice.pick(&[1000, 1000, 1000, 500, 2000]).unwrap_or(1000);
        Body { ops, len: self.len(dice), end, retries, cpu_milli, function: seed % 5 + 1 }
    }

    /// Children, some of which take earlier ones as arguments, and gets of some of them.
    fn nest(&self, dice: &mut Dice, ops: &mut Vec<Op>) {
        let mut locals = 0;
        for _ in 0..dice.from_to(1, 4) {
            if dice.permille(200) {
                ops.push(Op::Put { seed: dice.bits(), len: self.len(dice) });
            } else {
                let args = (0..locals).filter(|_| dice.permille(300)).collect();
                ops.push(Op::Submit { seed: dice.bits(), args });
            }
            locals += 1;
        }
        for local in 0..locals {
            match dice.below(10) {
                0 => {}
                1 => ops.push(Op::Wait(local)),
                _ => ops.push(Op::Get(local)),
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
}

impl Content {
    /// Small values travel as their bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = self.hash.to_le_bytes().to_vec();
        bytes.extend(self.len.to_le_bytes());
        bytes.into()
    }

    /// The inverse of [`Content::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Content { hash: word(0)?, len: word(8)? })
    }

    /// Stands for the CRC-32 of its bytes.
    pub fn crc(&self) -> u32 {
        crc(&self.encode())
    }
}

/// Stands for CRC-32.
pub fn crc(bytes: &[u8]) -> u32 {
    mobula_base::ids::hash64(&[bytes]) as u32
}

/// A value that was put.
pub fn put_content(seed: u64, len: u64) -> Content {
    Content { hash: mix(seed, 0x707574), len }
}

/// A task's value, from what it was given and what it got.
pub fn task_content(seed: u64, inputs: impl Iterator<Item = u64>, len: u64) -> Content {
    Content { hash: inputs.fold(mix(seed, 0x7461736b), mix), len }
}

/// The record of a task.
pub fn spec(
    style: &Style,
    id: TaskId,
    parent: TaskId,
    seed: u64,
    depth: u8,
    args: &[ObjectId],
    replay: bool,
) -> TaskSpec {
    let body = style.body(seed, depth);
    let mut what = seed.to_le_bytes().to_vec();
    what.push(depth);
    let by_value = Arg { arg: Some(arg::Arg::Value(what.into())) };
    let by_reference = args.iter().map(|object| Arg { arg: Some(arg::Arg::Object(object_bytes(*object))) });
    let mut spec = TaskSpec {
        id: task_bytes(id),
        job: JOB.0,
        parent: task_bytes(parent),
        function: body.function,
        args: std::iter::once(by_value).chain(by_reference).collect(),
        cpu_milli: body.cpu_milli,
        max_retries: body.retries,
        replay,
        ..TaskSpec::default()
    };
    spec.digest = spec.compute_digest();
    spec
}

/// Seed and depth of a task, from its first argument.
pub fn read_what(bytes: &[u8]) -> Option<(u64, u8)> {
    Some((u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?), *bytes.get(8)?))
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
    /// What it submits.
    pub children: Vec<TaskId>,
    /// How often it may be repeated.
    pub retries: u32,
    /// Whether it kills its workers.
    pub poison: bool,
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
    /// Runs a task and all that it submits.
    pub fn run(&mut self, style: &Style, id: TaskId, seed: u64, depth: u8, args: &[ObjectId]) {
        let body = style.body(seed, depth);
        let mut inputs = Vec::new();
        let mut fails = body.end != End::Value;
        let mut locals: Vec<ObjectId> = Vec::new();
        let (mut children, mut puts) = (Vec::new(), 0);
        let given = args.iter().all(|object| self.take(*object, &mut inputs));
        for op in if given { &body.ops[..] } else { &[] } {
            match op {
                Op::Work(_) | Op::Wait(_) => {}
                Op::Submit { seed, args } => {
                    let child = TaskId::new(JOB, id, 0, children.len() as u64);
                    let args: Vec<ObjectId> = args.iter().map(|local| locals[*local]).collect();
                    self.run(style, child, *seed, depth - 1, &args);
                    children.push(child);
                    locals.push(child.output(0));
                }
                Op::Put { seed, len } => {
                    let object = id.output(FIRST_PUT_SLOT + puts);
                    puts += 1;
                    self.objects.insert(object, Expected::Value(put_content(*seed, *len)));
                    locals.push(object);
                }
                Op::Get(local) => {
                    if !self.take(locals[*local], &mut inputs) {
                        fails = true;
                        break;
                    }
                }
            }
        }
        let value = match given && !fails {
            true => Expected::Value(task_content(seed, inputs.into_iter(), body.len)),
            false => Expected::Failure,
        };
        let poison = given && body.end == End::Poison;
        self.tasks.insert(id, Known { args: args.to_vec(), children, retries: body.retries, poison });
        self.objects.insert(id.output(0), value);
    }

    fn take(&self, object: ObjectId, inputs: &mut Vec<u64>) -> bool {
        match self.objects.get(&object) {
            Some(Expected::Value(content)) => {
                inputs.push(content.hash);
                true
            }
            Some(Expected::Failure) | None => false,
        }
    }
}
