//! Random programs whose answers are known before they run.
//!
//! A task is a number: its body, what it submits, gets, puts and returns follows from it. Every value is a
//! hash over all that went into it, so a wrong, stale or doubled input shows. [`Oracle`] runs a program
//! one step after the other, without a cluster.

use crate::mix::mix;
pub use crate::style::{Body, End, First, INLINE_MAX, Op, Place, Style, label_of};
use bytes::Bytes;
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{JobId, ObjectId, TaskId};
use mobula_proto::{Arg, TaskSpec, arg, object_bytes, task_bytes};
use std::collections::BTreeMap;

/// The one job of a simulated run; on real processes each has another.
pub const JOB: JobId = JobId(7);

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
    /// What it has submitted.
    children: Vec<ObjectId>,
    /// What it has let go of.
    dropped: Vec<ObjectId>,
    /// The streams that it takes from, in the order in which it submitted them.
    pub flows: Vec<Flow>,
}

/// A stream that a task takes from.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Who makes it.
    pub task: TaskId,
    /// It was given something that the one who takes from it has put (see `rings`).
    is_ring: bool,
    /// So many items there will be.
    pub items: u32,
    /// So many are known to be made.
    pub made: u32,
    /// So many were taken.
    pub taken: u32,
}

impl Locals {
    /// A task that is given these.
    pub fn new(task: TaskId, given: Vec<ObjectId>) -> Self {
        Locals { task, all: given, ..Locals::default() }
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
        self.children.push(child);
        if given.iter().any(|id| id.task == self.task || self.rings.contains(id)) {
            self.rings.push(child);
        }
    }

    /// A stream, with what its task was given.
    pub fn flow(&mut self, task: TaskId, items: u32, given: &[ObjectId]) {
        let is_ring = given.iter().any(|id| id.task == self.task || self.rings.contains(id));
        self.flows.push(Flow::new(task, items, is_ring));
    }

    /// The stream that a pick stands for, if there is any.
    pub fn flow_of(&mut self, pick: u64) -> Option<&mut Flow> {
        let at = pick % (self.flows.len() as u64).max(1);
        self.flows.get_mut(at as usize)
    }

    /// The stream of this task.
    pub fn flow_from(&mut self, task: TaskId) -> Option<&mut Flow> {
        self.flows.iter_mut().find(|flow| flow.task == task)
    }

    /// The next item of a stream is taken.
    pub fn take_item(&mut self, task: TaskId) -> Option<(ObjectId, u32)> {
        let flow = self.flow_from(task)?;
        let (n, is_ring) = (flow.taken, flow.is_ring);
        flow.taken += 1;
        let item = task.item(n);
        self.all.push(item);
        self.rings.extend(is_ring.then_some(item));
        Some((item, n))
    }

    /// Something that the task put.
    pub fn put(&mut self, object: ObjectId) {
        self.all.push(object);
    }

    /// One that the task lets go of, if it has any.
    pub fn forget(&mut self, pick: u64) -> Option<ObjectId> {
        let object = picked(&self.all, pick)?;
        self.all.retain(|id| *id != object);
        self.dropped.push(object);
        Some(object)
    }

    /// One that it has submitted, if any.
    pub fn child_of(&self, pick: u64) -> Option<ObjectId> {
        picked(&self.children, pick)
    }

    /// All that it refers to, or did.
    fn ever(self) -> Vec<ObjectId> {
        [self.all, self.dropped].concat()
    }

    /// References for a value of the task.
    pub fn for_value(&self, picks: &[u64]) -> Vec<ObjectId> {
        let fit: Vec<ObjectId> = self.all.iter().copied().filter(|id| !self.rings.contains(id)).collect();
        picked_all(&fit, picks)
    }
}

