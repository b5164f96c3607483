//! `mobula events`: what happened to the cluster, from its replicated log.

use crate::args::EventsArgs;
use crate::commands::ask::{DEADLINE, failed, with_client};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, complain};
use crate::say;
use mobula_gcs::{Client, Error, clock};
use mobula_proto::{Event, EventCause, EventKind, EventsReply};
use serde::Serialize;
use std::time::Duration;

/// One question waits this long for something to happen.
const WAIT: Duration = Duration::from_secs(1);
/// Pause before a cluster that does not answer is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Kinds as they are called on the command line.
const KINDS: [(EventKind, &str); 16] = [
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

/// Prints what there is, and with `--follow` what comes.
pub fn run(settings: &Settings, args: &EventsArgs) -> Outcome {
    let wanted = Wanted { kinds: kinds(&args.kind)?, since: since(args.since.as_deref())? };
    let output = settings.output;
    with_client(settings, async |client| {
        if args.follow {
            follow(output, &client, &wanted).await
        } else {
            list(output, &client, &wanted).await
        }
    })
}

/// From where on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Since {
    /// After the event of this number.
    Number(u64),
    /// From this time on, of the clocks of the heads that told.
    Time(u64),
}

struct Wanted {
    /// Names of kinds, or what they begin with; none for all.
    kinds: Vec<String>,
    since: Since,
}

impl Wanted {
    fn above(&self) -> u64 {
        match self.since {
            Since::Number(number) => number,
            Since::Time(_) => 0,
        }
    }

    fn takes(&self, event: &Event) -> bool {
        let name = name_of(event.kind());
        let is_late = |at: u64| event.unix_ms >= at;
        let in_time =
            matches!(self.since, Since::Number(_)) || matches!(self.since, Since::Time(at) if is_late(at));
        in_time && (self.kinds.is_empty() || self.kinds.iter().any(|kind| is_of(name, kind)))
    }
}

/// `head` stands for everything that happens to heads.
fn is_of(name: &str, kind: &str) -> bool {
    name == kind || name.split('-').next() == Some(kind)
}

fn kinds(asked: &[String]) -> Result<Vec<String>, Failure> {
    for kind in asked {
        if !KINDS.iter().any(|(_, name)| is_of(name, kind)) {
            let names: Vec<&str> = KINDS.iter().map(|(_, name)| *name).collect();
            return Err(Failure::usage(format!(
                "no kind of event is called {kind:?}: there are {}, and node, job, head and slot for all of theirs",
                names.join(", ")
            )));
        }
    }
    Ok(asked.to_vec())
}

fn since(asked: Option<&str>) -> Result<Since, Failure> {
    let Some(asked) = asked else { return Ok(Since::Number(0)) };
    let (number, unit) = asked.split_at(asked.find(|c: char| !c.is_ascii_digit()).unwrap_or(asked.len()));
    let seconds = match unit {
        "" => 0,
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => u64::MAX,
    };
    let number = number.parse::<u64>().ok().filter(|_| seconds < u64::MAX);
    match (number, number.and_then(|number| number.checked_mul(seconds * 1000))) {
        (Some(number), _) if seconds == 0 => Ok(Since::Number(number)),
        (_, Some(ms)) => Ok(Since::Time(clock::unix_ms().saturating_sub(ms))),
        _ => Err(Failure::usage(format!(
            "--since {asked:?}: give an age such as 90s, 10m, 2h or 1d, or the number of an event"
        ))),
    }
}

async fn list(output: Output, client: &Client, wanted: &Wanted) -> Outcome {
    let (mut above, mut shown) = (wanted.above(), Vec::new());
    loop {
        let reply = client.events(above, Duration::ZERO, DEADLINE).await.map_err(failed)?;
        missed(above, &reply);
        let Some(last) = reply.events.last() else { break };
        above = last.seq;
        shown.extend(reply.events.into_iter().filter(|event| wanted.takes(event)));
        if above >= reply.last {
            break;
        }
    }
    shown.iter().for_each(|event| say!(output, "{}", line(event)));
    output.data(&shown.iter().map(json).collect::<Vec<_>>());
    Ok(exit::OK)
}

/// Until the command is interrupted, whatever happens to the cluster.
async fn follow(output: Output, client: &Client, wanted: &Wanted) -> Outcome {
    let (mut above, mut silent) = (wanted.above(), false);
    loop {
        let reply = match client.events(above, WAIT, DEADLINE).await {
            Ok(reply) => reply,
            Err(error @ Error::Unreachable { .. }) => {
                if !std::mem::replace(&mut silent, true) {
                    complain(format_args!("{error}; still asking"));
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        silent = false;
        if let Some(last) = reply.events.last() {
            missed(above, &reply);
            above = last.seq;
        }
        for event in reply.events.iter().filter(|event| wanted.takes(event)) {
            say!(output, "{}", line(event));
            output.record(&json(event));
        }
    }
}

/// Says so when older events are gone.
fn missed(above: u64, reply: &EventsReply) {
    if reply.first > above + 1 {
        complain(format_args!("events {} to {} are no longer kept", above + 1, reply.first - 1));
    }
}

fn name_of(kind: EventKind) -> &'static str {
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

/// `2026-01-31 17:04:05.678`, in UTC.
fn time_of(unix_ms: u64) -> String {
    let ns = i128::from(unix_ms) * 1_000_000;
    let Ok(at) = time::OffsetDateTime::from_unix_timestamp_nanos(ns) else { return "?".into() };
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

/// One event for people.
fn line(event: &Event) -> String {
    let said = if tells_by_evidence(event.kind()) { "" } else { event.evidence.as_str() };
    let why = match (cause_of(event.cause()), said) {
        (None, "") => String::new(),
        (Some(cause), "") => format!(" ({cause})"),
        (None, evidence) => format!(" ({evidence})"),
        (Some(cause), evidence) => format!(" ({cause}: {evidence})"),
    };
    let (seq, time, kind) = (event.seq, time_of(event.unix_ms), name_of(event.kind()));
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

fn what(event: &Event) -> String {
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

#[derive(Serialize)]
struct JsonEvent<'a> {
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

fn json(event: &Event) -> JsonEvent<'_> {
    let some = |number: u64| Some(number).filter(|number| *number != 0);
    let of_shard = matches!(event.kind(), EventKind::EventElection | EventKind::EventTransfer);
    JsonEvent {
        seq: event.seq,
        unix_ms: event.unix_ms,
        time: time_of(event.unix_ms),
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
    fn kinds_and_ages_are_understood_or_refused() {
        assert!(is_of("head-drained", "head") && is_of("election", "election"));
        assert!(!is_of("head-drained", "head-drain") && !is_of("node-left", "head"));
        kinds(&["node".into(), "transfer".into()]).expect("there");
        assert_eq!(kinds(&["nodes".into()]).expect_err("not there").code, exit::USAGE);
        assert_eq!(since(Some("17")).expect("a number"), Since::Number(17));
        assert!(matches!(since(Some("2h")).expect("an age"), Since::Time(at) if at > 0));
        for wrong in ["", "h", "2w", "-1h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(since(Some(wrong)).is_err(), "{wrong}");
        }
    }

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
