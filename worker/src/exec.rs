//! The worker's loop: take a task, run its function, report.

use crate::args::ArgReader;
use crate::client::{Client, failed, told_to_stop};
use crate::context::{self, Context};
use crate::error::Error;
use crate::function::{Function, Run, RunFuture, RunResult};
use crate::link;
use crate::options::JobOptions;
use crate::recent::Recent;
use crate::reference::AnyRef;
use crate::split::Landing;
use crate::streamed::Flowing;
use crate::value::Encoded;
use bytes::Bytes;
use futures::future::{Either, select};
use mobula_base::JobId;
use mobula_proto::{
    Element, Failure, FailureKind, INLINE_MAX, RunTask, Shared, TaskResult, TaskSpec, Unpin, Value,
    client_msg, object_bytes, task_id, value as wire_value,
};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Names the socket for a process that is to be a worker.
pub const SOCKET_VARIABLE: &str = "MOBULA_WORKER_SOCKET";
/// Names the token by which the daemon knows which start this is.
pub const TOKEN_VARIABLE: &str = "MOBULA_WORKER_TOKEN";

/// Call this first in `main`: when a node daemon has started this binary as a worker, it runs
/// tasks until the daemon's socket closes and then exits; otherwise it returns at once.
pub fn run_worker_if_asked() {
    let (Some(socket), Some(token)) = (std::env::var_os(SOCKET_VARIABLE), std::env::var(TOKEN_VARIABLE).ok())
    else {
        return;
    };
    // A worker dies with its daemon even when it is stuck in user code.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let connected = UnixStream::connect(&socket).map_err(|e| e.to_string()).and_then(|stream| {
        let hello = link::worker_hello(token.parse().unwrap_or(0), 0);
        link::connect_unix(stream, hello, Duration::from_secs(10)).map_err(|e| e.to_string())
    });
    match connected {
        Ok(client) => {
            run_tasks(&client);
            std::process::exit(0)
        }
        Err(error) => {
            eprintln!("worker cannot join its node daemon: {error}");
            std::process::exit(1)
        }
    }
}

/// How long a function is said to take where time is simulated: it does not pass while one computes.
const SIMULATED_NS: u64 = 1_000_000;

/// Runs tasks on this thread until the link closes.
pub fn run_tasks(client: &Client) {
    let mut recent = Recent::default();
    while let Some(mut task) = client.next_task() {
        let started = Instant::now();
        if !recent.complete(&mut task) {
            client.not_begun(task);
            continue;
        }
        // Should this process die in it, its node must know that it had begun: the tasks before have ended (R5).
        if task.spec.as_ref().is_some_and(|spec| spec.max_retries == 0) {
            client.write_out();
        }
        let (prepared, run) = prepare(client, task);
        let outcome = match run {
            Err(failure) => Err(failure),
            Ok((Run::Sync(run), args)) => context::enter(prepared.client.clone(), || guarded(|| run(args))),
            Ok((Run::Async(run), args)) => {
                let future = run_async(prepared.client.clone(), run(args));
                guarded(|| futures::executor::block_on(future))
            }
        };
        let outcome = match outcome {
            Ok(Encoded { flow: Some(flow), .. }) => {
                let (client, flowing) = (prepared.client.clone(), prepared.flowing());
                let made = context::enter(client.clone(), || client.run_flow(flowing, flow));
                client.end_flow_of(prepared.task);
                made
            }
            whole => whole,
        };
        let ran_ns = started.elapsed().as_nanos() as u64;
        let returned = match outcome {
            Err(failure) => Returned::whole(Err(failure), Vec::new()),
            Ok(Encoded { elements, .. }) if !elements.is_empty() => {
                let mut landing = Landing::new(prepared.task, elements);
                while let Some((id, bytes)) = landing.next() {
                    landing.placed(prepared.client.place(id, &bytes).map_err(no_room));
                }
                Returned::parts(landing)
            }
            Ok(Encoded { bytes, references, .. }) if bytes.len() <= INLINE_MAX => {
                Returned::whole(Ok(inline(bytes)), references)
            }
            Ok(Encoded { bytes, references, .. }) => {
                let placed = prepared.client.place(prepared.task.output(0), &bytes);
                Returned::whole(shared(placed), references)
            }
        };
        prepared.report(returned, ran_ns, &mut recent);
    }
}

/// Runs tasks on this async task until the link closes: for simulated workers.
pub async fn run_tasks_async(client: &Client) {
    let mut recent = Recent::default();
    while let Some(mut task) = client.next_task_async().await {
        if !recent.complete(&mut task) {
            client.not_begun(task);
            continue;
        }
        let (prepared, run) = prepare(client, task);
        let outcome = match run {
            Err(failure) => Err(failure),
            Ok((Run::Sync(run), args)) => context::enter(prepared.client.clone(), || guarded(|| run(args))),
            Ok((Run::Async(run), args)) => run_async(prepared.client.clone(), run(args)).await,
        };
        let outcome = match outcome {
            Ok(Encoded { flow: Some(flow), .. }) => {
                let (client, flowing) = (prepared.client.clone(), prepared.flowing());
                let made = client.run_flow_async(flowing, flow);
                let made = context::enter_async(client.clone(), made).await;
                client.end_flow_of(prepared.task);
                made
            }
            whole => whole,
        };
        let returned = match outcome {
            Err(failure) => Returned::whole(Err(failure), Vec::new()),
            Ok(Encoded { elements, .. }) if !elements.is_empty() => {
                let mut landing = Landing::new(prepared.task, elements);
                while let Some((id, bytes)) = landing.next() {
                    landing.placed(prepared.client.place_async(id, &bytes).await.map_err(no_room));
                }
                Returned::parts(landing)
            }
            Ok(Encoded { bytes, references, .. }) if bytes.len() <= INLINE_MAX => {
                Returned::whole(Ok(inline(bytes)), references)
            }
            Ok(Encoded { bytes, references, .. }) => {
                let placed = prepared.client.place_async(prepared.task.output(0), &bytes).await;
                Returned::whole(shared(placed), references)
            }
        };
        prepared.report(returned, SIMULATED_NS, &mut recent);
    }
}

