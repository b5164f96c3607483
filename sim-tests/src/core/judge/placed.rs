//! Placement: *a task runs only on a node that has the labels it insists on, or is the one it insists
//! on.* Read off the program's own drawing, not from what the scheduler makes of it.

use super::{Found, object};
use crate::core::program::{Place, label_of};
use mobula_base::TaskId;

/// Looks at where tasks begin.
#[derive(Default)]
pub struct Placed {
    pub(super) found: Found,
}

impl Placed {
    /// A task that may run only in some places begins on a machine.
    pub fn started(&mut self, task: TaskId, place: Place, machine: usize) {
        let allowed = match place {
            Place::Anywhere | Place::Spread | Place::Rather(_) => true,
            Place::Only(node) => node == machine,
            Place::OneOf(zone) => [label_of(0), zone].contains(&label_of(machine)),
            Place::AllBut(zone) => label_of(machine) != zone,
        };
        if !allowed {
            object(&mut self.found, || format!("{task} wants {place:?} and runs on machine {machine}"));
        }
    }
}
