use super::{Seen, Step, next_step};
use crate::cold;
use crate::core::slot_table::Side;
use crate::core::{ShardState, run_bytes};
use crate::level::MOVES_SLOTS;
use mobula_base::random::Random;
use mobula_base::sim_disk::SimDisk;
use mobula_base::{ShardId, SlotMap};
use mobula_proto as proto;
use proto::slot_command::Op;
use std::sync::Arc;

const SHARDS: u32 = 3;
/// Keys that are there from the start.
const KEYS: u32 = 60;
/// Steps in which a random walk must come to its end.
const LONGEST: usize = 4000;

/// What any replica may still see: each state that a shard has been in.
struct World {
    shards: Vec<Vec<ShardState>>,
    /// Commands that were proposed: the network may bring each again.
    sent: Vec<(usize, proto::Command)>,
}

impl World {
    fn new() -> Self {
        let shard = |number: u32| {
            let disk = Arc::new(SimDisk::new(u64::from(number)));
            vec![ShardState::new(number, cold::open_one(disk, number).expect("memory"))]
        };
        let mut world = World { shards: (0..SHARDS).map(shard).collect(), sent: Vec::new() };
        let init = proto::InitCluster { cluster: 1, shards: SHARDS, slots: 1024 };
        world.apply(0, proto::Command::from(proto::command::Op::Init(init)));
        let raise = proto::RaiseLevel { level: MOVES_SLOTS, ..Default::default() };
        world.apply(0, proto::Command::from(proto::command::Op::Raise(raise)));
        let map = SlotMap::even(SHARDS);
        for shard in 0..SHARDS as usize {
            world.call(shard, 0, 0, proto::call::Op::Open(proto::OpenSession {}));
        }
        let mut seqs = [0; SHARDS as usize];
        for n in 0..KEYS {
            let shard = map.of_key(&key(n)).0 as usize;
            seqs[shard] += 1;
            world.put(shard, seqs[shard], n);
        }
        world
    }

    fn now(&self, shard: usize) -> &ShardState {
        self.shards[shard].last().expect("never empty")
    }

    fn apply(&mut self, shard: usize, command: proto::Command) {
        let mut next = self.now(shard).clone();
        next.apply(self.shards[shard].len() as u64, &command);
        assert_eq!(next.broken(), None);
        self.shards[shard].push(next);
        self.sent.push((shard, command));
    }

    fn call(&mut self, shard: usize, session: u64, seq: u64, op: proto::call::Op) {
        let call = proto::Call { session, seq, op: Some(op) };
        self.apply(shard, proto::Command::from(proto::command::Op::Call(call)));
    }

    fn put(&mut self, shard: usize, seq: u64, n: u32) {
        let put = proto::KvPut { key: key(n).into(), value: key(n).into(), ..Default::default() };
        self.call(shard, 1, seq, proto::call::Op::KvPut(put));
    }

    fn slots(&mut self, shard: usize, op: Op) {
        let op = proto::command::Op::Slots(proto::SlotCommand { op: Some(op) });
        self.apply(shard, proto::Command::from(op));
    }

    /// Each slot has one owner at most at any time, and exactly one where the keys are looked for.
    fn check(&self) {
        for n in 0..KEYS {
            let slot = mobula_base::slots::slot_of_key(&key(n));
            let first = SlotMap::even(SHARDS).of_slot(slot).0 as usize;
            // Before a move touches it, a shard owns what the first map gives it.
            let owns = |at: &usize| match self.now(*at).slots.epoch() {
                0 => *at == first,
                _ => self.now(*at).slots.moved(slot).is_none(),
            };
            let owners: Vec<usize> = (0..SHARDS as usize).filter(owns).collect();
            assert!(owners.len() <= 1, "slot {slot} is owned by {owners:?}");
            if let [owner] = owners[..] {
                assert!(self.now(owner).kv.get(&key(n).into()).is_some(), "key {n} is gone");
            }
        }
    }
}

fn key(n: u32) -> Vec<u8> {
    format!("key {n}").into_bytes()
}

