//! Simulated drivers and workers: what runs the programs, over the same messages as real ones.

use super::life::Input;
use super::life::{Given, Said, Seen, Told, Written};
use super::node::LINK;
use super::program::{self, Body, Content, End, First, GARBAGE, INLINE_MAX, Locals};
use super::style::{DRAWN, FICKLE, FLAKY};
use super::world::{What, World};
use mobula_base::{ObjectId, TaskId};
use mobula_objstore::depot::Kept;
use mobula_proto::{Failure, FailureKind, TaskSpec, arg, task_id};
use mobula_scheduler::{ClientId, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Values that a worker remembers: few, so that it has forgotten some that are needed.
const RECENT_MAX: usize = 4;

/// What takes long now and then takes this, in nanoseconds.
const LONG_NS: u64 = 200_000_000;

/// Where a worker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    /// With a task given and not begun.
    BeforeStart,
    /// In the middle of a task.
    MidRun,
    /// With its value made, before it says so.
    BeforeReport,
    /// Just after it has said so.
    AfterReport,
}

impl Doom {
    /// All of them.
    pub const ALL: [Doom; 4] = [Doom::BeforeStart, Doom::MidRun, Doom::BeforeReport, Doom::AfterReport];

    /// The point that is reached.
    pub fn point(self) -> &'static str {
        match self {
            Doom::BeforeStart => "worker died before start",
            Doom::MidRun => "worker died in mid-run",
            Doom::BeforeReport => "worker died before its report",
            Doom::AfterReport => "worker died after its report",
        }
    }
}

/// Driver or worker.
#[derive(Default)]
pub struct Client {
    /// Given and not begun.
    pub queue: VecDeque<Given>,
    /// What it made last, as far as others behind may use it.
    pub recent: VecDeque<(ObjectId, Content)>,
    /// What it runs.
    pub run: Option<Run>,
    /// Number of its last run.
    pub runs: u64,
    /// Where it is to die.
    pub doom: Option<Doom>,
    /// How many items are taken of streams that it makes, or is given to make.
    pub taken: BTreeMap<TaskId, u32>,
}

/// A task that runs.
pub struct Run {
    /// Which.
    pub task: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// Who submitted it.
    pub parent: TaskId,
    /// Its children are looked up first.
    pub(super) replay: bool,
    pub(super) seed: u64,
    pub(super) depth: u8,
    pub(super) body: Body,
    pub(super) inputs: Vec<u64>,
    pub(super) next: usize,
    /// What it refers to, in the order in which it came to it.
    pub(super) locals: Locals,
    /// How often it was told where each lies.
    pub(super) pins: BTreeMap<ObjectId, usize>,
    pub(super) children: u64,
    pub(super) puts: u32,
    /// What it has heard of objects.
    pub(super) seen: BTreeMap<ObjectId, Seen>,
    pub(super) asked: BTreeSet<ObjectId>,
    pub(super) waits: Option<Waits>,
    /// It has given its CPU back at least once.
    pub was_blocked: bool,
    /// It waits now, without its CPU.
    pub blocked: bool,
    /// It waits for room now, and keeps its CPU.
    pub stalled: bool,
    /// What it needs.
    pub cpu_milli: u64,
    pub(super) failure: Option<Failure>,
    pub(super) ran_ns: u64,
    /// What is different this time, if it makes something else each time.
    pub(super) mood: u64,
    /// What it submitted on a whim.
    pub(super) whims: Vec<ObjectId>,
    /// Items of its stream that it has made.
    pub(super) made: u32,
    /// Those that nobody else may hold yet, the oldest first.
    pub(super) untaken: VecDeque<ObjectId>,
}

/// What a run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    Value(ObjectId),
    Existence(ObjectId),
    Room(ObjectId),
    /// For the next item of a stream.
    Item(TaskId),
    /// Until so many items of its own are taken.
    Taken(u32),
}

impl World {
    /// Says something to the daemon.
    pub fn say(&mut self, machine: usize, epoch: u64, client: ClientId, said: Said) {
        self.queue.after(LINK, What::Input { machine, epoch, input: Input::Said { client, said } });
    }

