//! The driver: submits tasks and puts by the clock, gets some of what they make, and all of it at the end.

use super::dice::Dice;
use super::life::{DRIVER, Input, Said, Seen, Told};
use super::node::LINK;
use super::options::Options;
use super::program::{self, Content, Expected, GARBAGE, INLINE_MAX, JOB, Oracle, Submission};
use super::worker::Client;
use super::world::{What, World};
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{Instant, ObjectId, TaskId};
use mobula_proto::{JobStart, call};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
}

/// The driver of the one job.
pub struct Driver {
    /// What it does when, counted from its connection.
    script: Vec<(Duration, Step)>,
    next: usize,
    connected: Option<Instant>,
    epoch: u64,
    /// Large puts that wait for room.
    rooms: BTreeMap<ObjectId, Content>,
    /// What it refers to: made, or taken out of values.
    pub made: BTreeSet<ObjectId>,
    /// To be dropped once answered.
    dropping: BTreeSet<ObjectId>,
    /// How often it was told where each lies.
    pins: BTreeMap<ObjectId, usize>,
    /// Wanted and not answered.
    pub wanted: BTreeSet<ObjectId>,
    /// Answered, with a value.
    pub values: u64,
    /// Answered, with a failure.
    pub failures: u64,
    want_all: bool,
    /// Its link broke: its node died.
    pub lost: bool,
    /// The end of the job is committed.
    pub ended: bool,
    /// It died, and its job with it.
    pub gone: bool,
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

impl Driver {
    /// Writes the script, and runs it in the oracle.
    pub fn new(options: &Options, oracle: &mut Oracle) -> Self {
        let mut script = Vec::new();
        let dice = &mut Dice::new(options.seed, "driver");
        let root = TaskId::root(JOB);
        let (mut tasks, mut puts) = (0, 0);
        let mut known: Vec<ObjectId> = Vec::new();
        let mut at = Duration::from_millis(200);
        let (rate, burst) = options.rate;
        let end = options.faults_end.saturating_sub(Duration::from_millis(300));
        while at < end {
            let many = dice.from_to(1, burst * 2);
            let shape = dice.pick(&[
                Shape::Chain,
                Shape::FanOut,
                Shape::FanIn,
                Shape::Random,
                Shape::Random,
                Shape::Again,
            ]);
            let old = dice.pick(&known);
            let mut group: Vec<ObjectId> = Vec::new();
            for n in 0..many {
                let mut refs = options.style.pick_refs(dice, &group);
                if dice.permille(80) {
                    let object = root.output(FIRST_PUT_SLOT + puts);
                    puts += 1;
                    let large = dice.permille(options.style.large_permille);
                    let len = if large { dice.log_uniform(INLINE_MAX + 1, 2_000_000) } else { 16 };
                    let content = program::put_content(dice.bits(), len, refs);
                    oracle.objects.insert(object, Expected::Value(content.clone()));
                    script.push((at, Step::Put { object, content }));
                    group.push(object);
                    continue;
                }
                let id = TaskId::new(JOB, root, 0, tasks);
                tasks += 1;
                let args = match (shape, old) {
                    // Whoever runs it looks for it, or whoever submitted it does.
                    (Some(Shape::Again), Some(old)) if n % 2 == 0 => {
                        refs = vec![old];
                        Vec::new()
                    }
                    (Some(Shape::Again), Some(old)) => vec![old],
                    _ => pick_args(dice, shape.unwrap_or(Shape::Random), &group, &known, n + 1 == many),
                };
                let (seed, depth) = (dice.bits(), options.style.depth);
                let task = Submission { id, parent: root, seed, depth, args, nested: refs };
                oracle.run(&options.style, &task);
                script.push((at, Step::Submit(task)));
                group.push(id.output(0));
            }
            for object in &group {
                if dice.permille(300) {
                    let later = Duration::from_millis(dice.log_uniform(5, 4_000));
                    script.push(((at + later).min(end), Step::Get(*object)));
                }
            }
            // Some are wanted for what lies inside, and dropped at once.
            let mut left = Vec::new();
            for object in group {
                if dice.permille(options.drop_permille / 4) {
                    let later = (at + Duration::from_millis(dice.log_uniform(5, 4_000))).min(end);
                    script.extend([(later, Step::Get(object)), (later, Step::Drop(object))]);
                } else {
                    left.push(object);
                }
            }
            known.extend(left);
            // Nothing that comes later names what is dropped here.
            let many = known.len().saturating_sub(dice.from_to(10, 64) as usize);
            for object in known.drain(..many) {
                if dice.permille(options.drop_permille) {
                    script.push((at, Step::Drop(object)));
                }
            }
            at += Duration::from_millis(dice.from_to(1, 2 * 1000 * (burst + 1).div_ceil(2) / rate).max(1));
        }
        script.extend(cancels(&script, options, end));
        script.sort_by_key(|(at, _)| *at);
        if !options.without.is_empty() {
            (script, *oracle) = left_of(script, options);
        }
        Driver {
            script,
            next: 0,
            connected: None,
            epoch: 0,
            rooms: BTreeMap::new(),
            made: BTreeSet::new(),
            dropping: BTreeSet::new(),
            pins: BTreeMap::new(),
            wanted: BTreeSet::new(),
            values: 0,
            failures: 0,
            want_all: false,
            lost: false,
            ended: false,
            gone: false,
        }
    }

