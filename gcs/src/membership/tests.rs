//! The plan against a model of consensus: any interruption, any leader, any repetition.

use super::{Seen, Step, next_step};
use crate::core::heads::Heads;
use mobula_proto as proto;
use proptest::prelude::*;
use proto::head_command::Op;
use std::collections::{BTreeMap, BTreeSet};

/// One shard as consensus has it.
#[derive(Clone, Debug)]
struct Shard {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, String>,
    leader: u64,
    caught_up: BTreeSet<u64>,
}

/// Heads that run; one is down now and then.
#[derive(Clone, Debug)]
struct World {
    shards: Vec<Shard>,
    down: Option<u64>,
    heads: Heads,
    index: u64,
    /// Every id that was ever given, and where.
    given: BTreeMap<u64, String>,
}

fn address(head: u64) -> String {
    format!("h{head}:1")
}

impl World {
    fn new(shards: usize) -> Self {
        let nodes: BTreeMap<u64, String> = (1..=3).map(|head| (head, address(head))).collect();
        let voters: BTreeSet<u64> = nodes.keys().copied().collect();
        let shard = |leader: usize| Shard {
            configs: vec![voters.clone()],
            nodes: nodes.clone(),
            leader: 1 + leader as u64 % 3,
            caught_up: voters.clone(),
        };
        let given = nodes.clone();
        World {
            shards: (0..shards).map(shard).collect(),
            down: None,
            heads: Heads::default(),
            index: 0,
            given,
        }
    }

    fn is_up(&self, head: u64) -> bool {
        self.down != Some(head)
    }

    fn has_quorum(&self, shard: &Shard) -> bool {
        let up = |set: &BTreeSet<u64>| set.iter().filter(|head| self.is_up(**head)).count() > set.len() / 2;
        shard.configs.iter().all(up)
    }

    fn apply(&mut self, op: Op) -> proto::HeadOutcome {
        self.index += 1;
        self.heads.apply(self.index, &proto::HeadCommand { op: Some(op) })
    }

    fn start(&mut self, request: u64, add: Option<u64>, remove: u64) -> proto::HeadOutcome {
        let founder = |(head, address): (&u64, &String)| proto::HeadEntry {
            head: *head,
            address: address.clone(),
            ..Default::default()
        };
        let root = &self.shards[0];
        let members = root.nodes.iter().filter(|(head, _)| root.configs[0].contains(head));
        let founders = members.map(founder).collect();
        let add = add.map(address).unwrap_or_default();
        let outcome = self.apply(Op::Start(proto::StartHeadPlan { request, founders, add, remove }));
        for entry in &self.heads.table().members {
            let first = self.given.entry(entry.head).or_insert_with(|| entry.address.clone());
            assert_eq!(*first, entry.address, "id {} was given twice", entry.head);
        }
        outcome
    }

    fn wanted(&self) -> BTreeMap<u64, String> {
        self.heads.table().members.iter().map(|m| (m.head, m.address.clone())).collect()
    }

    /// One look of the leader of shard `at`; `interrupted`: it dies between the two entries of a
    /// joint change.
    fn look(&mut self, at: usize, interrupted: bool) {
        let wanted = self.wanted();
        let shard = self.shards[at].clone();
        if !self.has_quorum(&shard) {
            return;
        }
        let up = |heads: &BTreeSet<u64>| heads.iter().filter(|h| self.is_up(**h)).copied().collect();
        let voters: BTreeSet<u64> = shard.configs.iter().flatten().copied().collect();
        if !self.is_up(shard.leader) || !voters.contains(&shard.leader) {
            let heir = shard.configs[0].iter().find(|h| self.is_up(**h) && shard.caught_up.contains(h));
            if let Some(heir) = heir {
                self.shards[at].leader = *heir;
            }
            return;
        }
        let nodes: BTreeSet<u64> = shard.nodes.keys().copied().collect();
        let seen = Seen {
            me: shard.leader,
            configs: shard.configs.clone(),
            nodes: shard.nodes.clone(),
            answering: up(&nodes),
            caught_up: shard.caught_up.clone(),
        };
        match next_step(&wanted, &seen) {
            Step::Settled | Step::Wait(_) => {}
            Step::Learn(heads) => self.shards[at].nodes.extend(heads),
            Step::HandOver(heir) => {
                assert!(wanted.contains_key(&heir) && self.is_up(heir), "no fit heir");
                self.shards[at].leader = heir;
            }
            Step::Forget(heads) => {
                assert!(heads.iter().all(|head| !voters.contains(head)), "a voter is forgotten");
                self.shards[at].nodes.retain(|head, _| !heads.contains(head));
            }
            Step::Vote(target) => self.vote(at, target, interrupted),
        }
    }

