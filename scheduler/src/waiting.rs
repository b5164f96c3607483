//! What other nodes hear of their tasks that wait inside here, for values that others make.
//!
//! Such a task has given its CPU back (R16). Whoever assigned it does not know that, and would hold the node to be
//! full of it: with as many as it has room for waiting, a node would be given nothing more, though its CPUs are
//! idle, and perhaps not even what they wait for. So who assigned them is told how many there are: of those that have
//! waited for a while, since most do not wait for long; and at once when there are fewer.

use crate::core::Core;
use crate::recovery::Timer;
use crate::types::{ClientId, Effect};
use mobula_base::{Incarnation, mutant};
use std::collections::BTreeMap;
use std::time::Duration;

/// Nobody is told before a task has waited for so long.
pub const TELL_AFTER: Duration = Duration::from_millis(200);

/// What was told.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Tasks of this node that wait elsewhere, as was heard last.
    there: BTreeMap<Incarnation, u32>,
    /// Tasks of others that wait here, as they were told last.
    told: BTreeMap<Incarnation, u32>,
    is_timed: bool,
    /// There may be fewer than was told.
    is_less: bool,
}

impl Waiting {
    /// A worker waits no longer.
    pub(crate) fn goes_on(&mut self) {
        self.is_less = !self.told.is_empty();
    }

    /// A node is dead.
    pub(crate) fn forget(&mut self, node: Incarnation) {
        self.there.remove(&node);
        self.told.remove(&node);
    }

    /// A task ended on another node, and so many are left there: no more of them wait.
    pub(crate) fn bound(&mut self, node: Incarnation, placed: u32) {
        if let Some(there) = self.there.get_mut(&node) {
            *there = placed.min(*there);
        }
    }
}

impl Core {
    /// A worker waits inside its task.
    pub(crate) fn waits_now(&mut self, worker: ClientId) {
        if !self.waiting.is_timed && self.askers_of(worker).next().is_some() {
            self.waiting.is_timed = true;
            self.set_timer(TELL_AFTER, Timer::TellWaiting);
        }
    }

    pub(crate) fn tell_of_less_waiting(&mut self) {
        if std::mem::take(&mut self.waiting.is_less) {
            self.tell_waiting(true);
        }
    }

    pub(crate) fn tell_of_waiting(&mut self) {
        self.waiting.is_timed = false;
        self.tell_waiting(false);
    }

    fn tell_waiting(&mut self, only_less: bool) {
        let mut waiting: BTreeMap<Incarnation, u32> = BTreeMap::new();
        for worker in self.workers.iter().filter(|(_, w)| w.blocked).map(|(id, _)| *id) {
            for node in self.askers_of(worker) {
                *waiting.entry(node).or_default() += 1;
            }
        }
        // What is more is told in its time.
        let before = std::mem::take(&mut self.waiting.told);
        if only_less {
            waiting.retain(|node, _| before.contains_key(node));
            waiting.iter_mut().for_each(|(node, tasks)| *tasks = before[node].min(*tasks));
        }
        let over = before.keys().filter(|node| !waiting.contains_key(node)).map(|node| (*node, 0));
        let news = waiting.iter().map(|(node, tasks)| (*node, *tasks));
        let news = news.filter(|(node, tasks)| before.get(node) != Some(tasks)).chain(over);
        let news = news.map(|(to, tasks)| Effect::Waiting { to, tasks });
        self.effects.extend(news);
        self.waiting.told = waiting;
    }

    /// Living nodes that have assigned what a worker runs, and count it for this node.
    fn askers_of(&self, worker: ClientId) -> impl Iterator<Item = Incarnation> + '_ {
        let task = self.workers.get(&worker).and_then(|w| w.queue.front());
        let run = task.and_then(|task| self.runs.get(task)).filter(|run| run.given == Some(worker));
        let run = run.filter(|run| self.classes[run.class].group.is_none());
        let askers = run.into_iter().flat_map(|run| std::iter::once(&run.keeper).chain(&run.others));
        let me = self.config.incarnation;
        askers.map(|asker| asker.node).filter(move |node| *node != me && self.members.contains_key(node))
    }

    /// A node tells how many of this node's tasks wait inside there.
    pub(crate) fn peer_waiting(&mut self, from: Incarnation, tasks: u32) {
        if tasks > 0 && self.members.contains_key(&from) {
            self.waiting.there.insert(from, tasks);
        } else {
            self.waiting.there.remove(&from);
        }
    }

    /// How many of the tasks that this node has placed on another do not wait inside there.
    pub(crate) fn awake_at(&self, node: Incarnation) -> u32 {
        let count = |of: &BTreeMap<Incarnation, u32>| of.get(&node).copied().unwrap_or(0);
        let waiting = if mutant!("W30") { 0 } else { count(&self.waiting.there) };
        count(&self.placed).saturating_sub(waiting)
    }
}
