//! G3: *an id denotes one value*, as far as the product promises that.
//!
//! What is recorded of a task is compared with what a later attempt makes, and unless its job accepts divergence the
//! task fails where they differ: that is for `answers`. What is read may be of another attempt all the same: of one
//! that was never recorded, as its keeper died, and of one that still runs and whose end will be refused. But a stream
//! that ends well *is of one making for whoever has taken it while it was made*: what a further attempt makes otherwise
//! ends the stream before it is told (decision 27). What is lost of it afterwards is made again like anything else.

use super::{Found, object as objects_to};
use crate::core::program::{Content, Oracle};
use crate::core::sometimes::Sometimes;
use mobula_base::{Instant, ObjectId, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// A client: the life of a node, its number there, and which of its runs.
pub type Who = (u64, u64, u64);

/// Knows which making is read where.
#[derive(Default)]
pub struct One {
    pub(super) found: Found,
    /// Moods in which the items were made that somebody has read.
    streams: BTreeMap<(Who, TaskId), BTreeSet<u64>>,
    /// Who submitted a stream last: an attempt whose successor runs beside it takes no more of it.
    takers: BTreeMap<TaskId, Who>,
    /// Streams that somebody knows to have ended.
    over: BTreeSet<(Who, TaskId)>,
    /// Of every object the mood in which it was read last.
    read: BTreeMap<ObjectId, u64>,
}

impl One {
    /// Somebody submits a task, and takes what it makes.
    pub fn takes(&mut self, who: Who, task: TaskId) {
        self.takers.insert(task, who);
    }

    /// Somebody reads a value.
    pub fn read(
        &mut self,
        oracle: &Oracle,
        who: Who,
        object: ObjectId,
        content: &Content,
        now: Instant,
        sometimes: &mut Sometimes,
    ) {
        let may_fail = oracle.tasks.get(&object.task).is_some_and(|known| known.diverges);
        if !may_fail || (object.is_put() && object.item().is_none() && object.element().is_none()) {
            return;
        }
        if self.read.insert(object, content.mood).is_some_and(|mood| mood != content.mood) {
            sometimes.hit("two values of one id were read");
        }
        match (object.item(), object.is_put()) {
            (Some(_), _) if self.over.contains(&(who, object.task)) => {}
            (Some(_), _) => _ = self.streams.entry((who, object.task)).or_default().insert(content.mood),
            // Whoever takes a stream sees that it has ended well.
            (None, false) => self.ended(who, object.task, content, now),
            (None, true) => {}
        }
    }

    fn ended(&mut self, who: Who, task: TaskId, mark: &Content, now: Instant) {
        self.over.insert((who, task));
        let Some(moods) = self.streams.remove(&(who, task)) else { return };
        if self.takers.get(&task) == Some(&who) && moods.iter().any(|mood| *mood != mark.mood) {
            objects_to(&mut self.found, || {
                format!(
                    "at {now:?} {who:?} finds that {task} ended well in mood {}, and has taken items of {moods:?}",
                    mark.mood
                )
            });
        }
    }
}
