use super::files::{FORMAT, Failure, Files};
use super::frame::{self, Header, Kind};
use super::index::{Found, ShardIndex};
use super::item::{LogIdentity, Record};
use super::reader::Reader;
use super::record::{EntryBatch, SegmentHeader, pack, store_entry};
use super::segments;
use super::sizes::Sizes;
use super::writer::LogWriter;
use crate::cold::Manifest;
use crate::error::Error;
use crate::raft::types::{Entry, LogId, Proposal, SnapshotMeta, StoredMembership, Vote};
use crate::scrub;
use crate::snapshot::{self, Parcel};
use bytes::{Bytes, BytesMut};
use mobula_base::disk::{Disk, RealDisk};
use mobula_base::sim_disk::SimDisk;
use openraft::EntryPayload;
use proptest::prelude::*;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

/// Simulated time in which whatever can happen has.
const SOON: Duration = Duration::from_secs(5);

pub(super) const WHOSE: LogIdentity = LogIdentity { cluster: 7, head: 1 };

pub(super) fn log_id(index: u64) -> LogId {
    LogId { leader_id: *Vote::new(1, 1).leader_id(), index }
}

fn entries(shard: u32, from: u64, count: u64, len: usize) -> Record {
    entries_tagged(shard, from, count, len, from as u8)
}

pub(super) fn entries_tagged(shard: u32, from: u64, count: u64, len: usize, tag: u8) -> Record {
    let entry = |index| {
        let payload = EntryPayload::Normal(Proposal(Bytes::from(vec![tag; len])));
        store_entry(&Entry { log_id: log_id(index), payload })
    };
    let batch = EntryBatch { entries: (from..from + count).map(entry).collect() };
    Record::Entries { shard, end: from + count, batch }
}

fn open(disk: &SimDisk, segment_bytes: u64) -> Result<(Files, Vec<u64>), Error> {
    let (files, found) = Files::open(Arc::new(disk.clone()), WHOSE, Sizes::with_segments_of(segment_bytes))?;
    Ok((files, found.get(&0).map(|shard| (shard.start()..shard.end()).collect()).unwrap_or_default()))
}

fn commit(files: &mut Files, records: &[Record]) -> Result<(), Failure> {
    files.commit(records.iter(), &mut Vec::new())
}

#[test]
fn a_torn_tail_is_cut_and_what_was_synced_stays() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let (mut files, _) = open(&disk, 1 << 20).expect("fresh");
        commit(&mut files, &[entries(0, 0, 3, 50)]).expect("memory");
        commit(&mut files, &[entries(0, 3, 2, 500)]).expect("memory");
        disk.set_fail_sync(true);
        commit(&mut files, &[entries(0, 5, 4, 500)]).expect_err("the sync fails: not acknowledged");
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
    let (mut files, _) = open(&disk, 4096).expect("fresh");
    commit(&mut files, &[entries(0, 0, 3, 50)]).expect("memory");
    commit(&mut files, &[entries(0, 3, 3, 50)]).expect("memory");
    files.idle().expect("memory");
    let len = segments::scan(&disk, 1, true, |_, _| Ok(())).expect("whole").valid;
    let mark = super::frame::HEADER as u64;
    for byte in 0..len - mark {
        disk.flip_bit(&segments::name(1), byte);
        match open(&disk, 4096) {
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
        open(&disk, 4096).err().expect("damaged").to_string()
    };
    assert!(error.contains("log/0000000001.seg") && error.contains("re-add it"), "{error}");
}

#[test]
fn segments_rotate_go_when_purged_and_restate_votes() {
    let disk = SimDisk::new(3);
    let (mut files, _) = open(&disk, 2000).expect("fresh");
    let vote = Vote::new(4, 2);
    commit(&mut files, &[Record::Vote { shard: 1, vote: pack(&vote) }]).expect("memory");
    for index in 0..40 {
        commit(&mut files, &[entries(0, index, 1, 400)]).expect("memory");
    }
    assert!(segments::list(&disk).expect("memory").len() > 5);
    commit(&mut files, &[Record::Truncate { shard: 0, end: 38 }]).expect("memory");
    commit(&mut files, &[Record::Purge { shard: 0, index: 35, log_id: pack(&log_id(35)) }]).expect("memory");
    assert!(segments::list(&disk).expect("memory").len() <= 3, "old segments are gone");
    disk.power_cut();
    let (_, found) = Files::open(Arc::new(disk), WHOSE, Sizes::with_segments_of(2000)).expect("clean");
    assert_eq!((found[&0].start(), found[&0].end()), (36, 38));
    assert_eq!(found[&0].purged, Some(log_id(35)));
    assert_eq!(found[&1].vote, Some(vote), "its own segment is long gone");
}

