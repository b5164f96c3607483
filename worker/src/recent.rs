//! What this worker has made lately: the next task in its line may need it, and its node need not hand it back.

use bytes::Bytes;
use mobula_base::{IdMap, ObjectId};
use mobula_proto::{RunTask, Value, object_id, task_id, value as wire_value};
use std::collections::VecDeque;

/// Bytes that are kept at most; a value beyond that is asked for again.
const BYTES_MAX: usize = 1 << 20;
/// Values that are kept at most: no more tasks than this stand in a worker's line.
const VALUES_MAX: usize = 1024;

/// Small values without references, the oldest first.
#[derive(Default)]
pub(crate) struct Recent {
    values: IdMap<ObjectId, Bytes>,
    order: VecDeque<ObjectId>,
    bytes: usize,
}

/// What a value counts for beside its bytes.
const ENTRY: usize = 64;

impl Recent {
    /// Keeps what a task returned.
    pub fn keep(&mut self, id: ObjectId, value: Bytes) {
        self.bytes += value.len() + ENTRY;
        if let Some(old) = self.values.insert(id, value) {
            self.bytes -= old.len() + ENTRY;
        } else {
            self.order.push_back(id);
        }
        while (self.bytes > BYTES_MAX || self.order.len() > VALUES_MAX)
            && let Some(oldest) = self.order.pop_front()
            && let Some(gone) = self.values.remove(&oldest)
        {
            self.bytes -= gone.len() + ENTRY;
        }
    }

    /// What an earlier attempt made is not to be taken for what this one makes, which may fail.
    fn forget(&mut self, id: ObjectId) {
        if let Some(old) = self.values.remove(&id) {
            self.bytes -= old.len() + ENTRY;
            self.order.retain(|kept| *kept != id);
        }
    }

    /// Puts in the argument that this worker was to make itself, if any; whether it has.
    pub fn complete(&mut self, run: &mut RunTask) -> bool {
        let task = run.spec.as_ref().and_then(|spec| task_id(&spec.id).ok());
        task.into_iter().for_each(|task| self.forget(task.output(0)));
        let Some(made) = &run.made else { return true };
        let value = object_id(&made.object).ok().and_then(|id| self.values.get(&id));
        let (Some(value), Some(place)) = (value, run.args.get_mut(made.place as usize)) else { return false };
        *place = Value { value: Some(wire_value::Value::Inline(value.clone())) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::{JobId, TaskId};
    use mobula_proto::{Made, TaskSpec, object_bytes, task_bytes};

    #[test]
    fn what_was_made_is_put_in_unless_it_was_too_long_ago() {
        let id = |n: u64| TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, n).output(0);
        // As it travels: the record without its arguments.
        let run = |n: u64| {
            let made = Some(Made { place: 1, object: object_bytes(id(n)) });
            let args = vec![Value::default(); 2];
            RunTask { spec: Some(TaskSpec::default()), args, made, ..RunTask::default() }
        };
        let mut recent = Recent::default();
        assert!(!recent.complete(&mut run(1)));
        recent.keep(id(1), Bytes::from_static(b"one"));
        let mut complete = run(1);
        assert!(recent.complete(&mut complete));
        let inline = |value: &Value| match &value.value {
            Some(wire_value::Value::Inline(bytes)) => bytes.clone(),
            _ => Bytes::new(),
        };
        assert_eq!((&inline(&complete.args[0])[..], &inline(&complete.args[1])[..]), (&b""[..], &b"one"[..]));
        for n in 2..20 {
            recent.keep(id(n), Bytes::from(vec![0; BYTES_MAX / 10]));
        }
        assert!(!recent.complete(&mut run(1)) && recent.complete(&mut run(19)));
        assert!(recent.bytes <= BYTES_MAX);
        // The task that has made it runs again, and may fail this time.
        let spec = Some(TaskSpec { id: task_bytes(id(19).task), ..TaskSpec::default() });
        let before = recent.bytes;
        assert!(recent.complete(&mut RunTask { spec, ..RunTask::default() }));
        assert!(!recent.complete(&mut run(19)) && recent.complete(&mut run(18)));
        assert!(recent.bytes < before && !recent.order.contains(&id(19)));
        for n in 20..2 * VALUES_MAX as u64 {
            recent.keep(id(n), Bytes::new());
        }
        assert_eq!((recent.values.len(), recent.order.len()), (VALUES_MAX, VALUES_MAX));
        assert!(!recent.complete(&mut RunTask { args: Vec::new(), ..run(19) }), "no such argument");
    }
}
