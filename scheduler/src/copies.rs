//! Copies of a `put` that shall be there so many times, each on a node of its own (decision 24).
//!
//! Every node that has one of them, or shall have one, knows which nodes those are. The one among them that has lived
//! longest sees to it that there are enough: when one of the others dies, and when a node joins that can make up for one
//! that was missing. When it dies itself the next one does. A node that dies may have told some of the others and not
//! all: those that are left tell the one that sees to it what they know, and that one tells all.

use crate::core::Core;
use crate::objects::State;
use crate::recovery::Timer;
use crate::types::Effect;
use mobula_base::ids::hash64;
use mobula_base::{Incarnation, JobId, ObjectId, TaskId, mutant};
use mobula_proto::{Output, object_bytes};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Copies of one object that are seen to at most.
pub const COPIES_MAX: u32 = 64;
/// Copies of a large `put` of a driver that was put without a number: nothing makes it again (R6).
pub const PUT_COPIES: u32 = 2;
/// How long a node without room for a copy waits before it tries again.
pub const COPY_AGAIN: Duration = Duration::from_secs(1);

/// A copy of what nobody knows is given up after this.
const COPY_UNKNOWN_FOR: Duration = Duration::from_secs(10);

/// Where copies of one object are, or shall be.
#[derive(Debug)]
pub(crate) struct Copies {
    job: JobId,
    /// How many there shall be.
    want: u32,
    /// This node among them.
    at: BTreeSet<Incarnation>,
    output: Output,
}

/// What this node knows of copies that are seen to.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    of: BTreeMap<ObjectId, Copies>,
    /// Puts of tasks that run here, or are not durable, in which references lie: how many copies of each, later.
    later: BTreeMap<ObjectId, (JobId, u32, Output)>,
    /// The node that joined last, of those that are known: one above it has yet to be heard of, and one below that is
    /// no member is dead.
    last_joined: Incarnation,
}

impl Seen {
    /// Whether the copies of an object are seen to here.
    pub(crate) fn has(&self, id: ObjectId) -> bool {
        // Mostly there are none, and this is asked for each object that goes.
        !self.of.is_empty() && self.of.contains_key(&id)
    }

    pub(crate) fn forget(&mut self, id: ObjectId) {
        if !self.of.is_empty() {
            self.of.remove(&id);
        }
        if !self.later.is_empty() {
            self.later.remove(&id);
        }
    }

    pub(crate) fn forget_job(&mut self, job: JobId) {
        self.of.retain(|_, copies| copies.job != job);
        self.later.retain(|_, (of, ..)| *of != job);
    }

    /// The nodes that have copies of an object, or shall have.
    pub(crate) fn places(&self, id: ObjectId) -> impl Iterator<Item = Incarnation> {
        self.of.get(&id).into_iter().flat_map(|copies| copies.at.iter().copied())
    }
}

impl Core {
    /// A client here has put what shall be there `want` times.
    pub(crate) fn begin_copies(&mut self, id: ObjectId, job: JobId, want: u32, output: Output) {
        let at = BTreeSet::from([self.config.incarnation]);
        self.note_copies(id, Copies { job, want, at, output });
    }

    /// As [`Core::begin_copies`], of a task's put in which references lie. Copies of it would outlive the node before the
    /// records of what lies inside have come, and nothing would ever make that: nobody misses the put (R4).
    pub(crate) fn begin_copies_later(&mut self, id: ObjectId, job: JobId, want: u32, output: Output) {
        self.copies.later.insert(id, (job, want, output));
    }

    /// All that a task has submitted here is committed, however it ended.
    pub(crate) fn begin_later_copies(&mut self, task: TaskId) {
        if self.copies.later.is_empty() {
            return;
        }
        let of_task: Vec<ObjectId> =
            self.copies.later.range(task.output(0)..=task.output(u32::MAX)).map(|(id, _)| *id).collect();
        for id in of_task {
            let later = self.copies.later.remove(&id).filter(|_| self.value_of(id).is_some());
            if let Some((job, want, output)) = later {
                self.begin_copies(id, job, want, output);
            }
        }
    }

    /// What another node says of copies counts beside what is known here: two that decide at the same time keep one
    /// too many, not one too few.
    fn note_copies(&mut self, id: ObjectId, said: Copies) {
        let want = said.want.clamp(1, COPIES_MAX);
        let copies = self.copies.of.entry(id).or_insert_with(|| Copies { at: BTreeSet::new(), ..said });
        copies.want = want;
        copies.at.extend(said.at);
        copies.at.insert(self.config.incarnation);
        self.see_to_copies(id);
    }

    /// A node wants this one to have a copy, which another one has: one among `want`, at these nodes. Without a number it is
    /// of an earlier release, and the second copy of a driver's `put`.
    pub(crate) fn replicate(
        &mut self,
        id: ObjectId,
        job: JobId,
        holder: Incarnation,
        output: Output,
        (want, mut at): (u32, Vec<Incarnation>),
    ) {
        at.truncate(COPIES_MAX as usize);
        if self.jobs_ended.contains(&job) {
            return;
        }
        let object = self.object(id, job);
        if want > 0 && matches!(object.state, State::Failed(_)) {
            return;
        }
        if matches!(object.state, State::Unknown | State::Locating) {
            object.state = State::Elsewhere { holders: vec![holder], output };
        }
        object.replica = !matches!(object.state, State::Here(_));
        // A small value may have come with a task, of which its home was told nothing.
        if want > 0 && !object.replica {
            self.effects.push(Effect::Held { object: id });
        }
        if want > 0 {
            let at = at.into_iter().chain([holder]).collect();
            self.note_copies(id, Copies { job, want, at, output });
        }
        self.want_here(id);
        self.to_tidy.push_back(id);
    }