    /// What it does when, counted from its connection: for a driver of another layer.
    pub fn into_script(self) -> Vec<(Duration, Step)> {
        let is_for_all = |(_, step): &(Duration, Step)| !matches!(step, Step::Cancel(..));
        self.script.into_iter().filter(is_for_all).collect()
    }

    /// How many steps it takes.
    pub fn steps(&self) -> usize {
        self.script.len()
    }

    /// All that was made is wanted now.
    pub fn want_all(&mut self) {
        self.want_all = true;
    }

    /// Whether everything it wanted was answered.
    pub fn is_content(&self) -> bool {
        self.lost
            || self.gone
            || (self.next == self.script.len() && self.wanted.is_empty() && self.connected.is_some())
    }

    /// What it refers to, but for what it has not put yet.
    pub fn held(&self) -> impl Iterator<Item = ObjectId> {
        self.made
            .iter()
            .copied()
            .filter(|object| !self.rooms.contains_key(object) && !self.dropping.contains(object))
    }

    /// Whether the program refers to an object.
    pub fn refers_to(&self, object: ObjectId) -> bool {
        self.made.contains(&object) && !self.rooms.contains_key(&object) && !self.dropping.contains(&object)
    }

    /// Its node died.
    pub fn link_lost(&mut self) {
        self.lost |= self.connected.is_some();
    }

