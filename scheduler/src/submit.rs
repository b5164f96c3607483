//! A task arrives: its record goes to its shard, its arguments are awaited.

use crate::core::{Core, Early, Kept, KeptState};
use crate::elements;
use crate::elide::Later;
use crate::groups;
use crate::hedge;
use crate::items;
use crate::objects::State;
use crate::refs::Home;
use crate::stream::About;
use crate::types::{ClientId, Effect, Ready, Value};
use mobula_base::devices::Devices;
use mobula_base::resources::GPU;
use mobula_base::{JobId, ObjectId, TaskId, mutant};
use mobula_proto::{Failure, FailureKind, TaskSpec, arg, object_id, task_id};
use std::sync::Arc;
use thin_vec::ThinVec;

/// Links of a chain of causes that are kept: the nearest and those next to the root.
const CAUSES_MAX: usize = 8;

/// The objects a task takes as arguments; malformed ids were refused when the task arrived.
pub(crate) fn arg_objects(spec: &TaskSpec) -> impl Iterator<Item = ObjectId> + '_ {
    spec.args.iter().filter_map(|a| match &a.arg {
        Some(arg::Arg::Object(bytes)) => object_id(bytes).ok(),
        Some(arg::Arg::Value(_)) | None => None,
    })
}

/// The objects that a record names, each once: arguments, and what lies inside of those given by value.
pub(crate) fn named_objects(spec: &TaskSpec) -> Vec<ObjectId> {
    let nested = spec.nested.iter().filter_map(|id| object_id(id).ok());
    let mut named: Vec<ObjectId> = arg_objects(spec).chain(nested).collect();
    named.sort_unstable();
    named.dedup();
    named
}

pub(crate) fn spec_bytes(spec: &TaskSpec) -> usize {
    let args: usize = spec
        .args
        .iter()
        .map(|a| match &a.arg {
            Some(arg::Arg::Value(b) | arg::Arg::Object(b)) => b.len() + 6,
            None => 2,
        })
        .sum();
    100 + args + 24 * spec.nested.len()
}

impl Core {
    pub(crate) fn submit(&mut self, client: ClientId, spec: TaskSpec) {
        let Ok(task) = task_id(&spec.id) else { return };
        let job = JobId(spec.job);
        let output = task.output(0);
        if self.jobs_ended.contains(&job) {
            return;
        }
        if self.is_duplicate(task, output) {
            self.submitted_again(client, task, &spec);
            // Its record may still be on its way: whoever submits it again waits for it, too (R4).
            if let Some(run) = task_id(&spec.parent).ok().and_then(|parent| self.runs.get_mut(&parent)) {
                let tickets = self.streams.all_of(task.run.slot()).into_iter();
                tickets.filter(|_| !mutant!("R4b")).for_each(|(shard, number)| run.waits_for(shard, number));
                if hedge::may_be_hedged(&run.spec) {
                    task_id(&spec.parent).into_iter().for_each(|parent| self.breaks_its_word(parent));
                }
            }
            return;
        }
        let malformed = |bytes: &[u8]| object_id(bytes).is_err();
        if spec.args.iter().any(|a| matches!(&a.arg, Some(arg::Arg::Object(b)) if malformed(b)))
            || spec.nested.iter().any(|id| malformed(id))
        {
            return self.refuse(client, task, &spec, "an argument is a malformed object id");
        }
        if spec.resources.iter().any(|r| r.name == GPU && !Devices::is_amount(r.milli)) {
            let why = "a task takes whole GPUs, or a part of one: ask for 1, 2, ... or less than 1";
            return self.refuse(client, task, &spec, why);
        }
        if let Some(why) = groups::contradiction(&spec) {
            return self.refuse(client, task, &spec, why);
        }
        if let Some(why) = elements::too_many(&spec) {
            return self.refuse(client, task, &spec, why);
        }
        if items::window(&spec) > 0 {
            if let Some(why) = items::refused(&spec) {
                return self.refuse(client, task, &spec, why);
            }
            self.begin_consuming(client, task, job);
        }
        self.expect(client, task, &spec);
        self.keep(client, task, spec);
    }

