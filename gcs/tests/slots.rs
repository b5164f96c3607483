//! Slots move between shards under load, over real TCP and real files.

mod heads;

use bytes::Bytes;
use heads::{LONG, Place, SHARDS, addresses, agree, client, until};
use mobula_base::slots::slot_of_key;
use mobula_base::{JobId, ShardId, SlotMap, SlotSet, TaskId};
use mobula_gcs::client::watch::Told;
use mobula_gcs::{Client, Head, in_scope};
use mobula_net::tcp::TcpNet;
use mobula_proto as proto;
use proto::call_reply::Reply as Called;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn start(request: u64, from: u32, to: u32, count: u32) -> proto::StartSlotPlan {
    proto::StartSlotPlan { request, from, to, count, ..Default::default() }
}

/// Waits until the cluster writes the level at which slots may move.
async fn ready(heads: &[Head]) {
    until("all write what this program reads", || heads.iter().all(|head| head.writes() == 4)).await;
}

/// Asks again and again, as the command line does, until the move is done; the epoch of its map.
async fn until_moved(client: &Client, start: proto::StartSlotPlan) -> u64 {
    let done = async {
        loop {
            let reply = client.move_slots(start.clone(), LONG).await.expect("accepted");
            if reply.finished {
                return reply.epoch;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, done).await.expect("the move ends")
}

fn name(n: u32) -> String {
    format!("key-{n}")
}

fn large(n: u32) -> Vec<u8> {
    format!("large-{n}").into_bytes()
}

/// Several clients write until they are told to stop, and read what they have written; how many keys
/// each has written.
fn load(all: &[String], stop: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<u32>> {
    let work = |lane: u32| {
        let (all, stop) = (all.to_vec(), stop.clone());
        tokio::spawn(async move {
            let client = client(&all).await;
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let (key, value) = (name(lane << 20 | n), Bytes::from(format!("{lane} {n}")));
                assert!(client.kv_put(key.as_bytes(), value.clone(), true, LONG).await.expect("no error"));
                let read = client.read_kv(key.as_bytes(), LONG).await.expect("no error");
                assert_eq!(read.expect("acknowledged").value, value);
                n += 1;
            }
            n
        })
    };
    (0..4).map(work).collect()
}

async fn check(client: &Client, written: &[u32]) {
    let mut expected = BTreeMap::new();
    for (lane, count) in (0u32..).zip(written) {
        expected.extend((0..*count).map(|n| (Bytes::from(name(lane << 20 | n)), format!("{lane} {n}"))));
    }
    let found = client.list_all(b"key-", LONG).await.expect("listed");
    let found: BTreeMap<_, _> = found.into_iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(found.len(), expected.len());
    assert!(expected.iter().all(|(key, value)| found[key] == value));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_nobody_notices() {
    let place = Place::new("slots");
    in_scope(1, async {
        let all = addresses(3);
        let heads = place.form(&all).await;
        let operator = client(&all).await;
        ready(&heads).await;
        // Clients that know only the first map.
        let stale = client(&all).await;
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = load(&all, &stop);
        // Away, on, and back where a part of them came from.
        for (request, (from, to)) in (1u64..).zip([(0, 1), (1, 2), (2, 0), (0, 1)]) {
            let epoch = until_moved(&operator, start(request, from, to, 150)).await;
            assert_eq!(epoch, request + 1);
        }
        // The same request again is the same move.
        assert_eq!(until_moved(&operator, start(4, 0, 1, 150)).await, 5);
        stop.store(true, Ordering::Relaxed);
        let mut written = Vec::new();
        for lane in lanes {
            written.push(lane.await.expect("no operation failed"));
        }
        assert!(written.iter().all(|count| *count > 0));
        assert_eq!(stale.slots().epoch(), 1);
        check(&stale, &written).await;
        assert!(stale.slots().epoch() == 5, "it was redirected");
        let map = operator.slot_table(LONG).await.expect("told");
        assert!(map.plan.is_none() && map.waiting.is_empty());
        assert_eq!(map.map.expect("there").read().expect("whole"), *stale.slots());
        agree(&heads.iter().collect::<Vec<_>>()).await;
        let refused = operator.move_slots(start(9, 0, SHARDS, 1), LONG).await.expect_err("wrong").to_string();
        assert!(refused.contains("no shard 3"), "{refused}");
        let events = operator.events(0, Duration::ZERO, LONG).await.expect("told").events;
        let moved = events.iter().filter(|event| event.kind() == proto::EventKind::EventSlotsMoved).count();
        assert_eq!(moved, 4);
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}

/// The head that leads a shard, as its number in `heads`.
fn leader_of(heads: &[Option<Head>], shard: u32) -> Option<usize> {
    let leads = |head: &Option<Head>| {
        head.as_ref().is_some_and(|head| head.offices().iter().any(|(office, _)| *office == shard))
    };
    heads.iter().position(leads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_in_the_middle_the_move_is_finished_by_others() {
    let place = Place::new("slots");
    in_scope(2, async {
        let all = addresses(3);
        let heads = place.form(&all).await;
        ready(&heads).await;
        let mut heads: Vec<Option<Head>> = heads.into_iter().map(Some).collect();
        let operator = client(&all).await;
        // Large enough for many pieces.
        for n in 0..200u32 {
            let value = Bytes::from(vec![n as u8; 64 << 10]);
            assert!(operator.kv_put(&large(n), value, true, LONG).await.expect("written"));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = load(&all, &stop);
        // The leader of shard 0, of the source, and of the destination, each in the middle of a move.
        for (request, (victim, from, to)) in (1u64..).zip([(0, 1, 2), (2, 2, 1), (2, 1, 2)]) {
            let begun = operator.move_slots(start(request, from, to, 400), LONG).await.expect("accepted");
            assert!(!begun.finished);
            let led = async {
                loop {
                    if let Some(found) = leader_of(&heads, victim) {
                        return found;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let victim = tokio::time::timeout(LONG, led).await.expect("somebody leads");
            heads[victim].take().expect("running").shutdown().await;
            assert_eq!(until_moved(&operator, start(request, from, to, 400)).await, request + 1);
            heads[victim] = Some(place.start(&all[victim], &all).await.expect("starts again"));
        }
        stop.store(true, Ordering::Relaxed);
        for lane in lanes {
            assert!(lane.await.expect("no operation failed") > 0);
        }
        for n in 0..200u32 {
            let entry = operator.read_kv(&large(n), LONG).await.expect("read").expect("there");
            assert_eq!(entry.value, vec![n as u8; 64 << 10]);
        }
        let running: Vec<&Head> = heads.iter().flatten().collect();
        agree(&running).await;
        for head in heads.into_iter().flatten() {
            head.shutdown().await;
        }
    })
    .await;
}

/// A key of a slot that the highest `count` of shard 0 hold.
fn moving_key(count: u32) -> String {
    let goes = SlotMap::even(SHARDS).slots_of(ShardId(0)).highest(count);
    (0..).map(name).find(|key| goes.contains(slot_of_key(key.as_bytes()))).expect("some key fits")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_repeated_across_a_move_takes_effect_once() {
    let place = Place::new("slots");
    in_scope(3, async {
        let all = addresses(1);
        let heads = place.form(&all).await;
        let client = client(&all).await;
        ready(&heads).await;
        let key = moving_key(100);
        let session = async |shard| {
            let op = Some(proto::call::Op::Open(proto::OpenSession {}));
            let op = proto::command::Op::Call(proto::Call { op, ..Default::default() });
            let reply = client.propose(shard, &proto::Command::from(op), LONG).await.expect("opened");
            match reply.reply {
                Some(proto::reply::Reply::Call(proto::CallReply { reply: Some(Called::Session(n)) })) => n,
                other => panic!("{other:?}"),
            }
        };
        let ask = async |shard, session, seq, value: &'static str| {
            let put = proto::KvPut {
                key: key.clone().into(),
                value: Bytes::from_static(value.as_bytes()),
                only_if_absent: true,
                ..Default::default()
            };
            let call = proto::Call { session, seq, op: Some(proto::call::Op::KvPut(put)) };
            let command = proto::Command::from(proto::command::Op::Call(call));
            match client.propose(shard, &command, LONG).await.expect("answered").reply {
                Some(proto::reply::Reply::Call(reply)) => reply.reply.expect("an answer"),
                other => panic!("{other:?}"),
            }
        };
        let session = session(0).await;
        let first = ask(0, session, 1, "first").await;
        assert!(matches!(first, Called::Revision(_)));
        until_moved(&client, start(1, 0, 1, 100)).await;
        // As if its answer had been lost.
        assert_eq!(ask(0, session, 1, "first").await, first);
        assert_eq!(ask(0, session, 2, "second").await, Called::Moved(2));
        let entry = client.read_kv(key.as_bytes(), LONG).await.expect("read").expect("there");
        assert_eq!((&entry.value[..], Called::Revision(entry.revision)), (&b"first"[..], first));
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_see_what_comes_and_no_longer_what_has_left() {
    let place = Place::new("slots");
    in_scope(4, async {
        let all = addresses(1);
        let heads = place.form(&all).await;
        let client = client(&all).await;
        ready(&heads).await;
        let key = moving_key(100);
        let put = async |value: &'static str| {
            client.kv_put(key.as_bytes(), Bytes::from_static(value.as_bytes()), false, LONG).await
        };
        put("first").await.expect("written");
        let mut watchers = [client.watch_keys(b"key-", 0, 1), client.watch_keys(b"key-", 1, 1)];
        let told = watchers[0].next(LONG).await.expect("told");
        assert!(matches!(told, Told::Changes(changes) if changes[0].value == "first"));
        until_moved(&client, start(1, 0, 1, 100)).await;
        let Told::Listed(list) = watchers[0].next(LONG).await.expect("told") else { panic!("no list") };
        assert!(list.entries.is_empty(), "it has left");
        let Told::Listed(list) = watchers[1].next(LONG).await.expect("told") else { panic!("no list") };
        assert_eq!(list.entries[0].value, "first", "it has come");
        assert!(list.revision > list.entries[0].revision);
        put("second").await.expect("written");
        let Told::Changes(changes) = watchers[1].next(LONG).await.expect("told") else { panic!("no change") };
        assert_eq!((changes.len(), &changes[0].value[..]), (1, &b"second"[..]));
        assert_eq!(changes[0].revision, list.revision + 1);
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lineage_follows_and_nothing_is_lost_before_all_have_reported_since_the_move() {
    let place = Place::new("slots");
    in_scope(5, async {
        let all = addresses(1);
        let heads = place.form(&all).await;
        let client = client(&all).await;
        ready(&heads).await;
        let join = proto::NodeJoin { address: "a:1".into(), follows_slots: true, ..Default::default() };
        let joined = client.call(proto::call::Op::NodeJoin(join), 0, LONG).await.expect("joined").reply;
        assert_eq!(joined, Some(Called::Incarnation(1)));
        let beat = proto::HeartbeatRequest { incarnation: 1, follows_slots: true, ..Default::default() };
        client.heartbeat(beat.clone(), LONG).await.expect("heard");
        let goes = SlotMap::even(SHARDS).slots_of(ShardId(0)).highest(100);
        let task = |n: u64| TaskId::new(JobId(1), TaskId::root(JobId(1)), n, 0);
        let task = (0..).map(task).find(|task| goes.contains(task.run.slot())).expect("some run fits");
        let spec =
            proto::TaskSpec { id: proto::task_bytes(task), digest: 5, max_retries: 3, ..Default::default() };
        let done = proto::Done {
            task: proto::task_bytes(task),
            attempt: 1,
            executor: 77,
            outputs: vec![proto::Output { crc: 1, size: 2 }],
            ..Default::default()
        };
        let stream = async |shard, first_seq, item| {
            let items = vec![proto::StreamItem { item: Some(item) }];
            let batch = proto::StreamBatch { incarnation: 1, first_seq, items };
            match client.stream(shard, batch, LONG).await.expect("answered").reply {
                Some(proto::reply::Reply::Stream(ack)) => ack,
                other => panic!("{other:?}"),
            }
        };
        use proto::stream_item::Item;
        stream(0, 1, Item::Submit(spec.clone())).await;
        stream(0, 2, Item::Done(done)).await;
        let fence = proto::Command::from(proto::command::Op::Fence(proto::Fence { incarnation: 77 }));
        client.propose(0, &fence, LONG).await.expect("fenced");
        let object = proto::object_bytes(task.output(0));
        let locate = async |shard| {
            let answers = client.locate(shard, 1, vec![object.clone()], Duration::ZERO, LONG).await;
            answers.expect("located").answers[0].answer.clone().expect("an answer")
        };
        let report = async |shard, term, full, map| {
            let report =
                proto::HoldingRequest { shard, incarnation: 1, term, full, map, ..Default::default() };
            client.holding(report, LONG).await.expect("heard")
        };
        use proto::holding_reply::Result as Held;
        use proto::located::Answer;
        for shard in 0..2 {
            let Held::ReportInFull(term) = report(shard, 0, false, 1).await else { panic!("a new term") };
            assert_eq!(report(shard, term, true, 1).await, Held::AcceptedTerm(term));
        }
        assert_eq!(locate(0).await, Answer::Lost(1), "its only holder is fenced");
        client.heartbeat(beat, LONG).await.expect("heard");
        until_moved(&client, start(1, 0, 1, 100)).await;
        assert_eq!(locate(0).await, Answer::Moved(2));
        // The record is there with all that it says, but whether it is lost nobody knows yet.
        assert_eq!(locate(1).await, Answer::Making(0));
        let Held::ReportInFull(term) = report(1, 0, false, 1).await else { panic!("settling anew") };
        assert_eq!(report(1, term, true, 1).await, Held::Moved(2), "by the old map it leaves something out");
        assert_eq!(locate(1).await, Answer::Making(0));
        assert_eq!(report(1, term, true, 2).await, Held::AcceptedTerm(term));
        assert_eq!(locate(1).await, Answer::Lost(1));
        // Its stream at the old place is told so, singly; at the new one the attempt is granted.
        let next = || {
            Item::Next(proto::NextAttempt {
                task: proto::task_bytes(task),
                from: 1,
                failed: false,
                ..Default::default()
            })
        };
        let ack = stream(0, 3, next()).await;
        assert_eq!(ack.outcomes[0].outcome, Some(proto::item_outcome::Outcome::Moved(2)));
        let ack = stream(1, 1, next()).await;
        let Some(proto::item_outcome::Outcome::Granted(view)) = &ack.outcomes[0].outcome else {
            panic!("{ack:?}")
        };
        assert_eq!((view.attempt, view.spec.as_ref()), (2, Some(&spec)));
        let views = client.read_tasks(0, vec![proto::task_bytes(task)], false, LONG).await.expect("read");
        assert_eq!((views[0].attempt, views[0].keeper), (2, 1), "the reader was redirected");
        // A node of an earlier release is not let in any more.
        let old = proto::NodeJoin { address: "b:1".into(), ..Default::default() };
        let refused = client.call(proto::call::Op::NodeJoin(old), 0, LONG).await.expect("answered").reply;
        assert!(matches!(refused, Some(Called::Failure(_))), "{refused:?}");
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_after_all_heads_were_stopped() {
    let place = Place::new("slots");
    in_scope(6, async {
        let all = addresses(1);
        let heads = place.form(&all).await;
        ready(&heads).await;
        let operator = client(&all).await;
        for n in 0..300u32 {
            let value = Bytes::from(vec![n as u8; 16 << 10]);
            assert!(operator.kv_put(name(n).as_bytes(), value, true, LONG).await.expect("written"));
        }
        let some: SlotSet = SlotMap::even(SHARDS).slots_of(ShardId(2)).highest(300);
        let named = proto::StartSlotPlan { slots: proto::slot_rows(&some), count: 0, ..start(1, 2, 0, 0) };
        operator.move_slots(named.clone(), LONG).await.expect("accepted");
        for head in heads {
            head.shutdown().await;
        }
        let head = place.start(&all[0], &all).await.expect("starts again");
        let operator = Client::new(Arc::new(TcpNet), all.clone(), 5);
        operator.connect(LONG).await.expect("connects");
        until_moved(&operator, named).await;
        for n in 0..300u32 {
            let entry = operator.read_kv(name(n).as_bytes(), LONG).await.expect("read").expect("there");
            assert_eq!(entry.value, vec![n as u8; 16 << 10]);
        }
        assert!(operator.slots().slots_of(ShardId(2)).iter().all(|slot| !some.contains(slot)));
        head.shutdown().await;
    })
    .await;
}
