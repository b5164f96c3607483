//! Worker processes of this node: their starts and deaths, and what they hold of its resources.

use crate::core::Core;
use crate::placement::Class;
use crate::reserve::{Hold, pool};
use crate::types::{ClientId, Effect};
use mobula_base::resources::GPU;
use mobula_base::{JobId, TaskId, mutant};
use mobula_proto::{Failure, FailureKind};
use std::collections::VecDeque;

/// A job whose workers fail to start this often in a row is told so.
const SPAWN_FAILURES_MAX: u32 = 3;

/// What a worker holds of its node's resources.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The class whose demand it holds.
    pub class: usize,
    /// Also the CPU: a worker that waits inside its task has given that back, and only that (R16). A device
    /// or a file system that it uses is not free because it waits.
    pub with_cpu: bool,
    /// The GPUs.
    pub devices: Vec<u32>,
    /// The reservation that it takes from; `None`: what is for all.
    pub from: Option<Hold>,
}

/// A worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub job: JobId,
    /// What it holds while it has work.
    pub lease: Option<Lease>,
    /// What it was given, in the order it runs it; the first is running.
    pub queue: VecDeque<TaskId>,
    pub blocked: bool,
    /// It waits for room in shared memory, and takes nothing meanwhile.
    pub stalled: bool,
    /// Tasks that it may still be given; `None` for any number.
    pub left: Option<u32>,
}

impl Worker {
    /// Whether it takes more: not while it waits inside its task, nor when it has had all that it is to have.
    pub(crate) fn takes(&self) -> bool {
        !self.blocked && !self.stalled && !self.is_worn()
    }

    /// Whether it has been given as many tasks as its job lets one have.
    fn is_worn(&self) -> bool {
        self.left == Some(0)
    }

    /// A task stands last in its line now.
    pub(crate) fn push(&mut self, task: TaskId) {
        self.queue.push_back(task);
        self.left = self.left.map(|left| left.saturating_sub(1));
    }
}

impl Core {
    /// Whether what a class demands is free.
    pub(crate) fn fits_now(&self, class: usize) -> bool {
        let Class { demand, group, .. } = &self.classes[class];
        match group {
            None => self.free.fits(demand) && self.devices.fits(demand.of(GPU)),
            Some(group) => self.ledger.room_for(*group, demand).is_some(),
        }
    }

    /// Starts another worker for a job if its share of processes is not used up.
    pub(crate) fn start_worker(&mut self, job: JobId) {
        // What its binary is comes with the view; workers start then.
        if !self.jobs_seen.contains(&job) {
            return;
        }
        let awake =
            self.workers.values().filter(|w| w.job == job && !w.blocked && !w.is_worn()).count() as u32;
        let starting = self.starting.entry(job).or_default();
        if awake + *starting < self.config.workers {
            *starting += 1;
            self.effects.push(Effect::Spawn { job });
        }
    }

    pub(crate) fn worker_up(&mut self, worker: ClientId, job: JobId) {
        if let Some(starting) = self.starting.get_mut(&job) {
            *starting = starting.saturating_sub(1);
        }
        self.spawn_failures.remove(&job);
        let left = self.reuse.get(&job).copied();
        let fresh = Worker { job, lease: None, queue: VecDeque::new(), blocked: false, stalled: false, left };
        self.workers.insert(worker, fresh);
    }

    /// How many tasks workers of a job have that come up from now on; 0 for any number.
    pub(crate) fn limit_reuse(&mut self, job: JobId, tasks: u32) {
        if tasks > 0 && !self.jobs_ended.contains(&job) {
            self.reuse.insert(job, tasks);
        }
    }

    /// A worker has nothing to do: its resources are free, and it ends if it has had enough.
    pub(crate) fn rest(&mut self, worker: ClientId) {
        self.return_lease(worker);
        let Some(w) = self.workers.get_mut(&worker).filter(|w| w.is_worn() && w.queue.is_empty()) else {
            return;
        };
        let job = w.job;
        self.effects.push(Effect::Retire { worker });
        self.start_worker(job);
    }

    pub(crate) fn spawn_failed(&mut self, job: JobId, failure: Failure, fatal: bool) {
        if let Some(starting) = self.starting.get_mut(&job) {
            *starting = starting.saturating_sub(1);
        }
        let failures = self.spawn_failures.entry(job).or_default();
        *failures += 1;
        if fatal || *failures >= SPAWN_FAILURES_MAX {
            self.broken_jobs.insert(job, failure);
        }
    }

