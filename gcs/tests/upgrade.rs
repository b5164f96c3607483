//! Heads of two releases in one cluster, over real TCP and real files. The newer one is this program,
//! told to announce, and once all can read it to write, a level of formats more.

mod heads;

use bytes::Bytes;
use heads::{LONG, Place, addresses, client, until};
use mobula_gcs::{Error, Formats, Head, in_scope};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn newer() -> Formats {
    Formats { newest: 5, program: "0.2.0-test".into(), ..Formats::default() }
}

/// Whether every shard has a leader that this head knows, and this head has applied what it has.
fn is_up(head: &Head) -> bool {
    head.status().shards.iter().all(|shard| shard.leader != 0 && shard.applied == shard.last_log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_upgraded_one_by_one_under_load() {
    let place = Place::new("upgrade");
    in_scope(1, async {
        let all = addresses(3);
        let mut running = place.form(&all).await;
        let client = client(&all).await;
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn({
            let (client, stop) = (client.clone(), stop.clone());
            async move {
                let mut n = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let (key, value) = (format!("key-{n}"), Bytes::from(format!("value-{n}")));
                    assert!(
                        client.kv_put(key.as_bytes(), value.clone(), false, LONG).await.expect("no error")
                    );
                    let read = client.read_kv(key.as_bytes(), LONG).await.expect("no error");
                    assert_eq!(read.expect("acknowledged").value, value);
                    n += 1;
                }
                n
            }
        });
        until("all write what this program reads", || running.iter().all(|head| head.writes() == 4)).await;
        for (nth, address) in all.iter().enumerate() {
            // Snapshots at the older level go to whoever reads more, and back.
            assert!(running.iter().all(|head| head.writes() == 4), "one head cannot read more");
            running.remove(0).shutdown().await;
            running.push(place.start_as(address, &all, newer()).await.expect("starts"));
            until("it is up", || is_up(&running[2])).await;
            assert_eq!(running[2].head_id(), nth as u64 + 1);
        }
        until("all write the new level", || running.iter().all(|head| head.writes() == 5)).await;
        assert_eq!(client.heads_table(LONG).await.expect("told").level, 5);
        // Enough for a snapshot at the new level, which a head that was away is sent.
        running.remove(1).shutdown().await;
        let before = running[0].status().shards[0].applied;
        until("it goes on", || running[0].status().shards[0].applied > before + 120).await;
        running.push(place.start_as(&all[1], &all, newer()).await.expect("starts"));
        until("it is up", || is_up(&running[2])).await;
        stop.store(true, Ordering::Relaxed);
        let written = load.await.expect("no operation failed");
        assert!(written > 0);

        // A head of the older release is told so before it does anything.
        running.pop().expect("three").shutdown().await;
        let refused = place.start(&all[1], &all).await.err().expect("it cannot read this").to_string();
        let said = "this cluster writes format 5, this program reads up to 4: install version 0.2.0-test";
        assert!(refused.contains(said), "{refused}");
        // So is one that is to join, and it takes nobody's place by asking.
        let fresh = addresses(1).remove(0);
        let request = heads::change(7, &fresh, 2);
        assert!(!client.change_heads(request.clone(), LONG).await.expect("accepted").finished);
        let refused = place.start(&fresh, &all).await.err();
        assert!(matches!(refused, Some(Error::TooOld { writes: 5, reads: 4, .. })), "{refused:?}");
        let joined = place.start_as(&fresh, &all, newer()).await.expect("joins");
        heads::until_done(&client, request).await;
        assert_eq!(joined.writes(), 5);
        for n in 0..written {
            let entry = client.read_kv(format!("key-{n}").as_bytes(), LONG).await.expect("read");
            assert_eq!(entry.expect("there").value, Bytes::from(format!("value-{n}")));
        }
        running.push(joined);
        for head in running {
            head.shutdown().await;
        }
    })
    .await;
}
