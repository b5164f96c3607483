//! `durability = commit`: *a task begins only once its record is committed*, so that whatever is seen of it
//! can be made again.

use super::{Found, object};
use mobula_base::TaskId;

/// Looks at tasks of a job that wants so.
#[derive(Default)]
pub struct Durable {
    pub(super) found: Found,
}

impl Durable {
    /// A task begins, whose record is committed or not.
    pub fn started(&mut self, task: TaskId, committed: bool) {
        if !committed {
            object(&mut self.found, || format!("{task} begins before its record is committed"));
        }
    }
}
