//! Lineage whose records left memory long ago is still usable: an object is made again from it.

mod heads;

use bytes::Bytes;
use heads::{LONG, Place, SHARDS, addresses, client, join, report, until};
use mobula_base::ids::RUN_LEN;
use mobula_base::{JobId, RunId, TaskId};
use mobula_gcs::{Client, in_scope};
use mobula_proto as proto;
use prost::Message;
use proto::item_outcome::Outcome;
use proto::located::Answer;
use proto::stream_item::Item;
use std::time::Duration;

const SHARD: u32 = 1;
/// Runs of younger records, of more bytes together than a shard keeps in memory.
const YOUNGER: usize = 160;
/// Bytes of the argument of each.
const ARGUMENT: usize = 100;

/// Runs of the job that the shard owns.
fn runs() -> impl Iterator<Item = RunId> {
    let run = |n: u64| RunId::new(JobId(1), TaskId::root(JobId(1)), 0, n * RUN_LEN);
    (0..).map(run).filter(|run| run.shard(SHARDS).0 == SHARD)
}

fn spec(task: TaskId) -> proto::TaskSpec {
    let value = Bytes::from(vec![7; ARGUMENT]);
    let args = vec![proto::Arg { arg: Some(proto::arg::Arg::Value(value)) }];
    let id = proto::task_bytes(task);
    proto::TaskSpec { id, job: 1, function: 9, args, digest: 5, max_retries: 3, ..Default::default() }
}

/// All records of a run.
fn records(run: RunId) -> proto::RunSpecs {
    let (mut specs, mut digests, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for place in 0..RUN_LEN as u16 {
        spec(TaskId { run, place }).encode(&mut specs).expect("a Vec grows");
        digests.extend_from_slice(&5u64.to_le_bytes());
        ends.extend_from_slice(&(specs.len() as u32).to_le_bytes());
    }
    let run = Bytes::copy_from_slice(&run.0.to_be_bytes());
    let (digests, ends, specs) = (digests.into(), ends.into(), specs.into());
    proto::RunSpecs { run, job: 1, digests, ends, specs, ..Default::default() }
}

/// Beats, and reports to the shard that it holds nothing.
async fn be_a_node(client: Client, incarnation: u64) {
    loop {
        let beat = proto::HeartbeatRequest { incarnation, ..Default::default() };
        client.heartbeat(beat, LONG).await.ok();
        for shard in 0..SHARDS {
            report(&client, shard, incarnation, None).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn send(client: &Client, incarnation: u64, first_seq: u64, items: Vec<Item>) -> proto::StreamAck {
    let items = items.into_iter().map(|item| proto::StreamItem { item: Some(item) }).collect();
    let batch = proto::StreamBatch { incarnation, first_seq, items };
    match client.stream(SHARD, batch, LONG).await.expect("stored").reply {
        Some(proto::reply::Reply::Stream(ack)) => ack,
        other => panic!("{other:?}"),
    }
}

/// Whether every head has a run in its files of cold runs.
fn is_cold_everywhere(place: &Place, heads: &[String], run: RunId) -> bool {
    let id = run.0.to_be_bytes();
    heads.iter().all(|head| {
        let files = std::fs::read_dir(place.dir.join(head).join("cold")).into_iter().flatten().flatten();
        files
            .filter_map(|file| std::fs::read(file.path()).ok())
            .any(|bytes| bytes.windows(id.len()).any(|window| window == id))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_made_again_whose_record_left_memory_long_ago() {
    let place = Place::new("cold");
    in_scope(1, async {
        let all = addresses(3);
        let heads = place.form(&all).await;
        let client = client(&all).await;
        let (gone, well) = (join(&client, "a").await, join(&client, "b").await);
        let node = tokio::spawn(be_a_node(client.clone(), well));
        let node_gone = tokio::spawn(be_a_node(client.clone(), gone));
        let mut runs = runs();
        let old = runs.next().expect("there are many");
        let task = TaskId { run: old, place: 3 };
        let outputs = vec![proto::Output { crc: 1, size: 2 }];
        let id = proto::task_bytes(task);
        let done =
            proto::Done { task: id.clone(), attempt: 1, executor: gone, outputs, ..Default::default() };
        send(&client, gone, 1, vec![Item::Submit(spec(task)), Item::Done(done)]).await;

        // Somebody living holds what it makes: else its record would go with the node.
        let object = proto::object_bytes(task.output(0));
        let hold = proto::Name { object, job: 1, hold: true, ..Default::default() };
        send(&client, well, 1, vec![Item::Name(hold)]).await;
        let mut seq = 2;
        for run in runs.take(YOUNGER) {
            send(&client, well, seq, vec![Item::Run(records(run))]).await;
            seq += RUN_LEN;
        }
        until("the old record lies in a file", || is_cold_everywhere(&place, &all, old)).await;

        node_gone.abort();
        let leave = proto::call::Op::NodeLeave(proto::NodeLeave { incarnation: gone });
        client.call(leave, 0, LONG).await.expect("left");
        let object = proto::object_bytes(task.output(0));
        let lost = async {
            loop {
                let asked = vec![object.clone()];
                let found = client.locate(SHARD, well, asked, Duration::ZERO, LONG).await.expect("located");
                match found.answers[0].answer {
                    Some(Answer::Lost(1)) => return,
                    Some(Answer::Making(0) | Answer::Here(_)) => {}
                    ref other => panic!("{other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, lost).await.expect("the death is known");

        let next = proto::NextAttempt { task: id, from: 1, failed: false, ..Default::default() };
        let ack = send(&client, well, seq, vec![Item::Next(next)]).await;
        let outcome = ack.outcomes.first().and_then(|outcome| outcome.outcome.clone());
        let Some(Outcome::Granted(view)) = outcome else { panic!("{ack:?}") };
        assert_eq!((view.attempt, view.spec), (2, Some(spec(task))), "all that it takes to run it again");
        node.abort();
        for head in heads {
            head.shutdown().await;
        }
    })
    .await;
}
