//! Placement groups through the log, as every replica applies it.

use super::ShardState;
use super::groups::{MAX_AMOUNT, MAX_BUNDLES, MAX_BUNDLES_OF_ONE, MAX_GROUPS, Stage};
use crate::cold;
use mobula_base::sim_disk::SimDisk;
use mobula_proto as proto;
use proto::call::Op as Call;
use proto::call_reply::Reply as Called;
use proto::command::Op;
use proto::group_command::Op as Step;
use proto::{Bundle, GroupCreate, GroupStrategy};
use std::sync::Arc;

/// Shard 0 of a cluster with two nodes of four CPUs, and two jobs: the first one's driver is at node 1.
struct Shard {
    state: ShardState,
    index: u64,
    seq: u64,
}

impl Shard {
    fn at_level(level: u32) -> Self {
        let cold = cold::open_one(Arc::new(SimDisk::new(1)), 0).expect("memory");
        let mut shard = Shard { state: ShardState::new(0, cold), index: 0, seq: 0 };
        shard.apply(Op::Init(proto::InitCluster { cluster: 7, shards: 1, slots: 1024 }));
        shard.apply(Op::Raise(proto::RaiseLevel { level, program: "x".into(), heads: 0 }));
        shard.apply(Op::Call(proto::Call {
            op: Some(Call::Open(proto::OpenSession {})),
            ..Default::default()
        }));
        for address in ["n1:1", "n2:1"] {
            let join = proto::NodeJoin { address: address.into(), cpu_milli: 4000, ..Default::default() };
            shard.call(Call::NodeJoin(join));
        }
        for (job, incarnation) in [(1, 1), (2, 2)] {
            shard.call(Call::JobStart(proto::JobStart { job, incarnation, ..Default::default() }));
        }
        shard
    }

    fn new() -> Self {
        Shard::at_level(4)
    }

    fn apply(&mut self, op: Op) -> Option<proto::reply::Reply> {
        self.index += 1;
        self.state.apply(self.index, &proto::Command::from(op)).reply
    }

