//! Records go when nobody needs them, also across shards and while heads die, over real TCP and real files.

mod heads;

use heads::{LONG, Place, SHARDS, addresses, client, join, report, until};
use mobula_base::{JobId, ObjectId, RunId, ShardId, SlotMap, TaskId};
use mobula_gcs::{Client, Head, in_scope};
use mobula_proto as proto;
use proto::stream_item::Item;
use std::time::Duration;

/// Tasks of a shard, each in a run of its own.
fn tasks(shard: u32) -> impl Iterator<Item = TaskId> {
    let map = SlotMap::even(SHARDS);
    let run = |n| RunId::new(JobId(1), TaskId::root(JobId(1)), n, 0);
    (0..).map(run).filter(move |run| map.of_run(*run) == ShardId(shard)).map(|run| TaskId { run, place: 0 })
}

fn submit(id: TaskId, args: &[ObjectId]) -> Item {
    let arg = |id: &ObjectId| proto::Arg { arg: Some(proto::arg::Arg::Object(proto::object_bytes(*id))) };
    let args = args.iter().map(arg).collect();
    let id = proto::task_bytes(id);
    Item::Submit(proto::TaskSpec { id, job: 1, digest: 5, max_retries: 3, args, ..Default::default() })
}

fn done(id: TaskId, executor: u64) -> Item {
    let outputs = vec![proto::Output { crc: 1, size: 8 }];
    let task = proto::task_bytes(id);
    Item::Done(proto::Done { task, attempt: 1, executor, outputs, ..Default::default() })
}

fn release(id: TaskId) -> Item {
    Item::Release(proto::Release { object: proto::object_bytes(id.output(0)) })
}

fn edge(object: ObjectId, by: ObjectId) -> Item {
    let (object, by) = (proto::object_bytes(object), proto::object_bytes(by));
    Item::Name(proto::Name { object, by, job: 1, ..Default::default() })
}

async fn send(
    client: &Client,
    shard: u32,
    incarnation: u64,
    first_seq: u64,
    items: Vec<Item>,
) -> proto::StreamAck {
    let items = items.into_iter().map(|item| proto::StreamItem { item: Some(item) }).collect();
    let batch = proto::StreamBatch { incarnation, first_seq, items };
    match client.stream(shard, batch, LONG).await.expect("stored").reply {
        Some(proto::reply::Reply::Stream(ack)) => ack,
        other => panic!("{other:?}"),
    }
}

/// Beats, and reports to the shards that it has no copies.
async fn be_a_node(client: Client, incarnation: u64) {
    loop {
        let beat = proto::HeartbeatRequest { incarnation, follows_slots: true, ..Default::default() };
        client.heartbeat(beat, LONG).await.ok();
        for shard in 0..SHARDS {
            report(&client, shard, incarnation, None).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a shard counts; the number of the node's next item. Each shard does from an entry of its own
/// on, and what it had of a job before stays: so every look is another job's, which is then forgotten.
async fn counts(client: &Client, shard: u32, node: u64) -> u64 {
    let mut next = 1;
    for (job, probe) in (1000..).zip(tasks(shard).skip(1000)) {
        let Item::Submit(plain) = submit(probe, &[]) else { unreachable!() };
        let record = Item::Submit(proto::TaskSpec { job, ..plain });
        let ack = send(client, shard, node, next, vec![record, done(probe, node), release(probe)]).await;
        let forget = proto::command::Op::Forget(proto::ForgetJob { job });
        client.propose(shard, &proto::Command::from(forget), LONG).await.expect("done");
        next = ack.mark + 1;
        if ack.outcomes.is_empty() {
            break;
        }
    }
    next
}

/// Records of a shard, on every head.
fn records(heads: &[Head], shard: u32) -> Vec<u64> {
    heads.iter().map(|head| head.status().shards[shard as usize].tasks).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_into_other_shards_end_whoever_leads_and_whatever_moves() {
    const USERS: usize = 200;
    let place = Place::new("references");
    in_scope(1, async {
        let all = addresses(3);
        let mut heads = place.form(&all).await;
        until("references are counted", || heads.iter().all(|head| head.writes() == 4)).await;
        let client = client(&all).await;
        let node = join(&client, "n1").await;
        let beats = tokio::spawn(be_a_node(client.clone(), node));
        let args: Vec<TaskId> = tasks(1).take(USERS).collect();
        let users: Vec<TaskId> = tasks(2).take(USERS).collect();
        let (first, second) = (counts(&client, 1, node).await, counts(&client, 2, node).await);
        let pairs = || args.iter().zip(&users);
        let named = pairs().flat_map(|(arg, user)| {
            let edge = edge(arg.output(0), user.output(0));
            [submit(*arg, &[]), done(*arg, node), edge, release(*arg)]
        });
        send(&client, 1, node, first, named.collect()).await;
        until("the arguments stay", || records(&heads, 1).iter().all(|count| *count == USERS as u64)).await;
        // Slots of the arguments move, and a head dies, while their users go.
        let start = proto::StartSlotPlan { request: 1, from: 1, to: 0, count: 128, ..Default::default() };
        client.move_slots(start.clone(), LONG).await.expect("accepted");
        let used = pairs().map(|(arg, user)| submit(*user, &[arg.output(0)]));
        let next = send(&client, 2, node, second, used.collect()).await.mark + 1;
        heads.remove(0).shutdown().await;
        let ended = users.iter().flat_map(|user| [done(*user, node), release(*user)]);
        send(&client, 2, node, next, ended.collect()).await;
        heads.push(place.start(&all[0], &all).await.expect("starts"));
        let moved = async {
            while !client.move_slots(start.clone(), LONG).await.expect("accepted").finished {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, moved).await.expect("the move ends");
        for shard in 0..SHARDS {
            until("nothing is left", || records(&heads, shard).iter().all(|count| *count == 0)).await;
        }
        beats.abort();
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}