    /// A worker process has come up.
    pub fn worker_up(&mut self, machine: usize, epoch: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        if !life.has_job {
            return;
        }
        let worker = life.next_client;
        life.next_client += 1;
        life.clients.insert(worker, Client::default());
        self.input(machine, epoch, Input::Hello { worker });
    }

    /// A worker process dies: its link closes.
    pub fn worker_dies(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let Some(life) = self.life(machine, epoch) else { return };
        let Some(gone) = life.clients.remove(&client) else { return };
        let incarnation = life.incarnation.0;
        // The daemon's core cannot know that what it has given had not begun, or was still to be told.
        let given = gone.queue.front().and_then(|given| task_id(&given.spec.id).ok());
        let next = given.or_else(|| life.first_order(client));
        if let Some(run) = &gone.run {
            self.judges.cause.died(run.task);
            self.judges.redo.died(run.task);
            if !run.was_blocked {
                self.judges.cpu.stopped(incarnation, run.cpu_milli);
            }
        } else if let Some(task) = next {
            self.judges.cause.died(task);
        }
        self.note("worker-dies", machine as u64, incarnation, client, String::new);
        let takes = self.dice.us(30, 3_000);
        self.queue.after(takes, What::Input { machine, epoch, input: Input::Closed { client } });
    }

