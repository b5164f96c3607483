use super::plan::plan;
use super::{Offer, PATIENCE, PAUSE, Pace, next_step};
use crate::core::cluster::Member;
use crate::core::groups::{Groups, Stage, allows};
use mobula_base::Resources;
use mobula_base::random::Random;
use mobula_proto as proto;
use proptest::prelude::*;
use proto::GroupStrategy::{self, GroupPack, GroupSpread, GroupStrictPack, GroupStrictSpread};
use proto::group_command::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const ALL: [GroupStrategy; 4] = [GroupPack, GroupSpread, GroupStrictPack, GroupStrictSpread];

fn cpus(cpus: &[u64]) -> Vec<(u32, Resources)> {
    (0..).zip(cpus).map(|(number, cpus)| (number, Resources::cpus_milli(cpus * 1000))).collect()
}

fn rooms(cpus: &[u64]) -> BTreeMap<u64, Resources> {
    (1..).zip(cpus).map(|(node, cpus)| (node, Resources::cpus_milli(cpus * 1000))).collect()
}

fn nodes(strategy: GroupStrategy, wanted: &[u64], taken: &[u64], room: &[u64]) -> Option<Vec<u64>> {
    let found = plan(strategy, &cpus(wanted), taken, &rooms(room))?;
    assert!(found.iter().map(|(number, _)| *number).eq(0..wanted.len() as u32), "each once, in order");
    Some(found.into_iter().map(|(_, node)| node).collect())
}

#[test]
fn strategies_choose_nodes() {
    assert_eq!(nodes(GroupPack, &[1, 1, 1], &[], &[2, 4, 4]), Some(vec![2, 2, 2]));
    assert_eq!(nodes(GroupPack, &[1, 1, 1], &[], &[2, 3, 9]), Some(vec![2, 2, 2]), "where less is left over");
    assert_eq!(nodes(GroupPack, &[1], &[1], &[1, 9]), Some(vec![1]), "where the others are");
    assert_eq!(nodes(GroupPack, &[3, 3], &[], &[4, 4]), Some(vec![1, 2]), "several if it must");
    assert_eq!(nodes(GroupSpread, &[1, 1], &[], &[8, 1]), Some(vec![1, 2]));
    assert_eq!(nodes(GroupSpread, &[1, 1, 1], &[], &[8, 1]), Some(vec![1, 2, 1]), "one twice if it must");
    assert_eq!(nodes(GroupSpread, &[1], &[1], &[8, 1]), Some(vec![2]), "where the others are not");
    assert_eq!(nodes(GroupStrictPack, &[2, 2], &[], &[3, 4]), Some(vec![2, 2]));
    assert_eq!(nodes(GroupStrictPack, &[2, 2], &[], &[3, 3]), None);
    assert_eq!(nodes(GroupStrictSpread, &[1, 1], &[], &[8, 1]), Some(vec![1, 2]));
    assert_eq!(nodes(GroupStrictSpread, &[1, 1], &[], &[8]), None);
    assert_eq!(nodes(GroupStrictSpread, &[1], &[1], &[8, 1]), Some(vec![2]));
    assert_eq!(nodes(GroupStrictSpread, &[2], &[1], &[8, 1]), None);
}

#[test]
fn a_search_that_went_wrong_goes_back() {
    // Taking the roomiest node for the first of them leaves none for the rare one.
    assert_eq!(nodes(GroupStrictSpread, &[2, 9], &[], &[9, 2]), Some(vec![2, 1]));
    assert_eq!(nodes(GroupPack, &[5, 4, 3, 3, 3], &[], &[9, 9]), Some(vec![1, 1, 2, 2, 2]));
}

#[test]
fn hundreds_of_bundles_on_hundreds_of_nodes_are_found_or_given_up() {
    let room = vec![8; 500];
    let found = nodes(GroupStrictSpread, &[4; 256], &[], &room).expect("there is room");
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 256);
    assert_eq!(nodes(GroupPack, &[5; 256], &[], &vec![8; 255]), None);
    // No two are alike, and nearly all fits: it ends.
    let odd: Vec<u64> = (0..255).map(|n| 100 + n).collect();
    let wanted: Vec<u64> = (0..256).map(|n| 60 + n % 50).collect();
    nodes(GroupPack, &wanted, &[], &odd);
}