    fn vote(&mut self, at: usize, target: BTreeSet<u64>, interrupted: bool) {
        let down = self.down;
        let shard = &mut self.shards[at];
        assert!(target.iter().all(|head| shard.nodes.contains_key(head)), "a voter without an address");
        assert!(target.iter().all(|head| shard.caught_up.contains(head)), "a voter that knows nothing");
        if shard.configs.len() == 1 && shard.configs[0] != target {
            let up = target.iter().filter(|head| down != Some(**head)).count();
            assert!(up > target.len() / 2, "a change to a set without a majority");
            shard.configs.push(target.clone());
            if interrupted {
                // Whoever leads next has to finish it.
                let voters: Vec<u64> = shard.configs.iter().flatten().copied().collect();
                shard.leader = *voters.iter().find(|h| down != Some(**h)).expect("a majority is up");
                return;
            }
        }
        let up = |set: &BTreeSet<u64>| set.iter().filter(|h| down != Some(**h)).count() > set.len() / 2;
        if shard.configs.iter().all(up) {
            shard.configs = vec![target.clone()];
            shard.nodes.retain(|head, _| target.contains(head));
            shard.caught_up.retain(|head| target.contains(head));
        }
    }

    fn catch_up(&mut self, at: usize) {
        let down = self.down;
        let shard = &mut self.shards[at];
        shard.caught_up.extend(shard.nodes.keys().filter(|head| down != Some(**head)));
    }

    fn settled(&self) -> bool {
        let target: BTreeSet<u64> = self.wanted().into_keys().collect();
        let there = |shard: &Shard| {
            shard.configs == [target.clone()]
                && shard.nodes.keys().copied().collect::<BTreeSet<_>>() == target
        };
        target.is_empty() || self.shards.iter().all(there)
    }

