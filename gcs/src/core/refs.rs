//! Who needs an object: nodes that hold it, and records and values with an edge to it (decision 14).

use super::format::{EdgeDump, NeededDump};
use mobula_base::{ObjectId, mutant};
use mobula_proto as proto;
use std::collections::{BTreeMap, BTreeSet};

/// What an entry costs beside its edges, in bytes: a guess.
const NEEDED_OVERHEAD: usize = 120;
/// What an edge costs, in bytes: a guess.
const EDGE_OVERHEAD: usize = 40;

/// Bits of an edge's kinds.
const NAMES: u32 = 1;
const CONTAINS: u32 = 2;

/// An edge, from a record or a put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// The record names the object, as an argument or inside one.
    pub names: bool,
    /// A value contains a reference to it.
    pub contains: bool,
    /// Who said so last; 0: it is known that there is such a record, or nobody knows any more.
    pub sender: u64,
}

/// Who needs one object, beyond the hold that its record implies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needed {
    holds: BTreeSet<u64>,
    edges: BTreeMap<ObjectId, Edge>,
}

impl Needed {
    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && (self.edges.is_empty() || mutant!("M10"))
    }

    /// Who holds it.
    pub fn holders(&self) -> impl Iterator<Item = u64> + '_ {
        self.holds.iter().copied()
    }

    /// Whether `who` holds it.
    pub fn is_held_by(&self, who: u64) -> bool {
        self.holds.contains(&who)
    }

    /// Whether anybody holds it.
    pub fn is_held(&self) -> bool {
        !self.holds.is_empty()
    }

    /// Whether a value contains it.
    pub fn is_contained(&self) -> bool {
        self.edges.values().any(|edge| edge.contains)
    }

    /// Whether a record names it.
    pub fn is_named(&self) -> bool {
        self.edges.values().any(|edge| edge.names)
    }

    /// Whether nobody does but what `by` contains or names.
    pub fn is_only_by(&self, by: ObjectId) -> bool {
        self.holds.is_empty() && self.edges.keys().all(|other| *other == by)
    }

    /// `who` holds it from here on.
    pub fn hold(&mut self, who: u64) {
        self.holds.insert(who);
    }

    /// `who` holds it no longer.
    pub fn let_go(&mut self, who: u64) {
        if mutant!("R8a") {
            self.holds.clear();
        }
        self.holds.remove(&who);
    }

    /// Those that `gone` says hold it no longer; whether there were any.
    pub fn bury(&mut self, gone: impl Fn(u64) -> bool) -> bool {
        let before = self.holds.len();
        self.holds.retain(|who| !gone(*who));
        self.holds.len() != before
    }

    /// An edge from `by`, as `sender` says.
    pub fn name(&mut self, by: ObjectId, contains: bool, sender: u64) {
        let edge = self.edges.entry(by).or_default();
        edge.sender = if sender == 0 { edge.sender } else { sender };
        edge.names |= !contains;
        edge.contains |= contains;
    }

    /// Its edges, by where they come from.
    pub fn edges(&self) -> impl Iterator<Item = (ObjectId, Edge)> + '_ {
        self.edges.iter().map(|(by, edge)| (*by, *edge))
    }

    /// Its edge from `by`.
    pub fn edge(&self, by: ObjectId) -> Option<Edge> {
        self.edges.get(&by).copied()
    }

    /// Whether it has any edge.
    pub fn has_edges(&self) -> bool {
        !self.edges.is_empty()
    }

    /// Who spoke of its edges.
    pub fn senders(&self) -> impl Iterator<Item = u64> + '_ {
        self.edges.values().map(|edge| edge.sender).filter(|sender| *sender != 0)
    }

    /// Edges by those that `gone` says, and who: whether their records ever came is to be asked, once.
    pub fn take_orphans(&mut self, gone: impl Fn(u64) -> bool) -> Vec<(ObjectId, u64)> {
        // What lies in a task's value is told by who made it, the task's record by who keeps it: the one may
        // die, and the other's word still come.
        let in_value = |by: &ObjectId, edge: &Edge| edge.contains && !by.is_put();
        let is_orphan = |edge: &Edge| edge.sender != 0 && gone(edge.sender);
        let orphans = self.edges.iter_mut().filter(|(by, edge)| is_orphan(edge) && !in_value(by, edge));
        orphans.map(|(by, edge)| (*by, std::mem::take(&mut edge.sender))).collect()
    }

    /// No edge from `by` any longer, unless somebody has spoken of it since it was asked about.
    pub fn unname_orphan(&mut self, by: ObjectId) {
        if self.edges.get(&by).is_some_and(|edge| edge.sender == 0) {
            self.edges.remove(&by);
        }
    }

    /// No edge from `by` any longer.
    pub fn unname(&mut self, by: ObjectId) {
        self.edges.remove(&by);
    }

    /// Bytes of memory, about.
    pub fn weight(&self) -> usize {
        NEEDED_OVERHEAD + self.edges.len() * EDGE_OVERHEAD
    }

    pub(super) fn dump(&self, place: u16, slot: u32) -> NeededDump {
        let edge = |(by, edge): (&ObjectId, &Edge)| EdgeDump {
            by: proto::object_bytes(*by),
            sender: edge.sender,
            kinds: (u32::from(edge.names) * NAMES) | (u32::from(edge.contains) * CONTAINS),
        };
        let holds = self.holds.iter().copied().collect();
        NeededDump { place: place.into(), slot, holds, edges: self.edges.iter().map(edge).collect() }
    }

    /// What [`Needed::dump`] gave; `None` when it is malformed.
    pub(super) fn load(dump: &NeededDump) -> Option<Self> {
        let edge = |edge: &EdgeDump| {
            let (names, contains) = (edge.kinds & NAMES != 0, edge.kinds & CONTAINS != 0);
            let kinds = Edge { names, contains, sender: edge.sender };
            Some((ObjectId::from_bytes(&edge.by)?, kinds))
        };
        let edges = dump.edges.iter().map(edge).collect::<Option<_>>()?;
        Some(Needed { holds: dump.holds.iter().copied().collect(), edges })
    }
}
