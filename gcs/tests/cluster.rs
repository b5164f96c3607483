//! Heads in one process over real TCP and real files.

mod heads;

use bytes::Bytes;
use heads::{LONG, Place, addresses, client};
use mobula_base::{JobId, TaskId};
use mobula_gcs::raft::timing::RaftTiming;
use mobula_gcs::{Client, Error, Head, HeadConfig, in_scope};
use mobula_net::tcp::TcpNet;
use mobula_proto as proto;
use proto::located::Answer;
use proto::stream_item::Item;
use std::sync::Arc;
use std::time::Duration;

fn config(address: &str, join: &[String], seed: u64) -> HeadConfig {
    let timing =
        RaftTiming { snapshot_entries: 100, snapshot_bytes: 0, keep_entries: 10, ..RaftTiming::default() };
    HeadConfig {
        address: address.into(),
        join: join.to_vec(),
        shards: 3,
        seed,
        timing,
        ..HeadConfig::default()
    }
}

async fn start(place: &Place, all: &[String], n: usize) -> Head {
    let (config, parts) = (config(&all[n], all, n as u64 + 1), place.parts(&n.to_string()));
    tokio::time::timeout(LONG, Head::start(config, parts)).await.expect("in time").expect("starts")
}

async fn start_all(place: &Place, all: &[String]) -> Vec<Option<Head>> {
    let heads = futures::future::join_all((0..all.len()).map(|n| start(place, all, n))).await;
    heads.into_iter().map(Some).collect()
}

async fn put(client: &Client, n: u32) {
    let key = format!("key-{n}");
    let value = Bytes::from(format!("value-{n}"));
    assert!(client.kv_put(key.as_bytes(), value, false, LONG).await.expect("written"));
}

async fn check(client: &Client, upto: u32) {
    for n in 0..upto {
        let entry = client.read_kv(format!("key-{n}").as_bytes(), LONG).await.expect("read");
        assert_eq!(entry.expect("there").value, Bytes::from(format!("value-{n}")));
    }
}

