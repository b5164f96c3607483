//! Settling a shard after a change of its leader, and doing what `core::silence` decides about members
//! that hold it up (R9).

use super::{Running, Site};
use crate::core::silence::{Accusation, Court, Verdict, Watcher};
use crate::raft::group::{Group, Leadership};
use crate::server::admin::may_lead;
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use proto::raft_client::RaftClient;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Pause between looks.
const TICK: Duration = Duration::from_millis(100);
/// The leader of shard 0 must decide within this; it commits deaths.
const QUESTION: Duration = Duration::from_secs(2);
/// A leadership that was handed over because of a member is not given back for this long.
const AVOIDED: Duration = Duration::from_secs(60);

/// What shard 0's leader has been told, and in which term.
pub struct Bench {
    since: Instant,
    court: Mutex<(u64, Court)>,
}

impl Default for Bench {
    fn default() -> Self {
        Bench { since: Instant::now(), court: Mutex::default() }
    }
}

/// On the leader of `shard`: watches for members that do not report. Never ends.
pub async fn watch(site: Arc<Site>, running: Arc<Running>, shard: u32, after: Duration) {
    let (group, soft) = (running.groups[shard as usize].clone(), &running.soft[shard as usize]);
    let mut watcher = Watcher::new(after);
    loop {
        tokio::time::sleep(TICK).await;
        let leadership = group.leadership();
        if !leadership.here {
            watcher = Watcher::new(after);
            continue;
        }
        let members = running.members();
        let silent = {
            let mut holdings = soft.holdings();
            holdings.enter(leadership.term, group.replica.with(|state| state.slots.adopted()));
            let heard = holdings.heard();
            let live = members.live.keys().copied();
            let done = holdings.done(members.last_death);
            watcher.look(soft.now(), TICK, leadership.term, live, &done, &heard)
        };
        let Some(member) = silent else { continue };
        let heir = heir(&running, &group);
        let by = running.identity.head;
        let accusation = Accusation { shard, member, by, has_heir: heir.is_some() };
        tracing::warn!(shard, member, "a member does not report to this leader");
        let verdict = accuse(&site.net, &running, accusation).await;
        // A death shows in the members; without one it is asked again.
        if let (Verdict::HandOver, Some(heir)) = (verdict, heir) {
            hand_over(&running, &group, &leadership, member, heir).await;
        }
    }
}

/// The head that is to try next: the first after this one that could lead now.
fn heir(running: &Running, group: &Group) -> Option<u64> {
    let (seen, me) = (group.member_view().seen, running.identity.head);
    let voters = seen.configs.last()?;
    let allowed = may_lead(running);
    let fit = |head: &&u64| {
        **head != me
            && seen.answering.contains(*head)
            && seen.caught_up.contains(*head)
            && allowed.as_ref().is_none_or(|allowed| allowed.contains(*head))
    };
    voters.range(me..).find(fit).or_else(|| voters.iter().find(fit)).copied()
}

async fn hand_over(running: &Running, group: &Group, office: &Leadership, member: u64, heir: u64) {
    let shard = group.shard;
    tracing::info!(shard, member, heir, "another head leads: it may reach what this one cannot");
    running.soft[shard as usize].avoid(Instant::now() + AVOIDED);
    group.hand_over(heir, proto::EventCause::CauseSilence).await.ok();
    // A hand-over takes milliseconds; whoever leads afterwards starts its own timers.
    let until = Instant::now() + TICK * 10;
    while group.leadership() == *office && Instant::now() < until {
        tokio::time::sleep(TICK / 10).await;
    }
}

/// Asks the leader of shard 0.
async fn accuse(net: &SharedNet, running: &Running, accusation: Accusation) -> Verdict {
    let root = running.root().leadership();
    if root.here {
        return running.accused(accusation).await;
    }
    let Some(leader) = root.leader else { return Verdict::Wait };
    let Ok(channel) = grpc::channel(net.clone(), &leader.address) else { return Verdict::Wait };
    let Accusation { shard, member, by, has_heir } = accusation;
    let cluster = running.identity.cluster;
    let request = proto::AccuseRequest { cluster, shard, member, by, has_heir };
    let mut client = RaftClient::new(channel);
    match tokio::time::timeout(QUESTION, client.accuse(request)).await {
        Ok(Ok(reply)) if reply.get_ref().hand_over => Verdict::HandOver,
        _ => Verdict::Wait,
    }
}

impl Running {
    /// On the leader of shard 0: a leader cannot hear a member. A death is committed when this returns,
    /// or asked for again.
    pub(super) async fn accused(&self, accusation: Accusation) -> Verdict {
        let leadership = self.root().leadership();
        if !leadership.here {
            return Verdict::Wait;
        }
        let is_live = self.members().live.contains_key(&accusation.member);
        let verdict = {
            let mut court = self.bench.court.lock().expect("nothing panics under this lock");
            if court.0 != leadership.term {
                *court = (leadership.term, Court::default());
            }
            court.1.judge(self.bench.since.elapsed(), &accusation, is_live)
        };
        if let Verdict::Dead(by) = &verdict {
            let (member, shard) = (accusation.member, accusation.shard);
            let evidence =
                format!("it has not reported to the leader of shard {shard}; heads that tried: {by:?}");
            self.declare_dead(member, evidence, 0).await;
        }
        verdict
    }
}
