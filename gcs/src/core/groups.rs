//! Placement groups, in shard 0: what was asked for, and where each bundle is or is about to be.
//!
//! The table says how far each group is; [`crate::groups`] compares it with what the nodes say and names the
//! next step. An attempt places all bundles that have no place: it is *assigned*, the nodes reserve, and it is
//! *committed* once all of them have. One that is given up, or in which a node dies, is over as a whole.
//!
//! 1. Numbers of attempts are never reused. So a node that said that it holds something under one holds it
//!    until this table says otherwise, and what it said may come late, twice or never.
//! 2. No node has more assigned than it offers.
//! 3. A bundle that is placed leaves a node only with that node's death, or with its group.

use super::cluster::Member;
use mobula_base::Resources;
use mobula_base::mutant;
use mobula_base::resources::GPU;
use mobula_proto as proto;
use prost::Message;
use proto::group_command::Op;
use proto::{BundleView, GroupCommand, GroupCreate, GroupStrategy, GroupView};
use std::collections::{BTreeMap, BTreeSet};

/// Groups that a cluster has at a time.
pub const MAX_GROUPS: usize = 1_000;
/// Bundles of all groups together: every node is told of all of them.
pub const MAX_BUNDLES: usize = 10_000;
/// Bundles of one group.
pub const MAX_BUNDLES_OF_ONE: usize = proto::GROUP_BUNDLES_MAX;
/// Bytes of all requests together.
pub const MAX_BYTES: usize = 4 << 20;
/// Named resources of one bundle.
pub const MAX_RESOURCES: usize = 32;
/// Of one resource, thousandths: sums over all bundles stay far below the end of the numbers.
pub const MAX_AMOUNT: u64 = 1 << 40;
/// Bytes of a group's or a resource's name.
pub const MAX_NAME: usize = 200;
/// Bytes that are kept of the reason why a group waits.
pub const MAX_WHY: usize = 1_000;

/// Where a bundle is.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Place {
    /// 0: nowhere.
    #[prost(fixed64, tag = "1")]
    pub node: u64,
    /// By which attempt it came there.
    #[prost(uint64, tag = "2")]
    pub attempt: u64,
    /// For good.
    #[prost(bool, tag = "3")]
    pub placed: bool,
}

/// One group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Group {
    /// What was asked for.
    #[prost(message, required, tag = "1")]
    pub wanted: GroupCreate,
    /// Log index at which it was made.
    #[prost(uint64, tag = "2")]
    pub since: u64,
    /// The last attempt to place bundles; 0 before the first.
    #[prost(uint64, tag = "3")]
    pub attempt: u64,
    /// Of each bundle.
    #[prost(message, repeated, tag = "4")]
    pub places: Vec<Place>,
    /// Why it cannot be placed now, for people.
    #[prost(string, tag = "5")]
    pub why: String,
}

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Some bundles have no place, and nobody is at it.
    Waits,
    /// Nodes are asked to reserve what the attempt with this number needs.
    Reserves(u64),
    /// Every bundle has its place.
    Placed,
}

impl Group {
    /// How far it is.
    pub fn stage(&self) -> Stage {
        if let Some(place) = self.places.iter().find(|place| place.node != 0 && !place.placed) {
            return Stage::Reserves(place.attempt);
        }
        if self.places.iter().all(|place| place.placed) { Stage::Placed } else { Stage::Waits }
    }

    /// Bundles with what each asks for and where it is.
    pub fn bundles(&self) -> impl Iterator<Item = (u32, Resources, Place)> + '_ {
        let numbered = (0..).zip(&self.wanted.bundles).zip(&self.places);
        numbered.map(|((number, bundle), place)| (number, bundle.demand(), *place))
    }

    /// Ends the attempt that is under way.
    fn give_up(&mut self) {
        for place in self.places.iter_mut().filter(|place| !place.placed) {
            *place = Place::default();
        }
    }

    fn lose(&mut self, node: u64) {
        if self.places.iter().any(|place| place.node == node && !place.placed) {
            self.give_up();
        }
        for place in self.places.iter_mut().filter(|place| place.node == node) {
            *place = Place::default();
        }
    }
}

/// Whether bundles may lie on these nodes, whatever they ask for. Those that have no place are left out.
pub fn allows(strategy: GroupStrategy, nodes: impl Iterator<Item = u64>) -> bool {
    let nodes: Vec<u64> = nodes.collect();
    let different = nodes.iter().collect::<BTreeSet<_>>().len();
    match strategy {
        GroupStrategy::GroupPack | GroupStrategy::GroupSpread => true,
        GroupStrategy::GroupStrictPack => different <= 1,
        GroupStrategy::GroupStrictSpread => different == nodes.len(),
        GroupStrategy::GroupUnspecified => false,
    }
}

