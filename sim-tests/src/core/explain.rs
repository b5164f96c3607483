//! Why a run failed: of all that happened, what has to do with the objection.
//!
//! The slice begins with the ids that the objection names, takes in what their records name, and keeps
//! every line about any of them, beside faults, deaths and changes of leaders.

use super::trace::Line;
use mobula_proto::{StreamItem, TaskSpec, arg, object_id, stream_item, task_id};
use mobula_scheduler::{Effect, Event};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Lines of a slice at most: the last ones.
pub const LINES_MAX: usize = 400;
/// Ids that a slice follows at most.
const IDS_MAX: usize = 64;
/// From the named ids it goes so many records down.
const DEPTH: usize = 3;
/// Length of a task's id in text: 32 hexadecimal digits, a dash, 3 digits.
const ID_LEN: usize = 36;
/// Kinds of lines that are always in it.
const ALWAYS: [&str; 8] =
    ["fault", "dies", "joins", "rejoins", "leaderless", "leads", "worker-dies", "quiet"];

/// The lines that have to do with `text`, in order.
pub fn slice<'a>(lines: &'a [Line], text: &str) -> Vec<&'a Line> {
    let mut ids = ids_in(text);
    for _ in 0..DEPTH {
        let named = lines.iter().filter(|line| line.kind == "submits");
        let named = named.filter(|line| ids.iter().any(|id| line.text.starts_with(id.as_str())));
        let more: BTreeSet<String> = named.flat_map(|line| ids_in(&line.text)).collect();
        let before = ids.len();
        ids.extend(more);
        if ids.len() == before || ids.len() > IDS_MAX {
            break;
        }
    }
    let about =
        |line: &&Line| ALWAYS.contains(&line.kind) || ids.iter().any(|id| line.text.contains(id.as_str()));
    let all: Vec<&Line> = lines.iter().filter(about).collect();
    all[all.len().saturating_sub(LINES_MAX)..].to_vec()
}

/// Ids of tasks in a text.
fn ids_in(text: &str) -> BTreeSet<String> {
    let bytes = text.as_bytes();
    let is_id = |at: &usize| {
        let id = &bytes[*at..*at + ID_LEN];
        id[..32].iter().all(u8::is_ascii_hexdigit)
            && id[32] == b'-'
            && id[33..].iter().all(u8::is_ascii_digit)
    };
    let last = bytes.len().checked_sub(ID_LEN).map_or(0, |last| last + 1);
    (0..last).filter(is_id).map(|at| text[at..at + ID_LEN].to_owned()).collect()
}

