//! The log against a model: whatever is appended, cut off, purged and started again, in whatever order,
//! every shard has the entries, the vote and the bounds that it should, and they can be read.

use super::files::Files;
use super::index::{Found, Place, ShardIndex};
use super::item::Record;
use super::reader::Reader;
use super::record::{load_entry, pack};
use super::sizes::Sizes;
use super::tests::{WHOSE, entries_tagged, log_id};
use crate::raft::types::{Entry, Vote};
use mobula_base::sim_disk::SimDisk;
use openraft::EntryPayload;
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a segment: so few that most steps begin a new one.
const SEGMENT_BYTES: u64 = 1500;
/// Bytes of entries that a shard keeps in memory: most are read from the files.
const CACHE_BYTES: usize = 1200;
/// Shards that share the log.
const SHARDS: u32 = 2;

#[derive(Clone, Debug)]
enum Step {
    Append {
        shard: u32,
        count: u64,
        len: usize,
    },
    /// Entries after so many of those that are there become void, as when another leader has others.
    Cut {
        shard: u32,
        part: u8,
    },
    /// Entries up to this part of those that are there are in a snapshot.
    Purge {
        shard: u32,
        part: u8,
    },
    /// A snapshot took the log beyond its end.
    Leap {
        shard: u32,
        by: u64,
    },
    Vote {
        shard: u32,
        term: u64,
    },
    Idle,
    Restart,
    PowerCut,
}

/// One shard's log as it should be.
#[derive(Clone, Debug, Default)]
struct Shard {
    /// The first index that is not purged.
    start: u64,
    /// The first byte of each entry from there on.
    tags: Vec<u8>,
    term: u64,
}

impl Shard {
    fn end(&self) -> u64 {
        self.start + self.tags.len() as u64
    }

    /// A part of its entries.
    fn at(&self, part: u8) -> usize {
        usize::from(part) * (self.tags.len() + 1) / 256
    }
}

#[derive(Clone, Debug, Default)]
struct Model {
    shards: BTreeMap<u32, Shard>,
    steps: u8,
}

impl Model {
    fn shard(&mut self, shard: u32) -> &mut Shard {
        self.shards.get_mut(&shard).expect("one of them")
    }
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let shards = (0..SHARDS).map(|shard| (shard, Shard::default())).collect();
        Just(Model { shards, steps: 0 }).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let shard = 0..SHARDS;
        prop_oneof![
            6 => (shard.clone(), 1u64..5, 1usize..300)
                .prop_map(|(shard, count, len)| Step::Append { shard, count, len }),
            2 => (shard.clone(), any::<u8>()).prop_map(|(shard, part)| Step::Cut { shard, part }),
            2 => (shard.clone(), any::<u8>()).prop_map(|(shard, part)| Step::Purge { shard, part }),
            1 => (shard.clone(), 1u64..9).prop_map(|(shard, by)| Step::Leap { shard, by }),
            1 => (shard, 1u64..9).prop_map(|(shard, term)| Step::Vote { shard, term }),
            1 => Just(Step::Idle),
            1 => Just(Step::Restart),
            2 => Just(Step::PowerCut),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.steps = model.steps.wrapping_add(1);
        let tag = model.steps;
        match step {
            Step::Append { shard: s, count, .. } => {
                let shard = model.shard(*s);
                shard.tags.extend((0..*count).map(|_| tag));
            }
            Step::Cut { shard: s, part } => {
                let shard = model.shard(*s);
                shard.tags.truncate(shard.at(*part));
            }
            Step::Purge { shard: s, part } => {
                let shard = model.shard(*s);
                let count = shard.at(*part);
                shard.tags.drain(..count);
                shard.start += count as u64;
            }
            Step::Leap { shard: s, by } => {
                let shard = model.shard(*s);
                shard.start = shard.end() + by;
                shard.tags.clear();
            }
            Step::Vote { shard: s, term } => model.shard(*s).term = *term,
            Step::Idle | Step::Restart | Step::PowerCut => {}
        }
        model
    }
}

struct Real {
    disk: SimDisk,
    files: Files,
    shards: BTreeMap<u32, ShardIndex>,
}

fn open(disk: &SimDisk) -> (Files, BTreeMap<u32, ShardIndex>) {
    let sizes = Sizes::with_segments_of(SEGMENT_BYTES);
    Files::open(Arc::new(disk.clone()), WHOSE, sizes).expect("nothing is damaged")
}

