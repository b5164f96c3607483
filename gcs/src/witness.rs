//! Elections and transfers, seen and told to shard 0, whose log keeps them (see
//! [`crate::core::events`]).
//!
//! Every replica notes who was elected and what it knows of the reason. The elected one tells it; a
//! later leader tells what its predecessors did not live to tell. Repetitions do no harm.

use crate::clock::unix_ms;
use crate::duties::{next_look, propose_at};
use crate::raft::group::Group;
use crate::server::Running;
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use openraft::async_runtime::WatchReceiver;
use prost::Message;
use proto::command::Op;
use proto::propose_reply::Result as Proposed;
use proto::{Event, EventCause, EventKind};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// What was seen is told only after this, since clients come first.
const TICK: Duration = Duration::from_millis(100);
/// Events that a replica keeps until they are told; the oldest go first.
const MAX_NOTES: usize = 64;

/// What a replica knows of why the leader of its shard changes.
#[derive(Debug, Default)]
pub struct Grounds(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// When a leader was last heard.
    heard: Option<Instant>,
    /// In this term this replica was asked to take over, by a survivor of its leader or by itself.
    asked: Option<(u64, bool)>,
    /// In this term this replica handed its office to another one, because of something.
    handed: Option<(u64, u64, EventCause)>,
}

impl Grounds {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("nothing panics under this lock")
    }

    /// A leader has spoken.
    pub fn hear(&self) {
        self.known().heard = Some(Instant::now());
    }

    /// This replica is asked to take over from the leader of `term`, by another survivor of it or by
    /// that leader itself.
    pub fn ask(&self, term: u64, by_survivor: bool) {
        self.known().asked = Some((term, by_survivor));
    }

    /// This replica, the leader of `term`, asks `to` to take over.
    pub fn hand_over(&self, term: u64, to: u64, cause: EventCause) {
        self.known().handed = Some((term, to, cause));
    }
}

/// A leader, and since when it is known here to lead.
#[derive(Clone, Copy)]
struct Reign {
    term: u64,
    head: u64,
    since: Instant,
}

/// Notes and tells what happens to one shard. Never ends.
pub async fn watch(running: Arc<Running>, net: SharedNet, shard: u32) {
    let group = running.groups[shard as usize].clone();
    let mut changes = group.raft.server_metrics();
    let mut reign: Option<Reign> = None;
    let mut notes: VecDeque<(Instant, Event)> = VecDeque::new();
    loop {
        if let Some((term, head)) = group.elected()
            && reign.is_none_or(|before| before.term < term)
        {
            let now = Reign { term, head, since: Instant::now() };
            let seen = [Some(election(&running, &group, reign, now)), transfer(&group, reign, now)];
            notes.extend(seen.into_iter().flatten().map(|event| (now.since, event)));
            notes.drain(..notes.len().saturating_sub(MAX_NOTES));
            reign = Some(now);
        }
        tell(&running, &net, &group, &mut notes).await;
        next_look(changes.changed()).await;
    }
}

/// What is known of an election, here and now.
fn election(running: &Running, group: &Group, before: Option<Reign>, now: Reign) -> Event {
    let me = running.identity.head;
    let known = group.grounds.known();
    let handed = known
        .handed
        .filter(|(term, to, _)| *to == now.head && before.is_some_and(|b| b.head == me && b.term == *term));
    let asked = known.asked.filter(|(term, _)| now.head == me && before.is_some_and(|b| b.term == *term));
    let (cause, evidence, silent_ms) = match (before, asked) {
        (None, _) => (EventCause::CauseStart, "no leader was known".to_owned(), 0),
        (Some(old), Some((_, false))) => {
            (EventCause::CauseHandedOver, format!("head {} asked head {me} to take over", old.head), 0)
        }
        (Some(old), _) if running.alarms.last(old.head).is_some_and(|at| at >= old.since) => {
            let evidence = format!("the connection to head {} ended and dialling it is refused", old.head);
            (EventCause::CauseClosedConnection, evidence, 0)
        }
        (Some(old), Some((_, true))) => {
            let evidence = format!("another head says that the connection to head {} ended", old.head);
            (EventCause::CauseClosedConnection, evidence, 0)
        }
        (Some(_), None) if handed.is_some() => {
            (EventCause::CauseHandedOver, format!("head {me} asked head {} to take over", now.head), 0)
        }
        // It was this head itself that was not heard.
        (Some(old), None) if old.head == me => {
            (EventCause::CauseUnspecified, format!("head {me} is not followed any more"), 0)
        }
        (Some(old), None) => {
            let silent = known.heard.unwrap_or(old.since).elapsed().as_millis() as u64;
            (
                EventCause::CauseSilence,
                format!("nothing heard from head {} for {silent} ms", old.head),
                silent,
            )
        }
    };
    Event {
        unix_ms: unix_ms(),
        kind: EventKind::EventElection as i32,
        cause: cause as i32,
        evidence,
        silent_ms,
        shard: group.shard,
        term: now.term,
        head: now.head,
        other: before.map_or(0, |old| old.head),
        ..Default::default()
    }
}

/// The transfer that this replica wanted, if this election is it.
fn transfer(group: &Group, before: Option<Reign>, now: Reign) -> Option<Event> {
    let handed = group.grounds.known().handed.take();
    let (term, to, cause) = handed?;
    let old = before.filter(|old| old.term == term && now.head == to)?;
    Some(Event {
        unix_ms: unix_ms(),
        kind: EventKind::EventTransfer as i32,
        cause: cause as i32,
        shard: group.shard,
        term: now.term,
        head: to,
        other: old.head,
        ..Default::default()
    })
}

/// Tells shard 0 what this replica has to tell, and drops what is known there.
async fn tell(running: &Running, net: &SharedNet, group: &Group, notes: &mut VecDeque<(Instant, Event)>) {
    if notes.is_empty() {
        return;
    }
    running.root().replica.with(|state| {
        let events = &state.cluster.events;
        notes.retain(|(_, event)| !events.knows(event.kind(), event.shard, event.term));
    });
    let (me, leads) = (running.identity.head, group.leadership().here);
    let is_ours = |event: &Event| leads || event.head == me || event.kind() == EventKind::EventTransfer;
    let due = notes.iter().filter(|(at, event)| at.elapsed() >= TICK && is_ours(event));
    for event in due.map(|(_, event)| event.clone()).collect::<Vec<_>>() {
        let (kind, term) = (event.kind(), event.term);
        if !propose(running, net, event).await {
            return;
        }
        notes.retain(|(_, told)| (told.kind(), told.term) != (kind, term));
    }
}

/// Whether shard 0 has it in its log.
async fn propose(running: &Running, net: &SharedNet, event: Event) -> bool {
    let command = proto::Command::from(Op::Event(event)).encode_to_vec().into();
    let root = running.root();
    let leadership = root.leadership();
    if leadership.here {
        return root.propose(command).await.is_ok();
    }
    let Some(leader) = leadership.leader else { return false };
    let request = proto::ProposeRequest { cluster: running.identity.cluster, shard: 0, command };
    let reply = propose_at(net, &leader.address, request).await;
    reply.is_some_and(|reply| matches!(reply.result, Some(Proposed::Reply(_))))
}
