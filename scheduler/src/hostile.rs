//! Messages from outside, whatever they say, into the core: none may make it panic. The fuzz target
//! (`fuzz/`) and the test below call the same function.

use crate::memory::Measured;
use crate::types::{ClientId, Effect, Element, Event, FetchError, TaskOutcome, Value};
use crate::{Config, Core};
use bytes::{Buf, Bytes};
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Assign, ClusterView, LocatedList, PeerResult, StreamAck, StreamBatch, Take, TaskSpec, object_id, task_id,
};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// This node.
const ME: Incarnation = Incarnation(1);
/// Nodes that messages may come from.
const PEERS: u64 = 3;
/// Shards of the control store.
const SHARDS: u32 = 2;
/// Messages of one input that are taken at most.
const STEPS_MAX: usize = 128;
/// A driver of this node.
const DRIVER: ClientId = 1000;

/// What a node has under way, so that answers to it can be made.
struct World {
    core: Core,
    now: Instant,
    batches: BTreeMap<u32, StreamBatch>,
    asked: VecDeque<Vec<ObjectId>>,
    fetches: VecDeque<(ObjectId, Incarnation)>,
    runs: VecDeque<(ClientId, TaskId, u32)>,
    next_worker: ClientId,
}

/// Steps, each a byte that says what comes, a byte that says from whom, and a message with its length
/// before it.
pub fn messages(bytes: &[u8]) {
    let config = Config {
        incarnation: ME,
        shards: SHARDS,
        name: String::new(),
        resources: Resources::cpus_milli(2000),
        labels: Default::default(),
        workers: 2,
        linger: Duration::ZERO,
        crc: |bytes| bytes.len() as u32,
    };
    let mut world = World {
        core: Core::new(config),
        now: Instant(0),
        batches: BTreeMap::new(),
        asked: VecDeque::new(),
        fetches: VecDeque::new(),
        runs: VecDeque::new(),
        next_worker: 1,
    };
    let mut bytes = Bytes::copy_from_slice(bytes);
    for _ in 0..STEPS_MAX {
        if bytes.remaining() < 2 {
            return;
        }
        let (what, who) = (bytes.get_u8(), bytes.get_u8());
        let Some(event) = world.event(what, who, &mut bytes) else { return };
        world.take(event);
    }
}

fn message<M: Message + Default>(bytes: &mut Bytes) -> Option<M> {
    M::decode_length_delimited(bytes).ok()
}

