use super::files::Files;
use super::item::{LogIdentity, Record};
use super::record::{EntryBatch, pack, store_entry};
use super::segments;
use super::writer::LogWriter;
use crate::error::Error;
use crate::raft::types::{Entry, LogId, Proposal, Vote};
use bytes::Bytes;
use mobula_base::disk::Disk;
use mobula_base::sim_disk::SimDisk;
use openraft::EntryPayload;
use proptest::prelude::*;
use prost::Message;
use std::sync::Arc;

const WHOSE: LogIdentity = LogIdentity { cluster: 7, head: 1 };

fn log_id(index: u64) -> LogId {
    LogId { leader_id: *Vote::new(1, 1).leader_id(), index }
}

fn entries(shard: u32, from: u64, count: u64, len: usize) -> Record {
    let entry = |index| {
        let payload = EntryPayload::Normal(Proposal(Bytes::from(vec![index as u8; len])));
        store_entry(&Entry { log_id: log_id(index), payload })
    };
    let batch = EntryBatch { entries: (from..from + count).map(entry).collect() };
    Record::Entries { shard, end: from + count, payload: batch.encode_to_vec().into() }
}

fn open(disk: &SimDisk, segment_bytes: u64) -> Result<(Files, Vec<u64>), Error> {
    let (files, found) = Files::open(Arc::new(disk.clone()), WHOSE, segment_bytes)?;
    Ok((files, found.get(&0).map(|shard| shard.entries.keys().copied().collect()).unwrap_or_default()))
}

#[test]
fn a_torn_tail_is_cut_and_what_was_synced_stays() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let (mut files, _) = open(&disk, 1 << 20).expect("fresh");
        files.commit(&[entries(0, 0, 3, 50)]).expect("memory");
        files.commit(&[entries(0, 3, 2, 500)]).expect("memory");
        disk.set_fail_sync(true);
        files.commit(&[entries(0, 5, 4, 500)]).expect_err("the sync fails: not acknowledged");
        disk.set_fail_sync(false);
        disk.power_cut();
        let (_, found) = open(&disk, 1 << 20).expect("a torn tail is no damage");
        assert!(found.len() == 5 || found.len() == 9, "all or nothing of a frame: {found:?}");
        // And again: the cut itself is durable.
        disk.power_cut();
        assert_eq!(open(&disk, 1 << 20).expect("clean").1, found);
    }
}

#[test]
fn damage_before_a_synced_offset_stops_the_replica_with_file_and_offset() {
    let disk = SimDisk::new(1);
    let (mut files, _) = open(&disk, 1 << 20).expect("fresh");
    files.commit(&[entries(0, 0, 3, 50)]).expect("memory");
    files.commit(&[entries(0, 3, 3, 50)]).expect("memory");
    files.idle().expect("memory");
    let len = disk.read(&segments::name(1)).expect("there").len() as u64;
    let mark = super::frame::HEADER as u64;
    for byte in 0..len - mark {
        disk.flip_bit(&segments::name(1), byte);
        match open(&disk, 1 << 20) {
            Err(Error::Corrupt { file, offset, .. }) => {
                assert_eq!(file, segments::name(1));
                assert!(offset <= byte);
            }
            Err(other) => panic!("byte {byte}: {other}"),
            Ok(_) => panic!("byte {byte} of {len} was flipped and nobody saw it"),
        }
        disk.flip_bit(&segments::name(1), byte);
    }
    let error = {
        disk.flip_bit(&segments::name(1), 100);
        open(&disk, 1 << 20).err().expect("damaged").to_string()
    };
    assert!(error.contains("log/0000000001.seg") && error.contains("re-add it"), "{error}");
}

