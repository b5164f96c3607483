//! What only shard 0 knows: the cluster, its members, its jobs, who was declared dead and why.

use super::events::Events;
use super::groups::Groups;
use super::heads::Heads;
use super::slot_table::SlotTable;
use mobula_base::Resources;
use mobula_proto as proto;
use proto::{Event, EventCause, EventKind};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Ended jobs that are remembered.
pub const MAX_ENDED_JOBS: usize = 10_000;
/// Dead members whose description is remembered. That they are dead is never forgotten.
pub const MAX_DEAD_MEMBERS: usize = 1_000;
/// Declarations of death that are remembered with their evidence.
pub const MAX_DEATHS: usize = 1_000;

/// One life of one node daemon.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Member {
    /// Its number.
    #[prost(fixed64, tag = "1")]
    pub incarnation: u64,
    /// What it said when it joined.
    #[prost(message, optional, tag = "2")]
    pub join: Option<proto::NodeJoin>,
    /// Neither left nor declared dead.
    #[prost(bool, tag = "3")]
    pub alive: bool,
}

impl Member {
    /// What it offers.
    pub fn total(&self) -> Resources {
        let join = self.join.as_ref();
        let named = join.iter().flat_map(|join| &join.resources).map(|r| (r.name.clone(), r.milli));
        Resources::new(join.map_or(0, |join| u64::from(join.cpu_milli)), named)
    }
}

/// A declaration of death, kept for explanations.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Death {
    /// Who.
    #[prost(fixed64, tag = "1")]
    pub incarnation: u64,
    /// Why, in words.
    #[prost(string, tag = "2")]
    pub evidence: String,
    /// How long it had been silent.
    #[prost(uint64, tag = "3")]
    pub silent_ms: u64,
    /// Log index of the decision.
    #[prost(uint64, tag = "4")]
    pub index: u64,
}

/// One program run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Job {
    /// What its driver said.
    #[prost(message, optional, tag = "1")]
    pub start: Option<proto::JobStart>,
    /// Whether it is over.
    #[prost(bool, tag = "2")]
    pub ended: bool,
    /// Whether it ended well.
    #[prost(bool, tag = "3")]
    pub succeeded: bool,
    /// Log index of its end, for forgetting the oldest.
    #[prost(uint64, tag = "4")]
    pub ended_at: u64,
}

/// The cluster-wide tables.
#[derive(Clone, Default)]
pub struct Cluster {
    /// Identity of the cluster, 0 before `InitCluster`.
    pub id: u64,
    /// Number of shards.
    pub shards: u32,
    /// Number of slots.
    pub slots: u32,
    /// Last incarnation number given.
    pub last_incarnation: u64,
    /// Members by incarnation.
    pub members: BTreeMap<u64, Member>,
    /// Everyone declared dead or gone, for ever.
    pub dead: BTreeSet<u64>,
    /// The latest deaths.
    pub deaths: VecDeque<Death>,
    /// Jobs by id.
    pub jobs: BTreeMap<u64, Job>,
    /// Log index of the last change: the version of the view.
    pub version: u64,
    /// Who the heads are to be.
    pub heads: Heads,
    /// Level of formats that the cluster writes (0 stands for 1), and since which version.
    pub(super) raised: (u32, String),
    /// Who owns which slots.
    pub slots_table: SlotTable,
    /// Placement groups.
    pub groups: Groups,
    /// What happened.
    pub events: Events,
}

impl Cluster {
    /// Sets the cluster's identity; the first one stands.
    pub fn init(&mut self, index: u64, init: &proto::InitCluster) {
        if self.id == 0 {
            (self.id, self.shards, self.slots) = (init.cluster, init.shards, init.slots);
            self.version = index;
            let kind = EventKind::EventClusterFormed as i32;
            let evidence = format!("cluster {:016x} of {} shards", init.cluster, init.shards);
            self.events.add(Event { kind, evidence, ..Default::default() });
        }
    }

    /// The level of formats that the cluster writes, and since which version of the program.
    pub fn level(&self) -> (u32, String) {
        (self.raised.0.max(1), self.raised.1.clone())
    }