    fn call(&mut self, op: Call) -> Called {
        self.seq += 1;
        let call = proto::Call { session: 1, seq: self.seq, op: Some(op) };
        match self.apply(Op::Call(call)) {
            Some(proto::reply::Reply::Call(reply)) => reply.reply.expect("answered"),
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, op: Call) -> String {
        match self.call(op) {
            Called::Failure(failure) => failure.message,
            other => panic!("{other:?}"),
        }
    }

    /// Takes a step; whether it has changed the table.
    fn step(&mut self, step: Step) -> bool {
        let before = self.state.cluster.groups.clone();
        self.apply(Op::Groups(proto::GroupCommand { op: Some(step) }));
        let changed = self.state.cluster.groups != before;
        assert_eq!(changed, self.state.cluster.version == self.index, "a change is seen by whoever watches");
        changed
    }

    fn stage(&self, group: u64) -> Stage {
        self.state.cluster.groups.all()[&group].stage()
    }
}

fn create(group: u64, strategy: GroupStrategy, cpus: &[u32]) -> GroupCreate {
    let bundle = |cpu_milli: &u32| Bundle { cpu_milli: *cpu_milli, ..Default::default() };
    let bundles = cpus.iter().map(bundle).collect();
    GroupCreate { group, job: 1, strategy: strategy as i32, bundles, ..Default::default() }
}

fn assign(group: u64, after: u64, places: &[(u32, u64)]) -> Step {
    let places = places.iter().map(|(bundle, node)| proto::BundlePlace { bundle: *bundle, node: *node });
    Step::Assign(proto::AssignGroup { group, after, places: places.collect() })
}

fn commit(group: u64, attempt: u64) -> Step {
    Step::Commit(proto::CommitGroup { group, attempt })
}

fn give_up(group: u64, attempt: u64) -> Step {
    Step::GiveUp(proto::GiveUpGroup { group, attempt })
}

use GroupStrategy::{GroupPack, GroupSpread, GroupStrictPack, GroupStrictSpread};

#[test]
fn what_cannot_be_meant_is_refused_with_a_reason() {
    let mut shard = Shard::new();
    let named = |name: &str, milli| {
        let resources = vec![proto::NamedResource { name: name.into(), milli }];
        let bundles = vec![Bundle { cpu_milli: 1000, resources }];
        GroupCreate { bundles, ..create(1, GroupPack, &[]) }
    };
    let many = vec![1; MAX_BUNDLES_OF_ONE + 1];
    let cases: Vec<(GroupCreate, &str)> = vec![
        (create(1, GroupPack, &[]), "at least one bundle"),
        (create(1, GroupPack, &many), "at most 256 bundles, not 257"),
        (GroupCreate { strategy: 99, ..create(1, GroupPack, &[1]) }, "none that is known"),
        (create(1, GroupPack, &[1000, 0]), "bundle 1: it asks for nothing"),
        (named("tape", MAX_AMOUNT + 1), "more than any node"),
        (named("tape", u64::MAX), "more than any node"),
        (named("", 1), "between 1 and 200 bytes"),
        (named("gpu", 1500), "whole GPUs"),
        (GroupCreate { job: 77, ..create(1, GroupPack, &[1]) }, "not known"),
        (GroupCreate { name: "x".repeat(201), ..create(1, GroupPack, &[1]) }, "at most 200 bytes"),
    ];
    for (wanted, said) in cases {
        let why = shard.refused(Call::GroupCreate(wanted));
        assert!(why.contains(said), "{why}");
    }
    assert!(shard.state.cluster.groups.all().is_empty());
    shard.call(Call::JobEnd(proto::JobEnd { job: 1, succeeded: true }));
    let why = shard.refused(Call::GroupCreate(create(1, GroupPack, &[1])));
    assert!(why.contains("has ended"), "{why}");
}

#[test]
fn there_are_never_too_many() {
    let mut shard = Shard::new();
    for group in 0..MAX_GROUPS as u64 {
        shard.call(Call::GroupCreate(create(group, GroupPack, &[1000])));
    }
    let why = shard.refused(Call::GroupCreate(create(u64::MAX, GroupPack, &[1000])));
    assert!(why.contains("1000 placement groups already"), "{why}");
    let mut shard = Shard::new();
    let whole = MAX_BUNDLES / MAX_BUNDLES_OF_ONE;
    for group in 0..whole as u64 {
        shard.call(Call::GroupCreate(create(group, GroupPack, &[1; MAX_BUNDLES_OF_ONE])));
    }
    let why = shard.refused(Call::GroupCreate(create(u64::MAX, GroupPack, &[1; MAX_BUNDLES_OF_ONE])));
    assert!(why.contains("more than 10000"), "{why}");
}

#[test]
fn a_group_is_made_once_and_only_its_job_removes_it() {
    let mut shard = Shard::new();
    let wanted = create(5, GroupPack, &[1000]);
    let Called::Revision(since) = shard.call(Call::GroupCreate(wanted.clone())) else { panic!("refused") };
    assert_eq!(shard.call(Call::GroupCreate(wanted)), Called::Revision(since), "the same");
    let why = shard.refused(Call::GroupCreate(create(5, GroupPack, &[2000])));
    assert!(why.contains("made before"), "{why}");
    let why = shard.refused(Call::GroupRemove(proto::GroupRemove { group: 5, job: 2 }));
    assert!(why.contains("only its own job"), "{why}");
    for _ in 0..2 {
        let gone = shard.call(Call::GroupRemove(proto::GroupRemove { group: 5, job: 1 }));
        assert!(matches!(gone, Called::Revision(_)), "twice is as good as once");
    }
    // One of that name that is made later is another.
    let again = shard.call(Call::GroupCreate(create(5, GroupPack, &[2000])));
    assert!(matches!(again, Called::Revision(later) if later > since));
}

#[test]
fn an_attempt_is_assigned_and_committed_by_its_number() {
    let mut shard = Shard::new();
    shard.call(Call::GroupCreate(create(5, GroupSpread, &[1000, 1000])));
    assert!(!shard.step(commit(5, 0)) && !shard.step(commit(5, 1)), "nothing is assigned");
    assert!(!shard.step(assign(5, 1, &[(0, 1), (1, 2)])), "there was no attempt 1");
    assert!(!shard.step(assign(5, 0, &[(0, 1)])), "not all of it");
    assert!(!shard.step(assign(5, 0, &[(0, 1), (0, 2)])), "one twice");
    assert!(!shard.step(assign(5, 0, &[(0, 1), (7, 2)])), "no such bundle");
    assert!(!shard.step(assign(5, 0, &[(0, 1), (1, 9)])), "no such node");
    assert!(shard.step(assign(5, 0, &[(0, 1), (1, 2)])));
    assert!(!shard.step(assign(5, 0, &[(0, 2), (1, 1)])), "another leader came later");
    assert_eq!(shard.stage(5), Stage::Reserves(1));
    assert!(shard.step(give_up(5, 1)) && !shard.step(give_up(5, 1)) && !shard.step(commit(5, 1)));
    assert!(shard.step(assign(5, 1, &[(0, 2), (1, 1)])));
    assert!(!shard.step(commit(5, 1)), "of an attempt that is over");
    assert!(shard.step(commit(5, 2)) && !shard.step(commit(5, 2)) && !shard.step(give_up(5, 2)));
    assert_eq!(shard.stage(5), Stage::Placed);
}

#[test]
fn no_node_has_more_assigned_than_it_offers() {
    let mut shard = Shard::new();
    shard.call(Call::GroupCreate(create(5, GroupPack, &[3000])));
    shard.call(Call::GroupCreate(create(6, GroupPack, &[1000, 1000])));
    assert!(shard.step(assign(5, 0, &[(0, 1)])));
    assert!(!shard.step(assign(6, 0, &[(0, 1), (1, 1)])), "together they ask for five");
    assert!(shard.step(assign(6, 0, &[(0, 1), (1, 2)])));
    assert_eq!(shard.state.cluster.groups.assigned(1).cpu_milli, 4000);
    // What was given up is free again.
    assert!(shard.step(give_up(5, 1)));
    assert_eq!(shard.state.cluster.groups.assigned(1).cpu_milli, 1000);
}

#[test]
fn strict_strategies_are_kept_by_the_table() {
    let mut shard = Shard::new();
    shard.call(Call::GroupCreate(create(5, GroupStrictPack, &[1000, 1000])));
    shard.call(Call::GroupCreate(create(6, GroupStrictSpread, &[1000, 1000])));
    assert!(!shard.step(assign(5, 0, &[(0, 1), (1, 2)])) && shard.step(assign(5, 0, &[(0, 1), (1, 1)])));
    assert!(!shard.step(assign(6, 0, &[(0, 1), (1, 1)])) && shard.step(assign(6, 0, &[(0, 1), (1, 2)])));
}

#[test]
fn a_death_takes_what_was_there_and_leaves_the_rest() {
    let mut shard = Shard::new();
    for (group, job) in [(5, 1), (6, 1)] {
        shard.call(Call::GroupCreate(GroupCreate { job, ..create(group, GroupSpread, &[1000, 1000]) }));
    }
    assert!(shard.step(assign(5, 0, &[(0, 1), (1, 2)])) && shard.step(commit(5, 1)));
    assert!(shard.step(assign(6, 0, &[(0, 1), (1, 2)])));
    let dead = proto::DeclareDead { incarnation: 2, evidence: "silent".into(), silent_ms: 1 };
    shard.apply(Op::DeclareDead(dead));
    let nodes = |shard: &Shard, group| {
        let places = shard.state.cluster.groups.all()[&group].places.clone();
        places.iter().map(|place| (place.node, place.placed)).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&shard, 5), [(1, true), (0, false)], "the other stays");
    assert_eq!(nodes(&shard, 6), [(0, false), (0, false)], "the attempt is over as a whole");
    assert!(!shard.step(commit(6, 2)), "what the dead one said does not count");
    assert!(!shard.step(assign(5, 1, &[(1, 2)])), "nor is it given anything");
    assert!(shard.step(assign(5, 1, &[(1, 1)])) && shard.step(commit(5, 3)));
}

