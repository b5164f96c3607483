//! The steps of a task that runs in a production worker, by the same script as the interpreter.

use super::content::{self as values, Content};
use super::local::{WORKER, Worker};
use super::state::{self, hit};
use crate::trace;
use mobula::{Client, Error, Many, ObjectRef, remote};
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{TaskSpec, task_bytes};
use mobula_sim_tests::core::program::{self, Body, End, Locals, Op, Submission, picked, picked_all};
use mobula_sim_tests::core::worker::Doom;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::task::Poll;
use std::time::Duration;

/// Shorter than this no timer measures: such computations are added up.
const TIMER: Duration = Duration::from_millis(1);

/// What a task is given by value.
#[derive(Clone, Serialize, Deserialize)]
pub struct What {
    seed: u64,
    depth: u8,
    nested: Vec<ObjectRef<Content>>,
}

/// References by their objects.
pub type References = BTreeMap<ObjectId, ObjectRef<Content>>;

/// Submits a task of the program.
pub fn submit(client: &Client, task: &Submission, refs: &References) -> ObjectRef<Content> {
    let body = state::with(|state| state.style.body(task.seed, task.depth));
    let of = |ids: &[ObjectId]| ids.iter().filter_map(|id| refs.get(id).cloned()).collect::<Vec<_>>();
    let what = What { seed: task.seed, depth: task.depth, nested: of(&task.nested) };
    let args = of(&task.args);
    let cpus = f64::from(body.cpu_milli) / 1000.0;
    client.submit(compute::task(what, &args).retries(body.retries).cpus(cpus))
}

#[remote]
async fn compute(what: What, given: Many<Content>) -> Result<Content, Error> {
    let (client, worker) = (mobula::current(), WORKER.with(Clone::clone));
    if worker.is_doomed(Doom::BeforeStart) {
        return dies(&worker, Doom::BeforeStart).await;
    }
    let body = state::with(|state| state.style.body(what.seed, what.depth));
    let mut run = Run::start(client, worker, what, body);
    for arg in given.0 {
        run.take(None, values::read(arg));
    }
    let ended = run.steps().await;
    let worker = run.worker.clone();
    if worker.is_doomed(Doom::BeforeReport) {
        return dies(&worker, Doom::BeforeReport).await;
    }
    run.ended = true;
    if worker.is_doomed(Doom::AfterReport) {
        tokio::spawn(async move {
            tokio::time::sleep(TIMER).await;
            note_death(Doom::AfterReport);
            worker.kill();
        });
    }
    ended
}

fn note_death(doom: Doom) {
    state::with(|state| {
        state.cause.death();
        state.sometimes.hit(doom.point());
    });
}

async fn dies(worker: &Worker, doom: Doom) -> Result<Content, Error> {
    note_death(doom);
    worker.die().await;
    Err(Error::Value("nobody hears this".into()))
}

/// One execution.
struct Run {
    client: Client,
    worker: Worker,
    task: TaskId,
    seed: u64,
    depth: u8,
    body: Body,
    inputs: Vec<u64>,
    locals: Locals,
    refs: References,
    /// Computed and not waited for.
    debt: Duration,
    /// It holds its CPU.
    holds: bool,
    ended: bool,
}

impl Run {
    fn start(client: Client, worker: Worker, what: What, body: Body) -> Self {
        let (task, attempt, cpu_milli) = (client.task(), client.attempt(), u64::from(body.cpu_milli));
        let spec = TaskSpec { id: task_bytes(task), max_retries: body.retries, ..TaskSpec::default() };
        let (now, node) = (state::now(), worker.node());
        trace::note(format!("{node} runs {task} attempt {attempt}"));
        state::with(|state| {
            let times = state.executions.entry(task).or_default();
            *times += 1;
            match *times {
                1 => {}
                2 => state.sometimes.hit("task executed again"),
                _ => state.sometimes.hit("task executed for the third time"),
            }
            state.judges.once.given(&spec, attempt);
            state.judges.started(task, attempt, node, now, &mut state.sometimes);
            state.judges.cpu.started(node, cpu_milli);
        });
        let given = what.nested.iter().map(ObjectRef::id).collect();
        Run {
            client,
            worker,
            task,
            seed: what.seed,
            depth: what.depth,
            body,
            inputs: Vec::new(),
            locals: Locals::new(task, given),
            refs: what.nested.into_iter().map(|reference| (reference.id(), reference)).collect(),
            debt: Duration::ZERO,
            holds: true,
            ended: false,
        }
    }

    /// It has a value: its hash counts, and the references in it are the task's.
    fn take(&mut self, from: Option<ObjectId>, content: Content) {
        self.inputs.push(content.hash);
        if !self.locals.take(from, &content.ids()).is_empty() {
            hit("reference taken out of a value");
        }
        for reference in content.refs {
            self.refs.entry(reference.id()).or_insert(reference);
        }
    }

