//! What leaders do unasked: fence the dead, look for the silent, declare deaths (R9, R10).

use super::shard::Caller;
use super::world::{What, World};
use mobula_base::Instant;
use mobula_gcs::core::locate::Members;
use mobula_gcs::core::silence::{Accusation, Verdict};
use mobula_proto::Command;
use mobula_proto::command::Op;
use std::rc::Rc;
use std::time::Duration;

/// Pause between looks.
const TICK: Duration = Duration::from_millis(100);
/// A node that says nothing for this long is declared dead.
const SILENCE: Duration = Duration::from_millis(1500);
/// Pause between looks for jobs that are over.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Fences proposed at once.
const MAX_FENCES: usize = 64;

impl World {
    /// A leader's replica of shard 0 catches up.
    pub fn root_seen(&mut self, shard: usize, members: Rc<Members>) {
        let s = &mut self.shards[shard];
        if members.version < s.members.version {
            return;
        }
        s.members = members;
        self.fence(shard);
        self.wake_soon(shard);
        self.watch_soon(shard);
        self.look_after_references(shard);
    }

    /// Copies shard 0's deaths into a shard's own log.
    pub fn fence(&mut self, shard: usize) {
        let s = &mut self.shards[shard];
        if s.leader.is_none() {
            return;
        }
        let open: Vec<u64> =
            s.members.dead.iter().copied().filter(|dead| !s.state.is_fenced(*dead)).collect();
        if open.is_empty() {
            let members = s.members.clone();
            s.holdings.forget_dead(&members.dead);
            return self.wake_soon(shard);
        }
        let fresh: Vec<u64> =
            open.into_iter().filter(|dead| !s.fencing.contains(dead)).take(MAX_FENCES).collect();
        for incarnation in fresh {
            self.shards[shard].fencing.insert(incarnation);
            let fence = mobula_proto::Fence { incarnation };
            self.propose(shard, Rc::new(Command::from(Op::Fence(fence))), Caller::Nobody);
        }
    }

    /// A look at members that say nothing is due, unless all have spoken.
    pub fn watch_soon(&mut self, shard: usize) {
        let s = &mut self.shards[shard];
        let settled = s.holdings.settled(s.members.live.keys(), s.members.last_death);
        if !settled && s.leader.is_some() && !std::mem::replace(&mut s.watching, true) {
            self.queue.after(TICK, What::Watch { shard });
        }
    }

    /// Looks for a member that does not report to this leader.
    pub fn watch(&mut self, shard: usize) {
        let now = self.now().since(Instant::default());
        let s = &mut self.shards[shard];
        s.watching = false;
        let Some(head) = s.leader else { return };
        let (heard, done) = (s.holdings.heard(), s.holdings.done(s.members.last_death));
        let live = s.members.live.keys().copied();
        let silent = s.watcher.look(now, TICK, s.term, live, &done, &heard);
        if let Some(member) = silent {
            let running = self.heads.iter().filter(|up| **up).count();
            let accusation =
                Accusation { shard: shard as u32, member, by: head as u64, has_heir: running > 1 };
            self.accuse(shard, &accusation);
        }
        self.watch_soon(shard);
    }

    fn accuse(&mut self, shard: usize, accusation: &Accusation) {
        let now = self.now().since(Instant::default());
        if self.shards[0].leader.is_none() {
            return;
        }
        let is_live = self.shards[0].members.live.contains_key(&accusation.member);
        match self.court.judge(now, accusation, is_live) {
            Verdict::Wait => {}
            Verdict::HandOver => {
                self.sometimes.hit("moved to another head");
                self.leader_falls(shard, None);
            }
            Verdict::Dead(_) => {
                self.sometimes.hit("death accused by a shard");
                self.declare_dead(accusation.member, 0);
            }
        }
    }

    /// The leader of shard 0 looks at the heartbeats.
    pub fn detect(&mut self) {
        let now = self.now().since(Instant::default());
        self.queue.after(TICK, What::Detect);
        let root = &self.shards[0];
        if root.leader.is_none() {
            return;
        }
        let live = root.members.live.keys().copied();
        if let Some((node, since)) = self.beats.tick(now, root.term, TICK, SILENCE, live) {
            self.sometimes.hit("death by silence");
            self.declare_dead(node, since.as_millis() as u64);
        }
    }

    /// Leaders forget jobs that are over.
    pub fn forget_jobs(&mut self) {
        self.queue.after(FORGET_EVERY, What::Forget);
        let jobs = &self.shards[0].state.cluster.jobs;
        let over: Vec<u64> = jobs.iter().filter(|(_, job)| job.ended).map(|(job, _)| *job).collect();
        for shard in 0..self.shards.len() {
            let here = self.shards[shard].state.jobs();
            let leads = self.shards[shard].leader.is_some();
            for job in over.iter().copied().filter(|job| leads && here.contains(job)) {
                let forget = mobula_proto::ForgetJob { job };
                self.propose(shard, Rc::new(Command::from(Op::Forget(forget))), Caller::Nobody);
            }
        }
    }

    /// A node passes on that a process is gone: the leader of shard 0 dials for itself.
    pub fn suspected(&mut self, head: usize, suspect: u64) {
        let now = self.now();
        let Some(address) = self.shards[0].members.live.get(&suspect) else { return };
        let machine: usize = address.parse().unwrap_or(usize::MAX);
        let gone = self.machines.get(machine).is_some_and(|machine| !machine.up);
        if gone && self.net.joined(super::net::Place::Head(head), Self::place(machine), now) {
            self.sometimes.hit("death proven by the kernel");
            self.declare_dead(suspect, 0);
        }
    }

    fn declare_dead(&mut self, incarnation: u64, silent_ms: u64) {
        self.note("dies", 1000, incarnation, silent_ms, String::new);
        let evidence = "simulated".to_owned();
        let death = mobula_proto::DeclareDead { incarnation, evidence, silent_ms };
        self.propose(0, Rc::new(Command::from(Op::DeclareDead(death))), Caller::Nobody);
    }
}