/// Waits until all replicas of all shards have applied the same.
async fn agree(heads: &[Option<Head>]) {
    let same = async {
        loop {
            let mut all = Vec::new();
            for head in heads.iter().flatten() {
                all.push((0..3).map(|shard| head.digest(shard)).collect::<Vec<_>>());
            }
            if all.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, same).await.expect("replicas converge");
}

#[tokio::test]
async fn three_heads_lose_one_at_a_time_and_nothing_else() {
    let place = Place::new("gcs");
    in_scope(1, async {
        let all = addresses(3);
        let mut heads = start_all(&place, &all).await;
        let client = client(&all).await;
        for n in 0..50 {
            put(&client, n).await;
        }
        for victim in 0..3 {
            heads[victim].take().expect("running").shutdown().await;
            // More than a snapshot's worth, so that the victim catches up through one.
            for n in 50..400 {
                put(&client, n).await;
            }
            heads[victim] = Some(start(&place, &all, victim).await);
            agree(&heads).await;
        }
        check(&client, 400).await;
        for head in heads.iter_mut() {
            head.take().expect("running").shutdown().await;
        }
        let heads = start_all(&place, &all).await;
        check(&client, 400).await;
        agree(&heads).await;
        let status = heads[0].as_ref().expect("running").status();
        assert!(status.syncs > 0 && status.resident_bytes > 0 && status.shards.len() == 3);
        assert!(status.shards.iter().all(|shard| shard.stopped.is_empty()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_stalls_clients_only_briefly() {
    let place = Place::new("gcs");
    in_scope(2, async {
        let all = addresses(3);
        let mut heads = start_all(&place, &all).await;
        let client = client(&all).await;
        put(&client, 0).await;
        // Let leaderships settle and the heads probe each other.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        for shard in 0..3 {
            let status = heads[0].as_ref().expect("running").status();
            let leader = status.shards[shard as usize].leader as usize;
            if let Some(victim) = heads[leader - 1].take() {
                victim.shutdown().await;
                let before = tokio::time::Instant::now();
                let nothing =
                    proto::Command::from(proto::command::Op::Fence(proto::Fence { incarnation: 77 }));
                client.propose(shard, &nothing, LONG).await.expect("a new leader");
                println!("stall on shard {shard}: {:?}", before.elapsed());
                heads[leader - 1] = Some(start(&place, &all, leader - 1).await);
                tokio::time::sleep(Duration::from_millis(1000)).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_located_fenced_and_retried() {
    let place = Place::new("gcs");
    in_scope(3, async {
        let all = addresses(1);
        let head = Head::start(
            HeadConfig { shards: 3, node_silence_ms: 700, ..config(&all[0], &[], 5) },
            place.parts("0"),
        );
        let head = head.await.expect("starts");
        let client = client(&all).await;
        let mut nodes = Vec::new();
        for name in ["a", "b"] {
            let join = proto::NodeJoin { address: format!("{name}:1"), ..Default::default() };
            let reply = client.call(proto::call::Op::NodeJoin(join), 0, LONG).await.expect("joined");
            let Some(proto::call_reply::Reply::Incarnation(incarnation)) = reply.reply else {
                panic!("{reply:?}")
            };
            nodes.push(incarnation);
        }
        assert_eq!(nodes, [1, 2]);
        let task = TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, 0);
        let shard = task.run.shard(3).0;
        let spec =
            proto::TaskSpec { id: proto::task_bytes(task), digest: 5, max_retries: 3, ..Default::default() };
        let done = proto::Done {
            task: proto::task_bytes(task),
            attempt: 1,
            executor: 1,
            outputs: vec![proto::Output { crc: 1, size: 2 }],
            ..Default::default()
        };
        let stream = |incarnation, first_seq, item| proto::StreamBatch {
            incarnation,
            first_seq,
            items: vec![proto::StreamItem { item: Some(item) }],
        };
        client.stream(shard, stream(1, 1, Item::Submit(spec)), LONG).await.expect("submitted");
        let object = proto::object_bytes(task.output(0));
        let wait = Duration::from_millis(2000);
        let locate = || client.locate(shard, 2, vec![object.clone()], wait, LONG);
        // Parked until it is done.
        let finish = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.stream(shard, stream(1, 2, Item::Done(done)), LONG).await.expect("done");
        };
        let (located, ()) = tokio::join!(locate(), finish);
        let answer = located.expect("located").answers[0].answer.clone();
        let Some(Answer::Here(here)) = answer else { panic!("{answer:?}") };
        assert_eq!((here.holders[0].incarnation, here.holders[0].address.as_str()), (1, "a:1"));
        // Node 1 falls silent and is declared dead; node 2 lives on.
        let mut lost = false;
        for _ in 0..100 {
            let beat = proto::HeartbeatRequest { incarnation: 2, cpu_milli_free: 7, ..Default::default() };
            client.heartbeat(beat, LONG).await.expect("heard");
            for shard in 0..3 {
                let report = proto::HoldingRequest { shard, incarnation: 2, ..Default::default() };
                let said = client.holding(report.clone(), LONG).await.expect("heard");
                if let proto::holding_reply::Result::ReportInFull(term) = said {
                    let full = proto::HoldingRequest { term, full: true, ..report };
                    client.holding(full, LONG).await.expect("heard");
                }
            }
            let located = client.locate(shard, 2, vec![object.clone()], Duration::ZERO, LONG).await;
            if let Some(Answer::Lost(attempt)) = located.expect("located").answers[0].answer {
                assert_eq!(attempt, 1);
                lost = true;
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(lost, "a dead holder's copy is lost");
        let view = client.watch(0, Duration::ZERO, LONG).await.expect("seen");
        assert_eq!(view.nodes.iter().map(|node| node.alive).collect::<Vec<_>>(), [false, true]);
        let next = proto::NextAttempt {
            task: proto::task_bytes(task),
            from: 1,
            failed: false,
            ..Default::default()
        };
        let reply = client.stream(shard, stream(2, 1, Item::Next(next)), LONG).await.expect("proposed");
        let Some(proto::reply::Reply::Stream(ack)) = reply.reply else { panic!("{reply:?}") };
        assert!(matches!(ack.outcomes[0].outcome, Some(proto::item_outcome::Outcome::Granted(_))), "{ack:?}");
        // The dead one is told; its own shard has it fenced by now.
        let beat = proto::HeartbeatRequest { incarnation: 1, ..Default::default() };
        let told = client.heartbeat(beat, LONG).await.expect("heard");
        assert_eq!(told, proto::heartbeat_reply::Result::Fenced(true));
        let views = client.read_tasks(shard, vec![proto::task_bytes(task)], true, LONG).await.expect("read");
        assert_eq!((views[0].attempt, views[0].keeper), (2, 2));
        head.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn heads_that_disagree_say_so() {
    let place = Place::new("gcs");
    in_scope(4, async {
        let all = addresses(3);
        let one = Head::start(config(&all[0], &all, 1), place.parts("0"));
        let two = HeadConfig { shards: 5, ..config(&all[1], &all, 2) };
        let two = Head::start(two, place.parts("1"));
        let error = tokio::select! {
            biased;
            error = one => error.err(),
            error = two => error.err(),
        };
        assert!(matches!(error, Some(Error::ShardMismatch { .. })), "{error:?}");
        let all = addresses(2);
        let even = Head::start(config(&all[0], &all, 1), place.parts("2")).await.err();
        assert!(matches!(even, Some(Error::EvenHeads(2))), "{even:?}");
        // A data directory belongs to one cluster for good.
        let alone =
            Head::start(config(&all[0], &all[..1], 1), place.parts("3")).await.expect("alone is fine");
        alone.shutdown().await;
        let foreign = Head::start(config(&all[0], &addresses(3), 1), place.parts("3")).await.err();
        let text = foreign.map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("this data directory belongs to cluster"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn an_emptied_member_and_a_second_user_are_refused() {
    let place = Place::new("gcs");
    in_scope(5, async {
        let all = addresses(3);
        let mut heads = start_all(&place, &all).await;
        let client = client(&all).await;
        put(&client, 0).await;
        let again =
            Head::start(HeadConfig { address: "127.0.0.1:0".into(), ..config("", &[], 9) }, place.parts("1"));
        let error = again.await.err();
        assert!(matches!(error, Some(Error::InUse)), "{error:?}");
        heads[1].take().expect("running").shutdown().await;
        std::fs::remove_dir_all(place.dir.join("1")).expect("emptied");
        let stays_out = HeadConfig { repair: false, ..config(&all[1], &all, 2) };
        let error = Head::start(stays_out, place.parts("1")).await.err();
        assert!(matches!(error, Some(Error::Emptied { .. })), "{error:?}");
    })
    .await;
}

/// Every event that the head at `address` knows, in order.
async fn events_of(address: &str) -> Vec<proto::Event> {
    let client = Client::new(Arc::new(TcpNet), vec![address.to_owned()], 98);
    client.events(0, Duration::ZERO, LONG).await.expect("answers").events
}

/// Terms and heads of the elections of `shard`, with their causes.
fn elections(events: &[proto::Event], shard: u32) -> Vec<(u64, u64, proto::EventCause)> {
    let is_one =
        |event: &&proto::Event| event.kind() == proto::EventKind::EventElection && event.shard == shard;
    events.iter().filter(is_one).map(|event| (event.term, event.head, event.cause())).collect()
}

/// Waits until the head at `address` knows of an election of `shard` by `term`, whoever told.
async fn election_of(address: &str, shard: u32, term: u64) -> Vec<proto::Event> {
    let known = async {
        loop {
            let events = events_of(address).await;
            if elections(&events, shard).iter().any(|(known, ..)| *known == term) {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, known).await.expect("the election is told")
}

#[tokio::test]
async fn elections_are_told_once_by_every_survivor_also_of_shards_whose_leader_is_gone() {
    let place = Place::new("gcs");
    in_scope(1, async {
        let all = addresses(3);
        let mut heads = start_all(&place, &all).await;
        let client = client(&all).await;
        for n in 0..10 {
            put(&client, n).await;
        }
        // Each shard goes to the head it is meant for, and that is a transfer.
        let spread = async {
            while !(0..3).all(|shard| {
                heads[shard].as_ref().is_some_and(|h| h.offices().iter().any(|(s, _)| *s == shard as u32))
            }) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, spread).await.expect("leaders are spread");
        for (shard, head) in (0..3).zip(&heads) {
            let (_, term) = head.as_ref().expect("running").offices()[0];
            election_of(&all[2], shard, term).await;
        }
        // The leader of shard 0, which keeps the story, goes itself.
        heads[0].take().expect("running").shutdown().await;
        put(&client, 11).await;
        let term = async {
            loop {
                let offices = heads.iter().flatten().flat_map(Head::offices).collect::<Vec<_>>();
                if let Some((_, term)) = offices.into_iter().find(|(shard, _)| *shard == 0) {
                    return term;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let term = tokio::time::timeout(LONG, term).await.expect("a successor");
        let told = [election_of(&all[1], 0, term).await, election_of(&all[2], 0, term).await];
        for events in &told {
            let last = *elections(events, 0).last().expect("at least one");
            assert!(last.0 == term && last.1 != 1, "{last:?}");
            assert_eq!(last.2, proto::EventCause::CauseClosedConnection, "{events:#?}");
            for shard in 0..3 {
                let mut terms: Vec<_> = elections(events, shard).into_iter().map(|(term, ..)| term).collect();
                let count = terms.len();
                terms.sort_unstable();
                terms.dedup();
                assert_eq!(terms.len(), count, "shard {shard}: {events:#?}");
            }
            assert!(events.iter().all(|event| event.unix_ms > 0));
            let moved = |event: &proto::Event| event.kind() == proto::EventKind::EventTransfer;
            assert!(events.iter().any(moved), "{events:#?}");
        }
        heads[0] = Some(start(&place, &all, 0).await);
        put(&client, 12).await;
        agree(&heads).await;
        assert!(elections(&election_of(&all[0], 0, term).await, 0).iter().any(|e| e.0 == term && e.1 != 1));
    })
    .await;
}
