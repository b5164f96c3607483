//! Why a group cannot be placed, for people: which bundle asks for what, and what there is. Of what tasks use
//! meanwhile nothing is said, so that the reason stays as it is until something has changed.

use super::{Offer, plan, say};
use crate::core::groups::Group;
use mobula_base::Resources;
use mobula_proto::GroupStrategy;
use std::collections::BTreeMap;

/// The reason; to be asked when no place was found.
pub fn why(
    group: &Group,
    open: &[(u32, Resources)],
    taken: &[u64],
    nodes: &BTreeMap<u64, Offer>,
    rooms: &BTreeMap<u64, Resources>,
) -> String {
    let known: BTreeMap<u64, &Offer> =
        nodes.iter().filter(|(_, node)| node.counts()).map(|(number, node)| (*number, node)).collect();
    if known.is_empty() {
        return "no node is there that could reserve anything: start one".into();
    }
    for (number, demand) in open {
        if !known.values().any(|node| node.total.fits(demand)) {
            return format!(
                "bundle {number} asks for {demand}, and no node offers that ({}): ask for less or add a larger node",
                largest(&known, demand)
            );
        }
    }
    let strategy = group.wanted.strategy();
    let count = group.places.len();
    if strategy == GroupStrategy::GroupStrictSpread && count > known.len() {
        return format!(
            "strict spread asks for {count} nodes, one for each bundle, and {} are there: add nodes, or spread without strict",
            known.len()
        );
    }
    let mut sum = Resources::default();
    open.iter().for_each(|(_, demand)| sum.give(demand));
    if strategy == GroupStrategy::GroupStrictPack && !known.values().any(|node| node.total.fits(&sum)) {
        return format!(
            "strict pack asks for {sum} on one node, and no node offers that ({}): ask for less, add a larger node, or pack \
             without strict",
            largest(&known, &sum)
        );
    }
    let totals = known.iter().map(|(number, node)| (*number, node.total.clone())).collect();
    if rooms == &totals || plan::plan(strategy, open, taken, &totals).is_none() {
        return format!(
            "the {} nodes together have no place for its bundles ({}; they ask for {sum}): ask for less or add nodes",
            known.len(),
            say(strategy)
        );
    }
    format!(
        "it waits for what other placement groups have reserved (it asks for {sum}): remove one, or add nodes"
    )
}

/// The node that comes closest, and what it offers: the one that lacks the least of what is short.
fn largest(known: &BTreeMap<u64, &Offer>, demand: &Resources) -> String {
    let lacks = |node: &Offer| {
        let named = demand.named.iter().map(|(name, need)| need.saturating_sub(node.total.of(name)));
        let cpus = demand.cpu_milli.saturating_sub(node.total.cpu_milli);
        let all: Vec<u64> = named.chain([cpus]).filter(|lacks| *lacks > 0).collect();
        (all.len(), all.iter().sum::<u64>())
    };
    let closest = known.values().min_by_key(|node| lacks(node));
    closest.map_or(String::new(), |node| format!("the largest, {}, has {}", node.name, node.total))
}