    /// A client hears from its daemon.
    pub fn client_told(&mut self, machine: usize, epoch: u64, client: ClientId, told: Told) {
        if client == super::life::DRIVER {
            return self.driver_told(machine, epoch, told);
        }
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) else {
            // The daemon does not know yet that the worker is gone: as far as it can tell, this has begun.
            if let Told::Run(Given { spec, .. }) = told
                && let Ok(task) = task_id(&spec.id)
            {
                self.judges.cause.died(task);
            }
            return;
        };
        match told {
            Told::Run(given) => {
                if let Some(run) = worker.run.as_ref().filter(|run| run.blocked || run.stalled) {
                    let returned = task_id(&given.spec.id).into_iter().collect();
                    let said = if run.stalled { Said::Stalled(returned) } else { Said::Blocked(returned) };
                    self.sometimes.hit("worker bounced a task");
                    return self.say(machine, epoch, client, said);
                }
                worker.queue.push_back(given);
                self.next_run(machine, epoch, client);
            }
            Told::Ready { object, value } => {
                let place = matches!(value, Seen::Here(Value::Shared { .. }));
                // A reference that was dropped meanwhile: nobody wants the value.
                let Some(run) = worker.run.as_mut().filter(|run| run.refers_to(object)) else {
                    if place {
                        self.say(machine, epoch, client, Said::Unpin(vec![object]));
                    }
                    return;
                };
                *run.pins.entry(object).or_default() += usize::from(place);
                let item = match &value {
                    Seen::Here(value) if object.item().is_some() => Some(value.clone()),
                    Seen::Here(_) | Seen::Elsewhere(_) | Seen::Failed(_) => None,
                };
                run.seen.insert(object, value);
                let is_awaited = match run.waits {
                    Some(Waits::Value(id) | Waits::Existence(id)) => id == object,
                    Some(Waits::Item(task)) => task.output(0) == object,
                    Some(Waits::Room(_) | Waits::Taken(_)) | None => false,
                };
                if let Some(value) = item {
                    // It looks at once.
                    let content = self.read(machine, &value);
                    self.judge_read(machine, epoch, client, object, &content);
                }
                if is_awaited {
                    self.go_on(machine, epoch, client);
                }
            }
            Told::Made { task, items } => {
                let Some(run) = worker.run.as_mut() else { return };
                if let Some(flow) = run.locals.flow_from(task) {
                    flow.made = items.max(flow.made);
                }
                if run.waits == Some(Waits::Item(task)) {
                    self.go_on(machine, epoch, client);
                }
            }
            Told::Taken { task, items } => {
                let is_meant = |given: &Given| task_id(&given.spec.id).is_ok_and(|id| id == task);
                let runs = worker.run.as_ref().is_some_and(|run| run.task == task);
                if runs || worker.queue.iter().any(is_meant) {
                    let taken = worker.taken.entry(task).or_default();
                    *taken = items.max(*taken);
                }
                if runs && matches!(worker.run.as_ref().and_then(|run| run.waits), Some(Waits::Taken(_))) {
                    self.go_on(machine, epoch, client);
                }
            }
            Told::RoomWaits(object) => self.stall(machine, epoch, client, object),
            Told::Recall(objects) => self.give_back(machine, epoch, client, &objects),
            Told::Stop { task, attempt } => self.stop(machine, epoch, client, task, attempt),
            Told::Created { object, room } => self.created(machine, epoch, client, object, room),
        }
    }

    /// There is no room yet for what a task makes: it waits, and nothing else begins here meanwhile.
    fn stall(&mut self, machine: usize, epoch: u64, client: ClientId, object: ObjectId) {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) else {
            return;
        };
        let waits = |run: &&mut Run| run.waits == Some(Waits::Room(object)) && !run.stalled;
        let Some(run) = worker.run.as_mut().filter(waits) else { return };
        run.stalled = true;
        let returned = worker.queue.drain(..).filter_map(|given| task_id(&given.spec.id).ok()).collect();
        self.sometimes.hit("worker waited for room");
        self.say(machine, epoch, client, Said::Stalled(returned));
    }

    /// Room is short: what the task does not look at just now it can ask for again.
    fn give_back(&mut self, machine: usize, epoch: u64, client: ClientId, objects: &[ObjectId]) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let mut given_back = Vec::new();
        for object in objects {
            let times = run.pins.remove(object).unwrap_or(0);
            if times > 0 {
                run.seen.remove(object);
                run.asked.remove(object);
                given_back.extend(std::iter::repeat_n(*object, times));
            }
        }
        if !given_back.is_empty() {
            self.sometimes.hit("value given back for room");
            self.say(machine, epoch, client, Said::Unpin(given_back));
        }
    }

    /// An attempt is to stop. What has not begun will not; what runs may hear of it or not, and then its worker
    /// is killed.
    fn stop(&mut self, machine: usize, epoch: u64, client: ClientId, task: TaskId, attempt: u32) {
        let heeds = self.dice.permille(600);
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) else {
            return;
        };
        let failure = || Failure::new(FailureKind::FailureCancelled, "told to stop");
        let is_meant =
            |given: &Given| given.attempt == attempt && task_id(&given.spec.id).is_ok_and(|id| id == task);
        if let Some(at) = worker.queue.iter().position(is_meant) {
            worker.queue.remove(at);
            worker.recent.retain(|(made, _)| made.task != task);
            let (value, contains) = (Err(failure()), Vec::new());
            let said = Said::Finished { task, attempt, value, contains, ran_ns: 0, elements: Vec::new() };
            return self.say(machine, epoch, client, said);
        }
        let Some(run) = worker.run.as_mut().filter(|run| run.task == task && run.attempt == attempt) else {
            return;
        };
        if heeds && !matches!(run.waits, Some(Waits::Room(_))) {
            run.waits = None;
            run.failure = Some(failure());
            self.sometimes.hit("worker stopped a task");
            self.unblock(machine, epoch, client);
            self.end_run(machine, epoch, client);
        }
    }

    /// Begins the next task, if none runs.
    fn next_run(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let Some(life) = self.life(machine, epoch) else { return };
        let incarnation = life.incarnation.0;
        let Some(worker) = life.clients.get_mut(&client).filter(|worker| worker.run.is_none()) else {
            return;
        };
        if worker.queue.is_empty() {
            return;
        }
        if worker.doom == Some(Doom::BeforeStart) {
            self.sometimes.hit("worker died before start");
            return self.worker_dies(machine, epoch, client);
        }
        let Some(Given { spec, attempt, args, made }) = worker.queue.pop_front() else { return };
        // What an earlier attempt made is not to be taken for what this one makes, which may fail.
        worker.recent.retain(|(made, _)| task_id(&spec.id).is_ok_and(|task| made.task != task));
        let made_here = |(at, id): &(usize, ObjectId)| {
            worker.recent.iter().find(|(made, _)| made == id).map(|(_, content)| (*at, content.clone()))
        };
        let recent: BTreeMap<usize, Content> = made.iter().filter_map(made_here).collect();
        if recent.len() < made.len() {
            self.sometimes.hit("worker had not made an argument");
            task_id(&spec.id).into_iter().for_each(|id| self.say(machine, epoch, client, Said::NotBegun(id)));
            return self.next_run(machine, epoch, client);
        }
        if !made.is_empty() {
            self.sometimes.hit("worker used what it had made");
        }
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) else {
            return;
        };
        worker.runs += 1;
        let number = worker.runs;
        let content = |(at, value)| recent.get(&at).cloned().unwrap_or_else(|| self.read(machine, value));
        let contents: Vec<Content> = args.iter().enumerate().skip(1).map(content).collect();
        let Some(mut run) = Run::new(&self.options.style, &spec, attempt, &contents) else {
            return self.judges.harness("a task without its number".into());
        };
        if run.body.moody {
            run.mood = self.dice.bits();
        }
        let (task, attempt) = (run.task, run.attempt);
        let took = made.iter().map(|(_, id)| *id).collect();
        self.judges.behind.begins((incarnation, client), task, took);
        self.say(machine, epoch, client, Said::ArgsTaken(task));
        self.judges.started(task, attempt, incarnation, self.queue.now(), &mut self.sometimes);
        let what = super::mix(task.run.0 as u64, u64::from(attempt));
        self.note("runs", machine as u64, incarnation, what, || format!("{task} attempt {attempt}"));
        self.judges.cpu.started(incarnation, run.cpu_milli);
        if self.options.style.commits {
            self.judges.durable.started(task, self.judges.order.was_committed(task));
        }
        self.judges.placed.started(task, run.body.place, machine);
        if !run.locals.all.is_empty() {
            self.say(machine, epoch, client, Said::Held(run.locals.all.clone()));
        }
        if let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) {
            worker.run = Some(run);
        }
        self.queue.after(Duration::from_micros(5), What::Worked { machine, epoch, client, run: number });
    }

    /// What lies in a machine's memory; what was freed under a reader reads as something else.
    pub(super) fn read(&self, machine: usize, value: &Value) -> Content {
        let life = self.machines[machine].life.as_deref();
        life.and_then(|life| life.content(value)).unwrap_or(GARBAGE)
    }

    /// What a machine's store has of an object.
    fn content_of(&self, machine: usize, object: ObjectId) -> Option<Content> {
        let machine = &self.machines[machine];
        let life = machine.life.as_deref()?;
        match life.store.get(object)? {
            Kept::Memory(place) => life.memory.get(&place.offset).cloned(),
            Kept::File(file) => {
                machine.disk.files.get(&file.id(object)).map(|(_, content, _)| content.clone())
            }
        }
    }

    /// What becomes of a large value that was made: where something else lies as that already, what an earlier attempt
    /// made stands, if the job accepts that.
    pub(super) fn that_stands(
        &self,
        machine: usize,
        object: ObjectId,
        room: &Result<Option<u32>, Failure>,
        made: Content,
    ) -> Content {
        match room {
            Ok(Some(crc)) if self.options.style.accepts && *crc != made.crc() => {
                self.content_of(machine, object).unwrap_or(GARBAGE)
            }
            _ => made,
        }
    }

    pub(super) fn run_of(&mut self, machine: usize, epoch: u64, client: ClientId) -> Option<&mut Run> {
        self.life(machine, epoch)?.clients.get_mut(&client)?.run.as_mut()
    }

    fn doom_of(&mut self, machine: usize, epoch: u64, client: ClientId) -> Option<Doom> {
        self.life(machine, epoch)?.clients.get(&client)?.doom
    }

    /// A task has done all it does.
    pub(super) fn end_run(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let doomed = self.doom_of(machine, epoch, client) == Some(Doom::BeforeReport);
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let first = if run.attempt == 1 { run.body.first } else { First::Same };
        if run.failure.is_none() {
            let error = |text| Some(Failure::new(FailureKind::FailureUserError, text));
            match (run.body.end, first) {
                (End::Poison, _) | (_, First::Dies) => return self.worker_dies(machine, epoch, client),
                // It is told to stop, or killed.
                (End::Hang, _) | (_, First::Hangs) => return self.sometimes.hit("task hangs"),
                (End::Error, _) => run.failure = error(DRAWN),
                (_, First::Fails) => run.failure = error(FLAKY),
                _ if run.fails_this_time() => run.failure = error(FICKLE),
                (End::Value, First::Same) => {}
            }
        }
        let (object, len) = (run.task.output(0), run.body.len);
        if run.failure.is_none() && len > INLINE_MAX && run.body.parts == 0 && run.body.window == 0 {
            run.waits = Some(Waits::Room(object));
            return self.say(machine, epoch, client, Said::Create { object, len });
        }
        if doomed {
            self.sometimes.hit("worker died before its report");
            return self.worker_dies(machine, epoch, client);
        }
        let value = match run.failure.take() {
            Some(failure) => Err(failure),
            None if run.body.window > 0 => Ok(Written::Inline(program::mark_of(&run.items(), run.mood))),
            None if run.body.parts > 0 => Ok(Written::Inline(program::mark_of(&run.parts(), run.mood))),
            None => Ok(Written::Inline(run.content())),
        };
        self.finish(machine, epoch, client, value);
    }

    /// There is room for a task's large value (or none, or it is there already).
    pub(super) fn report_value(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        room: Result<Option<u32>, Failure>,
    ) {
        if self.doom_of(machine, epoch, client) == Some(Doom::BeforeReport) {
            self.sometimes.hit("worker died before its report");
            return self.worker_dies(machine, epoch, client);
        }
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let (object, content) = (run.task.output(0), run.content());
        let content = self.that_stands(machine, object, &room, content);
        let value = same(room, &content).map(|()| Written::Shared(content));
        self.finish(machine, epoch, client, value);
    }

    /// Reports how a task ended: what it referred to is dropped before, but for what lies in its value.
    fn finish(&mut self, machine: usize, epoch: u64, client: ClientId, value: Result<Written, Failure>) {
        let Some(life) = self.life(machine, epoch) else { return };
        let incarnation = life.incarnation.0;
        let Some(worker) = life.clients.get_mut(&client) else { return };
        let dies = worker.doom == Some(Doom::AfterReport);
        let Some(run) = worker.run.take() else { return };
        worker.taken.remove(&run.task);
        let elements = if value.is_ok() { run.parts() } else { Vec::new() };
        if let Ok(Written::Inline(content)) = &value
            && content.refs.is_empty()
            && elements.is_empty()
            && run.body.window == 0
        {
            worker.recent.push_back((run.task.output(0), content.clone()));
            if worker.recent.len() > RECENT_MAX {
                worker.recent.pop_front();
            }
        }
        if !run.was_blocked {
            self.judges.cpu.stopped(incarnation, run.cpu_milli);
        }
        let contains = match &value {
            Ok(Written::Inline(content) | Written::Shared(content)) => content.refs.clone(),
            Err(_) => Vec::new(),
        };
        let unpin: Vec<ObjectId> =
            run.pins.iter().flat_map(|(object, times)| std::iter::repeat_n(*object, *times)).collect();
        // A stream is dropped before what was taken of it.
        for flow in &run.locals.flows {
            self.say(machine, epoch, client, Said::Take { task: flow.task, first: flow.taken, over: true });
        }
        let marks: Vec<ObjectId> = run.marks().collect();
        let all = run.locals.all.iter().chain(&run.whims).chain(&run.untaken).chain(&marks).copied();
        let lies_inside = |object: &ObjectId| {
            contains.contains(object) || elements.iter().any(|element| element.refs.contains(object))
        };
        let (inside, dropped): (Vec<_>, Vec<_>) = all.partition(lies_inside);
        for said in [Said::Unpin(unpin), Said::Dropped(dropped)] {
            self.say(machine, epoch, client, said);
        }
        let (task, attempt, ran_ns) = (run.task, run.attempt, run.ran_ns.max(1));
        if let Err(failure) = &value
            && run.body.goes_on_after(&failure.message)
        {
            self.judges.tries_again(task);
            self.sometimes.hit("task failed and may run again");
        }
        self.judge_returned(task, attempt, run.replay, incarnation, &inside);
        self.judges.ended.finished(task, attempt, incarnation);
        if !elements.is_empty() {
            self.sometimes.hit("task returned in parts");
        }
        if run.made > 0 && value.is_ok() {
            self.sometimes.hit("task returned a stream");
        }
        let said = Said::Finished { task, attempt, value, contains, ran_ns, elements };
        self.say(machine, epoch, client, said);
        if !inside.is_empty() {
            self.say(machine, epoch, client, Said::Dropped(inside));
        }
        if dies {
            self.sometimes.hit("worker died after its report");
            return self.worker_dies(machine, epoch, client);
        }
        self.next_run(machine, epoch, client);
    }
}

