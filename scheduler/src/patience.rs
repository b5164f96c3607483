//! A task had better wait for the node that has its arguments, if its turn there comes before they could be
//! brought anywhere else.
//!
//! Without patience the nodes that have room take what is next in line, wherever its arguments lie; once all
//! nodes are busy, that is as good as chance, and links do the work that waiting for a moment would save.
//!
//! How soon the turn comes is a guess. So a task waits no longer than bringing its arguments would take: it
//! loses at most as much again as it could have saved, whatever else happens on that node.

use crate::core::{Core, Kept};
use crate::placement::LOCALITY_MIN;
use crate::recovery::Timer;
use crate::strategy;
use mobula_base::{Incarnation, TaskId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Bringing a byte takes about so long: that is a link of 1 Gb/s. Where links are faster, patience ends later
/// than it should, but never later than this.
const BRING_NS_PER_BYTE: u64 = 8;

impl Core {
    /// The node that a task had better wait for, and for how long at most, when the best of those that have
    /// room would have to bring its arguments.
    pub(crate) fn worth_waiting_for(
        &self,
        kept: &Kept,
        index: usize,
        bytes: &BTreeMap<Incarnation, u64>,
        instead: Incarnation,
    ) -> Option<(Incarnation, Duration)> {
        let class = &self.classes[index];
        let most = bytes.values().copied().max()?;
        let brings_ns = (most - bytes.get(&instead).copied().unwrap_or(0)) * BRING_NS_PER_BYTE;
        // What has never run may be quick; it is soon known.
        let mean_ns = self.placed_functions.get(&kept.spec.function).copied().unwrap_or(0);
        let near = bytes.iter().filter(|(_, here)| **here + LOCALITY_MIN > most);
        let waits = near.filter_map(|(node, _)| {
            let is_me = *node == self.config.incarnation;
            let member = if is_me { &self.me } else { self.members.get(node)? };
            let admits = strategy::admits(&class.demand, class.placement.as_ref(), *node, member);
            let ahead = class.held.get(node).map_or(0, |line| line.len() as u64);
            let wait_ns = (ahead + 1) * mean_ns / self.busy(index, *node, member).1;
            (admits && member.open.fits(&class.demand)).then_some((wait_ns, *node))
        });
        let (wait_ns, node) = waits.min()?;
        (wait_ns <= brings_ns).then_some((node, Duration::from_nanos(brings_ns)))
    }

    /// A task waits for a node.
    pub(crate) fn hold(&mut self, class: usize, task: TaskId, node: Incarnation, at_most: Duration) {
        self.classes[class].held.entry(node).or_default().push_back(task);
        self.set_timer(at_most, Timer::Patience(class, node, task));
    }

    /// Places what waits for nodes that have room by now: it was here before what waits for any.
    pub(crate) fn place_held(&mut self, class: usize) {
        let nodes: Vec<Incarnation> = self.classes[class].held.keys().copied().collect();
        for node in nodes {
            while let Some(task) = self.next_held(class, node) {
                self.unhold(class, node, 0);
                if !self.place(class, task, false) {
                    self.classes[class].waiting.push_front(task);
                    break;
                }
            }
        }
    }

    /// The first that waits for a node, if it has room for that.
    fn next_held(&self, class: usize, node: Incarnation) -> Option<TaskId> {
        let task = *self.classes[class].held.get(&node)?.front()?;
        let is_me = node == self.config.incarnation;
        let member = if is_me { Some(&self.me) } else { self.members.get(&node) };
        // Whatever is not there any more has room: it goes back in line.
        let (Some(kept), Some(member)) = (self.kept.get(&task), member) else { return Some(task) };
        let (load, at_once) = self.busy(class, node, member);
        let is_open = member.open.fits(&self.classes[class].demand);
        (is_open && load < at_once * (self.depth(kept.spec.function) + 1)).then_some(task)
    }

    fn unhold(&mut self, class: usize, node: Incarnation, at: usize) {
        if let Some(line) = self.classes[class].held.get_mut(&node) {
            line.remove(at);
            if line.is_empty() {
                self.classes[class].held.remove(&node);
            }
        }
    }

    /// A task has waited for a node as long as it should: it goes where there is room.
    pub(crate) fn lose_patience(&mut self, class: usize, node: Incarnation, task: TaskId) {
        let line = self.classes[class].held.get(&node);
        let Some(at) = line.and_then(|line| line.iter().position(|held| *held == task)) else { return };
        self.unhold(class, node, at);
        if let Some(kept) = self.kept.get_mut(&task) {
            kept.waited = true;
        }
        self.classes[class].waiting.push_front(task);
    }

    /// What waits for a node that is dead waits for any.
    pub(crate) fn release_held(&mut self, node: Incarnation) {
        for class in &mut self.classes {
            for task in class.held.remove(&node).into_iter().flatten().rev() {
                class.waiting.push_front(task);
            }
        }
    }
}
