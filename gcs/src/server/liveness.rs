//! Heartbeats of node daemons, on the leader of shard 0: soft state that decides when to declare a
//! death. The declaration itself is a log entry.

use super::{Running, Service, not_leader};
use mobula_proto as proto;
use prost::Message;
use proto::command::Op;
use proto::heartbeat_reply::Result as Beaten;
use proto::suspect_reply::Result as Suspected;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// The leader's own dial of a suspect must succeed or be refused within this.
const DIAL_DEADLINE: Duration = Duration::from_millis(300);
/// A leader whose own tick is this late was not able to listen: it starts all timers anew.
const LATE: Duration = Duration::from_millis(500);

/// The last word of one node.
#[derive(Clone, Copy)]
struct Beat {
    at: Instant,
    cpu_milli_free: u32,
    queued: u32,
    store_bytes_used: u64,
    follows_slots: bool,
    heard: bool,
}

/// Heartbeats of one term.
#[derive(Default)]
pub struct Beats {
    term: u64,
    ticked: Option<Instant>,
    last: BTreeMap<u64, Beat>,
}

impl Beats {
    /// One look at the clock: whoever has been silent too long, the longest first.
    fn tick(
        &mut self,
        term: u64,
        every: Duration,
        silence: Duration,
        live: Vec<u64>,
    ) -> Option<(u64, Duration)> {
        let now = Instant::now();
        let late = self.ticked.is_none_or(|ticked| now - ticked > every + LATE);
        self.ticked = Some(now);
        if self.term != term {
            *self = Beats { term, ticked: self.ticked, last: BTreeMap::new() };
        }
        let mut last = BTreeMap::new();
        let fresh = Beat {
            at: now,
            cpu_milli_free: 0,
            queued: 0,
            store_bytes_used: 0,
            follows_slots: false,
            heard: false,
        };
        for node in live {
            let mut beat = self.last.get(&node).copied().unwrap_or(fresh);
            if late {
                beat.at = now;
            }
            last.insert(node, beat);
        }
        self.last = last;
        // One at a time: a cause common to many is more likely here than there (R9).
        let silent = self.last.iter().map(|(node, beat)| (*node, now - beat.at));
        silent.filter(|(_, since)| *since > silence).max_by_key(|(_, since)| *since)
    }

    /// Those of `live` that cannot follow slots, and those that were not heard in this term.
    pub fn strangers_to_slots(&self, live: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let beat = |node: &u64| self.last.get(node).filter(|beat| beat.heard);
        let strange = |node: &&u64| beat(node).is_some_and(|beat| !beat.follows_slots);
        let unheard = |node: &&u64| beat(node).is_none();
        (live.iter().filter(strange).copied().collect(), live.iter().filter(unheard).copied().collect())
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

/// Heartbeats behind a lock.
#[derive(Default)]
pub struct Liveness(Mutex<Beats>);

impl Liveness {
    /// The heartbeats, of whatever term they are.
    pub fn beats(&self) -> MutexGuard<'_, Beats> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl Running {
    /// One tick of the detector; call it every `every` while this head leads shard 0.
    pub async fn check_liveness(&self, term: u64, every: Duration, silence: Duration) {
        let live = self.members().live.keys().copied().collect();
        let silent = self.liveness.beats().tick(term, every, silence, live);
        if let Some((node, since)) = silent {
            let ms = since.as_millis() as u64;
            self.declare_dead(node, format!("no heartbeat for {ms} ms"), ms).await;
        }
    }

    /// Not leading: the next term starts its timers anew.
    pub fn forget_liveness(&self) {
        *self.liveness.beats() = Beats::default();
    }

    pub(super) async fn declare_dead(&self, incarnation: u64, evidence: String, silent_ms: u64) {
        tracing::info!(incarnation, evidence, "declaring a node dead");
        let op = Op::DeclareDead(proto::DeclareDead { incarnation, evidence, silent_ms });
        let command = proto::Command::from(op).encode_to_vec();
        // Whatever the outcome: the next tick looks again.
        self.root().propose(command.into()).await.ok();
    }
}

impl Service {
    pub(super) fn beaten(&self, beat: &proto::HeartbeatRequest) -> Beaten {
        let running = match self.running(beat.cluster) {
            Ok(running) => running,
            Err(_) if self.starting() => return Beaten::NotLeader(not_leader(None)),
            Err(why) => return Beaten::Refused(why),
        };
        let leadership = running.root().leadership();
        if !leadership.here {
            return Beaten::NotLeader(not_leader(leadership.leader));
        }
        if running.members().dead.contains(&beat.incarnation) {
            self.0.meters.rejected();
            return Beaten::Fenced(true);
        }
        let mut view = running.view();
        let mut beats = running.liveness.beats();
        let (cpu_milli_free, queued) = (beat.cpu_milli_free, beat.queued);
        let store_bytes_used = beat.store_bytes_used;
        if running.members().live.contains_key(&beat.incarnation) {
            let (at, follows_slots) = (Instant::now(), beat.follows_slots);
            let word = Beat { at, cpu_milli_free, queued, store_bytes_used, follows_slots, heard: true };
            beats.last.insert(beat.incarnation, word);
        }
        beats.add_loads(&mut view);
        Beaten::View(view)
    }

    pub(super) async fn suspected(&self, suspicion: proto::SuspectRequest) -> Suspected {
        let running = match self.running(suspicion.cluster) {
            Ok(running) => running,
            Err(_) if self.starting() => return Suspected::NotLeader(not_leader(None)),
            Err(why) => return Suspected::Refused(why),
        };
        let leadership = running.root().leadership();
        if !leadership.here {
            return Suspected::NotLeader(not_leader(leadership.leader));
        }
        let members = running.members();
        let Some(address) = members.live.get(&suspicion.suspect) else { return Suspected::Noted(true) };
        // Only what this head sees itself counts: the accuser may be the one that is cut off.
        let dialled = tokio::time::timeout(DIAL_DEADLINE, self.0.net.dial(address)).await;
        if matches!(&dialled, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused) {
            let by = suspicion.by;
            let evidence = format!(
                "dialling {address} is refused; suspected by incarnation {by}: {}",
                suspicion.evidence
            );
            running.declare_dead(suspicion.suspect, evidence, 0).await;
        }
        Suspected::Noted(true)
    }
}