#[test]
fn a_foreign_log_is_refused() {
    let disk = SimDisk::new(3);
    drop(open(&disk, 2000).expect("fresh"));
    let other = LogIdentity { cluster: 8, head: 1 };
    let error =
        Files::open(Arc::new(disk), other, Sizes::with_segments_of(2000)).err().expect("foreign").to_string();
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

#[tokio::test(start_paused = true)]
async fn a_full_disk_holds_back_and_goes_on_when_there_is_room() {
    let disk = SimDisk::new(4);
    let (log, _) = LogWriter::open(Arc::new(disk.clone()), WHOSE).expect("fresh");
    log.write(entries(0, 0, 1, 9)).await.expect("memory");
    disk.set_full(true);
    // What is filled already takes some more, then the reserve does; then nothing is lost, only late.
    let mut next = 1;
    while let Ok(written) = tokio::time::timeout(SOON, log.write(entries(0, next, 1, 900))).await {
        written.expect("no error: a replica that refuses an append would have to stop");
        next += 1;
        assert!(next < 200, "a full disk takes everything");
    }
    assert!(log.full() && log.stopped().is_none());
    assert!(next > 20, "the reserve was not used");
    disk.set_full(false);
    // The one that was given up above is still in the queue.
    log.write(entries(0, next + 1, 1, 9)).await.expect("there is room again");
    tokio::time::sleep(SOON).await;
    assert!(!log.full());
    log.close().await;
    disk.power_cut();
    let (_, found) = open(&disk, 1 << 20).expect("clean");
    assert_eq!(found, (0..next + 2).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_closed_while_the_disk_is_full_keeps_what_was_acknowledged() {
    let disk = SimDisk::new(4);
    let (log, _) = LogWriter::open(Arc::new(disk.clone()), WHOSE).expect("fresh");
    disk.set_full(true);
    let mut next = 0;
    while let Ok(written) = tokio::time::timeout(SOON, log.write(entries(0, next, 1, 900))).await {
        written.expect("it fits");
        next += 1;
    }
    log.close().await;
    disk.power_cut();
    disk.set_full(false);
    assert_eq!(open(&disk, 1 << 20).expect("clean").1, (0..next).collect::<Vec<_>>());
}

/// Old entries are read back from the segments; what is in memory stays bounded.
#[test]
fn entries_leave_memory_and_are_found_again() {
    let disk = SimDisk::new(5);
    let (mut files, _) = open(&disk, 1 << 16).expect("fresh");
    let mut index = ShardIndex::with_cache(10_000);
    let mut places = Vec::new();
    for at in 0..300u64 {
        let payload = EntryPayload::Normal(Proposal(Bytes::from(vec![at as u8; 500])));
        index.push(Entry { log_id: log_id(at), payload });
        places.clear();
        files.commit([entries(0, at, 1, 500)].iter(), &mut places).expect("memory");
        let cuts = index.cuts();
        index.place(at, at + 1, places[0], cuts);
        assert!(index.cached() < 11_000, "{}", index.cached());
    }
    let reader = Reader::new(&disk);
    let mut next = 0;
    while next < 300 {
        let entries = match index.find(next, 300, 4000) {
            Found::Here(entries) => entries,
            Found::On(blocks) => {
                blocks.iter().flat_map(|block| reader.read(block, 0).expect("readable")).collect()
            }
            Found::Nowhere => panic!("{next} is gone"),
        };
        for entry in entries {
            assert_eq!(entry.log_id, log_id(next));
            let EntryPayload::Normal(proposal) = entry.payload else { panic!("a command") };
            assert_eq!(proposal.0[0], next as u8);
            next += 1;
        }
    }
    // Void before it was written, and written anew: the new one counts.
    index.truncate(Some(log_id(99)));
    index.truncate_blocks(100);
    assert!(matches!(index.find(100, 200, 4000), Found::Nowhere));
    assert!(
        matches!(index.find(99, 200, 4000), Found::On(blocks) if blocks.len() == 1 && blocks[0].end == 100)
    );
}

#[tokio::test(start_paused = true)]
async fn rot_is_found_before_it_is_needed() {
    let disk = SimDisk::new(6);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    snapshot::prepare(&disk).expect("memory");
    let sizes = Sizes::with_segments_of(4096);
    let (log, _) = LogWriter::open_with(shared.clone(), WHOSE, sizes).expect("fresh");
    for index in 0..20 {
        log.write(entries(0, index, 1, 700)).await.expect("memory");
    }
    let meta = SnapshotMeta { last_log_id: Some(log_id(3)), last_membership: StoredMembership::default() };
    let parcel = Parcel { dump: Bytes::from(vec![7; 300]), cold: Manifest::default() };
    snapshot::save(&disk, 0, &meta, &parcel).expect("memory");
    scrub::round(&log, &shared, 1).await.expect("all is well");
    let names = disk.list(snapshot::DIR).expect("memory");
    let files = [segments::name(2), format!("{}/{}", snapshot::DIR, names[0])];
    for file in &files {
        for byte in [0, 5, 40, 250] {
            disk.flip_bit(file, byte);
            let error = scrub::round(&log, &shared, 1).await.expect_err("a bit was flipped").to_string();
            assert!(error.contains(&**file), "{error}");
            disk.flip_bit(file, byte);
        }
    }
    scrub::round(&log, &shared, 1).await.expect("all is well again");
}

/// A file that was written by this build, and one by the first: both must be readable for ever.
#[test]
fn golden_segments_open() {
    for (name, bytes) in [
        ("segment-v1", &include_bytes!("../../tests/golden/segment-v1.seg")[..]),
        ("segment-v2", &include_bytes!("../../tests/golden/segment-v2.seg")[..]),
    ] {
        let disk = SimDisk::new(1);
        disk.create_dir(segments::DIR).expect("memory");
        let mut file = disk.open(&segments::name(1), true).expect("memory");
        file.write_at(0, bytes).expect("memory");
        drop(file);
        let (_, found) = Files::open(Arc::new(disk), WHOSE, Sizes::with_segments_of(4096)).expect(name);
        assert_eq!(found[&0].vote, Some(Vote::new(3, 1)), "{name}");
        assert_eq!((found[&0].start(), found[&0].end()), (1, 5), "{name}");
        assert_eq!(found[&1].last, Some(log_id(0)), "{name}");
        assert_eq!(found[&0].committed, Some(log_id(2)), "{name}");
    }
}

/// Writes the file that [`golden_segments_open`] reads, when the format changes.
#[test]
#[ignore = "writes a file of the source tree"]
fn write_golden_segment() {
    let disk = SimDisk::new(1);
    let (mut files, _) = open(&disk, 2048).expect("fresh");
    commit(&mut files, &[Record::Vote { shard: 0, vote: pack(&Vote::new(3, 1)) }]).expect("memory");
    commit(&mut files, &[entries(0, 0, 3, 40), entries(1, 0, 1, 20)]).expect("memory");
    files.note_committed([(0, pack(&log_id(2)))].into());
    commit(&mut files, &[Record::Truncate { shard: 0, end: 3 }, entries(0, 3, 2, 10)]).expect("memory");
    commit(&mut files, &[Record::Purge { shard: 0, index: 0, log_id: pack(&log_id(0)) }]).expect("memory");
    files.idle().expect("memory");
    let bytes = disk.read(&segments::name(1)).expect("there");
    let path = format!("{}/tests/golden/segment-v{FORMAT}.seg", env!("CARGO_MANIFEST_DIR"));
    std::fs::write(path, bytes).expect("writable");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = SimDisk::new(1);
    disk.create_dir(segments::DIR).expect("memory");
    let header = SegmentHeader { format: FORMAT + 1, cluster: 7, head: 1, generation: 1, shards: Vec::new() };
    let mut bytes = BytesMut::new();
    let fixed = Header { kind: Kind::Segment, shard: 0, generation: 1, offset: 0, synced: 0 };
    frame::encode(&fixed, &header.encode_to_vec(), &mut bytes);
    disk.open(&segments::name(1), true).expect("memory").write_at(0, &bytes).expect("memory");
    let error = open(&disk, 4096).err().expect("newer").to_string();
    assert!(error.contains("newer Mobula") && error.contains("upgrade this head"), "{error}");
}

/// On a real directory, with the thread that fills.
#[tokio::test]
async fn a_real_log_rotates_into_files_that_were_filled() {
    let dir = std::env::temp_dir().join(format!("mobula-log-{}", std::process::id()));
    let disk = Arc::new(RealDisk::new(&dir).expect("writable"));
    let sizes = Sizes { first: 16 << 10, reserve: 16 << 10, ..Sizes::with_segments_of(256 << 10) };
    let (log, _) = LogWriter::open_with(disk.clone(), WHOSE, sizes).expect("fresh");
    for index in 0..200 {
        log.write(entries(0, index, 1, 3000)).await.expect("writable");
    }
    log.write(Record::Purge { shard: 0, index: 150, log_id: pack(&log_id(150)) }).await.expect("writable");
    log.close().await;
    drop(log);
    let held = segments::list(&*disk).expect("readable").len();
    assert!(held < 10, "{held} segments: they did not grow, or were not recycled");
    let (_, found) = Files::open(disk, WHOSE, sizes).expect("clean");
    assert_eq!((found[&0].start(), found[&0].end()), (151, 200));
    std::fs::remove_dir_all(dir).expect("it is ours");
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
                        let failed = commit(&mut files, &[entries(0, next, count, len)]).is_err();
                        disk.set_fail_sync(false);
                        prop_assert!(failed);
                        next += count;
                        break;
                    }
                    1 if acknowledged > purged + 2 => {
                        let index = acknowledged - 2;
                        commit(&mut files, &[Record::Purge { shard: 0, index, log_id: pack(&log_id(index)) }]).expect("memory");
                        purged = index + 1;
                    }
                    2 => files.idle().expect("memory"),
                    _ => {
                        commit(&mut files, &[entries(0, next, count, len)]).expect("memory");
                        next += count;
                        acknowledged = next;
                    }
                }
            }
            disk.power_cut();
        }
    }
}
