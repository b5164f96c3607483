//! Simulated drivers and workers: what runs the programs, over the same messages as real ones.

use super::life::Input;
use super::life::{Said, Seen, Told, Written};
use super::node::LINK;
use super::program::{self, Body, Content, End, INLINE_MAX, JOB, Op};
use super::world::{What, World};
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{Failure, FailureKind, TaskSpec, arg, task_id};
use mobula_scheduler::{ClientId, Value};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

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

/// Driver or worker.
#[derive(Default)]
pub struct Client {
    /// Given and not begun.
    pub queue: VecDeque<(Box<TaskSpec>, u32, Vec<Value>)>,
    /// What it runs.
    pub run: Option<Run>,
    /// Number of its last run.
    pub runs: u64,
    /// Where it is to die.
    pub doom: Option<Doom>,
}

/// A task that runs.
pub struct Run {
    /// Which.
    pub task: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// Its children are looked up first.
    replay: bool,
    seed: u64,
    depth: u8,
    body: Body,
    inputs: Vec<u64>,
    next: usize,
    locals: Vec<ObjectId>,
    children: u64,
    puts: u32,
    /// What it has heard of objects.
    seen: BTreeMap<ObjectId, Seen>,
    asked: BTreeMap<ObjectId, bool>,
    waits: Option<Waits>,
    /// It has given its CPU back at least once.
    pub was_blocked: bool,
    /// It waits now, without its CPU.
    pub blocked: bool,
    /// What it needs.
    pub cpu_milli: u64,
    failure: Option<Failure>,
    ran_ns: u64,
}