    /// Chooses nodes for the copies that are missing, and tells all that shall have one, if that is for this node to do.
    fn see_to_copies(&mut self, id: ObjectId) {
        let me = self.config.incarnation;
        let (members, last) = (&self.members, self.copies.last_joined);
        let Some(copies) = self.copies.of.get_mut(&id) else { return };
        let before = copies.at.len();
        copies.at.retain(|node| *node == me || *node > last || members.contains_key(node));
        let Some(sees) = copies.at.first().copied() else { return };
        // Whoever is dead may have told some and not the others.
        let has_died = copies.at.len() < before;
        if sees != me {
            if has_died {
                self.tell_of_copies(id, &[sees]);
            }
            return;
        }
        let missing = (copies.want as usize).saturating_sub(copies.at.len());
        let open = members.iter().filter(|(node, m)| m.total.cpu_milli > 0 && !copies.at.contains(node));
        let mut open: Vec<Incarnation> = open.map(|(node, _)| *node).collect();
        // The same for whoever decides, and another order for each object: copies are spread over all nodes.
        let name = object_bytes(id);
        open.sort_by_cached_key(|node| Reverse((hash64(&[&name[..], &node.0.to_le_bytes()]), *node)));
        open.truncate(missing);
        if !open.is_empty() || has_died {
            copies.at.extend(open);
            let others: Vec<Incarnation> = copies.at.iter().copied().filter(|node| *node != me).collect();
            self.tell_of_copies(id, &others);
        }
    }

    fn tell_of_copies(&mut self, id: ObjectId, to: &[Incarnation]) {
        let Some(Copies { job, want, at, output }) = self.copies.of.get(&id) else { return };
        let told = to.iter().map(|to| Effect::Replicate {
            to: *to,
            object: id,
            job: *job,
            output: *output,
            want: *want,
            at: at.iter().copied().collect(),
        });
        self.effects.extend(told);
    }

    /// Nodes have joined, or died.
    pub(crate) fn see_to_all_copies(&mut self) {
        let joined = self.members.keys().next_back().copied().unwrap_or_default();
        self.copies.last_joined = self.copies.last_joined.max(joined);
        let all: Vec<ObjectId> = self.copies.of.keys().copied().collect();
        for id in all.into_iter().filter(|_| !mutant!("R6f")) {
            self.see_to_copies(id);
        }
    }

    /// The store of this node had no room for a copy: it is tried again, for as long as it is to be here.
    pub(crate) fn copy_has_no_room(&mut self, id: ObjectId) -> bool {
        let waits = self.copies.has(id);
        if waits {
            self.set_timer(COPY_AGAIN, Timer::CopyAgain(id));
        }
        waits
    }

    /// Whoever wanted a copy here has none to give, and the home of the object knows nothing of it: its record may be on
    /// its way, and the copy is tried again; or whoever let go of it died before it told this node. True if nothing else
    /// here waits for it meanwhile.
    pub(crate) fn copy_is_unknown(&mut self, id: ObjectId, so_long: Duration) -> bool {
        let stays = self.copies.has(id) && so_long < COPY_UNKNOWN_FOR && !mutant!("W45");
        if !stays {
            self.copies.forget(id);
        }
        let Some(object) = self.objects.get_mut(&id) else { return false };
        object.replica &= stays;
        if !object.is_only_copied() {
            return false;
        }
        object.state = State::Unknown;
        self.set_timer(COPY_AGAIN, Timer::CopyAgain(id));
        true
    }

    pub(crate) fn copy_again(&mut self, id: ObjectId) {
        if self.objects.get(&id).is_some_and(|object| object.replica) {
            self.want_here(id);
        }
    }

    /// The last copy is gone before this node had one. Nobody here needs it: whoever does has it made again, and with
    /// that its copies. True if so.
    pub(crate) fn gives_up_copy(&mut self, id: ObjectId) -> bool {
        let Some(object) = self.objects.get_mut(&id).filter(|object| object.is_only_copied()) else {
            return false;
        };
        if self.kept.contains_key(&id.task) {
            return false;
        }
        object.replica = false;
        object.state = State::Unknown;
        self.copies.forget(id);
        self.to_tidy.push_back(id);
        true
    }

    /// Objects that shall be there several times and that this node sees to; those of them with too few nodes; and those
    /// that shall be here and are not yet.
    pub(crate) fn count_copies(&self) -> (u64, u64, u64) {
        let me = self.config.incarnation;
        let (mut all, mut short, mut awaited) = (0, 0, 0);
        for (id, copies) in &self.copies.of {
            let sees = copies.at.first() == Some(&me);
            all += u64::from(sees);
            short += u64::from(sees && copies.at.len() < copies.want as usize);
            awaited += u64::from(self.value_of(*id).is_none());
        }
        (all, short, awaited)
    }
}
