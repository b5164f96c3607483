//! What clients do, and the history of it: operations on shared keys, a stream of lineage records,
//! watches. Every value is written by one request.

use super::world::World;
use crate::judge::linear::{Act, Op, Value};
use crate::judge::once::Write;
use crate::judge::watch::Watched;
use crate::trace;
use bytes::Bytes;
use mobula_base::random::Random;
use mobula_base::{JobId, TaskId};
use mobula_gcs::client::calls::Cas;
use mobula_gcs::client::watch::Told;
use mobula_gcs::{Client, Error};
use mobula_proto as proto;
use std::collections::BTreeMap;
use std::time::Duration;

/// An operation that has no answer after this has an unknown outcome. Sometimes shorter than a
/// failover, so that there are such outcomes.
const PATIENCE: [Duration; 3] = [Duration::from_millis(700), Duration::from_secs(3), Duration::from_secs(20)];

/// What clients did and were told.
#[derive(Default)]
pub struct History {
    clock: u64,
    /// Operations by key.
    pub ops: BTreeMap<String, Vec<Op>>,
    /// Acknowledged writes.
    pub writes: Vec<Write>,
    /// Acknowledged lineage records and their revisions.
    pub records: Vec<(TaskId, u64)>,
    /// Watches that have ended.
    pub watched: Vec<Watched>,
    /// Operations with an answer, and with none.
    pub answered: u64,
    /// Operations whose outcome is not known.
    pub unknown: u64,
    /// Moves of slots that have ended.
    pub moves: u64,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The bytes of value number `value`, filled up to `len`.
fn bytes_of(value: Value, len: usize) -> Bytes {
    let mut bytes = value.to_be_bytes().to_vec();
    bytes.resize(len.max(8), b'.');
    bytes.into()
}

/// The number of a value.
fn number_of(bytes: &[u8]) -> Value {
    bytes.first_chunk().map_or(u64::MAX, |first| u64::from_be_bytes(*first))
}

/// Reads, writes, compares and deletes until the run is over.
pub async fn operate(world: World, n: u64, client: Client) {
    let mut random = Random::new(world.seed).fork(&format!("client {n}"));
    let mut known: BTreeMap<String, (Value, u64)> = BTreeMap::new();
    let mut serial = 0;
    while !world.is_over() {
        let key = format!("k{}", random.below(world.draw.keys));
        serial += 1;
        let value = n << 32 | serial;
        let patience = PATIENCE[random.below(3) as usize];
        one(&world, &client, &mut random, &mut known, (&key, value, patience)).await;
        tokio::time::sleep(Duration::from_millis(1 + random.below(world.draw.think_ms))).await;
    }
}

/// One operation, noted before and after.
async fn one(
    world: &World,
    client: &Client,
    random: &mut Random,
    known: &mut BTreeMap<String, (Value, u64)>,
    (key, value, patience): (&str, Value, Duration),
) {
    let called = world.history.borrow_mut().tick();
    let what = random.below(10);
    let shard = client.slots().of_key(key.as_bytes()).0;
    let fill = world.draw.value_bytes;
    // What to note when there is no answer, and what when there is.
    let (unknown, told) = match (what, known.get(key).copied()) {
        (0..4, _) => {
            let read = client.read_kv(key.as_bytes(), patience).await;
            let told = read.map(|entry| {
                let (value, revision) =
                    entry.map_or((0, 0), |entry| (number_of(&entry.value), entry.revision));
                known.insert(key.to_owned(), (value, revision));
                (Act::Get(value), None)
            });
            (None, told)
        }
        (4..8, Some((seen, revision))) => {
            let cas = client.kv_cas(key.as_bytes(), revision, bytes_of(value, fill), patience).await;
            let told = cas.map(|cas| match cas {
                Cas::Done(revision) => {
                    known.insert(key.to_owned(), (value, revision));
                    (Act::Cas(seen, value), Some(revision))
                }
                Cas::Conflict(_) => {
                    known.remove(key);
                    (Act::Conflict(seen), None)
                }
            });
            (Some(Act::Cas(seen, value)), told)
        }
        (8, _) => {
            let deleted = client.kv_delete(key.as_bytes(), None, patience).await;
            known.remove(key);
            let told = deleted.map(|deleted| match deleted {
                Cas::Done(0) => (Act::DeleteNothing, None),
                _ => (Act::Delete, None),
            });
            (Some(Act::MayDelete), told)
        }
        _ => {
            // By the call itself, whose answer has the revision.
            let put = proto::KvPut {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: bytes_of(value, fill),
                ..Default::default()
            };
            let reply = client.call(proto::call::Op::KvPut(put), shard, patience).await;
            known.remove(key);
            let told = reply.map(|reply| match reply.reply {
                Some(proto::call_reply::Reply::Revision(revision)) => (Act::Put(value), Some(revision)),
                other => panic!("a put was answered with {other:?}"),
            });
            (Some(Act::Put(value)), told)
        }
    };
    let mut history = world.history.borrow_mut();
    let answered = history.tick();
    match told {
        Ok((act, revision)) => {
            trace::note(format!("{key} {act:?} {revision:?}"));
            history.answered += 1;
            history.ops.entry(key.to_owned()).or_default().push(Op { called, answered: Some(answered), act });
            if let Some(acknowledged) = revision {
                let shard = (!world.draw.moves).then_some(shard);
                history.writes.push(Write { shard, value: bytes_of(value, fill).to_vec(), acknowledged });
            }
        }
        // Nothing was sent, or it was a read: nothing happened.
        Err(Error::Unreachable { .. } | Error::Moving(_)) => {}
        Err(error) => {
            trace::note(format!("{key} {value:x} unknown"));
            history.unknown += 1;
            if let Some(act) = unknown {
                history.ops.entry(key.to_owned()).or_default().push(Op { called, answered: None, act });
            }
            if !matches!(error, Error::OutcomeUnknown(_)) {
                drop(history);
                world.docket.judges().file("client", Err(format!("an operation ended with: {error}")));
            }
        }
    }
}

/// A node's streams of lineage records, one batch after the other, each sent until it is acknowledged.
pub async fn stream(world: World, client: Client) {
    let join = proto::NodeJoin {
        name: "node".into(),
        address: "node:1".into(),
        follows_slots: true,
        ..Default::default()
    };
    let incarnation = loop {
        match client.call(proto::call::Op::NodeJoin(join.clone()), 0, PATIENCE[2]).await.map(|r| r.reply) {
            Ok(Some(proto::call_reply::Reply::Incarnation(incarnation))) => break incarnation,
            _ if world.is_over() => return,
            _ => {}
        }
    };
    let mut random = Random::new(world.seed).fork("stream");
    let job = JobId(7);
    let (mut number, mut marks) = (0, BTreeMap::<u32, u64>::new());
    while !world.is_over() {
        if world.draw.moves {
            // No move begins before shard 0's leader knows that this node can follow it.
            let beat = proto::HeartbeatRequest { incarnation, follows_slots: true, ..Default::default() };
            client.heartbeat(beat, PATIENCE[0]).await.ok();
        }
        let run = TaskId::new(job, TaskId::root(job), 0, number).run;
        let tasks: Vec<TaskId> = (number..number + 1 + random.below(40))
            .map(|n| TaskId::new(job, TaskId::root(job), 0, n))
            .take_while(|task| task.run == run)
            .collect();
        let item = |task: &TaskId| {
            let id = proto::task_bytes(*task);
            let spec = proto::TaskSpec { id, job: job.0, digest: 1, max_retries: 3, ..Default::default() };
            proto::StreamItem { item: Some(proto::stream_item::Item::Submit(spec)) }
        };
        let items: Vec<_> = tasks.iter().map(item).collect();
        let (shard, ack) = loop {
            let shard = client.slots().of_run(run).0;
            let mark = marks.entry(shard).or_default();
            let batch = proto::StreamBatch { incarnation, first_seq: *mark + 1, items: items.clone() };
            let command = Client::stream_command(batch);
            let Some(ack) = send(&world, &client, shard, &command).await else { return };
            *mark = ack.mark;
            // They are of one run: all of them are elsewhere, or none.
            let (moved, epoch) = Client::moved_items(&command, &ack);
            if moved.is_empty() {
                break (shard, ack);
            }
            trace::note(format!(
                "shard {shard} says that {} records are elsewhere, map {epoch}",
                moved.len()
            ));
            while client.follow_slots(epoch, PATIENCE[1]).await.is_err() {
                if world.is_over() {
                    return;
                }
            }
        };
        trace::note(format!("shard {shard} has the records up to {} at {}", ack.mark, ack.revision));
        number += tasks.len() as u64;
        world.history.borrow_mut().records.extend(tasks.into_iter().map(|task| (task, ack.revision)));
        tokio::time::sleep(Duration::from_millis(5 + random.below(100))).await;
    }
}

/// Sends a batch until it is acknowledged; `None` at the end of the run.
async fn send(world: &World, client: &Client, shard: u32, command: &Bytes) -> Option<proto::StreamAck> {
    loop {
        let sent = client.propose_encoded(shard, command.clone(), PATIENCE[1]).await;
        match sent.map(|reply| reply.reply) {
            Ok(Some(proto::reply::Reply::Stream(ack))) => return Some(ack),
            Ok(other) => {
                let what = format!("a batch to shard {shard} was answered with {other:?}");
                world.docket.judges().file("stream", Err(what));
                return None;
            }
            Err(_) if world.is_over() => return None,
            Err(_) => {}
        }
    }
}

/// Moves slots to and fro until the run is over.
pub async fn move_slots(world: World, client: Client) {
    let mut random = Random::new(world.seed).fork("moves");
    let mut request = 0;
    while !world.is_over() {
        tokio::time::sleep(Duration::from_millis(200 + random.below(3000))).await;
        let from = random.below(u64::from(world.draw.shards)) as u32;
        let to = (from + 1 + random.below(u64::from(world.draw.shards) - 1) as u32) % world.draw.shards;
        let count = [1, 64, 300, 1024][random.below(4) as usize];
        request += 1;
        let start = proto::StartSlotPlan { request, from, to, count, ..Default::default() };
        while !world.is_over() {
            match client.move_slots(start.clone(), PATIENCE[1]).await {
                Ok(reply) if reply.finished => {
                    trace::note(format!("slots have moved from {from} to {to}: map {}", reply.epoch));
                    world.history.borrow_mut().moves += 1;
                    break;
                }
                // One that has none left, or a cluster that cannot move any yet.
                Err(Error::Refused(why)) => {
                    trace::note(format!("no move from {from} to {to}: {why}"));
                    break;
                }
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Watches one shard until the run is over; from 0 means: from what a list leaves off.
pub async fn watch(world: World, shard: u32, prefix: &'static str, from: u64, client: Client) {
    let mut from = from;
    while from == 0 && !world.is_over() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        from = client.list(prefix.as_bytes(), shard, PATIENCE[2]).await.map_or(0, |list| list.revision + 1);
    }
    let mut watcher = client.watch_keys(prefix.as_bytes(), shard, from);
    let mut told = Vec::new();
    while !world.is_over() {
        // A failure is no answer: it goes on where it was.
        if let Ok(news) = watcher.next(Duration::from_millis(900)).await {
            match &news {
                Told::Changes(changes) if changes.is_empty() => continue,
                Told::Changes(changes) => trace::note(format!("watch {shard} {} changes", changes.len())),
                Told::Listed(list) => trace::note(format!("watch {shard} listed at {}", list.revision)),
            }
            told.push(news);
        }
    }
    let prefix = prefix.as_bytes().to_vec();
    let next = watcher.next_revision();
    world.history.borrow_mut().watched.push(Watched { shard, prefix, from, next, told });
}