/// All placements there are, one after the other.
fn fits_somehow(strategy: GroupStrategy, wanted: &[u64], room: &mut [u64], at: &mut Vec<u64>) -> bool {
    let Some(next) = wanted.get(at.len()).copied() else { return allows(strategy, at.iter().copied()) };
    (0..room.len()).any(|node| {
        if room[node] < next {
            return false;
        }
        room[node] -= next;
        at.push(node as u64 + 1);
        let fits = fits_somehow(strategy, wanted, room, at);
        at.pop();
        room[node] += next;
        fits
    })
}

proptest! {
    #[test]
    fn what_fits_is_found_and_what_is_found_fits(
        strategy in 0usize..4, wanted in prop::collection::vec(1u64..6, 1..5), room in prop::collection::vec(0u64..9, 1..5),
    ) {
        let strategy = ALL[strategy];
        let found = nodes(strategy, &wanted, &[], &room);
        prop_assert_eq!(found.is_some(), fits_somehow(strategy, &wanted, &mut room.clone(), &mut Vec::new()));
        if let Some(found) = found {
            prop_assert!(allows(strategy, found.iter().copied()));
            let mut left = room;
            for (node, cpus) in found.iter().zip(&wanted) {
                let left = &mut left[*node as usize - 1];
                prop_assert!(*left >= *cpus);
                *left -= cpus;
            }
        }
    }
}

/// A table, nodes that reserve whatever they are told to, and the leader's clock.
struct Table {
    groups: Groups,
    members: BTreeMap<u64, Member>,
    offers: BTreeMap<u64, Offer>,
    pace: Pace,
    now: Duration,
    index: u64,
}

impl Table {
    fn of(cpus: &[u32]) -> Self {
        let join = |cpu_milli| Some(proto::NodeJoin { cpu_milli, ..Default::default() });
        let member = |(node, cpus): (u64, &u32)| {
            (node, Member { incarnation: node, join: join(cpus * 1000), alive: true })
        };
        let members: BTreeMap<u64, Member> = (1..).zip(cpus).map(member).collect();
        let offer = |(node, member): (&u64, &Member)| {
            let (name, total) = (format!("node-{node}"), member.total());
            (
                *node,
                Offer { name, free: total.clone(), total, heard: true, reserves: true, ..Offer::default() },
            )
        };
        let offers = members.iter().map(offer).collect();
        let (pace, now) = (Pace::default(), Duration::ZERO);
        Table { groups: Groups::default(), members, offers, pace, now, index: 0 }
    }

    fn create(&mut self, group: u64, strategy: GroupStrategy, cpus: &[u32]) {
        self.index += 1;
        let bundle = |cpus: &u32| proto::Bundle { cpu_milli: cpus * 1000, ..Default::default() };
        let (strategy, bundles) = (strategy as i32, cpus.iter().map(bundle).collect());
        let wanted = proto::GroupCreate { group, job: 1, strategy, bundles, ..Default::default() };
        self.groups.create(self.index, &wanted).expect("taken");
    }

    fn next(&mut self) -> Option<Op> {
        next_step(&self.groups, &self.offers, self.index, &mut self.pace, self.now)
    }

    /// Takes the next step, if there is one.
    fn take(&mut self) -> Option<Op> {
        let op = self.next()?;
        let command = proto::GroupCommand { op: Some(op.clone()) };
        assert!(self.groups.apply(&command, &self.members), "{op:?} does nothing");
        self.index += 1;
        Some(op)
    }

    /// Nodes say that they have reserved what they are to reserve, but for those on `but`.
    fn reserve(&mut self, but: u64) {
        for (id, group) in self.groups.all() {
            for (bundle, _, place) in
                group.bundles().filter(|(_, _, place)| place.node != 0 && place.node != but)
            {
                if let Some(offer) = self.offers.get_mut(&place.node) {
                    offer.held.insert((*id, bundle, place.attempt));
                }
            }
        }
    }

    fn why(&self, group: u64) -> &str {
        &self.groups.all()[&group].why
    }
}

