//! Where a task may run beyond what it demands: which nodes its placement admits, and what to say when none does.

use crate::placement::Member;
use mobula_base::{Incarnation, Resources};
use mobula_proto::{LabelOp, LabelTerm, NodeAffinity, Placement};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Nodes that are named in the reason why a task cannot be placed; the others are counted.
const OFFERS_MAX: usize = 8;

/// Whether a task may ever run on a node: it is large enough, and everything that is asked of it holds.
pub(crate) fn admits(
    demand: &Resources,
    placement: Option<&Placement>,
    node: Incarnation,
    member: &Member,
) -> bool {
    member.total.fits(demand) && placement.is_none_or(|placement| suits(placement, node, member))
}

/// Whether everything but the amounts holds.
fn suits(placement: &Placement, node: Incarnation, member: &Member) -> bool {
    let affine =
        placement.node.as_ref().is_none_or(|affinity| affinity.soft || is_meant(affinity, node, member));
    affine && placement.labels.iter().all(|term| holds(term, &member.labels))
}

/// Whether an affinity means this node.
pub(crate) fn is_meant(affinity: &NodeAffinity, node: Incarnation, member: &Member) -> bool {
    match affinity.incarnation {
        0 => member.name == affinity.name,
        incarnation => node.0 == incarnation,
    }
}

fn holds(term: &LabelTerm, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&term.key);
    let is_in = value.is_some_and(|value| term.values.contains(value));
    match term.op() {
        LabelOp::LabelIn => is_in,
        LabelOp::LabelNotIn => !is_in,
        LabelOp::LabelExists => value.is_some(),
        LabelOp::LabelNotExists => value.is_none(),
        // Of a newer program, or of none: better nowhere than anywhere.
        LabelOp::LabelUnspecified => false,
    }
}

/// Why no node will do, for people: what is asked for, and what there is.
pub(crate) fn never<'a>(
    demand: &Resources,
    placement: Option<&Placement>,
    known: impl Iterator<Item = &'a Member>,
) -> String {
    let mut wanted = demand.to_string();
    if let Some(placement) = placement {
        describe(placement, &mut wanted);
    }
    let mut offers = String::new();
    let mut more = 0;
    for (index, member) in known.enumerate() {
        if index < OFFERS_MAX {
            let gap = if index == 0 { "" } else { "; " };
            let _ = write!(offers, "{gap}{} has {}", member.name, member.total);
            // Labels matter only to those who look at them.
            if placement.is_some_and(|placement| !placement.labels.is_empty()) {
                let labels: Vec<String> = member.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") };
                let _ = write!(offers, ", {labels}");
            }
        } else {
            more += 1;
        }
    }
    if more > 0 {
        let _ = write!(offers, "; and {more} more nodes");
    }
    if offers.is_empty() {
        offers.push_str("no node is known");
    }
    format!(
        "the task can never be placed: it asks for {wanted}, and no node offers that ({offers}); ask for less or add a node"
    )
}

fn describe(placement: &Placement, out: &mut String) {
    if placement.spread {
        out.push_str(", spread over all nodes");
    }
    match &placement.node {
        Some(NodeAffinity { soft: true, .. }) | None => {}
        Some(NodeAffinity { incarnation: 0, name, .. }) => {
            let _ = write!(out, ", on the node \"{name}\" and no other (hard affinity)");
        }
        Some(NodeAffinity { incarnation, .. }) => {
            let _ = write!(out, ", on {} and no other (hard affinity)", Incarnation(*incarnation));
        }
    }
    for term in &placement.labels {
        let values = term.values.join(", ");
        let _ = match term.op() {
            LabelOp::LabelIn => write!(out, ", where {} is in ({values})", term.key),
            LabelOp::LabelNotIn => write!(out, ", where {} is not in ({values})", term.key),
            LabelOp::LabelExists => write!(out, ", where there is a label {}", term.key),
            LabelOp::LabelNotExists => write!(out, ", where there is no label {}", term.key),
            LabelOp::LabelUnspecified => write!(out, ", where {} is as no node can tell", term.key),
        };
    }
}
