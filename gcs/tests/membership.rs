//! Heads come and go over real TCP and real files, under load.

mod heads;

use bytes::Bytes;
use heads::{LONG, Place, SHARDS, addresses, agree, change, client, until_done};
use mobula_gcs::backup::archive::{self, ArchiveHead};
use mobula_gcs::backup::{offline, seed};
use mobula_gcs::{Client, Error, Head, in_scope};
use mobula_proto as proto;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Here the operator repairs.
fn place() -> Place {
    let mut place = Place::new("members");
    place.repair = false;
    place
}

/// One attempt: what is refused here is refused at once.
async fn start(place: &Place, address: &str, join: &[String]) -> Result<Head, Error> {
    let started = Head::start(place.config(address, join), place.parts(address));
    tokio::time::timeout(LONG, started).await.expect("in time")
}

async fn members(client: &Client) -> Vec<(u64, String)> {
    let reply = client.heads_table(LONG).await.expect("told");
    reply.members.into_iter().map(|entry| (entry.head, entry.address)).collect()
}

/// Waits until the shard's leader is not `head`, and is somebody.
async fn until_led_elsewhere(heads: &[&Head], head: u64) {
    let elsewhere = async {
        while !heads
            .iter()
            .all(|other| other.status().shards.iter().all(|shard| shard.leader != 0 && shard.leader != head))
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, elsewhere).await.expect("leaders move");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_heads_are_replaced_one_by_one_under_load() {
    let place = place();
    in_scope(1, async {
        let (old, new) = (addresses(3), addresses(3));
        let mut running = place.form(&old).await;
        let client = client(&old).await;
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn({
            let (client, stop) = (client.clone(), stop.clone());
            async move {
                let mut n = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let (key, value) = (format!("key-{n}"), Bytes::from(format!("value-{n}")));
                    assert!(client.kv_put(key.as_bytes(), value, false, LONG).await.expect("no error"));
                    n += 1;
                }
                n
            }
        });
        for (nth, address) in new.iter().enumerate() {
            let member = running[nth].address().to_owned();
            let asked = client.change_heads(change(100 + nth as u64, address, nth as u64 + 1), LONG);
            assert!(!asked.await.expect("accepted").finished, "the new head does not run yet");
            let joined = start(&place, address, &[member]).await.expect("joins");
            let head = until_done(&client, change(100 + nth as u64, address, nth as u64 + 1)).await;
            assert_eq!((head, joined.head_id()), (nth as u64 + 4, head));
            let old = std::mem::replace(&mut running[nth], joined);
            let gone = async {
                while !old.was_removed() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(LONG, gone).await.expect("the old one notices");
            old.shutdown().await;
        }
        stop.store(true, Ordering::Relaxed);
        let written = load.await.expect("no write failed");
        assert!(written > 0);
        let expected: Vec<_> = (4..).zip(new.iter().cloned()).collect();
        assert_eq!(members(&client).await, expected);
        agree(&running.iter().collect::<Vec<_>>()).await;
        // The client has followed: none of the heads it was told of is left.
        let victim = running.remove(0);
        victim.shutdown().await;
        for n in 0..written {
            let entry = client.read_kv(format!("key-{n}").as_bytes(), LONG).await.expect("read");
            assert_eq!(entry.expect("there").value, Bytes::from(format!("value-{n}")));
        }
        // A restart needs no list but its own directory's.
        running.push(start(&place, &new[0], &new[..1]).await.expect("restarts"));
        agree(&running.iter().collect::<Vec<_>>()).await;
        for head in running {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_machine_comes_back_under_a_new_id_at_its_address() {
    let place = place();
    in_scope(2, async {
        let all = addresses(3);
        let mut running = place.form(&all).await;
        let client = client(&all).await;
        for n in 0..200u32 {
            client
                .kv_put(format!("key-{n}").as_bytes(), Bytes::from_static(b"x"), false, LONG)
                .await
                .expect("put");
        }
        running.remove(1).shutdown().await;
        std::fs::remove_dir_all(place.dir.join(&all[1])).expect("wiped");
        let refused = start(&place, &all[1], &all).await.err().expect("it forgot its votes").to_string();
        assert!(refused.contains(&format!("mobula head replace 2 {}", all[1])), "{refused}");
        let request = change(7, &all[1], 2);
        assert!(!client.change_heads(request.clone(), LONG).await.expect("accepted").finished);
        // The leader of shard 0 goes away in the middle; whoever leads next goes on.
        let root = running[0].status().shards[0].leader;
        let at = running.iter().position(|head| head.head_id() == root).expect("it is one of these");
        let address = running[at].address().to_owned();
        running.remove(at).shutdown().await;
        running.push(start(&place, &address, &all).await.expect("restarts"));
        let joined = start(&place, &all[1], &all).await.expect("joins");
        assert_eq!(until_done(&client, request.clone()).await, 4);
        assert_eq!(until_done(&client, request).await, 4, "the same request, the same answer");
        assert_eq!(joined.head_id(), 4);
        let everyone: Vec<&Head> = running.iter().chain([&joined]).collect();
        agree(&everyone).await;
        // Wiped again, it is refused again: its new id is claimed.
        joined.shutdown().await;
        std::fs::remove_dir_all(place.dir.join(&all[1])).expect("wiped");
        let refused = start(&place, &all[1], &all).await.err();
        assert!(matches!(refused, Some(Error::Emptied { head: 4, .. })), "{refused:?}");
        for head in running {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_drained_added_and_removed() {
    let place = place();
    in_scope(3, async {
        let (all, more) = (addresses(3), addresses(1));
        let running = place.form(&all).await;
        let client = client(&all).await;
        let drain = |head, undo| proto::ChangeHeadsRequest { drain: head, undo, ..Default::default() };
        client.change_heads(drain(2, false), LONG).await.expect("drained");
        until_led_elsewhere(&running.iter().collect::<Vec<_>>(), 2).await;
        client.move_leader(1, 3, LONG).await.expect("moved");
        client.change_heads(drain(2, true), LONG).await.expect("undone");
        let unknown = client.change_heads(change(1, "", 9), LONG).await.expect_err("no such head");
        assert!(unknown.to_string().contains("head 9 is no member"), "{unknown}");
        let there = client.change_heads(change(2, &all[0], 0), LONG).await.expect("it is there already");
        assert_eq!((there.finished, there.head), (true, 1));
        // Added before it runs, and found to be a mistake.
        assert_eq!(client.change_heads(change(3, "127.0.0.1:1", 0), LONG).await.expect("accepted").head, 4);
        let second = client.change_heads(change(4, &more[0], 0), LONG).await.expect_err("one at a time");
        assert!(second.to_string().contains("add head 4"), "{second}");
        until_done(&client, change(5, "", 4)).await;
        assert_eq!(members(&client).await.len(), 3);
        // Started before it is added: it waits.
        let starting = start(&place, &more[0], &all[..1]);
        let adding = until_done(&client, change(6, &more[0], 0));
        let (joined, head) = tokio::join!(starting, adding);
        let joined = joined.expect("joins");
        assert_eq!((head, joined.head_id()), (5, 5));
        until_done(&client, change(7, "", 1)).await;
        assert_eq!(until_done(&client, change(8, "", 1)).await, 1, "it is gone already");
        let left: Vec<u64> = members(&client).await.into_iter().map(|(head, _)| head).collect();
        assert_eq!(left, [2, 3, 5]);
        // With one of three gone, a second may not be removed unless a majority of the rest answers.
        joined.shutdown().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let refused = client.change_heads(change(9, "", 2), LONG).await.expect_err("no majority");
        assert!(refused.to_string().contains("no majority"), "{refused}");
        until_done(&client, change(10, "", 5)).await;
        for head in running {
            head.shutdown().await;
        }
    })
    .await;
}

async fn check_keys(heads: &[String], count: u32) -> Client {
    let client = client(heads).await;
    for n in 0..count {
        let entry = client.read_kv(format!("key-{n}").as_bytes(), LONG).await.expect("read");
        assert_eq!(entry.expect("there").value, Bytes::from(format!("value-{n}")));
    }
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_and_a_survivor_each_make_a_new_cluster() {
    let place = place();
    in_scope(4, async {
        let (all, fresh) = (addresses(3), addresses(3));
        let mut running = place.form(&all).await;
        let client = client(&all).await;
        for n in 0..250u32 {
            let (key, value) = (format!("key-{n}"), Bytes::from(format!("value-{n}")));
            client.kv_put(key.as_bytes(), value, false, LONG).await.expect("put");
        }
        // All replicas are the same at one entry, while others are written.
        for shard in 0..SHARDS {
            let id = 1000 + u64::from(shard);
            let index = client.checkpoint(shard, id, LONG).await.expect("committed");
            let mut digests = Vec::new();
            for address in &all {
                digests.push(client.digest_of(address, shard, id, LONG).await.expect("digested"));
            }
            assert!(digests.iter().all(|found| *found == digests[0] && found.0 == index), "{digests:?}");
        }
        let old_cluster = client.cluster();
        let head = ArchiveHead { format: archive::FORMAT, cluster: old_cluster, shards: SHARDS, unix_ms: 0 };
        let mut writer = archive::Writer::new(Vec::new(), &head).expect("a Vec grows");
        for shard in 0..SHARDS {
            client.dump(shard, LONG, &mut writer).await.expect("dumped");
        }
        let backup = writer.finish().expect("a Vec grows");
        // Into a new cluster, beside the old one.
        let parts = place.parts(&fresh[0]);
        let summary =
            seed::restore(parts.disk.clone(), 77, &fresh[0], &backup[..], "backup").expect("restored");
        assert_eq!((summary.shards.len(), summary.head.cluster), (3, old_cluster));
        let again = seed::restore(parts.disk, 78, &fresh[0], &backup[..], "backup").expect_err("not empty");
        assert!(again.to_string().contains("not empty"), "{again}");
        let restored = start(&place, &fresh[0], &[]).await.expect("starts");
        assert_eq!(restored.cluster_id(), 77);
        let new = check_keys(&fresh[..1], 250).await;
        assert!(new.kv_put(b"new", Bytes::from_static(b"x"), false, LONG).await.expect("written"));
        // It grows like any other; a head of the old cluster is refused.
        let foreign = start(&place, &all[0], &fresh[..1]).await.err().map(|error| error.to_string());
        assert!(foreign.is_some_and(|why| why.contains("in use") || why.contains("listen")), "it runs");
        running.remove(0).shutdown().await;
        let join = [all[0].clone(), fresh[0].clone()];
        let foreign = start(&place, &all[0], &join).await.err().expect("of another cluster").to_string();
        assert!(foreign.contains("this data directory belongs to cluster"), "{foreign}");
        assert!(!new.change_heads(change(1, &fresh[1], 0), LONG).await.expect("accepted").finished);
        let second = start(&place, &fresh[1], &fresh[..1]).await.expect("joins");
        until_done(&new, change(1, &fresh[1], 0)).await;
        agree(&[&restored, &second]).await;
        // Everybody else's disk is gone: one directory of the old cluster is left.
        for head in running {
            head.shutdown().await;
        }
        let left = place.parts(&all[2]).disk;
        let survivor = offline::look(&*left).expect("readable");
        assert_eq!((survivor.address.as_str(), survivor.identity.cluster), (all[2].as_str(), old_cluster));
        assert!(survivor.shards.iter().all(|shard| shard.last.1 >= shard.committed && shard.last.1 > 0));
        let to = place.parts(&fresh[2]).disk;
        let mut other = survivor.shards.clone();
        other[0].last.1 += 1;
        let changed = offline::recover(&*left, to.clone(), &other, 99, &fresh[2]).expect_err("changed");
        assert!(changed.to_string().contains("has changed since the plan"), "{changed}");
        offline::recover(&*left, to, &survivor.shards, 99, &fresh[2]).expect("recovered");
        let recovered = start(&place, &fresh[2], &[]).await.expect("starts");
        assert_eq!(recovered.cluster_id(), 99);
        check_keys(&fresh[2..], 250).await;
        for head in [restored, second, recovered] {
            head.shutdown().await;
        }
    })
    .await;
}