#[test]
fn a_group_is_assigned_and_committed_when_all_have_reserved() {
    let mut table = Table::of(&[4, 4]);
    table.create(5, GroupStrictSpread, &[2, 2]);
    assert!(matches!(table.take(), Some(Op::Assign(_))));
    assert_eq!(table.take(), None, "nobody has said anything");
    table.reserve(2);
    assert_eq!(table.take(), None, "one has not");
    table.reserve(0);
    // Another leader knows as much, whatever this one has seen.
    table.pace = Pace::default();
    assert_eq!(table.take(), Some(Op::Commit(proto::CommitGroup { group: 5, attempt: 1 })));
    assert_eq!((table.take(), table.groups.all()[&5].stage()), (None, Stage::Placed));
}

#[test]
fn an_attempt_that_takes_too_long_is_given_up_and_made_anew_after_a_pause() {
    let mut table = Table::of(&[4, 4]);
    table.create(5, GroupPack, &[4]);
    assert!(matches!(table.take(), Some(Op::Assign(_))));
    assert_eq!(table.take(), None);
    table.now += PATIENCE;
    assert_eq!(table.take(), Some(Op::GiveUp(proto::GiveUpGroup { group: 5, attempt: 1 })));
    assert_eq!(table.take(), None);
    table.now += PAUSE;
    // By now it is known that the other node is free.
    table.offers.get_mut(&1).expect("there").free = Resources::cpus_milli(1000);
    let Some(Op::Assign(assign)) = table.take() else { panic!("nothing is done") };
    assert_eq!((assign.after, assign.places[0].node), (1, 2));
    // Each time it waits longer, up to a bound.
    let mut waited = Vec::new();
    for attempt in 2..10 {
        assert_eq!(table.take(), None, "it begins");
        table.now += PATIENCE;
        assert_eq!(table.take(), Some(Op::GiveUp(proto::GiveUpGroup { group: 5, attempt })));
        let began = table.now;
        while table.take().is_none() {
            table.now += PAUSE;
        }
        waited.push((table.now - began).as_secs());
    }
    assert_eq!(waited, [2, 4, 8, 16, 32, 32, 32, 32]);
}

#[test]
fn a_step_that_was_not_taken_is_taken_again() {
    let mut table = Table::of(&[4]);
    table.create(5, GroupPack, &[4]);
    let first = table.next();
    assert!(matches!(first, Some(Op::Assign(_))));
    assert_eq!(table.next(), None, "it is under way");
    table.pace.look_again();
    assert_eq!(table.next(), first);
}

#[test]
fn what_is_free_at_once_comes_before_what_tasks_use() {
    let mut table = Table::of(&[4, 4]);
    table.offers.get_mut(&1).expect("there").free = Resources::cpus_milli(3000);
    table.create(5, GroupPack, &[4]);
    table.create(6, GroupPack, &[4]);
    let (Some(Op::Assign(first)), Some(Op::Assign(second))) = (table.take(), table.take()) else {
        panic!("both can be reserved in time")
    };
    assert_eq!((first.group, first.places[0].node), (5, 2));
    assert_eq!((second.group, second.places[0].node), (6, 1), "its tasks end one day");
}

#[test]
fn nodes_that_were_not_heard_or_cannot_reserve_are_given_nothing() {
    let mut table = Table::of(&[4, 4]);
    table.offers.get_mut(&1).expect("there").heard = false;
    table.offers.get_mut(&2).expect("there").reserves = false;
    table.create(5, GroupPack, &[4]);
    assert_eq!(table.take(), None, "the one that was not heard may have room");
    table.index += 1;
    *table.offers.get_mut(&1).expect("there") = Offer { heard: true, ..table.offers[&2].clone() };
    assert!(matches!(table.take(), Some(Op::Note(_))));
    assert!(table.why(5).contains("no node is there that could reserve anything"), "{}", table.why(5));
}