/// What is kept of a reason.
pub fn shortened(why: &str) -> String {
    why.chars().take(MAX_WHY / char::MAX.len_utf8()).collect()
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Groups {
    /// The last attempt of any group.
    last_attempt: u64,
    groups: BTreeMap<u64, Group>,
}

/// See [`Groups`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct GroupsDump {
    #[prost(uint64, tag = "1")]
    last_attempt: u64,
    #[prost(message, repeated, tag = "2")]
    groups: Vec<Group>,
}

impl Groups {
    /// All of them, by their ids.
    pub fn all(&self) -> &BTreeMap<u64, Group> {
        &self.groups
    }

    /// Makes a group; repeating it changes nothing. At which index it was made.
    ///
    /// # Errors
    /// It asks for what cannot be meant, or there are too many.
    pub fn create(&mut self, index: u64, wanted: &GroupCreate) -> Result<u64, String> {
        check(wanted)?;
        if let Some(known) = self.groups.get(&wanted.group) {
            if known.wanted == *wanted {
                return Ok(known.since);
            }
            return Err(format!(
                "group {:016x} was made before with other bundles: the first stands. A task that makes a group must \
                 do so deterministically",
                wanted.group
            ));
        }
        if self.groups.len() >= MAX_GROUPS {
            return Err(format!("this cluster has {MAX_GROUPS} placement groups already: remove some first"));
        }
        let bundles: usize = self.groups.values().map(|group| group.places.len()).sum();
        if bundles + wanted.bundles.len() > MAX_BUNDLES {
            let more = wanted.bundles.len();
            return Err(format!(
                "the placement groups of this cluster have {bundles} bundles, and with {more} more there would be more than \
                 {MAX_BUNDLES}: remove groups first"
            ));
        }
        let bytes: usize = self.groups.values().map(|group| group.wanted.encoded_len()).sum();
        if bytes + wanted.encoded_len() > MAX_BYTES {
            return Err(format!(
                "the placement groups of this cluster take {bytes} bytes, and with this one they would take more than {MAX_BYTES}: \
                 remove groups first, or use shorter names"
            ));
        }
        let places = vec![Place::default(); wanted.bundles.len()];
        let group = Group { wanted: wanted.clone(), since: index, places, ..Group::default() };
        self.groups.insert(wanted.group, group);
        Ok(index)
    }

    /// Removes a group of a job. Whether something has changed.
    ///
    /// # Errors
    /// It is another job's.
    pub fn remove(&mut self, group: u64, job: u64) -> Result<bool, String> {
        match self.groups.get(&group) {
            None => Ok(false),
            Some(known) if known.wanted.job != job => Err(format!(
                "group {group:016x} belongs to job {:016x}: only its own job may remove it",
                known.wanted.job
            )),
            Some(_) => Ok(self.groups.remove(&group).is_some()),
        }
    }

    /// A job has ended, and its groups with it. Whether there were some.
    pub fn job_ended(&mut self, job: u64) -> bool {
        let before = self.groups.len();
        self.groups.retain(|_, group| group.wanted.job != job || mutant!("P5"));
        self.groups.len() != before
    }

    /// A node is dead: what was there has no place any more, the rest stays where it is.
    pub fn node_dead(&mut self, node: u64) {
        self.groups.values_mut().for_each(|group| group.lose(node));
    }

    /// What is assigned on a node.
    pub fn assigned(&self, node: u64) -> Resources {
        let mut sum = Resources::default();
        let there = self.groups.values().flat_map(Group::bundles).filter(|(_, _, place)| place.node == node);
        there.for_each(|(_, demand, _)| sum.give(&demand));
        sum
    }

    /// Takes a step of the leader. Whether something has changed.
    pub fn apply(&mut self, command: &GroupCommand, members: &BTreeMap<u64, Member>) -> bool {
        match &command.op {
            Some(Op::Assign(assign)) => self.assign(assign, members),
            Some(Op::Commit(commit)) => self.commit(commit),
            Some(Op::GiveUp(given_up)) => match self.groups.get_mut(&given_up.group) {
                Some(group) if group.stage() == Stage::Reserves(given_up.attempt) => {
                    group.give_up();
                    true
                }
                Some(_) | None => false,
            },
            Some(Op::Note(note)) => match self.groups.get_mut(&note.group) {
                Some(group) if group.since == note.since && group.why != shortened(&note.why) => {
                    group.why = shortened(&note.why);
                    true
                }
                Some(_) | None => false,
            },
            None => false,
        }
    }

