//! Taking the steps of a move: each leader those of its own shard.

use super::{Seen, Step, next_step, say};
use crate::core::run_bytes;
use crate::core::slot_table::Side;
use crate::raft::group::{Group, NotDone};
use crate::server::Running;
use mobula_base::{RunId, ShardId};
use mobula_proto as proto;
use prost::Message;
use proto::slot_command::Op;
use proto::{SlotContent, SlotOutcome, SlotPlan};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pause between looks while nothing moves.
const TICK: Duration = Duration::from_millis(100);
/// Pause between looks during a move: other leaders' steps show here only when they are applied.
const BUSY_TICK: Duration = Duration::from_millis(10);
/// Bytes of content in one entry, about, unless a single key or run is larger.
const PIECE_BYTES: usize = 512 << 10;
/// A piece that is larger cannot be sent to other heads as one entry, and would stop the shard that
/// takes it in. Only a run whose arguments are that large makes one.
const ENTRY_MAX: usize = 32 << 20;
/// So many steps of reading at most make one piece: each looks at a bounded part of the tables.
const READS_PER_PIECE: usize = 64;
/// What keeps a step from being taken is told no more often than this.
const TOLD_AGAIN: Duration = Duration::from_secs(1);

/// The move that is under way as this head's replicas have it.
pub fn look(running: &Running) -> (Option<SlotPlan>, Seen) {
    let (plan, map) = running.root().replica.with(|state| {
        let table = &state.cluster.slots_table;
        (table.plan().cloned(), table.epoch())
    });
    let Some(plan) = plan else { return (None, Seen { map, ..Seen::default() }) };
    let side = |shard: u32| {
        let group = running.groups.get(shard as usize);
        group.map(|group| group.replica.with(|state| Side::of(&state.slots, plan.epoch))).unwrap_or_default()
    };
    let seen = Seen { map, plan: plan.epoch, from: side(plan.from), to: side(plan.to) };
    (Some(plan), seen)
}

/// What the move that is under way waits for, as this head sees it.
pub fn waiting(running: &Running) -> String {
    say(next_step(&look(running).1)).to_owned()
}

/// Takes the steps that are due on shards that this head leads. Never ends.
pub async fn drive(running: Arc<Running>) {
    let mut left = Left::default();
    loop {
        let (plan, seen) = look(&running);
        let Some(plan) = plan else {
            tokio::time::sleep(TICK).await;
            continue;
        };
        let step = next_step(&seen);
        let shard = match step {
            Step::Rest | Step::Switch | Step::End => 0,
            Step::Await | Step::Copy => plan.to,
            Step::Release | Step::Forget => plan.from,
        };
        let group = running.groups.get(shard as usize).filter(|group| group.leadership().here);
        let taken = match group {
            Some(group) => take(&running, group, &plan, step, &mut left).await,
            None => false,
        };
        // A step that was taken makes the next one due at once, but for those that others take.
        if !taken || !matches!(step, Step::Copy | Step::Forget) {
            tokio::time::sleep(BUSY_TICK).await;
        }
    }
}

/// How far the leader of the shard that had the slots has looked for what is left of them.
#[derive(Default)]
struct Left {
    epoch: u64,
    after: Option<RunId>,
    /// When trouble was told last.
    told: Option<Instant>,
}

impl Left {
    /// Whether trouble is to be told now: steps are tried again many times a second.
    fn tells(&mut self) -> bool {
        let due = self.told.is_none_or(|told| told.elapsed() >= TOLD_AGAIN);
        if due {
            self.told = Some(Instant::now());
        }
        due
    }
}