    /// A task that is none: it is not kept, and whoever submitted it is told.
    #[cold]
    fn refuse(&mut self, client: ClientId, task: TaskId, spec: &TaskSpec, why: impl Into<String>) {
        let failure = Failure::new(FailureKind::FailureBadArguments, why);
        for object in elements::returned(task, spec) {
            self.effects.push(Effect::Ready { client, object, ready: Ready::Failed(failure.clone()) });
        }
    }

    /// A client submits what this node has as its own already: it refers to it, too.
    fn submitted_again(&mut self, client: ClientId, task: TaskId, spec: &TaskSpec) {
        let (output, job) = (task.output(0), JobId(spec.job));
        if elements::count(spec) > 0 {
            self.expect_elements(client, task, spec, false);
            self.hold_elements(task, spec);
        } else {
            self.refer(client, output, job);
            self.subscribe(client, output, job);
            self.hold_again(output, job);
        }
        if items::window(spec) > 0 {
            self.begin_consuming(client, task, job);
        }
    }

    /// Notes that a task will make this, and that its submitter refers to it and wants to know when it is there.
    fn expect(&mut self, client: ClientId, task: TaskId, spec: &TaskSpec) {
        let (output, job, replay) = (task.output(0), JobId(spec.job), spec.replay);
        let is_whole = elements::count(spec) == 0;
        if is_whole {
            self.refer(client, output, job);
        } else {
            self.expect_elements(client, task, spec, true);
        }
        let object = self.object(output, job);
        object.refs.home = Home::Held;
        // What an earlier attempt's child made and lies here is good for a replay, whether the shard knows the
        // record (then it is recorded) or not (then it will be).
        if replay && matches!(object.state, State::Here(_)) {
            if is_whole {
                self.subscribe(client, output, job);
            }
            return;
        }
        object.refs.origin = true;
        if is_whole {
            object.subscribers.push(client);
        }
        if let State::Here(Value::Shared { .. }) = std::mem::replace(&mut object.state, State::Pending) {
            self.effects.push(Effect::Discard { object: output });
        }
    }

    /// Whether a task that is submitted is one that this node keeps, or has submitted and holds: that is
    /// recognised, not run again (R2). Of what it only has a copy, or has taken out of a value, or took over
    /// and has told the end of, the record may be gone, or never have come.
    fn is_duplicate(&self, task: TaskId, output: ObjectId) -> bool {
        let object = self.objects.get(&output);
        let holds = object.is_some_and(|object| object.refs.home == Home::Held);
        let held = holds && object.is_some_and(|object| object.refs.origin);
        let kept = self.kept.get(&task);
        // This node may have forgotten the value already, which it let go of before the last attempt ended.
        let counts = |kept: &Kept| self.counts(JobId(kept.spec.job)) && (object.is_some() || !mutant!("W56"));
        let may_go =
            |kept: &Kept| counts(kept) && !holds && kept.state == KeptState::Finishing && !mutant!("R8e");
        let making = kept.is_some_and(|kept| !may_go(kept));
        (making && !mutant!("M05")) || (kept.is_none() && (held || mutant!("W9")) && self.is_known(output))
    }

    /// What this node took over it does not hold; now somebody here has submitted it, and does. That is told
    /// in front of its end, with which it would go.
    fn hold_again(&mut self, output: ObjectId, job: JobId) {
        if self.counts(job) && self.objects[&output].refs.home != Home::Held && !mutant!("R8e") {
            self.name(output, job, None, false, true);
        }
    }