/// Runs an async function until it has ended, or is told to stop: then it goes no further than where it waits.
async fn run_async(client: Client, future: RunFuture) -> RunResult {
    let stopper = client.clone();
    let stoppable = async move {
        let stopped = std::pin::pin!(stopper.wait_async(|state| state.stopped.then_some(())));
        // The function is looked at first: one that does not wait costs nothing more.
        let function = match select(future, stopped).await {
            Either::Left((result, _)) => return result,
            Either::Right((_, function)) => function,
        };
        drop(function);
        // It may have been waiting for a value.
        if stopper.state().blocked {
            stopper.unblock();
        }
        Err(told_to_stop())
    };
    context::enter_async(client, stoppable).await
}

struct Prepared {
    task: mobula_base::TaskId,
    spec: TaskSpec,
    attempt: u32,
    client: Client,
}

type Ready = Result<(Run, ArgReader), Failure>;

fn prepare(client: &Client, run: RunTask) -> (Prepared, Ready) {
    let spec = run.spec.unwrap_or_default();
    let task = task_id(&spec.id).unwrap_or_default();
    let replay = spec.replay || run.attempt > 1;
    let returns = spec.options.as_deref().map_or((0, 0), |options| (options.elements, options.window));
    let context = Context::of_task(JobId(spec.job), task, run.attempt, replay, run.devices, returns);
    let client_of_task = client.for_task(context, JobOptions::of(&spec));
    let args = ArgReader::new(run.args.into_iter().map(|value| client.arg_bytes(value)));
    let (reader, args_of) = (client.clone(), spec.id.clone());
    let args = args.when_taken(move || {
        reader.send(client_msg::Msg::Unpin(Unpin { args_of, ..Unpin::default() }));
    });
    let run_with = match Function::find(spec.function) {
        Some(function) => Ok((function.run, args)),
        None => Err(Failure::new(
            FailureKind::FailureFunctionNotRegistered,
            format!(
                "function {:016x} is not registered in the worker binary; mark it #[mobula::remote] in the binary \
                 that serves as worker",
                spec.function
            ),
        )),
    };
    (Prepared { task, spec, attempt: run.attempt, client: client_of_task }, run_with)
}

/// What a task has made, as its node is told of it.
struct Returned {
    value: Result<Value, Failure>,
    contains: Vec<Bytes>,
    elements: Vec<Element>,
    /// All that lie inside.
    references: Vec<AnyRef>,
}

impl Returned {
    fn whole(value: Result<Value, Failure>, references: Vec<AnyRef>) -> Self {
        let contains = match value {
            Ok(_) => references.iter().map(|reference| object_bytes(reference.id())).collect(),
            Err(_) => Vec::new(),
        };
        Returned { value, contains, elements: Vec::new(), references }
    }

    fn parts(landing: Landing) -> Self {
        let (value, elements, references) = landing.end();
        Returned { value, contains: Vec::new(), elements, references }
    }
}

impl Prepared {
    fn flowing(&self) -> Flowing {
        Flowing::new(self.task, self.client.context.window)
    }

    /// Reports how it ended. What the task itself referred to is dropped already, but for the references
    /// in its value: those go once the report has named them.
    fn report(self, returned: Returned, ran_ns: u64, recent: &mut Recent) {
        let Returned { value, contains, elements, references } = returned;
        // References inside would have to be held before anybody could use them.
        if let (Ok(Value { value: Some(wire_value::Value::Inline(bytes)) }), true) =
            (&value, references.is_empty())
        {
            recent.keep(self.task.output(0), bytes.clone());
        }
        let result = TaskResult {
            task: self.spec.id,
            attempt: self.attempt,
            value: Some(value.unwrap_or_else(failed)),
            ran_ns,
            contains,
            elements,
        };
        self.client.send_result(result);
        drop(references);
    }
}

fn inline(bytes: Vec<u8>) -> Value {
    Value { value: Some(wire_value::Value::Inline(bytes.into())) }
}

fn shared(placed: Result<Shared, Error>) -> Result<Value, Failure> {
    placed.map(|shared| Value { value: Some(wire_value::Value::Shared(shared)) }).map_err(no_room)
}

pub(crate) fn no_room(error: Error) -> Failure {
    match error {
        Error::Task { kind, message, causes } => Failure { kind: kind as i32, message, causes },
        other => Failure::new(FailureKind::FailureStoreFull, other.to_string()),
    }
}

/// A panic of user code is the task's failure, not the worker's.
pub(crate) fn guarded<R>(run: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without a message".into());
        Err(Failure::new(FailureKind::FailurePanic, text))
    })
}
