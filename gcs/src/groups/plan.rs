//! Which bundle where: a search that takes, for the largest bundle first, the node that the strategy likes best,
//! and goes back when the rest does not fit.

use crate::core::groups::allows;
use mobula_base::Resources;
use mobula_proto::GroupStrategy;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that one search looks at, again and again included, before it finds nothing: packing is hard, and a group
/// that only a long search could place waits until there is more room. About ten milliseconds.
pub const LOOKS_MAX: usize = 200_000;

struct Search<'a> {
    strategy: GroupStrategy,
    /// The largest first.
    open: Vec<&'a (u32, Resources)>,
    room: BTreeMap<u64, Resources>,
    /// Bundles of the group on each node.
    used: BTreeMap<u64, u32>,
    found: Vec<(u32, u64)>,
    looks: usize,
}

/// A node for each bundle of `open`, in rooms of nodes, where the bundles of the group that have their places are
/// on `taken`. `None`: there is none, or none was found in time.
pub fn plan(
    strategy: GroupStrategy,
    open: &[(u32, Resources)],
    taken: &[u64],
    room: &BTreeMap<u64, Resources>,
) -> Option<Vec<(u32, u64)>> {
    if !allows(strategy, taken.iter().copied()) {
        return None;
    }
    let mut used = BTreeMap::new();
    taken.iter().for_each(|node| *used.entry(*node).or_default() += 1);
    let mut open: Vec<&(u32, Resources)> = open.iter().collect();
    // Of what is rare, first; of equals, in their order.
    open.sort_by_key(|(number, demand)| Reverse((size(demand), Reverse(*number))));
    let mut search = Search { strategy, open, room: room.clone(), used, found: Vec::new(), looks: 0 };
    search.go().then(|| {
        search.found.sort_unstable();
        search.found
    })
}

/// What is named is rarer than CPUs.
fn size(demand: &Resources) -> (usize, u64, u64) {
    (demand.named.len(), demand.named.values().sum(), demand.cpu_milli)
}

impl Search<'_> {
    /// Places the bundles from the next one on. Deep at most as a group has bundles.
    fn go(&mut self) -> bool {
        let Some((number, demand)) = self.open.get(self.found.len()).copied() else { return true };
        let mut tried: BTreeSet<(u32, Vec<u64>, u64)> = BTreeSet::new();
        for node in self.candidates(demand) {
            // Where there is just as much room, and as many of the group, it would come to the same.
            let room = &self.room[&node];
            let names = room.named.values().copied().collect();
            let is_new = tried.insert((self.used.get(&node).copied().unwrap_or(0), names, room.cpu_milli));
            if !is_new && self.is_alike() {
                continue;
            }
            if self.looks > LOOKS_MAX {
                return false;
            }
            self.room.get_mut(&node).expect("a candidate").take(demand);
            *self.used.entry(node).or_default() += 1;
            self.found.push((*number, node));
            if self.go() {
                return true;
            }
            self.found.pop();
            let used = self.used.get_mut(&node).expect("counted above");
            *used -= 1;
            if *used == 0 {
                self.used.remove(&node);
            }
            self.room.get_mut(&node).expect("a candidate").give(demand);
        }
        false
    }

    /// Whether all nodes name the same resources, so that amounts in a row can be compared.
    fn is_alike(&self) -> bool {
        let mut rooms = self.room.values();
        let Some(first) = rooms.next() else { return true };
        rooms.all(|room| room.named.keys().eq(first.named.keys()))
    }

    /// Nodes that may take a bundle, the best first.
    fn candidates(&mut self, demand: &Resources) -> Vec<u64> {
        self.looks += self.room.len();
        let used = |node: &u64| self.used.get(node).copied().unwrap_or(0);
        let may = |node: &u64| match self.strategy {
            GroupStrategy::GroupPack | GroupStrategy::GroupSpread => true,
            GroupStrategy::GroupStrictPack => self.used.is_empty() || used(node) > 0,
            GroupStrategy::GroupStrictSpread => used(node) == 0,
            GroupStrategy::GroupUnspecified => false,
        };
        let fitting = self.room.iter().filter(|(node, room)| room.fits(demand) && may(node));
        let mut nodes: Vec<u64> = fitting.map(|(node, _)| *node).collect();
        match self.strategy {
            // Where some are already; then where most of the rest will find room.
            GroupStrategy::GroupPack | GroupStrategy::GroupStrictPack => {
                nodes.sort_by_cached_key(|node| (Reverse(used(node) > 0), Reverse(self.takes(*node)), *node));
            }
            // Where the fewest are; then where most is left.
            GroupStrategy::GroupSpread | GroupStrategy::GroupStrictSpread => {
                nodes.sort_by_cached_key(|node| (used(node), Reverse(self.room[node].cpu_milli), *node));
            }
            GroupStrategy::GroupUnspecified => {}
        }
        nodes
    }

    /// How many of the open bundles a node could take, in their order; of as many, the node with less left.
    fn takes(&self, node: u64) -> (usize, Reverse<u64>) {
        let mut room = self.room[&node].clone();
        let mut count = 0;
        for (_, demand) in &self.open[self.found.len()..] {
            if room.fits(demand) {
                room.take(demand);
                count += 1;
            }
        }
        (count, Reverse(room.cpu_milli))
    }
}