    pub(crate) fn return_lease(&mut self, worker: ClientId) {
        let Some(w) = self.workers.get_mut(&worker) else { return };
        let Some(lease) = w.lease.take() else { return };
        let demand = &self.classes[lease.class].demand;
        let (free, devices) = pool(&mut self.free, &mut self.devices, &mut self.ledger, lease.from);
        free.give(demand);
        if !lease.with_cpu {
            free.cpu_milli -= demand.cpu_milli;
        }
        devices.give(&lease.devices, demand.of(GPU));
    }

    /// A worker waits inside its task: its CPU is free (R16).
    fn return_cpu(&mut self, worker: ClientId) {
        if let Some(lease) = self.workers.get_mut(&worker).and_then(|w| w.lease.as_mut())
            && lease.with_cpu
        {
            let (free, _) = pool(&mut self.free, &mut self.devices, &mut self.ledger, lease.from);
            free.cpu_milli += self.classes[lease.class].demand.cpu_milli;
            lease.with_cpu = mutant!("M14");
        }
    }

    pub(crate) fn worker_gone(&mut self, worker: ClientId) {
        self.return_lease(worker);
        self.forget_client_refs(worker);
        self.forget_watches(worker);
        self.forget_consumer(worker);
        self.memory.forget(worker);
        let Some(gone) = self.workers.remove(&worker) else { return };
        if gone.blocked {
            self.blocked_runs = self.blocked_runs.saturating_sub(1);
            self.waiting.goes_on();
        }
        let mut queue = gone.queue.into_iter();
        // The first was running; the others never started and go to another worker.
        if let Some(running) = queue.next() {
            self.forget_stray(running);
            let message =
                "the worker process died while it ran the task (killed, out of memory, or it exited)";
            if self.runs.get(&running).is_some_and(|run| run.given == Some(worker)) {
                self.fail_run(running, Failure::new(FailureKind::FailureWorkerDied, message));
            }
        }
        self.trace.close(worker);
        for task in queue.rev().filter(|_| !mutant!("W1")) {
            self.requeue(worker, task);
        }
    }

    /// What a worker had and has not begun goes to another one.
    fn requeue(&mut self, worker: ClientId, task: TaskId) {
        if !mutant!("W41") {
            self.forget_stray(task);
        }
        if let Some(run) = self.runs.get_mut(&task).filter(|run| run.given == Some(worker)) {
            run.given = None;
            let class = run.class;
            if let Some(stop) = self.stopping.remove(&task) {
                return self.fail_run(task, stop.why);
            }
            self.classes[class].runs.push_front(task);
        }
    }

    pub(crate) fn blocked(&mut self, worker: ClientId, returned: Vec<TaskId>) {
        let Some(w) = self.workers.get_mut(&worker) else { return };
        if !w.blocked {
            w.blocked = true;
            self.blocked_runs += 1;
        }
        w.queue.retain(|t| !returned.contains(t));
        // What is still on its way there begins at once if the worker goes on before it comes; else it is handed back.
        let is_alone = w.queue.len() <= 1 || mutant!("W32");
        if is_alone && !mutant!("R16") {
            self.return_cpu(worker);
        }
        for task in returned.into_iter().rev() {
            self.requeue(worker, task);
        }
        self.waits_now(worker);
    }

    pub(crate) fn stalled(&mut self, worker: ClientId, returned: Vec<TaskId>) {
        if let Some(w) = self.workers.get_mut(&worker) {
            w.stalled = true;
            self.not_given(worker, returned);
        }
    }

    /// A worker has no more of these than before they were given to it.
    pub(crate) fn not_given(&mut self, worker: ClientId, tasks: Vec<TaskId>) {
        let Some(w) = self.workers.get_mut(&worker) else { return };
        let first = w.queue.front().copied();
        w.queue.retain(|t| !tasks.contains(t));
        if w.queue.is_empty() {
            self.rest(worker);
        } else if w.queue.front().copied() != first {
            self.watch_time(worker);
        }
        for task in tasks.into_iter().rev() {
            self.requeue(worker, task);
        }
    }

    pub(crate) fn unblocked(&mut self, worker: ClientId) {
        let Some(w) = self.workers.get_mut(&worker) else { return };
        w.stalled = false;
        if !std::mem::take(&mut w.blocked) {
            return;
        }
        self.blocked_runs = self.blocked_runs.saturating_sub(1);
        self.waiting.goes_on();
        // It goes on at once; when its CPU was given away meanwhile, it runs without one rather than making
        // a task in mid-run wait.
        if let Some(lease) = w.lease.as_mut().filter(|lease| !lease.with_cpu) {
            let (free, _) = pool(&mut self.free, &mut self.devices, &mut self.ledger, lease.from);
            let cpu_milli = self.classes[lease.class].demand.cpu_milli;
            if free.cpu_milli >= cpu_milli {
                free.cpu_milli -= cpu_milli;
                lease.with_cpu = true;
            }
        }
    }
}