/// What a node is told, in words; `None` for what says nothing about tasks or objects.
pub fn event_text(event: &Event) -> Option<(&'static str, String)> {
    Some(match event {
        Event::Submit { client, specs } => {
            let specs: Vec<String> = specs.iter().map(spec_text).collect();
            ("submits", format!("{} by client {client}", specs.join("; ")))
        }
        Event::Get { client, objects, want_value, .. } => {
            ("asks", format!("client {client} for {objects:?}, values: {want_value}"))
        }
        Event::Put { client, object, by_driver, contains, .. } => {
            ("puts", format!("{object} by client {client}, the driver: {by_driver}, contains {contains:?}"))
        }
        Event::Held { client, objects, .. } => ("holds", format!("client {client}: {objects:?}")),
        Event::Dropped { client, objects } => ("drops", format!("client {client}: {objects:?}")),
        Event::Memory(measured) => ("measures", format!("{measured:?}")),
        Event::Freed { objects } => ("freed", format!("{objects:?}")),
        Event::Finished { worker, outcomes } => {
            let one = |o: &mobula_scheduler::TaskOutcome| {
                let how = if o.value.is_ok() { "ended" } else { "failed" };
                format!("{} attempt {} {how}, contains {:?}", o.task, o.attempt, o.contains)
            };
            let outcomes: Vec<String> = outcomes.iter().map(one).collect();
            ("finishes", format!("worker {worker}: {}", outcomes.join("; ")))
        }
        Event::Assigned { from, assign } => {
            let spec = assign.spec.as_ref().map(spec_text).unwrap_or_default();
            ("assigned", format!("{spec} attempt {} by {from}", assign.attempt))
        }
        Event::PeerResult { from, result } => {
            let task = task_id(&result.task).map(|id| id.to_string()).unwrap_or_default();
            let failed = result.failure.is_some();
            (
                "hears",
                format!(
                    "{task} attempt {} from {from}, failed: {failed}, durable: {}",
                    result.attempt, result.durable
                ),
            )
        }
        Event::TakenBack { from, task, attempt } => {
            ("hears", format!("{task} attempt {attempt} is not wanted any more by {from}"))
        }
        Event::PeerDurable { from, task, attempt } => {
            ("hears", format!("{task} attempt {attempt} from {from} is durable"))
        }
        Event::Take { client, task, first, upto, over, .. } => {
            ("takes", format!("client {client}: items {first}..{upto} of {task}, over: {over}"))
        }
        Event::NewItems { from, news } => {
            let task = task_id(&news.task).map(|id| id.to_string()).unwrap_or_default();
            ("hears", format!("{} items from {} of {task} are at {from}", news.items.len(), news.first))
        }
        Event::PeerTaken { from, task, taken } => {
            ("hears", format!("{taken} items of {task} are taken at {from}"))
        }
        Event::PeerWaiting { from, tasks } => ("hears", format!("{tasks} tasks wait inside at {from}")),
        Event::Replicate { object, holder, .. } => ("replicates", format!("{object} of {holder}")),
        Event::Located { answers, .. } => {
            let one = |l: &mobula_proto::Located| {
                let object = object_id(&l.object).map(|id| id.to_string()).unwrap_or_default();
                let answer = format!("{:?}", l.answer).chars().take(60).collect::<String>();
                format!("{object}: {answer}")
            };
            let answers: Vec<String> = answers.iter().map(one).collect();
            ("located", answers.join("; "))
        }
        Event::Fetched { object, .. } => ("fetched", object.to_string()),
        Event::FetchFailed { object, from, why } => {
            ("fetched", format!("{object} not, from {from}: {why:?}"))
        }
        Event::Acked { shard, ack, .. } => {
            if ack.outcomes.is_empty() {
                return None;
            }
            let outcomes: Vec<String> = ack
                .outcomes
                .iter()
                .map(|o| {
                    format!("{} {}", o.seq, format!("{:?}", o.outcome).chars().take(60).collect::<String>())
                })
                .collect();
            ("acked", format!("by {shard}: {}", outcomes.join("; ")))
        }
        Event::Cancel { from, tasks, recursive } => {
            ("cancels", format!("{tasks:?}, with children: {recursive}, told by {from:?}"))
        }
        Event::WorkerUp { .. }
        | Event::WorkerGone { .. }
        | Event::SpawnFailed { .. }
        | Event::Blocked { .. }
        | Event::Stalled { .. }
        | Event::NotGiven { .. }
        | Event::CopyLost { .. }
        | Event::Attached { .. }
        | Event::Unblocked { .. }
        | Event::ClientGone { .. }
        | Event::View(_)
        | Event::JobStarted { .. }
        | Event::WorkerReuse { .. }
        | Event::HedgeBudget { .. }
        | Event::JobEnded(_)
        | Event::WatchGroup { .. }
        | Event::Flush
        | Event::Tick => return None,
    })
}

/// What a node does, in words; `None` for what says nothing about tasks or objects.
pub fn effect_text(effect: &Effect) -> Option<(&'static str, String)> {
    Some(match effect {
        Effect::Run { worker, spec, attempt, .. } => {
            ("gives", format!("{} attempt {attempt} to worker {worker}", spec_text(spec)))
        }
        Effect::Assign { to, assign } => {
            let spec = assign.spec.as_ref().map(spec_text).unwrap_or_default();
            ("assigns", format!("{spec} attempt {} to {to}", assign.attempt))
        }
        Effect::Result { to, result } => {
            let task = task_id(&result.task).map(|id| id.to_string()).unwrap_or_default();
            ("reports", format!("{task} attempt {} to {to}, durable: {}", result.attempt, result.durable))
        }
        Effect::TakeBack { to, task, attempt } => {
            ("takes-back", format!("{task} attempt {attempt} from {to}"))
        }
        Effect::Durable { to, task, attempt } => {
            ("reports", format!("{task} attempt {attempt} is durable, to {to}"))
        }
        Effect::NewItems { to, news } => {
            let task = task_id(&news.task).map(|id| id.to_string()).unwrap_or_default();
            ("reports", format!("{} items from {} of {task}, to {to}", news.items.len(), news.first))
        }
        Effect::TellTaken { to, task, taken } => {
            ("tells", format!("{taken} items of {task} are taken, to {to}"))
        }
        Effect::ItemsTaken { worker, task, taken } => {
            ("tells", format!("worker {worker}: {taken} items of {task} are taken"))
        }
        Effect::ItemsMade { client, task, made } => {
            ("tells", format!("client {client}: {made} items of {task} are made"))
        }
        Effect::Waiting { to, tasks } => {
            ("reports", format!("{tasks} of its tasks wait inside here, to {to}"))
        }
        Effect::Send { shard, batch } => {
            let items: Vec<String> = batch.items.iter().map(item_text).collect();
            ("sends", format!("to {shard} from {}: {}", batch.first_seq, items.join("; ")))
        }
        Effect::Locate { shard, objects } => ("locates", format!("{objects:?} at {shard}")),
        Effect::Fetch { object, from, .. } => ("fetches", format!("{object} from {from}")),
        Effect::Ready { client, object, ready } => {
            let ready = format!("{ready:?}").chars().take(80).collect::<String>();
            ("tells", format!("client {client}: {object} {ready}"))
        }
        Effect::Held { object } => ("has", object.to_string()),
        Effect::Discard { object } => ("discards", object.to_string()),
        Effect::Freed { to, objects } => ("frees", format!("{objects:?} at {to}")),
        Effect::Replicate { to, object, .. } => ("replicates", format!("{object} at {to}")),
        Effect::Stop { worker, task, attempt } => {
            ("stops", format!("{task} attempt {attempt} at worker {worker}"))
        }
        Effect::Kill { worker } => ("kills", format!("worker {worker}")),
        Effect::Retire { worker } => ("retires", format!("worker {worker}")),
        Effect::Cancel { to, tasks, recursive } => {
            ("cancels", format!("{tasks:?}, with children: {recursive}, at {to}"))
        }
        Effect::Spawn { .. }
        | Effect::Committed { .. }
        | Effect::Notice { .. }
        | Effect::TellClaims
        | Effect::Group { .. }
        | Effect::FreeJob(_) => return None,
    })
}