/// Takes a step; whether it was done. Whatever the outcome, the next look decides anew.
async fn take(running: &Running, group: &Group, plan: &SlotPlan, step: Step, left: &mut Left) -> bool {
    let epoch = plan.epoch;
    let owned = |shard: u32| {
        let map = running.root().replica.with(|s| s.cluster.slots_table.map(running.identity.shards));
        // A map that holds already is the one that the move makes, and this step was taken before.
        proto::slot_rows(&map.slots_of(ShardId(shard)))
    };
    let slots = plan.slots.clone();
    let op = match step {
        Step::Rest => return false,
        Step::Await => Op::Await(proto::AwaitSlots { epoch, from: plan.from, slots, owned: owned(plan.to) }),
        Step::Release => {
            Op::Release(proto::ReleaseSlots { epoch, to: plan.to, slots, owned: owned(plan.from) })
        }
        Step::Copy => match piece(running, group, plan, left) {
            Some(piece) => Op::Content(piece),
            None => return false,
        },
        Step::Switch => Op::Switch(proto::SwitchSlots { epoch }),
        Step::Forget => return forget(group, epoch, left).await,
        Step::End => Op::End(proto::EndSlotPlan { epoch }),
    };
    if step != Step::Copy {
        tracing::info!(shard = group.shard, epoch, "move of slots: {}", say(step));
    }
    propose(group, op).await.is_ok()
}

/// The next piece of content, from this head's own replica of the shard that had it.
fn piece(running: &Running, to: &Group, plan: &SlotPlan, left: &mut Left) -> Option<SlotContent> {
    let begin = to.replica.with(|state| state.slots.coming().map(|coming| coming.cursor.clone()))?;
    let from = running.groups.get(plan.from as usize)?;
    let (mut whole, mut bytes) = (SlotContent::default(), 0);
    for round in 0..READS_PER_PIECE {
        let at = if round == 0 { begin.clone() } else { whole.next.clone().unwrap_or_default() };
        let read = from.replica.with(|state| state.content(plan.epoch, &at, PIECE_BYTES - bytes));
        let next = match read {
            Ok(next) => next?,
            Err(error) => {
                if left.tells() {
                    tracing::error!(%error, shard = plan.from, "lineage of slots that move cannot be read here");
                }
                return None;
            }
        };
        append(&mut whole, next);
        bytes = whole.encoded_len();
        if bytes > ENTRY_MAX {
            if left.tells() {
                let why =
                    "what moves has a run too large for one entry: it stays where it is, and the move waits";
                tracing::error!(shard = plan.from, bytes, why);
            }
            return None;
        }
        if whole.last || bytes >= PIECE_BYTES {
            break;
        }
    }
    whole.from = Some(begin);
    Some(whole)
}

fn append(whole: &mut SlotContent, next: SlotContent) {
    (whole.epoch, whole.last, whole.revision) = (next.epoch, next.last, next.revision);
    whole.next = next.next;
    whole.fenced.extend(next.fenced);
    whole.forgotten.extend(next.forgotten);
    whole.keys.extend(next.keys);
    whole.puts.extend(next.puts);
    whole.runs.extend(next.runs);
}

/// Forgets some of what has left, and when there is nothing left to find, the rest.
async fn forget(group: &Group, epoch: u64, left: &mut Left) -> bool {
    if group.replica.with(|state| state.slots.leaving().is_none_or(|leaving| leaving.epoch != epoch)) {
        return false;
    }
    if left.epoch != epoch {
        (left.epoch, left.after) = (epoch, None);
    }
    let (runs, next) = match group.replica.with(|state| state.left_behind(epoch, left.after)) {
        Ok(found) => found,
        Err(error) => {
            if left.tells() {
                tracing::error!(%error, shard = group.shard, "lineage of slots that have moved cannot be read here");
            }
            return false;
        }
    };
    let last = next.is_none();
    if !runs.is_empty() || last {
        let runs = runs.into_iter().map(|id| run_bytes(id).into()).collect();
        if propose(group, Op::Forget(proto::ForgetSlots { epoch, runs, last })).await.is_err() {
            return false;
        }
    }
    left.after = next;
    true
}

/// Proposes a step or a new plan.
///
/// # Errors
/// It was not done, or nobody knows.
pub async fn propose(group: &Group, op: Op) -> Result<SlotOutcome, NotDone> {
    let op = proto::command::Op::Slots(proto::SlotCommand { op: Some(op) });
    let command = proto::Command::from(op).encode_to_vec();
    let reply = group.propose(command.into()).await?;
    match proto::Reply::decode(reply).ok().and_then(|reply| reply.reply) {
        Some(proto::reply::Reply::Slots(outcome)) => Ok(outcome),
        _ => Err(NotDone::Unknown("an answer this build does not understand".into())),
    }
}
