//! S24: *a failure that the program does not ask for has a cause*: a task that may have used up its attempts, or
//! something that leads to one.

use crate::program::{Expected, Oracle};
use mobula_base::TaskId;
use std::collections::BTreeSet;

/// Whether a task, or something that it needs, may have failed, where `died` says which may have used up their attempts.
pub fn explains(oracle: &Oracle, task: TaskId, died: &dyn Fn(TaskId) -> bool) -> bool {
    leads(oracle, task, died, &mut BTreeSet::new())
}

fn leads(oracle: &Oracle, task: TaskId, died: &dyn Fn(TaskId) -> bool, seen: &mut BTreeSet<TaskId>) -> bool {
    let Some(known) = oracle.tasks.get(&task).filter(|_| seen.insert(task)) else { return false };
    let needed = known.args.iter().chain(&known.uses);
    let fails = |id: &mobula_base::ObjectId| oracle.objects.get(id) == Some(&Expected::Failure);
    died(task)
        || needed.clone().any(|id| fails(id) || leads(oracle, id.task, died, seen))
        || known.children.iter().any(|child| leads(oracle, *child, died, seen))
}