impl Real {
    fn write(&mut self, record: &Record) -> Place {
        let mut places = Vec::new();
        self.files.commit(std::iter::once(record), &mut places).expect("memory");
        places[0]
    }

    fn index(&mut self, shard: u32) -> &mut ShardIndex {
        self.shards.entry(shard).or_insert_with(|| ShardIndex::with_cache(CACHE_BYTES))
    }

    fn append(&mut self, shard: u32, count: u64, len: usize, tag: u8) {
        let first = self.index(shard).end();
        let record = entries_tagged(shard, first, count, len, tag);
        let Record::Entries { end, batch, .. } = &record else { panic!("made just now") };
        for stored in &batch.entries {
            self.index(shard).push(load_entry(stored).expect("made just now"));
        }
        let cuts = self.index(shard).cuts();
        let place = self.write(&record);
        self.index(shard).place(first, *end, place, cuts);
    }

    fn cut(&mut self, shard: u32, end: u64) {
        self.index(shard).truncate(end.checked_sub(1).map(log_id));
        self.write(&Record::Truncate { shard, end });
        self.index(shard).truncate_blocks(end);
    }

    fn purge(&mut self, shard: u32, index: u64) {
        self.index(shard).purge(log_id(index));
        self.write(&Record::Purge { shard, index, log_id: pack(&log_id(index)) });
    }

    /// All entries of a shard, wherever they are.
    fn read(&self, shard: u32, index: &ShardIndex) -> Vec<Entry> {
        let reader = Reader::new(&self.disk);
        let (mut entries, mut next) = (Vec::new(), index.start());
        while next < index.end() {
            let found: Vec<Entry> = match index.find(next, index.end(), 500) {
                Found::Here(entries) => entries,
                Found::On(blocks) => {
                    blocks.iter().flat_map(|block| reader.read(block, shard).expect("readable")).collect()
                }
                Found::Nowhere => Vec::new(),
            };
            assert!(!found.is_empty(), "entry {next} of shard {shard} is nowhere");
            next += found.len() as u64;
            entries.extend(found);
        }
        entries
    }
}

impl StateMachineTest for Real {
    type SystemUnderTest = Real;
    type Reference = Model;

    fn init_test(_: &Model) -> Real {
        let disk = SimDisk::new(1);
        let (files, shards) = open(&disk);
        Real { disk, files, shards }
    }

    fn apply(mut real: Real, model: &Model, step: Step) -> Real {
        // Where the model is now is where the log should come to.
        let end = |shard: &u32| model.shards[shard].end();
        let start = |shard: &u32| model.shards[shard].start;
        match step {
            Step::Append { shard, count, len } => real.append(shard, count, len, model.steps),
            Step::Cut { shard, .. } => real.cut(shard, end(&shard)),
            Step::Purge { shard, .. } | Step::Leap { shard, .. } => {
                if let Some(last) = start(&shard).checked_sub(1) {
                    real.purge(shard, last);
                }
            }
            Step::Vote { shard, term } => {
                let vote = Vote::new(term, 1);
                real.index(shard).vote = Some(vote);
                real.write(&Record::Vote { shard, vote: pack(&vote) });
            }
            Step::Idle => real.files.idle().expect("memory"),
            Step::Restart | Step::PowerCut => {
                if matches!(step, Step::PowerCut) {
                    real.disk.power_cut();
                }
                (real.files, real.shards) = open(&real.disk);
            }
        }
        real
    }

    fn check_invariants(real: &Real, model: &Model) {
        for (shard, expected) in &model.shards {
            let fresh = ShardIndex::default();
            let index = real.shards.get(shard).unwrap_or(&fresh);
            assert_eq!((index.start(), index.end()), (expected.start, expected.end()), "shard {shard}");
            let vote = (expected.term > 0).then(|| Vote::new(expected.term, 1));
            assert_eq!(index.vote, vote, "shard {shard}");
            let entries = real.read(*shard, index);
            let found = entries.iter().map(|entry| match &entry.payload {
                EntryPayload::Normal(proposal) => (entry.log_id.index, proposal.0[0]),
                other => panic!("{other:?}"),
            });
            let wanted = (expected.start..).zip(expected.tags.iter().copied());
            assert!(found.eq(wanted.clone()), "shard {shard}: {entries:?}, not {:?}", expected.tags);
        }
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_log_does_what_the_model_does(sequential 1..40 => Real);
}
