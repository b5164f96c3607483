//! Events of the replicated log, in words and as data.

use crate::names;
use mobula_proto::{Event, EventCause, EventKind};
use serde::Serialize;

/// Kinds as they are called on the command line.
pub const KINDS: [(EventKind, &str); 16] = [
    (EventKind::EventClusterFormed, "cluster-formed"),
    (EventKind::EventElection, "election"),
    (EventKind::EventTransfer, "transfer"),
    (EventKind::EventNodeJoined, "node-joined"),
    (EventKind::EventNodeLeft, "node-left"),
    (EventKind::EventNodeDied, "node-died"),
    (EventKind::EventJobStarted, "job-started"),
    (EventKind::EventJobEnded, "job-ended"),
    (EventKind::EventHeadChange, "head-change"),
    (EventKind::EventHeadChanged, "head-changed"),
    (EventKind::EventHeadChangeGivenUp, "head-change-given-up"),
    (EventKind::EventHeadJoined, "head-joined"),
    (EventKind::EventHeadDrained, "head-drained"),
    (EventKind::EventHeadUndrained, "head-undrained"),
    (EventKind::EventSlotMove, "slot-move"),
    (EventKind::EventSlotsMoved, "slot-moved"),
];

/// What a kind is called.
pub fn name_of(kind: EventKind) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("unknown", |(_, name)| *name)
}

/// A cause in words, if there is one.
pub fn cause_of(cause: EventCause) -> Option<&'static str> {
    Some(match cause {
        EventCause::CauseUnspecified => return None,
        EventCause::CauseClosedConnection => "closed connection",
        EventCause::CauseSilence => "silence",
        EventCause::CauseHandedOver => "handed over",
        EventCause::CauseStart => "start",
        EventCause::CauseOperator => "operator",
        EventCause::CauseBalance => "balance",
        EventCause::CauseDrain => "drain",
        EventCause::CauseMembership => "change of the heads",
        EventCause::CauseReplaced => "replaced",
        EventCause::CauseDriver => "its driver",
        EventCause::CauseNodeGone => "its node is gone",
    })
}

/// One event for people.
pub fn line(event: &Event) -> String {
    let said = if tells_by_evidence(event.kind()) { "" } else { event.evidence.as_str() };
    let why = match (cause_of(event.cause()), said) {
        (None, "") => String::new(),
        (Some(cause), "") => format!(" ({cause})"),
        (None, evidence) => format!(" ({evidence})"),
        (Some(cause), evidence) => format!(" ({cause}: {evidence})"),
    };
    let (seq, time, kind) = (event.seq, names::time(event.unix_ms), name_of(event.kind()));
    format!("{seq:>6}  {time}  {kind:<14}  {}{why}", what(event))
}

/// Kinds whose evidence is all there is to say.
fn tells_by_evidence(kind: EventKind) -> bool {
    use EventKind::{EventClusterFormed, EventHeadChange, EventHeadChangeGivenUp, EventHeadChanged};
    use EventKind::{EventSlotMove, EventSlotsMoved};
    matches!(
        kind,
        EventClusterFormed
            | EventHeadChange
            | EventHeadChanged
            | EventHeadChangeGivenUp
            | EventSlotMove
            | EventSlotsMoved
    )
}

/// What happened, without when and why.
pub fn what(event: &Event) -> String {
    let Event { shard, term, head, other, incarnation, job, name, address, .. } = event;
    match event.kind() {
        EventKind::EventElection if *other == 0 => format!("shard {shard}: head {head} leads in term {term}"),
        EventKind::EventElection => {
            format!("shard {shard}: head {head} leads in term {term} after head {other}")
        }
        EventKind::EventTransfer => {
            format!("shard {shard}: head {other} handed its office to head {head}, term {term}")
        }
        EventKind::EventNodeJoined | EventKind::EventNodeLeft | EventKind::EventNodeDied => {
            format!("node {name:?} at {address}, incarnation {incarnation}")
        }
        EventKind::EventJobStarted => format!("job {job:016x} {name:?} at incarnation {incarnation}"),
        EventKind::EventJobEnded => {
            let how = if event.succeeded { "succeeded" } else { "failed" };
            format!("job {job:016x} {name:?} {how}")
        }
        EventKind::EventHeadJoined | EventKind::EventHeadDrained | EventKind::EventHeadUndrained => {
            format!("head {head} at {address}")
        }
        kind if tells_by_evidence(kind) => event.evidence.clone(),
        _ => "of a kind that this build does not know".to_owned(),
    }
}

/// One event for programs.
#[derive(Serialize)]
pub struct JsonEvent<'a> {
    seq: u64,
    unix_ms: u64,
    time: String,
    kind: &'static str,
    cause: Option<&'static str>,
    evidence: &'a str,
    silent_ms: u64,
    /// Where the kind has one.
    shard: Option<u32>,
    term: Option<u64>,
    head: Option<u64>,
    other_head: Option<u64>,
    incarnation: Option<u64>,
    job: Option<String>,
    name: Option<&'a str>,
    address: Option<&'a str>,
    succeeded: Option<bool>,
}

/// See [`JsonEvent`].
pub fn json(event: &Event) -> JsonEvent<'_> {
    let some = |number: u64| Some(number).filter(|number| *number != 0);
    let of_shard = matches!(event.kind(), EventKind::EventElection | EventKind::EventTransfer);
    JsonEvent {
        seq: event.seq,
        unix_ms: event.unix_ms,
        time: names::time(event.unix_ms),
        kind: name_of(event.kind()),
        cause: cause_of(event.cause()),
        evidence: &event.evidence,
        silent_ms: event.silent_ms,
        shard: of_shard.then_some(event.shard),
        term: some(event.term),
        head: some(event.head),
        other_head: some(event.other),
        incarnation: some(event.incarnation),
        job: some(event.job).map(|job| format!("{job:016x}")),
        name: Some(event.name.as_str()).filter(|name| !name.is_empty()),
        address: Some(event.address.as_str()).filter(|address| !address.is_empty()),
        succeeded: (event.kind() == EventKind::EventJobEnded).then_some(event.succeeded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_well() {
        let event = Event {
            seq: 7,
            unix_ms: 1_769_879_045_678,
            kind: EventKind::EventElection as i32,
            cause: EventCause::CauseClosedConnection as i32,
            evidence: "dialling it is refused".into(),
            shard: 2,
            term: 5,
            head: 3,
            other: 1,
            ..Default::default()
        };
        assert_eq!(
            line(&event),
            "     7  2026-01-31 17:04:05.678  election        shard 2: head 3 leads in term 5 after head 1 \
             (closed connection: dialling it is refused)"
        );
    }
}
