//! Heads whose disks were emptied, damaged or taken back in time return by themselves, over real TCP
//! and real files, while the cluster works.

mod heads;

use bytes::Bytes;
use heads::{LONG, Place, addresses, agree, client, until};
use mobula_gcs::{Client, Error, Head, HeadConfig, in_scope};
use std::path::Path;

async fn write(client: &Client, from: u32, to: u32) {
    for n in from..to {
        let (key, value) = (format!("key-{n}"), Bytes::from(format!("value-{n}")));
        assert!(client.kv_put(key.as_bytes(), value, false, LONG).await.expect("written"));
    }
}

async fn check(client: &Client, count: u32) {
    for n in (0..count).step_by(7) {
        let entry = client.read_kv(format!("key-{n}").as_bytes(), LONG).await.expect("read");
        assert_eq!(entry.expect("there").value, Bytes::from(format!("value-{n}")));
    }
}

async fn member_ids(client: &Client) -> Vec<u64> {
    let table = client.heads_table(LONG).await.expect("told");
    table.members.into_iter().map(|entry| entry.head).collect()
}

/// Waits until the table has these heads and no change is under way.
async fn until_members(client: &Client, expected: &[u64]) {
    let settled = async {
        loop {
            let reply = client.heads_table(LONG).await.expect("told");
            let ids: Vec<u64> = reply.members.iter().map(|entry| entry.head).collect();
            if ids == expected && reply.table.is_some_and(|table| table.plan.is_none()) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, settled).await.expect("the change ends in time");
}

fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).expect("readable");
    let at = bytes.len().min(600) / 2;
    bytes[at] ^= 4;
    std::fs::write(file, bytes).expect("writable");
}

/// The first file of a directory.
fn first(dir: &Path) -> std::path::PathBuf {
    let names = std::fs::read_dir(dir).expect("there").map(|entry| entry.expect("readable").path());
    names.filter(|path| path.extension().is_some_and(|e| e == "seg" || e == "snap")).min().expect("a file")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("there") {
        let entry = entry.expect("readable");
        match entry.file_type().expect("known").is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => _ = std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied"),
        }
    }
}

/// Starts a head that must not take part with its disk and is not to repair itself; what it says.
async fn refused(place: &Place, address: &str, all: &[String]) -> Error {
    let config = HeadConfig { repair: false, ..place.config(address, all) };
    place.start_with(config).await.err().expect("it must not vote with that")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_come_back_by_themselves_whatever_became_of_their_disks() {
    let place = Place::new("repair");
    in_scope(1, async {
        let all = addresses(3);
        let mut running = place.form(&all).await;
        let client = client(&all).await;
        write(&client, 0, 400).await;

        // Emptied.
        running.remove(1).shutdown().await;
        std::fs::remove_dir_all(place.dir.join(&all[1])).expect("ours");
        assert!(matches!(refused(&place, &all[1], &all).await, Error::Emptied { head: 2, .. }));
        running.insert(1, place.start(&all[1], &all).await.expect("comes back"));
        assert_eq!(running[1].head_id(), 4);
        until_members(&client, &[1, 3, 4]).await;
        agree(&running.iter().collect::<Vec<_>>()).await;

        // A bit of its log, then one of a snapshot; each time it is another head.
        for (dir, expected) in [("log", [1, 3, 5]), ("snapshots", [1, 3, 6])] {
            write(&client, 400, 500).await;
            running.remove(1).shutdown().await;
            let home = place.dir.join(&all[1]);
            flip(&first(&home.join(dir)));
            running.insert(1, place.start(&all[1], &all).await.expect("comes back"));
            until_members(&client, &expected).await;
            let kept = home.join(format!("damaged-{}", expected[2] - 4));
            assert!(kept.join("note.txt").exists() && kept.join("identity").exists(), "{}", kept.display());
            agree(&running.iter().collect::<Vec<_>>()).await;
        }

        // What it had is gone, and nothing says so but what it was.
        for (dir, expected) in [("log", [1, 3, 7]), ("snapshots", [1, 3, 8])] {
            running.remove(1).shutdown().await;
            std::fs::remove_dir_all(place.dir.join(&all[1]).join(dir)).expect("ours");
            running.insert(1, place.start(&all[1], &all).await.expect("comes back"));
            until_members(&client, &expected).await;
        }
        check(&client, 500).await;
        for head in running {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_a_disk_is_recognised_and_the_head_rejoins() {
    let place = Place::new("older");
    in_scope(2, async {
        let all = addresses(3);
        let mut running = place.form(&all).await;
        let client = client(&all).await;
        write(&client, 0, 60).await;
        let (home, older) = (place.dir.join(&all[2]), place.dir.join("older"));
        running.remove(2).shutdown().await;
        copy(&home, &older);
        let restarted = place.start(&all[2], &all).await.expect("nothing is wrong with it");
        assert_eq!(restarted.head_id(), 3);
        // Every replica of it acknowledges something after the copy was taken.
        write(&client, 60, 120).await;
        running.push(restarted);
        agree(&running.iter().collect::<Vec<_>>()).await;
        running.pop().expect("three").shutdown().await;
        std::fs::remove_dir_all(&home).expect("ours");
        copy(&older, &home);

        let error = refused(&place, &all[2], &all).await;
        assert!(matches!(error, Error::MustRejoin { .. }), "{error}");
        assert!(error.to_string().contains("went back in time"), "{error}");
        running.push(place.start(&all[2], &all).await.expect("comes back"));
        assert_eq!(running[2].head_id(), 4);
        until_members(&client, &[1, 2, 4]).await;
        agree(&running.iter().collect::<Vec<_>>()).await;
        check(&client, 120).await;
        for head in running {
            head.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_and_only_while_the_others_are_a_majority() {
    let place = Place::new("careful");
    in_scope(3, async {
        let all = addresses(3);
        let mut running: Vec<Option<Head>> = place.form(&all).await.into_iter().map(Some).collect();
        let client = client(&all).await;
        write(&client, 0, 30).await;
        // One is away, another has lost its disk: it waits, though it asks.
        running[2].take().expect("runs").shutdown().await;
        running[1].take().expect("runs").shutdown().await;
        std::fs::remove_dir_all(place.dir.join(&all[1])).expect("ours");
        let mut lost = std::pin::pin!(place.start(&all[1], &all));
        let asked = std::time::Duration::from_secs(2);
        assert!(tokio::time::timeout(asked, lost.as_mut()).await.is_err(), "nobody can let it in");
        // The one that was away makes a majority, which takes the other back.
        let back = async {
            let back = place.start(&all[2], &all).await;
            (back.expect("nothing is wrong with it"), lost.await.expect("comes back"))
        };
        let (back, again) = back.await;
        assert_eq!((back.head_id(), again.head_id()), (3, 4));
        until_members(&client, &[1, 3, 4]).await;
        // Wiped once more, in the middle of another one's return: that one is finished first.
        let first = running[0].take().expect("runs");
        agree(&[&first, &back, &again]).await;
        again.shutdown().await;
        std::fs::remove_dir_all(place.dir.join(&all[1])).expect("ours");
        let again = place.start(&all[1], &all).await.expect("comes back");
        until("it knows the leaders", || again.status().shards.iter().all(|shard| shard.leader != 0)).await;
        until_members(&client, &[1, 3, 5]).await;
        assert_eq!(member_ids(&client).await, [1, 3, 5]);
        check(&client, 30).await;
        for head in [first, back, again] {
            head.shutdown().await;
        }
    })
    .await;
}
