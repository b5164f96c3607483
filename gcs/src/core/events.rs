//! What happened to the cluster: a bounded table in shard 0, part of its state.
//!
//! Most events are by-products of commands that are in the log anyway. Elections and transfers are told
//! to shard 0 by whoever saw them (see [`crate::witness`]), as often as it takes: each counts once.

use mobula_proto as proto;
use proto::{Event, EventCause, EventKind, HeadPlan, HeadTable};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Events that are kept; the oldest go first.
pub const MAX_EVENTS: usize = 4096;
/// Bytes that are kept of an evidence, a name or an address.
pub const MAX_TEXT: usize = 300;

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// Number of the latest event.
    last: u64,
    /// The latest, in order.
    kept: VecDeque<Arc<Event>>,
    /// By shard, the highest term of an election or transfer that is no longer kept: a report of such a
    /// term is late, and old news.
    passed: BTreeMap<u32, u64>,
    /// Events up to this one happened to the cluster that this one was made of: its terms are others.
    inherited: u64,
    /// Clock of the leader that took the command which is being applied. Not part of the state.
    now: u64,
}

/// See [`Events`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventsDump {
    #[prost(uint64, tag = "1")]
    last: u64,
    #[prost(message, repeated, tag = "2")]
    kept: Vec<Event>,
    #[prost(btree_map = "uint32, uint64", tag = "3")]
    passed: BTreeMap<u32, u64>,
    #[prost(uint64, tag = "4")]
    inherited: u64,
}

impl Events {
    /// What a snapshot holds.
    pub fn dump(&self) -> EventsDump {
        EventsDump {
            last: self.last,
            kept: self.kept.iter().map(|event| (**event).clone()).collect(),
            passed: self.passed.clone(),
            inherited: self.inherited,
        }
    }

    /// As it was dumped; dumps from before there were events hold none.
    pub fn restored(dump: EventsDump) -> Self {
        Events {
            last: dump.last,
            kept: dump.kept.into_iter().map(Arc::new).collect(),
            passed: dump.passed,
            inherited: dump.inherited,
            now: 0,
        }
    }

    /// A command is applied that a leader took at this time of its clock.
    pub fn set_time(&mut self, unix_ms: u64) {
        self.now = unix_ms;
    }

    /// Another cluster is made of this one: its terms begin anew, the events stay.
    pub fn inherit(&mut self) {
        self.inherited = self.last;
        self.passed.clear();
    }

    /// Number of the latest event, 0 for none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Number of the oldest event that is kept, 0 for none.
    pub fn first(&self) -> u64 {
        self.kept.front().map_or(0, |event| event.seq)
    }

    /// Up to `limit` events after number `above`, the oldest first.
    pub fn after(&self, above: u64, limit: usize) -> Vec<Event> {
        let gone = above.saturating_sub(self.first().saturating_sub(1)) as usize;
        self.kept.iter().skip(gone).take(limit).map(|event| (**event).clone()).collect()
    }

    /// Whether an election or transfer is in the table, or was.
    pub fn knows(&self, kind: EventKind, shard: u32, term: u64) -> bool {
        let is_it = |event: &&Arc<Event>| event.kind() == kind && (event.shard, event.term) == (shard, term);
        self.passed.get(&shard).is_some_and(|passed| term <= *passed)
            || self.kept.iter().rev().take_while(|event| event.seq > self.inherited).any(|e| is_it(&e))
    }

    /// Something that its proposer saw: an election or a transfer, the first time that it is told.
    pub fn record(&mut self, event: &Event) {
        let is_seen = matches!(event.kind(), EventKind::EventElection | EventKind::EventTransfer);
        if is_seen && !self.knows(event.kind(), event.shard, event.term) {
            self.add(event.clone());
        }
    }

    /// Something happened.
    pub fn add(&mut self, mut event: Event) {
        self.last += 1;
        event.seq = self.last;
        // One that was seen brings the time when it was.
        if event.unix_ms == 0 {
            event.unix_ms = self.now;
        }
        [&mut event.evidence, &mut event.name, &mut event.address].into_iter().for_each(shorten);
        self.kept.push_back(Arc::new(event));
        if self.kept.len() > MAX_EVENTS
            && let Some(oldest) = self.kept.pop_front()
            && oldest.term > 0
            && oldest.seq > self.inherited
        {
            let passed = self.passed.entry(oldest.shard).or_default();
            *passed = oldest.term.max(*passed);
        }
    }