fn spec_text(spec: &TaskSpec) -> String {
    let mut text = task_id(&spec.id).map(|id| id.to_string()).unwrap_or_default();
    let args = spec.args.iter().filter_map(|a| match &a.arg {
        Some(arg::Arg::Object(object)) => object_id(object).ok(),
        _ => None,
    });
    let nested = spec.nested.iter().filter_map(|id| object_id(id).ok());
    for object in args.chain(nested) {
        let _ = write!(text, " of {object}");
    }
    text
}

fn item_text(item: &StreamItem) -> String {
    let task = |bytes: &[u8]| task_id(bytes).map(|id| id.to_string()).unwrap_or_default();
    let object = |bytes: &[u8]| object_id(bytes).map(|id| id.to_string()).unwrap_or_default();
    match &item.item {
        Some(stream_item::Item::Submit(spec)) => format!("record {}", task(&spec.id)),
        Some(stream_item::Item::Done(done)) => format!("done {} attempt {}", task(&done.task), done.attempt),
        Some(stream_item::Item::Next(next)) if next.abandoned => format!("gives up {}", task(&next.task)),
        Some(stream_item::Item::Next(next)) => format!("next after {} of {}", next.from, task(&next.task)),
        Some(stream_item::Item::Put(put)) => format!("put {}", object(&put.object)),
        Some(stream_item::Item::Name(name)) => {
            format!(
                "name {} by {} contains {} hold {}",
                object(&name.object),
                object(&name.by),
                name.contains,
                name.hold
            )
        }
        Some(stream_item::Item::Unname(unname)) => {
            format!("unname {} by {}", object(&unname.object), object(&unname.by))
        }
        Some(stream_item::Item::Release(release)) => format!("release {}", object(&release.object)),
        Some(
            stream_item::Item::Run(_) | stream_item::Item::RunDone(_) | stream_item::Item::RunRelease(_),
        )
        | None => "packed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::Instant;

    #[test]
    fn a_slice_has_what_the_objection_names_and_what_that_is_made_of() {
        let id = |n: u8| format!("{:032x}-{n:03}", 0xabc + u32::from(n));
        let line = |kind: &'static str, text: String| Line {
            at: Instant(0),
            ordinal: 0,
            kind,
            place: 0,
            life: 0,
            text,
        };
        let lines = [
            line("submits", format!("{} by client 1", id(1))),
            line("submits", format!("{} of {}.0 by client 1", id(2), id(1))),
            line("submits", format!("{} by client 1", id(3))),
            line("runs", id(3)),
            line("runs", id(1)),
            line("fault", "Crash: machine 1".into()),
            line("runs", id(2)),
        ];
        let found: Vec<&str> =
            slice(&lines, &format!("{} never ended", id(2))).iter().map(|l| l.kind).collect();
        assert_eq!(found, ["submits", "submits", "runs", "fault", "runs"]);
    }
}