#[test]
fn segments_rotate_go_when_purged_and_restate_votes() {
    let disk = SimDisk::new(3);
    let (mut files, _) = open(&disk, 2000).expect("fresh");
    let vote = Vote::new(4, 2);
    files.commit(&[Record::Vote { shard: 1, vote: pack(&vote) }]).expect("memory");
    for index in 0..40 {
        files.commit(&[entries(0, index, 1, 400)]).expect("memory");
    }
    assert!(segments::list(&disk).expect("memory").len() > 5);
    files.commit(&[Record::Truncate { shard: 0, end: 38 }]).expect("memory");
    files.commit(&[Record::Purge { shard: 0, index: 35, log_id: pack(&log_id(35)) }]).expect("memory");
    assert!(segments::list(&disk).expect("memory").len() <= 3, "old segments are gone");
    disk.power_cut();
    let (_, found) = Files::open(Arc::new(disk), WHOSE, 2000).expect("clean");
    assert_eq!(found[&0].entries.keys().copied().collect::<Vec<_>>(), vec![36, 37]);
    assert_eq!(found[&0].purged, Some(log_id(35)));
    assert_eq!(found[&1].vote, Some(vote), "its own segment is long gone");
}

#[test]
fn a_foreign_log_is_refused() {
    let disk = SimDisk::new(3);
    drop(open(&disk, 2000).expect("fresh"));
    let other = LogIdentity { cluster: 8, head: 1 };
    let error = Files::open(Arc::new(disk), other, 2000).err().expect("foreign").to_string();
    assert!(error.contains("belongs to head 1 of cluster"), "{error}");
}

#[tokio::test]
async fn a_failed_sync_stops_the_log_for_good() {
    let disk = SimDisk::new(4);
    let (log, _) = LogWriter::open(Arc::new(disk.clone()), WHOSE).expect("fresh");
    log.write(entries(0, 0, 1, 9)).await.expect("memory");
    disk.set_fail_sync(true);
    log.write(entries(0, 1, 1, 9)).await.expect_err("the sync fails");
    disk.set_fail_sync(false);
    // Trying again would acknowledge on top of bytes nobody knows to be there.
    log.write(entries(0, 2, 1, 9)).await.expect_err("stopped");
    assert!(log.stopped().is_some_and(|why| why.contains("restart this head")));
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    let disk = SimDisk::new(4);
    let (log, _) = LogWriter::open(Arc::new(disk.clone()), WHOSE).expect("fresh");
    log.write(entries(0, 0, 1, 9)).await.expect("memory");
    disk.set_full(true);
    let error = log.write(entries(0, 1, 1, 9)).await.expect_err("full").to_string();
    assert!(error.contains("full"), "{error}");
    log.close().await;
    disk.set_full(false);
    disk.power_cut();
    assert_eq!(open(&disk, 1 << 20).expect("clean").1, vec![0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Through any number of power cuts: what was acknowledged is there, in order, without holes,
    /// and nothing is there that was not written.
    #[test]
    fn acknowledged_appends_survive_power_cuts(
        seed in any::<u64>(),
        lives in proptest::collection::vec(proptest::collection::vec((1u64..5, 0usize..300, 0u8..10), 0..20), 1..6),
    ) {
        let disk = SimDisk::new(seed);
        let (mut next, mut acknowledged, mut purged) = (0u64, 0u64, 0u64);
        for life in lives {
            let (mut files, found) = open(&disk, 1500).expect("a power cut is no damage");
            prop_assert!(found.iter().copied().eq(purged..purged + found.len() as u64), "{:?} {}", found, purged);
            prop_assert!(purged + found.len() as u64 >= acknowledged, "{:?} {}", found, acknowledged);
            prop_assert!(purged + found.len() as u64 <= next);
            next = purged + found.len() as u64;
            acknowledged = next;
            for (count, len, what) in life {
                match what {
                    0 => {
                        // Written but never synced: may or may not survive.
                        disk.set_fail_sync(true);
                        let failed = files.commit(&[entries(0, next, count, len)]).is_err();
                        disk.set_fail_sync(false);
                        prop_assert!(failed);
                        next += count;
                        break;
                    }
                    1 if acknowledged > purged + 2 => {
                        let index = acknowledged - 2;
                        files.commit(&[Record::Purge { shard: 0, index, log_id: pack(&log_id(index)) }]).expect("memory");
                        purged = index + 1;
                    }
                    2 => files.idle().expect("memory"),
                    _ => {
                        files.commit(&[entries(0, next, count, len)]).expect("memory");
                        next += count;
                        acknowledged = next;
                    }
                }
            }
            disk.power_cut();
        }
    }
}