/// What is there already must be the same.
pub(super) fn same(room: Result<Option<u32>, Failure>, content: &Content) -> Result<(), Failure> {
    match room? {
        Some(there) if there != content.crc() => Err(Failure::new(
            FailureKind::FailureDiverged,
            "the task made other bytes than an attempt before it: it is not deterministic",
        )),
        Some(_) | None => Ok(()),
    }
}

impl Run {
    fn new(style: &program::Style, spec: &TaskSpec, attempt: u32, contents: &[Content]) -> Option<Self> {
        let Some(arg::Arg::Value(what)) = spec.args.first().and_then(|arg| arg.arg.as_ref()) else {
            return None;
        };
        let ((seed, depth, nested), task) = (program::read_what(what)?, task_id(&spec.id).ok()?);
        let body = style.body(seed, depth);
        let mut locals = Locals::new(task, nested);
        for content in contents {
            locals.take(None, &content.refs);
        }
        Some(Run {
            task,
            attempt,
            parent: task_id(&spec.parent).unwrap_or_default(),
            replay: spec.replay || attempt > 1,
            seed,
            depth,
            cpu_milli: u64::from(body.cpu_milli),
            body,
            inputs: contents.iter().map(|content| content.hash).collect(),
            next: 0,
            locals,
            pins: BTreeMap::new(),
            children: 0,
            puts: 0,
            seen: BTreeMap::new(),
            asked: BTreeSet::new(),
            waits: None,
            was_blocked: false,
            blocked: false,
            stalled: false,
            failure: None,
            ran_ns: 0,
            mood: 0,
            whims: Vec::new(),
            made: 0,
            untaken: VecDeque::new(),
        })
    }