    /// The table of heads has changed.
    pub fn heads_changed(&mut self, before: &HeadTable, after: &HeadTable) {
        let old = before.plan.as_ref();
        if let Some(old) = old.filter(|old| after.plan.as_ref().is_none_or(|new| new.request != old.request))
        {
            let outcome = after.done.iter().find(|done| done.request == old.request);
            let kind = match outcome.is_some_and(|done| done.outcome == "done") {
                true => EventKind::EventHeadChanged,
                false => EventKind::EventHeadChangeGivenUp,
            };
            self.add(change(kind, old, before));
        }
        let begins = |new: &&HeadPlan| old.is_none_or(|old| old.request != new.request);
        if let Some(new) = after.plan.as_ref().filter(begins) {
            self.add(change(EventKind::EventHeadChange, new, after));
        }
        for entry in &after.members {
            let known = before.members.iter().find(|known| known.head == entry.head);
            let mut tell = |kind, cause| {
                let (head, address) = (entry.head, entry.address.clone());
                let (kind, cause) = (kind as i32, cause as i32);
                self.add(Event { kind, cause, head, address, ..Default::default() });
            };
            if known.is_some_and(|known| entry.claimed && !known.claimed) {
                tell(EventKind::EventHeadJoined, EventCause::CauseUnspecified);
            }
            match (known.is_some_and(|known| known.drained), entry.drained) {
                (false, true) => tell(EventKind::EventHeadDrained, EventCause::CauseOperator),
                (true, false) => tell(EventKind::EventHeadUndrained, EventCause::CauseOperator),
                _ => {}
            }
        }
    }
}

