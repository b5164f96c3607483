//! Sizes on which no promise depends. A simulation bends them, so that what hardly ever happens at their usual size
//! happens all the time: batches that end between what belongs together, questions in many parts, one transfer at
//! once.

use crate::core::Core;

/// Other sizes than the usual ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bends {
    /// Items of a batch, at most.
    pub batch_items: Option<usize>,
    /// Transfers to a node at once.
    pub fetches: Option<usize>,
    /// Objects that one question is about.
    pub locates: Option<usize>,
    /// Copies without a use that one report names.
    pub idle: Option<usize>,
}

impl Core {
    /// Goes by other sizes from here on. None of them may be 0.
    pub fn bend(&mut self, bends: Bends) {
        self.bends = bends;
        self.streams.bend(bends.batch_items);
    }
}