    /// Begins to keep a task: sends its edges and its record, and looks for its arguments.
    fn keep(&mut self, client: ClientId, task: TaskId, spec: TaskSpec) {
        // That it took over an attempt of it, and has told its end, goes on for itself. Whether that is still on
        // record is to be seen: one that is not begins anew.
        let told = self.kept.get(&task).map(|told| (told.attempt, told.done));
        if told.is_some() {
            self.forget_kept(task);
        }
        let (attempt, done) = told.unwrap_or((1, None));
        let (names, edges) = self.name_for(task, &spec);
        let spec = Arc::new(spec);
        let later = Later { item: spec.clone().into(), bytes: spec_bytes(&spec), about: About::Submit(task) };
        let (record, ticket) = self.send_record(task, later, edges);
        let (parts, streams) = (elements::count(&spec) > 0, items::window(&spec) > 0);
        let shared = parts || streams;
        if parts {
            self.hold_elements(task, &spec);
        }
        if streams {
            // Its items are asked for at their home soon.
            self.streams.hurry_for(ticket.shard, ticket.number);
        }
        // What a task submits must be committed before its own done-record (R4).
        if let Ok(parent) = task_id(&spec.parent)
            && let Some(run) = self.runs.get_mut(&parent)
        {
            run.waits_for(ticket.shard, ticket.number);
            if hedge::may_be_hedged(&run.spec) {
                self.breaks_its_word(parent);
            }
        }
        let commits = spec.commit_first && !mutant!("R4e");
        let again = told.is_some() && !mutant!("R7f");
        let wait = (spec.max_retries == 0 && !mutant!("R7d")) || spec.replay || commits || again;
        if wait {
            self.streams.hurry_for(ticket.shard, ticket.number);
        }
        let state = if wait { KeptState::AwaitCommit } else { KeptState::AwaitDeps(0) };
        let kept = Kept {
            spec,
            attempt,
            client: Some(client),
            state,
            result: None,
            failure: None,
            recorded: None,
            contains: ThinVec::new(),
            names: names.into(),
            record,
            done,
            shared,
            early: Early::No,
            waited: false,
        };
        self.kept.insert(task, kept);
        if !wait {
            self.await_deps(task);
        }
    }

    /// Counts the arguments that do not exist yet; queues the task when there are none.
    pub(crate) fn await_deps(&mut self, task: TaskId) {
        if self.end_cancelled(task) {
            return;
        }
        let Some(kept) = self.kept.get(&task) else { return };
        let job = JobId(kept.spec.job);
        let objects: Vec<ObjectId> = arg_objects(&kept.spec).collect();
        let (mut missing, mut last) = (0, None);
        for object in objects {
            let entry = self.object(object, job);
            match &entry.state {
                State::Here(_) | State::Elsewhere { .. } => {}
                State::Failed(failure) => {
                    let failure = dependency_failed(object, failure);
                    self.fail_kept(task, failure);
                    return;
                }
                State::Unknown | State::Pending | State::Locating => {
                    entry.tasks_waiting.push(task);
                    missing += 1;
                    last = Some(object);
                    self.locate_if_unknown(object);
                }
            }
        }
        self.set_kept_state(task, KeptState::AwaitDeps(missing));
        if missing == 0 {
            self.queue(task);
        } else if let (1, Some(made)) = (missing, last.filter(|id| !id.is_put()))
            && let Some(worker) = self.runs.get(&made.task).and_then(|run| run.given)
        {
            self.follow(worker, made.task);
        }
    }

    /// One argument of `task` exists now.
    pub(crate) fn dep_ready(&mut self, task: TaskId) {
        let Some(kept) = self.kept.get_mut(&task) else { return };
        if let KeptState::AwaitDeps(missing) = &mut kept.state {
            *missing -= 1;
            if *missing == 0 {
                self.queue(task);
            }
        }
    }
}

/// The failure of a task whose argument failed; the chain of causes grows by one.
pub(crate) fn dependency_failed(object: ObjectId, cause: &Failure) -> Failure {
    let nested = cause.kind() == FailureKind::FailureDependency;
    // The root's own words once, then only the way to it: a chain of thousands stays small.
    let first = if nested {
        format!("task {}", object.task)
    } else {
        format!("task {}: {}", object.task, cause.message)
    };
    let mut causes = vec![first];
    let rest = cause.causes.len().saturating_sub(CAUSES_MAX - 1);
    causes.extend(cause.causes.iter().skip(rest).cloned());
    let message = match nested {
        true => cause.message.clone(),
        false => {
            format!("an argument was never made, because task {} failed: {}", object.task, cause.message)
        }
    };
    Failure { kind: FailureKind::FailureDependency as i32, message, causes }
}
