//! Bytes from outside, whatever they are: each function here takes any and must neither panic nor take
//! more memory than they are worth. The fuzz targets (`fuzz/`) and the tests below call the same ones.
//!
//! A checksum would turn away all that a fuzzer makes of a valid file. So each file is tried twice: as it
//! came, and with the checksums made right, as by somebody who wants to be believed.

use crate::backup::archive::{self, Piece};
use crate::cold::{self, Manifest, ManifestFile, file};
use crate::core::ShardState;
use crate::core::run::Run;
use crate::log::hostile as log;
use crate::log::record::unpack;
use crate::raft::network::SnapshotPart;
use crate::raft::types::{Types, Vote};
use crate::snapshot;
use bytes::Bytes;
use mobula_base::sim_disk::SimDisk;
use mobula_proto as proto;
use openraft::raft::{AppendEntriesRequest, VoteRequest, VoteResponse};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Commands of one input that are applied at most.
const COMMANDS_MAX: usize = 64;
/// Memory for hot runs, in bytes: so little that some go cold at once.
const HOT: usize = 2000;

/// The disk of a head that has one file.
pub(crate) fn disk_with(name: &str, bytes: Vec<u8>) -> Arc<SimDisk> {
    let dirs = ["log", snapshot::DIR, cold::DIR].map(str::to_owned);
    let files = BTreeMap::from([(name.to_owned(), bytes)]);
    Arc::new(SimDisk::with_files(1, files, BTreeSet::from(dirs)))
}

/// Makes the checksums of records right that begin with `u32 len | u32 crc | fixed`; what a record's
/// length leaves over, or lacks, is its own.
fn with_right_sums(bytes: &[u8], fixed: usize, sum: impl Fn(&[u8]) -> u32) -> Vec<u8> {
    let (mut bytes, mut at) = (bytes.to_vec(), 0);
    while at + 8 + fixed <= bytes.len() {
        let rest = bytes.len() - at - 8 - fixed;
        let len = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        let len = len.min(rest);
        bytes[at..at + 4].copy_from_slice(&(len as u32).to_le_bytes());
        let end = at + 8 + fixed + len;
        let crc = sum(&bytes[at..end]);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    bytes
}

/// A segment of the log.
pub fn segment(bytes: &[u8]) {
    log::open(bytes.to_vec());
    log::open(log::with_right_sums(bytes));
}

/// A snapshot file, and what it holds.
pub fn snapshot_file(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), with_right_sums(bytes, 0, |record| crc32fast::hash(&record[8..]))] {
        let disk = disk_with(&format!("{}/0-{:020}.snap", snapshot::DIR, 40), bytes);
        snapshot::verify(&*disk, 0).ok();
        if let Ok(Some((_, parcel))) = snapshot::load_newest(&*disk, 0) {
            let mut state = empty(disk);
            state.restore(parcel.dump, &parcel.cold).ok();
        }
    }
}

fn empty(disk: Arc<SimDisk>) -> ShardState {
    let mut state = ShardState::new(0, cold::open_one(disk, 0).expect("memory"));
    state.set_hot_limit(HOT);
    state
}

/// The dump inside a snapshot. What is understood is written again and understood again.
pub fn dump(bytes: &[u8]) {
    let mut state = empty(disk_with("none", Vec::new()));
    if state.restore(Bytes::copy_from_slice(bytes), &Manifest::default()).is_err() {
        return;
    }
    let again = state.snapshot(state.cluster.level().0);
    let mut copy = empty(disk_with("none", Vec::new()));
    if copy.restore(again.into(), &state.manifest()).is_ok() {
        assert_eq!(copy.digest(), state.digest(), "a dump and the dump of what it says");
    }
}

/// A file of cold runs.
pub fn cold_file(bytes: &[u8]) {
    let sum = |record: &[u8]| {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&record[..4]);
        hasher.update(&record[8..]);
        hasher.finalize()
    };
    for bytes in [bytes.to_vec(), with_right_sums(bytes, file::HEADER - 8, sum)] {
        let (len, path) = (bytes.len() as u64, cold::path(0, 1));
        let disk = disk_with(&path, bytes.clone());
        file::first_damaged(&*disk, &path, len).ok();
        let mut places = Vec::new();
        let place = |at, head: file::Head| {
            places.push(at as usize..at as usize + file::HEADER + head.len as usize);
            Ok(())
        };
        file::scan(&*disk, &path, len, place).ok();
        for place in places {
            if let Some((_, payload)) = file::decode(Bytes::copy_from_slice(&bytes[place])) {
                run(&payload);
            }
        }
        let files = vec![ManifestFile { number: 1, len, ..Default::default() }];
        empty(disk).restore(Bytes::new(), &Manifest { files }).ok();
    }
}

/// A run as it lies in files. What is understood is written again and understood again.
pub fn run(bytes: &[u8]) {
    let Ok(run) = Run::decode(Bytes::copy_from_slice(bytes)) else { return };
    let places: Vec<u16> = run.present().iter().collect();
    places.iter().for_each(|place| drop(run.record(*place)));
    let again = Run::decode(run.encode()).expect("what was written is read");
    assert_eq!(again.encode(), run.encode());
    assert_eq!(again.present().iter().collect::<Vec<_>>(), places);
}