/// One head that leads `leads` sees the other shards as they were at some time, and takes the step
/// that is due there, if any.
fn one_head(world: &mut World, random: &mut Random, leads: usize) {
    let seen_at: Vec<ShardState> = (0..SHARDS as usize)
        .map(|shard| match shard == leads {
            true => world.now(shard).clone(),
            false => {
                let all = &world.shards[shard];
                all[all.len() - 1 - random.below(all.len().min(6) as u64) as usize].clone()
            }
        })
        .collect();
    let table = &seen_at[0].cluster.slots_table;
    let Some(plan) = table.plan().cloned() else { return };
    let (from, to) = (plan.from as usize, plan.to as usize);
    let side = |shard: usize| Side::of(&seen_at[shard].slots, plan.epoch);
    let step = next_step(&Seen { map: table.epoch(), plan: plan.epoch, from: side(from), to: side(to) });
    let owned = |shard: u32| proto::slot_rows(&table.map(SHARDS).slots_of(ShardId(shard)));
    let (epoch, slots) = (plan.epoch, plan.slots.clone());
    let (shard, op) = match step {
        Step::Rest => return,
        Step::Await => {
            (to, Op::Await(proto::AwaitSlots { epoch, from: plan.from, slots, owned: owned(plan.to) }))
        }
        Step::Release => {
            (from, Op::Release(proto::ReleaseSlots { epoch, to: plan.to, slots, owned: owned(plan.from) }))
        }
        Step::Copy => {
            let begin = seen_at[to].slots.coming().map(|coming| coming.cursor.clone()).expect("it is due");
            let piece = seen_at[from].content(epoch, &begin, 100).expect("readable");
            let Some(piece) = piece else { return };
            (to, Op::Content(piece))
        }
        Step::Switch => (0, Op::Switch(proto::SwitchSlots { epoch })),
        Step::Forget => {
            let (runs, next) = seen_at[from].left_behind(epoch, None).expect("readable");
            let runs = runs.into_iter().map(|id| run_bytes(id).into()).collect();
            (from, Op::Forget(proto::ForgetSlots { epoch, runs, last: next.is_none() }))
        }
        Step::End => (0, Op::End(proto::EndSlotPlan { epoch })),
    };
    if shard == leads {
        world.slots(shard, op);
    }
}

/// Leaders that see what others did only later, that come and go, and whose proposals arrive again:
/// every move ends, nothing is owned twice, and no key is lost.
#[test]
fn moves_end_whoever_leads_and_however_late_they_see() {
    for seed in 0..40 {
        let mut world = World::new();
        let mut random = Random::new(seed).fork("moves");
        for (request, (from, to)) in (1u64..).zip([(0, 2), (2, 1), (1, 0), (0, 1)]) {
            let count = 1 + random.below(300) as u32;
            let start = proto::StartSlotPlan { request, from, to, count, ..Default::default() };
            world.slots(0, Op::Start(start));
            let mut steps = 0;
            while world.now(0).cluster.slots_table.plan().is_some() {
                let leads = random.below(u64::from(SHARDS)) as usize;
                one_head(&mut world, &mut random, leads);
                // Slot commands only: of a client's request the shard keeps no more than the last answer.
                let again = &world.sent[random.below(world.sent.len() as u64) as usize];
                if let (shard, command) = again.clone()
                    && matches!(command.op, Some(proto::command::Op::Slots(_)))
                    && random.below(4) == 0
                {
                    world.apply(shard, command);
                }
                world.check();
                steps += 1;
                assert!(steps < LONGEST, "seed {seed}: the move does not end");
            }
            assert_eq!(world.now(0).cluster.slots_table.epoch(), request + 1);
        }
        let map = world.now(0).cluster.slots_table.map(SHARDS);
        for n in 0..KEYS {
            let owner = map.of_key(&key(n)).0 as usize;
            let holders = (0..SHARDS as usize).filter(|at| world.now(*at).kv.get(&key(n).into()).is_some());
            assert_eq!(holders.collect::<Vec<_>>(), [owner], "seed {seed}: key {n}");
        }
    }
}