#[test]
fn groups_end_with_their_job_and_jobs_with_their_node() {
    let mut shard = Shard::new();
    for (group, job) in [(5, 1), (6, 2)] {
        shard.call(Call::GroupCreate(GroupCreate { job, ..create(group, GroupPack, &[1000]) }));
    }
    shard.apply(Op::DeclareDead(proto::DeclareDead { incarnation: 1, ..Default::default() }));
    assert_eq!(shard.state.cluster.groups.all().keys().copied().collect::<Vec<_>>(), [6]);
    shard.call(Call::JobEnd(proto::JobEnd { job: 2, succeeded: true }));
    assert!(shard.state.cluster.groups.all().is_empty());
}

#[test]
fn reasons_are_noted_once_and_end_with_an_attempt() {
    let mut shard = Shard::new();
    let Called::Revision(since) = shard.call(Call::GroupCreate(create(5, GroupPack, &[1000]))) else {
        panic!("refused")
    };
    let note = |why: &str, since| Step::Note(proto::NoteGroup { group: 5, since, why: why.into() });
    assert!(!shard.step(note("of an earlier one", since - 1)));
    let long = "ä".repeat(5_000);
    assert!(shard.step(note(&long, since)) && !shard.step(note(&long, since)));
    assert!(shard.state.cluster.groups.all()[&5].why.len() <= super::groups::MAX_WHY);
    assert!(shard.step(assign(5, 0, &[(0, 1)])));
    assert_eq!(shard.state.cluster.groups.all()[&5].why, "");
}

#[test]
fn below_its_level_a_group_is_what_earlier_releases_take_it_for() {
    let mut shard = Shard::at_level(3);
    let why = shard.refused(Call::GroupCreate(create(5, GroupPack, &[1000])));
    assert_eq!(why, "a request this build does not know");
    let op = Op::Groups(proto::GroupCommand { op: Some(assign(5, 0, &[(0, 1)])) });
    assert_eq!(shard.apply(op), None);
    assert!(shard.state.cluster.groups.dump().is_none());
}

#[test]
fn a_snapshot_has_groups_and_its_level_says_so() {
    let mut shard = Shard::new();
    shard.call(Call::GroupCreate(create(5, GroupSpread, &[1000, 1000])));
    shard.step(assign(5, 0, &[(0, 1), (1, 2)]));
    // One who has not noted the level yet may have applied what came after.
    for level in [1, 4] {
        let cold = cold::open_one(Arc::new(SimDisk::new(2)), 0).expect("memory");
        let mut other = ShardState::new(0, cold);
        other.restore(shard.state.snapshot(level).into(), &shard.state.manifest()).expect("read");
        assert_eq!(
            (other.digest(), &other.cluster.groups),
            (shard.state.digest(), &shard.state.cluster.groups)
        );
    }
}