/// Commands, each with its length before it, applied to an empty shard one after the other. A replica that
/// starts from a snapshot is in the same state.
pub fn commands(bytes: &[u8]) {
    let mut bytes = Bytes::copy_from_slice(bytes);
    let mut state = empty(disk_with("none", Vec::new()));
    for index in 1..=COMMANDS_MAX as u64 {
        let Ok(command) = proto::Command::decode_length_delimited(&mut bytes) else { break };
        let reply = state.apply(index, &command);
        proto::Reply::decode(&*reply.encode_to_vec()).expect("what was answered is understood");
        if state.broken().is_some() {
            return;
        }
    }
    let mut copy = ShardState::new(0, state.tasks.cold().clone());
    let (dump, files) = (state.snapshot(state.cluster.level().0), state.manifest());
    let before = state.digest();
    if copy.restore(dump.into(), &files).is_ok() {
        assert_eq!(copy.digest(), before, "a replica that starts from a snapshot");
    }
}

/// The file of a backup.
pub fn archive(bytes: &[u8]) {
    let mut resealed = bytes.to_vec();
    let mut at = 0;
    // `len` counts the kind, which the checksum covers and the header does not.
    while let Some(len) = resealed.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().expect("four bytes")) as usize;
        let Some(record) = resealed.get(at + 8..(at + 8).saturating_add(len)) else { break };
        let crc = crc32fast::hash(record);
        resealed[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at += 8 + len;
    }
    for bytes in [bytes, &resealed] {
        let visit = |piece: Piece<'_>| {
            if let Piece::Shard(head) = piece {
                archive::manifest(head)?;
            }
            Ok(())
        };
        archive::read(bytes, "input", visit).ok();
    }
}

/// Messages between heads, each with its length before it.
pub fn between_heads(bytes: &[u8]) {
    let mut bytes = Bytes::copy_from_slice(bytes);
    for _ in 0..COMMANDS_MAX {
        let Ok(message) = proto::RaftMessage::decode_length_delimited(&mut bytes) else { return };
        if let Ok(mut append) = unpack::<AppendEntriesRequest<Types>>(&message.payload) {
            crate::raft::network::give_commands(&mut append, message.commands);
        }
        unpack::<VoteRequest<Types>>(&message.payload).ok();
        unpack::<VoteResponse<Types>>(&message.payload).ok();
        unpack::<Vote>(&message.payload).ok();
        unpack::<SnapshotPart>(&message.payload).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A golden file, or bytes that nobody wrote, with a few changes.
    fn bent(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let golden = std::fs::read(path).expect("it is there");
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
        let cut = prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
        let bent = (changes, cut).prop_map(move |(changes, cut)| {
            let mut bytes = golden.clone();
            changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = byte);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        });
        prop_oneof![9 => bent, 1 => prop::collection::vec(any::<u8>(), 0..400)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn segments(bytes in prop_oneof![bent("segment-v1.seg"), bent("segment-v2.seg")]) {
            segment(&bytes);
        }

        #[test]
        fn snapshots(bytes in bent("snapshot-v2.snap")) {
            snapshot_file(&bytes);
        }

        #[test]
        fn dumps(bytes in prop_oneof![bent("dump-v3"), bent("dump-v4")]) {
            dump(&bytes);
        }

        #[test]
        fn cold_files(bytes in bent("cold-v1.runs")) {
            cold_file(&bytes);
        }

        #[test]
        fn archives(bytes in bent("backup-v1")) {
            archive(&bytes);
        }

        #[test]
        fn messages_between_heads(bytes in bent("wire-v1")) {
            between_heads(&bytes);
        }

        #[test]
        fn commands_that_nobody_sent(bytes in bent_commands()) {
            commands(&bytes);
        }
    }

    /// The commands of the golden files, changed.
    fn bent_commands() -> impl Strategy<Value = Vec<u8>> {
        let golden = crate::golden::encoded_commands();
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
        changes.prop_map(move |changes| {
            let mut bytes = golden.clone();
            changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = byte);
            bytes
        })
    }

    /// Writes the first inputs of the fuzz target of commands, one for each kind.
    #[test]
    #[ignore = "writes files of the source tree"]
    fn write_seeds() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/commands");
        std::fs::create_dir_all(dir).expect("writable");
        for (n, bytes) in crate::golden::small_commands().into_iter().enumerate() {
            std::fs::write(format!("{dir}/{n}"), bytes).expect("writable");
        }
    }

    #[test]
    fn a_segment_that_purges_the_last_number_there_is_is_refused() {
        let mut found = vec![0x29, 0x41, 0, 0, 0xb9, 0xdc, 0xa1, 0x29, 5, 0, 8, 0, 0, 0xff, 0, 0];
        found.extend([0xff; 7]);
        found.extend([0; 7]);
        found.extend([0x71, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0x22]);
        found.extend([0xff; 9]);
        found.extend([1, 0xff, 0xe0]);
        found.extend([0; 11]);
        found.push(0x20);
        segment(&found);
    }

    #[test]
    fn an_archive_that_promises_more_than_there_can_be_is_refused() {
        let file = ManifestFile { number: 1, len: u64::MAX, ..Default::default() };
        let cold = Manifest { files: vec![file.clone(), file] };
        let mut writer = archive::Writer::new(
            Vec::new(),
            &archive::ArchiveHead { format: archive::FORMAT, shards: 1, ..Default::default() },
        )
        .expect("a Vec grows");
        let head =
            proto::DumpHead { dump_bytes: u64::MAX, cold: cold.encode_to_vec().into(), ..Default::default() };
        writer.shard(&head).expect("a Vec grows");
        archive(&writer.finish().expect("a Vec grows"));
    }
}
