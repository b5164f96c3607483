//! What must hold.

use super::steps::too_large;
use super::world::{World, totals};
use mobula_base::{GroupId, Resources};
use mobula_gcs::core::groups::{Group, Stage, allows};
use mobula_gcs::groups::plan::plan;
use mobula_proto::{GroupStrategy, TaskSpec};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// After every step.
    pub fn check(&self) {
        let groups = &self.shard.cluster.groups;
        for member in self.shard.cluster.live() {
            let assigned = groups.assigned(member.incarnation);
            assert!(member.total().fits(&assigned), "{assigned} is assigned on {}", member.incarnation);
        }
        for (id, group) in groups.all() {
            self.check_group(*id, group);
        }
        for (number, node) in &self.nodes {
            // A node's own ledger, of every resource and device.
            node.core.check_invariants();
            let kept: Vec<_> = node.core.holds().collect();
            assert_eq!(kept.len(), kept.iter().collect::<BTreeSet<_>>().len());
            assert!(totals().fits(node.core.free_resources()), "node {number} has more than it offers");
        }
    }

    fn check_group(&self, id: u64, group: &Group) {
        let placed = || group.places.iter().filter(|place| place.placed);
        let strategy = group.wanted.strategy();
        assert!(allows(strategy, placed().map(|place| place.node)), "group {id}: {strategy:?} {group:?}");
        // All or nothing, until a node dies.
        let count = placed().count();
        let whole = count == 0 || count == group.places.len();
        assert!(whole || self.struck.contains(&id), "group {id} is placed in part: {group:?}");
        // What the table has committed is reserved, whoever has said so to whom.
        for (bundle, place) in (0..).zip(&group.places).filter(|(_, place)| place.placed) {
            let Some(node) = self.nodes.get(&place.node).filter(|node| !node.is_dead) else { continue };
            let hold = (GroupId(id), bundle, place.attempt);
            assert!(node.core.holds().any(|held| held == hold), "{hold:?} is not reserved on {}", place.node);
        }
    }

    /// A task begins on a node.
    pub(super) fn check_run(&self, node: u64, spec: &TaskSpec) {
        let Some(group) = spec.placement().and_then(|placement| placement.group) else { return };
        let mut holds = self.nodes[&node].core.holds();
        let is_meant = |number: u32| group.bundle.is_none_or(|bundle| bundle == number);
        let there = holds.any(|(id, number, _)| id.0 == group.group && is_meant(number));
        assert!(there, "a task of group {} begins on node {node}, which has no bundle for it", group.group);
    }

    /// When nothing has gone wrong for long.
    pub fn check_settled(&self) {
        let groups = &self.shard.cluster.groups;
        let rooms: BTreeMap<u64, Resources> = self
            .shard
            .cluster
            .live()
            .map(|member| {
                let (mut room, assigned) = (member.total(), groups.assigned(member.incarnation));
                room.take(&assigned);
                (member.incarnation, room)
            })
            .collect();
        for (id, group) in groups.all() {
            match group.stage() {
                Stage::Placed => {}
                Stage::Reserves(attempt) => panic!("group {id} still reserves under {attempt}: {group:?}"),
                Stage::Waits => {
                    assert!(!group.why.is_empty(), "group {id} does not say why it waits");
                    assert!(
                        self.could_be(group, &rooms).is_none(),
                        "group {id} fits: {group:?} in {rooms:?}"
                    );
                }
            }
        }
        for (number, node) in &self.nodes {
            let of_node = |group: (&u64, &Group)| {
                let (id, places) = (GroupId(*group.0), group.1.places.clone());
                (0..).zip(places).map(move |(bundle, place)| (id, bundle, place)).collect::<Vec<_>>()
            };
            let all = groups.all().iter().flat_map(of_node).filter(|(_, _, place)| place.node == *number);
            let wanted: BTreeSet<_> = all.map(|(id, bundle, place)| (id, bundle, place.attempt)).collect();
            assert_eq!(node.core.holds().collect::<BTreeSet<_>>(), wanted, "node {number}");
            let mut left = totals();
            left.take(&groups.assigned(*number));
            assert_eq!(*node.core.free_resources(), left, "node {number} is idle beside its reservations");
        }
        self.check_tasks(&rooms);
    }

    fn could_be(&self, group: &Group, rooms: &BTreeMap<u64, Resources>) -> Option<Vec<(u32, u64)>> {
        let open: Vec<(u32, Resources)> = group
            .bundles()
            .filter(|(_, _, place)| place.node == 0)
            .map(|(number, demand, _)| (number, demand))
            .collect();
        let taken: Vec<u64> = group.places.iter().map(|place| place.node).filter(|node| *node != 0).collect();
        plan(GroupStrategy::try_from(group.wanted.strategy).unwrap_or_default(), &open, &taken, rooms)
    }

    /// Every task has ended that could, and as it should.
    fn check_tasks(&self, rooms: &BTreeMap<u64, Resources>) {
        let groups = self.shard.cluster.groups.all();
        for (id, task) in &self.tasks {
            let Some(group) = task.spec.placement().and_then(|placement| placement.group) else {
                let has_room = rooms.values().any(|room| room.fits(&task.spec.demand()));
                assert!(
                    task.ended.is_some() || !has_room,
                    "{id} beside all groups has not ended: {:?}",
                    task.spec
                );
                continue;
            };
            let known = groups.get(&group.group).filter(|known| known.since == group.since);
            let usable = |known: &Group| {
                let mut usable =
                    (0..).zip(&known.places).filter(|(n, _)| group.bundle.is_none_or(|b| b == *n));
                usable.any(|(n, place)| {
                    place.placed && known.wanted.bundles[n as usize].demand().fits(&task.spec.demand())
                })
            };
            match known {
                None => assert!(task.ended.is_some(), "{id} waits for a group that is gone"),
                Some(known) if too_large(&task.spec, &known.wanted.bundles, group).is_some() => {
                    assert_eq!(task.ended, Some(false), "{id} can never run in its group, and was not told");
                }
                Some(known) if usable(known) => {
                    assert!(task.ended.is_some(), "{id} has its bundle and has not ended: {:?}", task.spec);
                }
                Some(_) => assert!(task.ended != Some(false), "{id} need only wait"),
            }
        }
    }

    /// When everything is over.
    pub fn check_ended(&self) {
        assert!(self.shard.cluster.groups.all().is_empty());
        for (number, node) in &self.nodes {
            assert_eq!(node.core.holds().next(), None, "node {number} keeps something for a group");
            assert_eq!(*node.core.free_resources(), totals(), "node {number} has lost something");
        }
    }
}