    /// Whoever planned this may have been deposed, or not have heard of a death: all is looked at again.
    fn assign(&mut self, assign: &proto::AssignGroup, members: &BTreeMap<u64, Member>) -> bool {
        let Some(group) = self.groups.get(&assign.group) else { return false };
        if group.stage() != Stage::Waits || group.attempt != assign.after {
            return false;
        }
        let mut nodes: Vec<u64> = group.places.iter().map(|place| place.node).collect();
        let mut more: BTreeMap<u64, Resources> = BTreeMap::new();
        for place in &assign.places {
            let at = place.bundle as usize;
            if nodes.get(at) != Some(&0) || place.node == 0 {
                return false;
            }
            nodes[at] = place.node;
            more.entry(place.node).or_default().give(&group.wanted.bundles[at].demand());
        }
        if nodes.contains(&0) || !allows(group.wanted.strategy(), nodes.iter().copied()) {
            return false;
        }
        for (node, more) in &mut more {
            let Some(total) = members.get(node).filter(|member| member.alive).map(Member::total) else {
                return false;
            };
            more.give(&self.assigned(*node));
            if !total.fits(more) && !mutant!("P1") {
                return false;
            }
        }
        self.last_attempt += 1;
        let attempt = self.last_attempt;
        let group = self.groups.get_mut(&assign.group).expect("looked at above");
        for (place, node) in group.places.iter_mut().zip(nodes).filter(|(place, _)| place.node == 0) {
            *place = Place { node, attempt, placed: false };
        }
        (group.attempt, group.why) = (attempt, String::new());
        true
    }

    fn commit(&mut self, commit: &proto::CommitGroup) -> bool {
        let Some(group) = self.groups.get_mut(&commit.group) else { return false };
        if group.stage() != Stage::Reserves(commit.attempt) && !mutant!("P2") {
            return false;
        }
        let reserved = group.places.iter_mut().filter(|place| place.node != 0);
        reserved.for_each(|place| place.placed = true);
        true
    }

    /// What nodes are told.
    pub fn view(&self) -> Vec<GroupView> {
        let one = |group: &Group| {
            let bundle = |(bundle, place): (&proto::Bundle, &Place)| BundleView {
                bundle: Some(bundle.clone()),
                node: place.node,
                attempt: place.attempt,
                placed: place.placed,
            };
            GroupView {
                group: group.wanted.group,
                job: group.wanted.job,
                name: group.wanted.name.clone(),
                strategy: group.wanted.strategy,
                since: group.since,
                bundles: group.wanted.bundles.iter().zip(&group.places).map(bundle).collect(),
                why: group.why.clone(),
            }
        };
        self.groups.values().map(one).collect()
    }

    /// `None` before there was a group: dumps of earlier levels have no such thing.
    pub(super) fn dump(&self) -> Option<GroupsDump> {
        let (last_attempt, groups) = (self.last_attempt, self.groups.values().cloned().collect());
        (*self != Groups::default()).then_some(GroupsDump { last_attempt, groups })
    }

    /// What [`Groups::dump`] gave.
    pub(super) fn restored(dump: Option<GroupsDump>) -> Self {
        let dump = dump.unwrap_or_default();
        let groups = dump.groups.into_iter().map(|group| (group.wanted.group, group));
        Groups { last_attempt: dump.last_attempt, groups: groups.collect() }
    }
}

/// Whether a request can be meant.
fn check(wanted: &GroupCreate) -> Result<(), String> {
    let count = wanted.bundles.len();
    if count == 0 {
        return Err("a placement group needs at least one bundle".into());
    }
    if count > MAX_BUNDLES_OF_ONE {
        return Err(format!("a placement group has at most {MAX_BUNDLES_OF_ONE} bundles, not {count}"));
    }
    if wanted.strategy() == GroupStrategy::GroupUnspecified {
        return Err(
            "the strategy is none that is known here: pack, spread, strict pack or strict spread".into()
        );
    }
    let bytes = wanted.encoded_len();
    if bytes > proto::GROUP_BYTES_MAX {
        return Err(format!(
            "the request takes {bytes} bytes, at most {}: use shorter names",
            proto::GROUP_BYTES_MAX
        ));
    }
    if wanted.name.len() > MAX_NAME {
        return Err(format!("a placement group's name has at most {MAX_NAME} bytes"));
    }
    wanted.bundles.iter().enumerate().try_for_each(|(number, bundle)| {
        check_bundle(bundle).map_err(|why| format!("bundle {number}: {why}"))
    })
}

fn check_bundle(bundle: &proto::Bundle) -> Result<(), String> {
    if bundle.resources.len() > MAX_RESOURCES {
        return Err(format!("it asks for more than {MAX_RESOURCES} named resources"));
    }
    for resource in &bundle.resources {
        if resource.name.is_empty() || resource.name.len() > MAX_NAME {
            return Err(format!("the name of a resource has between 1 and {MAX_NAME} bytes"));
        }
        if resource.milli > MAX_AMOUNT {
            let (name, milli) = (&resource.name, resource.milli);
            return Err(format!("{milli} thousandths of \"{name}\" are more than any node may offer"));
        }
    }
    let demand = bundle.demand();
    if demand == Resources::default() {
        return Err("it asks for nothing: name an amount of something".into());
    }
    // Amounts are compared here, and parts of different devices do not add up to one.
    if !demand.of(GPU).is_multiple_of(1000) {
        return Err("a bundle takes whole GPUs, which its tasks may share: ask for 1, 2, ...".into());
    }
    Ok(())
}
