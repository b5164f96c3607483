//! The last word of each node, at the leader of shard 0, and who has been silent for too long. Not
//! replicated, and pure: time is handed in, as what has passed since some start of the caller's.

use super::cluster::Cluster;
use crate::groups::Offer;
use mobula_proto as proto;
use std::collections::BTreeMap;
use std::time::Duration;

/// A leader whose own tick is this late was not able to listen: it starts all timers anew.
const LATE: Duration = Duration::from_millis(500);

/// The last word of one node.
#[derive(Clone, Default)]
struct Beat {
    at: Duration,
    cpu_milli_free: u32,
    queued: u32,
    store_bytes_used: u64,
    follows_slots: bool,
    claims: Option<proto::Claims>,
    heard: bool,
}

/// Heartbeats of one term.
#[derive(Clone, Default)]
pub struct Beats {
    term: u64,
    ticked: Option<Duration>,
    last: BTreeMap<u64, Beat>,
}

impl Beats {
    /// A live node says that it lives.
    pub fn hear(&mut self, beat: &proto::HeartbeatRequest, now: Duration) {
        let word = Beat {
            at: now,
            cpu_milli_free: beat.cpu_milli_free,
            queued: beat.queued,
            store_bytes_used: beat.store_bytes_used,
            follows_slots: beat.follows_slots,
            claims: beat.claims.clone(),
            heard: true,
        };
        self.last.insert(beat.incarnation, word);
    }

    /// One look at the clock, meant to come `every` so often: whoever has been silent too long, the
    /// longest first.
    pub fn tick(
        &mut self,
        now: Duration,
        term: u64,
        every: Duration,
        silence: Duration,
        live: impl Iterator<Item = u64>,
    ) -> Option<(u64, Duration)> {
        let late = self.ticked.is_none_or(|ticked| now.saturating_sub(ticked) > every + LATE);
        self.ticked = Some(now);
        if self.term != term {
            *self = Beats { term, ticked: self.ticked, last: BTreeMap::new() };
        }
        let mut last = BTreeMap::new();
        for node in live {
            let mut beat = self.last.get(&node).cloned().unwrap_or(Beat { at: now, ..Beat::default() });
            if late {
                beat.at = now;
            }
            last.insert(node, beat);
        }
        self.last = last;
        // One at a time: a cause common to many is more likely here than there (R9).
        let silent = self.last.iter().map(|(node, beat)| (*node, now.saturating_sub(beat.at)));
        silent.filter(|(_, since)| *since > silence).max_by_key(|(_, since)| *since)
    }

    /// Those of `live` that cannot follow slots, and those that were not heard in this term.
    pub fn strangers_to_slots(&self, live: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let beat = |node: &u64| self.last.get(node).filter(|beat| beat.heard);
        let strange = |node: &&u64| beat(node).is_some_and(|beat| !beat.follows_slots);
        let unheard = |node: &&u64| beat(node).is_none();
        (live.iter().filter(strange).copied().collect(), live.iter().filter(unheard).copied().collect())
    }

    /// What the live nodes offer, and what they have reserved.
    pub fn offers(&self, cluster: &Cluster) -> BTreeMap<u64, Offer> {
        let offer = |member: &super::cluster::Member| {
            let beat = self.last.get(&member.incarnation).filter(|beat| beat.heard);
            let claims = beat.and_then(|beat| beat.claims.as_ref());
            let held = claims.iter().flat_map(|claims| &claims.claims).filter(|claim| claim.held);
            let free = beat.zip(claims).map(|(beat, claims)| claims.free(beat.cpu_milli_free));
            Offer {
                name: member.join.as_ref().map(|join| join.name.clone()).unwrap_or_default(),
                total: member.total(),
                free: free.unwrap_or_default(),
                held: held.map(|claim| (claim.group, claim.bundle, claim.attempt)).collect(),
                heard: beat.is_some(),
                reserves: claims.is_some(),
            }
        };
        cluster.live().map(|member| (member.incarnation, offer(member))).collect()
    }

    /// Adds loads to a view.
    pub fn add_loads(&self, view: &mut proto::ClusterView) {
        for node in &mut view.nodes {
            if let Some(beat) = self.last.get(&node.incarnation) {
                node.cpu_milli_free = beat.cpu_milli_free;
                node.queued = beat.queued;
                node.store_bytes_used = beat.store_bytes_used;
            }
        }
    }
}