    /// Raises the level, unless the heads are others than those who announced that they read it.
    /// From the level on at which nodes send something new, they are told at once.
    pub fn raise(&mut self, index: u64, raise: &proto::RaiseLevel) {
        let table = self.heads.table();
        if raise.level > self.raised.0 && table.version == raise.heads && table.plan.is_none() {
            self.raised = (raise.level, raise.program.clone());
            if raise.level >= crate::level::COUNTS_REFERENCES {
                self.version = index;
            }
        }
    }

    /// What a new cluster, made of another one's state, is called. Its heads are its own.
    pub fn reborn(&mut self, id: u64) {
        self.id = id;
        self.heads = Heads::default();
        self.events.inherit();
    }

    /// Changes the heads.
    pub fn change_heads(&mut self, index: u64, command: &proto::HeadCommand) -> proto::HeadOutcome {
        let before = self.heads.table().clone();
        let outcome = self.heads.apply(index, command);
        self.events.heads_changed(&before, self.heads.table());
        outcome
    }

    /// A node daemon starts a life; an older life at the same address ends with it.
    pub fn join(&mut self, index: u64, join: &proto::NodeJoin) -> u64 {
        let older: Vec<u64> = self
            .members
            .values()
            .filter(|m| m.alive && m.join.as_ref().is_some_and(|j| j.address == join.address))
            .map(|m| m.incarnation)
            .collect();
        self.last_incarnation += 1;
        let incarnation = self.last_incarnation;
        for old in older {
            let evidence = format!("a new daemon (incarnation {incarnation}) joined at its address");
            self.die(index, old, EventCause::CauseReplaced, &evidence, 0);
        }
        // What it understands is no part of the state: an earlier release would not keep it.
        let join = Some(proto::NodeJoin { follows_slots: false, ..join.clone() });
        self.members.insert(incarnation, Member { incarnation, join, alive: true });
        self.events.add(Event { kind: EventKind::EventNodeJoined as i32, ..self.about(incarnation) });
        self.version = index;
        incarnation
    }

    /// A node daemon leaves in order; nothing it says later counts.
    pub fn leave(&mut self, index: u64, incarnation: u64) {
        let event = Event { kind: EventKind::EventNodeLeft as i32, ..self.about(incarnation) };
        self.end(index, incarnation, event);
    }

    /// Someone is dead; repeating it changes nothing.
    pub fn declare_dead(&mut self, index: u64, incarnation: u64, evidence: &str, silent_ms: u64) {
        // A death is declared after a silence, or on the word of the suspect's kernel.
        let cause = match silent_ms {
            0 => EventCause::CauseClosedConnection,
            _ => EventCause::CauseSilence,
        };
        self.die(index, incarnation, cause, evidence, silent_ms);
    }

    fn die(&mut self, index: u64, incarnation: u64, cause: EventCause, evidence: &str, silent_ms: u64) {
        let (kind, cause) = (EventKind::EventNodeDied as i32, cause as i32);
        let text = evidence.to_owned();
        let event = Event { kind, cause, evidence: text, silent_ms, ..self.about(incarnation) };
        if self.end(index, incarnation, event) {
            self.deaths.push_back(Death { incarnation, evidence: evidence.to_owned(), silent_ms, index });
            while self.deaths.len() > MAX_DEATHS {
                self.deaths.pop_front();
            }
        }
    }

    /// What an event says of a node.
    fn about(&self, incarnation: u64) -> Event {
        let join = self.members.get(&incarnation).and_then(|member| member.join.clone()).unwrap_or_default();
        Event { incarnation, name: join.name, address: join.address, ..Default::default() }
    }

    fn end(&mut self, index: u64, incarnation: u64, event: Event) -> bool {
        if incarnation == 0 || incarnation > self.last_incarnation || !self.dead.insert(incarnation) {
            return false;
        }
        if let Some(member) = self.members.get_mut(&incarnation) {
            member.alive = false;
        }
        self.events.add(event);
        self.groups.node_dead(incarnation);
        // A job ends with the node its driver is attached to.
        for (id, job) in &mut self.jobs {
            if !job.ended && job.start.as_ref().is_some_and(|s| s.incarnation == incarnation) {
                (job.ended, job.ended_at) = (true, index);
                self.groups.job_ended(*id);
                self.events.add(job_ended(*id, job, EventCause::CauseNodeGone));
            }
        }
        if self.members.values().filter(|m| !m.alive).count() > MAX_DEAD_MEMBERS {
            let oldest = self.members.values().find(|m| !m.alive).map(|m| m.incarnation);
            self.members.remove(&oldest.unwrap_or(0));
        }
        self.version = index;
        true
    }

