//! Heartbeats of node daemons, on the leader of shard 0: soft state that decides when to declare a
//! death ([`crate::core::beats`]). The declaration itself is a log entry.

use super::{Running, Service, not_leader};
use crate::core::beats::Beats;
use mobula_proto as proto;
use prost::Message;
use proto::command::Op;
use proto::heartbeat_reply::Result as Beaten;
use proto::suspect_reply::Result as Suspected;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The leader's own dial of a suspect must succeed or be refused within this.
const DIAL_DEADLINE: Duration = Duration::from_millis(300);
/// Heartbeats behind a lock.
pub struct Liveness {
    /// Where their times are counted from.
    zero: Instant,
    beats: Mutex<Beats>,
    claims: Notify,
}

impl Default for Liveness {
    fn default() -> Self {
        Liveness { zero: Instant::now(), beats: Mutex::default(), claims: Notify::new() }
    }
}

impl Liveness {
    /// The heartbeats, of whatever term they are.
    pub fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().expect("nothing panics under this lock")
    }

    /// Until a node says what it has reserved.
    pub async fn claims_told(&self) {
        self.claims.notified().await;
    }

    /// The time, as the heartbeats count it.
    fn now(&self) -> Duration {
        self.zero.elapsed()
    }
}

impl Running {
    /// One tick of the detector; call it every `every` while this head leads shard 0.
    pub async fn check_liveness(&self, term: u64, every: Duration, silence: Duration) {
        let (members, now) = (self.members(), self.liveness.now());
        let silent = self.liveness.beats().tick(now, term, every, silence, members.live.keys().copied());
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
        if running.members().live.contains_key(&beat.incarnation) {
            beats.hear(beat, running.liveness.now());
        }
        beats.add_loads(&mut view);
        if beat.claims.as_ref().is_some_and(|claims| !claims.claims.is_empty()) {
            running.liveness.claims.notify_one();
        }
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