/// What a run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Value(ObjectId),
    Existence(ObjectId),
    Room(ObjectId),
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
        if let Some(run) = &gone.run {
            self.judges.cause.died(run.task);
            self.judges.redo.died(run.task);
            if !run.was_blocked {
                self.judges.cpu.stopped(incarnation, run.cpu_milli);
            }
        } else if let Some((spec, ..)) = gone.queue.front()
            && let Ok(task) = task_id(&spec.id)
        {
            // The daemon cannot know that it had not begun.
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
            return;
        };
        match told {
            Told::Run { spec, attempt, args } => {
                if worker.run.as_ref().is_some_and(|run| run.blocked) {
                    let returned = task_id(&spec.id).into_iter().collect();
                    self.sometimes.hit("worker bounced a task");
                    return self.say(machine, epoch, client, Said::Blocked(returned));
                }
                worker.queue.push_back((spec, attempt, args));
                self.next_run(machine, epoch, client);
            }
            Told::Ready { object, value } => {
                let Some(run) = &mut worker.run else { return };
                run.seen.insert(object, value);
                if matches!(run.waits, Some(Waits::Value(id) | Waits::Existence(id)) if id == object) {
                    self.go_on(machine, epoch, client);
                }
            }
            Told::Created { object, room } => self.created(machine, epoch, client, object, room),
        }
    }

    /// Begins the next task, if none runs.
    fn next_run(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let style = self.options.style.clone();
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
        let Some((spec, attempt, args)) = worker.queue.pop_front() else { return };
        worker.runs += 1;
        let number = worker.runs;
        let contents: Vec<Content> = args.iter().skip(1).map(|value| self.read(machine, value)).collect();
        let what = spec.args.first().and_then(|arg| arg.arg.as_ref());
        let Some(arg::Arg::Value(what)) = what else {
            return self.judges.harness("a task without its number".into());
        };
        let (Some((seed, depth)), Ok(task)) = (program::read_what(what), task_id(&spec.id)) else { return };
        let body = style.body(seed, depth);
        self.judges.started(task, attempt, incarnation, self.queue.now(), &mut self.sometimes);
        self.note(
            "runs",
            machine as u64,
            incarnation,
            super::trace::mix(task.run.0 as u64, u64::from(attempt)),
            || format!("{task} attempt {attempt}"),
        );
        let run = Run {
            task,
            attempt,
            replay: spec.replay || attempt > 1,
            seed,
            depth,
            cpu_milli: u64::from(body.cpu_milli),
            body,
            inputs: contents.iter().map(|content| content.hash).collect(),
            next: 0,
            locals: Vec::new(),
            children: 0,
            puts: 0,
            seen: BTreeMap::new(),
            asked: BTreeMap::new(),
            waits: None,
            was_blocked: false,
            blocked: false,
            failure: None,
            ran_ns: 0,
        };
        self.judges.cpu.started(incarnation, run.cpu_milli);
        if let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) {
            worker.run = Some(run);
        }
        self.queue.after(Duration::from_micros(5), What::Worked { machine, epoch, client, run: number });
    }

    /// What lies in a machine's memory; what was freed under a reader reads as something else.
    fn read(&self, machine: usize, value: &Value) -> Content {
        let life = self.machines[machine].life.as_deref();
        life.and_then(|life| life.content(value)).unwrap_or(Content { hash: 0xdead, len: 16 })
    }

    /// A worker has computed for a while.
    pub fn worked(&mut self, machine: usize, epoch: u64, client: ClientId, run: u64) {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get(&client)) else {
            return;
        };
        if worker.runs == run && worker.run.is_some() {
            self.go_on(machine, epoch, client);
        }
    }

    fn run_of(&mut self, machine: usize, epoch: u64, client: ClientId) -> Option<&mut Run> {
        self.life(machine, epoch)?.clients.get_mut(&client)?.run.as_mut()
    }

    /// Goes on with a task until it computes, waits or ends.
    fn go_on(&mut self, machine: usize, epoch: u64, client: ClientId) {
        loop {
            if !self.may_go_on(machine, epoch, client) {
                return;
            }
            let Some(run) = self.run_of(machine, epoch, client) else { return };
            let Some(op) = run.body.ops.get(run.next).cloned().filter(|_| run.failure.is_none()) else {
                return self.end_run(machine, epoch, client);
            };
            run.next += 1;
            match op {
                Op::Work(ns) => {
                    run.ran_ns += ns;
                    return self.compute(machine, epoch, client, ns);
                }
                Op::Submit { seed, args } => self.submit(machine, epoch, client, seed, &args),
                Op::Put { seed, len } => self.put(machine, epoch, client, seed, len),
                Op::Get(local) => {
                    let object = run.locals[local];
                    run.waits = Some(Waits::Value(object));
                }
                Op::Wait(local) => {
                    let object = run.locals[local];
                    run.waits = Some(Waits::Existence(object));
                }
            }
        }
    }

    fn compute(&mut self, machine: usize, epoch: u64, client: ClientId, ns: u64) {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get(&client)) else {
            return;
        };
        let (number, doomed) = (worker.runs, worker.doom == Some(Doom::MidRun));
        let takes = self.slowed(machine, Duration::from_nanos(ns));
        if doomed {
            self.sometimes.hit("worker died in mid-run");
            return self.worker_dies(machine, epoch, client);
        }
        self.queue.after(takes, What::Worked { machine, epoch, client, run: number });
    }

    fn submit(&mut self, machine: usize, epoch: u64, client: ClientId, seed: u64, args: &[usize]) {
        let style = self.options.style.clone();
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let child = TaskId::new(JOB, run.task, 0, run.children);
        run.children += 1;
        let args: Vec<ObjectId> = args.iter().map(|local| run.locals[*local]).collect();
        run.locals.push(child.output(0));
        run.asked.insert(child.output(0), true);
        let (parent, attempt, depth, replay) = (run.task, run.attempt, run.depth - 1, run.replay);
        let spec = program::spec(&style, child, parent, seed, depth, &args, replay);
        self.judges.order.submitted(parent, attempt, child);
        self.say(machine, epoch, client, Said::Submit(Box::new(spec)));
    }

    fn put(&mut self, machine: usize, epoch: u64, client: ClientId, seed: u64, len: u64) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let object = run.task.output(FIRST_PUT_SLOT + run.puts);
        run.puts += 1;
        run.locals.push(object);
        let content = program::put_content(seed, len);
        if len <= INLINE_MAX {
            self.say(machine, epoch, client, Said::Put { object, content });
        } else {
            run.waits = Some(Waits::Room(object));
            self.say(machine, epoch, client, Said::Create { object, len });
        }
    }

    /// Whether a task that waits has what it waits for; asks, and gives its CPU back, if not (R16).
    fn may_go_on(&mut self, machine: usize, epoch: u64, client: ClientId) -> bool {
        let Some(run) = self.run_of(machine, epoch, client) else { return false };
        let Some(waits) = run.waits else { return true };
        let (object, want_value) = match waits {
            Waits::Room(_) => return false,
            Waits::Value(object) => (object, true),
            Waits::Existence(object) => (object, false),
        };
        match run.seen.get(&object).cloned() {
            Some(Seen::Elsewhere(_)) if want_value => {
                run.seen.remove(&object);
                self.say(machine, epoch, client, Said::Get { object, want_value });
            }
            Some(seen) => {
                run.waits = None;
                self.unblock(machine, epoch, client);
                if want_value {
                    self.got(machine, epoch, client, object, &seen);
                }
                return true;
            }
            None => {
                if run.asked.insert(object, true).is_none() {
                    self.say(machine, epoch, client, Said::Get { object, want_value });
                }
            }
        }
        self.block(machine, epoch, client);
        false
    }

    fn got(&mut self, machine: usize, epoch: u64, client: ClientId, object: ObjectId, seen: &Seen) {
        let now = self.now();
        match seen {
            Seen::Here(value) => {
                let content = self.read(machine, value);
                self.judges.value.got(&self.oracle, object, &content, now);
                if let Some(run) = self.run_of(machine, epoch, client) {
                    run.inputs.push(content.hash);
                }
            }
            Seen::Failed(failure) => {
                self.judges.failed(&self.oracle, object, failure, now, &mut self.sometimes);
                let text = format!("it needed {object}: {}", failure.message);
                if let Some(run) = self.run_of(machine, epoch, client) {
                    run.failure = Some(Failure::new(FailureKind::FailureUserError, text));
                }
            }
            Seen::Elsewhere(_) => {}
        }
    }

    fn block(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let Some(life) = self.life(machine, epoch) else { return };
        let incarnation = life.incarnation.0;
        let Some(worker) = life.clients.get_mut(&client) else { return };
        let Some(run) = worker.run.as_mut().filter(|run| !run.blocked) else { return };
        run.blocked = true;
        let cpu_milli = run.cpu_milli;
        let first = !std::mem::replace(&mut run.was_blocked, true);
        let returned = worker.queue.drain(..).filter_map(|(spec, ..)| task_id(&spec.id).ok()).collect();
        if first {
            self.judges.cpu.stopped(incarnation, cpu_milli);
        }
        self.sometimes.hit("worker waited inside a task");
        self.say(machine, epoch, client, Said::Blocked(returned));
    }

    fn unblock(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        if std::mem::take(&mut run.blocked) {
            self.say(machine, epoch, client, Said::Unblocked);
        }
    }

    /// The daemon has made room (or there is none).
    fn created(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        object: ObjectId,
        room: Result<Option<u64>, Failure>,
    ) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        if run.waits != Some(Waits::Room(object)) {
            return;
        }
        run.waits = None;
        if !object.is_put() {
            return self.report_value(machine, epoch, client, room);
        }
        match room {
            Ok(offset) => {
                let seal = run.body.ops.get(run.next - 1).cloned();
                if let (Some(Op::Put { seed, len }), Some(_)) = (seal, offset) {
                    let content = program::put_content(seed, len);
                    self.say(machine, epoch, client, Said::Seal { object, content });
                }
            }
            Err(failure) => {
                run.failure = Some(failure);
                self.sometimes.hit("store full");
            }
        }
        self.go_on(machine, epoch, client);
    }

    /// A task has done all it does.
    fn end_run(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) else {
            return;
        };
        let doomed = worker.doom == Some(Doom::BeforeReport);
        let Some(run) = worker.run.as_mut() else { return };
        if run.failure.is_none() && run.body.end == End::Poison {
            return self.worker_dies(machine, epoch, client);
        }
        if run.failure.is_none() && run.body.end == End::Error {
            run.failure = Some(Failure::new(FailureKind::FailureUserError, "drawn"));
        }
        let (object, len) = (run.task.output(0), run.body.len);
        if run.failure.is_none() && len > INLINE_MAX {
            run.waits = Some(Waits::Room(object));
            return self.say(machine, epoch, client, Said::Create { object, len });
        }
        if doomed {
            self.sometimes.hit("worker died before its report");
            return self.worker_dies(machine, epoch, client);
        }
        let value = match run.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(Written::Inline(run.content())),
        };
        self.finish(machine, epoch, client, value);
    }

    fn report_value(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        room: Result<Option<u64>, Failure>,
    ) {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) else {
            return;
        };
        if worker.doom == Some(Doom::BeforeReport) {
            self.sometimes.hit("worker died before its report");
            return self.worker_dies(machine, epoch, client);
        }
        let Some(run) = &worker.run else { return };
        let value = room.map(|_| Written::Shared(run.content()));
        if value.is_err() {
            self.sometimes.hit("store full");
        }
        self.finish(machine, epoch, client, value);
    }

    fn finish(&mut self, machine: usize, epoch: u64, client: ClientId, value: Result<Written, Failure>) {
        let Some(life) = self.life(machine, epoch) else { return };
        let incarnation = life.incarnation.0;
        let Some(worker) = life.clients.get_mut(&client) else { return };
        let dies = worker.doom == Some(Doom::AfterReport);
        let Some(run) = worker.run.take() else { return };
        if !run.was_blocked {
            self.judges.cpu.stopped(incarnation, run.cpu_milli);
        }
        let (task, attempt, ran_ns) = (run.task, run.attempt, run.ran_ns.max(1));
        self.say(machine, epoch, client, Said::Finished { task, attempt, value, ran_ns });
        if dies {
            self.sometimes.hit("worker died after its report");
            return self.worker_dies(machine, epoch, client);
        }
        self.next_run(machine, epoch, client);
    }
}

impl Run {
    fn content(&self) -> Content {
        program::task_content(self.seed, self.inputs.iter().copied(), self.body.len)
    }
}
