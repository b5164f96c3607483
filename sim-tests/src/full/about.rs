//! What the log says about one task, on request: for people who look for a cause. It is no part of the
//! fingerprint of a run, which is taken without.

use crate::trace;
use mobula_base::{RunId, TaskId};
use mobula_gcs::core::pack::unpack;
use mobula_proto as proto;
use prost::Message;
use proto::command::Op;
use proto::stream_item::Item;
use std::cell::Cell;

/// Characters of an entry that are shown.
const SHOWN: usize = 400;

thread_local! {
    static ABOUT: Cell<Option<TaskId>> = const { Cell::new(None) };
}

/// Reads a task as it is printed: the hash of its run, and its place.
///
/// # Errors
/// It is none.
pub fn parse(text: &str) -> Result<TaskId, String> {
    let parsed = text.split_once('-').and_then(|(run, place)| {
        Some(TaskId { run: RunId(u128::from_str_radix(run, 16).ok()?), place: place.parse().ok()? })
    });
    parsed.ok_or_else(|| format!("{text} is no task: write its run and its place, 0123..cdef-007"))
}

/// Notes from here on what is about a task.
pub fn set(task: Option<TaskId>) {
    ABOUT.set(task);
}

/// An entry was applied.
pub fn applied(shard: u32, index: u64, command: &proto::Command, reply: &proto::Reply) {
    let Some(task) = ABOUT.get() else { return };
    let (id, run) = (task.to_bytes(), task.run.0.to_be_bytes());
    // Lists of places are shown whole: they may have this one.
    let is_packed =
        |item: &proto::StreamItem| matches!(item.item, Some(Item::RunDone(_) | Item::RunRelease(_)));
    let names = |bytes: &[u8], id: &[u8]| bytes.windows(id.len()).any(|window| window == id);
    let is_about = |item: &proto::StreamItem| {
        let bytes = item.encode_to_vec();
        names(&bytes, &id) || is_packed(item) && names(&bytes, &run)
    };
    let says = |text: String| text.chars().take(SHOWN).collect::<String>();
    match &command.op {
        Some(Op::Stream(batch)) => {
            for (seq, item) in unpack(batch).into_iter().filter(|(_, item)| is_about(item)) {
                let outcome = match &reply.reply {
                    Some(proto::reply::Reply::Stream(ack)) => {
                        ack.outcomes.iter().find(|o| o.seq == seq).cloned()
                    }
                    _ => None,
                };
                let who = batch.incarnation;
                trace::note(says(format!("shard {shard} entry {index} of {who}: {item:?}: {outcome:?}")));
            }
        }
        _ if names(&command.encode_to_vec(), &run) => {
            trace::note(says(format!("shard {shard} entry {index}: {command:?}: {reply:?}")));
        }
        _ => {}
    }
}
