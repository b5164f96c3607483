//! R10: *no entry of a fenced incarnation is applied; a new life has a new number.*

use super::{Found, object};
use crate::core::sometimes::Sometimes;
use mobula_gcs::core::locate::Members;
use mobula_proto::{Reply, StreamBatch, reply};
use std::collections::{BTreeMap, BTreeSet};

/// Watches the dead.
#[derive(Default)]
pub struct Fenced {
    pub(super) found: Found,
    was_fenced: bool,
    dead: BTreeSet<u64>,
    /// Which shards have fenced whom, by the entries that say so.
    fences: BTreeSet<(usize, u64)>,
    lives: BTreeMap<usize, u64>,
    given: BTreeSet<u64>,
    /// Deaths so far.
    pub deaths: u64,
}

impl Fenced {
    /// An entry fences an incarnation in a shard.
    pub fn fence(&mut self, shard: usize, incarnation: u64) {
        self.fences.insert((shard, incarnation));
    }

    /// Whether entries of an incarnation must be rejected by a shard.
    pub fn is_fenced(&self, shard: usize, incarnation: u64) -> bool {
        self.fences.contains(&(shard, incarnation)) || (shard == 0 && self.dead.contains(&incarnation))
    }

    /// Whether anybody may take an incarnation for dead.
    pub fn is_dead_somewhere(&self, incarnation: u64) -> bool {
        self.dead.contains(&incarnation) || self.fences.iter().any(|(_, who)| *who == incarnation)
    }

    /// A batch is about to be applied.
    pub fn before(&mut self, shard: usize, incarnation: u64) {
        self.was_fenced = self.is_fenced(shard, incarnation);
    }

    /// As [`Fenced::before`], for one who knows it from the log.
    pub fn before_known(&mut self, is_fenced: bool) {
        self.was_fenced = is_fenced;
    }

    /// It has been.
    pub fn after(
        &mut self,
        shard: usize,
        index: u64,
        batch: &StreamBatch,
        reply: &Reply,
        sometimes: &mut Sometimes,
    ) {
        if !self.was_fenced {
            return;
        }
        sometimes.hit("batch from the fenced");
        if !matches!(reply.reply, Some(reply::Reply::Fenced(true))) {
            object(&mut self.found, || {
                format!(
                    "shard {shard} took a batch of the fenced {} at {index}: {reply:?}",
                    batch.incarnation
                )
            });
        }
    }

    /// Shard 0 has other members: who has died.
    pub fn members(&mut self, members: &Members) -> Vec<u64> {
        if let Some(back) = self.dead.iter().find(|dead| !members.dead.contains(dead)) {
            object(&mut self.found, || format!("the dead {back} is dead no more"));
        }
        let died = members.dead.difference(&self.dead).copied().collect();
        self.dead = members.dead.clone();
        self.deaths = self.dead.len() as u64;
        died
    }

    /// A node joins; whether an earlier life of its machine has died.
    pub fn joins(&mut self, machine: usize, incarnation: u64) -> bool {
        if !self.given.insert(incarnation) {
            object(&mut self.found, || format!("incarnation {incarnation} is given twice"));
        }
        let before = self.lives.insert(machine, incarnation);
        before.is_some_and(|before| self.dead.contains(&before))
    }
}