    /// When its next step is due.
    fn due(&self) -> Option<Instant> {
        let (after, _) = self.script.get(self.next)?;
        Some(self.connected? + *after)
    }
}

/// How many steps the driver of a run takes when none is left out.
pub fn steps(options: &Options) -> usize {
    let all = Options { without: BTreeSet::new(), ..options.clone() };
    Driver::new(&all, &mut Oracle::default()).steps()
}

/// Some tasks are cancelled, before they begin, while they run, or when they have ended.
fn cancels(script: &[(Duration, Step)], options: &Options, end: Duration) -> Vec<(Duration, Step)> {
    let dice = &mut Dice::new(options.seed, "cancels");
    let mut cancels = Vec::new();
    for (at, step) in script {
        if let Step::Submit(task) = step
            && dice.permille(options.style.cancel_permille)
        {
            let later = *at + Duration::from_millis(dice.log_uniform(1, 2_000));
            cancels.push((later.min(end), Step::Cancel(task.id.output(0), dice.permille(500))));
        }
    }
    cancels
}

/// A script without some of its steps, nor what takes the values that these would have made; and what is
/// left must come to.
fn left_of(script: Vec<(Duration, Step)>, options: &Options) -> (Vec<(Duration, Step)>, Oracle) {
    let (mut left, mut oracle) = (Vec::new(), Oracle::default());
    for (number, (at, step)) in script.into_iter().enumerate() {
        let there = |object: &ObjectId| oracle.objects.contains_key(object);
        let possible = match &step {
            Step::Submit(task) => task.args.iter().chain(&task.nested).all(there),
            Step::Put { content, .. } => content.refs.iter().all(there),
            Step::Get(object) | Step::Drop(object) | Step::Cancel(object, _) => there(object),
        };
        if !possible || options.without.contains(&number) {
            continue;
        }
        match &step {
            Step::Submit(task) => oracle.run(&options.style, task),
            Step::Put { object, content } => {
                oracle.objects.insert(*object, Expected::Value(content.clone()));
            }
            Step::Get(_) | Step::Drop(_) | Step::Cancel(..) => {}
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

impl World {
    /// The driver's node is up: the job is committed first.
    pub fn driver_connects(&mut self, epoch: u64, incarnation: u64) {
        if self.driver.connected.is_some() || self.driver.lost {
            return;
        }
        let (name, counted) = ("simulated".into(), self.options.counts);
        let start = JobStart { name, incarnation, job: JOB.0, counted, ..JobStart::default() };
        self.driver.epoch = epoch;
        self.call(0, epoch, call::Op::JobStart(start));
    }

    /// The start of the job is committed.
    pub fn job_started(&mut self, machine: usize, epoch: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        life.clients.insert(DRIVER, Client::default());
        self.driver.connected = Some(self.queue.now());
        self.input(machine, epoch, Input::DriverUp);
        self.queue.after(Duration::from_millis(1), What::Drive);
    }

    /// The driver's steps that are due.
    pub fn drive(&mut self) {
        let now = self.now();
        while self.driver.due().is_some_and(|due| due <= now) {
            let (_, step) = self.driver.script[self.driver.next].clone();
            self.driver.next += 1;
            self.driver_step(step);
        }
        match self.driver.due() {
            Some(due) => self.queue.at(due, What::Drive),
            None if self.driver.want_all => {
                let all: Vec<ObjectId> = self.driver.made.iter().copied().collect();
                all.into_iter().for_each(|object| self.driver_wants(object));
                self.driver.want_all = false;
            }
            None => {}
        }
    }

    fn driver_step(&mut self, step: Step) {
        let epoch = self.driver.epoch;
        match step {
            Step::Cancel(object, recursive) => {
                self.judges.cause.cancelled(object.task, recursive);
                self.say(0, epoch, DRIVER, Said::Cancel(object.task, recursive));
            }
            Step::Submit(task) => {
                let spec = task.spec(&self.options.style, false);
                self.driver.made.insert(task.id.output(0));
                self.say(0, epoch, DRIVER, Said::Submit(Box::new(spec)));
            }
            Step::Put { object, content } => {
                self.driver.made.insert(object);
                let len = content.len;
                if len <= INLINE_MAX {
                    self.say(0, epoch, DRIVER, Said::Put { object, content });
                } else {
                    self.driver.rooms.insert(object, content);
                    self.say(0, epoch, DRIVER, Said::Create { object, len });
                }
            }
            Step::Get(object) => self.driver_wants(object),
            Step::Drop(object) => self.driver_drops(object),
        }
    }

    fn driver_drops(&mut self, object: ObjectId) {
        // A program that waits for room in a put still has what it puts.
        let lies_in_wait = self.driver.rooms.values().any(|content| content.refs.contains(&object));
        if lies_in_wait || self.driver.wanted.contains(&object) || self.driver.rooms.contains_key(&object) {
            self.driver.dropping.insert(object);
        } else if self.driver.made.remove(&object) {
            let epoch = self.driver.epoch;
            let times = self.driver.pins.remove(&object).unwrap_or(0);
            self.say(0, epoch, DRIVER, Said::Unpin(vec![object; times]));
            self.say(0, epoch, DRIVER, Said::Dropped(vec![object]));
        }
    }

    /// Everything was answered: nothing is referred to any more.
    pub fn driver_drops_all(&mut self) {
        for object in self.driver.made.clone() {
            self.driver_drops(object);
        }
    }

    /// An object is answered: it may have been dropped meanwhile.
    fn driver_answered(&mut self, object: ObjectId) -> bool {
        let wanted = self.driver.wanted.remove(&object);
        if self.driver.dropping.remove(&object) {
            self.driver_drops(object);
        }
        wanted
    }

    /// The driver takes references out of a value that it wanted.
    fn driver_takes(&mut self, refs: &[ObjectId]) {
        let epoch = self.driver.epoch;
        let fresh: Vec<ObjectId> = refs.iter().copied().filter(|id| self.driver.made.insert(*id)).collect();
        if fresh.is_empty() {
            return;
        }
        self.say(0, epoch, DRIVER, Said::Held(fresh.clone()));
        for object in fresh {
            if self.quiet {
                self.driver_wants(object);
            } else if object.task.run.0 as u64 % 1000 < self.options.drop_permille / 2 {
                // Held for a moment only. Should it have been the driver's own, no later step names it.
                self.driver_drops(object);
            }
        }
    }

    /// The driver's process dies: its job ends with its link.
    pub fn driver_dies(&mut self) {
        self.sometimes.hit("driver died");
        let epoch = self.driver.epoch;
        self.driver.gone = true;
        self.driver.next = self.driver.script.len();
        self.driver.made.clear();
        let Some(life) = self.life(0, epoch) else { return };
        life.clients.remove(&DRIVER);
        self.queue.after(LINK, What::Input { machine: 0, epoch, input: Input::Closed { client: DRIVER } });
        self.say(0, epoch, DRIVER, Said::EndJob);
    }

    fn driver_wants(&mut self, object: ObjectId) {
        if self.driver.made.contains(&object) && self.driver.wanted.insert(object) {
            let epoch = self.driver.epoch;
            self.say(0, epoch, DRIVER, Said::Get { object, want_value: true });
        }
    }

    /// The driver hears from its daemon.
    pub fn driver_told(&mut self, machine: usize, epoch: u64, told: Told) {
        if machine != 0 || epoch != self.driver.epoch || self.driver.gone {
            return;
        }
        let now = self.now();
        match told {
            Told::Created { object, room } => {
                let Some(content) = self.driver.rooms.remove(&object) else { return };
                let waited = content.refs.clone();
                match room {
                    Ok(_) => self.say(0, epoch, DRIVER, Said::Seal { object, content }),
                    // A put that found no room: the program knows, and forgets it.
                    Err(_) => {
                        self.sometimes.hit("store full");
                        self.driver.made.remove(&object);
                        self.driver.wanted.remove(&object);
                        self.judges.cause.no_put(object);
                    }
                }
                for object in waited.into_iter().chain([object]) {
                    if self.driver.dropping.remove(&object) {
                        self.driver_drops(object);
                    }
                }
            }
            Told::Ready { object, value: Seen::Here(value) } => {
                let place = matches!(value, mobula_scheduler::Value::Shared { .. });
                if !self.driver.made.contains(&object) {
                    // A reference that was dropped meanwhile: nobody wants the value.
                    return self.say(0, epoch, DRIVER, Said::Unpin(vec![object; usize::from(place)]));
                }
                *self.driver.pins.entry(object).or_default() += usize::from(place);
                let content = self.machines[0].life.as_deref().and_then(|life| life.content(&value));
                let content = content.unwrap_or(GARBAGE);
                self.judges.value.got(&self.oracle, object, &content, now);
                if self.driver.wanted.contains(&object) {
                    self.driver.values += 1;
                    self.driver_takes(&content.refs);
                }
                self.driver_answered(object);
            }
            Told::Ready { object, value: Seen::Failed(failure) } => {
                if !self.driver.made.contains(&object) {
                    return;
                }
                self.judges.failed(&self.oracle, object, &failure, now, &mut self.sometimes);
                if self.driver_answered(object) {
                    self.driver.failures += 1;
                }
            }
            Told::Ready { value: Seen::Elsewhere(_), .. } | Told::Run(_) | Told::Stop { .. } => {}
        }
    }
}