    /// A job starts; repeating it changes nothing.
    pub fn job_start(&mut self, index: u64, start: &proto::JobStart) {
        if !self.jobs.contains_key(&start.job) {
            self.version = index;
            self.jobs.insert(start.job, Job { start: Some(start.clone()), ..Job::default() });
            let kind = EventKind::EventJobStarted as i32;
            let (job, name, incarnation) = (start.job, start.name.clone(), start.incarnation);
            self.events.add(Event { kind, job, name, incarnation, ..Default::default() });
        }
    }

    /// A job ends; the first end stands. Whether the job is known.
    pub fn job_end(&mut self, index: u64, end: &proto::JobEnd) -> bool {
        let Some(job) = self.jobs.get_mut(&end.job) else { return false };
        if !job.ended {
            (job.ended, job.succeeded, job.ended_at) = (true, end.succeeded, index);
            self.version = index;
            self.groups.job_ended(end.job);
            self.events.add(job_ended(end.job, job, EventCause::CauseDriver));
        }
        if self.jobs.values().filter(|j| j.ended).count() > MAX_ENDED_JOBS {
            let oldest = self.jobs.iter().filter(|(_, j)| j.ended).min_by_key(|(_, j)| j.ended_at);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.jobs.remove(&oldest);
            }
        }
        true
    }

    /// Makes a placement group, for a job that goes on. At which index it was made.
    ///
    /// # Errors
    /// Why not.
    pub fn create_group(&mut self, index: u64, wanted: &proto::GroupCreate) -> Result<u64, String> {
        if self.jobs.get(&wanted.job).is_none_or(|job| job.ended) {
            return Err(format!(
                "job {:016x} has ended, or is not known: its groups end with it",
                wanted.job
            ));
        }
        let since = self.groups.create(index, wanted)?;
        if since == index {
            self.version = index;
        }
        Ok(since)
    }

    /// Removes a placement group.
    ///
    /// # Errors
    /// It is another job's.
    pub fn remove_group(&mut self, index: u64, remove: &proto::GroupRemove) -> Result<(), String> {
        if self.groups.remove(remove.group, remove.job)? {
            self.version = index;
        }
        Ok(())
    }

    /// Takes a step with a placement group.
    pub fn change_groups(&mut self, index: u64, command: &proto::GroupCommand) {
        if self.groups.apply(command, &self.members) {
            self.version = index;
        }
    }

    /// Whether there may be placement groups: every head reads what that makes.
    pub fn has_groups(&self) -> bool {
        self.level().0 >= crate::level::PLACES_GROUPS
    }

    /// Incarnations that neither left nor died, in order.
    pub fn live(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|m| m.alive)
    }

    /// The address of a member's peer link.
    pub fn address_of(&self, incarnation: u64) -> Option<&str> {
        self.members.get(&incarnation)?.join.as_ref().map(|join| join.address.as_str())
    }

    /// What everyone may see of it, without the slots, and loads and heads, which are not in the log.
    pub fn view(&self) -> proto::ClusterView {
        let nodes = self.members.values().map(|member| {
            let join = member.join.clone().unwrap_or_default();
            proto::NodeView {
                incarnation: member.incarnation,
                name: join.name,
                address: join.address,
                cpu_milli: join.cpu_milli,
                resources: join.resources,
                alive: member.alive,
                store_bytes: join.store_bytes,
                labels: join.labels,
                ..Default::default()
            }
        });
        let jobs = self.jobs.iter().map(|(id, job)| proto::JobView {
            job: *id,
            ended: job.ended,
            start: job.start.clone(),
            succeeded: job.succeeded,
        });
        proto::ClusterView {
            version: self.version,
            nodes: nodes.collect(),
            jobs: jobs.collect(),
            heads: Vec::new(),
            cluster: self.id,
            shards: self.shards,
            slots: None,
            level: self.level().0,
            groups: self.groups.view(),
        }
    }
}

fn job_ended(id: u64, job: &Job, cause: EventCause) -> Event {
    let start = job.start.clone().unwrap_or_default();
    Event {
        kind: EventKind::EventJobEnded as i32,
        cause: cause as i32,
        job: id,
        name: start.name,
        incarnation: start.incarnation,
        succeeded: job.succeeded,
        ..Default::default()
    }
}