impl Flow {
    /// Of which nothing is known yet.
    pub fn new(task: TaskId, items: u32, is_ring: bool) -> Self {
        Flow { task, is_ring, items, made: 0, taken: 0 }
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

/// The elements of what a task returns in parts: small ones; the references lie in the first. Without a mood.
pub fn parts_content(seed: u64, inputs: &[u64], parts: u32, refs: Vec<ObjectId>) -> Vec<Content> {
    let mut refs = Some(refs);
    let part = |n| {
        let seed = mix(seed, 0x7061_7274 + u64::from(n));
        task_content(seed, inputs.iter().copied(), 16, refs.take().unwrap_or_default())
    };
    (0..parts).map(part).collect()
}

/// The items of a stream: every other one is as large as the task's value; the references lie in the first.
pub fn items_content(seed: u64, inputs: &[u64], body: &Body, refs: Vec<ObjectId>) -> Vec<Content> {
    let mut refs = Some(refs);
    let item = |n: u32| {
        let seed = mix(seed, 0x6974_656d + u64::from(n));
        let len = if n % 2 == 1 { body.len } else { 16 };
        task_content(seed, inputs.iter().copied(), len, refs.take().unwrap_or_default())
    };
    (0..body.items).map(item).collect()
}

/// A task's own value when it returns parts: says which, and in which mood they were made.
pub fn mark_of(parts: &[Content], mood: u64) -> Content {
    let same = |part: &Content| Content { mood: 0, ..part.clone() }.crc();
    let hash = parts.iter().fold(0, |hash, part| mix(hash, u64::from(same(part))));
    Content { hash, len: 16, mood, refs: Vec::new() }
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
    /// What its submitter gets references to.
    pub fn outputs(&self, style: &Style) -> Vec<ObjectId> {
        style.body(self.seed, self.depth).outputs(self.id)
    }

    /// How many items it makes, if it returns a stream.
    pub fn stream(&self, style: &Style) -> Option<u32> {
        let body = style.body(self.seed, self.depth);
        (body.window > 0).then_some(body.items)
    }

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
            options: body.options(),
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
    /// What it makes, but for what it puts.
    pub outputs: Vec<ObjectId>,
    /// How often it may be repeated.
    pub retries: u32,
    /// Whether it kills its workers.
    pub poison: bool,
    /// It may only run for so long, and whether it runs again then.
    pub limit: Option<bool>,
    /// It makes other bytes each time.
    pub moody: bool,
    /// Whether it may fail because of that.
    pub diverges: bool,
    /// Whether it may fail as it pleases.
    pub fickle: bool,
    /// It says that it only computes, and may be repeated.
    pub pure: bool,
}

impl Known {
    /// A task that was submitted on a whim.
    fn whim() -> Self {
        let (args, uses, children) = (Vec::new(), Vec::new(), Vec::new());
        let (poison, limit, moody, diverges, fickle, pure) = (false, None, false, false, false, false);
        let outputs = Vec::new();
        Known { args, uses, children, outputs, retries: 3, poison, limit, moody, diverges, fickle, pure }
    }
}

/// Runs programs one step after the other.
pub struct Oracle {
    job: JobId,
    /// How every object must turn out.
    pub objects: BTreeMap<ObjectId, Expected>,
    /// Every task.
    pub tasks: BTreeMap<TaskId, Known>,
}

impl Default for Oracle {
    fn default() -> Self {
        Oracle::of(JOB)
    }
}

impl Oracle {
    /// That has seen nothing of a job yet.
    pub fn of(job: JobId) -> Self {
        Oracle { job, objects: BTreeMap::new(), tasks: BTreeMap::new() }
    }

    /// Its job.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Whether a task, or what its parent submits as it, may differ from one time to the next.
    pub fn may_differ(&self, task: TaskId) -> bool {
        let is_moody = |known: &Known| known.moody;
        self.tasks.get(&task).is_some_and(is_moody)
            || self.tasks.values().any(|parent| parent.moody && parent.children.contains(&task))
    }

    /// Whether a task may run twice at once.
    pub fn is_pure(&self, task: TaskId) -> bool {
        self.tasks.get(&task).is_some_and(|known| known.pure)
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
                Op::Work(_) | Op::Wait(_) | Op::Cancel(..) => {}
                Op::Drop(pick) => drop(locals.forget(*pick)),
                Op::Submit { seed, args, nested } => {
                    let child = TaskId::new(self.job, *id, 0, children.len() as u64);
                    let (args, nested) = (picked_all(&locals.all, args), picked_all(&locals.all, nested));
                    let given = [&args[..], &nested[..]].concat();
                    let child =
                        Submission { id: child, parent: *id, seed: *seed, depth: depth - 1, args, nested };
                    self.run(style, &child);
                    children.push(child.id);
                    child.outputs(style).into_iter().for_each(|output| locals.child(output, &given));
                    if let Some(items) = child.stream(style) {
                        locals.flow(child.id, items, &given);
                    }
                }
                Op::Take(pick) => {
                    let Some(flow) = locals.flow_of(*pick) else { continue };
                    let (task, is_over) = (flow.task, flow.taken == flow.items);
                    if self.objects.get(&task.output(0)) == Some(&Expected::Failure) {
                        fails = true;
                        break;
                    }
                    if !is_over {
                        locals.take_item(task);
                    }
                }
                Op::Whim(_) => {
                    let child = TaskId::new(self.job, *id, 0, children.len() as u64);
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
        let mut outputs = body.outputs(*id);
        outputs.extend((0..body.items).map(|n| id.item(n)));
        if given && !fails {
            self.made(&body, *id, *seed, &inputs, refs);
        } else {
            let failed = outputs.iter().copied().chain([id.output(0)]);
            self.objects.extend(failed.map(|output| (output, Expected::Failure)));
        }
        let poison = given && body.end == End::Poison;
        let diverges = body.moody && !style.accepts;
        let limit = (body.limit_ms > 0).then_some(body.again);
        let pure = body.pure && body.retries > 0;
        let (args, uses, retries) = (args.clone(), locals.ever(), body.retries);
        let known = Known {
            args,
            uses,
            children,
            outputs,
            retries,
            poison,
            limit,
            moody: body.moody,
            diverges,
            fickle: body.fickle,
            pure,
        };
        self.tasks.insert(*id, known);
    }

    /// A task has made its value, or all its elements.
    fn made(&mut self, body: &Body, id: TaskId, seed: u64, inputs: &[u64], refs: Vec<ObjectId>) {
        let whole = match body.parts {
            _ if body.window > 0 => {
                let items = items_content(seed, inputs, body, refs);
                let mark = mark_of(&items, 0);
                let all = items.into_iter().enumerate();
                self.objects.extend(all.map(|(n, item)| (id.item(n as u32), Expected::Value(item))));
                mark
            }
            0 => task_content(seed, inputs.iter().copied(), body.len, refs),
            parts => {
                let parts = parts_content(seed, inputs, parts, refs);
                let mark = mark_of(&parts, 0);
                let all = parts.into_iter().enumerate();
                self.objects.extend(all.map(|(n, part)| (id.element(n as u32), Expected::Value(part))));
                mark
            }
        };
        self.objects.insert(id.output(0), Expected::Value(whole));
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
