//! What a node says of its tasks to whoever asks why nothing comes of them.

use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, TaskId, TaskPrefix};
use mobula_proto::{Arg, TaskSpec, arg, object_bytes, task_bytes};
use mobula_scheduler::{Config, Core, Event};
use std::time::Duration;

const JOB: JobId = JobId(7);
const DRIVER: u64 = 100;

fn task(index: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, index)
}

fn spec(index: u64, args: &[ObjectId]) -> TaskSpec {
    let args = args.iter().map(|o| Arg { arg: Some(arg::Arg::Object(object_bytes(*o))) }).collect();
    TaskSpec {
        id: task_bytes(task(index)),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        args,
        ..TaskSpec::default()
    }
}

/// A node of one CPU, whose one worker is given the first of these tasks.
fn with(specs: Vec<TaskSpec>) -> Core {
    let mut core = Core::new(Config {
        incarnation: Incarnation(1),
        shards: 2,
        name: String::new(),
        resources: Resources::cpus_milli(1000),
        labels: Default::default(),
        workers: 1,
        linger: Duration::ZERO,
        crc: |b| b.len() as u32,
    });
    let events = [
        Event::JobStarted { job: JOB, counted: true },
        Event::WorkerUp { worker: 1, job: JOB },
        Event::Submit { client: DRIVER, specs },
    ];
    core.step(events, Instant(1), &mut Vec::new());
    core
}

/// What is said of one task: its state, and why.
fn said(core: &Core, index: u64) -> (&'static str, String) {
    let prefix: TaskPrefix = task(index).to_string().parse().expect("an id");
    let (mut tasks, more) = core.explain(prefix, 10);
    assert!(tasks.len() == 1 && !more, "{tasks:?}");
    let told = tasks.remove(0);
    assert_eq!(told.task, task(index));
    (told.state, told.because.join("; "))
}

#[test]
fn each_task_says_what_it_waits_for() {
    let large = TaskSpec { cpu_milli: 64_000, ..spec(3, &[]) };
    let once = TaskSpec { max_retries: 0, ..spec(4, &[]) };
    let core = with(vec![spec(0, &[]), spec(1, &[task(0).output(0)]), spec(2, &[]), large, once]);
    assert_eq!(said(&core, 0), ("running", "it runs in worker 1".into()));

    let (state, why) = said(&core, 1);
    assert_eq!(state, "await_arguments");
    assert!(why.starts_with("1 of its 1 arguments have not been made"), "{why}");
    assert!(why.contains(&task(0).output(0).to_string()) && why.contains("given to this node"), "{why}");

    let (state, why) = said(&core, 2);
    assert!(state == "await_worker" && why.contains("1 at work"), "{state}: {why}");

    let (state, why) = said(&core, 3);
    assert_eq!(state, "queued");
    assert!(why.contains("64"), "it can never run, and why is said: {why}");

    let (state, why) = said(&core, 4);
    assert!(state == "await_commit" && why.contains("has committed its record"), "{state}: {why}");
}

#[test]
fn all_are_told_by_the_beginning_of_their_ids_and_no_more_than_asked_for() {
    let core = with((0..5).map(|n| spec(n, &[])).collect());
    let (all, more) = core.explain("".parse().expect("all"), 10);
    assert_eq!((all.len(), more), (5, false));
    assert!(all.is_sorted_by_key(|told| told.task));
    let (some, more) = core.explain(task(0).to_string()[..8].parse().expect("digits"), 3);
    assert_eq!((some.len(), more), (3, true));
    let other = if task(0).to_string().starts_with('0') { "1" } else { "0" };
    assert_eq!(core.explain(other.parse().expect("a digit"), 3), (Vec::new(), false));
}