    fn conclude(&mut self) {
        let Some(plan) = self.heads.table().plan.clone() else { return };
        if self.settled() {
            self.apply(Op::End(proto::EndHeadPlan { request: plan.request }));
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Start { request: u64, add: Option<u64>, remove: u64 },
    Look { shard: usize, interrupted: bool },
    CatchUp(usize),
    Lead { shard: usize, head: u64 },
    Down(Option<u64>),
    Conclude,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (1u64..20, prop::option::of(4u64..9), 0u64..9)
            .prop_map(|(request, add, remove)| Event::Start { request, add, remove }),
        8 => (0usize..3, any::<bool>()).prop_map(|(shard, interrupted)| Event::Look { shard, interrupted }),
        4 => (0usize..3).prop_map(Event::CatchUp),
        2 => (0usize..3, 1u64..9).prop_map(|(shard, head)| Event::Lead { shard, head }),
        1 => prop::option::of(1u64..9).prop_map(Event::Down),
        2 => Just(Event::Conclude),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_change_ends_however_it_is_interrupted(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new(3);
        for event in events {
            match event {
                Event::Start { request, add, remove } => {
                    let first = world.start(request, add, remove);
                    let again = world.start(request, add, remove);
                    prop_assert_eq!(first.refused.is_empty(), again.refused.is_empty());
                    prop_assert_eq!(first.head, again.head);
                }
                Event::Look { shard, interrupted } => world.look(shard, interrupted),
                Event::CatchUp(shard) => world.catch_up(shard),
                Event::Lead { shard, head } => {
                    let fit = world.shards[shard].configs.iter().all(|set| set.contains(&head));
                    if fit && world.shards[shard].caught_up.contains(&head) && world.is_up(head) {
                        world.shards[shard].leader = head;
                    }
                }
                Event::Down(head) => world.down = head,
                Event::Conclude => world.conclude(),
            }
        }
        // When everybody is there again, it ends.
        world.down = None;
        for _ in 0..12 {
            for shard in 0..3 {
                world.catch_up(shard);
                world.look(shard, false);
            }
        }
        world.conclude();
        prop_assert!(world.settled(), "{:?}", world);
        prop_assert!(world.heads.table().plan.is_none());
    }
}

#[test]
fn a_removal_waits_for_a_majority_of_those_that_remain() {
    let wanted = (1..=2).map(|head| (head, address(head))).collect();
    let voters: BTreeSet<u64> = (1..=3).collect();
    let mut seen = Seen {
        me: 1,
        configs: vec![voters.clone()],
        nodes: voters.iter().map(|head| (*head, address(*head))).collect(),
        answering: [1, 3].into(),
        caught_up: voters,
    };
    let Step::Wait(why) = next_step(&wanted, &seen) else { panic!("it must not be taken") };
    assert!(why.contains("only 1 of the 2"), "{why}");
    seen.answering.insert(2);
    assert_eq!(next_step(&wanted, &seen), Step::Vote([1, 2].into()));
    seen.me = 3;
    assert_eq!(next_step(&wanted, &seen), Step::HandOver(1));
}

#[test]
fn a_place_is_claimed_once_and_turning_back_brings_back_the_old() {
    let mut world = World::new(1);
    let replaced = world.start(7, Some(3), 3);
    assert_eq!((replaced.refused.as_str(), replaced.head), ("", 4));
    let claim = |nonce| Op::Claim(proto::ClaimHead { head: 4, address: address(3), nonce });
    assert_eq!(world.apply(claim(5)).refused, "");
    assert_eq!(world.apply(claim(5)).refused, "", "the same process asks again");
    assert!(world.apply(claim(6)).refused.contains("another process"), "its disk was emptied");
    assert!(world.start(8, Some(5), 0).refused.contains("replace head 3"), "one at a time");
    assert_eq!(world.start(9, None, 4).refused, "");
    assert_eq!(world.wanted().into_keys().collect::<Vec<_>>(), [1, 2, 3]);
    world.conclude();
    let next = world.start(10, Some(5), 0);
    assert_eq!(next.head, 5, "ids are never given again");
    let drain = |head, undo| Op::Drain(proto::DrainHead { head, undo, founders: Vec::new() });
    for head in [1, 2, 3] {
        assert_eq!(world.apply(drain(head, false)).refused, "");
    }
    assert!(world.apply(drain(5, false)).refused.contains("the last"), "somebody must lead");
    assert_eq!(world.apply(drain(1, true)).refused, "");
}

#[test]
fn a_head_that_is_lost_while_it_is_added_comes_under_another_id() {
    let start = |request, add: &str, remove| {
        let founders: Vec<proto::HeadEntry> = (1..=3)
            .map(|head| proto::HeadEntry { head, address: address(head), ..Default::default() })
            .collect();
        let op = Op::Start(proto::StartHeadPlan { request, founders, add: add.to_owned(), remove });
        proto::HeadCommand { op: Some(op) }
    };
    let mut heads = Heads::default();
    assert_eq!(heads.apply(1, &start(1, "h2:1", 2)).head, 4, "emptied: back at its own address");
    let refused = heads.apply(2, &start(2, "h3:1", 3)).refused;
    assert!(refused.contains("replace head 2 at h2:1 by head 4"), "one at a time: {refused}");
    assert_eq!(heads.apply(3, &start(3, "h2:1", 4)).head, 5, "emptied again before it was done");
    assert_eq!(heads.apply(4, &start(3, "h2:1", 4)).head, 5, "the same request");
    let left: Vec<u64> = heads.table().members.iter().map(|entry| entry.head).collect();
    assert_eq!(left, [1, 3, 5]);
    let plan = heads.table().plan.clone().expect("under way");
    assert_eq!((plan.add, plan.remove.map(|old| old.head)), (5, Some(2)), "the first one is still to go");
    heads.apply(5, &proto::HeadCommand { op: Some(Op::End(proto::EndHeadPlan { request: 3 })) });
    assert_eq!(heads.apply(6, &start(3, "h2:1", 4)).head, 5, "as it was answered before");
}
