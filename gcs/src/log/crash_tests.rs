//! Power cuts at every moment of a script, with every legal reordering of what was not synced.

use super::files::Files;
use super::index::{Found, ShardIndex};
use super::item::Record;
use super::reader::Reader;
use super::record::pack;
use super::sizes::Sizes;
use super::tests::{WHOSE, entries_tagged, log_id};
use crate::cold::Manifest;
use crate::identity::Identity;
use crate::raft::types::{SnapshotMeta, StoredMembership, Vote};
use crate::snapshot::{self, Parcel};
use bytes::Bytes;
use mobula_base::disk::Disk;
use mobula_base::random::Random;
use mobula_base::recorded_disk::RecordedDisk;
use openraft::EntryPayload;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a shard is: its vote, the first index above the purge point, and a tag for each entry.
type Shard = (Option<Vote>, u64, Vec<u8>);
type World = BTreeMap<u32, Shard>;

const SMALL: Sizes =
    Sizes { first: 1024, segment: 1024, reserve: 1024, spares: 2, step: 512, log: 1 << 20, segments: 64 };

/// What a disk writes at once, in bytes; small, as everything here is.
const BLOCK: usize = 128;

/// A run of the log that knows what it may find after a crash.
struct Script {
    disk: RecordedDisk,
    files: Files,
    /// After each record, from the empty world on.
    worlds: Vec<World>,
    /// From the first moment on, this many records are durable; up to the second, written.
    steps: Vec<(usize, usize, usize)>,
    durable: usize,
}

impl Script {
    fn new() -> Self {
        let disk = RecordedDisk::default();
        snapshot::prepare(&disk).expect("memory");
        let (files, _) = Files::open(Arc::new(disk.clone()), WHOSE, SMALL).expect("fresh");
        let steps = vec![(disk.now(), 0, 0)];
        Script { disk, files, worlds: vec![World::new()], steps, durable: 0 }
    }

    fn commit(&mut self, records: &[Record], tags: &[u8]) {
        let mut tags = tags.iter();
        for record in records {
            let mut world = self.worlds.last().expect("starts with one").clone();
            match record {
                Record::Entries { shard, end, .. } => {
                    let shard = world.entry(*shard).or_default();
                    let (tag, have) = (*tags.next().expect("a tag for each"), shard.1 + shard.2.len() as u64);
                    shard.2.extend((have..*end).map(|_| tag));
                }
                Record::Vote { shard, vote } => {
                    world.entry(*shard).or_default().0 = super::record::load_vote(vote).expect("packed here");
                }
                Record::Truncate { shard, end } => {
                    let shard = world.entry(*shard).or_default();
                    shard.2.truncate((*end - shard.1) as usize);
                }
                Record::Purge { shard, index, .. } => {
                    let shard = world.entry(*shard).or_default();
                    shard.2.drain(..(index + 1 - shard.1) as usize);
                    shard.1 = index + 1;
                }
            }
            self.worlds.push(world);
        }
        let before = self.disk.now();
        self.steps.push((before, self.durable, self.durable + records.len()));
        self.files.commit(records.iter(), &mut Vec::new()).expect("memory");
        self.durable += records.len();
        self.steps.push((self.disk.now(), self.durable, self.durable));
    }

    fn purge(&mut self, shard: u32, index: u64) {
        let meta =
            SnapshotMeta { last_log_id: Some(log_id(index)), last_membership: StoredMembership::default() };
        let parcel = Parcel { dump: Bytes::from_static(b"state"), cold: Manifest::default() };
        snapshot::save(&self.disk, shard, &meta, &parcel).expect("memory");
        self.commit(&[Record::Purge { shard, index, log_id: pack(&log_id(index)) }], &[]);
    }

    /// What may be found after a power cut at `moment`.
    fn legal(&self, moment: usize) -> (usize, usize) {
        let last = self.steps.iter().rfind(|(at, ..)| *at <= moment).expect("asked from the first on");
        (last.1, last.2)
    }

    fn check(&self, disk: Arc<dyn Disk>, moment: usize) -> World {
        let opened = Files::open(disk.clone(), WHOSE, SMALL);
        let found = opened.unwrap_or_else(|error| panic!("cut at {moment}: {error}")).1;
        let world: World = found.iter().map(|(shard, found)| (*shard, look(&*disk, *shard, found))).collect();
        let (from, to) = self.legal(moment);
        assert!(
            self.worlds[from..=to].contains(&world),
            "cut at {moment}: found {world:?}, want one of {:?}",
            &self.worlds[from..=to]
        );
        for (shard, (_, start, _)) in &world {
            let saved = snapshot::load_newest(&*disk, *shard).expect("a power cut is no damage");
            let covered = saved.map_or(0, |(meta, _)| meta.last_log_id.map_or(0, |id| id.index + 1));
            assert!(covered >= *start, "purged to {start}, but the newest snapshot ends at {covered}");
        }
        world
    }
}