impl World {
    fn event(&mut self, what: u8, who: u8, bytes: &mut Bytes) -> Option<Event> {
        let from = Incarnation(u64::from(who) % PEERS + 2);
        let job = JobId(u64::from(who) % 2);
        Some(match what % 22 {
            0 => Event::Submit { client: DRIVER, specs: vec![message::<TaskSpec>(bytes)?] },
            1 => Event::Assigned { from, assign: message::<Assign>(bytes)? },
            2 => Event::PeerResult { from, result: message::<PeerResult>(bytes)? },
            3 => self.located(message(bytes)?),
            4 => Event::View(message::<ClusterView>(bytes)?),
            5 => self.acked(u32::from(who) % SHARDS, message(bytes)?),
            6 => {
                self.now = self.now + Duration::from_millis(u64::from(who) * 10);
                Event::Tick
            }
            7 => {
                self.next_worker += 1;
                Event::WorkerUp { worker: self.next_worker, job }
            }
            8 if who > 200 => Event::Memory(Measured {
                workers: (0..8).map(|worker| (worker, u64::from(who) << 20)).collect(),
                rooms: vec![(u64::from(who % 2), 0)],
            }),
            8 => Event::WorkerGone { worker: u64::from(who) },
            9 => self.finished(who),
            10 => Event::JobStarted { job, counted: true },
            11 if who > 200 => Event::JobEnded(job),
            11 => Event::Blocked { worker: u64::from(who), returned: self.returned(u64::from(who)) },
            12 if who > 240 => {
                Event::Stalled { worker: u64::from(who), returned: self.returned(u64::from(who)) }
            }
            12 => Event::Unblocked { worker: u64::from(who) },
            13 => {
                let objects = objects(&message(bytes)?);
                Event::Get { client: DRIVER, job, objects, want_value: who.is_multiple_of(2) }
            }
            14 => self.fetched(who),
            15 => {
                if who > 240 {
                    return Some(Event::PeerWaiting { from, tasks: u32::from(who) });
                }
                let task = task_id(&message::<PeerResult>(bytes)?.task).unwrap_or_default();
                let attempt = u32::from(who) % 4;
                match who > 200 {
                    true => Event::TakenBack { from, task, attempt },
                    false => Event::PeerDurable { from, task, attempt },
                }
            }
            16 => {
                let object = objects(&message(bytes)?).first().copied()?;
                if who > 240 {
                    return Some(Event::CopyLost { object });
                }
                if who > 220 {
                    return Some(Event::Attached {
                        object,
                        job,
                        value: Value::Shared { offset: 0, len: 9, crc: 5 },
                    });
                }
                let (output, want) = (Default::default(), u32::from(who) / 64);
                let at = (0..want).map(|n| Incarnation(u64::from(n) + 1)).collect();
                Event::Replicate { object, job, holder: from, output, want, at }
            }
            17 => Event::WatchGroup { client: DRIVER, group: message(bytes)? },
            18 => self.streamed(who, message(bytes)?)?,
            19 => Event::NewItems { from, news: message(bytes)? },
            20 => self.item_put(who)?,
            _ => Event::Freed { objects: objects(&message(bytes)?) },
        })
    }

    /// What is said of the items of a stream, by its client or by the keeper of its task.
    fn streamed(&mut self, who: u8, take: Take) -> Option<Event> {
        let task = task_id(&take.task).ok()?;
        let (client, job, from) =
            (DRIVER, JobId(u64::from(who) % 2), Incarnation(u64::from(who) % PEERS + 2));
        Some(match who > 200 {
            true => Event::PeerTaken { from, task, taken: take.upto },
            false => Event::Take { client, job, task, first: take.first, upto: take.upto, over: take.over },
        })
    }

    /// An item of the oldest attempt that was given to a worker.
    fn item_put(&mut self, who: u8) -> Option<Event> {
        let (worker, task, _) = self.runs.front().copied()?;
        let (object, value) = (task.item(u32::from(who) % 4), Value::Inline(Bytes::from_static(b"item")));
        let (job, contains) = (JobId(1), if who > 200 { vec![task.output(0)] } else { Vec::new() });
        Some(Event::Put { client: worker, object, job, value, by_driver: false, contains, replicas: 0 })
    }

    /// The oldest question's answer.
    fn located(&mut self, list: LocatedList) -> Event {
        let asked = self.asked.pop_front().unwrap_or_default();
        Event::Located { asked, answers: list.answers }
    }

    /// An answer to the batch in flight. Whoever passes it on brings back what has moved.
    fn acked(&mut self, shard: u32, ack: StreamAck) -> Event {
        let batch = self.batches.get(&shard).cloned().unwrap_or_default();
        let item = batch.items.first().cloned().unwrap_or_default();
        let moved = vec![item; ack.outcomes.len()];
        Event::Acked { shard: ShardId(shard), ack, moved }
    }

    /// The oldest attempt that was given to a worker.
    fn finished(&mut self, who: u8) -> Event {
        let (worker, task, attempt) = self.runs.pop_front().unwrap_or_default();
        let value = Ok(match who % 2 {
            0 => Value::Inline(Bytes::from_static(b"value")),
            _ => Value::Shared { offset: 0, len: 1 << 20, crc: 5 },
        });
        // As many as were asked for, or not.
        let element = Element { value: Value::Inline(Bytes::from_static(b"e")), contains: Vec::new() };
        let elements = std::iter::repeat_n(element, usize::from(who / 64)).collect();
        let outcome =
            TaskOutcome { elements, task, attempt, value, contains: Vec::new(), ran_ns: u64::from(who) };
        Event::Finished { worker, outcomes: vec![outcome] }
    }

