//! The driver: submits tasks and puts by the clock, gets some of what they make, and all of it at the end.

use super::life::{DRIVER, Input, Said, Seen, Told};
use super::node::LINK;
use super::options::Options;
use super::program::{Content, Flow, GARBAGE, INLINE_MAX, JOB, Oracle};
use super::script::{self, Script, Step};
use super::worker::Client;
use super::world::{What, World};
use mobula_base::{Instant, ObjectId, TaskId};
use mobula_proto::{JobStart, call};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A stream that the driver takes from.
struct Taking {
    flow: Flow,
    /// So many it wants.
    wanted: u32,
    /// Its task has ended.
    over: bool,
    /// It has seen its end.
    ended: bool,
}

impl Taking {
    fn of(task: TaskId, items: u32) -> Self {
        Taking { flow: Flow::new(task, items, false), wanted: 0, over: false, ended: false }
    }

    /// Whether nothing is wanted that may still come.
    fn has_all(&self) -> bool {
        self.over || self.flow.taken >= self.wanted
    }
}

/// The driver of the one job.
pub struct Driver {
    /// What it does when, counted from its connection.
    script: Script,
    next: usize,
    connected: Option<Instant>,
    epoch: u64,
    /// Large puts that wait for room.
    rooms: BTreeMap<ObjectId, Content>,
    /// What it refers to: made, or taken out of values.
    pub made: BTreeSet<ObjectId>,
    /// To be dropped once answered.
    dropping: BTreeSet<ObjectId>,
    /// The streams that it takes from.
    streams: BTreeMap<TaskId, Taking>,
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

impl Driver {
    /// Writes the script, and runs it in the oracle.
    pub fn new(options: &Options, oracle: &mut Oracle) -> Self {
        let script = script::write(&options.script(), oracle);
        Driver {
            script,
            next: 0,
            connected: None,
            epoch: 0,
            rooms: BTreeMap::new(),
            made: BTreeSet::new(),
            dropping: BTreeSet::new(),
            streams: BTreeMap::new(),
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
    pub fn into_script(self) -> Script {
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
            || (self.next == self.script.len()
                && self.wanted.is_empty()
                && self.streams.values().all(Taking::has_all)
                && self.connected.is_some())
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

    /// Whether an object is what stands for a stream that it takes from.
    fn is_mark(&self, object: ObjectId) -> bool {
        object == object.task.output(0) && self.streams.contains_key(&object.task)
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

impl World {
    /// The driver's node is up: the job is committed first.
    pub fn driver_connects(&mut self, epoch: u64, incarnation: u64) {
        if self.driver.connected.is_some() || self.driver.lost {
            return;
        }
        let (name, counted) = ("simulated".into(), self.options.counts);
        let hedge_permille = self.options.style.hedge_permille;
        let start =
            JobStart { name, incarnation, job: JOB.0, counted, hedge_permille, ..JobStart::default() };
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
        if let Some(dies) = self.options.driver_dies {
            self.queue.after(dies, What::DriverDies);
        }
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
                self.driver_wants_all_items();
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
                self.driver.made.extend(task.outputs(&self.options.style));
                if let Some(items) = task.stream(&self.options.style) {
                    self.driver.streams.insert(task.id, Taking::of(task.id, items));
                    if let Some(who) = self.who(0, epoch, DRIVER) {
                        self.judges.one.takes(who, task.id);
                    }
                }
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
            Step::Take(task) => self.driver_wants_item(task),
            Step::EndStream(task) => self.driver_ends_stream(task),
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
        for task in self.driver.streams.keys().copied().collect::<Vec<_>>() {
            self.driver_ends_stream(task);
        }
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
        if std::mem::replace(&mut self.driver.gone, true) {
            return;
        }
        self.driver.next = self.driver.script.len();
        self.driver.made.clear();
        self.driver.streams.clear();
        let Some(life) = self.life(0, epoch) else { return };
        life.clients.remove(&DRIVER);
        self.queue.after(LINK, What::Input { machine: 0, epoch, input: Input::Closed { client: DRIVER } });
        self.say(0, epoch, DRIVER, Said::EndJob);
    }

    /// One more item of a stream is wanted.
    fn driver_wants_item(&mut self, task: TaskId) {
        if let Some(taking) = self.driver.streams.get_mut(&task) {
            taking.wanted += 1;
            self.driver_takes_items(task, None);
        }
    }

    /// All that is left of the streams is wanted.
    fn driver_wants_all_items(&mut self) {
        for task in self.driver.streams.keys().copied().collect::<Vec<_>>() {
            if let Some(taking) = self.driver.streams.get_mut(&task) {
                taking.wanted = taking.flow.items;
                self.driver_takes_items(task, None);
            }
        }
    }

    /// Takes what is wanted of a stream and there; `mark` is its task's value, if that is told.
    fn driver_takes_items(&mut self, task: TaskId, mark: Option<&Seen>) {
        let (epoch, now) = (self.driver.epoch, self.now());
        let Some(taking) = self.driver.streams.get_mut(&task) else { return };
        let object = task.output(0);
        match mark {
            Some(Seen::Here(value)) => {
                // It ended: so many items there are, whoever took them.
                taking.flow.made = taking.flow.items;
                taking.over = true;
                let life = self.machines[0].life.as_deref();
                let content = life.and_then(|life| life.content(value)).unwrap_or(GARBAGE);
                self.judge_read(0, epoch, DRIVER, object, &content);
            }
            Some(Seen::Failed(failure)) => {
                taking.over = true;
                self.judges.failed(&self.oracle, object, failure, now, &mut self.sometimes);
            }
            Some(Seen::Elsewhere(_)) => {
                self.say(0, epoch, DRIVER, Said::Get { object, want_value: true });
            }
            None => {}
        }
        let Some(taking) = self.driver.streams.get_mut(&task) else { return };
        let (first, upto) = (taking.flow.taken, taking.wanted.min(taking.flow.made));
        taking.flow.taken = upto.max(first);
        // Whoever wants more finds that there is none.
        taking.ended |= taking.over && taking.wanted > taking.flow.made;
        for n in first..upto {
            self.sometimes.hit("item taken by the driver");
            let item = task.item(n);
            self.say(0, epoch, DRIVER, Said::Take { task, first: n, over: false });
            self.driver.made.insert(item);
            self.driver_wants(item);
        }
    }

    /// The driver drops a stream. What is taken of it stays, and is not made again.
    fn driver_ends_stream(&mut self, task: TaskId) {
        let epoch = self.driver.epoch;
        let Some(taking) = self.driver.streams.remove(&task) else { return };
        if !taking.ended {
            self.sometimes.hit("stream dropped by the driver");
            self.judges.cause.cancelled(task, false);
            self.say(0, epoch, DRIVER, Said::Cancel(task, false));
        }
        self.say(0, epoch, DRIVER, Said::Take { task, first: taking.flow.taken, over: true });
        self.say(0, epoch, DRIVER, Said::Dropped(vec![task.output(0)]));
    }

    fn driver_wants(&mut self, object: ObjectId) {
        if self.driver.made.contains(&object) && self.driver.wanted.insert(object) {
            let epoch = self.driver.epoch;
            self.say(0, epoch, DRIVER, Said::Get { object, want_value: true });
        }
    }

    /// What it wants may lie in a file of its node.
    fn driver_asks_again(&mut self, object: ObjectId) {
        if self.driver.wanted.contains(&object) {
            let epoch = self.driver.epoch;
            self.say(0, epoch, DRIVER, Said::Get { object, want_value: true });
        }
    }

    /// Room is short: it has read what it was told of.
    fn driver_gives_back(&mut self, objects: Vec<ObjectId>) {
        let pins = &mut self.driver.pins;
        let times =
            objects.into_iter().filter_map(|object| pins.remove(&object).map(|times| (object, times)));
        let back: Vec<ObjectId> =
            times.flat_map(|(object, times)| std::iter::repeat_n(object, times)).collect();
        let epoch = self.driver.epoch;
        self.say(0, epoch, DRIVER, Said::Unpin(back));
    }

    /// The driver hears from its daemon.
    pub fn driver_told(&mut self, machine: usize, epoch: u64, told: Told) {
        if machine != 0 || epoch != self.driver.epoch || self.driver.gone {
            return;
        }
        let now = self.now();
        match told {
            Told::Ready { object, value } if self.driver.is_mark(object) => {
                self.driver_takes_items(object.task, Some(&value));
            }
            Told::Made { task, items } => {
                if let Some(taking) = self.driver.streams.get_mut(&task) {
                    taking.flow.made = items.max(taking.flow.made);
                    self.driver_takes_items(task, None);
                }
            }
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
                self.judge_read(0, epoch, DRIVER, object, &content);
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
            Told::Ready { object, value: Seen::Elsewhere(_) } => self.driver_asks_again(object),
            Told::Recall(objects) => self.driver_gives_back(objects),
            Told::RoomWaits(_) | Told::Run(_) | Told::Stop { .. } | Told::Taken { .. } => {}
        }
    }
}