#[test]
fn a_group_that_cannot_be_placed_says_why_once() {
    let cases: [(GroupStrategy, &[u32], &str); 5] = [
        (
            GroupPack,
            &[1, 64],
            "bundle 1 asks for cpu 64, and no node offers that (the largest, node-1, has cpu 8)",
        ),
        (
            GroupStrictSpread,
            &[1, 1, 1],
            "strict spread asks for 3 nodes, one for each bundle, and 2 are there",
        ),
        (
            GroupStrictPack,
            &[4, 8],
            "strict pack asks for cpu 12 on one node, and no node offers that (the largest, node-1,",
        ),
        (
            GroupPack,
            &[8, 4, 4],
            "the 2 nodes together have no place for its bundles (pack; they ask for cpu 16)",
        ),
        (GroupSpread, &[8], "it waits for what other placement groups have reserved (it asks for cpu 8)"),
    ];
    for (strategy, wanted, said) in cases {
        let mut table = Table::of(&[8, 4]);
        table.create(1, GroupPack, &[5]);
        table.take();
        table.create(5, strategy, wanted);
        assert!(matches!(table.take(), Some(Op::Note(_))), "{said}");
        assert!(table.why(5).contains(said), "{} does not say {said}", table.why(5));
        assert_eq!(table.take(), None, "it says so once");
        table.index += 1;
        assert_eq!(table.take(), None, "nor when something else has changed");
    }
}

#[test]
fn later_groups_need_not_wait_for_one_that_cannot_be_placed() {
    let mut table = Table::of(&[4]);
    table.create(5, GroupPack, &[64]);
    table.create(6, GroupPack, &[4]);
    assert!(matches!(table.take(), Some(Op::Note(note)) if note.group == 5));
    assert!(matches!(table.take(), Some(Op::Assign(assign)) if assign.group == 6));
}

#[test]
fn only_the_bundles_of_a_dead_node_are_placed_again() {
    let mut table = Table::of(&[4, 4, 4]);
    table.create(5, GroupStrictSpread, &[2, 2]);
    table.take();
    table.reserve(0);
    table.take();
    let before: Vec<u64> = table.groups.all()[&5].places.iter().map(|place| place.node).collect();
    let dead = before[1];
    table.groups.node_dead(dead);
    table.members.get_mut(&dead).expect("there").alive = false;
    table.offers.remove(&dead);
    table.index += 1;
    let Some(Op::Assign(again)) = table.take() else { panic!("nothing is done") };
    assert_eq!((again.places.len(), again.places[0].bundle), (1, 1));
    assert!(again.places[0].node != dead && again.places[0].node != before[0]);
    table.reserve(0);
    assert!(matches!(table.take(), Some(Op::Commit(commit)) if commit.attempt == 2));
    assert_eq!(table.groups.all()[&5].places[0].node, before[0], "the other stayed");
}

#[test]
fn whatever_happens_the_table_is_never_overcommitted_and_ends_placed() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut table = Table::of(&[4, 4, 4, 4]);
        for step in 0..200u64 {
            match random.below(8) {
                0 if table.groups.all().len() < 4 => {
                    let wanted: Vec<u32> =
                        (0..1 + random.below(3)).map(|_| 1 + random.below(3) as u32).collect();
                    table.create(100 + step, ALL[random.below(4) as usize], &wanted);
                }
                1 => {
                    let some = table.groups.all().keys().next().copied();
                    some.into_iter().for_each(|id| drop(table.groups.remove(id, 1)));
                    table.index += 1;
                }
                // A node dies, and one that is as large comes.
                2 if step % 5 == 0 => {
                    let node = *table.offers.keys().next().expect("four");
                    table.groups.node_dead(node);
                    table.members.get_mut(&node).expect("known").alive = false;
                    let (offer, new) = (table.offers.remove(&node).expect("known"), 1000 + step);
                    table.offers.insert(new, Offer { held: BTreeSet::new(), ..offer });
                    let member = Member { incarnation: new, alive: true, ..table.members[&node].clone() };
                    table.members.insert(new, member);
                    table.index += 1;
                }
                3 => table.reserve(random.below(5)),
                // Another leader.
                4 => table.pace = Pace::default(),
                5 => table.now += Duration::from_millis(random.below(6_000)),
                _ => drop(table.take()),
            }
            for (node, offer) in &table.offers {
                assert!(offer.total.fits(&table.groups.assigned(*node)), "seed {seed}, step {step}");
            }
        }
        table.groups.job_ended(1);
        assert!(table.offers.keys().all(|node| table.groups.assigned(*node) == Resources::default()));
        table.index += 1;
        table.create(9, GroupStrictSpread, &[4, 4, 4, 4]);
        for _ in 0..4 {
            table.take();
            table.reserve(0);
        }
        assert_eq!(table.groups.all()[&9].stage(), Stage::Placed, "seed {seed}");
    }
}