    /// What a worker has not begun.
    fn returned(&mut self, worker: ClientId) -> Vec<TaskId> {
        let of_it = self.runs.iter().filter(|run| run.0 == worker);
        let returned: Vec<TaskId> = of_it.skip(1).map(|run| run.1).collect();
        self.runs.retain(|run| run.0 != worker || !returned.contains(&run.1));
        returned
    }

    fn fetched(&mut self, who: u8) -> Event {
        let (object, from) = self.fetches.pop_front().unwrap_or_default();
        match who % 4 {
            0 => Event::Fetched { object, value: Value::Inline(Bytes::from_static(b"value")) },
            1 => Event::FetchFailed { object, from, why: FetchError::NotFound },
            2 => Event::FetchFailed { object, from, why: FetchError::Corrupt },
            _ => Event::FetchFailed { object, from, why: FetchError::StoreFull("full".into()) },
        }
    }

    fn take(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.core.step([event], self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Run { worker, spec, attempt, .. } => {
                    self.runs.push_back((worker, task_id(&spec.id).unwrap_or_default(), attempt));
                }
                Effect::Send { shard, batch } => drop(self.batches.insert(shard.0, batch)),
                Effect::Locate { objects, .. } => self.asked.push_back(objects),
                Effect::Fetch { object, from, .. } => self.fetches.push_back((object, from)),
                Effect::Spawn { .. }
                | Effect::Assign { .. }
                | Effect::Result { .. }
                | Effect::Durable { .. }
                | Effect::TakeBack { .. }
                | Effect::Waiting { .. }
                | Effect::NewItems { .. }
                | Effect::TellTaken { .. }
                | Effect::ItemsTaken { .. }
                | Effect::ItemsMade { .. }
                | Effect::Ready { .. }
                | Effect::Committed { .. }
                | Effect::Held { .. }
                | Effect::Discard { .. }
                | Effect::Freed { .. }
                | Effect::Replicate { .. }
                | Effect::Notice { .. }
                | Effect::Stop { .. }
                | Effect::Kill { .. }
                | Effect::Retire { .. }
                | Effect::Cancel { .. }
                | Effect::TellClaims
                | Effect::Group { .. }
                | Effect::FreeJob(_) => {}
            }
        }
        self.core.check_invariants();
        self.core.census();
    }
}