fn look(disk: &dyn Disk, shard: u32, found: &ShardIndex) -> Shard {
    let reader = Reader::new(disk);
    let mut tags = Vec::new();
    // From the disk, not from the cache: the places must be right.
    for block in found.all_blocks() {
        for entry in reader.read(block, shard).expect("readable") {
            let EntryPayload::Normal(proposal) = &entry.payload else { panic!("only commands were written") };
            tags.push(proposal.0[0]);
        }
    }
    if let Found::Here(entries) = found.find(found.start(), u64::MAX, usize::MAX) {
        assert_eq!(entries.len(), tags.len(), "memory and disk agree");
    }
    assert_eq!(found.end() - found.start(), tags.len() as u64);
    (found.vote, found.start(), tags)
}

fn vote(shard: u32, term: u64) -> Record {
    Record::Vote { shard, vote: pack(&Vote::new(term, 1)) }
}

/// Votes, appends of two shards, a truncation, rotations, purges and recycling.
fn small() -> Script {
    let mut script = Script::new();
    script.commit(&[vote(0, 1), vote(1, 1)], &[]);
    script.commit(&[entries_tagged(0, 0, 2, 60, 1), entries_tagged(1, 0, 1, 200, 2)], &[1, 2]);
    script.files.idle().expect("memory");
    script.commit(&[entries_tagged(0, 2, 2, 150, 3)], &[3]);
    script.commit(&[Record::Truncate { shard: 0, end: 3 }, entries_tagged(0, 3, 1, 90, 4), vote(1, 2)], &[4]);
    // Too large for what is left: part of a batch goes to the next segment.
    script.commit(&[entries_tagged(1, 1, 1, 300, 5), entries_tagged(0, 4, 2, 300, 6)], &[5, 6]);
    script.purge(0, 3);
    script.purge(1, 1);
    script.commit(&[entries_tagged(1, 2, 2, 300, 7)], &[7]);
    script.commit(&[entries_tagged(0, 6, 1, 700, 8)], &[8]);
    script.purge(0, 6);
    script.commit(&[entries_tagged(0, 7, 1, 700, 9)], &[9]);
    script.files.idle().expect("memory");
    script
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_durable() {
    let script = small();
    let mut random = Random::new(1);
    let mut states = 0;
    for moment in script.steps[0].0..=script.disk.now() {
        for image in script.disk.crashes(moment, BLOCK, 128, &mut random) {
            let disk = image.disk(1);
            let world = script.check(Arc::new(disk.clone()), moment);
            // Recovery has settled it: nothing that a second cut takes away was there.
            disk.power_cut();
            assert_eq!(script.check(Arc::new(disk), moment), world);
            states += 1;
        }
    }
    assert!(states > 500, "only {states} states were tried");
}

#[test]
fn a_power_cut_during_recovery_is_recovered_from() {
    for seed in 0..6 {
        let script = small();
        let mut random = Random::new(seed);
        let first = script.steps[0].0;
        let moment = first + random.below((script.disk.now() - first) as u64) as usize;
        for image in script.disk.crashes(moment, BLOCK, 4, &mut random) {
            let again = RecordedDisk::new(image);
            script.check(Arc::new(again.clone()), moment);
            for cut in 0..=again.now() {
                for image in again.crashes(cut, BLOCK, 4, &mut random) {
                    script.check(Arc::new(image.disk(seed)), moment);
                }
            }
        }
    }
}

#[test]
fn random_scripts_survive_power_cuts() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let mut script = Script::new();
        for step in 0..25u8 {
            let shard = random.below(3) as u32;
            let (_, start, tags) =
                script.worlds.last().and_then(|w| w.get(&shard)).cloned().unwrap_or_default();
            let end = start + tags.len() as u64;
            match random.below(8) {
                0 => script.commit(&[vote(shard, u64::from(step) + 1)], &[]),
                1 if !tags.is_empty() => {
                    let cut = start + random.below(tags.len() as u64);
                    script.commit(&[Record::Truncate { shard, end: cut }], &[]);
                }
                2 if tags.len() > 1 => script.purge(shard, start + random.below(tags.len() as u64)),
                3 => script.files.idle().expect("memory"),
                _ => {
                    let (count, len) = (1 + random.below(3), random.below(400) as usize + 1);
                    script.commit(&[entries_tagged(shard, end, count, len, step)], &[step]);
                }
            }
        }
        for _ in 0..30 {
            let first = script.steps[0].0;
            let moment = first + random.below((script.disk.now() - first) as u64 + 1) as usize;
            for image in script.disk.crashes(moment, BLOCK, 6, &mut random) {
                script.check(Arc::new(image.disk(seed)), moment);
            }
        }
    }
}

#[test]
fn an_identity_is_there_whole_or_not_at_all() {
    let disk = RecordedDisk::default();
    let identity = Identity {
        format: 1,
        cluster: 7,
        head: 1,
        shards: 4,
        founders: vec!["one".into(), "two".into()],
        ..Default::default()
    };
    identity.save(&disk).expect("memory");
    let saved = disk.now();
    let mut random = Random::new(1);
    for moment in 0..=saved {
        for image in disk.crashes(moment, 8, 512, &mut random) {
            let found = Identity::load(&image.disk(1)).expect("a power cut is no damage");
            assert!(found.is_none() || found.as_ref() == Some(&identity));
            assert!(moment < saved || found.is_some(), "it was durable");
        }
    }
}
