//! Who needs an object: nodes that hold it, and records and values with an edge to it (decision 14).

use super::format::{EdgeDump, NeededDump};
use mobula_base::ObjectId;
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
        self.holds.is_empty() && self.edges.is_empty()
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
        self.holds.remove(&who);
    }

    /// Those that `gone` says hold it no longer; whether there were any.
    pub fn bury(&mut self, gone: impl Fn(u64) -> bool) -> bool {
        let before = self.holds.len();
        self.holds.retain(|who| !gone(*who));
        self.holds.len() != before
    }

    /// An edge from `by`.
    pub fn name(&mut self, by: ObjectId, contains: bool) {
        let edge = self.edges.entry(by).or_default();
        edge.names |= !contains;
        edge.contains |= contains;
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
            kinds: (u32::from(edge.names) * NAMES) | (u32::from(edge.contains) * CONTAINS),
        };
        let holds = self.holds.iter().copied().collect();
        NeededDump { place: place.into(), slot, holds, edges: self.edges.iter().map(edge).collect() }
    }

    /// What [`Needed::dump`] gave; `None` when it is malformed.
    pub(super) fn load(dump: &NeededDump) -> Option<Self> {
        let edge = |edge: &EdgeDump| {
            let kinds = Edge { names: edge.kinds & NAMES != 0, contains: edge.kinds & CONTAINS != 0 };
            Some((ObjectId::from_bytes(&edge.by)?, kinds))
        };
        let edges = dump.edges.iter().map(edge).collect::<Option<_>>()?;
        Some(Needed { holds: dump.holds.iter().copied().collect(), edges })
    }
}