fn objects(list: &LocatedList) -> Vec<ObjectId> {
    list.answers.iter().filter_map(|answer| object_id(&answer.object).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{
        Arg, Failure, FailureKind, Here, Holder, Located, NewItems, NodeView, Output, TaskOptions,
        Value as Told, arg, located, object_bytes, task_bytes, value as wire,
    };
    use proptest::prelude::*;

    fn task(n: u8) -> TaskId {
        TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, u64::from(n) % 6)
    }

    fn spec(n: u8, argument: u8) -> TaskSpec {
        let object = Arg { arg: Some(arg::Arg::Object(object_bytes(task(argument).output(0)))) };
        TaskSpec {
            id: task_bytes(task(n)),
            job: 1,
            parent: task_bytes(TaskId::root(JobId(1))),
            cpu_milli: 1000,
            max_retries: u32::from(n) % 3,
            args: if argument % 6 < n % 6 { vec![object] } else { Vec::new() },
            options: n
                .is_multiple_of(4)
                .then(|| Box::new(TaskOptions { elements: u32::from(n / 4) % 40, ..TaskOptions::default() }))
                .or_else(|| {
                    n.is_multiple_of(3).then(|| Box::new(TaskOptions { window: 2, ..TaskOptions::default() }))
                }),
            ..TaskSpec::default()
        }
    }

    fn located(n: u8, kind: u8) -> LocatedList {
        let output = Some(Output { crc: 5, size: 1 << 20 });
        let holders = vec![Holder { incarnation: u64::from(kind) % 4, ..Holder::default() }];
        let answer = match kind % 6 {
            0 => located::Answer::Lost(u32::from(kind) % 5),
            1 => located::Answer::Here(Here { holders, output }),
            2 => located::Answer::Making(2),
            3 => located::Answer::Value(Bytes::from_static(b"value")),
            4 => located::Answer::Failed(Failure::new(FailureKind::FailureUserError, "drawn")),
            _ => located::Answer::Moved(3),
        };
        let answer = Located { object: object_bytes(task(n).output(0)), answer: Some(answer) };
        LocatedList { answers: vec![answer], term: 1 }
    }

    fn view(alive: u8) -> ClusterView {
        let node = |n: u64| NodeView {
            incarnation: n,
            cpu_milli: 2000,
            alive: n == 1 || alive >> n & 1 == 1,
            ..NodeView::default()
        };
        ClusterView { nodes: (1..=PEERS + 1).map(node).collect(), ..ClusterView::default() }
    }

    /// One step as it is written in an input.
    fn step(what: u8, who: u8, n: u8, kind: u8) -> Vec<u8> {
        let what = what % 21;
        let mut out = vec![what, who];
        let inline = Bytes::from_static(b"value");
        let result = PeerResult {
            task: task_bytes(task(n)),
            attempt: u32::from(kind) % 3,
            has_inline: kind.is_multiple_of(2),
            inline,
            output: (!kind.is_multiple_of(3)).then_some(Output { crc: 5, size: 1 << 20 }),
            durable: kind.is_multiple_of(4),
            elements: vec![Told::default(); usize::from(kind) % 3],
            ..PeerResult::default()
        };
        let written = match what {
            0 => spec(n, kind).encode_length_delimited(&mut out),
            1 => Assign { spec: Some(spec(n, kind)), attempt: u32::from(kind) % 3, hints: Vec::new() }
                .encode_length_delimited(&mut out),
            2 | 15 => result.encode_length_delimited(&mut out),
            3 | 13 | 16 | 17 => located(n, kind).encode_length_delimited(&mut out),
            18 => Take {
                task: task_bytes(task(n)),
                first: u32::from(kind % 4),
                upto: u32::from(kind % 16),
                over: kind > 200,
            }
            .encode_length_delimited(&mut out),
            19 => NewItems {
                task: task_bytes(task(n)),
                attempt: u32::from(kind) % 3,
                first: u32::from(kind % 4),
                items: vec![Told { value: Some(wire::Value::Elsewhere(Output { crc: 5, size: 9 })) }; 2],
            }
            .encode_length_delimited(&mut out),
            4 => view(kind).encode_length_delimited(&mut out),
            5 => StreamAck { mark: u64::from(n), revision: 1, outcomes: Vec::new() }
                .encode_length_delimited(&mut out),
            _ => Ok(()),
        };
        written.expect("a Vec grows");
        out
    }

    fn story() -> impl Strategy<Value = Vec<u8>> {
        let step = any::<(u8, u8, u8, u8)>().prop_map(|(what, who, n, kind)| step(what, who, n, kind));
        prop::collection::vec(step, 1..80).prop_map(|steps| steps.concat())
    }

    proptest! {
        #[test]
        fn messages_that_nobody_should_send(
            story in story(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = story;
            changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = byte);
            messages(&bytes);
        }
    }

    /// Writes the first inputs of the fuzz target.
    #[test]
    #[ignore = "writes files of the source tree"]
    fn write_seeds() {
        use proptest::strategy::ValueTree;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/messages");
        std::fs::create_dir_all(dir).expect("writable");
        for n in 0..24 {
            let bytes = story().new_tree(&mut runner).expect("a story").current();
            std::fs::write(format!("{dir}/{n}"), bytes).expect("writable");
        }
    }
}
