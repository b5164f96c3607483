//! Points that a run reaches sometimes: one that no run of a large sweep has reached is a hole in the
//! generator, not a proof of anything.

use std::collections::BTreeMap;

/// Every point there is. A name that is not here cannot be hit.
pub const POINTS: &[&str] = &[
    "answer of a deposed leader",
    "attempt granted",
    "attempt refused",
    "batch applied twice",
    "batch from the fenced",
    "batch lost with its leader",
    "batch survives its leader unanswered",
    "copies and leader lost together",
    "copies freed elsewhere",
    "copies made up for",
    "copy of an earlier life taken up",
    "copy of an earlier life was another value",
    "death accused by a shard",
    "death by silence",
    "death proven by the kernel",
    "disk lost with its machine",
    "disk took no file",
    "divergence refused",
    "divergence told",
    "driver died",
    "edge ended in another shard",
    "fetch from the dead",
    "fetch of nothing",
    "fetch repeated",
    "file of a value was damaged",
    "frame from the dead",
    "frame repeated",
    "leader started from a snapshot",
    "lost said",
    "message for an earlier life",
    "moved to another head",
    "node back after its death",
    "hedge came first",
    "item taken by the driver",
    "item taken when its task had ended",
    "item taken",
    "node fenced while it ran",
    "parked question answered early",
    "poison ended",
    "rebuilt twice",
    "rebuilt",
    "reference dropped inside a task",
    "reference taken out of a value",
    "request in flight when the caller gave up",
    "retries exhausted",
    "spare copy dropped for room",
    "spilled over",
    "store full",
    "straggler came first",
    "stream dropped by the driver",
    "stream waited to be taken",
    "struck at its moment",
    "submit known already",
    "task hedged",
    "task returned a stream",
    "task returned in parts",
    "task cancelled by its parent",
    "task cancelled",
    "task elided",
    "task failed and may run again",
    "task hangs",
    "task may have run",
    "time over",
    "two values of one id were read",
    "value came back from its file",
    "value given back for room",
    "value had gone when it was to be read back",
    "value left memory for a file",
    "value sent from its file",
    "waited for room",
    "worker bounced a task",
    "worker died after its report",
    "worker died before its report",
    "worker died before start",
    "worker died in mid-run",
    "worker had not made an argument",
    "worker killed for a task that is not to go on",
    "worker retired",
    "worker stopped a task",
    "worker told of what waited for its arguments",
    "worker used what it had made",
    "worker waited for room",
    "worker waited inside a task",
];

/// Every point of the full layer.
pub const FULL_POINTS: &[&str] = &[
    "all copies dropped with their job",
    "attempt granted",
    "attempt refused",
    "batch applied twice",
    "batch from the fenced",
    "death declared",
    "head crashed",
    "head cut off",
    "head lost power",
    "head stopped by its disk",
    "leader changed",
    "messages between nodes lost",
    "node back after its death",
    "node crashed",
    "node cut off",
    "node paused",
    "node paused beyond its death",
    "poison ended",
    "reference taken out of a value",
    "request in flight when the caller gave up",
    "request lost",
    "request unanswered",
    "retries exhausted",
    "submit known already",
    "task executed again",
    "task executed for the third time",
    "task may have run",
    "worker died before start",
    "worker died before its report",
    "worker died in mid-run",
    "worker died after its report",
    "worker waited inside a task",
];

/// How often each point was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sometimes(BTreeMap<&'static str, u64>);

impl Sometimes {
    /// A point is reached.
    ///
    /// # Panics
    /// It is not among [`POINTS`].
    pub fn hit(&mut self, point: &'static str) {
        debug_assert!(POINTS.contains(&point) || FULL_POINTS.contains(&point), "{point} is no point");
        *self.0.entry(point).or_default() += 1;
    }

    /// Adds those of another run.
    pub fn merge(&mut self, other: &Sometimes) {
        for (point, hits) in &other.0 {
            *self.0.entry(point).or_default() += hits;
        }
    }

    /// How often a point was reached.
    pub fn hits(&self, point: &str) -> u64 {
        self.0.get(point).copied().unwrap_or(0)
    }

    /// All that were reached.
    pub fn reached(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(point, hits)| (*point, *hits))
    }

    /// Points that were never reached.
    pub fn missed(&self) -> Vec<&'static str> {
        POINTS.iter().copied().filter(|point| self.hits(point) == 0).collect()
    }
}
