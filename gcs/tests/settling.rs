//! A member that cannot be heard by a shard's leader holds nothing up for longer than its own death
//! takes to be decided, and none is taken for silent that another head can hear (R9).

mod heads;

use bytes::Bytes;
use heads::{LONG, Place, SHARDS, addresses, client, join, report, until};
use mobula_base::{JobId, TaskId};
use mobula_gcs::{Client, Head, HeadConfig, in_scope};
use mobula_proto as proto;
use proto::located::Answer;
use proto::stream_item::Item;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Which shard's leader hears nothing of a member, and which head alone it is cut off from (0: all).
#[derive(Clone, Copy)]
struct Cut {
    shard: u32,
    head: u64,
}

/// A node as the control store sees one: it beats, and reports what it holds (nothing) to every shard.
async fn be_a_node(client: Client, incarnation: u64, cut: Option<Cut>, leader: Arc<AtomicU64>) {
    loop {
        let beat = proto::HeartbeatRequest { incarnation, ..Default::default() };
        client.heartbeat(beat, LONG).await.ok();
        for shard in 0..SHARDS {
            let is_cut = cut.is_some_and(|cut| {
                shard == cut.shard && (cut.head == 0 || cut.head == leader.load(Ordering::Relaxed))
            });
            if !is_cut {
                report(&client, shard, incarnation, None).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn leader_of(heads: &[Head], shard: u32) -> u64 {
    let led = heads.iter().find(|head| head.offices().iter().any(|(led, _)| *led == shard));
    led.map_or(0, Head::head_id)
}

/// A cluster in which leaderships stay where they are, and every shard is led.
async fn form(place: &Place, all: &[String]) -> Vec<Head> {
    form_with(place, all, HeadConfig::default().report_silence_ms).await
}

/// The same, where who does not report counts as silent after so long.
async fn form_with(place: &Place, all: &[String], report_silence_ms: u64) -> Vec<Head> {
    let start = |address: &String| {
        let mut config = place.config(address, all);
        config.timing.rebalance_ms = 0;
        place.start_with(HeadConfig { node_silence_ms: 60_000, report_silence_ms, ..config })
    };
    let heads = futures::future::join_all(all.iter().map(start)).await;
    let heads: Vec<Head> = heads.into_iter().map(|head| head.expect("starts")).collect();
    until("every shard is led", || (0..SHARDS).all(|shard| leader_of(&heads, shard) != 0)).await;
    heads
}

/// An object of `shard` that was made by `executor` and is with it alone, in bytes; `holder` refers to it.
async fn make(client: &Client, shard: u32, executor: u64, holder: u64) -> Bytes {
    let task = (0..).map(|n| TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, n * 512));
    let task = task.into_iter().find(|task| task.run.shard(SHARDS).0 == shard).expect("some run is there");
    let id = proto::task_bytes(task);
    let outputs = vec![proto::Output { crc: 1, size: 2 }];
    let spec = proto::TaskSpec { id: id.clone(), digest: 5, max_retries: 3, ..Default::default() };
    let done = proto::Done { task: id, attempt: 1, executor, outputs, ..Default::default() };
    let items = [Item::Submit(spec), Item::Done(done)].map(|item| proto::StreamItem { item: Some(item) });
    let batch = proto::StreamBatch { incarnation: executor, first_seq: 1, items: items.into() };
    client.stream(shard, batch, LONG).await.expect("stored");
    let object = proto::object_bytes(task.output(0));
    let hold = proto::Name { object: object.clone(), hold: true, ..Default::default() };
    let items = vec![proto::StreamItem { item: Some(Item::Name(hold)) }];
    let batch = proto::StreamBatch { incarnation: holder, first_seq: 1, items };
    client.stream(shard, batch, LONG).await.expect("stored");
    object
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_no_leader_hears_dies_after_another_head_has_tried() {
    let place = Place::new("settle");
    in_scope(1, async {
        let all = addresses(3);
        let heads = form(&place, &all).await;
        let client = client(&all).await;
        let (gone, deaf, well) =
            (join(&client, "a").await, join(&client, "b").await, join(&client, "c").await);
        let shard = 1;
        let object = make(&client, shard, gone, well).await;
        let first = leader_of(&heads, shard);
        let never = Arc::new(AtomicU64::new(0));
        let cut = Some(Cut { shard, head: 0 });
        let nodes = [
            tokio::spawn(be_a_node(client.clone(), deaf, cut, never.clone())),
            tokio::spawn(be_a_node(client.clone(), well, None, never)),
        ];
        // The holder dies for a reason of its own: nobody knows yet whether the deaf one has a copy.
        let death = client.call(proto::call::Op::NodeLeave(proto::NodeLeave { incarnation: gone }), 0, LONG);
        death.await.expect("left");
        let mut tried = std::collections::BTreeSet::from([first]);
        let found = async {
            loop {
                let alive = client.watch(0, Duration::ZERO, LONG).await.expect("seen").nodes;
                let alive = |node| alive.iter().any(|view| view.incarnation == node && view.alive);
                assert!(alive(well), "only the one that holds it up");
                let located = client.locate(shard, well, vec![object.clone()], Duration::ZERO, LONG).await;
                match located.expect("located").answers[0].answer {
                    Some(Answer::Lost(1)) => return,
                    Some(Answer::Making(0)) => {}
                    ref other => panic!("{other:?}"),
                }
                tried.insert(leader_of(&heads, shard));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, found).await.expect("it is decided");
        let view = client.watch(0, Duration::ZERO, LONG).await.expect("seen");
        let dead = view.nodes.iter().filter(|node| !node.alive).map(|node| node.incarnation);
        assert_eq!(
            dead.collect::<Vec<_>>(),
            [gone, deaf],
            "lost is said only when all who live have reported"
        );
        tried.remove(&0);
        assert_eq!(tried.len(), 2, "another head led and tried before: {tried:?}");
        nodes.iter().for_each(tokio::task::JoinHandle::abort);
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_another_head_hears_lives() {
    let place = Place::new("heard");
    in_scope(2, async {
        let all = addresses(3);
        let heads = form(&place, &all).await;
        let client = client(&all).await;
        let node = join(&client, "a").await;
        let (shard, leader) = (2, Arc::new(AtomicU64::new(0)));
        let first = leader_of(&heads, shard);
        leader.store(first, Ordering::Relaxed);
        let cut = Some(Cut { shard, head: first });
        let reporting = tokio::spawn(be_a_node(client.clone(), node, cut, leader.clone()));
        until("another head leads", || {
            let now = leader_of(&heads, shard);
            leader.store(now, Ordering::Relaxed);
            now != 0 && now != first
        })
        .await;
        // It stays there, and longer than a second accusation would take.
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let view = client.watch(0, Duration::ZERO, LONG).await.expect("seen");
            assert!(view.nodes.iter().all(|node| node.alive), "it was heard");
            assert_ne!(leader_of(&heads, shard), first);
        }
        reporting.abort();
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}

/// What the shard says of an object once it knows that `holder` is dead.
async fn located(client: &Client, shard: u32, object: &Bytes, holder: u64) -> Option<Answer> {
    let answered = async {
        loop {
            let asked = vec![object.clone()];
            let found = client.locate(shard, holder, asked, Duration::ZERO, LONG).await.expect("located");
            match found.answers[0].answer.clone() {
                Some(Answer::Here(here)) if here.holders.iter().any(|h| h.incarnation == holder) => {}
                other => return other,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, answered).await.expect("the death spreads")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_before_all_who_live_have_confirmed_the_death() {
    let place = Place::new("confirm");
    in_scope(3, async {
        let all = addresses(3);
        let heads = form_with(&place, &all, 60_000).await;
        let client = client(&all).await;
        let (gone, well) = (join(&client, "a").await, join(&client, "b").await);
        let shard = 1;
        let object = make(&client, shard, gone, well).await;
        let before = client.watch(0, Duration::ZERO, LONG).await.expect("seen").version;
        assert!(report(&client, shard, well, Some(before)).await);
        // A new daemon at its address: the older one is dead, and the newer one knows.
        let next = join(&client, "a").await;
        let after = client.watch(before, LONG, LONG).await.expect("seen").version;
        assert!(report(&client, shard, next, Some(after)).await);
        let answer = located(&client, shard, &object, gone).await;
        assert!(matches!(answer, Some(Answer::Making(0))), "one may still hear the dead: {answer:?}");
        // What it says besides changes nothing.
        report(&client, shard, well, Some(before)).await;
        let answer = located(&client, shard, &object, gone).await;
        assert!(matches!(answer, Some(Answer::Making(0))), "{answer:?}");
        report(&client, shard, well, Some(after)).await;
        let answer = located(&client, shard, &object, gone).await;
        assert!(matches!(answer, Some(Answer::Lost(1))), "{answer:?}");
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}