    async fn steps(&mut self) -> Result<Content, Error> {
        for op in std::mem::take(&mut self.body.ops) {
            match op {
                Op::Work(ns) => self.computes(Duration::from_nanos(ns)).await,
                Op::Submit { seed, args, nested } => self.submits(seed, &args, &nested),
                Op::Put { seed, len, refs } => self.puts(seed, len, &refs).await?,
                Op::Get(pick) => {
                    if let Some(object) = picked(&self.locals.all, pick) {
                        self.gets(object).await?;
                    }
                }
                // No task of this layer has moods: see `draw`. Cancels are left out of its programs, too.
                Op::Whim(_) | Op::Cancel(..) | Op::Take(_) => {}
                Op::Drop(pick) => drop(self.locals.forget(pick).map(|object| self.refs.remove(&object))),
                Op::Wait(pick) => {
                    if let Some(object) = picked(&self.locals.all, pick) {
                        let reference = self.refs[&object].clone();
                        self.waits_for(&reference);
                        self.client.wait_refs_async(&[reference], 1).await?;
                    }
                }
            }
        }
        match self.body.end {
            End::Error => Err(Error::Value("the program asks for this error".into())),
            End::Poison => {
                state::with(|state| state.cause.death());
                self.worker.die().await;
                Err(Error::Value("nobody hears this".into()))
            }
            // None hangs, see there.
            End::Value | End::Hang => {
                let ids = self.locals.for_value(&self.body.returns);
                let inputs = self.inputs.iter().copied();
                let content = program::task_content(self.seed, inputs, self.body.len, ids);
                Ok(values::made(content.hash, content.len, self.of(&content.refs)))
            }
        }
    }

    fn of(&self, ids: &[ObjectId]) -> Vec<ObjectRef<Content>> {
        ids.iter().map(|id| self.refs[id].clone()).collect()
    }

    async fn computes(&mut self, time: Duration) {
        self.debt += time;
        if self.debt >= TIMER {
            tokio::time::sleep(std::mem::take(&mut self.debt)).await;
        }
        if self.worker.is_doomed(Doom::MidRun) {
            let _ = dies(&self.worker, Doom::MidRun).await;
        }
    }

    fn submits(&mut self, seed: u64, args: &[u64], nested: &[u64]) {
        let (args, nested) = (picked_all(&self.locals.all, args), picked_all(&self.locals.all, nested));
        let given = [&args[..], &nested[..]].concat();
        // The SDK makes the id.
        let (id, parent, depth) = (TaskId::default(), self.task, self.depth - 1);
        let child = Submission { id, parent, seed, depth, args, nested };
        let reference = submit(&self.client, &child, &self.refs);
        self.locals.child(reference.id(), &given);
        self.refs.insert(reference.id(), reference);
    }

    async fn puts(&mut self, seed: u64, len: u64, refs: &[u64]) -> Result<(), Error> {
        let content = program::put_content(seed, len, self.locals.for_value(refs));
        let value = values::made(content.hash, content.len, self.of(&content.refs));
        let reference = self.client.put_async(&value).await?;
        self.locals.put(reference.id());
        self.refs.insert(reference.id(), reference);
        Ok(())
    }

    async fn gets(&mut self, object: ObjectId) -> Result<(), Error> {
        let reference = self.refs[&object].clone();
        let mut get = std::pin::pin!(reference.get_async());
        // What is known to exist may have to be brought: whether it waits shows at the first look.
        let got = match std::future::poll_fn(|cx| Poll::Ready(get.as_mut().poll(cx))).await {
            Poll::Ready(got) => got,
            Poll::Pending => {
                self.waits();
                get.await
            }
        };
        let content = judge(object, got)?;
        self.take(Some(object), content);
        Ok(())
    }

    /// Whoever waits inside a task has given its CPU back (R16).
    fn waits_for(&mut self, reference: &ObjectRef<Content>) {
        if !reference.is_ready() {
            self.waits();
        }
    }

    fn waits(&mut self) {
        hit("worker waited inside a task");
        self.lets_go();
    }

    fn lets_go(&mut self) {
        if std::mem::take(&mut self.holds) {
            let cpu_milli = u64::from(self.body.cpu_milli);
            state::with(|state| state.judges.cpu.stopped(self.worker.node(), cpu_milli));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.lets_go();
        let how = if self.ended { "ended" } else { "was killed" };
        trace::note(format!("{} {how}", self.task));
        if !self.ended {
            state::with(|state| state.cause.killed(self.task));
        }
    }
}

/// What was got is compared with what the interpreter knows.
///
/// # Errors
/// The same failure, which has been looked at.
pub fn judge(object: ObjectId, got: Result<Content, Error>) -> Result<Content, Error> {
    let now = state::now();
    match got {
        Ok(content) => {
            let content = values::read(content);
            state::with(|state| {
                let state::State { judges, oracle, .. } = state;
                judges.value.got(oracle, object, &content.known(), now);
            });
            Ok(content)
        }
        Err(error) => {
            if let Error::Task { kind, message, .. } = &error {
                state::with(|state| state.failed(object, *kind, message, now));
            }
            Err(error)
        }
    }
}