    fn refers_to(&self, object: ObjectId) -> bool {
        self.locals.all.contains(&object)
            || self.whims.contains(&object)
            || self.marks().any(|mark| mark == object)
    }

    /// What stands for the streams that it takes from.
    fn marks(&self) -> impl Iterator<Item = ObjectId> {
        self.locals.flows.iter().map(|flow| flow.task.output(0))
    }

    /// What it waits for, if it does.
    pub fn waits_for(&self) -> Option<(TaskId, ObjectId)> {
        match self.waits? {
            Waits::Value(object) | Waits::Existence(object) | Waits::Room(object) => {
                Some((self.task, object))
            }
            Waits::Item(task) => Some((self.task, task.output(0))),
            Waits::Taken(_) => Some((self.task, self.task.item(self.made))),
        }
    }

    /// Its elements, if it returns such.
    fn parts(&self) -> Vec<Content> {
        let refs = self.locals.for_value(&self.body.returns);
        self.in_mood(program::parts_content(self.seed, &self.inputs, self.body.parts, refs))
    }

    /// The items of its stream.
    pub(super) fn items(&self) -> Vec<Content> {
        let refs = self.locals.for_value(&self.body.returns);
        self.in_mood(program::items_content(self.seed, &self.inputs, &self.body, refs))
    }

    fn in_mood(&self, contents: Vec<Content>) -> Vec<Content> {
        contents.into_iter().map(|content| Content { mood: self.mood, ..content }).collect()
    }

    /// Whether it fails this time, as it pleases.
    fn fails_this_time(&self) -> bool {
        self.body.fickle && self.mood.is_multiple_of(4)
    }

    /// How long it computes this time.
    pub(super) fn takes(&self, ns: u64) -> u64 {
        if self.body.fickle && self.mood % 4 == 1 { ns.max(LONG_NS) } else { ns }
    }

    fn content(&self) -> Content {
        let refs = self.locals.for_value(&self.body.returns);
        let content = program::task_content(self.seed, self.inputs.iter().copied(), self.body.len, refs);
        Content { mood: self.mood, ..content }
    }
}
