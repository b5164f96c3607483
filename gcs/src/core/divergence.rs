//! An id denotes one value (G3): what a later attempt makes is compared with what was recorded before.

use super::run::{Before, Standing, State, object_ids};
use bytes::Bytes;
use mobula_base::{ObjectId, TaskId, mutant};
use mobula_proto as proto;
use prost::Message;
use proto::{FailureKind, Output};

/// How a task stands after `done`, and whether it made something else than before. What has edges from it
/// keeps them, also when it failed after it had put what contains them.
pub(super) fn ended(standing: Standing, done: &proto::Done, spec: &Bytes) -> (Standing, bool) {
    let before = standing.before.clone().unwrap_or_default();
    let contains = merged(&done.contains, &before);
    let failed = |failure: proto::Failure| {
        let is_empty = before.outputs.is_empty() && contains.is_empty();
        let kept = Before { outputs: before.outputs.clone(), contains: contains.clone() };
        let before = (!is_empty).then(|| Box::new(kept));
        Standing {
            state: State::Failed { executor: done.executor, failure: Box::new(failure) },
            before,
            ..standing.clone()
        }
    };
    if let Some(failure) = &done.failure {
        // Its own cause says more than that it returned nothing this time.
        return (failed(failure.clone()), false);
    }
    let known = &before.outputs;
    let diverged = !known.is_empty() && known[..] != done.outputs[..];
    if diverged && !proto::TaskSpec::decode(spec.clone()).unwrap_or_default().accept_divergence {
        let failure = proto::Failure::new(FailureKind::FailureDiverged, message(done, known));
        return (failed(failure), true);
    }
    let state = State::Done {
        executor: done.executor,
        outputs: done.outputs.clone().into(),
        holders: done.holders.clone().into(),
        contains,
    };
    (Standing { state, before: None, ..standing }, diverged)
}

/// What attempts so far have recorded, when `next` is to follow: also what the last one had put when it died.
pub(super) fn recorded(standing: &Standing, next: &proto::NextAttempt) -> Option<Box<Before>> {
    let recorded = standing.recorded();
    if next.contains.is_empty() || mutant!("R6d") {
        return recorded;
    }
    let before = recorded.map(|before| *before).unwrap_or_default();
    Some(Box::new(Before { contains: merged(&next.contains, &before), ..before }))
}

/// What has edges from the task by now, each once.
fn merged(news: &[Bytes], before: &Before) -> Box<[ObjectId]> {
    let mut all: Vec<_> = object_ids(news).into_iter().chain(before.contains.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    all.into()
}

fn message(done: &proto::Done, known: &[Output]) -> String {
    let task = TaskId::from_bytes(&done.task).map(|id| id.to_string()).unwrap_or_default();
    let say = |outputs: &[Output], at: usize| match outputs.get(at) {
        Some(output) => format!("{} bytes with CRC {:08x}", output.size, output.crc),
        None => "nothing".to_owned(),
    };
    let at = (0..known.len()).find(|at| known.get(*at) != done.outputs.get(*at)).unwrap_or(known.len());
    format!(
        "attempt {} of task {task} returned something else than an earlier one: value {at} was {} and is now {}; \
         make the task deterministic, or start its job with on_divergence = accept",
        done.attempt,
        say(known, at),
        say(&done.outputs, at),
    )
}