/// A change of the heads; `table` has the one that comes.
fn change(kind: EventKind, plan: &HeadPlan, table: &HeadTable) -> Event {
    let added = table.members.iter().find(|entry| plan.add != 0 && entry.head == plan.add);
    Event {
        kind: kind as i32,
        cause: EventCause::CauseOperator as i32,
        evidence: super::heads::say(plan),
        head: plan.add,
        other: plan.remove.as_ref().map_or(0, |old| old.head),
        address: added.or(plan.remove.as_ref()).map(|entry| entry.address.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

/// Whoever proposes chooses these texts; the table must stay small.
fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT {
        let fits = (0..=MAX_TEXT - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(fits.unwrap_or(0));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cold;
    use crate::core::ShardState;
    use mobula_base::sim_disk::SimDisk;
    use proto::command::Op;
    use proto::{call, head_command};

    fn shard_zero() -> ShardState {
        ShardState::new(0, cold::open_one(Arc::new(SimDisk::new(1)), 0).expect("memory"))
    }

    fn election(shard: u32, term: u64, unix_ms: u64) -> Event {
        let kind = EventKind::EventElection as i32;
        Event { kind, shard, term, head: 1, unix_ms, ..Default::default() }
    }

    /// Applies `ops`, a leader's clock showing 1000 at the first and one more at each.
    fn apply(state: &mut ShardState, ops: Vec<Op>) {
        for (index, op) in (1..).zip(ops) {
            state.apply(index, &proto::Command { op: Some(op), unix_ms: 999 + index });
        }
    }

    fn story(state: &ShardState) -> Vec<(u64, u64, EventKind, EventCause)> {
        let events = state.cluster.events.after(0, MAX_EVENTS);
        events.iter().map(|event| (event.seq, event.unix_ms, event.kind(), event.cause())).collect()
    }

    #[test]
    fn what_commands_do_is_told_once_with_the_time_of_their_leader() {
        use EventCause as C;
        use EventKind as K;
        let mut state = shard_zero();
        let call = |seq, op| Op::Call(proto::Call { session: 1, seq, op: Some(op) });
        let join = proto::NodeJoin { name: "a".into(), address: "h:1".into(), ..Default::default() };
        let start = |job| proto::JobStart { job, incarnation: 1, ..Default::default() };
        let dead = proto::DeclareDead { incarnation: 2, evidence: "x".repeat(1000), silent_ms: 1500 };
        apply(
            &mut state,
            vec![
                Op::Init(proto::InitCluster { cluster: 7, shards: 1, slots: 1 }),
                Op::Init(proto::InitCluster { cluster: 8, shards: 1, slots: 1 }),
                Op::Call(proto::Call {
                    op: Some(call::Op::Open(proto::OpenSession {})),
                    ..Default::default()
                }),
                call(1, call::Op::NodeJoin(join.clone())),
                call(2, call::Op::JobStart(start(5))),
                call(3, call::Op::JobStart(start(6))),
                call(4, call::Op::JobEnd(proto::JobEnd { job: 5, succeeded: true })),
                call(4, call::Op::JobEnd(proto::JobEnd { job: 5, succeeded: true })),
                // Another life at the same address: the first one ends, and with it its job.
                call(5, call::Op::NodeJoin(join)),
                Op::DeclareDead(dead.clone()),
                Op::DeclareDead(dead),
            ],
        );
        let expected = [
            (1, 1000, K::EventClusterFormed, C::CauseUnspecified),
            (2, 1003, K::EventNodeJoined, C::CauseUnspecified),
            (3, 1004, K::EventJobStarted, C::CauseUnspecified),
            (4, 1005, K::EventJobStarted, C::CauseUnspecified),
            (5, 1006, K::EventJobEnded, C::CauseDriver),
            (6, 1008, K::EventNodeDied, C::CauseReplaced),
            (7, 1008, K::EventJobEnded, C::CauseNodeGone),
            (8, 1008, K::EventNodeJoined, C::CauseUnspecified),
            (9, 1009, K::EventNodeDied, C::CauseSilence),
        ];
        assert_eq!(story(&state), expected);
        let death = state.cluster.events.after(8, 1).remove(0);
        assert_eq!((death.name.as_str(), death.address.as_str(), death.silent_ms), ("a", "h:1", 1500));
        assert!(death.evidence.len() <= MAX_TEXT && death.evidence.ends_with('…'));
        assert_eq!(state.cluster.events.after(7, 1)[0].incarnation, 2);
    }

    #[test]
    fn changes_of_the_heads_begin_and_end() {
        use EventKind as K;
        let mut state = shard_zero();
        let founder = |head| proto::HeadEntry { head, address: format!("h:{head}"), ..Default::default() };
        let founders: Vec<_> = [1, 2, 3].map(founder).into();
        let heads = |op| Op::Heads(proto::HeadCommand { op: Some(op) });
        let start = |request, add: &str, remove| {
            let (founders, add) = (founders.clone(), add.to_owned());
            heads(head_command::Op::Start(proto::StartHeadPlan { request, founders, add, remove }))
        };
        let drain = |undo| {
            heads(head_command::Op::Drain(proto::DrainHead { head: 1, undo, founders: founders.clone() }))
        };
        let end = |request| heads(head_command::Op::End(proto::EndHeadPlan { request }));
        let claim = proto::ClaimHead { head: 4, address: "h:4".into(), nonce: 9 };
        apply(
            &mut state,
            vec![
                drain(false),
                drain(false),
                drain(true),
                start(11, "h:4", 2),
                start(11, "h:4", 2),
                start(12, "h:5", 0),
                heads(head_command::Op::Claim(claim)),
                end(11),
                end(11),
                start(13, "h:6", 0),
                start(14, "", 5),
                end(14),
            ],
        );
        let kinds: Vec<_> = story(&state).into_iter().map(|(_, unix_ms, kind, _)| (unix_ms, kind)).collect();
        let expected = [
            (1000, K::EventHeadDrained),
            (1002, K::EventHeadUndrained),
            (1003, K::EventHeadChange),
            (1006, K::EventHeadJoined),
            (1007, K::EventHeadChanged),
            (1009, K::EventHeadChange),
            (1010, K::EventHeadChangeGivenUp),
            (1010, K::EventHeadChange),
            (1011, K::EventHeadChanged),
        ];
        assert_eq!(kinds, expected);
        let replaced = state.cluster.events.after(2, 1).remove(0);
        assert_eq!((replaced.head, replaced.other, replaced.address.as_str()), (4, 2, "h:4"));
        assert_eq!(replaced.evidence, "replace head 2 at h:2 by head 4");
    }

    #[test]
    fn an_election_counts_once_however_often_and_late_it_is_told() {
        let mut state = shard_zero();
        let tell = |state: &mut ShardState, event| apply(state, vec![Op::Event(event)]);
        tell(&mut state, election(3, 5, 77));
        tell(&mut state, election(3, 5, 78));
        tell(&mut state, election(3, 4, 76));
        let transfer = Event { kind: EventKind::EventTransfer as i32, ..election(3, 5, 79) };
        tell(&mut state, transfer);
        // Nobody but shard 0 itself tells of the others.
        tell(&mut state, Event { kind: EventKind::EventNodeDied as i32, ..Default::default() });
        let times = |state: &ShardState| story(state).iter().map(|event| event.1).collect::<Vec<_>>();
        assert_eq!(times(&state), [77, 76, 79]);
        // The same in a replica that was sent a snapshot, and in digests.
        let mut other = shard_zero();
        assert_ne!(other.digest(), state.digest());
        other.restore(state.snapshot(1).into(), &state.manifest()).expect("just written");
        assert_eq!((other.digest(), other.snapshot(1)), (state.digest(), state.snapshot(1)));
        tell(&mut other, election(3, 5, 80));
        assert_eq!(times(&other), [77, 76, 79]);
        // A cluster that is made of this one keeps the story, and its terms begin anew.
        other.cluster.reborn(2);
        tell(&mut other, election(3, 5, 81));
        tell(&mut other, election(3, 5, 82));
        assert_eq!(times(&other), [77, 76, 79, 81]);
    }

    #[test]
    fn the_oldest_go_and_do_not_come_back() {
        let mut events = Events::default();
        for term in 1..=MAX_EVENTS as u64 + 10 {
            events.record(&election(0, term, term));
        }
        assert_eq!((events.first(), events.last()), (11, MAX_EVENTS as u64 + 10));
        events.record(&election(0, 3, 1));
        assert_eq!(events.last(), MAX_EVENTS as u64 + 10);
        events.record(&election(1, 3, 1));
        assert_eq!(events.last(), MAX_EVENTS as u64 + 11);
        // What is gone is not asked for; what comes next is.
        assert_eq!(events.after(0, 2).iter().map(|event| event.seq).collect::<Vec<_>>(), [12, 13]);
        assert_eq!(events.after(events.last() - 1, 9).len(), 1);
        assert!(events.after(events.last(), 9).is_empty() && events.after(u64::MAX, 9).is_empty());
        let again = Events::restored(events.dump());
        assert_eq!(again.dump(), events.dump());
        assert!(again.knows(EventKind::EventElection, 0, 3) && !again.knows(EventKind::EventElection, 2, 3));
    }
}
